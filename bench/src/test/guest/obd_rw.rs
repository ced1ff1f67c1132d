// SPDX-License-Identifier: MIT
//! Read-write disks: the driver and the writer together.

use super::Fixture;
use super::obd::prologue;
use crate::error::Result;

/// A file system for the writer's files.
const PLACE: &str = "
mkdir -p /mnt/place /mnt/fs
mkfs.ext4 -q -F /dev/nvme0n1; mount /dev/nvme0n1 /mnt/place
";

/// What the scripts have in common.
pub(super) const FUNCTIONS: &str = r#"
cd /mnt/place
sum() { echo 1 > /proc/sys/vm/drop_caches; sha256sum < $1; }
writer() { $obd --json list | sed -n 's/.*"writer":{"pid":\([0-9]*\).*/\1/p'; }
stat() { sed -n "s/^$1 //p" /sys/kernel/config/obd/w/stats; }
layers() { ls disk/layers | wc -l; }
leave() { cd /; umount /mnt/place; }
no_writer() { ! $obd list | grep -q 'writer [0-9]'; }
few_layers() { [ $(layers) -le $1 ]; }
"#;

/// What a script begins with that has no disk yet.
pub(super) fn place(f: &Fixture) -> Result<String> {
    Ok(prologue(f.obd()?) + PLACE + FUNCTIONS)
}

/// What one begins with that goes on in the same place.
pub(super) fn again(f: &Fixture) -> Result<String> {
    Ok(prologue(f.obd()?) + FUNCTIONS)
}

/// A file system is made on a new disk, written, synced and read again: while it is
/// written, read-only afterwards, and merged.
pub(super) fn cycle(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + "$obd create --rw --size 64M disk > /dev/null
           dev=$($obd attach --writable --name w --max-layers 4 --log 0 disk)
           [ $(cat /sys/block/${dev#/dev/}/ro) = 0 ]
           $obd list | grep -q \"^w.*writable, writer $(writer)$\"
           mkfs.ext4 -q -F $dev; mount $dev /mnt/fs
           for i in $(seq 12); do
               head -c 300000 /dev/urandom > /mnt/fs/file$i
               dd if=/dev/urandom of=/mnt/fs/synced$i bs=5000 count=9 conv=fsync 2>/dev/null
           done
           rm /mnt/fs/file3
           (cd /mnt/fs; sha256sum file* synced*) > /run/sums
           umount /mnt/fs
           sum $dev > /run/whole
           no test -e disk/log.obd; [ $(stat commits) -ge 12 ]; $obd --json list | grep -q bytes_copied.:0
           soon few_layers 5; $obd detach w
           no test -e $dev; [ -z \"$($obd list)\" ]; [ $(layers) -le 6 ]
           dev=$($obd attach --name r disk/image.json)
           sum $dev | cmp - /run/whole
           [ $(cat /sys/block/${dev#/dev/}/ro) = 1 ]
           mount -t ext4 -o ro $dev /mnt/fs
           (cd /mnt/fs; sha256sum --quiet --strict -c /run/sums)
           umount /mnt/fs; $obd detach r
           $obd compact disk; [ $(layers) = 1 ]
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/whole; $obd detach r

           # Over what it was, and over what it became.
           $obd create --rw large --size 96M --lower disk/image.json > /dev/null
           dev=$($obd attach --writable --name w large)
           mount $dev /mnt/fs; (cd /mnt/fs; sha256sum --quiet --strict -c /run/sums)
           dd if=/dev/urandom of=/mnt/fs/more bs=4096 count=500 conv=fsync 2>/dev/null
           (cd /mnt/fs; sha256sum more) >> /run/sums
           # A commit of the journal is one record.
           before=$(stat logged); test -e large/log.obd; [ $before -gt 0 ]
           for i in $(seq 20); do
               dd if=/dev/zero of=/mnt/fs/tiny$i bs=4096 count=1 conv=fsync 2>/dev/null
           done
           records=$(($(stat logged) - before)); [ $records -ge 20 ]; [ $records -lt 30 ]
           umount /mnt/fs; $obd detach w
           dev=$($obd attach --name r large/image.json); mount -t ext4 -o ro $dev /mnt/fs
           (cd /mnt/fs; sha256sum --quiet --strict -c /run/sums); umount /mnt/fs; $obd detach r
           rm -r large; leave";
    f.long(&script).map(drop)
}

/// The writer is killed while somebody writes and syncs, again and again; the next one
/// goes on where it was, and nothing that was written is lost.
pub(super) fn killed_writer(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + "$obd create --rw --size 32M disk > /dev/null
           dev=$($obd attach --writable --name w --max-layers 3 --memory 8M disk)
           fio --name=w --filename=$dev --size=24m --bs=4k --rw=randwrite --ioengine=psync \
               --fdatasync=8 --verify=crc32c --do_verify=0 --randseed=9 --minimal \
               > /run/fio & fio=$!
           for i in 1 2 3 4 5 6 7 8; do
               sleep 0.$((i * 37 % 10)); kill -9 $(writer); soon no_writer
               [ $($obd writer disk) = $dev ]
           done
           wait $fio
           kill $(writer); soon no_writer
           code=0; $obd compact disk 2>/run/why || code=$?; [ $code = 3 ]
           [ $($obd attach --writable disk) = $dev ]
           $obd compact disk > /dev/null
           sum $dev > /run/whole
           $obd detach w
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/whole
           fio --name=w --filename=$dev --readonly --size=24m --bs=4k --rw=read \
               --ioengine=psync --verify=crc32c --verify_fatal=1 --minimal > /run/fio
           $obd detach r; leave";
    f.long(&script).map(drop)
}

/// What is flushed is in the log, and in memory for reads: there when the writer is killed,
/// and when the disk goes with all of its memory. A damaged log is refused, but for what is
/// before the damage if that is asked for.
pub(super) fn log(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + r#"$obd create --rw --size 32808K disk > /dev/null; head -c 2000000 /dev/urandom > /run/data
           begin() { dev=$($obd attach --writable --name w --commit-age 0 $1 disk 2>/run/said); }
           synced() {
               for i in $(seq $1 $2); do
                   dd if=/run/data of=$dev bs=4096 skip=$((i * 7)) seek=$((i * 100)) count=20 \
                       conv=fsync,notrunc 2>/dev/null
               done
           }
           # As when the power fails, but for the drive with the writer's files.
           lose() { kill -9 $(writer); soon no_writer; $obd detach --force w; }
           refused() {
               code=0; $obd attach --name r $1 2>/run/why || code=$?
               cat /run/why; [ $code != 0 ]; grep -q "$2" /run/why
           }
           begin; [ $(stat logged) = 0 ]; no test -e disk/log.obd
           synced 1 8; [ $(stat commits) = 1 ]; [ $(stat logged) -ge 7 ]; test -e disk/log.obd
           sum $dev > /run/whole; refused disk/image.json 'records of the log are in no layer'
           kill -9 $(writer); soon no_writer; sum $dev | cmp - /run/whole
           [ $($obd writer disk) = $dev ]; synced 9 9; [ $(stat commits) -gt 1 ]
           synced 10 14; sum $dev > /run/whole; lose
           refused disk/image.json 'records of the log are in no layer'
           begin; grep -q 'records of the log became a layer' /run/said
           sum $dev | cmp - /run/whole; [ $(stat commits) = 0 ]

           # A block among zeros at the end, where there is no room for as many as anywhere else.
           blkdiscard -f -z -o $((32 << 20)) $dev 2>/dev/null
           dd if=/run/data of=$dev bs=4096 count=1 seek=$(((8 << 10) + 3)) conv=fsync,notrunc 2>/dev/null
           [ $(stat logged) = 1 ]; sum $dev > /run/whole; lose
           begin; grep -q 'records of the log became a layer' /run/said; sum $dev | cmp - /run/whole

           sum $dev > /run/before; synced 15 18; lose
           # Nothing was live before, so the first of them is where the log begins.
           printf 'rubbish' | dd of=disk/log.obd bs=1 seek=8 conv=notrunc 2>/dev/null
           refused '--writable disk' 'damaged.*--salvage'; refused disk/image.json damaged
           cp -r disk copy; begin --salvage; grep -q 'the log is given up' /run/said
           sum $dev | cmp - /run/before; synced 19 22; sum $dev > /run/whole; $obd detach w
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/whole; $obd detach r
           rm -r disk; mv copy disk; rm disk/log.obd
           refused '--writable disk' 'log.obd: cannot be read'; begin --salvage
           sum $dev | cmp - /run/before; $obd detach w; rm /run/data; leave"#;
    f.long(&script).map(drop)
}

/// Where there is no room for layers, syncs fail and say why; what was written is
/// there, and becomes a layer when there is room.
pub(super) fn no_room(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + "mkdir small; mount -t tmpfs -o size=2m none small; cd small
           $obd create --rw --size 32M disk > /dev/null
           dev=$($obd attach --writable --name w disk)
           head -c 4000000 /dev/urandom > /run/data
           dd if=/run/data of=$dev bs=4096 conv=fsync 2>/run/why &&
               { echo \"synced without room\" >&2; exit 1; }
           full() { dmesg | grep -q \"${dev#/dev/}: no space left\"; }; soon full
           cmp -n 4000000 /run/data $dev >&2
           mount -o remount,size=20m .
           sync $dev || { sleep 11; sync $dev; }
           committed() { [ $(stat commits) -gt 0 ] && [ $(stat dirty_bytes) = 0 ]; }; soon committed
           again() { dmesg | grep -q \"${dev#/dev/}: layers are committed again\"; }; soon again
           [ $(stat failed_commits) -gt 0 ] || { cat /sys/kernel/config/obd/w/stats >&2; exit 1; }
           $obd detach w
           dev=$($obd attach --name r disk/image.json); cmp -n 4000000 /run/data $dev >&2
           $obd detach r; rm /run/data; cd ..; umount small; leave";
    f.long(&script).map(drop)
}

/// Where somebody flushes at any time, the writer hears of what else there is, too.
pub(super) fn busy(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + "$obd create --rw --size 64M disk > /dev/null
           dev=$($obd attach --writable --name w --memory 256M --commit-bytes 256M --log 128M \
               --commit-age 0 disk)
           fio --name=b --filename=$dev --rw=randwrite --bs=16k --size=8m --offset_increment=8m \
               --numjobs=8 --fsync=1 --time_based --runtime=600 --ioengine=psync --minimal \
               > /dev/null 2>&1 & load=$!
           more() { [ $(stat logged) -gt $1 ]; }; soon more 50
           kill $(writer); since=$(date +%s); soon no_writer; took=$(($(date +%s) - since))
           echo \"ended after $took s\"; [ $took -le 8 ]; before=$(stat logged)
           [ $($obd writer disk) = $dev ]; soon more $((before + 20))
           kill $load; wait $load || :
           sum=$(sum $dev); $obd detach w
           dev=$($obd attach --name r disk/image.json); [ \"$sum\" = \"$(sum $dev)\" ]
           $obd detach r; leave";
    f.long(&script).map(drop)
}

/// When layers are made, what becomes of flushes, and of a disk whose writer is gone, is as
/// the options say.
pub(super) fn options(f: &mut Fixture) -> Result<()> {
    let script = place(f)?
        + "$obd create --rw --size 32M disk > /dev/null
           more() { dd if=/dev/urandom of=$dev bs=64k count=$1 seek=${2:-0} oflag=direct conv=notrunc 2>/dev/null; }
           has() { [ $(stat $1) $2 $3 ]; }

           # For its size alone; flushes wait for nobody, not even a writer that stands still.
           dev=$($obd attach --writable --volatile --name w --memory 1M --commit-bytes 256K \
               --commit-age 0 --writer-timeout 0 disk)
           $obd list | grep -q '^w.*volatile'
           more 2; [ $(stat commits) = 0 ]
           kill -STOP $(writer); more 1 2; dd if=/dev/null of=$dev conv=fsync 2>/dev/null
           has dirty_bytes -gt 0; kill -CONT $(writer)
           more 2 3; soon has commits -gt 0
           # No time is too long without a writer.
           kill -9 $(writer); soon no_writer; more 1; sleep 0.5; more 1 1; $obd writer disk > /dev/null
           $obd detach w

           # For its age alone.
           dev=$($obd attach --writable --name w --memory 8M --commit-bytes 4M --commit-age 0.2 disk)
           more 1; soon has commits -gt 0; soon has dirty_bytes = 0
           $obd detach w

           # Without a writer nothing is written after a while, and reads go on; what was
           # not durable is gone with a disk that is taken away.
           dev=$($obd attach --writable --name w --commit-age 0 --writer-timeout 0.3 disk)
           sum $dev > /run/before; kill -9 $(writer); soon no_writer
           refused() { dmesg | grep -q \"${dev#/dev/}: no writer, nothing is written\"; }; soon refused
           no more 1; sum $dev | cmp - /run/before
           $obd writer disk > /dev/null; more 1; [ $(stat dirty_bytes) -gt 0 ]
           kill -9 $(writer); soon no_writer
           code=0; $obd detach w 2>/run/why || code=$?; [ $code = 3 ]
           $obd detach --force w; no test -e $dev
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/before; $obd detach r
           leave";
    f.long(&script).map(drop)
}

/// Layers go to a store on the drive, past file systems, and are read from there: while they
/// are made and merged, by disks whose writer is killed, and read-only afterwards.
pub(super) fn stored(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + FUNCTIONS
            .replace("cd /mnt/place", "mkdir -p /run/place; cd /run/place")
            .as_str()
        + r#"store=/dev/nvme0n1; umount $store 2>/dev/null || :
           dd if=/dev/zero of=$store bs=64k count=1 conv=fsync 2>/dev/null
           layers() { $obd --json store list $store | grep -c '"offset"'; }
           no $obd create --rw --size 16M --store $store disk 2>/run/why
           grep -q 'no layer store' /run/why; no test -e disk
           $obd store init --force $store > /dev/null
           no $obd create --rw --size 16M --store $store --engine vfio disk 2>/run/why
           grep -q 'takes the controller' /run/why
           $obd create --rw --size 16M --store $store disk > /dev/null
           dev=$($obd attach --writable --name w --max-layers 3 --memory 4M --log 0 disk)
           fio --name=w --filename=$dev --size=8m --bs=4k --rw=randwrite --ioengine=psync \
               --fdatasync=32 --verify=crc32c --do_verify=0 --randseed=9 --minimal > /run/fio & fio=$!
           # Reads of layers that are merged under them.
           while ! test -e /run/stop; do
               dd if=$dev of=/dev/null bs=64k iflag=direct 2>/run/reads || touch /run/bad
           done & reads=$!
           for i in 1 2 3; do
               sleep 0.$((i * 37 % 10)); kill -9 $(writer); soon no_writer
               [ $($obd writer --max-layers 3 --log 0 disk) = $dev ]
           done
           wait $fio; touch /run/stop; wait $reads; rm /run/stop; no test -e /run/bad
           [ $(stat errors) = 0 ]; [ $(stat commits) -gt 5 ]
           grep -c "^[0-9]*+[0-9]* $store$" /sys/kernel/config/obd/w/layers
           no grep -v "^[0-9]*+[0-9]* $store$" /sys/kernel/config/obd/w/layers
           for change in 'store trim' 'store init --force' 'check --force'; do
               no $obd $change $store 2>/run/why; grep -q 'made of it\|in use' /run/why
           done
           sum $dev > /run/whole; $obd detach w
           [ -z "$(ls disk/layers)" ]; [ $(layers) -le 6 ]
           no $obd attach $store 2>/run/why; grep -q 'of a read-write disk' /run/why
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/whole
           fio --name=w --filename=$dev --readonly --size=8m --bs=4k --rw=read \
               --ioengine=psync --verify=crc32c --verify_fatal=1 --minimal > /run/fio
           $obd detach r
           $obd compact disk > /dev/null; [ $(layers) = 1 ]
           dev=$($obd attach --name r disk/image.json); sum $dev | cmp - /run/whole; $obd detach r
           $obd export -o /run/raw disk/image.json; sum /run/raw | cmp - /run/whole
           rm -r disk /run/raw; cd /"#;
    f.long(&script).map(drop)
}
