// SPDX-License-Identifier: MIT

//! Layers of a store, as [`obd_core`] reads them.

use crate::error::Error;
use crate::format::Entry;
use obd_core::{
    Image,
    Source, //
};
use obd_engine::Shared;
use obd_host::Host;
use std::io;
use std::sync::Arc;

/// The bytes of a layer's file.
#[derive(Clone)]
pub struct LayerFile {
    device: Arc<Shared>,
    start: u64,
    len: u64,
}

/// A layer of a store.
pub type Layer = obd_core::Layer<LayerFile, Host>;

/// Layers of a store, stacked.
pub type StoreImage = Image<LayerFile, Host, Vec<Layer>>;

impl LayerFile {
    /// The layer of `entry` on `device`.
    pub fn new(device: Arc<Shared>, entry: &Entry) -> Self {
        Self::at(device, entry.extent.start, entry.len)
    }

    /// The layer of `len` bytes at byte `start` of `device`.
    pub fn at(device: Arc<Shared>, start: u64, len: u64) -> Self {
        Self { device, start, len }
    }
}

impl Source for LayerFile {
    type Error = io::Error;

    fn size(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(self.device.read(self.start + offset, buf)?)
    }
}

/// Stacks `entries`, bottom to top; the first is layer `first` of its store.
///
/// # Errors
///
/// [`Error::Layer`], [`Error::Image`].
pub fn stack(device: &Arc<Shared>, entries: &[Entry], first: usize) -> Result<StoreImage, Error> {
    let mut layers = Vec::with_capacity(entries.len());
    for (layer, entry) in (first..).zip(entries) {
        let opened = Layer::open(LayerFile::new(Arc::clone(device), entry));
        layers.push(opened.map_err(|error| Error::Layer { layer, error })?);
    }
    Image::new(layers).map_err(Error::Image)
}
