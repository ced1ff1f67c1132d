// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The LZ4 decoder against `lz4_flex`: same bytes, same refusals. And against LZ4's C code, as
//! the kernel has it: same bytes, where neither refuses.

use lz4_flex::block::{
    compress,
    decompress_into, //
};
use obd_core::lz4::Lz4;
use obd_core::platform::{
    Codec,
    Corrupt, //
};
use proptest::collection::vec;
use proptest::prelude::*;

const BLOCK: usize = 4096;

fn decode(from: &[u8], to: &mut [u8]) -> Result<usize, Corrupt> {
    Lz4::decompress(&mut (), from, to)
}

/// Both decoders have to agree about `from` with `room` bytes of output.
fn compare(from: &[u8], room: usize) -> Result<(), TestCaseError> {
    let (mut ours, mut theirs) = (vec![0xaa; room], vec![0xaa; room]);
    let got = decode(from, &mut ours);
    match decompress_into(from, &mut theirs) {
        Ok(len) => {
            prop_assert_eq!(got, Ok(len));
            prop_assert_eq!(&ours[..len], &theirs[..len]);
        }
        Err(_) => prop_assert_eq!(got, Err(Corrupt)),
    }
    let mut c = vec![0x55; room];
    let room = i32::try_from(room).expect("outputs are small");
    if let (Ok(len), Ok(in_c)) = (
        got,
        lz4::block::decompress_to_buffer(from, Some(room), &mut c),
    ) {
        prop_assert_eq!(len, in_c);
        prop_assert_eq!(&ours[..len], &c[..len]);
    }
    Ok(())
}

/// Content that compresses: runs of any period, words, and noise.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (vec(any::<u8>(), 1..80), 1..400_usize).prop_map(|(unit, len)| unit
            .into_iter()
            .cycle()
            .take(len)
            .collect()),
        vec(0..4_u8, 1..200),
        vec(any::<u8>(), 1..300),
    ];
    vec(piece, 0..24).prop_map(|pieces: Vec<Vec<u8>>| pieces.concat())
}

proptest! {
    #[test]
    fn test_decode_of_what_was_encoded_gives_it_back(content in content()) {
        let packed = compress(&content);
        let mut out = vec![0; content.len()];
        prop_assert_eq!(decode(&packed, &mut out), Ok(content.len()));
        prop_assert_eq!(&out, &content);
        if let Some(less) = content.len().checked_sub(1) {
            prop_assert_eq!(decode(&packed, &mut out[..less]), Err(Corrupt));
        }
    }

    #[test]
    fn test_decode_of_damaged_blocks_agrees_with_lz4_flex(
        content in content(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        room in 0..2 * BLOCK,
    ) {
        let mut packed = compress(&content);
        compare(&packed, room)?;
        for (at, byte) in &damage {
            let at = at.index(packed.len());
            packed[at] = *byte;
            compare(&packed, room)?;
        }
        packed.truncate(damage[0].0.index(packed.len()));
        compare(&packed, room)?;
    }

    #[test]
    fn test_decode_of_noise_agrees_with_lz4_flex(
        noise in vec(prop_oneof![any::<u8>(), 0..40_u8, Just(255)], 0..600),
        room in 0..2 * BLOCK,
    ) {
        compare(&noise, room)?;
    }
}

/// One sequence of literals and a match, and the five literals that end a block.
fn block(literals: usize, offset: u16, len: usize) -> Vec<u8> {
    fn more(out: &mut Vec<u8>, value: usize) {
        if let Some(mut left) = value.checked_sub(15) {
            while left >= 255 {
                out.push(255);
                left -= 255;
            }
            out.push(left as u8);
        }
    }
    let mut out = vec![(literals.min(15) << 4 | (len - 4).min(15)) as u8];
    more(&mut out, literals);
    out.extend((0..literals).map(|i| i as u8));
    out.extend(offset.to_le_bytes());
    more(&mut out, len - 4);
    out.extend([0x50, 1, 2, 3, 4, 5]);
    out
}

#[test]
fn test_decode_at_the_edges_of_the_pieces() {
    for literals in [1, 14, 15, 16, 63, 64, 65, 269, 270, 271, 600] {
        for len in [4, 18, 19, 31, 32, 33, 273, 274, 275, 600] {
            for offset in [1, 2, 7, 15, 16, 17, 31, 32, 33, 64, literals] {
                // With room enough for the fast way, and with none to spare.
                for spare in [0, 1, 15, 16, 95, 96, 500] {
                    let packed = block(literals, offset as u16, len);
                    let mut want: Vec<u8> = (0..literals).map(|i| i as u8).collect();
                    let mut out = vec![0; literals + len + 5 + spare];
                    if offset > literals {
                        assert_eq!(decode(&packed, &mut out), Err(Corrupt));
                        continue;
                    }
                    for _ in 0..len {
                        want.push(want[want.len() - offset]);
                    }
                    want.extend([1, 2, 3, 4, 5]);
                    let case = format!("{literals} literals, {len} from {offset}, spare {spare}");
                    assert_eq!(decode(&packed, &mut out), Ok(want.len()), "{case}");
                    assert_eq!(&out[..want.len()], &want, "{case}");
                }
            }
        }
    }
}

#[test]
fn test_decode_of_no_block_is_refused() {
    let refused: [&[u8]; 6] = [
        &[],
        // The match's offset is half there, zero, or before the output.
        &[0x10, 1, 1],
        &[0x10, 1, 0, 0, 0x50, 1, 2, 3, 4, 5],
        &[0x10, 1, 2, 0, 0x50, 1, 2, 3, 4, 5],
        // A length that never ends, and one of more than there is.
        &[0xf0, 255, 255],
        &[0xf0, 200, 1],
    ];
    for packed in refused {
        assert_eq!(decode(packed, &mut [0; BLOCK]), Err(Corrupt), "{packed:?}");
    }
    let forever = [255; 1 << 20];
    assert_eq!(decode(&forever, &mut [0; BLOCK]), Err(Corrupt));
}
