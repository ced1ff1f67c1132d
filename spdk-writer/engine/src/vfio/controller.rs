// SPDX-License-Identifier: MIT

//! An NVMe controller: switched on and off, asked who it is (NVM Express Base
//! Specification 2.0, section 3; NVM Command Set Specification 1.0).

use super::queue::{
    MAX_DEPTH,
    Queue, //
};
use crate::nvme::container::{
    Container,
    Registers,
    other, //
};
use crate::nvme::{
    Reaped,
    identify, //
};
use crate::{
    Identity,
    Memory, //
};
use lbio_core::nvme::{
    PAGE_SIZE,
    Prp,
    Sqe, //
};
use std::io;
use std::thread::sleep;
use std::time::{
    Duration,
    Instant, //
};

/// Registers (section 3.1.3), byte offsets.
mod register {
    pub(super) const CAP: usize = 0x00;
    pub(super) const CC: usize = 0x14;
    pub(super) const CSTS: usize = 0x1c;
    pub(super) const AQA: usize = 0x24;
    pub(super) const ASQ: usize = 0x28;
    pub(super) const ACQ: usize = 0x30;
}

/// Controller Configuration: entries of 64 and 16 bytes, pages of 4096.
const CC_SIZES: u32 = 6 << 16 | 4 << 20;
/// Controller Configuration: enable.
const CC_ENABLE: u32 = 1;
/// Controller Configuration: normal shutdown.
const CC_SHUTDOWN: u32 = 1 << 14;
/// Controller Status: ready.
const READY: u32 = 1;
/// Controller Status: fatal.
const FATAL: u32 = 1 << 1;
/// Controller Status: shutdown, and that it is complete.
const SHUTDOWN: u32 = 3 << 2;
const SHUTDOWN_DONE: u32 = 2 << 2;

/// Opcodes of admin commands.
mod opcode {
    pub(super) const DELETE_SQ: u8 = 0x00;
    pub(super) const CREATE_SQ: u8 = 0x01;
    pub(super) const DELETE_CQ: u8 = 0x04;
    pub(super) const CREATE_CQ: u8 = 0x05;
    pub(super) const IDENTIFY: u8 = 0x06;
    pub(super) const ABORT: u8 = 0x08;
    pub(super) const SET_FEATURES: u8 = 0x09;
    pub(super) const GET_FEATURES: u8 = 0x0a;
    pub(super) const DOORBELL_BUFFERS: u8 = 0x7c;
}

/// Number of the feature.
const FEATURE_QUEUES: u32 = 0x07;

/// How long a shutdown may take if nothing says more.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);
/// How long an admin command may take.
const ADMIN_PATIENCE: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK: Duration = Duration::from_micros(50);

/// Number of the queue pair for I/O.
pub(super) const IO_QUEUE: u16 = 1;

/// A controller, and its two queue pairs.
#[derive(Debug)]
pub struct Controller {
    // Its registers are unmapped, and it is closed, before its memory goes.
    registers: Registers,
    pub(super) container: Container,
    admin: Queue,
    pub(super) io: Queue,
    /// A page for what it says of itself.
    page: Memory,
    page_address: u64,
    /// Two pages: shadows of doorbells, and their event indices.
    shadows: Memory,
    shadows_address: u64,
    /// Doorbells have shadows.
    has_shadows: bool,
    /// How long it may take to become ready, or the contrary.
    patience: Duration,
    /// The namespace that was identified.
    pub(super) nsid: u32,
    /// Its address of the engine's memory.
    pub(super) data: u64,
}

impl Controller {
    /// Switches the controller on, with queues of `depth` commands; it has the
    /// engine's memory at `data`.
    pub(super) fn new(mut container: Container, data: u64, depth: u16) -> io::Result<Self> {
        let registers = container.registers()?;
        let low = registers.read(register::CAP);
        let high = registers.read(register::CAP + 4);
        if low == u32::MAX {
            return Err(other("it does not answer"));
        }
        // Pages of 4 KiB must do, and the NVM command set.
        if high >> 16 & 0xf != 0 || high >> 5 & 1 == 0 {
            return Err(other("it knows no pages of 4 KiB, or no NVM commands"));
        }
        let stride = 4 << (high & 0xf);
        let entries = (low & 0xffff).min(u32::from(MAX_DEPTH) - 1) as u16 + 1;
        let depth = depth.saturating_add(1).clamp(2, entries);
        let mut map = |base, len| container.map(base, len);
        let admin = Queue::new(0, entries.min(8), stride, &mut map)?;
        let io = Queue::new(IO_QUEUE, depth, stride, &mut map)?;
        if !Registers::has(io.doorbell(1)) {
            return Err(other("its doorbells are further apart than any known"));
        }
        let page = Memory::new(1, PAGE_SIZE as usize)?;
        let page_address = map(page.base(), page.len())?;
        let shadows = Memory::new(1, 2 * PAGE_SIZE as usize)?;
        let shadows_address = map(shadows.base(), shadows.len())?;
        container.enable_interrupt()?;
        let mut controller = Self {
            registers,
            container,
            admin,
            io,
            page,
            page_address,
            shadows,
            shadows_address,
            has_shadows: false,
            // CAP.TO, in units of 500 ms.
            patience: Duration::from_millis(500) * (low >> 24).max(1),
            nsid: 0,
            data,
        };
        controller.enable()?;
        Ok(controller)
    }

    /// Whether it says that it is lost, or says nothing at all.
    pub(super) fn says_lost(&self) -> bool {
        // All ones when it is not there any more.
        self.registers.read(register::CSTS) & FATAL != 0
    }

    fn wait(&self, patience: Duration, mask: u32, value: u32) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.registers.read(register::CSTS);
            if status == u32::MAX {
                return Err(other("it is not there any more"));
            }
            if status & mask == value {
                return Ok(());
            }
            if begin.elapsed() > patience {
                return Err(other(format!("it stays in status {status:#x}")));
            }
            sleep(LOOK);
        }
    }

    /// Stops the controller: after this it accesses no memory.
    pub(super) fn disable(&mut self) -> io::Result<()> {
        let config = self.registers.read(register::CC);
        self.registers.write(register::CC, config & !CC_ENABLE);
        self.wait(self.patience, READY, 0)
    }

    /// Starts the controller with empty queues.
    pub(super) fn enable(&mut self) -> io::Result<()> {
        self.disable()?;
        self.admin.reset();
        self.io.reset();
        let last = u32::from(self.admin.depth()) - 1;
        self.registers.write(register::AQA, last << 16 | last);
        for (at, address) in [
            (register::ASQ, self.admin.submission_address()),
            (register::ACQ, self.admin.completion_address()),
        ] {
            self.registers.write(at, address as u32);
            self.registers.write(at + 4, (address >> 32) as u32);
        }
        self.registers.write(register::CC, CC_SIZES | CC_ENABLE);
        self.wait(self.patience, READY, READY)?;

        // One queue pair is the least there can be: 0's based, so 0 of each.
        self.admin(
            opcode::SET_FEATURES,
            0,
            Prp::default(),
            [FEATURE_QUEUES, 0, 0, 0, 0, 0],
        )?;
        let size = (u32::from(self.io.depth()) - 1) << 16 | u32::from(IO_QUEUE);
        let at = |address| Prp {
            first: address,
            second: 0,
        };
        // Physically contiguous, with the first interrupt vector.
        let completions = at(self.io.completion_address());
        self.admin(opcode::CREATE_CQ, 0, completions, [size, 0b11, 0, 0, 0, 0])?;
        let submissions = at(self.io.submission_address());
        let dword11 = u32::from(IO_QUEUE) << 16 | 1;
        self.admin(
            opcode::CREATE_SQ,
            0,
            submissions,
            [size, dword11, 0, 0, 0, 0],
        )?;
        match self.has_shadows {
            true => self.give_shadows(),
            false => Ok(()),
        }
    }

    /// Gives the controller the memory of its doorbells' shadows, which a reset takes
    /// from it (NVM Express 1.3, section 5.7). No command was given since it started.
    fn give_shadows(&mut self) -> io::Result<()> {
        let mut pages = self
            .shadows
            .take()
            .ok_or_else(|| other("its doorbells' memory is in use"))?;
        pages.fill(0);
        drop(pages);
        let pages = Prp {
            first: self.shadows_address,
            second: self.shadows_address + PAGE_SIZE,
        };
        self.admin(opcode::DOORBELL_BUFFERS, 0, pages, [0; 6])?;
        self.io.shadow(&self.shadows);
        Ok(())
    }

    /// Does an admin command and waits for it; its result.
    fn admin(&mut self, opcode: u8, nsid: u32, prp: Prp, dwords: [u32; 6]) -> io::Result<u32> {
        let slot = self
            .admin
            .alloc()
            .ok_or_else(|| other("it answers no admin commands"))?;
        self.admin.push(&Sqe::new(opcode, slot, nsid, prp, dwords));
        self.admin.ring(&self.registers);
        let begin = Instant::now();
        loop {
            self.admin.reap(&self.registers, |_| {});
            if let Some(code) = self.admin.poll(slot) {
                self.admin.release(slot);
                return match crate::nvme::status(code) {
                    None => Ok(self.admin.last_result()),
                    Some(status) => Err(other(format!("admin command {opcode:#04x}: {status}"))),
                };
            }
            if begin.elapsed() > ADMIN_PATIENCE || self.says_lost() {
                // The slot stays taken: who knows what the controller does.
                return Err(other(format!("no answer to admin command {opcode:#04x}")));
            }
            sleep(LOOK);
        }
    }

    /// Asks the controller to give up an I/O command.
    pub(super) fn give_up(&mut self, cid: u16) -> io::Result<()> {
        let which = u32::from(cid) << 16 | u32::from(IO_QUEUE);
        self.admin(opcode::ABORT, 0, Prp::default(), [which, 0, 0, 0, 0, 0])
            .map(drop)
    }

    /// What it says of itself (`cns` 1) or of a namespace (`cns` 0).
    fn identify_page(&mut self, nsid: u32, cns: u32) -> io::Result<Vec<u8>> {
        let prp = Prp {
            first: self.page_address,
            second: 0,
        };
        self.admin(opcode::IDENTIFY, nsid, prp, [cns, 0, 0, 0, 0, 0])?;
        // The controller writes no more: this is ours until the next command.
        let page = self
            .page
            .take()
            .ok_or_else(|| other("its page is in use"))?;
        Ok(page.to_vec())
    }

    /// Who it is, and what its namespace `nsid` is like.
    /// Its doorbells get shadows if `shadows` are wanted and it can do that.
    pub(super) fn identify(
        &mut self,
        name: String,
        nsid: u32,
        shadows: bool,
    ) -> io::Result<Identity> {
        self.nsid = nsid;
        let controller = self.identify_page(0, 1)?;
        identify::check_number(&controller, nsid)?;
        if shadows && identify::has_shadow_doorbells(&controller) {
            self.give_shadows()?;
            self.has_shadows = true;
        }
        let namespace = self.identify_page(nsid, 0)?;
        let feature = |controller: &mut Self| {
            controller.admin(
                opcode::GET_FEATURES,
                0,
                Prp::default(),
                [identify::VOLATILE_CACHE, 0, 0, 0, 0, 0],
            )
        };
        // The slot's page lists what one command can transfer, and one more.
        let most = 512 * PAGE_SIZE;
        identify::identity(name, nsid, &controller, &namespace, most, || feature(self))
    }

    /// Rings the doorbell of the I/O queue, if there is reason to.
    pub(super) fn ring_doorbell(&mut self) -> bool {
        self.io.ring(&self.registers)
    }

    /// Takes I/O completions; something is amiss if one makes no sense.
    pub(super) fn take_completions(&mut self) -> Reaped {
        let mut amiss = false;
        let (taken, rang) = self.io.reap(&self.registers, |_| amiss = true);
        Reaped {
            taken: taken.into(),
            rang,
            amiss,
        }
    }

    /// Deletes the queues and lets the controller write back its caches.
    pub(super) fn go_down(&mut self) -> io::Result<()> {
        let queue = [u32::from(IO_QUEUE), 0, 0, 0, 0, 0];
        let deleted = self
            .admin(opcode::DELETE_SQ, 0, Prp::default(), queue)
            .and_then(|_| self.admin(opcode::DELETE_CQ, 0, Prp::default(), queue));
        // Whether it did or not: it is shut down, and stopped in any case.
        let config = self.registers.read(register::CC);
        self.registers.write(register::CC, config | CC_SHUTDOWN);
        let down = self.wait(SHUTDOWN_PATIENCE, SHUTDOWN, SHUTDOWN_DONE);
        self.disable()?;
        deleted.map(drop).and(down)
    }
}
