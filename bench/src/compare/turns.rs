// SPDX-License-Identifier: MIT
//! Several guests, one at a time, in turns far shorter than a measurement.
//!
//! What else happens on the machine meets all guests alike, which no order of
//! whole measurements achieves. A guest that waits for its turn does not know:
//! its processors and its clocks stand still.

use crate::error::{
    Error,
    Result, //
};
use serde_json::{
    Value,
    json, //
};
use std::collections::VecDeque;
use std::io::{
    BufRead,
    BufReader,
    Read,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{
    Receiver,
    RecvTimeoutError, //
};
use std::time::Duration;

/// Length of a turn: several make a measurement, and each is some hundred reads
/// of an emulated processor, of which the one under way at its end is cut short.
/// Standing still costs QEMU a flush of its drives, and cold caches afterwards:
/// turns of 50 ms made every read a quarter longer.
pub(crate) const TURN: Duration = Duration::from_millis(250);

/// How long QEMU may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const ANSWER_LENGTH: u64 = 1 << 20;

/// A machine that can stand still.
pub(crate) trait Machine {
    /// Lets it run.
    fn go(&mut self) -> Result<()>;
    /// Makes it stand still.
    fn halt(&mut self) -> Result<()>;
    /// Ends it, so that nobody waits for it any longer.
    fn end(&mut self);
}

/// Lets `machines`, which stand still, take turns in `order` (all of their
/// indices) until each has sent its index and result, and leaves them standing
/// still. The first failure ends all of them and is returned once the others
/// have sent theirs, too.
pub(crate) fn take<M: Machine, T>(
    machines: &mut [M],
    order: &[usize],
    results: &Receiver<(usize, Result<T>)>,
    turn: Duration,
) -> Result<Vec<T>> {
    let mut found: Vec<Option<T>> = machines.iter().map(|_| None).collect();
    let mut waiting: VecDeque<usize> = order.iter().copied().collect();
    let mut failure = None;
    while let Some(&index) = waiting.front() {
        let first = failure.is_none();
        let outcome = match (first, machines.get_mut(index)) {
            (true, Some(machine)) => one_turn(machine, results, turn),
            // The ended ones have only to say so.
            _ => results
                .recv()
                .map(Some)
                .map_err(|_| Error::new("a guest was not waited for")),
        };
        match outcome {
            Ok(None) => waiting.rotate_left(1),
            Ok(Some((done, result))) => {
                waiting.retain(|other| *other != done);
                match (result, found.get_mut(done)) {
                    (Ok(result), Some(slot)) => *slot = Some(result),
                    (Err(error), _) => failure = failure.or(Some(error)),
                    (Ok(_), None) => {}
                }
            }
            Err(error) if first => failure = Some(error),
            // Nobody is left who could send anything.
            Err(_) => break,
        }
        if first && failure.is_some() {
            machines.iter_mut().for_each(Machine::end);
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(found.into_iter().flatten().collect()),
    }
}

/// One turn of one machine; the result that came meanwhile, from whomever.
fn one_turn<M: Machine, T>(
    machine: &mut M,
    results: &Receiver<(usize, Result<T>)>,
    turn: Duration,
) -> Result<Option<(usize, Result<T>)>> {
    machine.go()?;
    let outcome = match results.recv_timeout(turn) {
        Ok(outcome) => Some(outcome),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            return Err(Error::new("a guest was not waited for"));
        }
    };
    match machine.halt() {
        Ok(()) => Ok(outcome),
        // Why it has gone is what the result says.
        Err(error) => outcome.map_or(Err(error), |outcome| Ok(Some(outcome))),
    }
}

/// A connection to a QEMU monitor of our own, beside the one of the guest that
/// another thread holds while it waits for a command.
#[derive(Debug)]
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// QEMU's arguments for a monitor at `socket`.
    pub(crate) fn args(socket: &Path) -> Vec<String> {
        // A comma would begin the next option.
        let path = socket.display().to_string().replace(',', ",,");
        vec![
            "-chardev".to_owned(),
            format!("socket,id=turns,path={path},server=on,wait=off"),
            "-mon".to_owned(),
            "chardev=turns,mode=control".to_owned(),
        ]
    }

    /// Connects to the monitor of a running guest.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(|error| failed(&error))?;
        Self::greet(stream)
    }

    fn greet(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(ANSWER_TIME))
            .map_err(|error| failed(&error))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        if monitor.receive()?.get("QMP").is_none() {
            return Err(failed(&"no greeting"));
        }
        monitor.execute("qmp_capabilities")?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| failed(&error))?;
        loop {
            let answer = self.receive()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(failed(&format_args!("{command}: {}", error["desc"])));
            }
            // Anything else is an event.
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = (&mut self.stream)
            .take(ANSWER_LENGTH)
            .read_line(&mut line)
            .map_err(|error| failed(&error))?;
        if count == 0 {
            return Err(failed(&"QEMU has ended"));
        }
        serde_json::from_str(&line).map_err(|error| failed(&error))
    }
}

impl Machine for &mut Monitor {
    fn go(&mut self) -> Result<()> {
        self.execute("cont")
    }

    fn halt(&mut self) -> Result<()> {
        self.execute("stop")
    }

    fn end(&mut self) {
        // Where it has ended already there is nobody left to say so.
        let _ = self.execute("quit");
    }
}

fn failed(why: &dyn std::fmt::Display) -> Error {
    Error::new(format!("QEMU's monitor failed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::mpsc::{
        Sender,
        channel, //
    };
    use std::thread;

    /// Finishes after some turns; notes what happens to it.
    struct Fake<'a> {
        index: usize,
        turns_left: u32,
        fail: bool,
        sender: Option<Sender<(usize, Result<u32>)>>,
        notes: &'a RefCell<Vec<(usize, &'static str)>>,
    }

    impl Fake<'_> {
        fn send(&mut self, result: Result<u32>) {
            if let Some(sender) = self.sender.take() {
                sender.send((self.index, result)).unwrap();
            }
        }

        fn note(&self, what: &'static str) {
            self.notes.borrow_mut().push((self.index, what));
        }
    }

    impl Machine for Fake<'_> {
        fn go(&mut self) -> Result<()> {
            self.note("go");
            self.turns_left -= 1;
            if self.turns_left == 0 {
                let result = if self.fail {
                    Err(Error::new("it died"))
                } else {
                    Ok(10)
                };
                self.send(result);
            }
            Ok(())
        }

        fn halt(&mut self) -> Result<()> {
            self.note("halt");
            Ok(())
        }

        fn end(&mut self) {
            self.note("end");
            self.send(Err(Error::new("it was ended")));
        }
    }

    type Notes = Vec<(usize, &'static str)>;

    fn run(turns: [u32; 3], fail: Option<usize>) -> (Result<Vec<u32>>, Notes) {
        let notes = RefCell::new(Vec::new());
        let (sender, receiver) = channel();
        let mut fakes: Vec<_> = (0..3)
            .map(|index| Fake {
                index,
                turns_left: turns[index],
                fail: fail == Some(index),
                sender: Some(sender.clone()),
                notes: &notes,
            })
            .collect();
        drop(sender);
        let result = take(&mut fakes, &[1, 2, 0], &receiver, Duration::from_millis(1));
        (result, notes.into_inner())
    }

    #[test]
    fn test_take_only_one_runs_at_a_time_and_all_finish() {
        let (result, notes) = run([3, 1, 2], None);
        assert_eq!(result.unwrap(), [10, 10, 10]);
        for pair in notes.chunks(2) {
            assert_eq!((pair[0].0, pair[0].1, pair[1].1), (pair[1].0, "go", "halt"));
        }
        let order: Vec<_> = notes.chunks(2).map(|pair| pair[0].0).collect();
        assert_eq!(order, [1, 2, 0, 2, 0, 0]);
    }

    #[test]
    fn test_take_failure_ends_all_and_is_the_error() {
        let (result, notes) = run([9, 2, 9], Some(1));
        assert_eq!(result.unwrap_err().what(), "it died");
        let ended = notes.iter().filter(|note| note.1 == "end").count();
        assert_eq!(ended, 3);
        assert!(notes.iter().filter(|note| note.1 == "go").count() <= 5);
    }

    #[test]
    fn test_take_threads_gone_without_result_returns_error() {
        let (sender, receiver) = channel::<(usize, Result<u32>)>();
        drop(sender);
        let notes = RefCell::new(Vec::new());
        let mut fakes = [Fake {
            index: 0,
            turns_left: 5,
            fail: false,
            sender: None,
            notes: &notes,
        }];
        assert!(take(&mut fakes, &[0], &receiver, Duration::from_millis(1)).is_err());
    }

    /// A QEMU that says what it is told to, line by line.
    fn qemu(answers: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            for answer in answers {
                theirs.get_mut().write_all(answer.as_bytes()).unwrap();
                let _ = theirs.read_line(&mut String::new());
            }
        });
        ours
    }

    #[test]
    fn test_monitor_skips_events_before_the_answer() {
        let mut monitor = Monitor::greet(qemu(&[
            "{\"QMP\":{}}\n",
            "{\"return\":{}}\n",
            "{\"event\":\"STOP\"}\n{\"return\":{}}\n",
        ]))
        .unwrap();
        (&mut monitor).halt().unwrap();
    }

    #[test]
    fn test_monitor_refusal_nonsense_and_end_return_errors() {
        let refused = Monitor::greet(qemu(&["{\"QMP\":{}}\n", "{\"error\":{\"desc\":\"no\"}}\n"]));
        assert!(refused.unwrap_err().what().contains("no"));
        assert!(Monitor::greet(qemu(&["hello\n"])).is_err());
        assert!(Monitor::greet(qemu(&["{}\n"])).is_err());
        let ended = Monitor::greet(qemu(&[])).unwrap_err();
        assert!(ended.what().contains("has ended"), "{ended}");
    }

    #[test]
    fn test_args_comma_in_path_is_doubled() {
        let args = Monitor::args(Path::new("/a,b"));
        assert!(args[1].contains("path=/a,,b,server"), "{args:?}");
    }
}
