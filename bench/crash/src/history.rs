// SPDX-License-Identifier: MIT
//! What the drives received, when, and when each sync was acknowledged.

use crate::error::{
    Error,
    Result, //
};
use crate::{
    SECTOR,
    states::sector_hash, //
};
use aios_disk::write_log::{
    Kind,
    Record, //
};
use aios_guest::crash::parse_marker;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// One write (or discard, or zeroing: zeroes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// First byte in the image of all drives.
    pub offset: u64,
    /// Which drive that is on.
    pub drive: usize,
    /// What was written.
    pub data: Vec<u8>,
    /// When it was received, ns.
    pub received: u64,
    /// When it completed, ns.
    pub completed: u64,
    /// Whether it was durable then.
    pub fua: bool,
    /// Hash of each of its sectors, see [`sector_hash`].
    pub(crate) hashes: Vec<u64>,
}

/// One flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flush {
    /// The one drive whose writes it covers.
    pub drive: usize,
    /// When it was received, ns.
    pub received: u64,
    /// When it completed, ns.
    pub completed: u64,
}

/// An acknowledged sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Since when it is known to be acknowledged, ns.
    pub time: u64,
    /// The thread that made it.
    pub thread: usize,
    /// Which of its operations it was.
    pub op: usize,
}

/// All of a recording.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// In order of completion.
    pub writes: Vec<Write>,
    /// In order of completion.
    pub flushes: Vec<Flush>,
    /// In order of time.
    pub marks: Vec<Mark>,
}

/// What a drive with a cache of its own received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log<'a> {
    /// Where the drive is in the image of all drives.
    pub bytes: Range<u64>,
    /// Its commands. All drives take their times from one clock.
    pub records: &'a [Record],
}

/// A write command as the guest's driver sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sent {
    /// First byte in the image of all drives.
    pub offset: u64,
    /// Number of bytes.
    pub length: u32,
    /// Whether it carried FUA.
    pub fua: bool,
}

impl Write {
    /// A write of whole sectors to the first drive.
    pub fn new(offset: u64, data: Vec<u8>, (received, completed): (u64, u64), fua: bool) -> Self {
        let first = offset / SECTOR as u64;
        let hashes = data
            .chunks(SECTOR)
            .zip(first..)
            .map(|(bytes, sector)| sector_hash(sector, bytes))
            .collect();
        Self {
            offset,
            drive: 0,
            data,
            received,
            completed,
            fua,
            hashes,
        }
    }

    /// The same, to another drive.
    pub fn on(self, drive: usize) -> Self {
        Self { drive, ..self }
    }

    /// The byte after its last.
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

impl History {
    /// Says that the drives had no volatile cache: what was complete was durable.
    pub fn complete_is_durable(&mut self) {
        for write in &mut self.writes {
            write.fua = true;
        }
    }

    /// Puts together the logs of the drives, the log of the drive that markers
    /// were written to, and the write commands that the guest's driver sent, in
    /// its order. QEMU's NVMe drive drops FUA; only the guest knows of it.
    pub fn new(drives: &[Log<'_>], markers: &[Record], sent: &[Sent]) -> Result<Self> {
        let wrong = |what: String| Error::Recording(what);
        // Several commands for the same sectors are never under way at once, so
        // the order of each range is the same on both sides.
        let mut by_range: HashMap<(u64, u32), Vec<bool>> = HashMap::new();
        for command in sent.iter().rev() {
            let range = (command.offset, command.length);
            by_range.entry(range).or_default().push(command.fua);
        }
        let mut history = Self::default();
        let all = (0..).zip(drives);
        let all = all.flat_map(|(drive, log)| log.records.iter().map(move |it| (drive, log, it)));
        for (drive, log, record) in all {
            let times = (record.received_ns, record.completed_ns);
            if record.kind == Kind::Flush {
                history.flushes.push(Flush {
                    drive,
                    received: times.0,
                    completed: times.1,
                });
                continue;
            }
            let length = u64::from(record.length);
            if !record.offset.is_multiple_of(SECTOR as u64) || !length.is_multiple_of(SECTOR as u64)
            {
                return Err(wrong(format!(
                    "a command for {length} bytes at {}, which are no whole sectors",
                    record.offset
                )));
            }
            let room = log.bytes.end - log.bytes.start;
            if room
                .checked_sub(length)
                .is_none_or(|last| record.offset > last)
            {
                return Err(wrong(format!(
                    "a command for {length} bytes at {} of a drive of {room}",
                    record.offset
                )));
            }
            let offset = log.bytes.start + record.offset;
            let (data, fua) = match record.kind {
                Kind::Write => {
                    let range = (offset, record.length);
                    let fua = by_range.get_mut(&range).and_then(Vec::pop).ok_or_else(|| {
                        wrong(format!(
                            "drive {drive} received a write of {length} bytes at {} that the \
                             guest's trace lacks",
                            record.offset
                        ))
                    })?;
                    (record.data.clone(), fua || record.fua)
                }
                _ => (vec![0; record.length as usize], record.fua),
            };
            history
                .writes
                .push(Write::new(offset, data, times, fua).on(drive));
        }
        if let Some(((offset, length), _)) = by_range.iter().find(|(_, left)| !left.is_empty()) {
            return Err(wrong(format!(
                "the guest's trace has a write of {length} bytes at {offset} that no drive \
                 received"
            )));
        }
        for record in markers.iter().filter(|record| record.kind == Kind::Write) {
            let (thread, op) =
                parse_marker(&record.data).ok_or_else(|| wrong("a marker that is none".into()))?;
            history.marks.push(Mark {
                time: record.received_ns,
                thread: thread as usize,
                op: op as usize,
            });
        }
        history.sort();
        Ok(history)
    }

    /// Restores the order after times were changed.
    pub(crate) fn sort(&mut self) {
        self.writes.sort_by_key(|write| write.completed);
        self.flushes.sort_by_key(|flush| flush.completed);
        self.marks.sort_by_key(|mark| mark.time);
    }

    /// Operations of `thread` that were acknowledged among the first `marks`.
    pub fn acknowledged(&self, thread: usize, marks: usize) -> Vec<usize> {
        self.marks[..marks.min(self.marks.len())]
            .iter()
            .filter(|mark| mark.thread == thread)
            .map(|mark| mark.op)
            .collect()
    }
}

/// What a write is, as far as its bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The journal's superblock.
    JournalSuperblock,
    /// A descriptor block of the journal.
    Descriptor(u32),
    /// A commit record of the journal.
    Commit(u32),
    /// A revoke block of the journal.
    Revoke(u32),
    /// Anything else.
    Other,
}

impl Content {
    /// Of the block `bytes` (`struct journal_header_s`, big-endian).
    pub fn of(bytes: &[u8]) -> Self {
        let word = |i: usize| {
            let field = bytes.get(4 * i..)?.first_chunk()?;
            Some(u32::from_be_bytes(*field))
        };
        match (word(0), word(1), word(2)) {
            (Some(0xc03b_3998), Some(1), Some(tid)) => Self::Descriptor(tid),
            (Some(0xc03b_3998), Some(2), Some(tid)) => Self::Commit(tid),
            (Some(0xc03b_3998), Some(3 | 4), _) => Self::JournalSuperblock,
            (Some(0xc03b_3998), Some(5), Some(tid)) => Self::Revoke(tid),
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JournalSuperblock => f.write_str("journal superblock"),
            Self::Descriptor(tid) => write!(f, "journal descriptor, transaction {tid}"),
            Self::Commit(tid) => write!(f, "commit record, transaction {tid}"),
            Self::Revoke(tid) => write!(f, "journal revoke block, transaction {tid}"),
            Self::Other => f.write_str("data or metadata"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, offset: u64, length: u32, times: (u64, u64)) -> Record {
        Record {
            kind,
            fua: false,
            offset,
            length,
            received_ns: times.0,
            completed_ns: times.1,
            data: match kind {
                Kind::Write => vec![7; length as usize],
                _ => Vec::new(),
            },
        }
    }

    /// Of a drive of 8 KiB.
    fn log(records: &[Record]) -> Log<'_> {
        Log {
            bytes: 0..8192,
            records,
        }
    }

    fn sent(offset: u64, length: u32, fua: bool) -> Sent {
        Sent {
            offset,
            length,
            fua,
        }
    }

    fn marker(thread: u8, op: u8, time: u64) -> Record {
        let mut data = b"AIOSMARK".to_vec();
        data.extend([thread, 0, 0, 0, op, 0, 0, 0]);
        data.resize(512, 0);
        Record {
            data,
            ..record(Kind::Write, 0, 512, (time, time + 1))
        }
    }

    #[test]
    fn test_new_joins_the_three_sources() {
        let drive = [
            record(Kind::Write, 512, 512, (1, 4)),
            record(Kind::Flush, 0, 0, (5, 6)),
            record(Kind::Write, 512, 512, (7, 8)),
            record(Kind::Trim, 4096, 1024, (9, 10)),
        ];
        let sent = [sent(512, 512, false), sent(512, 512, true)];
        let markers = [marker(1, 3, 20), marker(0, 2, 12)];
        let history = History::new(&[log(&drive)], &markers, &sent).unwrap();
        let fua: Vec<bool> = history.writes.iter().map(|write| write.fua).collect();
        assert_eq!(fua, [false, true, false]);
        assert_eq!(history.writes[2].data, [0; 1024]);
        assert_eq!(history.flushes.len(), 1);
        assert_eq!(history.acknowledged(0, 1), [2]);
        assert!(history.acknowledged(1, 1).is_empty());
        assert_eq!(history.acknowledged(1, 9), [3]);
    }

    #[test]
    fn test_new_drives_lie_one_behind_the_other() {
        let first = [
            record(Kind::Write, 512, 512, (1, 2)),
            record(Kind::Flush, 0, 0, (7, 8)),
        ];
        let second = [
            record(Kind::Flush, 0, 0, (3, 4)),
            record(Kind::Write, 512, 512, (5, 6)),
        ];
        let second = Log {
            bytes: 8192..9216,
            records: &second,
        };
        let sent = [sent(8704, 512, true), sent(512, 512, false)];
        let history = History::new(&[log(&first), second.clone()], &[], &sent).unwrap();
        let writes = history.writes.iter();
        let writes: Vec<_> = writes.map(|it| (it.drive, it.offset, it.fua)).collect();
        assert_eq!(writes, [(0, 512, false), (1, 8704, true)]);
        let flushes: Vec<_> = history.flushes.iter().map(|it| it.drive).collect();
        assert_eq!(flushes, [1, 0]);
        // A drive's writes end where it does.
        let short = Log {
            bytes: 8192..8704,
            ..second
        };
        assert!(History::new(&[log(&first), short], &[], &sent).is_err());
    }

    #[test]
    fn test_new_recordings_that_disagree_return_error() {
        let write = [record(Kind::Write, 512, 512, (1, 4))];
        let trim = [record(Kind::Trim, 3, 512, (1, 2))];
        assert!(History::new(&[log(&write)], &[], &[]).is_err());
        assert!(History::new(&[log(&[])], &[], &[sent(0, 512, false)]).is_err());
        assert!(History::new(&[log(&trim)], &[], &[]).is_err());
        assert!(History::new(&[], &write, &[]).is_err());
    }

    #[test]
    fn test_content_of_short_blocks_is_other() {
        assert_eq!(Content::of(&[]), Content::Other);
        let commit = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2, 0, 0, 0, 9];
        assert_eq!(Content::of(&commit), Content::Commit(9));
        assert_eq!(Content::of(&commit[..11]), Content::Other);
    }
}
