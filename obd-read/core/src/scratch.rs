// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The buffers of one reader.

use crate::error::Error;
use crate::platform::{
    Codec,
    Memory,
    OutOfMemory,
    Platform, //
};
use crate::source::{
    SLACK,
    Source,
    Window, //
};
use core::ops::Range;

/// Stored bytes read at a time, at least: as many as there are of what a sequential
/// reader asks for at once.
pub(crate) const RUN: usize = 128 << 10;

/// Stored bytes that are in a [`Scratch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    layer: usize,
    /// First byte in the layer's file.
    offset: u64,
    len: usize,
    /// Where that is in [`Scratch::stored`].
    start: usize,
}

impl Run {
    /// Where the `len` bytes at `offset` of the file of `layer` are, if they are there.
    pub(crate) fn find(&self, layer: usize, offset: u64, len: usize) -> Option<Range<usize>> {
        let skip = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let fits = layer == self.layer && skip.checked_add(len)? <= self.len;
        let start = self.start.checked_add(skip)?;
        fits.then_some(start..start.checked_add(len)?)
    }

    /// Where in [`Scratch::stored`] it ends.
    pub(crate) fn end(&self) -> usize {
        self.start.saturating_add(self.len)
    }
}

/// Stored bytes that a range of content begins with, for callers that have them read by
/// themselves: to [`Scratch::room`], before [`Scratch::fetched`] has them used.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// Whose file they are in.
    pub layer: usize,
    /// First byte in the source of that file.
    pub at: u64,
    /// How many they are.
    pub len: usize,
    /// First byte in the file.
    pub(crate) offset: u64,
}

/// What reads need in memory besides the caller's buffer. One per reader at a
/// time; which one serves which read makes no difference.
pub struct Scratch<P: Platform> {
    /// Room for stored bytes, and [`SLACK`].
    pub(crate) stored: <P::Memory as Memory>::Buf<u8>,
    /// What is there for who reads on.
    pub(crate) run: Option<Run>,
    /// A decoded block of which only a part was asked for.
    pub(crate) block: <P::Memory as Memory>::Buf<u8>,
    /// Layer and number of the block in `block`.
    pub(crate) holds: Option<(usize, u64)>,
    pub(crate) lz4: Option<<P::Lz4 as Codec>::Workspace>,
    pub(crate) zstd: Option<<P::Zstd as Codec>::Workspace>,
}

/// What an image or a file needs of a [`Scratch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Longest stored block, bytes.
    pub stored: usize,
    /// Largest decoded block, bytes.
    pub block: usize,
    /// Whether blocks are compressed with LZ4.
    pub lz4: bool,
    /// Whether blocks are compressed with Zstandard.
    pub zstd: bool,
}

impl Needs {
    /// What both need.
    pub fn and(self, other: Self) -> Self {
        Self {
            stored: self.stored.max(other.stored),
            block: self.block.max(other.block),
            lz4: self.lz4 || other.lz4,
            zstd: self.zstd || other.zstd,
        }
    }
}

impl<P: Platform> Scratch<P> {
    /// Buffers for whatever has those needs.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; at most 128 KiB and [`SLACK`], one decoded block and the
    /// codecs' workspaces are asked for.
    pub fn new(needs: Needs) -> Result<Self, OutOfMemory> {
        Self::new_with(needs, P::Memory::filled, P::Zstd::workspace)
    }

    /// As [`Scratch::new`], for who makes large parts in another way: `buffer` an
    /// array of that many bytes, `zstd` the workspace of that decoder.
    ///
    /// # Errors
    ///
    /// As theirs.
    pub fn new_with(
        needs: Needs,
        buffer: impl Fn(usize) -> Result<<P::Memory as Memory>::Buf<u8>, OutOfMemory>,
        zstd: impl FnOnce() -> Result<<P::Zstd as Codec>::Workspace, OutOfMemory>,
    ) -> Result<Self, OutOfMemory> {
        let stored = match needs.stored {
            0 => 0,
            len => len.max(RUN) + SLACK,
        };
        Ok(Self {
            stored: buffer(stored)?,
            run: None,
            block: buffer(needs.block)?,
            holds: None,
            lz4: needs.lz4.then(P::Lz4::workspace).transpose()?,
            zstd: needs.zstd.then(zstd).transpose()?,
        })
    }

    /// Forgets what it holds for who reads on.
    pub(crate) fn forget(&mut self) {
        self.holds = None;
        self.run = None;
    }

    /// Room for stored bytes, and [`SLACK`]; none if there are no such bytes. What was
    /// there is forgotten.
    pub fn room(&mut self) -> &mut [u8] {
        self.run = None;
        &mut self.stored
    }

    /// Says that the bytes of `fetch` are in [`Scratch::room`], from `start` on. Only for
    /// who uses `self` for nothing but what that is of.
    pub fn fetched(&mut self, fetch: &Fetch, start: usize) {
        let end = start.checked_add(fetch.len);
        let fits = end.is_some_and(|end| end <= self.stored.len());
        self.run = fits.then_some(Run {
            layer: fetch.layer,
            offset: fetch.offset,
            len: fetch.len,
            start,
        });
    }

    /// Most bytes of a run.
    pub(crate) fn most(&self) -> usize {
        self.stored.len().saturating_sub(SLACK)
    }

    /// Reads `len` bytes, [`Scratch::most`] at most, from `offset` of `file`, which is
    /// that of `layer`, to be found in the run.
    pub(crate) fn read_run<S: Source>(
        &mut self,
        file: &Window<S>,
        layer: usize,
        offset: u64,
        len: usize,
    ) -> Result<(), Error<S::Error>> {
        self.run = None;
        let start = file.read_around(offset, len, &mut self.stored)?;
        self.run = Some(Run {
            layer,
            offset,
            len,
            start,
        });
        Ok(())
    }
}
