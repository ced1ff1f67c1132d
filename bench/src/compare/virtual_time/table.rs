// SPDX-License-Identifier: MIT
//! The tables on the terminal.

use super::schema::{
    Calls,
    Curve,
    Results, //
};
use crate::stack::Stack;
use std::fmt::Write;

/// One row per call, commit and cache; then rates, where they are the point.
pub(super) fn table(results: &Results) -> String {
    let shown = results.shown_ns();
    let mut header = ["call", "commit", "cache", "round trips", "instructions"]
        .map(str::to_owned)
        .to_vec();
    header.extend(
        shown
            .iter()
            .map(|&time| format!("latency at {}", micros(time as f64))),
    );
    header.push("seeds".to_owned());
    let mut rows = vec![header];
    let mut rates = vec![vec!["operations per second".to_owned()]];
    rates[0].extend(["commit", "cache"].map(str::to_owned));
    rates[0].extend(
        shown
            .iter()
            .map(|&time| format!("at {}", micros(time as f64))),
    );
    for calls in &results.calls {
        let mut row = name(calls);
        row.push(of_stacks(calls, |curve| {
            format!("{:.2}", curve.round_trips)
        }));
        row.push(of_stacks(calls, |curve| {
            format!("{:.0}", curve.serial_instructions)
        }));
        row.extend(shown.iter().map(|&time| latency(calls, time)));
        row.push(seeds(calls));
        rows.push(row);
        if calls.row.call.has_rate() {
            let mut row = name(calls);
            row.extend(shown.iter().map(|&time| rate(calls, time)));
            rates.push(row);
        }
    }
    let mut text = aligned(&rows);
    if rates.len() > 1 {
        text.push('\n');
        text.push_str(&aligned(&rates));
    }
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\nround trips and instructions: native / off / async, of the line through {}; latencies: native \
         to async; seeds: how far they differ at most\n",
        times(&results.provenance.device_ns)
    );
    if !results.complete {
        text.push_str("interrupted: not all was measured\n");
    }
    text
}

fn name(calls: &Calls) -> Vec<String> {
    vec![
        calls.row.call.name().to_owned(),
        calls.row.commit.name().to_owned(),
        if calls.row.cache { "yes" } else { "no" }.to_owned(),
    ]
}

/// A value of every stack, `-` where there is none.
pub(super) fn of_stacks(calls: &Calls, value: impl Fn(&Curve) -> String) -> String {
    Stack::ALL
        .map(|stack| {
            calls
                .stacks
                .get(&stack)
                .map_or_else(|| "-".to_owned(), &value)
        })
        .join(" / ")
}

/// Mean latencies of native and async at `time`, and the difference.
pub(super) fn latency(calls: &Calls, time: u64) -> String {
    pair(
        calls,
        |curve| curve.at(time).map(|point| point.lat_mean_ns),
        |ns| format!("{:.1}", ns / 1e3),
        " µs",
    )
}

/// Rates of native and async at `time`, and the difference.
pub(super) fn rate(calls: &Calls, time: u64) -> String {
    pair(
        calls,
        |curve| curve.at(time).map(|point| point.ops_per_s),
        |rate| format!("{rate:.0}"),
        "",
    )
}

fn pair(
    calls: &Calls,
    value: impl Fn(&Curve) -> Option<f64>,
    show: impl Fn(f64) -> String,
    unit: &str,
) -> String {
    let of = |stack| calls.stacks.get(&stack).and_then(&value);
    match (of(Stack::Native), of(Stack::Async)) {
        (Some(native), Some(on)) => format!(
            "{} → {}{unit} ({:+.1} %)",
            show(native),
            show(on),
            (on / native - 1.0) * 100.0
        ),
        (Some(one), None) | (None, Some(one)) => format!("{}{unit}", show(one)),
        (None, None) => "-".to_owned(),
    }
}

/// How far the seeds lie apart at most, on any stack.
fn seeds(calls: &Calls) -> String {
    let most = calls.stacks.values().map(|curve| curve.seeds_pct);
    format!("{:.1} %", most.fold(0.0, f64::max))
}

/// A time of the device.
pub(super) fn micros(ns: f64) -> String {
    format!("{} µs", ns / 1e3)
}

/// Device times in one line.
pub(super) fn times(device_ns: &[u64]) -> String {
    let times: Vec<String> = device_ns
        .iter()
        .map(|&ns| (ns as f64 / 1e3).to_string())
        .collect();
    format!("{} µs", times.join(", "))
}

/// Lines of cells, padded to columns; all but the names to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0..=2 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::results;
    use super::*;

    #[test]
    fn test_table_one_line_per_call_and_rate() {
        let results = results();
        let table = table(&results);
        // Two headers, two empty lines, the legend, four rates.
        assert_eq!(table.lines().count(), results.calls.len() + 2 + 3 + 4);
        for calls in &results.calls {
            assert!(table.contains(calls.row.call.name()));
        }
        assert!(table.contains("3.00 / 3.00 / 2.00"), "{table}");
        assert!(table.contains("350.1 → 250.2 µs (-28.6 %)"), "{table}");
        assert!(table.contains("(+40.0 %)"), "{table}");
        assert!(!table.contains("interrupted"));
    }

    #[test]
    fn test_table_missing_stacks_are_dashes() {
        let mut results = results();
        for calls in &mut results.calls {
            calls.stacks.remove(&Stack::Off);
            calls.stacks.remove(&Stack::Async);
        }
        results.complete = false;
        let table = table(&results);
        assert!(
            table.contains("3.00 / - / -") && table.contains(" 350.1 µs "),
            "{table}"
        );
        assert!(table.ends_with("interrupted: not all was measured\n"));
    }
}
