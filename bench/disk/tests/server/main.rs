// SPDX-License-Identifier: MIT
//! The server over its sockets, as QEMU and the harness use it.

mod drive;
mod latency;
mod protocol;
