// SPDX-License-Identifier: MIT
//! Latency histograms: merged over samples, asked for percentiles.

use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::BTreeMap;

/// Counts by latency: each key is the latency in nanoseconds that stands for
/// its bin, as the measuring tool chose it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(crate) struct Histogram {
    bins: BTreeMap<u64, u64>,
}

impl From<Vec<(u64, u64)>> for Histogram {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        let mut histogram = Self::default();
        for (latency, count) in pairs {
            histogram.add(latency, count);
        }
        histogram
    }
}

impl From<Histogram> for Vec<(u64, u64)> {
    fn from(histogram: Histogram) -> Self {
        histogram.bins.into_iter().collect()
    }
}

impl Histogram {
    /// Adds `count` operations of `latency` nanoseconds.
    pub(crate) fn add(&mut self, latency: u64, count: u64) {
        if count > 0 {
            let bin = self.bins.entry(latency).or_default();
            *bin = bin.saturating_add(count);
        }
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (latency, count) in &other.bins {
            self.add(*latency, *count);
        }
    }

    /// Operations in all.
    pub(crate) fn total(&self) -> u64 {
        self.bins.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Smallest bin that at least the share `p` (0..=1) of all operations do
    /// not exceed; `None` when empty.
    pub(crate) fn percentile(&self, p: f64) -> Option<u64> {
        let total = self.total();
        let rank = (p.clamp(0.0, 1.0) * total as f64).ceil().max(1.0);
        let mut seen = 0u64;
        self.bins
            .iter()
            .find(|(_, count)| {
                seen = seen.saturating_add(**count);
                seen as f64 >= rank
            })
            .map(|(latency, _)| *latency)
    }

    /// Points (latency, share of operations that take longer), by rising
    /// latency: the complement of the distribution function.
    pub(crate) fn exceedance(&self) -> Vec<(u64, f64)> {
        let total = self.total();
        let mut left = total;
        self.bins
            .iter()
            .map(|(latency, count)| {
                left = left.saturating_sub(*count);
                (*latency, left as f64 / total as f64)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_percentile_empty_returns_none() {
        assert_eq!(Histogram::default().percentile(0.5), None);
    }

    #[test]
    fn test_percentile_walks_cumulative_counts() {
        let histogram = Histogram::from(vec![(10, 50), (20, 49), (1000, 1)]);
        assert_eq!(histogram.percentile(0.5), Some(10));
        assert_eq!(histogram.percentile(0.51), Some(20));
        assert_eq!(histogram.percentile(0.99), Some(20));
        assert_eq!(histogram.percentile(0.999), Some(1000));
    }

    #[test]
    fn test_exceedance_ends_at_zero() {
        let histogram = Histogram::from(vec![(10, 3), (20, 1)]);
        assert_eq!(histogram.exceedance(), [(10, 0.25), (20, 0.0)]);
    }

    #[test]
    fn test_serde_writes_pairs_and_reads_them_back() {
        let histogram = Histogram::from(vec![(20, 1), (10, 3), (20, 4)]);
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(text, "[[10,3],[20,5]]");
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
    }

    proptest! {
        #[test]
        fn test_percentile_agrees_with_sorted_samples(
            samples in prop::collection::vec(1u64..10_000, 1..300),
            p in 0.0..1.0f64
        ) {
            let mut histogram = Histogram::default();
            for sample in &samples {
                histogram.add(*sample, 1);
            }
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            let rank = ((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            prop_assert_eq!(histogram.percentile(p), Some(sorted[rank - 1]));
        }

        #[test]
        fn test_merge_adds_totals(
            a in prop::collection::vec((1u64..50, 0u64..9), 0..30),
            b in prop::collection::vec((1u64..50, 0u64..9), 0..30)
        ) {
            let (mut merged, other) = (Histogram::from(a), Histogram::from(b));
            let sum = merged.total() + other.total();
            merged.merge(&other);
            prop_assert_eq!(merged.total(), sum);
        }
    }
}
