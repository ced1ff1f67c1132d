// SPDX-License-Identifier: MIT

//! `obd store` and `obd check` on files, as their user sees them.

mod common;

use common::{
    fails,
    json_of,
    obd, //
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

fn sized(path: &Path, size: u64) -> fs::File {
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    file
}

#[test]
fn store_from_init_to_export() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sized(&dir.join("store"), 64 << 20);
    let text = b"pack my box with five dozen liquor jugs ".repeat(30_000);
    let raw = sized(&dir.join("raw"), 8 << 20);
    raw.write_all_at(&text, 1 << 20).unwrap();
    let over = sized(&dir.join("over"), 8 << 20);
    over.write_all_at(&[7; 9000], 3 << 20).unwrap();

    fails(dir, &["store", "list", "store"], 1, "no layer store");
    assert!(obd(dir, &["store", "init", "store"]).status.success());
    // Once is enough.
    fails(
        dir,
        &["store", "init", "store"],
        3,
        "a layer store; --force",
    );

    // The layer is that of a file.
    let args = [
        "convert",
        "-m",
        "base",
        "raw",
        "-o",
        "layer",
        "--threads",
        "2",
    ];
    json_of(dir, &args);
    let layer = fs::read(dir.join("layer")).unwrap();
    let args = ["store", "convert", "-m", "base", "store", "raw"];
    let written = json_of(dir, &args);
    assert_eq!(written["stored"], layer.len() as u64);
    assert!(
        written["engine"]["flushes"].as_u64().unwrap() <= 4,
        "{written}"
    );
    json_of(dir, &["store", "convert", "-m", "over", "store", "over"]);

    let listed = json_of(dir, &["store", "list", "store"]);
    let layers = listed["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(
        (&layers[0]["name"], &layers[1]["name"]),
        (&"base".into(), &"over".into())
    );
    assert_eq!(listed["interrupted"], false);
    // Whatever takes layers takes a store.
    json_of(dir, &["export", "-o", "by-layers", "store"]);
    json_of(dir, &["store", "export", "-o", "by-store", "store"]);
    let exported = fs::read(dir.join("by-layers")).unwrap();
    assert!(exported == fs::read(dir.join("by-store")).unwrap());
    let offset = layers[0]["offset"].as_u64().unwrap() as usize;
    let store = fs::read(dir.join("store")).unwrap();
    assert!(store[offset..][..layer.len()] == layer);

    let mut want = fs::read(dir.join("raw")).unwrap();
    want[3 << 20..][..9000].fill(7);
    assert!(
        obd(dir, &["store", "export", "-o", "out", "store"])
            .status
            .success()
    );
    let got = fs::read(dir.join("out")).unwrap();
    // Holes of the file are left to the layer below.
    assert!(got == want);

    // Merged, and read again; a commit of layers in files, too.
    json_of(dir, &["store", "merge", "store"]);
    json_of(dir, &["store", "commit", "store", "layer"]);
    let listed = json_of(dir, &["store", "list", "store"]);
    assert_eq!(listed["layers"].as_array().unwrap().len(), 2);
    let args = ["store", "export", "--to", "1", "-f", "-o", "out", "store"];
    assert!(obd(dir, &args).status.success());
    assert!(fs::read(dir.join("out")).unwrap() == want);
    assert!(obd(dir, &["store", "trim", "store"]).status.success());
    fails(
        dir,
        &["store", "export", "--from", "2", "-f", "-o", "out", "store"],
        1,
        "there are no layers 2..2, but 2 layers",
    );
}

#[test]
fn store_full_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    sized(&dir.join("store"), 2 << 20);
    let raw = sized(&dir.join("raw"), 4 << 20);
    let mut noise = vec![0; 4 << 20];
    let mut word = 1u64;
    for byte in &mut noise {
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        *byte = (word >> 40) as u8;
    }
    raw.write_all_at(&noise, 0).unwrap();
    assert!(obd(dir, &["store", "init", "store"]).status.success());
    let resume = ["store", "convert", "--resume", "store", "raw"];
    fails(dir, &resume, 1, "no commit was interrupted");
    let output = obd(dir, &["store", "convert", "store", "raw"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("no room for"), "{text}");
    let listed = json_of(dir, &["store", "list", "store"]);
    assert!(listed["layers"].as_array().unwrap().is_empty());
    sized(&dir.join("tiny"), 4096);
    fails(dir, &["store", "init", "tiny"], 1, "too few");
}

#[test]
fn check_passes_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = sized(&dir.join("drive"), 32 << 20);
    let checked = json_of(dir, &["check", "drive"]);
    assert!(checked["checks"].as_array().unwrap().len() >= 7);
    assert_eq!(checked["engine"]["failed"], 0);
    assert!(checked["engine"]["latency_us"]["p99"].as_f64().unwrap() > 0.0);
    file.write_all_at(b"hsqs", 0).unwrap();
    fails(dir, &["check", "drive"], 3, "squashfs filesystem; --force");
    sized(&dir.join("small"), 1 << 20);
    fails(dir, &["check", "small"], 1, "at least");
    if cfg!(not(feature = "spdk")) {
        fails(
            dir,
            &["check", "--engine", "spdk", "0000:00:00.0/1"],
            3,
            "built without it: `cargo aios setup --spdk`",
        );
    }
    let vfio = ["check", "--engine", "vfio"];
    fails(
        dir,
        &[&vfio[..], &["drive"]].concat(),
        3,
        "name the namespace",
    );
    fails(
        dir,
        &[&vfio[..], &["drive/1"]].concat(),
        3,
        "no PCI address",
    );
}
