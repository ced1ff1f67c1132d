// SPDX-License-Identifier: MIT

//! A record of a disk's log: what was frozen at one time, as it lies in the file.
//!
//! All of it is little, and as long as blocks are:
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
//! | 56 | number of the last record that what was sealed last has |
//! | 64 | extents, in order: the first block, 64 bits; how many, 32 bits; 1 for zeros, else 0 |
//! | | zeros to the end of a block, then the data of the extents that are not zeros |
//!
//! The hash is XXH64 with seed 0: what it has to tell is a record that is whole from one
//! that was cut off, in which every sector is old or new.

use crate::BLOCK;
use crate::kernel::Extent;

const MAGIC: [u8; 8] = *b"obd-log\n";
const VERSION: u32 = 1;
/// Bytes before the extents.
const FIXED: usize = 64;
/// Bytes of an extent.
const EXTENT: usize = 16;
/// Where the header's hash is.
const HASH: usize = 48;

/// What a record says of itself, as far as its first block tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    /// The record's number.
    pub(crate) number: u64,
    /// Bytes of the header with the extents.
    pub(crate) header: u64,
    /// Bytes of the data.
    pub(crate) data: u64,
    extents: usize,
}

/// What a whole header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) extents: Vec<Extent>,
    /// Number of the last record that what was sealed last has.
    pub(crate) sealed: u64,
    hash: u64,
}

/// Bytes of the header of a record with so many extents.
pub(crate) fn header_len(extents: usize) -> u64 {
    let bytes = FIXED as u64 + extents as u64 * EXTENT as u64;
    bytes.next_multiple_of(BLOCK)
}

/// Writes the header of record `number` of the log `id` over `to`; what was sealed last has
/// records up to `sealed`.
pub(crate) fn encode(
    to: &mut Vec<u8>,
    id: u64,
    number: u64,
    sealed: u64,
    extents: &[Extent],
    data: &[u8],
) {
    to.clear();
    to.extend(MAGIC);
    to.extend(VERSION.to_le_bytes());
    // A frozen layer has fewer, see `MOST` in the driver.
    to.extend((extents.len() as u32).to_le_bytes());
    let blocks = data.len() as u64 / BLOCK;
    for field in [id, number, blocks, hash(data), 0, sealed] {
        to.extend(field.to_le_bytes());
    }
    for extent in extents {
        to.extend(extent.block.to_le_bytes());
        to.extend(extent.blocks.to_le_bytes());
        to.extend(extent.zero.to_le_bytes());
    }
    to.resize(header_len(extents.len()) as usize, 0);
    let own = hash(to);
    to[HASH..HASH + 8].copy_from_slice(&own.to_le_bytes());
}

/// The next bytes of `from`, which becomes what is behind them.
fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*bytes)
}

/// Reads the beginning of a record, its first block: what must be looked at for the
/// rest, if it can be a record of the log `id`.
pub(crate) fn lead(block: &[u8], id: u64) -> Option<Lead> {
    let mut from = block;
    if take(&mut from)? != MAGIC || u32::from_le_bytes(take(&mut from)?) != VERSION {
        return None;
    }
    let extents = u32::from_le_bytes(take(&mut from)?) as usize;
    let mut field = || take(&mut from).map(u64::from_le_bytes);
    if field()? != id {
        return None;
    }
    Some(Lead {
        number: field()?,
        header: header_len(extents),
        data: field()?.checked_mul(BLOCK)?,
        extents,
    })
}

/// Reads a header, whose beginning was `lead`, of a record of a disk of `size` bytes;
/// nothing if it is not whole, or says what cannot be.
pub(crate) fn decode(bytes: &mut [u8], lead: Lead, size: u64) -> Option<Header> {
    let own = bytes.get_mut(HASH..HASH + 8)?;
    let said = u64::from_le_bytes((&*own).try_into().ok()?);
    own.fill(0);
    if hash(bytes) != said || bytes.len() as u64 != lead.header {
        return None;
    }
    let mut at = bytes.get(HASH - 8..FIXED)?;
    let mut field = || take(&mut at).map(u64::from_le_bytes);
    // The header's own is between them.
    let (data_hash, _, sealed) = (field()?, field()?, field()?);
    if sealed >= lead.number {
        return None;
    }
    let mut from = bytes.get(FIXED..)?;
    let mut extents = Vec::with_capacity(lead.extents);
    let (mut last, mut data) = (0, 0);
    for _ in 0..lead.extents {
        let extent = Extent {
            block: u64::from_le_bytes(take(&mut from)?),
            blocks: u32::from_le_bytes(take(&mut from)?),
            zero: u32::from_le_bytes(take(&mut from)?),
        };
        let end = extent.block.checked_add(extent.blocks.into())?;
        if extent.block < last || extent.blocks == 0 || extent.zero > 1 || end > size / BLOCK {
            return None;
        }
        if extent.zero == 0 {
            data += u64::from(extent.blocks) * BLOCK;
        }
        last = end;
        extents.push(extent);
    }
    (data == lead.data).then_some(Header {
        extents,
        sealed,
        hash: data_hash,
    })
}

impl Header {
    /// Whether this is the record's data.
    pub(crate) fn is_of(&self, data: &[u8]) -> bool {
        hash(data) == self.hash
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

/// XXH64 with seed 0.
fn hash(bytes: &[u8]) -> u64 {
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (stripes, rest) = bytes.as_chunks::<32>();
    let mut hash = P5;
    if !stripes.is_empty() {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0_u64.wrapping_sub(P1)];
        for stripe in stripes {
            let (words, _) = stripe.as_chunks::<8>();
            for (lane, bytes) in lanes.iter_mut().zip(words) {
                *lane = round(*lane, word(bytes));
            }
        }
        hash = 0;
        for (lane, turn) in lanes.iter().zip([1, 7, 12, 18]) {
            hash = hash.wrapping_add(lane.rotate_left(turn));
        }
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
        }
    }
    hash = hash.wrapping_add(bytes.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for bytes in words {
        hash = (hash ^ round(0, word(bytes))).rotate_left(27);
        hash = hash.wrapping_mul(P1).wrapping_add(P4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn extent(block: u64, blocks: u32, zero: u32) -> Extent {
        Extent {
            block,
            blocks,
            zero,
        }
    }

    #[test]
    fn hashes_are_the_usual_ones() {
        assert_eq!(hash(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(hash(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(hash(b"abc"), 0x44BC_2CF5_AD77_0999);
        let long = b"Call me Ishmael. Some years ago--never mind how long precisely-";
        assert_eq!(hash(long), 0x02A2_E854_70D6_FD96);
    }

    fn read(bytes: &[u8], id: u64, number: u64) -> Option<Header> {
        let lead = lead(bytes.get(..BLOCK as usize)?, id)?;
        if lead.number != number {
            return None;
        }
        let mut header = bytes.get(..lead.header as usize)?.to_vec();
        let data = bytes.get(header.len()..)?;
        let found = decode(&mut header, lead, SIZE)?;
        found.is_of(data).then_some(found)
    }

    #[test]
    fn what_was_written_is_read() {
        for count in [0, 1, 251, 252, 253, 600] {
            let extents: Vec<_> = (0..count)
                .map(|n| extent(n * 3, 1 + (n % 2) as u32, u32::from(n % 3 == 0)))
                .collect();
            let blocks: u32 = extents.iter().map(|it| it.blocks * (1 - it.zero)).sum();
            let data: Vec<u8> = (0..u64::from(blocks) * BLOCK)
                .map(|byte| (byte / 7) as u8)
                .collect();
            let mut record = Vec::new();
            encode(&mut record, 7, 9, 5, &extents, &data);
            assert_eq!(record.len() as u64, header_len(extents.len()));
            record.extend(data);
            let header = read(&record, 7, 9).unwrap();
            assert_eq!((header.extents, header.sealed), (extents, 5));
            // Of another log, of another time.
            assert!(read(&record, 8, 9).is_none());
            assert!(read(&record, 7, 8).is_none());
        }
    }

    #[test]
    fn no_byte_may_be_another() {
        let extents = [extent(3, 1, 0), extent(9, 4, 1)];
        let data = [5; BLOCK as usize];
        let mut record = Vec::new();
        encode(&mut record, 7, 9, 5, &extents, &data);
        record.extend(data);
        for at in 0..record.len() {
            record[at] ^= 1;
            assert!(read(&record, 7, 9).is_none(), "byte {at}");
            record[at] ^= 1;
        }
        // Cut off at every sector, with something else behind.
        for cut in (0..record.len()).step_by(512) {
            let mut torn = record.clone();
            torn[cut..].fill(0xEE);
            assert!(read(&torn, 7, 9).is_none(), "cut at {cut}");
        }
        assert!(read(&record, 7, 9).is_some());
    }

    #[test]
    fn what_cannot_be_is_refused_though_its_hash_is_right() {
        let block = [0; BLOCK as usize];
        for (extents, data) in [
            (&[extent(0, 0, 1)][..], &block[..0]),
            (&[extent(0, 1, 2)], &block[..]),
            (&[extent(0, 1, 0)], &block[..0]),
            (&[extent(0, 1, 1)], &block[..]),
            (&[extent(4, 1, 1), extent(4, 1, 1)], &block[..0]),
            (&[extent(4, 1, 1), extent(3, 1, 1)], &block[..0]),
            (&[extent(SIZE / BLOCK, 1, 1)], &block[..0]),
            (&[extent(u64::MAX, 1, 1)], &block[..0]),
        ] {
            let mut record = Vec::new();
            encode(&mut record, 7, 9, 5, extents, data);
            record.extend(data);
            assert!(read(&record, 7, 9).is_none(), "{extents:?}");
        }
        // Sealed before it was there.
        let mut record = Vec::new();
        encode(&mut record, 7, 9, 9, &[], &[]);
        assert!(read(&record, 7, 9).is_none());
        // More extents than bytes.
        encode(&mut record, 7, 9, 5, &[], &[]);
        record[12..16].fill(0xFF);
        assert!(read(&record, 7, 9).is_none());
    }
}
