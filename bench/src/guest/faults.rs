// SPDX-License-Identifier: MIT
//! Finding faults in a kernel log.

/// A fault is reported with at most this many lines after its first.
const FOLLOWING: usize = 10;

/// How the first line of a fault begins.
const FAULTS: &[&str] = &[
    "BUG: ",
    "DMAR: DRHD: handling fault",
    "DMAR: [",
    "INFO: task ",
    "Kernel panic",
    "Oops",
    "UBSAN: ",
    "Unable to handle kernel",
    "WARNING: ",
    "general protection fault",
    "kernel BUG at ",
    "rcu: INFO: ",
    "watchdog: ",
];

/// What a line that begins so must hold to be a fault; others are harmless.
const ONLY_WITH: &[(&str, &[&str])] = &[
    ("INFO: task ", &["blocked"]),
    ("rcu: INFO: ", &["detected"]),
    ("watchdog: ", &["BUG: ", "LOCKUP"]),
];

/// What the DMA API debugging says without having found a fault.
const DMA_API_HARMLESS: &[&str] = &[
    "debugging disabled",
    "debugging enabled",
    "dma_debug_entry pool grown",
    "enable driver filter",
    "preallocated",
    "switching off dma-debug driver filter",
];

/// Faults in a kernel log: oops, panic, hung task, lockdep splat, RCU stall,
/// soft lockup, KASAN, UBSAN, kmemleak, DMA-API and DMAR faults. Each entry is
/// the line and what follows it. Only lines with a kernel time stamp count
/// (`printk.time=1`): what a program prints on the console is no fault.
pub(crate) fn scan(log: &str) -> Vec<String> {
    let messages: Vec<&str> = log.lines().filter_map(message).collect();
    let mut faults = Vec::new();
    let mut rest = messages.as_slice();
    while let Some(start) = rest.iter().position(|message| is_fault(message)) {
        let end = (start + 1 + FOLLOWING).min(rest.len());
        faults.push(rest[start..end].join("\n"));
        rest = &rest[end..];
    }
    faults
}

/// The message of a kernel line, without time stamp and caller: what follows
/// `[   12.345678] ` or `[   12.345678][   T17] `. Console output of programs
/// may stand in front of it.
fn message(line: &str) -> Option<&str> {
    let line = line.trim_end();
    line.match_indices('[').find_map(|(at, _)| {
        let (stamp, rest) = line[at + 1..].split_once(']')?;
        let (seconds, micros) = stamp.trim_start().split_once('.')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(seconds) || !digits(micros) || micros.len() != 6 {
            return None;
        }
        let rest = match rest.strip_prefix('[') {
            Some(caller) => caller.split_once(']')?.1,
            None => rest,
        };
        Some(rest.strip_prefix(' ').unwrap_or(rest))
    })
}

fn is_fault(message: &str) -> bool {
    if let Some(what) = message.strip_prefix("DMA-API: ") {
        return !DMA_API_HARMLESS
            .iter()
            .any(|harmless| what.contains(harmless));
    }
    if let Some(what) = message.strip_prefix("kmemleak: ") {
        return what.contains("suspected memory leak");
    }
    let Some(kind) = FAULTS.iter().find(|fault| message.starts_with(**fault)) else {
        return false;
    };
    ONLY_WITH
        .iter()
        .find(|(begin, _)| begin == kind)
        .is_none_or(|(_, needs)| needs.iter().any(|need| message.contains(need)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first line of the only fault found.
    fn only(log: &str) -> String {
        let faults = scan(log);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].lines().next().unwrap().to_owned()
    }

    #[test]
    fn test_scan_clean_boot_finds_nothing() {
        let log = include_str!("testdata/clean-boot.log");
        assert!(log.lines().filter_map(message).count() > 100);
        assert_eq!(scan(log), Vec::<String>::new());
    }

    #[test]
    fn test_scan_finds_each_kind_of_fault() {
        for line in [
            "BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "BUG: KASAN: slab-use-after-free in ext4_read+0x10/0x20",
            "BUG: sleeping function called from invalid context at mm/page_alloc.c:5",
            "DMA-API: nvme 0000:00:04.0: device driver frees DMA memory with wrong function",
            "DMAR: DRHD: handling fault status reg 2",
            "DMAR: [DMA Read NO_PASID] Request device [00:04.0] fault addr 0xfffff000",
            "INFO: task fio:123 blocked for more than 120 seconds.",
            "INFO: task fio:123 blocked in I/O wait for more than 120 seconds.",
            "Kernel panic - not syncing: sysrq triggered crash",
            "Oops: general protection fault, probably for non-canonical address 0x1: 0000",
            "UBSAN: array-index-out-of-bounds in fs/ext4/inode.c:1:2",
            "WARNING: fs/ext4/inode.c:3 at ext4_read+0x10/0x20, CPU#0: fio/123",
            "WARNING: possible circular locking dependency detected",
            "WARNING: inconsistent lock state",
            "WARNING: suspicious RCU usage",
            "general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
            "kernel BUG at fs/ext4/inode.c:5!",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [fio:123]",
        ] {
            assert_eq!(only(&format!("[    1.000000] {line}\r\n")), line);
        }
    }

    #[test]
    fn test_scan_harmless_lines_finds_nothing() {
        for line in [
            "DMA-API: preallocated 65536 debug entries",
            "DMA-API: debugging enabled by kernel config",
            "DMAR: Host address width 39",
            "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
            "kmemleak: Kernel memory leak detector initialized (mem pool available: 15784)",
            "rcu: INFO: something is fine",
            "traps: fio[12] general protection fault ip:401000 sp:7ffe error:0 in fio",
            "EXT4-fs (nvme0n1): Warning: mounting with an experimental option",
        ] {
            assert_eq!(
                scan(&format!("[    1.000000] {line}\n")),
                Vec::<String>::new()
            );
        }
    }

    #[test]
    fn test_scan_program_output_is_no_fault() {
        let log = "root@aios-guest:/# echo 'BUG: mine'\r\nBUG: mine\r\n[x] Oops: mine\r\n";
        assert_eq!(scan(log), Vec::<String>::new());
    }

    #[test]
    fn test_scan_kernel_line_behind_program_output_is_found() {
        let log = "root@aios-guest:/# [   12.345678][  T17] Oops: 0002 [#1] SMP\r\n";
        assert_eq!(only(log), "Oops: 0002 [#1] SMP");
    }

    #[test]
    fn test_scan_entry_has_following_lines_and_no_more() {
        let mut log = String::from("[    1.000000] BUG: first\n");
        for i in 0..20 {
            log.push_str(&format!("[    1.000001] line {i}\n"));
        }
        log.push_str("[    2.000000] Kernel panic - not syncing: second\n");
        let faults = scan(&log);
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0].lines().count(), 11);
        assert!(faults[1].starts_with("Kernel panic"));
    }

    #[test]
    fn test_scan_hostile_text_never_panics() {
        for log in [
            "",
            "[",
            "[[[]]]",
            "[ 1.00000é] x",
            "[1.000000]",
            "\u{0}[.][",
        ] {
            assert_eq!(scan(log), Vec::<String>::new());
        }
    }
}
