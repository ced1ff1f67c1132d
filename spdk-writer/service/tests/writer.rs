// SPDX-License-Identifier: MIT

//! What the writer does when nobody is killed: bytes, merges, errors, ends.

mod common;

use common::{
    BLOCKS,
    Fault,
    Model,
    Shared,
    check, //
};
use obd_service::log::MIN_SIZE;
use obd_service::writer::{
    Signals,
    Told, //
};
use obd_service::{
    BLOCK,
    Depth,
    Device,
    Directory,
    End,
    Error,
    Folder,
    Kernel,
    Options,
    Stats,
    Writer,
    compact,
    log, //
};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

fn options(background: bool) -> Options {
    Options {
        max_layers: 4,
        background,
        ..Options::default()
    }
}

/// A writer from its beginning to its end, and what it said.
fn write(
    world: &Shared,
    options: Options,
    signals: &Signals<'_>,
) -> (Result<End, Error>, Stats, Vec<String>) {
    let folder = Model(world.clone());
    let device = Device::open(&folder).unwrap();
    let mut writer = Writer::new(device, Model(world.clone()), options).unwrap();
    let lines = Mutex::new(Vec::new());
    let log = |line: &str| lines.lock().unwrap().push(line.to_owned());
    let mut told = Told {
        log: &log,
        stats: &mut |_: &Stats| {},
    };
    let end = writer.run(signals, &mut told);
    let stats = writer.stats();
    drop(writer);
    (end, stats, lines.into_inner().unwrap())
}

#[test]
fn the_same_writes_are_the_same_files() {
    let worlds: Vec<Shared> = (0..2)
        .map(|_| {
            let world = Shared::new(5, 30);
            let (end, stats, lines) = write(&world, options(false), &Signals::default());
            assert_eq!(end.unwrap(), End::Gone);
            assert_eq!(lines, [""; 0]);
            assert!(stats.commits > 10 && stats.merges > 2, "{stats:?}");
            assert_eq!(stats.bytes_copied, 0);
            check(&world);
            world
        })
        .collect();
    assert!(worlds[0].lock().stacked == worlds[1].lock().stacked);
}

#[test]
fn merges_in_the_background_change_nothing() {
    let world = Shared::new(6, 200);
    let (end, stats, lines) = write(&world, options(true), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    assert_eq!(lines, [""; 0]);
    assert!(stats.commits > 100, "{stats:?}");
    // What a merge was making when the disk went is gone, too.
    check(&world);
}

#[test]
fn all_layers_become_one_when_somebody_asks() {
    let world = Shared::new(8, 6);
    let asked = AtomicBool::new(true);
    let signals = Signals {
        compact: Some(&asked),
        ..Signals::default()
    };
    let mut options = options(false);
    options.max_layers = 100;
    let (end, ..) = write(&world, options, &signals);
    assert_eq!(end.unwrap(), End::Gone);
    check(&world);

    // And without a writer: those of the device, then all.
    let folder = Model(world.clone());
    let go = AtomicBool::new(false);
    let plain = obd_writer::Options::default();
    let before = Device::look(&folder).unwrap().lowers.len();
    let merged = compact(&folder, Depth::Own, &plain, &go).unwrap();
    assert_eq!(merged, Some(before - 1));
    check(&world);
    assert_eq!(Device::look(&folder).unwrap().lowers.len(), 2);
    assert_eq!(compact(&folder, Depth::Own, &plain, &go).unwrap(), None);
    assert_eq!(compact(&folder, Depth::All, &plain, &go).unwrap(), Some(2));
    check(&world);
    assert_eq!(Device::look(&folder).unwrap().lowers.len(), 1);
    // It can be written to as before.
    world.attach();
    world.set_rounds(5);
    let (end, ..) = write(&world, Options::default(), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    check(&world);
}

#[test]
fn a_full_disk_is_waited_for() {
    let world = Shared::new(9, 4);
    world.lock().full = true;
    let (end, stats, lines) = write(&world, options(false), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    let failures = world.lock().failures.clone();
    assert!(failures.iter().all(|errno| *errno == libc::ENOSPC));
    // 0.1 s, twice that, up to 10 s: a minute of trouble, told of what is sealed and frozen.
    assert!((8..20).contains(&stats.failed), "{stats:?}");
    assert!(failures.len() as u64 >= stats.failed, "{failures:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("no space left"), "{lines:?}");
    assert!(lines[1].contains("again"), "{lines:?}");
    check(&world);
}

#[test]
fn flushes_go_on_while_there_is_no_room_for_a_layer() {
    let world = Shared::new(12, 6);
    world.lock().background = true;
    let options = Options {
        log: 64 * MIN_SIZE,
        ..options(true)
    };
    let (end, stats, lines) = write(&world, options.clone(), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    assert_eq!(lines, [""; 0]);
    check(&world);

    world.attach();
    world.set_rounds(40);
    world.lock().full = true;
    let logged = stats.logged;
    let (end, stats, lines) = write(&world, options, &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    // Once a flush found that out, after which the log was what it went to.
    assert!(stats.logged > 10, "{logged}, {stats:?}");
    assert_eq!(stats.failed_logs, 0);
    // 0.1 s, twice that, up to 10 s, whatever is logged meanwhile.
    let failures = world.lock().failures.clone();
    assert!(failures.iter().all(|errno| *errno == libc::ENOSPC));
    assert!((8..30).contains(&stats.failed), "{stats:?}");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("no space left"), "{lines:?}");
    assert!(lines[1].contains("again"), "{lines:?}");
    check(&world);
}

#[test]
fn records_go_round_while_layers_are_made() {
    let mut wraps = 0;
    for seed in 0..6 {
        let world = Shared::new(seed, 250);
        world.lock().background = true;
        world.lock().busy = true;
        let options = Options {
            log: 8 * MIN_SIZE,
            ..options(true)
        };
        let (end, stats, lines) = write(&world, options, &Signals::default());
        assert_eq!(end.unwrap(), End::Gone);
        assert_eq!(lines, [""; 0]);
        assert_eq!(stats.logged, world.lock().logs);
        assert!(stats.logged > 50, "{stats:?}");
        wraps += world.lock().wraps;
        check(&world);
    }
    assert!(wraps > 0);
}

#[test]
fn nothing_is_logged_behind_a_record_that_failed() {
    let mut failed = 0;
    for seed in 0..16 {
        let world = Shared::new(seed, 6);
        world.lock().background = true;
        let options = Options {
            log: 64 * MIN_SIZE,
            ..options(true)
        };
        let (end, ..) = write(&world, options.clone(), &Signals::default());
        assert_eq!(end.unwrap(), End::Gone);

        // No layer is made meanwhile.
        world.attach();
        world.set_rounds(40);
        world.lock().full = true;
        world.lock().flaky = true;
        let before = world.lock().logs;
        let (end, stats, _) = write(&world, options, &Signals::default());
        assert_eq!(end.unwrap(), End::Gone);
        assert_eq!(stats.logged, world.lock().logs - before);
        failed += stats.failed_logs;
        check(&world);
    }
    assert!(failed > 16, "{failed}");
}

#[test]
fn flushes_fail_while_there_is_no_room_for_anything() {
    let world = Shared::new(13, 6);
    let options = Options {
        log: MIN_SIZE,
        ..options(false)
    };
    let (end, ..) = write(&world, options.clone(), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);

    world.attach();
    world.set_rounds(40);
    world.lock().full = true;
    let (end, stats, _) = write(&world, options, &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    // Whoever waits is told so each time it is tried, though what is in the log is older.
    let failures = world.lock().failures.clone();
    assert!((5..30).contains(&failures.len()), "{failures:?}, {stats:?}");
    check(&world);
}

/// A disk whose writer was killed when there were some records in the log.
fn with_records() -> (Shared, Options) {
    let world = Shared::new(14, 30);
    world.lock().log = 64 * MIN_SIZE;
    let mut options = options(false);
    options.log = 64 * MIN_SIZE;
    let mut steps = 60;
    let folder = Model(world.clone());
    loop {
        {
            let mut world = world.lock();
            world.fault = Some((world.steps + steps, Fault::Kill));
        }
        let device = world.open(&folder).unwrap();
        let mut writer = Writer::new(device, Model(world.clone()), options.clone()).unwrap();
        let mut told = Told {
            log: &|_| {},
            stats: &mut |_: &Stats| {},
        };
        writer.run(&Signals::default(), &mut told).unwrap_err();
        drop(writer);
        world.restart();
        if Device::open(&folder).unwrap().live() > 2 {
            return (world, options);
        }
        steps += 1;
    }
}

/// Who has all in memory says `damage` once, and goes on with another log.
fn is_taken_over(world: &Shared, options: Options, damage: &str) {
    let folder = Model(world.clone());
    let was = Device::look(&folder).unwrap().obd.log.unwrap();
    world.set_rounds(5);
    let (end, _, lines) = write(world, options, &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    let is_said = |line: &String| line.contains("not needed") && line.contains(damage);
    assert!(lines.len() == 1 && lines.iter().all(is_said), "{lines:?}");
    let image = Device::look(&folder).unwrap();
    assert_ne!(image.obd.log.map(|log| log.id), Some(was.id));
    check(world);
}

#[test]
fn a_damaged_log_is_refused_but_for_who_has_all_in_memory() {
    let (world, options) = with_records();
    let folder = Model(world.clone());
    let image = Device::look(&folder).unwrap();
    let live = Device::open(&folder).unwrap().live();
    let state = image.obd.log.unwrap();
    // The second one; the first is as it was.
    let number = state.seq + 2;
    let second = world.record(state.id, number);
    world.spoil(log::NAME, second, &[0xA5; 64]);

    let error = log::content(&folder, &image).unwrap_err().to_string();
    let says = format!("log.obd: record {number}, at byte {second}, is damaged: record ");
    assert!(error.starts_with(&says), "{error}");
    // Power fails: what was in the log is not known any more.
    let cut = world.copy();
    let spoilt = Model(cut.clone());
    let mut device = Device::open(&spoilt).unwrap();
    let refused = device.recover(&Default::default()).unwrap_err().to_string();
    assert!(refused.starts_with(&error), "{refused}");
    drop(device);
    let go = AtomicBool::new(false);
    let compacted = compact(&spoilt, Depth::Own, &Default::default(), &go);
    assert_eq!(compacted.unwrap_err().to_string(), refused);

    // What is before the damage can be had, and what is behind is lost.
    let mut device = Device::open(&spoilt).unwrap();
    let (records, damage) = device.salvage(&Default::default()).unwrap();
    assert!(records == 1 && live > 2, "{records} of {live}");
    assert!(error.ends_with(&damage.unwrap()), "{error}");
    assert_eq!(device.image().obd.log, None);
    drop(device);
    cut.attach();
    check(&cut);
    cut.set_rounds(5);
    let (end, ..) = write(&cut, options.clone(), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    check(&cut);

    is_taken_over(&world, options, "is damaged");
}

#[test]
fn so_is_a_log_that_is_not_there() {
    let (world, options) = with_records();
    let folder = Model(world.clone());
    folder.remove(log::NAME).unwrap();
    let cut = world.copy();
    let without = Model(cut.clone());
    let mut device = Device::open(&without).unwrap();
    let refused = device.recover(&Default::default()).unwrap_err().to_string();
    assert!(
        refused.starts_with("log.obd: cannot be read: "),
        "{refused}"
    );
    let before = device.image().lowers.clone();
    let (records, damage) = device.salvage(&Default::default()).unwrap();
    assert_eq!((records, damage.is_some()), (0, true));
    assert_eq!(device.image().lowers, before);
    drop(device);
    cut.attach();
    check(&cut);

    is_taken_over(&world, options, "cannot be read");
}

#[test]
fn a_log_without_damage_is_salvaged_as_a_whole() {
    let (world, _) = with_records();
    let folder = Model(world.clone());
    let mut device = Device::open(&folder).unwrap();
    let live = device.live();
    let salvaged = device.salvage(&Default::default()).unwrap();
    assert_eq!(salvaged, (live, None));
    assert!(device.image().obd.log.is_some());
    drop(device);
    world.attach();
    check(&world);
}

#[test]
fn a_signal_ends_it_after_what_is_frozen() {
    let world = Shared::new(10, 1000);
    let stop = AtomicBool::new(true);
    let signals = Signals {
        stop: Some(&stop),
        ..Signals::default()
    };
    let (end, stats, _) = write(&world, options(false), &signals);
    assert_eq!(end.unwrap(), End::Stopped);
    assert!(stats.commits <= 1);
    // Where nothing can be committed, it does not stay for that.
    world.lock().full = true;
    loop {
        match write(&world, options(false), &signals) {
            (Ok(End::Stopped), ..) => {}
            (Ok(End::Gone), ..) => panic!("it is there"),
            (Err(error), ..) => {
                assert!(error.is_full(), "{error}");
                break;
            }
        }
    }
    // The next one does the rest.
    {
        let mut world = world.lock();
        world.full = false;
    }
    world.set_rounds(3);
    let (end, ..) = write(&world, options(false), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    check(&world);
}

#[test]
fn a_disk_of_another_device_is_refused() {
    let world = Shared::new(11, 3);
    let folder = Model(world.clone());
    let (end, ..) = write(&world, Options::default(), &Signals::default());
    assert_eq!(end.unwrap(), End::Gone);
    // Attached as it is, and then merged behind the driver's back.
    world.attach();
    let go = AtomicBool::new(false);
    compact(&folder, Depth::Own, &Default::default(), &go).unwrap();
    let layers = Model(world.clone()).bound().layers;
    let device = Device::open(&folder).unwrap();
    // That is what a merge looks like that the driver was not told of, so it is
    // told; anything else is refused.
    assert!(Writer::new(device, Model(world.clone()), Options::default()).is_ok());
    compact(&folder, Depth::All, &Default::default(), &go).unwrap();
    let device = Device::open(&folder).unwrap();
    let refused = Writer::new(device, Model(world), Options::default());
    let error = refused.err().unwrap().to_string();
    assert!(error.contains(&format!("the disk has {layers}")), "{error}");
}

#[test]
fn a_device_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("device");
    let size = BLOCKS * BLOCK;
    let directory = Directory::create(&at).unwrap();
    Device::create(&directory, size, &[], true).unwrap();
    // What is left of somebody who died goes, what is somebody else's stays.
    for name in [
        "layers/.00000002.new",
        "layers/00000007.lsmt",
        ".image.json.new",
    ] {
        std::fs::write(at.join(name), "x").unwrap();
    }
    std::fs::write(at.join("layers/notes"), "x").unwrap();
    let device = Device::open(&directory).unwrap();
    let path = at.canonicalize().unwrap().join("layers/00000001.lsmt");
    assert_eq!(device.paths(), std::slice::from_ref(&path));
    let there = |at: &std::path::Path| {
        let mut names: Vec<_> = std::fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(there(&at), ["image.json", "layers"]);
    assert_eq!(there(&at.join("layers")), ["00000001.lsmt", "notes"]);
    std::fs::remove_file(path).unwrap();
    let error = Device::open(&directory).err().unwrap().to_string();
    assert_eq!(error, "layers/00000001.lsmt: is not there");
}
