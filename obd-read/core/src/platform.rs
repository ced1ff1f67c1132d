// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What this crate needs of its surroundings: memory, checksums, codecs.

use core::ops::DerefMut;

/// The surroundings of an image: one type for the kernel, one for the host,
/// others for tests.
pub trait Platform {
    /// Where memory comes from.
    type Memory: Memory;
    /// How CRC-32C is computed.
    type Crc: Crc32c;
    /// The decoder of LZ4 blocks (block format, no frame).
    type Lz4: Codec;
    /// The decoder of Zstandard frames, [`Missing`] where there is none.
    type Zstd: Codec;
}

/// The allocator refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// Fallible allocation of arrays.
pub trait Memory {
    /// An array that is freed on drop.
    type Buf<T: Copy + Default>: DerefMut<Target = [T]>;

    /// An array of `len` elements, each the default one.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if there is not that much; nothing is taken then.
    fn filled<T: Copy + Default>(len: usize) -> Result<Self::Buf<T>, OutOfMemory>;
}

/// CRC-32C without inversion of seed or result, as Linux's `crc32c()`.
pub trait Crc32c {
    /// The CRC of `bytes`, continued from `seed`.
    fn crc32c(seed: u32, bytes: &[u8]) -> u32;
}

/// Input that is no valid compressed block, or one larger than the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// A decoder of compressed blocks.
pub trait Codec {
    /// What a decoder needs between calls; its content means nothing.
    type Workspace;

    /// Whether the decoder is there at all: files that need one that is not
    /// are refused when they are opened.
    const PRESENT: bool = true;

    /// A workspace for [`Codec::decompress`].
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] if there is no memory for it.
    fn workspace() -> Result<Self::Workspace, OutOfMemory>;

    /// Decodes the whole of `from` to the beginning of `to` and returns how
    /// many bytes that gave.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if `from` is no valid block or its content does not fit
    /// `to`; the content of `to` is undefined then.
    fn decompress(
        workspace: &mut Self::Workspace,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<usize, Corrupt>;
}

/// The codec of platforms that lack one.
#[derive(Clone, Copy, Debug)]
pub struct Missing;

impl Codec for Missing {
    type Workspace = ();

    const PRESENT: bool = false;

    fn workspace() -> Result<Self::Workspace, OutOfMemory> {
        Ok(())
    }

    fn decompress((): &mut (), _: &[u8], _: &mut [u8]) -> Result<usize, Corrupt> {
        Err(Corrupt)
    }
}

/// An array that grows by doubling, for lists whose length a file only claims:
/// memory follows what was really found in it.
pub(crate) struct Growing<M: Memory, T: Copy + Default> {
    /// Elements `..len` are in use, the rest is room.
    buf: M::Buf<T>,
    len: usize,
}

impl<M: Memory, T: Copy + Default> Growing<M, T> {
    /// An empty list.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            buf: M::filled(0)?,
            len: 0,
        })
    }

    /// The first `len` elements of `buf`.
    pub(crate) fn from_parts(buf: M::Buf<T>, len: usize) -> Self {
        let len = len.min(buf.len());
        Self { buf, len }
    }

    /// Appends `value`.
    pub(crate) fn push(&mut self, value: T) -> Result<(), OutOfMemory> {
        if self.len == self.buf.len() {
            let room = self.len.max(8).checked_mul(2).ok_or(OutOfMemory)?;
            let mut grown = M::filled(room)?;
            if let Some(old) = grown.get_mut(..self.len) {
                old.copy_from_slice(&self.buf);
            }
            self.buf = grown;
        }
        let slot = self.buf.get_mut(self.len).ok_or(OutOfMemory)?;
        *slot = value;
        self.len += 1;
        Ok(())
    }

    /// The elements.
    pub(crate) fn as_slice(&self) -> &[T] {
        self.buf.get(..self.len).unwrap_or(&[])
    }
}
