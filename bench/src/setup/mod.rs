// SPDX-License-Identifier: MIT
//! What must be on the machine, and getting it there.

pub(crate) mod base;
pub(crate) mod doctor;
pub(crate) mod fetch;
mod packages;
mod sources;
pub(crate) mod spdk;

use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::obd_tool;
use crate::process::{
    Tool,
    find_on_path, //
};
use base::Base;
use std::fs::{
    self,
    File, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// Options of `aios setup`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// SPDK's NVMe driver, for the engine `spdk` of `obd`.
    #[arg(long, required = true)]
    spdk: bool,
    /// SPDK's source tree (20.07) to use instead of the pinned one.
    #[arg(long, value_name = "DIR")]
    spdk_source: Option<PathBuf>,
}

/// Runs `aios setup`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    debug_assert!(args.spdk);
    let tree = spdk::ensure(ctx, args.spdk_source.as_deref())?;
    if !ctx.dry_run {
        ctx.ui
            .say(format!("SPDK's sources are in {}", tree.display()));
    }
    let obd = obd_tool::build(ctx, Some(&tree))?;
    if !ctx.dry_run {
        println!("{}", obd.display());
    }
    Ok(0)
}

/// What a command is about to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compilers and libraries to build a kernel, bindgen, rust-src.
    Build,
    /// QEMU, a static C library for the guest's init, cpio.
    Boot,
    /// fio, db_bench, e2fsprogs.
    Workloads,
    /// mkfs.erofs, mksquashfs.
    Images,
    /// dmsetup, veritysetup.
    Mapper,
    /// clang, lld and llvm for KASAN builds.
    Clang,
    /// Debian's packaging tools.
    Deb,
}

/// Makes sure that everything for `needs` is there: installs missing Debian
/// packages (saying which) or fails with one copy-and-paste line.
pub(crate) fn ensure(ctx: &Context, needs: &[Need]) -> Result<()> {
    packages::ensure(ctx, needs)
}

/// Environment of a kernel build.
#[derive(Debug, Clone)]
pub(crate) struct KernelTools {
    /// `bindgen` of the pinned version.
    pub(crate) bindgen: PathBuf,
    /// `library/` of the rust-src that fits the rustc in use.
    pub(crate) rust_lib_src: PathBuf,
    /// Folder with `libclang.so`.
    pub(crate) libclang: PathBuf,
}

/// Fetches (once) what a kernel build needs beside Debian packages.
pub(crate) fn kernel_tools(ctx: &Context) -> Result<KernelTools> {
    let base = Base::load(ctx.root())?;
    // One at a time: both downloads and cargo write into shared folders.
    let _lock = if ctx.dry_run {
        None
    } else {
        Some(lock(&ctx.cache_dir("tools")?.join("lock"))?)
    };
    Ok(KernelTools {
        bindgen: bindgen(ctx, &base.bindgen.version)?,
        rust_lib_src: rust_lib_src(ctx, &base)?,
        libclang: match packages::libclang() {
            Some(dir) => dir,
            // Only a dry run comes here without it.
            None => PathBuf::from("/usr/lib/llvm-19/lib"),
        },
    })
}

/// Takes the lock file at `path`, waiting for whoever has it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .at("open the lock", path)?;
    if file.try_lock().is_err() {
        eprintln!("Waiting for another run that uses {}", path.display());
        file.lock().at("lock", path)?;
    }
    Ok(file)
}

/// Where cargo puts bindgen `version`.
fn bindgen_root(ctx: &Context, version: &str) -> PathBuf {
    ctx.cache().join(format!("tools/bindgen-{version}"))
}

/// The right bindgen, if it is there already.
fn find_bindgen(ctx: &Context, version: &str) -> Option<PathBuf> {
    let own = bindgen_root(ctx, version).join("bin/bindgen");
    [Some(own), find_on_path("bindgen")]
        .into_iter()
        .flatten()
        .find(|file| {
            file.is_file()
                && Tool::new(file)
                    .arg("--version")
                    .text()
                    .is_ok_and(|text| text.split_whitespace().last() == Some(version))
        })
}

fn bindgen(ctx: &Context, version: &str) -> Result<PathBuf> {
    if let Some(found) = find_bindgen(ctx, version) {
        return Ok(found);
    }
    let root = bindgen_root(ctx, version);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let install = Tool::new(cargo)
        .args(["install", "bindgen-cli", "--locked", "--version", version])
        .arg("--root")
        .arg(&root);
    if ctx.dry_run {
        println!("{}", install.line());
        return Ok(root.join("bin/bindgen"));
    }
    fs::create_dir_all(&root).at("create the folder", &root)?;
    let log = ctx.cache_dir("log")?.join("bindgen.log");
    let spinner = ctx.ui.spinner(&format!("Installing bindgen {version}"));
    // Away from the project: its cargo configuration is not for bindgen.
    let result = install.dir(&root).logged(ctx, &log);
    spinner.finish_and_clear();
    result?;
    find_bindgen(ctx, version).ok_or_else(|| {
        Error::new(format!("cargo installed no working bindgen {version}"))
            .hint(format!("see {}", log.display()))
    })
}

/// Version of the rustc in use, `1.95.0`.
pub(crate) fn rustc_version() -> Result<String> {
    let text = Tool::new("rustc")
        .arg("--version")
        .text()
        .map_err(|error| {
            error.hint("install Rust with rustup, or Debian's rustc, and put it on PATH")
        })?;
    rustc_version_in(&text)
        .ok_or_else(|| Error::new(format!("rustc gives its version as `{text}`")))
}

fn rustc_version_in(text: &str) -> Option<String> {
    text.strip_prefix("rustc ")?
        .split_whitespace()
        .next()
        .map(str::to_owned)
}

/// Where the rust-src of `rustc` is or will be: the toolchain's own, or the
/// pinned Debian package's.
fn find_rust_lib_src(ctx: &Context, rustc: &str) -> Option<PathBuf> {
    let sysroot = Tool::new("rustc")
        .args(["--print", "sysroot"])
        .text()
        .ok()?;
    [
        Path::new(&sysroot).join("lib/rustlib/src/rust/library"),
        ctx.cache().join(format!("tools/rust-src-{rustc}")),
    ]
    .into_iter()
    .find(|dir| dir.join("core/src/lib.rs").is_file())
}

fn rust_lib_src(ctx: &Context, base: &Base) -> Result<PathBuf> {
    let rustc = rustc_version()?;
    if let Some(found) = find_rust_lib_src(ctx, &rustc) {
        return Ok(found);
    }
    let pinned = base
        .rust_src
        .iter()
        .find(|entry| entry.rustc == rustc)
        .ok_or_else(|| {
            Error::new(format!("no library sources (rust-src) for rustc {rustc}")).hint(format!(
                "run `rustup component add rust-src`, or use rustc {}",
                tried(base)
            ))
        })?;
    let dir = ctx.cache().join(format!("tools/rust-src-{rustc}"));
    let deb = fetch::package(ctx, &pinned.package())?;
    if ctx.dry_run {
        return Ok(dir);
    }
    let spinner = ctx.ui.spinner(&format!("Unpacking rust-src {rustc}"));
    let unpacked = tempfile::tempdir_in(ctx.cache_dir("tools")?)
        .at("create a folder in", ctx.cache())
        .and_then(|temp| {
            fetch::unpack(&deb, &pinned.library, temp.path())?;
            // A leftover without core is from an interrupted run.
            if dir.exists() {
                fs::remove_dir_all(&dir).at("remove", &dir)?;
            }
            fs::rename(temp.path().join(&pinned.library), &dir).at("move to", &dir)
        });
    spinner.finish_and_clear();
    unpacked?;
    Ok(dir)
}

fn tried(base: &Base) -> String {
    let versions: Vec<&str> = base.rust_src.iter().map(|entry| &*entry.rustc).collect();
    versions.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_rustc_version_in_reads_release_and_junk() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)";
        assert_eq!(rustc_version_in(text).as_deref(), Some("1.95.0"));
        assert_eq!(rustc_version_in("clang 3"), None);
        assert_eq!(rustc_version_in(""), None);
    }

    #[test]
    fn test_lock_is_exclusive_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        assert!(other.try_lock().is_err());
        drop(held);
        assert!(other.try_lock().is_ok());
    }
}
