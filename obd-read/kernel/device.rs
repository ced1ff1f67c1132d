// SPDX-License-Identifier: GPL-2.0

//! A device: what its disk's queue owns, and how its requests are served.

use crate::blob::{
    Lower,
    ReadError, //
};
use crate::content::{
    Content,
    Failure,
    Text, //
};
use crate::dirty::{
    Dirty,
    Limits,
    Written, //
};
use crate::layer0::BLOCK;
use crate::platform::Kernel;
use crate::scratch::{
    Buffer,
    Pool,
    MAX_READERS, //
};
use crate::stack::{
    Below,
    Stack, //
};
use core::{
    cell::UnsafeCell,
    ptr,
    slice, //
};
use kernel::{
    alloc::scope::without_io,
    block::{
        bdev,
        mq::{
            self,
            gen_disk::{
                GenDisk,
                GenDiskBuilder, //
            },
            in_submitter,
            Op,
            QueueResult,
            Request,
            RequestWork,
            TagSet, //
        },
        SECTOR_SHIFT,
        SECTOR_SIZE, //
    },
    cpu::nr_cpu_ids,
    fs::file,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    ratelimit::RateLimit,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Completion, //
    },
    workqueue::{
        impl_has_work,
        OwnedQueue,
        QueueFlags,
        Work, //
    },
};
use obd_core::{
    scratch::Scratch,
    source::SLACK,
    LayerError, //
};

/// Requests that a hardware queue can have under way.
const DEPTH: u32 = 64;

/// Largest request, in sectors. Larger reads are split, so that several CPUs decode.
const MAX_SECTORS: u32 = 256 << (10 - SECTOR_SHIFT);

/// Most compressed bytes that are read before a worker has the request: with the blocks around
/// them, one bio.
const MAX_FETCH: usize = bdev::MAX_BYTES - SLACK;

/// Largest request to discard or zero, in sectors.
const MAX_ZERO_SECTORS: u32 = 1 << (30 - SECTOR_SHIFT);

/// What requests need, and what they count.
///
/// Dropped when no request is left, see the crate's documentation, and not by its own workers: they
/// have no reference.
#[pin_data]
pub(crate) struct Device {
    /// Dropped first, with the next one: its last work may just have ended its request.
    queue: OwnedQueue,
    /// For requests whose I/O was started where they were submitted, and which have buffers: they
    /// must not wait for workers that wait for those.
    fetched: OwnedQueue,
    name: CString,
    /// What is read, and with what.
    #[pin]
    pool: Pool,
    /// What was written, if the disk can be written to.
    dirty: Option<Arc<Dirty>>,
    #[pin]
    complaints: RateLimit,
    pub(crate) counts: Counts,
}

/// How often something happened.
pub(crate) struct Counts {
    /// Reads that were served.
    pub(crate) reads: Atomic<u64>,
    /// Those of them that took no I/O.
    pub(crate) zeros: Atomic<u64>,
    /// Those of them that were served by who submitted them.
    pub(crate) direct: Atomic<u64>,
    /// Reads whose I/O was started by who submitted them.
    pub(crate) fetched: Atomic<u64>,
    /// Layers that were stacked.
    pub(crate) commits: Atomic<u64>,
    /// How often the writer had what was frozen in its log.
    pub(crate) logged: Atomic<u64>,
    /// How often the writer could not make one.
    pub(crate) failed_commits: Atomic<u64>,
    /// Writes, discards and writes of zeros that were served.
    pub(crate) writes: Atomic<u64>,
    /// Sectors in reads and in all these that were served.
    pub(crate) sectors: Atomic<u64>,
    /// Requests that failed.
    pub(crate) errors: Atomic<u64>,
}

impl Device {
    /// Puts `content` of `paths` on the disk `obdN`, where N is `number`; with `limits`, it can be
    /// written to.
    pub(crate) fn attach(
        number: u32,
        content: Content,
        paths: KVec<CString>,
        limits: Option<Limits>,
    ) -> Result<GenDisk<Disk>> {
        // More queues than readers would be tags for nothing.
        let queues = nr_cpu_ids().min(MAX_READERS as u32);
        let flags = mq::Flags::NO_SCHED_BY_DEFAULT | mq::Flags::BLOCKING;
        let tags = Arc::pin_init(TagSet::with_flags(queues, DEPTH, 1, flags), GFP_KERNEL)?;
        let sectors = content.sectors();
        let needs = content.needs();
        let flags = QueueFlags::UNBOUND | QueueFlags::MEM_RECLAIM;
        let queue = OwnedQueue::new(fmt!("obd{number}"), flags, MAX_READERS as u32)?;
        let fetched = OwnedQueue::new(fmt!("obd{number}-io"), flags, MAX_READERS as u32)?;
        // Each queue has a request of its own for flushes.
        let requests = (queues * (DEPTH + 1)) as usize;
        let dirty = match limits {
            Some(limits) => Some(Arc::pin_init(Dirty::new(limits, requests), GFP_KERNEL)?),
            None => None,
        };
        let stack = Stack::new(content, paths)?;
        let device = Arc::pin_init(
            try_pin_init!(Device {
                queue,
                fetched,
                name: CString::try_from_fmt(fmt!("obd{number}"))?,
                pool <- Pool::new(stack),
                dirty,
                complaints <- RateLimit::new(),
                counts: Counts {
                    reads: Atomic::new(0),
                    zeros: Atomic::new(0),
                    direct: Atomic::new(0),
                    fetched: Atomic::new(0),
                    commits: Atomic::new(0),
                    logged: Atomic::new(0),
                    failed_commits: Atomic::new(0),
                    writes: Atomic::new(0),
                    sectors: Atomic::new(0),
                    errors: Atomic::new(0),
                },
            }? Error),
            GFP_KERNEL,
        )?;
        let zeroes = limits.map_or(0, |_| MAX_ZERO_SECTORS);
        GenDiskBuilder::new()
            .write_cache(limits.is_some_and(|limits| !limits.volatile))
            // All that was written before is durable at one moment.
            .fua_flushes(true)
            .zeroes(zeroes, BLOCK as u32)
            .capacity_sectors(sectors)
            .logical_block_size(SECTOR_SIZE)?
            .physical_block_size(PAGE_SIZE as u32)?
            .read_only(limits.is_none())
            // An image is of who knows whom: the kernel's parsers of partition tables stay out.
            .partitions(false)
            .io_opt(u32::try_from(needs.block)?.max(PAGE_SIZE as u32))
            .max_hw_sectors(MAX_SECTORS)
            .max_segments(u16::MAX)
            .max_segment_size(u32::MAX)
            .build(fmt!("obd{number}"), tags, device)
    }

    /// What is on the disk now.
    pub(crate) fn stack(&self) -> Arc<Stack> {
        self.pool.stack()
    }

    /// Puts the layer at `path` in place of the `nr` layers from `first` on, at once. Reads that
    /// have begun end with the layers they began with, which are closed after the last of them:
    /// then what this returns is done.
    pub(crate) fn exchange(
        &self,
        first: usize,
        nr: usize,
        path: &CStr,
    ) -> Result<Arc<Completion>, Failure> {
        self.pool.exchange(|stack| stack.exchanged(first, nr, path))
    }

    /// What was written, if the disk can be written to.
    pub(crate) fn dirty(&self) -> Option<&Dirty> {
        self.dirty.as_deref()
    }

    /// Puts the layer at `path`, which is made of the layer `id` that the writer was lent, as
    /// [`Device::exchange`] does; 0 is none. Nobody reads layers any more that were replaced.
    pub(crate) fn stack_lent(
        &self,
        id: u64,
        first: usize,
        nr: usize,
        path: &CStr,
    ) -> Result<(), Failure> {
        let dirty = self
            .dirty()
            .ok_or(Failure::whole(EOPNOTSUPP, "it is read-only"))?;
        // Reads under way need nothing but their own I/O to end.
        let replaced = |unread: Arc<Completion>| {
            if nr > 0 {
                unread.wait_for_completion();
            }
        };
        if id == 0 {
            return self.exchange(first, nr, path).map(replaced);
        }
        dirty.stacks(id).map_err(|error| {
            let text = match error == EBUSY {
                true => "something older is not stacked",
                false => "that is neither frozen nor sealed",
            };
            Failure::whole(error, text)
        })?;
        let exchanged = self.exchange(first, nr, path);
        let newest = exchanged.as_ref().ok().map(|_| self.stack().number);
        dirty.stacked(id, newest);
        let unread = exchanged?;
        self.counts.commits.add(1, Relaxed);
        self.wake_writes();
        replaced(unread);
        Ok(())
    }

    /// Has the writes tried again that wait for memory, or fail.
    pub(crate) fn wake_writes(&self) {
        let Some(dirty) = self.dirty() else { return };
        // Those that do not get on come back.
        for _ in 0..dirty.waiters() {
            let Some(rq) = dirty.waiting() else { return };
            // It is on no queue.
            if let Err(rq) = self.queue.enqueue(rq) {
                end(rq, Err(EIO));
            }
        }
    }

    /// Nothing is written from here on, and nobody waits for it, as the disk goes.
    pub(crate) fn leave(&self) {
        let Some(dirty) = self.dirty() else { return };
        let lost = dirty.leave();
        self.wake_writes();
        if lost > 0 && !dirty.limits.volatile {
            pr_err!(
                "{}: {} bytes of what was written are lost\n",
                &*self.name,
                lost
            );
        }
    }

    /// Waits for a writer, and for too long at most: then nothing is written.
    pub(crate) fn watch_for_writer(&self) {
        let Some(dirty) = self.dirty() else { return };
        if dirty.watch() {
            pr_err!(
                "{}: no writer, nothing is written from here on\n",
                &*self.name
            );
            self.wake_writes();
        }
    }

    /// Says why the layer at `path` did not get into the image.
    pub(crate) fn complain_of_layer(&self, path: &CStr, failure: &Failure) -> Error {
        if self.complaints.allows(&self.name) {
            let text = failure.text.as_str();
            pr_err!("{}: {}: {}\n", &*self.name, path, text);
        }
        failure.error
    }

    /// Says that there is a writer again.
    pub(crate) fn writer_is_back(&self) {
        pr_info!("{}: there is a writer again\n", &*self.name);
    }

    /// Reads what is in the image of a block.
    pub(crate) fn read_block(&self, block: usize, to: &mut [u8; BLOCK]) -> Result {
        let offset = (block * BLOCK) as u64;
        self.pool.with(|stack, scratch| {
            stack.content.read(offset, to, 0, scratch).map_err(|error| {
                self.complain(stack, offset, &error);
                EIO
            })
        })
    }

    /// Whether there are blocks in memory, which reads have to look at: if not, all is in the stack
    /// that they find after this.
    fn is_dirty(&self) -> bool {
        self.dirty().is_some_and(|dirty| !dirty.is_empty())
    }

    /// Fills the memory of `rq` with blocks that are in memory, if all of them are.
    fn read_memory(&self, rq: &Request<Disk>) -> bool {
        let Some(dirty) = self.dirty() else {
            return false;
        };
        let mut offset = rq.sector() << SECTOR_SHIFT;
        rq.segments().all(|segment| {
            // SAFETY: The memory is there for as long as `rq`, which is a read.
            let served = unsafe { dirty.serve(offset, segment.as_ptr(), segment.len(), u64::MAX) };
            offset += segment.len() as u64;
            served.is_ok_and(|(_, below)| below == 0)
        })
    }

    /// As [`Device::read`], with what is in memory in place of what is in `stack`.
    fn read_over(
        dirty: &Dirty,
        rq: &Request<Disk>,
        stack: &Stack,
        scratch: &mut Scratch<Kernel>,
    ) -> Result<(), Fault> {
        let mut offset = rq.sector() << SECTOR_SHIFT;
        for segment in rq.segments() {
            let mut at = 0;
            while at < segment.len() {
                let to = segment.as_ptr().wrapping_add(at);
                let len = segment.len() - at;
                // SAFETY: The memory is there for as long as `rq`, which is a read.
                let served = unsafe { dirty.serve(offset, to, len, stack.number) };
                let (here, below) = served.map_err(|_| Fault::Outdated)?;
                offset += here as u64;
                // SAFETY: As in `Device::read`.
                let buf = unsafe { slice::from_raw_parts_mut(to.wrapping_add(here), below) };
                if below > 0 {
                    stack
                        .content
                        .read(offset, buf, 0, scratch)
                        .map_err(|error| Fault::At(offset, error))?;
                }
                offset += below as u64;
                at += here + below;
            }
        }
        Ok(())
    }

    /// Fills the memory of `rq` from `stack`, and if `is_dirty`, which was asked before the stack
    /// was taken, from memory; on failure, says where that was.
    fn read(
        &self,
        rq: &Request<Disk>,
        is_dirty: bool,
        stack: &Stack,
        scratch: &mut Scratch<Kernel>,
    ) -> Result<(), Fault> {
        match self.dirty() {
            Some(dirty) if is_dirty => Self::read_over(dirty, rq, stack, scratch),
            _ => Self::read_stack(rq, stack, scratch)
                .map_err(|(offset, error)| Fault::At(offset, error)),
        }
    }

    /// Fills the memory of `rq` from `stack`; on failure, says where that was.
    fn read_stack(
        rq: &Request<Disk>,
        stack: &Stack,
        scratch: &mut Scratch<Kernel>,
    ) -> Result<(), (u64, LayerError<ReadError>)> {
        let mut offset = rq.sector() << SECTOR_SHIFT;
        let mut ahead = u64::from(rq.len_bytes());
        for segment in rq.segments() {
            ahead -= segment.len() as u64;
            // SAFETY: The memory is there for as long as `rq`, which is a read, and this is its
            // only work. The slice is not exclusive, though: with O_DIRECT it is memory of user
            // space, which may read and write it meanwhile, or have other reads write to it.
            // That is harmless as with any such buffer: what is decoded to it is written, and
            // what decoders copy again from there is data; no length, offset or checksum is
            // ever taken from it. So other writers spoil its content and nothing else, and get
            // what they asked for.
            let buf = unsafe { slice::from_raw_parts_mut(segment.as_ptr(), segment.len()) };
            stack
                .content
                .read(offset, buf, ahead, scratch)
                .map_err(|error| (offset, error))?;
            offset += segment.len() as u64;
        }
        Ok(())
    }

    /// Fills the memory of `rq` in the context of its submitter, if that waits for it anyway, may
    /// wait for I/O here, and a buffer is there. See the crate's documentation for the rule.
    ///
    /// Whatever fails is left to a worker, as are signals: it has none, and says what is wrong.
    fn read_directly(
        &self,
        rq: &Request<Disk>,
        is_dirty: bool,
        below: Below,
        is_last: bool,
    ) -> bool {
        is_last
            && (rq.submitter_waits() || Self::is_awaited(rq, below))
            && in_submitter(|| {
                self.pool
                    .try_with(|stack, scratch| self.read(rq, is_dirty, stack, scratch).is_ok())
            })
            .flatten()
            .unwrap_or(false)
    }

    /// Starts to read the compressed bytes that `rq` begins with, and leaves the rest to a worker;
    /// gives `rq` back if that is not possible. See the crate's documentation for the rule.
    ///
    /// What is in memory was looked at before, and nothing there is wanted.
    fn fetch(&self, rq: ARef<Request<Disk>>) -> Result<(), ARef<Request<Disk>>> {
        let Some(mut buffer) = self.pool.lend() else {
            return Err(rq);
        };
        let Buffer {
            scratch,
            stack,
            of_device,
            of_file,
            fetched,
            ..
        } = &mut *buffer;
        let (offset, len) = (rq.sector() << SECTOR_SHIFT, u64::from(rq.len_bytes()));
        let place = stack
            .content
            .fetch(offset, len, MAX_FETCH)
            .and_then(|(fetch, blob)| {
                let (lower, blocks) = blob.lower(fetch.at, fetch.len)?;
                if matches!(lower, Lower::Device(_)) && len <= PAGE_SIZE as u64 {
                    // Not worth two trips, and comes by LBIO if it can.
                    return None;
                }
                let to = scratch.room().get_mut(..blocks.len)?.as_mut_ptr();
                *fetched = Some((fetch, blocks.skip));
                let lower = match lower {
                    Lower::Device(device) => Started::Device(device, of_device),
                    Lower::File(file) => Started::File(file, of_file),
                };
                Some((lower, blocks, to))
            });
        let Some((lower, blocks, to)) = place else {
            self.pool.run(buffer, |_, _| ());
            return Err(rq);
        };
        // SAFETY: Whoever has the request has its slot, and that is us.
        unsafe { *rq.data().buffer.0.get() = Some(buffer) };
        // SAFETY: The buffer is the request's, and nobody looks at it before the end of the read.
        // With it what reads, the memory at `to` and the stack stay, which has the device or file
        // open: none of them moves with the buffer, which is a pointer.
        let started = unsafe {
            match lower {
                Started::Device(device, read) => {
                    let sector = blocks.start >> SECTOR_SHIFT;
                    (*read).start::<Disk>(&*device, sector, to, blocks.len, rq)
                }
                Started::File(file, read) => {
                    let mut rq = Some(rq);
                    let started = in_submitter(|| match rq.take() {
                        Some(rq) => (*read).start::<Disk>(&*file, blocks.start, to, blocks.len, rq),
                        None => Ok(()),
                    });
                    // The task is not one to do that.
                    started.unwrap_or_else(|| rq.map_or(Ok(()), Err))
                }
            }
        };
        started.inspect_err(|rq| {
            if let Some(buffer) = Self::take_buffer(rq) {
                self.pool.run(buffer, |_, _| ());
            }
        })
    }

    /// Takes what `rq` has if its I/O was started where it was submitted.
    fn take_buffer(rq: &Request<Disk>) -> Option<KBox<Buffer>> {
        // SAFETY: Whoever has the request has its slot, and that is the caller.
        unsafe { (*rq.data().buffer.0.get()).take() }
    }

    /// Whether somebody waits for what is read ahead: a single page is what a reader at random
    /// wants. He has a lock of the page cache's above, so that none of one below may be taken.
    fn is_awaited(rq: &Request<Disk>, below: Below) -> bool {
        below != Below::Cache && rq.len_bytes() as usize == PAGE_SIZE && rq.reads_ahead()
    }

    #[cold]
    fn complain(&self, stack: &Stack, offset: u64, error: &LayerError<ReadError>) {
        if !self.complaints.allows(&self.name) {
            return;
        }
        let path = error
            .layer
            .and_then(|layer| stack.paths.get(layer))
            .map_or(c"image", |path| path);
        pr_err!(
            "{}: cannot read at byte {}: {}: {}\n",
            &*self.name,
            offset,
            path,
            Text::new(&error.error).as_str(),
        );
    }

    fn count(&self, rq: &Request<Disk>, result: Result) {
        match result {
            Ok(()) => {
                let sectors = rq.len_bytes() >> SECTOR_SHIFT;
                match rq.op() {
                    Op::Read => self.counts.reads.add(1, Relaxed),
                    _ => self.counts.writes.add(1, Relaxed),
                }
                self.counts.sectors.add(u64::from(sectors), Relaxed);
            }
            Err(_) => self.counts.errors.add(1, Relaxed),
        }
    }
}

/// What a read is started with, in a buffer.
enum Started {
    Device(*const bdev::BlockDevice, *const bdev::AsyncRead),
    File(*const file::File, *const file::AsyncRead),
}

/// Why a read failed.
enum Fault {
    /// The stack is older than what is in memory.
    Outdated,
    /// Something is wrong at this byte.
    At(u64, LayerError<ReadError>),
}

/// The disk of a [`Device`].
pub(crate) struct Disk;

/// What a request has of ours.
#[pin_data]
pub(crate) struct Job {
    #[pin]
    work: Work<Request<Disk>>,
    /// Bytes of a write that are in memory. Only who has the request uses it.
    done: Atomic<u32>,
    buffer: Slot,
}

/// The buffer of a request whose I/O was started before a worker has it.
///
/// Only who has the request uses it: first who was given it by the block layer, then the end of the
/// read, at last the worker. Each hands it on by what orders memory: a bio, a workqueue.
struct Slot(UnsafeCell<Option<KBox<Buffer>>>);

// SAFETY: One at a time uses it, see there, and a buffer is not bound to a task.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

impl_has_work! {
    impl HasWork<Request<Disk>> for Job { self.work }
}

#[vtable]
impl mq::Operations for Disk {
    type QueueData = Arc<Device>;
    type RequestData = Job;

    fn new_request_data() -> impl PinInit<Job, Error> {
        try_pin_init!(Job {
            work <- new_work!("obd::Job::work"),
            done: Atomic::new(0),
            buffer: Slot(UnsafeCell::new(None)),
        }? Error)
    }

    fn queue_rq(
        device: ArcBorrow<'_, Device>,
        rq: ARef<Request<Self>>,
        is_last: bool,
    ) -> QueueResult<Self> {
        if rq.op() != Op::Read {
            return device.queue_change(rq);
        }
        let is_dirty = device.is_dirty();
        let (is_zeros, below) = device.pool.glance(|stack| {
            let offset = rq.sector() << SECTOR_SHIFT;
            let is_zeros = stack.content.is_zeros(offset, rq.len_bytes().into());
            (is_zeros, stack.below)
        });
        if is_zeros && !is_dirty && rq.zero().is_ok() {
            device.counts.zeros.add(1, Relaxed);
            device.count(&rq, Ok(()));
            end(rq, Ok(()));
            return Ok(());
        }
        if is_dirty && device.read_memory(&rq) {
            device.count(&rq, Ok(()));
            end(rq, Ok(()));
            return Ok(());
        }
        if device.read_directly(&rq, is_dirty, below, is_last) {
            device.counts.direct.add(1, Relaxed);
            device.count(&rq, Ok(()));
            end(rq, Ok(()));
            return Ok(());
        }
        let may_fetch = match below {
            Below::Devices => rq.len_bytes() as usize > PAGE_SIZE,
            Below::Blocks => true,
            Below::Cache => false,
        };
        let rq = match may_fetch && !is_dirty {
            true => match device.fetch(rq) {
                Ok(()) => return Ok(()),
                Err(rq) => rq,
            },
            false => rq,
        };
        // Nothing of the device may be used from here on: the request may have ended.
        device.queue.enqueue(rq).map_err(|rq| (EIO, rq))
    }

    fn commit_rqs(_device: ArcBorrow<'_, Device>) {}

    fn complete(rq: ARef<Request<Self>>) {
        end(rq, Ok(()));
    }
}

impl bdev::ReadEnd for Disk {
    type Owner = ARef<Request<Self>>;

    fn ended(rq: ARef<Request<Self>>, result: Result) {
        Self::fetched(rq, result.map(|()| usize::MAX));
    }
}

impl file::ReadEnd for Disk {
    type Owner = ARef<Request<Self>>;

    fn ended(rq: ARef<Request<Self>>, result: Result<usize>) {
        Self::fetched(rq, result);
    }
}

impl Disk {
    /// Hands the request to a worker, however its read ended: with so many bytes at least, and
    /// fewer than are wanted if the file was cut.
    fn fetched(rq: ARef<Request<Self>>, result: Result<usize>) {
        // SAFETY: Whoever has the request has its slot, and that is us.
        if let Some(buffer) = unsafe { &mut *rq.data().buffer.0.get() } {
            buffer.result = result.and_then(|got| match buffer.fetched {
                Some((fetch, start)) if start + fetch.len <= got => Ok(()),
                _ => Err(ENODATA),
            });
        }
        let queue = ptr::from_ref(&rq.queue_data().fetched);
        // SAFETY: The device is there until the request ends. That may be before this returns, but
        // a workqueue is freed by RCU, after those who are adding work to it.
        if let Err(rq) = unsafe { (*queue).enqueue(rq) } {
            // It was on no queue.
            end(rq, Err(EIO));
        }
    }
}

impl RequestWork for Disk {
    fn run(rq: ARef<Request<Self>>) {
        if rq.op() == Op::Read {
            let result = match Device::take_buffer(&rq) {
                Some(buffer) => rq.queue_data().read_fetched(&rq, buffer),
                None => rq.queue_data().read_in_worker(&rq),
            };
            end(rq, result);
        } else {
            Device::change_in_worker(rq);
        }
    }
}

impl Device {
    /// Reads with what was read to `buffer` before, and without if that failed or is damaged: what
    /// is wrong then is an error. Waits for no other buffer.
    fn read_fetched(&self, rq: &Request<Disk>, mut buffer: KBox<Buffer>) -> Result {
        let fetched = buffer.fetched.take().filter(|_| buffer.result.is_ok());
        let result = without_io(|| {
            self.pool.run(buffer, |stack, scratch| {
                let room = scratch.room();
                if let Some((fetch, start)) = fetched {
                    // That of a file is the same.
                    bdev::AsyncRead::see(room);
                    scratch.fetched(&fetch, start);
                    if Self::read_stack(rq, stack, scratch).is_ok() {
                        self.counts.fetched.add(1, Relaxed);
                        return Ok(());
                    }
                    scratch.room();
                }
                Self::read_stack(rq, stack, scratch).map_err(|(offset, error)| {
                    self.complain(stack, offset, &error);
                    EIO
                })
            })
        });
        self.count(rq, result);
        result
    }

    fn read_in_worker(&self, rq: &Request<Disk>) -> Result {
        let result = loop {
            let is_dirty = self.is_dirty();
            let read = without_io(|| {
                self.pool.with(|stack, scratch| {
                    let read = self.read(rq, is_dirty, stack, scratch);
                    if let Err(Fault::At(offset, error)) = &read {
                        self.complain(stack, *offset, error);
                    }
                    read
                })
            });
            match read {
                Ok(()) => break Ok(()),
                Err(Fault::At(..)) => break Err(EIO),
                // There is a newer one, for sure.
                Err(Fault::Outdated) => {}
            }
        };
        self.count(rq, result);
        result
    }

    /// Serves what is no read, or queues it.
    fn queue_change(&self, rq: ARef<Request<Disk>>) -> QueueResult<Disk> {
        // The block layer lets nobody open a read-only disk for writing, but those within the
        // kernel.
        let Some(dirty) = self.dirty.clone() else {
            return Err((EOPNOTSUPP, rq));
        };
        let written = match rq.op() {
            Op::Flush => {
                if let Some((rq, result)) = dirty.flush(rq) {
                    end_change(rq, result);
                }
                return Ok(());
            }
            Op::Write | Op::Discard | Op::WriteZeroes => {
                rq.data().done.store(0, Relaxed);
                dirty.write(&rq, &rq.data().done, None)
            }
            Op::Read | Op::Other => return Err((EOPNOTSUPP, rq)),
        };
        let rq = match written {
            Written::Sleeps => rq,
            Written::Full => match dirty.wait_for_room(rq) {
                Some(rq) => rq,
                None => return Ok(()),
            },
            Written::Done => {
                end_written(&dirty, rq);
                return Ok(());
            }
            Written::Failed(error) => {
                end_change(rq, Err(error));
                return Ok(());
            }
        };
        // Nothing of the device may be used from here on: the request may have ended.
        self.queue.enqueue(rq).map_err(|rq| (EIO, rq))
    }

    /// Writes in a worker, which may wait for memory and read, but not wait for the writer.
    fn change_in_worker(rq: ARef<Request<Disk>>) {
        let mut rq = rq;
        loop {
            let device = rq.queue_data();
            // The device may be gone once the request waits.
            let Some(dirty) = device.dirty.clone() else {
                return end(rq, Err(EIO));
            };
            let written = without_io(|| dirty.write(&rq, &rq.data().done, Some(&device)));
            let error = match written {
                Written::Done => return end_written(&dirty, rq),
                Written::Failed(error) => error,
                Written::Sleeps => EIO,
                Written::Full => match dirty.wait_for_room(rq) {
                    Some(again) => {
                        rq = again;
                        continue;
                    }
                    None => return,
                },
            };
            return end_change(rq, Err(error));
        }
    }
}

/// Ends a write that is in memory, if it may end before it is durable; else that waits as a flush
/// does which came after it.
fn end_written(dirty: &Dirty, rq: ARef<Request<Disk>>) {
    let ended = match rq.is_fua() {
        true => dirty.flush(rq),
        false => Some((rq, Ok(()))),
    };
    if let Some((rq, result)) = ended {
        end_change(rq, result);
    }
}

/// Ends what is no read, and counts it if it is no flush.
pub(crate) fn end_change(rq: ARef<Request<Disk>>, result: Result) {
    if rq.op() != Op::Flush {
        rq.queue_data().count(&rq, result);
    }
    end(rq, result);
}

/// Gives a request back to the block layer.
pub(crate) fn end(rq: ARef<Request<Disk>>, result: Result) {
    let ended = match result {
        Ok(()) => Request::end_ok(rq),
        Err(error) => Request::end_err(rq, error),
    };
    // Nobody else takes references.
    if ended.is_err() {
        pr_err!("a request is still in use\n");
    }
}
