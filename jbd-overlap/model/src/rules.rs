// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The rules: where the overlap is on. `README.md` of the folder above argues
//! for each.

use serde::Serialize;

use crate::config::{Config, DataMode, Op, Sync, Write};

/// Why the overlap is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The block in its place may only be written once its logged copy is
    /// committed, so there is no data I/O to hide the commit behind.
    DataJournal,
    /// The commit's flush of the file system's device is issued before the
    /// journal's, and covers no data that is still in flight.
    ExternalJournal,
    /// The extent becomes written in a handle that starts after the data is
    /// complete: a full commit started before lacks it, and a second follows.
    UnwrittenExtent,
    /// On a volatile cache the fast commit's PREFLUSH is what makes another
    /// inode's new block durable before the tail that shows it.
    PreflushNeeded,
}

/// Whether an operation may be overlapped beside the others in flight.
///
/// # Errors
///
/// The reason why it may not.
pub fn allowed(config: &Config, op: &Op, ops: &[Op]) -> Result<(), Reason> {
    if config.data == DataMode::Journal {
        return Err(Reason::DataJournal);
    }
    if op.sync == Sync::DataOnly {
        return Ok(());
    }
    if config.external {
        return Err(Reason::ExternalJournal);
    }
    if config.commits_fast() {
        let cached = |o: &Op| o.write == Write::NewBlock && (o.dirty || o.sync == Sync::None);
        if config.cache && ops.iter().any(cached) {
            return Err(Reason::PreflushNeeded);
        }
    } else if op.write == Write::NewBlock && config.allocates_unwritten() {
        return Err(Reason::UnwrittenExtent);
    }
    Ok(())
}
