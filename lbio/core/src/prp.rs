// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Physical region pages: how a command says which memory its data goes to.
//!
//! NVM Express Base Specification 2.0, section 4.1.1. Only whole pages are
//! described here, so no entry of a page has an offset: one page is entry 1, two
//! are entries 1 and 2, more are entry 1 and a list, which belongs to the
//! command's slot. No list leaves its page, so none is chained.

use crate::nvme::{
    PAGE_SIZE,
    Prp, //
};

/// Entries of a [`List`].
const LIST_ENTRIES: usize = 8;

/// Most pages of a command whose slot has a [`List`]: 32 KiB.
pub const MAX_PAGES: u32 = 8;

const _: () = assert!(MAX_PAGES as usize <= LIST_ENTRIES + 1);

/// A short list of one slot; many share a page.
///
/// # Invariants
///
/// Aligned to its size, which divides a page, it never leaves a page.
#[derive(Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct List([u64; LIST_ENTRIES]);

impl List {
    /// What [`build`] may write.
    pub fn entries(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

/// Why pages cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrpError {
    /// No page, or more than the list has entries for.
    Count(u32),
    /// The address of the pages is no multiple of the page size, that of the list
    /// none of an entry's, the list leaves its page, or the pages leave the bus's
    /// addresses.
    Address(u64),
}

/// Describes page `frame` of the bus: the one at `frame` times the page size.
#[inline]
pub const fn page(frame: u64) -> Prp {
    let first = frame.wrapping_mul(PAGE_SIZE);
    Prp { first, second: 0 }
}

/// Describes `count` adjacent pages from bus address `first` on.
///
/// `list` is asked only if there are more than two pages: for the command's list,
/// the first `count - 1` entries of which are written, and the bus address where
/// the controller finds it.
#[inline]
pub fn build<'a>(
    first: u64,
    count: u32,
    list: impl FnOnce() -> (&'a mut [u64], u64),
) -> Result<Prp, PrpError> {
    if !first.is_multiple_of(PAGE_SIZE) {
        return Err(PrpError::Address(first));
    }
    if count == 1 {
        return Ok(Prp { first, second: 0 });
    }
    build_longer(first, count, list)
}

/// As [`build`]; apart, so that reads of one page do without.
#[inline(never)]
fn build_longer<'a>(
    first: u64,
    count: u32,
    list: impl FnOnce() -> (&'a mut [u64], u64),
) -> Result<Prp, PrpError> {
    if count == 0 {
        return Err(PrpError::Count(count));
    }
    let size = u64::from(count).wrapping_mul(PAGE_SIZE);
    if first.checked_add(size).is_none() {
        return Err(PrpError::Address(first));
    }
    // Page `n` of the read; below the end that was checked.
    let page = |n: u64| first.wrapping_add(n.wrapping_mul(PAGE_SIZE));
    if count == 2 {
        let second = page(1);
        return Ok(Prp { first, second });
    }
    let (list, address) = list();
    let rest = (1..count).map(|n| page(u64::from(n)));
    let second = fill(list, address, rest)?;
    Ok(Prp { first, second })
}

/// Describes pages wherever they are on the bus, in their order.
///
/// `list` is as for [`build`].
#[inline]
pub fn gather<'a>(
    pages: &[u64],
    list: impl FnOnce() -> (&'a mut [u64], u64),
) -> Result<Prp, PrpError> {
    if let Some(&bad) = pages.iter().find(|page| !page.is_multiple_of(PAGE_SIZE)) {
        return Err(PrpError::Address(bad));
    }
    match *pages {
        [] => Err(PrpError::Count(0)),
        [first] => Ok(Prp { first, second: 0 }),
        [first, second] => Ok(Prp { first, second }),
        [first, ref rest @ ..] => {
            let (list, address) = list();
            let second = fill(list, address, rest.iter().copied())?;
            Ok(Prp { first, second })
        }
    }
}

/// Writes `pages` to the list at bus address `address`, which is returned.
fn fill(
    list: &mut [u64],
    address: u64,
    pages: impl ExactSizeIterator<Item = u64>,
) -> Result<u64, PrpError> {
    let entries = pages.len();
    let Some(list) = list.get_mut(..entries) else {
        return Err(PrpError::Count((entries as u32).saturating_add(1)));
    };
    let room = (PAGE_SIZE - address % PAGE_SIZE) as usize / size_of::<u64>();
    if !address.is_multiple_of(size_of::<u64>() as u64) || entries > room {
        return Err(PrpError::Address(address));
    }
    for (page, entry) in pages.zip(list) {
        *entry = page.to_le();
    }
    Ok(address)
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a controller transfers to for `count` pages.
    fn walk(prp: Prp, count: usize, list: &List) -> Vec<u64> {
        match count {
            1 => vec![prp.first],
            2 => vec![prp.first, prp.second],
            _ => core::iter::once(prp.first)
                .chain(list.0.iter().take(count - 1).map(|&e| u64::from_le(e)))
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn test_build_controller_finds_the_pages(
            frame in 0u64..1 << 40,
            count in 1u32..=MAX_PAGES,
            at in 1u64..1 << 40,
        ) {
            let first = frame * PAGE_SIZE;
            let mut list = List::default();
            let prp = build(first, count, || (list.entries(), at * 64)).unwrap();
            let want: Vec<u64> = (0..u64::from(count)).map(|n| first + n * PAGE_SIZE).collect();
            prop_assert_eq!(walk(prp, count as usize, &list), want);
            prop_assert_eq!(page(frame), build(first, 1, || unreachable!()).unwrap());
            if count > 2 {
                prop_assert_eq!(prp.second, at * 64);
                prop_assert_eq!(prp.second / PAGE_SIZE, (prp.second + 63) / PAGE_SIZE);
            } else {
                prop_assert_eq!(list, List::default());
            }
        }

        #[test]
        fn test_gather_controller_finds_the_pages(
            frames in proptest::collection::vec(0u64..1 << 52, 1..=MAX_PAGES as usize),
            at in 1u64..1 << 40,
        ) {
            let pages: Vec<u64> = frames.iter().map(|frame| frame * PAGE_SIZE).collect();
            let mut list = List::default();
            let prp = gather(&pages, || (list.entries(), at * 64)).unwrap();
            prop_assert_eq!(walk(prp, pages.len(), &list), pages.clone());
        }

        #[test]
        fn test_gather_adjacent_pages_is_build(frame in 0u64..1 << 40, count in 1u32..=MAX_PAGES) {
            let first = frame * PAGE_SIZE;
            let pages: Vec<u64> =
                (0..u64::from(count)).map(|n| first + n * PAGE_SIZE).collect();
            let (mut one, mut other) = (List::default(), List::default());
            let gathered = gather(&pages, || (one.entries(), 128));
            let built = build(first, count, || (other.entries(), 128));
            prop_assert_eq!(gathered, built);
            prop_assert_eq!(one, other);
        }

        #[test]
        fn test_build_offsets_are_refused(frame in 0u64..1 << 40, offset in 1u64..PAGE_SIZE) {
            let first = frame * PAGE_SIZE + offset;
            let built = build(first, 1, || unreachable!());
            prop_assert_eq!(built, Err(PrpError::Address(first)));
        }
    }

    #[test]
    fn test_build_none_and_too_many_are_refused() {
        assert_eq!(build(0, 0, || unreachable!()), Err(PrpError::Count(0)));
        let mut list = List::default();
        for count in [LIST_ENTRIES as u32 + 2, u32::MAX] {
            let built = build(0, count, || (list.entries(), 64));
            assert_eq!(built, Err(PrpError::Count(count)));
        }
    }

    #[test]
    fn test_gather_none_too_many_and_offsets_are_refused() {
        assert_eq!(gather(&[], || unreachable!()), Err(PrpError::Count(0)));
        let mut list = List::default();
        let many = [PAGE_SIZE; LIST_ENTRIES + 2];
        let gathered = gather(&many, || (list.entries(), 64));
        assert_eq!(gathered, Err(PrpError::Count(LIST_ENTRIES as u32 + 2)));
        for bad in 0..3 {
            let mut pages = [PAGE_SIZE; 3];
            pages[bad] += 512;
            let gathered = gather(&pages, || (list.entries(), 64));
            assert_eq!(gathered, Err(PrpError::Address(pages[bad])));
        }
        let pages = [PAGE_SIZE; 3];
        let gathered = gather(&pages, || (list.entries(), PAGE_SIZE - 8));
        assert_eq!(gathered, Err(PrpError::Address(PAGE_SIZE - 8)));
    }

    #[test]
    fn test_build_last_page_of_the_bus_is_refused() {
        let first = u64::MAX - (PAGE_SIZE - 1);
        let built = build(first, 2, || unreachable!());
        assert_eq!(built, Err(PrpError::Address(first)));
    }

    #[test]
    fn test_build_unaligned_list_is_refused_only_if_used() {
        assert!(build(PAGE_SIZE, 2, || unreachable!()).is_ok());
        let mut list = List::default();
        let built = build(PAGE_SIZE, 3, || (list.entries(), 12));
        assert_eq!(built, Err(PrpError::Address(12)));
    }

    #[test]
    fn test_build_list_that_leaves_its_page_is_refused() {
        let mut list = [0; 4];
        let end = 5 * PAGE_SIZE;
        assert!(build(0, 4, || (&mut list, end - 24)).is_ok());
        let built = build(0, 5, || (&mut list, end - 24));
        assert_eq!(built, Err(PrpError::Address(end - 24)));
    }
}
