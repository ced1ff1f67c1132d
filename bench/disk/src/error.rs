// SPDX-License-Identifier: MIT
//! What can go wrong around the server; each prints as one line.

use std::io;
use std::path::{
    Path,
    PathBuf, //
};

/// Result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file or socket failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The image cannot be served.
    #[error("cannot serve {}: {reason}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why not, and what to do.
        reason: &'static str,
    },
    /// A latency that makes no sense.
    #[error("bad latency: {0}")]
    Latency(String),
    /// The other side of an NBD connection broke the protocol.
    #[error("NBD: {0}")]
    Protocol(String),
    /// The server refused a control command.
    #[error("the disk server refused: {0}")]
    Refused(String),
    /// A file that is no write log, or a damaged one.
    #[error("write log: {0}")]
    WriteLog(String),
    /// A measurement that could not be taken.
    #[error("cannot measure: {0}")]
    Measure(String),
}

/// Adds the action and path to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// Maps the error to [`Error::Io`].
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source,
        })
    }
}
