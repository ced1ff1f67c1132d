// SPDX-License-Identifier: MIT
//! Where one operation spends its effort: from an instruction profile when one
//! is at hand, else from the latencies and the calibrated device.

use super::schema::{
    Metric,
    Results,
    show_ns, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::stack::Stack;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The workload that the device is calibrated on.
const WORKLOAD: &str = "fio/randread-4k-buffered-qd1";

/// Stacked bars, one per stack.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stages {
    /// What the bars are of and where they come from.
    pub(crate) caption: String,
    /// Bars of (stack, parts of (stage, size)).
    pub(crate) bars: Vec<(Stack, Vec<(&'static str, f64)>)>,
    /// Whether sizes are nanoseconds; instructions otherwise.
    pub(crate) nanoseconds: bool,
}

impl Stages {
    /// A size for people.
    pub(crate) fn show(&self, size: f64) -> String {
        if self.nanoseconds {
            return show_ns(size);
        }
        let digits = format!("{size:.0}");
        let mut grouped = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        grouped
    }
}

/// What `aios profile --json` prints, as far as it is shown here.
#[derive(Debug, Deserialize)]
struct Profile {
    schema: u32,
    workload: String,
    stacks: BTreeMap<Stack, Phases>,
}

/// Kernel instructions per operation of one stack.
#[derive(Debug, Deserialize)]
struct Phases {
    before_doorbell: f64,
    device: f64,
    after: f64,
    #[serde(default)]
    spin: f64,
}

/// Reads a profile written by `aios profile --json`.
pub(crate) fn from_profile(path: &Path) -> Result<Stages> {
    let text = fs::read_to_string(path).at("read", path)?;
    let wrong = |what: String| {
        Error::new(format!("{} is no profile: {what}", path.display()))
            .hint("write one with `aios profile --json > FILE`")
    };
    let profile: Profile = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if profile.schema != 1 {
        return Err(wrong(format!("its schema is {}", profile.schema)));
    }
    let bars = profile
        .stacks
        .into_iter()
        .map(|(stack, phases)| {
            let parts = vec![
                ("before doorbell", phases.before_doorbell),
                ("while the device works", phases.device),
                ("after", phases.after),
                ("spin (waiting)", phases.spin),
            ];
            (stack, parts)
        })
        .collect();
    Ok(Stages {
        caption: format!(
            "{}: kernel instructions per operation (instruction-exact profile); spin is waiting, not work",
            profile.workload
        ),
        bars,
        nanoseconds: false,
    })
}

/// Mean latency of the calibrated workload, split at the device's own time.
/// None without that workload or without an emulated device.
pub(crate) fn from_latencies(results: &Results) -> Option<Stages> {
    let device = results.provenance.guest.as_ref()?.device.target_device_ns as f64;
    let row = results.delta(WORKLOAD, Metric::LatMeanNs)?;
    let bars: Vec<_> = Stack::ALL
        .iter()
        .filter_map(|stack| {
            let mean = row.value(*stack)?;
            let device = device.min(mean);
            Some((
                *stack,
                vec![("device", device), ("software", mean - device)],
            ))
        })
        .collect();
    (!bars.is_empty()).then(|| Stages {
        caption: format!(
            "{WORKLOAD}: mean latency, split at the device time that was calibrated on the native kernel; \
             the rest is kernel and fio. Pass --profile FILE for the instruction-exact split"
        ),
        bars,
        nanoseconds: true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn test_from_latencies_parts_add_up_to_mean() {
        let results = example::results();
        let stages = from_latencies(&results).unwrap();
        let row = results.delta(WORKLOAD, Metric::LatMeanNs).unwrap();
        for (stack, parts) in &stages.bars {
            let sum: f64 = parts.iter().map(|(_, size)| size).sum();
            assert!((sum - row.value(*stack).unwrap()).abs() < 1e-6);
        }
        assert_eq!(stages.bars.len(), 3);
    }

    #[test]
    fn test_from_profile_reads_schema_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"schema":1,"workload":"randread-4k-buffered","stacks":{
            "native":{"before_doorbell":5240,"device":2230,"after":5760,"total":13230,"layers":{}},
            "async":{"before_doorbell":5240,"device":100,"after":2000,"total":7340,"spin":90000,"layers":{}}}}"#;
        fs::write(file.path(), text).unwrap();
        let stages = from_profile(file.path()).unwrap();
        assert_eq!(stages.bars.len(), 2);
        assert_eq!(stages.show(13_230.4), "13,230");
        let on = &stages
            .bars
            .iter()
            .find(|bar| bar.0 == Stack::Async)
            .unwrap()
            .1;
        assert_eq!(on[3], ("spin (waiting)", 90_000.0));
    }

    #[test]
    fn test_from_profile_bad_file_returns_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "{}", r#"{"schema":9,"workload":"x","stacks":{}}"#] {
            fs::write(file.path(), text).unwrap();
            let error = from_profile(file.path()).unwrap_err().to_string();
            assert!(error.contains("is no profile"), "{error}");
        }
    }
}
