// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Explores the protocol of overlapped fsync, or counts its round trips.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use jbd_overlap_model::build::protocol;
use jbd_overlap_model::config::{Config, Flavour, Mutant, Workload};
use jbd_overlap_model::explore::{Counts, ExploreError, Limits, explore};
use jbd_overlap_model::rules::{Reason, allowed};
use jbd_overlap_model::story::tell;
use jbd_overlap_model::trips::round_trips;
use serde::Serialize;

/// Tries every order of completions and every power cut of ext4's fsync.
///
/// Exits with 0 if every promise holds, 1 if one is broken (its story is
/// printed), 2 if the question makes no sense.
#[derive(Debug, Parser)]
#[command(name = "jbd-overlap-model", version)]
struct Cli {
    /// Words separated by commas: ordered|writeback|journal, full|fc,
    /// lock|nolock, internal|external, nocache|cache, csum|nocsum. Without it,
    /// all 96 configurations.
    #[arg(long)]
    config: Option<Config>,
    /// What the files do. Without it, everything.
    #[arg(long, value_enum)]
    workload: Option<Workload>,
    /// The protocol.
    #[arg(long, value_enum, default_value = "overlap")]
    protocol: Flavour,
    /// A mistake to make on purpose.
    #[arg(long, value_enum)]
    mutant: Option<Mutant>,
    /// Errors that the device may return in one run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=3))]
    faults: u8,
    /// Give up a workload after this many states.
    #[arg(long, default_value_t = Limits::default().states)]
    states: usize,
    /// Count serial round trips of one sync call instead of exploring.
    #[arg(long)]
    trips: bool,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{config}, {workload}: {source}")]
    Explore {
        config: Config,
        workload: Workload,
        source: ExploreError,
    },
    #[error("output: {0}")]
    Output(#[from] io::Error),
    #[error("output as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One line of `--json`.
#[derive(Serialize)]
struct Report {
    config: String,
    workload: Workload,
    protocol: Flavour,
    mutant: Option<Mutant>,
    /// Why the first operation is not overlapped.
    off: Option<Reason>,
    round_trips: Option<u32>,
    #[serde(flatten)]
    counts: Option<Counts>,
    violation: Option<String>,
    story: Option<Vec<String>>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        // A reader that has seen enough (`| head`).
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Returns the number of broken promises.
fn run(cli: &Cli) -> Result<usize, Failure> {
    let mut out = io::stdout().lock();
    let configs: Vec<Config> = match cli.config {
        Some(config) => vec![config],
        None => Config::all().collect(),
    };
    let workloads: Vec<Workload> = match cli.workload {
        Some(workload) => vec![workload],
        None => Workload::all().collect(),
    };
    let mut total = Counts::default();
    let mut violations = 0;
    for &config in &configs {
        for &workload in &workloads {
            let report = report(cli, config, workload)?;
            violations += usize::from(report.violation.is_some());
            if let Some(counts) = report.counts {
                total.states += counts.states;
                total.moves += counts.moves;
                total.crash_states += counts.crash_states;
            }
            print(&mut out, cli, &report)?;
        }
    }
    if !cli.json && !cli.trips {
        writeln!(
            out,
            "{} states, {} moves, {} crash states, {violations} violations",
            total.states, total.moves, total.crash_states
        )?;
    }
    Ok(violations)
}

fn report(cli: &Cli, config: Config, workload: Workload) -> Result<Report, Failure> {
    let run = protocol(config, workload, cli.protocol, cli.mutant);
    let off = (run.ops.first()).and_then(|op| allowed(&config, op, &run.ops).err());
    let mut report = Report {
        config: config.to_string(),
        workload,
        protocol: cli.protocol,
        mutant: cli.mutant,
        off,
        round_trips: round_trips(&run),
        counts: None,
        violation: None,
        story: None,
    };
    if cli.trips {
        return Ok(report);
    }
    let limits = Limits {
        states: cli.states,
        faults: cli.faults,
    };
    let outcome = explore(&run, limits).map_err(|source| Failure::Explore {
        config,
        workload,
        source,
    })?;
    report.counts = Some(outcome.counts);
    if let Some(example) = outcome.counterexample {
        report.violation = Some(example.violation.to_string());
        report.story = Some(tell(&run, &example).lines().map(str::to_owned).collect());
    }
    Ok(report)
}

fn print(out: &mut impl io::Write, cli: &Cli, report: &Report) -> Result<(), Failure> {
    if cli.json {
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        return Ok(());
    }
    write!(
        out,
        "{:<46} {:<26}",
        report.config,
        report.workload.to_string()
    )?;
    if let Some(trips) = report.round_trips {
        write!(out, " {trips} round trips")?;
    }
    if let Some(counts) = &report.counts {
        write!(
            out,
            " {:>7} states {:>8} crash states",
            counts.states, counts.crash_states
        )?;
    }
    match &report.violation {
        Some(violation) => writeln!(out, "  VIOLATION: {violation}")?,
        None => writeln!(out)?,
    }
    for line in report.story.iter().flatten() {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}
