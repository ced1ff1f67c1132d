// SPDX-License-Identifier: MIT
//! Checks of the sources themselves: format, lints, unit tests, licence lines.

use super::suite::{
    Outcome,
    Suite,
    check, //
};
use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::setup::{
    self,
    Need, //
};
use std::fs;
use std::path::Path;

/// Runs the host's cases.
pub(super) fn run(ctx: &Context, suite: &mut Suite) {
    suite.case("host/rustfmt", || {
        cargo(ctx).args(["fmt", "--all", "--check"]).output()?;
        kernel_rust_is_formatted(ctx)
    });
    suite.case("host/clippy", || {
        cargo(ctx)
            .args(["clippy", "--workspace", "--all-targets", "--quiet"])
            .args(["--", "-D", "warnings"])
            .output()?;
        Ok(Outcome::Passed)
    });
    suite.case("host/unit-tests", || {
        // Some run fio and db_bench.
        setup::ensure(ctx, &[Need::Workloads])?;
        let output = cargo(ctx)
            .args(["test", "--release", "--workspace", "--no-fail-fast"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let results = text
            .lines()
            .filter(|line| line.starts_with("test result:"))
            .count();
        check(results > 0, || {
            "cargo test printed no result line".to_owned()
        })?;
        Ok(Outcome::Passed)
    });
    suite.case("host/licence-lines", || licence_lines(ctx));
}

fn cargo(ctx: &Context) -> Tool {
    // The toolchain that runs this program, not another one on PATH.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo).dir(ctx.root())
}

/// In-kernel Rust is no member of the workspace; rustfmt must agree all the same.
fn kernel_rust_is_formatted(ctx: &Context) -> Result<Outcome> {
    let mut files = Vec::new();
    for dir in ["lbio/kernel", "obd-read/kernel", "rust"] {
        collect(&ctx.root().join(dir), &mut |path| {
            if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path.to_path_buf());
            }
            Ok(())
        })?;
    }
    check(!files.is_empty(), || "no in-kernel Rust found".to_owned())?;
    Tool::new("rustfmt")
        .args(["--check", "--edition", "2021"])
        .args(&files)
        .output()?;
    Ok(Outcome::Passed)
}

/// Every file says its licence in its first lines, where its kind can.
fn licence_lines(ctx: &Context) -> Result<Outcome> {
    let listed = Tool::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .dir(ctx.root())
        .text()?;
    let mut missing = Vec::new();
    for name in listed.split('\0').filter(|name| can_say_licence(name)) {
        let path = ctx.root().join(name);
        let Ok(bytes) = fs::read(&path) else {
            continue; // Deleted, not yet committed.
        };
        let head = &bytes[..bytes.len().min(300)];
        if !String::from_utf8_lossy(head).contains("SPDX-License-Identifier:") {
            missing.push(name);
        }
    }
    check(missing.is_empty(), || {
        format!("no SPDX-License-Identifier in {}", missing.join(", "))
    })?;
    Ok(Outcome::Passed)
}

/// Lock files, fixtures and texts that become commit messages cannot.
fn can_say_licence(name: &str) -> bool {
    let by_name = [
        ".rs", ".c", ".h", ".toml", ".config", "Kconfig", "Makefile", "series", ".sh",
    ];
    !name.contains("fixtures/") && by_name.iter().any(|end| name.ends_with(end))
}

fn collect(dir: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.at("read the folder", dir)?.path();
        if path.is_dir() {
            collect(&path, visit)?;
        } else {
            visit(&path)?;
        }
    }
    Ok(())
}
