// SPDX-License-Identifier: MIT
//! Small workloads with marked operations, and their result.

use crate::durable::{
    self,
    Writer, //
};
use crate::mapping::{
    Access,
    Mapping,
    PAGE, //
};
use crate::marker::{
    self,
    mark, //
};
use crate::synced::SyncedWrite;
use crate::together::{
    Begin,
    together, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt,
    FileTypeExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicU32,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

/// `EXT4_IOC_SET_AIOS`, `_IOW('f', 48, __u32)`: opts an open file in to
/// (1) or out of (0) the asynchronous I/O stack.
pub const EXT4_IOC_SET_AIOS: u32 = (1 << 30) | (4 << 16) | ((b'f' as u32) << 8) | 48;

/// Alignment of buffers and block sizes for `O_DIRECT`, in bytes.
const DIRECT_ALIGN: usize = 4096;

/// What a workload does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Read a block at a random offset; no block twice.
    Randread,
    /// Read a block at a random offset that is in the page cache.
    RandreadHit,
    /// Touch a page of a mapping at a random offset; no page twice.
    RandreadMmap,
    /// Read the next block.
    Seqread,
    /// Overwrite a random block, then fdatasync.
    OverwriteFdatasync,
    /// Overwrite a random block, then fsync.
    OverwriteFsync,
    /// Write a block at the end of the file, then fsync.
    AppendFsync,
    /// Write a block at the end of the file, then fdatasync, as a log does.
    AppendFdatasync,
    /// Write a block to a new file beside the file (FILE.N, removed at the end),
    /// then fsync.
    CreateFsync,
    /// Overwrite a random block of the file opened with O_DSYNC; the write is
    /// the sync.
    OverwriteDsync,
    /// The same with O_SYNC.
    OverwriteSync,
    /// Overwrite a random block by pwritev2 with RWF_DSYNC, which is the sync.
    OverwriteRwfDsync,
    /// The same with RWF_SYNC.
    OverwriteRwfSync,
    /// Overwrite a random block, then fsync by io_uring.
    OverwriteUringFsync,
    /// Store to a random block of a shared mapping, then msync.
    OverwriteMsync,
    /// Overwrite a random block, then sync_file_range: neither metadata nor the
    /// drive's cache.
    OverwriteRange,
}

impl Kind {
    fn reads(self) -> bool {
        matches!(
            self,
            Self::Randread | Self::RandreadHit | Self::RandreadMmap | Self::Seqread
        )
    }

    /// How it writes, if the write is the sync.
    pub(crate) fn synced_write(self) -> Option<SyncedWrite> {
        Some(match self {
            Self::OverwriteSync => SyncedWrite::OpenSync,
            Self::OverwriteDsync => SyncedWrite::OpenDsync,
            Self::OverwriteRwfSync => SyncedWrite::RwfSync,
            Self::OverwriteRwfDsync => SyncedWrite::RwfDsync,
            _ => return None,
        })
    }

    /// Whether it overwrites and syncs metadata, too.
    pub(crate) fn overwrites_and_commits(self) -> bool {
        matches!(
            self,
            Self::OverwriteFsync
                | Self::OverwriteSync
                | Self::OverwriteRwfSync
                | Self::OverwriteUringFsync
        )
    }

    fn appends(self) -> bool {
        matches!(self, Self::AppendFsync | Self::AppendFdatasync)
    }
}

/// What counts as the operation of a writing workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The fsync or fdatasync call alone.
    Sync,
    /// The write and the call.
    All,
}

/// One workload.
#[derive(Debug, Clone, clap::Args)]
pub struct Work {
    /// What to do.
    pub kind: Kind,
    /// File (or block device) to work on.
    #[arg(long)]
    pub file: PathBuf,
    /// Bytes of it to work on [default: all of it].
    #[arg(long)]
    pub size: Option<u64>,
    /// Block size in bytes.
    #[arg(long, default_value_t = 4096)]
    pub bs: u32,
    /// Measured operations.
    #[arg(long, default_value_t = 1000)]
    pub ops: u32,
    /// Operations before those.
    #[arg(long, default_value_t = 100)]
    pub warmup: u32,
    /// Seed of the random offsets.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Go around the page cache (O_DIRECT).
    #[arg(long)]
    pub direct: bool,
    /// Opt the file in to the asynchronous I/O stack.
    #[arg(long)]
    pub opt_in: bool,
    /// What counts as the operation of a writing workload [default: sync; where the
    /// write is the sync, that].
    #[arg(long)]
    pub mark: Option<Mark>,
    /// Threads that do it at once, each as often, to the files FILE.0, FILE.1
    /// and so on [default: one, to FILE].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: Option<u32>,
}

/// What a workload took; printed as one line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkResult {
    /// What was done.
    pub workload: Kind,
    /// Measured operations, of all threads together.
    pub ops: u32,
    /// Bytes per operation.
    pub bs: u32,
    /// Wall-clock time of all measured operations, ns: from the first thread's
    /// begin to the last one's end.
    pub elapsed_ns: u64,
    /// Mean latency of the marked operation, ns.
    pub lat_mean_ns: f64,
    /// Median of it, ns.
    pub lat_p50_ns: u64,
    /// 99th percentile of it, ns.
    pub lat_p99_ns: u64,
}

/// Why a workload could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// A system call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel under the file knows no asynchronous I/O stack.
    #[error("{0}: this kernel or file system has no asynchronous I/O stack to opt in to")]
    NotSupported(PathBuf),
    /// The numbers given make no sense together.
    #[error("{0}")]
    Invalid(String),
}

type Result<T> = std::result::Result<T, WorkError>;

/// The measured operations of one thread.
struct Window {
    /// Latencies of the marked operations, ns.
    latency: Vec<u64>,
    start: Instant,
    end: Instant,
}

/// Marks the window of all threads: from the first one's begin to the last one's end.
struct Marks {
    begun: AtomicBool,
    left: AtomicU32,
}

impl Marks {
    fn begin(&self) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            mark::<{ marker::WINDOW_BEGIN }>();
        }
    }

    fn end(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            mark::<{ marker::WINDOW_END }>();
        }
    }
}

impl Work {
    /// Runs the workload. Buffered reads drop the file from the page cache
    /// first, so that each one reaches the drive.
    pub fn run(&self) -> Result<WorkResult> {
        let bs = self.check()?;
        let threads = self.threads.unwrap_or(1);
        let Some(ops) = self.ops.checked_mul(threads) else {
            return Err(WorkError::Invalid("too many --ops".to_owned()));
        };
        let marks = Marks {
            begun: AtomicBool::new(false),
            left: AtomicU32::new(threads),
        };
        let windows = together(threads as usize, |number, begin| {
            self.of_thread(number).window(bs, begin, &marks)
        });
        let windows = self.at("start threads for", windows)?;
        let windows: Vec<Window> = windows.into_iter().collect::<Result<_>>()?;

        let start = windows.iter().map(|window| window.start).min();
        let end = windows.iter().map(|window| window.end).max();
        let elapsed = start.zip(end).map(|(start, end)| end - start);
        let mut latency: Vec<u64> = windows.into_iter().flat_map(|w| w.latency).collect();
        latency.sort_unstable();
        Ok(WorkResult {
            workload: self.kind,
            ops,
            bs: self.bs,
            elapsed_ns: nanoseconds(elapsed.unwrap_or_default()),
            lat_mean_ns: mean(&latency),
            lat_p50_ns: percentile(&latency, 50),
            lat_p99_ns: percentile(&latency, 99),
        })
    }

    /// What one of the threads does: the same elsewhere.
    fn of_thread(&self, number: usize) -> Self {
        let mut work = self.clone();
        if self.threads.is_some() {
            work.file = self.file.with_added_extension(number.to_string());
            work.seed = self.seed.wrapping_add(number as u64);
        }
        work
    }

    /// All operations of one thread, with blocks of `bs` bytes; calls `begin`
    /// before those that are measured.
    fn window(&self, bs: usize, begin: Begin<'_>, marks: &Marks) -> Result<Window> {
        let total = u64::from(self.ops) + u64::from(self.warmup);
        let file = self.open()?;
        let blocks = self.blocks(&file, total)?;
        if self.opt_in {
            opt_in(&self.file, &file)?;
        }
        if self.kind.reads() && !self.direct {
            self.drop_cache(&file)?;
        }
        if matches!(self.kind, Kind::Randread | Kind::RandreadHit) {
            // As fio does: no readahead heuristics at every read.
            self.advise(&file, libc::POSIX_FADV_RANDOM)?;
        }
        let mapping = self.map(&file, blocks)?;

        let permutation = Permutation::new(blocks, self.seed);
        let end = self.len(&file)?;
        let offset = |op: u64| {
            let block = match self.kind {
                Kind::Randread
                | Kind::RandreadHit
                | Kind::RandreadMmap
                | Kind::OverwriteFdatasync
                | Kind::OverwriteFsync
                | Kind::OverwriteDsync
                | Kind::OverwriteSync
                | Kind::OverwriteRwfDsync
                | Kind::OverwriteRwfSync
                | Kind::OverwriteUringFsync
                | Kind::OverwriteMsync
                | Kind::OverwriteRange => permutation.at(op),
                Kind::CreateFsync => 0,
                Kind::Seqread => op,
                Kind::AppendFsync | Kind::AppendFdatasync => return end + op * u64::from(self.bs),
            };
            block * u64::from(self.bs)
        };
        let mut writer = self.at(
            "map",
            Writer::new(self.kind, &self.file, &file, blocks * u64::from(self.bs)),
        )?;
        let mut buffer = AlignedBuffer::new(bs);
        // Not zeros: those would be mapped at first touch, amid the measurement.
        let mut latency = vec![u64::MAX; usize::try_from(self.ops).unwrap_or(usize::MAX)];

        if self.kind == Kind::RandreadHit {
            for op in 0..total {
                self.operate(&file, &mut writer, offset(op), op, buffer.bytes())?;
            }
        }
        let mut operate = |op| match &mapping {
            Some(mapping) => Ok(touch(mapping, offset(op))),
            None => self.operate(&file, &mut writer, offset(op), op, buffer.bytes()),
        };
        for op in 0..u64::from(self.warmup) {
            operate(op)?;
        }
        begin();
        let start = Instant::now();
        marks.begin();
        for (op, latency) in (u64::from(self.warmup)..).zip(&mut latency) {
            *latency = operate(op)?;
        }
        marks.end();
        let end = Instant::now();
        self.at("remove files beside", writer.clean_up())?;
        Ok(Window {
            latency,
            start,
            end,
        })
    }

    /// One operation at `offset`; the latency of its marked part in ns.
    fn operate(
        &self,
        file: &File,
        writer: &mut Writer<'_>,
        offset: u64,
        op: u64,
        buffer: &mut [u8],
    ) -> Result<u64> {
        if self.kind.reads() {
            let start = Instant::now();
            mark::<{ marker::OP_BEGIN }>();
            let read = file.read_at(buffer, offset);
            mark::<{ marker::OP_END }>();
            let latency = nanoseconds(start.elapsed());
            let read = self.at("read", read)?;
            return self.whole("read", read, buffer.len(), latency);
        }
        // Each block differs, so that nothing below can take one for another.
        for (byte, stamp) in buffer.iter_mut().zip((op ^ self.seed).to_le_bytes()) {
            *byte = stamp;
        }
        self.at("look at", writer.prepare())?;
        let (written, synced, latency);
        if self.mark == Some(Mark::All) || self.kind.synced_write().is_some() {
            let start = Instant::now();
            mark::<{ marker::OP_BEGIN }>();
            written = writer.write(op, offset, buffer);
            synced = writer.sync(offset, buffer.len());
            mark::<{ marker::OP_END }>();
            latency = nanoseconds(start.elapsed());
        } else {
            written = writer.write(op, offset, buffer);
            let start = Instant::now();
            mark::<{ marker::OP_BEGIN }>();
            synced = writer.sync(offset, buffer.len());
            mark::<{ marker::OP_END }>();
            latency = nanoseconds(start.elapsed());
        }
        let written = self.at("write", written)?;
        self.at("sync", synced)?;
        self.whole("write", written, buffer.len(), latency)
    }

    fn whole(&self, action: &'static str, done: usize, wanted: usize, latency: u64) -> Result<u64> {
        if done == wanted {
            return Ok(latency);
        }
        let source = io::Error::other(format!("{done} of {wanted} bytes"));
        self.at(action, Err(source))
    }

    /// Checks what needs no file; the block size.
    fn check(&self) -> Result<usize> {
        let invalid = |what: &str| Err(WorkError::Invalid(what.to_owned()));
        if self.ops == 0 {
            return invalid("--ops 0 measures nothing");
        }
        if self.bs == 0 {
            return invalid("--bs 0 moves nothing");
        }
        if self.direct && !self.bs.is_multiple_of(512) {
            return invalid("--direct wants a --bs that is a multiple of 512");
        }
        if self.kind == Kind::RandreadMmap && (self.direct || self.bs as usize != PAGE) {
            return invalid(
                "randread-mmap is of pages, and of the page cache: no --bs, no --direct",
            );
        }
        if self.kind.reads() && self.mark.is_some() {
            return invalid("--mark is for writing workloads");
        }
        if self.opt_in && self.kind == Kind::CreateFsync {
            return invalid("--opt-in is for one file, not for those that are made");
        }
        usize::try_from(self.bs).or_else(|_| invalid("--bs is too large"))
    }

    fn open(&self) -> Result<File> {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        if !self.kind.reads() {
            let opened = durable::open(self.kind, &self.file, self.kind.appends(), flags);
            return self.at("open", opened);
        }
        let opened = File::options()
            .read(true)
            .custom_flags(flags)
            .open(&self.file);
        self.at("open", opened)
    }

    /// Length of the file or block device in bytes.
    fn len(&self, file: &File) -> Result<u64> {
        let metadata = self.at("look at", file.metadata())?;
        if !metadata.file_type().is_block_device() {
            return Ok(metadata.len());
        }
        use std::io::Seek;
        let mut file = file;
        self.at("find the size of", file.seek(io::SeekFrom::End(0)))
    }

    /// Whole blocks to work on; enough of them for `total` operations.
    fn blocks(&self, file: &File, total: u64) -> Result<u64> {
        if self.kind.appends() || self.kind == Kind::CreateFsync {
            return Ok(1);
        }
        let len = self.len(file)?;
        let size = self.size.unwrap_or(len);
        if size > len {
            return Err(WorkError::Invalid(format!(
                "{} has {len} bytes, not the {size} of --size",
                self.file.display()
            )));
        }
        let blocks = size / u64::from(self.bs);
        if blocks < total {
            return Err(WorkError::Invalid(format!(
                "{} has {blocks} blocks of {} bytes, too few for {total} operations",
                self.file.display(),
                self.bs
            )));
        }
        Ok(blocks)
    }

    /// Maps the blocks, for a workload that touches them.
    fn map(&self, file: &File, blocks: u64) -> Result<Option<Mapping>> {
        if self.kind != Kind::RandreadMmap {
            return Ok(None);
        }
        let len = usize::try_from(blocks * PAGE as u64).unwrap_or(usize::MAX);
        let mapping = Mapping::new(file, 0, len, Access::Read);
        let mapping = self.at("map", mapping)?;
        self.at("advise on", mapping.advise_random())?;
        Ok(Some(mapping))
    }

    /// Tells the kernel how the whole file will be used.
    fn advise(&self, file: &File, advice: libc::c_int) -> Result<()> {
        self.at("advise on", advise(file, advice))
    }

    fn drop_cache(&self, file: &File) -> Result<()> {
        match file.sync_all() {
            // A file system that is never written.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            synced => self.at("sync", synced)?,
        }
        self.advise(file, libc::POSIX_FADV_DONTNEED)?;
        let path = Path::new("/proc/sys/vm/drop_caches");
        fs::write(path, "3").map_err(|source| WorkError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn at<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T> {
        result.map_err(|source| WorkError::Io {
            action,
            path: self.file.clone(),
            source,
        })
    }
}

/// Touches a page, the operation; its latency in ns.
fn touch(mapping: &Mapping, offset: u64) -> u64 {
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let start = Instant::now();
    mark::<{ marker::OP_BEGIN }>();
    let byte = mapping.byte(at);
    mark::<{ marker::OP_END }>();
    std::hint::black_box(byte);
    nanoseconds(start.elapsed())
}

/// Tells the kernel how the whole of `file` will be used.
pub(crate) fn advise(file: &File, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: Plain system call on an open descriptor.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Opts `file`, open at `path`, in to the asynchronous I/O stack.
pub(crate) fn opt_in(path: &Path, file: &File) -> Result<()> {
    let on: u32 = 1;
    // SAFETY: The descriptor is open, and the kernel reads one `__u32` from the
    // pointer, which lives through the call.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::Ioctl::from(EXT4_IOC_SET_AIOS),
            &raw const on,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => Err(WorkError::NotSupported(path.to_owned())),
        _ => Err(WorkError::Io {
            action: "opt in",
            path: path.to_owned(),
            source,
        }),
    }
}

/// A buffer aligned for `O_DIRECT`.
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0xa5; len + DIRECT_ALIGN];
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN);
        Self { memory, start, len }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A seeded permutation of `0..n`: an invertible mix of the smallest power of
/// two that holds `n`, walked until it lands below `n`.
#[derive(Debug)]
pub(crate) struct Permutation {
    n: u64,
    bits: u32,
    keys: [u64; 3],
}

impl Permutation {
    pub(crate) fn new(n: u64, seed: u64) -> Self {
        let bits = (u64::BITS - n.saturating_sub(1).leading_zeros()).max(2);
        let mut state = seed;
        let keys = [(); 3].map(|()| split_mix(&mut state));
        Self { n, bits, keys }
    }

    /// Element `i` of the permutation; `i < n`.
    pub(crate) fn at(&self, i: u64) -> u64 {
        let mut x = i;
        loop {
            x = self.mix(x);
            if x < self.n {
                return x;
            }
        }
    }

    /// A bijection on numbers of `bits` bits: adding, multiplying with an odd
    /// number and xor with the own upper half can each be undone.
    fn mix(&self, mut x: u64) -> u64 {
        let mask = u64::MAX >> (u64::BITS - self.bits);
        for key in self.keys {
            x = x.wrapping_add(key).wrapping_mul(key | 1) & mask;
            x ^= x >> self.bits.div_ceil(2);
        }
        x
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn mean(values: &[u64]) -> f64 {
    let sum: u128 = values.iter().map(|&value| u128::from(value)).sum();
    sum as f64 / values.len().max(1) as f64
}

/// Percentile `p` of sorted values by nearest rank; 0 of none.
fn percentile(sorted: &[u64], p: usize) -> u64 {
    let rank = (sorted.len() * p).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn work(kind: Kind, file: &Path) -> Work {
        Work {
            kind,
            file: file.to_owned(),
            size: None,
            bs: 4096,
            ops: 8,
            warmup: 2,
            seed: 7,
            direct: false,
            opt_in: false,
            mark: None,
            threads: None,
        }
    }

    fn scratch(name: &str, blocks: usize) -> PathBuf {
        let path = std::env::temp_dir().join(format!("aios-guest-{}-{name}", std::process::id()));
        fs::write(&path, vec![1; blocks * 4096]).unwrap();
        path
    }

    #[test]
    fn test_permutation_visits_each_block_once() {
        for n in [1, 2, 3, 10, 255, 256, 257, 5000] {
            let permutation = Permutation::new(n, 42);
            let seen: HashSet<u64> = (0..n).map(|i| permutation.at(i)).collect();
            assert_eq!(seen.len() as u64, n);
            assert!(seen.iter().all(|&block| block < n));
        }
    }

    #[test]
    fn test_permutation_is_seeded_and_not_sequential() {
        let walk = |seed| {
            let permutation = Permutation::new(65536, seed);
            (0..1000).map(|i| permutation.at(i)).collect::<Vec<_>>()
        };
        assert_eq!(walk(1), walk(1));
        assert_ne!(walk(1), walk(2));
        let steps = walk(1)
            .windows(2)
            .filter(|pair| pair[1] == pair[0] + 1)
            .count();
        assert!(steps < 5, "{steps} sequential steps");
        let odd = walk(1).iter().filter(|&block| block % 2 == 1).count();
        assert!((400..600).contains(&odd), "{odd} odd blocks");
    }

    #[test]
    fn test_percentile_takes_nearest_rank() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&values, 50), 50);
        assert_eq!(percentile(&values, 99), 99);
        assert_eq!(percentile(&[5], 99), 5);
        assert_eq!(percentile(&[], 99), 0);
    }

    #[test]
    fn test_set_aios_has_the_number_of_iow_f_48() {
        assert_eq!(EXT4_IOC_SET_AIOS, 0x4004_6630);
    }

    #[test]
    fn test_run_overwrite_changes_as_many_blocks_as_operations() {
        let path = scratch("overwrite", 16);
        let result = work(Kind::OverwriteFdatasync, &path).run().unwrap();
        let changed = fs::read(&path)
            .unwrap()
            .chunks(4096)
            .filter(|block| block.iter().any(|&byte| byte != 1))
            .count();
        fs::remove_file(&path).unwrap();
        assert_eq!(changed, 10);
        assert_eq!(result.ops, 8);
        assert!(result.lat_p50_ns <= result.lat_p99_ns);
    }

    #[test]
    fn test_run_threads_have_files_and_seeds_of_their_own() {
        let files = ["threads.0", "threads.1", "threads.2"].map(|name| scratch(name, 16));
        let mut work = work(Kind::OverwriteFsync, &files[0].with_extension(""));
        work.threads = Some(3);
        let result = work.run().unwrap();
        let contents = files.each_ref().map(|file| fs::read(file).unwrap());
        // One of them cannot, and the others do not wait for it.
        fs::remove_file(&files[1]).unwrap();
        let failed = work.run();
        for file in [&files[0], &files[2]] {
            fs::remove_file(file).unwrap();
        }
        assert_eq!(result.ops, 24);
        for content in &contents {
            let changed = content.chunks(4096).filter(|block| block != &[1; 4096]);
            assert_eq!(changed.count(), 10);
        }
        assert_ne!(contents[0], contents[1]);
        let error = failed.unwrap_err().to_string();
        assert!(error.contains("threads.1"), "{error}");
    }

    #[test]
    fn test_run_append_grows_the_file() {
        let path = scratch("append", 1);
        work(Kind::AppendFsync, &path).run().unwrap();
        work(Kind::AppendFdatasync, &path).run().unwrap();
        let len = fs::metadata(&path).unwrap().len();
        fs::remove_file(&path).unwrap();
        assert_eq!(len, 21 * 4096);
    }

    #[test]
    fn test_run_every_overwrite_reaches_the_file() {
        for kind in [
            Kind::OverwriteDsync,
            Kind::OverwriteMsync,
            Kind::OverwriteRange,
        ] {
            let path = scratch(&format!("{kind:?}"), 16);
            work(kind, &path).run().unwrap();
            let text = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            let changed = text.chunks(4096).filter(|block| block[8] == 0xa5).count();
            assert_eq!((changed, text.len()), (10, 16 * 4096), "{kind:?}");
        }
    }

    #[test]
    fn test_run_create_leaves_no_files_behind() {
        let dir = std::env::temp_dir().join(format!("aios-guest-{}-create", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("file");
        fs::write(&path, "left alone").unwrap();
        let result = work(Kind::CreateFsync, &path).run();
        let names = fs::read_dir(&dir).unwrap().count();
        let text = fs::read(&path).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((result.unwrap().ops, names), (8, 1));
        assert_eq!(text, b"left alone");
    }

    #[test]
    fn test_run_too_small_file_returns_error() {
        let path = scratch("small", 9);
        let error = work(Kind::OverwriteFsync, &path).run().unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(error.to_string().contains("too few"), "{error}");
    }

    #[test]
    fn test_run_missing_file_returns_error() {
        let error = work(Kind::Randread, Path::new("/nonexistent/file"))
            .run()
            .unwrap_err();
        assert!(error.to_string().starts_with("cannot open"), "{error}");
    }

    #[test]
    fn test_run_opt_in_without_the_stack_returns_error() {
        // On tmpfs no kernel has it.
        let path = Path::new("/dev/shm").join(format!("aios-guest-{}", std::process::id()));
        fs::write(&path, vec![1; 16 * 4096]).unwrap();
        let mut work = work(Kind::OverwriteFsync, &path);
        work.opt_in = true;
        let error = work.run().unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(matches!(error, WorkError::NotSupported(_)), "{error}");
    }

    #[test]
    fn test_run_mark_on_reads_returns_error() {
        let mut work = work(Kind::Seqread, Path::new("/dev/null"));
        work.mark = Some(Mark::All);
        assert!(matches!(work.run(), Err(WorkError::Invalid(_))));
    }
}
