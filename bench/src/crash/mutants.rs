// SPDX-License-Identifier: MIT
//! Mutants of the kernel: one is built with all defects of `jbd-overlap/mutants`,
//! which a module parameter switches on, one at a time. The explorer must find
//! every one of them, and nothing as long as none is on.

use super::mode::{
    Mode,
    SIZE, //
};
use super::record::{
    Recorder,
    ours, //
};
use super::report::{
    MutantReport,
    Report, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::interrupt;
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::stack::Stack;
use aios_crash::check::Checker;
use aios_crash::states::{
    Hashes,
    Seen,
    enumerate, //
};
use fastrand::Rng;
use std::path::Path;
use std::sync::Arc;

/// How a defect shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// In what a power cut leaves.
    AfterPowerCuts,
    /// In what direct reads see while blocks are allocated.
    InDirectReads,
}

/// A defect of the kernel, and where to look for it.
struct Defect {
    name: &'static str,
    /// Its number in `enum jbd2_mutant`, 0 for none.
    number: u32,
    look: Look,
    mode: Mode,
    /// Whether fsync's new blocks are allocated as written ones.
    alloc_written: bool,
    /// Whether what fsync waits for is written around the block layer.
    lbio_writes: bool,
    /// The first plan; the others follow.
    first: u64,
    /// Recordings at most.
    recordings: u64,
    /// Whether some commands stall.
    stall: bool,
}

/// Recordings that are made, at most, to find one.
const RECORDINGS: u64 = 12;

/// Where most of them show.
const ORDERED: Defect = Defect {
    name: "",
    number: 0,
    look: Look::AfterPowerCuts,
    mode: Mode::Ordered,
    alloc_written: true,
    lbio_writes: false,
    first: 0,
    recordings: RECORDINGS,
    stall: false,
};

/// Where blocks could show what they held before.
const NEW_BLOCKS: Defect = Defect {
    look: Look::InDirectReads,
    stall: true,
    ..ORDERED
};

/// None, and then each.
const DEFECTS: [Defect; 13] = [
    Defect {
        name: NONE,
        recordings: 1,
        stall: true,
        ..ORDERED
    },
    Defect {
        name: "kernel-commit-before-data",
        number: 1,
        stall: true,
        ..ORDERED
    },
    Defect {
        name: "kernel-commit-before-data-lock",
        number: 1,
        mode: Mode::DioreadLock,
        stall: true,
        ..ORDERED
    },
    Defect {
        name: "kernel-preflush-dropped",
        number: 2,
        ..ORDERED
    },
    Defect {
        name: "kernel-wrong-tid",
        number: 3,
        ..ORDERED
    },
    Defect {
        name: "kernel-tid-read-once",
        number: 4,
        alloc_written: false,
        ..ORDERED
    },
    // The first two plans have no sync by which an error is nobody's.
    Defect {
        name: "kernel-error-swallowed",
        number: 5,
        recordings: 2,
        ..ORDERED
    },
    // The plan of syncs with nothing to commit.
    Defect {
        name: "kernel-fua-despite-cache",
        number: 6,
        first: 3,
        ..ORDERED
    },
    Defect {
        name: "kernel-fast-commit-without-flush",
        number: 7,
        mode: Mode::FastCommitPlain,
        ..ORDERED
    },
    Defect {
        name: NONE,
        lbio_writes: true,
        recordings: 1,
        stall: true,
        ..ORDERED
    },
    Defect {
        name: "kernel-commit-covers-all-data",
        number: 10,
        lbio_writes: true,
        stall: true,
        ..ORDERED
    },
    // Direct reads that take their time, and those for which nobody waits.
    Defect {
        name: NONE,
        number: 8,
        ..NEW_BLOCKS
    },
    Defect {
        name: "kernel-inode-unlocked",
        number: 9,
        ..NEW_BLOCKS
    },
];
/// The kernel as it should be.
const NONE: &str = "none";

/// States of a recording that are judged on the host.
const STATES: usize = 120;
/// The same where the guest's kernel has to mount each.
const MOUNTED: usize = 12;

/// Looks for every defect; nothing with `--dry-run`.
pub(super) fn explore(ctx: &Context, seed: u64, out: &Path) -> Result<Option<Report>> {
    let kernel = kernel::build(ctx, Flavour::Patched, Variant::Mutants, None)?.bzimage;
    let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let modes = [Mode::Ordered, Mode::DioreadLock, Mode::FastCommitPlain];
    let stack = (Stack::Async, true);
    let Some(mut recorder) =
        Recorder::boot(ctx, kernel, stack, &modes, (out, sockets.path()), None)?
    else {
        return Ok(None);
    };
    let mut report = Report {
        seed,
        ..Report::default()
    };
    let bar = ctx.ui.bar("looking for defects", DEFECTS.len() as u64);
    for defect in &DEFECTS {
        let found = match defect.look {
            Look::AfterPowerCuts => cut(&mut recorder, defect, seed, &mut report)?,
            Look::InDirectReads => read(&mut recorder, defect)?,
        };
        bar.inc(1);
        match (defect.name, found.found) {
            (NONE, Some(what)) => {
                report.violations += 1;
                report
                    .stories
                    .push(format!("the kernel without defects: {what}\n"));
            }
            (NONE, None) => {}
            (name, what) => report.mutants.push(MutantReport {
                name,
                caught: what.is_some(),
                states: found.states,
                found: what,
            }),
        }
    }
    bar.finish_and_clear();
    recorder.shutdown()?;
    Ok(Some(report))
}

struct Found {
    states: u64,
    found: Option<String>,
}

/// Records until a state breaks a promise.
fn cut(recorder: &mut Recorder, defect: &Defect, seed: u64, report: &mut Report) -> Result<Found> {
    let mode = defect.mode;
    let mut checker = Checker::new(SIZE).map_err(ours)?;
    let mut states = 0;
    for plan in defect.first..defect.first + defect.recordings {
        interrupt::check()?;
        recorder.stall_some(defect.stall)?;
        recorder.mutate(defect.number, defect.alloc_written, defect.lbio_writes)?;
        let recorded = recorder.record(mode, &mode.plan(seed, plan));
        let recording = recorded.map_err(|error| error.context(defect.name))?;
        recorder.mutate(0, defect.alloc_written, defect.lbio_writes)?;
        recorder.stall_some(false)?;
        report.recordings += 1;
        let recording = Arc::new(recording);
        let limit = match mode.is_mounted() {
            true => MOUNTED,
            false => STATES,
        };
        let all = enumerate(
            &recording.history,
            Hashes::new(&recording.initial),
            &mut Seen::default(),
            &mut Rng::with_seed(seed),
            limit,
        );
        for state in all {
            states += 1;
            report.states += 1;
            let judged = if mode.is_mounted() {
                let image = checker.image(&recording, &state).to_vec();
                let image = recorder.mount(mode, &image)?;
                report.mounted += 1;
                checker.check_image(&recording, state.marks, &image)
            } else {
                checker.check(&recording, &state)
            };
            if let Err(violation) = judged.map_err(ours)? {
                let found = Some(violation.to_string());
                return Ok(Found { states, found });
            }
        }
    }
    Ok(Found {
        states,
        found: None,
    })
}

/// Lets direct reads race with syncs that allocate blocks.
fn read(recorder: &mut Recorder, defect: &Defect) -> Result<Found> {
    recorder.stall_some(defect.stall)?;
    recorder.mutate(defect.number, defect.alloc_written, defect.lbio_writes)?;
    let found = recorder.read_new_blocks(defect.mode)?;
    recorder.mutate(0, defect.alloc_written, defect.lbio_writes)?;
    recorder.stall_some(false)?;
    Ok(Found { states: 0, found })
}

/// What was not found, in words.
pub(super) fn verdict(report: &Report) -> Result<()> {
    if let Some(story) = report.stories.first() {
        return Err(Error::new(story.trim()));
    }
    let missed: Vec<&str> = report
        .mutants
        .iter()
        .filter(|mutant| !mutant.caught)
        .map(|mutant| mutant.name)
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("not caught: {}", missed.join(", "))))
}
