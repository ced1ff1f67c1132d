// SPDX-License-Identifier: MIT
//! Measurements as a shell script, the same in the guest and on a real
//! machine. It runs in the measured folder.

use super::db::Bench;
use super::fio;
use super::fio::Job;
use super::sample::Measured;
use super::workload::{
    Kind,
    Sizing,
    Workload, //
};
use crate::error::{
    Error,
    Result, //
};
use crate::process::Tool;

/// The line that ends the output of each tool.
const END: &str = "@@ aios: end of a tool's output";

/// Paths of the measuring tools.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// fio.
    pub(crate) fio: String,
    /// db_bench.
    pub(crate) db_bench: String,
}

/// One start of a tool.
#[derive(Debug, PartialEq, Eq)]
enum Launch {
    /// fio with jobs that run one after the other: starting it takes an
    /// emulated processor longer than a short job does.
    Fio(Vec<Job>),
    /// db_bench.
    Db(Bench),
}

fn launches(workloads: &[Workload]) -> Vec<Launch> {
    let mut launches: Vec<Launch> = Vec::new();
    for workload in workloads {
        match (workload.kind, launches.last_mut()) {
            (Kind::Fio(job), Some(Launch::Fio(jobs))) => jobs.push(job),
            (Kind::Fio(job), _) => launches.push(Launch::Fio(vec![job])),
            (Kind::Db(bench), _) => launches.push(Launch::Db(bench)),
        }
    }
    launches
}

/// Commands that measure `workloads` in turn and print what the tools say;
/// `file` is read instead of the data file.
pub(crate) fn of(
    workloads: &[Workload],
    tools: &Tools,
    file: Option<&str>,
    sizing: &Sizing,
    seed: u64,
) -> String {
    let mut script = String::from("set -e\n");
    let mut line = |line: String| {
        script.push_str(&line);
        script.push('\n');
    };
    for launch in launches(workloads) {
        let (tool, leftovers) = match launch {
            Launch::Fio(jobs) => {
                // One that is there already is somebody else's.
                let folders = jobs.iter().filter_map(|job| job.folder());
                folders.for_each(|folder| line(Tool::new("mkdir").arg(folder).line()));
                (
                    Tool::new(&tools.fio).args(fio::args(&jobs, file, sizing, seed)),
                    jobs.into_iter().filter_map(Job::leftover).collect(),
                )
            }
            Launch::Db(bench) => {
                bench.prepare().into_iter().for_each(&mut line);
                (
                    Tool::new(&tools.db_bench).args(bench.args(sizing, seed)),
                    vec![bench.leftover()],
                )
            }
        };
        line(tool.line());
        line(format!("echo {}", Tool::new(END).line()));
        if !leftovers.is_empty() {
            line(Tool::new("rm").arg("-rf").args(leftovers).line());
        }
    }
    script
}

/// Reads what the script of the same `workloads` printed.
pub(crate) fn parse(workloads: &[Workload], output: &str) -> Result<Vec<Measured>> {
    let mut rest = workloads.iter();
    let mut measured = Vec::new();
    let mut outputs = output.split(END);
    for launch in launches(workloads) {
        let count = match &launch {
            Launch::Fio(jobs) => jobs.len(),
            Launch::Db(_) => 1,
        };
        let text = outputs
            .next()
            .ok_or_else(|| Error::new("the output of a tool is missing"))?;
        for workload in rest.by_ref().take(count) {
            let found = match workload.kind {
                Kind::Fio(job) => job.parse(text),
                Kind::Db(bench) => bench.parse(text),
            };
            measured.push(found?);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::super::db;
    use super::super::image;
    use super::super::workload::catalogue;
    use super::*;
    use crate::process::find_on_path;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    fn tools() -> Tools {
        let path = |name: &str| {
            find_on_path(name).map_or_else(
                || name.to_owned(),
                |path| path.to_string_lossy().into_owned(),
            )
        };
        Tools {
            fio: path("fio"),
            db_bench: path("db_bench"),
        }
    }

    /// Names and lengths of the files of the base database.
    fn base(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir.join(db::BASE))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    /// Runs every workload for a moment, with the real tools, on the host's
    /// file system.
    #[test]
    fn test_of_every_workload_runs_and_leaves_the_files_as_they_were() {
        // Arrange
        let sizing = Sizing {
            runtime: Duration::from_millis(100),
            file_mib: 8,
            keys: 2000,
        };
        let tools = tools();
        // On a real file system: a tmpfs has no direct I/O on older kernels.
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
        fs::create_dir_all(&target).unwrap();
        let dir = tempfile::Builder::new()
            .prefix("aios: a test ")
            .tempdir_in(target)
            .unwrap();
        image::write_random(&dir.path().join(fio::DATA), sizing.file_mib).unwrap();
        Tool::new(&tools.db_bench)
            .args(db::fill_args(sizing.keys))
            .dir(dir.path())
            .output()
            .expect("db_bench of the package rocksdb-tools");
        let before = base(dir.path());
        let workloads = catalogue();

        // Act
        let output = Tool::new("sh")
            .args(["-c", &of(&workloads, &tools, None, &sizing, 5)])
            .dir(dir.path())
            .text()
            .unwrap();
        let measured = parse(&workloads, &output).unwrap();

        // Assert
        assert_eq!(measured.len(), workloads.len());
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [db::BASE, fio::DATA]);
        assert!(base(dir.path()) == before, "the base database changed");
    }

    #[test]
    fn test_launches_jobs_in_a_row_share_a_fio() {
        let workloads = catalogue();
        let launches = launches(&workloads);
        let sizes: Vec<_> = launches
            .iter()
            .map(|launch| match launch {
                Launch::Fio(jobs) => jobs.len(),
                Launch::Db(_) => 1,
            })
            .collect();
        assert_eq!(sizes, [22, 1, 1, 1]);
    }

    #[test]
    fn test_parse_cut_output_returns_error() {
        let workloads = catalogue();
        assert!(parse(&workloads, "").is_err());
        assert!(parse(&workloads, END).is_err());
    }
}
