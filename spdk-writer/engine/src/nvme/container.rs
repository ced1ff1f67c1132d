// SPDX-License-Identifier: MIT

//! A device in the hands of this process: VFIO's container, group and device
//! (`Documentation/driver-api/vfio.rst`, `linux/vfio.h`), type 1 IOMMU.

use rustix::event::{
    EventfdFlags,
    eventfd, //
};
use rustix::fs::{
    Mode,
    OFlags, //
};
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{
    AsRawFd,
    BorrowedFd,
    FromRawFd,
    OwnedFd, //
};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU32,
    Ordering, //
};
use vfio_bindings::bindings::vfio::*;

/// Number of a request to VFIO: `_IO(VFIO_TYPE, VFIO_BASE + n)`.
const fn request(n: u32) -> libc::Ioctl {
    ((VFIO_TYPE as u32) << 8 | (VFIO_BASE + n)) as libc::Ioctl
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);

/// Bits of the command register (PCI Local Bus Specification 3.0, section 6.2.2):
/// memory space, bus master.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;

/// What is mapped of the device's registers, bytes: those of the controller and
/// the doorbells of two queue pairs, at any stride that is in use.
pub(crate) const BAR_BYTES: usize = 8192;

/// A device of this process. Closed, which the kernel does with a reset, it can
/// access memory no more.
#[derive(Debug)]
pub(crate) struct Container {
    // Closed in this order.
    device: OwnedFd,
    _group: OwnedFd,
    container: OwnedFd,
    /// Addresses the device may be given.
    next: u64,
    last: u64,
    /// Signalled by its interrupt.
    pub(crate) interrupt: OwnedFd,
}

/// Passes `argument`, a structure or a number, to a request.
///
/// # Safety
///
/// `argument` must be what the request takes: a number, or a pointer to its
/// structure, valid for as long as the call takes.
unsafe fn ioctl(fd: &OwnedFd, number: libc::Ioctl, argument: usize) -> io::Result<i32> {
    // SAFETY: by this function's contract.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Passes a structure, which may come back changed.
fn exchange<T>(fd: &OwnedFd, number: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: every request here has the structure its caller passes, which says
    // its own size where it may differ.
    unsafe { ioctl(fd, number, std::ptr::from_mut(argument).expose_provenance()) }
}

/// Passes a number.
fn number(fd: &OwnedFd, number: libc::Ioctl, argument: usize) -> io::Result<i32> {
    // SAFETY: requests passed here take a number.
    unsafe { ioctl(fd, number, argument) }
}

fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path.as_ref(), flags, Mode::empty());
    opened.map_err(|error| named(path.as_ref().display(), error.into()))
}

fn named(what: impl std::fmt::Display, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// An error that is nothing but `text`.
pub(crate) fn other(text: impl Into<String>) -> io::Error {
    io::Error::other(text.into())
}

impl Container {
    /// Opens the device at PCI `address`, described in `dir`, and switches it on.
    pub(crate) fn open(address: &str, dir: &Path) -> io::Result<Self> {
        let link = fs::read_link(dir.join("iommu_group"))?;
        let group = link
            .file_name()
            .ok_or_else(|| other("no number of its group"))?;
        if fs::read_to_string(dir.join("iommu_group/name"))
            .is_ok_and(|n| n.trim() == "vfio-noiommu")
        {
            return Err(other(
                "no IOMMU translates for it: it could write anywhere in memory",
            ));
        }
        let container = open("/dev/vfio/vfio")?;
        if number(&container, GET_API_VERSION, 0)? != VFIO_API_VERSION.cast_signed()
            || number(&container, CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU as usize)? != 1
        {
            return Err(other("VFIO is of a version without type 1 IOMMU"));
        }
        let group = open(Path::new("/dev/vfio").join(group))?;
        let mut status = vfio_group_status {
            argsz: size_of::<vfio_group_status>() as u32,
            flags: 0,
        };
        exchange(&group, GROUP_GET_STATUS, &mut status)?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(other(
                "other devices of its IOMMU group belong to drivers of the kernel",
            ));
        }
        let mut fd = container.as_raw_fd();
        exchange(&group, GROUP_SET_CONTAINER, &mut fd)?;
        number(&container, SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize)
            .map_err(|error| named("the IOMMU", error))?;
        let (next, last) = addresses(&container)?;

        let name = CString::new(address)?;
        // SAFETY: a string that ends with zero, which the request only reads.
        let device = unsafe {
            ioctl(
                &group,
                GROUP_GET_DEVICE_FD,
                name.as_ptr().expose_provenance(),
            )
        }?;
        // SAFETY: a new descriptor, which nobody else has.
        let device = unsafe { OwnedFd::from_raw_fd(device) };
        let opened = Self {
            device,
            _group: group,
            container,
            next,
            last,
            interrupt: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        opened.switch_on()?;
        Ok(opened)
    }

    fn region(&self, index: u32) -> io::Result<vfio_region_info> {
        let mut info = vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            index,
            ..Default::default()
        };
        exchange(&self.device, DEVICE_GET_REGION_INFO, &mut info)?;
        Ok(info)
    }

    fn switch_on(&self) -> io::Result<()> {
        let mut command = [0; 2];
        self.read_config(COMMAND, &mut command)?;
        let on = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        self.write_config(COMMAND, &on.to_le_bytes())
    }

    /// Reads its configuration from byte `at` on.
    pub(crate) fn read_config(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let config = self.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        if rustix::io::pread(&self.device, &mut *to, config.offset + at)? != to.len() {
            return Err(other("its configuration cannot be read"));
        }
        Ok(())
    }

    /// Writes to its configuration from byte `at` on.
    pub(crate) fn write_config(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let config = self.region(VFIO_PCI_CONFIG_REGION_INDEX)?;
        if rustix::io::pwrite(&self.device, from, config.offset + at)? != from.len() {
            return Err(other("its configuration cannot be written"));
        }
        Ok(())
    }

    /// Lets the device signal [`Container::interrupt`] by its first vector.
    pub(crate) fn enable_interrupt(&self) -> io::Result<()> {
        let mut set = [
            24,
            VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            VFIO_PCI_MSIX_IRQ_INDEX,
            0,
            1,
            self.interrupt.as_raw_fd().cast_unsigned(),
        ];
        // `struct vfio_irq_set` with one descriptor behind it.
        exchange(&self.device, DEVICE_SET_IRQS, &mut set).map(drop)
    }

    /// Lets the device access `len` bytes at `base` and returns at which address
    /// it does. It may until this is closed, so `base` must stay mapped.
    pub(crate) fn map(&mut self, base: NonNull<u8>, len: usize) -> io::Result<u64> {
        let iova = self.next;
        let end = iova.checked_add(len as u64);
        let Some(end) = end.filter(|end| end - 1 <= self.last) else {
            return Err(other("the IOMMU has no addresses left"));
        };
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: base.as_ptr().expose_provenance() as u64,
            iova,
            size: len as u64,
        };
        exchange(&self.container, IOMMU_MAP_DMA, &mut map)
            .map_err(|error| named(format_args!("locking {len} bytes of memory"), error))?;
        self.next = end;
        Ok(iova)
    }

    /// The device's registers.
    pub(crate) fn registers(&self) -> io::Result<Registers> {
        let info = self.region(VFIO_PCI_BAR0_REGION_INDEX)?;
        if info.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || info.size < BAR_BYTES as u64 {
            return Err(other("its registers cannot be mapped"));
        }
        // SAFETY: a new mapping at an address the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                BAR_BYTES,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &self.device,
                info.offset,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| other("mapped at 0"))?;
        Ok(Registers { base })
    }

    /// The descriptor of the interrupt.
    pub(crate) fn interrupt(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.interrupt.as_fd()
    }
}

/// The first range of addresses the IOMMU can translate, from 1 MiB on; if it
/// says none, those that every one can.
fn addresses(container: &OwnedFd) -> io::Result<(u64, u64)> {
    const LEAST: u64 = 1 << 20;
    // Room for the structure and what is linked to it.
    let mut info = [0u64; 512];
    let bytes = size_of_val(&info);
    info[0] = bytes as u64;
    exchange(container, IOMMU_GET_INFO, &mut info)?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let u32_at = |at: usize| {
        let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        u32::from_ne_bytes(*found.unwrap_or(&[0; 4]))
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let (flags, mut at) = (u32_at(4), u32_at(16) as usize);
    if flags & VFIO_IOMMU_INFO_CAPS != 0 {
        // The links lead forward, or they end here.
        while at != 0 {
            if u32_at(at) & 0xffff == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
                let count = (u32_at(at + 8) as usize).min(64);
                let ranges =
                    (0..count).map(|n| (u64_at(at + 16 + 16 * n), u64_at(at + 24 + 16 * n)));
                // The longest holds more than enough.
                let usable = ranges
                    .map(|(start, end)| (start.max(LEAST).next_multiple_of(4096), end))
                    .filter(|(start, end)| start < end)
                    .max_by_key(|(start, end)| end - start);
                return usable.ok_or_else(|| other("the IOMMU has no addresses"));
            }
            let next = u32_at(at + 4) as usize;
            if next <= at {
                break;
            }
            at = next;
        }
    }
    Ok((LEAST, (1 << 39) - 1))
}

/// A controller's registers. They outlive the device's descriptor, as mappings
/// do; after it was closed accesses do nothing worse than fail.
#[derive(Debug)]
pub(crate) struct Registers {
    base: NonNull<u8>,
}

// SAFETY: registers are accessed by single loads and stores, from any thread.
unsafe impl Send for Registers {}

impl Registers {
    /// Reads the 32 bits at byte `at`, a multiple of 4 within the mapping.
    pub(crate) fn read(&self, at: usize) -> u32 {
        u32::from_le(self.register(at).load(Ordering::Acquire))
    }

    /// Writes the 32 bits at byte `at`, as [`Registers::read`].
    pub(crate) fn write(&self, at: usize, value: u32) {
        self.register(at).store(value.to_le(), Ordering::Release);
    }

    fn register(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < BAR_BYTES, "register {at:#x}");
        // SAFETY: within the mapping and aligned, by the assertion; a load or
        // store of an atomic is one access of its size, which is what registers
        // are to see.
        unsafe { self.base.add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Where they are mapped, [`BAR_BYTES`] bytes.
    #[cfg(feature = "spdk")]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether a register lies within the mapping.
    pub(crate) fn has(at: usize) -> bool {
        at + 4 <= BAR_BYTES
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: mapped by `registers` with this length, and not used any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), BAR_BYTES) };
    }
}
