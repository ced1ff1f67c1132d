// SPDX-License-Identifier: MIT
//! A small NBD client, for measuring and testing servers.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::wire::{
    self,
    Fields,
    Request, //
};
use std::io::{
    self,
    IoSlice,
    Read,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long to wait for a server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the default export of a server on a Unix socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

impl Client {
    /// Connects and negotiates.
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).at("connect to", socket)?;
        let size = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| negotiate(&mut stream))
            .at("negotiate with", socket)?
            .ok_or_else(|| Error::Protocol("the server offers no export".into()))?;
        Ok(Self {
            stream,
            size,
            cookie: 0,
        })
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Sends a request without waiting; returns its cookie.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let header = Request {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        }
        .encode();
        let mut both = [IoSlice::new(&header), IoSlice::new(data)];
        let mut rest = &mut both[..];
        while !rest.is_empty() {
            let n = self.stream.write_vectored(rest)?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, n);
        }
        Ok(self.cookie)
    }

    /// Waits for the next reply: its cookie and error. The data of a read that
    /// succeeded follows on the stream; take it with [`Client::data`].
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut header = [0; wire::REPLY_LEN];
        self.stream.read_exact(&mut header)?;
        let mut fields = Fields(&header);
        match (fields.u32(), fields.u32(), fields.u64()) {
            (Some(wire::REPLY_MAGIC), Some(error), Some(cookie)) => Ok((cookie, error)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Receives the data of a read.
    pub fn data(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buffer)
    }

    /// Reads at `offset`; nothing else may be under way.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.send(wire::CMD_READ, 0, offset, length, &[])?;
        check(self.reply()?)?;
        self.data(buffer)
    }

    /// Writes at `offset`; nothing else may be under way.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.send(wire::CMD_WRITE, 0, offset, length, data)?;
        check(self.reply()?)
    }

    /// Sends a command without data; nothing else may be under way.
    pub fn command(&mut self, command: u16, offset: u64, length: u32) -> io::Result<()> {
        self.send(command, 0, offset, length, &[])?;
        check(self.reply()?)
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }
}

fn check((_, error): (u64, u32)) -> io::Result<()> {
    match i32::try_from(error) {
        Ok(0) => Ok(()),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Chooses the default export; returns its size, or nothing if the server
/// refuses it.
fn negotiate(stream: &mut UnixStream) -> io::Result<Option<u64>> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    let mut fields = Fields(&hello);
    if (fields.u64(), fields.u64()) != (Some(wire::SERVER_MAGIC), Some(wire::OPTION_MAGIC)) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut go = u32::from(wire::FLAG_FIXED_NEWSTYLE).to_be_bytes().to_vec();
    go.extend(wire::OPTION_MAGIC.to_be_bytes());
    go.extend(wire::OPT_GO.to_be_bytes());
    // A name of length 0, and no facts asked for.
    go.extend(6u32.to_be_bytes());
    go.extend([0; 6]);
    stream.write_all(&go)?;
    let mut size = None;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let mut fields = Fields(&header[12..]);
        let (Some(kind), Some(length)) = (fields.u32(), fields.u32()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut data = Vec::new();
        stream.take(length.into()).read_to_end(&mut data)?;
        let mut fields = Fields(&data);
        match kind {
            wire::REP_ACK => return Ok(size),
            wire::REP_INFO => {
                if fields.u16() == Some(wire::INFO_EXPORT) {
                    size = fields.u64();
                }
            }
            _ => return Ok(None),
        }
    }
}
