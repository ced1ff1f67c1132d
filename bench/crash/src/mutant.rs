// SPDX-License-Identifier: MIT
//! Recordings of storage that breaks its promises: an explorer that finds
//! nothing wrong with them finds nothing.

use crate::check::{
    Recording,
    Subject, //
};
use crate::history::History;
use aios_guest::crash::is_content;
use std::ops::Range;

/// A way to break a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Flushes do nothing, as if the kernel had never sent them.
    FlushDropped,
    /// Those of the file system's drive do nothing, and those of the journal's go on.
    FileSystemFlushDropped,
    /// FUA does nothing.
    FuaDropped,
    /// Syncs are acknowledged before the last wait for the drive.
    AcknowledgedEarly,
    /// Files' data reaches the drive after the commit record that it should precede.
    CommitBeforeData,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::FlushDropped,
        Self::FileSystemFlushDropped,
        Self::FuaDropped,
        Self::AcknowledgedEarly,
        Self::CommitBeforeData,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlushDropped => "flush-dropped",
            Self::FileSystemFlushDropped => "fs-flush-dropped",
            Self::FuaDropped => "fua-dropped",
            Self::AcknowledgedEarly => "acknowledged-early",
            Self::CommitBeforeData => "commit-before-data",
        }
    }

    /// Whether it breaks this recording.
    pub fn breaks(self, recording: &Recording) -> bool {
        // Without a volatile cache there is none.
        let flushes = !recording.history.flushes.is_empty();
        match self {
            // Only in files data can be told from the rest, and the commit record by its FUA.
            Self::CommitBeforeData => flushes && matches!(recording.subject, Subject::Files(..)),
            Self::FileSystemFlushDropped => recording.journal.is_some(),
            Self::FlushDropped => flushes,
            Self::FuaDropped | Self::AcknowledgedEarly => true,
        }
    }

    /// What the history of `recording` becomes.
    pub fn apply(self, recording: &Recording) -> Result<History, String> {
        let history = &recording.history;
        let mut broken = history.clone();
        match self {
            Self::FlushDropped => broken.flushes.clear(),
            Self::FileSystemFlushDropped => broken.flushes.retain(|flush| flush.drive > 0),
            Self::FuaDropped => broken.writes.iter_mut().for_each(|write| write.fua = false),
            Self::AcknowledgedEarly => {
                for mark in &mut broken.marks {
                    let flushes = history.flushes.iter().map(|f| (f.completed, f.received));
                    let durable = history.writes.iter().filter(|write| write.fua);
                    let waits = flushes.chain(durable.map(|w| (w.completed, w.received)));
                    let last = waits.filter(|(end, _)| *end <= mark.time).max();
                    mark.time = last.map_or(mark.time, |(_, begin)| begin);
                }
            }
            Self::CommitBeforeData => {
                let journal = recording.journal_places()?;
                let commits: Vec<(u64, u64)> = history
                    .writes
                    .iter()
                    .filter(|write| write.fua && is_in(&journal, write.offset))
                    .map(|write| (write.received, write.completed))
                    .collect();
                for write in &mut broken.writes {
                    let commit = commits.iter().find(|(begin, _)| *begin > write.completed);
                    if let Some((_, end)) = commit
                        && !is_in(&journal, write.offset)
                        && is_content(&write.data)
                    {
                        (write.received, write.completed) = (end + 1, end + 2);
                    }
                }
            }
        }
        broken.sort();
        Ok(broken)
    }
}

fn is_in(places: &[Range<u64>], offset: u64) -> bool {
    places.iter().any(|place| place.contains(&offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{
        Flush,
        Mark,
        Write, //
    };
    use std::sync::Arc;

    /// On drives that hold nothing.
    fn recording() -> Recording {
        Recording {
            initial: Arc::default(),
            journal: None,
            history: history(),
            subject: Subject::Database(0),
        }
    }

    fn history() -> History {
        History {
            writes: vec![
                Write::new(0, vec![1; 512], (1, 2), false),
                Write::new(512, vec![2; 512], (7, 8), true),
            ],
            flushes: vec![Flush {
                drive: 0,
                received: 3,
                completed: 5,
            }],
            marks: vec![
                Mark {
                    time: 6,
                    thread: 0,
                    op: 0,
                },
                Mark {
                    time: 9,
                    thread: 0,
                    op: 1,
                },
            ],
        }
    }

    #[test]
    fn test_apply_dropped_flush_and_fua_are_gone() {
        let broken = Mutant::FlushDropped.apply(&recording()).unwrap();
        assert!(broken.flushes.is_empty() && broken.writes[1].fua);
        let broken = Mutant::FuaDropped.apply(&recording()).unwrap();
        assert!(!broken.flushes.is_empty() && !broken.writes[1].fua);
    }

    #[test]
    fn test_apply_acknowledged_early_is_before_the_last_wait() {
        let broken = Mutant::AcknowledgedEarly.apply(&recording()).unwrap();
        let times: Vec<u64> = broken.marks.iter().map(|mark| mark.time).collect();
        assert_eq!(times, [3, 7]);
    }

    #[test]
    fn test_apply_commit_before_data_wants_a_file_system() {
        assert!(Mutant::CommitBeforeData.apply(&recording()).is_err());
    }

    #[test]
    fn test_apply_fs_flush_dropped_keeps_those_of_the_journal() {
        let mut recording = recording();
        let mutant = Mutant::FileSystemFlushDropped;
        assert!(!mutant.breaks(&recording));
        recording.journal = Some(4096);
        assert!(mutant.breaks(&recording));
        recording.history.flushes.push(Flush {
            drive: 1,
            received: 6,
            completed: 7,
        });
        let broken = mutant.apply(&recording).unwrap();
        assert_eq!(broken.flushes, recording.history.flushes[1..]);
    }
}
