// SPDX-License-Identifier: MIT

//! What can go wrong.

use crate::Action;
use std::io;

/// How a command ended, if not well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Status {
    /// The system's error number.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// NVMe's status code type and status code (Base Specification 2.0, section
    /// 3.3.3.2.1).
    #[error("NVMe status {kind:x}h/{code:02x}h ({})", nvme_name(*kind, *code))]
    Nvme {
        /// Status code type.
        kind: u8,
        /// Status code.
        code: u8,
    },
    /// The device or file ends there.
    #[error("the device ends there")]
    End,
    /// No answer, however often the device was reset.
    #[error("no answer in time, and resetting the device did not help")]
    TimedOut,
}

/// A word or two for the statuses that are met in practice.
fn nvme_name(kind: u8, code: u8) -> &'static str {
    match (kind, code) {
        (0, 0x01) => "invalid opcode",
        (0, 0x02) => "invalid field",
        (0, 0x04) => "data transfer error",
        (0, 0x05) => "power loss",
        (0, 0x06) => "internal error",
        (0, 0x07) => "aborted by request",
        (0, 0x08) => "aborted with its queue",
        (0, 0x0b) => "invalid namespace",
        (0, 0x13) => "PRP offset invalid",
        (0, 0x80) => "beyond the namespace",
        (0, 0x81) => "capacity exceeded",
        (0, 0x82) => "namespace not ready",
        (0, _) => "generic",
        (1, 0x82) => "namespace is read-only",
        (1, _) => "command specific",
        (2, 0x80) => "write fault",
        (2, 0x81) => "unrecovered read error",
        (2, _) => "media error",
        (3, _) => "path",
        _ => "vendor specific",
    }
}

/// Why something could not be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A command failed.
    #[error("{device}: cannot {action} {len} bytes at byte {offset}: {status}")]
    Command {
        /// The device's name.
        device: String,
        /// What was to be done.
        action: Action,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why not.
        status: Status,
    },
    /// A request that cannot be: beyond the device, not in whole blocks, longer
    /// than its buffer.
    #[error("{device}: cannot {action} {len} bytes at byte {offset}: {reason}")]
    Request {
        /// The device's name.
        device: String,
        /// What was to be done.
        action: Action,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Why not.
        reason: &'static str,
    },
    /// As many requests are in flight as there can be.
    #[error("{device}: {depth} requests are in flight")]
    Full {
        /// The device's name.
        device: String,
        /// How many that are.
        depth: usize,
    },
    /// Every buffer is in use, and none will come back by itself.
    #[error("{device}: all {count} buffers are in use")]
    NoBuffer {
        /// The device's name.
        device: String,
        /// How many there are.
        count: usize,
    },
    /// The device could not be taken into use, or was lost.
    #[error("{device}: cannot {what}: {reason}")]
    Device {
        /// The device's name.
        device: String,
        /// What was tried, an infinitive.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// A device that could not be taken into use, or was lost.
    pub fn device(
        device: impl Into<String>,
        what: &'static str,
        reason: impl std::fmt::Display,
    ) -> Self {
        Error::Device {
            device: device.into(),
            what,
            reason: reason.to_string(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Command {
                status: Status::Os(number),
                ..
            } => io::Error::from_raw_os_error(*number).kind(),
            Error::Command {
                status: Status::TimedOut,
                ..
            } => io::ErrorKind::TimedOut,
            Error::Command {
                status: Status::End,
                ..
            } => io::ErrorKind::UnexpectedEof,
            Error::Request { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
