// SPDX-License-Identifier: MIT

//! A layer in a file, written through an engine.

use crate::stream::Stream;
use obd_engine::{
    Identity,
    Shared, //
};
use obd_writer::{
    FileSink,
    Sink, //
};
use std::io;

/// As [`FileSink`], but that bytes take the way of an engine, which was opened
/// on [`FileSink::file`].
pub struct EngineFile<'a> {
    stream: Stream<'a>,
    /// Bytes appended: the file is padded to whole blocks until it is finished.
    len: u64,
    file: FileSink,
}

impl<'a> EngineFile<'a> {
    /// Writes to `file` through `device`.
    ///
    /// # Errors
    ///
    /// The engine's.
    pub fn new(device: &'a Shared, file: FileSink) -> Result<Self, obd_engine::Error> {
        Ok(Self {
            stream: Stream::new(device, 0, Identity::GROWS, 0, &[])?,
            len: 0,
            file,
        })
    }
}

impl Sink for EngineFile<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        Ok(self.stream.append(bytes)?)
    }

    fn lend(&mut self, least: usize) -> io::Result<Option<&mut [u8]>> {
        Ok(self.stream.lend(least)?)
    }

    fn lent(&mut self, len: usize) -> io::Result<()> {
        self.len += len as u64;
        Ok(self.stream.lent(len)?)
    }

    fn moved(&self) -> u64 {
        self.stream.moved()
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.end()?;
        Ok(self.stream.overwrite(bytes)?)
    }

    fn finish(mut self) -> io::Result<()> {
        self.stream.end()?;
        self.file.set_len(self.len)?;
        self.file.finish()
    }
}
