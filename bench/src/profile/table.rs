// SPDX-License-Identifier: MIT
//! The profile as a table for the terminal.

use super::layers::Layer;
use super::schema::{
    Profile,
    StackProfile, //
};
use crate::stack::Stack;
use std::collections::BTreeSet;

/// The profile as text; `top` functions, those that differ most between the
/// first stack and the others first.
pub(crate) fn table(profile: &Profile, top: usize) -> String {
    let stacks: Vec<(Stack, &StackProfile)> = profile
        .stacks
        .iter()
        .map(|(&stack, profile)| (stack, profile))
        .collect();
    let mut rows = vec![Row::header(&stacks)];
    let parts = |stack: &StackProfile| stack.parts();
    for index in 0..3 {
        let label = stacks
            .first()
            .map_or("", |(_, first)| parts(first)[index].0);
        rows.push(Row::new(label, &stacks, |stack| parts(stack)[index].1));
    }
    rows.push(Row::new("total work", &stacks, |stack| stack.total));
    rows.push(Row::new("spin (waiting)", &stacks, |stack| stack.spin));
    rows.push(Row::decimal("task switches", &stacks, |stack| {
        stack.switches
    }));
    rows.push(Row::blank());
    for layer in Layer::ALL {
        let of = |stack: &StackProfile| stack.layers.get(&layer).copied().unwrap_or(0.0);
        if stacks.iter().any(|(_, stack)| of(stack) > 0.0) {
            rows.push(Row::new(layer.label(), &stacks, of));
        }
    }
    let functions = top_functions(&stacks, top);
    if !functions.is_empty() {
        rows.push(Row::blank());
    }
    for name in functions {
        rows.push(Row::new(&name, &stacks, |stack| cost(stack, &name)));
    }
    let mut text = format!(
        "{}: kernel instructions per operation\n\n",
        profile.workload
    );
    text.push_str(&aligned(&rows));
    text.push('\n');
    for (stack, profile) in stacks {
        text.push_str(&remark(stack, profile));
    }
    text.push_str(
        "Emulated instructions are no cycles: caches, MMIO and the IOMMU cost nothing here.\n",
    );
    text
}

/// What a reader must know of one stack's numbers.
fn remark(stack: Stack, profile: &StackProfile) -> String {
    let ops = &profile.ops;
    let mut text = format!(
        "{}: {} clean operations, total ±{:.0} (95 %), {:.0} % set aside",
        stack.name(),
        ops.clean,
        profile.total_ci95,
        ops.disturbed_pct()
    );
    let reasons: Vec<String> = ops
        .disturbed
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(why, count)| format!("{why} {count}"))
        .collect();
    if !reasons.is_empty() {
        text.push_str(&format!(" ({})", reasons.join(", ")));
    }
    if ops.unusual > 0 {
        let did = if profile.switches > 0.0 {
            "did not sleep"
        } else {
            "slept"
        };
        text.push_str(&format!(
            ", {} more {did} (total with them {})",
            ops.unusual,
            grouped(profile.total_all)
        ));
    }
    if ops.interrupted > 0 {
        text.push_str(&format!(", interrupts taken out of {}", ops.interrupted));
    }
    if let Some(spread) = profile.repeat_spread_pct() {
        text.push_str(&format!(
            ", {} repeats within {spread:.2} %",
            profile.repeats.len()
        ));
    }
    text.push('\n');
    text
}

/// Work of all functions of one name.
fn cost(stack: &StackProfile, name: &str) -> f64 {
    let named = |function: &&super::schema::FunctionProfile| function.name == name;
    stack
        .functions
        .iter()
        .filter(named)
        .map(|function| function.phases.total)
        .sum()
}

/// Names of the functions of most interest: with one stack the most expensive,
/// with several those that differ most from the first stack.
fn top_functions(stacks: &[(Stack, &StackProfile)], top: usize) -> Vec<String> {
    let Some((&(_, first), others)) = stacks.split_first() else {
        return Vec::new();
    };
    let names: BTreeSet<&str> = stacks
        .iter()
        .flat_map(|(_, stack)| &stack.functions)
        .map(|function| function.name.as_str())
        .collect();
    let mut ranked: Vec<(f64, f64, &str)> = names
        .into_iter()
        .map(|name| {
            let own = cost(first, name);
            let change = others
                .iter()
                .map(|(_, other)| (cost(other, name) - own).abs());
            // Differences below one instruction are noise.
            (change.fold(0.0, f64::max).round(), own, name)
        })
        .filter(|&(change, own, _)| change >= 1.0 || own >= 1.0)
        .collect();
    ranked.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then(b.1.total_cmp(&a.1))
            .then(a.2.cmp(b.2))
    });
    ranked
        .into_iter()
        .take(top)
        .map(|(_, _, name)| name.to_owned())
        .collect()
}

/// One line: a label, then a value and, but for the first stack, its change.
struct Row {
    label: String,
    cells: Vec<String>,
}

impl Row {
    fn blank() -> Self {
        Self {
            label: String::new(),
            cells: Vec::new(),
        }
    }

    fn header(stacks: &[(Stack, &StackProfile)]) -> Self {
        let mut cells = Vec::new();
        for (index, (stack, _)) in stacks.iter().enumerate() {
            cells.push(stack.name().to_owned());
            if index > 0 {
                cells.push("Δ".to_owned());
            }
        }
        Self {
            label: String::new(),
            cells,
        }
    }

    /// Small numbers, with two decimals and no change.
    fn decimal(
        label: &str,
        stacks: &[(Stack, &StackProfile)],
        value: impl Fn(&StackProfile) -> f64,
    ) -> Self {
        let mut cells = Vec::new();
        for (index, (_, stack)) in stacks.iter().enumerate() {
            cells.push(format!("{:.2}", value(stack)));
            if index > 0 {
                cells.push(String::new());
            }
        }
        Self {
            label: label.to_owned(),
            cells,
        }
    }

    fn new(
        label: &str,
        stacks: &[(Stack, &StackProfile)],
        value: impl Fn(&StackProfile) -> f64,
    ) -> Self {
        let first = stacks.first().map_or(0.0, |(_, stack)| value(stack));
        let mut cells = Vec::new();
        for (index, (_, stack)) in stacks.iter().enumerate() {
            let own = value(stack);
            cells.push(grouped(own));
            if index > 0 {
                cells.push(change(first, own));
            }
        }
        Self {
            label: label.to_owned(),
            cells,
        }
    }
}

/// Change in per cent; "new" where there was nothing.
fn change(from: f64, to: f64) -> String {
    if from.round() == to.round() {
        "·".to_owned()
    } else if from < 0.5 {
        "new".to_owned()
    } else {
        format!("{:+.1} %", (to / from - 1.0) * 100.0)
    }
}

/// A rounded number with separators.
pub(crate) fn grouped(value: f64) -> String {
    // An empty sum is minus zero.
    let digits = format!("{:.0}", value.round() + 0.0);
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Labels to the left, numbers to the right.
fn aligned(rows: &[Row]) -> String {
    let width = |text: &str| text.chars().count();
    let labels = rows.iter().map(|row| width(&row.label)).max().unwrap_or(0);
    let columns = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.cells.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = format!("{:labels$}", row.label);
        for (cell, width) in row.cells.iter().zip(&widths) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::profile;
    use super::*;

    #[test]
    fn test_table_shows_phases_layers_functions_side_by_side() {
        let text = table(&profile(), 5);
        let line = |start: &str| {
            text.lines()
                .find(|line| line.starts_with(start))
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            line("total work"),
            ["total", "work", "1,000", "600", "-40.0", "%"]
        );
        assert_eq!(line("task"), ["task", "switches", "0.00", "0.00"]);
        assert_eq!(line("spin"), ["spin", "(waiting)", "7", "7", "·"]);
        assert_eq!(line("other"), ["other", "1,000", "600", "-40.0", "%"]);
        assert_eq!(line("vfs_read"), ["vfs_read", "100", "60", "-40.0", "%"]);
        assert!(text.contains("native: 4 clean operations"), "{text}");
        assert!(text.contains("50 % set aside (interrupt 4)"), "{text}");
        assert!(!text.contains("more slept"), "{text}");
    }

    #[test]
    fn test_table_tells_of_the_unusual_path() {
        let mut mixed = profile();
        let stack = mixed.stacks.get_mut(&Stack::Async).unwrap();
        stack.ops.unusual = 3;
        stack.total_all = 777.0;
        let text = table(&mixed, 0);
        assert!(
            text.contains("3 more slept (total with them 777)"),
            "{text}"
        );
    }

    #[test]
    fn test_table_top_limits_functions() {
        let text = table(&profile(), 1);
        assert!(text.contains("nvme"), "{text}");
        assert!(!text.contains("vfs_read"), "{text}");
        assert!(!table(&profile(), 0).contains("nvme"));
    }

    #[test]
    fn test_table_of_nothing_does_not_panic() {
        let mut empty = profile();
        empty.stacks.clear();
        assert!(table(&empty, 5).contains("randread"));
    }

    #[test]
    fn test_grouped_and_change_are_for_people() {
        assert_eq!(grouped(13290.4), "13,290");
        assert_eq!(grouped(0.2), "0");
        assert_eq!(grouped(-0.0), "0");
        assert_eq!(change(0.0, 12.0), "new");
        assert_eq!(change(10.0, 0.0), "-100.0 %");
        assert_eq!(change(10.0, 10.1), "·");
    }
}
