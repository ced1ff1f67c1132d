// SPDX-License-Identifier: MIT
//! RocksDB's db_bench at work: keys that it puts one after the other, each synced.

use std::io::{
    self,
    BufRead,
    BufReader,
    Lines, //
};
use std::path::Path;
use std::process::{
    Child,
    ChildStderr,
    Command,
    Stdio, //
};

/// Folder of the database, in the thread's.
pub const FOLDER: &str = "db";
/// Bytes of a value.
pub const VALUE: usize = 1000;

/// Memory tables so small that they become files, and the files others, now and then.
const SMALL: [&str; 4] = [
    "--write_buffer_size=65536",
    "--target_file_size_base=65536",
    "--level0_file_num_compaction_trigger=2",
    "--compression_type=none",
];

/// Keys being put; ended when dropped.
pub(crate) struct Puts {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// How many have been.
    done: u64,
}

impl Puts {
    /// Begins to put so many into a database in `dir`, which is made anew.
    pub(crate) fn start(dir: &Path, seed: u64, puts: usize) -> io::Result<Self> {
        let mut child = Command::new("db_bench")
            .args(["--benchmarks=fillseq", "--sync=1", "--stats_interval=1"])
            .args(SMALL)
            .arg(format!("--db={}", dir.join(FOLDER).display()))
            .arg(format!("--num={puts}"))
            .arg(format!("--value_size={VALUE}"))
            // Its type is int64_t, and 0 is the clock.
            .arg(format!("--seed={}", (seed >> 1).max(1)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take();
        let stderr = stderr.ok_or_else(|| io::Error::other("db_bench without an output"))?;
        Ok(Self {
            child,
            lines: BufReader::new(stderr).lines(),
            done: 0,
        })
    }

    /// Waits until one more has been put and synced.
    pub(crate) fn next(&mut self) -> io::Result<()> {
        let mut last = String::new();
        for line in self.lines.by_ref() {
            let line = line?;
            let Some(done) = number(&line) else {
                last = line;
                continue;
            };
            self.done += 1;
            if done == self.done {
                return Ok(());
            }
            return Err(io::Error::other(format!(
                "db_bench tells of put {done} after {}",
                self.done - 1
            )));
        }
        Err(io::Error::other(format!("db_bench ends with {last:?}")))
    }
}

impl Drop for Puts {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many keys had been put, in a line such as `DATE  ... thread 0: (1,17) ops and …`.
fn number(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("... thread 0: (1,")?;
    rest.split_once(") ops and ")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_number_of_a_line_of_db_bench() {
        let line = "2026/11/22-22:01:55  ... thread 0: (1,17) ops and (127.4,62.9) ops/second in \
                    (0.007850,0.031812) seconds";

        assert_eq!(number(line), Some(17));
        assert_eq!(number("Keys:       16 bytes each"), None);
    }

    #[test]
    fn test_next_counts_puts_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut puts = Puts::start(dir.path(), 7, 5).unwrap();
        for _ in 0..5 {
            puts.next().unwrap();
        }
        assert!(puts.next().is_err());
        assert!(dir.path().join(FOLDER).join("CURRENT").exists());
    }
}
