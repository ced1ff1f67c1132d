// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What can go wrong, with the place where it did.

use crate::platform::OutOfMemory;
use core::fmt;

/// Why an operation failed; `E` is the error of the [`Source`](crate::Source).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The source could not be read.
    Io {
        /// First byte of the read in the source.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// What the source said.
        source: E,
    },
    /// The file is damaged, hostile, or of no known format.
    Damaged(Fault),
    /// The file is sound as far as it goes, but not for this reader.
    Unsupported(Unsupported),
    /// A range outside of what is there, or not on sector boundaries.
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of what was addressed, bytes.
        size: u64,
    },
    /// No memory.
    OutOfMemory,
    /// The [`Scratch`](crate::Scratch) was made for another image.
    ScratchTooSmall,
}

/// An error in one layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerError<E> {
    /// The layer, counted from the bottom; [`None`] for the image as a whole.
    pub layer: Option<usize>,
    /// What went wrong there.
    pub error: Error<E>,
}

/// Something wrong in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub reason: Reason,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The tar wrapper.
    Tar,
    /// The first 512 bytes of a zfile.
    ZfileHeader,
    /// The last 512 bytes of a zfile.
    ZfileTrailer,
    /// The jump table of a zfile as a whole.
    JumpTable,
    /// One entry of the jump table, counted from 0.
    JumpTableEntry(u64),
    /// One compressed block, counted from 0.
    Block {
        /// Its number.
        number: u64,
        /// Its first stored byte, from the beginning of the zfile.
        offset: u64,
    },
    /// The first 4096 bytes of a layer.
    LsmtHeader,
    /// The last 4096 bytes of a layer.
    LsmtTrailer,
    /// The list of segments as a whole.
    LsmtIndex,
    /// One entry of the list of segments, counted from 0, padding included.
    LsmtEntry(u64),
    /// The header of the index file of a read-write layer.
    LogHeader,
    /// The whole image.
    Image,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The file ends before.
    TooShort,
    /// The magic bytes are others.
    Magic,
    /// The flags are none this part can have.
    Flags(u64),
    /// A header's digest is not that of its bytes.
    Digest {
        /// As stored.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// A field holds a value it cannot have.
    Field {
        /// The field's name.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// A field does not fit what the rest of the file says.
    Mismatch {
        /// The field's name.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The value that would fit.
        expected: u64,
    },
    /// The checksum of stored bytes is wrong.
    Checksum {
        /// As stored.
        stored: u32,
        /// As it should be.
        computed: u32,
    },
    /// The compressed bytes are no valid block.
    Decode,
    /// A block decodes to another size than its place in the file asks for.
    DecodedSize {
        /// Bytes it gave.
        got: u64,
        /// Bytes it should have given.
        expected: u64,
    },
    /// A segment starts before the end of the one before it.
    Unsorted,
    /// A segment of no sectors.
    EmptySegment,
    /// A segment reaches beyond the image.
    BeyondImage,
    /// A segment's data lies outside of the layer's data.
    BeyondData,
    /// Segments and data area do not account for each other.
    DataArea {
        /// Sectors the segments map.
        mapped: u64,
        /// Sectors of data the layer holds.
        present: u64,
    },
    /// No layer says how large the image is.
    NoSize,
    /// There are no layers, or more than [`MAX_LAYERS`](crate::image::MAX_LAYERS).
    LayerCount(u64),
}

/// What this reader does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Blocks compressed with an algorithm that is not here.
    Algorithm(u8),
    /// Blocks compressed with a dictionary of that many bytes.
    Dictionary(u32),
    /// A turboOCI (warp) layer: its data is in another file.
    Warp,
    /// A read-write layer that was never sealed, without its index file.
    Unsealed,
    /// A pax header of that many bytes, more than overlaybd ever writes.
    Pax(u64),
    /// More segments than [`MAX_SEGMENTS`](crate::lsmt::MAX_SEGMENTS) in a
    /// layer, a layer beyond 1 PiB, or an image beyond
    /// [`MAX_SECTORS`](crate::lsmt::MAX_SECTORS).
    TooLarge {
        /// What there is too much of.
        name: &'static str,
        /// How much.
        value: u64,
    },
    /// Indexes and jump tables of layers that take more memory than a
    /// [`Budget`](crate::budget::Budget) allows.
    Memory {
        /// Bytes that the layers so far and the next part of this one need.
        needed: u64,
        /// Bytes that they may take.
        most: u64,
    },
}

impl Fault {
    /// A fault as an [`Error`].
    pub(crate) fn error<E>(place: Place, reason: Reason) -> Error<E> {
        Error::Damaged(Fault { place, reason })
    }
}

impl<E> From<OutOfMemory> for Error<E> {
    fn from(_: OutOfMemory) -> Self {
        Error::OutOfMemory
    }
}

impl<E> From<Fault> for Error<E> {
    fn from(fault: Fault) -> Self {
        Error::Damaged(fault)
    }
}

impl<E> From<Error<E>> for LayerError<E> {
    fn from(error: Error<E>) -> Self {
        LayerError { layer: None, error }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tar => f.write_str("tar header"),
            Place::ZfileHeader => f.write_str("zfile header"),
            Place::ZfileTrailer => f.write_str("zfile trailer"),
            Place::JumpTable => f.write_str("jump table"),
            Place::JumpTableEntry(entry) => write!(f, "jump table entry {entry}"),
            Place::Block { number, offset } => write!(f, "block {number} at byte {offset}"),
            Place::LsmtHeader => f.write_str("LSMT header"),
            Place::LsmtTrailer => f.write_str("LSMT trailer"),
            Place::LsmtIndex => f.write_str("LSMT index"),
            Place::LsmtEntry(entry) => write!(f, "LSMT index entry {entry}"),
            Place::LogHeader => f.write_str("header of the index file"),
            Place::Image => f.write_str("image"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::TooShort => f.write_str("the file is too short for it"),
            Reason::Magic => f.write_str("wrong magic bytes"),
            Reason::Flags(flags) => write!(f, "flags {flags:#x} are impossible here"),
            Reason::Digest { stored, computed } => {
                write!(
                    f,
                    "digest is {stored:#010x}, its bytes give {computed:#010x}"
                )
            }
            Reason::Field { name, value } => write!(f, "{name} cannot be {value}"),
            Reason::Mismatch {
                name,
                value,
                expected,
            } => write!(f, "{name} is {value}, the rest of the file says {expected}"),
            Reason::Checksum { stored, computed } => {
                write!(
                    f,
                    "checksum is {stored:#010x}, its bytes give {computed:#010x}"
                )
            }
            Reason::Decode => f.write_str("no valid compressed data"),
            Reason::DecodedSize { got, expected } => {
                write!(f, "decodes to {got} bytes, not {expected}")
            }
            Reason::Unsorted => f.write_str("starts before the end of the previous segment"),
            Reason::EmptySegment => f.write_str("has no length"),
            Reason::BeyondImage => f.write_str("reaches beyond the virtual size"),
            Reason::BeyondData => f.write_str("maps data the layer does not have"),
            Reason::DataArea { mapped, present } => {
                write!(f, "maps {mapped} sectors of data, the layer has {present}")
            }
            Reason::NoSize => f.write_str("no layer says how large it is"),
            Reason::LayerCount(count) => write!(f, "cannot have {count} layers"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::Algorithm(0) => {
                f.write_str("compressed with MiniLZO, which overlaybd never had")
            }
            Unsupported::Algorithm(2) => {
                f.write_str("compressed with Zstandard, which is not available here")
            }
            Unsupported::Algorithm(algorithm) => {
                write!(f, "compressed with an unknown algorithm ({algorithm})")
            }
            Unsupported::Dictionary(size) => {
                write!(f, "compressed with a dictionary of {size} bytes")
            }
            Unsupported::Warp => {
                f.write_str("a turboOCI (warp) layer, whose data is in another file")
            }
            Unsupported::Unsealed => f.write_str(
                "a read-write layer that was not sealed: seal or commit it first, or give its \
                 index file to what reads such layers",
            ),
            Unsupported::Pax(size) => write!(f, "a tar file with a pax header of {size} bytes"),
            Unsupported::TooLarge { name, value } => write!(f, "too large: {value} {name}"),
            Unsupported::Memory { needed, most } => write!(
                f,
                "indexes and jump tables of {needed} bytes or more in all layers, {most} at most"
            ),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io {
                offset,
                len,
                source,
            } => write!(f, "cannot read {len} bytes at byte {offset}: {source}"),
            Error::Damaged(fault) => write!(f, "{fault}"),
            Error::Unsupported(what) => write!(f, "not supported: {what}"),
            Error::OutOfRange { offset, len, size } => {
                write!(
                    f,
                    "{len} bytes at byte {offset} are no range of {size} bytes"
                )
            }
            Error::OutOfMemory => f.write_str("out of memory"),
            Error::ScratchTooSmall => f.write_str("the scratch buffers are those of another image"),
        }
    }
}

impl<E: fmt::Display> fmt::Display for LayerError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layer {layer}: {}", self.error),
            None => write!(f, "{}", self.error),
        }
    }
}

impl<E: fmt::Display + fmt::Debug> core::error::Error for Error<E> {}
impl<E: fmt::Display + fmt::Debug> core::error::Error for LayerError<E> {}
