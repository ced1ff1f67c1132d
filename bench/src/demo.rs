// SPDX-License-Identifier: MIT
//! `aios demo`: a read-write disk from its making to its last layer, in the guest.

use crate::boot::{
    self,
    Fresh, //
};
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::guest::{
    Backend,
    BootConfig,
    Drive,
    Guest,
    GuestCommand, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::obd_tool;
use crate::setup::{
    self,
    Need, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// What the guest runs.
const SCRIPT: &str = include_str!("demo/rw-disk.sh");

/// Bytes of the drive that the disk's folder is on.
const DRIVE_BYTES: u64 = 1 << 30;

/// Seconds that all of it may take, on however busy a machine.
const TIMEOUT_S: u64 = 600;

/// Options of `aios demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Kernel tarball or tree to build instead of the pinned package.
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Where console log and QEMU line are kept [default: demo/ in the cache].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What it takes: the drive is gone with it.
pub(crate) struct Demo {
    pub(crate) config: BootConfig,
    pub(crate) command: GuestCommand,
    _drive: Fresh,
}

/// Runs `aios demo`: the exit code is the script's.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => ctx.cache().join("demo"),
    };
    let demo = prepare(ctx, args.source.as_deref(), out)?;
    if ctx.dry_run {
        println!("{}", Guest::dry_line(ctx, &demo.config)?);
        print!("{SCRIPT}");
        return Ok(0);
    }
    boot::command(ctx, &demo.config, &demo.command)
}

/// Builds what the guest needs; its logs go to `out`.
pub(crate) fn prepare(ctx: &Context, source: Option<&Path>, out: PathBuf) -> Result<Demo> {
    setup::ensure(ctx, &[Need::Build, Need::Boot, Need::Workloads])?;
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, source)?;
    let module = built.obd_module();
    let tool = obd_tool::build(ctx, None)?;
    let bin = tool
        .parent()
        .ok_or_else(|| Error::new(format!("{} is in no folder", tool.display())))?;
    let drive = Fresh::new(ctx, DRIVE_BYTES)?;
    let config = BootConfig {
        cpus: 2,
        drives: vec![Drive::new(Backend::File(drive.path().to_path_buf()))],
        ..BootConfig::new(built.bzimage, "demo", out)
    };
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    let files = ctx.root().join("linux");
    let command = GuestCommand {
        argv: ["sh", "-c", SCRIPT].map(str::to_owned).to_vec(),
        env: [
            ("PATH", path),
            ("MODULE", module.display().to_string()),
            ("FILES", files.display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec(),
        timeout_s: TIMEOUT_S,
    };
    Ok(Demo {
        config,
        command,
        _drive: drive,
    })
}
