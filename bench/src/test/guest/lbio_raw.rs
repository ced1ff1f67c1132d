// SPDX-License-Identifier: MIT
//! Reads of block devices by LBIO, as a driver makes them: through the file of
//! `CONFIG_AIOS_KUNIT_TEST` in debugfs, which reads by the ordinary path what LBIO
//! does not.

use super::Fixture;
use crate::error::Result;
use crate::test::suite::check;

/// Shell functions for the cases, and the device made ready: `$raw` reads it,
/// random data is at 1 MiB to 17 MiB, and no file system. `same BYTES FIRST LENGTH`
/// reads a range in pieces of so many bytes, and compares it with what is there.
const PROLOGUE: &str = r#"
raw=/sys/kernel/debug/aios/lbio_raw_test disk=/dev/nvme0n1
fail() { echo "$*" >&2; exit 1; }
direct() {
    dd if=$disk bs=32768 skip=$1 count=$2 iflag=direct,skip_bytes,count_bytes,fullblock 2>/dev/null
}
same() {
    dd if=$raw bs=$1 skip=$2 count=$3 iflag=skip_bytes,count_bytes,fullblock 2>/dev/null > /run/got
    direct $2 $3 > /run/want
    [ $(stat -c %s /run/want) = $3 ] || fail "cannot read $3 bytes at $2"
    cmp /run/want /run/got || fail "$3 bytes at $2, $1 at a time"
}
umount /mnt/t 2>/dev/null || :
dd if=/dev/zero of=$disk bs=1M count=1 oflag=direct 2>/dev/null
dd if=/dev/urandom of=$disk bs=1M count=16 seek=1 oflag=direct 2>/dev/null
echo $disk > $raw
echo 1 > /sys/kernel/aios/enabled
"#;

impl Fixture {
    /// Runs `script` behind the [`PROLOGUE`], with readers who spin or do not;
    /// how often `event` happened meanwhile.
    fn raw(&mut self, event: &str, spins: bool, script: &str) -> Result<u64> {
        let poll_max_ns = if spins { 100_000_000 } else { 0 };
        self.lbio_during(event, |f| {
            f.sh(&format!(
                "{PROLOGUE}\necho {poll_max_ns} > /sys/kernel/aios/poll_max_ns\n{script}"
            ))
            .map(drop)
        })
    }
}

/// Single pages, from any logical block on.
pub(super) fn single_pages(f: &mut Fixture) -> Result<()> {
    let mut slept = 0;
    let served = f.lbio_during("raw", |f| {
        f.raw("slept", true, "same 4096 1048576 819200").map(drop)?;
        // It never answers before the reader looks.
        f.set_latency(1)?;
        let done = f.raw("slept", false, "same 4096 3145728 819200");
        f.set_latency(0)?;
        slept = done?;
        Ok(())
    })?;
    check(served >= 390 && slept >= 150, || {
        format!("400 pages: {served} served, 200 not spun for: {slept} asleep")
    })?;
    // Not of a logical block's size, nor at the beginning of one, where those are
    // larger than a sector: whoever serves it.
    f.raw(
        "raw",
        true,
        "block=$(cat /sys/block/nvme0n1/queue/logical_block_size)
         same 4096 $((1048576 + 3 * block)) 204800
         dd if=$raw bs=512 skip=2049 count=1 of=/run/got 2>/dev/null
         dd if=$disk bs=512 skip=2049 count=1 of=/run/want 2>/dev/null
         cmp /run/want /run/got",
    )
    .map(drop)
}

/// Up to eight pages by one command.
pub(super) fn longer_reads(f: &mut Fixture) -> Result<()> {
    for (bytes, first) in [(8192, 1_048_576), (16384, 1_049_088), (32768, 2_098_688)] {
        let length = bytes * 60;
        let served = f.raw("raw", true, &format!("same {bytes} {first} {length}"))?;
        check((55..=120).contains(&served), || {
            format!("60 reads of {bytes} bytes: {served} commands")
        })?;
    }
    Ok(())
}

/// Switched off, and what reaches beyond the end.
pub(super) fn refused(f: &mut Fixture) -> Result<()> {
    let off = f.raw(
        "raw",
        true,
        "echo 0 > /sys/kernel/aios/enabled; same 4096 1048576 204800",
    )?;
    let beyond = f.raw(
        "unmapped",
        true,
        "size=$(blockdev --getsize64 $disk)
         same 32768 $((size - 40960)) 40960
         dd if=$raw bs=4096 skip=$size iflag=skip_bytes 2>/dev/null | cmp - /dev/null",
    )?;
    check(off == 0 && beyond > 0, || {
        format!("{off} served while switched off, {beyond} refused beyond the end")
    })
}

/// A partition begins where it begins, and ends where it ends.
pub(super) fn partition(f: &mut Fixture) -> Result<()> {
    let served = f.raw(
        "raw",
        true,
        "addpart $disk 1 4096 4104
         for i in $(seq 50); do [ -b ${disk}p1 ] && break; sleep 0.1; done
         echo ${disk}p1 > $raw
         dd if=$raw bs=32768 of=/run/got 2>/dev/null
         direct $((4096 * 512)) $((4104 * 512)) > /run/want
         cmp /run/want /run/got; delpart $disk 1",
    )?;
    check(served >= 60, || {
        format!("65 reads of a partition: {served} served")
    })
}

/// What was written is read, wherever it is: in the page cache of the device, which
/// is not what the drive has, or there. Of two pages that are read the first may find
/// none in the pool, which is given back while nobody reads.
pub(super) fn writes_are_seen(f: &mut Fixture) -> Result<()> {
    let mut dirty = 0;
    let served = f.lbio_during("raw", |f| {
        dirty = f.raw(
            "dirty",
            true,
            "exec 5<$disk
             for i in $(seq 30); do
                 printf '%08d' $i > /run/want
                 dd if=/run/want of=$disk bs=8 seek=1048576 oflag=seek_bytes conv=notrunc 2>/dev/null
                 dd if=$raw bs=8 skip=1048576 count=1 iflag=skip_bytes of=/run/got 2>/dev/null
                 cmp /run/want /run/got || fail \"stale, cached, $i\"
             done
             sync $disk; sync; exec 5<&-
             for i in $(seq 30); do
                 dd if=/dev/urandom of=/run/want bs=4096 count=1 2>/dev/null
                 dd if=/run/want of=$disk bs=4096 seek=300 oflag=direct conv=notrunc 2>/dev/null
                 dd if=$raw bs=4096 skip=299 count=2 2>/dev/null | tail -c 4096 > /run/got
                 cmp /run/want /run/got || fail \"stale, direct, $i\"
             done",
        )?;
        Ok(())
    })?;
    check(dirty >= 20 && served >= 25, || {
        format!("30 reads of what was dirty: {dirty} refused; 60 others: {served} served")
    })
}

/// Pages that are not adjacent, or that come one by one.
pub(super) fn fragmented_memory(f: &mut Fixture) -> Result<()> {
    let served = f.raw(
        "raw",
        true,
        "knob=/sys/module/lbio/parameters/chunk_order; usual=$(cat $knob); echo 0 > $knob
         trap 'echo $usual > $knob' EXIT
         same 32768 1048576 3276800; same 8192 1048576 819200",
    )?;
    check(served >= 150, || {
        format!("200 reads in fragmented memory: {served} served")
    })
}

/// Some reads fail: the reader sees what is there.
pub(super) fn errors_are_read_again(f: &mut Fixture) -> Result<()> {
    let mut served = 0;
    let failed = f.lbio_failing("lbio_fail", 3, |f| {
        served = f.raw(
            "raw",
            true,
            "same 4096 1048576 819200; same 32768 1048576 819200",
        )?;
        Ok(())
    })?;
    check(failed >= 40 && served >= 80, || {
        format!("every third read is to fail: {failed} did, {served} did not")
    })
}

/// Who is killed stays until the drive has answered, and is gone then. Who finds no
/// pages in the CPU's pool goes at once; it is filled for who comes soon after.
pub(super) fn killed(f: &mut Fixture) -> Result<()> {
    f.raw("raw", false, "")?;
    f.set_latency(6000)?;
    let ended = f.lbio_during("raw", |f| {
        f.sh("raw=/sys/kernel/debug/aios/lbio_raw_test; pids=
              for page in $(seq 400 400 3200); do
                  taskset -c 0 dd if=$raw bs=4096 skip=$page count=1 of=/dev/null 2>/dev/null &
                  pids=\"$pids $!\"; sleep 0.1
              done
              asleep() { cat $(printf '/proc/%s/stat ' $pids) 2>/dev/null | grep -c '(dd) D' || :; }
              for i in $(seq 20); do [ $(asleep) = 8 ] && break; sleep 0.1; done
              kill -KILL $pids; sleep 0.5; [ $(asleep) -ge 1 ]
              for pid in $pids; do
                  code=0; wait $pid || code=$?; [ $code = 137 ]; done")
            .map(drop)
    });
    f.set_latency(0)?;
    let ended = ended?;
    check((1..=8).contains(&ended), || {
        format!("{ended} reads of eight readers who were killed came to their end")
    })
}

/// Reads in a loop, by several: each compares all of it, until it fails or
/// `/run/stop` is there. Their numbers are in `$pids`.
const LOAD: &str = "
rm -f /run/stop; pids=
direct 1048576 16777216 > /run/data
for bytes in 4096 8192 32768; do
    (while [ ! -e /run/stop ]; do
         dd if=$raw bs=$bytes skip=1048576 count=16777216 \
             iflag=skip_bytes,count_bytes,fullblock 2>/dev/null | cmp - /run/data || exit 1
     done) & pids=\"$pids $!\"
done
";

/// Readers see neither errors nor other data, and all of them come back.
pub(super) fn reset_under_load(f: &mut Fixture) -> Result<()> {
    let served = f.raw(
        "raw",
        true,
        &format!(
            "{LOAD}
             for i in 1 2 3 4 5 6; do sleep 1.5; echo 1 > /sys/class/nvme/nvme0/reset_controller
             done; sleep 1; touch /run/stop; for pid in $pids; do wait $pid; done
             same 4096 1048576 204800"
        ),
    )?;
    check(served > 100, || format!("{served} served"))
}

/// Readers get errors and come back; the drive can be found again.
pub(super) fn removal_under_load(f: &mut Fixture) -> Result<()> {
    f.raw(
        "raw",
        true,
        &format!(
            "{LOAD}
             sleep 2; dev=$(readlink -f /sys/class/nvme/nvme0/device); echo 1 > $dev/remove
             for pid in $pids; do no wait $pid; done 2>/dev/null
             no test -e /sys/block/nvme0n1
             echo 1 > /sys/bus/pci/rescan
             for i in $(seq 100); do test -b $disk && break; sleep 0.1; done; test -b $disk"
        ),
    )?;
    let served = f.raw("raw", true, "same 4096 1048576 819200")?;
    check(served >= 190, || {
        format!("200 pages of a drive that came back: {served} served")
    })
}
