// SPDX-License-Identifier: MIT
//! Syncs that the standard library has no call for: writes that are durable when
//! they return, and io_uring's fsync.

use io_uring::{
    IoUring,
    opcode,
    types, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// How a write is told to be durable when it returns: its own bytes, not all of
/// the file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncedWrite {
    /// To a file opened with `O_SYNC`.
    OpenSync,
    /// To a file opened with `O_DSYNC`.
    OpenDsync,
    /// pwritev2(2) with `RWF_SYNC`.
    RwfSync,
    /// pwritev2(2) with `RWF_DSYNC`.
    RwfDsync,
}

impl SyncedWrite {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::OpenSync,
        Self::OpenDsync,
        Self::RwfSync,
        Self::RwfDsync,
    ];

    /// Whether it is as fdatasync, and not as fsync.
    pub fn is_data_only(self) -> bool {
        matches!(self, Self::OpenDsync | Self::RwfDsync)
    }

    /// What the file is opened with.
    pub(crate) fn open_flags(self) -> i32 {
        match self {
            Self::OpenSync => libc::O_SYNC,
            Self::OpenDsync => libc::O_DSYNC,
            Self::RwfSync | Self::RwfDsync => 0,
        }
    }

    /// One write at `offset` of a file opened with [`Self::open_flags`]; how many
    /// bytes were written.
    pub(crate) fn write_at(self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let flags = match self {
            Self::OpenSync | Self::OpenDsync => 0,
            Self::RwfSync => libc::RWF_SYNC,
            Self::RwfDsync => libc::RWF_DSYNC,
        };
        let vector = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // The wrapper is younger than some C libraries.
        // SAFETY: The descriptor is open, and the kernel reads one vector and the bytes that
        // it names, all of which live through the call. The offset is one word here, and its
        // upper half is not looked at.
        let written = unsafe {
            libc::syscall(
                libc::SYS_pwritev2,
                file.as_raw_fd(),
                &raw const vector,
                1,
                offset,
                0,
                flags,
            )
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// As [`Self::write_at`], of all bytes.
    pub(crate) fn write_all_at(self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.write_at(file, bytes, offset)? {
            written if written == bytes.len() => Ok(()),
            // Another write would be another sync.
            written => Err(io::Error::other(format!(
                "{written} of {} bytes were written",
                bytes.len()
            ))),
        }
    }
}

impl fmt::Display for SyncedWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenSync => "O_SYNC",
            Self::OpenDsync => "O_DSYNC",
            Self::RwfSync => "RWF_SYNC",
            Self::RwfDsync => "RWF_DSYNC",
        })
    }
}

/// A ring for one request at a time.
pub(crate) struct Ring(IoUring);

impl Ring {
    /// Makes one.
    pub(crate) fn new() -> io::Result<Self> {
        IoUring::new(1).map(Self)
    }

    /// fsync, or fdatasync if `data_only`, by a request; waits for its end.
    pub(crate) fn fsync(&mut self, file: &File, data_only: bool) -> io::Result<()> {
        let flags = match data_only {
            true => types::FsyncFlags::DATASYNC,
            false => types::FsyncFlags::empty(),
        };
        let request = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(flags)
            .build();
        // SAFETY: The descriptor is open until the request has ended, for which we wait
        // below; nothing else is pointed to.
        unsafe { self.0.submission().push(&request) }.map_err(io::Error::other)?;
        loop {
            match self.0.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        let done = self.0.completion().next();
        match done.map(|done| done.result()) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::Error::other("io_uring ended no request")),
        }
    }
}

/// Writes a range back and waits for it: neither metadata nor the drive's cache,
/// so nothing is promised.
pub(crate) fn sync_file_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: Plain system call on an open descriptor.
    let result = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset.cast_signed(),
            len.cast_signed(),
            flags,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn test_write_at_writes_where_it_is_told() {
        for how in SyncedWrite::ALL {
            let path = tempfile::NamedTempFile::new().unwrap();
            let file = File::options()
                .write(true)
                .custom_flags(how.open_flags())
                .open(path.path())
                .unwrap();
            how.write_all_at(&file, b"data", 4095).unwrap();
            let found = std::fs::read(path.path()).unwrap();
            assert_eq!((found.len(), &found[4095..]), (4099, &b"data"[..]), "{how}");
        }
    }

    #[test]
    fn test_ring_serves_one_request_after_the_other_and_gives_errors() {
        let mut ring = Ring::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        for data_only in [false, true, false] {
            ring.fsync(&file, data_only).unwrap();
        }
        let (pipe, _other) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        let error = ring.fsync(&pipe, false).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        ring.fsync(&file, false).unwrap();
    }
}
