// SPDX-License-Identifier: GPL-2.0

//! Policies of the asynchronous I/O stack, for its C hooks.
//!
//! The logic is in the `lbio_core` crate; this is its C interface. Each function
//! is pure: it takes and returns plain integers.
//!
//! C header: [`include/linux/lbio.h`](srctree/include/linux/lbio.h)

use kernel::prelude::*;
use lbio_core::poll::Estimator;

/// How long to spin on a completion, in nanoseconds, at most `max_ns`.
///
/// # Safety
///
/// Always safe; `unsafe` is required by `#[export]`.
#[export]
pub unsafe extern "C" fn lbio_poll_budget(state: u64, max_ns: u64) -> u64 {
    Estimator::from_bits(state).budget_ns(max_ns)
}

/// The state after a wait of `waited_ns` nanoseconds with the bound `max_ns`.
///
/// # Safety
///
/// Always safe; `unsafe` is required by `#[export]`.
#[export]
pub unsafe extern "C" fn lbio_poll_learn(state: u64, waited_ns: u64, max_ns: u64) -> u64 {
    Estimator::from_bits(state)
        .learn(waited_ns, max_ns)
        .to_bits()
}

#[cfg(CONFIG_AIOS_KUNIT_TEST)]
#[kunit_tests(aios_policy)]
mod tests {
    use super::*;

    fn after(waits: &[u64], max_ns: u64) -> u64 {
        waits.iter().fold(0, |state, &wait| {
            // SAFETY: Always safe.
            unsafe { lbio_poll_learn(state, wait, max_ns) }
        })
    }

    fn budget(state: u64, max_ns: u64) -> u64 {
        // SAFETY: Always safe.
        unsafe { lbio_poll_budget(state, max_ns) }
    }

    #[test]
    fn unknown_device_spins_up_to_the_bound() {
        assert_eq!(budget(0, 50_000), 50_000);
    }

    #[test]
    fn fast_device_spins_for_its_latency() {
        let state = after(&[10_000; 64], 50_000);

        assert!(budget(state, 50_000) >= 10_000);
        assert!(budget(state, 50_000) < 11_000);
    }

    #[test]
    fn slow_device_does_not_spin() {
        let state = after(&[80_000; 64], 50_000);

        assert_eq!(budget(state, 50_000), 0);
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let state = after(&[u64::MAX, 0, u64::MAX, u64::MAX], u64::MAX);

        assert!(budget(state, u64::MAX) > 0);
        assert_eq!(budget(u64::MAX, 0), 0);
    }
}
