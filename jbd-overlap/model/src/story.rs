// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A counterexample as a readable story.

use std::fmt::Write;

use crate::explore::Counterexample;
use crate::protocol::{Kind, Protocol};
use crate::state::{Move, State, bit};

/// Tells the counterexample, one event a line.
pub fn tell(protocol: &Protocol, example: &Counterexample) -> String {
    let mut story = Story {
        protocol,
        text: String::new(),
        line: 0,
    };
    let mut before: Option<State> = None;
    for (chosen, state) in &example.way {
        if let Some(chosen) = chosen {
            story.chosen(*chosen);
        }
        story.followed(before.as_ref(), state, *chosen);
        before = Some(*state);
    }
    story.event("POWER CUT");
    if let Some(state) = before {
        story.media(&state, example);
    }
    story.event(&format!("after recovery: {}", example.violation));
    story.text
}

struct Story<'a> {
    protocol: &'a Protocol,
    text: String,
    line: usize,
}

impl Story<'_> {
    fn event(&mut self, text: &str) {
        self.line += 1;
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{:>3}. {text}", self.line);
    }

    fn name(&self, id: usize) -> &str {
        &self.protocol.steps[id].name
    }

    fn chosen(&mut self, chosen: Move) {
        let text = match chosen {
            Move::Run(id) => self.name(id).to_owned(),
            Move::Complete(id) => format!("device completes  [{}]", self.name(id)),
            Move::Fail(id) => format!("device fails      [{}]", self.name(id)),
        };
        self.event(&text);
    }

    /// What happened at once after the move.
    fn followed(&mut self, before: Option<&State>, state: &State, chosen: Option<Move>) {
        let old = before.map_or(0, |b| b.started | b.done);
        for (id, step) in self.protocol.steps.iter().enumerate() {
            if chosen == Some(Move::Run(id)) || (state.started | state.done) & !old & bit(id) == 0 {
                continue;
            }
            let failed = state.failed & bit(id) != 0;
            let text = match step.kind {
                _ if step.earlier => format!("before: {}, complete, in the cache", step.name),
                Kind::Return(_) if failed => format!("{} an error", step.name),
                Kind::Return(_) => format!("{} SUCCESS", step.name),
                _ if failed => format!("given up          [{}]", step.name),
                _ if state.started & bit(id) == 0 => continue,
                Kind::Write { fua: true, .. } => format!("submitted, FUA    [{}]", step.name),
                _ => format!("submitted         [{}]", step.name),
            };
            self.event(&text);
        }
    }

    fn media(&mut self, state: &State, example: &Counterexample) {
        for (id, step) in self.protocol.steps.iter().enumerate() {
            if !matches!(step.kind, Kind::Write { .. }) || state.started & bit(id) == 0 {
                continue;
            }
            let how = match example.torn {
                Some(torn) if torn.step == id && torn.head => "torn: first sector only",
                Some(torn) if torn.step == id => "torn: all but the first sector",
                _ if state.durable & bit(id) != 0 => "durable",
                _ if example.survived & bit(id) != 0 => "survives",
                _ if state.done & bit(id) == 0 => "lost in flight",
                _ => "lost from the cache",
            };
            self.event(&format!("{how}: [{}]", step.name));
        }
    }
}
