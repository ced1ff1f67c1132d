// SPDX-License-Identifier: MIT
//! `aios doctor`: what is there, what is missing, how to mend it.

use super::base::{
    Base,
    Pinned, //
};
use super::packages::{
    self,
    Found,
    ITEMS,
    Item, //
};
use super::{
    Need,
    fetch,
    find_bindgen,
    find_rust_lib_src,
    packages::version_in,
    rustc_version,
    spdk,
    tried, //
};
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::space::{
    self,
    gib, //
};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Options of `aios doctor`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print the findings as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Free space that sources and three kernel builds take, in bytes.
const DISK_NEEDED: u64 = 8 << 30;

/// Memory for building and booting, in bytes.
const MEMORY_NEEDED: u64 = 3 << 30;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// There, or there when needed.
    Ok,
    /// Not there.
    Missing,
    /// There, but too old.
    TooOld,
    /// Not there, and only needed for extras.
    Optional,
}

/// One line of the doctor's findings.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    name: String,
    state: State,
    /// What it is for.
    #[serde(rename = "for")]
    purpose: String,
    /// What was found.
    detail: String,
    /// What to do about it; empty if nothing.
    mend: String,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    findings: Vec<Finding>,
}

/// Runs `aios doctor`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    let base = Base::load(ctx.root())?;
    let mut findings: Vec<Finding> = ITEMS.iter().map(package).collect();
    findings.push(rustc(&base));
    findings.push(bindgen(ctx, &base));
    findings.push(kernel_source(ctx, &base));
    findings.push(rust_src(ctx, &base));
    findings.push(spdk_source(ctx, &base));
    findings.push(disk(ctx));
    findings.push(memory(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
    ));
    findings.push(kvm(Path::new("/dev/kvm")));
    let ok = findings
        .iter()
        .all(|finding| matches!(finding.state, State::Ok | State::Optional));
    if args.json {
        let report = Report {
            schema: 1,
            ok,
            findings,
        };
        let text = serde_json::to_string_pretty(&report)
            .map_err(|source| Error::new(format!("cannot write JSON: {source}")))?;
        println!("{text}");
    } else {
        print!("{}", table(&findings, ctx.ui.colour()));
        let wanted: Vec<&Item> = ITEMS
            .iter()
            .filter(|item| !is_extra(item.need) && item.find() == Found::Missing)
            .collect();
        if let Some(line) = packages::mend_line(&wanted) {
            println!(
                "\nAll missing packages at once (as root or with password-free sudo it is done when needed):\n  {line}"
            );
        }
    }
    Ok(u8::from(!ok))
}

/// Only some commands need it; all of `compare` and `test` runs without.
fn is_extra(need: Need) -> bool {
    matches!(need, Need::Images | Need::Clang | Need::Deb)
}

fn package(item: &Item) -> Finding {
    let mend = packages::mend_line(&[item]).unwrap_or_default();
    let (state, detail, mend) = match item.find() {
        Found::Ok(detail) => (State::Ok, detail, String::new()),
        Found::TooOld(detail) => (State::TooOld, detail, "use Debian 12 or newer".to_owned()),
        Found::Missing if is_extra(item.need) => (State::Optional, "missing".to_owned(), mend),
        Found::Missing => (State::Missing, "missing".to_owned(), mend),
    };
    Finding {
        name: item.name().to_owned(),
        state,
        purpose: item.purpose.to_owned(),
        detail,
        mend,
    }
}

fn finding(name: &str, purpose: &str, state: State, detail: String, mend: &str) -> Finding {
    Finding {
        name: name.to_owned(),
        state,
        purpose: purpose.to_owned(),
        detail,
        mend: mend.to_owned(),
    }
}

fn rustc(base: &Base) -> Finding {
    let purpose = "compile the kernel's Rust";
    let needed = env!("CARGO_PKG_RUST_VERSION");
    match rustc_version() {
        Ok(version) if version_in(&version) >= version_in(needed) => {
            finding("rustc", purpose, State::Ok, version, "")
        }
        Ok(version) => finding(
            "rustc",
            purpose,
            State::TooOld,
            format!("{version} found, {needed} needed"),
            &format!("run `rustup update`; {} was tried", tried(base)),
        ),
        Err(error) => finding(
            "rustc",
            purpose,
            State::Missing,
            error.what().to_owned(),
            "install Rust with rustup",
        ),
    }
}

fn bindgen(ctx: &Context, base: &Base) -> Finding {
    let version = &base.bindgen.version;
    let detail = match find_bindgen(ctx, version) {
        Some(path) => format!("{} ({version})", path.display()),
        None => format!("{version} is installed by cargo when needed"),
    };
    finding(
        "bindgen",
        "generate the kernel's Rust bindings",
        State::Ok,
        detail,
        "",
    )
}

/// A package that is downloaded when needed: is that possible?
fn download(ctx: &Context, name: &str, purpose: &str, pinned: &Pinned) -> Finding {
    if fetch::is_cached(ctx, pinned) {
        let detail = format!("{} is in the cache", pinned.version);
        return finding(name, purpose, State::Ok, detail, "");
    }
    match fetch::probe(ctx, pinned) {
        Ok(()) => {
            let detail = format!("{} is downloaded when needed", pinned.version);
            finding(name, purpose, State::Ok, detail, "")
        }
        Err(error) => finding(
            name,
            purpose,
            State::Missing,
            error.what().to_owned(),
            pinned.remedy,
        ),
    }
}

fn kernel_source(ctx: &Context, base: &Base) -> Finding {
    download(
        ctx,
        "kernel source",
        "the base of the series",
        &base.kernel_package(),
    )
}

fn rust_src(ctx: &Context, base: &Base) -> Finding {
    let purpose = "build the kernel's Rust core";
    let Ok(rustc) = rustc_version() else {
        return finding(
            "rust-src",
            purpose,
            State::Missing,
            "no rustc".to_owned(),
            "install Rust with rustup",
        );
    };
    if let Some(dir) = find_rust_lib_src(ctx, &rustc) {
        return finding(
            "rust-src",
            purpose,
            State::Ok,
            dir.display().to_string(),
            "",
        );
    }
    match base.rust_src.iter().find(|entry| entry.rustc == rustc) {
        Some(entry) => download(ctx, "rust-src", purpose, &entry.package()),
        None => finding(
            "rust-src",
            purpose,
            State::Missing,
            format!("none for rustc {rustc}"),
            &format!(
                "run `rustup component add rust-src`, or use rustc {}",
                tried(base)
            ),
        ),
    }
}

fn spdk_source(ctx: &Context, base: &Base) -> Finding {
    let purpose = "build obd with the engine spdk";
    match spdk::find(ctx, &base.spdk) {
        Some(dir) => {
            let detail = dir.display().to_string();
            finding("SPDK source", purpose, State::Ok, detail, "")
        }
        None => finding(
            "SPDK source",
            purpose,
            State::Optional,
            "missing".to_owned(),
            "run `cargo aios setup --spdk`",
        ),
    }
}

fn disk(ctx: &Context) -> Finding {
    let purpose = "hold sources and kernel builds";
    let place = ctx.cache().display();
    match space::free(ctx.cache()) {
        Some(free) if free >= DISK_NEEDED => finding(
            "disk space",
            purpose,
            State::Ok,
            format!("{} free in {place}", gib(free)),
            "",
        ),
        // What is built already needs no more space.
        Some(free) if ctx.cache().join("build").exists() => finding(
            "disk space",
            purpose,
            State::Optional,
            format!("{} free in {place}, which holds builds already", gib(free)),
            "free some, or choose another folder with --cache DIR",
        ),
        Some(free) => finding(
            "disk space",
            purpose,
            State::Missing,
            format!("{} free in {place}, {} needed", gib(free), gib(DISK_NEEDED)),
            "free some, or choose another folder with --cache DIR",
        ),
        None => finding(
            "disk space",
            purpose,
            State::Optional,
            format!("unknown for {place}"),
            "",
        ),
    }
}

fn memory(meminfo: &str) -> Finding {
    let purpose = "build and boot kernels";
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib.saturating_mul(1024));
    match total {
        Some(total) if total >= MEMORY_NEEDED => {
            finding("memory", purpose, State::Ok, gib(total), "")
        }
        Some(total) => finding(
            "memory",
            purpose,
            State::Missing,
            format!("{}, {} needed", gib(total), gib(MEMORY_NEEDED)),
            "use a machine with more memory",
        ),
        None => finding("memory", purpose, State::Optional, "unknown".to_owned(), ""),
    }
}

fn kvm(device: &Path) -> Finding {
    let purpose = "boot faster";
    match fs::File::options().read(true).write(true).open(device) {
        Ok(_) => finding(
            "KVM",
            purpose,
            State::Ok,
            format!(
                "{} opens; whether it can run a guest is probed at boot",
                device.display()
            ),
            "",
        ),
        Err(source) => finding(
            "KVM",
            purpose,
            State::Optional,
            format!("{}: {source}; QEMU emulates the CPU", device.display()),
            "",
        ),
    }
}

/// The findings as an aligned table, those that want mending with how.
fn table(findings: &[Finding], colour: bool) -> String {
    let width = |text: fn(&Finding) -> &str| {
        findings
            .iter()
            .map(|f| text(f).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (names, purposes) = (width(|f| &f.name), width(|f| &f.purpose));
    let mut text = String::new();
    for finding in findings {
        let (word, code) = match finding.state {
            State::Ok => ("ok      ", "32"),
            State::Missing => ("missing ", "31"),
            State::TooOld => ("too old ", "31"),
            State::Optional => ("optional", "33"),
        };
        let word = if colour {
            format!("\x1b[{code}m{word}\x1b[0m")
        } else {
            word.to_owned()
        };
        text.push_str(&format!(
            "{word}  {:names$}  {:purposes$}  {}\n",
            finding.name, finding.purpose, finding.detail
        ));
        if !finding.mend.is_empty() {
            text.push_str(&format!("          {:names$}  -> {}\n", "", finding.mend));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_memory_small_machine_says_how_much_is_needed() {
        let finding = memory("MemTotal:        1048576 kB\nMemFree: 1 kB\n");
        assert_eq!(finding.state, State::Missing);
        assert_eq!(finding.detail, "1.0 GiB, 3.0 GiB needed");
    }

    #[test]
    fn test_memory_bad_text_is_unknown() {
        assert_eq!(memory("MemTotal: many kB").state, State::Optional);
    }

    #[test]
    fn test_kvm_absent_is_optional() {
        assert_eq!(kvm(Path::new("/nonexistent/kvm")).state, State::Optional);
    }

    #[test]
    fn test_table_without_colour_has_no_escapes_and_shows_the_mending() {
        let text = table(
            &[finding(
                "x",
                "be x",
                State::Missing,
                "gone".to_owned(),
                "get x",
            )],
            false,
        );
        assert_eq!(text, "missing   x  be x  gone\n             -> get x\n");
        assert!(table(&[memory("")], true).contains('\x1b'));
    }
}
