// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Rule 7: whether data of an inode is in the drive's volatile cache, as two
//! numbers tell it to callers and writes that know nothing of each other.
//!
//! The rest of the model takes it as given. Here every order is tried in which
//! two callers sync a file twice, once with data of their own and once without,
//! beside a page that somebody else writes back, a direct write, and a write
//! from before the inode was read. A caller answers for what had ended before it
//! began and for what it waits for: all of that must be durable when it returns.

use rustc_hash::FxHashSet;

/// A mistake to make on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A write is counted when it is submitted, and not when it ends.
    CountedAtSubmission,
    /// A write is counted after others can see that it has ended.
    CountedAfterEnd,
    /// The flush is taken to have happened when it is issued.
    FlushedTooEarly,
    /// The flush vouches for what was counted when it has ended, as a flag would
    /// that it clears.
    CountReadAfterFlush,
    /// Nothing is in the cache when the inode is read.
    StartsFlushed,
}

/// The write from before; a page that somebody writes back is next.
const BEFORE: usize = 0;
/// The direct write.
const DIRECT: usize = 2;
/// The callers' own writes.
const FIRST_OWN: usize = 3;
const CALLERS: usize = 2;
const WRITES: usize = FIRST_OWN + CALLERS;
const CALLS: u8 = 2;

type Set = u8;

/// How far a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Write {
    Idle,
    InFlight,
    /// The drive has it; nobody knows.
    Written,
    /// Half of what its end takes is done.
    Ending,
    /// Whoever waits for it goes on.
    Ended,
}

/// What a caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Guess,
    Submit,
    Wait,
    Look,
    Flush,
    AwaitFlush,
    Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Caller {
    calls: u8,
    next: Next,
    fua: bool,
    /// What it answers for.
    promised: Set,
    /// What was counted when it looked.
    counted: u8,
    /// What its flush covers.
    covered: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    writes: [Write; WRITES],
    fua: Set,
    durable: Set,
    callers: [Caller; CALLERS],
    unflushed: u8,
    flushed: u8,
}

fn bit(write: usize) -> Set {
    1 << write
}

impl State {
    fn first(mistake: Option<Mistake>) -> Self {
        let caller = Caller {
            calls: CALLS,
            next: Next::Guess,
            fua: false,
            promised: 0,
            counted: 0,
            covered: 0,
        };
        let mut writes = [Write::Idle; WRITES];
        writes[BEFORE] = Write::Ended;
        Self {
            writes,
            fua: 0,
            durable: 0,
            callers: [caller; CALLERS],
            unflushed: u8::from(mistake != Some(Mistake::StartsFlushed)),
            flushed: 0,
        }
    }

    fn those(&self, from: Write) -> Set {
        (0..WRITES)
            .filter(|&write| self.writes[write] >= from)
            .fold(0, |set, write| set | bit(write))
    }

    fn submit(&mut self, write: usize, fua: bool, mistake: Option<Mistake>) {
        self.writes[write] = Write::InFlight;
        if fua {
            self.fua |= bit(write);
        } else if mistake == Some(Mistake::CountedAtSubmission) {
            self.unflushed += 1;
        }
    }

    /// The next step of a write that is not the callers' to make.
    fn write_on(mut self, write: usize, mistake: Option<Mistake>) -> Option<Self> {
        let late = mistake == Some(Mistake::CountedAfterEnd);
        let counts = self.fua & bit(write) == 0 && mistake != Some(Mistake::CountedAtSubmission);
        match self.writes[write] {
            Write::Idle if write < FIRST_OWN => self.submit(write, false, mistake),
            Write::InFlight => {
                self.durable |= self.fua & bit(write);
                self.writes[write] = Write::Written;
            }
            Write::Written => {
                self.unflushed += u8::from(counts && !late);
                self.writes[write] = Write::Ending;
            }
            Write::Ending => {
                self.unflushed += u8::from(counts && late);
                self.writes[write] = Write::Ended;
            }
            Write::Idle | Write::Ended => return None,
        }
        Some(self)
    }

    /// The next step of a caller; an error if it returns too early.
    fn call_on(mut self, number: usize, mistake: Option<Mistake>) -> Result<Option<Self>, Self> {
        let mut caller = self.callers[number];
        let mut returns = false;
        match caller.next {
            Next::Guess if caller.calls == 0 => return Ok(None),
            Next::Guess => {
                caller.fua = self.unflushed == self.flushed;
                caller.promised = self.those(Write::Ended);
                caller.next = Next::Submit;
            }
            Next::Submit => {
                // Others' pages in flight are waited for, direct writes are not.
                caller.promised |= self.those(Write::InFlight) & !bit(DIRECT);
                if caller.calls == CALLS {
                    self.submit(FIRST_OWN + number, caller.fua, mistake);
                    caller.promised |= bit(FIRST_OWN + number);
                }
                caller.next = Next::Wait;
            }
            Next::Wait => {
                // With the mistake, a write can be seen to have ended sooner.
                let seen = match mistake {
                    Some(Mistake::CountedAfterEnd) => Write::Ending,
                    _ => Write::Ended,
                };
                if caller.promised & !self.those(seen) != 0 {
                    return Ok(None);
                }
                caller.next = Next::Look;
            }
            Next::Look => {
                caller.counted = self.unflushed;
                returns = self.unflushed == self.flushed;
                caller.next = Next::Flush;
            }
            Next::Flush => {
                caller.covered = self.those(Write::Written);
                caller.next = Next::AwaitFlush;
                if mistake == Some(Mistake::FlushedTooEarly) {
                    self.flushed = caller.counted;
                }
            }
            Next::AwaitFlush => {
                self.durable |= caller.covered;
                caller.next = Next::Record;
            }
            Next::Record => {
                self.flushed = match mistake {
                    Some(Mistake::CountReadAfterFlush) => self.unflushed,
                    _ => caller.counted,
                };
                returns = true;
            }
        }
        let broken = returns && caller.promised & !self.durable != 0;
        if returns {
            caller = Caller {
                calls: caller.calls - 1,
                next: Next::Guess,
                fua: false,
                promised: 0,
                counted: 0,
                covered: 0,
            };
        }
        self.callers[number] = caller;
        match broken {
            true => Err(self),
            false => Ok(Some(self)),
        }
    }
}

/// Tries every order; the number of states.
///
/// # Errors
///
/// A caller returned while something that it answers for was in the cache: the
/// states up to there.
pub fn explore(mistake: Option<Mistake>) -> Result<usize, Vec<String>> {
    let first = State::first(mistake);
    let mut seen = FxHashSet::from_iter([first]);
    let mut way = vec![(first, steps())];
    while let Some((state, left)) = way.last_mut() {
        let state = *state;
        let Some(step) = left.pop() else {
            way.pop();
            continue;
        };
        let next = match step {
            Step::Write(write) => Ok(state.write_on(write, mistake)),
            Step::Call(number) => state.call_on(number, mistake),
        };
        match next {
            Ok(Some(next)) if seen.insert(next) => way.push((next, steps())),
            Ok(_) => {}
            Err(end) => {
                let states = way.iter().map(|(state, _)| *state).chain([end]);
                return Err(states.map(|state| format!("{state:?}")).collect());
            }
        }
    }
    Ok(seen.len())
}

#[derive(Clone, Copy)]
enum Step {
    Write(usize),
    Call(usize),
}

fn steps() -> Vec<Step> {
    (0..WRITES)
        .map(Step::Write)
        .chain((0..CALLERS).map(Step::Call))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_explore_rule_keeps_the_promise() {
        let states = explore(None).expect("a caller returned too early");
        assert!(states > 10_000, "{states}");
    }

    #[test]
    fn test_explore_mistakes_are_caught() {
        for mistake in [
            Mistake::CountedAtSubmission,
            Mistake::CountedAfterEnd,
            Mistake::FlushedTooEarly,
            Mistake::CountReadAfterFlush,
            Mistake::StartsFlushed,
        ] {
            assert!(explore(Some(mistake)).is_err(), "{mistake:?}");
        }
    }

    #[test]
    fn test_explore_leaves_flushes_out() {
        // A caller alone with its own write: FUA once the cache is known to be
        // empty.
        let mut state = State::first(None);
        let mut flushes = 0;
        while let Ok(Some(next)) = state.call_on(0, None) {
            flushes += u32::from(next.callers[0].next == Next::AwaitFlush);
            state = next;
            while let Some(next) = state.write_on(FIRST_OWN, None) {
                state = next;
            }
        }
        assert_eq!((state.callers[0].calls, flushes), (0, 1));
    }
}
