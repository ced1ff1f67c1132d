// SPDX-License-Identifier: MIT
//! One connection in its transmission phase: requests in, replies out, each at
//! its time.

use crate::clock;
use crate::handshake::violation;
use crate::image::Image;
use crate::power::Cache;
use crate::server::Shared;
use crate::wire::{
    self,
    Request, //
};
use crate::write_log::Kind;
use rustix::event::{
    PollFd,
    PollFlags,
    Timespec, //
};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{
    self,
    IoSlice,
    Write as _, //
};
use std::mem;
use std::os::unix::net::UnixStream;

/// Room for requests read at once. A header with 4 KiB of data fits; longer
/// data is received where it belongs, not here.
const INPUT_LEN: usize = 8 << 10;
/// Requests under way at once; further ones wait in the socket.
const MAX_PENDING: usize = 1024;
/// Data of writes under way at once, bytes; further requests wait.
const MAX_HELD: usize = 64 << 20;

/// A connection in its transmission phase.
pub(crate) struct Session<'a> {
    stream: &'a UnixStream,
    image: &'a mut Image,
    /// Until the power is cut.
    cache: &'a mut Option<Cache>,
    shared: &'a Shared,
    spin_ns: u64,
    input: Input,
    /// The write whose data is arriving.
    incoming: Option<Incoming>,
    /// Requests waiting for their deadlines, the next one on top.
    pending: BinaryHeap<Reverse<Pending>>,
    /// Requests admitted to `pending` so far.
    admitted: u64,
    /// Data held by `pending`, bytes.
    held: usize,
    /// When the last bytes were received.
    received_at: u64,
    /// The client wants to disconnect once all is answered.
    leaving: bool,
}

/// A request read in full or, for a write, up to its data.
struct Incoming {
    request: Request,
    /// Error to answer with, or [`wire::OK`].
    error: u32,
    /// Time from the request's receipt to its answer.
    latency: u64,
    payload: Payload,
    /// Bytes of data received so far.
    filled: usize,
}

/// Where the data of a write goes while it arrives.
enum Payload {
    /// Straight into the image: to be answered at once.
    Direct,
    /// Kept until the request is answered.
    Held(Vec<u8>),
    /// Nowhere: the write is refused, or there is none.
    None,
}

/// A request waiting for its deadline.
struct Pending {
    due: u64,
    /// Time from receipt to `due`.
    latency: u64,
    /// Breaks ties: first come, first served.
    order: u64,
    request: Request,
    error: u32,
    data: Option<Vec<u8>>,
}

impl Pending {
    fn key(&self) -> (u64, u64) {
        (self.due, self.order)
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// What came of asking the socket for bytes.
#[derive(PartialEq, Eq)]
enum Received {
    Bytes,
    NothingYet,
    End,
}

impl<'a> Session<'a> {
    /// Begins to serve `image` to the client at the other end of `stream`,
    /// spinning up to `spin_ns` before each deadline.
    pub(crate) fn new(
        stream: &'a UnixStream,
        image: &'a mut Image,
        cache: &'a mut Option<Cache>,
        shared: &'a Shared,
        spin_ns: u64,
    ) -> Self {
        Self {
            stream,
            image,
            cache,
            shared,
            spin_ns,
            input: Input::new(),
            incoming: None,
            pending: BinaryHeap::new(),
            admitted: 0,
            held: 0,
            received_at: 0,
            leaving: false,
        }
    }

    /// Serves until the client leaves.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.take_requests()?;
            if self.answer_due()? {
                // There may be room now for requests already received.
                continue;
            }
            if self.leaving && self.pending.is_empty() {
                return Ok(());
            }
            if self.wait()? == Received::End {
                return Ok(());
            }
        }
    }

    /// Whether no more requests can be taken before some are answered.
    fn full(&self) -> bool {
        self.leaving || self.pending.len() >= MAX_PENDING || self.held >= MAX_HELD
    }

    /// Takes all requests out of what was received.
    fn take_requests(&mut self) -> io::Result<()> {
        while !self.full() {
            let incoming = match self.incoming.take() {
                Some(mut incoming) => {
                    self.take_payload(&mut incoming);
                    incoming
                }
                None => {
                    let Some(header) = self.input.header() else {
                        return Ok(());
                    };
                    let request =
                        Request::decode(header).ok_or_else(|| violation("bad request magic"))?;
                    self.input.take(wire::REQUEST_LEN);
                    if request.command == wire::CMD_DISC {
                        self.leaving = true;
                        return Ok(());
                    }
                    let mut incoming = self.begin(request)?;
                    self.take_payload(&mut incoming);
                    incoming
                }
            };
            if incoming.missing() > 0 {
                self.incoming = Some(incoming);
                return Ok(());
            }
            self.admit(incoming)?;
        }
        Ok(())
    }

    /// Judges a request and draws its latency.
    fn begin(&mut self, request: Request) -> io::Result<Incoming> {
        let is_write = request.command == wire::CMD_WRITE;
        if is_write && request.length > wire::MAX_PAYLOAD {
            // Draining it would let a client keep the server busy for nothing.
            return Err(violation("a write longer than was agreed"));
        }
        let error = match self.judge(&request) {
            wire::OK if is_write && self.is_bad(&request) => wire::EIO,
            error => error,
        };
        if error != wire::OK {
            return Ok(Incoming {
                request,
                error,
                latency: 0,
                payload: Payload::None,
                filled: 0,
            });
        }
        let mut settings = self.shared.settings();
        if let Some(bytes) = settings.load.take() {
            self.image.replace(&bytes);
        }
        let latency = if request.command == wire::CMD_READ {
            settings.read.sample()
        } else {
            settings.write.sample()
        };
        let payload = if !is_write {
            Payload::None
        } else if latency == 0 && settings.log.is_none() && self.cache.is_none() {
            Payload::Direct
        } else {
            // Zeroed by the allocator only when touched: a header alone does
            // not take the memory it speaks of.
            Payload::Held(vec![0; request.length as usize])
        };
        Ok(Incoming {
            request,
            error,
            latency,
            payload,
            filled: 0,
        })
    }

    /// Whether a request touches bytes where writes are to fail.
    fn is_bad(&self, request: &Request) -> bool {
        let settings = self.shared.settings();
        let end = request.offset.saturating_add(request.length.into());
        request.offset < settings.bad.end && settings.bad.start < end
    }

    /// The error that a request is to be answered with, or [`wire::OK`].
    fn judge(&self, request: &Request) -> u32 {
        let known_flags = match request.command {
            wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_FUA | wire::CMD_FLAG_NO_HOLE,
            _ => wire::CMD_FLAG_FUA,
        };
        if request.flags & !known_flags != 0 {
            return wire::EINVAL;
        }
        let inside = self.image.get(request.offset, request.length).is_some();
        match request.command {
            wire::CMD_FLUSH => wire::OK,
            wire::CMD_READ if inside && request.length <= wire::MAX_PAYLOAD => wire::OK,
            wire::CMD_WRITE | wire::CMD_WRITE_ZEROES if !inside => wire::ENOSPC,
            wire::CMD_WRITE | wire::CMD_WRITE_ZEROES => wire::OK,
            wire::CMD_TRIM if inside => wire::OK,
            _ => wire::EINVAL,
        }
    }

    /// Moves what was received of a write's data to where it belongs.
    fn take_payload(&mut self, incoming: &mut Incoming) {
        let n = incoming.missing().min(self.input.filled().len());
        if let Some(target) = incoming.target(self.image) {
            target[..n].copy_from_slice(&self.input.filled()[..n]);
        }
        self.input.take(n);
        incoming.filled += n;
    }

    /// Answers a request now or puts it up for later.
    fn admit(&mut self, incoming: Incoming) -> io::Result<()> {
        let data = match incoming.payload {
            Payload::Held(data) => Some(data),
            Payload::Direct | Payload::None => None,
        };
        let pending = Pending {
            due: self.received_at + incoming.latency,
            latency: incoming.latency,
            order: self.admitted,
            request: incoming.request,
            error: incoming.error,
            data,
        };
        if incoming.latency == 0 {
            return self.answer(&pending);
        }
        if pending.data.is_some() {
            let Request { offset, length, .. } = pending.request;
            self.image.prepare(offset, length);
        }
        self.admitted += 1;
        self.held += pending.data.as_ref().map_or(0, Vec::len);
        self.pending.push(Reverse(pending));
        Ok(())
    }

    /// Answers all requests whose time has come; tells whether there were any.
    fn answer_due(&mut self) -> io::Result<bool> {
        let mut answered = false;
        while let Some(Reverse(next)) = self.pending.peek()
            && next.due <= clock::now()
        {
            if let Some(Reverse(next)) = self.pending.pop() {
                self.held -= next.data.as_ref().map_or(0, Vec::len);
                self.answer(&next)?;
                answered = true;
            }
        }
        Ok(answered)
    }

    /// Carries out a request, logs, counts and answers it.
    fn answer(&mut self, pending: &Pending) -> io::Result<()> {
        let Pending { request, error, .. } = pending;
        let counters = &self.shared.counters;
        let mut data = &[][..];
        if *error == wire::OK {
            if request.command != wire::CMD_READ
                && self.cache.as_mut().is_some_and(Cache::counts_down)
            {
                return Err(self.cut_power(pending));
            }
            self.carry_out(pending);
            let (counter, bytes) = match request.command {
                wire::CMD_READ => (&counters.reads, Some(&counters.read_bytes)),
                wire::CMD_WRITE => (&counters.writes, Some(&counters.written_bytes)),
                wire::CMD_FLUSH => (&counters.flushes, None),
                wire::CMD_TRIM => (&counters.trims, None),
                _ => (&counters.zeroes, None),
            };
            counter.add(1);
            if let Some(bytes) = bytes {
                bytes.add(request.length.into());
            }
            if request.command == wire::CMD_READ {
                data = self
                    .image
                    .get(request.offset, request.length)
                    .unwrap_or_default();
            }
        } else {
            counters.errors.add(1);
        }
        send(
            self.stream,
            &wire::encode_reply(*error, request.cookie),
            data,
        )?;
        let late = clock::now().saturating_sub(pending.due);
        counters.late_ns.add(late);
        counters.max_late_ns.raise_to(late);
        Ok(())
    }

    /// Cuts the power instead of carrying out `last`.
    fn cut_power(&mut self, last: &Pending) -> io::Error {
        let mut under_way: Vec<&Pending> = self.pending.iter().map(|Reverse(it)| it).collect();
        under_way.push(last);
        under_way.sort_by_key(|pending| pending.due - pending.latency);
        let writes = under_way.into_iter().filter_map(|pending| {
            let good = pending.error == wire::OK;
            let data = pending.data.as_deref().filter(|_| good)?;
            Some((pending.request.offset, data))
        });
        if let Some(mut cache) = self.cache.take() {
            cache.cut(self.image, writes);
        }
        io::Error::other("the power was cut")
    }

    /// Notes in the cache what a good request changes.
    fn remember(&mut self, pending: &Pending) {
        let Some(cache) = self.cache.as_mut() else {
            return;
        };
        let request = &pending.request;
        let range = (request.offset, request.length);
        let durable = request.flags & wire::CMD_FLAG_FUA != 0;
        match request.command {
            wire::CMD_WRITE => {
                if let Some(data) = &pending.data {
                    cache.write(self.image, range, Some(data), durable);
                }
            }
            wire::CMD_TRIM | wire::CMD_WRITE_ZEROES => {
                cache.write(self.image, range, None, durable);
            }
            wire::CMD_FLUSH => cache.flush(pending.due - pending.latency),
            _ => {}
        }
    }

    /// Changes the image as a good request says, and logs that.
    fn carry_out(&mut self, pending: &Pending) {
        self.remember(pending);
        let Request {
            flags,
            command,
            offset,
            length,
            ..
        } = pending.request;
        let (kind, range) = match command {
            wire::CMD_WRITE => {
                // Nothing is held of a write that went straight in.
                if let (Some(target), Some(data)) =
                    (self.image.get_mut(offset, length), &pending.data)
                {
                    target.copy_from_slice(data);
                }
                (Kind::Write, (offset, length))
            }
            wire::CMD_FLUSH => (Kind::Flush, (0, 0)),
            wire::CMD_TRIM => {
                self.image.zero(offset, length);
                (Kind::Trim, (offset, length))
            }
            wire::CMD_WRITE_ZEROES => {
                self.image.zero(offset, length);
                (Kind::WriteZeroes, (offset, length))
            }
            _ => return,
        };
        if let Some(log) = &mut self.shared.settings().log
            && let Ok(writer) = log
        {
            let data = match (&pending.data, kind) {
                (Some(data), _) => data,
                // It was on its way into the image when the log began.
                (None, Kind::Write) => self.image.get(offset, length).unwrap_or_default(),
                (None, _) => &[],
            };
            let fua = flags & wire::CMD_FLAG_FUA != 0;
            let received = pending.due - pending.latency;
            let times = (received, clock::now());
            if let Err(error) = writer.append(kind, fua, range, times, data) {
                // Told when the log is stopped.
                *log = Err(error);
            }
        }
    }

    /// Waits for bytes or for the next deadline.
    fn wait(&mut self) -> io::Result<Received> {
        let Some(Reverse(next)) = self.pending.peek() else {
            return self.receive(RecvFlags::empty());
        };
        // With many under way the next deadline is never far: spinning before
        // each may take half of the time, no more.
        let share = next.latency / (2 * self.pending.len() as u64);
        let wake = next.due.saturating_sub(self.spin_ns.min(share));
        let now = clock::now();
        let listen = !self.full();
        if now < wake {
            // Without events asked for, only the end of the stream wakes it.
            let events = if listen {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            let timeout = Timespec {
                tv_sec: i64::try_from((wake - now) / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from((wake - now) % 1_000_000_000).unwrap_or_default(),
            };
            match rustix::event::poll(&mut [PollFd::new(self.stream, events)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => return Ok(Received::NothingYet),
                Ok(_) if !listen => return Ok(Received::End),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if listen {
            self.receive(RecvFlags::DONTWAIT)
        } else {
            std::hint::spin_loop();
            Ok(Received::NothingYet)
        }
    }

    /// Receives what there is: data of a write where it belongs, all else into
    /// the input buffer.
    fn receive(&mut self, flags: RecvFlags) -> io::Result<Received> {
        let payload = match &mut self.incoming {
            Some(incoming) => incoming.target(self.image),
            None => None,
        };
        let straight = payload.is_some();
        let target = payload.unwrap_or_else(|| self.input.space());
        let n = match rustix::net::recv(self.stream, target, flags) {
            Ok((_, 0)) => return Ok(Received::End),
            Ok((_, n)) => n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::NothingYet),
            Err(error) => return Err(error.into()),
        };
        match &mut self.incoming {
            Some(incoming) if straight => incoming.filled += n,
            _ => self.input.fill(n),
        }
        self.received_at = clock::now();
        Ok(Received::Bytes)
    }
}

impl Incoming {
    /// Bytes of data still to come.
    fn missing(&self) -> usize {
        match self.request.command {
            wire::CMD_WRITE => (self.request.length as usize).saturating_sub(self.filled),
            _ => 0,
        }
    }

    /// Where the data still to come goes, if it is wanted.
    fn target<'a>(&'a mut self, image: &'a mut Image) -> Option<&'a mut [u8]> {
        let whole = match &mut self.payload {
            Payload::Direct => image.get_mut(self.request.offset, self.request.length)?,
            Payload::Held(data) => data,
            Payload::None => return None,
        };
        whole.get_mut(self.filled..)
    }
}

/// Bytes received and not yet taken.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self {
            buffer: vec![0; INPUT_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What was received and not taken.
    fn filled(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// A whole request header, if there is one.
    fn header(&self) -> Option<&[u8; wire::REQUEST_LEN]> {
        self.filled().first_chunk()
    }

    /// Takes `n` of the bytes received.
    fn take(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    /// Room for more. Never empty: what is left over is at most a part of a
    /// header.
    fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= mem::take(&mut self.start);
        &mut self.buffer[self.end..]
    }

    /// Tells that `n` bytes of [`Input::space`] were received.
    fn fill(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buffer.len());
    }
}

/// Sends a reply with one system call, unless the socket is full.
fn send(mut stream: &UnixStream, header: &[u8], data: &[u8]) -> io::Result<()> {
    let mut both = [IoSlice::new(header), IoSlice::new(data)];
    let mut rest = &mut both[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
