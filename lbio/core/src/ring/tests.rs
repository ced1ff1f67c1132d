// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A queue pair against a controller in software, well-behaved or not.

use super::*;
use crate::nvme::{
    Prp,
    Sqe, //
};
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
}

impl Controller {
    fn new() -> Self {
        Self {
            sq_head: 0,
            cq_tail: 0,
            phase: true,
            unseen: 0,
            fetched: VecDeque::new(),
        }
    }

    fn doorbell(&mut self, memory: &Memory, tail: u16) {
        while self.sq_head != tail {
            let words = memory.sq[usize::from(self.sq_head)];
            let cid = (u64::from_le(words[0]) >> 16) as u16;
            self.fetched.push_back((cid, u64::from_le(words[5])));
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
    completion: Completion,
    slots: Slots,
    waiting: BTreeMap<u16, u64>,
}

impl Host {
    fn new(depth: u16) -> Self {
        Self {
            submission: Submission::new(depth),
            completion: Completion::new(depth, SQ_ID),
            slots: Slots::new(usize::from(depth) - 1),
            waiting: BTreeMap::new(),
        }
    }

    fn submit(&mut self, memory: &mut Memory, controller: &mut Controller, lba: u64) -> bool {
        let Some(slot) = self.slots.alloc() else {
            return false;
        };
        let (at, tail) = self.submission.push();
        memory.sq[usize::from(at)] = *Sqe::read(slot, 1, lba, 8, Prp::default()).words();
        controller.doorbell(memory, tail);
        assert!(self.waiting.insert(slot, lba).is_none(), "slot used twice");
        true
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
        6 => Just(Step::Submit),
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
