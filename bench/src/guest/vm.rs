// SPDX-License-Identifier: MIT
//! The QEMU process of a guest: started, watched, and never left behind.

use super::interrupt;
use super::qemu::{
    Console,
    Files, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use std::fs::{
    self,
    File, //
};
use std::io::{
    self,
    Read,
    Seek, //
};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{
    Child,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// How often a state that cannot be waited for is looked at.
const TICK: Duration = Duration::from_millis(10);

/// How long a killed QEMU may take to go; one that the kernel does not let go
/// must not hold the harness up.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A running QEMU. Dropping it kills it and removes its sockets.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    stderr: File,
    files: Files,
}

impl Vm {
    /// Starts QEMU. It dies with the thread that calls this, so that a killed
    /// harness leaves none behind.
    pub(crate) fn start(tool: &Tool, console: Console, files: Files) -> Result<Self> {
        let stderr = tempfile::tempfile().at("create a file in", std::env::temp_dir())?;
        let copy = stderr.try_clone().at("share", "QEMU's messages")?;
        let mut command = tool.command();
        command.stderr(copy);
        match console {
            // Out of reach of the terminal's Ctrl-C: the harness decides.
            Console::Log => command.stdout(Stdio::null()).process_group(0),
            Console::Terminal => command.stdin(Stdio::inherit()),
        };
        let parent = std::process::id();
        // SAFETY: The closure makes system calls only and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before that took effect.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        tracing::info!("{}", tool.line());
        let child = command.spawn().map_err(|source| {
            Error::new(format!("cannot run {}: {source}", super::qemu::PROGRAM))
                .hint("run `cargo aios doctor` to see what is missing")
        })?;
        Ok(Self {
            child,
            stderr,
            files,
        })
    }

    /// The files it uses.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Connects to one of its sockets; `None` when it ended or `deadline`
    /// passed before it listened.
    pub(crate) fn connect(
        &mut self,
        socket: &Path,
        deadline: Instant,
    ) -> Result<Option<UnixStream>> {
        while !self.ended() && Instant::now() < deadline {
            interrupt::check()?;
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(Some(stream));
            }
            thread::sleep(TICK);
        }
        Ok(None)
    }

    /// Whether the process is gone.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end until `deadline`; whether it came.
    pub(crate) fn wait(&mut self, deadline: Instant) -> Result<bool> {
        while !self.ended() {
            interrupt::check()?;
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(TICK);
        }
        Ok(true)
    }

    /// The last line that QEMU itself printed on standard error.
    pub(crate) fn complaint(&mut self) -> Option<String> {
        let mut text = Vec::new();
        self.stderr.rewind().ok()?;
        self.stderr.read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let deadline = Instant::now() + KILL_TIME;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        for socket in [&self.files.agent, &self.files.qmp] {
            // QEMU may have removed it, or never made it.
            let _ = fs::remove_file(socket);
        }
    }
}
