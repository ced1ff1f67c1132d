// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The log of a disk that is written to: records, and where they go.
//!
//! A record is what was written until some moment, and was in none before. All of it is
//! little-endian, and as long as blocks are:
//!
//! | byte | |
//! |---|---|
//! | 0 | `obd-log` and a line's end |
//! | 8 | 1, the version of the format: 32 bits |
//! | 12 | how many extents there are: 32 bits |
//! | 16 | which log it is of, 64 bits, as all that follows |
//! | 24 | the record's number |
//! | 32 | blocks of data |
//! | 40 | hash of the data |
//! | 48 | hash of the header with the extents, with zeros here |
//! | 56 | number of the last record that is in what was sealed last |
//! | 64 | extents, in order: the first block, 64 bits; how many, 32 bits; 1 for zeros, else 0 |
//! | | zeros to the end of a block, then the data of the extents that are not zeros |
//!
//! The hash is XXH64 with seed 0: what it has to tell is a record that is whole from one
//! that was cut off, in which every sector is old or new.

use crate::le::{
    u32_at,
    u64_at, //
};

/// Bytes of a block: of the disk, and of the log.
pub const BLOCK: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"obd-log\n");
const VERSION: u32 = 1;
/// Bytes before the extents.
const FIXED: usize = 64;
/// Bytes of an extent.
const EXTENT: usize = 16;
/// Where the header's own hash is.
const OWN: usize = 48;

/// Blocks of the disk that lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub block: u64,
    /// How many.
    pub blocks: u32,
    /// They are zeros; else the record has their data.
    pub zero: bool,
}

/// What a record's header says before its extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which log it is of.
    pub log: u64,
    /// The record's number.
    pub number: u64,
    /// Number of the last record that is in what was sealed last.
    pub sealed: u64,
    /// How many extents there are.
    pub extents: u32,
    /// Blocks of data.
    pub blocks: u64,
    /// Hash of the data.
    pub hash: u64,
}

impl Header {
    /// Bytes of the header with its extents: whole blocks.
    pub fn header_len(&self) -> u64 {
        let bytes = FIXED as u64 + u64::from(self.extents) * EXTENT as u64;
        bytes.next_multiple_of(BLOCK as u64)
    }

    /// Bytes of the data behind that; nothing if there cannot be so many.
    pub fn data_len(&self) -> Option<u64> {
        self.blocks.checked_mul(BLOCK as u64)
    }

    /// Writes the next block of the header, whose first one it is if `first` says so, with
    /// as many of the `extents` as it has room for. [`finish`] comes last.
    pub fn write(
        &self,
        first: bool,
        extents: &mut impl Iterator<Item = Extent>,
        to: &mut [u8; BLOCK],
    ) {
        to.fill(0);
        let mut at = 0;
        let mut put = |field| {
            set(to, at, field);
            at += 8;
        };
        if first {
            put(MAGIC);
            put(u64::from(self.extents) << 32 | u64::from(VERSION));
            for field in [
                self.log,
                self.number,
                self.blocks,
                self.hash,
                0,
                self.sealed,
            ] {
                put(field);
            }
        }
        let room = (BLOCK - if first { FIXED } else { 0 }) / EXTENT;
        for extent in extents.take(room) {
            put(extent.block);
            put(u64::from(extent.zero) << 32 | u64::from(extent.blocks));
        }
    }

    /// Reads what a record of the log `log` begins with, if this can be one's first block.
    pub fn read(block: &[u8], log: u64) -> Option<Self> {
        let is_one = block.len() >= FIXED
            && u64_at(block, 0) == MAGIC
            && u32_at(block, 8) == VERSION
            && u64_at(block, 16) == log;
        is_one.then(|| Self {
            log,
            number: u64_at(block, 24),
            sealed: u64_at(block, 56),
            extents: u32_at(block, 12),
            blocks: u64_at(block, 32),
            hash: u64_at(block, 40),
        })
    }

    /// Whether `blocks`, the first of which this was read from, are a whole header, and say
    /// what can be of a disk of `size` bytes.
    pub fn is_whole(&self, blocks: &[[u8; BLOCK]], size: u64) -> bool {
        let Some((first, rest)) = blocks.split_first() else {
            return false;
        };
        let said = u64_at(first, OWN);
        let mut first = *first;
        set(&mut first, OWN, 0);
        let hash = Hash::of(core::iter::once(&first).chain(rest));
        if hash.end() != said
            || blocks.len() as u64 * BLOCK as u64 != self.header_len()
            || self.sealed >= self.number
        {
            return false;
        }
        let (mut last, mut data) = (0, 0);
        for bytes in raw(blocks, self.extents) {
            let extent = Extent::read(bytes);
            let end = extent.block.checked_add(extent.blocks.into());
            let end = end.filter(|end| *end <= size / BLOCK as u64);
            let Some(end) = end.filter(|_| extent.block >= last && extent.blocks > 0) else {
                return false;
            };
            match u32_at(bytes, 12) {
                0 => data += u64::from(extent.blocks),
                1 => {}
                _ => return false,
            }
            last = end;
        }
        data == self.blocks
    }

    /// The extents of a header that is whole.
    pub fn extents<'a>(&self, blocks: &'a [[u8; BLOCK]]) -> impl Iterator<Item = Extent> + 'a {
        raw(blocks, self.extents).map(Extent::read)
    }
}

impl Extent {
    fn read(bytes: &[u8]) -> Self {
        Self {
            block: u64_at(bytes, 0),
            blocks: u32_at(bytes, 8),
            zero: u32_at(bytes, 12) != 0,
        }
    }
}

/// The first `count` extents of a header.
fn raw(blocks: &[[u8; BLOCK]], count: u32) -> impl Iterator<Item = &[u8]> {
    let bytes = blocks.as_flattened().get(FIXED..).unwrap_or_default();
    bytes.chunks_exact(EXTENT).take(count as usize)
}

/// Ends a header, all of whose blocks `hash` has seen: the first one gets that.
pub fn finish(first: &mut [u8; BLOCK], hash: &Hash) {
    set(first, OWN, hash.end());
}

/// Writes the field at byte `at`, if that is there.
fn set(block: &mut [u8; BLOCK], at: usize, field: u64) {
    let bytes = block.get_mut(at..).and_then(<[u8]>::first_chunk_mut);
    if let Some(bytes) = bytes {
        *bytes = field.to_le_bytes();
    }
}

/// Where records may go: bytes of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Where the next one begins.
    pub at: u64,
    /// Where the room behind that ends.
    pub end: u64,
    /// Where more of it ends, which begins with the log; 0 if there is none.
    pub again: u64,
}

impl Room {
    /// Takes `len` bytes, and returns where; nothing if there is no such place.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        if self.end.checked_sub(self.at)? >= len {
            self.at += len;
            return Some(self.at - len);
        }
        if self.again < len {
            return None;
        }
        *self = Self {
            at: len,
            end: self.again,
            again: 0,
        };
        Some(0)
    }
}

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

fn round(lane: u64, word: u64) -> u64 {
    let sum = lane.wrapping_add(word.wrapping_mul(P2));
    sum.rotate_left(31).wrapping_mul(P1)
}

/// XXH64 with seed 0 of whole blocks, which come one after the other.
#[derive(Clone, Debug)]
pub struct Hash {
    lanes: [u64; 4],
    blocks: u64,
}

impl Hash {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self {
            lanes: [P1.wrapping_add(P2), P2, 0, 0_u64.wrapping_sub(P1)],
            blocks: 0,
        }
    }

    /// Of `blocks`.
    pub fn of<'a>(blocks: impl IntoIterator<Item = &'a [u8; BLOCK]>) -> Self {
        let mut hash = Self::new();
        for block in blocks {
            hash.add(block);
        }
        hash
    }

    /// Takes the next block in.
    pub fn add(&mut self, block: &[u8; BLOCK]) {
        let (stripes, _) = block.as_chunks::<32>();
        for stripe in stripes {
            let (words, _) = stripe.as_chunks::<8>();
            for (lane, bytes) in self.lanes.iter_mut().zip(words) {
                *lane = round(*lane, u64::from_le_bytes(*bytes));
            }
        }
        self.blocks += 1;
    }

    /// What it comes to.
    pub fn end(&self) -> u64 {
        let mut hash = P5;
        if self.blocks > 0 {
            hash = 0;
            for (lane, turn) in self.lanes.iter().zip([1, 7, 12, 18]) {
                hash = hash.wrapping_add(lane.rotate_left(turn));
            }
            for lane in self.lanes {
                hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
            }
        }
        // Blocks are whole stripes: nothing is left behind them.
        hash = hash.wrapping_add(self.blocks.wrapping_mul(BLOCK as u64));
        hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
        hash ^ (hash >> 32)
    }
}

impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn extent(block: u64, blocks: u32, zero: bool) -> Extent {
        Extent {
            block,
            blocks,
            zero,
        }
    }

    /// Record 9 of log 7.
    fn record(extents: &[Extent], sealed: u64, data: &[[u8; BLOCK]]) -> Vec<[u8; BLOCK]> {
        let header = Header {
            log: 7,
            number: 9,
            sealed,
            extents: extents.len() as u32,
            blocks: data.len() as u64,
            hash: Hash::of(data).end(),
        };
        let mut blocks = vec![[0xEE; BLOCK]; header.header_len() as usize / BLOCK];
        let mut left = extents.iter().copied();
        for (n, block) in blocks.iter_mut().enumerate() {
            header.write(n == 0, &mut left, block);
        }
        assert!(left.next().is_none());
        let hash = Hash::of(&blocks);
        finish(&mut blocks[0], &hash);
        blocks.extend(data);
        blocks
    }

    fn read(blocks: &[[u8; BLOCK]], log: u64) -> Option<(Header, Vec<Extent>)> {
        let header = Header::read(&blocks[0], log)?;
        let len = usize::try_from(header.header_len()).unwrap() / BLOCK;
        let (own, data) = blocks.split_at_checked(len)?;
        let is_whole = header.is_whole(own, SIZE) && Hash::of(data).end() == header.hash;
        is_whole.then(|| (header, header.extents(own).collect()))
    }

    #[test]
    fn hashes_are_the_usual_ones() {
        let of = |blocks: &[[u8; BLOCK]]| Hash::of(blocks).end();
        assert_eq!(of(&[]), 0xEF46_DB37_51D8_E999);
        let counted = core::array::from_fn(|at| (at / 7) as u8);
        assert_eq!(of(&[[0; BLOCK]]), 0xAC86_9B6F_32D8_BBDB);
        assert_eq!(of(&[counted, [5; BLOCK]]), 0x8B79_97BD_4BBD_82E9);
    }

    #[test]
    fn what_was_written_is_read() {
        for count in [0, 1, 251, 252, 253, 508, 509, 600] {
            let extents: Vec<_> = (0..count)
                .map(|n| extent(n * 3, 1 + (n % 2) as u32, n % 3 == 0))
                .collect();
            let blocks: u32 = extents
                .iter()
                .map(|it| it.blocks * u32::from(!it.zero))
                .sum();
            let data: Vec<_> = (0..blocks).map(|n| [n as u8; BLOCK]).collect();
            let blocks = record(&extents, 5, &data);
            let (header, found) = read(&blocks, 7).unwrap();
            assert_eq!(
                header.header_len() + header.data_len().unwrap(),
                blocks.as_flattened().len() as u64
            );
            assert_eq!((found, header.number, header.sealed), (extents, 9, 5));
            // Of another log.
            assert!(read(&blocks, 8).is_none());
        }
    }

    #[test]
    fn no_byte_may_be_another() {
        let extents = [extent(3, 1, false), extent(9, 4, true)];
        let mut blocks = record(&extents, 5, &[[5; BLOCK]]);
        for at in 0..blocks.as_flattened().len() {
            let was = blocks.as_flattened()[at];
            blocks.as_flattened_mut()[at] = was ^ 1;
            assert!(
                read(&blocks, 7).is_none_or(|(header, _)| header.number != 9),
                "byte {at}"
            );
            blocks.as_flattened_mut()[at] = was;
        }
        // Cut off at every sector, with something else behind.
        for cut in (0..blocks.as_flattened().len()).step_by(512) {
            let mut torn = blocks.clone();
            torn.as_flattened_mut()[cut..].fill(0xEE);
            assert!(read(&torn, 7).is_none(), "cut at {cut}");
        }
        assert!(read(&blocks, 7).is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_though_its_hash_is_right() {
        let block = [[0; BLOCK]];
        for (extents, data) in [
            (&[extent(0, 0, true)][..], &block[..0]),
            (&[extent(0, 1, false)], &block[..0]),
            (&[extent(0, 1, true)], &block[..]),
            (&[extent(4, 1, true), extent(4, 1, true)], &block[..0]),
            (&[extent(4, 1, true), extent(3, 1, true)], &block[..0]),
            (&[extent(SIZE / BLOCK as u64, 1, true)], &block[..0]),
            (&[extent(u64::MAX, 1, true)], &block[..0]),
        ] {
            assert!(read(&record(extents, 5, data), 7).is_none(), "{extents:?}");
        }
        // Sealed before it was there.
        assert!(read(&record(&[], 9, &[]), 7).is_none());
        // Neither zeros nor data.
        let mut blocks = record(&[extent(0, 1, true)], 5, &[]);
        blocks[0][FIXED + 12] = 2;
        set(&mut blocks[0], OWN, 0);
        let hash = Hash::of(&blocks[..1]);
        finish(&mut blocks[0], &hash);
        assert!(read(&blocks, 7).is_none());
        // More extents than bytes, and more data than there can be.
        let mut blocks = record(&[], 5, &[]);
        blocks[0][12..16].fill(0xFF);
        assert!(read(&blocks, 7).is_none());
        blocks[0][32..40].fill(0xFF);
        assert_eq!(Header::read(&blocks[0], 7).unwrap().data_len(), None);
    }

    #[test]
    fn room_is_given_once() {
        let mut room = Room {
            at: 8,
            end: 10,
            again: 6,
        };
        assert_eq!(room.take(7), None);
        assert_eq!(room.take(1), Some(8));
        assert_eq!(room.take(2), Some(0));
        assert_eq!(room.take(5), None);
        assert_eq!(room.take(4), Some(2));
        assert_eq!(room.take(1), None);
        let mut none = Room {
            at: 3,
            end: 2,
            again: 9,
        };
        assert_eq!(none.take(0), None);
    }
}
