// SPDX-License-Identifier: MIT

//! overlaybd images as block devices of the kernel's ublk driver: a process reads
//! and decodes what the kernel's driver for such images (`obd`) does by itself.
//! For kernels that lack that one, and to measure it against.
//!
//! One thread for each hardware queue, on the CPUs that the queue serves, with one
//! io_uring: requests come as completions of commands to the driver, blobs are read
//! asynchronously by the same ring, and blocks are decoded to memory that the
//! driver copies to the reader's when their result is committed. A thread sleeps
//! only when it has nothing else to do.
//!
//! # Layout
//!
//! * `uapi`: the kernel's structures and numbers.
//! * [`Control`]: makes, finds and removes devices.
//! * [`Disk`]: what is on one.
//! * `ring`, `memory`: what the kernel is asked for, and where it writes.
//! * `reader`, `decoder`: requests as reads of blobs, and what is made of them.
//! * `queue`: a hardware queue's thread.
//! * [`Server`]: a disk from beginning to end.

mod control;
mod decoder;
mod disk;
mod error;
mod log;
mod memory;
mod queue;
mod reader;
mod ring;
mod server;
mod uapi;

pub use control::{
    Control,
    Device,
    number,
    numbers, //
};
pub use disk::{
    Content,
    Disk, //
};
pub use error::Error;
pub use log::Sink;
pub use server::{
    Bell,
    MAX_DEPTH,
    MAX_QUEUES,
    Options,
    Server, //
};
