// SPDX-License-Identifier: MIT
//! The sources of SPDK's NVMe driver. Nothing of it is in this project: it is
//! unpacked into the cache, and compiled when `obd` is built with it.

use super::base::{
    Base,
    Spdk, //
};
use super::{
    Need,
    fetch,
    lock, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// What is unpacked of the tree.
const PARTS: [&str; 5] = ["LICENSE", "include", "lib/log", "lib/nvme", "lib/util"];

/// What to do without a download.
const REMEDY: &str = "give SPDK's source tree with `aios setup --spdk --spdk-source DIR`";

/// A file that every tree has.
const PROOF: &str = "lib/nvme/nvme_pcie.c";

/// Where the sources are or will be.
fn place(ctx: &Context, pinned: &Spdk) -> PathBuf {
    ctx.cache().join(format!("tools/spdk-{}", pinned.version))
}

/// The sources, if they are there already.
pub(super) fn find(ctx: &Context, pinned: &Spdk) -> Option<PathBuf> {
    let dir = place(ctx, pinned);
    dir.join(PROOF).is_file().then_some(dir)
}

/// The sources: those in the cache, put there from `given` if that is a tree, else
/// from the pinned tarball.
pub(crate) fn ensure(ctx: &Context, given: Option<&Path>) -> Result<PathBuf> {
    let pinned = Base::load(ctx.root())?.spdk;
    let dir = place(ctx, &pinned);
    let _lock = match ctx.dry_run {
        true => None,
        false => Some(lock(&ctx.cache_dir("tools")?.join("lock"))?),
    };
    if let Some(given) = given {
        let given = fs::canonicalize(given).at("find", given)?;
        if !given.join(PROOF).is_file() {
            return Err(
                Error::new(format!("{} is no tree of SPDK's", given.display()))
                    .hint(format!("{PROOF} is missing in it")),
            );
        }
        let copy = Tool::new("sh")
            .args(["-c", "from=$1; shift; tar -C \"$from\" -c \"$@\" | tar -x"])
            .arg("sh")
            .arg(&given)
            .args(PARTS);
        fill(ctx, &dir, copy)?;
        return Ok(dir);
    }
    if let Some(found) = find(ctx, &pinned) {
        return Ok(found);
    }
    super::ensure(ctx, &[Need::Build])?;
    let downloads = ctx.cache().join("packages");
    if !ctx.dry_run {
        fs::create_dir_all(&downloads).at("create the folder", &downloads)?;
    }
    let tarball = fetch::file(ctx, &pinned.file, &pinned.sha256, &downloads)
        .map_err(|error| error.hint(REMEDY))?;
    let depth = pinned.folder.split('/').count();
    let parts: Vec<String> = PARTS
        .iter()
        .map(|part| format!("{}/{part}", pinned.folder))
        .collect();
    let unpack = Tool::new("tar")
        .args(["-xJf"])
        .arg(&tarball)
        .arg(format!("--strip-components={depth}"))
        .args(parts);
    fill(ctx, &dir, unpack)?;
    if !ctx.dry_run {
        // Most of it is something else's.
        fs::remove_file(&tarball).at("remove", &tarball)?;
    }
    Ok(dir)
}

/// Makes the folder `dir`, whole or not at all, of what `tool` writes into its
/// working folder.
fn fill(ctx: &Context, dir: &Path, tool: Tool) -> Result<()> {
    if ctx.dry_run {
        println!("{}", tool.line());
        return Ok(());
    }
    let tools = ctx.cache_dir("tools")?;
    let spinner = ctx.ui.spinner("Unpacking SPDK's NVMe driver");
    let temp = tempfile::tempdir_in(&tools).at("create a folder in", &tools);
    let filled = temp.and_then(|temp| {
        tool.dir(temp.path()).output()?;
        if dir.exists() {
            fs::remove_dir_all(dir).at("remove", dir)?;
        }
        fs::rename(temp.path(), dir).at("move to", dir)
    });
    spinner.finish_and_clear();
    filled
}
