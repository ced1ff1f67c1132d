// SPDX-License-Identifier: GPL-2.0

//! overlaybd images as read-only block devices.
//!
//! # Life of a device
//!
//! `mkdir` in configfs makes a device without a disk; writing to `power` gives
//! it one and takes it away again ([`configfs`]). The disk's queue owns all that
//! reads need ([`device::Device`]): files, indexes, buffers, a workqueue.
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
//! `queue_rq()` may run in any context, in the middle of another file system's
//! transaction or on a list of bios to be submitted later, so it does no I/O: it
//! answers what needs none (zeros) and hands the rest to the workqueue, whose
//! work is part of the request. A worker takes buffers ([`scratch`]), reads,
//! checks and decodes to the request's memory, gives the buffers back and ends
//! the request. Each device has a workqueue with a rescuer: it may be stacked on
//! another one, and no I/O may wait for memory that waits for I/O.

mod blob;
mod configfs;
mod content;
mod device;
mod platform;
mod scratch;

use kernel::prelude::*;

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
}

impl kernel::InPlaceModule for ObdModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            subsystem <- configfs::subsystem(),
        })
    }
}
