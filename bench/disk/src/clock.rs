// SPDX-License-Identifier: MIT
//! The clock that deadlines, counters and log records share.

use rustix::time::{
    ClockId,
    clock_gettime, //
};

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
