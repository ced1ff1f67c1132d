// SPDX-License-Identifier: MIT

//! `obd`: reads and writes overlaybd images, and attaches them as devices.
//!
//! Exit codes: 0 all went well; 1 a file is damaged or refused; 2 wrong usage;
//! 3 the system refused; 130 a signal came.

#![forbid(unsafe_code)]

mod attach;
mod commit;
mod config;
mod convert;
mod create;
mod device;
mod driver;
mod dump;
mod error;
mod export;
mod info;
mod open;
mod output;
mod store;
mod ui;
mod userspace;
mod verify;
mod writable;
mod write;

use clap::{
    Parser,
    Subcommand, //
};
use error::Result;
use std::process::ExitCode;

/// Reads, writes and attaches overlaybd images: layers, zfiles and stacks of them.
#[derive(Parser)]
#[command(name = "obd", version, max_term_width = 100)]
struct Cli {
    /// Write JSON to standard output.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Info(info::Args),
    Verify(verify::Args),
    Dump(dump::Args),
    Export(export::Args),
    Merge(dump::MergeArgs),
    Create(create::Args),
    Commit(commit::Args),
    Convert(convert::Args),
    Store(store::Args),
    Check(device::CheckArgs),
    Attach(Box<attach::Args>),
    Detach(attach::DetachArgs),
    List(attach::ListArgs),
    Writer(writable::WriterArgs),
    Compact(writable::CompactArgs),
}

/// Writes one JSON document to standard output.
fn print_json(value: &impl serde::Serialize) {
    // Maps with keys that are no strings are all that can fail: none here.
    match serde_json::to_string_pretty(value) {
        Ok(text) => ui::print(&text),
        Err(error) => eprintln!("error: {error}"),
    }
}

fn run(cli: &Cli) -> Result<()> {
    let interrupted = ui::interrupted()?;
    match &cli.command {
        Command::Info(args) => info::run(args, cli.json),
        Command::Verify(args) => verify::run(args, cli.json, &interrupted),
        Command::Dump(args) => dump::run(args, cli.json),
        Command::Export(args) => export::run(args, cli.json, &interrupted),
        Command::Merge(args) => dump::merge(args, cli.json, &interrupted),
        Command::Create(args) => create::run(args, cli.json),
        Command::Commit(args) => commit::run(args, cli.json, &interrupted),
        Command::Convert(args) => convert::run(args, cli.json, &interrupted),
        Command::Store(args) => store::run(args, cli.json, &interrupted),
        Command::Check(args) => device::check(args, cli.json),
        Command::Attach(args) => attach::run(args, cli.json, &interrupted),
        Command::Detach(args) => attach::detach(args, cli.json, &interrupted),
        Command::List(args) => attach::list(args, cli.json),
        Command::Writer(args) => writable::writer(args, cli.json, &interrupted),
        Command::Compact(args) => writable::compact(args, cli.json, &interrupted),
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, error::Error::Reported(_)) {
                eprintln!("error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
