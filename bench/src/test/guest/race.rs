// SPDX-License-Identifier: MIT
//! The race suite: readers against everything that changes or evicts what they
//! read, for long.

use super::groups::{
    LBIO,
    LBIO_POLLED,
    STRICT, //
};
use super::{
    Fixture,
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

/// Runs the race for `time` in all, on each kind of queue and translation, with
/// the file open for writing all the time and now and then.
pub(in crate::test) fn run(ctx: &Context, suite: &mut Suite, time: Duration) {
    let groups = [&LBIO, &LBIO_POLLED, &STRICT];
    let each = time / groups.len() as u32;
    for group in groups {
        suite.group(
            &format!("{}/race", group.name),
            &[("rounds", |f: &mut Fixture| rounds(f, each))],
            || start(ctx, group),
            Fixture::end,
        );
    }
}

/// Rounds of the race until `time` is over, at least one of each kind.
fn rounds(f: &mut Fixture, time: Duration) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let end = Instant::now() + time;
    let mut seed = 1;
    while seed <= 2 || Instant::now() < end {
        for (mode, event) in [("", "early"), ("--reopen", "read")] {
            let served = f.lbio_during(event, |f| {
                f.sh(&format!(
                    "/aios-guest race --file /mnt/t/race --size 2097152 --readers 4 \
                     --seconds {} --seed {seed} --blocks 8 --reclaim {mode}",
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
