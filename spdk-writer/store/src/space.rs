// SPDX-License-Identifier: MIT

//! Which space is free.

use std::ops::Range;

/// A piece of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// The pieces of `within` that no extent of `taken` touches, in order.
pub fn free(within: Range<u64>, taken: impl Iterator<Item = Extent>) -> Vec<Extent> {
    let mut taken: Vec<Extent> = taken.filter(|extent| extent.len > 0).collect();
    taken.sort_unstable_by_key(|extent| extent.start);
    let mut pieces = Vec::new();
    let mut at = within.start;
    let mut gap = |from: u64, to: u64| {
        if from < to {
            pieces.push(Extent {
                start: from,
                len: to - from,
            });
        }
    };
    for extent in taken {
        gap(at, extent.start.min(within.end));
        at = at.max(extent.start.saturating_add(extent.len));
    }
    gap(at, within.end);
    pieces
}

/// The first piece of at least `wanted` bytes, cut to it; otherwise the largest,
/// if that has at least `least`.
pub fn choose(pieces: &[Extent], wanted: u64, least: u64) -> Option<Extent> {
    let fits = pieces.iter().find(|piece| piece.len >= wanted);
    match fits {
        Some(piece) => Some(Extent {
            start: piece.start,
            len: wanted,
        }),
        None => pieces
            .iter()
            .max_by_key(|piece| piece.len)
            .filter(|piece| piece.len >= least)
            .copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn test_free_agrees_with_a_bitmap(
            taken in proptest::collection::vec((0u64..64, 0u64..16), 0..12),
            start in 0u64..32,
            len in 0u64..48,
        ) {
            let mut map = [true; 128];
            for &(at, len) in &taken {
                map[at as usize..(at + len) as usize].fill(false);
            }
            let extents = taken.iter().map(|&(start, len)| Extent { start, len });
            let pieces = free(start..start + len, extents);
            let mut found = [false; 128];
            let mut last = None;
            for piece in &pieces {
                prop_assert!(piece.len > 0);
                prop_assert!(last.is_none_or(|last| last < piece.start), "apart, in order");
                found[piece.start as usize..(piece.start + piece.len) as usize].fill(true);
                last = Some(piece.start + piece.len);
            }
            for at in 0..128 {
                let expected = map[at] && (start..start + len).contains(&(at as u64));
                prop_assert_eq!(found[at], expected, "{}", at);
            }
        }
    }

    #[test]
    fn test_choose_first_that_fits_else_the_largest() {
        let pieces = [(0, 10), (20, 30), (60, 40)].map(|(start, len)| Extent { start, len });
        let some = |start, len| Some(Extent { start, len });
        assert_eq!(choose(&pieces, 25, 1), some(20, 25));
        assert_eq!(choose(&pieces, 50, 20), some(60, 40));
        assert_eq!(choose(&pieces, 50, 41), None);
        assert_eq!(choose(&[], 1, 1), None);
    }
}
