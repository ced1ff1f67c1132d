// SPDX-License-Identifier: MIT
//! `report.html`: one page without outside resources.

use super::schema::{
    Delta,
    Metric,
    Results,
    Verdict, //
};
use super::stages::Stages;
use super::svg;
use super::svg::escape;
use super::text;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(crate) fn page(results: &Results, stages: Option<&Stages>) -> String {
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = write_body(&mut body, results, stages);
    document(&text::headline(results), &body)
}

/// A page of the markup `body`, with the style of all pages.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>aios compare: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title)
    )
}

fn write_body(body: &mut String, results: &Results, stages: Option<&Stages>) -> std::fmt::Result {
    let provenance = &results.provenance;
    writeln!(
        body,
        "<header><h1>What the asynchronous I/O stack buys</h1>"
    )?;
    writeln!(
        body,
        "<p class=\"soft\">{} · {}</p></header>",
        escape(&text::headline(results)),
        escape(&provenance.date)
    )?;
    if !results.complete {
        writeln!(
            body,
            "<p class=\"warn\">This run was interrupted: pairs or workloads are missing.</p>"
        )?;
    }
    if let Some(caveat) = text::caveat(provenance) {
        writeln!(body, "<p class=\"soft\">{}</p>", escape(caveat))?;
    }
    for note in &provenance.notes {
        writeln!(body, "<p class=\"warn\">{}</p>", escape(note))?;
    }
    write_counts(body, results)?;
    write_figure(
        body,
        "Mean latency, async against the baseline",
        "Left of zero is faster. The bar is the 95 % confidence interval.",
        &svg::forest(results, Metric::LatMeanNs),
    )?;
    if let Some(map) = svg::heat_map(results) {
        write_figure(
            body,
            "Random reads by block size and queue depth",
            "Difference of the mean latency. Blue is better, orange is worse, uncoloured is within noise; \
             rows are block sizes, columns how the file is read (qd: queue depth, t: threads).",
            &map,
        )?;
    }
    if let Some(stages) = stages {
        write_figure(
            body,
            "Where one read goes",
            &stages.caption,
            &svg::stages(stages),
        )?;
    }
    write_tails(body, results)?;
    write_table(body, results)?;
    writeln!(
        body,
        "<h2>Method</h2>\n<p>{}</p>",
        escape(&text::method(provenance))
    )?;
    writeln!(body, "<h2>To repeat it</h2>\n<dl>")?;
    for (what, value) in text::facts(provenance) {
        writeln!(
            body,
            "<dt>{}</dt><dd>{}</dd>",
            escape(&what),
            escape(&value)
        )?;
    }
    writeln!(body, "</dl>")?;
    for line in text::qemu(provenance) {
        writeln!(body, "<pre>{}</pre>", escape(line))?;
    }
    Ok(())
}

/// A chart with what it shows, and how to read it.
pub(crate) fn write_figure(
    body: &mut String,
    title: &str,
    caption: &str,
    svg: &str,
) -> std::fmt::Result {
    writeln!(
        body,
        "<section><h2>{}</h2>\n<figure class=\"wide\">\n{svg}<figcaption>{}</figcaption></figure></section>",
        escape(title),
        escape(caption)
    )
}

fn write_counts(body: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(body, "<ul class=\"counts\">")?;
    for (verdict, count) in text::counts(results) {
        writeln!(
            body,
            "<li><b class=\"{}\">{count}</b>{verdict}</li>",
            class(verdict)
        )?;
    }
    writeln!(body, "</ul>")
}

fn write_tails(body: &mut String, results: &Results) -> std::fmt::Result {
    let charts: Vec<_> = results
        .workloads()
        .into_iter()
        .filter_map(|workload| Some((workload, svg::tail(results, workload)?)))
        .collect();
    if charts.is_empty() {
        return Ok(());
    }
    writeln!(body, "<section><h2>Latency distributions</h2>")?;
    write!(
        body,
        "<p class=\"soft\">Share of operations that are faster (down, logarithmic) than a latency (right, logarithmic). \
         The curve further left is faster.<br/>"
    )?;
    for stack in text::stacks(results) {
        write!(body, "<span class=\"key {0}\"></span>{0}", stack.name())?;
    }
    writeln!(body, "</p>\n<div class=\"grid\">")?;
    for (workload, chart) in charts {
        writeln!(
            body,
            "<figure><h3>{}</h3>\n{chart}</figure>",
            escape(workload)
        )?;
    }
    writeln!(body, "</div></section>")
}

fn write_table(body: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(
        body,
        "<section><h2>All numbers</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>workload</th><th>metric</th>\
         <th>native</th><th>off</th><th>async</th><th>async Δ</th><th>95 % interval</th><th>verdict</th>\
         <th>off Δ</th><th>95 % interval</th><th>off verdict</th></tr></thead>\n<tbody>"
    )?;
    for workload in results.workloads() {
        for (index, metric) in Metric::ALL.into_iter().enumerate() {
            if let Some(row) = results.delta(workload, metric) {
                write_row(body, row, index == 0)?;
            }
        }
    }
    writeln!(body, "</tbody></table></div></section>")
}

fn write_row(body: &mut String, row: &Delta, first: bool) -> std::fmt::Result {
    let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| row.metric.show(v));
    let name = if first {
        escape(&row.workload)
    } else {
        String::new()
    };
    write!(
        body,
        "<tr{}><th scope=\"row\">{name}</th><td class=\"left\">{}</td>",
        if first { " class=\"first\"" } else { "" },
        row.metric.label()
    )?;
    for stack in [row.native, row.off, row.on] {
        write!(body, "<td>{}</td>", value(stack))?;
    }
    write!(
        body,
        "<td>{}</td><td>{}</td><td class=\"{}\">{}</td>",
        text::percent(row.delta_pct),
        text::interval(row.ci_low_pct, row.ci_high_pct),
        class(row.verdict),
        row.verdict
    )?;
    writeln!(
        body,
        "<td>{}</td><td>{}</td><td class=\"{}\">{}</td></tr>",
        text::percent(row.off_delta_pct),
        text::interval(row.off_ci_low_pct, row.off_ci_high_pct),
        row.off_verdict.map_or("even", class),
        row.off_verdict.map_or("-", Verdict::label)
    )
}

/// The style sheet's class of a verdict.
pub(crate) fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::WithinNoise | Verdict::TooFewPairs => "even",
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::super::stages;
    use super::*;

    #[test]
    fn test_page_is_well_formed_and_needs_nothing_from_outside() {
        let results = example::results();
        let stages = stages::from_latencies(&results);
        let page = page(&results, stages.as_ref());
        let markup = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        roxmltree::Document::parse(markup).expect("well-formed");
        for outside in [
            "http://", "https://", "src=", "url(", "@import", "<script", "<link",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn test_page_shows_every_workload_verdict_and_hash() {
        let results = example::results();
        let page = page(&results, None);
        for row in &results.deltas {
            assert!(page.contains(&escape(&row.workload)), "{}", row.workload);
        }
        for part in [
            "better",
            "worse",
            "within noise",
            &"ab".repeat(32),
            &"2".repeat(40),
            "qemu-system",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn test_page_interrupted_run_says_so() {
        let mut results = example::results();
        assert!(!page(&results, None).contains("was interrupted"));
        results.complete = false;
        assert!(page(&results, None).contains("was interrupted"));
    }
}
