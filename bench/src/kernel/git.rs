// SPDX-License-Identifier: MIT
//! git on the prepared kernel tree, untouched by the user's configuration.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use std::path::{
    Path,
    PathBuf, //
};

/// Author and committer of every commit.
const NAME: &str = "aios";
/// Their address.
const EMAIL: &str = "aios@localhost";
/// Date of the base commit, 2026-01-01 00:00:00 UTC, in seconds since 1970;
/// each commit after it is a minute later.
const EPOCH: u64 = 1_767_225_600;

/// A repository with its work tree, and the index to work with.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    dir: PathBuf,
    index: PathBuf,
}

impl Git {
    /// The repository in `dir` with its own index.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            index: dir.join(".git/index"),
        }
    }

    /// The same repository with another index: the work tree stays as it is.
    pub(crate) fn with_index(&self, index: &Path) -> Self {
        Self {
            dir: self.dir.clone(),
            index: index.to_path_buf(),
        }
    }

    /// The work tree.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the lock files that a killed git left. The caller holds the
    /// tree's own lock, so that no git is at work.
    pub(crate) fn unlock(&self) {
        for name in ["index", "HEAD", "refs/heads/base", "refs/heads/aios"] {
            let _ = std::fs::remove_file(self.dir.join(format!(".git/{name}.lock")));
        }
    }

    /// `git ARGS`, not run yet.
    pub(crate) fn tool<const N: usize>(&self, args: [&str; N]) -> Tool {
        Tool::new("git")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_COUNT", "0")
            .env("GIT_INDEX_FILE", &self.index)
            .env("LC_ALL", "C")
            .dir(&self.dir)
            .arg("--git-dir=.git")
            .arg("--work-tree=.")
            .args(args)
    }

    /// Runs `git ARGS` and gives what it prints.
    pub(crate) fn text<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        self.tool(args).text()
    }

    /// A new repository.
    pub(crate) fn init(&self) -> Tool {
        self.tool(["init", "-q", "--template="])
    }

    /// Puts every file of the work tree into the index, ignored ones too.
    /// Nothing is lost if the machine goes down, so nothing is synced.
    pub(crate) fn add_all(&self) -> Tool {
        self.tool([
            "-c",
            "core.fsync=none",
            "-c",
            "core.looseCompression=1",
            "add",
            "-f",
            "-A",
            ".",
        ])
    }

    /// Applies a patch to the index; context must match exactly.
    pub(crate) fn apply(&self, patch: &Path) -> Tool {
        self.tool(["apply", "--cached", "--whitespace=nowarn"])
            .arg(patch)
    }

    /// A commit of `tree` on `parent`, the `number`th of the tree (the base
    /// is 0), with the message in a file. Same input, same id, anywhere.
    pub(crate) fn commit_tree(
        &self,
        tree: &str,
        parent: Option<&str>,
        number: usize,
        message: &Path,
    ) -> Tool {
        let date = format!("{} +0000", EPOCH + 60 * number as u64);
        let mut tool = self
            .tool(["-c", "i18n.commitEncoding=UTF-8", "commit-tree"])
            .env("GIT_AUTHOR_NAME", NAME)
            .env("GIT_AUTHOR_EMAIL", EMAIL)
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_NAME", NAME)
            .env("GIT_COMMITTER_EMAIL", EMAIL)
            .env("GIT_COMMITTER_DATE", &date)
            .arg(tree);
        if let Some(parent) = parent {
            tool = tool.args(["-p", parent]);
        }
        tool.arg("-F").arg(message)
    }

    /// Makes the work tree that of `commit`; files that are the same keep
    /// their times, so that make builds no more than it must: also in a cache
    /// that was copied from elsewhere, whose files are other ones by number.
    pub(crate) fn checkout(&self, commit: &str) -> [Tool; 2] {
        [
            self.tool([
                "-c",
                "core.checkStat=minimal",
                "-c",
                "core.trustctime=false",
                "checkout",
                "-q",
                "-f",
                "--detach",
                commit,
            ]),
            self.tool(["clean", "-ffdxq"]),
        ]
    }
}

/// Splits a patch in `git format-patch` style: gives the commit message.
/// `scratch` is a folder for git's temporary files.
pub(crate) fn message_of(git: &Git, patch: &Path, scratch: &Path) -> Result<String> {
    let body = scratch.join("body");
    let file = std::fs::File::open(patch).at("open the patch", patch)?;
    let tool = git
        .tool(["mailinfo", "--encoding=UTF-8"])
        .arg(&body)
        .arg(scratch.join("diff"));
    let output = tool
        .command()
        .stdin(file)
        .output()
        .at("run git on", patch)?;
    let headers = String::from_utf8_lossy(&output.stdout).into_owned();
    let subject = headers
        .lines()
        .find_map(|line| line.strip_prefix("Subject: "))
        .map(str::trim)
        .filter(|subject| !subject.is_empty() && output.status.success())
        .ok_or_else(|| {
            Error::new(format!("{} has no Subject line", patch.display()))
                .hint("write it as `git format-patch` does")
        })?;
    let body = std::fs::read_to_string(&body).at("read the message of", patch)?;
    Ok(tidy_message(&format!("{subject}\n\n{body}")))
}

/// A commit message without space at line ends and empty lines at its end.
pub(crate) fn tidy_message(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::{
        Duration,
        SystemTime, //
    };
    use tempfile::tempdir;

    #[test]
    fn test_message_of_format_patch_returns_subject_and_body() {
        let dir = tempdir().unwrap();
        let patch = dir.path().join("p.patch");
        fs::write(
            &patch,
            "From 0 Mon Sep 17 00:00:00 2001\nFrom: a <a@b>\nSubject: [PATCH 2/3] mm: do a\n thing\n\n\
             Why it is done.\n\nMore.\n---\n f | 1 +\n\ndiff --git a/f b/f\n",
        )
        .unwrap();
        let message = message_of(&Git::new(dir.path()), &patch, dir.path()).unwrap();
        assert_eq!(message, "mm: do a thing\n\nWhy it is done.\n\nMore.\n");
    }

    #[test]
    fn test_message_of_bare_diff_returns_an_error() {
        let dir = tempdir().unwrap();
        let patch = dir.path().join("p.patch");
        fs::write(&patch, "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n").unwrap();
        let error = message_of(&Git::new(dir.path()), &patch, dir.path()).unwrap_err();
        assert!(error.what().contains("no Subject"), "{error}");
    }

    #[test]
    fn test_checkout_in_a_copy_keeps_the_times_of_files() {
        let dir = tempdir().unwrap();
        let (here, copy) = (dir.path().join("here"), dir.path().join("copy"));
        fs::create_dir(&here).unwrap();
        let git = Git::new(&here);
        git.init().output().unwrap();
        fs::write(here.join("a"), "x").unwrap();
        let old = SystemTime::now() - Duration::from_secs(1000);
        fs::File::options()
            .write(true)
            .open(here.join("a"))
            .and_then(|file| file.set_modified(old))
            .unwrap();
        git.add_all().output().unwrap();
        let tree = git.text(["write-tree"]).unwrap();
        let message = here.join(".git/message");
        fs::write(&message, "base\n").unwrap();
        let commit = git.commit_tree(&tree, None, 0, &message).text().unwrap();
        let copied = Tool::new("cp").arg("-a").arg(&here).arg(&copy).output();
        copied.unwrap();
        for tool in Git::new(&copy).checkout(&commit) {
            tool.output().unwrap();
        }
        let modified = |dir: &Path| fs::metadata(dir.join("a")).unwrap().modified().unwrap();
        assert_eq!(modified(&copy), modified(&here));
    }

    #[test]
    fn test_commit_tree_is_reproducible() {
        let ids: Vec<String> = (0..2)
            .map(|_| {
                let dir = tempdir().unwrap();
                let git = Git::new(dir.path());
                git.init().output().unwrap();
                fs::write(dir.path().join("a"), "x\r\n").unwrap();
                fs::write(dir.path().join(".gitignore"), "a\n").unwrap();
                git.add_all().output().unwrap();
                let tree = git.text(["write-tree"]).unwrap();
                let message = dir.path().join(".git/message");
                fs::write(&message, "base\n").unwrap();
                git.commit_tree(&tree, None, 0, &message).text().unwrap()
            })
            .collect();
        assert_eq!(ids[0], ids[1]);
        // Pinned: a change of author, date or content would show here.
        assert_eq!(ids[0].len(), 40);
    }
}
