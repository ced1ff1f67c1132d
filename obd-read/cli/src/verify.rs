// SPDX-License-Identifier: MIT

//! `obd verify`: whether files are whole.

use crate::error::{
    Error,
    Result,
    is_damage, //
};
use crate::open::{
    self,
    Layer,
    ZFile, //
};
use crate::ui::{
    self,
    Progress, //
};
use obd_core::Scratch;
use obd_core::lsmt::Opened;
use serde::Serialize;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Faults of one file that are listed; more are counted only.
const LISTED: usize = 16;

/// Read every block of files and check every checksum there is.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Layers and zfiles.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// What came out for one file.
#[derive(Default, Serialize)]
struct Report {
    file: PathBuf,
    ok: bool,
    /// Blocks whose content was checked against a checksum.
    blocks_checked: u64,
    /// Faults found.
    faults: u64,
    /// The first of them.
    errors: Vec<String>,
    /// Whether one of them is the file's, and not the system's.
    #[serde(skip)]
    damaged: bool,
}

impl Report {
    fn fault(&mut self, error: impl std::fmt::Display, damaged: bool) {
        self.faults += 1;
        self.damaged |= damaged;
        if self.errors.len() < LISTED {
            self.errors.push(error.to_string());
        }
    }

    fn print(&self) {
        let file = self.file.display();
        for error in &self.errors {
            ui::print(&format!("{file}: {error}"));
        }
        if self.faults > self.errors.len() as u64 {
            ui::print(&format!("{file}: {} faults in all", self.faults));
        }
        match (self.ok, self.blocks_checked) {
            (false, _) => ui::print(&format!("{file}: FAILED")),
            (true, 0) => ui::print(&format!(
                "{file}: OK as far as it shows (its data has no checksums)"
            )),
            (true, blocks) => ui::print(&format!("{file}: OK, {blocks} blocks")),
        }
    }
}

/// Runs `obd verify`.
pub(crate) fn run(args: &Args, json: bool, interrupted: &Arc<AtomicBool>) -> Result<()> {
    let mut reports = Vec::new();
    for path in &args.files {
        let report = verify(path, interrupted)?;
        if !json {
            report.print();
        }
        reports.push(report);
    }
    if json {
        crate::print_json(&reports);
    }
    match reports.iter().filter(|report| !report.ok).count() {
        0 => Ok(()),
        bad => Err(Error::Verify {
            bad,
            all: reports.len(),
            damaged: reports.iter().any(|report| report.damaged),
        }),
    }
}

fn verify(path: &Path, interrupted: &Arc<AtomicBool>) -> Result<Report> {
    let mut report = Report {
        file: path.into(),
        ..Report::default()
    };
    match open::probe(path) {
        Ok(Opened::ZFile(zfile)) => check_blocks(path, &zfile, interrupted, &mut report)?,
        Ok(Opened::Layer(layer)) => match layer.zfile() {
            Some(zfile) => check_blocks(path, zfile, interrupted, &mut report)?,
            None => check_readable(path, &layer, interrupted, &mut report)?,
        },
        Err(Error::Format { error, .. }) => {
            let damaged = is_damage(&error);
            report.fault(error, damaged);
        }
        Err(other) => {
            let damaged = other.exit_code() == 1;
            report.fault(other, damaged);
        }
    }
    report.ok = report.faults == 0;
    Ok(report)
}

fn check_blocks(
    path: &Path,
    zfile: &ZFile,
    interrupted: &Arc<AtomicBool>,
    report: &mut Report,
) -> Result<()> {
    let fail = |error| open::format_error(path, error);
    let mut scratch = Scratch::new(zfile.needs()).map_err(|error| fail(error.into()))?;
    let mut buf = vec![0; zfile.block_size()];
    let mut progress = Progress::new(format!("{}", path.display()), zfile.size(), interrupted);
    for number in 0..zfile.info().blocks {
        let block = &mut buf[..zfile.decoded_len(number)];
        let at = number * zfile.block_size() as u64;
        match zfile.read_at(at, block, &mut scratch) {
            Ok(()) => report.blocks_checked += u64::from(zfile.info().verify),
            Err(error) => {
                let damaged = is_damage(&error);
                report.fault(error, damaged);
            }
        }
        progress.advance(block.len() as u64)?;
    }
    Ok(())
}

/// Reads all data of a layer without checksums: it must be there at least.
fn check_readable(
    path: &Path,
    layer: &Layer,
    interrupted: &Arc<AtomicBool>,
    report: &mut Report,
) -> Result<()> {
    let Some(file) = layer.plain() else {
        return Ok(());
    };
    let mut buf = vec![0; 1 << 20];
    let mut progress = Progress::new(format!("{}", path.display()), file.size(), interrupted);
    let mut at = 0;
    while at < file.size() {
        let len = (file.size() - at).min(buf.len() as u64);
        if let Err(error) = file.read(at, &mut buf[..len as usize]) {
            let damaged = is_damage(&error);
            report.fault(error, damaged);
            break;
        }
        at += len;
        progress.advance(len)?;
    }
    Ok(())
}
