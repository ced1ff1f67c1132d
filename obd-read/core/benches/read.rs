// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Random reads of 4 KiB from memory, checksums on: one zfile, and a stack of
//! three layers with 41k segments. The stored bytes are copied out of memory
//! (`copy`), as from a page cache, or used where they are (`borrow`). `C` is what no
//! reader with LZ4's own decoder can do without, and all that it does: the checksum
//! and the decoder on the same blocks.

#[path = "common/cpu_time.rs"]
mod cpu_time;
#[path = "common/images.rs"]
mod images;

use cpu_time::CpuTime;
use criterion::{
    Criterion,
    criterion_group,
    criterion_main, //
};
use fastrand::Rng;
use obd_core::source::{
    Bytes,
    Outside,
    Window, //
};
use obd_core::{
    Crc32c,
    Image,
    Layer,
    Scratch,
    Source,
    ZFile, //
};
use obd_host::{
    Hardware,
    Host, //
};
use std::hint::black_box;

/// Memory that cannot be borrowed from.
struct Copied(Vec<u8>);

impl Source for Copied {
    type Error = Outside;

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Outside> {
        Bytes(self.0.as_slice()).read_exact_at(offset, buf)
    }
}

const SIZE: usize = 256 << 20;
/// Size of the stacked image.
const IMAGE: u64 = 336 << 20;

fn bench_zfile<S: Source<Error = Outside>>(
    criterion: &mut Criterion<CpuTime>,
    name: &str,
    source: S,
) {
    let file = ZFile::<_, Host>::open(Window::whole(source)).unwrap();
    let mut scratch = Scratch::new(file.needs()).unwrap();
    let mut rng = Rng::with_seed(2);
    let offsets: Vec<u64> = (0..1 << 16)
        .map(|_| 4096 * rng.u64(0..file.size() / 4096))
        .collect();
    let mut buf = [0; 4096];
    let mut next = offsets.iter().cycle();
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            let offset = *next.next().unwrap();
            file.read_at(offset, &mut buf, &mut scratch).unwrap();
            black_box(buf[0])
        });
    });
}

/// Checksums and decodes the blocks of `file`, whose places are known.
fn bench_c(criterion: &mut Criterion<CpuTime>, name: &str, file: &[u8]) {
    let zfile = ZFile::<_, Host>::open(Window::whole(Bytes(file))).unwrap();
    let mut rng = Rng::with_seed(2);
    let blocks: Vec<(usize, usize)> = (0..1 << 16)
        .map(|_| {
            let extent = zfile.extent(rng.u64(0..zfile.info().blocks)).unwrap();
            (extent.offset as usize, extent.len as usize - 4)
        })
        .collect();
    let mut buf = [0; 4096];
    let mut next = blocks.iter().cycle();
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            let (offset, len) = *next.next().unwrap();
            let (packed, crc) = file[offset..offset + len + 4].split_at(len);
            assert_eq!(Hardware::crc32c(100_007, packed).to_le_bytes(), crc);
            let got = lz4::block::decompress_to_buffer(packed, Some(4096), &mut buf);
            assert_eq!(got.unwrap(), 4096);
            black_box(buf[0])
        });
    });
}

fn zfile(criterion: &mut Criterion<CpuTime>) {
    let content = images::mixed(SIZE, &mut Rng::with_seed(1));
    let file = images::zfile(&content, 4096);
    println!("{} bytes stored as {}", content.len(), file.len());
    bench_c(criterion, "zfile lz4 4k/C", &file);
    bench_zfile(criterion, "zfile lz4 4k/copy", Copied(file.clone()));
    bench_zfile(criterion, "zfile lz4 4k/borrow", Bytes(file));
    let file = images::zfile(&content[..64 << 20], 64 << 10);
    bench_zfile(criterion, "zfile lz4 64k/borrow", Bytes(file));
}

fn stack(criterion: &mut Criterion<CpuTime>) {
    let mut rng = Rng::with_seed(3);
    let layers = (0..3)
        .map(|_| {
            // Segments of 4 to 16 KiB, holes of 4 to 16.
            let (mut lba, mut segments, mut sectors) = (0, Vec::new(), 0);
            loop {
                lba += 8 * rng.u64(1..=4);
                let len = 8 * rng.u64(1..=4);
                if (lba + len) * 512 > IMAGE {
                    break;
                }
                segments.push((lba, len));
                lba += len;
                sectors += len;
            }
            let data = images::mixed(sectors as usize * 512, &mut rng);
            let file = images::lsmt(&segments, &data, IMAGE);
            Layer::<_, Host>::open(Copied(images::zfile(&file, 4096))).unwrap()
        })
        .collect::<Vec<_>>();
    let image = Image::new(layers).unwrap();
    println!("{} segments", image.index().len());
    let mut scratch = Scratch::new(image.needs()).unwrap();
    let offsets: Vec<u64> = (0..1 << 16)
        .map(|_| 4096 * rng.u64(0..image.size() / 4096))
        .collect();
    let mut buf = [0; 4096];
    let mut next = offsets.iter().cycle();
    criterion.bench_function("stack of 3 lz4 4k/copy", |bencher| {
        bencher.iter(|| {
            let offset = *next.next().unwrap();
            image.read_at(offset, &mut buf, &mut scratch).unwrap();
            black_box(buf[0])
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = zfile, stack
}
criterion_main!(benches);
