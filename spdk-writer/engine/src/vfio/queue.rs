// SPDX-License-Identifier: MIT

//! A queue pair: LBIO's slots and rings, with memory that a controller shares.

use crate::Memory;
use crate::memory::ALIGNMENT;
use crate::nvme::container::Registers;
use lbio_core::doorbell::{
    Shadow,
    ShadowMemory, //
};
use lbio_core::nvme::{
    Cqe,
    PAGE_SIZE,
    Prp,
    Sqe, //
};
use lbio_core::prp::{
    self,
    PrpError, //
};
use lbio_core::ring::{
    Bad,
    Completion,
    CompletionMemory,
    MIN_DEPTH,
    Submission, //
};
use lbio_core::slots::{
    MAX_SLOTS,
    Slots, //
};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU32,
    AtomicU64,
    Ordering, //
};

/// Most entries of each ring: as many as there are slots, and one.
pub(super) const MAX_DEPTH: u16 = MAX_SLOTS as u16 + 1;

/// Where doorbells begin among the registers.
const DOORBELLS: usize = 0x1000;

/// Pages of a queue pair: one for each ring, one per slot.
const PAGES: usize = 2 + MAX_SLOTS;

const _: () = assert!(MAX_DEPTH as usize * size_of::<Sqe>() <= ALIGNMENT);
const _: () = assert!(MAX_DEPTH as usize * Cqe::SIZE <= ALIGNMENT);

/// A queue pair.
#[derive(Debug)]
pub(super) struct Queue {
    /// [`PAGES`] pages: submission ring, completion ring, the slots' own.
    memory: Memory,
    /// What the controller calls the first of them.
    iova: u64,
    id: u16,
    depth: u16,
    /// Bytes between doorbells.
    stride: usize,
    submission: Submission,
    completion: Completion,
    slots: Slots,
    /// Commands the controller was not told of.
    untold: bool,
    tail: u16,
    /// Of the tail and head doorbells, if they have shadows.
    shadows: Option<[Shadowed; 2]>,
}

/// A doorbell with a shadow.
#[derive(Debug)]
struct Shadowed {
    shadow: Shadow,
    words: Words,
}

/// The shadow and its event index, a page behind it.
#[derive(Debug)]
struct Words {
    /// Keeps what the device writes to.
    memory: Memory,
    /// Bytes from its beginning to the shadow, a multiple of 4 in the first page.
    at: usize,
}

impl Words {
    fn word(&self, page: usize) -> &AtomicU32 {
        let at = page * ALIGNMENT + self.at;
        assert!(at.is_multiple_of(4) && at + 4 <= self.memory.len());
        // SAFETY: within the memory and aligned, by the assertion; it lives as long as
        // `self`, and nobody has its buffer, so it is accessed in whole words alone.
        unsafe { self.memory.base().add(at).cast::<AtomicU32>().as_ref() }
    }
}

impl ShadowMemory for Words {
    fn store(&self, value: u32) {
        self.word(0).store(value.to_le(), Ordering::Release);
    }

    fn event(&self) -> u32 {
        // The store before the load, for others, too.
        std::sync::atomic::fence(Ordering::SeqCst);
        u32::from_le(self.word(1).load(Ordering::Acquire))
    }
}

/// The completion ring as LBIO's core sees it.
struct Ring(NonNull<AtomicU64>);

impl CompletionMemory for Ring {
    fn entry(&self, index: u16, phase: bool) -> Option<Cqe> {
        // SAFETY: LBIO's core asks for entries within the ring, which is one
        // page; an entry is two words, the second has the phase tag and all that
        // matters.
        let word = unsafe { self.0.add(usize::from(index) * 2 + 1).as_ref() };
        let cqe = Cqe::from_word(word.load(Ordering::Acquire));
        (cqe.phase() == phase).then_some(cqe)
    }
}

impl Queue {
    /// A queue pair `id` of `depth` entries, at most [`MAX_DEPTH`]; `map` lets
    /// the controller access its memory.
    pub(super) fn new(
        id: u16,
        depth: u16,
        stride: usize,
        map: impl FnOnce(NonNull<u8>, usize) -> io::Result<u64>,
    ) -> io::Result<Self> {
        let depth = depth.clamp(MIN_DEPTH, MAX_DEPTH);
        let memory = Memory::new(1, PAGES * ALIGNMENT)?;
        let iova = map(memory.base(), memory.len())?;
        Ok(Self {
            memory,
            iova,
            id,
            depth,
            stride,
            submission: Submission::new(depth),
            completion: Completion::new(depth, id),
            slots: Slots::new(usize::from(depth) - 1),
            untold: false,
            tail: 0,
            shadows: None,
        })
    }

    /// Gives both doorbells shadows, which are zero, in `memory`: a page of shadows, at
    /// the places that the doorbells have among the registers, and one of event indices.
    pub(super) fn shadow(&mut self, memory: &Memory) {
        self.shadows = Some([0, 1].map(|which| Shadowed {
            shadow: Shadow::default(),
            words: Words {
                memory: memory.clone(),
                at: self.doorbell(which) - DOORBELLS,
            },
        }));
    }

    /// Entries of each ring.
    pub(super) fn depth(&self) -> u16 {
        self.depth
    }

    /// The controller's address of the submission ring.
    pub(super) fn submission_address(&self) -> u64 {
        self.iova
    }

    /// The controller's address of the completion ring.
    pub(super) fn completion_address(&self) -> u64 {
        self.iova + PAGE_SIZE
    }

    /// Forgets everything; the controller must have been stopped.
    pub(super) fn reset(&mut self) {
        for word in 0..ALIGNMENT / 8 {
            self.completions(word).store(0, Ordering::Relaxed);
        }
        self.submission = Submission::new(self.depth);
        self.completion = Completion::new(self.depth, self.id);
        self.slots = Slots::new(usize::from(self.depth) - 1);
        self.untold = false;
        self.shadows = None;
    }

    /// Takes a slot; [`None`] if all are in use.
    pub(super) fn alloc(&self) -> Option<u16> {
        self.slots.alloc()
    }

    /// Status of a slot's command, if it is complete.
    pub(super) fn poll(&self, slot: u16) -> Option<u16> {
        self.slots.poll(slot)
    }

    /// Gives a slot back whose command is complete.
    pub(super) fn release(&self, slot: u16) {
        self.slots.release(slot);
    }

    /// Describes `pages` pages from the controller's address `first` on; a list
    /// is kept in the slot's own page, which nobody else uses as long as the
    /// slot is taken.
    pub(super) fn describe(&self, slot: u16, first: u64, pages: u32) -> Result<Prp, PrpError> {
        let mut list = None;
        let prp = prp::build(first, pages, || {
            let list = list.insert([0; ALIGNMENT / 8]);
            (list.as_mut_slice(), self.slot_address(slot))
        })?;
        for (n, entry) in list.iter().flatten().take(pages as usize - 1).enumerate() {
            self.slot_word(slot, n).store(*entry, Ordering::Relaxed);
        }
        Ok(prp)
    }

    /// The controller's address of the slot's own page.
    pub(super) fn slot_address(&self, slot: u16) -> u64 {
        self.iova + (2 + u64::from(slot)) * PAGE_SIZE
    }

    /// Writes a word of the slot's own page.
    pub(super) fn set_slot_word(&self, slot: u16, index: usize, word: u64) {
        self.slot_word(slot, index)
            .store(word.to_le(), Ordering::Relaxed);
    }

    fn slot_word(&self, slot: u16, index: usize) -> &AtomicU64 {
        self.word((2 + usize::from(slot)) * (ALIGNMENT / 8) + index)
    }

    fn completions(&self, index: usize) -> &AtomicU64 {
        self.word(ALIGNMENT / 8 + index)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < PAGES * (ALIGNMENT / 8), "word {index}");
        // SAFETY: within the memory, by the assertion, which lives as long as
        // `self`, and is only accessed in whole words.
        unsafe { self.memory.base().cast::<AtomicU64>().add(index).as_ref() }
    }

    /// Puts `command` into the ring. There is room: a slot was taken for it.
    pub(super) fn push(&mut self, command: &Sqe) {
        let (at, tail) = self.submission.push();
        for (n, word) in command.words().iter().enumerate() {
            self.word(usize::from(at) * 8 + n)
                .store(*word, Ordering::Relaxed);
        }
        self.tail = tail;
        self.untold = true;
    }

    /// Tells the controller of everything that it does not know of; says whether it had
    /// to ring the doorbell.
    pub(super) fn ring(&mut self, registers: &Registers) -> bool {
        if !std::mem::take(&mut self.untold) {
            return false;
        }
        // The commands, and all they point to, are there before the doorbell.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.tell(registers, 0, self.tail)
    }

    /// Lets a doorbell have `value`; whether the register was written.
    fn tell(&mut self, registers: &Registers, which: usize, value: u16) -> bool {
        let shadowed = self.shadows.as_mut().and_then(|all| all.get_mut(which));
        if shadowed.is_some_and(|it| !it.shadow.tell(value, &it.words)) {
            return false;
        }
        registers.write(self.doorbell(which), u32::from(value));
        true
    }

    /// Takes completions; says how many, and whether it had to ring the head doorbell to
    /// tell of that.
    pub(super) fn reap(&mut self, registers: &Registers, bad: impl FnMut(Bad)) -> (u16, bool) {
        // SAFETY: the second page of the memory.
        let ring = Ring(unsafe { self.memory.base().add(ALIGNMENT) }.cast());
        let taken = self.completion.reap(&ring, &self.slots, |_| {}, bad);
        let rang = taken > 0 && self.tell(registers, 1, self.completion.head());
        (taken, rang)
    }

    /// The result (dword 0) in the entry that was taken last.
    pub(super) fn last_result(&self) -> u32 {
        let at = match self.completion.head() {
            0 => self.depth - 1,
            head => head - 1,
        };
        // SAFETY: an entry of four dwords, aligned, within the second page.
        let result = unsafe {
            self.memory
                .base()
                .add(ALIGNMENT + usize::from(at) * Cqe::SIZE)
                .cast::<AtomicU32>()
                .as_ref()
        };
        u32::from_le(result.load(Ordering::Acquire))
    }

    /// Where the tail doorbell is, or, for 1, the head doorbell (Base
    /// Specification 2.0, transport over PCIe, section 3.1.2).
    pub(super) fn doorbell(&self, which: usize) -> usize {
        DOORBELLS + (2 * usize::from(self.id) + which) * self.stride
    }
}
