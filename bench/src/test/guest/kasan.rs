// SPDX-License-Identifier: MIT
//! The KASAN suite: images, and LBIO's races, in a kernel that checks every access to
//! memory. A fault in the log fails the case during which it came.

use super::groups::{
    LBIO_KASAN,
    LBIO_POLLED_KASAN,
    OBD_KASAN, //
};
use super::{
    Fixture,
    start, //
};
use crate::context::Context;
use crate::test::suite::Suite;

/// Runs it.
pub(in crate::test) fn run(ctx: &Context, suite: &mut Suite) {
    for group in [&OBD_KASAN, &LBIO_KASAN, &LBIO_POLLED_KASAN] {
        suite.group(group.name, group.cases, || start(ctx, group), Fixture::end);
    }
}
