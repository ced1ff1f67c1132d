// SPDX-License-Identifier: MIT

//! A device's folder: `image.json` and the layers that it names.

use crate::error::Error;
use crate::folder::{
    Folder,
    LAYERS, //
};
use crate::image::{
    self,
    DRAFT,
    Image,
    Lower,
    NAME,
    Step, //
};
use obd_writer::{
    Sink,
    Source, //
};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::ops::{
    ControlFlow,
    Range, //
};
use std::path::PathBuf;

/// A device: its layers, and what is in the way of others.
pub struct Device<'a, F> {
    folder: &'a F,
    /// As `image.json` says, durably.
    image: Image,
    /// The next layer's number: never one that a layer had, whatever became of it.
    next: u64,
    /// Layers that `image.json` named, and names no more.
    garbage: Vec<String>,
    /// Layers that `image.json` may name once the power fails: a change of it went
    /// wrong half-way. They are garbage when the next change is durable.
    doubtful: Vec<String>,
}

/// A file that grows under a temporary name and is renamed when it is durable, or has
/// its name at once if nobody looks for it before.
pub(crate) struct Draft<'a, F: Folder> {
    folder: &'a F,
    file: Option<F::File>,
    name: String,
    to: String,
    /// Whose names change.
    within: &'static str,
}

/// A draft that [`Device::commit`] makes durable later.
pub(crate) struct Later<'d, 'a, F: Folder>(pub(crate) &'d mut Draft<'a, F>);

impl<F: Folder> Sink for Later<'_, '_, F> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.overwrite(bytes)
    }

    fn finish(self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, F: Folder> Draft<'a, F> {
    fn new(folder: &'a F, name: String, to: String, within: &'static str) -> Result<Self, Error> {
        let file = folder.create(&name).map_err(Error::file("create", &name))?;
        Ok(Self {
            folder,
            file: Some(file),
            name,
            to,
            within,
        })
    }

    /// Layer `number`.
    pub(crate) fn layer(folder: &'a F, number: u64) -> Result<Self, Error> {
        let (draft, name) = (image::draft(number), image::name(number));
        Self::new(folder, draft, name, LAYERS)
    }

    /// Layer `number`, under its name: as long as `image.json` does not say it, it is
    /// nothing that anybody reads, and goes at the next start.
    pub(crate) fn named(folder: &'a F, number: u64) -> Result<Self, Error> {
        let name = image::name(number);
        Self::new(folder, name.clone(), name, LAYERS)
    }

    fn file(&mut self) -> io::Result<&mut F::File> {
        self.file.as_mut().ok_or(io::ErrorKind::NotFound.into())
    }
}

impl<F: Folder> Sink for Draft<'_, F> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder;
        folder.append(self.file()?, bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        let folder = self.folder;
        folder.overwrite(self.file()?, bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        // The content before the name, the name before anybody is told.
        self.sync()?;
        self.settle()
    }
}

impl<F: Folder> Draft<'_, F> {
    fn sync(&mut self) -> io::Result<()> {
        let folder = self.folder;
        folder.sync(self.file()?)
    }

    /// Gives it its name.
    fn settle(mut self) -> io::Result<()> {
        let folder = self.folder;
        self.file = None;
        if self.name != self.to
            && let Err(error) = folder.rename(&self.name, &self.to)
        {
            // Nobody has it, so nobody misses it.
            let _ = folder.remove(&self.name);
            return Err(error);
        }
        folder.sync_names(self.within)
    }
}

impl<F: Folder> Drop for Draft<'_, F> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // If this fails the next start removes it.
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// A layer without content, which says how large the image is.
struct Nothing(u64);

impl Source for Nothing {
    type Error = Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.0
    }

    fn ranges(&self) -> Result<Vec<obd_writer::source::Range>, Infallible> {
        Ok(Vec::new())
    }

    fn workspace(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&self, (): &mut (), _: u64, _: &mut [u8]) -> Result<(), Infallible> {
        unreachable!("there are no ranges")
    }
}

/// What went wrong with `image.json`, and whether it may say what it was to say.
struct Unpublished(Error, bool);

/// Writes `image.json`, and `layer`, which it names; durable when this returns.
///
/// What both hold is written before anything is synced, and the layer has its name
/// already: a file system with a journal commits once for all of that, and once for
/// the name of `image.json`.
fn publish<F: Folder>(
    folder: &F,
    image: &Image,
    layer: Option<Draft<'_, F>>,
) -> Result<(), Unpublished> {
    let fail = |error| Unpublished(Error::file("write", NAME)(error), false);
    let mut draft = Draft::new(folder, DRAFT.into(), NAME.into(), "")
        .map_err(|error| Unpublished(error, false))?;
    draft.append(&image.text()).map_err(fail)?;
    if let Some(layer) = layer {
        folder.begin_sync(draft.file().map_err(fail)?);
        let name = layer.to.clone();
        layer
            .finish()
            .map_err(|error| Unpublished(Error::file("write", &name)(error), false))?;
    }
    draft.sync().map_err(fail)?;
    draft
        .settle()
        .map_err(|error| Unpublished(Error::file("write", NAME)(error), true))
}

impl<'a, F: Folder> Device<'a, F> {
    /// Makes a device of `size` bytes over the layers `lowers`, bottom to top, by
    /// their absolute paths, in an empty folder. An empty layer is put over them
    /// if `base` says so: there must be one, and the topmost layer that says how
    /// large it is must say `size`.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] for what cannot be a read-write disk.
    pub fn create(folder: &'a F, size: u64, lowers: &[String], base: bool) -> Result<(), Error> {
        for name in names(folder)? {
            folder.remove(&name).map_err(Error::file("remove", &name))?;
        }
        let mut lowers: Vec<Lower> = lowers.iter().map(|file| Lower::new(file, None)).collect();
        let number = u64::from(base);
        let mut image = Image::new(size, Vec::new());
        image.obd.next = number + 1;
        if base {
            lowers.push(Lower::new(image::name(number), None));
        }
        image.lowers = lowers;
        // Whether it can be is known before anything is written.
        Image::parse(NAME, &image.text())?;
        if base {
            let name = image::name(number);
            let sink = Draft::layer(folder, number)?;
            let go = |_, _| ControlFlow::Continue(());
            let stats = obd_writer::commit(&Nothing(size), sink, &Default::default(), go);
            let stats = stats.map_err(|error| Error::layer(&name, error))?;
            if let Some(last) = image.lowers.last_mut() {
                last.size = Some(stats.stored);
            }
        }
        publish(folder, &image, None).map_err(|Unpublished(error, _)| error)
    }

    /// Reads what there is of a device, without changing anything.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if there is none.
    pub fn look(folder: &F) -> Result<Image, Error> {
        let text = folder.read(NAME).map_err(Error::file("read", NAME))?;
        Image::parse(NAME, &text)
    }

    /// Opens a device, and removes what `image.json` does not name: it is of
    /// commits and merges that were cut off.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if there is none, or a layer is missing.
    pub fn open(folder: &'a F) -> Result<Self, Error> {
        // Whoever died may have renamed a file and not synced its name: what is
        // read here, and the driver may be told, must be what is there after a
        // power cut.
        for name in [LAYERS, ""] {
            let synced = folder.sync_names(name);
            synced.map_err(Error::file("sync the folder of", NAME))?;
        }
        let image = Self::look(folder)?;
        let files = names(folder)?;
        let named: BTreeSet<&str> = image.lowers.iter().map(|lower| &*lower.file).collect();
        for lower in &image.lowers[image.own()] {
            if !files.contains(&lower.file) {
                return Err(Error::image(&lower.file, "is not there"));
            }
        }
        let mut next = image.obd.next;
        for name in files.iter().filter(|name| !named.contains(name.as_str())) {
            next = next.max(image::number(name).map_or(0, |number| number + 1));
            folder.remove(name).map_err(Error::file("remove", name))?;
        }
        Ok(Self {
            folder,
            image,
            next,
            garbage: Vec::new(),
            doubtful: Vec::new(),
        })
    }

    /// What `image.json` says.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &'a F {
        self.folder
    }

    /// Absolute paths of the layers, bottom to top.
    pub fn paths(&self) -> Vec<PathBuf> {
        let lowers = self.image.lowers.iter();
        lowers.map(|lower| self.folder.path(&lower.file)).collect()
    }

    /// A number for a layer to be.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Has the layer in the file `name`, `size` bytes long and durable, take the
    /// place of `layers`, or be put on top if that is empty. Durable when this
    /// returns.
    pub(crate) fn replace(
        &mut self,
        id: u64,
        layers: Range<usize>,
        name: &str,
        size: u64,
    ) -> Result<Step, Error> {
        self.put(id, layers, name, size, None)
    }

    /// Has the layer `number`, of which `layer` has all `size` bytes, put on top.
    /// Durable when this returns, both the layer and that it is there.
    pub(crate) fn commit(
        &mut self,
        id: u64,
        number: u64,
        size: u64,
        layer: Draft<'a, F>,
    ) -> Result<Step, Error> {
        let top = self.image.lowers.len();
        self.put(id, top..top, &image::name(number), size, Some(layer))
    }

    fn put(
        &mut self,
        id: u64,
        layers: Range<usize>,
        name: &str,
        size: u64,
        layer: Option<Draft<'a, F>>,
    ) -> Result<Step, Error> {
        let mut image = self.image.clone();
        let step = Step {
            id,
            before: image.lowers.len(),
            first: layers.start,
            nr: layers.len(),
        };
        image.obd.last = Some(step);
        image.obd.next = self.next;
        let lower = Lower::new(name, Some(size));
        let old = image.lowers.splice(layers, [lower]);
        let old: Vec<String> = old.map(|lower| lower.file).collect();
        self.change(image, old, name, layer)?;
        Ok(step)
    }

    /// Takes the topmost layer away again, which the driver does not know.
    pub(crate) fn pop(&mut self) -> Result<(), Error> {
        let mut image = self.image.clone();
        image.obd.last = None;
        image.obd.next = self.next;
        let old = image.lowers.pop().map(|lower| lower.file);
        self.change(image, old.into_iter().collect(), "", None)
    }

    /// Makes `image` what the file says, which names `new` and no more `old`. `layer` is
    /// the new one, if that is not durable yet.
    fn change(
        &mut self,
        image: Image,
        old: Vec<String>,
        new: &str,
        layer: Option<Draft<'a, F>>,
    ) -> Result<(), Error> {
        if let Err(Unpublished(error, maybe)) = publish(self.folder, &image, layer) {
            match new {
                "" => {}
                new if maybe => self.doubtful.push(new.into()),
                // It would take room until the next change. It may be gone already,
                // or goes at the next start.
                new => drop(self.folder.remove(new)),
            }
            return Err(error);
        }
        self.image = image;
        let own = old.into_iter().filter(|file| image::number(file).is_some());
        self.garbage.extend(own);
        self.garbage.append(&mut self.doubtful);
        Ok(())
    }

    /// A layer that is not wanted after all, and that `image.json` never named.
    pub(crate) fn discard(&mut self, name: String) {
        self.garbage.push(name);
        self.sweep();
    }

    /// Removes layers that are needed no more.
    pub(crate) fn sweep(&mut self) {
        for name in self.garbage.drain(..) {
            // If this fails the next start removes it.
            let _ = self.folder.remove(&name);
        }
    }
}

/// Files in a device's folder that are a writer's: layers, and what was in the
/// making.
fn names<F: Folder>(folder: &F) -> Result<Vec<String>, Error> {
    let list = |name: &'static str| folder.names(name).map_err(Error::file("list", name));
    let mut names: Vec<String> = list(LAYERS)?
        .into_iter()
        .map(|name| format!("{LAYERS}/{name}"))
        .filter(|name| image::number(name).is_some() || image::is_draft(name))
        .collect();
    names.extend(list("")?.into_iter().filter(|name| name == DRAFT));
    names.sort();
    Ok(names)
}
