// SPDX-License-Identifier: MIT

//! What is written is read back by `obd_core`, whatever the options, and is the
//! same bytes whatever the number of threads and the cut of the source.

mod common;

use common::*;
use obd_core::lsmt::Kind;
use obd_core::source::Bytes;
use obd_core::zfile;
use obd_writer::source::{
    ImageSource,
    Range, //
};
use obd_writer::{
    Algorithm,
    Compression,
    Options, //
};
use proptest::prelude::*;
use std::num::NonZero;
use uuid::Uuid;

/// Ranges with gaps, data and zeros, over several batches.
fn images() -> impl Strategy<Value = Memory> {
    let pieces = proptest::collection::vec((0u64..40, 1u64..300, 0u32..4), 0..25);
    (pieces, any::<u64>(), any::<bool>(), 1u64..50).prop_map(|(pieces, seed, lends, after)| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut at = 0;
        let mut ranges = Vec::new();
        for (gap, len, kind) in pieces {
            let start = at + gap * 512;
            at = start + len * 512;
            ranges.push(Range {
                start,
                end: at,
                zeroed: kind == 0,
            });
        }
        let mut bytes = vec![0; (at + after * 512) as usize];
        for range in ranges.iter().filter(|range| !range.zeroed) {
            fill(
                &mut bytes[range.start as usize..range.end as usize],
                &mut rng,
            );
        }
        Memory {
            bytes,
            ranges,
            lends,
            bad: None,
        }
    })
}

fn compressions() -> impl Strategy<Value = Option<Compression>> {
    let some = (any::<bool>(), 12u32..=16, any::<bool>()).prop_map(|(lz4, shift, checksums)| {
        Some(Compression {
            algorithm: if lz4 { Algorithm::Lz4 } else { Algorithm::Zstd },
            block_size: 1 << shift,
            checksums,
        })
    });
    prop_oneof![1 => Just(None), 8 => some]
}

/// Every range in pieces of at most `sectors`.
fn cut(image: &Memory, sectors: u64) -> Memory {
    let mut pieces = image.clone();
    pieces.ranges.clear();
    for range in &image.ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + sectors * 512);
            pieces.ranges.push(Range {
                start,
                end,
                ..*range
            });
            start = end;
        }
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_option(
        image in images(),
        compression in compressions(),
        tar: bool,
        uuid: u128,
        message in "[a-z ]{0,255}",
        threads in 2usize..=8,
        pieces in 1u64..100,
    ) {
        let mut options = Options {
            compression,
            tar,
            uuid: Uuid::from_u128(uuid),
            message: message.clone(),
            ..Options::default()
        };
        let (bytes, stats) = write(&image, &options);

        // The same from any number of threads, in any pieces, lent or copied.
        options.threads = NonZero::new(threads).unwrap();
        let mut other = cut(&image, pieces);
        other.lends = !image.lends;
        let (again, other_stats) = write(&other, &options);
        prop_assert!(bytes == again, "{} threads write other bytes", threads);
        let copied = stats.copied.max(other_stats.copied);
        let lent = stats.copied.min(other_stats.copied);
        prop_assert_eq!(copied, stats.data);
        prop_assert!(lent <= copied);

        let layer = TestLayer::open(Bytes(bytes.clone())).unwrap();
        let info = layer.info();
        prop_assert_eq!(info.kind, Kind::Committed);
        prop_assert_eq!(info.virtual_size, image.bytes.len() as u64);
        prop_assert_eq!(info.segments, stats.segments);
        prop_assert_eq!(info.zeroed_segments, stats.zeroed_segments);
        prop_assert_eq!(info.index_entries, stats.index_entries);
        prop_assert_eq!(info.content_size, stats.content);
        prop_assert_eq!(info.label.message(), message.as_bytes());
        let text = Uuid::from_u128(uuid).hyphenated().to_string().to_uppercase();
        prop_assert_eq!(info.label.uuid(), text.as_bytes());
        prop_assert_eq!(layer.payload_offset(), if tar { 1536 } else { 0 });
        match (compression, layer.zfile()) {
            (None, None) => {}
            (Some(want), Some(file)) => {
                let got = file.info();
                prop_assert_eq!(got.block_size, want.block_size);
                prop_assert_eq!(got.verify, want.checksums);
                prop_assert!(got.digest && got.header_overwritten);
                prop_assert_eq!(got.blocks, stats.blocks);
                prop_assert_eq!((got.flags_header, got.flags_trailer), (0x1b, 0x16));
                // The header alone says how long it is.
                let from = layer.payload_offset() as usize;
                let mut device = bytes[from..].to_vec();
                device.resize(device.len() + 1000, 0);
                let size = zfile::size_on_device::<obd_host::Hardware, _>(&Bytes(device));
                prop_assert_eq!(size, Ok(got.stored_size));
            }
            _ => prop_assert!(false, "compressed or not"),
        }

        let image_back = stack([bytes.clone()]);
        prop_assert!(read(&image_back) == image.bytes, "content differs");
        // A layer of a layer is that layer.
        let (copy, _) = write(&ImageSource::new(&image_back), &options);
        prop_assert!(copy == bytes, "commit of a commit differs");
    }

    #[test]
    fn stacks(lower in images(), upper in images(), threads in 1usize..4) {
        let options = Options::default();
        let layers = [write(&lower, &options).0, write(&upper, &options).0];
        let image = stack(layers);
        let merged = write(&ImageSource::new(&image), &Options {
            threads: NonZero::new(threads).unwrap(),
            ..options
        });
        prop_assert!(read(&stack([merged.0])) == read(&image), "content differs");
    }
}

#[test]
fn one_to_eight_threads() {
    let image = full((5 << 20) + 512, 7);
    for algorithm in [Algorithm::Lz4, Algorithm::Zstd] {
        for block_size in [4 << 10, 64 << 10] {
            let layer = |threads| {
                let options = Options {
                    compression: Some(Compression {
                        algorithm,
                        block_size,
                        checksums: true,
                    }),
                    threads: NonZero::new(threads).unwrap(),
                    ..Options::default()
                };
                write(&image, &options).0
            };
            let one = layer(1);
            for threads in 2..=8 {
                assert!(layer(threads) == one, "{algorithm:?}, {threads} threads");
            }
            assert!(read(&stack([one])) == image.bytes);
        }
    }
}

/// Upstream's readers refuse such blocks, so it must be known that there are.
#[test]
fn blocks_that_grew_are_counted() {
    let mut image = full(1 << 20, 1);
    let mut rng = fastrand::Rng::with_seed(3);
    image.bytes.iter_mut().for_each(|byte| *byte = rng.u8(..));
    let stats = |block_size| {
        let options = Options {
            compression: Some(Compression {
                block_size,
                ..Compression::default()
            }),
            ..Options::default()
        };
        let (layer, stats) = write(&image, &options);
        assert!(read(&stack([layer])) == image.bytes);
        stats
    };
    // The first and the last block have zeros of header and index in them.
    assert_eq!(stats(64 << 10).oversized_blocks, 15);
    assert_eq!(stats(32 << 10).oversized_blocks, 0);
    assert_eq!(stats(4 << 10).longest_block, 4114 + 4);
}

#[test]
fn what_is_lent_is_not_copied() {
    let mut image = full(1 << 20, 2);
    image.lends = true;
    let (_, stats) = write(&image, &Options::default());
    assert_eq!((stats.data, stats.copied), (1 << 20, 0));
    image.lends = false;
    let (_, stats) = write(&image, &Options::default());
    assert_eq!((stats.data, stats.copied), (1 << 20, 1 << 20));
}
