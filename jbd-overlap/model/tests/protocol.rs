// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The native protocol and the overlapped one keep every promise.

use std::collections::HashSet;

use jbd_overlap_model::build::protocol;
use jbd_overlap_model::config::{Config, Flavour, Sync, Workload};
use jbd_overlap_model::explore::{Counts, Limits, Outcome, explore};
use jbd_overlap_model::rules::{Reason, allowed};
use jbd_overlap_model::story::tell;

fn outcome(config: Config, workload: Workload, flavour: Flavour, faults: u8) -> Outcome {
    let limits = Limits {
        faults,
        ..Limits::default()
    };
    match explore(&protocol(config, workload, flavour, None), limits) {
        Ok(outcome) => outcome,
        Err(error) => panic!("{config}, {workload}: {error}"),
    }
}

/// Explores what `wanted` picks; returns how much there was.
fn holds(flavour: Flavour, faults: u8, wanted: impl Fn(&Config, Workload) -> bool) -> Counts {
    let mut total = Counts::default();
    let mut explored = HashSet::new();
    for config in Config::all() {
        for workload in Workload::all().filter(|w| wanted(&config, *w)) {
            let run = protocol(config, workload, flavour, None);
            // Configurations that come to the same steps and the same promises
            // are explored once.
            let same = (
                config.data,
                config.commits_fast(),
                config.cache,
                config.checksum,
            );
            if !explored.insert(format!("{same:?} {:?} {:?}", run.ops, run.steps)) {
                continue;
            }
            let outcome = outcome(config, workload, flavour, faults);
            if let Some(example) = outcome.counterexample {
                panic!("{config}, {workload}:\n{}", tell(&run, &example));
            }
            total.states += outcome.counts.states;
            total.moves += outcome.counts.moves;
            total.crash_states += outcome.counts.crash_states;
        }
    }
    println!("{flavour:?}: {total:?}");
    total
}

/// Whether the overlap is on for any operation; where it is not, the
/// overlapped protocol is the native one.
fn differs(config: &Config, workload: Workload) -> bool {
    let ops = workload.ops();
    ops.iter().any(|op| allowed(config, op, &ops).is_ok())
}

/// Whether anybody starts a full commit early, and so attaches himself to it.
fn attaches(config: &Config, workload: Workload) -> bool {
    let ops = workload.ops();
    let early = |op| allowed(config, op, &ops).is_ok() && op.sync == Sync::WithMetadata;
    !config.commits_fast() && ops.iter().any(early)
}

fn sound(config: &Config, workload: Workload) -> bool {
    differs(config, workload) || workload.sound_natively(config)
}

#[test]
fn overlap_keeps_every_promise_on_an_internal_journal() {
    let counts = holds(Flavour::Overlap, 1, |config, workload| {
        !config.external && sound(config, workload)
    });
    assert!(counts.crash_states > 500_000, "{counts:?}");
}

#[test]
fn overlap_keeps_every_promise_on_an_external_journal() {
    let counts = holds(Flavour::Overlap, 1, |config, workload| {
        config.external && sound(config, workload)
    });
    assert!(counts.crash_states > 200_000, "{counts:?}");
}

/// One caller and two: the second one finds the first one attached, attaches
/// himself to the next transaction, or comes while a commit runs.
#[test]
fn who_is_attached_to_the_commit_keeps_every_promise() {
    let counts = holds(Flavour::Attached, 1, attaches);
    assert!(counts.crash_states > 200_000, "{counts:?}");
    let counts = holds(Flavour::Attached, 2, |config, workload| {
        workload.ops().len() == 1 && attaches(config, workload)
    });
    assert!(counts.crash_states > 5_000, "{counts:?}");
}

/// Where nobody starts a full commit early, nobody is attached, and the steps
/// are those of the overlap.
#[test]
fn nobody_else_is_attached() {
    for config in Config::all() {
        for workload in Workload::all() {
            let steps = |flavour| {
                let run = protocol(config, workload, flavour, None);
                format!("{:?}", run.steps)
            };
            assert_eq!(
                steps(Flavour::Attached) != steps(Flavour::Overlap),
                attaches(&config, workload),
                "{config}, {workload}"
            );
        }
    }
}

#[test]
fn native_keeps_every_promise() {
    let counts = holds(Flavour::Native, 1, |config, workload| {
        differs(config, workload) && workload.sound_natively(config)
    });
    assert!(counts.crash_states > 200_000, "{counts:?}");
}

#[test]
fn two_errors_in_one_run_are_reported() {
    let counts = holds(Flavour::Overlap, 2, |config, workload| {
        workload.ops().len() == 1 && sound(config, workload)
    });
    assert!(counts.crash_states > 10_000, "{counts:?}");
}

/// Submitting and returning at once hides no crash state: with both as free
/// choices there are more states and no other verdict.
#[test]
fn eager_submission_hides_nothing() {
    let short = [
        "full,lock,cache",
        "fc,lock,cache",
        "full,nolock,nocache",
        "journal,cache",
        "full,lock,external,cache",
        "fc,nolock,external,cache",
    ];
    let single = Workload::all().filter(|w| w.ops().len() == 1);
    let mut more = 0;
    for workload in single {
        for config in short {
            let config: Config = config.parse().expect("a configuration");
            for flavour in [Flavour::Overlap, Flavour::Attached, Flavour::Forced] {
                let mut run = protocol(config, workload, flavour, None);
                let eager = explore(&run, Limits::default()).expect("explored");
                run.lazy = true;
                let lazy = explore(&run, Limits::default()).expect("explored");
                assert_eq!(
                    eager.counterexample.is_some(),
                    lazy.counterexample.is_some(),
                    "{config}, {workload}, {flavour:?}"
                );
                more += usize::from(lazy.counts.states > eager.counts.states);
            }
        }
    }
    assert!(more > 20, "lazy runs must have more states: {more}");
}

/// Multi-block fast commits on a volatile cache: 7.3.4 sends PREFLUSH and FUA
/// with the tail alone, so a block before it may be lost from the cache after
/// fsync has returned. FUA on every block mends it.
#[test]
fn native_fast_commit_of_two_blocks_loses_metadata_on_a_volatile_cache() {
    for config in Config::all() {
        let workload = Workload::OverwriteFsyncTwoBlocks;
        if workload.sound_natively(&config) {
            continue;
        }
        let native = outcome(config, workload, Flavour::Native, 0);
        assert!(native.counterexample.is_some(), "{config}");
        if !config.external {
            let overlap = outcome(config, workload, Flavour::Overlap, 0);
            assert!(overlap.counterexample.is_none(), "{config}");
        }
    }
}

/// Every rule that switches the overlap off: with it on, a promise breaks or
/// nothing is gained; where neither, the rule is conservative, and this list
/// says where.
#[test]
fn rules_are_needed() {
    let broken = |config: &str, workload: Workload| {
        let config: Config = config.parse().expect("a configuration");
        let ops = workload.ops();
        let reason = allowed(&config, &ops[0], &ops).expect_err("off by rule");
        let forced = outcome(config, workload, Flavour::Forced, 0);
        (reason, forced.counterexample.is_some())
    };
    for csum in ["csum", "nocsum"] {
        for cache in ["cache", "nocache"] {
            let config = format!("journal,{cache},{csum}");
            assert_eq!(
                broken(&config, Workload::OverwriteFsync),
                (Reason::DataJournal, true)
            );
        }
        assert_eq!(
            broken(&format!("external,cache,{csum}"), Workload::OverwriteFsync),
            (Reason::ExternalJournal, true)
        );
        // Conservative: without a cache there is no flush to come too early,
        // and a fast commit with FUA data needs none.
        assert_eq!(
            broken(
                &format!("external,nocache,{csum}"),
                Workload::OverwriteFsync
            ),
            (Reason::ExternalJournal, false)
        );
        assert_eq!(
            broken(
                &format!("external,fc,cache,{csum}"),
                Workload::OverwriteFsync
            ),
            (Reason::ExternalJournal, false)
        );
        // Safe only because the tid is read again (mutant wrong-tid), and
        // dearer than native (trips.rs).
        assert_eq!(
            broken(&format!("nolock,{csum}"), Workload::AppendFsync),
            (Reason::UnwrittenExtent, false)
        );
        for lock in ["lock", "nolock"] {
            assert_eq!(
                broken(
                    &format!("fc,cache,{lock},{csum}"),
                    Workload::OverwriteBesideAppend
                ),
                (Reason::PreflushNeeded, true)
            );
        }
    }
}
