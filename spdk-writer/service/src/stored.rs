// SPDX-License-Identifier: MIT

//! A device's folder whose layers are in a store, on a raw namespace for one: written by an
//! engine, past page cache and file system, and read by the driver from where they lie.
//!
//! What is promised of files and names is what [`Folder`] says, with one exception: a layer
//! that was not synced has no name after a power cut, nor when the writer was killed.
//! A name is there when a superblock is durable that has it, and the space of what was
//! removed is written again when no superblock has it, and nobody reads it: the driver says
//! so when it has stacked what is in its place.

use crate::folder::{
    Expected,
    Folder,
    LAYERS, //
};
use crate::image::{
    self,
    Place, //
};
use obd_core::Source;
use obd_engine::Shared;
use obd_store::format::{
    BLOCK,
    Entry, //
};
use obd_store::layer::LayerFile;
use obd_store::space::Extent;
use obd_store::stream::Stream;
use obd_store::{
    Error,
    Part,
    Store, //
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};

/// A folder, and the store that its layers are in.
pub struct Stored<'d, F> {
    folder: F,
    device: &'d Arc<Shared>,
    place: Place,
    layers: Arc<Mutex<Layers>>,
}

/// Layers by name: those that the store knows, and those it is to know.
struct Layers {
    store: Store,
    named: BTreeMap<String, Layer>,
    /// The last one's number.
    last: u64,
    /// What the store has forgotten, and was not discarded.
    garbage: Vec<Extent>,
}

struct Layer {
    /// None that was there had the same.
    number: u64,
    extent: Extent,
    /// Bytes of it.
    len: u64,
    virtual_size: u64,
    data: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is being written, by who gives its space back.
    Open,
    /// It was given up.
    Dead,
    /// It is durable, but its name is not.
    Synced,
    /// The store has it, by this id.
    Named(u64),
}

/// A file of such a folder, in the making.
pub enum File<'d, T> {
    /// One of the folder itself.
    Own(T),
    /// A layer.
    Layer(LayerInMaking<'d>),
}

/// A layer in the making.
pub struct LayerInMaking<'d> {
    device: &'d Shared,
    stream: Option<Stream<'d>>,
    number: u64,
    /// The space it has, until it is synced.
    extent: Option<Extent>,
    layers: Arc<Mutex<Layers>>,
}

/// A file of such a folder, to be read.
pub enum Reading<T> {
    /// One of the folder itself.
    Own(T),
    /// A layer.
    Layer(LayerFile),
}

/// What the system says of what a store says.
fn failed(error: Error) -> io::Error {
    match error {
        // Whoever asks whether it is that looks at the number.
        Error::Full { .. } | Error::TooMany(_) => Errno::NOSPC.into(),
        other => other.into(),
    }
}

fn lock(layers: &Mutex<Layers>) -> MutexGuard<'_, Layers> {
    // Nothing in it is changed in steps.
    layers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A UUID as `image.json` has it.
fn uuid_text(store: &Store) -> String {
    let mut text = String::new();
    for byte in store.state().uuid {
        // A string takes all of it.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether `name` is a layer's.
fn is_layer(name: &str) -> bool {
    name.strip_prefix(LAYERS)
        .is_some_and(|rest| rest.starts_with('/'))
}

impl<'d, F: Folder> Stored<'d, F> {
    /// `folder`, with its layers in `store`, which `device` has, and which the driver, and
    /// `image.json`, call `path`.
    ///
    /// # Errors
    ///
    /// What is in the store that is none of a device's layers, in words.
    pub fn new(
        folder: F,
        device: &'d Arc<Shared>,
        store: Store,
        path: String,
    ) -> Result<Self, String> {
        let named = store.state().layers.iter().map(|entry| {
            let name = entry.name();
            let layer = Layer {
                number: entry.id,
                extent: entry.extent,
                len: entry.len,
                virtual_size: entry.virtual_size,
                data: entry.data,
                state: State::Named(entry.id),
            };
            match image::is_own(name) {
                true => Ok((name.to_owned(), layer)),
                false => Err(format!(
                    "{path}: holds a layer ({name:?}) that is no read-write disk's"
                )),
            }
        });
        let named = named.collect::<Result<_, _>>()?;
        Ok(Self {
            folder,
            device,
            place: Place {
                device: path,
                uuid: uuid_text(&store),
            },
            layers: Arc::new(Mutex::new(Layers {
                last: store.state().generation,
                store,
                named,
                garbage: Vec::new(),
            })),
        })
    }

    /// Whether the store has no layers.
    pub fn is_empty(&self) -> bool {
        lock(&self.layers).named.is_empty()
    }

    /// The folder itself.
    pub fn folder(&self) -> &F {
        &self.folder
    }

    /// Which store it is.
    pub fn store(&self) -> &Place {
        &self.place
    }
}

impl Layers {
    /// Has a layer under a name, instead of one that has it, or none any more.
    fn put(&mut self, name: &str, layer: Option<Layer>) -> Option<Layer> {
        let old = match layer {
            Some(layer) => self.named.insert(name.to_owned(), layer),
            None => self.named.remove(name),
        };
        if let Some(old) = &old
            && matches!(old.state, State::Synced | State::Dead)
        {
            self.store.release(old.extent, 0);
        }
        old
    }

    fn find(&mut self, number: u64) -> Option<&mut Layer> {
        let mut layers = self.named.values_mut();
        layers.find(|layer| layer.number == number)
    }

    /// Says something of a layer, if it is there.
    fn note(&mut self, number: u64, what: impl FnOnce(&mut Layer)) {
        if let Some(layer) = self.find(number) {
            what(layer);
        }
    }

    /// Finds out what is durable, if nobody knows.
    fn settle(&mut self) -> io::Result<()> {
        if !self.store.is_uncertain() {
            return Ok(());
        }
        self.store.reread().map_err(failed)?;
        // What was to be named may be.
        for entry in &self.store.state().layers {
            if let Some(layer) = self.named.get_mut(entry.name())
                && layer.extent == entry.extent
                && layer.state == State::Synced
            {
                layer.state = State::Named(entry.id);
            }
        }
        Ok(())
    }

    /// Lets the store have the names that there are: durable when this returns.
    fn sync(&mut self) -> io::Result<()> {
        self.settle()?;
        let is_kept = |entry: &&Entry| {
            let layer = self.named.get(entry.name());
            layer.is_some_and(|layer| layer.state == State::Named(entry.id))
        };
        // What has another name now, or something else under its own, goes with what is put
        // in its place.
        let is_replaced = |entry: &Entry| {
            let mut layers = self.named.iter();
            layers.any(|(name, layer)| {
                let is_meant = layer.extent == entry.extent || name == entry.name();
                layer.state == State::Synced && is_meant
            })
        };
        let entries = self.store.state().layers.iter();
        let gone = entries.filter(|it| !is_kept(it)).cloned();
        let (replaced, gone): (Vec<_>, Vec<_>) = gone.partition(is_replaced);
        let mut forget: Vec<u64> = gone.iter().map(|entry| entry.id).collect();
        let mut garbage: Vec<Extent> = gone.iter().map(|entry| entry.extent).collect();
        for (name, layer) in &mut self.named {
            if layer.state != State::Synced {
                continue;
            }
            let part = Part {
                extent: layer.extent,
                len: layer.len,
                virtual_size: layer.virtual_size,
                data: layer.data,
                name: name.clone(),
            };
            for old in &replaced {
                let is_moved = old.extent == layer.extent;
                if is_moved || old.name() == name {
                    forget.push(old.id);
                }
                if !is_moved && old.name() == name {
                    garbage.push(old.extent);
                }
            }
            let id = self.store.change(&forget, Some(&part)).map_err(failed)?;
            layer.state = State::Named(id);
            forget.clear();
        }
        if !forget.is_empty() {
            self.store.change(&forget, None).map_err(failed)?;
        }
        self.garbage.append(&mut garbage);
        Ok(())
    }
}

impl LayerInMaking<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (Some(stream), Some(_)) = (&mut self.stream, self.extent) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if !stream.fits(bytes.len() as u64) {
            return Err(Errno::NOSPC.into());
        }
        Ok(stream.append(bytes)?)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream.as_mut();
        let stream = stream.ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        // Before the padding counts.
        let len = stream.len();
        stream.end()?;
        stream.overwrite(bytes)?;
        lock(&self.layers).note(self.number, |layer| layer.len = len);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let (Some(stream), Some(extent)) = (&mut self.stream, self.extent) else {
            // It was before.
            return Ok(());
        };
        let len = stream.len();
        stream.end()?;
        self.device.flush()?;
        self.stream = None;
        let mut layers = lock(&self.layers);
        let Layers { store, named, .. } = &mut *layers;
        // If it was removed its space is given back when this is dropped.
        if let Some(layer) = named.values_mut().find(|it| it.number == self.number) {
            if layer.len == 0 {
                layer.len = len;
            }
            store.release(extent, layer.len);
            layer.extent.len = layer.len.next_multiple_of(BLOCK);
            layer.state = State::Synced;
            self.extent = None;
        }
        Ok(())
    }
}

impl Drop for LayerInMaking<'_> {
    fn drop(&mut self) {
        // Ends what is in flight: nothing is written any more.
        self.stream = None;
        let Some(extent) = self.extent else { return };
        let mut layers = lock(&self.layers);
        match layers.find(self.number) {
            Some(layer) => layer.state = State::Dead,
            None => layers.store.release(extent, 0),
        }
    }
}

impl<T: Source<Error = io::Error>> Source for Reading<T> {
    type Error = io::Error;

    fn size(&self) -> u64 {
        match self {
            Self::Own(own) => own.size(),
            Self::Layer(layer) => layer.size(),
        }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Own(own) => own.read_exact_at(offset, buf),
            Self::Layer(layer) => layer.read_exact_at(offset, buf),
        }
    }
}

impl<'d, F: Folder> Folder for Stored<'d, F> {
    type File = File<'d, F::File>;
    type Log = F::Log;
    type Source = Reading<F::Source>;

    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.folder.create(name).map(File::Own)
    }

    fn create_layer(&self, name: &str, expected: Expected) -> io::Result<Self::File> {
        let mut layers = lock(&self.layers);
        // What is free is not known otherwise.
        layers.settle()?;
        let extent = layers.store.reserve(expected.most).map_err(failed)?;
        let stream = Stream::new(self.device, extent.start, extent.len, 0, &[]);
        let stream = stream.inspect_err(|_| layers.store.release(extent, 0))?;
        layers.last += 1;
        let number = layers.last;
        let layer = Layer {
            number,
            extent,
            len: 0,
            virtual_size: expected.virtual_size,
            data: 0,
            state: State::Open,
        };
        layers.put(name, Some(layer));
        Ok(File::Layer(LayerInMaking {
            device: self.device,
            stream: Some(stream),
            number,
            extent: Some(extent),
            layers: Arc::clone(&self.layers),
        }))
    }

    fn describe(&self, file: &mut Self::File, data: u64) {
        match file {
            File::Own(own) => self.folder.describe(own, data),
            File::Layer(layer) => {
                lock(&self.layers).note(layer.number, |layer| layer.data = data);
            }
        }
    }

    fn append(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        match file {
            File::Own(own) => self.folder.append(own, bytes),
            File::Layer(layer) => layer.append(bytes),
        }
    }

    fn overwrite(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()> {
        match file {
            File::Own(own) => self.folder.overwrite(own, bytes),
            File::Layer(layer) => layer.overwrite(bytes),
        }
    }

    fn begin_sync(&self, file: &mut Self::File) {
        match file {
            File::Own(own) => self.folder.begin_sync(own),
            // It is on its way.
            File::Layer(_) => {}
        }
    }

    fn sync(&self, file: &mut Self::File) -> io::Result<()> {
        match file {
            File::Own(own) => self.folder.sync(own),
            File::Layer(layer) => layer.sync(),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if !is_layer(from) {
            return self.folder.rename(from, to);
        }
        let mut layers = lock(&self.layers);
        let mut layer = layers.named.remove(from).ok_or(io::ErrorKind::NotFound)?;
        if let State::Named(_) = layer.state {
            // By another name.
            layer.state = State::Synced;
        }
        layers.put(to, Some(layer));
        Ok(())
    }

    fn sync_names(&self, folder: &str) -> io::Result<()> {
        match folder {
            LAYERS => lock(&self.layers).sync(),
            _ => self.folder.sync_names(folder),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !is_layer(name) {
            return self.folder.remove(name);
        }
        let removed = lock(&self.layers).put(name, None);
        removed.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn make_room(&self) -> io::Result<()> {
        let mut layers = lock(&self.layers);
        layers.sync()?;
        let garbage = std::mem::take(&mut layers.garbage);
        layers.store.discard(&garbage).map_err(failed)?;
        drop(layers);
        self.folder.make_room()
    }

    fn place(&self) -> Option<Place> {
        Some(self.place.clone())
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        if folder != LAYERS {
            return self.folder.names(folder);
        }
        let layers = lock(&self.layers);
        let names = layers.named.keys();
        let names = names.filter_map(|name| name.strip_prefix(LAYERS)?.strip_prefix('/'));
        Ok(names.map(str::to_owned).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.folder.read(name)
    }

    fn open(&self, name: &str) -> io::Result<Self::Source> {
        if !is_layer(name) {
            return self.folder.open(name).map(Reading::Own);
        }
        let layers = lock(&self.layers);
        let layer = layers.named.get(name).filter(|layer| layer.len > 0);
        let layer = layer.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        let device = Arc::clone(self.device);
        let file = LayerFile::at(device, layer.extent.start, layer.len);
        Ok(Reading::Layer(file))
    }

    fn path(&self, name: &str) -> PathBuf {
        let layers = lock(&self.layers);
        match layers.named.get(name) {
            // As the driver takes it.
            Some(layer) => {
                let part = format!("{}+{} ", layer.extent.start, layer.len);
                let mut path = OsString::from(part);
                path.push(&self.place.device);
                path.into()
            }
            None => self.folder.path(name),
        }
    }

    fn reserve(&self, name: &str, size: u64) -> io::Result<u64> {
        self.folder.reserve(name, size)
    }

    fn open_log(&self, name: &str) -> io::Result<F::Log> {
        self.folder.open_log(name)
    }
}
