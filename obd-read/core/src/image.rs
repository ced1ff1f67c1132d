// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An image: layers, one over the other, read as one block device.

use crate::SECTOR;
use crate::error::{
    Error,
    Fault,
    LayerError,
    Place,
    Reason, //
};
use crate::index::{
    Contents,
    Index,
    Piece,
    Pieces, //
};
use crate::lsmt::Layer;
use crate::platform::Platform;
use crate::scratch::{
    Fetch,
    Needs,
    Scratch, //
};
use crate::source::Source;
use core::marker::PhantomData;
use core::ops::DerefMut;

/// Most layers of an image.
pub const MAX_LAYERS: usize = 255;

/// An image of layers in whatever container the caller has them.
pub struct Image<S, P: Platform, L> {
    layers: L,
    index: Index<P::Memory>,
    /// Bytes.
    size: u64,
    source: PhantomData<S>,
}

impl<S, P, L> Image<S, P, L>
where
    S: Source,
    P: Platform,
    L: DerefMut<Target = [Layer<S, P>]>,
{
    /// Stacks `layers`, bottom to top, and merges their segments, which are
    /// freed. The image has the size of the topmost layer that says one.
    ///
    /// # Errors
    ///
    /// [`Reason::LayerCount`] for none or more than 255 layers,
    /// [`Reason::NoSize`] if no layer says a size, [`Error::OutOfMemory`].
    pub fn new(mut layers: L) -> Result<Self, Error<S::Error>> {
        let fault = |reason| Fault::error(Place::Image, reason);
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(fault(Reason::LayerCount(layers.len() as u64)));
        }
        let size = layers
            .iter()
            .rev()
            .map(|layer| layer.info().virtual_size)
            .find(|size| *size > 0)
            .ok_or(fault(Reason::NoSize))?;
        let index = Index::merge(|| layers.iter().map(Layer::segments), size / SECTOR)?;
        for layer in layers.iter_mut() {
            layer.drop_segments();
        }
        Ok(Self {
            layers,
            index,
            size,
            source: PhantomData,
        })
    }

    /// Size, bytes: whole sectors.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The layers, bottom to top.
    pub fn layers(&self) -> &[Layer<S, P>] {
        &self.layers
    }

    /// The merged index.
    pub fn index(&self) -> &Index<P::Memory> {
        &self.index
    }

    /// What reading this image needs of a [`Scratch`].
    pub fn needs(&self) -> Needs {
        self.layers
            .iter()
            .fold(Needs::default(), |needs, layer| needs.and(layer.needs()))
    }

    /// What the sectors of `len` bytes from byte `offset` on hold.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] beyond the image, and between sectors.
    #[inline]
    pub fn pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<Pieces<'_, P::Memory>, LayerError<S::Error>> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.size);
        if !fits || !(offset | len).is_multiple_of(SECTOR) {
            return Err(Error::OutOfRange {
                offset,
                len,
                size: self.size,
            }
            .into());
        }
        Ok(self.index.pieces(offset / SECTOR, len / SECTOR))
    }

    /// Fills `buf`, whole sectors, from byte `offset`, a sector boundary, on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] beyond the image, and between sectors. Otherwise
    /// the error of the layer it came from; the content of `buf` is undefined
    /// then.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        scratch: &mut Scratch<P>,
    ) -> Result<(), LayerError<S::Error>> {
        scratch.forget();
        self.read_next(offset, buf, 0, scratch)
    }

    /// As [`Image::read_at`], by a reader who uses `scratch` for this image and
    /// nothing else: what it holds of the block decoded last is used again. The
    /// `ahead` bytes behind these, inside of the image, are wanted next; of what
    /// lies together with these they are read now as far as there is room.
    ///
    /// # Errors
    ///
    /// As [`Image::read_at`].
    pub fn read_next(
        &self,
        offset: u64,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<(), LayerError<S::Error>> {
        let mut rest = buf;
        let all = (rest.len() as u64).saturating_add(ahead);
        for piece in self.pieces(offset, all)? {
            if rest.is_empty() {
                break;
            }
            // Pieces are exactly as long as the range, so this is their sum.
            let whole = piece.len * SECTOR;
            let len = whole.min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(len as usize);
            rest = later;
            self.read_piece(&piece, now, whole - len, scratch)?;
        }
        Ok(())
    }

    /// What to read of a layer's file before the `len` bytes from `offset` on, whole
    /// sectors, can be decoded: the compressed blocks that the first data there begins
    /// with, as many as fit into `most` bytes. [`None`] if that is not compressed, and if
    /// there is no data.
    pub fn fetch(&self, offset: u64, len: u64, most: usize) -> Option<Fetch> {
        let data = |piece: Piece| match piece.what {
            Contents::Data { layer, sector } => Some((usize::from(layer), sector, piece.len)),
            Contents::Hole | Contents::Zeros => None,
        };
        let (layer, sector, sectors) = self.pieces(offset, len).ok()?.find_map(data)?;
        let file = self.layers.get(layer)?.zfile()?;
        // A data sector lies inside the layer's file: no product wraps.
        file.fetch_part(
            layer,
            sector.wrapping_mul(SECTOR),
            sectors.wrapping_mul(SECTOR),
            most,
        )
    }

    #[inline]
    fn read_piece(
        &self,
        piece: &Piece,
        buf: &mut [u8],
        ahead: u64,
        scratch: &mut Scratch<P>,
    ) -> Result<(), LayerError<S::Error>> {
        let (layer, sector) = match piece.what {
            Contents::Hole | Contents::Zeros => {
                buf.fill(0);
                return Ok(());
            }
            Contents::Data { layer, sector } => (usize::from(layer), sector),
        };
        let in_layer = |error| LayerError {
            layer: Some(layer),
            error,
        };
        match self.layers.get(layer) {
            // A data sector lies inside the layer's file: no product wraps.
            Some(from) => from
                .content()
                .read(layer, sector.wrapping_mul(SECTOR), buf, ahead, scratch)
                .map_err(in_layer),
            None => Err(in_layer(Fault::error(Place::Image, Reason::BeyondData))),
        }
    }
}
