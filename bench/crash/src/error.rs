// SPDX-License-Identifier: MIT
//! What can go wrong with the exploring itself (a violation is no error).

use std::io;

/// Result of what can fail here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a state could not be explored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file or a process failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A plan with an operation that cannot be done.
    #[error("thread {thread}, operation {number} ({op}): {why}")]
    Plan {
        /// Which thread.
        thread: usize,
        /// Which of its operations.
        number: usize,
        /// What it was.
        op: String,
        /// Why it cannot.
        why: &'static str,
    },
    /// A recording that contradicts itself.
    #[error("the recording is wrong: {0}")]
    Recording(String),
}

/// Says what was being done.
pub(crate) trait Doing<T> {
    /// Maps the error to [`Error::Io`].
    fn doing(self, action: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            source: source.into(),
        })
    }
}
