// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory: bounded by the size of the file whatever it says, refused without
//! harm, and none at all on the read path.

mod common;

use common::*;
use obd_core::budget::{
    Budget,
    MAX_MEMORY, //
};
use obd_core::error::{
    Error,
    Unsupported, //
};
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
    Outside,
    Source,
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
                        if bytes[start..].starts_with(b"ZFile") {
                            redigest(&mut bytes, start);
                        }
                        let took = taken(&bytes);
                        assert!(took <= bound(&bytes), "{name}: {field} = {value}: {took}");
                    }
                }
            }
        }
    }
}

/// A file of `size` bytes that holds its ends and zeros between them, as sparse
/// files do, which claim much and pay little.
struct Sparse {
    head: Vec<u8>,
    tail: Vec<u8>,
    size: u64,
}

impl Source for Sparse {
    type Error = Outside;

    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Outside> {
        let tail_at = self.size - self.tail.len() as u64;
        for (at, byte) in (offset..).zip(buf) {
            *byte = match at.checked_sub(tail_at) {
                Some(i) => *self.tail.get(i as usize).ok_or(Outside)?,
                None => self.head.get(at as usize).copied().unwrap_or(0),
            };
        }
        Ok(())
    }
}

/// A zfile of `blocks` blocks of a byte each, says its trailer, behind which are
/// `index` entries, or bytes if they are compressed, of a jump table.
fn sparse(blocks: u64, index: u64, compressed: bool) -> Sparse {
    let original = fixture("a-z12-lz4-4k-noverify.zfile");
    let (head, mut tail) = (
        original[..512].to_vec(),
        original[original.len() - 512..].to_vec(),
    );
    tail[32] = (tail[32] & !(1 << 5)) | u8::from(compressed) << 5;
    for (field, value) in [(40, 512 + blocks), (48, index), (56, blocks * 4096)] {
        tail[field..field + 8].copy_from_slice(&value.to_le_bytes());
    }
    redigest(&mut tail, 0);
    let index = if compressed { index } else { 4 * index };
    let size = 512 + blocks + index + 512;
    Sparse { head, tail, size }
}

/// What a sparse file claims is refused before it is allocated.
#[test]
fn sparse_files_take_nothing_beyond_the_budget() {
    for (blocks, index, compressed) in [
        // A table, and the entries it is decoded from.
        (500_000_000, 8 << 20, true),
        // The table fits, but not the entries with it.
        (200_000_000, 4 << 20, true),
        // Nor the stored bytes.
        (1, i32::MAX as u64, true),
        (1, u64::MAX >> 17, true),
        (500_000_000, 500_000_000, false),
    ] {
        for layer in [false, true] {
            TAKEN.set(0);
            let file = sparse(blocks, index, compressed);
            let mut budget = Budget::new(MAX_MEMORY);
            let error = if layer {
                Layer::<_, CountedHost>::open_within(file, &mut budget).err()
            } else {
                ZFile::<_, CountedHost>::open_within(Window::whole(file), &mut budget).err()
            };
            let refused = matches!(error, Some(Error::Unsupported(Unsupported::Memory { .. })));
            assert!(refused, "{blocks} {index} {compressed}: {error:?}");
            assert_eq!(TAKEN.get(), 0, "{blocks} {index} {compressed}");
        }
    }
}

/// Whatever the budget, not a byte more of a jump table is taken.
#[test]
fn compressed_tables_stay_within_the_budget() {
    let (file, _) = compress_table(&fixture("a-c00-base-small.zfile"));
    let open = |most| {
        TAKEN.set(0);
        let file = Window::whole(Bytes(file.as_slice()));
        ZFile::<_, CountedHost>::open_within(file, &mut Budget::new(most))
    };
    open(MAX_MEMORY).unwrap();
    let needed = TAKEN.get();
    for most in 0..needed {
        assert!(open(most as u64).is_err(), "{most} of {needed} are enough");
        assert_eq!(TAKEN.get(), 0, "{most} of {needed}");
    }
    assert!(open(needed as u64).is_ok());
}

/// Nor of an index, however many segments there are; merging is paid for, too.
#[test]
fn segments_stay_within_the_budget() {
    let count = 50_000;
    let segments: Vec<_> = (0..count).map(|i| (2 * i, 1, true)).collect();
    let file = committed(&segments, 2 * count * 512);
    let fixed = bound(&[]);
    let needed = count * 113;
    for most in (0..needed).step_by(500_000).chain([needed - 1, needed]) {
        TAKEN.set(0);
        let mut budget = Budget::new(most);
        let layer = Layer::<_, CountedHost>::open_within(Bytes(file.as_slice()), &mut budget);
        assert_eq!(layer.is_ok(), most == needed, "{most} of {needed}");
        if let Ok(layer) = layer {
            Image::new(vec![layer]).unwrap();
        }
        let taken = TAKEN.get();
        assert!(taken <= most as usize + fixed, "{taken} of {most}");
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
