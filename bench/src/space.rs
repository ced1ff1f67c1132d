// SPDX-License-Identifier: MIT
//! Free space of a file system.

use crate::error::{
    Error,
    Result, //
};
use std::path::Path;

/// Bytes free in `dir`, or in the nearest folder above it that exists; nothing
/// where the file system does not say.
pub(crate) fn free(dir: &Path) -> Option<u64> {
    let dir = std::path::absolute(dir).ok()?;
    let dir = dir.ancestors().find(|dir| dir.exists())?;
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Fails if fewer than `needed` bytes are free for `what` in `dir`.
pub(crate) fn check(dir: &Path, needed: u64, what: &str) -> Result<()> {
    match free(dir) {
        Some(free) if free < needed => Err(Error::new(format!(
            "not enough disk space for {what}: {} free in {}, {} needed",
            gib(free),
            dir.display(),
            gib(needed)
        ))
        .hint("free some, or choose another folder (--cache DIR for what is kept)")),
        _ => Ok(()),
    }
}

/// Bytes as GiB with one digit after the point.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_free_of_a_missing_folder_is_that_of_its_parent() {
        assert!(free(Path::new("/nonexistent/a/b")).is_some());
    }

    #[test]
    fn test_check_impossible_amount_says_place_and_both_numbers() {
        check(Path::new("/"), 1, "x").unwrap();
        let error = check(Path::new("/"), u64::MAX, "x").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("for x") && text.contains("in /,"), "{text}");
        assert!(text.contains("free") && text.contains("--cache"), "{text}");
        assert!(text.contains("17179869184.0 GiB needed"), "{text}");
    }

    #[test]
    fn test_gib_is_for_people() {
        assert_eq!(gib(3 << 29), "1.5 GiB");
    }
}
