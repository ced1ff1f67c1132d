// SPDX-License-Identifier: MIT

//! Decoding of blocks, one after another, and the last one of which only a part
//! was wanted.

use obd_core::platform::{
    Memory,
    OutOfMemory, //
};
use obd_core::scratch::Needs;
use obd_core::{
    Error,
    Scratch,
    ZFile, //
};
use obd_host::{
    File,
    Heap,
    Host, //
};
use std::io;

/// What decodes blocks, one after another.
pub(crate) struct Decoder {
    scratch: Scratch<Host>,
    /// A block of which only a part was asked for.
    block: Vec<u8>,
    /// The blob and number of the block in it.
    holds: Option<(usize, u64)>,
}

impl Decoder {
    /// For blocks with those needs.
    pub(crate) fn new(needs: Needs) -> Result<Self, OutOfMemory> {
        Ok(Self {
            // Codecs only: stored bytes and blocks are kept elsewhere.
            scratch: Scratch::new(Needs {
                stored: 0,
                block: 0,
                ..needs
            })?,
            block: Heap::filled(needs.block)?,
            holds: None,
        })
    }

    /// Whether block `number` of `blob` is held.
    pub(crate) fn holds(&self, blob: usize, number: u64) -> bool {
        self.holds == Some((blob, number))
    }

    /// Decodes block `number` of `blob`, of which `to` gets what follows the
    /// first `skip` bytes.
    pub(crate) fn decode(
        &mut self,
        zfile: &ZFile<File, Host>,
        (blob, number): (usize, u64),
        stored: &[u8],
        skip: usize,
        to: &mut [u8],
    ) -> Result<(), Error<io::Error>> {
        let whole = zfile.decoded_len(number);
        if to.len() == whole {
            return zfile.decode_block(number, stored, to, &mut self.scratch);
        }
        self.holds = None;
        let block = self.block.get_mut(..whole);
        let block = block.ok_or(Error::ScratchTooSmall)?;
        zfile.decode_block(number, stored, block, &mut self.scratch)?;
        let from = block.get(skip..skip.saturating_add(to.len()));
        to.copy_from_slice(from.ok_or(Error::ScratchTooSmall)?);
        self.holds = Some((blob, number));
        Ok(())
    }

    /// What is wanted of the block that is held, `number` of `zfile`: `len` bytes
    /// behind the first `skip`, or as many as there are.
    pub(crate) fn held(
        &self,
        zfile: &ZFile<File, Host>,
        number: u64,
        skip: usize,
        len: usize,
    ) -> &[u8] {
        let end = skip.saturating_add(len).min(zfile.decoded_len(number));
        self.block.get(skip..end).unwrap_or_default()
    }
}
