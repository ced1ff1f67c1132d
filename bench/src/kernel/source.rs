// SPDX-License-Identifier: MIT
//! Where the unpatched kernel comes from: the pinned package, or a tarball or
//! tree of the user's.

use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::setup::base::{
    Base,
    Pinned, //
};
use crate::setup::fetch;
use sha2::{
    Digest,
    Sha256, //
};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{
    Path,
    PathBuf, //
};

/// Where the unpatched kernel comes from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// The package pinned in `linux/base.toml`, and the tarball inside it.
    Package(Pinned, String),
    /// A tarball of the user's.
    Tarball(PathBuf),
    /// A tree of the user's, with or without git.
    Tree(PathBuf),
}

impl Origin {
    /// The pinned package, or what the user gave.
    pub(crate) fn new(base: &Base, source: Option<&Path>) -> Result<Self> {
        let Some(given) = source else {
            return Ok(Self::Package(
                base.kernel_package(),
                base.kernel.tarball.clone(),
            ));
        };
        let path = fs::canonicalize(given).at("find the kernel source", given)?;
        if !path.is_dir() {
            return Ok(Self::Tarball(path));
        }
        if !path.join("Makefile").is_file() || !path.join("Kconfig").is_file() {
            return Err(Error::new(format!("{} is no kernel tree", path.display()))
                .hint("give the top folder of a Linux source tree, or a tarball of one"));
        }
        Ok(Self::Tree(path))
    }

    /// Name of its folder in the cache: the same for the same package or path.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Package(pinned, _) => format!("linux-{}", short(&pinned.sha256)),
            Self::Tarball(path) | Self::Tree(path) => {
                let digest = Sha256::digest(path.as_os_str().as_bytes());
                format!("local-{}", short(&format!("{digest:x}")))
            }
        }
    }

    /// Changes whenever the source may have changed.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match self {
            Self::Package(pinned, _) => return Ok(pinned.sha256.clone()),
            Self::Tarball(path) => add_times(&mut hash, path)?,
            Self::Tree(dir) => {
                for file in list(dir)? {
                    add_times(&mut hash, &dir.join(OsStr::from_bytes(&file)))?;
                }
            }
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// Unpacks or copies the source into the empty folder `dir`; file times
    /// are kept, so that make can tell what changed.
    pub(crate) fn unpack(&self, ctx: &Context, dir: &Path) -> Result<()> {
        match self {
            Self::Package(pinned, member) => {
                let deb = fetch::package(ctx, pinned)?;
                let parent = dir.parent().unwrap_or(dir);
                if ctx.dry_run {
                    println!("{}", fetch::unpack_tool(&deb, member, parent).line());
                    return untar(ctx, &parent.join(member), dir);
                }
                let temp = tempfile::tempdir_in(parent).at("create a folder in", parent)?;
                fetch::unpack(&deb, member, temp.path())?;
                untar(ctx, &temp.path().join(member), dir)
            }
            Self::Tarball(path) => untar(ctx, path, dir),
            Self::Tree(path) => copy_tree(ctx, path, dir),
        }
    }

    /// SHA-256 of the package or tarball; a tree's is that of its file list
    /// with git's content ids, `tree_listing`.
    pub(crate) fn sha256(&self, tree_listing: impl FnOnce() -> Result<String>) -> Result<String> {
        match self {
            Self::Package(pinned, _) => Ok(pinned.sha256.clone()),
            Self::Tarball(path) => fetch::sha256_file(path),
            Self::Tree(_) => Ok(format!("{:x}", Sha256::digest(tree_listing()?))),
        }
    }

    /// What to call it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Package(pinned, _) => format!("{} {}", pinned.name, pinned.version),
            Self::Tarball(path) | Self::Tree(path) => path.display().to_string(),
        }
    }
}

/// The first twelve characters of a digest: enough to tell things apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Path, size and time of change of one file; a file that is gone counts too.
fn add_times(hash: &mut Sha256, path: &Path) -> Result<()> {
    hash.update(path.as_os_str().as_bytes());
    match fs::symlink_metadata(path) {
        Ok(meta) => {
            hash.update(meta.size().to_le_bytes());
            hash.update(meta.mtime().to_le_bytes());
            hash.update(meta.mtime_nsec().to_le_bytes());
            Ok(())
        }
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(source).at("look at", path),
    }
}

/// The source files of a tree, relative to it: those git tracks, as they lie
/// there with what is changed and not committed; else all.
fn list(dir: &Path) -> Result<Vec<Vec<u8>>> {
    if dir.join(".git").exists() {
        let tracked = names(&Tool::new("git").arg("-C").arg(dir).args(["ls-files", "-z"]))?;
        // A repository without commits tracks nothing.
        if tracked.iter().any(|name| name == b"Makefile") {
            return Ok(tracked);
        }
    }
    for leftover in [".config", "include/config", "vmlinux"] {
        if dir.join(leftover).exists() {
            return Err(
                Error::new(format!("{} holds build output ({leftover})", dir.display()))
                    .hint(format!("run `make -C {} mrproper` first", dir.display())),
            );
        }
    }
    names(
        &Tool::new("find")
            .args([".", "-path", "./.git", "-prune", "-o"])
            .args(["-not", "-type", "d", "-printf", "%P\\0"])
            .dir(dir),
    )
}

/// The sorted names that a tool prints, each ended by a zero byte.
fn names(tool: &Tool) -> Result<Vec<Vec<u8>>> {
    let output = tool.output()?.stdout;
    let mut names: Vec<Vec<u8>> = output
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn untar(ctx: &Context, tarball: &Path, dir: &Path) -> Result<()> {
    let tool = Tool::new("tar")
        .args(["--no-same-owner", "--strip-components=1", "-xf"])
        .arg(tarball)
        .arg("-C")
        .arg(dir);
    if ctx.dry_run {
        println!("{}", tool.line());
        return Ok(());
    }
    let spinner = ctx.ui.spinner("Unpacking the kernel");
    let result = tool.output();
    spinner.finish_and_clear();
    result.map_err(|error| {
        error
            .context(format!("cannot unpack {}", tarball.display()))
            .hint("give a tarball that GNU tar can read, and look for free disk space")
    })?;
    Ok(())
}

fn copy_tree(ctx: &Context, from: &Path, to: &Path) -> Result<()> {
    let names = to.join(".aios-files");
    let tool = Tool::new("xargs")
        .arg("-0")
        .arg("-a")
        .arg(&names)
        .args(["cp", "-a", "--no-preserve=ownership", "--reflink=auto"])
        .args(["--parents", "-t"])
        .arg(to)
        .arg("--")
        .dir(from);
    if ctx.dry_run {
        println!("{}", tool.line());
        return Ok(());
    }
    // Tracked files that are deleted are left out; so are submodules.
    let mut text = Vec::new();
    for file in list(from)? {
        let path = from.join(OsStr::from_bytes(&file));
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_dir()) {
            text.extend_from_slice(&file);
            text.push(0);
        }
    }
    fs::write(&names, text).at("write", &names)?;
    let spinner = ctx.ui.spinner(&format!("Copying {}", from.display()));
    let result = tool.output();
    spinner.finish_and_clear();
    result.map_err(|error| error.context(format!("cannot copy {}", from.display())))?;
    fs::remove_file(&names).at("remove", &names)
}

/// The version in the text of a kernel's top Makefile.
pub(crate) fn version_of(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        makefile.lines().take(20).find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let number = |name: &str| value(name).filter(|text| text.parse::<u32>().is_ok());
    Some(format!(
        "{}.{}.{}{}",
        number("VERSION")?,
        number("PATCHLEVEL")?,
        number("SUBLEVEL")?,
        value("EXTRAVERSION")?
    ))
}

/// Whether `version` belongs to the stable `series`: 7.3.y, no candidate.
pub(crate) fn in_series(version: &str, series: &str) -> bool {
    version
        .strip_prefix(series)
        .is_some_and(|rest| rest.starts_with('.') && !rest.contains("-rc"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn test_version_of_makefile_returns_all_parts() {
        let text = "# SPDX\nVERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\nEXTRAVERSION =\nNAME = X\n";
        assert_eq!(version_of(text).as_deref(), Some("7.3.4"));
        assert_eq!(version_of("VERSION = 7\n"), None);
        assert_eq!(
            version_of("VERSION = $(shell rm)\nPATCHLEVEL=3\nSUBLEVEL=1\nEXTRAVERSION="),
            None
        );
    }

    #[test]
    fn test_in_series_takes_stable_versions_only() {
        assert!(in_series("7.3.4", "7.3"));
        assert!(in_series("7.3.11-custom", "7.3"));
        assert!(!in_series("7.30.1", "7.3"));
        assert!(!in_series("7.4.0", "7.3"));
        assert!(!in_series("7.3.0-rc2", "7.3"));
    }

    #[test]
    fn test_list_built_tree_returns_an_error_with_mrproper() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join(".config"), "").unwrap();
        let error = list(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mrproper"), "{error}");
    }

    #[test]
    fn test_unpack_tree_copies_tracked_files_as_they_lie_there() {
        let base = Base::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
        let git = |args: &[&str]| {
            let tool = Tool::new("git").arg("-C").arg(from.path()).args(args);
            tool.output().unwrap();
        };
        git(&["init", "-q"]);
        for name in ["Makefile", "Kconfig", "stray.o"] {
            fs::write(from.path().join(name), name).unwrap();
        }
        fs::create_dir(from.path().join("fs")).unwrap();
        fs::write(from.path().join("fs/ a'b"), "odd").unwrap();
        fs::write(from.path().join("fs/gone"), "").unwrap();
        let ctx = Context::new(&crate::context::GlobalArgs {
            verbose: 0,
            dry_run: false,
            cache: None,
        })
        .unwrap();
        let origin = Origin::new(&base, Some(from.path())).unwrap();
        // Without tracked files everything counts.
        origin.unpack(&ctx, to.path()).unwrap();
        assert!(to.path().join("stray.o").exists());
        assert!(!to.path().join(".git").exists());
        let to = tempdir().unwrap();
        git(&["add", "Makefile", "Kconfig", "fs"]);
        fs::remove_file(from.path().join("fs/gone")).unwrap();
        fs::write(from.path().join("Makefile"), "changed").unwrap();
        origin.unpack(&ctx, to.path()).unwrap();
        let read = |name: &str| fs::read_to_string(to.path().join(name)).ok();
        assert_eq!(read("Makefile").as_deref(), Some("changed"));
        assert_eq!(read("fs/ a'b").as_deref(), Some("odd"));
        assert_eq!(read("stray.o"), None);
        assert_eq!(read(".aios-files"), None);
    }

    #[test]
    fn test_fingerprint_follows_the_files() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("Makefile"), "").unwrap();
        fs::write(dir.path().join("Kconfig"), "").unwrap();
        let base = Base::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        let origin = Origin::new(&base, Some(dir.path())).unwrap();
        let first = origin.fingerprint().unwrap();
        assert_eq!(first, origin.fingerprint().unwrap());
        fs::write(dir.path().join("Kconfig"), "changed").unwrap();
        assert_ne!(first, origin.fingerprint().unwrap());
    }

    #[test]
    fn test_new_folder_without_a_kernel_returns_an_error() {
        let dir = tempdir().unwrap();
        let base = Base::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
        let error = Origin::new(&base, Some(dir.path())).unwrap_err();
        assert!(error.what().contains("no kernel tree"), "{error}");
        assert!(Origin::new(&base, Some(Path::new("/nonexistent"))).is_err());
    }
}
