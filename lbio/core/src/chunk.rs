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

use core::sync::atomic::{
    AtomicU8,
    AtomicU32,
    Ordering::{
        Acquire,
        Relaxed,
        Release, //
    }, //
};

/// Most pages of a chunk.
pub const MAX_PAGES: u32 = 32;

/// State of one chunk.
///
/// Taking and retiring are for one caller at a time; reads may finish at any
/// time, on any CPU.
///
/// # Invariants
///
/// `flying <= taken <= pages <= MAX_PAGES`.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Chunk {
    pages: u8,
    /// Pages that were handed out, or never will be.
    taken: AtomicU8,
    flying: AtomicU32,
}

impl Chunk {
    /// A mapped chunk of `pages` pages, at most [`MAX_PAGES`].
    pub const fn new(pages: u32) -> Self {
        let pages = if pages < MAX_PAGES { pages } else { MAX_PAGES };
        // INVARIANT: bounded above.
        Self {
            pages: pages as u8,
            taken: AtomicU8::new(0),
            flying: AtomicU32::new(0),
        }
    }

    /// Takes the next `count` pages, for a read that is in flight from now on.
    /// The first of them, or `None` if there are fewer left.
    #[inline]
    pub fn take(&self, count: u32) -> Option<u32> {
        if count == 0 || self.left() < count {
            return None;
        }
        let first = self.taken.load(Relaxed);
        // INVARIANT: `taken + count <= pages`, and `flying <= taken` stays.
        self.taken.store(first.wrapping_add(count as u8), Relaxed);
        self.flying.fetch_add(count, Relaxed);
        Some(u32::from(first))
    }

    /// The page that `take(1)` would take, without taking it yet.
    #[inline]
    pub fn next(&self) -> Option<Next<'_>> {
        let index = self.taken.load(Relaxed);
        (index < self.pages).then_some(Next { chunk: self, index })
    }

    /// A read into `count` of the pages is over; the device writes there no more.
    /// The chunk may be gone when this returns, if its owner looks at it.
    #[inline]
    pub fn finish(&self, count: u32) {
        // Release: before whoever finds the chunk idle unmaps it.
        self.flying.fetch_sub(count, Release);
    }

    /// Hands out no more pages from now on.
    pub fn retire(&self) {
        // INVARIANT: `taken` grows, and not beyond `pages`.
        self.taken.store(self.pages, Relaxed);
    }

    /// How many pages there are to take.
    #[inline]
    pub fn left(&self) -> u32 {
        u32::from(self.pages.saturating_sub(self.taken.load(Relaxed)))
    }

    /// Whether the chunk may be unmapped: nothing is to come from it, and nothing
    /// is in flight into it.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.left() == 0 && self.flying.load(Acquire) == 0
    }
}

/// The page of a chunk that is the next to be taken. For the one who may take
/// pages, until he takes any.
///
/// # Invariants
///
/// `index < chunk.pages`.
#[derive(Debug)]
#[must_use]
pub struct Next<'a> {
    chunk: &'a Chunk,
    index: u8,
}

impl Next<'_> {
    /// Its place in the chunk.
    #[inline]
    pub fn index(&self) -> u32 {
        u32::from(self.index)
    }

    /// Takes it, as [`Chunk::take`].
    #[inline]
    pub fn take(self) {
        // INVARIANT: `taken <= pages` by the type invariant, and `flying <= taken`
        // stays, as nobody took a page since this one was looked at.
        self.chunk.taken.store(self.index.wrapping_add(1), Relaxed);
        self.chunk.flying.fetch_add(1, Relaxed);
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
            steps in proptest::collection::vec((0u8..10, 0u32..10), 0..200),
        ) {
            let chunk = Chunk::new(pages);
            let pages = pages.min(MAX_PAGES);
            let mut left: Vec<u32> = (0..pages).collect();
            let mut flying = Vec::new();
            let mut retired = false;
            for (step, count) in steps {
                match step {
                    0..4 => {
                        let fits = !retired && count > 0 && count as usize <= left.len();
                        let want: Vec<u32> = if fits {
                            left.drain(..count as usize).collect()
                        } else {
                            Vec::new()
                        };
                        prop_assert_eq!(chunk.take(count), want.first().copied());
                        flying.extend((!want.is_empty()).then_some(count));
                    }
                    4..7 => if let Some(count) = flying.pop() {
                        chunk.finish(count);
                    },
                    7 => {
                        retired = true;
                        chunk.retire();
                    }
                    // Looked at; taken, or, as if there were no slot, not.
                    _ => {
                        let want = left.first().copied().filter(|_| !retired);
                        let next = chunk.next();
                        prop_assert_eq!(next.as_ref().map(Next::index), want);
                        if let Some(next) = next.filter(|_| step == 8) {
                            next.take();
                            left.remove(0);
                            flying.push(1);
                        }
                    }
                }
                let to_come = if retired { 0 } else { left.len() };
                prop_assert_eq!(chunk.left() as usize, to_come);
                prop_assert_eq!(chunk.is_idle(), flying.is_empty() && to_come == 0);
            }
        }
    }

    /// One takes, others finish: the chunk is idle when the last has, not before.
    #[test]
    fn test_chunk_finished_by_threads_is_idle_in_the_end() {
        for _ in 0..200 {
            let chunk = Chunk::new(MAX_PAGES);
            std::thread::scope(|scope| {
                while let Some(first) = chunk.take(4) {
                    assert!(!chunk.is_idle(), "page {first} is in flight");
                    let chunk = &chunk;
                    scope.spawn(move || chunk.finish(4));
                }
            });
            assert!(chunk.is_idle());
        }
    }
}
