// SPDX-License-Identifier: MIT

//! `obd dump` and `obd merge`: lists of blocks and segments.

use crate::commit;
use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    self,
    Stack,
    StackArgs, //
};
use crate::write::HowArgs;
use obd_core::lsmt::{
    Opened,
    Segment, //
};
use serde::Serialize;
use std::io::{
    self,
    BufWriter,
    Write, //
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// List a layer's segments, or a zfile's blocks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A layer or a zfile.
    file: PathBuf,

    /// List the compressed blocks even of a layer.
    #[arg(long)]
    blocks: bool,
}

/// Merge layers' indexes and list the result: which range is in which layer. With
/// --output, write them as one layer instead, as `commit` does.
#[derive(clap::Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    stack: StackArgs,

    /// The layer to write.
    #[arg(short, long, value_name = "LAYER")]
    output: Option<PathBuf>,

    #[command(flatten)]
    how: HowArgs,
}

/// A line of a list of segments; sectors of 512 bytes.
#[derive(Serialize)]
struct SegmentLine {
    /// First sector of the image.
    lba: u64,
    /// Sectors.
    length: u64,
    /// First sector in the layer's file.
    moffset: u64,
    zeroed: bool,
    /// Counted from the bottom.
    layer: u8,
}

/// A line of a list of blocks; bytes.
#[derive(Serialize)]
struct BlockLine {
    block: u64,
    /// From the beginning of the zfile.
    offset: u64,
    /// With checksum.
    stored: u32,
    decoded: usize,
}

impl From<Segment> for SegmentLine {
    fn from(segment: Segment) -> Self {
        Self {
            lba: segment.lba(),
            length: segment.len(),
            moffset: segment.moffset(),
            zeroed: segment.is_zeroed(),
            layer: segment.layer(),
        }
    }
}

/// Writes lines to standard output, as a table or one JSON object each.
fn list<T: Serialize>(
    json: bool,
    head: &str,
    lines: impl Iterator<Item = T>,
    row: impl Fn(&T) -> String,
) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if !json {
            writeln!(out, "{head}")?;
        }
        for line in lines {
            match json {
                true => {
                    serde_json::to_writer(&mut out, &line)?;
                    writeln!(out)?;
                }
                false => writeln!(out, "{}", row(&line))?,
            }
        }
        out.flush()
    };
    match write() {
        // Whoever read the list has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::io("write", "standard output", error)),
        Ok(()) => Ok(()),
    }
}

fn list_segments(json: bool, segments: impl Iterator<Item = Segment>) -> Result<()> {
    let head = format!(
        "{:>14} {:>6} {:>14} {:>5} what",
        "lba", "length", "moffset", "layer"
    );
    list(json, &head, segments.map(SegmentLine::from), |line| {
        format!(
            "{:>14} {:>6} {:>14} {:>5} {}",
            line.lba,
            line.length,
            line.moffset,
            line.layer,
            if line.zeroed { "zeros" } else { "data" }
        )
    })
}

/// Runs `obd dump`.
pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let opened = open::probe(&args.file)?;
    let zfile = match &opened {
        Opened::Layer(layer) if !args.blocks => {
            return list_segments(json, layer.segments().iter().copied());
        }
        Opened::Layer(layer) => layer.zfile(),
        Opened::ZFile(zfile) => Some(zfile),
    };
    let Some(zfile) = zfile else {
        return Err(Error::Config {
            path: args.file.clone(),
            reason: "is not compressed: it has no blocks".into(),
        });
    };
    let blocks = (0..zfile.info().blocks).filter_map(|block| {
        let extent = zfile.extent(block)?;
        Some(BlockLine {
            block,
            offset: extent.offset,
            stored: extent.len,
            decoded: zfile.decoded_len(block),
        })
    });
    let head = format!(
        "{:>10} {:>14} {:>8} {:>8}",
        "block", "offset", "stored", "decoded"
    );
    list(json, &head, blocks, |line| {
        format!(
            "{:>10} {:>14} {:>8} {:>8}",
            line.block, line.offset, line.stored, line.decoded
        )
    })
}

/// Runs `obd merge`.
pub(crate) fn merge(args: &MergeArgs, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    if let Some(output) = &args.output {
        return commit::write(&args.stack, output, &args.how, json, interrupted);
    }
    match args.stack.open(interrupted)? {
        Stack::Image(stacked) => {
            let index = stacked.image.index();
            list_segments(json, (0..index.len()).filter_map(|i| index.get(i)))
        }
        Stack::ZFile(path, _) => Err(Error::Config {
            path,
            reason: "a zfile, but no layer: it has no index".into(),
        }),
    }
}
