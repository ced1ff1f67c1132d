// SPDX-License-Identifier: MIT
//! The emulated target: a guest for each stack, each with a drive of the same
//! contents, taking turns.

use super::image::Image;
use super::sample::Measured;
use super::schedule::Target;
use super::script;
use super::script::Tools;
use super::turns;
use super::turns::{
    Monitor,
    TURN, //
};
use super::workload::{
    Sizing,
    Workload, //
};
use crate::context::Context;
use crate::device::{
    Calibration,
    Model,
    Server, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::{
    Accel,
    Backend,
    BootConfig,
    Drive,
    Guest,
    GuestCommand,
    GuestOutput,
    Iommu, //
};
use crate::kernel::Flavour;
use crate::stack::Stack;
use aios_guest::GUEST_BINARY;
use serde::Deserialize;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Memory of a guest in MiB: less than the drive holds.
pub(crate) const MEMORY_MIB: u32 = 512;
/// The drive, in the guest.
const DRIVE: &str = "/dev/nvme0n1";
/// Where it is mounted, in the guest.
const MOUNT: &str = "/run/aios-drive";
/// Reads that the calibration looks at: idle time is counted in 10 ms, which
/// is then below one per cent.
const CALIBRATION_READS: u32 = 3000;
/// Measurements of the calibration.
const CALIBRATIONS: u32 = 3;
/// What a measurement may take beyond its own time.
const GRACE: Duration = Duration::from_secs(120);

/// How the guests are set up.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// bzImages of the kernels.
    pub(crate) kernels: [(Flavour, PathBuf); 2],
    /// The drive's contents.
    pub(crate) image: &'a Image,
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// IOMMU mode.
    pub(crate) iommu: Iommu,
    /// What may run the guests.
    pub(crate) accel: Accel,
    /// Where logs and QEMU lines go.
    pub(crate) logs: PathBuf,
    /// Size of a measurement.
    pub(crate) sizing: Sizing,
}

/// A guest and its drive. It stands still unless something says otherwise.
#[derive(Debug)]
struct Side {
    stack: Stack,
    guest: Guest,
    monitor: Monitor,
    server: Server,
    release: String,
}

/// All guests.
#[derive(Debug)]
pub(crate) struct Emulated {
    sides: Vec<Side>,
    tools: Tools,
    sizing: Sizing,
    /// Sockets of the drives.
    _sockets: tempfile::TempDir,
}

/// What the guest's workload program prints, as far as it is read.
#[derive(Debug, Deserialize)]
struct WorkResult {
    ops: u64,
    elapsed_ns: u64,
    idle_ns: u64,
    cpus: u64,
}

impl WorkResult {
    /// Processor time and waiting time of one operation, in nanoseconds.
    fn split(&self) -> Option<(u64, u64)> {
        let all = self.elapsed_ns.checked_mul(self.cpus)?;
        let busy = all.saturating_sub(self.idle_ns).checked_div(self.ops)?;
        let whole = self.elapsed_ns.checked_div(self.ops)?;
        (busy > 0 && whole > 0).then(|| (busy, whole.saturating_sub(busy)))
    }
}

impl Emulated {
    /// Boots all guests and leaves them standing still.
    pub(crate) fn boot(ctx: &Context, setup: &Setup<'_>, tools: Tools) -> Result<Self> {
        let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
        let sides = Stack::ALL
            .into_iter()
            .map(|stack| boot_side(ctx, setup, stack, sockets.path()))
            .collect::<Result<_>>()?;
        Ok(Self {
            sides,
            tools,
            sizing: setup.sizing,
            _sockets: sockets,
        })
    }

    /// Chooses the drive's speed from the native guest's own reads, and sets
    /// it on all.
    pub(crate) fn calibrate(&mut self, model: Model) -> Result<Calibration> {
        let side = self
            .sides
            .iter_mut()
            .find(|side| side.stack == Stack::Native)
            .ok_or_else(|| Error::new("no native guest was booted"))?;
        side.guest.resume()?;
        // The first run fetches the program; of the others the least disturbed
        // one counts.
        let mut quickest: Option<WorkResult> = None;
        for run in 0..=CALIBRATIONS {
            let result = calibration_run(side)?;
            if run > 0
                && quickest
                    .as_ref()
                    .is_none_or(|other| result.elapsed_ns < other.elapsed_ns)
            {
                quickest = Some(result);
            }
        }
        side.guest.pause()?;
        let (kernel_ns, device_ns) = quickest
            .and_then(|result| result.split())
            .ok_or_else(|| Error::new("the guest's calibration measured nothing"))?;
        let calibration = Calibration::choose(model, kernel_ns, device_ns);
        for side in &mut self.sides {
            side.server
                .set_latency(&calibration.read, &calibration.write)?;
        }
        Ok(calibration)
    }

    /// What `uname -r` prints on a kernel.
    pub(crate) fn release(&self, flavour: Flavour) -> &str {
        let with = |side: &&Side| side.stack.flavour() == flavour;
        self.sides
            .iter()
            .find(with)
            .map_or("unknown", |side| &side.release)
    }

    /// The QEMU lines, native first.
    pub(crate) fn qemu_lines(&self) -> Vec<String> {
        let line = |side: &Side| side.guest.qemu_line().to_owned();
        self.sides.iter().map(line).collect()
    }

    /// Whether KVM runs the guests, rather than emulation.
    pub(crate) fn is_kvm(&self) -> bool {
        self.sides.iter().all(|side| side.guest.is_kvm())
    }

    /// Powers all guests off and looks through their logs.
    pub(crate) fn shutdown(self) -> Result<()> {
        for mut side in self.sides {
            side.guest.resume()?;
            side.guest.shutdown()?;
        }
        Ok(())
    }

    /// Runs a command in each guest, in turns, and waits for all.
    fn run(&mut self, commands: &[GuestCommand]) -> Result<Vec<GuestOutput>> {
        let (sender, results) = mpsc::channel();
        thread::scope(|scope| {
            let mut monitors = Vec::new();
            for (index, (side, command)) in self.sides.iter_mut().zip(commands).enumerate() {
                let Side { guest, monitor, .. } = side;
                let sender = sender.clone();
                monitors.push(monitor);
                // A result nobody waits for any longer is of no use.
                scope.spawn(move || drop(sender.send((index, guest.run(command)))));
            }
            drop(sender);
            turns::take(&mut monitors, &results, TURN)
        })
    }

    /// Switches the stack and mounts the drive afresh, which empties its page
    /// cache; unmounts when the script ends.
    fn mount_script(stack: Stack) -> String {
        let options = stack.mount_options();
        format!(
            "set -e\n{}\n[ -d {MOUNT} ] || mkdir {MOUNT}\nmount -t ext4 -o {} {DRIVE} {MOUNT}\n\
             trap 'cd /; umount {MOUNT}' EXIT\ncd {MOUNT}\n",
            stack.switch_script(),
            if options.is_empty() {
                "defaults"
            } else {
                options
            }
        )
    }
}

impl Target for Emulated {
    fn stacks(&self) -> &'static [Stack] {
        &Stack::ALL
    }

    fn measure(
        &mut self,
        _order: &[Stack],
        workloads: &[Workload],
        seed: u64,
    ) -> Result<Vec<(Stack, Vec<Measured>)>> {
        // In the guest's own time, which stands still between turns; the
        // harness's patience covers the turns of all.
        let limit = (self.sizing.runtime + GRACE) * (3 * workloads.len()) as u32;
        let commands: Vec<GuestCommand> = self
            .sides
            .iter()
            .map(|side| {
                let script = format!(
                    "{}{}",
                    Self::mount_script(side.stack),
                    script::of(workloads, &self.tools, None, &self.sizing, seed)
                );
                GuestCommand {
                    argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
                    env: Vec::new(),
                    timeout_s: limit.as_secs(),
                }
            })
            .collect();
        let outputs = self.run(&commands)?;
        self.sides
            .iter()
            .zip(outputs)
            .map(|(side, output)| {
                let measured = understood(workloads, &output)
                    .map_err(|error| error.context(format!("on {}", side.stack.name())))?;
                Ok((side.stack, measured))
            })
            .collect()
    }
}

/// What a guest's script measured.
fn understood(workloads: &[Workload], output: &GuestOutput) -> Result<Vec<Measured>> {
    if output.timed_out {
        return Err(Error::new("it took far too long and was stopped"));
    }
    if output.code != 0 {
        return Err(failed(output.code, &output.stderr));
    }
    script::parse(workloads, &String::from_utf8_lossy(&output.stdout))
}

/// One measurement of reads without added latency.
fn calibration_run(side: &mut Side) -> Result<WorkResult> {
    let script = format!(
        "{}{GUEST_BINARY} work randread --file {MOUNT}/{} --ops {CALIBRATION_READS} --warmup 200\n",
        Emulated::mount_script(side.stack),
        super::fio::DATA
    );
    let before = side.server.counters()?.reads;
    let output = side.guest.sh(&script, GRACE)?;
    let reads = side.server.counters()?.reads - before;
    if reads < u64::from(CALIBRATION_READS) {
        return Err(Error::new(format!(
            "{CALIBRATION_READS} reads were measured and only {reads} reached the drive"
        ))
        .hint("see the guest's log in the output folder"));
    }
    serde_json::from_str(output.trim()).map_err(|error| {
        Error::new(format!(
            "the guest's calibration printed {output:?}: {error}"
        ))
        .hint("see the guest's log in the output folder")
    })
}

/// The error of a tool that ended with `code`, with its last words.
pub(crate) fn failed(code: i32, stderr: &[u8]) -> Error {
    let stderr = String::from_utf8_lossy(stderr);
    let last = stderr
        .split(['\n', '\r'])
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or("it said nothing");
    Error::new(format!("the tool ended with {code}: {last}"))
}

/// The guest of a stack, with one drive.
fn boot_config(
    setup: &Setup<'_>,
    stack: Stack,
    sockets: &Path,
    drive: PathBuf,
) -> Result<BootConfig> {
    let (_, kernel) = setup
        .kernels
        .iter()
        .find(|(flavour, _)| *flavour == stack.flavour())
        .ok_or_else(|| Error::new(format!("there is no kernel for {}", stack.name())))?;
    let mut config = BootConfig::new(kernel, stack.name(), &setup.logs);
    config.cpus = setup.cpus;
    config.memory_mib = MEMORY_MIB;
    config.iommu = setup.iommu;
    config.accel = setup.accel;
    config.drives = vec![Drive::new(Backend::Nbd(drive))];
    config.qemu = Monitor::args(&monitor_socket(sockets, stack));
    // On a busy machine an emulated timer may miss the kernel's test of it,
    // which is a panic where interrupts are remapped.
    config.append = vec!["no_timer_check".to_owned()];
    Ok(config)
}

/// The QEMU lines that [`Emulated::boot`] would run, for `--dry-run`.
pub(crate) fn dry_lines(ctx: &Context, setup: &Setup<'_>) -> Result<Vec<String>> {
    let sockets = std::env::temp_dir().join("SOCKETS");
    let line = |stack: Stack| {
        let drive = sockets.join(format!("{}.nbd", stack.name()));
        Guest::dry_line(ctx, &boot_config(setup, stack, &sockets, drive)?)
    };
    Stack::ALL.into_iter().map(line).collect()
}

fn boot_side(ctx: &Context, setup: &Setup<'_>, stack: Stack, sockets: &Path) -> Result<Side> {
    let server = Server::start(ctx, &setup.image.path, sockets, stack.name(), false)?;
    let config = boot_config(setup, stack, sockets, server.socket())?;
    let mut guest = Guest::boot(ctx, &config)?;
    let monitor = Monitor::connect(&monitor_socket(sockets, stack))?;
    let release = guest.sh("uname -r", GRACE)?.trim().to_owned();
    guest.pause()?;
    Ok(Side {
        stack,
        guest,
        monitor,
        server,
        release,
    })
}

fn monitor_socket(sockets: &Path, stack: Stack) -> PathBuf {
    sockets.join(format!("{}.turns", stack.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_split_one_processor_adds_up_to_elapsed() {
        let text = r#"{"workload":"randread","ops":1000,"bs":4096,"elapsed_ns":300000000,"idle_ns":100000000,"cpus":1,"lat_mean_ns":3e5,"lat_p50_ns":1,"lat_p99_ns":1}"#;
        let result: WorkResult = serde_json::from_str(text).unwrap();
        assert_eq!(result.split(), Some((200_000, 100_000)));
    }

    #[test]
    fn test_split_two_processors_leaves_out_the_idle_one() {
        let result = WorkResult {
            ops: 1000,
            elapsed_ns: 300_000_000,
            idle_ns: 400_000_000,
            cpus: 2,
        };
        assert_eq!(result.split(), Some((200_000, 100_000)));
    }

    #[test]
    fn test_split_nonsense_returns_none() {
        for (ops, elapsed_ns, idle_ns, cpus) in [
            (0, 1, 1, 1),
            (10, 0, 0, 1),
            (10, 5, 900, 1),
            (1, u64::MAX, 0, 9),
        ] {
            let result = WorkResult {
                ops,
                elapsed_ns,
                idle_ns,
                cpus,
            };
            assert_eq!(result.split(), None, "{result:?}");
        }
    }

    #[test]
    fn test_failed_takes_last_words_of_a_progress_line() {
        let error = failed(1, b"... finished 100 ops\ropen error: IO error\n\n");
        assert_eq!(error.what(), "the tool ended with 1: open error: IO error");
    }
}
