// SPDX-License-Identifier: MIT

//! Which parts of a piece of memory are given out: first fit.

use std::collections::BTreeMap;

/// What every part begins and ends at a multiple of: a cache line.
const GRAIN: usize = 64;

/// The parts of a piece of memory, by their first byte.
#[derive(Debug)]
pub(super) struct Arena {
    /// Length of what is free; no two of them touch.
    free: BTreeMap<usize, usize>,
    /// Length of what is not.
    given: BTreeMap<usize, usize>,
}

impl Arena {
    /// `size` bytes, all free.
    pub(super) fn new(size: usize) -> Self {
        Self {
            free: BTreeMap::from([(0, size)]),
            given: BTreeMap::new(),
        }
    }

    /// Gives out `len` bytes, at a multiple of `align`, a power of two.
    pub(super) fn alloc(&mut self, len: usize, align: usize) -> Option<usize> {
        let len = len.max(1).checked_next_multiple_of(GRAIN)?;
        let align = align.max(GRAIN);
        let (at, start, room) = self.free.iter().find_map(|(at, room)| {
            let start = at.checked_next_multiple_of(align)?;
            let end = start.checked_add(len)?;
            (end <= at + room).then_some((*at, start, *room))
        })?;
        self.free.remove(&at);
        if start > at {
            self.free.insert(at, start - at);
        }
        if start + len < at + room {
            self.free.insert(start + len, at + room - start - len);
        }
        self.given.insert(start, len);
        Some(start)
    }

    /// Bytes of the part that begins at `at`, if one does.
    pub(super) fn len_of(&self, at: usize) -> Option<usize> {
        self.given.get(&at).copied()
    }

    /// Takes back the part that begins at `at`; says whether there is one.
    pub(super) fn free(&mut self, at: usize) -> bool {
        let Some(mut len) = self.given.remove(&at) else {
            return false;
        };
        let mut start = at;
        if let Some(next) = self.free.remove(&(at + len)) {
            len += next;
        }
        if let Some((&before, &room)) = self.free.range(..at).next_back()
            && before + room == at
        {
            start = before;
            len += room;
        }
        self.free.insert(start, len);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_arena_parts_are_apart_aligned_and_come_back() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut arena = Arena::new(1 << 16);
        let mut parts: Vec<(usize, usize)> = Vec::new();
        for _ in 0..5000 {
            if rng.bool() {
                let (len, align) = (rng.usize(0..5000), 1 << rng.usize(0..13));
                let Some(at) = arena.alloc(len, align) else {
                    continue;
                };
                assert!(at.is_multiple_of(align) && at + len <= 1 << 16);
                assert!(arena.len_of(at).unwrap() >= len);
                assert!(parts.iter().all(|(a, l)| at + len <= *a || a + l <= at));
                parts.push((at, len));
            } else if !parts.is_empty() {
                let (at, _) = parts.swap_remove(rng.usize(0..parts.len()));
                assert!(arena.free(at));
                assert!(!arena.free(at));
            }
        }
        for (at, _) in parts {
            assert!(arena.free(at));
        }
        assert_eq!(arena.free, BTreeMap::from([(0, 1 << 16)]));
        assert_eq!(arena.alloc(1 << 16, 4096), Some(0));
        assert_eq!(arena.alloc(0, 1), None);
    }
}
