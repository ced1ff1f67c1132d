// SPDX-License-Identifier: MIT

//! `obd store`: layers on a raw namespace.

use crate::convert::RawArgs;
use crate::device::DeviceArgs;
use crate::error::{
    Error,
    Result, //
};
use crate::export::{
    Written,
    export_image, //
};
use crate::open::{
    Stack,
    StackArgs,
    is_no_disks, //
};
use crate::output::Output;
use crate::ui;
use crate::write::{
    self,
    Clock,
    LayerArgs,
    Shown, //
};
use obd_engine::guard::{
    Force,
    STORE, //
};
use obd_engine::{
    Identity,
    Shared, //
};
use obd_store::format::Entry;
use obd_store::{
    CommitError,
    Committed,
    How,
    Store, //
};
use obd_writer::source::ImageSource;
use obd_writer::{
    Options,
    Source, //
};
use serde::Serialize;
use std::fmt::Display;
use std::ops::Range;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use uuid::Uuid;

/// Layers on a raw namespace, a partition or a file: written by this process,
/// read by it and by the kernel.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make an empty store of all of a device.
    Init {
        #[command(flatten)]
        device: DeviceArgs,
        /// Whatever the device holds.
        #[arg(long)]
        force: bool,
    },
    /// Say what a store holds.
    List {
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Write layers as one new layer on top; goes on where an interrupted
    /// commit of the same left off.
    Commit {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        resume: ResumeArgs,
        #[command(flatten)]
        layer: LayerArgs,
        #[command(flatten)]
        stack: StackArgs,
    },
    /// Write a raw image as a new layer on top; goes on as a commit does.
    Convert {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        resume: ResumeArgs,
        #[command(flatten)]
        layer: LayerArgs,
        #[command(flatten)]
        raw: RawArgs,
    },
    /// Write layers as one in their place, and discard their space.
    Merge {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        layers: RangeArgs,
        #[command(flatten)]
        journal: JournalArgs,
        #[command(flatten)]
        layer: LayerArgs,
    },
    /// Decode layers to a raw image.
    Export {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        layers: RangeArgs,
        /// The file to write.
        #[arg(short, long, value_name = "RAW")]
        output: PathBuf,
        /// Replace the file if it exists.
        #[arg(short, long)]
        force: bool,
    },
    /// Discard free space; gives up an interrupted commit.
    Trim {
        #[command(flatten)]
        device: DeviceArgs,
    },
}

/// Going on with what was interrupted.
#[derive(clap::Args)]
struct ResumeArgs {
    /// Fail unless an interrupted one of the same can go on; what that has is not
    /// given up.
    #[arg(long)]
    resume: bool,
}

#[derive(clap::Args)]
struct JournalArgs {
    /// MiB of content between two entries of the journal: what an interruption
    /// costs at most.
    #[arg(long, value_name = "MIB", default_value_t = How::INTERVAL >> 20,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    interval: u64,
}

#[derive(clap::Args)]
struct RangeArgs {
    /// The first layer, counted from 0 at the bottom.
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: usize,

    /// The layer behind the last one; all by default.
    #[arg(long, value_name = "N")]
    to: Option<usize>,
}

impl RangeArgs {
    fn of(&self, store: &Store) -> Range<usize> {
        self.from..self.to.unwrap_or(store.state().layers.len())
    }
}

/// Runs `obd store`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    match &args.command {
        Command::Init { device, force } => {
            let force = if *force { Force::Yes } else { Force::No };
            device.is_not_read()?;
            let store = Store::create(Arc::new(device.open(Some(force), force)?));
            list(&store.map_err(Error::Store)?, json);
            Ok(())
        }
        Command::List { device } => {
            list(&open(device, false)?, json);
            Ok(())
        }
        Command::Commit {
            device,
            journal,
            resume,
            layer,
            stack,
        } => {
            let (stacked, identity) = stack.open_known(interrupted)?;
            let stacked = match stacked {
                Stack::Image(stacked) => stacked,
                Stack::ZFile(path, _) => {
                    return Err(Error::Source {
                        path,
                        reason: "a zfile, but no layer: export it, then convert that".into(),
                    });
                }
            };
            let source = ImageSource::new(&stacked.image);
            let options = layer.options(source.parent_uuid().try_into().ok());
            let what = Commit {
                device,
                journal,
                resume: resume.resume,
                layer,
                options,
                identity,
            };
            what.run(&source, json, interrupted, |error| stacked.error(error))
        }
        Command::Convert {
            device,
            journal,
            resume,
            layer,
            raw,
        } => {
            let (source, identity) = raw.open()?;
            let what = Commit {
                device,
                journal,
                resume: resume.resume,
                layer,
                options: layer.options(None),
                identity,
            };
            let path = raw.path();
            what.run(&source, json, interrupted, |error| {
                Error::io("read", path, error)
            })
        }
        Command::Merge {
            device,
            layers,
            journal,
            layer,
        } => {
            device.is_not_read()?;
            let mut store = open_stack(device, true)?;
            let options = layer.options(None);
            let clock = Clock::start();
            let mut shown = Shown::new("merge", interrupted);
            let range = layers.of(&store);
            let merged = store.merge(range, &options, journal.interval << 20, |done, all| {
                shown.advance(done, all)
            });
            drop(shown);
            let merged = merged.map_err(|error| {
                failed(&device.device, error, |error| Error::Stack(error.error))
            })?;
            said(device, &store, &merged, &options, &clock, json);
            Ok(())
        }
        Command::Export {
            device,
            layers,
            output,
            force,
        } => {
            let store = open_stack(device, false)?;
            let image = store.image(layers.of(&store)).map_err(Error::Store)?;
            let file = Output::create(output, image.size(), *force)?;
            let fail = |error: obd_core::error::LayerError<_>| Error::Stack(error.error);
            let size = image.size();
            let data = export_image(&image, fail, &file, interrupted)?;
            file.finish()?;
            if json {
                crate::print_json(&Written { output, size, data });
            }
            Ok(())
        }
        Command::Trim { device } => {
            device.is_not_read()?;
            let mut store = open(device, true)?;
            store.abandon().map_err(Error::Store)?;
            let trimmed = store.trim().map_err(Error::Store)?;
            let device = &device.device;
            match json {
                true => crate::print_json(&Trimmed { device, trimmed }),
                false => ui::print(&format!("{device}: {trimmed} bytes discarded")),
            }
            Ok(())
        }
    }
}

fn open(device: &DeviceArgs, write: bool) -> Result<Store> {
    let force = Force::Holds(STORE);
    let shared: Shared = device.open(write.then_some(force), force)?;
    Store::open(Arc::new(shared), write).map_err(Error::Store)
}

/// Opens a store whose layers are an image: no read-write disk's.
fn open_stack(device: &DeviceArgs, write: bool) -> Result<Store> {
    let store = open(device, write)?;
    let names = store.state().layers.iter().map(Entry::name);
    is_no_disks(Path::new(&device.device), names)?;
    Ok(store)
}

/// A layer to be written on top.
struct Commit<'a> {
    device: &'a DeviceArgs,
    journal: &'a JournalArgs,
    resume: bool,
    layer: &'a LayerArgs,
    options: Options,
    identity: [u8; 16],
}

impl Commit<'_> {
    fn run<S: Source<Error: Display>>(
        &self,
        source: &S,
        json: bool,
        interrupted: &Arc<AtomicBool>,
        explain: impl Fn(S::Error) -> Error,
    ) -> Result<()> {
        let mut store = open_stack(self.device, true)?;
        let count = store.state().layers.len();
        let how = How {
            identity: self.identity,
            // What fits; all of it is in the layer.
            name: shorten(&self.layer.message).to_owned(),
            replace: count..count,
            interval: self.journal.interval << 20,
            resume: self.resume,
        };
        let clock = Clock::start();
        let mut shown = Shown::new("write", interrupted);
        let committed = store.commit(source, &self.options, &how, |done, all| {
            shown.advance(done, all)
        });
        drop(shown);
        let committed = committed.map_err(|error| failed(&self.device.device, error, explain))?;
        said(self.device, &store, &committed, &self.options, &clock, json);
        Ok(())
    }
}

/// The beginning of `text` that can be a layer's name.
fn shorten(text: &str) -> &str {
    let mut end = text.len().min(obd_store::format::MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn failed<E: Display>(device: &str, error: CommitError<E>, explain: impl Fn(E) -> Error) -> Error {
    match error {
        CommitError::Store(error) => Error::Store(error),
        CommitError::Write(error) => write::write_error(Path::new(device), error, explain),
    }
}

fn said(
    device: &DeviceArgs,
    store: &Store,
    committed: &Committed,
    options: &Options,
    clock: &Clock,
    json: bool,
) {
    let path = Path::new(&device.device);
    if committed.resumed_at > 0 {
        eprintln!(
            "{}: an interrupted commit went on at byte {}",
            device.device, committed.resumed_at
        );
    }
    let summary = store.device().summary();
    write::report(path, &committed.stats, options, clock, Some(summary), json);
}

#[derive(Serialize)]
struct Trimmed<'a> {
    device: &'a str,
    /// Bytes.
    trimmed: u64,
}

#[derive(Serialize)]
struct Listed<'a> {
    device: &'a Identity,
    uuid: String,
    generation: u64,
    size: u64,
    free: u64,
    largest_free: u64,
    /// A commit that can go on.
    interrupted: bool,
    layers: Vec<ListedLayer<'a>>,
}

#[derive(Serialize)]
struct ListedLayer<'a> {
    offset: u64,
    length: u64,
    virtual_size: u64,
    data: u64,
    uuid: String,
    generation: u64,
    name: &'a str,
}

fn list(store: &Store, json: bool) {
    let state = store.state();
    let free = store.free();
    let layers = state.layers.iter().map(|layer| ListedLayer {
        offset: layer.extent.start,
        length: layer.len,
        virtual_size: layer.virtual_size,
        data: layer.data,
        uuid: Uuid::from_bytes(layer.uuid).to_string(),
        generation: layer.id,
        name: layer.name(),
    });
    let listed = Listed {
        device: store.device().identity(),
        uuid: Uuid::from_bytes(state.uuid).to_string(),
        generation: state.generation,
        size: state.size,
        free: free.iter().map(|piece| piece.len).sum(),
        largest_free: free.iter().map(|piece| piece.len).max().unwrap_or(0),
        interrupted: state.pending.is_some(),
        layers: layers.collect(),
    };
    if json {
        return crate::print_json(&listed);
    }
    ui::print(&format!(
        "{}: {} {}, store {}, generation {}, {} of {} bytes free{}",
        listed.device.name,
        listed.device.model,
        listed.device.serial,
        listed.uuid,
        listed.generation,
        listed.free,
        listed.size,
        if listed.interrupted {
            ", a commit was interrupted"
        } else {
            ""
        },
    ));
    for (n, layer) in listed.layers.iter().enumerate() {
        ui::print(&format!(
            "{n}: {} bytes at {}, image of {} bytes, {} of data, generation {} {}",
            layer.length,
            layer.offset,
            layer.virtual_size,
            layer.data,
            layer.generation,
            layer.name
        ));
    }
}
