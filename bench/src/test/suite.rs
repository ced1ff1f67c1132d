// SPDX-License-Identifier: MIT
//! Running test cases one after another and saying how each ended.

use crate::error::{
    Error,
    Result, //
};
use std::time::Instant;

/// How a case ended, if it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It did what it should.
    Passed,
    /// It could not run here, for this reason.
    Skipped(String),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Passed
    }
}

/// Counts of ended cases, and which names may run.
#[derive(Debug)]
pub(super) struct Suite {
    only: Option<String>,
    list: bool,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Suite {
    /// A suite of the cases whose names contain `only`; `list` prints the
    /// names and runs nothing.
    pub(super) fn new(only: Option<String>, list: bool) -> Self {
        Self {
            only,
            list,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    /// Whether a case called `name` will run: what it needs can be prepared.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
    }

    /// Whether any of `names` will run (not only be listed).
    pub(super) fn runs_any<'a>(&self, mut names: impl Iterator<Item = &'a str>) -> bool {
        !self.list && names.any(|name| self.wants(name))
    }

    /// Runs one case.
    pub(super) fn case(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) {
        if !self.wants(name) {
            return;
        }
        if self.list {
            println!("{name}");
            return;
        }
        let begin = Instant::now();
        let result = run();
        self.record(name, result, begin.elapsed().as_secs_f64());
    }

    /// Runs `cases`, named `GROUP/CASE`, on what `start` makes for all of them,
    /// and then `end` as the case `GROUP/clean-log`.
    pub(super) fn group<F, O: Into<Outcome>, C: Fn(&mut F) -> Result<O>>(
        &mut self,
        group: &str,
        cases: &[(&str, C)],
        start: impl FnOnce() -> Result<F>,
        end: impl FnOnce(F) -> Result<()>,
    ) {
        let names: Vec<String> = cases
            .iter()
            .map(|(case, _)| format!("{group}/{case}"))
            .collect();
        let last = format!("{group}/clean-log");
        let each = || names.iter().chain([&last]).map(String::as_str);
        if !self.runs_any(each()) {
            // Listed, or not wanted.
            each().for_each(|name| self.case(name, || Ok(Outcome::Passed)));
            return;
        }
        let mut fixture = match start() {
            Ok(fixture) => fixture,
            Err(error) => return self.fail_all(each(), &error),
        };
        for ((_, case), name) in cases.iter().zip(&names) {
            self.case(name, || case(&mut fixture).map(Into::into));
        }
        self.case(&last, || end(fixture).map(|()| Outcome::Passed));
    }

    /// Records a case that ran elsewhere.
    pub(super) fn record(&mut self, name: &str, result: Result<Outcome>, seconds: f64) {
        match result {
            Ok(Outcome::Passed) => {
                self.passed += 1;
                println!("ok {name} ({seconds:.1} s)");
            }
            Ok(Outcome::Skipped(reason)) => {
                self.skipped += 1;
                println!("ok {name} # SKIP {reason}");
            }
            Err(error) => {
                self.failed += 1;
                println!("not ok {name} ({seconds:.1} s)");
                println!("# {error}");
            }
        }
    }

    /// Records the same failure for each of `names` that was to run: what they
    /// need could not be prepared.
    pub(super) fn fail_all<'a>(&mut self, names: impl Iterator<Item = &'a str>, error: &Error) {
        for name in names {
            if self.wants(name) {
                self.record(name, Err(Error::new(error.to_string())), 0.0);
            }
        }
    }

    /// Prints the closing line; the exit code of the whole.
    pub(super) fn finish(self) -> Result<u8> {
        if self.list {
            return Ok(0);
        }
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.passed + self.failed == 0 {
            return Err(Error::new("no test ran").hint("see `cargo aios test --list`"));
        }
        Ok(u8::from(self.failed > 0))
    }
}

/// Fails with `what` unless `condition` holds.
pub(super) fn check(condition: bool, what: impl FnOnce() -> String) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(Error::new(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_finish_with_a_failure_exits_with_one() {
        let mut suite = Suite::new(None, false);
        suite.case("a", || Ok(Outcome::Passed));
        suite.case("b", || Err(Error::new("no")));
        assert_eq!(suite.finish().unwrap(), 1);
    }

    #[test]
    fn test_finish_without_a_case_is_an_error() {
        let mut suite = Suite::new(Some("nothing-like-it".into()), false);
        suite.case("a", || Ok(Outcome::Passed));
        assert!(suite.finish().is_err());
    }

    #[test]
    fn test_finish_only_skips_is_an_error() {
        let mut suite = Suite::new(None, false);
        suite.case("a", || Ok(Outcome::Skipped("reason".into())));
        assert!(suite.finish().is_err());
    }
}
