// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a power cut leaves, and what recovery makes of it.
//!
//! Recovery sees the media and nothing else. It follows `fs/jbd2/recovery.c`
//! and `ext4_fc_replay_scan`: a transaction counts with its descriptor block
//! and its commit record; a fast commit with all its blocks up to the tail,
//! whose checksum is always there; with checksum v3 a wrong block of a
//! committed transaction fails the mount (`-EFSBADCRC`), without it the wrong
//! content is written to the file system.

use crate::protocol::{Block, Changes, Kind, Protocol};
use crate::state::{MAX_DATA, MAX_FILES, State, Steps, bit};

/// How much of a block is on the media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// What was there before.
    Absent,
    /// The first sector is new, the rest is old.
    Head,
    /// The first sector is old, the rest is new.
    Rest,
    /// All of it.
    Whole,
}

/// A write that was torn by the power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Torn {
    /// The step.
    pub step: usize,
    /// The first sector made it, and not the rest; otherwise the reverse.
    pub head: bool,
}

/// Content of an inode block: the changes it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// These.
    Seen(Changes),
    /// None of the file system's: a torn block, or the log's last lap.
    Garbage,
}

/// A write of recovery's to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    Meta(usize, Meta),
    Data(usize, Piece),
    /// Fast commits are logical: they add to what is there.
    Add(usize, Changes),
}

/// A transaction in the log.
#[derive(Clone, Debug)]
struct Logged {
    descriptor: Piece,
    blocks: Vec<(Replay, Piece)>,
    commit: Piece,
}

/// A fast commit in its area.
#[derive(Clone, Debug)]
struct Fast {
    /// Blocks in order; the last has the tail.
    pieces: Vec<Piece>,
    /// By file.
    adds: Vec<(usize, Changes)>,
}

/// The media after a power cut.
#[derive(Clone, Debug)]
pub struct Media {
    log: Vec<Logged>,
    fast: Vec<Fast>,
    checksum: bool,
    /// What the file system itself holds.
    pub home: Home,
}

/// The file system, without its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Inode blocks, by file.
    pub meta: [Meta; MAX_FILES],
    /// Data blocks in their places.
    pub data: [Piece; MAX_DATA],
}

/// The mount fails: a block of a committed transaction has a wrong checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("recovery: wrong checksum in committed transaction T{tid}: EFSBADCRC")]
pub struct BadChecksum {
    /// The transaction.
    pub tid: usize,
}

impl Protocol {
    /// The media if the power is cut now, `survived` of the writes at risk are
    /// there and `torn`, one of them, is there in part.
    pub fn media(&self, state: &State, survived: Steps, torn: Option<Torn>) -> Media {
        let there = state.durable | survived;
        let piece = |id: usize| match torn {
            Some(torn) if torn.step == id && torn.head => Piece::Head,
            Some(torn) if torn.step == id => Piece::Rest,
            _ if there & bit(id) != 0 => Piece::Whole,
            _ => Piece::Absent,
        };
        let empty = Logged {
            descriptor: Piece::Absent,
            blocks: Vec::new(),
            commit: Piece::Absent,
        };
        let mut media = Media {
            log: vec![empty; self.commit.len() - 1],
            fast: Vec::new(),
            checksum: self.config.checksum,
            home: Home {
                meta: [Meta::Seen(0); MAX_FILES],
                data: [Piece::Absent; MAX_DATA],
            },
        };
        let mut fast: Vec<Fast> = (0..self.fast_commits)
            .map(|fc| Fast {
                pieces: Vec::new(),
                adds: (0..self.files())
                    .map(|file| (file, state.pictures[fc] & self.changes_of(file as u8)))
                    .collect(),
            })
            .collect();
        for (id, step) in self.steps.iter().enumerate() {
            let Kind::Write { block, .. } = step.kind else {
                continue;
            };
            // A block that the transaction does not have.
            let passed_over = state.done & !state.started & !state.failed & bit(id) != 0;
            if passed_over {
                continue;
            }
            match block {
                Block::Data(data) => media.home.data[data] = piece(id),
                Block::Descriptor(tid) => media.log[tid - 1].descriptor = piece(id),
                Block::Commit(tid) => media.log[tid - 1].commit = piece(id),
                Block::Meta(tid, file) => {
                    let seen = Meta::Seen(self.logged(state, tid, file));
                    let replay = Replay::Meta(file.into(), seen);
                    media.log[tid - 1].blocks.push((replay, piece(id)));
                }
                Block::Logged(tid, data) => {
                    let replay = Replay::Data(data, Piece::Whole);
                    media.log[tid - 1].blocks.push((replay, piece(id)));
                }
                Block::Fast(fc, _) => fast[fc].pieces.push(piece(id)),
            }
        }
        if state.first_fast == 2 {
            fast.reverse();
        }
        media.fast = fast;
        media
    }

    /// The file's inode block as the transaction logs it.
    pub fn logged(&self, state: &State, tid: usize, file: u8) -> Changes {
        let joined = |index: usize| usize::from(state.joined[index]);
        (self.changes.iter().enumerate())
            .filter(|(index, c)| c.file == file && joined(*index) != 0 && joined(*index) <= tid)
            .fold(0, |mask, (index, _)| mask | 1 << index)
    }
}

impl Media {
    /// What recovery writes to the file system, in order.
    fn replay(&self) -> Result<Vec<Replay>, BadChecksum> {
        let mut replays = Vec::new();
        for (index, txn) in self.log.iter().enumerate() {
            // The header is in the first sector. A commit record whose rest is
            // missing counts (jbd2_commit_block_csum_verify_partial).
            let header = |piece| matches!(piece, Piece::Head | Piece::Whole);
            if !header(txn.descriptor) || !header(txn.commit) {
                break;
            }
            let whole = |piece| piece == Piece::Whole;
            let right = whole(txn.descriptor) && txn.blocks.iter().all(|(_, piece)| whole(*piece));
            if self.checksum && !right {
                return Err(BadChecksum { tid: index + 1 });
            }
            for &(replay, piece) in &txn.blocks {
                let good = whole(txn.descriptor) && whole(piece);
                replays.push(match replay {
                    Replay::Meta(file, _) if !good => Replay::Meta(file, Meta::Garbage),
                    Replay::Data(data, _) if !good => Replay::Data(data, Piece::Rest),
                    good => good,
                });
            }
        }
        for fast in &self.fast {
            if fast.pieces.is_empty() || fast.pieces.iter().any(|p| *p != Piece::Whole) {
                break;
            }
            replays.extend(
                fast.adds
                    .iter()
                    .map(|&(file, adds)| Replay::Add(file, adds)),
            );
        }
        Ok(replays)
    }

    /// Recovers; the log is empty afterwards.
    ///
    /// # Errors
    ///
    /// The mount fails.
    pub fn recover(&self) -> Result<Home, BadChecksum> {
        let mut home = self.home;
        for replay in self.replay()? {
            home.apply(replay);
        }
        Ok(home)
    }

    /// Whether recovery comes to the same end if it was cut before, with any of
    /// its writes done and the log still there, and if it has ended before.
    ///
    /// # Errors
    ///
    /// The mount fails.
    pub fn recovers_again(&self) -> Result<bool, BadChecksum> {
        let once = self.recover()?;
        // What the first, cut, recovery can leave: any subset of its writes.
        let mut left = vec![self.home];
        for replay in self.replay()? {
            for index in 0..left.len() {
                let mut home = left[index];
                home.apply(replay);
                if !left.contains(&home) {
                    left.push(home);
                }
            }
        }
        // The log that the second one reads is the same.
        let mut again = self.clone();
        for home in left {
            again.home = home;
            if again.recover()? != once {
                return Ok(false);
            }
        }
        again.log.clear();
        again.fast.clear();
        again.home = once;
        Ok(again.recover()? == once)
    }
}

impl Home {
    fn apply(&mut self, replay: Replay) {
        match replay {
            Replay::Meta(file, meta) => self.meta[file] = meta,
            Replay::Data(data, piece) => self.data[data] = piece,
            Replay::Add(file, adds) => {
                if let Meta::Seen(seen) = self.meta[file] {
                    self.meta[file] = Meta::Seen(seen | adds);
                }
            }
        }
    }
}
