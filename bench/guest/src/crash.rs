// SPDX-License-Identifier: MIT
//! Workloads for the crash explorer: sequences of file operations whose every
//! byte says who wrote it, and whose syncs are told to the outside.
//!
//! A plan has one sequence per thread; each thread works in a folder of its own
//! (`t0`, `t1`, …, made beforehand), so that what its folder may hold follows
//! from its own sequence. After each sync that succeeded the thread writes a
//! marker to a second drive and waits for it: whoever receives that write knows
//! that the sync was acknowledged before.

use crate::mapping::Mapping;
use crate::puts::Puts;
use crate::synced::{
    Ring,
    SyncedWrite,
    sync_file_range, //
};
use crate::work::AlignedBuffer;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fmt;
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Barrier;
use std::thread;

/// First eight bytes of a marker; thread and operation follow, u32 each,
/// little-endian.
pub const MARKER_MAGIC: [u8; 8] = *b"AIOSMARK";
/// Length of a marker, bytes: one logical block.
pub const MARKER_LEN: usize = 512;
/// Largest file of a plan, bytes.
pub const MAX_FILE: u32 = 1 << 20;
/// Names per thread.
pub const MAX_NAMES: u8 = 16;

/// One operation on a file of the thread's folder, named by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Make an empty file; the name is free.
    Create(u8),
    /// Write bytes at an offset: overwrite, append, or beyond the end.
    Write(u8, Range),
    /// Write whole blocks at a block's offset around the page cache (`O_DIRECT`).
    Direct(u8, Range),
    /// [`Op::Write`] that is durable when it returns: an acknowledged sync of its own bytes,
    /// and of the file's other data not.
    SyncedWrite(u8, Range, SyncedWrite),
    /// [`Op::Direct`] that is, likewise.
    SyncedDirect(u8, Range, SyncedWrite),
    /// Start writing all of the file back, and do not wait: no sync.
    WriteBack(u8),
    /// `sync_file_range` of these bytes with all of its flags, which waits: no sync.
    SyncFileRange(u8, Range),
    /// Store into a shared mapping inside the file, then `msync(MS_SYNC)` of
    /// all of it: an acknowledged sync.
    Store(u8, Range),
    /// Allocate; the flag keeps the size.
    Allocate(u8, Range, bool),
    /// Punch a hole, which keeps the size.
    Punch(u8, Range),
    /// Set the size.
    Truncate(u8, u32),
    /// Rename, replacing what is there.
    Rename(u8, u8),
    /// Make a second name, which is free.
    Link(u8, u8),
    /// Remove a name.
    Unlink(u8),
    /// `fsync`.
    Fsync(u8),
    /// `fdatasync`.
    Fdatasync(u8),
    /// `fsync` by io_uring.
    UringFsync(u8),
    /// `fdatasync` by io_uring.
    UringFdatasync(u8),
    /// `sync`.
    Sync,
    /// One more key into the thread's database: an acknowledged sync. What the database
    /// does to files is its own.
    Put,
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub offset: u32,
    /// Number of bytes, not 0.
    pub length: u32,
}

impl Op {
    /// Whether its end is told to the outside.
    pub fn is_sync(self) -> bool {
        matches!(
            self,
            Self::Store(..)
                | Self::SyncedWrite(..)
                | Self::SyncedDirect(..)
                | Self::Fsync(_)
                | Self::Fdatasync(_)
                | Self::UringFsync(_)
                | Self::UringFdatasync(_)
                | Self::Sync
                | Self::Put
        )
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}..{}",
            self.offset,
            u64::from(self.offset) + u64::from(self.length)
        )
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Create(a) => write!(f, "create f{a}"),
            Self::Write(a, range) => write!(f, "write f{a} {range}"),
            Self::Direct(a, range) => write!(f, "direct write f{a} {range}"),
            Self::SyncedWrite(a, range, how) => write!(f, "{how} write f{a} {range}"),
            Self::SyncedDirect(a, range, how) => write!(f, "{how} direct write f{a} {range}"),
            Self::WriteBack(a) => write!(f, "start writing f{a} back"),
            Self::SyncFileRange(a, range) => write!(f, "sync_file_range f{a} {range}"),
            Self::Store(a, range) => write!(f, "mmap store f{a} {range}, msync"),
            Self::Allocate(a, range, false) => write!(f, "fallocate f{a} {range}"),
            Self::Allocate(a, range, true) => write!(f, "fallocate f{a} {range}, keep size"),
            Self::Punch(a, range) => write!(f, "punch f{a} {range}"),
            Self::Truncate(a, size) => write!(f, "truncate f{a} to {size}"),
            Self::Rename(a, b) => write!(f, "rename f{a} to f{b}"),
            Self::Link(a, b) => write!(f, "link f{a} as f{b}"),
            Self::Unlink(a) => write!(f, "unlink f{a}"),
            Self::Fsync(a) => write!(f, "fsync f{a}"),
            Self::Fdatasync(a) => write!(f, "fdatasync f{a}"),
            Self::UringFsync(a) => write!(f, "io_uring fsync f{a}"),
            Self::UringFdatasync(a) => write!(f, "io_uring fdatasync f{a}"),
            Self::Sync => f.write_str("sync"),
            Self::Put => f.write_str("put a key"),
        }
    }
}

/// What a guest is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Makes the contents of this plan unlike those of others.
    pub seed: u64,
    /// The operations of each thread.
    pub threads: Vec<Vec<Op>>,
}

/// What operation `op` of `thread` writes at `offset` of a file.
pub fn content(seed: u64, thread: usize, op: usize, offset: u32, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = u64::from(offset) + i as u64;
        // splitmix64 of all that identifies the eight bytes around.
        let mut word = seed
            ^ (thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (op as u64).wrapping_mul(0xd1b5_4a32_d192_ed03)
            ^ (at / 8).wrapping_mul(0x8cb9_2ba7_2f3d_8dd7);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // Never zero, which is what holes read as.
        *byte = ((word >> (8 * (at % 8))) as u8) | 1;
    }
}

/// Whether a block begins with what [`content`] makes: odd bytes, which no
/// metadata begins with but a bitmap, all of whose bits are set then.
pub fn is_content(block: &[u8]) -> bool {
    block
        .first_chunk::<8>()
        .is_some_and(|word| word.iter().all(|byte| byte % 2 == 1) && *word != [0xff; 8])
}

/// Options of `aios-guest crash`.
#[derive(clap::Args, Debug, Clone)]
pub struct Crash {
    /// The plan, as JSON.
    #[arg(long)]
    pub plan: PathBuf,
    /// Folder with the threads' folders.
    #[arg(long)]
    pub dir: PathBuf,
    /// Block device that markers are written to.
    #[arg(long)]
    pub marker: PathBuf,
}

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub struct CrashResult {
    /// Operations that succeeded: all of the plan's.
    pub operations: u64,
    /// Markers written.
    pub markers: u64,
}

/// Why a plan could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CrashError {
    /// The plan could not be read.
    #[error("cannot read the plan {}: {why}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// An operation failed.
    #[error("thread {thread}, operation {number} ({op}): {source}")]
    Op {
        /// Which thread.
        thread: usize,
        /// Which of its operations.
        number: usize,
        /// What it was.
        op: Op,
        /// Why it failed.
        source: io::Error,
    },
    /// The marker drive could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    Marker {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Crash {
    /// Carries the plan out.
    pub fn run(&self) -> Result<CrashResult, CrashError> {
        let unreadable = |why: String| CrashError::Plan {
            path: self.plan.clone(),
            why,
        };
        let text = fs::read(&self.plan).map_err(|error| unreadable(error.to_string()))?;
        let plan: Plan =
            serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        let device = File::options()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&self.marker)
            .map_err(|source| CrashError::Marker {
                path: self.marker.clone(),
                source,
            })?;
        let start = Barrier::new(plan.threads.len());
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..plan.threads.len())
                .map(|index| {
                    let mut worker = Worker {
                        plan: &plan,
                        index,
                        dir: self.dir.join(format!("t{index}")),
                        device: &device,
                        database: None,
                        ring: None,
                    };
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        worker.run()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|why| std::panic::resume_unwind(why))
                })
                .collect()
        });
        let mut total = CrashResult {
            operations: 0,
            markers: 0,
        };
        for result in results {
            let (operations, markers) = result?;
            total.operations += operations;
            total.markers += markers;
        }
        Ok(total)
    }
}

/// One thread's part of a plan.
struct Worker<'a> {
    plan: &'a Plan,
    index: usize,
    dir: PathBuf,
    device: &'a File,
    /// The database, from its first key on.
    database: Option<Puts>,
    /// From its first request on.
    ring: Option<Ring>,
}

/// A marker as `O_DIRECT` wants it.
#[repr(align(4096))]
struct Marker([u8; MARKER_LEN]);

impl Worker<'_> {
    fn run(&mut self) -> Result<(u64, u64), CrashError> {
        let mut marker = Box::new(Marker([0; MARKER_LEN]));
        let mut markers = 0;
        let ops = self
            .plan
            .threads
            .get(self.index)
            .map_or(&[][..], Vec::as_slice);
        for (number, &op) in ops.iter().enumerate() {
            self.apply(number, op)
                .and_then(|()| {
                    if op.is_sync() {
                        markers += 1;
                        self.mark(&mut marker, number)?;
                    }
                    Ok(())
                })
                .map_err(|source| CrashError::Op {
                    thread: self.index,
                    number,
                    op,
                    source,
                })?;
        }
        Ok((ops.len() as u64, markers))
    }

    fn path(&self, name: u8) -> PathBuf {
        self.dir.join(format!("f{name}"))
    }

    fn open(&self, name: u8) -> io::Result<File> {
        self.open_with(name, 0)
    }

    fn open_with(&self, name: u8, flags: i32) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(self.path(name))
    }

    fn uring_fsync(&mut self, name: u8, data_only: bool) -> io::Result<()> {
        let file = self.open(name)?;
        let ring = match &mut self.ring {
            Some(ring) => ring,
            None => self.ring.insert(Ring::new()?),
        };
        ring.fsync(&file, data_only)
    }

    fn data(&self, number: usize, range: Range) -> Vec<u8> {
        let mut data = vec![0; range.length as usize];
        content(self.plan.seed, self.index, number, range.offset, &mut data);
        data
    }

    /// The same for `O_DIRECT`.
    fn aligned(&self, number: usize, range: Range) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::new(range.length as usize);
        buffer.bytes().copy_from_slice(&self.data(number, range));
        buffer
    }

    fn apply(&mut self, number: usize, op: Op) -> io::Result<()> {
        match op {
            Op::Create(a) => File::create_new(self.path(a)).map(drop),
            Op::Write(a, range) => self
                .open(a)?
                .write_all_at(&self.data(number, range), range.offset.into()),
            Op::Direct(a, range) => self
                .open_with(a, libc::O_DIRECT)?
                .write_all_at(self.aligned(number, range).bytes(), range.offset.into()),
            Op::SyncedWrite(a, range, how) => how.write_all_at(
                &self.open_with(a, how.open_flags())?,
                &self.data(number, range),
                range.offset.into(),
            ),
            Op::SyncedDirect(a, range, how) => how.write_all_at(
                &self.open_with(a, how.open_flags() | libc::O_DIRECT)?,
                self.aligned(number, range).bytes(),
                range.offset.into(),
            ),
            Op::SyncFileRange(a, range) => {
                sync_file_range(&self.open(a)?, range.offset.into(), range.length.into())
            }
            Op::WriteBack(a) => write_back(&self.open(a)?),
            Op::Store(a, range) => store(&self.open(a)?, range, &self.data(number, range)),
            Op::Allocate(a, range, keep) => {
                let mode = if keep { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                fallocate(&self.open(a)?, mode, range)
            }
            Op::Punch(a, range) => fallocate(
                &self.open(a)?,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                range,
            ),
            Op::Truncate(a, size) => self.open(a)?.set_len(size.into()),
            Op::Rename(a, b) => fs::rename(self.path(a), self.path(b)),
            Op::Link(a, b) => fs::hard_link(self.path(a), self.path(b)),
            Op::Unlink(a) => fs::remove_file(self.path(a)),
            Op::Fsync(a) => self.open(a)?.sync_all(),
            Op::Fdatasync(a) => self.open(a)?.sync_data(),
            Op::UringFsync(a) => self.uring_fsync(a, false),
            Op::UringFdatasync(a) => self.uring_fsync(a, true),
            Op::Sync => {
                // SAFETY: Plain system call without arguments.
                unsafe { libc::sync() };
                Ok(())
            }
            Op::Put => match &mut self.database {
                Some(puts) => puts.next(),
                None => {
                    let ops = self.plan.threads.get(self.index).into_iter().flatten();
                    let puts = ops.filter(|op| **op == Op::Put).count();
                    let puts = Puts::start(&self.dir, self.plan.seed, puts)?;
                    self.database.insert(puts).next()
                }
            },
        }
    }

    /// Tells that operation `number`, a sync, has returned.
    fn mark(&self, marker: &mut Marker, number: usize) -> io::Result<()> {
        let [thread, number] = [self.index, number].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        marker.0[..8].copy_from_slice(&MARKER_MAGIC);
        marker.0[8..12].copy_from_slice(&thread.to_le_bytes());
        marker.0[12..16].copy_from_slice(&number.to_le_bytes());
        let offset = u64::from(thread) * MARKER_LEN as u64;
        self.device.write_all_at(&marker.0, offset)
    }
}

/// Thread and operation that a marker tells of.
pub fn parse_marker(bytes: &[u8]) -> Option<(u32, u32)> {
    let rest = bytes.strip_prefix(&MARKER_MAGIC)?;
    let (thread, rest) = rest.split_first_chunk()?;
    let number = rest.first_chunk()?;
    Some((u32::from_le_bytes(*thread), u32::from_le_bytes(*number)))
}

fn fallocate(file: &File, mode: i32, range: Range) -> io::Result<()> {
    // SAFETY: Plain system call on an open file with integer arguments.
    let result = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            range.offset.into(),
            range.length.into(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts writing back whatever of `file` is dirty.
fn write_back(file: &File) -> io::Result<()> {
    // SAFETY: Plain system call on an open file with integer arguments.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Stores `data` through a shared mapping of the whole file and syncs it.
fn store(file: &File, range: Range, data: &[u8]) -> io::Result<()> {
    let size = file.metadata()?.len();
    let end = u64::from(range.offset).checked_add(data.len() as u64);
    if end.is_none_or(|end| end > size) {
        return Err(io::Error::other("a store outside of the file"));
    }
    let mut mapping = Mapping::whole(file, size)?;
    mapping.write(range.offset as usize, data);
    mapping.sync()
}

/// The folders that a plan's threads work in, below `dir`.
pub fn folders(dir: &Path, threads: usize) -> impl Iterator<Item = PathBuf> {
    (0..threads).map(move |index| dir.join(format!("t{index}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_content_is_never_zero_and_tells_writers_apart() {
        let mut all: Vec<[u8; 64]> = Vec::new();
        for (seed, thread, op, offset) in [
            (1, 0, 0, 0),
            (2, 0, 0, 0),
            (1, 1, 0, 0),
            (1, 0, 1, 0),
            (1, 0, 0, 64),
        ] {
            let mut bytes = [0; 64];
            content(seed, thread, op, offset, &mut bytes);
            assert!(bytes.iter().all(|&byte| byte != 0));
            assert!(is_content(&bytes));
            assert!(!all.contains(&bytes));
            all.push(bytes);
        }
    }

    #[test]
    fn test_is_content_is_false_of_metadata() {
        for block in [&[0; 8][..], &[0xff; 8], b"\xdbNEVER-W", &[1; 7]] {
            assert!(!is_content(block), "{block:?}");
        }
    }

    #[test]
    fn test_content_does_not_depend_on_where_a_write_begins() {
        let (mut whole, mut part) = ([0; 64], [0; 13]);
        content(7, 1, 2, 100, &mut whole);
        content(7, 1, 2, 131, &mut part);
        assert_eq!(whole[31..44], part);
    }

    #[test]
    fn test_run_does_what_the_plan_says_and_marks_the_syncs() {
        let dir = std::env::temp_dir().join(format!("aios-crash-{}", std::process::id()));
        for folder in folders(&dir, 1) {
            fs::create_dir_all(folder).unwrap();
        }
        let range = |offset, length| Range { offset, length };
        let plan = Plan {
            seed: 3,
            threads: vec![vec![
                Op::Create(0),
                Op::Write(0, range(0, 6000)),
                Op::WriteBack(0),
                Op::Store(0, range(100, 50)),
                Op::Truncate(0, 5000),
                Op::Link(0, 1),
                Op::Fsync(1),
                Op::Rename(1, 2),
                Op::Unlink(0),
                Op::SyncedWrite(2, range(200, 8), SyncedWrite::RwfDsync),
                Op::SyncFileRange(2, range(0, 4096)),
                Op::UringFsync(2),
                Op::UringFdatasync(2),
            ]],
        };
        let device = dir.join("marker");
        fs::write(&device, [0; 4096]).unwrap();
        fs::write(dir.join("plan"), serde_json::to_vec(&plan).unwrap()).unwrap();
        let result = Crash {
            plan: dir.join("plan"),
            dir: dir.clone(),
            marker: device.clone(),
        }
        .run();
        let marker = fs::read(&device).unwrap();
        let file = fs::read(dir.join("t0/f2")).unwrap();
        let names = fs::read_dir(dir.join("t0")).unwrap().count();
        fs::remove_dir_all(&dir).unwrap();
        let result = result.unwrap();
        assert_eq!((result.operations, result.markers), (13, 5));
        assert_eq!(parse_marker(&marker), Some((0, 12)));
        assert_eq!((file.len(), names), (5000, 1));
        let mut stored = [0; 50];
        content(3, 0, 3, 100, &mut stored);
        assert_eq!(file[100..150], stored);
        let mut synced = [0; 8];
        content(3, 0, 9, 200, &mut synced);
        assert_eq!(file[200..208], synced);
    }

    #[test]
    fn test_parse_marker_garbage_is_none() {
        assert_eq!(parse_marker(b""), None);
        assert_eq!(parse_marker(b"AIOSMARK\x01\0\0"), None);
        assert_eq!(parse_marker(&[0; 512]), None);
    }
}
