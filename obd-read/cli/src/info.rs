// SPDX-License-Identifier: MIT

//! `obd info`: what a file says of itself.

use crate::error::Result;
use crate::open::{
    self,
    Layer,
    ZFile, //
};
use crate::ui;
use obd_core::lsmt::{
    Kind,
    Opened, //
};
use obd_core::zfile::Algorithm;
use serde::Serialize;
use std::path::{
    Path,
    PathBuf, //
};

/// Say what a file is: wrapper, compression, sizes, segments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A layer or a zfile.
    file: PathBuf,
}

/// What is said of a file.
#[derive(Serialize)]
pub(crate) struct FileInfo {
    file: PathBuf,
    /// Size of the file, bytes.
    size: u64,
    /// First byte behind the tar wrapper; 0 without one.
    payload_offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    zfile: Option<ZFileInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<LayerInfo>,
}

#[derive(Serialize)]
struct ZFileInfo {
    algorithm: &'static str,
    block_size: u32,
    blocks: u64,
    original_size: u64,
    stored_size: u64,
    block_checksums: bool,
    header_checksums: bool,
    header_overwritten: bool,
    index_compressed: bool,
}

#[derive(Serialize)]
struct LayerInfo {
    kind: &'static str,
    virtual_size: u64,
    segments: u64,
    zeroed_segments: u64,
    uuid: String,
    parent_uuid: String,
    message: String,
}

impl FileInfo {
    /// Looks at the file at `path`.
    pub(crate) fn new(path: &Path, opened: &Opened<obd_host::File, obd_host::Host>) -> Self {
        let (zfile, layer) = match opened {
            Opened::ZFile(zfile) => (Some(zfile), None),
            Opened::Layer(layer) => (layer.zfile(), Some(layer)),
        };
        let window = match (zfile, layer.and_then(Layer::plain)) {
            (Some(zfile), _) => Some(zfile.file()),
            (None, plain) => plain,
        };
        Self {
            file: path.into(),
            size: window.map_or(0, |window| obd_core::Source::size(window.source())),
            payload_offset: window.map_or(0, obd_core::Window::start),
            zfile: zfile.map(ZFileInfo::new),
            layer: layer.map(LayerInfo::new),
        }
    }

    fn print(&self) {
        ui::print(&format!("file            {}", self.file.display()));
        ui::print(&format!("size            {}", self.size));
        if self.payload_offset > 0 {
            ui::print(&format!(
                "tar wrapper     payload at byte {}",
                self.payload_offset
            ));
        }
        if let Some(zfile) = &self.zfile {
            ui::print(&format!(
                "zfile           {}, {} blocks of {} bytes",
                zfile.algorithm, zfile.blocks, zfile.block_size
            ));
            ui::print(&format!(
                "  content       {} bytes, stored as {}",
                zfile.original_size, zfile.stored_size
            ));
            ui::print(&format!(
                "  checksums     blocks: {}, header and jump table: {}",
                yes(zfile.block_checksums),
                yes(zfile.header_checksums)
            ));
            ui::print(&format!(
                "  final header  {}",
                yes(zfile.header_overwritten)
            ));
            ui::print(&format!("  packed table  {}", yes(zfile.index_compressed)));
        }
        if let Some(layer) = &self.layer {
            ui::print(&format!("layer           {}", layer.kind));
            ui::print(&format!("  virtual size  {}", layer.virtual_size));
            ui::print(&format!(
                "  segments      {}, {} of them zeros",
                layer.segments, layer.zeroed_segments
            ));
            ui::print(&format!("  uuid          {}", layer.uuid));
            ui::print(&format!("  parent        {}", layer.parent_uuid));
            if !layer.message.is_empty() {
                ui::print(&format!("  message       {}", layer.message));
            }
        }
    }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Text of a file for the terminal: control characters escaped.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .chars()
        .flat_map(|c| {
            let plain = (!c.is_control()).then_some(c);
            plain
                .into_iter()
                .chain(c.escape_default().filter(move |_| plain.is_none()))
        })
        .collect()
}

impl ZFileInfo {
    fn new(zfile: &ZFile) -> Self {
        let info = zfile.info();
        Self {
            algorithm: match info.algorithm {
                Algorithm::Lz4 => "lz4",
                Algorithm::Zstd => "zstd",
            },
            block_size: info.block_size,
            blocks: info.blocks,
            original_size: info.original_size,
            stored_size: info.stored_size,
            block_checksums: info.verify,
            header_checksums: info.digest,
            header_overwritten: info.header_overwritten,
            index_compressed: info.index_compressed,
        }
    }
}

impl LayerInfo {
    fn new(layer: &Layer) -> Self {
        let info = layer.info();
        Self {
            kind: match info.kind {
                Kind::Committed => "committed",
                Kind::Sealed => "sealed",
                Kind::SealedSparse => "sealed, sparse",
                Kind::Log => "read-write",
                Kind::Sparse => "read-write, sparse",
            },
            virtual_size: info.virtual_size,
            segments: info.segments,
            zeroed_segments: info.zeroed_segments,
            uuid: text(info.label.uuid()),
            parent_uuid: text(info.label.parent_uuid()),
            message: text(info.label.message()),
        }
    }
}

/// Runs `obd info`.
pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let info = FileInfo::new(&args.file, &open::probe(&args.file)?);
    match json {
        true => crate::print_json(&info),
        false => info.print(),
    }
    Ok(())
}
