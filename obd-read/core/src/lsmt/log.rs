// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Opening a layer that is still open for writing.

use super::MAX_LOG_ENTRIES;
use super::header::{
    self,
    HEADER_SECTORS,
    Header, //
};
use super::layer::{
    Content,
    Kind,
    Layer,
    LayerInfo, //
};
use super::segment::{
    MAX_LEN,
    MAX_MOFFSET,
    Segment,
    Stored, //
};
use crate::SECTOR;
use crate::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use crate::index::flatten;
use crate::platform::{
    Growing,
    Memory,
    Platform, //
};
use crate::source::{
    Source,
    Window, //
};

/// Log entries read at a time.
const CHUNK: usize = 1024;

impl<S: Source, P: Platform> Layer<S, P> {
    /// Opens a read-write layer from its data file and its index file, a log
    /// of segments in the order they were written: the last one wins.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] with what is wrong and where.
    pub fn open_log(data: S, log: S) -> Result<Self, Error<S::Error>> {
        let data = Window::whole(data);
        let log = Window::whole(log);
        let header = data_header(&data)?;
        if header.is_sparse() {
            return Err(Fault::error(
                Place::LsmtHeader,
                Reason::Flags(header.flags.into()),
            ));
        }
        let log_header = read_header(&log, Place::LogHeader)?;
        if !log_header.is_log_header() {
            return Err(Fault::error(
                Place::LogHeader,
                Reason::Flags(log_header.flags.into()),
            ));
        }
        if log_header.index_offset != header::SPACE {
            return Err(Fault::error(
                Place::LogHeader,
                Reason::Field {
                    name: "index offset",
                    value: log_header.index_offset,
                },
            ));
        }
        // A torn last entry was never acknowledged.
        let entries = log.size().saturating_sub(header::SPACE) / Stored::SIZE as u64;
        if entries > MAX_LOG_ENTRIES {
            return Err(Error::Unsupported(Unsupported::TooLarge {
                name: "log entries",
                value: entries,
            }));
        }
        let written = read_log::<S, P>(&log, entries, &header, data.size() / SECTOR)?;
        // Entries that ascend overwrite nothing of each other: one run.
        let segments = flatten::<P::Memory, _, _>(|| {
            let runs = written.as_slice().chunk_by(|a, b| a.end() <= b.lba());
            runs.map(|run| (0, run))
        })?;
        let zeroed = segments
            .as_slice()
            .iter()
            .filter(|segment| segment.is_zeroed());
        let zeroed = zeroed.count() as u64;
        Ok(finish(Kind::Log, data, &header, entries, segments, zeroed))
    }

    /// Opens a sparse read-write layer from its data file and that file's data
    /// extents, byte ranges `start..end` in ascending order (`SEEK_DATA` and
    /// `SEEK_HOLE`): what is a hole there is one of the layer.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] with what is wrong and where.
    pub fn open_sparse<I>(data: S, extents: I) -> Result<Self, Error<S::Error>>
    where
        I: IntoIterator<Item = (u64, u64)>,
    {
        let data = Window::whole(data);
        let header = data_header(&data)?;
        if !header.is_sparse() {
            return Err(Fault::error(
                Place::LsmtHeader,
                Reason::Flags(header.flags.into()),
            ));
        }
        let sectors = (data.size() / SECTOR).saturating_sub(HEADER_SECTORS);
        let sectors = match header.virtual_size / SECTOR {
            0 => sectors,
            size => sectors.min(size),
        };
        let mut segments = Growing::new()?;
        let mut lba = 0;
        for (start, end) in extents {
            lba = (start / SECTOR).saturating_sub(HEADER_SECTORS).max(lba);
            let end = end
                .div_ceil(SECTOR)
                .saturating_sub(HEADER_SECTORS)
                .min(sectors);
            while lba < end {
                let len = (end - lba).min(MAX_LEN);
                segments.push(Segment::new(lba, len, lba + HEADER_SECTORS, false, 0))?;
                lba += len;
            }
        }
        Ok(finish(Kind::Sparse, data, &header, 0, segments, 0))
    }

    /// Whether a file is the data of a sparse read-write layer.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it is no data file of a read-write layer at all.
    pub fn is_sparse(data: &S) -> Result<bool, Error<S::Error>> {
        Ok(data_header(&Window::whole(data))?.is_sparse())
    }
}

fn finish<S: Source, P: Platform>(
    kind: Kind,
    data: Window<S>,
    header: &Header,
    index_entries: u64,
    segments: Growing<P::Memory, Segment>,
    zeroed_segments: u64,
) -> Layer<S, P> {
    let info = LayerInfo {
        kind,
        virtual_size: header.virtual_size,
        index_entries,
        segments: segments.as_slice().len() as u64,
        zeroed_segments,
        index_offset: 0,
        content_size: data.size(),
        label: header.label,
    };
    Layer::new(Content::Plain(data), segments, info)
}

fn read_header<S: Source>(file: &Window<S>, place: Place) -> Result<Header, Error<S::Error>> {
    if file.size() < header::SPACE {
        return Err(Fault::error(place, Reason::TooShort));
    }
    let mut bytes = [0; header::SIZE];
    file.read(0, &mut bytes)?;
    Header::parse(&bytes).ok_or(Fault::error(place, Reason::Magic))
}

/// The header of a read-write layer's data file.
fn data_header<S: Source>(data: &Window<S>) -> Result<Header, Error<S::Error>> {
    let header = read_header(data, Place::LsmtHeader)?;
    if !header.is_data_header() || header.is_committed() {
        return Err(Fault::error(
            Place::LsmtHeader,
            Reason::Flags(header.flags.into()),
        ));
    }
    header.check_size(Place::LsmtHeader)?;
    if data.size() / SECTOR > MAX_MOFFSET {
        return Err(Error::Unsupported(Unsupported::TooLarge {
            name: "bytes of data",
            value: data.size(),
        }));
    }
    Ok(header)
}

/// Reads and checks the entries of a log, padding left out.
fn read_log<S: Source, P: Platform>(
    log: &Window<S>,
    entries: u64,
    header: &Header,
    data_end: u64,
) -> Result<Growing<P::Memory, Segment>, Error<S::Error>> {
    let sectors = match header.virtual_size / SECTOR {
        0 => u64::MAX,
        sectors => sectors,
    };
    let mut written = Growing::new()?;
    let mut buf = P::Memory::filled::<u8>(entries.min(CHUNK as u64) as usize * Stored::SIZE)?;
    let mut number = 0;
    while number < entries {
        let count = (entries - number).min(CHUNK as u64);
        let bytes = buf
            .get_mut(..count as usize * Stored::SIZE)
            .unwrap_or_default();
        log.read(header::SPACE + number * Stored::SIZE as u64, bytes)?;
        for entry in bytes.chunks_exact(Stored::SIZE) {
            let entry = Stored::parse(entry);
            let place = Place::LsmtEntry(number);
            let fault = |reason| Err(Fault::error(place, reason));
            number += 1;
            if entry.is_padding() {
                continue;
            }
            if entry.len == 0 {
                return fault(Reason::EmptySegment);
            }
            if entry.end() > sectors {
                return fault(Reason::BeyondImage);
            }
            if entry.moffset < HEADER_SECTORS || entry.data_end() > data_end {
                return fault(Reason::BeyondData);
            }
            written.push(entry.segment())?;
        }
    }
    Ok(written)
}
