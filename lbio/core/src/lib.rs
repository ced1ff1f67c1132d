// SPDX-License-Identifier: GPL-2.0 OR MIT

//! LBIO core: the logic of the NVMe fast path, with no kernel types, no
//! allocation and no way to panic.
//!
//! The same files are a crate of the kernel (`block/lbio/lbio_core`, built with
//! `--cfg kernel`) and a crate on the host, where they are tested in seconds.

// The kernel's build passes `no_std` to every crate by itself.
#![cfg_attr(all(not(kernel), not(test)), no_std)]
#![forbid(unsafe_code)]

pub mod chunk;
pub mod doorbell;
pub mod nvme;
pub mod poll;
pub mod prp;
pub mod ring;
pub mod slots;
