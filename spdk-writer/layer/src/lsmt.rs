// SPDX-License-Identifier: MIT

//! The bytes of LSMT: headers, trailers and segments.
//!
//! Source: `overlaybd/src/overlaybd/lsmt/{file,index}.cpp`.

use uuid::Uuid;

/// Bytes a header takes, and a trailer.
pub(crate) const SPACE: usize = 4096;

/// Sectors of the header: the first data sector.
pub(crate) const HEADER_SECTORS: u64 = 8;

/// Bytes of a segment.
pub(crate) const ENTRY: usize = 16;

/// Entries of an index are padded to a multiple of this: 4096 bytes.
pub(crate) const PAGE: usize = 256;

/// Largest address, sectors: the one above marks padding.
pub(crate) const MAX_LBA: u64 = (1 << 50) - 2;

/// Longest commit message, bytes: what a reader in C takes for a string.
pub(crate) const MAX_MESSAGE: usize = 255;

const MAGIC: [u8; 24] = [
    0x4C, 0x53, 0x4D, 0x54, 0x00, 0x01, 0x02, 0x00, 0x65, 0x7E, 0x63, 0xD2, 0x94, 0x44, 0x08, 0x4C,
    0xA2, 0xD2, 0xC8, 0xEC, 0x4F, 0xCF, 0xAE, 0x8A,
];

/// Which header or trailer: its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Part {
    /// The index file of a read-write layer.
    Log = 1,
    /// The data file of a read-write layer.
    Data = 3,
    /// The data file of a sparse read-write layer.
    SparseData = 0x13,
    /// The trailer of a committed layer.
    Trailer = 6,
    /// The header of a committed layer.
    Header = 7,
}

/// What a layer says of itself besides its segments.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    /// Bytes.
    pub(crate) virtual_size: u64,
    pub(crate) uuid: [u8; 36],
    pub(crate) parent: [u8; 36],
    /// At most [`MAX_MESSAGE`] bytes, none of them NUL.
    pub(crate) message: Vec<u8>,
}

/// A UUID as stored: upper case, with hyphens.
pub(crate) fn uuid_text(uuid: Uuid) -> [u8; 36] {
    let mut text = [0; 36];
    uuid.hyphenated().encode_upper(&mut text);
    text
}

/// A header or trailer with its index of `entries` at byte `index_offset`.
pub(crate) fn header(part: Part, label: &Label, index_offset: u64, entries: u64) -> [u8; SPACE] {
    let mut bytes = [0; SPACE];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &MAGIC);
    put(24, &390u32.to_le_bytes());
    put(28, &(part as u32).to_le_bytes());
    put(32, &index_offset.to_le_bytes());
    put(40, &entries.to_le_bytes());
    put(48, &label.virtual_size.to_le_bytes());
    put(56, &label.uuid);
    put(93, &label.parent);
    // Version 1.1.
    put(132, &[1, 1]);
    put(134, &label.message);
    bytes
}

/// `len` sectors at `lba`, their data at sector `moffset` of the layer.
pub(crate) fn segment(lba: u64, len: u64, moffset: u64, zeroed: bool) -> [u8; ENTRY] {
    let low = lba | len << 50;
    let high = moffset | u64::from(zeroed) << 55;
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// An entry that maps nothing.
pub(crate) fn padding() -> [u8; ENTRY] {
    segment(MAX_LBA + 1, 0, 0, false)
}
