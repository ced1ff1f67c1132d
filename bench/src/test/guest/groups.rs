// SPDX-License-Identifier: MIT
//! The guests that cases share, and which cases run in which.

use super::stack::{
    boots,
    checks_memory,
    fio_verify,
    kunit,
    truncate_against_readers, //
};
use super::{
    Case,
    Group,
    Lbio,
    churn,
    fill,
    fsync,
    lbio,
    lbio_raw,
    lbio_write,
    obd,
    obd_attach,
    obd_rw,
    obd_userspace,
    obd_writable,
    race,
    stack, //
};
use crate::guest::Iommu;
use crate::kernel::{
    Flavour,
    Variant, //
};
use crate::test::suite::check;

/// What a group is unless it says otherwise.
pub(super) const PLAIN: Group = Group {
    name: "",
    flavour: Flavour::Patched,
    variant: Variant::Bench,
    cpus: 2,
    iommu: Iommu::Lazy,
    lba: 512,
    write_cache: true,
    lbio: Lbio::None,
    append: &[],
    memory_mib: None,
    drive_bytes: 512 << 20,
    obd: None,
    cases: &[],
};

const NATIVE: Group = Group {
    name: "guest/native",
    flavour: Flavour::Native,
    cpus: 1,
    cases: &[
        ("boots", boots),
        ("fio-verify", |f| {
            f.sh("mkdir -p /mnt/t; mkfs.ext4 -q -F /dev/nvme0n1; mount /dev/nvme0n1 /mnt/t")?;
            fio_verify(f)
        }),
        ("refuses-the-mount-option", |f| {
            f.sh("umount /mnt/t; no mount -o aios /dev/nvme0n1 /mnt/t")
                .map(drop)
        }),
    ],
    ..PLAIN
};

const PATCHED: Group = Group {
    name: "guest/patched",
    cpus: 1,
    cases: &[
        ("boots", boots),
        ("off-by-default", stack::off_by_default),
        ("knobs-refuse-nonsense", stack::knobs_refuse_nonsense),
        ("mount-option", stack::mount_option),
        ("remount", stack::remount),
        ("ioctl", stack::ioctl),
        ("enabled-without-opt-in", |f| {
            f.mount("noaios", true, 100_000_000)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("opt-in-while-disabled", |f| {
            f.mount("aios", false, 100_000_000)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("zero-bound-never-spins", |f| {
            f.mount("aios", true, 0)?;
            let polls = f.read(200, "")?;
            check(polls.total() == 0, || format!("{polls:?}"))
        }),
        ("slow-drive-sleeps", stack::slow_drive_sleeps),
        ("signal-ends-the-spin", stack::signal_ends_the_spin),
        ("other-task-ends-the-spin", stack::other_task_ends_the_spin),
        ("fio-verify-off", |f| {
            f.mount("noaios", false, 0)?;
            fio_verify(f)
        }),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("truncate-against-readers", truncate_against_readers),
    ],
    ..PLAIN
};

pub(super) const STRICT: Group = Group {
    name: "guest/strict-4k-write-through",
    iommu: Iommu::Strict,
    lba: 4096,
    write_cache: false,
    lbio: Lbio::Interrupts,
    cases: &[
        ("boots", boots),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("lbio-serves-reads", lbio::serves_reads),
        ("lbio-write-serves", lbio_write::serves_writes),
        ("lbio-raw-single-pages", lbio_raw::single_pages),
        ("lbio-raw-reset-under-load", lbio_raw::reset_under_load),
    ],
    ..PLAIN
};

pub(super) const NO_IOMMU: Group = Group {
    name: "guest/no-iommu",
    iommu: Iommu::Off,
    lbio: Lbio::Polled,
    cases: &[
        ("boots", boots),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("lbio-serves-reads", lbio::serves_reads),
        ("lbio-write-serves", lbio_write::serves_writes),
        ("lbio-fragmented-memory", lbio::fragmented_memory),
        ("lbio-raw-fragmented-memory", lbio_raw::fragmented_memory),
    ],
    ..PLAIN
};

pub(super) const DEBUG: Group = Group {
    name: "guest/debug",
    variant: Variant::Debug,
    lbio: Lbio::Interrupts,
    cases: &[
        ("boots", boots),
        ("kunit", kunit),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
        ("truncate-against-readers", truncate_against_readers),
        ("lbio-serves-reads", lbio::serves_reads),
        ("lbio-halts", lbio::halts),
        ("lbio-fragmented-memory", lbio::fragmented_memory),
        (
            "lbio-changes-against-readers",
            lbio::changes_against_readers,
        ),
        ("lbio-changes-against-faults", lbio::changes_against_faults),
        (
            "lbio-compaction-against-readers",
            race::compaction_against_readers,
        ),
        LBIO_ERRORS[0],
        LBIO_ERRORS[1],
        LBIO_ERRORS[2],
        LBIO_ERRORS[3],
        LBIO_ERRORS[4],
        ("lbio-reset-under-load", lbio::reset_under_load),
        ("lbio-removal-under-load", lbio::removal_under_load),
        ("lbio-raw-longer-reads", lbio_raw::longer_reads),
        ("lbio-raw-reset-under-load", lbio_raw::reset_under_load),
        ("lbio-raw-removal-under-load", lbio_raw::removal_under_load),
        fsync::SURVIVES_A_CRASH,
        (
            "lbio-write-commits-survive-a-crash",
            lbio_write::fast_commits_survive,
        ),
        ("lbio-write-serves", lbio_write::serves_writes),
        ("lbio-write-new-blocks", lbio_write::new_blocks),
        ("lbio-write-fio-verify", lbio_write::fio_verify),
        ("lbio-write-survives-a-crash", lbio_write::survives_a_crash),
        (
            "lbio-write-commits-reset-under-load",
            lbio_write::reset_under_fast_commits,
        ),
        (
            "lbio-write-error-arrives-once",
            lbio_write::error_arrives_once,
        ),
        (
            "lbio-write-changes-against-writers",
            lbio_write::changes_against_writers,
        ),
        ("lbio-write-reset-under-load", lbio_write::reset_under_load),
        (
            "lbio-write-removal-under-load",
            lbio_write::removal_under_load,
        ),
    ],
    ..PLAIN
};

/// Only debug kernels inject faults.
const LBIO_ERRORS: [Case; 5] = [
    ("lbio-errors-are-read-again", lbio::errors_are_read_again),
    (
        "lbio-failed-faults-are-read-again",
        lbio::failed_faults_are_read_again,
    ),
    (
        "lbio-raw-errors-are-read-again",
        lbio_raw::errors_are_read_again,
    ),
    (
        "lbio-write-errors-are-written-again",
        lbio_write::errors_are_written_again,
    ),
    (
        "lbio-write-commits-are-written-again",
        lbio_write::commits_are_written_again,
    ),
];

const DEBUG_POLLED: Group = Group {
    name: "guest/debug-polled",
    lbio: Lbio::Polled,
    cases: &LBIO_ERRORS,
    ..DEBUG
};

pub(super) const LBIO: Group = Group {
    name: "guest/lbio",
    lbio: Lbio::Interrupts,
    cases: LBIO_CASES,
    ..PLAIN
};

pub(super) const LBIO_POLLED: Group = Group {
    name: "guest/lbio-polled",
    lbio: Lbio::Polled,
    ..LBIO
};

const LBIO_CASES: &[Case] = &[
    ("boots", boots),
    ("serves-reads", lbio::serves_reads),
    ("sleeps", lbio::sleeps),
    ("halts", lbio::halts),
    ("halted-cpu-is-free", lbio::halted_cpu_is_free),
    ("leaves-others-alone", lbio::leaves_others_alone),
    ("serves-longer-reads", lbio::serves_longer_reads),
    ("fragmented-memory", lbio::fragmented_memory),
    ("serves-faults", lbio::serves_faults),
    ("leaves-other-faults-alone", lbio::leaves_other_faults_alone),
    ("faults-sleep", lbio::faults_sleep),
    ("sleeping-reader-is-killed", lbio::sleeping_reader_is_killed),
    ("sleeping-fault-is-killed", lbio::sleeping_fault_is_killed),
    ("lost-commands-reset", lbio::lost_commands_reset),
    ("memory-is-bounded", lbio::memory_is_bounded),
    ("tracepoints", lbio::tracepoints),
    ("fio-verify-on", |f| {
        f.mount("aios", true, 100_000_000)?;
        fio_verify(f)
    }),
    ("changes-against-readers", lbio::changes_against_readers),
    ("changes-against-faults", lbio::changes_against_faults),
    ("cpu-hotplug-under-load", lbio::cpu_hotplug_under_load),
    ("cpu-hotplug-while-halted", lbio::cpu_hotplug_while_halted),
    ("reset-under-load", lbio::reset_under_load),
    ("removal-under-load", lbio::removal_under_load),
    ("raw-single-pages", lbio_raw::single_pages),
    ("raw-longer-reads", lbio_raw::longer_reads),
    ("raw-refused", lbio_raw::refused),
    ("raw-partition", lbio_raw::partition),
    ("raw-writes-are-seen", lbio_raw::writes_are_seen),
    ("raw-fragmented-memory", lbio_raw::fragmented_memory),
    ("raw-killed", lbio_raw::killed),
    ("raw-reset-under-load", lbio_raw::reset_under_load),
    ("raw-removal-under-load", lbio_raw::removal_under_load),
    ("write-serves", lbio_write::serves_writes),
    ("write-leaves-others-alone", lbio_write::leaves_others_alone),
    ("write-new-blocks", lbio_write::new_blocks),
    ("write-fio-verify", lbio_write::fio_verify),
    ("write-survives-a-crash", lbio_write::survives_a_crash),
    ("write-commits", lbio_write::serves_commits),
    (
        "write-commits-report-errors",
        lbio_write::commit_error_arrives,
    ),
    (
        "write-commits-reset-under-load",
        lbio_write::reset_under_fast_commits,
    ),
    ("write-error-arrives-once", lbio_write::error_arrives_once),
    ("write-lost-commands-reset", lbio_write::lost_commands_reset),
    ("write-tracepoints", lbio_write::tracepoints),
    (
        "write-changes-against-writers",
        lbio_write::changes_against_writers,
    ),
    (
        "write-cpu-hotplug-under-load",
        lbio_write::cpu_hotplug_under_load,
    ),
    ("write-reset-under-load", lbio_write::reset_under_load),
    ("write-removal-under-load", lbio_write::removal_under_load),
];

const LBIO_DENIED: Group = Group {
    name: "guest/lbio-denied",
    lbio: Lbio::Denied,
    cases: &[
        ("boots", boots),
        ("says-why", |f| {
            f.sh("grep -qx 'off: the controller has no more queues' /sys/block/nvme0n1/lbio")
                .map(drop)
        }),
        ("fio-verify-on", |f| {
            f.mount("aios", true, 100_000_000)?;
            fio_verify(f)
        }),
    ],
    ..LBIO
};

pub(super) const OBD: Group = Group {
    name: "guest/obd",
    lbio: Lbio::Interrupts,
    obd: Some(obd::Reader::Driver),
    cases: &[
        ("boots", boots),
        ("fixtures", obd::fixtures),
        ("damaged-parts", obd::damaged_parts),
        ("decoders", obd::decoders),
        ("parts", obd::parts),
        ("file-system", obd::file_system),
        ("direct-reads", obd::direct_reads),
        ("large-direct-reads", obd::large_direct_reads),
        ("files", obd::files),
        ("submitters", obd::submitters),
        ("nested", obd::nested),
        ("devices", obd::devices),
        ("fetched", obd::fetched),
        ("fetched-from-files", obd::fetched_from_files),
        ("neighbours", obd::neighbours),
        ("drive-by-lbio", obd::drive_by_lbio),
        ("store", obd::store),
        ("many", obd::many),
        ("attach-large", obd_attach::large),
        ("stacked", obd::stacked),
        ("damaged-block", obd::damaged_block),
        ("tool", obd::tool),
        ("configuration", obd::configuration),
        ("exchange", obd::exchange),
        ("detach-under-load", obd::detach_under_load),
        ("writable-model", obd_writable::model),
        ("writable-model-of-log", obd_writable::model_of_log),
        ("writable-verified", obd_writable::verified),
        ("writable-flushes", obd_writable::flushes),
        ("writable-meddled", obd_writable::meddled),
        ("writable-writers-die", obd_writable::writers_die),
        ("writable-detach", obd_writable::detach),
        ("writable-hostile", obd_writable::hostile),
        ("rw-cycle", obd_rw::cycle),
        ("rw-killed-writer", obd_rw::killed_writer),
        ("rw-log", obd_rw::log),
        ("rw-busy", obd_rw::busy),
        ("rw-no-room", obd_rw::no_room),
        ("rw-options", obd_rw::options),
        ("rw-store", obd_rw::stored),
        ("rw-churn", churn::short),
        ("unload", obd::unload),
    ],
    ..PLAIN
};

pub(super) const OBD_DEBUG: Group = Group {
    name: "guest/obd-debug",
    variant: Variant::Debug,
    cases: &[
        ("boots", boots),
        ("file-system", obd::file_system),
        ("nested", obd::nested),
        ("files", obd::files),
        ("devices", obd::devices),
        ("fetched", obd::fetched),
        ("fetched-from-files", obd::fetched_from_files),
        ("neighbours", obd::neighbours),
        ("drive-by-failing-lbio", obd::drive_by_failing_lbio),
        ("stacked", obd::stacked),
        ("device-mapper", obd::device_mapper),
        ("exchange", obd::exchange),
        ("detach-under-load", obd::detach_under_load),
        ("writable-model", obd_writable::model),
        ("writable-model-of-log", obd_writable::model_of_log),
        ("writable-verified", obd_writable::verified),
        ("writable-flushes", obd_writable::flushes),
        ("writable-meddled", obd_writable::meddled),
        ("writable-writers-die", obd_writable::writers_die),
        ("writable-detach", obd_writable::detach),
        ("writable-hostile", obd_writable::hostile),
        ("unload", obd::unload),
    ],
    ..OBD
};

/// While a kernel looks at what its CPU can do it forgets for a moment that pages have five
/// levels; KASAN takes what an interrupt uses then for no address.
const NO5LVL: &str = "no5lvl";

/// Every access to memory is checked: what keeps buffers and what races.
pub(super) const OBD_KASAN: Group = Group {
    name: "kasan/obd",
    variant: Variant::Kasan,
    append: &[NO5LVL],
    cases: &[
        ("boots", boots),
        ("checks-memory", checks_memory),
        ("file-system", obd::file_system),
        ("fixtures", obd::fixtures),
        ("damaged-parts", obd::damaged_parts),
        ("decoders", obd::decoders),
        ("parts", obd::parts),
        ("direct-reads", obd::direct_reads),
        ("large-direct-reads", obd::large_direct_reads),
        ("files", obd::files),
        ("nested", obd::nested),
        ("devices", obd::devices),
        ("fetched", obd::fetched),
        ("fetched-from-files", obd::fetched_from_files),
        ("neighbours", obd::neighbours),
        ("short-of-memory", obd::short_of_memory),
        ("drive-by-failing-lbio", obd::drive_by_failing_lbio),
        ("many", obd::many),
        ("stacked", obd::stacked),
        ("device-mapper", obd::device_mapper),
        ("damaged-block", obd::damaged_block),
        ("configuration", obd::configuration),
        ("exchange", obd::exchange),
        ("detach-under-load", obd::detach_under_load),
        ("writable-model", obd_writable::model),
        ("writable-model-of-log", obd_writable::model_of_log),
        ("writable-verified", obd_writable::verified),
        ("writable-flushes", obd_writable::flushes),
        ("writable-meddled", obd_writable::meddled),
        ("writable-writers-die", obd_writable::writers_die),
        ("writable-detach", obd_writable::detach),
        ("writable-hostile", obd_writable::hostile),
        ("unload", obd::unload),
        ("leaks-nothing", obd::leaks_nothing),
    ],
    ..OBD
};

/// LBIO's readers and writers against everything that changes what they work on.
pub(super) const LBIO_KASAN: Group = Group {
    name: "kasan/lbio",
    variant: Variant::Kasan,
    append: &[NO5LVL],
    cases: &[
        ("boots", boots),
        ("checks-memory", checks_memory),
        ("truncate-against-readers", truncate_against_readers),
        ("changes-against-readers", lbio::changes_against_readers),
        ("changes-against-faults", lbio::changes_against_faults),
        ("errors-are-read-again", lbio::errors_are_read_again),
        ("lost-commands-reset", lbio::lost_commands_reset),
        ("cpu-hotplug-under-load", lbio::cpu_hotplug_under_load),
        ("reset-under-load", lbio::reset_under_load),
        ("removal-under-load", lbio::removal_under_load),
        ("raw-killed", lbio_raw::killed),
        ("raw-reset-under-load", lbio_raw::reset_under_load),
        ("raw-removal-under-load", lbio_raw::removal_under_load),
        (
            "write-changes-against-writers",
            lbio_write::changes_against_writers,
        ),
        ("write-reset-under-load", lbio_write::reset_under_load),
        ("write-removal-under-load", lbio_write::removal_under_load),
    ],
    ..LBIO
};

pub(super) const LBIO_POLLED_KASAN: Group = Group {
    name: "kasan/lbio-polled",
    lbio: Lbio::Polled,
    ..LBIO_KASAN
};

/// Less memory than is written.
pub(super) const FILL: Group = Group {
    name: "guest/obd-fill",
    lbio: Lbio::None,
    memory_mib: Some(192),
    cases: &[
        ("boots", boots),
        ("whole", fill::short),
        ("errors", fill::short_errors),
    ],
    ..OBD
};

/// The same for long.
pub(super) const FILL_LONG: Group = Group {
    name: "fill/obd",
    memory_mib: Some(512),
    drive_bytes: 7 << 30,
    cases: &[
        ("boots", boots),
        ("whole", fill::long),
        ("errors", fill::long_errors),
    ],
    ..FILL
};

/// A kernel without the driver: the fallback has to do.
const OBD_USERSPACE: Group = Group {
    name: "guest/obd-userspace",
    flavour: Flavour::Native,
    obd: Some(obd::Reader::Userspace),
    cases: &[
        ("boots", boots),
        ("fixtures", obd::fixtures),
        ("damaged-parts", obd::damaged_parts),
        ("parts", obd::parts),
        ("file-system", obd::file_system),
        ("parallel-reads", obd_userspace::parallel_reads),
        ("store", obd::store_by_a_process),
        ("damaged-block", obd_userspace::damaged_block),
        ("tool", obd_userspace::tool),
        ("ends", obd_userspace::ends),
        ("detach-under-load", obd_userspace::detach_under_load),
        ("killed-server", obd_userspace::killed_server),
    ],
    ..PLAIN
};

/// Every group of the suite.
pub(super) const GROUPS: &[&Group] = &[
    &NATIVE,
    &PATCHED,
    &STRICT,
    &NO_IOMMU,
    &LBIO,
    &LBIO_POLLED,
    &LBIO_DENIED,
    &fsync::FSYNC,
    &DEBUG,
    &DEBUG_POLLED,
    &OBD,
    &OBD_DEBUG,
    &FILL,
    &OBD_USERSPACE,
];
