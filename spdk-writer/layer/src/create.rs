// SPDX-License-Identifier: MIT

//! Empty read-write layers.

use crate::error::TargetError;
use crate::lsmt::{
    self,
    Label,
    Part, //
};
use crate::sink::{
    FileSink,
    Sink, //
};
use obd_core::SECTOR;
use std::path::{
    Path,
    PathBuf, //
};
use uuid::Uuid;

/// How a read-write layer keeps what is written to it.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Data in the order it was written, and a log of segments in this file.
    Log(PathBuf),
    /// Data at its own address, holes for the rest.
    Sparse,
}

/// Makes an empty read-write layer for an image of `size` bytes (0: that of the
/// layers below), over the layer `parent`, and returns its UUID. Both files are
/// durable when this returns; neither is there if it fails.
///
/// # Errors
///
/// [`TargetError`]; files that exist are never replaced.
pub fn create(
    data: &Path,
    kind: &Kind,
    size: u64,
    parent: Option<Uuid>,
) -> Result<Uuid, TargetError> {
    if !size.is_multiple_of(SECTOR) || size / SECTOR > lsmt::MAX_LBA {
        return Err(TargetError::BadSize {
            path: data.into(),
            size,
        });
    }
    let uuid = Uuid::new_v4();
    let label = Label {
        virtual_size: size,
        uuid: lsmt::uuid_text(uuid),
        parent: lsmt::uuid_text(parent.unwrap_or(Uuid::nil())),
        message: Vec::new(),
    };
    match kind {
        Kind::Sparse => {
            let len = size + lsmt::SPACE as u64;
            write(data, Part::SparseData, &label, Some(len))?;
        }
        Kind::Log(index) => {
            write(index, Part::Log, &label, None)?;
            if let Err(error) = write(data, Part::Data, &label, None) {
                // Made above, so it is nobody else's; that it stays behind is
                // no news beside the error that there is.
                let _ = std::fs::remove_file(index);
                return Err(error);
            }
        }
    }
    Ok(uuid)
}

/// A file of nothing but a header, `len` bytes long if that is more.
fn write(path: &Path, part: Part, label: &Label, len: Option<u64>) -> Result<(), TargetError> {
    let index_offset = match part {
        Part::Log => lsmt::SPACE as u64,
        _ => 0,
    };
    let mut sink = FileSink::create(path, false)?;
    let written = sink
        .append(&lsmt::header(part, label, index_offset, 0))
        .and_then(|()| len.map_or(Ok(()), |len| sink.set_len(len)))
        .and_then(|()| sink.finish());
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => TargetError::Exists(path.into()),
        _ => TargetError::Io {
            what: "write",
            path: path.into(),
            error,
        },
    })
}
