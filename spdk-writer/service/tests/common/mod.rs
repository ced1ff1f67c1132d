// SPDX-License-Identifier: MIT

//! A world in memory: a folder on a file system that forgets what was not synced,
//! a driver that keeps pages and holds the writer to the contract, and somebody
//! who kills the writer, cuts the power or has one step fail.

#![allow(dead_code, reason = "each test takes what it needs")]

use fastrand::Rng;
use obd_core::lsmt::Layer;
use obd_core::record::{
    self,
    Hash,
    Header,
    Room, //
};
use obd_core::{
    Image as Stack,
    Scratch,
    Source, //
};
use obd_host::Host;
use obd_service::folder::{
    Folder,
    LAYERS, //
};
use obd_service::image::{
    self,
    Image, //
};
use obd_service::kernel::{
    Bound,
    Extent,
    Frozen,
    Kernel,
    Next,
    Reason,
    Run,
    Stop, //
};
use obd_service::{
    BLOCK,
    Device,
    Error,
    log, //
};
use std::collections::{
    BTreeMap,
    BTreeSet, //
};
use std::io;
use std::ops::Range;
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::{
    Arc,
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// Blocks of the disk.
pub(crate) const BLOCKS: u64 = 48;

/// A layer below the disk's own.
pub(crate) const GIVEN: &str = "/given/base.lsmt";

/// How often a thread looks, at most, whether the writer went on.
const LINGER: u32 = 50;

/// How long it takes until somebody has written something.
const WRITE_TIME: Duration = Duration::from_millis(10);

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The writer is killed; the disk stays.
    Kill,
    /// Everything but what is durable is gone.
    Power,
    /// The step fails: the number of the error.
    Error(i32),
    /// The disk is taken away, with what is in memory.
    Gone,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    /// A sync of it failed: nothing makes it durable any more.
    broken: bool,
}

/// Files by name, and what they were called since names were synced.
#[derive(Clone, Debug, Default)]
struct Files {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    /// Of each name whose change is not durable, all that it stood for, oldest
    /// first.
    loose: BTreeMap<String, Vec<Option<usize>>>,
}

fn within(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Files {
    fn link(&mut self, name: &str, to: Option<usize>) {
        let was = self.names.get(name).copied();
        self.loose.entry(name.into()).or_default().push(was);
        match to {
            Some(to) => self.names.insert(name.into(), to),
            None => self.names.remove(name),
        };
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        let found = self.names.get(name).copied();
        found.ok_or(io::ErrorKind::NotFound.into())
    }

    /// What a name stands for whatever happens, if that is so.
    fn durable(&self, name: &str) -> Option<&[u8]> {
        if self.loose.contains_key(name) {
            return None;
        }
        let inode = &self.inodes[self.inode(name).ok()?];
        (inode.content == inode.durable && !inode.broken).then_some(&inode.content)
    }

    /// The power fails: each name is what it was at any time since it was durable,
    /// and what was not synced is any mixture, torn by sectors.
    fn cut(&mut self, rng: &mut Rng) {
        for (name, was) in std::mem::take(&mut self.loose) {
            let now = self.names.get(&name).copied();
            let choices: Vec<Option<usize>> = was.into_iter().chain([now]).collect();
            match choices[rng.usize(..choices.len())] {
                Some(inode) => self.names.insert(name, inode),
                None => self.names.remove(&name),
            };
        }
        for inode in &mut self.inodes {
            let mut left = inode.durable.clone();
            if inode.content != inode.durable {
                // What was overwritten only is as long as it was.
                if inode.content.len() != inode.durable.len() {
                    left.resize(rng.usize(..=inode.content.len()), 0);
                }
                for (at, sector) in left.chunks_mut(512).enumerate() {
                    let from = &inode.content[at * 512..];
                    if rng.bool() {
                        let len = sector.len().min(from.len());
                        sector[..len].copy_from_slice(&from[..len]);
                    }
                }
            }
            inode.content = left.clone();
            inode.durable = left;
            inode.broken = false;
        }
    }
}

type Blocks = BTreeMap<u64, Option<Vec<u8>>>;

/// A frozen or sealed layer, with what reads gave when the last of it was frozen.
#[derive(Clone)]
struct Lent {
    id: u64,
    reason: Reason,
    blocks: Blocks,
    then: Vec<u8>,
}

impl Lent {
    fn says(&self) -> Frozen {
        let pages = self.blocks.values().filter(|page| page.is_some()).count();
        Frozen {
            id: self.id,
            reason: self.reason,
            extents: self.extents().len() as u64,
            bytes: pages as u64 * BLOCK,
        }
    }

    fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (block, page) in &self.blocks {
            let zero = u32::from(page.is_none());
            match extents.last_mut() {
                Some(last)
                    if last.block + u64::from(last.blocks) == *block && last.zero == zero =>
                {
                    last.blocks += 1;
                }
                _ => extents.push(Extent {
                    block: *block,
                    blocks: 1,
                    zero,
                }),
            }
        }
        extents
    }

    fn data(&self) -> Vec<u8> {
        self.blocks.values().flatten().flatten().copied().collect()
    }

    /// Record `number` of a log.
    fn record(&self, run: &Run, number: u64) -> Vec<u8> {
        let data = self.data();
        let (data, _) = data.as_chunks();
        let extents = self.extents();
        let header = Header {
            log: run.id,
            number,
            sealed: run.sealed,
            extents: extents.len() as u32,
            blocks: data.len() as u64,
            hash: Hash::of(data).end(),
        };
        let mut left = extents.iter().map(|extent| record::Extent {
            block: extent.block,
            blocks: extent.blocks,
            zero: extent.zero == 1,
        });
        let mut blocks = vec![[0; record::BLOCK]; (header.header_len() / BLOCK) as usize];
        for (n, block) in blocks.iter_mut().enumerate() {
            header.write(n == 0, &mut left, block);
        }
        let hash = Hash::of(&blocks);
        record::finish(&mut blocks[0], &hash);
        blocks.extend(data);
        blocks.into_flattened()
    }
}

/// What the driver knows.
#[derive(Clone, Default)]
struct Disk {
    active: Blocks,
    frozen: Option<Lent>,
    logged: Blocks,
    /// What reads gave when the last of what is logged was frozen.
    logged_then: Vec<u8>,
    sealed: Option<Lent>,
    /// Something that is sealed is in no log.
    unlogged: bool,
    /// What reads gave when what is in the image was frozen.
    image_then: Vec<u8>,
    /// What the writer was lent last.
    lent: u64,
    /// Layers by name, with their content as it was opened.
    layers: Vec<(String, Vec<u8>)>,
    next_id: u64,
    /// What reads of the disk give.
    shown: Vec<u8>,
    /// What they gave when layers were frozen, from the last one that was said to be
    /// durable on.
    frozen_then: Vec<Vec<u8>>,
    /// Rounds of writing that are still to come.
    rounds: u64,
}

pub(crate) struct World {
    files: Files,
    disk: Disk,
    pub(crate) rng: Rng,
    /// The driver has the disk.
    attached: bool,
    /// It had it until somebody took that away, and the writer may not know.
    gone: bool,
    /// The writer's process is no more.
    pub(crate) dead: bool,
    pub(crate) steps: u64,
    pub(crate) fault: Option<(u64, Fault)>,
    /// What the fault was, if it came.
    pub(crate) hit: Option<Fault>,
    /// What the driver was told of failures for which flushes wait.
    pub(crate) failures: Vec<i32>,
    /// Steps that changed a file.
    pub(crate) changes: u64,
    /// A file system without room: creating files fails.
    pub(crate) full: bool,
    /// How long the writer paused.
    pub(crate) paused: Duration,
    /// How long it waited besides, and since when.
    waited: Duration,
    begin: Instant,
    /// How often it asked what is frozen.
    asked: u64,
    /// Layers are made by threads of which nobody knows how fast they are.
    pub(crate) background: bool,
    /// How large a log may be; 0: there is none.
    pub(crate) log: u64,
    /// Some records cannot be written.
    pub(crate) flaky: bool,
    /// Somebody flushes all the time: nothing gets old.
    pub(crate) busy: bool,
    /// How often something was logged.
    pub(crate) logs: u64,
    /// How often a record was put at the beginning of the log, before others that were live.
    pub(crate) wraps: u64,
    /// Which log was written to last, and the highest number that a record of it got, or was
    /// to get, by the writer that there is.
    used: (u64, u64),
    /// Content of every layer that was stacked, by name.
    pub(crate) stacked: Vec<(String, Vec<u8>)>,
}

#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

/// The folder, or the driver, of a world.
pub(crate) struct Model(pub(crate) Shared);

/// A file in memory.
pub(crate) struct Bytes(Vec<u8>);

impl Source for Bytes {
    type Error = io::Error;

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let from = self.0.get(at..at + buf.len());
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn dead() -> io::Error {
    io::Error::from_raw_os_error(libc::EOWNERDEAD)
}

/// What layers say, bottom to top.
fn read(layers: &[(String, Vec<u8>)]) -> Vec<u8> {
    let opened = layers.iter().map(|(name, content)| {
        Layer::<_, Host>::open(Bytes(content.clone()))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    });
    let image = Stack::new(opened.collect::<Vec<_>>()).unwrap();
    assert_eq!(image.size(), BLOCKS * BLOCK);
    let mut scratch = Scratch::new(image.needs()).unwrap();
    let mut content = vec![0; image.size() as usize];
    image.read_at(0, &mut content, &mut scratch).unwrap();
    content
}

impl Shared {
    /// A world with a device over one given layer, attached.
    pub(crate) fn new(seed: u64, rounds: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut files = Files::default();
        let mut given = Vec::new();
        let base = Given(pages(&mut rng, BLOCKS as usize));
        let go = |_, _| std::ops::ControlFlow::Continue(());
        obd_writer::commit(&base, &mut given, &Default::default(), go).unwrap();
        files.inodes.push(Inode {
            durable: given.clone(),
            content: given,
            broken: false,
        });
        files.names.insert(GIVEN.into(), 0);
        let world = World {
            files,
            disk: Disk {
                next_id: 1,
                rounds,
                ..Disk::default()
            },
            rng,
            attached: false,
            gone: false,
            dead: false,
            steps: 0,
            fault: None,
            hit: None,
            failures: Vec::new(),
            changes: 0,
            full: false,
            paused: Duration::ZERO,
            waited: Duration::ZERO,
            begin: Instant::now(),
            asked: 0,
            background: false,
            log: 0,
            flaky: false,
            busy: false,
            logs: 0,
            wraps: 0,
            used: (0, 0),
            stacked: Vec::new(),
        };
        let shared = Self(Arc::new(Mutex::new(world)));
        let folder = Model(shared.clone());
        // With a layer of its own under it all in every other world.
        let base = seed.is_multiple_of(2);
        Device::create(&folder, BLOCKS * BLOCK, &[GIVEN.into()], base).unwrap();
        shared.attach();
        shared.lock().steps = 0;
        shared
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same world once more.
    pub(crate) fn copy(&self) -> Self {
        let world = self.lock();
        Self(Arc::new(Mutex::new(World {
            files: world.files.clone(),
            disk: world.disk.clone(),
            rng: world.rng.clone(),
            failures: world.failures.clone(),
            stacked: world.stacked.clone(),
            ..*world
        })))
    }

    /// The disk is attached with what the folder says, nothing of it in memory.
    pub(crate) fn attach(&self) {
        let mut world = self.lock();
        let image = world.files.names[image::NAME];
        let text = world.files.inodes[image].content.clone();
        let image = Image::parse(image::NAME, &text).unwrap();
        let layers: Vec<(String, Vec<u8>)> = image
            .lowers
            .iter()
            .map(|lower| {
                let inode = world.files.names[&lower.file];
                (
                    lower.file.clone(),
                    world.files.inodes[inode].content.clone(),
                )
            })
            .collect();
        let shown = read(&layers);
        world.disk = Disk {
            layers,
            frozen_then: vec![shown.clone()],
            image_then: shown.clone(),
            logged_then: shown.clone(),
            shown,
            next_id: 1,
            rounds: world.disk.rounds,
            ..Disk::default()
        };
        world.attached = true;
    }

    /// Begins a writer: attaches the disk before, if it is not.
    pub(crate) fn open<'a>(&self, folder: &'a Model) -> Result<Device<'a, Model>, Error> {
        let mut device = Device::open(folder)?;
        if !self.lock().attached {
            device.recover(&Default::default())?;
            let before = self.lock().disk.frozen_then.clone();
            self.attach();
            let world = self.lock();
            assert!(
                before.contains(&world.disk.shown),
                "what is there was never frozen since the last flush"
            );
        }
        Ok(device)
    }

    /// What was hit goes on: the writer anew, and the machine, too, if the power
    /// failed. What must be there is looked for.
    pub(crate) fn restart(&self) {
        {
            let mut world = self.lock();
            let power = world.hit == Some(Fault::Power);
            if power {
                let World { files, rng, .. } = &mut *world;
                files.cut(rng);
            }
            world.dead = false;
            world.gone = false;
            world.hit = None;
            world.fault = None;
            if power {
                world.attached = false;
            }
        }
    }

    /// What the disk says now.
    pub(crate) fn shown(&self) -> Vec<u8> {
        self.lock().disk.shown.clone()
    }

    /// Where record `number` of the log `id` is.
    pub(crate) fn record(&self, id: u64, number: u64) -> usize {
        let world = self.lock();
        let content = &world.files.inodes[world.files.names[log::NAME]].content;
        let is_there =
            |block: &[u8]| Header::read(block, id).is_some_and(|header| header.number == number);
        let at = content.chunks(record::BLOCK).position(is_there);
        at.expect("there is one") * record::BLOCK
    }

    /// What is in a file is something else from now on.
    pub(crate) fn spoil(&self, name: &str, at: usize, bytes: &[u8]) {
        let mut world = self.lock();
        let inode = world.files.names[name];
        let inode = &mut world.files.inodes[inode];
        inode.content[at..at + bytes.len()].copy_from_slice(bytes);
        inode.durable[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn set_rounds(&self, rounds: u64) {
        self.lock().disk.rounds = rounds;
    }

    /// The names of all files but the given layer.
    pub(crate) fn files(&self) -> Vec<String> {
        let world = self.lock();
        let names = world.files.names.keys().filter(|name| *name != GIVEN);
        names.cloned().collect()
    }

    /// Waits, so that the writer does something meanwhile, or does not, if this is a thread
    /// that makes a layer of what is sealed.
    fn linger(&self) {
        if thread::current().name() != Some("obd-seal") {
            return;
        }
        let until = {
            let mut world = self.lock();
            if !world.background {
                return;
            }
            // Not for long where there is always more to log: layers would be late.
            let most = if world.busy { 2 } else { 3 };
            world.asked + world.rng.u64(..most)
        };
        // The writer may wait for this thread.
        for _ in 0..LINGER {
            let world = self.lock();
            if world.dead || world.asked >= until {
                return;
            }
            drop(world);
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// What the driver is asked for, if the disk is there.
    fn ask<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.step(|world| match world.gone {
            true => Err(io::Error::from_raw_os_error(libc::ESHUTDOWN)),
            false => act(world),
        })
    }

    /// A step of the writer's.
    fn step<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.linger();
        let mut world = self.lock();
        if world.dead {
            return Err(dead());
        }
        world.steps += 1;
        let fault = world.fault.filter(|(at, _)| *at == world.steps);
        let Some((_, fault)) = fault else {
            return act(&mut world);
        };
        world.hit = Some(fault);
        world.fault = None;
        if let Fault::Error(errno) = fault {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if fault == Fault::Gone {
            world.gone = true;
            world.attached = false;
            return act(&mut world);
        }
        // Whether the step was done before the end, nobody knows.
        if world.rng.bool() {
            let _ = act(&mut world);
        }
        world.dead = true;
        Err(dead())
    }
}

/// A base layer, all of it data.
struct Given(Vec<u8>);

impl obd_writer::Source for Given {
    type Error = std::convert::Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn ranges(&self) -> Result<Vec<obd_writer::source::Range>, Self::Error> {
        Ok(vec![obd_writer::source::Range {
            start: 0,
            end: self.size(),
            zeroed: false,
        }])
    }

    fn workspace(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> Result<(), Self::Error> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// Pages that compress a little, and no two alike.
pub(crate) fn pages(rng: &mut Rng, count: usize) -> Vec<u8> {
    let mut pages = vec![0; count * BLOCK as usize];
    for page in pages.chunks_mut(BLOCK as usize) {
        let (byte, len) = (rng.u8(..), rng.usize(1..200));
        page.fill(byte);
        rng.fill(&mut page[..len]);
    }
    pages
}

impl World {
    /// Somebody makes room, after a minute.
    fn make_room(&mut self) {
        if self.paused + self.waited > Duration::from_secs(60) {
            self.full = false;
        }
    }

    /// Somebody writes to the disk.
    fn write(&mut self) {
        for _ in 0..self.rng.usize(1..8) {
            let first = self.rng.u64(..BLOCKS);
            let count = self.rng.u64(1..=(BLOCKS - first).min(6));
            let zero = self.rng.u8(..4) == 0;
            let data = pages(&mut self.rng, count as usize);
            for (i, page) in data.chunks(BLOCK as usize).enumerate() {
                let block = first + i as u64;
                let at = (block * BLOCK) as usize;
                let shown = &mut self.disk.shown[at..at + BLOCK as usize];
                match zero {
                    true => shown.fill(0),
                    false => shown.copy_from_slice(page),
                }
                let page = (!zero).then(|| page.to_vec());
                self.disk.active.insert(block, page);
            }
        }
    }

    fn freeze(&mut self, reason: Reason) -> Frozen {
        let active = std::mem::take(&mut self.disk.active);
        let id = self.disk.next_id;
        self.disk.next_id += 1;
        self.disk.frozen_then.push(self.disk.shown.clone());
        let then = self.disk.shown.clone();
        let frozen = Lent {
            id,
            reason,
            blocks: active,
            then,
        };
        self.disk.frozen.insert(frozen).says()
    }

    /// The layer that the writer was lent by that name.
    fn lent(&self, id: u64) -> io::Result<&Lent> {
        let lent = [&self.disk.frozen, &self.disk.sealed];
        let found = lent.into_iter().flatten().find(|lent| lent.id == id);
        found.ok_or(io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// What was frozen when reads gave `then` is durable: nothing older may come back.
    fn acknowledge(&mut self, then: &[u8]) {
        let at = self.disk.frozen_then.iter().rposition(|it| it == then);
        // It may be older than what was acknowledged before.
        if let Some(at) = at {
            self.disk.frozen_then.drain(..at);
        }
    }

    /// What is frozen is merged over what was logged.
    fn absorb(&mut self) {
        if let Some(frozen) = self.disk.frozen.take() {
            self.disk.logged.extend(frozen.blocks);
            self.disk.logged_then = frozen.then;
        }
    }

    /// What the log must have from here on: that a record has what is frozen. Whether it is
    /// time for a layer.
    fn logged(&mut self) -> bool {
        self.absorb();
        let then = self.disk.logged_then.clone();
        self.logs += 1;
        let image = self.files.durable(image::NAME);
        let image = Image::parse("", image.expect("image.json is not durable")).unwrap();
        let mut says = read(&self.disk.layers_of(&self.files, &image));
        let state = image.obd.log.expect("there is no log");
        let log = self
            .files
            .durable(log::NAME)
            .expect("the log is not durable");
        assert_eq!(log.len() as u64, state.size);
        let content = log::content(&Durable(&self.files), &image).unwrap();
        apply(&mut says, &content);
        assert!(says == then, "layers and log say something else");
        self.acknowledge(&then);
        self.rng.u8(..3) == 0
    }

    fn seal(&mut self, make: bool) -> Option<Frozen> {
        if let Some(sealed) = &self.disk.sealed {
            return Some(sealed.says());
        }
        if !make || self.disk.frozen.is_none() && self.disk.logged.is_empty() {
            return None;
        }
        let frozen = self.disk.frozen.as_ref();
        self.disk.unlogged = frozen.is_some_and(|frozen| !frozen.blocks.is_empty());
        self.absorb();
        let id = self.disk.next_id;
        self.disk.next_id += 1;
        let sealed = Lent {
            id,
            reason: Reason::Sealed,
            blocks: std::mem::take(&mut self.disk.logged),
            then: self.disk.logged_then.clone(),
        };
        Some(self.disk.sealed.insert(sealed).says())
    }

    fn next(&mut self) -> Next {
        if let Some(frozen) = &self.disk.frozen {
            return Next::Frozen(frozen.says());
        }
        let is_sealed = self.disk.sealed.is_some();
        if self.disk.rounds == 0 {
            let is_rest = self.disk.active.is_empty() && self.disk.logged.is_empty();
            return match is_rest {
                true if !is_sealed => Next::Gone,
                // One at a time.
                _ if is_sealed => Next::Idle,
                _ => Next::Frozen(self.freeze(Reason::Detach)),
            };
        }
        self.disk.rounds -= 1;
        let is_logged = !self.disk.logged.is_empty() && self.disk.active.is_empty();
        if is_logged && !is_sealed && !self.busy && self.rng.bool() {
            // Nothing but that is old.
            return Next::Frozen(self.freeze(Reason::Age));
        }
        self.write();
        let what = if self.busy { 3 } else { self.rng.u8(..4) };
        match what {
            0 => Next::Idle,
            1 if is_sealed => Next::Idle,
            1 => Next::Frozen(self.freeze(Reason::Age)),
            _ => {
                let frozen = self.freeze(Reason::Flush);
                // What comes later is of no concern to that flush.
                self.write();
                Next::Frozen(frozen)
            }
        }
    }

    /// What the contract asks of a writer, and of what it wrote.
    fn stack(&mut self, id: u64, layers: Range<usize>, path: &Path) -> io::Result<()> {
        let path = path.to_str().unwrap();
        let name = path.strip_prefix("/device/").unwrap_or(path).to_owned();
        let errno = |errno| Err(io::Error::from_raw_os_error(errno));
        let is_bottom = self.disk.sealed.is_none() && self.disk.logged.is_empty();
        if id != 0 {
            let is_sealed = self.disk.sealed.as_ref().is_some_and(|it| it.id == id);
            self.lent(id)?;
            if !is_sealed && !is_bottom {
                return errno(libc::EBUSY);
            }
        }
        if layers.end > self.disk.layers.len() {
            return errno(libc::EINVAL);
        }
        let content = self.files.durable(&name);
        let content = content
            .unwrap_or_else(|| panic!("{name} is not durable"))
            .to_vec();
        let image = self.files.durable(image::NAME);
        let image = Image::parse("", image.expect("image.json is not durable")).unwrap();
        let mut now = self.disk.layers.clone();
        now.splice(layers, [(name.clone(), content.clone())]);
        let named = image.lowers.iter().map(|lower| &lower.file);
        assert!(
            named.eq(now.iter().map(|(name, _)| name)),
            "image.json names {:?}",
            image.lowers
        );
        for (name, content) in &now {
            assert_eq!(self.files.durable(name), Some(&**content), "{name}");
        }
        // A push shows what was there when it was frozen, an exchange what was
        // there before it.
        let says = read(&now);
        if id != 0 {
            let then = self.lent(id)?.then.clone();
            assert!(then == says);
            match self.disk.sealed.take() {
                Some(_) => self.disk.unlogged = false,
                None => self.disk.frozen = None,
            }
            self.acknowledge(&then);
            self.disk.image_then = then;
        } else {
            assert!(self.disk.image_then == says);
        }
        self.disk.layers = now;
        self.stacked.push((name, content));
        Ok(())
    }
}

impl Disk {
    /// The layers that an image names, as they are durable.
    fn layers_of(&self, files: &Files, image: &Image) -> Vec<(String, Vec<u8>)> {
        let lowers = image.lowers.iter();
        let layers = lowers.map(|lower| {
            let content = files.durable(&lower.file);
            let content = content.unwrap_or_else(|| panic!("{} is loose", lower.file));
            (lower.file.clone(), content.to_vec())
        });
        layers.collect()
    }
}

/// Puts what a log says over what layers say.
pub(crate) fn apply(to: &mut [u8], content: &log::Content) {
    let mut bytes = &content.bytes[..];
    for extent in &content.extents {
        let at = (extent.block * BLOCK) as usize;
        let to = &mut to[at..at + extent.blocks as usize * BLOCK as usize];
        match extent.zero {
            0 => {
                let (data, rest) = bytes.split_at(to.len());
                to.copy_from_slice(data);
                bytes = rest;
            }
            _ => to.fill(0),
        }
    }
    assert!(bytes.is_empty());
}

/// What of a folder is durable, to be read.
struct Durable<'a>(&'a Files);

impl Folder for Durable<'_> {
    type File = ();
    type Log = ();
    type Source = Bytes;

    fn create(&self, _: &str) -> io::Result<()> {
        Err(dead())
    }

    fn append(&self, (): &mut (), _: &[u8]) -> io::Result<()> {
        Err(dead())
    }

    fn overwrite(&self, (): &mut (), _: &[u8]) -> io::Result<()> {
        Err(dead())
    }

    fn sync(&self, (): &mut ()) -> io::Result<()> {
        Err(dead())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(dead())
    }

    fn sync_names(&self, _: &str) -> io::Result<()> {
        Err(dead())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(dead())
    }

    fn names(&self, _: &str) -> io::Result<Vec<String>> {
        Err(dead())
    }

    fn read(&self, _: &str) -> io::Result<Vec<u8>> {
        Err(dead())
    }

    fn open(&self, name: &str) -> io::Result<Bytes> {
        let content = self.0.durable(name);
        Ok(Bytes(content.ok_or(io::ErrorKind::NotFound)?.to_vec()))
    }

    fn path(&self, name: &str) -> PathBuf {
        name.into()
    }
}

impl Folder for Model {
    type File = usize;
    type Log = usize;
    type Source = Bytes;

    fn create(&self, name: &str) -> io::Result<usize> {
        self.0.step(|world| {
            if world.full {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            world.changes += 1;
            let inode = world.files.inodes.len();
            world.files.inodes.push(Inode::default());
            world.files.link(name, Some(inode));
            Ok(inode)
        })
    }

    fn append(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        let file = *file;
        self.0.step(|world| {
            world.changes += 1;
            world.files.inodes[file].content.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn overwrite(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        let file = *file;
        self.0.step(|world| {
            world.changes += 1;
            world.files.inodes[file].content[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
    }

    fn sync(&self, file: &mut usize) -> io::Result<()> {
        let file = *file;
        let synced = self.0.step(|world| {
            let inode = &mut world.files.inodes[file];
            if !inode.broken {
                inode.durable = inode.content.clone();
            }
            Ok(())
        });
        if synced.is_err() {
            self.0.lock().files.inodes[file].broken = true;
        }
        synced
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.step(|world| {
            world.changes += 1;
            let inode = world.files.inode(from)?;
            world.files.link(to, Some(inode));
            world.files.link(from, None);
            Ok(())
        })
    }

    fn sync_names(&self, folder: &str) -> io::Result<()> {
        self.0.step(|world| {
            world.files.loose.retain(|name, _| within(name) != folder);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.step(|world| {
            world.changes += 1;
            world.files.inode(name)?;
            world.files.link(name, None);
            Ok(())
        })
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        self.0.step(|world| {
            let names = world
                .files
                .names
                .keys()
                .filter(|name| within(name) == folder);
            let short = |name: &String| name.rsplit('/').next().unwrap().to_owned();
            Ok(names.map(short).collect())
        })
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.step(|world| {
            let inode = world.files.inode(name)?;
            Ok(world.files.inodes[inode].content.clone())
        })
    }

    fn open(&self, name: &str) -> io::Result<Bytes> {
        self.read(name).map(Bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/device").join(name)
    }

    fn reserve(&self, name: &str, size: u64) -> io::Result<u64> {
        let mut file = self.create(name)?;
        let made = self
            .append(&mut file, &vec![0; size as usize])
            .and_then(|()| self.sync(&mut file))
            .and_then(|()| self.sync_names(""));
        match made {
            Ok(()) => Ok(size),
            Err(error) => {
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    fn open_log(&self, name: &str) -> io::Result<usize> {
        self.0.step(|world| world.files.inode(name))
    }
}

impl Model {
    /// Waits for a frozen layer.
    fn wait(&self, timeout: Duration) -> io::Result<Next> {
        // Somebody writes whether the writer lives or not, but the steps that can
        // fail are the writer's.
        let mut world = self.0.lock();
        if world.dead {
            return Err(dead());
        }
        if world.gone {
            return Ok(Next::Gone);
        }
        let next = world.next();
        world.asked += 1;
        world.waited += match next {
            Next::Frozen(_) => WRITE_TIME,
            _ => timeout,
        };
        world.make_room();
        drop(world);
        thread::yield_now();
        Ok(next)
    }

    /// The next record of what is frozen, and where it goes, if it can be logged.
    fn record(&self, run: &Run) -> Option<(Vec<u8>, u64, Room)> {
        let mut world = self.0.lock();
        let frozen = world.disk.frozen.as_ref();
        let frozen = frozen.filter(|frozen| frozen.reason == Reason::Flush)?;
        if world.disk.unlogged {
            return None;
        }
        let record = frozen.record(run, run.last + 1);
        let mut room = run.room;
        let at = room.take(record.len() as u64)?;
        world.used = (run.id, run.last + 1);
        world.wraps += u64::from(room.again < run.room.again);
        Some((record, at, room))
    }

    /// Writes a record, durably.
    fn write(&self, log: usize, at: u64, record: &[u8]) -> io::Result<()> {
        let at = at as usize;
        let written = self.0.step(|world| {
            world.changes += 1;
            if world.flaky && world.rng.u8(..6) == 0 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let inode = &mut world.files.inodes[log];
            inode.content[at..at + record.len()].copy_from_slice(record);
            inode.durable = inode.content.clone();
            Ok(())
        });
        if written.is_err() {
            // Some of it may be there, whatever became of the writer.
            let mut world = self.0.lock();
            let World { files, rng, .. } = &mut *world;
            let inode = &mut files.inodes[log];
            for (sector, from) in record.chunks(512).enumerate() {
                if rng.bool() {
                    let at = at + sector * 512;
                    inode.content[at..at + 512].copy_from_slice(from);
                }
            }
            inode.durable = inode.content.clone();
        }
        written
    }
}

impl Kernel for Model {
    type Log = usize;
    type Mapping = Vec<u8>;

    fn bound(&self) -> Bound {
        let mut world = self.0.lock();
        // A new writer knows of records that are whole, and of no others.
        world.used = (0, 0);
        Bound {
            size: BLOCKS * BLOCK,
            memory: 1 << 20,
            layers: world.disk.layers.len(),
        }
    }

    fn next(&mut self, timeout: Duration) -> io::Result<Next> {
        let next = self.wait(timeout)?;
        if let Next::Frozen(frozen) = next {
            self.0.lock().disk.lent = frozen.id;
        }
        Ok(next)
    }

    fn now(&self) -> Instant {
        let world = self.0.lock();
        world.begin + world.waited + world.paused
    }

    fn log(&mut self, log: &mut usize, run: &mut Run, timeout: Duration) -> io::Result<Stop> {
        let before = run.last;
        {
            let world = self.0.lock();
            assert_eq!(world.files.inode(log::NAME)?, *log);
            let size = world.files.inodes[*log].content.len() as u64;
            let Room { at, end, again } = run.room;
            assert!(at <= end && end <= size && again <= at, "{run:?}");
            assert!(run.enough > 0 && run.bytes == 0 && run.time.is_zero());
            let (id, used) = world.used;
            assert!(id != run.id || run.last >= used, "a number is used twice");
        }
        loop {
            match self.wait(timeout)? {
                Next::Frozen(_) => {}
                // What was written is said first.
                Next::Gone if run.last == before => return Ok(Stop::Gone),
                Next::Gone | Next::Idle => return Ok(Stop::Idle),
            }
            let Some((record, at, room)) = self.record(run) else {
                return Ok(Stop::Frozen);
            };
            let failed = |error: io::Error| match error.raw_os_error() {
                Some(libc::EOWNERDEAD) => Err(error),
                _ => Ok(Stop::Failed(error)),
            };
            if let Err(error) = self.write(*log, at, &record) {
                return failed(error);
            }
            // Whether the flushes end or not, it is there.
            let wanted = match self.0.ask(|world| Ok(world.logged())) {
                Ok(wanted) => wanted,
                Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => continue,
                Err(error) => return failed(error),
            };
            run.last += 1;
            run.room = room;
            run.bytes += record.len() as u64;
            run.time += WRITE_TIME;
            if wanted {
                return Ok(Stop::Wanted);
            }
            if run.bytes >= run.enough || self.0.lock().rng.u8(..4) == 0 {
                return Ok(Stop::Idle);
            }
        }
    }

    fn seal(&mut self, make: bool) -> io::Result<Option<Frozen>> {
        self.0.ask(|world| {
            let sealed = world.seal(make);
            if let Some(sealed) = sealed {
                world.disk.lent = sealed.id;
            }
            Ok(sealed)
        })
    }

    fn extents(&mut self, frozen: &Frozen) -> io::Result<Vec<Extent>> {
        self.0.ask(|world| {
            let lent = world.lent(frozen.id)?;
            assert_eq!(lent.says(), *frozen);
            Ok(lent.extents())
        })
    }

    fn map(&mut self, frozen: &Frozen) -> io::Result<Vec<u8>> {
        self.0.ask(|world| {
            assert_eq!(world.disk.lent, frozen.id);
            let lent = world.lent(frozen.id)?;
            Ok(lent.data())
        })
    }

    fn stack(&mut self, id: u64, layers: Range<usize>, path: &Path) -> io::Result<()> {
        self.0.ask(|world| world.stack(id, layers, path))
    }

    fn failed(&mut self, id: u64, errno: i32) -> io::Result<()> {
        let mut world = self.0.lock();
        if world.dead {
            return Err(dead());
        }
        if world.gone {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        world.lent(id)?;
        let disk = &world.disk;
        // Nobody waits for a sealed layer whose content is in the log.
        if disk.unlogged || disk.frozen.as_ref().is_some_and(|frozen| frozen.id == id) {
            world.failures.push(errno);
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        let mut world = self.0.lock();
        world.paused += time;
        world.make_room();
    }
}

/// At rest: nothing is in the folder that the image does not name, everything it
/// names is durable, and it says what the disk said.
pub(crate) fn check(shared: &Shared) {
    let folder = Model(shared.clone());
    let image = Device::look(&folder).unwrap();
    let mut named: BTreeSet<String> = image
        .lowers
        .iter()
        .map(|lower| lower.file.clone())
        .filter(|file| file != GIVEN)
        .collect();
    named.insert(image::NAME.into());
    if image.obd.log.is_some() {
        named.insert(log::NAME.into());
    }
    assert_eq!(
        log::content(&folder, &image).unwrap(),
        log::Content::default()
    );
    assert_eq!(shared.files().into_iter().collect::<BTreeSet<_>>(), named);
    let shown = shared.shown();
    let world = shared.lock();
    let layers: Vec<(String, Vec<u8>)> = image
        .lowers
        .iter()
        .map(|lower| {
            let content = world.files.durable(&lower.file);
            let content = content.unwrap_or_else(|| panic!("{} is loose", lower.file));
            if let Some(size) = lower.size {
                assert_eq!(size, content.len() as u64);
            }
            (lower.file.clone(), content.to_vec())
        })
        .collect();
    assert!(read(&layers) == shown, "the image says something else");
    assert!(world.disk.frozen.is_none() && world.disk.active.is_empty());
    assert!(world.disk.sealed.is_none() && world.disk.logged.is_empty());
    assert!(
        layers
            .iter()
            .all(|(name, _)| name == GIVEN || within(name) == LAYERS)
    );
}
