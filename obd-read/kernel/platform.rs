// SPDX-License-Identifier: GPL-2.0

//! What the core needs of the kernel: memory, checksums, decoders.

use kernel::{
    alloc::flags::__GFP_NOWARN,
    compress::{
        lz4,
        zstd, //
    },
    crc,
    prelude::*, //
};
use obd_core::platform::{
    Codec,
    Corrupt,
    Crc32c,
    Memory,
    OutOfMemory,
    Platform, //
};

/// The kernel.
pub(crate) struct Kernel;

impl Platform for Kernel {
    type Memory = Heap;
    type Crc = Crc;
    type Lz4 = Lz4;
    type Zstd = Zstd;
}

/// Memory from the kernel's heap, accounted to who attaches the image.
pub(crate) struct Heap;

impl Memory for Heap {
    type Buf<T: Copy + Default> = KVVec<T>;

    fn filled<T: Copy + Default>(len: usize) -> Result<KVVec<T>, OutOfMemory> {
        // How much a file asks for is bounded by its size only: no warning.
        KVVec::from_elem(T::default(), len, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)
            .map_err(|_| OutOfMemory)
    }
}

/// The kernel's CRC-32C, which uses the processor's instruction.
pub(crate) struct Crc;

impl Crc32c for Crc {
    #[inline]
    fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
        crc::crc32c(seed, bytes)
    }
}

/// The kernel's LZ4 decoder.
pub(crate) struct Lz4;

impl Codec for Lz4 {
    type Workspace = ();

    fn workspace() -> Result<(), OutOfMemory> {
        Ok(())
    }

    #[inline]
    fn decompress((): &mut (), from: &[u8], to: &mut [u8]) -> Result<usize, Corrupt> {
        lz4::decompress(from, to).map_err(|_| Corrupt)
    }
}

/// The kernel's Zstandard decoder.
pub(crate) struct Zstd;

impl Codec for Zstd {
    type Workspace = zstd::Decoder;

    fn workspace() -> Result<zstd::Decoder, OutOfMemory> {
        zstd::Decoder::new(GFP_KERNEL | __GFP_NOWARN).map_err(|_| OutOfMemory)
    }

    #[inline]
    fn decompress(
        decoder: &mut zstd::Decoder,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<usize, Corrupt> {
        decoder.decompress(from, to).map_err(|_| Corrupt)
    }
}
