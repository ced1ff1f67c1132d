// SPDX-License-Identifier: MIT
//! Serial round trips of syncs, and what else is counted in virtual time, where it
//! comes out as whole numbers and the same every time.

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
use crate::guest::{
    BootConfig,
    Guest, //
};
use crate::kernel::Flavour;
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Stack;
use crate::test::suite::Outcome;
use aios_guest::GUEST_BINARY;
use aios_guest::work::WorkResult;
use std::time::Duration;

/// What is called, on what, and its round trips in the ordinary order and
/// overlapped, as jbd-overlap/README.md has them.
const PROMISES: [(Call, Commit, bool, f64, f64); 17] = [
    (Call::OverwriteFsync, Commit::Full, false, 3.0, 2.0),
    (Call::LogFdatasync, Commit::Full, false, 3.0, 2.0),
    (Call::AppendFsync, Commit::Full, false, 3.0, 3.0),
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
    // The same, called otherwise.
    (Call::OverwriteRwfDsync, Commit::Full, true, 2.0, 1.0),
    (Call::OverwriteSync, Commit::Full, false, 3.0, 2.0),
    (Call::OverwriteRwfSync, Commit::Full, false, 3.0, 2.0),
    (Call::OverwriteUringFsync, Commit::Full, false, 3.0, 2.0),
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
        knobs: Vec::new(),
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
            // With a cache, flushes of others fall together or not.
            let most = if row.cache { 8.0 } else { 5.0 };
            check(curve.seeds_pct < most, || {
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

/// What syncs wait for: how often the journal thread sleeps for each, and the median sync
/// in ns.
#[derive(Debug, Clone, Copy)]
struct Waits {
    sleeps: f64,
    p50_ns: u64,
}

/// Syncs of each caller.
const SPIN_OPS: u32 = 60;

/// How long one file system may take, in real time on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The journal thread, or who makes a fast commit, spins for the commit of a lone caller,
/// if asked to, and for nobody else; a drive that takes longer than it may spin is slept
/// for. Two CPUs take turns on one clock, on which the one that spins costs the other next
/// to nothing.
pub(super) fn spins(ctx: &Context) -> Result<Outcome> {
    setup::ensure(ctx, &[Need::Build, Need::Boot])?;
    let kernel = Kernel::build(ctx, Flavour::Patched, None)?;
    kernel.check()?;
    let config = BootConfig {
        cpus: 2,
        ..kernel.boot_config("patched-spin", &ctx.cache_dir("test")?)
    };
    let mut guest = Guest::boot(ctx, &config)?;
    // Time of the drive, what `fsync_spin_us` says, callers.
    let mut waits = |commit, device_ns: u32, spin_us: u32, threads: u32| -> Result<Waits> {
        let script = spin_script(&kernel, commit, device_ns, spin_us, threads);
        let output = guest.sh(&script, TIMEOUT)?;
        parse_waits(&output, threads)
            .ok_or_else(|| Error::new(format!("the guest's answer {output:?} is not understood")))
    };
    let full = Commit::Full;
    let asleep = waits(full, 30_000, 0, 1)?;
    let spun = waits(full, 30_000, 50, 1)?;
    let too_slow = waits(full, 100_000, 50, 1)?;
    let group = [waits(full, 30_000, 0, 2)?, waits(full, 30_000, 50, 2)?];
    // For the request, the blocks and the record; and for the request alone.
    check(
        asleep.sleeps > 2.7 && spun.sleeps < 1.3 && spun.p50_ns < asleep.p50_ns,
        || format!("a lone caller: {asleep:?}, and spinning {spun:?}"),
    )?;
    check(too_slow.sleeps > 2.7, || {
        format!("a drive that takes longer: {too_slow:?}")
    })?;
    check((group[0].sleeps - group[1].sleeps).abs() < 0.3, || {
        format!("two callers: {group:?}")
    })?;
    let asleep = waits(Commit::Fast, 30_000, 0, 1)?;
    let spun = waits(Commit::Fast, 30_000, 50, 1)?;
    let slow = [
        waits(Commit::Fast, 100_000, 0, 1)?,
        waits(Commit::Fast, 100_000, 50, 1)?,
    ];
    // Callers make fast commits themselves; a sleep of theirs takes 2 us and more.
    check(spun.p50_ns + 1_500 < asleep.p50_ns, || {
        format!("a fast commit: {asleep:?}, and spinning {spun:?}")
    })?;
    check(slow[0].p50_ns.abs_diff(slow[1].p50_ns) < 500, || {
        format!("a fast commit on a drive that takes longer: {slow:?}")
    })?;
    guest.shutdown()?;
    Ok(Outcome::Passed)
}

/// The shell script that prints how often the journal thread slept, and what the
/// workload says.
fn spin_script(
    kernel: &Kernel,
    commit: Commit,
    device_ns: u32,
    spin_us: u32,
    threads: u32,
) -> String {
    let feature = match commit {
        Commit::Full => "^fast_commit",
        Commit::Fast => "fast_commit",
    };
    format!(
        "[ -d /sys/module/null_blk ] || insmod {module} nr_devices=0\n\
         null=/sys/kernel/config/nullb/spin\n\
         mkdir $null\n\
         set_up() {{ echo $2 > $null/$1; }}\n\
         set_up size 64; set_up memory_backed 1; set_up submit_queues 2\n\
         set_up irqmode 2; set_up completion_nsec {device_ns}; set_up power 1\n\
         mkfs.ext4 -q -F -b 4096 -O {feature} \
             -E lazy_itable_init=0,lazy_journal_init=0,nodiscard /dev/spin\n\
         {mount}\
         trap 'cd /; umount /mnt/t; echo 0 > $null/power; rmdir $null' EXIT\n\
         cd /mnt/t\n\
         for file in 0 1; do dd if=/dev/zero of=data.$file bs=512K count=1 2>/dev/null; done\n\
         sync\n\
         echo {spin_us} > /sys/fs/ext4/spin/fsync_spin_us\n\
         slept() {{ awk '/^voluntary/ {{ print $2 }}' \
             /proc/$(cat /sys/fs/ext4/spin/journal_task)/status; }}\n\
         before=$(slept)\n\
         result=$({GUEST_BINARY} work overwrite-fsync --file data --bs 4096 \
             --threads {threads} --mark sync --ops {SPIN_OPS} --warmup 0)\n\
         echo \"$(($(slept) - before)) $result\"\n",
        module = kernel.module().display(),
        mount = Stack::Async.mount_script("/dev/spin", "/mnt/t"),
    )
}

fn parse_waits(output: &str, threads: u32) -> Option<Waits> {
    let (slept, result) = output.trim().split_once(' ')?;
    let result: WorkResult = serde_json::from_str(result).ok()?;
    Some(Waits {
        sleeps: slept.parse::<f64>().ok()? / f64::from(SPIN_OPS * threads),
        p50_ns: result.lat_p50_ns,
    })
}
