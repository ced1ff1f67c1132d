// SPDX-License-Identifier: MIT
//! Counting: boots a guest with the plugin and runs the workload on its stacks.

use super::plugin;
use super::workload::Workload;
use crate::context::Context;
use crate::device::image;
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
use crate::stack::{
    Stack,
    Wait, //
};
use aios_guest::GUEST_BINARY;
use aios_insn_plugin::report::{
    Report,
    SCHEMA, //
};
use indicatif::ProgressBar;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::Duration;

/// Latency of the drive: long enough that an emulated CPU waits for it, short
/// enough that hardly any operation meets a timer tick.
pub(crate) const LATENCY_NS: u64 = 200_000;
/// Operations before the measured ones.
pub(crate) const WARMUP: u32 = 300;
/// Fewer clean operations than these make no mean.
const MIN_CLEAN: u64 = 20;
/// Runs of the workload at most until half of its operations were clean: on a
/// busy machine an emulated CPU stands still for long, and most operations
/// meet a timer tick.
const MAX_RUNS: u32 = 6;
/// The drive in the guest.
const DRIVE: &str = "/dev/nvme0n1";
/// Where it is mounted in the guest.
const MOUNT: &str = "/run/aios-drive";
/// Keeps the page allocator's per-CPU lists at a fixed length (a thousandth of
/// memory, some 260 pages). Else it doubles their refills up to 2,016 pages: one
/// operation in as many then costs 220,000 instructions, and the mean hangs on
/// how many of those a run meets. The cost per page is the same.
const STEADY_ALLOCATOR: &str = "echo 1000 > /proc/sys/vm/percpu_pagelist_high_fraction";
/// How long a workload may take: emulated, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(900);

/// A kernel to profile.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What QEMU boots.
    pub(crate) bzimage: PathBuf,
    /// Its symbols.
    pub(crate) system_map: PathBuf,
}

/// What all guests have in common.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// The plugin.
    pub(crate) plugin: &'a Path,
    /// The drive's contents.
    pub(crate) image: &'a Path,
    /// IOMMU mode.
    pub(crate) iommu: Iommu,
    /// What is run.
    pub(crate) workload: Workload,
    /// Operations.
    pub(crate) ops: u32,
    /// Seed of the random offsets.
    pub(crate) seed: u64,
    /// Command line of the patched kernel.
    pub(crate) append: &'a [String],
    /// How async waits for the drive.
    pub(crate) wait: Wait,
    /// Whether async writes around the block layer.
    pub(crate) lbio_writes: bool,
    /// Whether there are fast commits.
    pub(crate) fast_commits: bool,
    /// Whether the drive has a volatile write cache.
    pub(crate) write_cache: bool,
    /// Where logs go.
    pub(crate) logs: &'a Path,
}

/// What one guest counted.
#[derive(Debug)]
pub(crate) struct Counted {
    /// For each stack, in the order asked for.
    pub(crate) reports: Vec<(Stack, Report)>,
    /// QEMU's command line.
    pub(crate) qemu_line: String,
}

/// Boots `kernel` and counts on each of `stacks`, which are of that kernel.
/// With `--dry-run` it prints what it would run and counts nothing.
pub(crate) fn count(
    ctx: &Context,
    setup: &Setup<'_>,
    kernel: &Kernel,
    stacks: &[Stack],
    bar: &ProgressBar,
) -> Result<Counted> {
    let flavour = stacks.first().copied().unwrap_or(Stack::Native);
    let name = match flavour {
        Stack::Native => "native",
        Stack::Off | Stack::Async => "patched",
    };
    // Short paths: sockets are in it.
    let work = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let mut server = Server::start(ctx, setup.image, work.path(), name, false)?;
    let latency = Latency::fixed(LATENCY_NS);
    server.set_latency(&latency, &latency)?;

    let out = work.path().join("counts.json");
    let config = boot_config(setup, kernel, name, &server.socket(), &out)?;
    if ctx.dry_run {
        let qemu_line = Guest::dry_line(ctx, &config)?;
        println!("{qemu_line}");
        return Ok(Counted {
            reports: Vec::new(),
            qemu_line,
        });
    }
    let mut guest = Guest::boot(ctx, &config)?;
    let mut reports = Vec::new();
    for &stack in stacks {
        bar.set_prefix(stack.name());
        let counted = until_clean(setup, |seed| {
            guest.sh(&script(stack, setup, seed), TIMEOUT)?;
            plugin::take_counts(&out, SCHEMA)
        })
        .map_err(|error| error.context(format!("{} on {}", setup.workload.name(), stack.name())))?;
        reports.push((stack, counted));
        bar.inc(1);
    }
    let qemu_line = guest.qemu_line().to_owned();
    guest.shutdown()?;
    Ok(Counted { reports, qemu_line })
}

/// Runs the workload, with a seed of its own each time, until enough operations
/// were clean.
fn until_clean(setup: &Setup<'_>, mut run: impl FnMut(u64) -> Result<Report>) -> Result<Report> {
    let mut counted = run(setup.seed)?;
    for extra in 1..MAX_RUNS {
        if clean(&counted) >= u64::from(setup.ops / 2) {
            break;
        }
        counted.merge(run(setup.seed.wrapping_add(u64::from(extra)))?);
    }
    if clean(&counted) >= MIN_CLEAN.min(u64::from(setup.ops)) {
        return Ok(counted);
    }
    let reasons: Vec<String> = counted
        .disturbed
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(why, count)| format!("{why} {count}"))
        .chain((counted.no_io > 0).then(|| format!("without I/O {}", counted.no_io)))
        .collect();
    Err(Error::new(format!(
        "only {} operations were clean ({})",
        clean(&counted),
        reasons.join(", ")
    ))
    .hint("run it when the machine is less busy, or with more --ops"))
}

/// Clean operations on the usual path.
fn clean(report: &Report) -> u64 {
    report.awake.clean.max(report.slept.clean)
}

fn boot_config(
    setup: &Setup<'_>,
    kernel: &Kernel,
    name: &str,
    socket: &Path,
    out: &Path,
) -> Result<BootConfig> {
    let mut config = BootConfig::new(&kernel.bzimage, format!("profile-{name}"), setup.logs);
    config.cpus = 1;
    config.memory_mib = 1024;
    config.iommu = setup.iommu;
    // The plugin sees emulated instructions only.
    config.accel = Accel::Tcg;
    if name != "native" {
        config.append.extend_from_slice(setup.append);
    }
    config.drives = vec![Drive {
        write_cache: setup.write_cache,
        ..Drive::new(Backend::Nbd(socket.to_owned()))
    }];
    config.qemu = plugin::qemu_args(
        setup.plugin,
        &kernel.system_map,
        out,
        setup.workload.rules(),
    )?;
    Ok(config)
}

/// Switches the stack, mounts the drive afresh (with an empty page cache), runs
/// the workload and unmounts.
fn script(stack: Stack, setup: &Setup<'_>, seed: u64) -> String {
    let wait = match stack {
        Stack::Async => setup.wait.script(),
        _ => "",
    };
    let writes = match stack {
        Stack::Async if setup.lbio_writes => "echo 1 > /sys/kernel/aios/lbio_writes\n",
        _ => "",
    };
    let feature = match setup.fast_commits {
        true => "fast_commit",
        false => "^fast_commit",
    };
    format!(
        "{STEADY_ALLOCATOR}\ntune2fs -O {feature} {DRIVE} >/dev/null\n{}{wait}{writes}\
         {GUEST_BINARY} work {} --file {MOUNT}/{} --ops {} --warmup {WARMUP} --seed {seed}\n",
        stack.mount_script(DRIVE, MOUNT),
        setup.workload.guest_args(),
        image::FILE,
        setup.ops,
    )
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::report;
    use super::*;

    fn setup() -> Setup<'static> {
        Setup {
            plugin: Path::new("/p.so"),
            image: Path::new("/i"),
            iommu: Iommu::Lazy,
            workload: Workload::RandreadDirect,
            ops: 7,
            seed: 3,
            append: &[],
            wait: Wait::Spin,
            lbio_writes: false,
            fast_commits: false,
            write_cache: true,
            logs: Path::new("/logs"),
        }
    }

    #[test]
    fn test_script_switches_mounts_and_runs() {
        let on = script(Stack::Async, &setup(), 5);
        assert!(on.contains("echo 1 > /sys/kernel/aios/enabled"), "{on}");
        assert!(on.contains("-o aios "), "{on}");
        assert!(on.contains("--direct") && on.contains("--ops 7 "), "{on}");
        assert!(on.contains("--seed 5\n"), "{on}");
        let native = script(Stack::Native, &setup(), 5);
        assert!(native.contains("-o defaults "), "{native}");
        assert!(!native.contains("/sys/kernel/aios"), "{native}");
        assert!(!on.contains("lbio_writes"), "{on}");
        assert!(on.contains("-O ^fast_commit /dev/nvme0n1 "), "{on}");
        let setup = Setup {
            wait: Wait::Halt,
            lbio_writes: true,
            fast_commits: true,
            ..setup()
        };
        assert!(script(Stack::Async, &setup, 5).contains("1 > /sys/kernel/aios/poll_halt\n"));
        assert!(script(Stack::Async, &setup, 5).contains("1 > /sys/kernel/aios/lbio_writes\n"));
        assert!(!script(Stack::Off, &setup, 5).contains("lbio_writes"));
        assert!(script(Stack::Off, &setup, 5).contains("-O fast_commit /dev/nvme0n1 "));
    }

    #[test]
    fn test_boot_config_is_one_emulated_cpu_with_the_plugin() {
        let kernel = Kernel {
            bzimage: "/bz".into(),
            system_map: "/map".into(),
        };
        let config = boot_config(
            &setup(),
            &kernel,
            "native",
            Path::new("/s"),
            Path::new("/o"),
        )
        .unwrap();
        assert_eq!((config.cpus, config.accel), (1, Accel::Tcg));
        assert!(
            config.qemu[1].starts_with("/p.so,map=/map,out=/o,"),
            "{:?}",
            config.qemu
        );
    }

    fn runs(clean: u64) -> (Result<Report>, Vec<u64>) {
        let mut seeds = Vec::new();
        let setup = Setup {
            ops: 100,
            ..setup()
        };
        let counted = until_clean(&setup, |seed| {
            seeds.push(seed);
            Ok(report(clean, 10))
        });
        (counted, seeds)
    }

    #[test]
    fn test_until_clean_stops_at_half_of_the_operations() {
        let (counted, seeds) = runs(50);
        assert_eq!((clean(&counted.unwrap()), seeds), (50, vec![3]));
        let (counted, seeds) = runs(20);
        assert_eq!((clean(&counted.unwrap()), seeds), (60, vec![3, 4, 5]));
    }

    #[test]
    fn test_until_clean_too_few_clean_operations_gives_the_reasons() {
        let (counted, seeds) = runs(3);
        assert_eq!(seeds.len(), 6);
        let error = counted.unwrap_err();
        let what = error.what();
        assert!(
            what.contains("only 18") && what.contains("interrupt 18"),
            "{error}"
        );
    }
}
