// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Opening a zfile: header, trailer and jump table, each against the others.

use super::header::{
    self,
    Algorithm,
    Header,
    OptionsError, //
};
use super::jump::{
    JumpTable,
    MAX_OFFSET, //
};
use super::{
    CRC_SIZE,
    GROWTH,
    Info,
    ZFile, //
};
use crate::budget::Budget;
use crate::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use crate::le;
use crate::platform::{
    Codec,
    Crc32c,
    Memory,
    Platform, //
};
use crate::source::{
    Source,
    Window, //
};

/// Stored jump table read at a time, bytes.
const CHUNK: usize = 64 << 10;

impl<S: Source, P: Platform> ZFile<S, P> {
    /// Opens the zfile that takes up the whole of `file`.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] with what is wrong and where; a file that is no zfile
    /// at all has the wrong magic bytes in its header.
    pub fn open(file: Window<S>) -> Result<Self, Error<S::Error>> {
        Self::open_within(file, &mut Budget::unlimited())
    }

    /// As [`ZFile::open`], with no more memory than is left of `budget`.
    ///
    /// # Errors
    ///
    /// As [`ZFile::open`], and [`Unsupported::Memory`].
    pub fn open_within(file: Window<S>, budget: &mut Budget) -> Result<Self, Error<S::Error>> {
        let header = read_header::<S, P>(&file, 0, Place::ZfileHeader)?;
        if !header.is_header() {
            return Err(Fault::error(
                Place::ZfileHeader,
                Reason::Flags(header.flags),
            ));
        }
        let digest = header
            .digest()
            .map_err(|reason| Fault::error(Place::ZfileHeader, reason))?;

        let trailer_at = file
            .size()
            .checked_sub(header::SIZE as u64)
            .filter(|at| *at >= header::SIZE as u64)
            .ok_or(Fault::error(Place::ZfileTrailer, Reason::TooShort))?;
        let trailer = read_header::<S, P>(&file, trailer_at, Place::ZfileTrailer)?;
        if !trailer.is_trailer() {
            return Err(Fault::error(
                Place::ZfileTrailer,
                Reason::Flags(trailer.flags),
            ));
        }
        let trailer_digest = trailer
            .digest()
            .map_err(|reason| Fault::error(Place::ZfileTrailer, reason))?;
        // Both come from the same builder.
        if digest != trailer_digest {
            return Err(Fault::error(
                Place::ZfileHeader,
                Reason::Flags(header.flags),
            ));
        }
        let differs = header.differs(&trailer);
        if let Some((name, value, expected)) = differs.filter(|_| header.is_overwritten()) {
            return Err(mismatch(Place::ZfileHeader, name, value, expected));
        }
        let options = options(Place::ZfileTrailer, &trailer)?;
        if options != self::options(Place::ZfileHeader, &header)? {
            return Err(mismatch(
                Place::ZfileHeader,
                "block size",
                u64::from(header.block_size),
                u64::from(trailer.block_size),
            ));
        }
        if !match options.algorithm {
            Algorithm::Lz4 => P::Lz4::PRESENT,
            Algorithm::Zstd => P::Zstd::PRESENT,
        } {
            let algorithm = match options.algorithm {
                Algorithm::Lz4 => 1,
                Algorithm::Zstd => 2,
            };
            return Err(Error::Unsupported(Unsupported::Algorithm(algorithm)));
        }

        let crc_size = if options.verify { CRC_SIZE } else { 0 };
        let blocks = check_places::<S>(&trailer, trailer_at, crc_size)?;
        // Every block takes a byte at least, so no claim to many blocks makes
        // the table larger than a fixed multiple of the file. But a sparse file
        // may be large for nothing, hence the budget.
        budget.take(JumpTable::<P::Memory>::memory_for(blocks))?;
        if trailer.index_compressed() {
            // Stored and decoded, for `read_compressed`.
            budget.check(blocks.saturating_mul(4).saturating_add(trailer.index_size))?;
        }
        let mut table = JumpTable::new(blocks, header::SIZE as u64)?;
        let mut reader = TableReader {
            table: &mut table,
            shortest: crc_size + 1,
            longest: trailer.block_size + GROWTH + crc_size,
        };
        let crc = if trailer.index_compressed() {
            read_compressed::<S, P>(&file, &trailer, options.algorithm, &mut reader)?
        } else {
            read_plain::<S, P>(&file, &trailer, &mut reader)?
        };
        if trailer_digest && crc != trailer.index_crc {
            return Err(Fault::error(
                Place::JumpTable,
                Reason::Checksum {
                    stored: trailer.index_crc,
                    computed: crc,
                },
            ));
        }
        if table.end() != trailer.index_offset {
            return Err(mismatch(
                Place::JumpTable,
                "end of the last block",
                table.end(),
                trailer.index_offset,
            ));
        }

        let info = Info {
            original_size: trailer.original_size,
            stored_size: file.size(),
            block_size: trailer.block_size,
            blocks: table.blocks(),
            algorithm: options.algorithm,
            verify: options.verify,
            digest,
            header_overwritten: header.is_overwritten(),
            index_compressed: trailer.index_compressed(),
            index_offset: trailer.index_offset,
            flags_header: header.flags,
            flags_trailer: trailer.flags,
        };
        Ok(Self {
            file,
            table,
            options,
            size: trailer.original_size,
            info,
        })
    }
}

fn mismatch<E>(place: Place, name: &'static str, value: u64, expected: u64) -> Error<E> {
    Fault::error(
        place,
        Reason::Mismatch {
            name,
            value,
            expected,
        },
    )
}

fn read_header<S: Source, P: Platform>(
    file: &Window<S>,
    at: u64,
    place: Place,
) -> Result<Header, Error<S::Error>> {
    if file.size() < header::SIZE as u64 {
        return Err(Fault::error(place, Reason::TooShort));
    }
    let mut bytes = [0; header::SIZE];
    file.read(at, &mut bytes)?;
    Header::parse::<P::Crc>(&bytes).ok_or(Fault::error(place, Reason::Magic))
}

fn options<E>(place: Place, header: &Header) -> Result<header::Options, Error<E>> {
    header.options().map_err(|error| match error {
        OptionsError::Wrong(reason) => Fault::error(place, reason),
        OptionsError::Unsupported(what) => Error::Unsupported(what),
    })
}

/// Checks that blocks, jump table and trailer lie one behind the other, and
/// that the number of blocks is that of the decoded size. Returns it.
fn check_places<S: Source>(
    trailer: &Header,
    trailer_at: u64,
    crc_size: u32,
) -> Result<u64, Error<S::Error>> {
    let place = Place::ZfileTrailer;
    let data = trailer
        .index_offset
        .checked_sub(header::SIZE as u64)
        .filter(|_| trailer.index_offset <= MAX_OFFSET)
        .ok_or(Fault::error(
            place,
            Reason::Field {
                name: "index offset",
                value: trailer.index_offset,
            },
        ))?;
    let end = trailer
        .index_bytes()
        .and_then(|bytes| bytes.checked_add(trailer.index_offset))
        .ok_or(Fault::error(
            place,
            Reason::Field {
                name: "index size",
                value: trailer.index_size,
            },
        ))?;
    if end != trailer_at {
        return Err(mismatch(place, "end of the jump table", end, trailer_at));
    }
    let blocks = trailer.blocks();
    if !trailer.index_compressed() && trailer.index_size != blocks {
        return Err(mismatch(place, "index size", trailer.index_size, blocks));
    }
    if blocks > data / u64::from(crc_size + 1) {
        return Err(Fault::error(
            place,
            Reason::Field {
                name: "original size",
                value: trailer.original_size,
            },
        ));
    }
    Ok(blocks)
}

/// Puts checked entries into a jump table.
struct TableReader<'a, M: Memory> {
    table: &'a mut JumpTable<M>,
    /// Shortest block there can be, bytes.
    shortest: u32,
    /// Longest block there can be, bytes.
    longest: u32,
}

impl<M: Memory> TableReader<'_, M> {
    fn push_all(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for entry in bytes.chunks_exact(4) {
            let len = le::u32_at(entry, 0);
            let fits = (self.shortest..=self.longest).contains(&len);
            let number = self.table.filled();
            if !fits || !self.table.push(len) {
                return Err(Fault {
                    place: Place::JumpTableEntry(number),
                    reason: Reason::Field {
                        name: "block length",
                        value: u64::from(len),
                    },
                });
            }
        }
        Ok(())
    }
}

/// Reads a plain jump table and returns the CRC of its bytes.
fn read_plain<S: Source, P: Platform>(
    file: &Window<S>,
    trailer: &Header,
    reader: &mut TableReader<'_, P::Memory>,
) -> Result<u32, Error<S::Error>> {
    let mut left = trailer.index_bytes().unwrap_or(0);
    let mut buf = P::Memory::filled::<u8>(left.min(CHUNK as u64) as usize)?;
    let mut at = trailer.index_offset;
    let mut crc = 0;
    while left > 0 {
        let len = left.min(buf.len() as u64) as usize;
        let chunk = buf.get_mut(..len).unwrap_or_default();
        file.read(at, chunk)?;
        crc = P::Crc::crc32c(crc, chunk);
        reader.push_all(chunk)?;
        at = at.saturating_add(len as u64);
        left = left.saturating_sub(len as u64);
    }
    Ok(crc)
}

/// Reads a compressed jump table and returns the CRC of its stored bytes.
fn read_compressed<S: Source, P: Platform>(
    file: &Window<S>,
    trailer: &Header,
    algorithm: Algorithm,
    reader: &mut TableReader<'_, P::Memory>,
) -> Result<u32, Error<S::Error>> {
    let fault = |reason| Fault::error(Place::JumpTable, reason);
    // Both bounded by the file's size, see `check_places`, and in the budget.
    let len = usize::try_from(trailer.index_size).map_err(|_| Error::OutOfMemory)?;
    let plain = usize::try_from(reader.table.blocks())
        .ok()
        .and_then(|blocks| blocks.checked_mul(4))
        .ok_or(Error::OutOfMemory)?;
    let mut stored = P::Memory::filled::<u8>(len)?;
    file.read(trailer.index_offset, &mut stored)?;
    let mut entries = P::Memory::filled::<u8>(plain)?;
    let got = match algorithm {
        Algorithm::Lz4 => P::Lz4::decompress(&mut P::Lz4::workspace()?, &stored, &mut entries),
        Algorithm::Zstd => P::Zstd::decompress(&mut P::Zstd::workspace()?, &stored, &mut entries),
    };
    let got = got.map_err(|_| fault(Reason::Decode))?;
    if got != plain {
        return Err(fault(Reason::DecodedSize {
            got: got as u64,
            expected: plain as u64,
        }));
    }
    reader.push_all(&entries)?;
    Ok(P::Crc::crc32c(0, &stored))
}
