// SPDX-License-Identifier: MIT
//! QEMU TCG plugin that counts the guest kernel's instructions per operation,
//! by function and by phase.
//!
//! ```text
//! -plugin libaios_insn_plugin.so,map=System.map,out=FILE.json
//!         [,commands=N][,switches=N][,interrupts=remove|reject][,spin=PREFIX]...
//!         [,count=operations|all]
//! ```
//!
//! The guest must run with `nokaslr`. A program in it marks what is measured
//! with long NOPs, `0f 1f 80 imm32`, in user mode ([`Marker`]): a window, and
//! in it operations. At the window's end the counts are written to `out` as
//! one [`report::Report`]. What runs before the window (boot, warm-up) and
//! between operations costs nothing and counts nowhere.
//!
//! # What is counted
//!
//! Instructions at kernel addresses between an operation's two marks, on the
//! virtual CPU that executes the marks: the operation's own, those of the idle
//! task while it waits, and those of the interrupt that ends the wait. A
//! repeated string instruction counts once.
//!
//! An operation has three phases. *Before* ends with the store to the
//! submission queue's doorbell (a store by a function of the drive's driver to
//! a device register at an even doorbell index). *Device* lasts until the
//! drive's interrupt arrives; as the CPU then is halted or spinning, it is the
//! work done until the wait. *After* begins at the interrupt's entry stub; a
//! device interrupt is the drive's if a function of its driver runs in it. A
//! further doorbell begins another *device* stretch.
//!
//! Waiting loops live in functions of their own, known by their names'
//! prefixes. Their instructions, and those of the functions they call, are
//! *spin* and no part of any phase, but for what ends a completion
//! (`lbio_end_*`): that is *after*, though a loop that polls calls it. When a
//! loop is left without an interrupt, what follows is *after* (the loop saw the
//! completion) unless the CPU halts for it all the same (the loop gave up); then
//! it is *device*.
//!
//! With `count=all` all of this is ignored: every instruction of the window counts,
//! of programs and of the kernel, idle task and timer interrupts included, and `out`
//! gets a [`whole::WholeReport`]. That compares what work is spread over processes.
//!
//! # What is left out
//!
//! The mean is over *clean* operations. The others are set aside whole and
//! counted by reason, as what comes in between also changes what an operation
//! itself does (wake-ups, tick bookkeeping):
//!
//! - `interrupt`: a foreign interrupt, the timer's above all. Operations that
//!   last so long that hardly one is free of ticks take `interrupts=remove`:
//!   the interrupts' instructions are taken out, and, where one wakes the idle
//!   CPU, those until it halts again. Measured on reads, operations with a tick
//!   removed cost 1 to 3 % more than those without. A completion during a
//!   foreign interrupt cannot be told apart and spoils the operation either way.
//! - `task`: more task switches than `switches=N`; a synchronous read makes 2,
//!   to the idle task and back.
//! - `commands`: not exactly `commands=N` commands; someone else's I/O, or
//!   metadata that had to be read.
//! - `early`: the completion came before the CPU was waiting for it, so that
//!   no boundary between *device* and *after* exists.
//!
//! Operations without any command are cache hits and counted apart, unless it is
//! these that are wanted (`commands=0`). Those that
//! slept and those that did not take different paths and have sums of their own.
//!
//! Costs that come every so many operations (refilling the allocator's per-CPU
//! lists, flushing the IOVA queue) are part of the mean, so it needs some
//! thousand operations to settle.

pub mod machine;
pub mod qemu;
pub mod report;
pub mod symbols;
pub mod whole;

use machine::{
    Block,
    Machine,
    Rules, //
};
use qemu::{
    Api,
    Decoded,
    Id,
    Info,
    Tb, //
};
use std::ffi::{
    CStr,
    c_char,
    c_int,
    c_uint,
    c_void, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::sync::{
    Mutex,
    MutexGuard,
    OnceLock,
    PoisonError, //
};
use symbols::{
    Table,
    Traits,
    UNKNOWN, //
};
use whole::{
    Whole,
    WholeReport, //
};

/// What a mark in the guest's program means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// The measured part begins.
    WindowBegin,
    /// The measured part ends.
    WindowEnd,
    /// An operation begins.
    OpBegin,
    /// An operation ends.
    OpEnd,
}

impl Marker {
    /// The mark that an instruction is, if it is one.
    pub fn decode(insn: &[u8]) -> Option<Self> {
        let &[0x0f, 0x1f, 0x80, a, b, c, d] = insn else {
            return None;
        };
        match u32::from_le_bytes([a, b, c, d]) {
            0x0A10_5B00 => Some(Self::WindowBegin),
            0x0A10_5E00 => Some(Self::WindowEnd),
            0x0A10_5B01 => Some(Self::OpBegin),
            0x0A10_5E01 => Some(Self::OpEnd),
            _ => None,
        }
    }
}

/// The plugin's arguments.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    map: PathBuf,
    out: PathBuf,
    spin: Vec<String>,
    rules: Rules,
    /// Everything in the window, not operations.
    all: bool,
}

/// Prefixes of waiting loops' names unless told.
const SPIN_PREFIXES: [&str; 2] = ["aios_spin_", "lbio_spin_"];

impl Options {
    fn parse<'a>(args: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let (mut map, mut out, mut spin) = (None, None, Vec::new());
        let mut rules = Rules::default();
        let mut all = false;
        for arg in args {
            let (key, value) = arg.split_once('=').unwrap_or((arg, ""));
            let number = || {
                value
                    .parse()
                    .map_err(|_| format!("argument `{key}` is a number, not `{value}`"))
            };
            match key {
                _ if value.is_empty() => return Err(format!("argument `{arg}` has no value")),
                "map" => map = Some(PathBuf::from(value)),
                "out" => out = Some(PathBuf::from(value)),
                "spin" => spin.push(value.to_owned()),
                "commands" => rules.commands = Some(number()?),
                "switches" => rules.switches = Some(number()?),
                "interrupts" => {
                    rules.interruptible = match value {
                        "remove" => true,
                        "reject" => false,
                        _ => return Err("argument `interrupts` is `remove` or `reject`".to_owned()),
                    };
                }
                "count" => {
                    all = match value {
                        "all" => true,
                        "operations" => false,
                        _ => return Err("argument `count` is `operations` or `all`".to_owned()),
                    };
                }
                _ => return Err(format!("there is no argument `{key}`")),
            }
        }
        if spin.is_empty() {
            spin = SPIN_PREFIXES.map(str::to_owned).to_vec();
        }
        Ok(Self {
            map: map.ok_or("argument `map=System.map` is missing")?,
            out: out.ok_or("argument `out=FILE.json` is missing")?,
            spin,
            rules,
            all,
        })
    }
}

/// One virtual CPU.
#[derive(Debug)]
struct Vcpu {
    /// Copy of [`Machine::active`]: outside of operations, which is nearly
    /// always, a block costs this look only.
    active: AtomicBool,
    machine: Mutex<Machine>,
    /// With `count=all`.
    whole: Mutex<Whole>,
}

impl Vcpu {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole(&self) -> MutexGuard<'_, Whole> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything the callbacks need.
#[derive(Debug)]
struct Plugin {
    api: Api,
    table: Table,
    vcpus: Vec<Vcpu>,
    out: PathBuf,
    /// `count=all`.
    all: bool,
}

/// A possible doorbell: a block and the instructions of it after the store.
#[derive(Debug)]
struct Store {
    block: &'static Block,
    rest: u32,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

impl Plugin {
    fn vcpu(&self, index: c_uint) -> Option<&Vcpu> {
        self.vcpus.get(usize::try_from(index).ok()?)
    }

    /// Writes the report; the file appears whole or not at all.
    fn write(&self) {
        let written = if self.all {
            let cpus: Vec<_> = self.vcpus.iter().map(Vcpu::whole).collect();
            let report = WholeReport::new(&self.table, cpus.iter().map(|cpu| &**cpu));
            write_json(&report, &self.out)
        } else {
            let machines: Vec<_> = self.vcpus.iter().map(Vcpu::machine).collect();
            let totals = machines.iter().map(|machine| machine.totals());
            write_json(&report::Report::new(&self.table, totals), &self.out)
        };
        if let Err(error) = written {
            complain(&format!("cannot write {}: {error}", self.out.display()));
        }
    }
}

fn write_json(report: &impl serde::Serialize, to: &Path) -> std::io::Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, serde_json::to_vec(report)?)?;
    std::fs::rename(&part, to)
}

fn complain(what: &str) {
    eprintln!("aios-insn-plugin: {what}");
}

/// Splits a translated block where one function ends and another begins.
/// Gives the blocks with the index of the first instruction of each.
fn blocks(table: &Table, insns: &[Decoded]) -> Vec<(usize, Block)> {
    let mut blocks: Vec<(usize, Block)> = Vec::new();
    for (index, insn) in insns.iter().enumerate() {
        let symbol = table.find(insn.address);
        let follows = blocks
            .last()
            .is_some_and(|(_, block)| block.symbol == symbol);
        if !follows {
            let function = table.get(symbol);
            // A stub is entered at its start only. The device vectors' stubs
            // are many under one name, each entered at its own start.
            let start = insn.address == function.address || function.traits.has(Traits::DEVICE_IRQ);
            let traits = if start {
                function.traits
            } else {
                function.traits.without(Traits::ENTRY)
            };
            blocks.push((
                index,
                Block {
                    symbol,
                    insns: 0,
                    start: insn.address,
                    repeat: 0,
                    traits,
                },
            ));
        }
        if let Some((_, block)) = blocks.last_mut() {
            block.insns += 1;
            block.repeat = if is_repeated_string(insn.bytes()) {
                insn.address
            } else {
                0
            };
            block.traits |= match insn.bytes() {
                [0xf4] | [0x0f, 0x01, 0xc9] => Traits::HALT,
                [0x48, 0xcf] | [0xcf] => Traits::IRET,
                _ => Traits::NONE,
            };
        }
    }
    blocks
}

/// Whether an instruction is a string instruction with a repeat prefix.
fn is_repeated_string(insn: &[u8]) -> bool {
    let Some((&opcode, prefixes)) = insn.split_last() else {
        return false;
    };
    let string = matches!(opcode, 0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf);
    // Before such an opcode only prefixes may stand; else the byte is part of
    // another instruction.
    let prefix = |&byte: &u8| {
        matches!(
            byte,
            0xf2 | 0xf3 | 0x66 | 0x67 | 0x40..=0x4f | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65
        )
    };
    let repeat = |&byte: &u8| matches!(byte, 0xf2 | 0xf3);
    string && prefixes.iter().all(prefix) && prefixes.iter().any(repeat)
}

/// All of a program's translated block.
fn user_block(insns: &[Decoded]) -> Block {
    let repeated = |insn: &&Decoded| is_repeated_string(insn.bytes());
    Block {
        symbol: UNKNOWN,
        insns: u32::try_from(insns.len()).unwrap_or(u32::MAX),
        start: insns.first().map_or(0, |insn| insn.address),
        repeat: insns.last().filter(repeated).map_or(0, |insn| insn.address),
        traits: Traits::NONE,
    }
}

fn leak<T>(value: T) -> &'static T {
    // Translated code may refer to it as long as QEMU runs.
    Box::leak(Box::new(value))
}

/// Called by QEMU for every block it translates.
extern "C" fn on_translate(_id: Id, tb: *mut Tb) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    let api = &plugin.api;
    // SAFETY: QEMU passes the block that it is translating.
    let insns = unsafe { api.insns(tb) };
    let Some(first) = insns.first() else {
        return;
    };
    if !symbols::is_kernel(first.address) {
        if plugin.all {
            // SAFETY: the block is the one being translated.
            unsafe { api.on_block(tb, on_user_block, leak(user_block(&insns))) };
        }
        for insn in &insns {
            let callback = match Marker::decode(insn.bytes()) {
                Some(Marker::WindowBegin) => on_window_begin,
                Some(Marker::WindowEnd) => on_window_end,
                Some(Marker::OpBegin | Marker::OpEnd) if plugin.all => continue,
                Some(Marker::OpBegin) => on_op_begin,
                Some(Marker::OpEnd) => on_op_end,
                None => continue,
            };
            // SAFETY: the instruction is of the block being translated.
            unsafe { api.on_insn(insn.handle, callback, plugin) };
        }
        return;
    }
    let blocks = blocks(&plugin.table, &insns);
    for (first, block) in blocks {
        let block: &'static Block = leak(block);
        if first == 0 {
            // SAFETY: the block is the one being translated.
            unsafe { api.on_block(tb, on_block, block) };
        } else {
            // SAFETY: the instruction is of the block being translated.
            unsafe { api.on_insn(insns[first].handle, on_block, block) };
        }
        if block.traits.has(Traits::DRIVER) && !plugin.all {
            for (insn, rest) in insns[first..].iter().zip((0..block.insns).rev()) {
                let store = leak(Store { block, rest });
                // SAFETY: the instruction is of the block being translated.
                unsafe { api.on_store(insn.handle, on_store, store) };
            }
        }
    }
}

/// Called when a kernel block begins to execute; `data` is its [`Block`].
extern "C" fn on_block(cpu: c_uint, data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    let Some(vcpu) = plugin.vcpu(cpu) else {
        return;
    };
    if !vcpu.active.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: registered with a leaked `Block`, which is never changed.
    let block = unsafe { &*data.cast::<Block>() };
    if plugin.all {
        vcpu.whole().block(block, true);
    } else {
        vcpu.machine().block(block);
    }
}

/// Called with `count=all` when a program's block begins to execute; `data` is its
/// [`Block`].
extern "C" fn on_user_block(cpu: c_uint, data: *mut c_void) {
    let Some(vcpu) = PLUGIN.get().and_then(|plugin| plugin.vcpu(cpu)) else {
        return;
    };
    if vcpu.active.load(Ordering::Relaxed) {
        // SAFETY: registered with a leaked `Block`, which is never changed.
        vcpu.whole().block(unsafe { &*data.cast::<Block>() }, false);
    }
}

/// Called after a store of the driver; `data` is its [`Store`].
extern "C" fn on_store(cpu: c_uint, access: u32, address: u64, data: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else {
        return;
    };
    let Some(vcpu) = plugin.vcpu(cpu) else {
        return;
    };
    if !vcpu.active.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: QEMU passes the access in progress.
    let Some((device, address)) = (unsafe { plugin.api.device_access(access, address) }) else {
        return;
    };
    if is_submission_doorbell(device, address) {
        // SAFETY: registered with a leaked `Store`, which is never changed.
        let store = unsafe { &*data.cast::<Store>() };
        vcpu.machine().doorbell(store.block, store.rest);
    }
}

/// Whether a register is the doorbell of a submission queue of QEMU's NVMe
/// drive: 0x1000 into the controller's registers (whose window is a multiple
/// of 16 KiB aligned, so the low bits of any address in it tell), doorbell
/// stride 0: submission and completion queues by turns, 4 bytes each.
fn is_submission_doorbell(device: &CStr, address: u64) -> bool {
    device.to_bytes().starts_with(b"nvme") && address & 0x3000 == 0x1000 && address & 7 == 0
}

/// Runs `change` on the machine of `cpu` and keeps the shortcut up to date.
fn mark(cpu: c_uint, change: fn(&mut Machine)) {
    let Some(vcpu) = PLUGIN.get().and_then(|plugin| plugin.vcpu(cpu)) else {
        return;
    };
    let mut machine = vcpu.machine();
    change(&mut machine);
    vcpu.active.store(machine.active(), Ordering::Relaxed);
}

/// Begins, or ends, the window of everything.
fn mark_all(plugin: &Plugin, active: bool) {
    for vcpu in &plugin.vcpus {
        if active {
            *vcpu.whole() = Whole::default();
        }
        vcpu.active.store(active, Ordering::Relaxed);
    }
    if !active {
        plugin.write();
    }
}

extern "C" fn on_window_begin(_cpu: c_uint, _data: *mut c_void) {
    if let Some(plugin) = PLUGIN.get().filter(|plugin| plugin.all) {
        return mark_all(plugin, true);
    }
    for cpu in all_cpus() {
        mark(cpu, Machine::window_begin);
    }
}

extern "C" fn on_window_end(_cpu: c_uint, _data: *mut c_void) {
    if let Some(plugin) = PLUGIN.get().filter(|plugin| plugin.all) {
        return mark_all(plugin, false);
    }
    for cpu in all_cpus() {
        mark(cpu, Machine::window_end);
    }
    if let Some(plugin) = PLUGIN.get() {
        plugin.write();
    }
}

extern "C" fn on_op_begin(cpu: c_uint, _data: *mut c_void) {
    mark(cpu, Machine::op_begin);
}

extern "C" fn on_op_end(cpu: c_uint, _data: *mut c_void) {
    mark(cpu, Machine::op_end);
}

fn all_cpus() -> std::ops::Range<c_uint> {
    let count = PLUGIN.get().map_or(0, |plugin| plugin.vcpus.len());
    0..c_uint::try_from(count).unwrap_or(c_uint::MAX)
}

fn install(id: Id, info: &Info, args: &[&str]) -> Result<(), String> {
    if !info.system_emulation {
        return Err("it profiles whole systems, not processes".to_owned());
    }
    let options = Options::parse(args.iter().copied())?;
    let map = std::fs::read_to_string(&options.map)
        .map_err(|error| format!("cannot read {}: {error}", options.map.display()))?;
    let table = Table::parse(&map, &options.spin)
        .map_err(|error| format!("{} is no System.map: {error}", options.map.display()))?;
    let api = Api::load(info.version_cur)?;
    let vcpu = |_| Vcpu {
        active: AtomicBool::new(false),
        machine: Mutex::new(Machine::new(options.rules)),
        whole: Mutex::default(),
    };
    let plugin = Plugin {
        api,
        table,
        vcpus: (0..info.max_vcpus.max(1)).map(vcpu).collect(),
        out: options.out,
        all: options.all,
    };
    if PLUGIN.set(plugin).is_err() {
        return Err("it is loaded twice".to_owned());
    }
    api.on_translate(id, on_translate);
    Ok(())
}

/// Called by QEMU once, before the guest starts. 0 means success.
///
/// # Safety
///
/// `info` points to QEMU's description of itself and `argv` to `argc` C
/// strings, as QEMU passes them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: by contract each of the `argc` pointers is a C string.
    let args: Vec<_> = (0..count)
        .map(|index| unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy())
        .collect();
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    // SAFETY: QEMU passes a valid description by contract.
    let info = unsafe { &*info };
    match install(id, info, &args) {
        Ok(()) => 0,
        Err(error) => {
            complain(&error);
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_decode_knows_its_marks_only() {
        let nop = |value: u32| {
            let mut insn = vec![0x0f, 0x1f, 0x80];
            insn.extend(value.to_le_bytes());
            Marker::decode(&insn)
        };
        assert_eq!(nop(0x0A10_5B00), Some(Marker::WindowBegin));
        assert_eq!(nop(0x0A10_5E00), Some(Marker::WindowEnd));
        assert_eq!(nop(0x0A10_5B01), Some(Marker::OpBegin));
        assert_eq!(nop(0x0A10_5E01), Some(Marker::OpEnd));
        assert_eq!(nop(0), None);
        assert_eq!(Marker::decode(&[0x90]), None);
    }

    #[test]
    fn test_options_take_map_out_and_repeated_spin() {
        let args = [
            "map=a",
            "out=b",
            "spin=x_",
            "spin=y_",
            "commands=2",
            "interrupts=remove",
        ];
        let options = Options::parse(args.into_iter()).unwrap();
        assert_eq!(options.map, Path::new("a"));
        assert_eq!(options.spin, ["x_", "y_"]);
        assert_eq!(options.rules.commands, Some(2));
        assert_eq!(options.rules.switches, None);
        assert!(options.rules.interruptible);
        let options = Options::parse(["map=a", "out=b"].into_iter()).unwrap();
        assert_eq!(options.spin, SPIN_PREFIXES);
        assert!(!options.rules.interruptible && !options.all);
        let options = Options::parse(["map=a", "out=b", "count=all"].into_iter()).unwrap();
        assert!(options.all);
    }

    #[test]
    fn test_options_bad_argument_says_which() {
        let parse = |args: &[&str]| Options::parse(args.iter().copied()).unwrap_err();
        assert!(parse(&["out=b"]).contains("map"));
        assert!(parse(&["map=a"]).contains("out"));
        assert!(parse(&["map=a", "out=b", "colour=red"]).contains("colour"));
        assert!(parse(&["map=a", "out=b", "commands=many"]).contains("many"));
        assert!(parse(&["map=a", "out=b", "interrupts=maybe"]).contains("interrupts"));
        assert!(parse(&["map=a", "out=b", "count=some"]).contains("count"));
        assert!(parse(&["map=", "out=b"]).contains("map"));
    }

    #[test]
    fn test_doorbell_is_of_a_submission_queue_of_the_drive() {
        let is = |device: &CStr, address| is_submission_doorbell(device, address);
        assert!(is(c"nvme", 0x1008));
        assert!(is(c"nvme", 0xfe80_1010));
        assert!(!is(c"nvme", 0x100c), "completion queue");
        assert!(!is(c"nvme", 0x0014), "controller register");
        assert!(!is(c"msix-table", 0x2008));
        assert!(!is(c"vga", 0x1008));
    }

    #[test]
    fn test_repeated_string_instructions_are_recognised() {
        assert!(is_repeated_string(&[0xf3, 0xa4]));
        assert!(is_repeated_string(&[0xf3, 0x48, 0xa5]));
        assert!(is_repeated_string(&[0xf2, 0xae]));
        assert!(!is_repeated_string(&[0xa4]), "no prefix");
        assert!(!is_repeated_string(&[0xf3, 0x90]), "pause");
        assert!(!is_repeated_string(&[0xf3, 0x0f, 0xb8, 0xaa]), "popcnt");
        assert!(!is_repeated_string(&[]));
    }

    fn insn(address: u64, bytes: &[u8]) -> Decoded {
        Decoded::new(std::ptr::null_mut(), address, bytes)
    }

    #[test]
    fn test_blocks_split_where_a_function_begins() {
        let map = "ffffffff81000000 T a\nffffffff81000002 t asm_sysvec_x\nffffffff81000008 t c\n";
        let table = Table::parse(map, &[]).unwrap();
        let base = 0xffff_ffff_8100_0000;
        let insns = [
            insn(base, &[0x90]),
            insn(base + 1, &[0x90]),
            insn(base + 2, &[0x90]),
            insn(base + 3, &[0xf3, 0xaa]),
        ];
        let split = blocks(&table, &insns);
        assert_eq!(split.len(), 2);
        assert_eq!((split[0].0, split[0].1.insns), (0, 2));
        assert_eq!((split[1].0, split[1].1.insns), (2, 2));
        assert!(split[1].1.traits.has(Traits::FOREIGN_IRQ));
        assert_eq!(split[1].1.repeat, base + 3);
        // Entered in the middle, a stub is no interrupt's entry.
        let middle = blocks(&table, &insns[3..]);
        assert!(!middle[0].1.traits.has(Traits::ENTRY));
    }

    #[test]
    fn test_blocks_end_tells_halt_and_return() {
        let table = Table::parse("ffffffff81000000 T a\n", &[]).unwrap();
        let base = 0xffff_ffff_8100_0000;
        let traits = |bytes: &[u8]| blocks(&table, &[insn(base, bytes)])[0].1.traits;
        assert!(traits(&[0xf4]).has(Traits::HALT));
        assert!(traits(&[0x0f, 0x01, 0xc9]).has(Traits::HALT));
        assert!(traits(&[0x48, 0xcf]).has(Traits::IRET));
        assert_eq!(traits(&[0x90]), Traits::NONE);
    }
}
