// SPDX-License-Identifier: MIT

//! Images in memory, and how to read layers back.

#![allow(dead_code, reason = "each test file uses its part")]

use obd_core::source::Bytes;
use obd_core::{
    Image,
    Layer,
    Scratch, //
};
use obd_host::Host;
use obd_writer::source::{
    Range,
    Source, //
};
use obd_writer::{
    Options,
    Stats,
    commit, //
};
use std::io;
use std::ops::ControlFlow;

pub(crate) type TestLayer = Layer<Bytes<Vec<u8>>, Host>;
pub(crate) type TestImage = Image<Bytes<Vec<u8>>, Host, Vec<TestLayer>>;

/// An image in memory.
#[derive(Clone)]
pub(crate) struct Memory {
    /// All of it, zeros where there is no data.
    pub(crate) bytes: Vec<u8>,
    pub(crate) ranges: Vec<Range>,
    /// Whether it lends its bytes.
    pub(crate) lends: bool,
    /// Reading this byte fails.
    pub(crate) bad: Option<u64>,
}

/// Without the bytes, of which there are too many to look at.
impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {:?}", self.bytes.len(), self.ranges)
    }
}

impl Source for Memory {
    type Error = io::Error;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn ranges(&self) -> io::Result<Vec<Range>> {
        Ok(self.ranges.clone())
    }

    fn workspace(&self) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if self.bad.is_some_and(|bad| (offset..end).contains(&bad)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buf.copy_from_slice(&self.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn in_memory(&self) -> bool {
        self.lends
    }

    fn borrow(&self, offset: u64, len: usize) -> Option<&[u8]> {
        Some(&self.bytes[offset as usize..][..len])
    }
}

/// Zeros, text and noise in turns.
pub(crate) fn fill(bytes: &mut [u8], rng: &mut fastrand::Rng) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = rng.usize(1..20_000).min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        match rng.u32(0..3) {
            0 => {}
            1 => now.iter_mut().for_each(|byte| *byte = rng.u8(b'a'..b'f')),
            _ => now.iter_mut().for_each(|byte| *byte = rng.u8(..)),
        }
        rest = later;
    }
}

/// An image of which everything is data.
pub(crate) fn full(size: usize, seed: u64) -> Memory {
    let mut bytes = vec![0; size];
    fill(&mut bytes, &mut fastrand::Rng::with_seed(seed));
    Memory {
        ranges: vec![Range {
            start: 0,
            end: size as u64,
            zeroed: false,
        }],
        bytes,
        lends: false,
        bad: None,
    }
}

/// Commits to memory.
pub(crate) fn write<S>(source: &S, options: &Options) -> (Vec<u8>, Stats)
where
    S: Source<Error: std::fmt::Debug>,
{
    let mut layer = Vec::new();
    let stats = commit(
        source,
        &mut layer,
        options,
        |_, _| ControlFlow::Continue(()),
    )
    .unwrap();
    assert_eq!(stats.stored, layer.len() as u64);
    (layer, stats)
}

/// Stacks layers, bottom to top.
pub(crate) fn stack(layers: impl IntoIterator<Item = Vec<u8>>) -> TestImage {
    let open = |bytes| TestLayer::open(Bytes(bytes)).unwrap();
    Image::new(layers.into_iter().map(open).collect::<Vec<_>>()).unwrap()
}

/// All bytes of an image.
pub(crate) fn read(image: &TestImage) -> Vec<u8> {
    let mut scratch = Scratch::new(image.needs()).unwrap();
    let mut bytes = vec![0xee; image.size() as usize];
    image.read_at(0, &mut bytes, &mut scratch).unwrap();
    bytes
}
