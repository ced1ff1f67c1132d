// SPDX-License-Identifier: MIT

//! Layers of a device in a store keep what [`Folder`] promises: on a drive in memory that
//! loses power, or its writer, at any command, or answers with errors for a while and goes
//! on.

#[path = "../../store/tests/common/mod.rs"]
mod drive;

use drive::{
    Drive,
    Fault,
    device, //
};
use fastrand::Rng;
use obd_core::Source;
use obd_engine::Shared;
use obd_service::folder::{
    Expected,
    LAYERS, //
};
use obd_service::{
    Directory,
    Folder,
    Stored, //
};
use obd_store::Store;
use obd_store::format::FIRST;
use std::collections::BTreeMap;
use std::sync::{
    Arc,
    Mutex, //
};

/// Where the store says it is.
const PATH: &str = "/dev/drive";

/// What is known of a name.
#[derive(Clone, Debug, Default)]
struct Name {
    /// What it has now, as far as it was synced.
    now: Option<Vec<u8>>,
    /// What it had when names were last synced, and all that it had since.
    maybe: Vec<Option<Vec<u8>>>,
}

impl Name {
    fn set(&mut self, now: Option<Vec<u8>>) {
        self.now.clone_from(&now);
        self.maybe.push(now);
    }
}

#[derive(Default)]
struct Model(BTreeMap<String, Name>);

impl Model {
    fn name(&mut self, name: &str) -> &mut Name {
        let maybe = vec![None];
        let new = Name { now: None, maybe };
        self.0.entry(name.to_owned()).or_insert(new)
    }

    /// Names are durable as they are.
    fn synced(&mut self) {
        for name in self.0.values_mut() {
            name.maybe = vec![name.now.clone()];
        }
    }

    /// What is there is what was promised; from here on it is all there is.
    fn check(&mut self, folder: &impl Folder, why: &str) {
        let there = folder.names(LAYERS).unwrap();
        for name in &there {
            let name = format!("{LAYERS}/{name}");
            assert!(self.0.contains_key(&name), "{why}: {name} was never there");
        }
        for (name, known) in &mut self.0 {
            let short = name.rsplit('/').next().unwrap();
            let found = there
                .iter()
                .any(|it| it == short)
                .then(|| read(folder, name));
            assert!(
                known.maybe.contains(&found),
                "{why}: {name} has {:?} bytes, not one of {:?}",
                found.map(|found| found.len()),
                known
                    .maybe
                    .iter()
                    .map(|it| it.as_ref().map(Vec::len))
                    .collect::<Vec<_>>()
            );
            known.now.clone_from(&found);
            known.maybe = vec![found];
        }
    }
}

fn read(folder: &impl Folder, name: &str) -> Vec<u8> {
    let source = folder.open(name).unwrap();
    let mut bytes = vec![0; source.size() as usize];
    source.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn stored<'d>(device: &'d Arc<Shared>, dir: &tempfile::TempDir) -> Stored<'d, Directory> {
    let folder = Directory::open(&dir.path().join("disk")).unwrap();
    let store = Store::open(Arc::clone(device), true).unwrap();
    Stored::new(folder, device, store, PATH.into()).unwrap()
}

fn free(device: &Arc<Shared>) -> u64 {
    let store = Store::open(Arc::clone(device), true).unwrap();
    store.free().iter().map(|piece| piece.len).sum()
}

/// Does something at random; false if that failed.
fn step(folder: &impl Folder, model: &mut Model, rng: &mut Rng) -> bool {
    let number = rng.u64(1..6);
    let name = format!("{LAYERS}/{number:08}.lsmt");
    let draft = format!("{LAYERS}/.{number:08}.new");
    match rng.u8(0..10) {
        0..=4 => {
            let len = rng.usize(1..200_000);
            let bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            let called = if rng.bool() { &draft } else { &name };
            let expected = Expected {
                most: len as u64 + rng.u64(..300_000),
                virtual_size: 4096,
            };
            let Ok(mut file) = folder.create_layer(called, expected) else {
                return false;
            };
            model.name(called).set(None);
            let mut write = || {
                for part in bytes.chunks(30_000) {
                    folder.append(&mut file, part)?;
                }
                folder.overwrite(&mut file, &bytes[..len.min(100)])?;
                folder.describe(&mut file, len as u64);
                folder.sync(&mut file)
            };
            let written = write();
            // In either order.
            if rng.bool() {
                drop(file);
            }
            if written.is_err() || rng.u8(..8) == 0 {
                folder.remove(called).unwrap();
                return written.is_ok();
            }
            model.name(called).set(Some(bytes.clone()));
            if called == &draft {
                folder.rename(&draft, &name).unwrap();
                model.name(&draft).set(None);
                model.name(&name).set(Some(bytes));
            }
            true
        }
        5 | 6 => {
            if model.name(&name).now.is_some() {
                folder.remove(&name).unwrap();
                model.name(&name).set(None);
            }
            true
        }
        7 => folder.make_room().is_ok(),
        _ => {
            let synced = folder.sync_names(LAYERS).is_ok();
            if synced {
                model.synced();
            }
            synced
        }
    }
}

/// A life with faults, each so many commands after the one before.
fn live(seed: u64, faults: &[(u64, Fault)], volatile: bool) -> Arc<Mutex<Drive>> {
    let dir = tempfile::tempdir().unwrap();
    drop(Directory::create(&dir.path().join("disk")).unwrap());
    let drive = Drive::new(seed, 512, volatile);
    drop(Store::create(device(&drive)).unwrap());
    let whole = free(&device(&drive));
    let mut model = Model::default();
    let mut rng = Rng::with_seed(seed);
    let mut faults = faults.iter();
    let arm = |fault: Option<&(u64, Fault)>| {
        let mut drive = drive.lock().unwrap();
        drive.fault = fault.map(|(after, fault)| (drive.commands + after, *fault));
    };
    let mut next = faults.next();
    loop {
        let shared = device(&drive);
        let folder = stored(&shared, &dir);
        model.check(&folder, "opened");
        arm(next);
        let mut steps = 0;
        let died = loop {
            steps += 1;
            if step(&folder, &mut model, &mut rng) {
                match (next, steps > 40) {
                    (None, true) => break false,
                    _ => continue,
                }
            }
            assert!(drive.lock().unwrap().dead, "failed by itself");
            let fault = next.map(|(_, fault)| *fault);
            next = faults.next();
            Drive::restart(&drive);
            // The drive was away for a while, and lost nothing that it said it has done.
            if fault == Some(Fault::Kill) && rng.bool() {
                arm(next);
                continue;
            }
            break true;
        };
        if !died {
            // All space comes back, of what was given up, too.
            for name in folder.names(LAYERS).unwrap() {
                folder.remove(&format!("{LAYERS}/{name}")).unwrap();
            }
            folder.make_room().unwrap();
            assert_eq!(free(&device(&drive)), whole);
            return drive;
        }
    }
}

#[test]
fn faults_at_any_command() {
    let given = std::env::var("OBD_CRASH_POINTS").ok();
    let points: u64 = given.map_or(300, |text| text.parse().unwrap());
    let mut discarded = 0;
    // Each fills a drive first.
    for seed in 0..points / 4 {
        let mut rng = Rng::with_seed(!seed);
        let faults: Vec<_> = (0..rng.u64(1..5))
            .map(|_| {
                let fault = if rng.bool() {
                    Fault::Kill
                } else {
                    Fault::Power
                };
                (rng.u64(1..=120), fault)
            })
            .collect();
        let said = std::panic::catch_unwind(|| live(seed, &faults, seed % 3 > 0));
        let drive = said.unwrap_or_else(|_| panic!("seed {seed}, faults {faults:?}"));
        discarded += drive.lock().unwrap().discarded;
    }
    assert!(discarded > 0);
}

/// What is removed can be read where it was until room is made, and nothing else is there.
#[test]
fn places_and_room() {
    let dir = tempfile::tempdir().unwrap();
    drop(Directory::create(&dir.path().join("disk")).unwrap());
    let drive = Drive::new(1, 512, true);
    let shared = device(&drive);
    drop(Store::create(Arc::clone(&shared)).unwrap());
    let folder = stored(&shared, &dir);
    let make = |name: &str, byte: u8| {
        let expected = Expected {
            most: 8000,
            virtual_size: 1 << 20,
        };
        let mut file = folder.create_layer(name, expected).unwrap();
        folder.append(&mut file, &[byte; 5000]).unwrap();
        folder.sync(&mut file).unwrap();
    };
    let (one, two) = ("layers/00000001.lsmt", "layers/00000002.lsmt");
    make(one, 1);
    make(two, 2);
    folder.sync_names(LAYERS).unwrap();
    let place = folder.path(one);
    assert_eq!(place.to_str().unwrap(), format!("{FIRST}+5000 {PATH}"));
    folder.remove(one).unwrap();
    // Others are written and named meanwhile.
    make("layers/00000003.lsmt", 3);
    let mut bytes = [0; 5000];
    shared.read(FIRST, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 5000]);
    folder.sync_names(LAYERS).unwrap();
    folder.make_room().unwrap();
    assert_eq!(drive.lock().unwrap().discarded, 8192);
    make("layers/00000004.lsmt", 4);
    assert_eq!(folder.path("layers/00000004.lsmt"), place);
    assert_eq!(read(&folder, two), [2; 5000]);

    // What does not fit is refused as what is full is.
    let expected = Expected {
        most: 1 << 40,
        virtual_size: 1 << 20,
    };
    let mut file = folder
        .create_layer("layers/00000005.lsmt", expected)
        .unwrap();
    let error = loop {
        if let Err(error) = folder.append(&mut file, &[0; 1 << 16]) {
            break error;
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let error = folder.create_layer("layers/00000006.lsmt", expected).err();
    assert_eq!(error.unwrap().raw_os_error(), Some(libc::ENOSPC));

    // Layers that are somebody else's are left alone.
    let mut store = Store::open(Arc::clone(&shared), true).unwrap();
    let extent = store.reserve(4096).unwrap();
    let part = obd_store::Part {
        extent,
        len: 1,
        virtual_size: 4096,
        data: 0,
        name: "base".into(),
    };
    store.change(&[], Some(&part)).unwrap();
    drop(folder);
    let folder = Directory::open(&dir.path().join("disk")).unwrap();
    let refused = Stored::new(folder, &shared, store, PATH.into())
        .err()
        .unwrap();
    assert!(refused.contains("no read-write disk's"), "{refused}");
}
