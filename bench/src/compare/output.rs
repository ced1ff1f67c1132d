// SPDX-License-Identifier: MIT
//! The output folder: proven writable before any work, gone again when the
//! run left nothing in it.

use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::files;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// An output folder.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    /// Folders that were not there before, the innermost first.
    made: Vec<PathBuf>,
}

impl Output {
    /// Makes `given`, or a folder named after the time.
    pub(crate) fn prepare(given: Option<&Path>) -> Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => {
                let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
                Path::new("out").join(format!("compare-{}", now.to_string().replace(':', "")))
            }
        };
        let path = std::path::absolute(&path).at("resolve", &path)?;
        let made = path
            .ancestors()
            .take_while(|dir| !dir.exists())
            .map(Path::to_owned)
            .collect();
        let output = Self { path, made };
        files::check_writable(&output.path)?;
        Ok(output)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It holds results now.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }

    /// Says where the results are, of which `name` is the one to look at, and how
    /// long all took: `seconds` of that were spent on measuring.
    pub(crate) fn announce(&self, ctx: &Context, seconds: f64, name: &str) {
        ctx.ui.say(format!(
            "took {:.0} s, {seconds:.0} s without set-up and builds; results: {}",
            ctx.elapsed().as_secs_f64(),
            self.path.join(name).display()
        ));
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        for dir in &self.made {
            // Fails where logs of a failed run lie, which are to be read.
            if fs::remove_dir(dir).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_drop_without_results_removes_what_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        let output = Output::prepare(Some(&inner)).unwrap();
        assert!(output.path().is_dir());
        drop(output);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn test_drop_keeps_logs_and_results() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("failed/guest");
        let output = Output::prepare(Some(&dir.path().join("failed"))).unwrap();
        fs::create_dir(&logs).unwrap();
        drop(output);
        assert!(logs.is_dir());
        let mut output = Output::prepare(Some(&dir.path().join("done"))).unwrap();
        output.keep();
        drop(output);
        assert!(dir.path().join("done").is_dir());
    }

    #[test]
    fn test_prepare_unwritable_folder_returns_error_and_leaves_nothing() {
        let error = Output::prepare(Some(Path::new("/proc/aios/out"))).unwrap_err();
        assert!(error.to_string().contains("/proc/aios/out"), "{error}");
    }
}
