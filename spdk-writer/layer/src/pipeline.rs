// SPDX-License-Identifier: MIT

//! Reading and compressing in any number of threads, in order.
//!
//! The layer is cut into batches, numbered from 0. A thread takes an output
//! buffer first, then the next number: whoever has a number can finish its
//! batch, so the lowest unfinished batch never waits for a buffer that later
//! ones hold, and the number of buffers bounds how far threads run ahead. The
//! caller's thread puts batches back in order, passes them on and returns the
//! buffers.
//!
//! Where a batch goes is known once all before it are compressed. So one thread
//! compresses straight into memory that the sink lends; of several, each has a
//! buffer, and the sink copies out of that.

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

/// Where a batch is stored, byte behind byte.
trait Place<E> {
    /// Room for what comes next, `least` bytes or more.
    fn room(&mut self, least: usize) -> Result<&mut [u8], E>;

    /// The first `len` bytes of that room are the batch's.
    fn used(&mut self, len: usize) -> Result<(), E>;
}

/// Memory of this process.
struct Heap {
    /// Room for the worst case, `len` bytes of it used.
    room: Vec<u8>,
    len: usize,
}

impl Heap {
    fn new(blocks: Option<Blocks>) -> Self {
        let room = match blocks {
            None => BATCH,
            Some(Blocks { size, .. }) => BATCH / size * most(size),
        };
        Self {
            room: vec![0; room],
            len: 0,
        }
    }
}

impl<E> Place<E> for Heap {
    fn room(&mut self, _least: usize) -> Result<&mut [u8], E> {
        Ok(&mut self.room[self.len..])
    }

    fn used(&mut self, len: usize) -> Result<(), E> {
        self.len += len;
        Ok(())
    }
}

/// Where batches go, in order.
pub(crate) trait Target<E> {
    /// As [`crate::Sink::lend`].
    fn lend(&mut self, least: usize) -> Result<Option<&mut [u8]>, E>;

    /// As [`crate::Sink::lent`].
    fn lent(&mut self, len: usize) -> Result<(), E>;

    /// Takes the next batch, which is stored as `stored`; [`None`] if it lies where it
    /// was lent.
    fn accept(&mut self, batch: &Batch, stored: Option<&[u8]>) -> Result<(), E>;
}

/// Memory of the target.
struct Lent<'a, T>(&'a mut T);

impl<E, T: Target<E>> Place<E> for Lent<'_, T> {
    fn room(&mut self, least: usize) -> Result<&mut [u8], E> {
        match self.0.lend(least)? {
            Some(room) => Ok(room),
            None => unreachable!("it lends as much as it did when it was asked"),
        }
    }

    fn used(&mut self, len: usize) -> Result<(), E> {
        self.0.lent(len)
    }
}

/// What is known of a batch that is made.
#[derive(Default)]
pub(crate) struct Batch {
    /// Stored bytes of each block, checksum included.
    pub(crate) lens: Vec<u32>,
    /// Bytes of the layer that went in.
    pub(crate) content: u64,
    /// Bytes of the source that were copied.
    pub(crate) copied: u64,
}

/// As many bytes as a block of `len` can become.
const fn most(len: usize) -> usize {
    len + zfile::GROWTH + zfile::CRC
}

/// A batch, and memory for it.
struct Output {
    heap: Heap,
    batch: Batch,
}

impl Output {
    fn new(blocks: Option<Blocks>) -> Self {
        Self {
            heap: Heap::new(blocks),
            batch: Batch::default(),
        }
    }

    /// Passes it on.
    fn give<E>(&self, target: &mut impl Target<E>) -> Result<(), E> {
        target.accept(&self.batch, Some(&self.heap.room[..self.heap.len]))
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

    /// Makes batch `number` in memory of this process.
    fn run(&mut self, number: u64, output: &mut Output) -> Result<(), Error<S::Error>> {
        output.heap.len = 0;
        self.make(number, &mut output.heap, &mut output.batch)
    }

    /// Makes batch `number` in `place`.
    fn make(
        &mut self,
        number: u64,
        place: &mut impl Place<Error<S::Error>>,
        batch: &mut Batch,
    ) -> Result<(), Error<S::Error>> {
        let Job {
            source,
            content,
            blocks,
        } = *self.job;
        let start = number * BATCH as u64;
        let len = (content.size() - start).min(BATCH as u64) as usize;
        let end = start + len as u64;
        let mut at = start;
        batch.lens.clear();
        batch.content = len as u64;
        batch.copied = 0;
        let (Some(blocks), Some(encoder)) = (blocks, &mut self.encoder) else {
            while at < end {
                let room = place.room(1)?;
                let len = room.len().min((end - at) as usize);
                let read = content.read(source, &mut self.workspace, at, &mut room[..len])?;
                batch.copied += read;
                place.used(len)?;
                at += len as u64;
            }
            return Ok(());
        };
        // What is in memory is taken block by block, so that most of it need
        // not be copied; what is not is read in as few calls as can be.
        let unit = match source.in_memory() {
            true => blocks.size,
            false => BATCH,
        };
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
                    batch.copied += content.read(source, &mut self.workspace, at, raw)?;
                    raw
                }
            };
            for block in raw.chunks(blocks.size) {
                let room = place.room(most(block.len()))?;
                let len = compress(encoder, blocks.checksums, block, room);
                let len = len.ok_or(Error::Compress(at))?;
                place.used(len)?;
                // At most 64 KiB and what it can grow.
                batch.lens.push(len as u32);
                at += block.len() as u64;
            }
        }
        Ok(())
    }
}

/// Compresses `block` to the beginning of `to`, which has room for [`most`], and returns
/// how many bytes it became.
fn compress(encoder: &mut Encoder, checksums: bool, block: &[u8], to: &mut [u8]) -> Option<usize> {
    let mut len = encoder.compress(block, &mut to[..block.len() + zfile::GROWTH])?;
    if checksums {
        let crc = Hardware::crc32c(zfile::CRC_SEED, &to[..len]);
        to[len..][..zfile::CRC].copy_from_slice(&crc.to_le_bytes());
        len += zfile::CRC;
    }
    Some(len)
}

/// Does `job` from batch `first` on in `threads` threads, besides the caller's if
/// more than one, and gives `target` every batch in order.
pub(crate) fn run<S: Source>(
    job: &Job<'_, S>,
    threads: usize,
    first: u64,
    target: &mut impl Target<Error<S::Error>>,
) -> Result<(), Error<S::Error>> {
    let batches = job.content.size().div_ceil(BATCH as u64);
    if threads <= 1 {
        let mut worker = Worker::new(job)?;
        let least = job.blocks.map_or(1, |blocks| most(blocks.size));
        if target.lend(least)?.is_some() {
            let mut batch = Batch::default();
            for number in first..batches {
                worker.make(number, &mut Lent(&mut *target), &mut batch)?;
                target.accept(&batch, None)?;
            }
            return Ok(());
        }
        let mut output = Output::new(job.blocks);
        for number in first..batches {
            worker.run(number, &mut output)?;
            output.give(target)?;
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
            output.give(target)?;
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
