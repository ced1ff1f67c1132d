// SPDX-License-Identifier: MIT
//! What can be profiled: the guest's workloads and what one clean operation of
//! each is.

use clap::ValueEnum;

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// pread of 4 KiB at a random offset, not in the page cache.
    #[value(name = "randread-4k-buffered")]
    RandreadBuffered,
    /// pread of 4 KiB at a random offset with O_DIRECT.
    #[value(name = "randread-4k-direct")]
    RandreadDirect,
    /// pread of 16 KiB at a random offset, not in the page cache.
    #[value(name = "randread-16k-buffered")]
    Randread16Buffered,
    /// pread of 4 KiB at a random offset, in the page cache.
    #[value(name = "randread-4k-hit")]
    RandreadHit,
    /// Touching a page of a mapping at a random offset, not in the page cache.
    #[value(name = "randread-4k-mmap")]
    RandreadMmap,
    /// The fdatasync after overwriting 4 KiB.
    #[value(name = "overwrite-4k-fdatasync")]
    OverwriteFdatasync,
    /// The fsync after overwriting 4 KiB.
    #[value(name = "overwrite-4k-fsync")]
    OverwriteFsync,
    /// The fsync after appending 4 KiB.
    #[value(name = "append-4k-fsync")]
    AppendFsync,
    /// The fdatasync after appending 116 bytes, as to a log.
    #[value(name = "append-116-fdatasync")]
    LogFdatasync,
}

impl Workload {
    /// Name on the command line and in JSON.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Bytes per operation.
    pub(crate) fn block_size(self) -> u64 {
        match self {
            Self::Randread16Buffered => 16 << 10,
            Self::LogFdatasync => 116,
            _ => 4 << 10,
        }
    }

    /// Whether it only reads.
    pub(crate) fn reads(self) -> bool {
        matches!(
            self,
            Self::RandreadBuffered
                | Self::RandreadDirect
                | Self::Randread16Buffered
                | Self::RandreadHit
                | Self::RandreadMmap
        )
    }

    /// Operations unless told: those that sync send several commands each and
    /// take as much longer.
    pub(crate) fn default_ops(self) -> u32 {
        if self.reads() { 4000 } else { 1000 }
    }

    /// Arguments of the guest's `work` after which file and numbers come.
    pub(crate) fn guest_args(self) -> &'static str {
        match self {
            Self::RandreadBuffered => "randread --bs 4096",
            Self::RandreadDirect => "randread --bs 4096 --direct",
            Self::Randread16Buffered => "randread --bs 16384",
            Self::RandreadHit => "randread-hit --bs 4096",
            Self::RandreadMmap => "randread-mmap --bs 4096",
            Self::OverwriteFdatasync => "overwrite-fdatasync --bs 4096 --mark sync",
            Self::OverwriteFsync => "overwrite-fsync --bs 4096 --mark sync",
            Self::AppendFsync => "append-fsync --bs 4096 --mark sync",
            Self::LogFdatasync => "append-fdatasync --bs 116 --mark sync",
        }
    }

    /// Arguments of the plugin that say what a clean operation is.
    pub(crate) fn rules(self) -> &'static str {
        if self == Self::RandreadHit {
            "commands=0,switches=0,interrupts=reject"
        } else if self.reads() {
            // One command; at most to the idle task and back.
            "commands=1,switches=2,interrupts=reject"
        } else {
            // The journal's thread and the flush machinery's worker belong to a
            // sync, and it lasts for some ticks.
            "interrupts=remove"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_name_says_what_the_guest_is_told() {
        for &workload in Workload::value_variants() {
            let (name, args) = (workload.name(), workload.guest_args());
            let size = format!("--bs {}", workload.block_size());
            assert!(args.contains(&size), "{name}: {args}");
            assert_eq!(name.contains("direct"), args.contains("--direct"), "{name}");
            assert_eq!(workload.reads(), args.starts_with("randread"), "{name}");
            for sync in ["fsync", "fdatasync"] {
                let of_name = name.split('-').any(|word| word == sync);
                let of_args = args.split([' ', '-']).any(|word| word == sync);
                assert_eq!(of_name, of_args, "{name}: {args}");
            }
        }
    }
}
