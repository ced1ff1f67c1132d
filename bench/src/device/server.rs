// SPDX-License-Identifier: MIT
//! Running our NBD server as a process of its own.
//!
//! The server is this very program, started with a hidden subcommand: nothing
//! else has to be found or built. It ends when its standard input does, and so
//! with this process, however that ends. (PR_SET_PDEATHSIG would end it with
//! the thread that started it.)

use super::{
    Counters,
    Latency, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use aios_disk::control::Control;
use aios_disk::power::PowerCut;
use std::fs::{
    self,
    File, //
};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Child,
    Stdio, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// The longest path of a Unix socket, bytes (`sun_path` and its final zero).
const MAX_SOCKET_PATH: usize = 107;
/// How long the server may take to start: it reads the image into memory.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to end.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(2);

/// Does what the hidden subcommand says; returns the exit code.
pub(crate) fn serve(command: aios_disk::cli::Command) -> Result<u8> {
    aios_disk::cli::run(command).map_err(ours)
}

/// A running NBD server of ours in a process of its own. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    socket: PathBuf,
    /// Nothing with `--dry-run`.
    running: Option<Running>,
}

impl Server {
    /// Serves `image` on a Unix socket in `dir`. Writes stay in memory (private
    /// copy) and the image is not changed, unless `keep`. With `--dry-run` it
    /// prints the command instead.
    pub(crate) fn start(
        ctx: &Context,
        image: &Path,
        dir: &Path,
        name: &str,
        keep: bool,
    ) -> Result<Self> {
        Self::start_with(ctx, image, dir, name, keep, None)
    }

    /// As [`Server::start`], with a volatile write cache and a power cut.
    pub(crate) fn start_with(
        ctx: &Context,
        image: &Path,
        dir: &Path,
        name: &str,
        keep: bool,
        cut: Option<PowerCut>,
    ) -> Result<Self> {
        let socket = dir.join(format!("{name}.nbd"));
        let control = dir.join(format!("{name}.control"));
        if control.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(Error::new(format!(
                "the path {} is too long for a socket",
                control.display()
            ))
            .hint(format!(
                "choose a folder whose path leaves it below {MAX_SOCKET_PATH} bytes"
            )));
        }
        let mut tool = program()
            .args(["disk", "serve", "--until-stdin-closes", "--image"])
            .arg(image)
            .arg("--socket")
            .arg(&socket)
            .arg("--control")
            .arg(&control);
        if keep {
            tool = tool.arg("--keep");
        }
        if let Some(cut) = cut {
            tool = tool
                .args(["--cut-at", &cut.at.to_string()])
                .args(["--cut-seed", &cut.seed.to_string()])
                .args(["--cut-block", &cut.block.to_string()])
                .args(["--cut-atomic", &cut.atomic.to_string()]);
        }
        let running = if ctx.dry_run {
            println!("{}", tool.line());
            None
        } else {
            let log = dir.join(format!("{name}.disk.log"));
            Some(Running::start(&tool, &control, &log).map_err(|error| {
                error.context(format!("the disk server for {}", image.display()))
            })?)
        };
        Ok(Self { socket, running })
    }

    /// The socket for [`crate::guest::Backend::Nbd`].
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Sets what is added from now on. Random latencies begin their sequence
    /// again.
    pub(crate) fn set_latency(&mut self, read: &Latency, write: &Latency) -> Result<()> {
        match &mut self.running {
            Some(running) => running.control.set_latency(read, write, None).map_err(ours),
            None => Ok(()),
        }
    }

    /// Lets writes fail that touch any of these `bytes` of the drive, and no others.
    pub(crate) fn set_bad(&mut self, bytes: Range<u64>) -> Result<()> {
        match &mut self.running {
            Some(running) => running.control.set_bad(bytes).map_err(ours),
            None => Ok(()),
        }
    }

    /// Makes the drive hold what the file `path` does, from the next command on.
    /// The guest must not have it mounted.
    pub(crate) fn load(&mut self, path: &Path) -> Result<()> {
        match &mut self.running {
            Some(running) => running.control.load(path).map_err(ours),
            None => Ok(()),
        }
    }

    /// Begins to log in `path`, which must not exist, what changes the drive.
    pub(crate) fn start_log(&mut self, path: &Path) -> Result<()> {
        match &mut self.running {
            Some(running) => running.control.start_log(path).map_err(ours),
            None => Ok(()),
        }
    }

    /// Ends the log and waits until it is on disk.
    pub(crate) fn stop_log(&mut self) -> Result<()> {
        match &mut self.running {
            Some(running) => running.control.stop_log().map(drop).map_err(ours),
            None => Ok(()),
        }
    }

    /// What was served so far.
    pub(crate) fn counters(&mut self) -> Result<Counters> {
        match &mut self.running {
            Some(running) => running.control.counters().map_err(ours),
            None => Ok(Counters::default()),
        }
    }
}

fn ours(error: aios_disk::Error) -> Error {
    Error::new(error.to_string())
}

/// The server's process and the connection to it.
#[derive(Debug)]
struct Running {
    /// Only held: it ends when this is dropped.
    _process: Process,
    control: Control,
}

impl Running {
    /// Starts the server and waits until it answers on `control`.
    fn start(tool: &Tool, control: &Path, log: &Path) -> Result<Self> {
        tracing::info!("{}", tool.line());
        let output = File::create(log).at("create the log", log)?;
        let child = tool
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(output)
            // Ctrl-C in the terminal is for this process to deal with.
            .process_group(0)
            .spawn()
            .map_err(|source| Error::new(format!("cannot be started: {source}")))?;
        let mut process = Process(child);
        let start = Instant::now();
        loop {
            // Looked for first: a socket left behind by another is refused by
            // nobody when the server has ended.
            if let Some(status) = process.0.try_wait().at("wait for", log)? {
                let text = fs::read_to_string(log).unwrap_or_default();
                let last = text.lines().rfind(|line| !line.trim().is_empty());
                let said = last.unwrap_or_default().trim_start_matches("error: ");
                return Err(Error::new(format!("it ended at once ({status}): {said}")));
            }
            if let Ok(mut control) = Control::connect(control)
                && control.ping().is_ok()
            {
                return Ok(Self {
                    _process: process,
                    control,
                });
            }
            if start.elapsed() > START_PATIENCE {
                return Err(Error::new(format!(
                    "it did not answer within {} s",
                    START_PATIENCE.as_secs()
                ))
                .hint(format!("see {}", log.display())));
            }
            thread::sleep(LOOK);
        }
    }
}

/// A process that ends when dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let start = Instant::now();
        while start.elapsed() < END_PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK);
        }
        // It may have ended just now: then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program, even if a build has replaced its file since it was started.
const PROGRAM: &str = "/proc/self/exe";

/// This program, to be started again.
#[cfg(not(test))]
fn program() -> Tool {
    Tool::new(PROGRAM)
}

/// The program of the tests, which has no subcommands: one of its tests plays
/// the part, and finds the arguments after `--`.
#[cfg(test)]
fn program() -> Tool {
    Tool::new(PROGRAM)
        .args(["--exact", "device::server::tests::act_as_server"])
        .args(["--ignored", "--nocapture", "--"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::GlobalArgs;
    use aios_disk::client::Client;
    use clap::Parser;
    use std::env;

    /// What the program would make of the arguments after `--`.
    #[derive(Parser)]
    enum Cli {
        #[command(subcommand)]
        Disk(aios_disk::cli::Command),
    }

    #[test]
    #[ignore = "not a test: the other tests start it as the server"]
    fn act_as_server() {
        let args: Vec<_> = env::args().skip_while(|arg| arg != "--").collect();
        if args.is_empty() {
            // Somebody runs all that is ignored.
            return;
        }
        let Cli::Disk(command) = Cli::parse_from(args);
        if let Err(error) = serve(command) {
            eprintln!("error: {error}");
            std::process::exit(1);
        }
    }

    fn context(dry_run: bool) -> Context {
        Context::new(&GlobalArgs {
            verbose: 0,
            dry_run,
            cache: Some(env::temp_dir()),
        })
        .unwrap()
    }

    /// A folder with an image of 1 MiB of sevens.
    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        (dir, image)
    }

    #[test]
    fn test_start_serves_until_dropped() {
        let (dir, image) = folder();
        let mut server =
            Server::start(&context(false), &image, dir.path(), "native", false).unwrap();
        let mut client = Client::connect(&server.socket()).unwrap();
        let latency = Latency {
            points: vec![(50.0, 20_000_000)],
        };
        server.set_latency(&latency, &Latency::default()).unwrap();

        let start = Instant::now();
        let mut buffer = [0; 4096];
        client.read(0, &mut buffer).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        client.write(0, &[9; 512]).unwrap();

        let counters = server.counters().unwrap();
        assert_eq!((counters.reads, counters.read_bytes), (1, 4096));
        assert_eq!((counters.writes, counters.written_bytes), (1, 512));
        let socket = server.socket();
        drop(server);
        assert!(Client::connect(&socket).is_err());
        assert!(fs::read(&image).unwrap().iter().all(|&byte| byte == 7));
    }

    #[test]
    fn test_start_again_on_the_same_socket_works() {
        let (dir, image) = folder();
        for _ in 0..2 {
            let server =
                Server::start(&context(false), &image, dir.path(), "native", true).unwrap();
            let mut client = Client::connect(&server.socket()).unwrap();
            client.write(0, &[9; 512]).unwrap();
        }
        assert_eq!(fs::read(&image).unwrap()[511..513], [9, 7]);
    }

    #[test]
    fn test_start_missing_image_returns_its_cause() {
        let (dir, _) = folder();
        let image = dir.path().join("nothing");
        let error =
            Server::start(&context(false), &image, dir.path(), "native", false).unwrap_err();
        assert!(error.what().contains("cannot open the image"), "{error}");
        assert!(error.what().contains("No such file"), "{error}");
    }

    #[test]
    fn test_start_long_socket_path_returns_error_with_hint() {
        let (_dir, image) = folder();
        let dir = Path::new("/tmp").join("x".repeat(100));
        let error = Server::start(&context(false), &image, &dir, "native", false).unwrap_err();
        assert!(error.to_string().contains("choose a folder"), "{error}");
    }

    #[test]
    fn test_start_dry_run_starts_nothing() {
        let (dir, image) = folder();
        let mut server =
            Server::start(&context(true), &image, dir.path(), "native", false).unwrap();
        assert!(!server.socket().exists());
        assert_eq!(server.counters().unwrap(), Counters::default());
        server
            .set_latency(&Latency::default(), &Latency::default())
            .unwrap();
    }
}
