// SPDX-License-Identifier: GPL-2.0

//! The writer of a disk: a process that makes layers of what was written, by `/dev/obd-writer`.
//!
//! What an open file has is a [`Seat`], which the disk has, too, and leaves before it goes. So the
//! file keeps neither a disk nor its files, but for the time of one call; a call that waits ends
//! when the disk goes. The file keeps the module.
//!
//! Seats are found by the disk's number in [`SEATS`], whose lock is taken before all others and
//! never held over one of them, nor over anything that waits.

use crate::abi::{
    self,
    Stop,
    BIND,
    EXTENTS,
    FAILED,
    LOG,
    NEXT,
    SEAL,
    STACK, //
};
use crate::device::Device;
use crate::dirty::{
    Dirty,
    Reason, //
};
use crate::layer0::BLOCK;
use crate::log::Log;
use core::mem;
use kernel::{
    alloc::scope::without_io,
    fs::File,
    ioctl::_IOC_SIZE,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    new_mutex,
    new_work,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        global_lock,
        Arc,
        Mutex, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    workqueue::{
        impl_has_work,
        OwnedQueue,
        QueueFlags,
        Work,
        WorkItem, //
    }, //
};

/// Most extents that are copied at a time.
const SOME_EXTENTS: usize = 4096;

/// Bytes of a path with its end.
const PATH_BYTES: usize = 4096;

global_lock! {
    // SAFETY: It is initialised in `start`, which the module begins with.
    unsafe(uninit) static SEATS: Mutex<Seats> = Seats {
        all: KVec::new(),
        queue: None,
    };
}

struct Seats {
    /// Of the disks that there are.
    all: KVec<Arc<Seat>>,
    /// Where it is looked whether there is a writer.
    queue: Option<OwnedQueue>,
}

/// Makes ready for seats. Once, before anything else here.
pub(crate) fn start() -> Result<Opened> {
    // SAFETY: Only the module's beginning calls this.
    unsafe { SEATS.init() };
    let queue = OwnedQueue::new(fmt!("obd_watch"), QueueFlags::UNBOUND, 0)?;
    SEATS.lock().queue = Some(queue);
    Ok(Opened)
}

/// Seats can be opened as long as this is there.
pub(crate) struct Opened;

impl Drop for Opened {
    fn drop(&mut self) {
        // Nobody drops what is static.
        let mut seats = SEATS.lock();
        let (queue, all) = (
            seats.queue.take(),
            mem::replace(&mut seats.all, KVec::new()),
        );
        drop(seats);
        // Waits for who looks for writers, who ends with the disk.
        drop(queue);
        drop(all);
    }
}

/// A place for the writer of a disk.
#[pin_data]
pub(crate) struct Seat {
    number: u32,
    #[pin]
    device: Mutex<Option<Arc<Device>>>,
    /// Looks for a writer.
    #[pin]
    watch: Work<Seat>,
}

impl_has_work! {
    impl HasWork<Self> for Seat { self.watch }
}

impl WorkItem for Seat {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // This waits; the disk's end ends it.
        if let Some(device) = this.device() {
            device.watch_for_writer();
        }
    }
}

impl Seat {
    /// The seat of a disk that can be written to.
    pub(crate) fn open(number: u32, device: Arc<Device>) -> Result<Arc<Self>> {
        let seat = Arc::pin_init(
            pin_init!(Self {
                number,
                device <- new_mutex!(Some(device), "obd::Seat::device"),
                watch <- new_work!("obd::Seat::watch"),
            }),
            GFP_KERNEL,
        )?;
        let mut room = KVec::new();
        loop {
            let mut seats = SEATS.lock();
            if seats.all.len() < seats.all.capacity() {
                seats.all.push_within_capacity(seat.clone())?;
                break;
            }
            if room.capacity() > seats.all.len() {
                // The other one goes without the lock.
                while let Ok(one) = seats.all.remove(0) {
                    room.push_within_capacity(one)?;
                }
                mem::swap(&mut seats.all, &mut room);
                continue;
            }
            let wanted = 2 * seats.all.len() + 8;
            drop(seats);
            room = KVec::with_capacity(wanted, GFP_KERNEL)?;
        }
        seat.watch();
        Ok(seat)
    }

    /// Nobody sits down from here on, and who does not yet stand up has nothing to do.
    pub(crate) fn close(&self) {
        let mut seats = SEATS.lock();
        let at = seats.all.iter().position(|seat| seat.number == self.number);
        let seat = at.and_then(|at| seats.all.remove(at).ok());
        drop(seats);
        drop(seat);
        let device = self.device.lock().take();
        if let Some(device) = device {
            device.leave();
        }
    }

    fn find(number: u32) -> Result<Arc<Self>> {
        let seats = SEATS.lock();
        let seat = seats.all.iter().find(|seat| seat.number == number);
        seat.cloned().ok_or(ENODEV)
    }

    fn device(&self) -> Option<Arc<Device>> {
        self.device.lock().clone()
    }

    /// Begins to look for a writer, if nobody does.
    fn watch(self: &Arc<Self>) {
        if let Some(queue) = &SEATS.lock().queue {
            let _ = queue.enqueue(self.clone());
        }
    }
}

/// The device node.
pub(crate) fn node() -> impl PinInit<MiscDeviceRegistration<Writer>, Error> {
    MiscDeviceRegistration::register(MiscDeviceOptions {
        name: c"obd-writer",
    })
}

/// An open file of it.
#[pin_data(PinnedDrop)]
pub(crate) struct Writer {
    #[pin]
    seat: Mutex<Option<Arc<Seat>>>,
    /// What it was lent last, and can map.
    lent: Atomic<u64>,
}

#[pinned_drop]
impl PinnedDrop for Writer {
    fn drop(self: Pin<&mut Self>) {
        let Some(seat) = self.seat.lock().take() else {
            return;
        };
        let Some(device) = seat.device() else { return };
        if let Some(dirty) = device.dirty() {
            dirty.writer_goes();
        }
        seat.watch();
    }
}

#[vtable]
impl MiscDevice for Writer {
    type Ptr = Pin<KBox<Self>>;

    fn open(_: &File, _: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                seat <- new_mutex!(None, "obd::Writer::seat"),
                lent: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn ioctl(this: Pin<&Self>, _: &File, cmd: u32, arg: usize) -> Result<isize> {
        let user = UserSlice::new(UserPtr::from_addr(arg), _IOC_SIZE(cmd));
        // The disk waits for this task, which must not wait for the disk.
        without_io(|| match cmd {
            BIND => this.bind(user),
            NEXT => this.next(user),
            EXTENTS => this.device()?.extents(user),
            STACK => this.device()?.stack_layer(user),
            FAILED => this.device()?.failed(user),
            LOG => this.device()?.log(user),
            SEAL => this.seal(user),
            _ => Err(ENOTTY),
        })
    }

    fn mmap(this: Pin<&Self>, _: &File, vma: &VmaNew) -> Result {
        let device = this.device()?;
        let dirty = device.dirty().ok_or(ESTALE)?;
        // It may have been stacked since: then it is stale.
        dirty.lend(this.lent.load(Relaxed), |frozen| {
            if vma.try_clear_maywrite().is_err() {
                return Err(EACCES);
            }
            vma.set_dontexpand();
            let area = vma.set_mixedmap();
            let mut pages = frozen.blocks.pages();
            // Whoever maps more than there is has done so in vain.
            for address in (area.start()..area.end()).step_by(PAGE_SIZE) {
                area.vm_insert_page(address, pages.next().ok_or(EINVAL)?)?;
            }
            Ok(())
        })?
    }
}

impl Writer {
    fn device(&self) -> Result<Arc<Device>> {
        let seat = self.seat.lock().clone().ok_or(ENOTCONN)?;
        seat.device().ok_or(ESHUTDOWN)
    }

    fn bind(&self, user: UserSlice) -> Result<isize> {
        let (mut reader, mut writer) = user.reader_writer();
        let mut bind = reader.read::<abi::Bind>()?;
        if bind.flags != 0 {
            return Err(EINVAL);
        }
        let found = Seat::find(bind.number)?;
        let device = found.device().ok_or(ENODEV)?;
        let dirty = device.dirty().ok_or(EOPNOTSUPP)?;
        let mut seat = self.seat.lock();
        if seat.is_some() {
            return Err(EBUSY);
        }
        let was_missed = dirty.writer_comes()?;
        *seat = Some(found);
        drop(seat);
        if was_missed {
            device.writer_is_back();
        }
        bind.size = dirty.limits.size;
        bind.memory = dirty.limits.memory as u64;
        bind.layers = device.stack().paths.len() as u64;
        // If this fails, it is the writer all the same, until it is closed.
        writer.write(&bind)?;
        Ok(0)
    }

    fn next(&self, user: UserSlice) -> Result<isize> {
        let (mut reader, mut writer) = user.reader_writer();
        let timeout_ms = reader.read::<abi::Next>()?.timeout_ms;
        let device = self.device()?;
        let dirty = device.dirty().ok_or(EOPNOTSUPP)?;
        let (id, reason) = dirty.next(timeout_ms)?;
        let (extents, bytes) = self.lends(dirty, id)?;
        writer.write(&abi::Next {
            timeout_ms,
            reason: reason as u32,
            id,
            extents,
            bytes,
        })?;
        Ok(0)
    }

    fn seal(&self, user: UserSlice) -> Result<isize> {
        let (mut reader, mut writer) = user.reader_writer();
        let abi::Seal {
            flags, reserved, ..
        } = reader.read::<abi::Seal>()?;
        if flags > 1 || reserved != 0 {
            return Err(EINVAL);
        }
        let device = self.device()?;
        let dirty = device.dirty().ok_or(EOPNOTSUPP)?;
        let id = dirty.seal(flags == 0)?;
        let (extents, bytes) = self.lends(dirty, id)?;
        writer.write(&abi::Seal {
            flags,
            reserved,
            id,
            extents,
            bytes,
        })?;
        Ok(0)
    }

    /// How many extents, and bytes of data, the layer has that the writer is lent.
    fn lends(&self, dirty: &Dirty, id: u64) -> Result<(u64, u64)> {
        let counts = dirty.lend(id, |frozen| {
            let extents = frozen.blocks.extents().count();
            let pages = frozen.blocks.pages().count();
            (extents as u64, (pages * BLOCK) as u64)
        })?;
        self.lent.store(id, Relaxed);
        Ok(counts)
    }
}

/// The calls of the writer's.
impl Device {
    fn extents(&self, user: UserSlice) -> Result<isize> {
        let wanted = user.reader().read::<abi::Extents>()?;
        let dirty = self.dirty().ok_or(EOPNOTSUPP)?;
        let mut first = usize::try_from(wanted.first)?;
        let mut left = usize::try_from(wanted.nr)?;
        let len = left.checked_mul(size_of::<abi::Extent>()).ok_or(EINVAL)?;
        let to = UserPtr::from_addr(usize::try_from(wanted.to)?);
        let mut writer = UserSlice::new(to, len).writer();
        // They are copied from here, see `dirty`.
        let mut some = KVVec::with_capacity(left.min(SOME_EXTENTS), GFP_KERNEL)?;
        loop {
            let count = left.min(SOME_EXTENTS);
            dirty.lend(wanted.id, |frozen| {
                for extent in frozen.blocks.extents().skip(first).take(count) {
                    some.push_within_capacity(abi::Extent {
                        block: extent.block as u64,
                        blocks: u32::try_from(extent.blocks)?,
                        zero: extent.zero.into(),
                    })?;
                }
                Ok::<(), Error>(())
            })??;
            for extent in &some {
                writer.write(extent)?;
            }
            // There are fewer.
            if some.len() < count {
                return Err(EINVAL);
            }
            some.clear();
            first = first.saturating_add(count);
            left -= count;
            if left == 0 {
                return Ok(0);
            }
        }
    }

    fn log(&self, user: UserSlice) -> Result<isize> {
        let (mut reader, mut writer) = user.reader_writer();
        let mut asked = reader.read::<abi::Log>()?;
        let mut log = Log::new(&asked)?;
        let (enough, timeout_ms) = (asked.enough, asked.timeout_ms);
        (asked.enough, asked.ns, asked.errno) = (0, 0, 0);
        let stop = self.log_frozen(&mut log, &mut asked, enough, timeout_ms)?;
        log.say(&mut asked);
        asked.stop = stop as u32;
        // If this fails, the writer does not know what it has.
        writer.write(&asked)?;
        Ok(0)
    }

    /// Writes records to `log` until there is a reason not to. `did` is told how many bytes these
    /// are, how long they took, and why one failed.
    fn log_frozen(
        &self,
        log: &mut Log,
        did: &mut abi::Log,
        enough: u64,
        timeout_ms: u32,
    ) -> Result<Stop> {
        let dirty = self.dirty().ok_or(EOPNOTSUPP)?;
        let begin = Instant::<Monotonic>::now();
        loop {
            let passed = u32::try_from(begin.elapsed().as_millis()).unwrap_or(u32::MAX);
            let (id, reason) = match dirty.next(timeout_ms.saturating_sub(passed)) {
                Ok(next) => next,
                Err(error) if error == ETIMEDOUT || error == EINTR => return Ok(Stop::Idle),
                // The next call says so.
                Err(_) if did.enough > 0 => return Ok(Stop::Idle),
                Err(error) => return Err(error),
            };
            let frozen = match reason {
                Reason::Flush => dirty.log(id),
                Reason::Size | Reason::Age | Reason::Detach => None,
            };
            let Some(frozen) = frozen else {
                return Ok(Stop::Frozen);
            };
            let since = Instant::<Monotonic>::now();
            let written = log.append(&frozen.blocks);
            let wanted = dirty.logged(frozen, matches!(written, Ok(Some(_))));
            match written {
                Ok(Some(len)) => did.enough += len,
                Ok(None) => return Ok(Stop::Frozen),
                Err(error) => {
                    did.errno = -error.to_errno();
                    return Ok(Stop::Failed);
                }
            }
            self.counts.logged.add(1, Relaxed);
            // What was written twice takes less memory now.
            self.wake_writes();
            did.ns += u64::try_from(since.elapsed().as_nanos()).unwrap_or(0);
            if wanted.is_some() {
                return Ok(Stop::Wanted);
            }
            // Somebody may flush all the time, so that nobody waits for that above.
            if did.enough >= enough || begin.elapsed().as_millis() >= i64::from(timeout_ms) {
                return Ok(Stop::Idle);
            }
        }
    }

    fn stack_layer(&self, user: UserSlice) -> Result<isize> {
        let wanted = user.reader().read::<abi::Stack>()?;
        let from = UserPtr::from_addr(usize::try_from(wanted.path)?);
        let mut path = KVec::from_elem(0, PATH_BYTES, GFP_KERNEL)?;
        let path = UserSlice::new(from, PATH_BYTES)
            .reader()
            .strcpy_into_buf(&mut path)?;
        // A path of that length may have been cut.
        if path.to_bytes_with_nul().len() == PATH_BYTES {
            return Err(ENAMETOOLONG);
        }
        self.stack_lent(wanted.id, wanted.first as usize, wanted.nr as usize, path)
            .map_err(|failure| self.complain_of_layer(path, &failure))?;
        Ok(0)
    }

    fn failed(&self, user: UserSlice) -> Result<isize> {
        let failed = user.reader().read::<abi::Failed>()?;
        if failed.reserved != 0 {
            return Err(EINVAL);
        }
        let error = match failed.errno.unsigned_abs() == ENOSPC.to_errno().unsigned_abs() {
            true => ENOSPC,
            false => EIO,
        };
        self.dirty().ok_or(EOPNOTSUPP)?.failed(failed.id, error)?;
        self.counts.failed_commits.add(1, Relaxed);
        Ok(0)
    }
}
