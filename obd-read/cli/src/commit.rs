// SPDX-License-Identifier: MIT

//! `obd commit`: layers, read-write ones or any others, as one new layer.

use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    Stack,
    StackArgs, //
};
use crate::write::{
    HowArgs,
    WriteArgs, //
};
use obd_writer::source::ImageSource;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Write layers as one committed layer.
///
/// A read-write layer alone (--upper-data, --upper-index) becomes the layer to
/// put over those below it; a stack becomes one layer with all of its content.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    write: WriteArgs,

    #[command(flatten)]
    stack: StackArgs,
}

/// Runs `obd commit`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let WriteArgs { output, how } = &args.write;
    write(&args.stack, output, how, json, interrupted)
}

/// Writes the layers of `stack` as one, to `output`.
pub(crate) fn write(
    stack: &StackArgs,
    output: &Path,
    how: &HowArgs,
    json: bool,
    interrupted: &Arc<AtomicBool>,
) -> Result<()> {
    let stacked = match stack.open(interrupted)? {
        Stack::Image(stacked) => stacked,
        Stack::ZFile(path, _) => {
            return Err(Error::Source {
                path,
                reason: "a zfile, but no layer: export it, then convert that".into(),
            });
        }
    };
    let source = ImageSource::new(&stacked.image);
    let parent = source.parent_uuid().try_into().ok();
    how.write(output, &source, parent, json, interrupted, |error| {
        stacked.error(error)
    })
}
