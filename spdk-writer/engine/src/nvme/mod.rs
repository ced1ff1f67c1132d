// SPDX-License-Identifier: MIT

//! What the engines have in common that drive an NVMe controller from this
//! process: requests cut into commands, and what is done about those that are
//! not answered. How a controller is told and asked is a [`Driver`]'s.
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

pub(crate) mod container;
pub(crate) mod identify;
pub(crate) mod pci;

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
use lbio_core::poll::Estimator;
use pci::Bound;
use std::collections::VecDeque;
use std::hint::spin_loop;
use std::io;
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
    /// Whether doorbells have shadows in memory, where the controller can do that. SPDK
    /// decides for itself.
    pub shadow_doorbells: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: 63,
            buffers: 32,
            buffer_size: 1 << 20,
            timeout: Duration::from_secs(30),
            force: Force::No,
            shadow_doorbells: true,
        }
    }
}

/// One command, as a driver gives it to its controller.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// What to do.
    pub(crate) action: Action,
    /// First block of the namespace.
    pub(crate) first: u64,
    /// How many; 0 for a flush.
    pub(crate) blocks: u64,
    /// Of reads and writes: where in the engine's memory, bytes.
    pub(crate) data: usize,
    /// Bytes of data.
    pub(crate) len: u64,
}

/// Completions that were taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reaped {
    /// How many.
    pub(crate) taken: u32,
    /// The controller was told so by its doorbell.
    pub(crate) rang: bool,
    /// Something is amiss.
    pub(crate) amiss: bool,
}

/// How a controller is told and asked.
pub trait Driver: Send {
    /// Most commands it can have.
    fn depth(&self) -> usize;

    /// Takes a slot below [`Driver::depth`] for a command; [`None`] if all are in
    /// use.
    fn alloc(&mut self) -> Option<u16>;

    /// Puts `command` into the queue as that of `slot`. The controller may not
    /// know of it before [`Driver::ring`].
    ///
    /// # Errors
    ///
    /// It is not in the queue. The slot stays taken until the next reset.
    fn push(&mut self, slot: u16, command: &Command) -> io::Result<()>;

    /// Tells the controller of what was put into the queue; says whether that took a
    /// write to its doorbell.
    fn ring(&mut self) -> bool;

    /// Takes completions.
    fn reap(&mut self) -> Reaped;

    /// Status (type and code, 11 bits) of a slot's command, if it was taken; the
    /// slot is free then.
    fn answer(&mut self, slot: u16) -> Option<u16>;

    /// Whether the controller says that it is lost, or says nothing at all.
    fn is_lost(&mut self) -> bool;

    /// Asks it to give up the command of `slot`.
    ///
    /// # Errors
    ///
    /// It does not answer.
    fn abort(&mut self, slot: u16) -> io::Result<()>;

    /// Stops it: after this it accesses no memory.
    ///
    /// # Errors
    ///
    /// It does not stop.
    fn stop(&mut self) -> io::Result<()>;

    /// Starts it with empty queues; all slots are free.
    ///
    /// # Errors
    ///
    /// It does not start.
    fn start(&mut self) -> io::Result<()>;

    /// Sleeps until there may be a completion, for `limit` at most.
    ///
    /// # Errors
    ///
    /// The system's.
    fn sleep(&mut self, limit: Duration) -> io::Result<()>;

    /// Deletes the queues and lets the controller write back its caches.
    ///
    /// # Errors
    ///
    /// It does not say that it has.
    fn shut_down(&mut self) -> io::Result<()>;
}

/// An engine on one namespace.
pub struct Nvme<D: Driver> {
    // Dropped in this order: closed, given back, memory freed.
    driver: D,
    /// [`None`] where there is no PCI device, in tests.
    bound: Option<Bound>,
    memory: Memory,
    identity: Identity,
    /// Bytes per block, as a power of two.
    block_shift: u32,
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
    /// A command could not be put into the queue.
    amiss: bool,
    /// What was given up was so by a reset.
    resetting: bool,
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

impl<D: Driver> Nvme<D> {
    /// An engine on what `driver` drives, which has `bound` and may access
    /// `memory`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: the namespace holds something.
    pub(crate) fn new(
        driver: D,
        bound: Bound,
        memory: Memory,
        identity: Identity,
        options: &Options,
    ) -> Result<Self, Error> {
        Self::with(driver, Some(bound), memory, identity, options)
    }

    fn with(
        driver: D,
        bound: Option<Bound>,
        memory: Memory,
        identity: Identity,
        options: &Options,
    ) -> Result<Self, Error> {
        // As many requests as slots; each has one command in flight at least.
        let depth = driver.depth();
        let mut engine = Self {
            driver,
            bound,
            memory,
            block_shift: identity.block_size.trailing_zeros(),
            identity,
            timeout: options.timeout,
            flying: (0..depth).map(|_| None).collect(),
            idle: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            given: (0..depth).map(|_| None).collect(),
            early: Vec::new(),
            resets: 0,
            amiss: false,
            resetting: false,
            sequence: 0,
            estimator: Estimator::default(),
            stats: Stats::default(),
        };
        engine.check_signature(options.force)?;
        Ok(engine)
    }

    /// The PCI device is in the hands of this process.
    pub fn is_bound(&self) -> bool {
        self.bound.as_ref().is_some_and(|it| it.dir().exists())
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
            force.check(found).map_err(|refusal| {
                let Identity {
                    name,
                    model,
                    serial,
                    ..
                } = &self.identity;
                Error::device(guard::describe_as(name, model, serial), "take it", refusal)
            })?;
        }
        Ok(())
    }

    /// Gives the controller as many waiting commands as there are slots.
    fn give(&mut self) {
        while let Some(part) = self.waiting.front().copied() {
            let Some(slot) = self.driver.alloc() else {
                return;
            };
            self.waiting.pop_front();
            let Some(flying) = self.flying.get(part.flying).and_then(Option::as_ref) else {
                unreachable!("a request is in flight while its commands are");
            };
            let request = &flying.request;
            let start = request.buffer.as_ref().map_or(0, |buffer| buffer.start());
            let command = Command {
                action: request.action,
                first: (request.offset + part.at) >> self.block_shift,
                blocks: part.len >> self.block_shift,
                data: start + part.at as usize,
                len: part.len,
            };
            let action = request.action;
            match self.driver.push(slot, &command) {
                Ok(()) => {
                    self.stats.command(action);
                    if part.tries > 0 {
                        self.stats.counts.replays += 1;
                    }
                }
                // It is as if there were no answer.
                Err(_) => self.amiss = true,
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

    /// Takes completions.
    fn harvest(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        done.append(&mut self.early);
        let Reaped { taken, rang, amiss } = self.driver.reap();
        self.stats.counts.completion_doorbells += u64::from(rang);
        if taken > 0 {
            self.resets = 0;
            for slot in 0..self.given.len() as u16 {
                self.complete(slot, done);
            }
        }
        if amiss || self.amiss {
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
        let Some(code) = self.driver.answer(slot) else {
            return;
        };
        let status = status(code);
        let gave_up = matches!(
            status,
            Some(Status::Nvme {
                kind: 0,
                code: 0x07 | 0x08
            })
        );
        if self.resetting && gave_up {
            // It was the reset: it is given again with all others.
            return;
        }
        let Some(given) = given.take() else {
            return;
        };
        let waited = u64::try_from(given.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.estimator = self.estimator.learn(waited, SPIN_NS);
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
        if self.driver.is_lost() {
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
            if self.driver.abort(slot as u16).is_ok() {
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
        self.driver
            .stop()
            .map_err(|error| Error::device(&self.identity.name, "stop it", error))?;
        self.driver.reap();
        self.amiss = false;
        self.resetting = true;
        for slot in 0..self.given.len() as u16 {
            self.complete(slot, done);
        }
        self.resetting = false;
        let mut parts: Vec<Part> = self
            .given
            .iter_mut()
            .filter_map(|given| Some(given.take()?.part))
            .collect();
        parts.sort_unstable_by_key(|part| std::cmp::Reverse(part.sequence));
        for part in parts {
            self.again(part, done);
        }
        self.driver
            .start()
            .map_err(|error| Error::device(&self.identity.name, "restart it", error))
    }

    /// Waits for an answer, or until something is overdue.
    fn sleep(&mut self) -> Result<(), Error> {
        self.stats.counts.sleeps += 1;
        let now = Instant::now();
        let oldest = self.given.iter().flatten().map(|given| given.since).min();
        let due = oldest.map_or(LOOK, |since| {
            (since + self.timeout).saturating_duration_since(now)
        });
        self.driver
            .sleep(due.min(LOOK))
            .map_err(|error| Error::device(&self.identity.name, "wait for it", error))
    }

    /// Longest command of a kind, bytes.
    fn longest(&self, action: Action) -> u64 {
        match action {
            Action::Flush => 0,
            // Lengths of ranges have 32 bits.
            Action::Discard => 1 << 30,
            Action::Read | Action::Write | Action::WriteThrough | Action::WriteZeroes => {
                // Lengths have 16 bits.
                self.identity.max_transfer.min(0x1_0000 << self.block_shift)
            }
        }
    }
}

impl<D: Driver> Engine for Nvme<D> {
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
        if self.driver.ring() {
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

impl<D: Driver> Drop for Nvme<D> {
    fn drop(&mut self) {
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if self.kick().is_err() || self.reap(true, &mut done).is_err() {
                break;
            }
        }
        if let Err(error) = self.driver.shut_down() {
            eprintln!(
                "warning: {}: no orderly shutdown: {error}",
                self.identity.name
            );
        }
        // Closing it resets it, so that it accesses no memory that is freed.
    }
}

/// What a status code type and code (as LBIO's core has them) mean; [`None`] for
/// success.
pub(crate) fn status(code: u16) -> Option<Status> {
    (code != 0).then_some(Status::Nvme {
        kind: (code >> 8 & 7) as u8,
        code: code as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// What a controller does about a command to give another one up.
    #[derive(Clone, Copy, PartialEq)]
    enum Abort {
        /// That is answered, as given up.
        GivesUp,
        /// It says that it has, and nothing comes.
        Nothing,
        /// It does not answer.
        Silent,
    }

    /// A controller that forgets some of its writes.
    struct Forgetful {
        free: Vec<u16>,
        answers: HashMap<u16, u16>,
        /// Answers that were not taken.
        fresh: u32,
        /// Writes it will forget.
        forgets: u32,
        abort: Abort,
        /// What it was given, first blocks of writes.
        written: Vec<u64>,
    }

    const DEPTH: u16 = 4;

    impl Driver for Forgetful {
        fn depth(&self) -> usize {
            usize::from(DEPTH)
        }

        fn alloc(&mut self) -> Option<u16> {
            self.free.pop()
        }

        fn push(&mut self, slot: u16, command: &Command) -> io::Result<()> {
            if command.action == Action::Write {
                self.written.push(command.first);
                if self.forgets > 0 {
                    self.forgets -= 1;
                    return Ok(());
                }
            }
            self.answers.insert(slot, 0);
            self.fresh += 1;
            Ok(())
        }

        fn ring(&mut self) -> bool {
            false
        }

        fn reap(&mut self) -> Reaped {
            Reaped {
                taken: std::mem::take(&mut self.fresh),
                ..Reaped::default()
            }
        }

        fn answer(&mut self, slot: u16) -> Option<u16> {
            let code = self.answers.remove(&slot)?;
            self.free.push(slot);
            Some(code)
        }

        fn is_lost(&mut self) -> bool {
            false
        }

        fn abort(&mut self, slot: u16) -> io::Result<()> {
            match self.abort {
                Abort::GivesUp => {
                    // Command abort requested.
                    self.answers.insert(slot, 0x07);
                    self.fresh += 1;
                    Ok(())
                }
                Abort::Nothing => Ok(()),
                Abort::Silent => Err(io::ErrorKind::TimedOut.into()),
            }
        }

        fn stop(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn start(&mut self) -> io::Result<()> {
            self.free = (0..DEPTH).collect();
            Ok(())
        }

        fn sleep(&mut self, limit: Duration) -> io::Result<()> {
            std::thread::sleep(limit);
            Ok(())
        }

        fn shut_down(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Two writes to a controller that forgets the first `forgets` it is given.
    fn write_two(forgets: u32, abort: Abort) -> (Nvme<Forgetful>, Vec<Done>) {
        let driver = Forgetful {
            free: (0..DEPTH).collect(),
            answers: HashMap::new(),
            fresh: 0,
            forgets,
            abort,
            written: Vec::new(),
        };
        let identity = Identity {
            name: "forgetful".into(),
            model: String::new(),
            serial: String::new(),
            size: 1 << 20,
            block_size: 4096,
            max_transfer: 8192,
            volatile_cache: true,
            atomic_unit: 4096,
            discard: true,
            write_zeroes: true,
        };
        let options = Options {
            timeout: Duration::from_millis(20),
            ..Options::default()
        };
        let memory = Memory::new(4, 8192).unwrap();
        let mut engine = Nvme::with(driver, None, memory, identity, &options).unwrap();
        for tag in [1, 2] {
            let request = Request {
                tag,
                action: Action::Write,
                offset: tag * 4096,
                len: 4096,
                buffer: engine.memory().take(),
            };
            engine.submit(request).unwrap();
        }
        let mut done = Vec::new();
        while done.len() < 2 {
            engine.kick().unwrap();
            engine.reap(true, &mut done).unwrap();
        }
        assert!(done.iter().all(|done| done.buffer.is_some()));
        (engine, done)
    }

    #[test]
    fn test_timeout_what_is_aborted_is_given_again_without_a_reset() {
        let (engine, done) = write_two(1, Abort::GivesUp);
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!(engine.driver.written, [1, 2, 1]);
        let counts = engine.stats().counts;
        assert_eq!((counts.timeouts, counts.aborts), (1, 1));
        assert_eq!((counts.resets, counts.replays), (0, 1));
        assert_eq!((counts.writes, counts.failed), (3, 0));
    }

    #[test]
    fn test_timeout_what_is_forgotten_for_good_fails_and_nothing_else() {
        let (engine, mut done) = write_two(u32::MAX, Abort::GivesUp);
        done.sort_by_key(|done| done.tag);
        for done in done {
            let failed = matches!(
                done.result,
                Err(Error::Command {
                    status: Status::TimedOut,
                    ..
                })
            );
            assert!(failed, "{:?}", done.result);
        }
        let counts = engine.stats().counts;
        assert_eq!(counts.aborts, u64::from(2 * MAX_TRIES));
        assert_eq!((counts.resets, counts.failed), (0, 2));
    }

    #[test]
    fn test_timeout_an_abort_that_does_not_help_ends_in_a_reset() {
        for (abort, timeouts) in [(Abort::Nothing, 2), (Abort::Silent, 1)] {
            let (engine, done) = write_two(1, abort);
            assert!(done.iter().all(|done| done.result.is_ok()));
            assert_eq!(engine.driver.written, [1, 2, 1]);
            let counts = engine.stats().counts;
            assert_eq!((counts.timeouts, counts.aborts), (timeouts, 1));
            assert_eq!((counts.resets, counts.replays), (1, 1));
        }
    }
}
