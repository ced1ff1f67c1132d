// SPDX-License-Identifier: MIT

//! Taking a PCI device from the driver it has, and giving it back.

use crate::Error;
use crate::guard::{
    self,
    Force, //
};
use std::fs::{
    self,
    File, //
};
use std::io;
use std::path::{
    Path,
    PathBuf, //
};

const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVERS: &str = "/sys/bus/pci/drivers";
const PROBE: &str = "/sys/bus/pci/drivers_probe";

/// The driver that gives devices to userspace.
const VFIO: &str = "vfio-pci";

/// A device that is bound to `vfio-pci`. Dropped, which must be after it was
/// closed, it goes back to whom it belongs.
#[derive(Debug)]
pub(crate) struct Bound {
    address: String,
    dir: PathBuf,
}

/// Whether `text` is a PCI address in full: `0000:00:04.0`.
pub(crate) fn is_address(text: &str) -> bool {
    let pattern = "hhhh:hh:hh.h";
    text.len() == pattern.len()
        && text
            .chars()
            .zip(pattern.chars())
            .all(|(got, want)| match want {
                'h' => got.is_ascii_hexdigit(),
                other => got == other,
            })
}

impl Bound {
    /// Takes the device at `address` whose namespace `nsid` is to be written to.
    /// None of its namespaces may be in use, as all of them go.
    pub(crate) fn take(address: &str, nsid: u32, force: Force) -> Result<Self, Error> {
        let fail = |what, reason: String| Err(Error::device(address, what, reason));
        if !is_address(address) {
            return fail("find it", "no PCI address like 0000:00:04.0".into());
        }
        let dir = Path::new(DEVICES).join(address);
        if !dir.exists() {
            return fail("find it", "there is no such PCI device".into());
        }
        let class = fs::read_to_string(dir.join("class")).unwrap_or_default();
        if class.trim() != "0x010802" {
            return fail(
                "use it",
                format!("its class is {}, not NVMe's", class.trim()),
            );
        }
        if !dir.join("iommu_group").exists() {
            return fail(
                "use it",
                "no IOMMU translates for it: it could write anywhere in memory".into(),
            );
        }
        let bound = Self {
            address: address.to_owned(),
            dir,
        };
        let driver = bound.driver();
        if driver.as_deref() == Some(VFIO) {
            return Ok(bound);
        }
        // Held until it is ours, so that nobody takes it meanwhile.
        let claimed = bound
            .claim(nsid, force)
            .map_err(|error| Error::device(bound.describe(), "take it", error))?;
        let io = |what| move |error: io::Error| Error::device(address, what, error);
        write(&bound.dir.join("driver_override"), VFIO).map_err(io("assign it to vfio-pci"))?;
        // From here on `bound` gives it back, whatever fails.
        if let Some(driver) = driver {
            let unbind = Path::new(DRIVERS).join(driver).join("unbind");
            write(&unbind, address).map_err(io("take it from its driver"))?;
        }
        drop(claimed);
        write(Path::new(PROBE), address).map_err(io("give it to vfio-pci"))?;
        match bound.driver().as_deref() {
            Some(VFIO) => Ok(bound),
            _ => fail("give it to vfio-pci", "is the driver there?".into()),
        }
    }

    /// The folder that describes it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its address, with what the kernel's driver knows of it.
    fn describe(&self) -> String {
        match folders(&self.dir.join("nvme")).first() {
            None => self.address.clone(),
            Some(controller) => guard::describe_by(&self.address, controller),
        }
    }

    fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.dir.join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// Opens all its namespaces alone; the one named must hold nothing, unless
    /// forced.
    fn claim(&self, nsid: u32, force: Force) -> Result<Vec<File>, guard::Refusal> {
        let mut claimed = Vec::new();
        for controller in folders(&self.dir.join("nvme")) {
            for disk in folders(&controller) {
                let Ok(number) = fs::read_to_string(disk.join("nsid")) else {
                    continue;
                };
                let Some(name) = disk.file_name() else {
                    continue;
                };
                let ours = number.trim() == nsid.to_string();
                let force = if ours { force } else { Force::Yes };
                let path = Path::new("/dev").join(name);
                guard::is_not_read(&path)?;
                claimed.push(guard::claim(&path, force)?);
            }
        }
        Ok(claimed)
    }

    /// Gives it back.
    fn release(&self) -> io::Result<()> {
        // A newline stands for none.
        write(&self.dir.join("driver_override"), "\n")?;
        if self.driver().as_deref() == Some(VFIO) {
            write(&Path::new(DRIVERS).join(VFIO).join("unbind"), &self.address)?;
        }
        write(Path::new(PROBE), &self.address)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            eprintln!(
                "warning: {}: cannot give it back to its driver: {error}",
                self.address
            );
        }
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.is_dir());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_address_full_ones_only() {
        assert!(is_address("0000:00:04.0"));
        assert!(is_address("10af:c1:1f.7"));
        for bad in ["", "00:04.0", "0000:00:04", "0000:00:04.00", "../0:00:04.0"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn test_take_what_is_not_there_or_not_nvme_is_refused() {
        let error = Bound::take("ffff:ff:1f.7", 1, Force::No).unwrap_err();
        assert!(error.to_string().contains("no such PCI device"), "{error}");
        let error = Bound::take("nvme0", 1, Force::No).unwrap_err();
        assert!(error.to_string().contains("no PCI address"), "{error}");
    }
}
