// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Images for benchmarks, written the way overlaybd's tools do.

use fastrand::Rng;
use lz4_flex::block::compress;
use obd_core::Crc32c;
use obd_host::Hardware;

/// Text, records, random bytes, zeros and repeats in pieces of 4 to 256 KiB:
/// 40, 20, 15, 15 and 10 per cent.
pub(crate) fn mixed(size: usize, rng: &mut Rng) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..2000)
        .map(|_| (0..rng.usize(2..11)).map(|_| rng.u8(b'a'..=b'z')).collect())
        .collect();
    let mut image = Vec::with_capacity(size + (256 << 10));
    while image.len() < size {
        let end = image.len() + 4096 * rng.usize(1..=64);
        match rng.u32(0..100) {
            0..40 => {
                while image.len() < end {
                    // Common words are common: the square of a uniform choice.
                    let i = rng.usize(0..words.len()) * rng.usize(0..words.len());
                    image.extend_from_slice(&words[i / words.len()]);
                    image.push(b' ');
                }
            }
            40..60 => {
                while image.len() < end {
                    let id = rng.u32(0..1 << 20);
                    image.extend_from_slice(&id.to_le_bytes());
                    image.extend_from_slice(b"name=record;kind=0007;");
                    image.extend_from_slice(&[0, 0, 1, rng.u8(..)]);
                }
            }
            60..75 => image.extend((image.len()..end).map(|_| rng.u8(..))),
            75..90 => image.resize(end, 0),
            _ => {
                let pattern: Vec<u8> = (0..rng.usize(8..64)).map(|_| rng.u8(..)).collect();
                image.extend(pattern.iter().cycle().take(end - image.len()));
            }
        }
        image.truncate(end);
    }
    image.truncate(size);
    image
}

/// `content` as a zfile of LZ4 blocks with checksums.
pub(crate) fn zfile(content: &[u8], block_size: usize) -> Vec<u8> {
    let mut file = header(0x13, 0, 0, 0, 0, block_size).to_vec();
    let mut table = Vec::new();
    for block in content.chunks(block_size) {
        let packed = compress(block);
        let crc = Hardware::crc32c(100_007, &packed);
        table.extend_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        file.extend_from_slice(&packed);
        file.extend_from_slice(&crc.to_le_bytes());
    }
    let index_offset = file.len() as u64;
    file.extend_from_slice(&table);
    file.extend_from_slice(&header(
        0x16,
        index_offset,
        table.len() as u64 / 4,
        content.len() as u64,
        Hardware::crc32c(0, &table),
        block_size,
    ));
    file
}

fn header(
    flags: u64,
    index_offset: u64,
    index_size: u64,
    size: u64,
    index_crc: u32,
    block_size: usize,
) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..24].copy_from_slice(b"ZFile\0\x01\0tuji.yyf@Alibaba");
    bytes[24] = 96;
    bytes[32..40].copy_from_slice(&flags.to_le_bytes());
    bytes[40..48].copy_from_slice(&index_offset.to_le_bytes());
    bytes[48..56].copy_from_slice(&index_size.to_le_bytes());
    bytes[56..64].copy_from_slice(&size.to_le_bytes());
    bytes[64..68].copy_from_slice(&index_crc.to_le_bytes());
    bytes[72..76].copy_from_slice(&(block_size as u32).to_le_bytes());
    bytes[76] = 1;
    bytes[88] = 1;
    let digest = Hardware::crc32c(0, &bytes);
    bytes[28..32].copy_from_slice(&digest.to_le_bytes());
    bytes
}

/// `{lba, len}` of a layer's segments and its data as a committed LSMT file.
pub(crate) fn lsmt(segments: &[(u64, u64)], data: &[u8], virtual_size: u64) -> Vec<u8> {
    let mut file = lsmt_header(7, 0, 0, virtual_size);
    file.extend_from_slice(data);
    let index_offset = file.len() as u64;
    let mut moffset = 8;
    for (lba, len) in segments {
        file.extend_from_slice(&(lba | len << 50).to_le_bytes());
        file.extend_from_slice(&u64::to_le_bytes(moffset));
        moffset += len;
    }
    let entries = segments.len().next_multiple_of(256);
    for _ in segments.len()..entries {
        file.extend_from_slice(&((1u64 << 50) - 1).to_le_bytes());
        file.extend_from_slice(&[0; 8]);
    }
    file.extend(lsmt_header(6, index_offset, entries as u64, virtual_size));
    file
}

fn lsmt_header(flags: u32, index_offset: u64, index_size: u64, virtual_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..24].copy_from_slice(&[
        0x4C, 0x53, 0x4D, 0x54, 0, 1, 2, 0, 0x65, 0x7E, 0x63, 0xD2, 0x94, 0x44, 0x08, 0x4C, 0xA2,
        0xD2, 0xC8, 0xEC, 0x4F, 0xCF, 0xAE, 0x8A,
    ]);
    bytes[28..32].copy_from_slice(&flags.to_le_bytes());
    bytes[32..40].copy_from_slice(&index_offset.to_le_bytes());
    bytes[40..48].copy_from_slice(&index_size.to_le_bytes());
    bytes[48..56].copy_from_slice(&virtual_size.to_le_bytes());
    bytes
}
