// SPDX-License-Identifier: MIT
//! The race suite: readers against everything that changes, evicts or moves what
//! they read, for long.

use super::groups::{
    DEBUG,
    LBIO,
    LBIO_POLLED,
    NO_IOMMU,
    STRICT, //
};
use super::{
    Fixture,
    Group,
    lbio::number,
    start, //
};
use crate::context::Context;
use crate::error::Result;
use crate::test::suite::{
    Suite,
    check, //
};
use std::time::{
    Duration,
    Instant, //
};

/// One round of the race.
const ROUND: Duration = Duration::from_secs(30);

/// With checks of locks and of DMA, and memory that can be taken away: that of the
/// page cache among it.
const MOVING: Group = Group {
    append: &["movablecore=384M"],
    ..DEBUG
};

/// Moves pages until it is killed: by compaction, and by taking blocks of memory
/// away, and giving them back. Some blocks stay where they are, and what is busy for
/// too long is left alone. Says how often a block went.
const MOVE: &str = "moved=0; trap 'echo moved $moved; exit' TERM; while :; do \
     for block in /sys/devices/system/memory/memory*; do \
     echo 1 > /proc/sys/vm/compact_memory; \
     timeout 5 sh -c \"echo offline > $block/state\" 2>/dev/null && moved=$((moved + 1)); \
     grep -q online $block/state || echo online_movable > $block/state; \
     done; done";

/// Runs the race for `time` in all, on each kind of queue and translation, with
/// the file open for writing all the time and now and then.
pub(in crate::test) fn run(ctx: &Context, suite: &mut Suite, time: Duration) {
    type Rounds = fn(&mut Fixture, Duration) -> Result<()>;
    let groups: [(&Group, Rounds); 5] = [
        (&LBIO, rounds),
        (&LBIO_POLLED, rounds),
        (&STRICT, rounds),
        (&NO_IOMMU, rounds),
        (&MOVING, rounds_that_move),
    ];
    let each = time / groups.len() as u32;
    for (group, rounds) in groups {
        suite.group(
            &format!("{}/race", group.name),
            &[("rounds", |f: &mut Fixture| rounds(f, each))],
            || start(ctx, group),
            Fixture::end,
        );
    }
}

/// As [`rounds`], while pages are moved.
fn rounds_that_move(f: &mut Fixture, time: Duration) -> Result<()> {
    f.sh(&format!(
        "{{ {MOVE}; }} > /run/moved 2>&1 & echo $! > /run/mover"
    ))?;
    rounds(f, time)?;
    let said = f.sh(
        "kill $(cat /run/mover); while [ -d /proc/$(cat /run/mover) ]; do sleep 0.1; done; \
         cat /run/moved",
    )?;
    let moved: u64 = said
        .lines()
        .find_map(|line| line.strip_prefix("moved ")?.trim().parse().ok())
        .unwrap_or(0);
    check(moved > 0, || format!("no memory was taken away: {said}"))
}

/// Memory is compacted all the time: what is read stays where it is until it has been
/// read, and is moved then.
pub(super) fn compaction_against_readers(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let moved = "awk '$1 == \"pgmigrate_success\" { print $2 }' /proc/vmstat";
    let before = number(&f.sh(moved)?)?;
    let served = f.lbio_during("read", |f| {
        f.sh(
            "while :; do echo 1 > /proc/sys/vm/compact_memory; done & mover=$!; \
             trap 'kill $mover' EXIT; \
             /aios-guest race --file /mnt/t/race --size 1048576 --readers 3 \
             --mapped-readers 1 --seconds 5 --seed 9 --blocks 8 --reclaim --reopen",
        )
        .map(drop)
    })?;
    let moved = number(&f.sh(moved)?)? - before;
    check(served > 0 && moved > 0, || {
        format!("{served} reads, {moved} pages moved")
    })
}

/// Rounds of the race until `time` is over, at least one of each kind.
fn rounds(f: &mut Fixture, time: Duration) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let end = Instant::now() + time;
    let mut seed = 1;
    while seed <= 2 || Instant::now() < end {
        // Every other pair of rounds with the CPU halted, where the queue lets it.
        let halt = seed / 2 % 2;
        for (mode, event) in [("", "early"), ("--reopen", "read")] {
            let served = f.lbio_during(event, |f| {
                f.sh(&format!(
                    "echo {halt} > /sys/kernel/aios/poll_halt; \
                     /aios-guest race --file /mnt/t/race --size 2097152 --readers 4 \
                     --mapped-readers 1 --seconds {} --seed {seed} --blocks 8 --reclaim {mode}",
                    ROUND.as_secs()
                ))
                .map(drop)
            })?;
            check(served > 0, || format!("race {mode}: nothing {event}"))?;
            seed += 1;
        }
    }
    Ok(())
}
