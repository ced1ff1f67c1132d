// SPDX-License-Identifier: MIT

//! What SPDK asks of its environment (`spdk/env.h`), with which it is usually DPDK
//! that answers: memory a device can access, one PCI device, time.
//!
//! SPDK has no place for a context in these calls, so there is one environment in a
//! process at a time, [`Env`].

use super::arena::Arena;
use crate::Memory;
use crate::memory::ALIGNMENT;
use crate::nvme::container::{
    BAR_BYTES,
    Container,
    Registers,
    other, //
};
use std::collections::HashMap;
use std::ffi::{
    CStr,
    c_char,
    c_int,
    c_uint,
    c_void, //
};
use std::fs;
use std::io;
use std::path::Path;
use std::ptr::{
    NonNull,
    null_mut, //
};
use std::sync::atomic::{
    AtomicU64,
    AtomicUsize,
    Ordering, //
};
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::time::{
    Duration,
    Instant, //
};

/// Memory for SPDK's own: rings, trackers (a page each), requests.
const ARENA_BYTES: usize = 8 << 20;

/// `struct spdk_pci_addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub(super) struct PciAddr {
    domain: u32,
    bus: u8,
    dev: u8,
    func: u8,
}

impl PciAddr {
    /// As the kernel writes it, or without a domain.
    fn parse(text: &str) -> Option<Self> {
        let (rest, func) = text.rsplit_once('.')?;
        let (rest, dev) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let byte = |text| u8::from_str_radix(text, 16).ok();
        Some(Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: byte(bus)?,
            dev: byte(dev)?,
            func: byte(func)?,
        })
    }
}

/// `struct spdk_pci_id`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct PciId {
    class: u32,
    vendor: u16,
    device: u16,
    subvendor: u16,
    subdevice: u16,
}

impl PciId {
    /// What `dir`, the device's folder in sysfs, says.
    fn read(dir: &Path) -> io::Result<Self> {
        let number = |name: &str| {
            let text = fs::read_to_string(dir.join(name))?;
            let digits = text.trim().trim_start_matches("0x");
            u32::from_str_radix(digits, 16)
                .map_err(|_| other(format!("its {name} is no number: {}", text.trim())))
        };
        Ok(Self {
            class: number("class")?,
            vendor: number("vendor")? as u16,
            device: number("device")? as u16,
            subvendor: number("subsystem_vendor")? as u16,
            subdevice: number("subsystem_device")? as u16,
        })
    }
}

/// The device, and SPDK's memory.
struct Device {
    // Its registers are unmapped, and it is closed, before its memory goes.
    registers: Registers,
    container: Container,
    memory: Memory,
    arena: Arena,
    address: PciAddr,
    id: PciId,
}

static DEVICE: Mutex<Option<Device>> = Mutex::new(None);

/// Memory without a device, by name. Never given back to the system: SPDK's globals
/// are in it.
static ZONES: Mutex<Option<HashMap<Vec<u8>, usize>>> = Mutex::new(None);

/// Memory the device can access, for lookups without a lock; of the length 0 if
/// there is none.
struct Region {
    start: AtomicUsize,
    len: AtomicUsize,
    iova: AtomicU64,
}

impl Region {
    const fn none() -> Self {
        Self {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            iova: AtomicU64::new(0),
        }
    }

    fn set(&self, memory: &Memory, iova: u64) {
        self.start
            .store(memory.base().addr().get(), Ordering::Relaxed);
        self.iova.store(iova, Ordering::Relaxed);
        self.len.store(memory.len(), Ordering::Release);
    }

    /// The device's address of `at`, and how many bytes follow there.
    fn find(&self, at: usize) -> Option<(u64, u64)> {
        let len = self.len.load(Ordering::Acquire);
        let offset = at.wrapping_sub(self.start.load(Ordering::Relaxed));
        (offset < len).then(|| {
            let iova = self.iova.load(Ordering::Relaxed);
            (iova + offset as u64, (len - offset) as u64)
        })
    }
}

/// The engine's memory, of which most is asked, and SPDK's.
static REGIONS: [Region; 2] = [Region::none(), Region::none()];

/// The environment; dropped, the device is closed.
pub(super) struct Env(());

impl Env {
    /// Makes `container`, the device at `address` that `dir` describes, the one that
    /// SPDK sees, and lets it access `memory`.
    pub(super) fn new(
        mut container: Container,
        address: &str,
        dir: &Path,
        memory: &Memory,
    ) -> io::Result<Self> {
        let address = PciAddr::parse(address).ok_or_else(|| other("no PCI address"))?;
        let id = PciId::read(dir)?;
        let mut device = device();
        if device.is_some() {
            return Err(other("SPDK drives another controller in this process"));
        }
        let own = Memory::new(1, ARENA_BYTES)?;
        let addresses = [
            container.map(memory.base(), memory.len())?,
            container.map(own.base(), own.len())?,
        ];
        let registers = container.registers()?;
        for (region, (memory, iova)) in REGIONS
            .iter()
            .zip([memory, &own].into_iter().zip(addresses))
        {
            region.set(memory, iova);
        }
        *device = Some(Device {
            registers,
            container,
            memory: own,
            arena: Arena::new(ARENA_BYTES),
            address,
            id,
        });
        Ok(Self(()))
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        let closed = device().take();
        for region in &REGIONS {
            region.len.store(0, Ordering::Release);
        }
        drop(closed);
    }
}

/// The device is whole even if a thread that held it panicked.
fn device() -> MutexGuard<'static, Option<Device>> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What SPDK knows the only device by, and its driver: an address that it never
/// looks behind.
static HANDLE: [u64; 64] = [0; 64];

fn handle() -> *mut c_void {
    (&raw const HANDLE).cast_mut().cast()
}

/// `spdk_pci_enum_cb`.
type EnumCallback = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;

// From here on the signatures are those of `spdk/env.h` of SPDK 20.07, and its
// comments there the contracts. A panic in one of these ends the process.

#[unsafe(no_mangle)]
extern "C" fn spdk_zmalloc(
    size: usize,
    align: usize,
    physical: *mut u64,
    _socket: c_int,
    _flags: u32,
) -> *mut c_void {
    let mut device = device();
    let Some(device) = device.as_mut() else {
        return null_mut();
    };
    if !align.is_power_of_two() && align != 0 {
        return null_mut();
    }
    let Some(at) = device.arena.alloc(size, align) else {
        return null_mut();
    };
    // SAFETY: within the memory, and nobody else's.
    let place = unsafe {
        let place = device.memory.base().add(at);
        place.write_bytes(0, size);
        place
    };
    if let Some(physical) = NonNull::new(physical) {
        let found = REGIONS[1].find(place.addr().get());
        // SAFETY: where the caller wants it.
        unsafe { physical.write(found.map_or(u64::MAX, |(iova, _)| iova)) };
    }
    place.as_ptr().cast()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_realloc(old: *mut c_void, size: usize, align: usize) -> *mut c_void {
    let new = spdk_zmalloc(size, align, null_mut(), 0, 0);
    if old.is_null() || new.is_null() {
        return new;
    }
    let had = match device().as_ref() {
        Some(device) => device.arena.len_of(offset(device, old)).unwrap_or(0),
        None => 0,
    };
    // SAFETY: two parts of the arena, at least as long.
    unsafe { old.copy_to_nonoverlapping(new, had.min(size)) };
    spdk_free(old);
    new
}

fn offset(device: &Device, place: *mut c_void) -> usize {
    place.addr().wrapping_sub(device.memory.base().addr().get())
}

#[unsafe(no_mangle)]
extern "C" fn spdk_free(place: *mut c_void) {
    if let Some(device) = device().as_mut()
        && !place.is_null()
    {
        let known = device.arena.free(offset(device, place));
        debug_assert!(known, "SPDK frees what it never had");
    }
}

fn zones() -> MutexGuard<'static, Option<HashMap<Vec<u8>, usize>>> {
    ZONES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
///
/// `name` must be a string that ends with zero.
unsafe fn zone_name(name: *const c_char) -> Vec<u8> {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(name) }.to_bytes().to_vec()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_memzone_reserve(
    name: *const c_char,
    len: usize,
    _socket: c_int,
    _flags: c_uint,
) -> *mut c_void {
    // SAFETY: the caller's.
    let name = unsafe { zone_name(name) };
    let mut zones = zones();
    let zones = zones.get_or_insert_default();
    let zone = vec![0u64; len.div_ceil(8)].into_boxed_slice();
    if zones.contains_key(&name) {
        return null_mut();
    }
    let place: *mut u64 = Box::leak(zone).as_mut_ptr();
    zones.insert(name, place.expose_provenance());
    place.cast()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_memzone_lookup(name: *const c_char) -> *mut c_void {
    // SAFETY: the caller's.
    let name = unsafe { zone_name(name) };
    let zones = zones();
    let found = zones.as_ref().and_then(|zones| zones.get(&name));
    found.map_or(null_mut(), |place| {
        std::ptr::with_exposed_provenance_mut(*place)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_memzone_free(name: *const c_char) -> c_int {
    // SAFETY: the caller's.
    let name = unsafe { zone_name(name) };
    match zones().as_mut().and_then(|zones| zones.remove(&name)) {
        Some(_) => 0,
        None => -1,
    }
}

#[unsafe(no_mangle)]
extern "C" fn spdk_process_is_primary() -> bool {
    true
}

#[unsafe(no_mangle)]
extern "C" fn spdk_mem_register(_place: *mut c_void, _len: usize) -> c_int {
    -libc::ENOTSUP
}

#[unsafe(no_mangle)]
extern "C" fn spdk_mem_unregister(_place: *mut c_void, _len: usize) -> c_int {
    -libc::ENOTSUP
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_vtophys(place: *mut c_void, size: *mut u64) -> u64 {
    let Some((iova, left)) = REGIONS.iter().find_map(|region| region.find(place.addr())) else {
        return u64::MAX;
    };
    if let Some(size) = NonNull::new(size) {
        // SAFETY: the caller's, to be read and written.
        unsafe { size.write(size.read().min(left)) };
    }
    iova
}

/// Nanoseconds.
#[unsafe(no_mangle)]
extern "C" fn spdk_get_ticks() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[unsafe(no_mangle)]
extern "C" fn spdk_get_ticks_hz() -> u64 {
    1_000_000_000
}

#[unsafe(no_mangle)]
extern "C" fn spdk_delay_us(us: c_uint) {
    std::thread::sleep(Duration::from_micros(us.into()));
}

// Rings carry what other processes want done; there are none.

#[unsafe(no_mangle)]
extern "C" fn spdk_ring_create(_kind: c_int, _count: usize, _socket: c_int) -> *mut c_void {
    null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_ring_free(_ring: *mut c_void) {}

#[unsafe(no_mangle)]
extern "C" fn spdk_ring_enqueue(
    _ring: *mut c_void,
    _objects: *mut *mut c_void,
    _count: usize,
    _room: *mut usize,
) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_ring_dequeue(
    _ring: *mut c_void,
    _objects: *mut *mut c_void,
    _count: usize,
) -> usize {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_addr_compare(a: *const PciAddr, b: *const PciAddr) -> c_int {
    // SAFETY: the caller's.
    let (a, b) = unsafe { (a.read(), b.read()) };
    a.cmp(&b) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_addr_parse(to: *mut PciAddr, text: *const c_char) -> c_int {
    // SAFETY: the caller's, a string that ends with zero.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str().ok().and_then(PciAddr::parse) {
        Some(address) => {
            // SAFETY: the caller's, to be written.
            unsafe { to.write(address) };
            0
        }
        None => -libc::EINVAL,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_addr_fmt(
    to: *mut c_char,
    size: usize,
    address: *const PciAddr,
) -> c_int {
    // SAFETY: the caller's.
    let a = unsafe { address.read() };
    let text = format!(
        "{:04x}:{:02x}:{:02x}.{:x}\0",
        a.domain, a.bus, a.dev, a.func
    );
    if text.len() > size {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's, of `size` bytes.
    unsafe { to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_nvme_get_driver() -> *mut c_void {
    handle()
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_driver_register(_name: *const c_char, _ids: *mut c_void, _flags: u32) {}

/// Finds nothing: SPDK asks for the device by its address, and only uses this for
/// devices that were plugged in, which ours seems to be whenever it is taken.
#[unsafe(no_mangle)]
extern "C" fn spdk_pci_enumerate(
    _driver: *mut c_void,
    _found: EnumCallback,
    _context: *mut c_void,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_device_attach(
    _driver: *mut c_void,
    found: EnumCallback,
    context: *mut c_void,
    address: *const PciAddr,
) -> c_int {
    // SAFETY: the caller's.
    let wanted = unsafe { address.read() };
    // The callback comes back for memory: the lock must be free.
    let ours = device().as_ref().map(|device| device.address);
    if ours != Some(wanted) {
        return -libc::ENODEV;
    }
    // SAFETY: the caller's, called as it wants it.
    unsafe { found(context, handle()) }
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_detach(_device: *mut c_void) {}

/// The device is claimed by being this process's.
#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_claim(_device: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_unclaim(_device: *mut c_void) {}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_is_removed(_device: *mut c_void) -> bool {
    false
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_get_addr(_device: *mut c_void) -> PciAddr {
    let none = PciAddr {
        domain: u32::MAX,
        bus: 0,
        dev: 0,
        func: 0,
    };
    device().as_ref().map_or(none, |device| device.address)
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_get_id(_device: *mut c_void) -> PciId {
    let none = PciId {
        class: 0,
        vendor: 0,
        device: 0,
        subvendor: 0,
        subdevice: 0,
    };
    device().as_ref().map_or(none, |device| device.id)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_device_map_bar(
    _device: *mut c_void,
    bar: u32,
    place: *mut *mut c_void,
    physical: *mut u64,
    size: *mut u64,
) -> c_int {
    let device = device();
    // The others are for controllers with memory, which are not asked for it.
    let Some(device) = device.as_ref().filter(|_| bar == 0) else {
        return -libc::ENODEV;
    };
    // SAFETY: the caller's, to be written.
    unsafe {
        place.write(device.registers.base().as_ptr().cast());
        physical.write(0);
        size.write(BAR_BYTES as u64);
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_unmap_bar(
    _device: *mut c_void,
    _bar: u32,
    _place: *mut c_void,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_pci_device_cfg_read16(
    _device: *mut c_void,
    value: *mut u16,
    at: u32,
) -> c_int {
    let mut bytes = [0; 2];
    let read = device()
        .as_ref()
        .map(|device| device.container.read_config(at.into(), &mut bytes));
    // SAFETY: the caller's, to be written.
    unsafe { value.write(u16::from_le_bytes(bytes)) };
    if matches!(read, Some(Ok(()))) { 0 } else { -1 }
}

#[unsafe(no_mangle)]
extern "C" fn spdk_pci_device_cfg_write16(_device: *mut c_void, value: u16, at: u32) -> c_int {
    let written = device().as_ref().map(|device| {
        device
            .container
            .write_config(at.into(), &value.to_le_bytes())
    });
    if matches!(written, Some(Ok(()))) {
        0
    } else {
        -1
    }
}

/// `struct spdk_uuid`: a random one, of version 4. Here instead of SPDK's own, which
/// would need libuuid.
#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_uuid_generate(uuid: *mut [u8; 16]) {
    let mut bytes = fastrand::u128(..).to_ne_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    // SAFETY: the caller's, to be written.
    unsafe { uuid.write(bytes) };
}

/// As SPDK's own, see above.
#[unsafe(no_mangle)]
unsafe extern "C" fn spdk_uuid_fmt_lower(
    to: *mut c_char,
    size: usize,
    uuid: *const [u8; 16],
) -> c_int {
    // SAFETY: the caller's.
    let bytes = unsafe { uuid.read() };
    let mut text = String::new();
    for (n, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&n) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\0');
    if text.len() > size {
        return -libc::EINVAL;
    }
    // SAFETY: the caller's, of `size` bytes.
    unsafe { to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
    0
}

const _: () = assert!(ARENA_BYTES.is_multiple_of(ALIGNMENT));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_address_is_read_and_written_as_the_kernel_does() {
        let mut address = PciAddr::parse("0000:00:04.0").unwrap();
        let text = c"10af:c1:1f.7";
        // SAFETY: a place and a string that ends with zero.
        let parsed = unsafe { spdk_pci_addr_parse(&mut address, text.as_ptr()) };
        assert_eq!(parsed, 0);
        let mut back = [0; 13];
        // SAFETY: a place of that size, and an address.
        let written = unsafe { spdk_pci_addr_fmt(back.as_mut_ptr(), back.len(), &address) };
        assert_eq!(written, 0);
        // SAFETY: it was just written.
        assert_eq!(unsafe { CStr::from_ptr(back.as_ptr()) }, text);
        assert_eq!(PciAddr::parse("04.1").map(|a| a.dev), None);
        assert_eq!(
            PciAddr::parse("00:04.1").map(|a| (a.dev, a.func)),
            Some((4, 1))
        );
    }

    #[test]
    fn test_region_knows_its_bytes_only() {
        let memory = Memory::new(1, 8192).unwrap();
        let region = Region::none();
        let start = memory.base().addr().get();
        assert_eq!(region.find(start), None);
        region.set(&memory, 1 << 20);
        assert_eq!(region.find(start), Some((1 << 20, 8192)));
        assert_eq!(region.find(start + 8191), Some(((1 << 20) + 8191, 1)));
        assert_eq!(region.find(start + 8192), None);
        assert_eq!(region.find(start - 1), None);
    }
}
