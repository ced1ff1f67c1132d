// SPDX-License-Identifier: MIT

//! An output file that is there whole or not at all.

use crate::error::{
    Error,
    Result, //
};
use std::fs::Permissions;
use std::os::unix::fs::{
    FileExt,
    PermissionsExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use tempfile::NamedTempFile;

/// A file in the making: a temporary one beside it, renamed when it is whole
/// and on disk, removed otherwise.
pub(crate) struct Output {
    path: PathBuf,
    temporary: NamedTempFile,
    force: bool,
}

impl Output {
    /// A file of `size` bytes, all of them zero for now.
    pub(crate) fn create(path: &Path, size: u64, force: bool) -> Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => return Err(Error::NotAFile(path.into())),
            Ok(_) if !force => return Err(Error::Exists(path.into())),
            _ => {}
        }
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let fail = |error| Error::io("create", path, error);
        let temporary = tempfile::Builder::new()
            .prefix(".obd-")
            // As any new file; the umask is applied to it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(fail)?;
        temporary.as_file().set_len(size).map_err(fail)?;
        Ok(Self {
            path: path.into(),
            temporary,
            force,
        })
    }

    /// Writes `bytes` at byte `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.temporary
            .as_file()
            .write_all_at(bytes, offset)
            .map_err(|error| Error::io("write", &self.path, error))
    }

    /// Puts the file in its place.
    pub(crate) fn finish(self) -> Result<()> {
        let path = self.path;
        self.temporary
            .as_file()
            .sync_all()
            .map_err(|error| Error::io("write", &path, error))?;
        let placed = match self.force {
            true => self.temporary.persist(&path),
            false => self.temporary.persist_noclobber(&path),
        };
        match placed {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::Exists(path))
            }
            Err(error) => Err(Error::io("create", path, error.error)),
        }
    }
}
