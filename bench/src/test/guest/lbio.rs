// SPDX-License-Identifier: MIT
//! Cases of guests with queues for reads around the block layer.

use super::Fixture;
use crate::error::{
    Error,
    Result, //
};
use crate::test::suite::check;

pub(super) fn serves_reads(f: &mut Fixture) -> Result<()> {
    f.sh("grep -qx on /sys/block/nvme0n1/lbio")?;
    f.mount("aios", true, 100_000_000)?;
    // Where its blocks are is known once somebody has looked.
    f.sh("cat /mnt/t/data >/dev/null")?;
    let sectors = "awk '$3 == \"nvme0n1\" { print $6 }' /proc/diskstats";
    let before: u64 = number(&f.sh(sectors)?)?;
    let served = f.lbio_during("read", |f| f.read(400, "").map(drop))?;
    let sectors = number(&f.sh(sectors)?)? - before;
    check(served >= 350 && sectors >= 8 * served, || {
        format!("400 reads that miss: {served} served, {sectors} sectors in diskstats")
    })
}

pub(super) fn sleeps(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 0)?;
    f.sh("cat /mnt/t/data >/dev/null")?;
    // So slow that the answer is not there when the reader comes to wait for it.
    let slept = f.lbio_during("slept", |f| f.read_at(200, "", 2).map(drop))?;
    check(slept >= 150, || {
        format!("200 reads without spinning, {slept} asleep")
    })
}

/// Switched off, not opted in, or with a scheduler that wants to see it all.
pub(super) fn leaves_others_alone(f: &mut Fixture) -> Result<()> {
    for (options, enabled) in [("aios", false), ("noaios", true)] {
        f.mount(options, enabled, 0)?;
        f.sh("cat /mnt/t/data >/dev/null")?;
        let served = f.lbio_during("read", |f| f.read(100, "").map(drop))?;
        check(served == 0, || format!("{options}, {enabled}: {served}"))?;
    }
    Ok(())
}

/// As `truncate_against_readers`, with the file open for writing all the time
/// and with it open only now and then: LBIO has a way for each.
pub(super) fn changes_against_readers(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    for (mode, event) in [("", "early"), ("--reopen", "read")] {
        let served = f.lbio_during(event, |f| {
            f.sh(&format!(
                "/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 10 \
                 --seed 9 --blocks 8 --reclaim {mode}"
            ))
            .map(drop)
        })?;
        check(served > 0, || format!("race {mode}: nothing {event}"))?;
    }
    Ok(())
}

/// Reads of up to 32 KiB are one command each, or few if the pool or an extent
/// ends, and longer ones are none of LBIO's. What the pool gave out a moment ago
/// may still be cached, so some bytes are not read again.
pub(super) fn serves_longer_reads(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("cat /mnt/t/data >/dev/null")?;
    let sectors = "awk '$3 == \"nvme0n1\" { print $6 }' /proc/diskstats";
    for (bytes, ops) in [(8192, 200), (16384, 200), (32768, 100)] {
        let before: u64 = number(&f.sh(sectors)?)?;
        let served = f.lbio_during("read", |f| {
            f.sh(&format!(
                "/aios-guest work randread --file /mnt/t/data --size 16777216 --bs {bytes} \
                 --ops {ops} --warmup 0 --seed 3 >/dev/null"
            ))
            .map(drop)
        })?;
        let read = (number(&f.sh(sectors)?)? - before) * 512;
        check(
            served * 10 >= ops * 9 && served <= 2 * ops && read * 10 >= bytes * ops * 9,
            || format!("{ops} reads of {bytes} bytes: {served} commands, {read} bytes"),
        )?;
    }
    let served = f.lbio_during("read", |f| {
        f.sh(
            "/aios-guest work randread --file /mnt/t/data --size 16777216 --bs 65536 \
             --ops 50 --warmup 0 --seed 3 >/dev/null",
        )
        .map(drop)
    })?;
    check(served == 0, || {
        format!("50 reads of 64 KiB: {served} served")
    })?;
    // What came that way is what the drive has.
    f.sh(
        "cd /mnt/t && dd if=data iflag=nocache count=0 2>/dev/null && \
         for i in 3 11 29 77 150 230; do \
             dd if=data bs=32768 skip=$i count=1 2>/dev/null | md5sum; \
             dd if=data bs=32768 skip=$i count=1 iflag=direct 2>/dev/null | md5sum; \
         done | uniq -c | awk '$1 != 2 { exit 1 }'",
    )
    .map(drop)
}

/// Where memory is fragmented the IOMMU puts single pages side by side; without
/// one the chunks are of one page each. Content and speed are the same.
pub(super) fn fragmented_memory(f: &mut Fixture) -> Result<()> {
    let knob = "/sys/module/lbio/parameters/chunk_order";
    let usual = f.sh(&format!("cat {knob}"))?;
    f.mount("aios", true, 100_000_000)?;
    f.sh(&format!("cat /mnt/t/data >/dev/null; echo 0 > {knob}"))?;
    let group = "/sys/class/nvme/nvme0/device/iommu_group";
    let domain = f.sh(&format!("[ ! -e {group} ] || cat {group}/type"))?;
    let wanted = domain.trim() == "DMA-FQ";
    let mut served = 0;
    let scattered = f.lbio_during("scattered", |f| {
        served = f.lbio_during("read", |f| f.read(400, "").map(drop))?;
        f.sh(
            "/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 4 \
             --seed 10 --blocks 8 --reclaim --reopen",
        )
        .map(drop)
    });
    f.sh(&format!("echo {} > {knob}", usual.trim()))?;
    let scattered = scattered?;
    check(served >= 350 && (scattered > 0) == wanted, || {
        format!("400 reads: {served} served, {scattered} chunks of single pages, {domain:?}")
    })
}

/// Reads page `$page` of the file by read().
const READ_PAGE: &str = "dd if=/mnt/t/data of=/dev/null bs=4096 count=1 skip=$page 2>/dev/null";

/// As [`READ_PAGE`], by a fault.
const TOUCH_PAGE: &str = "/aios-guest faults --file /mnt/t/data --touch $page </dev/null";

/// A script's readers of one of `pages` each, in `$pids`, asleep, of a drive that is
/// slow and a file that is not cached. The first may find no pages in the CPU's pool,
/// and fetches some, which are gone half a second later: so they all begin at once.
fn readers(read: &str, pages: &str) -> String {
    format!(
        "dd if=/mnt/t/data iflag=nocache count=0 2>/dev/null; pids=; \
         for page in {pages}; do taskset -c 0 {read} & pids=\"$pids $!\"; done; \
         for pid in $pids; do for i in $(seq 100); do \
             grep -q -e '(dd) D' -e '(aios-guest) D' /proc/$pid/stat && break; \
             sleep 0.1; done; done; sleep 0.2;"
    )
}

/// Who sleeps for a page is killed at once; what he waited for is ended by others
/// when the drive answers, and neither the folio nor the drive is stuck.
fn killed_at_once(f: &mut Fixture, read: &str) -> Result<()> {
    f.mount("aios", true, 0)?;
    f.sh("cat /mnt/t/data >/dev/null")?;
    f.set_latency(8000)?;
    let mut took_ms = 0;
    let killed = f.lbio_during("killed", |f| {
        took_ms = number(&f.sh(&format!(
            "{} begin=$(date +%s%3N); for pid in $pids; do kill -KILL $pid; code=0; \
             wait $pid || code=$?; [ $code = 137 ]; done; echo $(($(date +%s%3N) - begin))",
            readers(read, "1000 1500 2000 2500 3000 3500")
        ))?)?;
        Ok(())
    });
    f.set_latency(0)?;
    let killed = killed?;
    check((1..=6).contains(&killed) && took_ms < 3000, || {
        format!("a drive of 8 s, {took_ms} ms to kill six readers, {killed} of them LBIO's")
    })?;
    // The page is there, whole and unlocked, once the drive has answered.
    f.sh(
        "a=$(dd if=/mnt/t/data bs=4096 count=1 skip=3000 2>/dev/null | md5sum); \
         b=$(dd if=/mnt/t/data bs=4096 count=1 skip=3000 iflag=direct 2>/dev/null | md5sum); \
         [ \"$a\" = \"$b\" ]; umount /mnt/t; \
         echo 1 > /sys/class/nvme/nvme0/reset_controller",
    )
    .map(drop)
}

pub(super) fn sleeping_reader_is_killed(f: &mut Fixture) -> Result<()> {
    killed_at_once(f, READ_PAGE)
}

/// 900 faults of pages that are not cached: a third each reads, writes to private
/// copies, and writes to the file; and of the last third again, if those pages can be
/// dropped so soon. The program makes the file, and checks what it finds in the pages.
const FAULTS: &str = "/aios-guest faults --file /mnt/t/faults --pages 2048 --count 300 --seed 8";

/// Faults of what is read at random are LBIO's, whoever says so.
pub(super) fn serves_faults(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let majors = "awk '$1 == \"pgmajfault\" { print $2 }' /proc/vmstat";
    for advice in ["mapping", "file"] {
        let early = f.lbio("early")?;
        let before = number(&f.sh(majors)?)?;
        let served = f.lbio_during("read", |f| {
            f.sh(&format!("{FAULTS} --advice {advice}")).map(drop)
        })?;
        let majors = number(&f.sh(majors)?)? - before;
        let early = f.lbio("early")? - early;
        check(served >= 800 && early >= 250 && majors >= served, || {
            format!(
                "900 faults, advice for {advice}: {served} served, {early} early, {majors} major"
            )
        })?;
    }
    Ok(())
}

/// What is read around is none of LBIO's, until that turns out to be in vain; nor
/// is anything without opting in.
pub(super) fn leaves_other_faults_alone(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let around = f.lbio_during("read", |f| {
        f.sh(&format!("{FAULTS} --advice none")).map(drop)
    })?;
    // One page around each: a miss is never followed by a hit.
    let knob = "/sys/block/nvme0n1/queue/read_ahead_kb";
    let usual = f.sh(&format!("cat {knob}; echo 4 > {knob}"))?;
    let in_vain = f.lbio_during("read", |f| {
        f.sh(&format!("{FAULTS} --advice none")).map(drop)
    });
    f.sh(&format!("echo {} > {knob}", usual.trim()))?;
    let in_vain = in_vain?;
    f.mount("noaios", true, 100_000_000)?;
    let others = f.lbio_during("read", |f| f.sh(FAULTS).map(drop))?;
    check(
        around == 0 && (450..=850).contains(&in_vain) && others == 0,
        || format!("served: {around} read around, {in_vain} in vain, {others} not opted in"),
    )
}

/// Without spinning each fault drops its lock, and is made again.
pub(super) fn faults_sleep(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 0)?;
    f.set_latency(2)?;
    let slept = f.lbio_during("slept", |f| f.sh(FAULTS).map(drop));
    f.set_latency(0)?;
    let slept = slept?;
    check(slept >= 600, || format!("900 faults, {slept} asleep"))
}

pub(super) fn sleeping_fault_is_killed(f: &mut Fixture) -> Result<()> {
    killed_at_once(f, TOUCH_PAGE)
}

/// Every read of LBIO's fails: each fault is read again, and shows what it should.
/// Where the drive cannot be read at all, faults get what they always got.
pub(super) fn failed_faults_are_read_again(f: &mut Fixture) -> Result<()> {
    f.mount("aios,errors=continue", true, 100_000_000)?;
    let failed = f.lbio_failing("lbio_fail", 1, |f| f.sh(FAULTS).map(drop))?;
    check(failed >= 800, || format!("{failed} of 900 faults failed"))?;
    // Without a drive: a bus error, 128 + 7.
    f.sh(
        "cat /mnt/t/data >/dev/null; dd if=/mnt/t/data iflag=nocache count=0 2>/dev/null; \
         dev=$(readlink -f /sys/class/nvme/nvme0/device); code=0; \
         (sleep 2; echo 1 > $dev/remove) | \
             /aios-guest faults --file /mnt/t/data --touch 2222 || code=$?; \
         umount /mnt/t; echo 1 > /sys/bus/pci/rescan; \
         for i in $(seq 100); do test -b /dev/nvme0n1 && break; sleep 0.1; done; \
         test -b /dev/nvme0n1; [ $code = 135 ] || { echo \"ended with $code\"; exit 1; }",
    )
    .map(drop)
}

/// As [`changes_against_readers`], with readers by mmap.
pub(super) fn changes_against_faults(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    for (mode, event) in [("", "early"), ("--reopen", "read")] {
        let served = f.lbio_during(event, |f| {
            f.sh(&format!(
                "/aios-guest race --file /mnt/t/race --size 1048576 --readers 0 \
                 --mapped-readers 3 --seconds 7 --seed 21 --blocks 3 --reclaim {mode}"
            ))
            .map(drop)
        })?;
        check(served > 0, || format!("race {mode}: nothing {event}"))?;
    }
    Ok(())
}

/// One read of a few fails: no reader notices.
pub(super) fn errors_are_read_again(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let failed = f.lbio_failing("lbio_fail", 7, |f| {
        f.sh(
            "/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 6 \
             --seed 12 --blocks 8 --reopen",
        )
        .map(drop)
    })?;
    check(failed > 0, || "no read failed".to_owned())
}

/// Has the drive reset; the driver may be about to do that by itself, which is `EBUSY`.
pub(super) const RESET: &str = "n=0
    until echo 1 > /sys/class/nvme/nvme0/reset_controller 2>/dev/null; do
        [ $((n += 1)) -lt 100 ]; sleep 0.1; done";

/// A drive that does not answer in time is reset, and the read made again.
pub(super) fn lost_commands_reset(f: &mut Fixture) -> Result<()> {
    let knob = "/sys/class/nvme/nvme0/io_timeout";
    let usual = f.sh(&format!("cat {knob}"))?;
    f.mount("aios", true, 0)?;
    f.sh(&format!(
        "cat /mnt/t/data >/dev/null; echo 1000 > {knob}; {RESET}"
    ))?;
    f.set_latency(4000)?;
    let lost = f.lbio_during("timeout", |f| {
        f.sh(&format!(
            "({} code=0; for pid in $pids; do wait $pid || code=$?; done; \
              echo $code > /tmp/lost) >/dev/null 2>&1 & sleep 3",
            readers(READ_PAGE, "2000 3000")
        ))
        .map(drop)
    });
    f.set_latency(0)?;
    let ended = f.sh(&format!(
        "for i in $(seq 300); do [ -s /tmp/lost ] && break; sleep 0.1; done; \
         echo {} > {knob}; {RESET}; cat /tmp/lost; rm /tmp/lost",
        usual.trim()
    ))?;
    let lost = lost?;
    check(lost > 0 && ended.trim() == "0", || {
        format!("{lost} commands lost, the reader ended with {ended:?}")
    })
}

/// What a CPU's queue holds, after much was read.
pub(super) fn memory_is_bounded(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.read(2000, "")?;
    let text = f.sh("cat /sys/kernel/debug/aios/lbio_memory")?;
    let totals: Vec<u64> = text
        .lines()
        .filter_map(|line| line.rsplit_once(" total ")?.1.trim().parse().ok())
        .collect();
    check(
        !totals.is_empty() && totals.iter().all(|&total| total > 0 && total <= 512 << 10),
        || format!("memory of the queues: {text:?}"),
    )
}

pub(super) fn tracepoints(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 0)?;
    f.sh("cat /mnt/t/data >/dev/null; mkdir -p /tmp/tracing; \
          mountpoint -q /tmp/tracing || mount -t tracefs none /tmp/tracing; \
          echo > /tmp/tracing/trace; echo 1 > /tmp/tracing/events/lbio/enable")?;
    let read = f.read_at(20, "", 0);
    let trace = f.sh("echo 0 > /tmp/tracing/events/lbio/enable; cat /tmp/tracing/trace")?;
    read?;
    let count = |what: &str| trace.matches(what).count();
    let (submitted, completed) = (count("lbio_submit: "), count("lbio_complete: "));
    check(submitted >= 18 && submitted == completed, || {
        format!("20 reads: {submitted} submissions, {completed} completions traced")
    })
}

/// Interrupts that are bound to a CPU go with it.
pub(super) fn cpu_hotplug_under_load(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 0)?;
    hotplug(f)
}

/// As [`cpu_hotplug_under_load`], with readers who wait for interrupts of their CPU.
pub(super) fn cpu_hotplug_while_halted(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let halted = halting(f, hotplug)?;
    let expected = (halted > 0) != is_polled(f)?;
    check(expected, || format!("{halted} halts"))
}

fn hotplug(f: &mut Fixture) -> Result<()> {
    f.sh(
        "/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 10 --seed 4 \
         --reopen >/dev/null & pid=$!; \
         for i in 1 2 3 4; do echo 0 > /sys/devices/system/cpu/cpu1/online; sleep 1; \
             echo 1 > /sys/devices/system/cpu/cpu1/online; sleep 1; done; \
         wait $pid",
    )
    .map(drop)
}

/// Readers see neither errors nor old data, and all of them come back.
pub(super) fn reset_under_load(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    let served = f.lbio_during("read", |f| {
        f.sh(
            "/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 15 \
             --seed 6 --reopen >/dev/null & pid=$!; \
             for i in 1 2 3 4 5; do sleep 1; \
                 echo 1 > /sys/class/nvme/nvme0/reset_controller; done; \
             wait $pid",
        )
        .map(drop)
    })?;
    check(served > 0, || "nothing read".to_owned())?;
    serves_reads(f)
}

/// Readers get errors and come back; the drive can be found again.
pub(super) fn removal_under_load(f: &mut Fixture) -> Result<()> {
    f.mount("aios,errors=continue", true, 100_000_000)?;
    f.sh("cat /mnt/t/data >/dev/null; \
         dev=$(readlink -f /sys/class/nvme/nvme0/device); pids=; \
         for seed in 1 2 3; do (while /aios-guest work randread --file /mnt/t/data \
             --size 16777216 --bs 4096 --ops 2000 --warmup 0 --seed $seed \
             >/dev/null 2>&1; do :; done) & pids=\"$pids $!\"; done; \
         sleep 2; echo 1 > $dev/remove; for pid in $pids; do wait $pid || :; done; \
         no test -e /sys/block/nvme0n1; umount /mnt/t; \
         echo 1 > /sys/bus/pci/rescan; \
         for i in $(seq 100); do test -b /dev/nvme0n1 && break; sleep 0.1; done; \
         test -b /dev/nvme0n1")?;
    f.mount("aios", true, 100_000_000)?;
    serves_reads(f)
}

/// Whether the queues have no interrupts.
fn is_polled(f: &mut Fixture) -> Result<bool> {
    let text = f.sh("cat /sys/module/nvme/parameters/lbio_polled")?;
    Ok(matches!(text.trim(), "1" | "Y"))
}

/// Runs `what` with readers who halt their CPU instead of spinning, and says how often
/// they did.
fn halting(f: &mut Fixture, what: impl FnOnce(&mut Fixture) -> Result<()>) -> Result<u64> {
    let knob = "/sys/kernel/aios/poll_halt";
    f.sh(&format!("echo 1 > {knob}"))?;
    let halted = f.lbio_during("halted", what);
    f.sh(&format!("echo 0 > {knob}"))?;
    halted
}

/// Readers halt where the knob and the queue let them, and only there: not without
/// interrupts, and not with the lock of a fault.
pub(super) fn halts(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("cat /mnt/t/data >/dev/null")?;
    let spun = f.lbio_during("halted", |f| f.read(200, "").map(drop))?;
    // The first interrupt tells where they come.
    f.read(100, "")?;
    let mut slept = 0;
    let halted = halting(f, |f| {
        slept = f.lbio_during("slept", |f| f.read(200, "").map(drop))?;
        Ok(())
    })?;
    let in_faults = halting(f, |f| f.sh(&format!("{FAULTS} --advice mapping")).map(drop))?;
    let expected = match is_polled(f)? {
        true => halted == 0,
        // Who finds another task ready sleeps, and those are not ours.
        false => halted >= 100 && slept <= 100,
    };
    check(spun == 0 && expected && in_faults == 0, || {
        format!(
            "halts: {spun} without the knob, {halted} of 200 with it ({slept} asleep), \
             {in_faults} in faults"
        )
    })
}

/// A CPU that is halted most of the time is anybody's who asks for it: of tasks that
/// have work there, and of who kills the reader.
pub(super) fn halted_cpu_is_free(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000_000)?;
    let reader = "taskset -c 0 /aios-guest work randread --file /mnt/t/data --size 16777216 \
                  --bs 4096 --warmup 0 --seed 3 >/dev/null --ops";
    // The first interrupt tells the CPU's queue where they come.
    f.sh(&format!("cat /mnt/t/data >/dev/null; {reader} 50"))?;
    f.set_latency(200)?;
    let mut took_ms = Vec::new();
    // The first wait that is so long is asleep, and teaches how long the others will be.
    let halted = halting(f, |f| {
        let times = f.sh(&format!(
            "timed() {{ begin=$(date +%s%3N); \"$@\"; echo $(($(date +%s%3N) - begin)); }}; \
             end() {{ kill -KILL $pid; wait $pid || :; }}; \
             {reader} 100 & pid=$!; sleep 1; \
             for i in 1 2 3 4 5; do sleep 0.3; timed taskset -c 0 true; done; \
             sleep 0.3; timed end"
        ))?;
        took_ms = times.lines().map(number).collect::<Result<_>>()?;
        Ok(())
    });
    f.set_latency(0)?;
    let halted = halted?;
    let expected = match is_polled(f)? {
        true => halted == 0,
        false => halted >= 20,
    };
    let all_ran = took_ms.len() == 6 && took_ms.iter().all(|&ms| ms < 1000);
    check(expected && all_ran, || {
        format!("{halted} halts; {took_ms:?} ms to run beside the reader, and to kill him")
    })
}

pub(super) fn number(text: &str) -> Result<u64> {
    text.trim()
        .parse()
        .map_err(|_| Error::new(format!("not a number: {text:?}")))
}
