// SPDX-License-Identifier: MIT
//! A volatile write cache, and cutting the power at a chosen command.
//!
//! The image always holds what the client would read; beside it the cache keeps,
//! of every write that is not durable yet, what it changed. A flush makes
//! durable what had completed before it was received. When the power is cut, all
//! that is not durable is undone, and a random part of it done again: of the
//! writes that were in the cache or had been received, any subset survives, some
//! of them torn between logical blocks. A drive may advertise a larger unit that
//! power failures leave whole (NVMe: AWUPF, NAWUPF): writes that fit one are not
//! torn.

use crate::clock;
use crate::image::Image;
use std::collections::VecDeque;
use std::ops::Range;

/// Data that the cache holds at most, bytes; older data is written back then.
const MAX_HELD: usize = 64 << 20;

/// When and how the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerCut {
    /// At which command that changes anything (write, flush, trim, write
    /// zeroes), counted from 1; that one is never answered.
    pub at: u64,
    /// Chooses what survives.
    pub seed: u64,
    /// Size of a logical block in bytes, which is never torn; a power of two.
    pub block: u32,
    /// The advertised atomic unit in bytes, a power of two: a write that lies within one,
    /// counted from the drive's begin, is not torn either. At most `block`: none.
    pub atomic: u32,
}

/// A write that is not durable, or one after it.
#[derive(Debug)]
struct Entry {
    offset: u64,
    /// What was there before.
    old: Vec<u8>,
    new: Vec<u8>,
    /// When it completed, ns.
    completed: u64,
    /// FUA: survives, but older ones before it may not.
    durable: bool,
}

/// What is not durable yet, and when it is to be lost.
#[derive(Debug)]
pub(crate) struct Cache {
    cut: PowerCut,
    /// In order of completion.
    entries: VecDeque<Entry>,
    /// Data of the entries, old or new, bytes.
    held: usize,
    /// Commands so far that change anything.
    commands: u64,
    /// State of the random numbers.
    random: u64,
}

impl Cache {
    pub(crate) fn new(cut: PowerCut) -> Self {
        Self {
            cut,
            entries: VecDeque::new(),
            held: 0,
            commands: 0,
            random: cut.seed,
        }
    }

    /// Counts a command that changes something; whether the power is to be cut
    /// in place of it.
    pub(crate) fn counts_down(&mut self) -> bool {
        self.commands += 1;
        self.commands == self.cut.at
    }

    /// Notes that `length` bytes of `image` are about to become `new`, or zeroes
    /// without it.
    pub(crate) fn write(
        &mut self,
        image: &Image,
        (offset, length): (u64, u32),
        new: Option<&[u8]>,
        durable: bool,
    ) {
        let size = length as usize;
        if size > MAX_HELD {
            // Larger than the cache: it goes around it, after all before it.
            self.entries.clear();
            self.held = 0;
            return;
        }
        let Some(old) = image.get(offset, length) else {
            return;
        };
        self.entries.push_back(Entry {
            offset,
            old: old.to_vec(),
            new: new.map_or_else(|| vec![0; size], <[u8]>::to_vec),
            completed: clock::now(),
            durable,
        });
        self.held += size;
        while self.held > MAX_HELD {
            self.write_back();
        }
        // Nothing is undone below it.
        while self.entries.front().is_some_and(|entry| entry.durable) {
            self.write_back();
        }
    }

    /// A flush that was `received` then has completed.
    pub(crate) fn flush(&mut self, received: u64) {
        let covered = |entry: &Entry| entry.completed < received || entry.durable;
        while self.entries.front().is_some_and(covered) {
            self.write_back();
        }
    }

    fn write_back(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.held -= entry.new.len();
        }
    }

    /// Leaves in `image` what survives; `under_way` are the writes that were
    /// received and not answered, oldest first.
    pub(crate) fn cut<'a>(
        &mut self,
        image: &mut Image,
        under_way: impl Iterator<Item = (u64, &'a [u8])>,
    ) {
        for entry in self.entries.iter().rev() {
            put(image, entry.offset, &entry.old);
        }
        for entry in std::mem::take(&mut self.entries) {
            if entry.durable {
                put(image, entry.offset, &entry.new);
            } else {
                self.maybe_put(image, entry.offset, &entry.new);
            }
        }
        for (offset, data) in under_way {
            self.maybe_put(image, offset, data);
        }
        self.held = 0;
    }

    /// Half of the writes survive, and a quarter of these only in part.
    fn maybe_put(&mut self, image: &mut Image, offset: u64, data: &[u8]) {
        let kept = match self.draw(8) {
            0..4 => return,
            4 if !self.is_atomic(offset, data.len()) => self.torn(offset, data.len()),
            _ => 0..data.len(),
        };
        let offset = offset + kept.start as u64;
        put(image, offset, data.get(kept).unwrap_or_default());
    }

    /// Whether a write lies within one unit that is never torn.
    fn is_atomic(&self, offset: u64, length: usize) -> bool {
        let unit = u64::from(self.cut.atomic.max(self.cut.block).max(1));
        offset % unit + length as u64 <= unit
    }

    /// A beginning or an end of a write, as whole logical blocks of the drive.
    fn torn(&mut self, offset: u64, length: usize) -> Range<usize> {
        let block = u64::from(self.cut.block.max(1));
        let blocks = (offset + length as u64).div_ceil(block) - offset / block;
        let edge = (offset / block + self.draw(blocks.max(1))) * block;
        let middle = usize::try_from(edge.saturating_sub(offset)).unwrap_or(length);
        match self.draw(2) {
            0 => 0..middle.min(length),
            _ => middle.min(length)..length,
        }
    }

    /// A number below `limit`, by splitmix64.
    fn draw(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % limit
    }
}

fn put(image: &mut Image, offset: u64, data: &[u8]) {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    if let Some(to) = image.get_mut(offset, length) {
        to.copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::io::Write as _;

    const SIZE: usize = 8 * 512;

    fn image() -> Image {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0; SIZE]).unwrap();
        Image::open(file.path(), false).unwrap()
    }

    fn cache(seed: u64) -> Cache {
        cache_with(seed, 0)
    }

    fn cache_with(seed: u64, atomic: u32) -> Cache {
        Cache::new(PowerCut {
            at: 1,
            seed,
            block: 512,
            atomic,
        })
    }

    fn write(cache: &mut Cache, image: &mut Image, sector: u64, byte: u8, fua: bool) {
        let data = [byte; 1024];
        cache.write(image, (sector * 512, 1024), Some(&data), fua);
        put(image, sector * 512, &data);
    }

    /// First byte of each sector after a cut, for many seeds.
    fn outcomes(run: impl Fn(&mut Cache, &mut Image)) -> HashSet<Vec<u8>> {
        outcomes_with(0, run)
    }

    /// The same of a drive with an atomic unit.
    fn outcomes_with(atomic: u32, run: impl Fn(&mut Cache, &mut Image)) -> HashSet<Vec<u8>> {
        (0..300)
            .map(|seed| {
                let (mut cache, mut image) = (cache_with(seed, atomic), image());
                run(&mut cache, &mut image);
                cache.cut(&mut image, std::iter::empty());
                let bytes = image.get(0, SIZE as u32).unwrap();
                bytes.chunks(512).map(|sector| sector[0]).collect()
            })
            .collect()
    }

    #[test]
    fn test_cut_unflushed_writes_survive_in_part() {
        let found = outcomes(|cache, image| write(cache, image, 0, 1, false));
        let expected = [[0, 0], [1, 1], [1, 0], [0, 1]];
        for sectors in expected {
            assert!(found.iter().any(|f| f[..2] == sectors), "{sectors:?}");
        }
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn test_cut_write_within_an_atomic_unit_survives_whole_or_not_at_all() {
        let found = outcomes_with(1024, |cache, image| write(cache, image, 2, 1, false));
        let expected = [[0, 0], [1, 1]];
        assert!(expected.iter().all(|e| found.iter().any(|f| f[2..4] == *e)));
        assert_eq!(found.len(), expected.len(), "{found:?}");
    }

    #[test]
    fn test_cut_write_across_atomic_units_is_torn_at_logical_blocks() {
        // As long as a unit, but in two of them; and longer than one.
        for sectors in [&[3, 4][..], &[2, 3, 4, 5]] {
            let found = outcomes_with(1024, |cache, image| {
                let (offset, data) = (sectors[0] as u64 * 512, vec![1; sectors.len() * 512]);
                cache.write(image, (offset, data.len() as u32), Some(&data), false);
                put(image, offset, &data);
            });
            // Nothing, all, and every edge from either end.
            assert_eq!(found.len(), 2 + 2 * (sectors.len() - 1), "{found:?}");
        }
    }

    #[test]
    fn test_cut_flushed_writes_survive() {
        let found = outcomes(|cache, image| {
            write(cache, image, 0, 1, false);
            cache.flush(clock::now() + 1);
            write(cache, image, 4, 2, false);
        });
        assert!(found.iter().all(|f| f[..2] == [1, 1]));
        assert!(found.iter().any(|f| f[4] == 0) && found.iter().any(|f| f[4] == 2));
    }

    #[test]
    fn test_cut_flush_received_before_a_write_completed_does_not_cover_it() {
        let found = outcomes(|cache, image| {
            let received = clock::now();
            write(cache, image, 0, 1, false);
            cache.flush(received);
        });
        assert!(found.iter().any(|f| f[0] == 0));
    }

    #[test]
    fn test_cut_fua_survives_over_older_writes() {
        let found = outcomes(|cache, image| {
            write(cache, image, 0, 1, false);
            write(cache, image, 1, 2, true);
        });
        assert!(found.iter().all(|f| f[1..3] == [2, 2]), "{found:?}");
        assert!(found.iter().any(|f| f[0] == 0) && found.iter().any(|f| f[0] == 1));
    }

    #[test]
    fn test_cut_same_seed_same_outcome() {
        let once = |seed| {
            let (mut cache, mut image) = (cache(seed), image());
            for sector in 0..7 {
                write(&mut cache, &mut image, sector, 1 + sector as u8, false);
            }
            let under_way = [9; 700];
            cache.cut(&mut image, std::iter::once((100, &under_way[..])));
            image.get(0, SIZE as u32).unwrap().to_vec()
        };
        assert_eq!(once(7), once(7));
        assert!((0..20).any(|seed| once(seed) != once(7)));
    }

    #[test]
    fn test_write_more_than_the_cache_holds_is_written_back() {
        let (mut cache, mut image) = (cache(1), image());
        for _ in 0..MAX_HELD / 1024 + 10 {
            write(&mut cache, &mut image, 0, 1, false);
        }
        assert!(cache.held <= MAX_HELD);
        let held: usize = cache.entries.iter().map(|entry| entry.new.len()).sum();
        assert_eq!(cache.held, held);
    }
}
