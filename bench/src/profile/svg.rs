// SPDX-License-Identifier: MIT
//! The profile as one self-contained SVG: a bar for each phase and stack, made
//! of layers; drawn for the width of a phone, in light and dark.

use super::layers::Layer;
use super::schema::{
    Phases,
    Profile,
    StackProfile, //
};
use super::table::grouped;
use crate::stack::Stack;
use std::fmt::Write;

/// Width of the drawing in its own units: a phone's.
const WIDTH: f64 = 380.0;
/// Where bars begin; the stack's name stands to the left.
const LEFT: f64 = 58.0;
/// Where the longest bar ends; its number stands to the right.
const RIGHT: f64 = 326.0;
/// Height of a bar and the gap after it.
const BAR: (f64, f64) = (16.0, 5.0);
/// Height of a heading.
const HEADING: f64 = 24.0;
/// Height of a line of the legend.
const LEGEND: f64 = 18.0;

/// Colours of the layers in [`Layer::ALL`]'s order, and of spinning: told apart
/// by people who see fewer colours, and on light and dark ground.
const STYLE: &str = "\
svg { color-scheme: light dark; font: 11px system-ui, sans-serif; }
.page { fill: #ffffff; } text { fill: #1a1c1f; } .soft { fill: #5b6270; }
.title { font-size: 13px; font-weight: 600; } .head { font-size: 12px; font-weight: 600; }
.end { text-anchor: end; }
.l0 { fill: #0072b2; } .l1 { fill: #e69f00; } .l2 { fill: #009e73; } .l3 { fill: #56b4e9; }
.l4 { fill: #7a5195; } .l5 { fill: #cc79a7; } .l6 { fill: #c8b400; } .l7 { fill: #d55e00; }
.l8 { fill: #9aa1ac; } .spin { fill: none; stroke: #7a808a; stroke-dasharray: 3 2; }
@media (prefers-color-scheme: dark) {
.page { fill: #14161a; } text { fill: #e8eaed; } .soft { fill: #a2a9b5; }
.l0 { fill: #2b8cc9; } .l4 { fill: #a07cc0; } .l8 { fill: #6d7480; }
}
";

/// Text made safe for SVG.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A drawing under way, from the top down.
struct Drawing {
    body: String,
    y: f64,
}

impl Drawing {
    fn put(&mut self, markup: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(markup);
        self.body.push('\n');
    }

    fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        self.put(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#,
            escape(text)
        ));
    }

    fn rect(&mut self, class: &str, x: f64, width: f64, title: &str) {
        let (y, height) = (self.y, BAR.0);
        self.put(format_args!(
            r#"<rect class="{class}" x="{x:.2}" y="{y:.1}" width="{:.2}" height="{height}"><title>{}</title></rect>"#,
            width.max(0.0),
            escape(title)
        ));
    }

    /// A bar's name, parts of (class, size, title), and the sum.
    fn bar(&mut self, name: &str, parts: &[(String, f64, String)], unit: f64) {
        let baseline = self.y + BAR.0 - 4.0;
        self.text("end", LEFT - 6.0, baseline, name);
        let mut x = LEFT;
        let mut sum = 0.0;
        for (class, size, title) in parts {
            self.rect(class, x, size * unit, title);
            x += size * unit;
            sum += size;
        }
        self.text("", x + 5.0, baseline, &grouped(sum));
        self.y += BAR.0 + BAR.1;
    }

    fn heading(&mut self, text: &str) {
        self.y += HEADING;
        self.text("head", 8.0, self.y - 7.0, text);
    }
}

/// The size of one phase.
type PhaseOf = fn(&Phases) -> f64;

/// Draws the profile.
pub(crate) fn draw(profile: &Profile) -> String {
    let groups: [(&str, PhaseOf); 4] = [
        ("total work", |phases| phases.total),
        ("before the doorbell", |phases| phases.before_doorbell),
        ("while the device works", |phases| phases.device),
        ("after the completion", |phases| phases.after),
    ];
    let longest = profile
        .stacks
        .values()
        .map(|stack| stack.total)
        .fold(0.0, f64::max);
    let unit = if longest > 0.0 {
        (RIGHT - LEFT) / longest
    } else {
        0.0
    };

    let mut drawing = Drawing {
        body: String::new(),
        y: 0.0,
    };
    drawing.y = 22.0;
    drawing.text("title", 8.0, drawing.y - 4.0, &profile.workload);
    drawing.y += 14.0;
    drawing.text(
        "soft",
        8.0,
        drawing.y - 2.0,
        "kernel instructions per operation",
    );
    for (heading, of) in groups {
        drawing.heading(heading);
        for (stack, counted) in &profile.stacks {
            drawing.bar(stack.name(), &parts(*stack, counted, of), unit);
        }
    }
    if profile.stacks.values().any(|stack| stack.spin > 0.0) {
        let most = profile
            .stacks
            .values()
            .map(|stack| stack.spin)
            .fold(0.0, f64::max);
        drawing.heading("spin (waiting, on a scale of its own)");
        for (stack, counted) in &profile.stacks {
            let title = format!("{}: spin {}", stack.name(), grouped(counted.spin));
            let part = ("spin".to_owned(), counted.spin, title);
            drawing.bar(stack.name(), &[part], (RIGHT - LEFT) / most);
        }
    }
    legend(&mut drawing, profile);
    let height = drawing.y + 8.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" \
         aria-label=\"{}\">\n<style>\n{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height:.0}\"/>\n{}</svg>\n",
        escape(&format!(
            "Kernel instructions per operation, {}",
            profile.workload
        )),
        drawing.body
    )
}

/// The layers' parts of one bar.
fn parts(stack: Stack, counted: &StackProfile, of: PhaseOf) -> Vec<(String, f64, String)> {
    let mut parts = Vec::new();
    for (index, layer) in Layer::ALL.iter().enumerate() {
        let Some(phases) = counted.layer_phases.get(layer) else {
            continue;
        };
        let size = of(phases);
        let title = format!("{}: {} {}", stack.name(), layer.label(), grouped(size));
        parts.push((format!("l{index}"), size, title));
    }
    parts
}

/// The layers that appear, two to a line.
fn legend(drawing: &mut Drawing, profile: &Profile) {
    drawing.y += 12.0;
    let shown = Layer::ALL.iter().enumerate().filter(|(_, layer)| {
        let has = |stack: &StackProfile| stack.layer_phases.contains_key(layer);
        profile.stacks.values().any(has)
    });
    let mut entries = 0;
    for (index, layer) in shown {
        let column = if entries % 2 == 0 { 8.0 } else { WIDTH / 2.0 };
        let y = drawing.y;
        drawing.put(format_args!(
            r#"<rect class="l{index}" x="{column:.1}" y="{y:.1}" width="10" height="10"/>"#
        ));
        drawing.text("", column + 15.0, y + 9.0, layer.label());
        entries += 1;
        if entries % 2 == 0 {
            drawing.y += LEGEND;
        }
    }
    if entries % 2 == 1 {
        drawing.y += LEGEND;
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::tests::profile;
    use super::*;

    #[test]
    fn test_draw_is_well_formed_and_self_contained() {
        let svg = draw(&profile());
        let document = roxmltree::Document::parse(&svg).unwrap();
        let bars = document
            .descendants()
            .filter(|node| node.has_tag_name("title"));
        // Two stacks: four groups of one layer each, and spin.
        assert_eq!(bars.count(), 2 * (4 + 1));
        assert!(svg.contains("prefers-color-scheme: dark"));
        assert_eq!(svg.matches("http").count(), 1, "nothing but the name space");
    }

    #[test]
    fn test_draw_hostile_name_is_escaped() {
        let mut hostile = profile();
        hostile.workload = "<script>\"&".to_owned();
        let svg = draw(&hostile);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts = document.descendants().filter_map(|node| node.text());
        assert!(
            texts.into_iter().any(|text| text == hostile.workload),
            "{svg}"
        );
    }

    #[test]
    fn test_draw_bars_stay_inside() {
        let svg = draw(&profile());
        let value = |tag: &str, key: &str| -> f64 {
            let start = format!(" {key}=\"");
            let (_, rest) = tag.split_once(&start).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        for tag in svg.lines().filter(|line| line.contains("<title>")) {
            assert!(
                value(tag, "x") + value(tag, "width") <= RIGHT + 0.1,
                "{tag}"
            );
        }
    }

    #[test]
    fn test_draw_of_nothing_is_well_formed() {
        let mut empty = profile();
        empty.stacks.clear();
        assert!(roxmltree::Document::parse(&draw(&empty)).is_ok());
    }
}
