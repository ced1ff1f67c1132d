// SPDX-License-Identifier: MIT
//! The QEMU plugin: built when needed, and its argument for QEMU.

use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use serde::de::DeserializeOwned;
use serde_json::Value;
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

/// Reads what the plugin wrote to `out` in that schema, and takes it away for the next
/// to write.
pub(crate) fn take_counts<T: DeserializeOwned>(out: &Path, schema: u32) -> Result<T> {
    let text = fs::read_to_string(out).map_err(|source| {
        Error::new(format!("the plugin wrote no counts: {source}"))
            .hint("see the guest's log and QEMU's messages in it")
    })?;
    fs::remove_file(out).at("remove", out)?;
    let wrong = |what: String| {
        Error::new(format!("the plugin's counts cannot be read: {what}"))
            .hint("plugin and program are of different versions: build both from one checkout")
    };
    let counts: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    match counts.get("schema").and_then(Value::as_u64) {
        Some(found) if found == u64::from(schema) => {}
        Some(found) => return Err(wrong(format!("their schema is {found}"))),
        None => return Err(wrong("they have no schema".to_owned())),
    }
    serde_json::from_value(counts).map_err(|error| wrong(error.to_string()))
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
    use std::collections::BTreeMap;
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
    fn test_take_counts_missing_or_foreign_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("counts.json");
        let taken = |text: &str| {
            fs::write(&out, text).unwrap();
            take_counts::<BTreeMap<String, u32>>(&out, 3)
        };
        for (text, what) in [
            ("", "cannot be read"),
            ("{}", "no schema"),
            (r#"{ "schema": 9 }"#, "schema is 9"),
            (r#"{ "schema": 3, "more": "x" }"#, "cannot be read"),
        ] {
            let error = taken(text).unwrap_err();
            assert!(error.what().contains(what), "{text}: {}", error.what());
        }
        assert_eq!(taken(r#"{ "schema": 3, "more": 5 }"#).unwrap()["more"], 5);
        // The next must not read the same.
        let gone = take_counts::<Value>(&out, 3).unwrap_err();
        assert!(gone.what().contains("no counts"), "{}", gone.what());
    }

    #[test]
    fn test_qemu_args_path_not_utf8_returns_error() {
        let odd = Path::new(OsStr::from_bytes(b"/\xff"));
        let ok = Path::new("/a");
        assert!(qemu_args(odd, ok, ok, "").is_err());
    }
}
