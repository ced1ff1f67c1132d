// SPDX-License-Identifier: MIT
//! What the guest and the harness agree on: names, the agent's protocol, the
//! markers of measured operations, and the result of a workload.

pub mod count;
pub mod crash;
mod durable;
pub mod faults;
mod mapping;
pub mod marker;
pub mod new_blocks;
pub mod obd_writer;
pub mod protocol;
pub mod puts;
pub mod race;
pub mod sync;
pub mod synced;
mod together;
pub mod work;

/// Name of the virtio-serial port between the agent and the harness.
pub const PORT_NAME: &str = "aios.agent";

/// Mount tag of the 9p share with the host's root.
pub const HOST_ROOT_TAG: &str = "hostroot";

/// Where this program lies in the running guest, for its workloads.
pub const GUEST_BINARY: &str = "/aios-guest";

/// Serial number of emulated drive `i` is this and `i`; the init makes it
/// `/dev/nvme{i}n1`.
pub const DRIVE_SERIAL: &str = "aios";
