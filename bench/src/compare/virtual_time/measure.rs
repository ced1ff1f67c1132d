// SPDX-License-Identifier: MIT
//! The guest in virtual time, its device, and what is run on it.

use super::plan::{
    Call,
    Commit,
    Plan,
    Row,
    Spot, //
};
use super::schema::Sample;
use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::guest::{
    Accel,
    BootConfig,
    Guest,
    Iommu, //
};
use crate::kernel::{
    self,
    Built,
    Flavour,
    Variant, //
};
use crate::stack::Stack;
use aios_guest::GUEST_BINARY;
use aios_guest::work::WorkResult;
use std::path::{
    Path,
    PathBuf, //
};
use std::time::Duration;

/// Memory of the guest in MiB: the device's data and its cache fit in.
const MEMORY_MIB: u32 = 1024;
/// Size of the device in MiB.
const DEVICE_MIB: u32 = 256;
/// Size of its volatile cache in MiB: more than is written between flushes.
const CACHE_MIB: u32 = 64;
/// Size of the file that is overwritten, in MiB.
const FILE_MIB: u32 = 4;
/// Size of each thread's file, in KiB.
const THREAD_FILE_KIB: u32 = 512;
/// The device in the guest; the name of its folder in configfs.
const DEVICE: &str = "vtime";
/// Where it is mounted in the guest.
const MOUNT: &str = "/run/aios-drive";
/// Synced puts of one run of db_bench.
const PUTS: u32 = 1000;
/// How long one file system may take, in real time on a busy machine.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1200);

/// A kernel that is measured.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(super) flavour: Flavour,
    pub(super) built: Built,
}

impl Kernel {
    /// Builds or finds it.
    pub(crate) fn build(ctx: &Context, flavour: Flavour, source: Option<&Path>) -> Result<Self> {
        Ok(Self {
            flavour,
            built: kernel::build(ctx, flavour, Variant::Bench, source)?,
        })
    }

    /// `native` or `patched`.
    pub(super) fn name(&self) -> String {
        format!("{:?}", self.flavour).to_lowercase()
    }

    /// The stacks that it has.
    pub(super) fn stacks(&self) -> impl Iterator<Item = Stack> + '_ {
        let has = |stack: &Stack| stack.flavour() == self.flavour;
        Stack::ALL.into_iter().filter(has)
    }

    /// Its null_blk, in the guest, whose root is the host's.
    pub(crate) fn module(&self) -> PathBuf {
        self.built
            .config
            .with_file_name("drivers/block/null_blk/null_blk.ko")
    }

    /// The guest that it runs in.
    pub(crate) fn boot_config(&self, name: &str, out: &Path) -> BootConfig {
        BootConfig {
            memory_mib: MEMORY_MIB,
            accel: Accel::VirtualTime,
            iommu: Iommu::Off,
            // Emulated, on a busy machine.
            boot_timeout: Duration::from_secs(600),
            ..BootConfig::new(&self.built.bzimage, name, out)
        }
    }

    /// Fails unless its null_blk is there.
    pub(crate) fn check(&self) -> Result<()> {
        let module = self.module();
        if module.is_file() {
            return Ok(());
        }
        Err(Error::new(format!("{} is missing", module.display()))
            .hint("build the kernel again: `cargo aios kernel build`"))
    }
}

/// Runs the calls of `spot` on `stack`, which is one of `kernel`'s.
pub(super) fn run(
    guest: &mut Guest,
    kernel: &Kernel,
    stack: Stack,
    spot: &Spot,
    plan: &Plan,
) -> Result<Vec<Sample>> {
    let output = guest.sh(&script(kernel, stack, spot, plan), TIMEOUT)?;
    let samples: Vec<Sample> = output
        .lines()
        .filter(|line| line.starts_with(LINE))
        .map(|line| {
            parse(line, stack, spot)
                .ok_or_else(|| Error::new(format!("the guest's answer {line:?} is not understood")))
        })
        .collect::<Result<_>>()?;
    let wanted = spot.calls.len() * plan.repeats as usize;
    if samples.len() == wanted {
        return Ok(samples);
    }
    Err(Error::new(format!(
        "the guest answered {} of {wanted} measurements",
        samples.len()
    )))
}

/// First word of a line with a measurement; the call's place in
/// [`Call::ALL`], the seed and what the tool printed follow.
const LINE: &str = "measured ";

/// The shell script that makes the device and its file system, runs the calls,
/// and takes all of it down again.
pub(super) fn script(kernel: &Kernel, stack: Stack, spot: &Spot, plan: &Plan) -> String {
    let feature = match spot.commit {
        Commit::Full => "^fast_commit",
        Commit::Fast => "fast_commit",
    };
    // The cache is one of null_blk's own: a flush copies what it holds, and
    // takes the device's time like any command. Without it no cache is
    // advertised, and nothing is ever flushed. The journal is written over
    // before anything is measured, so that the device has memory for it.
    let mut script = format!(
        "[ -d /sys/module/null_blk ] || insmod {module} nr_devices=0\n\
         null=/sys/kernel/config/nullb/{DEVICE}\n\
         mkdir $null\n\
         set_up() {{ echo $2 > $null/$1; }}\n\
         set_up size {DEVICE_MIB}; set_up memory_backed 1; set_up submit_queues 1\n\
         set_up irqmode 2; set_up completion_nsec {device_ns}; set_up cache_size {cache}\n\
         set_up power 1\n\
         mkfs.ext4 -q -F -b 4096 -O {feature} -E lazy_itable_init=0,lazy_journal_init=0,nodiscard \
             /dev/{DEVICE}\n\
         {mount}\
         trap 'cd /; umount {MOUNT}; echo 0 > $null/power; rmdir $null' EXIT\n\
         cd {MOUNT}\n\
         dd if=/dev/zero of=data bs=1M count={FILE_MIB} conv=fsync 2>/dev/null\n",
        module = kernel.module().display(),
        device_ns = spot.device_ns,
        cache = if spot.cache { CACHE_MIB } else { 0 },
        mount = stack.mount_script(&format!("/dev/{DEVICE}"), MOUNT),
    );
    if stack == Stack::Async {
        let knobs = plan.knobs.iter().map(|knob| knob.script(DEVICE));
        script.extend(knobs);
    }
    if let Some(threads) = spot.calls.iter().filter_map(|call| call.threads()).max() {
        script.push_str(&format!(
            "for file in $(seq 0 {last}); do\n\
             dd if=/dev/zero of=many.$file bs={THREAD_FILE_KIB}K count=1 2>/dev/null\n\
             done\n",
            last = threads - 1
        ));
    }
    let (locked, plain): (Vec<Call>, _) = spot.calls.iter().partition(|call| call.locks());
    for call in plain {
        script.push_str(&measurement(call, plan));
    }
    if !locked.is_empty() {
        script.push_str("mount -o remount,dioread_lock .\n");
    }
    for call in locked {
        script.push_str(&measurement(call, plan));
    }
    script
}

/// The lines that measure one call with every seed.
fn measurement(call: Call, plan: &Plan) -> String {
    let place = Call::ALL.iter().position(|other| *other == call);
    let place = place.unwrap_or_default();
    let mut lines = String::new();
    for repeat in 0..plan.repeats {
        let seed = plan.seed.wrapping_add(u64::from(repeat));
        let run = match call.guest_args() {
            Some(args) => {
                let threads = call.threads();
                let threads = threads.map_or_else(String::new, |n| format!(" --threads {n}"));
                format!(
                    "{GUEST_BINARY} work {args}{threads} --mark sync --seed {seed} --ops {} --warmup {}",
                    plan.ops, plan.warmup
                )
            }
            // Its keys are a thousandth of --num, its puts all of it unless told.
            None => format!(
                "db_bench --benchmarks=fillsync --db=new --num={PUTS}000 --writes={PUTS} \
                 --threads=1 --compression_type=none --seed={} 2>/run/db_bench.log | grep ^fillsync || \
                 {{ tail -n 1 /run/db_bench.log >&2; exit 1; }}",
                // Zero would ask for the clock; the sign bit is refused.
                (seed >> 1).max(1)
            ),
        };
        // Nothing that came before is left to be committed.
        lines.push_str(&format!(
            "rm -rf new; sync\nresult=$({run})\necho \"{LINE}{place} {seed} $result\"\n"
        ));
    }
    lines
}

/// A measurement from the guest's line.
fn parse(line: &str, stack: Stack, spot: &Spot) -> Option<Sample> {
    let mut words = line.strip_prefix(LINE)?.splitn(3, ' ');
    let call = *Call::ALL.get(words.next()?.parse::<usize>().ok()?)?;
    let seed = words.next()?.parse().ok()?;
    let result = words.next()?;
    let (ops, lat_mean_ns, lat_p50_ns, rate) = match call.guest_args() {
        Some(_) => {
            let result: WorkResult = serde_json::from_str(result).ok()?;
            let rate = f64::from(result.ops) / (result.elapsed_ns as f64 / 1e9);
            (
                result.ops,
                result.lat_mean_ns,
                result.lat_p50_ns as f64,
                rate,
            )
        }
        None => {
            let (ops, mean, rate) = parse_db(result)?;
            (ops, mean, mean, rate)
        }
    };
    let sound = |value: f64| value.is_finite() && value > 0.0;
    let sample = Sample {
        row: Row {
            call,
            commit: spot.commit,
            cache: spot.cache,
        },
        stack,
        device_ns: spot.device_ns,
        seed,
        ops,
        lat_mean_ns,
        lat_p50_ns,
        ops_per_s: rate,
    };
    let all_sound = [lat_mean_ns, lat_p50_ns, rate].into_iter().all(sound);
    (ops > 0 && all_sound && spot.calls.contains(&call)).then_some(sample)
}

/// Operations, their mean latency in nanoseconds and their rate, of db_bench's
/// line:
///
/// ```text
/// fillsync  :  200.125 micros/op 4996 ops/sec 0.200 seconds 999 operations; ...
/// ```
fn parse_db(line: &str) -> Option<(u32, f64, f64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |unit: &str| {
        let at = words.iter().position(|word| *word == unit)?;
        words.get(at.checked_sub(1)?)
    };
    let micros: f64 = before("micros/op")?.parse().ok()?;
    // Finer than the whole number of operations per second that it prints.
    let rate = 1e6 / micros;
    Some((before("operations;")?.parse().ok()?, micros * 1e3, rate))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::BuildId;

    const FILL: &str = include_str!("../../../tests/fixtures/db_bench-7.8.3-fillsync.txt");

    pub(in super::super) fn kernel(flavour: Flavour) -> Kernel {
        Kernel {
            flavour,
            built: Built {
                bzimage: "/b/bzImage".into(),
                vmlinux: "/b/vmlinux".into(),
                system_map: "/b/System.map".into(),
                config: "/b/.config".into(),
                id: BuildId {
                    base_version: "7.3.4".to_owned(),
                    base_sha256: "1".repeat(64),
                    series_commit: "2".repeat(40),
                    config_sha256: "3".repeat(64),
                },
            },
        }
    }

    fn spot() -> Spot {
        Spot {
            commit: Commit::Fast,
            cache: true,
            device_ns: 30_000,
            calls: vec![
                Call::AppendFsyncLock,
                Call::OverwriteFsync,
                Call::DbFillsync,
            ],
        }
    }

    #[test]
    fn test_kernels_have_all_stacks_once() {
        let stacks: Vec<Stack> = [Flavour::Native, Flavour::Patched]
            .iter()
            .flat_map(|&flavour| kernel(flavour).stacks().collect::<Vec<_>>())
            .collect();
        assert_eq!(stacks, Stack::ALL);
    }

    #[test]
    fn test_script_sets_the_device_and_the_file_system_up() {
        let plan = Plan::new(&[], true, 7).unwrap();
        let script = script(&kernel(Flavour::Patched), Stack::Async, &spot(), &plan);
        for part in [
            "insmod /b/drivers/block/null_blk/null_blk.ko nr_devices=0",
            "completion_nsec 30000; set_up cache_size 64",
            "-O fast_commit",
            "mount -t ext4 -o aios /dev/vtime",
            "echo 1 > /sys/kernel/aios/enabled",
            "--seed 8",
            "--num=1000000 --writes=1000 ",
        ] {
            assert!(script.contains(part), "{part}: {script}");
        }
        // What wants another mount comes after all that do not.
        let at = |text: &str| script.rfind(text).unwrap();
        assert!(at("dioread_lock") > at("overwrite-fsync"));
        assert!(at("dioread_lock") > at("fillsync"));
        assert!(at("append-fsync") > at("dioread_lock"));
    }

    #[test]
    fn test_script_sets_knobs_of_async_alone() {
        let plan = Plan {
            knobs: vec!["fsync_spin_us=50".parse().unwrap()],
            ..Plan::new(&[], true, 7).unwrap()
        };
        for stack in [Stack::Off, Stack::Async] {
            let script = script(&kernel(Flavour::Patched), stack, &spot(), &plan);
            let set = script.contains("knob=/sys/fs/ext4/vtime/fsync_spin_us\n");
            assert_eq!(set, stack == Stack::Async, "{script}");
        }
    }

    #[test]
    fn test_script_makes_files_for_threads_alone() {
        let plan = Plan::new(&[], true, 7).unwrap();
        let script = |spot: &Spot| script(&kernel(Flavour::Native), Stack::Native, spot, &plan);
        assert!(!script(&spot()).contains("many"));
        let spot = Spot {
            calls: vec![Call::FsyncX16],
            ..spot()
        };
        let script = script(&spot);
        assert!(script.find("seq 0 15").unwrap() < script.find("--threads 16").unwrap());
        // Enough blocks of 4 KiB for the longest run.
        let longest = Plan::new(&[], false, 7).unwrap();
        assert!(THREAD_FILE_KIB / 4 >= longest.ops + longest.warmup);
    }

    #[test]
    fn test_parse_reads_both_tools() {
        let work = r#"measured 1 7 {"workload":"overwrite-fsync","ops":100,"bs":4096,"elapsed_ns":20000000,"lat_mean_ns":159000.5,"lat_p50_ns":158900,"lat_p99_ns":170000}"#;
        let sample = parse(work, Stack::Off, &spot()).unwrap();
        assert_eq!(sample.row.name(), "overwrite-fsync/fast/cache");
        assert_eq!(
            (sample.seed, sample.ops, sample.lat_p50_ns),
            (7, 100, 158_900.0)
        );
        assert_eq!(sample.ops_per_s, 5000.0);

        let line = FILL
            .lines()
            .find(|line| line.starts_with("fillsync"))
            .unwrap();
        let sample = parse(&format!("measured 15 1 {line}"), Stack::Off, &spot()).unwrap();
        assert_eq!((sample.row.call, sample.ops), (Call::DbFillsync, 999));
        assert_eq!(sample.lat_mean_ns, 3_871_377.0);
    }

    #[test]
    fn test_parse_other_text_gives_none() {
        for line in [
            "",
            "measured ",
            "measured 1 7",
            "measured 1 7 {}",
            "measured 99 7 {}",
            "measured 15 1 fillsync : 0 micros/op 0 ops/sec 0 seconds 0 operations;",
            "measured 15 1 fillsync : micros/op",
            // Not among the calls.
            r#"measured 0 7 {"workload":"overwrite-fdatasync","ops":1,"bs":1,"elapsed_ns":1,"lat_mean_ns":1,"lat_p50_ns":1,"lat_p99_ns":1}"#,
        ] {
            assert_eq!(parse(line, Stack::Off, &spot()), None, "{line}");
        }
    }
}
