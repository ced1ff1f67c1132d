// SPDX-License-Identifier: MIT

//! A disk's log: where frozen layers go for which somebody waits.
//!
//! It is a file of a fixed size, written once as a whole, so that the file system has
//! nothing to do when it is overwritten but to write. Records lie one behind the other,
//! and go on at the beginning where one does not fit before the end, or nothing is live.
//! Each has the number after that of the one before; no number is used twice. What they are
//! like is said by [`obd_core::record`]; the driver writes them, to the room that it is given.
//!
//! `image.json` says up to which number all is in layers, and where the next record
//! begins ([`State`]): these are dead, and overwritten. What follows is live as far as
//! records are whole: of the next one's two possible places, behind the one before and
//! at the beginning, one has it, or it is not there.
//!
//! One record is written at a time, and acknowledged when that is durable. So the first
//! that is not whole was never acknowledged, and there is none behind it. After an error
//! nothing is written until `image.json` has the number of the record that failed.
//!
//! So if there is a later one all the same, what was written was damaged since, and what the
//! disk said is not known any more: the log is refused then, instead of being taken for one
//! that ends there. A newest record that is damaged is no other than one that was cut off.
//!
//! A writer that finds something sealed by one before it has to know which records that has,
//! as these are dead with the layer that it becomes: those after it are not in it, and those
//! before it must not be applied over it. Each record says up to which number they are what
//! was sealed last has them. If the last one says a number that is dead, nothing was logged
//! since: then all of them are.

use crate::BLOCK;
use crate::error::Error;
use crate::folder::Folder;
use crate::image::Image;
use crate::kernel::Extent;
use obd_core::Source;
use obd_core::record::{
    self,
    Hash,
    Header,
    Room, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The file in a device's folder.
pub const NAME: &str = "log.obd";

/// Smallest log, bytes.
pub const MIN_SIZE: u64 = 16 * BLOCK;

/// Largest log, bytes: what is in it has room in memory when it is read.
pub const MAX_SIZE: u64 = 256 << 20;

/// Bytes that are read at a time.
const SOME: u64 = 1 << 20;

/// What `image.json` says of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which log it is.
    pub id: u64,
    /// Bytes of the file.
    pub size: u64,
    /// Number of the last record that is in layers.
    pub seq: u64,
    /// Where the next one is, or at the beginning.
    pub at: u64,
}

impl State {
    /// What cannot be.
    pub(crate) fn wrong(&self) -> Option<String> {
        let Self { size, at, seq, .. } = *self;
        let fits = (MIN_SIZE..=MAX_SIZE).contains(&size) && at <= size;
        let whole = size.is_multiple_of(BLOCK) && at.is_multiple_of(BLOCK);
        (!fits || !whole || seq > u64::MAX / 2)
            .then(|| format!("a log cannot have {size} bytes and record {seq} before {at}"))
    }
}

/// Where in the log is what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    size: u64,
    /// Number of the last record that is dead, and where the next one began.
    dead: u64,
    tail: u64,
    /// Number of the last record, and where it ends.
    last: u64,
    head: u64,
}

/// A moment in a log's life: all records up to a number, and where the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) seq: u64,
    pub(crate) at: u64,
}

impl Ring {
    pub(crate) fn new(state: &State) -> Self {
        Self {
            size: state.size,
            dead: state.seq,
            tail: state.at,
            last: state.seq,
            head: state.at,
        }
    }

    /// Where records go from here on.
    pub(crate) fn room(&self) -> Room {
        let Self {
            size, tail, head, ..
        } = *self;
        let (at, end, again) = if self.is_empty() {
            // That is one of the next one's two places, and has all the room behind it.
            (0, size, 0)
        } else if head <= tail {
            (head, tail, 0)
        } else {
            (head, size, tail)
        };
        Room { at, end, again }
    }

    /// Number of the last record.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Number of the next record.
    fn next(&self) -> u64 {
        self.last + 1
    }

    /// Records came to it, up to number `last`, and have left `room`.
    pub(crate) fn advance(&mut self, last: u64, room: Room) {
        if last > self.last {
            if self.is_empty() {
                self.tail = self.room().at;
            }
            self.last = last;
            self.head = room.at;
        }
    }

    /// The next record was found.
    fn push(&mut self, found: &Found) {
        if self.is_empty() {
            self.tail = found.at;
        }
        self.last += 1;
        self.head = found.end;
    }

    /// The next record's number is not to be used: nobody knows what is there.
    pub(crate) fn skip(&mut self) {
        self.last += 1;
    }

    /// Now.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            seq: self.last,
            at: self.head,
        }
    }

    /// All up to `mark` is dead.
    pub(crate) fn bury(&mut self, mark: Mark) {
        // Without a record in between the next one may be at the beginning instead.
        if mark.seq > self.dead {
            self.dead = mark.seq;
            self.tail = mark.at;
        }
    }

    /// Whether no number is live.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == self.dead
    }

    /// Bytes that are missing until half of it is in use.
    pub(crate) fn missing(&self) -> u64 {
        let used = match self.is_empty() {
            true => 0,
            false if self.head > self.tail => self.head - self.tail,
            false => self.size - self.tail + self.head,
        };
        (self.size / 2).saturating_sub(used)
    }
}

/// A record that was found.
#[derive(Debug)]
struct Found {
    extents: Vec<record::Extent>,
    /// Where it is, where its data is, and where that ends.
    at: u64,
    data: u64,
    end: u64,
    /// Hash of the data.
    hash: u64,
    /// Number of the last record that what was sealed last has.
    sealed: u64,
}

/// A record that is later than one that is not there.
#[derive(Clone, Copy, Debug)]
struct Later {
    number: u64,
    at: u64,
    sealed: u64,
}

/// What is live in a log.
#[derive(Debug)]
pub(crate) struct Live {
    records: Vec<Found>,
    pub(crate) ring: Ring,
    /// Number of the record before the first of them.
    base: u64,
    /// Number of the last record that what was sealed last has.
    sealed: u64,
    /// What is wrong with it, if something is.
    damage: Option<String>,
}

impl Live {
    /// Looks for live records in `source`.
    pub(crate) fn find<S: Source<Error = io::Error>>(
        source: &S,
        state: &State,
        size: u64,
    ) -> io::Result<Self> {
        let mut live = Self {
            records: Vec::new(),
            ring: Ring::new(state),
            base: state.seq,
            sealed: 0,
            damage: None,
        };
        // Each place has one number, so this ends.
        while let Some(found) = live.next(source, state, size)? {
            live.ring.push(&found);
            live.sealed = found.sealed;
            live.records.push(found);
        }
        live.look_behind(source, state, size)?;
        Ok(live)
    }

    /// The next record, in one of its two places.
    fn next<S: Source<Error = io::Error>>(
        &self,
        source: &S,
        state: &State,
        size: u64,
    ) -> io::Result<Option<Found>> {
        let Ring { head, .. } = self.ring;
        let found = Self::read(source, state, head, self.ring.next(), size)?;
        match found {
            None if head != 0 => Self::read(source, state, 0, self.ring.next(), size),
            found => Ok(found),
        }
    }

    /// Looks for records that are later than the last one that was found.
    fn look_behind<S: Source<Error = io::Error>>(
        &mut self,
        source: &S,
        state: &State,
        size: u64,
    ) -> io::Result<()> {
        if source.size() < state.size {
            let (is, was) = (source.size(), state.size);
            self.damage = Some(format!("has {is} bytes of {was}"));
        }
        let Some(later) = self.latest(source, state, size)? else {
            return Ok(());
        };
        let Ring { head, .. } = self.ring;
        let number = self.ring.next();
        // Where something is left of it, if that can be told.
        let is_first = |at| {
            Self::first(source, state, at)
                .map(|header| header.is_some_and(|header| header.number == number))
        };
        let at = match !is_first(head)? && is_first(0)? {
            true => 0,
            false => head,
        };
        let Later {
            number: last,
            at: last_at,
            sealed,
        } = later;
        self.damage = Some(format!(
            "record {number}, at byte {at}, is damaged: record {last} came later and is at byte \
             {last_at}"
        ));
        // No number is used twice.
        self.ring.last = last;
        self.sealed = sealed;
        Ok(())
    }

    /// The record with the highest number, if there is one after the last that was found.
    fn latest<S: Source<Error = io::Error>>(
        &self,
        source: &S,
        state: &State,
        size: u64,
    ) -> io::Result<Option<Later>> {
        let end = state.size.min(source.size());
        let mut latest: Option<Later> = None;
        let mut some = vec![0; SOME as usize];
        for begin in (0..end).step_by(SOME as usize) {
            let some = &mut some[..(end - begin).min(SOME) as usize];
            source.read_exact_at(begin, some)?;
            for (i, block) in some.chunks(BLOCK as usize).enumerate() {
                let at = begin + i as u64 * BLOCK;
                let least = latest.map_or(self.ring.last, |latest| latest.number);
                let header = Header::read(block, state.id);
                let Some(header) = header.filter(|header| header.number > least) else {
                    continue;
                };
                // What is written to the disk may be a part of a log, of this one before.
                let is_data = |found: &Found| (found.at..found.end).contains(&at);
                if self.records.iter().any(is_data) {
                    continue;
                }
                // A header alone says that the record before it was acknowledged: that
                // it is there. The next one's may be that of a record that was cut off.
                let found = match header.number == self.ring.next() {
                    true => Self::read(source, state, at, header.number, size)?,
                    false => Self::header(source, state, at, size)?,
                };
                if let Some(found) = found {
                    latest = Some(Later {
                        number: header.number,
                        at,
                        sealed: found.sealed,
                    });
                }
            }
        }
        Ok(latest)
    }

    /// Reads what may be a record's first block.
    fn first<S: Source<Error = io::Error>>(
        source: &S,
        state: &State,
        at: u64,
    ) -> io::Result<Option<Header>> {
        // The file may be shorter than it should be.
        if state.size.min(source.size()).saturating_sub(at) < BLOCK {
            return Ok(None);
        }
        let mut block = [0; record::BLOCK];
        source.read_exact_at(at, &mut block)?;
        Ok(Header::read(&block, state.id))
    }

    /// Reads the blocks from `at` to `end`.
    fn blocks<S: Source<Error = io::Error>>(
        source: &S,
        at: u64,
        end: u64,
    ) -> io::Result<Vec<[u8; record::BLOCK]>> {
        let mut blocks = vec![[0; record::BLOCK]; ((end - at) / BLOCK) as usize];
        source.read_exact_at(at, blocks.as_flattened_mut())?;
        Ok(blocks)
    }

    /// Reads the header of a record at `at`, if one is there and whole, and the record may
    /// be.
    fn header<S: Source<Error = io::Error>>(
        source: &S,
        state: &State,
        at: u64,
        size: u64,
    ) -> io::Result<Option<Found>> {
        let Some(header) = Self::first(source, state, at)? else {
            return Ok(None);
        };
        let data = at + header.header_len();
        let end = header.data_len().and_then(|len| data.checked_add(len));
        let limit = state.size.min(source.size());
        let Some(end) = end.filter(|end| *end <= limit) else {
            return Ok(None);
        };
        let blocks = Self::blocks(source, at, data)?;
        Ok(header.is_whole(&blocks, size).then(|| Found {
            extents: header.extents(&blocks).collect(),
            at,
            data,
            end,
            hash: header.hash,
            sealed: header.sealed,
        }))
    }

    /// Reads record `number` at `at`, if it is there and whole.
    fn read<S: Source<Error = io::Error>>(
        source: &S,
        state: &State,
        at: u64,
        number: u64,
        size: u64,
    ) -> io::Result<Option<Found>> {
        // Others are read no further.
        let first = Self::first(source, state, at)?;
        if first.is_none_or(|first| first.number != number) {
            return Ok(None);
        }
        let Some(found) = Self::header(source, state, at, size)? else {
            return Ok(None);
        };
        let hash = Hash::of(&Self::blocks(source, found.data, found.end)?);
        Ok((hash.end() == found.hash).then_some(found))
    }

    /// What is wrong with it, if something is that was durable once.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Fails if something is wrong with it, in the file `name`.
    pub(crate) fn is_whole(&self, name: &str) -> Result<(), Error> {
        match &self.damage {
            Some(damage) => Err(Error::image(name, damage.as_str())),
            None => Ok(()),
        }
    }

    /// Which record what was sealed last has as its last one.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// All until `mark` is sealed now.
    pub(crate) fn seal(&mut self, mark: Mark) {
        self.sealed = mark.seq;
    }

    /// What is sealed if somebody else did that.
    pub(crate) fn mark_of_sealed(&self) -> Mark {
        if self.sealed <= self.ring.dead {
            return self.ring.mark();
        }
        let count = self.sealed.saturating_sub(self.base);
        let last = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_sub(1));
        let last = last.and_then(|last| self.records.get(last));
        Mark {
            seq: self.sealed,
            at: last.map_or(self.ring.head, |last| last.end),
        }
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// What they say together, the newest of each block.
    pub(crate) fn content<S: Source<Error = io::Error>>(&self, source: &S) -> io::Result<Content> {
        let mut map = Overlay::default();
        for record in &self.records {
            let mut at = record.data;
            for extent in &record.extents {
                let end = extent.block + u64::from(extent.blocks);
                let data = (!extent.zero).then_some(at);
                map.put(extent.block, end, data);
                if !extent.zero {
                    at += u64::from(extent.blocks) * BLOCK;
                }
            }
        }
        let mut content = Content::default();
        for (&block, &(end, at)) in &map.0 {
            let extent = Extent {
                block,
                // A disk has no more.
                blocks: (end - block) as u32,
                zero: u32::from(at.is_none()),
            };
            content.extents.push(extent);
            if let Some(at) = at {
                let begin = content.bytes.len();
                let len = (end - block) * BLOCK;
                content.bytes.resize(begin + len as usize, 0);
                source.read_exact_at(at, &mut content.bytes[begin..])?;
            }
        }
        Ok(content)
    }
}

/// What a log says of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Which blocks, in order.
    pub extents: Vec<Extent>,
    /// The data of those that are not zeros, one behind the other.
    pub bytes: Vec<u8>,
}

/// What the log in a device's folder says that no layer does yet; nothing if there is
/// no log. Nothing is changed.
///
/// # Errors
///
/// What the system says, when the file is not there for one; [`Error::Image`] if it is
/// damaged.
pub fn content<F: Folder>(folder: &F, image: &Image) -> Result<Content, Error> {
    let Some(state) = &image.obd.log else {
        return Ok(Content::default());
    };
    let source = folder.open(NAME).map_err(Error::file("open", NAME))?;
    let live = Live::find(&source, state, image.obd.size).map_err(Error::file("read", NAME))?;
    live.is_whole(NAME)?;
    live.content(&source).map_err(Error::file("read", NAME))
}

/// How many records there are, in the log of the device with this `image.json`, that no
/// layer has.
///
/// # Errors
///
/// What the system says, and what [`Image::parse`] and [`content`] do.
pub fn records(path: &Path) -> Result<usize, Error> {
    let name = path.display().to_string();
    let text = std::fs::read(path).map_err(Error::file("read", &name))?;
    let image = Image::parse(&name, &text)?;
    let Some(state) = &image.obd.log else {
        return Ok(0);
    };
    let log = path.parent().unwrap_or(Path::new("")).join(NAME);
    let log_name = log.display().to_string();
    let source = obd_host::File::open(&log).map_err(Error::file("open", &log_name))?;
    let live = Live::find(&source, state, image.obd.size);
    let live = live.map_err(Error::file("read", &log_name))?;
    live.is_whole(&log_name)?;
    Ok(live.len())
}

/// Ranges of blocks, by the first: the end, and where the data is if they are no zeros.
#[derive(Default)]
struct Overlay(BTreeMap<u64, (u64, Option<u64>)>);

impl Overlay {
    /// What is known of the blocks from `start` to `end` from here on.
    fn put(&mut self, start: u64, end: u64, data: Option<u64>) {
        let behind = |from: u64, at: Option<u64>| at.map(|at| at + (end - from) * BLOCK);
        let before = self.0.range(..start).next_back();
        let mut within: Vec<u64> = before.map(|(first, _)| *first).into_iter().collect();
        within.extend(self.0.range(start..end).map(|(first, _)| *first));
        for first in within {
            let Some((last, at)) = self.0.remove(&first) else {
                continue;
            };
            if first < start {
                self.0.insert(first, (last.min(start), at));
            }
            if last > end {
                self.0.insert(end, (last, behind(first, at)));
            }
        }
        self.0.insert(start, (end, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    const SIZE: u64 = 64 * BLOCK;

    struct Bytes(Vec<u8>);

    impl Source for Bytes {
        type Error = io::Error;

        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let at = offset as usize;
            let from = self.0.get(at..at + buf.len());
            buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    fn state() -> State {
        State {
            id: 77,
            size: MIN_SIZE,
            seq: 0,
            at: 0,
        }
    }

    /// A record of the log `id`.
    fn record(
        id: u64,
        number: u64,
        sealed: u64,
        extents: &[record::Extent],
        data: &[u8],
    ) -> Vec<u8> {
        let (data, _) = data.as_chunks();
        let header = Header {
            log: id,
            number,
            sealed,
            extents: extents.len() as u32,
            blocks: data.len() as u64,
            hash: Hash::of(data).end(),
        };
        let mut blocks = vec![[0; record::BLOCK]; (header.header_len() / BLOCK) as usize];
        let mut left = extents.iter().copied();
        for (n, block) in blocks.iter_mut().enumerate() {
            header.write(n == 0, &mut left, block);
        }
        let hash = Hash::of(&blocks);
        record::finish(&mut blocks[0], &hash);
        blocks.extend(data);
        blocks.into_flattened()
    }

    /// A record of `blocks` with data from `block` on, or of one with zeros.
    fn record_of(id: u64, number: u64, block: u64, blocks: u32) -> Vec<u8> {
        let extent = record::Extent {
            block,
            blocks: blocks.max(1),
            zero: blocks == 0,
        };
        let data = vec![number as u8; blocks as usize * BLOCK as usize];
        record(id, number, 0, &[extent], &data)
    }

    /// Puts a record where there is room for it.
    fn put(log: &mut Bytes, room: &mut Room, record: &[u8]) -> Option<usize> {
        let at = room.take(record.len() as u64)? as usize;
        log.0[at..][..record.len()].copy_from_slice(record);
        Some(at)
    }

    /// Writes a record that has the next number.
    fn append(log: &mut Bytes, ring: &mut Ring, record: &[u8]) -> Option<usize> {
        let mut room = ring.room();
        let at = put(log, &mut room, record)?;
        ring.advance(ring.next(), room);
        Some(at)
    }

    /// Writes a record of `blocks` with data from `block` on; where it is and how long.
    fn write(
        log: &mut Bytes,
        ring: &mut Ring,
        id: u64,
        block: u64,
        blocks: u32,
    ) -> Option<(usize, usize)> {
        let record = record_of(id, ring.next(), block, blocks);
        Some((append(log, ring, &record)?, record.len()))
    }

    fn found(log: &Bytes, state: &State) -> Live {
        Live::find(log, state, SIZE).unwrap()
    }

    #[test]
    fn a_record_that_is_torn_at_any_sector_is_the_end() {
        let mut log = Bytes(vec![0; MIN_SIZE as usize]);
        let mut ring = Ring::new(&state());
        write(&mut log, &mut ring, 77, 3, 2).unwrap();
        let (at, len) = write(&mut log, &mut ring, 77, 9, 1).unwrap();
        assert_eq!(found(&log, &state()).ring, ring);
        for sector in (at..at + len).step_by(512) {
            let was = log.0[sector..sector + 512].to_vec();
            for byte in [0x00, 0xA5] {
                log.0[sector..sector + 512].fill(byte);
                let wanted = 1 + usize::from(log.0[sector..sector + 512] == was);
                let live = found(&log, &state());
                assert_eq!(live.len(), wanted, "sector at {sector}");
                assert_eq!(live.damage, None, "sector at {sector}");
                assert_eq!(live.content(&log).unwrap().extents[0].block, 3);
            }
            log.0[sector..sector + 512].copy_from_slice(&was);
            // A file that ends there.
            let short = Bytes(log.0[..sector].to_vec());
            assert_eq!(found(&short, &state()).len(), 1);
            let damage = found(&short, &state()).damage.unwrap();
            assert_eq!(damage, format!("has {sector} bytes of {MIN_SIZE}"));
        }
        // Read twice it says the same.
        let content = |log| found(log, &state()).content(log).unwrap();
        assert_eq!(content(&log), content(&log));
        assert_eq!(content(&log).bytes.len(), 3 * BLOCK as usize);
    }

    #[test]
    fn records_of_another_log_or_another_time_are_none() {
        let mut log = Bytes(vec![0; MIN_SIZE as usize]);
        let mut ring = Ring::new(&state());
        write(&mut log, &mut ring, 78, 3, 2).unwrap();
        assert_eq!(found(&log, &state()).len(), 0);
        let mut ring = Ring::new(&state());
        write(&mut log, &mut ring, 77, 3, 2).unwrap();
        assert_eq!(found(&log, &state()).len(), 1);
        let later = State { seq: 1, ..state() };
        assert_eq!(found(&log, &later).len(), 0);
        let beyond = State {
            at: MIN_SIZE,
            ..state()
        };
        assert_eq!(found(&log, &beyond).len(), 1);
    }

    #[test]
    fn the_ring_never_overwrites_what_is_live() {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let mut log = Bytes(vec![0; MIN_SIZE as usize]);
            let mut said = state();
            let mut ring = Ring::new(&said);
            // What the disk says after each record, from the last in layers on.
            let mut disk = vec![0_u8; SIZE as usize];
            let mut layers = disk.clone();
            let mut marked: Option<(Mark, Vec<u8>)> = None;
            let (mut full, mut wrapped) = (0, 0);
            for _ in 0..300 {
                // All becomes a layer.
                let mut is_over = false;
                let some = |rng: &mut Rng| {
                    let blocks = rng.u32(0..4);
                    (rng.u64(..64 - u64::from(blocks.max(1))), blocks)
                };
                let mut fill = |block: u64, blocks: u32, number: u64| {
                    let len = blocks.max(1) as usize * BLOCK as usize;
                    let byte = if blocks == 0 { 0 } else { number as u8 };
                    disk[(block * BLOCK) as usize..][..len].fill(byte);
                };
                match rng.u8(..20) {
                    0..4 => {
                        marked.get_or_insert_with(|| (ring.mark(), disk.clone()));
                    }
                    4..8 => {
                        if let Some((mark, then)) = marked.take() {
                            ring.bury(mark);
                            (said.seq, said.at, layers) = (mark.seq, mark.at, then);
                        }
                    }
                    8 => {
                        // One that failed, and is there all the same.
                        let (block, blocks) = some(&mut rng);
                        let record = record_of(77, ring.next(), block, blocks);
                        if put(&mut log, &mut ring.room(), &record).is_some() {
                            fill(block, blocks, ring.next());
                            ring.skip();
                            is_over = true;
                        }
                    }
                    _ => {
                        // Several, before the ring is told.
                        let (mut room, mut last) = (ring.room(), ring.last());
                        for _ in 0..rng.u8(1..3) {
                            let (block, blocks) = some(&mut rng);
                            let record = record_of(77, last + 1, block, blocks);
                            let before = room.at;
                            let Some(at) = put(&mut log, &mut room, &record) else {
                                full += 1;
                                is_over = true;
                                break;
                            };
                            wrapped += u32::from((at as u64) < before);
                            last += 1;
                            fill(block, blocks, last);
                        }
                        ring.advance(last, room);
                    }
                }
                if is_over {
                    let mark = ring.mark();
                    ring.bury(mark);
                    (said.seq, said.at) = (mark.seq, mark.at);
                    layers.clone_from(&disk);
                    marked = None;
                }
                let live = found(&log, &said);
                assert_eq!(live.ring.mark(), ring.mark());
                assert_eq!(live.damage, None);
                let content = live.content(&log).unwrap();
                let mut now = layers.clone();
                let mut bytes = &content.bytes[..];
                for extent in content.extents {
                    let to = &mut now[(extent.block * BLOCK) as usize..]
                        [..extent.blocks as usize * BLOCK as usize];
                    match extent.zero {
                        0 => {
                            let (data, rest) = bytes.split_at(to.len());
                            to.copy_from_slice(data);
                            bytes = rest;
                        }
                        _ => to.fill(0),
                    }
                }
                assert!(now == disk, "seed {seed}");
            }
            assert!(full > 0 && wrapped > 0, "seed {seed}");
        }
    }

    #[test]
    fn a_record_that_is_damaged_later_is_no_end() {
        let mut log = Bytes(vec![0; MIN_SIZE as usize]);
        let mut ring = Ring::new(&state());
        let mut places = Vec::new();
        for block in 0..4 {
            places.push(write(&mut log, &mut ring, 77, block * 4, 2).unwrap());
        }
        let last = places[3];
        let content = |log: &Bytes| {
            let live = found(log, &state());
            let whole = live.is_whole(NAME).map_err(|error| error.to_string());
            whole.map(|()| live.len())
        };
        assert_eq!(content(&log), Ok(4));
        for (n, (at, len)) in places[..3].iter().copied().enumerate() {
            for sector in (at..at + len).step_by(512) {
                let was = log.0[sector..sector + 512].to_vec();
                log.0[sector..sector + 512].fill(0xA5);
                let says = format!(
                    "log.obd: record {}, at byte {at}, is damaged: record 4 came later and is at \
                     byte {}",
                    n + 1,
                    last.0
                );
                assert_eq!(content(&log), Err(says), "sector at {sector}");
                // Nobody uses a number again that is there.
                assert_eq!(found(&log, &state()).ring.next(), 5);
                // It is no better if the last one was cut off, but for its header...
                let end = log.0[last.0 + last.1 - 512..].to_vec();
                log.0[last.0 + last.1 - 512..].fill(0xA5);
                assert!(content(&log).is_err(), "sector at {sector}");
                log.0[last.0 + last.1 - 512..].copy_from_slice(&end);
                log.0[sector..sector + 512].copy_from_slice(&was);
            }
        }
        // ... and as good as ever if it is dead.
        log.0[places[0].0] = 0xA5;
        let later = State {
            seq: 1,
            at: places[1].0 as u64,
            ..state()
        };
        assert_eq!(found(&log, &later).damage, None);
        assert_eq!(found(&log, &later).len(), 3);
        // The next one, whole, where it cannot be.
        let lost = State { at: BLOCK, ..later };
        assert!(found(&log, &lost).damage.is_some());
    }

    #[test]
    fn parts_of_a_log_in_a_log_are_data() {
        let mut log = Bytes(vec![0; MIN_SIZE as usize]);
        let mut ring = Ring::new(&state());
        let extents = |blocks| {
            [record::Extent {
                block: 1,
                blocks,
                zero: false,
            }]
        };
        // As of a time that is still to come: nothing else is worse.
        let inner = record(77, 9, 0, &extents(1), &[7; BLOCK as usize]);
        append(&mut log, &mut ring, &record(77, 1, 0, &extents(2), &inner)).unwrap();
        let live = found(&log, &state());
        assert_eq!((live.len(), live.damage.as_deref()), (1, None));
    }

    #[test]
    fn what_somebody_else_sealed() {
        let mut log = Bytes(vec![0; MIN_SIZE as usize]);
        let mut ring = Ring::new(&state());
        let mut ends = Vec::new();
        // Two were sealed when the third came.
        for sealed in [0, 0, 2] {
            let extent = record::Extent {
                block: 1,
                blocks: 1,
                zero: true,
            };
            let record = record(77, ring.next(), sealed, &[extent], &[]);
            append(&mut log, &mut ring, &record).unwrap();
            ends.push(ring.head);
        }
        let mark = Mark {
            seq: 2,
            at: ends[1],
        };
        assert_eq!(found(&log, &state()).mark_of_sealed(), mark);
        // That became a layer; all since is sealed.
        let later = State {
            seq: 2,
            at: ends[1],
            ..state()
        };
        assert_eq!(found(&log, &later).mark_of_sealed(), ring.mark());
    }

    #[test]
    fn any_bytes_are_a_log() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..2000 {
            let mut log = Bytes(vec![0; MIN_SIZE as usize]);
            let mut ring = Ring::new(&state());
            while write(&mut log, &mut ring, 77, rng.u64(..60), rng.u32(..3)).is_some() {}
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..log.0.len() / 512) * 512 + rng.usize(..80);
                log.0[at] = rng.u8(..);
            }
            let live = found(&log, &state());
            live.content(&log).unwrap();
        }
    }
}
