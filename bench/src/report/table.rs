// SPDX-License-Identifier: MIT
//! The table on the terminal.

use super::schema::{
    Delta,
    Metric,
    Results,
    Verdict, //
};
use super::text;

/// One row per workload and metric; colours where the terminal has them.
pub(crate) fn table(results: &Results, metrics: &[Metric], colour: bool) -> String {
    let header = [
        "workload",
        "metric",
        "native",
        "off",
        "async",
        "async Δ",
        "95 % interval",
        "verdict",
        "off Δ",
        "off verdict",
    ]
    .map(|name| (name.to_owned(), None));
    let mut rows = vec![header];
    for workload in results.workloads() {
        for metric in metrics {
            if let Some(row) = results.delta(workload, *metric) {
                rows.push(cells(row));
            }
        }
    }
    aligned(&rows, colour)
}

/// Text and what colours it.
type Cell = (String, Option<Verdict>);

fn cells(row: &Delta) -> [Cell; 10] {
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| row.metric.show(v));
    [
        (printable(&row.workload), None),
        (row.metric.label().to_owned(), None),
        (value(row.native), None),
        (value(row.off), None),
        (value(row.on), None),
        (text::percent(row.delta_pct), None),
        (text::interval(row.ci_low_pct, row.ci_high_pct), None),
        (row.verdict.to_string(), Some(row.verdict)),
        (text::percent(row.off_delta_pct), None),
        (
            row.off_verdict.map_or("-", Verdict::label).to_owned(),
            row.off_verdict,
        ),
    ]
}

/// A name out of a file must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Lines of cells, padded to columns: text to the left, numbers to the right.
pub(crate) fn aligned<const N: usize>(rows: &[[Cell; N]], colour: bool) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, (text, _)) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, ((text, verdict), width)) in row.iter().zip(widths).enumerate() {
            let left = index < 2 || text.chars().all(|c| c.is_alphabetic() || c == ' ');
            let padded = if left {
                format!("{text:<width$}")
            } else {
                format!("{text:>width$}")
            };
            let code = match verdict {
                Some(Verdict::Better) if colour => "32",
                Some(Verdict::Worse) if colour => "31",
                _ => "",
            };
            if index > 0 {
                line.push_str("  ");
            }
            if code.is_empty() {
                line.push_str(&padded);
            } else {
                line.push_str(&format!("\x1b[{code}m{padded}\x1b[0m"));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn test_table_one_line_per_workload_and_metric() {
        let results = example::results();
        let table = table(&results, &[Metric::LatMeanNs, Metric::Iops], false);
        assert_eq!(table.lines().count(), 1 + 2 * results.workloads().len());
        assert!(!table.contains('\x1b'));
        assert!(table.contains("worse") && table.contains("better"));
    }

    #[test]
    fn test_table_colour_marks_verdicts_only_when_asked() {
        let table = table(&example::results(), &[Metric::LatMeanNs], true);
        assert!(table.contains("\x1b[32mbetter"));
        assert!(table.contains("\x1b[31mworse"));
    }

    #[test]
    fn test_printable_escape_sequence_is_disarmed() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
