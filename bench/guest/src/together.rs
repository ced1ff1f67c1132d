// SPDX-License-Identifier: MIT
//! Threads that begin at the same moment.

use std::io;
use std::sync::{
    RwLock,
    mpsc, //
};
use std::thread;

/// To be called once, when a thread is ready; returns when all are.
pub(crate) type Begin<'a> = Box<dyn FnOnce() + 'a>;

/// Runs `job` `count` times at once, the first in the calling thread, and
/// returns what each returns, in order. A job that ends without having begun
/// keeps nobody waiting.
///
/// # Errors
///
/// That of a thread which cannot be made; the others are run to their end.
pub(crate) fn together<T: Send>(
    count: usize,
    job: impl Fn(usize, Begin<'_>) -> T + Sync,
) -> io::Result<Vec<T>> {
    let gate = RwLock::new(());
    // Nothing is ever sent: who is ready drops a sender.
    let (ready, all_ready) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // Nobody panics while it is held.
        let closed = gate.write();
        let (job, gate) = (&job, &gate);
        let mut others = Vec::new();
        for number in 1..count {
            let ready = ready.clone();
            let run = move || {
                let begin = || {
                    drop(ready);
                    drop(gate.read());
                };
                job(number, Box::new(begin))
            };
            others.push(thread::Builder::new().spawn_scoped(scope, run)?);
        }
        drop(ready);
        let begin = || {
            // Fails when all senders are gone.
            let _ = all_ready.recv();
            drop(closed);
        };
        let mut results = vec![job(0, Box::new(begin))];
        for other in others {
            let result = other.join();
            results.push(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        Ok(results)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{
        AtomicUsize,
        Ordering, //
    };
    use std::time::Duration;

    #[test]
    fn test_together_nobody_begins_before_all_are_ready() {
        let ready = AtomicUsize::new(0);
        let seen = together(9, |number, begin| {
            // The last ones come late.
            thread::sleep(Duration::from_millis(number as u64));
            ready.fetch_add(1, Ordering::SeqCst);
            begin();
            (number, ready.load(Ordering::SeqCst))
        });
        let all: Vec<_> = (0..9).map(|number| (number, 9)).collect();
        assert_eq!(seen.unwrap(), all);
    }

    #[test]
    fn test_together_a_job_that_fails_keeps_nobody_waiting() {
        for failing in [0, 2] {
            let result = together(4, |number, begin| {
                if number == failing {
                    return Err(number);
                }
                begin();
                Ok(())
            });
            let failed = result.unwrap().iter().filter(|done| done.is_err()).count();
            assert_eq!(failed, 1);
        }
    }

    #[test]
    fn test_together_one_is_the_caller() {
        let caller = thread::current().id();
        let ran = together(1, |_, begin| {
            begin();
            thread::current().id()
        });
        assert_eq!(ran.unwrap(), [caller]);
    }
}
