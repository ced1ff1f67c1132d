// SPDX-License-Identifier: MIT
//! The workloads: names that stay, and choosing among them.

use super::db::Bench;
use super::fio::{
    Access,
    Job,
    Mode, //
};
use crate::error::{
    Error,
    Result, //
};
use std::time::Duration;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A fio job.
    Fio(Job),
    /// A RocksDB benchmark.
    Db(Bench),
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    /// `fio/randread-4k-buffered-qd1`; never changes its meaning.
    pub(crate) name: String,
    /// What runs.
    pub(crate) kind: Kind,
    /// Whether `--quick` has it.
    pub(crate) quick: bool,
}

/// How much one sample measures, and where it finds things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizing {
    /// How long a sample runs at most.
    pub(crate) runtime: Duration,
    /// Size of fio's file in MiB.
    pub(crate) file_mib: u64,
    /// Keys in the database.
    pub(crate) keys: u64,
}

impl Workload {
    /// A workload of that kind.
    pub(crate) fn new(kind: Kind) -> Self {
        let name = match kind {
            Kind::Fio(job) => format!("fio/{}", job.name()),
            Kind::Db(bench) => format!("db/{}", bench.name()),
        };
        let quick = QUICK.contains(&name.as_str());
        Self { name, kind, quick }
    }

    /// Whether it writes to what it is given.
    pub(crate) fn writes(&self) -> bool {
        match self.kind {
            Kind::Fio(job) => job.writes(),
            // Opening a database writes its log.
            Kind::Db(_) => true,
        }
    }

    /// Whether it is one of reads through the page cache, without a database:
    /// those that LBIO serves, and those that it leaves alone.
    fn reads_buffered(&self) -> bool {
        let buffered = |job: Job| job.mode == Mode::Buffered && !job.writes();
        matches!(self.kind, Kind::Fio(job) if buffered(job))
    }

    /// Whether it reads the filled database.
    pub(crate) fn needs_db(&self) -> bool {
        matches!(self.kind, Kind::Db(bench) if bench != Bench::FillSync)
    }
}

/// One of each kind, in under three minutes.
const QUICK: [&str; 4] = [
    "fio/randread-4k-buffered-qd1",
    "fio/randread-4k-direct-qd1",
    "fio/overwrite-4k-fsync",
    "db/readrandom",
];

/// All workloads, in the order of the reports.
pub(crate) fn catalogue() -> Vec<Workload> {
    let mut all = Vec::new();
    let mut fio = |access, block_kib, mode, depth, threads| {
        all.push(Workload::new(Kind::Fio(Job {
            access,
            block_kib,
            mode,
            depth,
            threads,
        })));
    };
    for block_kib in [4, 8, 16, 32] {
        for threads in [1, 2, 4] {
            fio(Access::RandRead, block_kib, Mode::Buffered, 1, threads);
        }
    }
    for block_kib in [64, 128] {
        fio(Access::RandRead, block_kib, Mode::Buffered, 1, 1);
    }
    fio(Access::RandRead, 4, Mode::Direct, 1, 1);
    for depth in [1, 8, 32] {
        fio(Access::RandRead, 4, Mode::Uring, depth, 1);
    }
    fio(Access::SeqRead, 128, Mode::Buffered, 1, 1);
    fio(Access::Overwrite, 4, Mode::Fsync, 1, 1);
    fio(Access::Append, 4, Mode::Fsync, 1, 1);
    fio(Access::Create, 4, Mode::Fsync, 1, 1);
    all.extend(Bench::ALL.map(|bench| Workload::new(Kind::Db(bench))));
    all
}

/// The workloads of the catalogue that `only` names (a name, a glob or a part
/// of a name; any of several), or the quick ones, or all.
pub(crate) fn select(only: &[String], quick: bool) -> Result<Vec<Workload>> {
    chosen(catalogue(), only, quick)
}

/// Overwrites of blocks of 4 KiB with an fsync each, by `threads` threads.
pub(crate) fn fsyncs_by(threads: u32) -> Workload {
    Workload::new(Kind::Fio(Job {
        access: Access::Overwrite,
        block_kib: 4,
        mode: Mode::Fsync,
        depth: 1,
        threads,
    }))
}

/// As [`select`], of fsyncs by 1 to 64 threads, all of which are quick.
pub(crate) fn select_fsyncs(only: &[String]) -> Result<Vec<Workload>> {
    chosen([1, 2, 4, 8, 16, 64].map(fsyncs_by).into(), only, false)
}

/// As [`select`], of the buffered reads only, all of which are quick.
pub(crate) fn select_buffered(only: &[String]) -> Result<Vec<Workload>> {
    let mut all = catalogue();
    all.retain(Workload::reads_buffered);
    chosen(all, only, false)
}

/// Those of `all` that `only` names, or the quick ones, or all.
pub(crate) fn chosen(all: Vec<Workload>, only: &[String], quick: bool) -> Result<Vec<Workload>> {
    if only.is_empty() {
        return Ok(all
            .into_iter()
            .filter(|workload| !quick || workload.quick)
            .collect());
    }
    let names: Vec<&str> = all.iter().map(|workload| workload.name.as_str()).collect();
    let chosen = fitting(only, &names)?;
    Ok(all
        .into_iter()
        .zip(chosen)
        .filter_map(|(workload, chosen)| chosen.then_some(workload))
        .collect())
}

/// Which of `names` the patterns `only` name: each is a name, a glob or a part
/// of a name. An error where one fits none.
pub(crate) fn fitting(only: &[String], names: &[&str]) -> Result<Vec<bool>> {
    let mut chosen = vec![false; names.len()];
    for pattern in only {
        let glob = glob::Pattern::new(pattern).map_err(|error| {
            Error::new(format!("--only {pattern}: {error}"))
                .hint("use *, ? and [...], or a part of a name")
        })?;
        let exact = names.contains(&pattern.as_str());
        let fits = |name: &str| {
            if exact {
                return name == pattern;
            }
            glob.matches(name) || (!pattern.is_empty() && name.contains(pattern.as_str()))
        };
        let mut found = false;
        for (name, chosen) in names.iter().zip(&mut chosen) {
            if fits(name) {
                (*chosen, found) = (true, true);
            }
        }
        if !found {
            return Err(Error::new(format!("no workload is called {pattern:?}"))
                .hint(format!("choose from {}", names.join(", "))));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str], quick: bool) -> Vec<String> {
        let only: Vec<String> = only.iter().map(|only| (*only).to_owned()).collect();
        select(&only, quick)
            .unwrap()
            .into_iter()
            .map(|workload| workload.name)
            .collect()
    }

    #[test]
    fn test_catalogue_names_are_the_documented_ones() {
        assert_eq!(
            names(&[], false),
            [
                "fio/randread-4k-buffered-qd1",
                "fio/randread-4k-buffered-t2",
                "fio/randread-4k-buffered-t4",
                "fio/randread-8k-buffered-qd1",
                "fio/randread-8k-buffered-t2",
                "fio/randread-8k-buffered-t4",
                "fio/randread-16k-buffered-qd1",
                "fio/randread-16k-buffered-t2",
                "fio/randread-16k-buffered-t4",
                "fio/randread-32k-buffered-qd1",
                "fio/randread-32k-buffered-t2",
                "fio/randread-32k-buffered-t4",
                "fio/randread-64k-buffered-qd1",
                "fio/randread-128k-buffered-qd1",
                "fio/randread-4k-direct-qd1",
                "fio/randread-4k-uring-qd1",
                "fio/randread-4k-uring-qd8",
                "fio/randread-4k-uring-qd32",
                "fio/seqread-128k-buffered-qd1",
                "fio/overwrite-4k-fsync",
                "fio/append-4k-fsync",
                "fio/create-4k-fsync",
                "db/fillsync",
                "db/readrandom",
                "db/readwhilewriting",
            ]
        );
    }

    #[test]
    fn test_select_buffered_returns_every_size_and_number_of_threads() {
        let found = select_buffered(&[]).unwrap();
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        for size in [4, 8, 16, 32] {
            for width in ["qd1", "t2", "t4"] {
                let name = format!("fio/randread-{size}k-buffered-{width}");
                assert!(names.contains(&name.as_str()), "{name}");
            }
        }
        for name in ["randread-64k", "randread-128k", "seqread-128k"] {
            let name = format!("fio/{name}-buffered-qd1");
            assert!(names.contains(&name.as_str()), "{name}");
        }
        assert_eq!(names.len(), 15);
        assert!(select_buffered(&["fsync".to_owned()]).is_err());
    }

    #[test]
    fn test_select_quick_returns_every_quick_name() {
        assert_eq!(names(&[], true), QUICK);
    }

    #[test]
    fn test_select_exact_name_returns_it_alone() {
        assert_eq!(
            names(&["fio/randread-4k-uring-qd1"], true),
            ["fio/randread-4k-uring-qd1"]
        );
    }

    #[test]
    fn test_select_part_or_glob_returns_all_that_fit_once() {
        let fsync = [
            "fio/overwrite-4k-fsync",
            "fio/append-4k-fsync",
            "fio/create-4k-fsync",
        ];
        assert_eq!(names(&["fsync"], false), fsync);
        assert_eq!(names(&["fio/*-fsync", "append"], false), fsync);
        assert_eq!(names(&["db/*"], false).len(), 3);
    }

    #[test]
    fn test_select_unknown_name_lists_the_names() {
        for pattern in ["fio/nonsense", ""] {
            let error = select(&[pattern.to_owned()], false)
                .unwrap_err()
                .to_string();
            assert!(error.contains("fio/randread-4k-buffered-qd1"), "{error}");
            assert!(error.contains("db/fillsync"), "{error}");
        }
    }

    #[test]
    fn test_select_bad_glob_returns_error() {
        let error = select(&["[".to_owned()], false).unwrap_err().to_string();
        assert!(error.starts_with("--only ["), "{error}");
    }
}
