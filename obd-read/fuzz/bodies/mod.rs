// SPDX-License-Identifier: MIT

//! What the fuzz targets do with their input. `cargo test` runs the same on the
//! fixtures and on mutations of them.

use obd_core::error::Error;
use obd_core::image::Image;
use obd_core::index::{
    Contents,
    Piece, //
};
use obd_core::lsmt::{
    Layer,
    Opened,
    Segment, //
};
use obd_core::platform::Crc32c;
use obd_core::scratch::{
    Fetch,
    Scratch, //
};
use obd_core::source::{
    Bytes,
    Outside,
    Source,
    Window, //
};
use obd_core::tar;
use obd_core::zfile::ZFile;
use obd_host::{
    Hardware,
    Host, //
};

type Blob<'a> = Bytes<&'a [u8]>;

/// Longest content that is compared byte by byte.
const COMPARED: u64 = 1 << 20;

/// Opens a zfile and reads it whole, by block and at odd places: all must say
/// the same. Then the same again with its checksums made right, so that what
/// lies behind them is reached.
pub(crate) fn zfile(input: &[u8]) {
    zfile_once(input);
    let mut repaired = input.to_vec();
    repair(&mut repaired);
    zfile_once(&repaired);
}

fn zfile_once(input: &[u8]) {
    let Ok(file) = ZFile::<_, Host>::open(Window::whole(Bytes(input))) else {
        return;
    };
    let info = file.info();
    assert!(info.blocks <= input.len() as u64, "more blocks than bytes");
    assert!(
        file.memory() <= 3 * input.len() + 40,
        "jump table too large"
    );
    let mut end = 512;
    for number in 0..info.blocks {
        let extent = file.extent(number).expect("a block has an extent");
        assert_eq!(extent.offset, end);
        end += u64::from(extent.len);
    }
    assert_eq!(end, info.index_offset);
    assert_eq!(file.extent(info.blocks), None);

    let mut scratch = Scratch::new(file.needs()).expect("scratch is small");
    let size = file.size().min(COMPARED);
    let mut whole = vec![0; size as usize];
    let all_good = file.read_at(0, &mut whole, &mut scratch).is_ok();
    let mut good = 0;
    let blocks = size.div_ceil(file.block_size() as u64);
    for number in 0..blocks {
        let at = number * file.block_size() as u64;
        let len = file.decoded_len(number).min((size - at) as usize);
        let mut block = vec![0xee; len];
        if file.read_at(at, &mut block, &mut scratch).is_ok() {
            good += 1;
            if all_good {
                assert_eq!(block, whole[at as usize..][..len]);
            }
        }
    }
    assert_eq!(all_good, good == blocks);
    for (at, len) in [
        (1, 511),
        (4095, 2),
        (4000, 9000),
        (size / 2, size - size / 2),
    ] {
        let mut part = vec![0xee; len as usize];
        let result = file.read_at(at, &mut part, &mut scratch);
        if at + len > file.size() {
            assert!(matches!(result, Err(Error::OutOfRange { .. })));
        } else if all_good && at + len <= size {
            assert_eq!(part, whole[at as usize..][..len as usize]);
        }
    }
    let mut byte = [0];
    assert!(file.read_at(file.size(), &mut byte, &mut scratch).is_err());
    assert!(file.read_at(u64::MAX, &mut byte, &mut scratch).is_err());

    let mut kept = Scratch::new(file.needs()).expect("scratch is small");
    for read in reads(size, 1) {
        if read.fetched {
            let fetch = file.fetch(read.at, read.len as u64, FETCHED);
            bring(fetch, file.file().source(), read.start, &mut kept);
        }
        let (mut got, mut want) = (vec![0xee; read.len], vec![0xaa; read.len]);
        let next = file.read_next(read.at, &mut got, read.ahead, &mut kept);
        let alone = file.read_at(read.at, &mut want, &mut scratch);
        assert_eq!(next.is_ok(), alone.is_ok(), "{read:?}");
        assert!(next.is_err() || got == want, "{read:?}");
    }
}

/// Bytes that the driver reads at once at most, before a worker decodes them.
const FETCHED: usize = 120 << 10;

/// A read as the driver does them: by buffers that hold what is left of the read before, with
/// more wanted next, or with the stored bytes brought before it.
#[derive(Debug)]
struct Read {
    at: u64,
    len: usize,
    ahead: u64,
    fetched: bool,
    /// Where in the buffer the stored bytes are brought to.
    start: usize,
}

/// Reads of `size` bytes: behind each other, and again; all numbers multiples of `unit`.
fn reads(size: u64, unit: u64) -> impl Iterator<Item = Read> {
    let cut = move |number: u64| number / unit * unit;
    (0..24).scan(0, move |next, i: usize| {
        let at = match i % 4 {
            3 => cut(size * i as u64 / 24),
            _ => *next,
        };
        let len = cut([512, 4096, 9216, 65_536 + 512][i % 4].min(size - at));
        *next = if at + len < size { at + len } else { 0 };
        Some(Read {
            at,
            len: len as usize,
            ahead: cut([0, 4096, 131_072][i % 3].min(size - at - len)),
            fetched: i % 5 < 3,
            start: i * 21,
        })
    })
}

/// Brings what is to be fetched to the scratch, all of which lies in the file.
fn bring(fetch: Option<Fetch>, blob: &Blob<'_>, start: usize, scratch: &mut Scratch<Host>) {
    let Some(fetch) = fetch else { return };
    assert!(fetch.len <= FETCHED);
    let room = &mut scratch.room()[start..][..fetch.len];
    blob.read_exact_at(fetch.at, room)
        .expect("it is in the file");
    scratch.fetched(&fetch, start);
}

/// Writes the right digests into a zfile's header and trailer, and the right
/// checksum of its jump table, wherever it says that is.
fn repair(file: &mut [u8]) {
    let Some(at) = file.len().checked_sub(512) else {
        return;
    };
    let field = |file: &[u8], at: usize| {
        let bytes = file.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let start = usize::try_from(field(file, at + 40)).unwrap_or(usize::MAX);
    if let Some(index) = file.get(start.min(at)..at) {
        let crc = Hardware::crc32c(0, index);
        file[at + 64..at + 68].copy_from_slice(&crc.to_le_bytes());
    }
    for at in [at, 0] {
        file[at + 28..at + 32].fill(0);
        let digest = Hardware::crc32c(0, &file[at..at + 512]);
        file[at + 28..at + 32].copy_from_slice(&digest.to_le_bytes());
    }
}

/// Opens layers, stacks them and compares look-ups with a search through all
/// segments. The first byte says how the rest is cut into files: 0 one layer,
/// 1 two layers, 2 data and log of a read-write layer.
pub(crate) fn lsmt(input: &[u8]) {
    let Some((kind, files)) = input.split_first() else {
        return;
    };
    let half = (files.len() / 2) & !511;
    let (first, second) = files.split_at(half);
    let layers: Vec<_> = match kind % 3 {
        0 => vec![Layer::open(Bytes(files))],
        1 => vec![Layer::open(Bytes(first)), Layer::open(Bytes(second))],
        _ => vec![Layer::open_log(Bytes(first), Bytes(second))],
    };
    stack(layers.into_iter().flatten().collect());
}

fn stack(layers: Vec<Layer<Blob<'_>, Host>>) {
    let segments: Vec<Vec<_>> = layers
        .iter()
        .map(|layer| layer.segments().to_vec())
        .collect();
    for list in &segments {
        assert!(list.iter().all(|segment| !segment.is_empty()));
        assert!(list.windows(2).all(|pair| pair[0].end() <= pair[1].lba()));
    }
    let Ok(image) = Image::new(layers) else {
        return;
    };
    let sectors = image.size() / 512;
    let index = image.index();
    let total: usize = segments.iter().map(Vec::len).sum();
    assert!(index.len() <= 2 * total);

    let mut scratch = Scratch::new(image.needs()).expect("scratch is small");
    let mut buf = vec![0xee; 32 << 10];
    let places = segments.iter().flatten().take(64);
    let places = places.flat_map(|segment| [segment.lba().saturating_sub(3), segment.end()]);
    for lba in places.chain([0, sectors / 2, sectors.saturating_sub(8)]) {
        let mut at = lba;
        for piece in index.pieces(lba, 40) {
            assert_eq!(piece.lba, at);
            at += piece.len;
            for i in [0, piece.len - 1] {
                assert_eq!(what(&piece, i), model(&segments, sectors, piece.lba + i));
            }
        }
        assert_eq!(at, lba + 40);
        let result = image.read_at(lba * 512, &mut buf, &mut scratch);
        if lba + 64 > sectors {
            assert!(result.is_err(), "read beyond the image");
        }
    }
    assert!(image.read_at(1, &mut buf[..512], &mut scratch).is_err());
    assert!(image.read_at(0, &mut buf[..511], &mut scratch).is_err());

    let mut kept = Scratch::new(image.needs()).expect("scratch is small");
    let first = segments.iter().flatten().map(Segment::lba).min();
    let begin = first.unwrap_or_default().min(sectors) * 512;
    for read in reads((image.size() - begin).min(COMPARED) / 512 * 512, 512) {
        let at = begin + read.at;
        if read.fetched
            && let Some(fetch) = image.fetch(at, read.len as u64, FETCHED)
        {
            let blob = image.layers()[fetch.layer].file().source();
            bring(Some(fetch), blob, read.start, &mut kept);
        }
        let (mut got, mut want) = (vec![0xee; read.len], vec![0xaa; read.len]);
        let next = image.read_next(at, &mut got, read.ahead, &mut kept);
        let alone = image.read_at(at, &mut want, &mut scratch);
        assert_eq!(next.is_ok(), alone.is_ok(), "{read:?}");
        assert!(next.is_err() || got == want, "{read:?}");
    }
}

fn what(piece: &Piece, i: u64) -> Contents {
    match piece.what {
        Contents::Data { layer, sector } => Contents::Data {
            layer,
            sector: sector + i,
        },
        other => other,
    }
}

/// What a sector holds, from all segments, the topmost layer's first.
fn model(layers: &[Vec<Segment>], sectors: u64, lba: u64) -> Contents {
    for (i, list) in layers.iter().enumerate().rev() {
        let covers = |segment: &&Segment| (segment.lba()..segment.end()).contains(&lba);
        if let Some(segment) = list.iter().find(covers).filter(|_| lba < sectors) {
            return match segment.is_zeroed() {
                true => Contents::Zeros,
                false => Contents::Data {
                    layer: i as u8,
                    sector: segment.moffset() + lba - segment.lba(),
                },
            };
        }
    }
    Contents::Hole
}

/// Finds the payload of a tar file, which must lie in it, and opens what is
/// there.
pub(crate) fn wrapped(input: &[u8]) {
    let found: Result<_, Error<Outside>> = tar::payload(&Window::whole(Bytes(input)));
    if let Ok(Some(payload)) = found {
        assert!(payload.offset == 512 || payload.offset == 1536);
        assert!(payload.offset + payload.len <= input.len() as u64);
    }
    match Layer::<_, Host>::probe(Bytes(input)) {
        Ok(Opened::Layer(layer)) => stack(vec![layer]),
        Ok(Opened::ZFile(file)) => assert!(file.size() < 256 * 64 * input.len() as u64 + 1),
        Err(_) => {}
    }
}
