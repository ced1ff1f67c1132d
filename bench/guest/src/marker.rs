// SPDX-License-Identifier: MIT
//! Markers of measured operations, seen by the instruction-counting plugin.
//!
//! A marker is the seven byte no-operation `nopl imm32(%rax)`, encoded as
//! `0f 1f 80 imm32` (little endian). Compilers pad with displacement zero
//! only, so these displacements appear nowhere else.

use core::arch::asm;

/// First bytes of every marker; the 32-bit displacement follows.
pub const OPCODE: [u8; 3] = [0x0f, 0x1f, 0x80];
/// The measured window begins: warm-up is over.
pub const WINDOW_BEGIN: u32 = 0x0A10_5B00;
/// The measured window ends.
pub const WINDOW_END: u32 = 0x0A10_5E00;
/// A measured operation begins.
pub const OP_BEGIN: u32 = 0x0A10_5B01;
/// A measured operation ends.
pub const OP_END: u32 = 0x0A10_5E01;

/// Executes the marker with displacement `IMM`; does nothing else.
#[inline(always)]
pub fn mark<const IMM: u32>() {
    // SAFETY: A long NOP touches neither memory, registers nor flags. `nomem`
    // is left out on purpose: the compiler must not move memory accesses, and
    // so system calls, across the marker.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x80",
            ".long {imm}",
            imm = const IMM,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_mark_emits_long_nop_with_displacement() {
        #[inline(never)]
        fn marked() {
            mark::<OP_BEGIN>();
        }
        let mut expected = OPCODE.to_vec();
        expected.extend(OP_BEGIN.to_le_bytes());

        marked();
        let start = (marked as *const ()).cast::<u8>();
        // SAFETY: The machine code of `marked`, and of what the linker places
        // after it, is mapped and readable; 64 bytes cover the function.
        let code = unsafe { core::slice::from_raw_parts(start, 64) };

        assert!(code.windows(expected.len()).any(|bytes| bytes == expected));
    }
}
