// SPDX-License-Identifier: MIT
//! The control socket: one JSON object per line each way.
//!
//! ```text
//! > {"cmd":"ping"}
//! < {"ok":true}
//! > {"cmd":"latency","read":{"points":[[50,7300],[99,12000]]},"write":{"points":[]},"seed":7}
//! < {"ok":true}
//! > {"cmd":"counters"}
//! < {"ok":true,"counters":{"reads":12,…}}
//! > {"cmd":"log-start","path":"/tmp/writes.log"}
//! < {"ok":true}
//! > {"cmd":"load","path":"/tmp/other.img"}
//! < {"ok":true}
//! > {"cmd":"bad","begin":4096,"end":8192}
//! < {"ok":true}
//! > {"cmd":"log-stop"}
//! < {"ok":true,"records":42}
//! > nonsense
//! < {"ok":false,"error":"expected ident at line 1 column 2"}
//! ```

use crate::clock;
use crate::counters::Counters;
use crate::error::{
    Error,
    IoContext,
    Result, //
};
use crate::latency::Latency;
use crate::server::Shared;
use crate::write_log::Writer;
use serde::{
    Deserialize,
    Serialize, //
};
use std::fs;
use std::io::{
    self,
    BufRead,
    BufReader,
    Read as _,
    Write as _, //
};
use std::ops::Range;
use std::os::unix::net::{
    UnixListener,
    UnixStream, //
};
use std::path::{
    Path,
    PathBuf, //
};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicUsize,
    Ordering, //
};
use std::thread;
use std::time::Duration;

/// Longest line taken, bytes.
const MAX_LINE: u64 = 64 << 10;
/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 16;
/// How long a client waits for an answer; ending a log waits for the disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case", deny_unknown_fields)]
enum Command {
    /// Just answer.
    Ping,
    /// Set the latency of reads and of all else from now on; begin the random
    /// sequences at `seed`, or again where they began.
    Latency {
        read: Latency,
        write: Latency,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seed: Option<u64>,
    },
    /// Tell the counters.
    Counters,
    /// Begin a write log in a new file.
    LogStart { path: PathBuf },
    /// Hold what the file `path` does, from the next request on.
    Load { path: PathBuf },
    /// Let writes fail that touch a byte from `begin` to before `end`, from the next
    /// request on, and no others.
    Bad { begin: u64, end: u64 },
    /// End the write log and tell how many records it holds.
    LogStop,
}

/// An answer.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counters: Option<Counters>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
}

/// Answers all who connect, each in a thread of its own.
pub(crate) fn serve(listener: &UnixListener, shared: &Arc<Shared>) {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: let others end first.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(shared);
        let connections = Arc::clone(&connections);
        thread::spawn(move || {
            // A client that has gone away needs no answer.
            let _ = converse(&stream, &shared);
            connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn converse(mut stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = (&mut from).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(());
        }
        let result = if line.ends_with(b"\n") {
            serde_json::from_slice(&line)
                .map_err(|error| error.to_string())
                .and_then(|command| obey(command, shared).map_err(|error| error.to_string()))
        } else {
            Err("a line without end, or longer than 64 KiB".into())
        };
        let answer = result.unwrap_or_else(|error| Answer {
            error: Some(error),
            ..Answer::default()
        });
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

fn obey(command: Command, shared: &Shared) -> Result<Answer> {
    let mut answer = Answer {
        ok: true,
        ..Answer::default()
    };
    match command {
        Command::Ping => {}
        Command::Latency { read, write, seed } => {
            read.check()?;
            write.check()?;
            shared.settings().set_latency(read, write, seed);
        }
        Command::Counters => answer.counters = Some(shared.counters.snapshot()),
        Command::LogStart { path } => {
            let mut settings = shared.settings();
            if settings.log.is_some() {
                return Err(Error::WriteLog("one is being written already".into()));
            }
            settings.log = Some(Ok(Writer::create(&path, shared.size)?));
        }
        Command::Load { path } => {
            let bytes = fs::read(&path).at("read", &path)?;
            if bytes.len() as u64 != shared.size {
                return Err(Error::Image {
                    path,
                    reason: "it is not as large as the drive",
                });
            }
            shared.settings().load = Some(bytes);
        }
        Command::Bad { begin, end } => shared.settings().bad = begin..end,
        Command::LogStop => {
            // Taken first: the disk's time must not be the drive's.
            let log = shared.settings().log.take();
            let log = log.ok_or_else(|| Error::WriteLog("none is being written".into()))?;
            answer.records = Some(log?.finish(clock::now())?);
        }
    }
    Ok(answer)
}

/// The other end of a control socket.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Control {
    /// Connects to the server whose control socket is `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).at("connect to", path)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .at("connect to", path)?;
        Ok(Self {
            stream: BufReader::new(stream),
            path: path.to_path_buf(),
        })
    }

    /// Returns when the server answers.
    pub fn ping(&mut self) -> Result<()> {
        self.ask(&Command::Ping).map(drop)
    }

    /// Sets the latency of reads and of all else from now on. The random
    /// sequences begin at `seed`, or again where they last began.
    pub fn set_latency(
        &mut self,
        read: &Latency,
        write: &Latency,
        seed: Option<u64>,
    ) -> Result<()> {
        self.ask(&Command::Latency {
            read: read.clone(),
            write: write.clone(),
            seed,
        })
        .map(drop)
    }

    /// What was served so far.
    pub fn counters(&mut self) -> Result<Counters> {
        let answer = self.ask(&Command::Counters)?;
        answer
            .counters
            .ok_or_else(|| Error::Refused("no counters in its answer".into()))
    }

    /// Begins a write log in the new file `path`, as the server sees it.
    pub fn start_log(&mut self, path: &Path) -> Result<()> {
        self.ask(&Command::LogStart {
            path: path.to_path_buf(),
        })
        .map(drop)
    }

    /// Makes the drive hold what the file `path` (as the server sees it, and as
    /// large as the drive) does, from the next request on. The client must have
    /// nothing of the old contents in mind.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.ask(&Command::Load {
            path: path.to_path_buf(),
        })
        .map(drop)
    }

    /// Lets writes fail that touch any of these `bytes`, and no others.
    pub fn set_bad(&mut self, bytes: Range<u64>) -> Result<()> {
        self.ask(&Command::Bad {
            begin: bytes.start,
            end: bytes.end,
        })
        .map(drop)
    }

    /// Ends the write log; returns how many records it holds, all on disk.
    pub fn stop_log(&mut self) -> Result<u64> {
        Ok(self.ask(&Command::LogStop)?.records.unwrap_or_default())
    }

    fn ask(&mut self, command: &Command) -> Result<Answer> {
        let line = self.exchange(command).at("talk to", &self.path)?;
        let answer: Answer =
            serde_json::from_str(&line).map_err(|error| Error::Refused(error.to_string()))?;
        if answer.ok {
            return Ok(answer);
        }
        Err(Error::Refused(answer.error.unwrap_or_default()))
    }

    fn exchange(&mut self, command: &Command) -> io::Result<String> {
        let mut text = serde_json::to_vec(command)?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }
}
