// SPDX-License-Identifier: MIT

//! NVMe commands by io_uring: of a namespace's generic device (`/dev/ngXnY`), which
//! passes the block layer by, its scheduler, its merging and its limits.
//!
//! The kernel's driver keeps queues, time limits, aborts and resets. Who may have the
//! namespace is still asked of its block device (`/dev/nvmeXnY`), which is held
//! meanwhile; discards and zeroes, which are rare, go to that one, too.

#![expect(unsafe_code, reason = "NVME_IOCTL_ID has no safe wrapper")]

use crate::{
    Action,
    Status,
    guard,
    nvme, //
};
use io_uring::squeue::Entry128;
use io_uring::{
    opcode,
    types, //
};
use rustix::fs::{
    FileType,
    Mode,
    OFlags, //
};
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{
    Path,
    PathBuf, //
};

/// `NVME_URING_CMD_IO` of `linux/nvme_ioctl.h`: `_IOWR('N', 0x80, struct nvme_uring_cmd)`.
const NVME_URING_CMD_IO: u32 = 0xC048_4E80;

/// `NVME_IOCTL_ID` of the same: `_IO('N', 0x40)`. The namespace's number.
const NVME_IOCTL_ID: libc::Ioctl = 0x4E40;

/// Opcodes (NVM Command Set Specification 1.0, section 3.2).
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

/// Force unit access, in command dword 12.
const FUA: u32 = 1 << 30;

/// Bytes of a page of memory, which is the least that is in one piece.
const PAGE: u64 = 4096;

/// In a status as the kernel hands it on: it would be the same again.
const DO_NOT_RETRY: i32 = 0x4000;

/// How often the kernel itself gives a command (`nvme_core.max_retries`).
pub(crate) const MAX_TRIES: u32 = 5;

/// A namespace's generic device.
pub(crate) struct Generic {
    file: File,
    nsid: u32,
    block_shift: u32,
    /// The longest read or write, bytes.
    pub(crate) longest: u64,
}

/// The block device of the namespace whose generic one is at `path`; [`None`] if that
/// is something else.
pub(crate) fn block_device(path: &Path) -> io::Result<Option<PathBuf>> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Ok(None);
    }
    let sysfs = guard::folder("char", stat.st_rdev)?;
    let is_generic = fs::canonicalize(sysfs.join("subsystem"))
        .is_ok_and(|class| class.file_name().is_some_and(|name| name == "nvme-generic"));
    let name = sysfs.file_name().and_then(|name| name.to_str());
    // The kernel names both after the same numbers.
    match name.and_then(|name| name.strip_prefix("ng")) {
        Some(numbers) if is_generic => Ok(Some(PathBuf::from(format!("/dev/nvme{numbers}")))),
        _ => Ok(None),
    }
}

/// Number of the namespace that `file` is of.
fn nsid(file: &File) -> io::Result<u32> {
    // SAFETY: NVME_IOCTL_ID has no argument.
    let number = unsafe { libc::ioctl(file.as_raw_fd(), NVME_IOCTL_ID) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

impl Generic {
    /// Opens the generic device at `path`, whose block device is open as `block` and has
    /// blocks of `block_size` bytes.
    pub(crate) fn open(
        path: &Path,
        block: &File,
        block_size: u32,
        write: bool,
    ) -> io::Result<Self> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?;
        let file = File::from(file);
        let nsid = nsid(&file)?;
        if nsid != self::nsid(block)? {
            return Err(io::Error::other("its block device is of another namespace"));
        }
        // The kernel cuts no such command.
        let bytes = guard::queue_number(block, "max_hw_sectors_kb")? << 10;
        let pieces = guard::queue_number(block, "max_segments")? * PAGE;
        let longest = bytes.min(pieces).max(PAGE);
        Ok(Self {
            file,
            nsid,
            block_shift: block_size.trailing_zeros(),
            longest: longest.min(0x1_0000 << block_size.trailing_zeros()),
        })
    }

    /// A read, write or flush of `len` bytes, [`Generic::longest`] at most, at byte `at` of
    /// the namespace and at `address` in memory, which is in the registered one if `fixed`.
    pub(crate) fn command(
        &self,
        action: Action,
        at: u64,
        len: u64,
        address: u64,
        fixed: bool,
    ) -> Entry128 {
        let opcode = match action {
            Action::Read => READ,
            Action::Write | Action::WriteThrough => WRITE,
            Action::Flush | Action::Discard | Action::WriteZeroes => FLUSH,
        };
        let first = at >> self.block_shift;
        // What is longest has no more than 65,536.
        let blocks = (len >> self.block_shift).saturating_sub(1) as u32;
        let control = match action {
            Action::WriteThrough => FUA,
            _ => 0,
        };
        let cmd = encode(
            opcode,
            self.nsid,
            first,
            blocks | control,
            address,
            len as u32,
        );
        opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), NVME_URING_CMD_IO)
            .buf_index((fixed && len > 0).then_some(0))
            .cmd(cmd)
            .build()
    }
}

/// `struct nvme_uring_cmd` of a command of `blocks` blocks and one more, with flags from
/// bit 16 on.
fn encode(opcode: u8, nsid: u32, first: u64, blocks: u32, address: u64, len: u32) -> [u8; 80] {
    let mut cmd = [0; 80];
    let mut put = |at: usize, bytes: &[u8]| cmd[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[opcode]);
    put(4, &nsid.to_ne_bytes());
    put(24, &address.to_ne_bytes());
    put(36, &len.to_ne_bytes());
    if len > 0 {
        // Command dwords 10 to 12.
        put(40, &(first as u32).to_ne_bytes());
        put(44, &((first >> 32) as u32).to_ne_bytes());
        put(48, &blocks.to_ne_bytes());
    }
    cmd
}

/// What the kernel's answer to a command means; whether it may be given once more, if not
/// well.
pub(crate) fn status(result: i32) -> Result<(), (Status, bool)> {
    match result {
        // 16 bits of NVMe's, of which type and code are the lowest 11.
        0.. => match nvme::status(result as u16) {
            None => Ok(()),
            Some(status) => Err((status, result & DO_NOT_RETRY == 0)),
        },
        _ => {
            let again = [-libc::EINTR, -libc::EAGAIN].contains(&result);
            Err((Status::Os(-result), again))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_encode_is_the_structure_of_the_kernel() {
        let cmd = encode(WRITE, 7, 0x1_2345_6789, 15, 0xAABB_CCDD_EEFF_0011, 8192);
        let u32_at = |at: usize| u32::from_ne_bytes(cmd[at..at + 4].try_into().unwrap());
        assert_eq!(cmd[0], 1);
        assert_eq!(u32_at(4), 7);
        let address = u64::from_ne_bytes(cmd[24..32].try_into().unwrap());
        assert_eq!(address, 0xAABB_CCDD_EEFF_0011);
        assert_eq!([u32_at(32), u32_at(36)], [0, 8192]);
        assert_eq!([u32_at(40), u32_at(44), u32_at(48)], [0x2345_6789, 1, 15]);
        assert!(cmd[52..].iter().all(|byte| *byte == 0));
        let flush = encode(FLUSH, 7, 9, 0, 0, 0);
        assert!(flush[8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn test_status_tells_what_may_be_tried_again() {
        assert_eq!(status(0), Ok(()));
        let nvme = |kind, code| Status::Nvme { kind, code };
        assert_eq!(status(0x371), Err((nvme(3, 0x71), true)));
        assert_eq!(status(0x4281), Err((nvme(2, 0x81), false)));
        assert_eq!(status(-libc::EAGAIN), Err((Status::Os(libc::EAGAIN), true)));
        assert_eq!(status(-libc::EIO), Err((Status::Os(libc::EIO), false)));
    }

    #[test]
    fn test_block_device_is_of_generic_devices_alone() {
        assert_eq!(block_device(Path::new("/dev/null")).unwrap(), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(block_device(file.path()).unwrap(), None);
        assert!(block_device(Path::new("/dev/nothing")).is_err());
    }
}
