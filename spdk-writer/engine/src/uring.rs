// SPDX-License-Identifier: MIT

//! The engine for files and block devices: io_uring, `O_DIRECT`, buffers that
//! are registered with the kernel once.

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::guard::{
    self,
    Force, //
};
use crate::{
    Action,
    Done,
    Engine,
    Error,
    Identity,
    Memory,
    Refused,
    Request,
    Stats,
    Status, //
};
use io_uring::{
    IoUring,
    opcode,
    squeue::Entry,
    types, //
};
use rustix::fs::{
    FallocateFlags,
    Mode,
    OFlags, //
};
use std::fs::File;
use std::io;
use std::os::fd::{
    AsRawFd,
    OwnedFd, //
};
use std::path::Path;
use std::time::Instant;

/// The longest single read or write: the kernel does less than 2 GiB at once.
const MAX_COMMAND: u64 = 1 << 30;

/// Memory registered as one buffer can be this long (the kernel's limit).
const MAX_REGISTERED: usize = 1 << 30;

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most requests in flight, 1 to 4096.
    pub depth: u16,
    /// How many buffers.
    pub buffers: usize,
    /// Bytes of each.
    pub buffer_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 32,
            buffers: 32,
            buffer_size: 1 << 20,
        }
    }
}

/// What a target is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reading; anybody else may do what he likes.
    Read,
    /// Writing, alone: the target must pass [`guard::claim`].
    Own(Force),
}

/// An engine on one file or block device.
pub struct Uring {
    ring: IoUring,
    file: File,
    identity: Identity,
    memory: Memory,
    /// Whether the kernel knows the memory.
    registered: bool,
    is_device: bool,
    /// By number: what is in flight.
    flying: Vec<Option<Flying>>,
    /// Numbers that are not.
    idle: Vec<usize>,
    /// In the submission queue, but unknown to the kernel.
    pushed: usize,
    /// Came back without a command.
    early: Vec<Done>,
    stats: Stats,
}

struct Flying {
    request: Request,
    /// Bytes that are done already: the kernel may do less than it was asked.
    done: u64,
    since: Instant,
}

impl Uring {
    /// Opens the file or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: what [`guard::claim`] has against it, or the system.
    pub fn open(path: &Path, purpose: Purpose, options: &Options) -> Result<Self, Error> {
        let file = match purpose {
            Purpose::Read => {
                let file: OwnedFd =
                    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .map_err(|error| Error::device(path.to_string_lossy(), "open it", error))?;
                File::from(file)
            }
            Purpose::Own(force) => guard::claim(path, force)
                .map_err(|error| Error::device(path.to_string_lossy(), "take it", error))?,
        };
        let identity = guard::identify(&file, path)
            .map_err(|error| Error::device(path.to_string_lossy(), "identify it", error))?;
        Self::with(file, identity, options)
    }

    /// An engine on a file that is open for reading and writing already and may
    /// grow; `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: what the system says.
    pub fn on_file(file: File, name: &Path, options: &Options) -> Result<Self, Error> {
        let fail = |error| Error::device(name.to_string_lossy(), "identify it", error);
        let mut identity = guard::identify(&file, name).map_err(fail)?;
        identity.size = Identity::GROWS;
        Self::with(file, identity, options)
    }

    fn with(file: File, identity: Identity, options: &Options) -> Result<Self, Error> {
        let fail = |what| {
            let name = identity.name.clone();
            move |error: io::Error| Error::device(name, what, error)
        };
        let depth = options.depth.clamp(1, 4096);
        let is_device = guard::is_block_device(&file).map_err(fail("identify it"))?;
        direct(&file).map_err(fail("bypass the page cache of"))?;
        let ring = IoUring::new(u32::from(depth)).map_err(fail("set up io_uring for"))?;
        let memory =
            Memory::new(options.buffers, options.buffer_size).map_err(fail("get memory for"))?;
        let registered = memory.len() <= MAX_REGISTERED && {
            let whole = libc::iovec {
                iov_base: memory.base().as_ptr().cast(),
                iov_len: memory.len(),
            };
            // SAFETY: the memory is mapped, and unmapped after the ring is gone:
            // `memory` is kept beside it, and `drop` waits.
            // Limits on locked memory may forbid it; it works without, too.
            unsafe { ring.submitter().register_buffers(&[whole]) }.is_ok()
        };
        let depth = usize::from(depth);
        Ok(Self {
            ring,
            file,
            identity,
            memory,
            registered,
            is_device,
            flying: (0..depth).map(|_| None).collect(),
            idle: (0..depth).rev().collect(),
            pushed: 0,
            early: Vec::new(),
            stats: Stats::default(),
        })
    }

    /// What the kernel is to be told of `flying`, number `index`.
    fn entry(&self, index: usize, flying: &Flying) -> Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let Request {
            action,
            offset,
            len,
            buffer,
            ..
        } = &flying.request;
        let at = offset + flying.done;
        // At most 1 GiB: fits.
        let rest = (len - flying.done).min(MAX_COMMAND) as u32;
        let address = |buffer: &crate::Buffer| {
            // `done` is less than the buffer's length.
            buffer.address().as_ptr().wrapping_add(flying.done as usize)
        };
        let entry = match (action, buffer, self.registered) {
            (Action::Read, Some(buffer), true) => {
                opcode::ReadFixed::new(fd, address(buffer), rest, 0)
                    .offset(at)
                    .build()
            }
            (Action::Read, Some(buffer), false) => opcode::Read::new(fd, address(buffer), rest)
                .offset(at)
                .build(),
            (Action::Write, Some(buffer), true) => {
                opcode::WriteFixed::new(fd, address(buffer), rest, 0)
                    .offset(at)
                    .build()
            }
            (Action::Write, Some(buffer), false) => opcode::Write::new(fd, address(buffer), rest)
                .offset(at)
                .build(),
            (Action::Discard, ..) => self.fallocate(
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                at,
                *len,
            ),
            (Action::WriteZeroes, ..) => self.fallocate(
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                at,
                *len,
            ),
            // Reads and writes have buffers: that was checked.
            (Action::Flush | Action::Read | Action::Write, ..) => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        entry.user_data(index as u64)
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64, len: u64) -> Entry {
        opcode::Fallocate::new(types::Fd(self.file.as_raw_fd()), len)
            .offset(at)
            .mode(flags.bits().cast_signed())
            .build()
    }

    /// Puts number `index` into the submission queue.
    fn push(&mut self, index: usize, flying: Flying) -> Result<(), Error> {
        let entry = self.entry(index, &flying);
        self.stats.command(flying.request.action);
        if let Some(slot) = self.flying.get_mut(index) {
            *slot = Some(flying);
        }
        // SAFETY: what the entry points to stays as it is until it comes back:
        // the file is open as long as the ring, and the buffer is in `flying`.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // As many entries as numbers: full only of what nobody told.
            self.kick()?;
        }
        self.pushed += 1;
        Ok(())
    }

    /// Takes what the kernel has completed.
    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        done.append(&mut self.early);
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return Ok(());
            };
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let taken = self.flying.get_mut(index).and_then(Option::take);
            let Some(mut flying) = taken else {
                return Err(Error::device(
                    &self.identity.name,
                    "believe the kernel about",
                    format_args!("it completed request {index}, which is not in flight"),
                ));
            };
            let Request { action, len, .. } = flying.request;
            let has_data = matches!(action, Action::Read | Action::Write);
            let status = match entry.result() {
                0 if has_data && flying.done < len => Some(Status::End),
                result if result >= 0 => {
                    if has_data {
                        // Not negative, and no more than was asked for.
                        flying.done += u64::from(result.unsigned_abs());
                    }
                    None
                }
                result if has_data && [-libc::EINTR, -libc::EAGAIN].contains(&result) => None,
                result if self.is_device && action == Action::Discard && unsupported(-result) => {
                    // A device may know how to discard, but not how to zero.
                    self.discard(&flying.request)
                }
                result => Some(Status::Os(-result)),
            };
            if status.is_none() && has_data && flying.done < len {
                self.stats.counts.replays += 1;
                self.push(index, flying)?;
                continue;
            }
            self.idle.push(index);
            self.stats
                .done(action, len, flying.since.elapsed(), status.is_none());
            done.push(answer(&self.identity.name, flying.request, status));
        }
    }

    /// Discards by `BLKDISCARD`, which waits. What a device cannot do is as good
    /// as done: nothing was promised of the content.
    fn discard(&self, request: &Request) -> Option<Status> {
        match guard::discard(&self.file, request.offset, request.len) {
            Ok(()) => None,
            Err(error) => error
                .raw_os_error()
                .filter(|error| !unsupported(*error))
                .map(Status::Os),
        }
    }
}

/// A request that came back.
pub(crate) fn answer(device: &str, request: Request, status: Option<Status>) -> Done {
    let Request {
        tag,
        action,
        offset,
        len,
        buffer,
    } = request;
    Done {
        tag,
        buffer,
        result: match status {
            None => Ok(()),
            Some(status) => Err(Error::Command {
                device: device.to_owned(),
                action,
                offset,
                len,
                status,
            }),
        },
    }
}

fn unsupported(number: i32) -> bool {
    number == libc::EOPNOTSUPP || number == libc::ENOTTY
}

/// Switches `O_DIRECT` on, unless the filesystem has no such thing.
fn direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    match rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Engine for Uring {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn depth(&self) -> usize {
        self.flying.len()
    }

    fn in_flight(&self) -> usize {
        self.flying.len() - self.idle.len() + self.early.len()
    }

    fn submit(&mut self, request: Request) -> Result<(), Box<Refused>> {
        let refused = |request, error| Err(Box::new(Refused { request, error }));
        if let Err(error) = self.identity.check(&request, &self.memory) {
            return refused(request, error);
        }
        if request.action == Action::Flush && !self.identity.volatile_cache {
            self.early.push(answer(&self.identity.name, request, None));
            return Ok(());
        }
        let Some(index) = self.idle.pop() else {
            let error = Error::Full {
                device: self.identity.name.clone(),
                depth: self.depth(),
            };
            return refused(request, error);
        };
        let flying = Flying {
            request,
            done: 0,
            since: Instant::now(),
        };
        match self.push(index, flying) {
            Ok(()) => Ok(()),
            Err(error) => {
                let request = self.flying.get_mut(index).and_then(Option::take);
                match request {
                    Some(flying) => refused(flying.request, error),
                    // `push` stores it before anything can fail.
                    None => unreachable!("stored above"),
                }
            }
        }
    }

    fn kick(&mut self) -> Result<(), Error> {
        while self.pushed > 0 {
            match self.ring.submit() {
                Ok(taken) => {
                    self.stats.counts.doorbells += 1;
                    self.pushed = self.pushed.saturating_sub(taken);
                }
                Err(error) if again(&error) => {}
                Err(error) => return Err(Error::device(&self.identity.name, "use", error)),
            }
        }
        Ok(())
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) -> Result<(), Error> {
        let before = done.len();
        self.collect(done)?;
        while wait && done.len() == before && self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(taken) => self.pushed = self.pushed.saturating_sub(taken),
                Err(error) if again(&error) => {}
                Err(error) => return Err(Error::device(&self.identity.name, "use", error)),
            }
            self.stats.counts.doorbells += 1;
            self.stats.counts.sleeps += 1;
            self.collect(done)?;
        }
        Ok(())
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Whether a system call is to be made once more.
fn again(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if self.kick().is_err() || self.reap(true, &mut done).is_err() {
                // The kernel may still write there: better lost than reused.
                std::mem::forget(self.memory.clone());
                std::mem::forget(std::mem::take(&mut self.flying));
                return;
            }
        }
    }
}
