// SPDX-License-Identifier: MIT
//! Workloads: first every operation by itself before every kind of sync, then
//! writes to a file that has its blocks, then random sequences.

use aios_guest::crash::{
    Op,
    Plan,
    Range, //
};
use aios_guest::synced::SyncedWrite;
use fastrand::Rng;
use std::collections::BTreeMap;

/// Size of a block of the file system, bytes.
const BLOCK: u32 = 4096;
/// Files grow to this size, bytes.
const MAX_SIZE: u32 = 16 * BLOCK;
/// Folders that the file system is made with: threads of a plan at most.
pub const MAX_THREADS: usize = 3;

/// Plan number `number` of a run that was given `seed`: the first four are
/// systematic, the others random.
pub fn plan(seed: u64, number: u64) -> Plan {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let seed = rng.u64(..);
    let threads = match number {
        0 => vec![singles(Op::Fsync)],
        1 => vec![singles(Op::Fdatasync)],
        2 => vec![singles(|_| Op::Sync)],
        3 => vec![overwrites()],
        _ => {
            let threads = [1, 1, 2, MAX_THREADS][rng.usize(..4)];
            // Two to eight names in all.
            let names = rng.u8(2..=8).div_ceil(threads as u8).max(2);
            let length = rng.usize(8..=36) / threads + 4;
            (0..threads)
                .map(|_| Sequence::random(&mut rng, names, length))
                .collect()
        }
    };
    Plan { seed, threads }
}

/// Plan number `number` of those where files have all of their blocks, in a full
/// commit, before anything is synced by itself: overwrites, and appends within
/// the last block. So fast commits hold inodes and nothing else.
pub fn plain(seed: u64, number: u64) -> Plan {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let seed = rng.u64(..);
    if number == 0 {
        let threads = vec![overwrites()];
        return Plan { seed, threads };
    }
    let mut sizes: Vec<u32> = (0..rng.usize(1..=3))
        .map(|_| BLOCK * rng.u32(2..8) + rng.u32(1..600))
        .collect();
    let mut ops = Vec::new();
    for (name, &length) in (0..).zip(&sizes) {
        ops.extend([
            Op::Create(name),
            Op::Write(name, Range { offset: 0, length }),
        ]);
    }
    ops.push(Op::Sync);
    for _ in 0..rng.usize(10..=40) {
        let file = rng.usize(..sizes.len());
        let (name, size) = (file as u8, sizes[file]);
        let whole = Range {
            offset: BLOCK * rng.u32(..size / BLOCK),
            length: BLOCK,
        };
        ops.push(match rng.u8(..26) {
            0..3 => {
                let offset = rng.u32(..size);
                let length = rng.u32(1..=BLOCK).min(size - offset);
                Op::Write(name, Range { offset, length })
            }
            3..5 => Op::Write(name, whole),
            5..9 => {
                let room = size.next_multiple_of(BLOCK) - size;
                let length = rng.u32(1..=300).min(room);
                let offset = size;
                sizes[file] += length;
                match room {
                    0 => Op::Write(name, whole),
                    _ => Op::Write(name, Range { offset, length }),
                }
            }
            9 => Op::Direct(name, whole),
            10 => Op::Store(name, whole),
            11..13 => Op::WriteBack(name),
            13..17 => Op::Fsync(name),
            17..20 => Op::Fdatasync(name),
            20..22 => Op::SyncedWrite(name, whole, synced_write(&mut rng)),
            22 => Op::SyncedDirect(name, whole, synced_write(&mut rng)),
            23 => Op::UringFsync(name),
            24 => Op::UringFdatasync(name),
            _ => Op::SyncFileRange(name, whole),
        });
    }
    let threads = vec![ops];
    Plan { seed, threads }
}

/// One of the ways to write and sync in one call.
fn synced_write(rng: &mut Rng) -> SyncedWrite {
    SyncedWrite::ALL[rng.usize(..SyncedWrite::ALL.len())]
}

/// Each operation by itself on files that are durable, then a sync of what it
/// changed.
fn singles(sync: impl Fn(u8) -> Op) -> Vec<Op> {
    let range = |offset, length| Range { offset, length };
    let cases: [&[Op]; 11] = [
        &[Op::Write(0, range(0, BLOCK))],
        &[Op::Write(0, range(3 * BLOCK, 2 * BLOCK))],
        &[Op::Write(0, range(6 * BLOCK + 100, 50))],
        &[Op::Allocate(0, range(2 * BLOCK, 4 * BLOCK), false)],
        &[Op::Allocate(0, range(2 * BLOCK, 4 * BLOCK), true)],
        &[Op::Punch(0, range(BLOCK, BLOCK))],
        &[Op::Truncate(0, BLOCK + 10)],
        &[Op::Truncate(0, 5 * BLOCK)],
        &[Op::Link(0, 2)],
        &[Op::Rename(1, 0), Op::Create(1)],
        &[Op::Rename(0, 3), Op::Unlink(1), Op::Rename(3, 0)],
    ];
    let mut ops = Vec::new();
    for case in cases {
        ops.extend([Op::Create(0), Op::Write(0, range(0, 3 * BLOCK))]);
        ops.extend([Op::Create(1), Op::Write(1, range(0, 700)), Op::Sync]);
        ops.extend(case);
        ops.push(sync(0));
        // What is left goes, so that the next case begins as this one did.
        let left: &[u8] = match case {
            [Op::Link(..)] => &[0, 1, 2],
            [.., Op::Unlink(_), _] => &[0],
            _ => &[0, 1],
        };
        ops.extend(left.iter().map(|&name| Op::Unlink(name)));
    }
    ops.extend([
        Op::Create(0),
        Op::Write(0, range(0, 2 * BLOCK)),
        Op::Store(0, range(BLOCK - 8, 16)),
    ]);
    ops
}

/// Syncs of a file that has all of its blocks, with nothing to commit: after
/// its data was written by the sync alone, by others before, and by both.
fn overwrites() -> Vec<Op> {
    let block = |number| Range {
        offset: number * BLOCK,
        length: BLOCK,
    };
    let few = Range {
        offset: 2 * BLOCK + 7,
        length: 2 * BLOCK,
    };
    let cases: [&[Op]; 10] = [
        &[Op::Write(0, block(0))],
        &[Op::Write(0, few)],
        &[Op::Write(0, block(1)), Op::WriteBack(0)],
        &[
            Op::Write(0, block(2)),
            Op::WriteBack(0),
            Op::Write(0, block(3)),
        ],
        &[Op::Direct(0, block(4))],
        &[Op::Direct(0, block(5)), Op::Write(0, block(6))],
        &[
            Op::Write(0, block(7)),
            Op::WriteBack(0),
            Op::Write(0, block(7)),
        ],
        &[Op::Write(0, block(0)), Op::UringFdatasync(0)],
        &[Op::Write(0, block(1)), Op::UringFsync(0)],
        &[Op::Write(0, block(2)), Op::SyncFileRange(0, block(2))],
    ];
    let all = Range {
        offset: 0,
        length: 8 * BLOCK,
    };
    let mut ops = vec![Op::Create(0), Op::Write(0, all), Op::Sync];
    for case in cases {
        // What was written before is durable, one way and the other.
        ops.push(Op::Fdatasync(0));
        ops.extend(case);
        ops.push(Op::Fdatasync(0));
    }
    // Writes that are syncs: of what nobody wrote before, and of what is in the cache.
    for (number, how) in (0..).zip(SyncedWrite::ALL) {
        ops.extend([
            Op::SyncedWrite(0, block(number), how),
            Op::SyncedDirect(0, block(number + 4), how),
            Op::Direct(0, block(number)),
            Op::SyncedWrite(0, block(number), how),
        ]);
    }
    ops.extend([Op::WriteBack(0), Op::Store(0, few)]);
    ops
}

/// A random sequence in the making.
struct Sequence<'a> {
    rng: &'a mut Rng,
    names: u8,
    /// File behind each name.
    files: BTreeMap<u8, usize>,
    /// Size of each file.
    sizes: Vec<u32>,
    ops: Vec<Op>,
}

impl<'a> Sequence<'a> {
    fn random(rng: &'a mut Rng, names: u8, length: usize) -> Vec<Op> {
        let mut sequence = Self {
            rng,
            names,
            files: BTreeMap::new(),
            sizes: Vec::new(),
            ops: Vec::new(),
        };
        while sequence.ops.len() < length {
            sequence.step();
        }
        sequence.ops
    }

    fn step(&mut self) {
        let free = (0..self.names).find(|name| !self.files.contains_key(name));
        let taken: Vec<u8> = self.files.keys().copied().collect();
        let Some(&name) = self.rng.choice(&taken) else {
            return self.create(0);
        };
        let file = self.files[&name];
        let size = self.sizes[file];
        match self.rng.u8(..128) {
            0..8 => {
                if let Some(free) = free {
                    self.create(free);
                }
            }
            8..24 => {
                let range = self.range(size);
                self.write(name, file, range);
            }
            24..40 => {
                let length = self.length();
                self.write(
                    name,
                    file,
                    Range {
                        offset: size,
                        length,
                    },
                );
            }
            40..46 => {
                let (range, keep) = (self.range(MAX_SIZE), self.rng.bool());
                let end = range.offset + range.length;
                if end <= MAX_SIZE {
                    self.ops.push(Op::Allocate(name, range, keep));
                    if !keep {
                        self.sizes[file] = size.max(end);
                    }
                }
            }
            46..51 if size > 0 => {
                let range = self.range(size);
                self.ops.push(Op::Punch(name, range));
            }
            51..57 => {
                let to = if self.rng.bool() {
                    self.rng.u32(0..=size)
                } else {
                    self.rng.u32(0..=MAX_SIZE / BLOCK) * BLOCK
                };
                self.ops.push(Op::Truncate(name, to));
                self.sizes[file] = to;
            }
            57..62 => {
                let to = self.rng.u8(0..self.names);
                // Renaming one of two names of a file to the other does nothing.
                if self.files.get(&to) != Some(&file) {
                    self.ops.push(Op::Rename(name, to));
                    self.files.remove(&name);
                    self.files.insert(to, file);
                }
            }
            62..65 => {
                if let Some(free) = free {
                    self.ops.push(Op::Link(name, free));
                    self.files.insert(free, file);
                }
            }
            65..69 => {
                self.ops.push(Op::Unlink(name));
                self.files.remove(&name);
            }
            69..73 if size > 0 => {
                let range = self.range(size);
                let length = range.length.min(size - range.offset);
                self.ops.push(Op::Store(name, Range { length, ..range }));
            }
            73..87 => self.ops.push(Op::Fsync(name)),
            87..97 => self.ops.push(Op::Fdatasync(name)),
            97..100 => self.ops.push(Op::Sync),
            100..106 => self.ops.push(Op::WriteBack(name)),
            106..110 => {
                let range = self.blocks(size);
                self.write_as(Op::Direct(name, range), file, range);
            }
            110..115 => {
                let (range, how) = (self.range(size), synced_write(self.rng));
                self.write_as(Op::SyncedWrite(name, range, how), file, range);
            }
            115..118 => {
                let (length, how) = (self.length(), synced_write(self.rng));
                let range = Range {
                    offset: size,
                    length,
                };
                self.write_as(Op::SyncedWrite(name, range, how), file, range);
            }
            118..122 => {
                let (range, how) = (self.blocks(size), synced_write(self.rng));
                self.write_as(Op::SyncedDirect(name, range, how), file, range);
            }
            122..124 => self.ops.push(Op::UringFsync(name)),
            124..126 => self.ops.push(Op::UringFdatasync(name)),
            126.. => {
                let range = self.range(size);
                self.ops.push(Op::SyncFileRange(name, range));
            }
            _ => {}
        }
    }

    fn create(&mut self, name: u8) {
        self.ops.push(Op::Create(name));
        self.files.insert(name, self.sizes.len());
        self.sizes.push(0);
    }

    fn write(&mut self, name: u8, file: usize, range: Range) {
        self.write_as(Op::Write(name, range), file, range);
    }

    fn write_as(&mut self, op: Op, file: usize, range: Range) {
        let end = range.offset + range.length;
        if end <= MAX_SIZE {
            self.ops.push(op);
            self.sizes[file] = self.sizes[file].max(end);
        }
    }

    /// A few bytes, a block, or several.
    fn length(&mut self) -> u32 {
        match self.rng.u8(..4) {
            0 => self.rng.u32(1..=600),
            1 | 2 => BLOCK,
            _ => BLOCK * self.rng.u32(2..=5),
        }
    }

    /// One or two whole blocks that begin below `size`, or at its end.
    fn blocks(&mut self, size: u32) -> Range {
        Range {
            offset: self.rng.u32(0..=size / BLOCK) * BLOCK,
            length: BLOCK * self.rng.u32(1..=2),
        }
    }

    /// Bytes that begin below `size`, or at 0.
    fn range(&mut self, size: u32) -> Range {
        let offset = match self.rng.u8(..3) {
            0 => self.rng.u32(0..size.max(1)),
            _ => self.rng.u32(0..size.div_ceil(BLOCK).max(1)) * BLOCK,
        };
        Range {
            offset,
            length: self.length(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn test_plan_is_valid_and_reproducible() {
        for number in 0..300 {
            let plan = plan(5, number);
            assert_eq!(plan, super::plan(5, number));
            for (thread, ops) in plan.threads.iter().enumerate() {
                Model::new(plan.seed, thread, ops).unwrap();
                assert!(ops.iter().any(|op| op.is_sync()) || number > 3);
            }
        }
    }

    #[test]
    fn test_plain_is_valid_and_gives_no_blocks() {
        for number in 0..300 {
            let plan = plain(5, number);
            assert_eq!(plan, plain(5, number));
            Model::new(plan.seed, 0, &plan.threads[0]).unwrap();
            assert!(
                plan.threads[0].iter().all(|op| !matches!(
                    op,
                    Op::Allocate(..) | Op::Punch(..) | Op::Truncate(..) | Op::Unlink(_)
                )),
                "{number}"
            );
        }
    }

    #[test]
    fn test_plan_has_every_kind_of_operation() {
        let words: std::collections::BTreeSet<_> = (4..100)
            .flat_map(|number| plan(1, number).threads)
            .flatten()
            .map(|op| {
                op.to_string()
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect();
        assert_eq!(words.len(), 20, "{words:?}");
    }

    #[test]
    fn test_plan_other_seed_other_plan() {
        assert_ne!(plan(1, 10), plan(2, 10));
    }
}
