// SPDX-License-Identifier: MIT
//! What comes from Debian packages, how to see that it is there, and getting
//! it there.
//!
//! Everything is probed by what it gives, a program or a file, and never by
//! asking dpkg, so that what came another way counts too.

use super::Need;
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::process::{
    Tool,
    find_on_path,
    on_path, //
};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{
    Path,
    PathBuf, //
};

/// How to see that something is there.
#[derive(Debug, Clone, Copy)]
enum Probe {
    /// A program on `PATH`.
    Program(&'static str),
    /// Any one of these files.
    File(&'static [&'static str]),
    /// libclang with its headers, of at least [`LIBCLANG_MIN`].
    Libclang,
}

/// Something that commands need and a Debian package gives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    /// When it is needed.
    pub(crate) need: Need,
    /// Packages that give it, the preferred one first.
    packages: &'static [&'static str],
    probe: Probe,
    /// What it is for.
    pub(crate) purpose: &'static str,
    /// The oldest version that will do, if that matters.
    min: Option<(u32, u32)>,
}

/// The oldest libclang that the kernel's build accepts.
const LIBCLANG_MIN: u32 = 17;

const fn program(
    need: Need,
    package: &'static [&'static str],
    program: &'static str,
    purpose: &'static str,
) -> Item {
    Item {
        need,
        packages: package,
        probe: Probe::Program(program),
        purpose,
        min: None,
    }
}

impl Item {
    const fn at_least(mut self, major: u32, minor: u32) -> Self {
        self.min = Some((major, minor));
        self
    }
}

/// Everything that is known to be needed.
pub(crate) const ITEMS: &[Item] = &[
    program(Need::Build, &["gcc"], "gcc", "compile the kernel").at_least(8, 1),
    program(Need::Build, &["make"], "make", "build the kernel").at_least(4, 0),
    program(Need::Build, &["flex"], "flex", "build kconfig"),
    program(Need::Build, &["bison"], "bison", "build kconfig"),
    program(Need::Build, &["bc"], "bc", "build the kernel"),
    program(Need::Build, &["perl"], "perl", "build and lint the kernel"),
    program(Need::Build, &["git"], "git", "keep the series").at_least(2, 30),
    program(Need::Build, &["xz-utils"], "xz", "unpack the kernel"),
    program(Need::Build, &["zstd"], "zstd", "compress the kernel"),
    program(Need::Build, &["kmod"], "depmod", "install modules"),
    program(Need::Build, &["rsync"], "rsync", "install headers"),
    Item {
        need: Need::Build,
        packages: &["libelf-dev"],
        probe: Probe::File(&["/usr/include/gelf.h"]),
        purpose: "build objtool",
        min: None,
    },
    Item {
        need: Need::Build,
        packages: &["libssl-dev"],
        probe: Probe::File(&["/usr/include/openssl/opensslv.h"]),
        purpose: "build the kernel's certificate tools",
        min: None,
    },
    Item {
        need: Need::Build,
        packages: &["libclang-19-dev", "libclang-dev"],
        probe: Probe::Libclang,
        purpose: "generate the kernel's Rust bindings",
        min: None,
    },
    program(
        Need::Boot,
        &["qemu-system-x86"],
        "qemu-system-x86_64",
        "boot the kernel",
    )
    .at_least(7, 2),
    program(Need::Boot, &["cpio"], "cpio", "pack the guest's initramfs"),
    Item {
        need: Need::Boot,
        packages: &["libc6-dev"],
        probe: Probe::File(&[
            "/usr/lib/x86_64-linux-gnu/libc.a",
            "/usr/lib64/libc.a",
            "/usr/lib/libc.a",
        ]),
        purpose: "link the guest's init statically",
        min: None,
    },
    program(Need::Workloads, &["fio"], "fio", "measure I/O").at_least(3, 30),
    program(
        Need::Workloads,
        &["rocksdb-tools"],
        "db_bench",
        "measure RocksDB",
    ),
    program(
        Need::Workloads,
        &["e2fsprogs"],
        "mkfs.ext4",
        "make the test filesystem",
    ),
    program(
        Need::Images,
        &["erofs-utils"],
        "mkfs.erofs",
        "make images to compare with",
    ),
    program(
        Need::Images,
        &["squashfs-tools"],
        "mksquashfs",
        "make images to compare with",
    ),
    program(
        Need::Mapper,
        &["dmsetup"],
        "dmsetup",
        "test disks under device mapper",
    ),
    program(
        Need::Mapper,
        &["cryptsetup-bin"],
        "veritysetup",
        "test disks under dm-verity",
    ),
    program(
        Need::Clang,
        &["clang-19"],
        "clang-19",
        "build the KASAN kernel",
    ),
    program(
        Need::Clang,
        &["lld-19"],
        "ld.lld-19",
        "link the KASAN kernel",
    ),
    program(
        Need::Clang,
        &["llvm-19"],
        "llvm-nm-19",
        "build the KASAN kernel",
    ),
    program(
        Need::Deb,
        &["dpkg-dev"],
        "dpkg-buildpackage",
        "package the kernel",
    ),
    program(Need::Deb, &["debhelper"], "dh", "package the kernel"),
    program(
        Need::Deb,
        &["python3"],
        "python3",
        "build a distribution's configuration",
    ),
    Item {
        need: Need::Deb,
        packages: &["libdw-dev"],
        probe: Probe::File(&["/usr/include/dwarf.h", "/usr/include/elfutils/libdw.h"]),
        purpose: "build a distribution's configuration",
        min: None,
    },
];

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// There; where or which version.
    Ok(String),
    /// There, but older than needed; which version is there and which needed.
    TooOld(String),
    /// Not there.
    Missing,
}

impl Item {
    /// What it is called: the program, or the package.
    pub(crate) fn name(&self) -> &'static str {
        match self.probe {
            Probe::Program(name) => name,
            Probe::File(_) => self.package(),
            Probe::Libclang => "libclang",
        }
    }

    /// The preferred package.
    pub(crate) fn package(&self) -> &'static str {
        self.packages.first().copied().unwrap_or_default()
    }

    /// Whether it is there, without a look at its version: cheap.
    fn present(&self) -> bool {
        match self.probe {
            Probe::Program(name) => on_path(name),
            Probe::File(files) => files.iter().any(|file| Path::new(file).is_file()),
            Probe::Libclang => libclang().is_some(),
        }
    }

    /// Whether it is there and new enough; may run the program.
    pub(crate) fn find(&self) -> Found {
        if !self.present() {
            return Found::Missing;
        }
        let place = match self.probe {
            Probe::Program(name) => find_on_path(name),
            Probe::File(files) => files.iter().map(PathBuf::from).find(|file| file.is_file()),
            Probe::Libclang => libclang(),
        };
        let place = place.unwrap_or_default().display().to_string();
        let (Probe::Program(name), Some(min)) = (self.probe, self.min) else {
            return Found::Ok(place);
        };
        let text = Tool::new(name).arg("--version").text().unwrap_or_default();
        match version_in(&text) {
            Some(version) if version < min => Found::TooOld(format!(
                "{}.{} found, {}.{} needed",
                version.0, version.1, min.0, min.1
            )),
            Some(version) => Found::Ok(format!("{place} ({}.{})", version.0, version.1)),
            None => Found::Ok(place),
        }
    }
}

/// The first `MAJOR.MINOR` in the output of `--version`.
pub(crate) fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| c.is_whitespace() || "()-,".contains(c))
        .find_map(|word| {
            let digits = word.trim_start_matches(|c: char| !c.is_ascii_digit());
            let mut parts = digits.split('.');
            let major = parts.next()?.parse().ok()?;
            let minor = parts.next()?;
            let end = minor
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(minor.len());
            Some((major, minor.get(..end)?.parse().ok()?))
        })
}

/// Folder with a libclang that is new enough and has its headers; the
/// newest, unless `LIBCLANG_PATH` names one.
pub(crate) fn libclang() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from)
        && has_libclang(&dir)
    {
        return Some(dir);
    }
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let version = entry
                .file_name()
                .to_str()?
                .strip_prefix("llvm-")?
                .parse()
                .ok()?;
            Some((version, entry.path().join("lib")))
        })
        .filter(|(version, dir)| *version >= LIBCLANG_MIN && has_libclang(dir) && has_headers(dir))
        .collect();
    found.sort();
    found.pop().map(|(_, dir)| dir)
}

/// As bindgen looks for it: `libclang.so`, `libclang-N.so*`, `libclang.so.N`.
fn has_libclang(dir: &Path) -> bool {
    let named = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libclang.so")
            || (name.starts_with("libclang-")
                && name.contains(".so")
                && !name.starts_with("libclang-cpp"))
    };
    fs::read_dir(dir).is_ok_and(|list| list.flatten().any(named))
}

fn has_headers(dir: &Path) -> bool {
    fs::read_dir(dir.join("clang")).is_ok_and(|list| {
        list.flatten()
            .any(|entry| entry.path().join("include/stddef.h").is_file())
    })
}

/// What this process may do to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// It is root.
    Root,
    /// sudo asks for no password.
    Sudo,
    /// It may not install anything.
    None,
}

impl Rights {
    fn of_this_process() -> Self {
        if fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0) {
            Self::Root
        } else if on_path("sudo") && Tool::new("sudo").args(["-n", "true"]).output().is_ok() {
            Self::Sudo
        } else {
            Self::None
        }
    }
}

/// The commands that install `packages` with these `rights`.
#[derive(Debug)]
struct Plan {
    update: Tool,
    install: Tool,
}

impl Plan {
    fn new(rights: Rights, packages: &[&str]) -> Self {
        let apt = || {
            let tool = match rights {
                Rights::Root => Tool::new("env"),
                Rights::Sudo | Rights::None => Tool::new("sudo").args(["-n", "env"]),
            };
            tool.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
                .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
        };
        Self {
            update: apt().arg("update"),
            install: apt()
                .args(["install", "-y", "--no-install-recommends"])
                .args(packages),
        }
    }
}

/// One line for those who have to install by themselves.
fn paste_line(packages: &[&str]) -> String {
    format!(
        "sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// The line that mends all of `items`, if there are any.
pub(crate) fn mend_line(items: &[&Item]) -> Option<String> {
    let packages = dedup(items.iter().map(|item| item.package()));
    (!packages.is_empty()).then(|| paste_line(&packages))
}

fn dedup<'a>(packages: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut list: Vec<&str> = packages.collect();
    list.sort_unstable();
    list.dedup();
    list
}

/// Whether apt's lists have a version of `package` to install.
fn is_known(package: &str) -> bool {
    Tool::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", package])
        .text()
        .is_ok_and(|text| has_candidate(&text))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

/// The preferred of each item's packages that apt knows, else the first.
fn choose(missing: &[&Item], known: impl Fn(&str) -> bool) -> Vec<&'static str> {
    dedup(missing.iter().map(|item| {
        let known = item.packages.iter().copied().find(|package| known(package));
        known.unwrap_or_else(|| item.package())
    }))
}

fn missing(needs: &[Need]) -> Vec<&'static Item> {
    ITEMS
        .iter()
        .filter(|item| needs.contains(&item.need) && !item.present())
        .collect()
}

fn names(items: &[&Item]) -> String {
    let names: Vec<&str> = items.iter().map(|item| item.name()).collect();
    names.join(", ")
}

/// Installs what is missing for `needs`, or says how to.
pub(crate) fn ensure(ctx: &Context, needs: &[Need]) -> Result<()> {
    let wanted = missing(needs);
    if wanted.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        return Err(
            Error::new(format!("missing on this machine: {}", names(&wanted)))
                .hint("install them with the system's package manager (it is no Debian)"),
        );
    }
    let rights = Rights::of_this_process();
    let mut packages = choose(&wanted, is_known);
    if ctx.dry_run {
        println!("{}", Plan::new(rights, &packages).install.line());
        return Ok(());
    }
    if rights == Rights::None {
        return Err(
            Error::new(format!("missing on this machine: {}", names(&wanted)))
                .hint(format!("run `{}`", paste_line(&packages))),
        );
    }
    let dir = ctx.cache_dir("log")?;
    let log = dir.join("apt.log");
    let mut updated = false;
    if !packages.iter().all(|package| is_known(package)) {
        ctx.ui.say("Updating apt's lists");
        Plan::new(rights, &[]).update.logged(ctx, &log)?;
        updated = true;
        packages = choose(&wanted, is_known);
    }
    ctx.ui.say(format!(
        "Installing Debian packages: {}",
        packages.join(" ")
    ));
    let plan = Plan::new(rights, &packages);
    let mut result = plan.install.logged(ctx, &log);
    if result.is_err() && !updated {
        // Old lists name files that the mirror no longer has.
        result = plan
            .update
            .logged(ctx, &log)
            .and_then(|()| plan.install.logged(ctx, &log));
    }
    result.map_err(|error| {
        error.hint(format!(
            "run `sudo apt-get update && {}` and see what it says (log: {})",
            paste_line(&packages),
            log.display()
        ))
    })?;
    let still = missing(needs);
    if still.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{} installed, but still missing: {}",
        packages.join(" "),
        names(&still)
    ))
    .hint("run `cargo aios doctor`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> &'static Item {
        ITEMS.iter().find(|item| item.name() == name).unwrap()
    }

    #[test]
    fn test_plan_as_root_installs_exactly_the_missing() {
        let packages = choose(&[item("flex"), item("bison"), item("flex")], |_| true);
        let line = Plan::new(Rights::Root, &packages).install.line();
        assert_eq!(
            line,
            "env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
             -o Acquire::Retries=3 install -y --no-install-recommends bison flex"
        );
    }

    #[test]
    fn test_plan_with_sudo_never_asks() {
        let line = Plan::new(Rights::Sudo, &["flex"]).update.line();
        assert!(line.starts_with("sudo -n env "), "{line}");
    }

    #[test]
    fn test_mend_line_of_several_is_one_line_of_packages() {
        assert_eq!(
            mend_line(&[item("db_bench"), item("libclang")]).unwrap(),
            "sudo apt-get install -y --no-install-recommends libclang-19-dev rocksdb-tools"
        );
        assert_eq!(mend_line(&[]), None);
    }

    #[test]
    fn test_choose_takes_the_alternative_that_apt_knows() {
        let wanted = [item("libclang")];
        assert_eq!(
            choose(&wanted, |name| name == "libclang-dev"),
            ["libclang-dev"]
        );
        assert_eq!(choose(&wanted, |_| false), ["libclang-19-dev"]);
    }

    #[test]
    fn test_has_candidate_reads_policy() {
        assert!(has_candidate(
            "flex:\n  Installed: (none)\n  Candidate: 2.6.4-8.2\n"
        ));
        assert!(!has_candidate(
            "flex:\n  Installed: (none)\n  Candidate: (none)\n"
        ));
        assert!(!has_candidate(""));
    }

    #[test]
    fn test_version_in_reads_what_tools_print() {
        for (text, version) in [
            ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", Some((12, 2))),
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2)",
                Some((10, 0)),
            ),
            ("fio-3.33", Some((3, 33))),
            ("GNU Make 4.3\nBuilt for x86_64", Some((4, 3))),
            ("no number here", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
    }

    #[test]
    fn test_find_missing_program_is_missing() {
        let item = program(Need::Build, &["x"], "no-such-program-here", "test");
        assert_eq!(item.find(), Found::Missing);
    }

    #[test]
    fn test_find_old_program_says_both_versions() {
        let item = program(Need::Build, &["git"], "git", "test").at_least(999, 0);
        let Found::TooOld(text) = item.find() else {
            panic!("git 999 does not exist")
        };
        assert!(text.ends_with("999.0 needed"), "{text}");
    }
}
