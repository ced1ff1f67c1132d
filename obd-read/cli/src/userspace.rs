// SPDX-License-Identifier: MIT

//! `--userspace`: devices of the kernel's ublk driver, each served by a process of
//! this program.
//!
//! What the driver does not know of a device is in a file of its server's, in
//! [`STATE_DIR`], with the server's number as its name.

use crate::attach::Attached;
use crate::driver::Status;
use crate::error::{
    Error,
    Result, //
};
use crate::open::{
    self,
    Place, //
};
use crate::ui;
use obd_ublk::{
    Bell,
    Content,
    Control,
    Device,
    Disk,
    MAX_DEPTH,
    MAX_QUEUES,
    Options,
    Server,
    Sink, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::BTreeMap;
use std::fs::{
    self,
    OpenOptions, //
};
use std::io::{
    self,
    Read,
    Write, //
};
use std::os::unix::process::CommandExt;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use std::thread;
use std::time::Duration;

/// Where the servers of devices say what they serve.
pub(crate) const STATE_DIR: &str = "/run/obd";

/// Set in the environment of a server that is to leave its caller once it serves.
const DETACH: &str = "OBD_DETACH";

/// How often to look whether a device is gone.
const POLL: Duration = Duration::from_millis(5);

/// How to serve a device from userspace.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    /// Serve the device from a process, through the kernel's ublk driver: for
    /// kernels without the driver of these images.
    #[arg(long, group = "process", conflicts_with_all = ["name", "configfs"])]
    userspace: bool,

    /// Serve it, or write to it, in the foreground, until a signal comes or it is
    /// detached.
    #[arg(long, requires = "process")]
    foreground: bool,

    /// Hardware queues, a thread each; no more than there are CPUs.
    #[arg(long, requires = "userspace", value_name = "N", default_value_t = MAX_QUEUES,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    queues: u16,

    /// Requests that each queue has under way.
    #[arg(long, requires = "userspace", value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_DEPTH)))]
    depth: u16,
}

/// What is served, for `obd list`.
#[derive(Serialize, Deserialize)]
struct State {
    layers: Vec<PathBuf>,
    zfile: bool,
}

impl State {
    fn path(server: u32) -> PathBuf {
        Path::new(STATE_DIR).join(format!("{server}.json"))
    }

    /// Writes what this process serves, and returns where.
    fn write(&self) -> Result<PathBuf> {
        fs::create_dir_all(STATE_DIR).map_err(|error| Error::io("create", STATE_DIR, error))?;
        let path = Self::path(std::process::id());
        // Paths that are no UTF-8 are all that can fail.
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::io("write", &path, io::Error::other(error)))?;
        fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
        Ok(path)
    }

    /// What process `server` serves, as far as it said.
    fn read(server: u32) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(server)).ok()?).ok()
    }
}

/// Removes what was written of a server that serves no more.
pub(crate) fn remove(path: &Path) {
    // It says nothing any more, whether it is there or not.
    let _ = fs::remove_file(path);
}

/// A device that is served by this process.
pub(crate) struct Serving {
    server: Server,
    /// What is written of it.
    state: PathBuf,
    /// Whether to leave the caller.
    detach: bool,
}

impl ServeArgs {
    /// Whether the device is to be served from userspace.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.userspace
    }

    /// Whether another process is to do it.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.userspace && self.is_detached()
    }

    /// Whether what lives as long as the device is to be in another process than
    /// this one.
    pub(crate) fn is_detached(&self) -> bool {
        !self.foreground && !detaches()
    }

    /// Makes the device, with the layers at `places` or the zfile that they are.
    pub(crate) fn start(&self, places: &[Place], zfile: bool) -> Result<Serving> {
        let bell = Bell::new().map_err(|error| Error::io("make", "a socket", error))?;
        for signal in [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ] {
            let registered = bell
                .rope()
                .and_then(|rope| signal_hook::low_level::pipe::register(signal, rope));
            registered.map_err(|error| Error::io("catch signals of", "this process", error))?;
        }
        let paths: Vec<PathBuf> = places.iter().map(Place::text).collect();
        let content = match (zfile, places) {
            (true, [place]) => Content::ZFile(open::open_zfile(place)?),
            (true, _) => {
                return Err(Error::Config {
                    path: paths.into_iter().next().unwrap_or_default(),
                    reason: "a zfile is attached by itself".into(),
                });
            }
            (false, places) => Content::Image(open::open_image(places)?),
        };
        let disk = Disk::new(content, paths.clone());
        let options = Options {
            queues: self.queues,
            depth: self.depth,
        };
        let detach = detaches();
        let sink = if detach { kernel_log()? } else { stderr() };
        let state = State {
            layers: paths,
            zfile,
        };
        let state = state.write()?;
        match Server::start(disk, options, bell, sink) {
            Ok(server) => Ok(Serving {
                server,
                state,
                detach,
            }),
            Err(error) => {
                remove(&state);
                Err(error.into())
            }
        }
    }
}

impl Serving {
    /// What was attached.
    pub(crate) fn attached(&self) -> Attached {
        let device = self.server.device();
        Attached {
            name: device
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            device,
        }
    }

    /// Serves the device until a signal comes or it is detached.
    pub(crate) fn run(self) -> Result<()> {
        if self.detach {
            leave()?;
        }
        let id = self.server.id();
        let result = self.server.wait();
        remove(&self.state);
        if let (Err(error), true) = (&result, self.detach) {
            kernel_log()?(&format!("ublkb{id}: {error}"));
        }
        Ok(result?)
    }

    /// Removes the device: it is not wanted after all.
    pub(crate) fn stop(self) -> Result<()> {
        let result = self.server.stop();
        remove(&self.state);
        Ok(result?)
    }
}

/// Whether this is a server that leaves its caller.
pub(crate) fn detaches() -> bool {
    std::env::var_os(DETACH).is_some()
}

/// Has another process do what this one was asked for, and returns when that
/// serves the device, and has said what it is.
pub(crate) fn spawn() -> Result<()> {
    let fail = |error| Error::io("start", "the server", error);
    let mut args = std::env::args_os();
    let mut child = Command::new("/proc/self/exe")
        .arg0(args.next().unwrap_or_else(|| "obd".into()))
        .args(args)
        .env(DETACH, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    let mut said = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut said).map_err(fail)?;
    }
    if said.is_empty() {
        let code = child.wait().map_err(fail)?.code();
        let code = code.and_then(|code| u8::try_from(code).ok());
        return Err(Error::Reported(code.filter(|code| *code > 0).unwrap_or(3)));
    }
    ui::print(said.trim_end());
    Ok(())
}

/// Leaves who started this process: its session, its folder, its terminal.
pub(crate) fn leave() -> Result<()> {
    let fail = |error| Error::io("leave", "the session", error);
    rustix::process::setsid().map_err(|errno| fail(errno.into()))?;
    std::env::set_current_dir("/").map_err(fail)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| Error::io("open", "/dev/null", error))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .map_err(|errno| fail(errno.into()))
}

/// Complaints of a server in the foreground.
pub(crate) fn stderr() -> Sink {
    Box::new(|line| {
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr(), "obd: {line}");
    })
}

/// Complaints of a server that left: where those of the kernel's driver are.
pub(crate) fn kernel_log() -> Result<Sink> {
    const PATH: &str = "/dev/kmsg";
    /// The kernel takes lines of 1024 bytes.
    const MOST: usize = 1000;
    let log = OpenOptions::new().write(true).open(PATH);
    let log = log.map_err(|error| Error::io("open", PATH, error))?;
    Ok(Box::new(move |line| {
        // 3: an error. One write is one line.
        let line = format!("<3>obd: {line}");
        let line = line
            .get(..line.floor_char_boundary(MOST))
            .unwrap_or_default();
        // Without an end it is shown together with what somebody logs next.
        let line = format!("{line}\n");
        // As above.
        let _ = (&log).write_all(line.as_bytes());
    }))
}

/// The devices that are served from userspace; [`None`] if the kernel has no
/// driver for such.
pub(crate) fn devices() -> Result<Option<Vec<Status>>> {
    if !Control::exists() {
        return Ok(None);
    }
    let numbers = obd_ublk::numbers().map_err(|error| Error::io("list", "/dev", error))?;
    if numbers.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut control = Control::open()?;
    let mut devices = Vec::new();
    for id in numbers {
        let Some(device) = control.device(id)? else {
            continue;
        };
        let state = State::read(device.server);
        let (layers, zfile) = state.map_or((Vec::new(), false), |it| (it.layers, it.zfile));
        devices.push(Status {
            name: device.name(),
            device: device.live.then(|| Path::new("/dev").join(device.name())),
            layers,
            zfile,
            writable: false,
            volatile: false,
            writer: None,
            server: Some(device.server).filter(|_| device.served),
            stats: BTreeMap::from([
                ("queues".to_owned(), device.queues.into()),
                ("depth".to_owned(), device.depth.into()),
            ]),
        });
    }
    Ok(Some(devices))
}

/// Removes device `id`, and its disk is gone and its server done with it when this
/// returns; one in use only if `force` says so. The number may be taken until the
/// last of its users has closed it.
///
/// # Errors
///
/// [`Error::Device`] if it is not there or not of this program,
/// [`Error::Interrupted`] if a signal came while it was waited for.
pub(crate) fn detach(id: u32, force: bool, interrupted: &AtomicBool) -> Result<()> {
    let mut control = Control::open()?;
    let before = control.device(id)?.ok_or_else(|| Error::Device {
        name: format!("ublkb{id}"),
        reason: "is not attached",
    })?;
    if before.live {
        control.stop(id, force)?;
    }
    // Another device may have its number soon, but not its server.
    let same = |now: &Device| now.server == before.server;
    while let Some(now) = control.device(id)?.filter(same) {
        if !now.live && !now.served {
            // A server that is alive has done so before it closed it.
            control.delete(id)?;
            break;
        }
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        thread::sleep(POLL);
    }
    remove(&State::path(before.server));
    Ok(())
}
