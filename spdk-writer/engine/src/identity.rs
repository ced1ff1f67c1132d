// SPDX-License-Identifier: MIT

//! What is known of a device.

use crate::{
    Action,
    Error,
    Memory,
    Request, //
};
use serde::Serialize;

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// What it is called in messages: its path, or PCI address and namespace.
    pub name: String,
    /// Its maker's name for it; empty if it has none.
    pub model: String,
    /// Its serial number; empty if it has none.
    pub serial: String,
    /// Size, bytes, whole blocks. A file that may grow has [`Identity::GROWS`].
    pub size: u64,
    /// Bytes per block: what offsets and lengths are multiples of.
    pub block_size: u32,
    /// The longest read or write that is one command, bytes.
    pub max_transfer: u64,
    /// Whether writes need a flush to be durable.
    pub volatile_cache: bool,
    /// A write of as many bytes, aligned to as many, is done whole or not at
    /// all when power fails; a multiple of the block size.
    pub atomic_unit: u32,
    /// Whether [`Action::Discard`] does anything.
    pub discard: bool,
    /// Whether [`Action::WriteZeroes`] is a command of its own; the engine
    /// refuses it otherwise.
    pub write_zeroes: bool,
}

impl Identity {
    /// The size of a file that may grow.
    pub const GROWS: u64 = i64::MAX as u64 / 4096 * 4096;

    /// Whether `request` can be, for an engine with this memory.
    ///
    /// # Errors
    ///
    /// [`Error::Request`] with the first rule it breaks, [`Error::Device`] if
    /// its buffer is of another engine's memory.
    pub fn check(&self, request: &Request, memory: &Memory) -> Result<(), Error> {
        self.check_range(request, memory.buffer_size())?;
        match &request.buffer {
            Some(buffer) if !memory.owns(buffer) => {
                let what = "a buffer of another engine";
                Err(Error::device(&self.name, "use", what))
            }
            _ => Ok(()),
        }
    }

    /// The same but for whose buffer it is; buffers have `buffer` bytes.
    fn check_range(&self, request: &Request, buffer: usize) -> Result<(), Error> {
        let &Request {
            action,
            offset,
            len,
            ..
        } = request;
        let block = u64::from(self.block_size);
        let end = offset.checked_add(len);
        let has_data = action.has_data();
        let reason = if action == Action::Flush {
            match (offset, len) {
                (0, 0) => return Ok(()),
                _ => "a flush has no range",
            }
        } else if len == 0 {
            "nothing to do"
        } else if !(offset | len).is_multiple_of(block) {
            "not in whole blocks"
        } else if end.is_none_or(|end| end > self.size) {
            "beyond the end of the device"
        } else if has_data != request.buffer.is_some() {
            "reads and writes have a buffer, others have none"
        } else if has_data && len > buffer as u64 {
            "longer than the buffer"
        } else if action == Action::WriteZeroes && !self.write_zeroes {
            "the device cannot"
        } else {
            return Ok(());
        };
        Err(Error::Request {
            device: self.name.clone(),
            action,
            offset,
            len,
            reason,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn test_check_rules() {
        let identity = Identity {
            name: "x".into(),
            model: String::new(),
            serial: String::new(),
            size: 1 << 20,
            block_size: 4096,
            max_transfer: 4096,
            volatile_cache: false,
            atomic_unit: 4096,
            discard: true,
            write_zeroes: false,
        };
        let memory = Memory::new(1, 8192).unwrap();
        for (action, offset, len, buffer, good) in [
            (Action::Read, 0, 4096, true, true),
            (Action::Write, (1 << 20) - 8192, 8192, true, true),
            (Action::Flush, 0, 0, false, true),
            (Action::Discard, 0, 1 << 20, false, true),
            (Action::Flush, 0, 4096, false, false),
            (Action::Read, 0, 0, true, false),
            (Action::Read, 512, 4096, true, false),
            (Action::Read, 0, 512, true, false),
            (Action::Read, 1 << 20, 4096, true, false),
            (Action::Read, u64::MAX - 4095, 4096, true, false),
            (Action::Read, 0, 4096, false, false),
            (Action::Write, 0, 12288, true, false),
            (Action::WriteThrough, 4096, 8192, true, true),
            (Action::WriteThrough, 0, 4096, false, false),
            (Action::Discard, 0, 4096, true, true),
            (Action::WriteZeroes, 0, 4096, false, false),
        ] {
            let buffer = match buffer && action != Action::Discard {
                true => memory.take(),
                false => None,
            };
            let request = Request {
                tag: 0,
                action,
                offset,
                len,
                buffer,
            };
            let result = identity.check(&request, &memory);
            assert_eq!(result.is_ok(), good, "{request:?}: {result:?}");
        }
    }
}
