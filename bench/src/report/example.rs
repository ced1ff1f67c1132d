// SPDX-License-Identifier: MIT
//! Made-up results for tests.

use super::histogram::Histogram;
use super::schema::{
    GuestInfo,
    Kernel,
    Latencies,
    Machine,
    Provenance,
    Results,
    Sample,
    Tool, //
};
use crate::device::{
    Calibration,
    Latency,
    Model, //
};
use crate::guest::Iommu;
use crate::kernel::BuildId;
use crate::stack::{
    Stack,
    Wait, //
};

/// A sample whose latencies follow from its mean.
pub(crate) fn sample(workload: &str, stack: Stack, pair: u32, mean: f64) -> Sample {
    Sample {
        workload: workload.to_owned(),
        stack,
        pair,
        order: pair * 3 + u32::from(stack != Stack::Native),
        ops: 1000,
        lat_mean_ns: mean,
        lat_p50_ns: mean * 0.9,
        lat_p99_ns: mean * 3.0,
        lat_p999_ns: mean * 9.0,
        iops: 1e9 / mean,
    }
}

/// A complete provenance, with text that must be escaped.
pub(crate) fn provenance() -> Provenance {
    let build = |commit: &str| BuildId {
        base_version: "7.3.4".to_owned(),
        base_sha256: "ab".repeat(32),
        series_commit: commit.repeat(40),
        config_sha256: "cd".repeat(32),
    };
    let kernel = |name: &str, commit: &str| Kernel {
        name: name.to_owned(),
        release: "7.3.4".to_owned(),
        build: Some(build(commit)),
        image_sha256: Some("ef".repeat(32)),
    };
    Provenance {
        aios: "0.1.0".to_owned(),
        command: vec![
            "aios".to_owned(),
            "compare".to_owned(),
            "--only=<*>".to_owned(),
        ],
        date: "2026-03-01T12:00:00Z".to_owned(),
        seconds: 171.0,
        seed: 42,
        pairs: 5,
        quick: false,
        machine: Machine {
            cpu: "Example CPU <2.5 GHz> & co".to_owned(),
            cpus: 2,
            memory_mib: 24_000,
            kernel: "6.1.0".to_owned(),
            os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        },
        tools: vec![Tool {
            name: "fio".to_owned(),
            version: "fio-3.33".to_owned(),
        }],
        kernels: vec![kernel("native", "1"), kernel("patched", "2")],
        guest: Some(GuestInfo {
            qemu: vec!["qemu-system-x86_64 -append 'a b' | <native>".to_owned()],
            cpus: 1,
            wait: Wait::Spin,
            knobs: Vec::new(),
            memory_mib: 512,
            kvm: false,
            iommu: Iommu::Lazy,
            device: Calibration {
                model: Model::Optane,
                kernel_ns: 110_000,
                base_device_ns: 60_000,
                target_device_ns: 146_000,
                read: Latency {
                    points: vec![(50.0, 86_000)],
                },
                write: Latency {
                    points: vec![(50.0, 86_000)],
                },
            },
            image: "0123456789ab".to_owned(),
        }),
        host: None,
        notes: vec!["an example & nothing <more>".to_owned()],
    }
}

/// A run of many workloads, some better, some worse, some neither.
pub(crate) fn results() -> Results {
    let mut random = fastrand::Rng::with_seed(3);
    let mut samples = Vec::new();
    let mut histograms = Vec::new();
    for (index, name) in NAMES.iter().enumerate() {
        let gain = [0.7, 0.82, 0.93, 1.0, 1.12][index % 5];
        let base = 2e5 * (1.0 + index as f64 / 3.0);
        for (stack, factor) in [
            (Stack::Native, 1.0),
            (Stack::Off, 1.004),
            (Stack::Async, gain),
        ] {
            let mut bins = Histogram::default();
            for pair in 0..5 {
                let mean = base * factor * (0.96 + 0.08 * random.f64());
                samples.push(sample(name, stack, pair, mean));
                for _ in 0..2000 {
                    let tail = (1.0 - random.f64()).powf(-0.25);
                    let latency = mean * 0.7 * tail * (0.9 + 0.2 * random.f64());
                    bins.add((latency / 1e3).round() as u64 * 1000, 1);
                }
            }
            histograms.push(Latencies {
                workload: (*name).to_owned(),
                stack,
                bins,
            });
        }
    }
    Results::new(samples, histograms, provenance(), true)
}

const NAMES: [&str; 20] = [
    "fio/randread-4k-buffered-qd1",
    "fio/randread-4k-buffered-t2",
    "fio/randread-4k-buffered-t4",
    "fio/randread-8k-buffered-qd1",
    "fio/randread-16k-buffered-qd1",
    "fio/randread-32k-buffered-qd1",
    "fio/randread-64k-buffered-qd1",
    "fio/randread-128k-buffered-qd1",
    "fio/randread-4k-direct-qd1",
    "fio/randread-4k-uring-qd1",
    "fio/randread-4k-uring-qd8",
    "fio/randread-4k-uring-qd32",
    "fio/seqread-128k-buffered-qd1",
    "fio/overwrite-4k-fsync",
    "fio/append-4k-fsync",
    "db/fillsync",
    "db/readrandom",
    "db/readwhilewriting",
    "fio/<script>alert(1)</script>",
    "fio/a|b & \"c\"",
];
