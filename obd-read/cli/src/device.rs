// SPDX-License-Identifier: MIT

//! Devices as the command line names them, and `obd check`.

use crate::error::{
    Error,
    Result, //
};
use crate::ui;
use obd_engine::check::{
    CHECKS,
    Failure,
    SIZE,
    stream, //
};
use obd_engine::guard::{
    self,
    Force, //
};
use obd_engine::stats::Summary;
use obd_engine::uring::Purpose;
use obd_engine::{
    Identity,
    Shared,
    Uring,
    Vfio,
    uring,
    vfio, //
};
use serde::Serialize;
use std::path::Path;
use std::time::{
    Duration,
    Instant, //
};

/// A device and the way to it.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// A file or block device, or a namespace's generic one (/dev/ng0n1), which is given
    /// NVMe commands; for `--engine vfio` and `spdk` a PCI address and a namespace, like
    /// 0000:00:04.0/1.
    #[arg(value_name = "DEVICE")]
    pub(crate) device: String,

    /// Who does the I/O: the kernel, asked by io_uring, or this process, by its own
    /// driver or SPDK's, which takes the controller from the kernel meanwhile.
    #[arg(long, value_enum, default_value_t = Engine::Uring)]
    engine: Engine,

    /// Most requests in flight; by default as many as are of use.
    #[arg(long, value_name = "N")]
    depth: Option<u16>,

    /// Seconds a command may take before the controller is reset (vfio, spdk).
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,

    /// Write doorbells to the controller's registers alone, not to memory that it looks at
    /// by itself (vfio).
    #[arg(long)]
    no_shadow_doorbells: bool,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(seconds @ 0.01..=86400.0) => Ok(seconds),
        _ => Err("0.01 to 86400 are possible".into()),
    }
}

/// Who does the I/O.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    Uring,
    Vfio,
    Spdk,
}

impl DeviceArgs {
    /// Opens the device, to be read only if `force` is [`None`]. An engine that
    /// takes the controller is alone with it in any case: `read` says what it
    /// has to hold then.
    pub(crate) fn open(&self, force: Option<Force>, read: Force) -> Result<Shared> {
        let engine: Box<dyn obd_engine::Engine> = match self.engine {
            Engine::Uring => {
                let mut options = uring::Options::default();
                options.depth = self.depth.unwrap_or(options.depth);
                let purpose = force.map_or(Purpose::Read, Purpose::Own);
                let opened = Uring::open(Path::new(&self.device), purpose, &options);
                Box::new(opened.map_err(Error::Engine)?)
            }
            Engine::Vfio | Engine::Spdk => {
                let (address, nsid) = self.namespace()?;
                let mut options = vfio::Options {
                    timeout: Duration::from_secs_f64(self.timeout),
                    force: force.unwrap_or(read),
                    shadow_doorbells: !self.no_shadow_doorbells,
                    ..vfio::Options::default()
                };
                options.depth = self.depth.unwrap_or(options.depth);
                if self.engine == Engine::Vfio {
                    Box::new(Vfio::open(address, nsid, &options).map_err(Error::Engine)?)
                } else {
                    spdk(address, nsid, &options)?
                }
            }
        };
        Ok(Shared::new(engine))
    }

    /// Refuses a device that a disk has layers on: they are to be moved, or lost. Engines
    /// that take the controller ask for themselves.
    pub(crate) fn is_not_read(&self) -> Result<()> {
        guard::is_not_read(Path::new(&self.device)).map_err(|refusal| {
            Error::Engine(obd_engine::Error::device(
                &self.device,
                "change it",
                refusal,
            ))
        })
    }

    /// Address and namespace, both of which must be named.
    fn namespace(&self) -> Result<(&str, u32)> {
        self.device
            .split_once('/')
            .and_then(|(address, nsid)| Some((address, nsid.parse().ok()?)))
            .ok_or_else(|| {
                let reason = "name the namespace, too: 0000:00:04.0/1";
                Error::Engine(obd_engine::Error::device(&self.device, "find it", reason))
            })
    }
}

#[cfg(feature = "spdk")]
fn spdk(address: &str, nsid: u32, options: &vfio::Options) -> Result<Box<dyn obd_engine::Engine>> {
    let opened = obd_engine::Spdk::open(address, nsid, options);
    Ok(Box::new(opened.map_err(Error::Engine)?))
}

#[cfg(not(feature = "spdk"))]
fn spdk(address: &str, _: u32, _: &vfio::Options) -> Result<Box<dyn obd_engine::Engine>> {
    let reason = "this obd is built without it: `cargo aios setup --spdk` builds one with";
    Err(Error::Engine(obd_engine::Error::device(
        address,
        "use the engine spdk",
        reason,
    )))
}

/// Check that an engine does what it should, on a device whose content is lost.
#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    device: DeviceArgs,

    /// Overwrite whatever the device holds.
    #[arg(long)]
    force: bool,

    /// Run the checks this often, with other random numbers each time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u64,

    /// Instead of checking, write so many MiB in order and flush: what the engine
    /// itself costs.
    #[arg(long, value_name = "MIB", conflicts_with = "rounds")]
    write: Option<u64>,
}

#[derive(Serialize)]
struct Checked<'a> {
    identity: &'a Identity,
    checks: Vec<Passed>,
    engine: Summary,
}

#[derive(Serialize)]
struct Passed {
    check: &'static str,
    seconds: f64,
}

/// Runs `obd check`.
pub(crate) fn check(args: &CheckArgs, json: bool) -> Result<()> {
    let force = if args.force { Force::Yes } else { Force::No };
    args.device.is_not_read()?;
    let device = args.device.open(Some(force), force)?;
    let identity = device.identity();
    let failed = |check, error: Failure| Error::Check {
        device: identity.name.clone(),
        check,
        reason: error.to_string(),
    };
    if identity.size < SIZE {
        let reason = format!("{} bytes, at least {SIZE} are needed", identity.size);
        return Err(failed("size", Failure::Accepted(reason)));
    }
    if !json {
        ui::print(&format!(
            "{}: {} {}, {} bytes in blocks of {}, {}",
            identity.name,
            identity.model,
            identity.serial,
            identity.size,
            identity.block_size,
            match identity.volatile_cache {
                true => "volatile cache",
                false => "no volatile cache",
            },
        ));
    }
    let mut checks = Vec::new();
    if let Some(mib) = args.write {
        let begin = Instant::now();
        stream(&device, mib << 20).map_err(|error| failed("write", error))?;
        let seconds = begin.elapsed().as_secs_f64();
        if !json {
            ui::print(&format!("{mib} MiB written and flushed ({seconds:.2} s)"));
        }
        checks.push(Passed {
            check: "write",
            seconds,
        });
    }
    for round in 0..if args.write.is_some() { 0 } else { args.rounds } {
        for (check, run) in CHECKS {
            let begin = Instant::now();
            run(&device, round).map_err(|error| failed(check, error))?;
            let seconds = begin.elapsed().as_secs_f64();
            if !json {
                ui::print(&format!("ok {check} ({seconds:.2} s)"));
            }
            checks.push(Passed { check, seconds });
        }
    }
    let engine = device.summary();
    if json {
        crate::print_json(&Checked {
            identity,
            checks,
            engine,
        });
    }
    Ok(())
}
