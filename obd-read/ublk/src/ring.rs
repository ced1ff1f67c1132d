// SPDX-License-Identifier: MIT

//! The io_uring of one thread: commands to the driver, and reads of blobs.

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::memory::Memory;
use io_uring::{
    IoUring,
    opcode,
    squeue::Entry,
    types::Fixed, //
};
use std::io;
use std::os::fd::RawFd;

/// Most reads of blobs that a request has under way at a time.
pub(crate) const READS: usize = 16;

/// The first file of the ring's: the device. Blobs follow.
const DEVICE: u32 = 0;

/// What the kernel completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A command of this tag.
    Command {
        /// The tag.
        tag: usize,
        /// What the driver returned.
        result: i32,
    },
    /// A read of a blob.
    Read {
        /// For the request with this tag.
        tag: usize,
        /// Which of its reads.
        number: usize,
        /// Bytes, or a negative error number.
        result: i32,
    },
}

/// Marks completions of reads; below are the tag (16 bits) and the number.
const READ: u64 = 1 << 63;

/// An io_uring, used by the thread that made it.
pub(crate) struct Ring {
    uring: IoUring,
}

impl Ring {
    /// For a queue of that depth, on files that are given numbers: the device (-1
    /// for none), then the blobs.
    pub(crate) fn new(depth: usize, files: &[RawFd]) -> io::Result<Self> {
        // A command and a few reads per tag; when there is no room the kernel
        // takes what is there first.
        let entries = (2 * depth).next_power_of_two().min(4096) as u32;
        let completions = (depth * (READS + 1)).next_power_of_two().min(1 << 16) as u32;
        let uring = IoUring::builder()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .build(entries)?;
        uring.submitter().register_files(files)?;
        Ok(Self { uring })
    }

    /// Has the driver do `op` with `argument`, about `tag`.
    ///
    /// # Safety
    ///
    /// What the driver does for it must be fine until it completes: the memory at
    /// the address in `argument` is written, and must stay.
    pub(crate) unsafe fn command(
        &mut self,
        tag: u16,
        op: u32,
        argument: [u8; 16],
    ) -> io::Result<()> {
        let entry = opcode::UringCmd16::new(Fixed(DEVICE), op)
            .cmd(argument)
            .build()
            .user_data(tag.into());
        // SAFETY: the caller's word.
        unsafe { self.push(&entry) }
    }

    /// Reads `len` bytes from `offset` of blob `blob` to `memory` from `at` on, as
    /// read `number` of the request with `tag`.
    ///
    /// # Safety
    ///
    /// Until it completes nobody else may use that part of the memory, and it must
    /// stay.
    #[expect(clippy::too_many_arguments, reason = "what a read is")]
    pub(crate) unsafe fn read(
        &mut self,
        tag: usize,
        number: usize,
        blob: usize,
        offset: u64,
        memory: &Memory,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        let to = memory.address(at, len);
        let (Some(to), Ok(file)) = (to, u32::try_from(blob + 1)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // No request is longer than a few 100 KiB.
        let entry = opcode::Read::new(Fixed(file), to.as_ptr(), len as u32)
            .offset(offset)
            .build()
            .user_data(READ | ((number as u64) << 16) | tag as u64);
        // SAFETY: the memory is there, and the caller's word.
        unsafe { self.push(&entry) }
    }

    /// # Safety
    ///
    /// As the kernel's of `entry`.
    unsafe fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: the caller's word.
        while unsafe { self.uring.submission().push(entry) }.is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Gives the kernel what was pushed, and waits until `want` or more has
    /// completed.
    pub(crate) fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.uring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            // Signals are for another thread; a full completion queue is emptied
            // by who calls this, who comes again.
            Err(error) => match error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error)
            {
                Some(
                    rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::BUSY,
                ) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Appends what has completed to `events`.
    pub(crate) fn collect(&mut self, events: &mut Vec<Event>) {
        events.extend(self.uring.completion().map(|entry| {
            let data = entry.user_data();
            let tag = (data & 0xffff) as usize;
            let result = entry.result();
            match data & READ {
                0 => Event::Command { tag, result },
                _ => Event::Read {
                    tag,
                    number: ((data & !READ) >> 16) as usize,
                    result,
                },
            }
        }));
    }
}
