// SPDX-License-Identifier: MIT

//! What a controller says of itself and of a namespace (NVM Express Base
//! Specification 2.0, section 5.17; NVM Command Set Specification 1.0).

use super::container::other;
use crate::Identity;
use lbio_core::nvme::PAGE_SIZE;
use std::io;

/// Number of the feature that says whether a volatile cache is in use.
pub(crate) const VOLATILE_CACHE: u32 = 0x06;

/// Whether the controller described by `controller` counts as far as `nsid`.
pub(crate) fn check_number(controller: &[u8], nsid: u32) -> io::Result<()> {
    let count = u32_at(controller, 516);
    if nsid == 0 || nsid > count {
        return Err(other(format!("namespace {nsid} of {count}")));
    }
    Ok(())
}

/// Whether the controller described by `controller` knows Doorbell Buffer Config.
pub(crate) fn has_shadow_doorbells(controller: &[u8]) -> bool {
    u16_at(controller, 256) & 1 << 8 != 0
}

/// There is no such namespace.
pub(crate) fn missing(nsid: u32) -> io::Error {
    other(format!(
        "namespace {nsid} is not there, or of another kind than blocks"
    ))
}

/// What the pages `controller` and `namespace` say; [`check_number`] was passed.
/// The driver can do `most` bytes in a command; `feature` asks for
/// [`VOLATILE_CACHE`].
pub(crate) fn identity(
    name: String,
    nsid: u32,
    controller: &[u8],
    namespace: &[u8],
    most: u64,
    feature: impl FnOnce() -> io::Result<u32>,
) -> io::Result<Identity> {
    let blocks = u64_at(namespace, 0);
    if blocks == 0 {
        return Err(missing(nsid));
    }
    // Bits 5 and 6 continue the number of the format.
    let format = u8_at(namespace, 26);
    let format = format & 0xf | (format >> 1 & 0x30);
    let format = u32_at(namespace, 128 + 4 * usize::from(format));
    let (metadata, block_shift) = (format & 0xffff, format >> 16 & 0xff);
    if metadata != 0 || u8_at(namespace, 29) & 7 != 0 {
        return Err(other(
            "its blocks have metadata or protection, which this cannot write",
        ));
    }
    if !(9..=12).contains(&block_shift) {
        return Err(other(format!("blocks of 2^{block_shift} bytes")));
    }
    if u8_at(namespace, 99) & 1 != 0 {
        return Err(other("the namespace is write protected"));
    }
    let block = 1u32 << block_shift;
    let commands = u16_at(controller, 520);
    let present = u8_at(controller, 525) & 1 != 0;
    // What it does not say is as bad as it can be.
    let volatile_cache = present && feature().map_or(true, |result| result & 1 != 0);
    let max_transfer = match u8_at(controller, 77) {
        0 => most,
        shift => PAGE_SIZE
            .checked_shl(shift.into())
            .unwrap_or(most)
            .min(most),
    };
    // The namespace's own atomic unit, if it has one.
    let power_fail = match u8_at(namespace, 24) & 2 {
        0 => u16_at(controller, 528),
        _ => u16_at(namespace, 36),
    };
    // Within a boundary, if there is one.
    let boundary = match u16_at(namespace, 44) {
        0 => u32::MAX,
        blocks => u32::from(blocks) + 1,
    };
    Ok(Identity {
        name,
        model: text(controller.get(24..64).unwrap_or_default()),
        serial: text(controller.get(4..24).unwrap_or_default()),
        size: blocks
            .checked_mul(u64::from(block))
            .ok_or_else(|| other("its size cannot be"))?,
        block_size: block,
        max_transfer,
        volatile_cache,
        atomic_unit: block * (u32::from(power_fail) + 1).min(boundary),
        discard: commands & 1 << 2 != 0,
        write_zeroes: commands & 1 << 3 != 0,
    })
}

/// Space-padded text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_matches([' ', '\0'])
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u16::from_le_bytes(*found.unwrap_or(&[0; 2]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u32::from_le_bytes(*found.unwrap_or(&[0; 4]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u64::from_le_bytes(*found.unwrap_or(&[0; 8]))
}
