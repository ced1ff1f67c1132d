// SPDX-License-Identifier: MIT
//! overlaybd images on a kernel without a driver for them: served by a process,
//! through ublk. What is read is compared as for the driver, see [`super::obd`].

use super::Fixture;
use super::obd::prologue;
use crate::error::Result;

/// Waits until there is no ublk device left, nor anything written of one.
const GONE: &str = r#"
gone() {
    for i in $(seq 200); do
        left=$(ls -d /dev/ublk[bc][0-9]* /run/obd/* 2>/dev/null) || :
        [ -n "$left" ] || return 0
        sleep 0.05
    done
    echo "left: $left" >&2; return 1
}
"#;

/// 32 reads under way, each checked against what was written there; reads of any
/// sectors; and many devices read at once, each with its own data.
pub(super) fn parallel_reads(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + GONE
        + "fio --name=w --filename=/run/raw --size=12m --bs=4k --rw=randwrite --ioengine=psync \
               --verify=crc32c --do_verify=0 --randseed=7 --buffer_compress_percentage=50 \
               --refill_buffers --minimal > /dev/null
           $obd convert --engine=cache --output /run/raw.layer /run/raw > /dev/null
           check() {
               fio --filename=$dev --readonly --size=12m --rw=randread --direct=1 \
                   --ioengine=io_uring --iodepth=32 --verify=crc32c --verify_interval=4k \
                   --verify_fatal=1 --minimal $* > /run/fio
           }
           for options in '' '--queues 1 --depth 3'; do
               dev=$($attach $options /run/raw.layer)
               check --name=short --bs=4k --name=long --stonewall --bs=64k
               for range in '1 1' '4093 257' '24575 1' '7 640'; do
                   at=$((${range% *} * 512)) len=$((${range#* } * 512))
                   dd if=$dev iflag=direct,skip_bytes bs=$len skip=$at count=1 of=/run/got \
                       2>/dev/null
                   cmp -n $len -i $at:0 /run/raw /run/got
               done
               $obd detach $dev
           done
           for i in $(seq 9); do
               n=$((i % 3)); echo $($attach a-ext4-$n.layer) a-ext4-$n.layer
           done > /run/devices
           [ $($obd list | wc -l) = 9 ]
           for n in 0 1 2; do
               head -c 1048576 $exports/a-ext4-$n.layer | sha256sum > /run/sum-a-ext4-$n.layer
           done
           xargs -P 9 -n 2 sh -c 'head -c 1048576 $0 | sha256sum | cmp - /run/sum-$1' \
               < /run/devices
           $obd detach $(cut -d ' ' -f 1 /run/devices)
           gone
           rm -f /run/raw /run/raw.layer";
    f.long(&script).map(drop)
}

/// A damaged block costs who reads it an error, and the kernel's log a line that
/// says where; the rest of the device goes on.
pub(super) fn damaged_block(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "dev=$($attach --zfile a-c14-block-crc.zfile); dmesg -C
           dd if=$dev iflag=direct bs=16k count=1 of=/dev/null 2>/dev/null
           no dd if=$dev iflag=direct bs=16k skip=1 count=1 of=/dev/null 2>/run/why
           grep -q 'Input/output error' /run/why
           dd if=$dev iflag=direct bs=16k skip=2 count=1 of=/dev/null 2>/dev/null
           dmesg | grep 'obd: ublkb[0-9]*: cannot read at byte 16384: \
/.*a-c14-block-crc.zfile: block 1 at byte [0-9]*: checksum'
           for i in $(seq 40); do
               dd if=$dev iflag=direct bs=16k skip=1 count=1 of=/dev/null 2>/dev/null && exit 1
           done
           dmesg | grep -c 'obd: ublkb' > /run/lines
           [ $(cat /run/lines) -ge 10 ]; [ $(cat /run/lines) -lt 40 ]
           $obd detach $dev";
    f.sh(&script).map(drop)
}

/// What the tool says and writes for who calls it: exit codes, JSON, the result
/// file of a configuration; and that the kernel lacks the driver.
pub(super) fn tool(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + GONE
        + "config() { printf '{\"lowers\":[{\"file\":\"%s\"}],\"resultFile\":\"/run/result\"}' \
               $PWD/$1 > /run/config.v1.json; }
           no $obd attach a-l07-lz4-4k.layer 2>/run/why; grep -q 'module obd' /run/why
           config a-l07-lz4-4k.layer; $obd --json attach --userspace /run/config.v1.json \
               > /run/attached
           grep -q '\"device\": \"/dev/ublkb[0-9]' /run/attached
           [ \"$(cat /run/result)\" = success ]
           $obd --json list > /run/list
           grep -q '\"name\":\"ublkb.*\"layers\":\\[\"/.*/a-l07-lz4-4k.layer\"\\]' /run/list
           grep -q '\"server\":[1-9].*\"depth\":64' /run/list
           name=$(sed 's/.*\"name\":\"\\([^\"]*\\)\".*/\\1/' /run/list)
           [ $(cat /sys/block/$name/ro) = 1 ]
           [ $(cat /sys/block/$name/queue/max_hw_sectors_kb) = 128 ]
           [ $(cat /sys/block/$name/queue/discard_max_bytes) = 0 ]
           [ $(ls -d /sys/block/$name/mq/* | wc -l) = 2 ]
           $obd detach $name; gone
           [ -z \"$($obd list)\" ]
           config a-c23-lz-trl.layer; code=0
           $attach /run/config.v1.json 2>/run/why || code=$?; [ $code = 1 ]
           [ $(wc -l < /run/why) = 1 ]; grep -q '^error: .*a-c23-lz-trl.layer' /run/why
           grep -q '^failed:.*a-c23-lz-trl.layer' /run/result
           config a-l07-lz4-4k.layer; sed -i 's#/run/result#/proc/none#' /run/config.v1.json
           code=0; $attach /run/config.v1.json 2>/dev/null || code=$?; [ $code = 3 ]; gone
           code=0; $obd detach ublkb0 2>/dev/null || code=$?; [ $code = 2 ]
           code=0; $attach /nonexistent 2>/dev/null || code=$?; [ $code = 3 ]
           code=0; $attach --name c a-l07-lz4-4k.layer 2>/dev/null || code=$?; [ $code = 2 ]
           mv /dev/ublk-control /run/ublk-control
           code=0; $attach a-l07-lz4-4k.layer 2>/run/why || code=$?; [ $code = 3 ]
           grep -q 'CONFIG_BLK_DEV_UBLK' /run/why
           mv /run/ublk-control /dev/ublk-control
           gone";
    f.sh(&script).map(drop)
}

/// A server in the foreground ends well when it is told to, and so does one that
/// has left; their devices go.
pub(super) fn ends(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + GONE
        + "for signal in TERM INT HUP; do
               : > /run/said
               $attach --foreground a-l07-lz4-4k.layer > /run/said & server=$!
               for i in $(seq 200); do [ -s /run/said ] && break; sleep 0.05; done
               dev=$(cat /run/said); cat $dev > /dev/null; exec 3<$dev
               kill -$signal $server; wait $server
               no test -e $dev; exec 3<&-; gone
           done
           : > /run/said
           $attach --foreground a-l07-lz4-4k.layer > /run/said & server=$!
           for i in $(seq 200); do [ -s /run/said ] && break; sleep 0.05; done
           $obd detach $(cat /run/said); wait $server; gone
           dev=$($attach a-l07-lz4-4k.layer)
           server=$($obd --json list | sed 's/.*\"server\":\\([0-9]*\\).*/\\1/')
           [ $(readlink /proc/$server/cwd) = / ]; [ $(readlink /proc/$server/fd/2) = /dev/null ]
           kill $server; gone; [ -z \"$($obd list)\" ]";
    f.sh(&script).map(drop)
}

/// Devices that are taken away from their readers, who get errors and end; without
/// force, one that is open stays.
pub(super) fn detach_under_load(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + GONE
        + "for i in $(seq 3); do
               dev=$($attach a-ext4-0.layer a-ext4-1.layer)
               exec 3<$dev; pids=
               for j in 1 2 3; do
                   (while dd if=$dev iflag=direct bs=64k count=200 >/dev/null 2>&1; do
                       :; done) & pids=\"$pids $!\"
               done
               sleep 0.$i; no $obd detach $dev 2>/run/why; grep -q 'resource busy' /run/why
               $obd detach --force $dev; no test -e $dev
               for pid in $pids; do wait $pid; done; exec 3<&-
           done
           gone; [ -z \"$($obd list)\" ]";
    f.long(&script).map(drop)
}

/// A server that is killed takes its disk with it, and its readers get errors and
/// end. What is left is shown, and detached.
pub(super) fn killed_server(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + GONE
        + "for i in $(seq 2); do
               dev=$($attach a-ext4-0.layer a-ext4-1.layer); name=${dev#/dev/}
               server=$($obd --json list | sed 's/.*\"server\":\\([0-9]*\\).*/\\1/'); pids=
               for j in 1 2 3; do
                   (while dd if=$dev iflag=direct bs=64k count=200 >/dev/null 2>&1; do
                       :; done) & pids=\"$pids $!\"
               done
               sleep 0.$i; kill -9 $server
               for pid in $pids; do wait $pid; done
               for j in $(seq 100); do test -e $dev || break; sleep 0.05; done
               no test -e $dev; test -e /dev/ublkc${name#ublkb}
               $obd list > /run/list
               [ \"$(cut -f 1,2 /run/list)\" = \"$(printf '%s\\t-' $name)\" ]
               $obd detach $name; gone
           done
           [ -z \"$($obd list)\" ]";
    f.long(&script).map(drop)
}
