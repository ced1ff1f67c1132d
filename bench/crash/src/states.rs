// SPDX-License-Identifier: MIT
//! The states that a power cut can leave.
//!
//! A flush makes durable what had completed on its drive before it was received:
//! always a prefix of that drive's writes in order of completion. So a state is a
//! prefix of all writes, and a list of later ones that survive beside it, in that
//! order: among them those that another drive's flush would not have covered.

use crate::SECTOR;
use crate::history::{
    History,
    Write, //
};
use fastrand::Rng;
use std::collections::{
    BTreeSet,
    HashMap,
    HashSet, //
};
use std::hash::{
    DefaultHasher,
    Hasher, //
};
use std::ops;

/// Most subsets of one kind tried at one moment.
const MOST: usize = 12;

/// How much of a write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// So many bytes from its beginning.
    Head(usize),
    /// All but so many bytes from its beginning.
    Tail(usize),
}

impl Part {
    /// Which bytes of a write of `length` bytes that is.
    pub fn bytes(self, length: usize) -> ops::Range<usize> {
        match self {
            Self::Whole => 0..length,
            Self::Head(n) => 0..n.min(length),
            Self::Tail(n) => n.min(length)..length,
        }
    }
}

/// What a power cut left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// When the power was cut, ns.
    pub time: u64,
    /// So many syncs were acknowledged by then.
    pub marks: usize,
    /// So many writes, in order of completion, are durable by a flush; with several
    /// drives some of the later ones are, too.
    pub base: usize,
    /// Later writes that survive, in that order.
    pub survivors: Vec<(usize, Part)>,
    /// Later writes that were received and could have survived, or did.
    pub volatile: Vec<usize>,
}

impl State {
    /// Makes `image`, which holds the state's base, that of the state.
    pub fn apply(&self, history: &History, image: &mut [u8]) {
        for &(index, part) in &self.survivors {
            put(&history.writes[index], part, image);
        }
    }
}

/// Writes a part of `write` to an image; what is beyond its end is left out.
pub fn put(write: &Write, part: Part, image: &mut [u8]) {
    let bytes = part.bytes(write.data.len());
    let start = usize::try_from(write.offset).unwrap_or(usize::MAX);
    let to = start
        .checked_add(bytes.start)
        .zip(start.checked_add(bytes.end));
    if let Some(to) = to.and_then(|(from, to)| image.get_mut(from..to)) {
        to.copy_from_slice(&write.data[bytes]);
    }
}

/// Hash of a sector's place and contents. The exclusive-or of all sectors'
/// hashes is that of the whole drive, and easy to keep up to date.
pub fn sector_hash(sector: u64, bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(sector);
    hasher.write(bytes);
    hasher.finish()
}

/// Hashes of a drive's sectors.
#[derive(Debug, Clone)]
pub struct Hashes {
    sectors: Vec<u64>,
    total: u64,
}

impl Hashes {
    /// Of the whole drive.
    pub fn new(image: &[u8]) -> Self {
        let sectors: Vec<u64> = image
            .chunks(SECTOR)
            .zip(0..)
            .map(|(bytes, sector)| sector_hash(sector, bytes))
            .collect();
        let total = sectors.iter().fold(0, |total, hash| total ^ hash);
        Self { sectors, total }
    }

    fn put(&mut self, write: &Write) {
        let first = first_sector(write);
        for (i, hash) in write.hashes.iter().enumerate() {
            if let Some(old) = self.sectors.get_mut(first + i) {
                self.total ^= *old ^ hash;
                *old = *hash;
            }
        }
    }

    /// The drive's hash once `survivors` are written to it.
    fn with(&self, history: &History, survivors: &[(usize, Part)]) -> u64 {
        let mut changed: HashMap<usize, u64> = HashMap::new();
        for &(index, part) in survivors {
            let write = &history.writes[index];
            let bytes = part.bytes(write.data.len());
            for i in bytes.start / SECTOR..bytes.end / SECTOR {
                changed.insert(first_sector(write) + i, write.hashes[i]);
            }
        }
        changed.iter().fold(self.total, |total, (&sector, hash)| {
            match self.sectors.get(sector) {
                Some(old) => total ^ old ^ hash,
                None => total,
            }
        })
    }
}

fn first_sector(write: &Write) -> usize {
    usize::try_from(write.offset / SECTOR as u64).unwrap_or(usize::MAX)
}

/// What was seen before, so that nothing is explored twice.
#[derive(Debug, Default)]
pub struct Seen {
    images: HashSet<u64>,
    states: HashSet<(u64, usize)>,
}

impl Seen {
    /// Images of the drive that differ.
    pub fn images(&self) -> usize {
        self.images.len()
    }
}

/// At most `limit` states of a recording on a drive with these `hashes`, in the
/// order of their bases. Those in which all that may be lost is lost right after
/// a sync are always among them; of the others as many as there is room for,
/// drawn with `rng`.
pub fn enumerate(
    history: &History,
    mut hashes: Hashes,
    seen: &mut Seen,
    rng: &mut Rng,
    limit: usize,
) -> Vec<State> {
    let mut first = Vec::new();
    let mut others = Vec::new();
    let mut base = 0;
    let drives = history.writes.iter().map(|write| write.drive);
    let drives = drives.chain(history.flushes.iter().map(|flush| flush.drive));
    // What each drive's last flush covers: all that had completed before.
    let mut covered = vec![0; drives.max().map_or(0, |last| last + 1)];
    // Writes of other recordings are others, whatever their numbers.
    seen.states.clear();
    for (time, acknowledges) in moments(history) {
        covered.fill(0);
        for flush in history.flushes.iter().filter(|f| f.completed <= time) {
            covered[flush.drive] = covered[flush.drive].max(flush.received);
        }
        let flushed = |write: &Write| write.completed < covered[write.drive];
        while let Some(write) = history.writes.get(base).filter(|it| flushed(it)) {
            hashes.put(write);
            base += 1;
        }
        let later = || (base..history.writes.len()).zip(&history.writes[base..]);
        let received = |write: &Write| write.received <= time;
        let durable = |write: &Write| flushed(write) || write.fua && write.completed <= time;
        let forced: Vec<usize> = later()
            .filter(|(_, write)| durable(write))
            .map(|(i, _)| i)
            .collect();
        let volatile: Vec<usize> = later()
            .filter(|(_, write)| received(write) && !durable(write))
            .map(|(i, _)| i)
            .collect();
        let marks = history.marks.partition_point(|mark| mark.time <= time);
        for (number, kept) in subsets(history, &volatile, rng).into_iter().enumerate() {
            let mut survivors: Vec<(usize, Part)> = forced
                .iter()
                .map(|&index| (index, Part::Whole))
                .chain(kept)
                .collect();
            survivors.sort_by_key(|(index, _)| *index);
            let hash = hashes.with(history, &survivors);
            if !seen.states.insert((hash, marks)) {
                continue;
            }
            let state = State {
                time,
                marks,
                base,
                survivors,
                volatile: volatile.clone(),
            };
            // The first subset is the empty one.
            if number == 0 && acknowledges {
                first.push((hash, state));
            } else {
                others.push((hash, state));
            }
        }
    }
    rng.shuffle(&mut others);
    others.truncate(limit.saturating_sub(first.len()));
    rng.shuffle(&mut first);
    first.truncate(limit);
    first.append(&mut others);
    first.sort_by_key(|(_, state)| state.base);
    first
        .into_iter()
        .map(|(hash, state)| {
            seen.images.insert(hash);
            state
        })
        .collect()
}

/// Every moment at which what can be found changes, and whether that is because
/// a sync was acknowledged.
fn moments(history: &History) -> Vec<(u64, bool)> {
    let mut moments = vec![(0, false)];
    for write in &history.writes {
        moments.extend([(write.received, false), (write.completed, false)]);
    }
    moments.extend(history.flushes.iter().map(|flush| (flush.completed, false)));
    moments.extend(history.marks.iter().map(|mark| (mark.time, true)));
    moments.sort_unstable();
    moments
}

/// Subsets of the `volatile` writes to survive, the empty one first.
fn subsets(history: &History, volatile: &[usize], rng: &mut Rng) -> Vec<Vec<(usize, Part)>> {
    let whole = |indices: &[usize]| -> Vec<(usize, Part)> {
        indices.iter().map(|&index| (index, Part::Whole)).collect()
    };
    let mut subsets = vec![Vec::new()];
    if volatile.is_empty() {
        return subsets;
    }
    subsets.push(whole(volatile));
    // All that one drive received, and nothing that the others did.
    let drive = |index: usize| history.writes[index].drive;
    let drives: BTreeSet<usize> = volatile.iter().map(|&index| drive(index)).collect();
    if drives.len() > 1 {
        subsets.extend(drives.iter().map(|&kept| {
            let own = volatile
                .iter()
                .copied()
                .filter(|&index| drive(index) == kept);
            own.map(|index| (index, Part::Whole)).collect()
        }));
    }
    for n in rng.choose_multiple(0..volatile.len(), MOST) {
        // A prefix, all but one, and one alone.
        subsets.push(whole(&volatile[..n]));
        let mut dropped = whole(volatile);
        let one = dropped.remove(n);
        subsets.extend([dropped, vec![one]]);
    }
    for _ in 0..volatile.len().min(MOST) {
        let mut some = whole(volatile);
        some.retain(|_| rng.bool());
        subsets.push(some);
    }
    let newest = volatile
        .iter()
        .copied()
        .max_by_key(|&index| history.writes[index].received);
    if let Some(newest) = newest {
        let length = history.writes[newest].data.len();
        let cuts = [
            SECTOR,
            4096,
            length / 2 / SECTOR * SECTOR,
            length - SECTOR.min(length),
        ];
        for cut in cuts.into_iter().filter(|&cut| cut > 0 && cut < length) {
            for part in [Part::Head(cut), Part::Tail(cut)] {
                let torn = |indices: &[usize]| {
                    let mut some = whole(indices);
                    for (index, how) in &mut some {
                        if *index == newest {
                            *how = part;
                        }
                    }
                    some
                };
                subsets.extend([torn(volatile), torn(&[newest])]);
            }
        }
    }
    subsets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Flush,
        Mark, //
    };
    use proptest::{
        prop_assert_eq,
        proptest, //
    };

    fn write(sector: u64, byte: u8, times: (u64, u64), fua: bool) -> Write {
        Write::new(sector * SECTOR as u64, vec![byte; SECTOR], times, fua)
    }

    fn states(history: &History) -> Vec<State> {
        let hashes = Hashes::new(&[0; 16 * SECTOR]);
        let rng = &mut Rng::with_seed(1);
        enumerate(history, hashes, &mut Seen::default(), rng, 10_000)
    }

    /// Sectors that hold anything, in each state.
    fn images(history: &History) -> HashSet<(usize, Vec<u8>)> {
        states(history)
            .into_iter()
            .map(|state| {
                let mut image = [0; 16 * SECTOR];
                for write in &history.writes[..state.base] {
                    put(write, Part::Whole, &mut image);
                }
                state.apply(history, &mut image);
                let sectors = image.chunks(SECTOR).map(|sector| sector[0]).collect();
                (state.marks, sectors)
            })
            .collect()
    }

    /// The first two sectors of each state in which the one mark has been set.
    fn acknowledged(history: &History) -> HashSet<Vec<u8>> {
        let images = images(history).into_iter();
        images
            .filter(|(marks, _)| *marks == 1)
            .map(|(_, sectors)| sectors[..2].to_vec())
            .collect()
    }

    #[test]
    fn test_enumerate_unflushed_writes_survive_in_any_subset() {
        let history = History {
            writes: vec![write(0, 1, (1, 2), false), write(1, 2, (3, 4), false)],
            ..History::default()
        };
        let found: HashSet<Vec<u8>> = images(&history)
            .into_iter()
            .map(|(_, sectors)| sectors[..2].to_vec())
            .collect();
        let expected = [[0, 0], [1, 0], [0, 2], [1, 2]].map(Vec::from);
        assert_eq!(found, HashSet::from(expected));
    }

    #[test]
    fn test_enumerate_flush_covers_only_what_had_completed_when_it_came() {
        let history = History {
            writes: vec![write(0, 1, (1, 2), false), write(1, 2, (3, 6), false)],
            flushes: vec![Flush {
                drive: 0,
                received: 5,
                completed: 7,
            }],
            marks: vec![Mark {
                time: 8,
                thread: 0,
                op: 0,
            }],
        };
        let lost = [[1, 0], [1, 2]].map(Vec::from);
        assert_eq!(acknowledged(&history), HashSet::from(lost));
    }

    #[test]
    fn test_enumerate_flush_of_one_drive_does_not_cover_another() {
        let mut history = History {
            writes: vec![write(0, 1, (1, 2), false), write(1, 2, (3, 4), false).on(1)],
            flushes: vec![Flush {
                drive: 1,
                received: 5,
                completed: 6,
            }],
            marks: vec![Mark {
                time: 8,
                thread: 0,
                op: 0,
            }],
        };
        // Durable beside an older write that is not.
        let lost = [[0, 2], [1, 2]].map(Vec::from);
        assert_eq!(acknowledged(&history), HashSet::from(lost));
        history.flushes[0].drive = 0;
        let lost = [[1, 0], [1, 2]].map(Vec::from);
        assert_eq!(acknowledged(&history), HashSet::from(lost));
        history.flushes.push(Flush {
            drive: 1,
            received: 6,
            completed: 7,
        });
        assert_eq!(acknowledged(&history), HashSet::from([vec![1, 2]]));
    }

    #[test]
    fn test_enumerate_one_drive_may_lose_all_and_the_other_nothing() {
        let writes = (0..16).map(|i| {
            let time = 2 * i;
            let drive = usize::from(i % 2 == 1);
            write(i, 1, (time + 1, time + 2), false).on(drive)
        });
        let history = History {
            writes: writes.collect(),
            ..History::default()
        };
        let found = images(&history);
        for drive in 0..2 {
            let kept = (0..16).map(|i| u8::from(i % 2 == drive)).collect();
            assert!(found.contains(&(0, kept)), "{drive}");
        }
    }

    #[test]
    fn test_enumerate_fua_is_durable_when_complete_and_only_itself() {
        let history = History {
            writes: vec![write(0, 1, (1, 2), false), write(1, 2, (3, 4), true)],
            marks: vec![Mark {
                time: 5,
                thread: 0,
                op: 0,
            }],
            ..History::default()
        };
        let lost = [[0, 2], [1, 2]].map(Vec::from);
        assert_eq!(acknowledged(&history), HashSet::from(lost));
    }

    #[test]
    fn test_enumerate_without_a_cache_only_what_is_under_way_may_be_lost() {
        let mut history = History {
            writes: vec![write(0, 1, (1, 2), false), write(1, 2, (3, 9), false)],
            marks: vec![Mark {
                time: 5,
                thread: 0,
                op: 0,
            }],
            ..History::default()
        };
        history.complete_is_durable();
        let lost = [[1, 0], [1, 2]].map(Vec::from);
        assert_eq!(acknowledged(&history), HashSet::from(lost));
    }

    #[test]
    fn test_enumerate_older_survivor_never_overwrites_a_newer_one() {
        let history = History {
            writes: vec![write(0, 1, (1, 2), false), write(0, 2, (3, 4), true)],
            marks: vec![Mark {
                time: 5,
                thread: 0,
                op: 0,
            }],
            ..History::default()
        };
        let found = images(&history);
        let mut after = found.iter().filter(|(marks, _)| *marks == 1).peekable();
        assert!(after.peek().is_some());
        assert!(after.all(|(_, sectors)| sectors[0] == 2));
    }

    #[test]
    fn test_enumerate_tears_the_newest_write_at_sectors() {
        let history = History {
            writes: vec![Write::new(0, vec![5; 4 * SECTOR], (1, 2), false)],
            ..History::default()
        };
        let found: HashSet<Vec<u8>> = images(&history)
            .into_iter()
            .map(|(_, sectors)| sectors[..4].to_vec())
            .collect();
        let torn = [[5, 0, 0, 0], [0, 5, 5, 5], [5, 5, 0, 0], [0, 0, 5, 5]];
        for sectors in torn {
            assert!(found.contains(&sectors[..]), "{sectors:?}");
        }
    }

    #[test]
    fn test_enumerate_limit_keeps_losses_right_after_syncs() {
        let mut history = History::default();
        for i in 0..10 {
            let time = 10 * i;
            history
                .writes
                .push(write(i, 1, (time + 1, time + 2), false));
        }
        history.marks.push(Mark {
            time: 55,
            thread: 0,
            op: 0,
        });
        let hashes = Hashes::new(&[0; 16 * SECTOR]);
        let mut seen = Seen::default();
        let states = enumerate(&history, hashes, &mut seen, &mut Rng::with_seed(3), 5);
        assert_eq!(states.len(), 5);
        assert!((1..=5).contains(&seen.images()));
        assert!(
            states
                .iter()
                .any(|s| s.time == 55 && s.survivors.is_empty())
        );
    }

    proptest! {
        #[test]
        fn test_hashes_agree_with_those_of_the_image(
            places in proptest::collection::vec((0..12u64, 1..4usize, 1..255u8), 1..8),
        ) {
            let mut history = History::default();
            for (i, (sector, sectors, byte)) in places.into_iter().enumerate() {
                let time = i as u64;
                let data = vec![byte; sectors * SECTOR];
                history.writes.push(Write::new(sector * 512, data, (time, time), false));
            }
            let survivors: Vec<_> = (0..history.writes.len())
                .map(|i| (i, if i % 2 == 0 { Part::Whole } else { Part::Head(SECTOR) }))
                .collect();
            let mut image = vec![0; 16 * SECTOR];
            let told = Hashes::new(&image).with(&history, &survivors);
            for &(index, part) in &survivors {
                put(&history.writes[index], part, &mut image);
            }
            prop_assert_eq!(told, Hashes::new(&image).total);
        }
    }
}
