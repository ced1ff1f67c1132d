// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Reading and checking the index of a sealed layer.

use super::MAX_SEGMENTS;
use super::header::{
    self,
    HEADER_SECTORS,
    Header, //
};
use super::layer::{
    Content,
    Kind, //
};
use super::segment::{
    MAX_MOFFSET,
    Segment,
    Stored, //
};
use crate::SECTOR;
use crate::budget::Budget;
use crate::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use crate::platform::{
    Growing,
    Memory,
    Platform, //
};
use crate::scratch::Scratch;
use crate::source::Source;

/// Bytes of memory that a segment takes at most while an image is opened: 48 in
/// its layer, which are 32 by then, 64 while merging and 17 in the merged index.
const SEGMENT_COST: u64 = 32 + 64 + 17;

/// Segments read at a time.
const CHUNK: usize = 1024;

/// Checks that data, index and trailer lie one behind the other, and that
/// sizes are possible.
pub(super) fn check_places<E>(
    kind: Kind,
    trailer: &Header,
    trailer_at: u64,
) -> Result<(), Error<E>> {
    let place = Place::LsmtTrailer;
    if trailer.index_size > MAX_SEGMENTS {
        return Err(Error::Unsupported(Unsupported::TooLarge {
            name: "segments",
            value: trailer.index_size,
        }));
    }
    let field = |name, value| Fault::error(place, Reason::Field { name, value });
    if trailer.index_offset < header::SPACE || !trailer.index_offset.is_multiple_of(SECTOR) {
        return Err(field("index offset", trailer.index_offset));
    }
    trailer.check_size(place)?;
    if trailer.index_offset / SECTOR > MAX_MOFFSET {
        return Err(Error::Unsupported(Unsupported::TooLarge {
            name: "bytes of data",
            value: trailer.index_offset,
        }));
    }
    // Neither product nor sum can wrap after the checks above. A commit pads
    // with entries that count, sealing with up to a sector that does not.
    let end = trailer.index_offset + trailer.index_size * Stored::SIZE as u64;
    let end = match kind {
        Kind::Committed => end,
        _ => end.next_multiple_of(SECTOR),
    };
    if end != trailer_at {
        return Err(Fault::error(
            place,
            Reason::Mismatch {
                name: "end of the index",
                value: end,
                expected: trailer_at,
            },
        ));
    }
    Ok(())
}

/// Reads and checks the index of a sealed layer.
pub(super) struct IndexReader<M: Memory> {
    pub(super) segments: Growing<M, Segment>,
    kind: Kind,
    /// Sectors of the image, as many as can be if the layer does not say.
    sectors: u64,
    /// The sector where the index begins.
    data_end: u64,
    /// Where the last segment ended.
    last: u64,
    /// Sectors of data mapped.
    mapped: u64,
    /// Segments that are zeros.
    pub(super) zeroed: u64,
    /// Whether an entry had a tag: a merge leaves them, and so does warp.
    tagged: bool,
}

impl<M: Memory> IndexReader<M> {
    /// A reader of the index that `trailer` describes.
    pub(super) fn new<E>(kind: Kind, trailer: &Header) -> Result<Self, Error<E>> {
        Ok(Self {
            segments: Growing::new()?,
            kind,
            sectors: match trailer.virtual_size / SECTOR {
                0 => u64::MAX,
                sectors => sectors,
            },
            data_end: trailer.index_offset / SECTOR,
            last: 0,
            mapped: 0,
            zeroed: 0,
            tagged: false,
        })
    }

    /// Reads all entries and checks each against those before.
    pub(super) fn read<S: Source, P: Platform>(
        &mut self,
        content: &Content<S, P>,
        trailer: &Header,
        scratch: &mut Scratch<P>,
        budget: &mut Budget,
    ) -> Result<(), Error<S::Error>> {
        let room = trailer.index_size.min(CHUNK as u64) as usize * Stored::SIZE;
        let mut buf = P::Memory::filled::<u8>(room)?;
        let mut number = 0;
        while number < trailer.index_size {
            let count = (trailer.index_size - number).min(CHUNK as u64);
            let bytes = buf
                .get_mut(..count as usize * Stored::SIZE)
                .unwrap_or_default();
            let at = trailer.index_offset + number * Stored::SIZE as u64;
            content.read(0, at, bytes, 0, scratch)?;
            for entry in bytes.chunks_exact(Stored::SIZE) {
                self.push(number, Stored::parse(entry), budget)?;
                number += 1;
            }
        }
        Ok(())
    }

    fn push<E>(&mut self, number: u64, entry: Stored, budget: &mut Budget) -> Result<(), Error<E>> {
        if entry.is_padding() {
            return Ok(());
        }
        let fault = |reason| Err(Fault::error(Place::LsmtEntry(number), reason));
        self.tagged |= entry.tag != 0;
        if entry.len == 0 {
            return fault(Reason::EmptySegment);
        }
        if entry.lba < self.last {
            return fault(Reason::Unsorted);
        }
        if entry.end() > self.sectors {
            return fault(Reason::BeyondImage);
        }
        let misplaced = self.kind == Kind::SealedSparse
            && !entry.zeroed
            && entry.moffset != entry.lba + HEADER_SECTORS;
        if entry.moffset < HEADER_SECTORS || entry.data_end() > self.data_end || misplaced {
            if self.tagged {
                return Err(Error::Unsupported(Unsupported::Warp));
            }
            return fault(Reason::BeyondData);
        }
        self.last = entry.end();
        self.mapped += if entry.zeroed { 0 } else { entry.len };
        self.zeroed += u64::from(entry.zeroed);
        budget.take(SEGMENT_COST)?;
        self.segments.push(entry.segment())?;
        Ok(())
    }

    /// Checks that a committed layer has no data its index does not account
    /// for: that is how an index that was cut, or a segment that was marked as
    /// zeroed, shows.
    pub(super) fn finish<E>(&self) -> Result<(), Error<E>> {
        let present = self.data_end - HEADER_SECTORS;
        if self.kind != Kind::Committed || self.mapped == present {
            return Ok(());
        }
        if self.tagged {
            return Err(Error::Unsupported(Unsupported::Warp));
        }
        Err(Fault::error(
            Place::LsmtIndex,
            Reason::DataArea {
                mapped: self.mapped,
                present,
            },
        ))
    }
}
