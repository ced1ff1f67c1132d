// SPDX-License-Identifier: MIT

//! The compressors of blocks.

use crate::zfile::{
    Algorithm,
    GROWTH, //
};
use std::ffi::{
    c_char,
    c_int, //
};

/// The level upstream compresses with.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 3;

/// A compressor, for one thread. What a block becomes depends on it alone, not
/// on the blocks before it.
pub(crate) enum Encoder {
    /// LZ4 block format, by its reference implementation.
    Lz4,
    /// One frame per block.
    #[cfg(feature = "zstd")]
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    /// [`None`] without memory, or if the algorithm was not compiled in.
    pub(crate) fn new(algorithm: Algorithm) -> Option<Self> {
        match algorithm {
            Algorithm::Lz4 => Some(Encoder::Lz4),
            #[cfg(feature = "zstd")]
            Algorithm::Zstd => zstd::bulk::Compressor::new(ZSTD_LEVEL)
                .ok()
                .map(Encoder::Zstd),
            #[cfg(not(feature = "zstd"))]
            Algorithm::Zstd => None,
        }
    }

    /// Compresses `from`, at most 64 KiB, to the beginning of `to`, which has
    /// room for [`GROWTH`] bytes more, and returns the number of bytes written.
    /// [`None`] without memory.
    pub(crate) fn compress(&mut self, from: &[u8], to: &mut [u8]) -> Option<usize> {
        debug_assert!(to.len() >= from.len() + GROWTH);
        match self {
            Encoder::Lz4 => lz4(from, to),
            #[cfg(feature = "zstd")]
            Encoder::Zstd(compressor) => compressor.compress_to_buffer(from, to).ok(),
        }
    }
}

#[expect(unsafe_code, reason = "the reference implementation is in C")]
fn lz4(from: &[u8], to: &mut [u8]) -> Option<usize> {
    let room = c_int::try_from(to.len()).ok()?;
    // A length that does not fit becomes one LZ4 refuses: it returns 0.
    let len = c_int::try_from(from.len()).unwrap_or(-1);
    // SAFETY: both pointers are valid for as many bytes as the lengths passed
    // with them say, and do not overlap, one being borrowed mutably. The
    // function keeps neither.
    let written = unsafe {
        lz4_sys::LZ4_compress_default(
            from.as_ptr().cast::<c_char>(),
            to.as_mut_ptr().cast::<c_char>(),
            len,
            room,
        )
    };
    // 0 means that it did not fit.
    usize::try_from(written).ok().filter(|len| *len > 0)
}
