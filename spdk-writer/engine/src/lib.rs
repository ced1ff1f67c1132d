// SPDX-License-Identifier: MIT

//! Block I/O from userspace, in batches, asynchronous, out of memory that the
//! engine owns.
//!
//! An [`Engine`] takes [`Request`]s, tells the device of all of them at once
//! ([`Engine::kick`]) and hands back what is done ([`Engine::reap`]). There are
//! [`Uring`], for files and block devices, [`Vfio`], which drives an NVMe
//! controller from this process, and with the feature `spdk` `Spdk`, which does
//! so by SPDK's driver. Most users want [`Shared`], which several
//! threads can use and which has simple blocking calls, too.
//!
//! # What is promised
//!
//! * A request that was accepted comes back exactly once, with its buffer, as
//!   done or failed, in any order. Requests that overlap and are in flight
//!   together may take effect in any order.
//! * A [`Action::Flush`] that succeeded made every write durable that had come
//!   back before it was submitted; of others it says nothing.
//! * A [`Action::WriteThrough`] that came back is durable, without a flush.
//! * Where [`Identity::volatile_cache`] is false a write is durable when it
//!   comes back, and flushes cost no command.
//! * A device touches a buffer only while its request is in flight. An engine
//!   that is dropped first waits, or stops the device.
//!
//! # Layout
//!
//! * [`memory`] buffers; [`shared`] one engine for several threads.
//! * [`uring`], [`vfio`], `spdk` the engines. [`guard`] whether a device may be taken.
//! * [`check`] a suite that every engine has to pass.

pub mod check;
pub mod error;
pub mod guard;
pub mod identity;
pub mod memory;
mod nvme;
mod passthrough;
pub mod shared;
#[cfg(feature = "spdk")]
pub mod spdk;
pub mod stats;
pub mod uring;
pub mod vfio;

pub use error::{
    Error,
    Status, //
};
pub use identity::Identity;
pub use memory::{
    Buffer,
    Memory, //
};
pub use shared::Shared;
#[cfg(feature = "spdk")]
pub use spdk::Spdk;
pub use stats::Stats;
pub use uring::Uring;
pub use vfio::Vfio;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Fill the beginning of the buffer from the device.
    Read,
    /// Write the beginning of the buffer to the device.
    Write,
    /// The same, and it is durable when it comes back (force unit access): for a
    /// write that is promised alone. It says nothing of others.
    WriteThrough,
    /// Make earlier writes durable.
    Flush,
    /// The range's content is not needed any more; what it reads as is undefined.
    Discard,
    /// The range reads as zeros from now on.
    WriteZeroes,
}

impl Action {
    /// Whether it has a buffer: reads and writes.
    pub fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::WriteThrough)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Action::Read => "read",
            Action::Write => "write",
            Action::WriteThrough => "write through",
            Action::Flush => "flush",
            Action::Discard => "discard",
            Action::WriteZeroes => "write zeroes",
        })
    }
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// The caller's; comes back with it.
    pub tag: u64,
    /// What to do.
    pub action: Action,
    /// First byte of the device, a multiple of its block size; 0 for a flush.
    pub offset: u64,
    /// Bytes, a multiple of the device's block size; 0 for a flush.
    pub len: u64,
    /// Of reads and writes: from the memory of the same engine.
    pub buffer: Option<Buffer>,
}

/// A request that came back.
#[derive(Debug)]
pub struct Done {
    /// The request's.
    pub tag: u64,
    /// The request's.
    pub buffer: Option<Buffer>,
    /// How it went.
    pub result: Result<(), Error>,
}

/// A request that was not accepted.
#[derive(Debug)]
pub struct Refused {
    /// The request, untouched.
    pub request: Request,
    /// Why not.
    pub error: Error,
}

/// What does block I/O.
pub trait Engine: Send {
    /// What is known of the device.
    fn identity(&self) -> &Identity;

    /// Where buffers come from.
    fn memory(&self) -> &Memory;

    /// Most requests that can be in flight.
    fn depth(&self) -> usize;

    /// Requests that are in flight.
    fn in_flight(&self) -> usize;

    /// Accepts a request; the device may not know of it before [`Engine::kick`].
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if [`Engine::depth`] are in flight,
    /// [`Error::Request`] for one that cannot be; both with the request. It is
    /// boxed because errors are rare and requests are not small.
    fn submit(&mut self, request: Request) -> Result<(), Box<Refused>>;

    /// Tells the device of all that was submitted.
    ///
    /// # Errors
    ///
    /// The device is lost; nothing will come back any more.
    fn kick(&mut self) -> Result<(), Error>;

    /// Appends what came back to `done`. If nothing has, something is in flight
    /// and `wait` is set, this waits without burning a processor.
    ///
    /// # Errors
    ///
    /// The device is lost; nothing will come back any more.
    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) -> Result<(), Error>;

    /// What was done so far.
    fn stats(&self) -> &Stats;
}
