// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Serial round trips, as measured on 7.3.4 and as the overlap must reach.

use jbd_overlap_model::build::protocol;
use jbd_overlap_model::config::{Config, Flavour, Workload};
use jbd_overlap_model::trips::round_trips;

#[track_caller]
fn check(config: &str, workload: Workload, native: u32, overlap: u32) {
    let config: Config = config.parse().expect("a configuration");
    let trips = |flavour| round_trips(&protocol(config, workload, flavour, None));
    assert_eq!(
        (trips(Flavour::Native), trips(Flavour::Overlap)),
        (Some(native), Some(overlap)),
        "{config}, {workload}"
    );
}

#[test]
fn without_a_volatile_cache() {
    for lock in ["lock", "nolock"] {
        let full = format!("full,nocache,{lock}");
        let fast = format!("fc,nocache,{lock}");
        check(&full, Workload::OverwriteFdatasync, 1, 1);
        check(&fast, Workload::OverwriteFdatasync, 1, 1);
        for workload in [Workload::OverwriteFsync, Workload::WalFdatasync] {
            check(&full, workload, 3, 2);
            check(&fast, workload, 2, 1);
        }
        check(&fast, Workload::AppendFsync, 2, 2);
    }
    check("full,nocache,lock", Workload::AppendFsync, 3, 2);
    check("full,nocache,nolock", Workload::AppendFsync, 3, 3);
}

#[test]
fn with_a_volatile_cache() {
    for lock in ["lock", "nolock"] {
        let full = format!("full,cache,{lock}");
        let fast = format!("fc,cache,{lock}");
        check(&full, Workload::OverwriteFdatasync, 2, 1);
        check(&fast, Workload::OverwriteFdatasync, 2, 1);
        check(&fast, Workload::DirtyOverwriteFdatasync, 2, 2);
        for workload in [Workload::OverwriteFsync, Workload::WalFdatasync] {
            check(&full, workload, 4, 3);
            check(&fast, workload, 3, 1);
        }
        check(&full, Workload::DirtyOverwriteFsync, 4, 3);
        check(&fast, Workload::DirtyOverwriteFsync, 3, 2);
        check(&fast, Workload::AppendFsync, 3, 2);
    }
    check("full,cache,lock", Workload::AppendFsync, 4, 3);
    check("full,cache,nolock", Workload::AppendFsync, 4, 4);
}

#[test]
fn never_more_than_native() {
    for config in Config::all() {
        for workload in Workload::all() {
            let trips = |flavour| {
                round_trips(&protocol(config, workload, flavour, None)).expect("fsync returns")
            };
            let (native, overlap) = (trips(Flavour::Native), trips(Flavour::Overlap));
            assert!(
                overlap <= native,
                "{config}, {workload}: {overlap} > {native}"
            );
            // The data is complete when the commit looks.
            assert_eq!(trips(Flavour::Attached), overlap, "{config}, {workload}");
        }
    }
}

/// Why an unwritten extent in flight switches the full commit's overlap off:
/// the early commit lacks the conversion, and a second one follows.
#[test]
fn an_early_commit_beside_an_unwritten_extent_costs_a_second() {
    for (cache, native, forced) in [("nocache", 3, 4), ("cache", 4, 6)] {
        let config: Config = format!("full,nolock,{cache}")
            .parse()
            .expect("a configuration");
        let trips = |flavour| round_trips(&protocol(config, Workload::AppendFsync, flavour, None));
        assert_eq!(trips(Flavour::Native), Some(native));
        assert_eq!(trips(Flavour::Forced), Some(forced));
    }
}
