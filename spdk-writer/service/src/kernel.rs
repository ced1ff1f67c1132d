// SPDX-License-Identifier: MIT

//! The driver, as the writer of one disk sees it.

#![expect(
    unsafe_code,
    reason = "the kernel is given addresses, and lends its pages"
)]

use crate::uapi::{
    self,
    Bind, //
};
use obd_core::record::Room;
use rustix::io::Errno;
use rustix::mm::{
    MapFlags,
    ProtFlags,
    mmap,
    munmap, //
};
use std::ffi::{
    CString,
    c_void, //
};
use std::fs::{
    File,
    OpenOptions, //
};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

pub use crate::uapi::Extent;

/// The driver's device for writers.
pub const DEVICE: &str = "/dev/obd-writer";

/// Most extents that are asked for at a time: 64 KiB.
const EXTENTS: u64 = 4096;

/// What a writer is told of its disk when it becomes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of it that may be in memory.
    pub memory: u64,
    /// Layers of its image.
    pub layers: usize,
}

/// Why a layer was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There was enough of it.
    Size,
    /// It was old enough.
    Age,
    /// Somebody waits for a flush.
    Flush,
    /// The disk is being detached.
    Detach,
    /// It was sealed.
    Sealed,
    /// Something that is not known here.
    Other(u32),
}

/// A frozen layer, or a sealed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Which one: none of this disk has the same again.
    pub id: u64,
    /// Why it was frozen.
    pub reason: Reason,
    /// How many extents it has.
    pub extents: u64,
    /// Bytes of its data.
    pub bytes: u64,
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A layer is frozen.
    Frozen(Frozen),
    /// None is, so far.
    Idle,
    /// The disk is gone, and nothing is left to be written.
    Gone,
}

/// A time in which the driver writes records to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which log it is, as its records say.
    pub id: u64,
    /// Number of the last record; when it is over, of the last one that is there, durably.
    pub last: u64,
    /// Number of the last record that what was sealed last has.
    pub sealed: u64,
    /// Where records may go; when it is over, where more may.
    pub room: Room,
    /// So many bytes of records, or more, are enough.
    pub enough: u64,
    /// How many there were, when it is over.
    pub bytes: u64,
    /// How long they took, from freezing to the end of the flushes, all together.
    pub time: Duration,
}

/// Why the driver writes no more records for now.
#[derive(Debug)]
pub enum Stop {
    /// It is time, or enough.
    Idle,
    /// Something is frozen that nobody waits for, has no room, or comes after something that
    /// is sealed and in no log: [`Kernel::next`] tells of it.
    Frozen,
    /// It is time for a layer of what was logged.
    Wanted,
    /// The next record could not be written: nobody knows what of it is there. What it was
    /// of is frozen as before.
    Failed(io::Error),
    /// The disk is gone.
    Gone,
}

/// The driver and a disk whose writer this is.
pub trait Kernel {
    /// A log that is open.
    type Log;
    /// The data of a frozen layer.
    type Mapping: AsRef<[u8]> + Send + Sync + 'static;

    /// What the disk was like when this became its writer.
    fn bound(&self) -> Bound;

    /// Waits for a frozen layer; the same one until it is stacked, logged or sealed.
    ///
    /// # Errors
    ///
    /// What the system says; nothing can be done with the disk then.
    fn next(&mut self, timeout: Duration) -> io::Result<Next>;

    /// What a frozen layer holds, in order.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn extents(&mut self, frozen: &Frozen) -> io::Result<Vec<Extent>>;

    /// The data of a frozen or sealed layer, which must be what was asked for last: that
    /// of its extents, one behind the other.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn map(&mut self, frozen: &Frozen) -> io::Result<Self::Mapping>;

    /// Has the layer in the file `path` replace `layers`, or put on top if that is
    /// empty, and with it the frozen layer `id`, unless that is 0.
    ///
    /// # Errors
    ///
    /// What the system says; nothing has changed then.
    fn stack(&mut self, id: u64, layers: Range<usize>, path: &Path) -> io::Result<()>;

    /// The frozen layer `id` could not be committed: those who wait for it are
    /// told so.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn failed(&mut self, id: u64, errno: i32) -> io::Result<()>;

    /// Waits for flushes, writes records of what is frozen for them to the log, and ends them:
    /// then it is frozen no more. Returns when the time is over, or something else comes.
    ///
    /// # Errors
    ///
    /// What the system says; nobody knows what of the log is there then, so whoever goes on
    /// has to look.
    fn log(&mut self, log: &mut Self::Log, run: &mut Run, timeout: Duration) -> io::Result<Stop>;

    /// What is sealed until it is stacked; if nothing is, and `make` says so, all that
    /// was logged is from here on, and what is frozen.
    ///
    /// # Errors
    ///
    /// What the system says; that is [`Errno::SHUTDOWN`] if the disk is gone, maybe with
    /// something that was logged and is in no layer.
    fn seal(&mut self, make: bool) -> io::Result<Option<Frozen>>;

    /// Waits, before something is tried again.
    fn pause(&mut self, time: Duration) {
        thread::sleep(time);
    }

    /// What time it is.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The kernel's own driver.
#[derive(Debug)]
pub struct Driver {
    file: File,
    bound: Bound,
}

impl Driver {
    /// Becomes the writer of `/dev/obdN`, N being `minor`.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the disk has one, `EOPNOTSUPP` if it is read-only.
    pub fn bind(minor: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let mut bind = Bind {
            minor,
            ..Bind::default()
        };
        // SAFETY: that is the request's structure.
        unsafe { ioctl(&file, uapi::BIND, &mut bind) }?;
        let layers = usize::try_from(bind.layers).map_err(|_| Errno::PROTO)?;
        let bound = Bound {
            size: bind.size,
            memory: bind.memory,
            layers,
        };
        Ok(Self { file, bound })
    }
}

/// A time as the driver takes it.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Passes a structure, which may come back changed.
///
/// # Safety
///
/// `argument` must be the structure of the request, and addresses in it must be
/// what the request takes.
unsafe fn ioctl<T>(file: &File, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    let argument = std::ptr::from_mut(argument);
    // SAFETY: by this function's contract.
    match unsafe { libc::ioctl(file.as_raw_fd(), number, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Kernel for Driver {
    type Log = File;
    type Mapping = Mapping;

    fn bound(&self) -> Bound {
        self.bound
    }

    fn next(&mut self, timeout: Duration) -> io::Result<Next> {
        let mut next = uapi::Next {
            timeout_ms: millis(timeout),
            ..uapi::Next::default()
        };
        // SAFETY: that is the request's structure.
        match unsafe { ioctl(&self.file, uapi::NEXT, &mut next) } {
            Ok(()) => Ok(Next::Frozen(Frozen {
                id: next.id,
                reason: match next.reason {
                    1 => Reason::Size,
                    2 => Reason::Age,
                    3 => Reason::Flush,
                    4 => Reason::Detach,
                    other => Reason::Other(other),
                },
                extents: next.extents,
                bytes: next.bytes,
            })),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIMEDOUT | Errno::INTR) => Ok(Next::Idle),
                Some(Errno::SHUTDOWN) => Ok(Next::Gone),
                _ => Err(error),
            },
        }
    }

    fn extents(&mut self, frozen: &Frozen) -> io::Result<Vec<Extent>> {
        let all = usize::try_from(frozen.extents).map_err(|_| Errno::NOMEM)?;
        let mut extents = Vec::new();
        extents.try_reserve_exact(all).map_err(|_| Errno::NOMEM)?;
        extents.resize(all, Extent::default());
        for (i, some) in extents.chunks_mut(EXTENTS as usize).enumerate() {
            let mut request = uapi::Extents {
                id: frozen.id,
                first: i as u64 * EXTENTS,
                nr: some.len() as u64,
                to: some.as_mut_ptr().expose_provenance() as u64,
            };
            // SAFETY: that is the request's structure; the kernel writes `nr`
            // extents of integers to where that many are, borrowed mutably.
            unsafe { ioctl(&self.file, uapi::EXTENTS, &mut request) }?;
        }
        Ok(extents)
    }

    fn map(&mut self, frozen: &Frozen) -> io::Result<Mapping> {
        let len = usize::try_from(frozen.bytes).map_err(|_| Errno::NOMEM)?;
        if len == 0 {
            // Nothing but zeros; the kernel maps no nothing.
            return Ok(Mapping {
                at: NonNull::dangling(),
                len,
            });
        }
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::SHARED,
                &self.file,
                0,
            )
        }?;
        let at = NonNull::new(at.cast()).ok_or(Errno::FAULT)?;
        Ok(Mapping { at, len })
    }

    fn stack(&mut self, id: u64, layers: Range<usize>, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let number = |number: usize| u32::try_from(number).map_err(|_| Errno::INVAL);
        let mut stack = uapi::Stack {
            id,
            first: number(layers.start)?,
            nr: number(layers.len())?,
            path: path.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: that is the request's structure; the string ends with a NUL and
        // outlives the call, and the kernel only reads it.
        unsafe { ioctl(&self.file, uapi::STACK, &mut stack) }
    }

    fn failed(&mut self, id: u64, errno: i32) -> io::Result<()> {
        let mut failed = uapi::Failed {
            id,
            errno,
            reserved: 0,
        };
        // SAFETY: that is the request's structure.
        unsafe { ioctl(&self.file, uapi::FAILED, &mut failed) }
    }

    fn log(&mut self, log: &mut File, run: &mut Run, timeout: Duration) -> io::Result<Stop> {
        let Room { at, end, again } = run.room;
        let mut request = uapi::Log {
            fd: u32::try_from(log.as_raw_fd()).map_err(|_| Errno::BADF)?,
            timeout_ms: millis(timeout),
            log: run.id,
            seq: run.last,
            sealed: run.sealed,
            at,
            end,
            again,
            enough: run.enough,
            ns: 0,
            stop: 0,
            errno: 0,
        };
        // SAFETY: that is the request's structure.
        match unsafe { ioctl(&self.file, uapi::LOG, &mut request) } {
            Ok(()) => {}
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::SHUTDOWN) => Ok(Stop::Gone),
                    _ => Err(error),
                };
            }
        }
        run.last = request.seq;
        run.room = Room {
            at: request.at,
            end: request.end,
            again: request.again,
        };
        run.bytes = request.enough;
        run.time = Duration::from_nanos(request.ns);
        match request.stop {
            0 => Ok(Stop::Idle),
            1 => Ok(Stop::Frozen),
            2 => Ok(Stop::Wanted),
            3 => Ok(Stop::Failed(io::Error::from_raw_os_error(request.errno))),
            _ => Err(Errno::PROTO.into()),
        }
    }

    fn seal(&mut self, make: bool) -> io::Result<Option<Frozen>> {
        let mut seal = uapi::Seal {
            flags: u32::from(!make),
            ..uapi::Seal::default()
        };
        // SAFETY: that is the request's structure.
        match unsafe { ioctl(&self.file, uapi::SEAL, &mut seal) } {
            Ok(()) => Ok(Some(Frozen {
                id: seal.id,
                reason: Reason::Sealed,
                extents: seal.extents,
                bytes: seal.bytes,
            })),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NODATA) => Ok(None),
                _ => Err(error),
            },
        }
    }
}

/// Pages of a frozen layer, lent by the driver.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: memory of the whole process, that nobody writes to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped there until this is dropped, or it is
        // none of them. They are those of a frozen layer: the driver changes them
        // no more, keeps them as long as they are mapped, and lets nobody map
        // them to write.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            let at: *mut c_void = self.at.as_ptr().cast();
            // SAFETY: mapped by `map`, as long as this; no reference to it is left.
            // That it fails would only keep the pages.
            let _ = unsafe { munmap(at, self.len) };
        }
    }
}
