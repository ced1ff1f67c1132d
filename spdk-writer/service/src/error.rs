// SPDX-License-Identifier: MIT

//! What can go wrong.

use rustix::io::Errno;
use std::fmt::Display;
use std::io;

/// Why something could not be done with a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something with a file.
    #[error("cannot {what} {name}: {error}")]
    File {
        /// What was tried, an infinitive.
        what: &'static str,
        /// The file.
        name: String,
        /// Why not.
        error: io::Error,
    },
    /// A layer could not be written.
    #[error("cannot write {name}: {reason}")]
    Layer {
        /// Its file.
        name: String,
        /// Why not.
        reason: String,
        /// What the system said, if that was it.
        errno: Option<i32>,
    },
    /// A folder that holds no device, or a damaged one.
    #[error("{name}: {reason}")]
    Image {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The driver refused.
    #[error("the driver: cannot {what}: {error}")]
    Kernel {
        /// What was tried, an infinitive.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// What the driver says cannot be.
    #[error("the driver says what cannot be: {0}")]
    Contract(String),
    /// The image has as many layers as it can have, and none could be merged.
    #[error("{0} layers are all an image can have, and none can be merged")]
    TooManyLayers(usize),
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn file(
        what: &'static str,
        name: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Self {
        let name = name.into();
        move |error| Self::File { what, name, error }
    }

    pub(crate) fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Kernel { what, error }
    }

    pub(crate) fn image(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Image {
            name: name.into(),
            reason: reason.into(),
        }
    }

    /// Of writing the layer `name`.
    pub(crate) fn layer<E: Display>(name: &str, error: obd_writer::Error<E>) -> Self {
        use obd_writer::Error as Failed;
        let errno = match &error {
            Failed::Write { error, .. } | Failed::Finish(error) | Failed::Thread(error) => {
                error.raw_os_error()
            }
            Failed::OutOfMemory(_) | Failed::Compress(_) => Some(Errno::NOMEM.raw_os_error()),
            Failed::Interrupted => return Self::Interrupted,
            _ => None,
        };
        Self::Layer {
            name: name.into(),
            reason: error.to_string(),
            errno,
        }
    }

    /// The error number of the system, if it was the system's.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::File { error, .. } | Self::Kernel { error, .. } => error.raw_os_error(),
            Self::Layer { errno, .. } => *errno,
            _ => None,
        }
    }

    /// Whether the system lacks memory, for now.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.errno() == Some(Errno::NOMEM.raw_os_error())
    }

    /// Whether there is no space left, which somebody can make.
    pub fn is_full(&self) -> bool {
        // What a full disk says, and a quota.
        let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
        self.errno().is_some_and(|errno| full.contains(&errno))
    }
}
