// SPDX-License-Identifier: MIT

//! The bytes of zfile: headers and trailers.
//!
//! Source: `overlaybd/src/overlaybd/zfile/zfile.cpp`.

use obd_core::Crc32c;
use obd_host::Hardware;

/// Bytes of a header, and of a trailer.
pub(crate) const SPACE: usize = 512;

/// Bytes of the checksum behind a block.
pub(crate) const CRC: usize = 4;

/// The seed of block checksums (`NOI_WELL_KNOWN_PRIME` upstream).
pub(crate) const CRC_SEED: u32 = 100_007;

/// What a block can grow, bytes: more than the worst case of any compressor.
pub(crate) const GROWTH: usize = 512;

/// The longest stored block upstream's readers take, bytes: longer ones, which
/// only incompressible blocks of 64 KiB become, they refuse with `ERANGE`.
pub(crate) const LONGEST_UPSTREAM: u32 = 65_536;

const MAGIC: [u8; 24] = *b"ZFile\0\x01\0tuji.yyf@Alibaba";

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// LZ4 block format.
    Lz4 = 1,
    /// One Zstandard frame of level 3 per block.
    Zstd = 2,
}

/// Which header or trailer: its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Part {
    /// The header of a file in the making.
    Draft = 0x13,
    /// The trailer.
    Trailer = 0x16,
    /// The header with the final fields: readers need not know the file's size.
    Header = 0x1b,
}

/// What a header or trailer says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) index_offset: u64,
    /// Number of blocks.
    pub(crate) blocks: u64,
    /// Bytes before compression.
    pub(crate) original_size: u64,
    /// CRC-32C of the jump table.
    pub(crate) index_crc: u32,
    pub(crate) block_size: u32,
    pub(crate) algorithm: Algorithm,
    /// Whether a checksum follows every block.
    pub(crate) checksums: bool,
}

impl Header {
    /// As stored.
    pub(crate) fn encode(&self, part: Part) -> [u8; SPACE] {
        let mut bytes = [0; SPACE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(24, &96u32.to_le_bytes());
        put(32, &(part as u64).to_le_bytes());
        put(40, &self.index_offset.to_le_bytes());
        put(48, &self.blocks.to_le_bytes());
        put(56, &self.original_size.to_le_bytes());
        put(64, &self.index_crc.to_le_bytes());
        put(72, &self.block_size.to_le_bytes());
        put(76, &[self.algorithm as u8]);
        put(88, &[u8::from(self.checksums)]);
        // The digest is that of all 512 bytes with itself taken for zero.
        let digest = Hardware::crc32c(0, &bytes);
        bytes[28..32].copy_from_slice(&digest.to_le_bytes());
        bytes
    }
}
