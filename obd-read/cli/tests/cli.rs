// SPDX-License-Identifier: MIT

//! The tool as its user sees it.

use serde_json::{
    Value,
    json, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::fs;
use std::os::unix::fs::{
    FileExt,
    MetadataExt, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Output, //
};

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../fixtures", name]
        .iter()
        .collect()
}

fn manifest() -> Vec<Value> {
    let text = fs::read(fixture("MANIFEST.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&text).unwrap();
    manifest["entries"].as_array().unwrap().clone()
}

fn obd<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_obd"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs the tool, which must succeed, and returns its JSON.
fn json_of(args: &[&str]) -> Value {
    let output = obd(["--json"].iter().chain(args));
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exports with these arguments and returns the hash of what came out.
fn export(args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let output = obd(["export", "--output", path(&raw)].iter().chain(args));
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{args:?}");
    sha256(&raw)
}

#[test]
fn export_gives_what_the_manifest_says() {
    let mut exported = 0;
    for entry in manifest() {
        let class = entry["class"].as_str().unwrap();
        if class == "corrupt" || class == "rw-layer" {
            continue;
        }
        // One image of a GiB is enough for the core's own tests.
        if entry["virtual_size"]
            .as_u64()
            .is_some_and(|size| size > 1 << 29)
        {
            continue;
        }
        let names: Vec<&str> = match entry["layers"].as_array() {
            Some(layers) => layers.iter().map(|name| name.as_str().unwrap()).collect(),
            None => vec![entry["file"].as_str().unwrap()],
        };
        let files: Vec<PathBuf> = names.into_iter().map(fixture).collect();
        let mut args: Vec<&str> = files.iter().map(|file| path(file)).collect();
        let upper = |key: &str| entry["upper"][key].as_str().map(fixture);
        let (data, index) = (upper("data"), upper("index"));
        if let (Some(data), Some(index)) = (&data, &index) {
            args.extend(["--upper-data", path(data), "--upper-index", path(index)]);
        }
        let hash = export(&args);
        assert_eq!(hash, entry["decoded"]["sha256"], "{}", entry["id"]);
        exported += 1;
    }
    assert_eq!(exported, 73);
}

#[test]
fn read_write_layers() {
    let entries = manifest();
    let hash = |id: &str| {
        let entry = entries.iter().find(|entry| entry["id"] == id).unwrap();
        entry["decoded"]["sha256"].as_str().unwrap().to_owned()
    };
    for id in ["a-w01-append", "a-w02-groupcommit"] {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.v1.json");
        let text = json!({"upper": {
            "data": fixture(&format!("{id}.rwdata")),
            "index": fixture(&format!("{id}.rwindex")),
        }});
        fs::write(&config, text.to_string()).unwrap();
        assert_eq!(export(&[path(&config)]), hash(id), "{id}");
    }

    // The sparse one needs its holes back.
    let entry = entries
        .iter()
        .find(|entry| entry["id"] == "a-w03-sparse")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let bytes = fs::read(fixture("a-w03-sparse.rwdata")).unwrap();
    let sparse = fs::File::create(&data).unwrap();
    sparse.set_len(bytes.len() as u64).unwrap();
    for extent in entry["data_extents"].as_array().unwrap() {
        let start = extent[0].as_u64().unwrap();
        let end = start + extent[1].as_u64().unwrap();
        let part = &bytes[start as usize..end as usize];
        sparse.write_all_at(part, start).unwrap();
    }
    assert_eq!(export(&[path(&data)]), hash("a-w03-sparse"));
}

/// A configuration as the snapshotter writes it, over the layers of a-s3.
fn config(dir: &Path, digests: [&str; 3]) -> PathBuf {
    let names = ["a-s3-0.layer", "a-s3-1.layer", "a-s3-2.layer"];
    let snapshot = dir.join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    fs::copy(fixture(names[1]), snapshot.join("overlaybd.commit")).unwrap();
    let text = json!({
        "repoBlobUrl": "https://registry.example/v2/library/x/blobs",
        "lowers": [
            {"file": fixture(names[0]), "digest": digests[0], "size": 59392},
            {"dir": snapshot, "digest": digests[1], "size": 16722},
            {"file": fixture(names[2]), "digest": digests[2], "size": 25600},
        ],
        "upper": {},
        "resultFile": dir.join("init-debug.log"),
    });
    let config = dir.join("config.v1.json");
    fs::write(&config, text.to_string()).unwrap();
    config
}

#[test]
fn configuration_and_digests() {
    let digests: Vec<String> = ["a-s3-0.layer", "a-s3-1.layer", "a-s3-2.layer"]
        .map(|name| format!("sha256:{}", sha256(&fixture(name))))
        .into();
    let want = "a-s3";
    let entry = manifest()
        .into_iter()
        .find(|entry| entry["id"] == want)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let right = config(dir.path(), [&digests[0], &digests[1], &digests[2]]);
    assert_eq!(
        export(&[path(&right), "--check-digests"]),
        entry["decoded"]["sha256"]
    );

    let dir = tempfile::tempdir().unwrap();
    let wrong = config(dir.path(), [&digests[0], &digests[0], &digests[2]]);
    assert_eq!(export(&[path(&wrong)]), entry["decoded"]["sha256"]);
    let raw = dir.path().join("raw");
    let output = obd(["export", "-o", path(&raw), path(&wrong), "--check-digests"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("overlaybd.commit: sha256 is"),
        "{}",
        stderr(&output)
    );
    assert!(!raw.exists());

    let output = obd(["merge", "--check-digests", path(&fixture("a-s3-0.layer"))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no digest"), "{}", stderr(&output));
}

/// The snapshotter's folder of a snapshot: `fs` has its layer, `block` its configuration.
struct Snapshot {
    root: PathBuf,
    number: u32,
}

impl Snapshot {
    fn new(root: &Path, number: u32) -> Self {
        let snapshot = Self {
            root: root.into(),
            number,
        };
        for dir in ["fs", "block"] {
            fs::create_dir_all(snapshot.path(dir)).unwrap();
        }
        snapshot
    }

    /// One whose layer is there, as if it had been downloaded or committed.
    fn with_layer(root: &Path, number: u32, name: &str, layer: &str) -> Self {
        let snapshot = Self::new(root, number);
        fs::copy(fixture(layer), snapshot.path("fs").join(name)).unwrap();
        snapshot
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("snapshots/{}/{name}", self.number))
    }

    fn result_file(&self) -> PathBuf {
        self.path("block/init-debug.log")
    }

    /// A lower of an image on a registry.
    fn remote(&self, layer: &str) -> Value {
        json!({
            "digest": format!("sha256:{}", sha256(&fixture(layer))),
            "size": fs::metadata(fixture(layer)).unwrap().len(),
            "dir": self.path("fs"),
        })
    }

    /// Writes its configuration, in one line as the snapshotter does.
    fn configure(&self, lowers: &[Value], upper: Value) -> PathBuf {
        let config = self.path("block/config.v1.json");
        let text = json!({
            "repoBlobUrl": "https://registry.example/v2/library/x/blobs",
            "lowers": lowers,
            "upper": upper,
            "resultFile": self.result_file(),
        });
        fs::write(&config, text.to_string()).unwrap();
        config
    }

    /// Attaching it fails before there is a disk; what is said of it to who runs the tool, and
    /// to the snapshotter, is the same.
    fn is_refused(&self, config: &Path, options: &[&str], says: &[&str]) {
        let mut args = vec!["attach", "--userspace", "--foreground", path(config)];
        args.extend(options);
        let output = obd(args);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let result = fs::read_to_string(self.result_file()).unwrap();
        let reason = result.strip_prefix("failed:").unwrap();
        assert_eq!(stderr(&output).trim(), format!("error: {reason}"));
        for text in says {
            assert!(reason.contains(text), "{reason}");
        }
        fs::remove_file(self.result_file()).unwrap();
    }
}

fn content_of(id: &str) -> String {
    let entry = manifest().into_iter().find(|entry| entry["id"] == id);
    let entry = entry.unwrap();
    entry["decoded"]["sha256"].as_str().unwrap().to_owned()
}

/// Images on a registry, downloaded and not, and layers made here.
#[test]
fn snapshots_that_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let layers = ["a-s3-0.layer", "a-s3-1.layer", "a-s3-2.layer"];
    let numbered = |i: usize| (i as u32 + 1, layers[i]);
    let snapshots = [0, 1, 2].map(|i| {
        let (number, layer) = numbered(i);
        Snapshot::with_layer(dir.path(), number, "overlaybd.commit", layer)
    });
    let mut lowers: Vec<Value> = (0..3).map(|i| snapshots[i].remote(layers[i])).collect();
    let top = &snapshots[2];
    let config = top.configure(&lowers, json!({}));
    assert_eq!(export(&[path(&config)]), content_of("a-s3"));
    assert_eq!(
        export(&[path(&config), "--check-digests"]),
        content_of("a-s3")
    );

    // Made on this machine: no digest. Sealed instead of committed.
    let here = Snapshot::with_layer(dir.path(), 4, "overlaybd.sealed", layers[1]);
    let made = json!({"dir": here.path("fs")});
    let mixed = [lowers[0].clone(), made, lowers[2].clone()];
    let config = top.configure(&mixed, json!({}));
    assert_eq!(export(&[path(&config)]), content_of("a-s3"));
    top.is_refused(
        &config,
        &["--check-digests"],
        &["overlaybd.sealed", "no digest"],
    );

    // Not what the registry has.
    fs::copy(fixture(layers[0]), snapshots[1].path("fs/overlaybd.commit")).unwrap();
    let config = top.configure(&lowers, json!({}));
    let wrong = ["snapshots/2/fs/overlaybd.commit: sha256 is"];
    top.is_refused(&config, &["--check-digests"], &wrong);

    // Not there yet.
    let remote = Snapshot::new(dir.path(), 5);
    lowers[1] = remote.remote(layers[1]);
    let digest = lowers[1]["digest"].as_str().unwrap().to_owned();
    let config = top.configure(&lowers, json!({}));
    let says = [
        "lower 1: no overlaybd.commit or overlaybd.sealed in",
        &digest,
        "on the registry only (https://registry.example/v2/library/x/blobs)",
    ];
    top.is_refused(&config, &[], &says);

    // The original layer with an index of its own.
    lowers[1] = json!({
        "gzipIndex": remote.path("fs/gzip.meta"),
        "file": remote.path("fs/ext4.fs.meta"),
        "targetDigest": digest,
        "dir": remote.path("fs"),
    });
    let config = top.configure(&lowers, json!({}));
    top.is_refused(&config, &[], &["lower 1: a turboOCI (warp) layer"]);
}

/// A container's own layer above the image: read by the tool, and no disk's as long as it is
/// written to.
#[test]
fn snapshots_that_are_written_to() {
    let entry = manifest()
        .into_iter()
        .find(|entry| !entry["upper"]["data"].is_null() && entry["class"] == "stack")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let names = entry["layers"].as_array().unwrap();
    let lowers: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let name = name.as_str().unwrap();
            let number = i as u32 + 1;
            Snapshot::with_layer(dir.path(), number, "overlaybd.commit", name).remote(name)
        })
        .collect();
    let top = Snapshot::new(dir.path(), 9);
    let upper = |what: &str| {
        let to = top.path(&format!("block/writable_{what}"));
        fs::copy(fixture(entry["upper"][what].as_str().unwrap()), &to).unwrap();
        to
    };
    let config = top.configure(
        &lowers,
        json!({"index": upper("index"), "data": upper("data"), "vsize": 64}),
    );
    assert_eq!(
        export(&[path(&config)]),
        content_of(entry["id"].as_str().unwrap())
    );
    let says = ["block/writable_data", "still written to", "commit"];
    top.is_refused(&config, &[], &says);
}

/// What is still written to is no disk's: neither by its name nor with its index.
#[test]
fn layers_that_are_not_sealed_are_not_attached() {
    let [append, index, sparse] = [
        "a-w01-append.rwdata",
        "a-w01-append.rwindex",
        "a-w03-sparse.rwdata",
    ]
    .map(fixture);
    let [append, index, sparse] = [path(&append), path(&index), path(&sparse)];
    for args in [
        vec![append],
        vec![sparse],
        vec!["--upper-data", sparse],
        vec!["--upper-data", append],
        vec!["--upper-data", append, "--upper-index", index],
    ] {
        let output = obd(["attach", "--userspace", "--foreground"]
            .iter()
            .chain(&args));
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        assert!(text.contains("seal or commit it first"), "{text}");
    }
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    let layer = fixture("a-l04-1gib-lz4.layer");
    let written = json_of(&["export", "-o", path(&raw), path(&layer)]);
    let there = fs::metadata(&raw).unwrap();
    assert_eq!(there.len(), 1 << 30);
    assert!(there.blocks() * 512 < 1 << 20, "{} blocks", there.blocks());
    assert_eq!(written["size"], 1 << 30);
    assert_eq!(written["data"], 86016 - 4096);
}

#[test]
fn nothing_is_overwritten_or_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("raw");
    fs::write(&raw, "precious").unwrap();
    let good = fixture("a-z01-lz4-4k-mixed.zfile");
    let output = obd(["export", "-o", path(&raw), path(&good)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));

    // The first three blocks are good, then one is not.
    let bad = fixture("a-c28-lz-data-block.layer");
    let output = obd(["export", "--force", "-o", path(&raw), path(&bad)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("block 4 at byte"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read(&raw).unwrap(), b"precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let output = obd(["export", "--force", "-o", path(&raw), path(&good)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::metadata(&raw).unwrap().len(), 98304);

    let output = obd(["export", "--force", "-o", path(dir.path()), path(&good)]);
    assert_eq!(output.status.code(), Some(2));
    let output = obd(["export", "--force", "-o", "/nonexistent/raw", path(&good)]);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn verify_tells_good_from_bad() {
    let good: Vec<PathBuf> = [
        "a-z09-zstd-64k.zfile",
        "a-l07-lz4-4k.layer",
        "a-l01-raw.layer",
    ]
    .map(fixture)
    .into();
    let mut args: Vec<&str> = good.iter().map(|file| path(file)).collect();
    args.insert(0, "verify");
    let reports = json_of(&args);
    assert_eq!(reports.as_array().unwrap().len(), 3);
    assert!(
        reports
            .as_array()
            .unwrap()
            .iter()
            .all(|report| report["ok"] == true)
    );
    assert_eq!(reports[1]["blocks_checked"], 28);
    assert_eq!(reports[2]["blocks_checked"], 0);

    let bad = fixture("a-c12-block-mid.zfile");
    args.push(path(&bad));
    let output = obd(&args);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("block 2 at byte 16445: checksum is"),
        "{text}"
    );
    assert!(
        text.contains("a-z09-zstd-64k.zfile: OK, 4 blocks"),
        "{text}"
    );
    assert!(
        stderr(&output).contains("1 of 4 files failed"),
        "{}",
        stderr(&output)
    );

    // What cannot be read is not damaged for that.
    let output = obd(["verify", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/nonexistent: FAILED"), "{text}");
    let output = obd(["verify", "/nonexistent", path(&bad)]);
    assert_eq!(output.status.code(), Some(1));

    // Of every damaged fixture but those without checksums where the damage is.
    for entry in manifest() {
        let id = entry["id"].as_str().unwrap();
        let blind = [
            "a-c20-noverify-literal",
            "a-c30-ls-hdr-vsize",
            "a-c39-ls-data",
        ];
        if entry["class"] == "corrupt" && !blind.contains(&id) {
            let file = fixture(entry["file"].as_str().unwrap());
            let code = obd(["verify", path(&file)]).status.code();
            let cut = ["a-c62-tar-noend", "a-c45-ls-trl-vsize0"].contains(&id);
            assert_eq!(code, Some(if cut { 0 } else { 1 }), "{id}");
        }
    }
}

#[test]
fn info_and_lists() {
    let layer = fixture("a-l09-lz4-4k-tar.layer");
    let info = json_of(&["info", path(&layer)]);
    assert_eq!(info["payload_offset"], 1536);
    assert_eq!(info["size"], 54784);
    assert_eq!(info["zfile"]["algorithm"], "lz4");
    assert_eq!(info["layer"]["kind"], "committed");
    assert_eq!(info["layer"]["virtual_size"], 1 << 20);
    let text = obd(["info", path(&layer)]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("virtual size  1048576"));

    let lines = |args: &[&str]| -> Vec<Value> {
        let output = obd(["--json"].iter().chain(args));
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let entries = manifest();
    let stack = entries.iter().find(|entry| entry["id"] == "a-s2").unwrap();
    let files = ["a-s2-0.layer", "a-s2-1.layer"].map(fixture);
    let merged = lines(&["merge", path(&files[0]), path(&files[1])]);
    let want = stack["merged_segments_sectors"].as_array().unwrap();
    assert_eq!(merged.len(), want.len());
    for (got, want) in merged.iter().zip(want) {
        assert_eq!(got["lba"], want[0]);
        assert_eq!(got["length"], want[1]);
        assert_eq!(got["moffset"], want[2]);
        assert_eq!(got["zeroed"], want[3] == 1);
        // Levels are counted from the top there.
        assert_eq!(got["layer"], 1 - want[4].as_u64().unwrap());
    }
    assert_eq!(lines(&["dump", path(&files[1])]).len(), 15);
    let blocks = lines(&["dump", "--blocks", path(&files[1])]);
    assert_eq!(blocks.len(), 10);
    assert_eq!(blocks[0]["offset"], 512);
}

#[test]
fn errors_are_one_line_and_have_a_code() {
    for (args, code, says) in [
        (vec!["info", "/nonexistent"], 3, "cannot open /nonexistent"),
        (vec!["info", "/"], 3, "cannot open /"),
        (vec!["info"], 2, ""),
        (
            vec!["merge", "/nonexistent.json"],
            3,
            "cannot read /nonexistent.json",
        ),
    ] {
        let output = obd(&args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let text = stderr(&output);
        assert!(text.contains(says), "{text}");
        assert!(says.is_empty() || text.lines().count() == 1, "{text}");
    }
    for (command, name, says) in [
        // Any object is a configuration; one without layers is no image.
        ("merge", "MANIFEST.json", "cannot have 0 layers"),
        ("info", "a-w01-append.rwdata", "give its index file"),
        (
            "info",
            "a-ext4-0.files.tsv",
            "LSMT header: wrong magic bytes",
        ),
    ] {
        let output = obd([command, path(&fixture(name))]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}
