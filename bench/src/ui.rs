// SPDX-License-Identifier: MIT
//! The terminal: status lines, progress bars, colours only where they show.

use crate::error::Error;
use indicatif::{
    ProgressBar,
    ProgressStyle, //
};
use std::io::{
    IsTerminal,
    stderr,
    stdout, //
};
use std::time::Duration;

/// How to talk to whoever runs the program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    progress: bool,
    colour: bool,
}

impl Ui {
    /// Looks at the terminal; honours `NO_COLOR`.
    pub(crate) fn new() -> Self {
        Self {
            progress: stderr().is_terminal(),
            colour: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Whether standard output shows colours.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// One status line on standard error.
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        eprintln!("{}", line.as_ref());
    }

    /// A bar over `len` steps with elapsed and remaining time. Where standard
    /// error is no terminal it prints `what` once and then nothing.
    pub(crate) fn bar(&self, what: &str, len: u64) -> ProgressBar {
        if !self.progress {
            self.say(what);
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(len).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} [{bar:30}] {pos}/{len} {elapsed_precise} (left {eta_precise}) {prefix}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A spinner for work of unknown length.
    pub(crate) fn spinner(&self, what: &str) -> ProgressBar {
        if !self.progress {
            self.say(what);
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg} {elapsed_precise} {prefix}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// The one line that a failed run ends with.
pub(crate) fn print_error(error: &Error) {
    if stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        eprintln!("\x1b[1;31merror\x1b[0m: {error}");
    } else {
        eprintln!("error: {error}");
    }
}
