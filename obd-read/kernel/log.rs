// SPDX-License-Identifier: GPL-2.0

//! Records of what is frozen, in a log of the writer's: see [`obd_core::record`] for what they are.
//!
//! The writer says where they go and with which numbers, and is told how far that came. It would
//! write the same, but for each one it would have to be woken, to ask for the extents, to map the
//! pages, to look at each and to unmap them: most of what a flush takes.

use crate::abi;
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
    file: ARef<LocalFile>,
    /// Which one, as records say.
    id: u64,
    /// Number of the last record.
    seq: u64,
    /// Number of the last record that is in what was sealed last.
    sealed: u64,
    room: Room,
    /// Extents of the record that is written.
    extents: KVVec<Extent>,
    /// Memory for its header.
    header: KVVec<Page>,
}

impl Log {
    /// The one that is `asked` for.
    pub(crate) fn new(asked: &abi::Log) -> Result<Self> {
        let abi::Log {
            log,
            seq,
            sealed,
            at,
            end,
            again,
            ..
        } = *asked;
        let is_place = |at: u64| at % BLOCK as u64 == 0 && i64::try_from(at).is_ok();
        let are_places = [at, end, again].into_iter().all(is_place);
        if !are_places || seq > u64::MAX / 2 || sealed > seq {
            return Err(EINVAL);
        }
        Ok(Self {
            file: LocalFile::fget(asked.fd)?,
            id: log,
            seq,
            sealed,
            room: Room { at, end, again },
            extents: KVVec::new(),
            header: KVVec::new(),
        })
    }

    /// Says how far it came.
    pub(crate) fn say(&self, to: &mut abi::Log) {
        let Room { at, end, again } = self.room;
        (to.seq, to.at, to.end, to.again) = (self.seq, at, end, again);
    }

    /// Writes a record of `blocks`, which nobody changes meanwhile. Returns how many bytes it has,
    /// which are durable; nothing if there is no room.
    pub(crate) fn append(&mut self, blocks: &Blocks) -> Result<Option<u64>> {
        let mut data = KVVec::with_capacity(blocks.memory() / BLOCK, GFP_KERNEL)?;
        let mut hash = Hash::new();
        for page in blocks.pages() {
            // SAFETY: Nobody writes to pages of what is frozen, all of each of which was written
            // to when it was put there.
            unsafe { page.with_bytes(|bytes| hash.add(bytes)) };
            data.push(page, GFP_KERNEL)?;
        }
        self.extents.clear();
        for extent in blocks.extents() {
            let extent = Extent {
                block: extent.block as u64,
                blocks: u32::try_from(extent.blocks)?,
                zero: extent.zero,
            };
            self.extents.push(extent, GFP_KERNEL)?;
        }
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
        if let Some(first) = self.header.first() {
            // SAFETY: As above.
            unsafe { first.with_bytes_mut(|bytes| record::finish(bytes, &hash)) };
        }
        let mut pages = Pages::with_capacity(count + data.len(), GFP_KERNEL)?;
        for page in Iterator::chain(self.header.iter().take(count), data) {
            pages.push(page, GFP_KERNEL)?;
        }
        if self.file.write_direct(&pages, at)? != pages.len() {
            return Err(ENOSPC);
        }
        self.room = room;
        self.seq += 1;
        Ok(Some(len))
    }
}
