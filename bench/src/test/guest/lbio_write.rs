// SPDX-License-Identifier: MIT
//! Cases of guests where what fsync waits for is written around the block layer.

use super::Fixture;
use super::fsync;
use super::lbio::RESET;
use crate::error::{
    Error,
    Result, //
};
use crate::test::suite::check;

/// The switch of writes.
const SWITCH: &str = "/sys/kernel/aios/lbio_writes";

/// Longest wait by spinning in ns: longer than the drive ever takes here.
const SPIN_NS: u64 = 100_000_000;

/// Mounts with the stack enabled, and writes too.
fn mount(f: &mut Fixture, options: &str, spin_ns: u64) -> Result<()> {
    f.mount(options, true, spin_ns)?;
    f.sh(&format!("echo 1 > {SWITCH}")).map(drop)
}

/// Runs `case` with writes switched on, and switches them off again, whatever comes.
fn switched_on(f: &mut Fixture, case: impl FnOnce(&mut Fixture) -> Result<()>) -> Result<()> {
    f.sh(&format!("echo 1 > {SWITCH}"))?;
    let result = case(f);
    let off = f.sh(&format!("echo 0 > {SWITCH}; cat {SWITCH}"))?;
    result?;
    check(off.trim() == "0", || format!("{SWITCH} says {off:?}"))
}

fn number(text: &str) -> Result<u64> {
    text.trim()
        .parse()
        .map_err(|_| Error::new(format!("not a number: {text:?}")))
}

/// What `/mnt/t/NAME` has by the page cache, and what the drive has: the same.
fn same_on_the_drive(name: &str) -> String {
    format!(
        "sync; a=$(dd if=/mnt/t/{name} bs=64k 2>/dev/null | md5sum); \
         b=$(dd if=/mnt/t/{name} bs=64k iflag=direct 2>/dev/null | md5sum); \
         echo 3 > /proc/sys/vm/drop_caches; \
         c=$(dd if=/mnt/t/{name} bs=64k 2>/dev/null | md5sum); \
         [ \"$a\" = \"$b\" ]; [ \"$a\" = \"$c\" ]"
    )
}

/// 64 writes of `bytes` each in random places, each synced.
fn synced_writes(f: &mut Fixture, bytes: u64) -> Result<()> {
    f.sh(&format!(
        "/aios-guest work overwrite-fdatasync --file /mnt/t/data --size 16777216 --bs {bytes} \
         --ops 60 --warmup 4 --seed {bytes} >/dev/null"
    ))
    .map(drop)
}

/// Writes of up to 32 KiB are one command each, and longer ones none of LBIO's. They
/// are in diskstats, and on the drive.
pub(super) fn serves_writes(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", SPIN_NS)?;
    switched_on(f, |f| {
        let stats = "awk '$3 == \"nvme0n1\" { print $10 }' /proc/diskstats";
        for kib in [4, 8, 16, 32] {
            let before = number(&f.sh(stats)?)?;
            let served = f.lbio_during("write", |f| synced_writes(f, kib << 10))?;
            let sectors = number(&f.sh(stats)?)? - before;
            check(
                (60..=128).contains(&served) && sectors >= 64 * 2 * kib,
                || format!("64 writes of {kib} KiB: {served} served, {sectors} sectors"),
            )?;
        }
        for kib in [64, 256] {
            let served = f.lbio_during("write", |f| synced_writes(f, kib << 10))?;
            check(served <= 64, || {
                format!("64 writes of {kib} KiB: {served} served")
            })?;
        }
        f.sh(&same_on_the_drive("data")).map(drop)
    })
}

/// Not switched on, not opted in, the stack off, or nobody who waits.
pub(super) fn leaves_others_alone(f: &mut Fixture) -> Result<()> {
    for (options, enabled, on) in [
        ("aios", true, 0),
        ("aios", false, 1),
        ("noaios", true, 1),
        ("aios,data=journal", true, 1),
    ] {
        f.mount(options, enabled, SPIN_NS)?;
        f.sh(&format!("echo {on} > {SWITCH}"))?;
        let served = f.lbio_during("write", |f| synced_writes(f, 4096));
        f.sh(&format!("echo 0 > {SWITCH}"))?;
        let served = served?;
        check(served == 0, || {
            format!("{options}, {enabled}, {on}: {served} served")
        })?;
    }
    mount(f, "aios", SPIN_NS)?;
    switched_on(f, |f| {
        let served = f.lbio_during("write", |f| {
            f.sh(
                "dd if=/dev/urandom of=/mnt/t/data bs=4k count=64 conv=notrunc 2>/dev/null; \
                  sync -f /mnt/t",
            )
            .map(drop)
        })?;
        check(served == 0, || format!("sync of all: {served} served"))?;
        // A scheduler wants to see everything.
        let knob = "/sys/block/nvme0n1/queue/scheduler";
        let schedulers = f.sh(&format!("cat {knob}"))?;
        if !schedulers.contains("mq-deadline") {
            return Ok(());
        }
        f.sh(&format!("echo mq-deadline > {knob}"))?;
        let served = f.lbio_during("write", |f| synced_writes(f, 4096));
        f.sh(&format!("echo none > {knob}"))?;
        let served = served?;
        check(served == 0, || format!("with a scheduler: {served} served"))
    })
}

/// Appends and blocks that were allocated, but never written: conversion comes after
/// the write. Queues without interrupts are left alone there.
pub(super) fn new_blocks(f: &mut Fixture) -> Result<()> {
    for options in ["aios", "aios,dioread_lock"] {
        mount(f, options, SPIN_NS)?;
        switched_on(f, |f| {
            f.sh(
                "cd /mnt/t; rm -f new; for kind in append-fdatasync append-fsync; do \
                     /aios-guest work $kind --file new --bs 4096 --ops 40 --warmup 0 >/dev/null; \
                 done; /aios-guest work append-fdatasync --file new --bs 116 --ops 40 --warmup 0 \
                     >/dev/null; [ $(stat -c %s new) = $((80 * 4096 + 40 * 116)) ]; \
                 rm -f never; fallocate -l 1M never; \
                 for i in 3 9 27 81 243; do dd if=/dev/urandom of=never bs=4k seek=$i count=1 \
                     conv=notrunc,fdatasync 2>/dev/null; done; cd /",
            )?;
            f.sh(&same_on_the_drive("new"))?;
            f.sh(&same_on_the_drive("never"))?;
            // All else reads as zeros.
            f.sh(
                "cd /mnt/t; for i in 0 2 4 100 255; do \
                     dd if=never bs=4k skip=$i count=1 2>/dev/null | cmp -n 4096 - /dev/zero; done; \
                 cd /; rm /mnt/t/new /mnt/t/never",
            )
            .map(drop)
        })?;
    }
    Ok(())
}

/// fio checks what it wrote, synced now and then, beside writeback of the same file.
pub(super) fn fio_verify(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", SPIN_NS)?;
    switched_on(f, |f| {
        let served = f.lbio_during("write", |f| {
            f.sh("cd /proc/sys/vm; echo 5 > dirty_expire_centisecs; \
                 echo 5 > dirty_writeback_centisecs; cd /mnt/t; \
                 for size in 4k-4k 12k-12k 4k-64k; do \
                     fio --name=verify --filename=verify --size=8m --bsrange=$size --rw=randwrite \
                         --ioengine=psync --verify=crc32c --do_verify=1 --verify_fatal=1 \
                         --fdatasync=3 --randseed=11 --invalidate=1 --minimal >/dev/null; \
                     echo 3 > /proc/sys/vm/drop_caches; \
                     fio --name=verify --filename=verify --size=8m --bsrange=$size --rw=randwrite \
                         --ioengine=psync --verify=crc32c --verify_only --verify_fatal=1 \
                         --fdatasync=3 --randseed=11 --invalidate=1 --minimal >/dev/null; \
                 done; rm verify; cd /proc/sys/vm; echo 3000 > dirty_expire_centisecs; \
                 echo 500 > dirty_writeback_centisecs")
                .map(drop)
        })?;
        check(served > 0, || "nothing served".to_owned())
    })
}

/// Nothing that was synced is lost when the file system stops right after.
pub(super) fn survives_a_crash(f: &mut Fixture) -> Result<()> {
    switched_on(f, |f| {
        let served = f.lbio_during("write", fsync::survives_a_crash)?;
        check(served > 0, || "nothing served".to_owned())
    })
}

/// File systems with full and with fast commits.
const FEATURES: [&str; 2] = ["^fast_commit", "fast_commit"];

/// `ops` overwrites of 4 KiB, each with an fsync.
fn committed_writes(f: &mut Fixture, ops: u64) -> Result<()> {
    f.sh(&format!(
        "/aios-guest work overwrite-fsync --file /mnt/t/data --size 4194304 --bs 4096 \
         --ops {ops} --warmup 0 --seed {ops} >/dev/null"
    ))
    .map(drop)
}

/// What is committed is written as its data is: a fast commit's block; log and record of
/// a full one. What flushes the drive's cache is not.
pub(super) fn serves_commits(f: &mut Fixture) -> Result<()> {
    for (feature, cache, each) in [
        ("^fast_commit", "through", 3),
        ("^fast_commit", "back", 3),
        ("fast_commit", "through", 2),
        ("fast_commit", "back", 2),
    ] {
        fsync::fresh_with(f, "/dev/nvme0n1", feature, "aios", cache, true)?;
        f.sh("sync /mnt/t/data")?;
        switched_on(f, |f| {
            let served = f.lbio_during("write", |f| committed_writes(f, 20))?;
            check(served >= 16 * each, || {
                format!("{feature}, write {cache}: {served} served of {}", 20 * each)
            })
        })?;
        let served = f.lbio_during("write", |f| committed_writes(f, 4))?;
        check(served == 0, || format!("switched off: {served} served"))?;
        f.sh(&same_on_the_drive("data"))?;
    }
    fsync::leave(f)
}

/// The same promises as by the block layer, with fast commits.
pub(super) fn fast_commits_survive(f: &mut Fixture) -> Result<()> {
    switched_on(f, |f| {
        let served = f.lbio_during("write", fsync::fast_commits_survive)?;
        check(served > 0, || "nothing served".to_owned())
    })
}

/// Blocks of commits fail now and then, too: nobody notices.
pub(super) fn commits_are_written_again(f: &mut Fixture) -> Result<()> {
    for feature in FEATURES {
        fsync::fresh_with(f, "/dev/nvme0n1", feature, "aios", "back", true)?;
        let rewritten = f.lbio_during("rewrite", |f| {
            f.lbio_failing("lbio_fail_writes", 2, |f| {
                switched_on(f, |f| committed_writes(f, 20))
            })
            .map(drop)
        })?;
        check(rewritten >= 10, || {
            format!("{feature}: {rewritten} rewritten")
        })?;
        f.sh(&same_on_the_drive("data"))?;
        f.sh(
            "umount /mnt/t; e2fsck -fn /dev/nvme0n1 >/tmp/e2fsck 2>&1 || \
              { cat /tmp/e2fsck; exit 1; }; mount -o aios /dev/nvme0n1 /mnt/t",
        )?;
    }
    fsync::leave(f)
}

/// A journal that the drive refuses to write: fsync says so, and the journal is aborted.
pub(super) fn commit_error_arrives(f: &mut Fixture) -> Result<()> {
    for feature in FEATURES {
        let options = "aios,errors=continue";
        fsync::fresh_with(f, "/dev/nvme0n1", feature, options, "through", true)?;
        // The log has no holes: from its first block to its last one.
        let blocks = f.sh(
            "debugfs -R 'blocks <8>' /dev/nvme0n1 2>/dev/null | tr ' ' '\\n' | \
             grep '^[1-9]' | sort -n | sed -n '1p;$p'",
        )?;
        let (first, last) = blocks
            .split_once('\n')
            .ok_or_else(|| Error::new(format!("no blocks: {blocks:?}")))?;
        let (first, last) = (number(first)?, number(last)?);
        f.server.set_bad(first * 4096..(last + 1) * 4096)?;
        let result = switched_on(f, |f| {
            let failed = f.lbio_during("error", |f| {
                f.sh(
                    "no /aios-guest work overwrite-fsync --file /mnt/t/data --ops 1 --warmup 0 \
                         2>/tmp/error; grep -q 'sync.*Input/output error' /tmp/error",
                )
                .map(drop)
            })?;
            check(failed > 0, || "no write of LBIO's failed".to_owned())
        });
        f.server.set_bad(0..0)?;
        result.map_err(|error| error.context(feature.to_owned()))?;
        // Who syncs the drive next would be told of it, too.
        f.sh("sync /dev/nvme0n1 2>/dev/null || :")?;
    }
    fsync::leave(f)
}

/// One write of a few fails, and is written again: nobody notices.
pub(super) fn errors_are_written_again(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", SPIN_NS)?;
    let rewritten = f.lbio_during("rewrite", |f| {
        f.lbio_failing("lbio_fail_writes", 5, |f| {
            switched_on(f, |f| {
                synced_writes(f, 4096)?;
                synced_writes(f, 32768)
            })
        })
        .map(drop)
    })?;
    check(rewritten >= 20, || format!("{rewritten} of 128 rewritten"))?;
    f.sh(&same_on_the_drive("data")).map(drop)
}

/// What the drive refuses for good arrives at the caller, and once.
pub(super) fn error_arrives_once(f: &mut Fixture) -> Result<()> {
    mount(f, "aios,errors=continue", SPIN_NS)?;
    // Whether it is of overwritten blocks or of new ones.
    f.sh("cp /mnt/t/data /mnt/t/bad; fallocate -l 64k /mnt/t/unwritten; sync")?;
    for file in ["bad", "unwritten"] {
        let blocks = f.sh(&format!(
            "debugfs -R 'blocks /{file}' /dev/nvme0n1 2>/dev/null | tr ' ' '\\n' | \
             grep '^[1-9]' | head -1; stat -f -c %S /mnt/t"
        ))?;
        let (block, size) = blocks
            .split_once('\n')
            .ok_or_else(|| Error::new(format!("no blocks: {blocks:?}")))?;
        let (block, size) = (number(block)?, number(size)?);
        f.server.set_bad(block * size..(block + 1) * size)?;
        let result = switched_on(f, |f| {
            let failed = f.lbio_during("error", |f| {
                f.sh(&format!(
                    "for how in fsync fdatasync; do \
                         /aios-guest sync $how --file /mnt/t/{file} --failing >/dev/null; done"
                ))
                .map(drop)
            })?;
            // Without interrupts, new blocks are none of LBIO's.
            check(failed > 0 || file == "unwritten", || {
                "no write of LBIO's failed".to_owned()
            })
        });
        f.server.set_bad(0..0)?;
        result.map_err(|error| error.context(file.to_owned()))?;
    }
    f.sh("rm /mnt/t/bad /mnt/t/unwritten; sync").map(drop)
}

/// A drive that does not answer in time is reset, and all is written again.
pub(super) fn lost_commands_reset(f: &mut Fixture) -> Result<()> {
    let knob = "/sys/class/nvme/nvme0/io_timeout";
    let usual = f.sh(&format!("cat {knob}"))?;
    mount(f, "aios", 0)?;
    f.sh(&format!("echo 1000 > {knob}; {RESET}"))?;
    synced_writes(f, 4096)?;
    let lost = switched_on_after(f, "timeout")?;
    let ended = f.sh(&format!(
        "for i in $(seq 300); do [ -s /tmp/lost ] && break; sleep 0.1; done; \
         echo {} > {knob}; {RESET}; \
         cat /tmp/lost; rm /tmp/lost; echo 0 > {SWITCH}",
        usual.trim()
    ))?;
    check(lost > 0 && ended.trim() == "0", || {
        format!("{lost} commands lost, the writer ended with {ended:?}")
    })?;
    f.sh(&same_on_the_drive("data")).map(drop)
}

/// Writers of a drive that does not answer for a while; how often `event` happened.
fn switched_on_after(f: &mut Fixture, event: &str) -> Result<u64> {
    f.set_latency(4000)?;
    let happened = f.lbio_during(event, |f| {
        f.sh(
            "(code=0; for i in 7 11; do dd if=/dev/urandom of=/mnt/t/data bs=4k count=1 seek=$i \
                 conv=notrunc,fdatasync 2>/dev/null || code=$?; done; echo $code > /tmp/lost) \
                 >/dev/null 2>&1 & sleep 3",
        )
        .map(drop)
    });
    f.set_latency(0)?;
    happened
}

/// Writers who sync, three of them at once in the background, of `$pids`.
const WRITERS: &str = "pids=; for how in fsync fdatasync dsync; do \
         /aios-guest sync $how --file /mnt/t/$how --ops $ops --seed 5 >/dev/null & \
         pids=\"$pids $!\"; done;";

/// Checks what [`WRITERS`] wrote, as the drive has it.
const WRITTEN: &str = "echo 3 > /proc/sys/vm/drop_caches; for how in fsync fdatasync dsync; do \
         /aios-guest sync $how --file /mnt/t/$how --ops $ops --seed 5 --verify >/dev/null; done;";

/// Writers see no errors while the controller is reset after each of the `times`, in
/// seconds, and all that was acknowledged is there.
fn resets_while_writing(f: &mut Fixture, ops: u32, times: &str) -> Result<()> {
    switched_on(f, |f| {
        let served = f.lbio_during("write", |f| {
            f.sh(&format!(
                "ops={ops}; {WRITERS} \
                 for after in {times}; do sleep $after; \
                     echo 1 > /sys/class/nvme/nvme0/reset_controller; done; \
                 for pid in $pids; do wait $pid; done; sync; {WRITTEN}"
            ))
            .map(drop)
        })?;
        check(served > 0, || "nothing served".to_owned())
    })
}

pub(super) fn reset_under_load(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", SPIN_NS)?;
    resets_while_writing(f, 300, "1 1 1 1 1 1")?;
    serves_writes(f)
}

/// The same while fast commits are made.
pub(super) fn reset_under_fast_commits(f: &mut Fixture) -> Result<()> {
    fsync::fresh_with(f, "/dev/nvme0n1", "fast_commit", "aios", "back", true)?;
    resets_while_writing(f, 150, "0.5 0.5 0.5")?;
    fsync::leave(f)
}

/// Writers get errors and come back; the drive can be found again.
pub(super) fn removal_under_load(f: &mut Fixture) -> Result<()> {
    mount(f, "aios,errors=continue", SPIN_NS)?;
    f.sh(&format!(
        "dev=$(readlink -f /sys/class/nvme/nvme0/device); ops=1000000; {WRITERS} \
         sleep 2; echo 1 > $dev/remove; \
         for pid in $pids; do code=0; wait $pid || code=$?; [ $code != 0 ]; done 2>/dev/null; \
         no test -e /sys/block/nvme0n1; umount /mnt/t; echo 0 > {SWITCH}; \
         echo 1 > /sys/bus/pci/rescan; \
         for i in $(seq 100); do test -b /dev/nvme0n1 && break; sleep 0.1; done; \
         test -b /dev/nvme0n1"
    ))?;
    serves_writes(f)
}

/// Interrupts that are bound to a CPU go with it.
pub(super) fn cpu_hotplug_under_load(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", 0)?;
    switched_on(f, |f| {
        f.sh(&format!(
            "ops=200; {WRITERS} \
             for i in 1 2 3 4; do echo 0 > /sys/devices/system/cpu/cpu1/online; sleep 1; \
                 echo 1 > /sys/devices/system/cpu/cpu1/online; sleep 1; done; \
             for pid in $pids; do wait $pid; done; {WRITTEN}"
        ))
        .map(drop)
    })
}

/// Truncation, punching and writes around the page cache, against syncs of the same
/// pages, while memory is short: what is cached in the end is what the drive has.
pub(super) fn changes_against_writers(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", SPIN_NS)?;
    switched_on(f, |f| {
        let served = f.lbio_during("write", |f| {
            f.sh(&format!(
                "cd /mnt/t; dd if=/dev/urandom of=mix bs=64k count=4 conv=fsync 2>/dev/null; \
                 ops=150; {WRITERS} end=$(($(date +%s) + 12)); \
                 (while [ $(date +%s) -lt $end ]; do \
                     dd if=/dev/urandom of=mix bs=4k count=1 seek=$((RANDOM % 64)) \
                         conv=notrunc,fdatasync 2>/dev/null; \
                     dd if=/dev/urandom of=mix bs=4k count=3 seek=$((RANDOM % 60)) \
                         conv=notrunc,fsync 2>/dev/null; done) & one=$!; \
                 (while [ $(date +%s) -lt $end ]; do \
                     fallocate -p -o $((RANDOM % 64 * 4096)) -l 8192 mix; \
                     truncate -s $((RANDOM % 64 * 4096 + 1000)) mix; truncate -s 256k mix; \
                     dd if=/dev/urandom of=mix bs=4k count=2 seek=$((RANDOM % 60)) oflag=direct \
                         conv=notrunc 2>/dev/null; \
                     dd if=/dev/urandom of=mix bs=4k count=9 seek=$((RANDOM % 50)) \
                         conv=notrunc 2>/dev/null; \
                     echo 3 > /proc/sys/vm/drop_caches; done) & two=$!; \
                 (while [ $(date +%s) -lt $end ]; do \
                     dd if=/dev/zero of=/tmp/memory bs=1M count=$(($(awk '/MemAvailable/ \
                         {{ print $2 }}' /proc/meminfo) / 1024 - 24)) 2>/dev/null || :; \
                     sleep 1; rm -f /tmp/memory; done) & three=$!; \
                 wait $one $two $three; for pid in $pids; do wait $pid; done; \
                 rm -f /tmp/memory; {WRITTEN}"
            ))
            .map(drop)
        })?;
        check(served > 0, || "nothing served".to_owned())?;
        f.sh(&same_on_the_drive("mix"))?;
        f.sh(
            "umount /mnt/t; e2fsck -fn /dev/nvme0n1 >/tmp/e2fsck 2>&1 || \
              { cat /tmp/e2fsck; exit 1; }; mount -o aios /dev/nvme0n1 /mnt/t; rm /mnt/t/mix",
        )
        .map(drop)
    })
}

/// Each write that was sent has ended; each refused one says why.
pub(super) fn tracepoints(f: &mut Fixture) -> Result<()> {
    mount(f, "aios", 0)?;
    switched_on(f, |f| {
        f.sh("mkdir -p /tmp/tracing; \
              mountpoint -q /tmp/tracing || mount -t tracefs none /tmp/tracing; \
              echo > /tmp/tracing/trace; echo 1 > /tmp/tracing/events/lbio/enable")?;
        let written = synced_writes(f, 4096).and_then(|()| synced_writes(f, 65536));
        let trace = f.sh("echo 0 > /tmp/tracing/events/lbio/enable; cat /tmp/tracing/trace")?;
        written?;
        let count = |what: &str| trace.matches(what).count();
        let (sent, ended) = (count("lbio_write_submit: "), count("lbio_write_complete: "));
        let refused = count(": unfit");
        check(sent >= 60 && sent == ended && refused >= 30, || {
            format!("{sent} sent, {ended} ended, {refused} too long")
        })
    })
}
