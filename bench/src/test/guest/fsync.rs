// SPDX-License-Identifier: MIT
//! Overlapped fsync: what was synced is there after a crash, errors arrive, and
//! waits for the drive do overlap.

use super::groups::PLAIN;
use super::stack::boots;
use super::{
    Case,
    Fixture,
    Group,
    check, //
};
use crate::error::{
    Error,
    Result, //
};

/// Cases of the guest for fsync.
pub(super) const FSYNC: Group = Group {
    name: "guest/fsync",
    cases: &[
        ("boots", boots),
        ("survives-a-crash", survives_a_crash),
        ("data-error-arrives-once", data_error_arrives_once),
        ("commit-error-arrives", commit_error_arrives),
        ("overlaps", overlaps),
        ("fua-takes-the-place-of-a-flush", fua_instead_of_flushes),
        ("flushes-what-went-without-fua", flushes_the_rest),
        ("flush-in-flight-covers-nobody-else", flush_in_flight),
        ("journal-blocks-merge", journal_blocks_merge),
        ("fast-commits-overlap", fast_commits_overlap),
        (
            "fast-commits-go-past-the-cache",
            fast_commits_past_the_cache,
        ),
        ("fast-commits-survive-a-crash", fast_commits_survive),
    ],
    ..PLAIN
};

/// The same promises, in the kernel full of checks.
pub(super) const SURVIVES_A_CRASH: Case = ("fsync-survives-a-crash", survives_a_crash);

/// Features of mkfs.ext4: full commits, and fast ones.
const COMMITS: [&str; 2] = ["^fast_commit", "fast_commit"];

/// Latency of the drive where waits are counted, in ms: long against what the
/// guest itself needs for a sync.
const WAIT_MS: u64 = 40;

/// Every way to sync, with and without overlap: nothing is lost when the file
/// system stops right after the last answer, and e2fsck finds no fault.
pub(super) fn survives_a_crash(f: &mut Fixture) -> Result<()> {
    // Mount options, cache, stack enabled.
    let setups = [
        ("aios", "back", true),
        ("aios,dioread_lock", "through", true),
        ("aios,data=writeback", "through", true),
        ("aios,data=journal", "back", true),
        ("aios,dioread_lock", "back", true),
        ("aios", "through", false),
    ];
    for (seed, (options, cache, enabled)) in (1..).zip(setups) {
        fresh(f, "/dev/nvme0n1", options, cache, enabled)?;
        crash(f, seed)
            .map_err(|error| error.context(format!("{options}, write {cache}, {enabled}")))?;
    }
    leave(f)
}

/// What a case leaves behind is none of the other cases' file systems.
pub(super) fn leave(f: &mut Fixture) -> Result<()> {
    f.sh(
        "cd /; umount /mnt/t; echo 'write back' > /sys/block/nvme0n1/queue/write_cache; \
         dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=1 conv=fsync 2>/dev/null",
    )
    .map(drop)
}

/// Synced changes, side by side and alone, then the crash and the checks.
fn crash(f: &mut Fixture, seed: u64) -> Result<()> {
    f.sh(&format!(
        "cd /mnt/t; pids=; ways='fsync fdatasync dsync open-sync rwf-dsync rwf-sync uring-fsync \
             uring-fdatasync msync'; \
         for how in $ways; do \
             /aios-guest sync $how --file $how --ops 20 --seed {seed} >/dev/null & \
             pids=\"$pids $!\"; done; \
         fio --name=uring --filename=uring --size=256k --bs=4k --rw=randwrite --fsync=1 \
             --ioengine=io_uring --end_fsync=1 --verify=crc32c --do_verify=0 --randseed={seed} \
             --minimal >/dev/null; \
         for pid in $pids; do wait $pid; done; \
         /aios-guest sync fsync --file last --ops 12 --seed {seed} --shutdown >/dev/null; \
         cd /; umount /mnt/t; \
         e2fsck -fy /dev/nvme0n1 >/tmp/e2fsck 2>&1 || [ $? = 1 ] || {{ cat /tmp/e2fsck; exit 1; }}; \
         e2fsck -fn /dev/nvme0n1 >/tmp/e2fsck 2>&1 || {{ cat /tmp/e2fsck; exit 1; }}; \
         mount /dev/nvme0n1 /mnt/t; cd /mnt/t; \
         for how in $ways; do \
             /aios-guest sync $how --file $how --ops 20 --seed {seed} --verify >/dev/null; done; \
         /aios-guest sync fsync --file last --ops 12 --seed {seed} --verify >/dev/null; \
         fio --name=uring --filename=uring --size=256k --bs=4k --rw=randread --ioengine=psync \
             --verify=crc32c --verify_only --verify_fatal=1 --randseed={seed} \
             --minimal >/dev/null"
    ))
    .map(drop)
}

/// A new file system on `device`, mounted at /mnt/t. It starts commits early
/// for any number of callers.
fn fresh(f: &mut Fixture, device: &str, options: &str, cache: &str, enabled: bool) -> Result<()> {
    fresh_with(f, device, "^fast_commit", options, cache, enabled)
}

/// The same, with a feature for mkfs.ext4.
pub(super) fn fresh_with(
    f: &mut Fixture,
    device: &str,
    feature: &str,
    options: &str,
    cache: &str,
    enabled: bool,
) -> Result<()> {
    f.sh(&format!(
        "mkdir -p /mnt/t; cd /; umount /mnt/t 2>/dev/null || :; \
         echo 'write {cache}' > /sys/block/nvme0n1/queue/write_cache; \
         mkfs.ext4 -q -F -b 4096 -O {feature} {device}; \
         mount -o {options} {device} /mnt/t; \
         for most in /sys/fs/ext4/*/fsync_early_max; do echo 99 > $most; done; \
         for spin in /sys/fs/ext4/*/fsync_spin_us; do echo 1000 > $spin; done; \
         echo {} > /sys/kernel/aios/enabled; \
         dd if=/dev/urandom of=/mnt/t/data bs=1M count=4 conv=fsync 2>/dev/null; sync",
        u8::from(enabled),
    ))
    .map(drop)
}

/// Runs `script` with the drive behind a device mapper that fails every write to
/// the blocks that `blocks` (a command for debugfs) prints. The file system has a feature
/// of mkfs.ext4.
fn with_bad_blocks(f: &mut Fixture, feature: &str, blocks: &str, script: &str) -> Result<()> {
    let sectors = "$(cat /sys/block/nvme0n1/size)";
    f.sh(&format!(
        "umount /mnt/t 2>/dev/null || :; dmsetup remove -f bad 2>/dev/null || :; \
         echo 'write through' > /sys/block/nvme0n1/queue/write_cache; \
         echo \"0 {sectors} linear /dev/nvme0n1 0\" | dmsetup create bad"
    ))?;
    // The device mapper would fail flushes, too, which fdatasync may end with.
    let options = "aios,errors=continue,nobarrier";
    let made = fresh_with(f, "/dev/mapper/bad", feature, options, "through", true);
    let result = made.and_then(|()| {
        // 4 KiB blocks; from the first one to the last one.
        f.sh(&format!(
            "set -- $(debugfs -R '{blocks}' /dev/nvme0n1 2>/dev/null | tr ' ' '\\n' | \
                 grep '^[1-9]' | sort -n | sed -n '1p;$p'); \
             begin=$(($1 * 8)); end=$((($2 + 1) * 8)); all={sectors}; [ $end -gt $begin ]; \
             dmsetup suspend --noflush --nolockfs bad; \
             {{ echo \"0 $begin linear /dev/nvme0n1 0\"; \
                echo \"$begin $((end - begin)) flakey /dev/nvme0n1 $begin 0 9999 1 error_writes\"; \
                echo \"$end $((all - end)) linear /dev/nvme0n1 $end\"; }} | dmsetup load bad; \
             dmsetup resume bad; \
             {script}"
        ))
    });
    f.sh("cd /; umount /mnt/t 2>/dev/null || :; dmsetup remove bad")?;
    result.map(drop)
}

fn data_error_arrives_once(f: &mut Fixture) -> Result<()> {
    for feature in COMMITS {
        with_bad_blocks(
            f,
            feature,
            "blocks /data",
            "for how in fsync fdatasync uring-fsync uring-fdatasync; do \
                 /aios-guest sync $how --file /mnt/t/data --failing >/dev/null; done",
        )
        .map_err(|error| error.context(feature))?;
    }
    Ok(())
}

fn commit_error_arrives(f: &mut Fixture) -> Result<()> {
    for feature in COMMITS {
        with_bad_blocks(
            f,
            feature,
            "blocks <8>",
            "no /aios-guest work overwrite-fsync --file /mnt/t/data --ops 1 --warmup 0 \
                 2>/tmp/error; grep -q 'sync.*Input/output error' /tmp/error",
        )
        .map_err(|error| error.context(feature))?;
    }
    Ok(())
}

/// Serial waits for the drive of one sync call, native and overlapped, as
/// jbd-overlap/README.md has them.
fn overlaps(f: &mut Fixture) -> Result<()> {
    // Cache, what is done, waits in the ordinary order and now.
    let rows = [
        ("through", "overwrite-fsync --bs 4096", 3, 2),
        ("through", "append-fdatasync --bs 116", 3, 2),
        ("through", "append-fsync --bs 4096", 3, 3),
        ("back", "overwrite-fsync --bs 4096", 4, 3),
        ("back", "overwrite-fdatasync --bs 4096", 2, 1),
        ("through", "overwrite-fdatasync --bs 4096", 1, 1),
    ];
    waits(f, "^fast_commit", &rows)?;
    // Blocks that need no conversion.
    fresh(f, "/dev/nvme0n1", "aios", "through", true)?;
    f.sh("echo 1 > /sys/fs/ext4/nvme0n1/fsync_alloc_written")?;
    let median = median_waits(f, "append-fsync --bs 4096")?;
    check((2.0..2.8).contains(&median), || {
        format!("allocated as written: {median:.2} waits")
    })
}

/// The same with fast commits.
fn fast_commits_overlap(f: &mut Fixture) -> Result<()> {
    let rows = [
        ("through", "overwrite-fsync --bs 4096", 2, 1),
        ("through", "append-fdatasync --bs 116", 2, 1),
        ("through", "append-fsync --bs 4096", 2, 2),
        ("back", "overwrite-fsync --bs 4096", 3, 1),
        ("back", "append-fdatasync --bs 116", 3, 1),
        ("back", "append-fsync --bs 4096", 3, 3),
        ("back", "overwrite-fdatasync --bs 4096", 2, 1),
    ];
    waits(f, "fast_commit", &rows)
}

/// Checks rows of cache, what is done, and waits in the ordinary order and now.
fn waits(f: &mut Fixture, feature: &str, rows: &[(&str, &str, u32, u32)]) -> Result<()> {
    for &(cache, work, native, overlapped) in rows {
        for (enabled, waits) in [(false, native), (true, overlapped)] {
            fresh_with(f, "/dev/nvme0n1", feature, "aios", cache, enabled)?;
            let median = median_waits(f, work)?;
            let row = || format!("write {cache}, {work}, {enabled}: {median:.2} waits");
            check(
                (f64::from(waits)..f64::from(waits) + 0.8).contains(&median),
                row,
            )?;
        }
    }
    Ok(())
}

/// Serial waits of the median call.
fn median_waits(f: &mut Fixture, work: &str) -> Result<f64> {
    f.set_latency(WAIT_MS)?;
    let done = f.sh(&format!(
        "/aios-guest work {work} --file /mnt/t/data --ops 16 --warmup 4"
    ));
    f.set_latency(0)?;
    Ok(median_ns(&done?)? as f64 / (WAIT_MS * 1_000_000) as f64)
}

/// What the drive was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    flushes: u64,
    /// Writes with FUA, by the guest's trace: QEMU's drive drops the flag.
    fua: u64,
}

/// Options with which nothing is sent but for the caller.
const QUIET: &str = "commit=900,noinit_itable";

/// A new file system on the drive with a cache, as [`fresh`] makes it.
fn fresh_quiet(f: &mut Fixture, options: &str, cache: &str) -> Result<()> {
    fresh(
        f,
        "/dev/nvme0n1",
        &format!("{options},{QUIET}"),
        cache,
        true,
    )
}

/// Runs `script` in /mnt/t and counts what the drive was sent meanwhile.
fn sent(f: &mut Fixture, script: &str) -> Result<Sent> {
    let before = f.server.counters()?.flushes;
    let trace = writes_of(f, script)?;
    // NVM Command Set 1.0c, figure 60: bit 30 of dword 12.
    let fua = |line: &&str| {
        let control = line.split_once("ctrl=0x").map_or("", |(_, rest)| rest);
        let control = control.split(',').next().unwrap_or_default();
        u16::from_str_radix(control, 16).is_ok_and(|control| control & (1 << 14) != 0)
    };
    Ok(Sent {
        flushes: f.server.counters()?.flushes - before,
        fua: trace.lines().filter(fua).count() as u64,
    })
}

/// Runs `script` in /mnt/t; the guest's trace of its write commands, a line each.
fn writes_of(f: &mut Fixture, script: &str) -> Result<String> {
    f.sh(&format!(
        "cd /mnt/t; tracing=/sys/kernel/tracing; setup=$tracing/events/nvme/nvme_setup_cmd; \
         echo > $tracing/trace; echo 1 > $setup/enable; \
         {{ {script}; }} >/dev/null; \
         echo 0 > $setup/enable; grep nvme_cmd_write $tracing/trace || :"
    ))
}

/// The blocks of a transaction, which lie side by side in the journal, go to the drive in
/// commands of 128 KiB (BLK_PLUG_FLUSH_SIZE); its record in one more.
fn journal_blocks_merge(f: &mut Fixture) -> Result<()> {
    for options in ["noaios", "aios"] {
        fresh_quiet(f, options, "back")?;
        // Inodes and names in many blocks; the one that is synced has no data.
        let changes = "for dir in $(seq 40); do mkdir d$dir; : > d$dir/file; done; \
                       : > synced; sync synced";
        let trace = writes_of(f, changes)?;
        let blocks = |line: &str| {
            let length = line.split_once("len=")?.1.split(',').next()?;
            Some((length.trim().parse::<u64>().ok()? + 1) * 512 / 4096)
        };
        let lengths: Vec<u64> = trace.lines().filter_map(blocks).collect();
        let sum: u64 = lengths.iter().sum();
        let most = sum.div_ceil(32) + 1;
        check(sum >= 50 && lengths.len() as u64 <= most, || {
            format!("{options}: {sum} blocks of 4 KiB in commands of {lengths:?}")
        })?;
    }
    Ok(())
}

/// Runs `script` and checks what the drive was sent.
fn sends(f: &mut Fixture, script: &str, flushes: u64, fua: u64) -> Result<()> {
    let found = sent(f, script)?;
    check(found == Sent { flushes, fua }, || {
        format!("{script}: {found:?}, not {flushes} flushes and {fua} writes with FUA")
    })
}

/// Runs `script`, which commits once: the record is the only write with FUA, and
/// data that is complete too late for the commit's flush has one of its own.
fn commits(f: &mut Fixture, script: &str) -> Result<()> {
    let found = sent(f, script)?;
    check((1..=2).contains(&found.flushes) && found.fua == 1, || {
        format!("{script}: {found:?}, not one commit")
    })
}

/// Overwrites block `block` of /mnt/t/data; `how` says the rest, in dd's words.
fn overwrite(block: u32, how: &str) -> String {
    format!("dd if=/dev/urandom of=data bs=4k count=1 seek={block} status=none conv=notrunc{how}")
}

/// Overwrites one block of /mnt/t/data, starts its writeback and waits for it,
/// which flushes nothing.
const WRITE_BACK: &str =
    "/aios-guest work overwrite-range --file data --ops 1 --warmup 0 --bs 4096";

/// With nothing to commit and nothing in the cache, data goes with FUA; and
/// nothing is flushed, if nothing was written at all. Elsewhere nothing changes.
fn fua_instead_of_flushes(f: &mut Fixture) -> Result<()> {
    let synced = overwrite(3, ",fdatasync");
    for options in ["aios", "aios,data=writeback", "aios,dioread_lock"] {
        // The fsync of the new file has flushed.
        fresh_quiet(f, options, "back")?;
        sends(f, &synced, 0, 1)?;
        sends(f, &synced, 0, 1)?;
        sends(f, "sync -d data", 0, 0)?;
        // Scattered blocks are as many writes.
        let three = [5, 7, 9].map(|block| overwrite(block, ""));
        sends(f, &format!("{}; sync -d data", three.join("; ")), 0, 3)?;
        // More than goes with FUA: written at once, then flushed.
        let many = "dd if=/dev/urandom of=data bs=1M count=1 status=none conv=notrunc,fdatasync";
        sends(f, many, 1, 0)?;
        sends(f, &synced, 0, 1)?;
        // A commit flushes.
        commits(f, &overwrite(3, ",fsync"))?;
        sends(f, &synced, 0, 1)?;
        // O_DSYNC, RWF_DSYNC and msync come the same way.
        sends(f, &overwrite(4, " oflag=dsync"), 0, 1)?;
        let work = |what: &str, ops: u32| {
            format!(
                "/aios-guest work overwrite-{what} --file data --ops {ops} --warmup 0 --bs 4096"
            )
        };
        sends(f, &work("rwf-dsync", 4), 0, 4)?;
        sends(f, &work("msync", 4), 0, 4)?;
        // And these as fsync does.
        for how in ["sync", "rwf-sync", "uring-fsync"] {
            commits(f, &work(how, 1))?;
            sends(f, &synced, 0, 1)?;
        }
    }
    // A block that is new is committed.
    let append = "dd if=/dev/urandom of=data bs=4k count=1 status=none oflag=append \
                  conv=notrunc,fdatasync";
    commits(f, append)?;
    sends(f, &synced, 0, 1)?;

    let knob = "/sys/fs/ext4/nvme0n1/fsync_fua_max_kb";
    f.sh(&format!("echo 0 > {knob}"))?;
    sends(f, &synced, 1, 0)?;
    sends(f, "sync -d data", 1, 0)?;
    // Nobody noted what those flushes covered.
    f.sh(&format!("echo 8 > {knob}"))?;
    sends(f, &synced, 1, 0)?;
    sends(f, &synced, 0, 1)?;
    let [a, b, c] = [5, 7, 9].map(|block| overwrite(block, ""));
    sends(f, &format!("{a}; {b}; {c}; sync -d data"), 1, 2)?;

    // Switched off, not opted in, data in the journal; and no cache.
    f.sh("echo 0 > /sys/kernel/aios/enabled")?;
    sends(f, &synced, 1, 0)?;
    fresh_quiet(f, "noaios", "back")?;
    sends(f, &synced, 1, 0)?;
    fresh_quiet(f, "noaios,data=journal", "back")?;
    let native = sent(f, &synced)?;
    fresh_quiet(f, "aios,data=journal", "back")?;
    sends(f, &synced, native.flushes, native.fua)?;
    fresh_quiet(f, "aios", "through")?;
    sends(f, &synced, 0, 0)?;
    // What was committed without barriers may be in the cache for ever.
    fresh_quiet(f, "aios,nobarrier", "back")?;
    sends(f, &synced, 0, 0)?;
    f.sh("mount -o remount,barrier /mnt/t")?;
    sends(f, &synced, 1, 0)?;
    sends(f, &synced, 1, 0)
}

/// Whatever wrote the file's data without FUA, wherever and whoever, the next
/// fdatasync flushes, once.
fn flushes_the_rest(f: &mut Fixture) -> Result<()> {
    let synced = overwrite(3, ",fdatasync");
    let flusher = format!(
        "{}; cd /proc/sys/vm; expire=$(cat dirty_expire_centisecs); \
         every=$(cat dirty_writeback_centisecs); \
         echo 1 > dirty_expire_centisecs; echo 1 > dirty_writeback_centisecs; \
         while grep -Eq '^(nr_dirty|nr_writeback) [1-9]' /proc/vmstat; do sleep 0.1; done; \
         echo $expire > dirty_expire_centisecs; echo $every > dirty_writeback_centisecs; \
         cd /mnt/t",
        overwrite(8, "")
    );
    let attacks = [
        WRITE_BACK.to_owned(),
        overwrite(8, " oflag=direct"),
        // Several of them, one to the block that is synced afterwards.
        format!("{WRITE_BACK}; {}", overwrite(3, " oflag=direct")),
        flusher.clone(),
        // Asynchronous, many at a time.
        "fio --name=data --filename=data --rw=randwrite --bs=4k --size=256k --direct=1 \
             --ioengine=io_uring --iodepth=8 --fallocate=none --overwrite=1"
            .to_owned(),
    ];
    for options in ["aios", "aios,dioread_lock,data=writeback"] {
        fresh_quiet(f, options, "back")?;
        for attack in &attacks {
            let sends = |f: &mut Fixture, script: &str, flushes, fua| {
                sends(f, script, flushes, fua)
                    .map_err(|error| error.context(format!("{options}: after {attack}")))
            };
            sends(f, &synced, 0, 1)?;
            sends(f, attack, 0, 0)?;
            sends(f, &synced, 1, 0)?;
            sends(f, &synced, 0, 1)?;
            sends(f, &format!("{attack}; sync -d data"), 1, 0)?;
            sends(f, "sync -d data", 0, 0)?;
        }
        // What is known of a file goes with its inode.
        f.sh(&format!(
            "cd /mnt/t; {flusher}; cd /; sync; echo 3 > /proc/sys/vm/drop_caches"
        ))?;
        sends(f, &synced, 1, 0)?;
        sends(f, &synced, 0, 1)?;
        f.sh(&format!(
            "umount /mnt/t; mount -o aios,{QUIET} /dev/nvme0n1 /mnt/t; sync"
        ))?;
        sends(f, &synced, 1, 0)?;
        sends(f, &synced, 0, 1)?;
    }
    Ok(())
}

/// Who comes while another's flush is in flight cannot tell what that covers,
/// and flushes, too.
fn flush_in_flight(f: &mut Fixture) -> Result<()> {
    fresh_quiet(f, "aios", "back")?;
    sends(f, &overwrite(3, ",fdatasync"), 0, 1)?;
    sends(f, WRITE_BACK, 0, 0)?;
    f.set_latency(50 * WAIT_MS)?;
    let found = sent(
        f,
        "sync -d data & first=$!; \
         until grep -q nvme_cmd_flush $tracing/trace; do :; done; \
         sync -d data; wait $first",
    );
    f.set_latency(0)?;
    let found = found?;
    check(found == Sent { flushes: 2, fua: 0 }, || {
        format!("{found:?}, not two flushes")
    })?;
    sends(f, "sync -d data", 0, 0)
}

/// With fast commits, data and commit go with FUA and nothing is flushed, unless
/// somebody's data or an older fast commit is in the cache.
fn fast_commits_past_the_cache(f: &mut Fixture) -> Result<()> {
    let synced = overwrite(3, ",fsync");
    let log = "dd if=/dev/urandom of=data bs=116 count=1 status=none oflag=append \
               conv=notrunc,fdatasync";
    for options in ["aios", "aios,data=writeback", "aios,dioread_lock"] {
        let options = format!("{options},{QUIET}");
        fresh_with(f, "/dev/nvme0n1", "fast_commit", &options, "back", true)?;
        sends(f, &synced, 0, 2)?;
        sends(f, &synced, 0, 2)?;
        sends(f, &overwrite(3, ",fdatasync"), 0, 1)?;
        // A new block in the ordinary order, whose flush covers its data.
        sends(f, log, 1, 1)?;
        sends(f, log, 0, 2)?;
        sends(f, log, 0, 2)?;
        // In the cache, and then not.
        sends(f, WRITE_BACK, 0, 0)?;
        sends(f, &synced, 1, 1)?;
        sends(f, &synced, 0, 2)?;
        // Another file's new block must not show before its data.
        sends(f, &written_back("other"), 0, 0)?;
        sends(f, &synced, 1, 2)?;
        sends(f, &synced, 0, 2)?;
    }
    // Blocks of an older fast commit may be in the cache.
    let other = "echo 0 > /sys/kernel/aios/enabled; \
                 for i in $(seq 100); do : > small-$i; done; echo > small-1; sync small-1; \
                 echo 1 > /sys/kernel/aios/enabled";
    sends(f, other, 1, 1)?;
    sends(f, &synced, 1, 2)?;
    sends(f, &synced, 0, 2)?;

    let knob = "/sys/fs/ext4/nvme0n1/fsync_fua_max_kb";
    f.sh(&format!("echo 0 > {knob}"))?;
    sends(f, &synced, 1, 1)?;
    // Nobody noted what that covered.
    f.sh(&format!("echo 8 > {knob}"))?;
    sends(f, &synced, 1, 1)?;
    sends(f, &synced, 0, 2)?;
    let [a, b, c] = [5, 7, 9].map(|block| overwrite(block, ""));
    sends(f, &format!("{a}; {b}; {c}; sync data"), 1, 3)?;
    f.sh("echo 0 > /sys/kernel/aios/enabled")?;
    sends(f, &synced, 1, 1)
}

/// Writes a new block of `file`, and waits until the flusher has written it back.
fn written_back(file: &str) -> String {
    format!(
        "dd if=/dev/urandom of={file} bs=4k count=1 status=none; cd /proc/sys/vm; \
         expire=$(cat dirty_expire_centisecs); every=$(cat dirty_writeback_centisecs); \
         echo 1 > dirty_expire_centisecs; echo 1 > dirty_writeback_centisecs; \
         while grep -Eq '^(nr_dirty|nr_writeback) [1-9]' /proc/vmstat; do sleep 0.1; done; \
         echo $expire > dirty_expire_centisecs; echo $every > dirty_writeback_centisecs; \
         cd /mnt/t"
    )
}

/// Synced appends within a block and overwrites are there after a crash. Nothing
/// is converted, which 7.3.4 itself does not always replay.
pub(super) fn fast_commits_survive(f: &mut Fixture) -> Result<()> {
    for (options, cache) in [
        ("aios", "through"),
        ("aios", "back"),
        ("aios,dioread_lock", "back"),
        ("aios,data=writeback", "through"),
    ] {
        let options = format!("{options},{QUIET}");
        fresh_with(f, "/dev/nvme0n1", "fast_commit", &options, cache, true)?;
        f.sh(
            "cd /mnt/t; for n in 1 2 3; do printf x > log-$n; done; sync; \
             for n in 1 2 3; do { for i in $(seq 30); do \
                 seq -s $n $i $((i + 9)) | dd of=log-$n status=none oflag=append \
                     conv=notrunc,fdatasync; done; } & done; wait; \
             dd if=/dev/urandom of=data bs=64k count=4 seek=3 status=none conv=notrunc,fsync; \
             cat data log-* | md5sum > /tmp/sums; \
             /aios-guest sync fsync --file last --ops 0 --shutdown >/dev/null; \
             cd /; umount /mnt/t; mount /dev/nvme0n1 /mnt/t; cd /mnt/t; \
             cat data log-* | md5sum | cmp - /tmp/sums",
        )
        .map_err(|error| error.context(format!("{options}, write {cache}")))?;
    }
    leave(f)
}

/// The median of the JSON line that a workload prints, in ns.
fn median_ns(line: &str) -> Result<u64> {
    serde_json::from_str::<aios_guest::work::WorkResult>(line.trim())
        .map(|result| result.lat_p50_ns)
        .map_err(|error| Error::new(format!("not a result: {line:?}: {error}")))
}
