// SPDX-License-Identifier: MIT

//! Writes overlaybd layers.
//!
//! [`commit`] takes a [`Source`] (a read-write layer, a stack of layers, a
//! sparse file, a raw image), lays what it holds out as one committed LSMT
//! layer, compresses that into a zfile, wraps it in tar if wanted, and appends
//! the result to a [`Sink`]. [`create`] makes an empty read-write layer.
//!
//! # What the bytes depend on
//!
//! On which ranges of the image hold data, zeros or nothing, on the data, and
//! on [`Options`] but for the number of threads; on nothing else. How a source
//! cuts its ranges into segments does not show. Upstream's commit of the same
//! ranges gives the same LSMT bytes, unless a run longer than 8 MiB was written
//! in pieces that are no multiple of 32 KiB: there it cuts the index elsewhere.
//!
//! # Memory
//!
//! About 2 MiB per thread, 4 bytes per block (the jump table comes last but one
//! in the file), 24 bytes per [`source::Range`] the source lists, and 40 bytes
//! per segment, of which there may be [`obd_core::lsmt::MAX_SEGMENTS`].
//!
//! # Layout
//!
//! * [`source`] where content comes from, [`sink`] where layers go.
//! * `content` the LSMT file before compression, addressable at random.
//! * `pipeline` threads that read and compress batches of blocks, in order.
//! * `codec` the compressors; `lsmt`, `zfile`, `tar` the bytes of the formats.

#![deny(unsafe_code)]

mod codec;
mod commit;
mod content;
mod create;
mod error;
mod lsmt;
mod options;
mod pipeline;
pub mod sink;
pub mod source;
mod tar;
mod zfile;

pub use commit::{
    Checkpoint,
    Prepared,
    commit, //
};
pub use create::{
    Kind,
    create, //
};
pub use error::{
    Error,
    TargetError, //
};
pub use options::{
    Compression,
    Options,
    Stats, //
};
pub use sink::{
    FileSink,
    Sink, //
};
pub use source::Source;
pub use zfile::Algorithm;
