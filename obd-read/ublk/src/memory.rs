// SPDX-License-Identifier: MIT

//! Memory that the kernel reads and writes: anonymous, and taken page by page as
//! it is used.

#![expect(unsafe_code, reason = "memory is mapped by hand")]

use rustix::mm::{
    MapFlags,
    ProtFlags,
    mmap,
    mmap_anonymous,
    munmap, //
};
use std::fs::File;
use std::io;
use std::ptr::{
    self,
    NonNull, //
};
use std::slice;

/// A mapping, unmapped on drop.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped like this, and whoever owns it gives out no
        // reference that outlives it. Unmapping cannot fail then.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: memory is the same for every thread; access goes through the owner.
unsafe impl Send for Mapping {}

/// Private memory, zeros at first.
///
/// Whoever has the kernel write to a part of it must not look at that part
/// meanwhile, and must keep the memory until the kernel is done.
pub(crate) struct Memory(Mapping);

impl Memory {
    /// `len` bytes, rounded up to one at least.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Mapping { base, len }))
    }

    /// Where `len` bytes from `at` on are, if they are in it.
    pub(crate) fn address(&self, at: usize, len: usize) -> Option<NonNull<u8>> {
        let end = at.checked_add(len)?;
        if end > self.0.len {
            return None;
        }
        // SAFETY: within the mapping.
        Some(unsafe { self.0.base.add(at) })
    }

    /// `len` bytes from `at` on, if they are in it.
    pub(crate) fn get_mut(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        let base = self.address(at, len)?;
        // SAFETY: mapped and initialised, and borrowed exclusively from its only
        // owner.
        Some(unsafe { slice::from_raw_parts_mut(base.as_ptr(), len) })
    }
}

/// An array that the kernel writes and this process only reads.
pub(crate) struct Table<T> {
    mapping: Mapping,
    entries: NonNull<T>,
    len: usize,
}

// SAFETY: as a `Mapping`, of plain values.
unsafe impl<T: Copy + Send> Send for Table<T> {}

impl<T: Copy> Table<T> {
    /// Maps `len` entries from byte `offset` of `file` on.
    ///
    /// # Safety
    ///
    /// Any bytes there must be a `T`, and the file must be of a driver that keeps
    /// them there for as long as they are mapped.
    pub(crate) unsafe fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                file,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            mapping: Mapping { base, len: bytes },
            // Mappings are aligned to pages.
            entries: base.cast(),
            len,
        })
    }

    /// Entry `i`, as it is now.
    pub(crate) fn get(&self, i: usize) -> Option<T> {
        debug_assert!(self.len * size_of::<T>() <= self.mapping.len);
        // SAFETY: inside of the mapping; the kernel may write it meanwhile, so it
        // is copied once and for all.
        (i < self.len).then(|| unsafe { self.entries.add(i).read_volatile() })
    }
}
