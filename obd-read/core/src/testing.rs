// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory for unit tests.

use crate::platform::{
    Memory,
    OutOfMemory, //
};

pub(crate) struct Heap;

impl Memory for Heap {
    type Buf<T: Copy + Default> = Vec<T>;

    fn filled<T: Copy + Default>(len: usize) -> Result<Vec<T>, OutOfMemory> {
        Ok(vec![T::default(); len])
    }
}
