// SPDX-License-Identifier: GPL-2.0

//! What the core needs of the kernel: memory, checksums, decoders.

use kernel::{
    alloc::{
        flags::{
            __GFP_NORETRY,
            __GFP_NOWARN,
            __GFP_RETRY_MAYFAIL, //
        },
        Flags, //
    },
    compress::{
        lz4,
        zstd, //
    },
    crc,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};
use obd_core::platform::{
    Codec,
    Corrupt,
    Crc32c,
    Memory,
    OutOfMemory,
    Platform, //
};
use obd_core::scratch::{
    Needs,
    Scratch, //
};

/// The kernel.
pub(crate) struct Kernel;

impl Platform for Kernel {
    type Memory = Heap;
    type Crc = Crc;
    type Lz4 = Lz4;
    type Zstd = Zstd;
}

/// How much a file asks for is up to the file: that it is not there is an error of who attaches it,
/// no reason for a warning and none to kill anybody.
fn needed() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_RETRY_MAYFAIL
}

/// One more buffer is worth no effort: who has none waits for another's.
pub(crate) fn spare() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_NORETRY
}

/// Buffers to read with beside those of others, made in a worker.
pub(crate) fn spare_scratch(needs: Needs) -> Result<Scratch<Kernel>, OutOfMemory> {
    Scratch::new_with(
        needs,
        |len| filled(len, spare()),
        || zstd::Decoder::new(spare()).map_err(|_| OutOfMemory),
    )
}

fn filled<T: Copy + Default>(len: usize, flags: Flags) -> Result<KVVec<T>, OutOfMemory> {
    KVVec::from_elem(T::default(), len, flags).map_err(|_| OutOfMemory)
}

/// Memory from the kernel's heap. What is taken while an image is attached, its indexes and the
/// first buffer, is accounted to who attaches it; what workers take is nobody's.
pub(crate) struct Heap;

impl Memory for Heap {
    type Buf<T: Copy + Default> = KVVec<T>;

    fn filled<T: Copy + Default>(len: usize) -> Result<KVVec<T>, OutOfMemory> {
        filled(len, needed())
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

/// A decoder of LZ4 blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lz4Decoder {
    /// The kernel's, in C: more instructions per block than the core's, but less time.
    Kernel,
    /// The core's, in safe Rust.
    Core,
}

/// Whether the core's decoder is used, see [`set_lz4_decoder`].
static CORE_LZ4: Atomic<bool> = Atomic::new(false);

/// Which decoder the next LZ4 blocks are decoded by.
pub(crate) fn lz4_decoder() -> Lz4Decoder {
    match CORE_LZ4.load(Relaxed) {
        true => Lz4Decoder::Core,
        false => Lz4Decoder::Kernel,
    }
}

/// Has the next LZ4 blocks of all disks decoded by `decoder`. Reads that are under way may use
/// both: each block is decoded by one.
pub(crate) fn set_lz4_decoder(decoder: Lz4Decoder) {
    CORE_LZ4.store(decoder == Lz4Decoder::Core, Relaxed);
}

/// LZ4, by the decoder that was chosen.
pub(crate) struct Lz4;

impl Codec for Lz4 {
    type Workspace = ();

    fn workspace() -> Result<(), OutOfMemory> {
        Ok(())
    }

    #[inline]
    fn decompress((): &mut (), from: &[u8], to: &mut [u8]) -> Result<usize, Corrupt> {
        match lz4_decoder() {
            Lz4Decoder::Kernel => lz4::decompress(from, to).map_err(|_| Corrupt),
            Lz4Decoder::Core => obd_core::lz4::Lz4::decompress(&mut (), from, to),
        }
    }
}

/// The kernel's Zstandard decoder.
pub(crate) struct Zstd;

impl Codec for Zstd {
    type Workspace = zstd::Decoder;

    fn workspace() -> Result<zstd::Decoder, OutOfMemory> {
        zstd::Decoder::new(needed()).map_err(|_| OutOfMemory)
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
