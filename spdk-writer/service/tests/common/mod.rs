// SPDX-License-Identifier: MIT

//! A world in memory: a folder on a file system that forgets what was not synced,
//! a driver that keeps pages and holds the writer to the contract, and somebody
//! who kills the writer, cuts the power or has one step fail.

#![allow(dead_code, reason = "each test takes what it needs")]

use fastrand::Rng;
use obd_core::lsmt::Layer;
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
    Reason, //
};
use obd_service::{
    BLOCK,
    Device, //
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
use std::time::Duration;

/// Blocks of the disk.
pub(crate) const BLOCKS: u64 = 48;

/// A layer below the disk's own.
pub(crate) const GIVEN: &str = "/given/base.lsmt";

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The writer is killed; the disk stays.
    Kill,
    /// Everything but what is durable is gone.
    Power,
    /// The step fails: the number of the error.
    Error(i32),
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
                left.resize(rng.usize(..=inode.content.len()), 0);
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

/// What the driver knows.
#[derive(Clone, Default)]
struct Disk {
    active: Blocks,
    frozen: Option<(u64, Reason, Blocks)>,
    /// Layers by name, with their content as it was opened.
    layers: Vec<(String, Vec<u8>)>,
    next_id: u64,
    /// What reads of the disk give.
    shown: Vec<u8>,
    /// What they gave when layers were frozen, from the last one that the image
    /// holds on.
    frozen_then: Vec<Vec<u8>>,
    /// A flush waits for what is frozen.
    flushing: bool,
    /// Rounds of writing that are still to come.
    rounds: u64,
}

pub(crate) struct World {
    files: Files,
    disk: Disk,
    pub(crate) rng: Rng,
    /// The writer's process is no more.
    pub(crate) dead: bool,
    pub(crate) steps: u64,
    pub(crate) fault: Option<(u64, Fault)>,
    /// What the fault was, if it came.
    pub(crate) hit: Option<Fault>,
    /// What the driver was told of failures.
    pub(crate) failures: Vec<i32>,
    /// Steps that changed a file.
    pub(crate) changes: u64,
    /// A file system without room: creating files fails.
    pub(crate) full: bool,
    /// How long the writer paused.
    pub(crate) paused: Duration,
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
            dead: false,
            steps: 0,
            fault: None,
            hit: None,
            failures: Vec::new(),
            changes: 0,
            full: false,
            paused: Duration::ZERO,
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
            shown,
            active: Blocks::new(),
            frozen: None,
            flushing: false,
            next_id: 1,
            rounds: world.disk.rounds,
        };
    }

    /// What was hit goes on: the writer anew, and the machine, too, if the power
    /// failed. What must be there is looked for.
    pub(crate) fn restart(&self) {
        let power = {
            let mut world = self.lock();
            let power = world.hit == Some(Fault::Power);
            if power {
                let World { files, rng, .. } = &mut *world;
                files.cut(rng);
            }
            world.dead = false;
            world.hit = None;
            world.fault = None;
            power
        };
        if power {
            let before = self.lock().disk.frozen_then.clone();
            self.attach();
            let world = self.lock();
            assert!(
                before.contains(&world.disk.shown),
                "what is there was never frozen since the last flush"
            );
        }
    }

    /// What the disk says now.
    pub(crate) fn shown(&self) -> Vec<u8> {
        self.lock().disk.shown.clone()
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

    /// A step of the writer's.
    fn step<T>(&self, act: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
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
        self.disk.frozen = Some((id, reason, active));
        self.frozen().unwrap()
    }

    fn frozen(&self) -> Option<Frozen> {
        let (id, reason, blocks) = self.disk.frozen.as_ref()?;
        let pages = blocks.values().filter(|page| page.is_some()).count();
        Some(Frozen {
            id: *id,
            reason: *reason,
            extents: self.extents().len() as u64,
            bytes: pages as u64 * BLOCK,
        })
    }

    fn extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (block, page) in self.disk.frozen.iter().flat_map(|(_, _, blocks)| blocks) {
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

    fn next(&mut self) -> Next {
        if let Some(frozen) = self.frozen() {
            return Next::Frozen(frozen);
        }
        if self.disk.rounds == 0 {
            return match self.disk.active.is_empty() {
                true => Next::Gone,
                false => Next::Frozen(self.freeze(Reason::Detach)),
            };
        }
        self.disk.rounds -= 1;
        self.write();
        match self.rng.u8(..4) {
            0 => Next::Idle,
            1 => Next::Frozen(self.freeze(Reason::Age)),
            _ => {
                self.disk.flushing = true;
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
        match &self.disk.frozen {
            Some((frozen, ..)) if id == *frozen => {}
            _ if id == 0 => {}
            _ => return errno(libc::ESTALE),
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
        assert!(self.disk.frozen_then[usize::from(id != 0)] == says);
        if id != 0 {
            self.disk.frozen = None;
            // The flush is acknowledged: nothing older may come back.
            self.disk.frozen_then.remove(0);
            self.disk.flushing = false;
        }
        self.disk.layers = now;
        self.stacked.push((name, content));
        Ok(())
    }
}

impl Folder for Model {
    type File = usize;
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
}

impl Kernel for Model {
    type Mapping = Vec<u8>;

    fn bound(&self) -> Bound {
        Bound {
            size: BLOCKS * BLOCK,
            memory: 1 << 20,
            layers: self.0.lock().disk.layers.len(),
        }
    }

    fn next(&mut self, _: Duration) -> io::Result<Next> {
        // Somebody writes whether the writer lives or not, but the steps that can
        // fail are the writer's.
        let mut world = self.0.lock();
        match world.dead {
            true => Err(dead()),
            false => Ok(world.next()),
        }
    }

    fn extents(&mut self, frozen: &Frozen) -> io::Result<Vec<Extent>> {
        self.0.step(|world| {
            assert_eq!(world.frozen(), Some(*frozen));
            Ok(world.extents())
        })
    }

    fn map(&mut self, frozen: &Frozen) -> io::Result<Vec<u8>> {
        self.0.step(|world| {
            assert_eq!(world.frozen(), Some(*frozen));
            let (_, _, blocks) = world.disk.frozen.as_ref().unwrap();
            Ok(blocks.values().flatten().flatten().copied().collect())
        })
    }

    fn stack(&mut self, id: u64, layers: Range<usize>, path: &Path) -> io::Result<()> {
        self.0.step(|world| world.stack(id, layers, path))
    }

    fn failed(&mut self, id: u64, errno: i32) -> io::Result<()> {
        let mut world = self.0.lock();
        if world.dead {
            return Err(dead());
        }
        assert_eq!(world.frozen().map(|frozen| frozen.id), Some(id));
        world.failures.push(errno);
        world.disk.flushing = false;
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        let mut world = self.0.lock();
        world.paused += time;
        // Somebody makes room.
        if world.paused > Duration::from_secs(60) {
            world.full = false;
        }
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
    assert!(
        layers
            .iter()
            .all(|(name, _)| name == GIVEN || within(name) == LAYERS)
    );
}
