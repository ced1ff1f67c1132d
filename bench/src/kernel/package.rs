// SPDX-License-Identifier: MIT
//! The series and the kernel in forms to give away: mails and packages.

use super::config::{
    self,
    Fragments,
    Start, //
};
use super::make::Make;
use super::source::short;
use super::{
    Flavour,
    open,
    series, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::setup::fetch::sha256_file;
use crate::setup::{
    Need,
    kernel_tools, //
};
use crate::space;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// Space for a build with a distribution's configuration, in bytes.
const DEB_SPACE: u64 = 20 << 30;

/// Writes the series as `git format-patch` does, with a cover letter, into
/// the folder `out`; patches of an earlier export there are replaced.
pub(super) fn export(ctx: &Context, out: &Path, source: Option<&Path>) -> Result<u8> {
    let steps = series::load(ctx.root())?;
    if steps.is_empty() {
        return Err(Error::new("linux/series has no entries to export")
            .hint("add a patch or tree entry first"));
    }
    let mut kernel = open(ctx, source, &[])?;
    kernel.commit_series(ctx, &steps)?;
    let base = &kernel.state().base_commit;
    let range = format!("{base}..{}", kernel.head());
    let target = std::path::absolute(out).at("resolve", out)?;
    if !ctx.dry_run {
        fs::create_dir_all(&target).at("create the folder", &target)?;
        for old in patches_in(&target)? {
            fs::remove_file(&old).at("remove", &old)?;
        }
    }
    let tool = kernel
        .git()
        .tool(["format-patch", "-q", "--no-signature", "--numbered"])
        .args([
            "--zero-commit",
            "--cover-letter",
            "--no-renames",
            "--abbrev=12",
        ])
        .arg(format!("--base={base}"))
        // The cover letter is no commit and has no author of its own.
        .env("GIT_COMMITTER_NAME", "aios")
        .env("GIT_COMMITTER_EMAIL", "aios@localhost")
        .arg("-o")
        .arg(&target)
        .arg(range);
    if ctx.dry_run {
        println!("{}", tool.line());
        return Ok(0);
    }
    tool.output()?;
    let written = patches_in(&target)?;
    for patch in &written {
        if patch.to_string_lossy().ends_with("0000-cover-letter.patch") {
            let text = fs::read_to_string(patch).at("read", patch)?;
            let words = fs::read_to_string(ctx.root().join("linux/cover-letter.md"));
            fs::write(patch, cover_letter(&text, words.ok().as_deref())).at("write", patch)?;
        }
        println!("{}", patch.display());
    }
    Ok(0)
}

/// The numbered patches in a folder, sorted.
fn patches_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .at("read the folder", dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let digits = name.bytes().take_while(u8::is_ascii_digit).count();
            digits == 4 && name.ends_with(".patch")
        })
        .collect();
    found.sort();
    Ok(found)
}

/// git's cover letter with the project's `words` in it (subject on the first
/// line), and without the time of writing, so that the same series gives the
/// same files.
fn cover_letter(template: &str, words: Option<&str>) -> String {
    let mut in_head = true;
    let text: String = template
        .split_inclusive('\n')
        .filter(|line| {
            in_head &= !line.trim().is_empty();
            !(in_head && line.starts_with("Date: "))
        })
        .collect();
    let Some(words) = words else { return text };
    let (subject, body) = words.trim().split_once('\n').unwrap_or((words.trim(), ""));
    text.replacen(
        "*** SUBJECT HERE ***",
        subject.trim_start_matches("# ").trim(),
        1,
    )
    .replacen("*** BLURB HERE ***", body.trim(), 1)
}

/// Makes Debian packages of the patched kernel with the configuration `file`
/// of a real machine, and puts them into `out`.
pub(super) fn deb(ctx: &Context, file: &Path, out: &Path, source: Option<&Path>) -> Result<u8> {
    let text = fs::read_to_string(file).at("read the configuration", file)?;
    if !text.lines().any(|line| line.starts_with("CONFIG_")) {
        return Err(
            Error::new(format!("{} is no kernel configuration", file.display()))
                .hint("give the machine's /boot/config-VERSION"),
        );
    }
    if !ctx.dry_run {
        fs::create_dir_all(out).at("create the folder", out)?;
    }
    let mut kernel = open(ctx, source, &[Need::Deb])?;
    let tools = kernel_tools(ctx)?;
    kernel.commit_series(ctx, &series::load(ctx.root())?)?;
    kernel.checkout(ctx, kernel.head())?;
    let config_id = sha256_file(file)?;
    let name = format!(
        "{}-deb-{}",
        short(&kernel.state().base_commit),
        short(&config_id)
    );
    // dpkg-buildpackage puts packages beside the folder it works in.
    let parent = ctx.cache().join("build").join(name);
    let build = parent.join("linux");
    if !build.exists() {
        space::check(ctx.cache(), DEB_SPACE, "a distribution's kernel")?;
    }
    if !ctx.dry_run {
        fs::create_dir_all(&build).at("create the folder", &build)?;
        for old in debs_in(&parent)? {
            fs::remove_file(&old).at("remove", &old)?;
        }
    }
    let logs = if ctx.dry_run {
        ctx.cache().join("log")
    } else {
        ctx.cache_dir("log")?
    };
    let flavour = Flavour::Patched;
    let make = Make::new(kernel.dir(), &build, flavour.local_version(), &tools);
    let fragments = Fragments::load(ctx.root(), &["deb", "aios"], &["aios"])?;
    // What deb.config switches off may not exist for the machine at all.
    let required = Fragments::load(ctx.root(), &["aios"], &["aios"])?;
    let start = Start::File(file);
    config::configure(
        ctx,
        &make,
        start,
        &fragments,
        &required,
        &logs.join("deb-config.log"),
    )?;
    let version = format!("KDEB_PKGVERSION={}-1", kernel.state().version);
    make.run(
        ctx,
        &["bindeb-pkg", &version, "KDEB_CHANGELOG_DIST=unstable"],
        "Building Debian packages",
        None,
        &logs.join("deb.log"),
    )?;
    if ctx.dry_run {
        return Ok(0);
    }
    let debs = debs_in(&parent)?;
    if debs.is_empty() {
        return Err(Error::new("make wrote no packages")
            .hint(format!("see {}", logs.join("deb.log").display())));
    }
    for deb in debs {
        let target = out.join(deb.file_name().unwrap_or_default());
        fs::copy(&deb, &target).at("write", &target)?;
        println!("{}", target.display());
    }
    Ok(0)
}

/// The packages in a folder, sorted.
fn debs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .at("read the folder", dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    #[test]
    fn test_cover_letter_takes_words_and_drops_the_date_of_the_head() {
        let template = "From: a\nDate: now\nSubject: [PATCH 0/1] *** SUBJECT HERE ***\n\n\
                        *** BLURB HERE ***\n\nDate: stays\n";
        assert_eq!(
            cover_letter(template, Some("# One thing\n\nWhy.\n")),
            "From: a\nSubject: [PATCH 0/1] One thing\n\nWhy.\n\nDate: stays\n"
        );
        assert!(cover_letter(template, None).contains("BLURB"));
    }

    #[test]
    fn test_patches_in_leaves_other_files_alone() {
        let dir = tempdir().unwrap();
        for name in [
            "0001-a.patch",
            "0000-cover-letter.patch",
            "notes.patch",
            "0002-b.txt",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = patches_in(dir.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with("0000-cover-letter.patch"));
    }
}
