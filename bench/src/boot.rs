// SPDX-License-Identifier: MIT
//! `aios boot`: a command, or a shell, in the guest.

use crate::context::Context;
use crate::device::{
    self,
    Calibration,
    Latency,
    Model,
    Server,
    image, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::{
    self,
    Accel,
    Backend,
    BootConfig,
    Console,
    Drive,
    Guest,
    GuestCommand,
    Iommu,
    Piece, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Stack;
use aios_disk::power::PowerCut;
use aios_guest::protocol::Shell;
use std::io::{
    IsTerminal,
    Write, //
};
use std::path::{
    Path,
    PathBuf, //
};
use tempfile::{
    NamedTempFile,
    TempDir, //
};

/// The drive of the calibration, in its guest, and where it is mounted.
const CALIBRATED: [&str; 2] = ["/dev/nvme0n1", "/run/aios-drive"];

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Options of `aios boot`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Boot the unpatched base instead of the patched kernel.
    #[arg(long)]
    native: bool,
    /// Boot the debug build (lockdep, DMA_API_DEBUG, KUnit).
    #[arg(long)]
    debug: bool,
    /// Kernel tarball or tree to build instead of the pinned package.
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Boot this bzImage instead of building one.
    #[arg(long, value_name = "BZIMAGE", conflicts_with_all = ["native", "debug", "source"])]
    kernel: Option<PathBuf>,
    /// How the IOMMU treats the drive.
    #[arg(long, value_enum, default_value = "lazy")]
    iommu: Iommu,
    /// What may run the guest.
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Raw image (or block device) that becomes a drive, or `null` for one that
    /// forgets what is written; may be repeated [default: one fresh, empty
    /// drive that is thrown away at the end].
    #[arg(long, value_name = "FILE")]
    drive: Vec<PathBuf>,
    /// Slow the drives down to what this one takes, against what the unpatched
    /// kernel takes in a guest here.
    #[arg(long, value_enum)]
    device: Option<Model>,
    /// Size of the fresh drive and of null drives, in bytes or with K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    drive_size: u64,
    /// I/O queue pairs of the drives.
    #[arg(long, value_name = "N", default_value_t = 64)]
    queues: u32,
    /// Largest transfer of the drives: 4 KiB times two to the power of this; 0 for no limit.
    #[arg(long, value_name = "N", default_value_t = 7)]
    mdts: u8,
    /// Logical block size of the drives in bytes, 512 or 4096.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    lba: u32,
    /// Whether the guest takes the drives' write cache for volatile.
    #[arg(long, value_enum, default_value = "on")]
    write_cache: Switch,
    /// Cut the drives' power at this command that changes anything (write, flush,
    /// trim, write zeroes), counted from 1 for each drive: what was not flushed is
    /// lost in part, and the drive is gone. QEMU passes no FUA on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cut_at: Option<u64>,
    /// Chooses what survives the power cut.
    #[arg(long, value_name = "SEED", default_value_t = 1, requires = "cut_at")]
    cut_seed: u64,
    /// What lies within a unit of so many bytes is never torn, as of a drive that says so
    /// [default: logical blocks alone].
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true,
        requires = "cut_at", value_parser = aios_disk::cli::atomic_unit)]
    cut_atomic: u32,
    /// More kernel command line; may be repeated.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Vec<String>,
    /// One more QEMU argument; may be repeated.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// Kill the command after so many seconds; 0 for never.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// Where console log and QEMU line are kept [default: boot/ in the cache].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Command to run in the guest, whose exit code becomes this one's
    /// [default: a shell].
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `aios boot`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    if args.command.is_empty() && !ctx.dry_run && !std::io::stdin().is_terminal() {
        return Err(Error::new("a shell in the guest wants a terminal")
            .hint("name a command: `cargo aios boot -- COMMAND`"));
    }
    let out = match &args.out {
        Some(out) => out.clone(),
        None => ctx.cache().join("boot"),
    };
    // What cannot be is said before anything is built for it.
    check(args, &out)?;
    setup::ensure(ctx, &[Need::Boot])?;
    let (kernel, name) = kernel(ctx, args)?;
    let mut config = BootConfig {
        append: args.append.clone(),
        qemu: args.qemu.clone(),
        ..machine(args, kernel, name, out)
    };
    // Sockets of the drives: short paths.
    let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
    let speed = match args.device {
        Some(model) => Some(calibrate(ctx, args, model, &config.out, &sockets)?),
        None => None,
    };
    let fresh = Fresh::new(ctx, args.drive_size)?;
    let mut servers = Vec::new();
    for image in images(args, &fresh) {
        let cut = args.cut_at.map(|at| PowerCut {
            at,
            seed: args.cut_seed,
            block: args.lba,
            atomic: args.cut_atomic,
        });
        let backend = match (&speed, image.to_str()) {
            (speed, Some("null")) => Backend::Null {
                size: args.drive_size,
                latency_ns: speed.as_ref().map_or(0, |(read, _)| read.at(50.0)),
            },
            (None, _) if cut.is_none() => Backend::File(image),
            (speed, _) => {
                let name = format!("drive{}", servers.len());
                let mut server = Server::start_with(ctx, &image, sockets.path(), &name, true, cut)?;
                if let Some((read, write)) = speed {
                    server.set_latency(read, write)?;
                }
                let socket = server.socket();
                servers.push(server);
                Backend::Nbd(socket)
            }
        };
        config.drives.push(drive(args, backend));
    }
    if ctx.dry_run {
        println!("{}", Guest::dry_line(ctx, &config)?);
        return Ok(0);
    }
    if args.command.is_empty() {
        return shell(ctx, &config);
    }
    let command = GuestCommand {
        argv: args.command.clone(),
        env: Vec::new(),
        timeout_s: args.timeout,
    };
    self::command(ctx, &config, &command)
}

/// Fails where no such guest can be.
fn check(args: &Args, out: &Path) -> Result<()> {
    let mut config = machine(args, PathBuf::new(), "", out.to_owned());
    let anything = Backend::Null {
        size: args.drive_size,
        latency_ns: 0,
    };
    config.drives.push(drive(args, anything));
    guest::check(&config)?;
    if let Some(kernel) = &args.kernel {
        guest::check_kernel(kernel)?;
    }
    for image in &args.drive {
        if image.as_os_str() != "null" {
            guest::check_image(image)?;
        }
    }
    Ok(())
}

fn drive(args: &Args, backend: Backend) -> Drive {
    Drive {
        backend,
        queues: args.queues,
        mdts: args.mdts,
        lba: args.lba,
        write_cache: args.write_cache == Switch::On,
    }
}

/// The guest without drives.
fn machine(args: &Args, kernel: PathBuf, name: &str, out: PathBuf) -> BootConfig {
    BootConfig {
        cpus: args.cpus,
        memory_mib: args.memory,
        iommu: args.iommu,
        accel: args.accel,
        ..BootConfig::new(kernel, name, out)
    }
}

/// What to add to reads and to writes, by the reads of a native guest.
fn calibrate(
    ctx: &Context,
    args: &Args,
    model: Model,
    out: &Path,
    sockets: &TempDir,
) -> Result<(Latency, Latency)> {
    let native = kernel::build(ctx, Flavour::Native, Variant::Bench, args.source.as_deref())?;
    let image = image::find_or_make(ctx)?;
    let mut server = Server::start(ctx, &image, sockets.path(), "calibrated", false)?;
    let mut config = machine(args, native.bzimage, "calibration", out.to_owned());
    config.drives = vec![Drive::new(Backend::Nbd(server.socket()))];
    if ctx.dry_run {
        println!("{}", Guest::dry_line(ctx, &config)?);
        return Ok((Latency::default(), Latency::default()));
    }
    let bar = ctx.ui.spinner("calibrating the drive");
    let mut guest = Guest::boot(ctx, &config)?;
    let [drive, mount] = CALIBRATED;
    let chosen: Calibration = device::calibrate(
        model,
        &mut guest,
        &mut server,
        &Stack::Native.mount_script(drive, mount),
        &format!("{mount}/{}", image::FILE),
    )?;
    guest.shutdown()?;
    bar.finish_and_clear();
    ctx.ui.say(chosen.describe());
    Ok((chosen.read, chosen.write))
}

/// An empty drive that is gone afterwards; only its name with `--dry-run`.
pub(crate) enum Fresh {
    Made(NamedTempFile),
    Named(PathBuf),
}

impl Fresh {
    pub(crate) fn new(ctx: &Context, size: u64) -> Result<Self> {
        if ctx.dry_run {
            return Ok(Self::Named(ctx.cache().join("guest/drive.img")));
        }
        let dir = ctx.cache_dir("guest")?;
        let file = NamedTempFile::with_prefix_in("drive-", &dir).at("create a drive in", &dir)?;
        let sized = file.as_file().set_len(size);
        sized.at("size the drive", file.path())?;
        Ok(Self::Made(file))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Made(file) => file.path(),
            Self::Named(path) => path,
        }
    }
}

fn kernel(ctx: &Context, args: &Args) -> Result<(PathBuf, &'static str)> {
    if let Some(kernel) = &args.kernel {
        return Ok((kernel.clone(), "given"));
    }
    let (flavour, name) = if args.native {
        (Flavour::Native, "native")
    } else {
        (Flavour::Patched, "patched")
    };
    let variant = if args.debug {
        Variant::Debug
    } else {
        Variant::Bench
    };
    let built = kernel::build(ctx, flavour, variant, args.source.as_deref())?;
    Ok((built.bzimage, name))
}

/// The drives' images, of which `null` is none.
fn images(args: &Args, fresh: &Fresh) -> Vec<PathBuf> {
    match args.drive.as_slice() {
        [] => vec![fresh.path().to_path_buf()],
        given => given.to_vec(),
    }
}

/// Runs `command` in the guest, and shows what it prints; its exit code.
pub(crate) fn command(ctx: &Context, config: &BootConfig, command: &GuestCommand) -> Result<u8> {
    let mut guest = Guest::boot(ctx, config)?;
    let exit = guest.stream(command, &mut |piece| match piece {
        Piece::Stdout(bytes) => put(std::io::stdout().lock(), bytes, "standard output"),
        Piece::Stderr(bytes) => put(std::io::stderr().lock(), bytes, "standard error"),
    })?;
    guest.shutdown()?;
    if exit.timed_out {
        ctx.ui.say(format!(
            "the command was killed after {} s",
            command.timeout_s
        ));
    }
    Ok(code(exit.code))
}

fn put(mut to: impl Write, bytes: &[u8], name: &str) -> Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .at("write to", name)
}

fn shell(ctx: &Context, config: &BootConfig) -> Result<u8> {
    let terminal = Terminal::current();
    ctx.ui
        .say("exit or Ctrl-D ends the shell and the guest; Ctrl-A X ends a guest that hangs");
    let mut guest = Guest::boot_on(ctx, config, Console::Terminal)?;
    let code = guest.shell(Shell {
        rows: terminal.rows,
        columns: terminal.columns,
        term: std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned()),
    })?;
    guest.shutdown()?;
    Ok(self::code(code))
}

/// A guest command's exit code as one of this process.
fn code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// The terminal of standard input; dropping it restores its mode, which QEMU
/// changes and, killed, does not.
struct Terminal {
    mode: Option<libc::termios>,
    rows: u16,
    columns: u16,
}

impl Terminal {
    fn current() -> Self {
        // SAFETY: All zeros is a valid `termios`; the pointer lives through the
        // call, which fills it in.
        let mode = unsafe {
            let mut mode: libc::termios = std::mem::zeroed();
            (libc::tcgetattr(libc::STDIN_FILENO, &raw mut mode) == 0).then_some(mode)
        };
        // SAFETY: All zeros is a valid `winsize`; the pointer lives through the
        // call, which fills it in or leaves it zero.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            libc::ioctl(libc::STDIN_FILENO, libc::TIOCGWINSZ, &raw mut size);
            size
        };
        Self {
            mode,
            rows: size.ws_row,
            columns: size.ws_col,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(mode) = &self.mode {
            // SAFETY: The pointer lives through the call.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, mode) };
        }
    }
}

/// Bytes from `1073741824`, `1024M` or `1G`.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (digits, shift) = match text.trim_end_matches(|c: char| !c.is_ascii_digit()) {
        digits if digits == text => (digits, 0),
        digits => match &text[digits.len()..] {
            "K" | "k" => (digits, 10),
            "M" | "m" => (digits, 20),
            "G" | "g" => (digits, 30),
            "T" | "t" => (digits, 40),
            _ => return Err("give a number of bytes, or one with K, M, G or T".to_owned()),
        },
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "give a number of bytes, or one with K, M, G or T".to_owned())?;
    let bytes = number.checked_mul(1 << shift);
    // QEMU's drives end at 2^63 bytes.
    match bytes.filter(|bytes| i64::try_from(*bytes).is_ok()) {
        Some(0) => Err("a drive cannot be empty".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("no drive is that large".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_parse_size_knows_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
    }

    #[test]
    fn test_parse_size_bad_text_returns_error() {
        for text in [
            "",
            "G",
            "1X",
            "1GB",
            "-1",
            "0",
            "0K",
            "99999999999999999999",
            "9000000T",
            "1é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn test_code_out_of_range_is_not_success() {
        assert_eq!(code(3), 3);
        assert_eq!(code(256), 255);
        assert_eq!(code(-1), 255);
    }
}
