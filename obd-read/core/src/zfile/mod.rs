// SPDX-License-Identifier: GPL-2.0 OR MIT

//! zfile: a file in independently compressed blocks, with a table of where each
//! lies.
//!
//! Header (512) | blocks, each with its CRC-32C | jump table | trailer (512).
//! Nothing is aligned. Source: `overlaybd/src/overlaybd/zfile/zfile.cpp`.
//!
//! What counts is the trailer. The header, even one written again with the
//! final fields, must agree with it: a file without its trailer, or with
//! something behind it, is not whole.

mod header;
mod jump;
mod open;
mod read;

pub use header::Algorithm;

use crate::platform::{
    Crc32c,
    Platform, //
};
use crate::scratch::Needs;
use crate::source::{
    Source,
    Window, //
};
use header::{
    Header,
    Options, //
};
use jump::JumpTable;

/// Bytes of the CRC-32C behind a block.
const CRC_SIZE: u32 = 4;

/// The seed of block checksums (`NOI_WELL_KNOWN_PRIME` upstream).
const CRC_SEED: u32 = 100_007;

/// What a block can grow beyond its decoded size, bytes: upstream's builder has
/// that much room, more than either codec's worst case.
const GROWTH: u32 = 512;

/// An open zfile.
pub struct ZFile<S, P: Platform> {
    file: Window<S>,
    table: JumpTable<P::Memory>,
    options: Options,
    /// Decoded size, bytes.
    size: u64,
    info: Info,
}

/// What a zfile says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Decoded size, bytes.
    pub original_size: u64,
    /// Stored size, bytes.
    pub stored_size: u64,
    /// Decoded bytes per block.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// How blocks are compressed.
    pub algorithm: Algorithm,
    /// Whether every block has a checksum.
    pub verify: bool,
    /// Whether header, trailer and jump table have checksums.
    pub digest: bool,
    /// Whether the header holds the final fields, too.
    pub header_overwritten: bool,
    /// Whether the jump table is stored compressed.
    pub index_compressed: bool,
    /// Bytes from the beginning to the jump table.
    pub index_offset: u64,
    /// Flags of the header, as stored.
    pub flags_header: u64,
    /// Flags of the trailer, as stored.
    pub flags_trailer: u64,
}

/// Where a block is stored, from the beginning of the zfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, checksum included.
    pub len: u32,
}

impl<S: Source, P: Platform> ZFile<S, P> {
    /// What the file says of itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Decoded size, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Decoded bytes per block; the last one may be shorter.
    pub fn block_size(&self) -> usize {
        1 << self.options.shift
    }

    /// The stored file.
    pub fn file(&self) -> &Window<S> {
        &self.file
    }

    /// Memory the jump table takes, bytes.
    pub fn memory(&self) -> usize {
        self.table.memory()
    }

    /// Where block `number` is stored; [`None`] beyond the last one.
    #[inline]
    pub fn extent(&self, number: u64) -> Option<Extent> {
        let (offset, len) = self.table.get(number)?;
        Some(Extent { offset, len })
    }

    /// Decoded size of block `number`, bytes; 0 beyond the last one.
    #[inline]
    pub fn decoded_len(&self, number: u64) -> usize {
        let start = number.saturating_mul(self.block_size() as u64);
        // At most a block: fits.
        self.size
            .saturating_sub(start)
            .min(self.block_size() as u64) as usize
    }

    /// What reading this file needs of a [`Scratch`](crate::Scratch).
    pub fn needs(&self) -> Needs {
        Needs {
            stored: self.table.longest() as usize,
            block: self.block_size(),
            lz4: self.options.algorithm == Algorithm::Lz4,
            zstd: self.options.algorithm == Algorithm::Zstd,
        }
    }
}

/// Whether a file that begins with `bytes` (32 or more) is a zfile.
pub fn is_zfile(bytes: &[u8]) -> bool {
    Header::is_zfile(bytes)
}

/// Bytes of what is stored on `device`, such as a raw partition: of the zfile at
/// its start if that was written again with the final fields, else all.
///
/// # Errors
///
/// What reading the device gives.
pub fn size_on_device<C: Crc32c, S: Source>(device: &S) -> Result<u64, S::Error> {
    let size = device.size();
    let mut head = [0; header::SIZE];
    if size < head.len() as u64 {
        return Ok(size);
    }
    device.read_exact_at(0, &mut head)?;
    Ok(stored_size::<C>(&head).map_or(size, |stored| stored.min(size)))
}

fn stored_size<C: Crc32c>(bytes: &[u8; header::SIZE]) -> Option<u64> {
    let header = Header::parse::<C>(bytes)?;
    if !header.is_header() || !header.is_overwritten() || header.digest().is_err() {
        return None;
    }
    header
        .index_offset
        .checked_add(header.index_bytes()?)?
        .checked_add(header::SIZE as u64)
}
