// SPDX-License-Identifier: GPL-2.0 OR MIT

//! CRC-32C (Castagnoli) without inversion, as Linux's `crc32c()` and the x86
//! `crc32` instruction compute it: eight tables, eight bytes a step
//! (M. E. Kounavis and F. L. Berry, "A Systematic Approach to Building High
//! Performance Software-Based CRC Generators", 2005).

use crate::platform::Crc32c;

/// The polynomial 0x1EDC6F41, reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[k][b]` is the CRC of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1));
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[k - 1][byte];
            tables[k][byte] = (crc >> 8) ^ tables[0][(crc & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// The implementation for machines, and callers, without a faster one.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

impl Crc32c for Portable {
    fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
        // An index of 8 bits into 256 entries: no check, no panic.
        let at = |table: usize, byte: u8| TABLES[table][usize::from(byte)];
        let (words, rest) = bytes.as_chunks::<8>();
        let mut crc = seed;
        for word in words {
            let [a, b, c, d, e, f, g, h] = *word;
            let [s0, s1, s2, s3] = crc.to_le_bytes();
            crc = at(7, a ^ s0)
                ^ at(6, b ^ s1)
                ^ at(5, c ^ s2)
                ^ at(4, d ^ s3)
                ^ at(3, e)
                ^ at(2, f)
                ^ at(1, g)
                ^ at(0, h);
        }
        for byte in rest {
            let [low, ..] = crc.to_le_bytes();
            crc = (crc >> 8) ^ at(0, low ^ byte);
        }
        crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(Portable::crc32c(0, b"123456789"), 0x58E3_FA20);
        assert_eq!(Portable::crc32c(100_007, b"123456789"), 0x3C9B_D4E0);
        // RFC 3720, B.4 (there with pre- and post-inversion).
        assert_eq!(!Portable::crc32c(!0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(!Portable::crc32c(!0, &[0xff; 32]), 0x62A8_AB43);
    }

    #[test]
    fn equals_the_bitwise_definition() {
        let bytes: Vec<u8> = (0u32..300).map(|i| ((i * i) >> 3) as u8).collect();
        for end in 0..bytes.len() {
            let mut crc = 7u32;
            for byte in &bytes[..end] {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
                }
            }
            assert_eq!(Portable::crc32c(7, &bytes[..end]), crc, "{end} bytes");
        }
    }
}
