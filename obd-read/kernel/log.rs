// SPDX-License-Identifier: GPL-2.0

//! Records of what is frozen, in a log of the writer's: see [`obd_core::record`] for what they are.
//!
//! The writer says where they go and with which numbers, and is told how far that came. It would
//! write the same, but for each one it would have to be woken, to ask for the extents, to map the
//! pages, to look at each and to unmap them: most of what a flush takes.

use crate::layer0::{
    Blocks,
    BLOCK, //
};
use kernel::{
    alloc::flags::__GFP_ZERO,
    fs::LocalFile,
    iov::Pages,
    page::Page,
    prelude::*,
    sync::aref::ARef, //
};
use obd_core::record::{
    self,
    Extent,
    Hash,
    Header,
    Room, //
};

/// A log that is written to.
pub(crate) struct Log {
    pub(crate) file: ARef<LocalFile>,
    /// Which one, as records say.
    pub(crate) id: u64,
    /// Number of the last record.
    pub(crate) seq: u64,
    /// Number of the last record that is in what was sealed last.
    pub(crate) sealed: u64,
    pub(crate) room: Room,
    /// Extents of the record that is written.
    pub(crate) extents: KVVec<Extent>,
    /// Memory for its header.
    pub(crate) header: KVVec<Page>,
}

impl Log {
    /// Writes a record of `blocks`, which nobody changes meanwhile. Returns how many bytes it has,
    /// which are durable; nothing if there is no room.
    pub(crate) fn append(&mut self, blocks: &Blocks) -> Result<Option<u64>> {
        let most = blocks.memory() / BLOCK;
        let mut data = KVVec::with_capacity(most, GFP_KERNEL)?;
        let mut hash = Hash::new();
        self.extents.clear();
        blocks.try_for_each(|block, count, page| {
            if let Some(page) = page {
                // SAFETY: Nobody writes to pages of what is frozen, all of each of which was
                // written to when it was put there.
                unsafe { page.with_bytes(|bytes| hash.add(bytes)) };
                data.push(page, GFP_KERNEL)?;
            }
            Self::extend(&mut self.extents, block, count, page.is_none())
        })?;
        let header = Header {
            log: self.id,
            number: self.seq + 1,
            sealed: self.sealed,
            extents: u32::try_from(self.extents.len())?,
            blocks: data.len() as u64,
            hash: hash.end(),
        };
        let len = header.header_len() + (data.len() * BLOCK) as u64;
        let mut room = self.room;
        let Some(at) = room.take(len) else {
            return Ok(None);
        };

        let count = usize::try_from(header.header_len())? / BLOCK;
        while self.header.len() < count {
            let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
            self.header.push(page, GFP_KERNEL)?;
        }
        let mut left = self.extents.iter().copied();
        let mut hash = Hash::new();
        for (n, page) in self.header.iter().take(count).enumerate() {
            let fill = |bytes: &mut [u8; BLOCK]| {
                header.write(n == 0, &mut left, bytes);
                hash.add(bytes);
            };
            // SAFETY: It came as zeros, and nobody else has it.
            unsafe { page.with_bytes_mut(fill) };
        }
        let mut pages = Pages::with_capacity(count + data.len(), GFP_KERNEL)?;
        for (n, page) in self.header.iter().take(count).enumerate() {
            if n == 0 {
                // SAFETY: As above.
                unsafe { page.with_bytes_mut(|bytes| record::finish(bytes, &hash)) };
            }
            pages.push(page, GFP_KERNEL)?;
        }
        for page in &data {
            pages.push(page, GFP_KERNEL)?;
        }
        if self.file.write_direct(&pages, at)? != pages.len() {
            return Err(ENOSPC);
        }
        self.room = room;
        self.seq += 1;
        Ok(Some(len))
    }

    /// Puts blocks behind the others, as part of the last extent if they are.
    fn extend(extents: &mut KVVec<Extent>, block: usize, count: usize, zero: bool) -> Result {
        let (block, blocks) = (block as u64, u32::try_from(count)?);
        if let Some(last) = extents.last_mut() {
            let sum = last.blocks.checked_add(blocks);
            let is_next = last.zero == zero && last.block + u64::from(last.blocks) == block;
            if let (true, Some(sum)) = (is_next, sum) {
                last.blocks = sum;
                return Ok(());
            }
        }
        let extent = Extent {
            block,
            blocks,
            zero,
        };
        extents.push(extent, GFP_KERNEL)?;
        Ok(())
    }
}
