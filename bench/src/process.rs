// SPDX-License-Identifier: MIT
//! Running tools: one place for logging, `--dry-run` and readable failures.

use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use std::ffi::{
    OsStr,
    OsString, //
};
use std::fs::File;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Output,
    Stdio, //
};

/// A tool to be run, with arguments, environment and working folder.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
}

impl Tool {
    /// A run of `program`, found on `PATH` unless it is a path.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
        }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working folder.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_path_buf());
        self
    }

    /// The command line as it can be pasted into a shell.
    pub(crate) fn line(&self) -> String {
        let mut line = String::new();
        if let Some(dir) = &self.dir {
            line.push_str(&format!("cd {} && ", quote(dir.as_os_str())));
        }
        for (key, value) in &self.env {
            line.push_str(&format!("{}={} ", key.to_string_lossy(), quote(value)));
        }
        line.push_str(&quote(&self.program));
        for arg in &self.args {
            line.push(' ');
            line.push_str(&quote(arg));
        }
        line
    }

    /// The command for callers that drive the child themselves.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs it and returns its output; a failure names the tool, its exit
    /// status and the last line it printed. Runs even with `--dry-run`: for
    /// queries without effect only.
    pub(crate) fn output(&self) -> Result<Output> {
        tracing::debug!("{}", self.line());
        let output = self
            .command()
            .output()
            .map_err(|source| self.not_started(&source))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(self.failed(&output.status.to_string(), &last_line(&output.stderr)))
    }

    /// As [`Tool::output`], giving standard output as trimmed text.
    pub(crate) fn text(&self) -> Result<String> {
        let output = self.output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs it with all output appended to `log` (and to the terminal with
    /// `-vv`); with `--dry-run` prints the line instead.
    pub(crate) fn logged(&self, ctx: &Context, log: &Path) -> Result<()> {
        if ctx.dry_run {
            println!("{}", self.line());
            return Ok(());
        }
        tracing::info!("{}", self.line());
        let open = || File::options().create(true).append(true).open(log);
        let status = if ctx.verbose >= 2 {
            self.command().status()
        } else {
            let out = open().map_err(|source| Error::io("open the log", log, &source))?;
            let err = out
                .try_clone()
                .map_err(|source| Error::io("open the log", log, &source))?;
            self.command().stdout(out).stderr(err).status()
        }
        .map_err(|source| self.not_started(&source))?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read(log).unwrap_or_default();
        Err(self
            .failed(&status.to_string(), &last_error_line(&text))
            .hint(format!("the whole output is in {}", log.display())))
    }

    fn not_started(&self, source: &std::io::Error) -> Error {
        Error::new(format!(
            "cannot run {}: {source}",
            self.program.to_string_lossy()
        ))
        .hint("run `cargo aios doctor` to see what is missing")
    }

    fn failed(&self, status: &str, last: &str) -> Error {
        let program = Path::new(&self.program)
            .file_name()
            .unwrap_or(&self.program)
            .to_string_lossy();
        if last.is_empty() {
            Error::new(format!("{program} failed ({status})"))
        } else {
            Error::new(format!("{program} failed ({status}): {last}"))
        }
    }
}

/// Whether `program` can be found on `PATH`.
pub(crate) fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// Where `program` lies on `PATH` (sbin folders included: mkfs lives there).
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// As [`find_on_path`], for what cannot be done without.
pub(crate) fn required(program: &str) -> Result<PathBuf> {
    find_on_path(program).ok_or_else(|| {
        Error::new(format!("{program} is missing"))
            .hint("run `cargo aios doctor` to see which package has it")
    })
}

fn quote(arg: &OsStr) -> String {
    let text = arg.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .unwrap_or_default()
        .to_owned()
}

/// The last line that looks like a cause, else the last line.
fn last_error_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let cause = |line: &&str| {
        line.contains("error:") || line.contains("error[") || line.contains("No space left")
    };
    text.lines()
        .map(str::trim)
        .rfind(cause)
        .map_or_else(|| last_line(bytes), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_line_quotes_what_a_shell_would_split() {
        let tool = Tool::new("qemu").arg("-append").arg("a b").env("K", "it's");
        assert_eq!(tool.line(), "K='it'\\''s' qemu -append 'a b'");
    }

    #[test]
    fn test_output_names_the_tool_and_its_last_words() {
        let error = Tool::new("sh")
            .args(["-c", "echo first >&2; echo last words >&2; exit 3"])
            .output()
            .unwrap_err();
        assert!(error.what().starts_with("sh failed"), "{error}");
        assert!(error.what().ends_with("last words"), "{error}");
    }
}
