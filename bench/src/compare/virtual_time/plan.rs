// SPDX-License-Identifier: MIT
//! What is measured: the calls, the file systems that they are made on, and how
//! often.

use crate::compare::workload::fitting;
use crate::error::Result;
use crate::stack::Knob;
use serde::{
    Deserialize,
    Serialize, //
};

/// How a transaction is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Commit {
    /// By jbd2's thread, whole.
    Full,
    /// By the caller, where ext4 can (`-O fast_commit`).
    Fast,
}

impl Commit {
    /// Name in JSON and tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Fast => "fast",
        }
    }
}

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Call {
    /// fdatasync after overwriting 4 KiB.
    OverwriteFdatasync,
    /// fsync after overwriting 4 KiB.
    OverwriteFsync,
    /// Overwriting 4 KiB of a file opened with `O_DSYNC`.
    OverwriteDsync,
    /// The same with `O_SYNC`.
    OverwriteSync,
    /// Overwriting 4 KiB by pwritev2 with `RWF_DSYNC`.
    OverwriteRwfDsync,
    /// The same with `RWF_SYNC`.
    OverwriteRwfSync,
    /// io_uring's fsync after overwriting 4 KiB.
    OverwriteUringFsync,
    /// msync after storing to 4 KiB of a mapping.
    OverwriteMsync,
    /// sync_file_range after overwriting 4 KiB.
    OverwriteRange,
    /// fdatasync after appending 116 bytes, as to a log.
    LogFdatasync,
    /// fsync after appending 4 KiB.
    AppendFsync,
    /// fsync after making a file of 4 KiB.
    CreateFsync,
    /// As `LogFdatasync`, on a mount with `dioread_lock`.
    LogFdatasyncLock,
    /// As `AppendFsync`, on a mount with `dioread_lock`.
    AppendFsyncLock,
    /// As `CreateFsync`, on a mount with `dioread_lock`.
    CreateFsyncLock,
    /// A synced put by RocksDB's db_bench.
    DbFillsync,
    /// As `OverwriteFsync`, by one thread that others could join: the measure
    /// of the calls below.
    FsyncX1,
    /// By two threads at once, each on a file of its own.
    FsyncX2,
    /// By four.
    FsyncX4,
    /// By eight.
    FsyncX8,
    /// By sixteen.
    FsyncX16,
    /// By sixty-four.
    FsyncX64,
}

impl Call {
    /// All, in the order of the tables.
    pub(crate) const ALL: [Self; 22] = [
        Self::OverwriteFdatasync,
        Self::OverwriteFsync,
        Self::OverwriteDsync,
        Self::OverwriteSync,
        Self::OverwriteRwfDsync,
        Self::OverwriteRwfSync,
        Self::OverwriteUringFsync,
        Self::OverwriteMsync,
        Self::OverwriteRange,
        Self::LogFdatasync,
        Self::AppendFsync,
        Self::CreateFsync,
        Self::LogFdatasyncLock,
        Self::AppendFsyncLock,
        Self::CreateFsyncLock,
        Self::DbFillsync,
        Self::FsyncX1,
        Self::FsyncX2,
        Self::FsyncX4,
        Self::FsyncX8,
        Self::FsyncX16,
        Self::FsyncX64,
    ];

    /// Name on the command line, in JSON and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OverwriteFdatasync => "overwrite-fdatasync",
            Self::OverwriteFsync => "overwrite-fsync",
            Self::OverwriteDsync => "overwrite-dsync",
            Self::OverwriteSync => "overwrite-sync",
            Self::OverwriteRwfDsync => "overwrite-rwf-dsync",
            Self::OverwriteRwfSync => "overwrite-rwf-sync",
            Self::OverwriteUringFsync => "overwrite-uring-fsync",
            Self::OverwriteMsync => "overwrite-msync",
            Self::OverwriteRange => "overwrite-range",
            Self::LogFdatasync => "log-fdatasync",
            Self::AppendFsync => "append-fsync",
            Self::CreateFsync => "create-fsync",
            Self::LogFdatasyncLock => "log-fdatasync-lock",
            Self::AppendFsyncLock => "append-fsync-lock",
            Self::CreateFsyncLock => "create-fsync-lock",
            Self::DbFillsync => "db-fillsync",
            Self::FsyncX1 => "fsync-x1",
            Self::FsyncX2 => "fsync-x2",
            Self::FsyncX4 => "fsync-x4",
            Self::FsyncX8 => "fsync-x8",
            Self::FsyncX16 => "fsync-x16",
            Self::FsyncX64 => "fsync-x64",
        }
    }

    /// Threads that make it, each on a file of its own; none where one process
    /// does on the file of all calls.
    pub(super) fn threads(self) -> Option<u32> {
        Some(match self {
            Self::FsyncX1 => 1,
            Self::FsyncX2 => 2,
            Self::FsyncX4 => 4,
            Self::FsyncX8 => 8,
            Self::FsyncX16 => 16,
            Self::FsyncX64 => 64,
            _ => return None,
        })
    }

    /// Whether operations per second are what it is measured for.
    pub(super) fn has_rate(self) -> bool {
        self >= Self::DbFillsync
    }

    /// Whether it is measured on a mount with `dioread_lock`.
    pub(super) fn locks(self) -> bool {
        matches!(
            self,
            Self::LogFdatasyncLock | Self::AppendFsyncLock | Self::CreateFsyncLock
        )
    }

    /// What the guest's `work` is told; none for db_bench.
    pub(super) fn guest_args(self) -> Option<&'static str> {
        Some(match self {
            Self::OverwriteFdatasync => "overwrite-fdatasync --file data",
            Self::OverwriteFsync => "overwrite-fsync --file data",
            Self::OverwriteDsync => "overwrite-dsync --file data",
            Self::OverwriteSync => "overwrite-sync --file data",
            Self::OverwriteRwfDsync => "overwrite-rwf-dsync --file data",
            Self::OverwriteRwfSync => "overwrite-rwf-sync --file data",
            Self::OverwriteUringFsync => "overwrite-uring-fsync --file data",
            Self::OverwriteMsync => "overwrite-msync --file data",
            Self::OverwriteRange => "overwrite-range --file data",
            Self::LogFdatasync | Self::LogFdatasyncLock => "append-fdatasync --file new --bs 116",
            Self::AppendFsync | Self::AppendFsyncLock => "append-fsync --file new",
            Self::CreateFsync | Self::CreateFsyncLock => "create-fsync --file data",
            Self::FsyncX1
            | Self::FsyncX2
            | Self::FsyncX4
            | Self::FsyncX8
            | Self::FsyncX16
            | Self::FsyncX64 => "overwrite-fsync --file many",
            Self::DbFillsync => return None,
        })
    }

    /// One of each kind, in under three minutes.
    fn is_quick(self) -> bool {
        matches!(
            self,
            Self::OverwriteFdatasync
                | Self::OverwriteFsync
                | Self::LogFdatasync
                | Self::AppendFsync
                | Self::CreateFsync
        )
    }

    /// Device times that it is measured at, of those of the plan.
    fn wants(self, device_ns: u64) -> bool {
        // The times at which what it should reach is written down.
        !self.has_rate() || [30_000, 100_000].contains(&device_ns)
    }
}

/// One row of the table: a call on one kind of file system and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What is done.
    pub(crate) call: Call,
    /// How the file system commits.
    pub(crate) commit: Commit,
    /// Whether the device has a volatile write cache.
    pub(crate) cache: bool,
}

impl Row {
    /// `CALL/COMMIT/CACHE`, as `--only` has it.
    pub(crate) fn name(self) -> String {
        let cache = if self.cache { "cache" } else { "no-cache" };
        format!("{}/{}/{cache}", self.call.name(), self.commit.name())
    }
}

/// A file system on a fresh device, and the calls that are made on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) commit: Commit,
    pub(super) cache: bool,
    /// Time that the device takes for each command, in nanoseconds.
    pub(super) device_ns: u64,
    pub(super) calls: Vec<Call>,
}

/// All that is measured on each stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The rows.
    pub(crate) rows: Vec<Row>,
    /// Device times in nanoseconds, rising; two at least.
    pub(crate) device_ns: Vec<u64>,
    /// Measured operations of each workload.
    pub(crate) ops: u32,
    /// Operations before those.
    pub(crate) warmup: u32,
    /// Seed of the first repeat; the next ones count up.
    pub(crate) seed: u64,
    /// How often each workload is measured, with a seed of its own.
    pub(crate) repeats: u32,
    /// Knobs of async.
    pub(crate) knobs: Vec<Knob>,
}

impl Plan {
    /// The plan of `aios compare --virtual-time`.
    pub(super) fn new(only: &[String], quick: bool, seed: u64) -> Result<Self> {
        let rows = all_rows();
        let names: Vec<String> = rows.iter().map(|row| row.name()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let chosen = if only.is_empty() {
            rows.iter()
                .map(|row| !quick || row.call.is_quick())
                .collect()
        } else {
            fitting(only, &names)?
        };
        Ok(Self {
            rows: rows
                .into_iter()
                .zip(chosen)
                .filter_map(|(row, chosen)| chosen.then_some(row))
                .collect(),
            device_ns: if quick {
                vec![30_000, 100_000]
            } else {
                vec![10_000, 30_000, 100_000]
            },
            ops: if quick { 40 } else { 60 },
            warmup: if quick { 10 } else { 20 },
            seed,
            repeats: if quick { 2 } else { 3 },
            knobs: Vec::new(),
        })
    }

    /// Its file systems, each with the calls that are made on it.
    pub(super) fn spots(&self) -> Vec<Spot> {
        let mut spots: Vec<Spot> = Vec::new();
        for &device_ns in &self.device_ns {
            for row in self.rows.iter().filter(|row| row.call.wants(device_ns)) {
                let fits = |spot: &&mut Spot| {
                    (spot.commit, spot.cache, spot.device_ns) == (row.commit, row.cache, device_ns)
                };
                match spots.iter_mut().find(fits) {
                    Some(spot) => spot.calls.push(row.call),
                    None => spots.push(Spot {
                        commit: row.commit,
                        cache: row.cache,
                        device_ns,
                        calls: vec![row.call],
                    }),
                }
            }
        }
        spots
    }
}

/// Every row, in the order of the tables.
fn all_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for cache in [false, true] {
        for commit in [Commit::Full, Commit::Fast] {
            rows.extend(Call::ALL.map(|call| Row {
                call,
                commit,
                cache,
            }));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(only: &[&str], quick: bool) -> Plan {
        let only: Vec<String> = only.iter().map(|only| (*only).to_owned()).collect();
        Plan::new(&only, quick, 1).unwrap()
    }

    #[test]
    fn test_plan_holds_every_call_of_every_kind() {
        let all = plan(&[], false);
        assert_eq!(all.rows.len(), 88);
        assert_eq!(all.spots().len(), 12);
        let calls: usize = all.spots().iter().map(|spot| spot.calls.len()).sum();
        assert_eq!(calls, 12 * 15 + 8 * 7);
    }

    #[test]
    fn test_plan_quick_has_two_device_times() {
        let quick = plan(&[], true);
        assert_eq!((quick.rows.len(), quick.spots().len()), (20, 8));
        assert!(quick.repeats > 1, "nothing tells how far repeats differ");
    }

    #[test]
    fn test_plan_only_takes_names_globs_and_parts() {
        assert_eq!(plan(&["overwrite-fsync/full/cache"], true).rows.len(), 1);
        assert_eq!(plan(&["create-fsync/*"], false).rows.len(), 4);
        assert_eq!(plan(&["fillsync"], false).spots().len(), 8);
        assert!(Plan::new(&["nonsense".to_owned()], false, 1).is_err());
    }

    #[test]
    fn test_threads_are_in_the_name() {
        for call in Call::ALL {
            let count = call.name().strip_prefix("fsync-x");
            assert_eq!(call.threads(), count.map(|count| count.parse().unwrap()));
        }
    }

    #[test]
    fn test_name_is_the_one_in_json() {
        for call in Call::ALL {
            assert_eq!(
                serde_json::to_value(call).unwrap().as_str(),
                Some(call.name())
            );
        }
        for commit in [Commit::Full, Commit::Fast] {
            let json = serde_json::to_value(commit).unwrap();
            assert_eq!(json.as_str(), Some(commit.name()));
        }
    }
}
