// SPDX-License-Identifier: MIT
//! Charts as inline SVG, drawn for the width of a phone and coloured by the
//! style sheet of the page that holds them.

use super::histogram::Histogram;
use super::schema::{
    Metric,
    Results,
    Verdict, //
};
use super::stages::Stages;
use crate::stack::Stack;
use std::fmt::Write;

/// Width of every chart in its own units.
pub(crate) const WIDTH: f64 = 380.0;

/// Text made safe for HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // Not allowed in XML, whatever the tools print.
            c if c.is_control() && c != '\n' && c != '\t' => safe.push('\u{fffd}'),
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A drawing under way.
pub(crate) struct Svg {
    body: String,
    height: f64,
    title: String,
}

impl Svg {
    /// An empty drawing of this height in its own units.
    pub(crate) fn new(height: f64, title: impl Into<String>) -> Self {
        Self {
            body: String::new(),
            height,
            title: title.into(),
        }
    }

    /// Adds markup. Text in it must be escaped.
    pub(crate) fn put(&mut self, markup: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(markup);
        self.body.push('\n');
    }

    /// A straight line of a class of the style sheet.
    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.put(format_args!(
            r#"<line class="{class}" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    /// A rectangle of a class of the style sheet that says `title` when pointed at.
    pub(crate) fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64), title: &str) {
        self.put(format_args!(
            r#"<rect class="{class}" x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}"><title>{}</title></rect>"#,
            at.0,
            at.1,
            size.0.max(0.0),
            size.1,
            escape(title)
        ));
    }

    /// Text of a class of the style sheet, escaped here.
    pub(crate) fn text(&mut self, class: &str, at: (f64, f64), text: &str) {
        self.put(format_args!(
            r#"<text class="{class}" x="{:.1}" y="{:.1}">{}</text>"#,
            at.0,
            at.1,
            escape(text)
        ));
    }

    /// The markup.
    pub(crate) fn finish(self) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
            self.height,
            escape(&self.title),
            self.body
        )
    }
}

fn class_of(stack: Stack) -> &'static str {
    match stack {
        Stack::Native => "native",
        Stack::Off => "off",
        Stack::Async => "async",
    }
}

fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::WithinNoise | Verdict::TooFewPairs => "even",
    }
}

/// The name without its tool, which the tables give.
fn short(workload: &str) -> &str {
    workload.strip_prefix("fio/").unwrap_or(workload)
}

/// A difference with its interval, as a chart shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interval<'a> {
    /// Of what.
    pub(crate) name: &'a str,
    /// Per cent.
    pub(crate) delta_pct: f64,
    /// Lower end of its confidence interval, if there is one.
    pub(crate) low_pct: Option<f64>,
    /// Upper end.
    pub(crate) high_pct: Option<f64>,
    /// What it means.
    pub(crate) verdict: Verdict,
}

/// Deltas of one metric with their intervals around a zero line.
pub(crate) fn forest(results: &Results, metric: Metric) -> String {
    let rows: Vec<Interval<'_>> = results
        .rows(metric)
        .filter_map(|row| {
            Some(Interval {
                name: short(&row.workload),
                delta_pct: row.delta_pct?,
                low_pct: row.ci_low_pct,
                high_pct: row.ci_high_pct,
                verdict: row.verdict,
            })
        })
        .collect();
    let title = format!("difference of async in {} by workload", metric.label());
    intervals(&rows, title)
}

/// Differences with their intervals around a zero line.
pub(crate) fn intervals(rows: &[Interval<'_>], title: String) -> String {
    let (left, right, row_height, top) = (8.0, WIDTH - 8.0, 34.0, 4.0);
    let bottom = top + row_height * rows.len() as f64;
    let mut svg = Svg::new(bottom + 22.0, title);
    // A single wild interval must not flatten the rest.
    let reach = rows
        .iter()
        .flat_map(|row| [Some(row.delta_pct), row.low_pct, row.high_pct])
        .flatten()
        .map(f64::abs)
        .fold(5.0, f64::max)
        .min(100.0);
    let x = |pct: f64| {
        let share = (pct.clamp(-reach, reach) + reach) / (2.0 * reach);
        left + share * (right - left)
    };
    for pct in [-reach, -reach / 2.0, 0.0, reach / 2.0, reach] {
        let class = if pct == 0.0 { "zero" } else { "grid" };
        svg.line(class, (x(pct), top), (x(pct), bottom));
        let anchor = match pct {
            pct if pct == -reach => "tick start",
            pct if pct == reach => "tick end",
            _ => "tick mid",
        };
        let label = if pct == 0.0 {
            "0 %".to_owned()
        } else {
            format!("{pct:+.0} %")
        };
        svg.text(anchor, (x(pct), bottom + 14.0), &label);
    }
    for (index, row) in rows.iter().enumerate() {
        let y = top + row_height * index as f64;
        let class = verdict_class(row.verdict);
        let delta = row.delta_pct;
        svg.text("label", (left, y + 13.0), row.name);
        svg.text(
            &format!("value end {class}"),
            (right, y + 13.0),
            &format!("{delta:+.1} % {}", row.verdict),
        );
        let (low, high) = (row.low_pct.unwrap_or(delta), row.high_pct.unwrap_or(delta));
        let middle = y + 23.0;
        svg.line(
            &format!("whisker {class}"),
            (x(low), middle),
            (x(high), middle),
        );
        svg.put(format_args!(
            r#"<circle class="{class}" cx="{:.1}" cy="{middle:.1}" r="4"><title>{}: {delta:+.2} % ({low:+.2} to {high:+.2})</title></circle>"#,
            x(delta),
            escape(row.name)
        ));
    }
    svg.finish()
}

/// Rows and columns of the heat map for a workload of random 4 KiB to 128 KiB
/// reads: (block size in KiB, access), `None` for others.
fn heat_cell(workload: &str) -> Option<(u32, &str)> {
    let rest = workload.strip_prefix("fio/randread-")?;
    let (block, access) = rest.split_once("k-")?;
    Some((block.parse().ok()?, access))
}

/// Delta of the mean latency by block size and queue depth or threads. None
/// when no random read was measured.
pub(crate) fn heat_map(results: &Results) -> Option<String> {
    let mut columns: Vec<&str> = Vec::new();
    let mut blocks: Vec<u32> = Vec::new();
    let cells: Vec<_> = results
        .rows(Metric::LatMeanNs)
        .filter_map(|row| Some((heat_cell(&row.workload)?, row)))
        .collect();
    for ((block, access), _) in &cells {
        if !columns.contains(access) {
            columns.push(access);
        }
        if !blocks.contains(block) {
            blocks.push(*block);
        }
    }
    if cells.is_empty() {
        return None;
    }
    blocks.sort_unstable();
    let (left, top, height) = (38.0, 30.0, 30.0);
    let width = (WIDTH - left) / columns.len().max(4) as f64;
    let mut svg = Svg::new(
        top + height * blocks.len() as f64 + 4.0,
        "difference of async in mean latency by block size and queue depth",
    );
    for (index, column) in columns.iter().enumerate() {
        let x = left + width * (index as f64 + 0.5);
        let (mode, depth) = column.rsplit_once('-').unwrap_or((column, ""));
        svg.text("tick mid", (x, 11.0), mode);
        svg.text("tick mid", (x, 23.0), depth);
    }
    for (line, block) in blocks.iter().enumerate() {
        let y = top + height * line as f64;
        svg.text(
            "tick end",
            (left - 5.0, y + height / 2.0 + 4.0),
            &format!("{block}k"),
        );
        for (index, column) in columns.iter().enumerate() {
            let at = (left + width * index as f64 + 1.0, y + 1.0);
            let size = (width - 2.0, height - 2.0);
            let found = cells.iter().find(|(cell, _)| *cell == (*block, *column));
            let Some((_, row)) = found else {
                svg.rect("cell", at, size, "not measured");
                continue;
            };
            let Some(delta) = row.delta_pct else {
                svg.rect("cell", at, size, "not measured");
                continue;
            };
            // Colour says the size, from 5 % on in steps; an uncertain cell has none.
            let step = match row.verdict {
                Verdict::Better | Verdict::Worse => 1 + (delta.abs() / 10.0).min(3.0) as u32,
                Verdict::WithinNoise | Verdict::TooFewPairs => 0,
            };
            let class = format!("cell {} s{step}", verdict_class(row.verdict));
            svg.rect(
                &class,
                at,
                size,
                &format!("{}: {delta:+.1} %, {}", row.workload, row.verdict),
            );
            svg.text(
                &format!("cell-text s{step}"),
                (at.0 + size.0 / 2.0, at.1 + size.1 / 2.0 + 4.0),
                // Adding zero turns a rounded -0 into 0.
                &format!("{:+.0} %", delta.round() + 0.0),
            );
        }
    }
    Some(svg.finish())
}

/// Share of operations slower than a latency, for all stacks of one workload;
/// both axes logarithmic. None without latencies.
pub(crate) fn tail(results: &Results, workload: &str) -> Option<String> {
    let curves: Vec<(Stack, &Histogram)> = results
        .histograms
        .iter()
        .filter(|row| row.workload == workload && row.bins.total() > 0)
        .map(|row| (row.stack, &row.bins))
        .collect();
    let ends = |p: f64| {
        curves
            .iter()
            .filter_map(move |(_, bins)| bins.percentile(p))
    };
    let low = (ends(0.0).min()?.max(1) as f64).ln();
    let high = (ends(0.9999).max()?.max(2) as f64).ln();
    let high = high.max(low + 0.5);
    let (left, right, top, bottom) = (44.0, WIDTH - 10.0, 8.0, 190.0);
    // Down to one operation in 10,000, as far as there are that many.
    let floor = 1e-4f64.ln();
    let x = |ns: f64| left + (ns.ln().clamp(low, high) - low) / (high - low) * (right - left);
    let y = |share: f64| top + (share.ln().clamp(floor, 0.0) / floor) * (bottom - top);
    let mut svg = Svg::new(bottom + 30.0, format!("latency distribution of {workload}"));
    for (share, label) in [
        (1.0, "0 %"),
        (0.5, "50 %"),
        (0.1, "90 %"),
        (0.01, "99 %"),
        (0.001, "99.9 %"),
        (0.0001, "99.99 %"),
    ] {
        svg.line("grid", (left, y(share)), (right, y(share)));
        svg.text("tick end", (left - 4.0, y(share) + 4.0), label);
    }
    for ns in latency_ticks(low.exp(), high.exp()) {
        svg.line("grid", (x(ns), top), (x(ns), bottom));
        svg.text("tick mid", (x(ns), bottom + 13.0), &tick_label(ns));
    }
    for (stack, bins) in curves {
        let mut path = String::new();
        let mut share = 1.0;
        let mut drawn = f64::MIN;
        for (latency, rest) in bins.exceedance() {
            let at = x(latency as f64);
            // Steps too narrow to be seen would only make the page large.
            if at - drawn < 0.4 && rest > 0.0 {
                share = rest;
                continue;
            }
            drawn = at;
            let verb = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{verb}{at:.1} {:.1}", y(share));
            // The last operation leaves nothing above it: the line ends there.
            if rest > 0.0 {
                let _ = write!(path, "L{at:.1} {:.1}", y(rest));
            }
            share = rest.max(1e-12);
        }
        svg.put(format_args!(
            r#"<path class="curve {}" d="{path}"/>"#,
            class_of(stack)
        ));
    }
    Some(svg.finish())
}

/// Up to six round latencies (1, 2, 5 times a power of ten) in the range.
fn latency_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (0..=12).map(|power| 10f64.powi(power));
    let series = |steps: &'static [f64]| -> Vec<f64> {
        decades
            .clone()
            .flat_map(|decade| steps.iter().map(move |step| step * decade))
            .filter(|tick| *tick >= low && *tick <= high)
            .collect()
    };
    let fine = series(&[1.0, 2.0, 5.0]);
    if fine.len() <= 6 {
        fine
    } else {
        series(&[1.0])
    }
}

fn tick_label(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.0} µs", ns / 1e3),
        ns if ns < 1e9 => format!("{:.0} ms", ns / 1e6),
        ns => format!("{:.0} s", ns / 1e9),
    }
}

/// Stacked bars of the stages.
pub(crate) fn stages(stages: &Stages) -> String {
    let longest = stages
        .bars
        .iter()
        .map(|(_, parts)| parts.iter().map(|(_, size)| size).sum::<f64>())
        .fold(f64::MIN_POSITIVE, f64::max);
    let (left, right, top) = (52.0, WIDTH - 8.0, 8.0);
    let bar = 42.0;
    let names: Vec<&str> = stages
        .bars
        .first()
        .map(|(_, parts)| parts.iter().map(|(name, _)| *name).collect())
        .unwrap_or_default();
    let legend = top + bar * stages.bars.len() as f64 + 16.0;
    let height = legend + 17.0 * names.len() as f64;
    let mut svg = Svg::new(height, stages.caption.clone());
    for (line, (stack, parts)) in stages.bars.iter().enumerate() {
        let y = top + bar * line as f64;
        svg.text("label end", (left - 6.0, y + 25.0), stack.name());
        let mut from = left;
        let total: f64 = parts.iter().map(|(_, size)| size).sum();
        for (index, (name, size)) in parts.iter().enumerate() {
            let width = size / longest * (right - left);
            let shown = stages.show(*size);
            svg.rect(
                &format!("stage{index}"),
                (from, y + 8.0),
                (width, 26.0),
                &format!("{name}: {shown}"),
            );
            // Six units per character: only where it fits.
            if width > shown.chars().count() as f64 * 6.0 + 6.0 {
                svg.text(
                    &format!("stage-text on{index}"),
                    (from + width / 2.0, y + 25.0),
                    &shown,
                );
            }
            from += width;
        }
        svg.text(
            "tick start",
            (left, y + 5.0),
            &format!("total {}", stages.show(total)),
        );
    }
    for (index, name) in names.iter().enumerate() {
        let y = legend + 17.0 * index as f64;
        svg.rect(
            &format!("stage{index}"),
            (left, y - 10.0),
            (11.0, 11.0),
            name,
        );
        svg.text("tick start", (left + 17.0, y), name);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::super::stages::from_latencies;
    use super::*;
    use proptest::prelude::*;

    fn parsed(svg: &str) -> usize {
        let document = roxmltree::Document::parse(svg).expect("well-formed");
        assert_eq!(document.root_element().tag_name().name(), "svg");
        document
            .descendants()
            .filter(|node| node.is_element())
            .count()
    }

    #[test]
    fn test_charts_are_well_formed_and_hold_every_row() {
        let results = example::results();
        let rows = results.workloads().len();
        let forest = forest(&results, Metric::LatMeanNs);
        assert!(parsed(&forest) > rows);
        assert_eq!(forest.matches("<circle").count(), rows);
        assert!(parsed(&heat_map(&results).unwrap()) > 12);
        assert!(parsed(&stages(&from_latencies(&results).unwrap())) > 6);
        for workload in results.workloads() {
            let svg = tail(&results, workload).unwrap();
            parsed(&svg);
            assert_eq!(svg.matches("<path").count(), 3);
        }
    }

    #[test]
    fn test_charts_without_data_return_none() {
        let mut results = example::results();
        results.histograms.clear();
        results.deltas.clear();
        assert_eq!(tail(&results, "fio/randread-4k-buffered-qd1"), None);
        assert_eq!(heat_map(&results), None);
        parsed(&forest(&results, Metric::Iops));
    }

    #[test]
    fn test_tail_one_latency_only_is_well_formed() {
        let mut results = example::results();
        results.histograms.truncate(1);
        results.histograms[0].bins = Histogram::from(vec![(1000, 5)]);
        parsed(&tail(&results, "fio/randread-4k-buffered-qd1").unwrap());
    }

    #[test]
    fn test_tail_never_draws_outside() {
        let results = example::results();
        let svg = tail(&results, "fio/randread-4k-buffered-qd1").unwrap();
        for pair in svg
            .split(['M', 'L'])
            .skip(1)
            .filter_map(|p| p.split_once(' '))
        {
            let Ok(x) = pair.0.parse::<f64>() else {
                continue;
            };
            assert!((0.0..=WIDTH).contains(&x), "{x}");
        }
    }

    #[test]
    fn test_heat_cell_other_workload_returns_none() {
        assert_eq!(
            heat_cell("fio/randread-128k-uring-qd8"),
            Some((128, "uring-qd8"))
        );
        assert_eq!(heat_cell("fio/seqread-128k-buffered-qd1"), None);
        assert_eq!(heat_cell("fio/randread-xk-buffered"), None);
    }

    proptest! {
        #[test]
        fn test_escape_any_text_is_well_formed(text in ".*") {
            let svg = format!("<a b=\"{0}\">{0}</a>", escape(&text));
            prop_assert!(roxmltree::Document::parse(&svg).is_ok(), "{}", svg);
        }
    }
}
