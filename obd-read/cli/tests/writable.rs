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
use obd_service::{
    Directory,
    Folder, //
};
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
struct File<'a>(&'a Directory, fs::File);

impl Sink for File<'_> {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.append(&mut self.1, bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.overwrite(&mut self.1, bytes)
    }

    fn finish(self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn merged_layers_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json_of(dir, &["create", "--rw", "--size", "1M", "disk"]);
    // As a writer would leave it.
    let folder = Directory::open(&dir.join("disk")).unwrap();
    let mut said = image(&dir.join("disk"));
    for n in 2..9_u64 {
        let name = format!("layers/{n:08}.lsmt");
        let file = folder.create(&name).unwrap();
        let go = |_, _| ControlFlow::Continue(());
        let options = obd_writer::Options::default();
        obd_writer::commit(&Sector(n * 5 % 7), File(&folder, file), &options, go).unwrap();
        let lowers = said["lowers"].as_array_mut().unwrap();
        lowers.push(serde_json::json!({ "file": name }));
    }
    said["obd"]["next"] = 9.into();
    fs::write(dir.join("disk/image.json"), said.to_string()).unwrap();
    drop(folder);
    let content = |name: &str| {
        let output = obd(dir, &["export", "-o", name, "disk/image.json"]);
        assert!(output.status.success(), "{}", stderr(&output));
        fs::read(dir.join(name)).unwrap()
    };
    let before = content("before");
    let done = json_of(dir, &["compact", "disk"]);
    assert_eq!((&done["merged"], &done["layers"]), (&8.into(), &1.into()));
    assert!(before == content("after"));
    assert_eq!(fs::read_dir(dir.join("disk/layers")).unwrap().count(), 1);
    let done = json_of(dir, &["compact", "disk"]);
    assert_eq!((&done["merged"], &done["layers"]), (&0.into(), &1.into()));
}
