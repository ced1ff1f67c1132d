// SPDX-License-Identifier: MIT
//! The writing half of [`work`](crate::work): how one operation writes, and how
//! it makes durable what it has written.

use crate::mapping::Mapping;
use crate::synced::{
    Ring,
    SyncedWrite,
    sync_file_range, //
};
use crate::work::Kind;
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// Writes blocks of one file, or files beside it, and syncs them.
pub(crate) struct Writer<'a> {
    kind: Kind,
    path: &'a Path,
    file: &'a File,
    /// The file as stores see it, for [`Kind::OverwriteMsync`].
    map: Option<Mapping>,
    /// For [`Kind::OverwriteUringFsync`].
    ring: Option<Ring>,
    /// The file that [`Kind::CreateFsync`] made last.
    created: Option<File>,
    /// All that it made.
    made: Vec<PathBuf>,
}

impl<'a> Writer<'a> {
    /// A writer of `file`, open at `path`, whose first `size` bytes are there.
    pub(crate) fn new(kind: Kind, path: &'a Path, file: &'a File, size: u64) -> io::Result<Self> {
        let map = match kind {
            Kind::OverwriteMsync => Some(Mapping::whole(file, size)?),
            _ => None,
        };
        let ring = match kind {
            Kind::OverwriteUringFsync => Some(Ring::new()?),
            _ => None,
        };
        Ok(Self {
            ring,
            kind,
            path,
            file,
            map,
            created: None,
            made: Vec::new(),
        })
    }

    /// Flags that the file of a workload is opened with, beside `O_DIRECT`.
    pub(crate) fn flags(kind: Kind) -> i32 {
        kind.synced_write().map_or(0, SyncedWrite::open_flags)
    }

    /// What comes before the operation and is no part of it.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        if self.kind.overwrites_and_commits() {
            // Asked for its times, the file gets new ones from the next write.
            // Else its times are those of the last clock tick, and some syncs
            // have metadata to commit while others have not.
            self.file.metadata()?;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`, as the operation `op`; how many were written.
    pub(crate) fn write(&mut self, op: u64, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        match (self.kind, &mut self.map) {
            (Kind::CreateFsync, _) => {
                let path = self.path.with_added_extension(op.to_string());
                let file = File::options().write(true).create_new(true).open(&path)?;
                self.made.push(path);
                let written = file.write_at(bytes, 0);
                self.created = Some(file);
                written
            }
            (_, Some(map)) => Ok(map.write(index(offset)?, bytes)),
            (kind, None) => match kind.synced_write() {
                Some(how) => how.write_at(self.file, bytes, offset),
                None => self.file.write_at(bytes, offset),
            },
        }
    }

    /// Makes the last write, of `len` bytes at `offset`, durable (or, with
    /// `sync_file_range`, only written back).
    pub(crate) fn sync(&mut self, offset: u64, len: usize) -> io::Result<()> {
        if let Some(ring) = &mut self.ring {
            return ring.fsync(self.file, false);
        }
        match (self.kind, &self.map, &self.created) {
            (kind, ..) if kind.synced_write().is_some() => Ok(()),
            (Kind::OverwriteFdatasync | Kind::AppendFdatasync, ..) => self.file.sync_data(),
            (Kind::OverwriteRange, ..) => sync_file_range(self.file, offset, len as u64),
            (_, Some(map), _) => map.sync_part(index(offset)?, len),
            (_, _, Some(created)) => created.sync_all(),
            _ => self.file.sync_all(),
        }
    }

    /// Removes the files that it made.
    pub(crate) fn clean_up(self) -> io::Result<()> {
        self.made.iter().try_for_each(fs::remove_file)
    }
}

/// Opens the file of a writing workload.
pub(crate) fn open(kind: Kind, path: &Path, creates: bool, flags: i32) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(creates)
        .custom_flags(flags | Writer::flags(kind))
        .open(path)
}

/// An offset in the file as one in its mapping.
fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}
