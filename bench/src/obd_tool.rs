// SPDX-License-Identifier: MIT
//! The tool `obd`, for guests and for images.

use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::process::Tool;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// Builds the tool; with SPDK's driver if its sources are given.
pub(crate) fn build(ctx: &Context, spdk: Option<&Path>) -> Result<PathBuf> {
    let dir = ctx.part_dir("obd");
    fs::create_dir_all(&dir).at("create the folder", &dir)?;
    let target = dir.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tool = Tool::new(cargo)
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "obd", "--target-dir"])
        .arg(&target);
    if let Some(sources) = spdk {
        tool = tool
            .args(["--features", "spdk"])
            .env("OBD_SPDK_SOURCE", sources);
    }
    tool.dir(ctx.root()).logged(ctx, &dir.join("build.log"))?;
    let built = target.join("release/obd");
    if spdk.is_none() {
        return Ok(built);
    }
    // The next build without it writes to the same place.
    let kept = dir.join("obd-spdk");
    if !ctx.dry_run {
        let partial = dir.join("obd-spdk.partial");
        fs::copy(&built, &partial).at("copy", &built)?;
        fs::rename(&partial, &kept).at("move", &partial)?;
    }
    Ok(kept)
}
