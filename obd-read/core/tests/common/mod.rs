// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The fixtures and how to decode them.

#![allow(dead_code, reason = "each test file uses its part")]

use obd_core::error::Error;
use obd_core::image::Image;
use obd_core::lsmt::{
    Layer,
    Opened, //
};
use obd_core::platform::Crc32c;
use obd_core::scratch::Scratch;
use obd_core::source::{
    Bytes,
    Outside,
    Window, //
};
use obd_core::tar;
use obd_core::zfile::ZFile;
use obd_host::{
    Hardware,
    Host, //
};
use serde_json::Value;
use sha2::{
    Digest,
    Sha256, //
};
use std::path::PathBuf;

pub(crate) type Blob = Bytes<Vec<u8>>;
pub(crate) type TestZFile = ZFile<Blob, Host>;
pub(crate) type TestLayer = Layer<Blob, Host>;
pub(crate) type TestImage = Image<Blob, Host, Vec<TestLayer>>;
pub(crate) type Fails = Error<Outside>;

/// The bytes of a fixture.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../fixtures", name]
        .iter()
        .collect();
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The entries of the manifest.
pub(crate) fn manifest() -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&fixture("MANIFEST.json")).unwrap();
    manifest["entries"].as_array().unwrap().clone()
}

/// The text in field `key`.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key}: {value}"))
}

/// The number in field `key`.
pub(crate) fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key}: {value}"))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a zfile, past a tar wrapper.
pub(crate) fn zfile(bytes: Vec<u8>) -> Result<TestZFile, Fails> {
    let file = Window::whole(Bytes(bytes));
    match tar::payload(&file)? {
        Some(payload) => ZFile::open(file.part(payload.offset, payload.len)?),
        None => ZFile::open(file),
    }
}

pub(crate) fn layer(bytes: Vec<u8>) -> Result<TestLayer, Fails> {
    Layer::open(Bytes(bytes))
}

/// Reads a zfile from end to end in pieces of changing size.
pub(crate) fn decode_zfile(file: &TestZFile) -> Result<Vec<u8>, Fails> {
    let mut scratch = Scratch::new(file.needs())?;
    let mut content = vec![0; file.size() as usize];
    let mut at = 0;
    for size in [1, 4096, 100_000, 13, 1 << 20].into_iter().cycle() {
        if at == content.len() {
            break;
        }
        let end = content.len().min(at + size);
        file.read_at(at as u64, &mut content[at..end], &mut scratch)?;
        at = end;
    }
    Ok(content)
}

/// Stacks layers, bottom to top, and adds what to do about errors.
pub(crate) fn image(layers: Vec<TestLayer>) -> Result<TestImage, Fails> {
    Image::new(layers)
}

/// The hash of an image, read in pieces of changing size.
pub(crate) fn hash_image(image: &TestImage) -> Result<String, Fails> {
    let mut scratch = Scratch::new(image.needs())?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 4 << 20];
    let mut at = 0;
    for size in [512, 4 << 20, 1536, 4096, 1 << 20].into_iter().cycle() {
        let len = (image.size() - at).min(size);
        if len == 0 {
            break;
        }
        let part = &mut buf[..len as usize];
        part.fill(0xee);
        image
            .read_at(at, part, &mut scratch)
            .map_err(|error| error.error)?;
        hash.update(&*part);
        at += len;
    }
    Ok(hex(&hash.finalize()))
}

/// Decodes whatever a file is to its content, or its image.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<Vec<u8>, Fails> {
    match TestLayer::probe(Bytes(bytes))? {
        Opened::ZFile(file) => decode_zfile(&file),
        Opened::Layer(layer) => {
            let image = image(vec![layer])?;
            let mut content = vec![0; image.size() as usize];
            let mut scratch = Scratch::new(image.needs())?;
            image
                .read_at(0, &mut content, &mut scratch)
                .map_err(|error| error.error)?;
            Ok(content)
        }
    }
}

/// A layer of `{lba, len, zeroed}` segments with their data one behind the
/// other, as a commit writes it; sector `s` of the data holds `s` everywhere.
pub(crate) fn committed(segments: &[(u64, u64, bool)], virtual_size: u64) -> Vec<u8> {
    let mut moffset = 8;
    let mut index = Vec::new();
    for (lba, len, zeroed) in segments {
        index.extend((lba | len << 50).to_le_bytes());
        index.extend((moffset | u64::from(*zeroed) << 55).to_le_bytes());
        moffset += if *zeroed { 0 } else { *len };
    }
    let mut file = lsmt_header(7, 0, 0, virtual_size);
    for sector in 8..moffset {
        file.extend([sector as u8; 512]);
    }
    let offset = file.len() as u64;
    file.extend(&index);
    file.extend(lsmt_header(6, offset, segments.len() as u64, virtual_size));
    file
}

/// A header or trailer of a layer; `flags` say which.
pub(crate) fn lsmt_header(
    flags: u32,
    index_offset: u64,
    index_size: u64,
    virtual_size: u64,
) -> Vec<u8> {
    let mut bytes = fixture("a-l03-empty.layer")[..4096].to_vec();
    bytes[28..32].copy_from_slice(&flags.to_le_bytes());
    bytes[32..40].copy_from_slice(&index_offset.to_le_bytes());
    bytes[40..48].copy_from_slice(&index_size.to_le_bytes());
    bytes[48..56].copy_from_slice(&virtual_size.to_le_bytes());
    bytes
}

/// Makes the digest of a zfile's header or trailer right.
pub(crate) fn redigest(file: &mut [u8], at: usize) {
    file[at + 28..at + 32].fill(0);
    let digest = Hardware::crc32c(0, &file[at..at + 512]);
    file[at + 28..at + 32].copy_from_slice(&digest.to_le_bytes());
}

/// A zfile with its jump table stored compressed, as upstream does on request
/// since 2026, and where that begins.
pub(crate) fn compress_table(original: &[u8]) -> (Vec<u8>, usize) {
    let trailer = original.len() - 512;
    let index_offset = number_at(original, trailer + 40) as usize;
    let packed = lz4_flex::block::compress(&original[index_offset..trailer]);

    let mut file = original[..index_offset].to_vec();
    file.extend(&packed);
    let at = file.len();
    file.extend(&original[trailer..]);
    file[at + 32] |= 1 << 5;
    file[at + 48..at + 56].copy_from_slice(&(packed.len() as u64).to_le_bytes());
    let crc = Hardware::crc32c(0, &packed);
    file[at + 64..at + 68].copy_from_slice(&crc.to_le_bytes());
    redigest(&mut file, at);
    (file, index_offset)
}

/// The 8 bytes at `at` as a number.
pub(crate) fn number_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
