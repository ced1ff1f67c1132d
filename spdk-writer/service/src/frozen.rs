// SPDX-License-Identifier: MIT

//! A frozen layer as the content of a layer to be written: its blocks are
//! compressed where they lie.

use crate::BLOCK;
use crate::kernel::Extent;
use obd_writer::Source;
use obd_writer::source::Range;
use std::convert::Infallible;

/// A frozen layer: which blocks it has, and the pages of those that are data.
pub(crate) struct Content<'a> {
    size: u64,
    ranges: Vec<Range>,
    /// For each range of data where it begins in the image, and in `bytes`.
    places: Vec<(u64, u64)>,
    bytes: &'a [u8],
}

impl<'a> Content<'a> {
    /// The content of a layer of a disk of `size` bytes; what is wrong with it if
    /// it cannot be one.
    pub(crate) fn new(size: u64, extents: &[Extent], bytes: &'a [u8]) -> Result<Self, String> {
        let mut content = Self {
            size,
            ranges: Vec::with_capacity(extents.len()),
            places: Vec::new(),
            bytes,
        };
        let mut last = 0;
        let mut at = 0;
        for extent in extents {
            let Extent {
                block,
                blocks,
                zero,
            } = *extent;
            let end = block
                .checked_add(u64::from(blocks))
                .filter(|end| *end <= size / BLOCK);
            let Some(end) = end.filter(|end| *end > block && block >= last && zero <= 1) else {
                return Err(format!("{extent:?} behind block {last}"));
            };
            last = end;
            let range = Range {
                start: block * BLOCK,
                end: end * BLOCK,
                zeroed: zero == 1,
            };
            if !range.zeroed {
                content.places.push((range.start, at));
                at += range.end - range.start;
            }
            content.ranges.push(range);
        }
        match at == bytes.len() as u64 {
            true => Ok(content),
            false => Err(format!("{at} bytes in extents, {} mapped", bytes.len())),
        }
    }

    /// Bytes of zeros.
    pub(crate) fn zeros(&self) -> u64 {
        let zeros = self.ranges.iter().filter(|range| range.zeroed);
        zeros.map(|range| range.end - range.start).sum()
    }

    /// The bytes from `offset` of the image on, within one range of data.
    fn at(&self, offset: u64, len: usize) -> Option<&'a [u8]> {
        let behind = self.places.partition_point(|(start, _)| *start <= offset);
        let (start, at) = self.places.get(behind.checked_sub(1)?)?;
        let at = usize::try_from(at + (offset - start)).ok()?;
        self.bytes.get(at..at.checked_add(len)?)
    }
}

impl Source for Content<'_> {
    type Error = Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.size
    }

    fn ranges(&self) -> Result<Vec<Range>, Infallible> {
        Ok(self.ranges.clone())
    }

    fn workspace(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> Result<(), Infallible> {
        match self.at(offset, buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            // Whoever writes layers asks for what the ranges say, which are in the
            // mapping.
            None => unreachable!("within a range of data"),
        }
        Ok(())
    }

    fn in_memory(&self) -> bool {
        true
    }

    fn borrow(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.at(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use obd_writer::{
        Options,
        commit, //
    };
    use std::ops::ControlFlow;

    fn extent(block: u64, blocks: u32, zero: u32) -> Extent {
        Extent {
            block,
            blocks,
            zero,
        }
    }

    fn pages(blocks: u32) -> Vec<u8> {
        (0..u64::from(blocks) * BLOCK)
            .map(|i| (i / 100 + i % 7) as u8)
            .collect()
    }

    #[test]
    fn nothing_is_copied_and_cuts_do_not_show() {
        let size = 1 << 20;
        let bytes = pages(9);
        let written = |extents: &[Extent]| {
            let content = Content::new(size, extents, &bytes).unwrap();
            let mut layer = Vec::new();
            let go = |_, _| ControlFlow::Continue(());
            let stats = commit(&content, &mut layer, &Options::default(), go).unwrap();
            assert_eq!(stats.copied, 0);
            assert_eq!(stats.data, bytes.len() as u64);
            layer
        };
        let one = written(&[extent(3, 7, 0), extent(10, 4, 1), extent(200, 2, 0)]);
        let cut = written(&[
            extent(3, 1, 0),
            extent(4, 6, 0),
            extent(10, 1, 1),
            extent(11, 3, 1),
            extent(200, 2, 0),
        ]);
        assert_eq!(one, cut);
    }

    #[test]
    fn what_a_driver_must_not_say() {
        let bytes = pages(2);
        for extents in [
            &[extent(0, 2, 2)][..],
            &[extent(0, 1, 0)],
            &[extent(0, 3, 0)],
            &[extent(0, 0, 1), extent(0, 2, 0)],
            &[extent(1, 1, 0), extent(0, 1, 0)],
            &[extent(0, 2, 0), extent(1, 1, 1)],
            &[extent(255, 2, 0)],
            &[extent(u64::MAX, 2, 0)],
        ] {
            assert!(Content::new(1 << 20, extents, &bytes).is_err());
        }
        assert!(Content::new(1 << 20, &[extent(254, 2, 0)], &bytes).is_ok());
        assert!(Content::new(1 << 20, &[], &[]).is_ok());
    }
}
