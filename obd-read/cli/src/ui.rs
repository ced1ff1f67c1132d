// SPDX-License-Identifier: MIT

//! The terminal: progress bars, and signals.

use crate::error::{
    Error,
    Result, //
};
use indicatif::{
    ProgressBar,
    ProgressStyle, //
};
use std::io::{
    IsTerminal,
    Write,
    stderr,
    stdout, //
};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// One line on standard output, for whoever still reads it.
pub(crate) fn print(line: &str) {
    // Nobody is left to be told if this fails.
    let _ = writeln!(stdout(), "{line}");
}

/// Progress of work that can be interrupted.
pub(crate) struct Progress {
    what: String,
    total: u64,
    done: u64,
    started: Instant,
    bar: Option<ProgressBar>,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// Of work on `total` bytes.
    pub(crate) fn new(what: impl Into<String>, total: u64, interrupted: &Arc<AtomicBool>) -> Self {
        Self {
            what: what.into(),
            total,
            done: 0,
            started: Instant::now(),
            bar: None,
            interrupted: Arc::clone(interrupted),
        }
    }

    /// `bytes` more are done.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] once a signal came.
    pub(crate) fn advance(&mut self, bytes: u64) -> Result<()> {
        // Set by a signal handler and read here: nothing else depends on it.
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        self.done = self.done.saturating_add(bytes);
        if self.bar.is_none() && self.started.elapsed() > PATIENCE && stderr().is_terminal() {
            let bar = ProgressBar::new(self.total).with_message(self.what.clone());
            if let Ok(style) = ProgressStyle::with_template(
                "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} (left {eta})",
            ) {
                bar.set_style(style.progress_chars("=> "));
            }
            self.bar = Some(bar.with_elapsed(self.started.elapsed()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set, so that what was begun is
/// cleaned up.
pub(crate) fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|error| Error::io("catch signals of", "this process", error))?;
    }
    Ok(flag)
}
