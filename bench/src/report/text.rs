// SPDX-License-Identifier: MIT
//! The wording that all outputs share: one place for what the numbers mean.

use super::schema::{
    Kernel,
    Machine,
    Metric,
    Provenance,
    Results,
    Verdict, //
};
use crate::stack::{
    Stack,
    Wait, //
};

/// How the numbers were won.
const METHOD: &str = "Every workload runs once on every stack per pair, with the same offsets. A column is the \
    geometric mean over the samples. A difference is taken inside each pair, between logarithms; its interval is \
    Student's t over the pairs, at 95 %. The verdict is better or worse only where the whole interval lies on one side \
    of zero, and within noise otherwise. About one verdict in twenty is expected to be wrong by chance; look for rows \
    that agree.";

/// How the stacks shared a machine that is never quite idle.
pub(crate) fn method(provenance: &Provenance) -> String {
    let turns = if provenance.guest.is_some() {
        "Each stack has a guest of its own; inside a pair the guests take turns of a quarter of a second, standing still \
         in between, so that whatever else the machine does meets all of them alike."
    } else {
        "Inside a pair the stacks run one after the other, in an order shuffled by the seed, so that a drift of the \
         machine meets all of them alike."
    };
    format!("{METHOD} {turns}")
}

/// What an emulated processor can and cannot tell; nothing about a real one.
pub(crate) fn caveat(provenance: &Provenance) -> Option<&'static str> {
    emulated(provenance.guest.as_ref()?.kvm)
}

/// The same of a guest that KVM runs, or not.
pub(crate) fn emulated(kvm: bool) -> Option<&'static str> {
    (!kvm).then_some(EMULATED)
}

const EMULATED: &str = "The processor is emulated in software: absolute times mean nothing outside this \
    report, and instructions are not cycles (no cache misses, no cost of device registers). The drive's latency is \
    scaled so that the ratio of kernel time to device time is that of the drive named. Read the differences, not the \
    microseconds.";

/// What is compared with what, in one line.
pub(crate) fn headline(results: &Results) -> String {
    let baseline = match results.provenance.host {
        None => "native",
        Some(_) => "the same kernel with the stack off",
    };
    format!(
        "async against {baseline}, {} workloads, {} pairs",
        results.workloads().len(),
        results.provenance.pairs
    )
}

/// The stacks that were measured.
pub(crate) fn stacks(results: &Results) -> Vec<Stack> {
    Stack::ALL
        .into_iter()
        .filter(|stack| results.samples.iter().any(|sample| sample.stack == *stack))
        .collect()
}

/// How often each verdict fell, over the mean latencies.
pub(crate) fn counts(results: &Results) -> Vec<(Verdict, usize)> {
    Verdict::ALL
        .into_iter()
        .map(|verdict| {
            let count = results
                .rows(Metric::LatMeanNs)
                .filter(|row| row.verdict == verdict)
                .count();
            (verdict, count)
        })
        .filter(|(verdict, count)| *count > 0 || *verdict != Verdict::TooFewPairs)
        .collect()
}

/// A difference in per cent, `-` without one.
pub(crate) fn percent(delta: Option<f64>) -> String {
    delta.map_or_else(|| "-".to_owned(), |delta| format!("{delta:+.1} %"))
}

/// An interval in per cent.
pub(crate) fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{low:+.1} to {high:+.1}"),
        _ => "-".to_owned(),
    }
}

/// Everything needed to repeat the run, as (what, value), the long ones
/// (QEMU lines) apart.
pub(crate) fn facts(provenance: &Provenance) -> Vec<(String, String)> {
    let mut facts = vec![
        ("command".to_owned(), provenance.command.join(" ")),
        ("started".to_owned(), provenance.date.clone()),
        (
            "took".to_owned(),
            format!("{:.0} s, builds left out", provenance.seconds),
        ),
        ("seed".to_owned(), provenance.seed.to_string()),
        ("machine".to_owned(), machine(&provenance.machine)),
        ("aios".to_owned(), provenance.aios.clone()),
    ];
    for tool in &provenance.tools {
        facts.push((tool.name.clone(), tool.version.clone()));
    }
    for kernel in &provenance.kernels {
        facts.push((format!("{} kernel", kernel.name), self::kernel(kernel)));
    }
    if let Some(guest) = &provenance.guest {
        facts.push((
            "guest".to_owned(),
            format!(
                "{} CPUs{}{}, {} MiB, {}, IOMMU {}, drive image {}",
                guest.cpus,
                match guest.wait {
                    Wait::Spin => "",
                    Wait::Halt => ", async halts while it waits",
                    Wait::Sleep => ", async sleeps while it waits",
                },
                guest
                    .knobs
                    .iter()
                    .map(|knob| format!(", async with {knob}"))
                    .collect::<String>(),
                guest.memory_mib,
                if guest.kvm {
                    "KVM"
                } else {
                    "software emulation"
                },
                format!("{:?}", guest.iommu).to_lowercase(),
                guest.image
            ),
        ));
        facts.push(("device".to_owned(), guest.device.describe()));
    }
    if let Some(host) = &provenance.host {
        facts.push((
            "target".to_owned(),
            format!("{} on {}", host.target, host.mount),
        ));
    }
    facts
}

/// A machine in one line.
pub(crate) fn machine(machine: &Machine) -> String {
    format!(
        "{} × {}, {} MiB, {}, Linux {}",
        machine.cpus, machine.cpu, machine.memory_mib, machine.os, machine.kernel
    )
}

/// What tells a kernel from all others.
pub(crate) fn kernel(kernel: &Kernel) -> String {
    let mut text = format!("Linux {}", kernel.release);
    if let Some(build) = &kernel.build {
        text.push_str(&format!(
            "; base {} (sha256 {}); series {}; config sha256 {}",
            build.base_version, build.base_sha256, build.series_commit, build.config_sha256
        ));
    }
    if let Some(image) = &kernel.image_sha256 {
        text.push_str(&format!("; bzImage sha256 {image}"));
    }
    text
}

/// The QEMU lines; none on a real machine.
pub(crate) fn qemu(provenance: &Provenance) -> &[String] {
    provenance.guest.as_ref().map_or(&[], |guest| &guest.qemu)
}
