// SPDX-License-Identifier: MIT
//! Judging states on all of the host's CPUs, while the guest goes on recording.

use super::record::ours;
use crate::error::{
    Error,
    Result, //
};
use aios_crash::check::{
    Checker,
    Recording,
    Violation, //
};
use aios_crash::history::History;
use aios_crash::mutant::Mutant;
use aios_crash::states::{
    Hashes,
    Seen,
    State,
    enumerate, //
};
use fastrand::Rng;
use indicatif::ProgressBar;
use std::sync::mpsc::{
    Receiver,
    SyncSender,
    sync_channel, //
};
use std::sync::{
    Arc,
    Mutex,
    PoisonError, //
};
use std::thread::{
    self,
    Scope,
    ScopedJoinHandle, //
};

/// States that one thread judges in a row: their bases are close together.
const CHUNK: usize = 32;

/// Some states of a recording, and which configuration it belongs to.
struct Work {
    recording: Arc<Recording>,
    states: Vec<State>,
    configuration: usize,
}

/// A state that breaks a promise.
pub(super) struct Failure {
    pub(super) recording: Arc<Recording>,
    pub(super) state: State,
    pub(super) violation: Violation,
    /// Which configuration it belongs to.
    pub(super) configuration: usize,
    /// Whether the guest's kernel has recovered it, not e2fsck.
    pub(super) mounted: bool,
}

/// Threads that judge states.
pub(super) struct Pool<'scope> {
    queue: Option<SyncSender<Work>>,
    threads: Vec<ScopedJoinHandle<'scope, Result<Vec<Failure>>>>,
}

impl<'scope> Pool<'scope> {
    /// One thread per CPU, for drives of `size` bytes.
    pub(super) fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        size: usize,
        bar: &'env ProgressBar,
    ) -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let (queue, work) = sync_channel(64);
        let work = Arc::new(Mutex::new(work));
        let threads = (0..count)
            .map(|_| {
                let work = Arc::clone(&work);
                scope.spawn(move || judge(&work, size, bar))
            })
            .collect();
        Self {
            queue: Some(queue),
            threads,
        }
    }

    /// Has the states judged; waits where too many are waiting already.
    pub(super) fn put(
        &self,
        recording: &Arc<Recording>,
        states: &[State],
        configuration: usize,
    ) -> Result<()> {
        for states in states.chunks(CHUNK) {
            let work = Work {
                recording: Arc::clone(recording),
                states: states.to_vec(),
                configuration,
            };
            let sent = self.queue.as_ref().map(|queue| queue.send(work));
            if !matches!(sent, Some(Ok(()))) {
                // They end only with an error, which `finish` tells.
                return Err(Error::new("nobody is left to judge states"));
            }
        }
        Ok(())
    }

    /// Waits until all is judged; the failures.
    pub(super) fn finish(mut self) -> Result<Vec<Failure>> {
        drop(self.queue.take());
        let mut failures = Vec::new();
        for thread in self.threads {
            let found = thread
                .join()
                .unwrap_or_else(|why| std::panic::resume_unwind(why));
            failures.append(&mut found?);
        }
        Ok(failures)
    }
}

fn judge(work: &Mutex<Receiver<Work>>, size: usize, bar: &ProgressBar) -> Result<Vec<Failure>> {
    let mut checker = Checker::new(size).map_err(ours)?;
    let mut failures = Vec::new();
    loop {
        // Held while waiting, which is what all the others would do, too.
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else {
            return Ok(failures);
        };
        for state in work.states {
            let judged = checker.check(&work.recording, &state).map_err(ours)?;
            bar.inc(1);
            if let Err(violation) = judged {
                failures.push(Failure {
                    recording: Arc::clone(&work.recording),
                    state,
                    violation,
                    configuration: work.configuration,
                    mounted: false,
                });
            }
        }
    }
}

/// States that were checked, and what was found wrong.
pub(super) type Caught = (u64, Option<String>);

/// Looks for a broken promise in `recordings` broken by `mutant`: `judge` says what is
/// wrong with a state, of which so many of each recording are tried.
pub(super) fn catch(
    mutant: Mutant,
    recordings: &[Arc<Recording>],
    seed: u64,
    states: usize,
    mut judge: impl FnMut(&Arc<Recording>, &State) -> Result<Option<Violation>>,
) -> Result<Caught> {
    let mut tried = 0;
    for recording in recordings.iter().filter(|it| mutant.breaks(it)) {
        let history: History = mutant.apply(recording).map_err(Error::new)?;
        let broken = Arc::new(recording.with(history));
        let states = enumerate(
            &broken.history,
            Hashes::new(&broken.initial),
            &mut Seen::default(),
            &mut Rng::with_seed(seed),
            states,
        );
        for state in states {
            tried += 1;
            if let Some(violation) = judge(&broken, &state)? {
                return Ok((tried, Some(violation.to_string())));
            }
        }
    }
    Ok((tried, None))
}
