// SPDX-License-Identifier: MIT

//! Where layers go.

use crate::error::TargetError;
use std::fs::{
    File,
    Permissions, //
};
use std::io::{
    self,
    Write, //
};
use std::os::unix::fs::{
    FileExt,
    PermissionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use tempfile::NamedTempFile;

/// What a layer is written to: from beginning to end, then the first bytes once
/// more. Dropped without [`Sink::finish`], it must leave nothing behind.
pub trait Sink {
    /// Writes `bytes` behind what was written before.
    ///
    /// # Errors
    ///
    /// Whatever the system says; the layer is given up then.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Lends memory that goes to where the layer is written without another copy:
    /// what comes behind what was written before is made there. It has `least` bytes
    /// or more; [`None`], and then always for as many, if there is no such memory.
    ///
    /// # Errors
    ///
    /// As [`Sink::append`].
    fn lend(&mut self, least: usize) -> io::Result<Option<&mut [u8]>> {
        let _ = least;
        Ok(None)
    }

    /// Says that the first `len` bytes of what was lent last are written behind what
    /// was written before. Nothing was called in between.
    ///
    /// # Errors
    ///
    /// As [`Sink::append`].
    fn lent(&mut self, len: usize) -> io::Result<()> {
        let _ = len;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes that were copied once more by the sink, beyond those it was passed.
    fn moved(&self) -> u64 {
        0
    }

    /// Says that what was appended so far holds the first `content` bytes of the
    /// layer before compression, and that the blocks that came since the last
    /// call have `lens` stored bytes: all that [`crate::Checkpoint`] needs.
    ///
    /// # Errors
    ///
    /// As [`Sink::append`].
    fn batch(&mut self, content: u64, lens: &[u32]) -> io::Result<()> {
        let _ = (content, lens);
        Ok(())
    }

    /// Writes `bytes` over the first ones that were appended, which are as many
    /// or more.
    ///
    /// # Errors
    ///
    /// As [`Sink::append`].
    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the layer durable, and visible if it was not.
    ///
    /// # Errors
    ///
    /// Whatever the system says. The layer may be there, but need not survive.
    fn finish(self) -> io::Result<()>;
}

/// Memory.
impl Sink for &mut Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is there whole and durable, or not at all.
///
/// It grows under a temporary name beside its own (`.obd-` and six characters)
/// and is renamed once it is on disk. Only a killed process or a crash of the
/// machine can leave the temporary file behind.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    temporary: NamedTempFile,
    /// Opened first: when the file is in place, only this may still fail.
    dir: File,
    replace: bool,
}

impl FileSink {
    /// A file to be at `path`, instead of one that is there if `replace`.
    ///
    /// # Errors
    ///
    /// [`TargetError::Exists`] for what may not be replaced,
    /// [`TargetError::NotAFile`] for what never is.
    pub fn create(path: impl Into<PathBuf>, replace: bool) -> Result<Self, TargetError> {
        let path = path.into();
        match std::fs::symlink_metadata(&path) {
            Ok(there) if !there.is_file() => return Err(TargetError::NotAFile(path)),
            Ok(_) if !replace => return Err(TargetError::Exists(path)),
            _ => {}
        }
        let made = parent(&path).and_then(|dir| {
            let temporary = tempfile::Builder::new()
                .prefix(".obd-")
                // As any new file; the umask is applied to it.
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(dir)?;
            Ok((temporary, File::open(dir)?))
        });
        match made {
            Ok((temporary, dir)) => Ok(Self {
                path,
                temporary,
                dir,
                replace,
            }),
            Err(error) => Err(TargetError::Io {
                what: "create",
                path,
                error,
            }),
        }
    }
}

impl FileSink {
    /// The file in the making, for somebody who writes to it by other means.
    pub fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Makes the file `len` bytes long; what was not written is a hole.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.temporary.as_file().set_len(len)
    }
}

/// The directory a file is in, or will be.
fn parent(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        None => Err(io::ErrorKind::InvalidInput.into()),
        Some(dir) if dir == Path::new("") => Ok(Path::new(".")),
        Some(dir) => Ok(dir),
    }
}

impl Sink for FileSink {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.temporary.as_file_mut().write_all(bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.temporary.as_file().write_all_at(bytes, 0)
    }

    fn finish(self) -> io::Result<()> {
        // The content before the name, the name before success is reported.
        self.temporary.as_file().sync_all()?;
        match self.replace {
            true => self.temporary.persist(&self.path)?,
            false => self.temporary.persist_noclobber(&self.path)?,
        };
        self.dir.sync_all()
    }
}
