// SPDX-License-Identifier: MIT

//! Layers that somebody else writes, several at a time, into space that is reserved for
//! them: a read-write disk's writer, who has a journal of its own and says himself in
//! which order layers lie.

use crate::commit::name;
use crate::error::Error;
use crate::format::{
    BLOCK,
    Entry, //
};
use crate::space::{
    self,
    Extent, //
};
use crate::store::Store;
use obd_core::image::MAX_LAYERS;
use obd_engine::Action;
use std::sync::Arc;

/// A layer that was written, and is durable.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where it is: space that was reserved.
    pub extent: Extent,
    /// Bytes of the layer's file.
    pub len: u64,
    /// Size of the image, bytes.
    pub virtual_size: u64,
    /// Bytes of data in it, before compression.
    pub data: u64,
    /// Its name, 64 bytes at most.
    pub name: String,
}

impl Entry {
    /// Its name.
    pub fn name(&self) -> &str {
        let name = str::from_utf8(&self.name).unwrap_or("");
        name.trim_end_matches('\0')
    }
}

impl Store {
    /// Keeps space for a layer of `most` bytes: that much in one piece, or the largest
    /// piece that there is. It is nobody else's until it is [released](Store::release), or
    /// the store is opened again.
    ///
    /// # Errors
    ///
    /// [`Error::Full`].
    pub fn reserve(&mut self, most: u64) -> Result<Extent, Error> {
        let wanted = most.max(1).next_multiple_of(BLOCK);
        let free = self.free();
        let Some(extent) = space::choose(&free, wanted, BLOCK) else {
            return Err(Error::Full {
                wanted,
                free: free.iter().map(|piece| piece.len).sum(),
                largest: free.iter().map(|piece| piece.len).max().unwrap_or(0),
            });
        };
        self.reserved.push(extent);
        Ok(extent)
    }

    /// Gives up what was reserved, but for the first `keep` bytes: whole blocks.
    pub fn release(&mut self, extent: Extent, keep: u64) {
        let kept = Extent {
            start: extent.start,
            len: keep.next_multiple_of(BLOCK).min(extent.len),
        };
        let reserved = self.reserved.iter_mut().find(|it| **it == extent);
        if let Some(reserved) = reserved {
            *reserved = kept;
        }
        self.reserved.retain(|it| it.len > 0);
    }

    /// Forgets the layers with the ids `forget`, and has one more on top if there is a
    /// `new` one, which is durable, and reserved no more. Durable when this returns; the
    /// new one's id.
    ///
    /// # Errors
    ///
    /// [`Error::Uncertain`], [`Error::TooMany`], [`Error::Name`], the device's.
    pub fn change(&mut self, forget: &[u64], new: Option<&Part>) -> Result<u64, Error> {
        let mut layers = self.state().layers.clone();
        layers.retain(|layer| !forget.contains(&layer.id));
        let id = self.state().generation + 1;
        if let Some(new) = new {
            if layers.len() >= MAX_LAYERS {
                return Err(Error::TooMany(MAX_LAYERS));
            }
            layers.push(Entry {
                extent: new.extent,
                len: new.len,
                virtual_size: new.virtual_size,
                uuid: [0; 16],
                id,
                data: new.data,
                name: name(&new.name)?,
            });
        }
        self.publish(layers, self.state().pending.clone())?;
        if let Some(new) = new {
            self.release(new.extent, 0);
        }
        Ok(id)
    }

    /// Discards `pieces`, which layers had that are forgotten: they are free from here on.
    ///
    /// # Errors
    ///
    /// [`Error::Uncertain`], the device's.
    pub fn discard(&mut self, pieces: &[Extent]) -> Result<(), Error> {
        if pieces.is_empty() {
            return Ok(());
        }
        // What the older superblock has is kept.
        self.settle()?;
        let free = self.free();
        let device = Arc::clone(self.device());
        for piece in pieces {
            let end = piece.start + piece.len;
            let is_free = |it: &Extent| it.start <= piece.start && end <= it.start + it.len;
            if free.iter().any(is_free) {
                device.command(Action::Discard, piece.start, piece.len)?;
            }
        }
        Ok(())
    }

    /// Whether nobody knows what is durable: a change failed half-way.
    pub fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Finds out what is durable, after a change that failed half-way: the store is as it
    /// was before, or as after. What is reserved stays so.
    ///
    /// # Errors
    ///
    /// As [`Store::open`]; nobody knows still.
    pub fn reread(&mut self) -> Result<(), Error> {
        let again = Self::open(Arc::clone(self.device()), true)?;
        if again.current.uuid != self.current.uuid {
            return Err(Error::Uncertain);
        }
        self.current = again.current;
        self.previous = again.previous;
        self.uncertain = false;
        // A change that is durable all the same has its own space.
        let layers = &self.current.layers;
        let is_named = |it: &Extent| layers.iter().any(|layer| layer.extent == *it);
        self.reserved.retain(|it| !is_named(it));
        Ok(())
    }
}
