// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An exhaustive model of `fsync` on ext4 and jbd2.
//!
//! [`build::protocol`] makes a list of steps for a configuration, a workload
//! and a flavour, by the [`rules`]; [`explore::explore`] tries every order in which the scheduler
//! and the devices can take them, cuts the power in every state with every
//! subset of what is not durable, recovers, and checks the promises of
//! [`oracle`]; [`trips::round_trips`] counts what the caller waits for.

#![forbid(unsafe_code)]

pub mod build;
pub mod cache;
pub mod config;
pub mod explore;
pub mod fast;
pub mod oracle;
pub mod protocol;
pub mod recovery;
pub mod rules;
pub mod state;
pub mod story;
mod transaction;
pub mod trips;
