// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The fuzz targets' bodies on the fixtures and on mutations of them, and every
//! single-byte change of a small image.

mod common;

#[path = "../../fuzz/bodies/mod.rs"]
mod bodies;

use common::*;
use fastrand::Rng;

/// Mutations per fuzz target.
const MUTATIONS: usize = 30_000;

/// Largest fixture that is mutated, bytes.
const MUTATED: usize = 32 << 10;

/// The fixtures whose name ends so.
fn corpus(endings: &[&str]) -> Vec<Vec<u8>> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .collect();
    names.sort();
    assert!(names.len() > 20, "{endings:?}");
    names.iter().map(|name| fixture(name)).collect()
}

/// Changes a few places, mostly where formats keep their fields: at the ends.
fn mutate(input: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.usize(1..6) {
        if input.is_empty() {
            return;
        }
        let len = input.len();
        let field = match rng.u8(0..5) {
            0 => rng.usize(0..len.min(96)),
            1 => len - 1 - rng.usize(0..len.min(4096)),
            2 => len.saturating_sub(512) + rng.usize(0..len.min(96)),
            3 => len.saturating_sub(4096) + rng.usize(0..len.min(64)),
            _ => rng.usize(0..len),
        };
        match rng.u8(0..7) {
            0 => input[field] ^= 1 << rng.u8(0..8),
            1 => input[field] = rng.u8(..),
            2 => {
                let value = *rng
                    .choice(&[0, 1, 255, u64::MAX, 1 << 32, 1 << 63])
                    .unwrap();
                let bytes = value.to_le_bytes();
                let end = len.min(field + rng.usize(1..=8));
                input[field..end].copy_from_slice(&bytes[..end - field]);
            }
            3 => input.truncate(rng.usize(0..len)),
            4 => input.extend_from_within(..rng.usize(0..len.min(4096))),
            5 => {
                let from = rng.usize(0..len);
                let count = rng.usize(0..(len - from.max(field)).min(64) + 1);
                input.copy_within(from..from + count, field);
            }
            _ => {
                input.remove(field);
            }
        }
    }
}

/// Runs a body on inputs as they are, and on mutations of the small ones.
fn stress(inputs: &[Vec<u8>], body: fn(&[u8]), seed: u64) {
    for input in inputs {
        body(input);
    }
    let small: Vec<_> = inputs
        .iter()
        .filter(|input| input.len() <= MUTATED)
        .collect();
    assert!(small.len() > 10);
    let mut rng = Rng::with_seed(seed);
    for _ in 0..MUTATIONS {
        let mut input = small[rng.usize(0..small.len())].clone();
        mutate(&mut input, &mut rng);
        body(&input);
    }
}

#[test]
fn zfile_target() {
    stress(&corpus(&[".zfile"]), bodies::zfile, 1);
}

#[test]
fn lsmt_target() {
    let mut inputs = Vec::new();
    for file in corpus(&[".layer", ".rwdata"]) {
        inputs.push([&[0], file.as_slice()].concat());
    }
    for pair in [
        ["a-s3-0.layer", "a-c00-base-plain.layer"],
        ["a-c00-base-plain.layer"; 2],
    ] {
        let [mut first, second] = pair.map(fixture);
        // Cut in the middle: the first file must be as long as the second.
        first.resize(first.len().max(second.len()), 0);
        inputs.push([&[1], first.as_slice(), &second].concat());
    }
    for (data, log) in [("a-w01-append", 4464), ("a-su-upper", 4320)] {
        let data_bytes = fixture(&format!("{data}.rwdata"));
        let mut log_bytes = fixture(&format!("{data}.rwindex"));
        assert_eq!(log_bytes.len(), log);
        // Padding of invalid entries up to the length of the data.
        while log_bytes.len() < data_bytes.len() {
            log_bytes.extend([
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ]);
        }
        inputs.push([&[2], data_bytes.as_slice(), &log_bytes].concat());
    }
    stress(&inputs, bodies::lsmt, 2);
}

#[test]
fn tar_target() {
    let all = corpus(&[".zfile", ".layer"]);
    let wrapped: Vec<_> = all
        .into_iter()
        .filter(|file| file.get(257..262) == Some(b"ustar"))
        .collect();
    let mut inputs = wrapped;
    // Small ones, too, so that mutations hit headers.
    for i in 0..inputs.len() {
        for end in [512, 1536, 2048] {
            let short = inputs[i][..end].to_vec();
            inputs.push(short);
        }
    }
    stress(&inputs, bodies::wrapped, 3);
}

/// Every byte of `name` changed, in `range` to each other value that it can have, else in three
/// ways: whatever can still be read is right. How many changes were not noticed.
fn change_every_byte(name: &str, range: impl Fn(usize) -> bool) -> usize {
    let original = fixture(name);
    let content = decode(original.clone()).unwrap();
    let mut image = original.clone();
    let mut unnoticed = 0;
    for i in 0..original.len() {
        let some = [0x80, 0xff, 1 << (i % 7)];
        let changes = (1..=u8::MAX).filter(|change| range(i) || some.contains(change));
        for change in changes {
            image[i] = original[i] ^ change;
            if let Ok(got) = decode(image.clone()) {
                assert!(
                    got == content,
                    "{name}: byte {i} ^ {change:#x} changes the image"
                );
                unnoticed += 1;
            }
        }
        image[i] = original[i];
    }
    unnoticed
}

/// A compressed layer: every value of every byte of header, jump table and trailer.
#[test]
fn every_single_byte_change_of_a_small_image() {
    let name = "a-c00-base-committed.layer";
    let len = fixture(name).len();
    let opened = layer(fixture(name)).unwrap();
    let table = opened.zfile().unwrap().info().index_offset as usize;
    assert!((512..len - 512).contains(&table));
    let unnoticed = change_every_byte(name, |i| i < 512 || i >= table);
    // The header's flags of which nothing follows, and nothing else.
    assert!(
        unnoticed < 18 * 255 + 1,
        "{unnoticed} changes were not noticed"
    );
}

/// Every value of every byte of the smallest files there are.
#[test]
fn every_single_byte_change_of_tiny_files() {
    for name in [
        "a-z17-empty.zfile",
        "a-z18-one-byte.zfile",
        "a-z19-one-block.zfile",
    ] {
        let unnoticed = change_every_byte(name, |_| true);
        assert!(
            unnoticed < 18 * 255 + 1,
            "{name}: {unnoticed} changes were not noticed"
        );
    }
}

/// The same cut off at every length.
#[test]
fn every_truncation_of_a_small_image() {
    for name in ["a-c00-base-committed.layer", "a-z15-tar-lz4-4k.zfile"] {
        let original = fixture(name);
        let content = decode(original.clone()).unwrap();
        for len in 0..original.len() {
            if let Ok(got) = decode(original[..len].to_vec()) {
                // The zero blocks at the end of a tar file only.
                assert!(
                    name.contains("tar") && got == content,
                    "{name} of {len} bytes"
                );
            }
        }
    }
}
