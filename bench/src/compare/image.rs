// SPDX-License-Identifier: MIT
//! The drive image: an ext4 file system with fio's file and a filled database,
//! made on the host without mounting anything, and kept in the cache.

use super::db;
use super::fio;
use super::workload::Sizing;
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
use sha2::{
    Digest,
    Sha256, //
};
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
/// Room for what the workloads write, in MiB.
const SLACK_MIB: u64 = 512;

/// A finished image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The raw file.
    pub(crate) path: PathBuf,
    /// The same key means the same contents.
    pub(crate) key: String,
}

/// Finds the image for `sizing` in the cache, or makes it.
pub(crate) fn find_or_make(ctx: &Context, sizing: &Sizing) -> Result<Image> {
    let db_bench = tool("db_bench")?;
    let mke2fs = tool("mke2fs")?;
    let key = key(
        sizing,
        &super::machine::tool_version(&db_bench, "--version"),
    );
    let size_mib = sizing.file_mib + db::base_bytes(sizing.keys) / MIB + SLACK_MIB;
    if ctx.dry_run {
        // Where it would be; nothing is made, the folder neither.
        let path = ctx.cache().join("images").join(format!("drive-{key}.img"));
        println!("{}", fill(&db_bench, Path::new("STAGING"), sizing).line());
        println!(
            "{}",
            format_tool(&mke2fs, Path::new("STAGING"), &path, size_mib).line()
        );
        return Ok(Image { path, key });
    }
    let dir = ctx.cache_dir("images")?;
    let path = dir.join(format!("drive-{key}.img"));
    if path.is_file() {
        return Ok(Image { path, key });
    }
    // The files once on their way, once in the image.
    let data_mib = sizing.file_mib + db::base_bytes(sizing.keys) / MIB;
    let needed = (2 * data_mib + SLACK_MIB / 4) * MIB;
    space::check(&dir, needed, "the drive image")?;
    let bar = ctx.ui.spinner("making the drive image (once)");
    let staging = tempfile::Builder::new()
        .prefix(".making-")
        .tempdir_in(&dir)
        .at("create a folder in", &dir)?;
    let root = staging.path().join("root");
    fs::create_dir(&root).at("create the folder", &root)?;
    write_random(&root.join(fio::DATA), sizing.file_mib)?;
    fill(&db_bench, &root, sizing).output()?;
    tidy(&root.join(db::BASE))?;
    let raw = staging.path().join("drive.img");
    File::create(&raw)
        .and_then(|file| file.set_len(size_mib * MIB))
        .at("create", &raw)?;
    format_tool(&mke2fs, &root, &raw, size_mib).output()?;
    fs::rename(&raw, &path).at("put in place", &path)?;
    bar.finish_and_clear();
    Ok(Image { path, key })
}

fn tool(name: &str) -> Result<PathBuf> {
    find_on_path(name).ok_or_else(|| {
        Error::new(format!("{name} is missing"))
            .hint("run `cargo aios doctor` to see which package has it")
    })
}

fn key(sizing: &Sizing, db_version: &str) -> String {
    let text = format!(
        "{LAYOUT} {} {} {:?} {db_version}",
        sizing.file_mib,
        sizing.keys,
        db::fill_args(sizing.keys)
    );
    let digest = Sha256::digest(text.as_bytes());
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn fill(db_bench: &Path, root: &Path, sizing: &Sizing) -> Tool {
    Tool::new(db_bench)
        .args(db::fill_args(sizing.keys))
        .dir(root)
}

fn format_tool(mke2fs: &Path, root: &Path, image: &Path, size_mib: u64) -> Tool {
    Tool::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        // Nothing left for the kernel to initialise amid a measurement.
        .args([
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-d",
        ])
        .arg(root)
        .arg(image)
        .arg(format!("{size_mib}M"))
}

/// A file of random bytes: nothing on the way may compress or skip them.
pub(crate) fn write_random(path: &Path, mib: u64) -> Result<()> {
    let mut file = File::create(path).at("create", path)?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        random.fill(&mut block);
        file.write_all(&block).at("write", path)?;
    }
    file.sync_all().at("write", path)
}

/// Removes what db_bench keeps beside the database: its log and lock.
pub(crate) fn tidy(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base).at("read the folder", base)? {
        let path = entry.at("read the folder", base)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("LOG") || name == "LOCK" || name.ends_with(".log") {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sizing(file_mib: u64) -> Sizing {
        Sizing {
            runtime: Duration::from_secs(1),
            file_mib,
            keys: 10,
        }
    }

    #[test]
    fn test_key_depends_on_contents_only() {
        let mut longer = sizing(1);
        longer.runtime = Duration::from_secs(9);
        assert_eq!(key(&sizing(1), "v"), key(&longer, "v"));
        assert_ne!(key(&sizing(1), "v"), key(&sizing(2), "v"));
        assert_ne!(key(&sizing(1), "v"), key(&sizing(1), "w"));
    }

    #[test]
    fn test_tidy_keeps_the_database() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "000008.sst",
            "000004.log",
            "LOG",
            "LOG.old.1",
            "LOCK",
            "CURRENT",
        ] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        tidy(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["000008.sst", "CURRENT"]);
    }
}
