// SPDX-License-Identifier: MIT

//! A disk and the threads that serve it, from its beginning to its end.
//!
//! The driver ends it: when the disk is stopped, by us or by somebody else, each
//! queue gets its commands back and its thread returns. Whoever wants it ended
//! rings the bell, and so does every thread that returns.

use crate::control::{
    Control,
    name, //
};
use crate::disk::Disk;
use crate::error::Error;
use crate::log::{
    Log,
    Sink, //
};
use crate::queue::{
    Plan,
    Queue, //
};
use crate::reader::MAX_BYTES;
use crate::uapi::{
    self,
    DeviceInfo,
    Params, //
};
use std::fs::{
    File,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError,
    mpsc, //
};
use std::thread::{
    self,
    JoinHandle, //
};

/// Most hardware queues.
pub const MAX_QUEUES: u16 = 16;

/// Deepest queue.
pub const MAX_DEPTH: u16 = 1024;

/// The logarithm of a sector.
const SECTOR_SHIFT: u8 = 9;

/// The logarithm of a page.
const PAGE_SHIFT: u8 = 12;

/// How a disk is served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hardware queues, a thread each; one per CPU if there are fewer of those,
    /// and [`MAX_QUEUES`] at most.
    pub queues: u16,
    /// Requests that each queue has under way, [`MAX_DEPTH`] at most.
    pub depth: u16,
}

/// Wakes who waits for a disk's end.
#[derive(Debug)]
pub struct Bell {
    inside: UnixStream,
    outside: UnixStream,
}

impl Bell {
    /// A bell that nobody rang.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let (inside, outside) = UnixStream::pair()?;
        Ok(Self { inside, outside })
    }

    /// Rings whenever anything is written to it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn rope(&self) -> io::Result<UnixStream> {
        self.outside.try_clone()
    }

    /// Waits until somebody rings.
    fn wait(&mut self) {
        // Nobody else reads, and the other end is open as long as this is: it can
        // end with what was written, or with a signal, whose handler writes.
        while self.inside.read(&mut [0]).is_err() {}
    }
}

/// A disk that is served.
pub struct Server {
    id: u32,
    control: Control,
    bell: Bell,
    /// `/dev/ublkcN`: as long as it is open no other device gets its number.
    device: Arc<File>,
    threads: Vec<JoinHandle<()>>,
    failure: Failure,
}

/// Why a thread gave up, if one did.
type Failure = Arc<Mutex<Option<Error>>>;

impl Server {
    /// Makes a disk of what is on `disk`, read-only, and serves it until `bell`
    /// rings or it is detached. Reads that fail are told to `sink`.
    ///
    /// # Errors
    ///
    /// [`Error`]; there is no disk then.
    pub fn start(disk: Disk, options: Options, bell: Bell, sink: Sink) -> Result<Self, Error> {
        let mut control = Control::open()?;
        let features = control.features()?;
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u16::try_from(cpus).unwrap_or(MAX_QUEUES);
        let info = control.add(
            options.queues.min(cpus).clamp(1, MAX_QUEUES),
            options.depth.clamp(1, MAX_DEPTH),
            MAX_BYTES as u32,
            // An image is of who knows whom: the kernel's parsers of partition
            // tables stay out, if they can be told to.
            uapi::F_CMD_IOCTL_ENCODE | (features & uapi::F_NO_AUTO_PART_SCAN),
        )?;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/ublkc{}", info.dev_id));
        let device = match device {
            Ok(device) => Arc::new(device),
            Err(source) => {
                // Why it cannot be opened says more than that it cannot be deleted.
                let _ = control.delete(info.dev_id);
                return Err(Error::Command {
                    what: "open",
                    device: format!("ublkc{}", info.dev_id),
                    source,
                });
            }
        };
        let mut server = Self {
            id: info.dev_id,
            control,
            bell,
            device,
            threads: Vec::new(),
            failure: Failure::default(),
        };
        match server.begin(&info, disk, sink) {
            Ok(()) => Ok(server),
            Err(error) => {
                // As above.
                let _ = server.end();
                Err(error)
            }
        }
    }

    /// Starts a thread for each queue, and the disk when the driver has all of
    /// their commands: it would wait for them forever.
    fn begin(&mut self, info: &DeviceInfo, disk: Disk, sink: Sink) -> Result<(), Error> {
        self.control.set_params(self.id, params(&disk))?;
        let disk = Arc::new(disk);
        let log = Arc::new(Log::new(sink));
        let (ready, readies) = mpsc::channel();
        for id in 0..info.nr_hw_queues {
            let plan = Plan {
                id,
                depth: info.queue_depth,
                cpus: self.control.affinity(self.id, id)?,
                name: name(self.id),
                device: Arc::clone(&self.device),
                disk: Arc::clone(&disk),
                log: Arc::clone(&log),
            };
            let ready = ready.clone();
            let end = End {
                rope: self.bell.rope().map_err(Error::system("make a socket"))?,
                failure: Arc::clone(&self.failure),
                result: None,
            };
            let thread = thread::Builder::new()
                .name(format!("{}-{id}", name(self.id)))
                .spawn(move || serve(plan, ready, end))
                .map_err(Error::system("start a thread"))?;
            self.threads.push(thread);
        }
        drop(ready);
        for _ in 0..info.nr_hw_queues {
            // Who does not say so has failed, and said why.
            if readies.recv().is_err() {
                return Err(self.failed().unwrap_or(Error::System {
                    what: "start a thread",
                    source: io::ErrorKind::BrokenPipe.into(),
                }));
            }
        }
        self.control.start(self.id)
    }

    fn failed(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// The number of the disk, N of `/dev/ublkbN`.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The disk.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(name(self.id))
    }

    /// Serves the disk until the bell rings or it is detached, and removes it,
    /// whoever uses it.
    ///
    /// # Errors
    ///
    /// The first thing that went wrong with serving. The process must end then:
    /// the driver ends the requests that nobody will answer when it does, and
    /// removing the disk would wait for them. [`Control::delete`] removes what is
    /// left of it.
    pub fn wait(mut self) -> Result<(), Error> {
        self.bell.wait();
        match self.failed() {
            Some(error) => Err(error),
            None => self.end(),
        }
    }

    /// Removes the disk, whoever uses it.
    ///
    /// # Errors
    ///
    /// The first thing that went wrong with serving, or with that.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end()
    }

    /// Removes the disk, and waits for the threads.
    fn end(&mut self) -> Result<(), Error> {
        let stopped = self.control.stop(self.id, true);
        let deleted = self.control.delete(self.id);
        for thread in self.threads.drain(..) {
            // One that panicked has left its failure.
            let _ = thread.join();
        }
        stopped.and(deleted).and(self.failed().map_or(Ok(()), Err))
    }
}

/// What the disk is like.
fn params(disk: &Disk) -> Params {
    let block = disk.needs().block.max(1 << PAGE_SHIFT);
    Params {
        types: uapi::PARAM_TYPE_BASIC,
        attrs: uapi::ATTR_READ_ONLY,
        logical_bs_shift: SECTOR_SHIFT,
        physical_bs_shift: PAGE_SHIFT,
        // A block is a power of two, far below 2^255.
        io_opt_shift: block.trailing_zeros() as u8,
        io_min_shift: PAGE_SHIFT,
        max_sectors: (MAX_BYTES >> SECTOR_SHIFT) as u32,
        dev_sectors: disk.sectors(),
        ..Params::default()
    }
}

/// The end of a thread, however it comes.
struct End {
    rope: UnixStream,
    failure: Failure,
    /// None: it panicked.
    result: Option<Result<(), Error>>,
}

impl Drop for End {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(Error::System {
                what: "serve the ublk driver",
                source: io::Error::other("a thread panicked"),
            })
        });
        if let Err(error) = result {
            lock(&self.failure).get_or_insert(error);
        }
        // The other end is open as long as anybody listens.
        let _ = self.rope.write(&[0]);
    }
}

fn lock(failure: &Failure) -> MutexGuard<'_, Option<Error>> {
    // Whoever panicked left an error or none.
    failure.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a thread does. `ready` goes in time for who waits for others to say so.
fn serve(plan: Plan, ready: mpsc::Sender<()>, mut end: End) {
    end.result = Some(Queue::new(plan).and_then(|queue| {
        // Nobody waits any more if another thread failed.
        let _ = ready.send(());
        drop(ready);
        queue.run()
    }));
}
