// SPDX-License-Identifier: MIT
//! Cases of the stack as a whole: the switch and its knobs, data checked by fio,
//! readers against changes of what they read.

use super::Fixture;
use crate::error::Result;
use crate::test::suite::check;
use std::time::{
    Duration,
    Instant, //
};

pub(super) fn boots(f: &mut Fixture) -> Result<()> {
    let release = f.sh("uname -r; test -b /dev/nvme0n1; cat /sys/block/nvme0n1/size")?;
    check(release.starts_with("7.3."), || release.clone())
}

/// A kernel without it would find nothing and pass.
pub(super) fn checks_memory(f: &mut Fixture) -> Result<()> {
    f.sh("dmesg | grep -q 'KernelAddressSanitizer initialized'")
        .map(drop)
}

pub(super) fn off_by_default(f: &mut Fixture) -> Result<()> {
    let switches = f.sh("cd /sys/kernel/aios; cat enabled lbio_writes poll_halt")?;
    check(switches == "0\n0\n0\n", || {
        format!("enabled, lbio_writes and poll_halt are {switches:?}")
    })?;
    f.sh(
        "mkdir -p /mnt/t; mkfs.ext4 -q -F /dev/nvme0n1; mount /dev/nvme0n1 /mnt/t; \
         no grep -q aios /proc/mounts; \
         dd if=/dev/urandom of=/mnt/t/data bs=1M count=16 conv=fsync 2>/dev/null",
    )?;
    let polls = f.read(200, "")?;
    check(polls.total() == 0, || format!("{polls:?}"))
}

pub(super) fn knobs_refuse_nonsense(f: &mut Fixture) -> Result<()> {
    f.sh("cd /sys/kernel/aios; \
          for bad in 1000000001 -1 x 99999999999999999999; do \
              ! echo $bad > poll_max_ns || exit 1; done 2>/dev/null; \
          for good in 0 1 1000000000; do echo $good > poll_max_ns; \
              [ $(cat poll_max_ns) = $good ]; done; \
          for knob in enabled poll_halt; do \
              for bad in 2 -1 x ''; do ! echo $bad > $knob || exit 1; done 2>/dev/null; \
              for good in 1 0; do echo $good > $knob; [ $(cat $knob) = $good ]; done; done")
        .map(drop)
}

pub(super) fn mount_option(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("grep ' /mnt/t ' /proc/mounts | grep -qw aios")?;
    let polls = f.read(400, "")?;
    check(polls.hits >= 350, || {
        format!("400 reads that miss, {polls:?}")
    })
}

pub(super) fn remount(f: &mut Fixture) -> Result<()> {
    f.mount("noaios", true, 100_000_000)?;
    let off = f.read(100, "")?;
    f.sh("mount -o remount,aios /mnt/t; grep ' /mnt/t ' /proc/mounts | grep -qw aios")?;
    let on = f.read(100, "")?;
    f.sh("mount -o remount,noaios /mnt/t; no grep -q ' /mnt/t .*[ ,]aios[ ,]' /proc/mounts")?;
    let off_again = f.read(100, "")?;
    check(
        off.total() == 0 && on.hits >= 80 && off_again.total() == 0,
        || format!("{off:?}, {on:?}, {off_again:?}"),
    )
}

pub(super) fn ioctl(f: &mut Fixture) -> Result<()> {
    f.mount("noaios", true, 100_000_000)?;
    let polls = f.read(200, "--opt-in")?;
    check(polls.hits >= 150, || format!("200 reads, {polls:?}"))?;
    // Another open of the same file did not opt in.
    let others = f.read(200, "")?;
    check(others.total() == 0, || format!("{others:?}"))
}

pub(super) fn slow_drive_sleeps(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000)?;
    let polls = f.read_at(60, "", 20)?;
    // The first waits teach; then it must not even try.
    check(
        polls.hits <= 2 && polls.misses <= 10 && polls.sleeps >= 40,
        || format!("60 reads of 20 ms with a bound of 1 ms, {polls:?}"),
    )
}

pub(super) fn signal_ends_the_spin(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000_000)?;
    f.sh("echo 3 > /proc/sys/vm/drop_caches; cat /aios-guest >/dev/null")?;
    f.set_latency(800)?;
    let begin = Instant::now();
    let killed = f.sh(
        "dd if=/mnt/t/data of=/dev/null bs=4096 count=1 skip=3000 2>/dev/null & pid=$!; \
         sleep 0.2; kill -KILL $pid; code=0; wait $pid || code=$?; [ $code = 137 ]",
    );
    let elapsed = begin.elapsed();
    f.set_latency(0)?;
    killed?;
    check(elapsed < Duration::from_secs(10), || {
        format!("the reader took {elapsed:?} to die")
    })
}

pub(super) fn other_task_ends_the_spin(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000_000)?;
    f.sh("(while :; do :; done) >/dev/null 2>&1 & echo $! > /tmp/busy")?;
    let polls = f.read_at(60, "", 5);
    f.sh("kill $(cat /tmp/busy)")?;
    let polls = polls?;
    // One CPU, and somebody else has work for it.
    check(
        polls.hits <= 10 && polls.misses + polls.sleeps >= 50,
        || format!("60 reads beside a busy task, {polls:?}"),
    )
}

/// Data checked by fio: written, read back in another order, buffered.
pub(super) fn fio_verify(f: &mut Fixture) -> Result<()> {
    f.sh(
        "cd /mnt/t && fio --name=verify --filename=verify --size=24m --bs=4k --rw=randwrite \
         --ioengine=psync --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=11 \
         --invalidate=1 --end_fsync=1 --minimal >/dev/null && \
         echo 3 > /proc/sys/vm/drop_caches && \
         fio --name=again --filename=verify --size=24m --bs=4k --rw=randread --ioengine=psync \
         --verify=crc32c --verify_only --verify_fatal=1 --randseed=11 --invalidate=1 \
         --minimal >/dev/null; rm -f verify",
    )
    .map(drop)
}

/// Readers race with a writer that shrinks, punches and rewrites the file; each
/// 512 bytes say which generation wrote them, and no reader may see one that
/// is older than the last it was told of.
pub(super) fn truncate_against_readers(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 8 --seed 5")
        .map(drop)
}

pub(super) fn kunit(f: &mut Fixture) -> Result<()> {
    let log = f.sh("dmesg")?;
    let mut ours = false;
    for line in log.lines() {
        let text = line.split_once("] ").map_or(line, |(_, text)| text).trim();
        check(!text.starts_with("not ok "), || format!("KUnit: {text}"))?;
        ours |= text.starts_with("ok ") && text.contains("aios_policy");
    }
    check(ours, || {
        "no KUnit result of aios_policy in the log".to_owned()
    })
}
