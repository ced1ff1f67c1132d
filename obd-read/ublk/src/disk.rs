// SPDX-License-Identifier: MIT

//! What is on a disk: an image of layers, or the content of one zfile.

use obd_core::error::{
    Fault,
    LayerError,
    Place,
    Reason, //
};
use obd_core::index::Contents;
use obd_core::scratch::Needs;
use obd_core::{
    Error,
    Image,
    Layer,
    SECTOR,
    Window,
    ZFile, //
};
use obd_host::{
    File,
    Host, //
};
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

/// Why the image could not be read.
pub(crate) type ReadError = LayerError<io::Error>;

/// An open image, or an open zfile of something else.
pub enum Content {
    /// Layers, one over the other.
    Image(Image<File, Host, Vec<Layer<File, Host>>>),
    /// One zfile; what is on the disk is its content.
    ZFile(ZFile<File, Host>),
}

/// What is on a disk, and the files it comes from.
pub struct Disk {
    content: Content,
    paths: Vec<PathBuf>,
}

/// A part of the disk, in one piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes.
    pub(crate) len: usize,
    /// What is there; zeros without.
    pub(crate) data: Option<Position>,
}

/// A place in a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The blob, counted from the bottom.
    pub(crate) blob: usize,
    /// First byte in its (decoded) content.
    pub(crate) offset: u64,
}

/// How a blob's content is stored.
pub(crate) enum Stored<'a> {
    /// As it is.
    Plain(&'a Window<File>),
    /// In compressed blocks.
    Compressed(&'a ZFile<File, Host>),
}

impl Disk {
    /// A disk of `content`, whose blobs, bottom to top, have those paths.
    pub fn new(content: Content, paths: Vec<PathBuf>) -> Self {
        Self { content, paths }
    }

    /// Size in sectors; the last one of a zfile may be filled up with zeros.
    pub fn sectors(&self) -> u64 {
        match &self.content {
            Content::Image(image) => image.size() / SECTOR,
            Content::ZFile(file) => file.size().div_ceil(SECTOR),
        }
    }

    /// What decoding needs.
    pub(crate) fn needs(&self) -> Needs {
        match &self.content {
            Content::Image(image) => image.needs(),
            Content::ZFile(file) => file.needs(),
        }
    }

    /// The path of blob `blob`, or what stands for all of them.
    pub(crate) fn path(&self, blob: Option<usize>) -> &Path {
        blob.and_then(|blob| self.paths.get(blob))
            .map_or(Path::new("image"), PathBuf::as_path)
    }

    /// The open files of the blobs, bottom to top.
    pub(crate) fn files(&self) -> Vec<&std::fs::File> {
        match &self.content {
            Content::Image(image) => image
                .layers()
                .iter()
                .map(|layer| layer.file().source().get())
                .collect(),
            Content::ZFile(zfile) => vec![zfile.file().source().get()],
        }
    }

    /// How blob `blob` is stored.
    pub(crate) fn stored(&self, blob: usize) -> Option<Stored<'_>> {
        match &self.content {
            Content::Image(image) => stored(image.layers().get(blob)?),
            Content::ZFile(file) => (blob == 0).then_some(Stored::Compressed(file)),
        }
    }

    /// What is at byte `offset`, and how far it reaches of `len` bytes: whole
    /// sectors of the disk.
    pub(crate) fn part(&self, offset: u64, len: usize) -> Result<Part, ReadError> {
        match &self.content {
            Content::Image(image) => {
                let piece = image.pieces(offset, len as u64)?.next();
                let piece = piece.ok_or(Error::OutOfRange {
                    offset,
                    len: len as u64,
                    size: image.size(),
                })?;
                Ok(Part {
                    // A piece of the range, so no longer than it.
                    len: (piece.len.saturating_mul(SECTOR)).min(len as u64) as usize,
                    data: match piece.what {
                        Contents::Hole | Contents::Zeros => None,
                        Contents::Data { layer, sector } => Some(Position {
                            blob: layer.into(),
                            // A data sector lies inside of its layer: no overflow.
                            offset: sector.saturating_mul(SECTOR),
                        }),
                    },
                })
            }
            Content::ZFile(file) => {
                let there = file.size().saturating_sub(offset).min(len as u64) as usize;
                Ok(match there {
                    0 => Part { len, data: None },
                    len => Part {
                        len,
                        data: Some(Position { blob: 0, offset }),
                    },
                })
            }
        }
    }
}

fn stored(layer: &Layer<File, Host>) -> Option<Stored<'_>> {
    match layer.zfile() {
        Some(zfile) => Some(Stored::Compressed(zfile)),
        None => layer.plain().map(Stored::Plain),
    }
}

/// An index that leads out of a blob: opening it should have noticed.
pub(crate) fn beyond(blob: usize) -> ReadError {
    LayerError {
        layer: Some(blob),
        error: Error::Damaged(Fault {
            place: Place::Image,
            reason: Reason::BeyondData,
        }),
    }
}
