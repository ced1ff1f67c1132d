// SPDX-License-Identifier: MIT
//! The JSON document of a profile, schema 1.

use super::layers::{
    Layer,
    Layers, //
};
use crate::kernel::BuildId;
use crate::stack::Stack;
use aios_insn_plugin::report::{
    Counts,
    Function,
    Report, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::{
    BTreeMap,
    HashMap, //
};

/// Version of the document's form.
pub(crate) const SCHEMA: u32 = 1;

/// A profile: kernel instructions per operation of one workload on some stacks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// The workload's name.
    pub(crate) workload: String,
    /// What was counted.
    pub(crate) stacks: BTreeMap<Stack, StackProfile>,
    /// Change of the total against native, per cent; empty without native.
    pub(crate) delta_pct: BTreeMap<Stack, f64>,
    /// What is needed to repeat it.
    pub(crate) provenance: Provenance,
}

impl Profile {
    /// Puts the stacks together.
    pub(crate) fn new(
        workload: String,
        stacks: BTreeMap<Stack, StackProfile>,
        provenance: Provenance,
    ) -> Self {
        let native = stacks.get(&Stack::Native).map(|profile| profile.total);
        let delta_pct = stacks
            .iter()
            .filter(|(stack, _)| **stack != Stack::Native)
            .filter_map(|(&stack, profile)| {
                let native = native.filter(|&native| native > 0.0)?;
                Some((stack, round((profile.total / native - 1.0) * 100.0)))
            })
            .collect();
        Self {
            schema: SCHEMA,
            workload,
            stacks,
            delta_pct,
            provenance,
        }
    }
}

/// Instructions per operation by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Phases {
    /// From kernel entry to the first doorbell.
    pub(crate) before_doorbell: f64,
    /// From a doorbell until the CPU halts or the completion is seen.
    pub(crate) device: f64,
    /// From the completion to user mode.
    pub(crate) after: f64,
    /// All three.
    pub(crate) total: f64,
}

impl Phases {
    /// The phases without the total, with names for people.
    pub(crate) fn parts(&self) -> [(&'static str, f64); 3] {
        [
            ("before the doorbell", self.before_doorbell),
            ("while the device works", self.device),
            ("after the completion", self.after),
        ]
    }

    fn add(&mut self, other: &Self) {
        self.before_doorbell += other.before_doorbell;
        self.device += other.device;
        self.after += other.after;
        self.total += other.total;
    }

    fn rounded(&self) -> Self {
        Self {
            before_doorbell: round(self.before_doorbell),
            device: round(self.device),
            after: round(self.after),
            total: round(self.total),
        }
    }
}

/// One function's share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FunctionProfile {
    /// Name as in `System.map`.
    pub(crate) name: String,
    /// Its layer.
    pub(crate) layer: Layer,
    /// Its work.
    #[serde(flatten)]
    pub(crate) phases: Phases,
    /// Its waiting.
    pub(crate) spin: f64,
}

/// What became of the operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operations {
    /// Those that the means are over: the clean ones on the usual path.
    pub(crate) clean: u64,
    /// Clean ones on the other path: that slept where most did not, or the
    /// other way round. How many they are hangs on the emulation's timing.
    pub(crate) unusual: u64,
    /// Of those, the ones that interrupts were taken out of.
    pub(crate) interrupted: u64,
    /// Those set aside, by reason.
    pub(crate) disturbed: BTreeMap<String, u64>,
    /// Those that sent no command.
    pub(crate) no_io: u64,
}

impl Operations {
    /// Share of the operations set aside, per cent.
    pub(crate) fn disturbed_pct(&self) -> f64 {
        let disturbed: u64 = self.disturbed.values().sum();
        let all = self.clean + self.unusual + disturbed + self.no_io;
        if all == 0 {
            return 0.0;
        }
        disturbed as f64 / all as f64 * 100.0
    }
}

/// What was counted on one stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StackProfile {
    /// Work by phase.
    #[serde(flatten)]
    pub(crate) phases: Phases,
    /// Waiting; no part of the total.
    pub(crate) spin: f64,
    /// Half of the total's 95 % confidence interval.
    pub(crate) total_ci95: f64,
    /// NVMe commands per operation.
    pub(crate) commands: f64,
    /// Task switches per operation.
    pub(crate) switches: f64,
    /// Work per operation of all clean operations, the unusual ones included.
    pub(crate) total_all: f64,
    /// Work by layer.
    pub(crate) layers: BTreeMap<Layer, f64>,
    /// Work by layer and phase.
    pub(crate) layer_phases: BTreeMap<Layer, Phases>,
    /// Functions, the most expensive first.
    pub(crate) functions: Vec<FunctionProfile>,
    /// What became of the operations.
    pub(crate) ops: Operations,
    /// The total of every repeat, each from a guest of its own.
    pub(crate) repeats: Vec<f64>,
}

impl std::ops::Deref for StackProfile {
    type Target = Phases;

    fn deref(&self) -> &Phases {
        &self.phases
    }
}

impl StackProfile {
    /// Means over all `reports`, one for each repeat, of one kernel. `None`
    /// without any clean operation.
    pub(crate) fn new(reports: &[Report], layers: &Layers) -> Option<Self> {
        let of =
            |path: fn(&Report) -> &Counts| -> Vec<&Counts> { reports.iter().map(path).collect() };
        let clean = |path: &[&Counts]| path.iter().map(|counts| counts.clean).sum::<u64>();
        let (awake, slept) = (of(|report| &report.awake), of(|report| &report.slept));
        let (counts, unusual) = if clean(&slept) > clean(&awake) {
            (slept, awake)
        } else {
            (awake, slept)
        };
        let (clean, unusual_clean) = (clean(&counts), clean(&unusual));
        if clean == 0 {
            return None;
        }
        let mean = |count: u64| count as f64 / clean as f64;

        let mut sums: HashMap<u64, (&str, [u64; 4])> = HashMap::new();
        for function in counts.iter().flat_map(|counts| &counts.functions) {
            let (_, sum) = sums
                .entry(function.address)
                .or_insert((&function.name, [0; 4]));
            let counts = [
                function.before,
                function.device,
                function.after,
                function.spin,
            ];
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        let mut phases = Phases::default();
        let mut layer_phases: BTreeMap<_, Phases> = BTreeMap::new();
        let mut functions = Vec::new();
        let mut spin = 0.0;
        for (&address, &(name, [before, device, after, spun])) in &sums {
            let layer = layers.of(address);
            let own = Phases {
                before_doorbell: mean(before),
                device: mean(device),
                after: mean(after),
                total: mean(before + device + after),
            };
            phases.add(&own);
            layer_phases.entry(layer).or_default().add(&own);
            spin += mean(spun);
            functions.push(FunctionProfile {
                name: name.to_owned(),
                layer,
                phases: own.rounded(),
                spin: round(mean(spun)),
            });
        }
        functions.sort_by(|a, b| {
            let cost = |f: &FunctionProfile| f.phases.total + f.spin;
            cost(b)
                .total_cmp(&cost(a))
                .then_with(|| a.name.cmp(&b.name))
        });

        let per_op: Vec<f64> = counts
            .iter()
            .flat_map(|counts| &counts.per_op)
            .map(|&work| f64::from(work))
            .collect();
        let all = counts.iter().chain(&unusual).map(|counts| work(counts));
        let total_all = all.sum::<u64>() as f64 / (clean + unusual_clean) as f64;
        let sum = |field: fn(&Counts) -> u64| counts.iter().map(|counts| field(counts)).sum();
        let mut ops = Operations {
            clean,
            unusual: unusual_clean,
            interrupted: sum(|counts| counts.interrupted),
            ..Operations::default()
        };
        for report in reports {
            ops.no_io += report.no_io;
            for (why, count) in &report.disturbed {
                *ops.disturbed.entry(why.clone()).or_default() += count;
            }
        }
        Some(Self {
            phases: phases.rounded(),
            spin: round(spin),
            total_ci95: round(half_interval(&per_op)),
            commands: round(mean(sum(|counts| counts.commands))),
            switches: round(mean(sum(|counts| counts.switches))),
            total_all: round(total_all),
            layers: layer_phases
                .iter()
                .map(|(&layer, phases)| (layer, round(phases.total)))
                .collect(),
            layer_phases: layer_phases
                .iter()
                .map(|(&layer, phases)| (layer, phases.rounded()))
                .collect(),
            functions,
            ops,
            repeats: counts
                .iter()
                .filter(|counts| counts.clean > 0)
                .map(|counts| round(work(counts) as f64 / counts.clean as f64))
                .collect(),
        })
    }

    /// How far the repeats lie apart, per cent of the total; `None` for one.
    pub(crate) fn repeat_spread_pct(&self) -> Option<f64> {
        if self.repeats.len() < 2 || self.total <= 0.0 {
            return None;
        }
        let high = self.repeats.iter().copied().fold(f64::MIN, f64::max);
        let low = self.repeats.iter().copied().fold(f64::MAX, f64::min);
        Some((high - low) / self.total * 100.0)
    }
}

/// Work instructions of all operations.
fn work(counts: &Counts) -> u64 {
    let work = |function: &Function| function.before + function.device + function.after;
    counts.functions.iter().map(work).sum()
}

/// Half of the 95 % confidence interval of the mean (normal approximation:
/// samples are many).
fn half_interval(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / (count - 1.0);
    1.96 * (variance / count).sqrt()
}

/// Two decimals are more than the numbers mean.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// What is needed to repeat a profile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// Version of this program.
    pub(crate) aios: String,
    /// What QEMU says of itself.
    pub(crate) qemu: String,
    /// QEMU's command line on each stack.
    pub(crate) qemu_lines: BTreeMap<Stack, String>,
    /// What each stack's kernel was built from; absent for one given ready.
    pub(crate) kernels: BTreeMap<Stack, BuildId>,
    /// Operations asked for on each stack and repeat.
    pub(crate) ops: u32,
    /// Operations before those.
    pub(crate) warmup: u32,
    /// Seed of the random offsets.
    pub(crate) seed: u64,
    /// Latency added to each of the drive's commands, ns.
    pub(crate) latency_ns: u64,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report of `clean` operations that cost `work` each, 10 % of it before.
    pub(crate) fn report(clean: u64, work: u64) -> Report {
        let function = |name: &str, address, [before, device, after, spin]: [u64; 4]| Function {
            name: name.to_owned(),
            address,
            before: before * clean,
            device: device * clean,
            after: after * clean,
            spin: spin * clean,
        };
        let counts = Counts {
            clean,
            interrupted: 0,
            commands: clean,
            switches: 0,
            per_op: vec![u32::try_from(work).unwrap(); usize::try_from(clean).unwrap()],
            functions: vec![
                function("vfs_read", 0x10, [work / 10, 0, 0, 0]),
                function("<nvme & irq>", 0x20, [0, 0, work - work / 10, 0]),
                function("aios_spin_x", 0x30, [0, 0, 0, 7]),
            ],
        };
        Report {
            schema: 1,
            awake: counts,
            slept: Counts::default(),
            disturbed: BTreeMap::from([("interrupt".to_owned(), clean), ("early".to_owned(), 0)]),
            no_io: 0,
        }
    }

    /// A profile of native and async with made-up numbers.
    pub(crate) fn profile() -> Profile {
        let stack = |work| StackProfile::new(&[report(4, work)], &Layers::default()).unwrap();
        let stacks = BTreeMap::from([(Stack::Native, stack(1000)), (Stack::Async, stack(600))]);
        Profile::new(
            "randread-4k-buffered".to_owned(),
            stacks,
            Provenance::default(),
        )
    }

    #[test]
    fn test_new_gives_means_per_operation() {
        let stack = StackProfile::new(&[report(4, 1000)], &Layers::default()).unwrap();
        assert_eq!(
            (stack.before_doorbell, stack.device, stack.after),
            (100.0, 0.0, 900.0)
        );
        assert_eq!((stack.total, stack.spin), (1000.0, 7.0));
        assert_eq!((stack.commands, stack.switches), (1.0, 0.0));
        assert_eq!(stack.layers[&Layer::Other], 1000.0);
        assert_eq!(stack.functions[0].name, "<nvme & irq>");
        assert_eq!(stack.ops.disturbed_pct(), 50.0);
    }

    #[test]
    fn test_new_weighs_repeats_by_operations() {
        let reports = [report(3, 1000), report(1, 1040)];
        let stack = StackProfile::new(&reports, &Layers::default()).unwrap();
        assert_eq!(stack.total, 1010.0);
        assert_eq!(stack.repeats, [1000.0, 1040.0]);
        let spread = stack.repeat_spread_pct().unwrap();
        assert!((spread - 3.96).abs() < 0.01, "{spread}");
        assert!(stack.total_ci95 > 10.0, "{}", stack.total_ci95);
    }

    #[test]
    fn test_new_takes_the_usual_path_and_tells_of_the_other() {
        let mut mixed = report(8, 1000);
        mixed.slept = report(2, 2000).awake;
        let stack = StackProfile::new(&[mixed.clone()], &Layers::default()).unwrap();
        assert_eq!((stack.total, stack.total_all), (1000.0, 1200.0));
        assert_eq!((stack.ops.clean, stack.ops.unusual), (8, 2));

        std::mem::swap(&mut mixed.awake, &mut mixed.slept);
        let stack = StackProfile::new(&[mixed], &Layers::default()).unwrap();
        assert_eq!((stack.total, stack.ops.clean), (1000.0, 8));
    }

    #[test]
    fn test_new_without_clean_operations_gives_none() {
        assert_eq!(StackProfile::new(&[report(0, 1)], &Layers::default()), None);
        assert_eq!(StackProfile::new(&[], &Layers::default()), None);
    }

    #[test]
    fn test_json_has_the_documented_form() {
        let json = serde_json::to_value(profile()).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["workload"], "randread-4k-buffered");
        let native = &json["stacks"]["native"];
        for key in ["before_doorbell", "device", "after", "total", "spin"] {
            assert!(native[key].is_f64(), "{key}");
        }
        assert_eq!(native["layers"]["other"], 1000.0);
        assert_eq!(json["delta_pct"]["async"], -40.0);
        assert!(json["delta_pct"].get("native").is_none());
    }

    #[test]
    fn test_profile_survives_json() {
        let text = serde_json::to_string(&profile()).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile());
    }
}
