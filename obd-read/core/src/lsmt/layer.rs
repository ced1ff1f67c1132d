// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Opening a layer.

use super::MAX_SEGMENTS;
use super::header::{
    self,
    HEADER_SECTORS,
    Header,
    Label, //
};
use super::segment::{
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
use crate::platform::{
    Growing,
    Memory,
    Platform, //
};
use crate::scratch::{
    Needs,
    Scratch, //
};
use crate::source::{
    Source,
    Window, //
};
use crate::tar;
use crate::zfile::{
    self,
    ZFile, //
};

/// Segments read at a time.
const CHUNK: usize = 1024;

/// The bytes of a layer's file, compressed or not.
pub(crate) enum Content<S, P: Platform> {
    Plain(Window<S>),
    Compressed(ZFile<S, P>),
}

impl<S: Source, P: Platform> Content<S, P> {
    /// Finds out what `file` is: tar wrapper first, zfile then.
    fn open(file: Window<S>) -> Result<Self, Error<S::Error>> {
        let file = match tar::payload(&file)? {
            Some(payload) => file.part(payload.offset, payload.len)?,
            None => file,
        };
        let mut magic = [0; 40];
        if file.size() >= magic.len() as u64 {
            file.read(0, &mut magic)?;
        }
        if zfile::is_zfile(&magic) {
            return Ok(Content::Compressed(ZFile::open(file)?));
        }
        Ok(Content::Plain(file))
    }

    fn size(&self) -> u64 {
        match self {
            Content::Plain(file) => file.size(),
            Content::Compressed(file) => file.size(),
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Content::Plain(_) => Needs::default(),
            Content::Compressed(file) => file.needs(),
        }
    }

    /// Fills `buf` from byte `offset` of the layer's file on.
    #[inline]
    pub(crate) fn read(
        &self,
        layer: usize,
        offset: u64,
        buf: &mut [u8],
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        match self {
            Content::Plain(file) => file.read(offset, buf),
            Content::Compressed(file) => file.read_part(layer, offset, buf, scratch),
        }
    }
}

/// How a layer came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Written in one go by a commit or a merge.
    Committed,
    /// Written to, then sealed.
    Sealed,
    /// Written to, then sealed; data at its own address.
    SealedSparse,
    /// Still open for writing, its segments in a log.
    Log,
    /// Still open for writing, its segments the file's data extents.
    Sparse,
}

/// What a layer says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// How it came to be.
    pub kind: Kind,
    /// Size of the image above it, bytes; 0 if it does not say.
    pub virtual_size: u64,
    /// Entries of the index, padding included.
    pub index_entries: u64,
    /// Segments.
    pub segments: u64,
    /// Segments that are zeros.
    pub zeroed_segments: u64,
    /// First byte of the index in the layer's (decoded) file; 0 if it has none.
    pub index_offset: u64,
    /// Size of the layer's (decoded) file, bytes.
    pub content_size: u64,
    /// UUIDs and commit message.
    pub label: Label,
}

/// An open layer.
pub struct Layer<S, P: Platform> {
    content: Content<S, P>,
    /// Taken out when the layer becomes part of an image.
    segments: Option<Growing<P::Memory, Segment>>,
    info: LayerInfo,
}

/// What a file turned out to be.
#[expect(clippy::large_enum_variant, reason = "moved once per open")]
pub enum Opened<S, P: Platform> {
    /// A layer.
    Layer(Layer<S, P>),
    /// A zfile of something else.
    ZFile(ZFile<S, P>),
}

impl<S: Source, P: Platform> Layer<S, P> {
    /// Opens a sealed layer: plain, compressed, wrapped in tar, or both.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] with what is wrong and where, [`Error::Unsupported`]
    /// for layers whose data is elsewhere.
    pub fn open(source: S) -> Result<Self, Error<S::Error>> {
        match Self::probe(source)? {
            Opened::Layer(layer) => Ok(layer),
            Opened::ZFile(_) => Err(Fault::error(Place::LsmtHeader, Reason::Magic)),
        }
    }

    /// As [`Layer::open`], but a zfile may hold anything.
    ///
    /// # Errors
    ///
    /// As [`Layer::open`]. A zfile whose first block cannot be read is damaged,
    /// whatever it holds.
    pub fn probe(source: S) -> Result<Opened<S, P>, Error<S::Error>> {
        let content = Content::open(Window::whole(source))?;
        let mut scratch = Scratch::new(content.needs())?;
        let mut head = [0; header::SIZE];
        let len = content.size().min(head.len() as u64) as usize;
        content.read(0, 0, head.get_mut(..len).unwrap_or_default(), &mut scratch)?;
        match (Header::parse(&head), content) {
            (Some(header), content) => {
                Self::open_sealed(content, &header, &mut scratch).map(Opened::Layer)
            }
            (None, Content::Compressed(file)) => Ok(Opened::ZFile(file)),
            (None, Content::Plain(_)) => Err(Fault::error(Place::LsmtHeader, Reason::Magic)),
        }
    }

    fn open_sealed(
        content: Content<S, P>,
        header: &Header,
        scratch: &mut Scratch<P>,
    ) -> Result<Self, Error<S::Error>> {
        if !header.is_data_header() {
            return Err(Fault::error(
                Place::LsmtHeader,
                Reason::Flags(header.flags.into()),
            ));
        }
        let at = content
            .size()
            .checked_sub(header::SPACE)
            .filter(|at| *at >= header::SPACE)
            .ok_or(Fault::error(Place::LsmtTrailer, Reason::TooShort))?;
        let mut tail = [0; header::SIZE];
        content.read(0, at, &mut tail, scratch)?;
        let trailer = match Header::parse(&tail) {
            Some(trailer) => trailer,
            None if !header.is_committed() => {
                return Err(Error::Unsupported(Unsupported::Unsealed));
            }
            None => return Err(Fault::error(Place::LsmtTrailer, Reason::Magic)),
        };
        if !trailer.is_trailer() {
            return Err(Fault::error(
                Place::LsmtTrailer,
                Reason::Flags(trailer.flags.into()),
            ));
        }
        let kind = match (header.is_committed(), header.is_sparse()) {
            (true, _) => Kind::Committed,
            (false, false) => Kind::Sealed,
            (false, true) => Kind::SealedSparse,
        };
        check_places(kind, &trailer, at)?;
        let mut index = IndexReader::<P::Memory>::new(kind, &trailer)?;
        index.read(&content, &trailer, scratch)?;
        index.finish()?;
        let info = LayerInfo {
            kind,
            virtual_size: trailer.virtual_size,
            index_entries: trailer.index_size,
            segments: index.segments.as_slice().len() as u64,
            zeroed_segments: index.zeroed,
            index_offset: trailer.index_offset,
            content_size: content.size(),
            label: trailer.label,
        };
        Ok(Self::new(content, index.segments, info))
    }

    pub(super) fn new(
        content: Content<S, P>,
        segments: Growing<P::Memory, Segment>,
        info: LayerInfo,
    ) -> Self {
        Self {
            content,
            segments: Some(segments),
            info,
        }
    }

    /// What the layer says of itself.
    pub fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// Its segments in order, until it becomes part of an image.
    pub fn segments(&self) -> &[Segment] {
        self.segments.as_ref().map_or(&[], Growing::as_slice)
    }

    /// Frees the segments: they are in an index now.
    pub(crate) fn drop_segments(&mut self) {
        self.segments = None;
    }

    /// The zfile the layer is in, if it is in one.
    pub fn zfile(&self) -> Option<&ZFile<S, P>> {
        match &self.content {
            Content::Plain(_) => None,
            Content::Compressed(file) => Some(file),
        }
    }

    /// The uncompressed file the layer is in, if it is in one.
    pub fn plain(&self) -> Option<&Window<S>> {
        match &self.content {
            Content::Plain(file) => Some(file),
            Content::Compressed(_) => None,
        }
    }

    /// First byte of the layer in its file: past the tar wrapper.
    pub fn payload_offset(&self) -> u64 {
        match &self.content {
            Content::Plain(file) => file.start(),
            Content::Compressed(file) => file.file().start(),
        }
    }

    pub(crate) fn content(&self) -> &Content<S, P> {
        &self.content
    }

    /// What reading this layer needs of a [`Scratch`].
    pub fn needs(&self) -> Needs {
        self.content.needs()
    }
}

/// Checks that data, index and trailer lie one behind the other, and that
/// sizes are possible.
fn check_places<E>(kind: Kind, trailer: &Header, trailer_at: u64) -> Result<(), Error<E>> {
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
    if !trailer.virtual_size.is_multiple_of(SECTOR) {
        return Err(field("virtual size", trailer.virtual_size));
    }
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
struct IndexReader<M: Memory> {
    segments: Growing<M, Segment>,
    kind: Kind,
    /// Sectors of the image, as many as can be if the layer does not say.
    sectors: u64,
    /// The sector where the index begins.
    data_end: u64,
    /// Where the last segment ended.
    last: u64,
    /// Sectors of data mapped.
    mapped: u64,
    zeroed: u64,
    /// Whether an entry had a tag: a merge leaves them, and so does warp.
    tagged: bool,
}

impl<M: Memory> IndexReader<M> {
    fn new<E>(kind: Kind, trailer: &Header) -> Result<Self, Error<E>> {
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

    fn read<S: Source, P: Platform>(
        &mut self,
        content: &Content<S, P>,
        trailer: &Header,
        scratch: &mut Scratch<P>,
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
            content.read(0, at, bytes, scratch)?;
            for entry in bytes.chunks_exact(Stored::SIZE) {
                self.push(number, Stored::parse(entry))?;
                number += 1;
            }
        }
        Ok(())
    }

    fn push<E>(&mut self, number: u64, entry: Stored) -> Result<(), Error<E>> {
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
        self.segments.push(entry.segment())?;
        Ok(())
    }

    /// Checks that a committed layer has no data its index does not account
    /// for: that is how an index that was cut, or a segment that was marked as
    /// zeroed, shows.
    fn finish<E>(&self) -> Result<(), Error<E>> {
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
