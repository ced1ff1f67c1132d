// SPDX-License-Identifier: MIT

//! Writing one layer.

use crate::content::Content;
use crate::error::Error;
use crate::lsmt::{
    self,
    Label, //
};
use crate::pipeline::{
    self,
    Blocks,
    Job, //
};
use crate::sink::Sink;
use crate::source::Source;
use crate::tar;
use crate::zfile::{
    self,
    Algorithm,
    Header,
    Part, //
};
use obd_core::Crc32c;
use obd_host::Hardware;
use std::num::NonZero;
use std::ops::ControlFlow;
use uuid::Uuid;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// With what.
    pub algorithm: Algorithm,
    /// In blocks of how many bytes: 4, 8, 16, 32 or 64 KiB.
    pub block_size: u32,
    /// Whether every block has a CRC-32C.
    pub checksums: bool,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Lz4,
            block_size: 4096,
            checksums: true,
        }
    }
}

/// How a layer is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stored as it is if [`None`].
    pub compression: Option<Compression>,
    /// Whether it is wrapped in tar, as a registry wants it.
    pub tar: bool,
    /// Its UUID; nil by default, so that equal layers are equal bytes.
    pub uuid: Uuid,
    /// The UUID of the layer below, 36 characters as stored in it; nil by
    /// default.
    pub parent_uuid: [u8; 36],
    /// The commit message, at most 255 bytes, none of them NUL.
    pub message: String,
    /// Threads that read and compress, [`Options::MAX_THREADS`] at most. One does it in the caller's
    /// thread; more leave writing alone to that one.
    pub threads: NonZero<usize>,
}

impl Options {
    /// Most threads.
    pub const MAX_THREADS: NonZero<usize> = NonZero::new(256).unwrap();
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compression: Some(Compression::default()),
            tar: false,
            uuid: Uuid::nil(),
            parent_uuid: lsmt::uuid_text(Uuid::nil()),
            message: String::new(),
            threads: NonZero::<usize>::MIN,
        }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Size of the image, bytes.
    pub virtual_size: u64,
    /// Segments of the index.
    pub segments: u64,
    /// Those of them that are zeros.
    pub zeroed_segments: u64,
    /// Entries of the index, padding included.
    pub index_entries: u64,
    /// Bytes of data.
    pub data: u64,
    /// Bytes of the LSMT file, before compression.
    pub content: u64,
    /// Bytes that were written.
    pub stored: u64,
    /// Compressed blocks, 0 if there are none.
    pub blocks: u64,
    /// Stored bytes of the longest block, checksum included.
    pub longest_block: u32,
    /// Blocks that became longer than 64 KiB, which upstream's readers refuse:
    /// only blocks of 64 KiB can.
    pub oversized_blocks: u64,
    /// Bytes of data that were copied from the source to a buffer of ours
    /// before they were compressed or written; [`Stats::data`] at most.
    pub copied: u64,
}

/// The state of one [`commit`].
struct Writer<K> {
    sink: K,
    /// Bytes appended.
    at: u64,
    /// The jump table as stored.
    table: Vec<u8>,
    stats: Stats,
}

impl<K: Sink> Writer<K> {
    fn append<E>(&mut self, bytes: &[u8]) -> Result<(), Error<E>> {
        self.sink.append(bytes).map_err(|error| Error::Write {
            offset: self.at,
            len: bytes.len() as u64,
            error,
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Writes what `source` holds as a layer to `sink` and finishes that. After
/// every 256 KiB or less `progress` is told how many bytes of the LSMT file are
/// done, and of how many, and can stop the whole.
///
/// # Errors
///
/// [`Error`]; the sink was dropped unfinished then, but for [`Error::Finish`].
pub fn commit<S: Source, K: Sink>(
    source: &S,
    sink: K,
    options: &Options,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Stats, Error<S::Error>> {
    let label = label(source, options)?;
    let blocks = options.compression.map(blocks).transpose()?;
    let content = Content::new(source, &label)?;
    let mut table = Vec::new();
    if let Some(blocks) = blocks {
        let len = content.size().div_ceil(blocks.size as u64) * 4;
        usize::try_from(len)
            .ok()
            .and_then(|len| table.try_reserve_exact(len).ok())
            .ok_or(Error::OutOfMemory(len))?;
    }
    let mut writer = Writer {
        sink,
        at: 0,
        table,
        stats: Stats {
            virtual_size: label.virtual_size,
            segments: content.segments,
            zeroed_segments: content.zeroed_segments,
            index_entries: content.index_entries(),
            data: content.data(),
            content: content.size(),
            stored: 0,
            blocks: 0,
            longest_block: 0,
            oversized_blocks: 0,
            copied: 0,
        },
    };

    // Nothing a reader takes for a layer, until it is one.
    let front = if options.tar { tar::SPACE } else { 0 };
    writer.append(&[0; tar::SPACE][..front])?;
    let mut header = Header {
        index_offset: 0,
        blocks: 0,
        original_size: 0,
        index_crc: 0,
        block_size: 0,
        algorithm: Algorithm::Lz4,
        checksums: false,
    };
    if let Some(blocks) = blocks {
        // One of five sizes: fits.
        header.block_size = blocks.size as u32;
        header.algorithm = blocks.algorithm;
        header.checksums = blocks.checksums;
        writer.append(&header.encode(Part::Draft))?;
    }

    let job = Job {
        source,
        content: &content,
        blocks,
    };
    let mut done = 0;
    pipeline::run(&job, options.threads.get(), |output| {
        for len in &output.lens {
            writer.table.extend_from_slice(&len.to_le_bytes());
            writer.stats.longest_block = writer.stats.longest_block.max(*len);
            writer.stats.oversized_blocks += u64::from(*len > zfile::LONGEST_UPSTREAM);
        }
        writer.stats.blocks += output.lens.len() as u64;
        writer.stats.copied += output.copied;
        writer.append(output.stored())?;
        done += output.content;
        match progress(done, content.size()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    })?;

    let mut first = Vec::new();
    if blocks.is_some() {
        let table = std::mem::take(&mut writer.table);
        header.index_offset = writer.at - front as u64;
        header.blocks = writer.stats.blocks;
        header.original_size = content.size();
        header.index_crc = Hardware::crc32c(0, &table);
        writer.append(&table)?;
        writer.append(&header.encode(Part::Trailer))?;
        first.extend_from_slice(&header.encode(Part::Header));
    }
    if options.tar {
        let payload = writer.at - front as u64;
        writer.append(&vec![0; tar::padding(payload)])?;
        first.splice(..0, tar::header(payload));
    }
    writer.stats.stored = writer.at;
    if !first.is_empty() {
        let len = first.len() as u64;
        writer
            .sink
            .overwrite(&first)
            .map_err(|error| Error::Write {
                offset: 0,
                len,
                error,
            })?;
    }
    writer.sink.finish().map_err(Error::Finish)?;
    Ok(writer.stats)
}

fn label<S: Source>(source: &S, options: &Options) -> Result<Label, Error<S::Error>> {
    let wrong = |name, value| Err(Error::Option { name, value });
    let message = options.message.as_bytes();
    if message.len() > lsmt::MAX_MESSAGE {
        return wrong("message", format!("{} bytes long", message.len()));
    }
    if message.contains(&0) {
        return wrong("message", "with a NUL character".into());
    }
    if options.threads > Options::MAX_THREADS {
        return wrong("number of threads", options.threads.to_string());
    }
    Ok(Label {
        virtual_size: source.size(),
        uuid: lsmt::uuid_text(options.uuid),
        parent: options.parent_uuid,
        message: message.to_vec(),
    })
}

fn blocks<E>(compression: Compression) -> Result<Blocks, Error<E>> {
    let size = compression.block_size;
    if !size.is_power_of_two() || !(4 << 10..=64 << 10).contains(&size) {
        return Err(Error::Option {
            name: "block size",
            value: size.to_string(),
        });
    }
    #[cfg(not(feature = "zstd"))]
    if compression.algorithm == Algorithm::Zstd {
        return Err(Error::Option {
            name: "algorithm",
            value: "zstd: it was not compiled in".into(),
        });
    }
    Ok(Blocks {
        algorithm: compression.algorithm,
        size: size as usize,
        checksums: compression.checksums,
    })
}
