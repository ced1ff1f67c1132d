// SPDX-License-Identifier: MIT
//! Serving: one NBD client at a time (others wait for it to leave), its
//! requests pipelined.
//!
//! One thread does all the work. A request that is to take no time is
//! answered on the spot, straight out of the image. Any other waits in a heap
//! of deadlines and is carried out and answered at its own, whatever others
//! do, so that the drive serves as many commands at once as it is sent. (QEMU's
//! NBD client has at most 16 under way.)
//!
//! A write is carried out when it is answered, not before: in this order the
//! image, the replies and the write log agree. When the connection breaks, the
//! unanswered requests have not happened (a write that takes no time may have
//! happened in part).
//!
//! With a private image there is no medium to flush to. With a kept one the
//! file's page cache is the medium: FLUSH and FUA are durable against the end
//! of this process, not of the host, and do not wait for its disk; the image
//! is written back when a client leaves. With [`Options::cut`] what is not
//! durable is lost when the power is cut; see [`crate::power`].

use crate::clock;
use crate::control;
use crate::counters::LiveCounters;
use crate::error::{
    IoContext,
    Result, //
};
use crate::handshake::{
    self,
    Outcome, //
};
use crate::image::Image;
use crate::latency::{
    Latency,
    Sampler, //
};
use crate::power::{
    Cache,
    PowerCut, //
};
use crate::session::Session;
use crate::write_log::Writer;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread;
use std::time::Duration;

/// How long a client may take over each step of the negotiation, or to take a
/// reply off a full socket.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the server is to be set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Raw image to serve.
    pub image: PathBuf,
    /// Unix socket to serve NBD on; a dead one is replaced.
    pub socket: PathBuf,
    /// Unix socket for [`control`], if any.
    pub control: Option<PathBuf>,
    /// Whether writes go to the image file.
    pub keep: bool,
    /// Latency of reads.
    pub read: Latency,
    /// Latency of all other commands.
    pub write: Latency,
    /// Where the sequences of random latencies begin.
    pub seed: u64,
    /// How long before a deadline to stop sleeping and watch the clock, at
    /// most; see [`DEFAULT_SPIN`].
    pub spin: Duration,
    /// Whether there is a volatile write cache, and when the power is cut; it stays
    /// off until the drive is served anew, so that no client comes back by itself.
    pub cut: Option<PowerCut>,
}

impl Options {
    /// Serves `image` on `socket`: private, no latency, no control socket.
    pub fn new(image: impl Into<PathBuf>, socket: impl Into<PathBuf>) -> Self {
        Self {
            image: image.into(),
            socket: socket.into(),
            control: None,
            keep: false,
            read: Latency::default(),
            write: Latency::default(),
            seed: 1,
            spin: DEFAULT_SPIN,
            cut: None,
        }
    }
}

/// Default of [`Options::spin`].
///
/// Measured on a busy virtual machine with two CPUs, reads of 100 µs one after
/// the other came 26 µs late on average without spinning, 18 µs with 10 µs of
/// it, 12 µs with 20 µs and no less with 50 µs.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(20);

/// What the serving thread and the control threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What can be changed at run time.
    settings: Mutex<Settings>,
    /// What was served.
    pub(crate) counters: LiveCounters,
    /// Size of the drive in bytes.
    pub(crate) size: u64,
}

/// What can be changed at run time.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) read: Sampler,
    pub(crate) write: Sampler,
    /// Begins a sequence that sets no seed of its own.
    seed: u64,
    /// The log being written, or why it broke off.
    pub(crate) log: Option<Result<Writer>>,
    /// What the drive is to hold from the next request on.
    pub(crate) load: Option<Vec<u8>>,
    /// Writes that touch any of these bytes fail.
    pub(crate) bad: Range<u64>,
}

impl Settings {
    /// Sets what is asked of commands from now on, and begins the random
    /// sequences at `seed`, or where the last ones began.
    pub(crate) fn set_latency(&mut self, read: Latency, write: Latency, seed: Option<u64>) {
        self.seed = seed.unwrap_or(self.seed);
        self.read = Sampler::new(read, self.seed);
        // Another sequence than the reads', from the same seed.
        self.write = Sampler::new(write, !self.seed);
    }
}

impl Shared {
    /// The settings. A thread that panicked cannot have left them half-set.
    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A drive ready to be served; its sockets exist and take connections.
#[derive(Debug)]
pub struct Disk {
    image: Image,
    listener: UnixListener,
    socket: PathBuf,
    shared: Arc<Shared>,
    spin_ns: u64,
    /// While there is power to be cut.
    cache: Option<Cache>,
    /// Whether it is, some time.
    has_cut: bool,
}

impl Disk {
    /// Opens the image and the sockets, and starts answering the control
    /// socket.
    pub fn bind(options: &Options) -> Result<Self> {
        options.read.check()?;
        options.write.check()?;
        let image = Image::open(&options.image, options.keep)?;
        let listener = listen(&options.socket)?;
        let mut settings = Settings {
            read: Sampler::new(Latency::default(), 0),
            write: Sampler::new(Latency::default(), 0),
            seed: options.seed,
            log: None,
            load: None,
            bad: 0..0,
        };
        settings.set_latency(options.read.clone(), options.write.clone(), None);
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            counters: LiveCounters::default(),
            size: image.size(),
        });
        if let Some(path) = &options.control {
            let listener = listen(path)?;
            let shared = Arc::clone(&shared);
            thread::spawn(move || control::serve(&listener, &shared));
        }
        Ok(Self {
            image,
            listener,
            socket: options.socket.clone(),
            shared,
            spin_ns: nanoseconds(options.spin),
            cache: options.cut.map(Cache::new),
            has_cut: options.cut.is_some(),
        })
    }

    /// Lets the write log be ended from outside while [`Disk::run`] serves.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Serves one client after the other; ends only with an error.
    pub fn run(mut self) -> Result<Infallible> {
        be_prompt();
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).at("accept a client on", &self.socket),
            };
            if self.is_off() {
                continue;
            }
            if let Err(error) = self.serve(&stream) {
                eprintln!("aios-disk: dropped a client: {error}");
            }
            self.image.sync()?;
        }
    }

    /// Whether the power was cut.
    fn is_off(&self) -> bool {
        self.has_cut && self.cache.is_none()
    }

    /// Serves one client until it leaves.
    fn serve(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        if handshake::negotiate(&mut stream, self.image.size())? == Outcome::Left {
            return Ok(());
        }
        stream.set_read_timeout(None)?;
        Session::new(
            stream,
            &mut self.image,
            &mut self.cache,
            &self.shared,
            self.spin_ns,
        )
        .run()
    }
}

/// Access to a [`Disk`] that is being served in another thread.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Ends the write log, if one is being written, and waits until it is on
    /// disk.
    pub fn finish_log(&self) -> Result<()> {
        match self.0.settings().log.take() {
            Some(log) => log?.finish(clock::now()).map(drop),
            None => Ok(()),
        }
    }
}

/// Lets this thread run the moment it has something to do, as a drive would,
/// though the guest's CPUs keep all of the host's busy. What is refused
/// (without CAP_SYS_NICE the first) only makes the drive less exact.
///
/// Measured with all CPUs busy: a reply took the server 3.7 µs instead of 11,
/// as the client it wakes does not push it aside. Watching the socket for the
/// next request before sleeping was tried and made it slower, 10 µs for a
/// reply.
fn be_prompt() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call, which only reads them; 0 is the
    // calling thread.
    let _ = unsafe {
        libc::sched_setscheduler(
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const parameters,
        )
    };
    // Wakes at the deadline and not up to 50 µs (the default) later; what is
    // scheduled by SCHED_FIFO has no slack anyway.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Listens on a Unix socket that only its owner may use. A socket left behind
/// by a server that is gone is replaced; one in use is not.
fn listen(path: &Path) -> Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path).at("replace the socket", path)?;
    }
    let listener = UnixListener::bind(path).at("listen on", path)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, owner_only).at("restrict", path)?;
    Ok(listener)
}
