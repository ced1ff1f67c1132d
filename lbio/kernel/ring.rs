// SPDX-License-Identifier: GPL-2.0

//! Queue pairs and chunks of pages, for their C users.
//!
//! The logic is in the `lbio_core` crate; this adds the memory that is shared
//! with the controller, and a C interface.
//!
//! A ring's submission half is used by one caller at a time, as is its
//! completion half; C has a lock for each. Slots need none.
//!
//! C header: [`include/linux/lbio.h`](srctree/include/linux/lbio.h)

use core::cell::UnsafeCell;
use core::ptr;
use kernel::bindings;
use kernel::error::code::*;
use kernel::prelude::*;
use kernel::sync::barrier::{
    dma_mb,
    Read, //
};
use lbio_core::chunk::{
    Chunk,
    Next, //
};
use lbio_core::nvme::{
    Cqe,
    Prp,
    Sqe,
    PAGE_SIZE, //
};
use lbio_core::prp::{
    self,
    List, //
};
use lbio_core::ring::{
    Completion,
    CompletionMemory,
    Prepared,
    Sent,
    Submission,
    MIN_DEPTH, //
};
use lbio_core::slots::{
    Slots,
    Token,
    CANCELLED,
    MAX_SLOTS, //
};

/// One queue pair. In this order, so that what every command takes first is at its
/// address.
///
/// # Invariants
///
/// - `sqes` and `cqes` point to `depth` submission and completion queue entries,
///   `lists` to a list for each slot, all of which live as long as the ring.
/// - If `prepared` is not [`Prepared::NONE`], that command is where the next one goes,
///   and `slba` points to the word of its first block.
/// - `submission` and `completion` were made for `depth` entries, and `slots`
///   has fewer slots than that.
#[repr(C)]
struct Ring {
    slots: Slots,
    sqes: *mut Sqe,
    cqes: *mut u8,
    lists: *mut List,
    lists_dma: u64,
    depth: u16,
    submission: UnsafeCell<Submission>,
    prepared: UnsafeCell<Prepared>,
    slba: UnsafeCell<*mut u64>,
    completion: UnsafeCell<Completion>,
}

/// The completion queue's memory.
///
/// # Invariants
///
/// The pointer is a ring's `cqes`.
struct Cqes(*const u8);

impl CompletionMemory for Cqes {
    #[inline]
    fn entry(&self, index: u16, phase: bool) -> Option<Cqe> {
        // SAFETY: `index` is below the ring's depth, so this is in its memory.
        let entry = unsafe { self.0.add(usize::from(index) * Cqe::SIZE) };
        // SAFETY: As above; the status is the last aligned word of 16 bits. The
        // device may write it at any time.
        let status = unsafe { ptr::read_volatile(entry.add(14).cast::<u16>()) };
        if (u16::from_le(status) & 1 != 0) != phase {
            return None;
        }
        // The rest of the entry, and the data, are not older than the phase tag.
        dma_mb(Read);
        // SAFETY: As above; the entry's second half is aligned to its size.
        let word = unsafe { ptr::read_volatile(entry.add(8).cast::<u64>()) };
        Some(Cqe::from_word(word))
    }
}

/// Makes a ring of `depth` entries in the memory at `sqes` and `cqes`, or NULL.
///
/// # Safety
///
/// `sqes`, `cqes` and `lists` must point to coherent DMA memory of `depth` entries
/// of 64, 16 and 64 bytes, aligned so, until `lbio_ring_free`. The device finds
/// `lists` at the bus address `lists_dma`.
#[export]
pub unsafe extern "C" fn lbio_ring_new(
    sqes: *mut c_void,
    cqes: *mut c_void,
    lists: *mut c_void,
    lists_dma: u64,
    depth: u16,
) -> *mut bindings::lbio_ring {
    if depth < MIN_DEPTH || usize::from(depth) > MAX_SLOTS + 1 {
        return ptr::null_mut();
    }
    // INVARIANT: The caller promises the memory; slots are one fewer than `depth`.
    let ring = Ring {
        slots: Slots::new(usize::from(depth) - 1),
        sqes: sqes.cast(),
        cqes: cqes.cast(),
        lists: lists.cast(),
        lists_dma,
        depth,
        submission: UnsafeCell::new(Submission::new(depth)),
        prepared: UnsafeCell::new(Prepared::NONE),
        slba: UnsafeCell::new(ptr::null_mut()),
        completion: UnsafeCell::new(Completion::new(depth, 0)),
    };
    match KBox::new(ring, GFP_KERNEL) {
        Ok(ring) => KBox::into_raw(ring).cast(),
        Err(_) => ptr::null_mut(),
    }
}

/// Bytes of memory of a ring, its queue entries aside.
///
/// # Safety
///
/// Always safe; `unsafe` is required by `#[export]`.
#[export]
pub unsafe extern "C" fn lbio_ring_bytes() -> usize {
    size_of::<Ring>()
}

/// Frees a ring.
///
/// # Safety
///
/// `ring` must come from `lbio_ring_new` and be used no more.
#[export]
pub unsafe extern "C" fn lbio_ring_free(ring: *mut bindings::lbio_ring) {
    // SAFETY: By the caller's promise.
    drop(unsafe { KBox::from_raw(ring.cast::<Ring>()) });
}

/// Starts with empty rings as queue `sq_id`. Slots keep their state: their
/// owners may not have looked at what was cancelled yet.
///
/// # Safety
///
/// `ring` must be valid, the controller must not know its memory, and nobody may
/// be submitting to it or reaping from it.
#[export]
pub unsafe extern "C" fn lbio_ring_reset(ring: *mut bindings::lbio_ring, sq_id: u16) {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    // SAFETY: By the type invariant and the caller's promise.
    unsafe {
        // What `push` relies on; that of completions is their phase tag.
        ptr::write_bytes(ring.sqes, 0, usize::from(ring.depth));
        ptr::write_bytes(ring.cqes, 0, usize::from(ring.depth) * Cqe::SIZE);
        *ring.submission.get() = Submission::new(ring.depth);
        *ring.prepared.get() = Prepared::NONE;
        *ring.completion.get() = Completion::new(ring.depth, sq_id);
    }
}

impl Ring {
    /// Puts a command by one of the caller's slots into the submission queue. Returns
    /// the value for the tail doorbell.
    ///
    /// # Safety
    ///
    /// Nobody else may be using the submission half, and the caller is to ring the
    /// doorbell.
    #[inline(always)]
    unsafe fn push(&self, sqe: Sqe) -> u16 {
        // SAFETY: By the caller's promise nobody else uses this half.
        let submission = unsafe { &mut *self.submission.get() };
        // SAFETY: As above.
        unsafe {
            *self.prepared.get() = Prepared::NONE;
            ptr::write(self.write(submission, &sqe), sqe.words()[Sqe::SLBA]);
        }
        submission.advance()
    }

    /// Writes a command, all but its first block, to where the next one goes. Returns
    /// where the first block does.
    ///
    /// # Safety
    ///
    /// Nobody else may be using the submission half, to which `submission` belongs.
    #[inline(always)]
    unsafe fn write(&self, submission: &Submission, sqe: &Sqe) -> *mut u64 {
        let at = usize::from(submission.tail());
        // SAFETY: By the type invariant; `at` is below `depth`.
        let words = unsafe { self.sqes.add(at) }.cast::<u64>();
        // The others are zero since the reset, and never anything else.
        for index in Sqe::VARYING {
            // SAFETY: An entry has eight words, and the controller has fetched what
            // was there, as there are fewer slots than entries. It does not look
            // before the doorbell is written.
            unsafe { ptr::write(words.add(index), sqe.words()[index]) };
        }
        // SAFETY: As above.
        unsafe { words.add(Sqe::SLBA) }
    }

    /// What is left of [`lbio_ring_read_page`] if no such read is prepared.
    ///
    /// # Safety
    ///
    /// As for that; `page` is its chunk's, and `prp` describes it.
    #[cold]
    unsafe fn read_page(&self, page: Next<'_>, ns: &bindings::lbio_ns, slba: u64, prp: Prp) -> i32 {
        let Some(slot) = self.slots.alloc() else {
            return EBUSY.to_errno();
        };
        page.take();
        let sqe = Sqe::read(slot, ns.nsid, slba, u32::from(ns.page_more) + 1, prp);
        // SAFETY: By the caller's promise; the slot is new.
        let tail = unsafe { self.push(sqe) };
        Sent::new(slot, tail).bits() as i32
    }

    /// The list of `slot`, whose command is not in flight yet, and the bus address
    /// where the device finds it.
    ///
    /// # Safety
    ///
    /// `slot` must be the caller's.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn list(&self, slot: u16) -> (&mut [u64], u64) {
        let index = usize::from(slot);
        // SAFETY: By the type invariant; there is a list for each slot. The
        // device reads those of commands in flight, and this one is not yet.
        let list = unsafe { &mut *self.lists.add(index) };
        let offset = (index * size_of::<List>()) as u64;
        (list.entries(), self.lists_dma.wrapping_add(offset))
    }
}

/// Takes the next page of `chunk`, whose first is at bus address `dma`, and puts a read
/// into it, from sector `sector` of `ns` on, into the submission queue.
///
/// Returns the slot in bits 0..16 and the value for the tail doorbell in bits 16..32;
/// -ENOMEM if the chunk has no page, -EBUSY if all slots are in use, neither of which
/// takes anything.
///
/// # Safety
///
/// `ring` must be valid, and nobody else submitting to it. `chunk` must be
/// initialised, nobody else taking pages or retiring it, and its pages mapped for
/// the device until the command is complete. `ns` must be valid, and nobody changing
/// it; its logical blocks are of a sector's size up to a page's.
#[export]
pub unsafe extern "C" fn lbio_ring_read_page(
    ring: *mut bindings::lbio_ring,
    chunk: *mut bindings::lbio_chunk_state,
    ns: *const bindings::lbio_ns,
    dma: u64,
    sector: u64,
) -> i32 {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    // SAFETY: By the caller's promise.
    let ns = unsafe { &*ns };
    // SAFETY: By the caller's promise.
    let chunk = unsafe { &*chunk.cast::<Chunk>() };
    let Some(page) = chunk.next() else {
        return ENOMEM.to_errno();
    };
    let prp = prp::page((dma / PAGE_SIZE).wrapping_add(u64::from(page.index())));
    let slba = sector.wrapping_shr(u32::from(ns.sector_shift));
    // SAFETY: By the caller's promise nobody else uses this half.
    let (submission, prepared) =
        unsafe { (&mut *ring.submission.get(), &mut *ring.prepared.get()) };
    let Some(sent) = prepared.take(ns.kind, prp.first, &ring.slots, submission) else {
        // SAFETY: By the caller's promise.
        return unsafe { ring.read_page(page, ns, slba, prp) };
    };
    // SAFETY: By the type invariant there is the rest of the entry. The controller does
    // not look before the doorbell is written.
    unsafe { ptr::write(*ring.slba.get(), slba.to_le()) };
    page.take();
    sent.bits() as i32
}

/// Prepares the next call of `lbio_ring_read_page` with the same arguments, while nobody
/// waits for it. It may be of another kind, or never come.
///
/// # Safety
///
/// As for that, but that the pages need not be mapped.
#[export]
pub unsafe extern "C" fn lbio_ring_prepare_page(
    ring: *mut bindings::lbio_ring,
    chunk: *const bindings::lbio_chunk_state,
    ns: *const bindings::lbio_ns,
    dma: u64,
) {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    // SAFETY: By the caller's promise.
    let ns = unsafe { &*ns };
    // SAFETY: By the caller's promise.
    let Some(page) = unsafe { &*chunk.cast::<Chunk>() }.next() else {
        return;
    };
    let prp = prp::page((dma / PAGE_SIZE).wrapping_add(u64::from(page.index())));
    // SAFETY: By the caller's promise nobody else uses this half.
    let (submission, prepared) = unsafe { (&*ring.submission.get(), &mut *ring.prepared.get()) };
    let Some(next) = Prepared::new(ns.kind, prp.first, &ring.slots, submission) else {
        return;
    };
    let sqe = Sqe::read(next.slot(), ns.nsid, 0, u32::from(ns.page_more) + 1, prp);
    // SAFETY: By the caller's promise.
    unsafe { *ring.slba.get() = ring.write(submission, &sqe) };
    // INVARIANT: Both were just written.
    *prepared = next;
}

/// Puts a read of `blocks` logical blocks from `slba` of namespace `nsid` into
/// the `pages` adjacent pages at bus address `dma` into the submission queue.
/// Returns the slot in bits 0..16 and the value for the tail doorbell in bits
/// 16..32; -EBUSY if all slots are in use, -EINVAL for pages that no command can
/// transfer to.
///
/// # Safety
///
/// `ring` must be valid, and nobody else submitting to it. The pages must be
/// mapped for the device until the command is complete.
#[export]
pub unsafe extern "C" fn lbio_ring_submit(
    ring: *mut bindings::lbio_ring,
    nsid: u32,
    slba: u64,
    blocks: u32,
    dma: u64,
    pages: u32,
) -> i32 {
    const { assert!(prp::MAX_PAGES == bindings::LBIO_MAX_PAGES) };
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    let Some(slot) = ring.slots.alloc() else {
        return EBUSY.to_errno();
    };
    // SAFETY: The slot is new.
    let list = || unsafe { ring.list(slot) };
    let Ok(prp) = prp::build(dma, pages, list) else {
        ring.slots.release(slot);
        return EINVAL.to_errno();
    };
    // SAFETY: By the caller's promise; the slot is new.
    let tail = unsafe { ring.push(Sqe::read(slot, nsid, slba, blocks, prp)) };
    Sent::new(slot, tail).bits() as i32
}

/// Takes a slot, for `lbio_ring_write`: -EBUSY if all are in use.
///
/// # Safety
///
/// `ring` must be valid.
#[export]
pub unsafe extern "C" fn lbio_ring_alloc(ring: *mut bindings::lbio_ring) -> i32 {
    // SAFETY: By the caller's promise.
    match unsafe { &*ring.cast::<Ring>() }.slots.alloc() {
        Some(slot) => i32::from(slot),
        None => EBUSY.to_errno(),
    }
}

/// Puts a write of `blocks` logical blocks to `slba` of namespace `nsid`, from the
/// `nr` pages at the bus addresses `pages`, into the submission queue; with `fua` past
/// the drive's cache. Returns the value for the tail doorbell; -EINVAL for pages that
/// no command can transfer from, which gives `slot` back.
///
/// Whoever completes the command calls `lbio_wake` with `token`: from here on, as a
/// broken controller may answer what it was not told yet.
///
/// # Safety
///
/// `ring` must be valid, and nobody else submitting to it; `slot` from
/// `lbio_ring_alloc`, and `token` something that `lbio_wake` takes. There must be `nr`
/// addresses at `pages`, of memory that is mapped for the device until the command is
/// complete.
#[export]
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn lbio_ring_write(
    ring: *mut bindings::lbio_ring,
    slot: u16,
    token: u64,
    nsid: u32,
    slba: u64,
    blocks: u32,
    pages: *const u64,
    nr: u32,
    fua: bool,
) -> i32 {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    // SAFETY: By the caller's promise.
    let pages = unsafe { core::slice::from_raw_parts(pages, nr as usize) };
    // SAFETY: The slot is the caller's.
    let list = || unsafe { ring.list(slot) };
    let (Ok(prp), Some(token)) = (prp::gather(pages, list), Token::new(token)) else {
        ring.slots.release(slot);
        return EINVAL.to_errno();
    };
    // The command is not in flight yet: only a broken controller has completed it.
    if !ring.slots.sleep(slot, token) {
        ring.slots.release(slot);
        return EINVAL.to_errno();
    }
    // SAFETY: By the caller's promise.
    let tail = unsafe { ring.push(Sqe::write(slot, nsid, slba, blocks, prp, fua)) };
    i32::from(tail)
}

/// Completes the slots that there are completions for, waking who sleeps on
/// them. Returns the value for the head doorbell, or -1 if there were none.
///
/// # Safety
///
/// `ring` must be valid, and nobody else reaping from it. `queue` is passed to
/// `lbio_stray`. Interrupts must be disabled.
#[export]
pub unsafe extern "C" fn lbio_ring_reap(
    ring: *mut bindings::lbio_ring,
    queue: *mut bindings::lbio_queue,
) -> i32 {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    // SAFETY: By the caller's promise nobody else uses this half.
    let completion = unsafe { &mut *ring.completion.get() };
    // INVARIANT: It is the ring's.
    let memory = Cqes(ring.cqes);
    let taken = completion.reap(
        &memory,
        &ring.slots,
        // SAFETY: The token is one that `lbio_ring_sleep` or `lbio_ring_write` was given.
        |token| unsafe { bindings::lbio_wake(token.get()) },
        |bad| {
            let cqe = bad.cqe;
            // SAFETY: By the caller's promise.
            unsafe { bindings::lbio_stray(queue, cqe.sq_id, cqe.cid, cqe.status) };
        },
    );
    if taken == 0 {
        -1
    } else {
        i32::from(completion.head())
    }
}

/// Whether the command in `slot` is complete, for `lbio_ring_take`.
///
/// # Safety
///
/// `ring` must be valid, and `slot` the caller's.
#[export]
pub unsafe extern "C" fn lbio_ring_is_done(ring: *mut bindings::lbio_ring, slot: u16) -> bool {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    ring.slots.poll(slot).is_some()
}

/// The status of the command in `slot`, which is given back with it: zero for
/// success, an NVMe status code or `LBIO_CANCELLED`; -EINPROGRESS while it is in
/// flight.
///
/// # Safety
///
/// `ring` must be valid, and `slot` the caller's.
#[export]
pub unsafe extern "C" fn lbio_ring_take(ring: *mut bindings::lbio_ring, slot: u16) -> i32 {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    match ring.slots.take(slot) {
        Some(status) => i32::from(status),
        None => EINPROGRESS.to_errno(),
    }
}

/// Leaves `token` for whoever completes the caller's `slot`. Returns false if
/// the command is complete, and nobody will call `lbio_wake`.
///
/// # Safety
///
/// `ring` must be valid, and `token` something that `lbio_wake` takes.
#[export]
pub unsafe extern "C" fn lbio_ring_sleep(
    ring: *mut bindings::lbio_ring,
    slot: u16,
    token: u64,
) -> bool {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    Token::new(token).is_some_and(|token| ring.slots.sleep(slot, token))
}

/// Leaves the token `to` instead of `from`, which `lbio_ring_sleep` left: the
/// slot is somebody else's from now on. Returns false if the command is complete,
/// and the slot still the caller's.
///
/// # Safety
///
/// `ring` must be valid, and `to` something that `lbio_wake` takes.
#[export]
pub unsafe extern "C" fn lbio_ring_hand_over(
    ring: *mut bindings::lbio_ring,
    slot: u16,
    from: u64,
    to: u64,
) -> bool {
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    match (Token::new(from), Token::new(to)) {
        (Some(from), Some(to)) => ring.slots.hand_over(slot, from, to),
        _ => false,
    }
}

/// Completes all commands in flight as `LBIO_CANCELLED`.
///
/// # Safety
///
/// `ring` must be valid, and the controller must not know its memory any more.
/// Interrupts must be disabled.
#[export]
pub unsafe extern "C" fn lbio_ring_cancel(ring: *mut bindings::lbio_ring) {
    const { assert!(CANCELLED as u32 == bindings::LBIO_CANCELLED) };
    const { assert!(MAX_SLOTS == bindings::LBIO_SLOTS as usize) };
    // SAFETY: By the caller's promise.
    let ring = unsafe { &*ring.cast::<Ring>() };
    ring.slots
        // SAFETY: The token is one that `lbio_ring_sleep` or `lbio_ring_write` was given.
        .cancel(|token| unsafe { bindings::lbio_wake(token.get()) });
}

/// The slots with a command in flight, as bits.
///
/// # Safety
///
/// `ring` must be valid.
#[export]
pub unsafe extern "C" fn lbio_ring_flying(ring: *mut bindings::lbio_ring) -> u64 {
    // SAFETY: By the caller's promise.
    unsafe { &*ring.cast::<Ring>() }.slots.flying()
}

// `lbio_chunk_state` is the C name of `Chunk`.
const _: () = {
    assert!(size_of::<Chunk>() == size_of::<bindings::lbio_chunk_state>());
    assert!(align_of::<Chunk>() == align_of::<bindings::lbio_chunk_state>());
};

/// Makes `*chunk` a chunk of `pages` pages that nobody has taken.
///
/// # Safety
///
/// `chunk` must be valid for writing, and nobody else using it.
#[export]
pub unsafe extern "C" fn lbio_chunk_init(chunk: *mut bindings::lbio_chunk_state, pages: u32) {
    // SAFETY: By the caller's promise.
    unsafe { chunk.cast::<Chunk>().write(Chunk::new(pages)) };
}

/// Takes the next `count` pages: the index of the first, or -ENOMEM if there are
/// fewer.
///
/// # Safety
///
/// `chunk` must be initialised, and nobody else taking pages or retiring it.
#[export]
pub unsafe extern "C" fn lbio_chunk_take(
    chunk: *mut bindings::lbio_chunk_state,
    count: u32,
) -> i32 {
    // SAFETY: By the caller's promise.
    match unsafe { &*chunk.cast::<Chunk>() }.take(count) {
        Some(page) => page as i32,
        None => ENOMEM.to_errno(),
    }
}

/// The device is done with `count` pages that were taken.
///
/// # Safety
///
/// `chunk` must be initialised; it may be freed when this returns.
#[export]
pub unsafe extern "C" fn lbio_chunk_finish(chunk: *mut bindings::lbio_chunk_state, count: u32) {
    // SAFETY: By the caller's promise.
    unsafe { &*chunk.cast::<Chunk>() }.finish(count);
}

/// Hands out no more pages.
///
/// # Safety
///
/// `chunk` must be initialised, and nobody else taking pages or retiring it.
#[export]
pub unsafe extern "C" fn lbio_chunk_retire(chunk: *mut bindings::lbio_chunk_state) {
    // SAFETY: By the caller's promise.
    unsafe { &*chunk.cast::<Chunk>() }.retire();
}

/// How many pages there are to take.
///
/// # Safety
///
/// `chunk` must be initialised.
#[export]
pub unsafe extern "C" fn lbio_chunk_left(chunk: *const bindings::lbio_chunk_state) -> u32 {
    // SAFETY: By the caller's promise.
    unsafe { &*chunk.cast::<Chunk>() }.left()
}

/// Whether the chunk may be unmapped.
///
/// # Safety
///
/// `chunk` must be initialised.
#[export]
pub unsafe extern "C" fn lbio_chunk_is_idle(chunk: *const bindings::lbio_chunk_state) -> bool {
    // SAFETY: By the caller's promise.
    unsafe { &*chunk.cast::<Chunk>() }.is_idle()
}
