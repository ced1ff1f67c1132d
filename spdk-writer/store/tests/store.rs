// SPDX-License-Identifier: MIT

//! What a store does, and what it refuses.

mod common;

use common::{
    Drive,
    Fault,
    Layer,
    SIZE,
    content,
    device, //
};
use fastrand::Rng;
use obd_engine::uring::{
    Options as UringOptions,
    Uring, //
};
use obd_engine::{
    Action,
    Shared, //
};
use obd_store::file::EngineFile;
use obd_store::{
    CommitError,
    Error,
    How,
    Store, //
};
use obd_writer::{
    Algorithm,
    Compression,
    FileSink,
    Options,
    Sink,
    commit, //
};
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;

fn go(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn on_top(store: &Store, identity: u8) -> How {
    let count = store.state().layers.len();
    How {
        identity: [identity; 16],
        name: format!("layer {count}"),
        replace: count..count,
        interval: 256 << 10,
        resume: false,
    }
}

fn layer(seed: u64, part: u8) -> Layer {
    Layer::random(&mut Rng::with_seed(seed), 900 << 10, part)
}

/// How a layer can be compressed, and by how many threads.
fn ways() -> Vec<Options> {
    let mut ways = Vec::new();
    for threads in [1, 2, 5] {
        for compression in [
            None,
            Some(Compression::default()),
            Some(Compression {
                algorithm: Algorithm::Zstd,
                block_size: 64 << 10,
                checksums: false,
            }),
        ] {
            ways.push(Options {
                compression,
                threads: NonZero::new(threads).unwrap(),
                ..Options::default()
            });
        }
    }
    ways
}

#[test]
fn test_layer_same_bytes_whatever_engine_and_threads() {
    let source = layer(1, 200);
    let dir = tempfile::tempdir().unwrap();
    for options in ways() {
        let mut expected = Vec::new();
        let one = Options {
            threads: NonZero::<usize>::MIN,
            ..options.clone()
        };
        commit(&source, &mut expected, &one, go).unwrap();

        // A file, by io_uring.
        let path = dir.path().join("layer");
        let sink = FileSink::create(&path, true).unwrap();
        let file = sink.file().try_clone().unwrap();
        let engine = Uring::on_file(file, &path, &UringOptions::default()).unwrap();
        let shared = Shared::new(Box::new(engine));
        commit(
            &source,
            EngineFile::new(&shared, sink).unwrap(),
            &options,
            go,
        )
        .unwrap();
        assert!(std::fs::read(&path).unwrap() == expected, "{options:?}");

        // A store, on another engine.
        let drive = Drive::new(1, 512, true);
        let mut store = Store::create(device(&drive)).unwrap();
        let how = on_top(&store, 1);
        store.commit(&source, &options, &how, go).unwrap();
        let entry = &store.state().layers[0];
        assert_eq!(entry.len, expected.len() as u64);
        let mut stored = vec![0; expected.len()];
        store
            .device()
            .read(entry.extent.start, &mut stored)
            .unwrap();
        assert!(stored == expected, "{options:?}");
    }
}

/// What a layer is appended in: nothing is lent.
#[derive(Default)]
struct Pieces {
    bytes: Vec<u8>,
    lens: Vec<u32>,
}

impl Sink for &mut Pieces {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn batch(&mut self, _content: u64, lens: &[u32]) -> io::Result<()> {
        self.lens.extend(lens);
        Ok(())
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        Ok(())
    }
}

/// One thread compresses where the device reads: copied are what is around the blocks,
/// and of each buffer what is behind its last whole block. Several copy every byte once.
#[test]
fn test_layer_copies_are_as_few_as_can_be_and_counted() {
    const BUFFER: usize = 64 << 10;
    const AROUND: u64 = 512;
    let source = Layer::random(&mut Rng::with_seed(4), 3 << 20, 255);
    let dir = tempfile::tempdir().unwrap();
    let to_file = |options: &Options| {
        let path = dir.path().join("layer");
        let sink = FileSink::create(&path, true).unwrap();
        let file = sink.file().try_clone().unwrap();
        let small = UringOptions {
            buffer_size: BUFFER,
            ..UringOptions::default()
        };
        let shared = Shared::new(Box::new(Uring::on_file(file, &path, &small).unwrap()));
        let sink = EngineFile::new(&shared, sink).unwrap();
        commit(&source, sink, options, go).unwrap()
    };
    for tar in [false, true] {
        let one = Options {
            tar,
            ..Options::default()
        };
        let several = Options {
            threads: NonZero::new(3).unwrap(),
            ..one.clone()
        };
        let mut pieces = Pieces::default();
        let plain = commit(&source, &mut pieces, &one, go).unwrap();
        // The header is written twice.
        let front = if tar { 3 * AROUND } else { 0 };
        let whole = plain.stored + AROUND + front;
        assert_eq!(plain.copied_stored, whole);
        assert_eq!(to_file(&several).copied_stored, whole);

        let mut fill = (front + AROUND) as usize;
        let mut moved = 0;
        for len in &pieces.lens {
            // A block can become this much longer, and has a checksum.
            if BUFFER - fill < (4 << 10) + 512 + 4 {
                fill %= 4096;
                moved += fill as u64;
            }
            fill += *len as usize;
        }
        let blocks: u64 = pieces.lens.iter().map(|len| u64::from(*len)).sum();
        let stats = to_file(&one);
        assert_eq!(stats.copied_stored, whole - blocks + moved);
        assert!(moved > 0 && stats.copied_stored < stats.stored / 10);
        assert_eq!((stats.copied, plain.copied), (stats.data, stats.data));

        // What is not compressed is read to where it is written from.
        let raw = Options {
            compression: None,
            ..one
        };
        let stats = to_file(&raw);
        assert_eq!(stats.copied, stats.data);
        assert_eq!(stats.copied_stored, stats.stored - stats.content + front);
    }
}

#[test]
fn test_store_tar_is_left_out() {
    let drive = Drive::new(1, 512, true);
    let mut store = Store::create(device(&drive)).unwrap();
    let options = Options {
        tar: true,
        ..Options::default()
    };
    let how = on_top(&store, 1);
    store.commit(&layer(1, 40), &options, &how, go).unwrap();
    let mut magic = [0; 5];
    let start = store.state().layers[0].extent.start;
    store.device().read(start, &mut magic).unwrap();
    assert_eq!(&magic, b"ZFile");
}

#[test]
fn test_store_interrupted_commit_goes_on_only_with_the_same() {
    let drive = Drive::new(3, 4096, true);
    let mut store = Store::create(device(&drive)).unwrap();
    let source = layer(3, 255);
    let mut other = source.clone();
    other.bytes.fill(0x55);
    let options = Options::default();
    let mut expected = Vec::new();
    commit(&source, &mut expected, &options, go).unwrap();

    let stop = |store: &mut Store, how: &How| {
        let stopped = store.commit(&source, &options, how, |done, _| match done {
            0..300_000 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        assert!(stopped.is_err());
        assert!(store.state().pending.is_some());
        assert!(store.state().layers.is_empty());
    };
    let resume = |store: &mut Store, identity| {
        let how = How {
            resume: true,
            ..on_top(store, identity)
        };
        store.commit(&other, &options, &how, go)
    };
    let nothing = resume(&mut store, 1);
    assert!(matches!(
        nothing,
        Err(CommitError::Store(Error::NothingToResume { other: false }))
    ));
    let how = on_top(&store, 1);
    stop(&mut store, &how);
    // Who only wants to go on takes nothing from it.
    let pending = store.state().pending.clone();
    let nothing = resume(&mut store, 2);
    assert!(matches!(
        nothing,
        Err(CommitError::Store(Error::NothingToResume { other: true }))
    ));
    assert_eq!(store.state().pending, pending);
    // Another one, in the middle of it: a layer of its own.
    let another = store
        .commit(&other, &options, &on_top(&store, 2), go)
        .unwrap();
    assert_eq!(another.resumed_at, 0);
    let how = on_top(&store, 1);
    assert!(store.state().pending.is_none());

    // The same: it goes on, and comes to the same bytes.
    let stopped = store.commit(&source, &options, &how, |done, _| match done {
        0..300_000 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(stopped.is_err());
    let mut store = Store::open(device(&drive), true).unwrap();
    let writes = drive.lock().unwrap().writes;
    let how = How {
        resume: true,
        ..how
    };
    let resumed = store.commit(&source, &options, &how, go).unwrap();
    assert!(resumed.resumed_at >= 256 << 10, "{resumed:?}");
    assert!(drive.lock().unwrap().writes > writes);
    let entry = &store.state().layers[1];
    let mut stored = vec![0; entry.len as usize];
    store
        .device()
        .read(entry.extent.start, &mut stored)
        .unwrap();
    assert!(stored == expected);
    assert!(store.state().pending.is_none());

    // Other options: from the beginning.
    let how = on_top(&store, 3);
    let stopped = store.commit(&source, &options, &how, |done, _| match done {
        0..300_000 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(stopped.is_err());
    let plain = Options {
        compression: None,
        ..options
    };
    let anew = store.commit(&source, &plain, &how, go).unwrap();
    assert_eq!(anew.resumed_at, 0);
}

#[test]
fn test_store_full_says_so_and_is_as_before() {
    let drive = Drive::new(4, 512, true);
    let mut store = Store::create(device(&drive)).unwrap();
    let source = layer(4, 255);
    let options = Options {
        compression: None,
        ..Options::default()
    };
    let mut count = 0;
    let error = loop {
        let how = on_top(&store, count);
        match store.commit(&source, &options, &how, go) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(count >= 5, "{count}");
    assert!(error.to_string().contains("no room"), "{error}");
    assert_eq!(store.state().layers.len(), usize::from(count));
    content(&store);
}

#[test]
fn test_store_merge_frees_and_discards_what_it_replaces() {
    let drive = Drive::new(4, 512, true);
    let mut store = Store::create(device(&drive)).unwrap();
    let source = layer(4, 255);
    let plain = Options {
        compression: None,
        ..Options::default()
    };
    for n in 0..4 {
        let how = on_top(&store, n);
        store.commit(&source, &plain, &how, go).unwrap();
    }
    let free = |store: &Store| store.free().iter().map(|piece| piece.len).sum::<u64>();
    let (image, before) = (content(&store), free(&store));
    let discarded = drive.lock().unwrap().discarded;
    let merged = store.merge(0..3, &Options::default(), 1 << 20, go).unwrap();
    assert_eq!(store.state().layers.len(), 2);
    // Three as long as the source came to one that is compressed.
    let freed = free(&store) - before;
    assert!(freed > 2 * merged.stats.data, "{freed} {merged:?}");
    assert!(drive.lock().unwrap().discarded > discarded + freed);
    assert!(content(&store) == image);
}

#[test]
fn test_store_failed_superblock_needs_another_open() {
    let drive = Drive::new(5, 512, true);
    let mut store = Store::create(device(&drive)).unwrap();
    {
        let mut drive = drive.lock().unwrap();
        drive.fault = Some((drive.commands + 1, Fault::Kill));
    }
    let how = on_top(&store, 1);
    let source = layer(5, 100);
    let failed = store.commit(&source, &Options::default(), &how, go);
    assert!(matches!(failed, Err(CommitError::Store(Error::Device(_)))));
    Drive::restart(&drive);
    let failed = store.commit(&source, &Options::default(), &how, go);
    assert!(matches!(failed, Err(CommitError::Store(Error::Uncertain))));
    let mut store = Store::open(device(&drive), true).unwrap();
    store
        .commit(&source, &Options::default(), &how, go)
        .unwrap();
}

#[test]
fn test_store_what_is_no_store_is_refused() {
    let drive = Drive::new(6, 512, true);
    let error = Store::open(device(&drive), true).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "simulated: no layer store: no superblock; no superblock"
    );
    let store = Store::create(device(&drive)).unwrap();
    // Both damaged.
    for slot in [0, 64 << 10] {
        let mut bytes = vec![0; 512];
        store.device().read(slot, &mut bytes).unwrap();
        bytes[200] = 1;
        store.device().write(slot, &bytes).unwrap();
    }
    let error = Store::open(device(&drive), true).map(drop).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("damaged superblock; a damaged superblock")
    );
}

#[test]
fn test_store_one_lost_superblock_costs_at_most_the_last_change() {
    let drive = Drive::new(7, 512, false);
    let mut store = Store::create(device(&drive)).unwrap();
    let mut images = vec![Vec::new()];
    for n in 0..4 {
        let source = layer(n, 90);
        let mut image = images[n as usize].clone();
        source.over(&mut image);
        images.push(image);
        let how = on_top(&store, n as u8);
        store
            .commit(&source, &Options::default(), &how, go)
            .unwrap();
    }
    let newest = store.state().slot();
    store
        .device()
        .command(Action::WriteZeroes, newest, 4096)
        .unwrap();
    let older = Store::open(device(&drive), false).unwrap();
    assert_eq!(older.state().layers.len(), 3);
    assert!(content(&older) == images[3]);
}

#[test]
fn test_store_nonsense_is_refused() {
    let drive = Drive::new(8, 512, true);
    let mut store = Store::create(device(&drive)).unwrap();
    let source = layer(8, 50);
    let options = Options::default();
    for name in ["x".repeat(65), "a\0b".into()] {
        let how = How {
            name,
            ..on_top(&store, 0)
        };
        let refused = store.commit(&source, &options, &how, go);
        assert!(matches!(refused, Err(CommitError::Store(Error::Name(_)))));
    }
    let how = How {
        replace: 0..1,
        ..on_top(&store, 0)
    };
    let refused = store.commit(&source, &options, &how, go);
    assert!(matches!(
        refused,
        Err(CommitError::Store(Error::NoLayers { .. }))
    ));
    let refused = store.merge(0..0, &options, 1, go);
    assert!(matches!(
        refused,
        Err(CommitError::Store(Error::NoLayers { .. }))
    ));
    assert!(matches!(store.image(3..9), Err(Error::NoLayers { .. })));
    assert_eq!(store.state().generation, 2);
    assert_eq!(store.state().size, SIZE);
}
