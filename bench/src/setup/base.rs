// SPDX-License-Identifier: MIT
//! `linux/base.toml`: what is pinned.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use serde::Deserialize;
use std::fs;
use std::path::Path;

/// The file as a whole.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Base {
    /// The kernel that the series is written for.
    pub(crate) kernel: Kernel,
    /// One entry per rustc version that was tried.
    #[serde(default)]
    pub(crate) rust_src: Vec<RustSrc>,
    /// The generator of the kernel's Rust bindings.
    pub(crate) bindgen: Bindgen,
    /// SPDK's sources.
    pub(crate) spdk: Spdk,
}

/// The kernel that the series is written for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    /// Upstream version, `7.3.4`.
    pub(crate) version: String,
    /// Stable series, `7.3`, of which any version is accepted from the user.
    pub(crate) series: String,
    /// Name of the Debian package with the sources.
    package: String,
    /// Its exact version.
    package_version: String,
    /// Debian suite that has it.
    suite: String,
    /// Path of the tarball inside the package.
    pub(crate) tarball: String,
    /// SHA-256 of the `.deb`, in lower-case hexadecimal.
    pub(crate) sha256: String,
}

/// The sources of Rust's standard library for one rustc version.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RustSrc {
    /// The rustc version that it belongs to, `1.95.0`.
    pub(crate) rustc: String,
    /// Exact version of the Debian package `rust-src`.
    package_version: String,
    /// Debian suite that has it.
    suite: String,
    /// Path of `library/` inside the package.
    pub(crate) library: String,
    /// SHA-256 of the `.deb`, in lower-case hexadecimal.
    sha256: String,
}

/// The generator of the kernel's Rust bindings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bindgen {
    /// The version that is installed when another or none is there.
    pub(crate) version: String,
}

/// SPDK's sources, in a file of a Debian source package.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spdk {
    /// SPDK's version, `20.07`.
    pub(crate) version: String,
    /// The tarball's place below a mirror's address.
    pub(crate) file: String,
    /// Folder of the tarball that is SPDK's.
    pub(crate) folder: String,
    /// SHA-256 of the tarball, in lower-case hexadecimal.
    pub(crate) sha256: String,
}

/// One Debian package of a suite that the machine need not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// Its name.
    pub(crate) name: String,
    /// Its exact version.
    pub(crate) version: String,
    /// The suite that has it.
    pub(crate) suite: String,
    /// SHA-256 of the `.deb`, in lower-case hexadecimal.
    pub(crate) sha256: String,
    /// What to do when no mirror has it any more.
    pub(crate) remedy: &'static str,
}

impl Base {
    /// Reads `linux/base.toml` below the project folder `root`.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let path = root.join("linux/base.toml");
        let text = fs::read_to_string(&path).at("read", &path)?;
        toml::from_str(&text).map_err(|source| {
            Error::new(format!("{}: {}", path.display(), source.message()))
                .hint("restore the file from the repository")
        })
    }

    /// The package with the kernel sources.
    pub(crate) fn kernel_package(&self) -> Pinned {
        Pinned {
            name: self.kernel.package.clone(),
            version: self.kernel.package_version.clone(),
            suite: self.kernel.suite.clone(),
            sha256: self.kernel.sha256.clone(),
            remedy: "give a tarball or tree of the same kernel series with --source PATH",
        }
    }
}

impl RustSrc {
    /// The package with the library sources.
    pub(crate) fn package(&self) -> Pinned {
        Pinned {
            name: "rust-src".to_owned(),
            version: self.package_version.clone(),
            suite: self.suite.clone(),
            sha256: self.sha256.clone(),
            remedy: "run `rustup component add rust-src`",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn test_load_own_file_returns_a_full_digest() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let base = Base::load(&root).unwrap();
        assert!(base.kernel.version.starts_with(&base.kernel.series));
        assert_eq!(base.kernel_package().sha256.len(), 64);
        assert_eq!(base.spdk.sha256.len(), 64);
    }

    #[test]
    fn test_load_bad_key_returns_an_error_naming_file_and_key() {
        let root = tempdir().unwrap();
        fs::create_dir(root.path().join("linux")).unwrap();
        fs::write(root.path().join("linux/base.toml"), "[kernal]\n").unwrap();
        let error = Base::load(root.path()).unwrap_err().to_string();
        assert!(error.contains("base.toml"), "{error}");
        assert!(error.contains("kernal"), "{error}");
    }
}
