// SPDX-License-Identifier: MIT

//! Commit of a fully written mixed image of 256 MiB from memory to memory, as
//! upstream's was measured. Data is copied out of the source, as from a file in
//! the page cache, or lent (`lent`), as from memory shared with a device.
//!
//! Besides Criterion's estimate the best run is printed: on a machine that
//! others use as well it says more about the code.

#[expect(dead_code, reason = "the images only")]
#[path = "../../../obd-read/core/benches/common/images.rs"]
mod images;

use criterion::{
    Criterion,
    Throughput,
    criterion_group,
    criterion_main, //
};
use obd_writer::source::{
    Range,
    Source, //
};
use obd_writer::{
    Algorithm,
    Compression,
    Options,
    commit, //
};
use rustix::time::{
    ClockId,
    clock_gettime, //
};
use std::convert::Infallible;
use std::hint::black_box;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::time::{
    Duration,
    Instant, //
};

const SIZE: usize = 256 << 20;

struct Memory {
    bytes: Vec<u8>,
    lends: bool,
}

impl Source for Memory {
    type Error = Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn ranges(&self) -> Result<Vec<Range>, Infallible> {
        Ok(vec![Range {
            start: 0,
            end: self.size(),
            zeroed: false,
        }])
    }

    fn workspace(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> Result<(), Infallible> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn in_memory(&self) -> bool {
        self.lends
    }

    fn borrow(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.bytes.get(offset as usize..)?.get(..len)
    }
}

/// Processor time of all threads.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

fn bench(criterion: &mut Criterion) {
    let mut source = Memory {
        bytes: images::mixed(SIZE, &mut fastrand::Rng::with_seed(1)),
        lends: false,
    };
    let how = |algorithm, kib: u32| {
        Some(Compression {
            algorithm,
            block_size: kib << 10,
            checksums: true,
        })
    };
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Bytes(SIZE as u64));
    group.sample_size(10);
    for (name, compression, threads, lends) in [
        ("lz4 4k/1", how(Algorithm::Lz4, 4), 1, false),
        ("lz4 4k/1 lent", how(Algorithm::Lz4, 4), 1, true),
        ("lz4 4k/2", how(Algorithm::Lz4, 4), 2, false),
        ("lz4 4k/2 lent", how(Algorithm::Lz4, 4), 2, true),
        ("lz4 64k/1", how(Algorithm::Lz4, 64), 1, false),
        ("zstd 4k/1", how(Algorithm::Zstd, 4), 1, false),
        ("zstd 4k/2", how(Algorithm::Zstd, 4), 2, false),
        ("no zfile/1", None, 1, false),
    ] {
        source.lends = lends;
        let options = Options {
            compression,
            threads: NonZero::new(threads).unwrap(),
            ..Options::default()
        };
        let mut layer = Vec::with_capacity(SIZE + SIZE / 16);
        let mut best = Duration::MAX;
        let mut least = Duration::MAX;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    layer.clear();
                    let (start, busy) = (Instant::now(), cpu());
                    let go = |_, _| ControlFlow::Continue(());
                    black_box(commit(&source, &mut layer, &options, go).unwrap());
                    let took = start.elapsed();
                    least = least.min(cpu() - busy);
                    best = best.min(took);
                    sum += took;
                }
                sum
            });
        });
        if best < Duration::MAX {
            println!(
                "{name}: best {:.0} MiB/s, {:.2} CPU seconds per GiB, {} bytes",
                (SIZE >> 20) as f64 / best.as_secs_f64(),
                least.as_secs_f64() * 4.0,
                layer.len()
            );
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
