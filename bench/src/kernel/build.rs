// SPDX-License-Identifier: MIT
//! Out-of-tree builds in the cache.
//!
//! There is one folder for each base, flavour and variant, so that a changed
//! series or configuration compiles no more than it must. A stamp in it says
//! by a digest of base, series, configuration and compilers what it was
//! finished for; while that is the same, make is not even started.

use super::config::{
    self,
    Fragments,
    Start, //
};
use super::make::Make;
use super::prepare::{
    Kernel,
    State,
    check_path,
    save_json, //
};
use super::series::{
    self,
    Step, //
};
use super::source::Origin;
use super::{
    BuildId,
    Built,
    Flavour,
    Variant, //
};
use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use crate::setup::base::Base;
use crate::setup::{
    self,
    fetch::sha256_file, //
};
use crate::space;
use serde::{
    Deserialize,
    Serialize, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// Space that a new build folder takes, in bytes; a debug build is larger.
const BUILD_SPACE: u64 = 2 << 30;

/// Files that a full build of the base configuration makes, for the first
/// progress bar.
const STEPS: u64 = 2_400;

/// Says what a build folder was finished for.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    key: String,
    id: BuildId,
}

/// One build: what goes in, and the folder it is made in.
struct Job {
    base: Base,
    origin: Origin,
    /// Empty for native.
    steps: Vec<Step>,
    flavour: Flavour,
    variant: Variant,
    fragments: Fragments,
    out: PathBuf,
}

/// The build folder of `flavour` and `variant`.
fn folder(ctx: &Context, origin: &Origin, flavour: Flavour, variant: Variant) -> PathBuf {
    let name = format!("{}-{}-{}", origin.key(), flavour.name(), variant.name());
    ctx.cache().join("build").join(name)
}

fn stamp_path(out: &Path) -> PathBuf {
    out.join("aios-stamp.json")
}

impl Job {
    fn new(
        ctx: &Context,
        flavour: Flavour,
        variant: Variant,
        source: Option<&Path>,
    ) -> Result<Self> {
        let base = Base::load(ctx.root())?;
        let origin = Origin::new(&base, source)?;
        let out = folder(ctx, &origin, flavour, variant);
        Ok(Self {
            steps: match (flavour, variant) {
                (Flavour::Native, Variant::Mutants) => {
                    return Err(
                        Error::new("mutants are of the patched kernel").hint("leave out --native")
                    );
                }
                (Flavour::Native, _) => Vec::new(),
                (Flavour::Patched, Variant::Mutants) => series::load_mutants(ctx.root())?,
                (Flavour::Patched, _) => series::load(ctx.root())?,
            },
            fragments: Fragments::of(ctx.root(), flavour, variant)?,
            base,
            origin,
            flavour,
            variant,
            out,
        })
    }

    /// Digest of everything that the build depends on.
    fn key(&self, state: &State) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&state.base_sha256);
        add(&self.fragments.text);
        add(&self.base.bindgen.version);
        for program in ["rustc", self.variant.compiler().program()] {
            add(&Tool::new(program)
                .arg("--version")
                .text()
                .unwrap_or_default());
        }
        for step in &self.steps {
            add(&step.hash);
        }
        format!("{:x}", hash.finalize())
    }

    fn stamp(&self) -> Option<Stamp> {
        serde_json::from_slice(&fs::read(stamp_path(&self.out)).ok()?).ok()
    }

    /// The build, if it is finished for exactly this input.
    fn finished(&self, ctx: &Context) -> Result<Option<Built>> {
        let (Some(stamp), Some(state)) = (self.stamp(), State::load(ctx, &self.origin)?) else {
            return Ok(None);
        };
        let built = Built::new(&self.out, stamp.id);
        Ok((built.is_whole() && stamp.key == self.key(&state)).then_some(built))
    }

    /// Configures and makes it in the checked-out tree.
    fn make(&self, ctx: &Context, kernel: &Kernel, tools: &setup::KernelTools) -> Result<()> {
        let name = format!("{}-{}", self.flavour.name(), self.variant.name());
        let make = Make::new(kernel.dir(), &self.out, self.flavour.local_version(), tools)
            .by(self.variant.compiler());
        let fresh = !self.out.exists() && !self.seed(ctx)?;
        let logs = if ctx.dry_run {
            ctx.cache().join("log")
        } else {
            fs::create_dir_all(&self.out).at("create the folder", &self.out)?;
            let _ = fs::remove_file(stamp_path(&self.out));
            ctx.cache_dir("log")?
        };
        let log = logs.join(format!("{name}-config.log"));
        config::configure(
            ctx,
            &make,
            Start::AllNo,
            &self.fragments,
            &self.fragments,
            &log,
        )?;
        make.run(
            ctx,
            &["bzImage", "modules"],
            &format!("Building the {name} kernel"),
            fresh.then_some(STEPS),
            &logs.join(format!("{name}.log")),
        )?;
        Ok(())
    }

    /// Starts the build folder as a copy of another one, where most objects
    /// are the same; gives whether there was one.
    fn seed(&self, ctx: &Context) -> Result<bool> {
        let (flavour, variant) = match (self.flavour, self.variant) {
            (_, Variant::Mutants) => (Flavour::Patched, Variant::Bench),
            (Flavour::Native, variant) => (Flavour::Patched, variant),
            (Flavour::Patched, variant) => (Flavour::Native, variant),
        };
        let from = folder(ctx, &self.origin, flavour, variant);
        if !stamp_path(&from).is_file() {
            return Ok(false);
        }
        copy_build(ctx, &from, &self.out)?;
        Ok(true)
    }
}

/// Copies a finished build folder. The objects stay valid in the copy: they
/// name the source folder, which is the same, and their own folder only in
/// the few commands whose paths are mended here.
pub(super) fn copy_build(ctx: &Context, from: &Path, to: &Path) -> Result<()> {
    let temp = to.with_extension("tmp");
    let copy = Tool::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .args([from, &temp]);
    if ctx.dry_run {
        println!("{}", copy.line());
        return Ok(());
    }
    if temp.exists() {
        fs::remove_dir_all(&temp).at("remove", &temp)?;
    }
    copy.output()?;
    let _ = fs::remove_file(stamp_path(&temp));
    for part in ["rust", "tools"] {
        rename_in_commands(&temp.join(part), from, to)?;
    }
    fs::rename(&temp, to).at("move", &temp)
}

/// Replaces the build folder's path in kbuild's `.cmd` files below `dir`.
fn rename_in_commands(dir: &Path, from: &Path, to: &Path) -> Result<()> {
    let (from_text, to_text) = (from.to_string_lossy(), to.to_string_lossy());
    for entry in fs::read_dir(dir).at("read the folder", dir)? {
        let path = entry.at("read the folder", dir)?.path();
        let meta = fs::symlink_metadata(&path).at("look at", &path)?;
        if meta.is_dir() {
            rename_in_commands(&path, from, to)?;
        } else if meta.is_file() && path.extension().is_some_and(|ext| ext == "cmd") {
            let text = fs::read(&path).at("read", &path)?;
            let text = String::from_utf8_lossy(&text);
            if text.contains(&*from_text) {
                fs::write(&path, text.replace(&*from_text, &to_text)).at("write", &path)?;
            }
        }
    }
    Ok(())
}

/// Builds (or finds finished in the cache) one kernel; installs what is needed.
/// `source`: a user's own tarball or tree instead of the pinned package.
pub(crate) fn build(
    ctx: &Context,
    flavour: Flavour,
    variant: Variant,
    source: Option<&Path>,
) -> Result<Built> {
    let job = Job::new(ctx, flavour, variant, source)?;
    if let Some(built) = job.finished(ctx)? {
        return Ok(built);
    }
    check_path(ctx.cache())?;
    setup::ensure(ctx, variant.compiler().needs())?;
    let tools = setup::kernel_tools(ctx)?;
    let mut kernel = Kernel::open(ctx, &job.base, &job.origin)?;
    // Another run may have built it while this one waited.
    if let Some(built) = job.finished(ctx)? {
        return Ok(built);
    }
    if !job.out.exists() {
        space::check(ctx.cache(), BUILD_SPACE, "a kernel build")?;
    }
    let commit = match flavour {
        Flavour::Native => kernel.state().base_commit.clone(),
        Flavour::Patched => {
            kernel.commit_series(ctx, &job.steps)?;
            kernel.head().to_owned()
        }
    };
    kernel.checkout(ctx, &commit)?;
    job.make(ctx, &kernel, &tools)?;
    let mut id = BuildId {
        base_version: kernel.state().version.clone(),
        base_sha256: kernel.state().base_sha256.clone(),
        series_commit: commit,
        config_sha256: String::new(),
    };
    if ctx.dry_run {
        return Ok(Built::new(&job.out, id));
    }
    id.config_sha256 = sha256_file(&config::path(&job.out))?;
    let built = Built::new(&job.out, id);
    if !built.is_whole() {
        return Err(Error::new(format!(
            "make left no whole kernel in {}",
            job.out.display()
        ))
        .hint("remove that folder and run it again"));
    }
    let stamp = Stamp {
        key: job.key(kernel.state()),
        id: built.id.clone(),
    };
    save_json(&stamp_path(&job.out), &stamp)?;
    Ok(built)
}

/// A finished build, and whether it is so for what is there now.
pub(super) fn find(
    ctx: &Context,
    flavour: Flavour,
    variant: Variant,
    source: Option<&Path>,
) -> Result<(Built, bool)> {
    let job = Job::new(ctx, flavour, variant, source)?;
    let current = job.finished(ctx)?.is_some();
    let built = job.stamp().map(|stamp| Built::new(&job.out, stamp.id));
    match built {
        Some(built) if built.is_whole() => Ok((built, current)),
        _ => {
            let native = if flavour == Flavour::Native {
                " --native"
            } else {
                ""
            };
            Err(Error::new(format!(
                "the {} {} kernel is not built yet",
                flavour.name(),
                variant.name()
            ))
            .hint(format!(
                "run `cargo aios kernel build{native} --variant {}`",
                variant.name()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::GlobalArgs;
    use tempfile::tempdir;

    fn context(cache: &Path) -> Context {
        Context::new(&GlobalArgs {
            verbose: 0,
            dry_run: false,
            cache: Some(cache.to_path_buf()),
        })
        .unwrap()
    }

    #[test]
    fn test_copy_build_mends_paths_and_drops_the_stamp() {
        let cache = tempdir().unwrap();
        let (from, to) = (
            cache.path().join("a-native"),
            cache.path().join("a-patched"),
        );
        for dir in ["rust", "tools/objtool"] {
            fs::create_dir_all(from.join(dir)).unwrap();
        }
        let command = |dir: &Path| format!("OBJTREE={} rustc\n", dir.display());
        fs::write(from.join("tools/objtool/.x.o.cmd"), command(&from)).unwrap();
        fs::write(from.join("rust/core.o"), command(&from)).unwrap();
        fs::write(stamp_path(&from), "{}").unwrap();
        copy_build(&context(cache.path()), &from, &to).unwrap();
        let mended = fs::read_to_string(to.join("tools/objtool/.x.o.cmd")).unwrap();
        assert_eq!(mended, command(&to));
        // Only commands are text to be changed.
        assert_eq!(
            fs::read_to_string(to.join("rust/core.o")).unwrap(),
            command(&from)
        );
        assert!(!stamp_path(&to).exists());
        let time = |dir: &Path| {
            fs::metadata(dir.join("rust/core.o"))
                .unwrap()
                .modified()
                .unwrap()
        };
        assert_eq!(time(&from), time(&to));
    }

    #[test]
    fn test_find_nothing_built_says_how_to_build() {
        let cache = tempdir().unwrap();
        let ctx = context(cache.path());
        let error = find(&ctx, Flavour::Native, Variant::Debug, None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("kernel build --native --variant debug"),
            "{error}"
        );
    }

    #[test]
    fn test_finished_follows_fragments_and_files() {
        let cache = tempdir().unwrap();
        let ctx = context(cache.path());
        let mut job = Job::new(&ctx, Flavour::Native, Variant::Bench, None).unwrap();
        let state: State = serde_json::from_value(serde_json::json!({
            "fingerprint": job.origin.fingerprint().unwrap(), "base_sha256": "b",
            "version": "7.3.4", "base_commit": "c", "steps": [],
        }))
        .unwrap();
        fs::create_dir_all(cache.path().join("src")).unwrap();
        let path = cache.path().join("src").join(job.origin.key() + ".json");
        save_json(&path, &state).unwrap();
        let id = BuildId {
            base_version: "7.3.4".to_owned(),
            base_sha256: "b".to_owned(),
            series_commit: "c".to_owned(),
            config_sha256: "d".to_owned(),
        };
        let built = Built::new(&job.out, id.clone());
        for file in [
            &built.bzimage,
            &built.vmlinux,
            &built.system_map,
            &built.config,
        ] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let key = job.key(&state);
        save_json(
            &stamp_path(&job.out),
            &Stamp {
                key,
                id: id.clone(),
            },
        )
        .unwrap();
        assert_eq!(job.finished(&ctx).unwrap().unwrap().id, id);
        job.fragments.text.push_str("CONFIG_MORE=y\n");
        assert!(job.finished(&ctx).unwrap().is_none());
        let job = Job::new(&ctx, Flavour::Native, Variant::Bench, None).unwrap();
        fs::remove_file(&built.vmlinux).unwrap();
        assert!(job.finished(&ctx).unwrap().is_none());
    }
}
