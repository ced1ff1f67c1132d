// SPDX-License-Identifier: MIT

//! A hardware queue: one thread on the queue's CPUs, which takes requests from the
//! driver and answers them.
//!
//! Each tag has one command at the driver or one request here, never both. The
//! driver copies a request's data when its result is committed, and then only.

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::disk::{
    Disk,
    ReadError, //
};
use crate::error::Error;
use crate::log::Log;
use crate::memory::Table;
use crate::reader::{
    Progress,
    Reader, //
};
use crate::ring::{
    Event,
    Ring, //
};
use crate::uapi::{
    COMMIT_AND_FETCH_REQ,
    FETCH_REQ,
    IoCommand,
    IoDescriptor,
    MAX_QUEUE_DEPTH,
    OP_READ, //
};
use rustix::io::Errno;
use rustix::thread::{
    CpuSet,
    sched_setaffinity, //
};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Bytes of a sector, the unit of requests.
const SECTOR_SHIFT: u32 = 9;

/// What a queue is made of.
pub(crate) struct Plan {
    /// Its number.
    pub(crate) id: u16,
    /// How many tags it has.
    pub(crate) depth: u16,
    /// The CPUs that it serves.
    pub(crate) cpus: CpuSet,
    /// The disk's name, for messages.
    pub(crate) name: String,
    /// `/dev/ublkcN`.
    pub(crate) device: Arc<File>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) log: Arc<Log>,
}

/// A queue at work.
pub(crate) struct Queue {
    plan: Plan,
    descriptors: Table<IoDescriptor>,
    ring: Ring,
    reader: Reader,
    /// Tags that the driver still uses.
    live: usize,
}

impl Queue {
    /// Moves this thread to the queue's CPUs, and asks the driver for the first
    /// request of each tag.
    pub(crate) fn new(plan: Plan) -> Result<Self, Error> {
        sched_setaffinity(None, &plan.cpus).map_err(Error::errno("move a thread to its CPUs"))?;
        let depth = usize::from(plan.depth);
        let mut files = vec![plan.device.as_raw_fd()];
        files.extend(plan.disk.files().iter().map(|file| file.as_raw_fd()));
        let ring = Ring::new(depth, &files).map_err(Error::system("set up io_uring"))?;
        let reader = Reader::new(Arc::clone(&plan.disk), depth)?;
        let table = (MAX_QUEUE_DEPTH * size_of::<IoDescriptor>())
            .next_multiple_of(rustix::param::page_size());
        // SAFETY: the driver has descriptors there, plain integers, for as long as
        // the device is there, and mappings keep that.
        let descriptors =
            unsafe { Table::map(&plan.device, u64::from(plan.id) * table as u64, depth) }
                .map_err(Error::system("map the requests of the ublk driver"))?;
        let mut queue = Self {
            plan,
            descriptors,
            ring,
            reader,
            live: depth,
        };
        queue
            .fetch()
            .map_err(Error::system("ask the ublk driver for requests"))?;
        Ok(queue)
    }

    /// Gives the driver a command for each tag. What it refuses it refuses at once.
    fn fetch(&mut self) -> io::Result<()> {
        for tag in 0..self.plan.depth {
            self.command(tag, FETCH_REQ, 0)?;
        }
        self.ring.enter(0)?;
        let mut events = Vec::new();
        self.ring.collect(&mut events);
        match events.first() {
            None => Ok(()),
            Some(Event::Command { result, .. } | Event::Read { result, .. }) => {
                Err(io::Error::from_raw_os_error(-result))
            }
        }
    }

    fn command(&mut self, tag: u16, op: u32, result: i32) -> io::Result<()> {
        let address = self.reader.address(tag.into());
        let command = IoCommand {
            q_id: self.plan.id,
            tag,
            result,
            addr: address.ok_or(io::ErrorKind::InvalidInput)?,
        };
        // SAFETY: the memory of the tag stays until the ring is gone. The driver
        // only reads it, when a request is committed, and writes it when it hands
        // over one that writes: never while a read of the tag is under way.
        unsafe { self.ring.command(tag, op, command.to_bytes()) }
    }

    /// Serves requests until the driver ends that.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        self.serve().map_err(Error::system("serve the ublk driver"))
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        while self.live > 0 {
            self.ring.enter(1)?;
            self.ring.collect(&mut events);
            for event in events.drain(..) {
                self.handle(event)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Command { tag, result: 0 } => self.request(tag),
            // The driver wants the tag back: the disk is gone.
            Event::Command { result, .. } if -result == Errno::NODEV.raw_os_error() => {
                self.live = self.live.saturating_sub(1);
                Ok(())
            }
            Event::Command { result, .. } => Err(io::Error::from_raw_os_error(-result)),
            Event::Read {
                tag,
                number,
                result,
            } => {
                let progress = self.reader.completed(&mut self.ring, tag, number, result)?;
                self.answer(tag, progress)
            }
        }
    }

    /// Begins with the request that the driver described for `tag`.
    fn request(&mut self, tag: usize) -> io::Result<()> {
        let Some(request) = self.descriptors.get(tag) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        // The low byte.
        if request.op_flags as u8 != OP_READ {
            // The disk is read-only, but for those within the kernel who never ask.
            return self.commit(tag, -Errno::OPNOTSUPP.raw_os_error());
        }
        let offset = request.start_sector << SECTOR_SHIFT;
        let len = (request.nr_sectors as usize) << SECTOR_SHIFT;
        let progress = self.reader.start(&mut self.ring, tag, offset, len)?;
        self.answer(tag, progress)
    }

    fn answer(&mut self, tag: usize, progress: Progress) -> io::Result<()> {
        match progress {
            Progress::Waiting => Ok(()),
            Progress::Done(Ok(())) => {
                let sectors = self.descriptors.get(tag).map_or(0, |got| got.nr_sectors);
                // Requests have a limit far below 2 GiB.
                self.commit(tag, (sectors << SECTOR_SHIFT) as i32)
            }
            Progress::Done(Err(failure)) => {
                self.complain(tag, &failure);
                self.commit(tag, -Errno::IO.raw_os_error())
            }
        }
    }

    /// Gives the driver the result for `tag`, and asks for the next request.
    fn commit(&mut self, tag: usize, result: i32) -> io::Result<()> {
        // There are no more tags than that.
        self.command(tag as u16, COMMIT_AND_FETCH_REQ, result)
    }

    #[cold]
    fn complain(&self, tag: usize, failure: &ReadError) {
        let request = self.descriptors.get(tag);
        let offset = request.map_or(0, |request| request.start_sector << SECTOR_SHIFT);
        self.plan.log.line(|| {
            format!(
                "{}: cannot read at byte {offset}: {}: {}",
                self.plan.name,
                self.plan.disk.path(failure.layer).display(),
                failure.error
            )
        });
    }
}
