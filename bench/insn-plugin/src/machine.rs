// SPDX-License-Identifier: MIT
//! What one virtual CPU's stream of executed blocks means: a state machine that
//! assigns kernel instructions to the phases of an operation.
//!
//! Pure: it knows neither QEMU nor addresses' names, so that tests drive it
//! with made-up streams. The rules are in the crate's documentation.

use crate::symbols::Traits;

/// A run of instructions of one function that executes from start to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Index of the function.
    pub symbol: u32,
    /// Number of instructions.
    pub insns: u32,
    /// Address of the first instruction.
    pub start: u64,
    /// Address of the last instruction if that is a repeated string
    /// instruction, else 0 (never a kernel address).
    pub repeat: u64,
    /// What is to be known of it.
    pub traits: Traits,
}

/// Part of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Phase {
    /// From kernel entry to the first doorbell of a submission queue.
    Before = 0,
    /// From a doorbell until the CPU halts, or the completion is seen.
    Device = 1,
    /// From the drive's interrupt, or the end of the waiting loop, on.
    After = 2,
    /// In a waiting loop.
    Spin = 3,
}

/// Number of [`Phase`]s.
pub const PHASES: usize = 4;

/// Instructions by function.
#[derive(Debug, Default)]
struct Tally {
    counts: Vec<u64>,
    /// Functions with a count above 0, in order of appearance.
    touched: Vec<u32>,
    sum: u64,
}

impl Tally {
    fn add(&mut self, symbol: u32, insns: u64) {
        let index = symbol as usize;
        if index >= self.counts.len() {
            self.counts.resize(index + 1, 0);
        }
        if insns > 0 && self.counts[index] == 0 {
            self.touched.push(symbol);
        }
        self.counts[index] += insns;
        self.sum += insns;
    }

    /// Moves up to `insns` instructions of `symbol` to `other`.
    fn shift(&mut self, symbol: u32, insns: u64, other: &mut Self) {
        let Some(count) = self.counts.get_mut(symbol as usize) else {
            return;
        };
        // A count that falls to 0 keeps its function in `touched` only once.
        let moved = insns.min(count.saturating_sub(1));
        *count -= moved;
        self.sum -= moved;
        other.add(symbol, moved);
    }

    fn drain_into(&mut self, other: &mut Self) {
        for symbol in self.touched.drain(..) {
            let count = std::mem::take(&mut self.counts[symbol as usize]);
            other.add(symbol, count);
        }
        self.sum = 0;
    }

    fn clear(&mut self) {
        for symbol in self.touched.drain(..) {
            self.counts[symbol as usize] = 0;
        }
        self.sum = 0;
    }
}

/// Why an operation does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// A foreign interrupt came in between, or hid the completion.
    Interrupt = 0,
    /// Another task ran in between.
    Task = 1,
    /// Another number of commands than the workload's own was sent.
    Commands = 2,
    /// The completion came before the CPU was waiting for it.
    Early = 3,
}

impl Disturbance {
    /// All of them, in order of precedence.
    pub const ALL: [Self; 4] = [Self::Interrupt, Self::Task, Self::Commands, Self::Early];

    /// Name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "interrupt",
            Self::Task => "task",
            Self::Commands => "commands",
            Self::Early => "early",
        }
    }
}

/// What a clean operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// Commands it sends; `None` for any number above 0.
    pub commands: Option<u32>,
    /// Task switches at most; `None` for any number.
    pub switches: Option<u32>,
    /// Foreign interrupts are taken out of it instead of spoiling it.
    pub interruptible: bool,
}

/// Whose an interrupt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A device's, not known yet which.
    Device,
    /// The drive's.
    Drive,
    /// Not of this operation.
    Foreign,
    /// An exception: part of what it interrupted.
    Exception,
}

/// Where the operation is with respect to a waiting loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loop {
    /// In none.
    No,
    /// In its function.
    In,
    /// In a function it called, or out of it for good; what follows shows
    /// which. Instructions wait in [`Op::left`].
    Left,
}

/// One level of interruption.
#[derive(Debug, Clone, Copy)]
struct Frame {
    cause: Cause,
    /// What was interrupted.
    waiting: Loop,
    /// The idle CPU was interrupted.
    halted: bool,
}

/// Deeper nesting than the hardware has means returns were missed.
const MAX_NESTING: usize = 16;

/// How far the operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent yet.
    Before,
    /// A command was sent.
    Device,
    /// Its interrupt came.
    After,
}

/// The operation in progress.
#[derive(Debug)]
struct Op {
    stage: Stage,
    waiting: Loop,
    halted: bool,
    /// The interrupt came while the loop was [`Loop::Left`]: early, unless the
    /// loop turns out to go on.
    doubtful: bool,
    /// A foreign interrupt woke the idle CPU, which goes back to sleep.
    resuming: bool,
    frames: Vec<Frame>,
    commands: u32,
    switches: u32,
    interrupted: bool,
    disturbances: [bool; Disturbance::ALL.len()],
    phases: [Tally; PHASES],
    /// Instructions of [`Loop::Left`].
    left: Tally,
    /// Instructions of an interrupt of [`Cause::Device`].
    device: Tally,
    /// Last repeated string instruction, see [`Block::repeat`].
    repeat: u64,
}

impl Default for Op {
    fn default() -> Self {
        Self {
            stage: Stage::Before,
            waiting: Loop::No,
            halted: false,
            doubtful: false,
            resuming: false,
            frames: Vec::new(),
            commands: 0,
            switches: 0,
            interrupted: false,
            disturbances: [false; Disturbance::ALL.len()],
            phases: Default::default(),
            left: Tally::default(),
            device: Tally::default(),
            repeat: 0,
        }
    }
}

impl Op {
    fn reset(&mut self) {
        self.stage = Stage::Before;
        self.waiting = Loop::No;
        self.halted = false;
        self.doubtful = false;
        self.resuming = false;
        self.frames.clear();
        self.commands = 0;
        self.switches = 0;
        self.interrupted = false;
        self.disturbances = [false; Disturbance::ALL.len()];
        for tally in &mut self.phases {
            tally.clear();
        }
        self.left.clear();
        self.device.clear();
        self.repeat = 0;
    }

    fn disturb(&mut self, why: Disturbance) {
        self.disturbances[why as usize] = true;
    }

    fn disturbance(&self) -> Option<Disturbance> {
        Disturbance::ALL
            .into_iter()
            .find(|&why| self.disturbances[why as usize])
    }

    fn enter(&mut self, cause: Cause) {
        if self.frames.len() == MAX_NESTING {
            self.disturb(Disturbance::Interrupt);
            return;
        }
        self.frames.push(Frame {
            cause,
            waiting: self.waiting,
            halted: self.halted || self.resuming,
        });
        if cause != Cause::Exception {
            self.waiting = Loop::No;
            self.halted = false;
        }
    }

    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else {
            // The operation's own return to user mode.
            return;
        };
        if frame.cause == Cause::Device {
            self.device.clear();
            self.interrupted = true;
        }
        if frame.cause != Cause::Exception {
            self.waiting = frame.waiting;
            self.resuming = frame.halted && frame.cause != Cause::Drive;
        }
    }

    /// The cause that decides where instructions go now.
    fn cause(&self) -> Option<Cause> {
        let causes = || self.frames.iter().map(|frame| frame.cause);
        if causes().any(|cause| cause == Cause::Foreign) {
            return Some(Cause::Foreign);
        }
        causes().rfind(|&cause| cause != Cause::Exception)
    }

    /// The interrupt being served turned out to be the drive's.
    fn completion(&mut self) {
        let Some(frame) = self
            .frames
            .iter_mut()
            .rfind(|frame| frame.cause == Cause::Device)
        else {
            return;
        };
        frame.cause = Cause::Drive;
        let frame = *frame;
        self.resuming = false;
        match self.stage {
            // The command of an earlier operation, or of someone else.
            Stage::Before => self.disturb(Disturbance::Commands),
            Stage::Device => {
                match frame.waiting {
                    Loop::No if !frame.halted => self.disturb(Disturbance::Early),
                    Loop::No | Loop::In => {}
                    Loop::Left => self.doubtful = true,
                }
                self.stage = Stage::After;
            }
            Stage::After => {}
        }
        let phase = self.phase();
        self.device.drain_into(&mut self.phases[phase as usize]);
    }

    fn phase(&self) -> Phase {
        match self.stage {
            Stage::Before => Phase::Before,
            Stage::Device => Phase::Device,
            Stage::After => Phase::After,
        }
    }

    /// The loop was left for good: its completion was seen.
    fn leave_loop(&mut self) {
        if self.doubtful {
            self.disturb(Disturbance::Early);
        }
        if self.stage == Stage::Device && self.waiting == Loop::Left {
            self.stage = Stage::After;
        }
        let phase = self.phase();
        self.left.drain_into(&mut self.phases[phase as usize]);
        self.waiting = Loop::No;
    }

    fn block(&mut self, block: &Block) {
        let traits = block.traits;
        if traits.has(Traits::DEVICE_IRQ) {
            self.enter(Cause::Device);
        } else if traits.has(Traits::FOREIGN_IRQ) {
            self.interrupted = true;
            self.enter(Cause::Foreign);
        } else if traits.has(Traits::EXCEPTION) {
            self.enter(Cause::Exception);
        }
        // A repeated string instruction counts once however often the
        // emulator goes back to it.
        let again = block.repeat != 0 && block.start == self.repeat;
        let insns = u64::from(block.insns) - u64::from(again && block.insns > 0);
        self.repeat = block.repeat;

        match self.cause() {
            Some(Cause::Foreign) => {
                // The drive's interrupt, nested in a foreign one.
                if traits.has(Traits::DRIVER) {
                    self.disturb(Disturbance::Interrupt);
                }
            }
            Some(Cause::Device) => {
                self.device.add(block.symbol, insns);
                if traits.has(Traits::DRIVER) {
                    self.completion();
                }
            }
            _ => self.work(block, insns),
        }
        if traits.has(Traits::IRET) {
            self.leave();
        }
    }

    /// Instructions of the operation itself.
    fn work(&mut self, block: &Block, insns: u64) {
        let traits = block.traits;
        self.switches += u32::from(traits.has(Traits::SWITCH));
        if self.resuming {
            self.halted = traits.has(Traits::HALT);
            self.resuming = !self.halted;
            return;
        }
        if traits.has(Traits::SPIN) {
            // Returned to, it had called what came in between; called, that was
            // work between two waits.
            let between = if traits.has(Traits::CALLED) {
                self.phase()
            } else {
                self.doubtful = false;
                Phase::Spin
            };
            self.left.drain_into(&mut self.phases[between as usize]);
            self.waiting = Loop::In;
            self.phases[Phase::Spin as usize].add(block.symbol, insns);
            return;
        }
        if traits.has(Traits::ENDS) && self.waiting == Loop::Left {
            // The loop found a completion, and has it ended before it looks again.
            self.left.drain_into(&mut self.phases[Phase::Spin as usize]);
            self.doubtful = false;
            self.leave_loop();
        }
        self.halted = traits.has(Traits::HALT);
        if self.waiting == Loop::No {
            let phase = self.phase();
            self.phases[phase as usize].add(block.symbol, insns);
            return;
        }
        self.waiting = Loop::Left;
        self.left.add(block.symbol, insns);
        if self.halted {
            // The loop gave up.
            let phase = self.phase();
            self.left.drain_into(&mut self.phases[phase as usize]);
            self.waiting = Loop::No;
        }
    }

    /// A command was sent; `rest` instructions of `symbol`'s block, counted
    /// already, come after the store.
    fn doorbell(&mut self, symbol: u32, rest: u32) {
        if self.cause() == Some(Cause::Foreign) {
            self.disturb(Disturbance::Commands);
            return;
        }
        self.commands += 1;
        self.leave_loop();
        let phase = self.phase();
        self.stage = Stage::Device;
        let [before, device, after, _] = &mut self.phases;
        match phase {
            Phase::Before => before.shift(symbol, u64::from(rest), device),
            Phase::After => after.shift(symbol, u64::from(rest), device),
            Phase::Device | Phase::Spin => {}
        }
    }
}

/// Sums over clean operations.
#[derive(Debug, Default)]
pub struct Sums {
    /// Instructions by phase and function.
    pub phases: [Vec<u64>; PHASES],
    /// Operations.
    pub clean: u64,
    /// Operations that an interrupt was taken out of.
    pub interrupted: u64,
    /// Commands sent.
    pub commands: u64,
    /// Task switches.
    pub switches: u64,
    /// Work instructions (no spinning) of each operation.
    pub per_op: Vec<u32>,
}

/// What became of the operations of one window.
#[derive(Debug, Default)]
pub struct Totals {
    /// Clean operations without a task switch.
    pub awake: Sums,
    /// Clean operations that slept: another path through the kernel.
    pub slept: Sums,
    /// Operations left out, by [`Disturbance`].
    pub disturbed: [u64; Disturbance::ALL.len()],
    /// Operations that sent no command: not I/O at all (cache hits).
    pub no_io: u64,
}

/// The state of one virtual CPU.
#[derive(Debug, Default)]
pub struct Machine {
    rules: Rules,
    window: bool,
    active: bool,
    op: Op,
    totals: Totals,
}

impl Machine {
    /// A CPU on which operations that keep to `rules` count.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// Whether an operation is in progress; blocks are of interest only then.
    pub fn active(&self) -> bool {
        self.active
    }

    /// What was counted so far.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The measured part begins; what was counted before is forgotten.
    pub fn window_begin(&mut self) {
        self.window = true;
        self.active = false;
        self.totals = Totals::default();
    }

    /// The measured part ends.
    pub fn window_end(&mut self) {
        self.window = false;
        self.active = false;
    }

    /// An operation begins, in user mode.
    pub fn op_begin(&mut self) {
        self.active = self.window;
        self.op.reset();
    }

    /// An operation ends, in user mode.
    pub fn op_end(&mut self) {
        if !std::mem::take(&mut self.active) {
            return;
        }
        let op = &mut self.op;
        op.leave_loop();
        let rules = self.rules;
        if op.commands == 0 && rules.commands != Some(0) {
            self.totals.no_io += 1;
            return;
        }
        if rules.commands.is_some_and(|count| count != op.commands) {
            op.disturb(Disturbance::Commands);
        }
        if rules.switches.is_some_and(|most| op.switches > most) {
            op.disturb(Disturbance::Task);
        }
        if op.interrupted && !rules.interruptible {
            op.disturb(Disturbance::Interrupt);
        }
        if let Some(why) = op.disturbance() {
            self.totals.disturbed[why as usize] += 1;
            return;
        }
        let sums = if op.switches > 0 {
            &mut self.totals.slept
        } else {
            &mut self.totals.awake
        };
        sums.clean += 1;
        sums.interrupted += u64::from(op.interrupted);
        sums.commands += u64::from(op.commands);
        sums.switches += u64::from(op.switches);
        let [before, device, after, _] = &op.phases;
        let work = before.sum + device.sum + after.sum;
        sums.per_op.push(u32::try_from(work).unwrap_or(u32::MAX));
        for (tally, total) in op.phases.iter().zip(&mut sums.phases) {
            for &symbol in &tally.touched {
                let index = symbol as usize;
                if index >= total.len() {
                    total.resize(index + 1, 0);
                }
                total[index] += tally.counts[index];
            }
        }
    }

    /// A kernel block begins to execute.
    pub fn block(&mut self, block: &Block) {
        if self.active {
            self.op.block(block);
        }
    }

    /// A submission queue's doorbell was rung by an instruction of `block`
    /// that `rest` more of its instructions follow.
    pub fn doorbell(&mut self, block: &Block, rest: u32) {
        if self.active {
            self.op.doorbell(block.symbol, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Traits = Traits::NONE;

    /// Function 1 is work, 2 the driver's, 3 a loop, 4 called by it, 5 the stub.
    fn run(machine: &mut Machine, symbol: u32, insns: u32, traits: Traits) {
        machine.block(&Block {
            symbol,
            insns,
            start: u64::from(symbol) << 12,
            repeat: 0,
            traits,
        });
    }

    fn started(commands: Option<u32>) -> Machine {
        started_by(Rules {
            commands,
            ..Rules::default()
        })
    }

    fn started_by(rules: Rules) -> Machine {
        let mut machine = Machine::new(rules);
        machine.window_begin();
        machine.op_begin();
        machine
    }

    /// The driver's block of 10 with the doorbell after its 7th instruction.
    fn submit(machine: &mut Machine) {
        let block = Block {
            symbol: 2,
            insns: 10,
            start: 0x2000,
            repeat: 0,
            traits: Traits::DRIVER,
        };
        machine.block(&block);
        machine.doorbell(&block, 3);
    }

    fn interrupt(machine: &mut Machine) {
        run(machine, 5, 20, Traits::DEVICE_IRQ);
        run(machine, 2, 30, Traits::DRIVER);
        run(machine, 6, 5, Traits::IRET);
    }

    fn phases(machine: &Machine) -> [u64; PHASES] {
        machine
            .totals()
            .awake
            .phases
            .each_ref()
            .map(|counts| counts.iter().sum())
    }

    fn disturbed(machine: &Machine, why: Disturbance) -> u64 {
        machine.totals().disturbed[why as usize]
    }

    #[test]
    fn test_read_that_sleeps_is_split_at_doorbell_and_interrupt() {
        let mut machine = started(Some(1));
        run(&mut machine, 1, 100, WORK);
        submit(&mut machine);
        run(&mut machine, 1, 40, WORK);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [107, 3 + 41, 55 + 50, 0]);
        assert_eq!(machine.totals().awake.clean, 1);
        assert_eq!(machine.totals().awake.per_op, [107 + 44 + 105]);
        assert_eq!(machine.totals().awake.phases[Phase::Device as usize][2], 3);
    }

    #[test]
    fn test_spin_ended_by_interrupt_is_no_work() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 1, 40, WORK);
        run(&mut machine, 3, 4, Traits::SPIN | Traits::CALLED);
        for _ in 0..3 {
            run(&mut machine, 3, 6, Traits::SPIN);
            run(&mut machine, 4, 2, WORK);
        }
        run(&mut machine, 3, 6, Traits::SPIN);
        interrupt(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        run(&mut machine, 4, 2, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 43, 55 + 52, 4 + 3 * 8 + 12]);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_spin_that_polls_starts_after_when_left() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 3, 50, 6]);
    }

    #[test]
    fn test_spin_that_gives_up_and_sleeps_is_device() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 60, WORK);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 3 + 61, 55, 6]);
    }

    #[test]
    fn test_what_the_loop_has_ended_is_work_and_the_loop_goes_on() {
        let ends = Traits::DRIVER | Traits::ENDS;
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 1, 40, WORK);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        for _ in 0..2 {
            // Looked, and found one.
            run(&mut machine, 4, 8, Traits::DRIVER);
            run(&mut machine, 8, 70, ends);
            run(&mut machine, 1, 30, WORK);
            run(&mut machine, 3, 6, Traits::SPIN);
        }
        // Looked in vain.
        run(&mut machine, 4, 5, Traits::DRIVER);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(
            phases(&machine),
            [7, 43, 2 * 100 + 50, 6 + 2 * (8 + 6) + 5 + 6]
        );
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_what_an_interrupt_ends_is_work_as_ever() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        run(&mut machine, 5, 20, Traits::DEVICE_IRQ);
        run(&mut machine, 2, 30, Traits::DRIVER);
        run(&mut machine, 8, 70, Traits::DRIVER | Traits::ENDS);
        run(&mut machine, 6, 5, Traits::IRET);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 3, 125 + 50, 12]);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_completion_in_a_function_the_loop_called_is_not_early() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        run(&mut machine, 4, 2, WORK);
        interrupt(&mut machine);
        run(&mut machine, 4, 3, WORK);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 3, 55 + 50, 6 + 5 + 6]);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_completion_after_the_loop_gave_up_is_early() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        run(&mut machine, 1, 20, WORK);
        interrupt(&mut machine);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Early), 1);
    }

    #[test]
    fn test_work_between_two_waits_is_device() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        run(&mut machine, 1, 60, WORK);
        run(&mut machine, 3, 6, Traits::SPIN | Traits::CALLED);
        run(&mut machine, 1, 9, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 63, 9, 12]);
    }

    #[test]
    fn test_second_doorbell_starts_another_device_stretch() {
        let mut machine = started(Some(2));
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 4 + 4, 55 + 7 + 55, 0]);
        assert_eq!(machine.totals().awake.commands, 2);
    }

    #[test]
    fn test_timer_sets_the_operation_aside() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ);
        run(&mut machine, 6, 5, Traits::IRET);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Interrupt), 1);
        assert_eq!(machine.totals().awake.clean, 0);
        assert_eq!(phases(&machine), [0; PHASES]);
    }

    #[test]
    fn test_other_devices_interrupt_sets_the_operation_aside() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        run(&mut machine, 5, 20, Traits::DEVICE_IRQ);
        run(&mut machine, 6, 5, Traits::IRET);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Interrupt), 1);
    }

    #[test]
    fn test_completion_while_still_working_is_early() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Early), 1);
    }

    #[test]
    fn test_wrong_number_of_commands_sets_the_operation_aside() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        submit(&mut machine);
        machine.op_end();
        machine.op_begin();
        run(&mut machine, 1, 5, WORK);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Commands), 1);
        assert_eq!(machine.totals().no_io, 1);
    }

    #[test]
    fn test_no_command_is_clean_if_none_is_wanted() {
        let mut machine = started(Some(0));
        run(&mut machine, 1, 5, WORK);
        machine.op_end();
        machine.op_begin();
        submit(&mut machine);
        machine.op_end();
        assert_eq!(machine.totals().no_io, 0);
        assert_eq!(machine.totals().awake.clean, 1);
        assert_eq!(disturbed(&machine, Disturbance::Commands), 1);
    }

    #[test]
    fn test_more_switches_than_allowed_set_the_operation_aside() {
        let rules = Rules {
            switches: Some(2),
            ..Rules::default()
        };
        let mut machine = started_by(rules);
        for switches in [2, 3] {
            machine.op_begin();
            submit(&mut machine);
            for _ in 0..switches {
                run(&mut machine, 9, 5, Traits::SWITCH);
            }
            machine.op_end();
        }
        assert_eq!(disturbed(&machine, Disturbance::Task), 1);
        assert_eq!(machine.totals().slept.clean, 1);
        assert_eq!(machine.totals().awake.clean, 0);
        assert_eq!(machine.totals().slept.switches, 2);
    }

    fn interruptible() -> Rules {
        Rules {
            interruptible: true,
            ..Rules::default()
        }
    }

    #[test]
    fn test_interrupt_of_the_idle_cpu_is_taken_out_up_to_the_next_halt() {
        let mut machine = started_by(interruptible());
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ);
        run(&mut machine, 6, 5, Traits::IRET);
        run(&mut machine, 1, 70, WORK);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 4, 105, 0]);
        assert_eq!(machine.totals().awake.interrupted, 1);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_completion_after_an_interrupt_before_the_next_halt_is_not_early() {
        let mut machine = started_by(interruptible());
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ | Traits::IRET);
        run(&mut machine, 1, 20, WORK);
        interrupt(&mut machine);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 4, 105, 0]);
    }

    #[test]
    fn test_interrupt_of_a_spin_is_taken_out_and_the_spin_goes_on() {
        let mut machine = started_by(interruptible());
        submit(&mut machine);
        run(&mut machine, 3, 6, Traits::SPIN);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ | Traits::IRET);
        run(&mut machine, 3, 2, Traits::SPIN);
        run(&mut machine, 1, 50, WORK);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 3, 50, 8]);
    }

    #[test]
    fn test_completion_inside_a_foreign_interrupt_sets_the_operation_aside() {
        let mut machine = started_by(interruptible());
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ);
        interrupt(&mut machine);
        run(&mut machine, 6, 5, Traits::IRET);
        machine.op_end();
        assert_eq!(disturbed(&machine, Disturbance::Interrupt), 1);
    }

    #[test]
    fn test_exception_is_part_of_what_it_interrupts() {
        let mut machine = started(Some(1));
        run(&mut machine, 10, 30, Traits::EXCEPTION);
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        run(&mut machine, 6, 5, Traits::IRET);
        machine.op_end();
        assert_eq!(phases(&machine), [37, 4, 60, 0]);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    #[test]
    fn test_repeated_string_instruction_counts_once() {
        let mut machine = started(None);
        let (first, again) = (
            Block {
                symbol: 1,
                insns: 4,
                start: 0x10,
                repeat: 0x16,
                traits: WORK,
            },
            Block {
                symbol: 1,
                insns: 1,
                start: 0x16,
                repeat: 0x16,
                traits: WORK,
            },
        );
        machine.block(&first);
        for _ in 0..511 {
            machine.block(&again);
        }
        run(&mut machine, 1, 2, WORK);
        machine.block(&again);
        submit(&mut machine);
        machine.op_end();
        assert_eq!(phases(&machine)[Phase::Before as usize], 4 + 2 + 1 + 7);
    }

    #[test]
    fn test_outside_of_window_or_operation_nothing_counts() {
        let mut machine = Machine::new(Rules::default());
        machine.op_begin();
        submit(&mut machine);
        machine.op_end();
        machine.window_begin();
        submit(&mut machine);
        machine.op_end();
        machine.op_begin();
        submit(&mut machine);
        machine.window_end();
        machine.op_end();
        assert_eq!(machine.totals().awake.clean, 0);
        assert_eq!(phases(&machine), [0; PHASES]);
    }

    #[test]
    fn test_next_operation_starts_from_nothing() {
        let mut machine = started(Some(1));
        submit(&mut machine);
        run(&mut machine, 8, 500, Traits::FOREIGN_IRQ);
        machine.op_end();
        machine.op_begin();
        submit(&mut machine);
        run(&mut machine, 7, 1, Traits::HALT);
        interrupt(&mut machine);
        machine.op_end();
        assert_eq!(phases(&machine), [7, 4, 55, 0]);
        assert_eq!(machine.totals().awake.clean, 1);
    }

    proptest::proptest! {
        #[test]
        fn test_any_stream_never_panics_and_conserves(
            events in proptest::collection::vec((0u8..6, 0u32..12, 0u32..40, 0u16..1024), 0..200)
        ) {
            let all = [
                Traits::SPIN, Traits::CALLED, Traits::DRIVER, Traits::DEVICE_IRQ,
                Traits::FOREIGN_IRQ, Traits::EXCEPTION, Traits::SWITCH,
                Traits::HALT, Traits::IRET,
            ];
            let mut machine = Machine::new(Rules::default());
            machine.window_begin();
            for (event, symbol, insns, bits) in events {
                let mut traits = WORK;
                for (index, one) in all.into_iter().enumerate() {
                    if bits >> index & 1 == 1 {
                        traits |= one;
                    }
                }
                let block = Block { symbol, insns, start: 16, repeat: u64::from(bits & 16), traits };
                match event {
                    0 => machine.op_begin(),
                    1 => machine.op_end(),
                    2 => machine.doorbell(&block, insns.saturating_sub(1)),
                    _ => machine.block(&block),
                }
            }
            machine.op_end();
            let work: u64 = phases(&machine)[..3].iter().sum();
            let per_op: u64 = machine.totals().awake.per_op.iter().map(|&n| u64::from(n)).sum();
            proptest::prop_assert_eq!(work, per_op);
        }
    }
}
