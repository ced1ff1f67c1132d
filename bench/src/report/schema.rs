// SPDX-License-Identifier: MIT
//! `results.json`, schema 1 (described in `bench/results-schema.md`).

use super::histogram::Histogram;
use super::stats;
use super::stats::Estimate;
use crate::device::Calibration;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::Iommu;
use crate::kernel::BuildId;
use crate::stack::{
    Knob,
    Stack,
    Wait, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::fmt;
use std::fs;
use std::path::Path;

/// The schema written, and the only one read.
pub(crate) const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// False when the run was interrupted: some pairs or workloads are missing.
    pub(crate) complete: bool,
    /// Workloads by metrics, in the order measured.
    pub(crate) deltas: Vec<Delta>,
    /// Every measurement, in the order made.
    pub(crate) samples: Vec<Sample>,
    /// Latencies of all samples of one workload on one stack together.
    pub(crate) histograms: Vec<Latencies>,
    /// What a repetition needs.
    pub(crate) provenance: Provenance,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Mean latency, ns.
    LatMeanNs,
    /// Median latency, ns.
    LatP50Ns,
    /// 99th percentile of the latency, ns.
    LatP99Ns,
    /// 99.9th percentile of the latency, ns.
    LatP999Ns,
    /// Operations per second.
    Iops,
}

impl Metric {
    /// All, in the order of the tables.
    pub(crate) const ALL: [Self; 5] = [
        Self::LatMeanNs,
        Self::LatP50Ns,
        Self::LatP99Ns,
        Self::LatP999Ns,
        Self::Iops,
    ];

    /// Short name for people.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::LatMeanNs => "mean",
            Self::LatP50Ns => "p50",
            Self::LatP99Ns => "p99",
            Self::LatP999Ns => "p99.9",
            Self::Iops => "IOPS",
        }
    }

    /// A value of it for people.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Iops if value < 1e4 => format!("{value:.0}"),
            Self::Iops if value < 1e6 => format!("{:.1}k", value / 1e3),
            Self::Iops => format!("{:.2}M", value / 1e6),
            _ => show_ns(value),
        }
    }

    /// What an estimate means: direction depends on the metric.
    pub(crate) fn verdict(self, estimate: &Estimate) -> Verdict {
        let Some((low, high)) = estimate.interval_pct else {
            return Verdict::TooFewPairs;
        };
        let more_is_better = self == Self::Iops;
        if low > 0.0 {
            if more_is_better {
                Verdict::Better
            } else {
                Verdict::Worse
            }
        } else if high < 0.0 {
            if more_is_better {
                Verdict::Worse
            } else {
                Verdict::Better
            }
        } else {
            Verdict::WithinNoise
        }
    }
}

/// Nanoseconds for people, three to four digits.
pub(crate) fn show_ns(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// The whole interval lies on the good side of zero.
    #[serde(rename = "better")]
    Better,
    /// The whole interval lies on the bad side of zero.
    #[serde(rename = "worse")]
    Worse,
    /// The interval holds zero.
    #[serde(rename = "within noise")]
    WithinNoise,
    /// No interval: fewer than two pairs were measured.
    #[serde(rename = "too few pairs")]
    TooFewPairs,
}

impl Verdict {
    /// All, for counting.
    pub(crate) const ALL: [Self; 4] = [
        Self::Better,
        Self::Worse,
        Self::WithinNoise,
        Self::TooFewPairs,
    ];

    /// As in the schema.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::WithinNoise => "within noise",
            Self::TooFewPairs => "too few pairs",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.label())
    }
}

/// One workload and metric on all stacks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// `fio/randread-4k-buffered-qd1`.
    pub(crate) workload: String,
    /// What is compared.
    pub(crate) metric: Metric,
    /// Geometric mean over the samples on the unpatched kernel; none on a real
    /// machine, which has booted the patched one.
    pub(crate) native: Option<f64>,
    /// The same, patched and switched off.
    pub(crate) off: Option<f64>,
    /// The same, patched and switched on.
    #[serde(rename = "async")]
    pub(crate) on: Option<f64>,
    /// What `delta_pct` is relative to: native, or off where native is none.
    pub(crate) baseline: Stack,
    /// Pairs that `delta_pct` rests on.
    pub(crate) pairs: usize,
    /// Async to baseline, per cent.
    pub(crate) delta_pct: Option<f64>,
    /// Lower end of its 95 % confidence interval.
    pub(crate) ci_low_pct: Option<f64>,
    /// Upper end.
    pub(crate) ci_high_pct: Option<f64>,
    /// What it means.
    pub(crate) verdict: Verdict,
    /// Off to native, per cent; none without native.
    pub(crate) off_delta_pct: Option<f64>,
    /// Lower end of its 95 % confidence interval.
    pub(crate) off_ci_low_pct: Option<f64>,
    /// Upper end.
    pub(crate) off_ci_high_pct: Option<f64>,
    /// What it means; none without native.
    pub(crate) off_verdict: Option<Verdict>,
}

impl Delta {
    /// The value on one stack.
    pub(crate) fn value(&self, stack: Stack) -> Option<f64> {
        match stack {
            Stack::Native => self.native,
            Stack::Off => self.off,
            Stack::Async => self.on,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// The workload's name.
    pub(crate) workload: String,
    /// Which stack it ran on.
    pub(crate) stack: Stack,
    /// Number of the pair it belongs to, from 0.
    pub(crate) pair: u32,
    /// Its place in the whole run, from 0.
    pub(crate) order: u32,
    /// Operations that the latencies are of.
    pub(crate) ops: u64,
    /// Mean latency.
    pub(crate) lat_mean_ns: f64,
    /// Median.
    pub(crate) lat_p50_ns: f64,
    /// 99th percentile.
    pub(crate) lat_p99_ns: f64,
    /// 99.9th percentile.
    pub(crate) lat_p999_ns: f64,
    /// Operations per second.
    pub(crate) iops: f64,
}

impl Sample {
    /// One of its metrics.
    pub(crate) fn metric(&self, metric: Metric) -> f64 {
        match metric {
            Metric::LatMeanNs => self.lat_mean_ns,
            Metric::LatP50Ns => self.lat_p50_ns,
            Metric::LatP99Ns => self.lat_p99_ns,
            Metric::LatP999Ns => self.lat_p999_ns,
            Metric::Iops => self.iops,
        }
    }
}

/// Latencies of one workload on one stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    /// The workload's name.
    pub(crate) workload: String,
    /// Which stack.
    pub(crate) stack: Stack,
    /// Pairs of latency in nanoseconds and count.
    pub(crate) bins: Histogram,
}

/// What a repetition needs, and what the numbers rest on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// Version of this program.
    pub(crate) aios: String,
    /// The command line given.
    pub(crate) command: Vec<String>,
    /// Start of the run, UTC, RFC 3339.
    pub(crate) date: String,
    /// How long it took, in seconds, builds left out.
    pub(crate) seconds: f64,
    /// Orders the stacks and picks the offsets.
    pub(crate) seed: u64,
    /// Pairs asked for.
    pub(crate) pairs: u32,
    /// Whether it was a `--quick` run.
    pub(crate) quick: bool,
    /// The machine this program ran on.
    pub(crate) machine: Machine,
    /// Versions of the tools, by name.
    pub(crate) tools: Vec<Tool>,
    /// The kernels measured.
    pub(crate) kernels: Vec<Kernel>,
    /// The emulated machine; none on a real one.
    pub(crate) guest: Option<GuestInfo>,
    /// The measured target of a real machine; none when emulated.
    pub(crate) host: Option<HostInfo>,
    /// What a reader must know: workloads left out, and why.
    pub(crate) notes: Vec<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Usable processors.
    pub(crate) cpus: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Release of its running kernel.
    pub(crate) kernel: String,
    /// Distribution.
    pub(crate) os: String,
}

/// A tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tool {
    /// Its name.
    pub(crate) name: String,
    /// What it says of its version.
    pub(crate) version: String,
}

/// A kernel under measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// `native` or `patched`.
    pub(crate) name: String,
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// What it was built from; none when the image was given, or is running.
    pub(crate) build: Option<BuildId>,
    /// SHA-256 of the bzImage; none on a real machine.
    pub(crate) image_sha256: Option<String>,
}

/// The emulated machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GuestInfo {
    /// Command lines: native, off, async.
    pub(crate) qemu: Vec<String>,
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// How async waited for the drive.
    #[serde(default)]
    pub(crate) wait: Wait,
    /// Knobs that async had set.
    #[serde(default)]
    pub(crate) knobs: Vec<Knob>,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// Whether KVM ran it; software emulation otherwise.
    pub(crate) kvm: bool,
    /// IOMMU mode.
    pub(crate) iommu: Iommu,
    /// The drive's speed and what it was chosen from.
    pub(crate) device: Calibration,
    /// Key of the drive image: the same key means the same contents.
    pub(crate) image: String,
}

/// The measured target of a real machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostInfo {
    /// As given.
    pub(crate) target: String,
    /// Its file system, source and mount options.
    pub(crate) mount: String,
}

impl Results {
    /// Works out deltas and histograms.
    pub(crate) fn new(
        samples: Vec<Sample>,
        histograms: Vec<Latencies>,
        provenance: Provenance,
        complete: bool,
    ) -> Self {
        let mut deltas = Vec::new();
        for workload in names(samples.iter().map(|sample| sample.workload.as_str())) {
            let of: Vec<&Sample> = samples
                .iter()
                .filter(|sample| sample.workload == workload)
                .collect();
            deltas.extend(Metric::ALL.map(|metric| delta(workload, metric, &of)));
        }
        Self {
            schema: SCHEMA,
            complete,
            deltas,
            samples,
            histograms,
            provenance,
        }
    }

    /// Reads a file, checking the schema.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).at("read", path)?;
        let wrong = |what: String| {
            Error::new(format!("{} is no results.json: {what}", path.display()))
                .hint("give the results.json of an `aios compare` run")
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(schema) => {
                return Err(Error::new(format!(
                    "{} has schema {schema}; this version reads schema {SCHEMA}",
                    path.display()
                ))
                .hint("use the version of aios that wrote it"));
            }
            None => return Err(wrong("it has no schema number".to_owned())),
        }
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }

    /// The workloads, in the order measured.
    pub(crate) fn workloads(&self) -> Vec<&str> {
        names(self.deltas.iter().map(|delta| delta.workload.as_str()))
    }

    /// One row.
    pub(crate) fn delta(&self, workload: &str, metric: Metric) -> Option<&Delta> {
        self.deltas
            .iter()
            .find(|delta| delta.workload == workload && delta.metric == metric)
    }

    /// Rows of one metric, in the order measured.
    pub(crate) fn rows(&self, metric: Metric) -> impl Iterator<Item = &Delta> {
        self.deltas.iter().filter(move |row| row.metric == metric)
    }

    /// Samples of one workload and metric on one stack.
    pub(crate) fn values(&self, workload: &str, stack: Stack, metric: Metric) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|sample| sample.workload == workload && sample.stack == stack)
            .map(|sample| sample.metric(metric))
            .collect()
    }
}

/// Distinct names in order of first appearance.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in all {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// Values of two stacks that were measured in the same pair.
fn matched(samples: &[&Sample], base: Stack, new: Stack, metric: Metric) -> Vec<(f64, f64)> {
    let of = |stack: Stack, pair: u32| {
        samples
            .iter()
            .find(|sample| sample.stack == stack && sample.pair == pair)
            .map(|sample| sample.metric(metric))
    };
    samples
        .iter()
        .filter(|sample| sample.stack == base)
        .filter_map(|sample| Some((sample.metric(metric), of(new, sample.pair)?)))
        .collect()
}

fn delta(workload: &str, metric: Metric, samples: &[&Sample]) -> Delta {
    let value = |stack: Stack| {
        let values: Vec<f64> = samples
            .iter()
            .filter(|sample| sample.stack == stack)
            .map(|sample| sample.metric(metric))
            .collect();
        stats::geometric_mean(&values)
    };
    let has_native = samples.iter().any(|sample| sample.stack == Stack::Native);
    let baseline = if has_native {
        Stack::Native
    } else {
        Stack::Off
    };
    let pairs = matched(samples, baseline, Stack::Async, metric);
    let on = stats::paired(&pairs);
    let off = stats::paired(&matched(samples, Stack::Native, Stack::Off, metric));
    let interval = |estimate: &Option<Estimate>| estimate.and_then(|found| found.interval_pct);
    Delta {
        workload: workload.to_owned(),
        metric,
        native: value(Stack::Native),
        off: value(Stack::Off),
        on: value(Stack::Async),
        baseline,
        pairs: pairs.len(),
        delta_pct: on.map(|found| found.delta_pct),
        ci_low_pct: interval(&on).map(|(low, _)| low),
        ci_high_pct: interval(&on).map(|(_, high)| high),
        verdict: on.map_or(Verdict::TooFewPairs, |found| metric.verdict(&found)),
        off_delta_pct: off.map(|found| found.delta_pct),
        off_ci_low_pct: interval(&off).map(|(low, _)| low),
        off_ci_high_pct: interval(&off).map(|(_, high)| high),
        off_verdict: has_native
            .then(|| off.map_or(Verdict::TooFewPairs, |found| metric.verdict(&found))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    fn estimate(low: f64, high: f64) -> Estimate {
        Estimate {
            delta_pct: (low + high) / 2.0,
            interval_pct: Some((low, high)),
        }
    }

    #[test]
    fn test_verdict_direction_depends_on_metric() {
        let down = estimate(-10.0, -5.0);
        assert_eq!(Metric::LatMeanNs.verdict(&down), Verdict::Better);
        assert_eq!(Metric::Iops.verdict(&down), Verdict::Worse);
        let up = estimate(5.0, 10.0);
        assert_eq!(Metric::LatP999Ns.verdict(&up), Verdict::Worse);
        assert_eq!(Metric::Iops.verdict(&up), Verdict::Better);
    }

    #[test]
    fn test_verdict_interval_holding_zero_returns_within_noise() {
        for (low, high) in [(-1.0, 1.0), (0.0, 3.0), (-3.0, 0.0)] {
            let verdict = Metric::Iops.verdict(&estimate(low, high));
            assert_eq!(verdict, Verdict::WithinNoise);
        }
    }

    #[test]
    fn test_show_ns_picks_unit() {
        assert_eq!(show_ns(7.0), "7.00 ns");
        assert_eq!(show_ns(12_345.0), "12.3 µs");
        assert_eq!(show_ns(4_500_000.0), "4.50 ms");
        assert_eq!(show_ns(123e9), "123 s");
    }

    #[test]
    fn test_new_async_half_of_native_returns_minus_fifty() {
        let samples: Vec<Sample> = (0..5)
            .flat_map(|pair| {
                [
                    example::sample("w", Stack::Native, pair, 200.0 + f64::from(pair)),
                    example::sample("w", Stack::Async, pair, (200.0 + f64::from(pair)) / 2.0),
                    example::sample("w", Stack::Off, pair, 200.0 + f64::from(pair)),
                ]
            })
            .collect();
        let results = Results::new(samples, Vec::new(), example::provenance(), true);
        let mean = results.delta("w", Metric::LatMeanNs).unwrap();
        assert!((mean.delta_pct.unwrap() + 50.0).abs() < 1e-9);
        assert_eq!((mean.verdict, mean.pairs), (Verdict::Better, 5));
        assert!(mean.off_delta_pct.unwrap().abs() < 1e-9);
        let iops = results.delta("w", Metric::Iops).unwrap();
        assert_eq!(iops.verdict, Verdict::Better);
    }

    #[test]
    fn test_new_without_native_takes_off_as_baseline() {
        let samples = vec![
            example::sample("w", Stack::Off, 0, 100.0),
            example::sample("w", Stack::Async, 0, 90.0),
        ];
        let results = Results::new(samples, Vec::new(), example::provenance(), true);
        let row = results.delta("w", Metric::LatMeanNs).unwrap();
        assert_eq!((row.native, row.baseline), (None, Stack::Off));
        assert_eq!((row.verdict, row.off_verdict), (Verdict::TooFewPairs, None));
    }

    #[test]
    fn test_new_pair_cut_short_is_left_out_of_delta() {
        let samples = vec![
            example::sample("w", Stack::Native, 0, 100.0),
            example::sample("w", Stack::Async, 0, 90.0),
            example::sample("w", Stack::Native, 1, 100.0),
        ];
        let results = Results::new(samples, Vec::new(), example::provenance(), false);
        assert_eq!(results.delta("w", Metric::LatMeanNs).unwrap().pairs, 1);
    }

    #[test]
    fn test_serde_deltas_carry_documented_names() {
        let json = serde_json::to_value(example::results()).unwrap();
        let row = &json["deltas"][0];
        assert_eq!(json["schema"], 1);
        for name in [
            "workload",
            "metric",
            "native",
            "off",
            "async",
            "delta_pct",
            "ci_low_pct",
            "ci_high_pct",
            "verdict",
        ] {
            assert!(!row[name].is_null(), "{name} is missing in {row}");
        }
        assert_eq!(row["metric"], "lat_mean_ns");
        let names: Vec<_> = Metric::ALL
            .iter()
            .map(|metric| serde_json::to_string(metric).unwrap())
            .collect();
        assert_eq!(names[3], "\"lat_p999_ns\"");
    }

    #[test]
    fn test_load_returns_what_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let results = example::results();
        fs::write(file.path(), serde_json::to_string(&results).unwrap()).unwrap();
        assert_eq!(Results::load(file.path()).unwrap(), results);
    }

    #[test]
    fn test_load_bad_file_returns_one_line_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, part) in [
            ("not json", "is no results.json"),
            ("{}", "no schema number"),
            ("{\"schema\":2}", "has schema 2"),
            ("{\"schema\":1}", "missing field"),
            ("[1]", "no schema number"),
        ] {
            fs::write(file.path(), text).unwrap();
            let error = Results::load(file.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
