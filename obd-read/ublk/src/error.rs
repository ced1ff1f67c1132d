// SPDX-License-Identifier: MIT

//! What can fail beside reads of the image.

use std::io;
use std::path::PathBuf;

/// Why a device could not be made, served or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver's control device cannot be opened.
    #[error(
        "cannot open {}: {source} (the kernel needs CONFIG_BLK_DEV_UBLK, or the module ublk_drv)",
        path.display()
    )]
    Control {
        /// The device.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel's driver is too old.
    #[error("the kernel's ublk driver has no {0}: Linux 6.5 or newer is needed")]
    Feature(&'static str),
    /// The driver refused a command.
    #[error("cannot {what} {device}: {source}")]
    Command {
        /// What was tried, an infinitive.
        what: &'static str,
        /// With which device.
        device: String,
        /// Why not.
        source: io::Error,
    },
    /// The system refused something that serving needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried, an infinitive.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: something that serving needs.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// As [`Error::system`], for errors of `rustix`.
    pub(crate) fn errno(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::System {
            what,
            source: errno.into(),
        }
    }
}
