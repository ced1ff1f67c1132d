// SPDX-License-Identifier: MIT
//! What a power cut could leave of a recorded workload on ext4, and what must
//! hold in each such state.
//!
//! - [`generate`]: a seeded workload;
//! - [`model`]: what its files hold after each operation, and so what must and
//!   what may be there once a sync has been acknowledged;
//! - [`history`]: the commands that the drives received, when, and when each
//!   sync was acknowledged;
//! - [`states`]: the states that a power cut at any moment can leave;
//! - [`recover`]: journal replay and check by e2fsprogs;
//! - [`ext4`]: reading files out of a recovered image;
//! - [`database`]: a RocksDB database on it instead of files;
//! - [`disk`]: a read-write overlaybd disk on it instead of files;
//! - [`check`]: all of that for one state;
//! - [`mutant`]: recordings that must fail;
//! - [`shrink`]: the fewest lost writes that still fail.
//!
//! # The drives
//!
//! A write is durable when a flush of its drive has completed that was received after
//! the write had completed, or when it carried FUA and has completed. Of all other
//! writes received so far any subset may survive, the newest torn at a logical
//! block. That is weaker than any real drive with a volatile cache, and all that
//! the NVMe specification (Base 2.0c, 7.2, and NVM Command Set 1.0c, 2.1.4)
//! promises.
//!
//! The journal may have a drive of its own, with a cache of its own. Both take their
//! times from one clock, and lose power at one moment. In an image they lie one behind
//! the other.

pub mod check;
pub mod database;
pub mod disk;
mod error;
pub mod ext4;
pub mod generate;
pub mod history;
pub mod model;
pub mod mutant;
pub mod recover;
pub mod shrink;
pub mod states;

pub use error::{
    Error,
    Result, //
};

/// Size of a logical block of the drive, bytes: the unit that is never torn.
pub const SECTOR: usize = 512;

/// What every free block of the drive holds before the workload: sixteen bytes,
/// over and over. Showing up in a file, they are data that was never written.
pub const POISON: [u8; 16] = *b"\xdbNEVER-WRITTEN\xdb\xdb";
