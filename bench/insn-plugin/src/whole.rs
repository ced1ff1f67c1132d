// SPDX-License-Identifier: MIT
//! `count=all`: every instruction of a window, whoever executes it.

use crate::machine::Block;
use crate::symbols::{
    Table,
    UNKNOWN, //
};
use serde::{
    Deserialize,
    Serialize, //
};

/// Version of the document's form.
pub const SCHEMA: u32 = 1;

/// What one virtual CPU executed.
#[derive(Debug, Default)]
pub struct Whole {
    user: u64,
    /// By index of the function.
    kernel: Vec<u64>,
    /// Last repeated string instruction, see [`Block::repeat`].
    repeat: u64,
}

impl Whole {
    /// A block begins to execute; one of a program has no function.
    pub fn block(&mut self, block: &Block, kernel: bool) {
        let again = block.repeat != 0 && block.start == self.repeat;
        self.repeat = block.repeat;
        let insns = u64::from(block.insns) - u64::from(again);
        if !kernel {
            self.user += insns;
            return;
        }
        let index = block.symbol as usize;
        if index >= self.kernel.len() {
            self.kernel.resize(index + 1, 0);
        }
        self.kernel[index] += insns;
    }
}

/// Instructions of one kernel function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Name as in `System.map`; `[unknown]` for all modules together.
    pub name: String,
    /// Instructions.
    pub insns: u64,
}

/// What was executed in one window, by all virtual CPUs together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Instructions of programs.
    pub user: u64,
    /// Of the kernel.
    pub kernel: u64,
    /// The kernel's by function, most first.
    pub functions: Vec<Function>,
}

impl WholeReport {
    /// Adds up the CPUs'.
    pub fn new<'a>(table: &Table, cpus: impl Iterator<Item = &'a Whole>) -> Self {
        let mut user = 0;
        let mut sums: Vec<u64> = vec![0; table.len()];
        for cpu in cpus {
            user += cpu.user;
            for (sum, insns) in sums.iter_mut().zip(&cpu.kernel) {
                *sum += insns;
            }
        }
        let mut functions: Vec<Function> = (0..)
            .zip(&sums)
            .filter(|(_, insns)| **insns > 0)
            .map(|(index, &insns)| Function {
                name: table
                    .get(u32::try_from(index).unwrap_or(UNKNOWN))
                    .name
                    .clone(),
                insns,
            })
            .collect();
        functions.sort_by_key(|function| std::cmp::Reverse(function.insns));
        Self {
            schema: SCHEMA,
            user,
            kernel: sums.iter().sum(),
            functions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::Traits;

    fn block(symbol: u32, insns: u32, start: u64, repeat: u64) -> Block {
        Block {
            symbol,
            insns,
            start,
            repeat,
            traits: Traits::NONE,
        }
    }

    #[test]
    fn test_report_adds_up_cpus_programs_and_functions() {
        let map = "ffffffff81000000 T a\nffffffff81000010 T b\n";
        let table = Table::parse(map, &[]).unwrap();
        let mut cpus = [Whole::default(), Whole::default()];
        for cpu in &mut cpus {
            cpu.block(&block(0, 7, 0x1000, 0), false);
            cpu.block(&block(1, 2, 0x2000, 0), true);
            cpu.block(&block(2, 30, 0x3000, 0), true);
        }
        let report = WholeReport::new(&table, cpus.iter());
        assert_eq!((report.user, report.kernel), (14, 64));
        let names: Vec<_> = report
            .functions
            .iter()
            .map(|function| (function.name.as_str(), function.insns))
            .collect();
        assert_eq!(names, [("b", 60), ("a", 4)]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<WholeReport>(&text).unwrap(), report);
    }

    #[test]
    fn test_block_repeated_string_instruction_counts_once() {
        let table = Table::parse("ffffffff81000000 T a\n", &[]).unwrap();
        let mut cpu = Whole::default();
        // The first execution comes with what is before it.
        cpu.block(&block(0, 3, 0x1000, 0x1008), false);
        for _ in 0..500 {
            cpu.block(&block(0, 1, 0x1008, 0x1008), false);
        }
        assert_eq!(WholeReport::new(&table, [cpu].iter()).user, 3);
    }
}
