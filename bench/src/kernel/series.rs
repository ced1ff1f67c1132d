// SPDX-License-Identifier: MIT
//! `linux/series`: what is put on top of the base, in order.
//!
//! One entry per line; `#` starts a comment, empty lines mean nothing:
//!
//! ```text
//! patch NAME
//! tree SRC -> DEST msg NAME [only FILE...]
//! ```
//!
//! `patch`: the file `linux/patches/NAME`, in `git format-patch` style, whose
//! subject and text are the commit message. `tree`: every file below `SRC` (a
//! folder of this repository, or one file of it; hidden files are left out)
//! becomes a new file below the folder `DEST` of the kernel, committed with
//! the message in `linux/patches/NAME`; `only` picks files, relative to `SRC`.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{
    Component,
    Path,
    PathBuf, //
};

/// The patch with the crash explorer's defects, in the folder of that name.
const MUTANTS: &str = "mutants.patch";

/// One entry of the series: what it says, not yet what it contains.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Patch(String),
    Tree {
        src: String,
        dest: String,
        msg: String,
        only: Vec<String>,
    },
}

/// One entry of the series with its content.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// The file in `linux/patches` that it is known by.
    pub(crate) name: String,
    /// What it does to the kernel.
    pub(crate) change: Change,
    /// SHA-256 over everything that its commit is made of.
    pub(crate) hash: String,
}

/// What a step does to the kernel.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Applies a patch.
    Patch(PathBuf),
    /// Adds files.
    Tree {
        /// The commit message.
        message: PathBuf,
        /// The files, sorted by their place in the kernel.
        files: Vec<Placed>,
    },
}

/// A file of this repository with its place in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Placed {
    /// Path in the kernel tree.
    pub(crate) dest: String,
    /// The file itself.
    pub(crate) src: PathBuf,
    /// Whether it is executable.
    pub(crate) executable: bool,
}

/// Reads the series of the project at `root`.
pub(crate) fn load(root: &Path) -> Result<Vec<Step>> {
    let path = root.join("linux/series");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(source).at("read", &path),
    };
    let mut steps = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let step = parse_line(line).and_then(|entry| entry.map(|e| load_step(root, e)).transpose());
        let at = |error: Error| error.context(format!("linux/series line {}", number + 1));
        if let Some(step) = step.map_err(at)? {
            steps.push(step);
        }
    }
    Ok(steps)
}

/// The series and, on top of it, the defects that the crash explorer must find.
pub(super) fn load_mutants(root: &Path) -> Result<Vec<Step>> {
    let path = root.join("jbd-overlap/mutants").join(MUTANTS);
    let mut steps = load(root)?;
    steps.push(patch(MUTANTS.to_owned(), path)?);
    Ok(steps)
}

/// Parses one line; `None` for a comment or an empty line.
fn parse_line(line: &str) -> Result<Option<Line>> {
    let line = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    let entry = match *words.as_slice() {
        [] => return Ok(None),
        ["patch", name] => Line::Patch(file_name(name)?),
        ["tree", src, "->", dest, "msg", msg, ref rest @ ..] => {
            let only = match *rest {
                [] => Vec::new(),
                ["only", ref files @ ..] if !files.is_empty() => files
                    .iter()
                    .map(|file| relative(file))
                    .collect::<Result<_>>()?,
                _ => return Err(grammar()),
            };
            Line::Tree {
                src: relative(src)?,
                dest: relative(dest)?,
                msg: file_name(msg)?,
                only,
            }
        }
        _ => return Err(grammar()),
    };
    Ok(Some(entry))
}

fn grammar() -> Error {
    Error::new("not understood")
        .hint("write `patch NAME` or `tree SRC -> DEST msg NAME [only FILE...]`")
}

/// A relative path that stays inside the folder it starts from.
fn relative(text: &str) -> Result<String> {
    let plain = Path::new(text)
        .components()
        .all(|part| matches!(part, Component::Normal(name) if name != ".git"));
    if !plain || text.is_empty() || text.contains(['\0', '\\']) {
        return Err(Error::new(format!("the path `{text}` leaves its folder"))
            .hint("write it relative, without `.` or `..`"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The name of a file in `linux/patches`.
fn file_name(text: &str) -> Result<String> {
    if text.contains('/') {
        return Err(Error::new(format!("`{text}` is not in linux/patches"))
            .hint("name the file only, without a folder"));
    }
    relative(text)
}

/// The step of the patch in `path`.
fn patch(name: String, path: PathBuf) -> Result<Step> {
    let text = fs::read(&path).at("read the patch", &path)?;
    let mut hash = Sha256::new();
    // Lengths keep apart what would otherwise run together.
    for bytes in [b"patch".as_slice(), &text] {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(Step {
        name,
        change: Change::Patch(path),
        hash: format!("{:x}", hash.finalize()),
    })
}

fn load_step(root: &Path, line: Line) -> Result<Step> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let (name, change) = match line {
        Line::Patch(name) => {
            let path = root.join("linux/patches").join(&name);
            return patch(name, path);
        }
        Line::Tree {
            src,
            dest,
            msg,
            only,
        } => {
            let message = root.join("linux/patches").join(&msg);
            add(b"tree");
            add(&fs::read(&message).at("read the message", &message)?);
            let files = place(&root.join(&src), &dest, &only)?;
            for file in &files {
                add(file.dest.as_bytes());
                add(if file.executable { b"755" } else { b"644" });
                add(&fs::read(&file.src).at("read", &file.src)?);
            }
            (msg, Change::Tree { message, files })
        }
    };
    Ok(Step {
        name,
        change,
        hash: format!("{:x}", hash.finalize()),
    })
}

/// The files of a `tree` entry with their places.
fn place(src: &Path, dest: &str, only: &[String]) -> Result<Vec<Placed>> {
    let mut files = Vec::new();
    if src.is_file() {
        let name = src.file_name().unwrap_or_default().to_string_lossy();
        files.push(placed(src, format!("{dest}/{name}"))?);
    } else if only.is_empty() {
        walk(src, dest, &mut files)?;
    } else {
        for file in only {
            files.push(placed(&src.join(file), format!("{dest}/{file}"))?);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::new(format!("{} holds no files", src.display())));
    }
    Ok(files)
}

fn walk(dir: &Path, dest: &str, files: &mut Vec<Placed>) -> Result<()> {
    for entry in fs::read_dir(dir).at("read the folder", dir)? {
        let path = entry.at("read the folder", dir)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::new(format!("{} is not named in UTF-8", path.display())))?;
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let dest = format!("{dest}/{name}");
        if fs::symlink_metadata(&path).at("look at", &path)?.is_dir() {
            walk(&path, &dest, files)?;
        } else {
            files.push(placed(&path, dest)?);
        }
    }
    Ok(())
}

fn placed(src: &Path, dest: String) -> Result<Placed> {
    let meta = fs::symlink_metadata(src).at("look at", src)?;
    if !meta.is_file() {
        return Err(Error::new(format!("{} is no regular file", src.display())));
    }
    Ok(Placed {
        dest,
        src: src.to_path_buf(),
        executable: meta.permissions().mode() & 0o100 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{
        TempDir,
        tempdir, //
    };

    fn project(series: &str) -> TempDir {
        let root = tempdir().unwrap();
        let dir = root.path();
        fs::create_dir_all(dir.join("linux/patches")).unwrap();
        fs::create_dir_all(dir.join("new/sub")).unwrap();
        fs::write(dir.join("linux/series"), series).unwrap();
        fs::write(dir.join("linux/patches/0001-a.patch"), "diff").unwrap();
        fs::write(dir.join("linux/patches/0002-b.msg"), "b: add\n").unwrap();
        fs::write(dir.join("new/b.rs"), "b").unwrap();
        fs::write(dir.join("new/sub/a.rs"), "a").unwrap();
        fs::write(dir.join("new/.hidden"), "h").unwrap();
        root
    }

    #[test]
    fn test_load_places_sorted_files_and_skips_hidden_ones() {
        let root =
            project("# head\n\npatch 0001-a.patch # why\ntree new -> block/x msg 0002-b.msg\n");
        let steps = load(root.path()).unwrap();
        assert_eq!(steps.len(), 2);
        let Change::Tree { files, .. } = &steps[1].change else {
            panic!("not a tree")
        };
        let dests: Vec<&str> = files.iter().map(|file| &*file.dest).collect();
        assert_eq!(dests, ["block/x/b.rs", "block/x/sub/a.rs"]);
    }

    #[test]
    fn test_load_only_picks_files() {
        let root = project("tree new -> block/x msg 0002-b.msg only sub/a.rs\n");
        let steps = load(root.path()).unwrap();
        let Change::Tree { files, .. } = &steps[0].change else {
            panic!("not a tree")
        };
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].dest, "block/x/sub/a.rs");
    }

    #[test]
    fn test_load_hash_follows_content_message_and_mode() {
        let root = project("tree new -> block/x msg 0002-b.msg\n");
        let hash = || load(root.path()).unwrap()[0].hash.clone();
        let first = hash();
        assert_eq!(first, hash());
        fs::write(root.path().join("new/b.rs"), "c").unwrap();
        let second = hash();
        assert_ne!(first, second);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path().join("new/b.rs"), mode).unwrap();
        let third = hash();
        assert_ne!(second, third);
        fs::write(root.path().join("linux/patches/0002-b.msg"), "b: other\n").unwrap();
        assert_ne!(third, hash());
    }

    #[test]
    fn test_load_no_series_is_empty() {
        let root = tempdir().unwrap();
        assert!(load(root.path()).unwrap().is_empty());
    }

    #[test]
    fn test_load_hostile_lines_name_the_line() {
        for line in [
            "patch",
            "patch a b",
            "patch ../../etc/passwd",
            "patch sub/0001-a.patch",
            "patch ..",
            "patch missing.patch",
            "tree new",
            "tree new -> block/x",
            "tree new -> /etc msg 0002-b.msg",
            "tree new -> block/../../x msg 0002-b.msg",
            "tree new -> .git/hooks msg 0002-b.msg",
            "tree ../new -> block/x msg 0002-b.msg",
            "tree new -> block/x msg ../0002-b.msg",
            "tree new -> block/x msg 0002-b.msg only",
            "tree new -> block/x msg 0002-b.msg only ../b.rs",
            "tree new -> block/x msg 0002-b.msg also b.rs",
            "tree nothing -> block/x msg 0002-b.msg",
            "tree new -> block/x msg none.msg",
            "drop table",
            "\u{0}",
        ] {
            let root = project(&format!("# one\n{line}\n"));
            let error = load(root.path()).unwrap_err().to_string();
            assert!(
                error.starts_with("linux/series line 2: "),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn test_load_symlink_in_a_tree_is_refused() {
        let root = project("tree new -> block/x msg 0002-b.msg\n");
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("new/link")).unwrap();
        let error = load(root.path()).unwrap_err();
        assert!(error.what().contains("no regular file"), "{error}");
    }
}
