// SPDX-License-Identifier: MIT

//! The commands that write, as their user sees them.

mod common;

use common::{
    failed,
    fails,
    json_of,
    obd, //
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{
    Path,
    PathBuf, //
};

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../fixtures", name]
        .iter()
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw image with holes.
fn raw(at: &Path) -> Vec<u8> {
    let file = fs::File::create(at).unwrap();
    file.set_len(16 << 20).unwrap();
    let text = b"the quick brown fox ".repeat(20_000);
    file.write_all_at(&text, 1 << 20).unwrap();
    file.write_all_at(&text, 9 << 20).unwrap();
    fs::read(at).unwrap()
}

#[test]
fn convert_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let want = raw(&dir.join("raw"));
    for (i, how) in [
        &[][..],
        &["--full", "--algorithm", "zstd", "--block-size", "64"],
        &["--algorithm", "none"],
        &["--tar", "--no-checksums", "--block-size", "16"],
    ]
    .into_iter()
    .enumerate()
    {
        let mut layers = Vec::new();
        for threads in ["1", "3"] {
            let layer = format!("layer-{i}-{threads}");
            let args = ["convert", "raw", "-o", &layer, "--threads", threads];
            let written = json_of(dir, &[&args, how].concat());
            assert_eq!(written["virtual_size"], 16 << 20);
            let data = written["data"].as_u64().unwrap();
            let full = how.contains(&"--full");
            assert!(if full {
                data == 16 << 20
            } else {
                data < 1 << 20
            });
            assert!(data >= 2 * 400_000);
            assert_eq!(written["copies_per_byte"], 1.0);
            // What one thread makes lies where the engine writes it from.
            let copies = written["copies_per_stored_byte"].as_f64().unwrap();
            let lent = threads == "1" && !written["engine"].is_null();
            assert!(if lent { copies < 1.0 } else { copies >= 1.0 }, "{copies}");
            assert!(written["throughput"].as_f64().unwrap() > 0.0);
            let file = fs::read(dir.join(&layer)).unwrap();
            assert_eq!(written["stored"], file.len() as u64);
            layers.push(file);
        }
        assert!(layers[0] == layers[1], "{how:?}");
        let layer = format!("layer-{i}-3");
        json_of(dir, &["verify", &layer]);
        json_of(dir, &["export", "-f", "-o", "back", &layer]);
        assert!(fs::read(dir.join("back")).unwrap() == want, "{how:?}");
    }
    fails(dir, &["convert", "raw", "-o", "raw"], 2, "--force");
    fails(
        dir,
        &["convert", "layer-0-1", "-o", "x"],
        1,
        "a layer already",
    );
    fs::write(dir.join("qcow2"), b"QFI\xfb and so on").unwrap();
    fails(dir, &["convert", "qcow2", "-o", "x"], 1, "qemu-nbd");
    fails(
        dir,
        &["convert", "nothing", "-o", "x"],
        3,
        "cannot open nothing",
    );
    fails(
        dir,
        &["convert", "raw", "-o", "nowhere/x"],
        3,
        "cannot create",
    );
    let text = obd(dir, &["convert", "raw", "-f", "-o", "layer-0-1"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.starts_with("layer-0-1: 0.8 MiB of data"), "{text}");
    assert!(!names(dir).iter().any(|name| name.starts_with('.')));
}

#[test]
fn commit_as_upstream_does() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (data, index) = (
        fixture("a-w01-append.rwdata"),
        fixture("a-w01-append.rwindex"),
    );
    let upper = ["--upper-data", path(&data), "--upper-index", path(&index)];
    let args = ["commit", "-o", "layer", "--algorithm", "none"];
    let written = json_of(dir, &[&args[..], &upper].concat());
    assert_eq!(written["zeroed_segments"], 5);
    let want = fs::read(fixture("a-l11-commit-sealed.layer")).unwrap();
    assert!(fs::read(dir.join("layer")).unwrap() == want);

    // Everything a layer says of itself survives a second commit.
    let from = fixture("a-l02-raw-discard.layer");
    let args = ["commit", "-o", "again", "--algorithm", "none", "-m"];
    let message = "fixture a-l02: committed by overlaybd-commit";
    let uuid = "6b1f4f0e-2f8d-4c1e-9a51-0c3f6a7d8e90";
    json_of(
        dir,
        &[&args[..], &[message, "--uuid", uuid, path(&from)]].concat(),
    );
    assert!(fs::read(dir.join("again")).unwrap() == fs::read(&from).unwrap());

    // A stack as one layer.
    let layers = ["a-s3-0.layer", "a-s3-1.layer", "a-s3-2.layer"].map(fixture);
    let files: Vec<&str> = layers.iter().map(|layer| path(layer)).collect();
    json_of(dir, &[&["commit", "-o", "one"], &files[..]].concat());
    json_of(dir, &[&["export", "-o", "stacked"], &files[..]].concat());
    json_of(dir, &["export", "-o", "merged", "one"]);
    assert!(fs::read(dir.join("stacked")).unwrap() == fs::read(dir.join("merged")).unwrap());
    assert_eq!(names(dir), ["again", "layer", "merged", "one", "stacked"]);
    json_of(dir, &[&["merge", "-o", "two"], &files[..]].concat());
    // How a layer is written is nothing to a list.
    for how in [&["--tar"][..], &["--algorithm", "zstd"], &["-m", "text"]] {
        failed(dir, &[&["merge"], how, &files[..]].concat(), 2, "--output");
    }
    assert!(fs::read(dir.join("one")).unwrap() == fs::read(dir.join("two")).unwrap());
}

#[test]
fn damaged_sources_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (data, index) = (
        fixture("a-w01-append.rwdata"),
        fixture("a-w01-append.rwindex"),
    );
    let bytes = fs::read(&data).unwrap();
    // The log maps data that is not there any more; then not even a header is.
    for (len, says) in [(bytes.len() / 2, "maps data"), (4095, "too short")] {
        fs::write(dir.join("data"), &bytes[..len]).unwrap();
        let upper = ["--upper-data", "data", "--upper-index", path(&index)];
        fails(dir, &[&["commit", "-o", "x"], &upper[..]].concat(), 1, says);
    }
    for (name, says) in [
        ("a-c28-lz-data-block.layer", "block 4 at byte"),
        ("a-c36-ls-idx-overlap.layer", "LSMT index entry 1"),
        ("a-c41-ls-trunc-100.layer", "trailer"),
        ("a-z01-lz4-4k-mixed.zfile", "a zfile, but no layer"),
    ] {
        let from = fixture(name);
        fails(dir, &["commit", "-o", "x", path(&from)], 1, says);
    }
    fails(
        dir,
        &[
            "commit",
            "-o",
            "x",
            "-m",
            &"x".repeat(256),
            path(&fixture("a-l01-raw.layer")),
        ],
        2,
        "message",
    );
    assert_eq!(names(dir), ["data"]);
}

#[test]
fn create_write_commit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = json_of(dir, &["create", "-s", "64M", "data", "index"]);
    assert_eq!(made["virtual_size"], 64 << 20);
    let upper = ["--upper-data", "data", "--upper-index", "index"];
    let written = json_of(dir, &[&["commit", "-o", "empty"], &upper[..]].concat());
    assert_eq!(
        (&written["segments"], &written["data"]),
        (&0.into(), &0.into())
    );
    assert_eq!(
        json_of(dir, &["info", "empty"])["layer"]["virtual_size"],
        64 << 20
    );

    json_of(dir, &["create", "--sparse", "-s", "1GiB", "sparse"]);
    let file = fs::File::options()
        .write(true)
        .open(dir.join("sparse"))
        .unwrap();
    file.write_all_at(&[7; 8192], 4096 + (512 << 20)).unwrap();
    drop(file);
    json_of(dir, &["commit", "-o", "layer", "sparse"]);
    let info = json_of(dir, &["info", "layer"]);
    assert_eq!(info["layer"]["virtual_size"], 1 << 30);
    let all = json_of(dir, &["commit", "-o", "both", "empty", "layer"]);
    assert_eq!(all["virtual_size"], 1 << 30);
    assert!(all["data"].as_u64().unwrap() >= 8192);

    fails(
        dir,
        &["create", "-s", "1G", "data", "other"],
        2,
        "data exists",
    );
    fails(
        dir,
        &["create", "-s", "1G", "other", "index"],
        2,
        "index exists",
    );
    fails(
        dir,
        &["create", "-s", "1000", "other", "more"],
        2,
        "1000 bytes",
    );
    fails(
        dir,
        &["create", "-s", "1G", "nowhere/a", "nowhere/b"],
        3,
        "nowhere/b",
    );
    assert_eq!(
        names(dir),
        ["both", "data", "empty", "index", "layer", "sparse"]
    );
}
