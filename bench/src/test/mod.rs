// SPDX-License-Identifier: MIT
//! `aios test`: every check there is, as continuous integration runs it.

mod guest;
mod host;
mod series;
mod suite;

use crate::context::Context;
use crate::error::Result;
use crate::setup;
use suite::Suite;

/// Options of `aios test`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
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
    host::run(ctx, &mut suite);
    series::run(ctx, &mut suite);
    guest::run(ctx, &mut suite);
    suite.finish()
}
