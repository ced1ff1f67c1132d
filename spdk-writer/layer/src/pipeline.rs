// SPDX-License-Identifier: MIT

//! Reading and compressing in any number of threads, in order.
//!
//! The layer is cut into batches, numbered from 0. A thread takes an output
//! buffer first, then the next number: whoever has a number can finish its
//! batch, so the lowest unfinished batch never waits for a buffer that later
//! ones hold, and the number of buffers bounds how far threads run ahead. The
//! caller's thread puts batches back in order, passes them on and returns the
//! buffers.

use crate::codec::Encoder;
use crate::content::Content;
use crate::error::Error;
use crate::source::Source;
use crate::zfile::{
    self,
    Algorithm, //
};
use obd_core::Crc32c;
use obd_host::Hardware;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::sync::mpsc::{
    Receiver,
    Sender,
    channel, //
};
use std::thread;

/// Bytes of the layer in a batch: in and out of it fit a core's own cache. A
/// multiple of every block size.
pub(crate) const BATCH: usize = 256 << 10;

/// Output buffers per thread: one being filled, one waiting for its turn, one
/// being written.
const BUFFERS: usize = 3;

/// How blocks are made of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub(crate) algorithm: Algorithm,
    pub(crate) size: usize,
    pub(crate) checksums: bool,
}

/// What a batch has become.
pub(crate) struct Output {
    /// Room for the worst case, `len` bytes of it used.
    room: Vec<u8>,
    len: usize,
    /// Stored bytes of each block, checksum included.
    pub(crate) lens: Vec<u32>,
    /// Bytes of the layer that went in.
    pub(crate) content: u64,
    /// Bytes of the source that were copied.
    pub(crate) copied: u64,
}

impl Output {
    fn new(blocks: Option<Blocks>) -> Self {
        let room = match blocks {
            None => BATCH,
            Some(Blocks { size, .. }) => BATCH / size * (size + zfile::GROWTH + zfile::CRC),
        };
        Self {
            room: vec![0; room],
            len: 0,
            lens: Vec::new(),
            content: 0,
            copied: 0,
        }
    }

    /// The bytes to be stored.
    pub(crate) fn stored(&self) -> &[u8] {
        &self.room[..self.len]
    }
}

/// What is to be done.
pub(crate) struct Job<'a, S> {
    pub(crate) source: &'a S,
    pub(crate) content: &'a Content,
    /// Stored as it is if [`None`].
    pub(crate) blocks: Option<Blocks>,
}

/// What a thread needs.
struct Worker<'a, S: Source> {
    job: &'a Job<'a, S>,
    workspace: S::Workspace,
    encoder: Option<Encoder>,
    /// Content that is not compressed yet.
    raw: Vec<u8>,
}

impl<'a, S: Source> Worker<'a, S> {
    fn new(job: &'a Job<'a, S>) -> Result<Self, Error<S::Error>> {
        let encoder = match job.blocks {
            None => None,
            Some(Blocks { algorithm, .. }) => {
                Some(Encoder::new(algorithm).ok_or(Error::Compress(0))?)
            }
        };
        Ok(Self {
            job,
            workspace: job.source.workspace().map_err(Error::Reader)?,
            encoder,
            raw: vec![0; if job.blocks.is_some() { BATCH } else { 0 }],
        })
    }

    fn run(&mut self, number: u64, output: &mut Output) -> Result<(), Error<S::Error>> {
        let Job {
            source,
            content,
            blocks,
        } = *self.job;
        let start = number * BATCH as u64;
        let len = (content.size() - start).min(BATCH as u64) as usize;
        output.len = 0;
        output.lens.clear();
        output.content = len as u64;
        output.copied = 0;
        let (Some(blocks), Some(encoder)) = (blocks, &mut self.encoder) else {
            let room = &mut output.room[..len];
            output.copied = content.read(source, &mut self.workspace, start, room)?;
            output.len = len;
            return Ok(());
        };
        // What is in memory is taken block by block, so that most of it need
        // not be copied; what is not is read in as few calls as can be.
        let unit = match source.in_memory() {
            true => blocks.size,
            false => BATCH,
        };
        let mut at = start;
        let end = start + len as u64;
        while at < end {
            let len = (end - at).min(unit as u64) as usize;
            let borrowed = match source.in_memory() {
                true => content.borrow(source, at, len),
                false => None,
            };
            let raw = match borrowed {
                Some(raw) => raw,
                None => {
                    let raw = &mut self.raw[..len];
                    output.copied += content.read(source, &mut self.workspace, at, raw)?;
                    raw
                }
            };
            for block in raw.chunks(blocks.size) {
                compress(encoder, blocks.checksums, block, output).ok_or(Error::Compress(at))?;
                at += block.len() as u64;
            }
        }
        Ok(())
    }
}

/// Appends `block`, compressed, to `output`.
fn compress(
    encoder: &mut Encoder,
    checksums: bool,
    block: &[u8],
    output: &mut Output,
) -> Option<()> {
    let to = &mut output.room[output.len..][..block.len() + zfile::GROWTH + zfile::CRC];
    let (room, _) = to.split_at_mut(block.len() + zfile::GROWTH);
    let mut len = encoder.compress(block, room)?;
    if checksums {
        let crc = Hardware::crc32c(zfile::CRC_SEED, &to[..len]);
        to[len..][..zfile::CRC].copy_from_slice(&crc.to_le_bytes());
        len += zfile::CRC;
    }
    output.len += len;
    // At most 64 KiB and what it can grow.
    output.lens.push(len as u32);
    Some(())
}

/// Does `job` from batch `first` on in `threads` threads, besides the caller's if
/// more than one, and calls `accept` with every batch in order.
pub(crate) fn run<S: Source>(
    job: &Job<'_, S>,
    threads: usize,
    first: u64,
    mut accept: impl FnMut(&Output) -> Result<(), Error<S::Error>>,
) -> Result<(), Error<S::Error>> {
    let batches = job.content.size().div_ceil(BATCH as u64);
    if threads <= 1 {
        let mut worker = Worker::new(job)?;
        let mut output = Output::new(job.blocks);
        for number in first..batches {
            worker.run(number, &mut output)?;
            accept(&output)?;
        }
        return Ok(());
    }
    let (free, taken) = channel();
    for _ in 0..threads * BUFFERS {
        // The receiver is there, in the same scope.
        let _ = free.send(Output::new(job.blocks));
    }
    let queue = Queue {
        free: Mutex::new(taken),
        next: AtomicU64::new(first),
        batches,
    };
    let (done, results) = channel();
    thread::scope(|scope| {
        // Dropped on every way out of the scope, before its threads are waited
        // for: without buffers to come they end.
        let free = free;
        for number in 0..threads {
            let done = done.clone();
            let queue = &queue;
            thread::Builder::new()
                .name(format!("obd-writer {number}"))
                .spawn_scoped(scope, move || work(job, queue, &done))
                .map_err(Error::Thread)?;
        }
        drop(done);
        let mut early = BTreeMap::new();
        for number in first..batches {
            let output = loop {
                if let Some(output) = early.remove(&number) {
                    break output;
                }
                match results.recv() {
                    Ok(Message::Done(done, result)) => {
                        early.insert(done, result?);
                    }
                    // Without a panic, whoever takes a number sends its batch.
                    Ok(Message::Panicked) | Err(_) => panic!("a writer thread panicked"),
                }
            };
            accept(&output)?;
            // Nobody waits for it once all numbers are taken.
            let _ = free.send(output);
        }
        Ok(())
    })
}

/// What threads take from.
struct Queue {
    free: Mutex<Receiver<Output>>,
    /// The next batch. Which thread has which is all it decides: nothing else
    /// is ordered by it, so relaxed is enough.
    next: AtomicU64,
    batches: u64,
}

impl Queue {
    /// A buffer first, a number then: the order the module's text is about.
    fn take(&self) -> Option<(u64, Output)> {
        let output = self.free.lock().ok()?.recv().ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.batches).then_some((number, output))
    }
}

/// What a thread tells the caller's.
enum Message<E> {
    /// A batch by its number.
    Done(u64, Result<Output, Error<E>>),
    /// The batch it had will never come.
    Panicked,
}

/// Says so if its thread panics.
struct Alarm<'a, E>(&'a Sender<Message<E>>);

impl<E> Drop for Alarm<'_, E> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody listens any more if this fails.
            let _ = self.0.send(Message::Panicked);
        }
    }
}

fn work<S: Source>(job: &Job<'_, S>, queue: &Queue, done: &Sender<Message<S::Error>>) {
    let _alarm = Alarm(done);
    let mut worker = None;
    while let Some((number, mut output)) = queue.take() {
        let result = match &mut worker {
            Some(worker) => Ok(worker),
            None => Worker::new(job).map(|made| worker.insert(made)),
        };
        let result = result.and_then(|worker| worker.run(number, &mut output));
        let failed = result.is_err();
        // The caller's thread has given up if this fails.
        if done
            .send(Message::Done(number, result.map(|()| output)))
            .is_err()
            || failed
        {
            return;
        }
    }
}
