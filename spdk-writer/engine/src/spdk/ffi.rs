// SPDX-License-Identifier: MIT

//! SPDK's functions that are called, and those of `shim.c`.

use std::ffi::{
    c_char,
    c_int,
    c_void, //
};
use std::sync::atomic::{
    AtomicU32,
    Ordering, //
};

/// `struct spdk_nvme_ctrlr`.
#[repr(C)]
pub(super) struct Ctrlr([u8; 0]);

/// `struct spdk_nvme_ns`.
#[repr(C)]
pub(super) struct Ns([u8; 0]);

/// `struct spdk_nvme_qpair`.
#[repr(C)]
pub(super) struct Qpair([u8; 0]);

/// How a command ended, as `struct obd_answer` in `shim.c`, which writes to it.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Answer {
    status: AtomicU32,
    result: AtomicU32,
}

impl Answer {
    const DONE: u32 = 1 << 31;

    /// Status code type and code, if there is an answer.
    pub(super) fn status(&self) -> Option<u16> {
        let status = self.status.load(Ordering::Relaxed);
        (status & Self::DONE != 0).then_some(status as u16)
    }

    /// Lets it be as if the command had been deleted with its queue.
    pub(super) fn give_up(&self) {
        self.status.store(Self::DONE | 0x08, Ordering::Relaxed);
    }

    /// Dword 0 of the completion.
    pub(super) fn result(&self) -> u32 {
        self.result.load(Ordering::Relaxed)
    }
}

/// Actions, as in `shim.c`.
pub(super) mod action {
    use std::ffi::c_int;

    pub(crate) const READ: c_int = 0;
    pub(crate) const WRITE: c_int = 1;
    pub(crate) const FLUSH: c_int = 2;
    pub(crate) const DISCARD: c_int = 3;
    pub(crate) const WRITE_ZEROES: c_int = 4;
    pub(crate) const WRITE_THROUGH: c_int = 5;
}

unsafe extern "C" {
    pub(super) fn obd_spdk_last_error() -> *const c_char;
    pub(super) fn obd_spdk_connect(address: *const c_char) -> *mut Ctrlr;
    pub(super) fn obd_spdk_queue(ctrlr: *mut Ctrlr, depth: u32, requests: u32) -> *mut Qpair;
    pub(super) fn obd_spdk_submit(
        ns: *mut Ns,
        qpair: *mut Qpair,
        action: c_int,
        data: *mut c_void,
        first: u64,
        blocks: u32,
        answer: *const Answer,
    ) -> c_int;
    pub(super) fn obd_spdk_abort(
        ctrlr: *mut Ctrlr,
        qpair: *mut Qpair,
        command: *const Answer,
        answer: *const Answer,
    ) -> c_int;
    pub(super) fn obd_spdk_feature(ctrlr: *mut Ctrlr, feature: u8, answer: *const Answer) -> c_int;
    pub(super) fn obd_spdk_status(ctrlr: *mut Ctrlr) -> u32;

    pub(super) fn spdk_nvme_ctrlr_get_data(ctrlr: *mut Ctrlr) -> *const [u8; 4096];
    pub(super) fn spdk_nvme_ctrlr_is_active_ns(ctrlr: *mut Ctrlr, nsid: u32) -> bool;
    pub(super) fn spdk_nvme_ctrlr_get_ns(ctrlr: *mut Ctrlr, nsid: u32) -> *mut Ns;
    pub(super) fn spdk_nvme_ns_get_data(ns: *mut Ns) -> *const [u8; 4096];
    pub(super) fn spdk_nvme_ctrlr_get_max_xfer_size(ctrlr: *const Ctrlr) -> u32;
    pub(super) fn spdk_nvme_ctrlr_process_admin_completions(ctrlr: *mut Ctrlr) -> i32;
    pub(super) fn spdk_nvme_ctrlr_reset(ctrlr: *mut Ctrlr) -> c_int;
    pub(super) fn spdk_nvme_ctrlr_free_io_qpair(qpair: *mut Qpair) -> c_int;
    pub(super) fn spdk_nvme_qpair_process_completions(qpair: *mut Qpair, most: u32) -> i32;
    pub(super) fn spdk_nvme_detach(ctrlr: *mut Ctrlr) -> c_int;
}
