// SPDX-License-Identifier: MIT
//! Direct reads beside syncs that give a file its blocks: none may show what a
//! block held before.

use crate::mapping::{
    Mapping,
    PAGE, //
};
use crate::together::together;
use crate::work::AlignedBuffer;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::PathBuf;
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::thread;
use std::time::Duration;

/// Pages of the file, which get their blocks one at a time.
const PAGES: usize = 16;
/// What is stored.
const STORED: u8 = 0x5a;
/// What the harness knows that error by.
pub const STALE: &str = "which nobody stored";
/// How long readers look at a page before it is stored.
const LOOK: Duration = Duration::from_millis(25);

/// Lets direct reads race with stores into holes and fsync, and checks that none
/// sees anything but zeros or what was stored.
#[derive(clap::Args, Debug, Clone)]
pub struct NewBlocks {
    /// The file, which is made anew.
    #[arg(long)]
    pub file: PathBuf,
    /// Times that it loses all of its blocks.
    #[arg(long, default_value_t = 20)]
    pub rounds: u64,
    /// Threads that read.
    #[arg(long, default_value_t = 1)]
    pub readers: usize,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct NewBlocksResult {
    /// Pages that were read.
    pub reads: u64,
    /// Pages that were read with what was stored.
    pub stored: u64,
    /// Reads that met a store, which the kernel refuses.
    pub refused: u64,
}

/// Why it failed.
#[derive(Debug, thiserror::Error)]
pub enum NewBlocksError {
    /// The file could not be worked on.
    #[error("{}: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A page shows what nobody stored.
    #[error("page {page} shows {byte:#04x} at byte {at}, {STALE}")]
    Stale {
        /// Which page.
        page: usize,
        /// What is there.
        byte: u8,
        /// Offset in the page.
        at: usize,
    },
}

type Result<T> = std::result::Result<T, NewBlocksError>;

impl NewBlocks {
    /// Stores and reads.
    pub fn run(&self) -> Result<NewBlocksResult> {
        let failed = |source| NewBlocksError::Io {
            file: self.file.clone(),
            source,
        };
        let mut options = File::options();
        options.read(true).write(true).create(true);
        let file = options.truncate(true).open(&self.file).map_err(failed)?;
        let direct = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&self.file)
            .map_err(failed)?;
        let mut total = NewBlocksResult::default();
        for _ in 0..self.rounds {
            file.set_len(0).map_err(failed)?;
            file.set_len((PAGES * PAGE) as u64).map_err(failed)?;
            let next = AtomicUsize::new(0);
            let parts = together(1 + self.readers, |number, begin| {
                begin();
                if number > 0 {
                    return read(&direct, &next, failed);
                }
                let stored = store(&file, &next).map_err(failed);
                next.store(PAGES, Ordering::Release);
                stored.map(|()| NewBlocksResult::default())
            });
            for part in parts.map_err(failed)? {
                let part = part?;
                total.reads += part.reads;
                total.stored += part.stored;
                total.refused += part.refused;
            }
        }
        Ok(total)
    }
}

/// Stores into each page through a mapping of its own, and syncs it. Which one is
/// next, readers are told before, and have a look at it.
fn store(file: &File, next: &AtomicUsize) -> io::Result<()> {
    for page in 0..PAGES {
        next.store(page, Ordering::Release);
        thread::sleep(LOOK);
        // Gone before the sync: nothing tells then that a store made it dirty.
        let mut mapping = Mapping::whole(file, (PAGES * PAGE) as u64)?;
        mapping.write(page * PAGE, &[STORED; PAGE]);
        drop(mapping);
        file.sync_all()?;
    }
    Ok(())
}

/// Reads the page that is stored next until all are; what was read.
fn read(
    direct: &File,
    next: &AtomicUsize,
    failed: impl Fn(io::Error) -> NewBlocksError,
) -> Result<NewBlocksResult> {
    let mut buffer = AlignedBuffer::new(PAGE);
    let mut result = NewBlocksResult::default();
    loop {
        let page = next.load(Ordering::Acquire);
        if page == PAGES {
            return Ok(result);
        }
        let bytes = buffer.bytes();
        match direct.read_exact_at(bytes, (page * PAGE) as u64) {
            // 7.3's answer to who meets a store: "Direct I/O collision with
            // buffered writes".
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                result.refused += 1;
                continue;
            }
            read => read.map_err(&failed)?,
        }
        let odd = |byte: &u8| *byte != 0 && *byte != STORED;
        if let Some((at, &byte)) = bytes.iter().enumerate().find(|(_, byte)| odd(byte)) {
            return Err(NewBlocksError::Stale { page, byte, at });
        }
        result.reads += 1;
        result.stored += u64::from(bytes.first() == Some(&STORED));
    }
}
