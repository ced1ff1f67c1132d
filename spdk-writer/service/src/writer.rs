// SPDX-License-Identifier: MIT

//! What a writer does for as long as its disk is there.

use crate::device::{
    Device,
    Draft,
    Later, //
};
use crate::error::Error;
use crate::folder::Folder;
use crate::frozen::Content;
use crate::image::Step;
use crate::kernel::{
    Frozen,
    Kernel,
    Next, //
};
use crate::merge;
use crate::stats::{
    Stats,
    Times, //
};
use obd_core::image::MAX_LAYERS;
use rustix::io::Errno;
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
    /// Whether they are merged by a thread, while commits go on.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layer: obd_writer::Options::default(),
            max_layers: 16,
            background: true,
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
pub struct Writer<'a, F, K> {
    device: Device<'a, F>,
    kernel: K,
    options: Options,
    stats: Stats,
    /// What `image.json` says, and the driver does not know yet.
    pending: Option<Step>,
    /// Commits there must be before the next merge.
    merge_at: u64,
    /// Whether all layers are to be merged.
    compact: bool,
}

/// A merge under way.
struct Merging<'s> {
    layers: Range<usize>,
    number: u64,
    begin: Instant,
    thread: ScopedJoinHandle<'s, Result<u64, Error>>,
}

impl<'a, F: Folder, K: Kernel> Writer<'a, F, K> {
    /// The writer of a disk that was attached with the layers of `device`, maybe
    /// by a writer that died: then what that had durable is made the driver's.
    ///
    /// # Errors
    ///
    /// [`Error::Image`] if the disk is none of this device.
    pub fn new(device: Device<'a, F>, kernel: K, options: Options) -> Result<Self, Error> {
        let mut writer = Self {
            device,
            kernel,
            options,
            stats: Stats::default(),
            pending: None,
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
            let next = self.kernel.next(Duration::ZERO);
            let next = next.map_err(Error::kernel("say what is frozen"))?;
            if !matches!(next, Next::Frozen(frozen) if frozen.id == step.id) {
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

    /// Makes a layer of what is frozen.
    fn commit(&mut self, frozen: &Frozen) -> Result<(), Error> {
        if let Some(step) = self.pending {
            if step.id != 0 && step.id != frozen.id {
                let (was, is) = (step.id, frozen.id);
                return Err(Error::Contract(format!("{is} is frozen, not {was}")));
            }
            self.settle()?;
            if step.id != 0 {
                self.stats.taken_over += 1;
                return Ok(());
            }
        }
        let begin = Instant::now();
        let extents = self
            .kernel
            .extents(frozen)
            .map_err(Error::kernel("say what is frozen"))?;
        let mapping = self
            .kernel
            .map(frozen)
            .map_err(Error::kernel("lend what is frozen"))?;
        let bytes = mapping.as_ref();
        let size = self.device.image().obd.size;
        let content = Content::new(size, &extents, bytes).map_err(Error::Contract)?;
        let number = self.device.number();
        let name = crate::image::name(number);
        // It goes again with the draft if anything fails.
        let mut draft = Draft::named(self.device.folder(), number)?;
        let go = |_, _| ControlFlow::Continue(());
        let options = self.layer_options(bytes.len());
        let written = obd_writer::commit(&content, Later(&mut draft), &options, go)
            .map_err(|error| Error::layer(&name, error))?;
        let (data, zeros) = (bytes.len() as u64, content.zeros());
        // The driver's pages are needed no more.
        drop(content);
        drop(mapping);
        let layer = begin.elapsed();
        let step = self
            .device
            .commit(frozen.id, number, written.stored, draft)?;
        let image = begin.elapsed();
        self.pending = Some(step);
        self.settle()?;
        self.stats.commit(Times {
            layer,
            image: image - layer,
            stack: begin.elapsed() - image,
        });
        self.stats.bytes_in += data;
        self.stats.bytes_zero += zeros;
        self.stats.bytes_out += written.stored;
        self.stats.bytes_copied += written.copied;
        Ok(())
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
            let result = self.serve(scope, &mut merging, &enough, signals, told);
            if let Some(merging) = merging {
                enough.store(true, Ordering::Relaxed);
                // It would have saved work later; nobody needs it now.
                let _ = merging.thread.join();
                self.device.discard(crate::image::name(merging.number));
            }
            result
        })
    }

    fn serve<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        merging: &mut Option<Merging<'s>>,
        enough: &'s AtomicBool,
        signals: &Signals<'_>,
        told: &mut Told<'_>,
    ) -> Result<End, Error>
    where
        'a: 's,
    {
        let is_set = |flag: Option<&AtomicBool>| flag.is_some_and(|it| it.load(Ordering::Relaxed));
        let mut pause = PAUSE;
        // What the log knows of the present trouble: whether it is lack of space.
        let mut said: Option<bool> = None;
        loop {
            let done = merging.take_if(|it| it.thread.is_finished() || !self.options.background);
            if let Some(done) = done {
                self.merged(done, told);
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
                if !self.options.background {
                    continue;
                }
            }
            let stopping = is_set(signals.stop);
            let timeout = if stopping { Duration::ZERO } else { TICK };
            let next = self.kernel.next(timeout);
            let frozen = match next.map_err(Error::kernel("say what is frozen"))? {
                Next::Frozen(frozen) => frozen,
                Next::Idle if stopping => return Ok(End::Stopped),
                Next::Idle => continue,
                Next::Gone => return Ok(End::Gone),
            };
            match self.room(merging, told).and_then(|()| self.commit(&frozen)) {
                Ok(()) => {
                    if said.take().is_some() {
                        (told.log)("layers are committed again");
                    }
                    pause = PAUSE;
                    (told.stats)(&self.stats);
                    if stopping {
                        return Ok(End::Stopped);
                    }
                }
                Err(error) => {
                    self.stats.failed += 1;
                    (told.stats)(&self.stats);
                    let line = match error.is_full() {
                        true => format!("no space left: {error}: waiting for some"),
                        false => format!("cannot commit a layer: {error}: trying again"),
                    };
                    // Once for each kind: the rest is as good as the same. Before
                    // the driver ends flushes: who gets an error finds out why.
                    let before = said.replace(error.is_full());
                    if !stopping && before != Some(error.is_full()) {
                        (told.log)(&line);
                    }
                    let errno = match error.is_full() {
                        true => Errno::NOSPC,
                        false => Errno::IO,
                    };
                    let failed = self.kernel.failed(frozen.id, errno.raw_os_error());
                    // Nothing is asked of the driver any more if it does not even
                    // take that.
                    failed.map_err(Error::kernel("take an error"))?;
                    if stopping {
                        return Err(error);
                    }
                    self.rest(pause, signals);
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
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
