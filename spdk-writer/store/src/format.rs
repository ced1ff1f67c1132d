// SPDX-License-Identifier: MIT

//! The bytes of superblocks and directories; `../FORMAT.md` describes them.

use crate::space::Extent;
use obd_core::Crc32c;
use obd_core::image::MAX_LAYERS;
use obd_host::Hardware;

/// What the first bytes of a superblock are.
pub const MAGIC: [u8; 8] = *b"OBDSTORE";

/// The version this writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Bytes of a superblock: the smallest atomic unit there is.
pub const SUPERBLOCK: usize = 512;

/// Bytes of an entry of the directory.
pub const ENTRY: usize = 128;

/// What extents begin at multiples of, and are multiples of, bytes.
pub const BLOCK: u64 = 4096;

/// Bytes of a superblock and its directory, and the room behind them.
pub const SLOT: u64 = 64 << 10;

/// Where in a slot the directory is.
pub const DIRECTORY: u64 = 4096;

/// Where extents begin: behind both slots.
pub const FIRST: u64 = 2 * SLOT;

/// The longest name of a layer, bytes.
pub const MAX_NAME: usize = 64;

const _: () = assert!(DIRECTORY + (MAX_LAYERS * ENTRY) as u64 <= SLOT);

/// CRC-32C that begins with all ones and ends as it is: `crc32c(~0, …)` in the
/// kernel.
pub fn crc(bytes: &[u8]) -> u32 {
    Hardware::crc32c(u32::MAX, bytes)
}

/// What is wrong with a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Something else is there.
    #[error("no superblock")]
    Magic,
    /// Another version.
    #[error("a superblock of version {0}")]
    Version(u32),
    /// The checksum is another.
    #[error("a damaged superblock")]
    Checksum,
    /// The directory's checksum is another.
    #[error("a damaged directory")]
    Directory,
    /// It says what cannot be; which field.
    #[error("a superblock with an impossible {0}")]
    Field(&'static str),
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is; at least as long as `len`.
    pub extent: Extent,
    /// Bytes of the layer's file.
    pub len: u64,
    /// Size of the image, bytes.
    pub virtual_size: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// The generation it came with: no two layers of a store have the same.
    pub id: u64,
    /// Bytes of data in it, before compression.
    pub data: u64,
    /// Its name, zeros behind it.
    pub name: [u8; MAX_NAME],
}

/// A layer that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// All the space it has: its journal first, then the layer.
    pub extent: Extent,
    /// Bytes of the journal.
    pub journal: u64,
    /// What it is made of: only the same may go on with it.
    pub identity: [u8; 16],
    /// Chosen at random: journals of others in the same place have another.
    pub id: u64,
}

/// A superblock with its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Which store it is.
    pub uuid: [u8; 16],
    /// The newer of two counts.
    pub generation: u64,
    /// Bytes of the device that are used.
    pub size: u64,
    /// Layers, bottom to top.
    pub layers: Vec<Entry>,
    /// At most one layer is being written.
    pub pending: Option<Pending>,
}

impl State {
    /// Where the superblock of this generation goes, bytes.
    pub fn slot(&self) -> u64 {
        self.generation % 2 * SLOT
    }

    /// Superblock and directory as stored.
    pub fn encode(&self) -> ([u8; SUPERBLOCK], Vec<u8>) {
        let mut directory = Vec::with_capacity(self.layers.len() * ENTRY);
        for entry in &self.layers {
            for number in [
                entry.extent.start,
                entry.len,
                entry.extent.len,
                entry.virtual_size,
            ] {
                directory.extend(number.to_le_bytes());
            }
            directory.extend(entry.uuid);
            directory.extend(entry.id.to_le_bytes());
            directory.extend(entry.data.to_le_bytes());
            directory.extend(entry.name);
        }
        let mut bytes = [0; SUPERBLOCK];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.uuid);
        put(32, &self.generation.to_le_bytes());
        put(40, &self.size.to_le_bytes());
        // 255 at most.
        put(48, &(self.layers.len() as u32).to_le_bytes());
        put(52, &crc(&directory).to_le_bytes());
        if let Some(pending) = &self.pending {
            put(56, &pending.extent.start.to_le_bytes());
            put(64, &pending.extent.len.to_le_bytes());
            put(72, &pending.journal.to_le_bytes());
            put(80, &pending.identity);
            put(96, &pending.id.to_le_bytes());
        }
        let checksum = crc(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        (bytes, directory)
    }

    /// What is in a slot of a device of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`Invalid`]; nothing in it is to be believed then.
    pub fn decode(slot: &[u8], number: u64, size: u64) -> Result<Self, Invalid> {
        let field = |name| Err(Invalid::Field(name));
        let Some((superblock, rest)) = slot.split_first_chunk::<SUPERBLOCK>() else {
            return Err(Invalid::Magic);
        };
        if superblock[..8] != MAGIC {
            return Err(Invalid::Magic);
        }
        let mut zeroed = *superblock;
        zeroed[12..16].fill(0);
        if crc(&zeroed) != u32_at(superblock, 12) {
            return Err(Invalid::Checksum);
        }
        match u32_at(superblock, 8) {
            VERSION => {}
            other => return Err(Invalid::Version(other)),
        }
        let count = u32_at(superblock, 48) as usize;
        if count > MAX_LAYERS {
            return field("number of layers");
        }
        let Some(directory) = rest
            .get(DIRECTORY as usize - SUPERBLOCK..)
            .and_then(|rest| rest.get(..count * ENTRY))
        else {
            return field("number of layers");
        };
        if crc(directory) != u32_at(superblock, 52) {
            return Err(Invalid::Directory);
        }
        let state = Self {
            uuid: array(superblock, 16),
            generation: u64_at(superblock, 32),
            size: u64_at(superblock, 40),
            layers: directory.chunks_exact(ENTRY).map(entry).collect(),
            pending: pending(superblock),
        };
        if state.generation % 2 != number || state.generation == 0 {
            return field("generation");
        }
        if !state.size.is_multiple_of(BLOCK) || state.size > size || state.size < FIRST {
            return field("size");
        }
        state.check()?;
        Ok(state)
    }

    /// Space nobody else may have, in no order.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        let pending = self.pending.iter().map(|pending| pending.extent);
        self.layers.iter().map(|layer| layer.extent).chain(pending)
    }

    /// Whether extents lie within the store and apart.
    fn check(&self) -> Result<(), Invalid> {
        let field = |name| Err(Invalid::Field(name));
        let mut extents: Vec<Extent> = self.extents().collect();
        for extent in &extents {
            let end = extent.start.checked_add(extent.len);
            let aligned = (extent.start | extent.len).is_multiple_of(BLOCK);
            if !aligned || extent.len == 0 || extent.start < FIRST {
                return field("extent");
            }
            if end.is_none_or(|end| end > self.size) {
                return field("extent");
            }
        }
        extents.sort_unstable_by_key(|extent| extent.start);
        // No sum wraps: all ends were looked at.
        if extents
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.start + a.len > b.start))
        {
            return field("overlap of extents");
        }
        for (n, layer) in self.layers.iter().enumerate() {
            if layer.len == 0 || layer.len > layer.extent.len {
                return field("length of a layer");
            }
            if layer.id == 0
                || layer.id > self.generation
                || self.layers[..n].iter().any(|other| other.id == layer.id)
            {
                return field("generation of a layer");
            }
        }
        match &self.pending {
            Some(pending)
                if pending.journal > pending.extent.len
                    || !pending.journal.is_multiple_of(BLOCK) =>
            {
                field("journal")
            }
            _ => Ok(()),
        }
    }
}

fn entry(bytes: &[u8]) -> Entry {
    Entry {
        extent: Extent {
            start: u64_at(bytes, 0),
            len: u64_at(bytes, 16),
        },
        len: u64_at(bytes, 8),
        virtual_size: u64_at(bytes, 24),
        uuid: array(bytes, 32),
        id: u64_at(bytes, 48),
        data: u64_at(bytes, 56),
        name: array(bytes, 64),
    }
}

fn pending(superblock: &[u8]) -> Option<Pending> {
    let extent = Extent {
        start: u64_at(superblock, 56),
        len: u64_at(superblock, 64),
    };
    (extent.len > 0).then(|| Pending {
        extent,
        journal: u64_at(superblock, 72),
        identity: array(superblock, 80),
        id: u64_at(superblock, 96),
    })
}

/// `N` bytes at `at`; zeros beyond the end.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    found.copied().unwrap_or([0; N])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    fn state() -> State {
        let entry = |n: u64| Entry {
            extent: Extent {
                start: FIRST + n * (1 << 20),
                len: 8192,
            },
            len: 8000,
            virtual_size: 1 << 30,
            uuid: [n as u8; 16],
            id: n + 1,
            data: 7000,
            name: [b'a'; 64],
        };
        State {
            uuid: [9; 16],
            generation: 5,
            size: SIZE,
            layers: (0..4).map(entry).collect(),
            pending: Some(Pending {
                extent: Extent {
                    start: 1 << 28,
                    len: 1 << 20,
                },
                journal: 4096,
                identity: [3; 16],
                id: 77,
            }),
        }
    }

    fn slot(state: &State) -> Vec<u8> {
        let (superblock, directory) = state.encode();
        let mut slot = vec![0; SLOT as usize];
        slot[..SUPERBLOCK].copy_from_slice(&superblock);
        slot[DIRECTORY as usize..][..directory.len()].copy_from_slice(&directory);
        slot
    }

    #[test]
    fn test_state_roundtrips_in_its_slot_only() {
        let state = state();
        assert_eq!(State::decode(&slot(&state), 1, SIZE), Ok(state.clone()));
        assert_eq!(
            State::decode(&slot(&state), 0, SIZE),
            Err(Invalid::Field("generation"))
        );
        assert_eq!(
            State::decode(&slot(&state), 1, SIZE - 4096),
            Err(Invalid::Field("size"))
        );
    }

    #[test]
    fn test_decode_every_flipped_bit_of_what_counts_is_noticed() {
        let good = slot(&state());
        let directory = DIRECTORY as usize..DIRECTORY as usize + 4 * ENTRY;
        for at in (0..SUPERBLOCK).chain(directory) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(State::decode(&bad, 1, SIZE).is_err(), "byte {at}");
        }
        for len in [0, 511, 512, 4096, 4096 + 4 * ENTRY - 1] {
            assert!(State::decode(&good[..len], 1, SIZE).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn test_decode_what_cannot_be_is_refused_with_good_checksums() {
        type Change = (&'static str, fn(&mut State));
        let changes: [Change; 12] = [
            ("extent", |s| s.layers[0].extent.start += 1),
            ("extent", |s| s.layers[0].extent.start = 0),
            ("extent", |s| s.layers[0].extent.len = 0),
            ("extent", |s| s.layers[0].extent.len = u64::MAX - 4095),
            ("extent", |s| s.layers[3].extent.start = SIZE),
            ("overlap of extents", |s| {
                s.layers[0].extent = s.layers[1].extent
            }),
            ("overlap of extents", |s| s.layers[2].extent.start = 1 << 28),
            ("length of a layer", |s| s.layers[0].len = 8193),
            ("length of a layer", |s| s.layers[0].len = 0),
            ("generation of a layer", |s| s.layers[1].id = 1),
            ("generation of a layer", |s| s.layers[1].id = 6),
            ("journal", |s| {
                s.pending = s.pending.take().map(|p| Pending {
                    journal: p.extent.len + 4096,
                    ..p
                });
            }),
        ];
        for (name, change) in changes {
            let mut state = state();
            change(&mut state);
            assert_eq!(
                State::decode(&slot(&state), 1, SIZE),
                Err(Invalid::Field(name))
            );
        }
    }
}
