// SPDX-License-Identifier: MIT
//! `virtual-time.html`: latency against device time, one page without outside
//! resources.

use super::plan::Commit;
use super::schema::{
    Calls,
    Results, //
};
use super::table;
use crate::report::html;
use crate::report::svg::{
    Svg,
    WIDTH,
    escape, //
};
use crate::stack::Stack;
use std::fmt::Write;

const METHOD: &str = "The guest's time is virtual: one instruction takes one nanosecond, and a processor that waits \
    waits for nothing else. So latencies are exact and the same on every machine, but an instruction is no cycle: cache \
    misses, memory and device registers cost nothing. The device is null_blk, which takes a set time for each command, \
    however many are in flight. The slope of a line is the number of its times that a call waits for one after the \
    other; where it meets zero are the instructions that no device time hides. What is timed is the call that syncs, \
    without the write before it; for O_DSYNC the write is that call. There is one processor: the threads of fsync-x2 to \
    fsync-x64 share the device's time, not their instructions.";

/// The whole page.
pub(super) fn page(results: &Results) -> String {
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = write_body(&mut body, results);
    html::document("fsync in virtual time", &body)
}

fn write_body(body: &mut String, results: &Results) -> std::fmt::Result {
    let provenance = &results.provenance;
    writeln!(
        body,
        "<header><h1>fsync: latency against device time</h1>\n<p class=\"soft\">{}</p></header>",
        escape(&provenance.date)
    )?;
    if !results.complete {
        writeln!(
            body,
            "<p class=\"warn\">This run was interrupted: measurements are missing.</p>"
        )?;
    }
    writeln!(body, "<p class=\"soft\">{METHOD}</p>\n<p class=\"soft\">")?;
    for stack in Stack::ALL {
        write!(body, "<span class=\"key {0}\"></span>{0}", stack.name())?;
    }
    writeln!(body, "</p>")?;
    for cache in [false, true] {
        for commit in [Commit::Full, Commit::Fast] {
            let of_kind = |calls: &&Calls| (calls.row.cache, calls.row.commit) == (cache, commit);
            let mut calls = results.calls.iter().filter(of_kind).peekable();
            if calls.peek().is_none() {
                continue;
            }
            let with = if cache { "a" } else { "no" };
            writeln!(
                body,
                "<section><h2>{} commit, {with} volatile cache</h2>\n<div class=\"grid\">",
                if commit == Commit::Full {
                    "Full"
                } else {
                    "Fast"
                }
            )?;
            for calls in calls {
                writeln!(
                    body,
                    "<figure><h3>{}: {} round trips</h3>\n{}</figure>",
                    calls.row.call.name(),
                    table::of_stacks(calls, |curve| format!("{:.2}", curve.round_trips)),
                    chart(calls)
                )?;
            }
            writeln!(body, "</div></section>")?;
        }
    }
    write_table(body, results)?;
    write_facts(body, results)
}

fn write_table(body: &mut String, results: &Results) -> std::fmt::Result {
    let shown = results.shown_ns();
    write!(
        body,
        "<section><h2>All numbers</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>call</th><th>round trips</th>\
         <th>of the medians</th><th>instructions</th>"
    )?;
    for &time in &shown {
        write!(body, "<th>latency at {}</th>", table::micros(time as f64))?;
    }
    for &time in &shown {
        write!(body, "<th>ops/s at {}</th>", table::micros(time as f64))?;
    }
    writeln!(body, "</tr></thead>\n<tbody>")?;
    for calls in &results.calls {
        let cells = [
            table::of_stacks(calls, |curve| format!("{:.2}", curve.round_trips)),
            table::of_stacks(calls, |curve| format!("{:.2}", curve.round_trips_p50)),
            table::of_stacks(calls, |curve| format!("{:.0}", curve.serial_instructions)),
        ];
        write!(body, "<tr><th scope=\"row\">{}</th>", calls.row.name())?;
        for cell in cells {
            write!(body, "<td>{cell}</td>")?;
        }
        for &time in &shown {
            write!(body, "<td>{}</td>", table::latency(calls, time))?;
        }
        for &time in &shown {
            let rate = match calls.row.call.has_rate() {
                true => table::rate(calls, time),
                false => String::new(),
            };
            write!(body, "<td>{rate}</td>")?;
        }
        writeln!(body, "</tr>")?;
    }
    writeln!(body, "</tbody></table></div></section>")
}

fn write_facts(body: &mut String, results: &Results) -> std::fmt::Result {
    let provenance = &results.provenance;
    let mut facts = vec![
        ("command", provenance.command.join(" ")),
        ("aios", provenance.aios.clone()),
        ("device times", table::times(&provenance.device_ns)),
        (
            "operations",
            format!("{} after {}", provenance.ops, provenance.warmup),
        ),
        (
            "seeds",
            format!("{} from {}", provenance.repeats, provenance.seed),
        ),
        ("took", format!("{:.0} s", provenance.seconds)),
    ];
    for tool in &provenance.tools {
        facts.push(("tool", format!("{}: {}", tool.name, tool.version)));
    }
    for kernel in &provenance.kernels {
        let series = kernel
            .build
            .as_ref()
            .map(|build| build.series_commit.as_str());
        facts.push((
            "kernel",
            format!(
                "{}: {} {}",
                kernel.name,
                kernel.release,
                series.unwrap_or("")
            ),
        ));
    }
    writeln!(body, "<h2>To repeat it</h2>\n<dl>")?;
    for (what, value) in facts {
        writeln!(body, "<dt>{what}</dt><dd>{}</dd>", escape(&value))?;
    }
    writeln!(body, "</dl>")?;
    for line in &provenance.qemu {
        writeln!(body, "<pre>{}</pre>", escape(line))?;
    }
    Ok(())
}

/// Mean latencies of one call against the device's time, from zero on.
fn chart(calls: &Calls) -> String {
    let points = || calls.stacks.values().flat_map(|curve| &curve.points);
    let high_x = points().map(|point| point.device_ns).max().unwrap_or(1);
    let high_y = points().map(|point| point.lat_mean_ns).fold(1.0, f64::max);
    let (left, right, top, bottom) = (44.0, WIDTH - 10.0, 8.0, 190.0);
    let x = |ns: f64| left + ns / high_x.max(1) as f64 * (right - left);
    let y = |ns: f64| bottom - ns / high_y * (bottom - top);
    let mut svg = Svg::new(
        bottom + 30.0,
        format!("latency of {} against device time", calls.row.name()),
    );
    for step in 0..=4 {
        let ns = high_y * f64::from(step) / 4.0;
        svg.line("grid", (left, y(ns)), (right, y(ns)));
        svg.text(
            "tick end",
            (left - 4.0, y(ns) + 4.0),
            &format!("{:.0} µs", ns / 1e3),
        );
    }
    let times = points().map(|point| point.device_ns);
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    times.dedup();
    let mut drawn = f64::NEG_INFINITY;
    for time in times {
        let at = x(time as f64);
        svg.line("grid", (at, top), (at, bottom));
        // A label takes some forty units.
        if at - drawn > 40.0 {
            let class = if at > right - 20.0 {
                "tick end"
            } else {
                "tick mid"
            };
            svg.text(class, (at, bottom + 13.0), &table::micros(time as f64));
            drawn = at;
        }
    }
    for (stack, curve) in &calls.stacks {
        let mut path = String::new();
        for point in &curve.points {
            let verb = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(
                path,
                "{verb}{:.1} {:.1}",
                x(point.device_ns as f64),
                y(point.lat_mean_ns)
            );
        }
        svg.put(format_args!(
            r#"<path class="curve {}" d="{path}"/>"#,
            stack.name()
        ));
        for point in &curve.points {
            svg.put(format_args!(
                r#"<circle class="{0}" cx="{1:.1}" cy="{2:.1}" r="3"><title>{0}: {3:.1} µs at {4}</title></circle>"#,
                stack.name(),
                x(point.device_ns as f64),
                y(point.lat_mean_ns),
                point.lat_mean_ns / 1e3,
                table::micros(point.device_ns as f64)
            ));
        }
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::results;
    use super::*;

    #[test]
    fn test_page_is_well_formed_and_needs_nothing_from_outside() {
        let results = results();
        let page = page(&results);
        let markup = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let document = roxmltree::Document::parse(markup).expect("well-formed");
        let count = |name: &str| {
            document
                .descendants()
                .filter(|node| node.tag_name().name() == name)
                .count()
        };
        assert_eq!(count("svg"), results.calls.len());
        assert_eq!(count("circle"), results.calls.len() * 3 * 2);
        assert_eq!(count("tr"), results.calls.len() + 1);
        assert!(page.contains("aios &lt;compare&gt;"));
        for outside in ["http://", "https://", "src=", "url(", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn test_chart_stays_inside() {
        let results = results();
        let svg = chart(&results.calls[0]);
        for part in svg.split(['M', 'L']).skip(1) {
            let numbers = part.split(['"', ' ']).take(2);
            let Some([x, y]) = numbers
                .map(|number| number.parse::<f64>().ok())
                .collect::<Option<Vec<f64>>>()
                .and_then(|numbers| <[f64; 2]>::try_from(numbers).ok())
            else {
                continue;
            };
            assert!(
                (0.0..=WIDTH).contains(&x) && (0.0..=190.0).contains(&y),
                "{x} {y}"
            );
        }
    }

    #[test]
    fn test_page_of_an_interrupted_run_says_so() {
        let mut results = results();
        results.complete = false;
        results.calls.clear();
        assert!(page(&results).contains("was interrupted"));
    }
}
