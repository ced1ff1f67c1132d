// SPDX-License-Identifier: MIT
//! `aios`: builds the patched kernel, boots it with an emulated NVMe drive and
//! compares the asynchronous I/O stack with the native one.

mod boot;
mod compare;
mod context;
mod crash;
mod demo;
mod device;
mod error;
mod files;
mod guest;
mod kernel;
mod obd_tool;
mod process;
mod profile;
mod report;
mod setup;
mod space;
mod stack;
mod test;
mod ui;

use clap::{
    Parser,
    Subcommand, //
};
use context::Context;
use error::Result;
use std::process::ExitCode;

/// A low-latency I/O stack for Linux on fast NVMe drives, and the proof of it.
#[derive(Parser)]
#[command(name = "aios", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: context::GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what is there, what is missing and how to mend it.
    Doctor(setup::doctor::Args),
    /// Fetch what only extras need.
    Setup(setup::Args),
    /// Prepare, build, export or package the patched kernel.
    Kernel(kernel::Args),
    /// Boot a kernel with emulated NVMe and run a command in the guest.
    Boot(boot::Args),
    /// Compare native, patched-but-off and async (the main job).
    Compare(compare::Args),
    /// Compare two earlier runs.
    Report(report::Args),
    /// Count kernel instructions per operation, by function, layer and phase.
    Profile(profile::Args),
    /// Explore what a power cut could leave of recorded workloads.
    Crash(crash::Args),
    /// Show a read-write disk's life in the guest: made, written, committed, read.
    Demo(demo::Args),
    /// Run every check: host tests, series, checkpatch, KUnit, guest tests.
    Test(test::Args),
    /// Serve a drive's image (what the other commands start by themselves).
    #[command(subcommand, hide = true)]
    Disk(aios_disk::cli::Command),
}

fn dispatch(cli: Cli) -> Result<u8> {
    let ctx = Context::new(&cli.global);
    match cli.command {
        Command::Doctor(args) => setup::doctor::run(&ctx?, &args),
        Command::Setup(args) => setup::run(&ctx?, &args),
        Command::Kernel(args) => kernel::run(&ctx?, &args),
        Command::Boot(args) => boot::run(&ctx?, &args),
        Command::Compare(args) => compare::run(&ctx?, &args),
        Command::Report(args) => report::run(&ctx?, &args),
        Command::Profile(args) => profile::run(&ctx?, &args),
        Command::Crash(args) => crash::run(&ctx?, &args),
        Command::Demo(args) => demo::run(&ctx?, &args),
        Command::Test(args) => test::run(&ctx?, &args),
        Command::Disk(command) => device::serve(command),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
