// SPDX-License-Identifier: MIT
//! Checks of the patch series: each entry applies, is clean and builds.

use super::suite::{
    Outcome,
    Suite, //
};
use crate::context::Context;
use crate::error::Error;
use crate::kernel;
use crate::setup::{
    self,
    Need, //
};

/// Runs the series' cases.
pub(super) fn run(ctx: &Context, suite: &mut Suite) {
    let names: Vec<String> = match kernel::series_cases(ctx) {
        Ok(cases) => cases.iter().map(|case| format!("series/{case}")).collect(),
        Err(error) => {
            suite.case("series/reads", || Err(error));
            return;
        }
    };
    let each = || names.iter().map(String::as_str);
    if !suite.runs_any(each()) {
        each().for_each(|name| suite.case(name, || Ok(Outcome::Passed)));
        return;
    }
    let report = setup::ensure(ctx, &[Need::Build]).and_then(|()| kernel::check_series(ctx));
    let report = match report {
        Ok(report) => report,
        Err(error) => return suite.fail_all(each(), &error),
    };
    for case in report.cases {
        let name = format!("series/{}", case.name);
        if suite.wants(&name) {
            let result = match case.outcome {
                kernel::Outcome::Passed => Ok(Outcome::Passed),
                kernel::Outcome::Failed(why) => Err(Error::new(why)),
                kernel::Outcome::Skipped(why) => Ok(Outcome::Skipped(why)),
            };
            suite.record(&name, result, case.seconds);
        }
    }
}
