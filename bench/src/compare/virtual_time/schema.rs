// SPDX-License-Identifier: MIT
//! `virtual-time.json`: every measurement and the lines through them. Its
//! documentation is `bench/virtual-time-schema.md`.

use super::fit::fit;
use super::plan::Row;
use crate::report::schema::{
    Kernel,
    Machine,
    Tool, //
};
use crate::stack::Stack;
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::BTreeMap;

/// Version of the schema.
pub(crate) const SCHEMA: u32 = 1;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// What was measured.
    #[serde(flatten)]
    pub(crate) row: Row,
    /// The stack it ran on.
    pub(crate) stack: Stack,
    /// What the device took for each command, ns.
    pub(crate) device_ns: u64,
    /// Seed of the offsets.
    pub(crate) seed: u64,
    /// Operations, of all threads together.
    pub(crate) ops: u32,
    /// Mean latency of the call, ns.
    pub(crate) lat_mean_ns: f64,
    /// Median of it, ns; the mean for db_bench.
    pub(crate) lat_p50_ns: f64,
    /// Whole operations (write and call) per second.
    pub(crate) ops_per_s: f64,
}

/// The measurements of one call at one device time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// What the device took for each command, ns.
    pub(crate) device_ns: u64,
    /// Mean over the seeds of the mean latencies, ns.
    pub(crate) lat_mean_ns: f64,
    /// Mean over the seeds of the medians, ns.
    pub(crate) lat_p50_ns: f64,
    /// Mean over the seeds.
    pub(crate) ops_per_s: f64,
    /// Smallest and largest mean latency of a seed, ns.
    pub(crate) lat_range_ns: [f64; 2],
}

impl Point {
    /// None without samples.
    fn new(device_ns: u64, samples: &[&Sample]) -> Option<Self> {
        let mean = |of: fn(&Sample) -> f64| {
            samples.iter().map(|sample| of(sample)).sum::<f64>() / samples.len() as f64
        };
        let latencies = || samples.iter().map(|sample| sample.lat_mean_ns);
        (!samples.is_empty()).then(|| Self {
            device_ns,
            lat_mean_ns: mean(|sample| sample.lat_mean_ns),
            lat_p50_ns: mean(|sample| sample.lat_p50_ns),
            ops_per_s: mean(|sample| sample.ops_per_s),
            lat_range_ns: [
                latencies().fold(f64::INFINITY, f64::min),
                latencies().fold(f64::NEG_INFINITY, f64::max),
            ],
        })
    }
}

/// One call on one stack: what it takes by the device's time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// Serial round trips: the slope of the mean latency.
    pub(crate) round_trips: f64,
    /// The same of the medians: those of the usual call.
    pub(crate) round_trips_p50: f64,
    /// Instructions that no device time hides: the intercept, one each
    /// nanosecond.
    pub(crate) serial_instructions: f64,
    /// The largest distance of a mean from the line, ns.
    pub(crate) residual_ns: f64,
    /// The largest difference between seeds at one device time, per cent of
    /// their mean.
    pub(crate) seeds_pct: f64,
    /// By device time, rising.
    pub(crate) points: Vec<Point>,
}

impl Curve {
    /// None unless there are two device times.
    fn new(samples: &[&Sample]) -> Option<Self> {
        let mut times: Vec<u64> = samples.iter().map(|sample| sample.device_ns).collect();
        times.sort_unstable();
        times.dedup();
        let points: Vec<Point> = times
            .into_iter()
            .filter_map(|time| {
                let at = |sample: &&&Sample| sample.device_ns == time;
                let here: Vec<&Sample> = samples.iter().filter(at).copied().collect();
                Point::new(time, &here)
            })
            .collect();
        let line = |of: fn(&Point) -> f64| {
            let points: Vec<(f64, f64)> = points
                .iter()
                .map(|point| (point.device_ns as f64, of(point)))
                .collect();
            fit(&points)
        };
        let (mean, median) = (
            line(|point| point.lat_mean_ns)?,
            line(|point| point.lat_p50_ns)?,
        );
        let spread = |point: &Point| {
            let [low, high] = point.lat_range_ns;
            (high - low) / point.lat_mean_ns * 100.0
        };
        Some(Self {
            round_trips: mean.slope,
            round_trips_p50: median.slope,
            serial_instructions: mean.intercept,
            residual_ns: mean.residual,
            seeds_pct: points.iter().map(spread).fold(0.0, f64::max),
            points,
        })
    }

    /// The point at `device_ns`.
    pub(crate) fn at(&self, device_ns: u64) -> Option<&Point> {
        self.points
            .iter()
            .find(|point| point.device_ns == device_ns)
    }
}

/// One call on one kind of file system and device, on every stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calls {
    /// Which.
    #[serde(flatten)]
    pub(crate) row: Row,
    /// By stack; one that was measured at fewer than two device times is absent.
    pub(crate) stacks: BTreeMap<Stack, Curve>,
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// False when the run was interrupted.
    pub(crate) complete: bool,
    /// One for each row of the tables, in their order.
    pub(crate) calls: Vec<Calls>,
    /// Every measurement.
    pub(crate) samples: Vec<Sample>,
    /// What a repetition needs.
    pub(crate) provenance: Provenance,
}

/// What a repetition needs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// Version of this program.
    pub(crate) aios: String,
    /// The command line.
    pub(crate) command: Vec<String>,
    /// Start, UTC, RFC 3339.
    pub(crate) date: String,
    /// Duration, builds left out.
    pub(crate) seconds: f64,
    /// Whether `--quick` was given.
    pub(crate) quick: bool,
    /// Device times, ns.
    pub(crate) device_ns: Vec<u64>,
    /// Measured operations of each workload; db_bench has its own.
    pub(crate) ops: u32,
    /// Operations before those.
    pub(crate) warmup: u32,
    /// The first seed.
    pub(crate) seed: u64,
    /// Seeds.
    pub(crate) repeats: u32,
    /// The machine that ran it; no number depends on it.
    pub(crate) machine: Option<Machine>,
    /// Versions of what was run.
    pub(crate) tools: Vec<Tool>,
    /// The kernels.
    pub(crate) kernels: Vec<Kernel>,
    /// QEMU's command line for each of them.
    pub(crate) qemu: Vec<String>,
}

impl Results {
    /// Draws the lines through `samples`, in the order of `rows`.
    pub(crate) fn new(
        rows: &[Row],
        samples: Vec<Sample>,
        provenance: Provenance,
        complete: bool,
    ) -> Self {
        let calls = rows
            .iter()
            .map(|&row| {
                let curve = |stack: Stack| {
                    let of = |sample: &&Sample| sample.row == row && sample.stack == stack;
                    let of: Vec<&Sample> = samples.iter().filter(of).collect();
                    Some((stack, Curve::new(&of)?))
                };
                Calls {
                    row,
                    stacks: Stack::ALL.into_iter().filter_map(curve).collect(),
                }
            })
            .filter(|calls| !calls.stacks.is_empty())
            .collect();
        Self {
            schema: SCHEMA,
            complete,
            calls,
            samples,
            provenance,
        }
    }

    /// The device times of the table, rising: two that are like fast drives.
    pub(crate) fn shown_ns(&self) -> Vec<u64> {
        let times = &self.provenance.device_ns;
        let shown: Vec<u64> = [30_000, 100_000]
            .into_iter()
            .filter(|time| times.contains(time))
            .collect();
        if shown.is_empty() {
            times.clone()
        } else {
            shown
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::plan::{
        Call,
        Plan, //
    };
    use super::*;

    /// Results of a quick run and fillsync in which native takes three round
    /// trips, off as many and async two, with 50 µs of instructions.
    pub(in super::super) fn results() -> Results {
        let mut plan = Plan::new(&[], true, 1).unwrap();
        let fill = plan.rows.iter().map(|row| Row {
            call: Call::DbFillsync,
            ..*row
        });
        let mut rows = plan.rows.clone();
        rows.extend(fill.step_by(5));
        plan.rows = rows;
        let mut samples = Vec::new();
        for spot in plan.spots() {
            for call in &spot.calls {
                for (stack, trips) in [(Stack::Native, 3), (Stack::Off, 3), (Stack::Async, 2)] {
                    for (seed, more) in [(1, 0.0), (2, 300.0)] {
                        let latency = (trips * spot.device_ns) as f64 + 50_000.0 + more;
                        samples.push(Sample {
                            row: Row {
                                call: *call,
                                commit: spot.commit,
                                cache: spot.cache,
                            },
                            stack,
                            device_ns: spot.device_ns,
                            seed,
                            ops: 40,
                            lat_mean_ns: latency,
                            lat_p50_ns: latency - 100.0,
                            ops_per_s: 1e9 / latency,
                        });
                    }
                }
            }
        }
        let provenance = Provenance {
            device_ns: plan.device_ns.clone(),
            command: vec!["aios".to_owned(), "<compare>".to_owned()],
            qemu: vec!["qemu-system-x86_64 -icount shift=0".to_owned()],
            machine: Some(crate::compare::machine::describe()),
            ..Provenance::default()
        };
        Results::new(&plan.rows, samples, provenance, true)
    }

    #[test]
    fn test_new_finds_round_trips_and_instructions() {
        let results = results();
        assert_eq!(results.calls.len(), 24);
        for calls in &results.calls {
            for (stack, trips) in [(Stack::Native, 3.0), (Stack::Async, 2.0)] {
                let curve = &calls.stacks[&stack];
                assert!((curve.round_trips - trips).abs() < 1e-9);
                assert!((curve.round_trips_p50 - trips).abs() < 1e-9);
                assert!((curve.serial_instructions - 50_150.0).abs() < 1e-6);
                assert!(curve.residual_ns < 1e-6);
                // 300 of 110,150 at the shorter time and two round trips.
                assert!(curve.seeds_pct > 0.1 && curve.seeds_pct < 0.3);
            }
        }
    }

    #[test]
    fn test_new_one_device_time_leaves_the_call_out() {
        let all = results();
        let rows: Vec<Row> = all.calls.iter().map(|calls| calls.row).collect();
        let one = all
            .samples
            .iter()
            .filter(|sample| sample.device_ns == 30_000);
        let cut = Results::new(&rows, one.cloned().collect(), all.provenance.clone(), false);
        assert!(cut.calls.is_empty() && !cut.complete && !cut.samples.is_empty());
    }

    #[test]
    fn test_json_has_the_documented_fields() {
        let json = serde_json::to_value(results()).unwrap();
        let document = include_str!("../../../virtual-time-schema.md");
        let mut names = Vec::new();
        collect(&json, &mut names);
        for name in names {
            assert!(document.contains(&format!("`{name}`")), "{name}");
        }
        assert_eq!(json["calls"][0]["call"], "overwrite-fdatasync");
        assert_eq!(json["calls"][0]["commit"], "full");
        assert_eq!(json["calls"][0]["cache"], false);
    }

    /// The names of all fields.
    fn collect(value: &serde_json::Value, names: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    names.push(name.clone());
                    collect(value, names);
                }
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|item| collect(item, names));
            }
            _ => {}
        }
    }

    #[test]
    fn test_results_survive_json() {
        let text = serde_json::to_string(&results()).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results());
    }
}
