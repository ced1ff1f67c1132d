// SPDX-License-Identifier: MIT

//! What goes wrong is said, and nothing is left behind.

mod common;

use common::*;
use obd_core::source::Bytes;
use obd_writer::source::RawSource;
use obd_writer::{
    Compression,
    Error,
    FileSink,
    Kind,
    Options,
    Sink,
    TargetError,
    commit,
    create, //
};
use std::cell::Cell;
use std::fs;
use std::io;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::path::Path;

/// A disk that is full after some bytes.
struct Full<'a, K> {
    sink: K,
    room: u64,
    finished: &'a Cell<bool>,
}

impl<K: Sink> Sink for Full<'_, K> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.room.checked_sub(bytes.len() as u64) {
            Some(room) => self.room = room,
            None => return Err(io::ErrorKind::StorageFull.into()),
        }
        self.sink.append(bytes)
    }

    fn overwrite(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.sink.overwrite(bytes)
    }

    fn finish(self) -> io::Result<()> {
        self.finished.set(true);
        self.sink.finish()
    }
}

fn threads(number: usize) -> Options {
    Options {
        threads: NonZero::new(number).unwrap(),
        ..Options::default()
    }
}

fn go(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn a_full_disk() {
    let image = full(3 << 20, 1);
    let whole = write(&image, &Options::default()).0.len() as u64;
    for number in [1, 4] {
        for room in [0, 511, 512, whole / 2, whole - 512, whole - 1, whole] {
            let dir = tempfile::tempdir().unwrap();
            let finished = Cell::new(false);
            let sink = Full {
                sink: FileSink::create(dir.path().join("layer"), false).unwrap(),
                room,
                finished: &finished,
            };
            let error = commit(&image, sink, &threads(number), go).unwrap_err();
            let Error::Write { offset, len, .. } = error else {
                panic!("{error}");
            };
            // Of the last one the header is all that did not fit.
            let header = room == whole;
            assert!(if header {
                offset == 0
            } else {
                offset + len > room
            });
            assert!(!finished.get());
            assert!(is_empty(dir.path()), "{number} threads, {room} bytes");
        }
    }
}

#[test]
fn a_source_that_fails() {
    let mut image = full(3 << 20, 2);
    for lends in [false, true] {
        for bad in [0, 1 << 20, (3 << 20) - 1] {
            for number in [1, 3] {
                let dir = tempfile::tempdir().unwrap();
                let sink = FileSink::create(dir.path().join("layer"), false).unwrap();
                image.bad = Some(bad);
                image.lends = lends;
                match commit(&image, sink, &threads(number), go) {
                    // What is lent is not read.
                    Ok(_) => assert!(lends),
                    Err(Error::Read { offset, len, .. }) => {
                        assert!(!lends && (offset..offset + len).contains(&bad));
                        assert!(is_empty(dir.path()));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

#[test]
fn a_file_that_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let source = RawSource::full(obd_host::File::open(&path).unwrap());
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 19)
        .unwrap();
    let mut layer = Vec::new();
    let error = commit(&source, &mut layer, &threads(2), go).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
}

#[test]
fn an_interruption() {
    let image = full(3 << 20, 3);
    for number in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let sink = FileSink::create(dir.path().join("layer"), false).unwrap();
        let error = commit(&image, sink, &threads(number), |done, all| {
            assert_eq!(all, (3 << 20) + 3 * 4096);
            match done > 1 << 20 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_panic_in_a_thread_goes_on_in_the_callers() {
    struct Panics;
    impl obd_writer::Source for Panics {
        type Error = io::Error;
        type Workspace = ();
        fn size(&self) -> u64 {
            64 << 20
        }
        fn ranges(&self) -> io::Result<Vec<obd_writer::source::Range>> {
            Ok(full(64 << 20, 1).ranges)
        }
        fn workspace(&self) -> io::Result<()> {
            Ok(())
        }
        fn read(&self, (): &mut (), offset: u64, _: &mut [u8]) -> io::Result<()> {
            assert!(offset < 1 << 20, "a source with a bug");
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let sink = FileSink::create(dir.path().join("layer"), false).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        commit(&Panics, sink, &threads(3), go).map(|_| ())
    }));
    assert!(panicked.is_err());
    assert!(is_empty(dir.path()));
}

#[test]
fn targets() {
    let dir = tempfile::tempdir().unwrap();
    let there = dir.path().join("there");
    fs::write(&there, "precious").unwrap();
    let image = full(1 << 16, 4);

    let error = FileSink::create(&there, false).unwrap_err();
    assert!(matches!(error, TargetError::Exists(_)), "{error}");
    let error = FileSink::create(dir.path(), true).unwrap_err();
    assert!(matches!(error, TargetError::NotAFile(_)), "{error}");
    for path in ["/nonexistent/layer", "/", ""] {
        assert!(FileSink::create(path, true).is_err(), "{path}");
    }
    assert_eq!(fs::read(&there).unwrap(), b"precious");

    let sink = FileSink::create(&there, true).unwrap();
    commit(&image, sink, &threads(2), go).unwrap();
    let layer = fs::read(&there).unwrap();
    assert!(read(&stack([layer])) == image.bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    // Somebody else was faster.
    let raced = dir.path().join("raced");
    let sink = FileSink::create(&raced, false).unwrap();
    fs::write(&raced, "precious").unwrap();
    let error = commit(&image, sink, &threads(1), go).unwrap_err();
    assert!(matches!(error, Error::Finish(_)), "{error}");
    assert_eq!(fs::read(&raced).unwrap(), b"precious");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn options_that_cannot_be() {
    let image = full(1 << 16, 5);
    let block_size = |block_size| Options {
        compression: Some(Compression {
            block_size,
            ..Compression::default()
        }),
        ..Options::default()
    };
    let message = |message: &str| Options {
        message: message.into(),
        ..Options::default()
    };
    for options in [
        block_size(0),
        block_size(2048),
        block_size(5000),
        block_size(128 << 10),
        message(&"x".repeat(256)),
        message("x\0y"),
        threads(257),
    ] {
        let mut layer = Vec::new();
        let error = commit(&image, &mut layer, &options, go).unwrap_err();
        assert!(matches!(error, Error::Option { .. }), "{error}");
        assert!(layer.is_empty());
    }
    let odd = full(1000, 6);
    let error = commit(&odd, &mut Vec::new(), &Options::default(), go).unwrap_err();
    assert!(matches!(error, Error::BadSize(1000)), "{error}");
}

#[test]
fn sparse_and_odd_files() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    let file = fs::File::create(&path).unwrap();
    // Neither extents nor the end lie on sector boundaries.
    file.set_len((8 << 20) + 100).unwrap();
    file.write_all_at(&[1; 5000], (1 << 20) + 10).unwrap();
    file.write_all_at(&[2; 50], (8 << 20) + 50).unwrap();
    let mut want = fs::read(&path).unwrap();
    want.resize((8 << 20) + 512, 0);
    let open = || obd_host::File::open(&path).unwrap();
    let (sparse, sparse_stats) = write(&RawSource::sparse(open()), &threads(2));
    let (all, all_stats) = write(&RawSource::full(open()), &threads(2));
    assert_eq!(all_stats.data, want.len() as u64);
    // Filesystems may keep more than was written, but not megabytes.
    assert!(sparse_stats.data < 1 << 20 && sparse_stats.data >= 5512);
    assert!(read(&stack([sparse])) == want);
    assert!(read(&stack([all])) == want);
}

#[test]
fn new_read_write_layers() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let index = dir.path().join("index");
    let parent = "0D9C8B7A-6F5E-4D3C-8B2A-190817263544".parse().unwrap();
    let uuid = create(&data, &Kind::Log(index.clone()), 1 << 30, Some(parent)).unwrap();
    let bytes = |path: &Path| Bytes(fs::read(path).unwrap());
    let layer = TestLayer::open_log(bytes(&data), bytes(&index)).unwrap();
    let info = layer.info();
    assert_eq!((info.virtual_size, info.segments), (1 << 30, 0));
    assert_eq!(
        info.label.parent_uuid(),
        b"0D9C8B7A-6F5E-4D3C-8B2A-190817263544"
    );
    let text = uuid.hyphenated().to_string().to_uppercase();
    assert_eq!(info.label.uuid(), text.as_bytes());

    // Neither is replaced, and no half of a pair is left.
    let other = dir.path().join("other");
    for (data, index) in [(&data, &other), (&other, &index)] {
        let error = create(data, &Kind::Log(index.clone()), 1 << 30, None).unwrap_err();
        assert!(matches!(error, TargetError::Exists(_)), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    let sparse = dir.path().join("sparse");
    create(&sparse, &Kind::Sparse, 1 << 20, None).unwrap();
    assert_eq!(fs::metadata(&sparse).unwrap().len(), (1 << 20) + 4096);
    let layer = TestLayer::open_sparse(bytes(&sparse), [(0, 4096)]).unwrap();
    assert_eq!(layer.segments(), []);
    let error = create(&other, &Kind::Sparse, 1000, None).unwrap_err();
    assert!(
        matches!(error, TargetError::BadSize { size: 1000, .. }),
        "{error}"
    );
    assert!(!other.exists());
}
