// SPDX-License-Identifier: MIT

//! The writer is killed, the power fails or something goes wrong at every step of
//! a disk's life, be it the file system's or the driver's: every flush that was
//! acknowledged is there, layers are whole and in order, recovery does the same
//! however often it runs, and the rest of the life succeeds.

mod common;

use common::{
    Fault,
    Model,
    Shared,
    check, //
};
use fastrand::Rng;
use obd_service::log::MIN_SIZE;
use obd_service::writer::{
    Signals,
    Told, //
};
use obd_service::{
    Device,
    End,
    Error,
    Options,
    Stats,
    Writer, //
};

/// Rounds of writing in a life.
const ROUNDS: u64 = 14;

fn options(log: u64, background: bool) -> Options {
    Options {
        max_layers: 4,
        log,
        // One thread, one order, or else any.
        background,
        ..Options::default()
    }
}

/// What a run came to.
#[derive(Default, Debug)]
struct Seen {
    taken_over: u64,
    merges: u64,
    logged: u64,
    failed_logs: u64,
    failed: u64,
    kills: u64,
    cuts: u64,
    gone: u64,
    errors: u64,
}

/// A writer from its beginning to its end.
fn write(world: &Shared, seen: &mut Seen) -> Result<End, Error> {
    let folder = Model(world.clone());
    let device = world.open(&folder)?;
    let options = {
        let world = world.lock();
        options(world.log, world.background)
    };
    let mut writer = Writer::new(device, Model(world.clone()), options)?;
    let result = writer.run(
        &Signals::default(),
        &mut Told {
            log: &|_| {},
            stats: &mut |_: &Stats| {},
        },
    );
    let stats = writer.stats();
    assert_eq!(stats.bytes_copied, 0);
    seen.taken_over += stats.taken_over;
    seen.merges += stats.merges;
    seen.logged += stats.logged;
    seen.failed_logs += stats.failed_logs;
    seen.failed += stats.failed + stats.failed_merges;
    result
}

/// Lives a life with faults, the place of each counted from the one before.
fn live(world: &Shared, faults: &[(u64, Fault)], seen: &mut Seen) {
    let mut faults = faults.iter();
    let arm = |fault: Option<&(u64, Fault)>| {
        let mut world = world.lock();
        world.fault = fault.map(|(after, fault)| (world.steps + after, *fault));
        world.hit = None;
    };
    arm(faults.next());
    loop {
        let ended = write(world, seen);
        let (dead, hit) = {
            let world = world.lock();
            (world.dead, world.hit)
        };
        match ended {
            // Somebody took it away, and has it once more.
            Ok(End::Gone) if hit == Some(Fault::Gone) => {}
            // It was a merge's last step, which nobody waits for.
            Ok(End::Gone) if dead && world.lock().background => {}
            Ok(end) => {
                assert_eq!(end, End::Gone);
                assert!(!dead);
                break;
            }
            // An error where nobody retries: when it began.
            Err(error) => assert!(hit.is_some(), "failed by itself: {error}"),
        }
        match hit {
            Some(Fault::Kill) => seen.kills += 1,
            Some(Fault::Power) => seen.cuts += 1,
            Some(Fault::Gone) => seen.gone += 1,
            _ => seen.errors += 1,
        }
        world.restart();
        // Opened again, it is as it was opened, and nothing is left to be removed.
        let opened = world.copy();
        let folder = Model(opened.clone());
        let first = Device::open(&folder).unwrap().image().clone();
        let changes = opened.lock().changes;
        assert_eq!(*Device::open(&folder).unwrap().image(), first);
        assert_eq!(opened.lock().changes, changes);
        arm(faults.next());
    }
    // What an interrupted merge left goes at the next start.
    let folder = Model(world.clone());
    world.lock().fault = None;
    drop(Device::open(&folder).unwrap());
    check(world);
}

/// How many points: more, if the environment says so.
fn points() -> u64 {
    let given = std::env::var("OBD_CRASH_POINTS").ok();
    given.map_or(300, |text| text.parse().unwrap())
}

/// Says which run it was if that panics.
struct Context(String);

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

#[test]
fn every_step_of_a_life() {
    every_step(0);
}

#[test]
fn every_step_of_a_life_with_a_log() {
    every_step(MIN_SIZE);
}

/// A new world whose writer may have a log of so many bytes.
fn world(seed: u64, log: u64) -> Shared {
    let world = Shared::new(seed, ROUNDS);
    world.lock().log = log;
    world
}

fn every_step(log: u64) {
    let seed = 3;
    let mut seen = Seen::default();
    let whole = world(seed, log);
    live(&whole.clone(), &[], &mut seen);
    let steps = whole.lock().steps;
    // With a log there are fewer layers.
    let merges = if log == 0 { 1 } else { 0 };
    assert!(
        seen.merges > merges && steps > 200,
        "{steps} steps, {seen:?}"
    );
    assert_eq!(seen.failed, 0);
    assert_eq!(seen.logged > 3, log > 0, "{seen:?}");
    assert_eq!(seen.logged, whole.lock().logs);
    for fault in [
        Fault::Kill,
        Fault::Power,
        Fault::Error(libc::EIO),
        Fault::Error(libc::ENOSPC),
        Fault::Gone,
    ] {
        for at in 1..=steps {
            let context = Context(format!("{fault:?} at step {at} of {steps}"));
            live(&world(seed, log), &[(at, fault)], &mut seen);
            drop(context);
        }
    }
    // Otherwise this would have tried less than it says.
    let taken_over = if log == 0 { 10 } else { 5 };
    assert!(seen.taken_over > taken_over, "{seen:?}");
    // The last steps are those of the check that all is at rest.
    let least = seen.kills.min(seen.cuts).min(seen.gone);
    assert!(least > steps - 10, "{seen:?}");
    assert!(seen.failed + seen.failed_logs > steps, "{seen:?}");
}

/// A writer that has begun does not end for lack of memory, whatever it was about.
#[test]
fn no_memory_for_a_while() {
    for log in [0, MIN_SIZE] {
        let whole = world(3, log);
        live(&whole.clone(), &[], &mut Seen::default());
        let steps = whole.lock().steps;
        let (mut hit, mut tried) = (0, 0);
        for at in 1..=steps {
            let context = Context(format!("no memory at step {at} of {steps}, log {log}"));
            let world = world(3, log);
            let folder = Model(world.clone());
            world.lock().fault = Some((at, Fault::Error(libc::ENOMEM)));
            let device = world.open(&folder);
            let writer = device
                .and_then(|device| Writer::new(device, Model(world.clone()), options(log, false)));
            // Where nobody retries.
            let Ok(mut writer) = writer else { continue };
            let ended = writer.run(
                &Signals::default(),
                &mut Told {
                    log: &|_| {},
                    stats: &mut |_: &Stats| {},
                },
            );
            assert_eq!(ended.unwrap(), End::Gone);
            hit += u64::from(world.lock().hit.is_some());
            tried += 1;
            world.lock().fault = None;
            drop(context);
        }
        assert!(hit > steps / 2 && tried > steps / 2, "{hit} of {tried}");
    }
}

/// A writer is killed, and the next one, which has just taken over, loses power.
#[test]
fn a_cut_after_a_kill() {
    let mut seen = Seen::default();
    let mut rng = Rng::with_seed(9);
    for n in 0..2 * points() {
        let faults = [
            (rng.u64(1..=300), Fault::Kill),
            (rng.u64(1..=30), Fault::Power),
        ];
        let seed = rng.u64(..16);
        let context = Context(format!("seed {seed}, faults {faults:?}"));
        let world = world(seed, 2 * MIN_SIZE);
        // With records since something was sealed in every other one.
        world.lock().background = n % 2 == 0;
        live(&world, &faults, &mut seen);
        drop(context);
    }
    assert!(
        seen.kills > points() && seen.cuts > points() / 2,
        "{seen:?}"
    );
}

/// Nothing is logged while nobody knows which `image.json` there will be.
#[test]
fn a_log_after_a_merge_that_may_be_named() {
    let faults = [
        (145, Fault::Error(libc::EIO)),
        (10, Fault::Error(libc::EIO)),
    ];
    for after in 1..=20 {
        let mut faults = faults.to_vec();
        faults.push((after, Fault::Power));
        let context = Context(format!("faults {faults:?}"));
        let world = world(13, MIN_SIZE);
        world.lock().rng = Rng::with_seed(4237);
        live(&world, &faults, &mut Seen::default());
        drop(context);
    }
}

#[test]
fn several_faults_in_a_row() {
    several_faults(points(), false);
}

#[test]
fn several_faults_in_a_row_in_the_background() {
    several_faults(points() / 2, true);
}

fn several_faults(points: u64, background: bool) {
    let mut seen = Seen::default();
    for seed in 0..points {
        let mut rng = Rng::with_seed(seed);
        let mut faults = Vec::new();
        // The later ones in recovery or soon after.
        for n in 0..rng.u64(1..6) {
            let most = if n == 0 { 400 } else { 50 };
            let kind = match rng.u8(0..5) {
                0 => Fault::Error(libc::EIO),
                1 => Fault::Power,
                2 => Fault::Error(libc::ENOSPC),
                3 => Fault::Gone,
                _ => Fault::Kill,
            };
            faults.push((rng.u64(1..=most), kind));
        }
        let context = Context(format!("seed {seed}, faults {faults:?}"));
        // Without a log, with a small one, and with one that is never full.
        let world = world(seed % 16, [0, MIN_SIZE, 32 * MIN_SIZE][seed as usize % 3]);
        world.lock().rng = Rng::with_seed(seed);
        world.lock().background = background;
        world.lock().flaky = seed % 4 == 0;
        live(&world, &faults, &mut seen);
        drop(context);
    }
    // A merge's thread, or a layer's, decides what is at which step.
    assert!(background || seen.taken_over > 0, "{seen:?}");
    assert!(seen.merges > 0, "{seen:?}");
    assert!(seen.logged > 0 && seen.failed_logs > 0, "{seen:?}");
}
