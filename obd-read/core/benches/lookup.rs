// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Look-up of one 4 KiB range in a merged index: segments of 8 to 64 sectors at
//! multiples of 8, with holes of 0 to 7 sectors; 2^20 random queries.

#[path = "common/cpu_time.rs"]
mod cpu_time;

use cpu_time::CpuTime;
use criterion::{
    BenchmarkId,
    Criterion,
    Throughput,
    criterion_group,
    criterion_main, //
};
use fastrand::Rng;
use obd_core::index::{
    Contents,
    Index, //
};
use obd_core::lsmt::Segment;
use obd_host::Heap;
use std::hint::black_box;

const QUERIES: usize = 1 << 20;

fn lookup(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("lookup");
    group.sample_size(10);
    group.throughput(Throughput::Elements(QUERIES as u64));
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        let mut rng = Rng::with_seed(count);
        let mut lba = 0;
        let mut segments = Vec::new();
        for i in 0..count {
            lba += rng.u64(0..8);
            let len = 8 * rng.u64(1..=8);
            segments.push(Segment::new(lba, len, 8 + 64 * i, false, 0));
            lba += len;
        }
        let sectors = lba.next_multiple_of(8);
        let index = Index::<Heap>::merge(|| [segments.as_slice()].into_iter(), sectors).unwrap();
        let queries: Vec<u64> = (0..QUERIES).map(|_| 8 * rng.u64(0..sectors / 8)).collect();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let mut sum = 0u64;
                for lba in &queries {
                    for piece in index.pieces(*lba, 8) {
                        if let Contents::Data { sector, .. } = piece.what {
                            sum = sum.wrapping_add(sector ^ piece.len);
                        }
                    }
                }
                black_box(sum)
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = lookup
}
criterion_main!(benches);
