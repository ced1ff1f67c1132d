// SPDX-License-Identifier: MIT
//! `aios-disk`: serves a raw image over NBD with the latency of a chosen drive.

use clap::Parser;
use std::process::ExitCode;

/// A drive with a speed: serves a raw image to QEMU over NBD.
#[derive(Parser)]
#[command(name = "aios-disk", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: aios_disk::cli::Command,
}

fn main() -> ExitCode {
    match aios_disk::cli::run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
