// SPDX-License-Identifier: MIT

//! Files, layers and stacks as the command line names them.

use crate::config::{
    self,
    LayerFile, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::ui::Progress;
use obd_core::budget::{
    Budget,
    MAX_MEMORY, //
};
use obd_core::error::{
    LayerError,
    Unsupported, //
};
use obd_core::lsmt::Opened;
use obd_core::{
    Window,
    tar, //
};
use obd_engine::uring::{
    self,
    Purpose, //
};
use obd_engine::{
    Shared,
    Uring,
    guard, //
};
use obd_host::{
    File,
    Host,
    data_extents, //
};
use obd_store::Store;
use sha2::{
    Digest,
    Sha256, //
};
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{
    FileExt,
    MetadataExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use uuid::Uuid;

pub(crate) type Layer = obd_core::Layer<File, Host>;
pub(crate) type ZFile = obd_core::ZFile<File, Host>;
pub(crate) type Image = obd_core::Image<File, Host, Vec<Layer>>;

/// What to stack.
#[derive(clap::Args)]
pub(crate) struct StackArgs {
    /// Layers, bottom to top, or one image configuration (*.json). A layer store is all of
    /// its layers.
    #[arg(required_unless_present = "upper_data", value_name = "CONFIG|LAYER")]
    layers: Vec<PathBuf>,

    /// Data file of a read-write layer on top.
    #[arg(long, value_name = "FILE")]
    upper_data: Option<PathBuf>,

    /// Index file of the read-write layer; none if it is a sparse one.
    #[arg(long, value_name = "FILE", requires = "upper_data")]
    upper_index: Option<PathBuf>,

    /// Check every layer against the sha256 digest in the configuration.
    #[arg(long)]
    check_digests: bool,
}

/// What was stacked.
pub(crate) enum Stack {
    /// Layers.
    Image(StackedImage),
    /// One zfile of something else.
    ZFile(PathBuf, ZFile),
}

/// An image and where its layers came from.
pub(crate) struct StackedImage {
    pub(crate) image: Image,
    /// Of each layer, bottom to top.
    pub(crate) paths: Vec<PathBuf>,
}

impl StackedImage {
    /// An error in reading the image, with the layer's file.
    pub(crate) fn error(&self, error: LayerError<io::Error>) -> Error {
        match error.layer.and_then(|layer| self.paths.get(layer)) {
            Some(path) => format_error(path, error.error),
            None => Error::Stack(error.error),
        }
    }
}

/// An error in a file.
pub(crate) fn format_error(path: &Path, error: obd_core::Error<io::Error>) -> Error {
    Error::Format {
        path: path.into(),
        error,
    }
}

/// Where a layer is: a file or block device, or some of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) part: Option<Range<u64>>,
}

impl Place {
    /// All of the file at `path`.
    pub(crate) fn whole(path: PathBuf) -> Self {
        Self { path, part: None }
    }

    /// As the driver takes it, and messages have it.
    pub(crate) fn text(&self) -> PathBuf {
        match &self.part {
            None => self.path.clone(),
            Some(part) => {
                let mut text = OsString::from(format!("{}+{} ", part.start, part.end - part.start));
                text.push(&self.path);
                text.into()
            }
        }
    }

    fn open(&self) -> Result<File> {
        match &self.part {
            None => open(&self.path),
            Some(part) => File::open_part(&self.path, part)
                .map_err(|error| Error::io("open", self.text(), error)),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::io("open", path, error))
}

/// What a store holds.
pub(crate) struct Found {
    /// Which store it is: 32 hexadecimal digits.
    pub(crate) uuid: String,
    /// Its layers, bottom to top: names and places.
    pub(crate) layers: Vec<(String, Range<u64>)>,
}

/// What the store at `path` holds; [`None`] if it is something else.
pub(crate) fn look_at_store(path: &Path) -> Result<Option<Found>> {
    let mut magic = [0; 8];
    let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0));
    // Whoever opens it next says what is wrong.
    if read.is_err() || guard::find_signature(&magic) != Some(guard::STORE) {
        return Ok(None);
    }
    let options = uring::Options {
        depth: 1,
        buffers: 1,
        ..uring::Options::default()
    };
    let engine = Uring::open(path, Purpose::Read, &options).map_err(Error::Engine)?;
    let store = Store::open(Arc::new(Shared::new(Box::new(engine))), false);
    let store = store.map_err(Error::Store)?;
    let layers = store.state().layers.iter().map(|layer| {
        let start = layer.extent.start;
        (layer.name().to_owned(), start..start + layer.len)
    });
    Ok(Some(Found {
        uuid: Uuid::from_bytes(store.state().uuid).simple().to_string(),
        layers: layers.collect(),
    }))
}

/// Refuses the layers of a read-write disk in the store at `path`: its folder says in which
/// order they lie, and which count.
pub(crate) fn is_no_disks<'a>(path: &Path, mut names: impl Iterator<Item = &'a str>) -> Result<()> {
    match names.any(obd_service::image::is_own) {
        false => Ok(()),
        true => Err(Error::Source {
            path: path.into(),
            reason: "the layers of a read-write disk: name the image.json in its folder".into(),
        }),
    }
}

/// The layers of the store at `path`, bottom to top; [`None`] if it is something else.
fn stored(path: &Path) -> Result<Option<Vec<LayerFile>>> {
    let Some(found) = look_at_store(path)? else {
        return Ok(None);
    };
    is_no_disks(path, found.layers.iter().map(|(name, _)| name.as_str()))?;
    let layers = found.layers.into_iter().map(|(_, part)| LayerFile {
        place: Place {
            path: path.into(),
            part: Some(part),
        },
        index: None,
        digest: None,
    });
    Ok(Some(layers.collect()))
}

/// Opens whatever a file is; sparse read-write layers need no index.
pub(crate) fn probe(path: &Path) -> Result<Opened<File, Host>> {
    probe_place(&Place::whole(path.into()))
}

fn probe_place(place: &Place) -> Result<Opened<File, Host>> {
    match Layer::probe(place.open()?) {
        Err(obd_core::Error::Unsupported(Unsupported::Unsealed)) if place.part.is_none() => {
            open_writable(&place.path, None).map(Opened::Layer)
        }
        other => other.map_err(|error| format_error(&place.text(), error)),
    }
}

/// Opens a layer that is still written to.
fn open_writable(path: &Path, index: Option<&Path>) -> Result<Layer> {
    let fail = |error| format_error(path, error);
    let data = open(path)?;
    if Layer::is_sparse(&data).map_err(fail)? {
        let extents =
            data_extents(&data).map_err(|error| Error::io("find the holes of", path, error))?;
        return Layer::open_sparse(data, extents).map_err(fail);
    }
    match index {
        Some(index) => Layer::open_log(data, open(index)?).map_err(fail),
        None => Err(fail(obd_core::Error::Unsupported(Unsupported::Unsealed))),
    }
}

impl StackArgs {
    /// Opens and stacks the layers. With them goes a number for the files by name, age and
    /// size, in order: the same again, if nobody changed them.
    pub(crate) fn open_known(&self, interrupted: &Arc<AtomicBool>) -> Result<(Stack, [u8; 16])> {
        let files = self.checked_files(interrupted)?;
        let stack = Self::stack(&files)?;
        let places = files.into_iter().flat_map(|file| {
            let index = file.index.map(Place::whole);
            std::iter::once(file.place).chain(index)
        });
        Ok((stack, fingerprint(places)?))
    }

    fn files(&self) -> Result<Vec<LayerFile>> {
        let mut files = Vec::new();
        match self.config() {
            Some(config) => files = config::layers(config)?,
            None => {
                for path in &self.layers {
                    match stored(path)? {
                        Some(mut layers) => files.append(&mut layers),
                        None => files.push(LayerFile {
                            place: Place::whole(path.clone()),
                            index: None,
                            digest: None,
                        }),
                    }
                }
            }
        }
        files.extend(self.upper_data.as_ref().map(|path| LayerFile {
            place: Place::whole(path.clone()),
            index: self.upper_index.clone(),
            digest: None,
        }));
        Ok(files)
    }

    /// What the command line names.
    pub(crate) fn named(&self) -> &[PathBuf] {
        &self.layers
    }

    /// The configuration among the arguments.
    pub(crate) fn config(&self) -> Option<&Path> {
        match self.layers.as_slice() {
            [config] if config.extension().is_some_and(|name| name == "json") => Some(config),
            _ => None,
        }
    }

    /// The layers' files, bottom to top, with the right digests if that is
    /// asked for.
    pub(crate) fn checked_files(&self, interrupted: &Arc<AtomicBool>) -> Result<Vec<LayerFile>> {
        let files = self.files()?;
        if self.check_digests {
            for file in &files {
                check_digest(file, interrupted)?;
            }
        }
        Ok(files)
    }

    /// Opens and stacks the layers.
    pub(crate) fn open(&self, interrupted: &Arc<AtomicBool>) -> Result<Stack> {
        Self::stack(&self.checked_files(interrupted)?)
    }

    fn stack(files: &[LayerFile]) -> Result<Stack> {
        let mut layers = Vec::with_capacity(files.len());
        for file in files {
            let layer = match &file.index {
                Some(index) => open_writable(&file.place.path, Some(index))?,
                None => match probe_place(&file.place)? {
                    Opened::Layer(layer) => layer,
                    Opened::ZFile(zfile) if files.len() == 1 => {
                        return Ok(Stack::ZFile(file.place.text(), zfile));
                    }
                    Opened::ZFile(_) => {
                        return Err(Error::Config {
                            path: file.place.text(),
                            reason: "a zfile, but no layer: it can be read alone only".into(),
                        });
                    }
                },
            };
            layers.push(layer);
        }
        Ok(Stack::Image(StackedImage {
            image: Image::new(layers).map_err(Error::Stack)?,
            paths: files.iter().map(|file| file.place.text()).collect(),
        }))
    }
}

/// Opens layers, bottom to top, that are not written to, with bounded memory.
pub(crate) fn open_image(places: &[Place]) -> Result<Image> {
    let mut budget = Budget::new(MAX_MEMORY);
    let mut layers = Vec::new();
    for place in places {
        let layer = Layer::open_within(place.open()?, &mut budget);
        layers.push(layer.map_err(|error| format_error(&place.text(), error))?);
    }
    Image::new(layers).map_err(Error::Stack)
}

/// Opens a zfile, whatever it holds, with bounded memory.
pub(crate) fn open_zfile(place: &Place) -> Result<ZFile> {
    let file = Window::whole(place.open()?);
    let payload = match tar::payload(&file) {
        Ok(Some(payload)) => file.part(payload.offset, payload.len),
        Ok(None) => Ok(file),
        Err(error) => Err(error),
    };
    payload
        .and_then(|file| ZFile::open_within(file, &mut Budget::new(MAX_MEMORY)))
        .map_err(|error| format_error(&place.text(), error))
}

/// A number for files as they are now, by name, age and size, and which bytes of them.
///
/// # Errors
///
/// A file that is not there.
pub(crate) fn fingerprint(places: impl Iterator<Item = Place>) -> Result<[u8; 16]> {
    let mut hash = Sha256::new();
    for Place { path, part } in places {
        let fail = |error| Error::io("look at", &path, error);
        let whole = path.canonicalize().map_err(fail)?;
        let there = whole.metadata().map_err(fail)?;
        let name = whole.as_os_str().as_encoded_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        for number in [there.mtime(), there.mtime_nsec()] {
            hash.update(number.to_le_bytes());
        }
        for number in [there.size(), there.ino(), there.dev(), there.rdev()] {
            hash.update(number.to_le_bytes());
        }
        for number in part.iter().flat_map(|part| [part.start, part.end]) {
            hash.update(number.to_le_bytes());
        }
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    Ok(half)
}

/// Compares a file's content with its digest.
fn check_digest(file: &LayerFile, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let path = &file.place.path;
    let Some(expected) = &file.digest else {
        // What is still written to has none, what is given by name has none.
        if file.index.is_some() {
            return Ok(());
        }
        return Err(Error::Config {
            path: path.clone(),
            reason: "there is no digest to check it against".into(),
        });
    };
    let fail = |error| Error::io("read", path, error);
    let mut content = std::fs::File::open(path).map_err(fail)?;
    let len = content.metadata().map_err(fail)?.len();
    let mut progress = Progress::new(format!("sha256 of {}", path.display()), len, interrupted);
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        let len = io::Read::read(&mut content, &mut buf).map_err(fail)?;
        if len == 0 {
            break;
        }
        hash.update(&buf[..len]);
        progress.advance(len as u64)?;
    }
    let got: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if expected.strip_prefix("sha256:") != Some(got.as_str()) {
        return Err(Error::Digest {
            path: path.clone(),
            got,
            expected: expected.clone(),
        });
    }
    Ok(())
}
