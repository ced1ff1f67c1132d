// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What must hold after recovery.

use crate::config::{Config, DataMode, Sync};
use crate::protocol::{Changes, Protocol};
use crate::recovery::{BadChecksum, Home, Media, Meta, Piece};
use crate::state::{State, bit};

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The file system cannot be mounted.
    #[error("the file system does not mount: {0}")]
    Unmountable(#[from] BadChecksum),
    /// An inode block is none.
    #[error("the inode block of {} holds garbage", file_name(*.file))]
    Garbage {
        /// The file.
        file: usize,
    },
    /// The metadata is no state that the file system was ever in.
    #[error("the metadata is half of a transaction")]
    HalfTransaction,
    /// Data that a sync call promised is not there.
    #[error("fsync of {} returned success, and its data is lost", file_name(*.file))]
    DataLost {
        /// The file.
        file: usize,
    },
    /// Metadata that a sync call promised is not there.
    #[error("fsync of {} returned success, and its metadata is lost", file_name(*.file))]
    MetadataLost {
        /// The file.
        file: usize,
    },
    /// A block shows what its last owner left.
    #[error("{} shows a block with the content of its last owner", file_name(*.file))]
    StaleData {
        /// The file.
        file: usize,
    },
    /// data=journal: data and metadata of a transaction come together.
    #[error("{} has data without its transaction, or half a block", file_name(*.file))]
    NotAtomic {
        /// The file.
        file: usize,
    },
    /// Recovering again changes the file system.
    #[error("a second recovery changes the file system")]
    SecondRecovery,
}

fn file_name(file: usize) -> char {
    char::from(b'A' + u8::try_from(file).unwrap_or(25))
}

impl Protocol {
    /// Recovers and checks every promise.
    ///
    /// # Errors
    ///
    /// The first broken one.
    pub fn check(&self, state: &State, media: &Media) -> Result<(), Violation> {
        let home = media.recover()?;
        let seen = self.seen_changes(&home)?;
        self.check_prefix(state, seen)?;
        self.check_acknowledged(state, &home, seen)?;
        self.check_data(state, &home, seen)?;
        if media.recovers_again()? {
            Ok(())
        } else {
            Err(Violation::SecondRecovery)
        }
    }

    fn seen_changes(&self, home: &Home) -> Result<Changes, Violation> {
        let mut all = 0;
        for (file, meta) in home.meta.iter().enumerate() {
            match meta {
                Meta::Seen(seen) => all |= seen,
                Meta::Garbage => return Err(Violation::Garbage { file }),
            }
        }
        Ok(all)
    }

    /// The metadata is that of a prefix of the transactions, or of the fast
    /// commits.
    fn check_prefix(&self, state: &State, seen: Changes) -> Result<(), Violation> {
        let mut prefixes = vec![0];
        if self.config.commits_fast() {
            let [first, second] = state.pictures;
            prefixes.extend([first, second, first | second]);
        } else {
            for tid in 1..self.commit.len() {
                let files = 0..self.files() as u8;
                prefixes.push(files.fold(0, |all, file| all | self.logged(state, tid, file)));
            }
        }
        if prefixes.contains(&seen) {
            Ok(())
        } else {
            Err(Violation::HalfTransaction)
        }
    }

    fn check_acknowledged(
        &self,
        state: &State,
        home: &Home,
        seen: Changes,
    ) -> Result<(), Violation> {
        let acknowledged = self.acknowledged(state);
        for (index, op) in self.ops.iter().enumerate() {
            if acknowledged & 1 << index == 0 {
                continue;
            }
            let file = usize::from(op.file);
            let promised = |data: usize| self.data[data].op == index;
            let lost = |data: &usize| promised(*data) && home.data[*data] != Piece::Whole;
            if (0..self.data.len()).any(|data| lost(&data)) {
                return Err(Violation::DataLost { file });
            }
            let changes = self.mask(|change| change.op == index);
            if op.sync != Sync::DataOnly && seen & changes != changes {
                return Err(Violation::MetadataLost { file });
            }
        }
        Ok(())
    }

    fn check_data(&self, state: &State, home: &Home, seen: Changes) -> Result<(), Violation> {
        for (index, data) in self.data.iter().enumerate() {
            let file = usize::from(self.ops[data.op].file);
            let piece = home.data[index];
            if self.config.data == DataMode::Journal && !self.steps[data.write].earlier {
                let committed = seen & self.mask(|change| change.op == data.op) != 0;
                let right = if committed {
                    Piece::Whole
                } else {
                    Piece::Absent
                };
                if piece != right {
                    return Err(Violation::NotAtomic { file });
                }
            }
            let shown = seen & self.mask(|c| c.op == data.op && c.exposes) != 0;
            // A write the device refused leaves what was there, and jbd2 goes
            // on after a warning unless mounted with data_err=abort.
            let refused = state.failed & bit(data.write) != 0;
            if promises_order(&self.config)
                && data.new
                && shown
                && piece != Piece::Whole
                && !refused
            {
                return Err(Violation::StaleData { file });
            }
        }
        Ok(())
    }
}

/// Whether a block may only show once its content is there.
fn promises_order(config: &Config) -> bool {
    config.data == DataMode::Ordered
}
