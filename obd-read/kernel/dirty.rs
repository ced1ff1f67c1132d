// SPDX-License-Identifier: GPL-2.0

//! A writable disk's blocks in memory, and who waits for what about them.
//!
//! # Where a block is
//!
//! Written blocks are put into the active layer. Freezing makes it the frozen one, of which there
//! is one at most, and puts an empty one in its place, in one step. Stacking puts the layer that
//! the writer made of the frozen one on the image, and drops the frozen one. A block is what the
//! first of these knows of it: active, frozen, image. The image comes first when a layer is
//! stacked, so there is no moment at which a block is nowhere; who reads looks the other way round:
//! first here, then in the image, which must be as new as what was dropped here
//! ([`State::newest`], checked by [`Dirty::serve`] under the lock). A reader whose image is older
//! begins again.
//!
//! A write of a part of a block that is in the image only reads that without the lock. What it
//! read is used if nothing was frozen or stacked meanwhile ([`State::round`]), and nobody else had
//! the block put into the active layer, which then is what is changed.
//!
//! # The lock
//!
//! `state` is taken on the way of I/O, from any context that may sleep, and held to copy what one
//! block is, or what a request reads. Nobody allocates, reads, copies to or from user space or
//! ends a request under it. So it comes last.
//!
//! # Who waits
//!
//! Requests wait in lists, not in tasks: a write that found no room for its blocks, whose turn in
//! a worker comes when the frozen layer was stacked; a flush, until all that was written before it
//! is in the image. The lists have room for every request there can be. So neither workers, which
//! reads need, nor submitters, which may have what the writer needs, are held up by a slow writer.
//! What has room for nothing more is what the writer is woken for: it frees all of it in two
//! rounds at most. A list is emptied when the writer comes forward, when there was none for too
//! long, and when the disk goes, and whoever puts himself on it looks for these under the lock.

use crate::device::{
    end,
    Device,
    Disk, //
};
use crate::layer0::{
    new_leaf,
    Blocks,
    Entry,
    Spare,
    BLOCK, //
};
use core::mem;
use kernel::{
    alloc::{
        flags::__GFP_NOWARN,
        Flags, //
    },
    block::{
        mq::{
            Op,
            Request, //
        },
        SECTOR_SHIFT, //
    },
    new_condvar,
    new_mutex,
    page::Page,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        Mutex,
        MutexGuard,
        UniqueArc, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Jiffies,
        Monotonic, //
    }, //
};

/// A layer of so many entries is large enough for the writer: there are as many extents at most,
/// and some formats have room for a million.
const MANY: usize = 400_000;

/// Most entries that a layer gets. Zeros may take more than one of a format's: of a disk of 4 TiB,
/// discarded as a whole, half a million.
const MOST: usize = 470_000;

/// Sizes and times of a writable disk.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes of memory for written blocks.
    pub(crate) memory: usize,
    /// So many bytes in the active layer are enough for the writer.
    pub(crate) commit_bytes: usize,
    /// So old may it get; 0: any age.
    pub(crate) commit_ms: u32,
    /// So long may there be no writer; 0: for good.
    pub(crate) writer_ms: u32,
    /// Nothing waits for the writer but for memory.
    pub(crate) volatile: bool,
}

/// Why a layer was frozen, as the writer is told.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Reason {
    Size = 1,
    Age = 2,
    Flush = 3,
    Detach = 4,
}

/// A layer that does not change any more.
pub(crate) struct Frozen {
    pub(crate) id: u64,
    pub(crate) reason: Reason,
    pub(crate) blocks: Blocks,
}

/// Requests.
type Requests = KVec<ARef<Request<Disk>>>;

/// Blocks in memory.
#[pin_data]
pub(crate) struct Dirty {
    pub(crate) limits: Limits,
    /// Whether there may be any. It becomes false under the lock, after the image has them.
    any: Atomic<bool>,
    #[pin]
    state: Mutex<State>,
    /// Something that the writer, or who detaches the disk, waits for.
    #[pin]
    changed: CondVar,
}

struct State {
    active: Blocks,
    /// When the first block came to the active layer.
    since: Instant<Monotonic>,
    frozen: Option<Arc<Frozen>>,
    last_id: u64,
    /// Most bytes of memory that were ever in use.
    most: usize,
    /// How often something was frozen or stacked.
    round: u64,
    /// Number of the image that has all that is not here, see [`Stack::number`].
    ///
    /// [`Stack::number`]: crate::stack::Stack::number
    newest: u64,
    /// Writes that wait for memory.
    writes: Requests,
    /// Flushes that wait for what is in the active layer.
    flushes: Requests,
    /// Flushes that wait for the frozen layer.
    committing: Requests,
    /// There is a writer.
    writer: bool,
    /// When the last one went.
    alone: Instant<Monotonic>,
    /// There was none for too long: nothing is written.
    stopped: bool,
    /// Somebody waits for all to be stacked, to detach the disk.
    detaching: bool,
    /// The disk goes, whatever is here.
    gone: bool,
}

impl State {
    fn is_clean(&self) -> bool {
        self.active.is_empty() && self.frozen.is_none()
    }

    /// Bytes of memory in use.
    fn memory(&self) -> usize {
        let frozen = self.frozen.as_ref();
        self.active.memory() + frozen.map_or(0, |frozen| frozen.blocks.memory())
    }

    /// What the layers here know of `block`.
    fn get(&self, block: usize) -> &Entry {
        match (self.active.get(block), &self.frozen) {
            (Entry::Below, Some(frozen)) => frozen.blocks.get(block),
            (entry, _) => entry,
        }
    }

    /// Why the active layer is to be frozen now, if there is anything in it.
    fn reason(&self, limits: &Limits) -> Option<Reason> {
        let age = self.since.elapsed().as_millis();
        if self.active.is_empty() {
            None
        } else if self.detaching {
            Some(Reason::Detach)
        } else if !self.flushes.is_empty() {
            Some(Reason::Flush)
        } else if !self.writes.is_empty() || self.is_large(limits) {
            Some(Reason::Size)
        } else if limits.commit_ms > 0 && age >= i64::from(limits.commit_ms) {
            Some(Reason::Age)
        } else {
            None
        }
    }

    /// Whether the active layer is large enough for the writer.
    fn is_large(&self, limits: &Limits) -> bool {
        self.active.memory() >= limits.commit_bytes || self.active.entries() >= MANY
    }

    /// Whether so much more can be put into the active layer.
    fn has_room(&self, limits: &Limits, bytes: usize) -> bool {
        self.memory() + bytes <= limits.memory && self.active.entries() < MOST
    }

    /// Whether nothing is to be written.
    fn refuses(&self) -> bool {
        self.stopped || self.gone
    }
}

/// What became of a request that writes.
pub(crate) enum Written {
    /// It is in memory.
    Done,
    /// It needs what only a worker may do.
    Sleeps,
    /// There is no room for the rest of it.
    Full,
    /// It failed.
    Failed(Error),
}

/// What a block needs before it can be put.
enum Put {
    Done,
    Page,
    Leaf,
    /// What is beneath, as of this round.
    Below(u64),
    Full,
    Refused,
}

/// Memory of who writes, for the next block.
#[derive(Default)]
struct Hand {
    page: Option<Page>,
    leaf: Spare,
    /// What is beneath a block, and the round that it is of.
    below: Option<(KBox<[u8; BLOCK]>, usize, u64)>,
}

/// What a block, or a part of it, is to be.
struct Piece {
    block: usize,
    within: usize,
    len: usize,
    /// Zeros if null.
    from: *const u8,
}

/// Which image is too old for what is not here.
pub(crate) struct Outdated;

impl Dirty {
    /// Nothing yet. `requests` is how many there can be of each kind.
    pub(crate) fn new(limits: Limits, requests: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            limits,
            any: Atomic::new(false),
            state <- {
                let list = || KVec::with_capacity(requests, GFP_KERNEL);
                new_mutex!(
                    State {
                        active: Blocks::new(limits.size)?,
                        since: Instant::now(),
                        frozen: None,
                        last_id: 0,
                        most: 0,
                        round: 0,
                        newest: 0,
                        writes: list()?,
                        flushes: list()?,
                        committing: list()?,
                        writer: false,
                        alone: Instant::now(),
                        stopped: false,
                        detaching: false,
                        gone: false,
                    },
                    "obd::Dirty::state"
                )
            },
            changed <- new_condvar!("obd::Dirty::changed"),
        })
    }

    /// Whether no block is here: all are in the image, as it is from now on.
    pub(crate) fn is_empty(&self) -> bool {
        // ACQUIRE: The image that has them is found after this.
        !self.any.load(Acquire)
    }

    /// Bytes of memory in use, of these in the frozen layer, and most that ever were.
    pub(crate) fn memory(&self) -> (usize, usize, usize) {
        let state = self.state.lock();
        let frozen = state.frozen.as_ref();
        let frozen = frozen.map_or(0, |frozen| frozen.blocks.memory());
        (state.memory(), frozen, state.most)
    }

    /// Copies what is here of the `len` bytes from byte `offset` of the disk on to `to`, as far as
    /// it is: returns how many bytes these are, and how many behind them are not here, but in the
    /// image, which must have `number` or more.
    ///
    /// # Safety
    ///
    /// There must be `len` bytes to write to at `to`.
    pub(crate) unsafe fn serve(
        &self,
        offset: u64,
        to: *mut u8,
        len: usize,
        number: u64,
    ) -> Result<(usize, usize), Outdated> {
        let state = self.state.lock();
        if number < state.newest {
            return Err(Outdated);
        }
        let (mut here, mut below) = (0, 0);
        while here + below < len {
            let at = offset as usize + here + below;
            let within = at % BLOCK;
            let part = (BLOCK - within).min(len - here - below);
            match state.get(at / BLOCK) {
                Entry::Below => below += part,
                _ if below > 0 => break,
                // SAFETY: The caller has the memory. It is not exclusive, see `Device::read`.
                Entry::Zeros => {
                    unsafe { to.add(here).write_bytes(0, part) };
                    here += part;
                }
                Entry::Data(page) => {
                    // SAFETY: As above; nobody writes to pages without the lock.
                    let _ = unsafe { page.read_raw(to.add(here), within, part) };
                    here += part;
                }
            }
        }
        Ok((here, below))
    }

    /// Puts what `rq` writes into memory, as far as it is not there yet (`done`, which it changes).
    /// Only workers have `device`, and may wait.
    pub(crate) fn write(
        &self,
        rq: &Request<Disk>,
        done: &Atomic<u32>,
        device: Option<&Device>,
    ) -> Written {
        let flags = match device {
            // Workers are in `without_io`, whatever this says.
            Some(_) => GFP_KERNEL,
            None => GFP_NOWAIT | __GFP_NOWARN,
        };
        let mut hand = Hand::default();
        let begin = (rq.sector() << SECTOR_SHIFT) as usize;
        let mut at = begin;
        let has_data = rq.op() == Op::Write;
        let mut put = |from: *const u8, len: usize| {
            let end = at + len;
            let mut from = from;
            while at < end {
                let within = at % BLOCK;
                let whole = match from.is_null() && within == 0 {
                    true => self.zero_chunk(at / BLOCK, end - at),
                    false => 0,
                };
                let len = match whole {
                    0 => (BLOCK - within).min(end - at),
                    len => len,
                };
                // What was done before has the same pieces.
                let is_done = at - begin < done.load(Relaxed) as usize;
                if whole == 0 && !is_done {
                    let piece = Piece {
                        block: at / BLOCK,
                        within,
                        len,
                        from,
                    };
                    self.put(&piece, &mut hand, flags, device)?;
                }
                at += len;
                if !is_done {
                    // CAST: A request's length is a `u32`.
                    done.store((at - begin) as u32, Relaxed);
                }
                from = from.wrapping_add(if from.is_null() { 0 } else { len });
            }
            Ok(())
        };
        let result = match has_data {
            true => rq
                .segments()
                .try_for_each(|segment| put(segment.as_ptr(), segment.len())),
            false => put(core::ptr::null(), rq.len_bytes() as usize),
        };
        match result {
            Ok(()) => Written::Done,
            Err(written) => written,
        }
    }

    /// Makes zeros of a whole chunk that begins with `block`, if the `len` bytes are that much:
    /// returns its bytes then, else 0. That needs no memory.
    fn zero_chunk(&self, block: usize, len: usize) -> usize {
        let mut state = self.state.lock();
        let blocks = state.active.chunk_at(block);
        let has_room = state.has_room(&self.limits, 0);
        if blocks == 0 || blocks * BLOCK > len || state.refuses() || !has_room {
            return 0;
        }
        self.begins(&mut state);
        let old = state.active.zero_chunk(block);
        if state.frozen.is_none() && state.is_large(&self.limits) {
            self.changed.notify_all();
        }
        drop(state);
        drop(old);
        blocks * BLOCK
    }

    /// Something comes to the active layer.
    fn begins(&self, state: &mut MutexGuard<'_, State>) {
        if state.active.is_empty() {
            state.since = Instant::now();
            // Who looks for it did not get this write's end yet.
            self.any.store(true, Relaxed);
            // The writer's wait ends when it is old enough.
            self.changed.notify_all();
        }
    }

    /// Puts a piece, with all that it takes.
    fn put(
        &self,
        piece: &Piece,
        hand: &mut Hand,
        flags: Flags,
        device: Option<&Device>,
    ) -> Result<(), Written> {
        let no_memory = || match device {
            Some(_) => Written::Failed(ENOMEM),
            None => Written::Sleeps,
        };
        loop {
            match self.try_put(piece, hand) {
                Put::Done => return Ok(()),
                Put::Full => return Err(Written::Full),
                Put::Refused => return Err(Written::Failed(EIO)),
                Put::Page => {
                    hand.page = Some(Page::alloc_page(flags).map_err(|_| no_memory())?);
                }
                Put::Leaf => hand.leaf = Some(new_leaf(flags).map_err(|_| no_memory())?),
                Put::Below(round) => {
                    let device = device.ok_or(Written::Sleeps)?;
                    let mut bytes = match hand.below.take() {
                        Some((bytes, ..)) => bytes,
                        None => KBox::new([0; BLOCK], flags).map_err(|_| no_memory())?,
                    };
                    device
                        .read_block(piece.block, &mut bytes)
                        .map_err(Written::Failed)?;
                    hand.below = Some((bytes, piece.block, round));
                }
            }
        }
    }

    fn try_put(&self, piece: &Piece, hand: &mut Hand) -> Put {
        let mut state = self.state.lock();
        if state.refuses() {
            return Put::Refused;
        }
        let is_part = piece.len < BLOCK;
        let is_zeros = piece.from.is_null();
        match state.active.get(piece.block) {
            Entry::Data(page) => {
                // SAFETY: The lock is held, and the layer not frozen: nobody else has the page.
                return match unsafe { piece.copy_to(page) } {
                    Ok(()) => Put::Done,
                    Err(_) => Put::Refused,
                };
            }
            Entry::Zeros if is_zeros => return Put::Done,
            _ => {}
        }
        let needs_page = is_part || !is_zeros;
        let needs_leaf = state.active.needs_leaf(piece.block);
        let needed = (usize::from(needs_page) + usize::from(needs_leaf)) * BLOCK;
        if !state.has_room(&self.limits, needed) {
            return Put::Full;
        }
        if needs_leaf && hand.leaf.is_none() {
            return Put::Leaf;
        }
        let entry = match needs_page {
            false => Entry::Zeros,
            true => {
                let Some(page) = hand.page.take() else {
                    return Put::Page;
                };
                // SAFETY: Nobody else has the page.
                let filled = unsafe { self.fill(&state, piece, &page, hand) };
                match filled {
                    Ok(None) => Entry::Data(page),
                    Ok(Some(needs)) => {
                        hand.page = Some(page);
                        return needs;
                    }
                    Err(_) => return Put::Refused,
                }
            }
        };
        self.begins(&mut state);
        state.active.set(piece.block, entry, &mut hand.leaf);
        state.most = state.most.max(state.memory());
        if state.frozen.is_none() && state.is_large(&self.limits) {
            self.changed.notify_all();
        }
        Put::Done
    }

    /// Fills a new page of the active layer with what the block is, and the piece.
    ///
    /// # Safety
    ///
    /// Nobody else may have `page`.
    unsafe fn fill(
        &self,
        state: &State,
        piece: &Piece,
        page: &Page,
        hand: &Hand,
    ) -> Result<Option<Put>> {
        if piece.len < BLOCK {
            match (state.get(piece.block), &hand.below) {
                // SAFETY: By the requirements of this function.
                (Entry::Zeros, _) => unsafe { page.fill_zero_raw(0, BLOCK)? },
                // SAFETY: As above; nobody writes to pages of the frozen layer.
                (Entry::Data(from), _) => unsafe { copy_page(from, page)? },
                (Entry::Below, Some((bytes, block, round)))
                    if *block == piece.block && *round == state.round =>
                {
                    // SAFETY: As above.
                    unsafe { page.write_raw(bytes.as_ptr(), 0, BLOCK)? };
                }
                (Entry::Below, _) => return Ok(Some(Put::Below(state.round))),
            }
        }
        // SAFETY: As above.
        unsafe { piece.copy_to(page)? };
        Ok(None)
    }

    // This and the next one are for who has a reference of his own: once the lock is released the
    // request may have ended, and the device be gone.

    /// Takes a write that found no room, or returns it if there is some now, or it is to fail: it
    /// is to be tried again.
    pub(crate) fn wait_for_room(&self, rq: ARef<Request<Disk>>) -> Option<ARef<Request<Disk>>> {
        let mut state = self.state.lock();
        // A page and a leaf let it go on.
        if state.refuses() || state.has_room(&self.limits, 2 * BLOCK) {
            return Some(rq);
        }
        let refused = state.writes.push_within_capacity(rq).err();
        self.changed.notify_all();
        refused.map(|full| full.0)
    }

    /// Takes a flush, until all that was written is in the image, or returns what it ends with.
    pub(crate) fn flush(&self, rq: ARef<Request<Disk>>) -> Option<(ARef<Request<Disk>>, Result)> {
        let mut state = self.state.lock();
        if state.is_clean() {
            return Some((rq, Ok(())));
        }
        if state.refuses() {
            return Some((rq, Err(EIO)));
        }
        let list = match state.active.is_empty() {
            true => &mut state.committing,
            false => &mut state.flushes,
        };
        // There is room for all there can be.
        let refused = list.push_within_capacity(rq).err();
        self.changed.notify_all();
        refused.map(|full| (full.0, Err(EIO)))
    }

    /// Freezes the active layer when there is a reason, for which it waits, or returns the one that
    /// is frozen.
    pub(crate) fn next(&self, timeout_ms: u32) -> Result<Arc<Frozen>> {
        let begin = Instant::<Monotonic>::now();
        let mut fresh = None;
        let mut state = self.state.lock();
        loop {
            if let Some(frozen) = &state.frozen {
                return Ok(frozen.clone());
            }
            if state.gone {
                return Err(ESHUTDOWN);
            }
            if let Some(reason) = state.reason(&self.limits) {
                let Some((blocks, room)) = fresh.take() else {
                    drop(state);
                    let room = UniqueArc::<Frozen>::new_uninit(GFP_KERNEL)?;
                    fresh = Some((Blocks::new(self.limits.size)?, room));
                    state = self.state.lock();
                    continue;
                };
                return Ok(Self::freeze(&mut state, reason, blocks, room));
            }
            let left = i64::from(timeout_ms) - begin.elapsed().as_millis();
            if left <= 0 {
                return Err(ETIMEDOUT);
            }
            let until_old = match state.active.is_empty() || self.limits.commit_ms == 0 {
                true => left,
                false => i64::from(self.limits.commit_ms) - state.since.elapsed().as_millis(),
            };
            let result = self
                .changed
                .wait_interruptible_timeout(&mut state, jiffies(left.min(until_old)));
            if matches!(result, CondVarTimeoutResult::Signal { .. }) {
                return Err(EINTR);
            }
        }
    }

    fn freeze(
        state: &mut State,
        reason: Reason,
        fresh: Blocks,
        room: UniqueArc<core::mem::MaybeUninit<Frozen>>,
    ) -> Arc<Frozen> {
        state.last_id += 1;
        state.round += 1;
        let frozen: Arc<Frozen> = room
            .write(Frozen {
                id: state.last_id,
                reason,
                blocks: mem::replace(&mut state.active, fresh),
            })
            .into();
        state.frozen = Some(frozen.clone());
        // Nobody waits for a frozen layer when there is none.
        let State {
            flushes,
            committing,
            ..
        } = state;
        mem::swap(flushes, committing);
        frozen
    }

    /// The frozen layer, if it is that one.
    pub(crate) fn frozen(&self, id: u64) -> Result<Arc<Frozen>> {
        let frozen = self.state.lock().frozen.clone();
        frozen.filter(|frozen| frozen.id == id).ok_or(ESTALE)
    }

    /// The frozen layer, if there is one.
    pub(crate) fn any_frozen(&self) -> Option<Arc<Frozen>> {
        self.state.lock().frozen.clone()
    }

    /// Drops the frozen layer `id`, which is in the image with the number `newest`, and ends the
    /// flushes that waited for it.
    pub(crate) fn stacked(&self, id: u64, newest: u64) {
        let mut state = self.state.lock();
        if state.frozen.as_ref().is_none_or(|frozen| frozen.id != id) {
            return;
        }
        let frozen = state.frozen.take();
        state.round += 1;
        state.newest = newest;
        if state.is_clean() {
            // RELEASE: The image that has all of it comes before.
            self.any.store(false, Release);
        }
        self.changed.notify_all();
        drop(state);
        drop(frozen);
        self.end_flushes(|state| &mut state.committing, Ok(()));
    }

    /// The frozen layer `id` could not be made a layer of the image: flushes fail, those that wait
    /// for it, and those that came since, too, which wait for it before all else.
    pub(crate) fn failed(&self, id: u64, error: Error) -> Result {
        self.frozen(id)?;
        self.end_flushes(|state| &mut state.committing, Err(error));
        self.end_flushes(|state| &mut state.flushes, Err(error));
        Ok(())
    }

    /// Ends the flushes of a list, those that are in it now.
    fn end_flushes(&self, list: fn(&mut State) -> &mut Requests, result: Result) {
        let mut left = list(&mut self.state.lock()).len();
        while left > 0 {
            // Those that come meanwhile are put behind them.
            let mut state = self.state.lock();
            let Ok(rq) = list(&mut state).remove(0) else {
                return;
            };
            drop(state);
            end(rq, result);
            left -= 1;
        }
    }

    /// Takes one of the writes that wait, the oldest one.
    pub(crate) fn waiting(&self) -> Option<ARef<Request<Disk>>> {
        self.state.lock().writes.remove(0).ok()
    }

    /// How many writes wait.
    pub(crate) fn waiters(&self) -> usize {
        self.state.lock().writes.len()
    }

    /// There is a writer from here on, if there was none. Returns whether it was missed.
    pub(crate) fn writer_comes(&self) -> Result<bool> {
        let mut state = self.state.lock();
        if state.gone {
            return Err(ENODEV);
        }
        if mem::replace(&mut state.writer, true) {
            return Err(EBUSY);
        }
        Ok(mem::replace(&mut state.stopped, false))
    }

    /// There is no writer any more.
    pub(crate) fn writer_goes(&self) {
        let mut state = self.state.lock();
        state.writer = false;
        // The next one has to be looked for from here on.
        state.alone = Instant::now();
        self.changed.notify_all();
    }

    /// Waits for a writer, for too long at most, and stops writing then, which it returns.
    pub(crate) fn watch(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.writer || state.stopped || state.gone || self.limits.writer_ms == 0 {
                return false;
            }
            let alone = state.alone.elapsed().as_millis();
            let left = i64::from(self.limits.writer_ms) - alone;
            if left <= 0 {
                break;
            }
            // Workers get no signals.
            let _ = self
                .changed
                .wait_interruptible_timeout(&mut state, jiffies(left));
        }
        state.stopped = true;
        drop(state);
        self.end_flushes(|state| &mut state.flushes, Err(EIO));
        self.end_flushes(|state| &mut state.committing, Err(EIO));
        true
    }

    /// Waits until all is in the image, before the disk goes. Fails with [`EBUSY`] without a
    /// writer, with [`EINTR`] if a signal comes; else nobody writes from here on.
    pub(crate) fn drain(&self) -> Result {
        let mut state = self.state.lock();
        state.detaching = true;
        self.changed.notify_all();
        let result = loop {
            if state.is_clean() {
                state.gone = true;
                break Ok(());
            }
            if !state.writer {
                break Err(EBUSY);
            }
            if self.changed.wait_interruptible(&mut state) {
                break Err(EINTR);
            }
        };
        state.detaching = false;
        self.changed.notify_all();
        result
    }

    /// The disk goes: all that waits fails, as does what comes. Returns how many bytes were not
    /// stacked.
    pub(crate) fn leave(&self) -> usize {
        let mut state = self.state.lock();
        state.gone = true;
        let lost = state.memory();
        self.changed.notify_all();
        drop(state);
        self.end_flushes(|state| &mut state.flushes, Err(EIO));
        self.end_flushes(|state| &mut state.committing, Err(EIO));
        lost
    }
}

impl Piece {
    /// Puts it into the page of its block.
    ///
    /// # Safety
    ///
    /// Nobody else may use the page. What is copied is there.
    unsafe fn copy_to(&self, page: &Page) -> Result {
        match self.from.is_null() {
            // SAFETY: By the requirements of this function.
            true => unsafe { page.fill_zero_raw(self.within, self.len) },
            // SAFETY: As above. It is memory of a request that writes, which its owner may change
            // meanwhile: then what is written is a mixture, as with any disk.
            false => unsafe { page.write_raw(self.from, self.within, self.len) },
        }
    }
}

/// Copies a page.
///
/// # Safety
///
/// Nobody may write to `from`, and nobody else use `to`.
unsafe fn copy_page(from: &Page, to: &Page) -> Result {
    let mut part = [0; 512];
    for at in (0..BLOCK).step_by(part.len()) {
        // SAFETY: By the requirements of this function.
        unsafe {
            from.read_raw(part.as_mut_ptr(), at, part.len())?;
            to.write_raw(part.as_ptr(), at, part.len())?;
        }
    }
    Ok(())
}

/// As long as `ms`, and one tick at least.
fn jiffies(ms: i64) -> Jiffies {
    msecs_to_jiffies(u32::try_from(ms).unwrap_or(0)) + 1
}
