// SPDX-License-Identifier: GPL-2.0

//! What a device holds: an image of layers, or the content of one zfile.

use crate::blob::{
    Blob,
    ReadError, //
};
use crate::platform::Kernel;
use crate::stack::parts;
use core::fmt::{
    Display,
    Write, //
};
use kernel::{
    prelude::*,
    str::CString, //
};
use obd_core::budget::{
    Budget,
    MAX_MEMORY, //
};
use obd_core::image::MAX_LAYERS;
use obd_core::index::Contents;
use obd_core::scratch::{
    Fetch,
    Needs,
    Scratch, //
};
use obd_core::{
    tar,
    Image,
    Layer,
    LayerError,
    Window,
    ZFile,
    SECTOR, //
};

/// An open image, which may have no layers, or an open zfile of something else.
pub(crate) enum Content {
    /// No layer yet: so many sectors of zeros.
    Empty(u64),
    Image(Image<Blob, Kernel, KVVec<Layer<Blob, Kernel>>>),
    ZFile(ZFile<Blob, Kernel>),
}

impl Content {
    /// Opens the layers at `paths`, bottom to top.
    pub(crate) fn open_image(paths: &[CString]) -> Result<Self, Failure> {
        let no_memory = |_| Failure::whole(ENOMEM, "out of memory");
        let mut blobs =
            KVVec::with_capacity(paths.len().min(MAX_LAYERS), GFP_KERNEL).map_err(no_memory)?;
        for (i, path) in paths.iter().enumerate() {
            let blob = Blob::open(path).map_err(|error| Failure::open(i, error))?;
            blobs.push(blob, GFP_KERNEL).map_err(no_memory)?;
        }
        Self::merge(blobs)
    }

    /// The image of the layers in `blobs`, bottom to top.
    fn merge(blobs: KVVec<Blob>) -> Result<Self, Failure> {
        let mut layers = KVVec::with_capacity(blobs.len(), GFP_KERNEL)
            .map_err(|_| Failure::whole(ENOMEM, "out of memory"))?;
        let mut budget = Budget::new(MAX_MEMORY);
        for (i, blob) in blobs.into_iter().enumerate() {
            let layer = Layer::open_within(blob, &mut budget)
                .map_err(|error| Failure::new(Some(i), &error))?;
            layers
                .push(layer, GFP_KERNEL)
                .map_err(|_| Failure::whole(ENOMEM, "out of memory"))?;
        }
        Image::new(layers)
            .map(Self::Image)
            .map_err(|error| Failure::new(None, &error))
    }

    /// The same image with the layer at `path` in place of the `nr` layers from `first` on, and as
    /// large. Files of the others are not opened again, but their indexes are read again: merging
    /// took these apart.
    pub(crate) fn exchanged(&self, first: usize, nr: usize, path: &CStr) -> Result<Self, Failure> {
        let no_memory = |_| Failure::whole(ENOMEM, "out of memory");
        let layers = match self {
            Self::Empty(_) => &[],
            Self::Image(image) => image.layers(),
            Self::ZFile(_) => return Err(Failure::whole(EOPNOTSUPP, "a zfile has no layers")),
        };
        let Some((before, after)) = parts(layers, first, nr) else {
            return Err(Failure::whole(EINVAL, "it has no such layers"));
        };
        if before.len() + after.len() >= MAX_LAYERS {
            return Err(Failure::whole(E2BIG, "too many layers"));
        }
        let mut blobs =
            KVVec::with_capacity(before.len() + 1 + after.len(), GFP_KERNEL).map_err(no_memory)?;
        let new = Blob::open(path).map_err(|error| Failure::open(first, error))?;
        let kept = |layer: &Layer<Blob, Kernel>| layer.file().source().clone();
        let (before, after) = (before.iter().map(kept), after.iter().map(kept));
        for blob in Iterator::chain(Iterator::chain(before, [new]), after) {
            blobs.push(blob, GFP_KERNEL).map_err(no_memory)?;
        }

        let exchanged = Self::merge(blobs)?;
        if exchanged.sectors() != self.sectors() {
            return Err(Failure::whole(EINVAL, "the disk would have another size"));
        }
        Ok(exchanged)
    }

    /// Opens the zfile at `paths`, which is one.
    pub(crate) fn open_zfile(paths: &[CString]) -> Result<Self, Failure> {
        let [path] = paths else {
            return Err(Failure::whole(EINVAL, "a zfile is attached by itself"));
        };
        let blob = Blob::open(path).map_err(|error| Failure::open(0, error))?;
        let file = Window::whole(blob);
        let wrapped = tar::payload(&file).and_then(|payload| match payload {
            Some(payload) => file.part(payload.offset, payload.len),
            None => Ok(file),
        });
        wrapped
            .and_then(|file| ZFile::open_within(file, &mut Budget::new(MAX_MEMORY)))
            .map(Self::ZFile)
            .map_err(|error| Failure::new(Some(0), &error))
    }

    /// Size in sectors; the last one of a zfile may be filled up with zeros.
    pub(crate) fn sectors(&self) -> u64 {
        match self {
            Self::Empty(sectors) => *sectors,
            Self::Image(image) => image.size() / SECTOR,
            Self::ZFile(file) => file.size().div_ceil(SECTOR),
        }
    }

    /// What reading needs of a [`Scratch`].
    pub(crate) fn needs(&self) -> Needs {
        match self {
            Self::Empty(_) => Needs::default(),
            Self::Image(image) => image.needs(),
            Self::ZFile(file) => file.needs(),
        }
    }

    /// Bytes of memory that the merged index takes.
    pub(crate) fn index_memory(&self) -> usize {
        match self {
            Self::Image(image) => image.index().memory(),
            Self::Empty(_) | Self::ZFile(_) => 0,
        }
    }

    /// Bytes of memory that the jump tables take.
    pub(crate) fn table_memory(&self) -> usize {
        match self {
            Self::Empty(_) => 0,
            Self::Image(image) => image
                .layers()
                .iter()
                .filter_map(Layer::zfile)
                .map(ZFile::memory)
                .sum(),
            Self::ZFile(file) => file.memory(),
        }
    }

    /// How often parts of blocks were found in the cache, and how many blocks were decoded as they
    /// were not, since the blobs were opened.
    pub(crate) fn cached(&self) -> (u64, u64) {
        let of = |blob: &Blob| (blob.origin().hits(), blob.origin().misses());
        match self {
            Self::Empty(_) => (0, 0),
            Self::Image(image) => image
                .layers()
                .iter()
                .map(|layer| of(layer.file().source()))
                .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)),
            Self::ZFile(file) => of(file.file().source()),
        }
    }

    /// Whether `all` is true of every blob that it is in.
    pub(crate) fn blobs(&self, all: impl Fn(&Blob) -> bool) -> bool {
        match self {
            Self::Empty(_) => true,
            Self::Image(image) => image
                .layers()
                .iter()
                .all(|layer| all(layer.file().source())),
            Self::ZFile(file) => all(file.file().source()),
        }
    }

    /// Whether all of a range is zeros, so that reading it takes no I/O.
    pub(crate) fn is_zeros(&self, offset: u64, len: u64) -> bool {
        match self {
            Self::Empty(_) => true,
            Self::Image(image) => image.pieces(offset, len).is_ok_and(|mut pieces| {
                pieces.all(|piece| !matches!(piece.what, Contents::Data { .. }))
            }),
            Self::ZFile(_) => false,
        }
    }

    /// What to read, and of what, before `len` bytes from byte `offset` on can be decoded: `most`
    /// bytes at most, see [`Image::fetch`].
    pub(crate) fn fetch(&self, offset: u64, len: u64, most: usize) -> Option<(Fetch, &Blob)> {
        match self {
            Self::Empty(_) => None,
            Self::Image(image) => {
                let fetch = image.fetch(offset, len, most)?;
                let layer = image.layers().get(fetch.layer)?;
                Some((fetch, layer.file().source()))
            }
            Self::ZFile(file) => Some((file.fetch(offset, len, most)?, file.file().source())),
        }
    }

    /// Fills `buf`, whole sectors, from byte `offset` on. The `ahead` bytes behind these are wanted
    /// next. The buffers of `scratch` serve nothing but this.
    pub(crate) fn read(
        &self,
        offset: u64,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<Kernel>,
    ) -> Result<(), LayerError<ReadError>> {
        match self {
            Self::Empty(_) => {
                buf.fill(0);
                Ok(())
            }
            Self::Image(image) => image.read_next(offset, buf, ahead, scratch),
            Self::ZFile(file) => {
                let there = file.size().saturating_sub(offset).min(buf.len() as u64) as usize;
                let (data, tail) = buf.split_at_mut(there);
                tail.fill(0);
                file.read_next(offset, data, ahead, scratch)
                    .map_err(|error| LayerError {
                        layer: Some(0),
                        error,
                    })
            }
        }
    }
}

/// Why something could not be attached, or exchanged.
pub(crate) struct Failure {
    /// Which of the paths it was about.
    pub(crate) blob: Option<usize>,
    pub(crate) error: Error,
    pub(crate) text: Text,
}

impl Failure {
    fn new(blob: Option<usize>, error: &obd_core::Error<ReadError>) -> Self {
        Self {
            blob,
            error: errno(error),
            text: Text::new(error),
        }
    }

    fn open(blob: usize, error: Error) -> Self {
        Self {
            blob: Some(blob),
            error,
            text: Text::new(&format_args!("cannot be opened: {}", ReadError(error))),
        }
    }

    /// What is said of it, `path` being that of the blob.
    pub(crate) fn line(&self, path: Option<&CStr>) -> Result<CString> {
        let text = self.text.as_str();
        Ok(match path {
            Some(path) => CString::try_from_fmt(fmt!("{path}: {text}")),
            None => CString::try_from_fmt(fmt!("{text}")),
        }?)
    }

    /// Something wrong with all of it.
    pub(crate) fn whole(error: Error, text: &str) -> Self {
        Self {
            blob: None,
            error,
            text: Text::new(&text),
        }
    }
}

/// The error number for what went wrong while opening.
fn errno(error: &obd_core::Error<ReadError>) -> Error {
    match error {
        obd_core::Error::Io { source, .. } => source.0,
        obd_core::Error::Damaged(_) | obd_core::Error::OutOfRange { .. } => EUCLEAN,
        obd_core::Error::Unsupported(_) => EOPNOTSUPP,
        obd_core::Error::OutOfMemory => ENOMEM,
        obd_core::Error::ScratchTooSmall => EINVAL,
    }
}

/// Text of the core's, which the kernel's own macros do not print. What is too long is cut.
pub(crate) struct Text {
    bytes: [u8; 160],
    len: usize,
}

impl Text {
    /// The text of `value`.
    pub(crate) fn new(value: &dyn Display) -> Self {
        let mut text = Self {
            bytes: [0; 160],
            len: 0,
        };
        // It fails if the text is cut, and then there is as much as fits.
        let _ = write!(text, "{value}");
        text
    }

    /// The text, all of it ASCII.
    pub(crate) fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let fits = text.len().min(room.len());
        if let (Some(to), Some(from)) = (room.get_mut(..fits), text.as_bytes().get(..fits)) {
            to.copy_from_slice(from);
            self.len += fits;
        }
        if fits < text.len() {
            return Err(core::fmt::Error);
        }
        Ok(())
    }
}
