// SPDX-License-Identifier: MIT

//! Disks that can be written to: their folders, and the process that makes layers
//! of what is written.
//!
//! What the driver does not know of such a disk is in a file in
//! [`userspace::STATE_DIR`], with the name of its device: where its folder is, and
//! who the writer is.

use crate::attach::{
    self,
    Attached, //
};
use crate::config;
use crate::create;
use crate::driver::{
    self,
    Driver,
    Writable, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    self,
    Place, //
};
use crate::ui;
use crate::userspace::{
    self,
    STATE_DIR, //
};
use crate::write::CompressionArgs;
use obd_engine::guard::{
    self,
    Force, //
};
use obd_engine::uring::{
    self,
    Purpose, //
};
use obd_engine::{
    Shared,
    Uring, //
};
use obd_service::kernel;
use obd_service::writer::{
    Signals,
    Told, //
};
use obd_service::{
    BLOCK,
    Depth,
    Device,
    Directory,
    End,
    Folder,
    Options,
    Stats,
    Stored,
    Writer, //
};
use obd_store::Store;
use rustix::process::{
    Pid,
    Signal,
    configure_io_flusher_behavior,
    kill_process, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread::{
    self,
    available_parallelism, //
};
use std::time::{
    Duration,
    Instant, //
};

/// How often to look whether a writer has ended.
const POLL: Duration = Duration::from_millis(20);

/// How long a writer that has nothing left to do may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often counters are written for others to see.
const INTERVAL: Duration = Duration::from_secs(1);

/// Threads that compress, if nobody says how many.
const THREADS: usize = 4;

/// How a disk can be written to.
#[derive(clap::Args)]
pub(crate) struct WriteArgs {
    /// Attach the read-write disk in this folder, and make layers of what is
    /// written to it.
    #[arg(long, group = "process", conflicts_with_all = ["zfile", "upper_data", "check_digests"])]
    writable: bool,

    /// Answer flushes at once: what was written need not survive a power cut.
    #[arg(long, requires = "writable")]
    volatile: bool,

    /// Bytes of written data to keep in memory at most: a number and K, M or G.
    #[arg(long, requires = "writable", value_name = "SIZE", value_parser = create::size)]
    memory: Option<u64>,

    /// Make a layer when so much was written; half of --memory by default.
    #[arg(long, requires = "writable", value_name = "SIZE", value_parser = create::size)]
    commit_bytes: Option<u64>,

    /// Make a layer after so many seconds; 0: never for its age.
    #[arg(long, requires = "writable", value_name = "SECONDS", value_parser = age)]
    commit_age: Option<u32>,

    /// Refuse writes when there has been no writer for so many seconds; 0: never.
    #[arg(long, requires = "writable", value_name = "SECONDS", value_parser = age)]
    writer_timeout: Option<u32>,

    /// Of a damaged log keep what is before the damage, and give up what is behind: it was
    /// flushed, and is lost.
    #[arg(long, requires = "writable")]
    salvage: bool,

    #[command(flatten)]
    work: WorkArgs,
}

/// How a writer works.
#[derive(clap::Args)]
struct WorkArgs {
    /// Merge layers when the disk has more than so many of its own.
    #[arg(long, value_name = "N", default_value_t = 16,
        value_parser = clap::value_parser!(u8).range(1..=200))]
    max_layers: u8,

    #[command(flatten)]
    compression: CompressionArgs,

    /// Threads that compress; one per processor, 4 at most, by default.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,

    /// Have a log of so many bytes, by which flushes end sooner, if the disk has none
    /// yet: half of its memory at most, and a quarter of the room that there is. 0: leave it
    /// alone.
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = create::size)]
    log: u64,
}

/// Seconds as milliseconds.
fn age(text: &str) -> std::result::Result<u32, String> {
    match text.parse::<f64>() {
        Ok(seconds @ 0.0..=86400.0) => Ok((seconds * 1000.0).round() as u32),
        _ => Err("0 to 86400 are possible".into()),
    }
}

/// Take over a read-write disk whose writer is gone.
#[derive(clap::Args)]
pub(crate) struct WriterArgs {
    /// The disk's folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Work in the foreground, until a signal comes or the disk is detached.
    #[arg(long)]
    foreground: bool,

    #[command(flatten)]
    work: WorkArgs,
}

/// Merge the layers that a read-write disk made of what was written to it.
///
/// If the disk is attached its writer is asked to do that, and this does not wait
/// for it.
#[derive(clap::Args)]
pub(crate) struct CompactArgs {
    /// The disk's folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Those below it, too. Their files stay.
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    compression: CompressionArgs,
}

/// The writer of a disk, as others see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Writing {
    /// The process.
    pub(crate) pid: u32,
    /// Whether it is there.
    #[serde(skip_deserializing)]
    pub(crate) alive: bool,
    /// The folder.
    dir: PathBuf,
    /// The device's name in configfs.
    name: String,
    /// The disk's name.
    disk: String,
    /// The disk's number, which no other one has until the machine starts again,
    sequence: String,
    /// and which start that was.
    boot: String,
    /// What the writer did.
    stats: Stats,
}

impl From<obd_service::Error> for Error {
    fn from(error: obd_service::Error) -> Self {
        Error::Service(error)
    }
}

impl Writing {
    fn path(name: &str) -> PathBuf {
        Path::new(STATE_DIR).join(format!("{name}.rw.json"))
    }

    /// The writer of the device `name`, if there is, or was, one.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let text = fs::read(Self::path(name)).ok()?;
        let mut writing: Self = serde_json::from_slice(&text).ok()?;
        // A folder that is gone is nobody's.
        writing.alive = Directory::is_locked(&writing.dir).unwrap_or(false);
        Some(writing).filter(|writing| writing.is_attached())
    }

    /// What is attached of the folder `dir`.
    fn in_folder(dir: &Path) -> Option<Self> {
        let entries = fs::read_dir(STATE_DIR).ok()?;
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Self::of(name.strip_suffix(".rw.json")?))
            .find(|writing| writing.dir == dir)
    }

    /// Whether the disk that this is about is there.
    fn is_attached(&self) -> bool {
        self.boot == boot() && sequence(&self.disk).as_ref() == Some(&self.sequence)
    }

    /// Writes it for others to see, whole or not at all.
    fn write(&self) -> io::Result<()> {
        fs::create_dir_all(STATE_DIR)?;
        let path = Self::path(&self.name);
        let draft = path.with_extension(format!("{}", std::process::id()));
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, path)
    }

    /// The disk is detached: waits for the writer to end.
    pub(crate) fn ended(&self, interrupted: &AtomicBool) -> Result<()> {
        let begin = Instant::now();
        while self.alive && Directory::is_locked(&self.dir).unwrap_or(false) {
            if interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if begin.elapsed() > PATIENCE {
                eprintln!("warning: the writer ({}) does not end", self.pid);
                break;
            }
            thread::sleep(POLL);
        }
        userspace::remove(&Self::path(&self.name));
        Ok(())
    }
}

/// The number of a disk, if it is there.
fn sequence(disk: &str) -> Option<String> {
    let number = String::from_utf8(driver::sequence(disk)?).ok()?;
    Some(number.trim().to_owned())
}

/// Which start of the machine this is.
fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// Opens and locks the folder of a disk, whose writer may be about to end.
fn lock(dir: &Path) -> Result<Directory> {
    let begin = Instant::now();
    loop {
        let error = match Directory::open(dir) {
            Ok(directory) => return Ok(directory),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(Error::io("open", dir, error));
        }
        if begin.elapsed() > PATIENCE {
            return Err(Error::Busy {
                path: dir.into(),
                reason: "has a writer".into(),
            });
        }
        thread::sleep(POLL);
    }
}

/// What was made.
#[derive(Serialize)]
struct Created<'a> {
    dir: &'a Path,
    size: u64,
    layers: usize,
}

/// Runs `obd create --rw`.
pub(crate) fn create(
    dir: &Path,
    size: u64,
    lower: &[PathBuf],
    store: Option<&str>,
    json: bool,
) -> Result<()> {
    let mut paths = Vec::new();
    for file in files(lower)? {
        let path = fs::canonicalize(&file).map_err(|error| Error::io("find", file, error))?;
        paths.push(path);
    }
    let below = match paths.is_empty() {
        true => 0,
        false => {
            let places: Vec<Place> = paths.iter().cloned().map(Place::whole).collect();
            open::open_image(&places)?.size()
        }
    };
    let refuse = |reason: String| Error::Layer {
        path: dir.into(),
        reason,
    };
    let size = if size == 0 {
        below.next_multiple_of(BLOCK)
    } else {
        size
    };
    if size < below {
        let reason = format!("{size} bytes are less than the {below} of the layers below");
        return Err(refuse(reason));
    }
    if size == 0 || !size.is_multiple_of(BLOCK) || size > obd_service::MAX_SIZE {
        let reason = format!("a read-write disk cannot have {size} bytes");
        return Err(refuse(reason));
    }
    let names: Option<Vec<String>> = paths
        .into_iter()
        .map(|path| path.into_os_string().into_string().ok())
        .collect();
    let names = names.ok_or_else(|| refuse("a layer's path is no UTF-8".into()))?;
    let store = match store {
        Some(device) => {
            let path = fs::canonicalize(device);
            let path = path.map_err(|error| Error::io("find", device, error))?;
            let path = path.into_os_string().into_string();
            Some(open_store(path.map_err(|_| {
                refuse("the store's path is no UTF-8".into())
            })?)?)
        }
        None => None,
    };
    if let Some((shared, store, _)) = &store
        && !store.state().layers.is_empty()
    {
        return Err(Error::Busy {
            path: shared.identity().name.clone().into(),
            reason: "has layers: a disk's store is its own (obd store init)".into(),
        });
    }
    let directory = Directory::create(dir).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::Present(dir.into()),
        _ => Error::io("create", dir, error),
    })?;
    // Without it nobody would know how large the disk is.
    let base = size != below;
    match store {
        None => Device::create(&directory, size, &names, base)?,
        Some((shared, store, path)) => {
            let folder = Stored::new(directory, &shared, store, path).map_err(wrong_store)?;
            Device::create(&folder, size, &names, base)?;
        }
    }
    if json {
        crate::print_json(&Created {
            dir,
            size,
            layers: names.len() + usize::from(base),
        });
    } else {
        ui::print(&format!("{}: {size} bytes", dir.display()));
    }
    Ok(())
}

/// The store on a block device or in a file, to be written to by this process alone.
type OpenStore = (Arc<Shared>, Store, String);

fn open_store(path: String) -> Result<OpenStore> {
    let purpose = Purpose::Own(Force::Holds(guard::STORE));
    // Less than a converter's: a few layers are written at a time, for as long as the disk
    // is there.
    let options = uring::Options {
        depth: 16,
        buffers: 16,
        ..uring::Options::default()
    };
    let engine = Uring::open(Path::new(&path), purpose, &options);
    let engine = engine.map_err(Error::Engine)?;
    let shared = Arc::new(Shared::new(Box::new(engine)));
    let store = Store::open(Arc::clone(&shared), true).map_err(Error::Store)?;
    Ok((shared, store, path))
}

/// The store that a disk has its layers in, if it has one.
fn store_of(directory: &Directory) -> Result<Option<OpenStore>> {
    match Device::look(directory)?.obd.store {
        Some(place) => open_store(place.device).map(Some),
        None => Ok(None),
    }
}

fn wrong_store(reason: String) -> Error {
    Error::Service(obd_service::Error::Image {
        name: obd_service::image::NAME.into(),
        reason,
    })
}

/// The layers that are named, or those of the configuration that is.
fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let config = match named {
        [config] if config.extension().is_some_and(|name| name == "json") => config,
        _ => return Ok(named.to_vec()),
    };
    config::layers(config)?
        .into_iter()
        .map(|layer| match layer.index {
            None => Ok(layer.place.path),
            Some(_) => Err(Error::Config {
                path: layer.place.path,
                reason: "is still written to; seal or commit it first".into(),
            }),
        })
        .collect()
}

impl WriteArgs {
    /// Whether the disk is to be written to.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.writable
    }
}

impl WorkArgs {
    fn options(&self) -> Options {
        Options {
            layer: layer_options(self.threads, &self.compression),
            max_layers: self.max_layers.into(),
            log: self.log,
            ..Options::default()
        }
    }
}

/// How layers are written.
fn layer_options(
    threads: Option<NonZero<usize>>,
    compression: &CompressionArgs,
) -> obd_writer::Options {
    let threads = threads.unwrap_or_else(|| {
        let all = available_parallelism().map_or(1, NonZero::get);
        NonZero::new(all.min(THREADS)).unwrap_or(NonZero::<usize>::MIN)
    });
    obd_writer::Options {
        threads: threads.min(obd_writer::Options::MAX_THREADS),
        compression: compression.compression(true),
        ..obd_writer::Options::default()
    }
}

/// Runs `obd attach --writable`.
pub(crate) fn attach(args: &attach::Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let [dir] = args.stack.named() else {
        return Err(Error::Layer {
            path: args.stack.named().first().cloned().unwrap_or_default(),
            reason: "a read-write disk is one folder".into(),
        });
    };
    if args.serve.is_detached() {
        return userspace::spawn();
    }
    let directory = lock(dir)?;
    let at = directory.at().to_owned();
    match store_of(&directory)? {
        None => attach_folder(&directory, &at, args, json, interrupted),
        Some((shared, store, path)) => {
            let folder = Stored::new(directory, &shared, store, path).map_err(wrong_store)?;
            attach_folder(&folder, &at, args, json, interrupted)
        }
    }
}

/// Attaches the disk in the folder `at`, which is locked.
fn attach_folder(
    folder: &impl Folder<Log = fs::File>,
    at: &Path,
    args: &attach::Args,
    json: bool,
    interrupted: &Arc<AtomicBool>,
) -> Result<()> {
    if let Some(writing) = Writing::in_folder(at) {
        // It lost its writer: the lock is ours.
        return take(folder, writing, &args.write.work, json, interrupted);
    }
    let mut device = Device::open(folder)?;
    // What was flushed, and in no layer when the power failed.
    let options = args.write.work.options().layer;
    let (records, damage) = match args.write.salvage {
        true => device.salvage(&options)?,
        false => (device.recover(&options)?, None),
    };
    if let Some(damage) = damage {
        eprintln!("{}: the log is given up: {damage}", at.display());
    }
    if records > 0 {
        eprintln!(
            "{}: {records} records of the log became a layer",
            at.display()
        );
    }
    let driver = Driver::new(args.configfs.as_deref())?;
    let made = driver.create(args.name.as_deref())?;
    let how = Writable {
        volatile: args.write.volatile,
        memory: args.write.memory,
        commit_bytes: args.write.commit_bytes,
        commit_ms: args.write.commit_age,
        writer_ms: args.write.writer_timeout,
    };
    let attached = made
        .attach_writable(&device.paths(), &how)
        .and_then(|disk| {
            let disk = disk.file_name().map(|name| name.to_string_lossy());
            let disk = disk.unwrap_or_default().into_owned();
            let writing = Writing {
                pid: std::process::id(),
                alive: true,
                dir: at.into(),
                name: made.name().to_owned(),
                sequence: sequence(&disk).unwrap_or_default(),
                disk,
                boot: boot(),
                stats: Stats::default(),
            };
            let writer = bind(device, &writing, &args.write.work)?;
            Ok((writing, writer))
        });
    match attached {
        Ok((writing, writer)) => run(writer, writing, json, interrupted),
        Err(error) => {
            // It was made for this only; why it failed says more than that
            // it cannot be removed.
            let _ = made.detach(false, interrupted);
            Err(error)
        }
    }
}

/// Runs `obd writer`.
pub(crate) fn writer(args: &WriterArgs, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    if !args.foreground && !userspace::detaches() {
        return userspace::spawn();
    }
    let directory = lock(&args.dir)?;
    let Some(writing) = Writing::in_folder(directory.at()) else {
        return Err(Error::Busy {
            path: args.dir.clone(),
            reason: "is not attached".into(),
        });
    };
    match store_of(&directory)? {
        None => take(&directory, writing, &args.work, json, interrupted),
        Some((shared, store, path)) => {
            let folder = Stored::new(directory, &shared, store, path).map_err(wrong_store)?;
            take(&folder, writing, &args.work, json, interrupted)
        }
    }
}

/// Becomes the writer of a disk.
fn bind<'a, F: Folder<Log = fs::File>>(
    device: Device<'a, F>,
    writing: &Writing,
    work: &WorkArgs,
) -> Result<Writer<'a, F, kernel::Driver>> {
    let minor = writing.disk.strip_prefix("obd").map(str::parse);
    let Some(Ok(minor)) = minor else {
        return Err(Error::Device {
            name: writing.disk.clone(),
            reason: "is no disk of the driver's",
        });
    };
    // Before it has threads, which are all to have it so: memory for what it does
    // must not be waited for until what it does is done.
    if let Err(errno) = configure_io_flusher_behavior(true) {
        eprintln!("warning: cannot be an I/O flusher: {errno}");
    }
    // Best effort: it is told apart only where memory has run out.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let driver = kernel::Driver::bind(minor).map_err(|error| {
        let disk = Path::new("/dev").join(&writing.disk);
        Error::io("become the writer of", disk, error)
    })?;
    Ok(Writer::new(device, driver, work.options())?)
}

/// Becomes the writer of a disk that lost its own.
fn take(
    folder: &impl Folder<Log = fs::File>,
    writing: Writing,
    work: &WorkArgs,
    json: bool,
    interrupted: &Arc<AtomicBool>,
) -> Result<()> {
    let device = Device::open(folder)?;
    let writing = Writing {
        pid: std::process::id(),
        alive: true,
        stats: Stats::default(),
        ..writing
    };
    let writer = bind(device, &writing, work)?;
    run(writer, writing, json, interrupted)
}

/// Makes layers for as long as the disk is there.
fn run<F: Folder<Log = fs::File>>(
    mut writer: Writer<'_, F, kernel::Driver>,
    mut writing: Writing,
    json: bool,
    interrupted: &Arc<AtomicBool>,
) -> Result<()> {
    let compact = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&compact))
        .map_err(|error| Error::io("catch signals of", "this process", error))?;
    let state = Writing::path(&writing.name);
    writing
        .write()
        .map_err(|error| Error::io("write", &state, error))?;
    let detaches = userspace::detaches();
    let sink = match detaches {
        true => userspace::kernel_log()?,
        false => userspace::stderr(),
    };
    let attached = Attached {
        name: writing.name.clone(),
        device: Path::new("/dev").join(&writing.disk),
    };
    attach::announce(&attached, json);
    if detaches {
        userspace::leave()?;
    }
    let disk = writing.disk.clone();
    let mut written = Instant::now();
    let ended = writer.run(
        &Signals {
            stop: Some(interrupted),
            compact: Some(&compact),
        },
        &mut Told {
            log: &|line| sink(&format!("{disk}: {line}")),
            stats: &mut |stats| {
                writing.stats = *stats;
                if written.elapsed() >= INTERVAL {
                    written = Instant::now();
                    // Nobody needs it to be there.
                    let _ = writing.write();
                }
            },
        },
    );
    let stats = writer.stats();
    if json && !detaches {
        crate::print_json(&stats);
    }
    match ended {
        Ok(End::Gone) => {
            userspace::remove(&state);
            Ok(())
        }
        Ok(End::Stopped) => {
            writing.stats = stats;
            // As above.
            let _ = writing.write();
            sink(&format!("{disk}: its writer was told to end"));
            Ok(())
        }
        Err(error) => {
            sink(&format!("{disk}: its writer ends: {error}"));
            match detaches {
                true => Err(Error::Reported(3)),
                false => Err(error.into()),
            }
        }
    }
}

/// What was merged.
#[derive(Serialize)]
struct Compacted {
    /// Layers that became one.
    merged: usize,
    /// Layers there are now.
    layers: usize,
    /// Whether the writer was asked, and may not be done.
    asked: bool,
}

/// Merges layers of a disk that is not attached; how many became one, and are there.
fn compact_folder(
    folder: &impl Folder,
    depth: Depth,
    options: &obd_writer::Options,
    interrupted: &AtomicBool,
) -> Result<(Option<usize>, usize)> {
    let merged = obd_service::compact(folder, depth, options, interrupted)?;
    Ok((merged, Device::look(folder)?.lowers.len()))
}

/// Runs `obd compact`.
pub(crate) fn compact(args: &CompactArgs, json: bool, interrupted: &AtomicBool) -> Result<()> {
    let dir = fs::canonicalize(&args.dir).map_err(|error| Error::io("find", &args.dir, error))?;
    let refuse = |reason: &str| Error::Busy {
        path: dir.clone(),
        reason: reason.into(),
    };
    if let Some(writing) = Writing::in_folder(&dir) {
        if args.all {
            return Err(refuse("is attached: only its own layers can be merged"));
        }
        if !writing.alive {
            return Err(refuse("is attached, and has no writer (obd writer)"));
        }
        let pid = i32::try_from(writing.pid).ok().and_then(Pid::from_raw);
        let asked = pid.map(|pid| kill_process(pid, Signal::USR1));
        match asked {
            Some(Ok(())) => {}
            _ => return Err(refuse("its writer cannot be asked")),
        }
        let done = Compacted {
            merged: 0,
            layers: writing.stats.layers,
            asked: true,
        };
        match json {
            true => crate::print_json(&done),
            false => ui::print(&format!("{}: its writer was asked", dir.display())),
        }
        return Ok(());
    }
    let directory = lock(&dir)?;
    let depth = match args.all {
        true => Depth::All,
        false => Depth::Own,
    };
    let options = layer_options(None, &args.compression);
    let (merged, layers) = match store_of(&directory)? {
        None => compact_folder(&directory, depth, &options, interrupted)?,
        Some((shared, store, path)) => {
            let folder = Stored::new(directory, &shared, store, path).map_err(wrong_store)?;
            compact_folder(&folder, depth, &options, interrupted)?
        }
    };
    let merged = merged.unwrap_or(0);
    match json {
        true => crate::print_json(&Compacted {
            merged,
            layers,
            asked: false,
        }),
        false => ui::print(&format!(
            "{}: {merged} layers became one, {layers} there are",
            dir.display()
        )),
    }
    Ok(())
}
