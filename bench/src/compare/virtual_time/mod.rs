// SPDX-License-Identifier: MIT
//! `aios compare --virtual-time`: what every kind of sync takes, by the time
//! that the device takes.
//!
//! The guest has one CPU and a clock of its own, on which an instruction takes
//! one nanosecond and waiting takes as long as the device is set to take
//! (QEMU's `-icount shift=0,sleep=off`). So latencies do not depend on the
//! machine or its load; their slope over the device's time is the number of
//! round trips that a call waits for one after the other.

mod fit;
mod measure;
mod page;
mod plan;
mod schema;
mod table;

use super::machine;
use super::output::Output;
use super::schedule::interrupted;
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::guest::{
    self,
    Guest,
    interrupt, //
};
use crate::kernel::Flavour;
use crate::report;
use crate::report::schema::Kernel as KernelInfo;
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Knob;
use indicatif::ProgressBar;
pub(crate) use measure::Kernel;
pub(crate) use plan::{
    Call,
    Commit,
    Plan,
    Row, //
};
use schema::Sample;
pub(crate) use schema::{
    Provenance,
    Results, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::thread;
use std::time::Instant;

/// What of `aios compare`'s options means something here.
#[derive(Debug)]
pub(super) struct Options<'a> {
    pub(super) quick: bool,
    pub(super) only: &'a [String],
    pub(super) list: bool,
    pub(super) json: bool,
    pub(super) out: Option<&'a Path>,
    pub(super) seed: Option<u64>,
    pub(super) source: Option<&'a Path>,
    pub(super) knobs: &'a [Knob],
}

/// Runs `aios compare --virtual-time`.
pub(super) fn run(ctx: &Context, options: &Options<'_>) -> Result<u8> {
    let plan = Plan {
        knobs: options.knobs.to_vec(),
        ..Plan::new(options.only, options.quick, options.seed.unwrap_or(1))?
    };
    if options.list {
        for row in &plan.rows {
            println!("{}", row.name());
        }
        return Ok(0);
    }
    if ctx.dry_run {
        let kernels = kernels(ctx, options.source)?;
        return dry_run(ctx, &kernels, &plan);
    }
    interrupt::watch();
    let mut output = Output::prepare(options.out)?;
    setup::ensure(ctx, &[Need::Boot, Need::Workloads])?;
    let kernels = kernels(ctx, options.source)?;
    // Built now, so that no guest has to wait for it.
    guest::init_binary(ctx)?;
    let start = Instant::now();
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let measured = measure(ctx, &kernels, &plan, &output.path().join("guest"))?;
    let provenance = Provenance {
        aios: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args().collect(),
        date,
        seconds: start.elapsed().as_secs_f64(),
        quick: options.quick,
        device_ns: plan.device_ns.clone(),
        ops: plan.ops,
        warmup: plan.warmup,
        seed: plan.seed,
        repeats: plan.repeats,
        machine: Some(machine::describe()),
        tools: machine::versions(&[machine::QEMU, machine::MKE2FS, machine::DB_BENCH]),
        kernels: kernels_info(&kernels, &measured)?,
        qemu: measured.qemu,
    };
    let results = Results::new(&plan.rows, measured.samples, provenance, measured.complete);
    if results.calls.is_empty() {
        return Err(interrupted());
    }
    let json = report::to_json(&results)?;
    let text = table::table(&results);
    let out = output.path();
    files::write_whole(&out.join("virtual-time.json"), &json)?;
    files::write_whole(&out.join("virtual-time.txt"), &text)?;
    files::write_whole(&out.join("virtual-time.html"), page::page(&results))?;
    output.keep();
    report::print(if options.json { &json } else { &text })?;
    output.announce(ctx, results.provenance.seconds, "virtual-time.html");
    Ok(if results.complete { 0 } else { 130 })
}

fn kernels(ctx: &Context, source: Option<&Path>) -> Result<[Kernel; 2]> {
    Ok([
        Kernel::build(ctx, Flavour::Native, source)?,
        Kernel::build(ctx, Flavour::Patched, source)?,
    ])
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// In no particular order.
    pub(crate) samples: Vec<Sample>,
    /// False when interrupted.
    pub(crate) complete: bool,
    /// QEMU's command line for each kernel.
    pub(crate) qemu: Vec<String>,
    /// `uname -r` of each kernel.
    releases: Vec<String>,
}

/// Measures `plan` on the stacks of `kernels`, in a guest for each kernel, side
/// by side: none is the slower for it on its own clock. Their logs go to `logs`.
pub(crate) fn measure(
    ctx: &Context,
    kernels: &[Kernel],
    plan: &Plan,
    logs: &Path,
) -> Result<Measured> {
    kernels.iter().try_for_each(Kernel::check)?;
    let spots = plan.spots();
    let bar = ctx.ui.bar(
        "measuring in virtual time",
        (kernels
            .iter()
            .map(|kernel| kernel.stacks().count())
            .sum::<usize>()
            * spots.len()) as u64,
    );
    // Booted here, as a guest ends with the thread that has started it.
    let mut guests = Vec::new();
    for kernel in kernels {
        let config = kernel.boot_config(&format!("{}-virtual", kernel.name()), logs);
        let mut guest = Guest::boot(ctx, &config)?;
        // An idle guest is busy with the timers of the time that it skips.
        guest.pause()?;
        guests.push(guest);
    }
    let halves: Vec<Result<Measured>> = thread::scope(|scope| {
        let threads: Vec<_> = guests
            .iter_mut()
            .zip(kernels)
            .map(|(guest, kernel)| {
                let (bar, spots) = (&bar, &spots);
                scope.spawn(move || {
                    guest.resume()?;
                    let measured = on_kernel(guest, kernel, plan, spots, bar)?;
                    guest.pause()?;
                    Ok(measured)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    bar.finish_and_clear();
    let mut measured = Measured {
        complete: true,
        ..Measured::default()
    };
    for half in halves {
        let half = half?;
        measured.samples.extend(half.samples);
        measured.complete &= half.complete;
        measured.releases.extend(half.releases);
    }
    measured.qemu = guests
        .iter()
        .map(|guest| guest.qemu_line().to_owned())
        .collect();
    if measured.complete {
        // A fault in a log makes the numbers worthless.
        for mut guest in guests {
            guest.resume()?;
            guest.shutdown()?;
        }
    }
    Ok(measured)
}

/// All that is measured on one kernel.
fn on_kernel(
    guest: &mut Guest,
    kernel: &Kernel,
    plan: &Plan,
    spots: &[plan::Spot],
    bar: &ProgressBar,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let release = guest.sh("uname -r", measure::TIMEOUT)?;
    measured.releases.push(release.trim().to_owned());
    for spot in spots {
        for stack in kernel.stacks() {
            match measure::run(guest, kernel, stack, spot, plan) {
                Ok(samples) => measured.samples.extend(samples),
                // What is being measured when Ctrl-C comes fails for that reason.
                Err(_) if interrupt::check().is_err() => return Ok(measured),
                Err(error) => {
                    return Err(error.context(format!(
                        "{}, {} commit, cache {}, {} ns",
                        stack.name(),
                        spot.commit.name(),
                        spot.cache,
                        spot.device_ns
                    )));
                }
            }
            bar.inc(1);
        }
    }
    measured.complete = true;
    Ok(measured)
}

fn kernels_info(kernels: &[Kernel], measured: &Measured) -> Result<Vec<KernelInfo>> {
    kernels
        .iter()
        .zip(&measured.releases)
        .map(|(kernel, release)| {
            Ok(KernelInfo {
                name: kernel.name(),
                release: release.clone(),
                build: Some(kernel.built.id.clone()),
                image_sha256: Some(machine::sha256(&kernel.built.bzimage)?),
            })
        })
        .collect()
}

/// Prints what would run.
fn dry_run(ctx: &Context, kernels: &[Kernel], plan: &Plan) -> Result<u8> {
    for kernel in kernels {
        let config = kernel.boot_config(&kernel.name(), &PathBuf::from("OUT/guest"));
        println!("{}", Guest::dry_line(ctx, &config)?);
        for spot in plan.spots() {
            for stack in kernel.stacks() {
                print!(
                    "# {}\n{}",
                    stack.name(),
                    measure::script(kernel, stack, &spot, plan)
                );
            }
        }
    }
    Ok(0)
}
