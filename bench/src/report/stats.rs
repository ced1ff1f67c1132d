// SPDX-License-Identifier: MIT
//! How sure a difference is: Student's t on logarithms of ratios.
//!
//! Latencies and rates are positive and their noise multiplies rather than
//! adds, so differences are taken between logarithms: `ln(new / base)`. The
//! mean of those is the logarithm of the ratio of the geometric means, and an
//! interval around it turns back into per cent without favouring one sign.

use statrs::distribution::{
    ContinuousCDF,
    StudentsT, //
};

/// Share of runs in which the interval holds the true difference.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// A difference in per cent of the base.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// Ratio of the geometric means, as a difference in per cent.
    pub(crate) delta_pct: f64,
    /// 95 % confidence interval of it; none with too few samples.
    pub(crate) interval_pct: Option<(f64, f64)>,
}

/// Geometric mean of the positive finite values; `None` without any.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logs: Vec<f64> = values.iter().filter_map(|value| log(*value)).collect();
    mean(&logs).map(f64::exp)
}

/// Difference of `new` to `base` where each `(base, new)` was measured side by
/// side. Pairs with a value that is not positive are left out; `None` without
/// any pair left.
pub(crate) fn paired(pairs: &[(f64, f64)]) -> Option<Estimate> {
    let logs: Vec<f64> = pairs
        .iter()
        .filter_map(|(base, new)| Some(log(*new)? - log(*base)?))
        .collect();
    let centre = mean(&logs)?;
    let n = count(&logs);
    let half = (logs.len() > 1)
        .then(|| t_quantile(n - 1.0).map(|t| t * (variance(&logs, centre) / n).sqrt()))
        .flatten();
    Some(estimate(centre, half))
}

/// Difference of `new` to `base` where the two were measured apart (Welch's
/// unequal variances). `None` when one of them is empty.
pub(crate) fn unpaired(base: &[f64], new: &[f64]) -> Option<Estimate> {
    let base: Vec<f64> = base.iter().filter_map(|value| log(*value)).collect();
    let new: Vec<f64> = new.iter().filter_map(|value| log(*value)).collect();
    let (base_mean, new_mean) = (mean(&base)?, mean(&new)?);
    let centre = new_mean - base_mean;
    if base.len() < 2 || new.len() < 2 {
        return Some(estimate(centre, None));
    }
    let a = variance(&base, base_mean) / count(&base);
    let b = variance(&new, new_mean) / count(&new);
    // Welch and Satterthwaite; no spread at all leaves no freedom to divide.
    let spread = a * a / (count(&base) - 1.0) + b * b / (count(&new) - 1.0);
    let half = if spread > 0.0 {
        t_quantile((a + b).powi(2) / spread).map(|t| t * (a + b).sqrt())
    } else {
        Some(0.0)
    };
    Some(estimate(centre, half))
}

fn estimate(centre: f64, half: Option<f64>) -> Estimate {
    let percent = |log: f64| log.exp_m1() * 100.0;
    Estimate {
        delta_pct: percent(centre),
        interval_pct: half.map(|half| (percent(centre - half), percent(centre + half))),
    }
}

fn log(value: f64) -> Option<f64> {
    (value.is_finite() && value > 0.0).then(|| value.ln())
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / count(values))
}

/// Sample variance (divided by n - 1); needs two values.
fn variance(values: &[f64], mean: f64) -> f64 {
    values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / (count(values) - 1.0)
}

fn count(values: &[f64]) -> f64 {
    // Sample counts are far below 2^52.
    values.len() as f64
}

/// Two-sided quantile of Student's t for [`CONFIDENCE`].
fn t_quantile(freedom: f64) -> Option<f64> {
    let t = StudentsT::new(0.0, 1.0, freedom).ok()?;
    Some(t.inverse_cdf(1.0 - (1.0 - CONFIDENCE) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Normal deviates (Box and Muller).
    fn normal(random: &mut fastrand::Rng) -> f64 {
        let u = 1.0 - random.f64();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
    }

    #[test]
    fn test_t_quantile_matches_published_table() {
        for (freedom, published) in [(1.0, 12.706), (4.0, 2.776), (9.0, 2.262), (30.0, 2.042)] {
            let t = t_quantile(freedom).unwrap();
            assert!((t - published).abs() < 1e-3, "{freedom}: {t}");
        }
    }

    #[test]
    fn test_paired_known_logs_returns_worked_interval() {
        // ln ratios -0.1, -0.2, -0.3: mean -0.2, s 0.1, half = 4.3027 * 0.1 / sqrt 3.
        let pairs = [0.1f64, 0.2, 0.3].map(|x| (100.0, 100.0 * (-x).exp()));
        let found = paired(&pairs).unwrap();
        let (low, high) = found.interval_pct.unwrap();
        assert!((found.delta_pct - ((-0.2f64).exp() - 1.0) * 100.0).abs() < 1e-9);
        assert!(
            (low - ((-0.2f64 - 0.248_414).exp() - 1.0) * 100.0).abs() < 1e-3,
            "{low}"
        );
        assert!(
            (high - ((-0.2f64 + 0.248_414).exp() - 1.0) * 100.0).abs() < 1e-3,
            "{high}"
        );
    }

    #[test]
    fn test_paired_one_pair_has_no_interval() {
        let found = paired(&[(100.0, 90.0)]).unwrap();
        assert!((found.delta_pct + 10.0).abs() < 1e-9);
        assert_eq!(found.interval_pct, None);
    }

    #[test]
    fn test_paired_values_without_logarithm_are_left_out() {
        let pairs = [
            (0.0, 5.0),
            (f64::NAN, 1.0),
            (-3.0, 2.0),
            (10.0, f64::INFINITY),
        ];
        assert_eq!(paired(&pairs), None);
        assert_eq!(geometric_mean(&[0.0, f64::NAN]), None);
    }

    #[test]
    fn test_paired_drift_shared_by_both_sides_cancels() {
        // The machine gets 3 times slower from pair to pair; the ratio stays.
        let pairs: Vec<_> = (0..6).map(|i| 3f64.powi(i)).map(|v| (v, v * 0.8)).collect();
        let (low, high) = paired(&pairs).unwrap().interval_pct.unwrap();
        assert!((low + 20.0).abs() < 1e-6 && (high + 20.0).abs() < 1e-6);
    }

    #[test]
    fn test_unpaired_equal_constants_return_zero_width() {
        let found = unpaired(&[5.0, 5.0], &[5.0, 5.0]).unwrap();
        assert_eq!(found.interval_pct, Some((0.0, 0.0)));
    }

    #[test]
    fn test_unpaired_welch_matches_worked_example() {
        // Logs 1, 2, 3 against 2, 4, 6: centre 2, standard error sqrt(5/3),
        // freedom 2.941, t(0.975) 3.2200 (R: qt(0.975, 50 / 17)).
        let base = [1.0f64, 2.0, 3.0].map(f64::exp);
        let new = [2.0f64, 4.0, 6.0].map(f64::exp);
        let (low, high) = unpaired(&base, &new).unwrap().interval_pct.unwrap();
        let half = ((high / 100.0).ln_1p() - (low / 100.0).ln_1p()) / 2.0;
        assert!((half / (5.0f64 / 3.0).sqrt() - 3.22).abs() < 0.01, "{half}");
    }

    #[test]
    fn test_paired_interval_covers_truth_in_95_percent() {
        // Arrange: pairs with a strong common factor, noise and a known ratio.
        let mut random = fastrand::Rng::with_seed(11);
        let (runs, truth) = (4000, 0.85f64);
        let mut covered = 0;
        for _ in 0..runs {
            let pairs: Vec<_> = (0..5)
                .map(|_| {
                    let common = (normal(&mut random) * 0.5).exp() * 1e5;
                    let base = common * (normal(&mut random) * 0.05).exp();
                    let new = common * truth * (normal(&mut random) * 0.08).exp();
                    (base, new)
                })
                .collect();
            // Act
            let (low, high) = paired(&pairs).unwrap().interval_pct.unwrap();
            let truth_pct = (truth - 1.0) * 100.0;
            covered += i32::from(low <= truth_pct && truth_pct <= high);
        }
        // Assert: 95 % within five standard errors (0.34 %).
        let share = f64::from(covered) / f64::from(runs);
        assert!((share - CONFIDENCE).abs() < 0.0175, "{share}");
    }

    proptest! {
        #[test]
        fn test_paired_any_positive_pairs_interval_holds_delta(
            pairs in prop::collection::vec((1e-3..1e12f64, 1e-3..1e12f64), 2..20)
        ) {
            let found = paired(&pairs).unwrap();
            let (low, high) = found.interval_pct.unwrap();
            prop_assert!(low <= found.delta_pct && found.delta_pct <= high);
            prop_assert!(low >= -100.0);
        }

        #[test]
        fn test_paired_delta_is_ratio_of_geometric_means(
            pairs in prop::collection::vec((1.0..1e9f64, 1.0..1e9f64), 1..20)
        ) {
            let (base, new): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
            let ratio = geometric_mean(&new).unwrap() / geometric_mean(&base).unwrap();
            let delta = paired(&pairs).unwrap().delta_pct;
            prop_assert!((delta - (ratio - 1.0) * 100.0).abs() <= 1e-6 * ratio * 100.0 + 1e-6);
        }
    }
}
