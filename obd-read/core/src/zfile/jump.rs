// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The jump table: where each compressed block lies.

use crate::platform::{
    Memory,
    OutOfMemory, //
};

/// Blocks per group.
const GROUP: usize = 16;

/// Bits of an offset; the other 16 of the word are the lengths' top bits.
const OFFSET_BITS: u32 = 48;

/// Largest offset there is room for: 256 TiB.
pub(crate) const MAX_OFFSET: u64 = (1 << OFFSET_BITS) - 1;

/// Longest block there is room for.
const MAX_LEN: u32 = (1 << 17) - 1;

/// 16 blocks in 40 bytes, 2.5 per block.
///
/// The offset of a block is the group's plus the lengths before it: 15
/// additions at most over one half cache line, which compile to vector code.
/// Lengths have 17 bits because an incompressible block of 64 KiB grows beyond
/// 65535 bytes; that is the block prefix sums of 16 bits have no room for.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Group {
    /// Bits 0..48 the offset of the first block, bit 48 + i that of weight
    /// 65536 of the length of block i.
    word: u64,
    /// Lengths, bits 0..16.
    len: [u16; GROUP],
}

impl Group {
    fn len_of(&self, i: usize) -> u32 {
        let low = self.len.get(i).copied().unwrap_or(0);
        u32::from(low) | ((self.word >> (OFFSET_BITS as usize + i)) as u32 & 1) << 16
    }

    /// Bytes from the group's beginning to block `i`.
    #[inline]
    fn sum_to(&self, i: usize) -> u64 {
        let mut low = 0u32;
        for (k, len) in self.len.iter().enumerate() {
            // 15 * 65535 fits by far; `wrapping_add` lets this become vector code.
            low = low.wrapping_add(if k < i { u32::from(*len) } else { 0 });
        }
        let high = (self.word >> OFFSET_BITS) & ((1 << i) - 1);
        u64::from(low) + (u64::from(high.count_ones()) << 16)
    }
}

/// Offsets and lengths of all blocks, 2.5 bytes each.
pub(crate) struct JumpTable<M: Memory> {
    groups: M::Buf<Group>,
    /// Number of blocks.
    blocks: u64,
    /// Blocks put in so far.
    filled: u64,
    /// Where the next block starts.
    next: u64,
    /// The longest block.
    longest: u32,
}

impl<M: Memory> JumpTable<M> {
    /// An empty table for `blocks` blocks, the first of them at byte `start`.
    pub(crate) fn new(blocks: u64, start: u64) -> Result<Self, OutOfMemory> {
        let groups = usize::try_from(blocks.div_ceil(GROUP as u64)).map_err(|_| OutOfMemory)?;
        Ok(Self {
            groups: M::filled(groups)?,
            blocks,
            filled: 0,
            next: start,
            longest: 0,
        })
    }

    /// Appends a block of `len` bytes; `false` if there is no room for it, in
    /// the table or in the format.
    pub(crate) fn push(&mut self, len: u32) -> bool {
        if self.filled == self.blocks || len > MAX_LEN || self.next > MAX_OFFSET {
            return false;
        }
        let i = (self.filled % GROUP as u64) as usize;
        let group = match self.groups.get_mut((self.filled / GROUP as u64) as usize) {
            Some(group) => group,
            None => return false,
        };
        if i == 0 {
            group.word = self.next;
        }
        if let Some(low) = group.len.get_mut(i) {
            *low = len as u16;
        }
        group.word |= u64::from(len >> 16) << (OFFSET_BITS as usize + i);
        self.filled += 1;
        self.next += u64::from(len);
        self.longest = self.longest.max(len);
        true
    }

    /// Number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Number of blocks put in so far.
    pub(crate) fn filled(&self) -> u64 {
        self.filled
    }

    /// Where the last block ends.
    pub(crate) fn end(&self) -> u64 {
        self.next
    }

    /// Length of the longest block, bytes.
    pub(crate) fn longest(&self) -> u32 {
        self.longest
    }

    /// Memory that a table for `blocks` blocks takes, bytes.
    pub(crate) fn memory_for(blocks: u64) -> u64 {
        let group = core::mem::size_of::<Group>() as u64;
        blocks.div_ceil(GROUP as u64).saturating_mul(group)
    }

    /// Memory in use, bytes.
    pub(crate) fn memory(&self) -> usize {
        core::mem::size_of_val::<[Group]>(&self.groups)
    }

    /// Offset and length of a block.
    #[inline]
    pub(crate) fn get(&self, block: u64) -> Option<(u64, u32)> {
        if block >= self.filled {
            return None;
        }
        let group = self.groups.get((block / GROUP as u64) as usize)?;
        let i = (block % GROUP as u64) as usize;
        let start = (group.word & MAX_OFFSET) + group.sum_to(i);
        Some((start, group.len_of(i)))
    }

    /// Length of a block, bytes; 0 beyond the last one.
    #[inline]
    pub(crate) fn len_of(&self, block: u64) -> u32 {
        match self.groups.get((block / GROUP as u64) as usize) {
            Some(group) => group.len_of((block % GROUP as u64) as usize),
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Heap;
    use proptest::prelude::*;

    fn check(start: u64, lens: &[u32]) {
        let mut table = JumpTable::<Heap>::new(lens.len() as u64, start).unwrap();
        let mut at = start;
        for len in lens {
            assert!(table.push(*len));
        }
        assert!(!table.push(1));
        for (i, len) in lens.iter().enumerate() {
            assert_eq!(table.get(i as u64), Some((at, *len)), "block {i}");
            assert_eq!(table.len_of(i as u64), *len);
            at += u64::from(*len);
        }
        assert_eq!(table.get(lens.len() as u64), None);
        assert_eq!(table.end(), at);
        assert_eq!(table.longest(), lens.iter().copied().max().unwrap_or(0));
    }

    proptest! {
        #[test]
        fn equals_prefix_sums(
            start in 512u64..1 << 40,
            lens in proptest::collection::vec(
                prop_oneof![1u32..5000, 60_000u32..70_000, 0..=MAX_LEN],
                0..200,
            ),
        ) {
            check(start, &lens);
        }
    }

    #[test]
    fn incompressible_blocks_of_64_kib() {
        check(512, &[65_797; 100]);
        check(512, &[MAX_LEN; 100]);
    }

    #[test]
    fn two_and_a_half_bytes_per_block() {
        let table = JumpTable::<Heap>::new(1 << 20, 512).unwrap();
        assert_eq!(table.memory() * 2, 5 << 20);
        for blocks in [0, 1, 16, 17, 1 << 20] {
            let table = JumpTable::<Heap>::new(blocks, 512).unwrap();
            assert_eq!(table.memory() as u64, JumpTable::<Heap>::memory_for(blocks));
        }
    }

    #[test]
    fn no_room() {
        let mut table = JumpTable::<Heap>::new(2, MAX_OFFSET).unwrap();
        assert!(!table.push(MAX_LEN + 1));
        assert!(table.push(5));
        assert!(!table.push(5));
    }
}
