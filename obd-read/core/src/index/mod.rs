// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The merged index of an image: which range is in which layer.

mod merge;
mod tree;

pub(crate) use merge::flatten;

use crate::lsmt::Segment;
use crate::platform::{
    Memory,
    OutOfMemory, //
};
use tree::Tree;

/// All segments of an image, sorted, none over another.
///
/// Two arrays: where segments end in a search tree, 4 bytes each (8 from 1 TiB
/// up), and the rest of a segment, 8 bytes each.
pub struct Index<M: Memory> {
    tree: Tree<M>,
    words: M::Buf<u64>,
    /// Sectors of the image.
    sectors: u64,
}

/// Part of a range, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First sector of the image.
    pub lba: u64,
    /// Number of sectors.
    pub len: u64,
    /// What is there.
    pub what: Contents,
}

/// What a piece holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing was ever written: zeros.
    Hole,
    /// Zeros, written or discarded.
    Zeros,
    /// Data of a layer.
    Data {
        /// The layer, counted from the bottom.
        layer: u8,
        /// The first sector in the layer's (decoded) file.
        sector: u64,
    },
}

impl<M: Memory> Index<M> {
    /// The index of an image of `sectors` sectors whose layers, bottom to top,
    /// have these segments: at most 255 slices, sorted and without overlap
    /// each. What lies beyond the image is left out.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; 64 bytes per segment and 32 per layer are asked for,
    /// and freed before this returns, besides the index itself.
    pub fn merge<'a, F, I>(layers: F, sectors: u64) -> Result<Self, OutOfMemory>
    where
        F: Fn() -> I,
        I: Iterator<Item = &'a [Segment]>,
    {
        let flat = flatten::<M, _, _>(|| (0..=u8::MAX).zip(layers()))?;
        Self::new(flat.as_slice(), sectors)
    }

    /// The index of sorted segments that do not overlap.
    fn new(segments: &[Segment], sectors: u64) -> Result<Self, OutOfMemory> {
        let inside = segments.partition_point(|segment| segment.lba() < sectors);
        let segments = segments.get(..inside).unwrap_or(&[]);
        let mut words = M::filled::<u64>(inside)?;
        for (word, segment) in words.iter_mut().zip(segments) {
            *word = segment.clip(0, sectors).word;
        }
        Ok(Self {
            tree: Tree::new(segments, sectors)?,
            words,
            sectors,
        })
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether the image is one hole.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Size of the image, sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Memory in use, bytes.
    pub fn memory(&self) -> usize {
        self.tree.memory() + core::mem::size_of_val::<[u64]>(&self.words)
    }

    /// Segment `i` in order of address.
    #[inline]
    pub fn get(&self, i: usize) -> Option<Segment> {
        let mut segment = Segment {
            word: *self.words.get(i)?,
            lba: 0,
        };
        segment.lba = self.tree.key(i)?.wrapping_sub(segment.len());
        Some(segment)
    }

    /// What sectors `lba..lba + len` hold, in order and without gaps. What lies
    /// beyond the image is a hole.
    #[inline]
    pub fn pieces(&self, lba: u64, len: u64) -> Pieces<'_, M> {
        let end = lba.saturating_add(len);
        let next = match lba < self.sectors {
            true => self.tree.rank(lba),
            false => self.words.len(),
        };
        Pieces {
            index: self,
            next,
            lba,
            end,
        }
    }
}

/// The pieces of a range.
pub struct Pieces<'a, M: Memory> {
    index: &'a Index<M>,
    /// The first segment that ends behind `lba`.
    next: usize,
    lba: u64,
    end: u64,
}

impl<M: Memory> Iterator for Pieces<'_, M> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        if self.lba >= self.end {
            return None;
        }
        let lba = self.lba;
        let segment = self.index.get(self.next);
        let start = segment.map_or(u64::MAX, |segment| segment.lba());
        let (end, what) = match segment {
            Some(segment) if start <= lba => {
                self.next += 1;
                let part = segment.clip(lba, self.end);
                let what = match part.is_zeroed() {
                    true => Contents::Zeros,
                    false => Contents::Data {
                        layer: part.layer(),
                        sector: part.moffset(),
                    },
                };
                (part.end(), what)
            }
            _ => (start.min(self.end), Contents::Hole),
        };
        self.lba = end;
        Some(Piece {
            lba,
            len: end - lba,
            what,
        })
    }
}

#[cfg(test)]
mod tests;
