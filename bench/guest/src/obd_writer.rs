// SPDX-License-Identifier: MIT
//! A writer of a writable overlaybd disk, as small as can be: what the driver has
//! frozen becomes a plain layer in a file, which is stacked. Its log is written over again and
//! again, and never read: that is as good as any until the power fails.

use crate::mapping::{
    Access,
    Mapping,
    PAGE, //
};
use obd_core::record::{
    Hash,
    Header, //
};
use serde::Serialize;
use std::fs::{
    self,
    File, //
};
use std::io::{
    self,
    BufWriter,
    Write, //
};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Command,
    Stdio, //
};
use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::thread;
use std::time::Duration;

/// Sectors of a page.
const SECTORS: u64 = PAGE as u64 / 512;

/// Most sectors of a segment that are whole pages.
const LONGEST: u64 = (1 << 14) - SECTORS;

const NODE: &str = "/dev/obd-writer";

/// Makes layers of what is written to `/dev/obdN`.
#[derive(clap::Args, Debug, Clone)]
pub struct ObdWriter {
    /// N.
    #[arg(long)]
    pub number: u32,
    /// Where layers go.
    #[arg(long)]
    pub dir: PathBuf,
    /// Ends after so many; else when the disk does.
    #[arg(long)]
    pub commits: Option<u64>,
    /// Waits so long with each before it is stacked.
    #[arg(long, default_value_t = 0)]
    pub hold_ms: u64,
    /// So many fail first.
    #[arg(long, default_value_t = 0)]
    pub fail: u64,
    /// Has what flushes wait for written to a log, so often before there is a layer of that.
    #[arg(long)]
    pub log: Option<u64>,
    /// Has a second thread make calls of its own meanwhile, which log, too, or are refused.
    #[arg(long, requires = "log")]
    pub meddle: bool,
    /// Makes calls that are wrong, and expects that each is refused, and ends.
    #[arg(long)]
    pub hostile: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct WriterResult {
    /// Layers that were stacked.
    pub commits: u64,
    /// Records of the log.
    pub logged: u64,
    /// Extents in them.
    pub extents: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// How often each reason was given.
    pub reasons: [u64; 5],
}

/// Why a writer failed.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Something could not be done.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A call that is wrong was not refused as it should be.
    #[error("{call}: {got} instead of error {expected}")]
    Accepted {
        /// Which call.
        call: &'static str,
        /// What it gave.
        got: String,
        /// What it should have failed with.
        expected: i32,
    },
    /// What the driver says does not fit.
    #[error("extents of {there} bytes in a mapping of {bytes}")]
    Extents {
        /// Bytes in extents.
        there: u64,
        /// Bytes of the mapping.
        bytes: u64,
    },
}

type Result<T> = std::result::Result<T, WriterError>;

trait Doing<T> {
    fn doing(self, action: &'static str) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str) -> Result<T> {
        self.map_err(|source| WriterError::Io { action, source })
    }
}

#[repr(C)]
#[derive(Default)]
struct Bind {
    number: u32,
    flags: u32,
    size: u64,
    memory: u64,
    layers: u64,
}

#[repr(C)]
#[derive(Default)]
struct Next {
    timeout_ms: u32,
    reason: u32,
    id: u64,
    extents: u64,
    bytes: u64,
}

#[repr(C)]
struct Extents {
    id: u64,
    first: u64,
    nr: u64,
    to: *mut Extent,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    block: u64,
    blocks: u32,
    zero: u32,
}

#[repr(C)]
struct Stack {
    id: u64,
    first: u32,
    nr: u32,
    path: *const u8,
}

#[repr(C)]
struct Failed {
    id: u64,
    errno: i32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Log {
    fd: u32,
    timeout_ms: u32,
    log: u64,
    seq: u64,
    sealed: u64,
    at: u64,
    end: u64,
    again: u64,
    enough: u64,
    ns: u64,
    stop: u32,
    errno: i32,
}

#[repr(C)]
#[derive(Default)]
struct Seal {
    flags: u32,
    reserved: u32,
    id: u64,
    extents: u64,
    bytes: u64,
}

/// What the driver lends: a frozen layer, or a sealed one.
struct Lent {
    id: u64,
    extents: u64,
    bytes: u64,
}

/// Number of a call that takes a `T`, in directions `way`.
const fn call<T>(way: u64, number: u64) -> libc::c_ulong {
    way << 30 | (size_of::<T>() as u64) << 16 | 0x4f << 8 | number
}

const BIND: libc::c_ulong = call::<Bind>(3, 0xb0);
const NEXT: libc::c_ulong = call::<Next>(3, 0xb1);
const EXTENTS: libc::c_ulong = call::<Extents>(1, 0xb2);
const STACK: libc::c_ulong = call::<Stack>(1, 0xb3);
const FAILED: libc::c_ulong = call::<Failed>(1, 0xb4);
const LOG: libc::c_ulong = call::<Log>(3, 0xb5);
const SEAL: libc::c_ulong = call::<Seal>(3, 0xb6);

/// [`Next::reason`] if somebody waits for a flush.
const FLUSH: u32 = 3;

/// [`Log::stop`]: it is enough; it is not to be logged; there is to be a layer; it failed.
const IDLE: u32 = 0;
const FROZEN: u32 = 1;
const WANTED: u32 = 2;
const FAILED_TO_LOG: u32 = 3;

/// Bytes of the log, more than a disk of a test has memory.
const LOG_BYTES: u64 = 20 << 20;

/// Calls the driver with `argument`, which it may change.
fn ioctl<T>(file: &File, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    let argument = std::ptr::from_mut(argument);
    // SAFETY: The argument is as long as the request says; what it points to is of
    // who calls this, and lives as long as the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl ObdWriter {
    /// Writes layers until it is enough.
    pub fn run(&self) -> Result<WriterResult> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(NODE)
            .doing("open /dev/obd-writer")?;
        if self.hostile {
            self.hostile(&file)?;
            return Ok(WriterResult::default());
        }
        let mut bind = Bind {
            number: self.number,
            ..Bind::default()
        };
        ioctl(&file, BIND, &mut bind).doing("become the writer")?;
        let frozen = AtomicU64::default();
        thread::scope(|scope| {
            let meddler = || self.meddle(&file, &frozen);
            let meddler = self.meddle.then(|| scope.spawn(meddler));
            let result = self.serve(&file, &bind, &frozen);
            frozen.store(u64::MAX, Ordering::Relaxed);
            if let Some(meddler) = meddler {
                meddler.join().expect("the other thread panicked")?;
            }
            result
        })
    }

    /// Logs whatever is frozen while others do, and tries to stack it, until `frozen`, which one
    /// that is, says that it is enough.
    fn meddle(&self, file: &File, frozen: &AtomicU64) -> Result<()> {
        let log = self.open_log("meddled")?;
        let name = c"/nonexistent".as_ptr().cast();
        loop {
            let id = frozen.load(Ordering::Relaxed);
            if id == u64::MAX {
                return Ok(());
            }
            let mut stack = Stack {
                id,
                first: 0,
                nr: 0,
                path: name,
            };
            let refused = [libc::EBUSY, libc::ESTALE, libc::ENOENT, libc::ESHUTDOWN];
            match ioctl(file, STACK, &mut stack) {
                Err(error) if error.raw_os_error().is_some_and(|it| refused.contains(&it)) => {}
                other => panic!("stack: {other:?}"),
            }
            let mut record = Log {
                timeout_ms: 1,
                ..whole(&log)
            };
            match ioctl(file, LOG, &mut record) {
                Ok(()) => assert_eq!(record.errno, 0),
                Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {}
                other => panic!("log: {other:?}"),
            }
        }
    }

    /// Writes layers of the disk that `bind` tells of; `frozen` is told what is frozen.
    fn serve(&self, file: &File, bind: &Bind, frozen: &AtomicU64) -> Result<WriterResult> {
        let mut layers = bind.layers;
        let mut result = WriterResult::default();
        let mut to_fail = self.fail;
        // What another one has left is older than what is frozen.
        let mut is_sealed = seal(file, 1)?.is_some();
        let log = self.log.map(|_| self.open_log("log")).transpose()?;
        while self.commits.is_none_or(|commits| result.commits < commits) {
            let mut next = Next {
                timeout_ms: 1000,
                ..Next::default()
            };
            match ioctl(file, NEXT, &mut next) {
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ESHUTDOWN) => break,
                    // The other thread may have logged it in between.
                    Some(libc::ETIMEDOUT | libc::EINTR | libc::ESTALE) => continue,
                    _ => return Err(error).doing("wait for a layer"),
                },
            }
            frozen.store(next.id, Ordering::Relaxed);
            if let Some(reason) = result.reasons.get_mut(next.reason as usize) {
                *reason += 1;
            }
            thread::sleep(Duration::from_millis(self.hold_ms));
            if to_fail > 0 {
                to_fail -= 1;
                let mut failed = Failed {
                    id: next.id,
                    errno: libc::ENOSPC,
                    reserved: 0,
                };
                ioctl(file, FAILED, &mut failed).doing("say that it failed")?;
                continue;
            }
            let lent = match (&log, self.log) {
                (Some(log), Some(often)) if next.reason == FLUSH && !is_sealed => {
                    result.logged += 1;
                    let is_wanted = match append(file, log)? {
                        Some(is_wanted) => is_wanted,
                        None if self.meddle => false,
                        None => return Err(io::Error::other("it is not there")).doing("log"),
                    };
                    if !is_wanted && !result.logged.is_multiple_of(often.max(1)) {
                        continue;
                    }
                    seal(file, 0)?
                }
                (None, _) if !is_sealed => Some(Lent {
                    id: next.id,
                    extents: next.extents,
                    bytes: next.bytes,
                }),
                _ => seal(file, 0)?,
            };
            let Some(lent) = lent else { continue };
            if let Some(log) = log.as_ref().filter(|_| next.reason == FLUSH && !is_sealed) {
                // Others flush while the layer is made.
                next.timeout_ms = 20;
                if ioctl(file, NEXT, &mut next).is_ok() && next.reason == FLUSH {
                    append(file, log)?;
                    result.logged += 1;
                }
            }
            is_sealed = false;
            self.commit(file, &lent, bind.size, layers)?;
            layers += 1;
            result.commits += 1;
            result.extents += lent.extents;
            result.bytes += lent.bytes;
        }
        Ok(result)
    }

    /// A new log.
    fn open_log(&self, name: &str) -> Result<File> {
        let log = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.dir.join(name))
            .doing("create a log")?;
        log.set_len(LOG_BYTES).doing("make room in a log")?;
        Ok(log)
    }

    fn commit(&self, file: &File, next: &Lent, size: u64, layers: u64) -> Result<()> {
        // What is mapped is what was asked for last.
        if seal(file, 1)?.is_none() {
            ioctl(file, NEXT, &mut Next::default()).doing("say again what is frozen")?;
        }
        let mut extents = vec![Extent::default(); next.extents as usize];
        // In two parts, as who has little memory does.
        let half = extents.len() / 2;
        for (first, part) in [(0, ..half), (half, ..extents.len() - half)] {
            let mut wanted = Extents {
                id: next.id,
                first: first as u64,
                nr: part.end as u64,
                to: extents[first..].as_mut_ptr(),
            };
            ioctl(file, EXTENTS, &mut wanted).doing("get extents")?;
        }
        let path = self.dir.join(format!("{layers}-{}.layer", next.id));
        write_layer(&path, file, &extents, next.bytes, size)?;
        let mut name = path.as_os_str().as_bytes().to_vec();
        name.push(0);
        let mut stack = Stack {
            id: next.id,
            first: layers as u32,
            nr: 0,
            path: name.as_ptr(),
        };
        ioctl(file, STACK, &mut stack).doing("stack a layer")
    }

    /// Calls that are refused, by a file that is no writer's, then by the writer's.
    fn hostile(&self, file: &File) -> Result<()> {
        let refused = |name, expected, got: io::Result<()>| match got {
            Err(error) if error.raw_os_error() == Some(expected) => Ok(()),
            other => Err(WriterError::Accepted {
                call: name,
                got: format!("{other:?}"),
                expected,
            }),
        };
        let number = self.number;
        let bind = |number, flags| Bind {
            number,
            flags,
            ..Bind::default()
        };
        let mut next = Next::default();
        refused(
            "next of nobody",
            libc::ENOTCONN,
            ioctl(file, NEXT, &mut next),
        )?;
        let map = |file: &File, len, access| Mapping::new(file, 0, len, access).map(drop);
        refused(
            "mmap of nobody",
            libc::ENOTCONN,
            map(file, PAGE, Access::Read),
        )?;
        let sealing = |flags, reserved| {
            let mut seal = Seal {
                flags,
                reserved,
                ..Seal::default()
            };
            ioctl(file, SEAL, &mut seal)
        };
        let log = self.open_log("log")?;
        let logging = |log: Log| ioctl(file, LOG, &mut { log });
        let record = whole(&log);
        refused("seal of nobody", libc::ENOTCONN, sealing(0, 0))?;
        refused("log of nobody", libc::ENOTCONN, logging(record))?;
        refused(
            "flags",
            libc::EINVAL,
            ioctl(file, BIND, &mut bind(number, 1)),
        )?;
        refused(
            "no disk",
            libc::ENODEV,
            ioctl(file, BIND, &mut bind(9999, 0)),
        )?;
        refused(
            "no call",
            libc::ENOTTY,
            ioctl(file, call::<Next>(3, 0xbf), &mut next),
        )?;
        refused(
            "another length",
            libc::ENOTTY,
            ioctl(file, call::<u32>(3, 0xb1), &mut next),
        )?;
        let mut sits = bind(number, 0);
        ioctl(file, BIND, &mut sits).doing("become the writer")?;
        refused(
            "twice",
            libc::EBUSY,
            ioctl(file, BIND, &mut bind(number, 0)),
        )?;
        let other = File::open(NODE).doing("open /dev/obd-writer")?;
        refused(
            "a second one",
            libc::EBUSY,
            ioctl(&other, BIND, &mut bind(number, 0)),
        )?;

        // Something is written and not frozen yet, then it is.
        refused(
            "mmap of nothing",
            libc::ESTALE,
            map(file, PAGE, Access::Read),
        )?;
        next.timeout_ms = 30_000;
        ioctl(file, NEXT, &mut next).doing("wait for a layer")?;
        let (id, len) = (next.id, next.bytes as usize);
        let mut again = Next::default();
        ioctl(file, NEXT, &mut again).doing("get the layer again")?;
        assert_eq!((again.id, again.bytes), (id, next.bytes));
        map(file, len, Access::Read).doing("map it")?;
        refused(
            "more than there is",
            libc::EINVAL,
            map(file, len + PAGE, Access::Read),
        )?;
        refused(
            "a mapping to write to",
            libc::EACCES,
            map(file, len, Access::Shared),
        )?;
        refused(
            "one of one's own",
            libc::EACCES,
            map(file, len, Access::Private),
        )?;

        let mut one = Extent::default();
        let extents = |id, first, nr, to| ioctl(file, EXTENTS, &mut Extents { id, first, nr, to });
        let to: *mut Extent = &mut one;
        refused(
            "extents of another",
            libc::ESTALE,
            extents(id + 1, 0, 1, to),
        )?;
        refused(
            "extents behind the end",
            libc::EINVAL,
            extents(id, u64::MAX, 1, to),
        )?;
        refused(
            "very many extents",
            libc::EINVAL,
            extents(id, 0, u64::MAX, to),
        )?;
        refused(
            "extents to nowhere",
            libc::EFAULT,
            extents(id, 0, 1, std::ptr::dangling_mut()),
        )?;
        let kernel = 0xffff_8880_0000_0000_usize as *mut Extent;
        refused(
            "extents to the kernel",
            libc::EFAULT,
            extents(id, 0, 1, kernel),
        )?;

        let name = b"/nonexistent\0";
        let stack = |id, first, nr, path| {
            ioctl(
                file,
                STACK,
                &mut Stack {
                    id,
                    first,
                    nr,
                    path,
                },
            )
        };
        refused("another", libc::ESTALE, stack(id + 1, 0, 0, name.as_ptr()))?;
        refused("no layer", libc::EINVAL, stack(id, 9999, 0, name.as_ptr()))?;
        refused(
            "no layers",
            libc::EINVAL,
            stack(id, 0, u32::MAX, name.as_ptr()),
        )?;
        refused("no file", libc::ENOENT, stack(id, 0, 0, name.as_ptr()))?;
        refused("no path", libc::EFAULT, stack(id, 0, 0, std::ptr::null()))?;
        let long = [b'/'; 5000];
        refused(
            "a long path",
            libc::ENAMETOOLONG,
            stack(id, 0, 0, long.as_ptr()),
        )?;
        refused(
            "the node",
            libc::EINVAL,
            stack(id, 0, 0, c"/dev/obd-writer".as_ptr().cast()),
        )?;

        let failed = |id, reserved| {
            let errno = libc::ENOSPC;
            ioctl(
                file,
                FAILED,
                &mut Failed {
                    id,
                    errno,
                    reserved,
                },
            )
        };
        refused("failure of another", libc::ESTALE, failed(id + 1, 0))?;
        refused("reserved", libc::EINVAL, failed(id, 1))?;

        refused("a flag", libc::EINVAL, sealing(2, 0))?;
        refused("something reserved", libc::EINVAL, sealing(0, 1))?;
        refused("nothing sealed", libc::ENODATA, sealing(1, 0))?;
        let fd = 9999;
        refused("no file", libc::EBADF, logging(Log { fd, ..record }))?;
        let (at, end, again) = (1, 512, u64::MAX - 4095);
        refused(
            "within a block",
            libc::EINVAL,
            logging(Log { at, ..record }),
        )?;
        refused(
            "a part of one",
            libc::EINVAL,
            logging(Log { end, ..record }),
        )?;
        refused("far away", libc::EINVAL, logging(Log { again, ..record }))?;
        let (seq, sealed) = (u64::MAX, 1);
        refused("too many", libc::EINVAL, logging(Log { seq, ..record }))?;
        refused(
            "sealed before it was there",
            libc::EINVAL,
            logging(Log { sealed, ..record }),
        )?;

        let stops = |log: Log, stop, errno| -> Result<Log> {
            let mut log = log;
            ioctl(file, LOG, &mut log).doing("log")?;
            assert_eq!((log.stop, log.errno), (stop, errno));
            Ok(log)
        };
        let nothing = |log, stop, errno| -> Result<()> {
            let did = stops(log, stop, errno)?;
            assert_eq!((did.seq, did.at, did.enough), (log.seq, log.at, 0));
            Ok(())
        };
        let (mut layers, size) = (sits.layers, sits.size);
        let mut commit = || -> Result<u64> {
            let lent = seal(file, 0)?.expect("something is sealed");
            self.commit(file, &lent, size, layers)?;
            layers += 1;
            Ok(lent.id)
        };
        let is_stale = |id| {
            refused("stacked", libc::ESTALE, stack(id, 0, 0, name.as_ptr()))?;
            refused("failed", libc::ESTALE, failed(id, 0))?;
            refused("extents", libc::ESTALE, extents(id, 0, 1, to))
        };
        // What is frozen for its age has no record.
        nothing(record, FROZEN, 0)?;
        commit()?;
        is_stale(id)?;
        nothing(record, IDLE, 0)?;

        let frozen = |commit: &mut dyn FnMut() -> Result<u64>| -> Result<Next> {
            loop {
                let mut next = Next {
                    timeout_ms: 30_000,
                    ..Next::default()
                };
                ioctl(file, NEXT, &mut next).doing("wait for what is flushed")?;
                if next.reason == FLUSH {
                    return Ok(next);
                }
                // What is logged is old enough for a layer, which is not what is waited for.
                commit()?;
            }
        };
        let waits =
            |child: &mut Child| child.try_wait().doing("look for dd").map(|it| it.is_none());
        // By processes of their own: one that waits for its own disk does not end.
        let mut first = flush(number, 0)?;
        let next = frozen(&mut commit)?;
        let (id, len) = (next.id, next.bytes as usize);
        let (end, again) = (PAGE as u64, PAGE as u64);
        nothing(Log { end, ..record }, FROZEN, 0)?;
        nothing(
            Log {
                at: end,
                end,
                again,
                ..record
            },
            FROZEN,
            0,
        )?;
        let path = self.dir.join("log");
        let of = |log: &File| whole(log);
        let unwritable = File::open(&path).doing("open the log")?;
        nothing(of(&unwritable), FAILED_TO_LOG, libc::EBADF)?;
        nothing(of(file), FAILED_TO_LOG, libc::EINVAL)?;
        let dir = File::open(&self.dir).doing("open the folder")?;
        nothing(of(&dir), FAILED_TO_LOG, libc::EINVAL)?;
        assert!(waits(&mut first)?);
        let lent = Mapping::new(file, 0, len, Access::Read).doing("map what is flushed")?;
        let did = stops(record, IDLE, 0)?;
        assert_eq!((did.seq, did.enough), (1, (len + PAGE) as u64));
        assert_eq!((did.at, did.end, did.again), (did.enough, record.end, 0));
        ended(&mut first)?;
        is_record(&log, did.enough, &lent, size)?;
        drop(lent);
        is_stale(id)?;
        refused("mmap of a log", libc::ESTALE, map(file, len, Access::Read))?;
        nothing(record, IDLE, 0)?;

        // What is in the log is not frozen, and what is sealed is not to be passed.
        let sealed = seal(file, 0)?.expect("something is logged");
        assert!(sealed.id != id && sealed.bytes == len as u64);
        let same = seal(file, 1)?.expect("it is sealed");
        assert_eq!((same.id, same.extents), (sealed.id, sealed.extents));
        map(file, len, Access::Read).doing("map what is sealed")?;
        refused(
            "no file for it",
            libc::ENOENT,
            stack(sealed.id, 0, 0, name.as_ptr()),
        )?;
        let mut second = flush(number, 0)?;
        let id = frozen(&mut commit)?.id;
        refused("a newer one", libc::EBUSY, stack(id, 0, 0, name.as_ptr()))?;
        assert!(append(file, &log)?.is_some());
        ended(&mut second)?;
        is_stale(id)?;
        assert_eq!(commit()?, sealed.id);
        is_stale(sealed.id)?;

        // What is in no log is waited for, and nothing is logged over it. The next flush comes
        // when that has failed: the block layer sends one at a time.
        let mut third = flush(number, 1)?;
        let unlogged = frozen(&mut commit)?.id;
        let sealed = seal(file, 0)?.expect("something is frozen");
        is_stale(unlogged)?;
        assert!(waits(&mut third)?);
        failed(sealed.id, 0).doing("say that it failed")?;
        ended(&mut third).expect_err("it failed");
        let mut fourth = flush(number, 2)?;
        let id = frozen(&mut commit)?.id;
        nothing(record, FROZEN, 0)?;
        refused("a newer one", libc::EBUSY, stack(id, 0, 0, name.as_ptr()))?;
        assert_eq!(commit()?, sealed.id);
        assert!(waits(&mut fourth)?);
        assert!(append(file, &log)?.is_some());
        ended(&mut fourth)?;
        commit()?;
        refused("nothing left", libc::ENODATA, sealing(0, 0))
    }
}

/// What is sealed, if anything is, or, without the flag 1, is to be.
fn seal(file: &File, flags: u32) -> Result<Option<Lent>> {
    let mut seal = Seal {
        flags,
        ..Seal::default()
    };
    match ioctl(file, SEAL, &mut seal) {
        Ok(()) => Ok(Some(Lent {
            id: seal.id,
            extents: seal.extents,
            bytes: seal.bytes,
        })),
        Err(error) => match error.raw_os_error() {
            // The disk is gone, which is said again when something is waited for; or somebody
            // else logs what is frozen.
            Some(libc::ENODATA | libc::ESHUTDOWN | libc::EBUSY) => Ok(None),
            _ => Err(error).doing("seal what is logged"),
        },
    }
}

/// To have one record written to `log`, of what is frozen.
fn whole(log: &File) -> Log {
    Log {
        fd: log.as_raw_fd() as u32,
        log: 7,
        end: LOG_BYTES,
        enough: 1,
        ..Log::default()
    }
}

/// Has what is frozen written to the log. Whether there is to be a layer; nothing if somebody
/// else has done it, or does.
fn append(file: &File, log: &File) -> Result<Option<bool>> {
    let mut record = whole(log);
    ioctl(file, LOG, &mut record).doing("log what is frozen")?;
    match (record.stop, record.seq) {
        (IDLE | WANTED, 1) => Ok(Some(record.stop == WANTED)),
        (IDLE | FROZEN, 0) => Ok(None),
        (stop, _) => Err(io::Error::other(format!("{stop}: {}", record.errno))).doing("log"),
    }
}

/// The log begins with a record of `len` bytes that has the pages of `lent`, of a disk of `size`
/// bytes.
fn is_record(log: &File, len: u64, lent: &Mapping, size: u64) -> Result<()> {
    let mut bytes = vec![0; len as usize];
    // What is read past the page cache has its place in memory.
    let from = File::open(format!("/proc/self/fd/{}", log.as_raw_fd())).doing("open the log")?;
    from.read_exact_at(&mut bytes, 0).doing("read the log")?;
    let (blocks, _) = bytes.as_chunks::<PAGE>();
    let (own, data) = blocks.split_at(1);
    let header = Header::read(&own[0], 7).expect("a record");
    assert!(header.is_whole(own, size) && header.number == 1 && header.sealed == 0);
    for (at, block) in data.iter().enumerate() {
        assert!(lent.page(at).is_some_and(|page| page == *block));
    }
    assert_eq!(
        (Hash::of(data).end(), data.len() as u64),
        (header.hash, header.blocks)
    );
    assert_eq!(
        header
            .extents(own)
            .map(|it| u64::from(it.blocks))
            .sum::<u64>(),
        header.blocks
    );
    Ok(())
}

/// Writes to a block of `/dev/obdN`, and flushes.
fn flush(number: u32, block: u64) -> Result<Child> {
    Command::new("dd")
        .args(["if=/dev/urandom", "bs=4k", "count=1", "conv=fsync,notrunc"])
        .args([format!("of=/dev/obd{number}"), format!("seek={block}")])
        .stderr(Stdio::null())
        .spawn()
        .doing("start dd")
}

/// Waits for a flush to end well.
fn ended(flush: &mut Child) -> Result<()> {
    let status = flush.wait().doing("wait for dd")?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(status.to_string())).doing("flush"),
    }
}

/// Writes a plain layer of a disk of `size` bytes to `path`: the data of the frozen
/// layer, and the table of where it belongs.
fn write_layer(path: &Path, file: &File, extents: &[Extent], bytes: u64, size: u64) -> Result<()> {
    let made = File::create(path).doing("create a layer")?;
    let mut out = BufWriter::new(&made);
    out.write_all(&header(7, 0, 0, size))
        .doing("write a layer")?;
    if bytes > 0 {
        let mapping = Mapping::new(file, 0, bytes as usize, Access::Read).doing("map the data")?;
        for page in (0..).map_while(|number| mapping.page(number)) {
            out.write_all(&page).doing("write a layer")?;
        }
    }
    let mut moffset = SECTORS;
    let mut entries: u64 = 0;
    for extent in extents {
        let (mut lba, mut rest) = (extent.block * SECTORS, u64::from(extent.blocks) * SECTORS);
        while rest > 0 {
            let len = rest.min(LONGEST);
            let zeros = u64::from(extent.zero);
            out.write_all(&(lba | len << 50).to_le_bytes())
                .and_then(|()| out.write_all(&(moffset | zeros << 55).to_le_bytes()))
                .doing("write a layer")?;
            moffset += if zeros > 0 { 0 } else { len };
            (lba, rest, entries) = (lba + len, rest - len, entries + 1);
        }
    }
    if moffset != SECTORS + bytes / 512 {
        let there = (moffset - SECTORS) * 512;
        return Err(WriterError::Extents { there, bytes });
    }
    while !entries.is_multiple_of(256) {
        out.write_all(&((1u64 << 50) - 1).to_le_bytes())
            .and_then(|()| out.write_all(&[0; 8]))
            .doing("write a layer")?;
        entries += 1;
    }
    out.write_all(&header(6, moffset * 512, entries, size))
        .and_then(|()| out.flush())
        .doing("write a layer")?;
    drop(out);
    made.sync_all().doing("sync a layer")?;
    // It is there under its name, too.
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        .doing("sync the folder")?;
    fs::metadata(path).map(drop).doing("find a layer")
}

/// A header of a layer, or its trailer.
fn header(part: u32, index: u64, entries: u64, size: u64) -> [u8; PAGE] {
    const MAGIC: [u8; 24] = [
        0x4C, 0x53, 0x4D, 0x54, 0x00, 0x01, 0x02, 0x00, 0x65, 0x7E, 0x63, 0xD2, 0x94, 0x44, 0x08,
        0x4C, 0xA2, 0xD2, 0xC8, 0xEC, 0x4F, 0xCF, 0xAE, 0x8A,
    ];
    let mut bytes = [0; PAGE];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC);
    put(24, &390u32.to_le_bytes());
    put(28, &part.to_le_bytes());
    put(32, &index.to_le_bytes());
    put(40, &entries.to_le_bytes());
    put(48, &size.to_le_bytes());
    put(56, b"00000000-0000-0000-0000-000000000001");
    put(132, &[1, 1]);
    bytes
}
