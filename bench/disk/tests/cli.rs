// SPDX-License-Identifier: MIT
//! The program `aios-disk`.

use aios_disk::client::Client;
use aios_disk::control::Control;
use aios_disk::write_log::Reader;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::{
    Command,
    Stdio, //
};
use std::time::{
    Duration,
    Instant, //
};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_aios-disk"))
}

/// A folder with an image of 1 MiB.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![7; 1 << 20]).unwrap();
    (dir, image)
}

/// Connects as soon as there is something to connect to.
fn connect(path: &Path) -> Control {
    let start = Instant::now();
    loop {
        match Control::connect(path) {
            Ok(control) => return control,
            Err(error) if start.elapsed() > Duration::from_secs(20) => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn test_serve_ends_with_its_standard_input_and_ends_the_log() {
    let (dir, image) = folder();
    let path = |name| dir.path().join(name);
    let mut server = program()
        .args(["serve", "--until-stdin-closes", "--write-latency", "1000"])
        .args(["--read-latency", "50:1000,99:2000", "--seed", "7"])
        .args([Path::new("--image"), &image])
        .args([Path::new("--socket"), &path("nbd")])
        .args([Path::new("--control"), &path("control")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut control = connect(&path("control"));
    control.ping().unwrap();
    control.start_log(&path("log")).unwrap();
    let mut client = Client::connect(&path("nbd")).unwrap();
    client.write(0, &[1; 512]).unwrap();
    client.read(0, &mut [0; 512]).unwrap();

    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
    let records: Vec<_> = Reader::open(&path("log")).unwrap().collect();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].as_ref().unwrap().data, [1; 512]);
}

#[test]
fn test_bad_arguments_end_with_one_line() {
    let (dir, image) = folder();
    let serve = |image: &Path, latency: &str| {
        let output = program()
            .args(["serve", "--read-latency", latency])
            .args([Path::new("--image"), image])
            .args([Path::new("--socket"), &dir.path().join("nbd")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = serve(&dir.path().join("nothing"), "0");
    assert!(
        missing.starts_with("error: cannot open the image"),
        "{missing}"
    );
    assert_eq!(missing.lines().count(), 1);
    assert!(serve(&image, "fast").contains("`fast` is neither"));
}

#[test]
fn test_measure_tells_the_servers_own_time() {
    let (_dir, image) = folder();
    let output = program()
        .args(["measure", "--count", "200", "--repeat", "1", "--image"])
        .arg(&image)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("server's own time per request"))
        .expect(&text);
    let us: f64 = line
        .split_whitespace()
        .rev()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    // A system call or two, not a wait for anything.
    assert!(us > 0.1 && us < 200.0, "{line}");
}
