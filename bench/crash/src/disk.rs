// SPDX-License-Identifier: MIT
//! A read-write overlaybd disk whose folder lies on the drive: what a power cut leaves
//! of its layers, and what must be in them.
//!
//! Threads write to parts of the disk of their own, each operation when the one before
//! has returned. The disk's content is that of one moment: of each thread's part what
//! it was after some of its operations, no fewer than had been done at its last
//! acknowledged sync, and no more than come before the next one; of the one after
//! these any of its blocks may be there, as the moment may be in the middle of it.

use crate::check::Kind;
use crate::ext4::{
    self,
    Ext4, //
};
use crate::history::History;
use aios_guest::crash::{
    Op,
    Plan,
    Range,
    content, //
};
use fastrand::Rng;
use obd_core::{
    Image as Stack,
    Layer,
    Scratch,
    Source, //
};
use obd_host::Host;
use obd_service::image::{
    Image,
    NAME, //
};
use obd_service::{
    BLOCK,
    Device,
    Folder,
    log, //
};
use std::collections::BTreeMap;
use std::io;
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

/// Size of the disk, bytes.
pub const SIZE: u32 = 1 << 20;
/// The disk's folder on the drive.
pub const FOLDER: &str = "disk";
/// The most threads.
const MAX_THREADS: usize = 3;
/// Bytes of the disk that a thread has for itself.
const PART: u32 = SIZE / 4;
/// Longest operation, in sectors.
const LONGEST: u32 = 96;

/// Plan number `number` of a run that was given `seed`: writes and zeros of any sectors,
/// synced now and then. All files are the disk.
pub fn plan(seed: u64, number: u64) -> Plan {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let seed = rng.u64(..);
    let threads = [1, 1, 2, MAX_THREADS][rng.usize(..4)];
    let length = rng.usize(24..=64) / threads;
    let threads = (0..threads)
        .map(|thread| {
            let mut ops: Vec<Op> = (0..length)
                .map(|_| match rng.u8(..10) {
                    0..5 => Op::Direct(0, range(&mut rng, thread)),
                    5 => Op::Punch(0, range(&mut rng, thread)),
                    6..9 => Op::Fdatasync(0),
                    _ => Op::Fsync(0),
                })
                .collect();
            ops.push(Op::Fdatasync(0));
            ops
        })
        .collect();
    Plan { seed, threads }
}

/// Some sectors of a thread's part, whole blocks more often than not.
fn range(rng: &mut Rng, thread: usize) -> Range {
    let unit = if rng.u8(..3) == 0 { 512 } else { 4096 };
    let most = LONGEST * 512 / unit;
    let length = match rng.bool() {
        true => unit,
        false => unit * rng.u32(1..=most),
    };
    let offset = PART * thread as u32 + unit * rng.u32(..=(PART - length) / unit);
    Range { offset, length }
}

/// What a plan does to a disk.
#[derive(Debug)]
pub struct Model {
    plan: Plan,
}

/// What is wrong, and with which promise.
pub type Wrong = (Kind, String);

impl Model {
    /// Of `plan`, on a disk of zeros.
    pub fn new(plan: Plan) -> Self {
        Self { plan }
    }

    /// What it does.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The disk in its folder on `drive`, which was recovered when the first `marks` syncs
    /// of `history` had been acknowledged, must be as it may; opening it changes nothing
    /// but what it does not name.
    pub fn check(&self, history: &History, marks: usize, drive: &[u8]) -> Result<(), Wrong> {
        let contents = |what: String| (Kind::Contents, what);
        let files = Files::of(drive).map_err(contents)?;
        let found = files.content().map_err(contents)?;
        for thread in 0..self.plan.threads.len() {
            self.part(thread, &history.acknowledged(thread, marks), &found)
                .map_err(|what| contents(format!("the part of t{thread}: {what}")))?;
        }
        let others = PART as usize * self.plan.threads.len();
        if found[others..].iter().any(|&byte| byte != 0) {
            return Err(contents("something where nobody wrote".into()));
        }
        let unstable = |what: String| (Kind::Unstable, what);
        let image = files.lock().get(NAME).cloned();
        let mut after = None;
        for again in ["", ", the second time"] {
            Device::open(&files)
                .map_err(|error| unstable(format!("opening it{again}: {error}")))?;
            let named = files.lock().clone();
            if named.get(NAME).cloned() != image {
                return Err(unstable(format!("opening it{again} changes {NAME}")));
            }
            if after
                .replace(named.len())
                .is_some_and(|was| was != named.len())
            {
                return Err(unstable(format!("opening it{again} removes layers")));
            }
            if files.content().map_err(unstable)? != found {
                return Err(unstable(format!("opening it{again} changes its content")));
            }
        }
        Ok(())
    }

    /// The part of one thread, of whose syncs these were acknowledged.
    fn part(&self, thread: usize, acknowledged: &[usize], found: &[u8]) -> Result<(), String> {
        let begin = PART as usize * thread;
        let found = &found[begin..begin + PART as usize];
        let ops = &self.plan.threads[thread];
        let from = acknowledged.iter().max().map_or(0, |last| last + 1);
        let next = ops[from..].iter().position(|op| op.is_sync());
        let until = next.map_or(ops.len(), |next| from + next);
        let mut now = vec![0; PART as usize];
        let mut closest = (usize::MAX, 0);
        for done in 0..=until {
            if done > 0 {
                self.apply(thread, done - 1, &mut now);
            }
            if done < from {
                continue;
            }
            let mut then = now.clone();
            if done < until {
                self.apply(thread, done, &mut then);
            }
            let block = BLOCK as usize;
            let blocks = found
                .chunks(block)
                .zip(now.chunks(block).zip(then.chunks(block)));
            let wrong = blocks.filter(|(is, (now, then))| is != now && is != then);
            match wrong.count() {
                0 => return Ok(()),
                count => closest = closest.min((count, done)),
            }
        }
        let (blocks, done) = closest;
        Err(format!(
            "it is none of those after {from} to {until} operations: {blocks} blocks are \
             unlike those after {done}"
        ))
    }

    fn apply(&self, thread: usize, number: usize, part: &mut [u8]) {
        let Some(&(Op::Direct(_, range) | Op::Punch(_, range))) =
            self.plan.threads[thread].get(number)
        else {
            return;
        };
        let begin = (range.offset - PART * thread as u32) as usize;
        let to = &mut part[begin..begin + range.length as usize];
        match self.plan.threads[thread][number] {
            Op::Direct(..) => content(self.plan.seed, thread, number, range.offset, to),
            _ => to.fill(0),
        }
    }
}

/// A disk's folder in memory, to be read and cleaned up.
struct Files(Mutex<BTreeMap<String, Bytes>>);

/// A file of it.
#[derive(Clone, PartialEq, Eq)]
struct Bytes(Arc<Vec<u8>>);

impl Source for Bytes {
    type Error = io::Error;

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.saturating_add(buf.len());
        let from = self.0.get(begin..end);
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Files {
    /// The folder on a drive.
    fn of(drive: &[u8]) -> Result<Self, String> {
        let ext4 = Ext4::new(drive)?;
        let list = |number| ext4.list(&ext4.inode(number)?);
        let named = |names: &[(String, u32)], name: &str| {
            let found = names.iter().find(|(other, _)| other == name);
            found
                .map(|(_, number)| *number)
                .ok_or_else(|| format!("{name} is gone"))
        };
        let own = list(named(&list(ext4::ROOT)?, FOLDER)?)?;
        let layers = named(&own, "layers")?;
        let mut files = BTreeMap::new();
        let mut read = |name: String, number: u32| -> Result<(), String> {
            let data = ext4
                .read(&ext4.inode(number)?)
                .map_err(|why| format!("{name}: {why}"))?;
            files.insert(name, Bytes(Arc::new(data)));
            Ok(())
        };
        for (name, number) in own {
            if number != layers {
                read(name, number)?;
            }
        }
        for (name, number) in list(layers)? {
            read(format!("layers/{name}"), number)?;
        }
        Ok(Self(Mutex::new(files)))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the layers that are named hold, all of which must be whole, and the log.
    fn content(&self) -> Result<Vec<u8>, String> {
        let image = Device::look(self).map_err(|error| error.to_string())?;
        let mut layers = Vec::new();
        for lower in &image.lowers {
            let file = &lower.file;
            let wrong = |error: &dyn std::fmt::Display| format!("{file}, which is named: {error}");
            let source = self.open(file).map_err(|error| wrong(&error))?;
            layers.push(Layer::<_, Host>::open(source).map_err(|error| wrong(&error))?);
        }
        let wrong = |error: &dyn std::fmt::Display| format!("the layers: {error}");
        let stack = Stack::new(layers).map_err(|error| wrong(&error))?;
        if stack.size() != u64::from(SIZE) {
            return Err(format!("the layers have {} bytes", stack.size()));
        }
        let mut scratch = Scratch::new(stack.needs()).map_err(|_| "out of memory")?;
        let mut content = vec![0; SIZE as usize];
        stack
            .read_at(0, &mut content, &mut scratch)
            .map_err(|error| wrong(&error))?;
        self.apply_log(&image, &mut content)?;
        Ok(content)
    }

    /// Puts what only the log says over what layers say.
    fn apply_log(&self, image: &Image, content: &mut [u8]) -> Result<(), String> {
        let log = log::content(self, image).map_err(|error| error.to_string())?;
        let mut bytes = &log.bytes[..];
        for extent in &log.extents {
            let begin = (extent.block * BLOCK) as usize;
            let to = &mut content[begin..begin + extent.blocks as usize * BLOCK as usize];
            if extent.zero == 1 {
                to.fill(0);
            } else {
                let (data, rest) = bytes.split_at(to.len());
                to.copy_from_slice(data);
                bytes = rest;
            }
        }
        Ok(())
    }
}

fn unsupported<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Folder for Files {
    type File = ();
    type Log = ();
    type Source = Bytes;

    fn create(&self, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn append(&self, (): &mut (), _: &[u8]) -> io::Result<()> {
        unsupported()
    }

    fn overwrite(&self, (): &mut (), _: &[u8]) -> io::Result<()> {
        unsupported()
    }

    fn sync(&self, (): &mut ()) -> io::Result<()> {
        unsupported()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        unsupported()
    }

    fn sync_names(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let gone = self.lock().remove(name);
        gone.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let files = self.lock();
        let names = files.keys().filter_map(|name| match name.rsplit_once('/') {
            Some((other, name)) => (other == folder).then_some(name),
            None => folder.is_empty().then_some(name),
        });
        Ok(names.map(str::to_owned).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.open(name).map(|bytes| bytes.0.to_vec())
    }

    fn open(&self, name: &str) -> io::Result<Bytes> {
        let found = self.lock().get(name).cloned();
        found.ok_or(io::ErrorKind::NotFound.into())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("/").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> (Model, Vec<u8>) {
        let range = |offset, length| Range { offset, length };
        let model = Model::new(Plan {
            seed: 1,
            threads: vec![vec![
                Op::Direct(0, range(0, 8192)),
                Op::Fdatasync(0),
                Op::Punch(0, range(4096, 4096)),
                Op::Direct(0, range(512, 512)),
                Op::Fdatasync(0),
                Op::Direct(0, range(0, 512)),
            ]],
        });
        let mut after = vec![0; SIZE as usize];
        model.apply(0, 0, &mut after[..PART as usize]);
        (model, after)
    }

    #[test]
    fn test_part_is_of_a_moment_since_the_last_acknowledged_sync() {
        let (model, mut disk) = model();
        let zeros = vec![0; SIZE as usize];
        assert!(model.part(0, &[], &zeros).is_ok());
        assert!(model.part(0, &[1], &zeros).is_err());
        assert!(model.part(0, &[1], &disk).is_ok());
        disk[4096..8192].fill(0);
        assert!(model.part(0, &[1], &disk).is_ok());
        // Half of the first write, too.
        assert!(model.part(0, &[], &disk).is_ok());
        assert!(model.part(0, &[1, 4], &disk).is_err());
        model.apply(0, 3, &mut disk);
        assert!(model.part(0, &[1, 4], &disk).is_ok());
        // What comes after a sync that was not acknowledged.
        model.apply(0, 5, &mut disk);
        assert!(model.part(0, &[1, 4], &disk).is_ok());
        assert!(model.part(0, &[1], &disk).is_err());
    }

    #[test]
    fn test_part_is_never_a_mixture() {
        let (model, mut disk) = model();
        // The write after the zeros, without them.
        model.apply(0, 3, &mut disk);
        assert!(model.part(0, &[1], &disk).is_err());
    }

    #[test]
    fn test_plan_stays_within_each_threads_part() {
        for number in 0..200 {
            let plan = plan(3, number);
            assert!(plan.threads.len() <= MAX_THREADS);
            for (thread, ops) in (0..).zip(&plan.threads) {
                assert!(ops.last().is_some_and(|op| op.is_sync()));
                for op in ops {
                    if let Op::Direct(0, range) | Op::Punch(0, range) = op {
                        assert!(range.offset >= PART * thread && range.length > 0);
                        assert!(range.offset + range.length <= PART * (thread + 1));
                    }
                }
            }
        }
    }

    #[test]
    fn test_check_a_drive_without_a_folder_is_wrong() {
        let (model, _) = model();
        let wrong = model.check(&History::default(), 0, &[0; 4096]);
        assert_eq!(wrong.unwrap_err().0, Kind::Contents);
    }
}
