// SPDX-License-Identifier: MIT

//! Read-write disks, as far as they need no driver.

mod common;

use common::{
    failed,
    fails,
    json_of,
    obd,
    stderr, //
};
use obd_core::SECTOR;
use obd_engine::guard::{
    self,
    Force, //
};
use obd_engine::uring::{
    self,
    Purpose, //
};
use obd_engine::{
    Shared,
    Uring, //
};
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
use obd_writer::source::Range;
use obd_writer::{
    Sink,
    Source, //
};
use serde_json::Value;
use std::convert::Infallible;
use std::fs;
use std::ops::ControlFlow;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;

fn fixture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../fixtures", name]
        .iter()
        .collect();
    path.to_str().unwrap().to_owned()
}

fn image(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("image.json")).unwrap()).unwrap()
}

#[test]
fn new_disks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = json_of(dir, &["create", "--rw", "--size", "10G", "empty"]);
    assert_eq!(made["size"], 10_u64 << 30);
    let said = image(&dir.join("empty"));
    assert_eq!(said["lowers"][0]["file"], "layers/00000001.lsmt");
    // The configuration is one, wherever it is read from.
    let layer = json_of(dir, &["info", "empty/layers/00000001.lsmt"]);
    assert_eq!(layer["layer"]["virtual_size"], 10_u64 << 30);
    let exported = obd(dir, &["export", "-o", "raw", "empty/image.json"]);
    assert!(exported.status.success(), "{}", stderr(&exported));
    assert_eq!(fs::metadata(dir.join("raw")).unwrap().len(), 10 << 30);

    // Over layers: as large as they are, or larger.
    let below = fixture("a-l07-lz4-4k.layer");
    let size = json_of(dir, &["info", &below])["layer"]["virtual_size"]
        .as_u64()
        .unwrap();
    let made = json_of(dir, &["create", "--rw", "over", "--lower", &below]);
    assert_eq!((&made["size"], &made["layers"]), (&size.into(), &1.into()));
    let canonical = fs::canonicalize(&below).unwrap();
    assert_eq!(
        image(&dir.join("over"))["lowers"][0]["file"],
        canonical.to_str().unwrap()
    );
    let config = "over/image.json";
    let made = json_of(
        dir,
        &["create", "--rw", "-s", "1G", "large", "--lower", config],
    );
    assert_eq!(made["layers"], 2);

    fails(
        dir,
        &["create", "--rw", "--size", "10G", "empty"],
        2,
        "exists",
    );
    failed(dir, &["create", "--rw", "none"], 2, "--size");
    fails(
        dir,
        &["create", "--rw", "-s", "1000", "none"],
        2,
        "1000 bytes",
    );
    failed(dir, &["create", "--rw", "-s", "5T", "none"], 2, "bytes");
    fails(
        dir,
        &["create", "--rw", "-s", "4K", "none", "--lower", &below],
        2,
        "less than",
    );
    assert!(!dir.join("none").exists());
}

#[test]
fn without_a_driver() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json_of(dir, &["create", "--rw", "--size", "1M", "disk"]);
    fs::create_dir(dir.join("configfs")).unwrap();
    fails(
        dir,
        &["attach", "--writable", "disk", "--configfs", "configfs"],
        2,
        "no disks that can be written to",
    );
    fails(
        dir,
        &["attach", "--writable", "disk", "disk"],
        2,
        "one folder",
    );
    fails(
        dir,
        &["attach", "--writable", "nowhere"],
        3,
        "cannot open nowhere",
    );
    failed(dir, &["attach", "--volatile", "disk"], 2, "--writable");
    failed(dir, &["attach", "--foreground", "disk"], 2, "--writable");
    failed(
        dir,
        &["attach", "--writable", "--userspace", "disk"],
        2,
        "cannot be used with",
    );
    fails(dir, &["writer", "disk"], 3, "is not attached");
    // A folder has one writer.
    let held = Directory::open(&dir.join("disk")).unwrap();
    fails(dir, &["writer", "disk"], 3, "has a writer");
    fails(dir, &["compact", "disk"], 3, "has a writer");
    drop(held);
    fs::write(dir.join("disk/image.json"), "{}").unwrap();
    fails(dir, &["compact", "disk"], 1, "of no read-write disk");
}

/// One sector of data.
struct Sector(u64);

impl Source for Sector {
    type Error = Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        1 << 20
    }

    fn ranges(&self) -> Result<Vec<Range>, Infallible> {
        Ok(vec![Range {
            start: self.0 * SECTOR,
            end: (self.0 + 1) * SECTOR,
            zeroed: false,
        }])
    }

    fn workspace(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&self, (): &mut (), _: u64, buf: &mut [u8]) -> Result<(), Infallible> {
        buf.fill(self.0 as u8 + 1);
        Ok(())
    }
}

/// A file of a device's folder.
struct File<'a, F: Folder>(&'a F, F::File);

impl<F: Folder> Sink for File<'_, F> {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.append(&mut self.1, bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.overwrite(&mut self.1, bytes)
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.0.sync(&mut self.1)
    }
}

/// Seven layers more in `folder`, as a writer would leave them.
fn add_layers(folder: &impl Folder, said: &mut Value) {
    for n in 2..9_u64 {
        let name = format!("layers/{n:08}.lsmt");
        let expected = Expected {
            most: 1 << 20,
            virtual_size: 1 << 20,
        };
        let file = folder.create_layer(&name, expected).unwrap();
        let go = |_, _| ControlFlow::Continue(());
        let options = obd_writer::Options::default();
        obd_writer::commit(&Sector(n * 5 % 7), File(folder, file), &options, go).unwrap();
        let lowers = said["lowers"].as_array_mut().unwrap();
        lowers.push(serde_json::json!({ "file": name }));
    }
    folder.sync_names(LAYERS).unwrap();
    said["obd"]["next"] = 9.into();
}

fn content(dir: &Path, name: &str) -> Vec<u8> {
    let output = obd(dir, &["export", "-o", name, "disk/image.json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    fs::read(dir.join(name)).unwrap()
}

#[test]
fn merged_layers_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json_of(dir, &["create", "--rw", "--size", "1M", "disk"]);
    let folder = Directory::open(&dir.join("disk")).unwrap();
    let mut said = image(&dir.join("disk"));
    add_layers(&folder, &mut said);
    fs::write(dir.join("disk/image.json"), said.to_string()).unwrap();
    drop(folder);
    let before = content(dir, "before");
    let how = ["--algorithm", "zstd", "--block-size", "16"];
    let done = json_of(dir, &[&["compact", "disk"], &how[..]].concat());
    assert_eq!((&done["merged"], &done["layers"]), (&8.into(), &1.into()));
    let merged = image(&dir.join("disk"))["lowers"][0]["file"].clone();
    let merged = json_of(
        dir,
        &["info", &format!("disk/{}", merged.as_str().unwrap())],
    );
    let merged = merged.to_string();
    assert!(
        merged.contains("zstd") && merged.contains("16384"),
        "{merged}"
    );
    assert!(before == content(dir, "after"));
    assert_eq!(fs::read_dir(dir.join("disk/layers")).unwrap().count(), 1);
    let done = json_of(dir, &["compact", "disk"]);
    assert_eq!((&done["merged"], &done["layers"]), (&0.into(), &1.into()));
}

/// The same with layers in a store.
#[test]
fn layers_in_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, size) in [("store", 64 << 20), ("other", 8 << 20)] {
        let file = fs::File::create(dir.join(name)).unwrap();
        file.set_len(size).unwrap();
        json_of(dir, &["store", "init", name]);
    }
    let create = ["create", "--rw", "--size", "1M", "disk", "--store", "store"];
    let by = |engine: &'static str| [&create[..], &["--engine", engine]].concat();
    fails(dir, &by("vfio"), 2, "takes the controller from the kernel");
    assert!(!dir.join("disk").exists());
    json_of(dir, &by("uring"));
    let whole = json_of(dir, &["store", "list", "store"])["free"].clone();
    // It is this disk's.
    fails(
        dir,
        &["create", "--rw", "-s", "1M", "more", "--store", "store"],
        3,
        "has layers",
    );
    for command in [
        &["store", "merge", "store"][..],
        &["store", "export", "-o", "raw", "store"],
        &["export", "-o", "raw", "store"],
    ] {
        fails(dir, command, 1, "layers of a read-write disk");
    }

    let mut said = image(&dir.join("disk"));
    let path = said["obd"]["store"]["device"].as_str().unwrap().to_owned();
    let options = uring::Options::default();
    let force = Force::Holds(guard::STORE);
    let engine = Uring::open(Path::new(&path), Purpose::Own(force), &options).unwrap();
    let shared = Arc::new(Shared::new(Box::new(engine)));
    let store = Store::open(Arc::clone(&shared), true).unwrap();
    let folder = Directory::open(&dir.join("disk")).unwrap();
    let folder = Stored::new(folder, &shared, store, path).unwrap();
    add_layers(&folder, &mut said);
    // One that `image.json` does not name, of a writer that was killed.
    let expected = Expected {
        most: 1 << 20,
        virtual_size: 1 << 20,
    };
    let mut file = folder
        .create_layer("layers/00000009.lsmt", expected)
        .unwrap();
    folder.append(&mut file, b"rubbish").unwrap();
    folder.sync(&mut file).unwrap();
    folder.sync_names(LAYERS).unwrap();
    drop((file, folder));
    drop(shared);
    fs::write(dir.join("disk/image.json"), said.to_string()).unwrap();

    let layers = || {
        json_of(dir, &["store", "list", "store"])["layers"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(layers(), 9);
    assert_eq!(fs::read_dir(dir.join("disk/layers")).unwrap().count(), 0);
    let before = content(dir, "before");
    let done = json_of(dir, &["compact", "disk"]);
    assert_eq!((&done["merged"], &done["layers"]), (&8.into(), &1.into()));
    assert!(before == content(dir, "after"));
    // What it was made of, and what was left, has made room.
    assert_eq!(layers(), 1);
    assert_eq!(json_of(dir, &["store", "list", "store"])["free"], whole);

    // Another store is not taken for it.
    let mut said = image(&dir.join("disk"));
    said["obd"]["store"]["device"] = dir.join("other").to_str().unwrap().into();
    fs::write(dir.join("disk/image.json"), said.to_string()).unwrap();
    fails(dir, &["compact", "disk"], 1, "in another store");
    fails(
        dir,
        &["export", "-o", "raw", "disk/image.json"],
        1,
        "is not its store",
    );
}
