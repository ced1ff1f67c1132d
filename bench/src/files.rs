// SPDX-License-Identifier: MIT
//! Output files: folders proven writable before any work, files that appear
//! whole or not at all.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes the folder `dir` if it is not there, and fails unless it can be
/// written to.
pub(crate) fn check_writable(dir: &Path) -> Result<()> {
    let made = fs::create_dir_all(dir).at("create the folder", dir);
    made.and_then(|()| tempfile::tempfile_in(dir).at("write into", dir))
        .map_err(|error| error.hint("choose a folder that can be written to"))?;
    Ok(())
}

/// Writes a file that appears whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".aios-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(dir)
        .at("write into", dir)?;
    file.write_all(bytes.as_ref()).at("write", path)?;
    file.persist(path)
        .map_err(|error| Error::io("write", path, &error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_check_writable_below_a_file_returns_error_with_hint() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = check_writable(&file.path().join("x")).unwrap_err();
        assert!(error.to_string().contains("choose a folder"), "{error}");
    }

    #[test]
    fn test_write_whole_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["longer text", "text"] {
            write_whole(&dir.path().join("a"), text).unwrap();
        }
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "text");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn test_write_whole_into_no_folder_returns_error() {
        let error = write_whole(Path::new("/nonexistent/x"), "text").unwrap_err();
        assert!(error.what().contains("/nonexistent"), "{error}");
    }
}
