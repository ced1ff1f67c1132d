// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Shadow doorbells: a doorbell's value is written to memory, and to the register only
//! if the controller asks for that (NVM Express 1.3, sections 5.7 and 7.13).
//!
//! The controller says at which value of the shadow it last looked: its event index. A
//! value that takes the doorbell past that has to be told; until then the controller is
//! busy and looks by itself.

/// A doorbell's shadow and its event index, in memory that the controller shares.
pub trait ShadowMemory {
    /// Stores the shadow, after everything that it tells of.
    fn store(&self, value: u32);

    /// The event index. It is read after what was stored is visible to the controller,
    /// which looks at the shadow again after it changed the index: one of both sees the
    /// other's.
    fn event(&self) -> u32;
}

/// The driver's side of one doorbell, which began at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shadow {
    told: u16,
}

impl Shadow {
    /// Stores `value`; whether it has to be written to the register, too.
    #[inline]
    pub fn tell(&mut self, value: u16, memory: &impl ShadowMemory) -> bool {
        memory.store(u32::from(value));
        let old = core::mem::replace(&mut self.told, value);
        // What is no index of a ring is believed to be one: at worst, the register is
        // written in vain, or the controller harms itself.
        must_ring(memory.event() as u16, old, value)
    }
}

/// Whether a doorbell that goes from `old` to `new` leaves `event` behind, all of them
/// indices of one ring.
#[inline]
pub const fn must_ring(event: u16, old: u16, new: u16) -> bool {
    // In the ring of all 16-bit numbers it is one comparison; where a ring that is shorter
    // wraps, the numbers that it has not are passed at once.
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn test_must_ring_every_step_of_small_rings() {
        for depth in 2..=9 {
            for (old, new, event) in (0..depth)
                .flat_map(|old| (0..depth).map(move |new| (old, new)))
                .flat_map(|(old, new)| (0..depth).map(move |event| (old, new, event)))
            {
                let mut at = old;
                let mut passed = false;
                while at != new {
                    passed |= at == event;
                    at = (at + 1) % depth;
                }
                assert_eq!(
                    must_ring(event, old, new),
                    passed,
                    "{old} to {new} of {depth}, event {event}"
                );
            }
        }
    }

    #[test]
    fn test_must_ring_where_numbers_end() {
        assert!(must_ring(u16::MAX, u16::MAX, 0));
        assert!(must_ring(u16::MAX - 1, u16::MAX - 2, 3));
        assert!(!must_ring(3, u16::MAX - 2, 3));
        assert!(!must_ring(u16::MAX, 0, u16::MAX));
    }

    #[derive(Default)]
    struct Device {
        shadow: Cell<u32>,
        event: Cell<u32>,
    }

    impl ShadowMemory for Device {
        fn store(&self, value: u32) {
            self.shadow.set(value);
        }

        fn event(&self) -> u32 {
            self.event.get()
        }
    }

    #[test]
    fn test_tell_a_controller_that_sleeps_is_woken_and_no_other() {
        const DEPTH: u32 = 7;
        let device = Device::default();
        let mut shadow = Shadow::default();
        let mut tail = 0;
        let mut step = |idle: bool| {
            if idle {
                // It has seen everything, and says so.
                device.event.set(device.shadow.get());
            }
            tail = (tail + 1) % DEPTH;
            let rang = shadow.tell(tail as u16, &device);
            assert_eq!(device.shadow.get(), tail);
            rang
        };
        for round in 0..5 * DEPTH {
            assert!(step(true), "round {round}");
            // Busy: it has been told, and did not look since.
            for _ in 0..DEPTH - 2 {
                assert!(!step(false), "round {round}");
            }
        }
    }
}
