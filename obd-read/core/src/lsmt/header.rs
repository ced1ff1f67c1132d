// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The header and trailer of a layer.

use super::MAX_SECTORS;
use crate::SECTOR;
use crate::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use crate::le;

/// Bytes a header takes in the file, and a trailer.
pub(crate) const SPACE: u64 = 4096;

/// Sectors of the header: no data lies before.
pub(crate) const HEADER_SECTORS: u64 = SPACE / crate::SECTOR;

/// Bytes of it that mean something.
pub(crate) const SIZE: usize = 390;

const MAGIC: [u8; 24] = [
    0x4C, 0x53, 0x4D, 0x54, 0x00, 0x01, 0x02, 0x00, 0x65, 0x7E, 0x63, 0xD2, 0x94, 0x44, 0x08, 0x4C,
    0xA2, 0xD2, 0xC8, 0xEC, 0x4F, 0xCF, 0xAE, 0x8A,
];

/// Header, as opposed to trailer.
const HEADER: u32 = 1 << 0;
/// Data file, as opposed to index file.
const DATA: u32 = 1 << 1;
/// Complete.
const SEALED: u32 = 1 << 2;
/// A data file with holes, addressed by sector of the image.
const SPARSE: u32 = 1 << 4;

/// What a layer says of itself besides its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    uuid: [u8; 36],
    parent: [u8; 36],
    tag: [u8; 256],
}

impl Label {
    /// The layer's UUID as stored: text, not always that of a UUID.
    pub fn uuid(&self) -> &[u8] {
        &self.uuid
    }

    /// The UUID of the layer below when this one was made, as stored.
    pub fn parent_uuid(&self) -> &[u8] {
        &self.parent
    }

    /// The commit message, up to 256 bytes, as stored.
    pub fn message(&self) -> &[u8] {
        self.tag.split(|byte| *byte == 0).next().unwrap_or(&[])
    }
}

/// Header or trailer, as stored.
pub(crate) struct Header {
    pub(crate) flags: u32,
    pub(crate) index_offset: u64,
    /// Entries of the index, padding included.
    pub(crate) index_size: u64,
    /// Bytes.
    pub(crate) virtual_size: u64,
    pub(crate) label: Label,
}

impl Header {
    /// Whether `bytes` begin like a layer.
    pub(crate) fn is_lsmt(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// The fields of a block with the right magic bytes.
    pub(crate) fn parse(bytes: &[u8; SIZE]) -> Option<Self> {
        if !Self::is_lsmt(bytes) {
            return None;
        }
        let mut label = Label {
            uuid: [0; 36],
            parent: [0; 36],
            tag: [0; 256],
        };
        copy(&mut label.uuid, bytes, 56);
        copy(&mut label.parent, bytes, 93);
        copy(&mut label.tag, bytes, 134);
        Some(Self {
            flags: le::u32_at(bytes, 28),
            index_offset: le::u64_at(bytes, 32),
            index_size: le::u64_at(bytes, 40),
            virtual_size: le::u64_at(bytes, 48),
            label,
        })
    }

    /// Checks the virtual size, for errors in `place`.
    pub(crate) fn check_size<E>(&self, place: Place) -> Result<(), Error<E>> {
        if !self.virtual_size.is_multiple_of(SECTOR) {
            return Err(Fault::error(
                place,
                Reason::Field {
                    name: "virtual size",
                    value: self.virtual_size,
                },
            ));
        }
        if self.virtual_size / SECTOR > MAX_SECTORS {
            return Err(Error::Unsupported(Unsupported::TooLarge {
                name: "sectors of virtual size, 2^50 at most",
                value: self.virtual_size / SECTOR,
            }));
        }
        Ok(())
    }

    /// Whether the flags are those of a data file's header.
    pub(crate) fn is_data_header(&self) -> bool {
        self.flags & (HEADER | DATA) == HEADER | DATA
    }

    /// Whether the flags are those of an index file's header.
    pub(crate) fn is_log_header(&self) -> bool {
        self.flags & (HEADER | DATA) == HEADER
    }

    /// Whether the flags are those of a complete layer's trailer.
    pub(crate) fn is_trailer(&self) -> bool {
        self.flags & (HEADER | DATA | SEALED) == DATA | SEALED
    }

    /// Whether a header is that of a layer written in one go (committed), as
    /// opposed to one that was sealed after having been written to.
    pub(crate) fn is_committed(&self) -> bool {
        self.flags & SEALED != 0
    }

    /// Whether data lies at its own address, and holes are holes of the file.
    pub(crate) fn is_sparse(&self) -> bool {
        self.flags & SPARSE != 0
    }
}

/// Fills `field` from byte `at` of `bytes` on.
fn copy(field: &mut [u8], bytes: &[u8], at: usize) {
    if let Some(from) = bytes.get(at..at.saturating_add(field.len())) {
        field.copy_from_slice(from);
    }
}
