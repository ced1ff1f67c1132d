// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Every entry of the fixtures' manifest: files that overlaybd's tools wrote
//! decode to its hashes, damaged ones are answered no worse than upstream does.

mod common;

use common::*;
use obd_core::index::Contents;
use obd_core::lsmt::Layer;
use obd_core::scratch::Scratch;
use obd_core::source::Bytes;
use obd_core::zfile::Algorithm;
use serde_json::Value;
use sha2::{
    Digest,
    Sha256, //
};

/// The entries of some classes, with the number there must be.
fn entries(classes: &[&str], count: usize) -> Vec<Value> {
    let mut entries = manifest();
    entries.retain(|entry| classes.contains(&text(entry, "class")));
    assert_eq!(entries.len(), count, "{classes:?}");
    entries
}

#[test]
fn every_file_is_as_the_manifest_says() {
    let all = manifest();
    assert_eq!(all.len(), 147);
    let mut checked = 0;
    for entry in &all {
        for file in [entry, &entry["data"], &entry["index"]] {
            if let (Some(name), Some(hash)) = (file["file"].as_str(), file["sha256"].as_str()) {
                assert_eq!(sha256(&fixture(name)), hash, "{name}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 140);
}

fn check_zfile(entry: &Value) {
    let id = text(entry, "id");
    let file = zfile(fixture(text(entry, "file"))).unwrap_or_else(|e| panic!("{id}: {e}"));
    let says = &entry["zfile"];
    let info = file.info();
    let algorithm = match info.algorithm {
        Algorithm::Lz4 => "lz4",
        Algorithm::Zstd => "zstd",
    };
    assert_eq!(algorithm, text(says, "algorithm"), "{id}");
    assert_eq!(
        u64::from(info.block_size),
        number(says, "block_size"),
        "{id}"
    );
    assert_eq!(info.blocks, number(says, "blocks"), "{id}");
    assert_eq!(info.original_size, number(says, "original_size"), "{id}");
    assert_eq!(info.index_offset, number(says, "index_offset"), "{id}");
    assert_eq!(info.stored_size, number(says, "payload_size"), "{id}");
    assert_eq!(file.file().start(), number(says, "payload_offset"), "{id}");
    assert_eq!(Some(info.verify), says["verify"].as_bool(), "{id}");
    assert_eq!(Some(info.digest), says["digest"].as_bool(), "{id}");
    assert_eq!(
        Some(info.header_overwritten),
        says["header_overwritten"].as_bool(),
        "{id}"
    );
    assert_eq!(
        format!("{:#x}", info.flags_header),
        text(says, "flags_header"),
        "{id}"
    );
    assert_eq!(
        format!("{:#x}", info.flags_trailer),
        text(says, "flags_trailer"),
        "{id}"
    );
    if entry["lsmt"].is_null() && entry["virtual_size"].is_null() {
        let content = decode_zfile(&file).unwrap_or_else(|e| panic!("{id}: {e}"));
        assert_eq!(sha256(&content), text(&entry["decoded"], "sha256"), "{id}");
        let mut scratch = Scratch::new(file.needs()).unwrap();
        for (offset, len, hash) in reads(entry) {
            let mut buf = vec![0xee; len];
            file.read_at(offset, &mut buf, &mut scratch).unwrap();
            assert_eq!(sha256(&buf), hash, "{id}: {len} bytes at {offset}");
        }
    }
}

/// `[offset, length, hash]` of the reads an entry lists.
fn reads(entry: &Value) -> Vec<(u64, usize, String)> {
    let list = entry["reads"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|read| {
            (
                read[0].as_u64().unwrap(),
                read[1].as_u64().unwrap() as usize,
                read[2].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

#[test]
fn zfiles() {
    for entry in entries(&["zfile"], 24) {
        check_zfile(&entry);
    }
}

/// Checks hash, size and single reads of an image.
fn check_image(entry: &Value, image: &TestImage) {
    let id = text(entry, "id");
    let size = entry["virtual_size"]
        .as_u64()
        .or(entry["decoded"]["size"].as_u64());
    if let Some(size) = size {
        assert_eq!(image.size(), size, "{id}");
    }
    let hash = hash_image(image).unwrap_or_else(|e| panic!("{id}: {e}"));
    assert_eq!(hash, text(&entry["decoded"], "sha256"), "{id}");
    let mut scratch = Scratch::new(image.needs()).unwrap();
    for (offset, len, hash) in reads(entry) {
        let mut buf = vec![0xee; len];
        image.read_at(offset, &mut buf, &mut scratch).unwrap();
        assert_eq!(sha256(&buf), hash, "{id}: {len} bytes at {offset}");
    }
}

/// Compares `[lba, length, moffset, zeroed, level]` with the index; level 0 is
/// the topmost layer.
fn check_segments(id: &str, want: &Value, image: &TestImage) {
    let want: Vec<Vec<u64>> = serde_json::from_value(want.clone()).unwrap();
    let index = image.index();
    let top = image.layers().len() as u64 - 1;
    let got: Vec<Vec<u64>> = (0..index.len())
        .map(|i| index.get(i).unwrap())
        .map(|s| {
            let level = top - u64::from(s.layer());
            vec![s.lba(), s.len(), s.moffset(), s.is_zeroed().into(), level]
        })
        .collect();
    assert_eq!(got, want, "{id}");
}

#[test]
fn layers() {
    for entry in entries(&["lsmt-layer"], 34) {
        let id = text(&entry, "id");
        let layer = layer(fixture(text(&entry, "file"))).unwrap_or_else(|e| panic!("{id}: {e}"));
        let info = layer.info();
        let says = &entry["lsmt"];
        assert_eq!(info.virtual_size, number(says, "virtual_size"), "{id}");
        assert_eq!(info.index_entries, number(says, "index_entries"), "{id}");
        assert_eq!(info.index_offset, number(says, "index_offset"), "{id}");
        assert_eq!(info.segments, number(says, "segments"), "{id}");
        assert_eq!(
            info.zeroed_segments,
            number(says, "zeroed_segments"),
            "{id}"
        );
        assert_eq!(info.content_size, number(says, "lsmt_bytes"), "{id}");
        assert_eq!(info.label.uuid(), text(says, "uuid").as_bytes(), "{id}");
        assert_eq!(
            info.label.parent_uuid(),
            text(says, "parent_uuid").as_bytes(),
            "{id}"
        );
        assert_eq!(
            info.label.message(),
            text(says, "user_tag").as_bytes(),
            "{id}"
        );
        let longest = layer.segments().iter().map(|s| s.len()).max().unwrap_or(0);
        assert_eq!(longest, number(says, "max_segment_sectors"), "{id}");
        assert_eq!(layer.zfile().is_some(), !entry["zfile"].is_null(), "{id}");
        if !entry["zfile"].is_null() {
            check_zfile(&entry);
        }
        let image = image(vec![layer]).unwrap();
        if !entry["segments_sectors"].is_null() {
            check_segments(id, &entry["segments_sectors"], &image);
        }
        check_image(&entry, &image);
    }
}

#[test]
fn edited_but_valid() {
    for entry in entries(&["edited-valid"], 6) {
        let bytes = fixture(text(&entry, "file"));
        match text(&entry, "file").ends_with(".zfile") {
            true => check_zfile(&entry),
            false => check_image(&entry, &image(vec![layer(bytes).unwrap()]).unwrap()),
        }
    }
}

/// A read-write layer from the entry that names its files.
fn read_write(data: &str, index: &str) -> TestLayer {
    Layer::open_log(Bytes(fixture(data)), Bytes(fixture(index)))
        .unwrap_or_else(|e| panic!("{data}: {e}"))
}

#[test]
fn read_write_layers() {
    for entry in entries(&["rw-layer"], 3) {
        let data = text(&entry["data"], "file");
        let layer = match entry["data_extents"].as_array() {
            Some(extents) => {
                let extents = extents
                    .iter()
                    .map(|extent| (extent[0].as_u64().unwrap(), extent[1].as_u64().unwrap()))
                    .map(|(start, len)| (start, start + len));
                Layer::open_sparse(Bytes(fixture(data)), extents).unwrap()
            }
            None => {
                let layer = read_write(data, text(&entry["index"], "file"));
                assert_eq!(layer.info().index_entries, number(&entry, "log_entries"));
                assert_eq!(
                    layer.info().segments,
                    number(&entry["upstream"], "segments")
                );
                layer
            }
        };
        check_image(&entry, &image(vec![layer]).unwrap());
    }
}

#[test]
fn stacks() {
    for entry in entries(&["stack"], 10) {
        let id = text(&entry, "id");
        let mut layers: Vec<_> = entry["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| layer(fixture(name.as_str().unwrap())).unwrap())
            .collect();
        if let (Some(data), Some(index)) = (
            entry["upper"]["data"].as_str(),
            entry["upper"]["index"].as_str(),
        ) {
            layers.push(read_write(data, index));
        }
        let image = image(layers).unwrap();
        if !entry["merged_segments_sectors"].is_null() {
            check_segments(id, &entry["merged_segments_sectors"], &image);
        }
        check_image(&entry, &image);
    }
}

/// Damage no reader can notice: the format has no checksum there.
const UNNOTICEABLE: [&str; 2] = ["a-c20-noverify-literal", "a-c39-ls-data"];

/// Damage that hits some blocks only: all others must still be readable.
fn check_partly_readable(entry: &Value, bytes: &[u8], base: &[u8]) {
    let id = text(entry, "id");
    let range = &entry["upstream"]["zfile_lib"]["bad_range"];
    let bad = range[0].as_u64().unwrap()..range[1].as_u64().unwrap();
    let Ok(file) = zfile(bytes.to_vec()) else {
        // Refusing the whole file is right where the format allows to notice.
        return;
    };
    let mut scratch = Scratch::new(file.needs()).unwrap();
    let mut failed = 0;
    for number in 0..file.info().blocks {
        let at = number * file.block_size() as u64;
        let mut buf = vec![0xee; file.decoded_len(number)];
        let result = file.read_at(at, &mut buf, &mut scratch);
        if bad.contains(&at) {
            assert!(result.is_err(), "{id}: block {number}");
            failed += 1;
        } else {
            result.unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(
                buf,
                base[at as usize..][..buf.len()],
                "{id}: block {number}"
            );
        }
    }
    assert!(failed > 0, "{id}");
}

#[test]
fn damaged_files_are_answered_no_worse_than_upstream_does() {
    let mut counts = [0; 5];
    for entry in entries(&["corrupt"], 70) {
        let id = text(&entry, "id");
        let bytes = fixture(text(&entry, "file"));
        let base = text(&entry, "base");
        let base = decode(fixture(base)).unwrap_or_else(|e| panic!("{base}: {e}"));
        assert_eq!(
            sha256(&base),
            text(&entry, "decoded_of_intact_base"),
            "{id}"
        );
        let got = decode(bytes.clone());
        let class = match text(&entry, "upstream_class") {
            "open-rejected" => {
                assert!(got.is_err(), "{id} is accepted");
                0
            }
            "read-error" => {
                assert!(got.is_err(), "{id} is accepted");
                if entry["upstream"]["layer"].is_null() {
                    check_partly_readable(&entry, &bytes, &base);
                }
                1
            }
            "upstream-crash-or-hang" => {
                assert!(got.is_err(), "{id} is accepted");
                2
            }
            // Right data, or an error because something is wrong after all.
            "accepted-correct-data" => {
                if let Ok(content) = got {
                    assert_eq!(sha256(&content), sha256(&base), "{id}");
                }
                3
            }
            "accepted-different-data" => {
                match got {
                    Ok(content) if UNNOTICEABLE.contains(&id) => {
                        assert_eq!(content.len(), base.len(), "{id}");
                    }
                    Ok(_) => panic!("{id} is accepted"),
                    Err(_) => assert!(!UNNOTICEABLE.contains(&id), "{id}: the base is damaged"),
                }
                4
            }
            other => panic!("{id}: class {other}"),
        };
        counts[class] += 1;
    }
    assert_eq!(counts, [39, 14, 4, 5, 8]);
}

#[test]
fn one_read_of_a_whole_image_equals_many() {
    let layers = ["a-ext4-0.layer", "a-ext4-1.layer", "a-ext4-2.layer"];
    let image = image(layers.map(|name| layer(fixture(name)).unwrap()).into()).unwrap();
    let mut buf = vec![0xee; image.size() as usize];
    let mut scratch = Scratch::new(image.needs()).unwrap();
    image.read_at(0, &mut buf, &mut scratch).unwrap();
    assert_eq!(hex(&Sha256::digest(&buf)), hash_image(&image).unwrap());
    let data: u64 = image
        .pieces(0, image.size())
        .unwrap()
        .filter(|piece| matches!(piece.what, Contents::Data { .. }))
        .map(|piece| piece.len)
        .sum();
    assert!(data > 0 && data < image.size() / 512);
}
