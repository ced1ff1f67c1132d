// SPDX-License-Identifier: MIT
//! The real machine as target: it has booted the patched kernel, and the stack
//! is switched at run time.

use super::block_device::check_unused;
use super::db;
use super::emulated::failed;
use super::fio;
use super::image::{
    tidy,
    write_random, //
};
use super::sample::Measured;
use super::schedule::Target;
use super::script;
use super::script::Tools;
use super::workload::{
    Sizing,
    Workload, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::{
    Tool,
    find_on_path, //
};
use crate::report::schema::HostInfo;
use crate::space;
use crate::stack::Stack;
use std::fs;
use std::fs::File;
use std::os::unix::fs::{
    FileTypeExt,
    MetadataExt, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// The patched kernel's master switch.
const SWITCH: &str = "/sys/kernel/aios/enabled";
/// ext4's option that opts a mount in.
const OPTION: &str = "aios";

/// What a real machine measures on.
#[derive(Debug)]
pub(crate) struct Host {
    // Dropped in this order: the switch back, the files away, the unmount.
    switch: Switch,
    files: Files,
    _mounted: Option<Mounted>,
    tools: Tools,
    sizing: Sizing,
    info: HostInfo,
}

/// The files that are measured.
#[derive(Debug)]
enum Files {
    /// A fresh folder of ours, removed at the end.
    Ours(tempfile::TempDir),
    /// A file of the user's, only read; and an empty folder to stand in.
    Given(PathBuf, tempfile::TempDir),
}

impl Host {
    /// Prepares `target`: a folder or a file on an ext4 mounted with the
    /// option `aios`, or, with `write`, an unused block device.
    pub(crate) fn prepare(
        ctx: &Context,
        target: &Path,
        write: bool,
        workloads: &[Workload],
        sizing: Sizing,
        tools: Tools,
    ) -> Result<Self> {
        let switch = Switch::open(Path::new(SWITCH))?;
        let metadata = fs::metadata(target).at("look at", target)?;
        let kind = metadata.file_type();
        let (place, mounted) = if kind.is_block_device() {
            if !write {
                return Err(Error::new(format!(
                    "{} is a block device: all that is on it would be lost",
                    target.display()
                ))
                .hint("pass --write if that is meant, or give a folder on a mounted ext4"));
            }
            check_unused(target)?;
            let mounted = Mounted::format(target)?;
            (mounted.dir.path().to_owned(), Some(mounted))
        } else if kind.is_dir() || kind.is_file() {
            (fs::canonicalize(target).at("resolve", target)?, None)
        } else {
            return Err(Error::new(format!(
                "{} is neither a file nor a folder nor a block device",
                target.display()
            )));
        };
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").at("read", "/proc/self/mountinfo")?;
        let mount = Mount::of(&place, &mounts)
            .ok_or_else(|| Error::new(format!("{} is on no known mount", place.display())))?;
        mount.check()?;
        let files = if kind.is_file() {
            Files::Given(
                place,
                tempfile::tempdir().at("create a folder in", std::env::temp_dir())?,
            )
        } else {
            make_files(ctx, &place, workloads, &sizing, &tools)?
        };
        Ok(Self {
            switch,
            files,
            _mounted: mounted,
            tools,
            sizing,
            info: HostInfo {
                target: target.display().to_string(),
                mount: mount.describe(),
            },
        })
    }

    /// What is measured, for the report.
    pub(crate) fn info(&self) -> HostInfo {
        self.info.clone()
    }

    /// Runs `workloads` on whatever is switched on.
    fn measure_one(&self, workloads: &[Workload], seed: u64) -> Result<Vec<Measured>> {
        let given = match &self.files {
            Files::Ours(dir) => {
                forget(dir.path())?;
                None
            }
            Files::Given(file, _) => {
                forget(file)?;
                Some(file.to_string_lossy())
            }
        };
        let script = script::of(workloads, &self.tools, given.as_deref(), &self.sizing, seed);
        let output = Tool::new("/bin/sh")
            .args(["-c", &script])
            .dir(self.dir())
            .command()
            .output()
            .at("run", "/bin/sh")?;
        if !output.status.success() {
            return Err(failed(output.status.code().unwrap_or(-1), &output.stderr));
        }
        script::parse(workloads, &String::from_utf8_lossy(&output.stdout))
    }

    fn dir(&self) -> &Path {
        match &self.files {
            Files::Ours(dir) | Files::Given(_, dir) => dir.path(),
        }
    }
}

/// Splits `workloads` into those that `target` serves and a note about each of
/// the others: a given file is never written.
pub(crate) fn servable(
    target: &Path,
    workloads: Vec<Workload>,
) -> Result<(Vec<Workload>, Vec<String>)> {
    let metadata = fs::metadata(target).at("look at", target)?;
    if !metadata.file_type().is_file() {
        return Ok((workloads, Vec::new()));
    }
    let (left_out, served): (Vec<_>, Vec<_>) = workloads.into_iter().partition(Workload::writes);
    if served.is_empty() {
        return Err(
            Error::new("a given file is only read, and no workload chosen only reads")
                .hint("give a folder instead of a file, or choose others with --only"),
        );
    }
    let note = |workload: &Workload| {
        format!(
            "{} left out: it writes, and a given file is only read",
            workload.name
        )
    };
    let notes = left_out.iter().map(note).collect();
    Ok((served, notes))
}

/// Size of a given file in MiB, for fio.
pub(crate) fn given_mib(target: &Path) -> Result<Option<u64>> {
    let metadata = fs::metadata(target).at("look at", target)?;
    if !metadata.file_type().is_file() {
        return Ok(None);
    }
    let mib = metadata.size() >> 20;
    if mib < 16 {
        return Err(
            Error::new(format!("{} is too small to measure on", target.display()))
                .hint("give a file of 16 MiB or more; several GiB are better"),
        );
    }
    Ok(Some(mib))
}

impl Target for Host {
    fn stacks(&self) -> &'static [Stack] {
        &[Stack::Off, Stack::Async]
    }

    fn measure(
        &mut self,
        order: &[Stack],
        workloads: &[Workload],
        seed: u64,
    ) -> Result<Vec<(Stack, Vec<Measured>)>> {
        let mut all = Vec::new();
        for stack in order {
            self.switch.set(*stack == Stack::Async)?;
            let measured = self
                .measure_one(workloads, seed)
                .map_err(|error| error.context(format!("on {}", stack.name())))?;
            all.push((*stack, measured));
        }
        Ok(all)
    }
}

/// Writes a file or all files of a folder out and drops them from the page cache.
fn forget(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).at("read the folder", path)? {
            forget(&entry.at("read the folder", path)?.path())?;
        }
        return Ok(());
    }
    let file = File::open(path).at("open", path)?;
    file.sync_all().at("write out", path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|error| Error::io("drop from the page cache", path, &error.into()))
}

/// Makes fio's file and the database in a folder of ours inside `place`.
fn make_files(
    ctx: &Context,
    place: &Path,
    workloads: &[Workload],
    sizing: &Sizing,
    tools: &Tools,
) -> Result<Files> {
    let db_bytes = if workloads.iter().any(Workload::needs_db) {
        db::base_bytes(sizing.keys)
    } else {
        0
    };
    let needed = (sizing.file_mib << 20) + db_bytes + (512 << 20);
    space::check(place, needed, "the files to measure on")?;
    let dir = tempfile::Builder::new()
        .prefix("aios-compare-")
        .tempdir_in(place)
        .at("create a folder in", place)?;
    let bar = ctx.ui.spinner("writing the files to measure on");
    write_random(&dir.path().join(fio::DATA), sizing.file_mib)?;
    if db_bytes > 0 {
        Tool::new(&tools.db_bench)
            .args(db::fill_args(sizing.keys))
            .dir(dir.path())
            .output()?;
        tidy(&dir.path().join(db::BASE))?;
    }
    bar.finish_and_clear();
    Ok(Files::Ours(dir))
}

/// The master switch; put back to what it was when dropped.
#[derive(Debug)]
struct Switch {
    path: PathBuf,
    before: String,
}

impl Switch {
    fn open(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(before) => Ok(Self {
                path: path.to_owned(),
                before,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::new(format!(
                "{} is missing: this kernel has no async stack",
                path.display()
            ))
            .hint("build the patched kernel with `cargo aios kernel deb`, install it and boot it")),
            Err(error) => Err(Error::io("read", path, &error)),
        }
    }

    fn set(&self, on: bool) -> Result<()> {
        fs::write(&self.path, if on { "1" } else { "0" }).at("write (are you root?)", &self.path)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, self.before.trim()) {
            tracing::warn!("{} was not put back: {error}", self.path.display());
        }
    }
}

/// A block device that we formatted and mounted.
#[derive(Debug)]
struct Mounted {
    device: PathBuf,
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Mounted {
    fn format(device: &Path) -> Result<Self> {
        let mke2fs = find_on_path("mke2fs")
            .ok_or_else(|| Error::new("mke2fs is missing").hint("install the package e2fsprogs"))?;
        let dir = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
        Tool::new(mke2fs)
            .args(["-q", "-t", "ext4", "-m", "0"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(device)
            .output()?;
        // From here on, dropping it cleans up.
        let mut made = Self {
            device: device.to_owned(),
            dir,
            mounted: false,
        };
        Tool::new("mount")
            .args(["-t", "ext4", "-o", OPTION])
            .args([device, made.dir.path()])
            .output()?;
        made.mounted = true;
        Ok(made)
    }
}

impl Drop for Mounted {
    /// Unmounts and takes our own file system's signature away again, so that
    /// the device is as unused as before. A device that is still in use after
    /// a failed unmount is refused by wipefs and left alone.
    fn drop(&mut self) {
        let mut steps = Vec::new();
        if self.mounted {
            steps.push(Tool::new("umount").arg(self.dir.path()));
        }
        steps.push(
            Tool::new("wipefs")
                .args(["-q", "-a", "-t", "ext4"])
                .arg(&self.device),
        );
        for step in steps {
            if let Err(error) = step.output() {
                tracing::warn!("{}: {error}", self.device.display());
                return;
            }
        }
    }
}

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
    options: String,
}

impl Mount {
    /// The mount that holds `path`: of those above it the one mounted last.
    fn of(path: &Path, mountinfo: &str) -> Option<Self> {
        mountinfo
            .lines()
            .filter_map(Self::parse)
            .filter(|mount| path.starts_with(&mount.point))
            .enumerate()
            .max_by_key(|(line, mount)| (mount.point.components().count(), *line))
            .map(|(_, mount)| mount)
    }

    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let mut right = right.split(' ');
        let (point, per_mount) = (unescape(left.next()?), left.next()?);
        Some(Self {
            point: point.into(),
            kind: right.next()?.to_owned(),
            source: unescape(right.next()?),
            options: format!("{per_mount},{}", right.next()?),
        })
    }

    fn check(&self) -> Result<()> {
        let point = self.point.display();
        if self.kind != "ext4" {
            return Err(Error::new(format!("{point} is {}, not ext4", self.kind))
                .hint("give a file or folder on an ext4"));
        }
        if !self.options.split(',').any(|option| option == OPTION) {
            return Err(
                Error::new(format!("{point} is not mounted with the option {OPTION}"))
                    .hint(format!("run: mount -o remount,{OPTION} {point}")),
            );
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{} {} ({})", self.kind, self.source, self.options)
    }
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(field: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| {
            first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        match octal.and_then(|digits| std::str::from_utf8(digits).ok()) {
            Some(digits) => {
                // Three octal digits may exceed a byte; the kernel's never do.
                bytes.push(u8::from_str_radix(digits, 8).unwrap_or(b'?'));
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::workload::select;
    use super::*;

    const MOUNTS: &str = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro\n\
        25 22 0:5 / /dev rw - devtmpfs devtmpfs rw\n\
        30 22 259:1 / /mnt/my\\040disk rw,noatime shared:2 master:1 - ext4 /dev/nvme0n1p1 rw,aios\n";

    #[test]
    fn test_mount_of_picks_the_nearest_above() {
        let mount = Mount::of(Path::new("/mnt/my disk/a/b"), MOUNTS).unwrap();
        assert_eq!(mount.source, "/dev/nvme0n1p1");
        mount.check().unwrap();
        let root = Mount::of(Path::new("/mnt/my disk2"), MOUNTS).unwrap();
        assert_eq!(root.point, Path::new("/"));
    }

    #[test]
    fn test_mount_check_other_kinds_say_what_to_do() {
        let not_in = Mount::of(Path::new("/home"), MOUNTS).unwrap();
        let error = not_in.check().unwrap_err().to_string();
        assert!(error.contains("mount -o remount,aios /"), "{error}");
        let other = Mount::of(Path::new("/dev/shm"), MOUNTS).unwrap();
        let error = other.check().unwrap_err().to_string();
        assert!(error.contains("devtmpfs, not ext4"), "{error}");
    }

    #[test]
    fn test_unescape_broken_escapes_stay() {
        assert_eq!(unescape("a\\040b\\"), "a b\\");
        assert_eq!(unescape("\\09\\777x"), "\\09?x");
    }

    #[test]
    fn test_switch_missing_says_to_boot_the_patched_kernel() {
        let error = Switch::open(Path::new("/nonexistent/enabled")).unwrap_err();
        assert!(error.to_string().contains("boot it"), "{error}");
    }

    #[test]
    fn test_switch_drop_puts_back_what_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "0\n").unwrap();
        let switch = Switch::open(file.path()).unwrap();
        switch.set(true).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "1");
        drop(switch);
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "0");
    }

    #[test]
    fn test_servable_file_leaves_out_writers_and_names_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (served, notes) = servable(file.path(), select(&[], false).unwrap()).unwrap();
        assert!(served.iter().all(|workload| !workload.writes()));
        assert_eq!((served.len(), notes.len()), (19, 6));
        assert!(
            notes[0].starts_with("fio/overwrite-4k-fsync left out"),
            "{notes:?}"
        );
        let writers = select(&["fsync".to_owned()], false).unwrap();
        assert!(servable(file.path(), writers).is_err());
    }

    #[test]
    fn test_given_mib_small_file_returns_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(given_mib(file.path()).is_err());
        file.as_file().set_len(17 << 20).unwrap();
        assert_eq!(given_mib(file.path()).unwrap(), Some(17));
        assert_eq!(given_mib(Path::new("/")).unwrap(), None);
    }

    #[test]
    fn test_forget_reaches_into_folders() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "x").unwrap();
        forget(dir.path()).unwrap();
        assert!(forget(Path::new("/nonexistent")).is_err());
    }
}
