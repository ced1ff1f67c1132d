// SPDX-License-Identifier: MIT
//! A served drive for tests.

use aios_disk::client::Client;
use aios_disk::control::Control;
use aios_disk::server::{
    Disk,
    Options, //
};
use std::path::PathBuf;
use std::sync::{
    Mutex,
    MutexGuard,
    PoisonError, //
};
use std::thread;

/// Size of the drive, bytes.
pub(crate) const SIZE: u64 = 1 << 20;

/// A drive of 1 MiB, every byte a 7, served by a thread until the test ends.
pub(crate) struct Drive {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) image: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) control: Control,
    /// Tests take turns: they would disturb each other's timing.
    _turn: MutexGuard<'static, ()>,
}

impl Drive {
    /// Serves a private image without latency.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Serves with options changed by `change`.
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let socket = dir.path().join("nbd");
        let control = dir.path().join("control");
        std::fs::write(&image, vec![7; SIZE as usize]).unwrap();
        let mut options = Options::new(&image, &socket);
        options.control = Some(control.clone());
        change(&mut options);
        let disk = Disk::bind(&options).unwrap();
        thread::spawn(move || disk.run());
        Self {
            dir,
            image,
            socket,
            control: Control::connect(&control).unwrap(),
            _turn: turn,
        }
    }

    /// A new client; it waits until the one before has gone.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }
}
