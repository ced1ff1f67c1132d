// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The two rings of a queue pair: where the next command goes, and which
//! completions have come.
//!
//! The memory of the rings is shared with a controller that may be broken or
//! malicious. It is reached through [`CompletionMemory`], each entry is read
//! once, and nothing in it is believed but what names a command that is in
//! flight in this queue pair.

use crate::nvme::Cqe;
use crate::slots::{
    Slots,
    Stray,
    Token, //
};

/// Fewest entries of a ring (NVM Express Base Specification 2.0, section 3.3.3).
pub const MIN_DEPTH: u16 = 2;

/// Position in the submission ring.
#[derive(Clone, Copy, Debug)]
pub struct Submission {
    tail: u16,
    depth: u16,
}

impl Submission {
    /// An empty ring of `depth` entries.
    pub const fn new(depth: u16) -> Self {
        Self { tail: 0, depth }
    }

    /// Index of the entry that the next command goes to.
    #[inline]
    pub const fn tail(&self) -> u16 {
        self.tail
    }

    /// Takes the entry at [`Self::tail`]. Returns the new value of the tail
    /// doorbell.
    ///
    /// The ring has room if there are fewer slots than entries, which is for the
    /// owner of both to see to.
    #[inline]
    pub fn advance(&mut self) -> u16 {
        self.tail = self.next();
        self.tail
    }

    /// What [`Self::advance`] would return.
    #[inline]
    pub const fn next(&self) -> u16 {
        let next = self.tail.wrapping_add(1);
        if next >= self.depth { 0 } else { next }
    }

    /// As [`Self::advance`]; the entry's index, and the new value of the doorbell.
    #[inline]
    pub fn push(&mut self) -> (u16, u16) {
        (self.tail, self.advance())
    }
}

/// A read of one page that lies in the submission ring where the next command goes,
/// whole but for its first block: made while nobody waits, and sent when somebody asks
/// for such a read.
///
/// Whether it is what is asked for is decided by what it was made of. All there is to
/// remember is that another command took its place: [`Prepared::NONE`].
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    kind: u64,
    page: u64,
    sent: Sent,
}

/// A command that is in the submission ring: its slot in bits 0..16, and the value of the
/// tail doorbell that tells of it in bits 16..32, in one word that is handed around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent(u32);

impl Sent {
    /// The command in `slot` that `tail` tells of.
    #[inline]
    pub const fn new(slot: u16, tail: u16) -> Self {
        Self(slot as u32 | (tail as u32) << 16)
    }

    /// Its slot.
    #[inline]
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }

    /// The value of the tail doorbell.
    #[inline]
    pub const fn tail(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Both, as above.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Prepared {
    /// None is prepared.
    pub const NONE: Self = Self {
        kind: 0,
        page: 0,
        sent: Sent(0),
    };

    /// A read into the page at bus address `page`, by the slot that is next, if there is
    /// one, in the entry that is next. `kind` is not zero, and the same for reads that
    /// differ in nothing but page and block.
    #[inline]
    pub fn new(kind: u64, page: u64, slots: &Slots, submission: &Submission) -> Option<Self> {
        Some(Self {
            kind,
            page,
            sent: Sent::new(slots.peek()?, submission.next()),
        })
    }

    /// The slot that it is made for; nobody's yet.
    #[inline]
    pub const fn slot(&self) -> u16 {
        self.sent.slot()
    }

    /// Takes it, its slot and its entry, if it is such a read and the slot still free.
    #[inline]
    pub fn take(
        &mut self,
        kind: u64,
        page: u64,
        slots: &Slots,
        submission: &mut Submission,
    ) -> Option<Sent> {
        let sent = self.sent;
        if self.kind != kind || self.page != page || !slots.alloc_at(sent.slot()) {
            return None;
        }
        self.kind = Self::NONE.kind;
        submission.tail = sent.tail();
        Some(sent)
    }
}

/// Memory of a completion ring. Implementations read from memory that a device
/// writes, so two reads may differ.
pub trait CompletionMemory {
    /// The entry at `index`, which is below the ring's depth, if its phase tag is
    /// `phase`. All of the entry is read after the phase tag was.
    fn entry(&self, index: u16, phase: bool) -> Option<Cqe>;
}

/// Position in the completion ring.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    head: u16,
    depth: u16,
    phase: bool,
    sq_id: u16,
}

/// What a completion that completes nothing said, and why it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// The entry.
    pub cqe: Cqe,
    /// Why nothing was done; `None` if it is of another submission queue.
    pub why: Option<Stray>,
}

impl Completion {
    /// An empty ring of `depth` entries, all with a phase tag of zero, for the
    /// commands of submission queue `sq_id`.
    pub const fn new(depth: u16, sq_id: u16) -> Self {
        Self {
            head: 0,
            depth,
            phase: true,
            sq_id,
        }
    }

    /// Value of the head doorbell.
    #[inline]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Completes the slots that `memory` has completions for, at most one ring
    /// full of them, and returns how many entries were taken; the owner then
    /// writes [`Self::head`] to the doorbell. `wake` gets the tokens of
    /// sleepers, `bad` what fits no command.
    #[inline]
    pub fn reap(
        &mut self,
        memory: &impl CompletionMemory,
        slots: &Slots,
        mut wake: impl FnMut(Token),
        mut bad: impl FnMut(Bad),
    ) -> u16 {
        let mut taken = 0;
        while taken < self.depth {
            let Some(cqe) = memory.entry(self.head, self.phase) else {
                break;
            };
            taken += 1;
            self.advance();
            if cqe.sq_id != self.sq_id {
                bad(Bad { cqe, why: None });
                continue;
            }
            match slots.complete(cqe.cid, cqe.code()) {
                Ok(None) => {}
                Ok(Some(token)) => wake(token),
                Err(stray) => bad(Bad {
                    cqe,
                    why: Some(stray),
                }),
            }
        }
        taken
    }

    #[inline]
    fn advance(&mut self) {
        let next = self.head.wrapping_add(1);
        if next >= self.depth {
            self.head = 0;
            self.phase = !self.phase;
        } else {
            self.head = next;
        }
    }
}

#[cfg(all(test, not(kernel)))]
mod tests;
