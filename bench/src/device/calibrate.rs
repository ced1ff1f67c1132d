// SPDX-License-Identifier: MIT
//! Measuring what a read takes of a native guest's kernel and of its emulated
//! drive.

use super::{
    Calibration,
    Model,
    Server, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::guest::Guest;
use aios_guest::GUEST_BINARY;
use serde::Deserialize;
use std::time::Duration;

/// Reads of a measurement, and of the one whose processor time is taken off:
/// what starting the program costs cancels out.
const READS: [u32; 2] = [3200, 200];
/// Measurements, of which the least disturbed one counts.
const ROUNDS: u32 = 3;
/// What a measurement may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest's workload program prints, as far as it is read.
#[derive(Debug, Deserialize)]
struct WorkResult {
    lat_mean_ns: f64,
}

/// Chooses the speed of `model` by random 4 KiB reads of `file` in a native
/// guest whose drive `server` is, without added latency. `prepare` is the
/// shell script that mounts the drive afresh, as `file` must not be cached.
pub(crate) fn calibrate(
    model: Model,
    guest: &mut Guest,
    server: &mut Server,
    prepare: &str,
    file: &str,
) -> Result<Calibration> {
    let mut run = |reads| reads_of(guest, server, prepare, file, reads);
    // Fetches the program.
    run(READS[1])?;
    let mut quickest: Option<(u64, u64)> = None;
    for _ in 0..ROUNDS {
        let (few_cpu, _) = run(READS[1])?;
        let (many_cpu, mean_ns) = run(READS[0])?;
        let kernel_ns = many_cpu.saturating_sub(few_cpu) / u64::from(READS[0] - READS[1]);
        // Else what was taken off was disturbed by more than what it was taken off.
        if kernel_ns > 0 && quickest.is_none_or(|(_, other)| mean_ns < other) {
            quickest = Some((kernel_ns, mean_ns));
        }
    }
    let (kernel_ns, mean_ns) =
        quickest.ok_or_else(|| Error::new("the guest's calibration measured nothing"))?;
    let device_ns = mean_ns.saturating_sub(kernel_ns);
    Ok(Calibration::choose(model, kernel_ns, device_ns))
}

/// Processor time of the whole run and mean latency of its `reads`, ns.
///
/// The host counts the time of the virtual processors: the guest's own count
/// of idle time is sampled by its timer tick, which short waits escape. Under
/// KVM it includes what the host spends on polling for the guest's wakeup.
fn reads_of(
    guest: &mut Guest,
    server: &mut Server,
    prepare: &str,
    file: &str,
    reads: u32,
) -> Result<(u64, u64)> {
    let script =
        format!("{prepare}{GUEST_BINARY} work randread --file {file} --ops {reads} --warmup 0\n");
    let served = server.counters()?.reads;
    let cpu = guest.cpu_time_ns()?;
    let output = guest.sh(&script, PATIENCE)?;
    let cpu = guest.cpu_time_ns()?.saturating_sub(cpu);
    let served = server.counters()?.reads - served;
    if served < u64::from(reads) {
        return Err(Error::new(format!(
            "{reads} reads were measured and only {served} reached the drive"
        ))
        .hint("see the guest's log in the output folder"));
    }
    let result: WorkResult = serde_json::from_str(output.trim()).map_err(|error| {
        Error::new(format!(
            "the guest's calibration printed {output:?}: {error}"
        ))
        .hint("see the guest's log in the output folder")
    })?;
    Ok((cpu, result.lat_mean_ns as u64))
}
