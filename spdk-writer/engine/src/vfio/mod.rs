// SPDX-License-Identifier: MIT

//! The engine that drives an NVMe controller by itself, over VFIO, with an
//! IOMMU between it and memory: one queue pair, polled as long as an answer is
//! near and asleep otherwise, until the controller interrupts.
//!
//! A command without an answer is aborted, then the controller is reset and
//! everything in flight is given once more.

#![expect(unsafe_code, reason = "registers and rings are memory of a device")]

mod controller;
mod queue;

pub use crate::nvme::Options;

use crate::nvme::container::Container;
use crate::nvme::pci::Bound;
use crate::nvme::{
    Command,
    Driver,
    Nvme,
    Reaped, //
};
use crate::{
    Action,
    Error,
    Memory, //
};
use controller::Controller;
use lbio_core::nvme::{
    PAGE_SIZE,
    Prp,
    Sqe, //
};
use rustix::event::{
    PollFd,
    PollFlags,
    Timespec,
    poll, //
};
use std::io;
use std::time::Duration;

/// Force unit access, in command dword 12.
const FUA: u32 = 1 << 30;

/// An engine on one namespace.
pub type Vfio = Nvme<Controller>;

impl Vfio {
    /// Takes namespace `nsid` of the controller at PCI `address` from the
    /// kernel, for as long as this lives.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: a namespace of it is in use, or this one holds
    /// something; there is no IOMMU; or what the system or the controller says.
    pub fn open(address: &str, nsid: u32, options: &Options) -> Result<Self, Error> {
        let bound = Bound::take(address, nsid, options.force)?;
        let name = format!("{address}/{nsid}");
        let fail = |what| {
            let name = name.clone();
            move |error: io::Error| Error::device(name, what, error)
        };
        let memory =
            Memory::new(options.buffers, options.buffer_size).map_err(fail("get memory for"))?;
        let mut container = Container::open(address, bound.dir()).map_err(fail("open it"))?;
        let data = container
            .map(memory.base(), memory.len())
            .map_err(fail("let it access memory"))?;
        let mut controller =
            Controller::new(container, data, options.depth).map_err(fail("start it"))?;
        let identity = controller
            .identify(name.clone(), nsid, options.shadow_doorbells)
            .map_err(fail("identify it"))?;
        Self::new(controller, bound, memory, identity, options)
    }
}

impl Controller {
    /// `command` in `slot` (NVM Command Set Specification 1.0, section 3.2).
    fn command(&self, slot: u16, command: &Command) -> Sqe {
        let (low, high) = (command.first as u32, (command.first >> 32) as u32);
        // 0's based; a command's length was cut to fit.
        let length = command.blocks.wrapping_sub(1) as u32 & 0xffff;
        let (opcode, prp, dwords) = match command.action {
            Action::Flush => (0x00, Prp::default(), [0; 6]),
            Action::WriteZeroes => (0x08, Prp::default(), [low, high, length, 0, 0, 0]),
            Action::Discard => {
                // One range: attributes, length, first block.
                self.io.set_slot_word(slot, 0, command.blocks << 32);
                self.io.set_slot_word(slot, 1, command.first);
                let prp = Prp {
                    first: self.io.slot_address(slot),
                    second: 0,
                };
                // Deallocate.
                (0x09, prp, [0, 1 << 2, 0, 0, 0, 0])
            }
            Action::Read | Action::Write | Action::WriteThrough => {
                let address = self.data + command.data as u64;
                let pages = command.len.div_ceil(PAGE_SIZE) as u32;
                let described = self.io.describe(slot, address, pages);
                let Ok(prp) = described else {
                    unreachable!("whole pages, as many as were cut to fit: {described:?}");
                };
                let (opcode, control) = match command.action {
                    Action::WriteThrough => (0x01, FUA),
                    Action::Write => (0x01, 0),
                    _ => (0x02, 0),
                };
                (opcode, prp, [low, high, length | control, 0, 0, 0])
            }
        };
        Sqe::new(opcode, slot, self.nsid, prp, dwords)
    }
}

impl Driver for Controller {
    fn depth(&self) -> usize {
        usize::from(self.io.depth()) - 1
    }

    fn alloc(&mut self) -> Option<u16> {
        self.io.alloc()
    }

    fn push(&mut self, slot: u16, command: &Command) -> io::Result<()> {
        let command = self.command(slot, command);
        self.io.push(&command);
        Ok(())
    }

    fn ring(&mut self) -> bool {
        self.ring_doorbell()
    }

    fn reap(&mut self) -> Reaped {
        self.take_completions()
    }

    fn answer(&mut self, slot: u16) -> Option<u16> {
        let code = self.io.poll(slot)?;
        self.io.release(slot);
        Some(code)
    }

    fn is_lost(&mut self) -> bool {
        self.says_lost()
    }

    fn abort(&mut self, slot: u16) -> io::Result<()> {
        self.give_up(slot)
    }

    fn stop(&mut self) -> io::Result<()> {
        self.disable()
    }

    fn start(&mut self) -> io::Result<()> {
        self.enable()
    }

    fn sleep(&mut self, limit: Duration) -> io::Result<()> {
        let limit = Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let interrupt = self.container.interrupt();
        let mut fds = [PollFd::new(&interrupt, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                let mut count = [0; 8];
                match rustix::io::read(interrupt, &mut count) {
                    Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn shut_down(&mut self) -> io::Result<()> {
        self.go_down()
    }
}
