// SPDX-License-Identifier: MIT

//! A drive that loses power, and images in memory.

#![allow(dead_code, reason = "each test file uses its part")]

use fastrand::Rng;
use obd_engine::{
    Action,
    Done,
    Engine,
    Error,
    Identity,
    Memory,
    Refused,
    Request,
    Shared,
    Stats,
    Status, //
};
use obd_store::Store;
use obd_store::store::MIN_SIZE;
use obd_writer::source::{
    Range,
    Source, //
};
use std::convert::Infallible;
use std::sync::{
    Arc,
    Mutex, //
};
use std::time::Duration;

const SECTOR: usize = 512;

pub(crate) const SIZE: u64 = MIN_SIZE + (4 << 20);

/// What happens at the command that is chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power fails: of what is not durable each sector may be lost.
    Power,
    /// The process is killed: the drive goes on with what it was given, or not.
    Kill,
}

/// A write that is not durable.
#[derive(Clone)]
struct Unflushed {
    number: u64,
    offset: usize,
    bytes: Vec<u8>,
    /// The writer was told that it is done.
    told: bool,
}

/// A drive with a volatile cache, or without.
#[derive(Clone)]
pub(crate) struct Drive {
    block_size: u32,
    volatile: bool,
    /// What reads see.
    visible: Vec<u8>,
    /// What is there without power.
    durable: Vec<u8>,
    unflushed: Vec<Unflushed>,
    rng: Rng,
    /// Commands so far, and the one at which something happens.
    pub(crate) commands: u64,
    pub(crate) fault: Option<(u64, Fault)>,
    /// It happened.
    pub(crate) dead: bool,
    /// Bytes that were discarded.
    pub(crate) discarded: u64,
    pub(crate) writes: u64,
}

impl Drive {
    pub(crate) fn new(seed: u64, block_size: u32, volatile: bool) -> Arc<Mutex<Self>> {
        let mut rng = Rng::with_seed(seed);
        let mut durable = vec![0; SIZE as usize];
        // Whatever was there before is not zeros.
        rng.fill(&mut durable);
        Arc::new(Mutex::new(Self {
            block_size,
            volatile,
            visible: durable.clone(),
            durable,
            unflushed: Vec::new(),
            rng,
            commands: 0,
            fault: None,
            dead: false,
            discarded: 0,
            writes: 0,
        }))
    }

    fn put(&mut self, offset: usize, bytes: Vec<u8>) {
        self.visible[offset..][..bytes.len()].copy_from_slice(&bytes);
        self.writes += 1;
        if self.volatile {
            self.unflushed.push(Unflushed {
                number: self.commands,
                offset,
                bytes,
                told: false,
            });
        } else {
            self.durable[offset..][..bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// What is in the cache of the same place is this, too, from now on.
    fn put_through(&mut self, offset: usize, bytes: Vec<u8>) {
        for write in &mut self.unflushed {
            let end = (write.offset + write.bytes.len()).min(offset + bytes.len());
            let start = write.offset.max(offset);
            if start < end {
                write.bytes[start - write.offset..end - write.offset]
                    .copy_from_slice(&bytes[start - offset..end - offset]);
            }
        }
        self.visible[offset..][..bytes.len()].copy_from_slice(&bytes);
        self.durable[offset..][..bytes.len()].copy_from_slice(&bytes);
        self.writes += 1;
    }

    /// Does `request`; `covered` are the writes a flush is about.
    fn execute(&mut self, request: &mut Request, covered: &[u64]) {
        let (offset, len) = (request.offset as usize, request.len as usize);
        match (request.action, &mut request.buffer) {
            (Action::Read, Some(buffer)) => {
                buffer[..len].copy_from_slice(&self.visible[offset..][..len]);
            }
            (Action::Write, Some(buffer)) => self.put(offset, buffer[..len].to_vec()),
            (Action::WriteThrough, Some(buffer)) => {
                self.put_through(offset, buffer[..len].to_vec());
            }
            (Action::WriteZeroes, _) => self.put(offset, vec![0; len]),
            (Action::Discard, _) => {
                self.discarded += len as u64;
                self.put(offset, vec![0xdd; len]);
            }
            _ => self.unflushed.retain(|write| {
                let now = covered.contains(&write.number);
                if now {
                    self.durable[write.offset..][..write.bytes.len()].copy_from_slice(&write.bytes);
                }
                !now
            }),
        }
    }

    /// Power fails: every write that is not durable is lost, or not, or torn.
    fn power_cut(&mut self) {
        for write in std::mem::take(&mut self.unflushed) {
            let fate = self.rng.u8(0..3);
            for (n, sector) in write.bytes.chunks(SECTOR).enumerate() {
                // A drive does whole blocks, not whole sectors of 512 bytes.
                let torn = fate == 2 && self.rng.bool();
                if fate == 1 || torn {
                    let at = write.offset + n * SECTOR;
                    self.durable[at..][..sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.visible = self.durable.clone();
    }

    /// What happens to everything that is in flight when the fault strikes.
    fn strike(&mut self, fault: Fault, in_flight: &mut [Flying]) {
        self.dead = true;
        for flying in in_flight {
            let write = matches!(
                flying.request.action,
                Action::Write | Action::WriteThrough | Action::Discard | Action::WriteZeroes
            );
            if !write {
                continue;
            }
            match fault {
                Fault::Kill if self.rng.bool() => self.execute(&mut flying.request, &[]),
                Fault::Kill => {}
                Fault::Power => {
                    // In flight it is as if in a volatile cache.
                    if flying.request.action == Action::WriteThrough {
                        flying.request.action = Action::Write;
                    }
                    let volatile = std::mem::replace(&mut self.volatile, true);
                    self.commands += 1;
                    self.execute(&mut flying.request, &[]);
                    self.volatile = volatile;
                }
            }
        }
        if fault == Fault::Power {
            self.power_cut();
        }
    }

    /// The machine is on again, or the process started again.
    pub(crate) fn restart(drive: &Arc<Mutex<Self>>) {
        let mut drive = drive.lock().unwrap();
        drive.dead = false;
        drive.fault = None;
        // Whatever a killed writer was not told of is complete by now, and the
        // next flush is about it, too.
        drive
            .unflushed
            .iter_mut()
            .for_each(|write| write.told = true);
    }
}

struct Flying {
    request: Request,
    /// Of a flush: the writes that had been told when it came.
    covered: Vec<u64>,
}

/// An engine on a [`Drive`], which does requests in any order.
pub(crate) struct Sim {
    drive: Arc<Mutex<Drive>>,
    identity: Identity,
    memory: Memory,
    flying: Vec<Flying>,
    stats: Stats,
}

pub(crate) fn device(drive: &Arc<Mutex<Drive>>) -> Arc<Shared> {
    let (block_size, volatile) = {
        let drive = drive.lock().unwrap();
        (drive.block_size, drive.volatile)
    };
    Arc::new(Shared::new(Box::new(Sim {
        drive: Arc::clone(drive),
        identity: Identity {
            name: "simulated".into(),
            model: String::new(),
            serial: String::new(),
            size: SIZE,
            block_size,
            max_transfer: 1 << 20,
            volatile_cache: volatile,
            atomic_unit: block_size,
            discard: true,
            write_zeroes: true,
        },
        memory: Memory::new(16, 64 << 10).unwrap(),
        flying: Vec::new(),
        stats: Stats::default(),
    })))
}

impl Engine for Sim {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn depth(&self) -> usize {
        12
    }

    fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn submit(&mut self, request: Request) -> Result<(), Box<Refused>> {
        if let Err(error) = self.identity.check(&request, &self.memory) {
            return Err(Box::new(Refused { request, error }));
        }
        let drive = self.drive.lock().unwrap();
        let told = drive.unflushed.iter().filter(|write| write.told);
        self.flying.push(Flying {
            covered: told.map(|write| write.number).collect(),
            request,
        });
        Ok(())
    }

    fn kick(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn reap(&mut self, _wait: bool, done: &mut Vec<Done>) -> Result<(), Error> {
        let mut drive = self.drive.lock().unwrap();
        let some = match self.flying.len() {
            0 => return Ok(()),
            len => drive.rng.usize(1..=len),
        };
        drive.rng.shuffle(&mut self.flying);
        for _ in 0..some {
            let mut good = !drive.dead;
            if good {
                drive.commands += 1;
                if let Some((at, fault)) = drive.fault
                    && at == drive.commands
                {
                    drive.strike(fault, &mut self.flying);
                    good = false;
                }
            }
            let Some(mut flying) = self.flying.pop() else {
                break;
            };
            let Request {
                tag,
                action,
                offset,
                len,
                ..
            } = flying.request;
            if good {
                drive.execute(&mut flying.request, &flying.covered);
                let number = drive.commands;
                for write in &mut drive.unflushed {
                    write.told |= write.number == number;
                }
            }
            self.stats.done(action, len, Duration::ZERO, good);
            done.push(Done {
                tag,
                buffer: flying.request.buffer,
                result: match good {
                    true => Ok(()),
                    false => Err(Error::Command {
                        device: "simulated".into(),
                        action,
                        offset,
                        len,
                        status: Status::Os(5),
                    }),
                },
            });
        }
        Ok(())
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// A layer in memory.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ranges: Vec<Range>,
}

impl Layer {
    /// Random ranges, `part` of 256 of the image in all, of random words that
    /// LZ4 makes shorter.
    pub(crate) fn random(rng: &mut Rng, size: u64, part: u8) -> Self {
        let mut layer = Self {
            bytes: vec![0; size as usize],
            ranges: Vec::new(),
        };
        let step = 16 << 10;
        for start in (0..size).step_by(step) {
            if rng.u8(..) > part {
                continue;
            }
            let end = (start + rng.u64(1..=(step / SECTOR) as u64) * SECTOR as u64).min(size);
            let zeroed = rng.u8(0..8) == 0;
            if !zeroed {
                for word in layer.bytes[start as usize..end as usize].chunks_mut(4) {
                    word.fill(rng.u8(..));
                }
            }
            layer.ranges.push(Range { start, end, zeroed });
        }
        layer
    }

    /// `image` with this over it.
    pub(crate) fn over(&self, image: &mut Vec<u8>) {
        image.resize(self.bytes.len(), 0);
        for range in &self.ranges {
            let range = range.start as usize..range.end as usize;
            image[range.clone()].copy_from_slice(&self.bytes[range]);
        }
    }
}

impl Source for Layer {
    type Error = Infallible;
    type Workspace = ();

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn ranges(&self) -> Result<Vec<Range>, Infallible> {
        Ok(self.ranges.clone())
    }

    fn workspace(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn read(&self, (): &mut (), offset: u64, buf: &mut [u8]) -> Result<(), Infallible> {
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// Everything a store's layers say.
pub(crate) fn content(store: &Store) -> Vec<u8> {
    let image = store.image(0..store.state().layers.len()).unwrap();
    let mut bytes = vec![0; image.size() as usize];
    let mut scratch = obd_core::Scratch::new(image.needs()).unwrap();
    image.read_at(0, &mut bytes, &mut scratch).unwrap();
    bytes
}
