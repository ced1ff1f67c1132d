// SPDX-License-Identifier: MIT
//! Functional tests in the guest: both kernels, the switch and its knobs, data
//! checked by fio with the stack on and off, and a kernel full of checks.

pub(super) mod churn;
mod engine;
pub(super) mod fill;
mod fsync;
mod groups;
pub(super) mod kasan;
mod lbio;
mod lbio_raw;
mod lbio_write;
mod obd;
mod obd_attach;
mod obd_rw;
mod obd_userspace;
mod obd_writable;
mod power_cut;
pub(super) mod race;
mod stack;
mod virtual_time;

use super::suite::{
    Outcome,
    Suite,
    check, //
};
use crate::context::Context;
use crate::crash;
use crate::demo;
use crate::device::{
    Latency,
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
    Iommu, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Stack;
use std::fs::File;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Crash states that are explored.
const CRASH_STATES: u64 = 1000;

/// The same of a read-write disk.
const DISK_STATES: u64 = 100;
/// The same of a database.
const ROCKSDB_STATES: u64 = 80;

/// A script in the guest may take this long.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// All fixtures, one after another, on a slow machine with checks in the kernel.
const LONG: Duration = Duration::from_secs(600);

/// A guest that a group of cases shares.
struct Group {
    /// First part of the names of its cases.
    name: &'static str,
    flavour: Flavour,
    variant: Variant,
    cpus: u32,
    iommu: Iommu,
    lba: u32,
    write_cache: bool,
    /// Queues for reads around the block layer, beside one per CPU.
    lbio: Lbio,
    /// More words for the kernel's command line.
    append: &'static [&'static str],
    /// Memory, if it matters how much.
    memory_mib: Option<u32>,
    /// Size of the drive under test.
    drive_bytes: u64,
    /// Who reads overlaybd images, if the cases are about those.
    obd: Option<obd::Reader>,
    cases: &'static [Case],
}

/// Queues of LBIO.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lbio {
    None,
    /// One per CPU, with interrupts.
    Interrupts,
    /// One per CPU, without.
    Polled,
    /// Asked for, but the controller has none left.
    Denied,
}

impl Lbio {
    /// Words for the kernel's command line, for a guest with `cpus`.
    fn parameters(self, cpus: u32) -> Vec<String> {
        let queues = format!("nvme.lbio_queues={cpus}");
        match self {
            Self::None => Vec::new(),
            Self::Interrupts | Self::Denied => vec![queues],
            Self::Polled => vec![queues, "nvme.lbio_polled=1".to_owned()],
        }
    }
}

/// One case: its name, and what it does with the group's guest.
type Case = (&'static str, fn(&mut Fixture) -> Result<()>);

/// What a case works with.
pub(super) struct Fixture {
    guest: Guest,
    /// How many times longer than others its kernel may take.
    patience: u32,
    server: Server,
    /// For the cases about overlaybd images.
    obd: Option<obd::Files>,
}

impl Fixture {
    fn obd(&self) -> Result<&obd::Files> {
        self.obd
            .as_ref()
            .ok_or_else(|| Error::new("the group has no images"))
    }

    /// Powers the guest off and looks through its log.
    fn end(self) -> Result<()> {
        // Its drive has to outlive it.
        let Self { guest, server, .. } = self;
        let ended = guest.shutdown();
        drop(server);
        ended
    }

    pub(super) fn sh(&mut self, script: &str) -> Result<String> {
        self.guest.sh(script, SCRIPT_TIMEOUT * self.patience)
    }

    /// As [`Fixture::sh`], for more than a moment's work.
    pub(super) fn long(&mut self, script: &str) -> Result<String> {
        self.guest.sh(script, LONG * self.patience)
    }

    /// Mounts the drive's file system afresh with `options`, stack enabled or
    /// not, and with a file of 16 MiB in it.
    pub(super) fn mount(&mut self, options: &str, enabled: bool, poll_max_ns: u64) -> Result<()> {
        self.sh(&format!(
            "mkdir -p /mnt/t; umount /mnt/t 2>/dev/null || :; \
             blkid -p /dev/nvme0n1 >/dev/null 2>&1 || mkfs.ext4 -q -F -E lazy_itable_init=0 /dev/nvme0n1; \
             mount -o {options} /dev/nvme0n1 /mnt/t; \
             [ -s /mnt/t/data ] || dd if=/dev/urandom of=/mnt/t/data bs=1M count=16 conv=fsync 2>/dev/null; \
             echo {} > /sys/kernel/aios/enabled; \
             echo {poll_max_ns} > /sys/kernel/aios/poll_max_ns",
            u8::from(enabled),
        ))?;
        Ok(())
    }

    /// As [`Fixture::read_at`] from a drive that takes a millisecond, so that
    /// it never answers before the reader looks.
    pub(super) fn read(&mut self, ops: u32, more: &str) -> Result<Polls> {
        self.read_at(ops, more, 1)
    }

    /// Reads `ops` blocks of the mounted file that miss the page cache, from a
    /// drive that takes `latency_ms`; how the waits ended meanwhile.
    pub(super) fn read_at(&mut self, ops: u32, more: &str, latency_ms: u64) -> Result<Polls> {
        let before = self.polls()?;
        self.set_latency(latency_ms)?;
        let done = self.sh(&format!(
            "/aios-guest work randread --file /mnt/t/data --size 16777216 --bs 4096 \
             --ops {ops} --warmup 0 --seed 7 {more} >/dev/null"
        ));
        self.set_latency(0)?;
        done?;
        let after = self.polls()?;
        Ok(Polls {
            hits: after.hits - before.hits,
            misses: after.misses - before.misses,
            sleeps: after.sleeps - before.sleeps,
        })
    }

    /// Latency of every command of the drive, in milliseconds.
    pub(super) fn set_latency(&mut self, ms: u64) -> Result<()> {
        let latency = Latency {
            points: vec![(50.0, ms * 1_000_000)],
        };
        self.server.set_latency(&latency, &latency)
    }

    /// A counter of `/sys/kernel/debug/aios/lbio`.
    pub(super) fn lbio(&mut self, event: &str) -> Result<u64> {
        let text = self.sh("cat /sys/kernel/debug/aios/lbio")?;
        text.lines()
            .find_map(|line| {
                let (name, value) = line.split_once(' ')?;
                (name == event).then(|| value.trim().parse().ok())?
            })
            .ok_or_else(|| Error::new(format!("debugfs aios/lbio says no {event}: {text:?}")))
    }

    /// How often `event` happened in `what`.
    pub(super) fn lbio_during(
        &mut self,
        event: &str,
        what: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<u64> {
        let before = self.lbio(event)?;
        what(self)?;
        Ok(self.lbio(event)? - before)
    }

    /// Has LBIO take every `every`th command for failed in `what`, reads or writes as
    /// the folder of debugfs is `lbio_fail` or `lbio_fail_writes`; how often it did. Debug
    /// kernels only.
    pub(super) fn lbio_failing(
        &mut self,
        folder: &str,
        every: u32,
        what: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<u64> {
        let folder = format!("cd /sys/kernel/debug/aios/{folder}");
        self.lbio_during("error", |f| {
            f.sh(&format!(
                "{folder}; echo 0 > verbose; echo -1 > times; echo {every} > interval; \
                 echo 100 > probability"
            ))?;
            let done = what(f);
            f.sh(&format!("{folder}; echo 0 > probability"))?;
            done
        })
    }

    fn polls(&mut self) -> Result<Polls> {
        let text = self.sh("cat /sys/kernel/debug/aios/poll")?;
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                .ok_or_else(|| Error::new(format!("debugfs aios/poll says no {name}: {text:?}")))
        };
        Ok(Polls {
            hits: value("hits ")?,
            misses: value("misses ")?,
            sleeps: value("sleeps ")?,
        })
    }
}

/// How waits for reads of opted-in files ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Polls {
    /// Completed while spinning.
    hits: u64,
    /// Spun in vain, then slept.
    misses: u64,
    /// Slept at once.
    sleeps: u64,
}

impl Polls {
    fn total(self) -> u64 {
        self.hits + self.misses + self.sleeps
    }
}

/// Runs the guest's cases.
pub(super) fn run(ctx: &Context, suite: &mut Suite) {
    for group in groups::GROUPS {
        suite.group(group.name, group.cases, || start(ctx, group), Fixture::end);
    }
    engine::run(ctx, suite);
    suite.case("guest/demo", || demo_shows_a_life(ctx));
    suite.case("guest/fsync-round-trips", || virtual_time::round_trips(ctx));
    suite.case("guest/fsync-spins", || virtual_time::spins(ctx));
    suite.case("guest/panic-fails-the-run", || panic_fails_the_run(ctx));
    suite.case("guest/power-cut", || {
        power_cut::keeps_what_was_acknowledged(ctx)
    });
    suite.case("guest/crash-states", || crash_states(ctx));
    suite.case("guest/crash-states-lbio-writes", || {
        crash_states_lbio_writes(ctx)
    });
    suite.case("guest/crash-states-rocksdb", || crash_states_rocksdb(ctx));
    suite.case("guest/crash-states-rw-disk", || crash_states_rw_disk(ctx));
    suite.case("guest/crash-mutants", || crash_mutants(ctx));
}

fn start(ctx: &Context, group: &Group) -> Result<Fixture> {
    setup::ensure(ctx, &[Need::Build, Need::Boot, Need::Workloads])?;
    if group.obd.is_some() {
        setup::ensure(ctx, &[Need::Mapper])?;
    }
    let built = kernel::build(ctx, group.flavour, group.variant, None)?;
    let obd = match (group.obd, built.config.parent()) {
        (Some(reader), Some(build)) => Some(obd::Files::new(ctx, reader, build.to_path_buf())?),
        _ => None,
    };
    let patience = match group.variant {
        Variant::Bench | Variant::Debug | Variant::Mutants => 1,
        Variant::Kasan => 5,
    };
    let out = ctx.cache_dir("test")?;
    let image = blank_image(&out, group.drive_bytes)?;
    let name = group.name.replace('/', "-");
    let server = Server::start(ctx, &image, &out, &name, false)?;
    let guest = Guest::boot(
        ctx,
        &BootConfig {
            kernel: built.bzimage,
            name,
            accel: Accel::Auto,
            cpus: group.cpus,
            // The images' files and devices are cached beside each other; KASAN keeps
            // what was freed.
            memory_mib: group
                .memory_mib
                .unwrap_or(match (group.obd, group.variant) {
                    (Some(_), _) | (_, Variant::Kasan) => 2048,
                    _ => 1024,
                }),
            iommu: group.iommu,
            drives: vec![Drive {
                backend: Backend::Nbd(server.socket()),
                queues: match group.lbio {
                    Lbio::None | Lbio::Denied => group.cpus,
                    Lbio::Interrupts | Lbio::Polled => 2 * group.cpus,
                },
                mdts: 7,
                lba: group.lba,
                write_cache: group.write_cache,
            }],
            append: [
                group.lbio.parameters(group.cpus),
                group.append.iter().map(|&word| word.to_owned()).collect(),
            ]
            .concat(),
            qemu: Vec::new(),
            out,
            boot_timeout: Duration::from_secs(180) * patience,
        },
    )?;
    Ok(Fixture {
        guest,
        patience,
        server,
        obd,
    })
}

/// A sparse image; every guest gets a private copy of it.
fn blank_image(dir: &Path, bytes: u64) -> Result<PathBuf> {
    let path = dir.join("blank.img");
    let file = File::create(&path).at("create", &path)?;
    file.set_len(bytes).at("resize", &path)?;
    Ok(path)
}

/// A thousand crash states of the patched kernel, switched on: no promise may be
/// broken, and every mutant must be caught.
fn crash_states(ctx: &Context) -> Result<Outcome> {
    let args = crash::Args::short(CRASH_STATES, Stack::Async, ctx.cache_dir("test/crash")?);
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// Fewer of them, with writes around the block layer.
fn crash_states_lbio_writes(ctx: &Context) -> Result<Outcome> {
    let out = ctx.cache_dir("test/crash-lbio")?;
    let args = crash::Args::short(CRASH_STATES / 2, Stack::Async, out).with_lbio_writes();
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// Some of a read-write disk whose layers are on the drive.
fn crash_states_rw_disk(ctx: &Context) -> Result<Outcome> {
    let args = crash::Args::rw_disk(DISK_STATES, ctx.cache_dir("test/crash-rw")?);
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// Some of RocksDB.
fn crash_states_rocksdb(ctx: &Context) -> Result<Outcome> {
    let args = crash::Args::rocksdb(ROCKSDB_STATES, ctx.cache_dir("test/crash-rocksdb")?);
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// Every defect of a kernel made for that must be found.
fn crash_mutants(ctx: &Context) -> Result<Outcome> {
    let args = crash::Args::mutants(ctx.cache_dir("test/crash-mutants")?);
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// `aios demo` reads what it wrote, by both ways that it shows.
fn demo_shows_a_life(ctx: &Context) -> Result<Outcome> {
    let demo = demo::prepare(ctx, None, ctx.cache_dir("test")?)?;
    let mut guest = Guest::boot(ctx, &demo.config)?;
    let shown = guest.run(&demo.command)?;
    guest.shutdown()?;
    let text = String::from_utf8_lossy(&shown.stdout);
    let sums: Vec<&str> = text
        .lines()
        .filter_map(|line| line.rsplit_once(": "))
        .filter(|(what, _)| what.ends_with("the disk before") || what.ends_with("and of it now"))
        .map(|(_, sum)| sum)
        .collect();
    let [before, now] = sums[..] else {
        return Err(Error::new(format!("not two sums: {shown:?}")));
    };
    check(
        shown.code == 0 && before.len() == 64 && before == now,
        || format!("{shown:?}"),
    )?;
    Ok(Outcome::Passed)
}

/// What is logged as a fault must fail the command that ran, and no other; a guest that
/// panics the run, at once, with the panic's own lines.
fn panic_fails_the_run(ctx: &Context) -> Result<Outcome> {
    let built = kernel::build(ctx, Flavour::Native, Variant::Bench, None)?;
    let config = BootConfig::new(built.bzimage, "guest-panic", ctx.cache_dir("test")?);
    let mut guest = Guest::boot(ctx, &config)?;
    let fault = "echo BUG: of a test > /dev/kmsg; sleep 1; echo late";
    check(guest.sh(fault, SCRIPT_TIMEOUT).is_err(), || {
        "a fault went unnoticed".to_owned()
    })?;
    let next = guest.sh("echo next", SCRIPT_TIMEOUT)?;
    check(next == "next\n", || {
        format!("the command after a fault is answered by {next:?}")
    })?;
    let begin = Instant::now();
    let result = guest.sh("echo c > /proc/sysrq-trigger", SCRIPT_TIMEOUT);
    let Err(error) = result else {
        return Err(Error::new("a panic went unnoticed"));
    };
    check(begin.elapsed() < SCRIPT_TIMEOUT / 2, || {
        format!("the panic was noticed after {:?} only", begin.elapsed())
    })?;
    let text = error.to_string();
    check(text.contains("sysrq triggered crash"), || {
        format!("the panic's message is not in {text:?}")
    })?;
    Ok(Outcome::Passed)
}
