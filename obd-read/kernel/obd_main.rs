// SPDX-License-Identifier: GPL-2.0

//! overlaybd images as block devices, read-only or with what is written in memory until a process
//! has made a layer of it.
//!
//! # Life of a device
//!
//! `mkdir` in configfs makes a device without a disk; writing to `power` gives
//! it one and takes it away again ([`configfs`]). The disk's queue owns all that
//! reads need ([`device::Device`]): files, indexes, buffers, a workqueue. The files
//! and indexes can be exchanged for others under readers ([`scratch`]).
//!
//! - The disk goes first: `del_gendisk()` lets no request in any more and waits
//!   for those that are there. Only then is the queue's data dropped, the
//!   workqueue in it drained and the files closed. So a request may use the
//!   device until it is ended, and nothing of it after.
//! - A disk in use is not taken away by `power`, which says `EBUSY`: whoever opened
//!   it first keeps it, as it is claimed under the lock that openers take. `rmdir`
//!   cannot refuse: soon after, in a workqueue that ends with the module, the disk
//!   dies, its users get errors, and the block layer's part stays until the last of
//!   them closes it, as does this module.
//! - A number (`obd0`) is free again when its disk is gone.
//!
//! # Life of a request
//!
//! `queue_rq()` answers at once what needs no I/O (zeros). For the rest it may sleep,
//! but it runs in any context, in the middle of another file system's transaction, on
//! a list of bios to be submitted later or by the block layer's own workers, and while
//! it does, its caller submits nothing else. So it reads only if nobody loses by that:
//!
//! - the submitter does nothing but wait for this request, and says so
//!   ([`mq::Request::submitter_waits`]): asynchronous reads, those that must not wait
//!   and read ahead go to workers, however few they are, as more of them are to come. Read
//!   ahead of a single page is for a reader at random, who waits for it;
//! - it is the last of those that are submitted together: the others are at work then;
//! - the task may wait for I/O here ([`mq::in_submitter`]);
//! - there is a buffer, and the read succeeds.
//!
//! How many others are under way does not matter: who waits decodes on its own CPU, and
//! many who wait on all. On a stack there is one such read: what it reads from below is
//! served by workers if that is a device of this kind, too. Whoever is beneath on the
//! stack may have locks of its own file system; it would have them while it waits for a
//! worker, too. Those of the blobs' are taken under them, which is the order of the
//! layers, and no blob is written to. Blobs are read past the page cache: those on block devices
//! by bios of this module's own, so nothing is locked at all; those in files if the file system can
//! do that without waiting for its inode's lock, which may be of the same class as one beneath on
//! the stack. What it takes then are locks under which it looks up where data is, as it does
//! itself for read ahead, with the same locks beneath. What it cannot comes through the page cache,
//! which has locks of its own: not for who must not enter a file system, such as whoever reads
//! ahead ([`mq::may_enter_file_systems`]). A worker reads that.
//!
//! What no submitter reads has its I/O started in `queue_rq()`, if there is a buffer to spare: the
//! drive works while the decoder does for the request before, and a worker gets this one when the
//! bytes are there. The bio, or what a file system needs for it, and the buffer are the request's
//! until a worker has both; nothing of them is looked at before the read has ended. Whatever fails
//! there is read again by the worker, which says what is wrong. These requests have a workqueue of
//! their own, as those who wait for buffers in the other one may wait for theirs.
//!
//! - On block devices that is what is larger than a page, whoever submits it: it waits for nothing,
//!   not even tags of the drive's, so no rule is needed about who it is and what he has.
//! - In files it is whatever is compressed, if the task may wait for I/O here, as above: a file
//!   system that does not know where the data is reads that at once.
//!
//! A file system may end a read before it has returned from starting it, and looks at the file and
//! the buffer until it has. So the end that hands on the request is what comes last of both
//! ([`file::AsyncRead`]): only then may a worker give the buffer back, which may be the last one
//! that has the file open.
//!
//! All else goes to the workqueue, whose work is part of the request. A worker takes
//! buffers ([`scratch`]), reads, checks and decodes to the request's memory, gives the
//! buffers back and ends the request. Each device has workqueues with a rescuer: it
//! may be stacked on another one, and no I/O may wait for memory that waits for I/O.
//!
//! A write is copied to memory at once, with what memory there is without waiting; what takes
//! more, or what is in the image, goes to a worker. What has to wait for the writer, by which all
//! is meant that only user space can bring to an end, waits in a list ([`dirty`]).
//!
//! # Life of a writable disk's writer
//!
//! What a writer has open is no reference of the disk's, which goes without it ([`writer`]). But
//! calls under way, and who waits for a writer in a workqueue, keep the device for as long as they
//! take: they end soon after the disk says that it goes, and so may be those that drop the device
//! then, with its files. The device's own workers have no reference of their own, so none of them
//! waits for itself.
//!
//! Locks, outermost first: those of configfs, a device's configuration, seats, a seat, buffers,
//! written blocks, and decoded ones ([`cache`]). The last three are taken on the way of I/O, the
//! last one by who needs memory, too, so that none is allocated under it.
//!
//! [`mq::Request::submitter_waits`]: kernel::block::mq::Request::submitter_waits
//! [`mq::in_submitter`]: kernel::block::mq::in_submitter
//! [`mq::may_enter_file_systems`]: kernel::block::mq::may_enter_file_systems
//! [`file::AsyncRead`]: kernel::fs::file::AsyncRead

mod abi;
mod blob;
mod cache;
mod configfs;
mod content;
mod device;
mod dirty;
mod layer0;
mod log;
mod platform;
mod scratch;
mod stack;
mod writer;

use kernel::{
    miscdevice::MiscDeviceRegistration,
    prelude::*, //
};

module! {
    type: ObdModule,
    name: "obd",
    authors: ["aios"],
    description: "overlaybd images as block devices",
    license: "GPL v2",
}

#[pin_data]
struct ObdModule {
    #[pin]
    subsystem: kernel::configfs::Subsystem<configfs::Devices>,
    #[pin]
    node: MiscDeviceRegistration<writer::Writer>,
    /// Dropped after all that: disks have seats.
    seats: writer::Opened,
    /// And blobs, whose blocks are there.
    cache: cache::Started,
}

impl kernel::InPlaceModule for ObdModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            cache: cache::start()?,
            seats: writer::start()?,
            node <- writer::node(),
            subsystem <- configfs::subsystem(),
        })
    }
}
