// SPDX-License-Identifier: MIT
//! The same tree in each contender's form, made on the host without mounting
//! anything, and kept in the cache.

use crate::compare::fio;
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::{
    Tool,
    find_on_path, //
};
use crate::space;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::path::{
    Path,
    PathBuf, //
};

/// Changes when the contents are made in another way.
const LAYOUT: u32 = 1;
const MIB: u64 = 1 << 20;
/// Room of the file system beside the file, in MiB.
const SLACK_MIB: u64 = 32;
/// Part of each 4 KiB that is random, in bytes; the rest repeats a few words.
const RANDOM_BYTES: usize = 1536;

/// Raw files of the drives, in the order of the guest's NVMe controllers.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) drives: [PathBuf; 4],
}

/// Names of [`Images::drives`], in their order, which each contender knows.
const NAMES: [&str; 4] = ["bare", "obd", "erofs", "squashfs"];

/// Finds the images of a tree with a file of `file_mib` MiB in the cache, or makes
/// them; `tool` is `obd`.
pub(super) fn find_or_make(ctx: &Context, file_mib: u64, tool: &Path) -> Result<Images> {
    let path = ctx
        .cache()
        .join("images")
        .join(format!("obd-{LAYOUT}-{file_mib}"));
    let images = Images {
        drives: NAMES.map(|name| path.join(format!("{name}.img"))),
    };
    if path.is_dir() || ctx.dry_run {
        return Ok(images);
    }
    let dir = ctx.cache_dir("images")?;
    // The file, the file system, and three times about half of it.
    space::check(&dir, 4 * file_mib * MIB, "the images")?;
    let bar = ctx.ui.spinner("making the images (once)");
    let staging = tempfile::Builder::new()
        .prefix(".making-")
        .tempdir_in(&dir)
        .at("create a folder in", &dir)?;
    let root = staging.path().join("root");
    fs::create_dir(&root).at("create the folder", &root)?;
    write_mixed(&root.join(fio::DATA), file_mib)?;
    let made = staging.path().join("made");
    fs::create_dir(&made).at("create the folder", &made)?;
    for tool in tools(tool, &root, &made, file_mib)? {
        tool.output()?;
    }
    for name in NAMES {
        pad(&made.join(format!("{name}.img")))?;
    }
    fs::rename(&made, &path).at("put in place", &path)?;
    bar.finish_and_clear();
    Ok(images)
}

/// The commands that make the images in `made` of the tree `root`.
fn tools(obd: &Path, root: &Path, made: &Path, file_mib: u64) -> Result<Vec<Tool>> {
    let image = |name: &str| made.join(format!("{name}.img"));
    let found = |name: &str| {
        find_on_path(name).ok_or_else(|| {
            Error::new(format!("{name} is missing"))
                .hint("run `cargo aios doctor` to see which package has it")
        })
    };
    Ok(vec![
        Tool::new(found("mke2fs")?)
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
            .args(["-O", "^has_journal", "-E", "nodiscard", "-d"])
            .arg(root)
            .arg(image("bare"))
            .arg(format!("{}M", file_mib + SLACK_MIB)),
        Tool::new(obd)
            .args(["convert", "--engine=cache", "--block-size=4", "--output"])
            .arg(image("obd"))
            .arg(image("bare")),
        Tool::new(found("mkfs.erofs")?)
            .args(["-zlz4", "-C4096"])
            .arg(image("erofs"))
            .arg(root),
        Tool::new(found("mksquashfs")?)
            .arg(root)
            .arg(image("squashfs"))
            .args(["-comp", "lz4", "-noappend", "-no-progress", "-quiet"]),
    ])
}

/// A file of blocks that LZ4 makes about half as long, each of its own.
fn write_mixed(path: &Path, mib: u64) -> Result<()> {
    const WORDS: &[u8] = b"pages of a tree that many read and nobody writes; ";
    let mut file = File::create(path).at("create", path)?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut chunk = vec![0; MIB as usize];
    for _ in 0..mib {
        for block in chunk.chunks_exact_mut(4096) {
            let (noise, text) = block.split_at_mut(RANDOM_BYTES);
            random.fill(noise);
            for (byte, word) in text.iter_mut().zip(WORDS.iter().cycle()) {
                *byte = *word;
            }
        }
        file.write_all(&chunk).at("write", path)?;
    }
    file.sync_all().at("write", path)
}

/// Makes a file as long as a drive may be: whole MiB.
fn pad(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path).at("open", path)?;
    let len = file.metadata().at("look at", path)?.len();
    file.set_len(len.next_multiple_of(MIB)).at("resize", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::obd::contender::Contender;

    #[test]
    fn test_drives_are_where_the_contenders_look() {
        for (contender, name) in [
            (Contender::Bare, "bare"),
            (Contender::Obd, "obd"),
            (Contender::ObdOff, "obd"),
            (Contender::Ublk, "obd"),
            (Contender::Erofs, "erofs"),
            (Contender::Squashfs, "squashfs"),
        ] {
            let number = NAMES.iter().position(|other| *other == name).unwrap();
            assert_eq!(contender.drive(), format!("/dev/nvme{number}n1"));
        }
    }

    #[test]
    fn test_write_mixed_is_of_different_blocks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_mixed(file.path(), 1).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        let mut blocks: Vec<&[u8]> = bytes.chunks(4096).collect();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!(blocks.len(), 256);
    }

    #[test]
    fn test_pad_rounds_up_to_mebibytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "x").unwrap();
        pad(file.path()).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), MIB);
    }
}
