// SPDX-License-Identifier: MIT
//! The write log: every write, flush, trim and write-zeroes in the order of
//! completion, for replaying what a power cut could have left behind.
//!
//! # Format, version 2
//!
//! All numbers are little-endian.
//!
//! | header | |
//! |---|---|
//! | 8 bytes | `AIOSWLOG` |
//! | u32 | version, 2 |
//! | u32 | reserved, 0 |
//! | u64 | size of the drive in bytes |
//!
//! Then records until the end record:
//!
//! | record | |
//! |---|---|
//! | u8 | kind: 1 write, 2 flush, 3 trim, 4 write zeroes, 255 end |
//! | u8 | flags: bit 0 FUA |
//! | u16 | reserved, 0 |
//! | u32 | length in bytes; 0 for a flush |
//! | u64 | offset in bytes; 0 for a flush |
//! | u64 | time when it was received in full, CLOCK_MONOTONIC in ns |
//! | u64 | time of completion, CLOCK_MONOTONIC in ns |
//! | length bytes | the data; writes only |
//!
//! The end record's offset is the number of records before it. A log without
//! it was not stopped properly and may lack its last records.
//!
//! A record is written before its request is answered: whatever the client has
//! seen completed is in the log. A request that was never answered is not.
//!
//! Both times come from the one thread that serves. Only what was completed
//! before a flush was received is sure to be covered by it: what was under way
//! together may be carried out in any order.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::wire::MAX_PAYLOAD;
use std::fs::File;
use std::io::{
    self,
    BufReader,
    BufWriter,
    Read,
    Write, //
};
use std::path::{
    Path,
    PathBuf, //
};

const MAGIC: [u8; 8] = *b"AIOSWLOG";
const VERSION: u32 = 2;
const HEADER_LEN: usize = 24;
const RECORD_LEN: usize = 32;
const KIND_END: u8 = 255;
const FLAG_FUA: u8 = 1;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data was written.
    Write,
    /// All writes completed before it were made durable.
    Flush,
    /// A range was discarded; it reads as zeroes.
    Trim,
    /// A range was zeroed.
    WriteZeroes,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Flush => 2,
            Self::Trim => 3,
            Self::WriteZeroes => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Write, Self::Flush, Self::Trim, Self::WriteZeroes]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// One completed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What was done.
    pub kind: Kind,
    /// Whether it was durable when it completed.
    pub fua: bool,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Number of bytes; 0 for a flush.
    pub length: u32,
    /// When it was received in full, CLOCK_MONOTONIC in ns.
    pub received_ns: u64,
    /// When it completed, CLOCK_MONOTONIC in ns.
    pub completed_ns: u64,
    /// What was written; empty for all but writes.
    pub data: Vec<u8>,
}

/// Writes a log. Dropping it without [`Writer::finish`] leaves it without end.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    records: u64,
}

impl Writer {
    /// Begins a log of a drive of `size` bytes; `path` must not exist.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(path)
            .at("create the write log", path)?;
        let mut writer = Self {
            file: BufWriter::with_capacity(1 << 20, file),
            path: path.to_path_buf(),
            records: 0,
        };
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..].copy_from_slice(&size.to_le_bytes());
        writer
            .file
            .write_all(&header)
            .at("write the write log", path)?;
        Ok(writer)
    }

    /// Adds a record of what was received and completed at the given times;
    /// `data` is empty for all but writes.
    pub fn append(
        &mut self,
        kind: Kind,
        fua: bool,
        (offset, length): (u64, u32),
        (received_ns, completed_ns): (u64, u64),
        data: &[u8],
    ) -> Result<()> {
        let flags = if fua { FLAG_FUA } else { 0 };
        let times = (received_ns, completed_ns);
        self.put(kind.code(), flags, (offset, length), times, data)?;
        self.records += 1;
        Ok(())
    }

    /// Ends the log and waits until it is on disk; returns how many records
    /// it holds.
    pub fn finish(mut self, time_ns: u64) -> Result<u64> {
        self.put(KIND_END, 0, (self.records, 0), (time_ns, time_ns), &[])?;
        self.file.flush().at("write the write log", &self.path)?;
        let file = self.file.get_ref();
        file.sync_all().at("write the write log", &self.path)?;
        Ok(self.records)
    }

    fn put(
        &mut self,
        kind: u8,
        flags: u8,
        (offset, length): (u64, u32),
        (received_ns, completed_ns): (u64, u64),
        data: &[u8],
    ) -> Result<()> {
        let mut record = [0; RECORD_LEN];
        record[0] = kind;
        record[1] = flags;
        record[4..8].copy_from_slice(&length.to_le_bytes());
        record[8..16].copy_from_slice(&offset.to_le_bytes());
        record[16..24].copy_from_slice(&received_ns.to_le_bytes());
        record[24..].copy_from_slice(&completed_ns.to_le_bytes());
        self.file
            .write_all(&record)
            .and_then(|()| self.file.write_all(data))
            .at("write the write log", &self.path)
    }
}

/// Reads a log, record by record; after an error there is nothing more.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    size: u64,
    records: u64,
    done: bool,
}

impl Reader<BufReader<File>> {
    /// Opens the log at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).at("open the write log", path)?;
        Self::new(BufReader::with_capacity(1 << 20, file))
    }
}

impl<R: Read> Reader<R> {
    /// Reads a log from its header on.
    pub fn new(mut from: R) -> Result<Self> {
        let mut header = [0; HEADER_LEN];
        from.read_exact(&mut header).map_err(damaged)?;
        if header[..8] != MAGIC {
            return Err(Error::WriteLog("not a write log".into()));
        }
        let version = u32::from_le_bytes(array(&header, 8));
        if version != VERSION {
            return Err(Error::WriteLog(format!(
                "version {version} is not known here, only {VERSION}"
            )));
        }
        Ok(Self {
            from,
            size: u64::from_le_bytes(array(&header, 16)),
            records: 0,
            done: false,
        })
    }

    /// Size of the drive in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next record, or nothing after the end record.
    fn read(&mut self) -> Result<Option<Record>> {
        let mut head = [0; RECORD_LEN];
        self.from.read_exact(&mut head).map_err(damaged)?;
        let length = u32::from_le_bytes(array(&head, 4));
        let offset = u64::from_le_bytes(array(&head, 8));
        let bad = |what: &str| Error::WriteLog(format!("{what} in record {}", self.records));
        if head[0] == KIND_END {
            return if offset == self.records {
                Ok(None)
            } else {
                Err(bad("wrong number of records"))
            };
        }
        let kind = Kind::from_code(head[0]).ok_or_else(|| bad("unknown kind"))?;
        if offset
            .checked_add(length.into())
            .is_none_or(|end| end > self.size)
        {
            return Err(bad("a range beyond the end of the drive"));
        }
        let mut data = Vec::new();
        if kind == Kind::Write {
            if length > MAX_PAYLOAD {
                return Err(bad("more data than a write can hold"));
            }
            data.resize(length as usize, 0);
            self.from.read_exact(&mut data).map_err(damaged)?;
        }
        self.records += 1;
        Ok(Some(Record {
            kind,
            fua: head[1] & FLAG_FUA != 0,
            offset,
            length,
            received_ns: u64::from_le_bytes(array(&head, 16)),
            completed_ns: u64::from_le_bytes(array(&head, 24)),
            data,
        }))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// `N` bytes of a header at `start`; both are constants inside it.
fn array<const N: usize>(bytes: &[u8], start: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[start + i])
}

fn damaged(source: io::Error) -> Error {
    Error::WriteLog(match source.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early: not stopped properly".into(),
        _ => source.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: Kind, offset: u64, length: u32, data: &[u8]) -> Record {
        Record {
            kind,
            fua: kind == Kind::Write,
            offset,
            length,
            received_ns: offset.wrapping_add(5),
            completed_ns: offset.wrapping_add(9),
            data: data.to_vec(),
        }
    }

    /// Writes the records to a log of a drive of 1 MiB and returns its bytes.
    fn log_of(records: &[Record]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = Writer::create(&path, 1 << 20).unwrap();
        for r in records {
            writer
                .append(
                    r.kind,
                    r.fua,
                    (r.offset, r.length),
                    (r.received_ns, r.completed_ns),
                    &r.data,
                )
                .unwrap();
        }
        assert_eq!(writer.finish(99).unwrap(), records.len() as u64);
        std::fs::read(path).unwrap()
    }

    fn sample() -> Vec<Record> {
        vec![
            record(Kind::Write, 4096, 512, &[3; 512]),
            record(Kind::Flush, 0, 0, &[]),
            record(Kind::Trim, 8192, 4096, &[]),
            record(Kind::WriteZeroes, 0, 1 << 20, &[]),
        ]
    }

    #[test]
    fn test_reader_gives_back_what_was_written() {
        let bytes = log_of(&sample());
        let reader = Reader::new(&bytes[..]).unwrap();
        assert_eq!(reader.size(), 1 << 20);
        assert_eq!(reader.collect::<Result<Vec<_>>>().unwrap(), sample());
    }

    #[test]
    fn test_reader_truncated_log_returns_error_after_whole_records() {
        let bytes = log_of(&sample());
        for cut in [1, RECORD_LEN, RECORD_LEN + 1] {
            let reader = Reader::new(&bytes[..bytes.len() - cut]).unwrap();
            let read: Vec<_> = reader.collect();
            let (last, whole) = read.split_last().unwrap();
            assert!(last.is_err(), "{cut}");
            assert!(whole.iter().all(Result::is_ok), "{cut}");
            assert!(whole.len() >= 3, "{cut}");
        }
    }

    #[test]
    fn test_reader_bad_header_returns_error() {
        let mut bytes = log_of(&[]);
        assert!(Reader::new(&bytes[..10]).is_err());
        bytes[8] = 1;
        let error = Reader::new(&bytes[..]).unwrap_err();
        assert!(error.to_string().contains("version 1"), "{error}");
        bytes[0] = b'X';
        assert!(Reader::new(&bytes[..]).is_err());
    }

    #[test]
    fn test_reader_range_beyond_drive_returns_error() {
        let bytes = log_of(&[record(Kind::Trim, u64::MAX - 5, 4096, &[])]);
        assert!(Reader::new(&bytes[..]).unwrap().any(|r| r.is_err()));
    }

    #[test]
    fn test_create_existing_file_returns_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Writer::create(file.path(), 512).is_err());
    }

    proptest! {
        #[test]
        fn test_reader_garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = log_of(&[]);
            bytes.truncate(HEADER_LEN);
            bytes.extend(garbage);
            prop_assert!(Reader::new(&bytes[..]).unwrap().count() < 300);
        }
    }
}
