// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory: bounded by the size of the file whatever it says, refused without
//! harm, and none at all on the read path.

mod common;

use common::*;
use obd_core::error::Error;
use obd_core::image::Image;
use obd_core::lsmt::Layer;
use obd_core::platform::{
    Memory,
    OutOfMemory,
    Platform, //
};
use obd_core::scratch::Scratch;
use obd_core::source::{
    Bytes,
    Window, //
};
use obd_core::zfile::ZFile;
use obd_host::{
    Hardware,
    Heap,
    Zstd, //
};
use std::cell::Cell;

thread_local! {
    /// Bytes taken, in total, by this test's thread.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// Allocations left before the next one fails.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Memory that is counted, and can run out.
struct Counted;

impl Memory for Counted {
    type Buf<T: Copy + Default> = Vec<T>;

    fn filled<T: Copy + Default>(len: usize) -> Result<Vec<T>, OutOfMemory> {
        let left = LEFT.get().checked_sub(1).ok_or(OutOfMemory)?;
        LEFT.set(left);
        TAKEN.set(TAKEN.get() + len * size_of::<T>());
        Heap::filled(len)
    }
}

struct CountedHost;

impl Platform for CountedHost {
    type Memory = Counted;
    type Crc = Hardware;
    type Lz4 = obd_core::lz4::Lz4;
    type Zstd = Zstd;
}

/// Opens a file every way there is and returns the bytes that took.
fn taken(bytes: &[u8]) -> usize {
    TAKEN.set(0);
    let _ = ZFile::<_, CountedHost>::open(Window::whole(Bytes(bytes)));
    let zfile = TAKEN.replace(0);
    if let Ok(layer) = Layer::<_, CountedHost>::open(Bytes(bytes)) {
        let _ = Image::new(vec![layer]);
    }
    zfile.max(TAKEN.get())
}

/// What opening may take: 300 KiB of buffers (scratch of 128 KiB and a block,
/// a chunk of jump table and one of index), and 7 bytes per byte of file: 2.5
/// bytes of jump table per 4 stored, or 112 while merging per 16 of index.
fn bound(bytes: &[u8]) -> usize {
    (300 << 10) + 7 * bytes.len()
}

#[test]
fn no_file_takes_more_than_its_size_allows() {
    let mut checked = 0;
    for entry in manifest() {
        if let Some(name) = entry["file"].as_str() {
            let bytes = fixture(name);
            let took = taken(&bytes);
            assert!(took <= bound(&bytes), "{name}: {took} bytes");
            checked += 1;
        }
    }
    assert!(checked > 130);
}

/// Every field of header and trailer at its largest, checksums made right.
#[test]
fn no_field_makes_it_take_more() {
    for name in [
        "a-c00-base-small.zfile",
        "a-c00-base-plain.layer",
        "a-z12-lz4-4k-noverify.zfile",
    ] {
        let original = fixture(name);
        let tail = if name.ends_with("layer") { 4096 } else { 512 };
        for start in [0, original.len() - tail] {
            for field in (24..96).step_by(4) {
                for width in [4, 8] {
                    for value in [u64::MAX, u64::MAX >> 1, 1 << 40, 999_999_999, 1_000_000] {
                        let mut bytes = original.clone();
                        let at = start + field;
                        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                        redigest(&mut bytes, start);
                        let took = taken(&bytes);
                        assert!(took <= bound(&bytes), "{name}: {field} = {value}: {took}");
                    }
                }
            }
        }
    }
}

/// Makes the digest of a zfile's header or trailer right.
fn redigest(bytes: &mut [u8], at: usize) {
    use obd_core::platform::Crc32c;
    if bytes[at..].starts_with(b"ZFile") {
        bytes[at + 28..at + 32].fill(0);
        let digest = Hardware::crc32c(0, &bytes[at..at + 512]);
        bytes[at + 28..at + 32].copy_from_slice(&digest.to_le_bytes());
    }
}

#[test]
fn running_out_is_an_error_at_every_allocation() {
    let bytes = fixture("a-l05-600-segments.layer");
    let mut failures = 0;
    for allowed in 0.. {
        LEFT.set(allowed);
        let opened = Layer::<_, CountedHost>::open(Bytes(bytes.as_slice()));
        let image = opened.and_then(|layer| Image::new(vec![layer]));
        match image {
            Ok(image) => {
                assert_eq!(image.index().len(), 600);
                break;
            }
            Err(error) => assert!(matches!(error, Error::OutOfMemory), "{error}"),
        }
        failures += 1;
    }
    LEFT.set(usize::MAX);
    assert!(failures > 8, "{failures}");
}

#[test]
fn reading_takes_none() {
    for name in [
        "a-l07-lz4-4k.layer",
        "a-l08-zstd-16k.layer",
        "a-l02-raw-discard.layer",
    ] {
        let layer = Layer::<_, CountedHost>::open(Bytes(fixture(name))).unwrap();
        let image = Image::new(vec![layer]).unwrap();
        let mut scratch = Scratch::new(image.needs()).unwrap();
        let mut buf = vec![0; image.size() as usize];
        LEFT.set(0);
        let result = image.read_at(0, &mut buf, &mut scratch);
        LEFT.set(usize::MAX);
        result.unwrap();
    }
}
