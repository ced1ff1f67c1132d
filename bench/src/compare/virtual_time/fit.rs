// SPDX-License-Identifier: MIT
//! The straight line through latencies over device times.

/// A line: what a call takes is `slope` times the device time and `intercept`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    /// Serial round trips.
    pub(super) slope: f64,
    /// Nanoseconds that no device time hides.
    pub(super) intercept: f64,
    /// The largest distance of a point from the line, in nanoseconds.
    pub(super) residual: f64,
}

/// The least-squares line through `points` of (device time, latency), both in
/// nanoseconds. None unless there are two device times.
pub(super) fn fit(points: &[(f64, f64)]) -> Option<Line> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    // Not a number without points.
    if spread.is_nan() || spread <= 0.0 {
        return None;
    }
    let common: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let slope = common / spread;
    let intercept = mean_y - slope * mean_x;
    let residual = points
        .iter()
        .map(|(x, y)| (y - intercept - slope * x).abs())
        .fold(0.0, f64::max);
    Some(Line {
        slope,
        intercept,
        residual,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn test_fit_without_two_device_times_gives_none() {
        for points in [&[][..], &[(1e4, 5e4)], &[(1e4, 5e4), (1e4, 6e4)]] {
            assert_eq!(fit(points), None);
        }
    }

    #[test]
    fn test_fit_takes_the_least_squares() {
        // By hand: means 2 and 3, slope (1*1 + 1*1.5) / 2.
        let line = fit(&[(1.0, 2.0), (2.0, 2.5), (3.0, 4.5)]).unwrap();
        assert!((line.slope - 1.25).abs() < 1e-12, "{line:?}");
        assert!((line.intercept - 0.5).abs() < 1e-12, "{line:?}");
        assert!((line.residual - 0.5).abs() < 1e-12, "{line:?}");
    }

    proptest! {
        #[test]
        fn test_fit_finds_any_line(trips in 0u32..8, serial in 0u32..200_000) {
            let at = |device: f64| (device, f64::from(trips) * device + f64::from(serial));
            let line = fit(&[at(1e4), at(3e4), at(1e5)]).unwrap();
            prop_assert!((line.slope - f64::from(trips)).abs() < 1e-6);
            prop_assert!((line.intercept - f64::from(serial)).abs() < 1e-2);
            prop_assert!(line.residual < 1e-2);
        }
    }
}
