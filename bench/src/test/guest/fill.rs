// SPDX-License-Identifier: MIT
//! The fill suite: read-write disks that are far larger than the guest's memory and their
//! own are written from end to end, also while the file system with the layers fails.

use super::groups::{
    FILL,
    FILL_LONG, //
};
use super::obd::prologue;
use super::obd_rw::FUNCTIONS;
use super::{
    Fixture,
    start, //
};
use crate::context::Context;
use crate::error::Result;
use crate::test::suite::Suite;

/// A file system for layers on a device whose free blocks fail when they are told to:
/// what is written to new layers is lost, what it knows of its files is not.
const PLACE: &str = r#"
drive=/dev/nvme0n1; mkdir -p /mnt/place /mnt/fs
whole="0 $(blockdev --getsz $drive) linear $drive 0"
dmsetup create low --table "$whole"; mkfs.ext4 -q -F -b 4096 -m 0 /dev/mapper/low
mount /dev/mapper/low /mnt/place
bad_blocks() {
    dmsetup suspend low; echo 1 > /proc/sys/vm/drop_caches
    dumpe2fs $drive 2>/dev/null | awk -v drive=$drive -v end=$(($(blockdev --getsz $drive) / 8)) '
        function good(to) { if (to > at) print at * 8, (to - at) * 8, "linear", drive, at * 8 }
        /^  Free blocks: [0-9]/ { sub(/^  Free blocks: /, ""); n = split($0, ranges, ", *")
            for (i = 1; i <= n; i++) { ends = split(ranges[i], range, "-"); last = range[ends]
                good(range[1]); print range[1] * 8, (last - range[1] + 1) * 8, "error"
                at = last + 1 } }
        END { good(end) }' > /run/table
    dmsetup load low /run/table; dmsetup resume low
}
good_blocks() { dmsetup suspend low; dmsetup load low --table "$whole"; dmsetup resume low; }
no_blocks() {
    mkdir -p filler; i=0
    for some in 64M 8M 1M 128K 16K 4K; do
        while i=$((i + 1)); fallocate -l $some filler/$i 2>/dev/null; do :; done
    done
}
blocks() { rm -r filler; }
bound_is_held() {
    [ $(stat most_bytes) -gt $((bound << 19)) ]
    [ $(stat most_bytes) -le $((bound << 20)) ] || { cat $config/stats >&2; exit 1; }
}
job() { # FILE SIZE OPTION…
    file=$1 bytes=$2; shift 2
    fio --name=fill --filename=$file --size=$bytes --bs=64k --ioengine=psync --verify=crc32c \
        --buffer_compress_percentage=75 --randseed=7 --minimal "$@" > /run/fio
}
write() { job "$@" --rw=write --do_verify=0 --end_fsync=1; }
check() { echo 3 > /proc/sys/vm/drop_caches; job $1 $2 --rw=read --verify_fatal=1; }
end() {
    cd /; umount /mnt/place; dmsetup remove low
    ! dmesg | grep -i 'out of memory\|invoked oom-killer\|blocked for more' >&2
}
config=/sys/kernel/config/obd/w
"#;

/// All of it at once, then through a file system, if there is time.
const WHOLE: &str = r#"
$obd create --rw --size ${size}M disk > /dev/null
dev=$($obd attach --writable --name w --memory ${bound}M disk)
write $dev ${size}m; check $dev ${size}m; bound_is_held
if [ $long = 1 ]; then
    mkfs.ext4 -q -F $dev; mount $dev /mnt/fs
    for i in 1 2 3 4; do write /mnt/fs/$i $((size / 5))m & pids="$pids $!"; done
    for pid in $pids; do wait $pid; done
    for i in 1 2 3 4; do check /mnt/fs/$i $((size / 5))m; done
    umount /mnt/fs; bound_is_held; fsck.ext4 -fn $dev > /dev/null 2>&1
fi
$obd detach w; end
"#;

/// Blocks that fail, then none that are free, in the middle of it.
const ERRORS: &str = r#"
$obd create --rw --size ${size}M disk > /dev/null
dev=$($obd attach --writable --name w --memory ${bound}M disk)
part=$((size / 2)); write $dev ${part}m
flush() { dd if=/dev/null of=$dev conv=fsync,notrunc 2>/run/why; }
change() { # So much that the log, which is half of the memory, is full after a few.
    dd if=$dev of=/run/block bs=$((bound << 16)) count=1 iflag=direct 2>/dev/null
    dd if=/run/block of=$dev bs=$((bound << 16)) count=1 oflag=direct conv=notrunc 2>/dev/null
}
refuses() { change; ! flush && grep -q "$says" /run/why; }
refuses_twice() { refuses && refuses; }
full() { [ $(stat dirty_bytes) -gt $(((bound << 20) - 8192)) ]; }
clean() { [ $(stat dirty_bytes) = 0 ]; }
for kind in bad no; do
    case $kind in bad) says='Input/output error';; no) says='No space left';; esac
    ${kind}_blocks
    # Merges that end make room, also between one that is refused and the next: one that
    # comes later waits for the same once there are none.
    soon refuses_twice; [ $(stat failed_commits) -gt 0 ]
    # Around the page cache, which would be all of the guest's memory.
    write $dev ${size}m --direct=1 2>/run/why & writes=$!
    soon full; bound_is_held
    # Reads go on.
    dd if=$dev of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null
    case $kind in bad) good_blocks;; no) blocks;; esac
    wait $writes; soon clean; bound_is_held
done
$obd detach w
dev=$($obd attach --name r disk/image.json); check $dev ${size}m; $obd detach r
end
"#;

fn script(f: &mut Fixture, [size, bound, long]: [u32; 3], what: &str) -> Result<()> {
    let begin = format!("size={size} bound={bound} long={long}\n{PLACE}");
    let script = prologue(f.obd()?) + &begin + FUNCTIONS + what;
    f.long(&script).map(drop)
}

/// As much as the guest has memory, and more, through 8 MiB.
pub(super) fn short(f: &mut Fixture) -> Result<()> {
    script(f, [200, 8, 0], WHOLE)
}

/// The same of a smaller disk, with errors.
pub(super) fn short_errors(f: &mut Fixture) -> Result<()> {
    script(f, [24, 2, 0], ERRORS)
}

/// Four gibibytes through 64 MiB.
pub(super) fn long(f: &mut Fixture) -> Result<()> {
    script(f, [4096, 64, 1], WHOLE)
}

/// The same, with errors.
pub(super) fn long_errors(f: &mut Fixture) -> Result<()> {
    script(f, [4096, 64, 1], ERRORS)
}

/// Runs the suite.
pub(in crate::test) fn run(ctx: &Context, suite: &mut Suite) {
    for group in [&FILL, &FILL_LONG] {
        suite.group(group.name, group.cases, || start(ctx, group), Fixture::end);
    }
}
