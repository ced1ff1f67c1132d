// SPDX-License-Identifier: MIT
//! Recovery by e2fsprogs, on a drive in memory.

use crate::error::{
    Doing,
    Error,
    Result, //
};
use memmap2::MmapMut;
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};

/// What e2fsck takes for now, seconds since 1970: later than anything a guest
/// writes (2036), so that the same state always recovers to the same bytes.
const NOW: &str = "2100000000";

/// Lines of `e2fsck -p` about what a mount does, too: replaying the journal,
/// finishing what the orphan list says, and summing up.
const REPLAY: [&str; 6] = [
    "recovering journal",
    "Clearing orphaned inode",
    "Truncating orphaned inode",
    "Setting free inodes count",
    "Setting free blocks count",
    ": clean,",
];

/// A drive in memory that e2fsck can open; if the journal has a drive of its own,
/// both, one behind the other.
#[derive(Debug)]
pub struct Scratch {
    map: MmapMut,
    /// Only held: `path` is a name of it.
    _file: File,
    path: PathBuf,
    journal: Option<Journal>,
}

/// A copy of the journal's drive, which e2fsck wants in a file of its own.
#[derive(Debug)]
struct Journal {
    /// Where the drive begins.
    at: usize,
    file: File,
    path: PathBuf,
}

impl Scratch {
    /// A drive of `size` bytes.
    pub fn new(size: usize) -> Result<Self> {
        let (file, path) = memory(size)?;
        // SAFETY: Nothing truncates the file, which has no name but that of this
        // process's descriptor, given to e2fsck alone. It writes while it runs,
        // and `self.map` is not borrowed then: `e2fsck` takes `&mut self`.
        let map = unsafe { MmapMut::map_mut(&file) }.doing("map a drive in memory")?;
        Ok(Self {
            map,
            _file: file,
            path,
            journal: None,
        })
    }

    /// Takes what begins at `at` for the journal's drive.
    pub fn set_journal(&mut self, at: Option<usize>) -> Result<()> {
        if self.journal.as_ref().map(|journal| journal.at) != at {
            let size = self.map.len();
            let journal = at.map(|at| {
                let (file, path) = memory(size.saturating_sub(at))?;
                Ok(Journal { at, file, path })
            });
            self.journal = journal.transpose()?;
        }
        Ok(())
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    fn e2fsck(&mut self, options: &str) -> Result<(Option<i32>, String)> {
        let mut command = Command::new(e2fsck());
        command.arg(options);
        if let Some(journal) = &self.journal {
            let bytes = self.map.get(journal.at..).unwrap_or_default();
            journal
                .file
                .write_all_at(bytes, 0)
                .doing("write the journal's drive")?;
            command.arg("-j").arg(&journal.path);
        }
        let output = command
            .arg(&self.path)
            .env("E2FSCK_TIME", NOW)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .doing("run e2fsck")?;
        if let Some(journal) = &self.journal {
            let bytes = self.map.get_mut(journal.at..).unwrap_or_default();
            journal
                .file
                .read_exact_at(bytes, 0)
                .doing("read the journal's drive")?;
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), text))
    }

    /// Does what a boot does: replays the journal and finishes what was begun.
    /// What e2fsck does or finds beyond that is told.
    pub fn recover(&mut self) -> Result<std::result::Result<(), String>> {
        let (code, text) = self.e2fsck("-p")?;
        let odd = text
            .lines()
            .filter(|line| !line.trim().is_empty() && !is_version(line))
            .find(|line| !REPLAY.iter().any(|known| line.contains(known)));
        Ok(match (code, odd) {
            (Some(0 | 1), None) => Ok(()),
            (Some(0 | 1), Some(line)) => Err(format!("recovery repairs: {}", self.tidy(line))),
            (code, _) => Err(format!(
                "recovery fails (exit code {}): {}",
                code.map_or("none".to_owned(), |code| code.to_string()),
                self.tidy(odd.unwrap_or_default())
            )),
        })
    }

    /// Looks at everything and changes nothing; what is wrong is told.
    pub fn verify(&mut self) -> Result<std::result::Result<(), String>> {
        let (code, text) = self.e2fsck("-fn")?;
        if code == Some(0) {
            return Ok(Ok(()));
        }
        let line = text
            .lines()
            .filter(|line| !is_version(line) && !line.starts_with("Pass "))
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        Ok(Err(format!("after recovery: {}", self.tidy(line))))
    }

    /// A line of e2fsck without the drive's name, which is another each time.
    fn tidy(&self, line: &str) -> String {
        let name = self.path.display().to_string();
        line.replace(&name, "drive").trim().to_owned()
    }
}

/// A file of `size` bytes in memory, and a name of it for other processes.
fn memory(size: usize) -> Result<(File, PathBuf)> {
    let file = rustix::fs::memfd_create("aios-crash", MemfdFlags::CLOEXEC)
        .doing("create a drive in memory")?;
    let file = File::from(file);
    file.set_len(size as u64).doing("size a drive in memory")?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, PathBuf::from(path)))
}

fn is_version(line: &str) -> bool {
    line.starts_with("e2fsck 1.")
}

/// e2fsck, which is seldom on an ordinary user's `PATH`.
fn e2fsck() -> &'static Path {
    ["/usr/sbin/e2fsck", "/sbin/e2fsck"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or(Path::new("e2fsck"))
}

/// Fails unless e2fsck can be run.
pub fn available() -> Result<()> {
    let status = Command::new(e2fsck())
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .doing("run e2fsck")?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Recording(format!("e2fsck -V ended with {status}")))
}
