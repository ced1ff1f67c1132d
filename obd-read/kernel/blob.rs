// SPDX-License-Identifier: GPL-2.0

//! Files and block devices that layers are in.

use crate::cache::Origin;
use crate::platform::Crc;
use core::{
    fmt,
    ops::Range, //
};
use kernel::{
    bindings,
    block::{
        bdev::BlockDevice,
        lbio::{
            self,
            Pages, //
        },
        mq::may_enter_file_systems,
        SECTOR_SHIFT,
        SECTOR_SIZE, //
    },
    fs::{
        file::{
            flags,
            DirectAlignment,
            File, //
        },
        path::{
            FileType,
            Path, //
        }, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};
use obd_core::source::{
    Blocks,
    SLACK, //
};
use obd_core::{
    zfile,
    Source, //
};

/// The file system that devices are configured in.
const CONFIGFS_MAGIC: u64 = bindings::CONFIGFS_MAGIC as u64;

/// Where a blob is: a file or block device, `PATH`, or so many bytes of it, `START+LEN PATH`. Paths
/// are absolute: what others would be relative to is chance, the folder of who attaches.
pub(crate) struct Place<'a> {
    part: Option<Range<u64>>,
    path: &'a CStr,
}

impl<'a> Place<'a> {
    /// What `text` says.
    pub(crate) fn parse(text: &'a CStr) -> Result<Self> {
        let bytes = text.to_bytes_with_nul();
        if bytes.starts_with(b"/") {
            let part = None;
            return Ok(Self { part, path: text });
        }
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or(EINVAL)?;
        let (part, path) = bytes.split_at(space);
        let part = core::str::from_utf8(part).map_err(|_| EINVAL)?;
        let (start, len) = part.split_once('+').ok_or(EINVAL)?;
        let start: u64 = start.parse().map_err(|_| EINVAL)?;
        let len: u64 = len.parse().map_err(|_| EINVAL)?;
        let end = start.checked_add(len).ok_or(EINVAL)?;
        let path = path
            .strip_prefix(b" ")
            .filter(|path| path.starts_with(b"/"));
        Ok(Self {
            part: Some(start..end),
            path: CStr::from_bytes_with_nul(path.ok_or(EINVAL)?).map_err(|_| EINVAL)?,
        })
    }
}

/// An open blob; its size is what it was when it was opened. A clone is the same open file.
#[derive(Clone)]
pub(crate) struct Blob {
    file: ARef<File>,
    /// Where it begins in the file, bytes.
    start: u64,
    size: u64,
    /// How it is read past the page cache, if it is a regular file that can be.
    direct: Option<DirectAlignment>,
    /// Bytes of which whole multiples are read past the page cache: the logical blocks of a device,
    /// or of what a file is on. 1 if it is read through the page cache alone.
    granule: usize,
    origin: Arc<Origin>,
}

/// What is to be read past the page cache, without the blob.
pub(crate) enum Lower<'a> {
    Device(&'a BlockDevice),
    File(&'a File),
}

impl Blob {
    /// Opens what is at `place`, in a regular file or a block device, as the current task.
    ///
    /// Whether the task may read it is decided here: later reads ask nobody, neither security
    /// modules nor watchers in user space (fanotify), which must not hold up a disk.
    pub(crate) fn open(place: &CStr) -> Result<Self> {
        let Place { part, path } = Place::parse(place)?;
        let path = Self::lookup(path)?;
        let file_type = path.file_type();
        // What is neither file nor disk must not be opened at all, which may wait for somebody (a
        // FIFO) or set something going (a watchdog). A file of configfs neither: writes to `power`
        // hold the lock of the device's files, which opening one of them takes again, behind a
        // `rmdir` that waits for it.
        if file_type == FileType::Other || path.filesystem() == CONFIGFS_MAGIC {
            return Err(EINVAL);
        }
        let flags = flags::O_RDONLY | flags::O_LARGEFILE;
        // Reads must not become writes of access times; only the owner may ask.
        let file = match path.open(flags | flags::O_NOATIME) {
            Err(error) if error == EPERM => path.open(flags)?,
            other => other?,
        };
        file.read_at(&mut [0], 0)?;
        if let Some(device) = file.block_device() {
            // It is read past its page cache.
            device.sync()?;
        }
        let (start, size) = match &part {
            Some(part) if part.end > file.size() => return Err(ENODATA),
            Some(part) => (part.start, part.end - part.start),
            None => (0, file.size()),
        };
        let direct = match file_type {
            FileType::Regular => file.direct_alignment(),
            _ => None,
        };
        let granule = match file.block_device() {
            Some(device) => Some(device.logical_block_size()),
            None => direct.map(|alignment| alignment.blocks),
        };
        let blob = Self {
            start,
            size,
            direct,
            // Buffers have room for no larger ones.
            granule: granule.filter(|size| *size <= SLACK / 2).unwrap_or(1),
            file,
            origin: Origin::new()?,
        };
        match file_type {
            FileType::BlockDevice if part.is_none() => blob.shrink(),
            _ => Ok(blob),
        }
    }

    /// Finds `path`, folder by folder, and fails with [`EINVAL`] at the first one of configfs.
    ///
    /// configfs keeps no names of files, so every lookup there takes the lock of the folder, which
    /// `rmdir` holds while it waits for who writes to `power`. What remains is a link to something
    /// in a device's folder, until a signal ends `rmdir`; no image is there.
    fn lookup(path: &CStr) -> Result<Path> {
        let bytes = path.to_bytes();
        let mut folder = KVec::with_capacity(bytes.len() + 1, GFP_KERNEL)?;
        for byte in bytes {
            if *byte == b'/' && !folder.is_empty() {
                folder.push(0, GFP_KERNEL)?;
                let found = CStr::from_bytes_with_nul(&folder).map_err(|_| EINVAL)?;
                if Path::lookup(found)?.filesystem() == CONFIGFS_MAGIC {
                    return Err(EINVAL);
                }
                folder.pop();
            }
            folder.push(*byte, GFP_KERNEL)?;
        }
        Path::lookup(path)
    }

    /// Whether all that an image has on it is read past the page cache: it is on a block device,
    /// and whole sectors can be read from that.
    pub(crate) fn is_on_device(&self) -> bool {
        self.device().is_some() && self.granule == SECTOR_SIZE as usize
    }

    /// Whether it can be read past the page cache, by whole blocks.
    pub(crate) fn is_past_cache(&self) -> bool {
        self.granule > 1
    }

    /// What the cache knows of it.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    fn device(&self) -> Option<&BlockDevice> {
        self.file.block_device()
    }

    /// What it is on, and the blocks of that around `len` bytes at `offset`, if they are to be read
    /// past the page cache.
    pub(crate) fn lower(&self, offset: u64, len: usize) -> Option<(Lower<'_>, Blocks)> {
        if !self.is_past_cache() {
            return None;
        }
        let lower = match self.device() {
            Some(device) => Lower::Device(device),
            None => Lower::File(&self.file),
        };
        Some((lower, Blocks::around(self.place(offset), len, self.granule)))
    }

    /// Whether `buf` can be read from `at` on past the page cache. `at` is a place in the file, as
    /// everywhere below but in [`Source`].
    fn is_aligned(&self, at: u64, buf: &[u8]) -> bool {
        if let Some(device) = self.device() {
            let sector = at >> SECTOR_SHIFT;
            return at == sector << SECTOR_SHIFT
                && device.can_read(sector, buf.len(), buf.as_ptr());
        }
        self.direct.is_some_and(|alignment| {
            let blocks = alignment.blocks - 1;
            at & blocks as u64 == 0
                && buf.len() & blocks == 0
                && buf.as_ptr().addr() & (alignment.memory - 1) == 0
        })
    }

    /// Fills `buf` past the page cache, from `at` on. [`None`] if that is to be read through it: if
    /// it is not aligned; and of a file whatever else comes in between, such as a lock or its end
    /// within the first `least` bytes, as the page cache has no need of any of that. What is
    /// rounded up may go beyond the end of a file.
    fn read_past_cache(
        &self,
        at: u64,
        buf: &mut [u8],
        least: usize,
    ) -> Option<Result<(), ReadError>> {
        if !self.is_aligned(at, buf) {
            return None;
        }
        if let Some(device) = self.device() {
            return Some(device.read(at >> SECTOR_SHIFT, buf).map_err(ReadError));
        }
        match self.file.read_direct(buf, at) {
            Ok(got) if got >= least => Some(Ok(())),
            _ => None,
        }
    }

    /// Where in the file `offset` of the blob is. What has no place there reads as behind its end.
    fn place(&self, offset: u64) -> u64 {
        self.start.saturating_add(offset)
    }

    /// Reads whole blocks into pages of LBIO's, if that reads the drive, and they are few.
    fn read_pages(&self, blocks: Blocks) -> Option<Pages> {
        let device = self.device().filter(|_| self.is_past_cache())?;
        let pages = blocks.len.div_ceil(PAGE_SIZE);
        lbio::read(device, blocks.start >> SECTOR_SHIFT, pages)
    }

    /// Puts `pages`, which `blocks` begin with and are not in one piece, together in `room`, and
    /// reads what is behind them.
    fn gather(&self, pages: &Pages, blocks: Blocks, room: &mut [u8]) -> Result<(), ReadError> {
        let room = room.get_mut(..blocks.len).ok_or(ReadError(EINVAL))?;
        let (here, rest) = room.split_at_mut(blocks.len.min(pages.count() * PAGE_SIZE));
        for (index, to) in here.chunks_mut(PAGE_SIZE).enumerate() {
            let page = pages.page(index).and_then(|page| page.get(..to.len()));
            to.copy_from_slice(page.ok_or(ReadError(EINVAL))?);
        }
        match rest.is_empty() {
            true => Ok(()),
            false => self.read_at(blocks.start + here.len() as u64, rest),
        }
    }

    /// Fills `buf` from `at` on, through the page cache: not for a task that must not enter a file
    /// system, as that takes locks of the page cache, of the class of those it may have.
    fn read_cached(&self, mut at: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if !may_enter_file_systems() {
            return Err(ReadError(EAGAIN));
        }
        let mut rest = buf;
        while !rest.is_empty() {
            let got = self.file.read_at_unchecked(rest, at).map_err(ReadError)?;
            if got == 0 {
                // The file was cut.
                return Err(ReadError(ENODATA));
            }
            at += got as u64;
            rest = rest.get_mut(got..).unwrap_or_default();
        }
        Ok(())
    }

    /// Fills `buf` from `at` on.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        match self.read_past_cache(at, buf, buf.len()) {
            Some(read) => read,
            None => self.read_cached(at, buf),
        }
    }

    /// A device may be larger than the zfile on it, which says how long it is if its header was
    /// written again at the end.
    fn shrink(mut self) -> Result<Self> {
        self.size = zfile::size_on_device::<Crc, _>(&self).map_err(|error| error.0)?;
        Ok(self)
    }
}

impl Source for Blob {
    type Error = ReadError;

    fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.read_at(self.place(offset), buf)
    }

    /// Past the page cache, reads the blocks around it: what is compressed is never aligned.
    fn read_around(&self, offset: u64, len: usize, room: &mut [u8]) -> Result<usize, ReadError> {
        let at = self.place(offset);
        let blocks = Blocks::around(at, len, self.granule);
        let room = room.get_mut(..blocks.len).ok_or(ReadError(EINVAL))?;
        match self.read_past_cache(blocks.start, room, blocks.skip + len) {
            Some(read) => read?,
            None => {
                let wanted = room.get_mut(blocks.skip..blocks.skip + len);
                self.read_cached(at, wanted.ok_or(ReadError(EINVAL))?)?;
            }
        }
        Ok(blocks.skip)
    }

    /// Into pages of LBIO's if it reads that drive, and then it is used where it came to.
    fn with<T>(
        &self,
        offset: u64,
        len: usize,
        room: &mut [u8],
        then: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ReadError> {
        let blocks = Blocks::around(self.place(offset), len, self.granule);
        let start = match self.read_pages(blocks) {
            Some(pages) => {
                let bytes = pages.bytes();
                if let Some(wanted) = bytes.get(blocks.skip..blocks.skip + len) {
                    return Ok(then(wanted));
                }
                // Where memory is fragmented not all of them are in one piece.
                self.gather(&pages, blocks, room)?;
                blocks.skip
            }
            None => self.read_around(offset, len, room)?,
        };
        match room.get(start..start + len) {
            Some(wanted) => Ok(then(wanted)),
            None => Err(ReadError(EINVAL)),
        }
    }

    fn keep(&self, number: u64, block: &[u8]) {
        self.origin.add(number, block);
    }

    fn kept(&self, number: u64, skip: usize, to: &mut [u8]) -> bool {
        self.origin.read(number, skip, to)
    }

    fn keeps(&self, number: u64) -> bool {
        self.origin.has(number)
    }
}

/// Why a blob could not be read.
#[derive(Debug)]
pub(crate) struct ReadError(pub(crate) Error);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {}", self.0.to_errno())
    }
}
