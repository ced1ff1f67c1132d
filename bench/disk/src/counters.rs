// SPDX-License-Identifier: MIT
//! What was served since the start.

use serde::{
    Deserialize,
    Serialize, //
};
use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};

/// Counters of a served drive since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Flush commands.
    pub flushes: u64,
    /// Trim commands.
    pub trims: u64,
    /// Write-zeroes commands.
    pub zeroes: u64,
    /// Commands answered with an error; counted nowhere else.
    pub errors: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, zeroes not included.
    pub written_bytes: u64,
    /// Sum over all replies of the time from when the reply was due (request
    /// received in full, plus the latency asked for) until it was handed to
    /// the kernel, ns. At zero latency that is the server's own time.
    pub late_ns: u64,
    /// The largest such time, ns.
    pub max_late_ns: u64,
}

impl Counters {
    /// All commands answered.
    pub fn commands(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.trims + self.zeroes + self.errors
    }
}

/// The counters while they are counted: one thread writes, any may read.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    pub(crate) reads: Counter,
    pub(crate) writes: Counter,
    pub(crate) flushes: Counter,
    pub(crate) trims: Counter,
    pub(crate) zeroes: Counter,
    pub(crate) errors: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) late_ns: Counter,
    pub(crate) max_late_ns: Counter,
}

impl LiveCounters {
    /// The values now.
    pub(crate) fn snapshot(&self) -> Counters {
        Counters {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            trims: self.trims.get(),
            zeroes: self.zeroes.get(),
            errors: self.errors.get(),
            read_bytes: self.read_bytes.get(),
            written_bytes: self.written_bytes.get(),
            late_ns: self.late_ns.get(),
            max_late_ns: self.max_late_ns.get(),
        }
    }
}

/// A number with one writer: plain loads and stores, no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        let sum = self.get().wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Keeps the larger of the value and `n`.
    pub(crate) fn raise_to(&self, n: u64) {
        if n > self.get() {
            self.0.store(n, Ordering::Relaxed);
        }
    }

    /// The value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
