// SPDX-License-Identifier: MIT
//! Process 1: builds the guest's root and hands over to the agent.
//!
//! The root is an overlay of a tmpfs over the host's root, shared read-only:
//! every program and file of the host is there, everything is writable, and
//! the host never sees a change.

use crate::agent;
use crate::sys::{
    self,
    Doing,
    Result, //
};
use aios_guest::{
    DRIVE_SERIAL,
    GUEST_BINARY,
    HOST_ROOT_TAG,
    PORT_NAME, //
};
use std::fs::{
    self,
    File,
    Permissions, //
};
use std::os::unix::fs::{
    PermissionsExt,
    symlink, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// The shared root of the host. `loose`: the host is trusted not to change
/// programs meanwhile, and nothing is looked up twice. The message size is the
/// largest that the virtio transport takes.
const HOST_ROOT_OPTIONS: &str = "trans=virtio,version=9p2000.L,cache=loose,msize=512000";

/// A file system mounted in the guest's root.
struct Mount {
    kind: &'static str,
    target: &'static str,
    options: &'static str,
    /// Whether the guest is of no use without it; the others are left out of
    /// kernels that lack them.
    required: bool,
}

const MOUNTS: &[Mount] = &[
    Mount {
        kind: "proc",
        target: "/proc",
        options: "",
        required: true,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        options: "",
        required: true,
    },
    Mount {
        kind: "devtmpfs",
        target: "/dev",
        options: "mode=0755",
        required: true,
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        options: "mode=0620,ptmxmode=0666",
        required: false,
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        options: "mode=1777",
        required: true,
    },
    // The host's sockets and pid files mean nothing here.
    Mount {
        kind: "tmpfs",
        target: "/run",
        options: "mode=0755",
        required: true,
    },
    Mount {
        kind: "debugfs",
        target: "/sys/kernel/debug",
        options: "",
        required: false,
    },
    Mount {
        kind: "tracefs",
        target: "/sys/kernel/tracing",
        options: "",
        required: false,
    },
    Mount {
        kind: "configfs",
        target: "/sys/kernel/config",
        options: "",
        required: false,
    },
];

/// Links that programs expect in `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// How long programs have to end at power-off before they are killed.
const GRACE: Duration = Duration::from_secs(2);

/// Sets the guest up, serves the harness until it has had enough, and powers
/// off. What goes wrong is said on the console, which the harness keeps.
pub(crate) fn main() -> ! {
    if let Err(error) = set_up().and_then(agent::serve) {
        eprintln!("aios-guest: {error}");
    }
    if let Err(error) = wind_down() {
        eprintln!("aios-guest: {error}");
    }
    sys::power_off()
}

/// The agent's port, when everything is in place.
fn set_up() -> Result<File> {
    build_root()?;
    for mount in MOUNTS {
        mount_one(mount)?;
    }
    for (target, link) in LINKS {
        symlink(target, link).doing(format!("link {link}"))?;
    }
    sys::set_hostname("aios-guest").doing("set the host name")?;
    order_drives()?;
    open_port()
}

/// Mounts the overlay and makes it the root.
fn build_root() -> Result<()> {
    for dir in ["/host", "/scratch", "/root"] {
        fs::create_dir_all(dir).doing(format!("create {dir}"))?;
    }
    sys::mount(
        HOST_ROOT_TAG,
        "/host",
        "9p",
        libc::MS_RDONLY,
        HOST_ROOT_OPTIONS,
    )
    .doing("mount the host's root (the kernel needs CONFIG_9P_FS and CONFIG_NET_9P_VIRTIO)")?;
    sys::mount("tmpfs", "/scratch", "tmpfs", 0, "mode=0755").doing("mount /scratch")?;
    for dir in ["/scratch/upper", "/scratch/work"] {
        fs::create_dir(dir).doing(format!("create {dir}"))?;
    }
    sys::mount(
        "overlay",
        "/root",
        "overlay",
        0,
        "lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work",
    )
    .doing("mount the root (the kernel needs CONFIG_OVERLAY_FS)")?;

    let program = Path::new("/root").join(GUEST_BINARY.trim_start_matches('/'));
    fs::copy("/init", &program).doing(format!("copy the init to {}", program.display()))?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))
        .doing(format!("make {} executable", program.display()))?;
    sys::enter_root(Path::new("/root")).doing("enter the root")
}

fn mount_one(mount: &Mount) -> Result<()> {
    let mounted = fs::create_dir_all(mount.target)
        .and_then(|()| sys::mount(mount.kind, mount.target, mount.kind, 0, mount.options))
        .doing(format!("mount {} on {}", mount.kind, mount.target));
    match mounted {
        // A kernel without debugfs has no /sys/kernel/debug to mount it on.
        Err(error)
            if !mount.required
                && [libc::ENODEV, libc::ENOENT, libc::EPERM]
                    .iter()
                    .any(|&errno| error.is(errno)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Makes drive `i` `/dev/nvme{i}n1`. Controllers are probed concurrently, so
/// their numbers are a matter of luck; where it failed, they are bound again
/// one after the other.
fn order_drives() -> Result<()> {
    let Ok(entries) = fs::read_dir("/sys/class/nvme") else {
        return Ok(());
    };
    let mut drives: Vec<(usize, PathBuf)> = Vec::new();
    let mut in_order = true;
    for entry in entries {
        let path = entry.doing("list /sys/class/nvme")?.path();
        let serial = fs::read_to_string(path.join("serial")).doing("read a drive's serial")?;
        let Some(index) = serial
            .trim()
            .strip_prefix(DRIVE_SERIAL)
            .and_then(|index| index.parse().ok())
        else {
            continue;
        };
        in_order &= path.ends_with(format!("nvme{index}"));
        let device = fs::canonicalize(path.join("device")).doing("find a drive's PCI device")?;
        drives.push((index, device));
    }
    if in_order {
        return Ok(());
    }
    drives.sort();
    for action in ["unbind", "bind"] {
        for (_, device) in &drives {
            let address = device.file_name().unwrap_or_default().as_encoded_bytes();
            fs::write(Path::new("/sys/bus/pci/drivers/nvme").join(action), address)
                .doing(format!("{action} {}", device.display()))?;
        }
    }
    Ok(())
}

fn open_port() -> Result<File> {
    let ports = Path::new("/sys/class/virtio-ports");
    let listing = "list the virtio ports (the kernel needs CONFIG_VIRTIO_CONSOLE)";
    for entry in fs::read_dir(ports).doing(listing)? {
        let entry = entry.doing(listing)?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            let device = Path::new("/dev").join(entry.file_name());
            return File::options()
                .read(true)
                .write(true)
                .open(&device)
                .doing(format!("open {}", device.display()));
        }
    }
    Err(std::io::Error::from_raw_os_error(libc::ENOENT))
        .doing(format!("find the virtio port {PORT_NAME}"))
}

/// Ends every program and unmounts every drive, so that their file systems
/// are clean.
fn wind_down() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // Stopped programs must run to end.
        sys::kill(-1, signal);
        sys::kill(-1, libc::SIGCONT);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            match sys::reap() {
                Ok(Some(_)) => {}
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                // No children are left.
                Err(_) => break,
            }
        }
    }
    let mounts = fs::read("/proc/self/mounts").doing("read /proc/self/mounts")?;
    // The last mounted first: one may lie on another.
    for target in drive_mounts(&mounts).iter().rev() {
        sys::unmount(target).doing(format!("unmount {}", String::from_utf8_lossy(target)))?;
    }
    Ok(())
}

/// Where block devices are mounted, in the order of mounting.
fn drive_mounts(mounts: &[u8]) -> Vec<Vec<u8>> {
    mounts
        .split(|&byte| byte == b'\n')
        .filter(|line| line.starts_with(b"/dev/"))
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(1))
        .map(unescape)
        .collect()
}

/// Undoes the octal escapes of `/proc/self/mounts` (`\040` is a space).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_drive_mounts_finds_block_devices_in_order() {
        let mounts = b"overlay / overlay rw 0 0\n\
            proc /proc proc rw 0 0\n\
            /dev/nvme0n1 /mnt ext4 rw 0 0\n\
            /dev/nvme1n1 /mnt/a\\040b ext4 rw 0 0\n";
        assert_eq!(
            drive_mounts(mounts),
            [b"/mnt".to_vec(), b"/mnt/a b".to_vec()]
        );
    }

    #[test]
    fn test_unescape_broken_escape_stays_as_it_is() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"a\\9zz\\134"), b"a\\9zz\\");
    }
}
