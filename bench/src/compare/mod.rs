// SPDX-License-Identifier: MIT
//! `aios compare`: native, patched-but-off and async side by side.

mod block_device;
mod db;
mod emulated;
mod fio;
mod host;
mod image;
mod machine;
mod obd;
mod output;
mod rw;
mod sample;
mod schedule;
mod script;
mod turns;
pub(crate) mod virtual_time;
mod workload;

use crate::context::Context;
use crate::device::Model;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::{
    Accel,
    Iommu,
    check_kernel,
    interrupt, //
};
use crate::kernel;
use crate::kernel::{
    BuildId,
    Flavour,
    Variant, //
};
use crate::process::find_on_path;
use crate::report;
use crate::report::schema::{
    GuestInfo,
    Kernel,
    Provenance,
    Results, //
};
use crate::report::stages;
use crate::setup;
use crate::setup::Need;
use crate::stack::{
    Knob,
    Wait, //
};
use emulated::Emulated;
use host::Host;
use output::Output;
use schedule::{
    Plan,
    Record, //
};
use script::Tools;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};
use workload::{
    Sizing,
    Workload, //
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// The I/O stack: native, patched but off, and async.
    Stack,
    /// The same, buffered reads only: 4 to 32 KiB at random by 1, 2 and 4 threads,
    /// and what LBIO leaves alone: larger ones, and sequential ones.
    Lbio,
    /// The same: overwrites with an fsync each, by 1 to 64 threads.
    Fsync,
    /// The driver of overlaybd images: against ublk, EROFS, squashfs and none.
    Obd,
    /// Writes and fsyncs on a read-write disk of layers: against the drive itself.
    Rw,
}

/// Options of `aios compare`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What is compared with what.
    #[arg(long, value_enum, default_value_t = Suite::Stack, conflicts_with_all = ["host", "virtual_time"])]
    suite: Suite,
    /// With `--suite obd`: count instructions, and measure no times.
    #[arg(long, conflicts_with_all = ["virtual_time", "host", "quick", "pairs", "device", "cpus", "accel"])]
    instructions: bool,
    /// Few workloads and short samples: under three minutes once built.
    #[arg(long)]
    quick: bool,
    /// Only workloads with this name, or that this glob or part of a name fits; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// List the workloads and stop.
    #[arg(long)]
    list: bool,
    /// Measurements of every workload on every stack.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(5..=1000))]
    pairs: u32,
    /// Folder for results.json, report.md and report.html [default: out/compare-DATE].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print results.json instead of a table.
    #[arg(long)]
    json: bool,
    /// Orders the stacks and picks the offsets [default: from the clock].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Syncs in virtual time instead: latency against device time, the same on every machine.
    #[arg(long, conflicts_with_all = ["host", "write", "pairs", "device", "iommu", "cpus", "accel", "profile", "kernel_native", "kernel_patched"])]
    virtual_time: bool,
    /// The drive that the emulated one stands for.
    #[arg(long, value_enum, default_value_t = Model::Optane, conflicts_with = "host")]
    device: Model,
    /// IOMMU mode of the guest.
    #[arg(long, value_enum, default_value_t = Iommu::Lazy, conflicts_with = "host")]
    iommu: Iommu,
    /// Virtual processors; more than the machine can run beside the drive add noise [default: 1; 2 with `--suite lbio`, `fsync` and `rw`].
    #[arg(long, value_name = "N", conflicts_with = "host", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: Option<u32>,
    /// Memory of a guest; the database has 667 MiB, fio's file 512.
    #[arg(long, value_name = "MIB", conflicts_with_all = ["host", "virtual_time"], default_value_t = emulated::MEMORY_MIB, value_parser = clap::value_parser!(u32).range(128..=65_536))]
    memory: u32,
    /// How async waits for the drive [default: spin, if that leaves the drive a CPU, else halt].
    #[arg(long, value_enum, value_name = "HOW", conflicts_with_all = ["host", "virtual_time"])]
    wait: Option<Wait>,
    /// Words for the kernel command line of the async guest; may be repeated.
    #[arg(long, value_name = "WORDS", conflicts_with_all = ["host", "virtual_time"])]
    append: Vec<String>,
    /// Set a knob of the async stack: of ext4 (`/sys/fs/ext4/DISK/NAME`) or of all of it (`/sys/kernel/aios/NAME`); may be repeated.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "host")]
    knob: Vec<Knob>,
    /// What may run the guests.
    #[arg(long, value_enum, default_value_t = Accel::Auto, conflicts_with = "host")]
    accel: Accel,
    /// Kernel sources: a tarball or a tree, instead of the pinned package.
    #[arg(long, value_name = "PATH", conflicts_with = "host")]
    source: Option<PathBuf>,
    /// Show the stage breakdown of this file, written by `aios profile --json`.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Measure this machine, booted into the patched kernel, on a file (only read), a folder, or an unused block device.
    #[arg(long, value_name = "FILE-OR-MOUNT")]
    host: Option<PathBuf>,
    /// Allow --host to overwrite the block device given.
    #[arg(long, requires = "host")]
    write: bool,
    /// bzImage to take as the unpatched kernel.
    #[arg(long, value_name = "BZIMAGE", hide = true, requires = "kernel_patched")]
    kernel_native: Option<PathBuf>,
    /// bzImage to take as the patched kernel.
    #[arg(long, value_name = "BZIMAGE", hide = true, requires = "kernel_native")]
    kernel_patched: Option<PathBuf>,
}

impl Args {
    /// Virtual processors of a guest.
    fn cpus(&self) -> u32 {
        let of_suite = match self.suite {
            Suite::Lbio | Suite::Fsync | Suite::Rw => 2,
            Suite::Stack | Suite::Obd => 1,
        };
        self.cpus.unwrap_or(of_suite)
    }

    /// How async waits for the drive.
    fn wait(&self) -> Wait {
        self.wait.unwrap_or_else(|| Wait::for_guest(self.cpus()))
    }

    /// That nothing is asked for that only guests of the stack's suites have.
    fn has_no_guest_options(&self, suite: &str) -> Result<()> {
        let has_none = self.memory == emulated::MEMORY_MIB
            && self.append.is_empty()
            && self.wait.is_none()
            && self.knob.is_empty();
        match has_none {
            true => Ok(()),
            false => Err(Error::new(format!(
                "--memory, --append, --wait and --knob are not for --suite {suite}"
            ))),
        }
    }

    /// What is measured.
    fn workloads(&self) -> Result<Vec<Workload>> {
        match self.suite {
            Suite::Lbio => workload::select_buffered(&self.only),
            Suite::Fsync => workload::select_fsyncs(&self.only),
            _ => workload::select(&self.only, self.quick),
        }
    }
}

/// Runs `aios compare`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    if args.virtual_time {
        return virtual_time::run(
            ctx,
            &virtual_time::Options {
                quick: args.quick,
                only: &args.only,
                list: args.list,
                json: args.json,
                out: args.out.as_deref(),
                seed: args.seed,
                source: args.source.as_deref(),
                knobs: &args.knob,
            },
        );
    }
    if args.suite == Suite::Obd {
        args.has_no_guest_options("obd")?;
        return obd::run(
            ctx,
            &obd::Options {
                instructions: args.instructions,
                quick: args.quick,
                only: &args.only,
                list: args.list,
                json: args.json,
                pairs: args.pairs,
                out: args.out.as_deref(),
                seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
                device: args.device,
                iommu: args.iommu,
                cpus: args.cpus(),
                accel: args.accel,
                source: args.source.as_deref(),
            },
        );
    }
    if args.suite == Suite::Rw && !args.instructions {
        args.has_no_guest_options("rw")?;
        return rw::run(
            ctx,
            &rw::Options {
                quick: args.quick,
                only: &args.only,
                list: args.list,
                json: args.json,
                pairs: args.pairs,
                out: args.out.as_deref(),
                seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
                device: args.device,
                iommu: args.iommu,
                cpus: args.cpus(),
                accel: args.accel,
                source: args.source.as_deref(),
            },
        );
    }
    if args.instructions {
        return Err(Error::new("--instructions is for --suite obd")
            .hint("the stack's instructions are counted by `aios profile`"));
    }
    let workloads = args.workloads()?;
    if args.list {
        for workload in workloads {
            println!("{}", workload.name);
        }
        return Ok(0);
    }
    let stages = args
        .profile
        .as_deref()
        .map(stages::from_profile)
        .transpose()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let plan = Plan {
        pairs: args.pairs,
        seed,
        // Short samples share the start of their tools.
        group: if args.quick { 4 } else { 1 },
    };
    if ctx.dry_run {
        return dry_run(ctx, args, &workloads, plan);
    }
    for kernel in [&args.kernel_native, &args.kernel_patched] {
        kernel.as_deref().map_or(Ok(()), check_kernel)?;
    }
    interrupt::watch();
    let mut output = Output::prepare(args.out.as_deref())?;
    let done = match &args.host {
        Some(target) => on_host(ctx, args, target, workloads, plan)?,
        None => in_guests(ctx, args, &workloads, plan, output.path())?,
    };
    if done.record.samples.is_empty() {
        return Err(schedule::interrupted());
    }
    let complete = done.record.complete;
    let results = Results::new(
        done.record.samples,
        done.record.histograms,
        done.provenance,
        complete,
    );
    report::write(&results, stages.as_ref(), output.path())?;
    output.keep();
    report::show(ctx, &results, args.json)?;
    output.announce(ctx, results.provenance.seconds, "report.html");
    if complete {
        return Ok(0);
    }
    ctx.ui
        .say("interrupted: the results hold what was measured until then");
    Ok(130)
}

/// What a run leaves.
struct Done {
    record: Record,
    provenance: Provenance,
}

/// How much is measured at a time.
fn sizing(args: &Args) -> Result<Sizing> {
    let runtime = Duration::from_millis(if args.quick { 650 } else { 2000 });
    let Some(target) = &args.host else {
        // Each alone fills the guest's memory; the database exceeds it.
        return Ok(Sizing {
            runtime,
            file_mib: 512,
            keys: 640_000,
        });
    };
    // A real drive reads faster: no block must be read twice.
    let given = host::given_mib(target)?;
    Ok(Sizing {
        runtime,
        file_mib: given.unwrap_or(if args.quick { 2048 } else { 8192 }),
        keys: if args.quick { 1_000_000 } else { 8_000_000 },
    })
}

fn stop() -> bool {
    interrupt::check().is_err()
}

/// Both kernels, in a guest for each stack.
fn in_guests(
    ctx: &Context,
    args: &Args,
    workloads: &[Workload],
    plan: Plan,
    out: &Path,
) -> Result<Done> {
    let sizing = sizing(args)?;
    setup::ensure(ctx, &[Need::Boot, Need::Workloads])?;
    let kernels = [
        kernel(ctx, args, Flavour::Native)?,
        kernel(ctx, args, Flavour::Patched)?,
    ];
    interrupt::check()?;
    let start = Instant::now();
    let mut provenance = provenance(args, plan)?;
    let image = image::find_or_make(ctx, &sizing)?;
    interrupt::check()?;
    let bar = ctx
        .ui
        .spinner("booting the guests and calibrating the drive");
    let setup = emulated::Setup {
        kernels: [
            (Flavour::Native, kernels[0].0.clone()),
            (Flavour::Patched, kernels[1].0.clone()),
        ],
        image: &image,
        cpus: args.cpus(),
        memory_mib: args.memory,
        wait: args.wait(),
        append: &args.append,
        knobs: &args.knob,
        iommu: args.iommu,
        accel: args.accel,
        logs: out.join("guest"),
        sizing,
    };
    let mut target = Emulated::boot(ctx, &setup, tools()?)?;
    let calibration = target.calibrate(args.device)?;
    bar.finish_and_clear();
    ctx.ui.say(calibration.describe());
    if args.wait() != Wait::Spin && args.wait.is_none() {
        ctx.ui.say(
            "the guest has as many CPUs as this machine, and the drive needs some: async halts \
             while it waits",
        );
    }
    for (flavour, (bzimage, build)) in [Flavour::Native, Flavour::Patched]
        .into_iter()
        .zip(&kernels)
    {
        provenance.kernels.push(Kernel {
            name: format!("{flavour:?}").to_lowercase(),
            release: target.release(flavour).to_owned(),
            build: build.clone(),
            image_sha256: Some(machine::sha256(bzimage)?),
        });
    }
    provenance.guest = Some(GuestInfo {
        qemu: target.qemu_lines(),
        cpus: args.cpus(),
        wait: args.wait(),
        knobs: args.knob.clone(),
        memory_mib: args.memory,
        kvm: target.is_kvm(),
        iommu: args.iommu,
        device: calibration,
        image: image.key,
    });
    let record = schedule::run(&ctx.ui, &mut target, workloads, plan, &stop)?;
    if record.complete {
        // A fault in a log makes the numbers worthless.
        target.shutdown()?;
    }
    provenance.seconds = start.elapsed().as_secs_f64();
    Ok(Done { record, provenance })
}

/// This machine.
fn on_host(
    ctx: &Context,
    args: &Args,
    target: &Path,
    workloads: Vec<Workload>,
    plan: Plan,
) -> Result<Done> {
    let (workloads, notes) = host::servable(target, workloads)?;
    for note in &notes {
        ctx.ui.say(note);
    }
    let sizing = sizing(args)?;
    setup::ensure(ctx, &[Need::Workloads])?;
    let start = Instant::now();
    let mut provenance = provenance(args, plan)?;
    let mut host = Host::prepare(ctx, target, args.write, &workloads, sizing, tools()?)?;
    provenance.host = Some(host.info());
    provenance.notes = notes;
    provenance.kernels.push(Kernel {
        name: "patched".to_owned(),
        release: provenance.machine.kernel.clone(),
        build: None,
        image_sha256: None,
    });
    let record = schedule::run(&ctx.ui, &mut host, &workloads, plan, &stop)?;
    provenance.seconds = start.elapsed().as_secs_f64();
    Ok(Done { record, provenance })
}

/// The bzImage of one kernel and what it was built from.
fn kernel(ctx: &Context, args: &Args, flavour: Flavour) -> Result<(PathBuf, Option<BuildId>)> {
    let given = match flavour {
        Flavour::Native => &args.kernel_native,
        Flavour::Patched => &args.kernel_patched,
    };
    if let Some(bzimage) = given {
        return Ok((std::path::absolute(bzimage).at("resolve", bzimage)?, None));
    }
    let built = kernel::build(ctx, flavour, Variant::Bench, args.source.as_deref())?;
    Ok((built.bzimage, Some(built.id)))
}

fn tools() -> Result<Tools> {
    let path = |name: &str| {
        find_on_path(name)
            .map(|path| path.to_string_lossy().into_owned())
            .ok_or_else(|| {
                Error::new(format!("{name} is missing"))
                    .hint("run `cargo aios doctor` to see which package has it")
            })
    };
    Ok(Tools {
        fio: path("fio")?,
        db_bench: path("db_bench")?,
    })
}

/// All that is known before the run.
fn provenance(args: &Args, plan: Plan) -> Result<Provenance> {
    let mut programs = vec![machine::FIO, machine::DB_BENCH, machine::MKE2FS];
    if args.host.is_none() {
        programs.push(machine::QEMU);
    }
    Ok(Provenance {
        aios: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args().collect(),
        date: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        seconds: 0.0,
        seed: plan.seed,
        pairs: plan.pairs,
        quick: args.quick,
        machine: machine::describe(),
        tools: machine::versions(&programs),
        kernels: Vec::new(),
        guest: None,
        host: None,
        notes: Vec::new(),
    })
}

/// Prints what would run.
fn dry_run(ctx: &Context, args: &Args, workloads: &[Workload], plan: Plan) -> Result<u8> {
    let sizing = sizing(args)?;
    let tools = Tools {
        fio: "fio".to_owned(),
        db_bench: "db_bench".to_owned(),
    };
    if args.host.is_none() {
        let kernels = [
            (Flavour::Native, kernel(ctx, args, Flavour::Native)?.0),
            (Flavour::Patched, kernel(ctx, args, Flavour::Patched)?.0),
        ];
        let image = image::find_or_make(ctx, &sizing)?;
        let setup = emulated::Setup {
            kernels,
            image: &image,
            cpus: args.cpus(),
            memory_mib: args.memory,
            wait: args.wait(),
            append: &args.append,
            knobs: &args.knob,
            iommu: args.iommu,
            accel: args.accel,
            logs: PathBuf::from("OUT/guest"),
            sizing,
        };
        for line in emulated::dry_lines(ctx, &setup)? {
            println!("{line}");
        }
    }
    println!(
        "# {} pairs, seed {}, for each stack:",
        plan.pairs, plan.seed
    );
    for group in schedule::groups(workloads, plan.group) {
        print!("{}", script::of(group, &tools, None, &sizing, plan.seed));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        let words = std::iter::once("compare").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args)
    }

    #[test]
    fn test_args_defaults_are_the_documented_ones() {
        let args = parse("").unwrap();
        assert_eq!((args.pairs, args.cpus()), (5, 1));
        assert_eq!(args.memory, emulated::MEMORY_MIB);
        assert_eq!((args.device, args.iommu), (Model::Optane, Iommu::Lazy));
    }

    #[test]
    fn test_args_fewer_than_five_pairs_are_refused() {
        for line in [
            "--pairs 4",
            "--pairs 0",
            "--pairs -1",
            "--cpus 0",
            "--write",
            "--knob fsync_alloc_written",
            "--knob enabled=0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn test_args_suite_lbio_takes_two_processors_and_buffered_reads() {
        let args = parse("--suite lbio --quick").unwrap();
        assert_eq!((args.cpus(), args.workloads().unwrap().len()), (2, 15));
        let args = parse("--suite lbio --cpus 4 --only randread-8k").unwrap();
        assert_eq!((args.cpus(), args.workloads().unwrap().len()), (4, 3));
        assert!(parse("--suite lbio --host /mnt").is_err());
        assert!(parse("--memory 100").is_err());
    }

    #[test]
    fn test_args_suite_fsync_takes_two_processors_and_every_number_of_threads() {
        let args = parse("--suite fsync").unwrap();
        let workloads = args.workloads().unwrap();
        assert_eq!((args.cpus(), workloads.len()), (2, 6));
        assert_eq!(workloads[0].name, "fio/overwrite-4k-fsync");
        assert_eq!(workloads[5].name, "fio/overwrite-4k-fsync-t64");
    }

    #[test]
    fn test_args_virtual_time_excludes_the_other_machines() {
        assert!(parse("--virtual-time --quick --only fsync --seed 3 --json").is_ok());
        assert!(parse("--virtual-time --knob fsync_alloc_written=1").is_ok());
        for line in ["--host /mnt", "--cpus 1", "--accel tcg", "--pairs 9"] {
            assert!(parse(&format!("--virtual-time {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn test_args_host_excludes_the_emulated_machine() {
        assert!(parse("--host /mnt --write").is_ok());
        let others = ["--device null", "--cpus 2", "--iommu off", "--source /x"];
        for line in others.into_iter().chain(["--knob lbio_writes=1"]) {
            assert!(parse(&format!("--host /mnt {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn test_sizing_data_exceeds_guest_memory() {
        let sizing = sizing(&parse("--quick").unwrap()).unwrap();
        let memory = u64::from(emulated::MEMORY_MIB) << 20;
        assert!(db::base_bytes(sizing.keys) > memory);
    }
}
