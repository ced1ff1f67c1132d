// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Little-endian fields of on-disk structures.

/// Bytes `at..at + N` of `bytes`, zeros where `bytes` is too short.
///
/// Callers pass structures of fixed size and constant offsets inside them, so
/// the zeros never show; they only spare a panic nobody could reach.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    match bytes.get(at..).and_then(<[u8]>::first_chunk::<N>) {
        Some(field) => *field,
        None => [0; N],
    }
}

/// The `u32` at byte `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The `u64` at byte `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// The byte at `at`.
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    u8::from_le_bytes(array(bytes, at))
}
