// SPDX-License-Identifier: MIT
//! QEMU's plugin interface, declared here as no header package exists.
//!
//! The functions live in the QEMU that loads the plugin and are looked up at
//! run time: one artefact fits every QEMU from 6.1 (interface version 1) on,
//! and the crate's tests link without QEMU.

use std::ffi::{
    CStr,
    c_char,
    c_int,
    c_uint,
    c_void, //
};
use std::sync::atomic::{
    AtomicI32,
    Ordering, //
};

/// Handle of a loaded plugin (`qemu_plugin_id_t`).
pub type Id = u64;

/// `struct qemu_plugin_tb`: a block being translated.
#[repr(C)]
#[derive(Debug)]
pub struct Tb {
    _opaque: [u8; 0],
}

/// `struct qemu_plugin_insn`: an instruction being translated.
#[repr(C)]
#[derive(Debug)]
pub struct Insn {
    _opaque: [u8; 0],
}

/// `struct qemu_plugin_hwaddr`: a resolved physical address.
#[repr(C)]
#[derive(Debug)]
pub struct HwAddr {
    _opaque: [u8; 0],
}

/// `qemu_info_t`, for system emulation.
#[repr(C)]
#[derive(Debug)]
pub struct Info {
    /// Name of the emulated architecture.
    pub target_name: *const c_char,
    /// Lowest interface version this QEMU accepts.
    pub version_min: c_int,
    /// Interface version of this QEMU.
    pub version_cur: c_int,
    /// Whether a whole system is emulated, not a process.
    pub system_emulation: bool,
    /// Virtual CPUs at the start.
    pub smp_vcpus: c_int,
    /// Virtual CPUs at most.
    pub max_vcpus: c_int,
}

/// Called for every block that is translated.
pub type TransCallback = extern "C" fn(Id, *mut Tb);
/// Called with the virtual CPU's number when something executes.
pub type ExecCallback = extern "C" fn(c_uint, *mut c_void);
/// Called with CPU, access, virtual address when memory is accessed.
pub type MemCallback = extern "C" fn(c_uint, u32, u64, *mut c_void);

/// `QEMU_PLUGIN_CB_NO_REGS`.
const CB_NO_REGS: c_int = 0;
/// `QEMU_PLUGIN_MEM_W`.
const MEM_WRITE: c_int = 2;
/// From this version on `qemu_plugin_insn_data` copies instead of lending.
const INSN_DATA_COPIES: c_int = 3;

type InsnDataLends = unsafe extern "C" fn(*const Insn) -> *const u8;
type InsnDataCopies = unsafe extern "C" fn(*const Insn, *mut c_void, usize) -> usize;

/// The two forms of `qemu_plugin_insn_data`.
#[derive(Debug, Clone, Copy)]
enum InsnData {
    Lends(InsnDataLends),
    Copies(InsnDataCopies),
}

/// Interface version this plugin asks for; QEMU reads it before it calls
/// `qemu_plugin_install`. No one number fits all: QEMU up to 8.2 knows
/// versions up to 1, QEMU from 9.0 on refuses those below 2. So
/// [`CHOOSE_VERSION`] sets it as the plugin is loaded.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is QEMU's")]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(1);

/// Runs when the dynamic loader has loaded the plugin.
#[used]
#[unsafe(link_section = ".init_array")]
static CHOOSE_VERSION: extern "C" fn() = choose_version;

extern "C" fn choose_version() {
    // Scoreboards came with interface version 2.
    if lookup(c"qemu_plugin_scoreboard_new").is_some() {
        qemu_plugin_version.store(2, Ordering::Relaxed);
    }
}

fn lookup(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string; the default handle is always valid.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Declares [`Api`] with one field for each function, filled by name.
macro_rules! api {
    ($($field:ident: fn($($arg:ty),*) $(-> $ret:ty)? = $name:literal;)*) => {
        /// QEMU's functions that the plugin calls.
        #[derive(Debug, Clone, Copy)]
        pub struct Api {
            insn_data: InsnData,
            $($field: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Api {
            /// Looks the functions up for an interface of `version`.
            ///
            /// # Errors
            ///
            /// Names the function that this QEMU lacks.
            pub fn load(version: c_int) -> Result<Self, String> {
                let find = |name: &CStr| {
                    lookup(name).ok_or_else(|| format!("this QEMU has no {name:?}"))
                };
                let insn_data = find(c"qemu_plugin_insn_data")?;
                Ok(Self {
                    insn_data: if version >= INSN_DATA_COPIES {
                        // SAFETY: from that version on QEMU declares it so.
                        InsnData::Copies(unsafe {
                            std::mem::transmute::<*mut c_void, InsnDataCopies>(insn_data)
                        })
                    } else {
                        // SAFETY: before that version QEMU declares it so.
                        InsnData::Lends(unsafe {
                            std::mem::transmute::<*mut c_void, InsnDataLends>(insn_data)
                        })
                    },
                    $($field: {
                        let address = find($name)?;
                        // SAFETY: QEMU declares the function with this type in
                        // every version of the interface.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

api! {
    register_tb_trans: fn(Id, TransCallback) = c"qemu_plugin_register_vcpu_tb_trans_cb";
    register_tb_exec: fn(*mut Tb, ExecCallback, c_int, *mut c_void)
        = c"qemu_plugin_register_vcpu_tb_exec_cb";
    register_insn_exec: fn(*mut Insn, ExecCallback, c_int, *mut c_void)
        = c"qemu_plugin_register_vcpu_insn_exec_cb";
    register_mem: fn(*mut Insn, MemCallback, c_int, c_int, *mut c_void)
        = c"qemu_plugin_register_vcpu_mem_cb";
    tb_n_insns: fn(*const Tb) -> usize = c"qemu_plugin_tb_n_insns";
    tb_get_insn: fn(*const Tb, usize) -> *mut Insn = c"qemu_plugin_tb_get_insn";
    insn_size: fn(*const Insn) -> usize = c"qemu_plugin_insn_size";
    insn_vaddr: fn(*const Insn) -> u64 = c"qemu_plugin_insn_vaddr";
    get_hwaddr: fn(u32, u64) -> *mut HwAddr = c"qemu_plugin_get_hwaddr";
    hwaddr_is_io: fn(*const HwAddr) -> bool = c"qemu_plugin_hwaddr_is_io";
    hwaddr_phys_addr: fn(*const HwAddr) -> u64 = c"qemu_plugin_hwaddr_phys_addr";
    hwaddr_device_name: fn(*const HwAddr) -> *const c_char
        = c"qemu_plugin_hwaddr_device_name";
}

/// Longest x86 instruction in bytes.
pub const MAX_INSN: usize = 15;

/// One instruction of a block being translated.
#[derive(Debug, Clone, Copy)]
pub struct Decoded {
    /// QEMU's handle; valid during the translation callback.
    pub handle: *mut Insn,
    /// Virtual address.
    pub address: u64,
    bytes: [u8; MAX_INSN],
    size: usize,
}

impl Decoded {
    /// An instruction of `bytes`, of which [`MAX_INSN`] count.
    pub fn new(handle: *mut Insn, address: u64, bytes: &[u8]) -> Self {
        let size = bytes.len().min(MAX_INSN);
        let mut copy = [0; MAX_INSN];
        copy[..size].copy_from_slice(&bytes[..size]);
        Self {
            handle,
            address,
            bytes: copy,
            size,
        }
    }

    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl Api {
    /// Asks to be called for every block that is translated.
    pub fn on_translate(&self, id: Id, callback: TransCallback) {
        // SAFETY: `id` is the plugin's own; the callback lives as long as it.
        unsafe { (self.register_tb_trans)(id, callback) }
    }

    /// The instructions of `tb`.
    ///
    /// # Safety
    ///
    /// `tb` is the block of the translation callback in progress.
    pub unsafe fn insns(&self, tb: *mut Tb) -> Vec<Decoded> {
        // SAFETY: `tb` is valid by contract.
        let count = unsafe { (self.tb_n_insns)(tb) };
        let mut insns = Vec::with_capacity(count);
        for index in 0..count {
            // SAFETY: `tb` is valid by contract and `index` below its count;
            // the handle is valid as long as the callback lasts.
            let (handle, address, size) = unsafe {
                let handle = (self.tb_get_insn)(tb, index);
                (handle, (self.insn_vaddr)(handle), (self.insn_size)(handle))
            };
            let mut bytes = [0; MAX_INSN];
            let size = size.min(MAX_INSN);
            match self.insn_data {
                // SAFETY: QEMU lends `insn_size` bytes during the callback, and
                // `bytes` is not shorter than `size`.
                InsnData::Lends(lend) => unsafe {
                    lend(handle).copy_to_nonoverlapping(bytes.as_mut_ptr(), size);
                },
                // SAFETY: QEMU writes `size` bytes at most, which `bytes` has.
                InsnData::Copies(copy) => unsafe {
                    copy(handle, bytes.as_mut_ptr().cast(), size);
                },
            }
            insns.push(Decoded::new(handle, address, &bytes[..size]));
        }
        insns
    }

    /// Asks for `callback(cpu, data)` whenever `tb` begins to execute.
    ///
    /// # Safety
    ///
    /// `tb` is the block of the translation callback in progress.
    pub unsafe fn on_block<T: Sync>(&self, tb: *mut Tb, callback: ExecCallback, data: &'static T) {
        // SAFETY: `tb` is valid by contract and `data` for ever.
        unsafe { (self.register_tb_exec)(tb, callback, CB_NO_REGS, erase(data)) }
    }

    /// Asks for `callback(cpu, data)` before each execution of `insn`.
    ///
    /// # Safety
    ///
    /// `insn` is of the block of the translation callback in progress.
    pub unsafe fn on_insn<T: Sync>(
        &self,
        insn: *mut Insn,
        callback: ExecCallback,
        data: &'static T,
    ) {
        // SAFETY: `insn` is valid by contract and `data` for ever.
        unsafe { (self.register_insn_exec)(insn, callback, CB_NO_REGS, erase(data)) }
    }

    /// Asks for `callback(cpu, access, address, data)` after each store of `insn`.
    ///
    /// # Safety
    ///
    /// `insn` is of the block of the translation callback in progress.
    pub unsafe fn on_store<T: Sync>(
        &self,
        insn: *mut Insn,
        callback: MemCallback,
        data: &'static T,
    ) {
        // SAFETY: `insn` is valid by contract and `data` for ever.
        unsafe { (self.register_mem)(insn, callback, CB_NO_REGS, MEM_WRITE, erase(data)) }
    }

    /// Name of the device region and address (the region's or the bus's,
    /// depending on QEMU's version) that a store of the callback in progress
    /// goes to; `None` for memory.
    ///
    /// # Safety
    ///
    /// `access` and `address` are those of the memory callback in progress.
    pub unsafe fn device_access(&self, access: u32, address: u64) -> Option<(&CStr, u64)> {
        // SAFETY: the callback is in progress by contract; the result is null
        // or valid until the callback returns.
        unsafe {
            let resolved = (self.get_hwaddr)(access, address);
            if resolved.is_null() || !(self.hwaddr_is_io)(resolved) {
                return None;
            }
            let name = (self.hwaddr_device_name)(resolved);
            let address = (self.hwaddr_phys_addr)(resolved);
            if name.is_null() {
                return None;
            }
            Some((CStr::from_ptr(name), address))
        }
    }
}

fn erase<T: Sync>(data: &'static T) -> *mut c_void {
    // Only ever turned back into a shared reference.
    std::ptr::from_ref(data).cast_mut().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_load_without_qemu_names_the_missing_function() {
        let error = Api::load(1).unwrap_err();
        assert!(error.contains("qemu_plugin_"), "{error}");
    }

    #[test]
    fn test_version_without_scoreboards_is_1() {
        assert_eq!(qemu_plugin_version.load(Ordering::Relaxed), 1);
    }
}
