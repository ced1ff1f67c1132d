// SPDX-License-Identifier: MIT
//! Instructions per read: all that a guest with one CPU executes, whoever does it.
//!
//! Times under emulation are noise, and a contender may leave its work to a process,
//! a worker or an interrupt. So everything counts, of programs and of the kernel, from
//! the first read to the last. Nobody spins. Timer interrupts are in it, too: a
//! per cent or two, more on a busy machine.

use super::contender::{
    Contender,
    MOUNT, //
};
use super::guest::{
    Counting,
    Setup,
    Shared, //
};
use super::results::{
    Function,
    Instructions, //
};
use crate::compare::fio;
use crate::context::Context;
use crate::device::Latency;
use crate::error::{
    IoContext,
    Result, //
};
use crate::guest::interrupt;
use crate::profile;
use aios_guest::GUEST_BINARY;
use aios_insn_plugin::whole::{
    SCHEMA,
    WholeReport, //
};
use std::path::Path;

/// Instructions per read of the functions that are worth a line.
const LEAST: f64 = 1.0;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reads {
    /// Of the workload that is timed.
    pub(super) workload: &'static str,
    /// Arguments of the guest's `work`.
    args: &'static str,
    /// Threads that read the same file at once.
    readers: u32,
    /// Reads of each.
    ops: u32,
    /// Reads of each before those that count.
    warmup: u32,
}

/// All there are: the timed ones.
const ALL: [Reads; 3] = [
    Reads {
        workload: "fio/randread-4k-buffered-qd1",
        args: "randread --bs 4096",
        readers: 1,
        ops: 1500,
        warmup: 100,
    },
    Reads {
        workload: "fio/randread-4k-buffered-t32",
        args: "randread --bs 4096",
        readers: 32,
        ops: 100,
        warmup: 10,
    },
    Reads {
        workload: "fio/seqread-128k-buffered-qd1",
        args: "seqread --bs 131072",
        readers: 1,
        ops: 200,
        warmup: 100,
    },
];

/// Those whose workloads are among `names`.
pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<Reads> {
    ALL.into_iter()
        .filter(|reads| names.clone().any(|name| name == reads.workload))
        .collect()
}

/// Boots a guest with the plugin and counts `reads` of each contender; none if
/// Ctrl-C came.
pub(super) fn count(
    ctx: &Context,
    setup: &Setup<'_>,
    system_map: &Path,
    boot: impl FnOnce(&Setup<'_>) -> Result<Shared>,
    reads: &[Reads],
) -> Result<Vec<Instructions>> {
    if reads.is_empty() {
        return Ok(Vec::new());
    }
    let plugin = profile::plugin::build(ctx)?;
    let dir = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let out = dir.path().join("counts.json");
    let setup = Setup {
        counting: Some(Counting {
            qemu: profile::plugin::qemu_args(&plugin, system_map, &out, "count=all")?,
        }),
        ..setup.clone()
    };
    let steps = Contender::ALL.len() * reads.len();
    let bar = ctx.ui.bar("counting instructions", steps as u64);
    let mut guest = boot(&setup)?;
    guest.set_latency(&Latency::fixed(profile::LATENCY_NS))?;
    let mut counted = Vec::new();
    for contender in Contender::ALL {
        bar.set_prefix(contender.name());
        for reads in reads {
            if interrupt::check().is_err() {
                return Ok(Vec::new());
            }
            guest.script(contender, &script(*reads))?;
            counted.push(instructions(
                *reads,
                contender,
                profile::plugin::take_counts(&out, SCHEMA)?,
            ));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    guest.shutdown()?;
    Ok(counted)
}

fn script(reads: Reads) -> String {
    let Reads {
        args,
        readers,
        ops,
        warmup,
        ..
    } = reads;
    // Threads have files of their own, which are one here.
    format!(
        "echo 0 > /sys/kernel/aios/poll_max_ns\n\
         for n in $(seq {readers}); do ln -sf {MOUNT}/{} /run/reader.$((n - 1)); done\n\
         {GUEST_BINARY} work {args} --file /run/reader --threads {readers} --ops {ops} \
         --warmup {warmup} --seed 1\n",
        fio::DATA
    )
}

fn instructions(reads: Reads, contender: Contender, report: WholeReport) -> Instructions {
    let all = reads.readers * reads.ops;
    let per_read = |insns: u64| insns as f64 / f64::from(all);
    Instructions {
        workload: reads.workload.to_owned(),
        contender,
        ops: all,
        kernel: per_read(report.kernel),
        programs: per_read(report.user),
        functions: report
            .functions
            .into_iter()
            .map(|function| Function {
                insns: per_read(function.insns),
                name: function.name,
            })
            .take_while(|function| function.insns >= LEAST)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aios_insn_plugin::whole::Function as Counted;

    #[test]
    fn test_of_takes_what_is_timed() {
        let names = [
            "fio/seqread-128k-buffered-qd1",
            "fio/randread-4k-buffered-qd32",
        ];
        let found = of(names.into_iter());
        assert_eq!(found.len(), 1);
        assert!(script(found[0]).contains("work seqread --bs 131072 --file "));
    }

    #[test]
    fn test_reads_of_all_readers_count() {
        let report = WholeReport {
            schema: SCHEMA,
            user: 6400,
            kernel: 0,
            functions: Vec::new(),
        };
        let found = instructions(ALL[1], Contender::Obd, report);
        assert_eq!((found.ops, found.programs), (3200, 2.0));
    }

    #[test]
    fn test_instructions_are_per_read() {
        let report = WholeReport {
            schema: SCHEMA,
            user: 3000,
            kernel: 15000,
            functions: [("f", 3000), ("g", 1500), ("h", 1499)]
                .map(|(name, insns)| Counted {
                    name: name.to_owned(),
                    insns,
                })
                .into(),
        };
        let found = instructions(ALL[0], Contender::Ublk, report);
        assert_eq!((found.kernel, found.programs), (10.0, 2.0));
        let listed: Vec<_> = found.functions.iter().map(|f| f.insns).collect();
        assert_eq!(listed, [2.0, 1.0]);
    }
}
