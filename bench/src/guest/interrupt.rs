// SPDX-License-Identifier: MIT
//! Ctrl-C (and a closed terminal): remembered, so that guests are killed and
//! what was measured is kept.

use crate::error::{
    Error,
    Result, //
};
use std::sync::Once;
use std::sync::atomic::{
    AtomicI32,
    Ordering, //
};

/// The signal that came; 0 when none did.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

extern "C" fn remember(signal: libc::c_int) {
    SIGNAL.store(signal, Ordering::Relaxed);
}

/// From now on remembers the first SIGINT, SIGTERM or SIGHUP instead of dying
/// of it; a second one ends the process at once.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: All zeros is a valid `sigaction` with an empty mask; the
            // handler stores to an atomic, which is safe in a signal handler;
            // the pointer lives through the call.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = remember as *const () as usize;
                action.sa_flags = libc::SA_RESETHAND;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    });
}

/// Fails when a signal came, with the exit code that shells give it.
pub(crate) fn check() -> Result<()> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Error::new("interrupted").code(u8::try_from(128 + signal).unwrap_or(1))),
    }
}
