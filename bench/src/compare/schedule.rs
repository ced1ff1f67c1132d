// SPDX-License-Identifier: MIT
//! Who runs when: the stacks take turns inside every pair.

use super::sample::Measured;
use super::workload::{
    Kind,
    Workload, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::report::schema::{
    Latencies,
    Sample, //
};
use crate::stack::Stack;
use crate::ui::Ui;

/// Something that runs workloads on stacks.
pub(crate) trait Target {
    /// The stacks it has.
    fn stacks(&self) -> &'static [Stack];

    /// Runs `workloads` one after the other on each stack, each from a cold
    /// cache. The stacks come in `order`, or take turns in it while they
    /// measure. The same `seed` reads the same offsets. One result for each
    /// workload on each stack.
    fn measure(
        &mut self,
        order: &[Stack],
        workloads: &[Workload],
        seed: u64,
    ) -> Result<Vec<(Stack, Vec<Measured>)>>;
}

/// How long and in which order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Measurements of every workload on every stack.
    pub(crate) pairs: u32,
    /// Orders the stacks and picks the offsets.
    pub(crate) seed: u64,
    /// Workloads that a stack runs before the next one has its turn; 1 or more.
    pub(crate) group: usize,
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Every measurement, in the order made.
    pub(crate) samples: Vec<Sample>,
    /// Latencies by workload and stack.
    pub(crate) histograms: Vec<Latencies>,
    /// False when stopped before the end.
    pub(crate) complete: bool,
}

impl Record {
    fn add(&mut self, workload: &str, stack: Stack, pair: u32, measured: &Measured) {
        let order = u32::try_from(self.samples.len()).unwrap_or(u32::MAX);
        self.samples
            .push(measured.sample(workload, stack, pair, order));
        let same = |row: &&mut Latencies| row.workload == workload && row.stack == stack;
        match self.histograms.iter_mut().find(same) {
            Some(row) => row.bins.merge(&measured.bins),
            None => self.histograms.push(Latencies {
                workload: workload.to_owned(),
                stack,
                bins: measured.bins.clone(),
            }),
        }
    }
}

/// Runs the whole plan, or as much of it as there is until `stop` says so.
///
/// Pairs are the outer loop: what changes on the machine in the meantime
/// spreads over all workloads, and inside a pair it meets all stacks.
pub(crate) fn run(
    ui: &Ui,
    target: &mut dyn Target,
    workloads: &[Workload],
    plan: Plan,
    stop: &dyn Fn() -> bool,
) -> Result<Record> {
    let stacks = target.stacks();
    let groups = groups(workloads, plan.group);
    let bar = ui.bar("measuring", (groups.len() * plan.pairs as usize + 1) as u64);
    let mut record = Record::default();
    let mut random = fastrand::Rng::with_seed(plan.seed);
    // What is being measured when Ctrl-C comes may fail for that reason.
    let mut measure = |order: &[Stack], group: &[Workload], seed: u64| {
        if stop() {
            return Ok(None);
        }
        let names: Vec<&str> = group.iter().map(|one| one.name.as_str()).collect();
        bar.set_prefix(names.join(", "));
        let measured = target.measure(order, group, seed);
        bar.inc(1);
        match measured {
            Err(_) if stop() => Ok(None),
            Err(error) => Err(error.context(names.join(", "))),
            Ok(measured) => Ok(Some(measured)),
        }
    };
    if measure(stacks, &warm_up(workloads), plan.seed)?.is_none() {
        return Ok(record);
    }
    for pair in 0..plan.pairs {
        for group in &groups {
            let seed = random.u64(..);
            let mut order = stacks.to_vec();
            random.shuffle(&mut order);
            let Some(measured) = measure(&order, group, seed)? else {
                return Ok(record);
            };
            for (stack, measured) in measured {
                for (workload, measured) in group.iter().zip(&measured) {
                    record.add(&workload.name, stack, pair, measured);
                }
            }
        }
    }
    bar.finish_and_clear();
    record.complete = true;
    Ok(record)
}

/// Consecutive workloads, `most` at a time, of which one at most reads the
/// database: the next would find its tables in the page cache.
pub(crate) fn groups(workloads: &[Workload], most: usize) -> Vec<&[Workload]> {
    let mut groups = Vec::new();
    let mut start = 0;
    for (index, workload) in workloads.iter().enumerate() {
        let group = &workloads[start..index];
        let second = workload.needs_db() && group.iter().any(Workload::needs_db);
        if !group.is_empty() && (group.len() >= most || second) {
            groups.push(group);
            start = index;
        }
    }
    let last = &workloads[start..];
    if !last.is_empty() {
        groups.push(last);
    }
    groups
}

/// The first workload of each tool: its unmeasured run fetches the tool.
fn warm_up(workloads: &[Workload]) -> Vec<Workload> {
    let is_fio = |workload: &&Workload| matches!(workload.kind, Kind::Fio(_));
    let fio = workloads.iter().find(is_fio);
    let db = workloads.iter().find(|workload| !is_fio(workload));
    fio.into_iter().chain(db).cloned().collect()
}

/// The end of a run that was stopped before anything was measured.
pub(crate) fn interrupted() -> Error {
    Error::new("interrupted before anything was measured").code(130)
}

#[cfg(test)]
mod tests {
    use super::super::workload::select;
    use super::*;
    use crate::report::histogram::Histogram;
    use std::cell::Cell;

    /// Notes what is asked for and measures nothing.
    #[derive(Default)]
    struct Fake {
        calls: Vec<(Vec<Stack>, usize, u64)>,
        fail_at: Option<usize>,
    }

    impl Target for Fake {
        fn stacks(&self) -> &'static [Stack] {
            &Stack::ALL
        }

        fn measure(
            &mut self,
            order: &[Stack],
            workloads: &[Workload],
            seed: u64,
        ) -> Result<Vec<(Stack, Vec<Measured>)>> {
            self.calls.push((order.to_vec(), workloads.len(), seed));
            if self.fail_at == Some(self.calls.len()) {
                return Err(Error::new("the guest died"));
            }
            let one = Measured::new(100.0, 1e7, Histogram::from(vec![(100, 4)])).unwrap();
            let all = vec![one; workloads.len()];
            Ok(order.iter().map(|stack| (*stack, all.clone())).collect())
        }
    }

    fn plan() -> Plan {
        Plan {
            pairs: 6,
            seed: 7,
            group: 1,
        }
    }

    fn two() -> Vec<Workload> {
        select(&["overwrite".to_owned(), "append".to_owned()], false).unwrap()
    }

    #[test]
    fn test_run_every_pair_has_every_stack_next_to_each_other() {
        let mut fake = Fake::default();
        let record = run(&Ui::new(), &mut fake, &two(), plan(), &|| false).unwrap();
        assert!(record.complete);
        assert_eq!(record.samples.len(), 2 * 6 * 3);
        for group in record.samples.chunks(3) {
            let mut stacks: Vec<_> = group.iter().map(|sample| sample.stack).collect();
            stacks.sort();
            assert_eq!(stacks, Stack::ALL);
            assert!(
                group
                    .iter()
                    .all(|sample| sample.pair == group[0].pair
                        && sample.workload == group[0].workload)
            );
        }
        let orders: Vec<_> = record.samples.iter().map(|sample| sample.order).collect();
        assert_eq!(orders, (0..36).collect::<Vec<_>>());
    }

    #[test]
    fn test_run_order_changes_between_pairs_and_repeats_with_the_seed() {
        let calls = |seed| {
            let mut fake = Fake::default();
            let plan = Plan { seed, ..plan() };
            run(&Ui::new(), &mut fake, &two(), plan, &|| false).unwrap();
            fake.calls
        };
        let first = calls(7);
        assert_eq!(first, calls(7));
        assert_ne!(first, calls(8));
        let begins: Vec<_> = first[1..].iter().map(|call| call.0[0]).collect();
        assert!(
            Stack::ALL.iter().all(|stack| begins.contains(stack)),
            "{begins:?}"
        );
        // Other offsets in every pair.
        assert_ne!(first[1].2, first[3].2);
    }

    #[test]
    fn test_groups_hold_all_workloads_and_one_database_at_most() {
        let all = select(&[], false).unwrap();
        for most in [0, 1, 4, 100] {
            let groups = groups(&all, most);
            assert_eq!(groups.concat(), all, "{most}");
            assert!(groups.iter().all(|group| group.len() <= most.max(1)));
            for group in groups {
                let databases = group.iter().filter(|one| one.needs_db()).count();
                assert!(databases <= 1, "{group:?}");
            }
        }
        assert_eq!(groups(&select(&[], true).unwrap(), 4).len(), 1);
        assert!(groups(&[], 4).is_empty());
    }

    #[test]
    fn test_run_group_is_measured_in_one_go() {
        let mut fake = Fake::default();
        let plan = Plan { group: 2, ..plan() };
        let record = run(&Ui::new(), &mut fake, &two(), plan, &|| false).unwrap();
        assert_eq!(record.samples.len(), 2 * 6 * 3);
        assert_eq!(fake.calls.len(), 6 + 1);
        assert!(fake.calls[1..].iter().all(|call| call.1 == 2));
    }

    #[test]
    fn test_run_warm_up_is_not_recorded() {
        let workloads = select(&[], true).unwrap();
        let mut fake = Fake::default();
        let record = run(&Ui::new(), &mut fake, &workloads, plan(), &|| false).unwrap();
        assert_eq!(fake.calls.len(), record.samples.len() / 3 + 1);
        let total: u64 = record.histograms.iter().map(|row| row.bins.total()).sum();
        assert_eq!(
            total,
            record.samples.iter().map(|sample| sample.ops).sum::<u64>()
        );
    }

    #[test]
    fn test_run_stopped_keeps_what_was_measured() {
        let left = Cell::new(5);
        let stop = || {
            left.set(left.get() - 1);
            left.get() < 0
        };
        let mut fake = Fake::default();
        let record = run(&Ui::new(), &mut fake, &two(), plan(), &stop).unwrap();
        assert!(!record.complete);
        assert_eq!(record.samples.len(), (5 - 1) * 3);
    }

    #[test]
    fn test_run_failure_names_the_workload() {
        let mut fake = Fake {
            fail_at: Some(2),
            ..Fake::default()
        };
        let error = run(&Ui::new(), &mut fake, &two(), plan(), &|| false).unwrap_err();
        assert_eq!(error.what(), "fio/overwrite-4k-fsync: the guest died");
    }
}
