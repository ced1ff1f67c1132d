// SPDX-License-Identifier: MIT
//! fio: its jobs, and what it prints about them.

use super::sample::Measured;
use super::workload::Sizing;
use crate::error::{
    Error,
    Result, //
};
use crate::report::histogram::Histogram;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The file that is read and overwritten. All names are relative: fio runs in
/// the measured folder.
pub(crate) const DATA: &str = "fio-data";
/// The file that appends make and that is removed after each.
const GROWING: &str = "fio-append";
/// The folder of the files that are made, removed after each run.
const MADE: &str = "fio-create";
/// So many of them at most.
const MADE_FILES: u32 = 4096;

/// What is done to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads at random offsets, none twice.
    RandRead,
    /// Reads from the start on.
    SeqRead,
    /// Overwrites written blocks at random offsets.
    Overwrite,
    /// Makes a new file longer.
    Append,
    /// Makes new files, each of one block.
    Create,
}

/// By which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// pread through the page cache, cold.
    Buffered,
    /// pread with O_DIRECT.
    Direct,
    /// io_uring with O_DIRECT.
    Uring,
    /// pwrite, with an fsync after each.
    Fsync,
}

/// A fio job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// What is done.
    pub(crate) access: Access,
    /// Block size in KiB.
    pub(crate) block_kib: u32,
    /// By which way.
    pub(crate) mode: Mode,
    /// Operations under way at once, per thread.
    pub(crate) depth: u32,
    /// Threads.
    pub(crate) threads: u32,
}

impl Job {
    /// `randread-4k-buffered-qd1`.
    pub(crate) fn name(self) -> String {
        let access = match self.access {
            Access::RandRead => "randread",
            Access::SeqRead => "seqread",
            Access::Overwrite => "overwrite",
            Access::Append => "append",
            Access::Create => "create",
        };
        let mode = match self.mode {
            Mode::Buffered => "buffered",
            Mode::Direct => "direct",
            Mode::Uring => "uring",
            Mode::Fsync => "fsync",
        };
        let width = if self.threads > 1 {
            format!("t{}", self.threads)
        } else if self.mode == Mode::Fsync {
            return format!("{access}-{}k-{mode}", self.block_kib);
        } else {
            format!("qd{}", self.depth)
        };
        format!("{access}-{}k-{mode}-{width}", self.block_kib)
    }

    /// Whether it writes.
    pub(crate) fn writes(self) -> bool {
        matches!(
            self.access,
            Access::Overwrite | Access::Append | Access::Create
        )
    }

    /// The job's section of fio's arguments; `file` is read instead of
    /// [`DATA`].
    fn section(self, file: Option<&str>, sizing: &Sizing, seed: u64) -> Vec<String> {
        // A colon would separate two names.
        let data = file
            .unwrap_or(DATA)
            .replace('\\', "\\\\")
            .replace(':', "\\:");
        // A part of the file for each thread: none reads what another read.
        let share_mib = sizing.file_mib / u64::from(self.threads.max(1));
        let mut args = vec![
            format!("--name={}", self.name()),
            // After the section before it.
            "--stonewall".to_owned(),
            "--thread".to_owned(),
            "--group_reporting".to_owned(),
            // Latency from the call to the data, waiting in the queue included.
            "--lat_percentiles=1".to_owned(),
            "--clat_percentiles=0".to_owned(),
            "--fallocate=none".to_owned(),
            "--invalidate=1".to_owned(),
            format!("--bs={}k", self.block_kib),
            format!("--iodepth={}", self.depth),
            format!("--numjobs={}", self.threads),
            // Ends earlier when the files are through: no block is read twice.
            format!("--runtime={}ms", sizing.runtime.as_millis()),
            // fio takes 63 bits of it.
            format!("--randseed={}", seed >> 1),
        ];
        let mut more = |list: &[&str]| args.extend(list.iter().map(|arg| (*arg).to_owned()));
        match self.access {
            Access::RandRead => more(&["--rw=randread"]),
            Access::SeqRead => more(&["--rw=read"]),
            Access::Overwrite => more(&["--rw=randwrite", "--overwrite=1"]),
            Access::Append => more(&["--rw=write", "--file_append=1", "--create_on_open=1"]),
            Access::Create => more(&[
                "--rw=write",
                "--create_on_open=1",
                // One after the other.
                "--openfiles=1",
                "--file_service_type=sequential",
            ]),
        }
        match self.mode {
            Mode::Buffered => more(&["--ioengine=psync"]),
            Mode::Direct => more(&["--ioengine=psync", "--direct=1"]),
            Mode::Uring => more(&["--ioengine=io_uring", "--direct=1"]),
            Mode::Fsync => more(&["--ioengine=psync", "--fsync=1"]),
        }
        args.extend(match self.access {
            Access::Create => vec![
                format!("--directory={MADE}"),
                format!("--nrfiles={MADE_FILES}"),
                format!("--filesize={}k", self.block_kib),
            ],
            access => vec![
                format!("--size={share_mib}m"),
                format!("--offset_increment={share_mib}m"),
                match access {
                    Access::Append => format!("--filename={GROWING}"),
                    _ => format!("--filename={data}"),
                },
            ],
        });
        args
    }

    /// The folder that must be there before it starts.
    pub(crate) fn folder(self) -> Option<&'static str> {
        (self.access == Access::Create).then_some(MADE)
    }

    /// What it leaves behind and what must go.
    pub(crate) fn leftover(self) -> Option<&'static str> {
        match self.access {
            Access::Append => Some(GROWING),
            Access::Create => Some(MADE),
            _ => None,
        }
    }

    /// Reads what fio printed: latencies of the reads, or of the fsync calls.
    pub(crate) fn parse(self, output: &str) -> Result<Measured> {
        let wrong = |what: &str| {
            Error::new(format!("fio's output for {}: {what}", self.name()))
                .hint("see the version of fio; 3.33 and later are known to work")
        };
        // fio prints notes before the document.
        let start = output
            .find('{')
            .ok_or_else(|| wrong("there is no JSON in it"))?;
        let mut documents = serde_json::Deserializer::from_str(&output[start..]).into_iter();
        let report: Report = match documents.next() {
            Some(Ok(report)) => report,
            Some(Err(error)) => return Err(wrong(&error.to_string())),
            None => return Err(wrong("there is no JSON in it")),
        };
        let job = report
            .jobs
            .iter()
            .find(|job| job.jobname == self.name())
            .ok_or_else(|| wrong("the job is not in it"))?;
        if job.error != 0 {
            return Err(wrong(&format!("the job failed with error {}", job.error)));
        }
        let (latency, side) = match self.writes() {
            true => (&job.sync.lat_ns, &job.write),
            false => (&job.read.lat_ns, &job.read),
        };
        let mut bins = Histogram::default();
        for (bin, count) in &latency.bins {
            let bin = bin
                .parse()
                .map_err(|_| wrong(&format!("bin {bin:?} is no number")))?;
            bins.add(bin, *count);
        }
        Measured::new(latency.mean, side.iops, bins)
            .ok_or_else(|| wrong("no operation was finished; the sample was too short"))
    }
}

/// fio's arguments for jobs that run one after the other. `file` is read
/// instead of [`DATA`].
pub(crate) fn args(jobs: &[Job], file: Option<&str>, sizing: &Sizing, seed: u64) -> Vec<String> {
    let mut args = vec!["--eta=never".to_owned(), "--output-format=json+".to_owned()];
    if !jobs.iter().any(|job| job.writes()) {
        // Never creates, never lays out: the file must be there.
        args.push("--readonly".to_owned());
    }
    args.extend(jobs.iter().flat_map(|job| job.section(file, sizing, seed)));
    args
}

/// fio's JSON, as far as it is read.
#[derive(Debug, Deserialize)]
struct Report {
    jobs: Vec<JobReport>,
}

#[derive(Debug, Deserialize)]
struct JobReport {
    jobname: String,
    error: i64,
    read: Side,
    write: Side,
    sync: Sync,
}

#[derive(Debug, Deserialize)]
struct Side {
    iops: f64,
    lat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Sync {
    lat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    bins: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const READ: &str = include_str!("../../tests/fixtures/fio-3.33-randread.json");
    const FSYNC: &str = include_str!("../../tests/fixtures/fio-3.33-fsync.json");

    const SIZING: Sizing = Sizing {
        runtime: Duration::from_millis(1500),
        file_mib: 512,
        keys: 0,
    };

    fn job(access: Access, mode: Mode, threads: u32) -> Job {
        Job {
            access,
            block_kib: 4,
            mode,
            depth: 1,
            threads,
        }
    }

    #[test]
    fn test_parse_read_agrees_with_fio_percentiles() {
        let found = job(Access::RandRead, Mode::Buffered, 1)
            .parse(READ)
            .unwrap();
        assert_eq!(found.bins.total(), 300);
        assert_eq!(found.mean_ns, 3122.24);
        assert_eq!(found.iops, 150_000.0);
        // As fio printed them beside the bins.
        for (p, printed) in [(0.5, 2640), (0.9, 3440), (0.99, 6880), (0.999, 88_576)] {
            assert_eq!(found.bins.percentile(p), Some(printed), "{p}");
        }
    }

    #[test]
    fn test_parse_fsync_takes_latency_of_sync_and_rate_of_writes() {
        let found = job(Access::Overwrite, Mode::Fsync, 1).parse(FSYNC).unwrap();
        assert_eq!(found.bins.total(), 29);
        assert!((found.mean_ns - 3_778_071.55).abs() < 0.01);
        assert!((found.iops - 267.857).abs() < 0.001);
    }

    #[test]
    fn test_parse_notes_before_document_are_skipped() {
        let text = format!("fio: some note\n{READ}");
        assert!(
            job(Access::RandRead, Mode::Buffered, 1)
                .parse(&text)
                .is_ok()
        );
    }

    #[test]
    fn test_parse_bad_output_returns_error() {
        let failed = READ.replacen("\"error\" : 0", "\"error\" : 5", 1);
        assert_ne!(failed, READ);
        let cut = &READ[..READ.len() / 2];
        for (text, part) in [
            ("", "no JSON"),
            ("fio: engine io_uring not loadable", "no JSON"),
            ("{}", "missing field"),
            ("{\"jobs\":[]}", "not in it"),
            (cut, "EOF"),
            (failed.as_str(), "error 5"),
        ] {
            let error = job(Access::RandRead, Mode::Buffered, 1)
                .parse(text)
                .unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn test_parse_no_operations_returns_error() {
        // The read fixture has no fsync at all.
        let named = READ.replace("randread-4k-buffered-qd1", "append-4k-fsync");
        let error = job(Access::Append, Mode::Fsync, 1)
            .parse(&named)
            .unwrap_err();
        assert!(error.to_string().contains("no operation"), "{error}");
    }

    #[test]
    fn test_args_threads_share_the_file() {
        let found = args(
            &[job(Access::RandRead, Mode::Buffered, 4)],
            None,
            &SIZING,
            7,
        );
        for arg in [
            "--size=128m",
            "--offset_increment=128m",
            "--numjobs=4",
            "--readonly",
        ] {
            assert!(
                found.iter().any(|found| found == arg),
                "{arg} is missing in {found:?}"
            );
        }
    }

    #[test]
    fn test_args_only_writers_lack_readonly() {
        for access in [
            Access::RandRead,
            Access::SeqRead,
            Access::Overwrite,
            Access::Append,
            Access::Create,
        ] {
            let job = job(access, Mode::Buffered, 1);
            let found = args(&[job], None, &SIZING, 7);
            assert_eq!(found.contains(&"--readonly".to_owned()), !job.writes());
        }
    }

    #[test]
    fn test_args_create_syncs_every_block_of_a_file_of_its_own() {
        let job = job(Access::Create, Mode::Fsync, 1);
        let found = args(&[job], Some("/x"), &SIZING, 7);
        for arg in ["--fsync=1", "--bs=4k", "--filesize=4k", "--openfiles=1"] {
            assert!(found.contains(&arg.to_owned()), "{arg}: {found:?}");
        }
        let whole = ["--filename", "--size", "--offset_increment", "--readonly"];
        let named = |arg: &String| whole.iter().any(|name| arg.starts_with(name));
        assert!(!found.iter().any(named), "{found:?}");
        assert_eq!(job.folder(), job.leftover());
    }

    #[test]
    fn test_args_given_file_replaces_data_but_never_the_growing_one() {
        let read = args(
            &[job(Access::SeqRead, Mode::Buffered, 1)],
            Some("/x:y"),
            &SIZING,
            7,
        );
        assert!(read.contains(&"--filename=/x\\:y".to_owned()));
        let append = args(
            &[job(Access::Append, Mode::Fsync, 1)],
            Some("/x:y"),
            &SIZING,
            7,
        );
        assert!(append.contains(&"--filename=fio-append".to_owned()));
    }
}
