// SPDX-License-Identifier: GPL-2.0 OR MIT

//! LZ4 blocks (`lz4_Block_format.md` of LZ4 1.10), decoded in safe Rust.
//!
//! A block is a run of sequences: a token, literals, and a match with what was
//! decoded before. Blocks of 4 KiB are too short for a branch predictor to learn
//! them, so a mispredicted branch costs more than what it decides about. While
//! there is room, literals and matches are therefore copied in pieces of two
//! sizes whatever their length, what is too much being written over by what
//! follows, and the one length byte that may come after a match's token is added
//! by a mask. What does not fit that goes the exact way, one sequence at a time.

use crate::platform::{
    Codec,
    Corrupt,
    OutOfMemory, //
};

/// The LZ4 block decoder.
#[derive(Clone, Copy, Debug)]
pub struct Lz4;

impl Codec for Lz4 {
    type Workspace = ();

    fn workspace() -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn decompress((): &mut (), from: &[u8], to: &mut [u8]) -> Result<usize, Corrupt> {
        decode(from, to).ok_or(Corrupt)
    }
}

/// Bytes of literals that the fast way copies if a token has their number: most
/// have few, and a piece that is stored whole is read again sooner.
const FEW: usize = 16;
/// Bytes of literals that it copies else.
const LITERALS: usize = 64;
/// Bytes of a match that the fast way copies at most.
const MATCH: usize = 4 * STEP;
/// Bytes that a match is copied by. In one that begins nearer a step would be read
/// before all of it is there.
const STEP: usize = 8;
/// Bytes of a match that the exact way copies by steps; more are left to `memcpy`.
const SHORT: usize = 64;
/// Bytes of input that a sequence of the fast way has at most: token, length,
/// literals, offset, length.
const INPUT: usize = 1 + 1 + LITERALS + 2 + 1;
/// Bytes of output that a sequence of the fast way touches at most.
const OUTPUT: usize = LITERALS + MATCH;

/// The value of a token's half that says that more length follows.
const MORE: usize = 15;
/// The length of the shortest match.
const MIN_MATCH: usize = 4;

/// Decodes `from` to the beginning of `to`; returns how many bytes that gave, or
/// nothing if it is no block or does not fit.
fn decode(from: &[u8], to: &mut [u8]) -> Option<usize> {
    let (mut ip, mut op) = (0, 0);
    loop {
        let token = match fast(from, to, &mut ip, &mut op)? {
            Some(token) => token,
            None => {
                let token = usize::from(*from.get(ip)?);
                ip += 1;
                literals(token >> 4, from, to, &mut ip, &mut op)?;
                if ip == from.len() {
                    return Some(op);
                }
                token
            }
        };
        matched(token & 15, from, to, &mut ip, &mut op)?;
    }
}

/// Decodes sequences as long as they fit the fast way. Returns the token of one
/// whose literals are out and whose match is left, if it stopped there.
///
/// Positions are within the slices and steps below [`OUTPUT`], so nothing wraps;
/// checking that would cost a tenth of the time where overflow is checked.
#[inline(always)]
fn fast(from: &[u8], to: &mut [u8], ip: &mut usize, op: &mut usize) -> Option<Option<usize>> {
    while let (Some(input), Some(output)) = (
        piece::<INPUT>(from, *ip), //
        piece_mut::<OUTPUT>(to, *op),
    ) {
        let token = usize::from(input[0]);
        let (begin, count) = if token >> 4 < MORE {
            *piece_mut::<FEW>(output, 0)? = *piece(input, 1)?;
            (1, token >> 4)
        } else {
            let count = MORE + usize::from(input[1]);
            if count > LITERALS {
                return Some(None);
            }
            *piece_mut::<LITERALS>(output, 0)? = *piece(input, 2)?;
            (2, count)
        };
        let end = begin + count;
        let offset = usize::from(u16::from_le_bytes(*piece(input, end)?));
        let (more, len) = extended(token & 15, *input.get(end + 2)?);
        let len = len + MIN_MATCH;
        let to_match = op.wrapping_add(count);
        if offset < STEP || offset > to_match || len > MATCH {
            *ip = ip.wrapping_add(end);
            *op = to_match;
            return Some(Some(token));
        }
        // A match may overlap its copy, but no step does.
        let source = to_match - offset;
        let near = to.get_mut(source..to_match.wrapping_add(MATCH))?;
        step(near, 0, offset)?;
        step(near, STEP, offset)?;
        if len > 2 * STEP {
            step(near, 2 * STEP, offset)?;
            step(near, 3 * STEP, offset)?;
        }
        *op = to_match.wrapping_add(len);
        *ip = ip.wrapping_add(end + 2 + more);
    }
    Some(None)
}

/// Whether (0 or 1) a token's half is followed by a length byte, and the length
/// with `next` as that byte; without a branch.
#[inline(always)]
fn extended(half: usize, next: u8) -> (usize, usize) {
    let more = (half + 1) >> 4;
    (more, half + (usize::from(next) & 0usize.wrapping_sub(more)))
}

/// The length that begins with a token's half.
#[inline(always)]
fn length(half: usize, from: &[u8], ip: &mut usize) -> Option<usize> {
    let mut sum = half;
    if half == MORE {
        loop {
            let byte = *from.get(*ip)?;
            *ip += 1;
            sum = sum.checked_add(usize::from(byte))?;
            if byte != u8::MAX {
                break;
            }
        }
    }
    Some(sum)
}

/// Copies a sequence's literals.
#[inline(always)]
fn literals(half: usize, from: &[u8], to: &mut [u8], ip: &mut usize, op: &mut usize) -> Option<()> {
    let count = length(half, from, ip)?;
    let end = ip.checked_add(count)?;
    let to_end = op.checked_add(count)?;
    to.get_mut(*op..to_end)?
        .copy_from_slice(from.get(*ip..end)?);
    (*ip, *op) = (end, to_end);
    Some(())
}

/// Reads the rest of a sequence after its literals and copies its match.
#[inline(always)]
fn matched(half: usize, from: &[u8], to: &mut [u8], ip: &mut usize, op: &mut usize) -> Option<()> {
    let offset = usize::from(u16::from_le_bytes(*piece(from, *ip)?));
    *ip += 2;
    let len = length(half, from, ip)? + MIN_MATCH;
    if offset == 0 {
        return None;
    }
    let begin = op.checked_sub(offset)?;
    let end = op.checked_add(len)?;
    let room = to.len().checked_sub(end)?;
    // Short ones by steps, which may write more than is wanted.
    let mut done = 0;
    let fitting = (len + room).saturating_sub(STEP - 1).min(len).min(SHORT);
    if offset >= STEP {
        while done < fitting {
            let bytes: [u8; STEP] = *piece(to, begin.wrapping_add(done))?;
            *piece_mut(to, op.wrapping_add(done))? = bytes;
            done += STEP;
        }
    } else {
        // What is there repeats: as often as it fits into a step.
        let mut pattern = [0; STEP];
        for (i, byte) in pattern.iter_mut().enumerate() {
            *byte = *to.get(begin + i % offset)?;
        }
        while done < fitting {
            *piece_mut(to, op.wrapping_add(done))? = pattern;
            done += STEP - STEP % offset;
        }
    }
    // What is left of long ones repeats what is there: twice as much each time.
    if done < len {
        done -= done % offset;
    }
    while done < len {
        let count = (offset + done).min(len - done);
        let (before, after) = to.split_at_mut_checked(*op + done)?;
        after
            .get_mut(..count)?
            .copy_from_slice(before.get(begin..begin + count)?);
        done += count;
    }
    *op = end;
    Some(())
}

/// Copies a step from `at` to `offset` behind it.
#[inline(always)]
fn step(bytes: &mut [u8], at: usize, offset: usize) -> Option<()> {
    let step: [u8; STEP] = *piece(bytes, at)?;
    *piece_mut(bytes, offset + at)? = step;
    Some(())
}

/// The `N` bytes at `at`.
#[inline(always)]
fn piece<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// The `N` bytes at `at`, to write to.
#[inline(always)]
fn piece_mut<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}
