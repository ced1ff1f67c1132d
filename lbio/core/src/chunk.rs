// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Chunks: pages that are mapped for DMA together, handed out one by one, and
//! unmapped together, long after the reads into them are done.
//!
//! Mapping and unmapping cost far more per call than per page. A chunk is the
//! page pool and the list of deferred unmaps in one: its pages are handed to
//! reads in order, and when the last has been handed out, or the chunk is
//! retired, and no read into it is in flight any more, one call unmaps all of
//! it. Until then the chunk holds a reference to each of its pages, so that none
//! of them can become something else while the device could still write to it.

/// Most pages of a chunk.
pub const MAX_PAGES: u32 = 32;

/// State of one chunk.
///
/// # Invariants
///
/// `flying <= taken <= pages <= MAX_PAGES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Chunk {
    pages: u8,
    taken: u8,
    flying: u8,
    retired: bool,
}

impl Chunk {
    /// A mapped chunk of `pages` pages, at most [`MAX_PAGES`].
    pub const fn new(pages: u32) -> Self {
        let pages = if pages < MAX_PAGES { pages } else { MAX_PAGES };
        // INVARIANT: bounded above.
        Self {
            pages: pages as u8,
            taken: 0,
            flying: 0,
            retired: false,
        }
    }

    /// Takes the next page, for a read that is in flight from now on.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        if self.retired || self.taken >= self.pages {
            return None;
        }
        let page = self.taken;
        // INVARIANT: `taken < pages`, and `flying <= taken` stays.
        self.taken = self.taken.wrapping_add(1);
        self.flying = self.flying.wrapping_add(1);
        Some(u32::from(page))
    }

    /// A read into one of the pages is over; the device writes there no more.
    /// Returns whether the chunk may be unmapped now.
    #[inline]
    pub fn finish(&mut self) -> bool {
        self.flying = self.flying.saturating_sub(1);
        self.is_idle()
    }

    /// Hands out no more pages from now on. Returns whether the chunk may be
    /// unmapped now.
    pub fn retire(&mut self) -> bool {
        self.retired = true;
        self.is_idle()
    }

    /// Whether there are pages left to take.
    #[inline]
    pub const fn has_pages(&self) -> bool {
        !self.retired && self.taken < self.pages
    }

    /// Whether the chunk may be unmapped: nothing is to come from it, and nothing
    /// is in flight into it.
    #[inline]
    pub const fn is_idle(&self) -> bool {
        !self.has_pages() && self.flying == 0
    }

    /// How many pages no read has been given.
    pub const fn untaken(&self) -> u32 {
        self.pages.saturating_sub(self.taken) as u32
    }
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn test_chunk_any_history_agrees_with_sets(
            pages in 0u32..40,
            steps in proptest::collection::vec(0u8..8, 0..200),
        ) {
            let mut chunk = Chunk::new(pages);
            let pages = pages.min(MAX_PAGES);
            let mut left: Vec<u32> = (0..pages).rev().collect();
            let mut flying = Vec::new();
            let mut retired = false;
            for step in steps {
                match step {
                    0..4 => {
                        let want = if retired { None } else { left.pop() };
                        prop_assert_eq!(chunk.take(), want);
                        flying.extend(want);
                    }
                    4..7 => if flying.pop().is_some() {
                        let over = flying.is_empty() && (retired || left.is_empty());
                        prop_assert_eq!(chunk.finish(), over);
                    },
                    _ => {
                        retired = true;
                        prop_assert_eq!(chunk.retire(), flying.is_empty());
                    }
                }
                prop_assert_eq!(chunk.has_pages(), !retired && !left.is_empty());
                prop_assert_eq!(chunk.untaken() as usize, left.len());
                let idle = flying.is_empty() && (retired || left.is_empty());
                prop_assert_eq!(chunk.is_idle(), idle);
            }
        }
    }
}
