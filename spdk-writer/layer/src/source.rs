// SPDX-License-Identifier: MIT

//! Where the content of a layer comes from.

use obd_core::error::LayerError;
use obd_core::index::Contents;
use obd_core::{
    Error as CoreError,
    Image,
    Layer,
    Platform,
    SECTOR,
    Scratch,
    Source as Bytes, //
};
use obd_host::{
    File,
    data_extents, //
};
use std::io;
use std::ops::DerefMut;

/// Bytes `start..end` of an image, whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
    /// Zeros that hide what lower layers have there, as opposed to data.
    pub zeroed: bool,
}

/// The content of a layer: some ranges of an image. Many threads read at once.
pub trait Source: Sync {
    /// Why it could not be read.
    type Error: Send;
    /// What one thread needs to read.
    type Workspace;

    /// Size of the image, bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// What the layer holds: ranges in ascending order, without overlap. What
    /// is in none of them is left to lower layers.
    ///
    /// # Errors
    ///
    /// Whatever the source says.
    fn ranges(&self) -> Result<Vec<Range>, Self::Error>;

    /// A workspace for [`Source::read`].
    ///
    /// # Errors
    ///
    /// Whatever the source says, lack of memory for one.
    fn workspace(&self) -> Result<Self::Workspace, Self::Error>;

    /// Fills `buf` from byte `offset` of the image on, within a range of data.
    ///
    /// # Errors
    ///
    /// Whatever the source says; the content of `buf` is undefined then.
    fn read(
        &self,
        workspace: &mut Self::Workspace,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Self::Error>;

    /// Whether [`Source::borrow`] is worth asking.
    fn in_memory(&self) -> bool {
        false
    }

    /// The `len` bytes at `offset`, within a range of data, if they are in
    /// memory anyway: they are compressed from there, without a copy.
    fn borrow(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let _ = (offset, len);
        None
    }
}

/// A raw image, in a file or on a block device.
#[derive(Debug)]
pub struct RawSource {
    file: File,
    holes: bool,
}

impl RawSource {
    /// An image all of which is data. If its size is no multiple of 512 bytes,
    /// zeros follow.
    pub fn full(file: File) -> Self {
        Self { file, holes: false }
    }

    /// An image whose holes (`SEEK_DATA`, `SEEK_HOLE`) are left out.
    pub fn sparse(file: File) -> Self {
        Self { file, holes: true }
    }
}

impl Source for RawSource {
    type Error = io::Error;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.file.size().next_multiple_of(SECTOR)
    }

    fn ranges(&self) -> io::Result<Vec<Range>> {
        let extents = match self.holes {
            true => data_extents(&self.file)?,
            false => vec![(0, self.file.size())],
        };
        let mut ranges = Vec::with_capacity(extents.len());
        let mut last = 0;
        for (start, end) in extents {
            // Two extents can meet in one sector.
            let start = (start - start % SECTOR).max(last);
            let end = end.next_multiple_of(SECTOR).min(self.size());
            if start < end {
                ranges.push(Range {
                    start,
                    end,
                    zeroed: false,
                });
                last = end;
            }
        }
        Ok(ranges)
    }

    fn workspace(&self) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> io::Result<()> {
        // Only the last sector can reach beyond the file.
        let there = self.file.size().saturating_sub(offset);
        let (bytes, beyond) = buf.split_at_mut(there.min(buf.len() as u64) as usize);
        beyond.fill(0);
        self.file.read_exact_at(offset, bytes)
    }
}

/// An image of layers, from a single read-write layer to a stack of 255. What
/// is zeroed in it stays so.
pub struct ImageSource<'a, S, P: Platform, L> {
    image: &'a Image<S, P, L>,
}

impl<'a, S, P, L> ImageSource<'a, S, P, L>
where
    S: Bytes,
    P: Platform,
    L: DerefMut<Target = [Layer<S, P>]>,
{
    /// The content of `image`.
    pub fn new(image: &'a Image<S, P, L>) -> Self {
        Self { image }
    }

    /// The UUID of the layer below the lowest one, as stored: text.
    pub fn parent_uuid(&self) -> &[u8] {
        let lowest = self.image.layers().first();
        lowest.map_or(&[], |layer| layer.info().label.parent_uuid())
    }
}

impl<S, P, L> Source for ImageSource<'_, S, P, L>
where
    S: Bytes<Error: Send>,
    P: Platform,
    L: DerefMut<Target = [Layer<S, P>]>,
    Image<S, P, L>: Sync,
{
    type Error = LayerError<S::Error>;
    type Workspace = Scratch<P>;

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn ranges(&self) -> Result<Vec<Range>, Self::Error> {
        let pieces = self.image.pieces(0, self.image.size())?;
        Ok(pieces
            .filter(|piece| piece.what != Contents::Hole)
            .map(|piece| Range {
                start: piece.lba * SECTOR,
                end: (piece.lba + piece.len) * SECTOR,
                zeroed: piece.what == Contents::Zeros,
            })
            .collect())
    }

    fn workspace(&self) -> Result<Scratch<P>, Self::Error> {
        Ok(Scratch::new(self.image.needs()).map_err(CoreError::from)?)
    }

    fn read(
        &self,
        workspace: &mut Scratch<P>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Self::Error> {
        self.image.read_at(offset, buf, workspace)
    }
}
