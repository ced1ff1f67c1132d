// SPDX-License-Identifier: MIT

//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// Why a layer could not be written; `E` is the error of the
/// [`Source`](crate::Source).
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The source could not say what it holds.
    #[error("cannot list what the source holds: {0}")]
    Ranges(E),
    /// The source could not be read.
    #[error("cannot read {len} bytes at byte {offset} of the source: {error}")]
    Read {
        /// First byte of the image.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// What the source said.
        error: E,
    },
    /// A thread of the pipeline got no reader of the source.
    #[error("cannot set up a reader of the source: {0}")]
    Reader(E),
    /// A range that is empty, not on sector boundaries, beyond the image, or
    /// not behind the one before it.
    #[error("the source lists bytes {start}..{end} of an image of {size} bytes after byte {last}")]
    BadRange {
        /// First byte of the range.
        start: u64,
        /// The byte behind it.
        end: u64,
        /// Where the range before it ended.
        last: u64,
        /// Size of the image, bytes.
        size: u64,
    },
    /// A size that is no multiple of 512 bytes, or that the format has no
    /// room for.
    #[error("an image cannot have {0} bytes")]
    BadSize(u64),
    /// More segments than any reader takes.
    #[error("{0} segments or more, a layer can have 999936")]
    TooManySegments(u64),
    /// An option that cannot be used.
    #[error("{name} cannot be {value}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The compressor failed on a block: out of memory.
    #[error("cannot compress the block at byte {0} of the layer")]
    Compress(u64),
    /// There is no memory for the jump table.
    #[error("no memory for {0} bytes of jump table")]
    OutOfMemory(u64),
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A checkpoint that is not one of this layer.
    #[error("the layer cannot go on at byte {stored}: {reason}")]
    Checkpoint {
        /// Bytes that were stored.
        stored: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// The output could not be written.
    #[error("cannot write {len} bytes at byte {offset} of the layer: {error}")]
    Write {
        /// First byte of the layer's file.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// What the sink said.
        error: io::Error,
    },
    /// The output was written, but could not be made durable or put in place.
    #[error("cannot finish the layer: {0}")]
    Finish(io::Error),
    /// The caller's progress function asked for it.
    #[error("interrupted")]
    Interrupted,
}

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Something has that name already.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// What has that name is no file, and is never replaced.
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// A size that is no multiple of 512 bytes, or that the format has no
    /// room for.
    #[error("{}: an image cannot have {size} bytes", path.display())]
    BadSize {
        /// The layer's data file.
        path: PathBuf,
        /// The size.
        size: u64,
    },
    /// The system refused.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// What was tried, an infinitive.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}
