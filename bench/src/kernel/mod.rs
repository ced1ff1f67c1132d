// SPDX-License-Identifier: MIT
//! The kernel: fetch the base, apply the series, build it, package it.

mod build;
mod check;
mod config;
mod git;
mod make;
mod package;
mod prepare;
mod series;
mod source;

pub(crate) use build::build;
pub(crate) use check::{
    Outcome,
    check_series,
    series_cases, //
};

use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::setup::Need;
use crate::setup::base::Base;
use prepare::Kernel;
use serde::{
    Deserialize,
    Serialize, //
};
use source::Origin;
use std::path::{
    Path,
    PathBuf, //
};

/// Options of `aios kernel`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Where the base comes from.
#[derive(clap::Args, Debug)]
struct Source {
    /// A Linux tarball or tree to use instead of the pinned package.
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
}

/// Which build.
#[derive(clap::Args, Debug)]
struct Which {
    /// The unpatched base, with the same configuration.
    #[arg(long)]
    native: bool,
    /// The configuration.
    #[arg(long, value_enum, default_value = "bench")]
    variant: Variant,
    #[command(flatten)]
    source: Source,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Unpack the base and commit the series, one commit for each entry.
    Prepare {
        /// Leave the unpatched base in the source folder.
        #[arg(long)]
        native: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Write the series ready for mailing, with a cover letter.
    Export {
        /// Folder for the patches.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Build a kernel, or find it finished in the cache.
    Build(Which),
    /// Check every entry of the series: applies, checkpatch, builds.
    Check(Source),
    /// Make Debian packages of the patched kernel for a real machine.
    Deb {
        /// The machine's configuration, /boot/config-VERSION.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Folder for the packages.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Print where a finished build lies.
    Where {
        #[command(flatten)]
        which: Which,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `aios kernel`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    match &args.command {
        Command::Prepare { native, source } => prepare(ctx, *native, source.path()),
        Command::Export { out, source } => package::export(ctx, out, source.path()),
        Command::Build(which) => {
            let built = build(ctx, which.flavour(), which.variant, which.source.path())?;
            if !ctx.dry_run {
                println!("{}", built.bzimage.display());
            }
            Ok(0)
        }
        Command::Check(source) => {
            let report = check::run(ctx, source.path())?;
            let failed = report.print();
            Ok(u8::from(failed))
        }
        Command::Deb {
            config,
            out,
            source,
        } => package::deb(ctx, config, out, source.path()),
        Command::Where { which, json } => locate(ctx, which, *json),
    }
}

impl Source {
    fn path(&self) -> Option<&Path> {
        self.source.as_deref()
    }
}

impl Which {
    fn flavour(&self) -> Flavour {
        if self.native {
            Flavour::Native
        } else {
            Flavour::Patched
        }
    }
}

fn prepare(ctx: &Context, native: bool, source: Option<&Path>) -> Result<u8> {
    let mut kernel = open(ctx, source, &[])?;
    if native {
        let base = kernel.state().base_commit.clone();
        kernel.checkout(ctx, &base)?;
    } else {
        kernel.commit_series(ctx, &series::load(ctx.root())?)?;
        kernel.checkout(ctx, kernel.head())?;
    }
    if !ctx.dry_run {
        println!("{}", kernel.dir().display());
    }
    Ok(0)
}

/// The kernel tree, with what it takes to unpack it and `needs`.
fn open(ctx: &Context, source: Option<&Path>, needs: &[Need]) -> Result<Kernel> {
    let base = Base::load(ctx.root())?;
    let origin = Origin::new(&base, source)?;
    prepare::check_path(ctx.cache())?;
    let mut all = vec![Need::Build];
    all.extend_from_slice(needs);
    crate::setup::ensure(ctx, &all)?;
    Kernel::open(ctx, &base, &origin)
}

fn locate(ctx: &Context, which: &Which, json: bool) -> Result<u8> {
    let source = which.source.path();
    let (built, current) = build::find(ctx, which.flavour(), which.variant, source)?;
    if json {
        let value = serde_json::json!({
            "schema": 1,
            "flavour": which.flavour(),
            "variant": which.variant,
            "current": current,
            "bzimage": built.bzimage,
            "vmlinux": built.vmlinux,
            "system_map": built.system_map,
            "config": built.config,
            "id": built.id,
        });
        let text = serde_json::to_string_pretty(&value)
            .map_err(|source| Error::new(format!("cannot write JSON: {source}")))?;
        println!("{text}");
    } else {
        if !current {
            ctx.ui
                .say("This build is older than the series, configuration or compilers; `aios kernel build` renews it");
        }
        println!("bzImage     {}", built.bzimage.display());
        println!("vmlinux     {}", built.vmlinux.display());
        println!("System.map  {}", built.system_map.display());
        println!("config      {}", built.config.display());
    }
    Ok(0)
}

/// Which sources are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flavour {
    /// The unpatched base.
    Native,
    /// The base with the whole series.
    Patched,
}

impl Flavour {
    /// In folder names and messages.
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Patched => "patched",
        }
    }

    /// End of the kernel's release (`uname -r`).
    fn local_version(self) -> &'static str {
        match self {
            Self::Native => "",
            Self::Patched => "-aios",
        }
    }
}

/// Which configuration is built; each is a list of fragments in `linux/config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Variant {
    /// `base.config`: what is measured.
    Bench,
    /// `base.config` + `debug.config`: lockdep, DMA_API_DEBUG, KUnit tests.
    Debug,
    /// That + `kasan.config`: every access to memory checked; by clang, as Rust needs.
    Kasan,
    /// As bench, with the defects of jbd-overlap/mutants, which no series names.
    Mutants,
}

impl Variant {
    /// In folder names and messages.
    fn name(self) -> &'static str {
        match self {
            Self::Bench => "bench",
            Self::Debug => "debug",
            Self::Kasan => "kasan",
            Self::Mutants => "mutants",
        }
    }

    /// What compiles it.
    fn compiler(self) -> Compiler {
        match self {
            Self::Bench | Self::Debug | Self::Mutants => Compiler::Gcc,
            Self::Kasan => Compiler::Clang,
        }
    }
}

/// Compiler and linker of a kernel's C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// gcc and binutils.
    Gcc,
    /// clang, lld and llvm's tools: KASAN together with Rust takes one LLVM for both.
    Clang,
}

impl Compiler {
    /// The program.
    fn program(self) -> &'static str {
        match self {
            Self::Gcc => "gcc",
            Self::Clang => "clang-19",
        }
    }

    /// The value of make's `LLVM`: empty for none, else what llvm's tools end with.
    fn llvm(self) -> &'static str {
        match self {
            Self::Gcc => "",
            Self::Clang => "-19",
        }
    }

    /// What it needs on the machine.
    fn needs(self) -> &'static [Need] {
        match self {
            Self::Gcc => &[Need::Build],
            Self::Clang => &[Need::Build, Need::Clang],
        }
    }
}

/// What identifies a build exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildId {
    /// Upstream version of the base, `7.3.4`.
    pub(crate) base_version: String,
    /// SHA-256 of the base package or tree.
    pub(crate) base_sha256: String,
    /// Commit of the prepared tree (reproducible); the base commit for native.
    pub(crate) series_commit: String,
    /// SHA-256 of the resulting `.config`.
    pub(crate) config_sha256: String,
}

/// A finished build.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    /// The compressed kernel that QEMU boots.
    pub(crate) bzimage: PathBuf,
    /// The uncompressed kernel with symbols.
    pub(crate) vmlinux: PathBuf,
    /// Symbols and addresses.
    pub(crate) system_map: PathBuf,
    /// The configuration it was built with.
    pub(crate) config: PathBuf,
    /// What it was built from.
    pub(crate) id: BuildId,
}

impl Built {
    /// The driver of overlaybd images; the unpatched kernel has none.
    pub(crate) fn obd_module(&self) -> PathBuf {
        self.config.with_file_name("drivers/block/obd/obd.ko")
    }

    /// The files of a build in the folder `out`.
    fn new(out: &Path, id: BuildId) -> Self {
        Self {
            bzimage: out.join("arch/x86/boot/bzImage"),
            vmlinux: out.join("vmlinux"),
            system_map: out.join("System.map"),
            config: config::path(out),
            id,
        }
    }

    /// Whether all of its files are there.
    fn is_whole(&self) -> bool {
        [&self.bzimage, &self.vmlinux, &self.system_map, &self.config]
            .iter()
            .all(|file| file.is_file())
    }
}
