// SPDX-License-Identifier: MIT

//! The engine that drives an NVMe controller by SPDK's own driver, over the same
//! VFIO layer as [`crate::vfio`]: without DPDK, without huge pages.
//!
//! SPDK 20.07 knows no interrupts. Where an answer is not near, this sleeps for 50 µs,
//! then for twice as long each time, 1 ms at most, and looks again. Its commands
//! are told by one doorbell per batch (`delay_cmd_submit`).
//!
//! What is cut, guarded, timed and given again is `crate::nvme`'s, as for
//! [`crate::vfio`]: SPDK's own time limits, which do nothing but call back, are not
//! used.
//!
//! SPDK keeps what is global in globals, so a process can have one such engine at
//! a time.

#![expect(unsafe_code, reason = "SPDK is C")]

mod arena;
mod env;
mod ffi;

pub use crate::nvme::Options;

use crate::memory::Memory;
use crate::nvme::container::{
    Container,
    other, //
};
use crate::nvme::pci::Bound;
use crate::nvme::{
    Command,
    Driver,
    Nvme,
    Reaped,
    identify, //
};
use crate::{
    Action,
    Error,
    Identity, //
};
use env::Env;
use ffi::{
    Answer,
    Ctrlr,
    Ns,
    Qpair,
    action, //
};
use std::ffi::{
    CStr,
    CString, //
};
use std::io;
use std::ptr::{
    NonNull,
    null_mut, //
};
use std::thread::sleep;
use std::time::{
    Duration,
    Instant, //
};

/// Most commands in flight, as [`Options::depth`] says.
const MAX_DEPTH: u16 = 63;

/// Entries of the queues: SPDK uses three quarters of them.
const ENTRIES: u32 = 128;

/// SPDK's requests: it cuts a command at a drive's boundaries.
const REQUESTS: u32 = 2048;

/// How long an admin command may take.
const ADMIN_PATIENCE: Duration = Duration::from_secs(10);

/// First and longest nap of a sleeper.
const NAPS: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];

/// Controller Status: fatal.
const FATAL: u32 = 1 << 1;

/// An engine on one namespace.
pub type Spdk = Nvme<Controller>;

/// A controller in SPDK's hands, and its queue pair.
pub struct Controller {
    /// Null once it was shut down.
    ctrlr: *mut Ctrlr,
    qpair: *mut Qpair,
    ns: *mut Ns,
    nsid: u32,
    /// The engine's memory.
    data: NonNull<u8>,
    /// By slot.
    answers: Box<[Answer]>,
    free: Vec<u16>,
    /// By slot, too.
    taken: Box<[bool]>,
    /// Slots whose commands SPDK did not take.
    refused: Vec<u16>,
    /// Commands the controller was not told of.
    untold: bool,
    /// It was told while completions were taken.
    told: bool,
    /// Completions taken while it was told.
    early: u32,
    /// The queue pair failed.
    amiss: bool,
    nap: Duration,
    // Closed after all that uses it.
    _env: Env,
}

// SAFETY: SPDK wants one thread at a time at a queue pair and its controller, not
// always the same one; all calls come through `&mut self`.
unsafe impl Send for Controller {}

impl Spdk {
    /// Takes namespace `nsid` of the controller at PCI `address` from the
    /// kernel, for as long as this lives.
    ///
    /// # Errors
    ///
    /// [`Error::Device`]: a namespace of it is in use, or this one holds
    /// something; there is no IOMMU; this process has such an engine already; or
    /// what the system or the controller says.
    pub fn open(address: &str, nsid: u32, options: &Options) -> Result<Self, Error> {
        let bound = Bound::take(address, nsid, options.force)?;
        let name = format!("{address}/{nsid}");
        let fail = |what| {
            let name = name.clone();
            move |error: io::Error| Error::device(name, what, error)
        };
        let memory =
            Memory::new(options.buffers, options.buffer_size).map_err(fail("get memory for"))?;
        let container = Container::open(address, bound.dir()).map_err(fail("open it"))?;
        let env = Env::new(container, address, bound.dir(), &memory)
            .map_err(fail("let it access memory"))?;
        let depth = options.depth.clamp(1, MAX_DEPTH);
        let mut controller =
            Controller::new(env, address, memory.base(), depth).map_err(fail("start it"))?;
        let identity = controller
            .identify(name.clone(), nsid)
            .map_err(fail("identify it"))?;
        Self::new(controller, bound, memory, identity, options)
    }
}

/// What SPDK said last, or `text`.
fn said(text: &str) -> io::Error {
    // SAFETY: a string in a static array that ends with zero.
    let last = unsafe { CStr::from_ptr(ffi::obd_spdk_last_error()) };
    match last.to_string_lossy() {
        last if last.is_empty() => other(text),
        last => other(format!("{text} (SPDK: {last})")),
    }
}

impl Controller {
    fn new(env: Env, address: &str, data: NonNull<u8>, depth: u16) -> io::Result<Self> {
        let address = CString::new(address)?;
        // SAFETY: a string that ends with zero, copied by the call; `env` is there.
        let ctrlr = unsafe { ffi::obd_spdk_connect(address.as_ptr()) };
        if ctrlr.is_null() {
            return Err(said("SPDK does not get it to run"));
        }
        let mut controller = Self {
            ctrlr,
            qpair: null_mut(),
            ns: null_mut(),
            nsid: 0,
            data,
            answers: (0..depth).map(|_| Answer::default()).collect(),
            free: (0..depth).rev().collect(),
            taken: vec![false; usize::from(depth)].into(),
            refused: Vec::new(),
            untold: false,
            told: false,
            early: 0,
            amiss: false,
            nap: NAPS[0],
            _env: env,
        };
        // SAFETY: a controller that runs.
        controller.qpair = unsafe { ffi::obd_spdk_queue(ctrlr, ENTRIES, REQUESTS) };
        if controller.qpair.is_null() {
            return Err(said("SPDK makes no queue pair"));
        }
        Ok(controller)
    }

    fn identify(&mut self, name: String, nsid: u32) -> io::Result<Identity> {
        // SAFETY: the controller runs; its description lives as long as it does,
        // and only changes in calls that take `&mut self`.
        let controller = unsafe { *ffi::spdk_nvme_ctrlr_get_data(self.ctrlr) };
        identify::check_number(&controller, nsid)?;
        self.nsid = nsid;
        self.find_namespace()?;
        // SAFETY: as that of the controller.
        let namespace = unsafe { *ffi::spdk_nvme_ns_get_data(self.ns) };
        // SAFETY: the controller runs.
        let most = unsafe { ffi::spdk_nvme_ctrlr_get_max_xfer_size(self.ctrlr) };
        let most = u64::from(most);
        identify::identity(name, nsid, &controller, &namespace, most, || {
            self.admin("feature", |ctrlr, answer| {
                // SAFETY: the controller runs; `admin` keeps the answer's place.
                unsafe { ffi::obd_spdk_feature(ctrlr, identify::VOLATILE_CACHE as u8, answer) }
            })
        })
    }

    fn find_namespace(&mut self) -> io::Result<()> {
        self.ns = null_mut();
        // SAFETY: the controller runs. SPDK has namespaces that are not there, too,
        // which may not be asked for anything.
        unsafe {
            if ffi::spdk_nvme_ctrlr_is_active_ns(self.ctrlr, self.nsid) {
                self.ns = ffi::spdk_nvme_ctrlr_get_ns(self.ctrlr, self.nsid);
            }
        }
        match self.ns.is_null() {
            true => Err(identify::missing(self.nsid)),
            false => Ok(()),
        }
    }

    /// Does an admin command and waits for it; its result.
    fn admin(
        &mut self,
        what: &str,
        submit: impl FnOnce(*mut Ctrlr, *const Answer) -> i32,
    ) -> io::Result<u32> {
        let answer = Box::new(Answer::default());
        if submit(self.ctrlr, &raw const *answer) != 0 {
            return Err(other(format!("SPDK takes no admin command ({what})")));
        }
        let begin = Instant::now();
        loop {
            // SAFETY: the controller runs, and this is not called by its callbacks.
            let polled = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(self.ctrlr) };
            if let Some(code) = answer.status() {
                return match crate::nvme::status(code) {
                    None => Ok(answer.result()),
                    Some(status) => Err(other(format!("admin command ({what}): {status}"))),
                };
            }
            if polled < 0 || begin.elapsed() > ADMIN_PATIENCE {
                // Who knows whether SPDK writes to it one day.
                Box::leak(answer);
                return Err(other(format!("no answer to an admin command ({what})")));
            }
            sleep(NAPS[0]);
        }
    }

    /// Whether all that was given to SPDK is answered.
    fn is_silent(&self) -> bool {
        let answered = |slot: usize| {
            let refused = self.refused.iter().any(|other| usize::from(*other) == slot);
            refused || !self.taken[slot] || self.answers[slot].status().is_some()
        };
        (0..self.answers.len()).all(answered)
    }

    /// Lets SPDK ring the doorbell and take completions; how many.
    fn poll(&mut self) -> u32 {
        // SAFETY: the queue pair is there, and this is not called by its callbacks.
        let polled = unsafe { ffi::spdk_nvme_qpair_process_completions(self.qpair, 0) };
        self.amiss |= polled < 0;
        u32::try_from(polled).unwrap_or(0)
    }
}

impl Driver for Controller {
    fn depth(&self) -> usize {
        self.answers.len()
    }

    fn alloc(&mut self) -> Option<u16> {
        let slot = self.free.pop()?;
        self.taken[usize::from(slot)] = true;
        Some(slot)
    }

    fn push(&mut self, slot: u16, command: &Command) -> io::Result<()> {
        let action = match command.action {
            Action::Read => action::READ,
            Action::Write => action::WRITE,
            Action::WriteThrough => action::WRITE_THROUGH,
            Action::Flush => action::FLUSH,
            Action::Discard => action::DISCARD,
            Action::WriteZeroes => action::WRITE_ZEROES,
        };
        // A command's length was cut to fit.
        let blocks = command.blocks as u32;
        let answer = &raw const self.answers[usize::from(slot)];
        // SAFETY: the data is within the engine's memory, which the device may
        // access, and belongs to the command until it is answered; the answer's
        // place is this slot's, and lives as long as the queue pair.
        let submitted = unsafe {
            let data = self.data.add(command.data).as_ptr().cast();
            ffi::obd_spdk_submit(
                self.ns,
                self.qpair,
                action,
                data,
                command.first,
                blocks,
                answer,
            )
        };
        self.untold = true;
        match submitted {
            0 => Ok(()),
            error => {
                self.refused.push(slot);
                Err(io::Error::from_raw_os_error(-error))
            }
        }
    }

    fn ring(&mut self) -> bool {
        if std::mem::take(&mut self.untold) {
            self.early += self.poll();
            self.told = true;
        }
        std::mem::take(&mut self.told)
    }

    fn reap(&mut self) -> Reaped {
        let taken = std::mem::take(&mut self.early) + self.poll();
        // That told of everything, too.
        self.told |= std::mem::take(&mut self.untold);
        if taken > 0 {
            self.nap = NAPS[0];
        }
        Reaped {
            taken,
            // SPDK rings once for what it takes at once.
            rang: taken > 0,
            amiss: self.amiss,
        }
    }

    fn answer(&mut self, slot: u16) -> Option<u16> {
        let at = usize::from(slot);
        let code = self.answers[at].status()?;
        if std::mem::take(&mut self.taken[at]) {
            self.free.push(slot);
        }
        Some(code)
    }

    fn is_lost(&mut self) -> bool {
        // SAFETY: the controller is there.
        let status = unsafe { ffi::obd_spdk_status(self.ctrlr) };
        // All ones when it is not there any more.
        status & FATAL != 0
    }

    fn abort(&mut self, slot: u16) -> io::Result<()> {
        let qpair = self.qpair;
        let command = &raw const self.answers[usize::from(slot)];
        self.admin("abort", |ctrlr, answer| {
            // SAFETY: controller and queue pair are there; `command` is what this
            // slot's command has as its argument; `admin` keeps the answer's place.
            unsafe { ffi::obd_spdk_abort(ctrlr, qpair, command, answer) }
        })
        .map(drop)
    }

    /// SPDK's reset stops and starts it, and answers all commands in between.
    fn stop(&mut self) -> io::Result<()> {
        // What was answered before counts.
        self.early += self.poll();
        // SAFETY: the controller is there, and nobody else uses it.
        match unsafe { ffi::spdk_nvme_ctrlr_reset(self.ctrlr) } {
            0 => {}
            _ => return Err(said("SPDK cannot reset it")),
        }
        // Pointers to namespaces do not outlive a reset.
        self.find_namespace()?;
        self.amiss = false;
        // All that it had comes back now.
        let begin = Instant::now();
        loop {
            self.early += self.poll();
            if self.is_silent() || self.amiss || begin.elapsed() > ADMIN_PATIENCE {
                break;
            }
            sleep(NAPS[0]);
        }
        for slot in self.refused.drain(..) {
            self.answers[usize::from(slot)].give_up();
        }
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        self.untold = false;
        match self.free.len() == self.answers.len() {
            true => Ok(()),
            false => Err(other("SPDK's reset kept commands")),
        }
    }

    fn sleep(&mut self, limit: Duration) -> io::Result<()> {
        sleep(self.nap.min(limit));
        self.nap = (self.nap * 2).min(NAPS[1]);
        Ok(())
    }

    fn shut_down(&mut self) -> io::Result<()> {
        let (ctrlr, qpair) = (self.ctrlr, self.qpair);
        (self.ctrlr, self.qpair) = (null_mut(), null_mut());
        let mut result = Ok(());
        if !qpair.is_null() {
            // SAFETY: it was made by this controller and is not used any more.
            if unsafe { ffi::spdk_nvme_ctrlr_free_io_qpair(qpair) } != 0 {
                result = Err(said("SPDK cannot delete its queue pair"));
            }
        }
        if !ctrlr.is_null() {
            // SAFETY: it is not used any more. This shuts it down.
            if unsafe { ffi::spdk_nvme_detach(ctrlr) } != 0 {
                result = Err(said("SPDK cannot shut it down"));
            }
        }
        result
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Where it was not before, opening it failed, and that is what is said.
        let _ = self.shut_down();
    }
}
