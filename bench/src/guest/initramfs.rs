// SPDX-License-Identifier: MIT
//! The initramfs: a cpio archive ("newc", see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`) with the init
//! and the console that the kernel opens for it.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::NamedTempFile;

/// Major and minor number of `/dev/console`.
const CONSOLE: (u32, u32) = (5, 1);

/// Writes an initramfs of `init` to `to`, whole or not at all. The same init
/// gives the same bytes.
pub(crate) fn write(init: &Path, to: &Path) -> Result<()> {
    let program = fs::read(init).at("read", init)?;
    let bytes = archive(&program)
        .ok_or_else(|| Error::new(format!("{} is too large for cpio", init.display())))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(dir).at("create a file in", dir)?;
    file.write_all(&bytes).at("write", to)?;
    file.persist(to)
        .map_err(|error| Error::io("write", to, &error.error))?;
    Ok(())
}

/// The archive's bytes; `None` when `init` is 4 GiB or larger.
fn archive(init: &[u8]) -> Option<Vec<u8>> {
    let mut archive = Archive::default();
    archive.entry("dev", libc::S_IFDIR | 0o755, (0, 0), &[])?;
    archive.entry("dev/console", libc::S_IFCHR | 0o600, CONSOLE, &[])?;
    archive.entry("init", libc::S_IFREG | 0o755, (0, 0), init)?;
    archive.entry("TRAILER!!!", 0, (0, 0), &[])?;
    Some(archive.bytes)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Option<()> {
        self.entries += 1;
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // modification time
            u32::try_from(data.len()).ok()?,
            0, // device that holds it: major
            0, // and minor
            device.0,
            device.1,
            u32::try_from(name.len() + 1).ok()?,
            0, // checksum, unused in newc
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(data);
        self.align();
        Some(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_archive_has_the_bytes_of_newc() {
        let bytes = archive(b"ELF!!").unwrap();
        let text = String::from_utf8_lossy(&bytes).replace('\0', "~");
        let expected = [
            "070701 00000001 000041ed 00000000 00000000 00000001 00000000",
            "00000000 00000000 00000000 00000000 00000000 00000004 00000000",
            "dev~~~",
            "070701 00000002 00002180 00000000 00000000 00000001 00000000",
            "00000000 00000000 00000000 00000005 00000001 0000000c 00000000",
            "dev/console~~~",
            "070701 00000003 000081ed 00000000 00000000 00000001 00000000",
            "00000005 00000000 00000000 00000000 00000000 00000005 00000000",
            "init~~ELF!!~~~",
            "070701 00000004 00000000 00000000 00000000 00000001 00000000",
            "00000000 00000000 00000000 00000000 00000000 0000000b 00000000",
            "TRAILER!!!~~~~",
        ]
        .concat()
        .replace(' ', "");
        assert_eq!(text, expected);
    }

    #[test]
    fn test_write_missing_init_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("none"), &dir.path().join("out")).unwrap_err();
        assert!(error.what().starts_with("cannot read"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
