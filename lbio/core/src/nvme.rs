// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Submission and completion queue entries as the controller sees them.
//!
//! Layouts follow the NVM Express Base Specification 2.0, sections 3.3.3.1
//! (submission queue entry) and 3.3.3.2 (completion queue entry), and the NVM
//! Command Set Specification 1.0, sections 3.2.4 (Read) and 3.2.6 (Write). All
//! fields are little-endian in memory.

/// Opcode of Read in the NVM command set.
const OPCODE_READ: u64 = 0x02;

/// Opcode of Write in the NVM command set.
const OPCODE_WRITE: u8 = 0x01;

/// Force unit access, in command dword 12.
const FUA: u32 = 1 << 30;

/// Size of a memory page of the controller in bytes (CC.MPS = 0).
pub const PAGE_SIZE: u64 = 4096;

/// A submission queue entry of 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Sqe {
    /// Dwords 2i and 2i + 1, little-endian.
    words: [u64; 8],
}

impl Sqe {
    /// A command of any kind: its opcode, identifier, namespace (0 for none),
    /// data, and command dwords 10 to 15.
    #[inline]
    pub const fn new(opcode: u8, cid: u16, nsid: u32, prp: Prp, dwords: [u32; 6]) -> Self {
        let command = opcode as u64 | (cid as u64) << 16 | (nsid as u64) << 32;
        let [d10, d11, d12, d13, d14, d15] = dwords;
        Self {
            words: [
                command.to_le(),
                0,
                0,
                prp.first.to_le(),
                prp.second.to_le(),
                (d10 as u64 | (d11 as u64) << 32).to_le(),
                (d12 as u64 | (d13 as u64) << 32).to_le(),
                (d14 as u64 | (d15 as u64) << 32).to_le(),
            ],
        }
    }

    /// Read of `blocks` logical blocks (1 to 65,536) from `slba` of namespace
    /// `nsid` into the memory that `prp` describes.
    #[inline]
    pub const fn read(cid: u16, nsid: u32, slba: u64, blocks: u32, prp: Prp) -> Self {
        let command = OPCODE_READ | (cid as u64) << 16 | (nsid as u64) << 32;
        // Number of logical blocks is 0's based, 16 bits.
        let length = (blocks.wrapping_sub(1) & 0xffff) as u64;
        Self {
            words: [
                command.to_le(),
                0,
                0,
                prp.first.to_le(),
                prp.second.to_le(),
                slba.to_le(),
                length.to_le(),
                0,
            ],
        }
    }

    /// Write of `blocks` logical blocks (1 to 65,536) to `slba` of namespace `nsid`
    /// from the memory that `prp` describes; with `fua` it is complete when the data
    /// is on the medium.
    #[inline]
    pub const fn write(cid: u16, nsid: u32, slba: u64, blocks: u32, prp: Prp, fua: bool) -> Self {
        let dwords = [
            slba as u32,
            (slba >> 32) as u32,
            // Number of logical blocks is 0's based, 16 bits.
            (blocks.wrapping_sub(1) & 0xffff) | if fua { FUA } else { 0 },
            0,
            0,
            0,
        ];
        Self::new(OPCODE_WRITE, cid, nsid, prp, dwords)
    }

    /// The words that reads and writes may differ in, but [`Self::SLBA`]. The others, the
    /// metadata pointer among them, are zero in all that [`Self::read`] and
    /// [`Self::write`] make: a queue of such commands that began as zeros has them already.
    pub const VARYING: [usize; 4] = [6, 4, 3, 0];

    /// The word of the first block of a read or write, and of nothing else.
    pub const SLBA: usize = 5;

    /// The entry's eight words, to be stored in order at its place in the queue.
    #[inline]
    pub const fn words(&self) -> &[u64; 8] {
        &self.words
    }
}

/// The data pointer of a command: two physical region page entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prp {
    /// PRP entry 1: bus address of the first page.
    pub first: u64,
    /// PRP entry 2: zero, the second page, or the list of all but the first.
    pub second: u64,
}

/// A completion queue entry of 16 bytes, in the CPU's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cqe {
    /// Submission queue that the command came from.
    pub sq_id: u16,
    /// Identifier of the command.
    pub cid: u16,
    /// Status field with the phase tag in bit 0.
    pub status: u16,
}

impl Cqe {
    /// Size of an entry in memory, in bytes.
    pub const SIZE: usize = 16;

    /// The entry whose second half (dwords 2 and 3) is `word`, as it is in memory.
    #[inline]
    pub const fn from_word(word: u64) -> Self {
        let word = u64::from_le(word);
        Self {
            sq_id: (word >> 16) as u16,
            cid: (word >> 32) as u16,
            status: (word >> 48) as u16,
        }
    }

    /// The second half of this entry as it is in memory; the inverse of
    /// [`Cqe::from_word`] for a submission queue head of zero.
    #[inline]
    pub const fn to_word(self) -> u64 {
        ((self.sq_id as u64) << 16 | (self.cid as u64) << 32 | (self.status as u64) << 48).to_le()
    }

    /// The phase tag.
    #[inline]
    pub const fn phase(self) -> bool {
        self.status & 1 != 0
    }

    /// Status code, status code type and flags, without the phase tag; zero is
    /// success.
    #[inline]
    pub const fn code(self) -> u16 {
        self.status >> 1
    }
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_read_layout_is_the_specifications() {
        let prp = Prp {
            first: 0x1111_2222_3333_4000,
            second: 0x5555_6666_7777_8000,
        };
        let sqe = Sqe::read(0x1234, 0xaabb_ccdd, 0x0102_0304_0506_0708, 8, prp);
        let bytes: Vec<u8> = sqe.words().iter().flat_map(|w| w.to_ne_bytes()).collect();

        assert_eq!(size_of::<Sqe>(), 64);
        assert_eq!(bytes[0], 0x02, "opcode");
        assert_eq!(bytes[1], 0, "flags: PRPs, not fused");
        assert_eq!(bytes[2..4], 0x1234u16.to_le_bytes());
        assert_eq!(bytes[4..8], 0xaabb_ccddu32.to_le_bytes());
        assert_eq!(bytes[8..24], [0; 16], "reserved and metadata pointer");
        assert_eq!(bytes[24..32], prp.first.to_le_bytes());
        assert_eq!(bytes[32..40], prp.second.to_le_bytes());
        assert_eq!(bytes[40..48], 0x0102_0304_0506_0708u64.to_le_bytes());
        assert_eq!(bytes[48..52], 7u32.to_le_bytes(), "0's based length");
        assert_eq!(bytes[52..], [0; 12]);
    }

    #[test]
    fn test_new_with_the_fields_of_a_read_is_that_read() {
        let prp = Prp {
            first: 0x1000,
            second: 0x2000,
        };
        let dwords = [0x0506_0708, 0x0102_0304, 7, 0, 0, 0];
        let general = Sqe::new(0x02, 0x1234, 5, prp, dwords);
        assert_eq!(general, Sqe::read(0x1234, 5, 0x0102_0304_0506_0708, 8, prp));
        let last = Sqe::new(0xff, 0, 0, prp, [0, 0, 0, 1, 2, 3]);
        assert_eq!(u64::from_le(last.words()[6]), 1 << 32);
        assert_eq!(u64::from_le(last.words()[7]), 2 | 3 << 32);
    }

    #[test]
    fn test_write_layout_is_the_specifications() {
        let prp = Prp {
            first: 0x1111_2222_3333_4000,
            second: 0x5555_6666_7777_8000,
        };
        let sqe = Sqe::write(0x1234, 0xaabb_ccdd, 0x0102_0304_0506_0708, 8, prp, false);
        let read = Sqe::read(0x1234, 0xaabb_ccdd, 0x0102_0304_0506_0708, 8, prp);
        let bytes: Vec<u8> = sqe.words().iter().flat_map(|w| w.to_ne_bytes()).collect();

        assert_eq!(bytes[0], 0x01, "opcode");
        assert_eq!(sqe.words()[1..], read.words()[1..], "all else is a read's");
        let fua = Sqe::write(0x1234, 0xaabb_ccdd, 0x0102_0304_0506_0708, 8, prp, true);
        assert_eq!(u64::from_le(fua.words()[6]), 7 | 1 << 30);
        let longest = Sqe::write(0, 1, 0, 65_536, prp, false);
        assert_eq!(u64::from_le(longest.words()[6]), 0xffff);
    }

    #[test]
    fn test_varying_words_are_all_that_reads_and_writes_set() {
        let prp = Prp {
            first: u64::MAX,
            second: u64::MAX,
        };
        let read = Sqe::read(u16::MAX, u32::MAX, u64::MAX, u32::MAX, prp);
        let write = Sqe::write(u16::MAX, u32::MAX, u64::MAX, u32::MAX, prp, true);
        for (index, words) in read.words().iter().zip(write.words()).enumerate() {
            let varies = Sqe::VARYING.contains(&index) || index == Sqe::SLBA;
            assert_eq!(words != (&0, &0), varies, "{index}");
        }
    }

    #[test]
    fn test_read_longest_length_does_not_spill_into_flags() {
        let sqe = Sqe::read(0, 1, 0, 65_536, Prp::default());
        assert_eq!(u64::from_le(sqe.words()[6]), 0xffff);
    }

    proptest! {
        #[test]
        fn test_cqe_any_word_roundtrips(word: u64) {
            let cqe = Cqe::from_word(word.to_le());
            prop_assert_eq!(Cqe::from_word(cqe.to_word()), cqe);
            prop_assert_eq!(cqe.phase(), word >> 48 & 1 != 0);
            prop_assert_eq!(u64::from(cqe.code()), word >> 49);
        }
    }
}
