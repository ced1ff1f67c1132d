// SPDX-License-Identifier: MIT
//! A RocksDB database on the drive: after a power cut it opens, and holds every key whose
//! put was acknowledged, and of the others the first ones.

use crate::ext4::{
    self,
    Ext4, //
};
use crate::history::History;
use aios_guest::crash::{
    Op,
    Plan, //
};
use aios_guest::puts::{
    FOLDER,
    VALUE, //
};
use fastrand::Rng;
use std::fs;
use std::path::Path;
use std::process::Command;

/// RocksDB's tool that opens a database.
pub const TOOL: &str = "ldb";
/// A key that is put after recovery, behind all others.
const PROBE: &str = "zzzz";

/// Plan number `number` of a run that was given `seed`: puts by one thread.
pub fn plan(seed: u64, number: u64) -> Plan {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let puts = rng.usize(60..=180);
    Plan {
        seed: rng.u64(..),
        threads: vec![vec![Op::Put; puts]],
    }
}

/// The database on `drive`, which was recovered when the first `marks` puts of `history`
/// had been acknowledged, must be as it may.
pub(crate) fn check(history: &History, marks: usize, drive: &[u8]) -> Result<(), String> {
    let acknowledged = history.acknowledged(0, marks).len();
    // Before that it may not be there.
    if acknowledged == 0 {
        return Ok(());
    }
    let ours = |error: std::io::Error| format!("the database cannot be copied: {error}");
    let dir = tempfile::tempdir().map_err(ours)?;
    copy(drive, dir.path())?;
    // Opened for writing it recovers for good.
    ldb(dir.path(), &["put", PROBE, "0"])?;
    let keys = keys(&ldb(dir.path(), &["scan", "--hex"])?)?;
    if keys < acknowledged {
        return Err(format!(
            "the database holds {keys} keys, and {acknowledged} were acknowledged"
        ));
    }
    Ok(())
}

/// Copies the database's files to `dir`.
fn copy(drive: &[u8], dir: &Path) -> Result<(), String> {
    let ext4 = Ext4::new(drive)?;
    let mut folder = ext4.inode(ext4::ROOT)?;
    for name in ["t0", FOLDER] {
        let names = ext4.list(&folder)?;
        let found = names.into_iter().find(|(found, _)| found == name);
        let (_, inode) = found.ok_or_else(|| format!("the folder {name} is gone"))?;
        folder = ext4.inode(inode)?;
    }
    for (name, inode) in ext4.list(&folder)? {
        let data = ext4.read(&ext4.inode(inode)?);
        let data = data.map_err(|why| format!("{name}: {why}"))?;
        fs::write(dir.join(&name), data).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// What RocksDB's tool says of the database in `dir`.
fn ldb(dir: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(TOOL)
        .arg(format!("--db={}", dir.display()))
        .args(args)
        .output()
        .map_err(|error| format!("{TOOL} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().find(|line| !line.trim().is_empty());
    Err(format!("RocksDB: {}", why.unwrap_or("no reason given")))
}

/// How many of db_bench's keys there are; an error if one is left out or has another
/// length than it was given. (Blocks and records of RocksDB have checksums.)
fn keys(scan: &str) -> Result<usize, String> {
    let mut lines = scan.lines();
    for (keys, line) in lines.by_ref().enumerate() {
        let (key, value) = line.split_once(" : ").unwrap_or((line, ""));
        // Eight bytes, and filled up with the digit 0.
        let expected = format!("0x{keys:016X}{}", "30".repeat(8));
        if key != expected {
            let probe: String = PROBE.bytes().map(|byte| format!("{byte:02X}")).collect();
            return match (key.strip_prefix("0x") == Some(&probe), lines.next()) {
                (true, None) => Ok(keys),
                _ => Err(format!(
                    "the database holds {key} where {expected} should be"
                )),
            };
        }
        if value.len() != 2 + 2 * VALUE {
            return Err(format!("the value of {key} is {} bytes", value.len() / 2));
        }
    }
    Err("the database does not hold what was put after recovery".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: u64) -> String {
        format!(
            "0x{key:016X}{} : 0x{}\n",
            "30".repeat(8),
            "41".repeat(VALUE)
        )
    }

    const LAST: &str = "0x7A7A7A7A : 0x30\n";

    #[test]
    fn test_keys_counts_them() {
        assert_eq!(keys(LAST), Ok(0));
        assert_eq!(keys(&(line(0) + &line(1) + LAST)), Ok(2));
    }

    #[test]
    fn test_keys_that_are_not_all_there_return_error() {
        for scan in [
            String::new(),
            line(0),
            line(1) + LAST,
            line(0) + &line(2) + LAST,
            line(0) + LAST + &line(1),
            line(0).replace("4141", "41") + LAST,
        ] {
            assert!(keys(&scan).is_err(), "{scan:.40}");
        }
    }
}
