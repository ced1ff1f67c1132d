// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Slots: the commands of one queue pair that may be outstanding.
//!
//! A command's identifier is the index of its slot, so a completion finds what
//! it completes without a search, and nothing else has to be allocated for it.
//!
//! A slot belongs to the one who allocated it until he releases it. Its state
//! is one word, so that each step is one atomic operation:
//!
//! ```text
//!        alloc            complete, cancel       release
//!   free -----> flying ---------------------> done -------> free
//!                  |                            ^
//!                  +---> flying, with a --------+
//!                 sleep  sleeper's token  hands the token back
//!                          |     ^
//!                          +-----+ hand over, to who has another token
//! ```
//!
//! There are as many slots as a queue holds entries, less one: neither queue
//! can overflow while every command has a slot.

use core::num::NonZeroU64;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{
        AcqRel,
        Acquire,
        Relaxed,
        Release, //
    }, //
};

/// Most slots of a queue pair.
pub const MAX_SLOTS: usize = 63;

/// One for each bit of a word, so that none has to be looked for; the last is
/// nobody's ever.
const STATES: usize = u64::BITS as usize;

/// State of a slot that nobody owns.
const FREE: u64 = 0;
/// State of a slot whose command is with the controller and whose owner looks at
/// the slot by himself. Tokens are told from the other states by their zero
/// low bits.
const FLYING: u64 = 1;
/// State of a slot whose command is complete; the status is above [`STATUS_SHIFT`].
const DONE: u64 = 3;
/// Bits that are zero in every token.
const TAG: u64 = 3;
/// Position of the status in the word of a [`DONE`] slot.
const STATUS_SHIFT: u32 = 16;

/// Status of a command that the controller never answered, because it was
/// disabled: no status code type has this value (NVMe's field has 15 bits).
pub const CANCELLED: u16 = u16::MAX;

/// Who sleeps on a slot: an opaque value that is not zero and a multiple of four,
/// such as the address of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    /// A token of that value, if it may be one.
    #[inline]
    pub const fn new(value: u64) -> Option<Self> {
        if value == 0 || value & TAG != 0 {
            None
        } else {
            Some(Self(value))
        }
    }

    /// The value it was made of.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Why a completion completes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    /// There is no slot of that number.
    Foreign,
    /// The slot is not in use.
    Unused,
    /// The slot's command is complete already.
    Duplicate,
}

/// The slots of one queue pair. In this order, so that what every command takes first
/// is at its address.
///
/// # Invariants
///
/// A bit of `free` is set only if the slot's state is [`FREE`].
#[derive(Debug)]
#[repr(C)]
pub struct Slots {
    free: AtomicU64,
    states: [AtomicU64; STATES],
}

impl Slots {
    /// `count` free slots, at most [`MAX_SLOTS`].
    pub const fn new(count: usize) -> Self {
        let count = if count < MAX_SLOTS { count } else { MAX_SLOTS };
        Self {
            // INVARIANT: all states are FREE.
            free: AtomicU64::new((1 << count) - 1),
            states: [const { AtomicU64::new(FREE) }; STATES],
        }
    }

    /// The slot that [`Self::alloc`] would take.
    #[inline]
    pub fn peek(&self) -> Option<u16> {
        let free = NonZeroU64::new(self.free.load(Relaxed))?;
        Some(free.trailing_zeros() as u16)
    }

    /// As [`Self::alloc`], of `slot`, which [`Self::peek`] said. Whether it is free still.
    #[inline]
    pub fn alloc_at(&self, slot: u16) -> bool {
        let index = usize::from(slot) % STATES;
        let bit = 1u64 << index;
        // Never, as there are so many.
        let Some(state) = self.states.get(index) else {
            return false;
        };
        // Acquire: after the last owner's release of this slot.
        if self.free.fetch_and(!bit, Acquire) & bit == 0 {
            return false;
        }
        state.store(FLYING, Relaxed);
        true
    }

    /// Takes a free slot; its command is in flight from now on. `None` if all
    /// are in use.
    #[inline]
    pub fn alloc(&self) -> Option<u16> {
        loop {
            let slot = self.peek()?;
            if self.alloc_at(slot) {
                return Some(slot);
            }
        }
    }

    /// Completes the command `cid` with the status code `code`. Returns whom to
    /// wake, if anybody sleeps on it.
    #[inline]
    pub fn complete(&self, cid: u16, code: u16) -> Result<Option<Token>, Stray> {
        let state = self.states.get(usize::from(cid)).ok_or(Stray::Foreign)?;
        let done = DONE | u64::from(code) << STATUS_SHIFT;
        let mut old = state.load(Relaxed);
        loop {
            match old & TAG {
                FLYING => {}
                DONE => return Err(Stray::Duplicate),
                _ if old == FREE => return Err(Stray::Unused),
                _ => {}
            }
            // Release: what the device wrote was seen before the phase tag.
            // Acquire: what the sleeper did before it left its token.
            match state.compare_exchange_weak(old, done, AcqRel, Relaxed) {
                Ok(_) if old == FLYING => return Ok(None),
                Ok(_) => return Ok(Some(Token(old))),
                Err(now) => old = now,
            }
        }
    }

    /// The status code of the owner's command, if it is complete.
    #[inline]
    pub fn poll(&self, slot: u16) -> Option<u16> {
        // Acquire: the data is there if this says so.
        let state = self.states.get(usize::from(slot))?.load(Acquire);
        (state & TAG == DONE).then_some((state >> STATUS_SHIFT) as u16)
    }

    /// Announces that the owner is about to sleep. If this says `false` the
    /// command is complete and nobody will wake him; otherwise whoever completes
    /// it gets `token`. May be called again with the same token.
    #[inline]
    pub fn sleep(&self, slot: u16, token: Token) -> bool {
        let Some(state) = self.states.get(usize::from(slot)) else {
            return false;
        };
        match state.compare_exchange(FLYING, token.0, AcqRel, Acquire) {
            Ok(_) => true,
            Err(now) => now == token.0,
        }
    }

    /// As [`Self::poll`], and gives the slot back if its command is complete.
    #[inline]
    pub fn take(&self, slot: u16) -> Option<u16> {
        let code = self.poll(slot)?;
        self.release(slot);
        Some(code)
    }

    /// Leaves another token, `to`, than the one that [`Self::sleep`] left,
    /// `from`: somebody else is told, and takes over the slot. If this says
    /// `false` the command is complete, and the slot still the caller's.
    pub fn hand_over(&self, slot: u16, from: Token, to: Token) -> bool {
        // Release: what the new owner needs to know was written before.
        self.states.get(usize::from(slot)).is_some_and(|state| {
            state
                .compare_exchange(from.0, to.0, AcqRel, Relaxed)
                .is_ok()
        })
    }

    /// Gives the owner's slot back, whose command is complete.
    #[inline]
    pub fn release(&self, slot: u16) {
        if let Some(state) = self.states.get(usize::from(slot)) {
            state.store(FREE, Relaxed);
            // INVARIANT: FREE was stored before, and Release keeps that order.
            self.free.fetch_or(1 << slot, Release);
        }
    }

    /// Completes every command in flight as [`CANCELLED`]; `wake` gets the tokens
    /// of those that sleep. The controller must have been stopped.
    pub fn cancel(&self, mut wake: impl FnMut(Token)) {
        for cid in 0..MAX_SLOTS as u16 {
            if let Ok(Some(token)) = self.complete(cid, CANCELLED) {
                wake(token);
            }
        }
    }

    /// The slots whose commands are in flight, as bits.
    pub fn flying(&self) -> u64 {
        let is_flying = |state: &AtomicU64| {
            let state = state.load(Relaxed);
            state != FREE && state & TAG != DONE
        };
        (0..)
            .zip(&self.states)
            .filter(|(_, state)| is_flying(state))
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;
    use std::thread::yield_now;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Naive {
        Flying,
        Asleep(u64),
        Done(u16),
    }

    #[derive(Clone, Debug)]
    enum Op {
        Alloc,
        Complete(u16, u16),
        Sleep(u16, u64),
        HandOver(u16, u64, u64),
        Poll(u16),
        Take(u16),
        Release(u16),
        Cancel,
    }

    fn op() -> impl Strategy<Value = Op> {
        // Slots that exist and some that do not.
        let slot = prop_oneof![8 => 0u16..8, 1 => 8u16..70, 1 => Just(u16::MAX)];
        prop_oneof![
            4 => Just(Op::Alloc),
            4 => (slot.clone(), 0u16..0x8000).prop_map(|(s, c)| Op::Complete(s, c)),
            2 => (slot.clone(), 1u64..9).prop_map(|(s, t)| Op::Sleep(s, t * 8)),
            2 => (slot.clone(), 1u64..9, 1u64..9)
                .prop_map(|(s, from, to)| Op::HandOver(s, from * 8, to * 8)),
            2 => slot.clone().prop_map(Op::Poll),
            2 => slot.clone().prop_map(Op::Take),
            3 => slot.prop_map(Op::Release),
            1 => Just(Op::Cancel),
        ]
    }

    proptest! {
        #[test]
        fn test_slots_any_history_agrees_with_a_map(
            count in 1usize..8,
            ops in proptest::collection::vec(op(), 1..200),
        ) {
            let slots = Slots::new(count);
            let mut naive: BTreeMap<u16, Naive> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Alloc => {
                        let got = slots.alloc();
                        prop_assert_eq!(got.is_none(), naive.len() == count);
                        if let Some(slot) = got {
                            prop_assert!(usize::from(slot) < count);
                            prop_assert!(naive.insert(slot, Naive::Flying).is_none());
                        }
                    }
                    Op::Complete(cid, code) => {
                        let want = match naive.get(&cid) {
                            Some(Naive::Flying) => Ok(None),
                            Some(Naive::Asleep(token)) => Ok(Token::new(*token)),
                            Some(Naive::Done(_)) => Err(Stray::Duplicate),
                            None if usize::from(cid) < STATES => Err(Stray::Unused),
                            None => Err(Stray::Foreign),
                        };
                        prop_assert_eq!(slots.complete(cid, code), want);
                        if want.is_ok() {
                            naive.insert(cid, Naive::Done(code));
                        }
                    }
                    Op::Sleep(slot, token) => {
                        let want = match naive.get(&slot) {
                            Some(Naive::Flying) => true,
                            Some(Naive::Asleep(other)) => *other == token,
                            _ => false,
                        };
                        let asleep = slots.sleep(slot, Token::new(token).unwrap());
                        prop_assert_eq!(asleep, want);
                        if want {
                            naive.insert(slot, Naive::Asleep(token));
                        }
                    }
                    Op::HandOver(slot, from, to) => {
                        let want = naive.get(&slot) == Some(&Naive::Asleep(from));
                        let [from, to] = [from, to].map(|t| Token::new(t).unwrap());
                        prop_assert_eq!(slots.hand_over(slot, from, to), want);
                        if want {
                            naive.insert(slot, Naive::Asleep(to.get()));
                        }
                    }
                    Op::Take(slot) => {
                        let want = match naive.get(&slot) {
                            Some(Naive::Done(code)) => Some(*code),
                            _ => None,
                        };
                        prop_assert_eq!(slots.take(slot), want);
                        if want.is_some() {
                            naive.remove(&slot);
                        }
                    }
                    Op::Poll(slot) => {
                        let want = match naive.get(&slot) {
                            Some(Naive::Done(code)) => Some(*code),
                            _ => None,
                        };
                        prop_assert_eq!(slots.poll(slot), want);
                    }
                    // Only owners of complete commands release.
                    Op::Release(slot) => if let Some(Naive::Done(_)) = naive.get(&slot) {
                        slots.release(slot);
                        naive.remove(&slot);
                    },
                    Op::Cancel => {
                        let mut woken = Vec::new();
                        slots.cancel(|token| woken.push(token.get()));
                        let mut want = Vec::new();
                        for state in naive.values_mut() {
                            match *state {
                                Naive::Done(_) => continue,
                                Naive::Asleep(token) => want.push(token),
                                Naive::Flying => {}
                            }
                            *state = Naive::Done(CANCELLED);
                        }
                        prop_assert_eq!(woken, want);
                    }
                }
                let flying = naive
                    .iter()
                    .filter(|(_, state)| !matches!(state, Naive::Done(_)))
                    .fold(0, |bits, (slot, _)| bits | 1 << slot);
                prop_assert_eq!(slots.flying(), flying);
            }
        }
    }

    #[test]
    fn test_token_values_that_look_like_states_are_refused() {
        for value in [0, 1, 2, 3, 5, 0xffff_0003] {
            assert_eq!(Token::new(value), None);
        }
        assert_eq!(Token::new(8).map(Token::get), Some(8));
    }

    /// Owners on several threads, one thread that completes: each command is
    /// completed once, with its own status, and no sleeper is forgotten.
    #[test]
    fn test_slots_threads_lose_no_wakeup_and_no_status() {
        const OWNERS: usize = 4;
        const COMMANDS: u16 = 10_000;
        let slots = Slots::new(3);
        // What the controller was told: a status code for a command, plus one.
        let sent: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        // Owner i has the token 4 (i + 1), and is woken by this.
        let woken: [AtomicBool; OWNERS] = [const { AtomicBool::new(false) }; OWNERS];
        let stop = AtomicBool::new(false);
        let own = &|woken: &AtomicBool, token: Token| {
            for code in 0..COMMANDS {
                let slot = loop {
                    match slots.alloc() {
                        Some(slot) => break slot,
                        None => yield_now(),
                    }
                };
                sent[usize::from(slot)].store(u64::from(code) + 1, Release);
                if code % 3 == 0 && slots.sleep(slot, token) {
                    while !woken.swap(false, Acquire) {
                        yield_now();
                    }
                    assert!(slots.poll(slot).is_some(), "woken for nothing");
                }
                while slots.poll(slot).is_none() {
                    yield_now();
                }
                assert_eq!(slots.poll(slot), Some(code));
                slots.release(slot);
            }
        };
        std::thread::scope(|scope| {
            let owners: Vec<_> = (1u64..)
                .zip(&woken)
                .map(|(n, woken)| scope.spawn(move || own(woken, Token::new(4 * n).unwrap())))
                .collect();
            scope.spawn(|| {
                while !stop.load(Acquire) {
                    for (cid, command) in (0u16..).zip(&sent) {
                        let Some(code) = command.swap(0, Acquire).checked_sub(1) else {
                            continue;
                        };
                        if let Some(token) = slots.complete(cid, code as u16).unwrap() {
                            woken[token.get() as usize / 4 - 1].store(true, Release);
                        }
                    }
                    yield_now();
                }
            });
            for owner in owners {
                owner.join().unwrap();
            }
            stop.store(true, Release);
        });
        assert_eq!(slots.flying(), 0);
    }
}
