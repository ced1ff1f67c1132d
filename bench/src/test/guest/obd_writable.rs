// SPDX-License-Identifier: MIT
//! overlaybd disks that can be written to: what was written is read, wherever it
//! is, and what was flushed is in layers; with a writer that makes plain layers,
//! that is late, fails, dies or is not there at all.

use super::{
    Fixture,
    obd, //
};
use crate::error::Result;

/// `disk SETTING=VALUE…` makes the disk `$dev`, `writer ARGUMENT…` begins to write
/// its layers, `gone` takes the disk away, which ends the writer.
const DISK: &str = r#"
dir=/sys/kernel/config/obd/w layers=/run/layers
disk() {
    mkdir -p $layers $dir; echo 1 > $dir/writable
    for setting in "$@"; do echo ${setting#*=} > $dir/${setting%%=*}; done
    echo 1 > $dir/power || return; dev=/dev/$(cat $dir/device); number=${dev#/dev/obd}
}
writer() {
    /aios-guest obd-writer --number $number --dir $layers "$@" > /run/writer.json \
        2> /run/writer.err & writer=$!
}
ends() { wait $writer || { cat /run/writer.err >&2; false; }; }
gone() { echo 0 > $dir/power; ends; rmdir $dir; rm -r $layers; }
stat() { sed -n "s/^$1 //p" $dir/stats; }
drop() { echo 1 > /proc/sys/vm/drop_caches; }
"#;

/// What a case that failed has left must not fail the next ones.
const CLEAN: &str = r#"
if test -d $dir; then
    rmdir $dir; for i in $(seq 100); do ls /dev/obd[0-9]* > /dev/null 2>&1 || break; sleep 0.1; done
fi
rm -rf $layers
"#;

fn script(f: &mut Fixture, cases: &str) -> Result<()> {
    let script = obd::prologue(f.obd()?) + DISK + CLEAN + cases;
    f.long(&script).map(drop)
}

/// Writes, discards and zeros of any sectors, in memory, frozen and in layers, against
/// a file that gets the same; then the layers by themselves, read-only.
pub(super) fn model(f: &mut Fixture) -> Result<()> {
    script(f, &format!("log=; {MODEL}"))
}

/// The same by a writer with a log.
pub(super) fn model_of_log(f: &mut Fixture) -> Result<()> {
    script(f, &format!("log='--log 4'; {MODEL}"))
}

const MODEL: &str =
        "size=$((24 << 20)); disk size=$size memory=$((4 << 20)) commit_ms=1500
         writer $log; model=/run/model; truncate -s $size $model
         dd if=/dev/urandom of=/run/random bs=1M count=2 2>/dev/null
         awk -v sectors=$((size / 512)) 'BEGIN { srand(5);
             for (i = 0; i < 120; i++) { at = int(rand() * sectors);
                 len = 1 + int(rand() ^ 3 * 4000); if (rand() < 0.3) { at -= at % 8; len += 8 - len % 8 }
                 if (at + len > sectors) len = sectors - at;
                 how = rand(); print at, len, int(rand() * 90),
                     how < 0.6 ? \"write\" : how < 0.7 ? \"buffered\" : how < 0.85 ? \"discard\" : \"zero\" }
             print 0, sectors, 0, \"read\" }' > /run/ops
         i=0
         while read at len from how; do
             i=$((i + 1))
             in=\"if=/run/random iflag=fullblock,skip_bytes,count_bytes skip=$((from * 512)) count=$((len * 512))\"
             out=\"seek=$((at * 512)) oflag=seek_bytes conv=notrunc\"
             case $how in
             write) dd $in of=$dev seek=$((at * 512)) bs=$((len * 512)) oflag=direct,seek_bytes 2>/dev/null;;
             buffered) dd $in of=$dev bs=64k $out 2>/dev/null; drop;;
             discard) blkdiscard -f -o $((at * 512)) -l $((len * 512)) $dev 2>/dev/null;;
             zero) blkdiscard -f -z -o $((at * 512)) -l $((len * 512)) $dev 2>/dev/null;;
             esac
             [ -z \"$log\" ] || [ $((i % 4)) != 0 ] || sync $dev
             case $how in
             write|buffered) dd $in of=$model bs=64k $out 2>/dev/null;;
             discard|zero) fallocate -p -o $((at * 512)) -l $((len * 512)) $model;;
             esac
             [ $(stat dirty_bytes) -le $((4 << 20)) ]
             if [ $((i % 20)) = 1 ] || [ $how = read ]; then
                 dd if=$dev iflag=direct bs=256k 2>/dev/null | cmp - $model
                 drop; cmp $dev $model
             fi
         done < /run/ops
         commits=$(stat commits); echo \"$commits commits, $(stat logged) logged\"; [ $commits -gt 5 ]
         [ -z \"$log\" ] || [ $(stat logged) -gt 5 ]
         [ $(wc -l < $dir/layers) -ge $commits ]
         no rmmod obd 2>/dev/null
         sync $dev; drop; cmp $dev $model
         echo 0 > $dir/power; ends; echo 0 > $dir/writable; echo 1 > $dir/power
         dev=/dev/$(cat $dir/device); cmp $dev $model
         echo 0 > $dir/power; echo 1 > $dir/writable; echo 1 > $dir/power
         dev=/dev/$(cat $dir/device); number=${dev#/dev/obd}; cmp $dev $model
         dd if=/run/random of=$dev bs=4k count=1 conv=notrunc 2>/dev/null &
         reader=$!; writer $log; wait $reader; gone; rm $model /run/random";

/// fio's own checks, with more written than there is memory for, by several at once,
/// while layers are stacked under it; a file system on top that is synced.
pub(super) fn verified(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((128 << 20)) memory=$((2 << 20)) commit_ms=1000; writer
         (while ! test -e /run/stop; do stat dirty_bytes; sleep 0.05; done > /run/used) & watch=$!
         for direct in 1 0; do
             fio --name=v --filename=$dev --direct=$direct --rw=randwrite --bsrange=512-64k \
                 --blockalign=512 --size=6m --offset_increment=16m --numjobs=3 --verify=crc32c \
                 --ioengine=libaio --iodepth=8 --end_fsync=1 --randseed=3 --verify_fatal=1 \
                 --group_reporting --minimal > /run/fio
             drop
         done
         touch /run/stop; wait $watch; rm /run/stop
         sort -n /run/used | tail -n 1; [ $(sort -n /run/used | tail -n 1) -le $((2 << 20)) ]
         [ $(stat errors) = 0 ]; [ $(stat commits) -gt 10 ]
         mkfs.ext4 -q -F $dev; mkdir -p /mnt/w; mount $dev /mnt/w
         for i in 1 2 3 4; do
             dd if=/dev/urandom of=/mnt/w/$i bs=64k count=16 conv=fsync 2>/dev/null
         done
         (cd /mnt/w && sha256sum 1 2 3 4) > /run/sums; umount /mnt/w; drop
         fsck.ext4 -fn $dev > /dev/null 2>&1; mount $dev /mnt/w
         (cd /mnt/w && sha256sum --quiet --strict -c /run/sums); umount /mnt/w
         gone",
    )
}

/// A flush ends when what was written before it is in a layer, and many share one; it
/// fails if the writer could not make one, which is made later.
pub(super) fn flushes(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((16 << 20)) commit_ms=0; raw=/run/raw
         dd if=/dev/urandom of=$raw bs=64k count=16 2>/dev/null
         dd if=$raw of=$dev bs=64k oflag=direct 2>/dev/null
         (dd if=$raw of=$dev bs=64k oflag=direct conv=fsync 2>/dev/null; touch /run/synced) & sync=$!
         sleep 0.5; no test -e /run/synced; [ $(stat commits) = 0 ]
         dd if=$dev iflag=direct bs=64k count=16 2>/dev/null | cmp - $raw
         writer --commits 1; wait $sync; test -e /run/synced; ends
         grep -q '\"reasons\":\\[0,0,0,1,0\\]' /run/writer.json
         [ $(stat dirty_bytes) = 0 ]
         dd if=$dev iflag=direct bs=64k count=16 2>/dev/null | cmp - $raw
         # Nothing to be flushed does not wait.
         dd if=/dev/null of=$dev conv=fsync 2>/dev/null

         writer --hold-ms 300; pids=
         for i in $(seq 12); do
             dd if=$raw of=$dev bs=4k count=1 seek=$i oflag=direct conv=fsync,notrunc 2>/dev/null &
             pids=\"$pids $!\"
         done
         for pid in $pids; do wait $pid; done
         [ $(stat commits) -le 10 ]; gone

         # A FUA write is a flush of what was written before as well, and one is enough.
         rm /run/synced; disk size=$((16 << 20)) commit_ms=0; [ $(cat /sys/block/${dev#/dev/}/queue/fua) = 1 ]
         dd if=$raw of=$dev bs=64k count=4 oflag=direct conv=notrunc 2>/dev/null
         (dd if=$raw of=$dev bs=4k count=1 seek=64 oflag=direct,dsync conv=notrunc 2>/dev/null
             touch /run/synced) & sync=$!
         sleep 0.5; no test -e /run/synced; cmp -n 4096 -i 0:262144 $raw $dev
         writer --log 100; wait $sync; rm /run/synced; [ $(stat logged) = 1 ]
         dd if=$raw of=$dev bs=4k count=20 oflag=direct,dsync conv=notrunc 2>/dev/null
         [ $(stat logged) = 21 ]; [ $(stat commits) = 0 ]; kill -9 $writer; wait $writer || :
         cmp -n 262144 $raw $dev; writer --log 1
         dd if=$raw of=$dev bs=4k count=1 oflag=direct,dsync conv=notrunc 2>/dev/null; gone

         # What is in a log is flushed, and is read from memory until there is a layer.
         disk size=$((16 << 20)) commit_ms=0; writer --log 100
         for i in 1 2 3; do
             dd if=$raw of=$dev bs=64k skip=$i seek=$((i * 2)) count=4 conv=fsync,notrunc 2>/dev/null
         done
         [ $(stat commits) = 0 ]; [ $(stat logged) -ge 3 ]; [ $(stat logged_bytes) -gt 400000 ]; drop
         cmp -n 262144 -i 196608:393216 $raw $dev
         kill -9 $writer; wait $writer || :; cmp -n 262144 -i 196608:393216 $raw $dev
         writer --log 1; dd if=$raw of=$dev bs=64k count=1 conv=fsync,notrunc 2>/dev/null
         soon eval '[ $(stat commits) -gt 0 ]'; soon eval '[ $(stat logged_bytes) = 0 ]'; drop
         cmp -n 65536 $raw $dev; cmp -n 262144 -i 196608:393216 $raw $dev; gone

         disk size=$((16 << 20)) commit_ms=0; writer --fail 1
         no dd if=$raw of=$dev bs=4k count=1 oflag=direct conv=fsync 2>/run/why
         grep -q 'fsync\\|fdatasync' /run/why; cat /run/why
         dd if=$raw of=$dev bs=4k count=1 seek=1 oflag=direct conv=fsync,notrunc 2>/dev/null
         [ $(stat failed_commits) = 1 ]; drop
         cmp -n 4096 $raw $dev; cmp -n 4096 -i 0:4096 $raw $dev; gone
         disk size=$((16 << 20)) commit_ms=0; writer --fail 1
         no dd if=$raw of=$dev bs=4k count=1 oflag=direct,dsync 2>/run/why
         grep -q 'No space left' /run/why; [ $(stat errors) = 1 ]; gone; rm $raw",
    )
}

/// Calls of two threads that both log what is frozen, while one of them makes layers and the
/// other tries to: each of them is refused or whole, and what was written is read.
pub(super) fn meddled(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((64 << 20)) memory=$((4 << 20)) commit_ms=300; writer --log 5 --meddle
         fio --name=v --filename=$dev --rw=randwrite --bsrange=4k-16k --size=2m --offset_increment=8m \
             --numjobs=4 --fsync=1 --verify=crc32c --randseed=5 --verify_fatal=1 --ioengine=psync \
             --group_reporting --minimal > /run/fio || { cat /run/writer.err >&2; false; }
         [ $(stat logged) -gt 100 ]; [ $(stat commits) -gt 5 ]; [ $(stat errors) = 0 ]
         sum=$(sha256sum < $dev); drop; [ \"$sum\" = \"$(sha256sum < $dev)\" ]; gone",
    )
}

/// A writer that is killed leaves what was frozen to the next one, and whoever waits
/// waits on; without one for too long, writes and flushes fail and reads do not, until
/// there is one again.
pub(super) fn writers_die(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((16 << 20)) memory=$((1 << 20)) commit_ms=100 writer_ms=60000; raw=/run/raw
         dd if=/dev/urandom of=$raw bs=64k count=64 2>/dev/null
         (dd if=$raw of=$dev bs=64k conv=fsync 2>/dev/null; touch /run/synced) & sync=$!
         for i in 1 2 3; do
             writer --hold-ms 100000; soon eval '[ $(stat frozen_bytes) -gt 0 ]'
             sleep 0.3; kill -9 $writer; wait $writer 2>/dev/null || :
         done
         no test -e /run/synced; [ $(stat commits) = 0 ]
         writer; wait $sync; test -e /run/synced; drop; cmp -n 4194304 $raw $dev; gone; rm /run/synced

         dmesg -C; disk size=$((16 << 20)) memory=$((1 << 20)) commit_ms=100 writer_ms=3000
         no dd if=$raw of=$dev bs=64k oflag=direct 2>/run/why
         grep -q 'Input/output error' /run/why
         dmesg | grep -q 'obd.*no writer, nothing is written'
         no dd if=$raw of=$dev bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null
         no dd if=/dev/null of=$dev conv=fsync 2>/dev/null
         dd if=$dev of=/dev/null bs=64k iflag=direct 2>/dev/null
         dd if=$dev iflag=direct bs=64k count=8 2>/dev/null | cmp -n 524288 - $raw
         writer; soon eval 'dmesg | grep -q \"there is a writer again\"'
         dd if=$raw of=$dev bs=64k oflag=direct conv=fsync 2>/dev/null; drop
         cmp -n 4194304 $raw $dev; gone; rm $raw",
    )
}

/// The disk goes only with all in layers, if not by force, which ends whoever waits.
pub(super) fn detach(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((16 << 20)) commit_ms=0; raw=/run/raw
         dd if=/dev/urandom of=$raw bs=64k count=64 2>/dev/null
         dd if=$raw of=$dev bs=64k count=4 oflag=direct 2>/dev/null
         no eval 'echo 0 > $dir/power' 2>/dev/null
         grep -q 'no writer' $dir/error
         exec 3<$dev; no eval 'echo 0 > $dir/power' 2>/dev/null; exec 3<&-
         no eval 'echo 0 1 /x > $dir/exchange' 2>/dev/null
         cmp -n 262144 $raw $dev
         writer --hold-ms 200; soon eval 'echo 0 > $dir/power' 2>/dev/null; ends
         grep -q '\"commits\":1,' /run/writer.json
         echo 1 > $dir/power; cmp -n 262144 $raw /dev/$(cat $dir/device); echo 0 > $dir/power
         rmdir $dir; rm -r $layers

         # It goes while writes wait for memory and a flush for the writer.
         disk size=$((16 << 20)) memory=$((1 << 20)) commit_ms=0; dmesg -C
         dd if=$raw of=$dev bs=64k count=4 oflag=direct 2>/dev/null
         dd if=/dev/null of=$dev conv=fsync 2>/dev/null & sync=$!
         dd if=$raw of=$dev bs=64k oflag=direct conv=notrunc 2>/dev/null & writes=$!
         sleep 0.5; rmdir $dir; no wait $sync; no wait $writes
         soon eval 'dmesg | grep -q \"bytes of what was written are lost\"'
         soon eval '! test -e $dev'; rm -r $layers

         disk size=$((16 << 20)) volatile=1 commit_ms=0
         dd if=$raw of=$dev bs=64k conv=fsync 2>/dev/null; drop; cmp -n 4194304 $raw $dev
         writer --hold-ms 100000; echo 0 > $dir/power; kill -9 $writer 2>/dev/null || :; wait $writer || :
         rmdir $dir; rm -r $layers $raw
         no eval 'disk size=1000' 2>/dev/null; rmdir $dir
         no eval 'disk size=$((1 << 20)) memory=4096' 2>/dev/null; rmdir $dir
         no eval 'disk' 2>/dev/null; rmdir $dir
         for i in $(seq 20); do disk size=$((1 << 20)); rmdir $dir; done; rmdir $layers",
    )
}

/// Calls of the writer's that are wrong, and one whose disk is taken away meanwhile.
pub(super) fn hostile(f: &mut Fixture) -> Result<()> {
    script(
        f,
        "disk size=$((16 << 20)) commit_ms=100
         (sleep 1; dd if=/dev/urandom of=$dev bs=4k count=20 oflag=direct 2>/dev/null) & fill=$!
         writer --hostile; ends; wait $fill
         for i in 1 2 3 4; do
             writer --hold-ms 50; dd if=/dev/urandom of=$dev bs=64k count=20 oflag=direct 2>/dev/null &
             fill=$!; sleep 0.$i; rmdir $dir; wait $fill || :; ends || :
             disk size=$((16 << 20)) commit_ms=10 memory=$((1 << 20))
         done
         writer; soon eval 'echo 0 > $dir/power' 2>/dev/null; ends; rmdir $dir; rm -r $layers",
    )
}
