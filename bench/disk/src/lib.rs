// SPDX-License-Identifier: MIT
//! A drive with a speed: serves a raw image to QEMU over NBD on a Unix socket
//! and answers each request a chosen time after it came in.
//!
//! QEMU attaches it with
//! `-blockdev driver=nbd,node-name=d,server.type=unix,server.path=SOCKET`.
//!
//! Why a server of our own: the published Rust crate for NBD (`nbd` 0.3) takes
//! one request at a time and knows neither FLUSH, FUA nor WRITE_ZEROES, and
//! nbdkit's delay filter counts in whole milliseconds. vhost-user needs a
//! virtio device, and what is measured here is the guest's NVMe driver.
//!
//! - [`image`]: the bytes, mapped privately (the file never changes) or shared;
//! - [`latency`]: fixed or by percentiles, drawn with a seeded generator;
//! - [`server`]: one NBD client at a time, requests pipelined;
//! - [`control`]: JSON lines to change the latency, read counters, log writes;
//! - [`power`]: a volatile cache, and cutting the power;
//! - [`write_log`]: what was written, in order of completion;
//! - [`client`] and [`measure`]: a small NBD client, and the server's own cost,
//!   told by `cargo run --release -p aios-disk -- measure --image FILE`.

pub mod cli;
pub mod client;
mod clock;
pub mod control;
mod counters;
mod error;
mod handshake;
pub mod image;
pub mod latency;
pub mod measure;
pub mod power;
pub mod server;
mod session;
pub mod wire;
pub mod write_log;

pub use counters::Counters;
pub use error::{
    Error,
    Result, //
};
pub use latency::Latency;
