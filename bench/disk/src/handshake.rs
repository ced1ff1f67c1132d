// SPDX-License-Identifier: MIT
//! Negotiation, the server's side: fixed newstyle with one export, the one
//! with the empty name.

use crate::wire::{
    self,
    Fields, //
};
use std::io::{
    self,
    Read,
    Write, //
};

/// Longest option read whole: a name of the 4096 bytes that the protocol
/// allows, and then some. Longer ones are skipped and refused.
const MAX_OPTION: u32 = 8 << 10;
/// Longest option worth skipping; a client that sends a longer one is cut off.
const MAX_SKIPPED: u32 = 1 << 20;
/// Options after which a client that still has not chosen is cut off.
const MAX_OPTIONS: usize = 64;
/// Client flags that are understood: the two handshake flags.
const CLIENT_FLAGS: u32 = (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES) as u32;

/// What the negotiation came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Requests follow.
    Begin,
    /// The client has taken its leave.
    Left,
}

/// Negotiates with a client about the export of `size` bytes. An error means
/// that the client broke the protocol or went away: drop the connection.
pub(crate) fn negotiate(stream: &mut (impl Read + Write), size: u64) -> io::Result<Outcome> {
    let mut hello = Vec::with_capacity(18);
    hello.extend(wire::SERVER_MAGIC.to_be_bytes());
    hello.extend(wire::OPTION_MAGIC.to_be_bytes());
    hello.extend((wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;

    let flags = u32::from_be_bytes(read_array(stream)?);
    if flags & !CLIENT_FLAGS != 0 {
        return Err(violation("unknown client flags"));
    }
    let no_zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) != 0;

    for _ in 0..MAX_OPTIONS {
        let header: [u8; 16] = read_array(stream)?;
        let mut fields = Fields(&header);
        let (Some(wire::OPTION_MAGIC), Some(option), Some(length)) =
            (fields.u64(), fields.u32(), fields.u32())
        else {
            return Err(violation("bad option magic"));
        };
        if length > MAX_OPTION {
            if length > MAX_SKIPPED || option == wire::OPT_EXPORT_NAME {
                return Err(violation("oversized option"));
            }
            io::copy(&mut stream.take(length.into()), &mut io::sink())?;
            reply(stream, option, wire::REP_ERR_TOO_BIG, &[])?;
            continue;
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match option {
            wire::OPT_EXPORT_NAME if data.is_empty() => {
                let mut export = export_fact(size)[2..].to_vec();
                export.resize(if no_zeroes { 10 } else { 134 }, 0);
                stream.write_all(&export)?;
                return Ok(Outcome::Begin);
            }
            // The document leaves no other answer to this one.
            wire::OPT_EXPORT_NAME => return Err(violation("unknown export")),
            wire::OPT_ABORT => {
                // The client may be gone already, and may be so.
                let _ = reply(stream, option, wire::REP_ACK, &[]);
                return Ok(Outcome::Left);
            }
            wire::OPT_LIST if data.is_empty() => {
                // One export; its name has length 0.
                reply(stream, option, wire::REP_SERVER, &0u32.to_be_bytes())?;
                reply(stream, option, wire::REP_ACK, &[])?;
            }
            wire::OPT_INFO | wire::OPT_GO => match export_name(&data) {
                None => reply(stream, option, wire::REP_ERR_INVALID, &[])?,
                Some([]) => {
                    reply(stream, option, wire::REP_INFO, &export_fact(size))?;
                    reply(stream, option, wire::REP_INFO, &block_size_fact())?;
                    reply(stream, option, wire::REP_ACK, &[])?;
                    if option == wire::OPT_GO {
                        return Ok(Outcome::Begin);
                    }
                }
                Some(_) => reply(stream, option, wire::REP_ERR_UNKNOWN, &[])?,
            },
            wire::OPT_LIST => reply(stream, option, wire::REP_ERR_INVALID, &[])?,
            // STARTTLS, STRUCTURED_REPLY and the rest: clients do without.
            _ => reply(stream, option, wire::REP_ERR_UNSUP, &[])?,
        }
    }
    Err(violation("too many options"))
}

/// The export's name in the data of INFO or GO; nothing if that is malformed.
/// Which facts the client asks for does not matter: it gets both.
fn export_name(data: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(data);
    let length = usize::try_from(fields.u32()?).ok()?;
    let name = fields.bytes(length)?;
    let facts = usize::from(fields.u16()?);
    fields.bytes(2 * facts)?;
    fields.0.is_empty().then_some(name)
}

fn export_fact(size: u64) -> Vec<u8> {
    let mut fact = wire::INFO_EXPORT.to_be_bytes().to_vec();
    fact.extend(size.to_be_bytes());
    fact.extend(wire::EXPORT_FLAGS.to_be_bytes());
    fact
}

fn block_size_fact() -> Vec<u8> {
    let mut fact = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [wire::MIN_BLOCK, wire::PREFERRED_BLOCK, wire::MAX_PAYLOAD] {
        fact.extend(size.to_be_bytes());
    }
    fact
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    // No reply here is longer than a fact.
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The client broke the protocol.
pub(crate) fn violation(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client that has said all it will say; keeps what it is told.
    struct Script {
        says: io::Cursor<Vec<u8>>,
        hears: Vec<u8>,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hears.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Negotiates with a client that sends `flags` and `options`; returns the
    /// outcome and what the server said after its hello.
    fn run(flags: u32, options: &[(u32, &[u8])]) -> (io::Result<Outcome>, Vec<u8>) {
        let mut says = flags.to_be_bytes().to_vec();
        for (option, data) in options {
            says.extend(wire::OPTION_MAGIC.to_be_bytes());
            says.extend(option.to_be_bytes());
            says.extend((data.len() as u32).to_be_bytes());
            says.extend(*data);
        }
        run_raw(says)
    }

    fn run_raw(says: Vec<u8>) -> (io::Result<Outcome>, Vec<u8>) {
        let mut script = Script {
            says: io::Cursor::new(says),
            hears: Vec::new(),
        };
        let outcome = negotiate(&mut script, 1 << 20);
        (outcome, script.hears.split_off(18))
    }

    /// The kinds of the option replies in `hears`.
    fn kinds(hears: &[u8]) -> Vec<u32> {
        let mut fields = Fields(hears);
        let mut kinds = Vec::new();
        while let Some(magic) = fields.u64() {
            assert_eq!(magic, wire::OPTION_REPLY_MAGIC);
            fields.u32().unwrap();
            kinds.push(fields.u32().unwrap());
            let length = fields.u32().unwrap();
            fields.bytes(length as usize).unwrap();
        }
        kinds
    }

    const GO_DEFAULT: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 3];

    #[test]
    fn test_negotiate_go_returns_begin_with_facts() {
        let (outcome, hears) = run(3, &[(wire::OPT_GO, GO_DEFAULT)]);
        assert_eq!(outcome.unwrap(), Outcome::Begin);
        assert_eq!(
            kinds(&hears),
            [wire::REP_INFO, wire::REP_INFO, wire::REP_ACK]
        );
    }

    #[test]
    fn test_negotiate_export_name_pads_as_asked() {
        let (_, padded) = run(1, &[(wire::OPT_EXPORT_NAME, b"")]);
        let (_, short) = run(3, &[(wire::OPT_EXPORT_NAME, b"")]);
        assert_eq!(padded.len(), 134);
        assert_eq!(short, [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x6d]);
    }

    #[test]
    fn test_negotiate_list_info_abort_answers_each() {
        let (outcome, hears) = run(
            1,
            &[
                (wire::OPT_LIST, b""),
                (wire::OPT_INFO, GO_DEFAULT),
                (8, b""),
                (wire::OPT_ABORT, b""),
            ],
        );
        assert_eq!(outcome.unwrap(), Outcome::Left);
        assert_eq!(
            kinds(&hears),
            [
                wire::REP_SERVER,
                wire::REP_ACK,
                wire::REP_INFO,
                wire::REP_INFO,
                wire::REP_ACK,
                wire::REP_ERR_UNSUP,
                wire::REP_ACK
            ]
        );
    }

    #[test]
    fn test_negotiate_bad_go_returns_invalid_and_goes_on() {
        let (outcome, hears) = run(
            1,
            &[
                (wire::OPT_GO, b""),
                (wire::OPT_GO, &[0xff, 0xff, 0xff, 0xff, 0, 0]),
                (wire::OPT_GO, &[0, 0, 0, 0, 0, 9]),
                (wire::OPT_GO, &[0, 0, 0, 1, b'x', 0, 0]),
                (wire::OPT_GO, GO_DEFAULT),
            ],
        );
        assert_eq!(outcome.unwrap(), Outcome::Begin);
        assert_eq!(
            kinds(&hears)[..4],
            [
                wire::REP_ERR_INVALID,
                wire::REP_ERR_INVALID,
                wire::REP_ERR_INVALID,
                wire::REP_ERR_UNKNOWN
            ]
        );
    }

    #[test]
    fn test_negotiate_long_option_is_skipped_and_refused() {
        let (outcome, hears) = run(
            1,
            &[
                (wire::OPT_INFO, &vec![0; MAX_OPTION as usize + 1]),
                (wire::OPT_ABORT, b""),
            ],
        );
        assert_eq!(outcome.unwrap(), Outcome::Left);
        assert_eq!(kinds(&hears), [wire::REP_ERR_TOO_BIG, wire::REP_ACK]);
    }

    #[test]
    fn test_negotiate_hostile_client_returns_error() {
        let endless = vec![(wire::OPT_LIST, &b""[..]); MAX_OPTIONS + 1];
        assert!(run(1, &endless).0.is_err());
        assert!(run(4, &[]).0.is_err());
        assert!(run(1, &[(wire::OPT_EXPORT_NAME, b"other")]).0.is_err());
        let mut huge = 1u32.to_be_bytes().to_vec();
        huge.extend(wire::OPTION_MAGIC.to_be_bytes());
        huge.extend(wire::OPT_INFO.to_be_bytes());
        huge.extend(u32::MAX.to_be_bytes());
        assert!(run_raw(huge).0.is_err());
    }

    proptest! {
        #[test]
        fn test_negotiate_garbage_never_panics(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            option in 0u32..12,
        ) {
            let _ = run_raw(garbage.clone());
            let _ = run(3, &[(option, &garbage)]);
        }
    }
}
