// SPDX-License-Identifier: MIT
//! Whether a block device may be overwritten: only one that nobody uses and
//! that shows no sign of holding anything.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::find_on_path;
use std::fs;
use std::fs::File;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{
    FileTypeExt,
    OpenOptionsExt, //
};
use std::path::Path;
use std::process::{
    Command,
    Stdio, //
};

/// Fails unless `device` is a block device without mounts, partitions,
/// holders (device mapper, RAID), swap and known signatures.
pub(crate) fn check_unused(device: &Path) -> Result<()> {
    let metadata = fs::metadata(device).at("look at", device)?;
    if !metadata.file_type().is_block_device() {
        return Err(Error::new(format!(
            "{} is no block device",
            device.display()
        )));
    }
    let (major, minor) = (
        libc::major(metadata.st_rdev()),
        libc::minor(metadata.st_rdev()),
    );
    let number = format!("{major}:{minor}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").at("read", "/proc/self/mountinfo")?;
    let sysfs = Path::new("/sys/dev/block").join(&number);
    if let Some(use_) = mounted_at(&mounts, &number).or_else(|| used(&sysfs)) {
        return Err(refused(device, &use_));
    }
    claim(device)?;
    match signature(device)? {
        Some(found) => Err(refused(
            device,
            &format!("it carries a signature ({found})"),
        )),
        None => Ok(()),
    }
}

fn refused(device: &Path, why: &str) -> Error {
    Error::new(format!("{} is not touched: {why}", device.display()))
        .hint("give an unused device, or a folder on a mounted ext4")
}

/// Where the device of `number` is mounted.
fn mounted_at(mountinfo: &str, number: &str) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number)
            .then(|| format!("it is mounted on {}", fields.nth(1).unwrap_or("?")))
    })
}

/// What uses the device, as sysfs has it.
fn used(sysfs: &Path) -> Option<String> {
    let names = |dir: &Path| -> Vec<String> {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    if let Some(holder) = names(&sysfs.join("holders")).first() {
        return Some(format!("it is part of {holder}"));
    }
    names(sysfs)
        .iter()
        .find(|name| sysfs.join(name).join("partition").is_file())
        .map(|partition| format!("it has partitions ({partition})"))
}

/// Asks the kernel for the device alone, which it refuses while the device is
/// mounted, held or swapped to, in whichever namespace.
fn claim(device: &Path) -> Result<()> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
        .map(drop)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => refused(device, "it is in use"),
            Some(libc::EROFS | libc::EACCES | libc::EPERM) => {
                refused(device, "it cannot be written")
            }
            _ => Error::io("open", device, &error),
        })
}

/// What libblkid knows the contents as: file systems, RAID members, partition
/// tables, swap and more. Doubt counts as a signature.
fn signature(device: &Path) -> Result<Option<String>> {
    let blkid = find_on_path("blkid").ok_or_else(|| {
        Error::new("blkid is missing, so signatures cannot be checked")
            .hint("install the package util-linux")
    })?;
    let output = Command::new(blkid)
        .args(["-p", "-o", "export"])
        .arg(device)
        .stdin(Stdio::null())
        .output()
        .at("run blkid on", device)?;
    // 2: nothing found; 8: more than one fits.
    match output.status.code() {
        Some(2) => Ok(None),
        Some(0) => Ok(Some(described(&String::from_utf8_lossy(&output.stdout)))),
        Some(8) => Ok(Some("several that contradict each other".to_owned())),
        _ => Err(refused(
            device,
            &format!("blkid cannot read it ({})", output.status),
        )),
    }
}

/// The kind in blkid's KEY=VALUE lines.
fn described(export: &str) -> String {
    ["TYPE=", "PTTYPE=", "USAGE="]
        .iter()
        .find_map(|key| export.lines().find_map(|line| line.strip_prefix(key)))
        .unwrap_or("unknown")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        25 22 0:5 / /dev rw - devtmpfs devtmpfs rw\n";

    #[test]
    fn test_mounted_at_finds_by_number_and_not_by_prefix() {
        assert_eq!(
            mounted_at(MOUNTS, "254:0"),
            Some("it is mounted on /".to_owned())
        );
        assert_eq!(mounted_at(MOUNTS, "254:1"), None);
        assert_eq!(mounted_at(MOUNTS, "54:0"), None);
    }

    #[test]
    fn test_used_holder_or_partition_is_named() {
        let sysfs = tempfile::tempdir().unwrap();
        let dir = |name: &str| fs::create_dir_all(sysfs.path().join(name)).unwrap();
        dir("holders");
        dir("queue");
        assert_eq!(used(sysfs.path()), None);
        dir("sda1");
        fs::write(sysfs.path().join("sda1/partition"), "1").unwrap();
        assert_eq!(
            used(sysfs.path()),
            Some("it has partitions (sda1)".to_owned())
        );
        dir("holders/dm-0");
        assert_eq!(used(sysfs.path()), Some("it is part of dm-0".to_owned()));
    }

    #[test]
    fn test_signature_of_ext4_and_of_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        assert_eq!(signature(file.path()).unwrap(), None);
        let mke2fs = find_on_path("mke2fs").expect("mke2fs of the package e2fsprogs");
        crate::process::Tool::new(mke2fs)
            .args(["-q", "-F", "-t", "ext4"])
            .arg(file.path())
            .output()
            .unwrap();
        assert_eq!(signature(file.path()).unwrap(), Some("ext4".to_owned()));
    }

    #[test]
    fn test_check_unused_other_files_return_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, part) in [
            (file.path(), "is no block device"),
            (Path::new("/dev/null"), "is no block device"),
            (Path::new("/nonexistent"), "cannot look at"),
        ] {
            let error = check_unused(path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
