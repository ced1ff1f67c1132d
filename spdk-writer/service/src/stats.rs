// SPDX-License-Identifier: MIT

//! What a writer did.

use serde::{
    Deserialize,
    Serialize, //
};
use std::time::Duration;

/// Counters since the writer began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Layers that were committed.
    pub commits: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Layers that a writer before this one had committed, and only had to be
    /// stacked.
    pub taken_over: u64,
    /// Bytes of data that were frozen, and of zeros.
    pub bytes_in: u64,
    /// Bytes of zeros that were.
    pub bytes_zero: u64,
    /// Bytes of layers that were written.
    pub bytes_out: u64,
    /// Bytes that were copied on the way to the compressor.
    pub bytes_copied: u64,
    /// From a frozen layer to its end, seconds: of all commits, the shortest, the
    /// longest and the last one.
    pub seconds: f64,
    /// The shortest.
    pub seconds_min: f64,
    /// The longest.
    pub seconds_max: f64,
    /// The last one.
    pub seconds_last: f64,
    /// Of those seconds: until the layer was durable,
    pub seconds_layer: f64,
    /// until `image.json` was,
    pub seconds_image: f64,
    /// and until the driver had it.
    pub seconds_stack: f64,
    /// Records that were written to the log.
    pub logged: u64,
    /// Tries that failed, after which a layer was made.
    pub failed_logs: u64,
    /// Bytes of these records.
    pub bytes_logged: u64,
    /// From a frozen layer to the end of its flush by such a record, seconds.
    pub seconds_logged: f64,
    /// Merges.
    pub merges: u64,
    /// Merges that failed.
    pub failed_merges: u64,
    /// Layers that went into merges.
    pub merged_layers: u64,
    /// Bytes of layers that merges wrote.
    pub merged_bytes: u64,
    /// Seconds that merges took.
    pub merge_seconds: f64,
    /// Layers there are now.
    pub layers: usize,
}

/// How long the parts of a commit took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) layer: Duration,
    pub(crate) image: Duration,
    pub(crate) stack: Duration,
}

impl Stats {
    /// One more commit.
    pub(crate) fn commit(&mut self, times: Times) {
        let Times {
            layer,
            image,
            stack,
        } = times;
        let all = (layer + image + stack).as_secs_f64();
        self.seconds_min = match self.commits {
            0 => all,
            _ => self.seconds_min.min(all),
        };
        self.commits += 1;
        self.seconds += all;
        self.seconds_max = self.seconds_max.max(all);
        self.seconds_last = all;
        self.seconds_layer += layer.as_secs_f64();
        self.seconds_image += image.as_secs_f64();
        self.seconds_stack += stack.as_secs_f64();
    }
}
