// SPDX-License-Identifier: MIT
//! The tool `obd`, for guests and for images.

use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::process::Tool;
use std::fs;
use std::path::PathBuf;

/// Builds the tool.
pub(crate) fn build(ctx: &Context) -> Result<PathBuf> {
    let dir = ctx.part_dir("obd");
    fs::create_dir_all(&dir).at("create the folder", &dir)?;
    let target = dir.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo)
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "obd", "--target-dir"])
        .arg(&target)
        .dir(ctx.root())
        .logged(ctx, &dir.join("build.log"))?;
    Ok(target.join("release/obd"))
}
