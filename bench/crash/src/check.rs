// SPDX-License-Identifier: MIT
//! What must hold in one state: it recovers by replay alone, to a clean file
//! system, the same on every recovery; what was acknowledged is there; what was
//! never written does not show.

use crate::database;
use crate::disk;
use crate::error::Result;
use crate::ext4::{
    self,
    Ext4, //
};
use crate::generate::MAX_THREADS;
use crate::history::History;
use crate::model::{
    Found,
    Model,
    Promise, //
};
use crate::recover::Scratch;
use crate::states::{
    Part,
    State,
    put, //
};
use aios_guest::crash::Plan;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What was done, and so what must be there afterwards.
#[derive(Debug, Clone)]
pub enum Subject {
    /// Files: what each thread did to them, and how far contents are promised.
    Files(Arc<[Model]>, Promise),
    /// A read-write disk.
    Disk(Arc<disk::Model>),
    /// A database, and so many puts into it.
    Database(usize),
}

impl Subject {
    /// What `plan` does to files.
    ///
    /// # Errors
    ///
    /// An operation of it cannot be done.
    pub fn files(plan: &Plan, promise: Promise) -> Result<Self> {
        let threads = plan.threads.iter().enumerate();
        let models = threads
            .map(|(thread, ops)| Model::new(plan.seed, thread, ops))
            .collect::<Result<_>>()?;
        Ok(Self::Files(models, promise))
    }

    /// What `plan` does to a disk.
    pub fn disk(plan: &Plan) -> Self {
        Self::Disk(Arc::new(disk::Model::new(plan.clone())))
    }

    /// What `plan` does to a database.
    pub fn database(plan: &Plan) -> Self {
        Self::Database(plan.threads.iter().map(Vec::len).sum())
    }
}

/// A recorded workload and all that is needed to judge its states.
#[derive(Debug)]
pub struct Recording {
    /// Drives before the workload, one behind the other.
    pub initial: Arc<Vec<u8>>,
    /// Where among those bytes the journal's drive begins, if it has one of its own.
    pub journal: Option<usize>,
    /// What the drives received.
    pub history: History,
    /// What the workload was.
    pub subject: Subject,
}

impl Recording {
    /// The same workload with another history.
    pub fn with(&self, history: History) -> Self {
        Self {
            initial: Arc::clone(&self.initial),
            journal: self.journal,
            history,
            subject: self.subject.clone(),
        }
    }

    /// Where the journal lies, bytes.
    pub(crate) fn journal_places(&self) -> ext4::Result<Vec<Range<u64>>> {
        if let Some(at) = self.journal {
            let drive = at as u64..self.initial.len() as u64;
            return Ok(vec![drive]);
        }
        let ext4 = Ext4::new(&self.initial)?;
        ext4.places(&ext4.inode(ext4::JOURNAL)?)
    }
}

/// Which of the promises is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does not recover by replay, or not to a clean file system.
    Unclean,
    /// What the files hold is not what they may.
    Contents,
    /// A second recovery changes something.
    Unstable,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub kind: Kind,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Judges states, one after the other; those of one recording in the order of
/// their bases, or it takes longer.
#[derive(Debug)]
pub struct Checker {
    scratch: Scratch,
    /// What is durable by flushes.
    durable: Vec<u8>,
    /// So many writes are in `durable`, …
    base: usize,
    /// … of this recording.
    recording: Option<Arc<Recording>>,
    recovered: Vec<u8>,
}

impl Checker {
    /// For drives of `size` bytes, together.
    pub fn new(size: usize) -> Result<Self> {
        Ok(Self {
            scratch: Scratch::new(size)?,
            durable: vec![0; size],
            base: 0,
            recording: None,
            recovered: vec![0; size],
        })
    }

    /// Judges a state.
    pub fn check(
        &mut self,
        recording: &Arc<Recording>,
        state: &State,
    ) -> Result<std::result::Result<(), Violation>> {
        self.restore(recording, state);
        self.judge(recording, state.marks)
    }

    /// The drives in a state, before recovery.
    pub fn image(&mut self, recording: &Arc<Recording>, state: &State) -> &[u8] {
        self.restore(recording, state);
        self.scratch.bytes()
    }

    /// Judges the drives `image`, which may have been recovered by somebody, when
    /// so many syncs had been acknowledged.
    pub fn check_image(
        &mut self,
        recording: &Arc<Recording>,
        marks: usize,
        image: &[u8],
    ) -> Result<std::result::Result<(), Violation>> {
        self.scratch.bytes_mut().copy_from_slice(image);
        self.judge(recording, marks)
    }

    fn restore(&mut self, recording: &Arc<Recording>, state: &State) {
        let same = |known: &Arc<Recording>| Arc::ptr_eq(known, recording);
        if !self.recording.as_ref().is_some_and(same) || state.base < self.base {
            self.durable.copy_from_slice(&recording.initial);
            self.base = 0;
            self.recording = Some(Arc::clone(recording));
        }
        for write in &recording.history.writes[self.base..state.base] {
            put(write, Part::Whole, &mut self.durable);
        }
        self.base = state.base;
        self.scratch.bytes_mut().copy_from_slice(&self.durable);
        state.apply(&recording.history, self.scratch.bytes_mut());
    }

    fn judge(
        &mut self,
        recording: &Recording,
        marks: usize,
    ) -> Result<std::result::Result<(), Violation>> {
        let violation = |kind, what| Ok(Err(Violation { kind, what }));
        self.scratch.set_journal(recording.journal)?;
        if let Err(what) = self.scratch.recover()? {
            return violation(Kind::Unclean, what);
        }
        if let Err(what) = self.scratch.verify()? {
            return violation(Kind::Unclean, what);
        }
        let (history, image) = (&recording.history, self.scratch.bytes());
        let contents = |what| (Kind::Contents, what);
        let found = match &recording.subject {
            Subject::Files(models, promise) => {
                files(models, *promise, history, marks, image).map_err(contents)
            }
            Subject::Disk(disk) => disk.check(history, marks, image),
            Subject::Database(_) => database::check(history, marks, image).map_err(contents),
        };
        if let Err((kind, what)) = found {
            return violation(kind, what);
        }
        self.recovered.copy_from_slice(self.scratch.bytes());
        if let Err(what) = self.scratch.recover()? {
            return violation(Kind::Unstable, format!("the second time, {what}"));
        }
        if self.recovered != self.scratch.bytes() {
            return violation(Kind::Unstable, "a second recovery changes the drive".into());
        }
        Ok(Ok(()))
    }
}

/// What the files of a recovered drive hold must be what they may.
fn files(
    models: &[Model],
    promise: Promise,
    history: &History,
    marks: usize,
    image: &[u8],
) -> std::result::Result<(), String> {
    let ext4 = Ext4::new(image)?;
    let root: BTreeMap<String, u32> = ext4.list(&ext4.inode(ext4::ROOT)?)?.into_iter().collect();
    for thread in 0..MAX_THREADS {
        let Some(model) = models.get(thread) else {
            break;
        };
        let folder = format!("t{thread}");
        let inode = root
            .get(&folder)
            .ok_or_else(|| format!("the folder {folder} is gone"))?;
        let mut found = BTreeMap::new();
        for (name, number) in ext4.list(&ext4.inode(*inode)?)? {
            let short = name
                .strip_prefix('f')
                .and_then(|name| name.parse().ok())
                .ok_or_else(|| format!("{folder} holds {name:?}, which nobody made"))?;
            let data = ext4
                .read(&ext4.inode(number)?)
                .map_err(|why| format!("{folder}/{name}: {why}"))?;
            found.insert(
                short,
                Found {
                    inode: number,
                    data,
                },
            );
        }
        let expected = model.expect(&history.acknowledged(thread, marks));
        model
            .check(&expected, &found, promise)
            .map_err(|why| format!("{folder}: {why}"))?;
    }
    Ok(())
}
