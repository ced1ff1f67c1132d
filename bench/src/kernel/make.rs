// SPDX-License-Identifier: MIT
//! Running the kernel's make: one environment, a log, a progress bar.

use super::Compiler;
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::setup::KernelTools;
use std::fs::File;
use std::io::{
    BufRead,
    BufReader,
    Write,
    pipe,
    stderr, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::thread::available_parallelism;

/// Build time that kernels carry: always the same, for reproducible builds.
const TIMESTAMP: &str = "2026-01-01 00:00:00 UTC";

/// make on one source folder and one build folder.
#[derive(Debug, Clone)]
pub(crate) struct Make {
    source: PathBuf,
    out: PathBuf,
    local_version: &'static str,
    compiler: Compiler,
    tools: KernelTools,
}

impl Make {
    /// For objects of `source` in `out`; the kernel's release ends with
    /// `local_version`. By gcc.
    pub(crate) fn new(
        source: &Path,
        out: &Path,
        local_version: &'static str,
        tools: &KernelTools,
    ) -> Self {
        Self {
            source: source.to_path_buf(),
            out: out.to_path_buf(),
            local_version,
            compiler: Compiler::Gcc,
            tools: tools.clone(),
        }
    }

    /// By `compiler`.
    pub(super) fn by(self, compiler: Compiler) -> Self {
        Self { compiler, ..self }
    }

    /// The source folder.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// The build folder.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// `make TARGETS`, with as many jobs as there are CPUs.
    pub(crate) fn tool<S: AsRef<std::ffi::OsStr>>(&self, targets: &[S]) -> Tool {
        let jobs = available_parallelism().map_or(1, usize::from);
        Tool::new("make")
            .env("LC_ALL", "C")
            .env("KBUILD_BUILD_TIMESTAMP", TIMESTAMP)
            .env("KBUILD_BUILD_USER", "aios")
            .env("KBUILD_BUILD_HOST", "localhost")
            .env("KBUILD_BUILD_VERSION", "1")
            .env("LIBCLANG_PATH", &self.tools.libclang)
            .arg("-C")
            .arg(&self.source)
            .arg(joined("O=", &self.out))
            .arg(format!("-j{jobs}"))
            // On the command line they win over the caller's environment.
            .args(["ARCH=x86", "CROSS_COMPILE="])
            .arg(format!("LLVM={}", self.compiler.llvm()))
            .arg(joined("BINDGEN=", &self.tools.bindgen))
            .arg(joined("RUST_LIB_SRC=", &self.tools.rust_lib_src))
            .arg(format!("LOCALVERSION={}", self.local_version))
            .args(targets)
    }

    /// Runs `make TARGETS` with its output in `log` and the number of files
    /// compiled on a bar towards `expected`, or a spinner if that is unknown.
    /// Gives that number.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        ctx: &Context,
        targets: &[S],
        what: &str,
        expected: Option<u64>,
        log: &Path,
    ) -> Result<u64> {
        let tool = self.tool(targets);
        if ctx.dry_run {
            println!("{}", tool.line());
            return Ok(0);
        }
        tracing::info!("{}", tool.line());
        let mut file = File::create(log).at("create the log", log)?;
        let (reader, writer) = pipe().at("make", "a pipe")?;
        let mut command = tool.command();
        command
            .stdout(writer.try_clone().at("make", "a pipe")?)
            .stderr(writer);
        let mut child = command.spawn().map_err(|source| {
            Error::new(format!("cannot run make: {source}"))
                .hint("run `cargo aios doctor` to see what is missing")
        })?;
        // Else the pipe never ends: the command keeps its end open.
        drop(command);
        let bar = match expected {
            Some(len) => ctx.ui.bar(what, len),
            None => ctx.ui.spinner(what),
        };
        let mut compiled = 0;
        let mut failure = Failure::default();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        let copied = loop {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(source) => break Err(source),
            }
            if let Err(source) = file.write_all(&line) {
                break Err(source);
            }
            if ctx.verbose >= 2 {
                let _ = stderr().write_all(&line);
            }
            let text = String::from_utf8_lossy(&line);
            failure.look_at(&text);
            if is_step(&text) {
                compiled += 1;
                if expected.is_some() {
                    bar.inc(1);
                } else {
                    bar.set_prefix(format!("{compiled} steps"));
                }
            }
        };
        if copied.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().at("wait for", "make");
        bar.finish_and_clear();
        copied.at("write the log", log)?;
        if status?.success() {
            return Ok(compiled);
        }
        Err(failure.error(what, log))
    }
}

fn joined(key: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(key);
    text.push(path);
    text
}

/// Whether a line of make's output is one file made: `  CC      fs/open.o`.
fn is_step(line: &str) -> bool {
    line.strip_prefix("  ")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// The line that says best why a build failed.
#[derive(Debug, Default)]
struct Failure {
    no_space: bool,
    cause: Option<String>,
    make: Option<String>,
}

impl Failure {
    fn look_at(&mut self, line: &str) {
        let keep = |slot: &mut Option<String>| {
            if slot.is_none() {
                *slot = Some(line.trim().to_owned());
            }
        };
        if line.contains("No space left on device") {
            self.no_space = true;
        } else if ["error:", "error[", "undefined reference", "ERROR: modpost"]
            .iter()
            .any(|mark| line.contains(mark))
        {
            keep(&mut self.cause);
        } else if line.contains("*** ") {
            keep(&mut self.make);
        }
    }

    fn error(self, what: &str, log: &Path) -> Error {
        if self.no_space {
            return Error::new(format!("{what} failed: no space left on the disk"))
                .hint("free some, or choose another folder with --cache DIR, and run it again");
        }
        let cause = self.cause.or(self.make);
        let cause = cause.unwrap_or_else(|| "make stopped".to_owned());
        Error::new(format!("{what} failed: {cause}"))
            .hint(format!("the whole output is in {}", log.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(lines: &[&str]) -> String {
        let mut failure = Failure::default();
        for line in lines {
            failure.look_at(line);
        }
        failure.error("Building x", Path::new("/x.log")).to_string()
    }

    #[test]
    fn test_failure_names_the_first_cause_and_the_log() {
        let text = failure(&[
            "  CC      fs/a.o\n",
            "fs/a.c:3:1: error: expected ';'\n",
            "fs/a.c:9:1: error: later\n",
            "make[3]: *** [fs/a.o] Error 1\n",
        ]);
        assert_eq!(
            text,
            "Building x failed: fs/a.c:3:1: error: expected ';'; the whole output is in /x.log"
        );
    }

    #[test]
    fn test_failure_without_space_says_so_first() {
        let text = failure(&["as: error: x\n", "cc1: No space left on device\n"]);
        assert!(text.contains("no space left on the disk"), "{text}");
    }

    #[test]
    fn test_failure_of_make_alone_gives_its_line() {
        let text = failure(&["make: *** No rule to make target 'x'.  Stop.\n"]);
        assert!(text.contains("No rule to make target"), "{text}");
        assert!(failure(&[]).contains("make stopped"));
    }

    #[test]
    fn test_is_step_counts_files_only() {
        assert!(is_step("  CC      fs/open.o\n"));
        assert!(is_step("  RUSTC L rust/core.o\n"));
        assert!(!is_step("make[1]: Entering directory\n"));
        assert!(!is_step("  note: x\n"));
    }
}
