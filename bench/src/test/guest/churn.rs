// SPDX-License-Identifier: MIT
//! The churn suite: a file system on a read-write disk that is written, synced, trimmed,
//! checked and read again, while layers are made and merged under it and writers die.

use super::groups::{
    OBD,
    OBD_DEBUG, //
};
use super::obd_rw::{
    again,
    place, //
};
use super::{
    Fixture,
    start, //
};
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::test::suite::{
    Suite,
    check, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Memory that may be gone in the end, in KiB: what the guest has learned to cache is
/// not all given back at once.
const MEMORY_SLACK: u64 = 24 << 10;

/// Rounds after which what is left of memory is noted: by then all that is allocated
/// once has been.
const WARM: u32 = 3;

/// The disk and its file system, and the folder that has to be like it.
const BEGIN: &str = "
$obd create --rw --size 192M disk > /dev/null
dev=$($obd attach --writable --name w --max-layers 6 --memory 24M --commit-age 1 disk)
mkfs.ext4 -q -F $dev; mount $dev /mnt/fs; mkdir /mnt/fs/churn /run/model; umount /mnt/fs
dd if=/dev/urandom of=/run/random bs=1M count=1 2>/dev/null";

/// One round, `$round` and `$ops`: changes of few files here and in the model, fio's own
/// checks and RocksDB's beside each other, then everything compared.
const ROUND: &str = r#"
dev=/dev/$(cat /sys/kernel/config/obd/w/device); mount $dev /mnt/fs
awk -v seed=$round -v ops=$ops 'BEGIN { srand(seed)
    split("write write append append truncate punch rename unlink link", kinds)
    for (i = 0; i < ops; i++)
        print kinds[1 + int(rand() * 9)], "f" int(rand() * 8), "f" int(rand() * 8),
            int(rand() * 300000), 1 + int(rand() * 60000), int(rand() * 900000), rand() < 0.2 }' > /run/ops
change() {
    in="if=/run/random iflag=fullblock,skip_bytes,count_bytes skip=$6 count=$5"
    case $1 in
    write) dd $in of=$2 bs=64k seek=$4 oflag=seek_bytes conv=notrunc;;
    append) dd $in of=$2 bs=64k oflag=append conv=notrunc;;
    truncate) truncate -s $4 $2;;
    punch) ! test -e $2 || fallocate -p -o $4 -l $5 $2;;
    rename) ! test -e $2 || [ $2 -ef $3 ] || mv $2 $3;;
    unlink) rm -f $2;;
    link) ! test -e $2 || [ $2 -ef $3 ] || ln -f $2 $3;;
    esac 2>/run/why
}
changes() {
    while read kind one other at len from synced; do
        for root in /run/model /mnt/fs/churn; do
            cd $root
            change $kind $one $other $at $len $from || { cat /run/why >&2; return 1; }
        done
        if [ $synced = 1 ] && [ -e $one ]; then sync $one; fi
    done < /run/ops
}
changes & pids=$!
fio --name=v --filename=/mnt/fs/fio --size=${ops}0k --rw=randwrite --bsrange=4k-64k --fdatasync=16 \
    --verify=crc32c --verify_fatal=1 --ioengine=psync --randseed=$round --minimal > /run/fio &
pids="$pids $!"
db_bench --db=/mnt/fs/db --benchmarks=fillrandom,overwrite,compact,readrandom,verifychecksum \
    --num=$ops --value_size=1000 --sync=1 --seed=$round --compression_type=none \
    --write_buffer_size=65536 > /run/db 2>&1 & pids="$pids $!"
if [ $((round % 2)) = 0 ]; then
    sleep 1; kill -9 $(writer); soon no_writer; $obd writer disk > /dev/null
fi
for pid in $pids; do wait $pid || { tail -n 2 /run/db /run/why >&2; exit 1; }; done
cmp_all() { diff -r /run/model /mnt/fs/churn >&2; }
case $((round % 3)) in
0) fstrim /mnt/fs;;
1) $obd compact disk > /dev/null;;
2) rm -r /mnt/fs/db /mnt/fs/fio;;
esac
cmp_all; umount /mnt/fs; echo 3 > /proc/sys/vm/drop_caches
fsck.ext4 -fn $dev > /run/fsck 2>&1 || { tail -n 3 /run/fsck >&2; exit 1; }
mount -o ro $dev /mnt/fs; cmp_all; umount /mnt/fs
[ $(stat errors) = 0 ]
echo 3 > /proc/sys/vm/drop_caches
awk '/^MemAvailable/ { print $2 }' /proc/meminfo
"#;

/// Read-only, it is what it was.
const END: &str = "
[ $(stat commits) -gt 0 ]; $obd detach w
dev=$($obd attach --name r disk/image.json); mount -t ext4 -o ro $dev /mnt/fs
diff -r /run/model /mnt/fs/churn >&2; umount /mnt/fs; $obd detach r
rm -r /run/model /run/random; leave";

/// Runs the churn for `time` in all, on the kernel as it is and on the one full of
/// checks.
pub(in crate::test) fn run(ctx: &Context, suite: &mut Suite, time: Duration) {
    let groups = [&OBD, &OBD_DEBUG];
    let each = time / groups.len() as u32;
    for group in groups {
        suite.group(
            &format!("{}/churn", group.name),
            &[("rounds", |f: &mut Fixture| churn(f, each, 400))],
            || start(ctx, group),
            Fixture::end,
        );
    }
}

/// The same for some seconds.
pub(super) fn short(f: &mut Fixture) -> Result<()> {
    churn(f, Duration::ZERO, 60)
}

/// Rounds of `ops` changes until `time` is over, at least one with each kind of end.
fn churn(f: &mut Fixture, time: Duration, ops: u32) -> Result<()> {
    let end = Instant::now() + time;
    let begin = place(f)? + BEGIN;
    f.long(&begin)?;
    let again = again(f)?;
    let (mut round, mut warm, mut left) = (0, 0, 0);
    while round < WARM || Instant::now() < end {
        round += 1;
        let script = format!("{again}round={round} ops={ops}\n{ROUND}");
        let text = f.long(&script)?;
        let last = text.lines().last().unwrap_or_default();
        left = last
            .parse::<u64>()
            .map_err(|_| Error::new(format!("not an amount of memory: {last:?}")))?;
        if round == WARM {
            warm = left;
        }
    }
    f.long(&(again + END))?;
    println!("# {round} rounds, {left} KiB of memory left, {warm} after {WARM}");
    check(left + MEMORY_SLACK >= warm, || {
        format!("{left} KiB of memory are left after {round} rounds, {warm} were after {WARM}")
    })
}
