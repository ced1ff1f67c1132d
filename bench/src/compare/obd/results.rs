// SPDX-License-Identifier: MIT
//! `obd.json`, schema 1 (described in `bench/obd-schema.md`), and the table.

use super::contender::Contender;
use crate::compare::sample::Measured;
use crate::device::Calibration;
use crate::profile::grouped;
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
use serde::{
    Deserialize,
    Serialize, //
};

/// What is compared: the rest follows from the samples.
const METRICS: [Metric; 2] = [Metric::LatMeanNs, Metric::Iops];

/// One run of one workload on one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// `fio/randread-4k-buffered-qd1`.
    pub(crate) workload: String,
    /// What was read.
    pub(crate) contender: Contender,
    /// Number of the round: in each every contender is measured once.
    pub(crate) pair: u32,
    /// Operations.
    pub(crate) ops: u64,
    /// Mean latency, ns.
    pub(crate) lat_mean_ns: f64,
    /// Percentiles of the latency, ns.
    pub(crate) lat_p50_ns: f64,
    /// 99th percentile, ns.
    pub(crate) lat_p99_ns: f64,
    /// Operations per second.
    pub(crate) iops: f64,
}

impl Sample {
    /// Of what was measured.
    pub(super) fn new(workload: &str, contender: Contender, pair: u32, got: &Measured) -> Self {
        // There is at least one latency.
        let percentile = |p| got.bins.percentile(p).unwrap_or_default() as f64;
        Self {
            workload: workload.to_owned(),
            contender,
            pair,
            ops: got.bins.total(),
            lat_mean_ns: got.mean_ns,
            lat_p50_ns: percentile(0.5),
            lat_p99_ns: percentile(0.99),
            iops: got.iops,
        }
    }

    fn value(&self, metric: Metric) -> f64 {
        match metric {
            Metric::LatMeanNs => self.lat_mean_ns,
            Metric::LatP50Ns => self.lat_p50_ns,
            Metric::LatP99Ns | Metric::LatP999Ns => self.lat_p99_ns,
            Metric::Iops => self.iops,
        }
    }
}

/// The driver against one other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// `fio/randread-4k-buffered-qd1`.
    pub(crate) workload: String,
    /// What is compared.
    pub(crate) metric: Metric,
    /// What the driver is compared with.
    pub(crate) peer: Contender,
    /// Geometric mean of the driver's samples.
    pub(crate) obd: f64,
    /// The same of the peer's.
    pub(crate) other: f64,
    /// Pairs that the rest rests on.
    pub(crate) pairs: usize,
    /// Driver to peer, per cent.
    pub(crate) delta_pct: f64,
    /// Lower end of its 95 % confidence interval.
    pub(crate) ci_low_pct: Option<f64>,
    /// Upper end.
    pub(crate) ci_high_pct: Option<f64>,
    /// What it means for the driver.
    pub(crate) verdict: Verdict,
}

/// Instructions of one kernel function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Function {
    /// Its name; `[unknown]` for all modules together.
    pub(crate) name: String,
    /// Per read.
    pub(crate) insns: f64,
}

/// All that a CPU executes for a read on one contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instructions {
    /// `fio/randread-4k-buffered-qd1`.
    pub(crate) workload: String,
    /// What was read.
    pub(crate) contender: Contender,
    /// Reads.
    pub(crate) ops: u32,
    /// The kernel's, per read.
    pub(crate) kernel: f64,
    /// The reader's and, if there is one, the server's, per read.
    pub(crate) programs: f64,
    /// The kernel's functions, those with most first.
    pub(crate) functions: Vec<Function>,
}

impl Instructions {
    /// Of the kernel and of programs.
    pub(super) fn total(&self) -> f64 {
        self.kernel + self.programs
    }

    /// The driver to this, per cent, by what `all` have; none of the driver itself.
    pub(super) fn delta_pct(&self, all: &[Self]) -> Option<f64> {
        let obd = all
            .iter()
            .find(|obd| obd.workload == self.workload && obd.contender == Contender::Obd)
            .filter(|obd| obd.contender != self.contender)?;
        Some((obd.total() / self.total() - 1.0) * 100.0)
    }
}

/// What a repetition needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// Version of the harness.
    pub(crate) aios: String,
    /// Its command line.
    pub(crate) command: Vec<String>,
    /// Start, UTC, RFC 3339.
    pub(crate) date: String,
    /// Duration without builds, seconds.
    pub(crate) seconds: f64,
    /// Of the order and the offsets.
    pub(crate) seed: u64,
    /// Rounds.
    pub(crate) pairs: u32,
    /// Whether `--quick` was given.
    pub(crate) quick: bool,
    /// Size of the file that is read, MiB.
    pub(crate) file_mib: u64,
    /// Sizes of the images in bytes, in the order of the drives.
    pub(crate) image_bytes: Vec<u64>,
    /// This machine.
    pub(crate) machine: Machine,
    /// Tools and their versions.
    pub(crate) tools: Vec<Tool>,
    /// The patched kernel.
    pub(crate) kernel: Kernel,
    /// The speed of all drives.
    pub(crate) device: Calibration,
    /// QEMU's command line.
    pub(crate) qemu: String,
    /// Whether KVM ran the guest.
    pub(crate) kvm: bool,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// 1.
    pub(crate) schema: u32,
    /// False when the run was interrupted.
    pub(crate) complete: bool,
    /// Workloads by metrics by peers.
    pub(crate) deltas: Vec<Delta>,
    /// Every measurement, in the order made.
    pub(crate) samples: Vec<Sample>,
    /// Workloads by contenders; empty when the run was interrupted.
    pub(crate) instructions: Vec<Instructions>,
    /// What a repetition needs.
    pub(crate) provenance: Provenance,
}

impl Results {
    /// Of the samples.
    pub(super) fn new(
        samples: Vec<Sample>,
        instructions: Vec<Instructions>,
        provenance: Provenance,
        complete: bool,
    ) -> Self {
        Self {
            schema: 1,
            complete,
            deltas: deltas(&samples),
            samples,
            instructions,
            provenance,
        }
    }
}

/// The driver against each other contender, for each workload and metric.
fn deltas(samples: &[Sample]) -> Vec<Delta> {
    let mut workloads: Vec<&str> = Vec::new();
    for sample in samples {
        if !workloads.contains(&sample.workload.as_str()) {
            workloads.push(&sample.workload);
        }
    }
    let mut found = Vec::new();
    for workload in workloads {
        for metric in METRICS {
            for peer in Contender::ALL.into_iter().skip(1) {
                found.extend(delta(samples, workload, metric, peer));
            }
        }
    }
    found
}

fn delta(samples: &[Sample], workload: &str, metric: Metric, peer: Contender) -> Option<Delta> {
    let of = |contender: Contender| {
        samples
            .iter()
            .filter(move |one| one.workload == workload && one.contender == contender)
    };
    let pairs: Vec<(f64, f64)> = of(peer)
        .filter_map(|base| {
            let new = of(Contender::Obd).find(|new| new.pair == base.pair)?;
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
        peer,
        obd: mean(Contender::Obd)?,
        other: mean(peer)?,
        pairs: pairs.len(),
        delta_pct: estimate.delta_pct,
        ci_low_pct: estimate.interval_pct.map(|(low, _)| low),
        ci_high_pct: estimate.interval_pct.map(|(_, high)| high),
        verdict: metric.verdict(&estimate),
    })
}

/// One line per workload, metric and peer; then one per workload and contender.
pub(super) fn table(results: &Results, colour: bool) -> String {
    let mut text = String::new();
    if !results.deltas.is_empty() {
        text = times(results, colour);
    }
    if !results.instructions.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&instructions(&results.instructions));
    }
    text
}

fn instructions(all: &[Instructions]) -> String {
    let header = [
        "workload",
        "contender",
        "kernel",
        "programs",
        "instructions per read",
        "obd Δ",
    ]
    .map(|name| (name.to_owned(), None));
    let mut rows = vec![header];
    for row in all {
        let delta = row.delta_pct(all);
        rows.push(
            [
                printable(&row.workload),
                row.contender.name().to_owned(),
                grouped(row.kernel),
                grouped(row.programs),
                grouped(row.total()),
                delta.map_or_else(String::new, |delta| text::percent(Some(delta))),
            ]
            .map(|cell| (cell, None)),
        );
    }
    aligned(&rows, false)
}

fn times(results: &Results, colour: bool) -> String {
    let header = [
        "workload",
        "against",
        "metric",
        "obd",
        "other",
        "obd Δ",
        "95 % interval",
        "verdict",
    ]
    .map(|name| (name.to_owned(), None));
    let mut rows = vec![header];
    for row in &results.deltas {
        rows.push([
            (printable(&row.workload), None),
            (row.peer.name().to_owned(), None),
            (row.metric.label().to_owned(), None),
            (row.metric.show(row.obd), None),
            (row.metric.show(row.other), None),
            (text::percent(Some(row.delta_pct)), None),
            (text::interval(row.ci_low_pct, row.ci_high_pct), None),
            (row.verdict.to_string(), Some(row.verdict)),
        ]);
    }
    aligned(&rows, colour)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::example;

    /// Made-up results of two workloads, with text that must be escaped.
    pub(in super::super) fn results() -> Results {
        let whole = example::provenance();
        let guest = whole.guest.unwrap();
        let provenance = Provenance {
            aios: whole.aios,
            command: whole.command,
            date: whole.date,
            seconds: whole.seconds,
            seed: whole.seed,
            pairs: whole.pairs,
            quick: whole.quick,
            file_mib: 256,
            image_bytes: vec![1 << 28, 1 << 27, 1 << 27, 1 << 27],
            machine: whole.machine,
            tools: whole.tools,
            kernel: whole.kernels[1].clone(),
            device: guest.device,
            qemu: guest.qemu[0].clone(),
            kvm: guest.kvm,
        };
        let mut samples = Vec::new();
        let mut instructions = Vec::new();
        for workload in ["fio/x", "fio/<b>a|b"] {
            for (at, contender) in (0_u32..).zip(Contender::ALL) {
                for pair in 0..5 {
                    let drift = 1.0 + f64::from(pair * 7 % 5) / 50.0;
                    let mut one = sample(contender, pair, 1e5 * drift * f64::from(10 + at));
                    one.workload = workload.to_owned();
                    samples.push(one);
                }
                instructions.push(Instructions {
                    workload: workload.to_owned(),
                    contender,
                    ops: 100,
                    kernel: 15_000.0 + f64::from(at) * 1e3,
                    programs: 2_000.0,
                    functions: Vec::new(),
                });
            }
        }
        Results::new(samples, instructions, provenance, true)
    }

    fn sample(contender: Contender, pair: u32, lat_mean_ns: f64) -> Sample {
        Sample {
            workload: "fio/x".to_owned(),
            contender,
            pair,
            ops: 1,
            lat_mean_ns,
            lat_p50_ns: lat_mean_ns,
            lat_p99_ns: lat_mean_ns,
            iops: 1e9 / lat_mean_ns,
        }
    }

    #[test]
    fn test_deltas_compare_within_rounds() {
        let mut samples = Vec::new();
        for (pair, drift) in (0..5).zip([1.0, 2.0, 3.0, 5.0, 8.0]) {
            samples.push(sample(Contender::Ublk, pair, 200.0 * drift));
            samples.push(sample(Contender::Obd, pair, 100.0 * drift));
        }
        let found = deltas(&samples);
        // The others were not measured.
        assert_eq!(found.len(), METRICS.len());
        assert!((found[0].delta_pct + 50.0).abs() < 1e-9, "{found:?}");
        assert!((found[1].delta_pct - 100.0).abs() < 1e-9, "{found:?}");
        assert!(found.iter().all(|row| row.verdict == Verdict::Better));
    }

    #[test]
    fn test_deltas_a_round_without_the_driver_is_left_out() {
        let samples = [
            sample(Contender::Bare, 0, 100.0),
            sample(Contender::Obd, 0, 150.0),
            sample(Contender::Bare, 1, 900.0),
        ];
        let found = deltas(&samples);
        assert_eq!(found[0].pairs, 1);
        assert_eq!(found[0].verdict, Verdict::TooFewPairs);
    }
}
