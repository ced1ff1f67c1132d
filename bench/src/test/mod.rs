// SPDX-License-Identifier: MIT
//! `aios test`: every check there is, as continuous integration runs it.

mod guest;
mod host;
mod series;
mod suite;

use crate::context::Context;
use crate::error::Result;
use crate::setup;
use std::time::Duration;
use suite::Suite;

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Every check, as continuous integration runs them.
    All,
    /// Readers against everything that changes or evicts what they read, for long.
    Race,
    /// A file system on a read-write disk that everything happens to, for long.
    Churn,
    /// Read-write disks far larger than memory, written whole, also while layers fail.
    Fill,
    /// overlaybd images and LBIO's races in a kernel that checks every access to memory.
    Kasan,
}

/// Options of `aios test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What to run.
    #[arg(long, value_enum, default_value_t = Which::All)]
    suite: Which,
    /// How long the other suites take, in minutes.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Run only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print the names of the cases and run none.
    #[arg(long)]
    list: bool,
}

/// Runs `aios test`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    // Guests' sockets and the series' build folder are those of the cache.
    let _lock = match args.list || ctx.dry_run {
        true => None,
        false => Some(setup::lock(&ctx.cache_dir("test")?.join("lock"))?),
    };
    let mut suite = Suite::new(args.only.clone(), args.list);
    let time = Duration::from_secs(60 * u64::from(args.minutes));
    match args.suite {
        Which::All => {
            host::run(ctx, &mut suite);
            series::run(ctx, &mut suite);
            guest::run(ctx, &mut suite);
        }
        Which::Race => guest::race::run(ctx, &mut suite, time),
        Which::Churn => guest::churn::run(ctx, &mut suite, time),
        Which::Fill => guest::fill::run(ctx, &mut suite),
        Which::Kasan => guest::kasan::run(ctx, &mut suite),
    }
    suite.finish()
}
