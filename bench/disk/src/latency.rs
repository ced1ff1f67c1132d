// SPDX-License-Identifier: MIT
//! How long a command takes: fixed, or drawn from given percentiles.

use crate::{
    Error,
    Result, //
};
use serde::{
    Deserialize,
    Serialize, //
};
use std::str::FromStr;

/// The longest latency that may be asked for, ns: 60 s. NVMe drivers give up
/// on a command after 30 s.
pub const MAX_NS: u64 = 60_000_000_000;

/// Latency of one kind of command: points of its distribution, interpolated
/// linearly between them. One point is a fixed latency, none is no latency.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Points (percentile 0..=100, nanoseconds), rising.
    pub points: Vec<(f64, u64)>,
}

impl Latency {
    /// The same latency, in ns, for every command.
    pub fn fixed(ns: u64) -> Self {
        Self {
            points: vec![(50.0, ns)],
        }
    }

    /// Refuses percentiles outside 0..=100 or not rising, falling latencies
    /// and any above [`MAX_NS`].
    pub fn check(&self) -> Result<()> {
        let bad = |why: &str, (p, ns): (f64, u64)| {
            Err(Error::Latency(format!("{why} at percentile {p}, {ns} ns")))
        };
        let mut last: Option<(f64, u64)> = None;
        for &point in &self.points {
            let (percentile, ns) = point;
            if !(0.0..=100.0).contains(&percentile) {
                return bad("a percentile is from 0 to 100, not as", point);
            }
            if ns > MAX_NS {
                return bad("more than 60 s", point);
            }
            if last.is_some_and(|(p, n)| percentile <= p || ns < n) {
                return bad(
                    "percentiles and their latencies must rise, but do not",
                    point,
                );
            }
            last = Some(point);
        }
        Ok(())
    }

    /// The latency in ns at `percentile` (the inverse of the distribution
    /// function); constant before the first point and after the last.
    pub fn at(&self, percentile: f64) -> u64 {
        let mut below: Option<(f64, u64)> = None;
        for &(p, ns) in &self.points {
            if percentile <= p {
                return match below {
                    Some((p0, ns0)) if p > p0 => {
                        let share = (percentile - p0) / (p - p0);
                        // Exact enough: MAX_NS is far below 2^53.
                        ns0 + (share * ns.saturating_sub(ns0) as f64) as u64
                    }
                    _ => ns,
                };
            }
            below = Some((p, ns));
        }
        below.map_or(0, |(_, ns)| ns)
    }
}

/// Reads `NS`, or `P:NS,P:NS,...`: `7300`, `50:7300,99:12000,99.9:40000`.
impl FromStr for Latency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::Latency(format!(
                "`{text}` is neither nanoseconds nor P:NS,P:NS,... with percentiles P"
            ))
        };
        let latency = if let Ok(ns) = text.parse() {
            Self::fixed(ns)
        } else {
            let point = |point: &str| {
                let (percentile, ns) = point.split_once(':')?;
                Some((percentile.parse().ok()?, ns.parse().ok()?))
            };
            Self {
                points: text
                    .split(',')
                    .map(point)
                    .collect::<Option<_>>()
                    .ok_or_else(bad)?,
            }
        };
        latency.check()?;
        Ok(latency)
    }
}

/// Draws latencies: the same seed gives the same sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    latency: Latency,
    state: u64,
}

impl Sampler {
    /// Draws from `latency`, beginning at `seed`.
    pub(crate) fn new(latency: Latency, seed: u64) -> Self {
        Self {
            latency,
            state: seed,
        }
    }

    /// The next latency, ns.
    pub(crate) fn sample(&mut self) -> u64 {
        match self.latency.points[..] {
            [] => 0,
            [(_, ns)] => ns,
            _ => {
                // 53 random bits make a number in 0..1 without rounding.
                let unit = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
                self.latency.at(100.0 * unit)
            }
        }
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
    /// generators", OOPSLA 2014): any seed will do, and the sequence can never
    /// change with a library's version.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two_points() -> Latency {
        Latency {
            points: vec![(50.0, 1_000), (99.0, 50_000)],
        }
    }

    #[test]
    fn test_at_interpolates_between_and_holds_outside() {
        let latency = two_points();
        assert_eq!(latency.at(0.0), 1_000);
        assert_eq!(latency.at(50.0), 1_000);
        assert_eq!(latency.at(74.5), 25_500);
        assert_eq!(latency.at(99.0), 50_000);
        assert_eq!(latency.at(100.0), 50_000);
        assert_eq!(Latency::default().at(50.0), 0);
    }

    #[test]
    fn test_check_bad_points_returns_error() {
        for points in [
            vec![(-1.0, 5)],
            vec![(101.0, 5)],
            vec![(f64::NAN, 5)],
            vec![(50.0, 5), (50.0, 6)],
            vec![(50.0, 5), (60.0, 4)],
            vec![(50.0, MAX_NS + 1)],
        ] {
            let latency = Latency { points };
            assert!(latency.check().is_err(), "{latency:?}");
        }
        assert!(two_points().check().is_ok());
    }

    #[test]
    fn test_from_str_reads_fixed_and_percentiles() {
        assert_eq!("7300".parse::<Latency>().unwrap(), Latency::fixed(7300));
        assert_eq!("50:1000,99:50000".parse::<Latency>().unwrap(), two_points());
        for bad in ["", "x", "50:", ":5", "50:5,", "50:-1", "60:5,50:6"] {
            assert!(bad.parse::<Latency>().is_err(), "{bad}");
        }
    }

    #[test]
    fn test_sampler_same_seed_gives_same_sequence() {
        let draw = |seed| {
            let mut sampler = Sampler::new(two_points(), seed);
            (0..100).map(|_| sampler.sample()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn test_sampler_follows_the_percentiles() {
        let mut sampler = Sampler::new(two_points(), 1);
        let mut drawn: Vec<u64> = (0..20_000).map(|_| sampler.sample()).collect();
        drawn.sort_unstable();
        assert_eq!(drawn[9_000], 1_000);
        // 74.5 % lies half-way between the points; two in a hundred is more
        // than six standard deviations of 20,000 draws.
        assert!(drawn[14_500] < 25_500 && drawn[15_300] > 25_500);
        assert_eq!(*drawn.last().unwrap(), 50_000);
    }

    proptest! {
        #[test]
        fn test_at_is_monotonic(a in 0.0..100.0, b in 0.0..100.0, low in 0u64..1000, more in 0u64..1000) {
            let latency = Latency { points: vec![(10.0, low), (90.0, low + more)] };
            let (small, large) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(latency.at(small) <= latency.at(large));
        }
    }
}
