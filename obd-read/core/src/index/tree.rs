// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A static search tree: how many segments end at or before a sector?
//!
//! A B-tree of 16 keys to a node, its levels one behind the other from the root
//! down, no pointers (S. Slotin, "Static B-Trees", 2022, without the
//! intrinsics: a key of an inner node is the first key of its child, so the
//! leaves are the sorted keys themselves). A node of 32-bit keys is a cache
//! line; comparing all of it and adding up compiles to vector code with SSE2
//! alone, without a branch.

use crate::lsmt::Segment;
use crate::platform::{
    Memory,
    OutOfMemory, //
};

/// Keys of a node.
const FAN: usize = 16;

/// Levels there can be: 16^8 keys.
const LEVELS: usize = 8;

/// A search key: a sector, below half of what its type holds, so that the sign
/// of a difference tells which of two is larger.
trait Key: Copy {
    /// A key above all sectors: what fills the last node of a level.
    const PAD: Self;

    fn from_sector(sector: u64) -> Self;

    fn sector(self) -> u64;

    /// 1 if this key is above `other`, 0 otherwise. SSE2 has a difference and a
    /// shift for both widths, but no comparison of 64 bits.
    fn above(self, other: Self) -> Self;

    fn wrapping_add(self, other: Self) -> Self;
}

impl Key for u32 {
    const PAD: Self = u32::MAX >> 1;

    #[inline]
    fn from_sector(sector: u64) -> Self {
        sector as u32
    }

    #[inline]
    fn sector(self) -> u64 {
        u64::from(self)
    }

    #[inline]
    fn above(self, other: Self) -> Self {
        other.wrapping_sub(self) >> 31
    }

    #[inline]
    fn wrapping_add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Key for u64 {
    const PAD: Self = u64::MAX >> 1;

    #[inline]
    fn from_sector(sector: u64) -> Self {
        sector
    }

    #[inline]
    fn sector(self) -> u64 {
        self
    }

    #[inline]
    fn above(self, other: Self) -> Self {
        other.wrapping_sub(self) >> 63
    }

    #[inline]
    fn wrapping_add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Node<K>([K; FAN]);

impl<K: Key> Default for Node<K> {
    fn default() -> Self {
        Self([K::PAD; FAN])
    }
}

impl<K: Key> Node<K> {
    /// Number of keys that are at most `key`.
    #[inline]
    fn rank(&self, key: K) -> usize {
        // At most 16; `wrapping_add` lets this become vector code.
        let above = self.0.iter().fold(K::from_sector(0), |above, mine| {
            above.wrapping_add(mine.above(key))
        });
        FAN.wrapping_sub(above.sector() as usize)
    }
}

struct Levels<M: Memory, K: Key> {
    nodes: M::Buf<Node<K>>,
    /// The first node of each level, the root's first.
    starts: [usize; LEVELS],
    depth: usize,
}

impl<M: Memory, K: Key> Levels<M, K> {
    fn new(segments: &[Segment], sectors: u64) -> Result<Self, OutOfMemory> {
        // Nodes of each level, from the leaves up.
        let mut sizes = [0usize; LEVELS];
        let mut depth = 0;
        let mut below = segments.len();
        while below > 1 || (depth == 0 && below > 0) {
            below = below.div_ceil(FAN);
            *sizes.get_mut(depth).ok_or(OutOfMemory)? = below;
            depth += 1;
        }
        let mut starts = [0usize; LEVELS];
        let mut total = 0usize;
        let levels = sizes.get(..depth).unwrap_or(&[]);
        for (start, size) in starts.iter_mut().zip(levels.iter().rev()) {
            *start = total;
            total += size;
        }
        let mut nodes = M::filled::<Node<K>>(total)?;
        let mut stride = 1usize;
        for start in starts.iter().take(depth).rev() {
            let level = nodes.get_mut(*start..).unwrap_or_default();
            let keys = segments.iter().step_by(stride);
            for (slot, segment) in level.iter_mut().flat_map(|node| &mut node.0).zip(keys) {
                *slot = K::from_sector(segment.end().min(sectors));
            }
            stride = stride.saturating_mul(FAN);
        }
        Ok(Self {
            nodes,
            starts,
            depth,
        })
    }

    #[inline]
    fn rank(&self, sector: u64) -> usize {
        let key = K::from_sector(sector);
        let mut rank = 0;
        let mut node = 0usize;
        for start in self.starts.iter().take(self.depth) {
            let here = match self.nodes.get(start.wrapping_add(node)) {
                Some(here) => here.rank(key),
                None => return rank,
            };
            rank = node.wrapping_mul(FAN).wrapping_add(here);
            // Into the child with the last key that is not above; only left of
            // all keys there is none, and then the first child says so again.
            node = rank.saturating_sub(1);
        }
        rank
    }

    #[inline]
    fn key(&self, i: usize) -> Option<u64> {
        let start = *self.starts.get(self.depth.checked_sub(1)?)?;
        let node = self.nodes.get(start + i / FAN)?;
        Some(node.0.get(i % FAN)?.sector())
    }
}

/// Where all segments end.
pub(super) enum Tree<M: Memory> {
    /// Of an image of less than 1 TiB.
    Narrow(NarrowLevels<M>),
    /// Of a larger one.
    Wide(WideLevels<M>),
}

pub(super) struct NarrowLevels<M: Memory>(Levels<M, u32>);
pub(super) struct WideLevels<M: Memory>(Levels<M, u64>);

impl<M: Memory> Tree<M> {
    /// The tree of sorted segments in an image of `sectors` sectors.
    pub(super) fn new(segments: &[Segment], sectors: u64) -> Result<Self, OutOfMemory> {
        // What is looked for is a sector, so below the pad.
        Ok(match sectors <= u64::from(u32::PAD) {
            true => Tree::Narrow(NarrowLevels(Levels::new(segments, sectors)?)),
            false => Tree::Wide(WideLevels(Levels::new(segments, sectors)?)),
        })
    }

    /// Number of segments that end at `sector`, one of the image, or before.
    #[inline]
    pub(super) fn rank(&self, sector: u64) -> usize {
        match self {
            Tree::Narrow(levels) => levels.0.rank(sector),
            Tree::Wide(levels) => levels.0.rank(sector),
        }
    }

    /// Where segment `i` ends.
    #[inline]
    pub(super) fn key(&self, i: usize) -> Option<u64> {
        match self {
            Tree::Narrow(levels) => levels.0.key(i),
            Tree::Wide(levels) => levels.0.key(i),
        }
    }

    /// Memory in use, bytes.
    pub(super) fn memory(&self) -> usize {
        match self {
            Tree::Narrow(levels) => core::mem::size_of_val::<[_]>(&levels.0.nodes),
            Tree::Wide(levels) => core::mem::size_of_val::<[_]>(&levels.0.nodes),
        }
    }
}
