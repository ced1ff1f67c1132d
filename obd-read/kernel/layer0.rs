// SPDX-License-Identifier: GPL-2.0

//! What was written to a disk and is in no layer yet: blocks in memory. Whoever has one of these
//! has a lock for it; nothing here allocates but [`Blocks::new`] and [`new_leaf`].

use core::mem;
use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN,
            __GFP_RETRY_MAYFAIL, //
        },
        Flags, //
    },
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// Bytes of a block. Its memory is a page.
pub(crate) const BLOCK: usize = 4096;

/// Whether a block can be a page here.
pub(crate) const SUPPORTED: bool = PAGE_SIZE == BLOCK;

/// Blocks of a leaf, which takes one page, too.
const LEAF: usize = BLOCK / size_of::<Entry>();

/// Chunks in a word of [`Blocks::known`].
const BITS: usize = usize::BITS as usize;

/// Blocks that [`Blocks::zero_chunk`] has at a time.
pub(crate) const CHUNK: usize = LEAF;

/// Largest disk: the table of leaves takes one byte of 64 KiB.
pub(crate) const MAX_BYTES: u64 = 1 << 43;

/// What is known of a block.
pub(crate) enum Entry {
    /// Nothing: it is what is beneath.
    Below,
    /// It is zeros.
    Zeros,
    /// What is in this page.
    Data(Page),
}

type Leaf = [Entry; LEAF];

/// Blocks that lie one behind the other.
enum Chunk {
    Below,
    Zeros,
    Leaf(KBox<Leaf>),
}

/// A leaf to be used, with nothing in it.
pub(crate) fn new_leaf(flags: Flags) -> Result<KBox<Leaf>> {
    KBox::init(
        pin_init::init_array_from_fn::<_, LEAF, _, Error>(|_| Ok(Entry::Below)),
        flags,
    )
}

/// Memory that [`Blocks::set`] may take.
pub(crate) type Spare = Option<KBox<Leaf>>;

/// Blocks of a disk.
pub(crate) struct Blocks {
    chunks: KVVec<Chunk>,
    /// A bit for each chunk, set where something is known: of millions that is so of few.
    known: KVVec<usize>,
    /// Of the disk.
    blocks: usize,
    /// Pages and leaves.
    pages: usize,
    /// How often something came to be known, which is as many extents as there are, or more.
    entries: usize,
    /// Whether something is known of any.
    any: bool,
}

impl Blocks {
    /// Nothing yet of a disk of `bytes`, whole blocks.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let blocks = usize::try_from(bytes)? / BLOCK;
        let len = blocks.div_ceil(CHUNK);
        let flags = GFP_KERNEL | __GFP_NOWARN | __GFP_RETRY_MAYFAIL;
        let mut chunks = KVVec::with_capacity(len, flags)?;
        for _ in 0..len {
            chunks.push_within_capacity(Chunk::Below)?;
        }
        let known = KVVec::from_elem(0, len.div_ceil(BITS), flags)?;
        Ok(Self {
            chunks,
            known,
            blocks,
            pages: 0,
            entries: 0,
            any: false,
        })
    }

    /// Nothing of no disk.
    pub(crate) fn none() -> Self {
        Self {
            chunks: KVVec::new(),
            known: KVVec::new(),
            blocks: 0,
            pages: 0,
            entries: 0,
            any: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.any
    }

    /// As many extents as there are, or more.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of memory, the table aside.
    pub(crate) fn memory(&self) -> usize {
        self.pages * BLOCK
    }

    /// What is known of `block`.
    pub(crate) fn get(&self, block: usize) -> &Entry {
        match self.chunks.get(block / CHUNK) {
            Some(Chunk::Leaf(leaf)) => leaf.get(block % CHUNK).unwrap_or(&Entry::Below),
            Some(Chunk::Zeros) => &Entry::Zeros,
            Some(Chunk::Below) | None => &Entry::Below,
        }
    }

    /// Whether [`Blocks::set`] needs a leaf for `block`.
    pub(crate) fn needs_leaf(&self, block: usize) -> bool {
        !matches!(self.chunks.get(block / CHUNK), Some(Chunk::Leaf(_)))
    }

    /// Has `entry` for `block` from here on. Where there is no leaf and no spare one, nothing
    /// happens, see [`Blocks::needs_leaf`].
    pub(crate) fn set(&mut self, block: usize, entry: Entry, spare: &mut Spare) {
        let Some(chunk) = self.chunks.get_mut(block / CHUNK) else {
            return;
        };
        if !matches!(chunk, Chunk::Leaf(_)) {
            let Some(mut leaf) = spare.take() else { return };
            if matches!(chunk, Chunk::Zeros) {
                for entry in leaf.iter_mut() {
                    *entry = Entry::Zeros;
                }
            }
            *chunk = Chunk::Leaf(leaf);
            self.pages += 1;
        }
        let Chunk::Leaf(leaf) = chunk else { return };
        let Some(place) = leaf.get_mut(block % CHUNK) else {
            return;
        };
        self.pages += usize::from(matches!(entry, Entry::Data(_)));
        self.pages -= usize::from(matches!(place, Entry::Data(_)));
        // One in the middle of zeros makes two more.
        self.entries += match place {
            Entry::Below => 1,
            Entry::Zeros => 2,
            Entry::Data(_) => 0,
        };
        *place = entry;
        self.knows(block / CHUNK);
    }

    /// Something is known of a chunk.
    fn knows(&mut self, chunk: usize) {
        self.any = true;
        if let Some(word) = self.known.get_mut(chunk / BITS) {
            *word |= 1 << (chunk % BITS);
        }
    }

    /// The first chunk from `chunk` on of which something is known.
    fn known_from(&self, chunk: usize) -> Option<usize> {
        let mut at = chunk / BITS;
        let mut word = self.known.get(at)? & (usize::MAX << (chunk % BITS));
        while word == 0 {
            at += 1;
            word = *self.known.get(at)?;
        }
        Some(at * BITS + word.trailing_zeros() as usize)
    }

    /// Takes over all that `newer` knows, which is as large and knows nothing then. What both know
    /// is as `newer` has it.
    pub(crate) fn absorb(&mut self, newer: &mut Blocks) {
        self.pages += newer.pages;
        self.entries += newer.entries;
        let mut next = 0;
        while let Some(at) = newer.known_from(next) {
            next = at + 1;
            let Some(chunk) = newer.chunks.get_mut(at) else {
                break;
            };
            let new = mem::replace(chunk, Chunk::Below);
            let Some(chunk) = self.chunks.get_mut(at) else {
                break;
            };
            self.pages -= chunk.absorb(new);
            self.knows(at);
        }
        for word in newer.known.iter_mut() {
            *word = 0;
        }
        newer.pages = 0;
        newer.entries = 0;
        newer.any = false;
    }

    /// Blocks from `block` on that [`Blocks::zero_chunk`] makes zeros of: none unless it is the
    /// first of them.
    pub(crate) fn chunk_at(&self, block: usize) -> usize {
        match block % CHUNK {
            0 => self.blocks.saturating_sub(block).min(CHUNK),
            _ => 0,
        }
    }

    /// Makes zeros of all blocks of a chunk, of which `block` is one. What it had is returned, to
    /// be dropped without the lock.
    pub(crate) fn zero_chunk(&mut self, block: usize) -> Spare {
        let at = block / CHUNK;
        let goes_on = at > 0 && matches!(self.chunks.get(at - 1), Some(Chunk::Zeros));
        let chunk = self.chunks.get_mut(at)?;
        if matches!(chunk, Chunk::Below) && !goes_on {
            self.entries += 1;
        }
        let old = mem::replace(chunk, Chunk::Zeros);
        self.knows(at);
        let Chunk::Leaf(leaf) = old else { return None };
        let data = leaf.iter().filter(|entry| matches!(entry, Entry::Data(_)));
        self.pages -= 1 + data.count();
        Some(leaf)
    }

    /// What is known, in order: the first block, how many, and the page of the only one unless they
    /// are zeros.
    fn runs(&self) -> impl Iterator<Item = (usize, usize, Option<&Page>)> {
        let known = core::iter::successors(self.known_from(0), |at| self.known_from(at + 1));
        known.flat_map(|at| {
            let first = at * CHUNK;
            // Zeros that became a leaf have some behind the end of the disk, too.
            let len = self.chunk_at(first);
            let (leaf, zeros) = match self.chunks.get(at) {
                Some(Chunk::Leaf(leaf)) => (&leaf[..], None),
                Some(Chunk::Zeros) => (&[][..], Some((first, len, None))),
                Some(Chunk::Below) | None => (&[][..], None),
            };
            let entries = leaf.iter().take(len).enumerate();
            let entries = entries.filter_map(move |(n, entry)| match entry {
                Entry::Below => None,
                Entry::Zeros => Some((first + n, 1, None)),
                Entry::Data(page) => Some((first + n, 1, Some(page))),
            });
            // By its name, as `pin_init::Init` has a `chain`, too.
            Iterator::chain(entries, zeros)
        })
    }

    /// What is known, in order, as far as something is.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut runs = self.runs().peekable();
        core::iter::from_fn(move || {
            let (block, mut blocks, page) = runs.next()?;
            let zero = page.is_none();
            while let Some((_, more, _)) =
                runs.next_if(|(next, _, page)| *next == block + blocks && page.is_none() == zero)
            {
                blocks += more;
            }
            Some(Extent {
                block,
                blocks,
                zero,
            })
        })
    }

    /// The pages, in order of blocks.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &Page> {
        self.runs().filter_map(|(_, _, page)| page)
    }
}

impl Chunk {
    /// Becomes what `newer` has, where that knows something. Returns how many pages it took that
    /// are not needed any more, those of `newer` included.
    fn absorb(&mut self, newer: Chunk) -> usize {
        let is_data = |entry: &&Entry| matches!(entry, Entry::Data(_));
        match (&mut *self, newer) {
            (_, Chunk::Below) => 0,
            (Chunk::Leaf(old), Chunk::Leaf(mut new)) => {
                let mut freed = 1;
                for (old, new) in old.iter_mut().zip(new.iter_mut()) {
                    if !matches!(new, Entry::Below) {
                        freed += usize::from(matches!(old, Entry::Data(_)));
                        *old = mem::replace(new, Entry::Below);
                    }
                }
                freed
            }
            (Chunk::Leaf(old), Chunk::Zeros) => {
                let freed = 1 + old.iter().filter(is_data).count();
                *self = Chunk::Zeros;
                freed
            }
            (Chunk::Zeros, Chunk::Leaf(mut new)) => {
                for entry in new.iter_mut() {
                    if matches!(entry, Entry::Below) {
                        *entry = Entry::Zeros;
                    }
                }
                *self = Chunk::Leaf(new);
                0
            }
            (Chunk::Below | Chunk::Zeros, new) => {
                *self = new;
                0
            }
        }
    }
}

/// Blocks of one kind that lie one behind the other.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) block: usize,
    pub(crate) blocks: usize,
    pub(crate) zero: bool,
}
