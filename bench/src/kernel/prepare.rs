// SPDX-License-Identifier: MIT
//! The prepared kernel tree: one git repository in the cache with the base
//! as its first commit and one commit for each entry of the series.
//!
//! Commits are made in the object store, without the work tree, and then
//! checked out at once: only files that differ are written, whatever was
//! re-applied in between, and an interrupted run leaves nothing half-applied.
//! There is one work tree for native and patched builds, because the objects
//! of one then serve the other: kbuild's commands name the source folder.

use super::git::{
    self,
    Git, //
};
use super::series::{
    Change,
    Step, //
};
use super::source::{
    Origin,
    in_series,
    version_of, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::files;
use crate::setup;
use crate::setup::base::Base;
use crate::space;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs::{
    self,
    File, //
};
use std::path::{
    Path,
    PathBuf, //
};

/// Space for the sources and their git objects, in bytes.
const SOURCE_SPACE: u64 = 4 << 30;

/// What is known of a tree in the cache; written when it is true.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`Origin::fingerprint`] of what was unpacked.
    fingerprint: String,
    /// SHA-256 of the package, tarball or tree.
    pub(crate) base_sha256: String,
    /// Upstream version, from the Makefile.
    pub(crate) version: String,
    /// The commit of the unpatched base.
    pub(crate) base_commit: String,
    /// The entries that are committed on top, in order.
    pub(crate) steps: Vec<Done>,
}

/// An entry of the series that is committed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    /// [`Step::hash`].
    pub(crate) hash: String,
    /// Its commit.
    pub(crate) commit: String,
}

impl State {
    fn path(ctx: &Context, origin: &Origin) -> PathBuf {
        ctx.cache().join("src").join(origin.key() + ".json")
    }

    /// What is known of the tree of `origin`, if it is unpacked and current.
    pub(crate) fn load(ctx: &Context, origin: &Origin) -> Result<Option<Self>> {
        let Ok(text) = fs::read(Self::path(ctx, origin)) else {
            return Ok(None);
        };
        let Ok(state) = serde_json::from_slice::<Self>(&text) else {
            return Ok(None);
        };
        Ok((state.fingerprint == origin.fingerprint()?).then_some(state))
    }

    fn save(&self, path: &Path) -> Result<()> {
        save_json(path, self)
    }

    /// How many entries of `steps` are committed already.
    fn common(&self, steps: &[Step]) -> usize {
        let same = |(done, step): &(&Done, &Step)| done.hash == step.hash;
        self.steps.iter().zip(steps).take_while(same).count()
    }
}

/// Writes JSON so that a reader sees the old or the new file, never a part.
pub(crate) fn save_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| Error::new(format!("cannot write {}: {source}", path.display())))?;
    files::write_whole(path, text)
}

/// The kernel tree in the cache, locked against other runs.
#[derive(Debug)]
pub(crate) struct Kernel {
    git: Git,
    state: State,
    state_path: PathBuf,
    /// `None` in a dry run.
    _lock: Option<File>,
}

impl Kernel {
    /// The tree of `origin`, unpacked and committed if it was not yet.
    pub(crate) fn open(ctx: &Context, base: &Base, origin: &Origin) -> Result<Self> {
        let dir = ctx.cache().join("src").join(origin.key());
        let git = Git::new(&dir);
        let state_path = State::path(ctx, origin);
        let lock = if ctx.dry_run {
            None
        } else {
            let folder = ctx.cache_dir("src")?;
            let lock = setup::lock(&folder.join(origin.key() + ".lock"))?;
            git.unlock();
            Some(lock)
        };
        let state = match State::load(ctx, origin)? {
            Some(state) if dir.join(".git").is_dir() => state,
            _ if ctx.dry_run => print_import(ctx, base, origin, &git)?,
            _ => {
                let _ = fs::remove_file(&state_path);
                let state = import(ctx, base, origin, &git)?;
                state.save(&state_path)?;
                state
            }
        };
        Ok(Self {
            git,
            state,
            state_path,
            _lock: lock,
        })
    }

    /// The source folder.
    pub(crate) fn dir(&self) -> &Path {
        self.git.dir()
    }

    /// Its repository.
    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    /// What is known of it.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The last commit: the base if no entry is committed.
    pub(crate) fn head(&self) -> &str {
        let last = self.state.steps.last();
        last.map_or(&self.state.base_commit, |done| &done.commit)
    }

    /// Commits the series: entries that are committed already stay, the rest
    /// is made anew from the first that differs. Files are not touched.
    pub(crate) fn commit_series(&mut self, ctx: &Context, steps: &[Step]) -> Result<()> {
        let kept = self.state.common(steps);
        if kept == steps.len() && kept == self.state.steps.len() {
            return Ok(());
        }
        let scratch = tempfile::tempdir().at("create", "a temporary folder")?;
        let git = self.git.with_index(&scratch.path().join("index"));
        if ctx.dry_run {
            return print_commits(&git, steps.get(kept..).unwrap_or_default());
        }
        self.state.steps.truncate(kept);
        git.tool(["read-tree", self.head()]).output()?;
        let mut failure = None;
        for step in steps.iter().skip(kept) {
            match commit(
                &git,
                step,
                self.head(),
                self.state.steps.len() + 1,
                scratch.path(),
            ) {
                Ok(commit) => self.state.steps.push(Done {
                    hash: step.hash.clone(),
                    commit,
                }),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        self.state.save(&self.state_path)?;
        self.git
            .tool(["update-ref", "refs/heads/aios", self.head()])
            .output()?;
        failure.map_or(Ok(()), Err)
    }

    /// Makes the source folder that of `commit`; changes by hand are lost.
    pub(crate) fn checkout(&self, ctx: &Context, commit: &str) -> Result<()> {
        for tool in self.git.checkout(commit) {
            if ctx.dry_run {
                println!("{}", tool.line());
            } else {
                tool.output()?;
            }
        }
        Ok(())
    }
}

/// Fails for a folder that kbuild cannot work below.
pub(crate) fn check_path(dir: &Path) -> Result<()> {
    if dir
        .to_string_lossy()
        .contains([' ', '\t', ':', '\'', '"', '$', '#', '%'])
    {
        return Err(Error::new(format!(
            "the kernel cannot be built below {}",
            dir.display()
        ))
        .hint("choose a cache folder without spaces and punctuation with --cache DIR"));
    }
    Ok(())
}

fn import(ctx: &Context, base: &Base, origin: &Origin, git: &Git) -> Result<State> {
    let dir = git.dir();
    if dir.exists() {
        fs::remove_dir_all(dir).at("remove", dir)?;
    }
    space::check(ctx.cache(), SOURCE_SPACE, "kernel sources")?;
    let fingerprint = origin.fingerprint()?;
    fs::create_dir_all(dir).at("create the folder", dir)?;
    let result = fill(ctx, base, origin, git, fingerprint);
    if result.is_err() {
        // Nothing half-unpacked stays behind.
        let _ = fs::remove_dir_all(dir);
    }
    result
}

fn fill(
    ctx: &Context,
    base: &Base,
    origin: &Origin,
    git: &Git,
    fingerprint: String,
) -> Result<State> {
    let dir = git.dir();
    origin.unpack(ctx, dir)?;
    let makefile = fs::read_to_string(dir.join("Makefile")).unwrap_or_default();
    let version = version_of(&makefile)
        .ok_or_else(|| {
            Error::new(format!("{} is no Linux source", origin.describe()))
                .hint("give a tarball or tree of Linux")
        })
        .and_then(|version| {
            if in_series(&version, &base.kernel.series) {
                return Ok(version);
            }
            let series = &base.kernel.series;
            Err(Error::new(format!(
                "{} is Linux {version}, but the series is for {series}.y",
                origin.describe()
            ))
            .hint(format!("give a tarball or tree of Linux {series}.y")))
        })?;
    let spinner = ctx.ui.spinner("Committing the base");
    let committed = commit_base(git, &version);
    spinner.finish_and_clear();
    let base_commit = committed?;
    let base_sha256 = origin.sha256(|| git.text(["ls-tree", "-r", &base_commit]))?;
    Ok(State {
        fingerprint,
        base_sha256,
        version,
        base_commit,
        steps: Vec::new(),
    })
}

fn commit_base(git: &Git, version: &str) -> Result<String> {
    git.init().output()?;
    git.add_all().output()?;
    let tree = git.text(["write-tree"])?;
    let message = git.dir().join(".git/message");
    fs::write(&message, format!("Linux {version}\n")).at("write", &message)?;
    let commit = git.commit_tree(&tree, None, 0, &message).text()?;
    git.tool(["update-ref", "refs/heads/base", &commit])
        .output()?;
    git.tool(["update-ref", "--no-deref", "HEAD", &commit])
        .output()?;
    Ok(commit)
}

/// The dry run of [`import`].
fn print_import(ctx: &Context, base: &Base, origin: &Origin, git: &Git) -> Result<State> {
    origin.unpack(ctx, git.dir())?;
    println!("{}", git.init().line());
    println!("{}", git.add_all().line());
    println!("{}", git.tool(["write-tree"]).line());
    let message = git.dir().join(".git/message");
    println!("{}", git.commit_tree("BASE-TREE", None, 0, &message).line());
    Ok(State {
        fingerprint: String::new(),
        base_sha256: String::new(),
        version: base.kernel.version.clone(),
        base_commit: "base".to_owned(),
        steps: Vec::new(),
    })
}

/// The dry run of [`Kernel::commit_series`].
fn print_commits(git: &Git, steps: &[Step]) -> Result<()> {
    for (index, step) in steps.iter().enumerate() {
        let message = match &step.change {
            Change::Patch(path) => {
                println!("{}", git.apply(path).line());
                path
            }
            Change::Tree { message, files } => {
                for file in files {
                    println!("{}", add_file(git, "BLOB", file).line());
                }
                message
            }
        };
        println!(
            "{}",
            git.commit_tree("TREE", Some("PARENT"), index + 1, message)
                .line()
        );
    }
    Ok(())
}

fn add_file(git: &Git, blob: &str, file: &super::series::Placed) -> crate::process::Tool {
    let mode = if file.executable { "100755" } else { "100644" };
    git.tool(["update-index", "--add", "--cacheinfo"])
        .arg(format!("{mode},{blob},{}", file.dest))
}

/// Makes the commit of one entry on `parent`, whose tree the index holds.
fn commit(git: &Git, step: &Step, parent: &str, number: usize, scratch: &Path) -> Result<String> {
    let message = match &step.change {
        Change::Patch(path) => {
            apply(git, &step.name, path)?;
            git::message_of(git, path, scratch)?
        }
        Change::Tree { message, files } => {
            add_files(git, &step.name, files)?;
            let text = fs::read_to_string(message).at("read the message", message)?;
            git::tidy_message(&text)
        }
    };
    if message.trim().is_empty() {
        return Err(Error::new(format!("linux/patches/{} is empty", step.name))
            .hint("write the commit message into it"));
    }
    let file = scratch.join("message");
    fs::write(&file, message).at("write", &file)?;
    let tree = git.text(["write-tree"])?;
    git.commit_tree(&tree, Some(parent), number, &file).text()
}

fn add_files(git: &Git, name: &str, files: &[super::series::Placed]) -> Result<()> {
    let there = git
        .tool(["--literal-pathspecs", "ls-files", "--"])
        .args(files.iter().map(|file| &file.dest))
        .text()?;
    if let Some(path) = there.lines().next() {
        return Err(Error::new(format!(
            "{name}: the kernel has {path} already (a tree entry only adds files)"
        ))
        .hint("change it with a patch entry"));
    }
    let blobs = git
        .tool(["hash-object", "-w", "--no-filters", "--"])
        .args(files.iter().map(|file| &file.src))
        .text()?;
    for (file, blob) in files.iter().zip(blobs.lines()) {
        add_file(git, blob, file).output()?;
    }
    Ok(())
}

fn apply(git: &Git, name: &str, patch: &Path) -> Result<()> {
    let tool = git.apply(patch);
    tracing::debug!("{}", tool.line());
    let output = tool.command().output().at("run git on", patch)?;
    if output.status.success() {
        return Ok(());
    }
    let text = fs::read(patch).at("read the patch", patch)?;
    let reason = apply_failure(
        &String::from_utf8_lossy(&output.stderr),
        &String::from_utf8_lossy(&text),
    );
    Err(Error::new(format!("{name} does not apply: {reason}"))
        .hint(format!("refresh linux/patches/{name} for this base")))
}

/// What `git apply` complained about, with the hunk of `patch` it means.
fn apply_failure(stderr: &str, patch: &str) -> String {
    let mut errors = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("error: "));
    let Some(first) = errors.next() else {
        return stderr.trim().to_owned();
    };
    let place = first
        .strip_prefix("patch failed: ")
        .and_then(|place| place.rsplit_once(':'))
        .and_then(|(file, line)| Some((file, line.parse::<u64>().ok()?)));
    let Some((file, line)) = place else {
        return first.to_owned();
    };
    let mut current = "";
    let mut hunks = Vec::new();
    for text in patch.lines() {
        if let Some(name) = text.strip_prefix("--- a/").or(text.strip_prefix("+++ b/")) {
            current = name;
        } else if text.starts_with("@@ -") && current == file {
            hunks.push(text);
        }
    }
    let start = |hunk: &&str| {
        let rest = hunk.strip_prefix("@@ -").unwrap_or_default();
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest.get(..end).and_then(|digits| digits.parse().ok()) == Some(line)
    };
    match hunks.iter().position(start) {
        Some(index) => format!(
            "{file}, hunk {} of {} ({})",
            index + 1,
            hunks.len(),
            hunks.get(index).copied().unwrap_or_default()
        ),
        None => format!("{file}, line {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::series;
    use tempfile::{
        TempDir,
        tempdir, //
    };

    const PATCH: &str = "Subject: [PATCH] f: change\n\nWhy.\n---\n\
        diff --git a/f b/f\n--- a/f\n+++ b/f\n\
        @@ -1,2 +1,2 @@ top\n-one\n+ONE\n two\n\
        @@ -9,2 +9,2 @@ end\n nine\n-ten\n+TEN\n";

    /// A project with a series, and a tiny "kernel" that is committed.
    fn fixture(series_text: &str) -> (TempDir, Kernel) {
        let temp = tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("linux/patches")).unwrap();
        fs::create_dir_all(root.join("new")).unwrap();
        fs::create_dir_all(root.join("tree")).unwrap();
        fs::write(root.join("linux/series"), series_text).unwrap();
        fs::write(root.join("linux/patches/1.patch"), PATCH).unwrap();
        fs::write(root.join("linux/patches/2.msg"), "new: add\n\nText.\n").unwrap();
        fs::write(root.join("new/g"), "g\n").unwrap();
        let lines = "one two three four five six seven eight nine ten";
        fs::write(root.join("tree/f"), lines.replace(' ', "\n") + "\n").unwrap();
        fs::write(root.join("tree/same"), "same\n").unwrap();
        fs::write(root.join("tree/.gitignore"), "*\n").unwrap();
        let git = Git::new(&root.join("tree"));
        let base_commit = commit_base(&git, "7.3.4").unwrap();
        let kernel = Kernel {
            git,
            state: State {
                fingerprint: String::new(),
                base_sha256: String::new(),
                version: "7.3.4".to_owned(),
                base_commit,
                steps: Vec::new(),
            },
            state_path: root.join("state.json"),
            _lock: None,
        };
        (temp, kernel)
    }

    fn context() -> Context {
        Context::new(&crate::context::GlobalArgs {
            verbose: 0,
            dry_run: false,
            cache: None,
        })
        .unwrap()
    }

    const BOTH: &str = "patch 1.patch\ntree new -> dir msg 2.msg\n";

    #[test]
    fn test_commit_series_makes_one_reproducible_commit_each() {
        let ids: Vec<Vec<String>> = (0..2)
            .map(|_| {
                let (temp, mut kernel) = fixture(BOTH);
                let steps = series::load(temp.path()).unwrap();
                kernel.commit_series(&context(), &steps).unwrap();
                kernel.checkout(&context(), kernel.head()).unwrap();
                let dir = kernel.dir();
                assert_eq!(fs::read_to_string(dir.join("dir/g")).unwrap(), "g\n");
                assert!(fs::read_to_string(dir.join("f")).unwrap().contains("TEN"));
                let log = kernel.git.text(["log", "--format=%s", "HEAD"]).unwrap();
                assert_eq!(log, "new: add\nf: change\nLinux 7.3.4");
                kernel
                    .state
                    .steps
                    .into_iter()
                    .map(|done| done.commit)
                    .collect()
            })
            .collect();
        assert_eq!(ids[0].len(), 2);
        assert_eq!(ids[0], ids[1]);
    }

    #[test]
    fn test_commit_series_after_an_edit_keeps_the_prefix_and_file_times() {
        let (temp, mut kernel) = fixture(BOTH);
        let load = || series::load(temp.path()).unwrap();
        kernel.commit_series(&context(), &load()).unwrap();
        kernel.checkout(&context(), kernel.head()).unwrap();
        let first = kernel.state.steps[0].commit.clone();
        let time = |name: &str| {
            let meta = fs::metadata(temp.path().join("tree").join(name)).unwrap();
            meta.modified().unwrap()
        };
        let before = (time("f"), time("same"), time("dir/g"));
        fs::write(temp.path().join("new/g"), "changed\n").unwrap();
        kernel.commit_series(&context(), &load()).unwrap();
        kernel.checkout(&context(), kernel.head()).unwrap();
        assert_eq!(kernel.state.steps[0].commit, first);
        assert_eq!((time("f"), time("same")), (before.0, before.1));
        assert_ne!(time("dir/g"), before.2);
    }

    #[test]
    fn test_checkout_repairs_what_was_changed_by_hand() {
        let (temp, kernel) = fixture("");
        let file = temp.path().join("tree/f");
        fs::write(&file, "broken").unwrap();
        fs::write(temp.path().join("tree/stray"), "x").unwrap();
        kernel.checkout(&context(), kernel.head()).unwrap();
        assert!(fs::read_to_string(file).unwrap().starts_with("one\n"));
        assert!(!temp.path().join("tree/stray").exists());
    }

    #[test]
    fn test_commit_series_bad_hunk_names_file_and_hunk() {
        let (temp, mut kernel) = fixture("tree new -> dir msg 2.msg\npatch 1.patch\n");
        let patch = temp.path().join("linux/patches/1.patch");
        fs::write(&patch, PATCH.replace("-ten", "-eleven")).unwrap();
        let steps = series::load(temp.path()).unwrap();
        let error = kernel.commit_series(&context(), &steps).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("1.patch does not apply: f, hunk 2 of 2"),
            "{text}"
        );
        // What applied is kept.
        assert_eq!(kernel.state.steps.len(), 1);
    }

    #[test]
    fn test_commit_series_tree_over_a_kernel_file_is_refused() {
        let (temp, mut kernel) = fixture("tree new -> . msg 2.msg\n");
        fs::rename(temp.path().join("new/g"), temp.path().join("new/f")).unwrap();
        fs::write(
            temp.path().join("linux/series"),
            "tree new/f -> sub msg 2.msg\ntree new/f -> sub msg 2.msg\n",
        )
        .unwrap();
        let steps = series::load(temp.path()).unwrap();
        let error = kernel.commit_series(&context(), &steps).unwrap_err();
        assert!(error.what().contains("has sub/f already"), "{error}");
    }

    #[test]
    fn test_apply_failure_reads_other_complaints() {
        for (stderr, expected) in [
            (
                "error: x.c: does not exist in index\n",
                "x.c: does not exist in index",
            ),
            (
                "error: corrupt patch at line 7\n",
                "corrupt patch at line 7",
            ),
            (
                "error: patch failed: f:77\nerror: f: patch does not apply\n",
                "f, line 77",
            ),
            ("fatal: bad\n", "fatal: bad"),
        ] {
            assert_eq!(apply_failure(stderr, PATCH), expected);
        }
    }

    #[test]
    fn test_check_path_with_a_space_is_refused() {
        assert!(check_path(Path::new("/a b/c")).is_err());
        assert!(check_path(Path::new("/a_b/c-1.2")).is_ok());
    }
}
