// SPDX-License-Identifier: MIT

//! What [`obd_core`] needs of a host: memory from the heap, CRC-32C by the
//! processor's instruction, LZ4 and Zstandard, files.

#![forbid(unsafe_code)]

mod file;

pub use file::{
    File,
    data_extents, //
};

use obd_core::platform::{
    Codec,
    Corrupt,
    Crc32c,
    Memory,
    OutOfMemory,
    Platform, //
};

/// A process on Linux.
#[derive(Clone, Copy, Debug)]
pub struct Host;

impl Platform for Host {
    type Memory = Heap;
    type Crc = Hardware;
    type Lz4 = obd_core::lz4::Lz4;
    type Zstd = Zstd;
}

/// Memory from the heap.
#[derive(Clone, Copy, Debug)]
pub struct Heap;

impl Memory for Heap {
    type Buf<T: Copy + Default> = Vec<T>;

    fn filled<T: Copy + Default>(len: usize) -> Result<Vec<T>, OutOfMemory> {
        let mut buf = Vec::new();
        buf.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
        buf.resize(len, T::default());
        Ok(buf)
    }
}

/// CRC-32C by the processor's instruction where it has one.
#[derive(Clone, Copy, Debug)]
pub struct Hardware;

impl Crc32c for Hardware {
    fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
        // The crate inverts seed and result.
        !crc32c::crc32c_append(!seed, bytes)
    }
}

/// Zstandard by its reference implementation.
#[derive(Clone, Copy, Debug)]
pub struct Zstd;

impl Codec for Zstd {
    type Workspace = zstd::bulk::Decompressor<'static>;

    fn workspace() -> Result<Self::Workspace, OutOfMemory> {
        zstd::bulk::Decompressor::new().map_err(|_| OutOfMemory)
    }

    fn decompress(
        workspace: &mut Self::Workspace,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<usize, Corrupt> {
        workspace
            .decompress_to_buffer(from, to)
            .map_err(|_| Corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_equals_the_portable_one() {
        let bytes: Vec<u8> = (0u32..10_000).map(|i| ((i * i) >> 5) as u8).collect();
        for len in (0..600).chain([4096, 10_000]) {
            for seed in [0, 100_007, u32::MAX] {
                assert_eq!(
                    Hardware::crc32c(seed, &bytes[..len]),
                    obd_core::crc32c::Portable::crc32c(seed, &bytes[..len])
                );
            }
        }
        assert_eq!(Hardware::crc32c(100_007, b"123456789"), 0x3C9B_D4E0);
    }

    #[test]
    fn zstd_fits_or_fails() {
        let plain = [7u8; 5000];
        let packed = zstd::bulk::compress(&plain, 3).unwrap();
        let mut workspace = Zstd::workspace().unwrap();
        let mut to = [0; 5000];
        assert_eq!(Zstd::decompress(&mut workspace, &packed, &mut to), Ok(5000));
        assert_eq!(to, plain);
        assert_eq!(
            Zstd::decompress(&mut workspace, &packed, &mut to[..4999]),
            Err(Corrupt)
        );
        assert_eq!(
            Zstd::decompress(&mut workspace, b"x", &mut to),
            Err(Corrupt)
        );
    }

    #[test]
    fn no_memory_is_an_error() {
        assert!(Heap::filled::<u64>(usize::MAX / 8).is_err());
    }
}
