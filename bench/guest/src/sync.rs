// SPDX-License-Identifier: MIT
//! Synced changes of one file that can be checked after a crash.
//!
//! Every change and the content after it follow from a seed, so `--verify`
//! needs nothing but the same options. The crash is ext4's own: its shutdown
//! ioctl stops the file system on the spot, journal and all, and leaves the
//! drive as a reset of the machine would.

use crate::mapping::{
    Access,
    Mapping, //
};
use crate::synced::{
    Ring,
    SyncedWrite, //
};
use crate::work::{
    WorkError,
    opt_in,
    split_mix, //
};
use serde::Serialize;
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
use std::path::PathBuf;

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: u32 = (2 << 30) | (4 << 16) | ((b'X' as u32) << 8) | 125;

/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: do not even write the log.
const NO_LOG_FLUSH: u32 = 2;

/// A file does not grow beyond this, in bytes.
const MAX_SIZE: usize = 256 << 10;

/// The longest single change, in bytes.
const MAX_CHANGE: usize = 9000;

/// How a change is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// write(2), fsync(2).
    Fsync,
    /// write(2), fdatasync(2).
    Fdatasync,
    /// write(2) on a file opened with `O_DSYNC`.
    Dsync,
    /// write(2) on a file opened with `O_SYNC`.
    OpenSync,
    /// pwritev2(2) with `RWF_DSYNC`.
    RwfDsync,
    /// pwritev2(2) with `RWF_SYNC`.
    RwfSync,
    /// write(2), fsync by io_uring.
    UringFsync,
    /// write(2), fdatasync by io_uring.
    UringFdatasync,
    /// Stores to a shared mapping, msync(2) with `MS_SYNC`.
    Msync,
}

impl How {
    /// How it writes, if the write is the sync.
    fn synced_write(self) -> Option<SyncedWrite> {
        Some(match self {
            Self::OpenSync => SyncedWrite::OpenSync,
            Self::Dsync => SyncedWrite::OpenDsync,
            Self::RwfSync => SyncedWrite::RwfSync,
            Self::RwfDsync => SyncedWrite::RwfDsync,
            _ => return None,
        })
    }
}

/// Options of `aios-guest sync`.
#[derive(clap::Args, Debug, Clone)]
pub struct Sync {
    /// How to make changes durable.
    pub how: How,
    /// File to change; made anew.
    #[arg(long)]
    pub file: PathBuf,
    /// Number of changes.
    #[arg(long, default_value_t = 20)]
    pub ops: u64,
    /// Seed of the changes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Opt the file in to the asynchronous I/O stack.
    #[arg(long)]
    pub opt_in: bool,
    /// Shut the file system down after the last change.
    #[arg(long)]
    pub shutdown: bool,
    /// Change nothing: check that the file is as these changes left it.
    #[arg(long, conflicts_with_all = ["opt_in", "shutdown", "failing"])]
    pub verify: bool,
    /// Change the first block of the file as it is; the sync must fail with
    /// EIO or ENODATA, and fail once: an error of the data is reported to a file
    /// once.
    #[arg(long)]
    pub failing: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct SyncResult {
    /// How it was synced.
    pub how: How,
    /// Size of the file in bytes.
    pub size: usize,
}

type Result<T> = std::result::Result<T, WorkError>;

impl Sync {
    /// Does what the options say.
    pub fn run(&self) -> Result<SyncResult> {
        if self.failing {
            return self.fail();
        }
        let size = if self.verify {
            self.check()?
        } else {
            self.change()?
        };
        Ok(SyncResult {
            how: self.how,
            size,
        })
    }

    /// Makes the changes, each durable before the next.
    fn change(&self) -> Result<usize> {
        let file = self.open(true)?;
        if self.how == How::Msync {
            // A mapping cannot grow a file.
            self.at("resize", file.set_len(MAX_SIZE as u64))?;
            self.at("sync", file.sync_all())?;
        }
        let mut ring = self.ring()?;
        let mut model = self.model();
        for _ in 0..self.ops {
            let (offset, bytes) = model.next();
            if self.how == How::Msync {
                self.at("store to", store(&file, offset, bytes))?;
                continue;
            }
            // Asked for its times, the file gets new ones from the next write,
            // so that fsync has metadata to commit.
            self.at("look at", file.metadata())?;
            let offset = offset as u64;
            if let Some(how) = self.how.synced_write() {
                self.at("write", how.write_all_at(&file, bytes, offset))?;
                continue;
            }
            self.at("write", file.write_all_at(bytes, offset))?;
            self.at("sync", self.sync(&file, &mut ring))?;
        }
        if self.shutdown {
            self.at("shut down the file system of", shut_down(&file))?;
        }
        Ok(model.content.len())
    }

    /// Compares the file with what the changes make.
    fn check(&self) -> Result<usize> {
        let mut model = self.model();
        for _ in 0..self.ops {
            model.next();
        }
        let found = self.at("read", fs::read(&self.file))?;
        if found.len() != model.content.len() {
            return Err(WorkError::Invalid(format!(
                "{}: {} bytes, not {}",
                self.file.display(),
                found.len(),
                model.content.len()
            )));
        }
        match found.iter().zip(&model.content).position(|(a, b)| a != b) {
            None => Ok(found.len()),
            Some(at) => Err(WorkError::Invalid(format!(
                "{}: byte {at} of {} is not what was synced last",
                self.file.display(),
                found.len()
            ))),
        }
    }

    /// A change whose sync must fail, once.
    fn fail(&self) -> Result<SyncResult> {
        let file = self.open(false)?;
        self.at("look at", file.metadata())?;
        self.at("write", file.write_all_at(&[0x5a; 4096], 0))?;
        let mut ring = self.ring()?;
        let mut sync = || self.sync(&file, &mut ring);
        match sync().map_err(|error| error.raw_os_error()) {
            // The latter if the drive says that its medium is bad.
            Err(Some(libc::EIO | libc::ENODATA)) => {}
            other => {
                return Err(WorkError::Invalid(format!(
                    "{}: the sync gave {other:?} where EIO is due",
                    self.file.display()
                )));
            }
        }
        self.at("sync again", sync())?;
        Ok(SyncResult {
            how: self.how,
            size: 4096,
        })
    }

    fn ring(&self) -> Result<Option<Ring>> {
        match self.how {
            How::UringFsync | How::UringFdatasync => {
                self.at("make a ring for", Ring::new().map(Some))
            }
            _ => Ok(None),
        }
    }

    /// The call that makes durable what was written.
    fn sync(&self, file: &File, ring: &mut Option<Ring>) -> io::Result<()> {
        match (self.how, ring) {
            (How::UringFdatasync, Some(ring)) => ring.fsync(file, true),
            (_, Some(ring)) => ring.fsync(file, false),
            (How::Fdatasync, None) => file.sync_data(),
            _ => file.sync_all(),
        }
    }

    fn open(&self, anew: bool) -> Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(anew).truncate(anew);
        if let Some(how) = self.how.synced_write() {
            options.custom_flags(how.open_flags());
        }
        let file = self.at("open", options.open(&self.file))?;
        if self.opt_in {
            opt_in(&self.file, &file)?;
        }
        Ok(file)
    }

    fn model(&self) -> Model {
        Model {
            state: self.seed,
            // See `change`.
            content: match self.how {
                How::Msync => vec![0; MAX_SIZE],
                _ => Vec::new(),
            },
        }
    }

    fn at<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T> {
        result.map_err(|source| WorkError::Io {
            action,
            path: self.file.clone(),
            source,
        })
    }
}

/// The file as it should be.
struct Model {
    state: u64,
    content: Vec<u8>,
}

impl Model {
    /// Makes the next change; where it is and its bytes. Half of the changes
    /// append while there is room; some leave a hole before them.
    fn next(&mut self) -> (usize, &[u8]) {
        let len = 1 + self.below(MAX_CHANGE);
        let end = self.content.len();
        let offset = match self.below(8) {
            _ if end + len > MAX_SIZE => self.below(MAX_SIZE - len),
            0..=3 => end,
            4 => end + self.below(3 * MAX_CHANGE),
            _ => self.below(end + 1),
        };
        let offset = offset.min(MAX_SIZE - len);
        if end < offset + len {
            self.content.resize(offset + len, 0);
        }
        let state = &mut self.state;
        let bytes = &mut self.content[offset..offset + len];
        bytes.fill_with(|| (split_mix(state) >> 56) as u8);
        (offset, bytes)
    }

    /// A number below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        (split_mix(&mut self.state) % n as u64) as usize
    }
}

/// Stores `bytes` at `offset` of a shared mapping, and syncs them.
fn store(file: &File, offset: usize, bytes: &[u8]) -> io::Result<()> {
    let mut mapping = Mapping::new(file, 0, MAX_SIZE, Access::Shared)?;
    mapping.write(offset, bytes);
    mapping.sync()
}

/// Stops the file system of `file` without writing anything more.
fn shut_down(file: &File) -> io::Result<()> {
    let flags = NO_LOG_FLUSH;
    // SAFETY: The descriptor is open, and the kernel reads one `__u32` from the
    // pointer, which lives through the call.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::Ioctl::from(EXT4_IOC_SHUTDOWN),
            &raw const flags,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn sync(how: How) -> Sync {
        let name = format!("aios-sync-{}-{how:?}", std::process::id());
        Sync {
            how,
            file: std::env::temp_dir().join(name),
            ops: 30,
            seed: 3,
            opt_in: false,
            shutdown: false,
            verify: false,
            failing: false,
        }
    }

    #[test]
    fn test_verify_accepts_what_was_changed() {
        for &how in How::value_variants() {
            let mut sync = sync(how);
            let size = sync.run().unwrap().size;
            sync.verify = true;
            let result = sync.run();
            fs::remove_file(&sync.file).unwrap();
            assert_eq!(result.unwrap().size, size, "{how:?}");
            assert!((1..=MAX_SIZE).contains(&size));
        }
    }

    #[test]
    fn test_verify_lost_change_returns_error() {
        let mut sync = sync(How::Fsync);
        sync.file.set_extension("lost");
        sync.ops = 29;
        sync.run().unwrap();
        sync.ops = 30;
        sync.verify = true;
        let result = sync.run();
        fs::remove_file(&sync.file).unwrap();
        assert!(matches!(result, Err(WorkError::Invalid(_))));
    }

    #[test]
    fn test_failing_sync_that_succeeds_returns_error() {
        let mut sync = sync(How::Fsync);
        sync.file.set_extension("good");
        fs::write(&sync.file, [0; 4096]).unwrap();
        sync.failing = true;
        let result = sync.run();
        fs::remove_file(&sync.file).unwrap();
        assert!(result.unwrap_err().to_string().contains("EIO is due"));
    }

    #[test]
    fn test_shutdown_has_the_number_of_ior_x_125() {
        assert_eq!(EXT4_IOC_SHUTDOWN, 0x8004_587d);
    }
}
