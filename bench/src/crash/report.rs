// SPDX-License-Identifier: MIT
//! What was explored, as JSON and as text.

use super::explore::Caught;
use super::mode::Mode;
use crate::stack::Stack;
use aios_crash::mutant::Mutant;
use serde::Serialize;
use std::fmt::Write as _;

/// The result of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Report {
    /// The seed: the same one gives the same plans.
    pub(super) seed: u64,
    /// Distinct images of the drive that were recovered and checked.
    pub(super) states: u64,
    /// States in which a promise was broken.
    pub(super) violations: u64,
    /// Broken recordings, each of which must be caught.
    pub(super) mutants: Vec<MutantReport>,
    /// Workloads that were recorded.
    pub(super) recordings: u64,
    /// States that were also mounted by the guest's kernel.
    pub(super) mounted: u64,
    /// Seconds it took, booting included.
    pub(super) seconds: f64,
    /// The same by stack and mode.
    pub(super) configurations: Vec<Configuration>,
    /// The first violations, shrunk.
    pub(super) stories: Vec<String>,
}

/// What was explored of one stack in one mode.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Configuration {
    /// Which stack.
    pub(super) stack: Stack,
    /// Which file system.
    pub(super) mode: Mode,
    /// Workloads that were recorded.
    pub(super) recordings: u64,
    /// Writes that were durable when they were complete, by FUA or as there is no cache, of all
    /// that were recorded.
    pub(super) fua_writes: u64,
    /// Writes that were recorded.
    pub(super) writes: u64,
    /// Flushes that were recorded.
    pub(super) flushes: u64,
    /// States that were checked.
    pub(super) states: u64,
    /// States in which a promise was broken.
    pub(super) violations: u64,
}

/// Whether a broken recording was caught.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MutantReport {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether a state broke a promise.
    pub(super) caught: bool,
    /// States that were checked until then.
    pub(super) states: u64,
    /// What was wrong.
    pub(super) found: Option<String>,
}

impl MutantReport {
    pub(super) fn new(mutant: Mutant, (states, found): Caught) -> Self {
        Self {
            name: mutant.name(),
            caught: found.is_some(),
            states,
            found,
        }
    }
}

impl Report {
    /// Whether all is well: states were explored, no promise was broken, and
    /// every mutant was caught.
    pub(super) fn is_good(&self) -> bool {
        self.states > 0
            && self.violations == 0
            && !self.mutants.is_empty()
            && self.mutants.iter().all(|mutant| mutant.caught)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (number, story) in self.stories.iter().enumerate() {
            let _ = write!(text, "violation {}:\n{story}\n", number + 1);
        }
        for part in &self.configurations {
            let _ = writeln!(
                text,
                "{:<8} {:<21} {:>4} recordings ({} writes, {} with FUA, {} flushes), {:>6} states, \
                 {} violations",
                part.stack.name(),
                part.mode.name(),
                part.recordings,
                part.writes,
                part.fua_writes,
                part.flushes,
                part.states,
                part.violations
            );
        }
        for mutant in &self.mutants {
            let result = match &mutant.found {
                Some(found) => format!("caught after {} states: {found}", mutant.states),
                None => format!("NOT CAUGHT in {} states", mutant.states),
            };
            let _ = writeln!(text, "mutant   {:<20} {result}", mutant.name);
        }
        let _ = writeln!(
            text,
            "{} distinct states of {} recordings in {:.0} s (seed {}), {} of them mounted by the \
             guest's kernel, {} violations",
            self.states, self.recordings, self.seconds, self.seed, self.mounted, self.violations
        );
        text
    }
}
