// SPDX-License-Identifier: MIT
//! The server as its clients see it, good ones and hostile ones.

use crate::drive::{
    Drive,
    SIZE, //
};
use aios_disk::Latency;
use aios_disk::power::PowerCut;
use aios_disk::server::{
    Disk,
    Options, //
};
use aios_disk::wire::{
    self,
    CMD_FLAG_FUA,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    EINVAL,
    EIO,
    ENOSPC, //
};
use aios_disk::write_log::{
    Kind,
    Reader,
    Record, //
};
use std::io::{
    BufRead,
    BufReader,
    Read,
    Write, //
};
use std::os::unix::net::UnixStream;

/// Whether the server has ended the connection.
fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    // A reset is an end too: the server left with bytes unread.
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn test_read_returns_what_was_written() {
    let drive = Drive::new();
    let mut client = drive.client();
    assert_eq!(client.size(), SIZE);

    client.write(512, &[9; 512]).unwrap();
    client.command(CMD_FLUSH, 0, 0).unwrap();

    let mut buffer = [0; 1536];
    client.read(0, &mut buffer).unwrap();
    assert_eq!(buffer[..512], [7; 512]);
    assert_eq!(buffer[512..1024], [9; 512]);
    assert_eq!(buffer[1024..], [7; 512]);
}

#[test]
fn test_large_write_with_latency_and_without_reads_back() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    let data: Vec<u8> = (0..SIZE).map(|i| (i / 3) as u8).collect();
    let mut buffer = vec![0; data.len()];
    for latency in [Latency::default(), Latency::fixed(10_000)] {
        drive.control.set_latency(&latency, &latency, None).unwrap();
        client.command(CMD_WRITE_ZEROES, 0, SIZE as u32).unwrap();
        client.write(0, &data).unwrap();
        client.read(0, &mut buffer).unwrap();
        assert!(buffer == data, "{latency:?}");
    }
}

#[test]
fn test_trim_and_write_zeroes_read_as_zeroes() {
    let drive = Drive::new();
    let mut client = drive.client();
    client.command(CMD_TRIM, 4096, 4096).unwrap();
    client.command(CMD_WRITE_ZEROES, 12288, 512).unwrap();
    let mut buffer = [1; 16384];
    client.read(0, &mut buffer).unwrap();
    assert_eq!(buffer[4095..4097], [7, 0]);
    assert_eq!(buffer[8191..8193], [0, 7]);
    assert_eq!(buffer[12287..12289], [7, 0]);
    assert_eq!(buffer[12800], 7);
}

#[test]
fn test_private_image_leaves_file_unchanged() {
    let drive = Drive::new();
    drive.client().write(0, &[9; 4096]).unwrap();
    // Still written for the next client, and never in the file.
    let mut buffer = [0; 4096];
    drive.client().read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [9; 4096]);
    assert!(std::fs::read(&drive.image).unwrap().iter().all(|&b| b == 7));
}

#[test]
fn test_kept_image_changes_file() {
    let drive = Drive::with(|options| options.keep = true);
    drive.client().write(4096, &[9; 4096]).unwrap();
    // Served one after the other: with the second client the first has gone.
    drive.client().command(CMD_FLUSH, 0, 0).unwrap();
    let file = std::fs::read(&drive.image).unwrap();
    assert_eq!(file[4095..4097], [7, 9]);
    assert_eq!(file[8191..8193], [9, 7]);
}

#[test]
fn test_bad_blocks_refuse_writes_and_no_others() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    drive.control.set_bad(4096..8192).unwrap();
    for (offset, expected) in [(0, 0), (4096 - 512, EIO), (8192 - 512, EIO), (8192, 0)] {
        let cookie = client.send(CMD_WRITE, 0, offset, 1024, &[1; 1024]).unwrap();
        assert_eq!(client.reply().unwrap(), (cookie, expected), "{offset}");
    }
    let mut buffer = [0; 4096];
    client.read(4096, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 4096]);
    drive.control.set_bad(0..0).unwrap();
    client.write(4096, &[1; 512]).unwrap();
}

#[test]
fn test_bad_requests_return_error_and_connection_goes_on() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    let end = SIZE;
    let cases = [
        (CMD_READ, 0, end, 512, EINVAL),
        (CMD_READ, 0, end - 512, 1024, EINVAL),
        (CMD_READ, 0, u64::MAX, 512, EINVAL),
        (CMD_READ, 0, 0, u32::MAX, EINVAL),
        (CMD_READ, 0x80, 0, 512, EINVAL),
        (CMD_WRITE, 0, end, 512, ENOSPC),
        (CMD_WRITE, 0, u64::MAX - 100, 512, ENOSPC),
        (CMD_WRITE, 0, end - 512, 1 << 20, ENOSPC),
        (CMD_WRITE, 2, 0, 512, EINVAL),
        (CMD_TRIM, 0, end, 512, EINVAL),
        (CMD_TRIM, 0, 0, u32::MAX, EINVAL),
        (CMD_WRITE_ZEROES, 0, end, 512, ENOSPC),
        (CMD_FLUSH, 4, 0, 0, EINVAL),
        (5, 0, 0, 0, EINVAL),
        (0xffff, 0, 0, 512, EINVAL),
    ];
    for (command, flags, offset, length, expected) in cases {
        let data = match command {
            CMD_WRITE => vec![1; length as usize],
            _ => Vec::new(),
        };
        let cookie = client.send(command, flags, offset, length, &data).unwrap();
        assert_eq!(
            client.reply().unwrap(),
            (cookie, expected),
            "command {command} flags {flags} offset {offset} length {length}"
        );
    }
    let mut buffer = vec![0; SIZE as usize];
    client.read(0, &mut buffer).unwrap();
    assert!(buffer.iter().all(|&byte| byte == 7));
    assert_eq!(drive.control.counters().unwrap().errors, cases.len() as u64);
}

#[test]
fn test_random_requests_leave_server_alive() {
    let drive = Drive::new();
    // SplitMix64, as good as any here.
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 27)
    };
    for _ in 0..200 {
        let mut client = drive.client();
        for _ in 0..10 {
            let bits = random();
            // Small numbers as often as any, or nothing would be in range.
            let request = wire::Request {
                flags: (bits & 3) as u16,
                command: (bits >> 2 & 7) as u16,
                cookie: bits,
                offset: random() >> (bits >> 5 & 63),
                length: (random() >> (32 + (bits >> 11 & 31))) as u32,
            };
            // Data never follows: the next request is taken for it. The server
            // may hang up at any of them.
            if client.stream().write_all(&request.encode()).is_err() {
                break;
            }
        }
    }
    drive.client().command(CMD_FLUSH, 0, 0).unwrap();
}

#[test]
fn test_bad_request_magic_closes_and_server_lives() {
    let drive = Drive::new();
    let mut client = drive.client();
    client
        .stream()
        .write_all(&[0x55; wire::REQUEST_LEN])
        .unwrap();
    assert!(is_closed(client.stream()));
    drop(client);
    drive.client().command(CMD_FLUSH, 0, 0).unwrap();
}

#[test]
fn test_write_longer_than_agreed_closes_and_server_lives() {
    let drive = Drive::new();
    let mut client = drive.client();
    client
        .send(CMD_WRITE, 0, 0, wire::MAX_PAYLOAD + 1, &[])
        .unwrap();
    assert!(is_closed(client.stream()));
    drop(client);
    drive.client().command(CMD_FLUSH, 0, 0).unwrap();
}

#[test]
fn test_disconnect_in_the_middle_leaves_server_alive() {
    let mut drive = Drive::new();
    for latency in [Latency::default(), Latency::fixed(50_000_000)] {
        drive.control.set_latency(&latency, &latency, None).unwrap();
        // In a header; in the data of a write; with replies outstanding.
        let mut client = drive.client();
        client.stream().write_all(&[0x25, 0x60, 0x95]).unwrap();
        drop(client);
        let mut client = drive.client();
        client.send(CMD_WRITE, 0, 0, 8192, &[1; 5000]).unwrap();
        drop(client);
        let mut client = drive.client();
        for _ in 0..100 {
            client.send(CMD_READ, 0, 0, 65536, &[]).unwrap();
        }
        drop(client);
    }
    drive
        .control
        .set_latency(&Latency::default(), &Latency::default(), None)
        .unwrap();
    let mut buffer = [0; 512];
    drive.client().read(16384, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 512]);
}

#[test]
fn test_disconnect_command_answers_what_is_outstanding() {
    let mut drive = Drive::new();
    let latency = Latency::fixed(5_000_000);
    drive.control.set_latency(&latency, &latency, None).unwrap();
    let mut client = drive.client();
    let cookie = client.send(CMD_FLUSH, 0, 0, 0, &[]).unwrap();
    client.send(wire::CMD_DISC, 0, 0, 0, &[]).unwrap();
    assert_eq!(client.reply().unwrap(), (cookie, wire::OK));
    assert!(is_closed(client.stream()));
}

#[test]
fn test_bad_handshake_closes_and_server_lives() {
    let drive = Drive::new();
    let option = |magic: u64, option: u32, length: u32| {
        let mut bytes = 1u32.to_be_bytes().to_vec();
        bytes.extend(magic.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    for garbage in [
        vec![0xff; 64],
        option(0x1234, wire::OPT_GO, 0),
        option(wire::OPTION_MAGIC, wire::OPT_GO, u32::MAX),
        option(wire::OPTION_MAGIC, wire::OPT_EXPORT_NAME, 9000),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut stream = UnixStream::connect(&drive.socket).unwrap();
        stream.write_all(&garbage).unwrap();
        assert!(is_closed(&mut stream), "{garbage:?}");
    }
    drive.client().command(CMD_FLUSH, 0, 0).unwrap();
}

#[test]
fn test_bytes_dribbling_in_are_put_together() {
    let drive = Drive::new();
    let mut client = drive.client();
    let request = wire::Request {
        flags: 0,
        command: CMD_WRITE,
        cookie: 77,
        offset: 0,
        length: 512,
    };
    let mut bytes = request.encode().to_vec();
    bytes.extend([5; 512]);
    for chunk in bytes.chunks(13) {
        client.stream().write_all(chunk).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(client.reply().unwrap(), (77, wire::OK));
    let mut buffer = [0; 513];
    client.read(0, &mut buffer).unwrap();
    assert_eq!((buffer[0], buffer[511], buffer[512]), (5, 5, 7));
}

#[test]
fn test_more_requests_than_fit_are_all_answered() {
    let mut drive = Drive::new();
    let latency = Latency::fixed(1_000_000);
    drive.control.set_latency(&latency, &latency, None).unwrap();
    let mut client = drive.client();
    const N: u64 = 3000;
    // From another thread: replies must be taken while requests go out.
    let mut requests = client.stream().try_clone().unwrap();
    std::thread::spawn(move || {
        for cookie in 1..=N {
            let request = wire::Request {
                flags: 0,
                command: CMD_WRITE_ZEROES,
                cookie,
                offset: 0,
                length: 512,
            };
            requests.write_all(&request.encode()).unwrap();
        }
    });
    let mut cookies: Vec<u64> = (0..N).map(|_| client.reply().unwrap().0).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (1..=N).collect::<Vec<_>>());
}

#[test]
fn test_counters_count_commands_and_bytes() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    let mut buffer = [0; 4096];
    client.read(0, &mut buffer).unwrap();
    client.read(0, &mut buffer[..512]).unwrap();
    client.write(0, &buffer).unwrap();
    client.command(CMD_FLUSH, 0, 0).unwrap();
    client.command(CMD_TRIM, 0, 512).unwrap();
    client.command(CMD_WRITE_ZEROES, 0, 512).unwrap();

    let counters = drive.control.counters().unwrap();
    assert_eq!((counters.reads, counters.read_bytes), (2, 4608));
    assert_eq!((counters.writes, counters.written_bytes), (1, 4096));
    assert_eq!(
        (counters.flushes, counters.trims, counters.zeroes),
        (1, 1, 1)
    );
    assert_eq!((counters.errors, counters.commands()), (0, 6));
    assert!(counters.late_ns >= counters.max_late_ns && counters.max_late_ns > 0);
}

#[test]
fn test_write_log_holds_all_changes_in_order() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    let path = drive.dir.path().join("log");
    client.write(0, &[1; 512]).unwrap();
    drive.control.start_log(&path).unwrap();
    assert!(drive.control.start_log(&path).is_err());
    client.write(512, &[2; 512]).unwrap();
    client.command(CMD_FLUSH, 0, 0).unwrap();
    let latency = Latency::fixed(100_000);
    drive.control.set_latency(&latency, &latency, None).unwrap();
    client
        .send(CMD_WRITE, CMD_FLAG_FUA, 1024, 512, &[3; 512])
        .unwrap();
    client.reply().unwrap();
    client.read(0, &mut [0; 512]).unwrap();
    client.command(CMD_TRIM, 4096, 4096).unwrap();
    client.command(CMD_WRITE_ZEROES, 8192, 512).unwrap();
    client.send(CMD_WRITE, 0, SIZE, 512, &[4; 512]).unwrap();
    client.reply().unwrap();

    assert_eq!(drive.control.stop_log().unwrap(), 5);
    assert!(drive.control.stop_log().is_err());

    let records = Reader::open(&path)
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let told: Vec<_> = records
        .iter()
        .map(|r| (r.kind, r.fua, r.offset, r.length, r.data.first().copied()))
        .collect();
    assert_eq!(
        told,
        [
            (Kind::Write, false, 512, 512, Some(2)),
            (Kind::Flush, false, 0, 0, None),
            (Kind::Write, true, 1024, 512, Some(3)),
            (Kind::Trim, false, 4096, 4096, None),
            (Kind::WriteZeroes, false, 8192, 512, None),
        ]
    );
    assert!(records.is_sorted_by_key(|record| record.completed_ns));
    let took = |record: &Record| record.completed_ns - record.received_ns;
    assert!(records[2..].iter().all(|record| took(record) >= 100_000));
}

#[test]
fn test_load_changes_the_contents_from_the_next_request_on() {
    let mut drive = Drive::new();
    let mut client = drive.client();
    let other = drive.dir.path().join("other");
    client.write(512, &[2; 512]).unwrap();
    std::fs::write(&other, vec![9; SIZE as usize]).unwrap();
    drive.control.load(&other).unwrap();
    let mut bytes = [0; 1024];
    client.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 1024]);
    client.write(0, &[3; 512]).unwrap();
    client.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[511..513], [3, 9]);

    std::fs::write(&other, [9; 512]).unwrap();
    let error = drive.control.load(&other).unwrap_err();
    assert!(error.to_string().contains("as large as"), "{error}");
}

#[test]
fn test_replaying_the_log_gives_the_image() {
    // Overlapping writes under way at once, completing in random order.
    let random = Latency {
        points: vec![(0.0, 0), (20.0, 0), (100.0, 2_000_000)],
    };
    let mut drive = Drive::with(|options| options.write = random);
    let path = drive.dir.path().join("log");
    drive.control.start_log(&path).unwrap();
    let mut client = drive.client();
    for round in 0..20u8 {
        for i in 0..16u8 {
            let offset = u64::from(i % 5) * 512;
            client
                .send(CMD_WRITE, 0, offset, 1024, &[round ^ (i << 4); 1024])
                .unwrap();
        }
        for _ in 0..16 {
            client.reply().unwrap();
        }
    }
    drive.control.stop_log().unwrap();

    let mut replayed = vec![7; SIZE as usize];
    for record in Reader::open(&path).unwrap() {
        let record = record.unwrap();
        let start = record.offset as usize;
        replayed[start..start + record.data.len()].copy_from_slice(&record.data);
    }
    let mut image = vec![0; SIZE as usize];
    client.read(0, &mut image).unwrap();
    assert!(image == replayed);
}

#[test]
fn test_control_bad_line_returns_error_and_goes_on() {
    let drive = Drive::new();
    let stream = UnixStream::connect(drive.dir.path().join("control")).unwrap();
    let mut lines = BufReader::new(&stream);
    let mut ask = |line: &str| {
        writeln!(&stream, "{line}").unwrap();
        let mut answer = String::new();
        lines.read_line(&mut answer).unwrap();
        answer
    };
    for bad in [
        "nonsense",
        "{}",
        r#"{"cmd":"explode"}"#,
        r#"{"cmd":"latency","read":{"points":[[50,5],[40,6]]},"write":{"points":[]}}"#,
        r#"{"cmd":"latency","read":{"points":[[50,-5]]},"write":{"points":[]}}"#,
        r#"{"cmd":"log-start","path":"/nowhere/at/all"}"#,
        r#"{"cmd":"log-stop"}"#,
    ] {
        let answer = ask(bad);
        assert!(answer.starts_with(r#"{"ok":false,"error":""#), "{answer}");
    }
    assert_eq!(ask(r#"{"cmd":"ping"}"#), "{\"ok\":true}\n");
}

#[test]
fn test_control_endless_line_closes() {
    let drive = Drive::new();
    let mut stream = UnixStream::connect(drive.dir.path().join("control")).unwrap();
    // The server may hang up in the middle of it.
    let _ = stream.write_all(&vec![b'x'; 100_000]);
    assert!(is_closed(&mut stream));
}

#[test]
fn test_bind_replaces_dead_socket_but_not_a_live_one() {
    let drive = Drive::new();
    let mut options = Options::new(&drive.image, &drive.socket);
    let error = Disk::bind(&options).unwrap_err();
    assert!(error.to_string().contains("cannot listen on"), "{error}");

    options.socket = drive.dir.path().join("dead");
    drop(Disk::bind(&options).unwrap());
    assert!(options.socket.exists());
    assert!(Disk::bind(&options).is_ok());

    // Nothing but a socket is ever replaced.
    options.socket = drive.image.clone();
    assert!(Disk::bind(&options).is_err());
}

#[test]
fn test_power_cut_keeps_what_was_flushed_and_drops_the_client() {
    let mut lost = 0;
    for seed in 0..8 {
        let drive = Drive::with(|options| {
            options.keep = true;
            options.cut = Some(PowerCut {
                at: 6,
                seed,
                block: 512,
                atomic: 0,
            });
        });
        let mut client = drive.client();
        client.write(0, &[1; 4096]).unwrap();
        client.command(CMD_FLUSH, 0, 0).unwrap();
        client
            .send(CMD_WRITE, CMD_FLAG_FUA, 4096, 512, &[2; 512])
            .unwrap();
        client.reply().unwrap();
        client.write(8192, &[3; 4096]).unwrap();
        let mut bytes = [0; 4096];
        client.read(8192, &mut bytes).unwrap();
        assert_eq!(bytes, [3; 4096], "the cache is read from");
        client.write(16384, &[4; 4096]).unwrap();
        assert!(client.write(65536, &[5; 512]).is_err(), "the power is off");

        // It stays off; this is what survived.
        assert!(aios_disk::client::Client::connect(&drive.socket).is_err());
        let image = std::fs::read(&drive.image).unwrap();
        assert_eq!(image[..4096], [1; 4096]);
        assert_eq!(image[4096..][..512], [2; 512]);
        let unflushed = &image[8192..][..4096];
        assert!(
            unflushed
                .chunks(512)
                .all(|s| s == [3; 512] || s == [7; 512])
        );
        lost += u32::from(unflushed != [3; 4096]);
    }
    assert!((1..8).contains(&lost), "{lost}");
}
