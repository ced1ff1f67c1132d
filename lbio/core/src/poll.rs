// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How long a reader should spin on a completion before it sleeps.
//!
//! The estimator is the one of TCP's retransmission timer (RFC 6298): a smoothed
//! mean and a smoothed mean deviation of recent waits, updated with shifts. A
//! reader spins for `mean + 4 * deviation`, never longer than a bound, and not
//! at all while completions are expected after that bound.

/// Weight of a new wait in the mean: 1 / 2^3.
const MEAN_SHIFT: u32 = 3;

/// Weight of a new wait in the deviation: 1 / 2^2.
const DEVIATION_SHIFT: u32 = 2;

/// Longest wait taken into account, as a multiple of the bound: one outlier
/// (garbage collection in the drive, a reset) must not stop the spinning for long.
const OUTLIER_FACTOR: u64 = 4;

/// What is known of the waits for one kind of read.
///
/// # Invariants
///
/// `mean_ns` is zero only while nothing has been learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimator {
    mean_ns: u32,
    deviation_ns: u32,
}

impl Estimator {
    /// An estimator from [`Estimator::to_bits`]; zero is one that knows nothing.
    ///
    /// Every value is a valid estimator: callers may lose updates to races, and
    /// a wrong one costs a spin that is too long or too short, never more.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        // INVARIANT: a mean of zero is read as "nothing learned", whatever the deviation.
        Self {
            mean_ns: bits as u32,
            deviation_ns: (bits >> 32) as u32,
        }
    }

    /// The estimator as one word, so that it can be loaded and stored at once.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        // `u64::from` is not const.
        self.mean_ns as u64 | (self.deviation_ns as u64) << 32
    }

    /// How long to spin, in nanoseconds: `0..=max_ns`, zero for not at all.
    ///
    /// While nothing is known the answer is `max_ns`: the first wait teaches.
    #[inline]
    pub const fn budget_ns(self, max_ns: u64) -> u64 {
        let mean = self.mean_ns as u64;
        if mean == 0 {
            return max_ns;
        }
        if mean > max_ns {
            return 0;
        }
        // Cannot overflow: both are below 2^32.
        let want = mean + 4 * self.deviation_ns as u64;
        if want < max_ns { want } else { max_ns }
    }

    /// The estimator after a wait of `waited_ns`, spun or slept, with the bound
    /// `max_ns` in force; both in nanoseconds.
    #[inline]
    #[must_use]
    pub const fn learn(self, waited_ns: u64, max_ns: u64) -> Self {
        let limit = max_ns.saturating_mul(OUTLIER_FACTOR);
        let limit = if limit < u32::MAX as u64 {
            limit
        } else {
            u32::MAX as u64
        };
        let sample = if waited_ns < limit { waited_ns } else { limit } as u32;
        let sample = if sample == 0 { 1 } else { sample };

        if self.mean_ns == 0 {
            // INVARIANT: `sample` is not zero.
            return Self {
                mean_ns: sample,
                deviation_ns: sample / 2,
            };
        }
        // INVARIANT: moving a part of the way from one non-zero value towards
        // another stays off zero.
        Self {
            mean_ns: approach(self.mean_ns, sample, MEAN_SHIFT),
            deviation_ns: approach(
                self.deviation_ns,
                self.mean_ns.abs_diff(sample),
                DEVIATION_SHIFT,
            ),
        }
    }
}

/// `from` moved towards `to` by 1 / 2^`shift` of the way.
#[inline]
const fn approach(from: u32, to: u32, shift: u32) -> u32 {
    let step = from.abs_diff(to) >> shift;
    if to > from {
        from.saturating_add(step)
    } else {
        from.saturating_sub(step)
    }
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(waits: impl IntoIterator<Item = u64>, max_ns: u64) -> Estimator {
        waits
            .into_iter()
            .fold(Estimator::default(), |e, wait| e.learn(wait, max_ns))
    }

    #[test]
    fn test_budget_nothing_learned_spins_up_to_the_bound() {
        assert_eq!(Estimator::default().budget_ns(50_000), 50_000);
        assert_eq!(Estimator::default().budget_ns(0), 0);
    }

    #[test]
    fn test_budget_slow_device_does_not_spin() {
        assert_eq!(after([80_000; 4], 50_000).budget_ns(50_000), 0);
    }

    #[test]
    fn test_budget_device_that_gets_fast_spins_again() {
        let slow = after([400_000; 50], 50_000);
        let fast = (0..20).fold(slow, |e, _| e.learn(10_000, 50_000));
        let budget = fast.budget_ns(50_000);
        assert!((10_000..=50_000).contains(&budget), "{budget}");
    }

    #[test]
    fn test_budget_one_outlier_is_forgotten_within_a_few_waits() {
        let steady = after([10_000; 100], 50_000);
        let shocked = steady.learn(30_000_000, 50_000);
        let calmed = (0..4).fold(shocked, |e, _| e.learn(10_000, 50_000));
        assert!(calmed.budget_ns(50_000) >= 10_000);
    }

    proptest! {
        #[test]
        fn test_budget_any_state_stays_within_bound(bits: u64, max_ns: u64) {
            prop_assert!(Estimator::from_bits(bits).budget_ns(max_ns) <= max_ns);
        }

        #[test]
        fn test_learn_any_state_keeps_the_invariant(bits: u64, wait: u64, max_ns: u64) {
            let e = Estimator::from_bits(bits).learn(wait, max_ns);
            prop_assert!(e.mean_ns != 0);
            prop_assert_eq!(Estimator::from_bits(e.to_bits()), e);
        }

        #[test]
        fn test_budget_steady_device_covers_it_closely(latency in 1_000u64..1_000_000) {
            let max_ns = 1_000_000;
            let budget = after(core::iter::repeat_n(latency, 100), max_ns).budget_ns(max_ns);
            // Shifts round down, so the deviation comes to rest a little above zero.
            prop_assert!(budget >= latency, "{} < {}", budget, latency);
            prop_assert!(budget <= latency + 16, "{} > {}", budget, latency);
        }

        #[test]
        fn test_budget_jitter_covers_most_waits(
            waits in proptest::collection::vec(8_000u64..12_000, 200),
        ) {
            let max_ns = 50_000;
            let mut e = Estimator::default();
            let mut covered = 0;
            for &wait in &waits {
                covered += usize::from(e.budget_ns(max_ns) >= wait);
                e = e.learn(wait, max_ns);
            }
            prop_assert!(covered * 10 >= waits.len() * 9, "{}", covered);
        }
    }
}
