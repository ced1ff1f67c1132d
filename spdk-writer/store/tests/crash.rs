// SPDX-License-Identifier: MIT

//! Power fails, or the writer is killed, at every command of a store's life:
//! what was acknowledged is there, layers are whole, recovery does the same
//! however often it runs, and the work can go on.

mod common;

use common::{
    Drive,
    Fault,
    Layer,
    content,
    device, //
};
use fastrand::Rng;
use obd_store::{
    CommitError,
    How,
    Store, //
};
use obd_writer::{
    Compression,
    Options, //
};
use std::ops::{
    ControlFlow,
    Range, //
};
use std::sync::{
    Arc,
    Mutex, //
};

const IMAGE: u64 = 900 << 10;

/// Steps of a life.
const STEPS: usize = 8;

/// What is done, one after the other.
enum Step {
    Create,
    Commit(Layer),
    Merge(Range<usize>),
}

struct Life {
    steps: [Step; STEPS],
    /// After each step: number of layers and what they say.
    expected: Vec<(usize, Vec<u8>)>,
    options: Options,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut layer = |part| Step::Commit(Layer::random(&mut rng, IMAGE, part));
        let steps = [
            Step::Create,
            layer(250),
            layer(60),
            layer(120),
            Step::Merge(1..3),
            layer(90),
            Step::Merge(0..3),
            layer(200),
        ];
        let mut count = 0;
        let mut image = Vec::new();
        let expected = steps
            .iter()
            .map(|step| {
                match step {
                    Step::Create => {}
                    Step::Commit(layer) => {
                        count += 1;
                        layer.over(&mut image);
                    }
                    Step::Merge(range) => count -= range.len() - 1,
                }
                (count, image.clone())
            })
            .collect();
        let options = Options {
            // Without compression the journal has no block lengths.
            compression: (!seed.is_multiple_of(3)).then(Compression::default),
            ..Options::default()
        };
        Self {
            steps,
            expected,
            options,
        }
    }

    /// Does step `number`; how much an earlier try had left.
    fn step(
        &self,
        store: &mut Option<Store>,
        drive: &Arc<Mutex<Drive>>,
        number: usize,
    ) -> Result<u64, String> {
        let step = &self.steps[number];
        if let Step::Create = step {
            let made = Store::create(device(drive)).map_err(|error| error.to_string())?;
            *store = Some(made);
            return Ok(0);
        }
        if store.is_none() {
            *store = Some(Store::open(device(drive), true).map_err(|error| error.to_string())?);
        }
        let Some(store) = store else {
            return Err("no store".into());
        };
        let go = |_, _| ControlFlow::Continue(());
        let interval = 256 << 10;
        let count = store.state().layers.len();
        let committed = match step {
            Step::Commit(layer) => {
                let how = How {
                    identity: [number as u8; 16],
                    name: format!("step {number}"),
                    replace: count..count,
                    interval,
                    resume: false,
                };
                store
                    .commit(layer, &self.options, &how, go)
                    .map_err(|error: CommitError<_>| error.to_string())
            }
            Step::Merge(range) => store
                .merge(range.clone(), &self.options, interval, go)
                .map_err(|error| error.to_string()),
            Step::Create => return Ok(0),
        };
        committed.map(|committed| committed.resumed_at)
    }

    /// How many steps the store has seen, if it is as after one of `possible`.
    fn find(&self, store: &Store, possible: Range<usize>) -> Option<usize> {
        let count = store.state().layers.len();
        let says = match count {
            0 => Vec::new(),
            _ => content(store),
        };
        // The last that fits: a merge changes no content, but a number.
        possible.rev().find(|&done| {
            let (layers, image) = &self.expected[done - 1];
            (*layers, image) == (count, &says)
        })
    }
}

/// What a run came to.
#[derive(Default)]
struct Seen {
    resumed: u32,
    /// The step was complete though nobody was told.
    untold: u32,
}

/// Lives `steps` of a life, those before which are done, with faults at the
/// commands in `faults`, counted each from the fault before.
fn live(
    life: &Life,
    steps: Range<usize>,
    drive: &Arc<Mutex<Drive>>,
    faults: &[(u64, Fault)],
    seen: &mut Seen,
) {
    let mut faults = faults.iter();
    let mut store: Option<Store> = None;
    let mut done = steps.start;
    let arm = |fault: Option<&(u64, Fault)>| {
        let mut drive = drive.lock().unwrap();
        drive.fault = fault.map(|&(after, fault)| (drive.commands + after, fault));
    };
    arm(faults.next());
    while done < steps.end {
        match life.step(&mut store, drive, done) {
            Ok(resumed) => {
                done += 1;
                seen.resumed += u32::from(resumed > 0);
                continue;
            }
            Err(error) => {
                assert!(
                    drive.lock().unwrap().dead,
                    "step {done} failed by itself: {error}"
                );
            }
        }
        store = None;
        Drive::restart(drive);
        // Whoever only looks sees a whole store, and changes nothing.
        let (writes, commands) = {
            let drive = drive.lock().unwrap();
            (drive.writes, drive.commands)
        };
        match Store::open(device(drive), false) {
            Ok(found) => {
                let most = (done + 2).min(life.steps.len() + 1);
                let at = life.find(&found, done.max(1)..most);
                let Some(at) = at else {
                    panic!(
                        "after step {done} there are {} layers",
                        found.state().layers.len()
                    );
                };
                seen.untold += u32::from(at > done);
                // Recovery does the same again, and for a writer.
                let again = Store::open(device(drive), true).unwrap();
                assert_eq!(again.state(), found.state());
                assert_eq!(drive.lock().unwrap().writes, writes);
                done = at;
            }
            Err(error) => assert_eq!(done, 0, "{error}"),
        }
        assert!(drive.lock().unwrap().commands > commands);
        arm(faults.next());
    }
    Drive::restart(drive);
    let store = Store::open(device(drive), false).unwrap();
    assert_eq!(life.find(&store, done..done + 1), Some(done));
}

fn drive(seed: u64) -> Arc<Mutex<Drive>> {
    Drive::new(
        seed,
        if seed.is_multiple_of(2) { 512 } else { 4096 },
        !seed.is_multiple_of(5),
    )
}

/// How many points: more, if the environment says so.
fn points() -> u64 {
    let given = std::env::var("OBD_CRASH_POINTS").ok();
    given.map_or(120, |text| text.parse().unwrap())
}

#[test]
fn test_store_survives_faults_at_any_command() {
    let mut seen = Seen::default();
    let lives: Vec<(Life, u64)> = (0..12)
        .map(|seed| {
            let (life, drive) = (Life::new(seed), drive(seed));
            live(&life, 0..STEPS, &drive, &[], &mut Seen::default());
            let commands = drive.lock().unwrap().commands;
            (life, commands)
        })
        .collect();
    for seed in 0..points() {
        let (life, whole) = &lives[seed as usize % lives.len()];
        let mut rng = Rng::with_seed(seed);
        let mut faults = Vec::new();
        // From one fault to several, the later ones in recovery or soon after.
        for n in 0..rng.u64(1..5) {
            let most = if n == 0 { *whole } else { 40 };
            let kind = if rng.u8(0..3) == 0 {
                Fault::Kill
            } else {
                Fault::Power
            };
            faults.push((rng.u64(1..=most), kind));
        }
        let drive = drive(seed);
        let told = format!("seed {seed}, faults {faults:?}");
        let guard = Told(&told);
        live(life, 0..STEPS, &drive, &faults, &mut seen);
        std::mem::forget(guard);
    }
    // Otherwise this would have tried less than it says.
    assert!(seen.resumed > 5, "{} resumed", seen.resumed);
    assert!(seen.untold > 0, "{} untold", seen.untold);
}

/// Says which run it was if that panics.
struct Told<'a>(&'a str);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("{}", self.0);
    }
}

/// One life, power failing at each of its commands; after the step in which it
/// does, and the next one, nothing is new.
#[test]
fn test_store_survives_a_power_cut_at_every_command() {
    let seed = 7;
    let life = Life::new(seed);
    let whole = drive(seed);
    let mut tried = 0;
    for step in 0..STEPS {
        let before = whole.lock().unwrap().clone();
        live(&life, step..step + 1, &whole, &[], &mut Seen::default());
        let commands = whole.lock().unwrap().commands - before.commands;
        for at in 1..=commands {
            let told = format!("command {at} of {commands} in step {step}");
            let guard = Told(&told);
            let drive = Arc::new(Mutex::new(before.clone()));
            live(
                &life,
                step..(step + 2).min(STEPS),
                &drive,
                &[(at, Fault::Power)],
                &mut Seen::default(),
            );
            std::mem::forget(guard);
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried} commands only");
}
