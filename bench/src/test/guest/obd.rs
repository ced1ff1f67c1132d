// SPDX-License-Identifier: MIT
//! overlaybd images as block devices: what the driver reads is what `obd export`
//! decodes of the same files on the host, which is what the manifest says is in them,
//! and what that refuses is an error.

use super::Fixture;
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::obd_tool;
use crate::process::Tool;
use crate::setup::fetch::sha256_file;
use crate::test::suite::check;
use fastrand::Rng;
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

/// Images beyond this are read in parts.
const WHOLE_BYTES: u64 = 512 << 20;

/// Who reads the images in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// The kernel's driver.
    Driver,
    /// A process of the tool's, through the kernel's ublk driver.
    Userspace,
}

/// Files of the host that the guest uses, which sees them at the same place.
pub(super) struct Files {
    reader: Reader,
    /// The tool.
    pub(super) tool: PathBuf,
    /// The driver.
    module: PathBuf,
    /// Images.
    fixtures: PathBuf,
    /// What the tool decodes them to, see [`Image::raw`].
    pub(super) exports: PathBuf,
}

/// An image among the fixtures.
struct Image {
    /// Its layers, lowest first.
    layers: Vec<String>,
    /// What the manifest says of its content; nothing of damaged ones.
    sha256: Option<String>,
}

impl Image {
    /// The images of the manifest that are small enough to be read whole, without
    /// those that the driver is not for: layers that can be written to.
    fn all(manifest: &[Value]) -> Vec<Self> {
        let mut images: Vec<Self> = manifest
            .iter()
            .filter(|entry| {
                let size = entry["virtual_size"].as_u64();
                entry["class"] != "rw-layer"
                    && entry["upper"].is_null()
                    && size.is_none_or(|size| size <= WHOLE_BYTES)
            })
            .map(|entry| {
                let layers = entry["layers"].as_array().map_or_else(
                    || entry["file"].as_str().into_iter().collect(),
                    |layers| layers.iter().filter_map(Value::as_str).collect::<Vec<_>>(),
                );
                Self {
                    layers: layers.into_iter().map(str::to_owned).collect(),
                    sha256: entry["decoded"]["sha256"].as_str().map(str::to_owned),
                }
            })
            .collect();
        images
            .sort_by(|a, b| (&a.layers, a.sha256.is_none()).cmp(&(&b.layers, b.sha256.is_none())));
        images.dedup_by(|a, b| a.layers == b.layers);
        images
    }

    /// The name of what the tool decodes it to: none of an image that it refuses.
    fn raw(&self) -> String {
        self.layers.join("+")
    }

    /// How to attach it.
    fn mode(&self) -> &'static str {
        match self.layers.as_slice() {
            [name] if name.ends_with(".zfile") => "--zfile",
            _ => "",
        }
    }
}

impl Files {
    /// Builds the tool; `kernel` is the build folder of the guest's kernel.
    pub(super) fn new(ctx: &Context, reader: Reader, kernel: PathBuf) -> Result<Self> {
        let files = Self {
            reader,
            tool: obd_tool::build(ctx, None)?,
            module: kernel.join("drivers/block/obd/obd.ko"),
            fixtures: ctx.root().join("obd-read/fixtures"),
            exports: ctx.part_dir("obd").join("exports"),
        };
        files.export()?;
        Ok(files)
    }

    /// Decodes the images here, where it is fast, and compares them with the manifest.
    fn export(&self) -> Result<()> {
        let dir = &self.exports;
        if dir.exists() {
            fs::remove_dir_all(dir).at("remove", dir)?;
        }
        fs::create_dir_all(dir).at("create the folder", dir)?;
        for image in Image::all(&self.manifest()?) {
            let raw = dir.join(image.raw());
            let done = Tool::new(&self.tool)
                .args(["export", "--output"])
                .arg(&raw)
                .args(&image.layers)
                .dir(&self.fixtures)
                .output();
            match (&image.sha256, done) {
                (Some(wanted), done) => {
                    done?;
                    let got = sha256_file(&raw)?;
                    check(got == *wanted, || {
                        format!(
                            "{}: content is {got}, the manifest has {wanted}",
                            image.raw()
                        )
                    })?;
                }
                (None, Err(_)) if raw.exists() => fs::remove_file(&raw).at("remove", &raw)?,
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn manifest(&self) -> Result<Vec<Value>> {
        let path = self.fixtures.join("MANIFEST.json");
        let text = fs::read(&path).at("read", &path)?;
        let manifest: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
        Ok(manifest["entries"].as_array().cloned().unwrap_or_default())
    }
}

/// Waits until a command succeeds, on however busy a machine: `soon COMMAND…`.
const SOON: &str = r#"
soon() { for i in $(seq 300); do "$@" && return; sleep 0.1; done; echo "never: $*" >&2; return 1; }
"#;

/// What every script begins with: the tool, how it attaches, the images, [`SOON`], and
/// the driver loaded.
pub(super) fn prologue(files: &Files) -> String {
    let (how, load) = match files.reader {
        Reader::Driver => ("", "test -d /sys/kernel/config/obd || insmod $module"),
        Reader::Userspace => (" --userspace", ""),
    };
    format!(
        "obd={}; attach=\"$obd attach{how}\"; module={}; exports={}; cd {}\n{SOON}{load}\n",
        files.tool.display(),
        files.module.display(),
        files.exports.display(),
        files.fixtures.display(),
    )
}

/// Compares a device with what the tool decodes: `same RAW BYTES MODE FILE…`. What
/// it cannot decode whole (`RAW` is `-`) must not attach, or be read. Leaves the
/// devices in `$devs`.
const SAME: &str = r#"
fail() { echo "$*" >&2; exit 1; }
devs=
same() {
    raw=$1 bytes=$2 mode=$3; shift 3
    if dev=$($attach $mode "$@" 2>/run/why); then
        if [ $raw = - ]; then
            if cat $dev >/dev/null 2>&1; then fail "$*: read, and cannot be decoded"; fi
        else
            cmp -n $bytes $exports/$raw $dev >/run/why 2>&1 || fail "$*: $(cat /run/why)"
        fi
        devs="$devs $dev"
    else
        [ $raw = - ] || fail "$*: refused: $(cat /run/why)"
        [ -s /run/why ] || fail "$*: refused without a word"
    fi
}
"#;

/// Every fixture of overlaybd's own tools, whole and damaged.
pub(super) fn fixtures(f: &mut Fixture) -> Result<()> {
    let files = f.obd()?;
    let mut script = prologue(files) + SAME;
    let images = Image::all(&files.manifest()?);
    let mut whole = 0_usize;
    for image in &images {
        let name = image.raw();
        let bytes = fs::metadata(files.exports.join(&name)).map(|raw| raw.len());
        let raw = match bytes {
            Ok(_) => name.as_str(),
            Err(_) => "-",
        };
        whole += usize::from(bytes.is_ok());
        // Writing to a string does not fail.
        let _ = writeln!(
            script,
            "same {raw} {} '{}' {}",
            bytes.unwrap_or(0),
            image.mode(),
            image.layers.join(" ")
        );
    }
    script += "$obd detach $devs";
    let promised = images.iter().filter(|image| image.sha256.is_some()).count();
    check(
        images.len() >= 130 && promised >= 60 && whole >= promised,
        || {
            format!(
                "{} images, {whole} of them whole, {promised} of these by the manifest",
                images.len()
            )
        },
    )?;
    f.long(&script).map(drop)
}

/// Damage that hits some blocks only: `damaged MOST BYTES RAW FILE` reads a zfile by 4 KiB.
/// Each such piece is what it was before the damage, or an error, of which there are no more
/// than upstream has.
const DAMAGED: &str = r#"
attached=0
damaged() {
    most=$1 bytes=$2 raw=$3 at=0 bad=0
    if ! dev=$($attach --zfile $4 2>/run/why); then [ -s /run/why ]; return; fi
    while [ $at -lt $bytes ]; do
        len=$((bytes - at)); [ $len -le 4096 ] || len=4096
        if dd if=$dev iflag=direct bs=4096 skip=$((at / 4096)) count=1 of=/run/got 2>/dev/null; then
            cmp -n $len -i $at:0 $exports/$raw /run/got
        else
            bad=$((bad + 1))
        fi
        at=$((at + 4096))
    done
    echo "$4: $bad of 4 KiB are bad, upstream has $most"
    [ $bad -gt 0 ]; [ $bad -le $most ]
    $obd detach $dev; attached=$((attached + 1))
}
"#;

/// Every fixture of which upstream can read a part: so can we, at least that.
pub(super) fn damaged_parts(f: &mut Fixture) -> Result<()> {
    let files = f.obd()?;
    let mut script = prologue(files) + DAMAGED;
    let mut count = 0;
    for entry in files.manifest()? {
        let upstream = &entry["upstream"];
        let (Some(most), Some(file), Some(base)) = (
            upstream["zfile_lib"]["bad_4k"].as_u64(),
            entry["file"].as_str(),
            entry["base"].as_str(),
        ) else {
            continue;
        };
        if !upstream["layer"].is_null() {
            continue;
        }
        let raw = files.exports.join(base);
        let bytes = fs::metadata(&raw).at("look at", &raw)?.len();
        let _ = writeln!(script, "damaged {most} {bytes} {base} {file}");
        count += 1;
    }
    check(count >= 13, || format!("{count} files in the manifest"))?;
    script += "[ $attached -ge 5 ]";
    f.long(&script).map(drop)
}

/// Copies of a zfile without checksums, and changes in each.
const DAMAGED_COPIES: usize = 24;
const CHANGES: usize = 16;

/// Both LZ4 decoders: each reads every kind of block, and blocks without checksums that were
/// changed are the same to both, as far as neither refuses them.
pub(super) fn decoders(f: &mut Fixture) -> Result<()> {
    let files = f.obd()?;
    let mut whole = String::new();
    let mut blocks = 0;
    for entry in files.manifest()? {
        let (Some(file), Some(size)) = (entry["file"].as_str(), entry["decoded"]["size"].as_u64())
        else {
            continue;
        };
        let zfile = &entry["zfile"];
        if entry["class"] != "zfile" || zfile["algorithm"] != "lz4" {
            continue;
        }
        let _ = writeln!(whole, "same {file} {size} --zfile {file}");
        if entry["id"] == "a-z12-lz4-4k-noverify" {
            let end = zfile["index_offset"].as_u64().unwrap_or_default();
            blocks = zfile["blocks"].as_u64().unwrap_or_default() * DAMAGED_COPIES as u64;
            damage(files, file, 512..end as usize)?;
        }
    }
    check(blocks > 0 && whole.lines().count() >= 15, || {
        format!("{blocks} blocks without checksums and these: {whole}")
    })?;
    let script = prologue(files)
        + SAME
        + "lz4=/sys/kernel/config/obd/lz4; [ $(cat $lz4) = kernel ]
           no eval 'echo lzo > $lz4' 2>/dev/null; [ $(cat $lz4) = kernel ]
           for decoder in kernel core; do
               echo $decoder > $lz4; [ $(cat $lz4) = $decoder ]; devs=
               "
        + &whole
        + r#"$obd detach $devs
               for file in $exports/decoders/*; do
                   dev=$($attach --zfile $file)
                   # Page by page, and not to where the driver decodes: zeros are refusals.
                   echo 0 > /sys/block/${dev#/dev/}/queue/read_ahead_kb
                   dd if=$dev bs=4096 conv=noerror,sync 2>/dev/null || :
                   $obd detach $dev
               done | od -An -v -tx8 -w4096 > /run/$decoder
           done
           echo kernel > $lz4
           awk 'function none(line) { return line ~ /^[ 0]*$/ }
                NR == FNR { kernel[FNR] = $0; next }
                none($0) && none(kernel[FNR]) { neither++; next }
                none($0) || none(kernel[FNR]) { one++; next }
                $0 == kernel[FNR] { both++; next }
                { differ++ }
                END { print FNR, both + 0, neither + 0, one + 0, differ + 0 }'                /run/kernel /run/core
           rm /run/kernel /run/core"#;
    let text = f.long(&script)?;
    let counts: Vec<u64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [all, both, neither, one, differ] = counts[..] else {
        return Err(Error::new(format!("not five counts: {text:?}")));
    };
    println!("# {all} changed blocks: {both} decoded by both, {neither} by neither, {one} by one");
    check(
        all == blocks && differ == 0 && both > 20 && neither > 20,
        || format!("of {blocks} blocks: {text}, {differ} with different content"),
    )
}

/// Changes some of a file's bytes in `range`, each copy's at other places.
fn damage(files: &Files, name: &str, range: Range<usize>) -> Result<()> {
    let dir = files.exports.join("decoders");
    fs::create_dir_all(&dir).at("create the folder", &dir)?;
    let path = files.fixtures.join(name);
    let original = fs::read(&path).at("read", &path)?;
    let mut random = Rng::with_seed(4);
    for number in 0..DAMAGED_COPIES {
        let mut copy = original.clone();
        for _ in 0..CHANGES {
            copy[random.usize(range.clone())] ^= random.u8(1..);
        }
        let path = dir.join(format!("{number}.zfile"));
        fs::write(&path, copy).at("write", &path)?;
    }
    Ok(())
}

/// Images that are read where the manifest says what is there.
pub(super) fn parts(f: &mut Fixture) -> Result<()> {
    let files = f.obd()?;
    let mut script = prologue(files);
    let mut count = 0;
    for entry in files.manifest()? {
        let Some(file) = entry["file"].as_str() else {
            continue;
        };
        if entry["virtual_size"].as_u64() <= Some(WHOLE_BYTES) {
            continue;
        }
        let _ = writeln!(script, "dev=$($attach {file})");
        for read in entry["reads"].as_array().into_iter().flatten() {
            let _ = writeln!(
                script,
                "dd if=$dev bs=64k iflag=skip_bytes,count_bytes skip={} count={} 2>/dev/null | \
                 sha256sum | grep -q {}",
                read[0], read[1], read[2]
            );
            count += 1;
        }
        script += "$obd detach $dev\n";
    }
    check(count > 0, || "no reads in the manifest".to_owned())?;
    f.long(&script).map(drop)
}

/// A file system in an image: every file is what it was, and while it is mounted
/// the device stays.
pub(super) fn file_system(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "dev=$($attach a-ext4-0.layer a-ext4-1.layer a-ext4-2.layer)
           mkdir -p /mnt/fs; mount -t ext4 -o ro $dev /mnt/fs
           awk -F '\\t' '$2 == \"file\" { print $8 \"  \" $1 }' a-ext4-2.files.tsv > /run/sums
           [ $(wc -l < /run/sums) -gt 200 ]
           (cd /mnt/fs && sha256sum --quiet --strict -c /run/sums)
           no $obd detach $dev 2>/run/why
           grep -q 'resource busy' /run/why
           no touch /mnt/fs/new 2>/dev/null
           umount /mnt/fs
           no dd if=/dev/zero of=$dev bs=512 count=1 2>/dev/null
           $obd detach $dev
           no test -e $dev";
    f.sh(&script).map(drop)
}

/// Reads of any sectors, past the page cache, in requests of any size.
pub(super) fn direct_reads(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "for files in 'a-ext4-0.layer a-ext4-1.layer a-ext4-2.layer' a-l08-zstd-16k.layer \
               a-l01-raw.layer; do
               raw=$exports/$(echo $files | tr ' ' +); dev=$($obd attach $files)
               awk -v sectors=$(($(stat -c %s $raw) / 512)) 'BEGIN { srand(3);
                   for (i = 0; i < 40; i++) { at = int(rand() * sectors);
                       len = 1 + int(rand() ^ 3 * 600); if (at + len > sectors) len = sectors - at;
                       print at, len } }' > /run/ranges
               while read at len; do
                   dd if=$dev iflag=direct,skip_bytes bs=$((len * 512)) skip=$((at * 512)) count=1 \
                       of=/run/got 2>/dev/null
                   cmp -n $((len * 512)) -i $((at * 512)):0 $raw /run/got
               done < /run/ranges
               dd if=$dev iflag=direct bs=512 skip=7 count=64 of=/run/got 2>/dev/null
               cmp -n 32768 -i 3584:0 $raw /run/got
               $obd detach $dev
           done
           rm /run/got";
    f.long(&script).map(drop)
}

/// Direct reads as large as they come, with data, holes and both in them: they are cut into
/// requests of 256 KiB, of which those that are holes are counted as such. And into memory that
/// begins at any sector of a page, so that all sectors of a read of a page are in two.
pub(super) fn large_direct_reads(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=/run/raw
           fio --name=w --filename=$raw --size=16m --bs=4k --rw=write --ioengine=psync \
               --verify=crc32c --do_verify=0 --randseed=9 --minimal > /dev/null
           cp $raw $raw.full; fallocate -p -o 4M -l 4M $raw
           for name in raw raw.full; do
               $obd convert --engine=cache --output /run/$name.layer /run/$name > /dev/null 2>&1
           done
           stat() { sed -n \"s/^$1 //p\" /sys/kernel/config/obd/s/stats; }
           dev=$($obd attach --name s $raw.layer)
           # At every 2 MiB: data, half a hole, a hole, half a hole, data.
           for at in 0 1 2 3 4 5 6; do
               zeros=$(stat zeros) all=$(stat reads)
               dd if=$dev iflag=direct,skip_bytes bs=4M skip=$((at * 2097152)) count=1 \
                   of=/run/got 2>/dev/null
               cmp -n 4194304 -i $((at * 2097152)):0 $raw /run/got
               case $at in 2) holes=16;; 1|3) holes=8;; *) holes=0;; esac
               [ $(($(stat zeros) - zeros)) = $holes ]; [ $(($(stat reads) - all)) = 16 ]
           done
           direct=$(stat direct) zeros=$(stat zeros)
           dd if=$dev iflag=direct,skip_bytes bs=4k skip=4M count=1 of=/run/got 2>/dev/null
           cmp -n 4096 -i 4194304:0 $raw /run/got
           [ $(($(stat zeros) - zeros)) = 1 ]; [ $(stat direct) = $direct ]
           [ $(stat errors) = 0 ]
           echo 0 1 $raw.full.layer > /sys/kernel/config/obd/s/exchange
           for align in 512 1536 3584; do for bs in 4k 12k 4m; do
               for engine in psync 'libaio --iodepth=8'; do
                   fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bs=$bs \
                       --verify=crc32c --verify_interval=4k --verify_fatal=1 --mem_align=$align \
                       --size=16m --io_size=2m --thread --minimal --ioengine=$engine > /run/fio
               done
           done; done
           [ $(stat errors) = 0 ]
           $obd detach s; rm $raw $raw.* /run/got";
    f.long(&script).map(drop)
}

/// What an image has in files is read past their page cache: from the drive each time, and right,
/// also when a lock of the file is taken, when the page cache has something else to do with it,
/// and up to the end of a file that ends within a block.
pub(super) fn files(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=/run/raw t=/mnt/t drive=/dev/nvme0n1
           mkdir -p $t; mkfs.ext4 -q -F $drive; mount $drive $t
           fio --name=w --filename=$raw --size=4m --bs=64k --rw=write --ioengine=psync \
               --randseed=11 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
           $obd convert --engine=cache --output $t/4.layer $raw > /dev/null
           $obd convert --engine=cache --algorithm zstd --block-size 64 --output $t/64.layer $raw \
               > /dev/null
           cp a-l01-raw.layer $t/plain.layer; plain=$exports/a-l01-raw.layer
           sectors() { awk '{ print $3 }' /sys/block/nvme0n1/stat; }
           drop() { echo 3 > /proc/sys/vm/drop_caches; }
           of() { sed -n \"s/^$1 //p\" /sys/kernel/config/obd/s/stats; }
           # Buffered, few of them: two pages that are cached already look like a stream. The
           # drive's interrupt wakes the reader; a worker would be two switches more.
           at_random() {
               drop; own=$(of direct) all=$(of reads)
               fio --name=r --filename=$dev --readonly --rw=randread --bs=4k --ioengine=psync \
                   --fadvise_hint=0 --io_size=512k --randrepeat=1 --thread --output-format=json \
                   --output=/run/fio
               own=$(($(of direct) - own)) all=$(($(of reads) - all))
               ctx=$(awk '/\"ctx\"/ { gsub(/[^0-9]/, \"\"); print; exit }' /run/fio)
               echo \"at random: $all reads, $own direct, $ctx switches\"
               [ $own -gt 100 ]; [ $((all - own)) -lt $((all / 8)) ]
               [ $ctx -lt $((own * 3 / 2)) ]; }
           # Several at once: the drive has them all before a worker has any.
           several() {
               fetched=$(of fetched) all=$(of reads)
               fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bs=$1 \
                   --ioengine=libaio --iodepth=16 --io_size=2m --randrepeat=1 --thread --minimal \
                   > /dev/null
               fetched=$(($(of fetched) - fetched)) all=$(($(of reads) - all))
               echo \"several of $1: $all reads, $fetched fetched\"; }
           cache=/sys/kernel/config/obd/cache; usual=$(cat $cache); echo 0 > $cache
           for layer in 4.layer 64.layer plain.layer; do
               case $layer in plain*) whole=$plain;; *) whole=$raw;; esac
               # What the page cache has yet to write is right, too.
               dev=$($obd attach --name s $t/$layer)
               dd if=$dev iflag=direct bs=64k 2>/dev/null | cmp - $whole
               sync; drop
               case $layer in plain*) ;; *)
                   # The first make buffers to spare; how many depends on who is busy.
                   several 64k; several 64k; [ $fetched -gt 0 ]; several 4k; [ $fetched -gt 0 ]
                   at_random; drop; cmp $dev $whole;;
               esac
               for bs in 64k 1M 4k; do
                   before=$(sectors)
                   dd if=$dev iflag=direct bs=$bs 2>/dev/null | cmp - $whole
                   [ $((($(sectors) - before) * 1024)) -ge $(stat -c %s $t/$layer) ]
               done
               # Whoever changes the inode has its lock.
               (while :; do chmod 600 $t/$layer; chmod 644 $t/$layer; done) & pid=$!
               for i in 1 2 3; do
                   drop; cmp $dev $whole; dd if=$dev iflag=direct bs=4k 2>/dev/null | cmp - $whole
               done
               several 64k; kill $pid; wait $pid || :; [ $(of errors) = 0 ]
               if [ $layer = 4.layer ]; then
                   truncate -s 1M $t/$layer
                   for flags in '' iflag=direct; do
                       drop; no dd if=$dev of=/dev/null bs=64k $flags 2>/dev/null
                       dd if=$dev bs=64k count=8 $flags 2>/dev/null | cmp -n 524288 - $whole
                   done
               fi
               $obd detach $dev
           done
           echo $usual > $cache; umount $t; rm $raw";
    f.long(&script).map(drop)
}

/// Who waits for a read decodes it: no worker is handed one, and with the blob
/// cached nobody sleeps, alone or with many who wait at the same time. Who has several
/// reads under way has other CPUs decode them. What is read is right each way.
pub(super) fn submitters(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=/run/raw
           fio --name=w --filename=$raw --size=12m --bs=64k --rw=write --ioengine=psync \
               --randseed=7 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
           $obd convert --engine=cache --output $raw.layer $raw > /dev/null
           dev=$($obd attach --name s $raw.layer)
           stat() { sed -n \"s/^$1 //p\" /sys/kernel/config/obd/s/stats; }
           busy() { awk '$1 == \"cpu1\" { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }
           read_all() {
               dd if=$dev iflag=direct bs=4k of=/run/got 2>/dev/null; cmp $raw /run/got; }
           measure() {
               own=$(stat direct) all=$(stat reads) other=$(busy)
               fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bs=4k \
                   --randrepeat=1 --thread --group_reporting --output-format=json \
                   --output=/run/fio $*
               own=$(($(stat direct) - own)) all=$(($(stat reads) - all))
               other=$(($(busy) - other))
               ctx=$(awk '/\"ctx\"/ { gsub(/[^0-9]/, \"\"); print; exit }' /run/fio)
               echo \"$*: $all reads, $own direct, $ctx switches, CPU 1 $other ticks\"
           }

           read_all; [ $(stat direct) -gt 2000 ]
           measure --ioengine=psync --io_size=16m
           [ $((all - own)) -lt 10 ]; [ $own -gt 4000 ]; [ $ctx -lt $((own / 4)) ]
           measure --ioengine=psync --io_size=1m --numjobs=32
           [ $all -gt 8000 ]; [ $own -gt $((all / 2)) ]
           for engine in libaio io_uring; do
               measure --ioengine=$engine --iodepth=32 --cpus_allowed=0 --runtime=3 --time_based
               [ $own -lt 10 ]; [ $other -ge 50 ]
           done
           read_all
           $obd detach s; rm $raw $raw.layer /run/got";
    f.long(&script).map(drop)
}

/// Files read past the page cache by who waits for them, from a file system on a disk
/// whose blobs are on another one of the same kind, by itself, under device mapper and
/// with a zfile's disk between: locks and submissions nest, which a kernel full of
/// checks has to like. Readers that are killed meanwhile leave no error.
pub(super) fn nested(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "mkdir -p /mnt/blobs /mnt/fs; mkfs.ext4 -q -F /dev/nvme0n1
           mount /dev/nvme0n1 /mnt/blobs
           cp a-ext4-0.layer a-ext4-1.layer a-ext4-2.layer a-l07-lz4-4k.layer /mnt/blobs
           awk -F '\\t' '$2 == \"file\" && $6 > 0 { print $8 \"  \" $1 }' a-ext4-2.files.tsv |
               head -n 20 > /run/sums
           direct() { sed -n 's/^direct //p' /sys/kernel/config/obd/n/stats; }
           check() {
               mount -t ext4 -o ro $1 /mnt/fs; own=$(direct)
               echo 1 > /proc/sys/vm/drop_caches
               : > /run/check; i=0
               while read sum name; do
                   i=$((i + 1)); echo \"$sum  /run/file$i\" >> /run/check
                   dd if=\"/mnt/fs/$name\" iflag=direct bs=4k of=/run/file$i 2>/dev/null
               done < /run/sums
               [ $i = 20 ]; sha256sum --quiet --strict -c /run/check; rm /run/file*
               [ $(direct) -gt $own ]; umount /mnt/fs; }
           cd /mnt/blobs
           dev=$($obd attach --name n a-ext4-0.layer a-ext4-1.layer a-ext4-2.layer)
           check $dev
           echo 0 $(cat /sys/class/block/${dev#/dev/}/size) linear $dev 0 |
               dmsetup create --readonly t
           check /dev/mapper/t; dmsetup remove t
           dmesg -C; killed=0
           for i in $(seq 9); do
               echo 1 > /proc/sys/vm/drop_caches
               dd if=$dev iflag=direct bs=4k of=/dev/null 2>/dev/null & reader=$!
               sleep 0.0$i; kill -9 $reader 2>/dev/null || :
               # It may have been done.
               wait $reader || killed=$((killed + 1))
           done
           [ $killed -gt 0 ]
           grep -qx 'errors 0' /sys/kernel/config/obd/n/stats
           [ $(dmesg | grep -c 'obd.*cannot read') = 0 ]
           $obd detach n
           lower=$($obd attach --zfile a-l07-lz4-4k.layer); dev=$($obd attach --name n $lower)
           dd if=$dev iflag=direct bs=4k of=/run/got 2>/dev/null
           cmp $exports/a-l07-lz4-4k.layer /run/got; [ $(direct) -gt 0 ]
           $obd detach n $lower
           cd /; umount /mnt/blobs";
    f.long(&script).map(drop)
}

/// Blobs on block devices, which are read past the page cache, in whole blocks that
/// hold more than what is wanted: written a moment ago and not yet on the drive, at
/// sectors of any number, compressed and not. Buffered readers at random are served
/// without a switch of tasks; what the device cannot read is an error for as long as
/// it cannot.
pub(super) fn devices(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "drive=/dev/nvme0n1 raw=/run/raw
           fio --name=w --filename=$raw --size=12m --bs=64k --rw=write --ioengine=psync \
               --randseed=7 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
           $obd convert --engine=cache --output $raw.layer $raw > /dev/null
           stat() { sed -n \"s/^$1 //p\" /sys/kernel/config/obd/s/stats; }
           drop() { echo 1 > /proc/sys/vm/drop_caches; }
           # Few of them: two pages that are cached already look like a stream.
           at_random() {
               drop; own=$(stat direct) all=$(stat reads)
               fio --name=r --filename=$dev --readonly --rw=randread --bs=4k --ioengine=psync \
                   --fadvise_hint=0 --io_size=2m --randrepeat=1 --thread --output-format=json \
                   --output=/run/fio
               own=$(($(stat direct) - own)) all=$(($(stat reads) - all))
               ctx=$(awk '/\"ctx\"/ { gsub(/[^0-9]/, \"\"); print; exit }' /run/fio)
               echo \"at random: $all reads, $own direct, $ctx switches\"; }

           exec 9<>$drive
           dd if=$raw.layer of=$drive bs=1M conv=notrunc 2>/dev/null
           dev=$($obd attach --name s $drive)
           cmp $raw $dev
           at_random; [ $own -gt 400 ]; [ $((all - own)) -lt $((all / 10)) ]
           # The drive's own interrupt wakes the reader; a worker would be two more.
           [ $ctx -lt $((own * 3 / 2)) ]
           for i in 1 2 3 4; do (drop; cmp $raw $dev) & readers=\"$readers $!\"; done
           for reader in $readers; do wait $reader; done
           $obd detach s; exec 9>&-

           dd if=$raw.layer of=$drive bs=512 seek=3 2>/dev/null
           sectors=$(($(command stat -c %s $raw.layer) / 512 + 1))
           echo 0 $sectors linear $drive 3 | dmsetup create --readonly t
           dev=$($obd attach --name s /dev/mapper/t); cmp $raw $dev
           dmsetup load t --table \"0 $sectors error\"; dmsetup resume t
           drop; no cat $dev > /dev/null 2>&1
           no dd if=$dev iflag=direct bs=4k of=/dev/null 2>/dev/null
           dmesg | grep -q 'obd.*cannot read.*/dev/mapper/t: .*error -5'
           [ $(stat errors) -gt 0 ]
           dmsetup load t --table \"0 $sectors linear $drive 3\"; dmsetup resume t
           drop; cmp $raw $dev; at_random; [ $own -gt 400 ]
           $obd detach s; dmsetup remove t; rm $raw $raw.layer

           for layer in a-l01-raw a-l02-raw-discard a-l10-sealed; do
               loop=$(losetup --find --show --read-only $layer.layer)
               dev=$($obd attach --name s $loop)
               cmp $exports/$layer.layer $dev; drop
               dd if=$dev iflag=direct bs=4k of=/run/got 2>/dev/null
               cmp $exports/$layer.layer /run/got; [ $(stat direct) -gt 0 ]
               $obd detach s; losetup --detach $loop
           done";
    f.long(&script).map(drop)
}

/// A layer in `$raw.layer`; readers with many reads at once, so that there are buffers to spare,
/// whose I/O is started for them.
const MANY: &str = r#"
drive=/dev/nvme0n1 raw=/run/raw dir=/sys/kernel/config/obd/s
stat() { sed -n "s/^$1 //p" $dir/stats; }
drop() { echo 1 > /proc/sys/vm/drop_caches; }
fio --name=w --filename=$raw --size=12m --bs=64k --rw=write --ioengine=psync \
    --randseed=7 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
$obd convert --engine=cache --output $raw.layer $raw > /dev/null
many() {
    fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bs=$1 \
        --ioengine=libaio --iodepth=32 --io_size=$2 --randrepeat=1 --thread --minimal \
        > /dev/null; }
all_same() {
    many 64k 4m; before=$(stat fetched); drop; cmp $raw $dev; many 200k 4m
    [ $(stat fetched) -gt $before ]; }
"#;

/// Large reads, whose I/O is started before a worker has them: the data is the same with
/// parts that the drive cannot read and with damaged blocks among it, which are errors of
/// those reads alone; while layers are exchanged for others on another device; and disks
/// are taken from such readers, and the module unloaded.
pub(super) fn fetched(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + MANY
        + "dd if=$raw.layer of=$drive bs=1M conv=notrunc,fsync 2>/dev/null
           bytes=$(command stat -c %s $raw.layer); sectors=$((bytes / 512 + 1))
           dev=$($obd attach --name s $drive); all_same
           [ $(stat errors) = 0 ]
           for i in 1 2 3 4; do (drop; cmp $raw $dev) & readers=\"$readers $!\"; done
           many 128k 4m
           for reader in $readers; do wait $reader; done; readers=
           $obd detach s

           # Nothing but what lies there fails, and each of the reads once.
           bad=$((sectors / 2)); rest=$((sectors - bad - 8))
           dmsetup create --readonly t <<END
0 $bad linear $drive 0
$bad 8 linear $drive 0
$((bad + 8)) $rest linear $drive $((bad + 8))
END
           dev=$($obd attach --name s /dev/mapper/t)
           for what in \"linear $drive 0\" error; do
               dmsetup load t <<END
0 $bad linear $drive 0
$bad 8 $what
$((bad + 8)) $rest linear $drive $((bad + 8))
END
               dmsetup resume t; no many 64k 12m; drop; no cat $dev > /dev/null 2>&1
               errors=$(stat errors); [ $errors -gt 0 ]; i=18 failed=0
               while [ $i -lt 30 ]; do
                   if dd if=$dev iflag=direct bs=256k skip=$i count=1 of=/run/got 2>/dev/null; then
                       dd if=$raw bs=256k skip=$i count=1 2>/dev/null | cmp - /run/got
                   else
                       failed=$((failed + 1))
                   fi
                   i=$((i + 1))
               done
               [ $failed -gt 0 ]; [ $failed -le 2 ]; [ $(stat errors) = $((errors + failed)) ]
           done
           dmsetup load t --table \"0 $sectors linear $drive 0\"; dmsetup resume t
           drop; cmp $raw $dev

           # The same layer, on a device of its own, which has whole sectors.
           cp $raw.layer $raw.disk; truncate -s $((512 * sectors)) $raw.disk
           loop=$(losetup --find --show --read-only $raw.disk)
           (set -e; while ! test -e /run/stop; do drop; cmp $raw $dev; done) & readers=$!
           (set -e; while ! test -e /run/stop; do many 64k 4m; done) & readers=\"$readers $!\"
           errors=$(stat errors)
           for i in 1 2 3; do
               for path in $loop /dev/mapper/t $raw.layer; do echo 0 1 $path > $dir/exchange; done
           done
           touch /run/stop; for reader in $readers; do wait $reader; done; rm /run/stop
           [ $(stat errors) = $errors ]
           $obd detach s; losetup --detach $loop; dmsetup remove t

           for i in 1 2; do
               dev=$($obd attach --name s $drive); many 64k 2m
               (many 64k 1g 2>/dev/null || :) & reader=$!
               while [ $(stat fetched) -lt $((i * 50)) ]; do sleep 0.1; done
               $obd detach --force s; wait $reader || :
               rmmod obd; insmod $module
           done
           rm $raw $raw.layer $raw.disk /run/got";
    f.long(&script).map(drop)
}

/// The same of blobs in files: the reads that a file system has under way when the drive fails,
/// when layers are exchanged for others in other files and on other file systems, and when disks
/// are taken from their readers. Nothing holds the files afterwards.
pub(super) fn fetched_from_files(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + MANY
        + "t=/mnt/t; mkdir -p $t; mkfs.ext4 -q -F $drive; mount $drive $t
           cp $raw.layer $t/a.layer; cp $raw.layer $t/b.layer; umount $t
           echo 0 $(blockdev --getsz $drive) linear $drive 0 > /run/linear
           sed 's/linear.*/error/' /run/linear > /run/error
           dmsetup create t /run/linear; mount -o ro /dev/mapper/t $t
           dev=$($obd attach --name s $t/a.layer); all_same; [ $(stat errors) = 0 ]

           becomes() { dmsetup suspend --nolockfs t; dmsetup load t $1; dmsetup resume t; }
           (while ! test -e /run/stop; do many 64k 4m 2>/dev/null || :; done) & reader=$!
           for i in 1 2 3; do becomes /run/error; sleep 0.2; becomes /run/linear; sleep 0.2; done
           becomes /run/error; drop; no cat $dev > /dev/null 2>&1; [ $(stat errors) -gt 0 ]
           becomes /run/linear; touch /run/stop; wait $reader; rm /run/stop
           errors=$(stat errors); all_same; drop; cmp $raw $dev

           (set -e; while ! test -e /run/stop; do drop; cmp $raw $dev; done) & readers=$!
           for bs in 4k 64k; do
               (set -e; while ! test -e /run/stop; do many $bs 2m; done) & readers=\"$readers $!\"
           done
           for i in 1 2 3; do
               for path in $t/b.layer $raw.layer $t/a.layer; do echo 0 1 $path > $dir/exchange; done
           done
           touch /run/stop; for reader in $readers; do wait $reader; done; rm /run/stop
           [ $(stat errors) = $errors ]; drop; cmp $raw $dev
           $obd detach s

           for i in 1 2 3; do
               dev=$($obd attach --name s $t/a.layer); many 64k 2m
               (many 64k 1g 2>/dev/null || :) & reader=$!
               while [ $(stat fetched) -lt $((i * 50)) ]; do sleep 0.1; done
               $obd detach --force s; wait $reader || :
               rmmod obd; insmod $module
           done
           umount $t; dmsetup remove t; rm $raw $raw.layer /run/linear /run/error";
    f.long(&script).map(drop)
}

/// A blob on a drive that LBIO reads: into pages of LBIO's, and decoded from there.
/// The data is the same where memory is in single pages and while the drive is reset;
/// and while the stack is off LBIO has no part.
pub(super) fn drive_by_lbio(f: &mut Fixture) -> Result<()> {
    by_lbio(f, false)
}

/// Makes a store of two layers on the drive, and compares it, attached, with what it was
/// made of: the second layer lies over the first.
const STORE: &str = r#"
store=/dev/nvme0n1
fio --name=w --filename=/run/stored --size=6m --bs=64k --rw=write --ioengine=psync \
    --randseed=5 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
cp /run/stored /run/top; fallocate -p -o 0 -l 1M /run/top; fallocate -p -o 2M -l 3M /run/top
dd if=/dev/urandom of=/run/top bs=3000 seek=400 count=100 conv=notrunc 2>/dev/null
$obd store init --force $store > /dev/null
for layer in stored top; do $obd store convert -m $layer $store /run/$layer > /dev/null; done
dd if=/run/top of=/run/stored bs=4k skip=256 seek=256 count=256 conv=notrunc 2>/dev/null
dd if=/run/top of=/run/stored bs=4k skip=1280 seek=1280 conv=notrunc 2>/dev/null
dev=$($attach $store); echo $dev > /run/dev
dd if=$dev iflag=direct bs=64k of=/run/read 2>/run/why || { cat /run/why >&2; exit 1; }
cmp /run/read /run/stored; rm /run/read; cmp $dev /run/stored
fio --name=r --filename=$dev --readonly --rw=randread --bs=4k --direct=1 --ioengine=psync \
    --io_size=2m --randrepeat=1 --thread --minimal > /dev/null
"#;

/// Layers of a store are attached where they lie on the drive, and read through LBIO; the
/// configuration names bytes of a file, and those that are not there are refused.
pub(super) fn store(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?) + "echo 1 > /sys/kernel/aios/enabled\n" + STORE;
    let reads = f.lbio_during("raw", |f| f.long(&script).map(drop))?;
    check(reads > 400, || format!("{reads} reads by LBIO"))?;
    let script = prologue(f.obd()?)
        + r#"echo 0 > /sys/kernel/aios/enabled
             store=/dev/nvme0n1; dev=$(cat /run/dev)
             cmp $dev /run/stored
             dir=/sys/kernel/config/obd/part; mkdir $dir
             places=$(cat /sys/kernel/config/obd/image*/layers)
             echo "$places" | grep -c "^[0-9]*+[0-9]* $store$" | grep -qx 2
             for wrong in '1+2' '1+ /run/x' '+1 /run/x' '1+2 x' '-1+2 /run/x' 'a+2 /run/x' \
                 '18446744073709551615+1 /run/x' '1+18446744073709551616 /run/x'; do
                 no sh -c 'echo "$1" > $2' - "$wrong" $dir/layers 2>/dev/null
             done
             [ -z "$(cat $dir/layers)" ]
             size=$(blockdev --getsize64 $store)
             for wrong in "$((size - 4096))+8192 $store" "0+$((1 << 62)) $store"; do
                 echo "$wrong" > $dir/layers; no sh -c 'echo 1 > $1' - $dir/power 2>/dev/null
                 grep -q "$store" $dir/error; echo > $dir/layers
             done
             # Its bytes as a layer in a file among others.
             set -- $(echo "$places" | head -1 | tr + ' ')
             dd if=$store bs=4096 skip=$(($1 / 4096)) count=$(($2 / 4096 + 1)) of=/run/part 2>/dev/null
             (head -c 1000 /dev/urandom; cat /run/part; head -c 99 /dev/urandom) > /run/among
             echo "1000+$2 /run/among" > $dir/layers; echo "$places" | tail -1 > $dir/layers
             echo 1 > $dir/power; cmp /dev/$(cat $dir/device) /run/stored
             echo "0 1 $(echo "$places" | head -1)" > $dir/exchange
             [ "$(cat $dir/layers)" = "$places" ]; cmp /dev/$(cat $dir/device) /run/stored
             # What is attached stays where it is; more may come.
             for change in 'store merge' 'store trim' 'store init --force' 'check --force'; do
                 for way in $store /dev/ng0n1; do
                     no $obd $change $way 2>/run/why; grep -q 'obd[0-9]* is made of it' /run/why
                 done
             done
             $obd store convert -m more $store /run/top > /dev/null; cmp $dev /run/stored
             echo 0 > $dir/power; rmdir $dir; $obd detach $dev; $obd store merge $store > /dev/null
             dev=$($attach $store); cmp $dev /run/stored; $obd detach $dev
             rm /run/dev /run/stored /run/top /run/part /run/among"#;
    f.long(&script).map(drop)
}

/// The same layers by a process.
pub(super) fn store_by_a_process(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?) + STORE + "$obd detach $dev; rm /run/dev /run/stored /run/top";
    f.long(&script).map(drop)
}

/// As [`drive_by_lbio`], and the data is the same where LBIO takes reads for failed.
pub(super) fn drive_by_failing_lbio(f: &mut Fixture) -> Result<()> {
    by_lbio(f, true)
}

fn by_lbio(f: &mut Fixture, failing: bool) -> Result<()> {
    let prologue = prologue(f.obd()?)
        + "drive=/dev/nvme0n1 raw=/run/raw
           compare() { echo 1 > /proc/sys/vm/drop_caches; cmp $raw $dev; }
           at_random() {
               echo 1 > /proc/sys/vm/drop_caches
               fio --name=r --filename=$dev --readonly --rw=randread --bs=4k --ioengine=psync \
                   --fadvise_hint=0 --io_size=2m --randrepeat=1 --thread --minimal > /dev/null; }
           dev=$($obd list | awk '$1 == \"l\" { print $2 }')\n";
    let during = |f: &mut Fixture, script: &str| {
        let script = prologue.clone() + script;
        f.lbio_during("raw", |f| f.long(&script).map(drop))
    };
    let off = during(
        f,
        "fio --name=w --filename=$raw --size=12m --bs=64k --rw=write --ioengine=psync \
             --randseed=9 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
         $obd convert --engine=cache --output $raw.layer $raw > /dev/null
         dd if=$raw.layer of=$drive bs=1M 2>/dev/null
         dev=$($obd attach --name l $drive)
         compare; at_random",
    )?;
    check(off == 0, || format!("{off} reads by LBIO, which is off"))?;
    let on = during(f, "echo 1 > /sys/kernel/aios/enabled; compare; at_random")?;
    check(on > 400, || format!("{on} reads by LBIO"))?;
    if failing {
        let script = prologue.clone() + "compare; at_random; compare";
        let failed = f.lbio_failing("lbio_fail", 3, |f| f.long(&script).map(drop))?;
        check(failed > 100, || format!("{failed} reads failed"))?;
    }
    during(
        f,
        "knob=/sys/module/lbio/parameters/chunk_order
         order=$(cat $knob); echo 0 > $knob; compare; at_random; compare
         # Pages that are apart are no reason to read again.
         reads() { awk '{ print $1 }' /sys/block/nvme0n1/stat; }
         before=$(reads)
         fio --name=r --filename=$dev --readonly --rw=randread --bs=4k --ioengine=psync \
             --direct=1 --io_size=2m --randrepeat=1 --thread --minimal > /dev/null
         [ $(($(reads) - before)) -le 520 ]; echo $order > $knob",
    )?;
    let reset = during(
        f,
        "for i in 1 2 3 4; do
             (while ! test -e /run/stop; do
                  dd if=$dev iflag=direct bs=4k 2>/dev/null | cmp - $raw; done) & readers=\"$readers $!\"
         done
         for i in 1 2 3 4; do sleep 1; echo 1 > /sys/class/nvme/nvme0/reset_controller; done
         sleep 1; touch /run/stop; for reader in $readers; do wait $reader; done
         rm /run/stop; compare
         grep -qx 'errors 0' /sys/kernel/config/obd/l/stats",
    )?;
    check(reset > 100, || {
        format!("{reset} reads by LBIO around resets")
    })?;
    during(
        f,
        "echo 0 > /sys/kernel/aios/enabled; $obd detach l; rm $raw $raw.layer",
    )
    .map(drop)
}

/// Blocks that are larger than what is read of them: a block is decoded once for all of its
/// parts while it is in the cache, which has its bounds, is taken back when memory is short
/// and can be off. Under readers layers are exchanged for others of the same size, and the
/// cache's size changes: who reads gets one or the other, and afterwards only the new one.
pub(super) fn neighbours(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=/run/raw top=/sys/kernel/config/obd; dir=$top/s
           of() { sed -n \"s/^$1 //p\" $top/cache_stats; }
           empty() { [ $(of bytes) = 0 ] && [ $(of blocks) = 0 ]; }
           # Opening a layer reads parts of its blocks, too.
           few() { [ $(of blocks) -le 3 ]; }
           # Every 4 KiB have their checksum, so it does not matter of which image they are.
           seed=6
           for name in a b; do
               seed=$((seed + 1))
               fio --name=w --filename=$raw.$name --size=6m --bs=4k --rw=write --ioengine=psync \
                   --verify=crc32c --do_verify=0 --randseed=$seed --minimal > /dev/null
               $obd convert --engine=cache --block-size 64 --output $raw.$name.layer $raw.$name \
                   > /dev/null 2>&1
           done
           no cmp -s $raw.a $raw.b
           read_some() {
               fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bs=4k --size=6m \
                   --verify=crc32c --verify_fatal=1 --thread --minimal \
                   --ioengine=$* > /run/fio.$1; }
           measure() {
               hits=$(of hits) misses=$(of misses)
               read_some $*
               hits=$(($(of hits) - hits)) misses=$(($(of misses) - misses))
               echo \"$(cat $top/cache) bytes, $*: $hits hits, $misses decoded\"; }
           all() { dd if=$dev iflag=direct bs=4k 2>/dev/null | cmp - $raw.$1; }

           [ $(cat $top/cache) = 8388608 ]; no eval 'echo x > $top/cache' 2>/dev/null
           dev=$($obd attach --name s $raw.a.layer)
           # 97 blocks of 1,536 pages.
           measure psync; [ $hits -gt 1200 ]; [ $misses -lt 200 ]
           [ $(of blocks) -ge 90 ]; [ $(of bytes) -gt 5800000 ]; [ $(of bytes) -le 8388608 ]
           [ $(sed -n 's/^cache_hits //p' $dir/stats) -ge $hits ]
           measure libaio --iodepth=16; [ $misses -lt 200 ]
           echo 2 > /proc/sys/vm/drop_caches; empty; [ $(of shrunk) -ge 90 ]
           measure psync; [ $hits -gt 1200 ]; [ $misses -lt 200 ]
           echo 262144 > $top/cache; empty
           measure psync; [ $misses -gt 1000 ]; [ $(of bytes) -le 262144 ]; [ $(of blocks) -ge 2 ]
           echo 0 > $top/cache; empty
           measure psync; [ $hits = 0 ]; [ $misses = 0 ]; empty

           echo 8388608 > $top/cache; measure psync
           echo 0 1 $raw.b.layer > $dir/exchange; soon few; all b; measure psync
           for engine in psync 'libaio --iodepth=16'; do
               (set -e; while ! test -e /run/stop; do read_some $engine; done) &
               readers=\"$readers $!\"
           done
           for bytes in 131072 0 1000000 65536 8388608; do
               echo $bytes > $top/cache; [ $(of bytes) -le $bytes ]
               echo 0 1 $raw.a.layer > $dir/exchange
               echo 2 > /proc/sys/vm/drop_caches; [ $(of bytes) -le $bytes ]
               echo 0 1 $raw.b.layer > $dir/exchange
           done
           touch /run/stop; for reader in $readers; do wait $reader; done; rm /run/stop
           all b; echo 0 1 $raw.a.layer > $dir/exchange; all a
           grep -qx 'errors 0' $dir/stats
           $obd detach s; soon empty; rm $raw.*";
    f.long(&script).map(drop)
}

/// Allocations on the driver's behalf fail, some of them: what is attached, exchanged or read
/// meanwhile is right, or an error, and right when it is tried again later. Nobody hangs.
pub(super) fn short_of_memory(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=/run/raw dir=/sys/kernel/config/obd/m drive=/dev/nvme0n1
           # Where the module is, whoever calls it, and whatever it calls.
           start=$(awk '$1 == \"obd\" { print $6 }' /proc/modules)
           size=$(awk '$1 == \"obd\" { print $2 }' /proc/modules)
           end=$(printf 0xffffffff%x $((0x${start#0xffffffff} + size)))
           faults() {
               for what in failslab fail_page_alloc; do echo $2 > /sys/kernel/debug/$what/$1; done; }
           faults require-start $start; faults require-end $end; faults stacktrace-depth 32
           faults ignore-gfp-wait N; faults times -1; faults verbose 0
           echo N > /sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem
           echo 0 > /sys/kernel/debug/fail_page_alloc/min-order
           drop() { echo 1 > /proc/sys/vm/drop_caches; }

           fio --name=w --filename=$raw --size=4m --bs=64k --rw=write --ioengine=psync \
               --randseed=7 --buffer_compress_percentage=50 --refill_buffers --minimal > /dev/null
           $obd convert --engine=cache --output $raw.4.layer $raw > /dev/null
           $obd convert --engine=cache --algorithm zstd --block-size 64 --output $raw.64.layer $raw \
               > /dev/null
           dd if=$raw.4.layer of=$drive bs=1M conv=fsync 2>/dev/null
           well=0 ill=0
           part() {
               drop
               if dd if=$dev bs=$2 skip=$1 count=1 $3 of=/run/got 2>/dev/null; then
                   well=$((well + 1)); dd if=$raw bs=$2 skip=$1 count=1 2>/dev/null | cmp - /run/got
               else
                   ill=$((ill + 1))
               fi; }
           for layer in $raw.4.layer $raw.64.layer $drive; do
               tries=0 dev=
               while [ -z \"$dev\" ]; do
                   for probability in 1 3 10 30; do
                       faults probability $probability
                       if dev=$($obd attach --name m $layer 2>/dev/null); then
                           part 3 64k; part 9 4k iflag=direct
                           faults probability 0; cmp $raw $dev; $obd detach m; dev=
                       fi
                       tries=$((tries + 1)); faults probability 0
                       [ -z \"$($obd list)\" ]
                   done
                   [ $tries -lt 24 ] || dev=$($obd attach --name m $layer)
               done
               well=0 ill=0
               for probability in 1 10 50; do
                   faults probability $probability
                   for i in 1 2 3; do
                       part $((i * 5)) 200k; part $((i * 7)) 64k iflag=direct
                       part $((i * 200)) 4k; part $((i * 300)) 4k iflag=direct
                       echo 0 1 $layer 2>/dev/null > $dir/exchange || :
                   done
                   fio --name=r --filename=$dev --readonly --direct=1 --rw=randread --bsrange=4k-128k \
                       --ioengine=libaio --iodepth=16 --io_size=1m --continue_on_error=io --thread \
                       --minimal > /dev/null 2>&1 || :
                   faults probability 0
               done
               echo \"$layer: $well reads went well, $ill did not\"; [ $well -gt 0 ]
               drop; cmp $raw $dev; dd if=$dev iflag=direct bs=4k 2>/dev/null | cmp - $raw
               $obd detach m
           done
           rm $raw $raw.*";
    f.long(&script).map(drop)
}

/// What the driver took it gave back: kmemleak finds nothing that is lost, with the module there,
/// which is gone afterwards, and without. The kernel's own tests of ext4, which run when it boots,
/// lose something.
pub(super) fn leaks_nothing(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "leaks=/sys/kernel/debug/kmemleak
           # What is younger than five seconds is not looked at.
           scan() { sleep 6; echo scan > $leaks; sleep 1; echo scan > $leaks
               awk 'BEGIN { RS = \"unreferenced object\" } NR > 1 && !/\"kunit_try_catch\"/' \
                   $leaks > /run/leaks
               if grep -q . /run/leaks; then
                   tr -s ' \\n' ' ' < /run/leaks | head -c 3000 >&2; exit 1
               fi; }
           dev=$($obd attach a-l08-zstd-16k.layer); cat $dev > /dev/null; $obd detach $dev
           dir=/sys/kernel/config/obd/w; mkdir $dir; echo 1 > $dir/writable; echo 65536 > $dir/size
           echo 1 > $dir/power; echo 0 > $dir/power; rmdir $dir
           # That it found something is not yet a fault.
           level=$(cut -f1 /proc/sys/kernel/printk); dmesg -n 5
           scan; rmmod obd; scan
           dmesg -n $level";
    f.long(&script).map(drop)
}

/// Many devices, read at once; each has its own data.
pub(super) fn many(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "for i in $(seq 50); do
               n=$((i % 3)); dev=$($obd attach --name d$i a-ext4-$n.layer)
               echo $dev a-ext4-$n.layer
           done > /run/devices
           [ $($obd list | wc -l) = 50 ]
           for n in 0 1 2; do
               head -c 4194304 $exports/a-ext4-$n.layer | sha256sum > /run/sum-a-ext4-$n.layer
           done
           xargs -P 50 -n 2 sh -c 'head -c 4194304 $0 | sha256sum | cmp - /run/sum-$1' \
               < /run/devices
           $obd detach $(cut -d ' ' -f 1 /run/devices)
           [ $($obd list | wc -l) = 0 ]";
    f.long(&script).map(drop)
}

/// A zfile's device under an image's, as the layers were stacked before there was
/// one device for both, and an image's under one of device mapper's. One above that
/// stands still is removed without waiting for its reads; its number stays until then.
pub(super) fn stacked(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "raw=$exports/a-l07-lz4-4k.layer
           lower=$($obd attach --zfile a-l07-lz4-4k.layer); dev=$($obd attach $lower)
           cmp -n $(stat -c %s $raw) $raw $dev
           no $obd detach $lower 2>/dev/null
           echo 0 $(($(stat -c %s $raw) / 512)) linear $dev 0 | dmsetup create --readonly t
           cmp -n $(stat -c %s $raw) $raw /dev/mapper/t
           no $obd detach $dev 2>/dev/null
           dmsetup remove t; $obd detach $dev

           echo 0 $(cat /sys/class/block/${lower#/dev/}/size) linear $lower 0 |
               dmsetup create --readonly t
           dir=/sys/kernel/config/obd/slow; dev=$($obd attach --name slow /dev/mapper/t)
           dmsetup suspend t; echo 1 > /proc/sys/vm/drop_caches
           (dd if=$dev iflag=direct bs=64k count=8 of=/dev/null || :; : > /run/ended) 2>/dev/null &
           reader=$!
           sleep 0.3; rmdir $dir
           other=$($obd attach a-l01-raw.layer); [ $other != $dev ]; $obd detach $other
           no test -e /run/ended
           dmsetup resume t; wait $reader
           for i in $(seq 100); do dmsetup remove t 2>/dev/null && break; sleep 0.1; done
           $obd detach $lower";
    f.long(&script).map(drop)
}

/// Under dm-verity every block is what it was when its tree was made, or an error:
/// where the image differs, where it cannot be read, and where the tree differs.
/// dm-snapshot keeps what is written, and the disk below stays as it is. Both hold the
/// disk. A blob may be on dm-verity's device, too.
pub(super) fn device_mapper(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "drop() { echo 3 > /proc/sys/vm/drop_caches; }
           tree() {
               blocks=$(($(stat -c %s $raw) / 4096)); rm -f /run/tree
               root=$(veritysetup format --no-superblock --salt=- $raw /run/tree |
                   sed -n 's/^Root hash:[[:space:]]*//p'); }
           verity() {
               hashes=$(losetup --find --show --read-only /run/tree)
               echo 0 $((blocks * 8)) verity 1 $1 $hashes 4096 4096 $blocks 0 sha256 $root - |
                   dmsetup create --readonly v; }
           over() {
               dev=$($attach $1.layer); verity $dev
               no $obd detach $dev 2>/run/why; grep -q 'resource busy' /run/why; }
           away() { dmsetup remove v; losetup --detach $hashes; $obd detach $dev; }
           # Which blocks give an error, as dd counts them; the rest has to be right.
           bad() {
               dd if=/dev/mapper/v iflag=direct bs=$1 conv=noerror,sync of=/run/got 2>/run/why || :
               awk -F '[+ ]' '/Input\\/output error/ { bad = 1 }
                   bad && /records in/ { print $1 + $2; bad = 0 }' /run/why > /run/bad
               cmp -l /run/got $raw | awk '{ print int(($1 - 1) / '$1') }' | uniq |
                   no grep -vxFf /run/bad >&2
               tr '\\n' ' ' < /run/bad; }
           check() {
               raw=$exports/$1.layer; tree; over $1; cmp $raw /dev/mapper/v
               [ -z \"$(bad 16384)\" ]; away
               over $2; [ \"$(bad 4096)\" = \"$3 \" ]; away; }
           check a-c00-base-plain a-c39-ls-data 16
           check a-c00-base-committed a-c28-lz-data-block '32 50 51'
           raw=$exports/a-l07-lz4-4k.layer; tree
           dd if=/dev/zero of=/run/tree bs=4k seek=2 count=1 conv=notrunc 2>/dev/null
           over a-l07-lz4-4k; [ \"$(bad 131072)\" = '4 5 6 7 ' ]; away

           raw=/run/blob; cp a-l07-lz4-4k.layer $raw; truncate -s %4096 $raw; tree
           blob=$(losetup --find --show --read-only $raw); verity $blob
           dev=$($attach /dev/mapper/v); no dmsetup remove v 2>/dev/null
           cmp $exports/a-l07-lz4-4k.layer $dev; drop
           dd if=$dev iflag=direct bs=4k of=/run/got 2>/dev/null
           cmp $exports/a-l07-lz4-4k.layer /run/got
           $obd detach $dev; dmsetup remove v; losetup --detach $hashes $blob

           raw=$exports/a-ext4-0.layer+a-ext4-1.layer+a-ext4-2.layer
           dev=$($attach a-ext4-0.layer a-ext4-1.layer a-ext4-2.layer)
           truncate -s 32M /run/cow; cow=$(losetup --find --show /run/cow)
           echo 0 $(cat /sys/class/block/${dev#/dev/}/size) snapshot $dev $cow N 8 |
               dmsetup create s
           no $obd detach $dev 2>/run/why; grep -q 'resource busy' /run/why
           awk -F '\\t' '$2 == \"file\" && $6 > 0 { print $8 \"  \" $1 }' a-ext4-2.files.tsv |
               head -n 20 > /run/sums
           gone=$(head -n 1 /run/sums | cut -c 67-); sed -i 1d /run/sums
           mkdir -p /mnt/fs; mount -t ext4 /dev/mapper/s /mnt/fs
           rm \"/mnt/fs/$gone\"
           dd if=/dev/urandom of=/mnt/fs/new bs=64k count=16 2>/dev/null
           sum=$(sha256sum < /mnt/fs/new); umount /mnt/fs; drop
           mount -t ext4 -o ro /dev/mapper/s /mnt/fs
           [ \"$(sha256sum < /mnt/fs/new)\" = \"$sum\" ]; no test -e \"/mnt/fs/$gone\"
           (cd /mnt/fs && sha256sum --quiet --strict -c /run/sums)
           umount /mnt/fs
           dmsetup status s | awk '{ split($4, used, \"/\"); exit !(used[1] >= 2048) }'
           [ $(cat /sys/block/${dev#/dev/}/ro) = 1 ]; drop; cmp -n $(stat -c %s $raw) $raw $dev
           dmsetup remove s; losetup --detach $cow; $obd detach $dev; rm /run/cow /run/blob";
    f.long(&script).map(drop)
}

/// Devices that are taken away from their readers, who get errors and end; without
/// force, who has opened one reads it.
pub(super) fn detach_under_load(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "for i in $(seq 8); do
               dev=$($obd attach --name busy a-ext4-0.layer a-ext4-1.layer)
               exec 3<$dev; pids=
               for j in 1 2 3; do
                   (while dd if=$dev iflag=direct bs=64k count=200 >/dev/null 2>&1; do
                       :; done) & pids=\"$pids $!\"
               done
               sleep 0.$i; no $obd detach busy 2>/dev/null; $obd detach --force busy
               for pid in $pids; do wait $pid; done; exec 3<&-
           done
           dir=/sys/kernel/config/obd/race; mkdir $dir; echo $PWD/a-ext4-0.layer > $dir/layers
           for i in $(seq 10); do
               echo 1 > $dir/power; dev=/dev/$(cat $dir/device)
               (echo 0 > $dir/power) 2>/dev/null &
               if dd if=$dev bs=4k count=1 of=/run/read 2>/run/why; then
                   [ $(stat -c %s /run/read) = 4096 ]
               else
                   grep -q open /run/why
               fi
               wait $! || :
           done
           rmdir $dir";
    f.long(&script).map(drop)
}

/// Layers that are exchanged for their merge, and back, under readers of all kinds, who
/// read the same all the time; files of layers that are no more are closed once nobody
/// reads them. Another image comes in one step, and what cannot be is refused.
pub(super) fn exchange(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "mkdir -p /mnt/old; mount -t tmpfs none /mnt/old; cp a-ext4-*.layer /mnt/old
           dir=/sys/kernel/config/obd/x; raw=$exports/a-ext4-0.layer+a-ext4-1.layer+a-ext4-2.layer
           old=/mnt/old/a-ext4 own=$PWD/a-ext4; len=$(stat -c %s $raw)
           dev=$($obd attach --name x $old-0.layer $old-1.layer $old-2.layer)
           stop=/run/stop
           for how in iflag=direct iflag=nonblock; do for bs in 4k 64k; do
               (set -e; while ! test -e $stop; do
                    [ $how = iflag=direct ] || echo 1 > /proc/sys/vm/drop_caches
                    dd if=$dev $how bs=$bs 2>/dev/null | cmp -n $len - $raw; done) &
               readers=\"$readers $!\"
           done; done
           for i in $(seq 8); do
               for from in $own $old; do for n in 0 1 2; do
                   echo $n 1 $from-$n.layer > $dir/exchange
               done; done
           done
           no eval 'echo 3 1 $own-0.layer > $dir/exchange' 2>/dev/null
           no eval 'echo 0 18446744073709551615 $own-0.layer > $dir/exchange' 2>/dev/null
           no eval 'echo 0 1 a-ext4-0.layer > $dir/exchange' 2>/dev/null
           no eval 'echo 0 x $own-0.layer > $dir/exchange' 2>/dev/null
           no eval 'echo 0 > $dir/exchange' 2>/dev/null
           no eval 'echo 2 1 $PWD/a-l01-raw.layer > $dir/exchange' 2>/dev/null
           grep -q 'another size' $dir/error
           no eval 'echo 1 1 $dir/layers > $dir/exchange' 2>/dev/null
           grep -qx \"$dir/layers: cannot be opened: error -22\" $dir/error
           no eval 'echo 1 1 $PWD/a-c23-lz-trl.layer > $dir/exchange' 2>/dev/null
           grep -q 'a-c23-lz-trl.layer: ' $dir/error
           for n in 0 1 2; do echo $n 1 $own-$n.layer > $dir/exchange; done
           # Its readers end with what they began with, then nobody has the files.
           for i in $(seq 100); do umount /mnt/old 2>/dev/null && break; sleep 0.1; done
           no grep -q /mnt/old /proc/mounts
           touch $stop; for reader in $readers; do wait $reader; done; rm $stop
           printf '%s\\n' $own-0.layer $own-1.layer $own-2.layer | cmp - $dir/layers
           dd if=$dev iflag=direct bs=64k 2>/dev/null | cmp -n $len - $raw
           grep -qx 'errors 0' $dir/stats

           # Two of them away, and what is read is the image of the one.
           echo 0 3 $own-0.layer > $dir/exchange; [ \"$(cat $dir/layers)\" = $own-0.layer ]
           echo 1 > /proc/sys/vm/drop_caches; cmp -n $len $dev $exports/a-ext4-0.layer
           echo 1 0 $own-1.layer > $dir/exchange; echo 2 0 $own-2.layer > $dir/exchange
           echo 1 > /proc/sys/vm/drop_caches; cmp -n $len $dev $raw
           echo 0 > $dir/power; [ $(wc -l < $dir/layers) = 3 ]
           no eval 'echo 0 1 $own-0.layer > $dir/exchange' 2>/dev/null
           echo 1 > $dir/power; cmp -n $len /dev/$(cat $dir/device) $raw
           $obd detach x
           dev=$($obd attach --name x --zfile a-l07-lz4-4k.layer)
           no eval 'echo 0 1 $own-0.layer > $dir/exchange' 2>/dev/null
           $obd detach x";
    f.long(&script).map(drop)
}

/// The module leaves when its last device does, and comes back.
pub(super) fn unload(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "dev=$($obd attach a-l07-lz4-4k.layer)
           no rmmod obd 2>/dev/null
           exec 3<$dev; $obd detach --force $dev
           no rmmod obd 2>/dev/null
           [ $(dd bs=4k count=1 <&3 2>/dev/null | wc -c) = 0 ]
           exec 3<&-
           rmmod obd; no test -e /sys/kernel/config/obd
           insmod $module; dev=$($obd attach a-l07-lz4-4k.layer); cat $dev > /dev/null
           $obd detach $dev; rmmod obd";
    f.sh(&script).map(drop)
}

/// What the tool says and writes for who calls it: exit codes, JSON, the result
/// file of a configuration.
pub(super) fn tool(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "config() { printf '{\"lowers\":[{\"file\":\"%s\"}],\"resultFile\":\"/run/result\"}' \
               $PWD/$1 > /run/config.v1.json; }
           config a-l07-lz4-4k.layer; $obd --json attach --name c /run/config.v1.json |
               grep -q '\"device\": \"/dev/obd'
           [ \"$(cat /run/result)\" = success ]
           $obd --json list | grep -q '\"name\":\"c\"'
           code=0; $obd attach --name c a-l07-lz4-4k.layer 2>/dev/null || code=$?; [ $code = 2 ]
           $obd detach c
           config a-c23-lz-trl.layer; code=0
           $obd attach /run/config.v1.json 2>/dev/null || code=$?; [ $code = 1 ]
           grep -q '^failed:.*a-c23-lz-trl.layer' /run/result
           [ -z \"$($obd list)\" ]
           dir=/run/snapshots/1; mkdir -p $dir/fs $dir/block
           cp a-l07-lz4-4k.layer $dir/fs/overlaybd.commit
           for layer in a-l07-lz4-4k a-l01-raw; do
               printf '{\"repoBlobUrl\":\"https://registry.example/v2/x/blobs\",\"lowers\":[\
{\"digest\":\"sha256:%s\",\"size\":%d,\"dir\":\"%s/fs\"}],\"upper\":{},\
\"resultFile\":\"%s/block/init-debug.log\"}' $(sha256sum < $layer.layer | cut -d ' ' -f 1) \
                   $(stat -c %s $layer.layer) $dir $dir > $dir/block/config.v1.json
               $obd attach --check-digests $dir/block/config.v1.json > /run/$layer 2>&1 || :
               cp $dir/block/init-debug.log /run/$layer.result
           done
           [ \"$(cat /run/a-l07-lz4-4k.result)\" = success ]
           cmp $exports/a-l07-lz4-4k.layer $(cat /run/a-l07-lz4-4k)
           $obd detach $(cat /run/a-l07-lz4-4k); rm -r /run/snapshots
           grep -q '^failed:.*overlaybd.commit: sha256 is' /run/a-l01-raw.result
           [ -z \"$($obd list)\" ]
           $obd attach --name c a-l07-lz4-4k.layer > /dev/null
           [ \"$($obd --json detach c)\" = '{\"name\":\"c\"}' ]
           code=0; $obd detach c 2>/dev/null || code=$?; [ $code = 2 ]
           code=0; $obd attach /nonexistent 2>/dev/null || code=$?; [ $code = 3 ]";
    f.sh(&script).map(drop)
}

/// A damaged block costs who reads it an error, and the log a line that says
/// where; the rest of the device goes on.
pub(super) fn damaged_block(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "dev=$($obd attach --name bad --zfile a-c14-block-crc.zfile); dmesg -C
           dd if=$dev iflag=direct bs=16k count=1 of=/dev/null 2>/dev/null
           no dd if=$dev iflag=direct bs=16k skip=1 count=1 of=/dev/null 2>/dev/null
           dd if=$dev iflag=direct bs=16k skip=2 count=1 of=/dev/null 2>/dev/null
           dmesg | grep 'obd: obd.*a-c14-block-crc.zfile: block 1 at byte [0-9]*: checksum'
           read start more < /proc/uptime
           for i in $(seq 100); do
               dd if=$dev iflag=direct bs=16k skip=1 count=1 of=/dev/null 2>/dev/null && exit 1
           done
           read end more < /proc/uptime
           [ $(dmesg | grep -c 'block 1 at byte') -le $((20 + 2 * (${end%.*} - ${start%.*} + 1))) ]
           grep -qx 'errors 101' /sys/kernel/config/obd/bad/stats
           $obd detach bad";
    f.sh(&script).map(drop)
}

/// Paths that are none, of what is no file, or that lead back to the device, are
/// refused at once and change nothing, nor are they opened; so do many who configure
/// one device.
pub(super) fn configuration(f: &mut Fixture) -> Result<()> {
    let script = prologue(f.obd()?)
        + "dir=/sys/kernel/config/obd/c; mkdir $dir; mkfifo /run/fifo
           (exec 4>/run/fifo; : > /run/opened) & writer=$!
           for path in $dir/layers /run/fifo /dev/null /run; do
               echo $path > $dir/layers
               no eval 'echo 1 > $dir/power' 2>/dev/null
               grep -qx \"$path: cannot be opened: error -22\" $dir/error
               echo > $dir/layers
           done
           no test -e /run/opened
           kill $writer; wait $writer 2>/dev/null || :
           awk 'BEGIN { printf \"/%04089d\", 0 }' > /run/name; cat /run/name > $dir/layers
           no eval 'echo 1 > $dir/power' 2>/dev/null
           [ $(wc -c < $dir/error) = 4096 ]; grep -q '0: cannot be opened: error -36$' $dir/error
           echo > $dir/layers
           echo $PWD/a-ext4-0.layer > $dir/layers
           no eval 'echo a-ext4-1.layer > $dir/layers' 2>/dev/null
           no eval 'printf \"/first\\nsecond\\n\" > $dir/layers' 2>/dev/null
           awk 'BEGIN { for (i = 0; i < 100; i++) printf \"/%060d\\n\", i }' > /run/long
           no dd if=/run/long of=$dir/layers bs=6000 2>/run/why
           grep -q 'Argument list too long' /run/why
           awk 'BEGIN { printf \"/%04093d\\n\\n\", 0 }' > /run/cut
           no dd if=/run/cut of=$dir/layers bs=6000 2>/run/why
           grep -q 'Argument list too long' /run/why
           [ \"$(cat $dir/layers)\" = $PWD/a-ext4-0.layer ]
           pids=
           for i in 1 2 3; do
               (set +e; for j in $(seq 20); do
                   echo 1 > $dir/power; cat $dir/*; echo 0 > $dir/power
                   echo $PWD/a-ext4-1.layer > $dir/layers; echo > $dir/layers
                   echo $PWD/a-ext4-0.layer > $dir/layers
               done; :) >/dev/null 2>&1 & pids=\"$pids $!\"
           done
           for pid in $pids; do wait $pid; done
           for i in $(seq 50); do echo 0 > $dir/power && break; sleep 0.1; done 2>/dev/null
           [ $(cat $dir/power) = 0 ]
           echo > $dir/layers; echo $PWD/a-ext4-0.layer > $dir/layers; echo 1 > $dir/power
           [ $(cat /sys/block/$(cat $dir/device)/ext_range) = 1 ]
           rmdir $dir; [ -z \"$($obd list)\" ]";
    f.sh(&script).map(drop)
}
