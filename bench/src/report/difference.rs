// SPDX-License-Identifier: MIT
//! Two runs against each other.

use super::schema::{
    Metric,
    Provenance,
    Results,
    Verdict, //
};
use super::stats;
use super::table::{
    aligned,
    printable, //
};
use super::text;
use crate::stack::Stack;
use serde::Serialize;

/// One workload, stack and metric in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The workload's name.
    pub(crate) workload: String,
    /// Which stack.
    pub(crate) stack: Stack,
    /// What is compared.
    pub(crate) metric: Metric,
    /// Geometric mean in the first run.
    pub(crate) a: f64,
    /// Geometric mean in the second run.
    pub(crate) b: f64,
    /// Second to first, per cent.
    pub(crate) delta_pct: f64,
    /// Lower end of its 95 % confidence interval (Welch).
    pub(crate) ci_low_pct: Option<f64>,
    /// Upper end.
    pub(crate) ci_high_pct: Option<f64>,
    /// What it means.
    pub(crate) verdict: Verdict,
}

/// What two runs have to say about each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Differences {
    /// Schema of this document: 1.
    pub(crate) schema: u32,
    /// Rows for workloads and stacks that both runs have.
    pub(crate) differences: Vec<Difference>,
    /// Why the two may not be comparable; one line each.
    pub(crate) warnings: Vec<String>,
}

impl Differences {
    /// Compares the second run with the first.
    pub(crate) fn new(a: &Results, b: &Results) -> Self {
        let mut warnings = provenance_warnings(&a.provenance, &b.provenance);
        for (results, name) in [(a, "first"), (b, "second")] {
            if !results.complete {
                warnings.push(format!("the {name} run was interrupted"));
            }
        }
        let (in_a, in_b) = (a.workloads(), b.workloads());
        for (all, other, name) in [(&in_a, &in_b, "first"), (&in_b, &in_a, "second")] {
            for workload in all.iter().filter(|workload| !other.contains(workload)) {
                warnings.push(format!("{} is in the {name} run only", printable(workload)));
            }
        }
        let mut differences = Vec::new();
        for workload in in_a.iter().filter(|workload| in_b.contains(workload)) {
            for stack in Stack::ALL {
                differences.extend(
                    Metric::ALL
                        .into_iter()
                        .filter_map(|metric| difference(a, b, workload, stack, metric)),
                );
            }
        }
        Self {
            schema: 1,
            differences,
            warnings,
        }
    }

    /// As a terminal table of the metrics asked for.
    pub(crate) fn table(&self, metrics: &[Metric], colour: bool) -> String {
        let header = [
            "workload",
            "stack",
            "metric",
            "A",
            "B",
            "B to A",
            "95 % interval",
            "verdict",
        ]
        .map(|name| (name.to_owned(), None));
        let mut rows = vec![header];
        for row in self
            .differences
            .iter()
            .filter(|row| metrics.contains(&row.metric))
        {
            rows.push([
                (printable(&row.workload), None),
                (row.stack.name().to_owned(), None),
                (row.metric.label().to_owned(), None),
                (row.metric.show(row.a), None),
                (row.metric.show(row.b), None),
                (text::percent(Some(row.delta_pct)), None),
                (text::interval(row.ci_low_pct, row.ci_high_pct), None),
                (row.verdict.to_string(), Some(row.verdict)),
            ]);
        }
        aligned(&rows, colour)
    }

    /// As a Markdown document.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::from("# Two runs compared\n\n");
        for warning in &self.warnings {
            out.push_str(&format!("- {warning}\n"));
        }
        out.push('\n');
        // Indented, not fenced: a name out of a file cannot end the block.
        for line in self.table(&Metric::ALL, false).lines() {
            out.push_str(&format!("    {line}\n"));
        }
        out.push_str("\nThe runs were made apart: the interval is Welch's t on logarithms, and a change of the machine between them counts as a difference.\n");
        out
    }
}

fn difference(
    a: &Results,
    b: &Results,
    workload: &str,
    stack: Stack,
    metric: Metric,
) -> Option<Difference> {
    let (old, new) = (
        a.values(workload, stack, metric),
        b.values(workload, stack, metric),
    );
    let estimate = stats::unpaired(&old, &new)?;
    Some(Difference {
        workload: workload.to_owned(),
        stack,
        metric,
        a: stats::geometric_mean(&old)?,
        b: stats::geometric_mean(&new)?,
        delta_pct: estimate.delta_pct,
        ci_low_pct: estimate.interval_pct.map(|(low, _)| low),
        ci_high_pct: estimate.interval_pct.map(|(_, high)| high),
        verdict: metric.verdict(&estimate),
    })
}

/// What differs between the circumstances of the runs.
fn provenance_warnings(a: &Provenance, b: &Provenance) -> Vec<String> {
    let kernel = |provenance: &Provenance, name: &str| {
        provenance
            .kernels
            .iter()
            .find(|kernel| kernel.name == name)
            .cloned()
    };
    let mut warnings = Vec::new();
    let mut differ = |what: &str, differs: bool| {
        if differs {
            warnings.push(format!("the runs differ in {what}"));
        }
    };
    for name in ["native", "patched"] {
        if let (Some(a), Some(b)) = (kernel(a, name), kernel(b, name)) {
            differ(
                &format!("the {name} kernel's release"),
                a.release != b.release,
            );
            if let (Some(a), Some(b)) = (&a.build, &b.build) {
                differ(
                    &format!("the {name} kernel's base"),
                    a.base_sha256 != b.base_sha256,
                );
                differ(
                    &format!("the {name} kernel's series"),
                    a.series_commit != b.series_commit,
                );
                differ(
                    &format!("the {name} kernel's config"),
                    a.config_sha256 != b.config_sha256,
                );
            } else {
                differ(
                    &format!("the {name} kernel's image"),
                    a.image_sha256 != b.image_sha256,
                );
            }
        }
    }
    differ(
        "where they ran (emulated or real)",
        a.guest.is_some() != b.guest.is_some(),
    );
    if let (Some(a), Some(b)) = (&a.guest, &b.guest) {
        differ("the drive stood for", a.device.model != b.device.model);
        differ(
            "the device latency",
            a.device.target_device_ns != b.device.target_device_ns,
        );
        differ(
            "the guest's CPUs or memory",
            (a.cpus, a.memory_mib) != (b.cpus, b.memory_mib),
        );
        differ("how async waited", a.wait != b.wait);
        differ("the knobs of async", a.knobs != b.knobs);
        differ("what runs the guest (KVM or emulation)", a.kvm != b.kvm);
        differ("the IOMMU mode", a.iommu != b.iommu);
        differ("the drive image", a.image != b.image);
    }
    if let (Some(a), Some(b)) = (&a.host, &b.host) {
        differ("the target", a != b);
    }
    differ("the machine", a.machine != b.machine);
    differ("the tools", a.tools != b.tools);
    differ("the length of a sample (--quick)", a.quick != b.quick);
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn test_new_same_run_twice_finds_no_difference_and_no_warning() {
        let run = example::results();
        let found = Differences::new(&run, &run);
        assert_eq!(found.warnings, Vec::<String>::new());
        assert_eq!(
            found.differences.len(),
            run.workloads().len() * 3 * Metric::ALL.len()
        );
        for row in &found.differences {
            assert!(row.delta_pct.abs() < 1e-9, "{row:?}");
            assert_eq!(row.verdict, Verdict::WithinNoise);
        }
    }

    #[test]
    fn test_new_twice_as_slow_returns_worse() {
        let a = example::results();
        let mut b = a.clone();
        for sample in &mut b.samples {
            sample.lat_mean_ns *= 2.0;
        }
        let found = Differences::new(&a, &b);
        let row = &found.differences[0];
        assert!((row.delta_pct - 100.0).abs() < 1e-6);
        assert_eq!(row.verdict, Verdict::Worse);
    }

    #[test]
    fn test_new_other_circumstances_are_named() {
        let a = example::results();
        let mut b = a.clone();
        b.complete = false;
        b.provenance.kernels[1]
            .build
            .as_mut()
            .unwrap()
            .config_sha256 = "0".to_owned();
        b.provenance.guest.as_mut().unwrap().device.target_device_ns += 1;
        b.deltas.retain(|row| row.workload != "db/fillsync");
        let warnings = Differences::new(&a, &b).warnings.join("\n");
        for part in [
            "the patched kernel's config",
            "the device latency",
            "the second run was interrupted",
            "db/fillsync is in the first run only",
        ] {
            assert!(warnings.contains(part), "{part} is missing in {warnings}");
        }
        assert_eq!(warnings.lines().count(), 4, "{warnings}");
    }
}
