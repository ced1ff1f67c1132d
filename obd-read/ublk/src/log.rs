// SPDX-License-Identifier: MIT

//! What is said of reads that fail, and how often.

use std::sync::{
    Mutex,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

/// At most [`LINES`] lines in this time, as the kernel's drivers do it.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lines per [`INTERVAL`].
const LINES: u32 = 10;

/// Where lines go.
pub type Sink = Box<dyn Fn(&str) + Send + Sync>;

/// A log that nobody can flood.
pub(crate) struct Log {
    sink: Sink,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    begin: Option<Instant>,
    lines: u32,
    missed: u64,
}

impl Log {
    pub(crate) fn new(sink: Sink) -> Self {
        Self {
            sink,
            window: Mutex::default(),
        }
    }

    /// Writes what `line` says, unless there was too much of late.
    pub(crate) fn line(&self, line: impl FnOnce() -> String) {
        if let Some(missed) = self.allows(Instant::now()) {
            if missed > 0 {
                (self.sink)(&format!("{missed} lines like these were left out"));
            }
            (self.sink)(&line());
        }
    }

    /// Whether there may be a line at `now`, after how many that were left out.
    fn allows(&self, now: Instant) -> Option<u64> {
        // Three numbers: whoever panicked left them as good as any.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |begin: Instant| now.saturating_duration_since(begin) >= INTERVAL;
        if window.begin.is_none_or(over) {
            window.begin = Some(now);
            window.lines = 0;
        }
        if window.lines == LINES {
            window.missed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_in_five_seconds() {
        let log = Log::new(Box::new(|_| {}));
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(log.allows(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(log.allows(start + INTERVAL / 2), None);
        }
        assert_eq!(log.allows(start + INTERVAL), Some(7));
        assert_eq!(log.allows(start + INTERVAL), Some(0));
    }
}
