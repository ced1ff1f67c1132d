// SPDX-License-Identifier: MIT

//! How a layer is written, and what is said of it afterwards.

use crate::lsmt;
use crate::zfile::Algorithm;
use std::num::NonZero;
use uuid::Uuid;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// With what.
    pub algorithm: Algorithm,
    /// In blocks of how many bytes: 4, 8, 16, 32 or 64 KiB.
    pub block_size: u32,
    /// Whether every block has a CRC-32C.
    pub checksums: bool,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Lz4,
            block_size: 4096,
            checksums: true,
        }
    }
}

/// How a layer is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stored as it is if [`None`].
    pub compression: Option<Compression>,
    /// Whether it is wrapped in tar, as a registry wants it.
    pub tar: bool,
    /// Its UUID; nil by default, so that equal layers are equal bytes.
    pub uuid: Uuid,
    /// The UUID of the layer below, 36 characters as stored in it; nil by
    /// default.
    pub parent_uuid: [u8; 36],
    /// The commit message, at most 255 bytes, none of them NUL.
    pub message: String,
    /// Threads that read and compress, [`Options::MAX_THREADS`] at most. One does it in the caller's
    /// thread; more leave writing alone to that one.
    pub threads: NonZero<usize>,
}

impl Options {
    /// Most threads.
    pub const MAX_THREADS: NonZero<usize> = NonZero::new(256).unwrap();
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compression: Some(Compression::default()),
            tar: false,
            uuid: Uuid::nil(),
            parent_uuid: lsmt::uuid_text(Uuid::nil()),
            message: String::new(),
            threads: NonZero::<usize>::MIN,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Size of the image, bytes.
    pub virtual_size: u64,
    /// Segments of the index.
    pub segments: u64,
    /// Those of them that are zeros.
    pub zeroed_segments: u64,
    /// Entries of the index, padding included.
    pub index_entries: u64,
    /// Bytes of data.
    pub data: u64,
    /// Bytes of the LSMT file, before compression.
    pub content: u64,
    /// Bytes that were written.
    pub stored: u64,
    /// Compressed blocks, 0 if there are none.
    pub blocks: u64,
    /// Stored bytes of the longest block, checksum included.
    pub longest_block: u32,
    /// Blocks that became longer than 64 KiB, which upstream's readers refuse:
    /// only blocks of 64 KiB can.
    pub oversized_blocks: u64,
    /// Bytes of data that were copied from the source to a buffer of ours
    /// before they were compressed or written; [`Stats::data`] at most.
    pub copied: u64,
    /// Bytes of the layer as it is stored that were copied from where they were
    /// made: all that the sink was passed, and not made in memory it lent, and what
    /// it moved there.
    pub copied_stored: u64,
}
