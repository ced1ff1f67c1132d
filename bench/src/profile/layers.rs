// SPDX-License-Identifier: MIT
//! Which layer of the kernel a function belongs to: decided by the object file
//! that defines it, as found in the build tree, and for a few functions by name.

use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::process::Tool;
use aios_insn_plugin::symbols::Table;
use serde::{
    Deserialize,
    Serialize, //
};
use std::collections::{
    BTreeSet,
    HashMap, //
};
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};

/// A layer of the kernel. Ordered as they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layer {
    /// Scheduler, idle task, interrupt entry, timekeeping.
    Scheduler,
    /// Page cache, page and slab allocation, LRU.
    PageCache,
    /// DMA mapping and IOMMU page tables.
    Iommu,
    /// bio, blk-mq, tags; also building bios from pages.
    Block,
    /// The NVMe driver.
    Nvme,
    /// ext4 and jbd2.
    Ext4,
    /// The read and write calls, and copying to the caller.
    Vfs,
    /// The asynchronous stack.
    Async,
    /// System call entry, locks, RCU, access times, entropy, libraries.
    Other,
}

impl Layer {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Scheduler,
        Self::PageCache,
        Self::Iommu,
        Self::Block,
        Self::Nvme,
        Self::Ext4,
        Self::Vfs,
        Self::Async,
        Self::Other,
    ];

    /// Name for people.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler, idle, interrupt",
            Self::PageCache => "page cache, allocation",
            Self::Iommu => "IOMMU map and unmap",
            Self::Block => "bio and blk-mq",
            Self::Nvme => "nvme",
            Self::Ext4 => "ext4 and jbd2",
            Self::Vfs => "VFS and copy",
            Self::Async => "async stack",
            Self::Other => "other",
        }
    }
}

/// Layers by the beginning of an object file's path in the build tree; the
/// first match counts.
const BY_OBJECT: &[(&str, Layer)] = &[
    ("arch/x86/entry/syscall_", Layer::Other),
    ("arch/x86/entry/", Layer::Scheduler),
    ("arch/x86/kernel/", Layer::Scheduler),
    ("arch/x86/lib/copy_", Layer::Vfs),
    ("block/", Layer::Block),
    ("drivers/cpuidle/", Layer::Scheduler),
    ("drivers/iommu/", Layer::Iommu),
    ("drivers/nvme/", Layer::Nvme),
    ("fs/ext4/", Layer::Ext4),
    ("fs/jbd2/", Layer::Ext4),
    ("fs/", Layer::Vfs),
    ("kernel/context_tracking", Layer::Scheduler),
    ("kernel/dma/", Layer::Iommu),
    ("kernel/entry/", Layer::Scheduler),
    ("kernel/irq/", Layer::Scheduler),
    ("kernel/sched/", Layer::Scheduler),
    ("kernel/softirq", Layer::Scheduler),
    ("kernel/time/", Layer::Scheduler),
    ("lib/iov_iter", Layer::Vfs),
    ("lib/radix-tree", Layer::PageCache),
    ("lib/sbitmap", Layer::Block),
    ("lib/xarray", Layer::PageCache),
    ("mm/", Layer::PageCache),
];

/// Layers by the beginning of a function's name, where that says more than its
/// object file does.
const BY_NAME: &[(&str, Layer)] = &[
    ("aios_", Layer::Async),
    ("lbio_", Layer::Async),
    // Entry and exit of system calls, beside those of interrupts.
    ("entry_SYSCALL", Layer::Other),
    ("entry_SYSRET", Layer::Other),
    ("syscall_return", Layer::Other),
    // Access times.
    ("atime_needs_update", Layer::Other),
    ("touch_atime", Layer::Other),
    // Makes the IOMMU's tables visible to it; nothing else here calls it.
    ("clflush_cache_range", Layer::Iommu),
    // Builds bios.
    ("ext4_mpage_readpages", Layer::Block),
];

/// Host programs of the build: not in the kernel.
const HOST_FOLDERS: &[&str] = &["arch/x86/boot", "arch/x86/tools", "scripts", "tools", "usr"];

/// Whether a path or name is of the asynchronous stack.
fn is_async(text: &str) -> bool {
    text.contains("aios") || text.contains("lbio")
}

fn layer_of_name(name: &str) -> Option<Layer> {
    if name.starts_with("_R") && is_async(name) {
        return Some(Layer::Async);
    }
    BY_NAME
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map(|&(_, layer)| layer)
}

fn layer_of_object(object: &str) -> Layer {
    if is_async(object) {
        return Layer::Async;
    }
    BY_OBJECT
        .iter()
        .find(|(prefix, _)| object.starts_with(prefix))
        .map_or(Layer::Other, |&(_, layer)| layer)
}

/// The layers of one kernel's functions.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    by_address: HashMap<u64, Layer>,
}

impl Layers {
    /// Reads the object files of the build tree `objects`; `map` is the text of
    /// its `System.map`.
    pub(crate) fn read(objects: &Path, map: &str) -> Result<Self> {
        let table = Table::parse(map, &[]).map_err(Error::new)?;
        let mut files = Vec::new();
        find_objects(objects, Path::new(""), &mut files)?;
        if files.is_empty() {
            return Err(Error::new(format!(
                "{} has no object files to find the functions' layers in",
                objects.display()
            ))
            .hint("give the folder that the kernel was built in, not an installed one"));
        }
        let mut names = String::new();
        // Short enough for a command line.
        for files in files.chunks(500) {
            let output = Tool::new("nm")
                .args(["--print-file-name", "--defined-only"])
                .args(files)
                .dir(objects)
                .output()?;
            names.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        Ok(Self::new(&table, &names))
    }

    /// `names`: lines of `nm --print-file-name`.
    fn new(table: &Table, names: &str) -> Self {
        let mut by_name: HashMap<&str, BTreeSet<Layer>> = HashMap::new();
        for (object, name) in names.lines().filter_map(parse_line) {
            by_name
                .entry(name)
                .or_default()
                .insert(layer_of_object(object));
        }
        let mut layers = Self::default();
        // Several static functions of one name: each lies in the image among
        // others of its own object file.
        let mut neighbour = Layer::Other;
        for symbol in table.iter() {
            let found = by_name.get(symbol.name.as_str());
            let of_object = match found.map(|found| (found, found.first())) {
                Some((found, Some(&first))) => {
                    if found.len() > 1 && found.contains(&neighbour) {
                        neighbour
                    } else {
                        first
                    }
                }
                _ => Layer::Other,
            };
            if found.is_some_and(|found| found.len() == 1) {
                neighbour = of_object;
            }
            let layer = layer_of_name(&symbol.name).unwrap_or(of_object);
            layers.by_address.insert(symbol.address, layer);
        }
        layers
    }

    /// The layer of the function at `address`.
    pub(crate) fn of(&self, address: u64) -> Layer {
        self.by_address
            .get(&address)
            .copied()
            .unwrap_or(Layer::Other)
    }
}

/// Object file and function of a line `FILE:ADDRESS TYPE NAME`.
fn parse_line(line: &str) -> Option<(&str, &str)> {
    let (object, rest) = line.split_once(".o:")?;
    let mut words = rest.split_ascii_whitespace();
    let (_address, kind, name) = (words.next()?, words.next()?, words.next()?);
    matches!(kind, "t" | "T" | "w" | "W").then_some((object, name))
}

/// Adds the object files below `root`/`dir`, as paths from `root`.
fn find_objects(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let full = root.join(dir);
    for entry in fs::read_dir(&full).at("read the folder", &full)? {
        let entry = entry.at("read the folder", &full)?;
        let path = dir.join(entry.file_name());
        // Links lead to the sources.
        let kind = entry.file_type().at("look at", &full)?;
        if kind.is_dir() {
            if !HOST_FOLDERS.iter().any(|host| path == Path::new(host)) {
                find_objects(root, &path, found)?;
            }
        } else if kind.is_file() && is_object(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether `path` is an object file of one source: not the whole kernel, and
/// not what a link left behind.
fn is_object(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".o") && !name.starts_with('.') && !name.starts_with("vmlinux")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(map: &str, names: &str) -> Layers {
        Layers::new(&Table::parse(map, &[]).unwrap(), names)
    }

    /// The calibration: functions that the measured layers were found by.
    #[test]
    fn test_layer_of_object_and_name_follow_the_measured_table() {
        let of = |object, name| layer_of_name(name).unwrap_or_else(|| layer_of_object(object));
        for (object, name, layer) in [
            ("kernel/sched/core", "__schedule", Layer::Scheduler),
            (
                "arch/x86/entry/entry_64",
                "asm_common_interrupt",
                Layer::Scheduler,
            ),
            ("arch/x86/entry/entry_64", "entry_SYSCALL_64", Layer::Other),
            ("arch/x86/entry/syscall_64", "do_syscall_64", Layer::Other),
            ("mm/filemap", "filemap_read", Layer::PageCache),
            ("lib/xarray", "xas_load", Layer::PageCache),
            (
                "drivers/iommu/dma-iommu",
                "iommu_dma_map_phys",
                Layer::Iommu,
            ),
            (
                "arch/x86/mm/pat/set_memory",
                "clflush_cache_range",
                Layer::Iommu,
            ),
            ("block/blk-mq", "blk_mq_submit_bio", Layer::Block),
            ("lib/sbitmap", "sbitmap_get", Layer::Block),
            (
                "fs/ext4/readpage",
                "ext4_mpage_readpages.constprop.0",
                Layer::Block,
            ),
            ("fs/ext4/inode", "ext4_map_blocks", Layer::Ext4),
            ("fs/jbd2/transaction", "start_this_handle", Layer::Ext4),
            ("drivers/nvme/host/pci", "nvme_irq", Layer::Nvme),
            ("fs/read_write", "vfs_read", Layer::Vfs),
            ("fs/inode", "current_time", Layer::Vfs),
            ("fs/inode", "touch_atime", Layer::Other),
            ("lib/iov_iter", "_copy_to_iter", Layer::Vfs),
            ("kernel/locking/spinlock", "_raw_spin_lock", Layer::Other),
            ("block/lbio/poll", "wait_a_bit", Layer::Async),
            ("mm/filemap", "aios_poll_folio", Layer::Async),
            (
                "block/lbio/policy",
                "_RNvNtCs1_9lbio_core4poll6budget",
                Layer::Async,
            ),
        ] {
            assert_eq!(of(object, name), layer, "{name} in {object}");
        }
    }

    #[test]
    fn test_same_name_in_two_layers_takes_its_neighbours() {
        let map = "\
ffffffff81000000 T blk_a
ffffffff81000010 t put
ffffffff81000020 T ext4_a
ffffffff81000030 t put
ffffffff81000040 t nowhere
";
        let names = "\
block/a.o:0000000000000000 T blk_a
block/a.o:0000000000000010 t put
fs/ext4/a.o:0000000000000000 T ext4_a
fs/ext4/a.o:0000000000000010 t put
fs/ext4/a.o:                 U blk_a
fs/ext4/a.o:0000000000000000 d blk_a
nonsense
";
        let layers = layers(map, names);
        assert_eq!(layers.of(0xffff_ffff_8100_0010), Layer::Block);
        assert_eq!(layers.of(0xffff_ffff_8100_0030), Layer::Ext4);
        assert_eq!(layers.of(0xffff_ffff_8100_0040), Layer::Other);
        assert_eq!(layers.of(1), Layer::Other);
    }

    #[test]
    fn test_read_folder_without_objects_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let map = "ffffffff81000000 T a\n";
        let error = Layers::read(dir.path(), map).unwrap_err().to_string();
        assert!(error.contains("no object files"), "{error}");
    }

    #[test]
    fn test_find_objects_leaves_host_programs_and_links_out() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "mm/a.o",
            "mm/.tmp_b.o",
            "scripts/c.o",
            "vmlinux.o",
            "mm/d.c",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("source")).unwrap();
        let mut found = Vec::new();
        find_objects(dir.path(), Path::new(""), &mut found).unwrap();
        assert_eq!(found, [Path::new("mm/a.o")]);
    }
}
