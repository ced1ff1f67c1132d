// SPDX-License-Identifier: MIT

//! The engine for files and block devices: io_uring, `O_DIRECT`, buffers that
//! are registered with the kernel once. Of an NVMe namespace's generic device
//! (`/dev/ngXnY`) it gives the controller's own commands, see [`crate::passthrough`].

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::guard::{
    self,
    Force, //
};
use crate::passthrough::{
    self,
    Generic, //
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
use io_uring::squeue::{
    Entry,
    Entry128,
    PushError, //
};
use io_uring::{
    IoUring,
    Submitter,
    cqueue,
    opcode,
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

/// What the kernel is told of a request.
enum Told {
    /// An operation on a file.
    Operation(Entry),
    /// A command for the controller.
    Command(Entry128),
}

/// A ring, which has to be wide for commands.
enum Ring {
    Narrow(IoUring),
    Wide(IoUring<Entry128, cqueue::Entry32>),
}

impl Ring {
    fn new(depth: u32, wide: bool) -> io::Result<Self> {
        Ok(match wide {
            false => Self::Narrow(IoUring::new(depth)?),
            true => Self::Wide(IoUring::builder().build(depth)?),
        })
    }

    fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::Narrow(ring) => ring.submitter(),
            Self::Wide(ring) => ring.submitter(),
        }
    }

    /// # Safety
    ///
    /// What `told` points to stays as it is until it is completed.
    unsafe fn push(&mut self, told: &Told) -> Result<(), PushError> {
        match (self, told) {
            // SAFETY: the caller's promise.
            (Self::Narrow(ring), Told::Operation(entry)) => unsafe {
                ring.submission().push(entry)
            },
            // SAFETY: as above.
            (Self::Wide(ring), Told::Operation(entry)) => unsafe {
                ring.submission().push(&entry.clone().into())
            },
            // SAFETY: as above.
            (Self::Wide(ring), Told::Command(entry)) => unsafe { ring.submission().push(entry) },
            (Self::Narrow(_), Told::Command(_)) => unreachable!("it is wide for commands"),
        }
    }

    /// The next completion: whose, and with what result.
    fn next(&mut self) -> Option<(u64, i32)> {
        match self {
            Self::Narrow(ring) => {
                let entry = ring.completion().next()?;
                Some((entry.user_data(), entry.result()))
            }
            Self::Wide(ring) => {
                let entry = ring.completion().next()?;
                Some((entry.user_data(), entry.result()))
            }
        }
    }
}

/// An engine on one file or block device.
pub struct Uring {
    ring: Ring,
    file: File,
    /// Whose commands are given instead of operations on the file.
    generic: Option<Generic>,
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
    /// How often what comes next failed.
    tries: u32,
    since: Instant,
}

impl Uring {
    /// Opens the file, block device or generic NVMe device at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: what [`guard::claim`] has against it, or the system.
    pub fn open(path: &Path, purpose: Purpose, options: &Options) -> Result<Self, Error> {
        let fail = |what| move |error| Error::device(path.to_string_lossy(), what, error);
        let block = passthrough::block_device(path).map_err(fail("look at it"))?;
        let target = block.as_deref().unwrap_or(path);
        let file = match purpose {
            Purpose::Read => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file: OwnedFd = rustix::fs::open(target, flags, Mode::empty())
                    .map_err(|error| fail("open it")(error.into()))?;
                File::from(file)
            }
            Purpose::Own(force) => guard::claim(target, force).map_err(|error| {
                let name = guard::describe(&path.to_string_lossy(), target);
                Error::device(name, "take it", error)
            })?,
        };
        let mut identity = guard::identify(&file, path).map_err(fail("identify it"))?;
        let mut generic = None;
        if block.is_some() {
            let write = purpose != Purpose::Read;
            let opened = Generic::open(path, &file, identity.block_size, write);
            let opened = opened.map_err(fail("give it commands"))?;
            identity.max_transfer = opened.longest;
            generic = Some(opened);
        }
        Self::with(file, generic, identity, options)
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
        Self::with(file, None, identity, options)
    }

    fn with(
        file: File,
        generic: Option<Generic>,
        identity: Identity,
        options: &Options,
    ) -> Result<Self, Error> {
        let fail = |what| {
            let name = identity.name.clone();
            move |error: io::Error| Error::device(name, what, error)
        };
        let depth = options.depth.clamp(1, 4096);
        let is_device = guard::is_block_device(&file).map_err(fail("identify it"))?;
        direct(&file).map_err(fail("bypass the page cache of"))?;
        let ring = Ring::new(u32::from(depth), generic.is_some());
        let ring = ring.map_err(fail("set up io_uring for"))?;
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
            generic,
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

    /// The controller, for what it is told itself.
    fn controller(&self, action: Action) -> Option<&Generic> {
        let generic = self.generic.as_ref();
        generic.filter(|_| action.has_data() || action == Action::Flush)
    }

    /// Bytes of the next command of `flying`.
    fn next_len(&self, flying: &Flying) -> u64 {
        let generic = self.generic.as_ref();
        let most = generic.map_or(MAX_COMMAND, |generic| generic.longest);
        (flying.request.len - flying.done).min(most)
    }

    /// What the kernel is to be told of `flying`, number `index`.
    fn told(&self, index: usize, flying: &Flying) -> Told {
        let action = flying.request.action;
        let Some(generic) = self.controller(action) else {
            return Told::Operation(self.entry(index, flying));
        };
        let buffer = flying.request.buffer.as_ref();
        let base = buffer.map_or(0, |buffer| buffer.address().as_ptr() as u64);
        let entry = generic.command(
            action,
            flying.request.offset + flying.done,
            self.next_len(flying),
            base + flying.done,
            self.registered,
        );
        Told::Command(entry.user_data(index as u64))
    }

    /// The operation on the file.
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
        let rest = self.next_len(flying) as u32;
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
            (Action::Write | Action::WriteThrough, Some(buffer), true) => {
                opcode::WriteFixed::new(fd, address(buffer), rest, 0)
                    .offset(at)
                    .rw_flags(self.write_flags(*action))
                    .build()
            }
            (Action::Write | Action::WriteThrough, Some(buffer), false) => {
                opcode::Write::new(fd, address(buffer), rest)
                    .offset(at)
                    .rw_flags(self.write_flags(*action))
                    .build()
            }
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
            (Action::Flush | Action::Read | Action::Write | Action::WriteThrough, ..) => {
                opcode::Fsync::new(fd)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()
            }
        };
        entry.user_data(index as u64)
    }

    /// What the kernel is to do besides writing: to a device it is a write with force unit
    /// access, where the device has that, or one with a flush behind it.
    fn write_flags(&self, action: Action) -> i32 {
        match action == Action::WriteThrough && self.identity.volatile_cache {
            true => libc::RWF_DSYNC,
            false => 0,
        }
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64, len: u64) -> Entry {
        opcode::Fallocate::new(types::Fd(self.file.as_raw_fd()), len)
            .offset(at)
            .mode(flags.bits().cast_signed())
            .build()
    }

    /// Puts number `index` into the submission queue.
    fn push(&mut self, index: usize, flying: Flying) -> Result<(), Error> {
        let told = self.told(index, &flying);
        self.stats.command(flying.request.action);
        if let Some(slot) = self.flying.get_mut(index) {
            *slot = Some(flying);
        }
        // SAFETY: what the entry points to stays as it is until it comes back:
        // the file is open as long as the ring, and the buffer is in `flying`.
        while unsafe { self.ring.push(&told) }.is_err() {
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
            let Some((number, result)) = self.ring.next() else {
                return Ok(());
            };
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            let taken = self.flying.get_mut(index).and_then(Option::take);
            let Some(mut flying) = taken else {
                return Err(Error::device(
                    &self.identity.name,
                    "believe the kernel about",
                    format_args!("it completed request {index}, which is not in flight"),
                ));
            };
            let Request { action, len, .. } = flying.request;
            let has_data = action.has_data();
            if self.controller(action).is_some() {
                let (more, status) = self.answered(&mut flying, result);
                if more {
                    self.stats.counts.replays += u64::from(flying.tries > 0);
                    self.push(index, flying)?;
                } else {
                    self.end(index, flying, status, done);
                }
                continue;
            }
            let status = match result {
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
            self.end(index, flying, status, done);
        }
    }

    /// Takes in what became of a command: whether there is another one of it to give, and
    /// how it ended otherwise.
    fn answered(&self, flying: &mut Flying, result: i32) -> (bool, Option<Status>) {
        match passthrough::status(result) {
            Ok(()) => {
                flying.done += self.next_len(flying);
                flying.tries = 0;
                (flying.done < flying.request.len, None)
            }
            Err((status, again)) => {
                flying.tries += 1;
                (again && flying.tries < passthrough::MAX_TRIES, Some(status))
            }
        }
    }

    /// Number `index` is done.
    fn end(&mut self, index: usize, flying: Flying, status: Option<Status>, done: &mut Vec<Done>) {
        self.idle.push(index);
        let Request { action, len, .. } = flying.request;
        let took = flying.since.elapsed();
        self.stats.done(action, len, took, status.is_none());
        done.push(answer(&self.identity.name, flying.request, status));
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
            tries: 0,
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
            match self.ring.submitter().submit() {
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
            match self.ring.submitter().submit_and_wait(1) {
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
        if self.generic.is_some() {
            // Whoever has it open, too, would read what was there before. Who may give
            // commands may do this.
            let _ = guard::forget_cached(&self.file);
        }
    }
}
