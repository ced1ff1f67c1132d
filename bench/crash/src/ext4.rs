// SPDX-License-Identifier: MIT
//! Reads files out of an ext4 image that e2fsck has found clean: regular files
//! with extents and folders of plain blocks, which is all that the explorer's
//! file systems have.
//!
//! Why a reader of our own: of the published crates `ext4-view` 1.0 takes
//! unwritten extents for written ones, and those are what is looked for here;
//! debugfs takes a process per file. Layouts are those of
//! `Documentation/filesystems/ext4` in the kernel.

use std::ops::Range;

/// Number of the root folder's inode.
pub const ROOT: u32 = 2;
/// Number of the journal's inode.
pub const JOURNAL: u32 = 8;

const MAGIC: u16 = 0xef53;
const EXTENT_MAGIC: u16 = 0xf30a;
const INCOMPAT_64BIT: u32 = 0x80;
/// `EXT4_EXTENTS_FL`.
const EXTENTS: u32 = 0x8_0000;
/// An extent longer than this is unwritten, and this much shorter than it says.
const MAX_INITIALIZED: u16 = 0x8000;
/// Deepest tree of extents.
const MAX_DEPTH: u16 = 5;
/// Largest file that is read, bytes.
const MAX_SIZE: u64 = 64 << 20;

/// Why something could not be read: a text for the story of a violation.
pub type Result<T> = std::result::Result<T, String>;

/// An image.
#[derive(Debug, Clone, Copy)]
pub struct Ext4<'a> {
    image: &'a [u8],
    block: u64,
    inodes_per_group: u32,
    inode_size: u64,
    descriptor: u64,
    /// Block with the first group descriptor.
    table: u64,
}

/// One inode.
#[derive(Debug, Clone, Copy)]
pub struct Inode<'a> {
    bytes: &'a [u8],
    /// Size in bytes.
    pub size: u64,
}

/// Blocks of a file that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block in the file.
    pub logical: u32,
    /// Number of blocks.
    pub length: u16,
    /// First block on the drive.
    pub start: u64,
    /// Whether it reads as what is there, and not as zeroes.
    pub written: bool,
}

impl<'a> Ext4<'a> {
    /// Looks at the superblock.
    pub fn new(image: &'a [u8]) -> Result<Self> {
        let sb = bytes(image, 1024, 1024).ok_or("no superblock")?;
        if u16_at(sb, 56) != Some(MAGIC) {
            return Err("no ext4 file system".into());
        }
        let wrong = || "a superblock that makes no sense".to_owned();
        let field = |at| u32_at(sb, at).ok_or_else(wrong);
        let shift = field(24)?;
        let wide = field(96)? & INCOMPAT_64BIT != 0;
        let size = u16_at(sb, 254).filter(|&size| wide && size >= 64);
        let ext4 = Self {
            image,
            block: if shift <= 6 { 1024 << shift } else { 0 },
            inodes_per_group: field(40)?,
            inode_size: u16_at(sb, 88).map_or(0, u64::from),
            descriptor: size.map_or(32, u64::from),
            table: u64::from(field(20)?) + 1,
        };
        if ext4.block == 0 || ext4.inodes_per_group == 0 || ext4.inode_size < 128 {
            return Err(wrong());
        }
        Ok(ext4)
    }

    /// Size of a block, bytes.
    pub fn block_size(&self) -> u64 {
        self.block
    }

    /// The inode with this number.
    pub fn inode(&self, number: u32) -> Result<Inode<'a>> {
        let missing = || format!("inode {number} is not on the drive");
        let index = number.checked_sub(1).ok_or_else(missing)?;
        let group = u64::from(index / self.inodes_per_group);
        let at = self.table * self.block + group * self.descriptor;
        let descriptor = bytes(self.image, at, self.descriptor).ok_or_else(missing)?;
        let low = u32_at(descriptor, 8).map(u64::from);
        let high = match self.descriptor {
            64.. => u32_at(descriptor, 40).map(u64::from),
            _ => Some(0),
        };
        let table = low.zip(high).map(|(low, high)| low | high << 32);
        let within = u64::from(index % self.inodes_per_group) * self.inode_size;
        let bytes = table
            .and_then(|table| table.checked_mul(self.block)?.checked_add(within))
            .and_then(|at| bytes(self.image, at, self.inode_size))
            .ok_or_else(missing)?;
        let size = u32_at(bytes, 4).zip(u32_at(bytes, 108));
        let (low, high) = size.ok_or_else(missing)?;
        Ok(Inode {
            bytes,
            size: u64::from(low) | u64::from(high) << 32,
        })
    }

    /// The extents of a file, in order.
    pub fn extents(&self, inode: &Inode<'a>) -> Result<Vec<Extent>> {
        if u32_at(inode.bytes, 32).is_none_or(|flags| flags & EXTENTS == 0) {
            return Err("a file without extents".into());
        }
        let root = inode.bytes.get(40..100).ok_or("an inode cut short")?;
        let mut extents = Vec::new();
        self.walk(root, MAX_DEPTH, &mut extents)?;
        Ok(extents)
    }

    fn walk(&self, node: &[u8], depth: u16, extents: &mut Vec<Extent>) -> Result<()> {
        let wrong = || "an extent tree that makes no sense".to_owned();
        let field = |at| u16_at(node, at).ok_or_else(wrong);
        let level = field(6)?;
        if field(0)? != EXTENT_MAGIC || level > depth {
            return Err(wrong());
        }
        for i in 0..usize::from(field(2)?) {
            let entry = node.get(12 + 12 * i..24 + 12 * i).ok_or_else(wrong)?;
            let word = |at| u32_at(entry, at).ok_or_else(wrong);
            let half = |at| u16_at(entry, at).map(u64::from).ok_or_else(wrong);
            if level > 0 {
                let child = u64::from(word(4)?) | half(8)? << 32;
                let at = child.checked_mul(self.block).ok_or_else(wrong)?;
                let child = bytes(self.image, at, self.block).ok_or_else(wrong)?;
                self.walk(child, level - 1, extents)?;
                continue;
            }
            let length = u16_at(entry, 4).ok_or_else(wrong)?;
            let written = length <= MAX_INITIALIZED;
            extents.push(Extent {
                logical: word(0)?,
                length: if written {
                    length
                } else {
                    length - MAX_INITIALIZED
                },
                start: u64::from(word(8)?) | half(6)? << 32,
                written,
            });
        }
        Ok(())
    }

    /// Where on the drive the blocks of a file lie, bytes.
    pub fn places(&self, inode: &Inode<'a>) -> Result<Vec<Range<u64>>> {
        let bytes = |blocks: u64| blocks.saturating_mul(self.block);
        Ok(self
            .extents(inode)?
            .iter()
            .map(|extent| bytes(extent.start)..bytes(extent.start + u64::from(extent.length)))
            .collect())
    }

    /// All of a file.
    pub fn read(&self, inode: &Inode<'a>) -> Result<Vec<u8>> {
        if inode.size > MAX_SIZE {
            return Err(format!("a file of {} bytes", inode.size));
        }
        let mut data = vec![0; usize::try_from(inode.size).unwrap_or_default()];
        let block = usize::try_from(self.block).unwrap_or(usize::MAX);
        for extent in self.extents(inode)?.iter().filter(|extent| extent.written) {
            let start = (extent.logical as usize).saturating_mul(block);
            let Some(rest) = data.get_mut(start..) else {
                continue;
            };
            let length = rest.len().min(usize::from(extent.length) * block);
            let from = extent
                .start
                .checked_mul(self.block)
                .and_then(|at| bytes(self.image, at, length as u64))
                .ok_or("an extent beyond the end of the drive")?;
            rest[..length].copy_from_slice(from);
        }
        Ok(data)
    }

    /// The names in a folder, `.` and `..` left out, and their inodes' numbers.
    pub fn list(&self, inode: &Inode<'a>) -> Result<Vec<(String, u32)>> {
        let data = self.read(inode)?;
        let wrong = || "a folder that makes no sense".to_owned();
        let mut names = Vec::new();
        for block in data.chunks(usize::try_from(self.block).unwrap_or(usize::MAX)) {
            let mut at = 0;
            while at < block.len() {
                let number = u32_at(block, at).ok_or_else(wrong)?;
                let length = u16_at(block, at + 4).map(usize::from).ok_or_else(wrong)?;
                let name = block.get(at + 6).copied().ok_or_else(wrong)?;
                let name = block
                    .get(at + 8..at + 8 + usize::from(name))
                    .ok_or_else(wrong)?;
                if length < 8 {
                    return Err(wrong());
                }
                if number != 0 && name != b"." && name != b".." {
                    names.push((String::from_utf8_lossy(name).into_owned(), number));
                }
                at += length;
            }
        }
        Ok(names)
    }
}

/// Enters the file system on `image` as the one user of `journal`, a journal's drive with
/// blocks of 4096 bytes, whose UUID it must know.
///
/// # Errors
///
/// They do not belong together.
pub fn join(image: &[u8], journal: &mut [u8]) -> Result<()> {
    // s_uuid and s_journal_uuid of struct ext4_super_block, which both have.
    let uuid = |image, at: u64| bytes(image, 1024 + at, 16);
    let own = uuid(image, 0x68).ok_or("no superblock")?.to_vec();
    if uuid(image, 0xd0) != uuid(journal, 0x68) {
        return Err("a journal with another UUID than the file system knows".into());
    }
    // struct journal_superblock_s, the block behind it.
    let superblock = journal.get_mut(4096..8192).ok_or("no journal")?;
    // s_nr_users and s_users.
    superblock[0x40..0x44].copy_from_slice(&1_u32.to_be_bytes());
    superblock[0x100..0x110].copy_from_slice(&own);
    Ok(())
}

fn bytes(image: &[u8], at: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(at).ok()?;
    image.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
