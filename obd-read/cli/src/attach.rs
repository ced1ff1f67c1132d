// SPDX-License-Identifier: MIT

//! `obd attach`, `obd detach`, `obd list`: images as block devices.

use crate::config;
use crate::driver::{
    Driver,
    Status, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    Place,
    StackArgs, //
};
use crate::ui;
use crate::userspace::{
    self,
    ServeArgs,
    Serving, //
};
use crate::writable::{
    self,
    WriteArgs,
    Writing, //
};
use serde::Serialize;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Attach layers as a block device of the kernel's driver, or of a process.
///
/// It is read-only, unless --writable names the folder of a read-write disk (obd
/// create --rw). Prints the device. A configuration's resultFile gets "success" or
/// "failed:REASON".
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the device in configfs; the first free imageN if there is none.
    #[arg(short, long)]
    pub(crate) name: Option<String>,

    /// Attach the content of one zfile, whatever it is.
    #[arg(long)]
    zfile: bool,

    /// The driver's folder in configfs.
    #[arg(long, value_name = "DIR")]
    pub(crate) configfs: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) serve: ServeArgs,

    #[command(flatten)]
    pub(crate) write: WriteArgs,

    #[command(flatten)]
    pub(crate) stack: StackArgs,
}

/// Detach a block device.
#[derive(clap::Args)]
pub(crate) struct DetachArgs {
    /// Its name, in configfs (image0) or as a disk (/dev/obd0, /dev/ublkb0).
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// Detach it even if it is in use: its users get errors then.
    #[arg(long)]
    force: bool,

    /// The driver's folder in configfs.
    #[arg(long, value_name = "DIR")]
    configfs: Option<PathBuf>,
}

/// List the devices there are.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// The driver's folder in configfs.
    #[arg(long, value_name = "DIR")]
    configfs: Option<PathBuf>,
}

/// What was attached.
#[derive(Serialize)]
pub(crate) struct Attached {
    pub(crate) name: String,
    pub(crate) device: PathBuf,
}

/// Runs `obd attach`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    if args.serve.is_elsewhere() {
        return userspace::spawn();
    }
    if args.write.is_asked_for() {
        return writable::attach(args, json, interrupted);
    }
    let result_file = match args.stack.config() {
        Some(config) => config::result_file(config)?,
        None => None,
    };
    let result = attach(args, interrupted);
    let mut written = Ok(());
    if let Some(path) = result_file {
        let text = match &result {
            Ok(_) => "success".to_owned(),
            Err(error) => format!("failed:{error}"),
        };
        written = fs::write(&path, text).map_err(|error| Error::io("write", path, error));
    }
    // That attaching failed says more than that nobody can be told.
    let (attached, serving) = result?;
    let Some(serving) = serving else {
        announce(&attached, json);
        return written;
    };
    if let Err(error) = written {
        return serving.stop().and(Err(error));
    }
    announce(&attached, json);
    serving.run()
}

/// Says what was attached.
pub(crate) fn announce(attached: &Attached, json: bool) {
    match json {
        true => crate::print_json(attached),
        false => ui::print(&attached.device.display().to_string()),
    }
}

/// Attaches what `args` name; with what serves it, if that is this process.
fn attach(args: &Args, interrupted: &Arc<AtomicBool>) -> Result<(Attached, Option<Serving>)> {
    let driver = match args.serve.is_asked_for() {
        true => None,
        false => Some(Driver::new(args.configfs.as_deref())?),
    };
    let mut layers = Vec::new();
    for file in args.stack.checked_files(interrupted)? {
        if file.index.is_some() {
            return Err(Error::Config {
                path: file.place.path,
                reason: "is still written to; seal or commit it first".into(),
            });
        }
        let Place { path, part } = file.place;
        let path = fs::canonicalize(&path).map_err(|error| Error::io("find", path, error))?;
        layers.push(Place { path, part });
    }
    let Some(driver) = driver else {
        let serving = args.serve.start(&layers, args.zfile)?;
        return Ok((serving.attached(), Some(serving)));
    };
    let device = driver.create(args.name.as_deref())?;
    let layers: Vec<PathBuf> = layers.iter().map(Place::text).collect();
    match device.attach(&layers, args.zfile) {
        Ok(disk) => {
            let attached = Attached {
                name: device.name().to_owned(),
                device: disk,
            };
            Ok((attached, None))
        }
        Err(error) => {
            // It was made for this only; why it failed says more than that
            // it cannot be removed.
            let _ = device.detach(false, interrupted);
            Err(error)
        }
    }
}

/// What was detached.
#[derive(Serialize)]
struct Detached<'a> {
    name: &'a str,
}

/// Runs `obd detach`.
pub(crate) fn detach(args: &DetachArgs, json: bool, interrupted: &AtomicBool) -> Result<()> {
    for name in &args.names {
        match obd_ublk::number(name) {
            Some(id) => userspace::detach(id, args.force, interrupted)?,
            None => {
                let device = Driver::new(args.configfs.as_deref())?.find(name)?;
                let writing = Writing::of(device.name());
                device.detach(args.force, interrupted)?;
                if let Some(writing) = writing {
                    writing.ended(interrupted)?;
                }
            }
        }
        // At once: the next may fail.
        if json {
            print_line(&Detached { name });
        }
    }
    Ok(())
}

/// One of a list of JSON objects.
fn print_line(value: &impl Serialize) {
    // Maps with keys that are no strings are all that can fail: none here.
    ui::print(&serde_json::to_string(value).unwrap_or_default());
}

/// All devices: the driver's, if it is there, and those served from userspace.
fn devices(configfs: Option<&Path>) -> Result<Vec<Status>> {
    let served = userspace::devices()?;
    let driver = match (Driver::new(configfs), &served, configfs) {
        // It may well be missing where the other way is open.
        (Err(_), Some(_), None) => None,
        (driver, ..) => Some(driver?),
    };
    let mut devices = Vec::new();
    for device in driver.map_or(Ok(Vec::new()), |driver| driver.devices())? {
        let mut status = device.status()?;
        if status.writable {
            status.writer = Writing::of(device.name());
        }
        devices.push(status);
    }
    devices.extend(served.unwrap_or_default());
    Ok(devices)
}

/// Runs `obd list`.
pub(crate) fn list(args: &ListArgs, json: bool) -> Result<()> {
    for status in devices(args.configfs.as_deref())? {
        if json {
            print_line(&status);
            continue;
        }
        let disk = status.device.as_deref().unwrap_or(Path::new("-"));
        let what = match (status.zfile, status.layers.as_slice()) {
            (true, [file]) => format!("zfile {}", file.display()),
            (_, [layer]) => layer.display().to_string(),
            (_, layers) => format!("{} layers", layers.len()),
        };
        let writable = match (status.writable, status.volatile) {
            (false, _) => "",
            (true, false) => "\twritable",
            (true, true) => "\twritable, volatile",
        };
        let writer = match (status.writable, &status.writer) {
            (false, _) => String::new(),
            (
                true,
                Some(Writing {
                    pid, alive: true, ..
                }),
            ) => format!(", writer {pid}"),
            (true, Some(_) | None) => ", no writer".into(),
        };
        ui::print(&format!(
            "{}\t{}\t{what}{writable}{writer}",
            status.name,
            disk.display()
        ));
    }
    Ok(())
}
