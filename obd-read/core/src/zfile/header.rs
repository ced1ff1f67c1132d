// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The header and trailer of a zfile.

use crate::error::{
    Reason,
    Unsupported, //
};
use crate::le;
use crate::platform::Crc32c;

/// Bytes of a header, and of a trailer.
pub(crate) const SIZE: usize = 512;

const MAGIC: [u8; 24] = *b"ZFile\0\x01\0tuji.yyf@Alibaba";

/// Header, as opposed to trailer.
const HEADER: u64 = 1 << 0;
/// A data file.
const DATA: u64 = 1 << 1;
/// Complete.
const SEALED: u64 = 1 << 2;
/// A header that was written again with the final fields.
const OVERWRITTEN: u64 = 1 << 3;
/// `digest` and `index_crc` are meant.
const DIGEST: u64 = 1 << 4;
/// The jump table is compressed.
const INDEX_COMPRESSED: u64 = 1 << 5;
/// All flags there are. Before digests came (v0.6.16), flags were partly
/// uninitialised memory, so the bits above say whether to believe those below.
const KNOWN: u64 = (1 << 6) - 1;

/// Largest block, bytes.
const MAX_BLOCK: u32 = 64 << 10;
/// Smallest block, bytes: a sector. The tools write 4 KiB and more.
const MIN_BLOCK: u32 = 512;

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// LZ4 block format.
    Lz4,
    /// One Zstandard frame per block.
    Zstd,
}

/// Header or trailer, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// All 64 bits.
    pub(crate) flags: u64,
    /// Bytes from the beginning of the zfile to the jump table.
    pub(crate) index_offset: u64,
    /// Entries of the jump table, or its bytes if it is compressed.
    pub(crate) index_size: u64,
    /// Decoded size, bytes.
    pub(crate) original_size: u64,
    /// CRC-32C of the stored jump table.
    pub(crate) index_crc: u32,
    /// Decoded bytes per block.
    pub(crate) block_size: u32,
    algorithm: u8,
    verify: u8,
    dict_size: u32,
    stored_digest: u32,
    computed_digest: u32,
}

impl Header {
    /// Whether `bytes` begin like a zfile.
    pub(crate) fn is_zfile(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC) && le::u64_at(bytes, 32) & HEADER != 0
    }

    /// The fields of a block with the right magic bytes.
    pub(crate) fn parse<C: Crc32c>(bytes: &[u8; SIZE]) -> Option<Self> {
        if !bytes.starts_with(&MAGIC) {
            return None;
        }
        let mut undigested = *bytes;
        if let Some(digest) = undigested.get_mut(28..32) {
            digest.fill(0);
        }
        Some(Self {
            flags: le::u64_at(bytes, 32),
            index_offset: le::u64_at(bytes, 40),
            index_size: le::u64_at(bytes, 48),
            original_size: le::u64_at(bytes, 56),
            index_crc: le::u32_at(bytes, 64),
            block_size: le::u32_at(bytes, 72),
            algorithm: le::u8_at(bytes, 76),
            dict_size: le::u32_at(bytes, 84),
            verify: le::u8_at(bytes, 88),
            stored_digest: le::u32_at(bytes, 28),
            computed_digest: C::crc32c(0, &undigested),
        })
    }

    /// Whether the flags are those of a header.
    pub(crate) fn is_header(&self) -> bool {
        self.flags & HEADER != 0
    }

    /// Whether the flags are those of the trailer of a complete file.
    pub(crate) fn is_trailer(&self) -> bool {
        self.flags & (HEADER | DATA | SEALED) == DATA | SEALED
    }

    /// Whether flags are partly uninitialised memory.
    fn is_uninitialised(&self) -> bool {
        self.flags & !KNOWN != 0
    }

    /// Whether the digest, and with it `index_crc`, is meant. If flags are
    /// uninitialised memory it takes a digest that fits to say so.
    ///
    /// # Errors
    ///
    /// A digest that does not fit.
    pub(crate) fn digest(&self) -> Result<bool, Reason> {
        if self.flags & DIGEST == 0 {
            return Ok(false);
        }
        if self.stored_digest == self.computed_digest {
            return Ok(true);
        }
        if self.is_uninitialised() {
            return Ok(false);
        }
        Err(Reason::Digest {
            stored: self.stored_digest,
            computed: self.computed_digest,
        })
    }

    /// Whether a header claims to hold the final fields. Uninitialised flags
    /// claim nothing.
    pub(crate) fn is_overwritten(&self) -> bool {
        self.flags & OVERWRITTEN != 0 && !self.is_uninitialised()
    }

    /// Whether the jump table is compressed. No file with uninitialised flags
    /// has one that is.
    pub(crate) fn index_compressed(&self) -> bool {
        self.flags & INDEX_COMPRESSED != 0 && !self.is_uninitialised()
    }

    /// Stored bytes of the jump table.
    pub(crate) fn index_bytes(&self) -> Option<u64> {
        match self.index_compressed() {
            true => Some(self.index_size),
            false => self.index_size.checked_mul(4),
        }
    }

    /// Number of blocks. The block size must have been checked.
    pub(crate) fn blocks(&self) -> u64 {
        match self.block_size {
            0 => 0,
            size => self.original_size.div_ceil(u64::from(size)),
        }
    }

    /// The options that decide how blocks are read.
    pub(crate) fn options(&self) -> Result<Options, OptionsError> {
        let size = self.block_size;
        if !size.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&size) {
            return Err(OptionsError::Wrong(Reason::Field {
                name: "block size",
                value: u64::from(size),
            }));
        }
        let algorithm = match self.algorithm {
            1 => Algorithm::Lz4,
            2 => Algorithm::Zstd,
            other => return Err(OptionsError::Unsupported(Unsupported::Algorithm(other))),
        };
        if self.dict_size != 0 {
            return Err(OptionsError::Unsupported(Unsupported::Dictionary(
                self.dict_size,
            )));
        }
        if self.verify > 1 {
            return Err(OptionsError::Wrong(Reason::Field {
                name: "verify",
                value: u64::from(self.verify),
            }));
        }
        Ok(Options {
            shift: size.trailing_zeros(),
            algorithm,
            verify: self.verify == 1,
        })
    }

    /// The first field in which a header that claims to be final differs from
    /// the trailer: its name, the header's value and the trailer's.
    pub(crate) fn differs(&self, trailer: &Header) -> Option<(&'static str, u64, u64)> {
        [
            ("index offset", self.index_offset, trailer.index_offset),
            ("index size", self.index_size, trailer.index_size),
            ("original size", self.original_size, trailer.original_size),
            (
                "index checksum",
                u64::from(self.index_crc),
                u64::from(trailer.index_crc),
            ),
        ]
        .into_iter()
        .find(|(_, header, trailer)| header != trailer)
    }
}

/// How blocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Binary logarithm of the block size.
    pub(crate) shift: u32,
    pub(crate) algorithm: Algorithm,
    /// Whether a CRC-32C follows every block.
    pub(crate) verify: bool,
}

/// Why options cannot be used.
pub(crate) enum OptionsError {
    Wrong(Reason),
    Unsupported(Unsupported),
}
