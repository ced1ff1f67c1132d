// SPDX-License-Identifier: MIT

//! Buffers a device may read and write while a request is in flight.
//!
//! All buffers of an engine lie in one piece of anonymous memory, so it can be
//! registered with the kernel or mapped for a device in one call. A [`Buffer`]
//! is owned by whoever has it: by the caller, who fills it, or by a request.

#![expect(unsafe_code, reason = "memory that devices access is mapped by hand")]

use rustix::mm::{
    MapFlags,
    ProtFlags,
    mmap_anonymous,
    munmap, //
};
use std::io;
use std::ops::{
    Deref,
    DerefMut, //
};
use std::ptr::NonNull;
use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};

/// What buffers' sizes and addresses are multiples of, bytes: a page, which is
/// what NVMe's physical regions and `O_DIRECT` want at most.
pub const ALIGNMENT: usize = 4096;

/// The memory of an engine, divided into buffers of one size. Clones are the
/// same memory.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Arena>);

#[derive(Debug)]
struct Arena {
    /// `count * size` bytes, mapped for as long as this lives.
    base: NonNull<u8>,
    count: usize,
    /// A multiple of [`ALIGNMENT`].
    size: usize,
    /// Buffers nobody has; each number is here or in one [`Buffer`].
    free: Mutex<Vec<usize>>,
}

// SAFETY: the memory is only reached through buffers, and two buffers never
// overlap; the rest is shared through a mutex.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this is what was mapped, and no buffer is left: each has a
        // reference to this. Unmapping cannot fail then.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.count * self.size) };
    }
}

impl Memory {
    /// `count` buffers of `size` bytes, rounded up to [`ALIGNMENT`]; all zeros.
    ///
    /// # Errors
    ///
    /// What the system says; nothing at all is refused.
    pub fn new(count: usize, size: usize) -> io::Result<Self> {
        let size = size
            .checked_next_multiple_of(ALIGNMENT)
            .filter(|size| *size > 0 && count > 0);
        let (Some(size), Some(len)) = (size, size.and_then(|size| size.checked_mul(count))) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: a new mapping at an address the kernel chooses.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                // Its pages are there from the start: a device waits for none.
                MapFlags::PRIVATE | MapFlags::POPULATE,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self(Arc::new(Arena {
            base,
            count,
            size,
            free: Mutex::new((0..count).rev().collect()),
        })))
    }

    /// A buffer nobody has. Its content is whatever was in it last.
    pub fn take(&self) -> Option<Buffer> {
        let index = lock(&self.0).pop()?;
        Some(Buffer {
            arena: Arc::clone(&self.0),
            index,
        })
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Bytes of each buffer.
    pub fn buffer_size(&self) -> usize {
        self.0.size
    }

    /// Address of the first byte, for the kernel to be told.
    pub fn base(&self) -> NonNull<u8> {
        self.0.base
    }

    /// Bytes of all buffers.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.0.count * self.0.size
    }

    /// Whether `buffer` is one of this memory.
    pub fn owns(&self, buffer: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &buffer.arena)
    }
}

/// The list is whole even if a thread that held it panicked.
fn lock(arena: &Arena) -> std::sync::MutexGuard<'_, Vec<usize>> {
    arena.free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer; dropped, it can be taken again.
#[derive(Debug)]
pub struct Buffer {
    arena: Arc<Arena>,
    /// Below the arena's `count`; no other buffer has it.
    index: usize,
}

impl Buffer {
    /// Where the buffer begins in its [`Memory`], bytes.
    pub fn start(&self) -> usize {
        self.index * self.arena.size
    }

    /// Address of the first byte, for a device to be told.
    pub fn address(&self) -> NonNull<u8> {
        // SAFETY: within the arena, as `index` is below `count`.
        unsafe { self.arena.base.add(self.start()) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are mapped and initialised, and nobody else has this
        // buffer: not another thread, as it is borrowed from its only owner,
        // and no device, as engines own the buffers of what is in flight.
        unsafe { std::slice::from_raw_parts(self.address().as_ptr(), self.arena.size) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.address().as_ptr(), self.arena.size) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        lock(&self.arena).push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_memory_buffers_are_apart_and_come_back() {
        let memory = Memory::new(3, 5000).unwrap();
        assert_eq!(memory.buffer_size(), 8192);
        let mut buffers: Vec<_> = (0..3).map(|_| memory.take().unwrap()).collect();
        assert!(memory.take().is_none());
        for (n, buffer) in (1u8..).zip(&mut buffers) {
            assert_eq!(buffer.len(), 8192);
            assert!((buffer.address().as_ptr() as usize).is_multiple_of(ALIGNMENT));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(n);
        }
        for (n, buffer) in (1u8..).zip(&buffers) {
            assert!(buffer.iter().all(|byte| *byte == n));
        }
        buffers.pop();
        assert!(memory.take().is_some());
    }

    #[test]
    fn test_memory_outlives_its_handle() {
        let memory = Memory::new(1, 4096).unwrap();
        let mut buffer = memory.take().unwrap();
        drop(memory);
        buffer.fill(7);
        assert_eq!(buffer[4095], 7);
    }

    #[test]
    fn test_memory_of_nothing_or_too_much_is_refused() {
        for (count, size) in [(0, 4096), (1, 0), (usize::MAX, 4096), (1, usize::MAX)] {
            assert!(Memory::new(count, size).is_err());
        }
    }
}
