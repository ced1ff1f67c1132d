// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The steps of a sync call, from the rules. The functions named are those of
//! Linux 7.3.4.

use crate::config::{Config, DataMode, Flavour, Mutant, Op, Sync, Workload, Write};
use crate::protocol::{
    Block, Change, ChangeInfo, Cond, DataInfo, Dep, Device, Id, Kind, Look, On, Protocol, Step,
};
use crate::rules::allowed;

/// The protocol for a workload in a configuration.
pub fn protocol(
    config: Config,
    workload: Workload,
    flavour: Flavour,
    mutant: Option<Mutant>,
) -> Protocol {
    let mut builder = Builder {
        flavour,
        mutant,
        returned: None,
        fast_end: None,
        p: Protocol {
            config,
            ops: workload.ops(),
            steps: Vec::new(),
            changes: Vec::new(),
            data: Vec::new(),
            commit: vec![0],
            past_flush: vec![0],
            covers: vec![0],
            fast_commits: 0,
            lazy: false,
        },
    };
    for op in 0..builder.p.ops.len() {
        builder.op(op);
    }
    if !config.commits_fast() {
        // A change each at most: no run has more transactions.
        for tid in 1..=builder.p.changes.len() {
            builder.transaction(tid);
        }
    }
    builder.p
}

/// An edge whose failure is passed on.
pub(crate) fn need(on: On) -> Dep {
    Dep { on, need: true }
}

/// An edge whose failure ends here.
pub(crate) fn wait(on: On) -> Dep {
    Dep { on, need: false }
}

/// A protocol in the making.
pub(crate) struct Builder {
    pub(crate) flavour: Flavour,
    mutant: Option<Mutant>,
    /// The last operation's return.
    returned: Option<Id>,
    /// The last block of the fast commit before.
    fast_end: Option<Id>,
    pub(crate) p: Protocol,
}

/// What the parts of an operation share.
struct Writeback {
    op: usize,
    name: char,
    /// The change of metadata it starts with.
    change: Option<Id>,
    /// The write of its data.
    data: Id,
    /// What `filemap_fdatawait_range` returns after.
    end: Id,
}

impl Builder {
    /// Whether this mistake is to be made.
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// An edge whose error counts unless the mutant swallows it.
    fn need_unless(&self, mutant: Mutant, on: On) -> Dep {
        Dep {
            on,
            need: !self.is(mutant),
        }
    }

    /// Adds a step.
    pub(crate) fn step(&mut self, name: impl Into<String>, kind: Kind, after: Vec<Dep>) -> Id {
        self.p.steps.push(Step {
            name: name.into(),
            kind,
            after,
            only_if: Vec::new(),
            earlier: false,
            may_fail: true,
        });
        self.p.steps.len() - 1
    }

    /// Adds a step that is passed over unless all of `conds` hold.
    pub(crate) fn step_if(
        &mut self,
        conds: &[Cond],
        name: impl Into<String>,
        kind: Kind,
        after: Vec<Dep>,
    ) -> Id {
        let id = self.step(name, kind, after);
        self.p.steps[id].only_if = conds.to_vec();
        id
    }

    fn change(&mut self, op: usize, name: String, exposes: bool, after: Vec<Dep>) -> (Change, Id) {
        let index = self.p.changes.len();
        self.p.changes.push(ChangeInfo {
            file: self.p.ops[op].file,
            op,
            exposes,
            reserves: None,
        });
        (index, self.step(name, Kind::Change(index), after))
    }

    fn data(&mut self, op: usize, name: String, new: bool, fua: bool, after: Vec<Dep>) -> Id {
        let index = self.p.data.len();
        let kind = Kind::Write {
            device: Device::Fs,
            block: Block::Data(index),
            fua,
        };
        let write = self.step(name, kind, after);
        self.p.data.push(DataInfo { op, write, new });
        write
    }

    /// Where the journal is.
    pub(crate) fn journal_device(&self) -> Device {
        if self.p.config.external {
            Device::Journal
        } else {
            Device::Fs
        }
    }

    /// Whether the operation is overlapped in this flavour.
    fn overlapped(&self, op: &Op) -> bool {
        match self.flavour {
            Flavour::Native => false,
            Flavour::Forced => true,
            Flavour::Overlap | Flavour::Attached => {
                allowed(&self.p.config, op, &self.p.ops).is_ok()
                    || self.is(Mutant::FcPreflushSkipped)
            }
        }
    }

    /// Whether the operation's data may carry FUA instead of a flush: only if
    /// no other data of the inode waits in the cache for that flush.
    fn fua_data(&self, op: &Op) -> bool {
        let config = &self.p.config;
        config.cache
            && op.sync != Sync::None
            && self.overlapped(op)
            && (op.sync == Sync::DataOnly || config.commits_fast())
            && (!op.dirty || self.is(Mutant::FuaDespiteDirty))
    }

    fn op(&mut self, index: usize) {
        let (config, op) = (self.p.config, self.p.ops[index]);
        let name = char::from(b'A' + op.file);
        let begin = match self.returned {
            Some(before) if op.in_turn => vec![wait(On::Done(before))],
            _ => Vec::new(),
        };
        if op.dirty {
            let earlier = self.data(
                index,
                format!("{name}: data written back before"),
                false,
                false,
                Vec::new(),
            );
            self.p.steps[earlier].earlier = true;
        }
        let new = op.write == Write::NewBlock;
        let unwritten = new && config.allocates_unwritten();
        let journalled = config.data == DataMode::Journal;
        let pure = op.sync == Sync::DataOnly && !journalled;
        let change = (!pure).then(|| {
            let what = match (new, unwritten) {
                (true, true) => "allocate an unwritten extent",
                (true, false) => "allocate a block",
                (false, _) => "change the inode",
            };
            self.change(
                index,
                format!("{name}: {what}"),
                new && !unwritten,
                begin.clone(),
            )
        });
        let start = change.map_or(begin, |(_, step)| vec![wait(On::Done(step))]);
        if journalled && !self.overlapped(&op) {
            return self.journalled(index, name, change.map(|(_, step)| step), start);
        }
        let data = self.data(
            index,
            format!("{name}: data"),
            new,
            self.fua_data(&op),
            start,
        );
        let mut end = data;
        if unwritten {
            let (_, convert) = self.change(
                index,
                format!("{name}: convert the extent to written"),
                true,
                vec![need(On::Done(data))],
            );
            if let Some((change, _)) = change {
                self.p.changes[change].reserves = Some(convert);
            }
            end = convert;
        }
        let writeback = Writeback {
            op: index,
            name,
            change: change.map(|(_, step)| step),
            data,
            end,
        };
        match op.sync {
            Sync::None => {}
            Sync::DataOnly if pure => self.data_only(&writeback),
            _ if config.commits_fast() => self.fast(&writeback),
            _ => self.full(&writeback),
        }
    }

    fn finish(&mut self, op: usize, name: char, after: Vec<Dep>) {
        self.returned = Some(self.step(format!("{name}: fsync returns"), Kind::Return(op), after));
    }

    /// `fdatasync` with nothing to commit: FUA data, or data and a flush.
    fn data_only(&mut self, w: &Writeback) {
        let mut result = vec![self.need_unless(Mutant::DataErrorSwallowed, On::Done(w.end))];
        if self.p.config.cache && !self.fua_data(&self.p.ops[w.op]) {
            result.push(self.flush_after_data(w));
        }
        self.finish(w.op, w.name, result);
    }

    /// A flush of the cache for data that is complete.
    fn flush_after_data(&mut self, w: &Writeback) -> Dep {
        let after = if self.is(Mutant::FlushBeforeData) {
            On::Started(w.data)
        } else {
            On::Done(w.end)
        };
        let flush = self.flush(w.name, &[], vec![wait(after)]);
        need(On::Done(flush))
    }

    /// `blkdev_issue_flush` of `ext4_sync_file`.
    fn flush(&mut self, name: char, conds: &[Cond], after: Vec<Dep>) -> Id {
        let kind = Kind::Flush(Device::Fs);
        self.step_if(conds, format!("{name}: flush"), kind, after)
    }

    /// data=journal: `ext4_do_writepages` commits, then writes in place.
    fn journalled(&mut self, op: usize, name: char, change: Option<Id>, start: Vec<Dep>) {
        let file = self.p.ops[op].file;
        let read = self.step(
            format!("{name}: ask for a commit"),
            Kind::ReadTid { file, start: true },
            start,
        );
        let new = self.p.ops[op].write == Write::NewBlock;
        let data = self.data(
            op,
            format!("{name}: data in its place"),
            new,
            false,
            vec![need(On::Committed(read))],
        );
        let w = Writeback {
            op,
            name,
            change,
            data,
            end: data,
        };
        self.wait_commit(&w, &[read], read, Look::PastFlush(read));
    }

    /// The full commit: `ext4_sync_file` up to `jbd2_log_wait_commit`.
    fn full(&mut self, w: &Writeback) {
        let file = self.p.ops[w.op].file;
        if !self.overlapped(&self.p.ops[w.op]) {
            let after = match w.change {
                Some(change) if self.is(Mutant::WrongTid) => wait(On::Done(change)),
                _ => self.need_unless(Mutant::DataErrorSwallowed, On::Done(w.end)),
            };
            let read = self.step(
                format!("{}: ask for a commit", w.name),
                Kind::ReadTid { file, start: true },
                vec![after],
            );
            return self.wait_commit(w, &[read], read, Look::PastFlush(read));
        }
        let first = self.step(
            format!("{}: ask for a commit, data in flight", w.name),
            Kind::ReadTid { file, start: true },
            vec![wait(On::Started(w.data))],
        );
        if self.is(Mutant::WrongTid) {
            return self.wait_commit(w, &[first], first, Look::PastFlush(first));
        }
        let mut awake = vec![wait(On::Done(w.end))];
        let attach = (self.flavour == Flavour::Attached).then(|| {
            let attach = self.step(
                format!("{}: attach to the transaction if it still runs", w.name),
                Kind::Probe(Look::Attach {
                    read: first,
                    file,
                    second: self.is(Mutant::CoversOneForBoth),
                }),
                vec![wait(On::Done(first))],
            );
            // The commit first, and then the data, to be woken once.
            awake.push(wait(On::CommittedIf(attach, first)));
            attach
        });
        let again = self.step(
            format!("{}: read the tid again, data complete", w.name),
            Kind::ReadTid { file, start: true },
            awake,
        );
        let look = match attach {
            Some(attach) => Look::NotCovered {
                attach,
                read: again,
            },
            None => Look::PastFlush(again),
        };
        self.wait_commit(w, &[first, again], again, look);
    }

    /// The barrier decision (always after the data), the waits and the return.
    fn wait_commit(&mut self, w: &Writeback, reads: &[Id], last: Id, look: Look) {
        let mut result = vec![self.need_unless(Mutant::DataErrorSwallowed, On::Done(w.end))];
        let mut commits = Vec::new();
        for &read in reads {
            let on = On::Committed(read);
            result.push(self.need_unless(Mutant::CommitErrorSwallowed, on));
            commits.push(wait(on));
        }
        if self.p.config.cache {
            let (look, after) = if self.is(Mutant::FlushBeforeData) {
                (Look::PastFlush(reads[0]), vec![wait(On::Done(reads[0]))])
            } else {
                (look, vec![wait(On::Done(last)), wait(On::Done(w.end))])
            };
            let probe = self.step(
                format!("{}: does the commit's flush still come?", w.name),
                Kind::Probe(look),
                after,
            );
            commits.push(wait(On::Done(probe)));
            let flush = self.flush(w.name, &[Cond::Saw(probe)], commits);
            result.push(need(On::Done(flush)));
        }
        self.finish(w.op, w.name, result);
    }

    /// The fast commit, in the caller: `ext4_fc_commit`.
    fn fast(&mut self, w: &Writeback) {
        let config = self.p.config;
        let op = self.p.ops[w.op];
        let overlapped = self.overlapped(&op);
        let fc = self.p.fast_commits;
        self.p.fast_commits += 1;
        let begin = if overlapped {
            wait(On::Started(w.data))
        } else {
            self.need_unless(Mutant::DataErrorSwallowed, On::Done(w.end))
        };
        let mut result = vec![self.need_unless(Mutant::DataErrorSwallowed, On::Done(w.end))];
        let mut conds = Vec::new();
        let mut first = vec![begin];
        if let Some(other) = self.fast_end
            && self.is(Mutant::FcSharedBlindly)
        {
            let probe = self.step(
                format!("{}: is a fast commit running?", w.name),
                Kind::Probe(Look::FastCommitRunning(fc)),
                first,
            );
            conds.push(Cond::Missed(probe));
            first = vec![wait(On::Done(probe))];
            result.push(wait(On::Done(other)));
        }
        let snapshot = self.step_if(
            &conds,
            format!("{}: take the picture for fast commit {}", w.name, fc + 1),
            Kind::Snapshot {
                fc,
                wait_data: config.data == DataMode::Ordered && !self.is(Mutant::FcBeforeData),
            },
            first,
        );
        let mut ready = vec![need(On::Done(snapshot))];
        if config.external && config.cache && !overlapped {
            let kind = Kind::Flush(Device::Fs);
            let id = self.step_if(&conds, format!("{}: flush the data", w.name), kind, ready);
            // ext4_fc_perform_commit does not look at its result.
            self.p.steps[id].may_fail = false;
            ready = vec![need(On::Done(id))];
        }
        let device = self.journal_device();
        let fua = config.cache && !self.is(Mutant::DroppedFua);
        for part in 0..op.fc_blocks {
            let tail = part + 1 == op.fc_blocks;
            let mut after = ready.clone();
            if tail && config.cache && !overlapped && !self.is(Mutant::DroppedPreflush) {
                let name = format!("{}: fast commit {} PREFLUSH", w.name, fc + 1);
                let id = self.step_if(&conds, name, Kind::Flush(device), after);
                after = vec![need(On::Done(id))];
            }
            let what = if tail { "block with the tail" } else { "block" };
            let kind = Kind::Write {
                device,
                block: Block::Fast(fc, part),
                fua: fua && (tail || overlapped),
            };
            let name = format!("{}: fast commit {} {what}", w.name, fc + 1);
            let id = self.step_if(&conds, name, kind, after);
            result.push(self.need_unless(Mutant::CommitErrorSwallowed, On::Done(id)));
            if tail {
                self.fast_end = Some(id);
            }
        }
        if overlapped && config.cache && !self.fua_data(&op) {
            result.push(self.flush_after_data(w));
        }
        self.finish(w.op, w.name, result);
    }
}
