// SPDX-License-Identifier: MIT
//! The writer's engines in a guest: the same checks of the same drives through
//! the kernel and past it, and what happens when a drive does not answer.
//!
//! SPDK's sources are fetched for it. Where they cannot be had, each of its cases says
//! so; one that is there and does not compile fails them all.

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
    Accel,
    Backend,
    BootConfig,
    Drive,
    Guest, //
};
use crate::kernel::{
    self,
    Flavour,
    Variant, //
};
use crate::obd_tool;
use crate::profile;
use crate::setup::{
    self,
    Need, //
};
use crate::test::suite::{
    Outcome,
    Suite,
    check, //
};
use aios_guest::GUEST_BINARY;
use aios_insn_plugin::whole::{
    SCHEMA,
    WholeReport, //
};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{
    Duration,
    Instant, //
};

/// Size of each drive in bytes.
const DRIVE_BYTES: u64 = 96 << 20;

/// A script in the guest may take this long.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// First part of the cases' names.
const GROUP: &str = "guest/engine";

/// Shell functions for the cases. Drive 0 has blocks of 512 bytes and takes
/// 512 KiB per command, drive 1 blocks of 4096 and 16 KiB.
const FUNCTIONS: &str = r#"
address() { cat /run/address$1; }
target() { echo $(address $1)/1; }
back() { for i in $(seq 100); do [ -b /dev/nvme$1n1 ] && return; sleep 0.1; done; exit 1; }
same() { [ "$(readlink -f /sys/class/nvme/nvme$1/device)" = "$(readlink -f /sys/bus/pci/devices/$(address $1))" ]; }
refused() { what=$1; shift
    if ! $OBD "$@" >/run/out 2>&1 && grep -q "$what" /run/out && [ $(wc -l < /run/out) = 1 ]; then
        return; fi
    echo "obd $* was to be refused, $what: $(cat /run/out)" >&2; exit 1; }
"#;

type Case = (&'static str, fn(&mut Fixture) -> Result<Outcome>);

const CASES: &[Case] = &[
    ("uring-checks", |f| {
        f.sh("for n in 0 1; do $OBD check --force /dev/nvme${n}n1; done")?;
        Ok(Outcome::Passed)
    }),
    ("uring-passthrough-checks", passthrough_checks),
    ("vfio-checks", vfio_checks),
    ("spdk-checks", |f| f.with_spdk(checks)),
    ("vfio-is-refused-what-is-used", |f| {
        refused_what_is_used(f, "vfio")
    }),
    ("spdk-is-refused-what-is-used", |f| {
        f.with_spdk(refused_what_is_used)
    }),
    ("uring-passthrough-store-same-bytes", |f| {
        f.sh(&format!("{GENERIC}; {SAME_BYTES}"))?;
        Ok(Outcome::Passed)
    }),
    ("vfio-store-same-bytes", |f| store_same_bytes(f, "vfio")),
    ("spdk-store-same-bytes", |f| f.with_spdk(store_same_bytes)),
    ("vfio-timeout-reset-replay", |f| {
        timeout_reset_replay(f, "vfio")
    }),
    ("spdk-timeout-reset-replay", |f| {
        f.with_spdk(timeout_reset_replay)
    }),
    ("vfio-killed", |f| killed(f, "vfio")),
    ("spdk-killed", |f| f.with_spdk(killed)),
];

struct Fixture {
    guest: Guest,
    /// Drive 0's.
    server: Server,
    /// Defines `$OBD` and what the cases use.
    prelude: String,
    /// Why there is no SPDK.
    no_spdk: Option<String>,
}

impl Fixture {
    /// Powers the guest off and looks through its log.
    fn end(self) -> Result<()> {
        // Its drive has to outlive it.
        let Self { guest, server, .. } = self;
        let ended = guest.shutdown();
        drop(server);
        ended
    }

    fn sh(&mut self, script: &str) -> Result<String> {
        let script = format!("{}\n{script}", self.prelude);
        self.guest.sh(&script, SCRIPT_TIMEOUT)
    }

    /// Runs a case of the engine spdk, if there can be one.
    fn with_spdk(&mut self, case: fn(&mut Self, &str) -> Result<Outcome>) -> Result<Outcome> {
        match &self.no_spdk {
            Some(reason) => Ok(Outcome::Skipped(format!("no SPDK: {reason}"))),
            None => case(self, "spdk"),
        }
    }

    fn json(&mut self, script: &str) -> Result<Value> {
        let text = self.sh(script)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::new(format!("no JSON ({error}): {text:?}")))
    }
}

/// Runs the cases.
pub(super) fn run(ctx: &Context, suite: &mut Suite) {
    suite.group(GROUP, CASES, || start(ctx), Fixture::end);
    suite.case("guest/engine-cost", || cost(ctx));
}

/// `obd`, and why it is one without SPDK.
fn build_obd(ctx: &Context) -> Result<(PathBuf, Option<String>)> {
    match setup::spdk::ensure(ctx, None) {
        Ok(tree) => Ok((obd_tool::build(ctx, Some(&tree))?, None)),
        Err(error) => Ok((obd_tool::build(ctx, None)?, Some(error.what().to_owned()))),
    }
}

fn start(ctx: &Context) -> Result<Fixture> {
    setup::ensure(
        ctx,
        &[Need::Build, Need::Boot, Need::Workloads, Need::Mapper],
    )?;
    let (obd, no_spdk) = build_obd(ctx)?;
    let built = kernel::build(ctx, Flavour::Native, Variant::Bench, None)?;
    let out = ctx.cache_dir("test")?;
    let name = GROUP.replace('/', "-");
    let blank = |name: &str| {
        let path = out.join(name);
        let file = File::create(&path).at("create", &path)?;
        file.set_len(DRIVE_BYTES).at("resize", &path)?;
        Ok::<_, Error>(path)
    };
    let server = Server::start(ctx, &blank("engine-0.img")?, &out, &name, false)?;
    let mut config = BootConfig::new(built.bzimage, &name, &out);
    config.drives = vec![
        Drive::new(Backend::Nbd(server.socket())),
        Drive {
            mdts: 2,
            lba: 4096,
            ..Drive::new(Backend::File(blank("engine-1.img")?))
        },
    ];
    let mut guest = Guest::boot(ctx, &config)?;
    guest.sh(
        "for n in 0 1; do basename $(readlink -f /sys/class/nvme/nvme$n/device) \
         > /run/address$n; done",
        SCRIPT_TIMEOUT,
    )?;
    Ok(Fixture {
        guest,
        server,
        prelude: format!("set -e\nOBD={}\n{FUNCTIONS}", obd.display()),
        no_spdk,
    })
}

/// Commands for the controller by io_uring: the namespaces' generic devices.
const GENERIC: &str = "E=; target() { echo /dev/ng$1n1; }";

/// What every engine has to pass; what is used is refused; others see what was written.
fn passthrough_checks(f: &mut Fixture) -> Result<Outcome> {
    f.sh("for n in 0 1; do
             exec 3< /dev/nvme${n}n1; head -c 1M <&3 > /run/before
             $OBD --json check --force /dev/ng${n}n1 > /run/report
             head -c 1M /dev/nvme${n}n1 > /run/after; exec 3<&-
             dd if=/dev/nvme${n}n1 bs=1M count=1 iflag=direct 2>/dev/null | cmp - /run/after
             ! cmp -s /run/before /run/after
         done
         grep -q '\"serial\": \"aios1\"' /run/report
         mkfs.ext4 -q -F /dev/nvme0n1; mkdir -p /mnt/t; mount /dev/nvme0n1 /mnt/t
         refused 'mounted at /mnt/t' check --force /dev/ng0n1
         umount /mnt/t
         refused 'ext4 filesystem; --force' check /dev/ng0n1
         refused 'neither a file nor a block device' check --force /dev/nvme0
         dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=1 2>/dev/null")?;
    Ok(Outcome::Passed)
}

/// The suite, with doorbells in registers alone and with shadows: these spare most of the
/// registers' writes while the drive is busy.
fn vfio_checks(f: &mut Fixture) -> Result<Outcome> {
    checks(f, "vfio")?;
    let how = "--engine vfio --no-shadow-doorbells";
    f.sh(&format!(
        "$OBD check --force {how} $(address 1)/1; back 1; same 1"
    ))?;
    let mut doorbells = |how: &str| {
        let report = f.json(&format!(
            "$OBD --json check --force --write 64 {how} $(address 0)/1; back 0"
        ))?;
        let count = report["engine"]["doorbells"].as_u64();
        count.ok_or_else(|| Error::new(format!("no doorbells: {report}")))
    };
    let (registers, shadows) = (doorbells(how)?, doorbells("--engine vfio")?);
    check(shadows * 4 < registers * 3, || {
        format!("{registers} doorbells of submission, {shadows} with shadows")
    })?;
    Ok(Outcome::Passed)
}

/// The suite that every engine has to pass.
fn checks(f: &mut Fixture, engine: &str) -> Result<Outcome> {
    f.sh(&format!(
        "for n in 0 1; do $OBD check --force --engine {engine} $(address $n)/1; back $n; same $n; done"
    ))?;
    Ok(Outcome::Passed)
}

/// Mounted, signed, without a namespace's number, not there: one line each, and
/// the kernel keeps its driver.
fn refused_what_is_used(f: &mut Fixture, engine: &str) -> Result<Outcome> {
    f.sh(&format!("E='--engine {engine}'; {REFUSED}"))?;
    Ok(Outcome::Passed)
}

/// What is refused, by the engine that `$E` names.
const REFUSED: &str = r#"
mkfs.ext4 -q -F /dev/nvme0n1; mkdir -p /mnt/t; mount /dev/nvme0n1 /mnt/t
for force in '' --force; do
    refused 'mounted at /mnt/t' check $force $E $(address 0)/1
    refused 'mounted at /mnt/t' check $force /dev/nvme0n1
done
umount /mnt/t
refused 'ext4 filesystem; --force' check $E $(address 0)/1
for device in "$E $(address 0)/1" /dev/nvme0n1 /dev/ng0n1; do
    refused '(QEMU NVMe Ctrl, serial aios0): cannot take it' check $device
done
dmsetup create low --table '0 8192 linear /dev/nvme0n1 0'
for device in "$E $(address 0)/1" /dev/nvme0n1 /dev/ng0n1; do
    refused 'is made of it' check --force $device
done
dmsetup remove low; addpart /dev/nvme0n1 1 2048 4096
for device in "$E $(address 0)/1" /dev/nvme0n1 /dev/ng0n1; do
    refused 'has the partition nvme0n1p1; --force' check $device
done
delpart /dev/nvme0n1 1
refused 'ext4 filesystem; --force' store init /dev/nvme0n1
refused 'no layer store\|ext4 filesystem' store list /dev/nvme0n1
refused 'name the namespace' check --force $E $(address 0)
refused 'namespace 7 is not there' check --force $E $(address 0)/7; back 0
refused 'no such PCI device' check --force $E 0000:ff:1f.7/1
refused "not NVMe's" check --force $E 0000:00:00.0/1
same 0; mount /dev/nvme0n1 /mnt/t
[ -d /mnt/t/lost+found ]; umount /mnt/t
dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=1 2>/dev/null
"#;

/// The same layers through the kernel and through the engine, with different numbers
/// of threads: the same bytes on both drives, and the same image out of them.
fn store_same_bytes(f: &mut Fixture, engine: &str) -> Result<Outcome> {
    f.sh(&format!("E='--engine {engine}'; {SAME_BYTES}"))?;
    Ok(Outcome::Passed)
}

/// Fills the store on drive 0 through the kernel and that on drive 1 by `$E`.
const SAME_BYTES: &str = r#"
rm -rf /run/layers; mkdir /run/layers; cd /run/layers
dd if=/dev/urandom of=raw bs=64k count=40 2>/dev/null
cat /usr/bin/*sh >> raw; truncate -s 12M raw; cp raw top
dd if=/dev/urandom of=top bs=4k seek=100 count=30 conv=notrunc 2>/dev/null
fallocate -p -o 1M -l 3M top
$OBD store init --force /dev/nvme0n1 >/dev/null
$OBD store init --force $E $(target 1) >/dev/null
for layer in raw top; do
    $OBD store convert --threads 1 -m $layer /dev/nvme0n1 $layer >/dev/null
    $OBD store convert --threads 3 -m $layer $E $(target 1) $layer >/dev/null
done
back 1
$OBD store export $E -o a $(target 0); back 0
$OBD store export -o b /dev/nvme1n1; cmp a b
for n in 0 1; do
    $OBD --json store list /dev/nvme${n}n1 > list$n
    awk -F'[:,]' '/"offset"/ { o = $2 } /"length"/ { print o, $2 }' list$n > at$n
    while read offset length; do
        dd if=/dev/nvme${n}n1 bs=4096 iflag=skip_bytes,count_bytes \
            skip=$offset count=$length 2>/dev/null
    done < at$n > bytes$n
done
[ $(wc -l < at0) = 2 ]; [ -s bytes0 ]; cmp bytes0 bytes1
$OBD store merge $E $(target 1) >/dev/null; back 1
$OBD store export -f -o b /dev/nvme1n1; cmp a b
$OBD --json store list /dev/nvme1n1 | grep -c '"offset"' | grep -qx 1
"#;

/// A drive that hangs for a while: the commands come to their end all the same.
fn timeout_reset_replay(f: &mut Fixture, engine: &str) -> Result<Outcome> {
    f.sh(&format!(
        "rm -f /run/hung.code; ($OBD --json check --force --engine {engine} --timeout 0.4 $(address 0)/1 > /run/hung 2>/run/hung.err; \
          echo $? > /run/hung.code) >/dev/null 2>&1 & \
          for i in $(seq 300); do [ -b /dev/nvme0n1 ] || break; sleep 0.1; done; sleep 0.3"
    ))?;
    let slow = Latency {
        points: vec![(50.0, 2_500_000_000)],
    };
    let none = Latency {
        points: vec![(50.0, 0)],
    };
    f.server.set_latency(&slow, &slow)?;
    sleep(Duration::from_millis(1500));
    f.server.set_latency(&none, &none)?;
    let begin = Instant::now();
    let report = f.json(
        "for i in $(seq 900); do [ -s /run/hung.code ] && break; sleep 0.1; done; \
         [ \"$(cat /run/hung.code)\" = 0 ] || { cat /run/hung.err; exit 1; }; back 0; same 0; cat /run/hung",
    )?;
    let count = |name: &str| report["engine"][name].as_u64().unwrap_or(0);
    check(
        count("timeouts") > 0 && count("resets") > 0 && count("replays") > 0,
        || format!("after {:?}: {}", begin.elapsed(), report["engine"]),
    )?;
    check(count("failed") == 0, || report["engine"].to_string())?;
    Ok(Outcome::Passed)
}

/// Killed, it leaves the drive with vfio-pci, but silent; the next one takes it
/// from there and gives it back.
fn killed(f: &mut Fixture, engine: &str) -> Result<Outcome> {
    f.sh(&format!(
        "E='--engine {engine}'; \
          $OBD check --force --rounds 50 $E $(address 1)/1 >/dev/null 2>&1 & pid=$!; \
          for i in $(seq 100); do [ -b /dev/nvme1n1 ] || break; sleep 0.1; done; sleep 1; \
          kill -9 $pid; wait $pid || :; [ ! -b /dev/nvme1n1 ]; \
          [ $(basename $(readlink -f /sys/bus/pci/devices/$(address 1)/driver)) = vfio-pci ]; \
          $OBD check --force $E $(address 1)/1 >/dev/null; back 1; same 1; \
          $OBD check --force /dev/nvme1n1 >/dev/null"
    ))?;
    Ok(Outcome::Passed)
}

/// MiB written, so that what is the same for each, opening above all, goes out of the
/// difference.
const COST_MIB: [u64; 2] = [128, 1024];

/// What every engine costs: instructions of all programs and of the kernel per MiB
/// written, on one CPU, and commands, doorbells and flushes per GiB.
fn cost(ctx: &Context) -> Result<Outcome> {
    setup::ensure(ctx, &[Need::Build, Need::Boot, Need::Workloads])?;
    let (obd, no_spdk) = build_obd(ctx)?;
    let built = kernel::build(ctx, Flavour::Native, Variant::Bench, None)?;
    let plugin = profile::plugin::build(ctx)?;
    let out = ctx.cache_dir("test")?;
    let image = out.join("engine-cost.img");
    let file = File::create(&image).at("create", &image)?;
    file.set_len(DRIVE_BYTES).at("resize", &image)?;
    let counts = out.join("engine-cost.json");
    let mut config = BootConfig::new(built.bzimage, "guest-engine-cost", &out);
    config.cpus = 1;
    config.accel = Accel::Tcg;
    config.drives = vec![Drive::new(Backend::File(image))];
    config.qemu = profile::plugin::qemu_args(&plugin, &built.system_map, &counts, "count=all")?;
    let mut guest = Guest::boot(ctx, &config)?;
    guest.sh(
        "basename $(readlink -f /sys/class/nvme/nvme0/device) > /run/address",
        SCRIPT_TIMEOUT,
    )?;
    let mut all = Vec::new();
    for engine in [
        "uring",
        "vfio",
        "vfio-registers",
        "uring-passthrough",
        "spdk",
    ] {
        if engine == "spdk" && no_spdk.is_some() {
            continue;
        }
        let device = match engine {
            "uring" => "/dev/nvme0n1".to_owned(),
            "uring-passthrough" => "/dev/ng0n1".to_owned(),
            "vfio-registers" => {
                "--engine vfio --no-shadow-doorbells $(cat /run/address)/1".to_owned()
            }
            _ => format!("--engine {engine} $(cat /run/address)/1"),
        };
        let mut whole = Vec::new();
        let mut report = Value::Null;
        for mib in COST_MIB {
            let script = format!(
                "set -e; {GUEST_BINARY} count {} --json check --force --write {mib} {device}; \
                 for i in $(seq 100); do [ -c /dev/ng0n1 ] && break; sleep 0.1; done",
                obd.display()
            );
            let text = guest.sh(&script, SCRIPT_TIMEOUT)?;
            // What counts says something, too, behind it.
            let mut said = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
            report = match said.next() {
                Some(Ok(report)) => report,
                _ => return Err(Error::new(format!("no JSON: {text:?}"))),
            };
            whole.push(profile::plugin::take_counts(&counts, SCHEMA)?);
        }
        let [small, large] = &whole[..] else {
            unreachable!("two lengths were written");
        };
        let per_mib = |count: fn(&WholeReport) -> u64| {
            count(large).saturating_sub(count(small)) / (COST_MIB[1] - COST_MIB[0])
        };
        let (user, kernel) = (per_mib(|r| r.user), per_mib(|r| r.kernel));
        let count = |name: &str| report["engine"][name].as_u64().unwrap_or(0);
        println!(
            "# {engine}: {user} + {kernel} instructions per MiB (programs, kernel); per GiB \
             {} writes, {} {}, {} doorbells of completion, {} flushes, {} sleeps",
            count("writes"),
            count("doorbells"),
            if engine.starts_with("uring") {
                "calls"
            } else {
                "doorbells"
            },
            count("completion_doorbells"),
            count("flushes"),
            count("sleeps")
        );
        all.push(user + kernel);
    }
    guest.shutdown()?;
    if let [uring, vfio, ..] = all[..] {
        check(vfio * 2 <= uring, || {
            format!("vfio takes {vfio} instructions per MiB, uring {uring}")
        })?;
    }
    Ok(match no_spdk {
        Some(reason) => Outcome::Skipped(format!("spdk was not measured: {reason}")),
        None => Outcome::Passed,
    })
}
