// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sources that read whole blocks, as devices are read: what they need beyond the
//! bytes asked for is there, and gives the same data.

mod common;

use common::*;
use obd_core::image::Image;
use obd_core::index::{
    Contents,
    Piece, //
};
use obd_core::lsmt::Layer;
use obd_core::scratch::Scratch;
use obd_core::source::{
    Blocks,
    Bytes,
    Outside,
    SLACK,
    Source, //
};
use obd_core::zfile::ZFile;
use obd_host::Host;
use std::cell::{
    Cell,
    RefCell, //
};
use std::collections::HashMap;

/// A drive with logical blocks of `block` bytes. What a file does not fill of the
/// last one is garbage.
struct Drive {
    bytes: Vec<u8>,
    size: u64,
    block: usize,
    reads: Cell<usize>,
    /// Whether what is read arrives damaged.
    damages: Cell<bool>,
}

impl Drive {
    fn new(mut bytes: Vec<u8>, block: usize) -> Self {
        let size = bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(block), 0xa5);
        Self {
            bytes,
            size,
            block,
            reads: Cell::new(0),
            damages: Cell::new(false),
        }
    }
}

impl Source for Drive {
    type Error = Outside;

    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Outside> {
        Bytes(&self.bytes).read_exact_at(offset, buf)
    }

    fn read_around(&self, offset: u64, len: usize, room: &mut [u8]) -> Result<usize, Outside> {
        assert!(room.len() >= len + SLACK);
        self.reads.set(self.reads.get() + 1);
        let blocks = Blocks::around(offset, len, self.block);
        assert!(blocks.start.is_multiple_of(self.block as u64));
        assert!(blocks.len.is_multiple_of(self.block));
        assert!(blocks.len <= len + 2 * self.block);
        self.read_exact_at(blocks.start, &mut room[..blocks.len])?;
        if self.damages.get() {
            room[blocks.skip] ^= 1;
        }
        Ok(blocks.skip)
    }
}

#[test]
fn whole_blocks_give_the_same_data() {
    for name in [
        "a-z01-lz4-4k-mixed.zfile",
        "a-z04-lz4-64k.zfile",
        "a-z08-zstd-16k.zfile",
        "a-z11-lz4-4k-random.zfile",
        "a-z15-tar-lz4-4k.zfile",
    ] {
        let want = decode_zfile(&zfile(fixture(name)).unwrap()).unwrap();
        for block in [512, 4096] {
            let drive = Drive::new(fixture(name), block);
            let file = zfile_on(&drive);
            let mut scratch = Scratch::new(file.needs()).unwrap();
            let mut got = vec![0; want.len()];
            file.read_at(0, &mut got, &mut scratch).unwrap();
            assert!(got == want, "{name}");
            let reads = drive.reads.get();
            assert!(reads > 0 && reads <= 2 + want.len() / (64 << 10), "{reads}");
            for start in (0..want.len()).step_by(1 + want.len() / 200) {
                let len = (want.len() - start).min(5000);
                let mut got = vec![0; len];
                file.read_at(start as u64, &mut got, &mut scratch).unwrap();
                assert!(got == want[start..][..len], "{name} at {start}");
            }
        }
    }
}

/// Whoever reads compressed bytes by himself gets the same data, of no more than he has
/// room for; what comes damaged is an error, and read again then.
#[test]
fn what_is_fetched_is_decoded() {
    const SECTOR: usize = 512;
    for names in [
        &["a-ext4-0.layer", "a-ext4-1.layer", "a-ext4-2.layer"][..],
        &["a-l07-lz4-4k.layer"],
        &["a-l08-zstd-16k.layer"],
    ] {
        let drives: Vec<Drive> = names
            .iter()
            .map(|name| Drive::new(fixture(name), 512))
            .collect();
        let layers: Vec<Layer<&Drive, Host>> = drives
            .iter()
            .map(|drive| Layer::open(drive).unwrap())
            .collect();
        let image = Image::new(layers).unwrap();
        let size = image.size() as usize;
        let mut plain = Scratch::new(image.needs()).unwrap();
        let mut scratch = Scratch::new(image.needs()).unwrap();
        let mut fetches = 0;
        for (i, start) in (0..size).step_by(29 * SECTOR).enumerate() {
            let len = (size - start).min([8, 16, 100, 512][i % 4] * SECTOR);
            let most = [1, 4 << 10, 30 << 10, 120 << 10][(i / 4) % 4];
            let (mut want, mut got) = (vec![0; len], vec![0; len]);
            image.read_at(start as u64, &mut want, &mut plain).unwrap();
            let Some(fetch) = image.fetch(start as u64, len as u64, most) else {
                continue;
            };
            assert!(fetch.len <= most, "{} of {most}", fetch.len);
            fetches += 1;
            let drive = &drives[fetch.layer];
            let begin = i % SLACK;
            let room = &mut scratch.room()[begin..][..fetch.len];
            drive.read_exact_at(fetch.at, room).unwrap();
            scratch.fetched(&fetch, begin);
            let before = drive.reads.get();
            image
                .read_next(start as u64, &mut got, 0, &mut scratch)
                .unwrap();
            assert!(got == want, "{names:?} at {start}");
            let pieces = image.pieces(start as u64, len as u64).unwrap();
            let data = |piece: &Piece| matches!(piece.what, Contents::Data { .. });
            if most == 120 << 10 && len <= 100 * SECTOR && pieces.filter(data).count() == 1 {
                assert_eq!(drive.reads.get(), before, "{names:?} at {start}");
            }

            let room = &mut scratch.room()[begin..][..fetch.len];
            drive.read_exact_at(fetch.at, room).unwrap();
            room[fetch.len / 2] ^= 1;
            scratch.fetched(&fetch, begin);
            // A block that is held already is not decoded again.
            if image
                .read_next(start as u64, &mut got, 0, &mut scratch)
                .is_ok()
            {
                assert!(got == want, "{names:?} at {start}");
            }
            scratch.room();
            image
                .read_next(start as u64, &mut got, 0, &mut scratch)
                .unwrap();
            assert!(got == want, "{names:?} at {start}");
        }
        assert!(fetches > 0);
        assert!(image.fetch(size as u64, 512, 1 << 20).is_none());
        assert!(image.fetch(u64::MAX - 511, 1024, 1 << 20).is_none());
        // What does not fit is not there.
        if let Some(fetch) = image.fetch(0, size as u64, 120 << 10) {
            let end = scratch.room().len();
            scratch.fetched(&fetch, end);
            scratch.fetched(&fetch, usize::MAX);
            let mut got = vec![0; 4096];
            image.read_next(0, &mut got, 0, &mut scratch).unwrap();
        }
    }
}

fn zfile_on<S: Source<Error = Outside>>(drive: &S) -> ZFile<&S, Host> {
    let whole = obd_core::source::Window::whole(drive);
    let file = match obd_core::tar::payload(&whole).unwrap() {
        Some(payload) => whole.part(payload.offset, payload.len).unwrap(),
        None => whole,
    };
    ZFile::open(file).unwrap()
}

/// A request's memory comes in pieces; what is stored is read in as few as for one.
#[test]
fn what_is_wanted_next_is_read_together() {
    for names in [
        &["a-ext4-0.layer", "a-ext4-1.layer", "a-ext4-2.layer"][..],
        &["a-s3-0.layer", "a-s3-1.layer", "a-s3-2.layer"],
        &["a-l01-raw.layer"],
        &["a-l08-zstd-16k.layer"],
    ] {
        let whole = image(
            names
                .iter()
                .map(|name| layer(fixture(name)).unwrap())
                .collect(),
        )
        .unwrap();
        let drives: Vec<Drive> = names
            .iter()
            .map(|name| Drive::new(fixture(name), 512))
            .collect();
        let layers: Vec<Layer<&Drive, Host>> = drives
            .iter()
            .map(|drive| Layer::open(drive).unwrap())
            .collect();
        let disk = Image::new(layers).unwrap();
        let reads = || drives.iter().map(|drive| drive.reads.get()).sum::<usize>();
        let mut scratch = Scratch::new(disk.needs()).unwrap();
        let mut other = Scratch::new(whole.needs()).unwrap();
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..300 {
            let len = (1 + next(256)) * 512;
            let offset = next((disk.size() - len) / 512 + 1) * 512;
            let mut want = vec![0; len as usize];
            whole.read_at(offset, &mut want, &mut other).unwrap();
            let pieces = disk.pieces(offset, len).unwrap().count();
            let before = reads();
            let mut got = vec![0xa5; len as usize];
            let (mut at, mut rest) = (offset, &mut got[..]);
            while !rest.is_empty() {
                let piece = (1 + next(8) as usize * 512).next_multiple_of(512);
                let (now, later) = rest.split_at_mut(piece.min(rest.len()));
                rest = later;
                let ahead = rest.len() as u64;
                disk.read_next(at, now, ahead, &mut scratch).unwrap();
                at += now.len() as u64;
            }
            assert!(got == want, "{names:?} at {offset}");
            // 128 KiB stored at a time, and no piece is read twice; the end of one may
            // be read with the beginning of the next.
            assert!(reads() - before <= 2 * pieces + 1, "{names:?} at {offset}");
        }
    }
}

#[test]
fn what_arrived_damaged_is_read_again() {
    let want = decode_zfile(&zfile(fixture("a-z01-lz4-4k-mixed.zfile")).unwrap()).unwrap();
    let drive = Drive::new(fixture("a-z01-lz4-4k-mixed.zfile"), 512);
    let file = zfile_on(&drive);
    let mut scratch = Scratch::new(file.needs()).unwrap();
    for ahead in [0, 4096, 65536] {
        let mut got = vec![0; 4096];
        drive.damages.set(true);
        file.read_next(0, &mut got, ahead, &mut scratch)
            .unwrap_err();
        drive.damages.set(false);
        file.read_next(0, &mut got, ahead, &mut scratch).unwrap();
        assert!(got == want[..4096]);
        // For the next round nothing is there.
        file.read_at(8192, &mut got, &mut scratch).unwrap();
    }
}

#[test]
fn blocks_hold_what_is_asked_for() {
    for size in [1, 512, 4096] {
        for offset in [0, 1, 511, 512, 4095, 4096, 1 << 40, (1 << 40) + 777] {
            for len in [0, 1, 511, 512, 513, 4608, 1 << 17] {
                let blocks = Blocks::around(offset, len, size);
                assert_eq!(blocks.start + blocks.skip as u64, offset);
                assert!(blocks.skip < size && blocks.skip + len <= blocks.len);
                assert!(blocks.len < blocks.skip + len + size);
            }
        }
    }
}

/// A source that keeps every block it is given.
struct Keeper {
    bytes: Vec<u8>,
    reads: Cell<usize>,
    blocks: RefCell<HashMap<u64, Vec<u8>>>,
}

impl Source for Keeper {
    type Error = Outside;

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Outside> {
        self.reads.set(self.reads.get() + 1);
        Bytes(&self.bytes).read_exact_at(offset, buf)
    }

    fn keep(&self, number: u64, block: &[u8]) {
        self.blocks.borrow_mut().insert(number, block.to_vec());
    }

    fn kept(&self, number: u64, skip: usize, to: &mut [u8]) -> bool {
        match self.blocks.borrow().get(&number) {
            Some(block) => to.copy_from_slice(&block[skip..][..to.len()]),
            None => return false,
        }
        true
    }

    fn keeps(&self, number: u64) -> bool {
        self.blocks.borrow().contains_key(&number)
    }
}

/// A block is decoded once for all parts of it, whoever reads them, and none that is wanted
/// whole is kept, in one piece or in several.
#[test]
fn what_is_kept_is_not_read_again() {
    for (name, keeps) in [
        ("a-z03-lz4-16k.zfile", true),
        ("a-z04-lz4-64k.zfile", true),
        ("a-z05-lz4-8k.zfile", true),
        ("a-z09-zstd-64k.zfile", true),
        ("a-z01-lz4-4k-mixed.zfile", false),
    ] {
        let want = decode_zfile(&zfile(fixture(name)).unwrap()).unwrap();
        let keeper = Keeper {
            bytes: fixture(name),
            reads: Cell::new(0),
            blocks: RefCell::default(),
        };
        let file = zfile_on(&keeper);
        let scratch = || Scratch::new(file.needs()).unwrap();
        let block = file.block_size();

        let mut got = vec![0; want.len()];
        file.read_at(0, &mut got, &mut scratch()).unwrap();
        assert!(got == want);
        let mut reader = scratch();
        for (start, part) in got.chunks_mut(4096).enumerate() {
            let start = start * 4096;
            let ahead = (want.len() - start - part.len()) as u64;
            file.read_next(start as u64, part, ahead, &mut reader)
                .unwrap();
        }
        assert!(got == want);
        assert!(keeper.blocks.borrow().is_empty(), "{name}");

        // Each time another reader, who has nothing.
        let parts: Vec<usize> = (0..want.len()).step_by(1536).collect();
        for start in parts.iter().rev().copied() {
            let mut got = vec![0; (want.len() - start).min(1000)];
            keeper.reads.set(0);
            let first = start / block;
            let there = |number: usize| keeper.blocks.borrow().contains_key(&(number as u64));
            let last = (start + got.len() - 1) / block;
            let all_there = there(first) && there(last);
            let fetch = file.fetch(start as u64, got.len() as u64, 1 << 20);
            assert_eq!(fetch.is_none(), first == last && all_there);
            file.read_at(start as u64, &mut got, &mut scratch())
                .unwrap();
            assert!(got == want[start..][..got.len()], "{name} at {start}");
            assert_eq!(keeper.reads.get() == 0, all_there, "{name} at {start}");
        }
        assert_eq!(!keeper.blocks.borrow().is_empty(), keeps, "{name}");
    }
}
