// SPDX-License-Identifier: MIT
//! What the program prints: help, listings, and one line for each bad input.
//! `TRYCMD=overwrite cargo test -p aios --test cli` writes what it prints now.

#[test]
fn test_cli_prints_what_the_snapshots_hold() {
    trycmd::TestCases::new().case("tests/cli/*.trycmd");
}
