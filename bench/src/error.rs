// SPDX-License-Identifier: MIT
//! The one error type of the harness: what went wrong and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;

/// Result of everything that can fail in the harness.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error that prints as one line: what failed, why, and what to do.
#[derive(Debug)]
pub(crate) struct Error {
    what: String,
    hint: Option<String>,
    exit_code: u8,
}

impl Error {
    /// An error saying `what` went wrong (one sentence part, no final stop).
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
            exit_code: 1,
        }
    }

    /// Adds what the user can do about it (an imperative, no final stop).
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit code of the process; 1 unless told.
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.exit_code = code.max(1);
        self
    }

    /// An I/O error with what was being done to which path.
    pub(crate) fn io(action: &str, path: impl AsRef<Path>, source: &io::Error) -> Self {
        let error = Self::new(format!(
            "cannot {action} {}: {source}",
            path.as_ref().display()
        ));
        match source.kind() {
            io::ErrorKind::StorageFull => error.hint("free some disk space and run it again"),
            io::ErrorKind::PermissionDenied => {
                error.hint("choose a folder you may write to, or change its permissions")
            }
            _ => error,
        }
    }

    /// Puts the wider action in front: "`action`: what went wrong".
    pub(crate) fn context(mut self, action: impl fmt::Display) -> Self {
        self.what = format!("{action}: {}", self.what);
        self
    }

    /// The exit code that this error ends the process with.
    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// What went wrong, without the hint.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line whatever the cause printed.
        let what = self.what.replace('\n', " ");
        match &self.hint {
            Some(hint) => write!(f, "{what}; {}", hint.replace('\n', " ")),
            None => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Adds the path and action to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// Maps the error to [`Error::io`].
    fn at(self, action: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::io(action, path, &source))
    }
}
