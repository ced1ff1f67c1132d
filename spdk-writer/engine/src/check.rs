// SPDX-License-Identifier: MIT

//! What every engine has to do, tried on a device that may be overwritten.

use crate::{
    Action,
    Error,
    Shared, //
};
use fastrand::Rng;
use std::collections::VecDeque;
use std::ops::Range;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A request failed that should not.
    #[error("{0}")]
    Engine(#[from] Error),
    /// A request should have failed, or did in the wrong way.
    #[error("{0}")]
    Accepted(String),
    /// Other bytes came back than were written.
    #[error("byte {at} of the device is {got:#04x}, it was made {expected:#04x}, {after}")]
    Differs {
        /// Where.
        at: u64,
        /// What is there.
        got: u8,
        /// What should be.
        expected: u8,
        /// After what.
        after: String,
    },
}

type Result<T> = std::result::Result<T, Failure>;

/// A check: its name and what it does.
pub type Check = (&'static str, fn(&Shared, u64) -> Result<()>);

/// All checks. Each overwrites the first [`SIZE`] bytes of the device, and the
/// last ones; the number is a seed.
pub const CHECKS: [Check; 8] = [
    ("lengths", lengths),
    ("queue", queue),
    ("edges", edges),
    ("refusals", refusals),
    ("through", through),
    ("zeroes", zeroes),
    ("history", history),
    ("threads", threads),
];

/// Bytes a device needs to have.
pub const SIZE: u64 = 16 << 20;

/// Writes `bytes` from the beginning on, whole buffers of whatever is in them, some
/// of them in flight, and flushes: what an engine itself costs.
///
/// # Errors
///
/// The device's.
pub fn stream(device: &Shared, bytes: u64) -> Result<()> {
    let len = device.buffer_size() as u64;
    let places = (device.identity().size / len).max(1);
    let mut flying = VecDeque::new();
    for n in 0..bytes.div_ceil(len) {
        if flying.len() == STREAM_DEPTH.min(device.buffers()) {
            flying
                .pop_front()
                .map(|ticket| device.finish(ticket))
                .transpose()?;
        }
        let buffer = Some(device.buffer()?);
        flying.push_back(device.start(Action::Write, n % places * len, len, buffer)?);
        device.kick()?;
    }
    for ticket in flying {
        device.finish(ticket)?;
    }
    device.flush()?;
    Ok(())
}

/// Buffers that [`stream`] has in flight.
const STREAM_DEPTH: usize = 8;

/// Fails unless `got`, from byte `at` of the device, is `expected`.
fn compare(at: u64, got: &[u8], expected: &[u8], after: impl Fn() -> String) -> Result<()> {
    let different = |(_, (got, expected)): &(u64, (&u8, &u8))| got != expected;
    match (at..).zip(got.iter().zip(expected)).find(different) {
        None => Ok(()),
        Some((at, (got, expected))) => Err(Failure::Differs {
            at,
            got: *got,
            expected: *expected,
            after: after(),
        }),
    }
}

fn random(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// Requests of every length that takes another path: one page, two, a list,
/// the longest command, more than that; at offsets that are no multiple of it.
fn lengths(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let block = u64::from(device.identity().block_size);
    let most = device.buffer_size() as u64;
    let command = device.identity().max_transfer.min(most);
    let blocks = |bytes: u64| (bytes / block).max(1) * block;
    for len in [
        block,
        2 * block,
        3 * block,
        blocks(4096),
        blocks(4096) + block,
        blocks(8192) + block,
        blocks(command) - block,
        blocks(command),
        blocks(command) + block,
        most,
    ] {
        let len = len.clamp(block, blocks(most));
        let at = rng.u64(1..16) * block;
        let around = random(&mut rng, (at + len + 4 * block) as usize);
        device.write(0, &around)?;
        let bytes = random(&mut rng, len as usize);
        device.write(at, &bytes)?;
        let mut expected = around;
        expected[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        let mut got = vec![0; expected.len()];
        device.read(0, &mut got)?;
        compare(0, &got, &expected, || {
            format!("writing {len} bytes at byte {at}")
        })?;
    }
    Ok(())
}

/// As many requests as there can be, in random order, each its own buffer.
fn queue(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let unit = u64::from(device.identity().block_size).max(4096);
    let mut places: Vec<u64> = (0..SIZE / unit / 8).map(|n| n * unit).collect();
    rng.shuffle(&mut places);
    let stamp = |at: u64| (at / unit * 0x9e37_79b9 + seed).to_le_bytes();
    let mut tickets = Vec::new();
    for action in [Action::Write, Action::Read] {
        for batch in places.chunks(16) {
            for &at in batch {
                let mut buffer = device.buffer()?;
                let bytes = &mut buffer[..unit as usize];
                match action {
                    Action::Write => bytes
                        .chunks_mut(8)
                        .for_each(|w| w.copy_from_slice(&stamp(at))),
                    _ => bytes.fill(0),
                }
                tickets.push((at, device.start(action, at, unit, Some(buffer))?));
            }
            device.kick()?;
            rng.shuffle(&mut tickets);
            for (at, ticket) in tickets.drain(..) {
                let Some(buffer) = device.finish(ticket)? else {
                    return Err(Failure::Accepted(format!("a {action} lost its buffer")));
                };
                let expected = stamp(at).repeat(unit as usize / 8);
                compare(at, &buffer[..unit as usize], &expected, || {
                    format!("writing {} places of {unit} bytes", places.len())
                })?;
            }
        }
        device.flush()?;
    }
    Ok(())
}

/// The last blocks of the device.
fn edges(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let block = u64::from(device.identity().block_size);
    let end = device.identity().size;
    for len in [block, 3 * block] {
        let bytes = random(&mut rng, len as usize);
        device.write(end - len, &bytes)?;
        device.flush()?;
        let mut got = vec![0; bytes.len()];
        device.read(end - len, &mut got)?;
        compare(end - len, &got, &bytes, || "writing the end".to_owned())?;
    }
    Ok(())
}

/// What cannot be is refused, with where it was, and changes nothing.
fn refusals(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let identity = device.identity();
    let block = u64::from(identity.block_size);
    let before = random(&mut rng, 4 * block as usize);
    device.write(0, &before)?;
    let last = identity.size - block;
    for (action, offset, len) in [
        (Action::Write, identity.size, block),
        (Action::Write, last, 2 * block),
        (Action::Read, identity.size, block),
        (Action::Read, u64::MAX - block + 1, block),
        (Action::Write, 1, block),
        (Action::Write, 0, block - 1),
        (Action::Write, 0, 0),
        (Action::Write, 0, device.buffer_size() as u64 + block),
        (Action::Discard, last, 2 * block),
        (Action::Flush, block, block),
    ] {
        let data = matches!(action, Action::Read | Action::Write);
        let buffer = data.then(|| device.buffer()).transpose()?;
        match device.start(action, offset, len, buffer) {
            Err(error @ Error::Request { .. })
                if error.to_string().contains(&format!("byte {offset}")) => {}
            Err(error) => return Err(error.into()),
            Ok(ticket) => {
                drop(device.finish(ticket));
                return Err(Failure::Accepted(format!(
                    "a {action} of {len} bytes at byte {offset} was accepted"
                )));
            }
        }
    }
    let mut got = vec![0; before.len()];
    device.read(0, &mut got)?;
    compare(0, &got, &before, || "requests that were refused".to_owned())
}

/// Writes that are durable when they come back: nothing is flushed for them.
fn through(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let block = u64::from(device.identity().block_size);
    let longest = device.identity().max_transfer + block;
    let before = device.summary().counts;
    let mut expected = random(&mut rng, 2 << 20);
    device.write(0, &expected)?;
    for len in [block, 3 * block, longest.min(1 << 20)] {
        let at = rng.u64(0..64) * block;
        let bytes = random(&mut rng, len as usize);
        device.write_through(at, &bytes)?;
        expected[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let mut got = vec![0; expected.len()];
    device.read(0, &mut got)?;
    compare(0, &got, &expected, || "writing through".to_owned())?;
    let after = device.summary().counts;
    let commands = after.writes_through - before.writes_through;
    if commands < 3 || after.flushes != before.flushes {
        return Err(Failure::Accepted(format!(
            "3 writes through were {commands}, and {} flushes",
            after.flushes - before.flushes
        )));
    }
    Ok(())
}

/// Write zeroes and discard, and what is beside them.
fn zeroes(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let block = u64::from(device.identity().block_size);
    let mut expected = random(&mut rng, (1 << 20) / block as usize * block as usize);
    device.write(0, &expected)?;
    if device.identity().write_zeroes {
        for _ in 0..16 {
            let range = range(&mut rng, expected.len() as u64, block);
            device.command(Action::WriteZeroes, range.start, range.end - range.start)?;
            expected[range.start as usize..range.end as usize].fill(0);
        }
    }
    let mut got = vec![0; expected.len()];
    device.read(0, &mut got)?;
    compare(0, &got, &expected, || "writing zeroes".to_owned())?;
    for _ in 0..16 {
        let Range { start, end } = range(&mut rng, expected.len() as u64, block);
        device.command(Action::Discard, start, end - start)?;
        // Whatever was there before: it is what is written now.
        let bytes = random(&mut rng, (end - start) as usize);
        device.write(start, &bytes)?;
        expected[start as usize..end as usize].copy_from_slice(&bytes);
    }
    device.read(0, &mut got)?;
    compare(0, &got, &expected, || "discarding".to_owned())
}

/// Whole blocks within the first `size` bytes, 128 KiB at most.
fn range(rng: &mut Rng, size: u64, block: u64) -> Range<u64> {
    let start = rng.u64(0..size / block);
    let len = rng.u64(1..=(size / block - start).min((128 << 10) / block).max(1));
    start * block..(start + len) * block
}

/// A long random history of everything, compared with memory.
fn history(device: &Shared, seed: u64) -> Result<()> {
    let mut rng = Rng::with_seed(seed);
    let block = u64::from(device.identity().block_size);
    let mut expected = random(&mut rng, 4 << 20);
    device.write(0, &expected)?;
    for step in 0..400 {
        let Range { start, end } = range(&mut rng, expected.len() as u64, block);
        let there = &mut expected[start as usize..end as usize];
        match rng.u8(0..10) {
            0..4 => {
                rng.fill(there);
                device.write(start, there)?;
            }
            4 if device.identity().write_zeroes => {
                device.command(Action::WriteZeroes, start, end - start)?;
                there.fill(0);
            }
            5 => device.flush()?,
            _ => {
                // Nothing need be aligned for it.
                let (start, end) = (start + rng.u64(0..block), end - rng.u64(0..block));
                let mut got = vec![0; end.saturating_sub(start) as usize];
                device.read(start, &mut got)?;
                let expected = &expected[start as usize..][..got.len()];
                compare(start, &got, expected, || {
                    format!("step {step}, seed {seed}")
                })?;
            }
        }
    }
    let mut got = vec![0; expected.len()];
    device.read(0, &mut got)?;
    compare(0, &got, &expected, || format!("all steps, seed {seed}"))
}

/// Several threads, each with its own part of the device.
fn threads(device: &Shared, seed: u64) -> Result<()> {
    const PART: u64 = 1 << 20;
    let work = |number: u64| -> Result<()> {
        let mut rng = Rng::with_seed(seed ^ number);
        for round in 0..6 {
            let bytes = random(&mut rng, PART as usize);
            device.write(number * PART, &bytes)?;
            if round % 2 == 0 {
                device.flush()?;
            }
            let mut got = vec![0; bytes.len()];
            device.read(number * PART, &mut got)?;
            compare(number * PART, &got, &bytes, || format!("thread {number}"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().try_for_each(|thread| {
            let lost = || Err(Failure::Accepted("a thread panicked".to_owned()));
            thread.join().unwrap_or_else(|_| lost())
        })
    })
}
