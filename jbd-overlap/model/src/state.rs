// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The state of a run, and the moves it allows.
//!
//! What the scheduler and the device may choose is a [`Move`]. What only makes
//! more crash states possible the earlier it happens is no choice and happens
//! at once ([`Protocol::settle`]): a command's submission (unsubmitted and
//! submitted-but-lost leave the same image; a flush that starts earlier covers
//! less) and the return of a sync call (it promises the sooner).

use crate::protocol::{Block, Changes, Cond, Device, Id, Kind, Look, On, Protocol, Tid};

/// Most steps of a protocol: a bit each.
pub const MAX_STEPS: usize = 64;
/// Most flushes in flight together.
const MAX_FLUSHES: usize = 6;
/// Most changes, and so transactions.
pub const MAX_CHANGES: usize = 4;
/// Most files.
pub const MAX_FILES: usize = 2;
/// Most data blocks.
pub const MAX_DATA: usize = 4;

/// A set of steps.
pub type Steps = u64;

/// The bit of a step.
pub fn bit(id: Id) -> Steps {
    1 << id
}

/// A flush in flight and the writes that were complete when it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Flush {
    step: u8,
    covers: Steps,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Carried out, or submitted.
    pub started: Steps,
    /// Ended: complete, passed over or failed.
    pub done: Steps,
    /// Ended with an error, its own or one it needed.
    pub failed: Steps,
    /// Writes that no power cut takes back.
    pub durable: Steps,
    /// What each [`Kind::Probe`] saw.
    saw: Steps,
    /// Flushes in flight; those with no cover and step 0 are free.
    flushes: [Flush; MAX_FLUSHES],
    /// The transaction of each change; 0: not made.
    pub joined: [u8; MAX_CHANGES],
    /// What each [`Kind::ReadTid`] saw: three bits a read, in their order.
    tids: u32,
    /// The running transaction.
    running: u8,
    /// What each fast commit took a picture of.
    pub pictures: [Changes; 2],
    /// The fast commit that came first, plus one; 0: none yet.
    pub first_fast: u8,
    /// Errors that the device may still return.
    faults: u8,
}

/// One choice of the scheduler or the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The CPU carries out the step.
    Run(Id),
    /// The device completes the command.
    Complete(Id),
    /// The device returns an error for it.
    Fail(Id),
}

/// Whether a step's turn has come.
enum Turn {
    NotYet,
    Now,
    PassedOver,
    /// Something it needs has failed.
    Failed,
}

impl Protocol {
    /// The state before anything has happened, with errors the device may
    /// return.
    pub fn initial(&self, faults: u8) -> State {
        let mut state = State {
            started: 0,
            done: 0,
            failed: 0,
            durable: 0,
            saw: 0,
            flushes: [Flush::default(); MAX_FLUSHES],
            joined: [0; MAX_CHANGES],
            tids: 0,
            running: 1,
            pictures: [0; 2],
            first_fast: 0,
            faults,
        };
        for (id, step) in self.steps.iter().enumerate() {
            if step.earlier {
                state.started |= bit(id);
                state.done |= bit(id);
                if !self.config.cache {
                    state.durable |= bit(id);
                }
            }
        }
        state
    }

    /// The place of a [`Kind::ReadTid`] in [`State::tids`].
    fn read_slot(&self, read: Id) -> u32 {
        let reads = self.steps[..read].iter();
        3 * reads
            .filter(|s| matches!(s.kind, Kind::ReadTid { .. }))
            .count() as u32
    }

    /// What a [`Kind::ReadTid`] saw.
    fn seen(&self, state: &State, read: Id) -> Tid {
        ((state.tids >> self.read_slot(read)) & 7) as Tid
    }

    /// Whether the dependency is met, and by a step that failed.
    fn met(&self, state: &State, on: On) -> Option<bool> {
        let ended = |id: Id| (state.done & bit(id) != 0).then_some(state.failed & bit(id) != 0);
        let committed = |read| match (ended(read)?, self.seen(state, read)) {
            (true, _) => Some(true),
            (false, 0) => Some(false),
            (false, tid) => ended(self.commit[tid]),
        };
        match on {
            On::Started(id) => ((state.started | state.done) & bit(id) != 0).then_some(false),
            On::Done(id) => ended(id),
            On::Committed(read) => committed(read),
            On::CommittedIf(probe, read) => {
                ended(probe)?;
                if state.saw & bit(probe) != 0 {
                    committed(read)
                } else {
                    Some(false)
                }
            }
            On::DoneIfIn(change, tid, id) => {
                if usize::from(state.joined[change]) == tid {
                    ended(id)
                } else {
                    Some(false)
                }
            }
        }
    }

    fn holds(&self, state: &State, cond: Cond) -> bool {
        match cond {
            Cond::Logs(tid, file) => (self.changes.iter().zip(state.joined))
                .any(|(change, joined)| change.file == file && usize::from(joined) == tid),
            Cond::Holds(tid, change) => usize::from(state.joined[change]) == tid,
            Cond::Attached(tid) => self.attached(state, tid).is_some(),
            Cond::Saw(probe) => state.saw & bit(probe) != 0,
            Cond::Missed(probe) => state.saw & bit(probe) == 0,
        }
    }

    fn turn(&self, state: &State, id: Id) -> Turn {
        let step = &self.steps[id];
        if (state.started | state.done) & bit(id) != 0 {
            return Turn::NotYet;
        }
        let mut failed = false;
        for dep in &step.after {
            match self.met(state, dep.on) {
                None => return Turn::NotYet,
                Some(bad) => failed |= bad && dep.need,
            }
        }
        if let Kind::Lock(tid) = step.kind
            && (usize::from(state.running) != tid
                || !state
                    .joined
                    .iter()
                    .any(|&joined| usize::from(joined) == tid))
        {
            return Turn::NotYet;
        }
        if let Kind::Snapshot { .. } = step.kind {
            failed |= self.fast_commit_failed(state);
        }
        if failed {
            return Turn::Failed;
        }
        if !step.only_if.iter().all(|&cond| self.holds(state, cond)) {
            return Turn::PassedOver;
        }
        match step.kind {
            Kind::Snapshot { fc, wait_data } if !self.may_snapshot(state, fc, wait_data) => {
                Turn::NotYet
            }
            _ => Turn::Now,
        }
    }

    /// One fast commit at a time (`jbd2_fc_begin_commit`); the data of new
    /// blocks in it is complete (`ext4_fc_flush_data`); no handle is in reserve
    /// (`jbd2_journal_lock_updates`).
    fn may_snapshot(&self, state: &State, fc: usize, wait_data: bool) -> bool {
        if self.fast_commit_running(state, fc) {
            return false;
        }
        let made = self
            .changes
            .iter()
            .zip(state.joined)
            .filter(|(_, joined)| *joined != 0);
        for (change, _) in made {
            if change
                .reserves
                .is_some_and(|step| state.done & bit(step) == 0)
            {
                return false;
            }
            let pending = |data: &&crate::protocol::DataInfo| {
                data.op == change.op && data.new && state.done & bit(data.write) == 0
            };
            if wait_data && self.data.iter().any(|data| pending(&data)) {
                return false;
            }
        }
        true
    }

    fn fast_commit_running(&self, state: &State, except: usize) -> bool {
        (0..self.fast_commits).any(|fc| {
            let (picture, blocks) = self.fast_commit(fc);
            fc != except && state.started & picture != 0 && blocks & !state.done != 0
        })
    }

    /// A fast commit could not be written. 7.3.4 falls back to a full commit,
    /// which voids the fast commits of its transaction; here, where it is not
    /// part of the run, nothing more is promised.
    fn fast_commit_failed(&self, state: &State) -> bool {
        (0..self.fast_commits).any(|fc| {
            let (picture, blocks) = self.fast_commit(fc);
            state.started & picture != 0 && blocks & state.failed != 0
        })
    }

    /// The step that takes a fast commit's picture, and those that write it.
    fn fast_commit(&self, wanted: usize) -> (Steps, Steps) {
        let (mut picture, mut blocks) = (0, 0);
        for (id, step) in self.steps.iter().enumerate() {
            match step.kind {
                Kind::Snapshot { fc, .. } if fc == wanted => picture |= bit(id),
                Kind::Write {
                    block: Block::Fast(fc, _),
                    ..
                } if fc == wanted => blocks |= bit(id),
                _ => {}
            }
        }
        (picture, blocks)
    }

    /// The choices there are. `timer`: a transaction may be locked down without
    /// anybody having asked.
    pub fn moves(&self, state: &State, timer: bool) -> Vec<Move> {
        let mut moves = Vec::new();
        for id in self.ids(!state.done) {
            let step = &self.steps[id];
            if state.started & bit(id) != 0 {
                moves.push(Move::Complete(id));
                if state.faults > 0 && step.may_fail {
                    moves.push(Move::Fail(id));
                }
                continue;
            }
            if !matches!(self.turn(state, id), Turn::Now) {
                continue;
            }
            if let Kind::Lock(tid) = step.kind
                && !timer
                && !self.requested(state, tid)
            {
                continue;
            }
            moves.push(Move::Run(id));
        }
        moves
    }

    /// The steps of the set, in order.
    fn ids(&self, set: Steps) -> impl Iterator<Item = Id> + use<> {
        let mut left = set & (Steps::MAX >> (MAX_STEPS - self.steps.len()));
        std::iter::from_fn(move || {
            let id = (left != 0).then_some(left.trailing_zeros() as Id)?;
            left &= left - 1;
            Some(id)
        })
    }

    fn requested(&self, state: &State, tid: Tid) -> bool {
        (self.steps.iter().enumerate()).any(|(id, step)| {
            matches!(step.kind, Kind::ReadTid { start: true, .. })
                && state.done & bit(id) != 0
                && self.seen(state, id) == tid
        })
    }

    /// The state after the move, settled.
    pub fn after(&self, state: &State, chosen: Move) -> State {
        let mut next = *state;
        match chosen {
            Move::Run(id) => self.run(&mut next, id),
            Move::Complete(id) => self.complete(&mut next, id),
            Move::Fail(id) => {
                next.done |= bit(id);
                next.failed |= bit(id);
                next.faults -= 1;
                self.forget_flush(&mut next, id);
            }
        }
        self.settle(&mut next);
        next
    }

    /// Carries out what is no choice: passes over, fails, submits, returns.
    pub fn settle(&self, state: &mut State) {
        let mut before = None;
        while before != Some(state.done | state.started) {
            before = Some(state.done | state.started);
            for id in self.ids(!(state.started | state.done)) {
                let kind = self.steps[id].kind;
                match self.turn(state, id) {
                    Turn::NotYet => {}
                    Turn::PassedOver => state.done |= bit(id),
                    Turn::Failed => {
                        state.done |= bit(id);
                        state.failed |= bit(id);
                    }
                    Turn::Now => {
                        let at_once =
                            self.steps[id].is_command() || matches!(kind, Kind::Return(_));
                        if at_once && !self.lazy {
                            self.run(state, id);
                        }
                    }
                }
            }
        }
    }

    fn run(&self, state: &mut State, id: Id) {
        state.started |= bit(id);
        match self.steps[id].kind {
            Kind::Write { .. } => return,
            Kind::Flush(device) => {
                let covers = self.complete_on(state, device);
                let step = id as u8;
                // Without a free place it covers nothing, which promises less.
                if let Some(free) = state.flushes.iter_mut().find(|f| **f == Flush::default()) {
                    *free = Flush { step, covers };
                }
                // The same flushes in another order are the same state.
                state.flushes.sort_unstable_by_key(|f| (f.step, f.covers));
                return;
            }
            Kind::Change(change) => state.joined[change] = state.running,
            Kind::ReadTid { file, .. } => {
                let of_file = self.changes.iter().zip(state.joined);
                let tid = of_file
                    .filter(|(change, _)| change.file == file)
                    .map(|(_, joined)| joined)
                    .max()
                    .unwrap_or(0);
                state.tids |= u32::from(tid) << self.read_slot(id);
            }
            Kind::Lock(tid) => state.running = tid as u8 + 1,
            Kind::Probe(look) => {
                if self.probe(state, look) {
                    state.saw |= bit(id);
                }
            }
            Kind::Snapshot { fc, .. } => {
                for (change, joined) in state.joined.iter().enumerate() {
                    if *joined != 0 {
                        state.pictures[fc] |= 1 << change;
                    }
                }
                if state.first_fast == 0 {
                    state.first_fast = fc as u8 + 1;
                }
            }
            Kind::Mark | Kind::Return(_) => {}
        }
        state.done |= bit(id);
    }

    fn probe(&self, state: &State, look: Look) -> bool {
        match look {
            Look::PastFlush(read) => self.past_flush(state, read),
            Look::Attach { read, second, .. } => {
                let tid = self.seen(state, read);
                let committing = tid > 1 && state.done & bit(self.commit[tid - 1]) == 0;
                usize::from(state.running) == tid
                    && !committing
                    && (second || self.attached(state, tid).is_none())
            }
            Look::Covers { tid, looks } => !(looks && self.attached_in_flight(state, tid)),
            Look::NotCovered { attach, read } => {
                let tid = self.seen(state, read);
                let attached = state.saw & bit(attach) != 0
                    && matches!(self.steps[attach].kind,
                        Kind::Probe(Look::Attach { read, .. }) if self.seen(state, read) == tid);
                let covered = attached && state.saw & bit(self.covers[tid]) != 0;
                !covered && self.past_flush(state, read)
            }
            Look::FastCommitRunning(fc) => self.fast_commit_running(state, fc),
        }
    }

    fn past_flush(&self, state: &State, read: Id) -> bool {
        match self.seen(state, read) {
            0 => true,
            tid => state.done & bit(self.past_flush[tid]) != 0,
        }
    }

    /// The file of who is attached to the transaction.
    fn attached(&self, state: &State, wanted: Tid) -> Option<u8> {
        (self.steps.iter().enumerate()).find_map(|(id, step)| match step.kind {
            Kind::Probe(Look::Attach { read, file, .. })
                if state.saw & bit(id) != 0 && self.seen(state, read) == wanted =>
            {
                Some(file)
            }
            _ => None,
        })
    }

    /// Whether something of his file is under writeback.
    fn attached_in_flight(&self, state: &State, tid: Tid) -> bool {
        self.data.iter().any(|data| {
            self.attached(state, tid) == Some(self.ops[data.op].file)
                && state.started & !state.done & bit(data.write) != 0
        })
    }

    fn complete(&self, state: &mut State, id: Id) {
        state.done |= bit(id);
        match self.steps[id].kind {
            Kind::Write { fua, .. } if fua || !self.config.cache => state.durable |= bit(id),
            Kind::Flush(_) => {
                let covers = self.forget_flush(state, id);
                state.durable |= covers;
            }
            _ => {}
        }
    }

    fn forget_flush(&self, state: &mut State, id: Id) -> Steps {
        let Some(flush) = (state.flushes.iter_mut())
            .find(|f| usize::from(f.step) == id && **f != Flush::default())
        else {
            return 0;
        };
        let covers = flush.covers;
        *flush = Flush::default();
        state.flushes.sort_unstable_by_key(|f| (f.step, f.covers));
        covers
    }

    fn complete_on(&self, state: &State, flushed: Device) -> Steps {
        let mut covers = 0;
        for (id, step) in self.steps.iter().enumerate() {
            if let Kind::Write { device, .. } = step.kind
                && device == flushed
                && state.started & state.done & !state.failed & bit(id) != 0
            {
                covers |= bit(id);
            }
        }
        covers
    }

    /// All writes.
    pub fn writes(&self) -> Steps {
        (self.steps.iter().enumerate())
            .filter(|(_, step)| matches!(step.kind, Kind::Write { .. }))
            .fold(0, |writes, (id, _)| writes | bit(id))
    }

    /// Writes that were submitted and that a power cut may take back.
    pub fn at_risk(&self, state: &State) -> Steps {
        self.writes() & state.started & !state.durable
    }

    /// Operations whose sync call has returned without an error, one bit each.
    pub fn acknowledged(&self, state: &State) -> u8 {
        let mut ops = 0;
        for (id, step) in self.steps.iter().enumerate() {
            if let Kind::Return(op) = step.kind
                && state.done & !state.failed & bit(id) != 0
            {
                ops |= 1 << op;
            }
        }
        ops
    }

    /// The first sync call that has not returned.
    pub fn unreturned(&self, state: &State) -> Option<Id> {
        (self.steps.iter().enumerate())
            .find(|(id, step)| matches!(step.kind, Kind::Return(_)) && state.done & bit(*id) == 0)
            .map(|(id, _)| id)
    }
}
