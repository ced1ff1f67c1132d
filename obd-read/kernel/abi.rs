// SPDX-License-Identifier: GPL-2.0

//! What the writer of a disk and this driver say to each other, by `ioctl()` on `/dev/obd-writer`:
//! all of it little, naturally aligned, the same for 32 bits; reserved fields are 0, else
//! `EINVAL`.
//!
//! | call | |
//! |---|---|
//! | [`BIND`] | this open file is the writer of a disk from here on, until it is closed |
//! | [`NEXT`] | waits for a frozen layer; the same one until it is stacked |
//! | [`EXTENTS`] | what is in it, in order of blocks |
//! | `mmap()` | its data, read-only: the pages of the extents that are not zeros, in order |
//! | [`STACK`] | puts a layer into the image, and drops the frozen one that it is made of |
//! | [`FAILED`] | that could not be done, which fails the flushes that wait |

use kernel::{
    ioctl::{
        _IOW,
        _IOWR, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};

const TYPE: u32 = 0x4f;

/// Becomes the writer of `/dev/obdN`, where N is `number`. `EBUSY` if it has one or this file is
/// one's already, `ENODEV` if there is no such disk, `EOPNOTSUPP` if it is read-only.
pub(super) const BIND: u32 = _IOWR::<Bind>(TYPE, 0xb0);
/// Waits `timeout_ms` at most for something to be frozen. `ETIMEDOUT`, `EINTR`; `ESHUTDOWN` once
/// the disk is gone. This and all below: `ENOTCONN` unless this file is a writer's.
pub(super) const NEXT: u32 = _IOWR::<Next>(TYPE, 0xb1);
/// Writes `nr` extents from the one with the index `first` on to `to`. `ESTALE` if `id` is not
/// frozen, `EINVAL` if there are fewer.
pub(super) const EXTENTS: u32 = _IOW::<Extents>(TYPE, 0xb2);
/// Puts the layer at `path` in place of the `nr` layers from `first` on, and drops the frozen layer
/// `id`, if that is not 0. `ESTALE` if it is not frozen, `EINVAL` for layers that are not there or
/// another size, `EBUSY` while this is done already, and what attaching fails with.
pub(super) const STACK: u32 = _IOW::<Stack>(TYPE, 0xb3);
/// Flushes that wait for `id` fail with `ENOSPC` if that is `errno`, else with `EIO`. It stays.
pub(super) const FAILED: u32 = _IOW::<Failed>(TYPE, 0xb4);

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Bind {
    pub(super) number: u32,
    pub(super) flags: u32,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of memory that written blocks may take.
    pub(super) memory: u64,
    /// Layers of the image.
    pub(super) layers: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) timeout_ms: u32,
    /// 1: enough, 2: old enough, 3: somebody waits for it, 4: the disk is being detached.
    pub(super) reason: u32,
    /// Never 0, nor that of another one of this attachment.
    pub(super) id: u64,
    pub(super) extents: u64,
    /// Of the mapping.
    pub(super) bytes: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Extents {
    pub(super) id: u64,
    pub(super) first: u64,
    pub(super) nr: u64,
    /// Where [`Extent`]s go.
    pub(super) to: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Of 4 KiB.
    pub(super) block: u64,
    pub(super) blocks: u32,
    /// 1: zeros, with nothing in the mapping.
    pub(super) zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Stack {
    pub(super) id: u64,
    pub(super) first: u32,
    pub(super) nr: u32,
    /// Where the path is: it ends with a zero and is shorter than 4096.
    pub(super) path: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Failed {
    pub(super) id: u64,
    pub(super) errno: i32,
    pub(super) reserved: u32,
}

// SAFETY: Integers, and no padding between them.
unsafe impl FromBytes for Bind {}
// SAFETY: As above.
unsafe impl AsBytes for Bind {}
// SAFETY: As above.
unsafe impl FromBytes for Next {}
// SAFETY: As above.
unsafe impl AsBytes for Next {}
// SAFETY: As above.
unsafe impl FromBytes for Extents {}
// SAFETY: As above.
unsafe impl AsBytes for Extent {}
// SAFETY: As above.
unsafe impl FromBytes for Stack {}
// SAFETY: As above.
unsafe impl FromBytes for Failed {}
