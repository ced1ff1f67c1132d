// SPDX-License-Identifier: MIT
//! System calls that the standard library lacks, and errors that say what was
//! being done.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{
    AsRawFd,
    FromRawFd, //
};
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// What the init or the agent could not do, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub(crate) struct Error {
    action: String,
    source: io::Error,
}

/// Result of what the init and the agent do.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when an `io::Result` failed.
pub(crate) trait Doing<T> {
    /// Maps the error: "cannot `action`: why".
    fn doing(self, action: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error {
            action: action.into(),
            source: source.into(),
        })
    }
}

impl Error {
    /// Whether the cause is system error `errno`.
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// The result of a system call that gives a negative number on failure.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// mount(2).
pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let source = CString::new(source)?;
    let target = CString::new(target)?;
    let kind = CString::new(kind)?;
    let options = CString::new(options)?;
    // SAFETY: All four are C strings that live through the call.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    })?;
    Ok(())
}

/// umount(2).
pub(crate) fn unmount(target: &[u8]) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: A C string that lives through the call.
    check(unsafe { libc::umount(target.as_ptr()) })?;
    Ok(())
}

/// sethostname(2).
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: Pointer and length of one live string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// Sets the size of a terminal.
pub(crate) fn set_window_size(terminal: &File, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: The kernel reads one `winsize`, which lives through the call.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Makes the caller the leader of a session with standard input as its
/// terminal. For use between fork and exec: system calls only.
pub(crate) fn take_terminal() -> io::Result<()> {
    // SAFETY: Plain system call.
    check(unsafe { libc::setsid() })?;
    // SAFETY: Plain system call with an integer argument.
    check(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Blocks `SIGCHLD` and gives a descriptor that is readable when it is pending.
pub(crate) fn child_signals() -> io::Result<File> {
    // SAFETY: All zeros is a valid signal set, which `sigemptyset` then sets up;
    // pointers to it live through the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            ptr::null_mut(),
        ))?;
        check(libc::signalfd(
            -1,
            &raw const set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?
    };
    // SAFETY: A new descriptor that nothing else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes reads and writes of `file` fail rather than wait.
pub(crate) fn set_nonblocking(file: &impl AsRawFd) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: Plain system call on an open descriptor.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: As above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// One descriptor for [`poll`]; `None` is left out.
pub(crate) fn interest(file: Option<&impl AsRawFd>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd {
        fd: file.map_or(-1, AsRawFd::as_raw_fd),
        events,
        revents: 0,
    }
}

/// poll(2), for at most `timeout`; without one, until something happens.
pub(crate) fn poll(interests: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map_or(-1, |time| {
        // Up, so that the time is over when it returns.
        i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX)
    });
    let count = interests.len() as libc::nfds_t;
    // SAFETY: Pointer and length of one live slice.
    match check(unsafe { libc::poll(interests.as_mut_ptr(), count, timeout) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// A child that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its process id.
    pub(crate) pid: i32,
    /// Its exit code; 128 + signal when killed.
    pub(crate) code: i32,
}

/// Takes one ended child off the kernel's hands; `None` when none has ended.
/// Fails with `ECHILD` when there are no children at all.
pub(crate) fn reap() -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: The kernel writes one int, which lives through the call.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    if pid == 0 {
        return Ok(None);
    }
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    Ok(Some(Ended { pid, code }))
}

/// kill(2); who is gone already is no error.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: Plain system call.
    unsafe { libc::kill(pid, signal) };
}

/// Switches the machine off at once.
pub(crate) fn power_off() -> ! {
    // SAFETY: Plain system calls.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    // Not reached by process 1 of a machine that can be switched off.
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// chroot(2) into the working folder, and there to its root.
pub(crate) fn enter_root(dir: &Path) -> io::Result<()> {
    std::env::set_current_dir(dir)?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}
