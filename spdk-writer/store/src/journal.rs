// SPDX-License-Identifier: MIT

//! How far a layer got, written now and then while it is being written.
//!
//! A record is written only when everything it speaks of is durable, and every
//! record is durable before the next is written. So the records up to the first
//! that is not there, or not whole, are true.

use crate::error::Error;
use crate::format::{
    BLOCK,
    Pending,
    array,
    crc,
    u32_at,
    u64_at, //
};
use obd_engine::Shared;
use obd_writer::Checkpoint;

/// What the first bytes of a record are.
const MAGIC: [u8; 8] = *b"OBDJRNL\0";

/// Bytes before the tail.
const HEADER: usize = 64;

/// Bytes of journal that a layer of `content` bytes needs, with a record every
/// `interval` bytes, in blocks of `block_size` bytes (0 if none are compressed).
pub(crate) fn room(content: u64, interval: u64, block_size: u32) -> u64 {
    let records = content / interval + 1;
    let lens = match block_size {
        0 => 0,
        size => content.div_ceil(u64::from(size)) * 4,
    };
    // Each has a header, less than a block of tail, and is rounded up.
    lens.next_multiple_of(BLOCK) + records * 3 * BLOCK
}

/// Where the next record goes.
#[derive(Debug, Default)]
pub(crate) struct Position {
    /// Bytes from the beginning of the journal.
    at: u64,
    sequence: u64,
}

/// What a journal says.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) checkpoint: Checkpoint,
    /// The last bytes, beyond whole blocks: they are not in the layer's place.
    pub(crate) tail: Vec<u8>,
    pub(crate) next: Position,
}

/// A record of `lens` more blocks: `content` bytes are done, `stored` bytes long.
pub(crate) fn encode(
    pending: &Pending,
    position: &Position,
    content: u64,
    stored: u64,
    tail: &[u8],
    lens: &[u32],
) -> Vec<u8> {
    let len = HEADER + tail.len() + lens.len() * 4;
    let mut bytes = Vec::with_capacity(len.next_multiple_of(BLOCK as usize));
    bytes.extend(MAGIC);
    bytes.extend([0; 4]);
    // Both are bounded by the journal's size.
    bytes.extend((lens.len() as u32).to_le_bytes());
    for number in [pending.id, position.sequence, content, stored] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend((tail.len() as u32).to_le_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(tail);
    bytes.extend(lens.iter().flat_map(|len| len.to_le_bytes()));
    let checksum = crc(&bytes);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    bytes
}

/// Writes a record; it is durable after the next flush.
pub(crate) fn write(
    device: &Shared,
    pending: &Pending,
    position: &mut Position,
    record: &[u8],
) -> Result<(), Error> {
    let end = position.at + record.len() as u64;
    if end > pending.journal {
        return Err(Error::Full {
            wanted: end,
            free: pending.journal,
            largest: pending.journal,
        });
    }
    device.write(pending.extent.start + position.at, record)?;
    position.at = end;
    position.sequence += 1;
    Ok(())
}

/// The last true record, with what all of them say of blocks; [`None`] if there
/// is none.
pub(crate) fn read(device: &Shared, pending: &Pending) -> Result<Option<Found>, Error> {
    let mut found: Option<Found> = None;
    let mut position = Position::default();
    let mut lens = Vec::new();
    while let Some(record) = next(device, pending, &position)? {
        position.at += record.len() as u64;
        position.sequence += 1;
        let tail = u32_at(&record, 48) as usize;
        let count = u32_at(&record, 12) as usize;
        let more = record[HEADER + tail..].chunks_exact(4).take(count);
        lens.extend(more.map(|bytes| u32_at(bytes, 0)));
        found = Some(Found {
            checkpoint: Checkpoint {
                content: u64_at(&record, 32),
                stored: u64_at(&record, 40),
                lens: Vec::new(),
            },
            tail: record[HEADER..HEADER + tail].to_vec(),
            next: Position {
                at: position.at,
                sequence: position.sequence,
            },
        });
    }
    if let Some(found) = &mut found {
        found.checkpoint.lens = lens;
    }
    Ok(found)
}

/// The record at `position`, padding included, if it is there and whole.
fn next(device: &Shared, pending: &Pending, position: &Position) -> Result<Option<Vec<u8>>, Error> {
    let rest = pending.journal - position.at;
    if rest < BLOCK {
        return Ok(None);
    }
    let start = pending.extent.start + position.at;
    let mut record = vec![0; BLOCK as usize];
    device.read(start, &mut record)?;
    let count = u64::from(u32_at(&record, 12));
    let tail = u64::from(u32_at(&record, 48));
    let len = HEADER as u64 + tail + count * 4;
    let stored = u64_at(&record, 40);
    let ours = array(&record, 0) == MAGIC
        && u64_at(&record, 16) == pending.id
        && u64_at(&record, 24) == position.sequence
        && tail < BLOCK
        && stored % BLOCK == tail
        && len.next_multiple_of(BLOCK) <= rest
        && stored <= pending.extent.len - pending.journal;
    if !ours {
        return Ok(None);
    }
    // No longer than the journal, which is on the device.
    record.resize(len.next_multiple_of(BLOCK) as usize, 0);
    device.read(start + BLOCK, &mut record[BLOCK as usize..])?;
    let checksum = u32_at(&record, 8);
    record[8..12].fill(0);
    let whole = crc(&record[..len as usize]) == checksum;
    Ok(whole.then_some(record))
}
