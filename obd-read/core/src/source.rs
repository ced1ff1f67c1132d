// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where bytes come from.

use crate::error::Error;

/// Room that [`Source::with`] has beyond the bytes asked for, bytes: a source of
/// whole blocks of half as much reads one more at each end.
pub const SLACK: usize = 8 << 10;

/// Bytes of a block that is not worth to be kept: who reads it at random reads all of it.
pub const UNKEPT: usize = 4 << 10;

/// Bytes at addresses: a file, a block device, memory.
pub trait Source {
    /// Why a read failed.
    type Error;

    /// Size in bytes. A source may not shrink while it is in use; if it does
    /// all the same, reads fail.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset` on. Callers stay within [`Source::size`].
    ///
    /// # Errors
    ///
    /// Whatever the source says; the content of `buf` is undefined then.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Self::Error>;

    /// Reads the `len` bytes at `offset` to some place in `room`, which is at least
    /// [`SLACK`] longer, and returns where they begin there.
    ///
    /// # Errors
    ///
    /// Whatever the source says; the content of `room` is undefined then.
    fn read_around(&self, offset: u64, len: usize, room: &mut [u8]) -> Result<usize, Self::Error> {
        let (buf, _) = room.split_at_mut(len.min(room.len()));
        self.read_exact_at(offset, buf)?;
        Ok(0)
    }

    /// Gives `then` the `len` bytes at `offset`, wherever the source has them, or
    /// can read them to with the least effort; `room` is as for
    /// [`Source::read_around`]. Their content must not change before `then`
    /// returns, as it is checked first and decoded then.
    ///
    /// # Errors
    ///
    /// Whatever the source says; `then` is not called.
    fn with<T>(
        &self,
        offset: u64,
        len: usize,
        room: &mut [u8],
        then: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Self::Error> {
        let start = self.read_around(offset, len, room)?;
        let there = room.get(start..).and_then(|room| room.get(..len));
        Ok(then(there.unwrap_or_default()))
    }

    /// Is given all that block `number` of the zfile in this source was decoded to, if
    /// only a part of it was wanted: a source may keep that for [`Source::kept`]. Not
    /// for blocks of [`UNKEPT`] bytes and less.
    fn keep(&self, number: u64, block: &[u8]) {
        let _ = (number, block);
    }

    /// Fills `to` from byte `skip` of block `number` on, if the source has kept that.
    /// The content of `to` is as it was if not.
    fn kept(&self, number: u64, skip: usize, to: &mut [u8]) -> bool {
        let _ = (number, skip, to);
        false
    }

    /// Whether the source has kept block `number`, though it may not for long.
    fn keeps(&self, number: u64) -> bool {
        let _ = number;
        false
    }
}

impl<S: Source> Source for &S {
    type Error = S::Error;

    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Self::Error> {
        (**self).read_exact_at(offset, buf)
    }

    fn read_around(&self, offset: u64, len: usize, room: &mut [u8]) -> Result<usize, Self::Error> {
        (**self).read_around(offset, len, room)
    }

    fn with<T>(
        &self,
        offset: u64,
        len: usize,
        room: &mut [u8],
        then: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Self::Error> {
        (**self).with(offset, len, room, then)
    }

    fn keep(&self, number: u64, block: &[u8]) {
        (**self).keep(number, block);
    }

    fn kept(&self, number: u64, skip: usize, to: &mut [u8]) -> bool {
        (**self).kept(number, skip, to)
    }

    fn keeps(&self, number: u64) -> bool {
        (**self).keeps(number)
    }
}

/// Whole blocks that hold the bytes asked for, of a source that reads nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First byte of the first block.
    pub start: u64,
    /// Bytes of it before those asked for.
    pub skip: usize,
    /// Bytes in all: at most two blocks more than asked for, so that [`SLACK`] is
    /// enough if they are no larger than half of it.
    pub len: usize,
}

impl Blocks {
    /// The blocks of `size` bytes, a power of two, around `len` bytes at `offset`.
    #[inline]
    pub fn around(offset: u64, len: usize, size: usize) -> Self {
        let start = offset & !(size as u64 - 1);
        // Less than a block.
        let skip = (offset - start) as usize;
        Self {
            start,
            skip,
            len: skip.saturating_add(len).next_multiple_of(size),
        }
    }
}

/// A read outside of an in-memory source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

impl core::fmt::Display for Outside {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("read outside of the source")
    }
}

impl core::error::Error for Outside {}

/// Bytes in memory as a source.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<T>(pub T);

impl<T: AsRef<[u8]>> Source for Bytes<T> {
    type Error = Outside;

    fn size(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Outside> {
        buf.copy_from_slice(self.part(offset, buf.len()).ok_or(Outside)?);
        Ok(())
    }

    fn with<R>(
        &self,
        offset: u64,
        len: usize,
        _: &mut [u8],
        then: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Outside> {
        self.part(offset, len).map(then).ok_or(Outside)
    }
}

impl<T: AsRef<[u8]>> Bytes<T> {
    fn part(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0.as_ref().get(start..)?.get(..len)
    }
}

/// A part of a source, addressed from its own beginning.
#[derive(Clone, Copy, Debug)]
pub struct Window<S> {
    source: S,
    start: u64,
    len: u64,
}

impl<S: Source> Window<S> {
    /// The whole of `source`.
    pub fn whole(source: S) -> Self {
        let len = source.size();
        Self {
            source,
            start: 0,
            len,
        }
    }

    /// Bytes `start..start + len` of `source`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] if the source ends before.
    pub fn new(source: S, start: u64, len: u64) -> Result<Self, Error<S::Error>> {
        let size = source.size();
        match start.checked_add(len) {
            Some(end) if end <= size => Ok(Self { source, start, len }),
            _ => Err(Error::OutOfRange {
                offset: start,
                len,
                size,
            }),
        }
    }

    /// Bytes `start..start + len` of this window.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] if the window ends before.
    pub fn part(self, start: u64, len: u64) -> Result<Self, Error<S::Error>> {
        match start.checked_add(len) {
            // The window lies in the source, so the sum cannot wrap.
            Some(end) if end <= self.len => Ok(Self {
                source: self.source,
                start: self.start.saturating_add(start),
                len,
            }),
            _ => Err(Error::OutOfRange {
                offset: start,
                len,
                size: self.len,
            }),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The first byte of the window in its source.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The source the window looks into.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn locate(&self, offset: u64, len: usize) -> Result<u64, Error<S::Error>> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(self.start.saturating_add(offset)),
            _ => Err(Error::OutOfRange {
                offset,
                len: len as u64,
                size: self.len,
            }),
        }
    }

    /// Fills `buf` from byte `offset` of the window on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] outside of the window, [`Error::Io`] if the source
    /// fails.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error<S::Error>> {
        let at = self.locate(offset, buf.len())?;
        self.source
            .read_exact_at(at, buf)
            .map_err(|source| Self::failed(at, buf.len(), source))
    }

    /// Reads the `len` bytes at `offset` to some place in `room`, see
    /// [`Source::read_around`].
    ///
    /// # Errors
    ///
    /// As [`Window::read`].
    pub fn read_around(
        &self,
        offset: u64,
        len: usize,
        room: &mut [u8],
    ) -> Result<usize, Error<S::Error>> {
        let at = self.locate(offset, len)?;
        self.source
            .read_around(at, len, room)
            .map_err(|source| Self::failed(at, len, source))
    }

    /// Gives `then` the `len` bytes at `offset`, see [`Source::with`].
    ///
    /// # Errors
    ///
    /// As [`Window::read`]; `then` is not called.
    #[inline]
    pub fn with<T>(
        &self,
        offset: u64,
        len: usize,
        room: &mut [u8],
        then: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error<S::Error>> {
        let at = self.locate(offset, len)?;
        self.source
            .with(at, len, room, then)
            .map_err(|source| Self::failed(at, len, source))
    }

    #[cold]
    fn failed(offset: u64, len: usize, source: S::Error) -> Error<S::Error> {
        Error::Io {
            offset,
            len: len as u64,
            source,
        }
    }
}
