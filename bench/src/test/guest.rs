// SPDX-License-Identifier: MIT
//! Functional tests in the guest: both kernels, the switch and its knobs, data
//! checked by fio with the stack on and off, and a kernel full of checks.

mod fsync;
mod obd;

use super::lbio;
use super::suite::{
    Outcome,
    Suite,
    check, //
};
use crate::context::Context;
use crate::crash;
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

/// Size of the drive under test in bytes.
const DRIVE_BYTES: u64 = 512 << 20;

/// Crash states that are explored.
const CRASH_STATES: u64 = 1000;

/// A script in the guest may take this long.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// One round of the race.
const RACE_ROUND: Duration = Duration::from_secs(30);

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
    /// Whether the cases are about overlaybd images.
    obd: bool,
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

    pub(super) fn sh(&mut self, script: &str) -> Result<String> {
        self.guest.sh(script, SCRIPT_TIMEOUT)
    }

    /// Mounts the drive's file system afresh with `options`, stack enabled or
    /// not, and with a file of 16 MiB in it.
    pub(super) fn mount(&mut self, options: &str, enabled: bool, poll_max_ns: u64) -> Result<()> {
        self.sh(&format!(
            "mkdir -p /mnt/t; umount /mnt/t 2>/dev/null || :; \
             blkid -p /dev/nvme0n1 >/dev/null 2>&1 || mkfs.ext4 -q -F /dev/nvme0n1; \
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

const NATIVE: Group = Group {
    name: "guest/native",
    flavour: Flavour::Native,
    variant: Variant::Bench,
    cpus: 1,
    iommu: Iommu::Lazy,
    lba: 512,
    write_cache: true,
    lbio: Lbio::None,
    obd: false,
    cases: &[
        ("boots", boots),
        ("fio-verify", |f| {
            f.sh("mkdir -p /mnt/t; mkfs.ext4 -q -F /dev/nvme0n1; mount /dev/nvme0n1 /mnt/t")?;
            fio_verify(f)
        }),
        ("refuses-the-mount-option", |f| {
            f.sh("umount /mnt/t; no mount -o aios /dev/nvme0n1 /mnt/t")
                .map(drop)
        }),
    ],
};

const PATCHED: Group = Group {
    name: "guest/patched",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 1,
    iommu: Iommu::Lazy,
    lba: 512,
    write_cache: true,
    lbio: Lbio::None,
    obd: false,
    cases: &[
        ("boots", boots),
        ("off-by-default", off_by_default),
        ("knobs-refuse-nonsense", knobs_refuse_nonsense),
        ("mount-option", mount_option),
        ("remount", remount),
        ("ioctl", ioctl),
        ("enabled-without-opt-in", |f| {
            f.mount("noaios", true, 100_000_000)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("opt-in-while-disabled", |f| {
            f.mount("aios", false, 100_000_000)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("zero-bound-never-spins", |f| {
            f.mount("aios", true, 0)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("slow-drive-sleeps", slow_drive_sleeps),
        ("signal-ends-the-spin", signal_ends_the_spin),
        ("other-task-ends-the-spin", other_task_ends_the_spin),
        ("fio-verify-off", |f| {
            f.mount("noaios", false, 0)?;
            fio_verify(f)
        }),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("truncate-against-readers", truncate_against_readers),
    ],
};

const STRICT: Group = Group {
    name: "guest/strict-4k-write-through",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 2,
    iommu: Iommu::Strict,
    lba: 4096,
    write_cache: false,
    lbio: Lbio::Interrupts,
    obd: false,
    cases: &[
        ("boots", boots),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("lbio-serves-reads", lbio::serves_reads),
    ],
};

const NO_IOMMU: Group = Group {
    name: "guest/no-iommu",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 2,
    iommu: Iommu::Off,
    lba: 512,
    write_cache: true,
    lbio: Lbio::Polled,
    obd: false,
    cases: &[
        ("boots", boots),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("lbio-serves-reads", lbio::serves_reads),
    ],
};

const DEBUG: Group = Group {
    name: "guest/debug",
    flavour: Flavour::Patched,
    variant: Variant::Debug,
    cpus: 2,
    iommu: Iommu::Strict,
    lba: 512,
    write_cache: true,
    lbio: Lbio::Interrupts,
    obd: false,
    cases: &[
        ("boots", boots),
        ("kunit", kunit),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("truncate-against-readers", truncate_against_readers),
        ("lbio-serves-reads", lbio::serves_reads),
        (
            "lbio-changes-against-readers",
            lbio::changes_against_readers,
        ),
        ("lbio-reset-under-load", lbio::reset_under_load),
        ("lbio-removal-under-load", lbio::removal_under_load),
        fsync::SURVIVES_A_CRASH,
    ],
};

const LBIO: Group = Group {
    name: "guest/lbio",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 2,
    iommu: Iommu::Lazy,
    lba: 512,
    write_cache: true,
    lbio: Lbio::Interrupts,
    obd: false,
    cases: LBIO_CASES,
};

const LBIO_POLLED: Group = Group {
    name: "guest/lbio-polled",
    lbio: Lbio::Polled,
    ..LBIO
};

const LBIO_CASES: &[Case] = &[
    ("boots", boots),
    ("serves-reads", lbio::serves_reads),
    ("sleeps", lbio::sleeps),
    ("leaves-others-alone", lbio::leaves_others_alone),
    ("serves-longer-reads", lbio::serves_longer_reads),
    ("sleeping-reader-is-killed", lbio::sleeping_reader_is_killed),
    ("errors-are-read-again", lbio::errors_are_read_again),
    ("lost-commands-reset", lbio::lost_commands_reset),
    ("memory-is-bounded", lbio::memory_is_bounded),
    ("tracepoints", lbio::tracepoints),
    ("fio-verify-on", |f| {
        f.mount("aios", true, 100_000_000)?;
        fio_verify(f)
    }),
    ("changes-against-readers", lbio::changes_against_readers),
    ("cpu-hotplug-under-load", lbio::cpu_hotplug_under_load),
    ("reset-under-load", lbio::reset_under_load),
    ("removal-under-load", lbio::removal_under_load),
];

const LBIO_DENIED: Group = Group {
    name: "guest/lbio-denied",
    lbio: Lbio::Denied,
    cases: &[
        ("boots", boots),
        ("says-why", |f| {
            f.sh("grep -qx 'off: the controller has no more queues' /sys/block/nvme0n1/lbio")
                .map(drop)
        }),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
    ],
    ..LBIO
};

const OBD: Group = Group {
    name: "guest/obd",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 2,
    iommu: Iommu::Lazy,
    lba: 512,
    write_cache: true,
    lbio: Lbio::None,
    obd: true,
    cases: &[
        ("boots", boots),
        ("fixtures", obd::fixtures),
        ("parts", obd::parts),
        ("file-system", obd::file_system),
        ("direct-reads", obd::direct_reads),
        ("many", obd::many),
        ("stacked", obd::stacked),
        ("damaged-block", obd::damaged_block),
        ("tool", obd::tool),
        ("configuration", obd::configuration),
        ("detach-under-load", obd::detach_under_load),
        ("unload", obd::unload),
    ],
};

const OBD_DEBUG: Group = Group {
    name: "guest/obd-debug",
    variant: Variant::Debug,
    cases: &[
        ("boots", boots),
        ("file-system", obd::file_system),
        ("stacked", obd::stacked),
        ("detach-under-load", obd::detach_under_load),
        ("unload", obd::unload),
    ],
    ..OBD
};

const GROUPS: &[&Group] = &[
    &NATIVE,
    &PATCHED,
    &STRICT,
    &NO_IOMMU,
    &LBIO,
    &LBIO_POLLED,
    &LBIO_DENIED,
    &fsync::FSYNC,
    &DEBUG,
    &OBD,
    &OBD_DEBUG,
];

/// Runs the race for `time` in all, on each kind of queue and translation, with
/// the file open for writing all the time and now and then.
pub(super) fn race(ctx: &Context, suite: &mut Suite, time: Duration) {
    let groups = [&LBIO, &LBIO_POLLED, &STRICT];
    let each = time / groups.len() as u32;
    for group in groups {
        let race = format!("{}/race", group.name);
        let log = format!("{}/race-clean-log", group.name);
        if !suite.runs_any([race.as_str(), log.as_str()].into_iter()) {
            for name in [&race, &log] {
                suite.case(name, || Ok(Outcome::Passed));
            }
            continue;
        }
        match start(ctx, group) {
            Ok(mut fixture) => {
                suite.case(&race, || race_for(&mut fixture, each));
                let Fixture { guest, server, .. } = fixture;
                suite.case(&log, || guest.shutdown().map(|()| Outcome::Passed));
                drop(server);
            }
            Err(error) => suite.fail_all([race.as_str(), log.as_str()].into_iter(), &error),
        }
    }
}

/// Rounds of the race until `time` is over, at least one of each kind.
fn race_for(f: &mut Fixture, time: Duration) -> Result<Outcome> {
    f.mount("aios", true, 100_000_000)?;
    let end = Instant::now() + time;
    let mut seed = 1;
    while seed <= 2 || Instant::now() < end {
        for (mode, event) in [("", "early"), ("--reopen", "read")] {
            let served = f.lbio_during(event, |f| {
                f.sh(&format!(
                    "/aios-guest race --file /mnt/t/race --size 2097152 --readers 4 \
                     --seconds {} --seed {seed} --blocks 8 --reclaim {mode}",
                    RACE_ROUND.as_secs()
                ))
                .map(drop)
            })?;
            check(served > 0, || format!("race {mode}: nothing {event}"))?;
            seed += 1;
        }
    }
    Ok(Outcome::Passed)
}

/// Runs the guest's cases.
pub(super) fn run(ctx: &Context, suite: &mut Suite) {
    for group in GROUPS {
        let names: Vec<String> = group
            .cases
            .iter()
            .map(|(case, _)| format!("{}/{case}", group.name))
            .chain([format!("{}/clean-log", group.name)])
            .collect();
        let each = || names.iter().map(String::as_str);
        if !suite.runs_any(each()) {
            each().for_each(|name| suite.case(name, || Ok(Outcome::Passed)));
            continue;
        }
        match start(ctx, group) {
            Ok(fixture) => run_group(suite, group, &names, fixture),
            Err(error) => suite.fail_all(each(), &error),
        }
    }
    suite.case("guest/panic-fails-the-run", || panic_fails_the_run(ctx));
    suite.case("guest/crash-states", || crash_states(ctx));
}

/// A thousand crash states of the patched kernel, switched on: no promise may be
/// broken, and every mutant must be caught.
fn crash_states(ctx: &Context) -> Result<Outcome> {
    let args = crash::Args::short(CRASH_STATES, Stack::Async, ctx.cache_dir("test/crash")?);
    crash::check(ctx, &args).map(|()| Outcome::Passed)
}

/// A guest that panics must fail the run at once, with the panic's own lines.
fn panic_fails_the_run(ctx: &Context) -> Result<Outcome> {
    let built = kernel::build(ctx, Flavour::Native, Variant::Bench, None)?;
    let config = BootConfig::new(built.bzimage, "guest-panic", ctx.cache_dir("test")?);
    let mut guest = Guest::boot(ctx, &config)?;
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

fn run_group(suite: &mut Suite, group: &Group, names: &[String], mut fixture: Fixture) {
    for ((_, case), name) in group.cases.iter().zip(names) {
        suite.case(name, || case(&mut fixture).map(|()| Outcome::Passed));
    }
    let Fixture { guest, server, .. } = fixture;
    if let Some(name) = names.last() {
        suite.case(name, || guest.shutdown().map(|()| Outcome::Passed));
    }
    drop(server);
}

fn start(ctx: &Context, group: &Group) -> Result<Fixture> {
    setup::ensure(ctx, &[Need::Build, Need::Boot, Need::Workloads])?;
    let built = kernel::build(ctx, group.flavour, group.variant, None)?;
    let obd = match (group.obd, built.config.parent()) {
        (true, Some(build)) => Some(obd::Files::new(ctx, build.to_path_buf())?),
        _ => None,
    };
    let out = ctx.cache_dir("test")?;
    let image = blank_image(&out)?;
    let name = group.name.replace('/', "-");
    let server = Server::start(ctx, &image, &out, &name, false)?;
    let guest = Guest::boot(
        ctx,
        &BootConfig {
            kernel: built.bzimage,
            name,
            accel: Accel::Auto,
            cpus: group.cpus,
            // The images' files and devices are cached beside each other.
            memory_mib: if group.obd { 2048 } else { 1024 },
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
            append: group.lbio.parameters(group.cpus),
            qemu: Vec::new(),
            out,
            boot_timeout: Duration::from_secs(180),
        },
    )?;
    Ok(Fixture { guest, server, obd })
}

/// A sparse image; every guest gets a private copy of it.
fn blank_image(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("blank.img");
    let file = File::create(&path).at("create", &path)?;
    file.set_len(DRIVE_BYTES).at("resize", &path)?;
    Ok(path)
}

fn boots(f: &mut Fixture) -> Result<()> {
    let release = f.sh("uname -r; test -b /dev/nvme0n1; cat /sys/block/nvme0n1/size")?;
    check(release.starts_with("7.3."), || release.clone())
}

fn off_by_default(f: &mut Fixture) -> Result<()> {
    let enabled = f.sh("cat /sys/kernel/aios/enabled")?;
    check(enabled.trim() == "0", || format!("enabled is {enabled:?}"))?;
    f.sh(
        "mkdir -p /mnt/t; mkfs.ext4 -q -F /dev/nvme0n1; mount /dev/nvme0n1 /mnt/t; \
         no grep -q aios /proc/mounts; \
         dd if=/dev/urandom of=/mnt/t/data bs=1M count=16 conv=fsync 2>/dev/null",
    )?;
    let polls = f.read(200, "")?;
    check(polls.total() == 0, || format!("{polls:?}"))
}

fn knobs_refuse_nonsense(f: &mut Fixture) -> Result<()> {
    f.sh("cd /sys/kernel/aios; \
          for bad in 2 -1 x ''; do ! echo $bad > enabled || exit 1; done 2>/dev/null; \
          for bad in 1000000001 -1 x 99999999999999999999; do \
              ! echo $bad > poll_max_ns || exit 1; done 2>/dev/null; \
          for good in 0 1 1000000000; do echo $good > poll_max_ns; \
              [ $(cat poll_max_ns) = $good ]; done; \
          for good in 1 0; do echo $good > enabled; [ $(cat enabled) = $good ]; done")
        .map(drop)
}

fn mount_option(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("grep ' /mnt/t ' /proc/mounts | grep -qw aios")?;
    let polls = f.read(400, "")?;
    check(polls.hits >= 350, || {
        format!("400 reads that miss, {polls:?}")
    })
}

fn remount(f: &mut Fixture) -> Result<()> {
    f.mount("noaios", true, 100_000_000)?;
    let off = f.read(100, "")?;
    f.sh("mount -o remount,aios /mnt/t; grep ' /mnt/t ' /proc/mounts | grep -qw aios")?;
    let on = f.read(100, "")?;
    f.sh("mount -o remount,noaios /mnt/t; no grep -q ' /mnt/t .*[ ,]aios[ ,]' /proc/mounts")?;
    let off_again = f.read(100, "")?;
    check(
        off.total() == 0 && on.hits >= 80 && off_again.total() == 0,
        || format!("{off:?}, {on:?}, {off_again:?}"),
    )
}

fn ioctl(f: &mut Fixture) -> Result<()> {
    f.mount("noaios", true, 100_000_000)?;
    let polls = f.read(200, "--opt-in")?;
    check(polls.hits >= 150, || format!("200 reads, {polls:?}"))?;
    // Another open of the same file did not opt in.
    let others = f.read(200, "")?;
    check(others.total() == 0, || format!("{others:?}"))
}

fn slow_drive_sleeps(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000)?;
    let polls = f.read_at(60, "", 20)?;
    // The first waits teach; then it must not even try.
    check(
        polls.hits <= 2 && polls.misses <= 10 && polls.sleeps >= 40,
        || format!("60 reads of 20 ms with a bound of 1 ms, {polls:?}"),
    )
}

fn signal_ends_the_spin(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000_000)?;
    f.sh("echo 3 > /proc/sys/vm/drop_caches; cat /aios-guest >/dev/null")?;
    f.set_latency(800)?;
    let begin = Instant::now();
    let killed = f.sh(
        "dd if=/mnt/t/data of=/dev/null bs=4096 count=1 skip=3000 2>/dev/null & pid=$!; \
         sleep 0.2; kill -KILL $pid; code=0; wait $pid || code=$?; [ $code = 137 ]",
    );
    let elapsed = begin.elapsed();
    f.set_latency(0)?;
    killed?;
    check(elapsed < Duration::from_secs(10), || {
        format!("the reader took {elapsed:?} to die")
    })
}

fn other_task_ends_the_spin(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 1_000_000_000)?;
    f.sh("(while :; do :; done) >/dev/null 2>&1 & echo $! > /tmp/busy")?;
    let polls = f.read_at(60, "", 5);
    f.sh("kill $(cat /tmp/busy)")?;
    let polls = polls?;
    // One CPU, and somebody else has work for it.
    check(
        polls.hits <= 10 && polls.misses + polls.sleeps >= 50,
        || format!("60 reads beside a busy task, {polls:?}"),
    )
}

/// Data checked by fio: written, read back in another order, buffered.
fn fio_verify(f: &mut Fixture) -> Result<()> {
    f.sh(
        "cd /mnt/t && fio --name=verify --filename=verify --size=24m --bs=4k --rw=randwrite \
         --ioengine=psync --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=11 \
         --invalidate=1 --end_fsync=1 --minimal >/dev/null && \
         echo 3 > /proc/sys/vm/drop_caches && \
         fio --name=again --filename=verify --size=24m --bs=4k --rw=randread --ioengine=psync \
         --verify=crc32c --verify_only --verify_fatal=1 --randseed=11 --invalidate=1 \
         --minimal >/dev/null; rm -f verify",
    )
    .map(drop)
}

/// Readers race with a writer that shrinks, punches and rewrites the file; each
/// 512 bytes say which generation wrote them, and no reader may see one that
/// is older than the last it was told of.
fn truncate_against_readers(f: &mut Fixture) -> Result<()> {
    f.mount("aios", true, 100_000_000)?;
    f.sh("/aios-guest race --file /mnt/t/race --size 1048576 --readers 3 --seconds 8 --seed 5")
        .map(drop)
}

fn kunit(f: &mut Fixture) -> Result<()> {
    let log = f.sh("dmesg")?;
    let mut ours = false;
    for line in log.lines() {
        let text = line.split_once("] ").map_or(line, |(_, text)| text).trim();
        check(!text.starts_with("not ok "), || format!("KUnit: {text}"))?;
        ours |= text.starts_with("ok ") && text.contains("aios_policy");
    }
    check(ours, || {
        "no KUnit result of aios_policy in the log".to_owned()
    })
}
