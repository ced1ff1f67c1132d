// SPDX-License-Identifier: MIT

//! The kernel's driver, as configfs shows it.

use crate::error::{
    Error,
    Result, //
};
use crate::writable::Writing;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{
    self,
    OpenOptions, //
};
use std::io::{
    self,
    Write, //
};
use std::os::unix::ffi::OsStrExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;
use std::time::Duration;

/// Where configfs shows the driver.
const DRIVER: &str = "/sys/kernel/config/obd";

/// How often to look whether a disk is gone.
const POLL: Duration = Duration::from_millis(5);

/// The number of a disk, which no other one has or will have; none if it is not
/// there.
pub(crate) fn sequence(disk: &str) -> Option<Vec<u8>> {
    fs::read(Path::new("/sys/class/block").join(disk).join("diskseq")).ok()
}

/// The driver's folder, which `--configfs` names.
pub(crate) struct Driver(PathBuf);

/// A device of the driver's.
pub(crate) struct Device {
    name: String,
    path: PathBuf,
}

/// How a disk can be written to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Writable {
    /// Whether flushes are answered at once.
    pub(crate) volatile: bool,
    /// Bytes in memory at most, as the driver's own if there is none, as below.
    pub(crate) memory: Option<u64>,
    /// Bytes that are committed without being asked.
    pub(crate) commit_bytes: Option<u64>,
    /// Milliseconds after which they are.
    pub(crate) commit_ms: Option<u32>,
    /// Milliseconds without a writer after which nothing is written.
    pub(crate) writer_ms: Option<u32>,
}

/// What there is to know of a device.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    /// Its name in configfs.
    pub(crate) name: String,
    /// The disk, if it is attached.
    pub(crate) device: Option<PathBuf>,
    /// Its layers, bottom to top: as many as configfs shows at once.
    pub(crate) layers: Vec<PathBuf>,
    /// Whether it is the content of one zfile.
    pub(crate) zfile: bool,
    /// Whether it can be written to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) writable: bool,
    /// Whether what was written to it need not survive.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) volatile: bool,
    /// The process that makes layers of what is written to it, as far as it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) writer: Option<Writing>,
    /// The process that serves it, if it is one of the ublk driver's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<u32>,
    /// Sizes and counters, while it is attached.
    pub(crate) stats: BTreeMap<String, u64>,
}

impl Driver {
    /// The driver's folder `at`, or where it usually is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it is not there: the driver is not loaded, or configfs
    /// not mounted.
    pub(crate) fn new(at: Option<&Path>) -> Result<Self> {
        let path = at.unwrap_or(Path::new(DRIVER));
        match fs::metadata(path) {
            Ok(_) => Ok(Self(path.into())),
            Err(error) => Err(Error::io("find the driver (module obd) at", path, error)),
        }
    }

    /// Makes a device called `name`, or the first free `imageN`.
    pub(crate) fn create(&self, name: Option<&str>) -> Result<Device> {
        let names: Vec<String> = match name {
            Some(name) => vec![name.to_owned()],
            None => (0..=u16::MAX).map(|i| format!("image{i}")).collect(),
        };
        let mut taken = String::new();
        for name in names {
            if name.contains('/') || name.starts_with('.') {
                return Err(Error::Device {
                    name,
                    reason: "is no name for a device",
                });
            }
            let path = self.0.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Device { name, path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = name,
                Err(error) => return Err(Error::io("create", path, error)),
            }
        }
        Err(Error::Device {
            name: taken,
            reason: "exists",
        })
    }

    /// The device called `name`, by its own name or its disk's.
    pub(crate) fn find(&self, name: &str) -> Result<Device> {
        let disk = name.strip_prefix("/dev/").unwrap_or(name);
        self.devices()?
            .into_iter()
            .find(|device| {
                device.name == name
                    || device
                        .disk()
                        .is_ok_and(|found| found.as_deref() == Some(disk))
            })
            .ok_or_else(|| Error::Device {
                name: name.into(),
                reason: "is not attached",
            })
    }

    /// All devices, by name.
    pub(crate) fn devices(&self) -> Result<Vec<Device>> {
        let fail = |error| Error::io("list", &self.0, error);
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_type().map_err(fail)?.is_dir() {
                devices.push(Device {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    path: entry.path(),
                });
            }
        }
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(devices)
    }
}

impl Device {
    /// Its name in configfs.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read(&path)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .map_err(|error| Error::io("read", path, error))
    }

    fn write(&self, file: &str, text: &[u8]) -> io::Result<()> {
        fs::write(self.path.join(file), text)
    }

    fn set(&self, file: &str, text: &[u8]) -> Result<()> {
        self.write(file, text)
            .map_err(|error| Error::io("write", self.path.join(file), error))
    }

    /// Attaches `layers`, bottom to top, or the zfile they are, and returns
    /// the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`] with what the driver said of the image.
    pub(crate) fn attach(&self, layers: &[PathBuf], zfile: bool) -> Result<PathBuf> {
        // One write per path: a write is at most a page.
        for layer in layers {
            self.set("layers", layer.as_os_str().as_bytes())?;
        }
        self.set("zfile", if zfile { b"1" } else { b"0" })?;
        self.power_on()
    }

    /// Attaches `layers`, bottom to top, as a disk that can be written to, and
    /// returns the disk.
    ///
    /// # Errors
    ///
    /// As [`Device::attach`].
    pub(crate) fn attach_writable(&self, layers: &[PathBuf], how: &Writable) -> Result<PathBuf> {
        if !self.path.join("writable").exists() {
            return Err(Error::Device {
                name: self.name.clone(),
                reason: "the driver has no disks that can be written to",
            });
        }
        for layer in layers {
            self.set("layers", layer.as_os_str().as_bytes())?;
        }
        self.set("writable", b"1")?;
        self.set("volatile", if how.volatile { b"1" } else { b"0" })?;
        for (file, number) in [
            ("memory", how.memory),
            ("commit_bytes", how.commit_bytes),
            ("commit_ms", how.commit_ms.map(u64::from)),
            ("writer_ms", how.writer_ms.map(u64::from)),
        ] {
            if let Some(number) = number {
                self.set(file, number.to_string().as_bytes())?;
            }
        }
        self.power_on()
    }

    /// Has the driver make the disk, and returns that.
    fn power_on(&self) -> Result<PathBuf> {
        self.write("power", b"1").map_err(|error| {
            let reason = self.read("error").unwrap_or_default();
            match reason.trim() {
                "" => Error::io("attach", self.path.clone(), error),
                reason => Error::Attach {
                    name: self.name.clone(),
                    reason: reason.into(),
                    image: matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::UCLEAN | Errno::OPNOTSUPP | Errno::INVAL)
                    ),
                },
            }
        })?;
        self.disk()?
            .map(|disk| Path::new("/dev").join(disk))
            .ok_or(Error::Device {
                name: self.name.clone(),
                reason: "was detached by somebody else",
            })
    }

    /// The disk's name, while it is attached.
    fn disk(&self) -> Result<Option<String>> {
        let name = self.read("device")?.trim().to_owned();
        Ok(Some(name).filter(|name| !name.is_empty()))
    }

    /// Detaches and removes it, and the disk is gone; one in use only if `force`
    /// says so. Its reads and files may end a little later then.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if a signal came while that was waited for.
    pub(crate) fn detach(&self, force: bool, interrupted: &AtomicBool) -> Result<()> {
        let disk = self.disk()?.unwrap_or_default();
        let before = sequence(&disk);
        // Waits until all has ended, which removing does not.
        let off = self.power_off(interrupted);
        if let (Err(error), false) = (off, force) {
            return Err(match interrupted.load(Ordering::Relaxed) {
                true => Error::Interrupted,
                false => self.refused(error),
            });
        }
        fs::remove_dir(&self.path).map_err(|error| Error::io("remove", &self.path, error))?;
        // Another disk may have its name soon, but not its number.
        while before.is_some() && sequence(&disk) == before {
            if interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Has the driver take the disk away, which waits for what was written to it, and
    /// that for as long as there is no room: a signal ends it.
    fn power_off(&self, interrupted: &AtomicBool) -> io::Result<()> {
        let mut power = OpenOptions::new()
            .write(true)
            .open(self.path.join("power"))?;
        loop {
            match power.write(b"0") {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    if interrupted.load(Ordering::Relaxed) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Why it cannot be detached.
    fn refused(&self, error: io::Error) -> Error {
        let reason = self.read("error").unwrap_or_default();
        match (self.is("writable"), reason.trim()) {
            (true, reason) if !reason.is_empty() => Error::Busy {
                path: self.path.clone(),
                reason: format!("cannot be detached: {reason}"),
            },
            (true, _) if Errno::from_io_error(&error) == Some(Errno::BUSY) => Error::Busy {
                path: self.path.clone(),
                reason: "is in use, or has data in memory and no writer".into(),
            },
            (true, _) if Errno::from_io_error(&error) == Some(Errno::IO) => Error::Busy {
                path: self.path.clone(),
                reason: "its last writes could not be committed: it stays, see the log".into(),
            },
            _ => Error::io("write", self.path.join("power"), error),
        }
    }

    /// Whether an attribute, which older drivers need not have, is 1.
    fn is(&self, file: &str) -> bool {
        self.read(file).is_ok_and(|text| text.trim() == "1")
    }

    /// What there is to know of it.
    pub(crate) fn status(&self) -> Result<Status> {
        let stats = self.read("stats")?;
        Ok(Status {
            name: self.name.clone(),
            device: self.disk()?.map(|disk| Path::new("/dev").join(disk)),
            layers: self.read("layers")?.lines().map(PathBuf::from).collect(),
            zfile: self.read("zfile")?.trim() == "1",
            writable: self.is("writable"),
            volatile: self.is("volatile"),
            writer: None,
            server: None,
            stats: stats
                .lines()
                .filter_map(|line| {
                    let (name, value) = line.split_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                })
                .collect(),
        })
    }
}
