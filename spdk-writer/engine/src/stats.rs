// SPDX-License-Identifier: MIT

//! What an engine did.

use crate::Action;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Longest latency that is told apart from longer ones.
const MAX_LATENCY: Duration = Duration::from_secs(120);

/// Counts and latencies of one engine.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Counts.
    pub counts: Counts,
    /// Nanoseconds from acceptance to completion: of requests with a range...
    transfers: Histogram<u64>,
    /// ... and of flushes.
    flushes: Histogram<u64>,
}

/// Counts since an engine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Commands of each kind that the device was given.
    pub reads: u64,
    /// As above.
    pub writes: u64,
    /// As above; those that are durable when they come back (force unit access) are not
    /// among the other writes.
    pub writes_through: u64,
    /// As above; a flush that the device does not need is none.
    pub flushes: u64,
    /// As above.
    pub discards: u64,
    /// As above.
    pub write_zeroes: u64,
    /// Bytes of reads and writes that were done.
    pub bytes_read: u64,
    /// As above.
    pub bytes_written: u64,
    /// Writes to a doorbell of submission, or system calls instead.
    pub doorbells: u64,
    /// Writes to a doorbell of completion.
    pub completion_doorbells: u64,
    /// Times the engine slept for a completion.
    pub sleeps: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Commands without an answer in time.
    pub timeouts: u64,
    /// Commands the device was asked to give up.
    pub aborts: u64,
    /// Resets of the device.
    pub resets: u64,
    /// Commands that were given once more: after an abort, a reset, or because
    /// the system did a part of them only.
    pub replays: u64,
}

/// Latencies, microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Half were shorter.
    pub p50: f64,
    /// 99 of 100 were shorter.
    pub p99: f64,
    /// 999 of 1000 were shorter.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// How many there were of each length, shortest first, without lengths that no
    /// latency had.
    pub histogram: Vec<Bucket>,
}

/// Latencies of one length: each length is up to twice the one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// They were shorter than this, microseconds: 2 to the power of a number.
    pub below_us: f64,
    /// How many.
    pub count: u64,
}

/// All of it, to be printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Counts.
    #[serde(flatten)]
    pub counts: Counts,
    /// Of reads, writes, discards and zeroes.
    pub latency_us: Latency,
    /// Of flushes.
    pub flush_latency_us: Latency,
}

impl Default for Stats {
    fn default() -> Self {
        // Two digits are exact enough. The bounds are valid ones, so this is a
        // histogram; were they not, one that grows would do as well.
        let new = || {
            Histogram::new_with_bounds(1, MAX_LATENCY.as_nanos() as u64, 2)
                .unwrap_or_else(|_| unreachable!("1 < 120e9, and 2 <= 5"))
        };
        Self {
            counts: Counts::default(),
            transfers: new(),
            flushes: new(),
        }
    }
}

impl Stats {
    /// Counts one command that the device was given.
    pub fn command(&mut self, action: Action) {
        let counts = &mut self.counts;
        *match action {
            Action::Read => &mut counts.reads,
            Action::Write => &mut counts.writes,
            Action::WriteThrough => &mut counts.writes_through,
            Action::Flush => &mut counts.flushes,
            Action::Discard => &mut counts.discards,
            Action::WriteZeroes => &mut counts.write_zeroes,
        } += 1;
    }

    /// Counts a request that came back after `took`, of `len` bytes.
    pub fn done(&mut self, action: Action, len: u64, took: Duration, good: bool) {
        let latency = match action {
            Action::Flush => &mut self.flushes,
            _ => &mut self.transfers,
        };
        latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1));
        match (good, action) {
            (false, _) => self.counts.failed += 1,
            (true, Action::Read) => self.counts.bytes_read += len,
            (true, Action::Write | Action::WriteThrough) => self.counts.bytes_written += len,
            (true, _) => {}
        }
    }

    /// All of it.
    pub fn summary(&self) -> Summary {
        Summary {
            counts: self.counts,
            latency_us: latency(&self.transfers),
            flush_latency_us: latency(&self.flushes),
        }
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    if histogram.is_empty() {
        return Latency::default();
    }
    let us = |ns: u64| ns as f64 / 1e3;
    Latency {
        count: histogram.len(),
        mean: histogram.mean() / 1e3,
        p50: us(histogram.value_at_quantile(0.5)),
        p99: us(histogram.value_at_quantile(0.99)),
        p999: us(histogram.value_at_quantile(0.999)),
        max: us(histogram.max()),
        histogram: buckets(histogram),
    }
}

/// Of a microsecond and less, two, four, and so on.
fn buckets(histogram: &Histogram<u64>) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for value in histogram.iter_recorded() {
        let us = value.value_iterated_to().div_ceil(1000).max(1);
        // The longest there can be is 2 to the power of 27.
        let below_us = (us + 1).next_power_of_two() as f64;
        let count = value.count_since_last_iteration();
        match buckets.last_mut() {
            Some(last) if last.below_us == below_us => last.count += count,
            _ => buckets.push(Bucket { below_us, count }),
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_stats_counts_and_percentiles() {
        let mut stats = Stats::default();
        for ms in 1..=100 {
            stats.command(Action::Write);
            stats.done(Action::Write, 4096, Duration::from_millis(ms), true);
        }
        stats.command(Action::Flush);
        stats.done(Action::Flush, 0, Duration::from_secs(1000), false);
        let summary = stats.summary();
        assert_eq!(summary.counts.writes, 100);
        assert_eq!(summary.counts.bytes_written, 409_600);
        assert_eq!(summary.counts.failed, 1);
        assert!((49_000.0..52_000.0).contains(&summary.latency_us.p50));
        assert!((98_000.0..101_000.0).contains(&summary.latency_us.p99));
        assert_eq!(summary.flush_latency_us.count, 1);
        // Of 1 to 100 ms, those below 1,024 µs, 2,048 µs and so on.
        let got: Vec<_> = summary.latency_us.histogram.iter().collect();
        let bounds: Vec<_> = got.iter().map(|bucket| bucket.below_us).collect();
        let counts: Vec<_> = got.iter().map(|bucket| bucket.count).collect();
        let expected: Vec<_> = (10..=17).map(|n| f64::from(1 << n)).collect();
        assert_eq!(bounds, expected);
        assert_eq!(counts, [1, 1, 2, 4, 8, 16, 33, 35]);
    }
}
