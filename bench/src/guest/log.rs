// SPDX-License-Identifier: MIT
//! A guest's console log as it grows.

use super::faults;
use crate::error::Error;
use crate::ui::Ui;
use std::fs::File;
use std::io::{
    Read,
    Seek,
    SeekFrom, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::thread;
use std::time::Duration;

/// How long the lines that follow a fault may take to be written.
const SETTLE: Duration = Duration::from_millis(300);

/// The console log of the guest called `name`.
#[derive(Debug)]
pub(crate) struct Log {
    name: String,
    path: PathBuf,
    /// Bytes that were looked through already.
    scanned: u64,
}

impl Log {
    /// The log at `path`.
    pub(crate) fn new(name: &str, path: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            scanned: 0,
        }
    }

    /// Fails when the guest logged a fault since the last call; prints it.
    pub(crate) fn check(&mut self, ui: Ui) -> Result<(), Error> {
        let mut text = self.read_from(self.scanned);
        if !faults::scan(&text).is_empty() {
            thread::sleep(SETTLE);
            text = self.read_from(self.scanned);
        }
        // The last line may not be whole yet.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.scanned += whole as u64;
        self.report(&faults::scan(&text), ui)
    }

    /// Fails when the guest ever logged a fault; prints it.
    pub(crate) fn check_all(&self, ui: Ui) -> Result<(), Error> {
        self.report(&faults::scan(&self.read_from(0)), ui)
    }

    /// The last words: what the init complained of, else the last line.
    pub(crate) fn last_words(&self) -> Option<String> {
        let text = self.read_from(0);
        let lines = || text.lines().map(str::trim);
        lines()
            .rfind(|line| line.starts_with("aios-guest: "))
            .or_else(|| lines().rfind(|line| !line.is_empty()))
            .map(str::to_owned)
    }

    /// What to do about an error of this guest.
    pub(crate) fn hint(&self) -> String {
        format!("its console log is in {}", self.path.display())
    }

    fn report(&self, faults: &[String], ui: Ui) -> Result<(), Error> {
        let Some(first) = faults.first().and_then(|fault| fault.lines().next()) else {
            return Ok(());
        };
        for line in faults.iter().flat_map(|fault| fault.lines()) {
            ui.say(format!("{}: {line}", self.name));
        }
        let more = match faults.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Err(Error::new(format!(
            "the guest {} logged a fault: {first}{more}",
            self.name
        ))
        .hint(self.hint()))
    }

    /// The text from byte `start` on. Bytes that are no UTF-8 become `?`, one
    /// for one, so that offsets stay right; a log that cannot be read is empty.
    fn read_from(&self, start: u64) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(start))?;
            file.read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            tracing::warn!("cannot read {}: {error}", self.path.display());
        }
        String::from_utf8(bytes).unwrap_or_else(|error| {
            let ascii = |&byte: &u8| {
                if byte.is_ascii() {
                    char::from(byte)
                } else {
                    '?'
                }
            };
            error.as_bytes().iter().map(ascii).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn log(text: &[u8]) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("native.log");
        fs::write(&path, text).unwrap();
        let log = Log::new("native", &path);
        (dir, log)
    }

    fn append(log: &Log, text: &str) {
        let mut file = File::options().append(true).open(&log.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn test_check_reports_a_fault_once_and_check_all_again() {
        let (_dir, mut log) = log(b"[    1.000000] fine \xff\n[    2.000000] BU");
        assert!(log.check(Ui::new()).is_ok());
        append(&log, "G: bad\n");
        let error = log.check(Ui::new()).unwrap_err();
        assert_eq!(error.what(), "the guest native logged a fault: BUG: bad");
        assert!(log.check(Ui::new()).is_ok());
        assert!(log.check_all(Ui::new()).is_err());
    }

    #[test]
    fn test_last_words_prefers_the_init() {
        let (_dir, log) = log(b"aios-guest: cannot mount\n[    1.000000] reboot: Power down\n\n");
        assert_eq!(log.last_words().unwrap(), "aios-guest: cannot mount");
    }

    #[test]
    fn test_last_words_of_an_empty_log_are_none() {
        let (_dir, log) = log(b"");
        assert_eq!(log.last_words(), None);
    }
}
