// SPDX-License-Identifier: MIT

//! What `obd commit` and `obd convert` have in common: how a layer is written,
//! and what is said of it.

use crate::error::{
    Error,
    Result, //
};
use crate::ui::{
    self,
    Progress, //
};
use obd_engine::stats::Summary;
use obd_engine::{
    Shared,
    Uring,
    uring, //
};
use obd_store::file::EngineFile;
use obd_writer::{
    Algorithm,
    Compression,
    FileSink,
    Options,
    Source,
    Stats,
    TargetError, //
};
use rustix::time::{
    ClockId,
    clock_gettime, //
};
use serde::Serialize;
use std::fmt::Display;
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;
use std::time::{
    Duration,
    Instant, //
};
use uuid::Uuid;

/// A layer that is written, and how.
#[derive(clap::Args)]
pub(crate) struct WriteArgs {
    /// The layer to write.
    #[arg(short, long, value_name = "LAYER")]
    pub(crate) output: PathBuf,

    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// How a layer is written: of no use where none is.
#[derive(clap::Args)]
#[group(requires = "output", args = [
    "force", "tar", "engine", "algorithm", "block_size", "no_checksums", "threads", "uuid",
    "parent_uuid", "message",
])]
pub(crate) struct HowArgs {
    /// Replace the file if it exists.
    #[arg(short, long)]
    force: bool,

    /// Wrap the layer in tar, as registries want it.
    #[arg(long)]
    tar: bool,

    /// How the file is written: around the page cache by io_uring, or through it.
    #[arg(long, value_enum, default_value_t = Way::Uring)]
    engine: Way,

    #[command(flatten)]
    layer: LayerArgs,
}

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    Uring,
    Cache,
}

/// How blocks of layers are compressed.
#[derive(clap::Args)]
pub(crate) struct CompressionArgs {
    /// How blocks are compressed; `none` writes a plain LSMT file.
    #[arg(long, value_enum, default_value_t = Codec::Lz4)]
    algorithm: Codec,

    /// KiB per compressed block: 4, 8, 16, 32 or 64.
    #[arg(long, value_name = "KIB", default_value_t = 4, value_parser = block_size)]
    block_size: u32,
}

impl CompressionArgs {
    /// The same for [`Options`].
    pub(crate) fn compression(&self, checksums: bool) -> Option<Compression> {
        let algorithm = match self.algorithm {
            Codec::Lz4 => Algorithm::Lz4,
            Codec::Zstd => Algorithm::Zstd,
            Codec::None => return None,
        };
        Some(Compression {
            algorithm,
            block_size: self.block_size << 10,
            checksums,
        })
    }
}

/// What a layer is like.
#[derive(clap::Args)]
pub(crate) struct LayerArgs {
    #[command(flatten)]
    compression: CompressionArgs,

    /// Leave out the checksums of blocks.
    #[arg(long)]
    no_checksums: bool,

    /// Threads that read and compress; all processors by default.
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,

    /// The layer's UUID; nil by default, so that equal layers are equal files.
    #[arg(long)]
    uuid: Option<Uuid>,

    /// The UUID of the layer below; by default that of the source.
    #[arg(long, value_name = "UUID")]
    parent_uuid: Option<Uuid>,

    /// A commit message.
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub(crate) message: String,
}

/// How blocks are compressed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Codec {
    Lz4,
    Zstd,
    None,
}

fn block_size(text: &str) -> std::result::Result<u32, String> {
    match text.parse() {
        Ok(kib @ (4 | 8 | 16 | 32 | 64)) => Ok(kib),
        _ => Err("4, 8, 16, 32 or 64 are possible".into()),
    }
}

/// What was written.
#[derive(Serialize)]
pub(crate) struct Written<'a> {
    output: &'a Path,
    /// Bytes of the image, of data in it, and of the file.
    virtual_size: u64,
    data: u64,
    stored: u64,
    segments: u64,
    zeroed_segments: u64,
    blocks: u64,
    oversized_blocks: u64,
    /// How often a byte of data was copied before it was compressed, and a byte of the
    /// file after.
    copies_per_byte: f64,
    copies_per_stored_byte: f64,
    threads: usize,
    seconds: f64,
    cpu_seconds: f64,
    /// Data per second, MiB.
    throughput: f64,
    /// What the engine did; none if the file went through the page cache.
    engine: Option<Summary>,
}

impl HowArgs {
    /// Writes what `source` holds to `path` and says so; `parent` is the UUID of the
    /// layer below as the source has it, `explain` an error of the source.
    pub(crate) fn write<S>(
        &self,
        path: &Path,
        source: &S,
        parent: Option<[u8; 36]>,
        json: bool,
        interrupted: &Arc<AtomicBool>,
        explain: impl Fn(S::Error) -> Error,
    ) -> Result<()>
    where
        S: Source<Error: Display>,
    {
        let options = Options {
            tar: self.tar,
            ..self.layer.options(parent)
        };
        let clock = Clock::start();
        let sink = FileSink::create(path, self.force).map_err(target_error)?;
        let mut shown = Shown::new("write", interrupted);
        let progress = |done, all| shown.advance(done, all);
        let device = match self.engine {
            Way::Uring => uring(&sink, path)?,
            Way::Cache => None,
        };
        let stats = match &device {
            Some(device) => {
                let sink = EngineFile::new(device, sink).map_err(Error::Engine)?;
                obd_writer::commit(source, sink, &options, progress)
            }
            None => obd_writer::commit(source, sink, &options, progress),
        };
        drop(shown);
        let stats = stats.map_err(|error| write_error(path, error, explain))?;
        let summary = device.map(|device| device.summary());
        report(path, &stats, &options, &clock, summary, json);
        Ok(())
    }
}

/// An engine on the file in the making; none, with a warning, where there is no
/// io_uring.
fn uring(sink: &FileSink, path: &Path) -> Result<Option<Shared>> {
    let file = sink.file().try_clone();
    let file = file.map_err(|error| Error::io("open", path, error))?;
    match Uring::on_file(file, path, &uring::Options::default()) {
        Ok(engine) => Ok(Some(Shared::new(Box::new(engine)))),
        Err(error) => {
            eprintln!("warning: {error}: writing through the page cache");
            Ok(None)
        }
    }
}

impl LayerArgs {
    /// Options without tar; `parent` is the UUID of the layer below as the source
    /// has it.
    pub(crate) fn options(&self, parent: Option<[u8; 36]>) -> Options {
        let mut options = Options {
            compression: self.compression.compression(!self.no_checksums),
            uuid: self.uuid.unwrap_or_default(),
            message: self.message.clone(),
            threads: self.threads.unwrap_or_else(|| {
                let all = available_parallelism().unwrap_or(NonZero::<usize>::MIN);
                all.min(Options::MAX_THREADS)
            }),
            ..Options::default()
        };
        if let Some(parent) = self.parent_uuid {
            parent.hyphenated().encode_upper(&mut options.parent_uuid);
        } else if let Some(parent) = parent {
            options.parent_uuid = parent;
        }
        options
    }
}

/// Progress, shown from the first time something is told.
pub(crate) struct Shown<'a> {
    what: &'static str,
    interrupted: &'a Arc<AtomicBool>,
    progress: Option<Progress>,
    before: u64,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(what: &'static str, interrupted: &'a Arc<AtomicBool>) -> Self {
        Self {
            what,
            interrupted,
            progress: None,
            before: 0,
        }
    }

    /// `done` of `all` bytes are done.
    pub(crate) fn advance(&mut self, done: u64, all: u64) -> ControlFlow<()> {
        let new = || Progress::new(self.what, all, self.interrupted);
        let progress = self.progress.get_or_insert_with(new);
        let advanced = progress.advance(done - self.before);
        self.before = done;
        match advanced {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Time, and processor time, since a start.
pub(crate) struct Clock {
    started: Instant,
    cpu: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            cpu: cpu_time(),
        }
    }
}

/// What went wrong in writing to `path`; `explain` knows the source's errors.
pub(crate) fn write_error<E: Display>(
    path: &Path,
    error: obd_writer::Error<E>,
    explain: impl Fn(E) -> Error,
) -> Error {
    use obd_writer::Error as Failed;
    match error {
        Failed::Ranges(error) | Failed::Reader(error) | Failed::Read { error, .. } => {
            explain(error)
        }
        Failed::Interrupted => Error::Interrupted,
        Failed::Write { error, .. } => Error::io("write", path, error),
        Failed::Finish(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Error::Exists(path.into())
        }
        Failed::Finish(error) => Error::io("finish", path, error),
        Failed::Thread(error) => Error::io("start a thread for", path, error),
        Failed::OutOfMemory(_) | Failed::Compress(_) => {
            Error::io("write", path, io::ErrorKind::OutOfMemory.into())
        }
        Failed::Option { .. } => Error::Layer {
            path: path.into(),
            reason: error.to_string(),
        },
        other => Error::Source {
            path: path.into(),
            reason: other.to_string(),
        },
    }
}

/// Says what was written to `output` since `clock` was started.
pub(crate) fn report(
    output: &Path,
    stats: &Stats,
    options: &Options,
    clock: &Clock,
    engine: Option<Summary>,
    json: bool,
) {
    let seconds = clock.started.elapsed().as_secs_f64();
    let mib = stats.data as f64 / f64::from(1 << 20);
    let throughput = if seconds > 0.0 { mib / seconds } else { 0.0 };
    if stats.oversized_blocks > 0 {
        eprintln!(
            "warning: {} blocks of 64 KiB grew, and overlaybd's own tools cannot read such: \
                 for them choose a smaller block size",
            stats.oversized_blocks
        );
    }
    if json {
        crate::print_json(&Written {
            output,
            virtual_size: stats.virtual_size,
            data: stats.data,
            stored: stats.stored,
            segments: stats.segments,
            zeroed_segments: stats.zeroed_segments,
            blocks: stats.blocks,
            oversized_blocks: stats.oversized_blocks,
            copies_per_byte: match stats.data {
                0 => 0.0,
                data => stats.copied as f64 / data as f64,
            },
            copies_per_stored_byte: stats.copied_stored as f64 / stats.stored as f64,
            threads: options.threads.get(),
            seconds,
            cpu_seconds: (cpu_time() - clock.cpu).as_secs_f64(),
            throughput,
            engine,
        });
    } else {
        ui::print(&format!(
            "{}: {mib:.1} MiB of data in {} segments, {} bytes stored, \
                 {seconds:.2} s ({throughput:.0} MiB/s)",
            output.display(),
            stats.segments,
            stats.stored,
        ));
    }
}

/// Why there is no file to write to.
pub(crate) fn target_error(error: TargetError) -> Error {
    match error {
        TargetError::Exists(path) => Error::Exists(path),
        TargetError::NotAFile(path) => Error::NotAFile(path),
        TargetError::Io { what, path, error } => Error::io(what, path, error),
        TargetError::BadSize { path, size } => Error::Layer {
            path,
            reason: format!("an image cannot have {size} bytes"),
        },
    }
}

/// Processor time of the whole process.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
