// SPDX-License-Identifier: MIT
//! The guest that all contenders share: the patched kernel, with a drive for each
//! image, all as fast.

use super::contender::{
    Contender,
    MOUNT,
    Paths, //
};
use super::images::Images;
use crate::compare::emulated::{
    MEMORY_MIB,
    failed, //
};
use crate::compare::fio;
use crate::compare::sample::Measured;
use crate::compare::script::{
    self,
    Tools, //
};
use crate::compare::workload::{
    Sizing,
    Workload, //
};
use crate::context::Context;
use crate::device::{
    self,
    Calibration,
    Latency,
    Model,
    Server, //
};
use crate::error::{
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
    Iommu, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::time::Duration;

/// What a measurement may take beyond its own time, and how many times longer an
/// emulated processor takes on a busy machine.
const GRACE: Duration = Duration::from_secs(120);

/// What a guest whose instructions are counted has more.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    /// QEMU's arguments that load the plugin.
    pub(super) qemu: Vec<String>,
}

/// How it is set up.
#[derive(Debug, Clone)]
pub(super) struct Setup<'a> {
    /// bzImage of the patched kernel.
    pub(super) kernel: &'a Path,
    pub(super) images: &'a Images,
    pub(super) cpus: u32,
    pub(super) iommu: Iommu,
    pub(super) accel: Accel,
    /// Where log and QEMU line go.
    pub(super) logs: PathBuf,
    pub(super) sizing: Sizing,
    /// Instructions are counted: one emulated CPU.
    pub(super) counting: Option<Counting>,
}

/// The guest, and its drives.
#[derive(Debug)]
pub(super) struct Shared {
    guest: Guest,
    servers: Vec<Server>,
    paths: Paths,
    tools: Tools,
    sizing: Sizing,
    /// Sockets of the drives.
    _sockets: tempfile::TempDir,
}

fn boot_config(setup: &Setup<'_>, drives: Vec<PathBuf>) -> BootConfig {
    let mut config = BootConfig::new(setup.kernel, "obd", &setup.logs);
    config.cpus = setup.cpus;
    config.memory_mib = MEMORY_MIB;
    config.iommu = setup.iommu;
    config.accel = setup.accel;
    if let Some(Counting { qemu }) = &setup.counting {
        config.name = "obd-counted".to_owned();
        config.cpus = 1;
        config.accel = Accel::Tcg;
        config.qemu.clone_from(qemu);
    }
    config
        .append
        .push(format!("nvme.lbio_queues={}", config.cpus));
    config.drives = drives
        .into_iter()
        .map(|drive| Drive::new(Backend::Nbd(drive)))
        .collect();
    config
}

/// The QEMU line that [`Shared::boot`] would run, for `--dry-run`.
pub(super) fn dry_line(ctx: &Context, setup: &Setup<'_>) -> Result<String> {
    let sockets = std::env::temp_dir().join("SOCKETS");
    let drives = (0..setup.images.drives.len())
        .map(|number| sockets.join(format!("drive{number}.nbd")))
        .collect();
    Guest::dry_line(ctx, &boot_config(setup, drives))
}

impl Shared {
    /// Starts the drives and boots the guest.
    pub(super) fn boot(
        ctx: &Context,
        setup: &Setup<'_>,
        paths: Paths,
        tools: Tools,
    ) -> Result<Self> {
        let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
        let servers: Vec<Server> = (0..)
            .zip(&setup.images.drives)
            .map(|(number, image): (u32, _)| {
                Server::start(ctx, image, sockets.path(), &format!("drive{number}"), false)
            })
            .collect::<Result<_>>()?;
        let drives = servers.iter().map(Server::socket).collect();
        let guest = Guest::boot(ctx, &boot_config(setup, drives))?;
        Ok(Self {
            guest,
            servers,
            paths,
            tools,
            sizing: setup.sizing,
            _sockets: sockets,
        })
    }

    /// Chooses the drives' speed from reads of the bare file system.
    pub(super) fn calibrate(&mut self, model: Model) -> Result<Calibration> {
        let prepare = Contender::Bare.mount_script(&self.paths);
        let file = format!("{MOUNT}/{}", fio::DATA);
        let Self { guest, servers, .. } = self;
        let (bare, _) = servers
            .split_first_mut()
            .ok_or_else(|| crate::error::Error::new("there is no drive"))?;
        let calibration = device::calibrate(model, guest, bare, &prepare, &file)?;
        for server in servers {
            server.set_latency(&calibration.read, &calibration.write)?;
        }
        Ok(calibration)
    }

    /// Sets the same speed of all drives.
    pub(super) fn set_latency(&mut self, latency: &Latency) -> Result<()> {
        for server in &mut self.servers {
            server.set_latency(latency, latency)?;
        }
        Ok(())
    }

    /// `uname -r`.
    pub(super) fn release(&mut self) -> Result<String> {
        Ok(self.guest.sh("uname -r", GRACE)?.trim().to_owned())
    }

    /// QEMU's command line.
    pub(super) fn qemu_line(&self) -> &str {
        self.guest.qemu_line()
    }

    /// Whether KVM runs it, rather than emulation.
    pub(super) fn is_kvm(&self) -> bool {
        self.guest.is_kvm()
    }

    /// Runs `workloads` on what `contender` has mounted afresh.
    pub(super) fn measure(
        &mut self,
        contender: Contender,
        workloads: &[Workload],
        seed: u64,
    ) -> Result<Vec<Measured>> {
        let script = format!(
            "cd {MOUNT}\n{}",
            script::of(workloads, &self.tools, None, &self.sizing, seed)
        );
        let limit = (self.sizing.runtime + GRACE) * workloads.len() as u32;
        let output = self.run(contender, &script, limit)?;
        script::parse(workloads, &output)
            .map_err(|error| error.context(format!("on {}", contender.name())))
    }

    /// Runs `script` on what `contender` has mounted afresh.
    pub(super) fn script(&mut self, contender: Contender, script: &str) -> Result<()> {
        self.run(contender, script, 3 * GRACE).map(drop)
    }

    fn run(&mut self, contender: Contender, script: &str, limit: Duration) -> Result<String> {
        let script = format!("set -e\n{}{script}", contender.mount_script(&self.paths));
        let output = self.guest.run(&GuestCommand {
            argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
            env: Vec::new(),
            timeout_s: limit.as_secs(),
        })?;
        if output.timed_out || output.code != 0 {
            return Err(
                failed(output.code, &output.stderr).context(format!("on {}", contender.name()))
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Powers it off and looks through its log.
    pub(super) fn shutdown(self) -> Result<()> {
        self.guest.shutdown()
    }
}
