// SPDX-License-Identifier: MIT

//! Many requests at once, against the core's reads of the same files.

use super::*;
use crate::disk::Content;
use crate::ring::Event;
use obd_core::{
    Image,
    Layer,
    SECTOR,
    Scratch,
    Window,
    tar, //
};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{
    Path,
    PathBuf, //
};

const DEPTH: usize = 32;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// Opens what is there like `obd attach` does: a zfile by its name, or layers.
fn open(paths: &[PathBuf]) -> Result<Content, obd_core::Error<io::Error>> {
    open_by(paths, |path| File::open(path).unwrap())
}

/// The same where each file lies in another one, among other bytes.
fn open_among_others(paths: &[PathBuf]) -> Result<Content, obd_core::Error<io::Error>> {
    open_by(paths, |path| {
        let bytes = fs::read(path).unwrap();
        let mut others = tempfile::NamedTempFile::new().unwrap();
        for part in [&[0x5a; 1000][..], &bytes, &[0xa5; 99]] {
            others.write_all(part).unwrap();
        }
        File::open_part(others.path(), &(1000..1000 + bytes.len() as u64)).unwrap()
    })
}

fn open_by(
    paths: &[PathBuf],
    file: impl Fn(&PathBuf) -> File,
) -> Result<Content, obd_core::Error<io::Error>> {
    if let [path] = paths
        && path.extension().is_some_and(|name| name == "zfile")
    {
        let file = Window::whole(file(path));
        let file = match tar::payload(&file)? {
            Some(payload) => file.part(payload.offset, payload.len)?,
            None => file,
        };
        return ZFile::open(file).map(Content::ZFile);
    }
    let layers: Result<_, _> = paths.iter().map(|path| Layer::open(file(path))).collect();
    Image::new(layers?).map(Content::Image)
}

/// Every image among the fixtures, damaged or not: the files of its layers.
fn images() -> Vec<Vec<PathBuf>> {
    let text = fs::read(fixtures().join("MANIFEST.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut images = Vec::new();
    for entry in manifest["entries"].as_array().unwrap() {
        if entry["class"] == "rw-layer" || !entry["upper"].is_null() {
            continue;
        }
        let names: Vec<_> = match entry["layers"].as_array() {
            Some(layers) => layers.iter().filter_map(|name| name.as_str()).collect(),
            None => entry["file"].as_str().into_iter().collect(),
        };
        images.push(names.iter().map(|name| fixtures().join(name)).collect());
    }
    images
}

/// What the core reads there, zeros behind the end of a zfile.
fn expected(
    content: &Content,
    scratch: &mut Scratch<Host>,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, ReadError> {
    let mut buf = vec![0xee; len];
    match content {
        Content::Image(image) => image.read_at(offset, &mut buf, scratch)?,
        Content::ZFile(file) => {
            let there = file.size().saturating_sub(offset).min(len as u64) as usize;
            buf[there..].fill(0);
            let read = file.read_at(offset, &mut buf[..there], scratch);
            read.map_err(|error| LayerError {
                layer: Some(0),
                error,
            })?;
        }
    }
    Ok(buf)
}

/// Reads `ranges` of `disk`, [`DEPTH`] at a time, and tells `check` what came of
/// each.
fn read_all(
    disk: Disk,
    ranges: &[(u64, usize)],
    mut check: impl FnMut(usize, Result<&[u8], ReadError>),
) {
    let disk = Arc::new(disk);
    let mut files = vec![-1];
    files.extend(disk.files().iter().map(|file| file.as_raw_fd()));
    let mut ring = Ring::new(DEPTH, &files).unwrap();
    let mut reader = Reader::new(Arc::clone(&disk), DEPTH).unwrap();
    let mut idle: Vec<usize> = (0..DEPTH).collect();
    let mut flying = [0; DEPTH];
    let mut next = 0;
    let mut events = Vec::new();
    while next < ranges.len() || idle.len() < DEPTH {
        while let Some(&(offset, len)) = ranges.get(next) {
            let Some(tag) = idle.pop() else {
                break;
            };
            flying[tag] = next;
            next += 1;
            // What was there before must not pass for what was read.
            reader
                .data
                .get_mut(tag * MAX_BYTES, len)
                .unwrap()
                .fill(0xdd);
            match reader.start(&mut ring, tag, offset, len).unwrap() {
                Progress::Waiting => {}
                Progress::Done(result) => {
                    check(flying[tag], result.map(|()| reader.data(tag)));
                    idle.push(tag);
                }
            }
        }
        if idle.len() == DEPTH {
            continue;
        }
        ring.enter(1).unwrap();
        ring.collect(&mut events);
        for event in events.drain(..) {
            let Event::Read {
                tag,
                number,
                result,
            } = event
            else {
                panic!("{event:?}");
            };
            if let Progress::Done(result) =
                reader.completed(&mut ring, tag, number, result).unwrap()
            {
                check(flying[tag], result.map(|()| reader.data(tag)));
                idle.push(tag);
            }
        }
    }
}

/// Some ranges of whole sectors, short ones and long ones, and the ends.
fn ranges(sectors: u64, count: usize) -> Vec<(u64, usize)> {
    let most = (MAX_BYTES as u64 / SECTOR).min(sectors);
    let mut random = fastrand::Rng::with_seed(sectors);
    let mut ranges: Vec<_> = (0..count)
        .map(|_| {
            let share = random.f64().powi(3);
            let len = random.u64(1..=1 + (share * (most - 1) as f64) as u64);
            (random.u64(0..=sectors - len), len)
        })
        .collect();
    ranges.push((0, most));
    ranges.push((sectors - most, most));
    ranges
        .iter()
        .map(|(at, len)| (at * SECTOR, (len * SECTOR) as usize))
        .collect()
}

#[test]
fn every_fixture_as_the_core_reads_it() {
    let (mut whole, mut damaged) = (0, 0);
    for (number, paths) in images().into_iter().enumerate() {
        let content = match number % 2 {
            0 => open(&paths),
            _ => open_among_others(&paths),
        };
        let (Ok(content), Ok(same)) = (content, open(&paths)) else {
            continue;
        };
        let disk = Disk::new(content, paths.clone());
        if disk.sectors() == 0 {
            continue;
        }
        let ranges = ranges(disk.sectors(), 200);
        let mut scratch = Scratch::new(disk.needs()).unwrap();
        let (mut done, mut failed) = (0, 0);
        read_all(disk, &ranges, |i, got| {
            let (offset, len) = ranges[i];
            done += 1;
            match (got, expected(&same, &mut scratch, offset, len)) {
                (Ok(got), Ok(expected)) => {
                    assert!(got == expected, "{paths:?}: {len} bytes at {offset}");
                }
                (Err(got), Err(expected)) => {
                    failed += 1;
                    assert_eq!(got.layer, expected.layer, "{paths:?}");
                    // Which of several it is depends on which read ends first.
                    assert!(matches!(got.error, obd_core::Error::Damaged(_)), "{got}");
                }
                (got, expected) => panic!(
                    "{paths:?}: {len} bytes at {offset}: {:?} instead of {:?}",
                    got.map(<[u8]>::len),
                    expected.map(|data| data.len()),
                ),
            }
        });
        assert_eq!(done, ranges.len());
        match failed {
            0 => whole += 1,
            _ => damaged += 1,
        }
    }
    assert!(
        whole >= 60 && damaged >= 3,
        "{whole} whole, {damaged} damaged"
    );
}

/// Runs `change` on a copy of fixture `name` that is open already, and returns how
/// reads of all of its blocks end.
fn changed(name: &str, change: impl FnOnce(&fs::File)) -> Vec<Result<(), String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::copy(fixtures().join(name), &path).unwrap();
    let paths = vec![path.clone()];
    let disk = Disk::new(open(&paths).unwrap(), paths);
    let Content::ZFile(zfile) = open(std::slice::from_ref(&path)).unwrap() else {
        panic!("{name} is no zfile");
    };
    let size = zfile.block_size();
    let ranges: Vec<_> = (0..zfile.size() / size as u64)
        .map(|number| (number * size as u64, size))
        .collect();
    let writable = fs::OpenOptions::new().write(true).open(&path).unwrap();
    change(&writable);
    let mut results = vec![Ok(()); ranges.len()];
    read_all(disk, &ranges, |i, got| {
        results[i] = got.map(|_| ()).map_err(|error| error.to_string());
    });
    results
}

#[test]
fn a_damaged_block_costs_its_readers_only() {
    let results = changed("a-z03-lz4-16k.zfile", |file| {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&[0x5a; 3], 600).unwrap();
    });
    let (first, rest) = results.split_first().unwrap();
    let text = first.as_ref().unwrap_err();
    assert!(text.contains("block 0 at byte 512: checksum"), "{text}");
    assert!(
        !rest.is_empty() && rest.iter().all(Result::is_ok),
        "{rest:?}"
    );
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let results = changed("a-z03-lz4-16k.zfile", |file| file.set_len(700).unwrap());
    for result in results {
        let text = result.unwrap_err();
        assert!(text.contains("cannot read"), "{text}");
    }
}
