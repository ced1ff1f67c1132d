// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Opening a layer.

use super::entries::{
    IndexReader,
    check_places, //
};
use super::header::{
    self,
    Header,
    Label, //
};
use super::segment::Segment;
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
    Platform, //
};
use crate::scratch::{
    Needs,
    RUN,
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

/// The bytes of a layer's file, compressed or not.
pub(crate) enum Content<S, P: Platform> {
    Plain(Window<S>),
    Compressed(ZFile<S, P>),
}

impl<S: Source, P: Platform> Content<S, P> {
    /// Finds out what `file` is: tar wrapper first, zfile then.
    fn open(file: Window<S>, budget: &mut Budget) -> Result<Self, Error<S::Error>> {
        let file = match tar::payload(&file)? {
            Some(payload) => file.part(payload.offset, payload.len)?,
            None => file,
        };
        let mut magic = [0; 40];
        if file.size() >= magic.len() as u64 {
            file.read(0, &mut magic)?;
        }
        if zfile::is_zfile(&magic) {
            return Ok(Content::Compressed(ZFile::open_within(file, budget)?));
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
            Content::Plain(_) => Needs {
                stored: RUN,
                ..Needs::default()
            },
            Content::Compressed(file) => file.needs(),
        }
    }

    /// Fills `buf` from byte `offset` of the layer's file on. The `ahead` bytes behind
    /// these are wanted next.
    #[inline]
    pub(crate) fn read(
        &self,
        layer: usize,
        offset: u64,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<(), Error<S::Error>> {
        match self {
            Content::Plain(file) => read_plain(file, layer, offset, buf, ahead, scratch),
            Content::Compressed(file) => file.read_part(layer, offset, buf, ahead, scratch),
        }
    }
}

/// Reads a file that is not compressed: to where it is wanted, or together with what
/// is wanted next.
fn read_plain<S: Source, P: Platform>(
    file: &Window<S>,
    layer: usize,
    offset: u64,
    buf: &mut [u8],
    ahead: u64,
    scratch: &mut Scratch<P>,
) -> Result<(), Error<S::Error>> {
    let len = buf.len();
    let find = |scratch: &Scratch<P>| scratch.run.and_then(|run| run.find(layer, offset, len));
    let most = (scratch.most() as u64).min(ahead.saturating_add(len as u64));
    if find(scratch).is_none() && most > len as u64 {
        let there = file.size().saturating_sub(offset);
        scratch.read_run(file, layer, offset, most.min(there) as usize)?;
    }
    match find(scratch).and_then(|found| scratch.stored.get(found)) {
        Some(from) => buf.copy_from_slice(from),
        None => file.read(offset, buf)?,
    }
    Ok(())
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
        Self::open_within(source, &mut Budget::unlimited())
    }

    /// As [`Layer::open`], with no more memory than is left of `budget`, that for
    /// the image's index included.
    ///
    /// # Errors
    ///
    /// As [`Layer::open`], and [`Unsupported::Memory`].
    pub fn open_within(source: S, budget: &mut Budget) -> Result<Self, Error<S::Error>> {
        match Self::probe_within(source, budget)? {
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
        Self::probe_within(source, &mut Budget::unlimited())
    }

    fn probe_within(source: S, budget: &mut Budget) -> Result<Opened<S, P>, Error<S::Error>> {
        let content = Content::open(Window::whole(source), budget)?;
        let mut scratch = Scratch::new(content.needs())?;
        match (Self::read_header(&content, 0, &mut scratch)?, content) {
            (Some(header), content) => {
                Self::open_sealed(content, &header, &mut scratch, budget).map(Opened::Layer)
            }
            (None, Content::Compressed(file)) => Ok(Opened::ZFile(file)),
            (None, Content::Plain(_)) => Err(Fault::error(Place::LsmtHeader, Reason::Magic)),
        }
    }

    /// Reads a header or trailer at byte `at`, if there is one.
    // Not inlined: it needs the stack, which is small in kernels, only while it runs.
    #[inline(never)]
    fn read_header(
        content: &Content<S, P>,
        at: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<Option<Header>, Error<S::Error>> {
        let mut bytes = [0; header::SIZE];
        let len = content.size().saturating_sub(at).min(bytes.len() as u64) as usize;
        content.read(0, at, bytes.get_mut(..len).unwrap_or_default(), 0, scratch)?;
        Ok(Header::parse(&bytes))
    }

    fn open_sealed(
        content: Content<S, P>,
        header: &Header,
        scratch: &mut Scratch<P>,
        budget: &mut Budget,
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
        let trailer = match Self::read_header(&content, at, scratch)? {
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
        index.read(&content, &trailer, scratch, budget)?;
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

    /// The file the layer is in, compressed or not.
    pub fn file(&self) -> &Window<S> {
        match &self.content {
            Content::Plain(file) => file,
            Content::Compressed(file) => file.file(),
        }
    }

    /// First byte of the layer in its file: past the tar wrapper.
    pub fn payload_offset(&self) -> u64 {
        self.file().start()
    }

    pub(crate) fn content(&self) -> &Content<S, P> {
        &self.content
    }

    /// What reading this layer needs of a [`Scratch`].
    pub fn needs(&self) -> Needs {
        self.content.needs()
    }
}
