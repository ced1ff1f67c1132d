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
    ],
    ..PLAIN
};

/// The same promises, in the kernel full of checks.
pub(super) const SURVIVES_A_CRASH: Case = ("fsync-survives-a-crash", survives_a_crash);

/// Latency of the drive where waits are counted, in ms: long against what the
/// guest itself needs for a sync.
const WAIT_MS: u64 = 40;

/// Every way to sync, with and without overlap: nothing is lost when the file
/// system stops right after the last answer, and e2fsck finds no fault.
fn survives_a_crash(f: &mut Fixture) -> Result<()> {
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
    Ok(())
}

/// Synced changes, side by side and alone, then the crash and the checks.
fn crash(f: &mut Fixture, seed: u64) -> Result<()> {
    f.sh(&format!(
        "cd /mnt/t; pids=; \
         for how in fsync fdatasync dsync msync; do \
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
         for how in fsync fdatasync dsync msync; do \
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
    f.sh(&format!(
        "mkdir -p /mnt/t; cd /; umount /mnt/t 2>/dev/null || :; \
         echo 'write {cache}' > /sys/block/nvme0n1/queue/write_cache; \
         mkfs.ext4 -q -F -b 4096 -O ^fast_commit {device}; \
         mount -o {options} {device} /mnt/t; \
         for most in /sys/fs/ext4/*/fsync_early_max; do echo 99 > $most; done; \
         echo {} > /sys/kernel/aios/enabled; \
         dd if=/dev/urandom of=/mnt/t/data bs=1M count=4 conv=fsync 2>/dev/null; sync",
        u8::from(enabled),
    ))
    .map(drop)
}

/// Runs `script` with the drive behind a device mapper that fails every write to
/// the blocks that `blocks` (a command for debugfs) prints.
fn with_bad_blocks(f: &mut Fixture, blocks: &str, script: &str) -> Result<()> {
    let sectors = "$(cat /sys/block/nvme0n1/size)";
    f.sh(&format!(
        "umount /mnt/t 2>/dev/null || :; dmsetup remove -f bad 2>/dev/null || :; \
         echo 'write through' > /sys/block/nvme0n1/queue/write_cache; \
         echo \"0 {sectors} linear /dev/nvme0n1 0\" | dmsetup create bad"
    ))?;
    // The device mapper would fail flushes, too, which fdatasync may end with.
    let options = "aios,errors=continue,nobarrier";
    let made = fresh(f, "/dev/mapper/bad", options, "through", true);
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
    with_bad_blocks(
        f,
        "blocks /data",
        "for how in fsync fdatasync; do \
             /aios-guest sync $how --file /mnt/t/data --failing >/dev/null; done",
    )
}

fn commit_error_arrives(f: &mut Fixture) -> Result<()> {
    with_bad_blocks(
        f,
        "blocks <8>",
        "no /aios-guest work overwrite-fsync --file /mnt/t/data --ops 1 --warmup 0 \
             2>/tmp/error; grep -q 'sync.*Input/output error' /tmp/error",
    )
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
    ];
    for (cache, work, native, overlapped) in rows {
        for (enabled, waits) in [(false, native), (true, overlapped)] {
            fresh(f, "/dev/nvme0n1", "aios", cache, enabled)?;
            f.set_latency(WAIT_MS)?;
            let done = f.sh(&format!(
                "/aios-guest work {work} --file /mnt/t/data --ops 16 --warmup 4"
            ));
            f.set_latency(0)?;
            let median = median_ns(&done?)? as f64 / (WAIT_MS * 1_000_000) as f64;
            let row = || format!("write {cache}, {work}, {enabled}: {median:.2} waits");
            check(
                (f64::from(waits)..f64::from(waits) + 0.8).contains(&median),
                row,
            )?;
        }
    }
    Ok(())
}

/// The median of the JSON line that a workload prints, in ns.
fn median_ns(line: &str) -> Result<u64> {
    serde_json::from_str::<aios_guest::work::WorkResult>(line.trim())
        .map(|result| result.lat_p50_ns)
        .map_err(|error| Error::new(format!("not a result: {line:?}: {error}")))
}
