// SPDX-License-Identifier: GPL-2.0

//! A writable disk's blocks in memory, and who waits for what about them.
//!
//! # Where a block is
//!
//! Written blocks are put into the active layer. Freezing makes it the frozen one, of which there
//! is one at most, and puts an empty one in its place, in one step. The writer makes a layer of the
//! image of it, or has it in a log of its own, which is sooner done. In the log it is durable as
//! well, but not to be read: it is put over the logged layer, whatever that had of the same blocks.
//! Sealing makes the logged layer, with the frozen one over it if there is one, the sealed one, of
//! which there is one at most, too, and of which the writer makes a layer of the image.
//!
//! Stacking puts the layer that the writer made of the sealed one, or of a frozen one where nothing
//! is logged or sealed, on the image, and drops that one. A block is what the first of these knows
//! of it: active, frozen, logged, sealed, image. The image comes first when a layer is stacked, so
//! there is no moment at which a block is nowhere; who reads looks the other way round: first here,
//! then in the image, which must be as new as what was dropped here ([`State::newest`], checked by
//! [`Dirty::serve`] under the lock). A reader whose image is older begins again.
//!
//! A write of a part of a block that is in the image only reads that without the lock. What it
//! read is used if nothing was frozen or stacked meanwhile ([`State::round`]), and nobody else had
//! the block put into the active layer, which then is what is changed. Between frozen, logged and
//! sealed a block may move meanwhile: in one of them it is not in the image only.
//!
//! # What is durable
//!
//! All that was frozen at one time is durable at one time, and in the order in which it was frozen.
//! So nothing may be said to be in the log while something older is in neither the log nor the
//! image: a sealed layer with a frozen one in it that was not logged ([`State::unlogged`]) has to
//! be stacked first. Flushes wait for the first that has all that was written before them: active,
//! frozen, or such a sealed layer. The rest is durable. A FUA write waits for the first that has
//! it, and so for all before it: it needs no flush ([`GenDiskBuilder::fua_flushes`]).
//!
//! [`GenDiskBuilder::fua_flushes`]: kernel::block::mq::gen_disk::GenDiskBuilder::fua_flushes
//!
//! # The lock
//!
//! `state` is taken on the way of I/O, from any context that may sleep, and held to copy what one
//! block is, or what a request reads. Nobody allocates, reads, copies to or from user space or
//! ends a request under it. So it comes last.
//!
//! What the writer is lent, frozen and sealed, it looks at without that lock, but under `lent`, as
//! does who merges the frozen layer into the logged one: he is alone with it then. Nobody touches
//! memory of user space under `lent`: it is taken by who maps, who has the lock of all mappings.
//! Layers are stacked without either, and frozen ones written to the log, so who begins that says
//! so ([`State::stacking`], [`State::logging`]): nobody merges what is being stacked or logged, nor
//! stacks what is being logged.
//!
//! # Who waits
//!
//! Requests wait in lists, not in tasks: a write that found no room for its blocks, whose turn in
//! a worker comes when the frozen layer was stacked; a flush, until all that was written before it
//! is durable, and a FUA write, once it is in memory, as if a flush had come after it. The lists
//! have room for every request there can be. So neither workers, which reads need, nor submitters,
//! which may have what the writer needs, are held up by a slow writer. What has room for nothing
//! more is what the writer is woken for: it frees all of it in two rounds at most. A list is
//! emptied when the writer comes forward, when there was none for too long, and when the disk goes,
//! and whoever puts himself on it looks for these under the lock.

use crate::device::{
    end_change,
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
use core::mem::{
    self,
    MaybeUninit, //
};
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

/// A layer that does not change any more: the frozen or the sealed one.
pub(crate) struct Frozen {
    pub(crate) id: u64,
    /// When the first block came to it.
    since: Instant<Monotonic>,
    reason: Reason,
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
    /// Who has it may look at what is lent to the writer.
    #[pin]
    lent: Mutex<()>,
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
    /// What is in the writer's log.
    logged: Blocks,
    /// When the first block of it had come to the active layer.
    logged_since: Instant<Monotonic>,
    sealed: Option<Arc<Frozen>>,
    /// Something in the sealed layer is in no log.
    unlogged: bool,
    /// The writer has a log: what is frozen will be merged.
    logs: bool,
    /// Which layer is being stacked; 0: none.
    stacking: u64,
    /// The frozen layer is being written to the log.
    logging: bool,
    /// A table that nobody needs.
    spare: Option<Blocks>,
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
    /// Flushes that wait for the sealed layer.
    sealing: Requests,
    /// Flushes that have waited long enough.
    done: Requests,
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
        self.is_durable() && self.logged.is_empty() && self.sealed.is_none()
    }

    /// Whether all is in the image or in the log.
    fn is_durable(&self) -> bool {
        self.active.is_empty() && self.frozen.is_none() && !self.unlogged
    }

    /// Bytes of memory in use.
    fn memory(&self) -> usize {
        self.active.memory() + self.logged.memory() + self.lent_memory()
    }

    /// Bytes of memory in what is lent to the writer.
    fn lent_memory(&self) -> usize {
        let lent = [&self.frozen, &self.sealed].into_iter().flatten();
        lent.map(|frozen| frozen.blocks.memory()).sum()
    }

    /// Entries that the next layer of the image has, if what is frozen becomes part of it.
    fn entries(&self) -> usize {
        let frozen = self.frozen.as_ref().filter(|_| self.logs);
        let frozen = frozen.map_or(0, |frozen| frozen.blocks.entries());
        self.active.entries() + frozen + self.logged.entries()
    }

    /// What the layers here know of `block`.
    fn get(&self, block: usize) -> &Entry {
        let frozen = self.frozen.as_ref().map(|frozen| &frozen.blocks);
        let sealed = self.sealed.as_ref().map(|sealed| &sealed.blocks);
        let layers = [Some(&self.active), frozen, Some(&self.logged), sealed];
        let mut entries = layers.into_iter().flatten().map(|layer| layer.get(block));
        entries
            .find(|entry| !matches!(entry, Entry::Below))
            .unwrap_or(&Entry::Below)
    }

    /// The layer that the writer was lent by that name.
    fn lent(&self, id: u64) -> Option<&Arc<Frozen>> {
        let lent = [&self.frozen, &self.sealed].into_iter().flatten();
        lent.into_iter().find(|frozen| frozen.id == id)
    }

    /// Whether the frozen layer, if there is one, has this `id`.
    fn is_frozen(&self, id: u64) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| frozen.id == id)
    }

    /// Whether the sealed layer, if there is one, has this `id`.
    fn is_sealed(&self, id: u64) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| sealed.id == id)
    }

    /// When the oldest block came that is in no layer of the writer's.
    fn oldest(&self) -> Option<Instant<Monotonic>> {
        match (self.logged.is_empty(), self.active.is_empty()) {
            (false, _) => Some(self.logged_since),
            (true, false) => Some(self.since),
            (true, true) => None,
        }
    }

    /// Why the active layer is to be frozen now, if it is. It may be that nothing is in it, but in
    /// the logged one, for which the writer is to be woken.
    fn reason(&self, limits: &Limits) -> Option<Reason> {
        let wanted = self.layer_wanted(limits);
        match wanted {
            Some(Reason::Detach) => wanted,
            _ if !self.flushes.is_empty() => Some(Reason::Flush),
            _ => wanted,
        }
    }

    /// Why the image is to have one more layer now of what is active and logged, if it is.
    fn layer_wanted(&self, limits: &Limits) -> Option<Reason> {
        // One at a time.
        if self.sealed.is_some() {
            return None;
        }
        let age = self.oldest()?.elapsed().as_millis();
        if self.detaching {
            Some(Reason::Detach)
        } else if !self.writes.is_empty() || self.is_large(limits) {
            Some(Reason::Size)
        } else if limits.commit_ms > 0 && age >= i64::from(limits.commit_ms) {
            Some(Reason::Age)
        } else {
            None
        }
    }

    /// How long it takes at least until something is old enough for the writer, if anything can
    /// be. What is still to come takes longer than that: who waits needs not be woken for it.
    fn until_old(&self, limits: &Limits) -> Option<i64> {
        let age = self.oldest().map_or(0, |since| since.elapsed().as_millis());
        let is_due = limits.commit_ms > 0 && self.sealed.is_none();
        is_due.then(|| i64::from(limits.commit_ms) - age)
    }

    /// Whether what is active and logged is large enough for the writer.
    fn is_large(&self, limits: &Limits) -> bool {
        let memory = self.active.memory() + self.logged.memory();
        memory >= limits.commit_bytes || self.entries() >= MANY
    }

    /// Whether the writer is to be woken for what came to the active layer.
    fn wakes(&self, limits: &Limits) -> bool {
        self.frozen.is_none() && self.sealed.is_none() && self.is_large(limits)
    }

    /// Whether so much more can be put into the active layer.
    fn has_room(&self, limits: &Limits, bytes: usize) -> bool {
        self.memory() + bytes <= limits.memory && self.entries() < MOST
    }

    /// Puts the frozen layer over the logged one. `lent` is held.
    fn absorb_frozen(&mut self) {
        let Some(frozen) = self.frozen.take() else {
            return;
        };
        // Nobody else has one: others have theirs under `lent` only.
        let Some(mut frozen) = Arc::into_unique_or_drop(frozen) else {
            kernel::warn_on!(true);
            return;
        };
        if frozen.blocks.is_empty() {
            return;
        }
        if self.logged.is_empty() {
            self.logged_since = frozen.since;
        }
        self.logged.absorb(&mut frozen.blocks);
        self.spare = Some(mem::replace(&mut frozen.blocks, Blocks::none()));
    }

    /// Those who wait for the frozen layer have waited long enough.
    fn committing_ends(&mut self) {
        Self::move_all(&mut self.committing, &mut self.done);
    }

    /// Those who wait for the sealed layer have waited long enough.
    fn sealing_ends(&mut self) {
        Self::move_all(&mut self.sealing, &mut self.done);
    }

    fn move_all(from: &mut Requests, to: &mut Requests) {
        while let Some(rq) = from.pop() {
            // There is room for all there can be.
            if to.push_within_capacity(rq).is_err() {
                return;
            }
        }
    }

    /// Whether nothing is to be written.
    fn refuses(&self) -> bool {
        self.stopped || self.gone
    }
}

/// Bytes of memory in use.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) all: usize,
    /// Of these, in what the writer has in hand.
    pub(crate) lent: usize,
    /// Of these, in the logged layer.
    pub(crate) logged: usize,
    /// Most that ever were.
    pub(crate) most: usize,
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
            lent <- new_mutex!((), "obd::Dirty::lent"),
            state <- {
                let list = || KVec::with_capacity(requests, GFP_KERNEL);
                new_mutex!(
                    State {
                        active: Blocks::new(limits.size)?,
                        since: Instant::now(),
                        frozen: None,
                        logged: Blocks::new(limits.size)?,
                        logged_since: Instant::now(),
                        sealed: None,
                        unlogged: false,
                        logs: false,
                        stacking: 0,
                        logging: false,
                        spare: None,
                        last_id: 0,
                        most: 0,
                        round: 0,
                        newest: 0,
                        writes: list()?,
                        flushes: list()?,
                        committing: list()?,
                        sealing: list()?,
                        done: list()?,
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

    /// How much memory is in use.
    pub(crate) fn memory(&self) -> Memory {
        let state = self.state.lock();
        Memory {
            all: state.memory(),
            lent: state.lent_memory(),
            logged: state.logged.memory(),
            most: state.most,
        }
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
        if state.wakes(&self.limits) {
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
        if state.wakes(&self.limits) {
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
                // SAFETY: As above; nobody writes to pages of layers below the active one.
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

    /// Takes a flush, until all that was written is durable, or returns what it ends with; or a
    /// write that is in memory and is to be durable when it ends.
    pub(crate) fn flush(&self, rq: ARef<Request<Disk>>) -> Option<(ARef<Request<Disk>>, Result)> {
        let mut state = self.state.lock();
        if state.is_durable() {
            return Some((rq, Ok(())));
        }
        if state.refuses() {
            return Some((rq, Err(EIO)));
        }
        let list = match (state.active.is_empty(), &state.frozen) {
            (false, _) => &mut state.flushes,
            (true, Some(_)) => &mut state.committing,
            (true, None) => &mut state.sealing,
        };
        // There is room for all there can be.
        let refused = list.push_within_capacity(rq).err();
        self.changed.notify_all();
        refused.map(|full| (full.0, Err(EIO)))
    }

    /// Freezes the active layer when there is a reason, for which it waits. Returns which one is
    /// frozen, and why.
    pub(crate) fn next(&self, timeout_ms: u32) -> Result<(u64, Reason)> {
        let begin = Instant::<Monotonic>::now();
        let mut fresh = None;
        let mut state = self.state.lock();
        loop {
            if let Some(frozen) = &state.frozen {
                return Ok((frozen.id, frozen.reason));
            }
            if state.gone {
                return Err(ESHUTDOWN);
            }
            if let Some(reason) = state.reason(&self.limits) {
                let Some((blocks, room)) = fresh.take() else {
                    let spare = state.spare.take();
                    drop(state);
                    fresh = Some(self.room(spare)?);
                    state = self.state.lock();
                    continue;
                };
                return Ok(Self::freeze(&mut state, reason, blocks, room));
            }
            let left = i64::from(timeout_ms) - begin.elapsed().as_millis();
            if left <= 0 {
                return Err(ETIMEDOUT);
            }
            let until_old = state.until_old(&self.limits).unwrap_or(left);
            let result = self
                .changed
                .wait_interruptible_timeout(&mut state, jiffies(left.min(until_old)));
            if matches!(result, CondVarTimeoutResult::Signal { .. }) {
                return Err(EINTR);
            }
        }
    }

    /// Memory for one more layer, with `spare` for a table, if there is one.
    fn room(&self, spare: Option<Blocks>) -> Result<(Blocks, UniqueArc<MaybeUninit<Frozen>>)> {
        let blocks = match spare {
            Some(spare) => spare,
            None => Blocks::new(self.limits.size)?,
        };
        Ok((blocks, UniqueArc::new_uninit(GFP_KERNEL)?))
    }

    fn freeze(
        state: &mut State,
        reason: Reason,
        fresh: Blocks,
        room: UniqueArc<MaybeUninit<Frozen>>,
    ) -> (u64, Reason) {
        state.last_id += 1;
        state.round += 1;
        let id = state.last_id;
        let frozen = room.write(Frozen {
            id,
            since: state.since,
            reason,
            blocks: mem::replace(&mut state.active, fresh),
        });
        state.frozen = Some(frozen.into());
        // Nobody waits for a frozen layer when there is none.
        let State {
            flushes,
            committing,
            ..
        } = state;
        mem::swap(flushes, committing);
        (id, reason)
    }

    /// The frozen layer `id`, to be written to the writer's log; nothing if somebody does that, or
    /// it must not be, as what is older is in no log, or being stacked. [`Dirty::logged`] comes
    /// next.
    pub(crate) fn log(&self, id: u64) -> Option<Arc<Frozen>> {
        let mut state = self.state.lock();
        // What is older first.
        if state.logging || state.unlogged || state.stacking == id || !state.is_frozen(id) {
            return None;
        }
        state.logging = true;
        state.frozen.clone()
    }

    /// `frozen`, which is frozen still, is in the writer's log, if `is_there` says so: ends the
    /// flushes that waited for it. Returns why there is to be a layer of what is logged now, if
    /// there is.
    pub(crate) fn logged(&self, frozen: Arc<Frozen>, is_there: bool) -> Option<Reason> {
        let lent = self.lent.lock();
        // The other one is merged.
        drop(frozen);
        let mut state = self.state.lock();
        state.logging = false;
        if !is_there {
            return None;
        }
        state.logs = true;
        state.absorb_frozen();
        state.committing_ends();
        let wanted = state.layer_wanted(&self.limits);
        self.changed.notify_all();
        drop(state);
        drop(lent);
        self.end_done();
        wanted
    }

    /// Seals what is logged and frozen, if nothing is sealed yet, and `make` says so. Returns what
    /// is sealed; [`ENODATA`] if there is nothing.
    pub(crate) fn seal(&self, make: bool) -> Result<u64> {
        let _lent = self.lent.lock();
        let mut fresh = None;
        loop {
            let mut state = self.state.lock();
            if state.gone {
                return Err(ESHUTDOWN);
            }
            if let Some(sealed) = &state.sealed {
                return Ok(sealed.id);
            }
            if !make || state.frozen.is_none() && state.logged.is_empty() {
                return Err(ENODATA);
            }
            if state.stacking != 0 || state.logging {
                return Err(EBUSY);
            }
            let Some((blocks, room)) = fresh.take() else {
                let spare = state.spare.take();
                drop(state);
                fresh = Some(self.room(spare)?);
                continue;
            };
            let frozen = state.frozen.as_ref();
            state.unlogged = frozen.is_some_and(|frozen| !frozen.blocks.is_empty());
            state.logs = true;
            state.absorb_frozen();
            // Nobody waits for a sealed layer when there is none, nor for a frozen one then.
            let State {
                committing,
                sealing,
                ..
            } = &mut *state;
            mem::swap(committing, sealing);
            state.last_id += 1;
            let id = state.last_id;
            let sealed = room.write(Frozen {
                id,
                since: state.logged_since,
                reason: Reason::Size,
                blocks: mem::replace(&mut state.logged, blocks),
            });
            state.sealed = Some(sealed.into());
            return Ok(id);
        }
    }

    /// Looks at the frozen layer, or the sealed one, if that is `id`.
    pub(crate) fn lend<T>(&self, id: u64, look: impl FnOnce(&Frozen) -> T) -> Result<T> {
        let _lent = self.lent.lock();
        let frozen = self.state.lock().lent(id).cloned().ok_or(ESTALE)?;
        // It is dropped before the lock.
        Ok(look(&frozen))
    }

    /// The layer `id` is about to be stacked: [`ESTALE`] if that is neither the frozen one nor the
    /// sealed one, [`EBUSY`] if something older would be over it. [`Dirty::stacked`] comes next.
    pub(crate) fn stacks(&self, id: u64) -> Result {
        let mut state = self.state.lock();
        if state.lent(id).is_none() {
            return Err(ESTALE);
        }
        let is_bottom = state.sealed.is_none() && state.logged.is_empty() && !state.logging;
        if state.stacking != 0 || state.is_frozen(id) && !is_bottom {
            return Err(EBUSY);
        }
        state.stacking = id;
        Ok(())
    }

    /// Drops the layer `id`, which is in the image with the number `newest`, and ends the flushes
    /// that waited for it; if there is no such number, it was not stacked after all.
    pub(crate) fn stacked(&self, id: u64, newest: Option<u64>) {
        let mut state = self.state.lock();
        state.stacking = 0;
        let Some(newest) = newest else { return };
        let stacked = if state.is_sealed(id) {
            state.unlogged = false;
            state.sealing_ends();
            state.sealed.take()
        } else if state.is_frozen(id) {
            state.committing_ends();
            state.frozen.take()
        } else {
            return;
        };
        state.round += 1;
        state.newest = newest;
        if state.is_clean() {
            // RELEASE: The image that has all of it comes before.
            self.any.store(false, Release);
        }
        self.changed.notify_all();
        drop(state);
        drop(stacked);
        self.end_done();
    }

    /// The layer `id` could not be made durable: flushes fail, those that wait for it, and those
    /// that came since, too, which wait for it before all else. Nobody waits for a sealed layer
    /// whose content is in the log.
    pub(crate) fn failed(&self, id: u64, error: Error) -> Result {
        let state = self.state.lock();
        if state.lent(id).is_none() {
            return Err(ESTALE);
        }
        let is_waited_for = state.is_frozen(id) || state.unlogged;
        drop(state);
        if is_waited_for {
            self.fail_flushes(error);
        }
        Ok(())
    }

    /// Fails all flushes that wait.
    fn fail_flushes(&self, error: Error) {
        self.end_flushes(|state| &mut state.sealing, Err(error));
        self.end_flushes(|state| &mut state.committing, Err(error));
        self.end_flushes(|state| &mut state.flushes, Err(error));
    }

    /// Ends the flushes whose wait is over.
    fn end_done(&self) {
        loop {
            let Some(rq) = self.state.lock().done.pop() else {
                return;
            };
            end_change(rq, Ok(()));
        }
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
            end_change(rq, result);
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
        self.fail_flushes(EIO);
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
        self.fail_flushes(EIO);
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
