// SPDX-License-Identifier: GPL-2.0

//! Decoded blocks of which only a part was wanted, for who reads what is beside it.
//!
//! One cache for all disks, of so many bytes at most, which memory that is short takes back. Blocks
//! of a page and less are not in it: there is nothing beside what is read of them.
//!
//! # Whose a block is
//!
//! A block is found by the number of its blob, which is given to one opening of a file and to no
//! other, ever ([`Origin`]). So other layers that take the place of a blob never get what was its,
//! and those that stay keep theirs. What is of a blob goes with the last reference to it; nobody
//! adds to it after, as who reads a blob has one.
//!
//! # Readers at the same time
//!
//! A block does not change once it is in the cache: who finds it takes a reference under the lock,
//! and copies without. Two who want the same one may both decode it; the second finds that it is
//! there. The lock is taken for a look at a few places, never while memory is allocated or freed,
//! so that shrinking can take it, whoever needs the memory.

use core::mem;
use kernel::{
    alloc::{
        flags::{
            __GFP_NORETRY,
            __GFP_NOWARN, //
        },
        Flags, //
    },
    prelude::*,
    shrinker::{
        Shrink,
        Shrinker, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        global_lock,
        Arc, //
    }, //
};

/// Bytes that it may take if nobody says.
const DEFAULT_BYTES: usize = 8 << 20;

/// Least bytes of a block that is kept.
const MIN_BLOCK: usize = 8 << 10;

/// Places that a block can be in.
const WAYS: usize = 8;

/// Most places that are looked at, and most blocks that are taken, with the lock held once.
const MAX_STEPS: usize = 4096;
const MAX_TAKEN: usize = 16;

global_lock! {
    // SAFETY: It is initialised in `start`, which the module begins with.
    unsafe(uninit) static CACHE: SpinLock<Cache> = Cache {
        places: KVVec::new(),
        limit: DEFAULT_BYTES,
        bytes: 0,
        blocks: 0,
        hand: 0,
    };
}

/// As in [`CACHE`], for who asks whether there is one at all, and how much is in it.
static LIMIT: Atomic<usize> = Atomic::new(DEFAULT_BYTES);
static BLOCKS: Atomic<usize> = Atomic::new(0);

/// How often something happened.
static HITS: Atomic<u64> = Atomic::new(0);
static MISSES: Atomic<u64> = Atomic::new(0);
static SHRUNK: Atomic<u64> = Atomic::new(0);

/// The last [`Origin`].
static ORIGINS: Atomic<u64> = Atomic::new(0);

struct Cache {
    /// None, or a power of two of groups of [`WAYS`]; a block can be in one of them.
    places: Places,
    /// Most bytes of blocks.
    limit: usize,
    bytes: usize,
    blocks: usize,
    /// The place that is looked at next where room is made.
    hand: usize,
}

struct Entry {
    origin: u64,
    number: u64,
    /// It was wanted since the hand was here.
    wanted: bool,
    block: Arc<KVVec<u8>>,
}

/// Where blocks are.
type Places = KVVec<Option<Entry>>;

/// Blocks that are on their way out: they are freed without the lock.
type Taken = [Option<Entry>; MAX_TAKEN];

/// Nobody needs a block so much that others must make room for it.
fn spare() -> Flags {
    GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY
}

impl Cache {
    /// The places that a block can be in.
    fn group(&mut self, origin: u64, number: u64) -> &mut [Option<Entry>] {
        let hash = (number ^ origin.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let groups = self.places.len() / WAYS;
        let first = (hash as usize & groups.saturating_sub(1)) * WAYS;
        self.places.get_mut(first..first + WAYS).unwrap_or_default()
    }

    fn find(&mut self, origin: u64, number: u64) -> Option<&mut Entry> {
        self.group(origin, number)
            .iter_mut()
            .flatten()
            .find(|entry| entry.origin == origin && entry.number == number)
    }

    /// Says that an entry was taken from its place.
    fn gone(&mut self, entry: &Entry) {
        self.bytes -= entry.block.len();
        self.blocks -= 1;
        BLOCKS.store(self.blocks, Relaxed);
    }

    /// Takes the next block that was not wanted for the longest time, about, in `steps` steps.
    fn take_one(&mut self, steps: &mut usize) -> Option<Entry> {
        while self.blocks > 0 && *steps > 0 {
            *steps -= 1;
            self.hand = match self.hand + 1 {
                next if next < self.places.len() => next,
                _ => 0,
            };
            let Some(place) = self.places.get_mut(self.hand) else {
                continue;
            };
            match place {
                Some(entry) if entry.wanted => entry.wanted = false,
                Some(_) => {
                    let entry = place.take()?;
                    self.gone(&entry);
                    return Some(entry);
                }
                None => {}
            }
        }
        None
    }

    /// Takes what is of a blob from at most [`MAX_STEPS`] places from `at` on, and returns where to
    /// go on, if there is more.
    fn take_all_of(&mut self, origin: u64, at: usize, taken: &mut Taken) -> Option<usize> {
        let mut taken = taken.iter_mut();
        for at in at..at + MAX_STEPS {
            let place = self.places.get_mut(at)?;
            if place.as_ref().is_some_and(|entry| entry.origin == origin) {
                let Some(to) = taken.next() else {
                    return Some(at);
                };
                *to = place.take();
                if let Some(entry) = to {
                    self.bytes -= entry.block.len();
                    self.blocks -= 1;
                }
            }
        }
        Some(at + MAX_STEPS)
    }

    /// Puts a block where it belongs, if there is room for its bytes or can be made, and it is not
    /// there; else gives it back.
    fn add(&mut self, entry: Entry, taken: &mut Taken) -> Result<(), Entry> {
        if self.find(entry.origin, entry.number).is_some() {
            return Err(entry);
        }
        let mut taken = taken.iter_mut();
        let group = self.group(entry.origin, entry.number);
        let free = |place: &Option<Entry>| place.is_none();
        let unwanted = |place: &Option<Entry>| place.as_ref().is_some_and(|entry| !entry.wanted);
        let way = group.iter().position(free);
        let way = way.or_else(|| group.iter().position(unwanted)).unwrap_or(0);
        let before = group.get_mut(way).and_then(Option::take);
        if let (Some(before), Some(to)) = (before, taken.next()) {
            self.gone(&before);
            *to = Some(before);
        }
        let mut steps = MAX_STEPS;
        while self.bytes + entry.block.len() > self.limit {
            let Some(to) = taken.next() else {
                return Err(entry);
            };
            *to = self.take_one(&mut steps);
            if to.is_none() {
                return Err(entry);
            }
        }
        let len = entry.block.len();
        let Some(place) = self.group(entry.origin, entry.number).get_mut(way) else {
            return Err(entry);
        };
        // It was emptied above.
        *place = Some(entry);
        self.bytes += len;
        self.blocks += 1;
        BLOCKS.store(self.blocks, Relaxed);
        Ok(())
    }

    /// Takes everything, and puts `places` in its place, which are for `limit` bytes.
    fn replace(&mut self, limit: usize, places: &mut Places) {
        mem::swap(&mut self.places, places);
        self.limit = limit;
        self.bytes = 0;
        self.blocks = 0;
        self.hand = 0;
        LIMIT.store(limit, Relaxed);
        BLOCKS.store(0, Relaxed);
    }
}

/// Places for so many bytes of the smallest blocks.
fn places(limit: usize, flags: Flags) -> Result<Places> {
    let groups = (limit / MIN_BLOCK).div_ceil(WAYS).max(1);
    let groups = groups.checked_next_power_of_two().ok_or(ENOMEM)?;
    let nr = groups.checked_mul(WAYS).ok_or(ENOMEM)?;
    let mut places = KVVec::with_capacity(nr, flags)?;
    for _ in 0..nr {
        places.push_within_capacity(None).map_err(|_| ENOMEM)?;
    }
    Ok(places)
}

/// Has so many bytes of blocks kept at most from here on, none if that is 0. What is there is
/// dropped.
pub(crate) fn set_limit(limit: usize) -> Result {
    let mut places = match limit {
        0 => KVVec::new(),
        limit => places(limit, GFP_KERNEL | __GFP_NOWARN)?,
    };
    let mut cache = CACHE.lock();
    cache.replace(limit, &mut places);
    drop(cache);
    // Those that were there are freed without the lock.
    drop(places);
    Ok(())
}

/// How much may be kept and is, and how often what happened.
pub(crate) struct Stats {
    pub(crate) limit: usize,
    pub(crate) bytes: usize,
    pub(crate) blocks: usize,
    /// Parts of blocks that were there.
    pub(crate) hits: u64,
    /// Blocks that were decoded for a part of them.
    pub(crate) misses: u64,
    /// Blocks that were given up as memory was short.
    pub(crate) shrunk: u64,
}

pub(crate) fn stats() -> Stats {
    let cache = CACHE.lock();
    let (limit, bytes, blocks) = (cache.limit, cache.bytes, cache.blocks);
    drop(cache);
    Stats {
        limit,
        bytes,
        blocks,
        hits: HITS.load(Relaxed),
        misses: MISSES.load(Relaxed),
        shrunk: SHRUNK.load(Relaxed),
    }
}

/// An open blob, as the cache knows it.
pub(crate) struct Origin {
    number: u64,
    hits: Atomic<u64>,
    misses: Atomic<u64>,
}

impl Origin {
    /// One that there was never before.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let origin = Self {
            number: ORIGINS.fetch_add(1, Relaxed),
            hits: Atomic::new(0),
            misses: Atomic::new(0),
        };
        Ok(Arc::new(origin, GFP_KERNEL)?)
    }

    /// As [`Stats`] has it, of this blob.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Relaxed)
    }

    /// As [`Stats`] has it, of this blob.
    pub(crate) fn misses(&self) -> u64 {
        self.misses.load(Relaxed)
    }

    /// Whether there is block `number`.
    pub(crate) fn has(&self, number: u64) -> bool {
        BLOCKS.load(Relaxed) > 0 && CACHE.lock().find(self.number, number).is_some()
    }

    /// Fills `to` from byte `skip` of block `number` on, if that is there.
    pub(crate) fn read(&self, number: u64, skip: usize, to: &mut [u8]) -> bool {
        if BLOCKS.load(Relaxed) == 0 {
            return false;
        }
        let mut cache = CACHE.lock();
        let found = cache.find(self.number, number).map(|entry| {
            entry.wanted = true;
            entry.block.clone()
        });
        drop(cache);
        let Some(block) = found else {
            return false;
        };
        let Some(from) = block.get(skip..).and_then(|rest| rest.get(..to.len())) else {
            return false;
        };
        to.copy_from_slice(from);
        HITS.add(1, Relaxed);
        self.hits.add(1, Relaxed);
        true
    }

    /// Keeps block `number`, if there is memory for it.
    pub(crate) fn add(&self, number: u64, block: &[u8]) {
        let limit = LIMIT.load(Relaxed);
        if block.len() > limit {
            return;
        }
        MISSES.add(1, Relaxed);
        self.misses.add(1, Relaxed);
        let mut copy = KVVec::new();
        if copy.extend_from_slice(block, spare()).is_err() {
            return;
        }
        let Ok(block) = Arc::new(copy, spare()) else {
            return;
        };
        let entry = Entry {
            origin: self.number,
            number,
            wanted: false,
            block,
        };
        // What is in these is freed without the lock.
        let mut taken = Taken::default();
        let mut unused = KVVec::new();

        let mut cache = CACHE.lock();
        if cache.places.is_empty() {
            drop(cache);
            let Ok(places) = places(limit, spare()) else {
                return;
            };
            unused = places;
            cache = CACHE.lock();
            if cache.places.is_empty() && cache.limit == limit {
                cache.replace(limit, &mut unused);
            }
        }
        let refused = cache.add(entry, &mut taken);
        drop(cache);
        drop((refused, taken, unused));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let mut next = Some(0).filter(|_| self.misses() > 0);
        while let Some(at) = next {
            let mut taken = Taken::default();
            let mut cache = CACHE.lock();
            next = cache.take_all_of(self.number, at, &mut taken);
            BLOCKS.store(cache.blocks, Relaxed);
            drop(cache);
            drop(taken);
        }
    }
}

impl Shrink for Cache {
    type Data = ();

    fn count((): ()) -> usize {
        BLOCKS.load(Relaxed)
    }

    fn scan((): (), nr: usize) -> usize {
        let mut freed = 0;
        // All places twice: first nobody wants what is there, then it is taken.
        let mut left = 2 * CACHE.lock().places.len();
        while freed < nr && left > 0 {
            let mut taken = Taken::default();
            let mut steps = left.min(MAX_STEPS);
            left -= steps;
            let mut cache = CACHE.lock();
            for to in taken.iter_mut().take(nr - freed) {
                *to = cache.take_one(&mut steps);
                if to.is_none() {
                    break;
                }
                freed += 1;
            }
            let is_empty = cache.blocks == 0;
            drop(cache);
            drop(taken);
            left += steps;
            if is_empty {
                break;
            }
        }
        SHRUNK.add(freed as u64, Relaxed);
        freed
    }
}

/// Makes ready for blocks. Once, before anything else here.
pub(crate) fn start() -> Result<Started> {
    // SAFETY: Only the module's beginning calls this.
    unsafe { CACHE.init() };
    Ok(Started {
        _shrinker: Shrinker::new(c"obd", ())?,
    })
}

/// Blocks can be kept as long as this is there.
pub(crate) struct Started {
    /// Dropped after what is here.
    _shrinker: Shrinker<Cache>,
}

impl Drop for Started {
    fn drop(&mut self) {
        let mut places = KVVec::new();
        let mut cache = CACHE.lock();
        cache.replace(0, &mut places);
        drop(cache);
        drop(places);
    }
}
