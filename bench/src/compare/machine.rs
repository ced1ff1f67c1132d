// SPDX-License-Identifier: MIT
//! What a run was made on.

use crate::error::{
    IoContext,
    Result, //
};
use crate::process::find_on_path;
use crate::report::schema::{
    Machine,
    Tool, //
};
use sha2::{
    Digest,
    Sha256, //
};
use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{
    Command,
    Stdio, //
};

/// This machine. What cannot be found is left empty.
pub(crate) fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = value(&read("/proc/meminfo"), "MemTotal", ':');
    let kib = memory.split(' ').next().and_then(|kib| kib.parse().ok());
    Machine {
        cpu: value(&read("/proc/cpuinfo"), "model name", ':'),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: kib.unwrap_or(0u64) / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        os: value(&read("/etc/os-release"), "PRETTY_NAME", '='),
    }
}

/// The value of the first line `key SEPARATOR value`, without quotes.
fn value(text: &str, key: &str, separator: char) -> String {
    text.lines()
        .filter_map(|line| line.split_once(separator))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().trim_matches('"').to_owned())
        .unwrap_or_default()
}

/// A tool that numbers depend on: its name, its program, and the option that has it say
/// its version.
pub(crate) type Program = (&'static str, &'static str, &'static str);

pub(crate) const DB_BENCH: Program = ("db_bench", "db_bench", "--version");
pub(crate) const FIO: Program = ("fio", "fio", "--version");
pub(crate) const MKE2FS: Program = ("mke2fs", "mke2fs", "-V");
pub(crate) const MKFS_EROFS: Program = ("mkfs.erofs", "mkfs.erofs", "-V");
pub(crate) const MKSQUASHFS: Program = ("mksquashfs", "mksquashfs", "-version");
pub(crate) const QEMU: Program = ("QEMU", "qemu-system-x86_64", "--version");

/// The versions of those that are there.
pub(crate) fn versions(programs: &[Program]) -> Vec<Tool> {
    programs
        .iter()
        .filter_map(|(name, program, option)| {
            Some(Tool {
                name: (*name).to_owned(),
                version: tool_version(&find_on_path(program)?, option),
            })
        })
        .collect()
}

/// The first line that a tool prints of itself, on whichever output.
pub(crate) fn tool_version(program: &Path, option: &str) -> String {
    let output = Command::new(program)
        .arg(option)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        return "unknown".to_owned();
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("unknown")
        .to_owned()
}

/// SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut digest = Sha256::new();
    io::copy(&mut file, &mut digest).at("read", path)?;
    let bytes = digest.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_value_finds_key_and_strips_quotes() {
        let text = "PRETTY=x\nPRETTY_NAME=\"Debian = 12\"\n";
        assert_eq!(value(text, "PRETTY_NAME", '='), "Debian = 12");
        assert_eq!(value(text, "ABSENT", '='), "");
    }

    #[test]
    fn test_tool_version_reads_either_output() {
        let ls = Path::new("/bin/ls");
        assert!(tool_version(ls, "--no-such-option").contains("no-such-option"));
        assert_eq!(tool_version(Path::new("/nonexistent"), "-V"), "unknown");
    }

    #[test]
    fn test_sha256_matches_published_vector() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let digest = sha256(file.path()).unwrap();
        assert!(
            digest.starts_with("ba7816bf8f01cfea414140de5dae2223"),
            "{digest}"
        );
    }
}
