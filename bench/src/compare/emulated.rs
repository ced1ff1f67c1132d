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
use crate::device;
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
use crate::stack::{
    Knob,
    Stack,
    Wait, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Memory of a guest in MiB unless told: less than the drive holds.
pub(crate) const MEMORY_MIB: u32 = 512;
/// The drive, in the guest.
const DRIVE: &str = "/dev/nvme0n1";
/// Where it is mounted, in the guest.
const MOUNT: &str = "/run/aios-drive";
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
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// How async waits for the drive.
    pub(crate) wait: Wait,
    /// Kernel command line of the async guest.
    pub(crate) append: &'a [String],
    /// Knobs of async.
    pub(crate) knobs: &'a [Knob],
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
    /// What is set in the async guest once the drive is mounted: how it waits, and knobs.
    settings: String,
    /// Sockets of the drives.
    _sockets: tempfile::TempDir,
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
            settings: settings(setup),
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
        let calibration = device::calibrate(
            model,
            &mut side.guest,
            &mut side.server,
            &side.stack.mount_script(DRIVE, MOUNT),
            &format!("{MOUNT}/{}", super::fio::DATA),
        )?;
        side.guest.pause()?;
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

    /// Runs a command in each guest, in turns that go round in `order`, and
    /// waits for all.
    fn run(&mut self, order: &[Stack], commands: &[GuestCommand]) -> Result<Vec<GuestOutput>> {
        let order: Vec<usize> = order
            .iter()
            .filter_map(|stack| self.sides.iter().position(|side| side.stack == *stack))
            .collect();
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
            turns::take(&mut monitors, &order, &results, TURN)
        })
    }
}

impl Target for Emulated {
    fn stacks(&self) -> &'static [Stack] {
        &Stack::ALL
    }

    fn measure(
        &mut self,
        order: &[Stack],
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
                let settings = match side.stack {
                    Stack::Async => &self.settings,
                    _ => "",
                };
                let script = format!(
                    "set -e\n{}{settings}cd {MOUNT}\n{}",
                    side.stack.mount_script(DRIVE, MOUNT),
                    script::of(workloads, &self.tools, None, &self.sizing, seed)
                );
                GuestCommand {
                    argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
                    env: Vec::new(),
                    timeout_s: limit.as_secs(),
                }
            })
            .collect();
        let outputs = self.run(order, &commands)?;
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

/// The shell script that sets what the async guest is asked to have.
fn settings(setup: &Setup<'_>) -> String {
    let knobs = setup.knobs.iter().map(|knob| knob.script(DRIVE));
    knobs.fold(setup.wait.script().to_owned(), |all, knob| all + &knob)
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
    config.memory_mib = setup.memory_mib;
    config.iommu = setup.iommu;
    config.accel = setup.accel;
    config.drives = vec![Drive::new(Backend::Nbd(drive))];
    config.qemu = Monitor::args(&monitor_socket(sockets, stack));
    if stack == Stack::Async {
        let queues = format!("nvme.lbio_queues={}", setup.cpus);
        config.append.push(queues);
        config.append.extend_from_slice(setup.append);
    }
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
    fn test_failed_takes_last_words_of_a_progress_line() {
        let error = failed(1, b"... finished 100 ops\ropen error: IO error\n\n");
        assert_eq!(error.what(), "the tool ended with 1: open error: IO error");
    }
}
