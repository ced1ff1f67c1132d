// SPDX-License-Identifier: MIT

//! The writer of a read-write obd disk.
//!
//! The driver keeps what is written to the disk in memory and freezes it now and
//! then, at a flush for one. It writes records of that to the [`log`] that the
//! [`Writer`] opens, which ends flushes. Now and then the [`Writer`] makes one more
//! compressed layer of what is in the log, or of what is frozen if that cannot be
//! there, from the driver's own pages, and the driver reads that from then on.
//!
//! # The order of things
//!
//! A commit is: the layer written and synced, its folder synced; then `image.json`,
//! which names it and says which records it has, written under a temporary name,
//! synced, renamed, its folder synced; then the driver is told (`stack`). A merge is
//! the same, with its layer in the place of several, which are removed at the very
//! end. So whatever `image.json` names is durable at any time, and the driver
//! acknowledges nothing that is neither in a layer that it names nor in a record that
//! it does not call dead. What it does not name is of a writer that died, and is
//! removed by [`Device::open`].
//!
//! A writer that died between `image.json` and `stack` leaves the driver one
//! step behind: `image.json` says which step, and the next writer tells the
//! driver of it.
//!
//! # Layout
//!
//! * [`folder`] the files of a device, and what a power cut leaves of them; [`stored`] the
//!   same with layers in a store.
//! * [`image`] `image.json`; [`log`] what is in no layer yet; [`device`] a device's
//!   folder as a whole.
//! * [`kernel`] the driver as the writer sees it; `uapi` its structures.
//! * `frozen` a frozen layer as a source of content; `merge` which layers become
//!   one, and how.
//! * [`writer`] the loop; [`stats`] what it did.

#![deny(unsafe_code)]

pub mod device;
mod error;
pub mod folder;
mod frozen;
pub mod image;
pub mod kernel;
pub mod log;
mod merge;
pub mod stats;
pub mod stored;
mod uapi;
pub mod writer;

pub use device::Device;
pub use error::Error;
pub use folder::{
    Directory,
    Folder, //
};
pub use kernel::Kernel;
pub use merge::{
    Depth,
    compact, //
};
pub use stats::Stats;
pub use stored::Stored;
pub use writer::{
    End,
    Options,
    Writer, //
};

/// Bytes of a block of a read-write disk: what is kept, frozen and written.
pub const BLOCK: u64 = 4096;

/// Largest disk, bytes: discarded as a whole it takes half of the segments that a
/// layer can have.
pub const MAX_SIZE: u64 = 4 << 40;
