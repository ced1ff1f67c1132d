// SPDX-License-Identifier: MIT

//! The engine that drives an NVMe controller by itself, over VFIO, with an
//! IOMMU between it and memory: one queue pair, polled as long as an answer is
//! near and asleep otherwise.
//!
//! # What can go wrong with a controller
//!
//! A command that is not answered in time is aborted; what was aborted is given
//! once more. If that is not answered either, the controller is reset and
//! everything in flight is given once more, in order. Reads and writes can be
//! done twice; a flush that is, covers at least what it covered. (A reset loses
//! nothing of a volatile cache, only power does.) After [`MAX_TRIES`] a command
//! has failed; after as many resets without any answer the controller is lost.

#![expect(unsafe_code, reason = "a device is given addresses")]

mod container;
mod controller;
mod pci;
mod queue;

use crate::guard::{
    self,
    Force, //
};
use crate::uring::answer;
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
use container::Container;
use controller::{
    Controller,
    Features, //
};
use lbio_core::nvme::{
    PAGE_SIZE,
    Prp,
    Sqe, //
};
use lbio_core::poll::Estimator;
use pci::Bound;
use rustix::event::{
    PollFd,
    PollFlags,
    Timespec,
    poll, //
};
use std::collections::VecDeque;
use std::hint::spin_loop;
use std::time::{
    Duration,
    Instant, //
};

/// How often a command is tried, and how often the controller is reset.
const MAX_TRIES: u32 = 4;

/// Longest spin for an answer, nanoseconds.
const SPIN_NS: u64 = 50_000;

/// How often a sleeper looks whether the controller is still well.
const LOOK: Duration = Duration::from_millis(500);

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most commands in flight: 1 to 63, and what the controller takes.
    pub depth: u16,
    /// How many buffers.
    pub buffers: usize,
    /// Bytes of each.
    pub buffer_size: usize,
    /// How long a command may take.
    pub timeout: Duration,
    /// Whether content that looks as if it were needed is given up.
    pub force: Force,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 63,
            buffers: 32,
            buffer_size: 1 << 20,
            timeout: Duration::from_secs(30),
            force: Force::No,
        }
    }
}

/// An engine on one namespace.
pub struct Vfio {
    // Dropped in this order: closed, given back, memory freed.
    controller: Controller,
    bound: Bound,
    memory: Memory,
    /// The controller's address of the memory.
    address: u64,
    identity: Identity,
    features: Features,
    nsid: u32,
    timeout: Duration,
    /// By number: requests in flight...
    flying: Vec<Option<Flying>>,
    idle: Vec<usize>,
    /// ... their commands that are not given yet, in order ...
    waiting: VecDeque<Part>,
    /// ... and, by slot, those that are.
    given: Vec<Option<Given>>,
    early: Vec<Done>,
    /// Resets since the last answer.
    resets: u32,
    sequence: u64,
    estimator: Estimator,
    stats: Stats,
}

struct Flying {
    request: Request,
    /// Commands that are not done.
    left: u64,
    /// How the first failed that did.
    status: Option<Status>,
    since: Instant,
}

/// One command of a request.
#[derive(Clone, Copy, Debug)]
struct Part {
    flying: usize,
    /// Bytes from the beginning of the request.
    at: u64,
    len: u64,
    tries: u32,
    /// Order in which they came.
    sequence: u64,
}

/// A command the controller has.
struct Given {
    part: Part,
    since: Instant,
    /// The controller was asked to give it up.
    aborted: bool,
}

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
            move |error: std::io::Error| Error::device(name, what, error)
        };
        let memory =
            Memory::new(options.buffers, options.buffer_size).map_err(fail("get memory for"))?;
        let mut container = Container::open(address, bound.dir()).map_err(fail("open it"))?;
        let address = container
            .map(memory.base(), memory.len())
            .map_err(fail("let it access memory"))?;
        let mut controller = Controller::new(container, options.depth).map_err(fail("start it"))?;
        let (identity, features) = controller
            .identify(name.clone(), nsid)
            .map_err(fail("identify it"))?;
        // As many requests as slots; each has one command in flight at least.
        let depth = usize::from(controller.io.depth()) - 1;
        let mut engine = Self {
            controller,
            bound,
            memory,
            address,
            identity,
            features,
            nsid,
            timeout: options.timeout,
            flying: (0..depth).map(|_| None).collect(),
            idle: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            given: (0..depth).map(|_| None).collect(),
            early: Vec::new(),
            resets: 0,
            sequence: 0,
            estimator: Estimator::default(),
            stats: Stats::default(),
        };
        engine.check_signature(options.force)?;
        Ok(engine)
    }

    /// The PCI device is in the hands of this process.
    pub fn is_bound(&self) -> bool {
        self.bound.dir().exists()
    }

    /// Looks at the first bytes with its own eyes: the device may have come
    /// without a driver that could have.
    fn check_signature(&mut self, force: Force) -> Result<(), Error> {
        let len = (256 << 10)
            .min(self.identity.size)
            .min(self.memory.buffer_size() as u64);
        let request = Request {
            tag: 0,
            action: Action::Read,
            offset: 0,
            len,
            buffer: self.memory.take(),
        };
        self.submit(request).map_err(|refused| refused.error)?;
        let mut done = Vec::new();
        while done.is_empty() {
            self.kick()?;
            self.reap(true, &mut done)?;
        }
        for done in done {
            done.result?;
            let found = done.buffer.as_deref().and_then(guard::find_signature);
            force
                .check(found)
                .map_err(|refusal| Error::device(&self.identity.name, "take it", refusal))?;
        }
        Ok(())
    }

    /// Gives the controller as many waiting commands as there are slots.
    fn give(&mut self) {
        while let Some(part) = self.waiting.front().copied() {
            let Some(slot) = self.controller.io.alloc() else {
                return;
            };
            self.waiting.pop_front();
            let Some(flying) = self.flying.get(part.flying).and_then(Option::as_ref) else {
                unreachable!("a request is in flight while its commands are");
            };
            let action = flying.request.action;
            let command = self.command(slot, &part, &flying.request);
            self.controller.io.push(&command);
            self.stats.command(action);
            if part.tries > 0 {
                self.stats.counts.replays += 1;
            }
            if let Some(given) = self.given.get_mut(usize::from(slot)) {
                *given = Some(Given {
                    part,
                    since: Instant::now(),
                    aborted: false,
                });
            }
        }
    }

    /// The command for `part` of `request` in `slot` (NVM Command Set
    /// Specification 1.0, section 3.2).
    fn command(&self, slot: u16, part: &Part, request: &Request) -> Sqe {
        let shift = self.features.block_shift;
        let first = (request.offset + part.at) >> shift;
        let blocks = part.len >> shift;
        let (low, high) = (first as u32, (first >> 32) as u32);
        // 0's based; a command's length was cut to fit.
        let length = blocks.wrapping_sub(1) as u32 & 0xffff;
        let (opcode, prp, dwords) = match (request.action, &request.buffer) {
            (Action::Flush, _) => (0x00, Prp::default(), [0; 6]),
            (Action::WriteZeroes, _) => (0x08, Prp::default(), [low, high, length, 0, 0, 0]),
            (Action::Discard, _) => {
                // One range: attributes, length, first block.
                self.controller.io.set_slot_word(slot, 0, blocks << 32);
                self.controller.io.set_slot_word(slot, 1, first);
                let prp = Prp {
                    first: self.controller.io.slot_address(slot),
                    second: 0,
                };
                // Deallocate.
                (0x09, prp, [0, 1 << 2, 0, 0, 0, 0])
            }
            (action, buffer) => {
                let start = buffer.as_ref().map_or(0, |buffer| buffer.start() as u64);
                let address = self.address + start + part.at;
                let pages = part.len.div_ceil(PAGE_SIZE) as u32;
                let described = self.controller.io.describe(slot, address, pages);
                let Ok(prp) = described else {
                    unreachable!("whole pages, as many as were cut to fit: {described:?}");
                };
                let opcode = if action == Action::Write { 0x01 } else { 0x02 };
                (opcode, prp, [low, high, length, 0, 0, 0])
            }
        };
        Sqe::new(opcode, slot, self.nsid, prp, dwords)
    }

    /// Takes completions.
    fn harvest(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        done.append(&mut self.early);
        let (taken, nonsense) = self.controller.reap();
        if taken > 0 {
            self.resets = 0;
            for slot in 0..self.given.len() as u16 {
                self.complete(slot, done);
            }
        }
        if nonsense > 0 {
            // Whatever it means, the queue is not to be trusted.
            self.reset(done)?;
        }
        Ok(())
    }

    /// Takes the completion of `slot`, if there is one.
    fn complete(&mut self, slot: u16, done: &mut Vec<Done>) {
        let Some(given) = self.given.get_mut(usize::from(slot)) else {
            return;
        };
        if given.is_none() {
            return;
        }
        let Some(code) = self.controller.io.poll(slot) else {
            return;
        };
        self.controller.io.release(slot);
        let Some(given) = given.take() else {
            return;
        };
        let waited = u64::try_from(given.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.estimator = self.estimator.learn(waited, SPIN_NS);
        let status = controller::status(code);
        let gave_up = matches!(
            status,
            Some(Status::Nvme {
                kind: 0,
                code: 0x07 | 0x08
            })
        );
        if given.aborted && gave_up {
            self.again(given.part, done);
        } else {
            self.part_done(given.part, status, done);
        }
    }

    /// Puts `part` before what is waiting, or gives it up.
    fn again(&mut self, part: Part, done: &mut Vec<Done>) {
        if part.tries + 1 >= MAX_TRIES {
            self.part_done(part, Some(Status::TimedOut), done);
        } else {
            self.waiting.push_front(Part {
                tries: part.tries + 1,
                ..part
            });
        }
    }

    fn part_done(&mut self, part: Part, status: Option<Status>, done: &mut Vec<Done>) {
        let Some(slot) = self.flying.get_mut(part.flying) else {
            return;
        };
        let Some(flying) = slot else {
            return;
        };
        flying.left -= 1;
        flying.status = flying.status.take().or(status);
        if flying.left > 0 {
            return;
        }
        if let Some(flying) = slot.take() {
            self.idle.push(part.flying);
            let Request { action, len, .. } = flying.request;
            let took = flying.since.elapsed();
            self.stats.done(action, len, took, flying.status.is_none());
            done.push(answer(&self.identity.name, flying.request, flying.status));
        }
    }

    /// What there is to do about commands without an answer.
    fn overdue(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        if self.controller.is_lost() {
            return self.reset(done);
        }
        let late = |given: &Option<Given>| {
            let given = given.as_ref()?;
            (given.since.elapsed() >= self.timeout).then_some(given.aborted)
        };
        let Some(slot) = self.given.iter().position(|given| late(given).is_some()) else {
            return Ok(());
        };
        self.stats.counts.timeouts += 1;
        let Some(Some(given)) = self.given.get_mut(slot) else {
            return Ok(());
        };
        if !given.aborted {
            given.aborted = true;
            given.since = Instant::now();
            self.stats.counts.aborts += 1;
            if self.controller.abort(slot as u16).is_ok() {
                return Ok(());
            }
        }
        self.reset(done)
    }

    /// Resets the controller and lets everything in flight be given once more.
    fn reset(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        self.resets += 1;
        self.stats.counts.resets += 1;
        if self.resets > MAX_TRIES {
            return Err(Error::device(
                &self.identity.name,
                "reach it",
                format_args!("no answer after {MAX_TRIES} resets"),
            ));
        }
        // What it has answered meanwhile counts; then it must be silent.
        self.controller
            .disable()
            .map_err(|error| Error::device(&self.identity.name, "stop it", error))?;
        self.controller.reap();
        for slot in 0..self.given.len() as u16 {
            self.complete(slot, done);
        }
        let mut parts: Vec<Part> = self
            .given
            .iter_mut()
            .filter_map(|given| Some(given.take()?.part))
            .collect();
        parts.sort_unstable_by_key(|part| std::cmp::Reverse(part.sequence));
        for part in parts {
            self.again(part, done);
        }
        self.controller
            .enable()
            .map_err(|error| Error::device(&self.identity.name, "restart it", error))
    }

    /// Waits for the interrupt, or until something is overdue.
    fn sleep(&mut self) -> Result<(), Error> {
        self.stats.counts.sleeps += 1;
        let now = Instant::now();
        let oldest = self.given.iter().flatten().map(|given| given.since).min();
        let due = oldest.map_or(LOOK, |since| {
            (since + self.timeout).saturating_duration_since(now)
        });
        let limit = due.min(LOOK);
        let limit = Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let interrupt = self.controller.container.interrupt();
        let mut fds = [PollFd::new(&interrupt, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => {
                let mut count = [0; 8];
                match rustix::io::read(interrupt, &mut count) {
                    Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
                    Err(error) => Err(Error::device(&self.identity.name, "wait for it", error)),
                }
            }
            Err(error) => Err(Error::device(&self.identity.name, "wait for it", error)),
        }
    }

    /// Longest command of a kind, bytes.
    fn longest(&self, action: Action) -> u64 {
        match action {
            Action::Flush => 0,
            // Lengths of ranges have 32 bits.
            Action::Discard => 1 << 30,
            Action::Read | Action::Write | Action::WriteZeroes => {
                // Lengths have 16 bits.
                self.identity
                    .max_transfer
                    .min(0x1_0000 << self.features.block_shift)
            }
        }
    }
}

impl Engine for Vfio {
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
        let needless = match request.action {
            Action::Flush => !self.identity.volatile_cache,
            Action::Discard => !self.identity.discard,
            _ => false,
        };
        if needless {
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
        let (len, longest) = (request.len, self.longest(request.action));
        let mut left = 0;
        let mut at = 0;
        // A flush is one command without a length.
        while left == 0 || at < len {
            let part = Part {
                flying: index,
                at,
                len: (len - at).min(longest),
                tries: 0,
                sequence: self.sequence,
            };
            self.waiting.push_back(part);
            self.sequence += 1;
            at += part.len;
            left += 1;
        }
        if let Some(flying) = self.flying.get_mut(index) {
            *flying = Some(Flying {
                request,
                left,
                status: None,
                since: Instant::now(),
            });
        }
        Ok(())
    }

    fn kick(&mut self) -> Result<(), Error> {
        self.give();
        if self.controller.ring() {
            self.stats.counts.doorbells += 1;
        }
        Ok(())
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) -> Result<(), Error> {
        let before = done.len();
        self.harvest(done)?;
        self.kick()?;
        let mut begin = Instant::now();
        while wait && done.len() == before && self.in_flight() > 0 {
            let budget = Duration::from_nanos(self.estimator.budget_ns(SPIN_NS));
            if begin.elapsed() < budget {
                spin_loop();
            } else {
                self.sleep()?;
                begin = Instant::now();
                self.harvest(done)?;
                self.overdue(done)?;
            }
            self.harvest(done)?;
            self.kick()?;
        }
        Ok(())
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if self.kick().is_err() || self.reap(true, &mut done).is_err() {
                break;
            }
        }
        if let Err(error) = self.controller.shut_down() {
            eprintln!(
                "warning: {}: no orderly shutdown: {error}",
                self.identity.name
            );
        }
        // Closing it resets it, so that it accesses no memory that is freed.
    }
}
