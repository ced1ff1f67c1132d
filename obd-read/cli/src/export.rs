// SPDX-License-Identifier: MIT

//! `obd export`: an image as one raw file.

use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    self,
    Stack,
    StackArgs,
    ZFile, //
};
use crate::output::Output;
use crate::ui::Progress;
use obd_core::error::LayerError;
use obd_core::index::Contents;
use obd_core::{
    Image,
    Layer,
    Scratch,
    Source, //
};
use obd_host::Host;
use serde::Serialize;
use std::io;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Bytes read and written at a time.
const CHUNK: usize = 4 << 20;

/// Decode layers to a raw image, or a zfile to its content.
///
/// Holes and zeros of the image become holes of the file.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file to write.
    #[arg(short, long, value_name = "RAW")]
    output: PathBuf,

    /// Replace the file if it exists.
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    stack: StackArgs,
}

/// What was written.
#[derive(Serialize)]
pub(crate) struct Written<'a> {
    pub(crate) output: &'a Path,
    /// Size, bytes.
    pub(crate) size: u64,
    /// Bytes that are no holes.
    pub(crate) data: u64,
}

/// Runs `obd export`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let (size, data) = match args.stack.open(interrupted)? {
        Stack::ZFile(path, zfile) => {
            let output = Output::create(&args.output, zfile.size(), args.force)?;
            export_zfile(&path, &zfile, &output, interrupted)?;
            output.finish()?;
            (zfile.size(), zfile.size())
        }
        Stack::Image(stacked) => {
            let size = stacked.image.size();
            let output = Output::create(&args.output, size, args.force)?;
            let data = export_image(
                &stacked.image,
                |error| stacked.error(error),
                &output,
                interrupted,
            )?;
            output.finish()?;
            (size, data)
        }
    };
    if json {
        crate::print_json(&Written {
            output: &args.output,
            size,
            data,
        });
    }
    Ok(())
}

fn export_zfile(
    path: &Path,
    zfile: &ZFile,
    output: &Output,
    interrupted: &Arc<AtomicBool>,
) -> Result<()> {
    let fail = |error| open::format_error(path, error);
    let mut scratch = Scratch::new(zfile.needs()).map_err(|error| fail(error.into()))?;
    let mut progress = Progress::new("export", zfile.size(), interrupted);
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    while at < zfile.size() {
        let len = (zfile.size() - at).min(CHUNK as u64);
        let part = &mut buf[..len as usize];
        zfile.read_at(at, part, &mut scratch).map_err(fail)?;
        output.write(at, part)?;
        at += len;
        progress.advance(len)?;
    }
    Ok(())
}

/// Writes what is no hole and returns how many bytes that are.
pub(crate) fn export_image<S: Source<Error = io::Error>>(
    image: &Image<S, Host, Vec<Layer<S, Host>>>,
    fail: impl Fn(LayerError<io::Error>) -> Error,
    output: &Output,
    interrupted: &Arc<AtomicBool>,
) -> Result<u64> {
    let mut scratch =
        Scratch::new(image.needs()).map_err(|e| fail(obd_core::Error::from(e).into()))?;
    let is_data = |what: Contents| !matches!(what, Contents::Hole | Contents::Zeros);
    let pieces = || image.pieces(0, image.size()).map_err(&fail);
    // Holes take no time.
    let total = pieces()?.filter(|piece| is_data(piece.what));
    let total = total.map(|piece| piece.len * obd_core::SECTOR).sum();
    let mut progress = Progress::new("export", total, interrupted);
    let mut buf = vec![0; CHUNK];
    let mut copied = 0;
    let mut copy = |start: u64, end: u64| -> Result<()> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(CHUNK as u64);
            let part = &mut buf[..len as usize];
            image.read_at(at, part, &mut scratch).map_err(&fail)?;
            output.write(at, part)?;
            at += len;
            copied += len;
            progress.advance(len)?;
        }
        Ok(())
    };
    // Ranges without a hole are read at once, however many segments they have.
    let (mut start, mut end) = (0, 0);
    for piece in pieces()? {
        if !is_data(piece.what) {
            continue;
        }
        if piece.lba * obd_core::SECTOR != end {
            copy(start, end)?;
            start = piece.lba * obd_core::SECTOR;
        }
        end = (piece.lba + piece.len) * obd_core::SECTOR;
    }
    copy(start, end)?;
    Ok(copied)
}
