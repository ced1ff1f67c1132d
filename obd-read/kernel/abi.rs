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
//! | `mmap()` | the data of what the last [`NEXT`] or [`SEAL`] gave: pages in order, read-only |
//! | [`STACK`] | puts a layer into the image, and drops the frozen one that it is made of |
//! | [`FAILED`] | that could not be done, which fails the flushes that wait |
//! | [`LOG`] | has what is frozen for flushes written to a log of the writer's, which ends them |
//! | [`SEAL`] | what was logged is to become a layer, which the writer is lent as frozen ones are |
//!
//! The mapping has the pages of the extents that are not zeros, one behind the other.
//!
//! A writer without a log makes a layer of whatever is frozen, and needs neither of the last two.
//! One with a log reads back what it says there when it is attached again: the driver does not.

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
/// Waits `timeout_ms` at most for something to be frozen. `ETIMEDOUT`, `EINTR`; `ESTALE` if another
/// thread has it logged or sealed meanwhile; `ESHUTDOWN` once the disk is gone. This and all below:
/// `ENOTCONN` unless this file is a writer's.
pub(super) const NEXT: u32 = _IOWR::<Next>(TYPE, 0xb1);
/// Writes `nr` extents from the one with the index `first` on to `to`. `ESTALE` if `id` is neither
/// frozen nor sealed, `EINVAL` if there are fewer.
pub(super) const EXTENTS: u32 = _IOW::<Extents>(TYPE, 0xb2);
/// Puts the layer at `path` (or `START+LEN PATH`) in place of the `nr` layers from `first` on, and
/// drops the frozen or sealed layer `id`, if that is not 0. Nobody reads those any more that were
/// replaced when this returns. `ESTALE` if it is neither, `EINVAL` for layers that are not
/// there or another size, `EBUSY` while this is done already, or for a frozen layer while it is
/// being logged, or something is logged or sealed, which is older, and what attaching fails with.
pub(super) const STACK: u32 = _IOW::<Stack>(TYPE, 0xb3);
/// Flushes that wait for `id` fail with `ENOSPC` if that is `errno`, else with `EIO`. It stays.
pub(super) const FAILED: u32 = _IOW::<Failed>(TYPE, 0xb4);
/// Writes what is frozen for a flush to the file `fd`, one record ([`obd_core::record`]) after the
/// other, for `timeout_ms` at most: waits for it as [`NEXT`] does. What has a record is durable,
/// and is read from memory until a sealed layer has it; the flushes that waited for it end. `EBADF`
/// if no such file is open, `EINVAL` for places or numbers that there cannot be; `ESHUTDOWN` if the
/// disk is gone and nothing was written. Whatever else ends it is in [`Log::stop`].
pub(super) const LOG: u32 = _IOWR::<Log>(TYPE, 0xb5);
/// Makes a sealed layer of all that is logged, and of the frozen one over it if there is one,
/// which is frozen no more; the same one until it is stacked. `ENODATA` if there is nothing,
/// `EBUSY` while a layer is being stacked or logged; `ESHUTDOWN`.
pub(super) const SEAL: u32 = _IOWR::<Seal>(TYPE, 0xb6);

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

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Log {
    /// The log, which is written past the page cache.
    pub(super) fd: u32,
    pub(super) timeout_ms: u32,
    /// Which log it is, as its records say.
    pub(super) log: u64,
    /// Number of the last record; of the last one that is there, when this returns.
    pub(super) seq: u64,
    /// Number of the last record that is in what was sealed last.
    pub(super) sealed: u64,
    /// Where records may go, and may go when this returns, see [`obd_core::record::Room`].
    pub(super) at: u64,
    pub(super) end: u64,
    pub(super) again: u64,
    /// So many bytes are enough; how many were written.
    pub(super) enough: u64,
    /// How long that took, ns, until the flushes ended.
    pub(super) ns: u64,
    /// Why it ended, see [`Stop`].
    pub(super) stop: u32,
    /// Why a record could not be written.
    pub(super) errno: i32,
}

/// Why [`LOG`] ended.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Stop {
    /// It is time, a signal came, or it is enough.
    Idle = 0,
    /// [`NEXT`] tells of what is frozen: for another reason than a flush, or there is no room for
    /// a record of it, or it must not have one as something older is in no log.
    Frozen = 1,
    /// There is to be a layer of what is logged now.
    Wanted = 2,
    /// The next record could not be written: nobody knows what is there, so its number must not be
    /// used again. What it would have had is frozen as before.
    Failed = 3,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Seal {
    /// 1: nothing is to be sealed that is not sealed yet.
    pub(super) flags: u32,
    pub(super) reserved: u32,
    /// Never 0, nor that of another one of this attachment, frozen or sealed.
    pub(super) id: u64,
    pub(super) extents: u64,
    /// Of the mapping.
    pub(super) bytes: u64,
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
// SAFETY: As above.
unsafe impl FromBytes for Log {}
// SAFETY: As above.
unsafe impl AsBytes for Log {}
// SAFETY: As above.
unsafe impl FromBytes for Seal {}
// SAFETY: As above.
unsafe impl AsBytes for Seal {}
