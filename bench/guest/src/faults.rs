// SPDX-License-Identifier: MIT
//! Faults of a mapped file whose content is known: reads, and writes that have to
//! read first.

use crate::mapping::{
    Access,
    Mapping,
    PAGE, //
};
use crate::work::{
    Permutation,
    advise,
    split_mix, //
};
use serde::Serialize;
use std::fs::File;
use std::io::{
    self,
    Write, //
};
use std::path::PathBuf;

/// Where a page is written to: behind what says which page it is.
const STAMP_AT: usize = 100;

/// How the kernel is told that access is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Advice {
    /// By `madvise`.
    Mapping,
    /// By `posix_fadvise`.
    File,
    /// Not at all.
    None,
}

/// Touches pages of a mapped file, and checks what is in them.
#[derive(clap::Args, Debug, Clone)]
pub struct Faults {
    /// The file.
    #[arg(long)]
    pub file: PathBuf,
    /// Pages of the file, which is made anew.
    #[arg(long, default_value_t = 1024)]
    pub pages: u64,
    /// Pages that are touched, in each of three ways; no page twice.
    #[arg(long, default_value_t = 300)]
    pub count: u64,
    /// Seed of content and order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How the kernel is told that access is random.
    #[arg(long, value_enum, default_value_t = Advice::Mapping)]
    pub advice: Advice,
    /// Do nothing but map this page of a file that is there, wait for the end of
    /// standard input, and touch the page.
    #[arg(long)]
    pub touch: Option<u64>,
}

/// What was touched.
#[derive(Debug, Serialize)]
pub struct FaultsResult {
    /// Pages that were touched.
    pub touched: u64,
    /// Major faults of this process meanwhile.
    pub major: u64,
}

/// Why the faults failed.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    /// The file could not be worked on.
    #[error("cannot {action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// More pages are to be touched than there are.
    #[error("three times --count {count} is more than --pages {pages}, or none")]
    Count {
        /// Pages to touch.
        count: u64,
        /// Pages there are.
        pages: u64,
    },
    /// A page shows what it must not.
    #[error("page {page} {when}: {what} at byte {at}")]
    Wrong {
        /// Which page.
        page: u64,
        /// How it was touched.
        when: &'static str,
        /// What is there.
        what: String,
        /// Offset in the page.
        at: usize,
    },
}

type Result<T> = std::result::Result<T, FaultsError>;

impl Faults {
    /// Touches and checks.
    pub fn run(&self) -> Result<FaultsResult> {
        let before = major_faults();
        let touched = match self.touch {
            Some(page) => self.touch(page)?,
            None => self.check()?,
        };
        Ok(FaultsResult {
            touched,
            major: major_faults() - before,
        })
    }

    fn touch(&self, page: u64) -> Result<u64> {
        let file = self.at("open", File::open(&self.file))?;
        let mapping = self.map(&file, page * PAGE as u64, PAGE, Access::Read)?;
        self.at("wait to touch", io::copy(&mut io::stdin(), &mut io::sink()))?;
        std::hint::black_box(mapping.byte(0));
        Ok(1)
    }

    fn map(&self, file: &File, at: u64, len: usize, access: Access) -> Result<Mapping> {
        let mapping = self.at("map", Mapping::new(file, at, len, access))?;
        let advised = match self.advice {
            Advice::Mapping => mapping.advise_random(),
            Advice::File => advise(file, libc::POSIX_FADV_RANDOM),
            Advice::None => Ok(()),
        };
        self.at("advise on", advised)?;
        Ok(mapping)
    }

    fn check(&self) -> Result<u64> {
        if self.count == 0 || self.count > self.pages / 3 {
            return Err(FaultsError::Count {
                count: self.count,
                pages: self.pages,
            });
        }
        self.make()?;
        let count = self.count;
        self.faults(Access::Read, "read", 0, None)?;
        self.faults(
            Access::Private,
            "written to a private mapping",
            count,
            Some(1),
        )?;
        // Nobody had the file open for writing up to here.
        self.faults(
            Access::Shared,
            "written to a shared mapping",
            2 * count,
            Some(2),
        )?;
        self.faults(Access::Read, "read after that", 2 * count, Some(2))?;
        Ok(4 * count)
    }

    fn make(&self) -> Result<()> {
        let mut file = self.at("create", File::create(&self.file))?;
        for page in 0..self.pages {
            self.at("write", file.write_all(&self.content(page)))?;
        }
        self.at("sync", file.sync_all())
    }

    /// What page `page` is made with.
    fn content(&self, page: u64) -> [u8; PAGE] {
        let mut state = self.seed ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut content = [0; PAGE];
        for word in content.chunks_exact_mut(8) {
            word.copy_from_slice(&split_mix(&mut state).to_le_bytes());
        }
        content
    }

    /// Touches pages that are not cached, from number `first` in their order on,
    /// with a write of `stamp` first if `access` allows, or expects it.
    fn faults(
        &self,
        access: Access,
        when: &'static str,
        first: u64,
        stamp: Option<u8>,
    ) -> Result<()> {
        let shared = access == Access::Shared;
        let opened = File::options().read(true).write(shared).open(&self.file);
        let file = self.at("open", opened)?;
        self.at(
            "drop the cache of",
            advise(&file, libc::POSIX_FADV_DONTNEED),
        )?;
        let mut mapping = self.map(&file, 0, self.pages as usize * PAGE, access)?;
        let permutation = Permutation::new(self.pages, self.seed);
        for i in first..first + self.count {
            let page = permutation.at(i);
            let start = page as usize * PAGE;
            let mut wanted = self.content(page);
            if let Some(stamp) = stamp {
                wanted[STAMP_AT] = stamp;
                if access != Access::Read {
                    mapping.write(start + STAMP_AT, &[stamp]);
                }
            }
            for (at, &byte) in wanted.iter().enumerate() {
                let found = mapping.byte(start + at);
                if found != Some(byte) {
                    let what = format!("{found:?}, not {byte}");
                    return Err(FaultsError::Wrong {
                        page,
                        when,
                        what,
                        at,
                    });
                }
            }
        }
        if shared {
            self.at("sync", mapping.sync())?;
        }
        Ok(())
    }

    fn at<T>(&self, action: &'static str, result: io::Result<T>) -> Result<T> {
        result.map_err(|source| FaultsError::Io {
            action,
            file: self.file.clone(),
            source,
        })
    }
}

/// Major faults of this process up to now.
fn major_faults() -> u64 {
    // SAFETY: All zeros is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: The pointer is to a `rusage` that lives through the call, which
    // cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    u64::try_from(usage.ru_majflt).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str) -> Faults {
        Faults {
            file: std::env::temp_dir().join(format!("aios-faults-{}-{name}", std::process::id())),
            pages: 27,
            count: 9,
            seed: 5,
            advice: Advice::Mapping,
            touch: None,
        }
    }

    #[test]
    fn test_run_on_a_sound_file_system_finds_nothing() {
        let faults = faults("sound");
        let result = faults.run();
        let _ = std::fs::remove_file(&faults.file);
        assert_eq!(result.unwrap().touched, 36);
    }

    #[test]
    fn test_faults_foreign_content_returns_error() {
        let faults = faults("foreign");
        faults.make().unwrap();
        let mut other = faults.clone();
        other.seed = 6;
        let result = other.faults(Access::Read, "read", 0, None);
        let _ = std::fs::remove_file(&faults.file);
        assert!(
            matches!(result, Err(FaultsError::Wrong { at: 0, .. })),
            "{result:?}"
        );
    }

    #[test]
    fn test_run_more_than_there_is_returns_error() {
        let mut faults = faults("more");
        faults.count = 10;
        assert!(matches!(faults.run(), Err(FaultsError::Count { .. })));
    }
}
