// SPDX-License-Identifier: MIT

//! Opening a store and changing what it holds.

use crate::error::Error;
use crate::format::{
    BLOCK,
    DIRECTORY,
    Entry,
    FIRST,
    Invalid,
    SLOT,
    State, //
};
use crate::layer::{
    self,
    StoreImage, //
};
use crate::space::{
    self,
    Extent, //
};
use obd_engine::{
    Action,
    Shared, //
};
use std::ops::Range;
use std::sync::Arc;

/// The least size of a store, bytes.
pub const MIN_SIZE: u64 = FIRST + (1 << 20);

/// An open store. One writer at a time: the engine's owner.
pub struct Store {
    device: Arc<Shared>,
    /// What counts; it is durable.
    pub(crate) current: State,
    /// What the other superblock says, if it is valid. Should the newer one be
    /// lost, this would count: nothing it names is written over.
    pub(crate) previous: Option<State>,
    /// Set while a superblock is on its way, and for good if that fails.
    pub(crate) uncertain: bool,
    /// Space of layers that are being written, and that no superblock names.
    pub(crate) reserved: Vec<Extent>,
}

impl Store {
    /// Makes an empty store of all of `device`, whatever is there.
    ///
    /// # Errors
    ///
    /// [`Error::Unfit`], the device's.
    pub fn create(device: Arc<Shared>) -> Result<Self, Error> {
        let identity = device.identity();
        let size = identity.size - identity.size % BLOCK;
        let unfit = |reason: String| {
            Err(Error::Unfit {
                device: identity.name.clone(),
                reason,
            })
        };
        if size < MIN_SIZE {
            return unfit(format!(
                "{size} bytes are too few, {MIN_SIZE} are the least"
            ));
        }
        if u64::from(identity.block_size) > BLOCK
            || !BLOCK.is_multiple_of(identity.block_size.into())
        {
            return unfit(format!("blocks of {} bytes", identity.block_size));
        }
        let mut uuid = [0; 16];
        fastrand::fill(&mut uuid);
        // Neither slot may be taken for one of this store, nor what is there for
        // something else by whoever looks at signatures.
        device.write(0, &vec![0; FIRST as usize])?;
        device.flush()?;
        let mut store = Self {
            device: Arc::clone(&device),
            current: State {
                uuid,
                generation: 0,
                size,
                layers: Vec::new(),
                pending: None,
            },
            previous: None,
            uncertain: false,
            reserved: Vec::new(),
        };
        // Both slots: the signature of a store is in the first.
        store.publish(Vec::new(), None)?;
        store.publish(Vec::new(), None)?;
        Ok(store)
    }

    /// Opens the store on `device`. If it is to be changed, `write` says so:
    /// whatever a writer that died left in a volatile cache becomes durable
    /// before anything is concluded from it.
    ///
    /// # Errors
    ///
    /// [`Error::NoStore`], the device's.
    pub fn open(device: Arc<Shared>, write: bool) -> Result<Self, Error> {
        let identity = device.identity();
        if write {
            device.flush()?;
        }
        let none = |first, second| {
            Err(Error::NoStore {
                device: identity.name.clone(),
                first,
                second,
            })
        };
        if identity.size < MIN_SIZE {
            return none(Invalid::Magic, Invalid::Magic);
        }
        let mut slots = vec![0; 2 * SLOT as usize];
        device.read(0, &mut slots)?;
        let (first, second) = slots.split_at(SLOT as usize);
        let first = State::decode(first, 0, identity.size);
        let second = State::decode(second, 1, identity.size);
        let (current, previous) = match (first, second) {
            // One that belongs to another store is the older one, or half of a
            // new one: only one was ever made of a whole device.
            (Ok(a), Ok(b)) if a.uuid != b.uuid => {
                return none(Invalid::Field("UUID"), Invalid::Field("UUID"));
            }
            (Ok(a), Ok(b)) if a.generation > b.generation => (a, Some(b)),
            (Ok(a), Ok(b)) => (b, Some(a)),
            (Ok(a), Err(_)) | (Err(_), Ok(a)) => (a, None),
            (Err(a), Err(b)) => return none(a, b),
        };
        Ok(Self {
            device,
            current,
            previous,
            uncertain: false,
            reserved: Vec::new(),
        })
    }

    /// What the store holds.
    pub fn state(&self) -> &State {
        &self.current
    }

    /// The device it is on.
    pub fn device(&self) -> &Arc<Shared> {
        &self.device
    }

    /// Layers, stacked; all of them by `0..` their number.
    ///
    /// # Errors
    ///
    /// [`Error::NoLayers`], [`Error::Layer`], [`Error::Image`].
    pub fn image(&self, layers: Range<usize>) -> Result<StoreImage, Error> {
        layer::stack(&self.device, self.range(&layers)?, layers.start)
    }

    pub(crate) fn range(&self, layers: &Range<usize>) -> Result<&[Entry], Error> {
        let found = self.current.layers.get(layers.clone());
        found
            .filter(|found| !found.is_empty())
            .ok_or(Error::NoLayers {
                start: layers.start,
                end: layers.end,
                count: self.current.layers.len(),
            })
    }

    /// Free space: neither superblock has anything there, nor is it reserved.
    pub fn free(&self) -> Vec<Extent> {
        let previous = self.previous.iter().flat_map(State::extents);
        let reserved = self.reserved.iter().copied();
        space::free(
            FIRST..self.current.size,
            self.current.extents().chain(previous).chain(reserved),
        )
    }

    /// Discards all free space.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn trim(&mut self) -> Result<u64, Error> {
        if self.uncertain {
            return Err(Error::Uncertain);
        }
        // What the older superblock has would be kept.
        if self.previous.as_ref().is_some_and(|previous| {
            previous.layers != self.current.layers || previous.pending != self.current.pending
        }) {
            self.settle()?;
        }
        let mut trimmed = 0;
        for piece in self.free() {
            self.device
                .command(Action::Discard, piece.start, piece.len)?;
            trimmed += piece.len;
        }
        Ok(trimmed)
    }

    /// Lets the older superblock say what the newer one says.
    ///
    /// # Errors
    ///
    /// [`Error::Uncertain`], the device's.
    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        self.publish(self.current.layers.clone(), self.current.pending.clone())
    }

    /// Gives up a layer that is being written, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Uncertain`], the device's.
    pub fn abandon(&mut self) -> Result<(), Error> {
        match self.current.pending {
            None => Ok(()),
            Some(_) => self.publish(self.current.layers.clone(), None),
        }
    }

    /// Writes the next superblock, which counts once it is durable; so is what
    /// it names, which the caller has seen to.
    ///
    /// The older superblock goes first. While its place is being written the
    /// newer one is durable: if power fails now, that one counts. A superblock
    /// is no longer than what the device writes whole, and its directory's
    /// checksum is in it: in whatever order they become durable, it is valid
    /// only with all of it. Both are written through: what else there is to be made
    /// durable is so already, and a flush would be of all that others wrote, too.
    pub(crate) fn publish(
        &mut self,
        layers: Vec<Entry>,
        pending: Option<crate::format::Pending>,
    ) -> Result<(), Error> {
        if self.uncertain {
            return Err(Error::Uncertain);
        }
        let next = State {
            generation: self.current.generation + 1,
            layers,
            pending,
            ..self.current.clone()
        };
        let (superblock, mut directory) = next.encode();
        let block = self.device.identity().block_size as usize;
        directory.resize(directory.len().next_multiple_of(BLOCK as usize), 0);
        let mut first = superblock.to_vec();
        first.resize(first.len().next_multiple_of(block), 0);
        self.uncertain = true;
        if !directory.is_empty() {
            self.device
                .write_through(next.slot() + DIRECTORY, &directory)?;
        }
        self.device.write_through(next.slot(), &first)?;
        self.uncertain = false;
        self.previous = match next.generation {
            1 => None,
            _ => Some(std::mem::replace(&mut self.current, next.clone())),
        };
        self.current = next;
        Ok(())
    }
}
