// SPDX-License-Identifier: MIT
//! `obd.md`, for a mail, and `obd.html`, one page without outside resources.

use super::contender::Contender;
use super::results::{
    Delta,
    Instructions,
    Provenance,
    Results, //
};
use crate::profile::grouped;
use crate::report::html::{
    self,
    write_figure, //
};
use crate::report::markdown::{
    bold,
    cell, //
};
use crate::report::schema::Metric;
use crate::report::svg::{
    self,
    Interval,
    Svg,
    WIDTH,
    escape, //
};
use crate::report::text;
use std::fmt::{
    self,
    Write, //
};

const TITLE: &str = "The driver of overlaybd images against others";

const METHOD: &str = "All read the same file, from drives of the same speed in one guest, one after another in an order \
    shuffled in each round, each mounted afresh with nothing cached. A column is the geometric mean over the samples. A \
    difference is taken inside each round, between logarithms; its interval is Student's t over the rounds, at 95 %. The \
    verdict is better or worse only where the whole interval lies on one side of zero.";

const COUNTED: &str = "All that a guest with one CPU executes from the first read to the last, of programs and of the \
    kernel, idle task and interrupts included, while nobody spins.";

/// What each contender is.
fn what(contender: Contender) -> &'static str {
    match contender {
        Contender::Obd => "ext4 in an overlaybd layer, by the driver, the stack enabled",
        Contender::ObdStacked => "the same by two devices, the zfile's below the image's",
        Contender::ObdOff => "the same by one device, the stack off",
        Contender::Ublk => "the same layer, by a process through ublk",
        Contender::Erofs => "EROFS, LZ4 in clusters of 4 KiB",
        Contender::Squashfs => "squashfs, LZ4 in blocks of 128 KiB",
        Contender::Bare => "the same ext4, neither compressed nor layered",
    }
}

/// The workloads, as measured or counted.
fn workloads(results: &Results) -> Vec<&str> {
    let timed = results.deltas.iter().map(|row| row.workload.as_str());
    let counted = results.instructions.iter().map(|row| row.workload.as_str());
    let mut names = Vec::new();
    for name in timed.chain(counted) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn deltas<'a>(results: &'a Results, workload: &'a str) -> impl Iterator<Item = &'a Delta> {
    results
        .deltas
        .iter()
        .filter(move |row| row.workload == workload)
}

fn counted<'a>(results: &'a Results, workload: &str) -> Vec<&'a Instructions> {
    results
        .instructions
        .iter()
        .filter(|row| row.workload == workload)
        .collect()
}

/// Everything needed to repeat the run.
fn facts(provenance: &Provenance) -> Vec<(&str, String)> {
    let mut facts = vec![
        ("command", provenance.command.join(" ")),
        ("started", provenance.date.clone()),
        (
            "took",
            format!("{:.0} s, builds left out", provenance.seconds),
        ),
        ("seed", provenance.seed.to_string()),
        ("rounds", provenance.pairs.to_string()),
        ("file", format!("{} MiB", provenance.file_mib)),
        ("machine", text::machine(&provenance.machine)),
        ("aios", provenance.aios.clone()),
    ];
    for tool in &provenance.tools {
        facts.push((&tool.name, tool.version.clone()));
    }
    facts.push(("kernel", text::kernel(&provenance.kernel)));
    facts.push(("device", provenance.device.describe()));
    facts
}

/// The document for a mail.
pub(super) fn markdown(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_markdown(&mut out, results);
    out
}

fn write_markdown(out: &mut String, results: &Results) -> fmt::Result {
    let provenance = &results.provenance;
    writeln!(out, "# {TITLE}\n\n{}.\n", provenance.date)?;
    if !results.complete {
        writeln!(
            out,
            "**This run was interrupted: measurements are missing.**\n"
        )?;
    }
    writeln!(out, "| contender | what it is |\n|---|---|")?;
    for contender in Contender::ALL {
        writeln!(out, "| {} | {} |", contender.name(), what(contender))?;
    }
    for workload in workloads(results) {
        writeln!(out, "\n## {}", cell(workload))?;
        if deltas(results, workload).next().is_some() {
            writeln!(
                out,
                "\n| against | metric | obd | other | obd Δ | 95 % interval | verdict |\n\
                 |---|---|--:|--:|--:|--:|---|"
            )?;
        }
        for row in deltas(results, workload) {
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                row.peer.name(),
                row.metric.label(),
                row.metric.show(row.obd),
                row.metric.show(row.other),
                text::percent(Some(row.delta_pct)),
                text::interval(row.ci_low_pct, row.ci_high_pct),
                bold(row.verdict)
            )?;
        }
        let counted = counted(results, workload);
        if !counted.is_empty() {
            writeln!(
                out,
                "\n| instructions per read | kernel | programs | total | obd Δ |\n\
                 |---|--:|--:|--:|--:|"
            )?;
        }
        for row in counted {
            let delta = row.delta_pct(&results.instructions);
            writeln!(
                out,
                "| {} | {} | {} | {} | {} |",
                row.contender.name(),
                grouped(row.kernel),
                grouped(row.programs),
                grouped(row.total()),
                delta.map_or_else(String::new, |delta| text::percent(Some(delta)))
            )?;
        }
    }
    writeln!(out, "\n## Method\n\n{METHOD}\n\nInstructions: {COUNTED}\n")?;
    if let Some(caveat) = text::emulated(provenance.kvm) {
        writeln!(out, "{caveat}\n")?;
    }
    writeln!(out, "## To repeat it\n\n| what | value |\n|---|---|")?;
    for (what, value) in facts(provenance) {
        writeln!(out, "| {} | {} |", cell(what), cell(&value))?;
    }
    writeln!(out, "\n    {}", provenance.qemu.replace('\n', " "))
}

/// The whole page.
pub(super) fn html(results: &Results) -> String {
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = write_html(&mut body, results);
    html::document("overlaybd images", &body)
}

fn write_html(body: &mut String, results: &Results) -> fmt::Result {
    let provenance = &results.provenance;
    writeln!(
        body,
        "<header><h1>{TITLE}</h1>\n<p class=\"soft\">{}</p></header>",
        escape(&provenance.date)
    )?;
    if !results.complete {
        writeln!(
            body,
            "<p class=\"warn\">This run was interrupted: measurements are missing.</p>"
        )?;
    }
    if let Some(caveat) = text::emulated(provenance.kvm) {
        writeln!(body, "<p class=\"soft\">{}</p>", escape(caveat))?;
    }
    writeln!(body, "<dl>")?;
    for contender in Contender::ALL {
        writeln!(
            body,
            "<dt>{}</dt><dd>{}</dd>",
            contender.name(),
            what(contender)
        )?;
    }
    writeln!(body, "</dl>")?;
    for workload in workloads(results) {
        let rows: Vec<Interval<'_>> = deltas(results, workload)
            .filter(|row| row.metric == Metric::LatMeanNs)
            .map(|row| Interval {
                name: row.peer.name(),
                delta_pct: row.delta_pct,
                low_pct: row.ci_low_pct,
                high_pct: row.ci_high_pct,
                verdict: row.verdict,
            })
            .collect();
        if !rows.is_empty() {
            write_figure(
                body,
                &format!("{workload}: mean latency, the driver against each"),
                "Left of zero the driver is faster. The bar is the 95 % confidence interval.",
                &svg::intervals(&rows, format!("the driver's latency in {workload}")),
            )?;
        }
        let rows = counted(results, workload);
        if !rows.is_empty() {
            write_figure(
                body,
                &format!("{workload}: instructions per read"),
                COUNTED,
                &bars(workload, &rows),
            )?;
        }
    }
    write_table(body, results)?;
    writeln!(
        body,
        "<h2>Method</h2>\n<p>{METHOD}</p>\n<h2>To repeat it</h2>\n<dl>"
    )?;
    for (what, value) in facts(provenance) {
        writeln!(body, "<dt>{}</dt><dd>{}</dd>", escape(what), escape(&value))?;
    }
    writeln!(body, "</dl>\n<pre>{}</pre>", escape(&provenance.qemu))
}

/// What the kernel and what programs execute, for each contender.
fn bars(workload: &str, rows: &[&Instructions]) -> String {
    let longest = rows.iter().map(|row| row.total()).fold(1.0, f64::max);
    let (left, right, top, height) = (8.0, WIDTH - 8.0, 4.0, 34.0);
    let mut svg = Svg::new(
        top + height * rows.len() as f64 + 20.0,
        format!("instructions per read in {workload}"),
    );
    for (line, row) in rows.iter().enumerate() {
        let y = top + height * line as f64;
        svg.text("label", (left, y + 13.0), row.contender.name());
        svg.text("value end", (right, y + 13.0), &grouped(row.total()));
        let mut from = left;
        for (stage, (name, insns)) in [("kernel", row.kernel), ("programs", row.programs)]
            .into_iter()
            .enumerate()
        {
            let width = insns / longest * (right - left);
            svg.rect(
                &format!("stage{stage}"),
                (from, y + 18.0),
                (width, 10.0),
                &format!("{name}: {}", grouped(insns)),
            );
            from += width;
        }
    }
    let y = top + height * rows.len() as f64;
    for (stage, (at, name)) in [(left, "kernel"), (left + 80.0, "programs")]
        .into_iter()
        .enumerate()
    {
        svg.rect(&format!("stage{stage}"), (at, y + 4.0), (11.0, 11.0), name);
        svg.text("tick start", (at + 16.0, y + 13.0), name);
    }
    svg.finish()
}

fn write_table(body: &mut String, results: &Results) -> fmt::Result {
    if results.deltas.is_empty() {
        return Ok(());
    }
    writeln!(
        body,
        "<section><h2>All numbers</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>workload</th>\
         <th>against</th><th>metric</th><th>obd</th><th>other</th><th>obd Δ</th><th>95 % interval</th>\
         <th>verdict</th></tr></thead>\n<tbody>"
    )?;
    for row in &results.deltas {
        writeln!(
            body,
            "<tr><th scope=\"row\">{}</th><td class=\"left\">{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td class=\"{}\">{}</td></tr>",
            escape(&row.workload),
            row.peer.name(),
            row.metric.label(),
            row.metric.show(row.obd),
            row.metric.show(row.other),
            text::percent(Some(row.delta_pct)),
            text::interval(row.ci_low_pct, row.ci_high_pct),
            html::class(row.verdict),
            row.verdict
        )?;
    }
    writeln!(body, "</tbody></table></div></section>")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn test_html_is_well_formed_and_needs_nothing_from_outside() {
        let results = results();
        let page = html(&results);
        let markup = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let document = roxmltree::Document::parse(markup).expect("well-formed");
        let count = |name: &str| {
            document
                .descendants()
                .filter(|node| node.tag_name().name() == name)
                .count()
        };
        let peers = Contender::ALL.len() - 1;
        assert_eq!(count("svg"), 2 * 2);
        assert_eq!(count("circle"), 2 * peers);
        assert_eq!(count("tr"), 1 + 2 * 2 * peers);
        // What each executes in kernel and programs, and what the colours mean.
        assert_eq!(count("rect"), 2 * (2 * Contender::ALL.len() + 2));
        for outside in [
            "http://", "https://", "src=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn test_markdown_every_table_line_has_its_columns() {
        let document = markdown(&results());
        let mut columns = None;
        let mut rows = 0;
        for line in document.lines().map(|line| line.replace("\\|", "")) {
            let found = line.starts_with('|').then(|| line.matches('|').count());
            assert!(
                columns.is_none() || found.is_none() || columns == found,
                "{line}"
            );
            rows += usize::from(found.is_some());
            columns = found;
        }
        let peers = Contender::ALL.len() - 1;
        assert!(rows > 2 * (2 * peers + Contender::ALL.len()), "{document}");
        assert!(document.contains("\\<b\\>a\\|b"), "{document}");
    }

    #[test]
    fn test_both_show_every_contender_and_the_hashes() {
        let results = results();
        for text in [html(&results), markdown(&results)] {
            for contender in Contender::ALL {
                assert!(text.contains(contender.name()), "{}", contender.name());
            }
            for part in ["better", &"ab".repeat(32), &"2".repeat(40), "qemu-system"] {
                assert!(text.contains(part), "{part}");
            }
        }
    }

    #[test]
    fn test_both_say_of_an_interrupted_run_that_it_was() {
        let mut results = results();
        for text in [html(&results), markdown(&results)] {
            assert!(!text.contains("was interrupted"));
        }
        results.complete = false;
        results.instructions.clear();
        for text in [html(&results), markdown(&results)] {
            assert!(text.contains("was interrupted"));
        }
    }

    #[test]
    fn test_html_of_instructions_alone_has_no_empty_table() {
        let mut results = results();
        results.deltas.clear();
        let page = html(&results);
        assert!(!page.contains("<table>"));
        assert_eq!(page.matches("<svg").count(), 2);
    }
}
