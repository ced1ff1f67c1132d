// SPDX-License-Identifier: GPL-2.0

//! A device: what its disk's queue owns, and how its requests are served.

use crate::blob::ReadError;
use crate::content::{
    Content,
    Failure,
    Text, //
};
use crate::platform::Kernel;
use crate::scratch::{
    Pool,
    MAX_READERS, //
};
use crate::stack::Stack;
use core::{
    pin::Pin,
    slice, //
};
use kernel::{
    alloc::scope::without_io,
    block::{
        mq::{
            self,
            gen_disk::{
                GenDisk,
                GenDiskBuilder, //
            },
            in_submitter,
            Below,
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
    LayerError, //
};

/// Requests that a hardware queue can have under way.
const DEPTH: u32 = 64;

/// Largest request, in sectors. Larger reads are split, so that several CPUs decode.
const MAX_SECTORS: u32 = 256 << (10 - SECTOR_SHIFT);

/// What reads need, and what they count.
///
/// Dropped when no request is left, see the crate's documentation.
#[pin_data]
pub(crate) struct Device {
    /// Dropped first: its last work may just have ended its request.
    queue: OwnedQueue,
    name: CString,
    /// What is read, and with what.
    #[pin]
    pool: Pool,
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
    /// Sectors in reads that were served.
    pub(crate) sectors: Atomic<u64>,
    /// Reads that failed.
    pub(crate) errors: Atomic<u64>,
}

impl Device {
    /// Puts `content` of `paths` on the disk `obdN`, where N is `number`.
    pub(crate) fn attach(
        number: u32,
        content: Content,
        paths: KVec<CString>,
    ) -> Result<GenDisk<Disk>> {
        // More queues than readers would be tags for nothing.
        let queues = nr_cpu_ids().min(MAX_READERS as u32);
        let flags = mq::Flags::NO_SCHED_BY_DEFAULT | mq::Flags::BLOCKING;
        let tags = Arc::pin_init(TagSet::with_flags(queues, DEPTH, 1, flags), GFP_KERNEL)?;
        let sectors = content.sectors();
        let needs = content.needs();
        let queue = OwnedQueue::new(
            fmt!("obd{number}"),
            QueueFlags::UNBOUND | QueueFlags::MEM_RECLAIM,
            MAX_READERS as u32,
        )?;
        let device = KBox::pin_init(
            try_pin_init!(Device {
                queue,
                name: CString::try_from_fmt(fmt!("obd{number}"))?,
                pool <- Pool::new(Stack::new(content, paths)),
                complaints <- RateLimit::new(),
                counts: Counts {
                    reads: Atomic::new(0),
                    zeros: Atomic::new(0),
                    direct: Atomic::new(0),
                    sectors: Atomic::new(0),
                    errors: Atomic::new(0),
                },
            }? Error),
            GFP_KERNEL,
        )?;
        GenDiskBuilder::new()
            .capacity_sectors(sectors)
            .logical_block_size(SECTOR_SIZE)?
            .physical_block_size(PAGE_SIZE as u32)?
            .read_only(true)
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
    /// have begun end with the layers they began with, which are closed after the last of them.
    pub(crate) fn exchange(&self, first: usize, nr: usize, path: &CStr) -> Result<(), Failure> {
        self.pool.exchange(|stack| stack.exchanged(first, nr, path))
    }

    /// Fills the memory of `rq` from `stack`; on failure, says where that was.
    fn read(
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
    fn read_directly(&self, rq: &Request<Disk>, below: Below, is_last: bool) -> bool {
        is_last
            && (rq.submitter_waits() || Self::is_awaited(rq, below))
            && in_submitter(below, || {
                self.pool.try_with(|stack, scratch| {
                    // The layers may have been exchanged since it was looked at.
                    stack.below == below && Self::read(rq, stack, scratch).is_ok()
                })
            })
            .flatten()
            .unwrap_or(false)
    }

    /// Whether somebody waits for what is read ahead: a single page is what a reader at random
    /// wants. He has a lock of the page cache's above, so that none below may be taken.
    fn is_awaited(rq: &Request<Disk>, below: Below) -> bool {
        below == Below::Devices && rq.len_bytes() as usize == PAGE_SIZE && rq.reads_ahead()
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
                self.counts.reads.add(1, Relaxed);
                self.counts.sectors.add(u64::from(sectors), Relaxed);
            }
            Err(_) => self.counts.errors.add(1, Relaxed),
        }
    }
}

/// The disk of a [`Device`].
pub(crate) struct Disk;

/// What a request has of ours.
#[pin_data]
pub(crate) struct Job {
    #[pin]
    work: Work<Request<Disk>>,
}

impl_has_work! {
    impl HasWork<Request<Disk>> for Job { self.work }
}

#[vtable]
impl mq::Operations for Disk {
    type QueueData = Pin<KBox<Device>>;
    type RequestData = Job;

    fn new_request_data() -> impl PinInit<Job, Error> {
        try_pin_init!(Job {
            work <- new_work!("obd::Job::work"),
        }? Error)
    }

    fn queue_rq(device: Pin<&Device>, rq: ARef<Request<Self>>, is_last: bool) -> QueueResult<Self> {
        // The block layer lets nobody open the disk for writing, but those within the kernel.
        if rq.op() != Op::Read {
            return Err((EOPNOTSUPP, rq));
        }
        let (is_zeros, below) = device.pool.glance(|stack| {
            let offset = rq.sector() << SECTOR_SHIFT;
            let is_zeros = stack.content.is_zeros(offset, rq.len_bytes().into());
            (is_zeros, stack.below)
        });
        if is_zeros && rq.zero().is_ok() {
            device.counts.zeros.add(1, Relaxed);
            device.count(&rq, Ok(()));
            end(rq, Ok(()));
            return Ok(());
        }
        if device.read_directly(&rq, below, is_last) {
            device.counts.direct.add(1, Relaxed);
            device.count(&rq, Ok(()));
            end(rq, Ok(()));
            return Ok(());
        }
        // Nothing of the device may be used from here on: the request may have ended.
        device.queue.enqueue(rq).map_err(|rq| (EIO, rq))
    }

    fn commit_rqs(_device: Pin<&Device>) {}

    fn complete(rq: ARef<Request<Self>>) {
        end(rq, Ok(()));
    }
}

impl RequestWork for Disk {
    fn run(rq: ARef<Request<Self>>) {
        let device = rq.queue_data();
        let result = without_io(|| {
            device.pool.with(|stack, scratch| {
                Device::read(&rq, stack, scratch).map_err(|(offset, error)| {
                    device.complain(stack, offset, &error);
                    EIO
                })
            })
        });
        device.count(&rq, result);
        end(rq, result);
    }
}

/// Gives a request back to the block layer.
fn end(rq: ARef<Request<Disk>>, result: Result) {
    let ended = match result {
        Ok(()) => Request::end_ok(rq),
        Err(error) => Request::end_err(rq, error),
    };
    // Nobody else takes references.
    if ended.is_err() {
        pr_err!("a request is still in use\n");
    }
}
