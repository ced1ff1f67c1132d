// SPDX-License-Identifier: MIT

//! Whether a target may be taken: nothing is written to what somebody uses, nor
//! without being told so to what somebody seems to need.

#![expect(unsafe_code, reason = "ioctls without safe wrappers")]

use crate::{
    Identity,
    passthrough, //
};
use rustix::fs::{
    FileType,
    FlockOperation,
    Mode,
    OFlags,
    SeekFrom, //
};
use rustix::io::Errno;
use std::fs::{
    self,
    File, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};

/// Whether content that looks as if it were needed is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// No.
    No,
    /// Only content with this signature, which is what is wanted.
    Holds(&'static str),
    /// Yes: partitions and signatures are ignored.
    Yes,
}

impl Force {
    /// Whether a target with the signature `found` may be taken.
    ///
    /// # Errors
    ///
    /// [`Refusal::Signature`].
    pub fn check(self, found: Option<&'static str>) -> Result<(), Refusal> {
        match (self, found) {
            (Force::Yes, _) | (_, None) => Ok(()),
            (Force::Holds(wanted), Some(found)) if wanted == found => Ok(()),
            (_, Some(found)) => Err(Refusal::Signature(found)),
        }
    }
}

/// The signature of a layer store.
pub const STORE: &str = "a layer store";

/// Why a target is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It, or a partition of it, is mounted.
    #[error("it is mounted at {0}")]
    Mounted(String),
    /// Another device is made of it.
    #[error("{0} is made of it")]
    Held(String),
    /// Another process or the kernel has it.
    #[error("somebody else has it in use")]
    Busy,
    /// It has partitions.
    #[error("it has the partition {0}; --force ignores that")]
    Partitioned(String),
    /// It seems to hold something.
    #[error("it holds {0}; --force ignores that")]
    Signature(&'static str),
    /// It is neither a file nor a block device.
    #[error("it is neither a file nor a block device")]
    Kind,
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Refusal::Io(error.into())
    }
}

/// Opens the file or block device at `path` for reading and writing, alone.
///
/// The kernel refuses a second exclusive opener of a device, and whoever mounts
/// it, for as long as the file lives. Files are locked (`flock`).
///
/// # Errors
///
/// [`Refusal`].
pub fn claim(path: &Path, force: Force) -> Result<File, Refusal> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let kind = FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
    let file: File = match kind {
        FileType::RegularFile => {
            let file = rustix::fs::open(path, flags, Mode::empty())?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(Refusal::Busy),
                other => other?,
            }
            file.into()
        }
        FileType::BlockDevice => {
            // Who has it is easier to say before the kernel just says "busy".
            in_use(path)?;
            match rustix::fs::open(path, flags | OFlags::EXCL, Mode::empty()) {
                Err(Errno::BUSY) => return Err(Refusal::Busy),
                other => other?.into(),
            }
        }
        _ => return Err(Refusal::Kind),
    };
    if force != Force::Yes {
        if kind == FileType::BlockDevice
            && let Some(partition) = partitions(&sysfs(path)?).into_iter().next()
        {
            return Err(Refusal::Partitioned(partition));
        }
        force.check(signature(&file)?)?;
    }
    Ok(file)
}

/// What `name` is called in a refusal: with model and serial number, as far as the block
/// device at `path` has them.
pub(crate) fn describe(name: &str, path: &Path) -> String {
    let found = rustix::fs::stat(path).ok().and_then(|stat| {
        let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        is_block.then(|| disk(stat.st_rdev).ok()).flatten()
    });
    match found {
        None => name.to_owned(),
        Some(disk) => describe_by(name, &disk.join("device")),
    }
}

/// The same, as the folder says that describes the device.
pub(crate) fn describe_by(name: &str, folder: &Path) -> String {
    let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    describe_as(name, text("model").trim(), text("serial").trim())
}

/// The same, of a device with this model and serial number, or none.
pub(crate) fn describe_as(name: &str, model: &str, serial: &str) -> String {
    match (model, serial) {
        ("", "") => name.to_owned(),
        (model, "") => format!("{name} ({model})"),
        ("", serial) => format!("{name} (serial {serial})"),
        (model, serial) => format!("{name} ({model}, serial {serial})"),
    }
}

/// Where the driver of overlaybd images is configured.
const DISKS: &str = "/sys/kernel/config/obd";

/// Refuses a block device that a disk of the driver of overlaybd images reads layers
/// from, all of it or a part: its layers must stay as they are, and where they are. Others
/// may be added.
///
/// # Errors
///
/// [`Refusal::Held`], what the system says.
pub fn is_not_read(path: &Path) -> Result<(), Refusal> {
    // What is no file's name is none of them.
    let block = passthrough::block_device(path).ok().flatten();
    let path = block.as_deref().unwrap_or(path);
    let device = |path: &Path| {
        let stat = rustix::fs::stat(path).ok()?;
        let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        is_block.then_some(stat.st_rdev)
    };
    let Some(ours) = device(path) else {
        return Ok(());
    };
    for name in names(Path::new(DISKS)) {
        let dir = Path::new(DISKS).join(&name);
        // What is no disk's folder has none.
        let layers = fs::read_to_string(dir.join("layers")).unwrap_or_default();
        let disk = fs::read_to_string(dir.join("device")).unwrap_or_default();
        let paths = layers.lines().map(|line| match line.split_once(' ') {
            // START+LEN PATH
            Some((_, path)) if !line.starts_with('/') => path,
            _ => line,
        });
        let mut devices = paths.filter_map(|path| device(Path::new(path)));
        if !disk.trim().is_empty() && devices.any(|it| it == ours) {
            return Err(Refusal::Held(disk.trim().to_owned()));
        }
    }
    Ok(())
}

/// Refuses a block device that is mounted, or that another is made of; so for
/// all of its partitions.
fn in_use(path: &Path) -> Result<(), Refusal> {
    let sysfs = sysfs(path)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut parts = vec![sysfs.clone()];
    parts.extend(partitions(&sysfs).iter().map(|name| sysfs.join(name)));
    for part in parts {
        let number = fs::read_to_string(part.join("dev"))?;
        if let Some(at) = mounted(&mounts, number.trim()) {
            return Err(Refusal::Mounted(at.to_owned()));
        }
        if let Some(holder) = names(&part.join("holders")).into_iter().next() {
            return Err(Refusal::Held(holder));
        }
    }
    Ok(())
}

/// Where device `number` ("major:minor") is mounted (proc(5), mountinfo).
fn mounted<'a>(mounts: &'a str, number: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let found = fields.next() == Some(number);
        // The root within the filesystem, then where it is.
        fields.nth(1).filter(|_| found)
    })
}

/// The folder that describes device `number`, of the kind `block` or `char`.
pub(crate) fn folder(kind: &str, number: u64) -> io::Result<PathBuf> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    fs::canonicalize(format!("/sys/dev/{kind}/{major}:{minor}"))
}

/// The folder that describes the block device at `path`.
fn sysfs(path: &Path) -> io::Result<PathBuf> {
    folder("block", rustix::fs::stat(path)?.st_rdev)
}

/// Names of the partitions of a block device, in order.
fn partitions(sysfs: &Path) -> Vec<String> {
    let mut found = names(sysfs);
    found.retain(|name| sysfs.join(name).join("partition").exists());
    found.sort();
    found
}

/// Names in a folder; none if there is no such folder.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What is found where, and what that means. Positions are those libblkid looks
/// at, and those of overlaybd's formats.
const SIGNATURES: [(u64, &[u8], &str); 26] = [
    (0, b"LSMT\0\x01\x02\0", "an overlaybd layer"),
    (0, b"ZFile\0\x01\0", "a zfile"),
    (0, b"OBDSTORE", STORE),
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"hsqs", "a squashfs filesystem"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (54, b"FAT", "a FAT filesystem"),
    (82, b"FAT32", "a FAT filesystem"),
    (257, b"ustar", "a tar archive"),
    (512, b"EFI PART", "a GUID partition table"),
    (4096, b"EFI PART", "a GUID partition table"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS filesystem"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 filesystem"),
    (0, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096 + 24, b"\xc6\x85\x73\xf6", "a bcache device"),
    (32769, b"CD001", "an ISO 9660 filesystem"),
    (65536 + 64, b"_BHRfS_M", "a btrfs filesystem"),
    (131_072, b"\x0c\xb1\xba\0", "a ZFS pool"),
    // Last: boot sectors of filesystems have it, too.
    (510, b"\x55\xaa", "a partition table"),
];

/// What a file or device holds, by its first bytes; [`None`] if that is nothing
/// known.
///
/// # Errors
///
/// What the system says.
pub fn signature(file: &File) -> io::Result<Option<&'static str>> {
    let end = SIGNATURES
        .iter()
        .map(|(at, magic, _)| at + magic.len() as u64);
    let mut head = vec![0; end.max().unwrap_or(0) as usize];
    let mut len = 0;
    while len < head.len() {
        match file.read_at(&mut head[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(find_signature(&head[..len]))
}

/// What content that begins with `head` is.
pub fn find_signature(head: &[u8]) -> Option<&'static str> {
    SIGNATURES.iter().find_map(|&(at, magic, name)| {
        let there = head.get(at as usize..)?.get(..magic.len())?;
        (there == magic).then_some(name)
    })
}

/// Whether it is a block device.
pub(crate) fn is_block_device(file: &File) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::BlockDevice)
}

/// What is known of an open file or block device, which `path` names.
///
/// # Errors
///
/// What the system says; something that is neither is refused.
pub fn identify(file: &File, path: &Path) -> io::Result<Identity> {
    let stat = rustix::fs::fstat(file)?;
    let mut identity = Identity {
        name: path.display().to_string(),
        model: String::new(),
        serial: String::new(),
        size: rustix::fs::seek(file, SeekFrom::End(0))?,
        // No filesystem wants more for O_DIRECT, and whatever it is on does
        // single sectors whole or not at all.
        block_size: 4096,
        atomic_unit: 512,
        max_transfer: 1 << 30,
        volatile_cache: true,
        discard: true,
        write_zeroes: true,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::BlockDevice => {
            identity.block_size = rustix::fs::ioctl_blksszget(file)?;
            let disk = disk(stat.st_rdev)?;
            let text = |name: &str| {
                fs::read_to_string(disk.join(name))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
            identity.model = text("device/model");
            identity.serial = text("device/serial");
            // What it does not say is as bad as it can be.
            identity.volatile_cache = text("queue/write_cache") != "write through";
            identity.max_transfer = number("queue/max_sectors_kb").max(4) << 10;
            identity.discard = number("queue/discard_max_bytes") > 0;
            let atomic = number("queue/atomic_write_unit_max_bytes").min(1 << 20) as u32;
            identity.atomic_unit = atomic.max(identity.block_size);
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    identity.size -= identity.size % u64::from(identity.block_size);
    Ok(identity)
}

/// The folder that describes the disk that block device `number` is, or is a part of.
fn disk(number: u64) -> io::Result<PathBuf> {
    let dir = folder("block", number)?;
    // A partition has the queue of its disk.
    Ok(match dir.join("partition").exists() {
        true => dir.parent().map(Path::to_path_buf).unwrap_or(dir),
        false => dir,
    })
}

/// The number `name` of a block device's queue.
pub(crate) fn queue_number(file: &File, name: &str) -> io::Result<u64> {
    let disk = disk(rustix::fs::fstat(file)?.st_rdev)?;
    let text = fs::read_to_string(disk.join("queue").join(name))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("queue/{name} is {:?}", text.trim())))
}

/// `BLKDISCARD` of `linux/fs.h`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Discards a range of a block device.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two numbers from where it is pointed to.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `BLKFLSBUF` of `linux/fs.h`: `_IO(0x12, 97)`.
const BLKFLSBUF: libc::Ioctl = 0x1261;

/// Drops what the page cache has of a block device.
pub(crate) fn forget_cached(file: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF has no argument.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKFLSBUF) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_mounted_finds_the_device_and_no_other() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 8:17 /sub /mnt/x rw,noatime shared:1 - xfs /dev/sdb1 rw\n";
        assert_eq!(mounted(mounts, "8:1"), Some("/"));
        assert_eq!(mounted(mounts, "8:17"), Some("/mnt/x"));
        assert_eq!(mounted(mounts, "8:16"), None);
    }

    #[test]
    fn test_signature_every_one_is_found() {
        for (at, magic, name) in SIGNATURES {
            let mut head = vec![0; 1 << 18];
            head[at as usize..][..magic.len()].copy_from_slice(magic);
            assert_eq!(find_signature(&head), Some(name), "{at}");
            assert_eq!(find_signature(&head[..at as usize]), None);
        }
        assert_eq!(find_signature(&[0; 1 << 18]), None);
    }

    #[test]
    fn test_describe_says_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let name = || describe_by("x", dir.path());
        assert_eq!(name(), "x");
        fs::write(dir.path().join("serial"), " S1 \n").unwrap();
        assert_eq!(name(), "x (serial S1)");
        fs::write(dir.path().join("model"), "Fast One   \n").unwrap();
        assert_eq!(name(), "x (Fast One, serial S1)");
        fs::write(dir.path().join("serial"), "").unwrap();
        assert_eq!(name(), "x (Fast One)");
        assert_eq!(describe("x", Path::new("/nowhere")), "x");
        assert_eq!(describe("x", Path::new("/dev/null")), "x");
    }

    #[test]
    fn test_claim_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let first = claim(file.path(), Force::No).unwrap();
        let second = claim(file.path(), Force::Yes);
        assert!(matches!(second, Err(Refusal::Busy)), "{second:?}");
        drop(first);
        file.as_file().write_all_at(b"hsqs", 0).unwrap();
        let refused = claim(file.path(), Force::No).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "it holds a squashfs filesystem; --force ignores that"
        );
        claim(file.path(), Force::Yes).unwrap();
        let refused = claim(file.path(), Force::Holds(STORE));
        assert!(matches!(refused, Err(Refusal::Signature(_))));
        file.as_file().write_all_at(b"OBDSTORE", 0).unwrap();
        claim(file.path(), Force::Holds(STORE)).unwrap();
        assert!(claim(file.path(), Force::No).is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(claim(dir.path(), Force::Yes), Err(Refusal::Kind)));
    }
}
