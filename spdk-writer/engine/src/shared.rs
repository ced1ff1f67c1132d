// SPDX-License-Identifier: MIT

//! One engine, used by several threads.
//!
//! Whoever waits for a request does so with the engine's lock and puts aside
//! what comes back for others, who find it there when it is their turn.

use crate::{
    Action,
    Buffer,
    Done,
    Engine,
    Error,
    Identity,
    Memory,
    Request,
    stats::Summary, //
};
use std::collections::HashMap;
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};

/// An engine behind a lock.
pub struct Shared {
    identity: Identity,
    memory: Memory,
    state: Mutex<State>,
}

struct State {
    engine: Box<dyn Engine>,
    /// Tag of the next request.
    next: u64,
    /// Came back and was not asked for yet.
    done: HashMap<u64, Done>,
    /// What the engine said when it was lost: it is said to everybody.
    lost: Option<Error>,
}

/// A request that was started. It must be finished, or its buffer is lost until
/// the engine is dropped.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a request that is not finished keeps its buffer"]
pub struct Ticket(u64);

impl Shared {
    /// `engine`, with nothing in flight.
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Self {
            identity: engine.identity().clone(),
            memory: engine.memory().clone(),
            state: Mutex::new(State {
                engine,
                next: 0,
                done: HashMap::new(),
                lost: None,
            }),
        }
    }

    /// What is known of the device.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes of each buffer.
    pub fn buffer_size(&self) -> usize {
        self.memory.buffer_size()
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.memory.count()
    }

    /// A buffer. Whoever takes several must not wait for one with others taken
    /// by somebody who does the same.
    ///
    /// # Errors
    ///
    /// [`Error::NoBuffer`] if all are taken and nothing is in flight, the
    /// engine's if it is lost.
    pub fn buffer(&self) -> Result<Buffer, Error> {
        loop {
            if let Some(buffer) = self.memory.take() {
                return Ok(buffer);
            }
            let mut state = self.lock();
            if state.engine.in_flight() == 0 && state.done.is_empty() {
                // Given back between the look and the lock?
                return self.memory.take().ok_or_else(|| Error::NoBuffer {
                    device: self.identity.name.clone(),
                    count: self.memory.count(),
                });
            }
            // It is others' to finish what comes back.
            state.reap()?;
            drop(state);
            std::thread::yield_now();
        }
    }

    /// Starts a request; see [`Request`]. The device may not know of it before
    /// [`Shared::kick`] or a [`Shared::finish`] that waits.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] for one that cannot be, the engine's if it is lost.
    pub fn start(
        &self,
        action: Action,
        offset: u64,
        len: u64,
        buffer: Option<Buffer>,
    ) -> Result<Ticket, Error> {
        let mut state = self.lock();
        while state.lost.is_none() && state.engine.in_flight() >= state.engine.depth() {
            state.reap()?;
        }
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        let tag = state.next;
        state.next += 1;
        let request = Request {
            tag,
            action,
            offset,
            len,
            buffer,
        };
        match state.engine.submit(request) {
            Ok(()) => Ok(Ticket(tag)),
            Err(refused) => Err(refused.error),
        }
    }

    /// Tells the device of everything that was started.
    ///
    /// # Errors
    ///
    /// The engine's if it is lost.
    pub fn kick(&self) -> Result<(), Error> {
        self.lock().kick()
    }

    /// Waits for a request, and gives back its buffer.
    ///
    /// # Errors
    ///
    /// The request's, the engine's if it is lost.
    pub fn finish(&self, ticket: Ticket) -> Result<Option<Buffer>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(done) = state.done.remove(&ticket.0) {
                return done.result.map(|()| done.buffer);
            }
            state.reap()?;
        }
    }

    /// Fills `to` from byte `offset` on; nothing need be aligned.
    ///
    /// # Errors
    ///
    /// [`Shared::start`]'s, [`Shared::buffer`]'s and the device's.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        let block = u64::from(self.identity.block_size);
        let (mut at, mut to) = (offset, to);
        while !to.is_empty() {
            let skip = (at % block) as usize;
            let room = self.buffer_size() - skip;
            let len = room.min(to.len());
            let whole = ((skip + len) as u64).next_multiple_of(block);
            let ticket = self.start(Action::Read, at - skip as u64, whole, Some(self.buffer()?))?;
            if let Some(buffer) = self.finish(ticket)? {
                to[..len].copy_from_slice(&buffer[skip..][..len]);
            }
            at += len as u64;
            to = &mut to[len..];
        }
        Ok(())
    }

    /// Writes `from`, whole blocks, at byte `offset`, and waits.
    ///
    /// # Errors
    ///
    /// As [`Shared::read`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.put(Action::Write, offset, from)
    }

    /// As [`Shared::write`]; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// As [`Shared::read`].
    pub fn write_through(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.put(Action::WriteThrough, offset, from)
    }

    fn put(&self, action: Action, offset: u64, from: &[u8]) -> Result<(), Error> {
        let mut at = offset;
        for part in from.chunks(self.buffer_size()) {
            let mut buffer = self.buffer()?;
            buffer[..part.len()].copy_from_slice(part);
            let ticket = self.start(action, at, part.len() as u64, Some(buffer))?;
            self.finish(ticket)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Does what needs no buffer, and waits: a flush (of no range), a discard,
    /// write zeroes.
    ///
    /// # Errors
    ///
    /// As [`Shared::start`], and the device's.
    pub fn command(&self, action: Action, offset: u64, len: u64) -> Result<(), Error> {
        let ticket = self.start(action, offset, len, None)?;
        self.finish(ticket).map(drop)
    }

    /// Makes durable what was finished before.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn flush(&self) -> Result<(), Error> {
        self.command(Action::Flush, 0, 0)
    }

    /// What was done so far.
    pub fn summary(&self) -> Summary {
        self.lock().engine.stats().summary()
    }

    /// Whatever a thread that panicked was about, requests are counted by the
    /// engine.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn kick(&mut self) -> Result<(), Error> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        let kicked = self.engine.kick();
        self.note(kicked)
    }

    /// Waits for something and puts it aside.
    fn reap(&mut self) -> Result<(), Error> {
        self.kick()?;
        let mut done = Vec::new();
        let reaped = self.engine.reap(true, &mut done);
        self.done
            .extend(done.into_iter().map(|done| (done.tag, done)));
        self.note(reaped)
    }

    fn note(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = &result {
            self.lost = Some(error.clone());
        }
        result
    }
}
