// SPDX-License-Identifier: MIT

//! `/dev/ublk-control`: devices are made, started, stopped and deleted by commands
//! to it.

#![expect(unsafe_code, reason = "the kernel is given addresses")]

use crate::error::Error;
use crate::uapi::{
    self,
    ControlCommand,
    DeviceInfo,
    Params, //
};
use io_uring::{
    IoUring,
    cqueue,
    opcode::UringCmd80,
    squeue::Entry128,
    types::Fd, //
};
use rustix::thread::CpuSet;
use std::fs::{
    self,
    File,
    OpenOptions, //
};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{
    Path,
    PathBuf, //
};

/// The driver's control device.
const PATH: &str = "/dev/ublk-control";

/// Marks devices as ours (`ublksrv_flags`), above the number of the process that
/// made them: others' are neither shown nor touched.
const MARK: u64 = (u32::from_be_bytes(*b"obd\0") as u64) << 32;

/// CPUs that fit a set of the kernel's as it is asked for here.
const MAX_CPUS: usize = CpuSet::MAX_CPU;

/// The driver's control device, open.
pub struct Control {
    ring: IoUring<Entry128, cqueue::Entry>,
    file: File,
}

/// A device that is, or was, served by this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// N of `/dev/ublkbN`.
    pub id: u32,
    /// Whether there is a disk.
    pub live: bool,
    /// The process that made it, and serves it.
    pub server: u32,
    /// Whether that process still has it open.
    pub served: bool,
    /// Hardware queues.
    pub queues: u16,
    /// Requests under way in each.
    pub depth: u16,
}

impl Device {
    /// Its name: `ublkbN`.
    pub fn name(&self) -> String {
        name(self.id)
    }
}

/// What disk `id` is called.
pub(crate) fn name(id: u32) -> String {
    format!("ublkb{id}")
}

/// The number of the disk called `name` (with `/dev/` or without), if it can be
/// one of the ublk driver.
pub fn number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let digits = name.strip_prefix("ublkb")?;
    let id = digits.parse().ok()?;
    // One name for each: "ublkb+1" and "ublkb01" are none.
    (self::name(id) == name).then_some(id)
}

impl Control {
    /// Whether the kernel has the driver.
    pub fn exists() -> bool {
        Path::new(PATH).exists()
    }

    /// Opens the driver's control device.
    ///
    /// # Errors
    ///
    /// [`Error::Control`] if it is not there, or not for us.
    pub fn open() -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|source| Error::Control {
                path: PATH.into(),
                source,
            })?;
        // The control device takes commands of 80 bytes only.
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .build(4)
            .map_err(Error::system("set up io_uring"))?;
        Ok(Self { ring, file })
    }

    /// Gives a command to the driver, and waits for its end.
    ///
    /// # Safety
    ///
    /// What the driver does with `command.addr` for `op` must be fine until this
    /// returns.
    unsafe fn command(&mut self, op: u32, command: ControlCommand) -> io::Result<()> {
        let entry = UringCmd80::new(Fd(self.file.as_raw_fd()), op)
            .cmd(command.to_bytes())
            .build();
        // SAFETY: the file is open, and the caller answers for the address.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Commands wait for each other: there is always room.
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        loop {
            let waited = self.ring.submit_and_wait(1);
            if let Some(entry) = self.ring.completion().next() {
                return match entry.result() {
                    result if result >= 0 => Ok(()),
                    result => Err(io::Error::from_raw_os_error(-result)),
                };
            }
            match waited {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }

    /// A command about `device` that has a structure at its address.
    ///
    /// # Safety
    ///
    /// `op` must read and write `len` bytes at `addr` and nothing else, and all
    /// it may write there must be fine.
    unsafe fn exchange(
        &mut self,
        op: u32,
        device: u32,
        data: u64,
        addr: u64,
        len: usize,
    ) -> io::Result<()> {
        let command = ControlCommand {
            dev_id: device,
            queue_id: u16::MAX,
            len: u16::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?,
            addr,
            data,
            dev_path_len: 0,
            pad: 0,
            reserved: 0,
        };
        // SAFETY: the caller's word.
        unsafe { self.command(op, command) }
    }

    /// A command about `device` that has nothing at its address.
    fn plain(&mut self, what: &'static str, op: u32, device: u32, data: u64) -> Result<(), Error> {
        // SAFETY: there is nothing that the driver could read or write.
        unsafe { self.exchange(op, device, data, 0, 0) }.map_err(|source| Error::Command {
            what,
            device: name(device),
            source,
        })
    }

    /// What the driver can do: `UBLK_F_*`.
    pub(crate) fn features(&mut self) -> Result<u64, Error> {
        let mut features = 0_u64;
        let at = (&raw mut features) as u64;
        // SAFETY: the driver writes a number of 64 bits.
        let got = unsafe { self.exchange(uapi::GET_FEATURES, u32::MAX, 0, at, size_of::<u64>()) };
        match got {
            Ok(()) if features & uapi::F_CMD_IOCTL_ENCODE != 0 => Ok(features),
            Ok(()) => Err(Error::Feature("UBLK_F_CMD_IOCTL_ENCODE")),
            // What is older than the command knows it as none.
            Err(error) => match error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error)
            {
                Some(
                    rustix::io::Errno::OPNOTSUPP
                    | rustix::io::Errno::INVAL
                    | rustix::io::Errno::NODEV,
                ) => Err(Error::Feature("UBLK_U_CMD_GET_FEATURES")),
                _ => Err(Error::System {
                    what: "ask the ublk driver what it can do",
                    source: error,
                }),
            },
        }
    }

    /// Makes a device with that many queues, that deep each, for requests of
    /// `max_bytes` at most. The driver may give fewer queues.
    pub(crate) fn add(
        &mut self,
        queues: u16,
        depth: u16,
        max_bytes: u32,
        flags: u64,
    ) -> Result<DeviceInfo, Error> {
        let mut info = DeviceInfo {
            nr_hw_queues: queues,
            queue_depth: depth,
            max_io_buf_bytes: max_bytes,
            // Any that is free.
            dev_id: u32::MAX,
            flags,
            ublksrv_flags: MARK | u64::from(std::process::id()),
            ..DeviceInfo::default()
        };
        let at = (&raw mut info) as u64;
        // SAFETY: the driver reads and writes such a structure, of integers.
        unsafe { self.exchange(uapi::ADD_DEV, u32::MAX, 0, at, size_of::<DeviceInfo>()) }
            .map_err(Error::system("add a ublk device"))?;
        Ok(info)
    }

    /// What is to be known of device `id`; [`None`] if it is not there, or
    /// somebody else's.
    pub(crate) fn info(&mut self, id: u32) -> Result<Option<DeviceInfo>, Error> {
        let mut info = DeviceInfo::default();
        let at = (&raw mut info) as u64;
        // SAFETY: the driver writes such a structure, of integers.
        let got = unsafe { self.exchange(uapi::GET_DEV_INFO, id, 0, at, size_of::<DeviceInfo>()) };
        match got {
            Ok(()) => Ok(Some(info).filter(|info| info.ublksrv_flags >> 32 == MARK >> 32)),
            Err(error) if gone(&error) => Ok(None),
            Err(source) => Err(Error::Command {
                what: "look at",
                device: name(id),
                source,
            }),
        }
    }

    /// Device `id`, if it is there and ours.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] if the driver does not say.
    pub fn device(&mut self, id: u32) -> Result<Option<Device>, Error> {
        Ok(self.info(id)?.map(|info| Device {
            id,
            live: info.state == uapi::STATE_LIVE,
            // The low half.
            server: info.ublksrv_flags as u32,
            served: info.ublksrv_pid > 0,
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
        }))
    }

    /// The CPUs whose requests come by `queue` of device `id`.
    pub(crate) fn affinity(&mut self, id: u32, queue: u16) -> Result<CpuSet, Error> {
        let mut words = [0_u64; MAX_CPUS / 64];
        let at = words.as_mut_ptr() as u64;
        // SAFETY: the driver writes that many bytes at most.
        unsafe {
            self.exchange(
                uapi::GET_QUEUE_AFFINITY,
                id,
                u64::from(queue),
                at,
                size_of_val(&words),
            )
        }
        .map_err(|source| Error::Command {
            what: "find the processors of",
            device: name(id),
            source,
        })?;
        let mut set = CpuSet::new();
        for cpu in 0..MAX_CPUS {
            if words[cpu / 64] & (1 << (cpu % 64)) != 0 {
                set.set(cpu);
            }
        }
        Ok(set)
    }

    /// Says what the disk of device `id` is like.
    pub(crate) fn set_params(&mut self, id: u32, mut params: Params) -> Result<(), Error> {
        params.len = size_of::<Params>() as u32;
        let at = (&raw mut params) as u64;
        // SAFETY: the driver reads such a structure.
        unsafe { self.exchange(uapi::SET_PARAMS, id, 0, at, size_of::<Params>()) }.map_err(
            |source| Error::Command {
                what: "set the parameters of",
                device: name(id),
                source,
            },
        )
    }

    /// Makes the disk of device `id`, whose queues this process serves.
    pub(crate) fn start(&mut self, id: u32) -> Result<(), Error> {
        let pid = u64::from(std::process::id());
        self.plain("start", uapi::START_DEV, id, pid)
    }

    /// Takes the disk of device `id` away; with `force` from who has it open, too.
    /// Returns when its last read has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Command`], with `EBUSY` if it is in use.
    pub fn stop(&mut self, id: u32, force: bool) -> Result<(), Error> {
        let mut op = uapi::STOP_DEV;
        if !force {
            if self.features()? & uapi::F_SAFE_STOP_DEV != 0 {
                op = uapi::TRY_STOP_DEV;
            } else {
                Self::claim(id)?;
            }
        }
        match self.plain("stop", op, id, 0) {
            // Stopped already.
            Err(Error::Command { source, .. }) if gone(&source) => Ok(()),
            result => result,
        }
    }

    /// Whether nobody uses disk `id`, as far as an older driver lets one know: a
    /// mounted one is noticed, one that is only open is not.
    fn claim(id: u32) -> Result<(), Error> {
        let path = PathBuf::from("/dev").join(name(id));
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL;
        match rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO) => Ok(()),
            Err(errno) => Err(Error::Command {
                what: "stop",
                device: name(id),
                source: errno.into(),
            }),
        }
    }

    /// Deletes device `id`, which goes when nobody has its files open.
    ///
    /// # Errors
    ///
    /// [`Error::Command`].
    pub fn delete(&mut self, id: u32) -> Result<(), Error> {
        match self.plain("delete", uapi::DEL_DEV_ASYNC, id, 0) {
            Err(Error::Command { source, .. }) if gone(&source) => Ok(()),
            result => result,
        }
    }
}

/// Whether a command failed because the device, or its disk, is not there.
fn gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// The numbers of all ublk devices, anybody's.
///
/// # Errors
///
/// What the system says of `/dev`.
pub fn numbers() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("ublkc"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_disks() {
        assert_eq!(number("/dev/ublkb7"), Some(7));
        assert_eq!(number("ublkb0"), Some(0));
        for other in [
            "obd0",
            "ublkb",
            "ublkb+1",
            "ublkb01",
            "ublkc1",
            "/dev/ublkb1p1",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
        assert_eq!(number(&name(u32::MAX)), Some(u32::MAX));
    }
}
