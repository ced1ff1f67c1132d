// SPDX-License-Identifier: MIT
//! What the plugin writes: one JSON document per measured window.

use crate::machine::{
    Disturbance,
    Sums,
    Totals, //
};
use crate::symbols::{
    Table,
    UNKNOWN, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Version of the document's form.
pub const SCHEMA: u32 = 1;

/// Instructions of one function, summed over all clean operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Name as in `System.map`.
    pub name: String,
    /// First address, to tell functions of one name apart.
    pub address: u64,
    /// Before the first doorbell.
    pub before: u64,
    /// From a doorbell until the CPU halts or the completion is seen.
    pub device: u64,
    /// From the completion on.
    pub after: u64,
    /// In a waiting loop.
    pub spin: u64,
}

/// What was counted of the clean operations that took one path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Operations.
    pub clean: u64,
    /// Operations that an interrupt was taken out of.
    pub interrupted: u64,
    /// Commands.
    pub commands: u64,
    /// Task switches.
    pub switches: u64,
    /// Work instructions of each operation.
    pub per_op: Vec<u32>,
    /// Functions with any count, by rising address.
    pub functions: Vec<Function>,
}

impl Counts {
    fn new(table: &Table, sums: &Sums) -> Self {
        let mut functions = Vec::new();
        for index in 0..table.len() {
            let [before, device, after, spin] = sums
                .phases
                .each_ref()
                .map(|counts| counts.get(index).copied().unwrap_or(0));
            if before + device + after + spin > 0 {
                let symbol = table.get(u32::try_from(index).unwrap_or(UNKNOWN));
                functions.push(Function {
                    name: symbol.name.clone(),
                    address: symbol.address,
                    before,
                    device,
                    after,
                    spin,
                });
            }
        }
        Self {
            clean: sums.clean,
            interrupted: sums.interrupted,
            commands: sums.commands,
            switches: sums.switches,
            per_op: sums.per_op.clone(),
            functions,
        }
    }

    /// Adds what was counted elsewhere on the same kernel.
    pub fn merge(&mut self, other: Self) {
        self.clean += other.clean;
        self.interrupted += other.interrupted;
        self.commands += other.commands;
        self.switches += other.switches;
        self.per_op.extend(other.per_op);
        let mut known: BTreeMap<u64, Function> = std::mem::take(&mut self.functions)
            .into_iter()
            .map(|function| (function.address, function))
            .collect();
        for function in other.functions {
            match known.entry(function.address) {
                Entry::Vacant(entry) => {
                    entry.insert(function);
                }
                Entry::Occupied(mut entry) => {
                    let sum = entry.get_mut();
                    sum.before += function.before;
                    sum.device += function.device;
                    sum.after += function.after;
                    sum.spin += function.spin;
                }
            }
        }
        self.functions = known.into_values().collect();
    }
}

/// What was counted in one window, all virtual CPUs together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Clean operations without a task switch.
    pub awake: Counts,
    /// Clean operations that slept.
    pub slept: Counts,
    /// Operations left out, by reason; reasons that did not occur included.
    pub disturbed: BTreeMap<String, u64>,
    /// Operations that sent no command.
    pub no_io: u64,
}

impl Report {
    /// Adds up the CPUs' totals.
    pub fn new<'a>(table: &Table, totals: impl Iterator<Item = &'a Totals>) -> Self {
        let mut report = Self {
            schema: SCHEMA,
            awake: Counts::default(),
            slept: Counts::default(),
            disturbed: BTreeMap::new(),
            no_io: 0,
        };
        for totals in totals {
            let disturbed = Disturbance::ALL.iter().zip(totals.disturbed);
            report.merge(Self {
                schema: SCHEMA,
                awake: Counts::new(table, &totals.awake),
                slept: Counts::new(table, &totals.slept),
                disturbed: disturbed
                    .map(|(why, count)| (why.name().to_owned(), count))
                    .collect(),
                no_io: totals.no_io,
            });
        }
        report
    }

    /// Adds what another window of the same kernel counted.
    pub fn merge(&mut self, other: Self) {
        self.awake.merge(other.awake);
        self.slept.merge(other.slept);
        self.no_io += other.no_io;
        for (why, count) in other.disturbed {
            *self.disturbed.entry(why).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{
        Block,
        Machine,
        Rules, //
    };
    use crate::symbols::Traits;

    /// A CPU that ran one operation: 5 instructions, a doorbell, 2 more.
    fn machine() -> Machine {
        let block = |insns, symbol| Block {
            symbol,
            insns,
            start: 1,
            repeat: 0,
            traits: Traits::NONE,
        };
        let mut machine = Machine::new(Rules::default());
        machine.window_begin();
        machine.op_begin();
        machine.block(&block(5, 1));
        machine.doorbell(&block(5, 1), 0);
        machine.block(&block(2, 2));
        machine.op_end();
        machine
    }

    #[test]
    fn test_new_adds_up_the_cpus() {
        let map = "ffffffff81000000 T a\nffffffff81000010 T b\nffffffff81000020 T c\n";
        let table = Table::parse(map, &[]).unwrap();
        let machines = [machine(), machine()];
        let report = Report::new(&table, machines.iter().map(Machine::totals));
        assert_eq!((report.awake.clean, report.awake.commands), (2, 2));
        assert_eq!(report.awake.per_op, [7, 7]);
        assert_eq!(
            report.awake.functions.len(),
            2,
            "those without counts are left out"
        );
        let [a, b] = &report.awake.functions[..] else {
            unreachable!()
        };
        assert_eq!((a.name.as_str(), a.before, b.device), ("a", 10, 4));
        assert_eq!(report.disturbed.len(), Disturbance::ALL.len());
    }

    #[test]
    fn test_merge_adds_windows() {
        let map = "ffffffff81000000 T a\nffffffff81000010 T b\nffffffff81000020 T c\n";
        let table = Table::parse(map, &[]).unwrap();
        let of = |count: usize| {
            let machines: Vec<_> = (0..count).map(|_| machine()).collect();
            Report::new(&table, machines.iter().map(Machine::totals))
        };
        let mut merged = of(1);
        merged.merge(of(2));
        assert_eq!(merged, of(3));
    }

    #[test]
    fn test_report_survives_json() {
        let table = Table::parse("ffffffff81000000 T a\n", &[]).unwrap();
        let report = Report::new(&table, [machine()].iter().map(Machine::totals));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
