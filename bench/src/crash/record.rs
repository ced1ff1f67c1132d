// SPDX-License-Identifier: MIT
//! Recording workloads in a guest, and letting its kernel recover states.
//!
//! The guest has two drives, each served by a process of ours that logs what it
//! receives: the one under test, and one that threads write a marker to after
//! each sync. In some modes a third one holds the journal. All take their times from
//! the host's monotonic clock, so that what one received before another had completed
//! something is known, and a power cut is one moment. What carries FUA is known to the
//! guest alone, as QEMU's drive drops the flag: the driver's tracepoint tells.

use super::mode::{
    Files,
    Mode,
    SIZE, //
};
use crate::context::Context;
use crate::device::{
    Latency,
    Server, //
};
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::guest::{
    Backend,
    BootConfig,
    Drive,
    Guest, //
};
use crate::stack::Stack;
use aios_crash::check::Recording;
use aios_crash::disk::FOLDER;
use aios_crash::history::{
    History,
    Log,
    Sent, //
};
use aios_disk::write_log::{
    Kind,
    Reader,
    Record, //
};
use aios_guest::GUEST_BINARY;
use aios_guest::crash::Plan;
use aios_guest::new_blocks::STALE;
use std::collections::BTreeMap;
use std::fs::{
    self,
    File, //
};
use std::ops::Range;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::time::Duration;

/// Where the drive under test is mounted in the guest.
const MOUNT: &str = "/run/aios-crash";
/// The tracepoint at which the driver has set up a command.
const TRACEPOINT: &str = "/sys/kernel/tracing/events/nvme/nvme_setup_cmd";
/// The one at which the drive is told of a write around the block layer.
const LBIO_TRACEPOINT: &str = "/sys/kernel/tracing/events/lbio/lbio_write_submit";
/// Virtual CPUs: syncs of several threads run side by side.
const CPUS: u32 = 2;
/// Size of the drive for markers, bytes.
const MARKERS: u64 = 1 << 20;
/// The drives in the guest: the one under test, the one for markers, and the journal's.
const DRIVE: &str = "nvme0n1";
const MARKER: &str = "nvme1n1";
const JOURNAL: &str = "nvme2n1";
/// Comes between what the guest's trace has of one drive and of the next.
const BORDER: &str = "-- journal --";
/// A script in the guest may take this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// What guests need for read-write disks.
#[derive(Debug, Clone)]
pub(super) struct Obd {
    /// The tool.
    pub(super) tool: PathBuf,
    /// The driver.
    pub(super) module: PathBuf,
}

/// A guest that records.
pub(super) struct Recorder {
    guest: Guest,
    drive: Server,
    markers: Server,
    /// If a mode has a drive for its journal.
    journal: Option<Server>,
    stack: Stack,
    images: BTreeMap<Mode, (Files, Arc<Vec<u8>>)>,
    dir: PathBuf,
    /// Plans so far: what the guest has read of one file it may remember.
    plans: u64,
    /// Whether fsync allocates new blocks as written ones; by turns if not said.
    alloc_written: Option<bool>,
    obd: Option<Obd>,
}

/// What the drives received.
struct Logs {
    drive: Vec<Record>,
    markers: Vec<Record>,
    /// Nothing where there is none.
    journal: Vec<Record>,
}

impl Recorder {
    /// Boots `kernel` with the drives; files go to `dir`, sockets to `sockets`. With
    /// the stack comes whether it writes around the block layer; `obd` is for modes with
    /// disks. With `--dry-run` it prints the QEMU line, and nothing is there.
    pub(super) fn boot(
        ctx: &Context,
        kernel: PathBuf,
        (stack, lbio_writes): (Stack, bool),
        modes: &[Mode],
        (dir, sockets): (&Path, &Path),
        obd: Option<Obd>,
    ) -> Result<Option<Self>> {
        let blank = dir.join("markers.img");
        let mut images = BTreeMap::new();
        for &mode in modes {
            let tool = obd.as_ref().map(|obd| obd.tool.as_path());
            let files = mode.make_images(ctx, dir, tool)?;
            let bytes = match ctx.dry_run {
                true => Vec::new(),
                false => fs::read(&files.all).at("read", &files.all)?,
            };
            images.insert(mode, (files, Arc::new(bytes)));
        }
        if !ctx.dry_run {
            let file = File::create(&blank).at("create", &blank)?;
            file.set_len(MARKERS).at("size", &blank)?;
        }
        let (first, _) = images
            .values()
            .next()
            .ok_or_else(|| Error::new("no mode to explore"))?;
        let start = |image: &Path, name: &str| {
            let name = format!("{}-{name}", stack.name());
            Server::start(ctx, image, sockets, &name, false)
        };
        let mut drive = start(&first.all, "drive")?;
        let markers = start(&blank, "marks")?;
        let journal = images
            .values()
            .find_map(|(files, _)| files.journal.as_ref());
        let mut journal = journal.map(|image| start(image, "journal")).transpose()?;
        let servers = [&drive, &markers].into_iter().chain(&journal);
        let mut config = BootConfig {
            cpus: CPUS,
            drives: servers
                .map(|server| Drive::new(Backend::Nbd(server.socket())))
                .collect(),
            ..BootConfig::new(kernel, format!("crash-{}", stack.name()), dir)
        };
        if lbio_writes {
            config.append.push(format!("nvme.lbio_queues={CPUS}"));
        }
        if ctx.dry_run {
            println!("{}", Guest::dry_line(ctx, &config)?);
            return Ok(None);
        }
        for server in [&mut drive].into_iter().chain(&mut journal) {
            server.set_latency(&Latency::default(), &out_of_order())?;
        }
        let mut guest = Guest::boot(ctx, &config)?;
        let write = 1;
        guest.sh(
            &format!(
                "{}\nmkdir -p {MOUNT}\necho 8192 > /sys/kernel/tracing/buffer_size_kb\n\
                 echo 'opcode == {write}' > {TRACEPOINT}/filter\necho 1 > {TRACEPOINT}/enable\n",
                stack.switch_script()
            ),
            PATIENCE,
        )?;
        if lbio_writes {
            let on = format!(
                "echo 1 > /sys/kernel/aios/lbio_writes\necho 1 > {LBIO_TRACEPOINT}/enable\n"
            );
            guest.sh(&on, PATIENCE)?;
        }
        Ok(Some(Self {
            guest,
            drive,
            markers,
            journal,
            stack,
            images,
            dir: dir.to_path_buf(),
            plans: 0,
            alloc_written: None,
            obd,
        }))
    }

    /// Lets two commands of five take so long that whoever does not wait for them
    /// is through before, on any host; or does not any more.
    pub(super) fn stall_some(&mut self, stall: bool) -> Result<()> {
        let mut latency = out_of_order();
        if stall {
            latency.points = vec![
                (0.0, 100_000),
                (60.0, 400_000),
                (61.0, 40_000_000),
                (100.0, 60_000_000),
            ];
        }
        self.drive.set_latency(&Latency::default(), &latency)
    }

    /// Switches a defect on in a kernel that has them; 0 for none. And says how
    /// fsync allocates and writes blocks from now on.
    pub(super) fn mutate(
        &mut self,
        number: u32,
        alloc_written: bool,
        lbio_writes: bool,
    ) -> Result<()> {
        self.alloc_written = Some(alloc_written);
        self.guest.sh(
            &format!(
                "echo {number} > /sys/module/jbd2/parameters/mutant\n\
                 echo {} > /sys/kernel/aios/lbio_writes",
                u8::from(lbio_writes)
            ),
            PATIENCE,
        )?;
        Ok(())
    }

    /// Lets the guest do what `plan` says on a fresh file system.
    pub(super) fn record(&mut self, mode: Mode, plan: &Plan) -> Result<Recording> {
        let (files, initial) = self.image(mode)?;
        self.load(&files)?;
        self.start_logs()?;
        self.plans += 1;
        let plan_path = self.dir.join(format!("plan-{}.json", self.plans));
        let json = serde_json::to_vec(plan).map_err(|error| Error::new(error.to_string()))?;
        fs::write(&plan_path, json).at("write", &plan_path)?;
        let (attach, folder, detach) = self.disk(mode)?;
        let mut traced = trace_of(DRIVE);
        if mode.journal().is_some() {
            traced = format!("{traced}echo '{BORDER}'\n{}", trace_of(JOURNAL));
        }
        let trace = self.guest.sh(
            &format!(
                "echo > /sys/kernel/tracing/trace\n\
                 {}\n\
                 {attach}\
                 {GUEST_BINARY} crash --plan '{}' --dir {folder} --marker /dev/{MARKER} >/dev/null\n\
                 {detach}umount {MOUNT}\n\
                 {traced}",
                self.mount_line(mode),
                plan_path.display(),
            ),
            PATIENCE,
        );
        fs::remove_file(&plan_path).at("remove", &plan_path)?;
        let logged = self.stop_logs();
        let trace = trace?;
        let logs = logged?;
        let drives = places(mode);
        let traces = drives.iter().zip(trace.split(BORDER));
        let sent: Vec<_> = traces
            .map(|(bytes, text)| parse_trace(text, bytes))
            .collect::<Result<_>>()?;
        let records = [&logs.drive, &logs.journal];
        let drives: Vec<_> = drives
            .into_iter()
            .zip(records)
            .map(|(bytes, records)| Log { bytes, records })
            .collect();
        let mut history = History::new(&drives, &logs.markers, &sent.concat()).map_err(ours)?;
        if !mode.is_cached() {
            history.complete_is_durable();
        }
        let syncs = plan.threads.iter().flatten().filter(|op| op.is_sync());
        if syncs.count() != history.marks.len() {
            return Err(Error::new("the recording lacks acknowledgements"));
        }
        Ok(Recording {
            initial,
            journal: mode.journal(),
            history,
            subject: mode.subject(plan)?,
        })
    }

    /// What comes before and after a plan in the guest, and where its folders are
    /// meanwhile: every file in them is the disk. In half of all recordings the writer is
    /// killed in the middle.
    fn disk(&self, mode: Mode) -> Result<(String, &'static str, String)> {
        if mode != Mode::RwDisk {
            return Ok((String::new(), MOUNT, String::new()));
        }
        let files = "/run/aios-crash-disk";
        let kill = match self.plans.is_multiple_of(2) {
            true => format!(
                "(sleep 0.{}; kill -9 $($obd --json list | \
                     sed -n 's/.*\"writer\":{{\"pid\":\\([0-9]*\\).*/\\1/p')\n\
                     while $obd list | grep -q 'writer [0-9]'; do sleep 0.02; done\n\
                     $obd writer {MOUNT}/{FOLDER} >/dev/null) & killer=$!\n",
                self.plans * 7 % 10
            ),
            false => "killer=\n".to_owned(),
        };
        let attach = format!(
            "{}for t in 0 1 2; do mkdir -p {files}/t$t; ln -sf $dev {files}/t$t/f0; done\n{kill}",
            self.attach("--max-layers 3 --memory 256K --commit-age 0.05")?
        );
        let detach = "[ -z \"$killer\" ] || wait $killer\n$obd detach w\n".to_owned();
        Ok((attach, files, detach))
    }

    /// Attaches the disk as `w` and `$dev`.
    fn attach(&self, options: &str) -> Result<String> {
        let obd = self.obd.as_ref();
        let Obd { tool, module } = obd.ok_or_else(|| Error::new("no tool for disks"))?;
        Ok(format!(
            "obd='{}'\n[ -d /sys/kernel/config/obd ] || insmod '{}'\n\
             dev=$($obd attach --writable --name w {options} {MOUNT}/{FOLDER})\n",
            tool.display(),
            module.display()
        ))
    }

    /// Lets the guest's kernel mount `image` and read all files; the drives after
    /// it was unmounted.
    pub(super) fn mount(&mut self, mode: Mode, image: &[u8]) -> Result<Vec<u8>> {
        let files = Files {
            all: self.dir.join("state.img"),
            journal: mode.journal().map(|_| self.dir.join("state.journal.img")),
        };
        fs::write(&files.all, image).at("write", &files.all)?;
        if let Some((path, at)) = files.journal.as_ref().zip(mode.journal()) {
            fs::write(path, &image[at..]).at("write", path)?;
        }
        self.load(&files)?;
        self.start_logs()?;
        // A disk is opened by its writer, and read by the driver.
        let disk = match mode {
            Mode::RwDisk => self.attach("")? + "cat $dev >/dev/null\n$obd detach w\n",
            _ => String::new(),
        };
        let done = self.guest.sh(
            // One that could not be read through may have been left.
            &format!(
                "umount -q {MOUNT} || :\n{}\nfind {MOUNT} -type f -exec cat {{}} + >/dev/null\n{disk}umount {MOUNT}\n",
                self.mount_line(mode)
            ),
            PATIENCE,
        );
        let logged = self.stop_logs();
        done.map_err(|error| error.context("mounting a state"))?;
        let logs = logged?;
        let mut image = image.to_vec();
        for (bytes, records) in places(mode).into_iter().zip([logs.drive, logs.journal]) {
            // Both ends are those of drives in memory.
            let drive = &mut image[bytes.start as usize..bytes.end as usize];
            for record in records {
                let start = usize::try_from(record.offset).unwrap_or(usize::MAX);
                let range = start..start.saturating_add(record.length as usize);
                match (drive.get_mut(range), record.kind) {
                    (Some(to), Kind::Write) => to.copy_from_slice(&record.data),
                    (Some(to), _) => to.fill(0),
                    (None, _) => return Err(Error::new("the drive's log ends beyond the drive")),
                }
            }
        }
        Ok(image)
    }

    /// Lets direct reads race with syncs that give a file its blocks, on a fresh file
    /// system; what they saw that nobody stored.
    pub(super) fn read_new_blocks(&mut self, mode: Mode) -> Result<Option<String>> {
        let (files, _) = self.image(mode)?;
        self.load(&files)?;
        let done = self.guest.sh(
            &format!(
                "{}\n\
                 {GUEST_BINARY} new-blocks --file {MOUNT}/new --rounds 3 2>&1 || :\n\
                 umount {MOUNT}\n",
                self.mount_line(mode),
            ),
            PATIENCE,
        )?;
        match done.trim() {
            stale if stale.contains(STALE) => Ok(Some(stale.to_owned())),
            read if read.contains("\"reads\"") && !read.contains("\"reads\":0") => Ok(None),
            other => Err(Error::new(other)),
        }
    }

    /// Ends the guest; its log must be clean.
    pub(super) fn shutdown(self) -> Result<()> {
        self.guest.shutdown()
    }

    fn image(&self, mode: Mode) -> Result<(Files, Arc<Vec<u8>>)> {
        let image = self.images.get(&mode).cloned();
        image.ok_or_else(|| Error::new(format!("no drive for mode {}", mode.name())))
    }

    fn mount_line(&self, mode: Mode) -> String {
        let journal = match mode.journal() {
            Some(_) => format!("journal_path=/dev/{JOURNAL}"),
            None => String::new(),
        };
        let options = [mode.mount_option(), self.stack.mount_options(), &journal];
        let options: Vec<&str> = options.into_iter().filter(|o| !o.is_empty()).collect();
        // Commits start early for any number of threads, and end as early as they can: more
        // orders to see.
        let knobs = match self.stack {
            Stack::Async => {
                // The recordings of a mode are those of every so many plans.
                let round = self.plans.saturating_sub(1) / self.images.len().max(1) as u64;
                let alloc_written = self.alloc_written.unwrap_or(round.is_multiple_of(2));
                format!(
                    "\ncd /sys/fs/ext4/{DRIVE}\necho 99 > fsync_early_max\n\
                     echo 1000 > fsync_spin_us\n\
                     echo {} > fsync_alloc_written\ncd /",
                    u8::from(alloc_written)
                )
            }
            Stack::Native | Stack::Off => String::new(),
        };
        let cache = match mode.is_cached() {
            true => "back",
            false => "through",
        };
        format!(
            "echo write {cache} > /sys/block/{DRIVE}/queue/write_cache\n\
             mount -t ext4 -o {} /dev/{DRIVE} {MOUNT}{knobs}",
            options.join(",")
        )
    }

    /// Makes the drives hold what the files do. What lies behind the file system does not
    /// matter on its drive.
    fn load(&mut self, files: &Files) -> Result<()> {
        self.drive.load(&files.all)?;
        match (&mut self.journal, &files.journal) {
            (Some(server), Some(path)) => server.load(path),
            (_, None) => Ok(()),
            (None, Some(_)) => Err(Error::new("no drive for the journal")),
        }
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn start_logs(&mut self) -> Result<()> {
        let paths = ["drive", "markers", "journal"].map(|name| self.log_path(name));
        let servers = [&mut self.drive, &mut self.markers].into_iter();
        for (server, log) in servers.chain(&mut self.journal).zip(&paths) {
            // Left by a run that was ended, most likely.
            if log.exists() {
                fs::remove_file(log).at("remove", log)?;
            }
            server.start_log(log)?;
        }
        Ok(())
    }

    fn stop_logs(&mut self) -> Result<Logs> {
        let servers = [&mut self.drive, &mut self.markers].into_iter();
        for server in servers.chain(&mut self.journal) {
            server.stop_log()?;
        }
        let read = |name: &str| {
            Reader::open(&self.log_path(name))
                .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
                .map_err(|error| Error::new(error.to_string()))
        };
        Ok(Logs {
            drive: read("drive")?,
            markers: read("markers")?,
            journal: match self.journal {
                Some(_) => read("journal")?,
                None => Vec::new(),
            },
        })
    }
}

/// Where a mode's drives are among the bytes of all: the file system's, and the journal's if
/// it has one.
fn places(mode: Mode) -> Vec<Range<u64>> {
    let whole = 0..SIZE as u64;
    match mode.journal() {
        Some(at) => vec![0..at as u64, at as u64..whole.end],
        None => vec![whole],
    }
}

/// Prints what the guest's trace has of a drive.
fn trace_of(drive: &str) -> String {
    format!(
        "grep -e disk={drive} -e \"lbio_write_submit: $(lsblk -ndo MAJ:MIN /dev/{drive} | \
             tr -d ' ' | tr : ,) \" /sys/kernel/tracing/trace\n"
    )
}

/// Times of writes: commands are under way together and complete out of order.
fn out_of_order() -> Latency {
    Latency {
        points: vec![(0.0, 100_000), (50.0, 400_000), (100.0, 2_000_000)],
    }
}

pub(super) fn ours(error: aios_crash::Error) -> Error {
    Error::new(error.to_string())
}

/// The write commands of a trace, in order, of a drive with blocks of 512 bytes that is at
/// `drive` among the bytes of all.
fn parse_trace(text: &str, drive: &Range<u64>) -> Result<Vec<Sent>> {
    let unreadable = |line: &str| Error::new(format!("the guest's trace has the line {line:?}"));
    let mut sent = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some((_, write)) = line.split_once("lbio_write_submit: ") {
            sent.push(parse_lbio(write, drive).ok_or_else(|| unreadable(line))?);
            continue;
        }
        let field = |name: &str| {
            let value = line.split_once(name)?.1;
            value.split([',', ')', ' ']).next()
        };
        let decimal = |name: &str| field(name)?.parse::<u64>().ok();
        let control = field("ctrl=0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
        let (Some(first), Some(blocks), Some(control)) =
            (decimal("slba="), decimal("len="), control)
        else {
            return Err(unreadable(line));
        };
        let length = u32::try_from((blocks + 1) * 512).map_err(|_| unreadable(line))?;
        sent.push(Sent {
            offset: place(first, drive).ok_or_else(|| unreadable(line))?,
            length,
            // NVM Command Set 1.0c, figure 60: bit 30 of dword 12.
            fua: control & (1 << 14) != 0,
        });
    }
    Ok(sent)
}

/// Where a sector of a drive is among the bytes of all.
fn place(sector: u64, drive: &Range<u64>) -> Option<u64> {
    let at = sector.checked_mul(512)?.checked_add(drive.start)?;
    Some(at).filter(|at| *at < drive.end)
}

/// A write around the block layer: `DEVICE slot N sector FIRST + COUNT`, and FUA.
fn parse_lbio(text: &str, drive: &Range<u64>) -> Option<Sent> {
    let mut words = text.split_once(" sector ")?.1.split_whitespace();
    let first = words.next()?.parse::<u64>().ok()?;
    let count = words.nth(1)?.parse::<u32>().ok()?;
    Some(Sent {
        offset: place(first, drive)?,
        length: count.checked_mul(512)?,
        fua: words.next() == Some("FUA"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Range<u64> = 0..SIZE as u64;

    #[test]
    fn test_parse_trace_knows_fua() {
        let line = |ctrl| {
            format!(
                " jbd2/nvme0n1-8-75 [000] ..... 3.14: nvme_setup_cmd: nvme0: disk=nvme0n1, qid=1, \
                 cmdid=5, nsid=1, flags=0x0, meta=0x0, cmd=(nvme_cmd_write slba=800, len=7, \
                 ctrl={ctrl}, dsmgmt=0, reftag=0)\n"
            )
        };
        let sent = parse_trace(&(line("0x0") + &line("0x4000")), &BYTES).unwrap();
        let range = |fua| Sent {
            offset: 409_600,
            length: 4096,
            fua,
        };
        assert_eq!(sent, [range(false), range(true)]);
        let second = BYTES.end..2 * BYTES.end;
        let sent = parse_trace(&line("0x0"), &second).unwrap();
        assert_eq!(sent[0].offset, BYTES.end + 409_600);
        assert!(parse_trace(&line("0x0"), &(0..409_600)).is_err());
    }

    #[test]
    fn test_parse_trace_knows_writes_around_the_block_layer() {
        let line = "aios-guest-80 [001] ..... 3.1: lbio_write_submit: 259,1 slot 3 sector 800 + 8";
        let sent = parse_trace(&format!("{line}\n{line} FUA\n"), &BYTES).unwrap();
        let ranges = sent.iter().map(|it| (it.offset, it.length, it.fua));
        assert_eq!(
            ranges.collect::<Vec<_>>(),
            [(409_600, 4096, false), (409_600, 4096, true)]
        );
        assert!(parse_trace("lbio_write_submit: 259,1 slot 3 sector 800", &BYTES).is_err());
    }

    #[test]
    fn test_parse_trace_other_lines_return_error() {
        assert!(parse_trace("CPU:0 [LOST 5 EVENTS]", &BYTES).is_err());
        assert!(parse_trace("slba=99999999999999, len=7, ctrl=0x0", &BYTES).is_err());
    }
}
