// SPDX-License-Identifier: MIT

//! Writing a layer into a store: journaled, resumable, in place of others.

use crate::error::{
    CommitError,
    Error, //
};
use crate::format::{
    BLOCK,
    Entry,
    MAX_NAME,
    Pending,
    crc, //
};
use crate::journal::{
    self,
    Position, //
};
use crate::space::{
    self,
    Extent, //
};
use crate::store::Store;
use crate::stream::Stream;
use obd_core::error::LayerError;
use obd_core::image::MAX_LAYERS;
use obd_engine::Shared;
use obd_writer::source::ImageSource;
use obd_writer::{
    Options,
    Prepared,
    Sink,
    Source,
    Stats, //
};
use std::io;
use std::ops::{
    ControlFlow,
    Range, //
};
use std::sync::Arc;

/// How a layer is put into a store.
#[derive(Clone, Debug)]
pub struct How {
    /// What its content is: whoever comes with the same after an interruption
    /// goes on where the journal ends. The layout of the layer and its options
    /// need not be in it.
    pub identity: [u8; 16],
    /// Its name, 64 bytes at most.
    pub name: String,
    /// The layers it replaces; those behind the last for one that goes on top.
    pub replace: Range<usize>,
    /// Bytes of the layer, before compression, between two entries of the
    /// journal: what is lost when power fails.
    pub interval: u64,
    /// Whether it is to go on with an interrupted one, or to fail: what that has
    /// is given up for no other.
    pub resume: bool,
}

impl How {
    /// What is lost by default, bytes.
    pub const INTERVAL: u64 = 64 << 20;
}

/// What was committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// What was written.
    pub stats: Stats,
    /// Bytes, before compression, that an interrupted commit had left.
    pub resumed_at: u64,
    /// Generation of the superblock that names it.
    pub generation: u64,
}

impl Store {
    /// Writes what `source` holds as a layer. When this returns it is durable,
    /// and the store's; before, nothing of it is. `progress` is as that of
    /// [`obd_writer::commit`].
    ///
    /// # Errors
    ///
    /// [`CommitError`]; layers are what they were. If the source or the device
    /// failed, the same commit can go on later.
    pub fn commit<S: Source>(
        &mut self,
        source: &S,
        options: &Options,
        how: &How,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Committed, CommitError<S::Error>> {
        let options = Options {
            // The store is the wrapper.
            tar: false,
            ..options.clone()
        };
        let replace = how.replace.clone();
        let count = self.state().layers.len();
        if replace.start > replace.end || replace.end > count {
            return Err(Error::NoLayers {
                start: replace.start,
                end: replace.end,
                count,
            }
            .into());
        }
        if count - replace.len() >= MAX_LAYERS {
            return Err(Error::TooMany(MAX_LAYERS).into());
        }
        let name = name(&how.name)?;
        let prepared = Prepared::new(source, &options)?;
        let identity = identity(how, &options, prepared.layout());
        let (pending, found) = self.begin(&prepared, identity, how)?;
        let (checkpoint, tail, next) = match found {
            Some(found) => (Some(found.checkpoint), found.tail, found.next),
            None => (None, Vec::new(), Position::default()),
        };
        let resumed_at = checkpoint.as_ref().map_or(0, |point| point.content);
        let at = checkpoint.as_ref().map_or(0, |point| point.stored);
        let device = Arc::clone(self.device());
        let base = pending.extent.start + pending.journal;
        let room = pending.extent.len - pending.journal;
        let sink = StoreSink {
            stream: Stream::new(&device, base, room, at, &tail).map_err(Error::from)?,
            device: &device,
            pending: &pending,
            position: next,
            lens: Vec::new(),
            recorded: resumed_at,
            content: resumed_at,
            interval: how.interval.max(1),
            whole: prepared.content(),
        };
        let stats = prepared.write(sink, checkpoint, progress)?;

        // Everything is durable. The journal's space is free from now on.
        let mut layers = self.state().layers.clone();
        let entry = Entry {
            extent: Extent {
                start: base,
                len: stats.stored.next_multiple_of(BLOCK),
            },
            len: stats.stored,
            virtual_size: stats.virtual_size,
            uuid: *options.uuid.as_bytes(),
            id: self.state().generation + 1,
            data: stats.data,
            name,
        };
        let reclaims = !replace.is_empty();
        layers.splice(replace, [entry]);
        self.publish(layers, None)?;
        let generation = self.state().generation;
        if reclaims {
            self.trim()?;
        }
        Ok(Committed {
            stats,
            resumed_at,
            generation,
        })
    }

    /// Writes `layers` as one layer in their place, and discards their space.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`].
    pub fn merge(
        &mut self,
        layers: Range<usize>,
        options: &Options,
        interval: u64,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Committed, CommitError<LayerError<io::Error>>> {
        let entries = self.range(&layers)?;
        let mut identity = [0; 16];
        let (first, last) = identity.split_at_mut(8);
        // Of two layers none have the same: this says which they are.
        first.copy_from_slice(&entries.first().map_or(0, |entry| entry.id).to_le_bytes());
        last.copy_from_slice(&entries.last().map_or(0, |entry| entry.id).to_le_bytes());
        let end = entries.last().map_or(&[][..], |entry| &entry.name);
        let name = String::from_utf8_lossy(end)
            .trim_end_matches('\0')
            .to_owned();
        let how = How {
            identity,
            name,
            replace: layers.clone(),
            interval,
            resume: false,
        };
        let image = self.image(layers)?;
        self.commit(&ImageSource::new(&image), options, &how, progress)
    }

    /// Space for a layer: that of an interrupted commit of the same, with what
    /// its journal says, or new.
    fn begin<S: Source>(
        &mut self,
        prepared: &Prepared<'_, S>,
        identity: [u8; 16],
        how: &How,
    ) -> Result<(Pending, Option<journal::Found>), Error> {
        if let Some(pending) = &self.state().pending
            && pending.identity == identity
        {
            let pending = pending.clone();
            let found = journal::read(self.device(), &pending)?;
            return Ok((pending, found));
        }
        if how.resume {
            return Err(Error::NothingToResume {
                other: self.state().pending.is_some(),
            });
        }
        let interval = how.interval.max(1);
        let journal = journal::room(prepared.content(), interval, prepared.block_size());
        let wanted = journal + prepared.most_stored().next_multiple_of(BLOCK);
        let choose = |store: &Self| space::choose(&store.free(), wanted, journal + BLOCK);
        let mut extent = choose(self).filter(|extent| extent.len == wanted);
        if extent.is_none() {
            // What is given up, and what only the older superblock has.
            self.abandon()?;
            self.settle()?;
            extent = choose(self);
        }
        let Some(extent) = extent else {
            let free = self.free();
            return Err(Error::Full {
                wanted,
                free: free.iter().map(|piece| piece.len).sum(),
                largest: free.iter().map(|piece| piece.len).max().unwrap_or(0),
            });
        };
        let pending = Pending {
            extent,
            journal,
            identity,
            id: fastrand::u64(1..),
        };
        self.publish(self.state().layers.clone(), Some(pending.clone()))?;
        Ok((pending, None))
    }
}

/// A layer's name as a superblock has it.
pub(crate) fn name(text: &str) -> Result<[u8; MAX_NAME], Error> {
    let mut name = [0; MAX_NAME];
    match name.get_mut(..text.len()) {
        Some(room) if !text.contains('\0') => room.copy_from_slice(text.as_bytes()),
        _ => return Err(Error::Name(text.to_owned())),
    }
    Ok(name)
}

/// What the commit must be for another to go on with it.
fn identity(how: &How, options: &Options, layout: u32) -> [u8; 16] {
    let mut identity = how.identity;
    let compression = format!("{:?}", options.compression);
    let mix = [
        layout,
        crc(compression.as_bytes()),
        how.replace.start as u32,
        how.interval as u32,
    ];
    for (bytes, mix) in identity.chunks_exact_mut(4).zip(mix) {
        for (byte, mix) in bytes.iter_mut().zip(mix.to_le_bytes()) {
            *byte ^= mix;
        }
    }
    identity
}

/// A layer on its way into a store.
struct StoreSink<'a> {
    stream: Stream<'a>,
    device: &'a Shared,
    pending: &'a Pending,
    position: Position,
    /// Of blocks the journal does not have yet.
    lens: Vec<u32>,
    /// Bytes of content the journal has.
    recorded: u64,
    /// Bytes of content that were appended.
    content: u64,
    interval: u64,
    /// Bytes of content there will be.
    whole: u64,
}

impl StoreSink<'_> {
    /// Whether there is space for `more` bytes.
    fn check(&self, more: u64) -> Result<(), Error> {
        if self.stream.fits(more) {
            return Ok(());
        }
        let room = self.pending.extent.len - self.pending.journal;
        Err(Error::Full {
            wanted: self.stream.len() + more,
            free: room,
            largest: room,
        })
    }

    /// Lets the journal say how far this got.
    fn record(&mut self) -> Result<(), Error> {
        self.stream.settle()?;
        // What the record speaks of, and the record before it, come first.
        self.device.flush()?;
        let record = journal::encode(
            self.pending,
            &self.position,
            self.content,
            self.stream.len(),
            self.stream.tail(),
            &self.lens,
        );
        journal::write(self.device, self.pending, &mut self.position, &record)?;
        self.lens.clear();
        self.recorded = self.content;
        Ok(())
    }
}

impl Sink for StoreSink<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.check(bytes.len() as u64)?;
        Ok(self.stream.append(bytes)?)
    }

    fn lend(&mut self, least: usize) -> io::Result<Option<&mut [u8]>> {
        Ok(self.stream.lend(least)?)
    }

    fn lent(&mut self, len: usize) -> io::Result<()> {
        self.check(len as u64)?;
        Ok(self.stream.lent(len)?)
    }

    fn moved(&self) -> u64 {
        self.stream.moved()
    }

    fn batch(&mut self, content: u64, lens: &[u32]) -> io::Result<()> {
        self.lens.extend(lens);
        self.content = content;
        // The end is near enough to be reached without.
        if content - self.recorded >= self.interval && content < self.whole {
            self.record()?;
        }
        Ok(())
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.end()?;
        Ok(self.stream.overwrite(bytes)?)
    }

    fn finish(mut self) -> io::Result<()> {
        self.stream.end()?;
        Ok(self.device.flush()?)
    }
}
