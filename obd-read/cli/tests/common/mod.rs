// SPDX-License-Identifier: MIT

//! The tool, run in a folder.

use serde_json::Value;
use std::path::Path;
use std::process::{
    Command,
    Output, //
};

pub(crate) fn obd(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_obd"))
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the tool, which must succeed, and returns its JSON.
pub(crate) fn json_of(dir: &Path, args: &[&str]) -> Value {
    let output = obd(dir, &[&["--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the tool, which must fail with this code and one line.
pub(crate) fn fails(dir: &Path, args: &[&str], code: i32, says: &str) {
    let text = failed(dir, args, code, says);
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// Runs the tool, which must fail with this code; what it said.
pub(crate) fn failed(dir: &Path, args: &[&str], code: i32, says: &str) -> String {
    let output = obd(dir, args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(says), "{text}");
    text
}
