// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Many lists of segments, one over the other, made one.

use crate::lsmt::Segment;
use crate::platform::{
    Growing,
    Memory,
    OutOfMemory, //
};

/// A merged list in the making: `len` segments from `start` on, in a place that
/// has room for twice as many as went into it.
#[derive(Clone, Copy, Default)]
struct Run {
    start: usize,
    len: usize,
}

/// Lays lists of segments over each other: where two overlap, the later list's
/// counts. Each list must be sorted and without overlap, and comes with the
/// layer its segments are marked with.
///
/// Neighbours are merged pairwise until one list is left: `n log(lists)` steps.
/// `n` segments have `2n` ends and so give at most `2n - 1` pieces: each list
/// has that much room in both of two buffers, at the same place.
pub(crate) fn flatten<'a, M, F, I>(lists: F) -> Result<Growing<M, Segment>, OutOfMemory>
where
    M: Memory,
    F: Fn() -> I,
    I: Iterator<Item = (u8, &'a [Segment])>,
{
    let (mut count, mut total) = (0usize, 0usize);
    for (_, list) in lists() {
        count += 1;
        total = total.checked_add(list.len()).ok_or(OutOfMemory)?;
    }
    if count == 0 {
        return Growing::new();
    }
    let room = match count {
        1 => total,
        _ => total.checked_mul(2).ok_or(OutOfMemory)?,
    };
    let mut from = M::filled::<Segment>(room)?;
    let mut runs = M::filled::<Run>(count)?;
    let mut start = 0;
    for ((layer, list), run) in lists().zip(runs.iter_mut()) {
        let place = from.get_mut(start..).unwrap_or_default();
        for (to, segment) in place.iter_mut().zip(list) {
            *to = segment.in_layer(layer);
        }
        *run = Run {
            start,
            len: list.len(),
        };
        start += 2 * list.len();
    }
    if count == 1 {
        return Ok(Growing::from_parts(from, total));
    }
    let mut to = M::filled::<Segment>(room)?;
    while count > 1 {
        let mut merged = 0;
        for pair in 0..count.div_ceil(2) {
            let lower = runs.get(2 * pair).copied().unwrap_or_default();
            let upper = match 2 * pair + 1 < count {
                true => runs.get(2 * pair + 1).copied().unwrap_or_default(),
                false => Run::default(),
            };
            let place = to.get_mut(lower.start..).unwrap_or_default();
            let len = overlay(part(&from, upper), part(&from, lower), place);
            if let Some(run) = runs.get_mut(pair) {
                *run = Run {
                    start: lower.start,
                    len,
                };
            }
            merged += 1;
        }
        count = merged;
        core::mem::swap(&mut from, &mut to);
    }
    let len = runs.first().map_or(0, |run| run.len);
    Ok(Growing::from_parts(from, len))
}

fn part(segments: &[Segment], run: Run) -> &[Segment] {
    segments
        .get(run.start..)
        .and_then(|from| from.get(..run.len))
        .unwrap_or(&[])
}

/// Writes the segments of `top`, and of `bottom` where `top` has none, to `out`
/// and returns their number. `out` must have room for them.
fn overlay(top: &[Segment], bottom: &[Segment], out: &mut [Segment]) -> usize {
    let mut room = out.iter_mut();
    let mut len = 0;
    let mut emit = |segment: Segment| {
        if let Some(slot) = room.next() {
            *slot = segment;
            len += 1;
        }
    };
    let mut rest = bottom.iter().copied();
    let mut below = rest.next();
    for above in top {
        while let Some(segment) = below {
            if segment.lba() < above.lba() {
                emit(segment.clip(0, above.lba()));
            }
            if segment.end() > above.end() {
                below = Some(segment.clip(above.end(), u64::MAX));
                break;
            }
            below = rest.next();
        }
        emit(*above);
    }
    if let Some(segment) = below {
        emit(segment);
    }
    rest.for_each(emit);
    len
}
