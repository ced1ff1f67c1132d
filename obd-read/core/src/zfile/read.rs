// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Reading a zfile: blocks wanted whole are decoded to where they are wanted.

use super::header::Algorithm;
use super::{
    CRC_SEED,
    CRC_SIZE,
    ZFile, //
};
use crate::error::{
    Error,
    Fault,
    Place,
    Reason, //
};
use crate::le;
use crate::platform::{
    Codec,
    Corrupt,
    Crc32c,
    Platform, //
};
use crate::scratch::{
    Fetch,
    Scratch, //
};
use crate::source::{
    Source,
    UNKEPT, //
};
use core::ops::Range;

/// The codecs' workspaces of a [`Scratch`].
struct Workspaces<'a, P: Platform> {
    lz4: &'a mut Option<<P::Lz4 as Codec>::Workspace>,
    zstd: &'a mut Option<<P::Zstd as Codec>::Workspace>,
}

/// Where a block is decoded to of which only a part is wanted.
struct Kept<'a> {
    /// Of the file, in its image.
    layer: usize,
    block: &'a mut [u8],
    /// Layer and number of the block that is there.
    holds: &'a mut Option<(usize, u64)>,
    /// Where what is wanted ends, now and next.
    until: u64,
}

impl<S: Source, P: Platform> ZFile<S, P> {
    /// Fills `buf` with decoded bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] beyond [`ZFile::size`], [`Error::Damaged`] with
    /// the block that is. The content of `buf` is undefined then.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        scratch.forget();
        self.read_next(offset, buf, 0, scratch)
    }

    /// As [`ZFile::read_at`], by a reader who uses `scratch` for this file and
    /// nothing else: what it holds of the block decoded last is used again. The
    /// `ahead` bytes behind these are wanted next, and read now as far as there is
    /// room.
    ///
    /// # Errors
    ///
    /// As [`ZFile::read_at`].
    pub fn read_next(
        &self,
        offset: u64,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        self.read_part(0, offset, buf, ahead, scratch)
    }

    /// What to read of the file before the `len` bytes from `offset` on can be decoded: the
    /// blocks that they begin with, as many as fit into `most` bytes; none if not even
    /// one does, or there are none.
    pub fn fetch(&self, offset: u64, len: u64, most: usize) -> Option<Fetch> {
        self.fetch_part(0, offset, len, most)
    }

    /// As [`ZFile::fetch`], as layer `layer` of an image.
    pub(crate) fn fetch_part(
        &self,
        layer: usize,
        offset: u64,
        len: u64,
        most: usize,
    ) -> Option<Fetch> {
        let end = offset.checked_add(len)?.min(self.size);
        let shift = self.options.shift;
        let first = self.extent(offset >> shift)?;
        // Blocks lie one behind the other.
        let mut last = end.checked_sub(1)? >> shift;
        // What is in memory is not read.
        if self.is_kept() && last == offset >> shift && self.file.source().keeps(last) {
            return None;
        }
        let len = loop {
            let extent = self.extent(last)?;
            let before = extent.offset.checked_sub(first.offset)?;
            let len = before.checked_add(u64::from(extent.len))?;
            if len <= most as u64 {
                break len as usize;
            }
            last = last.checked_sub(1)?;
        };
        Some(Fetch {
            layer,
            at: self.file.start().checked_add(first.offset)?,
            len,
            offset: first.offset,
        })
    }

    /// As [`ZFile::read_at`], as layer `layer` of an image: what the scratch
    /// holds of the blocks it decoded last stays valid.
    #[inline]
    pub(crate) fn read_part(
        &self,
        layer: usize,
        offset: u64,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        let end = match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size => end,
            _ => {
                return Err(Error::OutOfRange {
                    offset,
                    len: buf.len() as u64,
                    size: self.size,
                });
            }
        };
        let shift = self.options.shift;
        let mut skip = (offset & (self.block_size() as u64 - 1)) as usize;
        let mut number = offset >> shift;
        let blocks = end.div_ceil(1 << shift);
        let until = end.saturating_add(ahead).min(self.size);
        let blocks_ahead = until.div_ceil(1 << shift);
        let mut buf = buf;
        while number < blocks && !buf.is_empty() {
            let held = scratch.holds == Some((layer, number));
            if held || self.is_kept() {
                let whole = self.decoded_len(number);
                let wanted = buf.len().min(whole - skip.min(whole));
                let now = buf.get_mut(..wanted).unwrap_or_default();
                let served = if held {
                    if let Some(from) = scratch.block.get(skip..skip.saturating_add(wanted)) {
                        now.copy_from_slice(from);
                    }
                    true
                } else {
                    // What is wanted whole is decoded to where it is wanted.
                    wanted < whole && self.file.source().kept(number, skip, now)
                };
                if served {
                    buf = split(buf, wanted).1;
                    skip = 0;
                    number += 1;
                    continue;
                }
            }
            let first = self.extent(number).ok_or(Error::OutOfRange {
                offset,
                len: buf.len() as u64,
                size: self.size,
            })?;
            let mut len = first.len as usize;
            let mut stop = number + 1;
            let found = scratch.run.and_then(|run| {
                let mut found = run.find(layer, first.offset, len)?;
                // And what is there of those behind it.
                while stop < blocks {
                    let end = found.end + self.table.len_of(stop) as usize;
                    if end > run.end() {
                        break;
                    }
                    found.end = end;
                    stop += 1;
                }
                Some(found)
            });
            if found.is_none() {
                // As many blocks at once as there is room for their stored bytes.
                let most = scratch.most();
                if len > most {
                    return Err(Error::ScratchTooSmall);
                }
                while stop < blocks_ahead {
                    let more = len + self.table.len_of(stop) as usize;
                    if more > most {
                        break;
                    }
                    len = more;
                    stop += 1;
                }
                if stop > blocks {
                    scratch.read_run(&self.file, layer, first.offset, len)?;
                    continue;
                }
                scratch.run = None;
            }
            let Scratch {
                stored,
                block,
                holds,
                lz4,
                zstd,
                ..
            } = scratch;
            let mut workspaces = Workspaces { lz4, zstd };
            let kept = Kept {
                layer,
                block,
                holds,
                until,
            };
            let run = number..stop;
            let rest = match found.and_then(|found| stored.get(found)) {
                Some(stored) => self.decode_run(run, stored, skip, buf, kept, &mut workspaces),
                None => self.file.with(first.offset, len, stored, |stored| {
                    self.decode_run(run, stored, skip, buf, kept, &mut workspaces)
                })?,
            };
            buf = rest.inspect_err(|_| {
                // What was damaged on its way here is read again by who tries again.
                scratch.run = None;
            })?;
            skip = 0;
            number = stop;
        }
        Ok(())
    }

    /// Decodes the blocks `run` from their stored bytes to the beginning of `buf`,
    /// but for the first `skip` bytes and what is more than `buf` has room for.
    /// Returns the rest of `buf`.
    #[inline]
    fn decode_run<'a>(
        &self,
        run: Range<u64>,
        stored: &[u8],
        skip: usize,
        buf: &'a mut [u8],
        kept: Kept<'_>,
        workspaces: &mut Workspaces<'_, P>,
    ) -> Result<&'a mut [u8], Error<S::Error>> {
        let mut skip = skip;
        let mut stored = stored;
        let mut buf = buf;
        for number in run {
            let (this, after) = stored
                .split_at_checked(self.table.len_of(number) as usize)
                .unwrap_or((&[], &[]));
            stored = after;
            let whole = self.decoded_len(number);
            let wanted = buf.len().min(whole - skip.min(whole));
            let (now, later) = split(buf, wanted);
            if wanted == whole {
                self.decode(number, this, now, workspaces)?;
            } else {
                *kept.holds = None;
                let to = kept.block.get_mut(..whole).ok_or(Error::ScratchTooSmall)?;
                self.decode(number, this, to, workspaces)?;
                *kept.holds = Some((kept.layer, number));
                // Who reads all of it, part by part, does it now.
                let end = number.saturating_add(1) << self.options.shift;
                if self.is_kept() && (skip > 0 || end.min(self.size) > kept.until) {
                    self.file.source().keep(number, to);
                }
                if let Some(from) = to.get(skip..skip.saturating_add(wanted)) {
                    now.copy_from_slice(from);
                }
            }
            buf = later;
            skip = 0;
        }
        Ok(buf)
    }

    /// Checks and decodes block `number` from its stored bytes to `to`, which
    /// is [`ZFile::decoded_len`] long: for callers that read by themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if checksum, content or lengths are wrong.
    pub fn decode_block(
        &self,
        number: u64,
        stored: &[u8],
        to: &mut [u8],
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        let mut workspaces = Workspaces {
            lz4: &mut scratch.lz4,
            zstd: &mut scratch.zstd,
        };
        self.decode(number, stored, to, &mut workspaces)
    }

    #[inline]
    fn decode(
        &self,
        number: u64,
        stored: &[u8],
        to: &mut [u8],
        workspaces: &mut Workspaces<'_, P>,
    ) -> Result<(), Error<S::Error>> {
        let packed = if self.options.verify {
            let (packed, crc) = stored
                .split_last_chunk::<{ CRC_SIZE as usize }>()
                .ok_or_else(|| self.fault(number, Reason::TooShort))?;
            let computed = P::Crc::crc32c(CRC_SEED, packed);
            let stored = le::u32_at(crc, 0);
            if stored != computed {
                return Err(self.fault(number, Reason::Checksum { stored, computed }));
            }
            packed
        } else {
            stored
        };
        let missing = Error::ScratchTooSmall;
        let got: Result<usize, Corrupt> = match self.options.algorithm {
            Algorithm::Lz4 => {
                P::Lz4::decompress(workspaces.lz4.as_mut().ok_or(missing)?, packed, to)
            }
            Algorithm::Zstd => {
                P::Zstd::decompress(workspaces.zstd.as_mut().ok_or(missing)?, packed, to)
            }
        };
        match got {
            Ok(got) if got == to.len() => Ok(()),
            Ok(got) => Err(self.fault(
                number,
                Reason::DecodedSize {
                    got: got as u64,
                    expected: to.len() as u64,
                },
            )),
            Err(Corrupt) => Err(self.fault(number, Reason::Decode)),
        }
    }

    /// Whether the source is told of blocks of which only a part was wanted.
    #[inline]
    fn is_kept(&self) -> bool {
        self.block_size() > UNKEPT
    }

    #[cold]
    fn fault(&self, number: u64, reason: Reason) -> Error<S::Error> {
        Fault::error(
            Place::Block {
                number,
                offset: self.extent(number).map_or(0, |extent| extent.offset),
            },
            reason,
        )
    }
}

/// `buf` in two, the first part `len` long or all there is.
fn split(buf: &mut [u8], len: usize) -> (&mut [u8], &mut [u8]) {
    let len = len.min(buf.len());
    buf.split_at_mut(len)
}
