// SPDX-License-Identifier: GPL-2.0

//! The buffers of a device's readers.

use crate::platform::{
    spare_scratch,
    Kernel, //
};
use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        CondVar,
        Mutex, //
    }, //
};
use obd_core::scratch::{
    Needs,
    Scratch, //
};

/// Most readers of a device at a time, and so the buffers it can have.
pub(crate) const MAX_READERS: usize = 32;

/// Buffers, made when they are needed for the first time.
///
/// There is one at least, so a reader that gets no memory waits for one that has
/// a buffer, and that one needs nothing but its own I/O to go on.
#[pin_data]
pub(crate) struct Pool {
    needs: Needs,
    #[pin]
    state: Mutex<State>,
    #[pin]
    returned: CondVar,
}

struct State {
    /// Those nobody uses; there is room for all of them.
    free: KVec<Scratch<Kernel>>,
    /// How many there are, in use or not.
    made: usize,
}

impl Pool {
    /// A pool of buffers with room for what `needs` says.
    pub(crate) fn new(needs: Needs) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            needs,
            state <- {
                let mut free = KVec::with_capacity(MAX_READERS, GFP_KERNEL)?;
                let first = Scratch::new(*needs).map_err(|_| ENOMEM)?;
                free.push_within_capacity(first).map_err(|_| ENOMEM)?;
                new_mutex!(State { free, made: 1 }, "obd::Pool::state")
            },
            returned <- new_condvar!("obd::Pool::returned"),
        })
    }

    /// Runs `read` with a buffer; waits for one if there are enough.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&mut Scratch<Kernel>) -> T) -> T {
        let scratch = self.take();
        self.run(scratch, read)
    }

    /// As [`Pool::with`], if there is a buffer that nobody uses: none is made, as who reads first
    /// would be charged for what all use later.
    pub(crate) fn try_with<T>(&self, read: impl FnOnce(&mut Scratch<Kernel>) -> T) -> Option<T> {
        let scratch = self.state.lock().free.pop()?;
        Some(self.run(scratch, read))
    }

    fn run<T>(
        &self,
        mut scratch: Scratch<Kernel>,
        read: impl FnOnce(&mut Scratch<Kernel>) -> T,
    ) -> T {
        let value = read(&mut scratch);
        let mut state = self.state.lock();
        // There is room; were there none, it would be one less.
        if state.free.push_within_capacity(scratch).is_err() {
            state.made -= 1;
        }
        self.returned.notify_one();
        value
    }

    fn take(&self) -> Scratch<Kernel> {
        let mut may_make = true;
        let mut state = self.state.lock();
        loop {
            if let Some(scratch) = state.free.pop() {
                return scratch;
            }
            if may_make && state.made < MAX_READERS {
                state.made += 1;
                drop(state);
                match spare_scratch(self.needs) {
                    Ok(scratch) => return scratch,
                    Err(_) => may_make = false,
                }
                state = self.state.lock();
                state.made -= 1;
                // One may have been returned meanwhile.
                continue;
            }
            self.returned.wait(&mut state);
        }
    }
}
