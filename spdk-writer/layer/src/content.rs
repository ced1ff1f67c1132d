// SPDX-License-Identifier: MIT

//! A committed LSMT file that nobody has written yet: its size, its index and
//! where each byte of it comes from are known from the source's ranges alone,
//! so any part of it can be made at any time, by any thread.

use crate::error::Error;
use crate::lsmt::{
    self,
    HEADER_SECTORS,
    Label,
    Part, //
};
use crate::source::{
    Range,
    Source, //
};
use obd_core::lsmt::{
    MAX_LEN,
    MAX_SEGMENTS, //
};
use obd_core::{
    Crc32c,
    SECTOR, //
};
use obd_host::Hardware;

/// Sectors upstream's commit copies at a time, each an entry of its index...
const STEP: u64 = 64;

/// ... which it then merges as long as they stay shorter than this.
const MERGE_BELOW: u64 = MAX_LEN;

/// What steps make of a run too long for one entry.
const STEPS: u64 = (MERGE_BELOW - 1) / STEP * STEP;

// As many segments as there may be hold less than 1 PiB, the most readers
// address: no data sector needs a check of its own.
const _: () = assert!(MAX_SEGMENTS * MAX_LEN + HEADER_SECTORS < 1 << 41);

/// Bytes of the image that are stored one behind the other.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// First byte in the layer.
    at: u64,
    /// First byte in the image.
    start: u64,
    /// Number of bytes.
    len: u64,
}

/// The LSMT file.
pub(crate) struct Content {
    header: [u8; lsmt::SPACE],
    /// Ascending in both of their addresses, without gaps in the layer.
    runs: Vec<Run>,
    /// Where the index begins, bytes.
    index_offset: u64,
    /// Index and trailer.
    tail: Vec<u8>,
    pub(crate) segments: u64,
    pub(crate) zeroed_segments: u64,
}

impl Content {
    /// Lays out what `source` holds.
    pub(crate) fn new<S: Source>(source: &S, label: &Label) -> Result<Self, Error<S::Error>> {
        let size = source.size();
        if !size.is_multiple_of(SECTOR) || size / SECTOR > lsmt::MAX_LBA {
            return Err(Error::BadSize(size));
        }
        let ranges = source.ranges().map_err(Error::Ranges)?;
        let mut layout = Layout {
            runs: Vec::new(),
            index: Vec::new(),
            moffset: HEADER_SECTORS,
            segments: 0,
            zeroed: 0,
        };
        let mut last = 0;
        let mut pending: Option<Range> = None;
        for range in ranges {
            let Range { start, end, .. } = range;
            let aligned = (start | end).is_multiple_of(SECTOR);
            if !aligned || start < last || start >= end || end > size {
                return Err(Error::BadRange {
                    start,
                    end,
                    last,
                    size,
                });
            }
            last = end;
            // However the source cuts it, what goes on is one run.
            pending = match pending {
                Some(run) if run.end == start && run.zeroed == range.zeroed => {
                    Some(Range { end, ..run })
                }
                other => {
                    layout.push(other)?;
                    Some(range)
                }
            };
        }
        layout.push(pending)?;
        Ok(layout.finish(label))
    }

    /// Size, bytes.
    pub(crate) fn size(&self) -> u64 {
        self.index_offset + self.tail.len() as u64
    }

    /// Entries of the index, padding included.
    pub(crate) fn index_entries(&self) -> u64 {
        ((self.tail.len() - lsmt::SPACE) / lsmt::ENTRY) as u64
    }

    /// Bytes of the source's data.
    pub(crate) fn data(&self) -> u64 {
        self.index_offset - lsmt::SPACE as u64
    }

    /// CRC-32C of header, index and trailer.
    pub(crate) fn layout(&self) -> u32 {
        let crc = Hardware::crc32c(u32::MAX, &self.header);
        Hardware::crc32c(crc, &self.tail)
    }

    /// The run that holds byte `at` of the data area.
    fn run(&self, at: u64) -> Option<&Run> {
        let behind = self.runs.partition_point(|run| run.at <= at);
        self.runs.get(behind.checked_sub(1)?)
    }

    /// Bytes `at..at + len` without a copy, if one run has them all and the
    /// source has them in memory.
    pub(crate) fn borrow<'a, S: Source>(
        &self,
        source: &'a S,
        at: u64,
        len: usize,
    ) -> Option<&'a [u8]> {
        let run = self.run(at)?;
        let skip = at - run.at;
        if skip + len as u64 > run.len {
            return None;
        }
        source.borrow(run.start + skip, len)
    }

    /// Fills `buf` from byte `at` on, within [`Content::size`], and returns how
    /// many of its bytes the source read.
    pub(crate) fn read<S: Source>(
        &self,
        source: &S,
        workspace: &mut S::Workspace,
        at: u64,
        buf: &mut [u8],
    ) -> Result<u64, Error<S::Error>> {
        let (mut at, mut buf, mut read) = (at, buf, 0);
        while !buf.is_empty() {
            let len = if at < self.header.len() as u64 {
                copy(&self.header, at, buf)
            } else if at >= self.index_offset {
                copy(&self.tail, at - self.index_offset, buf)
            } else if let Some(run) = self.run(at) {
                let skip = at - run.at;
                let len = (run.len - skip).min(buf.len() as u64);
                let offset = run.start + skip;
                source
                    .read(workspace, offset, &mut buf[..len as usize])
                    .map_err(|error| Error::Read { offset, len, error })?;
                read += len;
                len as usize
            } else {
                unreachable!("runs fill the data area");
            };
            at += len as u64;
            buf = &mut buf[len..];
        }
        Ok(read)
    }
}

/// Copies as much of `from`, from byte `at` on, as there is room for.
fn copy(from: &[u8], at: u64, to: &mut [u8]) -> usize {
    let from = &from[at as usize..];
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}

/// A [`Content`] in the making.
struct Layout {
    runs: Vec<Run>,
    index: Vec<u8>,
    /// Where the next data goes, sectors.
    moffset: u64,
    segments: u64,
    zeroed: u64,
}

impl Layout {
    /// Appends a run with its segments.
    fn push<E>(&mut self, run: Option<Range>) -> Result<(), Error<E>> {
        let Some(Range { start, end, zeroed }) = run else {
            return Ok(());
        };
        let mut lba = start / SECTOR;
        let mut rest = (end - start) / SECTOR;
        // Long runs are cut where upstream cuts them. What is zeroed it does
        // not touch: discards come in entries as long as can be.
        let (most, cut) = match zeroed {
            true => (MAX_LEN, MAX_LEN),
            false => (MERGE_BELOW - 1, STEPS),
        };
        let more = rest.saturating_sub(most).div_ceil(cut) + 1;
        let segments = self.segments + more;
        // Padding counts, too.
        if segments.next_multiple_of(lsmt::PAGE as u64) > MAX_SEGMENTS {
            return Err(Error::TooManySegments(segments));
        }
        if !zeroed {
            self.runs.push(Run {
                at: self.moffset * SECTOR,
                start,
                len: end - start,
            });
        }
        while rest > 0 {
            let len = if rest <= most { rest } else { cut };
            let entry = lsmt::segment(lba, len, self.moffset, zeroed);
            self.index.extend_from_slice(&entry);
            self.segments += 1;
            self.zeroed += u64::from(zeroed);
            self.moffset += if zeroed { 0 } else { len };
            lba += len;
            rest -= len;
        }
        Ok(())
    }

    fn finish(mut self, label: &Label) -> Content {
        let entries = (self.segments as usize).next_multiple_of(lsmt::PAGE);
        for _ in self.segments as usize..entries {
            self.index.extend_from_slice(&lsmt::padding());
        }
        let index_offset = self.moffset * SECTOR;
        let trailer = lsmt::header(Part::Trailer, label, index_offset, entries as u64);
        self.index.extend_from_slice(&trailer);
        Content {
            header: lsmt::header(Part::Header, label, 0, 0),
            runs: self.runs,
            index_offset,
            tail: self.index,
            segments: self.segments,
            zeroed_segments: self.zeroed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    struct Ranges(Vec<Range>);

    impl Source for Ranges {
        type Error = Infallible;
        type Workspace = ();

        fn size(&self) -> u64 {
            1 << 50
        }

        fn ranges(&self) -> Result<Vec<Range>, Infallible> {
            Ok(self.0.clone())
        }

        fn workspace(&self) -> Result<(), Infallible> {
            Ok(())
        }

        fn read(&self, (): &mut (), _: u64, buf: &mut [u8]) -> Result<(), Infallible> {
            buf.fill(1);
            Ok(())
        }
    }

    fn label() -> Label {
        Label {
            virtual_size: 1 << 50,
            uuid: [b'0'; 36],
            parent: [b'0'; 36],
            message: Vec::new(),
        }
    }

    /// `(lba, sectors, zeroed)` as ranges.
    fn layout(ranges: &[(u64, u64, bool)]) -> Result<Content, Error<Infallible>> {
        let ranges = ranges.iter().map(|(lba, len, zeroed)| Range {
            start: lba * SECTOR,
            end: (lba + len) * SECTOR,
            zeroed: *zeroed,
        });
        Content::new(&Ranges(ranges.collect()), &label())
    }

    /// `(lba, length, moffset, zeroed)` of the index's entries.
    fn index(content: &Content) -> Vec<(u64, u64, u64, bool)> {
        content.tail[..content.segments as usize * lsmt::ENTRY]
            .chunks(lsmt::ENTRY)
            .map(|entry| {
                let low = u64::from_le_bytes(entry[..8].try_into().unwrap());
                let high = u64::from_le_bytes(entry[8..].try_into().unwrap());
                (
                    low & ((1 << 50) - 1),
                    low >> 50,
                    high & ((1 << 55) - 1),
                    high >> 55 == 1,
                )
            })
            .collect()
    }

    /// Upstream's way to the same: steps of 64 sectors, merged while shorter
    /// than 16383.
    fn upstream(len: u64) -> Vec<u64> {
        let mut merged = vec![0];
        let mut rest = len;
        while rest > 0 {
            let step = rest.min(64);
            match merged.last_mut() {
                Some(last) if *last + step < 16_383 => *last += step,
                _ => merged.push(step),
            }
            rest -= step;
        }
        merged
    }

    #[test]
    fn long_runs_are_cut_where_upstream_cuts_them() {
        let edges = [64, 16_319, 16_320, 16_321, 16_382, 16_383, 16_384, 32_702];
        for len in edges.into_iter().chain((1..200_000).step_by(977)) {
            let content = layout(&[(3, len, false)]).unwrap();
            let lens: Vec<u64> = index(&content).iter().map(|entry| entry.1).collect();
            assert_eq!(lens, upstream(len), "{len} sectors");
        }
        // As in the layer a-l06 that upstream's tools wrote.
        let content = layout(&[(6144, 40_961, false), (81_920, 18_435, true)]).unwrap();
        assert_eq!(
            index(&content),
            [
                (6144, 16_320, 8, false),
                (22_464, 16_320, 16_328, false),
                (38_784, 8321, 32_648, false),
                (81_920, 16_383, 40_969, true),
                (98_303, 2052, 40_969, true),
            ]
        );
        assert_eq!(content.zeroed_segments, 2);
    }

    #[test]
    fn neighbours_become_one_and_only_of_a_kind() {
        let content = layout(&[
            (5, 5, false),
            (10, 10, false),
            (20, 1, true),
            (21, 2, true),
            (23, 1, false),
            (100, 10, false),
        ])
        .unwrap();
        assert_eq!(
            index(&content),
            [
                (5, 15, 8, false),
                (20, 3, 23, true),
                (23, 1, 23, false),
                (100, 10, 24, false),
            ]
        );
        assert_eq!(content.index_entries(), 256);
        assert_eq!(content.data(), 26 * SECTOR);
        assert_eq!(content.size(), 4096 + 26 * SECTOR + 4096 + 4096);
        assert_eq!(layout(&[]).unwrap().size(), 8192);
    }

    #[test]
    fn as_many_segments_as_readers_take() {
        let many = |count: u64| -> Vec<_> { (0..count).map(|i| (2 * i, 1, true)).collect() };
        let most = layout(&many(999_936)).unwrap();
        assert_eq!(most.index_entries(), 999_936);
        let error = layout(&many(999_937)).err().unwrap();
        assert!(matches!(error, Error::TooManySegments(999_937)), "{error}");
        // One run, as long as an image can be.
        let error = layout(&[(0, 1 << 41, false)]).err().unwrap();
        assert!(matches!(error, Error::TooManySegments(_)), "{error}");
    }

    #[test]
    fn ranges_that_cannot_be() {
        for ranges in [
            &[(0, 2, false), (1, 2, false)][..],
            &[(8, 8, false), (0, 8, true)],
            &[(1, 0, false)],
            &[(1 << 41, 1, false)],
        ] {
            let error = layout(ranges).err().unwrap();
            assert!(matches!(error, Error::BadRange { .. }), "{error}");
        }
        let unaligned = Range {
            start: 100,
            end: 1024,
            zeroed: false,
        };
        assert!(Content::new(&Ranges(vec![unaligned]), &label()).is_err());
    }
}
