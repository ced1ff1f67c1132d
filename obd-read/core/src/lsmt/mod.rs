// SPDX-License-Identifier: GPL-2.0 OR MIT

//! LSMT: one layer of an image, as a list of segments and their data.
//!
//! Header (4096) | data in sectors of 512 bytes | segments, 16 bytes each |
//! trailer (4096); the whole often inside a zfile. A layer that is still
//! written to has its segments in a file of their own, as a log. Source:
//! `overlaybd/src/overlaybd/lsmt/{file,index}.cpp`.
//!
//! There are no checksums here, so everything that the format lets one check is
//! checked: order, bounds, and in committed layers that the segments account
//! for every sector of the data area, no more and no less.

mod entries;
mod header;
mod layer;
mod log;
mod segment;

pub use header::Label;
pub use layer::{
    Kind,
    Layer,
    LayerInfo,
    Opened, //
};
pub use segment::{
    MAX_LEN,
    Segment, //
};

/// Most segments in the index of a sealed layer, padding included, as upstream.
pub const MAX_SEGMENTS: u64 = 1_000_000;

/// Most sectors of an image: addresses have 50 bits on disk.
pub const MAX_SECTORS: u64 = 1 << 50;

/// Most entries in the log of a read-write layer, as upstream.
pub const MAX_LOG_ENTRIES: u64 = 128_000_000;
