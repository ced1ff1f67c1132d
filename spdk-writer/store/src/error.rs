// SPDX-License-Identifier: MIT

//! What can go wrong.

use crate::format::Invalid;
use std::io;

/// Why something could not be done with a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device failed.
    #[error("{0}")]
    Device(#[from] obd_engine::Error),
    /// There is no store.
    #[error("{device}: no layer store: {first}; {second}")]
    NoStore {
        /// The device's name.
        device: String,
        /// What is wrong with the first superblock.
        first: Invalid,
        /// What is wrong with the second.
        second: Invalid,
    },
    /// A store cannot be made there.
    #[error("{device}: cannot hold a layer store: {reason}")]
    Unfit {
        /// The device's name.
        device: String,
        /// Why not.
        reason: String,
    },
    /// There is not as much space in one piece.
    #[error(
        "no room for {wanted} bytes in one piece, {free} bytes are free, {largest} of them together"
    )]
    Full {
        /// Bytes that were wanted.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// The largest of the pieces they are in, bytes.
        largest: u64,
    },
    /// There is no interrupted commit of the same.
    #[error(
        "nothing to go on with: {}",
        if *other {
            "what was interrupted is another commit (its source, options or interval differ)"
        } else {
            "no commit was interrupted"
        }
    )]
    NothingToResume {
        /// Whether there is one of something else.
        other: bool,
    },
    /// There are as many layers as an image can have.
    #[error("{0} layers are all an image can have: merge some")]
    TooMany(usize),
    /// There are no such layers.
    #[error("there are no layers {start}..{end}, but {count} layers")]
    NoLayers {
        /// First layer that was named.
        start: usize,
        /// The one behind the last.
        end: usize,
        /// How many there are.
        count: usize,
    },
    /// An earlier superblock may or may not have become durable.
    #[error("an earlier change failed half-way: open the store again")]
    Uncertain,
    /// A layer's name is too long, or has a NUL.
    #[error("{0:?} cannot be a layer's name: 64 bytes at most, no NUL")]
    Name(String),
    /// A layer cannot be read back.
    #[error("layer {layer}: {error}")]
    Layer {
        /// Its place in the stack.
        layer: usize,
        /// What is wrong with it.
        error: obd_core::Error<io::Error>,
    },
    /// The layers make no image.
    #[error("{0}")]
    Image(obd_core::Error<io::Error>),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Device(error) => error.into(),
            Error::Full { .. } => io::Error::new(io::ErrorKind::StorageFull, error),
            other => io::Error::other(other),
        }
    }
}

/// Why a commit failed; `E` is the error of its source.
#[derive(Debug, thiserror::Error)]
pub enum CommitError<E> {
    /// The store or its device.
    #[error("{0}")]
    Store(#[from] Error),
    /// The source, or writing.
    #[error("{0}")]
    Write(#[from] obd_writer::Error<E>),
}
