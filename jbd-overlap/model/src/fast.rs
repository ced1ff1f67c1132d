// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Rules 5 and 6: fast commits of two callers who know nothing of each other,
//! with the two queues, the flag and the counts of `fs/ext4/fast_commit.c`.
//!
//! The rest of the model has one queue and takes sharing as given. Here every
//! order is tried in which two callers change and sync a file each: one beside
//! its data, the other likewise or in the ordinary order. One command may fail.
//! At every moment the power is cut, and the worst subset of what is in flight
//! or in the cache survives. That a file has data in the cache is taken as known;
//! [`crate::cache`] is about that.

use rustc_hash::FxHashSet;

/// A mistake to make on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The fast commit does not wait for data of new blocks.
    TailBeforeData,
    /// It waits before its picture only: what handles added until then, it has,
    /// but not their data.
    NoSecondLook,
    /// It never flushes.
    FlushDropped,
    /// It does not care for older blocks in the cache.
    OlderBlocksIgnored,
    /// Its flush counts for the caller's data, which it has not waited for.
    FlushBeforeData,
    /// Blocks before the tail go without FUA.
    BlocksWithoutFua,
    /// The caller does not flush what it wrote without FUA.
    FuaDespiteDirty,
    /// A fast commit that was running when the call began is relied on.
    SharedBlindly,
    /// One without a flush is relied on by callers in the ordinary order.
    CountsForOthers,
    /// One with blocks in the cache is relied on by early callers.
    SharedUnflushed,
    /// What was staged when it begins is left there.
    StagedLeft,
    /// It runs although an unwritten extent is in flight.
    UnwrittenIgnored,
    /// An error of the data does not reach the caller.
    DataErrorSwallowed,
    /// An error of a block neither.
    CommitErrorSwallowed,
}

/// What a caller writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// One of its own: an overwrite, or an append within the block.
    Old,
    /// A new one, mapped as written when it is submitted (`dioread_lock`).
    New,
    /// A new one, converted when the data is complete.
    Unwritten,
}

/// What varies.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The drive has a volatile cache.
    pub cache: bool,
    /// By caller.
    pub blocks: [Block; CALLERS],
    /// The second caller keeps the ordinary order.
    pub ordinary: bool,
    /// The first caller's file has other data in the cache.
    pub dirty: bool,
}

impl Setup {
    /// Every one.
    pub fn all() -> impl Iterator<Item = Self> {
        let kinds = [Block::Old, Block::New, Block::Unwritten];
        (0..72).map(move |n| Self {
            blocks: [kinds[n % 3], kinds[n / 3 % 3]],
            cache: n / 9 % 2 == 1,
            ordinary: n / 18 % 2 == 1,
            dirty: n / 36 == 1,
        })
    }

    fn early(&self, caller: usize) -> bool {
        caller == 0 || !self.ordinary
    }
}

const CALLERS: usize = 2;

/// Blocks of a fast commit; the last one holds the tail.
const PARTS: usize = 2;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Io {
    Idle,
    InFlight,
    /// In the cache.
    Complete,
    Durable,
    Failed,
}

impl Io {
    fn has_ended(self) -> bool {
        self >= Self::Complete
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Queue {
    Nowhere,
    Main,
    Staging,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct File {
    queue: Queue,
    /// What is to be synced has changed.
    changed: bool,
    /// A fast commit that runs has its picture, and it has changed since.
    committing: bool,
    again: bool,
    /// A handle is open or, for a conversion, reserved.
    handle: bool,
    /// Fast commits wait for its data.
    range: bool,
    data: Io,
    fua: bool,
    /// The extent is converted, or needs no conversion.
    converted: bool,
    /// Other data of it is in the cache.
    dirty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Fast {
    /// Who makes it.
    caller: usize,
    /// By caller.
    picture: [bool; CALLERS],
    parts: [Io; PARTS],
    fua: [bool; PARTS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Next {
    Open,
    Change,
    Close,
    Submit,
    Choose,
    Begin,
    Take,
    Woken,
    Splice,
    First,
    Picture,
    Second,
    Decide,
    Blocks,
    Flush,
    AwaitFlush,
    Tail,
    Wait,
    End,
    CleanUp,
    Clear,
    WaitData,
    OwnFlush,
    AwaitOwnFlush,
    Return,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Caller {
    next: Next,
    /// The count of fast commits that it must see passed.
    subtid: u8,
    /// Flushes of fast commits that it has seen.
    flushes: u8,
    /// Its fast commit.
    fast: usize,
    /// That one flushes.
    flush: bool,
    /// The cache was flushed after its data was complete, it thinks.
    flushed: bool,
    /// It relies on another's fast commit.
    shares: bool,
    /// What its flush covers: data, then blocks of both fast commits.
    covered: [bool; 2 * CALLERS + CALLERS * PARTS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    files: [File; CALLERS],
    callers: [Caller; CALLERS],
    log: [Option<Fast>; CALLERS],
    ongoing: bool,
    subtid: u8,
    subtid_all: u8,
    flushes: u8,
    /// Blocks of a fast commit may be in the cache.
    unflushed: bool,
    /// Committed in full.
    full: [bool; CALLERS],
    may_fail: bool,
}

/// A promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Synced data is lost (P1).
    Data,
    /// Synced metadata is lost (P1).
    Metadata,
    /// A block shows what its last owner left (P3).
    Stale,
    /// An error has not reached the caller (P5).
    Error,
}

struct Model {
    setup: Setup,
    mistake: Option<Mistake>,
}

impl Model {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn first(&self) -> State {
        let file = |number: usize| File {
            // Its inode was changed before it gets its block.
            queue: match self.setup.blocks[number] {
                Block::New => Queue::Main,
                Block::Old | Block::Unwritten => Queue::Nowhere,
            },
            changed: false,
            committing: false,
            again: false,
            handle: false,
            range: false,
            data: Io::Idle,
            fua: false,
            converted: self.setup.blocks[number] != Block::Unwritten,
            dirty: number == 0 && self.setup.dirty && self.setup.cache,
        };
        let caller = |number: usize| Caller {
            next: match self.setup.blocks[number] {
                Block::Unwritten => Next::Submit,
                Block::Old | Block::New => Next::Open,
            },
            subtid: 0,
            flushes: 0,
            fast: 0,
            flush: false,
            flushed: false,
            shares: false,
            covered: Default::default(),
        };
        State {
            files: [file(0), file(1)],
            callers: [caller(0), caller(1)],
            log: [None; CALLERS],
            ongoing: false,
            subtid: 0,
            subtid_all: 0,
            flushes: 0,
            unflushed: false,
            full: [false; CALLERS],
            may_fail: true,
        }
    }

    /// What a flush that starts now covers.
    fn covers(state: &State) -> [bool; 2 * CALLERS + CALLERS * PARTS] {
        let mut covered = [false; 2 * CALLERS + CALLERS * PARTS];
        for (number, file) in state.files.iter().enumerate() {
            covered[number] = file.data == Io::Complete;
            covered[CALLERS + number] = file.dirty;
        }
        for (fast, part) in parts() {
            covered[2 * CALLERS + fast * PARTS + part] =
                state.log[fast].is_some_and(|fast| fast.parts[part] == Io::Complete);
        }
        covered
    }

    fn flushed(state: &mut State, covered: &[bool]) {
        for (number, file) in state.files.iter_mut().enumerate() {
            if covered[number] {
                file.data = Io::Durable;
            }
            file.dirty &= !covered[CALLERS + number];
        }
        for (fast, part) in parts() {
            if covered[2 * CALLERS + fast * PARTS + part]
                && let Some(fast) = &mut state.log[fast]
            {
                fast.parts[part] = Io::Durable;
            }
        }
    }

    /// The file is put on a queue, in a handle.
    fn queue(state: &mut State, number: usize) {
        let file = &mut state.files[number];
        file.changed = true;
        file.again = file.committing;
        if file.queue == Queue::Nowhere {
            file.queue = match state.ongoing {
                true => Queue::Staging,
                false => Queue::Main,
            };
        }
    }

    fn in_cache(file: &File) -> bool {
        file.data == Io::Complete || file.dirty
    }

    /// A command completes, or fails; or a conversion follows it.
    fn device(&self, mut state: State, command: usize, fails: bool) -> Option<State> {
        if fails && !state.may_fail {
            return None;
        }
        state.may_fail &= !fails;
        let done = |fua: bool| match (fails, fua || !self.setup.cache) {
            (true, _) => Io::Failed,
            (_, true) => Io::Durable,
            (_, false) => Io::Complete,
        };
        if command < CALLERS {
            let file = &mut state.files[command];
            if file.data == Io::InFlight {
                file.data = done(file.fua);
            } else if file.data.has_ended() && !file.converted && !fails {
                file.converted = true;
                file.handle = false;
                if file.data != Io::Failed {
                    Self::queue(&mut state, command);
                }
            } else {
                return None;
            }
        } else {
            let (fast, part) = parts().nth(command - CALLERS)?;
            let fast = state.log[fast].as_mut()?;
            if fast.parts[part] != Io::InFlight {
                return None;
            }
            fast.parts[part] = done(fast.fua[part]);
        }
        Some(state)
    }

    fn ranges_complete(state: &State, of: impl Fn(usize) -> bool) -> bool {
        (0..CALLERS)
            .filter(|&number| of(number) && state.files[number].range)
            .all(|number| state.files[number].data.has_ended())
    }

    /// The next step of a caller.
    fn call(&self, mut state: State, number: usize) -> Result<Option<State>, Broken> {
        let early = self.setup.early(number);
        let block = self.setup.blocks[number];
        let mut caller = state.callers[number];
        let file = state.files[number];
        let complete = file.data.has_ended() && file.converted;
        caller.next = match caller.next {
            Next::Open => {
                state.files[number].handle = true;
                Next::Change
            }
            Next::Change => {
                Self::queue(&mut state, number);
                if block == Block::New {
                    state.files[number].range = true;
                    state.files[number].data = Io::InFlight;
                }
                Next::Close
            }
            Next::Close => {
                state.files[number].handle = false;
                Next::Submit
            }
            Next::Submit => {
                if block != Block::New {
                    state.files[number].data = Io::InFlight;
                }
                state.files[number].handle = block == Block::Unwritten;
                state.files[number].fua = early
                    && block == Block::Old
                    && (!file.dirty || self.is(Mistake::FuaDespiteDirty));
                Next::Choose
            }
            Next::Choose => {
                let beside = early && (file.converted || self.is(Mistake::UnwrittenIgnored));
                if !beside && !complete {
                    return Ok(None);
                }
                Next::Begin
            }
            Next::Begin => {
                let strict = early && !self.is(Mistake::SharedBlindly);
                caller.subtid = match early {
                    true => state.subtid_all,
                    false => state.subtid,
                } + u8::from(strict && state.ongoing);
                caller.flushes = state.flushes;
                Next::Take
            }
            Next::Take if state.ongoing => Next::Woken,
            Next::Take => {
                state.ongoing = true;
                Next::Splice
            }
            Next::Woken if state.ongoing => return Ok(None),
            Next::Woken => {
                let ended = match early {
                    true => state.subtid_all,
                    false => state.subtid,
                };
                caller.shares = ended > caller.subtid || state.full[number];
                match caller.shares {
                    true => Next::WaitData,
                    false => Next::Take,
                }
            }
            Next::Splice => {
                for file in &mut state.files {
                    if file.queue == Queue::Staging && !self.is(Mistake::StagedLeft) {
                        file.queue = Queue::Main;
                    }
                }
                Next::First
            }
            Next::First => {
                let main = |number: usize| state.files[number].queue == Queue::Main;
                if !self.is(Mistake::TailBeforeData) && !Self::ranges_complete(&state, main) {
                    return Ok(None);
                }
                Next::Picture
            }
            Next::Picture => {
                if state.files.iter().any(|file| file.handle) {
                    return Ok(None);
                }
                caller.fast = usize::from(state.log[0].is_some());
                state.log[caller.fast] = Some(Fast {
                    caller: number,
                    picture: state
                        .files
                        .map(|file| file.queue == Queue::Main && file.changed),
                    parts: [Io::Idle; PARTS],
                    fua: [early && !self.is(Mistake::BlocksWithoutFua), true],
                });
                for file in &mut state.files {
                    file.committing = file.queue == Queue::Main;
                }
                Next::Second
            }
            Next::Second => {
                let fast = state.log[caller.fast].expect("its picture");
                let skips = [Mistake::TailBeforeData, Mistake::NoSecondLook].map(|m| self.is(m));
                if early
                    && skips == [false; 2]
                    && !Self::ranges_complete(&state, |number| fast.picture[number])
                {
                    return Ok(None);
                }
                Next::Decide
            }
            Next::Decide => {
                let fast = state.log[caller.fast].expect("its picture");
                let older = state.unflushed && !self.is(Mistake::OlderBlocksIgnored);
                let shows = (0..CALLERS).any(|number| {
                    fast.picture[number]
                        && self.setup.blocks[number] != Block::Old
                        && Self::in_cache(&state.files[number])
                });
                let needs = (older || shows) && !self.is(Mistake::FlushDropped);
                caller.flush = self.setup.cache && (!early || needs);
                if caller.flush && early {
                    if !complete && !self.is(Mistake::FlushBeforeData) {
                        return Ok(None);
                    }
                    caller.flushed = true;
                }
                Next::Blocks
            }
            Next::Blocks => {
                let fast = state.log[caller.fast].as_mut().expect("its picture");
                fast.parts[0] = Io::InFlight;
                state.unflushed |= self.setup.cache && !early;
                match caller.flush {
                    true => Next::Flush,
                    false => Next::Tail,
                }
            }
            Next::Flush | Next::OwnFlush => {
                caller.covered = Self::covers(&state);
                match caller.next {
                    Next::Flush => Next::AwaitFlush,
                    _ => Next::AwaitOwnFlush,
                }
            }
            Next::AwaitFlush | Next::AwaitOwnFlush => {
                Self::flushed(&mut state, &caller.covered);
                caller.covered = Default::default();
                match caller.next {
                    Next::AwaitFlush => Next::Tail,
                    _ => Next::Return,
                }
            }
            Next::Tail => {
                let fast = state.log[caller.fast].as_mut().expect("its picture");
                fast.parts[1] = Io::InFlight;
                Next::Wait
            }
            Next::Wait => {
                let fast = state.log[caller.fast].expect("its picture");
                if !fast.parts.iter().all(|part| part.has_ended()) {
                    return Ok(None);
                }
                let failed = fast.parts.contains(&Io::Failed);
                if !failed || self.is(Mistake::CommitErrorSwallowed) {
                    Next::End
                } else {
                    // A full commit, which waits for data of new blocks and
                    // flushes.
                    if !Self::ranges_complete(&state, |_| true) {
                        return Ok(None);
                    }
                    for (number, file) in state.files.iter().enumerate() {
                        let mut log = state.log.iter().flatten();
                        let queued = file.queue != Queue::Nowhere;
                        let logged = log.any(|fast| fast.picture[number]);
                        state.full[number] |= file.changed && (queued || logged);
                    }
                    let covered = Self::covers(&state);
                    Self::flushed(&mut state, &covered);
                    caller.flushed = false;
                    // The next fast commit is the first of its transaction.
                    state.log = [None; CALLERS];
                    state.unflushed = false;
                    Next::CleanUp
                }
            }
            Next::End => {
                let counts = caller.flush || !self.setup.cache;
                state.flushes += u8::from(counts);
                if counts || self.is(Mistake::CountsForOthers) {
                    state.subtid += 1;
                }
                state.unflushed &= !(early && caller.flush);
                if !state.unflushed || self.is(Mistake::SharedUnflushed) {
                    state.subtid_all += 1;
                }
                Next::CleanUp
            }
            Next::CleanUp => {
                for file in &mut state.files {
                    file.queue = match (file.queue, file.again) {
                        (Queue::Staging, _) | (_, true) => Queue::Main,
                        (Queue::Main | Queue::Nowhere, false) => Queue::Nowhere,
                    };
                    file.again = false;
                    file.committing = false;
                }
                Next::Clear
            }
            Next::Clear => {
                state.ongoing = false;
                Next::WaitData
            }
            Next::WaitData => {
                if !complete {
                    return Ok(None);
                }
                let flush = early && self.setup.cache && !caller.flushed && Self::in_cache(&file);
                match flush && !self.is(Mistake::FuaDespiteDirty) {
                    true => Next::OwnFlush,
                    false => Next::Return,
                }
            }
            Next::Return => {
                state.callers[number].next = Next::Gone;
                if file.data == Io::Failed {
                    return match self.is(Mistake::DataErrorSwallowed) {
                        true => Err(Broken::Error),
                        false => Ok(Some(state)),
                    };
                }
                self.returned(&state, number, &caller)?;
                return Ok(Some(state));
            }
            Next::Gone => return Ok(None),
        };
        state.callers[number] = caller;
        self.shown(&state)?;
        Ok(Some(state))
    }

    /// What a caller that returns was promised.
    fn returned(&self, state: &State, number: usize, caller: &Caller) -> Result<(), Broken> {
        let file = &state.files[number];
        if !self.setup.early(number) {
            // The ordinary order has defects of its own: just that whom it relies
            // on has flushed.
            return match caller.shares && !state.full[number] && state.flushes == caller.flushes {
                true => Err(Broken::Data),
                false => Ok(()),
            };
        }
        if file.data != Io::Durable || file.dirty {
            return Err(Broken::Data);
        }
        let mut whole = true;
        let mut found = state.full[number];
        for fast in state.log.iter().flatten() {
            whole &= fast.parts == [Io::Durable; PARTS];
            found |= whole && fast.picture[number];
        }
        match found {
            true => Ok(()),
            false => Err(Broken::Metadata),
        }
    }

    /// A fast commit that may survive shows no block without its data.
    fn shown(&self, state: &State) -> Result<(), Broken> {
        let mut whole = true;
        for fast in state.log.iter().flatten() {
            let survives = |part: &Io| matches!(part, Io::InFlight | Io::Complete | Io::Durable);
            whole &= fast.parts.iter().all(survives);
            for (number, file) in state.files.iter().enumerate() {
                let stale = self.setup.blocks[number] != Block::Old
                    && fast.picture[number]
                    && matches!(file.data, Io::InFlight | Io::Complete);
                if whole && stale && self.setup.early(fast.caller) {
                    return Err(Broken::Stale);
                }
            }
        }
        Ok(())
    }
}

fn parts() -> impl Iterator<Item = (usize, usize)> {
    (0..CALLERS).flat_map(|fast| (0..PARTS).map(move |part| (fast, part)))
}

/// Tries every order; the number of states.
///
/// # Errors
///
/// The promise that is broken, and the states up to there.
pub fn explore(setup: Setup, mistake: Option<Mistake>) -> Result<usize, (Broken, Vec<String>)> {
    let model = Model { setup, mistake };
    let first = model.first();
    let mut seen = FxHashSet::from_iter([first]);
    let mut way = vec![(first, STEPS)];
    while let Some((state, left)) = way.last_mut() {
        let state = *state;
        if *left == 0 {
            way.pop();
            continue;
        }
        *left -= 1;
        let step = *left;
        let next = match step.checked_sub(CALLERS) {
            None => model.call(state, step),
            Some(command) => Ok(model.device(state, command / 2, command % 2 == 1)),
        };
        match next {
            Ok(Some(next)) if seen.insert(next) => way.push((next, STEPS)),
            Ok(_) => {}
            Err(broken) => {
                let states = way.iter().map(|(state, _)| format!("{state:?}"));
                return Err((broken, states.collect()));
            }
        }
    }
    Ok(seen.len())
}

/// The callers', and completing or failing of each command.
const STEPS: usize = CALLERS + 2 * (CALLERS + CALLERS * PARTS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_explore_rules_keep_the_promises() {
        let mut states = 0;
        for setup in Setup::all() {
            match explore(setup, None) {
                Ok(more) => states += more,
                Err((broken, way)) => panic!("{setup:?}: {broken:?}\n{}", way.join("\n")),
            }
        }
        println!("{states} states");
        assert!(states > 100_000, "{states}");
    }

    #[test]
    fn test_explore_mistakes_are_caught() {
        for (mistake, broken) in [
            (Mistake::TailBeforeData, Broken::Stale),
            (Mistake::NoSecondLook, Broken::Stale),
            (Mistake::FlushDropped, Broken::Stale),
            (Mistake::OlderBlocksIgnored, Broken::Metadata),
            (Mistake::FlushBeforeData, Broken::Data),
            (Mistake::BlocksWithoutFua, Broken::Metadata),
            (Mistake::FuaDespiteDirty, Broken::Data),
            (Mistake::SharedBlindly, Broken::Metadata),
            (Mistake::CountsForOthers, Broken::Data),
            (Mistake::SharedUnflushed, Broken::Metadata),
            (Mistake::StagedLeft, Broken::Metadata),
            (Mistake::UnwrittenIgnored, Broken::Metadata),
            (Mistake::DataErrorSwallowed, Broken::Error),
            (Mistake::CommitErrorSwallowed, Broken::Metadata),
        ] {
            let found: Vec<Broken> = Setup::all()
                .filter_map(|setup| explore(setup, Some(mistake)).err())
                .map(|(broken, _)| broken)
                .collect();
            assert!(found.contains(&broken), "{mistake:?}: {found:?}");
        }
    }
}
