// SPDX-License-Identifier: GPL-2.0

//! What a disk reads at one time: an image's layers, or a zfile, and where they are.

use crate::blob::Blob;
use crate::content::{
    Content,
    Failure, //
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Completion, //
    }, //
};

/// What reads of a stack read in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Block devices alone, sector by sector.
    Devices,
    /// Devices and files, all of them past the page cache, for as much as is aligned.
    Blocks,
    /// Files of which some are read through the page cache alone.
    Cache,
}

/// Content with the paths it came from. It never changes: other layers are another stack, which
/// takes this one's place, see [`Pool::exchange`].
///
/// [`Pool::exchange`]: crate::scratch::Pool::exchange
pub(crate) struct Stack {
    /// How many there were before this one.
    pub(crate) number: u64,
    pub(crate) content: Content,
    /// What it is in.
    pub(crate) below: Below,
    /// As many as there are blobs.
    pub(crate) paths: KVec<CString>,
    /// Done when nobody reads this any more.
    pub(crate) unread: Arc<Completion>,
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.unread.complete_all();
    }
}

impl Stack {
    /// `content` of `paths`, the first that a disk has.
    pub(crate) fn new(content: Content, paths: KVec<CString>) -> Result<Self> {
        Self::numbered(0, content, paths)
    }

    fn numbered(number: u64, content: Content, paths: KVec<CString>) -> Result<Self> {
        let below = if content.blobs(Blob::is_on_device) {
            Below::Devices
        } else if content.blobs(Blob::is_past_cache) {
            Below::Blocks
        } else {
            Below::Cache
        };
        Ok(Self {
            number,
            content,
            below,
            paths,
            unread: Arc::pin_init(Completion::new(), GFP_KERNEL)?,
        })
    }

    /// The same with the layer at `path` in place of the `nr` layers from `first` on.
    pub(crate) fn exchanged(&self, first: usize, nr: usize, path: &CStr) -> Result<Self, Failure> {
        let content = self.content.exchanged(first, nr, path)?;
        let paths = self.paths_exchanged(first, nr, path);
        paths
            .and_then(|paths| Self::numbered(self.number + 1, content, paths))
            .map_err(|error| Failure::whole(error, "out of memory"))
    }

    fn paths_exchanged(&self, first: usize, nr: usize, path: &CStr) -> Result<KVec<CString>> {
        let mut paths = KVec::with_capacity(self.paths.len() + 1, GFP_KERNEL)?;
        let (before, after) = parts(&self.paths, first, nr).ok_or(EINVAL)?;
        for path in before {
            paths.push(copy(path)?, GFP_KERNEL)?;
        }
        paths.push(path.try_into()?, GFP_KERNEL)?;
        for path in after {
            paths.push(copy(path)?, GFP_KERNEL)?;
        }
        Ok(paths)
    }
}

/// What of `all` is before the `nr` from `first` on, and behind them, if they are there.
pub(crate) fn parts<T>(all: &[T], first: usize, nr: usize) -> Option<(&[T], &[T])> {
    Some((all.get(..first)?, all.get(first.checked_add(nr)?..)?))
}

fn copy(path: &CStr) -> Result<CString> {
    Ok(path.try_into()?)
}

/// The same paths.
pub(crate) fn copies(paths: &[CString]) -> Result<KVec<CString>> {
    let mut copies = KVec::with_capacity(paths.len(), GFP_KERNEL)?;
    for path in paths {
        copies.push(copy(path)?, GFP_KERNEL)?;
    }
    Ok(copies)
}
