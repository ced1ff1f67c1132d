// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Each mistake is found, by the promise it breaks, and told as a story.

use jbd_overlap_model::build::protocol;
use jbd_overlap_model::config::{Config, Flavour, Mutant, Workload};
use jbd_overlap_model::explore::{Counterexample, Limits, explore};
use jbd_overlap_model::oracle::Violation;
use jbd_overlap_model::protocol::Protocol;
use jbd_overlap_model::story::tell;

fn run(
    config: &str,
    workload: Workload,
    flavour: Flavour,
    mutant: Option<Mutant>,
) -> (Protocol, Option<Counterexample>) {
    let config: Config = config.parse().expect("a configuration");
    let protocol = protocol(config, workload, flavour, mutant);
    let outcome = explore(&protocol, Limits::default()).expect("explored");
    (protocol, outcome.counterexample)
}

/// The mutant breaks a promise, what it was made from breaks none, and the
/// story ends with the promise.
#[track_caller]
fn caught_in(config: &str, workload: Workload, flavour: Flavour, mutant: Mutant) -> Violation {
    let (_, none) = run(config, workload, flavour, None);
    assert!(
        none.is_none(),
        "{config}, {workload}: broken without {mutant}"
    );
    let (protocol, example) = run(config, workload, flavour, Some(mutant));
    let Some(example) = example else {
        panic!("{config}, {workload}: {mutant} is not caught");
    };
    let story = tell(&protocol, &example);
    println!("{mutant}: {config}, {workload}\n{story}");
    assert!(story.contains("POWER CUT"), "{story}");
    let end = format!("after recovery: {}\n", example.violation);
    assert!(story.ends_with(&end), "{story}");
    example.violation
}

#[track_caller]
fn caught(config: &str, workload: Workload, mutant: Mutant) -> Violation {
    caught_in(config, workload, Flavour::Overlap, mutant)
}

const A: usize = 0;
const B: usize = 1;

#[test]
fn commit_record_before_the_data_wait() {
    for config in ["lock,nocache", "lock,cache", "lock,cache,nocsum"] {
        let mutant = Mutant::CommitBeforeData;
        let stale = Violation::StaleData { file: A };
        assert_eq!(caught(config, Workload::AppendFsync, mutant), stale);
        let native = caught_in(config, Workload::TwoAppends, Flavour::Native, mutant);
        assert!(matches!(native, Violation::StaleData { .. }), "{native}");
    }
}

#[test]
fn commit_record_before_its_blocks() {
    let mutant = Mutant::CommitBeforeBlocks;
    let with = caught("lock,nocache,csum", Workload::OverwriteFsync, mutant);
    assert!(matches!(with, Violation::Unmountable(_)), "{with}");
    let without = caught("lock,nocache,nocsum", Workload::OverwriteFsync, mutant);
    assert_eq!(without, Violation::Garbage { file: A });
}

#[test]
fn flush_started_before_the_data_completed() {
    let mutant = Mutant::FlushBeforeData;
    let lost = Violation::DataLost { file: A };
    for config in ["lock,cache", "lock,cache,nocsum", "nolock,cache"] {
        assert_eq!(caught(config, Workload::OverwriteFsync, mutant), lost);
    }
    assert_eq!(
        caught("lock,cache", Workload::AppendFsync, mutant),
        Violation::StaleData { file: A }
    );
    assert_eq!(
        caught("fc,cache", Workload::DirtyOverwriteFsync, mutant),
        lost
    );
    assert_eq!(
        caught("cache", Workload::DirtyOverwriteFdatasync, mutant),
        lost
    );
}

#[test]
fn commit_that_covers_data_it_has_not_looked_at() {
    for mutant in [Mutant::CoversUnseenData, Mutant::LooksAfterFlush] {
        for config in ["lock,cache", "lock,cache,nocsum", "writeback,nolock,cache"] {
            for workload in [Workload::OverwriteFsync, Workload::TwoOverwrites] {
                let lost = caught_in(config, workload, Flavour::Attached, mutant);
                assert!(matches!(lost, Violation::DataLost { .. }), "{lost}");
            }
        }
        // data=ordered: the commit has waited for data of new blocks (W1).
        for (config, covered) in [("lock,cache", true), ("writeback,lock,cache", false)] {
            let workload = Workload::AppendFsync;
            let (_, example) = run(config, workload, Flavour::Attached, Some(mutant));
            assert_eq!(example.is_none(), covered, "{config}, {mutant}");
        }
        // Without a cache there is nothing to cover; who is not attached asks
        // for himself.
        for (config, flavour) in [
            ("lock,nocache", Flavour::Attached),
            ("lock,cache", Flavour::Overlap),
        ] {
            let (_, example) = run(config, Workload::OverwriteFsync, flavour, Some(mutant));
            assert!(example.is_none(), "{config}, {mutant}");
        }
    }
}

#[test]
fn commit_that_speaks_for_two_callers() {
    let mutant = Mutant::CoversOneForBoth;
    for config in ["lock,cache", "nolock,cache", "writeback,lock,cache"] {
        let lost = caught_in(config, Workload::TwoOverwrites, Flavour::Attached, mutant);
        assert!(matches!(lost, Violation::DataLost { .. }), "{lost}");
    }
}

#[test]
fn dropped_preflush() {
    let mutant = Mutant::DroppedPreflush;
    for flavour in [Flavour::Native, Flavour::Overlap] {
        let with = caught_in("cache,csum", Workload::OverwriteFsync, flavour, mutant);
        assert!(matches!(with, Violation::Unmountable(_)), "{with}");
    }
    let without = caught("cache,nocsum", Workload::OverwriteFsync, mutant);
    assert_eq!(without, Violation::Garbage { file: A });
    let fast = caught_in(
        "fc,cache",
        Workload::OverwriteFsync,
        Flavour::Native,
        mutant,
    );
    assert_eq!(fast, Violation::DataLost { file: A });
}

#[test]
fn dropped_fua() {
    let lost = Violation::MetadataLost { file: A };
    for config in ["lock,cache", "fc,cache"] {
        assert_eq!(
            caught(config, Workload::OverwriteFsync, Mutant::DroppedFua),
            lost
        );
    }
}

#[test]
fn wrong_tid() {
    // The early commit has the unwritten extent; the conversion is in the next.
    for config in ["nolock,nocache", "nolock,cache", "nolock,nocache,nocsum"] {
        for flavour in [Flavour::Forced, Flavour::Native] {
            assert_eq!(
                caught_in(config, Workload::AppendFsync, flavour, Mutant::WrongTid),
                Violation::MetadataLost { file: A }
            );
        }
    }
}

#[test]
fn error_swallowed() {
    for config in ["lock,nocache", "fc,nocache", "lock,cache", "fc,cache"] {
        assert_eq!(
            caught(config, Workload::OverwriteFsync, Mutant::DataErrorSwallowed),
            Violation::DataLost { file: A }
        );
        assert_eq!(
            caught(
                config,
                Workload::OverwriteFsync,
                Mutant::CommitErrorSwallowed
            ),
            Violation::MetadataLost { file: A }
        );
    }
    assert_eq!(
        caught(
            "nocache",
            Workload::OverwriteFdatasync,
            Mutant::DataErrorSwallowed
        ),
        Violation::DataLost { file: A }
    );
}

#[test]
fn fua_despite_data_in_the_cache() {
    for (config, workload) in [
        ("fc,cache", Workload::DirtyOverwriteFsync),
        ("full,cache", Workload::DirtyOverwriteFdatasync),
    ] {
        assert_eq!(
            caught(config, workload, Mutant::FuaDespiteDirty),
            Violation::DataLost { file: A }
        );
    }
}

#[test]
fn fast_commit_without_the_preflush_that_another_inode_needs() {
    for config in ["fc,lock,cache", "fc,nolock,cache"] {
        assert_eq!(
            caught(
                config,
                Workload::OverwriteBesideAppend,
                Mutant::FcPreflushSkipped
            ),
            Violation::StaleData { file: B }
        );
    }
}

#[test]
fn fast_commit_before_the_data_of_new_blocks() {
    let overlap = caught(
        "fc,lock,nocache",
        Workload::AppendFsync,
        Mutant::FcBeforeData,
    );
    assert_eq!(overlap, Violation::StaleData { file: A });
}

#[test]
fn fast_commit_that_returns_with_another_one() {
    // This is what ext4_fc_commit does: s_fc_subtid says that some fast commit
    // has ended, not that it had this inode in its picture.
    let mutant = Mutant::FcSharedBlindly;
    for flavour in [Flavour::Native, Flavour::Overlap] {
        let lost = caught_in("fc,nocache", Workload::TwoOverwrites, flavour, mutant);
        assert_eq!(lost, Violation::MetadataLost { file: B });
    }
}
