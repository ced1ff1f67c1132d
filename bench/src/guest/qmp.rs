// SPDX-License-Identifier: MIT
//! The QEMU machine protocol: JSON lines over a Unix socket.

use crate::error::{
    Error,
    Result, //
};
use serde_json::{
    Value,
    json, //
};
use std::io::{
    BufRead,
    BufReader,
    Read,
    Write, //
};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// No answer is longer, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Greets QEMU over a fresh connection.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(TIMEOUT))
            .map_err(|error| failed(&error))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        if qmp.receive()?.get("QMP").is_none() {
            return Err(failed(&"no greeting"));
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command that has no arguments and waits until it is done.
    pub(crate) fn execute(&mut self, command: &str) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| failed(&error))?;
        loop {
            let mut answer = self.receive()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error["desc"].as_str().unwrap_or("no reason given");
                return Err(failed(&format_args!("{command}: {why}")));
            }
            // Anything else is an event.
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = (&mut self.stream)
            .take(MAX_LINE)
            .read_line(&mut line)
            .map_err(|error| failed(&error))?;
        if count == 0 {
            return Err(failed(&"QEMU has ended"));
        }
        serde_json::from_str(&line).map_err(|error| failed(&error))
    }
}

fn failed(why: &dyn std::fmt::Display) -> Error {
    Error::new(format!("QEMU's monitor failed: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor that says `lines` and its peer.
    fn monitor(lines: &str) -> (UnixStream, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        (ours, theirs)
    }

    #[test]
    fn test_execute_skips_events_and_returns_the_value() {
        let (ours, _theirs) = monitor(concat!(
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"event\": \"STOP\"}\n",
            "{\"return\": {\"running\": true}}\n",
        ));
        let mut qmp = Qmp::new(ours).unwrap();
        assert_eq!(qmp.execute("query-status").unwrap()["running"], true);
    }

    #[test]
    fn test_execute_error_names_command_and_reason() {
        let (ours, _theirs) = monitor(concat!(
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\n",
        ));
        let error = Qmp::new(ours).unwrap().execute("cont").unwrap_err();
        assert_eq!(error.what(), "QEMU's monitor failed: cont: not now");
    }

    #[test]
    fn test_new_garbage_or_end_returns_error() {
        for lines in ["no json\n", "{}\n", ""] {
            let (ours, theirs) = monitor(lines);
            drop(theirs);
            assert!(Qmp::new(ours).is_err());
        }
    }
}
