// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where overlaybd's own reader is wrong, and this one must be right: each case
//! on files built here, byte by byte.

mod common;

use common::*;
use obd_core::Budget;
use obd_core::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use obd_core::scratch::Scratch;
use obd_core::source::Bytes;

/// The fault for which a file is refused.
fn fault<T>(result: Result<T, Fails>) -> Fault {
    match result {
        Err(Error::Damaged(fault)) => fault,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

fn read(image: &TestImage, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    let mut scratch = Scratch::new(image.needs()).unwrap();
    image.read_at(offset, &mut buf, &mut scratch).unwrap();
    buf
}

/// A field of a zfile's trailer set, digest made right.
fn with_trailer_field(name: &str, field: usize, value: &[u8]) -> Vec<u8> {
    let mut file = fixture(name);
    let at = file.len() - 512;
    file[at + field..at + field + value.len()].copy_from_slice(value);
    redigest(&mut file, at);
    file
}

const SMALL: &str = "a-c00-base-small.zfile";
const OVERWRITTEN: &str = "a-z14-lz4-4k-hdr-overwritten.zfile";

/// 1. With 32-bit keys, a mapping at 2 TiB + x would show at x.
#[test]
fn images_of_2_tib_and_more() {
    let far = 1u64 << 32;
    let size = 3 << 41;
    let lower = committed(&[(0, 8, false)], size);
    let upper = committed(&[(far, 8, false), (2 * far + 4, 4, false)], size);
    let image = image(vec![layer(lower).unwrap(), layer(upper).unwrap()]).unwrap();
    assert_eq!(read(&image, 0, 512), [8; 512]);
    assert_eq!(read(&image, far * 512 + 512, 512), [9; 512]);
    assert_eq!(read(&image, (far + 8) * 512, 512), [0; 512]);
    assert_eq!(read(&image, 2 * far * 512, 512), [0; 512]);
    assert_eq!(read(&image, (2 * far + 4) * 512, 512), [16; 512]);
}

/// 2. A 64 KiB block that grew beyond 65535 bytes.
#[test]
fn incompressible_blocks_of_64_kib() {
    let file = zfile(fixture("a-z20-lz4-64k-random-unreadable.zfile")).unwrap();
    assert!(file.extent(0).unwrap().len > 65_536);
    assert_eq!(decode_zfile(&file).unwrap().len(), 65_636);
}

/// 3. is the writer's speed, which is tested with the writer; what its threads wrote is read
///    like what one thread did.
#[test]
fn bytes_of_the_multi_threaded_builder() {
    let entries = manifest();
    let threaded: Vec<_> = entries
        .iter()
        .filter(|entry| {
            entry["how"]
                .as_str()
                .is_some_and(|how| how.contains("compress_threads"))
        })
        .collect();
    assert!(!threaded.is_empty());
    for entry in threaded {
        let bytes = fixture(text(entry, "file"));
        let opened = layer(bytes.clone()).unwrap();
        let blocks = opened.zfile().unwrap().info().blocks;
        assert!(blocks > 1, "{} has {blocks} blocks", entry["id"]);
        let image = image(vec![opened]).unwrap();
        let want = text(&entry["decoded"], "sha256");
        assert_eq!(hash_image(&image).unwrap(), want, "{}", entry["id"]);
    }
}

/// 4. No layer says how large the image is.
#[test]
fn a_stack_without_a_size() {
    let unsized_layer = || layer(committed(&[(0, 8, false)], 0)).unwrap();
    let refused = fault(image(vec![unsized_layer(), unsized_layer()]));
    assert_eq!(
        (refused.place, refused.reason),
        (Place::Image, Reason::NoSize)
    );
    // One layer that says it, at any place, is enough.
    let sized = layer(committed(&[], 8192)).unwrap();
    let image = image(vec![sized, unsized_layer()]).unwrap();
    assert_eq!(image.size(), 8192);
    assert_eq!(read(&image, 4096 - 512, 1024)[..512], [15; 512]);
}

/// 5. The trailer's digest.
#[test]
fn a_changed_trailer() {
    let mut file = fixture(SMALL);
    let at = file.len() - 512;
    file[at + 57] ^= 0x10;
    assert!(matches!(fault(zfile(file)).reason, Reason::Digest { .. }));
    // Even with the right digest, a size that is not that of the blocks.
    let file = with_trailer_field(SMALL, 56, &14369u64.to_le_bytes());
    assert!(matches!(
        fault(zfile(file)).reason,
        Reason::Mismatch {
            name: "index size",
            ..
        }
    ));
}

/// 5. With an overwritten header, a file without its trailer.
#[test]
fn a_missing_trailer() {
    let file = fixture(OVERWRITTEN);
    assert_eq!(decode(file.clone()).unwrap().len(), 66_536);
    let cut = file[..file.len() - 512].to_vec();
    assert_eq!(fault(zfile(cut)).place, Place::ZfileTrailer);
}

/// 5. With an overwritten header, bytes behind the trailer.
#[test]
fn appended_bytes() {
    for more in [1, 16, 511, 512, 513, 4096] {
        let mut file = fixture(OVERWRITTEN);
        file.resize(file.len() + more, 0);
        assert_eq!(fault(zfile(file)).place, Place::ZfileTrailer, "{more}");
        // A copy of the trailer is no trailer of this file, either.
        let mut file = fixture(OVERWRITTEN);
        file.extend_from_within(file.len() - 512..);
        assert!(zfile(file).is_err());
    }
}

/// 5. A header written again with other fields than the trailer's.
#[test]
fn header_and_trailer_disagree() {
    for field in [40, 48, 56, 64] {
        let mut file = fixture(OVERWRITTEN);
        file[field] ^= 1;
        redigest(&mut file, 0);
        let refused = fault(zfile(file));
        assert_eq!(refused.place, Place::ZfileHeader);
        assert!(matches!(refused.reason, Reason::Mismatch { .. }));
    }
    let mut file = fixture(SMALL);
    file[72..76].copy_from_slice(&8192u32.to_le_bytes());
    redigest(&mut file, 0);
    assert_eq!(fault(zfile(file)).place, Place::ZfileHeader);
}

/// 6. Block sizes that divide by zero, or are beyond all buffers.
#[test]
fn impossible_block_sizes() {
    for size in [0u32, 1, 256, 3000, 4097, 128 << 10, 1 << 20, u32::MAX] {
        let refused = fault(zfile(with_trailer_field(SMALL, 72, &size.to_le_bytes())));
        let value = u64::from(size);
        let name = "block size";
        assert_eq!(refused.reason, Reason::Field { name, value });
    }
}

/// 6. Unknown algorithms, and dictionaries.
#[test]
fn unknown_algorithms() {
    for algorithm in [0u8, 3, 9, 255] {
        let result = zfile(with_trailer_field(SMALL, 76, &[algorithm]));
        let wanted = Unsupported::Algorithm(algorithm);
        assert!(matches!(result, Err(Error::Unsupported(what)) if what == wanted));
    }
    let result = zfile(with_trailer_field(SMALL, 84, &4096u32.to_le_bytes()));
    assert!(matches!(
        result,
        Err(Error::Unsupported(Unsupported::Dictionary(4096)))
    ));
}

/// 6. Sizes and places that reach beyond the tables.
#[test]
fn fields_beyond_the_file() {
    let huge = [1 << 62, u64::MAX, u64::MAX - 4095, 1 << 40];
    for field in [40, 48, 56] {
        for value in huge {
            let file = with_trailer_field(SMALL, field, &u64::to_le_bytes(value));
            assert!(zfile(file).is_err(), "{field} = {value}");
        }
    }
}

/// 7. Segments beyond the image.
#[test]
fn segments_beyond_the_image() {
    let refused = fault(layer(committed(&[(0, 8, false), (12, 8, false)], 8192)));
    assert_eq!(refused.place, Place::LsmtEntry(1));
    assert_eq!(refused.reason, Reason::BeyondImage);
    assert!(layer(committed(&[(0, 8, false), (8, 8, false)], 8192)).is_ok());
}

/// 7. Segments of no sectors.
#[test]
fn empty_segments() {
    let refused = fault(layer(committed(&[(0, 8, false), (8, 0, false)], 8192)));
    assert_eq!(refused.place, Place::LsmtEntry(1));
    assert_eq!(refused.reason, Reason::EmptySegment);
}

/// 7. An index that was cut, or is said to be empty.
#[test]
fn cut_indexes() {
    let file = committed(&[(0, 4, false), (4, 4, false), (8, 4, false)], 8192);
    assert!(layer(file.clone()).is_ok());
    let trailer = file.len() - 4096;
    for count in [0u64, 1, 2, 4, 1000] {
        let mut file = file.clone();
        file[trailer + 40..trailer + 48].copy_from_slice(&count.to_le_bytes());
        assert_eq!(fault(layer(file)).place, Place::LsmtTrailer, "{count}");
    }
    // Said to be cut and really cut: the data of the last one is left over.
    let mut file = committed(&[(0, 4, false), (4, 4, false), (8, 4, false)], 8192);
    file.drain(trailer - 16..trailer);
    let trailer = file.len() - 4096;
    file[trailer + 40] = 2;
    assert_eq!(
        fault(layer(file)).reason,
        Reason::DataArea {
            mapped: 8,
            present: 12
        }
    );
}

/// 7. A segment marked as zeros, or no longer marked so.
#[test]
fn flipped_zeroed_bits() {
    for i in 0..3 {
        let segments = [(0, 4, false), (4, 4, true), (8, 4, false)];
        let mut file = committed(&segments, 8192);
        assert!(layer(file.clone()).is_ok());
        let at = file.len() - 4096 - 16 * (3 - i) + 8 + 6;
        file[at] ^= 0x80;
        let refused = fault(layer(file)).reason;
        assert!(
            matches!(refused, Reason::DataArea { .. } | Reason::BeyondData),
            "{refused:?}"
        );
    }
}

/// 7. Overlap and data outside of the layer, which upstream notices, too.
#[test]
fn overlap_and_misplaced_data() {
    let refused = fault(layer(committed(&[(0, 8, false), (7, 4, false)], 8192)));
    assert_eq!(refused.reason, Reason::Unsorted);
    for moffset in [0u64, 7, 13, 1 << 41, (1 << 55) - 1] {
        let mut file = committed(&[(0, 4, false)], 8192);
        let at = file.len() - 4096 - 8;
        file[at..at + 8].copy_from_slice(&moffset.to_le_bytes());
        assert_eq!(fault(layer(file)).reason, Reason::BeyondData, "{moffset}");
    }
}

/// 9. Every error says what and where. (The eighth is the tools': none of this
///    one's commands needs the configuration of a service.)
#[test]
fn errors_say_what_and_where() {
    let errors = [
        zfile(fixture("a-c10-jump-table.zfile"))
            .map(|_| ())
            .unwrap_err(),
        decode(fixture("a-c11-block-first.zfile"))
            .map(|_| ())
            .unwrap_err(),
        layer(fixture("a-c35-ls-idx-unsorted.layer"))
            .map(|_| ())
            .unwrap_err(),
        layer(fixture("a-z01-lz4-4k-mixed.zfile"))
            .map(|_| ())
            .unwrap_err(),
    ];
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for (text, start) in text.iter().zip([
        "jump table: checksum is 0x",
        "block 0 at byte 512: checksum is 0x",
        "LSMT index entry 2: reaches beyond the virtual size",
        "LSMT header: wrong magic bytes",
    ]) {
        assert!(text.starts_with(start), "{text}");
        assert!(!text.contains('\n'));
    }
}

/// 9. So does that of every damaged fixture, and it is none of a failed read: what is wrong is
///    the file, not the system.
#[test]
fn errors_of_every_damaged_fixture() {
    let mut seen = 0;
    for entry in manifest() {
        if entry["class"] != "corrupt" {
            continue;
        }
        let id = text(&entry, "id");
        let Err(error) = decode(fixture(text(&entry, "file"))) else {
            continue;
        };
        let said = error.to_string();
        match &error {
            Error::Damaged(fault) => {
                let (place, reason) = (fault.place.to_string(), fault.reason.to_string());
                assert_eq!(said, format!("{place}: {reason}"), "{id}");
                assert!(!place.is_empty() && !reason.is_empty(), "{id}: {said}");
            }
            Error::Unsupported(what) => {
                assert_eq!(said, format!("not supported: {what}"), "{id}");
            }
            other => panic!("{id}: {other}"),
        }
        assert!(!said.contains('\n'), "{id}: {said}");
        seen += 1;
    }
    assert!(seen >= 65, "{seen}");
}

/// A turboOCI layer: segments with tags, and data that is not here.
#[test]
fn warp_layers_are_refused_as_what_they_are() {
    let mut file = committed(&[(0, 4, false), (8, 4, false)], 8192);
    let entry = file.len() - 4096 - 16;
    file[entry + 8..entry + 16].copy_from_slice(&(5000u64 | 1 << 56).to_le_bytes());
    assert!(matches!(
        layer(file),
        Err(Error::Unsupported(Unsupported::Warp))
    ));
}

/// Addresses have 50 bits: a larger image could not be addressed, nor its size
/// in bytes be kept by who counts them in 63 bits.
#[test]
fn sizes_beyond_the_format_are_refused() {
    let most = 1u64 << 50;
    let opened = layer(committed(&[(0, 4, false)], most * 512)).unwrap();
    assert_eq!(image(vec![opened]).unwrap().size(), most * 512);
    for sectors in [most + 1, u64::MAX / 512] {
        let error = layer(committed(&[(0, 4, false)], sectors * 512))
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            format!("not supported: too large: {sectors} sectors of virtual size, 2^50 at most")
        );
    }
    // A read-write layer says its size in the header alone.
    let log = lsmt_header(1, 4096, 0, 0);
    for (sectors, refused) in [(most, false), (most + 1, true)] {
        let data = lsmt_header(3, 0, 0, sectors * 512);
        let opened = TestLayer::open_log(Bytes(data), Bytes(log.clone()));
        assert_eq!(opened.is_err(), refused, "{sectors}");
    }
}

/// A file pays for its index with its size, but once: named again, it takes
/// memory for nothing.
#[test]
fn layers_have_a_budget_of_memory() {
    let segments = [(0, 4, false), (8, 4, false)];
    let one = 2 * (32 + 64 + 17);
    let mut budget = Budget::new(3 * one + 1);
    let mut open = || {
        let file = Bytes(committed(&segments, 8192));
        TestLayer::open_within(file, &mut budget)
    };
    for _ in 0..3 {
        open().unwrap();
    }
    assert_eq!(
        open().err().unwrap().to_string(),
        "not supported: indexes and jump tables of 791 bytes or more in all layers, 679 at most"
    );
    // A jump table counts as much as it takes.
    let open = |most| {
        let file = Bytes(fixture("a-l07-lz4-4k.layer"));
        TestLayer::open_within(file, &mut Budget::new(most))
    };
    let packed = open(u64::MAX).unwrap();
    let table = packed.zfile().unwrap().memory() as u64;
    let most = table + packed.info().segments * (32 + 64 + 17);
    assert!(table > 0);
    assert!(open(most).is_ok());
    assert!(open(most - 1).is_err());
}

/// A jump table stored compressed, as upstream does on request since 2026.
#[test]
fn compressed_jump_tables() {
    let original = fixture(SMALL);
    let content = decode(original.clone()).unwrap();
    let (mut file, index_offset) = compress_table(&original);
    let opened = zfile(file.clone()).unwrap();
    assert!(opened.info().index_compressed);
    assert_eq!(decode_zfile(&opened).unwrap(), content);

    file[index_offset] ^= 0xf0;
    assert_eq!(fault(zfile(file)).place, Place::JumpTable);
}

/// Flags and digests of old files are partly uninitialised memory: neither the
/// digest bit nor the overwritten bit may be believed there.
#[test]
fn garbage_in_the_flags_of_old_files() {
    let original = fixture("a-y03-garbage-like-2021.zfile");
    let content = decode(original.clone()).unwrap();
    for garbage in 0..8u8 {
        let mut file = original.clone();
        for at in [0, original.len() - 512] {
            file[at + 32] = (file[at + 32] & 7) | garbage << 3 | 0x40;
        }
        assert_eq!(decode(file).unwrap(), content, "{garbage:#x}");
    }
}

/// More layers than there are numbers for.
#[test]
fn layer_counts() {
    let one = || layer(committed(&[(0, 8, false)], 4096)).unwrap();
    let refused = |count| fault(image((0..count).map(|_| one()).collect())).reason;
    assert_eq!(refused(0), Reason::LayerCount(0));
    assert_eq!(refused(256), Reason::LayerCount(256));
    let image = image((0..255).map(|_| one()).collect()).unwrap();
    assert_eq!(image.index().len(), 1);
    assert_eq!(image.index().get(0).unwrap().layer(), 254);
}
