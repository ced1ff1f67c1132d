// SPDX-License-Identifier: MIT
//! `report.md`: the numbers for a mail or a cover letter.

use super::schema::{
    Delta,
    Metric,
    Results,
    Verdict, //
};
use super::text;
use std::fmt::Write;

/// The whole document.
pub(crate) fn document(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_document(&mut out, results);
    out
}

fn write_document(out: &mut String, results: &Results) -> std::fmt::Result {
    let provenance = &results.provenance;
    writeln!(out, "# What the asynchronous I/O stack buys\n")?;
    writeln!(out, "{}, {}.\n", text::headline(results), provenance.date)?;
    if !results.complete {
        writeln!(
            out,
            "**This run was interrupted: pairs or workloads are missing.**\n"
        )?;
    }
    let counts: Vec<String> = text::counts(results)
        .into_iter()
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    writeln!(out, "Mean latency: {}.\n", counts.join(", "))?;
    for note in &provenance.notes {
        writeln!(out, "- {}\n", cell(note))?;
    }
    for metric in Metric::ALL {
        writeln!(out, "## {}\n", metric.label())?;
        writeln!(
            out,
            "| workload | native | off | async | async Δ | 95 % interval | verdict | off Δ | 95 % interval | off verdict |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|---|--:|--:|---|")?;
        for row in results.rows(metric) {
            write_row(out, row)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "## Method\n\n{}\n", text::method(provenance))?;
    if let Some(caveat) = text::caveat(provenance) {
        writeln!(out, "{caveat}\n")?;
    }
    writeln!(out, "## To repeat it\n")?;
    writeln!(out, "| what | value |\n|---|---|")?;
    for (what, value) in text::facts(provenance) {
        writeln!(out, "| {} | {} |", cell(&what), cell(&value))?;
    }
    for line in text::qemu(provenance) {
        writeln!(out, "\n    {}", line.replace('\n', " "))?;
    }
    Ok(())
}

fn write_row(out: &mut String, row: &Delta) -> std::fmt::Result {
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| row.metric.show(v));
    writeln!(
        out,
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        cell(&row.workload),
        value(row.native),
        value(row.off),
        value(row.on),
        text::percent(row.delta_pct),
        text::interval(row.ci_low_pct, row.ci_high_pct),
        bold(row.verdict),
        text::percent(row.off_delta_pct),
        text::interval(row.off_ci_low_pct, row.off_ci_high_pct),
        row.off_verdict.map_or_else(|| "-".to_owned(), bold)
    )
}

/// A verdict: worse stands out as much as better.
pub(crate) fn bold(verdict: Verdict) -> String {
    match verdict {
        Verdict::Better | Verdict::Worse => format!("**{verdict}**"),
        Verdict::WithinNoise | Verdict::TooFewPairs => verdict.to_string(),
    }
}

/// Text that cannot leave its table cell or become markup.
pub(crate) fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '<' | '>' | '*' | '_' | '`' | '\\' | '[' | ']' => {
                safe.push('\\');
                safe.push(c);
            }
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn test_document_every_table_line_has_its_columns() {
        let document = document(&example::results());
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let rows: Vec<&str> = document
            .lines()
            .skip_while(|line| !line.starts_with("## mean"))
            .take_while(|line| !line.starts_with("## Method"))
            .filter(|line| line.starts_with('|'))
            .collect();
        assert_eq!(rows.len(), Metric::ALL.len() * (20 + 2));
        for row in rows {
            assert_eq!(columns(row), 11, "{row}");
        }
    }

    #[test]
    fn test_cell_hostile_text_stays_in_cell() {
        assert_eq!(cell("a|b\n<c>"), "a\\|b \\<c\\>");
    }
}
