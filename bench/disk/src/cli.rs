// SPDX-License-Identifier: MIT
//! The command line, for the program `aios-disk` and for programs that start
//! themselves as the server.

use crate::error::Result;
use crate::latency::Latency;
use crate::measure;
use crate::power::PowerCut;
use crate::server::{
    self,
    Disk,
    Options, //
};
use clap::builder::TypedValueParser as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::Duration;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Serve an image until ended.
    Serve(Box<ServeArgs>),
    /// Measure the server's own cost, and QEMU's with and without it.
    Measure(measure::Args),
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Raw image to serve.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Unix socket to serve NBD on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Unix socket to be controlled by (JSON lines).
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Write to the image file [default: writes stay in memory].
    #[arg(long)]
    keep: bool,
    /// Latency of reads: NS, or P:NS,P:NS,... with percentiles P.
    #[arg(long, value_name = "LATENCY", default_value = "0")]
    read_latency: Latency,
    /// Latency of all other commands.
    #[arg(long, value_name = "LATENCY", default_value = "0")]
    write_latency: Latency,
    /// Seed of the random latencies.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Microseconds before a deadline to watch the clock instead of sleeping.
    #[arg(long, value_name = "US", default_value_t = micros(server::DEFAULT_SPIN),
        value_parser = clap::value_parser!(u64).range(..=1000))]
    spin: u64,
    /// Have a volatile write cache and cut the power at this command that
    /// changes anything, counted from 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cut_at: Option<u64>,
    /// Chooses what survives the power cut.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    cut_seed: u64,
    /// Logical block in bytes, the unit that is never torn.
    #[arg(long, value_name = "BYTES", default_value_t = 512,
        value_parser = clap::builder::PossibleValuesParser::new(["512", "4096"])
            .map(|text| if text == "4096" { 4096_u32 } else { 512 }))]
    cut_block: u32,
    /// Atomic unit in bytes, a power of two: what lies within one is never torn either
    /// [default: none but the logical block].
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true,
        value_parser = atomic_unit)]
    cut_atomic: u32,
    /// End when standard input does: with the program that started it.
    #[arg(long)]
    until_stdin_closes: bool,
}

/// Bytes of an atomic unit, or 0 for none.
///
/// # Errors
///
/// Says why it is no such number.
pub fn atomic_unit(text: &str) -> std::result::Result<u32, String> {
    let bytes: u32 = text
        .parse()
        .map_err(|_| "it is no number of bytes".to_owned())?;
    match bytes == 0 || (512..=1 << 20).contains(&bytes) && bytes.is_power_of_two() {
        true => Ok(bytes),
        false => Err("it is not a power of two from 512 to 1048576".to_owned()),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Does it; returns the exit code.
pub fn run(command: Command) -> Result<u8> {
    match command {
        Command::Serve(args) => serve(*args),
        Command::Measure(args) => measure::run(&args),
    }
}

fn serve(args: ServeArgs) -> Result<u8> {
    let disk = Disk::bind(&Options {
        image: args.image,
        socket: args.socket,
        control: args.control,
        keep: args.keep,
        read: args.read_latency,
        write: args.write_latency,
        seed: args.seed,
        spin: Duration::from_micros(args.spin),
        cut: args.cut_at.map(|at| PowerCut {
            at,
            seed: args.cut_seed,
            block: args.cut_block,
            atomic: args.cut_atomic,
        }),
    })?;
    if args.until_stdin_closes {
        let handle = disk.handle();
        thread::spawn(move || {
            // Whatever is said does not matter, only that it ends.
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let code = match handle.finish_log() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("aios-disk: {error}");
                    1
                }
            };
            process::exit(code);
        });
    }
    let Err(error) = disk.run();
    Err(error)
}
