// SPDX-License-Identifier: GPL-2.0 OR MIT

//! overlaybd images: zfile, LSMT and the tar wrapper around them, merged into
//! one index and read as one block device.
//!
//! The same files are a crate of the kernel (`--cfg kernel`) and a crate on the
//! host. Nothing here knows an operating system: bytes come from a [`Source`],
//! memory, checksums and codecs from a [`Platform`]. Memory is taken when an
//! image is opened, never when it is read, and always through
//! [`Memory::filled`], which may fail.
//!
//! Everything read from a file is taken for hostile: a wrong value ends in an
//! [`Error`] that says where it lies, and no file makes this crate take more
//! memory than the bounds below.
//!
//! # Bounds
//!
//! | what | bytes of memory |
//! |---|---|
//! | jump table, for good | 2.5 per block |
//! | jump table, while opening | 4 per block and its stored bytes more if it is stored compressed |
//! | blocks of a zfile | at most one per 5 stored bytes (per stored byte without checksums) |
//! | index of a layer, opening | 48 per segment present, [`lsmt::MAX_SEGMENTS`] at most |
//! | index of an image, and a log, merging | 64 per segment of the layers, 32 per layer |
//! | all layers of an image, opening | what is left of the [`budget::Budget`], asked first |
//! | index of an image, for good | 13 per segment after merging (17 from 1 TiB up) |
//!
//! # Layout
//!
//! * [`tar`] finds the payload of a registry blob.
//! * [`zfile`] reads compressed, checksummed blocks at random.
//! * [`lsmt`] opens one layer: its header, trailer and list of segments.
//! * [`index`] merges the layers' segments and looks ranges up.
//! * [`image`] puts them together: [`Image::read_at`].
//! * [`record`] is the log of a disk that is written to: no format of overlaybd's.

// The kernel's build passes `no_std` to every crate by itself.
#![cfg_attr(all(not(kernel), not(test)), no_std)]
#![forbid(unsafe_code)]

pub mod budget;
pub mod crc32c;
pub mod error;
pub mod image;
pub mod index;
mod le;
pub mod lsmt;
pub mod lz4;
pub mod platform;
pub mod record;
pub mod scratch;
pub mod source;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod zfile;

pub use budget::Budget;
pub use error::{
    Error,
    Fault,
    LayerError, //
};
pub use image::Image;
pub use lsmt::Layer;
pub use platform::{
    Codec,
    Crc32c,
    Memory,
    Platform, //
};
pub use scratch::Scratch;
pub use source::{
    Source,
    Window, //
};
pub use zfile::ZFile;

/// Bytes in a sector, the unit of every LSMT address.
pub const SECTOR: u64 = 512;
