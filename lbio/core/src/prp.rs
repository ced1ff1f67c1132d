// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Physical region pages: how a command says which memory its data goes to.
//!
//! NVM Express Base Specification 2.0, section 4.1.1. Only whole pages are
//! described here, so no entry but zero has an offset: one page is entry 1, two
//! are entries 1 and 2, more are entry 1 and a list, which is in one page that
//! belongs to the command's slot.

use crate::nvme::{
    PAGE_SIZE,
    Prp, //
};

/// Why pages cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrpError {
    /// There is no page to transfer to.
    Empty,
    /// An address, of a page or of the list, is no multiple of the page size.
    Unaligned(u64),
    /// More pages than entry 1 and the slot's list hold.
    TooLong {
        /// Pages asked for.
        pages: usize,
        /// Most pages that fit.
        limit: usize,
    },
}

/// Describes the whole pages at the bus addresses `pages`, with `list` as the
/// command's list page, which the controller finds at `list_address`.
///
/// The list is written only if there are more than two pages.
pub fn build(pages: &[u64], list: &mut [u64], list_address: u64) -> Result<Prp, PrpError> {
    if let Some(&bad) = pages.iter().find(|&&page| !page.is_multiple_of(PAGE_SIZE)) {
        return Err(PrpError::Unaligned(bad));
    }
    match *pages {
        [] => Err(PrpError::Empty),
        [first] => Ok(Prp { first, second: 0 }),
        [first, second] => Ok(Prp { first, second }),
        [first, ref rest @ ..] => {
            if !list_address.is_multiple_of(PAGE_SIZE) {
                return Err(PrpError::Unaligned(list_address));
            }
            // A list longer than a page would need chaining; nothing here does.
            let room = list.len().min(PAGE_SIZE as usize / size_of::<u64>());
            if rest.len() > room {
                return Err(PrpError::TooLong {
                    pages: pages.len(),
                    limit: room + 1,
                });
            }
            for (entry, page) in list.iter_mut().zip(rest) {
                *entry = page.to_le();
            }
            Ok(Prp {
                first,
                second: list_address,
            })
        }
    }
}

#[cfg(all(test, not(kernel)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a controller transfers to for `count` pages.
    fn walk(prp: Prp, count: usize, list: &[u64]) -> Vec<u64> {
        match count {
            1 => vec![prp.first],
            2 => vec![prp.first, prp.second],
            _ => core::iter::once(prp.first)
                .chain(list.iter().take(count - 1).map(|&e| u64::from_le(e)))
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn test_build_controller_finds_the_same_pages(
            frames in proptest::collection::vec(0u64..1 << 40, 1..64),
            list_frame in 1u64..1 << 40,
            room in 0usize..64,
        ) {
            let pages: Vec<u64> = frames.iter().map(|f| f * PAGE_SIZE).collect();
            let mut list = vec![0xdead; room];
            let built = build(&pages, &mut list, list_frame * PAGE_SIZE);
            if pages.len() > 2 && pages.len() - 1 > room {
                let limit = room + 1;
                prop_assert_eq!(built, Err(PrpError::TooLong { pages: pages.len(), limit }));
                prop_assert!(list.iter().all(|&e| e == 0xdead));
            } else {
                let prp = built.unwrap();
                prop_assert_eq!(walk(prp, pages.len(), &list), pages.clone());
                if pages.len() > 2 {
                    prop_assert_eq!(prp.second, list_frame * PAGE_SIZE);
                } else {
                    prop_assert!(list.iter().all(|&e| e == 0xdead));
                }
            }
        }

        #[test]
        fn test_build_offsets_are_refused(
            frames in proptest::collection::vec(0u64..1 << 40, 1..8),
            at in any::<prop::sample::Index>(),
            offset in 1u64..PAGE_SIZE,
        ) {
            let mut pages: Vec<u64> = frames.iter().map(|f| f * PAGE_SIZE).collect();
            let bad = at.index(pages.len());
            pages[bad] += offset;
            let built = build(&pages, &mut [0; 8], PAGE_SIZE);
            prop_assert_eq!(built, Err(PrpError::Unaligned(pages[bad])));
        }
    }

    #[test]
    fn test_build_nothing_is_refused() {
        assert_eq!(build(&[], &mut [0; 8], 0), Err(PrpError::Empty));
    }

    #[test]
    fn test_build_unaligned_list_is_refused_only_if_used() {
        let two = [PAGE_SIZE, 3 * PAGE_SIZE];
        let three = [PAGE_SIZE, 3 * PAGE_SIZE, 8 * PAGE_SIZE];
        assert!(build(&two, &mut [0; 8], 12).is_ok());
        assert_eq!(build(&three, &mut [0; 8], 12), Err(PrpError::Unaligned(12)));
    }

    #[test]
    fn test_build_list_never_leaves_its_page() {
        let pages: Vec<u64> = (0..514).map(|i| i * PAGE_SIZE).collect();
        let mut list = vec![0; 4096];
        assert!(build(&pages[..513], &mut list, 0).is_ok());
        let limit = PrpError::TooLong {
            pages: 514,
            limit: 513,
        };
        assert_eq!(build(&pages, &mut list, 0), Err(limit));
    }
}
