// SPDX-License-Identifier: MIT
//! Kernel configurations from the fragments in `linux/config`.

use super::make::Make;
use super::{
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
use std::collections::BTreeMap;
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// A value that a fragment asks for; `None` for "is not set".
type Wanted = BTreeMap<String, Option<String>>;

/// Fragments put together, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fragments {
    /// Their text.
    pub(crate) text: String,
}

impl Fragments {
    /// Reads `names` (without `.config`) from the project at `root`; those
    /// in `optional` need not exist.
    pub(crate) fn load(root: &Path, names: &[&str], optional: &[&str]) -> Result<Self> {
        let mut text = String::new();
        for name in names {
            let path = root.join(format!("linux/config/{name}.config"));
            match fs::read_to_string(&path) {
                Ok(part) => text.push_str(&part),
                Err(source)
                    if source.kind() == std::io::ErrorKind::NotFound && optional.contains(name) => {
                }
                Err(source) => return Err(source).at("read the fragment", &path),
            }
            text.push('\n');
        }
        Ok(Self { text })
    }

    /// The fragments of a build: options that only the patched kernel has
    /// are in `aios.config`.
    pub(crate) fn of(root: &Path, flavour: Flavour, variant: Variant) -> Result<Self> {
        let mut names = vec!["base"];
        match variant {
            Variant::Bench | Variant::Mutants => {}
            Variant::Debug => names.push("debug"),
            Variant::Kasan => names.extend(["debug", "kasan"]),
        }
        if flavour == Flavour::Patched {
            names.push("aios");
        }
        Self::load(root, &names, &["aios"])
    }
}

/// What a configuration starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Everything off.
    AllNo,
    /// A configuration of the user's.
    File(&'a Path),
}

/// Configures the build folder of `make`. The `.config` is left alone if it
/// comes out the same, so that make sees no change. Fails if an option did not
/// come out as the fragments in `required` ask, part or all of `fragments`.
pub(crate) fn configure(
    ctx: &Context,
    make: &Make,
    start: Start,
    fragments: &Fragments,
    required: &Fragments,
    log: &Path,
) -> Result<()> {
    let out = make.out();
    // Worked on beside the real one; kconfig keeps its own temporary files
    // next to it.
    let new = out.join("aios-new.config");
    let fragment = out.join("aios-fragment.config");
    if !ctx.dry_run {
        let _ = fs::remove_file(log);
        fs::write(&fragment, &fragments.text).at("write", &fragment)?;
    }
    match start {
        Start::AllNo => with_config(make.tool(&["allnoconfig"]), &new).logged(ctx, log)?,
        Start::File(file) if ctx.dry_run => {
            println!("cp {} {}", file.display(), new.display());
        }
        Start::File(file) => {
            fs::copy(file, &new).at("copy the configuration", file)?;
        }
    }
    let merge = Tool::new(make.source().join("scripts/kconfig/merge_config.sh"))
        .args(["-m", "-Q"])
        .arg(&new)
        .arg(&fragment)
        .dir(out);
    with_config(merge, &new).logged(ctx, log)?;
    with_config(make.tool(&["olddefconfig"]), &new).logged(ctx, log)?;
    if ctx.dry_run {
        return Ok(());
    }
    let text = fs::read_to_string(&new).at("read", &new)?;
    check(&required.text, &text)?;
    let config = out.join(".config");
    if fs::read_to_string(&config).is_ok_and(|old| old == text) {
        fs::remove_file(&new).at("remove", &new)
    } else {
        fs::rename(&new, &config).at("write", &config)
    }
}

fn with_config(tool: Tool, config: &Path) -> Tool {
    tool.env("KCONFIG_CONFIG", config)
}

/// The options in the text of a fragment or of a `.config`.
fn options(text: &str) -> Wanted {
    text.lines().filter_map(option).collect()
}

fn option(line: &str) -> Option<(String, Option<String>)> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("# ") {
        let name = rest.strip_suffix(" is not set")?;
        return name.starts_with("CONFIG_").then(|| (name.to_owned(), None));
    }
    let (name, value) = line.split_once('=')?;
    let value = (value != "n").then(|| value.to_owned());
    name.starts_with("CONFIG_")
        .then(|| (name.to_owned(), value))
}

/// Fails with the options of `fragments` that are not so in `config`.
fn check(fragments: &str, config: &str) -> Result<()> {
    let got = options(config);
    let lost: Vec<String> = options(fragments)
        .into_iter()
        .filter_map(|(name, wanted)| {
            let got = got.get(&name).cloned().flatten();
            let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "n".to_owned());
            (got != wanted).then(|| format!("{name}={} (is {})", show(&wanted), show(&got)))
        })
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "the kernel's configuration lost {}",
        lost.join(", ")
    ))
    .hint("a dependency is missing or the option is gone: mend linux/config"))
}

/// The `.config` of a build folder.
pub(crate) fn path(out: &Path) -> PathBuf {
    out.join(".config")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_check_names_every_lost_option() {
        let fragments =
            "# about\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_N=16\n# CONFIG_C is not set\nCONFIG_D=n\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=8\nCONFIG_C=y\n";
        let text = check(fragments, config).unwrap_err().to_string();
        for lost in [
            "CONFIG_B=m (is n)",
            "CONFIG_N=16 (is 8)",
            "CONFIG_C=n (is y)",
        ] {
            assert!(text.contains(lost), "{text}");
        }
        assert!(!text.contains("CONFIG_A"), "{text}");
        assert!(!text.contains("CONFIG_D"), "{text}");
    }

    #[test]
    fn test_check_takes_the_last_of_two_values() {
        let fragments = "CONFIG_A=y\nCONFIG_A=n\n";
        check(fragments, "# CONFIG_A is not set\n").unwrap();
    }

    #[test]
    fn test_options_ignores_junk() {
        assert!(options("x\n=y\n# CONFIG_A\nFOO=1\n").is_empty());
    }

    #[test]
    fn test_of_patched_has_what_native_has_and_more() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let native = Fragments::of(&root, Flavour::Native, Variant::Bench).unwrap();
        let patched = Fragments::of(&root, Flavour::Patched, Variant::Debug).unwrap();
        let all = options(&patched.text);
        assert!(all.contains_key("CONFIG_PROVE_LOCKING"));
        assert!(!all.contains_key("CONFIG_KASAN"));
        let kasan = Fragments::of(&root, Flavour::Patched, Variant::Kasan).unwrap();
        let more = options(&kasan.text);
        assert!(more.contains_key("CONFIG_KASAN"));
        assert!(all.keys().all(|name| more.contains_key(name)));
        for name in options(&native.text).keys() {
            assert!(all.contains_key(name), "{name}");
        }
    }
}
