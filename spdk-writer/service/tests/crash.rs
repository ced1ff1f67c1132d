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

fn options() -> Options {
    Options {
        max_layers: 4,
        // One thread, one order.
        background: false,
        ..Options::default()
    }
}

/// What a run came to.
#[derive(Default, Debug)]
struct Seen {
    taken_over: u64,
    merges: u64,
    failed: u64,
    kills: u64,
    cuts: u64,
    errors: u64,
}

/// A writer from its beginning to its end.
fn write(world: &Shared, seen: &mut Seen) -> Result<End, Error> {
    let folder = Model(world.clone());
    let device = Device::open(&folder)?;
    let mut writer = Writer::new(device, Model(world.clone()), options())?;
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
    let seed = 3;
    let mut seen = Seen::default();
    let whole = Shared::new(seed, ROUNDS);
    live(&whole.clone(), &[], &mut seen);
    let steps = whole.lock().steps;
    assert!(seen.merges > 1 && steps > 200, "{steps} steps, {seen:?}");
    assert_eq!(seen.failed, 0);
    for fault in [
        Fault::Kill,
        Fault::Power,
        Fault::Error(libc::EIO),
        Fault::Error(libc::ENOSPC),
    ] {
        for at in 1..=steps {
            let context = Context(format!("{fault:?} at step {at} of {steps}"));
            live(&Shared::new(seed, ROUNDS), &[(at, fault)], &mut seen);
            drop(context);
        }
    }
    // Otherwise this would have tried less than it says.
    assert!(seen.taken_over > 10, "{seen:?}");
    // The last steps are those of the check that all is at rest.
    assert!(seen.kills.min(seen.cuts) > steps - 10, "{seen:?}");
    assert!(seen.failed > steps, "{seen:?}");
}

#[test]
fn several_faults_in_a_row() {
    let mut seen = Seen::default();
    for seed in 0..points() {
        let mut rng = Rng::with_seed(seed);
        let mut faults = Vec::new();
        // The later ones in recovery or soon after.
        for n in 0..rng.u64(1..6) {
            let most = if n == 0 { 400 } else { 50 };
            let kind = match rng.u8(0..4) {
                0 => Fault::Error(libc::EIO),
                1 => Fault::Power,
                2 => Fault::Error(libc::ENOSPC),
                _ => Fault::Kill,
            };
            faults.push((rng.u64(1..=most), kind));
        }
        let context = Context(format!("seed {seed}, faults {faults:?}"));
        let world = Shared::new(seed % 16, ROUNDS);
        world.lock().rng = Rng::with_seed(seed);
        live(&world, &faults, &mut seen);
        drop(context);
    }
    assert!(seen.taken_over > 0 && seen.merges > 0, "{seen:?}");
}
