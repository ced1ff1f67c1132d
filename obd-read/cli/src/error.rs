// SPDX-License-Identifier: MIT

//! What can fail, and the exit code for it.

use std::io;
use std::path::PathBuf;

/// Result of everything that can fail here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// An error that prints as one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file that cannot be read as an image.
    #[error("{}: {error}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: obd_core::Error<io::Error>,
    },
    /// Layers that make no image.
    #[error("{0}")]
    Stack(obd_core::Error<io::Error>),
    /// A configuration that cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The configuration's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file's digest is not the one asked for.
    #[error("{}: sha256 is {got}, its configuration says {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// As computed, hexadecimal.
        got: String,
        /// As asked for.
        expected: String,
    },
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried, an infinitive.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The output is there already.
    #[error("{} exists; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// The output is something else than a file.
    #[error("{} is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// The output is there already, and this command never replaces it.
    #[error("{} exists", .0.display())]
    Present(PathBuf),
    /// Options with which no layer can be written.
    #[error("{}: {reason}", path.display())]
    Layer {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A source of which no layer can be made.
    #[error("{}: {reason}", path.display())]
    Source {
        /// Its file, or that of the layer.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A device could not be used.
    #[error("{0}")]
    Engine(obd_engine::Error),
    /// A layer store could not be used.
    #[error("{0}")]
    Store(obd_store::Error),
    /// A read-write disk could not be used.
    #[error("{0}")]
    Service(obd_service::Error),
    /// The kernel's ublk driver could not be used.
    #[error("{0}")]
    Ublk(#[from] obd_ublk::Error),
    /// Another process of this program has said what is wrong, and ended with this
    /// exit code.
    #[error("exit code {0}")]
    Reported(u8),
    /// An engine does not do what it should.
    #[error("{device}: {check}: {reason}")]
    Check {
        /// The device.
        device: String,
        /// The check that failed.
        check: &'static str,
        /// How.
        reason: String,
    },
    /// Files that failed verification; each was reported.
    #[error("{bad} of {all} files failed")]
    Verify {
        /// How many failed.
        bad: usize,
        /// How many there were.
        all: usize,
        /// Whether a file is at fault, as opposed to the system.
        damaged: bool,
    },
    /// The kernel's driver refused the image, and said why.
    #[error("{name}: {reason}")]
    Attach {
        /// The device.
        name: String,
        /// What the driver said.
        reason: String,
        /// Whether something is wrong with the image, as opposed to the system.
        image: bool,
    },
    /// A device that is, or is not, there.
    #[error("{name}: {reason}")]
    Device {
        /// The device.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A read-write disk that cannot be used as it is wanted now.
    #[error("{}: {reason}", path.display())]
    Busy {
        /// Its folder, or its disk.
        path: PathBuf,
        /// Why not, and what can be done.
        reason: String,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A failed system call.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::Io {
            what,
            path: path.into(),
            source,
        }
    }

    /// 1 for files that are damaged or refused, 2 for wrong usage, 3 for what
    /// the system refused, 130 after a signal.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Format { error, .. } | Error::Stack(error) => match is_damage(error) {
                true => 1,
                false => 3,
            },
            Error::Engine(_) | Error::Store(obd_store::Error::Device(_)) => 3,
            Error::Store(_)
            | Error::Check { .. }
            | Error::Config { .. }
            | Error::Digest { .. }
            | Error::Verify { damaged: true, .. }
            | Error::Source { .. } => 1,
            Error::Exists(_) | Error::NotAFile(_) | Error::Present(_) | Error::Layer { .. } => 2,
            Error::Attach { image: true, .. } => 1,
            Error::Service(obd_service::Error::Image { .. }) => 1,
            Error::Service(obd_service::Error::Interrupted) => 130,
            Error::Ublk(_) | Error::Service(_) => 3,
            Error::Reported(code) => *code,
            Error::Device { .. } => 2,
            Error::Attach { .. }
            | Error::Busy { .. }
            | Error::Io { .. }
            | Error::Verify { damaged: false, .. } => 3,
            Error::Interrupted => 130,
        }
    }
}

/// Whether a file is damaged or refused, as opposed to a system that refused to read it.
pub(crate) fn is_damage(error: &obd_core::Error<io::Error>) -> bool {
    !matches!(
        error,
        obd_core::Error::Io { .. } | obd_core::Error::OutOfMemory
    )
}
