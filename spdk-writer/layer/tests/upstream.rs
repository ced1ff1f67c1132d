// SPDX-License-Identifier: MIT

//! Against files that overlaybd's own tools wrote.

mod common;

use common::*;
use obd_core::source::Bytes;
use obd_core::{
    Image,
    Scratch, //
};
use obd_writer::source::ImageSource;
use obd_writer::{
    Algorithm,
    Compression,
    Options, //
};
use serde_json::Value;
use std::num::NonZero;
use std::path::PathBuf;

fn fixture(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../obd-read/fixtures", name]
        .iter()
        .collect();
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest() -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&fixture("MANIFEST.json")).unwrap();
    manifest["entries"].as_array().unwrap().clone()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// The LSMT file inside of a layer.
fn content(layer: Vec<u8>) -> Vec<u8> {
    let layer = TestLayer::open(Bytes(layer)).unwrap();
    let Some(file) = layer.zfile() else {
        let file = layer.plain().unwrap();
        let mut bytes = vec![0; file.size() as usize];
        file.read(0, &mut bytes).unwrap();
        return bytes;
    };
    let mut scratch = Scratch::new(file.needs()).unwrap();
    let mut bytes = vec![0; file.size() as usize];
    file.read_at(0, &mut bytes, &mut scratch).unwrap();
    bytes
}

fn plain() -> Options {
    Options {
        compression: None,
        ..Options::default()
    }
}

/// The options a fixture was made with.
fn options(entry: &Value) -> Options {
    let zfile = &entry["zfile"];
    let compression = zfile.is_object().then(|| Compression {
        algorithm: match text(zfile, "algorithm") {
            "lz4" => Algorithm::Lz4,
            _ => Algorithm::Zstd,
        },
        block_size: zfile["block_size"].as_u64().unwrap() as u32,
        checksums: zfile["verify"].as_bool().unwrap(),
    });
    let lsmt = &entry["lsmt"];
    Options {
        compression,
        tar: zfile["tar_wrapped"].as_bool().unwrap_or(false),
        uuid: text(lsmt, "uuid").parse().unwrap(),
        parent_uuid: text(lsmt, "parent_uuid").as_bytes().try_into().unwrap(),
        message: text(lsmt, "user_tag").into(),
        threads: NonZero::new(2).unwrap(),
    }
}

/// Layers upstream's commit wrote, as opposed to sealed ones, and merged ones,
/// which keep the number of the layer in each segment.
fn committed() -> Vec<Value> {
    let mut entries = manifest();
    entries.retain(|entry| {
        entry["class"] == "lsmt-layer"
            && entry["lsmt"]["flags_header"] == "0x7"
            && !text(entry, "id").starts_with("a-m")
    });
    assert_eq!(entries.len(), 28);
    entries
}

#[test]
fn commits_of_commits_are_the_same_bytes() {
    for entry in committed() {
        let id = text(&entry, "id");
        let want = fixture(text(&entry, "file"));
        let options = options(&entry);
        let image = stack([want.clone()]);
        let source = ImageSource::new(&image);
        let bare = Options {
            compression: None,
            tar: false,
            ..options.clone()
        };
        assert!(write(&source, &bare).0 == content(want.clone()), "{id}");
        // What compressors make of it may change with their version; what was
        // written shows that for LZ4 it has not since upstream's.
        let (got, _) = write(&source, &options);
        assert!(content(got.clone()) == content(want.clone()), "{id}");
        if options
            .compression
            .is_none_or(|how| how.algorithm == Algorithm::Lz4)
        {
            assert!(got == want, "{id}");
        }
    }
}

fn log_layer(id: &str) -> TestImage {
    let file = |kind| Bytes(fixture(&format!("{id}.{kind}")));
    let layer = TestLayer::open_log(file("rwdata"), file("rwindex")).unwrap();
    Image::new(vec![layer]).unwrap()
}

#[test]
fn commits_of_read_write_layers() {
    // Upstream sealed this log and committed what came of it.
    let image = log_layer("a-w01-append");
    let (layer, _) = write(&ImageSource::new(&image), &plain());
    assert!(layer == fixture("a-l11-commit-sealed.layer"));

    let image = log_layer("a-w02-groupcommit");
    let (layer, _) = write(&ImageSource::new(&image), &Options::default());
    assert!(read(&stack([layer])) == read(&image));
}

#[test]
fn commit_of_a_sparse_layer() {
    let entries = manifest();
    let entry = |id: &str| entries.iter().find(|entry| entry["id"] == id).unwrap();
    let extents = entry("a-w03-sparse")["data_extents"].as_array().unwrap();
    let extents = extents.iter().map(|extent| {
        let start = extent[0].as_u64().unwrap();
        (start, start + extent[1].as_u64().unwrap())
    });
    let data = Bytes(fixture("a-w03-sparse.rwdata"));
    let layer = TestLayer::open_sparse(data, extents).unwrap();
    let image = Image::new(vec![layer]).unwrap();
    let (layer, _) = write(
        &ImageSource::new(&image),
        &options(entry("a-l12-sparse-commit")),
    );
    assert!(layer == fixture("a-l12-sparse-commit.layer"));
}

#[test]
fn stacks_keep_their_content() {
    let mut stacks = 0;
    for entry in manifest() {
        if entry["class"] != "stack" || entry["upper"].is_object() {
            continue;
        }
        let layers = entry["layers"].as_array().unwrap();
        let image = stack(layers.iter().map(|name| fixture(name.as_str().unwrap())));
        let source = ImageSource::new(&image);
        let (layer, _) = write(&source, &Options::default());
        assert!(read(&stack([layer])) == read(&image), "{}", entry["id"]);
        stacks += 1;
    }
    assert_eq!(stacks, 9);
}

#[test]
fn a_merge_maps_what_upstreams_maps() {
    for (merged, layers) in [("a-m1-merged-s3", 3), ("a-m2-merged-s6", 6)] {
        let files = (0..layers).map(|i| fixture(&format!("a-s{layers}-{i}.layer")));
        let image = stack(files);
        let (ours, stats) = write(&ImageSource::new(&image), &plain());
        let theirs = stack([fixture(&format!("{merged}.layer"))]);
        // Neighbours from different layers stay apart there, become one here:
        // all else is the same, data included.
        let (again, again_stats) = write(&ImageSource::new(&theirs), &plain());
        assert!(ours == again, "{merged}");
        assert_eq!(stats, again_stats);
        assert!((stats.segments as usize) <= theirs.index().len());
    }
}

#[test]
fn the_parent_is_kept() {
    let image = stack([fixture("a-l02-raw-discard.layer")]);
    let parent = "0D9C8B7A-6F5E-4D3C-8B2A-190817263544";
    assert_eq!(ImageSource::new(&image).parent_uuid(), parent.as_bytes());
}
