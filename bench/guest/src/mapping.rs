// SPDX-License-Identifier: MIT
//! Mapped files: reading and writing pages by faults.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::ptr;

/// Size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading.
    Read,
    /// Reading and writing the file.
    Shared,
    /// Reading the file, and writing to copies of its pages.
    Private,
}

/// A mapped part of a file; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` on, both multiples of [`PAGE`].
    pub(crate) fn new(file: &File, offset: u64, len: usize, access: Access) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(invalid("a mapping is of whole pages, at least one"));
        }
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| invalid("a mapping begins too far behind the file's start"))?;
        let (protection, flags) = match access {
            Access::Read => (libc::PROT_READ, libc::MAP_SHARED),
            Access::Shared => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
            Access::Private => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE),
        };
        // SAFETY: A new mapping, where the kernel finds room, of an open file.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                flags,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            len,
        })
    }

    /// Maps all of `file`, which has `size` bytes, for reading and writing.
    pub(crate) fn whole(file: &File, size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let pages = len.checked_next_multiple_of(PAGE);
        let pages = pages.ok_or(io::ErrorKind::InvalidInput)?;
        Self::new(file, 0, pages, Access::Shared)
    }

    /// Tells the kernel to read no more than what is touched.
    pub(crate) fn advise_random(&self) -> io::Result<()> {
        // SAFETY: The range is this mapping, and the advice changes no content.
        match unsafe { libc::madvise(self.start.cast(), self.len, libc::MADV_RANDOM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until what was written to a shared mapping is on the drive.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.sync_part(0, self.len)
    }

    /// As [`sync`](Self::sync), of the pages that `len` bytes from `at` on are in.
    pub(crate) fn sync_part(&self, at: usize, len: usize) -> io::Result<()> {
        let from = at - at % PAGE;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: The range is inside the mapping, as was just checked.
        match unsafe { libc::msync(self.start.add(from).cast(), at + len - from, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A page that nobody changes.
    pub(crate) fn page(&self, number: usize) -> Option<[u8; PAGE]> {
        if number >= self.len / PAGE {
            return None;
        }
        let mut page = [0; PAGE];
        // SAFETY: The page is inside the mapping, which may be read.
        unsafe { ptr::copy_nonoverlapping(self.start.add(number * PAGE), page.as_mut_ptr(), PAGE) };
        Some(page)
    }

    /// The byte `at`, or `None` behind the end.
    pub(crate) fn byte(&self, at: usize) -> Option<u8> {
        if at >= self.len {
            return None;
        }
        // SAFETY: `at` is inside the mapping, which may be read. Others may
        // change it at any time, so it is volatile.
        Some(unsafe { self.start.add(at).read_volatile() })
    }

    /// Sets the bytes from `at` on, as many of them as are in the mapping; how
    /// many. It must not be [`Access::Read`].
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> usize {
        for (at, &byte) in (at..self.len).zip(bytes) {
            // SAFETY: `at` is inside the mapping, and only who may write calls.
            unsafe { self.start.add(at).write_volatile(byte) };
        }
        bytes.len().min(self.len.saturating_sub(at))
    }

    /// Copies the mapping's start to `buffer`, as much as both have.
    pub(crate) fn read(&self, buffer: &mut [u8]) {
        let words = self.start.cast::<u64>();
        let len = self.len.min(buffer.len());
        for (i, out) in buffer[..len].chunks_exact_mut(8).enumerate() {
            // SAFETY: Word `i` is inside the mapping, whose start is aligned to
            // a page. Others may change it at any time, so it is volatile.
            out.copy_from_slice(&unsafe { words.add(i).read_volatile() }.to_ne_bytes());
        }
    }

    /// As `touch`, but pages that are not in the file any more are zeros to it
    /// instead of ending the program.
    pub(crate) fn beyond_the_end<T>(
        &mut self,
        touch: impl FnOnce(&mut Self) -> T,
    ) -> io::Result<T> {
        catch_bus_errors()?;
        let start = self.start as usize;
        CAUGHT.set((start, start + self.len));
        let result = touch(self);
        CAUGHT.set((0, 0));
        Ok(result)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: This is the mapping, and nobody uses it any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

thread_local! {
    /// Start and end of where this thread expects bus errors.
    static CAUGHT: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Has bus errors end the program only where no thread expects them.
fn catch_bus_errors() -> io::Result<()> {
    // SAFETY: All zeros is a valid `sigaction`: default, no flags, empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_bus_error as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: The handler has the signature of SA_SIGINFO, and calls only what is
    // safe in a signal handler.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts a page of zeros where it is expected that the file has none. Anywhere
/// else, or if that fails, the access is made again and ends the program.
extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: The kernel passes a valid `siginfo_t`, and fills in the address for
    // this signal.
    let page = unsafe { (*info).si_addr() } as usize & !(PAGE - 1);
    let (start, end) = CAUGHT.get();
    if (start..end).contains(&page) {
        // SAFETY: The page is part of a mapping of this thread's, which it
        // replaces by zeros that may be read and written.
        let zeros = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if zeros != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: Resets the signal to what it does by default.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn scratch(name: &str, pages: usize) -> File {
        let path = std::env::temp_dir().join(format!("aios-map-{}-{name}", std::process::id()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(&vec![7; pages * PAGE]).unwrap();
        file
    }

    #[test]
    fn test_shared_writes_reach_the_file_and_private_ones_do_not() {
        let file = scratch("write", 2);
        let mut private = Mapping::new(&file, 0, 2 * PAGE, Access::Private).unwrap();
        private.write(PAGE, b"private");
        let mut shared = Mapping::new(&file, PAGE as u64, PAGE, Access::Shared).unwrap();
        shared.write(1, b"shared");
        shared.sync().unwrap();
        let mapping = Mapping::new(&file, 0, 2 * PAGE, Access::Read).unwrap();
        let mut data = vec![0; 2 * PAGE];
        mapping.read(&mut data);
        assert_eq!(&data[PAGE..PAGE + 8], b"\x07shared\x07");
        assert_eq!(private.byte(PAGE), Some(b'p'));
        assert_eq!(mapping.byte(2 * PAGE), None);
    }

    #[test]
    fn test_beyond_the_end_is_zeros() {
        let file = scratch("end", 2);
        let mut mapping = Mapping::new(&file, 0, 2 * PAGE, Access::Read).unwrap();
        file.set_len(PAGE as u64).unwrap();
        let mut data = vec![1; 2 * PAGE];
        mapping.beyond_the_end(|m| m.read(&mut data)).unwrap();
        assert_eq!((data[0], data[PAGE]), (7, 0));
    }

    #[test]
    fn test_new_of_half_a_page_returns_error() {
        let file = scratch("half", 1);
        for len in [0, 2048] {
            assert!(Mapping::new(&file, 0, len, Access::Read).is_err());
        }
    }
}
