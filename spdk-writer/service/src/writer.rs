// SPDX-License-Identifier: MIT

//! What a writer does for as long as its disk is there.

use crate::device::{
    Called,
    Device,
    Draft, //
};
use crate::error::Error;
use crate::folder::Folder;
use crate::frozen::Content;
use crate::image::Step;
use crate::kernel::{
    Extent,
    Frozen,
    Kernel,
    Next,
    Reason,
    Stop, //
};
use crate::log::Mark;
use crate::merge;
use crate::stats::{
    Stats,
    Times, //
};
use obd_core::image::MAX_LAYERS;
use rustix::io::Errno;
use std::io;
use std::num::NonZero;
use std::ops::{
    ControlFlow,
    Range, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread::{
    self,
    Scope,
    ScopedJoinHandle, //
};
use std::time::{
    Duration,
    Instant, //
};

/// How long the driver is asked to wait at a time: signals, and merges that are
/// done, are looked for in between.
const TICK: Duration = Duration::from_millis(500);

/// The same while a layer is made of what was logged.
const SOON: Duration = Duration::from_millis(20);

/// How long to wait before a commit is tried again: at first...
const PAUSE: Duration = Duration::from_millis(100);

/// ... and at most.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// After a merge that failed, so many commits until the next one.
const MERGE_AFTER: u64 = 8;

/// Data that is worth a thread.
const THREAD_BYTES: usize = 1 << 20;

/// How a writer works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How layers are written.
    pub layer: obd_writer::Options,
    /// How many layers of its own a device may have before some are merged.
    pub max_layers: usize,
    /// Whether they are merged by a thread, while commits go on, and what was logged is
    /// made a layer of by one, while more is logged.
    pub background: bool,
    /// Bytes of a log that is made if somebody waits for a flush; 0: none is, nor is one
    /// written to that is there.
    pub log: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layer: obd_writer::Options::default(),
            max_layers: 16,
            background: true,
            log: 0,
        }
    }
}

/// What a writer is told from outside, by signal handlers: nothing else depends
/// on either.
#[derive(Debug, Default)]
pub struct Signals<'a> {
    /// To finish what is frozen and to end.
    pub stop: Option<&'a AtomicBool>,
    /// To merge all layers of the device.
    pub compact: Option<&'a AtomicBool>,
}

/// Who is told what happens.
pub struct Told<'a> {
    /// A line for the log.
    pub log: &'a (dyn Fn(&str) + Sync),
    /// Counters, whenever they change.
    pub stats: &'a mut dyn FnMut(&Stats),
}

/// How a writer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// The disk is gone.
    Gone,
}

/// The writer of a disk.
pub struct Writer<'a, F: Folder, K> {
    device: Device<'a, F>,
    kernel: K,
    options: Options,
    stats: Stats,
    /// What `image.json` says, and the driver does not know yet.
    pending: Option<Step>,
    /// What is sealed, if that is known here.
    sealed: Option<Sealed>,
    /// A writer before this one may have left something in the driver: all of it becomes
    /// layers first.
    taking: bool,
    /// When a layer is to be made again of what is sealed, and logged.
    retry: Option<Instant>,
    /// How long to wait before something is tried again.
    pause: Duration,
    /// What the log knows of the present trouble: whether it is lack of space.
    said: Option<bool>,
    /// The same of the disk's own log.
    said_log: bool,
    /// Commits there must be before the next merge.
    merge_at: u64,
    /// Whether all layers are to be merged.
    compact: bool,
}

/// What is sealed.
#[derive(Clone, Copy)]
struct Sealed {
    id: u64,
    /// What of the log it has.
    mark: Option<Mark>,
    /// All of it is in the log.
    logged: bool,
}

/// What is to be done.
enum Task {
    /// Nothing, so far.
    Wait,
    /// A layer of what is logged.
    Layer,
    /// Something for what is frozen, which is in no log.
    Frozen(Frozen),
    /// Nothing any more: the disk is gone.
    Gone,
}

/// What came of asking for what is sealed.
enum Left {
    /// That is.
    Layer(Frozen),
    /// Nothing is, nor logged, nor frozen.
    Nothing,
    /// The disk is gone, and what was in no layer with it: the log has what was flushed.
    Gone,
}

/// A layer in the making of what is sealed, and in the log.
struct Sealing<'s, 'a, F: Folder> {
    id: u64,
    number: u64,
    begin: Instant,
    thread: ScopedJoinHandle<'s, Result<(Draft<'a, F>, Written), Error>>,
}

/// A layer that was written.
struct Written {
    /// Bytes of data in it, and of zeros.
    data: u64,
    zeros: u64,
    /// Bytes of the file.
    stored: u64,
    copied: u64,
}

/// Whether the driver says that the disk is gone.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::SHUTDOWN.raw_os_error())
}

/// Whether nothing is frozen, but what is logged is old, or large, enough for a layer.
fn is_old(frozen: &Frozen) -> bool {
    frozen.extents == 0 && matches!(frozen.reason, Reason::Size | Reason::Age)
}

/// Writes layer `number` of a disk of `size` bytes, under its name.
fn write_layer<'a, F: Folder>(
    folder: &'a F,
    number: u64,
    size: u64,
    extents: &[Extent],
    bytes: &[u8],
    options: &obd_writer::Options,
) -> Result<(Draft<'a, F>, Written), Error> {
    let content = Content::new(size, extents, bytes).map_err(Error::Contract)?;
    let go = |_, _| ControlFlow::Continue(());
    let (draft, written) = Draft::write(folder, number, Called::Layer, &content, options, go)?;
    let written = Written {
        data: bytes.len() as u64,
        zeros: content.zeros(),
        stored: written.stored,
        copied: written.copied,
    };
    Ok((draft, written))
}

/// A merge under way.
struct Merging<'s> {
    layers: Range<usize>,
    number: u64,
    begin: Instant,
    thread: ScopedJoinHandle<'s, Result<u64, Error>>,
}

impl<'a, F: Folder, K: Kernel<Log = F::Log>> Writer<'a, F, K> {
    /// The writer of a disk that was attached with the layers of `device`, maybe
    /// by a writer that died: then what that had durable is made the driver's.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if the disk is none of this device.
    pub fn new(device: Device<'a, F>, kernel: K, options: Options) -> Result<Self, Error> {
        // So much at most can be in memory until there is a layer of it.
        let log = options.log.min(kernel.bound().memory / 2);
        let mut writer = Self {
            device,
            kernel,
            options: Options { log, ..options },
            stats: Stats::default(),
            pending: None,
            sealed: None,
            taking: true,
            retry: None,
            pause: PAUSE,
            said: None,
            said_log: false,
            merge_at: 0,
            compact: false,
        };
        writer.meet()?;
        writer.stats.layers = writer.device.image().lowers.len();
        Ok(writer)
    }

    /// Finds out what the driver knows of the device.
    fn meet(&mut self) -> Result<(), Error> {
        let bound = self.kernel.bound();
        let image = self.device.image();
        let differs = |what: String| Err(Error::image(crate::image::NAME, what));
        if bound.size != image.obd.size {
            return differs(format!(
                "{} bytes, the disk has {}",
                image.obd.size, bound.size
            ));
        }
        if bound.layers == image.lowers.len() {
            return Ok(());
        }
        // A step changes the number of layers: by one more, or by one or more less.
        let Some(step) = image.obd.last.filter(|last| last.before == bound.layers) else {
            return differs(format!(
                "{} layers, the disk has {}",
                image.lowers.len(),
                bound.layers
            ));
        };
        if step.id != 0 {
            let sealed = self.kernel.seal(false);
            let sealed = sealed.map_err(Error::kernel("say what is sealed"))?;
            if sealed.is_none_or(|sealed| sealed.id != step.id) {
                if image.obd.log.is_some() {
                    return differs("a layer that the disk does not know of".into());
                }
                // The driver dropped it: nobody was told that it is durable, and
                // the disk reads as it does without it.
                return self.device.pop();
            }
        }
        self.pending = Some(step);
        Ok(())
    }

    /// Tells the driver of what is durable.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(step) = self.pending else {
            return Ok(());
        };
        let lower = self.device.image().lowers.get(step.first);
        let file = lower.map(|lower| self.device.folder().path(&lower.file));
        // A step is of the image that it made.
        let file = file.ok_or_else(|| Error::image(crate::image::NAME, "has no such layer"))?;
        let layers = step.first..step.first + step.nr;
        self.kernel
            .stack(step.id, layers, &file)
            .map_err(Error::kernel("stack the layer"))?;
        self.pending = None;
        // Those that were merged are nobody's now.
        self.device.sweep();
        self.stats.layers = self.device.image().lowers.len();
        Ok(())
    }

    /// How a layer with so many bytes of data is written: threads are no gain for a
    /// few blocks, for which somebody waits.
    fn layer_options(&self, bytes: usize) -> obd_writer::Options {
        let mut options = self.options.layer.clone();
        let most = NonZero::new(bytes / THREAD_BYTES).unwrap_or(NonZero::<usize>::MIN);
        options.threads = options.threads.min(most);
        options
    }

    /// What is sealed, or is from here on, if anything is logged or frozen; `logged` if
    /// nothing is that is not in the log.
    fn seal(&mut self, logged: bool) -> Result<Left, Error> {
        let known = self.sealed.map(|sealed| sealed.id);
        // Of a writer before this one, if it is there and not known here.
        let (there, is_new) = match self.ask_sealed(false)? {
            Left::Nothing => (self.ask_sealed(true)?, true),
            there => (there, false),
        };
        match there {
            Left::Layer(there) if is_new => {
                self.sealed = Some(Sealed {
                    id: there.id,
                    mark: self.device.seal(),
                    logged,
                });
            }
            Left::Layer(there) if known != Some(there.id) => {
                self.sealed = Some(Sealed {
                    id: there.id,
                    mark: self.device.mark_of_sealed(),
                    logged: false,
                });
            }
            Left::Layer(_) => {}
            Left::Nothing | Left::Gone => self.sealed = None,
        }
        Ok(there)
    }

    /// Asks the driver for what is sealed, and to seal something if `make` says so.
    fn ask_sealed(&mut self, make: bool) -> Result<Left, Error> {
        match self.kernel.seal(make) {
            Ok(Some(there)) => Ok(Left::Layer(there)),
            Ok(None) => Ok(Left::Nothing),
            Err(error) if is_gone(&error) => {
                self.retry = None;
                Ok(Left::Gone)
            }
            Err(error) => {
                // Something may be sealed that is not known here: nothing may be logged
                // over that.
                self.taking = true;
                Err(Error::kernel("seal what was logged")(error))
            }
        }
    }

    /// What is in a frozen layer, or a sealed one.
    fn content(&mut self, frozen: &Frozen) -> Result<(Vec<Extent>, K::Mapping), Error> {
        let extents = self
            .kernel
            .extents(frozen)
            .map_err(Error::kernel("say what is frozen"))?;
        let mapping = self
            .kernel
            .map(frozen)
            .map_err(Error::kernel("lend what is frozen"))?;
        Ok((extents, mapping))
    }

    /// Makes layers of all that is sealed, logged and frozen.
    fn commit_all<'s>(
        &mut self,
        merging: &mut Option<Merging<'_>>,
        sealing: &mut Option<Sealing<'s, 'a, F>>,
        told: &mut Told<'_>,
    ) -> Result<(), Error> {
        if let Some(sealing) = sealing.take() {
            self.stack_sealed(sealing)?;
        }
        loop {
            match self.seal(false)? {
                Left::Layer(sealed) => {
                    self.room(merging, told)?;
                    self.commit(&sealed)?;
                }
                Left::Nothing => break,
                // Nothing has become a layer, so nothing is dead.
                Left::Gone => return Ok(()),
            }
        }
        self.retry = None;
        // What a writer before this one left may be in the log alone, as far as is known.
        self.device.bury_all()
    }

    /// Tells the driver of what is durable, if it does not know; whether that was the layer
    /// with what is sealed.
    fn is_settled(&mut self, sealed: &Frozen) -> Result<bool, Error> {
        let Some(step) = self.pending else {
            return Ok(false);
        };
        if step.id != 0 && step.id != sealed.id {
            let (was, is) = (step.id, sealed.id);
            return Err(Error::Contract(format!("{is} is sealed, not {was}")));
        }
        self.settle()?;
        if step.id == 0 {
            return Ok(false);
        }
        self.stats.taken_over += 1;
        self.sealed = None;
        Ok(true)
    }

    /// Makes a layer of what is sealed.
    fn commit(&mut self, sealed: &Frozen) -> Result<(), Error> {
        if self.is_settled(sealed)? {
            return Ok(());
        }
        let begin = Instant::now();
        let (extents, mapping) = self.content(sealed)?;
        let bytes = mapping.as_ref();
        let number = self.device.number();
        let size = self.device.image().obd.size;
        let options = self.layer_options(bytes.len());
        let folder = self.device.folder();
        let (draft, written) = write_layer(folder, number, size, &extents, bytes, &options)?;
        // The driver's pages are needed no more.
        drop(mapping);
        self.stack(sealed.id, number, draft, &written, begin, begin.elapsed())
    }

    /// Makes the layer `number` durable, with which all is in layers that is sealed, and
    /// the driver's. It was written in the time `layer`, since `begin`.
    fn stack(
        &mut self,
        id: u64,
        number: u64,
        draft: Draft<'a, F>,
        written: &Written,
        begin: Instant,
        layer: Duration,
    ) -> Result<(), Error> {
        let mark = self.sealed.filter(|sealed| sealed.id == id);
        let mark = mark.and_then(|sealed| sealed.mark);
        let again = Instant::now();
        let step = self
            .device
            .commit(id, number, written.stored, draft, mark)?;
        let image = again.elapsed();
        self.pending = Some(step);
        self.settle()?;
        self.sealed = None;
        self.stats.commit(Times {
            layer,
            image,
            stack: begin.elapsed().saturating_sub(layer + image),
        });
        self.stats.bytes_in += written.data;
        self.stats.bytes_zero += written.zeros;
        self.stats.bytes_out += written.stored;
        self.stats.bytes_copied += written.copied;
        Ok(())
    }

    /// Asks the driver for something to do, and has it log what is flushed meanwhile if it
    /// `may_log`.
    fn task(
        &mut self,
        timeout: Duration,
        may_log: bool,
        is_idle: bool,
        told: &mut Told<'_>,
    ) -> Result<Task, Error> {
        // What is older and in no log has to be durable first.
        let is_first = self.sealed.is_none_or(|sealed| sealed.logged);
        if may_log && is_first {
            match self.log(timeout, is_idle, told)? {
                Some(Stop::Gone) => return Ok(Task::Gone),
                Some(Stop::Idle) if !self.device.log_is_half_full() => return Ok(Task::Wait),
                Some(Stop::Idle | Stop::Wanted) => return Ok(Task::Layer),
                // It is frozen now.
                Some(Stop::Frozen | Stop::Failed(_)) | None => {}
            }
        }
        let next = self.kernel.next(timeout);
        Ok(match next.map_err(Error::kernel("say what is frozen"))? {
            Next::Frozen(frozen) => Task::Frozen(frozen),
            Next::Idle => Task::Wait,
            Next::Gone => Task::Gone,
        })
    }

    /// Has the driver write what is flushed to the log, which ends the flushes, until that is
    /// half full if a layer can be made of it then. Why it did no more; nothing if there is
    /// no log.
    fn log(
        &mut self,
        timeout: Duration,
        is_idle: bool,
        told: &mut Told<'_>,
    ) -> Result<Option<Stop>, Error> {
        let Some((log, mut run)) = self.device.log(is_idle) else {
            return Ok(None);
        };
        let before = run.last;
        let stop = self.kernel.log(log, &mut run, timeout);
        // What is not known to be there must not be written over.
        let stop = stop.map_err(Error::kernel("write to the log"))?;
        self.device.logged(&run, matches!(stop, Stop::Failed(_)));
        if run.last > before {
            self.said_log = false;
            self.stats.logged += run.last - before;
            self.stats.bytes_logged += run.bytes;
            self.stats.seconds_logged += run.time.as_secs_f64();
            self.is_well(told);
        }
        if let Stop::Failed(error) = &stop {
            self.stats.failed_logs += 1;
            if !self.said_log {
                self.said_log = true;
                (told.log)(&format!("cannot write to the log: {error}: making layers"));
            }
        }
        Ok(Some(stop))
    }

    /// Begins to make a layer of what is logged; `logged` if nothing is frozen that is not.
    fn begin_sealing<'s>(
        &mut self,
        logged: bool,
        scope: &'s Scope<'s, '_>,
        merging: &mut Option<Merging<'_>>,
        told: &mut Told<'_>,
    ) -> Result<Option<Sealing<'s, 'a, F>>, Error>
    where
        'a: 's,
    {
        let Left::Layer(sealed) = self.seal(logged)? else {
            return Ok(None);
        };
        self.room(merging, told)?;
        // One step at a time is between the image and the driver.
        if self.is_settled(&sealed)? {
            return Ok(None);
        }
        let begin = Instant::now();
        let (extents, mapping) = self.content(&sealed)?;
        let number = self.device.number();
        let size = self.device.image().obd.size;
        let folder = self.device.folder();
        let options = self.layer_options(mapping.as_ref().len());
        let thread = thread::Builder::new()
            .name("obd-seal".into())
            .spawn_scoped(scope, move || {
                let bytes = mapping.as_ref();
                let (mut draft, written) =
                    write_layer(folder, number, size, &extents, bytes, &options)?;
                // Now, so that others do not wait for it.
                let name = crate::image::name(number);
                draft.sync().map_err(Error::file("write", name))?;
                Ok((draft, written))
            })
            .map_err(Error::file("start", "a thread"))?;
        Ok(Some(Sealing {
            id: sealed.id,
            number,
            begin,
            thread,
        }))
    }

    /// Has the driver read from the layer that was made of what is sealed.
    fn stack_sealed(&mut self, sealing: Sealing<'_, 'a, F>) -> Result<(), Error> {
        let Sealing {
            id,
            number,
            begin,
            thread,
        } = sealing;
        let written = thread
            .join()
            .unwrap_or_else(|_| Err(Error::Contract("writing a layer panicked".into())));
        let (draft, written) = written?;
        let layer = begin.elapsed();
        // One step at a time is between the image and the driver.
        self.settle()?;
        self.stack(id, number, draft, &written, begin, layer)
    }

    /// Layers to be merged, if it is time.
    fn due(&mut self) -> Option<Range<usize>> {
        if self.compact {
            self.compact = false;
            let own = self.device.image().own();
            return (own.len() > 1).then_some(own);
        }
        if self.stats.commits < self.merge_at {
            return None;
        }
        merge::due(self.device.image(), self.options.max_layers)
    }

    /// Begins to merge `layers`.
    fn begin<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        layers: Range<usize>,
        stop: &'s AtomicBool,
    ) -> Result<Merging<'s>, Error>
    where
        'a: 's,
    {
        let number = self.device.number();
        let files = merge::files(self.device.image(), &layers);
        let folder = self.device.folder();
        let options = self.options.layer.clone();
        let size = self.device.image().obd.size;
        let thread = thread::Builder::new()
            .name("obd-merge".into())
            .spawn_scoped(scope, move || {
                merge::write(folder, &files, number, &options, size, stop)
            })
            .map_err(Error::file("start", "a thread"))?;
        Ok(Merging {
            layers,
            number,
            begin: Instant::now(),
            thread,
        })
    }

    /// Puts what was merged in the place of what it was made of: commits since
    /// then have only put more on top.
    fn exchange(&mut self, merging: Merging<'_>) -> Result<(), Error> {
        let Merging {
            layers,
            number,
            begin,
            thread,
        } = merging;
        let name = crate::image::name(number);
        let written = thread
            .join()
            .unwrap_or_else(|_| Err(Error::Contract("a merge panicked".into())));
        let stored = match written {
            Ok(stored) => stored,
            Err(error) => {
                self.device.discard(name);
                return Err(error);
            }
        };
        // One step at a time is between the image and the driver.
        if let Err(error) = self.settle() {
            self.device.discard(name);
            return Err(error);
        }
        let count = layers.len() as u64;
        let step = self.device.replace(0, layers, &name, stored)?;
        self.pending = Some(step);
        self.settle()?;
        self.stats.merges += 1;
        self.stats.merged_layers += count;
        self.stats.merged_bytes += stored;
        self.stats.merge_seconds += begin.elapsed().as_secs_f64();
        Ok(())
    }

    /// Ends a merge, and tells how that went.
    fn merged(&mut self, merging: Merging<'_>, told: &mut Told<'_>) {
        match self.exchange(merging) {
            Ok(()) => {}
            Err(error) => {
                self.stats.failed_merges += 1;
                self.merge_at = self.stats.commits + MERGE_AFTER;
                (told.log)(&format!("cannot merge layers: {error}"));
            }
        }
        (told.stats)(&self.stats);
    }

    /// Does what a writer does until the disk is gone or it is told to stop.
    ///
    /// # Errors
    ///
    /// What the driver says when it cannot be asked any more, and what a commit
    /// came to that was the last one before an end.
    pub fn run(&mut self, signals: &Signals<'_>, told: &mut Told<'_>) -> Result<End, Error> {
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let mut merging = None;
            let mut sealing = None;
            let result = self.serve(scope, &mut merging, &mut sealing, &enough, signals, told);
            if let Some(merging) = merging {
                enough.store(true, Ordering::Relaxed);
                // It would have saved work later; nobody needs it now.
                let _ = merging.thread.join();
                self.device.discard(crate::image::name(merging.number));
            }
            if let Some(sealing) = sealing {
                // It is in the log. What was written goes with the draft.
                drop(sealing.thread.join());
            }
            result
        })
    }

    fn serve<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        merging: &mut Option<Merging<'s>>,
        sealing: &mut Option<Sealing<'s, 'a, F>>,
        enough: &'s AtomicBool,
        signals: &Signals<'_>,
        told: &mut Told<'_>,
    ) -> Result<End, Error>
    where
        'a: 's,
    {
        let is_set = |flag: Option<&AtomicBool>| flag.is_some_and(|it| it.load(Ordering::Relaxed));
        loop {
            let background = self.options.background;
            let done = merging.take_if(|it| it.thread.is_finished() || !background);
            if let Some(done) = done {
                self.merged(done, told);
            }
            let done = sealing.take_if(|it| it.thread.is_finished() || !background);
            if let Some(done) = done {
                let stacked = self.stack_sealed(done);
                self.sealed(stacked, signals, told)?;
            }
            if let Some(compact) = signals.compact {
                self.compact |= compact.swap(false, Ordering::Relaxed);
            }
            if merging.is_none()
                && let Some(layers) = self.due()
            {
                match self.begin(scope, layers, enough) {
                    Ok(begun) => *merging = Some(begun),
                    Err(error) => (told.log)(&error.to_string()),
                }
                if !background {
                    continue;
                }
            }
            let now = self.kernel.now();
            if self.sealed.is_some() && sealing.is_none() && !self.taking {
                // By an error, after which there was a pause.
                self.retry.get_or_insert(now);
            }
            if sealing.is_none() && self.retry.is_some_and(|at| at <= now) {
                self.retry = None;
                match self.begin_sealing(false, scope, merging, told) {
                    Ok(None) => self.is_well(told),
                    Ok(begun) => *sealing = begun,
                    Err(error) => self.sealed(Err(error), signals, told)?,
                }
            }
            let stopping = is_set(signals.stop);
            let is_waiting = sealing.is_some() || self.retry.is_some();
            let is_idle = !is_waiting && self.sealed.is_none();
            let timeout = match (stopping, is_waiting) {
                (true, _) => Duration::ZERO,
                // It is looked for soon.
                (_, true) => SOON,
                _ => TICK,
            };
            // What was left by a writer before this one comes first.
            let task = match self.taking {
                true => Ok(Task::Wait),
                false => self.task(timeout, !stopping, is_idle, told),
            };
            let task = match task {
                // Nothing was frozen or written meanwhile, and there may be some soon.
                Err(error) if error.is_out_of_memory() => {
                    self.complain(&error, false, told);
                    self.wait(signals);
                    continue;
                }
                task => task?,
            };
            let damage = self.device.damage().map(str::to_owned);
            let result = match &task {
                Task::Gone => return Ok(End::Gone),
                _ if self.taking || stopping => self.commit_all(merging, sealing, told),
                Task::Layer if is_idle => self.make_layer(scope, merging, sealing, signals, told),
                Task::Frozen(frozen) if is_idle && is_old(frozen) => {
                    self.make_layer(scope, merging, sealing, signals, told)
                }
                Task::Wait | Task::Layer => continue,
                Task::Frozen(frozen) => self.serve_frozen(frozen, merging, sealing, told),
            };
            match result {
                Ok(()) => {
                    self.is_well(told);
                    if self.taking {
                        self.taking = false;
                        if let Some(damage) = damage {
                            // All of it was in memory.
                            let name = crate::log::NAME;
                            (told.log)(&format!("given up, and not needed: {name}: {damage}"));
                        }
                        self.open_log(false, told);
                    } else if stopping {
                        return Ok(End::Stopped);
                    }
                }
                Err(error) => {
                    self.complain(&error, stopping, told);
                    let frozen = match &task {
                        Task::Frozen(frozen) => Some(frozen.id),
                        _ => None,
                    };
                    self.fail(frozen, &error)?;
                    if stopping {
                        return Err(error);
                    }
                    self.wait(signals);
                }
            }
        }
    }

    /// Makes layers of all, with what is frozen.
    fn serve_frozen<'s>(
        &mut self,
        frozen: &Frozen,
        merging: &mut Option<Merging<'s>>,
        sealing: &mut Option<Sealing<'s, 'a, F>>,
        told: &mut Told<'_>,
    ) -> Result<(), Error> {
        self.commit_all(merging, sealing, told)?;
        if frozen.reason == Reason::Flush {
            self.open_log(true, told);
        }
        Ok(())
    }

    /// Begins to make a layer of what is logged, while nothing is frozen that is not, and no
    /// other is made.
    fn make_layer<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        merging: &mut Option<Merging<'s>>,
        sealing: &mut Option<Sealing<'s, 'a, F>>,
        signals: &Signals<'_>,
        told: &mut Told<'_>,
    ) -> Result<(), Error>
    where
        'a: 's,
    {
        // Nobody waits for what is in the log.
        match self.begin_sealing(true, scope, merging, told) {
            Ok(begun) => *sealing = begun,
            Err(error) if self.sealed.is_some() => self.sealed(Err(error), signals, told)?,
            // It is in the log, or frozen, as before.
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Opens the log, if it is there, or `make` says that there is to be one.
    fn open_log(&mut self, make: bool, told: &mut Told<'_>) {
        let is_there = self.device.image().obd.log.is_some();
        if self.options.log == 0 || self.device.is_logging() || !is_there && !make {
            return;
        }
        if let Err(error) = self.device.start_log(self.options.log) {
            // Layers do as well.
            self.options.log = 0;
            (told.log)(&format!("there is no log: {error}"));
        }
    }

    /// Something went well; layers are made if nothing is left of which one should be.
    fn is_well(&mut self, told: &mut Told<'_>) {
        if self.retry.is_none() && self.sealed.is_none() {
            if self.said.take().is_some() {
                (told.log)("layers are committed again");
            }
            self.pause = PAUSE;
        }
        (told.stats)(&self.stats);
    }

    /// Counts a failure, and says what it is.
    fn complain(&mut self, error: &Error, stopping: bool, told: &mut Told<'_>) {
        self.stats.failed += 1;
        (told.stats)(&self.stats);
        let line = match error.is_full() {
            true => format!("no space left: {error}: waiting for some"),
            false => format!("cannot commit a layer: {error}: trying again"),
        };
        // Once for each kind: the rest is as good as the same. Before the driver ends
        // flushes: who gets an error finds out why.
        let before = self.said.replace(error.is_full());
        if !stopping && before != Some(error.is_full()) {
            (told.log)(&line);
        }
    }

    /// Ends flushes that wait for what is frozen or sealed.
    fn fail(&mut self, frozen: Option<u64>, error: &Error) -> Result<(), Error> {
        let errno = match error.is_full() {
            true => Errno::NOSPC,
            false => Errno::IO,
        };
        let sealed = self.sealed.map(|sealed| sealed.id);
        if sealed.or(frozen).is_none() {
            // Nobody waits; but if the driver does not even say what is sealed, nothing
            // is asked of it any more.
            match self.kernel.seal(false) {
                Err(error) if is_gone(&error) => {}
                asked => drop(asked.map_err(Error::kernel("say what is sealed"))?),
            }
        }
        for id in [sealed, frozen].into_iter().flatten() {
            match self.kernel.failed(id, errno.raw_os_error()) {
                // It is part of what is sealed, or stacked.
                Err(error) if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) => {}
                // Which is what comes next of asking it.
                Err(error) if is_gone(&error) => {}
                // Nothing is asked of the driver any more if it does not even take that.
                result => result.map_err(Error::kernel("take an error"))?,
            }
        }
        Ok(())
    }

    /// Goes on after a layer was made of what is sealed and logged, or was not.
    fn sealed(
        &mut self,
        result: Result<(), Error>,
        signals: &Signals<'_>,
        told: &mut Told<'_>,
    ) -> Result<(), Error> {
        let Err(error) = result else {
            self.retry = None;
            self.is_well(told);
            return Ok(());
        };
        self.complain(&error, false, told);
        self.fail(None, &error)?;
        match self.options.background {
            // What is flushed meanwhile is logged, as long as there is room.
            true => {
                self.retry = Some(self.kernel.now() + self.pause);
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            }
            false => {
                self.wait(signals);
                self.retry = Some(self.kernel.now());
            }
        }
        Ok(())
    }

    /// Waits before something is tried again, longer each time.
    fn wait(&mut self, signals: &Signals<'_>) {
        self.rest(self.pause, signals);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }

    /// Makes sure that there is room for one more layer.
    fn room(
        &mut self,
        merging: &mut Option<Merging<'_>>,
        told: &mut Told<'_>,
    ) -> Result<(), Error> {
        if self.device.image().lowers.len() < MAX_LAYERS {
            return Ok(());
        }
        if let Some(merging) = merging.take() {
            self.merged(merging, told);
        }
        let layers = self.device.image().own();
        if self.device.image().lowers.len() < MAX_LAYERS {
            return Ok(());
        }
        if layers.len() < 2 {
            return Err(Error::TooManyLayers(MAX_LAYERS));
        }
        let stop = AtomicBool::new(false);
        let merged = thread::scope(|scope| -> Result<(), Error> {
            let merging = self.begin(scope, layers, &stop)?;
            self.exchange(merging)
        });
        merged?;
        (told.stats)(&self.stats);
        Ok(())
    }

    /// Waits, but not for long once a signal came.
    fn rest(&mut self, time: Duration, signals: &Signals<'_>) {
        let mut left = time;
        while !left.is_zero() {
            if signals.stop.is_some_and(|it| it.load(Ordering::Relaxed)) {
                return;
            }
            let some = left.min(PAUSE);
            self.kernel.pause(some);
            left -= some;
        }
    }

    /// What it did.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The device it is of.
    pub fn device(&self) -> &Device<'a, F> {
        &self.device
    }
}
