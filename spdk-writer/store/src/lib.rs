// SPDX-License-Identifier: MIT

//! A store of overlaybd layers on a raw namespace, a partition or a file.
//!
//! Layers are written one behind the other, whole extents, and never changed. A
//! commit is acknowledged once a superblock that names it is durable; there are
//! two, written in turn, each with a directory of its own, and the newer valid
//! one counts. `../FORMAT.md` is the format to the byte.
//!
//! # Layout
//!
//! * [`format`] the bytes; [`space`] what is free.
//! * [`store`] opening, publishing, committing, merging.
//! * [`stream`] writing from beginning to end over an engine; `journal` how far
//!   that got; [`file`] the same to a file with a name.
//! * [`parts`] layers that somebody else writes, several at a time.
//! * [`layer`] reading layers back.

#![forbid(unsafe_code)]

mod commit;
mod error;
pub mod file;
pub mod format;
mod journal;
pub mod layer;
pub mod parts;
pub mod space;
pub mod store;
pub mod stream;

pub use commit::{
    Committed,
    How, //
};
pub use error::{
    CommitError,
    Error, //
};
pub use parts::Part;
pub use store::Store;
