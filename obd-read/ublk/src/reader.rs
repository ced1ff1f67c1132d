// SPDX-License-Identifier: MIT

//! Requests as reads of blobs: which bytes are read, and what is made of them.
//!
//! Each request has a slot of its own, by tag: memory for its data, memory for
//! stored bytes on their way, and up to [`READS`] reads of blobs under way. Parts
//! that are zeros take none. Blocks that are wanted whole are decoded to where
//! they are wanted; of others the last one is kept for who reads on.

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::decoder::Decoder;
use crate::disk::{
    Disk,
    Position,
    ReadError,
    Stored,
    beyond, //
};
use crate::error::Error;
use crate::memory::Memory;
use crate::ring::{
    READS,
    Ring, //
};
use obd_core::error::LayerError;
use obd_core::{
    Window,
    ZFile, //
};
use obd_host::{
    File,
    Host, //
};
use rustix::io::Errno;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;

/// Longest request, bytes: longer ones are split by the kernel, so that several
/// CPUs decode. As much as it reads ahead unless it is told otherwise.
pub(crate) const MAX_BYTES: usize = 128 << 10;

/// Stored bytes of a request that are on their way at a time: a little more than
/// the longest one takes, incompressible and with its checksums.
const STAGE: usize = MAX_BYTES + (32 << 10);

/// How far a request got.
#[derive(Debug)]
pub(crate) enum Progress {
    /// It waits for reads.
    Waiting,
    /// It has ended: all of its data is there, or it is not known.
    Done(Result<(), ReadError>),
}

/// A read of a blob.
struct Read {
    blob: usize,
    /// First byte in the blob.
    offset: u64,
    /// Bytes.
    len: usize,
    /// Bytes that are there.
    done: usize,
    to: Target,
}

/// What becomes of the bytes of a read.
#[derive(Clone, Copy)]
enum Target {
    /// They are data, and go there in the slot's.
    Data(usize),
    /// They are blocks, and are decoded.
    Blocks(Blocks),
}

#[derive(Clone, Copy)]
struct Blocks {
    /// First byte in the slot's stage.
    stage: usize,
    /// The first block.
    first: u64,
    /// How many.
    count: u64,
    /// Bytes of the first one that are not wanted.
    skip: usize,
    /// Where in the slot's data the rest goes.
    data: usize,
    /// Bytes of data.
    len: usize,
}

/// What is under way for a tag.
#[derive(Default)]
struct Slot {
    /// First byte of the disk.
    offset: u64,
    /// Bytes.
    len: usize,
    /// Bytes that are there or under way.
    planned: usize,
    /// Bytes of the stage in use.
    staged: usize,
    reads: Vec<Read>,
    /// How many of them are not finished.
    flying: usize,
    failure: Option<ReadError>,
}

/// The requests of a queue.
pub(crate) struct Reader {
    disk: Arc<Disk>,
    slots: Vec<Slot>,
    /// [`MAX_BYTES`] per slot.
    data: ManuallyDrop<Memory>,
    /// `stage_len` per slot.
    stage: ManuallyDrop<Memory>,
    stage_len: usize,
    decoder: Decoder,
}

impl Reader {
    /// For `depth` requests at a time.
    pub(crate) fn new(disk: Arc<Disk>, depth: usize) -> Result<Self, Error> {
        let needs = disk.needs();
        let stage_len = match needs.stored {
            0 => 0,
            longest => longest.max(STAGE),
        };
        let memory = |len: usize| {
            Memory::new(len.saturating_mul(depth))
                .map(ManuallyDrop::new)
                .map_err(Error::system("get memory for buffers"))
        };
        Ok(Self {
            data: memory(MAX_BYTES)?,
            stage: memory(stage_len)?,
            stage_len,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            decoder: Decoder::new(needs).map_err(|obd_core::platform::OutOfMemory| {
                Error::System {
                    what: "get memory for buffers",
                    source: io::ErrorKind::OutOfMemory.into(),
                }
            })?,
            disk,
        })
    }

    /// Where the data of the request with `tag` is.
    pub(crate) fn address(&self, tag: usize) -> Option<u64> {
        let at = self.data.address(tag.checked_mul(MAX_BYTES)?, MAX_BYTES)?;
        Some(at.as_ptr() as u64)
    }

    /// The data of the request with `tag`, which has ended.
    #[cfg(test)]
    pub(crate) fn data(&mut self, tag: usize) -> &[u8] {
        let len = self.slots[tag].len;
        self.data.get_mut(tag * MAX_BYTES, len).unwrap()
    }

    /// Begins to read `len` bytes at `offset` of the disk for `tag`, which has no
    /// request under way.
    pub(crate) fn start(
        &mut self,
        ring: &mut Ring,
        tag: usize,
        offset: u64,
        len: usize,
    ) -> io::Result<Progress> {
        let Some(slot) = self.slots.get_mut(tag) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        slot.reads.clear();
        *slot = Slot {
            offset,
            len,
            reads: std::mem::take(&mut slot.reads),
            ..Slot::default()
        };
        if len > MAX_BYTES {
            return Ok(Progress::Done(Err(LayerError::from(
                obd_core::Error::OutOfRange {
                    offset,
                    len: len as u64,
                    size: MAX_BYTES as u64,
                },
            ))));
        }
        self.go_on(ring, tag)
    }

    /// Read `number` of the request with `tag` gave `result`.
    pub(crate) fn completed(
        &mut self,
        ring: &mut Ring,
        tag: usize,
        number: usize,
        result: i32,
    ) -> io::Result<Progress> {
        let there = self.slots.get_mut(tag);
        let Some(slot) = there.filter(|slot| slot.flying > 0) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let Some(read) = slot.reads.get_mut(number) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let rest = (read.len - read.done) as u64;
        let failed = |source| LayerError {
            layer: Some(read.blob),
            error: obd_core::Error::Io {
                offset: read.offset + read.done as u64,
                len: rest,
                source,
            },
        };
        let failure = match result {
            0 => Some(failed(io::ErrorKind::UnexpectedEof.into())),
            ..0 => match Errno::from_raw_os_error(-result) {
                Errno::INTR | Errno::AGAIN => None,
                errno => Some(failed(errno.into())),
            },
            _ => {
                // The kernel never reads more than it was asked to.
                read.done = read.done.saturating_add(result as usize).min(read.len);
                None
            }
        };
        if failure.is_none() && read.done < read.len {
            self.issue(ring, tag, number)?;
            return Ok(Progress::Waiting);
        }
        slot.flying -= 1;
        let failure = match (failure, &slot.failure, read.to) {
            (None, None, Target::Blocks(blocks)) => {
                let blob = read.blob;
                self.decode(tag, blob, blocks).err()
            }
            (failure, ..) => failure,
        };
        let Some(slot) = self.slots.get_mut(tag) else {
            return Ok(Progress::Waiting);
        };
        slot.failure = slot.failure.take().or(failure);
        if slot.flying > 0 {
            return Ok(Progress::Waiting);
        }
        match slot.failure.take() {
            Some(failure) => Ok(Progress::Done(Err(failure))),
            None => self.go_on(ring, tag),
        }
    }

    /// Plans what comes next of a request that has no read under way, and issues
    /// it.
    fn go_on(&mut self, ring: &mut Ring, tag: usize) -> io::Result<Progress> {
        let planned = self.plan(tag);
        let Some(slot) = self.slots.get_mut(tag) else {
            return Ok(Progress::Waiting);
        };
        if let Err(failure) = planned {
            // Nothing was issued: the kernel knows none of them.
            return Ok(Progress::Done(Err(failure)));
        }
        slot.flying = slot.reads.len();
        for number in 0..slot.flying {
            self.issue(ring, tag, number)?;
        }
        Ok(match self.slots.get(tag) {
            Some(slot) if slot.flying > 0 => Progress::Waiting,
            _ => Progress::Done(Ok(())),
        })
    }

    /// Gives the kernel what is left of a read.
    fn issue(&mut self, ring: &mut Ring, tag: usize, number: usize) -> io::Result<()> {
        let slot = self.slots.get(tag);
        let Some(read) = slot.and_then(|slot| slot.reads.get(number)) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (memory, at) = match &read.to {
            Target::Data(at) => (&self.data, tag * MAX_BYTES + at),
            Target::Blocks(blocks) => (&self.stage, tag * self.stage_len + blocks.stage),
        };
        // SAFETY: reads of a slot go to parts of its memory that do not overlap,
        // and these are not looked at before they completed. The memory stays
        // until then, see `drop`.
        unsafe {
            ring.read(
                tag,
                number,
                read.blob,
                read.offset + read.done as u64,
                memory,
                at + read.done,
                read.len - read.done,
            )
        }
    }

    /// Fills zeros and what is held, and lists reads for the rest: all of it, or
    /// as much as can be under way at a time.
    fn plan(&mut self, tag: usize) -> Result<(), ReadError> {
        let Some(slot) = self.slots.get_mut(tag) else {
            return Ok(());
        };
        slot.reads.clear();
        slot.staged = 0;
        let base = tag * MAX_BYTES;
        while slot.planned < slot.len && slot.reads.len() < READS {
            let offset = slot.offset + slot.planned as u64;
            let part = self.disk.part(offset, slot.len - slot.planned)?;
            let Some(Position { blob, offset }) = part.data else {
                if let Some(zeros) = self.data.get_mut(base + slot.planned, part.len) {
                    zeros.fill(0);
                }
                slot.planned += part.len;
                continue;
            };
            match self.disk.stored(blob).ok_or(beyond(blob))? {
                Stored::Plain(file) => {
                    let end = offset.checked_add(part.len as u64);
                    if end.is_none_or(|end| end > file.size()) {
                        return Err(beyond(blob));
                    }
                    slot.reads.push(Read {
                        blob,
                        offset: place(file, offset),
                        len: part.len,
                        done: 0,
                        to: Target::Data(slot.planned),
                    });
                    slot.planned += part.len;
                }
                Stored::Compressed(zfile) => {
                    let number = offset / zfile.block_size() as u64;
                    let skip = (offset % zfile.block_size() as u64) as usize;
                    if self.decoder.holds(blob, number) {
                        let held = self.decoder.held(zfile, number, skip, part.len);
                        let to = self.data.get_mut(base + slot.planned, held.len());
                        match to {
                            Some(to) if !held.is_empty() => to.copy_from_slice(held),
                            _ => return Err(beyond(blob)),
                        }
                        slot.planned += held.len();
                        continue;
                    }
                    let stage = slot.staged..self.stage_len;
                    match run(zfile, blob, (offset, part.len), stage, slot.planned)? {
                        Some((read, blocks)) => {
                            slot.staged += read.len;
                            slot.planned += blocks.len;
                            slot.reads.push(read);
                        }
                        None if slot.reads.is_empty() => return Err(beyond(blob)),
                        // The stage is full.
                        None => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    /// Decodes blocks whose stored bytes are there.
    fn decode(&mut self, tag: usize, blob: usize, blocks: Blocks) -> Result<(), ReadError> {
        let Some(Stored::Compressed(zfile)) = self.disk.stored(blob) else {
            return Err(beyond(blob));
        };
        let in_blob = |error| LayerError {
            layer: Some(blob),
            error,
        };
        let mut stage = tag * self.stage_len + blocks.stage;
        let mut data = tag * MAX_BYTES + blocks.data;
        let mut left = blocks.len;
        let mut skip = blocks.skip;
        for number in blocks.first..blocks.first.saturating_add(blocks.count) {
            let len = zfile.extent(number).ok_or(beyond(blob))?.len as usize;
            let whole = zfile.decoded_len(number);
            let wanted = left.min(whole.saturating_sub(skip));
            let stored = self.stage.get_mut(stage, len).ok_or(beyond(blob))?;
            let to = self.data.get_mut(data, wanted).ok_or(beyond(blob))?;
            self.decoder
                .decode(zfile, (blob, number), stored, skip, to)
                .map_err(in_blob)?;
            stage += len;
            data += wanted;
            left -= wanted;
            skip = 0;
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Reads that are under way outlive the ring: better lost than reused.
        if self.slots.iter().all(|slot| slot.flying == 0) {
            // SAFETY: both are dropped here and nowhere else, and not used again.
            unsafe {
                ManuallyDrop::drop(&mut self.data);
                ManuallyDrop::drop(&mut self.stage);
            }
        }
    }
}

/// Where `offset` of a layer or zfile is in the file that it is in.
fn place(window: &Window<File>, offset: u64) -> u64 {
    window.source().start() + window.start() + offset
}

/// The read for as many blocks as `len` bytes from `offset` of `zfile` touch and
/// `stage`, a part of a slot's, holds, and what becomes of it: data at `data`.
/// [`None`] if the stage has no room for the first block.
fn run(
    zfile: &ZFile<File, Host>,
    blob: usize,
    (offset, len): (u64, usize),
    stage: Range<usize>,
    data: usize,
) -> Result<Option<(Read, Blocks)>, ReadError> {
    let end = offset.checked_add(len as u64);
    let end = end.filter(|end| *end <= zfile.size()).ok_or(beyond(blob))?;
    let size = zfile.block_size() as u64;
    let first = offset / size;
    let extent = zfile.extent(first).ok_or(beyond(blob))?;
    let mut stored = extent.len as usize;
    if stored > stage.len() {
        return Ok(None);
    }
    let mut next = first + 1;
    while next < end.div_ceil(size) {
        // Blocks lie one behind the other.
        let more = zfile.extent(next).ok_or(beyond(blob))?.len as usize;
        if stored + more > stage.len() {
            break;
        }
        stored += more;
        next += 1;
    }
    let blocks = Blocks {
        stage: stage.start,
        first,
        count: next - first,
        skip: (offset - first * size) as usize,
        data,
        // No more than `len`: fits.
        len: (end.min(next.saturating_mul(size)) - offset) as usize,
    };
    let read = Read {
        blob,
        offset: place(zfile.file(), extent.offset),
        len: stored,
        done: 0,
        to: Target::Blocks(blocks),
    };
    Ok(Some((read, blocks)))
}

#[cfg(test)]
mod tests;
