// SPDX-License-Identifier: MIT
//! Readers, by system call and by mmap, against a writer that rewrites (buffered,
//! direct, by mmap), punches, truncates, and collapses and inserts ranges, and
//! against eviction and shrinkers: no reader may see data older than what was
//! done before its read began.
//!
//! Every 512 bytes say which block they belong to and which generation of that
//! block wrote them, so that content proves its own age. A generation is one
//! change of one block, by a write or by zeroing (hole punch or truncation).
//! For each block three numbers are shared: the last generation that is done,
//! the last that was started, and the last that was started and zeroes. A read
//! that began when `done` was D may return
//! * data of a generation in `D..=started`, or
//! * zeros (or the end of the file), if a zeroing generation of at least D has
//!   been started by the time the read ended.
//!
//! Buffered reads and writes are not atomic towards each other: a read beside a
//! change of the same block may see any mix of bytes. Such a read is made again
//! until it agrees, or disagrees with no change beside it: what is stale in the
//! page cache stays so. That goes for blocks that are moved, too; they are counted
//! before and after.

mod change;

use crate::mapping::{
    Access,
    Mapping, //
};
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering::SeqCst, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// Size of a block in bytes.
const BLOCK: usize = 4096;

/// Size of the unit that carries block and generation, in bytes.
const SECTOR: usize = 512;

/// First eight bytes of every sector that was written here.
const MAGIC: u64 = 0x4149_4f53_5241_4345;

/// Options of the race.
#[derive(clap::Args, Debug, Clone)]
pub struct Race {
    /// File to race on; made anew.
    #[arg(long)]
    pub file: PathBuf,
    /// Size of the file in bytes, a multiple of 4096.
    #[arg(long, default_value_t = 1 << 20)]
    pub size: u64,
    /// Reading threads.
    #[arg(long, default_value_t = 2)]
    pub readers: u32,
    /// Threads that read by mmap, besides.
    #[arg(long, default_value_t = 0)]
    pub mapped_readers: u32,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Seed of what the writer and the readers choose.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Open the file for writing only while a change is made, so that nobody
    /// has it open for writing most of the time.
    #[arg(long)]
    pub reopen: bool,
    /// Most blocks of one read; each read is of one block up to so many.
    #[arg(long, default_value_t = 1)]
    pub blocks: u64,
    /// Have the kernel drop its caches all the time, which takes root.
    #[arg(long)]
    pub reclaim: bool,
}

/// What was raced.
#[derive(Debug, Serialize)]
pub struct RaceResult {
    /// Reads that were checked.
    pub reads: u64,
    /// Changes that were made.
    pub changes: u64,
}

/// Why a race failed.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    /// The file could not be worked on.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Options that make no sense.
    #[error("--size must be a multiple of {BLOCK}, at least two blocks, and not {0}")]
    Size(u64),
    /// A read returned what it must not.
    #[error("stale or foreign data: {0}")]
    Stale(String),
}

type Result<T> = std::result::Result<T, RaceError>;

/// What is known of one block.
#[derive(Debug, Default)]
struct Block {
    done: AtomicU64,
    started: AtomicU64,
    zeroing: AtomicU64,
    /// How often it was moved; odd while it is.
    moves: AtomicU64,
}

impl Block {
    /// Whether a sector found by a read that began at generation `begun` is one
    /// that may be seen; `index` is the sector's block.
    fn allows(&self, begun: u64, index: u64, sector: &[u8]) -> std::result::Result<(), String> {
        let word = |at: usize| {
            sector
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        if sector.iter().all(|&byte| byte == 0) {
            let zeroed = self.zeroing.load(SeqCst);
            if zeroed >= begun {
                return Ok(());
            }
            return Err(format!(
                "zeros in block {index}, which was last zeroed by generation {zeroed} and \
                 is at generation {begun} at least"
            ));
        }
        let (magic, block, generation) = (word(0), word(8), word(16));
        if magic != MAGIC || block != index {
            return Err(format!(
                "block {index} holds block {block} of magic {magic:#x}"
            ));
        }
        let started = self.started.load(SeqCst);
        if generation < begun || generation > started {
            return Err(format!(
                "block {index} shows generation {generation}, not {begun}..={started}"
            ));
        }
        Ok(())
    }
}

/// xorshift64*, enough to choose blocks.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n.max(1)
    }
}

impl Race {
    /// Runs the race until its time is up or something stale was read.
    pub fn run(&self) -> Result<RaceResult> {
        let count = self.size / BLOCK as u64;
        if count < 2 || !self.size.is_multiple_of(BLOCK as u64) {
            return Err(RaceError::Size(self.size));
        }
        let blocks: Vec<Block> = (0..count).map(|_| Block::default()).collect();
        let file = self.open("create", |options| {
            options.write(true).create(true).truncate(true)
        })?;

        // Generation 1 is what the file starts with.
        for index in 0..count {
            self.write(&file, &blocks, index)?;
        }
        drop(file);
        // Not open for writing; enough to sync and to evict.
        let evicted = self.open("open", |options| options)?;

        let stop = AtomicBool::new(false);
        let failure: Mutex<Option<RaceError>> = Mutex::new(None);
        let fail = |error: RaceError| {
            if let Ok(mut first) = failure.lock() {
                first.get_or_insert(error);
            }
            stop.store(true, SeqCst);
        };
        let reads = AtomicU64::new(0);
        let changes = AtomicU64::new(0);
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let go_on = || !stop.load(SeqCst) && Instant::now() < end;

        thread::scope(|scope| {
            for reader in 0..self.readers + self.mapped_readers {
                let (blocks, reads, fail, go_on) = (&blocks, &reads, &fail, &go_on);
                scope.spawn(move || {
                    let mut rng =
                        Rng(self.seed ^ (u64::from(reader) + 1).wrapping_mul(0x9e37_79b9));
                    let result = self.open("open", |options| options).and_then(|file| {
                        while go_on() {
                            let index = rng.below(count);
                            let length = 1 + rng.below(self.blocks);
                            if reader < self.readers {
                                self.read(blocks, index, length, |at, data| {
                                    file.read_at(data, at).map(drop)
                                })?;
                            } else {
                                let how = rng.below(4);
                                self.read(blocks, index, length, |at, data| {
                                    read_mapped(&file, at, data, how)
                                })?;
                            }
                            reads.fetch_add(1, SeqCst);
                        }
                        Ok(())
                    });
                    if let Err(error) = result {
                        fail(error);
                    }
                });
            }
            // Evicts what is clean, so that readers miss the cache.
            scope.spawn(|| {
                while go_on() {
                    if let Err(source) = evicted.sync_data() {
                        fail(self.error("sync", source));
                    }
                    // SAFETY: Plain system call on an open descriptor.
                    unsafe {
                        libc::posix_fadvise(evicted.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
                    };
                    thread::sleep(Duration::from_millis(1));
                }
            });
            if self.reclaim {
                scope.spawn(|| {
                    while go_on() {
                        if let Err(error) = change::drop_caches() {
                            fail(error);
                        }
                        thread::sleep(Duration::from_millis(20));
                    }
                });
            }
            if let Err(error) = self.change(&blocks, &changes, go_on) {
                fail(error);
            }
        });

        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            _ => Ok(RaceResult {
                reads: reads.into_inner(),
                changes: changes.into_inner(),
            }),
        }
    }

    fn open(
        &self,
        action: &'static str,
        with: impl FnOnce(&mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions,
    ) -> Result<File> {
        with(File::options().read(true))
            .open(&self.file)
            .map_err(|source| self.error(action, source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> RaceError {
        RaceError::Io {
            action,
            file: self.file.clone(),
            source,
        }
    }

    /// Reads `length` blocks from block `index` on, as far as there are any, with
    /// `fetch`, until what is there is what may be seen.
    fn read(
        &self,
        blocks: &[Block],
        index: u64,
        length: u64,
        fetch: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        let end = index.saturating_add(length).min(blocks.len() as u64);
        let Some(range) = blocks.get(index as usize..end as usize) else {
            return Ok(());
        };
        // What lies behind the end of the file reads as zeros.
        let mut buffer = vec![0; range.len() * BLOCK];
        loop {
            let begun: Vec<(u64, u64)> = range
                .iter()
                .map(|block| (block.done.load(SeqCst), block.moves.load(SeqCst)))
                .collect();
            buffer.fill(0);
            fetch(index * BLOCK as u64, &mut buffer)
                .map_err(|source| self.error("read", source))?;
            let mut again = false;
            for (((number, block), (done, moves)), data) in
                (index..).zip(range).zip(begun).zip(buffer.chunks(BLOCK))
            {
                let seen = data
                    .chunks(SECTOR)
                    .try_for_each(|sector| block.allows(done, number, sector));
                let Err(why) = seen else {
                    continue;
                };
                // Something changed the block meanwhile; a stale page would
                // still be there for the next read.
                let changed = block.started.load(SeqCst) != done;
                let moved = moves % 2 != 0 || block.moves.load(SeqCst) != moves;
                if !changed && !moved {
                    return Err(RaceError::Stale(why));
                }
                again = true;
            }
            if !again {
                return Ok(());
            }
        }
    }
}

/// Reads by faults, through a mapping of its own. Every fourth is not advised to
/// be random, so that reading around takes part; every other one writes to private
/// copies of the pages first, where there are zeros anyway.
fn read_mapped(file: &File, at: u64, data: &mut [u8], how: u64) -> io::Result<()> {
    let copies = how % 2 == 1;
    let access = if copies {
        Access::Private
    } else {
        Access::Read
    };
    let mut mapping = Mapping::new(file, at, data.len(), access)?;
    if how != 0 {
        mapping.advise_random()?;
    }
    mapping.beyond_the_end(|mapping| {
        if copies {
            for end in (BLOCK..=data.len()).step_by(BLOCK) {
                mapping.write(end - 1, &[0]);
            }
        }
        mapping.read(data);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(done: u64, started: u64, zeroing: u64) -> Block {
        Block {
            done: done.into(),
            started: started.into(),
            zeroing: zeroing.into(),
            moves: 0.into(),
        }
    }

    fn sector(index: u64, generation: u64) -> Vec<u8> {
        let mut sector = vec![0; SECTOR];
        for (at, word) in sector.chunks_mut(8).zip([MAGIC, index, generation]) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        sector
    }

    #[test]
    fn test_allows_current_and_started_generation() {
        let b = block(4, 5, 0);
        assert!(b.allows(4, 9, &sector(9, 4)).is_ok());
        assert!(b.allows(4, 9, &sector(9, 5)).is_ok());
    }

    #[test]
    fn test_allows_older_generation_returns_error() {
        assert!(block(4, 5, 0).allows(4, 9, &sector(9, 3)).is_err());
    }

    #[test]
    fn test_allows_foreign_block_returns_error() {
        assert!(block(4, 5, 0).allows(4, 9, &sector(8, 4)).is_err());
    }

    #[test]
    fn test_allows_zeros_only_after_zeroing() {
        let zeros = vec![0; SECTOR];
        assert!(block(4, 4, 3).allows(4, 9, &zeros).is_err());
        assert!(block(4, 4, 4).allows(4, 9, &zeros).is_ok());
        assert!(block(4, 5, 5).allows(4, 9, &zeros).is_ok());
    }

    #[test]
    fn test_run_on_a_sound_file_system_finds_nothing() {
        let file = std::env::temp_dir().join(format!("aios-race-{}", std::process::id()));
        let race = Race {
            file: file.clone(),
            size: 16 * BLOCK as u64,
            readers: 2,
            mapped_readers: 2,
            seconds: 1,
            seed: 3,
            reopen: true,
            blocks: 4,
            reclaim: false,
        };
        let result = race.run();
        let _ = std::fs::remove_file(&file);
        match result {
            Ok(result) => assert!(result.reads > 0 && result.changes > 0),
            // File systems without O_DIRECT or hole punching (tmpfs of old kernels).
            Err(RaceError::Io { source, .. }) => {
                assert!(matches!(
                    source.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP)
                ));
            }
            Err(error) => panic!("{error}"),
        }
    }
}
