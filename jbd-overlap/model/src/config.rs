// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What varies: how the file system is mounted and what the device promises,
//! what the files do, which protocol runs, and which mistake is made on purpose.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::Serialize;

/// `data=` of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataMode {
    /// New blocks are on the device before the metadata that shows them.
    Ordered,
    /// No order between data and metadata.
    Writeback,
    /// File data goes through the journal.
    Journal,
}

/// One of the 96 configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `data=` of the mount.
    pub data: DataMode,
    /// `fast_commit` is on. Data journalling makes every inode ineligible
    /// (`ext4_fc_track_inode`), so it has no effect there.
    pub fast_commit: bool,
    /// `dioread_nolock`: new blocks start as unwritten extents. No effect with
    /// data journalling (`ext4_should_dioread_nolock`).
    pub dioread_nolock: bool,
    /// The journal is on a device of its own.
    pub external: bool,
    /// The devices have a volatile write cache and honour flush and FUA.
    pub cache: bool,
    /// Checksum v3 on the journal's blocks.
    pub checksum: bool,
}

impl Config {
    /// Every configuration, in a fixed order.
    pub fn all() -> impl Iterator<Item = Self> {
        let modes = [DataMode::Ordered, DataMode::Writeback, DataMode::Journal];
        modes.into_iter().flat_map(|data| {
            (0u8..32).map(move |bits| Self {
                data,
                fast_commit: bits & 1 != 0,
                dioread_nolock: bits & 2 != 0,
                external: bits & 4 != 0,
                cache: bits & 8 != 0,
                checksum: bits & 16 != 0,
            })
        })
    }

    /// Whether an fsync of a regular file ends in a fast commit.
    pub fn commits_fast(&self) -> bool {
        self.fast_commit && self.data != DataMode::Journal
    }

    /// Whether new blocks start as unwritten extents.
    pub fn allocates_unwritten(&self) -> bool {
        self.dioread_nolock && self.data != DataMode::Journal
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pick = |on: bool, yes, no| if on { yes } else { no };
        write!(
            f,
            "{},{},{},{},{},{}",
            match self.data {
                DataMode::Ordered => "ordered",
                DataMode::Writeback => "writeback",
                DataMode::Journal => "journal",
            },
            pick(self.fast_commit, "fc", "full"),
            pick(self.dioread_nolock, "nolock", "lock"),
            pick(self.external, "external", "internal"),
            pick(self.cache, "cache", "nocache"),
            pick(self.checksum, "csum", "nocsum"),
        )
    }
}

/// A word of a configuration that is not one.
#[derive(Debug, thiserror::Error)]
#[error("configuration: unknown word {word:?}; known: {WORDS}")]
pub struct ConfigError {
    word: String,
}

const WORDS: &str = "ordered|writeback|journal, full|fc, lock|nolock, internal|external, \
                     nocache|cache, csum|nocsum";

impl FromStr for Config {
    type Err = ConfigError;

    /// Parses words separated by commas; what is not named stays at
    /// `ordered,full,nolock,internal,nocache,csum`, and a later word wins.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self {
            data: DataMode::Ordered,
            fast_commit: false,
            dioread_nolock: true,
            external: false,
            cache: false,
            checksum: true,
        };
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match word {
                "ordered" => config.data = DataMode::Ordered,
                "writeback" => config.data = DataMode::Writeback,
                "journal" => config.data = DataMode::Journal,
                "full" | "fc" => config.fast_commit = word == "fc",
                "lock" | "nolock" => config.dioread_nolock = word == "nolock",
                "internal" | "external" => config.external = word == "external",
                "nocache" | "cache" => config.cache = word == "cache",
                "nocsum" | "csum" => config.checksum = word == "csum",
                _ => {
                    return Err(ConfigError {
                        word: word.to_owned(),
                    });
                }
            }
        }
        Ok(config)
    }
}

/// What one call writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// An existing block and the inode (its mtime, or `i_size` inside a block
    /// that is already allocated: a small append to a log).
    InPlace,
    /// A block that has to be allocated, and the inode.
    NewBlock,
}

/// How one call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// `fsync`, or `fdatasync` that has metadata to commit (`i_size`).
    WithMetadata,
    /// `fdatasync` with nothing but data to write.
    DataOnly,
    /// Written back, but nobody waits for it.
    None,
}

/// One write with the sync call that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The file, from 0.
    pub file: u8,
    /// What is written.
    pub write: Write,
    /// Which call follows.
    pub sync: Sync,
    /// Another block of the file was written back, without FUA, before.
    pub dirty: bool,
    /// Starts after the sync call of the operation before it has returned.
    pub in_turn: bool,
    /// Blocks that its fast commit takes.
    pub fc_blocks: u8,
}

/// What the files do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Overwrite, then `fdatasync` with no metadata to commit.
    OverwriteFdatasync,
    /// The same, with a block of the file written back before.
    DirtyOverwriteFdatasync,
    /// Overwrite, then `fsync` with a new mtime.
    OverwriteFsync,
    /// The same, with a block of the file written back before.
    DirtyOverwriteFsync,
    /// A record appended to a log inside its last block, then `fdatasync`.
    WalFdatasync,
    /// A block appended, then `fsync`; also create, write, `fsync`.
    AppendFsync,
    /// Two files, each overwritten and synced by a thread of its own.
    TwoOverwrites,
    /// Two files, each appended to and synced by a thread of its own.
    TwoAppends,
    /// One file is overwritten and synced while another is appended to.
    OverwriteBesideAppend,
    /// One file, appended to and synced twice in turn.
    AppendTwice,
    /// Overwrite and `fsync` where the fast commit takes two blocks.
    OverwriteFsyncTwoBlocks,
}

impl Workload {
    /// Every workload, in a fixed order.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// The workloads where 7.3.4 keeps its promises in every configuration;
    /// the others show defects of its fast commit on a volatile cache.
    pub fn sound_natively(self, config: &Config) -> bool {
        self != Self::OverwriteFsyncTwoBlocks || !(config.commits_fast() && config.cache)
    }

    /// Its operations, at most two.
    pub fn ops(self) -> Vec<Op> {
        let op = Op {
            file: 0,
            write: Write::InPlace,
            sync: Sync::WithMetadata,
            dirty: false,
            in_turn: false,
            fc_blocks: 1,
        };
        let new = Op {
            write: Write::NewBlock,
            ..op
        };
        match self {
            Self::OverwriteFdatasync => vec![Op {
                sync: Sync::DataOnly,
                ..op
            }],
            Self::DirtyOverwriteFdatasync => vec![Op {
                sync: Sync::DataOnly,
                dirty: true,
                ..op
            }],
            Self::OverwriteFsync | Self::WalFdatasync => vec![op],
            Self::DirtyOverwriteFsync => vec![Op { dirty: true, ..op }],
            Self::AppendFsync => vec![new],
            Self::TwoOverwrites => vec![op, Op { file: 1, ..op }],
            Self::TwoAppends => vec![new, Op { file: 1, ..new }],
            Self::OverwriteBesideAppend => vec![
                op,
                Op {
                    file: 1,
                    sync: Sync::None,
                    ..new
                },
            ],
            Self::AppendTwice => vec![
                new,
                Op {
                    in_turn: true,
                    ..new
                },
            ],
            Self::OverwriteFsyncTwoBlocks => vec![Op { fc_blocks: 2, ..op }],
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().ok_or(fmt::Error)?;
        f.write_str(value.get_name())
    }
}

/// Which protocol runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// Linux 7.3.4 as it is.
    Native,
    /// Overlapped where the rules allow it, native elsewhere.
    Overlap,
    /// As `Overlap`, but who starts a full commit early attaches himself to it
    /// and sleeps until it has ended. The commit looks at his data for him.
    Attached,
    /// Overlapped as on an internal journal in data=ordered, against every rule.
    Forced,
}

/// A mistake made on purpose; the oracles must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mutant {
    /// The commit record does not wait for the data of new blocks.
    CommitBeforeData,
    /// The commit record does not wait for the blocks it commits.
    CommitBeforeBlocks,
    /// The flush does not wait for the data, and nobody asks afterwards.
    FlushBeforeData,
    /// The commit record carries no PREFLUSH.
    DroppedPreflush,
    /// The commit record (or the tail of the fast commit) carries no FUA.
    DroppedFua,
    /// A commit covers the data of who is attached to it without looking at it.
    CoversUnseenData,
    /// A commit looks at that data when its flush has started.
    LooksAfterFlush,
    /// A second caller attaches himself, and takes for his own data what the
    /// commit says of the first one's.
    CoversOneForBoth,
    /// The transaction is read once, before the data wait, and never again.
    WrongTid,
    /// An error of the data write does not reach the caller.
    DataErrorSwallowed,
    /// An error of the commit does not reach the caller.
    CommitErrorSwallowed,
    /// FUA data although other data of the inode sits in the cache.
    FuaDespiteDirty,
    /// A fast commit without PREFLUSH that shows another inode's new block.
    FcPreflushSkipped,
    /// The fast commit does not wait for the data of new blocks.
    FcBeforeData,
    /// A fast commit that found another one running returns when that ends,
    /// as `ext4_fc_commit` of 7.3.4 does.
    FcSharedBlindly,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().ok_or(fmt::Error)?;
        f.write_str(value.get_name())
    }
}
