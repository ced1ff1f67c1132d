// SPDX-License-Identifier: MIT
//! The three stacks that are compared, and how each is switched on in a guest.

use crate::kernel::Flavour;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fmt;
use std::str::FromStr;

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

/// A setting of the async stack beside its switch, as `NAME=VALUE`: of the mounted ext4
/// (`/sys/fs/ext4/DISK/NAME`), or else of the whole stack (`/sys/kernel/aios/NAME`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Knob {
    name: String,
    value: u64,
}

impl Knob {
    /// The shell script that sets it, behind [`Stack::mount_script`] of async for the same
    /// drive. It fails where there is no such knob.
    pub(crate) fn script(&self, drive: &str) -> String {
        let Self { name, value } = self;
        let disk = drive.rsplit('/').next().unwrap_or(drive);
        format!(
            "knob=/sys/fs/ext4/{disk}/{name}\n[ -e $knob ] || knob=/sys/kernel/aios/{name}\n\
             echo {value} > $knob\n"
        )
    }
}

impl FromStr for Knob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| "it is not NAME=VALUE".to_owned())?;
        let is_plain = |letter: u8| letter.is_ascii_lowercase() || b"0123456789_".contains(&letter);
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(format!("{name:?} is not the name of a knob"));
        }
        if name == "enabled" {
            return Err("async is what is switched on; off is measured beside it".to_owned());
        }
        let value = value
            .parse()
            .map_err(|_| format!("{value:?} is not a whole number"))?;
        let name = name.to_owned();
        Ok(Self { name, value })
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl TryFrom<String> for Knob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Knob> for String {
    fn from(knob: Knob) -> Self {
        knob.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_knob_is_a_name_and_a_number() {
        let knob: Knob = "fsync_alloc_written=1".parse().unwrap();
        assert_eq!(knob.to_string(), "fsync_alloc_written=1");
        let script = knob.script("/dev/nvme0n1");
        assert!(script.starts_with("knob=/sys/fs/ext4/nvme0n1/fsync_alloc_written\n"));
        let json = serde_json::to_string(&knob).unwrap();
        assert_eq!(serde_json::from_str::<Knob>(&json).unwrap(), knob);
        for bad in [
            "",
            "a",
            "=1",
            "a=",
            "a=-1",
            "a=x",
            "../a=1",
            "A=1",
            "a b=1",
            "enabled=0",
        ] {
            assert!(bad.parse::<Knob>().is_err(), "{bad}");
        }
    }

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
