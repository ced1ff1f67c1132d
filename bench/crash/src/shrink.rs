// SPDX-License-Identifier: MIT
//! The fewest lost writes that still fail, told as a story.

use crate::check::{
    Checker,
    Recording,
    Subject,
    Violation, //
};
use crate::error::Result;
use crate::history::Content;
use crate::states::{
    Part,
    State, //
};
use std::fmt::Write as _;
use std::sync::Arc;

/// Most states tried while shrinking.
const MOST: usize = 400;

/// Lets lost writes survive, and torn ones whole, one after the other, as long
/// as the state breaks the same promise.
pub fn shrink(
    checker: &mut Checker,
    recording: &Arc<Recording>,
    state: &State,
    violation: &Violation,
) -> Result<(State, Violation)> {
    let (mut best, mut why) = (state.clone(), violation.clone());
    let mut tried = 0;
    loop {
        let mut better = false;
        for index in lost(&best).into_iter().chain(torn(&best)) {
            if tried == MOST {
                return Ok((best, why));
            }
            tried += 1;
            let mut state = best.clone();
            state.survivors.retain(|(other, _)| *other != index);
            state.survivors.push((index, Part::Whole));
            state.survivors.sort_by_key(|(index, _)| *index);
            if let Err(still) = checker.check(recording, &state)?
                && still.kind == why.kind
            {
                (best, why, better) = (state, still, true);
            }
        }
        if !better {
            return Ok((best, why));
        }
    }
}

fn lost(state: &State) -> Vec<usize> {
    let survives = |index: usize| state.survivors.iter().any(|(other, _)| *other == index);
    let volatile = state.volatile.iter().copied();
    volatile.filter(|&index| !survives(index)).collect()
}

fn torn(state: &State) -> Vec<usize> {
    let torn = state
        .survivors
        .iter()
        .filter(|(_, part)| *part != Part::Whole);
    torn.map(|(index, _)| *index).collect()
}

/// What happened, up to the power cut, and what was wrong then.
pub fn story(recording: &Recording, state: &State, violation: &Violation) -> String {
    let mut text = String::new();
    match &recording.subject {
        Subject::Files(models, _) => {
            for (thread, model) in models.iter().enumerate() {
                let acked = recording.history.acknowledged(thread, state.marks);
                let expected = model.expect(&acked);
                for (number, op) in model.ops().iter().enumerate().take(expected.until) {
                    let note = match (acked.contains(&number), op.is_sync()) {
                        (true, _) => "   acknowledged",
                        (false, true) => "   not acknowledged yet",
                        _ => "",
                    };
                    let _ = writeln!(text, "  t{thread} {number:>3}  {op}{note}");
                }
            }
        }
        Subject::Disk(disk) => {
            for (thread, ops) in disk.plan().threads.iter().enumerate() {
                let acked = recording.history.acknowledged(thread, state.marks);
                let last = acked.iter().max().copied();
                for (number, op) in ops.iter().enumerate() {
                    let note = match Some(number) == last {
                        true => "   acknowledged",
                        false => "",
                    };
                    let _ = writeln!(text, "  t{thread} {number:>3}  {op}{note}");
                }
            }
        }
        Subject::Database(puts) => {
            let acked = recording.history.acknowledged(0, state.marks).len();
            let _ = writeln!(text, "  {acked} of {puts} puts acknowledged");
        }
    }
    let history = &recording.history;
    let journal = recording.journal_places().unwrap_or_default();
    let describe = |index: usize| {
        let write = &history.writes[index];
        let place = match journal.iter().any(|place| place.contains(&write.offset)) {
            true => match Content::of(&write.data) {
                Content::Other => "journal".to_owned(),
                content => content.to_string(),
            },
            false => "outside of the journal".to_owned(),
        };
        let when = match write.completed <= state.time {
            true => "complete",
            false => "under way",
        };
        let fua = if write.fua { ", FUA" } else { "" };
        // As the journal's drive counts them, if it has one.
        let first = match recording.journal {
            Some(at) if write.drive > 0 => at as u64,
            _ => 0,
        };
        format!(
            "write {index}: blocks {}..{}, {place}, {when}{fua}",
            (write.offset - first) / 4096,
            (write.end() - first).div_ceil(4096)
        )
    };
    // Those that another drive has not flushed yet are among the survivors.
    let survivors = state.survivors.iter().map(|(index, _)| *index);
    let beside = survivors.filter(|index| !state.volatile.contains(index));
    let flushed = state.base + beside.filter(|&index| !history.writes[index].fua).count();
    let _ = writeln!(
        text,
        "  power cut: {flushed} writes flushed, {} more received and not flushed",
        state.volatile.len()
    );
    for index in lost(state) {
        let _ = writeln!(text, "    lost   {}", describe(index));
    }
    for (index, part) in &state.survivors {
        if *part != Part::Whole {
            let kept = part.bytes(history.writes[*index].data.len());
            let _ = writeln!(text, "    torn   {}, bytes {kept:?} kept", describe(*index));
        }
    }
    let _ = writeln!(text, "  found: {violation}");
    text
}
