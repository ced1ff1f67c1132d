// SPDX-License-Identifier: MIT
//! From samples to pages, and `aios report`: two runs against each other.

pub(crate) mod histogram;
pub(crate) mod html;
pub(crate) mod markdown;
pub(crate) mod schema;
pub(crate) mod stages;
pub(crate) mod stats;
pub(crate) mod svg;
pub(crate) mod table;
pub(crate) mod text;

mod difference;
#[cfg(test)]
pub(crate) mod example;

use crate::context::Context;
use crate::error::{
    Error,
    Result, //
};
use crate::files;
use difference::Differences;
use schema::{
    Metric,
    Results, //
};
use stages::Stages;
use std::io::Write;
use std::path::{
    Path,
    PathBuf, //
};

/// Options of `aios report`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// results.json of the first run.
    #[arg(value_name = "A.json")]
    first: PathBuf,
    /// results.json of the second run, compared with the first.
    #[arg(value_name = "B.json")]
    second: PathBuf,
    /// Also write difference.json and difference.md into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the difference as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs `aios report`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    let first = Results::load(&args.first)?;
    let second = Results::load(&args.second)?;
    if let Some(out) = &args.out {
        files::check_writable(out)?;
    }
    let found = Differences::new(&first, &second);
    for warning in &found.warnings {
        ctx.ui.say(format!("warning: {warning}"));
    }
    if found.differences.is_empty() {
        return Err(Error::new("the two runs have no workload in common")
            .hint("run both with the same --only"));
    }
    let json = to_json(&found)?;
    if args.json {
        print(&json)?;
    } else {
        print(&found.table(metrics(ctx), ctx.ui.colour()))?;
    }
    if let Some(out) = &args.out {
        files::write_whole(&out.join("difference.json"), &json)?;
        files::write_whole(&out.join("difference.md"), found.markdown())?;
    }
    Ok(0)
}

/// The metrics of the terminal tables: the mean, and all with `-v`.
fn metrics(ctx: &Context) -> &'static [Metric] {
    if ctx.verbose == 0 {
        &[Metric::LatMeanNs]
    } else {
        &Metric::ALL
    }
}

/// Writes `results.json`, `report.md` and `report.html` into `out`.
pub(crate) fn write(results: &Results, stages: Option<&Stages>, out: &Path) -> Result<()> {
    let derived = stages::from_latencies(results);
    let stages = stages.or(derived.as_ref());
    files::write_whole(&out.join("report.html"), html::page(results, stages))?;
    files::write_whole(&out.join("report.md"), markdown::document(results))?;
    // Last: whoever finds it finds the others.
    files::write_whole(&out.join("results.json"), &to_json(results)?)
}

/// Prints the summary, or the whole document with `json`.
pub(crate) fn show(ctx: &Context, results: &Results, json: bool) -> Result<()> {
    if json {
        return print(&to_json(results)?);
    }
    let mut out = table::table(results, metrics(ctx), ctx.ui.colour());
    let counts: Vec<String> = text::counts(results)
        .into_iter()
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    out.push_str(&format!(
        "\n{}: {} in mean latency\n",
        text::headline(results),
        counts.join(", ")
    ));
    print(&out)
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    let mut json = serde_json::to_string(value)
        .map_err(|error| Error::new(format!("cannot write the results as JSON: {error}")))?;
    json.push('\n');
    Ok(json)
}

/// Prints to standard output; a reader that has gone away is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to", "standard output", &error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn test_write_leaves_the_three_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let results = example::results();
        write(&results, None, dir.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["report.html", "report.md", "results.json"]);
        let read = Results::load(&dir.path().join("results.json")).unwrap();
        assert_eq!(read.samples, results.samples);
    }
}
