// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Walks every order of moves, cuts the power everywhere, and keeps the
//! shortest way to the first broken promise.

use rustc_hash::FxHashSet;
use serde::Serialize;

use crate::oracle::Violation;
use crate::protocol::{Changes, Protocol};
use crate::recovery::Torn;
use crate::state::{MAX_CHANGES, MAX_DATA, MAX_FILES, MAX_STEPS, Move, State, Steps, bit};

/// How far to look.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// States after which the exploration is given up.
    pub states: usize,
    /// Errors that the device may return in one run.
    pub faults: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            states: 4_000_000,
            faults: 1,
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Distinct states of the protocol.
    pub states: usize,
    /// Moves between them.
    pub moves: usize,
    /// Distinct crash states, each recovered and checked.
    pub crash_states: usize,
}

/// A broken promise and the way there.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What broke.
    pub violation: Violation,
    /// States from the first on, each with the move that led to it.
    pub way: Vec<(Option<Move>, State)>,
    /// Writes at risk that survived.
    pub survived: Steps,
    /// One of them, torn.
    pub torn: Option<Torn>,
}

/// The end of an exploration.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was looked at.
    pub counts: Counts,
    /// The first broken promise.
    pub counterexample: Option<Counterexample>,
}

/// An exploration without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExploreError {
    /// Too many states.
    #[error("exploration: more than {0} states")]
    TooLarge(usize),
    /// The protocol does not fit the state's sets.
    #[error(
        "protocol: {steps} steps, {changes} changes, {files} files, {data} data blocks; \
         at most {MAX_STEPS}, {MAX_CHANGES}, {MAX_FILES} and {MAX_DATA} fit"
    )]
    DoesNotFit {
        /// Its steps.
        steps: usize,
        /// Its changes of metadata.
        changes: usize,
        /// Its files.
        files: usize,
        /// Its data blocks.
        data: usize,
    },
    /// A run ended before this step, a sync call's return, had its turn.
    #[error("protocol: a run ends and step {0} has not had its turn")]
    Stuck(usize),
}

/// All that decides what recovery finds, but a torn write, and what it must find.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Image {
    there: Steps,
    /// What may be there or not; nothing once that is decided.
    at_risk: Steps,
    acknowledged: u8,
    joined: [u8; MAX_CHANGES],
    pictures: [Changes; 2],
    first_fast: u8,
    /// Blocks that a transaction does not have.
    absent: Steps,
    refused: Steps,
}

/// What has been checked.
#[derive(Default)]
struct Checked {
    cuts: FxHashSet<Image>,
    images: FxHashSet<(Image, Option<Torn>)>,
}

/// Explores the protocol.
///
/// # Errors
///
/// No result; a broken promise is a result.
pub fn explore(protocol: &Protocol, limits: Limits) -> Result<Outcome, ExploreError> {
    let (steps, changes) = (protocol.steps.len(), protocol.changes.len());
    let (files, data) = (protocol.files(), protocol.data.len());
    if steps > MAX_STEPS || changes > MAX_CHANGES || files > MAX_FILES || data > MAX_DATA {
        return Err(ExploreError::DoesNotFit {
            steps,
            changes,
            files,
            data,
        });
    }
    let mut first = protocol.initial(limits.faults);
    protocol.settle(&mut first);
    // The states in the order in which they were found, and how.
    let mut found: Vec<(State, usize, Option<Move>)> = vec![(first, 0, None)];
    let mut known = FxHashSet::from_iter([first]);
    let mut checked = Checked::default();
    let mut counts = Counts::default();
    let mut at = 0;
    while let Some(&(state, _, _)) = found.get(at) {
        let broken = cut(protocol, &state, &mut checked);
        counts.crash_states = checked.images.len();
        if let Some((violation, survived, torn)) = broken {
            counts.states = known.len();
            let counterexample = Counterexample {
                violation,
                way: way(&found, at),
                survived,
                torn,
            };
            return Ok(Outcome {
                counts,
                counterexample: Some(counterexample),
            });
        }
        let moves = protocol.moves(&state, true);
        if moves.is_empty()
            && let Some(step) = protocol.unreturned(&state)
        {
            return Err(ExploreError::Stuck(step));
        }
        for chosen in moves {
            counts.moves += 1;
            let next = protocol.after(&state, chosen);
            if known.insert(next) {
                found.push((next, at, Some(chosen)));
            }
        }
        if found.len() > limits.states {
            return Err(ExploreError::TooLarge(limits.states));
        }
        at += 1;
    }
    counts.states = known.len();
    Ok(Outcome {
        counts,
        counterexample: None,
    })
}

/// Cuts the power in this state: every subset of the writes at risk survives,
/// and at most one of them is torn, either way.
fn cut(
    protocol: &Protocol,
    state: &State,
    checked: &mut Checked,
) -> Option<(Violation, Steps, Option<Torn>)> {
    let (writes, at_risk) = (protocol.writes(), protocol.at_risk(state));
    let mut image = Image {
        there: state.durable,
        at_risk,
        acknowledged: protocol.acknowledged(state),
        joined: state.joined,
        pictures: state.pictures,
        first_fast: state.first_fast,
        absent: state.done & !state.started & writes,
        refused: state.failed & writes,
    };
    // States that differ only in what the CPU has done leave the same images.
    if !checked.cuts.insert(image) {
        return None;
    }
    image.at_risk = 0;
    let mut survived = at_risk;
    loop {
        image.there = state.durable | survived;
        let torn = (0..MAX_STEPS).filter(|&step| survived & bit(step) != 0);
        let torn = torn.flat_map(|step| [true, false].map(|head| Some(Torn { step, head })));
        for torn in std::iter::once(None).chain(torn) {
            if !checked.images.insert((image, torn)) {
                continue;
            }
            let media = protocol.media(state, survived, torn);
            if let Err(violation) = protocol.check(state, &media) {
                return Some((violation, survived, torn));
            }
        }
        if survived == 0 {
            return None;
        }
        survived = (survived - 1) & at_risk;
    }
}

fn way(found: &[(State, usize, Option<Move>)], end: usize) -> Vec<(Option<Move>, State)> {
    let mut way = Vec::new();
    let mut at = end;
    loop {
        let (state, before, chosen) = found[at];
        way.push((chosen, state));
        if chosen.is_none() {
            break;
        }
        at = before;
    }
    way.reverse();
    way
}
