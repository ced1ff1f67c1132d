// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What files may take of memory while they are opened.

use crate::error::{
    Error,
    Unsupported, //
};

/// Bytes of memory that the layers of an image may take while it is opened, if
/// its opener keeps a [`Budget`]: 9.5 million segments, or blocks of 4 KiB for
/// 1.6 TiB of data, both far beyond real images.
pub const MAX_MEMORY: u64 = 1 << 30;

/// Keeps count of what layers take, for who opens files of others: each pays
/// for its own index with its size, but a sparse one pays little, and one may be
/// named again and again.
///
/// Whatever is counted is asked for before it is allocated, so there is never
/// more. Buffers of a fixed size are not: 128 KiB and a block to read with, 64
/// KiB of a jump table, 16 KiB of an index, and the codecs' workspaces.
#[derive(Debug)]
pub struct Budget {
    most: u64,
    used: u64,
}

impl Budget {
    /// For one image, whose layers may take `most` bytes: [`MAX_MEMORY`], or
    /// less.
    pub fn new(most: u64) -> Self {
        Self { most, used: 0 }
    }

    /// For who opens files of their own: they take what they take.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Counts `bytes` that are about to be allocated, and stay.
    pub(crate) fn take<E>(&mut self, bytes: u64) -> Result<(), Error<E>> {
        self.check(bytes)?;
        self.used = self.used.saturating_add(bytes);
        Ok(())
    }

    /// Whether `bytes` more can be allocated, which go soon.
    pub(crate) fn check<E>(&self, bytes: u64) -> Result<(), Error<E>> {
        let needed = self.used.saturating_add(bytes);
        if needed > self.most {
            return Err(Error::Unsupported(Unsupported::Memory {
                needed,
                most: self.most,
            }));
        }
        Ok(())
    }
}
