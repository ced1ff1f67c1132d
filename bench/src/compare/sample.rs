// SPDX-License-Identifier: MIT
//! What one run of a tool measured.

use crate::report::histogram::Histogram;
use crate::report::schema::Sample;
use crate::stack::Stack;

/// Latencies and rate of one run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    /// Mean latency in nanoseconds.
    pub(crate) mean_ns: f64,
    /// Operations per second.
    pub(crate) iops: f64,
    /// All latencies.
    pub(crate) bins: Histogram,
    /// p50, p99 and p99.9 as the tool itself has them, where its bins are too
    /// wide to tell.
    percentiles: Option<[f64; 3]>,
}

impl Measured {
    /// None unless something was measured: a mean and a rate above zero and
    /// at least one latency.
    pub(crate) fn new(mean_ns: f64, iops: f64, bins: Histogram) -> Option<Self> {
        let sound = |value: f64| value.is_finite() && value > 0.0;
        (sound(mean_ns) && sound(iops) && bins.total() > 0).then_some(Self {
            mean_ns,
            iops,
            bins,
            percentiles: None,
        })
    }

    /// Replaces the percentiles of the bins; none where one is not sound.
    pub(crate) fn with_percentiles(mut self, percentiles: [f64; 3]) -> Option<Self> {
        let sound = percentiles
            .iter()
            .all(|value| value.is_finite() && *value > 0.0);
        self.percentiles = Some(percentiles);
        sound.then_some(self)
    }

    /// As a sample of a run.
    pub(crate) fn sample(&self, workload: &str, stack: Stack, pair: u32, order: u32) -> Sample {
        let [p50, p99, p999] = self.percentiles.unwrap_or_else(|| {
            // There is at least one latency.
            [0.5, 0.99, 0.999].map(|p| self.bins.percentile(p).unwrap_or_default() as f64)
        });
        Sample {
            workload: workload.to_owned(),
            stack,
            pair,
            order,
            ops: self.bins.total(),
            lat_mean_ns: self.mean_ns,
            lat_p50_ns: p50,
            lat_p99_ns: p99,
            lat_p999_ns: p999,
            iops: self.iops,
        }
    }
}
