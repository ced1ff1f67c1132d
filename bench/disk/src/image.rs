// SPDX-License-Identifier: MIT
//! The bytes of the drive: an image file mapped into memory.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use memmap2::{
    Advice,
    MmapMut,
    MmapOptions, //
};
use std::fs::{
    self,
    File,
    TryLockError, //
};
use std::ops::Range;
use std::path::{
    Path,
    PathBuf, //
};

/// Bytes looked at at once when zeroing: one page, the unit of a private copy.
const PAGE: usize = 4096;
/// A page of zeroes, to compare with.
const ZEROES: [u8; PAGE] = [0; PAGE];

/// A mapped raw image.
///
/// The file is locked (`flock`): shared when it is only read, exclusively when
/// it is written, so that two servers never write one image. It must not be
/// truncated while it is served; the kernel ends the server then.
#[derive(Debug)]
pub struct Image {
    map: MmapMut,
    /// Holds the lock; also what a kept image is written back to.
    file: File,
    path: PathBuf,
    keep: bool,
}

impl Image {
    /// Maps the image at `path`. Writes stay in memory and end with the
    /// server, unless `keep`: then they go to the file.
    pub fn open(path: &Path, keep: bool) -> Result<Self> {
        let refuse = |reason| Error::Image {
            path: path.to_path_buf(),
            reason,
        };
        let file = File::options()
            .read(true)
            .write(keep)
            .open(path)
            .at("open the image", path)?;
        let metadata = file.metadata().at("look at the image", path)?;
        if !metadata.is_file() {
            return Err(refuse("it is not a regular file"));
        }
        let size = metadata.len();
        if size == 0 || !size.is_multiple_of(512) {
            return Err(refuse(
                "its size is not a multiple of 512 bytes (use `truncate`)",
            ));
        }
        let locked = if keep {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse(
                    "another server has it open, and one of the two to write it",
                ));
            }
            Err(TryLockError::Error(source)) => return Err(source).at("lock the image", path),
        }
        let mut options = MmapOptions::new();
        options.no_reserve_swap();
        // SAFETY: nothing else changes the file while it is mapped: servers
        // are kept out by the lock, and that nothing truncates or writes it is
        // what the caller is told to see to.
        let map = unsafe {
            if keep {
                options.map_mut(&file)
            } else {
                options.map_copy(&file)
            }
        }
        .at("map the image", path)?;
        if size < available_memory() / 2 {
            // Without page faults from the first read on. Kernels before 5.14
            // do not know it and fault page by page as ever.
            let _ = map.advise(Advice::PopulateRead);
        }
        Ok(Self {
            map,
            file,
            path: path.to_path_buf(),
            keep,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.map.len() as u64
    }

    /// The bytes at `offset`, or nothing if they reach beyond the end.
    pub fn get(&self, offset: u64, length: u32) -> Option<&[u8]> {
        self.map.get(range(offset, length)?)
    }

    /// The bytes at `offset` for writing, or nothing if they reach beyond the
    /// end.
    pub fn get_mut(&mut self, offset: u64, length: u32) -> Option<&mut [u8]> {
        self.map.get_mut(range(offset, length)?)
    }

    /// Makes the private copies of a range's pages, which takes microseconds
    /// each, ahead of a write that is to take as long as it is told.
    pub fn prepare(&mut self, offset: u64, length: u32) {
        for chunk in self
            .get_mut(offset, length)
            .unwrap_or_default()
            .chunks_mut(PAGE)
        {
            // A store of what is there already; one per page will do, and the
            // end of a range off the grid can fault later.
            chunk[0] = std::hint::black_box(chunk[0]);
        }
    }

    /// Zeroes a range; nothing happens if it reaches beyond the end. Pages
    /// that are zero already are not touched, so that trimming an empty drive
    /// takes no memory.
    pub fn zero(&mut self, offset: u64, length: u32) {
        for chunk in self
            .get_mut(offset, length)
            .unwrap_or_default()
            .chunks_mut(PAGE)
        {
            if chunk[..] != ZEROES[..chunk.len()] {
                chunk.fill(0);
            }
        }
    }

    /// Makes `bytes`, as many as the drive has, its contents. Pages that hold
    /// them already are not touched.
    pub fn replace(&mut self, bytes: &[u8]) {
        for (page, new) in self.map.chunks_mut(PAGE).zip(bytes.chunks(PAGE)) {
            if page.len() == new.len() && page != new {
                page.copy_from_slice(new);
            }
        }
    }

    /// Writes a kept image back to its file; nothing to do for a private one.
    pub fn sync(&self) -> Result<()> {
        if self.keep {
            self.map.flush().at("write back", &self.path)?;
            self.file.sync_data().at("write back", &self.path)?;
        }
        Ok(())
    }
}

/// The range as indices, if it has any.
fn range(offset: u64, length: u32) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(usize::try_from(length).ok()?)?)
}

/// Memory that can be had without swapping, bytes; 0 where that is unknown.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn image_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn test_open_private_write_leaves_file_unchanged() {
        let file = image_of(&[7; 1024]);
        let mut image = Image::open(file.path(), false).unwrap();
        image.get_mut(512, 512).unwrap().fill(9);
        assert_eq!(image.get(512, 1), Some(&[9][..]));
        assert_eq!(fs::read(file.path()).unwrap(), [7; 1024]);
    }

    #[test]
    fn test_open_keep_write_changes_file() {
        let file = image_of(&[7; 1024]);
        let mut image = Image::open(file.path(), true).unwrap();
        image.get_mut(512, 512).unwrap().fill(9);
        image.sync().unwrap();
        assert_eq!(fs::read(file.path()).unwrap()[512..], [9; 512]);
    }

    #[test]
    fn test_get_beyond_end_returns_none() {
        let file = image_of(&[7; 1024]);
        let image = Image::open(file.path(), false).unwrap();
        assert!(image.get(0, 1024).is_some());
        assert!(image.get(1, 1024).is_none());
        assert!(image.get(1024, 1).is_none());
        assert!(image.get(u64::MAX, u32::MAX).is_none());
    }

    #[test]
    fn test_zero_clears_just_the_range() {
        let file = image_of(&[7; 3 * 4096]);
        let mut image = Image::open(file.path(), false).unwrap();
        image.zero(512, 2 * 4096);
        let bytes = image.get(0, 3 * 4096).unwrap();
        assert!(bytes[..512].iter().all(|&b| b == 7));
        assert!(bytes[512..512 + 2 * 4096].iter().all(|&b| b == 0));
        assert!(bytes[512 + 2 * 4096..].iter().all(|&b| b == 7));
    }

    #[test]
    fn test_open_bad_image_returns_error() {
        let empty = image_of(&[]);
        let odd = image_of(&[0; 513]);
        for path in [
            empty.path(),
            odd.path(),
            Path::new("/"),
            Path::new("/nowhere"),
        ] {
            assert!(Image::open(path, false).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn test_open_twice_for_writing_returns_error() {
        let file = image_of(&[0; 512]);
        let first = Image::open(file.path(), true).unwrap();
        let error = Image::open(file.path(), false).unwrap_err();
        assert!(error.to_string().contains("another server"), "{error}");
        drop(first);
        assert!(Image::open(file.path(), false).is_ok());
    }
}
