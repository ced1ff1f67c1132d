// SPDX-License-Identifier: MIT
//! The drive image: an ext4 file system with one file, made on the host without
//! mounting anything, and kept in the cache.

use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::process::{
    Tool,
    required, //
};
use std::fs;
use std::fs::File;
use std::io::{
    BufWriter,
    Write, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// The file in it.
pub(crate) const FILE: &str = "data";
/// Its size in bytes: every read of a run finds a block that is not cached.
pub(crate) const FILE_SIZE: u64 = 128 << 20;
/// Room for journal, metadata and appended blocks, in bytes.
const SLACK: u64 = 128 << 20;
/// Changes when the contents are made in another way.
const LAYOUT: u32 = 1;

/// Finds the image in the cache, or makes it.
pub(crate) fn find_or_make(ctx: &Context) -> Result<PathBuf> {
    let name = format!("profile-{LAYOUT}.img");
    let mke2fs = required("mke2fs")?;
    if ctx.dry_run {
        let path = ctx.cache().join("images").join(name);
        println!(
            "{}",
            format_tool(&mke2fs, Path::new("STAGING"), &path).line()
        );
        return Ok(path);
    }
    let dir = ctx.cache_dir("images")?;
    let path = dir.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let bar = ctx.ui.spinner("making the drive image (once)");
    // Gone again whatever happens; the image appears whole or not at all.
    let staging = tempfile::Builder::new()
        .prefix(".making-")
        .tempdir_in(&dir)
        .at("create a folder in", &dir)?;
    let root = staging.path().join("root");
    fs::create_dir(&root).at("create the folder", &root)?;
    let file = root.join(FILE);
    write_blocks(&file, FILE_SIZE).at("write", &file)?;
    let raw = staging.path().join("drive.img");
    File::create(&raw)
        .and_then(|file| file.set_len(FILE_SIZE + SLACK))
        .at("create", &raw)?;
    format_tool(&mke2fs, &root, &raw).output()?;
    fs::rename(&raw, &path).at("put in place", &path)?;
    bar.finish_and_clear();
    Ok(path)
}

/// A file whose blocks all differ and none is zero, so that each is allocated.
fn write_blocks(path: &Path, size: u64) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for word in 1..=size / 8 {
        file.write_all(&word.to_le_bytes())?;
    }
    file.flush()
}

fn format_tool(mke2fs: &Path, root: &Path, image: &Path) -> Tool {
    Tool::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        // Nothing left for the kernel to initialise amid a measurement.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg("-d")
        .arg(root)
        .arg(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_write_blocks_leaves_no_zero_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_blocks(&path, 3 * 4096).unwrap();
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len(), 3 * 4096);
        assert!(
            bytes
                .chunks(4096)
                .all(|block| block.iter().any(|&byte| byte != 0))
        );
        assert_ne!(bytes[..4096], bytes[4096..8192]);
    }
}
