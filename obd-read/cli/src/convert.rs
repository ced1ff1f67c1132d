// SPDX-License-Identifier: MIT

//! `obd convert`: a raw image as a layer.

use crate::error::{
    Error,
    Result, //
};
use crate::write::WriteArgs;
use obd_core::Source;
use obd_host::File;
use obd_writer::source::RawSource;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Write a raw image, a file or a block device, as a layer.
///
/// Holes of a file are left out: over other layers, those show there.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image.
    #[arg(value_name = "RAW")]
    image: PathBuf,

    /// Take holes for data.
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    write: WriteArgs,
}

/// Runs `obd convert`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let path = &args.image;
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let fail = |error| Error::io("read", path, error);
    let mut magic = [0; 4];
    if file.size() >= 4 {
        file.read_exact_at(0, &mut magic).map_err(fail)?;
    }
    let reason = match &magic {
        b"QFI\xfb" => "a qcow2 image: attach it with qemu-nbd, then convert that device",
        b"LSMT" | b"ZFil" => "a layer already: commit it",
        _ => "",
    };
    if !reason.is_empty() {
        return Err(Error::Source {
            path: path.into(),
            reason: reason.into(),
        });
    }
    let source = match args.full {
        true => RawSource::full(file),
        false => RawSource::sparse(file),
    };
    args.write.write(&source, None, json, interrupted, fail)
}
