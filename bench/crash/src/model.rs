// SPDX-License-Identifier: MIT
//! What the files of one thread hold after each of its operations, and so what
//! must be found after a power cut, and what may.
//!
//! - The folder holds the names of one moment: metadata is committed in the
//!   order in which it was changed. That moment is not before the last change of
//!   a name of a file whose `fsync` was acknowledged (`fdatasync` and `msync`:
//!   its creation; `sync`: the call).
//! - Each byte of a file is one that it had at a moment since the file's last
//!   acknowledged sync; its size lies between those it had since. Beyond the end
//!   of a file its bytes count as zero, as blocks of one file reach the drive in
//!   any order. A write that is a sync (`O_SYNC` and the like) is one of its own bytes,
//!   and of as much of the size as they need.
//! - The end of both is the next sync: what comes after it cannot have begun
//!   before that is acknowledged.

use crate::error::{
    Error,
    Result, //
};
use aios_guest::crash::{
    MAX_FILE,
    Op,
    Range,
    content, //
};
use std::collections::BTreeMap;

/// Names of a folder, and which file each belongs to.
pub type Names = BTreeMap<u8, usize>;

/// A moment: so many operations of the thread are done.
pub type Moment = usize;

/// One file, whatever its names.
#[derive(Debug)]
struct File {
    /// When it was there first.
    created: Moment,
    /// What it held from when on.
    versions: Vec<(Moment, Vec<u8>)>,
    /// When its names changed.
    renamed: Vec<Moment>,
}

/// What a thread's folder holds over time.
#[derive(Debug)]
pub struct Model {
    ops: Vec<Op>,
    /// At each moment from 0 on.
    names: Vec<Names>,
    files: Vec<File>,
}

/// What may be found after a power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The folder is that of a moment from here …
    pub names_from: Moment,
    /// … to here, both included.
    pub until: Moment,
    /// For each file, when its contents were last acknowledged.
    pub data_from: Vec<Moment>,
    /// Writes that were syncs of their own bytes alone.
    pub parts: Vec<Part>,
}

/// Bytes of a file that were acknowledged by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Of which file.
    file: usize,
    /// Which bytes.
    bytes: std::ops::Range<usize>,
    /// When.
    from: Moment,
}

/// A file as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Inode number.
    pub inode: u32,
    /// All of its bytes.
    pub data: Vec<u8>,
}

/// How far the contents of files are promised beyond what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// data=ordered and data=journal: nothing that was never written shows.
    NothingStale,
    /// data=writeback: bytes changed since the acknowledgement may be anything, and so may
    /// those of a block that held nothing before one of them was: it may be a new one.
    OnlyAcknowledged,
}

/// Bytes of the file system's blocks.
const BLOCK: usize = 4096;

impl Model {
    /// Follows the operations of `thread`.
    pub fn new(seed: u64, thread: usize, ops: &[Op]) -> Result<Self> {
        let mut model = Self {
            ops: ops.to_vec(),
            names: vec![Names::new()],
            files: Vec::new(),
        };
        for (number, &op) in ops.iter().enumerate() {
            model
                .apply(seed, thread, number, op)
                .map_err(|why| Error::Plan {
                    thread,
                    number,
                    op: op.to_string(),
                    why,
                })?;
        }
        Ok(model)
    }

    fn apply(
        &mut self,
        seed: u64,
        thread: usize,
        number: usize,
        op: Op,
    ) -> std::result::Result<(), &'static str> {
        let after = number + 1;
        let mut names = self.names[number].clone();
        let file = |name: u8| names.get(&name).copied().ok_or("no such file");
        let write = |model: &mut Self, file: usize, range: Range| {
            let mut bytes = vec![0; range.length as usize];
            content(seed, thread, number, range.offset, &mut bytes);
            model.change(file, after, |data| {
                let (start, end) = bounds(range)?;
                data.resize(data.len().max(end), 0);
                data[start..end].copy_from_slice(&bytes);
                Ok(())
            })
        };
        match op {
            Op::Create(a) => {
                if names.insert(a, self.files.len()).is_some() {
                    return Err("the name is taken");
                }
                self.files.push(File {
                    created: after,
                    versions: vec![(after, Vec::new())],
                    renamed: vec![after],
                });
            }
            Op::Write(a, range)
            | Op::Direct(a, range)
            | Op::SyncedWrite(a, range, _)
            | Op::SyncedDirect(a, range, _) => write(self, file(a)?, range)?,
            Op::Store(a, range) => {
                let file = file(a)?;
                if bounds(range)?.1 > self.last(file).len() {
                    return Err("a store outside of the file");
                }
                write(self, file, range)?;
            }
            Op::Allocate(a, range, keep) => self.change(file(a)?, after, |data| {
                let (_, end) = bounds(range)?;
                if !keep {
                    data.resize(data.len().max(end), 0);
                }
                Ok(())
            })?,
            Op::Punch(a, range) => self.change(file(a)?, after, |data| {
                let (start, end) = bounds(range)?;
                let end = end.min(data.len());
                if start < end {
                    data[start..end].fill(0);
                }
                Ok(())
            })?,
            Op::Truncate(a, size) => self.change(file(a)?, after, |data| {
                if size > MAX_FILE {
                    return Err("the file grows too large");
                }
                data.resize(size as usize, 0);
                Ok(())
            })?,
            Op::Rename(a, b) => {
                let file = file(a)?;
                if names.get(&b) == Some(&file) {
                    return Err("both names are the same file's");
                }
                names.remove(&a);
                names.insert(b, file);
                self.files[file].renamed.push(after);
            }
            Op::Link(a, b) => {
                let file = file(a)?;
                if names.insert(b, file).is_some() {
                    return Err("the name is taken");
                }
                self.files[file].renamed.push(after);
            }
            Op::Unlink(a) => {
                let file = file(a)?;
                names.remove(&a);
                self.files[file].renamed.push(after);
            }
            Op::WriteBack(a)
            | Op::SyncFileRange(a, _)
            | Op::Fsync(a)
            | Op::Fdatasync(a)
            | Op::UringFsync(a)
            | Op::UringFdatasync(a) => drop(file(a)?),
            Op::Sync => {}
            Op::Put => return Err("a database's files are its own"),
        }
        self.names.push(names);
        Ok(())
    }

    fn last(&self, file: usize) -> &[u8] {
        self.files[file]
            .versions
            .last()
            .map_or(&[], |(_, data)| data)
    }

    fn change(
        &mut self,
        file: usize,
        after: Moment,
        change: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), &'static str>,
    ) -> std::result::Result<(), &'static str> {
        let mut data = self.last(file).to_vec();
        change(&mut data)?;
        self.files[file].versions.push((after, data));
        Ok(())
    }

    /// The operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// What may be found once the syncs `acked` (numbers of operations) were
    /// acknowledged and no others.
    pub fn expect(&self, acked: &[usize]) -> Expectation {
        let mut expected = Expectation {
            names_from: 0,
            until: self.ops.len(),
            data_from: vec![0; self.files.len()],
            parts: Vec::new(),
        };
        for &number in acked {
            let after = number + 1;
            let file = |name: &u8| self.names[number].get(name).copied();
            let renamed = |file: Option<usize>| file.map(|f| self.renamed(f, after));
            let created = |file: Option<usize>| file.map(|f| self.files[f].created);
            let (data, names) = match self.ops.get(number) {
                Some(Op::Fsync(a) | Op::UringFsync(a)) => (file(a), renamed(file(a))),
                Some(Op::Fdatasync(a) | Op::UringFdatasync(a) | Op::Store(a, _)) => {
                    (file(a), created(file(a)))
                }
                Some(Op::SyncedWrite(a, range, how) | Op::SyncedDirect(a, range, how)) => {
                    let part = file(a).zip(bounds(*range).ok());
                    expected.parts.extend(part.map(|(file, (start, end))| Part {
                        file,
                        bytes: start..end,
                        from: after,
                    }));
                    let names = match how.is_data_only() {
                        true => created(file(a)),
                        false => renamed(file(a)),
                    };
                    (None, names)
                }
                Some(Op::Sync) => {
                    expected.data_from.fill(after);
                    (None, Some(after))
                }
                _ => (None, None),
            };
            if let Some(file) = data {
                expected.data_from[file] = after;
            }
            expected.names_from = expected.names_from.max(names.unwrap_or_default());
        }
        let next = acked.iter().max().map_or(0, |&number| number + 1);
        let rest = self.ops.get(next..).unwrap_or_default();
        if let Some(sync) = rest.iter().position(|op| op.is_sync()) {
            expected.until = next + sync + 1;
        }
        expected
    }

    /// When the file's names changed last, at `moment` or before.
    fn renamed(&self, file: usize, moment: Moment) -> Moment {
        let changes = self.files[file].renamed.iter();
        changes
            .filter(|&&change| change <= moment)
            .max()
            .copied()
            .unwrap_or_default()
    }

    /// Fails with the story of what is wrong in the folder.
    pub fn check(
        &self,
        expected: &Expectation,
        found: &BTreeMap<u8, Found>,
        promise: Promise,
    ) -> std::result::Result<(), String> {
        let mut wrong = None;
        for moment in (expected.names_from..=expected.until).rev() {
            let names = &self.names[moment];
            if !same_names(names, found) {
                continue;
            }
            let mut problem = None;
            for (name, &file) in names {
                if let Err(why) = self.check_file(file, expected, &found[name].data, promise) {
                    problem = Some(format!("f{name}: {why}"));
                    break;
                }
            }
            match problem {
                None => return Ok(()),
                // That of the latest moment is the most likely one to matter.
                Some(problem) => wrong = wrong.or(Some(problem)),
            }
        }
        Err(wrong.unwrap_or_else(|| {
            let list = |names: Vec<String>| match names.is_empty() {
                true => "nothing".to_owned(),
                false => names.join(", "),
            };
            let must = &self.names[expected.names_from];
            format!(
                "the folder holds {}, as at no moment since operation {}, when it held {}",
                list(
                    found
                        .iter()
                        .map(|(name, file)| format!("f{name} (inode {})", file.inode))
                        .collect()
                ),
                expected.names_from,
                list(
                    must.iter()
                        .map(|(name, file)| format!("f{name} (file {file})"))
                        .collect()
                ),
            )
        }))
    }

    fn check_file(
        &self,
        file: usize,
        expected: &Expectation,
        found: &[u8],
        promise: Promise,
    ) -> std::result::Result<(), String> {
        let File {
            created, versions, ..
        } = &self.files[file];
        let from = expected.data_from[file].max(*created);
        // What it held at `from`, and all it held afterwards.
        let first = versions.partition_point(|(moment, _)| *moment <= from) - 1;
        let window: Vec<&(Moment, Vec<u8>)> = versions[first..]
            .iter()
            .take_while(|(moment, _)| *moment <= expected.until)
            .collect();
        // Where each byte's own window begins, and the size that such parts need.
        let longest = window.iter().map(|(_, data)| data.len()).max();
        let mut begins = vec![0; longest.unwrap_or_default()];
        let mut needed = 0;
        for part in expected.parts.iter().filter(|part| part.file == file) {
            let begin = window.partition_point(|(moment, _)| *moment <= part.from);
            let Some(begin) = begin.checked_sub(1) else {
                continue;
            };
            let later = window.get(begin..).unwrap_or_default();
            let kept = later.iter().map(|(_, data)| data.len().min(part.bytes.end));
            needed = needed.max(kept.min().unwrap_or_default());
            for own in begins
                .iter_mut()
                .take(part.bytes.end)
                .skip(part.bytes.start)
            {
                *own = begin.max(*own);
            }
        }
        let sizes = window.iter().map(|(_, data)| data.len());
        let (least, most) = (
            sizes.clone().min().map(|least| least.max(needed)),
            sizes.max(),
        );
        if Some(found.len()) < least || Some(found.len()) > most {
            return Err(format!(
                "its size is {}, but it was {} to {} since operation {from}",
                found.len(),
                least.unwrap_or_default(),
                most.unwrap_or_default(),
            ));
        }
        let at = |data: &[u8], i: usize| data.get(i).copied().unwrap_or_default();
        let is_new = |i: usize| {
            let begin = i - i % BLOCK;
            let is_blank = |data: &[u8]| (begin..begin + BLOCK).all(|i| at(data, i) == 0);
            window
                .windows(2)
                .any(|w| is_blank(&w[0].1) && !is_blank(&w[1].1))
        };
        for (i, &byte) in found.iter().enumerate() {
            let begin = begins.get(i).copied().unwrap_or_default();
            let own = window.get(begin..).unwrap_or_default();
            if own.iter().any(|(_, data)| at(data, i) == byte) {
                continue;
            }
            let changed = own.windows(2).any(|w| at(&w[0].1, i) != at(&w[1].1, i));
            let is_new = begin == 0 && is_new(i);
            if promise == Promise::OnlyAcknowledged && (changed || is_new) {
                continue;
            }
            let rest = &found[i..found.len().min(i + 16)];
            let poisoned = rest.len() > 2
                && crate::POISON
                    .iter()
                    .chain(&crate::POISON)
                    .copied()
                    .collect::<Vec<_>>()
                    .windows(rest.len())
                    .any(|window| window == rest);
            let what = match rest {
                _ if poisoned => "what was never written".to_owned(),
                [0, ..] => "zero".to_owned(),
                _ => format!("{byte:#04x}"),
            };
            return Err(format!(
                "byte {i} is {what}, which it was at no moment since operation {}",
                own.first().map_or(from, |(moment, _)| from.max(*moment)),
            ));
        }
        Ok(())
    }
}

/// First byte and the one after the last.
fn bounds(range: Range) -> std::result::Result<(usize, usize), &'static str> {
    let end = range.offset.checked_add(range.length);
    match end.filter(|&end| end <= MAX_FILE && range.length > 0) {
        Some(end) => Ok((range.offset as usize, end as usize)),
        None => Err("an empty range, or one beyond the largest file"),
    }
}

/// Whether the same names are there, those of one file being those of one
/// inode.
fn same_names(names: &Names, found: &BTreeMap<u8, Found>) -> bool {
    if !names.keys().eq(found.keys()) {
        return false;
    }
    let mut inodes = BTreeMap::new();
    let mut files = BTreeMap::new();
    names.iter().zip(found.values()).all(|((_, &file), found)| {
        *inodes.entry(file).or_insert(found.inode) == found.inode
            && *files.entry(found.inode).or_insert(file) == file
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_guest::synced::SyncedWrite;

    fn range(offset: u32, length: u32) -> Range {
        Range { offset, length }
    }

    fn written(op: usize, offset: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        content(1, 0, op, offset, &mut bytes);
        bytes
    }

    fn found(files: &[(u8, u32, &[u8])]) -> BTreeMap<u8, Found> {
        files
            .iter()
            .map(|&(name, inode, data)| {
                let data = data.to_vec();
                (name, Found { inode, data })
            })
            .collect()
    }

    const STRICT: Promise = Promise::NothingStale;

    /// create, write, fsync, overwrite, append, fsync
    fn sample() -> Model {
        let ops = [
            Op::Create(0),
            Op::Write(0, range(0, 1000)),
            Op::Fsync(0),
            Op::Write(0, range(100, 10)),
            Op::Write(0, range(1000, 5)),
            Op::Fsync(0),
        ];
        Model::new(1, 0, &ops).unwrap()
    }

    #[test]
    fn test_check_nothing_acknowledged_allows_nothing_there() {
        let model = sample();
        let expected = model.expect(&[]);
        assert_eq!(expected.until, 3);
        model.check(&expected, &found(&[]), STRICT).unwrap();
        model
            .check(&expected, &found(&[(0, 12, &[])]), STRICT)
            .unwrap();
        model
            .check(&expected, &found(&[(0, 12, &written(1, 0, 1000))]), STRICT)
            .unwrap();
    }

    #[test]
    fn test_check_acknowledged_file_must_be_there() {
        let model = sample();
        let expected = model.expect(&[2]);
        let why = model.check(&expected, &found(&[]), STRICT).unwrap_err();
        assert!(why.contains("the folder holds nothing"), "{why}");
        let why = model
            .check(&expected, &found(&[(0, 12, &[0; 1000])]), STRICT)
            .unwrap_err();
        assert!(why.contains("byte 0 is zero"), "{why}");
        let why = model
            .check(&expected, &found(&[(0, 12, &written(1, 0, 999))]), STRICT)
            .unwrap_err();
        assert!(why.contains("its size is 999"), "{why}");
    }

    #[test]
    fn test_check_later_writes_may_be_there_in_part() {
        let model = sample();
        let expected = model.expect(&[2]);
        let mut data = written(1, 0, 1000);
        data[105..110].copy_from_slice(&written(3, 105, 5));
        model
            .check(&expected, &found(&[(0, 12, &data)]), STRICT)
            .unwrap();
        // All of it must be there once that is acknowledged.
        let expected = model.expect(&[2, 5]);
        assert!(
            model
                .check(&expected, &found(&[(0, 12, &data)]), STRICT)
                .is_err()
        );
        data[100..110].copy_from_slice(&written(3, 100, 10));
        data.extend(written(4, 1000, 5));
        model
            .check(&expected, &found(&[(0, 12, &data)]), STRICT)
            .unwrap();
    }

    #[test]
    fn test_check_synced_write_is_of_its_own_bytes() {
        let ops = [
            Op::Create(0),
            Op::Write(0, range(0, 1000)),
            Op::Fsync(0),
            Op::Write(0, range(0, 20)),
            Op::Write(0, range(5000, 100)),
            Op::SyncedWrite(0, range(990, 30), SyncedWrite::RwfDsync),
            Op::Truncate(0, 1010),
        ];
        let model = Model::new(1, 0, &ops).unwrap();
        let expected = model.expect(&[2, 5]);
        let check =
            |data: &[u8], promise| model.check(&expected, &found(&[(0, 12, data)]), promise);
        // What was written before may be there, or in part, or not.
        let mut data = written(1, 0, 990);
        data.extend(written(5, 990, 30));
        check(&data, STRICT).unwrap();
        data[..10].copy_from_slice(&written(3, 0, 10));
        check(&data, STRICT).unwrap();
        check(&data[..1010], STRICT).unwrap();
        // All of the write must be, but for what was cut off afterwards.
        for promise in [STRICT, Promise::OnlyAcknowledged] {
            let why = check(&data[..1009], promise).unwrap_err();
            assert!(why.contains("its size is 1009"), "{why}");
            let mut lost = data.clone();
            lost[995] = written(1, 995, 1)[0];
            let why = check(&lost, promise).unwrap_err();
            assert!(
                why.contains("byte 995") && why.contains("operation 6"),
                "{why}"
            );
        }
        // Not acknowledged, it may be lost.
        let expected = model.expect(&[2]);
        let old = written(1, 0, 1000);
        model
            .check(&expected, &found(&[(0, 12, &old)]), STRICT)
            .unwrap();
    }

    #[test]
    fn test_expect_synced_write_makes_names_durable_as_fsync_or_fdatasync_does() {
        for how in SyncedWrite::ALL {
            let ops = [
                Op::Create(0),
                Op::Rename(0, 1),
                Op::SyncedDirect(1, range(0, 4096), how),
            ];
            let expected = Model::new(1, 0, &ops).unwrap().expect(&[2]);
            let names_from = if how.is_data_only() { 1 } else { 2 };
            assert_eq!(expected.names_from, names_from, "{how}");
        }
    }

    #[test]
    fn test_check_poison_is_never_allowed_but_in_writeback_mode() {
        let model = sample();
        let expected = model.expect(&[]);
        let data: Vec<u8> = crate::POISON.iter().copied().cycle().take(1000).collect();
        let disk = found(&[(0, 12, &data)]);
        let why = model.check(&expected, &disk, STRICT).unwrap_err();
        assert!(why.contains("never written"), "{why}");
        let loose = Promise::OnlyAcknowledged;
        model.check(&expected, &disk, loose).unwrap();
        assert!(model.check(&model.expect(&[2]), &disk, loose).is_err());
    }

    #[test]
    fn test_check_all_of_a_new_block_may_be_anything_in_writeback_mode() {
        let ops = [
            Op::Create(0),
            Op::Write(0, range(0, 100)),
            Op::Fsync(0),
            Op::Write(0, range(200, 10)),
            Op::Write(0, range(8300, 50)),
        ];
        let model = Model::new(1, 0, &ops).unwrap();
        let expected = model.expect(&[2]);
        let mut data = written(1, 0, 100);
        data.resize(8192, 0);
        data.resize(8350, 7);
        let check =
            |data: &[u8], promise| model.check(&expected, &found(&[(0, 12, data)]), promise);
        check(&data, Promise::OnlyAcknowledged).unwrap();
        assert!(check(&data, STRICT).is_err());
        // Before and behind what was written to a block that was there, and in one that was
        // not written to.
        for at in [0, 150, 4096] {
            let was = std::mem::replace(&mut data[at], 7);
            let why = check(&data, Promise::OnlyAcknowledged).unwrap_err();
            assert!(why.contains(&format!("byte {at} is 0x07")), "{why}");
            data[at] = was;
        }
    }

    #[test]
    fn test_check_names_are_those_of_one_moment() {
        let ops = [
            Op::Create(0),
            Op::Create(1),
            Op::Sync,
            Op::Rename(0, 2),
            Op::Link(1, 3),
            Op::Unlink(1),
        ];
        let model = Model::new(1, 0, &ops).unwrap();
        let expected = model.expect(&[2]);
        let ok = |files: &[(u8, u32, &[u8])]| model.check(&expected, &found(files), STRICT).is_ok();
        assert!(ok(&[(0, 12, &[]), (1, 13, &[])]));
        assert!(ok(&[(1, 13, &[]), (2, 12, &[])]));
        assert!(ok(&[(2, 12, &[]), (3, 13, &[])]));
        assert!(!ok(&[(1, 13, &[])]));
        // The link before the rename, and a copy in place of a link.
        assert!(!ok(&[(0, 12, &[]), (1, 13, &[]), (3, 13, &[])]));
        assert!(!ok(&[(1, 13, &[]), (2, 12, &[]), (3, 14, &[])]));
    }

    #[test]
    fn test_expect_fsync_of_one_file_says_nothing_of_another() {
        let ops = [
            Op::Create(0),
            Op::Create(1),
            Op::Write(1, range(0, 10)),
            Op::Fsync(0),
        ];
        let model = Model::new(1, 0, &ops).unwrap();
        let expected = model.expect(&[3]);
        assert_eq!((expected.names_from, expected.until), (1, 4));
        model
            .check(&expected, &found(&[(0, 12, &[])]), STRICT)
            .unwrap();
    }

    #[test]
    fn test_new_impossible_operations_return_error() {
        for ops in [
            &[Op::Write(0, range(0, 1))][..],
            &[Op::Create(0), Op::Create(0)],
            &[Op::Create(0), Op::Store(0, range(0, 1))],
            &[Op::Create(0), Op::Write(0, range(u32::MAX, 2))],
            &[Op::Create(0), Op::Write(0, range(0, 0))],
            &[Op::Create(0), Op::Truncate(0, u32::MAX)],
            &[Op::Create(0), Op::Rename(0, 0)],
        ] {
            assert!(Model::new(1, 0, ops).is_err(), "{ops:?}");
        }
    }
}
