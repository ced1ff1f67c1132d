// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Serial round trips to the device: how long the first sync call takes if
//! every command takes one unit of time and the CPU none.

use crate::protocol::{Kind, Protocol};
use crate::state::{Move, bit};

/// Round trips from the first submission to the return of the first sync call,
/// with nobody else asking for commits; `None` if it never returns.
pub fn round_trips(protocol: &Protocol) -> Option<u32> {
    let end = (protocol.steps.iter()).position(|s| matches!(s.kind, Kind::Return(_)))?;
    let mut state = protocol.initial(0);
    protocol.settle(&mut state);
    let mut time = 0;
    loop {
        // The CPU does all it can; the caller before the journal's thread,
        // since its steps come first.
        while let Some(step) = (protocol.moves(&state, false).into_iter())
            .find(|chosen| matches!(chosen, Move::Run(_)))
        {
            state = protocol.after(&state, step);
        }
        if state.done & bit(end) != 0 {
            return Some(time);
        }
        // All that is in flight was submitted at the same time.
        let in_flight = protocol.moves(&state, false);
        if in_flight.is_empty() {
            return None;
        }
        for complete in in_flight {
            state = protocol.after(&state, complete);
        }
        time += 1;
    }
}
