// SPDX-License-Identifier: MIT

//! What the kernel's `include/uapi/linux/ublk_cmd.h` lays down, as far as it is
//! used here: numbers of commands, and structures as the kernel reads and writes
//! them.

use std::mem::{
    offset_of,
    size_of, //
};

/// An ioctl-encoded command (`_IOC`) of the ublk driver: `direction` 1 writes to
/// the kernel, 2 reads from it, 3 does both; `size` is that of its structure.
const fn command(direction: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((b'u' as u32) << 8) | number
}

/// A command to `/dev/ublk-control` that only reads.
const fn control_read(number: u32) -> u32 {
    command(2, number, size_of::<ControlCommand>())
}

/// A command to `/dev/ublk-control`.
const fn control(number: u32) -> u32 {
    command(3, number, size_of::<ControlCommand>())
}

/// `UBLK_U_CMD_GET_QUEUE_AFFINITY`: the CPUs of queue `data`.
pub(crate) const GET_QUEUE_AFFINITY: u32 = control_read(0x01);
/// `UBLK_U_CMD_GET_DEV_INFO`: a [`DeviceInfo`].
pub(crate) const GET_DEV_INFO: u32 = control_read(0x02);
/// `UBLK_U_CMD_ADD_DEV`: takes and returns a [`DeviceInfo`].
pub(crate) const ADD_DEV: u32 = control(0x04);
/// `UBLK_U_CMD_START_DEV`: the process `data` serves it from now on.
pub(crate) const START_DEV: u32 = control(0x06);
/// `UBLK_U_CMD_STOP_DEV`: the disk goes, whoever uses it.
pub(crate) const STOP_DEV: u32 = control(0x07);
/// `UBLK_U_CMD_SET_PARAMS`: takes [`Params`].
pub(crate) const SET_PARAMS: u32 = control(0x08);
/// `UBLK_U_CMD_GET_FEATURES`: a `u64` of flags (`UBLK_F_*`).
pub(crate) const GET_FEATURES: u32 = control_read(0x13);
/// `UBLK_U_CMD_DEL_DEV_ASYNC`: the device goes when nobody has it open.
pub(crate) const DEL_DEV_ASYNC: u32 = control_read(0x14);
/// `UBLK_U_CMD_TRY_STOP_DEV`: the disk goes, unless somebody has it open.
pub(crate) const TRY_STOP_DEV: u32 = control(0x17);

/// `UBLK_U_IO_FETCH_REQ`: the first request with a tag.
pub(crate) const FETCH_REQ: u32 = command(3, 0x20, size_of::<IoCommand>());
/// `UBLK_U_IO_COMMIT_AND_FETCH_REQ`: the result of a request, and the next one.
pub(crate) const COMMIT_AND_FETCH_REQ: u32 = command(3, 0x21, size_of::<IoCommand>());

/// `UBLK_IO_OP_READ`, in the low byte of [`IoDescriptor::op_flags`].
pub(crate) const OP_READ: u8 = 0;

/// `UBLK_F_CMD_IOCTL_ENCODE`: commands are numbered as above.
pub(crate) const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// `UBLK_F_SAFE_STOP_DEV`: there is [`TRY_STOP_DEV`].
pub(crate) const F_SAFE_STOP_DEV: u64 = 1 << 17;
/// `UBLK_F_NO_AUTO_PART_SCAN`: nobody looks for partitions.
pub(crate) const F_NO_AUTO_PART_SCAN: u64 = 1 << 18;

/// `UBLK_S_DEV_LIVE`: there is a disk, and a process that serves it.
pub(crate) const STATE_LIVE: u16 = 1;

/// `UBLK_MAX_QUEUE_DEPTH`: descriptors that each queue has room for in the
/// mapping of `/dev/ublkcN`.
pub(crate) const MAX_QUEUE_DEPTH: usize = 4096;

/// `UBLK_PARAM_TYPE_BASIC`.
pub(crate) const PARAM_TYPE_BASIC: u32 = 1;
/// `UBLK_ATTR_READ_ONLY`.
pub(crate) const ATTR_READ_ONLY: u32 = 1;

/// `struct ublksrv_ctrl_cmd`: the argument of a command to `/dev/ublk-control`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ControlCommand {
    pub(crate) dev_id: u32,
    /// `u16::MAX`: not for one queue.
    pub(crate) queue_id: u16,
    /// Bytes at `addr`.
    pub(crate) len: u16,
    pub(crate) addr: u64,
    pub(crate) data: u64,
    pub(crate) dev_path_len: u16,
    pub(crate) pad: u16,
    pub(crate) reserved: u32,
}

impl ControlCommand {
    /// As the 80 bytes of a submission queue entry.
    pub(crate) fn to_bytes(self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[0..4].copy_from_slice(&self.dev_id.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.queue_id.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.data.to_ne_bytes());
        bytes
    }
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct DeviceInfo {
    pub(crate) nr_hw_queues: u16,
    pub(crate) queue_depth: u16,
    /// `UBLK_S_DEV_*`.
    pub(crate) state: u16,
    pub(crate) io_desc_size: u16,
    pub(crate) max_io_buf_bytes: u32,
    pub(crate) dev_id: u32,
    pub(crate) ublksrv_pid: i32,
    pub(crate) pad1: u32,
    /// `UBLK_F_*`.
    pub(crate) flags: u64,
    /// The server's own; the driver keeps it.
    pub(crate) ublksrv_flags: u64,
    pub(crate) owner_uid: u32,
    pub(crate) owner_gid: u32,
    pub(crate) reserved: [u64; 2],
}

/// The beginning of `struct ublk_params`, with `struct ublk_param_basic`; `len`
/// says that there is no more.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) len: u32,
    /// Which of the parts below count.
    pub(crate) types: u32,
    /// `UBLK_ATTR_*`.
    pub(crate) attrs: u32,
    pub(crate) logical_bs_shift: u8,
    pub(crate) physical_bs_shift: u8,
    pub(crate) io_opt_shift: u8,
    pub(crate) io_min_shift: u8,
    pub(crate) max_sectors: u32,
    pub(crate) chunk_sectors: u32,
    pub(crate) dev_sectors: u64,
    pub(crate) virt_boundary_mask: u64,
}

/// `struct ublksrv_io_desc`: a request, as the driver describes it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IoDescriptor {
    /// Bits 0 to 7: what to do; the rest are flags.
    pub(crate) op_flags: u32,
    pub(crate) nr_sectors: u32,
    pub(crate) start_sector: u64,
    pub(crate) addr: u64,
}

/// `struct ublksrv_io_cmd`: the argument of a command to `/dev/ublkcN`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct IoCommand {
    pub(crate) q_id: u16,
    pub(crate) tag: u16,
    /// Bytes, or a negative error number.
    pub(crate) result: i32,
    /// Where the data of the next request with this tag goes.
    pub(crate) addr: u64,
}

impl IoCommand {
    /// As the 16 bytes of a submission queue entry.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&self.q_id.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.result.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.addr.to_ne_bytes());
        bytes
    }
}

// Sizes and places as the header's, which the kernel may never change.
const _: () = {
    assert!(size_of::<ControlCommand>() == 32);
    assert!(offset_of!(ControlCommand, queue_id) == 4);
    assert!(offset_of!(ControlCommand, len) == 6);
    assert!(offset_of!(ControlCommand, addr) == 8);
    assert!(offset_of!(ControlCommand, data) == 16);
    assert!(offset_of!(ControlCommand, dev_path_len) == 24);
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(offset_of!(DeviceInfo, max_io_buf_bytes) == 8);
    assert!(offset_of!(DeviceInfo, ublksrv_pid) == 16);
    assert!(offset_of!(DeviceInfo, flags) == 24);
    assert!(offset_of!(DeviceInfo, ublksrv_flags) == 32);
    assert!(offset_of!(DeviceInfo, owner_uid) == 40);
    assert!(size_of::<Params>() == 8 + 32);
    assert!(offset_of!(Params, attrs) == 8);
    assert!(offset_of!(Params, io_min_shift) == 15);
    assert!(offset_of!(Params, max_sectors) == 16);
    assert!(offset_of!(Params, dev_sectors) == 24);
    assert!(size_of::<IoDescriptor>() == 24);
    assert!(offset_of!(IoDescriptor, start_sector) == 8);
    assert!(size_of::<IoCommand>() == 16);
    assert!(offset_of!(IoCommand, result) == 4);
    assert!(offset_of!(IoCommand, addr) == 8);
    // The numbers that the header's macros give.
    assert!(ADD_DEV == 0xC020_7504);
    assert!(GET_FEATURES == 0x8020_7513);
    assert!(COMMIT_AND_FETCH_REQ == 0xC010_7521);
};
