// SPDX-License-Identifier: MIT
//! The file systems that are explored.

use super::record::ours;
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::{
    Tool,
    find_on_path, //
};
use aios_crash::POISON;
use aios_crash::check::Subject;
use aios_crash::database;
use aios_crash::disk;
use aios_crash::generate::{
    self,
    MAX_THREADS, //
};
use aios_crash::model::Promise;
use aios_guest::crash::{
    Plan,
    folders, //
};
use serde::Serialize;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// Size of the drive in bytes: a journal of 4 MiB, the smallest there is, and
/// room for every plan. Each state is a copy of it.
pub(super) const SIZE: usize = 16 << 20;

/// How ext4 keeps its promises.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    clap::ValueEnum, //
)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    /// The default: data=ordered, full commits, unwritten extents.
    Ordered,
    /// data=ordered, full commits, new blocks allocated as written.
    DioreadLock,
    /// data=ordered with fast commits.
    FastCommit,
    /// The same, in plans whose fast commits hold inodes alone.
    // Of others, neither 7.3.4 nor e2fsck replays all that was synced.
    FastCommitPlain,
    /// data=writeback.
    Writeback,
    /// data=journal.
    Journal,
    /// A RocksDB database on data=ordered, and synced puts.
    Rocksdb,
    /// A read-write overlaybd disk whose layers are on data=ordered.
    RwDisk,
}

impl Mode {
    /// All of them but `FastCommit`, which no kernel recovers as it should, and `RwDisk`,
    /// which is about what is on the file system.
    pub(super) const ALL: [Self; 6] = [
        Self::Ordered,
        Self::DioreadLock,
        Self::FastCommitPlain,
        Self::Writeback,
        Self::Journal,
        Self::Rocksdb,
    ];

    /// Name on the command line and in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::DioreadLock => "dioread-lock",
            Self::FastCommit => "fast-commit",
            Self::FastCommitPlain => "fast-commit-plain",
            Self::Writeback => "writeback",
            Self::Journal => "journal",
            Self::Rocksdb => "rocksdb",
            Self::RwDisk => "rw-disk",
        }
    }

    /// What it is mounted with.
    pub(super) fn mount_option(self) -> &'static str {
        match self {
            Self::Ordered
            | Self::FastCommit
            | Self::FastCommitPlain
            | Self::Rocksdb
            | Self::RwDisk => "data=ordered",
            Self::DioreadLock => "data=ordered,dioread_lock",
            Self::Writeback => "data=writeback",
            Self::Journal => "data=journal",
        }
    }

    /// Plan number `number` of a run that was given `seed`.
    pub(super) fn plan(self, seed: u64, number: u64) -> Plan {
        match self {
            Self::FastCommitPlain => generate::plain(seed, number),
            Self::Rocksdb => database::plan(seed, number),
            Self::RwDisk => disk::plan(seed, number),
            _ => generate::plan(seed, number),
        }
    }

    /// Whether each state is recovered by the guest's kernel, and not by e2fsck,
    /// which loses inodes that a fast commit changes before they are checkpointed.
    pub(super) fn is_mounted(self) -> bool {
        self == Self::FastCommitPlain
    }

    /// What must be there after `plan`.
    pub(super) fn subject(self, plan: &Plan) -> Result<Subject> {
        match self {
            Self::RwDisk => Ok(Subject::disk(plan)),
            Self::Rocksdb => Ok(Subject::database(plan)),
            Self::Writeback => Subject::files(plan, Promise::OnlyAcknowledged).map_err(ours),
            _ => Subject::files(plan, Promise::NothingStale).map_err(ours),
        }
    }

    /// Makes the drive's image in `dir`: poisoned all over, then formatted; `obd` is the tool,
    /// if there is a disk to be made.
    pub(super) fn make_image(
        self,
        ctx: &Context,
        dir: &Path,
        obd: Option<&Path>,
    ) -> Result<PathBuf> {
        let path = dir.join(format!("{}.img", self.name()));
        let mke2fs = find_on_path("mke2fs").ok_or_else(|| {
            Error::new("mke2fs is missing")
                .hint("run `cargo aios doctor` to see which package has it")
        })?;
        let root = dir.join(match self {
            Self::RwDisk => "root-rw",
            _ => "root",
        });
        let features = match self {
            Self::FastCommit | Self::FastCommitPlain => "fast_commit",
            _ => "^fast_commit",
        };
        let tool = Tool::new(mke2fs)
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
            .args(["-N", "256", "-J", "size=4", "-O", features])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
            // The same image every time: a seed is to reproduce a run.
            .args(["-U", "a105a105-a105-4a10-85a1-05a105a105a1"])
            .env("E2FSPROGS_FAKE_TIME", "1700000000")
            .arg("-d")
            .arg(&root)
            .arg(&path);
        if ctx.dry_run {
            println!("{}", tool.line());
            return Ok(path);
        }
        match obd {
            Some(obd) if self == Self::RwDisk => make_disk(obd, &root)?,
            _ => {
                for folder in folders(&root, MAX_THREADS) {
                    fs::create_dir_all(&folder).at("create the folder", &folder)?;
                }
            }
        }
        fs::write(&path, POISON.repeat(SIZE / POISON.len())).at("write", &path)?;
        tool.output()?;
        Ok(path)
    }
}

/// A new disk in the folder `root`, instead of what was there.
fn make_disk(obd: &Path, root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).at("remove", root)?;
    }
    fs::create_dir_all(root).at("create the folder", root)?;
    Tool::new(obd)
        .args(["create", "--rw", "--size", &disk::SIZE.to_string()])
        .arg(root.join(disk::FOLDER))
        .output()
        .map(drop)
}
