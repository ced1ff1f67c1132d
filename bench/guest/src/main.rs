// SPDX-License-Identifier: MIT
//! Init and agent of the measured guest, and its small workloads.
//!
//! As process 1 it builds the guest's root and serves the harness; called by
//! hand, `aios-guest work …`, `… race`, `… faults`, `… new-blocks`, `… sync` and
//! `… obd-writer` run a workload and print one line of JSON; `… count` runs a program
//! between the marks of a window.

mod agent;
mod init;
mod sys;

use aios_guest::count::Count;
use aios_guest::crash::Crash;
use aios_guest::faults::Faults;
use aios_guest::new_blocks::NewBlocks;
use aios_guest::obd_writer::ObdWriter;
use aios_guest::race::Race;
use aios_guest::sync::Sync;
use aios_guest::work::Work;
use clap::{
    Parser,
    Subcommand, //
};
use serde::Serialize;
use std::fmt::Display;
use std::process::ExitCode;

/// Small workloads of the measured guest.
#[derive(Parser)]
#[command(name = "aios-guest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a workload with marked operations.
    Work(Work),
    /// Let readers race with writers, and check that none sees stale data.
    Race(Race),
    /// Touch pages of a mapped file, and check what is in them.
    Faults(Faults),
    /// Let direct reads race with syncs that give a file its blocks.
    NewBlocks(NewBlocks),
    /// Carry out a plan of the crash explorer.
    Crash(Crash),
    /// Make synced changes that can be checked after a crash.
    Sync(Sync),
    /// Make layers of what is written to an overlaybd disk.
    ObdWriter(ObdWriter),
    /// Run a program, all of whose instructions are counted, and the kernel's meanwhile.
    Count(Count),
}

/// What a command that went well prints: one line of JSON.
fn report<T: Serialize>(result: Result<T, impl Display>) -> Result<String, String> {
    let result = result.map_err(|error| error.to_string())?;
    serde_json::to_string(&result).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::main();
    }
    let printed = match Cli::parse().command {
        Command::Work(work) => report(work.run()),
        Command::Race(race) => report(race.run()),
        Command::Faults(faults) => report(faults.run()),
        Command::NewBlocks(blocks) => report(blocks.run()),
        Command::Crash(crash) => report(crash.run()),
        Command::Sync(sync) => report(sync.run()),
        Command::ObdWriter(writer) => report(writer.run()),
        Command::Count(count) => report(count.run()),
    };
    match printed {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("aios-guest: {error}");
            ExitCode::FAILURE
        }
    }
}
