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
    required, //
};
use aios_crash::POISON;
use aios_crash::check::Subject;
use aios_crash::database;
use aios_crash::disk;
use aios_crash::ext4;
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

/// Size of all drives in bytes: a journal of 4 MiB, the smallest there is, and
/// room for every plan. Each state is a copy of it.
pub(super) const SIZE: usize = 16 << 20;
/// Where the journal's drive begins in that, in modes where it has one of its own. The
/// kernel takes none below 1025 blocks.
const JOURNAL: usize = SIZE - 1025 * 4096;
/// Blocks of all file systems, bytes.
const BLOCK: &str = "4096";
/// What the file system with a journal elsewhere calls that.
const JOURNAL_UUID: &str = "a105a105-a105-4a10-85a1-05a105a105a2";

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
    /// fast-commit-plain with new blocks allocated as written.
    FastCommitLock,
    /// fast-commit-plain with data=writeback.
    FastCommitWriteback,
    /// data=ordered on a drive without a volatile cache: what it has answered is durable.
    WriteThrough,
    /// The same with fast commits, in plans as those of fast-commit-plain.
    FastCommitThrough,
    /// data=ordered without checksums of metadata and journal.
    NoChecksums,
    /// data=writeback.
    Writeback,
    /// data=journal.
    Journal,
    /// data=ordered with the journal on a second drive; what is not synced may be stale.
    // As it is in 7.3.4, where a commit that makes unwritten extents written ones does not
    // flush the file system's drive unless somebody who waits for it has asked for that.
    ExternalJournal,
    /// The same where nothing stale may show.
    ExternalStrict,
    /// The same with new blocks allocated as written.
    ExternalDioreadLock,
    /// data=writeback with the journal on a second drive.
    ExternalWriteback,
    /// A RocksDB database on data=ordered, and synced puts.
    Rocksdb,
    /// A read-write overlaybd disk whose layers are on data=ordered.
    RwDisk,
}

/// A mode's drives.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// All of them, one behind the other. The file system ends where the journal's drive
    /// begins.
    pub(super) all: PathBuf,
    /// The journal's, if it has one of its own.
    pub(super) journal: Option<PathBuf>,
}

impl Mode {
    /// All of them but `FastCommit`, which the unpatched kernel does not keep, `ExternalStrict`,
    /// which none keeps, and `RwDisk`, which is about what is on the file system.
    pub(super) const ALL: [Self; 14] = [
        Self::Ordered,
        Self::DioreadLock,
        Self::FastCommitPlain,
        Self::FastCommitLock,
        Self::FastCommitWriteback,
        Self::WriteThrough,
        Self::FastCommitThrough,
        Self::NoChecksums,
        Self::Writeback,
        Self::Journal,
        Self::ExternalJournal,
        Self::ExternalDioreadLock,
        Self::ExternalWriteback,
        Self::Rocksdb,
    ];

    /// Name on the command line and in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::DioreadLock => "dioread-lock",
            Self::FastCommit => "fast-commit",
            Self::FastCommitPlain => "fast-commit-plain",
            Self::FastCommitLock => "fast-commit-lock",
            Self::FastCommitWriteback => "fast-commit-writeback",
            Self::WriteThrough => "write-through",
            Self::FastCommitThrough => "fast-commit-through",
            Self::NoChecksums => "no-checksums",
            Self::Writeback => "writeback",
            Self::Journal => "journal",
            Self::ExternalJournal => "external-journal",
            Self::ExternalStrict => "external-strict",
            Self::ExternalDioreadLock => "external-dioread-lock",
            Self::ExternalWriteback => "external-writeback",
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
            | Self::WriteThrough
            | Self::FastCommitThrough
            | Self::NoChecksums
            | Self::ExternalJournal
            | Self::ExternalStrict
            | Self::Rocksdb
            | Self::RwDisk => "data=ordered",
            Self::DioreadLock | Self::FastCommitLock | Self::ExternalDioreadLock => {
                "data=ordered,dioread_lock"
            }
            Self::Writeback | Self::FastCommitWriteback | Self::ExternalWriteback => {
                "data=writeback"
            }
            Self::Journal => "data=journal",
        }
    }

    /// Plan number `number` of a run that was given `seed`.
    pub(super) fn plan(self, seed: u64, number: u64) -> Plan {
        match self {
            _ if self.has_fast_commits() && self != Self::FastCommit => {
                generate::plain(seed, number)
            }
            Self::Rocksdb => database::plan(seed, number),
            Self::RwDisk => disk::plan(seed, number),
            _ => generate::plan(seed, number),
        }
    }

    /// Where the journal's drive begins, if it has one of its own.
    pub(super) fn journal(self) -> Option<usize> {
        match self {
            Self::ExternalJournal
            | Self::ExternalStrict
            | Self::ExternalDioreadLock
            | Self::ExternalWriteback => Some(JOURNAL),
            _ => None,
        }
    }

    /// Whether each state is recovered by the guest's kernel, and not by e2fsck,
    /// which loses inodes that a fast commit changes before they are checkpointed.
    pub(super) fn is_mounted(self) -> bool {
        self.has_fast_commits()
    }

    fn has_fast_commits(self) -> bool {
        matches!(
            self,
            Self::FastCommit
                | Self::FastCommitPlain
                | Self::FastCommitLock
                | Self::FastCommitWriteback
                | Self::FastCommitThrough
        )
    }

    /// Whether the kernel is to take the drives' caches for volatile.
    pub(super) fn is_cached(self) -> bool {
        !matches!(self, Self::WriteThrough | Self::FastCommitThrough)
    }

    /// What must be there after `plan`.
    pub(super) fn subject(self, plan: &Plan) -> Result<Subject> {
        match self {
            Self::RwDisk => Ok(Subject::disk(plan)),
            Self::Rocksdb => Ok(Subject::database(plan)),
            Self::Writeback
            | Self::FastCommitWriteback
            | Self::ExternalJournal
            | Self::ExternalWriteback => {
                Subject::files(plan, Promise::OnlyAcknowledged).map_err(ours)
            }
            _ => Subject::files(plan, Promise::NothingStale).map_err(ours),
        }
    }

    /// Makes the drives' images in `dir`: poisoned all over, then formatted; `obd` is the tool,
    /// if there is a disk to be made.
    pub(super) fn make_images(
        self,
        ctx: &Context,
        dir: &Path,
        obd: Option<&Path>,
    ) -> Result<Files> {
        let path = dir.join(format!("{}.img", self.name()));
        let root = dir.join(match self {
            Self::RwDisk => "root-rw",
            _ => "root",
        });
        let features = match self {
            _ if self.has_fast_commits() => "fast_commit",
            Self::NoChecksums => "^metadata_csum,^fast_commit",
            _ if self.journal().is_some() => "^has_journal,^fast_commit",
            _ => "^fast_commit",
        };
        let mut tool = Tool::new(required("mke2fs")?)
            .args(["-q", "-F", "-t", "ext4", "-b", BLOCK, "-m", "0"])
            .args(["-N", "256", "-O", features])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
            // The same image every time: a seed is to reproduce a run.
            .args(["-U", "a105a105-a105-4a10-85a1-05a105a105a1"])
            .env("E2FSPROGS_FAKE_TIME", "1700000000")
            .arg("-d")
            .arg(&root);
        tool = match self.journal() {
            Some(at) => tool.arg(&path).arg(format!("{}k", at >> 10)),
            None => tool.args(["-J", "size=4"]).arg(&path),
        };
        if ctx.dry_run {
            println!("{}", tool.line());
            return self.make_journal(ctx, path);
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
        self.make_journal(ctx, path)
    }

    /// Makes the journal's drive, if there is one, for the file system on `all`. `mke2fs -J
    /// device=` does that with block devices alone.
    fn make_journal(self, ctx: &Context, all: PathBuf) -> Result<Files> {
        let Some(at) = self.journal() else {
            return Ok(Files { all, journal: None });
        };
        let path = all.with_file_name(format!("{}.journal.img", self.name()));
        let mut tools = vec![
            Tool::new(required("mke2fs")?)
                .args(["-q", "-F", "-O", "journal_dev", "-b", BLOCK])
                .args(["-U", JOURNAL_UUID])
                .env("E2FSPROGS_FAKE_TIME", "1700000000")
                .arg(&path),
        ];
        let debugfs = required("debugfs")?;
        let uuid = format!("set_super_value journal_uuid {JOURNAL_UUID}");
        tools.extend(["feature has_journal", &uuid].map(|request| {
            let tool = Tool::new(&debugfs).args(["-w", "-R", request]);
            tool.env("E2FSPROGS_FAKE_TIME", "1700000000").arg(&all)
        }));
        if ctx.dry_run {
            tools.iter().for_each(|tool| println!("{}", tool.line()));
        } else {
            let size = SIZE - at;
            fs::write(&path, POISON.repeat(size / POISON.len())).at("write", &path)?;
            for tool in tools {
                tool.output()?;
            }
            let mut image = fs::read(&all).at("read", &all)?;
            let mut journal = fs::read(&path).at("read", &path)?;
            ext4::join(&image, &mut journal).map_err(Error::new)?;
            fs::write(&path, &journal).at("write", &path)?;
            image.truncate(at);
            image.append(&mut journal);
            fs::write(&all, &image).at("write", &all)?;
        }
        Ok(Files {
            all,
            journal: Some(path),
        })
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
