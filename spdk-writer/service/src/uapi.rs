// SPDX-License-Identifier: MIT

//! What the driver's `/dev/obd-writer` lays down: numbers of requests, and
//! structures as the kernel reads and writes them.

use std::mem::{
    offset_of,
    size_of, //
};

/// An ioctl number (`_IOC`): `direction` 1 writes to the kernel, 3 does both;
/// `size` is that of its structure.
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    ((direction << 30) | ((size as u32) << 16) | ((b'O' as u32) << 8) | number) as libc::Ioctl
}

/// Become the writer of a disk: a [`Bind`].
pub(crate) const BIND: libc::Ioctl = request(3, 0xB0, size_of::<Bind>());
/// Wait for a frozen layer: a [`Next`].
pub(crate) const NEXT: libc::Ioctl = request(3, 0xB1, size_of::<Next>());
/// What a frozen layer holds: [`Extents`].
pub(crate) const EXTENTS: libc::Ioctl = request(1, 0xB2, size_of::<Extents>());
/// Exchange layers: a [`Stack`].
pub(crate) const STACK: libc::Ioctl = request(1, 0xB3, size_of::<Stack>());
/// A commit failed: a [`Failed`].
pub(crate) const FAILED: libc::Ioctl = request(1, 0xB4, size_of::<Failed>());
/// Write what is frozen for a flush to the log: a [`Log`].
pub(crate) const LOG: libc::Ioctl = request(3, 0xB5, size_of::<Log>());
/// What was logged is to become a layer: a [`Seal`].
pub(crate) const SEAL: libc::Ioctl = request(3, 0xB6, size_of::<Seal>());

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Bind {
    /// N of `/dev/obdN`.
    pub(crate) minor: u32,
    pub(crate) flags: u32,
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes that may be in memory.
    pub(crate) memory: u64,
    /// Layers of the disk's image.
    pub(crate) layers: u64,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Next {
    pub(crate) timeout_ms: u32,
    /// 1: size, 2: age, 3: flush, 4: the disk is being detached.
    pub(crate) reason: u32,
    pub(crate) id: u64,
    pub(crate) extents: u64,
    /// Bytes of the mapping.
    pub(crate) bytes: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Extents {
    pub(crate) id: u64,
    pub(crate) first: u64,
    pub(crate) nr: u64,
    /// The address of `nr` [`Extent`].
    pub(crate) to: u64,
}

/// Adjacent blocks of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Extent {
    /// The first, in blocks of 4 KiB.
    pub block: u64,
    /// How many.
    pub blocks: u32,
    /// Whether they are zeros, and not in the mapping, as opposed to data.
    pub zero: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Stack {
    pub(crate) id: u64,
    pub(crate) first: u32,
    pub(crate) nr: u32,
    /// The address of a string.
    pub(crate) path: u64,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Failed {
    pub(crate) id: u64,
    pub(crate) errno: i32,
    pub(crate) reserved: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Log {
    /// The file, open for writing.
    pub(crate) fd: u32,
    pub(crate) timeout_ms: u32,
    /// Which log it is.
    pub(crate) log: u64,
    /// Number of the last record; comes back as that of the last one that is there.
    pub(crate) seq: u64,
    /// Number of the last record that what was sealed last has.
    pub(crate) sealed: u64,
    /// Where records may go, which comes back as well.
    pub(crate) at: u64,
    pub(crate) end: u64,
    pub(crate) again: u64,
    /// Bytes of records that are enough; comes back as how many were written.
    pub(crate) enough: u64,
    /// How long records took.
    pub(crate) ns: u64,
    /// Why it returned. 0: it is time or enough; 1: something else is frozen; 2: a layer is
    /// wanted; 3: a record could not be written.
    pub(crate) stop: u32,
    /// Why not.
    pub(crate) errno: i32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Seal {
    /// 1: only what is sealed already.
    pub(crate) flags: u32,
    pub(crate) reserved: u32,
    pub(crate) id: u64,
    pub(crate) extents: u64,
    /// Bytes of the mapping.
    pub(crate) bytes: u64,
}

// Sizes and places that the kernel may never change.
const _: () = {
    assert!(size_of::<Bind>() == 32);
    assert!(offset_of!(Bind, size) == 8);
    assert!(offset_of!(Bind, memory) == 16);
    assert!(offset_of!(Bind, layers) == 24);
    assert!(size_of::<Next>() == 32);
    assert!(offset_of!(Next, reason) == 4);
    assert!(offset_of!(Next, id) == 8);
    assert!(offset_of!(Next, extents) == 16);
    assert!(offset_of!(Next, bytes) == 24);
    assert!(size_of::<Extents>() == 32);
    assert!(offset_of!(Extents, first) == 8);
    assert!(offset_of!(Extents, nr) == 16);
    assert!(offset_of!(Extents, to) == 24);
    assert!(size_of::<Extent>() == 16);
    assert!(offset_of!(Extent, blocks) == 8);
    assert!(offset_of!(Extent, zero) == 12);
    assert!(size_of::<Stack>() == 24);
    assert!(offset_of!(Stack, first) == 8);
    assert!(offset_of!(Stack, nr) == 12);
    assert!(offset_of!(Stack, path) == 16);
    assert!(size_of::<Failed>() == 16);
    assert!(offset_of!(Failed, errno) == 8);
    assert!(size_of::<Log>() == 80);
    assert!(offset_of!(Log, timeout_ms) == 4);
    assert!(offset_of!(Log, log) == 8);
    assert!(offset_of!(Log, seq) == 16);
    assert!(offset_of!(Log, sealed) == 24);
    assert!(offset_of!(Log, at) == 32);
    assert!(offset_of!(Log, end) == 40);
    assert!(offset_of!(Log, again) == 48);
    assert!(offset_of!(Log, enough) == 56);
    assert!(offset_of!(Log, ns) == 64);
    assert!(offset_of!(Log, stop) == 72);
    assert!(offset_of!(Log, errno) == 76);
    assert!(size_of::<Seal>() == 32);
    assert!(offset_of!(Seal, id) == 8);
    assert!(offset_of!(Seal, extents) == 16);
    assert!(offset_of!(Seal, bytes) == 24);
    // The numbers that the header's macros give.
    assert!(BIND as u32 == 0xC020_4FB0);
    assert!(NEXT as u32 == 0xC020_4FB1);
    assert!(EXTENTS as u32 == 0x4020_4FB2);
    assert!(STACK as u32 == 0x4018_4FB3);
    assert!(FAILED as u32 == 0x4010_4FB4);
    assert!(LOG as u32 == 0xC050_4FB5);
    assert!(SEAL as u32 == 0xC020_4FB6);
};
