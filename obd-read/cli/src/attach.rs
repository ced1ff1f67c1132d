// SPDX-License-Identifier: MIT

//! `obd attach`, `obd detach`, `obd list`: images as block devices.

use crate::config;
use crate::driver::Driver;
use crate::error::{
    Error,
    Result, //
};
use crate::open::StackArgs;
use crate::ui;
use serde::Serialize;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Attach layers as a read-only block device of the kernel's driver.
///
/// Prints the device. A configuration's resultFile gets "success" or
/// "failed:REASON".
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the device in configfs; the first free imageN if there is none.
    #[arg(short, long)]
    name: Option<String>,

    /// Attach the content of one zfile, whatever it is.
    #[arg(long)]
    zfile: bool,

    /// The driver's folder in configfs.
    #[arg(long, value_name = "DIR")]
    configfs: Option<PathBuf>,

    #[command(flatten)]
    stack: StackArgs,
}

/// Detach a block device.
#[derive(clap::Args)]
pub(crate) struct DetachArgs {
    /// Its name, in configfs (image0) or as a disk (/dev/obd0).
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
struct Attached<'a> {
    name: &'a str,
    device: &'a Path,
}

/// Runs `obd attach`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let result_file = match args.stack.config() {
        Some(config) => config::result_file(config)?,
        None => None,
    };
    let result = attach(args, json, interrupted);
    if let Some(path) = result_file {
        let text = match &result {
            Ok(()) => "success".to_owned(),
            Err(error) => format!("failed:{error}"),
        };
        let written = fs::write(&path, text).map_err(|error| Error::io("write", path, error));
        // That attaching failed says more than that nobody can be told.
        return result.and(written);
    }
    result
}

fn attach(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let driver = Driver::new(args.configfs.as_deref())?;
    let mut layers = Vec::new();
    for file in args.stack.checked_files(interrupted)? {
        if file.index.is_some() {
            return Err(Error::Config {
                path: file.path,
                reason: "is still written to; seal or commit it first".into(),
            });
        }
        let path = fs::canonicalize(&file.path);
        layers.push(path.map_err(|error| Error::io("find", file.path, error))?);
    }
    let device = driver.create(args.name.as_deref())?;
    match device.attach(&layers, args.zfile) {
        Ok(disk) => {
            if json {
                crate::print_json(&Attached {
                    name: device.name(),
                    device: &disk,
                });
            } else {
                ui::print(&disk.display().to_string());
            }
            Ok(())
        }
        Err(error) => {
            // It was made for this only; why it failed says more than that
            // it cannot be removed.
            let _ = device.detach(false, interrupted);
            Err(error)
        }
    }
}

/// Runs `obd detach`.
pub(crate) fn detach(args: &DetachArgs, interrupted: &AtomicBool) -> Result<()> {
    let driver = Driver::new(args.configfs.as_deref())?;
    for name in &args.names {
        driver.find(name)?.detach(args.force, interrupted)?;
    }
    Ok(())
}

/// Runs `obd list`.
pub(crate) fn list(args: &ListArgs, json: bool) -> Result<()> {
    let driver = Driver::new(args.configfs.as_deref())?;
    for device in driver.devices()? {
        let status = device.status()?;
        if json {
            let line = serde_json::to_string(&status);
            // Maps with keys that are no strings are all that can fail: none here.
            ui::print(&line.unwrap_or_default());
            continue;
        }
        let disk = status.device.as_deref().unwrap_or(Path::new("-"));
        let what = match (status.zfile, status.layers.as_slice()) {
            (true, [file]) => format!("zfile {}", file.display()),
            (_, [layer]) => layer.display().to_string(),
            (_, layers) => format!("{} layers", layers.len()),
        };
        ui::print(&format!("{}\t{}\t{what}", status.name, disk.display()));
    }
    Ok(())
}
