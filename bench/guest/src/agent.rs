// SPDX-License-Identifier: MIT
//! The agent: runs what the harness asks for and reports back.

use crate::sys::{
    self,
    Doing,
    Result, //
};
use aios_guest::protocol::{
    CHUNK,
    Decoder,
    Exit,
    Frame,
    ProtocolError,
    Ready,
    Run,
    Shell,
    VERSION, //
};
use std::fs::File;
use std::io::{
    self,
    ErrorKind,
    Read,
    Write, //
};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{
    Command,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

/// The serial console, where the shell runs.
const CONSOLE: &str = "/dev/ttyS0";

/// The most that a pipe holds, in bytes (`/proc/sys/fs/pipe-max-size`).
const PIPE_MAX: usize = 1 << 20;

/// Environment of every program.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LC_ALL", "C.UTF-8"),
    // Nobody else makes the nodes of device mapper's devices.
    ("DM_DISABLE_UDEV", "1"),
];

/// Serves the harness at the other end of `port` until it says power off or
/// goes away.
pub(crate) fn serve(port: File) -> Result<()> {
    let mut agent = Agent {
        port,
        decoder: Decoder::default(),
        signals: sys::child_signals().doing("watch for ended programs")?,
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .doing("read /proc/sys/kernel/osrelease")?;
    let ready = Frame::Ready(Ready {
        version: VERSION,
        kernel: kernel.trim().to_owned(),
    });
    // This first write waits until the harness is there; later ones must not
    // wait for one that has gone away.
    let bytes = ready.encode().map_err(io::Error::other);
    let bytes = bytes.doing("encode the greeting")?;
    agent.port.write_all(&bytes).doing("greet the harness")?;
    sys::set_nonblocking(&agent.port).doing("set up the port")?;
    loop {
        match agent.receive()? {
            None | Some(Frame::PowerOff) => return Ok(()),
            Some(Frame::Run(run)) => agent.run(&run)?,
            Some(Frame::Shell(shell)) => agent.shell(&shell)?,
            Some(_) => {
                return Err(io::Error::from(ErrorKind::InvalidData))
                    .doing("make sense of the harness");
            }
        }
    }
}

struct Agent {
    port: File,
    decoder: Decoder,
    signals: File,
}

/// One output of a running program.
struct Output {
    pipe: Option<File>,
    frame: fn(Vec<u8>) -> Frame,
}

impl Output {
    fn new(pipe: Option<impl Into<OwnedFd>>, frame: fn(Vec<u8>) -> Frame) -> Result<Self> {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        if let Some(pipe) = &pipe {
            sys::set_nonblocking(pipe).doing("set up a pipe")?;
        }
        Ok(Self { pipe, frame })
    }
}

impl Agent {
    /// The next request; none when the harness has gone away.
    fn receive(&mut self) -> Result<Option<Frame>> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let frame = self.decoder.next_frame();
            if let Some(frame) = frame
                .map_err(|error: ProtocolError| io::Error::other(error))
                .doing("make sense of the harness")?
            {
                return Ok(Some(frame));
            }
            let mut interests = [
                sys::interest(Some(&self.port), libc::POLLIN),
                sys::interest(Some(&self.signals), libc::POLLIN),
            ];
            sys::poll(&mut interests, None).doing("wait for the harness")?;
            self.reap(None);
            match self.port.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).doing("hear the harness"),
            }
        }
    }

    /// Sends one frame, waiting for room as long as the harness is there.
    fn send(&mut self, frame: &Frame) -> Result<()> {
        let action = "answer the harness";
        let bytes = frame.encode().map_err(io::Error::other).doing(action)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match self.port.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut interests = [sys::interest(Some(&self.port), libc::POLLOUT)];
                    sys::poll(&mut interests, None).doing(action)?;
                    if interests[0].revents & libc::POLLHUP != 0 {
                        return Err(io::Error::from(ErrorKind::BrokenPipe)).doing(action);
                    }
                }
                Err(error) => return Err(error).doing(action),
            }
        }
        Ok(())
    }

    fn run(&mut self, run: &Run) -> Result<()> {
        let Some((program, args)) = run.argv.split_first() else {
            return self.refuse(127, "no command");
        };
        let mut command = environment(Command::new(program));
        command
            .args(args)
            .envs(run.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let deadline =
            (run.timeout_s > 0).then(|| Instant::now() + Duration::from_secs(run.timeout_s));
        self.supervise(program, command, deadline)
    }

    fn shell(&mut self, shell: &Shell) -> Result<()> {
        let program = ["/bin/bash", "/bin/sh"]
            .into_iter()
            .find(|shell| std::path::Path::new(shell).exists())
            .unwrap_or("/bin/sh");
        let console = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(CONSOLE);
        let console = console.doing(format!("open {CONSOLE}"))?;
        if shell.rows > 0 && shell.columns > 0 {
            sys::set_window_size(&console, shell.rows, shell.columns)
                .doing("set the size of the console")?;
        }
        let copy = || console.try_clone().doing("share the console");
        let mut command = environment(Command::new(program));
        command
            .arg("-i")
            .env("TERM", &shell.term)
            .stdin(copy()?)
            .stdout(copy()?)
            .stderr(copy()?);
        // SAFETY: The closure makes system calls only and touches no memory.
        unsafe { command.pre_exec(sys::take_terminal) };
        self.supervise(program, command, None)
    }

    /// Runs `command` to its end, passing its output on.
    fn supervise(
        &mut self,
        program: &str,
        mut command: Command,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let code = match error.kind() {
                    ErrorKind::NotFound => 127,
                    _ => 126,
                };
                return self.refuse(code, &format!("cannot run {program}: {error}"));
            }
        };
        // The command holds the console's descriptors; the child has its own.
        drop(command);
        let pid = child.id().cast_signed();
        let mut outputs = [
            Output::new(child.stdout.take(), Frame::Stdout)?,
            Output::new(child.stderr.take(), Frame::Stderr)?,
        ];
        let mut deadline = deadline;
        let mut timed_out = false;
        loop {
            let [out, err] = &outputs;
            let mut interests = [
                sys::interest(out.pipe.as_ref(), libc::POLLIN),
                sys::interest(err.pipe.as_ref(), libc::POLLIN),
                sys::interest(Some(&self.signals), libc::POLLIN),
                // Hang-ups are reported unasked.
                sys::interest(Some(&self.port), 0),
            ];
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            sys::poll(&mut interests, left).doing("wait for a program")?;
            if interests[3].revents & libc::POLLHUP != 0 {
                return Err(io::Error::from(ErrorKind::BrokenPipe)).doing("reach the harness");
            }
            let ended = self.reap(Some(pid));
            for output in &mut outputs {
                self.pass_on(output, ended.is_some())?;
            }
            if let Some(code) = ended {
                return self.send(&Frame::Exit(Exit { code, timed_out }));
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                sys::kill(-pid, libc::SIGKILL);
                timed_out = true;
                deadline = None;
            }
        }
    }

    /// Passes on one piece of what `output` holds, or `all` that is there: what
    /// fits a pipe at most, for a program left behind may go on writing.
    fn pass_on(&mut self, output: &mut Output, all: bool) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut room = if all { PIPE_MAX } else { 1 };
        while let Some(pipe) = &mut output.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => output.pipe = None,
                Ok(count) => {
                    self.send(&(output.frame)(buffer[..count].to_vec()))?;
                    room = room.saturating_sub(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing("read a program's output"),
            }
            if room == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes every ended process off the kernel's hands, orphans included; the
    /// exit code of `wanted` when it is among them.
    fn reap(&mut self, wanted: Option<i32>) -> Option<i32> {
        // The signal says "some"; what it says beyond that is not needed.
        let _ = self.signals.read(&mut [0; 1024]);
        let mut code = None;
        while let Ok(Some(ended)) = sys::reap() {
            if Some(ended.pid) == wanted {
                code = Some(ended.code);
            }
        }
        code
    }

    /// Answers as a shell does when it cannot start a program.
    fn refuse(&mut self, code: i32, why: &str) -> Result<()> {
        self.send(&Frame::Stderr(format!("aios-guest: {why}\n").into_bytes()))?;
        self.send(&Frame::Exit(Exit {
            code,
            timed_out: false,
        }))
    }
}

fn environment(mut command: Command) -> Command {
    command
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .current_dir("/");
    command
}
