// SPDX-License-Identifier: MIT
//! `aios profile`: kernel instructions per operation, by function, layer and
//! phase, on native, patched-but-off and async.
//!
//! Every operation runs between marks in the guest's workload; what counts and
//! what is left out is in the plugin's documentation (`aios-insn-plugin`). The
//! guest has one CPU. Each repeat boots its guests afresh.

mod layers;
mod measure;
pub(crate) mod plugin;
mod schema;
mod svg;
mod table;
mod workload;

use crate::boot::Switch;
use crate::context::Context;
use crate::device::image;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::files;
use crate::guest::{
    self,
    Iommu, //
};
use crate::kernel::{
    self,
    BuildId,
    Flavour,
    Variant, //
};
use crate::process::Tool;
use crate::setup::{
    self,
    Need, //
};
use crate::stack::{
    Stack,
    Wait, //
};
use aios_insn_plugin::report::Report;
use layers::Layers;
pub(crate) use measure::LATENCY_NS;
use measure::{
    Kernel,
    Setup, //
};
use schema::{
    Profile,
    Provenance,
    StackProfile, //
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
pub(crate) use table::grouped;
use workload::Workload;

/// Options of `aios profile`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What to run.
    #[arg(long, value_enum, default_value_t = Workload::RandreadBuffered)]
    workload: Workload,
    /// Operations on each stack [default: 4000 reads, 1000 syncs].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    ops: Option<u32>,
    /// Stacks, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "native,off,async"
    )]
    stacks: Vec<Stack>,
    /// Repeats, each with freshly booted guests.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Functions to show; those that differ most come first.
    #[arg(long, default_value_t = 25)]
    top: usize,
    /// Print JSON (schema 1) instead of the table.
    #[arg(long)]
    json: bool,
    /// Folder for profile.json, profile.svg, profile.txt and the guests' logs.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How the IOMMU treats the drive.
    #[arg(long, value_enum, default_value_t = Iommu::Lazy)]
    iommu: Iommu,
    /// Kernel command line of the patched kernel; may be repeated.
    #[arg(long, value_name = "WORDS", default_value = "nvme.lbio_queues=1")]
    append: Vec<String>,
    /// How the async stack waits for the drive.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Wait::Spin)]
    wait: Wait,
    /// Let the async stack write around the block layer what fsync waits for.
    #[arg(long)]
    lbio_writes: bool,
    /// Give the file system fast commits.
    #[arg(long)]
    fast_commits: bool,
    /// Whether the guest takes the drive's write cache for volatile.
    #[arg(long, value_enum, default_value = "on")]
    write_cache: Switch,
    /// Seed of the random offsets.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A kernel tarball or tree instead of the pinned package.
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Folder of an unpatched kernel that is built already (O=), instead of building one.
    #[arg(long, value_name = "DIR")]
    kernel_native: Option<PathBuf>,
    /// Folder of a patched kernel that is built already (O=), instead of building one.
    #[arg(long, value_name = "DIR")]
    kernel_patched: Option<PathBuf>,
}

/// Runs `aios profile`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    let stacks = chosen(&args.stacks);
    let ops = args.ops.unwrap_or(args.workload.default_ops());
    check_size(args.workload, ops)?;
    let out = match &args.out {
        Some(out) if !ctx.dry_run => Some(prepare_out(out)?),
        _ => None,
    };
    setup::ensure(ctx, &[Need::Boot, Need::Workloads])?;
    let kernels = kernels(ctx, args, &stacks)?;
    let plugin = plugin::build(ctx)?;
    // Built now, so that no guest has to wait for it.
    guest::init_binary(ctx)?;
    let image = image::find_or_make(ctx)?;
    let logs = match &out {
        Some(out) => out.clone(),
        None if ctx.dry_run => ctx.cache().join("profile"),
        None => ctx.cache_dir("profile")?,
    };
    let setup = Setup {
        plugin: &plugin,
        image: &image,
        iommu: args.iommu,
        workload: args.workload,
        ops,
        seed: args.seed,
        append: &args.append,
        wait: args.wait,
        lbio_writes: args.lbio_writes,
        fast_commits: args.fast_commits,
        write_cache: args.write_cache == Switch::On,
        logs: &logs,
    };

    let mut reports: BTreeMap<Stack, Vec<Report>> = BTreeMap::new();
    let mut qemu_lines = BTreeMap::new();
    let steps = u64::from(args.repeat) * stacks.len() as u64;
    let bar = ctx.ui.bar("counting instructions", steps);
    for _ in 0..args.repeat {
        for ready in &kernels {
            let counted = measure::count(ctx, &setup, &ready.kernel, &ready.stacks, &bar)?;
            for (stack, report) in counted.reports {
                reports.entry(stack).or_default().push(report);
                qemu_lines.insert(stack, counted.qemu_line.clone());
            }
        }
    }
    bar.finish_and_clear();
    if ctx.dry_run {
        return Ok(0);
    }

    let mut profiles = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for ready in &kernels {
        let map = &ready.kernel.system_map;
        let text = fs::read_to_string(map).at("read", map)?;
        let layers = Layers::read(&ready.objects, &text)?;
        for &stack in &ready.stacks {
            let of_stack = reports.get(&stack).map_or(&[][..], Vec::as_slice);
            let profile = StackProfile::new(of_stack, &layers)
                .ok_or_else(|| Error::new(format!("nothing was counted on {}", stack.name())))?;
            profiles.insert(stack, profile);
            ids.extend(ready.id.clone().map(|id| (stack, id)));
        }
    }
    let provenance = Provenance {
        aios: env!("CARGO_PKG_VERSION").to_owned(),
        qemu: qemu_version()?,
        qemu_lines,
        kernels: ids,
        ops,
        warmup: measure::WARMUP,
        seed: args.seed,
        latency_ns: LATENCY_NS,
    };
    let profile = Profile::new(args.workload.name(), profiles, provenance);
    let json = serde_json::to_string_pretty(&profile)
        .map_err(|error| Error::new(format!("cannot write the profile as JSON: {error}")))?;
    let text = table::table(&profile, args.top);
    if let Some(out) = &out {
        files::write_whole(&out.join("profile.json"), &json)?;
        files::write_whole(&out.join("profile.txt"), &text)?;
        files::write_whole(&out.join("profile.svg"), svg::draw(&profile))?;
        ctx.ui.say(format!(
            "profile.json, .txt and .svg are in {}",
            out.display()
        ));
    }
    if args.json {
        println!("{json}");
    } else {
        print!("{text}");
    }
    Ok(0)
}

/// The stacks asked for, each once, in the order they are shown.
fn chosen(asked: &[Stack]) -> Vec<Stack> {
    let is_asked = |stack: &Stack| asked.contains(stack);
    Stack::ALL.into_iter().filter(is_asked).collect()
}

/// Every operation needs a block of its own.
fn check_size(workload: Workload, ops: u32) -> Result<()> {
    let most = image::FILE_SIZE / workload.block_size() - u64::from(measure::WARMUP);
    if u64::from(ops) <= most {
        return Ok(());
    }
    Err(Error::new(format!(
        "--ops {ops} is more than the drive's file has blocks for"
    ))
    .hint(format!("choose {most} at most")))
}

/// Makes the output folder and proves that it can be written to.
fn prepare_out(out: &Path) -> Result<PathBuf> {
    let out = std::path::absolute(out).at("resolve", out)?;
    files::check_writable(&out)?;
    Ok(out)
}

/// A kernel with the stacks that are profiled on it.
#[derive(Debug)]
struct Ready {
    kernel: Kernel,
    /// The build tree, for the functions' layers.
    objects: PathBuf,
    id: Option<BuildId>,
    stacks: Vec<Stack>,
}

/// Builds or finds the kernels that `stacks` need.
fn kernels(ctx: &Context, args: &Args, stacks: &[Stack]) -> Result<Vec<Ready>> {
    let mut ready = Vec::new();
    for (flavour, given) in [
        (Flavour::Native, &args.kernel_native),
        (Flavour::Patched, &args.kernel_patched),
    ] {
        let of_flavour = |stack: &Stack| stack.flavour() == flavour;
        let stacks: Vec<Stack> = stacks.iter().copied().filter(of_flavour).collect();
        if stacks.is_empty() {
            continue;
        }
        ready.push(match given {
            Some(dir) => given_kernel(dir, stacks)?,
            None => {
                let built = kernel::build(ctx, flavour, Variant::Bench, args.source.as_deref())?;
                let objects = built.vmlinux.parent().unwrap_or(Path::new("/"));
                Ready {
                    objects: objects.to_owned(),
                    kernel: Kernel {
                        bzimage: built.bzimage,
                        system_map: built.system_map,
                    },
                    id: Some(built.id),
                    stacks,
                }
            }
        });
    }
    Ok(ready)
}

/// A kernel that the user built in `dir`.
fn given_kernel(dir: &Path, stacks: Vec<Stack>) -> Result<Ready> {
    let dir = std::path::absolute(dir).at("resolve", dir)?;
    let kernel = Kernel {
        bzimage: dir.join("arch/x86/boot/bzImage"),
        system_map: dir.join("System.map"),
    };
    for file in [&kernel.bzimage, &kernel.system_map] {
        if !file.is_file() {
            return Err(Error::new(format!("{} is missing", file.display()))
                .hint("give the folder of a finished kernel build (O=)"));
        }
    }
    Ok(Ready {
        kernel,
        objects: dir,
        id: None,
        stacks,
    })
}

fn qemu_version() -> Result<String> {
    let text = Tool::new("qemu-system-x86_64").arg("--version").text()?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
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
        let words = std::iter::once("profile").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args)
    }

    #[test]
    fn test_args_default_to_the_buffered_read_on_all_stacks() {
        let args = parse("").unwrap();
        assert_eq!(args.workload, Workload::RandreadBuffered);
        assert_eq!(chosen(&args.stacks), Stack::ALL);
        assert_eq!(args.iommu, Iommu::Lazy);
    }

    #[test]
    fn test_args_stacks_are_put_in_order_once() {
        let args = parse("--stacks async,native,async").unwrap();
        assert_eq!(chosen(&args.stacks), [Stack::Native, Stack::Async]);
    }

    #[test]
    fn test_args_nonsense_returns_error() {
        for line in ["--stacks fast", "--workload dance", "--ops 0", "--repeat 0"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn test_check_size_too_many_operations_says_how_many() {
        check_size(Workload::RandreadBuffered, 4000).unwrap();
        let error = check_size(Workload::Randread16Buffered, 8000).unwrap_err();
        assert!(error.to_string().contains("at most"), "{error}");
    }

    #[test]
    fn test_given_kernel_without_build_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let error = given_kernel(dir.path(), vec![Stack::Native]).unwrap_err();
        assert!(error.what().contains("bzImage is missing"), "{error}");
    }
}
