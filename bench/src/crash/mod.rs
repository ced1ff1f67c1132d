// SPDX-License-Identifier: MIT
//! `aios crash`: records workloads in a guest, and checks on the host what a
//! power cut at any moment could have left of them.

mod explore;
mod mode;
mod mutants;
mod record;
mod report;

use crate::context::Context;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::files;
use crate::guest::{
    self,
    interrupt, //
};
use crate::kernel::{
    self,
    Variant, //
};
use crate::obd_tool;
use crate::setup::{
    self,
    Need, //
};
use crate::stack::Stack;
use aios_crash::check::{
    Checker,
    Kind,
    Recording,
    Violation, //
};
use aios_crash::mutant::Mutant;
use aios_crash::recover;
use aios_crash::shrink::{
    shrink,
    story, //
};
use aios_crash::states::{
    Hashes,
    Seen,
    State,
    enumerate, //
};
use explore::{
    Failure,
    Pool,
    catch, //
};
use fastrand::Rng;
use indicatif::ProgressBar;
use mode::{
    Mode,
    SIZE, //
};
use record::{
    Obd,
    Recorder,
    ours, //
};
use report::{
    Configuration,
    MutantReport,
    Report, //
};
use std::fs;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;
use std::thread;
use std::time::{
    Duration,
    Instant, //
};

/// States of one recording, at most: many workloads tell more than many states
/// of one.
const PER_RECORDING: u32 = 160;
/// The same of a short run, which is to have all kinds of plans, too.
const PER_SHORT: u32 = 40;
/// One of so many at most where the guest's kernel has to mount each, which takes longer,
/// and other modes have enough.
const MOUNTED: u32 = 4;
/// States of a mutant that are tried for each recording, and how many if each is mounted.
const MUTANT_STATES: usize = 120;
const MOUNTED_MUTANT_STATES: usize = 20;
/// Recordings without a state that is new before a run gives up.
const VAIN: u32 = 20;
/// Recordings of each run that mutants are made of.
const MUTATED: usize = 8;
/// Violations that are shrunk and told.
const STORIES: usize = 3;

/// Options of `aios crash`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Explore so many states, all stacks and modes together.
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    states: u64,
    /// Record for so many minutes at most.
    #[arg(long, value_name = "N", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Seed of the workloads and of the choice of states.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only this stack; may be repeated [default: native and async; off and async with rw-disk].
    #[arg(long, value_enum)]
    stack: Vec<Stack>,
    /// Only this file system; may be repeated [default: all but fast-commit,
    /// external-strict and rw-disk].
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// Let the async stack write around the block layer what fsync waits for.
    #[arg(long)]
    lbio_writes: bool,
    /// Boot this bzImage instead of building one.
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
    /// Build a kernel with known defects, and say which of them are found.
    #[arg(long, conflicts_with_all = ["states", "minutes", "stack", "mode", "lbio_writes", "kernel",
        "per_recording"])]
    mutants: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Where logs, crash.json and failing drives are kept [default: crash/ in
    /// the cache].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// States of one recording, at most; a quarter of that or less where a kernel has to mount
    /// each and there are other modes.
    #[arg(long, value_name = "N", default_value_t = PER_RECORDING,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    per_recording: u32,
}

impl Args {
    /// The short form for `aios test`: one stack, and the modes without fast
    /// commits that promise most.
    pub(crate) fn short(states: u64, stack: Stack, out: PathBuf) -> Self {
        Self {
            states,
            minutes: 15,
            seed: 1,
            stack: vec![stack],
            mode: vec![Mode::Ordered, Mode::DioreadLock, Mode::ExternalDioreadLock],
            lbio_writes: false,
            kernel: None,
            mutants: false,
            json: false,
            out: Some(out),
            per_recording: PER_SHORT,
        }
    }

    /// A read-write disk on one stack.
    pub(crate) fn rw_disk(states: u64, out: PathBuf) -> Self {
        let mode = vec![Mode::RwDisk];
        Self {
            mode,
            ..Self::short(states, Stack::Async, out)
        }
    }

    /// A database on one stack.
    pub(crate) fn rocksdb(states: u64, out: PathBuf) -> Self {
        let mode = vec![Mode::Rocksdb];
        Self {
            mode,
            ..Self::short(states, Stack::Async, out)
        }
    }

    /// The kernel with known defects.
    pub(crate) fn mutants(out: PathBuf) -> Self {
        let mutants = true;
        Self {
            mutants,
            ..Self::short(1, Stack::Async, out)
        }
    }

    /// The same, with writes around the block layer: no external journals, where there are
    /// none, but fast commits.
    pub(crate) fn with_lbio_writes(self) -> Self {
        let mode = vec![Mode::Ordered, Mode::DioreadLock, Mode::FastCommitPlain];
        let lbio_writes = true;
        Self {
            mode,
            lbio_writes,
            ..self
        }
    }

    fn stacks(&self) -> Vec<Stack> {
        match self.stack.is_empty() {
            // Other kernels have no such disks.
            true if self.mode.contains(&Mode::RwDisk) => vec![Stack::Off, Stack::Async],
            true => vec![Stack::Native, Stack::Async],
            false => self.stack.clone(),
        }
    }

    /// Whether the guest's kernel judges all, mutants too.
    fn is_mounted(&self) -> bool {
        self.modes().iter().all(|mode| mode.is_mounted())
    }

    fn modes(&self) -> Vec<Mode> {
        match self.mode.is_empty() {
            true => Mode::ALL.to_vec(),
            false => self.mode.clone(),
        }
    }
}

/// Runs `aios crash`.
pub(crate) fn run(ctx: &Context, args: &Args) -> Result<u8> {
    let Some(report) = explore(ctx, args)? else {
        return Ok(0);
    };
    if args.json {
        println!("{}", json(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(u8::from(!report.is_good()))
}

/// Runs it for `aios test`: fails unless so many states were explored, nothing
/// was wrong, and every mutant was caught. What was done, in words.
pub(crate) fn check(ctx: &Context, args: &Args) -> Result<()> {
    let report = explore(ctx, args)?.ok_or_else(|| Error::new("a dry run explores nothing"))?;
    if args.mutants {
        return mutants::verdict(&report);
    }
    if report.is_good() && report.states >= args.states {
        return Ok(());
    }
    let mut what = format!(
        "{} of {} states, {} violations, {} of {} mutants caught",
        report.states,
        args.states,
        report.violations,
        report.mutants.iter().filter(|mutant| mutant.caught).count(),
        report.mutants.len()
    );
    if let Some(story) = report.stories.first() {
        what.push_str(": ");
        what.push_str(story);
    }
    Err(Error::new(what))
}

fn json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report).map_err(|error| Error::new(error.to_string()))
}

/// The whole of it; nothing with `--dry-run`.
fn explore(ctx: &Context, args: &Args) -> Result<Option<Report>> {
    if let Some(kernel) = &args.kernel {
        guest::check_kernel(kernel)?;
    }
    setup::ensure(ctx, &[Need::Boot, Need::Workloads])?;
    let out = match &args.out {
        Some(out) => std::path::absolute(out).at("resolve", out)?,
        None => ctx.cache().join("crash"),
    };
    let begin = Instant::now();
    if !ctx.dry_run {
        recover::available().map_err(ours)?;
        fs::create_dir_all(&out).at("create the folder", &out)?;
    }
    if args.mutants {
        let Some(mut report) = mutants::explore(ctx, args.seed, &out)? else {
            return Ok(None);
        };
        report.seconds = begin.elapsed().as_secs_f64();
        files::write_whole(&out.join("crash.json"), &json(&report)?)?;
        return Ok(Some(report));
    }
    let bar = match ctx.dry_run {
        true => ProgressBar::hidden(),
        false => ctx.ui.bar("exploring crash states", args.states),
    };
    let mut run = Run {
        ctx,
        args,
        out,
        left: Duration::from_secs(60 * args.minutes),
        seen: Seen::default(),
        report: Report {
            seed: args.seed,
            ..Report::default()
        },
        kept: Vec::new(),
    };
    let failures = thread::scope(|scope| {
        let pool = Pool::new(scope, SIZE, &bar);
        let done = run.all(&pool);
        let failures = pool.finish();
        // What went wrong in a thread is the cause, and the rest the effect.
        let failures = failures?;
        done.map(|mounted| (failures, mounted))
    });
    let (mut failures, mut mounted) = failures?;
    if ctx.dry_run {
        return Ok(None);
    }
    failures.append(&mut mounted);
    bar.finish_and_clear();
    run.mutants()?;
    run.tell(failures)?;
    run.report.seconds = begin.elapsed().as_secs_f64();
    files::write_whole(&run.out.join("crash.json"), &json(&run.report)?)?;
    Ok(Some(run.report))
}

/// A run under way.
struct Run<'a> {
    ctx: &'a Context,
    args: &'a Args,
    out: PathBuf,
    /// What is left of the time for recording; building and booting are free.
    left: Duration,
    seen: Seen,
    report: Report,
    /// What mutants are made of.
    kept: Vec<Arc<Recording>>,
}

/// A state for the guest's kernel to mount.
struct Sample {
    mode: Mode,
    recording: Arc<Recording>,
    state: State,
    configuration: usize,
}

impl Run<'_> {
    /// Every stack after the other; the failures of mounting.
    fn all(&mut self, pool: &Pool<'_>) -> Result<Vec<Failure>> {
        let stacks = self.args.stacks();
        let mut samples = Vec::new();
        let mut failures = Vec::new();
        for (done, &stack) in stacks.iter().enumerate() {
            let modes = self.args.modes();
            let (kernel, module) = match &self.args.kernel {
                Some(kernel) => (kernel.clone(), None),
                None => {
                    let built = kernel::build(self.ctx, stack.flavour(), Variant::Bench, None)?;
                    let module = built.obd_module();
                    (built.bzimage, Some(module))
                }
            };
            let obd = match modes.contains(&Mode::RwDisk) {
                true => Some(Obd {
                    tool: obd_tool::build(self.ctx, None)?,
                    module: module
                        .filter(|_| stack != Stack::Native)
                        .ok_or_else(|| Error::new("that kernel has no read-write disks"))?,
                }),
                false => None,
            };
            let sockets = tempfile::tempdir().at("create a folder in", std::env::temp_dir())?;
            let lbio_writes = self.args.lbio_writes && stack == Stack::Async;
            let recorder = Recorder::boot(
                self.ctx,
                kernel,
                (stack, lbio_writes),
                &modes,
                (&self.out, sockets.path()),
                obd,
            )?;
            let Some(mut recorder) = recorder else {
                continue;
            };
            // Each stack gets its share of the states, and of the time.
            let share = |whole: u64| whole * (done as u64 + 1) / stacks.len() as u64;
            let target = share(self.args.states);
            let begin = Instant::now();
            let until = begin + self.left / (stacks.len() - done) as u32;
            self.record(pool, &mut recorder, stack, target, until, &mut samples)?;
            self.left = self.left.saturating_sub(begin.elapsed());
            // Those of the stacks before, too: each kernel recovers the others'.
            failures.append(&mut self.mount(&mut recorder, &samples)?);
            if self.args.is_mounted() && done + 1 == stacks.len() {
                self.mounted_mutants(&mut recorder)?;
            }
            recorder.shutdown()?;
        }
        Ok(failures)
    }

    /// Records until there are `target` states in all.
    fn record(
        &mut self,
        pool: &Pool<'_>,
        recorder: &mut Recorder,
        stack: Stack,
        target: u64,
        until: Instant,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let modes = self.args.modes();
        let first = self.report.configurations.len();
        for &mode in &modes {
            self.report.configurations.push(Configuration {
                stack,
                mode,
                recordings: 0,
                fua_writes: 0,
                writes: 0,
                flushes: 0,
                states: 0,
                violations: 0,
            });
        }
        let mut vain = 0;
        for number in 0.. {
            interrupt::check()?;
            let missing = target.saturating_sub(self.seen.images() as u64);
            if missing == 0 || Instant::now() >= until {
                break;
            }
            if vain == VAIN {
                return Err(Error::new("the recordings have no new states any more"));
            }
            // Every plan in every mode, one mode after the other.
            let which = (number % modes.len() as u64) as usize;
            let mode = modes[which];
            let plan = mode.plan(self.args.seed, number / modes.len() as u64);
            let recording = Arc::new(recorder.record(mode, &plan)?);
            let mut rng = Rng::with_seed(self.args.seed ^ number);
            let most = match mode.is_mounted() {
                true if modes.len() > 1 => {
                    // Modes like that have together what two of them would have.
                    let like_it = modes.iter().filter(|mode| mode.is_mounted()).count() as u32;
                    (self.args.per_recording / MOUNTED.max(2 * like_it)).max(1)
                }
                _ => self.args.per_recording,
            };
            let limit = usize::try_from(missing)
                .unwrap_or(usize::MAX)
                .min(most as usize);
            let before = self.seen.images();
            let states = enumerate(
                &recording.history,
                Hashes::new(&recording.initial),
                &mut self.seen,
                &mut rng,
                limit,
            );
            let new = self.seen.images() - before;
            vain = if new == 0 { vain + 1 } else { 0 };
            let part = &mut self.report.configurations[first + which];
            part.recordings += 1;
            part.states += new as u64;
            part.writes += recording.history.writes.len() as u64;
            part.flushes += recording.history.flushes.len() as u64;
            let fua = recording.history.writes.iter().filter(|write| write.fua);
            part.fua_writes += fua.count() as u64;
            self.report.recordings += 1;
            let mounted = match mode.is_mounted() {
                true => states.as_slice(),
                false => rng.choice(&states).map_or(&[][..], slice::from_ref),
            };
            samples.extend(mounted.iter().map(|state| Sample {
                mode,
                recording: Arc::clone(&recording),
                state: state.clone(),
                configuration: first + which,
            }));
            // Without a cache there is less to break.
            let is_best = mode.is_cached() || !modes.iter().any(|mode| mode.is_cached());
            if self.kept.len() < MUTATED && is_best && mode.is_mounted() == self.args.is_mounted() {
                self.kept.push(Arc::clone(&recording));
            }
            if !mode.is_mounted() {
                pool.put(&recording, &states, first + which)?;
            }
        }
        self.report.states = self.seen.images() as u64;
        Ok(())
    }

    /// Lets the guest's kernel recover the samples.
    fn mount(&mut self, recorder: &mut Recorder, samples: &[Sample]) -> Result<Vec<Failure>> {
        let mut checker = Checker::new(SIZE).map_err(ours)?;
        let mut failures = Vec::new();
        // Enough to have each mode several times, and not all of a long run's.
        let (all, some): (Vec<_>, Vec<_>) =
            samples.iter().partition(|sample| sample.mode.is_mounted());
        let step = some.len().div_ceil(40).max(1);
        for sample in all.into_iter().chain(some.into_iter().step_by(step)) {
            interrupt::check()?;
            let image = checker.image(&sample.recording, &sample.state).to_vec();
            let image = recorder.mount(sample.mode, &image)?;
            let marks = sample.state.marks;
            let judged = checker
                .check_image(&sample.recording, marks, &image)
                .map_err(ours)?;
            if let Err(mut violation) = judged {
                violation
                    .what
                    .insert_str(0, "mounted by the guest's kernel: ");
                failures.push(Failure {
                    recording: Arc::clone(&sample.recording),
                    state: sample.state.clone(),
                    violation,
                    configuration: sample.configuration,
                    mounted: true,
                });
            }
            self.report.mounted += 1;
        }
        Ok(failures)
    }

    /// Every mutant must be caught.
    fn mutants(&mut self) -> Result<()> {
        if self.args.is_mounted() {
            return Ok(());
        }
        let (kept, seed) = (&self.kept, self.args.seed);
        let catch_one = |mutant| {
            let mut checker = Checker::new(SIZE).map_err(ours)?;
            let caught = catch(mutant, kept, seed, MUTANT_STATES, |recording, state| {
                Ok(checker.check(recording, state).map_err(ours)?.err())
            });
            Ok(MutantReport::new(mutant, caught?))
        };
        let results: Vec<Result<MutantReport>> = thread::scope(|scope| {
            let broken = |mutant: &Mutant| kept.iter().any(|it| mutant.breaks(it));
            let mutants = Mutant::ALL.into_iter().filter(broken);
            let threads: Vec<_> = mutants
                .map(|mutant| scope.spawn(move || catch_one(mutant)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|why| std::panic::resume_unwind(why))
                })
                .collect()
        });
        self.report.mutants = results.into_iter().collect::<Result<_>>()?;
        Ok(())
    }

    /// The same where the guest's kernel recovers each state: what it does not mount is
    /// caught, too.
    fn mounted_mutants(&mut self, recorder: &mut Recorder) -> Result<()> {
        let mode = self.args.modes()[0];
        let mut checker = Checker::new(SIZE).map_err(ours)?;
        let mut judge = |recording: &Arc<Recording>, state: &State| {
            interrupt::check()?;
            let image = checker.image(recording, state).to_vec();
            let image = match recorder.mount(mode, &image) {
                Ok(image) => image,
                Err(error) => {
                    let (kind, what) = (Kind::Unclean, error.to_string());
                    return Ok(Some(Violation { kind, what }));
                }
            };
            let judged = checker.check_image(recording, state.marks, &image);
            Ok(judged.map_err(ours)?.err())
        };
        for mutant in Mutant::ALL {
            if self.kept.iter().any(|it| mutant.breaks(it)) {
                let (kept, seed) = (&self.kept, self.args.seed);
                let caught = catch(mutant, kept, seed, MOUNTED_MUTANT_STATES, &mut judge)?;
                self.report.mutants.push(MutantReport::new(mutant, caught));
            }
        }
        Ok(())
    }

    /// Counts the failures, and tells the first of them.
    fn tell(&mut self, failures: Vec<Failure>) -> Result<()> {
        let mut checker = Checker::new(SIZE).map_err(ours)?;
        self.report.violations = failures.len() as u64;
        for failure in &failures {
            if let Some(part) = self.report.configurations.get_mut(failure.configuration) {
                part.violations += 1;
            }
        }
        // One of each configuration before a second one of any.
        let mut told: Vec<usize> = Vec::new();
        for failure in &failures {
            if told.len() == STORIES {
                break;
            }
            if told.contains(&failure.configuration) {
                continue;
            }
            told.push(failure.configuration);
            let Failure {
                recording,
                state,
                violation,
                configuration,
                mounted,
            } = failure;
            let (state, violation) = match mounted {
                // What e2fsck makes of fewer losses says nothing of what a kernel does.
                true => (state.clone(), violation.clone()),
                false => shrink(&mut checker, recording, state, violation).map_err(ours)?,
            };
            let image = checker.image(recording, &state);
            let (drive, journal) = image.split_at(recording.journal.unwrap_or(image.len()));
            let path = self.out.join(format!("violation-{}.img", told.len()));
            fs::write(&path, drive).at("write", &path)?;
            let mut kept = format!("  drive before recovery: {}\n", path.display());
            if recording.journal.is_some() {
                let path = self
                    .out
                    .join(format!("violation-{}.journal.img", told.len()));
                fs::write(&path, journal).at("write", &path)?;
                kept.push_str(&format!("  the journal's: {}\n", path.display()));
            }
            let place = self.report.configurations.get(*configuration);
            self.report.stories.push(format!(
                "  {}\n{}{kept}",
                place.map_or(String::new(), describe),
                story(recording, &state, &violation),
            ));
        }
        Ok(())
    }
}

fn describe(part: &Configuration) -> String {
    format!("stack {}, mode {}", part.stack.name(), part.mode.name())
}
