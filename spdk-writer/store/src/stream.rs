// SPDX-License-Identifier: MIT

//! Writing from beginning to end over an engine: bytes of any number go in,
//! whole blocks come out, several writes in flight. What is not there yet can be made
//! in the engine's own memory, which is lent.

use crate::format::BLOCK;
use obd_engine::shared::Ticket;
use obd_engine::{
    Action,
    Buffer,
    Error,
    Shared, //
};
use std::collections::VecDeque;

/// Most writes a stream has in flight.
const WINDOW: usize = 8;

/// A stream to a piece of a device.
pub struct Stream<'a> {
    device: &'a Shared,
    /// Where it begins, a multiple of [`BLOCK`].
    base: u64,
    /// Bytes it may have.
    room: u64,
    /// What is to be written next: its bytes from the beginning...
    staging: Option<Buffer>,
    /// ... up to here, less than its length between calls ...
    fill: usize,
    /// ... and where they go, bytes from the base, a multiple of [`BLOCK`].
    at: u64,
    tickets: VecDeque<Ticket>,
    /// Most tickets.
    window: usize,
    /// Bytes that were copied from one buffer to another.
    moved: u64,
}

impl<'a> Stream<'a> {
    /// A stream to the `room` bytes at byte `base` of `device`; `at` bytes of it
    /// are there already, of which the last, beyond whole blocks, are `tail`.
    pub fn new(
        device: &'a Shared,
        base: u64,
        room: u64,
        at: u64,
        tail: &[u8],
    ) -> Result<Self, Error> {
        let mut staging = device.buffer()?;
        staging[..tail.len()].copy_from_slice(tail);
        Ok(Self {
            device,
            base,
            room,
            staging: Some(staging),
            fill: tail.len(),
            at: at - tail.len() as u64,
            tickets: VecDeque::new(),
            // Others need buffers, too.
            window: (device.buffers() / 4).clamp(1, WINDOW),
            moved: 0,
        })
    }

    /// Bytes that were appended.
    pub fn len(&self) -> u64 {
        self.at + self.fill as u64
    }

    /// Whether none were.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `more` bytes fit.
    pub fn fits(&self, more: u64) -> bool {
        let end = (self.len() + more).next_multiple_of(BLOCK);
        end <= self.room
    }

    /// The bytes beyond whole blocks, once [`Stream::settle`] was called.
    pub fn tail(&self) -> &[u8] {
        match &self.staging {
            Some(staging) => &staging[..self.fill],
            None => &[],
        }
    }

    /// Appends `bytes`, which must [fit](Stream::fits).
    ///
    /// # Errors
    ///
    /// The device's; the stream is of no use then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let mut staging = match self.staging.take() {
                Some(staging) => staging,
                None => self.device.buffer()?,
            };
            let len = (staging.len() - self.fill).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            staging[self.fill..][..len].copy_from_slice(now);
            self.fill += len;
            bytes = later;
            match self.fill < staging.len() {
                true => self.staging = Some(staging),
                false => self.send(staging, self.fill)?,
            }
        }
        Ok(())
    }

    /// Lends the memory behind what was appended, `least` bytes or more of it;
    /// [`None`] if that is more than the engine's buffers are for.
    ///
    /// # Errors
    ///
    /// As [`Stream::append`].
    pub fn lend(&mut self, least: usize) -> Result<Option<&mut [u8]>, Error> {
        // What is moved on is less than a block; two buffers are needed at a time, and
        // one by whoever reads meanwhile.
        let fits = least + BLOCK as usize <= self.device.buffer_size();
        if !fits || self.device.buffers() < 4 {
            return Ok(None);
        }
        let staging = match self.staging.take() {
            None => self.device.buffer()?,
            Some(staging) if staging.len() - self.fill >= least => staging,
            Some(full) => {
                let rest = self.fill % BLOCK as usize;
                let whole = self.fill - rest;
                while self.tickets.len() >= self.window {
                    self.finish_one()?;
                }
                let mut next = self.device.buffer()?;
                next[..rest].copy_from_slice(&full[whole..self.fill]);
                self.moved += rest as u64;
                self.send(full, whole)?;
                self.fill = rest;
                next
            }
        };
        let staging = self.staging.insert(staging);
        Ok(Some(&mut staging[self.fill..]))
    }

    /// The first `len` bytes of what was lent last are appended; they must
    /// [fit](Stream::fits).
    ///
    /// # Errors
    ///
    /// As [`Stream::append`].
    pub fn lent(&mut self, len: usize) -> Result<(), Error> {
        self.fill += len;
        match self.staging.take() {
            Some(full) if full.len() == self.fill => self.send(full, self.fill),
            staging => {
                self.staging = staging;
                Ok(())
            }
        }
    }

    /// Bytes that were copied from one buffer to another: what was behind the last whole
    /// block when a buffer was written.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Starts writing the first `len` bytes, whole blocks, of `buffer`, and is behind
    /// them.
    fn send(&mut self, buffer: Buffer, len: usize) -> Result<(), Error> {
        while self.tickets.len() >= self.window {
            self.finish_one()?;
        }
        let place = self.base + self.at;
        let ticket = self
            .device
            .start(Action::Write, place, len as u64, Some(buffer))?;
        self.tickets.push_back(ticket);
        self.device.kick()?;
        self.at += len as u64;
        self.fill = 0;
        Ok(())
    }

    fn finish_one(&mut self) -> Result<(), Error> {
        match self.tickets.pop_front() {
            Some(ticket) => self.device.finish(ticket).map(drop),
            None => Ok(()),
        }
    }

    /// Writes every whole block, waits for all writes, and keeps the rest.
    ///
    /// # Errors
    ///
    /// As [`Stream::append`].
    pub fn settle(&mut self) -> Result<(), Error> {
        if let Some(mut staging) = self.staging.take() {
            let rest = self.fill % BLOCK as usize;
            let whole = self.fill - rest;
            if whole > 0 {
                let place = self.base + self.at;
                let ticket =
                    self.device
                        .start(Action::Write, place, whole as u64, Some(staging))?;
                staging = match self.device.finish(ticket)? {
                    Some(buffer) => buffer,
                    None => unreachable!("a write comes back with its buffer"),
                };
                staging.copy_within(whole..self.fill, 0);
                self.moved += rest as u64;
                self.at += whole as u64;
                self.fill = rest;
            }
            self.staging = Some(staging);
        }
        while !self.tickets.is_empty() {
            self.finish_one()?;
        }
        Ok(())
    }

    /// Writes everything, zeros behind the last byte up to a whole block, and
    /// waits; nothing is durable by that.
    ///
    /// # Errors
    ///
    /// As [`Stream::append`].
    pub fn end(&mut self) -> Result<(), Error> {
        let len = self.len();
        let padding = len.next_multiple_of(BLOCK) - len;
        self.append(&[0; BLOCK as usize][..padding as usize])?;
        self.settle()
    }

    /// Writes `bytes` over the first ones, which are all written.
    ///
    /// # Errors
    ///
    /// As [`Stream::append`].
    pub fn overwrite(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut whole = vec![0; bytes.len().next_multiple_of(BLOCK as usize)];
        self.device.read(self.base, &mut whole)?;
        whole[..bytes.len()].copy_from_slice(bytes);
        self.device.write(self.base, &whole)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // Their buffers are to be there for others.
        while !self.tickets.is_empty() {
            let _ = self.finish_one();
        }
    }
}
