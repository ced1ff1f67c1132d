// SPDX-License-Identifier: MIT
//! What the race's writer does to the file, each with its entry in the books.

use super::{
    BLOCK,
    Block,
    MAGIC,
    Race,
    RaceError,
    Result,
    Rng,
    SECTOR, //
};
use crate::mapping::{
    Access,
    Mapping, //
};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::sync::atomic::{
    AtomicU64,
    Ordering::SeqCst, //
};
use std::thread;
use std::time::Duration;

/// A block for `O_DIRECT`.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Kinds of changes; those that are quick come more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Write,
    WriteDirect,
    WriteMapped,
    Punch,
    Truncate,
    Move,
}

impl Change {
    fn choose(rng: &mut Rng) -> Self {
        match rng.below(20) {
            0 => Self::Truncate,
            1 => Self::Move,
            2..=4 => Self::Punch,
            5..=8 => Self::WriteDirect,
            9..=12 => Self::WriteMapped,
            _ => Self::Write,
        }
    }
}

impl Race {
    /// Changes the file until it is told to stop. Only this changes blocks, so
    /// generations need no more care.
    pub(super) fn change(
        &self,
        blocks: &[Block],
        changes: &AtomicU64,
        go_on: impl Fn() -> bool,
    ) -> Result<()> {
        let open = |flags| {
            self.open("open for writing", |options| {
                options.write(true).custom_flags(flags)
            })
        };
        let kept = if self.reopen {
            None
        } else {
            Some((open(0)?, open(libc::O_DIRECT)?))
        };
        let mut rng = Rng(self.seed | 1);
        while go_on() {
            let index = rng.below(blocks.len() as u64);
            let what = Change::choose(&mut rng);
            let direct = what == Change::WriteDirect;
            let mut opened = None;
            let file = match &kept {
                Some((_, file)) if direct => file,
                Some((file, _)) => file,
                None => &*opened.insert(open(if direct { libc::O_DIRECT } else { 0 })?),
            };
            match what {
                Change::Truncate => self.truncate(file, blocks, index),
                Change::Move => self.shift(file, blocks, index),
                Change::Punch => self.punch(file, blocks, index),
                Change::WriteMapped => self.write_mapped(file, blocks, index),
                Change::Write | Change::WriteDirect => self.write(file, blocks, index),
            }?;
            changes.fetch_add(1, SeqCst);
            if self.reopen {
                // Nothing dirty, and nobody to write: for long enough to read.
                file.sync_data()
                    .map_err(|source| self.error("sync", source))?;
                drop(opened);
                thread::sleep(Duration::from_micros(rng.below(4000)));
            }
        }
        Ok(())
    }

    /// Writes the next generation of a block by `how`.
    fn renew(
        &self,
        blocks: &[Block],
        index: u64,
        action: &'static str,
        how: impl FnOnce(&[u8; BLOCK]) -> io::Result<()>,
    ) -> Result<()> {
        let Some(block) = blocks.get(index as usize) else {
            return Ok(());
        };
        let generation = block.done.load(SeqCst) + 1;
        block.started.store(generation, SeqCst);
        let mut buffer = Box::new(Aligned([0; BLOCK]));
        for sector in buffer.0.chunks_mut(SECTOR) {
            for (at, word) in sector.chunks_mut(8).zip([MAGIC, index, generation]) {
                at.copy_from_slice(&word.to_le_bytes());
            }
        }
        how(&buffer.0).map_err(|source| self.error(action, source))?;
        block.done.store(generation, SeqCst);
        Ok(())
    }

    /// Writes a block with `write`, buffered or direct as `file` is.
    pub(super) fn write(&self, file: &File, blocks: &[Block], index: u64) -> Result<()> {
        self.renew(blocks, index, "write", |data| {
            file.write_all_at(data, index * BLOCK as u64)
        })
    }

    /// Writes a block through a shared mapping.
    fn write_mapped(&self, file: &File, blocks: &[Block], index: u64) -> Result<()> {
        self.renew(blocks, index, "write by mmap to", |data| {
            // Of one page, so that the fault reads no others.
            let mut page = Mapping::new(file, index * BLOCK as u64, BLOCK, Access::Shared)?;
            page.advise_random()?;
            page.write(0, data);
            Ok(())
        })
    }

    fn zero(
        &self,
        blocks: &[Block],
        how: impl FnOnce() -> io::Result<()>,
        action: &'static str,
    ) -> Result<()> {
        for block in blocks {
            let generation = block.done.load(SeqCst) + 1;
            block.zeroing.store(generation, SeqCst);
            block.started.store(generation, SeqCst);
        }
        how().map_err(|source| self.error(action, source))?;
        for block in blocks {
            block.done.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn punch(&self, file: &File, blocks: &[Block], index: u64) -> Result<()> {
        let Some(range) = blocks.get(index as usize..=index as usize) else {
            return Ok(());
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.zero(range, || allocate(file, mode, index), "punch a hole into")
    }

    /// Cuts the file off at `index`, then makes it as long as before.
    fn truncate(&self, file: &File, blocks: &[Block], index: u64) -> Result<()> {
        let Some(range) = blocks.get(index as usize..) else {
            return Ok(());
        };
        let truncate = || {
            file.set_len(index * BLOCK as u64)?;
            file.set_len(self.size)
        };
        self.zero(range, truncate, "truncate")
    }

    /// Takes block `index` out of the file and puts a hole there: what is behind
    /// it moves down, and up again. The last block cannot be taken out.
    fn shift(&self, file: &File, blocks: &[Block], index: u64) -> Result<()> {
        let Some([first, moved @ ..]) = blocks.get(index as usize..) else {
            return Ok(());
        };
        if moved.is_empty() {
            return Ok(());
        }
        for block in moved {
            block.moves.fetch_add(1, SeqCst);
        }
        let shift = || {
            allocate(file, libc::FALLOC_FL_COLLAPSE_RANGE, index)?;
            allocate(file, libc::FALLOC_FL_INSERT_RANGE, index)
        };
        self.zero(
            std::slice::from_ref(first),
            shift,
            "collapse and insert a range of",
        )?;
        for block in moved {
            block.moves.fetch_add(1, SeqCst);
        }
        Ok(())
    }
}

/// `fallocate` of one block.
fn allocate(file: &File, mode: libc::c_int, index: u64) -> io::Result<()> {
    // SAFETY: Plain system call on an open descriptor.
    let result = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            (index * BLOCK as u64) as libc::off_t,
            BLOCK as libc::off_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks the kernel to forget what it can: page cache and what shrinkers give.
pub(super) fn drop_caches() -> std::result::Result<(), RaceError> {
    let file = std::path::Path::new("/proc/sys/vm/drop_caches");
    std::fs::write(file, "3").map_err(|source| RaceError::Io {
        action: "write to",
        file: file.to_owned(),
        source,
    })
}
