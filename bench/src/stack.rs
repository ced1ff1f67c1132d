// SPDX-License-Identifier: MIT
//! The three stacks that are compared, and how each is switched on in a guest.

use crate::kernel::Flavour;
use serde::{
    Deserialize,
    Serialize, //
};

/// One of the stacks that are compared. Ordered as they are shown.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum, //
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stack {
    /// The unpatched kernel.
    Native,
    /// The patched kernel with everything switched off.
    Off,
    /// The patched kernel with the stack on and opted in to.
    Async,
}

impl Stack {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Native, Self::Off, Self::Async];

    /// Name on the command line, in JSON and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Off => "off",
            Self::Async => "async",
        }
    }

    /// The kernel that has it.
    pub(crate) fn flavour(self) -> Flavour {
        match self {
            Self::Native => Flavour::Native,
            Self::Off | Self::Async => Flavour::Patched,
        }
    }

    /// What ext4 is mounted with, for `mount -o`; empty for nothing.
    pub(crate) fn mount_options(self) -> &'static str {
        match self {
            Self::Native | Self::Off => "",
            Self::Async => "aios",
        }
    }

    /// The shell script, for a guest of its flavour, that switches the stack.
    ///
    /// The bound of polling (50 µs unless set) is far above every emulated
    /// latency: an emulated CPU is some twenty times slower than a real one,
    /// and its drive is slowed down to match.
    pub(crate) fn switch_script(self) -> &'static str {
        match self {
            Self::Native => "",
            Self::Off => "echo 0 > /sys/kernel/aios/enabled",
            Self::Async => {
                "echo 100000000 > /sys/kernel/aios/poll_max_ns\n\
                 echo 1 > /sys/kernel/aios/enabled"
            }
        }
    }

    /// The shell script, for a guest of its flavour, that switches the stack and
    /// mounts `drive` afresh, with an empty page cache. When the shell ends it
    /// is unmounted.
    pub(crate) fn mount_script(self, drive: &str, mount: &str) -> String {
        let options = match self.mount_options() {
            "" => "defaults",
            options => options,
        };
        format!(
            "{}\nmkdir -p {mount}\nmount -t ext4 -o {options} {drive} {mount}\n\
             trap 'cd /; umount {mount}' EXIT\n",
            self.switch_script(),
        )
    }
}

/// How readers of the async stack wait for the drive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// Spinning for as long as it takes.
    #[default]
    Spin,
    /// With the CPU halted, where an interrupt of this CPU tells them.
    Halt,
    /// Asleep.
    Sleep,
}

impl Wait {
    /// How `guest_cpus` best wait in an emulated guest. The drive is processes of the
    /// host: while all of its CPUs spin, none is left to answer.
    pub(crate) fn for_guest(guest_cpus: u32) -> Self {
        let host = std::thread::available_parallelism().map_or(1, usize::from);
        match usize::try_from(guest_cpus) {
            Ok(cpus) if cpus < host => Self::Spin,
            _ => Self::Halt,
        }
    }

    /// The shell script that chooses it, behind [`Stack::switch_script`] of async.
    pub(crate) fn script(self) -> &'static str {
        match self {
            Self::Spin => "",
            Self::Halt => "echo 1 > /sys/kernel/aios/poll_halt\n",
            Self::Sleep => "echo 0 > /sys/kernel/aios/poll_max_ns\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_wait_leaves_the_drive_a_cpu() {
        assert_eq!(Wait::for_guest(u32::MAX), Wait::Halt);
        assert_eq!(Wait::Spin.script(), "");
    }

    #[test]
    fn test_name_is_the_one_in_json() {
        for stack in Stack::ALL {
            assert_eq!(
                serde_json::to_value(stack).unwrap().as_str(),
                Some(stack.name())
            );
        }
    }

    #[test]
    fn test_only_async_switches_anything_on() {
        assert!(Stack::Async.switch_script().contains("echo 1 >"));
        for stack in [Stack::Native, Stack::Off] {
            assert!(!stack.switch_script().contains("echo 1"));
            assert_eq!(stack.mount_options(), "");
        }
    }
}
