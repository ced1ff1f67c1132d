// SPDX-License-Identifier: MIT

//! A device's folder: `image.json` and the layers that it names.

use crate::BLOCK;
use crate::error::Error;
use crate::folder::{
    Expected,
    Folder,
    LAYERS, //
};
use crate::frozen::Content;
use crate::image::{
    self,
    DRAFT,
    Image,
    Lower,
    NAME,
    Step, //
};
use crate::kernel::Run;
use crate::log::{
    self,
    Live,
    Mark, //
};
use obd_core::image::MAX_LAYERS;
use obd_writer::{
    Prepared,
    Sink,
    Source, //
};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Display;
use std::hash::{
    BuildHasher,
    Hasher,
    RandomState, //
};
use std::io;
use std::ops::{
    ControlFlow,
    Range, //
};
use std::path::PathBuf;
use std::time::Duration;

/// A device: its layers, and what is in the way of others.
pub struct Device<'a, F: Folder> {
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
    /// Whether a change of `image.json` went wrong half-way, and none went well since.
    in_doubt: bool,
    /// The log, if there is one, and what was found in it.
    live: Option<Live>,
    /// Why there is a log that cannot be read, if so.
    unread: Option<String>,
    /// It, while it is written to.
    log: Option<F::Log>,
    /// Number of a record whose write failed and that may be there, or not.
    broken: Option<u64>,
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
struct Later<'d, 'a, F: Folder>(&'d mut Draft<'a, F>);

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

/// What a layer is called until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// Something else.
    Draft,
    /// As it will be: as long as `image.json` does not say it, it is nothing that anybody
    /// reads, and goes at the next start.
    Layer,
}

impl<'a, F: Folder> Draft<'a, F> {
    /// `image.json`.
    fn image(folder: &'a F) -> Result<Self, Error> {
        let file = folder.create(DRAFT).map_err(Error::file("create", DRAFT))?;
        Ok(Self {
            folder,
            file: Some(file),
            name: DRAFT.into(),
            to: NAME.into(),
            within: "",
        })
    }

    /// Layer `number`, of what `source` holds; nothing of it is durable. It goes with the
    /// draft if it is not [finished](Sink::finish).
    pub(crate) fn write<S: Source<Error: Display>>(
        folder: &'a F,
        number: u64,
        called: Called,
        source: &S,
        options: &obd_writer::Options,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(Self, obd_writer::Stats), Error> {
        let to = image::name(number);
        let name = match called {
            Called::Draft => image::draft(number),
            Called::Layer => to.clone(),
        };
        let prepared = Prepared::new(source, options).map_err(|error| Error::layer(&to, error))?;
        let expected = Expected {
            most: prepared.most_stored(),
            virtual_size: prepared.virtual_size(),
        };
        let file = folder.create_layer(&name, expected);
        let mut draft = Self {
            folder,
            file: Some(file.map_err(Error::file("create", &name))?),
            name,
            to,
            within: LAYERS,
        };
        let stats = prepared.write(Later(&mut draft), None, progress);
        let stats = stats.map_err(|error| Error::layer(&draft.to, error))?;
        if let Some(file) = &mut draft.file {
            folder.describe(file, stats.data);
        }
        Ok((draft, stats))
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
    pub(crate) fn sync(&mut self) -> io::Result<()> {
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
    let mut draft = Draft::image(folder).map_err(|error| Unpublished(error, false))?;
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
        image.set_store(folder.place());
        // Whether it can be is known before anything is written.
        Image::parse(NAME, &image.text())?;
        if base {
            let name = image::name(number);
            let go = |_, _| ControlFlow::Continue(());
            let options = obd_writer::Options::default();
            let (draft, stats) =
                Draft::write(folder, number, Called::Draft, &Nothing(size), &options, go)?;
            draft.finish().map_err(Error::file("write", &name))?;
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
        if image.obd.store.as_ref().map(|it| &it.uuid) != folder.place().as_ref().map(|it| &it.uuid)
        {
            return Err(Error::image(NAME, "its layers are in another store"));
        }
        let files = names(folder)?;
        let mut named: BTreeSet<&str> = image.lowers.iter().map(|lower| &*lower.file).collect();
        if image.obd.log.is_some() {
            named.insert(log::NAME);
        }
        for lower in &image.lowers[image.own()] {
            if !files.contains(&lower.file) {
                return Err(Error::image(&lower.file, "is not there"));
            }
        }
        let live = image.obd.log.as_ref().map(|state| {
            let source = folder.open(log::NAME);
            source.and_then(|source| Live::find(&source, state, image.obd.size))
        });
        // Who takes over a disk that is there needs no log.
        let (live, unread) = match live.transpose() {
            Ok(live) => (live, None),
            Err(error) => (None, Some(format!("cannot be read: {error}"))),
        };
        let mut next = image.obd.next;
        let mut garbage = Vec::new();
        for name in files.iter().filter(|name| !named.contains(name.as_str())) {
            next = next.max(image::number(name).map_or(0, |number| number + 1));
            match folder.place() {
                None => folder.remove(name).map_err(Error::file("remove", name))?,
                // The driver may read it yet, if the one before this has not told it of
                // what is in its place: nothing may be written there until it has.
                Some(_) => garbage.push(name.clone()),
            }
        }
        Ok(Self {
            folder,
            image,
            next,
            garbage,
            doubtful: Vec::new(),
            in_doubt: false,
            live,
            unread,
            log: None,
            broken: None,
        })
    }

    /// Makes a layer of what is only in the log: nobody has it in memory. Must come
    /// before the device is attached, and not if it is. How many records that were.
    ///
    /// # Errors
    ///
    /// [`Error`], [`Error::Image`] if the log is damaged; the device is as before, or as
    /// after.
    pub fn recover(&mut self, options: &obd_writer::Options) -> Result<usize, Error> {
        if let Some(damage) = self.damage() {
            let what = format!("{damage} (attach --writable --salvage keeps what is before it)");
            return Err(Error::image(log::NAME, what));
        }
        let records = self.make_layer_of_log(options)?;
        if records > 0 {
            // Nothing has to be told of it.
            self.live = None;
            self.meet_log()?;
        }
        Ok(records)
    }

    /// The same of a log that is damaged: makes a layer of the records before the damage,
    /// and gives up the log with what is behind. That was flushed: it is lost. Returns what
    /// the damage is, too, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error`]; then the log is as before, or its whole records are in a layer.
    pub fn salvage(
        &mut self,
        options: &obd_writer::Options,
    ) -> Result<(usize, Option<String>), Error> {
        let Some(damage) = self.damage().map(str::to_owned) else {
            return Ok((self.recover(options)?, None));
        };
        let records = self.make_layer_of_log(options)?;
        self.give_up_log()?;
        Ok((records, Some(damage)))
    }

    /// Makes a layer of the records that are whole up to the first that is not. How many
    /// these are.
    fn make_layer_of_log(&mut self, options: &obd_writer::Options) -> Result<usize, Error> {
        let Some(live) = &self.live else { return Ok(0) };
        let (records, mark) = (live.len(), live.ring.mark());
        if records == 0 {
            return Ok(0);
        }
        if self.image.lowers.len() >= MAX_LAYERS {
            return Err(Error::TooManyLayers(MAX_LAYERS));
        }
        let source = self.folder.open(log::NAME);
        let content = source.and_then(|source| live.content(&source));
        let content = content.map_err(Error::file("read", log::NAME))?;
        let source = Content::new(self.image.obd.size, &content.extents, &content.bytes);
        let source = source.map_err(|reason| Error::image(log::NAME, reason))?;
        let number = self.number();
        let go = |_, _| ControlFlow::Continue(());
        let (draft, written) =
            Draft::write(self.folder, number, Called::Layer, &source, options, go)?;
        self.commit(0, number, written.stored, draft, Some(mark))?;
        Ok(records)
    }

    /// Has no log any more. Nothing may be in it alone.
    fn give_up_log(&mut self) -> Result<(), Error> {
        let mut image = self.image.clone();
        image.set_log(None);
        image.obd.next = self.next;
        self.change(image, Vec::new(), "", None)?;
        self.log = None;
        self.live = None;
        self.unread = None;
        self.broken = None;
        self.discard(log::NAME.into());
        Ok(())
    }

    /// Looks at the log again: nothing is live in it.
    fn meet_log(&mut self) -> Result<(), Error> {
        if let Some(state) = &self.image.obd.log {
            let source = self.folder.open(log::NAME);
            let live = source.and_then(|source| Live::find(&source, state, self.image.obd.size));
            self.live = Some(live.map_err(Error::file("read", log::NAME))?);
        }
        Ok(())
    }

    /// How many records of the log were found that are in no layer.
    pub fn live(&self) -> usize {
        self.live.as_ref().map_or(0, Live::len)
    }

    /// Has a log from here on, of `size` bytes or fewer if it is new.
    pub(crate) fn start_log(&mut self, size: u64) -> Result<(), Error> {
        if self.image.obd.log.is_none() {
            let size = size.clamp(log::MIN_SIZE, log::MAX_SIZE);
            let size = size.next_multiple_of(BLOCK);
            let reserved = self.folder.reserve(log::NAME, size);
            let state = log::State {
                // As a number that every reader of JSON can take.
                id: RandomState::new().build_hasher().finish() >> 11,
                size: reserved.map_err(Error::file("make", log::NAME))?,
                seq: 0,
                at: 0,
            };
            let mut image = self.image.clone();
            image.set_log(Some(state));
            image.obd.next = self.next;
            self.change(image, Vec::new(), log::NAME, None)?;
            self.meet_log()?;
        }
        let opened = self.folder.open_log(log::NAME);
        self.log = Some(opened.map_err(Error::file("open", log::NAME))?);
        Ok(())
    }

    /// Whether the log is open.
    pub(crate) fn is_logging(&self) -> bool {
        self.log.is_some()
    }

    /// All until now is sealed: where the log is, if there is one.
    pub(crate) fn seal(&mut self) -> Option<Mark> {
        let live = self.live.as_mut()?;
        let mark = live.ring.mark();
        live.seal(mark);
        Some(mark)
    }

    /// Where the log was when that was sealed which a writer before this one has left; now,
    /// if nothing was logged since.
    pub(crate) fn mark_of_sealed(&self) -> Option<Mark> {
        self.live.as_ref().map(Live::mark_of_sealed)
    }

    /// What is wrong with the log, if something is that was durable once.
    pub(crate) fn damage(&self) -> Option<&str> {
        let unread = self.unread.as_deref();
        unread.or_else(|| self.live.as_ref()?.damage())
    }

    /// All that is in the log is in layers.
    pub(crate) fn bury_all(&mut self) -> Result<(), Error> {
        if self.damage().is_some() {
            return self.give_up_log();
        }
        let Some(live) = self.live.as_ref().filter(|live| !live.ring.is_empty()) else {
            return Ok(());
        };
        let mark = live.ring.mark();
        let mut image = self.image.clone();
        if let Some(log) = &mut image.obd.log {
            (log.seq, log.at) = (mark.seq, mark.at);
        }
        self.change(image, Vec::new(), "", None)?;
        self.buried(mark);
        Ok(())
    }

    /// All up to `mark` is dead, and `image.json` says so.
    fn buried(&mut self, mark: Mark) {
        if let Some(live) = &mut self.live {
            live.ring.bury(mark);
        }
        self.broken = self.broken.filter(|number| *number > mark.seq);
    }

    /// Whether a layer should be made of what is in the log.
    pub(crate) fn log_is_half_full(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| live.ring.missing() == 0)
    }

    /// The log, if there is one to be written to, and what the driver has to know for that:
    /// half of it is enough, if `half` says so. [`Device::logged`] comes next.
    pub(crate) fn log(&mut self, half: bool) -> Option<(&mut F::Log, Run)> {
        // What is in it counts from what `image.json` says on, so there must be no doubt of
        // that.
        if self.broken.is_some() || self.in_doubt {
            return None;
        }
        let (log, live, state) = (self.log.as_mut()?, self.live.as_ref()?, self.image.obd.log?);
        let run = Run {
            id: state.id,
            last: live.ring.last(),
            sealed: live.sealed(),
            room: live.ring.room(),
            enough: match half {
                // One more record at least, so that the driver waits in any case.
                true => live.ring.missing().max(1),
                false => u64::MAX,
            },
            bytes: 0,
            time: Duration::ZERO,
        };
        Some((log, run))
    }

    /// Records were written to the log. If one more `failed`, nothing may be written there
    /// until a layer with all of it is durable, and a mark that was taken after this.
    pub(crate) fn logged(&mut self, run: &Run, failed: bool) {
        let Some(live) = &mut self.live else { return };
        live.ring.advance(run.last, run.room);
        if failed {
            live.ring.skip();
            self.broken = Some(live.ring.last());
        }
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
        self.put(id, layers, name, size, None, None)
    }

    /// Has the layer `number`, of which `layer` has all `size` bytes, put on top: with it
    /// all is in layers that was in the log until `mark`. Durable when this returns, both
    /// the layer and that it is there.
    pub(crate) fn commit(
        &mut self,
        id: u64,
        number: u64,
        size: u64,
        layer: Draft<'a, F>,
        mark: Option<Mark>,
    ) -> Result<Step, Error> {
        let top = self.image.lowers.len();
        self.put(id, top..top, &image::name(number), size, Some(layer), mark)
    }

    fn put(
        &mut self,
        id: u64,
        layers: Range<usize>,
        name: &str,
        size: u64,
        layer: Option<Draft<'a, F>>,
        mark: Option<Mark>,
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
        if let (Some(log), Some(mark)) = (&mut image.obd.log, mark) {
            (log.seq, log.at) = (mark.seq, mark.at);
        }
        let lower = Lower::new(name, Some(size));
        let old = image.lowers.splice(layers, [lower]);
        let old: Vec<String> = old.map(|lower| lower.file).collect();
        self.change(image, old, name, layer)?;
        if let Some(mark) = mark {
            self.buried(mark);
        }
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
            self.in_doubt |= maybe;
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
        self.in_doubt = false;
        let own = old.into_iter().filter(|file| image::number(file).is_some());
        self.garbage.extend(own);
        self.garbage.append(&mut self.doubtful);
        Ok(())
    }

    /// A file that is not wanted after all, and that `image.json` does not name.
    pub(crate) fn discard(&mut self, name: String) {
        // If this fails the next start removes it.
        let _ = self.folder.remove(&name);
    }

    /// Removes layers that are needed no more: not by the driver, either.
    pub(crate) fn sweep(&mut self) {
        let mut removed = false;
        for name in self.garbage.drain(..) {
            // If this fails the next start removes it.
            let _ = self.folder.remove(&name);
            removed = true;
        }
        if removed {
            // Or the next one that is removed.
            let _ = self.folder.make_room();
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
    let own = list("")?.into_iter();
    names.extend(own.filter(|name| name == DRAFT || name == log::NAME));
    names.sort();
    Ok(names)
}
