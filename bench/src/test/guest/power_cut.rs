// SPDX-License-Identifier: MIT
//! Power cuts at chosen commands, in a guest that is running: what was acknowledged is
//! on the drive, but for what only FUA made durable, which QEMU's drive ignores.

use super::check;
use crate::context::Context;
use crate::device::Server;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::{
    Backend,
    BootConfig,
    Drive,
    Guest, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::process::{
    Tool,
    required, //
};
use crate::setup::{
    self,
    Need, //
};
use crate::test::suite::Outcome;
use aios_crash::ext4::{
    Ext4,
    ROOT, //
};
use aios_crash::recover::Scratch;
use aios_disk::power::PowerCut;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// At which commands, and the drives' atomic units in bytes: mounting takes a few, and an
/// append that is synced five.
const CUTS: [(u64, u32); 3] = [(37, 0), (76, 4096), (155, 0)];
/// Size of a drive in bytes.
const SIZE: usize = 32 << 20;
/// Appends that are tried, more than there are until the last cut.
const APPENDS: usize = 100;
/// How long the guest may take, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Appends lines to a file of each drive, each synced, until its power is cut.
pub(super) fn keeps_what_was_acknowledged(ctx: &Context) -> Result<Outcome> {
    setup::ensure(ctx, &[Need::Build, Need::Boot])?;
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, None)?;
    let dir = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let mut config = BootConfig::new(built.bzimage, "guest-power-cut", ctx.cache_dir("test")?);
    let mut drives = Vec::new();
    for (number, (at, atomic)) in CUTS.into_iter().enumerate() {
        let image = dir.path().join(format!("{number}.img"));
        make(&image)?;
        let cut = PowerCut {
            at,
            seed: number as u64,
            block: 512,
            atomic,
        };
        let name = format!("cut{number}");
        let server = Server::start_with(ctx, &image, dir.path(), &name, true, Some(cut))?;
        config
            .drives
            .push(Drive::new(Backend::Nbd(server.socket())));
        drives.push((image, server));
    }
    let mut guest = Guest::boot(ctx, &config)?;
    let output = guest.sh(&script(), TIMEOUT)?;
    guest.shutdown()?;
    let acknowledged: Vec<usize> = output
        .split_whitespace()
        .map(|count| {
            count
                .parse()
                .map_err(|_| Error::new(format!("the guest says {output:?}")))
        })
        .collect::<Result<_>>()?;
    check(acknowledged.len() == drives.len(), || {
        format!("the guest says {output:?}")
    })?;
    for ((image, server), acknowledged) in drives.into_iter().zip(acknowledged) {
        drop(server);
        judge(&image, acknowledged)
            .map_err(|error| error.context(format!("{} after a power cut", image.display())))?;
    }
    Ok(Outcome::Passed)
}

/// A file system whose commands are the workload's alone.
fn make(image: &Path) -> Result<()> {
    let tool = required("mke2fs")?;
    fs::write(image, b"").at("create", image)?;
    Tool::new(tool)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^fast_commit"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(image)
        .arg(format!("{}k", SIZE >> 10))
        .output()
        .map(drop)
}

/// Prints how many appends to each drive were acknowledged.
fn script() -> String {
    format!(
        "echo 1 > /sys/kernel/aios/enabled\n\
         for n in $(seq 0 {last}); do\n\
             mkdir -p /mnt/$n; mount -o aios /dev/nvme${{n}}n1 /mnt/$n\n\
             i=0\n\
             while [ $i -lt {APPENDS} ] && echo line $i 2>/dev/null >> /mnt/$n/log && \
                 sync /mnt/$n/log 2>/dev/null; do i=$((i + 1)); done\n\
             echo $i\n\
         done",
        last = CUTS.len() - 1
    )
}

/// Recovers a drive and looks for what was acknowledged.
fn judge(image: &Path, acknowledged: usize) -> Result<()> {
    let ours = |error: aios_crash::Error| Error::new(error.to_string());
    check((1..APPENDS).contains(&acknowledged), || {
        format!("{acknowledged} syncs succeeded")
    })?;
    let mut drive = Scratch::new(SIZE).map_err(ours)?;
    let bytes = fs::read(image).at("read", image)?;
    check(bytes.len() == SIZE, || {
        format!("it has {} bytes", bytes.len())
    })?;
    drive.bytes_mut().copy_from_slice(&bytes);
    drive.recover().map_err(ours)?.map_err(Error::new)?;
    drive.verify().map_err(ours)?.map_err(Error::new)?;
    let log = log(drive.bytes()).map_err(Error::new)?;
    let lines = |count| {
        (0..count)
            .map(|i| format!("line {i}\n"))
            .collect::<String>()
    };
    // QEMU's drive does not tell ours of FUA, on which the last commit record relied; the
    // record before it was flushed for that one. And one more append was under way.
    let (least, most) = (lines(acknowledged - 1), lines(acknowledged + 1));
    let log = String::from_utf8_lossy(&log);
    check(log.starts_with(&least) && most.starts_with(&*log), || {
        format!("{acknowledged} lines were synced, and it holds {log:?}")
    })
}

/// The file's contents.
fn log(drive: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let ext4 = Ext4::new(drive)?;
    let names = ext4.list(&ext4.inode(ROOT)?)?;
    let (_, number) = names
        .into_iter()
        .find(|(name, _)| name == "log")
        .ok_or_else(|| "the file is not there".to_owned())?;
    ext4.read(&ext4.inode(number)?)
}
