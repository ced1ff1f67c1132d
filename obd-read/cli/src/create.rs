// SPDX-License-Identifier: MIT

//! `obd create`: an empty read-write layer, or a read-write disk.

use crate::device::Engine;
use crate::error::{
    Error,
    Result, //
};
use crate::ui;
use crate::writable;
use crate::write;
use obd_writer::{
    Kind,
    TargetError, //
};
use serde::Serialize;
use std::path::{
    Path,
    PathBuf, //
};
use uuid::Uuid;

/// Make an empty read-write layer, or the folder of a read-write disk (--rw).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its data file; the disk's folder.
    #[arg(value_name = "DATA|DIR")]
    data: PathBuf,

    /// Its index file.
    #[arg(value_name = "INDEX", required_unless_present_any = ["sparse", "rw"])]
    index: Option<PathBuf>,

    /// Make the folder of a disk that is written to (obd attach --writable).
    #[arg(long, conflicts_with_all = ["index", "sparse", "parent_uuid"])]
    rw: bool,

    /// What is below the disk: layers, bottom to top, or one image configuration
    /// (*.json). They must stay as they are.
    #[arg(long, requires = "rw", value_name = "CONFIG|LAYER", num_args = 1..)]
    lower: Vec<PathBuf>,

    /// Have the disk's layers in the layer store on this block device, or in this file, and
    /// not in files of the folder: past file system and page cache. The store must be empty
    /// (obd store init), and is the disk's alone.
    #[arg(long, requires = "rw", value_name = "DEVICE")]
    store: Option<String>,

    /// Who writes to the store: the kernel's driver reads it from the block device, so it
    /// can be no engine that takes the controller.
    #[arg(long, value_enum, requires = "store", default_value_t = Engine::Uring)]
    engine: Engine,

    /// Keep data at its own address in a file with holes, without an index.
    #[arg(long, conflicts_with = "index")]
    sparse: bool,

    /// Size of the image: bytes, or a number and K, M, G or T (of 1024). 0 is
    /// that of the layers below.
    #[arg(short, long, value_parser = size, required_unless_present = "lower")]
    size: Option<u64>,

    /// The UUID of the layer below.
    #[arg(long, value_name = "UUID")]
    parent_uuid: Option<Uuid>,
}

/// Bytes, as they are given on the command line.
pub(crate) fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        other => return Err(format!("no such unit: {other}")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".into())
}

/// What was made.
#[derive(Serialize)]
struct Created<'a> {
    data: &'a Path,
    index: Option<&'a Path>,
    uuid: String,
    virtual_size: u64,
}

/// Runs `obd create`.
pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let size = args.size.unwrap_or(0);
    if args.rw {
        let store = match (&args.store, args.engine) {
            (Some(device), Engine::Uring) => Some(device.as_str()),
            (Some(_), Engine::Vfio | Engine::Spdk) => {
                return Err(Error::Layer {
                    path: args.data.clone(),
                    reason: "the engine takes the controller from the kernel, whose driver is to \
                             read the layers: --engine uring"
                        .into(),
                });
            }
            (None, _) => None,
        };
        return writable::create(&args.data, size, &args.lower, store, json);
    }
    let kind = match &args.index {
        Some(index) => Kind::Log(index.clone()),
        None => Kind::Sparse,
    };
    let made = obd_writer::create(&args.data, &kind, size, args.parent_uuid);
    let uuid = made.map_err(|error| match error {
        // There is no --force here: what was written to a layer is there once.
        TargetError::Exists(path) => Error::Present(path),
        other => write::target_error(other),
    })?;
    let uuid = uuid.hyphenated().to_string().to_uppercase();
    if json {
        crate::print_json(&Created {
            data: &args.data,
            index: args.index.as_deref(),
            uuid,
            virtual_size: size,
        });
    } else {
        ui::print(&format!("{}: layer {uuid}", args.data.display()));
    }
    Ok(())
}
