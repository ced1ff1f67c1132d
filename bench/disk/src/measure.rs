// SPDX-License-Identifier: MIT
//! Measuring the server's own cost, against that of QEMU's file backend.
//!
//! Three times are told, each the mean of 4 KiB reads at queue depth 1:
//!
//! 1. the server's own time per request, counted by the server: from when the
//!    request was received until its reply was handed to the kernel;
//! 2. the round trip of a bare client, and so the cost of the socket and of
//!    waking the two sides up;
//! 3. `qemu-img bench` on the raw file and on the server, if it is installed:
//!    QEMU's block layer with the one and the other below.
//!
//! What the server adds of its own (1) is to stay below a quarter of what a
//! read costs QEMU's file backend (3).

use crate::client::Client;
use crate::clock;
use crate::control::Control;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::server::{
    Disk,
    Options, //
};
use std::io;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::thread;

/// Size of the reads, bytes.
const BLOCK: u32 = 4096;
/// Apart from each other in the image, bytes: a prime number of blocks, so
/// that few reads follow each other on one page of the page table.
const STRIDE: u64 = 4096 * 1021;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Raw image to read; it is not changed.
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Reads per measurement.
    #[arg(long, default_value_t = 20_000)]
    count: u32,
    /// Repetitions; the median is told.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
}

/// Times of one repetition, ns per read.
#[derive(Debug, Clone, Copy)]
struct Times {
    server: u64,
    round_trip: u64,
    /// QEMU on the file and on the server.
    qemu: Option<(u64, u64)>,
}

/// Measures and prints; the exit code is 1 if the server's own time is not
/// below a quarter of QEMU's time for its file backend.
pub fn run(args: &Args) -> Result<u8> {
    let dir = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let socket = dir.path().join("nbd");
    let control_path = dir.path().join("control");
    let mut options = Options::new(&args.image, &socket);
    options.control = Some(control_path.clone());
    let disk = Disk::bind(&options)?;
    thread::spawn(move || {
        let Err(error) = disk.run();
        eprintln!("aios-disk: {error}");
    });
    let mut control = Control::connect(&control_path)?;

    let mut all = Vec::new();
    for _ in 0..args.repeat {
        all.push(measure(args, &socket, &mut control)?);
    }
    let median = |pick: &dyn Fn(&Times) -> Option<u64>| {
        let mut values: Vec<u64> = all.iter().filter_map(pick).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    };
    let tell = |what: &str, ns: Option<u64>| {
        if let Some(ns) = ns {
            let us = ns as f64 / 1000.0;
            println!("{what:<58} {us:>8.2} us");
        }
    };
    let server = median(&|times| Some(times.server));
    let file = median(&|times| times.qemu.map(|(file, _)| file));
    println!(
        "4 KiB reads at queue depth 1, {} x {}, median of the means",
        args.repeat, args.count
    );
    tell("server's own time per request", server);
    tell(
        "round trip of a bare client",
        median(&|times| Some(times.round_trip)),
    );
    tell("qemu-img bench on the file", file);
    tell(
        "qemu-img bench on the server",
        median(&|times| times.qemu.map(|(_, nbd)| nbd)),
    );
    let (Some(server), Some(file)) = (server, file) else {
        println!(
            "qemu-img is not installed: no comparison with QEMU's file backend (install qemu-utils)"
        );
        return Ok(0);
    };
    let share = 100.0 * server as f64 / file.max(1) as f64;
    let below = server.saturating_mul(4) < file;
    println!(
        "the server's own time is {share:.0} % of QEMU's read from a file: {} a quarter",
        if below { "below" } else { "NOT below" }
    );
    Ok(u8::from(!below))
}

fn measure(args: &Args, socket: &Path, control: &mut Control) -> Result<Times> {
    let (server, round_trip) = bare_client(args.count, socket, control)?;
    // QEMU splits options at commas; doubled, they stand for themselves.
    let escape = |path: &Path| path.to_string_lossy().replace(',', ",,");
    let nbd = format!("driver=nbd,server.type=unix,server.path={}", escape(socket));
    let file = format!("driver=file,filename={}", escape(&args.image));
    let qemu = match (bench(args.count, &file)?, bench(args.count, &nbd)?) {
        (Some(file), Some(nbd)) => Some((file, nbd)),
        _ => None,
    };
    Ok(Times {
        server,
        round_trip,
        qemu,
    })
}

/// Reads with our own client; returns the server's own time and the round
/// trip, ns per read.
fn bare_client(count: u32, socket: &Path, control: &mut Control) -> Result<(u64, u64)> {
    let mut client = Client::connect(socket)?;
    let blocks = client.size() / u64::from(BLOCK);
    if blocks == 0 || count == 0 {
        return Err(Error::Measure("the image or the count is too small".into()));
    }
    let mut buffer = vec![0; BLOCK as usize];
    let before = control.counters()?;
    let start = clock::now();
    for i in 0..u64::from(count) {
        let block = (i * STRIDE / u64::from(BLOCK)) % blocks;
        client
            .read(block * u64::from(BLOCK), &mut buffer)
            .at("read from", socket)?;
    }
    let elapsed = clock::now() - start;
    let after = control.counters()?;
    let reads = u64::from(count);
    Ok(((after.late_ns - before.late_ns) / reads, elapsed / reads))
}

/// `qemu-img bench`, ns per read; nothing where it is not installed.
fn bench(count: u32, blockdev: &str) -> Result<Option<u64>> {
    let mut command = Command::new("qemu-img");
    command
        .args(["bench", "-d", "1", "-s", &BLOCK.to_string()])
        .args(["-S", &STRIDE.to_string(), "-c", &count.to_string()])
        .args(["--image-opts", blockdev])
        .stdin(Stdio::null());
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at("run", "qemu-img")?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // "Run completed in 0.123 seconds."
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("Run completed in "))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    match seconds {
        Some(seconds) => Ok(Some((seconds * 1e9 / f64::from(count.max(1))) as u64)),
        None => Err(Error::Measure(format!(
            "qemu-img bench failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}
