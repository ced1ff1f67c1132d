// SPDX-License-Identifier: MIT
//! Ways to read the same tree of files from the same drive.

use crate::stack::Stack;
use serde::{
    Deserialize,
    Serialize, //
};

/// Where it is mounted, in the guest.
pub(super) const MOUNT: &str = "/run/aios-drive";

/// A way to read the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Contender {
    /// ext4 in an overlaybd layer, by the driver with the stack enabled: what all
    /// others are compared with.
    Obd,
    /// The same by two devices: the zfile's, and the image's with that for its layer.
    #[serde(rename = "obd-stacked")]
    ObdStacked,
    /// The one device, with the stack off, as it is for those that follow.
    #[serde(rename = "obd-off")]
    ObdOff,
    /// The same layer, by a process through ublk.
    Ublk,
    /// EROFS, LZ4 in clusters of 4 KiB.
    Erofs,
    /// squashfs, LZ4 in its usual blocks of 128 KiB.
    Squashfs,
    /// The same ext4, neither compressed nor layered.
    Bare,
}

/// What a guest's script needs to know.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    /// The tool `obd`.
    pub(super) tool: String,
    /// The driver.
    pub(super) module: String,
}

impl Contender {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Obd,
        Self::ObdStacked,
        Self::ObdOff,
        Self::Ublk,
        Self::Erofs,
        Self::Squashfs,
        Self::Bare,
    ];

    /// Name in JSON and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Obd => "obd",
            Self::ObdStacked => "obd-stacked",
            Self::ObdOff => "obd-off",
            Self::Ublk => "ublk",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Bare => "bare",
        }
    }

    /// The drive in the guest that has its image; see [`super::images`].
    pub(super) fn drive(self) -> &'static str {
        match self {
            Self::Bare => "/dev/nvme0n1",
            Self::Obd | Self::ObdStacked | Self::ObdOff | Self::Ublk => "/dev/nvme1n1",
            Self::Erofs => "/dev/nvme2n1",
            Self::Squashfs => "/dev/nvme3n1",
        }
    }

    /// The shell script that mounts it at [`MOUNT`] with nothing cached. When the
    /// shell ends all of it is undone.
    pub(super) fn mount_script(self, paths: &Paths) -> String {
        let Paths { tool, module } = paths;
        let drive = self.drive();
        let (attach, kind, undo) = match self {
            Self::Obd | Self::ObdOff => (
                format!(
                    "[ -d /sys/kernel/config/obd ] || insmod {module}\n\
                     dev=$({tool} attach {drive})\n"
                ),
                "ext4",
                format!("; {tool} detach $dev"),
            ),
            Self::ObdStacked => (
                format!(
                    "[ -d /sys/kernel/config/obd ] || insmod {module}\n\
                     lower=$({tool} attach --zfile {drive}); dev=$({tool} attach $lower)\n"
                ),
                "ext4",
                format!("; {tool} detach $dev $lower"),
            ),
            Self::Ublk => (
                format!("dev=$({tool} attach --userspace {drive})\n"),
                "ext4",
                format!("; {tool} detach $dev"),
            ),
            Self::Bare => (format!("dev={drive}\n"), "ext4", String::new()),
            Self::Erofs => (format!("dev={drive}\n"), "erofs", String::new()),
            Self::Squashfs => (format!("dev={drive}\n"), "squashfs", String::new()),
        };
        let stack = match self {
            Self::Obd | Self::ObdStacked => Stack::Async,
            _ => Stack::Off,
        };
        // The server reads blobs through the page cache of their drive.
        format!(
            "{}\nmkdir -p {MOUNT}\n{attach}mount -t {kind} -o ro $dev {MOUNT}\n\
             trap 'cd /; umount {MOUNT}{undo}' EXIT\n\
             echo 3 > /proc/sys/vm/drop_caches\n",
            stack.switch_script()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_name_is_the_one_in_json() {
        for contender in Contender::ALL {
            let json = serde_json::to_value(contender).unwrap();
            assert_eq!(json.as_str(), Some(contender.name()));
        }
    }

    #[test]
    fn test_mount_script_detaches_what_it_attached() {
        let paths = Paths {
            tool: "/t/obd".to_owned(),
            module: "/m/obd.ko".to_owned(),
        };
        for contender in Contender::ALL {
            let script = contender.mount_script(&paths);
            assert!(script.contains("-o ro $dev"), "{script}");
            let attached = script.contains("attach ");
            assert_eq!(attached, script.contains("obd detach $dev"), "{script}");
        }
    }
}
