// SPDX-License-Identifier: MIT
//! What every command needs: where the project and its cache lie, how to talk.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::ui::Ui;
use std::env;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Options that every command takes.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct GlobalArgs {
    /// Say more; twice for the output of every tool that is run.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Print the commands that would run, and run none.
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Cache folder for sources, build trees and guest images [default: $AIOS_CACHE, else ~/.cache/aios].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

/// Where things lie and how to talk, for one run of the program.
#[derive(Debug)]
pub(crate) struct Context {
    root: PathBuf,
    cache: PathBuf,
    started: Instant,
    /// The terminal.
    pub(crate) ui: Ui,
    /// Print commands instead of running them.
    pub(crate) dry_run: bool,
    /// 0 quiet, 1 more, 2 with the output of tools.
    pub(crate) verbose: u8,
}

impl Context {
    /// Finds the project and its cache and sets up the log.
    pub(crate) fn new(args: &GlobalArgs) -> Result<Self> {
        let level = match args.verbose {
            0 => "warn",
            1 => "info",
            _ => "debug",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("AIOS_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
        // A second call (unit tests) keeps the first subscriber.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .try_init();
        Ok(Self {
            root: find_root()?,
            cache: find_cache(args.cache.as_deref())?,
            started: Instant::now(),
            ui: Ui::new(),
            dry_run: args.dry_run,
            verbose: args.verbose,
        })
    }

    /// The project's checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// How long the program has run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The cache folder itself; it may not exist yet.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// Where the part `name` of the project is built for guests. Belongs to the
    /// checkout: to cargo, two checkouts in one folder are the same, and what
    /// one has built is fresh for the other.
    pub(crate) fn part_dir(&self, name: &str) -> PathBuf {
        self.root.join("target/parts").join(name)
    }

    /// A folder `name` below the cache, created when missing.
    pub(crate) fn cache_dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.cache.join(name);
        fs::create_dir_all(&dir).at("create the folder", &dir)?;
        Ok(dir)
    }
}

/// The project is the nearest folder above the working folder, else above the
/// program itself, that holds `linux/base.toml`.
fn find_root() -> Result<PathBuf> {
    let cwd = env::current_dir().at("find", "the working folder")?;
    let exe = env::current_exe().unwrap_or_default();
    for start in [cwd.as_path(), exe.as_path()] {
        for dir in start.ancestors() {
            if dir.join("linux/base.toml").is_file() {
                return Ok(dir.to_path_buf());
            }
        }
    }
    Err(
        Error::new("no project here: linux/base.toml is in no folder above this one")
            .hint("run it from inside a clone of the project"),
    )
}

fn find_cache(given: Option<&Path>) -> Result<PathBuf> {
    let dir = if let Some(dir) = given {
        dir.to_path_buf()
    } else if let Some(dir) = env::var_os("AIOS_CACHE") {
        PathBuf::from(dir)
    } else if let Some(dir) = env::var_os("XDG_CACHE_HOME") {
        Path::new(&dir).join("aios")
    } else if let Some(home) = env::var_os("HOME") {
        Path::new(&home).join(".cache/aios")
    } else {
        return Err(Error::new("no home folder to put the cache in").hint("pass --cache DIR"));
    };
    std::path::absolute(&dir).at("resolve", &dir)
}
