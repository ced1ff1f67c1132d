// SPDX-License-Identifier: MIT
//! Serial round trips of syncs, counted in virtual time, where they come out as
//! whole numbers and the same every time.

use super::check;
use crate::compare::virtual_time::{
    Call,
    Commit,
    Kernel,
    Plan,
    Provenance,
    Results,
    Row,
    measure, //
};
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::kernel::Flavour;
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Stack;
use crate::test::suite::Outcome;

/// What is called, on what, and its round trips in the ordinary order and
/// overlapped, as jbd-overlap/README.md has them.
const PROMISES: [(Call, Commit, bool, f64, f64); 13] = [
    (Call::OverwriteFsync, Commit::Full, false, 3.0, 2.0),
    (Call::LogFdatasync, Commit::Full, false, 3.0, 2.0),
    (Call::AppendFsync, Commit::Full, false, 3.0, 2.0),
    (Call::OverwriteFsync, Commit::Full, true, 4.0, 3.0),
    // A fast commit beside the data.
    (Call::FsyncX1, Commit::Fast, false, 2.0, 1.0),
    (Call::LogFdatasync, Commit::Fast, false, 2.0, 1.0),
    (Call::LogFdatasyncLock, Commit::Fast, false, 2.0, 1.0),
    // And both with FUA in place of flushes.
    (Call::FsyncX1, Commit::Fast, true, 3.0, 1.0),
    (Call::LogFdatasync, Commit::Fast, true, 3.0, 1.0),
    // Nothing to commit: FUA in place of a flush.
    (Call::OverwriteFdatasync, Commit::Full, true, 2.0, 1.0),
    (Call::OverwriteDsync, Commit::Full, true, 2.0, 1.0),
    (Call::OverwriteMsync, Commit::Full, true, 2.0, 1.0),
    (Call::OverwriteFdatasync, Commit::Fast, true, 2.0, 1.0),
];

/// The patched kernel, off and on, keeps the promises of the table.
pub(super) fn round_trips(ctx: &Context) -> Result<Outcome> {
    setup::ensure(ctx, &[Need::Build, Need::Boot])?;
    let kernel = Kernel::build(ctx, Flavour::Patched, None)?;
    let rows = PROMISES.map(|(call, commit, cache, ..)| Row {
        call,
        commit,
        cache,
    });
    let plan = Plan {
        rows: rows.to_vec(),
        device_ns: vec![30_000, 100_000],
        ops: 30,
        warmup: 10,
        seed: 1,
        repeats: 2,
    };
    let measured = measure(ctx, &[kernel], &plan, &ctx.cache_dir("test")?)?;
    let results = Results::new(
        &rows,
        measured.samples,
        Provenance::default(),
        measured.complete,
    );
    for ((.., ordinary, overlapped), row) in PROMISES.into_iter().zip(rows) {
        let found = results.calls.iter().find(|calls| calls.row == row);
        for (stack, trips) in [(Stack::Off, ordinary), (Stack::Async, overlapped)] {
            let curve = found
                .and_then(|calls| calls.stacks.get(&stack))
                .ok_or_else(|| Error::new(format!("{} was not measured", row.name())))?;
            check((curve.round_trips_p50 - trips).abs() < 0.1, || {
                format!(
                    "{}, {}: {:.2} round trips, not {trips}",
                    row.name(),
                    stack.name(),
                    curve.round_trips_p50
                )
            })?;
            check(curve.seeds_pct < 5.0, || {
                format!(
                    "{}, {}: {:.1} % between two seeds",
                    row.name(),
                    stack.name(),
                    curve.seeds_pct
                )
            })?;
        }
    }
    Ok(Outcome::Passed)
}
