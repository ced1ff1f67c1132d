// SPDX-License-Identifier: GPL-2.0 OR MIT

use super::*;
use crate::testing::Heap;
use proptest::prelude::*;

fn segments(list: &[(u64, u64, u64)]) -> Vec<Segment> {
    list.iter()
        .map(|(lba, len, moffset)| Segment::new(*lba, *len, *moffset, false, 0))
        .collect()
}

/// Bottom to top.
fn merge(layers: &[Vec<Segment>], sectors: u64) -> Index<Heap> {
    Index::merge(|| layers.iter().map(Vec::as_slice), sectors).unwrap()
}

fn all(index: &Index<Heap>) -> Vec<(u64, u64, u64, u8)> {
    (0..index.len())
        .map(|i| index.get(i).unwrap())
        .map(|s| (s.lba(), s.len(), s.moffset(), s.layer()))
        .collect()
}

/// `{lba, len, moffset}` of the data in a range, as upstream's lookup has it.
fn lookup(index: &Index<Heap>, lba: u64, len: u64) -> Vec<(u64, u64, u64)> {
    index
        .pieces(lba, len)
        .filter_map(|piece| match piece.what {
            Contents::Data { sector, .. } => Some((piece.lba, piece.len, sector)),
            Contents::Hole | Contents::Zeros => None,
        })
        .collect()
}

/// `lsmt/test/test.cpp`, `Index.lookup`.
#[test]
fn upstream_lookup() {
    let index = merge(
        &[segments(&[(0, 10, 0), (10, 10, 50), (100, 10, 20)])],
        1000,
    );
    assert_eq!(lookup(&index, 5, 10), [(5, 5, 5), (10, 5, 50)]);
    assert_eq!(lookup(&index, 16, 10), [(16, 4, 56)]);
    assert_eq!(lookup(&index, 26, 10), []);
    assert_eq!(
        lookup(&index, 6, 100),
        [(6, 4, 6), (10, 10, 50), (100, 6, 20)]
    );
}

/// `lsmt/test/test.cpp`, `Index0.insert`: entries in the order of writing.
#[test]
fn upstream_insert() {
    let log = segments(&[
        (0, 20, 0),
        (10, 15, 50),
        (30, 100, 20),
        (5, 10, 3),
        (40, 10, 123),
        (200, 10, 2133),
        (150, 100, 21),
    ]);
    let flat = flatten::<Heap, _, _>(|| log.chunks(1).map(|entry| (0, entry))).unwrap();
    let want = segments(&[
        (0, 5, 0),
        (5, 10, 3),
        (15, 10, 55),
        (30, 10, 20),
        (40, 10, 123),
        (50, 80, 40),
        (150, 100, 21),
    ]);
    assert_eq!(flat.as_slice(), want);
}

/// `lsmt/test/test.cpp`, `Index.merge`: top to bottom there, and the tags are
/// those of its combo index, with the read-write layer's last.
#[test]
fn upstream_merge() {
    let layers = [
        segments(&[(5, 5, 0), (10, 10, 50), (100, 10, 20)]),
        segments(&[
            (0, 1, 7),
            (2, 4, 5),
            (15, 10, 22),
            (30, 15, 89),
            (87, 50, 32),
            (150, 10, 84),
        ]),
        segments(&[
            (1, 3, 134),
            (8, 4, 873),
            (18, 72, 320),
            (100, 100, 4893),
            (1000, 1000, 39823),
        ]),
        segments(&[
            (23, 10, 0),
            (65, 10, 50),
            (89, 10, 20),
            (230, 43, 432),
            (1999, 31, 2393),
        ]),
    ];
    let tagged = |count: usize| {
        let bottom_up: Vec<_> = layers[..count].iter().rev().cloned().collect();
        all(&merge(&bottom_up, 1 << 20))
            .into_iter()
            .map(|(lba, len, moffset, layer)| {
                let from_top = count - 1 - usize::from(layer);
                let tag = if from_top == 0 {
                    count - 1
                } else {
                    from_top - 1
                };
                (lba, len, moffset, tag)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        tagged(2),
        [
            (0, 1, 7, 0),
            (2, 3, 5, 0),
            (5, 5, 0, 1),
            (10, 10, 50, 1),
            (20, 5, 27, 0),
            (30, 15, 89, 0),
            (87, 13, 32, 0),
            (100, 10, 20, 1),
            (110, 27, 55, 0),
            (150, 10, 84, 0),
        ]
    );
    assert_eq!(
        tagged(4),
        [
            (0, 1, 7, 0),
            (1, 1, 134, 1),
            (2, 3, 5, 0),
            (5, 5, 0, 3),
            (10, 10, 50, 3),
            (20, 5, 27, 0),
            (25, 5, 327, 1),
            (30, 15, 89, 0),
            (45, 42, 347, 1),
            (87, 13, 32, 0),
            (100, 10, 20, 3),
            (110, 27, 55, 0),
            (137, 13, 4930, 1),
            (150, 10, 84, 0),
            (160, 40, 4953, 1),
            (230, 43, 432, 2),
            (1000, 1000, 39823, 1),
            (2000, 30, 2394, 2),
        ]
    );
}

/// Upstream reads images of 2 TiB and more with 32-bit keys.
#[test]
fn addresses_beyond_2_tib() {
    let far = [
        (0, 8, 8),
        ((1 << 32) - 4, 8, 16),
        (1 << 32 | 8, 8, 24),
        (3 << 32 | 8, 8, 32),
        ((1 << 50) - 9, 8, 40),
    ];
    let sectors = (1 << 50) - 1;
    let index = merge(&[segments(&far)], sectors);
    for (lba, len, moffset) in far {
        assert_eq!(lookup(&index, lba, len), [(lba, len, moffset)]);
        assert_eq!(lookup(&index, lba + 3, 1), [(lba + 3, 1, moffset + 3)]);
    }
    // The same low 32 bits as the first segment, and nothing there.
    assert_eq!(lookup(&index, 2 << 32, 8), []);
    assert_eq!(lookup(&index, 0, sectors), far);
}

/// The last sizes with keys of 32 bits, the first with 64, and where upstream's
/// 32 bits end.
#[test]
fn addresses_about_1_and_2_tib() {
    let (one, two) = (1u64 << 31, 1u64 << 32);
    for sectors in [one - 2, one - 1, one, one + 1, two - 1, two, two + 1] {
        let last = sectors - 8;
        let index = merge(&[segments(&[(0, 8, 8), (last, 8, 16)])], sectors);
        assert_eq!(lookup(&index, last, 8), [(last, 8, 16)], "{sectors}");
        assert_eq!(lookup(&index, sectors - 1, 1), [(sectors - 1, 1, 23)]);
        assert_eq!(lookup(&index, last - 1, 1), []);
    }
}

#[test]
fn segments_beyond_the_image() {
    let index = merge(&[segments(&[(0, 8, 8), (90, 20, 16), (200, 8, 36)])], 100);
    assert_eq!(all(&index), [(0, 8, 8, 0), (90, 10, 16, 0)]);
    let piece = |lba, len, what| Piece { lba, len, what };
    let data = Contents::Data {
        layer: 0,
        sector: 18,
    };
    let pieces: Vec<_> = index.pieces(92, 20).collect();
    assert_eq!(pieces, [piece(92, 8, data), piece(100, 12, Contents::Hole)]);
    assert_eq!(index.pieces(u64::MAX, 5).count(), 0);
    assert_eq!(index.pieces(150, 5).count(), 1);
}

#[test]
fn nothing_and_no_layers() {
    let index = merge(&[], 100);
    assert!(index.is_empty());
    assert_eq!(index.pieces(0, 0).count(), 0);
    assert_eq!(index.pieces(3, 5).count(), 1);
    assert!(merge(&[vec![], vec![]], 100).is_empty());
}

/// Sizes at which the tree gets another node or another level.
#[test]
fn tree_sizes() {
    for count in [
        1, 2, 31, 32, 33, 1023, 1024, 1025, 32_767, 32_768, 32_769, 70_000,
    ] {
        let list: Vec<_> = (0..count)
            .map(|i| Segment::new(10 * i + 5, 3, 8 + 3 * i, false, 0))
            .collect();
        for sectors in [10 * count + 10, 1 << 40] {
            let index = merge(std::slice::from_ref(&list), sectors);
            assert_eq!(index.len() as u64, count);
            for i in (0..count)
                .step_by(1 + count as usize / 1000)
                .chain([count - 1])
            {
                let lba = 10 * i + 5;
                assert_eq!(lookup(&index, lba, 3), [(lba, 3, 8 + 3 * i)]);
                assert_eq!(lookup(&index, lba + 2, 1), [(lba + 2, 1, 10 + 3 * i)]);
                assert_eq!(lookup(&index, lba + 3, 7), []);
                assert_eq!(lookup(&index, lba - 1, 1), []);
            }
        }
    }
}

#[test]
fn memory_per_segment() {
    let list: Vec<_> = (0..1 << 16)
        .map(|i| Segment::new(10 * i, 3, 8, false, 0))
        .collect();
    let narrow = merge(std::slice::from_ref(&list), 1 << 30);
    assert!(narrow.memory() < 13 * list.len(), "{}", narrow.memory());
    let wide = merge(std::slice::from_ref(&list), 1 << 40);
    assert!(wide.memory() < 17 * list.len(), "{}", wide.memory());
}

/// One layer: sorted segments in a small image, with the data sectors one
/// behind the other, some zeroed.
fn layer(sectors: u64) -> impl Strategy<Value = Vec<Segment>> {
    proptest::collection::vec((0u64..12, 1u64..20, proptest::bool::weighted(0.2)), 0..40).prop_map(
        move |list| {
            let (mut lba, mut moffset) = (0, 8);
            let mut segments = Vec::new();
            for (gap, len, zeroed) in list {
                lba += gap;
                if lba + len > sectors {
                    break;
                }
                segments.push(Segment::new(lba, len, moffset, zeroed, 0));
                lba += len;
                moffset += if zeroed { 0 } else { len };
            }
            segments
        },
    )
}

/// What a sector holds, by looking at every layer from the top.
fn model(layers: &[Vec<Segment>], sectors: u64, lba: u64) -> Contents {
    if lba >= sectors {
        return Contents::Hole;
    }
    for (i, layer) in layers.iter().enumerate().rev() {
        for segment in layer {
            if (segment.lba()..segment.end()).contains(&lba) {
                return match segment.is_zeroed() {
                    true => Contents::Zeros,
                    false => Contents::Data {
                        layer: i as u8,
                        sector: segment.moffset() + lba - segment.lba(),
                    },
                };
            }
        }
    }
    Contents::Hole
}

proptest! {
    #[test]
    fn equals_the_model(
        layers in proptest::collection::vec(layer(400), 1..9),
        sectors in prop_oneof![Just(400u64), 200u64..500, Just(1 << 40)],
        ranges in proptest::collection::vec((0u64..520, 1u64..100), 1..20),
    ) {
        let index = merge(&layers, sectors);
        for (start, len) in ranges.into_iter().chain([(0, 520)]) {
            let mut at = start;
            for piece in index.pieces(start, len) {
                prop_assert_eq!(piece.lba, at);
                prop_assert!(piece.len > 0);
                for i in 0..piece.len {
                    let got = match piece.what {
                        Contents::Data { layer, sector } => Contents::Data {
                            layer,
                            sector: sector + i,
                        },
                        other => other,
                    };
                    prop_assert_eq!(got, model(&layers, sectors, at + i), "sector {}", at + i);
                }
                at += piece.len;
            }
            prop_assert_eq!(at, start + len);
        }
    }

    #[test]
    fn a_log_is_its_last_writes(
        log in proptest::collection::vec((0u64..200, 1u64..30, 0u64..1000), 0..60),
    ) {
        let log = segments(&log);
        let flat = flatten::<Heap, _, _>(|| log.chunks(1).map(|entry| (0, entry))).unwrap();
        let by_runs = flatten::<Heap, _, _>(|| {
            log.chunk_by(|a, b| a.end() <= b.lba()).map(|run| (0, run))
        })
        .unwrap();
        let mut sectors = vec![None; 240];
        for entry in &log {
            for i in 0..entry.len() {
                sectors[(entry.lba() + i) as usize] = Some(entry.moffset() + i);
            }
        }
        for flat in [flat.as_slice(), by_runs.as_slice()] {
            prop_assert!(flat.windows(2).all(|pair| pair[0].end() <= pair[1].lba()));
            let mut got = vec![None; 240];
            for segment in flat {
                for i in 0..segment.len() {
                    got[(segment.lba() + i) as usize] = Some(segment.moffset() + i);
                }
            }
            prop_assert_eq!(&got, &sectors);
        }
    }
}
