// SPDX-License-Identifier: MIT
//! The protocol between the harness and the guest's agent.
//!
//! A byte stream in each direction, cut into frames: one byte kind, payload
//! length as 32-bit little endian number (at most [`MAX_PAYLOAD`]), payload.
//! Output is raw bytes; everything else is JSON, or empty.
//!
//! The agent says [`Frame::Ready`] once. The harness then asks one thing at a
//! time: [`Frame::Run`] and [`Frame::Shell`] are answered by any number of
//! [`Frame::Stdout`] and [`Frame::Stderr`] and one [`Frame::Exit`];
//! [`Frame::PowerOff`] ends the guest. A closed stream ends it too.

use serde::{
    Deserialize,
    Serialize,
    de::DeserializeOwned, //
};

/// Version of this protocol; both sides come from one build, so they agree.
pub const VERSION: u32 = 1;

/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Output is sent in pieces of at most this many bytes (what one write to a
/// virtio port takes).
pub const CHUNK: usize = 32 << 10;

const HEADER: usize = 5;

/// The agent is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Release of the running kernel, as `uname -r`.
    pub kernel: String,
}

/// Run a program to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Program (searched on the guest's `PATH`) and arguments.
    pub argv: Vec<String>,
    /// Variables added to the guest's environment.
    pub env: Vec<(String, String)>,
    /// Seconds until its process group is killed; 0 means never.
    pub timeout_s: u64,
}

/// Run an interactive shell on the serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// Lines of the terminal at the other end; 0 means unknown.
    pub rows: u16,
    /// Columns of it; 0 means unknown.
    pub columns: u16,
    /// Its type, as in `TERM`.
    pub term: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when killed; 127 or 126 when it could not be
    /// started.
    pub code: i32,
    /// Whether it was killed because its time was over.
    pub timed_out: bool,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Agent: up and waiting.
    Ready(Ready),
    /// Harness: run a program.
    Run(Run),
    /// Harness: run a shell on the console.
    Shell(Shell),
    /// Harness: stop everything, unmount, power off.
    PowerOff,
    /// Agent: a piece of the program's standard output.
    Stdout(Vec<u8>),
    /// Agent: a piece of the program's standard error.
    Stderr(Vec<u8>),
    /// Agent: the program ended.
    Exit(Exit),
}

/// What can be wrong with a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// No frame is of this kind.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// Longer than [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes is longer than {MAX_PAYLOAD}")]
    TooLong(usize),
    /// A frame without payload has one.
    #[error("{0} bytes in a frame that has no payload")]
    Unexpected(usize),
    /// The payload is not the JSON that the kind calls for.
    #[error("malformed frame: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Frame {
    const READY: u8 = 1;
    const RUN: u8 = 2;
    const SHELL: u8 = 3;
    const POWER_OFF: u8 = 4;
    const STDOUT: u8 = 5;
    const STDERR: u8 = 6;
    const EXIT: u8 = 7;

    /// The bytes to send. Fails when the payload is too long.
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        let json;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Ready(ready) => {
                json = serde_json::to_vec(ready)?;
                (Self::READY, &json)
            }
            Self::Run(run) => {
                json = serde_json::to_vec(run)?;
                (Self::RUN, &json)
            }
            Self::Shell(shell) => {
                json = serde_json::to_vec(shell)?;
                (Self::SHELL, &json)
            }
            Self::PowerOff => (Self::POWER_OFF, &[]),
            Self::Stdout(bytes) => (Self::STDOUT, bytes),
            Self::Stderr(bytes) => (Self::STDERR, bytes),
            Self::Exit(exit) => {
                json = serde_json::to_vec(exit)?;
                (Self::EXIT, &json)
            }
        };
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD)
            .ok_or(ProtocolError::TooLong(payload.len()))?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        bytes.extend(length.to_le_bytes());
        bytes.extend(payload);
        Ok(bytes)
    }

    fn parse(kind: u8, payload: &[u8]) -> Result<Self, ProtocolError> {
        fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ProtocolError> {
            Ok(serde_json::from_slice(payload)?)
        }
        Ok(match kind {
            Self::READY => Self::Ready(json(payload)?),
            Self::RUN => Self::Run(json(payload)?),
            Self::SHELL => Self::Shell(json(payload)?),
            Self::POWER_OFF if payload.is_empty() => Self::PowerOff,
            Self::POWER_OFF => return Err(ProtocolError::Unexpected(payload.len())),
            Self::STDOUT => Self::Stdout(payload.to_vec()),
            Self::STDERR => Self::Stderr(payload.to_vec()),
            Self::EXIT => Self::Exit(json(payload)?),
            other => return Err(ProtocolError::UnknownKind(other)),
        })
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were decoded already.
    taken: usize,
}

impl Decoder {
    /// Adds bytes as they were received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend(bytes);
    }

    /// The next whole frame, or none yet. After an error the stream cannot be
    /// made sense of any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((&[kind, a, b, c, d], rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_PAYLOAD {
            return Err(ProtocolError::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame::parse(kind, payload)?;
        self.taken += HEADER + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Frame> {
        vec![
            Frame::Ready(Ready {
                version: VERSION,
                kernel: "7.3.4".into(),
            }),
            Frame::Run(Run {
                argv: vec!["fio".into(), "a \"b\"\n".into()],
                env: vec![("K".into(), "ü".into())],
                timeout_s: 9,
            }),
            Frame::Shell(Shell {
                rows: 24,
                columns: 80,
                term: "xterm".into(),
            }),
            Frame::Stdout(vec![0, 255, 10]),
            Frame::Stderr(Vec::new()),
            Frame::Exit(Exit {
                code: 137,
                timed_out: true,
            }),
            Frame::PowerOff,
        ]
    }

    #[test]
    fn test_decoder_byte_by_byte_returns_every_frame() {
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for frame in samples() {
            for byte in frame.encode().unwrap() {
                decoder.push(&[byte]);
                seen.extend(decoder.next_frame().unwrap());
            }
        }
        assert_eq!(seen, samples());
    }

    #[test]
    fn test_decoder_all_at_once_returns_every_frame() {
        let bytes: Vec<u8> = samples()
            .iter()
            .flat_map(|frame| frame.encode().unwrap())
            .collect();
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let mut seen = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            seen.push(frame);
        }
        assert_eq!(seen, samples());
    }

    #[test]
    fn test_decoder_huge_length_returns_error_without_waiting_for_it() {
        let mut decoder = Decoder::default();
        decoder.push(&[Frame::STDOUT, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::TooLong(0xffff_ffff))
        ));
    }

    #[test]
    fn test_decoder_unknown_kind_returns_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x7f, 0, 0, 0, 0]);
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::UnknownKind(0x7f))
        ));
    }

    #[test]
    fn test_decoder_bad_json_returns_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[Frame::EXIT, 2, 0, 0, 0, b'{', b'x']);
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::Malformed(_))
        ));
    }

    #[test]
    fn test_decoder_power_off_with_payload_returns_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[Frame::POWER_OFF, 1, 0, 0, 0, 0]);
        assert!(matches!(
            decoder.next_frame(),
            Err(ProtocolError::Unexpected(1))
        ));
    }

    #[test]
    fn test_encode_too_long_payload_returns_error() {
        let frame = Frame::Stdout(vec![0; MAX_PAYLOAD + 1]);
        assert!(matches!(frame.encode(), Err(ProtocolError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn test_decoder_hostile_bytes_never_panics_nor_hoards(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..32),
        ) {
            let mut decoder = Decoder::default();
            let mut pushed = 0;
            'stream: for chunk in &chunks {
                decoder.push(chunk);
                pushed += chunk.len();
                loop {
                    match decoder.next_frame() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
            prop_assert!(decoder.buffer.len() <= pushed);
        }
    }
}
