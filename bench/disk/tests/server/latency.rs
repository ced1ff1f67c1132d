// SPDX-License-Identifier: MIT
//! The clock side of the server. The bounds are wide enough for a busy
//! machine, and narrow enough to fail when requests queue up behind each other
//! or timers are coarse.

use crate::drive::Drive;
use aios_disk::Latency;
use aios_disk::client::Client;
use aios_disk::wire::{
    CMD_READ,
    CMD_WRITE, //
};
use std::time::{
    Duration,
    Instant, //
};

const NONE: Latency = Latency { points: Vec::new() };

/// The median time of `count` reads, one after the other.
fn median_read(client: &mut Client, count: usize) -> Duration {
    let mut buffer = [0; 4096];
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let start = Instant::now();
            client.read(0, &mut buffer).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[count / 2]
}

#[test]
fn test_fixed_latency_is_kept() {
    let drive = Drive::with(|options| options.read = Latency::fixed(1_000_000));
    let median = median_read(&mut drive.client(), 200);
    assert!(
        (1000..=1600).contains(&median.as_micros()),
        "asked for 1 ms, took {median:?}"
    );
}

#[test]
fn test_no_latency_answers_at_once() {
    let mut drive = Drive::new();
    let median = median_read(&mut drive.client(), 2000);
    assert!(median < Duration::from_micros(300), "took {median:?}");
    let counters = drive.control.counters().unwrap();
    let own = counters.late_ns / counters.reads;
    assert!(own < 100_000, "the server's own time is {own} ns");
}

#[test]
fn test_pipelined_requests_wait_together() {
    let mut drive = Drive::new();
    let latency = Latency::fixed(5_000_000);
    drive.control.set_latency(&latency, &latency, None).unwrap();
    let mut client = drive.client();
    for command in [CMD_READ, CMD_WRITE] {
        let data = [1; 4096];
        let (sent, received) = match command {
            CMD_WRITE => (&data[..], 0),
            _ => (&[][..], 4096),
        };
        // The best of three: one bad moment of the machine is no failure.
        let best = (0..3)
            .map(|_| {
                let start = Instant::now();
                for i in 0..16 {
                    client.send(command, 0, i * 4096, 4096, sent).unwrap();
                }
                let mut buffer = vec![0; received];
                for _ in 0..16 {
                    assert_eq!(client.reply().unwrap().1, 0);
                    client.data(&mut buffer).unwrap();
                }
                start.elapsed()
            })
            .min()
            .unwrap();
        assert!(best >= Duration::from_millis(5), "{command}: {best:?}");
        assert!(best < Duration::from_millis(15), "{command}: {best:?}");
    }
}

#[test]
fn test_short_request_overtakes_a_long_one() {
    let mut drive = Drive::new();
    drive
        .control
        .set_latency(&Latency::fixed(100_000_000), &NONE, None)
        .unwrap();
    let mut client = drive.client();
    let read = client.send(CMD_READ, 0, 0, 512, &[]).unwrap();
    let write = client.send(CMD_WRITE, 0, 4096, 512, &[1; 512]).unwrap();
    assert_eq!(client.reply().unwrap(), (write, 0));
    assert_eq!(client.reply().unwrap(), (read, 0));
}

#[test]
fn test_latency_changes_at_run_time() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    drive
        .control
        .set_latency(&Latency::fixed(20_000_000), &NONE, None)
        .unwrap();
    assert!(median_read(&mut client, 3) >= Duration::from_millis(20));
    drive.control.set_latency(&NONE, &NONE, None).unwrap();
    assert!(median_read(&mut client, 50) < Duration::from_millis(5));
}

#[test]
fn test_same_seed_gives_the_same_order_of_replies() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    // Steps of 20 ms between the possible latencies tell the order surely.
    let steps = Latency {
        points: vec![
            (33.0, 1_000_000),
            (33.1, 21_000_000),
            (66.0, 21_000_000),
            (66.1, 41_000_000),
        ],
    };
    let mut order = |seed| {
        drive
            .control
            .set_latency(&steps, &NONE, Some(seed))
            .unwrap();
        let first = client.send(CMD_READ, 0, 0, 0, &[]).unwrap();
        for _ in 1..12 {
            client.send(CMD_READ, 0, 0, 0, &[]).unwrap();
        }
        (0..12)
            .map(|_| client.reply().unwrap().0 - first)
            .collect::<Vec<_>>()
    };
    let once = order(42);
    assert_eq!(once, order(42));
    assert_ne!(once, order(43));
}
