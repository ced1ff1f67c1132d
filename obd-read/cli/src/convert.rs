// SPDX-License-Identifier: MIT

//! `obd convert`: a raw image as a layer.

use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    Place,
    fingerprint, //
};
use crate::write::WriteArgs;
use obd_core::Source;
use obd_host::File;
use obd_writer::source::RawSource;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Write a raw image, a file or a block device, as a layer.
///
/// Holes of a file are left out: over other layers, those show there.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    raw: RawArgs,

    #[command(flatten)]
    write: WriteArgs,
}

/// A raw image.
#[derive(clap::Args)]
pub(crate) struct RawArgs {
    /// The image.
    #[arg(value_name = "RAW")]
    image: PathBuf,

    /// Take holes for data.
    #[arg(long)]
    full: bool,
}

impl RawArgs {
    /// The image's path.
    pub(crate) fn path(&self) -> &Path {
        &self.image
    }

    /// Opens the image; its fingerprint, too.
    ///
    /// # Errors
    ///
    /// What the system says; what is no raw image.
    pub(crate) fn open(&self) -> Result<(RawSource, [u8; 16])> {
        let path = &self.image;
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
        let fingerprint = fingerprint(std::iter::once(Place::whole(path.clone())))?;
        let source = match self.full {
            true => RawSource::full(file),
            false => RawSource::sparse(file),
        };
        Ok((source, fingerprint))
    }
}

/// Runs `obd convert`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let (source, _) = args.raw.open()?;
    let WriteArgs { output, how } = &args.write;
    how.write(output, &source, None, json, interrupted, |error| {
        Error::io("read", args.raw.path(), error)
    })
}
