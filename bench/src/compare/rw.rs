// SPDX-License-Identifier: MIT
//! `aios compare --suite rw`: writes and fsyncs of ext4 on a read-write disk, whose layers
//! are on ext4 on a drive, against ext4 on a drive as fast.
//!
//! Both are in one guest, mounted for the whole run, and take turns, in an order shuffled
//! in each round. What reaches the drives is counted there.

use super::emulated::MEMORY_MIB;
use super::fio;
use super::machine;
use super::output::Output;
use super::sample::Measured;
use super::schedule::interrupted;
use super::script::{
    self,
    Tools, //
};
use super::workload::{
    self,
    Sizing,
    Workload, //
};
use crate::context::Context;
use crate::device::{
    self,
    Calibration,
    Counters,
    Model,
    Server, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::files;
use crate::guest::{
    Accel,
    Backend,
    BootConfig,
    Drive,
    Guest,
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
use crate::report::schema::{
    Kernel,
    Machine,
    Metric,
    Tool,
    Verdict, //
};
use crate::report::stats;
use crate::report::table::{
    aligned,
    printable, //
};
use crate::report::text;
use crate::setup::{
    self,
    Need, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs::File;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Size of each drive, and of the disk.
const DRIVE_MIB: u64 = 512;
const DISK_MIB: u64 = 160;
/// Size of the file that is overwritten, of which each thread has its part.
const FILE_MIB: u64 = 64;
/// Threads that write and sync.
const THREADS: [u32; 3] = [1, 4, 16];
/// What is compared: the rest follows from the samples.
const METRICS: [Metric; 2] = [Metric::Iops, Metric::LatMeanNs];
/// What anything in the guest may take beyond its own time.
const GRACE: Duration = Duration::from_secs(180);

/// What of `aios compare`'s options means something here.
#[derive(Debug)]
pub(super) struct Options<'a> {
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

/// What is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Contender {
    /// ext4 on the read-write disk.
    Rw,
    /// ext4 on the drive.
    Bare,
}

impl Contender {
    const ALL: [Self; 2] = [Self::Rw, Self::Bare];

    fn name(self) -> &'static str {
        match self {
            Self::Rw => "rw",
            Self::Bare => "bare",
        }
    }

    /// Where it is mounted in the guest.
    fn mount(self) -> &'static str {
        match self {
            Self::Rw => "/run/rw",
            Self::Bare => "/run/bare",
        }
    }

    /// Which of the drives it ends on.
    fn drive(self) -> usize {
        match self {
            Self::Bare => 0,
            Self::Rw => 1,
        }
    }
}

/// One run of one workload on one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sample {
    workload: String,
    contender: Contender,
    pair: u32,
    ops: u64,
    lat_mean_ns: f64,
    lat_p50_ns: f64,
    lat_p99_ns: f64,
    iops: f64,
    writes_per_op: f64,
    flushes_per_op: f64,
    bytes_per_op: f64,
}

impl Sample {
    fn new(
        workload: &str,
        contender: Contender,
        pair: u32,
        got: &Measured,
        served: &Served,
    ) -> Self {
        // There is at least one latency.
        let percentile = |p| got.bins.percentile(p).unwrap_or_default() as f64;
        let ops = got.bins.total();
        let each = |count: u64| count as f64 / ops as f64;
        Self {
            workload: workload.to_owned(),
            contender,
            pair,
            ops,
            lat_mean_ns: got.mean_ns,
            lat_p50_ns: percentile(0.5),
            lat_p99_ns: percentile(0.99),
            iops: got.iops,
            writes_per_op: each(served.writes),
            flushes_per_op: each(served.flushes),
            bytes_per_op: each(served.bytes),
        }
    }

    fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Iops => self.iops,
            _ => self.lat_mean_ns,
        }
    }
}

/// What reached a drive during a run.
#[derive(Debug, Clone, Copy)]
struct Served {
    writes: u64,
    flushes: u64,
    bytes: u64,
}

impl Served {
    fn between(before: &Counters, after: &Counters) -> Self {
        Self {
            writes: after.writes - before.writes,
            flushes: after.flushes - before.flushes,
            bytes: after.written_bytes - before.written_bytes,
        }
    }
}

/// The disk against the drive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Delta {
    workload: String,
    metric: Metric,
    rw: f64,
    bare: f64,
    pairs: usize,
    delta_pct: f64,
    ci_low_pct: Option<f64>,
    ci_high_pct: Option<f64>,
    verdict: Verdict,
}

/// What a repetition needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Provenance {
    aios: String,
    command: Vec<String>,
    date: String,
    seconds: f64,
    seed: u64,
    pairs: u32,
    quick: bool,
    machine: Machine,
    tools: Vec<Tool>,
    kernel: Kernel,
    device: Calibration,
    qemu: String,
    kvm: bool,
}

/// `rw.json`, schema 1, described in `bench/rw-schema.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Results {
    schema: u32,
    complete: bool,
    deltas: Vec<Delta>,
    samples: Vec<Sample>,
    provenance: Provenance,
}

/// Runs `aios compare --suite rw`.
pub(super) fn run(ctx: &Context, options: &Options<'_>) -> Result<u8> {
    let workloads = select(options.only)?;
    if options.list {
        for workload in workloads {
            println!("{}", workload.name);
        }
        return Ok(0);
    }
    let sizing = Sizing {
        runtime: Duration::from_millis(if options.quick { 1000 } else { 3000 }),
        file_mib: FILE_MIB,
        keys: 0,
    };
    if ctx.dry_run {
        return dry_run(ctx, options);
    }
    interrupt::watch();
    let mut output = Output::prepare(options.out)?;
    setup::ensure(ctx, &[Need::Boot, Need::Workloads])?;
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, options.source)?;
    // Built now, so that the guest does not have to wait for it.
    init_binary(ctx)?;
    let tool = obd_tool::build(ctx, None)?;
    interrupt::check()?;
    let start = Instant::now();
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let bar = ctx
        .ui
        .spinner("booting the guest and calibrating the drives");
    let module = built.obd_module();
    let logs = output.path().join("guest");
    let mut shared = Shared::boot(ctx, options, &built.bzimage, &logs, sizing)?;
    shared.prepare(&tool, &module)?;
    let device = shared.calibrate(options.device)?;
    bar.finish_and_clear();
    ctx.ui.say(device.describe());
    let (samples, complete) = measure(ctx, &mut shared, &workloads, options)?;
    if samples.is_empty() {
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
        machine: machine::describe(),
        tools: machine::versions(&[machine::FIO, machine::MKE2FS, machine::QEMU]),
        kernel: Kernel {
            name: "patched".to_owned(),
            release: shared.guest.sh("uname -r", GRACE)?.trim().to_owned(),
            build: Some(built.id.clone()),
            image_sha256: Some(machine::sha256(&built.bzimage)?),
        },
        device,
        qemu: shared.guest.qemu_line().to_owned(),
        kvm: shared.guest.is_kvm(),
    };
    if complete {
        // A fault in the log makes the numbers worthless.
        shared.end()?;
    }
    let results = Results {
        schema: 1,
        complete,
        deltas: deltas(&samples),
        samples,
        provenance,
    };
    let json = report::to_json(&results)?;
    files::write_whole(&output.path().join("rw.txt"), table(&results, false))?;
    // Last: whoever finds it finds the other.
    files::write_whole(&output.path().join("rw.json"), &json)?;
    output.keep();
    report::print(&match options.json {
        true => json,
        false => table(&results, ctx.ui.colour()),
    })?;
    output.announce(ctx, results.provenance.seconds, "rw.txt");
    Ok(if results.complete { 0 } else { 130 })
}

/// The workloads that `only` names, or all.
fn select(only: &[String]) -> Result<Vec<Workload>> {
    workload::chosen(THREADS.map(workload::fsyncs_by).into(), only, false)
}

/// The guest, and its drives.
#[derive(Debug)]
struct Shared {
    guest: Guest,
    servers: Vec<Server>,
    sizing: Sizing,
    /// Sockets of the drives.
    _sockets: tempfile::TempDir,
}

fn boot_config(
    options: &Options<'_>,
    kernel: &Path,
    logs: &Path,
    drives: Vec<PathBuf>,
) -> BootConfig {
    let mut config = BootConfig::new(kernel, "rw", logs);
    config.cpus = options.cpus;
    config.memory_mib = MEMORY_MIB;
    config.iommu = options.iommu;
    config.accel = options.accel;
    config.drives = drives
        .into_iter()
        .map(|drive| Drive::new(Backend::Nbd(drive)))
        .collect();
    config
}

impl Shared {
    fn boot(
        ctx: &Context,
        options: &Options<'_>,
        kernel: &Path,
        logs: &Path,
        sizing: Sizing,
    ) -> Result<Self> {
        let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
        let image = sockets.path().join("blank.img");
        File::create(&image)
            .and_then(|file| file.set_len(DRIVE_MIB << 20))
            .at("create", &image)?;
        let servers: Vec<Server> = ["bare", "rw"]
            .into_iter()
            .map(|name| Server::start(ctx, &image, sockets.path(), name, false))
            .collect::<Result<_>>()?;
        let drives = servers.iter().map(Server::socket).collect();
        let guest = Guest::boot(ctx, &boot_config(options, kernel, logs, drives))?;
        Ok(Self {
            guest,
            servers,
            sizing,
            _sockets: sockets,
        })
    }

    /// Makes both file systems, with the file in each.
    fn prepare(&mut self, tool: &Path, module: &Path) -> Result<()> {
        let script = format!(
            "insmod '{}'; obd='{}'; mkdir -p /run/layers /run/rw /run/bare\n\
             mkfs() {{ mkfs.ext4 -q -F -b 4096 -J size=16 -E lazy_itable_init=0 $1; }}\n\
             for n in 0 1; do mkfs /dev/nvme${{n}}n1; done\n\
             mount /dev/nvme0n1 /run/bare; mount /dev/nvme1n1 /run/layers\n\
             $obd create --rw --size {DISK_MIB}M /run/layers/disk >/dev/null\n\
             dev=$($obd attach --writable --name rw /run/layers/disk)\n\
             mkfs $dev; mount $dev /run/rw\n\
             for dir in /run/bare /run/rw; do\n\
                 dd if=/dev/urandom of=$dir/{} bs=1M count={FILE_MIB} conv=fsync 2>/dev/null\n\
             done\n\
             $obd compact /run/layers/disk >/dev/null\n",
            module.display(),
            tool.display(),
            fio::DATA,
        );
        self.guest.sh(&script, GRACE).map(drop)
    }

    /// Chooses the drives' speed from reads of the bare file system.
    fn calibrate(&mut self, model: Model) -> Result<Calibration> {
        let Self { guest, servers, .. } = self;
        let (bare, others) = servers
            .split_first_mut()
            .ok_or_else(|| Error::new("there is no drive"))?;
        let file = format!("/run/bare/{}", fio::DATA);
        let prepare = "echo 3 > /proc/sys/vm/drop_caches\n";
        let calibration = device::calibrate(model, guest, bare, prepare, &file)?;
        bare.set_latency(&calibration.read, &calibration.write)?;
        for server in others {
            server.set_latency(&calibration.read, &calibration.write)?;
        }
        Ok(calibration)
    }

    /// Runs a workload on a contender.
    fn measure(
        &mut self,
        contender: Contender,
        workload: &Workload,
        seed: u64,
    ) -> Result<(Measured, Served)> {
        let tools = Tools {
            fio: "fio".to_owned(),
            db_bench: String::new(),
        };
        let workloads = std::slice::from_ref(workload);
        // What others have left to be written is not this one's.
        self.guest.sh("sync", GRACE)?;
        let drive = contender.drive();
        let before = self.servers[drive].counters()?;
        let script = script::of(workloads, &tools, None, &self.sizing, seed);
        let script = format!("cd {}\n{script}", contender.mount());
        let output = self.guest.sh(&script, self.sizing.runtime + GRACE)?;
        let after = self.servers[drive].counters()?;
        let measured = script::parse(workloads, &output)?.into_iter().next();
        let measured = measured.ok_or_else(|| Error::new("nothing was measured"))?;
        Ok((measured, Served::between(&before, &after)))
    }

    /// Powers it off and looks through its log.
    fn end(mut self) -> Result<()> {
        self.guest.sh(
            "umount /run/rw /run/bare; echo 0 > /sys/kernel/config/obd/rw/power",
            GRACE,
        )?;
        self.guest.shutdown()
    }
}

/// All rounds, or as many as there are until Ctrl-C; whether all.
fn measure(
    ctx: &Context,
    shared: &mut Shared,
    workloads: &[Workload],
    options: &Options<'_>,
) -> Result<(Vec<Sample>, bool)> {
    let steps = (options.pairs + 1) as usize * workloads.len();
    let bar = ctx.ui.bar("measuring", steps as u64);
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut samples = Vec::new();
    // The first round fetches the programs, and is not kept.
    for round in 0..=options.pairs {
        for workload in workloads {
            let mut order = Contender::ALL;
            random.shuffle(&mut order);
            let seed = random.u64(..);
            for contender in order {
                bar.set_prefix(contender.name());
                let (measured, served) = match shared.measure(contender, workload, seed) {
                    // What is being measured then may fail for that reason.
                    _ if interrupt::check().is_err() => return Ok((samples, false)),
                    measured => measured
                        .map_err(|error| error.context(format!("on {}", contender.name())))?,
                };
                if let Some(pair) = round.checked_sub(1) {
                    let name = &workload.name;
                    samples.push(Sample::new(name, contender, pair, &measured, &served));
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((samples, true))
}

/// The disk against the drive, for each workload and metric.
fn deltas(samples: &[Sample]) -> Vec<Delta> {
    let mut found = Vec::new();
    for workload in names(samples) {
        for metric in METRICS {
            found.extend(delta(samples, workload, metric));
        }
    }
    found
}

fn names(samples: &[Sample]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for sample in samples {
        if !names.contains(&sample.workload.as_str()) {
            names.push(&sample.workload);
        }
    }
    names
}

fn delta(samples: &[Sample], workload: &str, metric: Metric) -> Option<Delta> {
    let of = |contender: Contender| {
        samples
            .iter()
            .filter(move |one| one.workload == workload && one.contender == contender)
    };
    let pairs: Vec<(f64, f64)> = of(Contender::Bare)
        .filter_map(|base| {
            let new = of(Contender::Rw).find(|new| new.pair == base.pair)?;
            Some((base.value(metric), new.value(metric)))
        })
        .collect();
    let estimate = stats::paired(&pairs)?;
    let mean = |contender| {
        let values: Vec<f64> = of(contender).map(|one| one.value(metric)).collect();
        stats::geometric_mean(&values)
    };
    Some(Delta {
        workload: workload.to_owned(),
        metric,
        rw: mean(Contender::Rw)?,
        bare: mean(Contender::Bare)?,
        pairs: pairs.len(),
        delta_pct: estimate.delta_pct,
        ci_low_pct: estimate.interval_pct.map(|(low, _)| low),
        ci_high_pct: estimate.interval_pct.map(|(_, high)| high),
        verdict: metric.verdict(&estimate),
    })
}

/// One line per workload and metric; then what reaches the drives.
fn table(results: &Results, colour: bool) -> String {
    let header = [
        "workload",
        "metric",
        "rw",
        "bare",
        "rw Δ",
        "95 % interval",
        "verdict",
    ];
    let mut rows = vec![header.map(|name| (name.to_owned(), None))];
    for row in &results.deltas {
        rows.push([
            (printable(&row.workload), None),
            (row.metric.label().to_owned(), None),
            (row.metric.show(row.rw), None),
            (row.metric.show(row.bare), None),
            (text::percent(Some(row.delta_pct)), None),
            (text::interval(row.ci_low_pct, row.ci_high_pct), None),
            (row.verdict.to_string(), Some(row.verdict)),
        ]);
    }
    let mut table = aligned(&rows, colour);
    let header = [
        "workload",
        "contender",
        "writes",
        "flushes",
        "KiB per fsync",
    ];
    let mut rows = vec![header.map(|name| (name.to_owned(), None))];
    for workload in names(&results.samples) {
        for contender in Contender::ALL {
            let of = |value: fn(&Sample) -> f64| {
                let all = results.samples.iter();
                let of = all.filter(|one| one.workload == workload && one.contender == contender);
                let values: Vec<f64> = of.map(value).collect();
                values.iter().sum::<f64>() / values.len().max(1) as f64
            };
            rows.push(
                [
                    printable(workload),
                    contender.name().to_owned(),
                    format!("{:.2}", of(|one| one.writes_per_op)),
                    format!("{:.2}", of(|one| one.flushes_per_op)),
                    format!("{:.1}", of(|one| one.bytes_per_op) / 1024.0),
                ]
                .map(|cell| (cell, None)),
            );
        }
    }
    table.push('\n');
    table.push_str(&aligned(&rows, false));
    table
}

/// Prints what would run.
fn dry_run(ctx: &Context, options: &Options<'_>) -> Result<u8> {
    let built = kernel::build(ctx, Flavour::Patched, Variant::Bench, options.source)?;
    let sockets = std::env::temp_dir().join("SOCKETS");
    let drives = ["bare", "rw"].map(|name| sockets.join(format!("{name}.nbd")));
    let logs = Path::new("OUT/guest");
    let config = boot_config(options, &built.bzimage, logs, drives.to_vec());
    println!("{}", Guest::dry_line(ctx, &config)?);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: Contender, pair: u32, iops: f64) -> Sample {
        Sample {
            workload: "fio/x".to_owned(),
            contender,
            pair,
            ops: 1,
            lat_mean_ns: 1e9 / iops,
            lat_p50_ns: 1e9 / iops,
            lat_p99_ns: 1e9 / iops,
            iops,
            writes_per_op: 2.0,
            flushes_per_op: 1.0,
            bytes_per_op: 8192.0,
        }
    }

    #[test]
    fn test_select_names_are_the_documented_ones() {
        let names = |only: &[&str]| -> Vec<String> {
            let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
            let found = select(&only).unwrap().into_iter();
            found.map(|workload| workload.name).collect()
        };
        let all = [
            "fio/overwrite-4k-fsync",
            "fio/overwrite-4k-fsync-t4",
            "fio/overwrite-4k-fsync-t16",
        ];
        assert_eq!(names(&[]), all);
        assert_eq!(names(&["t16"]), all[2..]);
    }

    #[test]
    fn test_deltas_compare_within_rounds() {
        let mut samples = Vec::new();
        for (pair, drift) in (0..5).zip([1.0, 2.0, 3.0, 5.0, 8.0]) {
            samples.push(sample(Contender::Bare, pair, 100.0 * drift));
            samples.push(sample(Contender::Rw, pair, 150.0 * drift));
        }
        let found = deltas(&samples);
        assert_eq!(found.len(), METRICS.len());
        assert!((found[0].delta_pct - 50.0).abs() < 1e-9, "{found:?}");
        assert!(found.iter().all(|row| row.verdict == Verdict::Better));
    }
}
