// SPDX-License-Identifier: MIT
//! `aios compare --suite obd`: the driver of overlaybd images against others that
//! serve the same tree from the same drive.
//!
//! All run in one guest, one after another, in an order shuffled in each round, and
//! each from a fresh mount with nothing cached. Then instructions are counted, in a
//! guest of their own.

mod contender;
mod count;
mod guest;
mod images;
mod page;
mod results;

use super::fio::{
    Access,
    Job,
    Mode, //
};
use super::machine;
use super::output::Output;
use super::schedule::interrupted;
use super::script::Tools;
use super::workload::{
    self,
    Kind,
    Sizing,
    Workload, //
};
use crate::context::Context;
use crate::device::Model;
use crate::error::{
    IoContext,
    Result, //
};
use crate::files;
use crate::guest::{
    Accel,
    Iommu,
    init_binary,
    interrupt, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::obd_tool;
use crate::report;
use crate::report::schema::Kernel;
use crate::setup::{
    self,
    Need, //
};
use contender::{
    Contender,
    Paths, //
};
use guest::{
    Setup,
    Shared, //
};
use images::Images;
use results::{
    Provenance,
    Results,
    Sample, //
};
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

/// What of `aios compare`'s options means something here.
#[derive(Debug)]
pub(super) struct Options<'a> {
    /// Times are not measured.
    pub(super) instructions: bool,
    pub(super) quick: bool,
    pub(super) only: &'a [String],
    pub(super) list: bool,
    pub(super) json: bool,
    pub(super) pairs: u32,
    pub(super) out: Option<&'a Path>,
    pub(super) seed: u64,
    pub(super) device: Model,
    pub(super) iommu: Iommu,
    pub(super) cpus: u32,
    pub(super) accel: Accel,
    pub(super) source: Option<&'a Path>,
}

/// Runs `aios compare --suite obd`.
pub(super) fn run(ctx: &Context, options: &Options<'_>) -> Result<u8> {
    let workloads = select(options.only)?;
    if options.list {
        for workload in workloads {
            println!("{}", workload.name);
        }
        return Ok(0);
    }
    let sizing = Sizing {
        runtime: Duration::from_millis(if options.quick { 650 } else { 2000 }),
        // More than is read in a sample; no block is read twice.
        file_mib: 256,
        keys: 0,
    };
    if ctx.dry_run {
        return dry_run(ctx, options, sizing);
    }
    interrupt::watch();
    let mut output = Output::prepare(options.out)?;
    setup::ensure(ctx, &[Need::Boot, Need::Workloads, Need::Images])?;
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, options.source)?;
    // Built now, so that the guest does not have to wait for it.
    init_binary(ctx)?;
    let tool = obd_tool::build(ctx, None)?;
    interrupt::check()?;
    let start = Instant::now();
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let images = images::find_or_make(ctx, sizing.file_mib, &tool)?;
    let bar = ctx
        .ui
        .spinner("booting the guest and calibrating the drives");
    let setup = setup_of(
        options,
        &built.bzimage,
        &images,
        output.path().join("guest"),
        sizing,
    );
    let paths = Paths {
        tool: tool.display().to_string(),
        module: built.obd_module().display().to_string(),
    };
    let tools = Tools {
        fio: "fio".to_owned(),
        db_bench: String::new(),
    };
    let mut guest = Shared::boot(ctx, &setup, paths.clone(), tools.clone())?;
    let device = guest.calibrate(options.device)?;
    bar.finish_and_clear();
    ctx.ui.say(device.describe());
    let (samples, complete) = if options.instructions {
        (Vec::new(), true)
    } else {
        measure(ctx, &mut guest, &workloads, options)?
    };
    if samples.is_empty() && !complete {
        return Err(interrupted());
    }
    let provenance = Provenance {
        aios: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args().collect(),
        date,
        seconds: start.elapsed().as_secs_f64(),
        seed: options.seed,
        pairs: options.pairs,
        quick: options.quick,
        file_mib: sizing.file_mib,
        image_bytes: sizes(&images)?,
        machine: machine::describe(),
        tools: machine::versions(&[
            machine::FIO,
            machine::MKE2FS,
            machine::MKFS_EROFS,
            machine::MKSQUASHFS,
            machine::QEMU,
        ]),
        kernel: Kernel {
            name: "patched".to_owned(),
            release: guest.release()?,
            build: Some(built.id.clone()),
            image_sha256: Some(machine::sha256(&built.bzimage)?),
        },
        device,
        qemu: guest.qemu_line().to_owned(),
        kvm: guest.is_kvm(),
    };
    let mut instructions = Vec::new();
    if complete {
        // A fault in the log makes the numbers worthless.
        guest.shutdown()?;
        let names = workloads.iter().map(|workload| workload.name.as_str());
        instructions = count::count(
            ctx,
            &setup,
            &built.system_map,
            |setup| Shared::boot(ctx, setup, paths, tools),
            &count::of(names),
        )?;
    }
    let results = Results::new(samples, instructions, provenance, complete);
    let json = report::to_json(&results)?;
    let text = results::table(&results, false);
    files::write_whole(&output.path().join("obd.txt"), &text)?;
    files::write_whole(&output.path().join("obd.md"), page::markdown(&results))?;
    files::write_whole(&output.path().join("obd.html"), page::html(&results))?;
    // Last: whoever finds it finds the others.
    files::write_whole(&output.path().join("obd.json"), &json)?;
    output.keep();
    report::print(&match options.json {
        true => json,
        false => results::table(&results, ctx.ui.colour()),
    })?;
    output.announce(ctx, results.provenance.seconds, "obd.html");
    Ok(if results.complete { 0 } else { 130 })
}

/// The workloads that `only` names, or all.
fn select(only: &[String]) -> Result<Vec<Workload>> {
    let job = |access, block_kib, threads| {
        Workload::new(Kind::Fio(Job {
            access,
            block_kib,
            mode: Mode::Buffered,
            depth: 1,
            threads,
        }))
    };
    let all = vec![
        job(Access::RandRead, 4, 1),
        // Readers instead of a queue: the page cache has none.
        job(Access::RandRead, 4, 32),
        job(Access::SeqRead, 128, 1),
    ];
    workload::chosen(all, only, false)
}

fn setup_of<'a>(
    options: &Options<'_>,
    kernel: &'a Path,
    images: &'a Images,
    logs: PathBuf,
    sizing: Sizing,
) -> Setup<'a> {
    Setup {
        kernel,
        images,
        cpus: options.cpus,
        iommu: options.iommu,
        accel: options.accel,
        logs,
        sizing,
        counting: None,
    }
}

/// All rounds, or as many as there are until Ctrl-C; whether all.
fn measure(
    ctx: &Context,
    guest: &mut Shared,
    workloads: &[Workload],
    options: &Options<'_>,
) -> Result<(Vec<Sample>, bool)> {
    let steps = (options.pairs + 1) as usize * Contender::ALL.len();
    let bar = ctx.ui.bar("measuring", steps as u64);
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut samples = Vec::new();
    // The first round fetches the programs and the modules, and is not kept.
    for round in 0..=options.pairs {
        let mut order = Contender::ALL;
        random.shuffle(&mut order);
        let seed = random.u64(..);
        for contender in order {
            bar.set_prefix(contender.name());
            let measured = guest.measure(contender, workloads, seed);
            bar.inc(1);
            let measured = match measured {
                // What is being measured then may fail for that reason.
                _ if interrupt::check().is_err() => return Ok((samples, false)),
                measured => measured?,
            };
            let Some(pair) = round.checked_sub(1) else {
                continue;
            };
            for (workload, measured) in workloads.iter().zip(&measured) {
                samples.push(Sample::new(&workload.name, contender, pair, measured));
            }
        }
    }
    bar.finish_and_clear();
    Ok((samples, true))
}

fn sizes(images: &Images) -> Result<Vec<u64>> {
    images
        .drives
        .iter()
        .map(|image| Ok(fs::metadata(image).at("look at", image)?.len()))
        .collect()
}

/// Prints what would run.
fn dry_run(ctx: &Context, options: &Options<'_>, sizing: Sizing) -> Result<u8> {
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, options.source)?;
    let images = images::find_or_make(ctx, sizing.file_mib, Path::new("obd"))?;
    let setup = setup_of(
        options,
        &built.bzimage,
        &images,
        PathBuf::from("OUT/guest"),
        sizing,
    );
    println!("{}", guest::dry_line(ctx, &setup)?);
    let paths = Paths {
        tool: "obd".to_owned(),
        module: "obd.ko".to_owned(),
    };
    for contender in Contender::ALL {
        println!("# {}", contender.name());
        print!("{}", contender.mount_script(&paths));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_select_names_are_the_documented_ones() {
        let names: Vec<String> = select(&[])
            .unwrap()
            .into_iter()
            .map(|workload| workload.name)
            .collect();
        assert_eq!(
            names,
            [
                "fio/randread-4k-buffered-qd1",
                "fio/randread-4k-buffered-t32",
                "fio/seqread-128k-buffered-qd1"
            ]
        );
        assert_eq!(select(&["t32".to_owned()]).unwrap().len(), 1);
        assert!(select(&["fsync".to_owned()]).is_err());
    }
}
