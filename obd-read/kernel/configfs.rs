// SPDX-License-Identifier: GPL-2.0

//! The devices' configuration: `/sys/kernel/config/obd/NAME`.
//!
//! | file | |
//! |---|---|
//! | `layers` | absolute paths, bottom to top, one per line, see [`Place`]; an empty line clears |
//! | `zfile` | 1: `layers` is one zfile, whose content is the device |
//! | `power` | 1 attaches, 0 detaches |
//! | `exchange` | `FIRST NR PATH`: puts a layer in place of those from FIRST on, while attached |
//! | `device` | the disk's name while it is attached |
//! | `error` | why attaching failed, the last time |
//! | `writable` | 1: the disk can be written to, see the table below |
//! | `stats` | sizes and counters while it is attached |
//!
//! What a writable disk has besides, fixed while it is attached:
//!
//! | file | |
//! |---|---|
//! | `size` | bytes of the disk; without layers, else 0 or the image's |
//! | `volatile` | 1: flushes do not wait for the writer |
//! | `memory` | bytes of memory that written blocks may take; who writes more waits |
//! | `commit_bytes` | so many are enough for a layer; 0: half of that |
//! | `commit_ms` | so old they may get; 0: any age |
//! | `writer_ms` | so long there may be no writer; 0: for good |
//!
//! What all have in common, in the folder of them all:
//!
//! | file | |
//! |---|---|
//! | `cache` | bytes that decoded blocks may take, of which parts were read; 0: none are kept |
//! | `cache_stats` | how many there are, and how often what happened |
//! | `features` | what images may be of |
//! | `lz4` | who decodes LZ4 blocks: `kernel`, the kernel's decoder, or `core`, the driver's own |
//!
//! A device's lock is never held over I/O. Attaching and detaching mark the
//! device as busy under it and do their work without it: files are opened, which
//! may be of any kind and on anything, this device's own folder included, and
//! reads waited for. Whoever wants to change a busy device gets `EBUSY`.
//!
//! configfs has locks, too. `rmdir` runs under those of folders, which everybody
//! needs who makes or removes a device, perhaps the daemon that a blob is read
//! from: so it waits for no read, but hands its disk to a workqueue. `power` holds
//! that of the device's own files, for which `rmdir` of this device waits.

use crate::blob::Place;
use crate::cache;
use crate::content::{
    Content,
    Failure, //
};
use crate::device::{
    Device,
    Disk, //
};
use crate::dirty::Limits;
use crate::layer0::{
    BLOCK,
    MAX_BYTES,
    SUPPORTED, //
};
use crate::platform::{
    self,
    Lz4Decoder, //
};
use crate::stack::{
    copies,
    parts, //
};
use crate::writer::Seat;
use kernel::{
    block::{
        mq::gen_disk::GenDisk,
        SECTOR_SHIFT, //
    },
    configfs::{
        self,
        configfs_attrs,
        AttributeOperations,
        GroupOperations, //
    },
    fmt::Write,
    id_pool::IdPool,
    new_mutex,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    str::{
        kstrtobool_bytes,
        CString,
        Formatter, //
    },
    sync::{
        atomic::Relaxed,
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        OwnedQueue,
        QueueFlags,
        Work,
        WorkItem, //
    }, //
};
use obd_core::image::MAX_LAYERS;

/// Bytes of paths that a device may have: as many layers as there can be, at 1 KiB each.
const MAX_PATHS: usize = MAX_LAYERS << 10;

/// Bytes of an attribute, however large a page is: `SIMPLE_ATTR_SIZE` of configfs. A write is cut
/// into pieces of one less.
const ATTRIBUTE: usize = 4096;

/// Least memory of a writable disk.
const MIN_MEMORY: u64 = 64 << 10;

/// The driver's folder in configfs.
pub(crate) fn subsystem() -> impl PinInit<configfs::Subsystem<Devices>, Error> {
    let item_type = configfs_attrs! {
        container: configfs::Subsystem<Devices>,
        data: Devices,
        child: Config,
        attributes: [
            features: 0,
            cache: 1,
            cache_stats: 2,
            lz4: 3,
        ],
    };

    configfs::Subsystem::new(
        c"obd",
        item_type,
        try_pin_init!(Devices {
            numbers: Arc::pin_init(Numbers::new(), GFP_KERNEL)?,
            removals: Arc::new(
                OwnedQueue::new(fmt!("obd_remove"), QueueFlags::UNBOUND, 0)?,
                GFP_KERNEL
            )?,
        }),
    )
}

/// All devices.
#[pin_data]
pub(crate) struct Devices {
    numbers: Arc<Numbers>,
    /// Where the disks of removed devices are taken away. No work on it refers to it. The last
    /// reference is this one, as the module stays for as long as there are devices: it is drained
    /// when the module goes.
    removals: Arc<OwnedQueue>,
}

#[vtable]
impl AttributeOperations<0> for Devices {
    type Data = Devices;

    fn show(_: &Devices, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        print(page, fmt!("lsmt zfile lz4 zstd\n"))
    }
}

#[vtable]
impl AttributeOperations<1> for Devices {
    type Data = Devices;

    fn show(_: &Devices, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        print(page, fmt!("{}\n", cache::stats().limit))
    }

    fn store(_: &Devices, page: &[u8]) -> Result {
        cache::set_limit(number(page)?)
    }
}

#[vtable]
impl AttributeOperations<2> for Devices {
    type Data = Devices;

    fn show(_: &Devices, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let stats = cache::stats();
        print(
            page,
            fmt!(
                "bytes {}\nblocks {}\nhits {}\nmisses {}\nshrunk {}\n",
                stats.bytes,
                stats.blocks,
                stats.hits,
                stats.misses,
                stats.shrunk,
            ),
        )
    }
}

#[vtable]
impl AttributeOperations<3> for Devices {
    type Data = Devices;

    fn show(_: &Devices, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let name = match platform::lz4_decoder() {
            Lz4Decoder::Kernel => "kernel",
            Lz4Decoder::Core => "core",
        };
        print(page, fmt!("{name}\n"))
    }

    fn store(_: &Devices, page: &[u8]) -> Result {
        platform::set_lz4_decoder(match page.trim_ascii() {
            b"kernel" => Lz4Decoder::Kernel,
            b"core" => Lz4Decoder::Core,
            _ => return Err(EINVAL),
        });
        Ok(())
    }
}

#[vtable]
impl GroupOperations for Devices {
    type Child = Config;

    fn make_group(&self, name: &CStr) -> Result<impl PinInit<configfs::Group<Config>, Error>> {
        let item_type = configfs_attrs! {
            container: configfs::Group<Config>,
            data: Config,
            attributes: [
                layers: 0,
                zfile: 1,
                power: 2,
                device: 3,
                error: 4,
                stats: 5,
                exchange: 6,
                writable: 7,
                size: 8,
                volatile: 9,
                memory: 10,
                commit_bytes: 11,
                commit_ms: 12,
                writer_ms: 13,
            ],
        };

        let numbers = self.numbers.clone();
        let removals = self.removals.clone();
        let item_name = name.try_into()?;
        let name = name.try_into()?;
        Ok(configfs::Group::new(
            item_name,
            item_type,
            try_pin_init!(Config {
                name,
                numbers,
                removals,
                state <- new_mutex!(State::default(), "obd::Config::state"),
            }),
        ))
    }
}

/// The numbers of disks.
#[pin_data]
struct Numbers {
    #[pin]
    pool: Mutex<IdPool>,
}

impl Numbers {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pool <- new_mutex!(IdPool::new(), "obd::Numbers::pool"),
        })
    }

    fn take(self: &Arc<Self>) -> Result<Number> {
        let mut pool = self.pool.lock();
        if pool.find_unused_id(0).is_none() {
            let more = pool.grow_request().ok_or(ENOSPC)?.realloc(GFP_KERNEL)?;
            pool.grow(more);
        }
        let number = pool.find_unused_id(0).ok_or(ENOSPC)?.acquire();
        drop(pool);
        Ok(Number {
            numbers: self.clone(),
            number,
        })
    }
}

/// A number in use.
struct Number {
    numbers: Arc<Numbers>,
    number: usize,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.numbers.pool.lock().release_id(self.number);
    }
}

/// One device.
#[pin_data(PinnedDrop)]
pub(crate) struct Config {
    name: CString,
    numbers: Arc<Numbers>,
    removals: Arc<OwnedQueue>,
    #[pin]
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    paths: KVec<CString>,
    /// Bytes in `paths`.
    paths_len: usize,
    zfile: bool,
    options: Options,
    error: Option<CString>,
    attached: Option<Arc<Attached>>,
    /// Somebody attaches or detaches it, and nobody else changes anything.
    busy: bool,
}

/// What a disk is to be that can be written to.
#[derive(Clone, Copy)]
struct Options {
    writable: bool,
    volatile: bool,
    size: u64,
    memory: u64,
    commit_bytes: u64,
    commit_ms: u32,
    writer_ms: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            writable: false,
            volatile: false,
            size: 0,
            memory: 64 << 20,
            commit_bytes: 0,
            commit_ms: 5000,
            writer_ms: 30_000,
        }
    }
}

impl Options {
    /// Opens the image at `paths`, of the size that is wanted.
    fn open(&self, paths: &[CString]) -> Result<Content, Failure> {
        let wrong = |error, text| Err(Failure::whole(error, text));
        if !SUPPORTED {
            return wrong(EOPNOTSUPP, "pages are larger than blocks");
        }
        let content = match paths {
            [] => Content::Empty(self.size >> SECTOR_SHIFT),
            paths => Content::open_image(paths)?,
        };
        let bytes = content.sectors() << SECTOR_SHIFT;
        if bytes == 0 || bytes % BLOCK as u64 != 0 || bytes > MAX_BYTES {
            return wrong(EOPNOTSUPP, "a disk of this size cannot be written to");
        }
        if self.size != 0 && self.size != bytes {
            return wrong(EINVAL, "the image has another size");
        }
        Ok(content)
    }

    /// The same for a disk that has `content`.
    fn limits(&self, content: &Content) -> Result<Limits, Failure> {
        let commit_bytes = match self.commit_bytes {
            0 => self.memory / 2,
            bytes => bytes,
        };
        if self.memory < MIN_MEMORY || commit_bytes > self.memory {
            return Err(Failure::whole(EINVAL, "too little memory"));
        }
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX / 2);
        Ok(Limits {
            size: content.sectors() << SECTOR_SHIFT,
            memory: bytes(self.memory),
            commit_bytes: bytes(commit_bytes),
            commit_ms: self.commit_ms,
            writer_ms: self.writer_ms,
            volatile: self.volatile,
        })
    }
}

impl State {
    /// Adds the paths in `lines`, some of them if that fails.
    fn add_paths(&mut self, lines: &[u8]) -> Result {
        for line in lines.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            if self.paths.len() >= MAX_LAYERS || self.paths_len + line.len() > MAX_PATHS {
                return Err(E2BIG);
            }
            let mut path = KVec::with_capacity(line.len() + 1, GFP_KERNEL)?;
            path.extend_from_slice(line, GFP_KERNEL)?;
            path.push(0, GFP_KERNEL)?;
            let path = CStr::from_bytes_with_nul(&path).map_err(|_| EINVAL)?;
            Place::parse(path)?;
            self.paths.push(path.try_into()?, GFP_KERNEL)?;
            self.paths_len += line.len();
        }
        Ok(())
    }
}

/// A disk and its number, which is given back after it.
#[pin_data(PinnedDrop)]
struct Attached {
    /// Its writer's, if it can have one.
    seat: Option<Arc<Seat>>,
    disk: GenDisk<Disk>,
    number: Number,
    /// Drops it.
    #[pin]
    work: Work<Attached>,
}

impl_has_work! {
    impl HasWork<Self> for Attached { self.work }
}

#[pinned_drop]
impl PinnedDrop for Attached {
    fn drop(self: Pin<&mut Self>) {
        // The disk waits for requests, which wait for the writer.
        if let Some(seat) = &self.seat {
            seat.close();
        }
    }
}

impl WorkItem for Attached {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // Waits for reads.
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for Config {
    fn drop(self: Pin<&mut Self>) {
        let attached = self.state.lock().attached.take();
        if let Some(attached) = attached {
            // It is put on a queue here only, once.
            let _ = self.removals.enqueue(attached);
        }
    }
}

impl Config {
    fn attach(&self) -> Result {
        let mut state = self.state.lock();
        if state.busy {
            return Err(EBUSY);
        }
        if state.attached.is_some() {
            return Ok(());
        }
        let paths = copies(&state.paths)?;
        let zfile = state.zfile;
        let options = state.options;
        state.error = None;
        state.busy = true;
        drop(state);

        let opened = self.open(paths, zfile, options);

        let mut state = self.state.lock();
        state.busy = false;
        match opened {
            Ok(attached) => {
                state.attached = Some(attached);
                Ok(())
            }
            Err(failure) => {
                let path = failure.blob.and_then(|blob| state.paths.get(blob));
                let line = failure.line(path.map(|path| &**path));
                self.complain(&mut state, line);
                Err(failure.error)
            }
        }
    }

    /// Waits for all that was written to be in the image of a disk that is claimed, if it is to be
    /// kept, or lets it be opened again.
    fn drain(&self, attached: &Attached) -> Result {
        let device = attached.disk.queue_data();
        let Some(dirty) = device.dirty().filter(|dirty| !dirty.limits.volatile) else {
            return Ok(());
        };
        dirty.drain().inspect_err(|error| {
            attached.disk.unclaim();
            if *error == EBUSY {
                let text = fmt!("there is something to be written, and no writer");
                self.complain(
                    &mut self.state.lock(),
                    CString::try_from_fmt(text).map_err(Into::into),
                );
            }
        })
    }

    /// Puts the layer at `path` in place of the `nr` layers from `first` on.
    fn exchange(&self, first: usize, nr: usize, path: &CStr) -> Result {
        let mut state = self.state.lock();
        if state.busy {
            return Err(EBUSY);
        }
        let attached = state.attached.clone().ok_or(ENODEV)?;
        // Its writer counts them.
        if attached.seat.is_some() {
            return Err(EOPNOTSUPP);
        }
        state.error = None;
        state.busy = true;
        drop(state);

        let stack = attached.disk.queue_data().stack();
        let exchanged = attached.disk.queue_data().exchange(first, nr, path);
        // The last reference is not this one: nobody detaches meanwhile.
        drop(attached);

        let mut state = self.state.lock();
        state.busy = false;
        exchanged.map(drop).map_err(|failure| {
            let at = failure
                .blob
                .map(|blob| match parts(&stack.paths, first, nr) {
                    Some((before, after)) => match blob.checked_sub(first + 1) {
                        Some(behind) => after.get(behind).map_or(path, |path| path),
                        None => before.get(blob).map_or(path, |path| path),
                    },
                    None => path,
                });
            let line = failure.line(at);
            self.complain(&mut state, line);
            failure.error
        })
    }

    fn open(
        &self,
        paths: KVec<CString>,
        zfile: bool,
        options: Options,
    ) -> Result<Arc<Attached>, Failure> {
        let other = |error| Failure::whole(error, "no disk can be made");
        if zfile && options.writable {
            return Err(Failure::whole(EOPNOTSUPP, "a zfile cannot be written to"));
        }
        let content = if options.writable {
            options.open(&paths)?
        } else if zfile {
            Content::open_zfile(&paths)?
        } else {
            Content::open_image(&paths)?
        };
        let number = self.numbers.take().map_err(other)?;
        let index = u32::try_from(number.number).map_err(|_| other(ENOSPC))?;
        let limits = match options.writable {
            true => Some(options.limits(&content)?),
            false => None,
        };
        let disk = Device::attach(index, content, paths, limits).map_err(other)?;
        let seat = match limits {
            Some(_) => {
                let device: Arc<Device> = disk.queue_data().into();
                let seat = Seat::open(index, device.clone());
                // Nothing may wait for a writer who cannot come.
                Some(seat.inspect_err(|_| device.leave()).map_err(other)?)
            }
            None => None,
        };
        let guard = seat.clone();
        let attached = try_pin_init!(Attached {
            seat,
            disk,
            number,
            work <- new_work!("obd::Attached::work"),
        });
        let attached = Arc::pin_init(attached, GFP_KERNEL);
        if let (Err(_), Some(seat)) = (&attached, guard) {
            seat.close();
        }
        attached.map_err(other)
    }

    fn detach(&self) -> Result {
        let mut state = self.state.lock();
        if state.busy {
            return Err(EBUSY);
        }
        let Some(attached) = state.attached.clone() else {
            return Ok(());
        };
        state.busy = true;
        drop(state);

        // Who opens it from here on finds no disk. This may wait for reads, as who closes it does.
        // What was exchanged is what is attached the next time.
        let claimed = attached
            .disk
            .try_claim()
            .and_then(|()| self.drain(&attached))
            .and_then(|()| copies(&attached.disk.queue_data().stack().paths));
        let claimed = claimed.map(|paths| {
            let mut state = self.state.lock();
            state.attached = None;
            state.paths_len = paths.iter().map(|path| path.to_bytes().len()).sum();
            state.paths = paths;
        });
        // Waits for reads, if it was claimed: this is the last reference then. It is gone before
        // anybody can detach again, for whom theirs is to be the last.
        drop(attached);

        self.state.lock().busy = false;
        claimed
    }

    /// Logs why something failed, and keeps it for `error`.
    fn complain(&self, state: &mut State, line: Result<CString>) {
        // There is no memory for the text, but for the error's number.
        let Ok(line) = line else { return };
        pr_err!("{}: {}\n", &*self.name, &*line);
        state.error = Some(line);
    }

    /// Fails with [`EBUSY`] while the device is attached or about to be, else with what `change`
    /// says.
    fn change(&self, change: impl FnOnce(&mut State) -> Result) -> Result {
        let mut state = self.state.lock();
        if state.busy || state.attached.is_some() {
            return Err(EBUSY);
        }
        change(&mut state)
    }
}

#[vtable]
impl AttributeOperations<0> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let page = &mut page[..ATTRIBUTE];
        let state = this.state.lock();
        let attached = state.attached.as_ref();
        let stack = attached.map(|attached| attached.disk.queue_data().stack());
        let paths = stack.as_ref().map_or(&state.paths, |stack| &stack.paths);
        let mut len = 0;
        for path in paths {
            let line = [path.to_bytes(), b"\n"];
            // What does not fit is left out: there is no more.
            for part in line {
                let Some(to) = page.get_mut(len..len + part.len()) else {
                    return Ok(len);
                };
                to.copy_from_slice(part);
                len += part.len();
            }
        }
        Ok(len)
    }

    fn store(this: &Config, page: &[u8]) -> Result {
        // This may be a piece of something longer, whose rest would be taken for another write.
        if page.len() >= ATTRIBUTE - 1 {
            return Err(E2BIG);
        }
        this.change(|state| {
            if matches!(page, b"" | b"\n") {
                state.paths = KVec::new();
                state.paths_len = 0;
                return Ok(());
            }
            let before = (state.paths.len(), state.paths_len);
            let added = state.add_paths(page);
            if added.is_err() {
                state.paths.truncate(before.0);
                state.paths_len = before.1;
            }
            added
        })
    }
}

#[vtable]
impl AttributeOperations<1> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        print(page, fmt!("{}\n", u8::from(this.state.lock().zfile)))
    }

    fn store(this: &Config, page: &[u8]) -> Result {
        let zfile = kstrtobool_bytes(page)?;
        this.change(|state| {
            state.zfile = zfile;
            Ok(())
        })
    }
}

#[vtable]
impl AttributeOperations<2> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let attached = this.state.lock().attached.is_some();
        print(page, fmt!("{}\n", u8::from(attached)))
    }

    fn store(this: &Config, page: &[u8]) -> Result {
        let on = kstrtobool_bytes(page)?;
        if on {
            this.attach()
        } else {
            this.detach()
        }
    }
}

#[vtable]
impl AttributeOperations<3> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        match &this.state.lock().attached {
            Some(attached) => print(page, fmt!("obd{}\n", attached.number.number)),
            None => Ok(0),
        }
    }
}

#[vtable]
impl AttributeOperations<4> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        match &this.state.lock().error {
            Some(error) => {
                // The reason is at the end, and so is the file's name of a path that is too long.
                let error = error.to_bytes();
                let cut = error.len().saturating_sub(ATTRIBUTE - 1);
                let error = error.get(cut..).unwrap_or_default();
                let (text, rest) = page.split_at_mut(error.len());
                text.copy_from_slice(error);
                rest[0] = b'\n';
                Ok(error.len() + 1)
            }
            None => Ok(0),
        }
    }
}

#[vtable]
impl AttributeOperations<5> for Config {
    type Data = Config;

    fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        let state = this.state.lock();
        let Some(attached) = &state.attached else {
            return Ok(0);
        };
        let device = attached.disk.queue_data();
        let stack = device.stack();
        let (hits, misses) = stack.content.cached();
        let memory = device.dirty().map(|dirty| dirty.memory());
        let memory = memory.unwrap_or_default();
        print(
            page,
            fmt!(
                "reads {}\nzeros {}\ndirect {}\nfetched {}\nsectors {}\nerrors {}\n\
                 index_bytes {}\ntable_bytes {}\ncache_hits {}\ncache_misses {}\n\
                 writes {}\ndirty_bytes {}\nfrozen_bytes {}\nmost_bytes {}\ncommits {}\n\
                 failed_commits {}\nlogged_bytes {}\nlogged {}\n",
                device.counts.reads.load(Relaxed),
                device.counts.zeros.load(Relaxed),
                device.counts.direct.load(Relaxed),
                device.counts.fetched.load(Relaxed),
                device.counts.sectors.load(Relaxed),
                device.counts.errors.load(Relaxed),
                stack.content.index_memory(),
                stack.content.table_memory(),
                hits,
                misses,
                device.counts.writes.load(Relaxed),
                memory.all,
                memory.lent,
                memory.most,
                device.counts.commits.load(Relaxed),
                device.counts.failed_commits.load(Relaxed),
                memory.logged,
                device.counts.logged.load(Relaxed),
            ),
        )
    }
}

#[vtable]
impl AttributeOperations<6> for Config {
    type Data = Config;

    /// There is nothing to tell: `layers` has what came of it.
    fn show(_: &Config, _: &mut [u8; PAGE_SIZE]) -> Result<usize> {
        Ok(0)
    }

    fn store(this: &Config, page: &[u8]) -> Result {
        // This may be a piece of something longer.
        if page.len() >= ATTRIBUTE - 1 {
            return Err(E2BIG);
        }
        let line = page.strip_suffix(b"\n").unwrap_or(page);
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let mut number = || {
            let word = core::str::from_utf8(words.next()?).ok()?;
            word.parse::<usize>().ok()
        };
        let first = number().ok_or(EINVAL)?;
        let nr = number().ok_or(EINVAL)?;
        let path = words.next().ok_or(EINVAL)?;
        if path.contains(&b'\n') {
            return Err(EINVAL);
        }
        let mut name = KVec::with_capacity(path.len() + 1, GFP_KERNEL)?;
        name.extend_from_slice(path, GFP_KERNEL)?;
        name.push(0, GFP_KERNEL)?;
        let path = CStr::from_bytes_with_nul(&name).map_err(|_| EINVAL)?;
        Place::parse(path)?;
        this.exchange(first, nr, path)
    }
}

/// A file with one value of [`Options`], which `parse` makes of what is written.
macro_rules! option {
    ($id:literal, $field:ident, $parse:expr, $show:expr) => {
        #[vtable]
        impl AttributeOperations<$id> for Config {
            type Data = Config;

            fn show(this: &Config, page: &mut [u8; PAGE_SIZE]) -> Result<usize> {
                let value = this.state.lock().options.$field;
                print(page, fmt!("{}\n", $show(value)))
            }

            fn store(this: &Config, page: &[u8]) -> Result {
                let value = $parse(page)?;
                this.change(|state| {
                    state.options.$field = value;
                    Ok(())
                })
            }
        }
    };
}

option!(7, writable, kstrtobool_bytes, u8::from);
option!(8, size, number, u64::from);
option!(9, volatile, kstrtobool_bytes, u8::from);
option!(10, memory, number, u64::from);
option!(11, commit_bytes, number, u64::from);
option!(12, commit_ms, number, u32::from);
option!(13, writer_ms, number, u32::from);

/// The number that was written to an attribute.
fn number<T: core::str::FromStr>(page: &[u8]) -> Result<T> {
    let text = core::str::from_utf8(page).map_err(|_| EINVAL)?;
    text.trim_ascii().parse().map_err(|_| EINVAL)
}

/// Prints to an attribute; [`EMSGSIZE`] if it does not fit.
fn print(page: &mut [u8; PAGE_SIZE], text: kernel::fmt::Arguments<'_>) -> Result<usize> {
    let mut out = Formatter::new(&mut page[..ATTRIBUTE]);
    out.write_fmt(text).map_err(|_| EMSGSIZE)?;
    Ok(out.bytes_written())
}
