// SPDX-License-Identifier: MIT
//! What the program prints: help, listings, and one line for each bad input.
//! `TRYCMD=overwrite cargo test -p aios --test cli` writes what it prints now.

#[test]
fn test_cli_prints_what_the_snapshots_hold() {
    // `aios test`, which may be who runs this, has the lock of its own cache.
    let cache = tempfile::tempdir().unwrap();
    trycmd::TestCases::new()
        .env("AIOS_CACHE", cache.path().to_str().unwrap())
        .case("tests/cli/*.trycmd");
}
