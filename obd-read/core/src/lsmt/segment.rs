// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A mapped range.

use crate::le;

/// Longest segment, sectors.
pub const MAX_LEN: u64 = (1 << LEN_BITS) - 1;

const LEN_BITS: u32 = 14;
const LAYER_BITS: u32 = 8;
const ZEROED: u64 = 1 << LEN_BITS;
const LAYER_SHIFT: u32 = LEN_BITS + 1;
const MOFFSET_SHIFT: u32 = LAYER_SHIFT + LAYER_BITS;

/// Sectors of a layer's file that can be addressed in memory: 1 PiB.
pub(crate) const MAX_MOFFSET: u64 = (1 << (64 - MOFFSET_SHIFT)) - 1;

/// Sectors `lba..lba + len` of an image, and what they hold.
///
/// The last word is what the merged index keeps: length in bits 0..14, zeroed
/// in bit 14, layer in bits 15..23, data sector in bits 23..64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    pub(crate) lba: u64,
    pub(crate) word: u64,
}

impl Segment {
    /// A segment of `len` sectors at `lba`, its data at sector `moffset` of
    /// the file of layer `layer`; zeros if `zeroed`.
    ///
    /// `len` must be at most [`MAX_LEN`] and `moffset` below 2^41: higher bits
    /// are lost.
    pub fn new(lba: u64, len: u64, moffset: u64, zeroed: bool, layer: u8) -> Self {
        let word = (len & MAX_LEN)
            | if zeroed { ZEROED } else { 0 }
            | u64::from(layer) << LAYER_SHIFT
            | moffset << MOFFSET_SHIFT;
        Self { lba, word }
    }

    /// First sector.
    #[inline]
    pub fn lba(&self) -> u64 {
        self.lba
    }

    /// Number of sectors.
    #[inline]
    pub fn len(&self) -> u64 {
        self.word & MAX_LEN
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sector behind the last one.
    #[inline]
    pub fn end(&self) -> u64 {
        // An lba has 50 bits on disk.
        self.lba.wrapping_add(self.len())
    }

    /// Whether it reads as zeros.
    #[inline]
    pub fn is_zeroed(&self) -> bool {
        self.word & ZEROED != 0
    }

    /// The layer its data is in, counted from the bottom.
    #[inline]
    pub fn layer(&self) -> u8 {
        (self.word >> LAYER_SHIFT) as u8
    }

    /// The sector of the layer's file where its data begins.
    #[inline]
    pub fn moffset(&self) -> u64 {
        self.word >> MOFFSET_SHIFT
    }

    /// The part of it that lies in `start..end`, empty if there is none.
    #[inline]
    pub(crate) fn clip(&self, start: u64, end: u64) -> Self {
        let from = self.lba.max(start);
        let to = self.end().min(end);
        if from >= to {
            return Self {
                lba: from,
                word: self.word & !MAX_LEN,
            };
        }
        let skip = if self.is_zeroed() { 0 } else { from - self.lba };
        // The data lies inside the layer's file, so the sum has no carry.
        let word = (self.word & !MAX_LEN).wrapping_add(skip << MOFFSET_SHIFT);
        Self {
            lba: from,
            word: word | (to - from),
        }
    }

    /// The same segment in another layer.
    pub(crate) fn in_layer(&self, layer: u8) -> Self {
        let mask = ((1u64 << LAYER_BITS) - 1) << LAYER_SHIFT;
        Self {
            lba: self.lba,
            word: (self.word & !mask) | u64::from(layer) << LAYER_SHIFT,
        }
    }
}

/// A segment as stored: 50 bits of address, 14 of length; 55 of data sector,
/// one for zeroed, 8 of tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) lba: u64,
    pub(crate) len: u64,
    pub(crate) moffset: u64,
    pub(crate) zeroed: bool,
    pub(crate) tag: u8,
}

impl Stored {
    /// Bytes on disk.
    pub(crate) const SIZE: usize = 16;

    const INVALID_LBA: u64 = (1 << 50) - 1;

    /// A segment from its 16 bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let low = le::u64_at(bytes, 0);
        let high = le::u64_at(bytes, 8);
        Self {
            lba: low & Self::INVALID_LBA,
            len: low >> 50,
            moffset: high & ((1 << 55) - 1),
            zeroed: high >> 55 & 1 != 0,
            tag: (high >> 56) as u8,
        }
    }

    /// Whether this is padding.
    pub(crate) fn is_padding(&self) -> bool {
        self.lba == Self::INVALID_LBA
    }

    /// The sector behind the last one.
    pub(crate) fn end(&self) -> u64 {
        self.lba + self.len
    }

    /// The sector behind its data, `moffset` itself if there is none.
    pub(crate) fn data_end(&self) -> u64 {
        self.moffset + if self.zeroed { 0 } else { self.len }
    }

    /// As kept in memory.
    pub(crate) fn segment(&self) -> Segment {
        Segment::new(self.lba, self.len, self.moffset, self.zeroed, 0)
    }
}
