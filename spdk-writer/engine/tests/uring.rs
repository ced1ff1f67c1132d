// SPDX-License-Identifier: MIT

//! The io_uring engine on files.

use obd_engine::check::{
    CHECKS,
    SIZE, //
};
use obd_engine::guard::Force;
use obd_engine::uring::{
    Options,
    Purpose,
    Uring, //
};
use obd_engine::{
    Action,
    Engine,
    Error,
    Request,
    Shared,
    Status, //
};
use std::path::Path;
use tempfile::NamedTempFile;

fn file(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn open(path: &Path, depth: u16) -> Uring {
    let options = Options {
        depth,
        buffers: 24,
        buffer_size: 256 << 10,
    };
    Uring::open(path, Purpose::Own(Force::No), &options).unwrap()
}

#[test]
fn test_uring_passes_every_check() {
    let file = file(2 * SIZE);
    for depth in [1, 3, 32] {
        let device = Shared::new(Box::new(open(file.path(), depth)));
        for (name, check) in CHECKS {
            if let Err(error) = check(&device, u64::from(depth)) {
                panic!("{name}, depth {depth}: {error}");
            }
        }
        let summary = device.summary();
        assert!(summary.counts.bytes_written > SIZE, "{summary:?}");
        assert_eq!(summary.counts.failed, 0);
        drop(device);
        // The checks end with bytes that look like nothing: no signature.
        file.as_file().set_len(0).unwrap();
        file.as_file().set_len(2 * SIZE).unwrap();
    }
}

#[test]
fn test_uring_full_is_refused_with_the_request() {
    let file = file(1 << 20);
    let mut engine = open(file.path(), 2);
    let request = |engine: &Uring, tag| Request {
        tag,
        action: Action::Read,
        offset: 0,
        len: 4096,
        buffer: engine.memory().take(),
    };
    for tag in 0..2 {
        engine.submit(request(&engine, tag)).unwrap();
    }
    let refused = engine.submit(request(&engine, 2)).unwrap_err();
    assert!(matches!(refused.error, Error::Full { depth: 2, .. }));
    assert_eq!(refused.request.tag, 2);
    let mut done = Vec::new();
    engine.kick().unwrap();
    while done.len() < 2 {
        engine.reap(true, &mut done).unwrap();
    }
    assert_eq!(engine.in_flight(), 0);
    let mut tags: Vec<_> = done.iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1]);
    assert!(done.iter().all(|done| done.result.is_ok()));
    // One system call for both.
    assert_eq!(engine.stats().counts.reads, 2);
    assert!(engine.stats().counts.doorbells <= 2);
}

#[test]
fn test_uring_errors_say_device_offset_and_status() {
    let file = file(1 << 20);
    let device = Shared::new(Box::new(open(file.path(), 4)));
    // Somebody else makes it shorter.
    file.as_file().set_len(8192).unwrap();
    let error = device.read(4096, &mut [0; 8192]).unwrap_err();
    let Error::Command { offset, status, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*offset, status), (4096, &Status::End));
    let text = error.to_string();
    assert!(text.starts_with(file.path().to_str().unwrap()), "{text}");
    assert!(
        text.contains("cannot read 8192 bytes at byte 4096"),
        "{text}"
    );
    assert_eq!(device.summary().counts.failed, 1);
}

#[test]
fn test_uring_dropped_in_flight_loses_no_write() {
    let file = file(8 << 20);
    let mut engine = open(file.path(), 16);
    for tag in 0..16 {
        let mut buffer = engine.memory().take().unwrap();
        buffer.fill(tag as u8 + 1);
        let request = Request {
            tag,
            action: Action::Write,
            offset: tag * (256 << 10),
            len: 256 << 10,
            buffer: Some(buffer),
        };
        engine.submit(request).unwrap();
    }
    drop(engine);
    let content = std::fs::read(file.path()).unwrap();
    for (n, part) in (1u8..=16).zip(content.chunks(256 << 10)) {
        assert!(part.iter().all(|byte| *byte == n), "{n}");
    }
}

#[test]
fn test_uring_a_growing_file_grows() {
    let file = NamedTempFile::new().unwrap();
    let options = Options::default();
    let engine = Uring::on_file(file.reopen().unwrap(), file.path(), &options).unwrap();
    let device = Shared::new(Box::new(engine));
    device.write(1 << 20, &[9; 4096]).unwrap();
    device.flush().unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), (1 << 20) + 4096);
}

#[test]
fn test_uring_no_buffer_is_an_error_and_no_hang() {
    let file = file(1 << 20);
    let device = Shared::new(Box::new(open(file.path(), 4)));
    let taken: Vec<_> = (0..24).map(|_| device.buffer().unwrap()).collect();
    assert!(matches!(
        device.buffer(),
        Err(Error::NoBuffer { count: 24, .. })
    ));
    drop(taken);
    device.buffer().unwrap();
}
