// SPDX-License-Identifier: MIT
//! The guest: QEMU with an emulated NVMe drive, and talking to what runs in it.

mod faults;
mod initramfs;
pub(crate) mod interrupt;
mod kvm;
mod log;
mod qemu;
mod qmp;
mod vm;

use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::ui::Ui;
use aios_guest::protocol::{
    Decoder,
    Exit,
    Frame,
    Run,
    Shell,
    VERSION, //
};
use log::Log;
pub(crate) use qemu::{
    Console,
    check, //
};
use qemu::{
    Files,
    Machine, //
};
use qmp::Qmp;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs::{
    self,
    File, //
};
use std::io::{
    ErrorKind,
    Read,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::atomic::{
    AtomicU32,
    Ordering, //
};
use std::time::{
    Duration,
    Instant, //
};
use vm::Vm;

/// How often a waiting harness looks at the log, the clock and Ctrl-C.
const TICK: Duration = Duration::from_millis(200);

/// How long the agent may take to kill a command whose time is over.
const KILL_TIME: Duration = Duration::from_secs(30);

/// How long the guest may take to end its programs, unmount and power off.
const SHUTDOWN_TIME: Duration = Duration::from_secs(60);

/// How the guest's IOMMU treats the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Iommu {
    /// Translation with deferred invalidation (the kernel's default).
    Lazy,
    /// Translation with invalidation at every unmap.
    Strict,
    /// No IOMMU.
    Off,
}

/// What may run the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    /// KVM where a probe boot shows that it works, else emulation.
    Auto,
    /// Emulation.
    Tcg,
    /// KVM, or fail.
    Kvm,
    /// Emulation in virtual time: an instruction takes one nanosecond, and time
    /// that the guest waits passes at once. The same every time. Several CPUs take
    /// turns on one clock, so together they are no faster than one.
    #[value(skip)]
    VirtualTime,
}

/// What an emulated drive reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A raw image file.
    File(PathBuf),
    /// Our NBD server's socket.
    Nbd(PathBuf),
    /// QEMU's null driver: size in bytes, latency in nanoseconds.
    Null {
        /// Size in bytes.
        size: u64,
        /// Added latency in nanoseconds.
        latency_ns: u64,
    },
}

/// One emulated NVMe drive; `/dev/nvme{i}n1` in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Drive {
    /// What it stores.
    pub(crate) backend: Backend,
    /// I/O queue pairs offered (`max_ioqpairs`).
    pub(crate) queues: u32,
    /// Maximum data transfer size, as a power of two in 4 KiB pages.
    pub(crate) mdts: u8,
    /// Logical block size in bytes: 512 or 4096.
    pub(crate) lba: u32,
    /// Whether the drive has a volatile write cache as the guest sees it.
    pub(crate) write_cache: bool,
}

impl Drive {
    /// A drive as QEMU makes it unless told otherwise: 64 queue pairs, 512 KiB
    /// per command, blocks of 512 bytes, a volatile write cache.
    pub(crate) fn new(backend: Backend) -> Self {
        Self {
            backend,
            queues: 64,
            mdts: 7,
            lba: 512,
            write_cache: true,
        }
    }
}

/// A guest to boot.
#[derive(Debug, Clone)]
pub(crate) struct BootConfig {
    /// bzImage.
    pub(crate) kernel: PathBuf,
    /// Name for logs and messages: "native", "patched".
    pub(crate) name: String,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// IOMMU mode.
    pub(crate) iommu: Iommu,
    /// What may run it.
    pub(crate) accel: Accel,
    /// Emulated drives.
    pub(crate) drives: Vec<Drive>,
    /// More kernel command line.
    pub(crate) append: Vec<String>,
    /// More QEMU arguments (the TCG plugin, for one).
    pub(crate) qemu: Vec<String>,
    /// Where console log and QEMU line are kept (`NAME.log`, `NAME.qemu`).
    pub(crate) out: PathBuf,
    /// How long the boot may take.
    pub(crate) boot_timeout: Duration,
}

impl BootConfig {
    /// A guest with one CPU, 1 GiB, a lazy IOMMU and no drive.
    pub(crate) fn new(
        kernel: impl Into<PathBuf>,
        name: impl Into<String>,
        out: impl Into<PathBuf>,
    ) -> Self {
        Self {
            kernel: kernel.into(),
            name: name.into(),
            cpus: 1,
            memory_mib: 1024,
            iommu: Iommu::Lazy,
            accel: Accel::Auto,
            drives: Vec::new(),
            append: Vec::new(),
            qemu: Vec::new(),
            out: out.into(),
            // Emulated, with a debug kernel, on a busy machine.
            boot_timeout: Duration::from_secs(180),
        }
    }
}

/// A command for the guest's agent. Runs in the guest with the host's root
/// (nothing of which it can change) as its root.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct GuestCommand {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// More environment.
    pub(crate) env: Vec<(String, String)>,
    /// Seconds until it is killed; 0 means none.
    pub(crate) timeout_s: u64,
}

/// What a guest command did.
#[derive(Debug, Clone)]
pub(crate) struct GuestOutput {
    /// Exit code; 128 + signal when killed.
    pub(crate) code: i32,
    /// Whether it was killed because its time was over.
    pub(crate) timed_out: bool,
    /// Standard output, whole.
    pub(crate) stdout: Vec<u8>,
    /// Standard error, whole.
    pub(crate) stderr: Vec<u8>,
}

/// A piece of a running command's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Of its standard output.
    Stdout(&'a [u8]),
    /// Of its standard error.
    Stderr(&'a [u8]),
}

/// A running guest. Dropping it kills QEMU.
#[derive(Debug)]
pub(crate) struct Guest {
    name: String,
    line: String,
    machine: Machine,
    ui: Ui,
    log: Log,
    vm: Vm,
    qmp: Qmp,
    agent: UnixStream,
    decoder: Decoder,
    /// Until when a command may run whose end nobody has waited for, as a fault was
    /// logged meanwhile. Its answer would be taken for the next one's.
    unanswered: Option<Instant>,
    /// Held locked: no other guest may write the same log.
    _lock: File,
}

/// A command for scripts that expects another to fail: the shell's own `!` does
/// not end a script, whatever comes of it.
const NO: &str = "no() { if \"$@\"; then echo \"no error: $*\" >&2; exit 1; fi; }\n";

impl Guest {
    /// Boots and waits for the agent. Fails with the console's last words.
    ///
    /// QEMU is killed when the calling thread ends: call it from one that
    /// outlives the guest.
    pub(crate) fn boot(ctx: &Context, config: &BootConfig) -> Result<Self> {
        Self::boot_on(ctx, config, Console::Log)
    }

    /// As [`Guest::boot`], with the console where `console` says.
    pub(crate) fn boot_on(ctx: &Context, config: &BootConfig, console: Console) -> Result<Self> {
        interrupt::watch();
        // First, so that nothing missing here is taken for a fault of KVM.
        prepare(ctx, config)?;
        let machine = kvm::machine(ctx, config)?;
        Self::start(ctx, config, machine, console)
    }

    /// The QEMU line that [`Guest::boot`] would run, for `--dry-run`.
    pub(crate) fn dry_line(ctx: &Context, config: &BootConfig) -> Result<String> {
        let machine = kvm::machine(ctx, config)?;
        let files = files(ctx, config)?;
        Ok(qemu::tool(config, machine, Console::Log, &files)?.line())
    }

    /// Boots what is prepared.
    fn start(
        ctx: &Context,
        config: &BootConfig,
        machine: Machine,
        console: Console,
    ) -> Result<Self> {
        let deadline = Instant::now() + config.boot_timeout;
        let files = files(ctx, config)?;
        let tool = qemu::tool(config, machine, console, &files)?;
        fs::create_dir_all(&config.out).at("create the folder", &config.out)?;
        let lock = note_line(config, &tool.line())?;
        // What an earlier guest of this name left would be taken for this one's.
        File::create(&files.log).at("create", &files.log)?;

        let mut log = Log::new(&config.name, &files.log);
        let mut vm = Vm::start(&tool, console, files)?;
        let sockets = [vm.files().qmp.clone(), vm.files().agent.clone()];
        let mut streams = Vec::new();
        for socket in &sockets {
            match vm.connect(socket, deadline)? {
                Some(stream) => streams.push(stream),
                None => return Err(not_booted(&config.name, &mut vm, &mut log, ctx.ui)),
            }
        }
        let (Some(agent), Some(monitor)) = (streams.pop(), streams.pop()) else {
            return Err(not_booted(&config.name, &mut vm, &mut log, ctx.ui));
        };
        agent
            .set_read_timeout(Some(TICK))
            .at("set up", &sockets[1])?;
        let qmp = match Qmp::new(monitor) {
            Ok(qmp) => qmp,
            // It listens before it looks at its other arguments.
            Err(_) if vm.wait(Instant::now() + TICK)? => {
                return Err(not_booted(&config.name, &mut vm, &mut log, ctx.ui));
            }
            Err(error) => return Err(error),
        };
        let mut guest = Self {
            name: config.name.clone(),
            line: tool.line(),
            machine,
            ui: ctx.ui,
            log,
            qmp,
            vm,
            agent,
            decoder: Decoder::default(),
            unanswered: None,
            _lock: lock,
        };
        match guest.receive(Some(deadline))? {
            Some(Frame::Ready(ready)) if ready.version == VERSION => {
                tracing::info!("the guest {} runs Linux {}", guest.name, ready.kernel);
            }
            Some(_) => return Err(guest.nonsense("it does not greet")),
            None => {
                return Err(not_booted(
                    &guest.name,
                    &mut guest.vm,
                    &mut guest.log,
                    ctx.ui,
                ));
            }
        }
        guest.set_up_drives(&config.drives)?;
        Ok(guest)
    }

    /// Checks that every drive is there and sets what QEMU cannot: its NVMe
    /// drives always claim a volatile write cache.
    fn set_up_drives(&mut self, drives: &[Drive]) -> Result<()> {
        let mut script = String::new();
        for (index, drive) in drives.iter().enumerate() {
            let name = format!("nvme{index}n1");
            script.push_str(&format!(
                "test -b /dev/{name} || {{ echo no /dev/{name} in the guest >&2; exit 1; }}\n"
            ));
            if !drive.write_cache {
                script.push_str(&format!(
                    "echo write through > /sys/block/{name}/queue/write_cache\n"
                ));
            }
        }
        if script.is_empty() {
            return Ok(());
        }
        self.sh(&script, KILL_TIME)?;
        Ok(())
    }

    /// Runs a command and waits for it. A guest that panics, hangs or logs a
    /// fault meanwhile fails the call with the offending lines.
    pub(crate) fn run(&mut self, command: &GuestCommand) -> Result<GuestOutput> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit = self.stream(command, &mut |piece| {
            match piece {
                Piece::Stdout(bytes) => stdout.extend(bytes),
                Piece::Stderr(bytes) => stderr.extend(bytes),
            }
            Ok(())
        })?;
        Ok(GuestOutput {
            code: exit.code,
            timed_out: exit.timed_out,
            stdout,
            stderr,
        })
    }

    /// As [`Guest::run`], handing the output to `sink` as it comes.
    pub(crate) fn stream(
        &mut self,
        command: &GuestCommand,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<Exit> {
        // In virtual time the guest's seconds are not ours.
        let timeout_s = match self.machine {
            Machine::VirtualTime => 0,
            Machine::Tcg | Machine::Kvm => command.timeout_s,
        };
        self.settle()?;
        self.send(&Frame::Run(Run {
            argv: command.argv.clone(),
            env: command.env.clone(),
            timeout_s,
        }))?;
        let deadline = (command.timeout_s > 0)
            .then(|| Instant::now() + Duration::from_secs(command.timeout_s) + KILL_TIME);
        self.unanswered = Some(deadline.unwrap_or_else(|| Instant::now() + KILL_TIME));
        let exit = loop {
            match self.receive(deadline)? {
                Some(Frame::Stdout(bytes)) => sink(Piece::Stdout(&bytes))?,
                Some(Frame::Stderr(bytes)) => sink(Piece::Stderr(&bytes))?,
                Some(Frame::Exit(exit)) => break exit,
                Some(_) => return Err(self.nonsense("it answers what was not asked")),
                None if self.vm.ended() => return Err(self.died()),
                None => {
                    return Err(Error::new(format!(
                        "the guest {} hangs: it could not end `{}` after {} s",
                        self.name,
                        command.argv.join(" "),
                        command.timeout_s
                    ))
                    .hint(self.log.hint()));
                }
            }
        };
        self.unanswered = None;
        self.log.check(self.ui)?;
        Ok(exit)
    }

    /// Waits for the end of a command that a fault kept from being waited for.
    fn settle(&mut self) -> Result<()> {
        let Some(deadline) = self.unanswered else {
            return Ok(());
        };
        loop {
            interrupt::check()?;
            match self.read() {
                Received::Frame(Frame::Exit(_)) => break,
                Received::Frame(_) => {}
                Received::Broken(why) => return Err(self.nonsense(&why)),
                Received::End => return Err(self.died()),
                Received::Nothing if Instant::now() < deadline => {}
                Received::Nothing => {
                    return Err(Error::new(format!(
                        "the guest {} still runs a command that failed",
                        self.name
                    ))
                    .hint(self.log.hint()));
                }
            }
        }
        self.unanswered = None;
        Ok(())
    }

    /// `run` of a shell script, failing unless every command in it (`set -e`)
    /// and so the script exits with 0; its standard output. The script has
    /// [`NO`].
    pub(crate) fn sh(&mut self, script: &str, timeout: Duration) -> Result<String> {
        let timeout_s = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let output = self.run(&GuestCommand {
            argv: ["/bin/sh", "-ec", &format!("{NO}{script}")]
                .map(str::to_owned)
                .to_vec(),
            env: Vec::new(),
            timeout_s,
        })?;
        if output.code == 0 {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = if output.timed_out {
            format!("took longer than {timeout_s} s")
        } else {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rfind(|line| !line.trim().is_empty());
            match last {
                Some(line) => format!("failed (exit code {}): {}", output.code, line.trim()),
                None => format!("failed (exit code {})", output.code),
            }
        };
        let first = script.lines().next().unwrap_or_default();
        Err(Error::new(format!(
            "in the guest {}, the script `{first}` {why}",
            self.name
        )))
    }

    /// Runs a shell on the console and waits for its end; its exit code. A
    /// guest that is switched off meanwhile gives 0.
    pub(crate) fn shell(&mut self, shell: Shell) -> Result<i32> {
        self.send(&Frame::Shell(shell))?;
        loop {
            interrupt::check()?;
            match self.read() {
                Received::Frame(Frame::Exit(exit)) => return Ok(exit.code),
                Received::Frame(_) => return Err(self.nonsense("it answers what was not asked")),
                Received::Broken(why) => return Err(self.nonsense(&why)),
                Received::Nothing => {}
                Received::End => {
                    self.vm.wait(Instant::now() + KILL_TIME)?;
                    self.log.check(self.ui)?;
                    return Ok(0);
                }
            }
        }
    }

    /// Stops the guest's CPUs (QMP `stop`); its clock stands still.
    pub(crate) fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop")?;
        Ok(())
    }

    /// Lets them go on (QMP `cont`).
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.qmp.execute("cont")?;
        Ok(())
    }

    /// Time that the host has given to the guest's CPUs so far, in
    /// nanoseconds (Documentation/scheduler/sched-stats.rst).
    pub(crate) fn cpu_time_ns(&mut self) -> Result<u64> {
        let cpus = self.qmp.execute("query-cpus-fast")?;
        let threads = cpus.as_array().map(Vec::as_slice).unwrap_or_default();
        let time = |cpu: &serde_json::Value| {
            let path = format!("/proc/{}/schedstat", cpu["thread-id"]);
            let text = fs::read_to_string(&path).at("read", &path)?;
            let first = text.split_whitespace().next().unwrap_or_default();
            let wrong = |_| Error::new(format!("{path} holds {text:?}"));
            first.parse::<u64>().map_err(wrong)
        };
        threads.iter().map(time).sum()
    }

    /// Powers off in order, then scans the whole console log for faults.
    pub(crate) fn shutdown(mut self) -> Result<()> {
        if !self.vm.ended() {
            self.send(&Frame::PowerOff)?;
        }
        if !self.vm.wait(Instant::now() + SHUTDOWN_TIME)? {
            self.log.check_all(self.ui)?;
            return Err(Error::new(format!(
                "the guest {} did not power off within {} s",
                self.name,
                SHUTDOWN_TIME.as_secs()
            ))
            .hint(self.log.hint()));
        }
        self.log.check_all(self.ui)
    }

    /// The QEMU command line, as it can be pasted into a shell.
    pub(crate) fn qemu_line(&self) -> &str {
        &self.line
    }

    /// Whether KVM runs it, rather than emulation.
    pub(crate) fn is_kvm(&self) -> bool {
        self.machine == Machine::Kvm
    }

    fn send(&mut self, frame: &Frame) -> Result<()> {
        let bytes = frame.encode().map_err(|error| {
            Error::new(format!(
                "cannot send a command to the guest {}: {error}",
                self.name
            ))
        })?;
        match self.agent.write_all(&bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died()),
        }
    }

    /// The next frame. `None` when `deadline` passed or QEMU has ended without
    /// a fault in the log. Fails on faults, on Ctrl-C and on nonsense.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Frame>> {
        loop {
            interrupt::check()?;
            match self.read() {
                Received::Frame(frame) => return Ok(Some(frame)),
                Received::Broken(why) => return Err(self.nonsense(&why)),
                Received::End => {
                    // It may still be writing what it has died of.
                    self.vm.wait(Instant::now() + KILL_TIME)?;
                    self.log.check(self.ui)?;
                    return Ok(None);
                }
                Received::Nothing => {
                    self.log.check(self.ui)?;
                    if deadline.is_some_and(|at| Instant::now() >= at) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Reads from the agent for at most a [`TICK`].
    fn read(&mut self) -> Received {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Received::Frame(frame),
                Ok(None) => {}
                Err(error) => return Received::Broken(error.to_string()),
            }
            match self.agent.read(&mut buffer) {
                Ok(0) => return Received::End,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) => {
                    return match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                            Received::Nothing
                        }
                        _ => Received::End,
                    };
                }
            }
        }
    }

    /// QEMU ended although nobody asked it to.
    fn died(&mut self) -> Error {
        if let Err(fault) = self.log.check(self.ui) {
            return fault;
        }
        let why = self.vm.complaint().or_else(|| self.log.last_words());
        Error::new(format!(
            "the guest {} ended: {}",
            self.name,
            why.unwrap_or_else(|| "it said nothing".to_owned())
        ))
        .hint(self.log.hint())
    }

    fn nonsense(&self, what: &str) -> Error {
        Error::new(format!(
            "cannot make sense of the guest {}'s agent: {what}",
            self.name
        ))
        .hint(self.log.hint())
    }
}

/// What came from the agent.
enum Received {
    /// A frame.
    Frame(Frame),
    /// Nothing in time.
    Nothing,
    /// The end of the stream: QEMU has ended.
    End,
    /// No frame.
    Broken(String),
}

/// Checks that what `config` names is there, and makes the initramfs.
fn prepare(ctx: &Context, config: &BootConfig) -> Result<()> {
    check(config)?;
    check_kernel(&config.kernel)?;
    for drive in &config.drives {
        if let Backend::File(image) = &drive.backend {
            check_image(image)?;
        }
    }
    write_initramfs(&init_binary(ctx)?, &initramfs_path(ctx))
}

/// Fails unless there is a file at `bzimage`.
pub(crate) fn check_kernel(bzimage: &Path) -> Result<()> {
    if bzimage.is_file() {
        return Ok(());
    }
    Err(Error::new(format!("no kernel at {}", bzimage.display()))
        .hint("give the path of a bzImage"))
}

/// Fails unless there is something at `image`.
pub(crate) fn check_image(image: &Path) -> Result<()> {
    if image.exists() {
        return Ok(());
    }
    Err(Error::new(format!("no image at {}", image.display()))
        .hint("give the path of a raw image or a block device"))
}

fn initramfs_path(ctx: &Context) -> PathBuf {
    ctx.part_dir("guest").join("initramfs.cpio")
}

/// Why a guest did not come up, from what there is to tell.
fn not_booted(name: &str, vm: &mut Vm, log: &mut Log, ui: Ui) -> Error {
    if let Err(fault) = log.check(ui) {
        return fault;
    }
    let ended = vm.ended();
    let words = vm.complaint().or_else(|| log.last_words());
    let what = match (ended, words) {
        (true, Some(words)) => format!("the guest {name} ended before it was up: {words}"),
        (true, None) => format!("the guest {name} ended before it was up"),
        (false, Some(words)) => {
            format!("the guest {name} did not come up in time; its last words: {words}")
        }
        (false, None) => {
            format!("the guest {name} did not come up in time and printed nothing")
        }
    };
    Error::new(what).hint(log.hint())
}

fn files(ctx: &Context, config: &BootConfig) -> Result<Files> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let out = std::path::absolute(&config.out).at("resolve", &config.out)?;
    // Not below `out`: a socket's path has room for 107 bytes only.
    let socket = |kind: &str| {
        std::env::temp_dir().join(format!("aios-{}-{count}.{kind}", std::process::id()))
    };
    Ok(Files {
        initramfs: initramfs_path(ctx),
        log: out.join(format!("{}.log", config.name)),
        agent: socket("agent"),
        qmp: socket("qmp"),
    })
}

/// Writes `line` to `NAME.qemu` and locks that file.
fn note_line(config: &BootConfig, line: &str) -> Result<File> {
    let path = config.out.join(format!("{}.qemu", config.name));
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at("create", &path)?;
    if file.try_lock().is_err() {
        return Err(Error::new(format!(
            "another guest called {} writes to {}",
            config.name,
            config.out.display()
        ))
        .hint("pass another folder with --out"));
    }
    file.set_len(0).at("write", &path)?;
    writeln!(file, "{line}").at("write", &path)?;
    Ok(file)
}

/// The static init's path, built when needed.
pub(crate) fn init_binary(ctx: &Context) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let dir = ctx.part_dir("guest");
    if !ctx.dry_run {
        fs::create_dir_all(&dir).at("create the folder", &dir)?;
    }
    let target_dir = dir.join("target");
    // A named target keeps the flags away from build scripts.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Tool::new(cargo)
        .args(["build", "--quiet", "--locked", "--release"])
        .args(["--package", "aios-guest", "--bin", "aios-guest"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C strip=symbols",
        )
        .dir(ctx.root())
        .logged(ctx, &dir.join("build.log"))?;
    Ok(target_dir.join(TARGET).join("release/aios-guest"))
}

/// Writes an initramfs of `init` (cpio newc) to `to`.
pub(crate) fn write_initramfs(init: &Path, to: &Path) -> Result<()> {
    initramfs::write(init, to)
}
