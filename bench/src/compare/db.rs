// SPDX-License-Identifier: MIT
//! RocksDB's db_bench: its runs, and what it prints about them.

use super::sample::Measured;
use super::workload::Sizing;
use crate::error::{
    Error,
    Result, //
};
use crate::report::histogram::Histogram;

/// The filled database; never changed. All names are relative: db_bench runs
/// in the measured folder.
pub(crate) const BASE: &str = "db-base";
/// The database of one run: the base, linked.
const RUN: &str = "db-run";
/// Size of a value in bytes.
const VALUE: u64 = 1024;
/// Size of a key in bytes.
const KEY: u64 = 16;
/// db_bench's fillsync puts a thousandth of `--num` different keys.
const FILL: u64 = 100_000_000;

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bench {
    /// Puts into an empty database, each synced.
    FillSync,
    /// Gets of random keys.
    ReadRandom,
    /// The same beside a thread that writes.
    ReadWhileWriting,
}

impl Bench {
    /// All.
    pub(crate) const ALL: [Self; 3] = [Self::FillSync, Self::ReadRandom, Self::ReadWhileWriting];

    /// As db_bench calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FillSync => "fillsync",
            Self::ReadRandom => "readrandom",
            Self::ReadWhileWriting => "readwhilewriting",
        }
    }

    /// db_bench's arguments.
    pub(crate) fn args(self, sizing: &Sizing, seed: u64) -> Vec<String> {
        let mut args = vec![
            format!("--benchmarks={}", self.name()),
            format!("--db={RUN}"),
            // The whole file counts in seconds, one at least.
            format!("--duration={}", sizing.runtime.as_secs().max(1)),
            "--ops_between_duration_checks=16".to_owned(),
            "--histogram=1".to_owned(),
            // Zero would ask for the clock; the sign bit is refused.
            format!("--seed={}", (seed >> 1).max(1)),
        ];
        args.extend(common());
        match self {
            Self::FillSync => args.push(format!("--num={FILL}")),
            Self::ReadRandom | Self::ReadWhileWriting => {
                args.push(format!("--num={}", sizing.keys));
                args.push("--use_existing_db=1".to_owned());
                // No compaction of the base beside the reads.
                args.push("--disable_auto_compactions=1".to_owned());
            }
        }
        if self == Self::ReadWhileWriting {
            // Bytes per second: some 200 puts, which one processor bears.
            args.push("--benchmark_write_rate_limit=200000".to_owned());
        }
        args
    }

    /// The shell command that makes the database of the run, where it does not
    /// make it itself.
    pub(crate) fn prepare(self) -> Option<String> {
        // Links do: RocksDB replaces files and never changes them in place.
        let link = || format!("cp -al {BASE} {RUN}");
        (self != Self::FillSync).then(link)
    }

    /// What the run leaves behind and must go.
    pub(crate) fn leftover(self) -> &'static str {
        RUN
    }

    /// Reads what db_bench printed.
    pub(crate) fn parse(self, output: &str) -> Result<Measured> {
        parse(self.name(), output).ok_or_else(|| {
            let last = output.lines().rfind(|line| !line.trim().is_empty());
            Error::new(format!(
                "db_bench's output for {} is not understood; it ends with {:?}",
                self.name(),
                last.unwrap_or_default()
            ))
            .hint("see the version of db_bench; 7.8 is known to work")
        })
    }
}

fn common() -> Vec<String> {
    [
        format!("--value_size={VALUE}"),
        format!("--key_size={KEY}"),
        // Data of the size that it says.
        "--compression_type=none".to_owned(),
        // Small next to the data: blocks come from the drive.
        "--cache_size=8388608".to_owned(),
        "--threads=1".to_owned(),
    ]
    .into()
}

/// db_bench's arguments that fill the base database.
pub(crate) fn fill_args(keys: u64) -> Vec<String> {
    let mut args = vec![
        "--benchmarks=fillseq".to_owned(),
        format!("--db={BASE}"),
        format!("--num={keys}"),
        "--disable_wal=1".to_owned(),
        "--seed=1".to_owned(),
    ];
    args.extend(common());
    args
}

/// Bytes that `keys` take on the drive, tables and their indexes.
pub(crate) fn base_bytes(keys: u64) -> u64 {
    keys.saturating_mul(KEY + VALUE) / 20 * 21
}

/// The line of the benchmark, then its histogram:
///
/// ```text
/// readrandom   :      33.549 micros/op 29805 ops/sec 1.006 seconds 29999 operations; ...
/// Count: 29999 Average: 33.6616  StdDev: 227.31
/// Percentiles: P50: 20.07 P75: 25.79 P99: 52.70 P99.9: 3900.02 P99.99: 4400.22
/// (       4,       6 ]        4   0.013%   0.013%
/// ```
fn parse(name: &str, output: &str) -> Option<Measured> {
    let mut lines = output
        .lines()
        .skip_while(|line| line.split(':').next().map(str::trim) != Some(name));
    let summary = lines.next()?;
    let rate = word_before(summary, "ops/sec")?;
    let (mut average, mut percentiles, mut bins) = (None, None, Histogram::default());
    for line in lines {
        if line.starts_with("Count:") {
            average = word_after(line, "Average:");
        } else if line.starts_with("Percentiles:") {
            percentiles = Some([
                word_after(line, "P50:")?,
                word_after(line, "P99:")?,
                word_after(line, "P99.9:")?,
            ]);
        } else if let Some((limit, count)) = bucket(line) {
            bins.add(limit.saturating_mul(1000), count);
        }
    }
    let nanoseconds = |micros: f64| micros * 1e3;
    Measured::new(nanoseconds(average?), rate, bins)?
        .with_percentiles(percentiles?.map(nanoseconds))
}

/// The upper limit in microseconds and the count of a line of the histogram.
fn bucket(line: &str) -> Option<(u64, u64)> {
    let range = line.strip_prefix(['(', '['])?;
    let (limits, rest) = range.split_once(']')?;
    let (_, limit) = limits.split_once(',')?;
    let count = rest.split_whitespace().next()?;
    Some((limit.trim().parse().ok()?, count.parse().ok()?))
}

fn word_after(line: &str, key: &str) -> Option<f64> {
    let mut words = line.split_whitespace().skip_while(|word| *word != key);
    words.nth(1)?.parse().ok()
}

fn word_before(line: &str, key: &str) -> Option<f64> {
    let mut previous = None;
    for word in line.split_whitespace() {
        if word == key {
            return previous?;
        }
        previous = Some(word.parse().ok());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const READ: &str = include_str!("../../tests/fixtures/db_bench-7.8.3-readrandom.txt");
    const MIXED: &str = include_str!("../../tests/fixtures/db_bench-7.8.3-readwhilewriting.txt");
    const FILL: &str = include_str!("../../tests/fixtures/db_bench-7.8.3-fillsync.txt");

    #[test]
    fn test_parse_readrandom_returns_printed_numbers() {
        let found = Bench::ReadRandom.parse(READ).unwrap();
        let sample = found.sample("db/readrandom", crate::stack::Stack::Off, 0, 0);
        assert_eq!(sample.ops, 29_999);
        assert!((sample.lat_mean_ns - 33_661.6).abs() < 1e-6);
        assert!((sample.lat_p50_ns - 20_070.0).abs() < 0.5);
        assert!((sample.lat_p999_ns - 3_900_020.0).abs() < 0.5);
        assert_eq!(sample.iops, 29_805.0);
    }

    #[test]
    fn test_parse_every_fixture_keeps_all_operations() {
        for (bench, text, count) in [
            (Bench::ReadWhileWriting, MIXED, 27_999),
            (Bench::FillSync, FILL, 999),
        ] {
            assert_eq!(bench.parse(text).unwrap().bins.total(), count, "{bench:?}");
        }
    }

    #[test]
    fn test_parse_other_benchmark_or_cut_output_returns_error() {
        let cut = READ.split("Percentiles:").next().unwrap();
        for text in [
            "",
            "open error: IO error: No space left on device",
            MIXED,
            cut,
        ] {
            let error = Bench::ReadRandom.parse(text).unwrap_err().to_string();
            assert!(error.contains("is not understood"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn test_bucket_reads_both_brackets() {
        assert_eq!(
            bucket("[       0,       1 ]     3695   0.577%   0.577% "),
            Some((1, 3695))
        );
        assert_eq!(
            bucket("(      15,      22 ]    14316  51.130%  55.327% ####"),
            Some((22, 14316))
        );
        assert_eq!(bucket("(nonsense"), None);
    }

    #[test]
    fn test_args_readers_never_write_the_base() {
        let sizing = Sizing {
            runtime: Duration::from_millis(700),
            file_mib: 1,
            keys: 1000,
        };
        for bench in Bench::ALL {
            let args = bench.args(&sizing, 0);
            assert!(args.contains(&"--db=db-run".to_owned()));
            assert!(args.contains(&"--duration=1".to_owned()));
            assert!(args.contains(&"--seed=1".to_owned()));
        }
    }
}
