// SPDX-License-Identifier: MIT
//! The kernel's symbols from `System.map`, and what a function's name says
//! about its part in an operation.

use std::ops::{
    BitOr,
    BitOrAssign, //
};

/// Index of the symbol that stands for code no text symbol covers.
pub const UNKNOWN: u32 = 0;

/// What is to be known of a function, or of one block of its code, to account
/// for its instructions: a set of the constants below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traits(u16);

impl Traits {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// A waiting loop; counted as spin, never as work.
    pub const SPIN: Self = Self(1 << 0);
    /// The block begins a waiting loop's function: it is called, not returned to.
    pub const CALLED: Self = Self(1 << 1);
    /// Belongs to the drive's driver.
    pub const DRIVER: Self = Self(1 << 2);
    /// Entry stub of the device interrupt vectors.
    pub const DEVICE_IRQ: Self = Self(1 << 3);
    /// Entry stub of an interrupt that is no device's (the timer's, for one).
    pub const FOREIGN_IRQ: Self = Self(1 << 4);
    /// Entry stub of an exception.
    pub const EXCEPTION: Self = Self(1 << 5);
    /// Switches to another task.
    pub const SWITCH: Self = Self(1 << 6);
    /// The block ends with `hlt` or `mwait`.
    pub const HALT: Self = Self(1 << 7);
    /// The block ends with `iret`.
    pub const IRET: Self = Self(1 << 8);

    /// The block begins a function that ends what is complete: work, even if a
    /// waiting loop calls it.
    pub const ENDS: Self = Self(1 << 9);

    /// The traits that hold for the first block of a function only.
    pub const ENTRY: Self = Self(
        Self::CALLED.0
            | Self::DEVICE_IRQ.0
            | Self::FOREIGN_IRQ.0
            | Self::EXCEPTION.0
            | Self::SWITCH.0
            | Self::ENDS.0,
    );

    /// Whether any of `other` is among these.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// These without `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Traits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Traits {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Name as in `System.map`.
    pub name: String,
    /// First address.
    pub address: u64,
    /// What its name says.
    pub traits: Traits,
}

/// All functions of one kernel, for lookup by address.
#[derive(Debug)]
pub struct Table {
    /// Index [`UNKNOWN`] first, then functions.
    symbols: Vec<Symbol>,
    /// (first address, index into `symbols`), sorted; data gets [`UNKNOWN`].
    starts: Vec<(u64, u32)>,
}

/// First address of the kernel half; below are user addresses.
const KERNEL_HALF: u64 = 1 << 63;

/// Whether `address` lies in the kernel half.
pub const fn is_kernel(address: u64) -> bool {
    address >= KERNEL_HALF
}

impl Table {
    /// Reads the text of a `System.map`: lines of address, type, name. `spin`
    /// are the prefixes of waiting loops' names.
    ///
    /// # Errors
    ///
    /// Says which line is malformed, or that there is no function at all.
    pub fn parse(map: &str, spin: &[String]) -> Result<Self, String> {
        let mut lines = Vec::new();
        for (number, line) in map.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let entry = parse_line(line)
                .ok_or_else(|| format!("line {} is not `address type name`", number + 1))?;
            if is_kernel(entry.0) {
                lines.push(entry);
            }
        }
        // Of several names of one address the best one comes first.
        lines.sort_by_key(|&(address, kind, name)| (address, rank(kind, name)));
        lines.dedup_by_key(|&mut (address, ..)| address);

        let mut symbols = vec![Symbol {
            name: "[unknown]".to_owned(),
            address: 0,
            traits: Traits::NONE,
        }];
        let mut starts = Vec::with_capacity(lines.len());
        for (address, kind, name) in lines {
            let mut index = UNKNOWN;
            if is_text(kind) {
                index = u32::try_from(symbols.len()).map_err(|_| "too many symbols".to_owned())?;
                symbols.push(Symbol {
                    name: name.to_owned(),
                    address,
                    traits: traits(name, spin),
                });
            }
            starts.push((address, index));
        }
        if symbols.len() == 1 {
            return Err("there is no kernel function in it".to_owned());
        }
        Ok(Self { symbols, starts })
    }

    /// Index of the function that `address` lies in; [`UNKNOWN`] for none.
    pub fn find(&self, address: u64) -> u32 {
        let after = self.starts.partition_point(|&(start, _)| start <= address);
        after
            .checked_sub(1)
            .and_then(|index| self.starts.get(index))
            .map_or(UNKNOWN, |&(_, symbol)| symbol)
    }

    /// The function with this index; the unknown one for a wrong index.
    pub fn get(&self, index: u32) -> &Symbol {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.symbols.get(index))
            .unwrap_or(&self.symbols[0])
    }

    /// All functions by rising address.
    pub fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().skip(1)
    }

    /// How many indices there are.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there is no index; never, as the unknown one is always there.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

fn parse_line(line: &str) -> Option<(u64, char, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let mut kind = words.next()?.chars();
    let name = words.next()?;
    match (kind.next(), kind.next()) {
        (Some(kind), None) => Some((address, kind, name)),
        _ => None,
    }
}

fn is_text(kind: char) -> bool {
    matches!(kind, 't' | 'T' | 'w' | 'W')
}

/// Order of preference among names of one address: functions before data,
/// functions before the linker script's section marks, global before local.
fn rank(kind: char, name: &str) -> (bool, bool, bool) {
    let mark = matches!(name, "_text" | "_stext" | "_etext")
        || name.ends_with("_text_start")
        || name.ends_with("_text_end");
    (!is_text(kind), mark, kind.is_ascii_lowercase())
}

/// How functions' names begin that end what is complete.
const ENDS_PREFIX: &str = "lbio_end_";

/// What the name of a function says.
fn traits(name: &str, spin: &[String]) -> Traits {
    // In mangled Rust names the function's own name stands inside.
    let named = |prefix: &str| {
        name.starts_with(prefix) || (name.starts_with("_R") && name.contains(prefix))
    };
    let mut traits = Traits::NONE;
    if spin.iter().any(|prefix| named(prefix)) {
        traits |= Traits::SPIN | Traits::CALLED;
    }
    if name.starts_with(ENDS_PREFIX) {
        traits |= Traits::ENDS;
    }
    if name.starts_with("nvme_") || named("lbio_") {
        traits |= Traits::DRIVER;
    }
    traits |= match name {
        "irq_entries_start" => Traits::DEVICE_IRQ,
        "asm_exc_nmi" => Traits::FOREIGN_IRQ,
        "__switch_to_asm" => Traits::SWITCH,
        _ if name.starts_with("asm_sysvec_") => Traits::FOREIGN_IRQ,
        _ if name.starts_with("asm_exc_") => Traits::EXCEPTION,
        _ => Traits::NONE,
    };
    traits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAP: &str = "\
ffffffff81000000 T _stext
ffffffff81000000 T startup_64
ffffffff81000100 t helper
ffffffff81000200 T irq_entries_start
ffffffff81000300 t aios_spin_wait.isra.0
ffffffff81000400 T __switch_to_asm
ffffffff81000500 T _RNvCs12_4lbio12lbio_spin_cq
ffffffff81000600 D some_data
ffffffff81000700 t nvme_irq
ffffffff81000800 T lbio_end_writes
0000000000000000 A fixed_percpu_data
";

    fn table() -> Table {
        Table::parse(MAP, &["aios_spin_".to_owned(), "lbio_spin_".to_owned()]).unwrap()
    }

    fn name(table: &Table, address: u64) -> &str {
        &table.get(table.find(address)).name
    }

    #[test]
    fn test_find_inside_function_returns_it() {
        let table = table();
        assert_eq!(name(&table, 0xffff_ffff_8100_01ff), "helper");
        assert_eq!(name(&table, 0xffff_ffff_8100_0100), "helper");
    }

    #[test]
    fn test_find_alias_prefers_function_to_section_mark() {
        assert_eq!(name(&table(), 0xffff_ffff_8100_0000), "startup_64");
    }

    #[test]
    fn test_find_data_or_before_first_returns_unknown() {
        let table = table();
        assert_eq!(table.find(0xffff_ffff_8100_0610), UNKNOWN);
        assert_eq!(table.find(0x40_1000), UNKNOWN);
    }

    #[test]
    fn test_traits_follow_names() {
        let table = table();
        let of = |address| table.get(table.find(address)).traits;
        assert!(of(0xffff_ffff_8100_0200).has(Traits::DEVICE_IRQ));
        let spin = Traits::SPIN | Traits::CALLED;
        assert_eq!(of(0xffff_ffff_8100_0300), spin);
        assert_eq!(of(0xffff_ffff_8100_0400), Traits::SWITCH);
        assert_eq!(of(0xffff_ffff_8100_0500), spin | Traits::DRIVER);
        assert_eq!(of(0xffff_ffff_8100_0700), Traits::DRIVER);
        let ends = Traits::ENDS | Traits::DRIVER;
        assert_eq!(of(0xffff_ffff_8100_0800), ends);
        assert_eq!(ends.without(Traits::ENTRY), Traits::DRIVER);
        assert_eq!(of(0xffff_ffff_8100_0100), Traits::NONE);
    }

    #[test]
    fn test_parse_malformed_line_says_which() {
        let error = Table::parse("ffffffff81000000 T a\nzz T b\n", &[]).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        assert!(Table::parse("ffffffff81000000 TT a\n", &[]).is_err());
        assert!(Table::parse("ffffffff81000000 T\n", &[]).is_err());
    }

    #[test]
    fn test_parse_without_functions_fails() {
        assert!(Table::parse("", &[]).is_err());
        assert!(Table::parse("0000000000001000 T user\n", &[]).is_err());
    }

    proptest! {
        #[test]
        fn test_parse_hostile_text_never_panics(text in "[0-9a-fA-F tTwWD\\n\\PC]{0,400}", address: u64) {
            if let Ok(table) = Table::parse(&text, &["x".to_owned()]) {
                let _ = table.get(table.find(address));
            }
        }
    }
}
