// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A protocol as data: a list of steps, each with what it waits for.
//!
//! Nothing here knows an order of its own. What [`crate::build`] leaves out of
//! a step's dependencies may happen in any order, and [`crate::explore`] tries
//! them all.

use crate::config::{Config, Op};

/// Index of a step in [`Protocol::steps`].
pub type Id = usize;

/// A file's change of its own metadata, by index; at most four in a run.
pub type Change = usize;

/// A set of [`Change`]s, one bit each.
pub type Changes = u8;

/// A transaction, from 1; 0 is "none".
pub type Tid = usize;

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The step was started (a write: submitted).
    Started(Id),
    /// The step has ended (a write: completed).
    Done(Id),
    /// The transaction that this [`Kind::ReadTid`] saw is committed.
    Committed(Id),
    /// If that [`Kind::Probe`] found what it looked for, the transaction that
    /// this [`Kind::ReadTid`] saw is committed: who is attached to it sleeps.
    CommittedIf(Id, Id),
    /// If the change is in the transaction, the step has ended: jbd2's wait for
    /// the inodes on `t_inode_list`.
    DoneIfIn(Change, Tid, Id),
}

/// A dependency of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dep {
    /// What is waited for.
    pub on: On,
    /// Its failure is this step's failure: the step is not carried out, and
    /// whoever needs it fails, too. Without this the error is dropped here.
    pub need: bool,
}

/// A step that is passed over unless this holds when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cond {
    /// The transaction changes the file's inode block.
    Logs(Tid, u8),
    /// The transaction is the one that the change joined.
    Holds(Tid, Change),
    /// Somebody is attached to the transaction.
    Attached(Tid),
    /// That [`Kind::Probe`] found what it looked for.
    Saw(Id),
    /// That [`Kind::Probe`] did not.
    Missed(Id),
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The file system's device.
    Fs,
    /// The journal's, where that is another one.
    Journal,
}

/// What a write leaves on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// A data block in its place, by index of [`Protocol::data`].
    Data(usize),
    /// Descriptor block of a transaction.
    Descriptor(Tid),
    /// A file's inode block, logged.
    Meta(Tid, u8),
    /// A data block, logged (data=journal).
    Logged(Tid, usize),
    /// The commit record of a transaction.
    Commit(Tid),
    /// A block of a fast commit; its last one holds the tail.
    Fast(usize, u8),
}

/// What a [`Kind::Probe`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The transaction that this [`Kind::ReadTid`] saw is past the step that
    /// stands at its index here, or there was none: its flush does not count
    /// any more (`jbd2_trans_will_send_data_barrier` returns 0).
    PastFlush(Id),
    /// The transaction that this [`Kind::ReadTid`] saw still runs, no other one
    /// is committing, and nobody is attached to it: so this caller is now
    /// (`jbd2_start_commit_early`).
    Attach {
        /// The read.
        read: Id,
        /// The caller's file.
        file: u8,
        /// Although somebody is attached to it.
        second: bool,
    },
    /// Of the file of who is attached to the transaction nothing is in flight,
    /// so the flush that is next covers it.
    Covers {
        /// The transaction.
        tid: Tid,
        /// Looks at the data before it says so.
        looks: bool,
    },
    /// As [`Look::PastFlush`], unless that [`Look::Attach`] attached the caller
    /// to the very transaction that he has read now, and it covers his data.
    NotCovered {
        /// Where the caller attached himself, or did not.
        attach: Id,
        /// What he has read since.
        read: Id,
    },
    /// Another fast commit is running.
    FastCommitRunning(usize),
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A handle changes the file's metadata, in the running transaction.
    Change(Change),
    /// Reads the tid of the file's last change; `start` requests its commit.
    ReadTid {
        /// The file.
        file: u8,
        /// Requests the commit.
        start: bool,
    },
    /// The running transaction is locked down and becomes the committing one.
    /// May happen at any time (the timer, another caller), so it waits for a
    /// request only where round trips are counted.
    Lock(Tid),
    /// A state is set under the journal's lock (`T_COMMIT_JFLUSH` and so on).
    Mark,
    /// Looks at the state and keeps what it saw.
    Probe(Look),
    /// A fast commit begins and takes its picture of the queued inodes.
    Snapshot {
        /// The fast commit, by index.
        fc: usize,
        /// Waits for the data of new blocks in it (`ext4_fc_flush_data`).
        wait_data: bool,
    },
    /// A write command.
    Write {
        /// Where.
        device: Device,
        /// What.
        block: Block,
        /// With FUA: durable when complete.
        fua: bool,
    },
    /// A cache flush: makes durable what was complete when it started.
    Flush(Device),
    /// The sync call of the operation returns, with an error if what it needs
    /// has failed.
    Return(usize),
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// For stories.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// What it waits for, all of it.
    pub after: Vec<Dep>,
    /// Passed over unless all of these hold.
    pub only_if: Vec<Cond>,
    /// Complete, and in the cache, when the run begins.
    pub earlier: bool,
    /// Its error is looked at by somebody, so errors are tried on it.
    pub may_fail: bool,
}

impl Step {
    /// A command to a device, which completes when the device likes.
    pub fn is_command(&self) -> bool {
        matches!(self.kind, Kind::Write { .. } | Kind::Flush(_))
    }
}

/// A change of metadata.
#[derive(Clone, Copy, Debug)]
pub struct ChangeInfo {
    /// Whose.
    pub file: u8,
    /// The operation it belongs to.
    pub op: usize,
    /// Shows the operation's new block: mapped as written.
    pub exposes: bool,
    /// Keeps a handle in reserve until that step has ended: an unwritten
    /// extent and its conversion.
    pub reserves: Option<Id>,
}

/// A data block.
#[derive(Clone, Copy, Debug)]
pub struct DataInfo {
    /// The operation that needs it durable.
    pub op: usize,
    /// The step that writes it in its place.
    pub write: Id,
    /// Was free before: what it held belongs to nobody.
    pub new: bool,
}

/// A protocol for some operations in a configuration.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The configuration.
    pub config: Config,
    /// The operations.
    pub ops: Vec<Op>,
    /// The steps.
    pub steps: Vec<Step>,
    /// Changes of metadata.
    pub changes: Vec<ChangeInfo>,
    /// Data blocks.
    pub data: Vec<DataInfo>,
    /// By transaction (index 0 unused): the step of its commit record.
    pub commit: Vec<Id>,
    /// By transaction (index 0 unused): the step after which its flush no
    /// longer covers what completes.
    pub past_flush: Vec<Id>,
    /// By transaction (index 0 unused): the step that is its [`Look::Covers`];
    /// empty where nobody attaches himself.
    pub covers: Vec<Id>,
    /// Number of fast commits.
    pub fast_commits: usize,
    /// Makes choices of submissions and returns, which otherwise happen at
    /// once: more states, the same promises.
    pub lazy: bool,
}

impl Protocol {
    /// Number of files.
    pub fn files(&self) -> usize {
        self.ops
            .iter()
            .map(|op| op.file as usize + 1)
            .max()
            .unwrap_or(0)
    }

    /// All changes of the file.
    pub fn changes_of(&self, file: u8) -> Changes {
        self.mask(|change| change.file == file)
    }

    /// The changes for which `wanted` holds.
    pub fn mask(&self, wanted: impl Fn(&ChangeInfo) -> bool) -> Changes {
        (self.changes.iter().enumerate())
            .filter(|(_, change)| wanted(change))
            .fold(0, |mask, (index, _)| mask | 1 << index)
    }
}
