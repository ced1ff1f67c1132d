// SPDX-License-Identifier: MIT

//! The bytes of the tar wrapper: a pax header whose one record is the size, a
//! ustar header without one, the payload, two blocks of zeros.
//!
//! Source: `overlaybd/src/overlaybd/tar/tar_file.cpp`. Owner and mode, which
//! upstream takes from the file, are root's and 0644 here: the same layer is
//! the same bytes, whoever writes it.

/// A tar block, bytes.
const BLOCK: usize = 512;

/// Bytes before the payload.
pub(crate) const SPACE: usize = 3 * BLOCK;

/// The blocks before a payload of `size` bytes.
pub(crate) fn header(size: u64) -> [u8; SPACE] {
    let mut bytes = [0; SPACE];
    let (pax, rest) = bytes.split_at_mut(BLOCK);
    let (records, file) = rest.split_at_mut(BLOCK);

    let record = record(size);
    records[..record.len()].copy_from_slice(record.as_bytes());
    put(pax, 0, "overlaybd.pax");
    put(pax, 124, &format!("{:11o} ", record.len()));
    seal(pax, 'x');

    put(file, 0, "overlaybd.commit");
    put(file, 100, &format!("{:6o} ", 0o100_644));
    put(file, 108, &format!("{:6o} ", 0));
    put(file, 116, &format!("{:6o} ", 0));
    put(file, 124, &format!("{:11o} ", 0));
    put(file, 136, &format!("{:11o} ", 0));
    put(file, 265, "root");
    put(file, 297, "root");
    seal(file, '0');
    bytes
}

/// Bytes of zeros behind a payload of `size` bytes.
pub(crate) fn padding(size: u64) -> usize {
    // At most a block: fits.
    (size.next_multiple_of(BLOCK as u64) - size) as usize + 2 * BLOCK
}

/// The pax record of a size (POSIX.1-2017, pax, "Extended Header"): it begins
/// with its own length.
fn record(size: u64) -> String {
    let rest = format!(" size={size}\n");
    let mut len = rest.len() + 1;
    while len.to_string().len() + rest.len() != len {
        len += 1;
    }
    format!("{len}{rest}")
}

fn put(block: &mut [u8], at: usize, field: &str) {
    block[at..at + field.len()].copy_from_slice(field.as_bytes());
}

/// Type, magic, and the checksum, which is taken for blanks itself.
fn seal(block: &mut [u8], kind: char) {
    put(block, 156, &kind.to_string());
    put(block, 257, "ustar");
    put(block, 263, "00");
    put(block, 148, "        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, &format!("{sum:6o} \0"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        assert_eq!(record(51_959), "14 size=51959\n");
        for size in [0, 9, 10, 1 << 40, u64::MAX] {
            let record = record(size);
            assert!(
                record.starts_with(&format!("{} ", record.len())),
                "{record}"
            );
        }
    }

    #[test]
    fn the_archive_ends_on_a_block() {
        for size in [0, 1, 511, 512, 513] {
            assert_eq!((size + padding(size) as u64) % 512, 0);
            assert!((1024..1536).contains(&padding(size)));
        }
    }
}
