// SPDX-License-Identifier: MIT
//! The QEMU plugin: built when needed, and its argument for QEMU.

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

/// The plugin's path, built when needed. One build fits every QEMU.
pub(crate) fn build(ctx: &Context) -> Result<PathBuf> {
    let dir = ctx.part_dir("plugin");
    if !ctx.dry_run {
        fs::create_dir_all(&dir).at("create the folder", &dir)?;
    }
    let target_dir = dir.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo)
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "aios-insn-plugin", "--lib", "--target-dir"])
        .arg(&target_dir)
        .dir(ctx.root())
        .logged(ctx, &dir.join("build.log"))?;
    Ok(target_dir.join("release/libaios_insn_plugin.so"))
}

/// QEMU's arguments that load the plugin for the kernel of `map`; the counts go
/// to `out`.
pub(crate) fn qemu_args(plugin: &Path, map: &Path, out: &Path, rules: &str) -> Result<Vec<String>> {
    let argument = format!(
        "{},map={},out={},{rules}",
        option(plugin)?,
        option(map)?,
        option(out)?
    );
    Ok(vec!["-plugin".to_owned(), argument])
}

/// A path as part of a QEMU option: commas doubled.
fn option(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Error::new(format!("the path {} is not UTF-8", path.display()))
            .hint("choose other folders (--out, --cache)")
    })?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn test_qemu_args_double_commas_in_paths() {
        let args = qemu_args(
            Path::new("/a,b.so"),
            Path::new("/map"),
            Path::new("/out"),
            "commands=1",
        );
        assert_eq!(
            args.unwrap(),
            ["-plugin", "/a,,b.so,map=/map,out=/out,commands=1"]
        );
    }

    #[test]
    fn test_qemu_args_path_not_utf8_returns_error() {
        let odd = Path::new(OsStr::from_bytes(b"/\xff"));
        let ok = Path::new("/a");
        assert!(qemu_args(odd, ok, ok, "").is_err());
    }
}
