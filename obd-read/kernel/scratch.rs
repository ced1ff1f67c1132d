// SPDX-License-Identifier: GPL-2.0

//! The buffers of a device's readers, and what they read with them.
//!
//! # How layers are exchanged under readers
//!
//! A buffer belongs to a stack of layers, of which it holds a reference and keeps a block. Who
//! reads takes a buffer and reads its stack to the end, whatever happens meanwhile: so a read sees
//! the layers it began with, and costs neither a lock nor a counter more than the buffer does.
//! [`Pool::exchange`] puts another stack in place in one step, under the lock that buffers are
//! taken under: it takes all buffers that nobody uses away with the old stack, and those that
//! somebody does are dropped when they come back. The last of them drops the old stack.
//!
//! [`Pool::glance`] looks at the stack without a buffer, under RCU. The old one stays until a grace
//! period after it was replaced.
//!
//! # Who waits for a buffer
//!
//! Workers do, for as long as it takes; those that have one are at work, and need nothing but their
//! own I/O to go on. Requests whose I/O is under way have a buffer and no worker yet. They get it
//! only if another one is left that nobody uses ([`Pool::lend`]), so there always is one of the
//! current stack that is free or with somebody at work, and nobody has to wait for theirs.

use crate::content::Failure;
use crate::platform::{
    spare,
    spare_scratch,
    Kernel, //
};
use crate::stack::Stack;
use core::{
    mem,
    ptr, //
};
use kernel::{
    alloc::Flags,
    block::bdev,
    fs::file,
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        rcu,
        Arc,
        Completion,
        CondVar,
        Mutex,
        MutexGuard, //
    }, //
};
use obd_core::scratch::{
    Fetch,
    Scratch, //
};

/// Most readers of a device at a time, and so the buffers it can have.
pub(crate) const MAX_READERS: usize = 32;

/// Buffers, made when they are needed for the first time.
///
/// There is one of the current stack at least, so a reader that gets no memory waits for one that
/// has a buffer, and that one needs nothing but its own I/O to go on.
#[pin_data]
pub(crate) struct Pool {
    /// The stack in `state`. Written under that lock; an RCU grace period comes between a write and
    /// the end of what it pointed to.
    current: Atomic<*const Stack>,
    #[pin]
    state: Mutex<State>,
    #[pin]
    returned: CondVar,
}

struct State {
    /// What is read now.
    stack: Arc<Stack>,
    /// Those that nobody uses, all of this stack; there is room for as many as there can be.
    free: KVec<KBox<Buffer>>,
    /// How many there are, in use or not, those of former stacks included.
    made: usize,
    /// Somebody is about to put another stack in place.
    exchanging: bool,
}

/// A buffer, which is used for no other stack.
pub(crate) struct Buffer {
    pub(crate) scratch: Scratch<Kernel>,
    pub(crate) stack: Arc<Stack>,
    /// One of these reads to the buffer while it is lent, and none is under way else.
    pub(crate) of_device: bdev::AsyncRead,
    pub(crate) of_file: file::AsyncRead,
    /// What that reads, where it begins in the buffer, and how it ended.
    pub(crate) fetched: Option<(Fetch, usize)>,
    pub(crate) result: Result,
}

impl Buffer {
    fn new(scratch: Scratch<Kernel>, stack: &Arc<Stack>, flags: Flags) -> Result<KBox<Self>> {
        let buffer = Self {
            scratch,
            stack: stack.clone(),
            of_device: bdev::AsyncRead::new(),
            of_file: file::AsyncRead::new(),
            fetched: None,
            result: Ok(()),
        };
        Ok(KBox::new(buffer, flags)?)
    }

    /// The first one of `stack`, in a list with room for all.
    fn first(stack: &Arc<Stack>) -> Result<KVec<KBox<Self>>> {
        let mut free = KVec::with_capacity(MAX_READERS, GFP_KERNEL)?;
        let scratch = Scratch::new(stack.content.needs()).map_err(|_| ENOMEM)?;
        let first = Self::new(scratch, stack, GFP_KERNEL)?;
        free.push_within_capacity(first).map_err(|_| ENOMEM)?;
        Ok(free)
    }

    /// One more, with what memory there is without effort.
    fn spare(stack: &Arc<Stack>) -> Result<KBox<Self>> {
        let scratch = spare_scratch(stack.content.needs()).map_err(|_| ENOMEM)?;
        Self::new(scratch, stack, spare())
    }
}

impl Pool {
    /// A pool of buffers for readers of `stack`.
    pub(crate) fn new(stack: Stack) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            current: Atomic::new(ptr::null()),
            state <- {
                let stack = Arc::new(stack, GFP_KERNEL)?;
                let free = Buffer::first(&stack)?;
                current.store(Arc::as_ptr(&stack), Release);
                new_mutex!(
                    State {
                        stack,
                        free,
                        made: 1,
                        exchanging: false,
                    },
                    "obd::Pool::state"
                )
            },
            returned <- new_condvar!("obd::Pool::returned"),
        })
    }

    /// What is read now.
    pub(crate) fn stack(&self) -> Arc<Stack> {
        self.state.lock().stack.clone()
    }

    /// Runs `look`, which must not sleep, with what is read now.
    pub(crate) fn glance<T>(&self, look: impl FnOnce(&Stack) -> T) -> T {
        let _guard = rcu::read_lock();
        // ACQUIRE: What is in the stack was written before the pointer.
        let stack = self.current.load(Acquire);
        // SAFETY: It was the current stack within this section, so `exchange` keeps a reference
        // until the section has ended; as does the pool as long as it is there.
        look(unsafe { &*stack })
    }

    /// Puts what `make` makes of the stack in its place: who begins to read after this returns
    /// reads that, and nobody reads anything between. `make` may take its time. Fails with what it
    /// says, and with [`EBUSY`] if somebody else is doing this; nothing has changed then. Returns
    /// what is done once nobody reads any more what was read before.
    pub(crate) fn exchange(
        &self,
        make: impl FnOnce(&Stack) -> Result<Stack, Failure>,
    ) -> Result<Arc<Completion>, Failure> {
        let mut state = self.state.lock();
        if mem::replace(&mut state.exchanging, true) {
            return Err(Failure::whole(EBUSY, "its layers are being exchanged"));
        }
        let old = state.stack.clone();
        drop(state);

        let made = make(&old).and_then(|stack| {
            let added = Arc::new(stack, GFP_KERNEL)
                .map_err(Error::from)
                .and_then(|stack| Ok((stack.clone(), Buffer::first(&stack)?)));
            added.map_err(|error| Failure::whole(error, "out of memory"))
        });

        let mut state = self.state.lock();
        state.exchanging = false;
        let (stack, free) = made?;
        let unused = mem::replace(&mut state.free, free);
        state.made = state.made + 1 - unused.len();
        // RELEASE: What is in the stack comes before the pointer.
        self.current.store(Arc::as_ptr(&stack), Release);
        let also_old = mem::replace(&mut state.stack, stack);
        let unread = old.unread.clone();
        // There is a buffer for those who wait.
        self.returned.notify_all();
        drop(state);

        // Some may still glance at the old one.
        rcu::synchronize_rcu();
        drop((unused, also_old, old));
        Ok(unread)
    }

    /// Runs `read` with what is read now and a buffer; waits for one if there are enough.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Stack, &mut Scratch<Kernel>) -> T) -> T {
        let buffer = self.take();
        self.run(buffer, read)
    }

    /// As [`Pool::with`], if there is a buffer that nobody uses: none is made, as who reads first
    /// would be charged for what all use later.
    pub(crate) fn try_with<T>(
        &self,
        read: impl FnOnce(&Stack, &mut Scratch<Kernel>) -> T,
    ) -> Option<T> {
        let buffer = self.state.lock().free.pop()?;
        Some(self.run(buffer, read))
    }

    /// Takes a buffer for a request that goes to a worker with it, if another one is left that
    /// nobody uses. It goes back by [`Pool::run`].
    pub(crate) fn lend(&self) -> Option<KBox<Buffer>> {
        let mut state = self.state.lock();
        // One is never lent: who waits for a buffer gets it from somebody who is at work.
        if state.free.len() < 2 {
            return None;
        }
        state.free.pop()
    }

    /// Runs `read` with `buffer` and its stack, and gives it back.
    pub(crate) fn run<T>(
        &self,
        mut buffer: KBox<Buffer>,
        read: impl FnOnce(&Stack, &mut Scratch<Kernel>) -> T,
    ) -> T {
        let Buffer { scratch, stack, .. } = &mut *buffer;
        let value = read(stack, scratch);
        let mut state = self.state.lock();
        let unwanted = Self::give_back(&mut state, buffer);
        self.returned.notify_one();
        drop(state);
        // With it goes a former stack, if this was its last reader.
        drop(unwanted);
        value
    }

    /// Returns what has no place in the list: a buffer of a former stack.
    fn give_back(state: &mut MutexGuard<'_, State>, buffer: KBox<Buffer>) -> Option<KBox<Buffer>> {
        let unwanted = match Arc::ptr_eq(&buffer.stack, &state.stack) {
            // There is room; were there none, it would be one less.
            true => state
                .free
                .push_within_capacity(buffer)
                .err()
                .map(|full| full.0),
            false => Some(buffer),
        };
        state.made -= usize::from(unwanted.is_some());
        unwanted
    }

    fn take(&self) -> KBox<Buffer> {
        let mut may_make = true;
        let mut state = self.state.lock();
        loop {
            if let Some(buffer) = state.free.pop() {
                return buffer;
            }
            if may_make && state.made < MAX_READERS {
                state.made += 1;
                let stack = state.stack.clone();
                drop(state);
                match Buffer::spare(&stack) {
                    Ok(buffer) => return buffer,
                    Err(_) => may_make = false,
                }
                // It may be a former one by now, and this the last reference.
                drop(stack);
                state = self.state.lock();
                state.made -= 1;
                // One may have been returned meanwhile.
                continue;
            }
            self.returned.wait(&mut state);
        }
    }
}
