// SPDX-License-Identifier: MIT

//! Files as sources.

use crate::Hardware;
use obd_core::{
    Source,
    zfile, //
};
use rustix::fs::{
    SeekFrom,
    seek, //
};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{
    FileExt,
    FileTypeExt, //
};
use std::path::Path;

/// An open file or block device; its size is what it was when it was opened.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    /// Where it begins, bytes.
    start: u64,
    size: u64,
}

impl File {
    /// Opens the file at `path` for reading. A device may be larger than the zfile
    /// on it; then it is taken to end where that does.
    ///
    /// # Errors
    ///
    /// What the system says; directories are refused.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Of a block device the metadata says nothing.
        let size = seek(&file, SeekFrom::End(0))?;
        let start = 0;
        let mut opened = Self { file, start, size };
        if kind.is_block_device() {
            opened.size = zfile::size_on_device::<Hardware, _>(&opened)?;
        }
        Ok(opened)
    }

    /// Opens the bytes of `part` of the file at `path`.
    ///
    /// # Errors
    ///
    /// What the system says; [`io::ErrorKind::UnexpectedEof`] if it has not so many.
    pub fn open_part(path: impl AsRef<Path>, part: &Range<u64>) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        if part.start > part.end || part.end > seek(&file, SeekFrom::End(0))? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            file,
            start: part.start,
            size: part.end - part.start,
        })
    }

    /// Where it begins in [`File::get`], bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The file itself, whole.
    pub fn get(&self) -> &fs::File {
        &self.file
    }
}

impl Source for File {
    type Error = io::Error;

    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            // What is behind it is another's.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buf, self.start + offset)
    }
}

/// The ranges of a file that are no holes, byte ranges `start..end`; the whole
/// of it where the filesystem does not know.
///
/// # Errors
///
/// What the system says.
pub fn data_extents(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < file.size {
        let start = match seek(&file.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(vec![(0, file.size)]),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&file.file, SeekFrom::Hole(start))?;
        extents.push((start, end));
        // Another process may punch holes meanwhile; never stand still.
        at = end.max(at + 1);
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_a_sparse_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().write_all_at(&[1; 4096], 1 << 16).unwrap();
        let open = File::open(file.path()).unwrap();
        let extents = data_extents(&open).unwrap();
        let covers = |at| {
            extents
                .iter()
                .any(|(start, end)| (*start..*end).contains(&at))
        };
        assert!(covers(1 << 16) && covers((1 << 16) + 4095));
        assert!(extents.is_sorted());
        assert_eq!(open.size(), 1 << 20);
    }

    #[test]
    fn a_part_ends_where_it_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..200).collect();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let part = File::open_part(file.path(), &(50..150)).unwrap();
        assert_eq!(part.size(), 100);
        let mut buf = [0; 60];
        part.read_exact_at(40, &mut buf).unwrap();
        assert_eq!(buf[..], bytes[90..150]);
        assert!(part.read_exact_at(41, &mut buf).is_err());
        assert!(part.read_exact_at(u64::MAX, &mut buf).is_err());
        assert!(File::open_part(file.path(), &(50..201)).is_err());
    }

    #[test]
    fn a_directory_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(File::open(dir.path()).is_err());
    }

    #[test]
    fn a_shrunken_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000).unwrap();
        let open = File::open(file.path()).unwrap();
        file.as_file().set_len(500).unwrap();
        let mut buf = [0; 1000];
        assert!(open.read_exact_at(0, &mut buf).is_err());
    }
}
