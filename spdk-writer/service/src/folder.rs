// SPDX-License-Identifier: MIT

//! The files of a device.

use crate::image::Place;
use crate::{
    BLOCK,
    log, //
};
use obd_core::Source;
use obd_host::File as Reading;
use rustix::fs::{
    FallocateFlags,
    FlockOperation,
    fallocate,
    flock,
    fstatvfs, //
};
use rustix::io::Errno;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Write, //
};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    FileExt,
    OpenOptionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// Where layers are, below the device's folder.
pub const LAYERS: &str = "layers";

/// A log takes one of so many parts of the room that there is.
const ROOM: u64 = 4;

/// Zeros that are written at a time.
const ZEROS: usize = 1 << 20;

/// What a layer will be like.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Bytes of its file, at most.
    pub most: u64,
    /// Bytes of the image.
    pub virtual_size: u64,
}

/// A device's folder, one step at a time, so that something else than a file
/// system can be below: names are relative to it, or absolute.
///
/// What a power cut leaves: of a file what was synced, the rest in any state; of
/// a name what it was when [`Folder::sync_names`] was last called, or anything
/// that it was since.
pub trait Folder: Sync {
    /// A file in the making.
    type File: Send;
    /// A log that is open, for the driver to write to.
    type Log: Send;
    /// A file to be read.
    type Source: Source<Error = io::Error> + Send + Sync;

    /// Makes an empty file, instead of one that has the name.
    ///
    /// # Errors
    ///
    /// What the system says, here and below.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// The same for a layer.
    fn create_layer(&self, name: &str, expected: Expected) -> io::Result<Self::File> {
        let _ = expected;
        self.create(name)
    }

    /// Says that all of a layer was written, which has `data` bytes of data before
    /// compression.
    fn describe(&self, file: &mut Self::File, data: u64) {
        let _ = (file, data);
    }

    /// Writes behind what was written before.
    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Writes over the first bytes.
    fn overwrite(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Begins to write the file's content back, which will be synced: others that
    /// are synced before it take it along. Nothing depends on it.
    fn begin_sync(&self, file: &mut Self::File) {
        let _ = file;
    }

    /// Makes the file's content durable.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;

    /// Gives a file another name, instead of one that has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes the names in `folder` durable; "" is the device's own.
    fn sync_names(&self, folder: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Files were removed: their room is wanted now, if it is not there by itself.
    fn make_room(&self) -> io::Result<()> {
        Ok(())
    }

    /// Where layers are, if not in files of the folder.
    fn place(&self) -> Option<Place> {
        None
    }

    /// The files in `folder`.
    fn names(&self, folder: &str) -> io::Result<Vec<String>>;

    /// The content of a small file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Opens a file to be read.
    fn open(&self, name: &str) -> io::Result<Self::Source>;

    /// The absolute path of a file, for the driver.
    fn path(&self, name: &str) -> PathBuf;

    /// Makes a file for a log, of `size` bytes or fewer if there is not much room:
    /// overwriting it takes no more than that. Durable when this returns, and its name.
    /// How long it is.
    ///
    /// # Errors
    ///
    /// What the system says, here and below; nothing is left behind.
    fn reserve(&self, name: &str, size: u64) -> io::Result<u64> {
        let _ = (name, size);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Opens a file that [`Folder::reserve`] made.
    fn open_log(&self, name: &str) -> io::Result<Self::Log> {
        let _ = name;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A device's folder on a file system, locked.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// The folder itself, which has the lock.
    own: File,
    layers: File,
}

impl Directory {
    /// Makes the folder of a device to be; one that is empty, or was left by
    /// somebody who died here, will do.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if there is something in it.
    pub fn create(path: &Path) -> io::Result<Self> {
        if let Err(error) = fs::create_dir(path) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            for entry in fs::read_dir(path)? {
                let name = entry?.file_name();
                if name != LAYERS && name != crate::image::DRAFT {
                    return Err(error);
                }
            }
        }
        match fs::create_dir(path.join(LAYERS)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let made = Self::open(path)?;
        // The names of both: what is in them is synced by who puts it there.
        made.own.sync_all()?;
        if let Some(parent) = made.path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(made)
    }

    /// Opens the folder of a device and locks it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if somebody else has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let own = File::open(&path)?;
        flock(&own, FlockOperation::NonBlockingLockExclusive)?;
        let layers = File::open(path.join(LAYERS))?;
        Ok(Self { path, own, layers })
    }

    /// Whether somebody has the folder of a device open.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn is_locked(path: &Path) -> io::Result<bool> {
        match flock(File::open(path)?, FlockOperation::NonBlockingLockExclusive) {
            // Given up again when the file is closed.
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.path
    }

    /// Makes a file of zeros, written ones, so that nothing but data changes any more.
    fn write_zeros(&self, name: &str, size: u64) -> io::Result<()> {
        let mut file = self.create(name)?;
        // In one piece, if that can be: otherwise it is as good in several.
        let _ = fallocate(&file, FallocateFlags::empty(), 0, size);
        let zeros = vec![0; ZEROS];
        let mut left = size;
        while left > 0 {
            let some = left.min(ZEROS as u64);
            file.write_all(&zeros[..some as usize])?;
            left -= some;
        }
        file.sync_all()?;
        self.own.sync_all()
    }
}

impl Folder for Directory {
    type File = File;
    type Log = File;
    type Source = Reading;

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // What is on the disk is for who may read the disk.
            .mode(0o600)
            .open(self.path.join(name))
    }

    fn append(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn overwrite(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, 0)
    }

    #[expect(unsafe_code, reason = "there is no safe one")]
    fn begin_sync(&self, file: &mut File) {
        // Blocks are allocated now, and so are part of the next commit of the file
        // system's journal. What fails here fails again when it is synced.
        // SAFETY: a system call on an open file, with numbers.
        let _ =
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_names(&self, folder: &str) -> io::Result<()> {
        match folder {
            "" => self.own.sync_all(),
            _ => self.layers.sync_all(),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                // Names that are no UTF-8 are nobody's here.
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<Reading> {
        Reading::open(self.path.join(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn reserve(&self, name: &str, size: u64) -> io::Result<u64> {
        let room = fstatvfs(&self.own)?;
        // Layers need some, too.
        let most = room.f_bavail.saturating_mul(room.f_frsize) / ROOM;
        let mut size = size;
        while size > most && size > log::MIN_SIZE {
            size = (size / 2).next_multiple_of(BLOCK);
        }
        if size > most || size < log::MIN_SIZE {
            return Err(Errno::NOSPC.into());
        }
        let made = self.write_zeros(name, size);
        // Where that cannot be written past the page cache it is of no use.
        let made = made.and_then(|()| self.open_log(name));
        match made {
            Ok(_) => Ok(size),
            Err(error) => {
                let _ = fs::remove_file(self.path.join(name));
                Err(error)
            }
        }
    }

    fn open_log(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            // The driver writes its own pages, each record in one go.
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(self.path.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("device");
        let one = Directory::create(&at).unwrap();
        assert!(Directory::is_locked(&at).unwrap());
        let error = Directory::open(&at).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert!(!Directory::is_locked(&at).unwrap());
        // As somebody would leave it who died early.
        Directory::create(&at).unwrap();
        fs::write(at.join("something"), "").unwrap();
        let error = Directory::create(&at).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
}
