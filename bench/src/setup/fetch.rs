// SPDX-License-Identifier: MIT
//! Debian packages of suites that the machine does not have.
//!
//! apt does the work with sources, lists and archives of its own below the
//! cache folder, so that the system's sources stay as they are; proxies,
//! credentials and keyrings come from the machine's configuration.

use super::base::Pinned;
use super::sources;
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::{
    Tool,
    on_path, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::fs::{
    self,
    File, //
};
use std::io::{
    self,
    Read, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// SHA-256 of a file, in lower-case hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:x}", hash.finalize())),
            Ok(len) => hash.update(buffer.get(..len).unwrap_or_default()),
            Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(source).at("read", path),
        }
    }
}

/// Checks `file` against the pinned digest; a file that differs is removed.
fn verify(file: &Path, expected: &str) -> Result<()> {
    let got = sha256_file(file)?;
    if got == expected {
        return Ok(());
    }
    fs::remove_file(file).at("remove", file)?;
    Err(Error::new(format!(
        "{} has the wrong checksum and was removed: expected sha256 {expected}, got {got}",
        file.display()
    ))
    .hint("run it again; if it stays wrong, the mirror or linux/base.toml is at fault"))
}

/// The `.deb` of a pinned package, downloaded at most once and verified.
pub(crate) fn package(ctx: &Context, pinned: &Pinned) -> Result<PathBuf> {
    let dir = ctx.cache().join("packages");
    let deb = dir.join(file_name(pinned));
    if deb.is_file() {
        verify(&deb, &pinned.sha256)?;
        return Ok(deb);
    }
    let apt = PrivateApt::new(ctx, &pinned.suite)?;
    let update = apt.update();
    let download = apt.download(pinned, &dir.join("partial"));
    if ctx.dry_run {
        println!("{}\n{}", update.line(), download.line());
        return Ok(deb);
    }
    let partial = ctx.cache_dir("packages/partial")?;
    apt.write()?;
    let spinner = ctx
        .ui
        .spinner(&format!("Downloading {} {}", pinned.name, pinned.version));
    let result = update
        .output()
        .map_err(|error| {
            error
                .context(format!(
                    "cannot reach {} on the Debian mirror",
                    pinned.suite
                ))
                .hint(format!("check the network, or {}", pinned.remedy))
        })
        .and_then(|_| download.output().map_err(|error| gone(pinned, error)));
    spinner.finish_and_clear();
    result?;
    let fetched = partial.join(file_name(pinned));
    if !fetched.is_file() {
        return Err(Error::new(format!(
            "apt-get gave no {}",
            fetched.file_name().unwrap_or_default().to_string_lossy()
        ))
        .hint(pinned.remedy));
    }
    verify(&fetched, &pinned.sha256)?;
    fs::rename(&fetched, &deb).at("move", &fetched)?;
    Ok(deb)
}

/// A file of the machine's mirror that has no package, `path` below the mirror's
/// address, downloaded into the folder `dir` and verified.
pub(crate) fn file(ctx: &Context, path: &str, sha256: &str, dir: &Path) -> Result<PathBuf> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let file = dir.join(name);
    let entries = sources::read(Path::new("/etc/apt"))?;
    let codename = codename(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let addresses = sources::main_archive(&entries, &codename)
        .map(|archive| archive.addresses_of(path))
        .unwrap_or_default();
    let mut last = Error::new(format!(
        "no Debian mirror for `{codename} main` in /etc/apt/sources.list or sources.list.d"
    ));
    for address in addresses {
        // Proxies and credentials come from the machine's configuration.
        let download = Tool::new("/usr/lib/apt/apt-helper")
            .env("LC_ALL", "C")
            .args(["-qq", "-o", "Acquire::Retries=3"])
            .args(["-o", "APT::Sandbox::User=root", "download-file", &address])
            .arg(&file)
            .arg(format!("SHA256:{sha256}"));
        if ctx.dry_run {
            println!("{}", download.line());
            return Ok(file);
        }
        let spinner = ctx.ui.spinner(&format!("Downloading {name}"));
        let result = download.output();
        spinner.finish_and_clear();
        // What counts is what came.
        if file.is_file() {
            verify(&file, sha256)?;
            return Ok(file);
        }
        last = match result {
            Ok(_) => Error::new(format!("apt-helper gave no {name}")),
            Err(error) => error.context(format!("cannot download {name}")),
        };
    }
    Err(last)
}

/// Whether the package is in the cache already.
pub(crate) fn is_cached(ctx: &Context, pinned: &Pinned) -> bool {
    ctx.cache()
        .join("packages")
        .join(file_name(pinned))
        .is_file()
}

/// Whether a mirror offers the pinned version now; an error says why not.
pub(crate) fn probe(ctx: &Context, pinned: &Pinned) -> Result<()> {
    let apt = PrivateApt::new(ctx, &pinned.suite)?;
    apt.write()?;
    let quick = [
        "-o",
        "Acquire::Retries=0",
        "-o",
        "Acquire::http::Timeout=10",
    ];
    apt.update().args(quick).output()?;
    apt.download(pinned, ctx.cache())
        .arg("--print-uris")
        .output()
        .map_err(|error| gone(pinned, error))?;
    Ok(())
}

/// Unpacks the folder or file `member` of a `.deb` below `dir`.
pub(crate) fn unpack(deb: &Path, member: &str, dir: &Path) -> Result<()> {
    unpack_tool(deb, member, dir)
        .output()
        .map_err(|error| error.context(format!("cannot unpack {}", deb.display())))?;
    Ok(())
}

/// The command of [`unpack`].
pub(crate) fn unpack_tool(deb: &Path, member: &str, dir: &Path) -> Tool {
    Tool::new("sh")
        .args([
            "-c",
            "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" \"./$3\"",
            "sh",
        ])
        .arg(deb)
        .arg(dir)
        .arg(member)
}

/// The name apt gives to the file; an epoch is no part of it.
fn file_name(pinned: &Pinned) -> String {
    let version = pinned
        .version
        .split_once(':')
        .map_or(&*pinned.version, |(_, rest)| rest);
    format!("{}_{version}_all.deb", pinned.name)
}

/// apt knows the mirror but not this version of the package.
fn gone(pinned: &Pinned, error: Error) -> Error {
    if !error.what().contains("not found") && !error.what().contains("Unable to locate") {
        return error
            .context(format!("cannot download {}", pinned.name))
            .hint(format!("check the network, or {}", pinned.remedy));
    }
    Error::new(format!(
        "the mirror no longer has {} {} in {}",
        pinned.name, pinned.version, pinned.suite
    ))
    .hint(pinned.remedy)
}

/// apt with folders and sources of its own.
struct PrivateApt {
    dir: PathBuf,
    stanza: String,
}

impl PrivateApt {
    /// For one suite on the mirror that the machine uses for its own release.
    fn new(ctx: &Context, suite: &str) -> Result<Self> {
        if !on_path("apt-get") {
            return Err(
                Error::new("this machine has no apt-get to fetch Debian packages with").hint(
                    "give the kernel with --source PATH and run `rustup component add rust-src`",
                ),
            );
        }
        let entries = sources::read(Path::new("/etc/apt"))?;
        let codename = codename(&fs::read_to_string("/etc/os-release").unwrap_or_default());
        let archive = sources::main_archive(&entries, &codename).ok_or_else(|| {
            Error::new(format!(
                "no Debian mirror for `{codename} main` in /etc/apt/sources.list or sources.list.d"
            ))
            .hint("add the release's mirror there, or give the kernel with --source PATH")
        })?;
        Ok(Self {
            dir: ctx.cache().join("apt").join(suite),
            stanza: archive.stanza_for(suite),
        })
    }

    /// Writes sources and configuration.
    fn write(&self) -> Result<()> {
        for name in ["lists/partial", "cache/archives/partial"] {
            let dir = self.dir.join(name);
            fs::create_dir_all(&dir).at("create the folder", &dir)?;
        }
        for (name, text) in [
            ("private.sources", &self.stanza),
            ("apt.conf", &self.config()),
        ] {
            let path = self.dir.join(name);
            fs::write(&path, text).at("write", &path)?;
        }
        Ok(())
    }

    /// Read by apt after the machine's own configuration. Hooks are cleared:
    /// they are meant for the system's lists and would work on those.
    fn config(&self) -> String {
        let dir = self.dir.display();
        format!(
            "#clear APT::Update;\n\
             #clear DPkg::Post-Invoke;\n\
             Dir::Etc::sourcelist \"{dir}/private.sources\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::State::lists \"{dir}/lists\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Dir::Cache::archives \"{dir}/cache/archives\";\n\
             Dir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             APT::Sandbox::User \"root\";\n\
             APT::Get::List-Cleanup \"true\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
             Acquire::IndexTargets::deb::CNF::DefaultEnabled \"false\";\n"
        )
    }

    fn tool(&self) -> Tool {
        Tool::new("apt-get")
            .env("LC_ALL", "C")
            .arg("-qq")
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
    }

    fn update(&self) -> Tool {
        self.tool().arg("--error-on=any").arg("update")
    }

    fn download(&self, pinned: &Pinned, into: &Path) -> Tool {
        self.tool()
            .arg("download")
            .arg(format!("{}={}", pinned.name, pinned.version))
            .dir(into)
    }
}

/// The release's name from the text of `/etc/os-release`.
fn codename(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map_or("stable", |value| value.trim().trim_matches('"'))
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn pinned() -> Pinned {
        Pinned {
            name: "thing".to_owned(),
            version: "1:2.0-1~bpo1+1".to_owned(),
            suite: "later".to_owned(),
            sha256: "00".repeat(32),
            remedy: "pass --source PATH",
        }
    }

    #[test]
    fn test_verify_wrong_sum_names_file_and_sums_and_removes_it() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("x.deb");
        fs::write(&file, "abc").unwrap();
        let error = verify(&file, &pinned().sha256).unwrap_err().to_string();
        assert!(error.contains("x.deb"), "{error}");
        assert!(error.contains(&pinned().sha256), "{error}");
        let got = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(error.contains(got), "{error}");
        assert!(!error.contains('\n'), "{error}");
        assert!(!file.exists());
    }

    #[test]
    fn test_verify_right_sum_keeps_the_file() {
        let dir = tempdir().unwrap();
        let file = dir.path().join("x.deb");
        fs::write(&file, "abc").unwrap();
        let sum = sha256_file(&file).unwrap();
        verify(&file, &sum).unwrap();
        assert!(file.exists());
    }

    #[test]
    fn test_file_name_with_epoch_drops_it() {
        assert_eq!(file_name(&pinned()), "thing_2.0-1~bpo1+1_all.deb");
    }

    #[test]
    fn test_gone_version_names_the_remedy() {
        let error = gone(
            &pinned(),
            Error::new("apt-get failed: E: Version '1' for 'thing' was not found"),
        );
        let text = error.to_string();
        assert!(text.contains("no longer has thing"), "{text}");
        assert!(text.contains("--source PATH"), "{text}");
    }

    #[test]
    fn test_codename_of_quoted_and_missing() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=\"trixie\"\n"),
            "trixie"
        );
        assert_eq!(codename("ID=debian\n"), "stable");
    }
}
