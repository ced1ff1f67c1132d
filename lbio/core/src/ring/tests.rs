// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A queue pair against a controller in software, well-behaved or not.

use super::*;
use crate::nvme::{
    Prp,
    Sqe, //
};
use crate::prp;
use crate::slots::{
    CANCELLED,
    MAX_SLOTS, //
};
use proptest::prelude::*;
use std::collections::{
    BTreeMap,
    VecDeque, //
};

const SQ_ID: u16 = 7;

/// The rings' memory, as both sides see it.
struct Memory {
    sq: Vec<[u64; 8]>,
    cq: Vec<Cqe>,
}

impl CompletionMemory for Memory {
    fn entry(&self, index: u16, phase: bool) -> Option<Cqe> {
        Some(self.cq[usize::from(index)]).filter(|cqe| cqe.phase() == phase)
    }
}

/// The controller: fetches in order, completes in any order.
struct Controller {
    sq_head: u16,
    cq_tail: u16,
    phase: bool,
    /// Completions that the host has not acknowledged by its doorbell.
    unseen: u16,
    fetched: VecDeque<(u16, u64)>,
    /// Words of the command that was fetched last.
    last: [u64; 8],
}

impl Controller {
    fn new() -> Self {
        Self {
            sq_head: 0,
            cq_tail: 0,
            phase: true,
            unseen: 0,
            fetched: VecDeque::new(),
            last: [0; 8],
        }
    }

    fn doorbell(&mut self, memory: &Memory, tail: u16) {
        while self.sq_head != tail {
            let words = memory.sq[usize::from(self.sq_head)];
            let cid = (u64::from_le(words[0]) >> 16) as u16;
            self.fetched.push_back((cid, u64::from_le(words[5])));
            self.last = words;
            self.sq_head = (self.sq_head + 1) % memory.sq.len() as u16;
        }
    }

    /// Posts any entry; whether there was room.
    fn post(&mut self, memory: &mut Memory, sq_id: u16, cid: u16, code: u16) -> bool {
        let depth = memory.cq.len() as u16;
        if self.unseen == depth - 1 {
            return false;
        }
        let status = code << 1 | u16::from(self.phase);
        memory.cq[usize::from(self.cq_tail)] = Cqe { sq_id, cid, status };
        self.unseen += 1;
        self.cq_tail = (self.cq_tail + 1) % depth;
        self.phase ^= self.cq_tail == 0;
        true
    }
}

/// The host's side under test, with the commands it waits for.
struct Host {
    submission: Submission,
    prepared: Prepared,
    completion: Completion,
    slots: Slots,
    waiting: BTreeMap<u16, u64>,
}

impl Host {
    fn new(depth: u16) -> Self {
        Self {
            submission: Submission::new(depth),
            prepared: Prepared::NONE,
            completion: Completion::new(depth, SQ_ID),
            slots: Slots::new(usize::from(depth) - 1),
            waiting: BTreeMap::new(),
        }
    }

    fn submit(&mut self, memory: &mut Memory, controller: &mut Controller, lba: u64) -> bool {
        let Some(slot) = self.slots.alloc() else {
            return false;
        };
        self.push(
            memory,
            controller,
            Sqe::read(slot, 1, lba, 8, Prp::default()),
            lba,
        );
        true
    }

    fn push(&mut self, memory: &mut Memory, controller: &mut Controller, sqe: Sqe, lba: u64) {
        let slot = (u64::from_le(sqe.words()[0]) >> 16) as u16;
        self.prepared = Prepared::NONE;
        let (at, tail) = self.submission.push();
        memory.sq[usize::from(at)] = *sqe.words();
        controller.doorbell(memory, tail);
        assert!(self.waiting.insert(slot, lba).is_none(), "slot used twice");
    }

    /// Prepares a read of namespace `nsid` into `page`.
    fn prepare(&mut self, memory: &mut Memory, nsid: u32, page: u64) {
        let kind = u64::from(nsid);
        if let Some(next) = Prepared::new(kind, page, &self.slots, &self.submission) {
            memory.sq[usize::from(self.submission.tail())] =
                *Sqe::read(next.slot(), nsid, 0, 8, prp::page(page / 4096)).words();
            self.prepared = next;
        }
    }

    /// Reads of namespace `nsid` into `page`, by what is prepared if it is that. Says
    /// whether it was, if there was a slot.
    fn read(
        &mut self,
        memory: &mut Memory,
        controller: &mut Controller,
        (nsid, page): (u32, u64),
        lba: u64,
    ) -> Option<bool> {
        let at = usize::from(self.submission.tail());
        let kind = u64::from(nsid);
        let taken = self
            .prepared
            .take(kind, page, &self.slots, &mut self.submission);
        if let Some(sent) = taken {
            memory.sq[at][Sqe::SLBA] = lba.to_le();
            controller.doorbell(memory, sent.tail());
            let old = self.waiting.insert(sent.slot(), lba);
            assert!(old.is_none(), "slot used twice");
        } else {
            let slot = self.slots.alloc()?;
            let sqe = Sqe::read(slot, nsid, lba, 8, prp::page(page / 4096));
            self.push(memory, controller, sqe, lba);
        }
        Some(taken.is_some())
    }

    /// Reaps; what was no command's completion.
    fn reap(&mut self, memory: &Memory, controller: &mut Controller) -> Vec<Bad> {
        let mut bad = Vec::new();
        let taken = self.completion.reap(
            memory,
            &self.slots,
            |_| panic!("nobody sleeps here"),
            |entry| bad.push(entry),
        );
        assert!(taken <= controller.unseen, "entries out of nothing");
        controller.unseen -= taken;
        bad
    }

    /// Takes what is complete: address and status.
    fn finish(&mut self) -> Vec<(u64, u16)> {
        let slots = &self.slots;
        let mut done = Vec::new();
        self.waiting
            .retain(|&slot, &mut lba| match slots.poll(slot) {
                Some(code) => {
                    slots.release(slot);
                    done.push((lba, code));
                    false
                }
                None => true,
            });
        done
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit,
    /// Prepare a read: namespace and page.
    Prepare(u32, u64),
    /// One of a page, prepared or not.
    Read(u32, u64),
    /// Complete one fetched command, any one, with a status.
    Complete(prop::sample::Index, u16),
    /// Post garbage: an entry of another queue, or an id out of thin air.
    Garbage(u16, u16),
    Reap,
    Finish,
    /// Stop the controller, cancel what is in flight, start with empty rings.
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let code = prop_oneof![3 => Just(0u16), 1 => 1u16..0x7fff];
    let id = prop_oneof![0u16..80, Just(u16::MAX)];
    prop_oneof![
        3 => Just(Step::Submit),
        4 => (1u32..3, 0u64..3).prop_map(|(n, p)| Step::Prepare(n, p * 4096)),
        4 => (1u32..3, 0u64..3).prop_map(|(n, p)| Step::Read(n, p * 4096)),
        6 => (any::<prop::sample::Index>(), code).prop_map(|(i, c)| Step::Complete(i, c)),
        1 => (prop_oneof![Just(SQ_ID), any::<u16>()], id).prop_map(|(s, c)| Step::Garbage(s, c)),
        4 => Just(Step::Reap),
        4 => Just(Step::Finish),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #[test]
    fn test_queue_pair_any_history_every_command_gets_its_own_status(
        depth in MIN_DEPTH..12,
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut memory = Memory {
            sq: vec![[0; 8]; usize::from(depth)],
            cq: vec![Cqe::default(); usize::from(depth)],
        };
        let mut controller = Controller::new();
        let mut host = Host::new(depth);
        let mut next_lba = 0;
        // Address of each outstanding command, and its status if it was posted.
        let mut expected: BTreeMap<u64, Option<u16>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Submit => {
                    let sent = host.submit(&mut memory, &mut controller, next_lba);
                    prop_assert_eq!(sent, expected.len() < usize::from(depth) - 1);
                    if sent {
                        expected.insert(next_lba, None);
                        next_lba += 1;
                    }
                }
                Step::Prepare(nsid, page) => host.prepare(&mut memory, nsid, page),
                Step::Read(nsid, page) => {
                    let sent = host.read(&mut memory, &mut controller, (nsid, page), next_lba);
                    prop_assert_eq!(sent.is_some(), expected.len() < usize::from(depth) - 1);
                    if sent.is_some() {
                        let &(cid, _) = controller.fetched.back().unwrap();
                        let whole = Sqe::read(cid, nsid, next_lba, 8, prp::page(page / 4096));
                        prop_assert_eq!(&controller.last, whole.words());
                        expected.insert(next_lba, None);
                        next_lba += 1;
                    }
                }
                Step::Complete(which, code) => {
                    if controller.fetched.is_empty() {
                        continue;
                    }
                    let at = which.index(controller.fetched.len());
                    let (cid, lba) = controller.fetched[at];
                    if controller.post(&mut memory, SQ_ID, cid, code) {
                        controller.fetched.remove(at);
                        expected.insert(lba, Some(code));
                    }
                }
                Step::Garbage(sq_id, cid) => {
                    // An id that is in flight would be a completion like any other.
                    let real = sq_id == SQ_ID && host.waiting.contains_key(&cid);
                    if !real && controller.post(&mut memory, sq_id, cid, 0) {
                        let bad = host.reap(&memory, &mut controller);
                        prop_assert_eq!(bad.len(), 1);
                        prop_assert_eq!(bad[0].cqe.cid, cid);
                        prop_assert_eq!(bad[0].why.is_none(), sq_id != SQ_ID);
                    }
                }
                Step::Reap => {
                    prop_assert!(host.reap(&memory, &mut controller).is_empty());
                }
                Step::Finish => {
                    host.reap(&memory, &mut controller);
                    for (lba, code) in host.finish() {
                        prop_assert_eq!(expected.remove(&lba), Some(Some(code)));
                    }
                }
                Step::Reset => {
                    host.slots.cancel(|_| panic!("nobody sleeps here"));
                    controller = Controller::new();
                    memory.cq.fill(Cqe::default());
                    host.submission = Submission::new(depth);
                    host.prepared = Prepared::NONE;
                    host.completion = Completion::new(depth, SQ_ID);
                    for (lba, code) in host.finish() {
                        let posted = expected.remove(&lba);
                        // Posted but not reaped is lost with the ring.
                        prop_assert!(posted == Some(Some(code)) || code == CANCELLED);
                    }
                    prop_assert!(expected.is_empty());
                }
            }
        }
    }

    #[test]
    fn test_reap_any_memory_terminates_and_completes_only_what_flies(
        depth in MIN_DEPTH..64,
        words in proptest::collection::vec(any::<u64>(), 64),
        flying in 0usize..63,
    ) {
        let memory = Memory {
            sq: Vec::new(),
            cq: words.into_iter().map(Cqe::from_word).collect(),
        };
        let slots = Slots::new(MAX_SLOTS);
        for _ in 0..flying {
            slots.alloc();
        }
        let mut completion = Completion::new(depth, SQ_ID);
        let taken = completion.reap(&memory, &slots, |_| {}, |_| {});
        prop_assert!(taken <= depth);
        for slot in 0..MAX_SLOTS as u16 {
            if slots.poll(slot).is_some() {
                prop_assert!(usize::from(slot) < flying);
            }
        }
    }
}

#[test]
fn test_take_only_such_a_read_while_its_slot_is_free() {
    let mut memory = Memory {
        sq: vec![[0; 8]; 4],
        cq: vec![Cqe::default(); 4],
    };
    let mut controller = Controller::new();
    let mut host = Host::new(4);
    // Another page, another namespace: made from the beginning.
    for (asked, taken) in [((1, 4096), true), ((1, 8192), false), ((2, 4096), false)] {
        let mut host = Host::new(4);
        host.prepare(&mut memory, 1, 4096);
        let mut controller = Controller::new();
        let read = host.read(&mut memory, &mut controller, asked, 77);
        assert_eq!(read, Some(taken), "{asked:?}");
    }
    // Only once.
    host.prepare(&mut memory, 1, 4096);
    assert_eq!(
        host.read(&mut memory, &mut controller, (1, 4096), 5),
        Some(true)
    );
    assert_eq!(
        host.read(&mut memory, &mut controller, (1, 4096), 6),
        Some(false)
    );
    // Somebody else, who fills his entry in later, took the slot.
    host.prepare(&mut memory, 1, 4096);
    assert!(host.slots.alloc().is_some());
    assert_eq!(host.read(&mut memory, &mut controller, (1, 4096), 7), None);
    // None is free.
    host.prepare(&mut memory, 2, 4096);
    assert_eq!(host.read(&mut memory, &mut controller, (2, 4096), 8), None);
}

#[test]
fn test_reap_all_ones_is_no_completion() {
    // What reads of a device that is gone give.
    let memory = Memory {
        sq: Vec::new(),
        cq: vec![Cqe::from_word(u64::MAX); 8],
    };
    let slots = Slots::new(7);
    let slot = slots.alloc().unwrap();
    let mut completion = Completion::new(8, SQ_ID);
    let mut bad = 0;
    let taken = completion.reap(&memory, &slots, |_| {}, |_| bad += 1);
    assert_eq!((taken, bad), (8, 8));
    assert_eq!(completion.reap(&memory, &slots, |_| {}, |_| bad += 1), 0);
    assert_eq!(slots.poll(slot), None);
}

#[test]
fn test_reap_stuck_command_stays_and_others_pass_it() {
    let mut memory = Memory {
        sq: vec![[0; 8]; 4],
        cq: vec![Cqe::default(); 4],
    };
    let mut controller = Controller::new();
    let mut host = Host::new(4);
    assert!(host.submit(&mut memory, &mut controller, 1000));
    let (stuck, _) = controller.fetched.pop_front().unwrap();
    // Many times around both rings beside it.
    for lba in 0..50 {
        assert!(host.submit(&mut memory, &mut controller, lba));
        let (cid, _) = controller.fetched.pop_front().unwrap();
        assert_ne!(cid, stuck);
        assert!(controller.post(&mut memory, SQ_ID, cid, 0));
        assert!(host.reap(&memory, &mut controller).is_empty());
        assert_eq!(host.finish(), [(lba, 0)]);
    }
    host.slots.cancel(|_| panic!("nobody sleeps here"));
    assert_eq!(host.finish(), [(1000, CANCELLED)]);
    // The answer that comes after all is nobody's.
    assert!(controller.post(&mut memory, SQ_ID, stuck, 0));
    let bad = host.reap(&memory, &mut controller);
    assert_eq!(bad[0].why, Some(Stray::Unused));
}
