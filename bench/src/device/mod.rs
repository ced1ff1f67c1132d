// SPDX-License-Identifier: MIT
//! A drive with a speed: our NBD server, and choosing its latency so that the
//! ratio of kernel time to device time is that of a real drive.

mod calibrate;
pub(crate) mod image;
mod server;

pub(crate) use aios_disk::{
    Counters,
    Latency, //
};
pub(crate) use calibrate::calibrate;
pub(crate) use server::{
    Server,
    serve, //
};

use serde::{
    Deserialize,
    Serialize, //
};

/// Which drive the emulated one stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Model {
    /// No latency added.
    Null,
    /// Intel Optane: device time 7.3 µs to 5.5 µs of kernel time.
    Optane,
    /// Samsung Z-SSD.
    Zssd,
    /// A good flash drive.
    Nand,
}

/// Kernel time of a 4 KiB read on the machine that the device times below are
/// set against, µs: G. Lee and others, "Asynchronous I/O Stack: A Low-latency
/// Kernel I/O Stack for Ultra-Low Latency SSDs", USENIX ATC 2019.
const REAL_KERNEL_US: f64 = 5.5;

impl Model {
    /// Time in the real drive of a 4 KiB random read and of a 4 KiB write or a
    /// flush, queue depth 1, µs; nothing for the null drive.
    ///
    /// - Optane: read as published with [`REAL_KERNEL_US`]; writes cost it what
    ///   reads do (Intel names 10 µs for both).
    /// - Z-SSD: Samsung names 12 to 20 µs for reads and 16 µs for writes of the
    ///   SZ985. AnandTech measured 16 µs for reads of the 983 ZET where an
    ///   Optane drive took just under 9, host included; less the host's share
    ///   (9 - 7.3) that is 14 µs.
    /// - NAND: Samsung names 90 µs for reads and 20 µs for writes of the
    ///   PM1725a (TLC), Micron 92 and 21 µs for the 9200 (TLC). A write ends
    ///   in the drive's power-backed cache, and a flush finds nothing to do.
    fn real_device_us(self) -> Option<(f64, f64)> {
        match self {
            Self::Null => None,
            Self::Optane => Some((7.3, 7.3)),
            Self::Zssd => Some((14.0, 16.0)),
            Self::Nand => Some((90.0, 20.0)),
        }
    }

    /// The name on the command line and in reports.
    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Optane => "optane",
            Self::Zssd => "zssd",
            Self::Nand => "nand",
        }
    }
}

/// What was chosen and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Calibration {
    /// The drive stood for.
    pub(crate) model: Model,
    /// Native kernel CPU time per 4 KiB buffered read in the guest, ns.
    pub(crate) kernel_ns: u64,
    /// Device time seen at zero added latency, ns.
    pub(crate) base_device_ns: u64,
    /// Device time aimed at, ns.
    pub(crate) target_device_ns: u64,
    /// Added to reads.
    pub(crate) read: Latency,
    /// Added to writes and flushes.
    pub(crate) write: Latency,
}

impl Calibration {
    /// Chooses the latency for `model` from the guest's own measured times:
    /// the device time is to be to the guest's kernel time what the real
    /// drive's is to a real machine's. What the emulation takes anyway is
    /// taken off.
    pub(crate) fn choose(model: Model, kernel_ns: u64, base_device_ns: u64) -> Self {
        let target = |real_us: f64| (kernel_ns as f64 * real_us / REAL_KERNEL_US).round() as u64;
        let (target_device_ns, target_write_ns) = match model.real_device_us() {
            Some((read, write)) => (target(read), target(write)),
            None => (base_device_ns, base_device_ns),
        };
        let added = |target: u64| {
            // A guest that slow is none; the server takes no more.
            let ns = target
                .saturating_sub(base_device_ns)
                .min(aios_disk::latency::MAX_NS);
            Latency {
                points: vec![(50.0, ns)],
            }
        };
        Self {
            model,
            kernel_ns,
            base_device_ns,
            target_device_ns,
            read: added(target_device_ns),
            write: added(target_write_ns),
        }
    }

    /// One line that says what was chosen and why.
    pub(crate) fn describe(&self) -> String {
        let us = |ns: u64| format!("{:.1} µs", ns as f64 / 1000.0);
        let name = self.model.name();
        let kernel = us(self.kernel_ns);
        let base = us(self.base_device_ns);
        let Some((real_us, _)) = self.model.real_device_us() else {
            return format!(
                "drive {name}: nothing added to the {base} that the emulation takes; \
                 the kernel takes {kernel} per 4 KiB read"
            );
        };
        let added = |latency: &Latency| us(latency.at(50.0));
        let mut line = format!(
            "drive {name}: the kernel takes {kernel} per 4 KiB read, so the device is to take \
             {target} ({real_us} to {REAL_KERNEL_US}); the emulation takes {base}, \
             added to reads {read}, to writes {write}",
            target = us(self.target_device_ns),
            read = added(&self.read),
            write = added(&self.write),
        );
        if self.target_device_ns < self.base_device_ns {
            line.push_str(
                "; warning: the emulation alone takes longer than the device is to: \
                 against the kernel this drive is slower than the real one",
            );
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(ns: u64) -> Latency {
        Latency {
            points: vec![(50.0, ns)],
        }
    }

    #[test]
    fn test_choose_optane_keeps_the_published_ratio() {
        let chosen = Calibration::choose(Model::Optane, 110_000, 50_000);
        assert_eq!(chosen.target_device_ns, 146_000);
        assert_eq!(chosen.read, fixed(96_000));
        assert_eq!(chosen.write, fixed(96_000));
    }

    #[test]
    fn test_choose_nand_writes_faster_than_it_reads() {
        let chosen = Calibration::choose(Model::Nand, 110_000, 50_000);
        assert_eq!(chosen.target_device_ns, 1_800_000);
        assert_eq!(chosen.read, fixed(1_750_000));
        assert_eq!(chosen.write, fixed(350_000));
    }

    #[test]
    fn test_choose_orders_the_models() {
        let target = |model| Calibration::choose(model, 100_000, 0).target_device_ns;
        assert!(target(Model::Null) < target(Model::Optane));
        assert!(target(Model::Optane) < target(Model::Zssd));
        assert!(target(Model::Zssd) < target(Model::Nand));
    }

    #[test]
    fn test_choose_null_adds_nothing() {
        let chosen = Calibration::choose(Model::Null, 110_000, 50_000);
        assert_eq!(chosen.target_device_ns, 50_000);
        assert_eq!((chosen.read.at(50.0), chosen.write.at(50.0)), (0, 0));
    }

    #[test]
    fn test_choose_slow_emulation_adds_nothing_and_warns() {
        let chosen = Calibration::choose(Model::Optane, 10_000, 50_000);
        assert_eq!(chosen.read.at(50.0), 0);
        assert!(chosen.describe().contains("warning"), "{chosen:?}");
    }

    #[test]
    fn test_choose_absurd_times_give_a_latency_the_server_takes() {
        let chosen = Calibration::choose(Model::Nand, u64::MAX, 0);
        assert!(chosen.read.check().is_ok());
        assert!(chosen.write.check().is_ok());
    }

    #[test]
    fn test_describe_says_all_in_one_line() {
        let line = Calibration::choose(Model::Zssd, 110_000, 50_000).describe();
        assert_eq!(
            line,
            "drive zssd: the kernel takes 110.0 µs per 4 KiB read, so the device is to take \
             280.0 µs (14 to 5.5); the emulation takes 50.0 µs, added to reads 230.0 µs, \
             to writes 270.0 µs"
        );
    }
}
