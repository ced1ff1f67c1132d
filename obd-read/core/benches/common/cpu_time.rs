// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How benchmarks measure.

use criterion::measurement::{
    Measurement,
    ValueFormatter,
    WallTime, //
};
use rustix::time::{
    ClockId,
    clock_gettime, //
};
use std::time::Duration;

/// Processor time of the benchmark's thread: what other programs do meanwhile
/// counts only by the caches they take.
pub(crate) struct CpuTime;

fn now() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        now()
    }

    fn end(&self, start: Duration) -> Duration {
        now() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}
