// SPDX-License-Identifier: GPL-2.0 OR MIT

//! LZ4 by `lz4_flex`, in safe Rust.

use crate::platform::{
    Codec,
    Corrupt,
    OutOfMemory, //
};

/// The LZ4 block decoder of `lz4_flex`.
#[derive(Clone, Copy, Debug)]
pub struct Lz4Flex;

impl Codec for Lz4Flex {
    type Workspace = ();

    fn workspace() -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn decompress((): &mut (), from: &[u8], to: &mut [u8]) -> Result<usize, Corrupt> {
        lz4_flex::block::decompress_into(from, to).map_err(|_| Corrupt)
    }
}
