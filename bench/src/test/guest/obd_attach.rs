// SPDX-License-Identifier: MIT
//! What attaching a large image takes: time, and memory for its indexes and jump tables.

use super::Fixture;
use super::obd::prologue;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::test::suite::check;
use std::fs::{
    self,
    File, //
};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of the image, and its layers.
const SIZE: u64 = 64 << 30;
const LAYERS: usize = 8;
/// Ranges that each layer has data of, and the blocks of the longest of them.
const RANGES: usize = 1000;
const LONGEST: usize = 64;
/// Bytes of a block, of the image and of the zfiles.
const BLOCK: usize = 4096;
/// Bytes of memory that a block with data may take.
const PER_BLOCK: f64 = 3.0;
/// Milliseconds it may take, however busy the machine is.
const TIME_LIMIT: f64 = 1000.0;

/// Attaches [`LAYERS`] layers of [`SIZE`] bytes, in files in memory.
pub(super) fn large(f: &mut Fixture) -> Result<()> {
    let files = f.obd()?;
    let dir = files.exports.join("large");
    fs::create_dir_all(&dir).at("create the folder", &dir)?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut blocks = 0;
    let mut newest = Vec::new();
    for number in 0..LAYERS {
        newest = data(&dir.join("raw"), &mut random)?;
        blocks += newest.iter().map(|range| range.blocks).sum::<usize>();
        Tool::new(&files.tool)
            .args(["convert", "--force", "--output"])
            .args([dir.join(format!("{number}.layer")), dir.join("raw")])
            .output()?;
    }
    let looks: String = newest
        .iter()
        .take(20)
        .map(|range| format!("{} {:03o}\n", range.first, range.byte))
        .collect();
    fs::write(dir.join("newest"), looks).at("write", dir.join("newest"))?;

    let script = prologue(files)
        + r#"mkdir /run/large; cp $exports/large/*.layer /run/large
           dir=/sys/kernel/config/obd/large; mkdir $dir; ls -d /run/large/* > $dir/layers
           now() { sed -n 's/^now at \([0-9]*\) nsecs$/\1/p' /proc/timer_list; }
           began=$(now); begin=$(now); echo 1 > $dir/power; end=$(now)
           dev=/dev/$(cat $dir/device); cat $dir/stats > /run/stats
           while read block byte; do
               dd if=$dev iflag=direct bs=4096 skip=$block count=1 2>/dev/null > /run/block
               [ $(stat -c %s /run/block) = 4096 ]; [ $(tr -d "\\$byte" < /run/block | wc -c) = 0 ]
           done < $exports/large/newest
           [ $(cat /sys/block/${dev#/dev/}/size) = $((64 << 21)) ]
           echo 0 > $dir/power; rmdir $dir; rm -r /run/large
           echo $((end - begin - (begin - began)))
           sed -n 's/^index_bytes //p; s/^table_bytes //p' /run/stats"#;
    let text = f.long(&script)?;
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let [ns, index, table] = numbers[..] else {
        return Err(Error::new(format!("not a time and two sizes: {text:?}")));
    };
    let (ms, per_block) = (ns / 1e6, (index + table) / blocks as f64);
    println!(
        "# {ms:.1} ms for {LAYERS} layers; {blocks} blocks with {per_block:.2} bytes each: \
         {index} for ranges, {table} for jump tables"
    );
    check(per_block < PER_BLOCK && table > 0.0 && index > 0.0, || {
        format!("{per_block:.2} bytes for each block, where less than {PER_BLOCK} were wanted")
    })?;
    check(ms < TIME_LIMIT, || {
        format!("{ms:.1} ms, where less than {TIME_LIMIT} were wanted")
    })
}

/// Blocks with the same byte in them.
struct Range {
    first: usize,
    blocks: usize,
    byte: u8,
}

/// Makes a file with holes and returns what is in it.
fn data(path: &Path, random: &mut fastrand::Rng) -> Result<Vec<Range>> {
    let file = File::create(path).at("create", path)?;
    file.set_len(SIZE).at("resize", path)?;
    let part = SIZE as usize / BLOCK / RANGES;
    let mut ranges = Vec::new();
    for number in 0..RANGES {
        let range = Range {
            first: number * part + random.usize(..part - LONGEST),
            blocks: random.usize(1..=LONGEST),
            byte: random.u8(1..),
        };
        file.write_all_at(
            &vec![range.byte; range.blocks * BLOCK],
            (range.first * BLOCK) as u64,
        )
        .at("write", path)?;
        ranges.push(range);
    }
    random.shuffle(&mut ranges);
    Ok(ranges)
}
