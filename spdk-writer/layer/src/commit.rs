// SPDX-License-Identifier: MIT

//! Writing one layer.

use crate::content::Content;
use crate::error::Error;
use crate::lsmt::{
    self,
    Label, //
};
use crate::options::{
    Compression,
    Options,
    Stats, //
};
use crate::pipeline::{
    self,
    Batch,
    Blocks,
    Job,
    Target, //
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
use std::ops::ControlFlow;

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
        self.stats.copied_stored += bytes.len() as u64;
        Ok(())
    }

    /// Counts blocks of `lens` stored bytes.
    fn count(&mut self, lens: &[u32]) {
        for len in lens {
            self.table.extend_from_slice(&len.to_le_bytes());
            self.stats.longest_block = self.stats.longest_block.max(*len);
            self.stats.oversized_blocks += u64::from(*len > zfile::LONGEST_UPSTREAM);
        }
        self.stats.blocks += lens.len() as u64;
    }
}

/// A writer in the middle of its batches.
struct Batches<'a, K, P> {
    writer: &'a mut Writer<K>,
    /// Bytes of the layer that are done, and of all of it.
    done: u64,
    size: u64,
    progress: P,
}

impl<E, K, P> Target<Error<E>> for Batches<'_, K, P>
where
    K: Sink,
    P: FnMut(u64, u64) -> ControlFlow<()>,
{
    fn lend(&mut self, least: usize) -> Result<Option<&mut [u8]>, Error<E>> {
        let offset = self.writer.at;
        self.writer.sink.lend(least).map_err(|error| Error::Write {
            offset,
            len: least as u64,
            error,
        })
    }

    fn lent(&mut self, len: usize) -> Result<(), Error<E>> {
        let (offset, len) = (self.writer.at, len as u64);
        self.writer
            .sink
            .lent(len as usize)
            .map_err(|error| Error::Write { offset, len, error })?;
        self.writer.at += len;
        Ok(())
    }

    fn accept(&mut self, batch: &Batch, stored: Option<&[u8]>) -> Result<(), Error<E>> {
        let writer = &mut *self.writer;
        writer.count(&batch.lens);
        writer.stats.copied += batch.copied;
        if let Some(stored) = stored {
            writer.append(stored)?;
        }
        self.done += batch.content;
        let at = writer.at;
        let told = writer.sink.batch(self.done, &batch.lens);
        told.map_err(|error| Error::Write {
            offset: at,
            len: 0,
            error,
        })?;
        match (self.progress)(self.done, self.size) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
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
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Stats, Error<S::Error>> {
    Prepared::new(source, options)?.write(sink, None, progress)
}

/// Where the writing of a layer can go on: behind one of its batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bytes of the LSMT file that are done, as [`Sink::batch`] said.
    pub content: u64,
    /// Bytes that were appended.
    pub stored: u64,
    /// Stored bytes of every block so far.
    pub lens: Vec<u32>,
}

/// A layer whose layout is known, and nothing of which is written.
pub struct Prepared<'a, S> {
    source: &'a S,
    options: Options,
    content: Content,
    blocks: Option<Blocks>,
}

impl<'a, S: Source> Prepared<'a, S> {
    /// Asks `source` for its ranges and lays them out.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn new(source: &'a S, options: &Options) -> Result<Self, Error<S::Error>> {
        let label = label(source, options)?;
        Ok(Self {
            source,
            options: options.clone(),
            content: Content::new(source, &label)?,
            blocks: options.compression.map(blocks).transpose()?,
        })
    }

    /// Size of the LSMT file, bytes: what is written before compression.
    pub fn content(&self) -> u64 {
        self.content.size()
    }

    /// Size of the image, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.source.size()
    }

    /// A number that is another one, most likely, if the source's ranges or what
    /// the layer says of itself are others. It says nothing of the data.
    pub fn layout(&self) -> u32 {
        self.content.layout()
    }

    /// Bytes per compressed block, 0 if there are none.
    pub fn block_size(&self) -> u32 {
        // One of five sizes: fits.
        self.blocks.map_or(0, |blocks| blocks.size as u32)
    }

    /// As many bytes as the layer can have at most.
    pub fn most_stored(&self) -> u64 {
        let content = self.content.size();
        let blocks = match self.blocks {
            None => return content + tar::SPACE as u64 + tar::padding(content) as u64,
            Some(blocks) => content.div_ceil(blocks.size as u64),
        };
        let grown = blocks * (zfile::GROWTH + zfile::CRC + 4) as u64;
        let payload = content + grown + 2 * zfile::SPACE as u64;
        payload + tar::SPACE as u64 + tar::padding(payload) as u64
    }

    /// Bytes in front of the zfile, and of its header.
    fn front(&self) -> (usize, usize) {
        let tar = if self.options.tar { tar::SPACE } else { 0 };
        let zfile = self.blocks.map_or(0, |_| zfile::SPACE);
        (tar, zfile)
    }

    /// Checks that `checkpoint` can be one of this layer.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), Error<S::Error>> {
        let &Checkpoint {
            content,
            stored,
            ref lens,
        } = checkpoint;
        let size = self.content.size();
        let (tar, zfile) = self.front();
        let (blocks, bytes) = match self.blocks {
            None => (0, content),
            Some(blocks) => (
                content.div_ceil(blocks.size as u64),
                lens.iter().map(|len| u64::from(*len)).sum(),
            ),
        };
        let whole = content.is_multiple_of(pipeline::BATCH as u64) || content == size;
        let reason = if content > size || !whole {
            "it is not behind a batch"
        } else if lens.len() as u64 != blocks {
            "it has not as many blocks"
        } else if stored != (tar + zfile) as u64 + bytes {
            "its blocks have another size"
        } else {
            return Ok(());
        };
        Err(Error::Checkpoint { stored, reason })
    }

    /// Writes the layer to `sink` and finishes that, from the beginning or from
    /// `checkpoint` on, up to which everything is in the sink. `progress` is as
    /// that of [`commit`].
    ///
    /// # Errors
    ///
    /// As [`commit`], and [`Error::Checkpoint`].
    pub fn write<K: Sink>(
        &self,
        sink: K,
        checkpoint: Option<Checkpoint>,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Stats, Error<S::Error>> {
        let Self {
            content, blocks, ..
        } = self;
        let blocks = *blocks;
        if let Some(checkpoint) = &checkpoint {
            self.check(checkpoint)?;
        }
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
                virtual_size: self.virtual_size(),
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
                copied_stored: 0,
            },
        };
        let (front, _) = self.front();
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
        }
        let mut done = 0;
        match checkpoint {
            Some(checkpoint) => {
                done = checkpoint.content;
                writer.at = checkpoint.stored;
                writer.count(&checkpoint.lens);
            }
            None => {
                // Nothing a reader takes for a layer, until it is one.
                writer.append(&[0; tar::SPACE][..front])?;
                if blocks.is_some() {
                    writer.append(&header.encode(Part::Draft))?;
                }
            }
        }

        let job = Job {
            source: self.source,
            content,
            blocks,
        };
        let threads = self.options.threads.get();
        let first = done.div_ceil(pipeline::BATCH as u64);
        let mut batches = Batches {
            writer: &mut writer,
            done,
            size: content.size(),
            progress,
        };
        pipeline::run(&job, threads, first, &mut batches)?;

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
        if self.options.tar {
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
            writer.stats.copied_stored += len;
        }
        writer.stats.copied_stored += writer.sink.moved();
        writer.sink.finish().map_err(Error::Finish)?;
        Ok(writer.stats)
    }
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
