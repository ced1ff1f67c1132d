// SPDX-License-Identifier: MIT
//! A program between the marks of a window.

use crate::marker::{
    WINDOW_BEGIN,
    WINDOW_END,
    mark, //
};
use std::io;
use std::process::Command;

/// Arguments of `aios-guest count`.
#[derive(clap::Args, Debug)]
pub struct Count {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

impl Count {
    /// Runs the program; its exit code is 0, or this fails.
    ///
    /// # Errors
    ///
    /// It could not be run, or failed.
    pub fn run(&self) -> io::Result<i32> {
        let (program, args) = self
            .program
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args);
        mark::<WINDOW_BEGIN>();
        let status = command.status();
        mark::<WINDOW_END>();
        let status = status?;
        if !status.success() {
            return Err(io::Error::other(format!("{program}: {status}")));
        }
        Ok(0)
    }
}
