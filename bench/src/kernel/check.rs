// SPDX-License-Identifier: MIT
//! Every entry of the series by itself: applies, checkpatch, builds.

use super::build::{
    build,
    copy_build, //
};
use super::config::{
    self,
    Fragments,
    Start, //
};
use super::git::Git;
use super::make::Make;
use super::prepare::Kernel;
use super::series::{
    self,
    Step, //
};
use super::source::Origin;
use super::{
    Flavour,
    Variant, //
};
use crate::context::Context;
use crate::error::{
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::setup::base::Base;
use crate::setup::kernel_tools;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

/// What checkpatch need not say: there is no sign-off before a person mails
/// the series, MAINTAINERS entries name a person too, and filesystems call
/// the tokens of their mount options `Opt_name`.
const IGNORED: &str = "MISSING_SIGN_OFF,FILE_PATH_CHANGES,CAMELCASE";

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should.
    Passed,
    /// Not so; why.
    Failed(String),
    /// Not made; why.
    Skipped(String),
}

/// One check of one entry.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Entry and check.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
}

/// All checks of the series, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct SeriesReport {
    /// One per entry and check.
    pub(crate) cases: Vec<Case>,
}

impl SeriesReport {
    fn add(&mut self, step: &Step, check: &str, (outcome, seconds): (Outcome, f64)) {
        self.cases.push(Case {
            name: case_name(step, check),
            outcome,
            seconds,
        });
    }

    /// Prints one line per check; gives whether one failed.
    pub(crate) fn print(&self) -> bool {
        for case in &self.cases {
            let name = format!("{} ({:.1} s)", case.name, case.seconds);
            match &case.outcome {
                Outcome::Passed => println!("ok       {name}"),
                Outcome::Failed(why) => println!("FAILED   {name}: {why}"),
                Outcome::Skipped(why) => println!("skipped  {name}: {why}"),
            }
        }
        let failed = |case: &Case| matches!(case.outcome, Outcome::Failed(_));
        self.cases.iter().any(failed)
    }
}

/// The checks of each entry, in order.
const CHECKS: [&str; 3] = ["applies", "checkpatch", "builds"];

fn case_name(step: &Step, check: &str) -> String {
    format!("{} {check}", step.name)
}

/// The names of all cases that [`check_series`] will report if every entry
/// applies.
pub(crate) fn series_cases(ctx: &Context) -> Result<Vec<String>> {
    let steps = series::load(ctx.root())?;
    let names = |step| CHECKS.map(|check| case_name(step, check));
    Ok(steps.iter().flat_map(names).collect())
}

/// Checks every entry of the series on the pinned base.
pub(crate) fn check_series(ctx: &Context) -> Result<SeriesReport> {
    run(ctx, None)
}

/// As [`check_series`], on the pinned base or on the user's `source`.
pub(super) fn run(ctx: &Context, source: Option<&Path>) -> Result<SeriesReport> {
    let base = Base::load(ctx.root())?;
    let origin = Origin::new(&base, source)?;
    let native = build(ctx, Flavour::Native, Variant::Bench, source)?;
    let steps = series::load(ctx.root())?;
    let mut kernel = Kernel::open(ctx, &base, &origin)?;
    let applied = kernel.commit_series(ctx, &steps);
    let mut report = SeriesReport::default();
    if ctx.dry_run {
        return Ok(report);
    }

    let out = ctx.cache().join("build").join(origin.key() + "-check");
    if !out.exists() {
        // .config lies at the top of the build folder.
        let from = native.config.parent().unwrap_or(&out);
        copy_build(ctx, from, &out)?;
    }
    let flavour = Flavour::Patched;
    let mut builder = Builder {
        ctx,
        kernel: &kernel,
        make: Make::new(
            kernel.dir(),
            &out,
            flavour.local_version(),
            &kernel_tools(ctx)?,
        ),
        fragments: Fragments::of(ctx.root(), flavour, Variant::Bench)?,
        configured: false,
    };
    let commits: Vec<String> = kernel
        .state()
        .steps
        .iter()
        .map(|done| done.commit.clone())
        .collect();
    let [applies, checkpatch, builds] = CHECKS;
    for (index, step) in steps.iter().enumerate() {
        let Some(commit) = commits.get(index) else {
            let outcome = match &applied {
                Err(error) if index == commits.len() => Outcome::Failed(error.to_string()),
                _ => Outcome::Skipped("an entry before it does not apply".to_owned()),
            };
            report.add(step, applies, (outcome, 0.0));
            continue;
        };
        let checkout = || kernel.checkout(ctx, commit).map(|()| None);
        report.add(step, applies, timed(checkout));
        // Side by side: both only read the sources, and neither fills two CPUs.
        let (linted, built) = thread::scope(|scope| {
            let lint = scope.spawn(|| timed(|| lint(&kernel, commit)));
            let built = timed(|| builder.build(step, commit));
            match lint.join() {
                Ok(linted) => (linted, built),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        report.add(step, checkpatch, linted);
        report.add(step, builds, built);
    }
    Ok(report)
}

/// The outcome of a check, and how long it took in seconds.
fn timed(check: impl FnOnce() -> Result<Option<String>>) -> (Outcome, f64) {
    let begin = Instant::now();
    let outcome = outcome(check());
    (outcome, begin.elapsed().as_secs_f64())
}

/// A check that could not be made is a check that failed.
fn outcome(result: Result<Option<String>>) -> Outcome {
    match result {
        Ok(None) => Outcome::Passed,
        Ok(Some(complaint)) => Outcome::Failed(complaint),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Runs checkpatch on a commit; gives what it complains about.
fn lint(kernel: &Kernel, commit: &str) -> Result<Option<String>> {
    let dir = tempfile::tempdir().at("create", "a temporary folder")?;
    let patch = dir.path().join("patch");
    let text = format_patch(kernel.git(), commit).output()?.stdout;
    fs::write(&patch, text).at("write", &patch)?;
    let tool = Tool::new("perl")
        .args([
            "scripts/checkpatch.pl",
            "--strict",
            "--show-types",
            "--no-summary",
        ])
        .args(["--color=never", "--terse", "--ignore", IGNORED])
        .arg(&patch)
        .dir(kernel.dir());
    let output = tool.command().output().at("run perl in", kernel.dir())?;
    if output.status.success() {
        return Ok(None);
    }
    // Its helpers' tracebacks on standard error matter only if it does
    // not get to complain itself.
    let said = match output.stdout.is_empty() {
        true => output.stderr,
        false => output.stdout,
    };
    Ok(Some(complaints(&String::from_utf8_lossy(&said), &patch)))
}

/// Builds one step of the series after the other.
struct Builder<'a> {
    ctx: &'a Context,
    kernel: &'a Kernel,
    make: Make,
    fragments: Fragments,
    /// The build folder's configuration is the one of the last step built.
    configured: bool,
}

impl Builder<'_> {
    /// Builds the folders that a commit touches; gives the first warning in
    /// files of the commit.
    fn build(&mut self, step: &Step, commit: &str) -> Result<Option<String>> {
        let touched =
            self.kernel
                .git()
                .text(["diff-tree", "--no-commit-id", "--name-only", "-r", commit])?;
        let touched: Vec<&str> = touched.lines().collect();
        let targets = targets(self.kernel.dir(), &touched);
        let logs = self.ctx.cache_dir("log")?;
        self.configured &= !touched.iter().any(|path| is_kconfig(path));
        if !self.configured {
            // Options that come with later entries do not exist yet.
            config::configure(
                self.ctx,
                &self.make,
                Start::AllNo,
                &self.fragments,
                &Fragments::default(),
                &logs.join("check-config.log"),
            )?;
            self.configured = true;
        }
        let log = logs.join(format!("check-{}.log", step.name));
        let what = format!("Building {} after {}", targets.join(" "), step.name);
        self.make.run(self.ctx, &targets, &what, None, &log)?;
        let text = fs::read(&log).at("read the log", &log)?;
        Ok(warning(&String::from_utf8_lossy(&text), &touched))
    }
}

/// `git format-patch` of one commit to standard output.
fn format_patch(git: &Git, commit: &str) -> Tool {
    git.tool(["format-patch", "-1", "--stdout", "--no-signature", commit])
}

/// What checkpatch printed, on one line, without the patch's own path.
fn complaints(text: &str, patch: &Path) -> String {
    let name = format!("{}:", patch.display());
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.replace(&name, "line "))
        .filter(|line| !line.trim().is_empty())
        .collect();
    let mut shown = lines
        .iter()
        .take(5)
        .cloned()
        .collect::<Vec<_>>()
        .join(" | ");
    if lines.len() > 5 {
        shown.push_str(&format!(" | and {} more", lines.len() - 5));
    }
    shown
}

/// What make has to build for the touched files: for each the nearest folder
/// with a Makefile. Headers and the rust folder are no targets: whatever is
/// built first makes the bindings, which include them.
fn targets(tree: &Path, touched: &[&str]) -> Vec<String> {
    const NO_TARGETS: [&str; 7] = [
        "include",
        "rust",
        "Documentation",
        "scripts",
        "tools",
        "samples",
        "usr",
    ];
    let mut found = BTreeSet::new();
    for path in touched {
        if NO_TARGETS
            .iter()
            .any(|top| path.split('/').next() == Some(top))
        {
            continue;
        }
        let folder = Path::new(path)
            .ancestors()
            .skip(1)
            .take_while(|dir| !dir.as_os_str().is_empty())
            .find(|dir| {
                let dir = tree.join(dir);
                dir.join("Makefile").is_file() || dir.join("Kbuild").is_file()
            });
        if let Some(folder) = folder {
            found.insert(format!("{}/", folder.display()));
        }
    }
    let outermost: Vec<String> = found
        .iter()
        .filter(|dir| {
            !found
                .iter()
                .any(|other| other != *dir && dir.starts_with(&**other))
        })
        .cloned()
        .collect();
    if outermost.is_empty() {
        vec!["prepare".to_owned()]
    } else {
        outermost
    }
}

/// Whether configurations depend on the file.
fn is_kconfig(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("Kconfig")
}

/// The first warning about one of the touched files in a build's output.
fn warning(log: &str, touched: &[&str]) -> Option<String> {
    log.lines()
        .filter(|line| line.contains("warning:") || line.contains("--> "))
        .find(|line| touched.iter().any(|path| line.contains(path)))
        .map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn test_targets_are_the_nearest_folders_with_a_makefile() {
        let tree = tempdir().unwrap();
        for dir in ["block", "fs/ext4"] {
            fs::create_dir_all(tree.path().join(dir)).unwrap();
            fs::write(tree.path().join(dir).join("Makefile"), "").unwrap();
        }
        fs::create_dir_all(tree.path().join("block/lbio/core")).unwrap();
        fs::write(tree.path().join("Makefile"), "").unwrap();
        let touched = [
            "block/lbio/core/lib.rs",
            "block/Kconfig",
            "fs/ext4/file.c",
            "include/linux/fs.h",
            "MAINTAINERS",
        ];
        assert_eq!(targets(tree.path(), &touched), ["block/", "fs/ext4/"]);
        fs::write(tree.path().join("block/lbio/Makefile"), "").unwrap();
        assert_eq!(targets(tree.path(), &touched), ["block/", "fs/ext4/"]);
        assert_eq!(targets(tree.path(), &["block/lbio/x.c"]), ["block/lbio/"]);
        assert_eq!(targets(tree.path(), &["include/linux/fs.h"]), ["prepare"]);
    }

    #[test]
    fn test_kconfig_files_are_known_by_name() {
        for path in ["Kconfig", "block/Kconfig", "lib/Kconfig.debug"] {
            assert!(is_kconfig(path), "{path}");
        }
        for path in ["scripts/kconfig/conf.c", "block/Makefile", "Kconfig/x.c"] {
            assert!(!is_kconfig(path), "{path}");
        }
    }

    #[test]
    fn test_warning_is_about_touched_files_only() {
        let log = "/src/drivers/a.c:1:1: warning: old\n  --> /src/block/p.rs:3:1\n";
        assert_eq!(warning(log, &["fs/x.c"]), None);
        let found = warning(log, &["block/p.rs"]).unwrap();
        assert_eq!(found, "--> /src/block/p.rs:3:1");
    }

    #[test]
    fn test_complaints_are_one_line_without_the_path() {
        let text = "/t/patch:7: WARNING:X: y\n".repeat(7);
        let line = complaints(&text, Path::new("/t/patch"));
        assert!(line.starts_with("line 7: WARNING:X: y | "), "{line}");
        assert!(line.ends_with("and 2 more"), "{line}");
    }

    #[test]
    fn test_outcome_of_an_error_is_failed() {
        let error = crate::error::Error::new("no perl");
        assert_eq!(outcome(Err(error)), Outcome::Failed("no perl".to_owned()));
        assert_eq!(outcome(Ok(None)), Outcome::Passed);
    }
}
