// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The tar wrapper of registry blobs: one file in a tar archive.
//!
//! overlaybd writes a pax header, its one record block and a ustar header
//! (payload at 1536; the size is in the record, the header's is 0); before
//! March 2023 a single ustar header (payload at 512, octal size). Source:
//! `overlaybd/src/overlaybd/tar/tar_file.cpp`.

use crate::error::{
    Error,
    Fault,
    Place,
    Reason,
    Unsupported, //
};
use crate::source::{
    Source,
    Window, //
};

/// A tar block, bytes.
const BLOCK: usize = 512;

/// What to find of a file wrapped in tar: bytes `offset..offset + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// First byte.
    pub offset: u64,
    /// Size, bytes.
    pub len: u64,
}

/// Finds the payload of a wrapped file; [`None`] if it is no tar file.
///
/// The end-of-archive blocks are not looked at: overlaybd does without them,
/// and so do registries that cut them off.
///
/// # Errors
///
/// A tar file whose payload cannot be where its headers say, or a source that
/// cannot be read.
pub fn payload<S: Source>(file: &Window<S>) -> Result<Option<Payload>, Error<S::Error>> {
    let first = match header(file, 0)? {
        Some(header) => header,
        None => return Ok(None),
    };
    if first.kind != b'x' {
        return place(file, BLOCK as u64, first.size).map(Some);
    }
    if first.size == 0 || first.size > BLOCK as u64 {
        return Err(Error::Unsupported(Unsupported::Pax(first.size)));
    }
    let mut records = [0; BLOCK];
    read(file, BLOCK as u64, &mut records)?;
    let size = usize::try_from(first.size)
        .ok()
        .and_then(|len| records.get(..len))
        .and_then(pax_size);
    let wrapped = header(file, 2 * BLOCK as u64)?.ok_or(Fault::error(Place::Tar, Reason::Magic))?;
    let size = match size {
        Some(size) if size > 0 => size,
        _ => wrapped.size,
    };
    place(file, 3 * BLOCK as u64, size).map(Some)
}

/// A payload that lies in the file.
fn place<S: Source>(file: &Window<S>, offset: u64, len: u64) -> Result<Payload, Error<S::Error>> {
    match offset.checked_add(len) {
        Some(end) if end <= file.size() => Ok(Payload { offset, len }),
        _ => Err(Fault::error(
            Place::Tar,
            Reason::Mismatch {
                name: "payload size",
                value: len,
                expected: file.size().saturating_sub(offset),
            },
        )),
    }
}

/// The fields of a tar header that matter here.
struct Header {
    kind: u8,
    size: u64,
}

fn read<S: Source>(file: &Window<S>, at: u64, block: &mut [u8]) -> Result<(), Error<S::Error>> {
    match file.read(at, block) {
        Err(Error::OutOfRange { .. }) => Err(Fault::error(Place::Tar, Reason::TooShort)),
        other => other,
    }
}

/// The header at byte `at`; [`None`] if there is none.
fn header<S: Source>(file: &Window<S>, at: u64) -> Result<Option<Header>, Error<S::Error>> {
    if file.size().saturating_sub(at) < BLOCK as u64 {
        return Ok(None);
    }
    let mut block = [0; BLOCK];
    read(file, at, &mut block)?;
    // POSIX.1-2017, pax, "ustar Header Block": magic at 257, version at 263
    // (GNU tar has a blank and NUL there), checksum at 148 taken for blanks.
    if !block
        .get(257..)
        .is_some_and(|from| from.starts_with(b"ustar"))
        || !block.get(263..).is_some_and(|from| from.starts_with(b"00"))
    {
        return Ok(None);
    }
    let sum = block.iter().enumerate().fold(0u64, |sum, (i, byte)| {
        sum + u64::from(if (148..156).contains(&i) { b' ' } else { *byte })
    });
    if block.get(148..156).and_then(octal) != Some(sum) {
        return Ok(None);
    }
    let size = block.get(124..136).and_then(number).ok_or(Fault::error(
        Place::Tar,
        Reason::Field {
            name: "size",
            value: u64::MAX,
        },
    ))?;
    Ok(Some(Header {
        kind: crate::le::u8_at(&block, 156),
        size,
    }))
}

/// An octal field: blanks, digits, then NUL or blanks.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|byte| *byte == 0 || *byte == b' ')
        .unwrap_or(digits.len());
    digits.get(..end)?.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'7' => u64::from(digit - b'0'),
            _ => return None,
        };
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// A size field: octal, or big-endian binary after a set top bit (GNU).
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, binary)) => binary.iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        }),
        _ => octal(field),
    }
}

/// The `size` among pax records (`LENGTH KEY=VALUE\n`), the last one of several.
fn pax_size(mut records: &[u8]) -> Option<u64> {
    let mut size = None;
    while let Some(blank) = records.iter().position(|byte| *byte == b' ') {
        let len = usize::try_from(decimal(records.get(..blank)?)?).ok()?;
        let record = records.get(blank + 1..len)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"size=") {
            size = Some(decimal(value)?);
        }
        records = records.get(len..)?;
    }
    size
}

/// A decimal number without sign.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => u64::from(digit - b'0'),
            _ => return None,
        };
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Bytes;

    fn block(kind: u8, size: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(b"name");
        block[124..124 + size.len()].copy_from_slice(size);
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].copy_from_slice(b"        ");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn find(file: &[u8]) -> Result<Option<Payload>, Error<crate::source::Outside>> {
        payload(&Window::whole(Bytes(file)))
    }

    #[test]
    fn old_and_new_form() {
        let mut file = block(b'0', b"00000000012\0").to_vec();
        file.extend([7; 10]);
        assert_eq!(
            find(&file),
            Ok(Some(Payload {
                offset: 512,
                len: 10
            }))
        );

        let mut file = block(b'x', b"00000000014\0").to_vec();
        let mut record = [0; BLOCK];
        record[..12].copy_from_slice(b"12 size=100\n");
        file.extend(record);
        file.extend(block(b'0', b"00000000000\0"));
        file.extend([7; 100]);
        assert_eq!(
            find(&file),
            Ok(Some(Payload {
                offset: 1536,
                len: 100
            }))
        );
        // A payload cut short is noticed here, not at the first read.
        file.pop();
        assert!(matches!(find(&file), Err(Error::Damaged(_))));
    }

    #[test]
    fn binary_size() {
        let mut size = [0; 12];
        size[0] = 0x80;
        size[11] = 3;
        let mut file = block(b'0', &size).to_vec();
        file.extend([7; 3]);
        assert_eq!(
            find(&file),
            Ok(Some(Payload {
                offset: 512,
                len: 3
            }))
        );
        size[1] = 1;
        assert!(find(&block(b'0', &size)).is_err());
    }

    #[test]
    fn no_tar() {
        assert_eq!(find(b""), Ok(None));
        assert_eq!(find(&[0; 511]), Ok(None));
        assert_eq!(find(&[0; 1024]), Ok(None));
        let mut wrong = block(b'0', b"00000000000\0");
        wrong[0] ^= 1;
        assert_eq!(find(&wrong), Ok(None));
    }

    #[test]
    fn hostile_pax() {
        for record in [
            &b"99 size=100\n"[..],
            b"0 size=100\n",
            b"12 size=1x0\n",
            b"18446744073709551616 size=1\n",
            b" size=1\n",
        ] {
            let len = format!("{:011o}\0", record.len());
            let mut file = block(b'x', len.as_bytes()).to_vec();
            let mut padded = [0; BLOCK];
            padded[..record.len()].copy_from_slice(record);
            file.extend(padded);
            file.extend(block(b'0', b"00000000005\0"));
            file.extend([7; 5]);
            // A record that means nothing leaves the header's size.
            assert_eq!(
                find(&file),
                Ok(Some(Payload {
                    offset: 1536,
                    len: 5
                }))
            );
        }
        let huge = block(b'x', b"77777777777\0");
        assert!(matches!(
            find(&huge),
            Err(Error::Unsupported(Unsupported::Pax(_)))
        ));
    }
}
