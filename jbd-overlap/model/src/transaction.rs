// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The steps of a full commit.

use crate::build::{Builder, need, wait};
use crate::config::{DataMode, Flavour, Mutant};
use crate::protocol::{Block, Cond, DataInfo, Dep, Device, Id, Kind, Look, On, Tid};

impl Builder {
    /// `jbd2_journal_commit_transaction`.
    pub(crate) fn transaction(&mut self, tid: Tid) {
        let config = self.p.config;
        let device = self.journal_device();
        let write = |block, fua| Kind::Write { device, block, fua };
        let before = match tid {
            1 => Vec::new(),
            _ => vec![need(On::Done(self.p.commit[tid - 1]))],
        };
        let lock = self.step(format!("T{tid}: locked down"), Kind::Lock(tid), before);
        let locked = vec![need(On::Done(lock))];
        let mut blocks = vec![self.step(
            format!("T{tid}: descriptor block"),
            write(Block::Descriptor(tid), false),
            locked.clone(),
        )];
        for file in 0..self.p.files() as u8 {
            blocks.push(self.step_if(
                &[Cond::Logs(tid, file)],
                format!("T{tid}: inode block of {}", char::from(b'A' + file)),
                write(Block::Meta(tid, file), false),
                locked.clone(),
            ));
        }
        if config.data == DataMode::Journal {
            for (change, info) in self.p.changes.clone().into_iter().enumerate() {
                let of_op =
                    |data: &DataInfo| data.op == info.op && !self.p.steps[data.write].earlier;
                let Some(data) = self.p.data.iter().position(of_op) else {
                    continue;
                };
                blocks.push(self.step_if(
                    &[Cond::Holds(tid, change)],
                    format!("T{tid}: logged data of {}", char::from(b'A' + info.file)),
                    write(Block::Logged(tid, data), false),
                    locked.clone(),
                ));
            }
        }
        // journal_finish_inode_data_buffers: the error is printed and dropped.
        let mut data_wait = Vec::new();
        if config.data == DataMode::Ordered && !self.is(Mutant::CommitBeforeData) {
            for (change, info) in self.p.changes.iter().enumerate() {
                let unwritten = config.allocates_unwritten();
                for data in &self.p.data {
                    if data.op == info.op && data.new && !unwritten {
                        data_wait.push(wait(On::DoneIfIn(change, tid, data.write)));
                    }
                }
            }
        }
        let mut all = locked.clone();
        if !self.is(Mutant::CommitBeforeBlocks) {
            all.extend(blocks.into_iter().map(|id| need(On::Done(id))));
        }
        let written = all.clone();
        all.extend(&data_wait);
        let mut past_flush = None;
        if config.external && config.cache {
            let mut after = locked.clone();
            after.extend(data_wait);
            let mark = self.step(format!("T{tid}: T_COMMIT_DFLUSH"), Kind::Mark, after);
            let id = self.step(
                format!("T{tid}: flush of the file system's device"),
                Kind::Flush(Device::Fs),
                vec![need(On::Done(mark))],
            );
            // jbd2_journal_commit_transaction does not look at its result.
            self.p.steps[id].may_fail = false;
            all.push(wait(On::Done(id)));
            past_flush = (self.flavour != Flavour::Forced).then_some(mark);
        }
        let attaches = |kind| matches!(kind, Kind::Probe(Look::Attach { .. }));
        let covers = config.cache && self.p.steps.iter().any(|step| attaches(step.kind));
        let covers_late = covers && self.is(Mutant::LooksAfterFlush);
        if covers && !covers_late {
            let look = self.look_at_attached(tid, all.clone());
            all.push(wait(On::Done(look)));
        }
        let mark = self.step(format!("T{tid}: T_COMMIT_JFLUSH"), Kind::Mark, all);
        self.p.past_flush.push(past_flush.unwrap_or(mark));
        let mut last = vec![need(On::Done(mark))];
        if config.cache && !self.is(Mutant::DroppedPreflush) {
            let early = self.is(Mutant::FlushBeforeData);
            let id = self.step(
                format!("T{tid}: PREFLUSH"),
                Kind::Flush(device),
                if early { written } else { last.clone() },
            );
            last.push(need(On::Done(id)));
            if covers_late {
                let look = self.look_at_attached(tid, vec![wait(On::Started(id))]);
                last.push(wait(On::Done(look)));
            }
        }
        let fua = config.cache && !self.is(Mutant::DroppedFua);
        let commit = self.step(
            format!("T{tid}: commit record"),
            write(Block::Commit(tid), fua),
            last,
        );
        self.p.commit.push(commit);
    }

    /// The question of rule 2, asked for who sleeps until the commit has ended.
    fn look_at_attached(&mut self, tid: Tid, after: Vec<Dep>) -> Id {
        let looks = !self.is(Mutant::CoversUnseenData);
        let look = self.step_if(
            &[Cond::Attached(tid)],
            format!("T{tid}: is the data of who is attached complete?"),
            Kind::Probe(Look::Covers { tid, looks }),
            after,
        );
        self.p.covers.push(look);
        look
    }
}
