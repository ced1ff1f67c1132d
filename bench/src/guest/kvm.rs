// SPDX-License-Identifier: MIT
//! Whether this machine's KVM can run a guest, found out by running one.
//!
//! `/dev/kvm` alone proves nothing: there are machines on which QEMU fails or
//! hangs with it. So a small guest is booted once per boot of the machine and
//! version of QEMU, and has to answer in time.

use super::qemu::{
    self,
    Console,
    Machine, //
};
use super::{
    Accel,
    BootConfig,
    Guest,
    Iommu, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs::{
    self,
    File, //
};
use std::time::Duration;

/// How long the probe may take; a working KVM boots in about one second.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// What a probe found, kept in the cache.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    /// Boot of the machine that it holds for.
    boot_id: String,
    /// QEMU that it holds for.
    qemu: String,
    /// Why KVM cannot be used; none when it can.
    problem: Option<String>,
}

/// Chooses what runs the guest. Probes KVM where that is unknown, unless this
/// is a dry run, which takes it for unusable.
pub(crate) fn machine(ctx: &Context, config: &BootConfig) -> Result<Machine> {
    match config.accel {
        Accel::Tcg => return Ok(Machine::Tcg),
        Accel::VirtualTime => return Ok(Machine::VirtualTime),
        Accel::Auto | Accel::Kvm => {}
    }
    match (problem(ctx, config)?, config.accel) {
        (None, _) => Ok(Machine::Kvm),
        (Some(why), Accel::Kvm) => {
            Err(Error::new(format!("KVM cannot run a guest here: {why}")).hint("use --accel tcg"))
        }
        (Some(why), _) => {
            tracing::info!("no KVM: {why}");
            Ok(Machine::Tcg)
        }
    }
}

fn problem(ctx: &Context, config: &BootConfig) -> Result<Option<String>> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(Some(format!("cannot open /dev/kvm: {error}")));
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .at("read", "/proc/sys/kernel/random/boot_id")?;
    let version = Tool::new(qemu::PROGRAM).arg("--version").text()?;
    let mut finding = Finding {
        boot_id: boot_id.trim().to_owned(),
        qemu: version.lines().next().unwrap_or_default().to_owned(),
        problem: None,
    };
    let file = ctx.cache().join("kvm-probe.json");
    let known = fs::read(&file)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Finding>(&bytes).ok());
    if let Some(known) = known
        && known.boot_id == finding.boot_id
        && known.qemu == finding.qemu
    {
        return Ok(known.problem);
    }
    if ctx.dry_run {
        return Ok(Some("it was not probed yet".to_owned()));
    }
    finding.problem = probe(ctx, config)?;
    let text = serde_json::to_string(&finding)
        .map_err(|error| Error::new(format!("cannot write down the KVM probe: {error}")))?;
    ctx.cache_dir("")?;
    fs::write(&file, text).at("write", &file)?;
    Ok(finding.problem)
}

fn probe(ctx: &Context, config: &BootConfig) -> Result<Option<String>> {
    let dir = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let small = BootConfig {
        iommu: Iommu::Off,
        boot_timeout: PROBE_TIME,
        ..BootConfig::new(&config.kernel, "kvm-probe", dir.path())
    };
    match Guest::start(ctx, &small, Machine::Kvm, Console::Log) {
        Ok(_) => Ok(None),
        Err(error) => {
            // Interrupted is not refuted.
            super::interrupt::check()?;
            Ok(Some(error.what().to_owned()))
        }
    }
}
