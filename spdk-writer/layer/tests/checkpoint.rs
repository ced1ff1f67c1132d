// SPDX-License-Identifier: MIT

//! Going on where an interrupted layer got to.

mod common;

use common::Memory;
use obd_writer::source::Range;
use obd_writer::{
    Algorithm,
    Checkpoint,
    Compression,
    Error,
    Options,
    Prepared,
    Sink,
    commit, //
};
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;

/// Memory that notes every checkpoint.
#[derive(Default)]
struct Notes<'a> {
    bytes: Vec<u8>,
    lens: Vec<u32>,
    points: Option<&'a mut Vec<Checkpoint>>,
    finished: Option<&'a mut Vec<u8>>,
}

impl Sink for Notes<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn batch(&mut self, content: u64, lens: &[u32]) -> io::Result<()> {
        self.lens.extend(lens);
        if let Some(points) = &mut self.points {
            points.push(Checkpoint {
                content,
                stored: self.bytes.len() as u64,
                lens: self.lens.clone(),
            });
        }
        Ok(())
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        if let Some(finished) = self.finished {
            *finished = self.bytes;
        }
        Ok(())
    }
}

fn go(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn source() -> Memory {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut bytes = vec![0; 3 << 20];
    for word in bytes.chunks_mut(3) {
        word.fill(rng.u8(..));
    }
    let range = |start: u64, end: u64, zeroed| Range {
        start: start << 10,
        end: end << 10,
        zeroed,
    };
    Memory {
        bytes,
        ranges: vec![
            range(0, 700, false),
            range(700, 900, true),
            range(1000, 2500, false),
        ],
        lends: false,
        bad: None,
    }
}

#[test]
fn test_resume_behind_every_batch_gives_the_same_layer() {
    let source = source();
    let zstd = Compression {
        algorithm: Algorithm::Zstd,
        block_size: 32 << 10,
        checksums: false,
    };
    for compression in [None, Some(Compression::default()), Some(zstd)] {
        for (tar, threads) in [(false, 1), (true, 3)] {
            let options = Options {
                compression,
                tar,
                threads: NonZero::new(threads).unwrap(),
                ..Options::default()
            };
            let (mut points, mut whole) = (Vec::new(), Vec::new());
            let sink = Notes {
                points: Some(&mut points),
                finished: Some(&mut whole),
                ..Notes::default()
            };
            let stats = commit(&source, sink, &options, go).unwrap();
            assert!(points.len() >= 9, "{}", points.len());
            let prepared = Prepared::new(&source, &options).unwrap();
            assert_eq!(prepared.content(), stats.content);
            assert!(prepared.most_stored() >= stats.stored);
            for point in points {
                let mut again = Vec::new();
                // What is written again in the end is not there yet.
                let front = match (tar, compression) {
                    (true, Some(_)) => 2048,
                    (true, None) => 1536,
                    (false, Some(_)) => 512,
                    (false, None) => 0,
                };
                let mut there = whole[..point.stored as usize].to_vec();
                there[..front].fill(0);
                let sink = Notes {
                    bytes: there,
                    finished: Some(&mut again),
                    ..Notes::default()
                };
                let resumed = prepared.write(sink, Some(point.clone()), go).unwrap();
                assert!(again == whole, "{}", point.content);
                assert_eq!(resumed.stored, stats.stored);
                assert_eq!(resumed.longest_block, stats.longest_block);
                assert_eq!(resumed.blocks, stats.blocks);
            }
        }
    }
}

#[test]
fn test_resume_what_does_not_fit_is_refused() {
    let source = source();
    let options = Options::default();
    let mut points = Vec::new();
    let sink = Notes {
        points: Some(&mut points),
        ..Notes::default()
    };
    commit(&source, sink, &options, go).unwrap();
    let good = points[3].clone();
    let prepared = Prepared::new(&source, &options).unwrap();
    type Change = fn(&mut Checkpoint);
    let changes: [Change; 6] = [
        |point| point.content += 4096,
        |point| point.content = 1 << 40,
        |point| point.stored += 1,
        |point| point.lens[5] += 1,
        |point| point.lens.truncate(7),
        |point| point.lens.push(100),
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = prepared.write(Notes::default(), Some(bad), go);
        assert!(
            matches!(refused, Err(Error::Checkpoint { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn test_layout_tells_other_layers_apart() {
    let options = Options::default();
    let first = source();
    let layout =
        |source: &Memory, options: &Options| Prepared::new(source, options).unwrap().layout();
    let mut other = first.clone();
    other.ranges.pop();
    let named = Options {
        message: "x".into(),
        ..options.clone()
    };
    assert_eq!(layout(&first, &options), layout(&source(), &options));
    assert_ne!(layout(&first, &options), layout(&other, &options));
    assert_ne!(layout(&first, &options), layout(&first, &named));
}
