// SPDX-License-Identifier: MIT
//! Reading, recovering and judging real ext4 images, made by mke2fs.

use aios_crash::check::{
    Checker,
    Kind,
    Recording,
    Subject, //
};
use aios_crash::ext4::{
    self,
    Ext4, //
};
use aios_crash::history::{
    History,
    Mark,
    Write, //
};
use aios_crash::model::Promise;
use aios_crash::shrink::{
    shrink,
    story, //
};
use aios_crash::states::{
    Part,
    State, //
};
use aios_guest::crash::{
    Op,
    Plan,
    content,
    folders, //
};
use std::fs;
use std::path::{
    Path,
    PathBuf, //
};
use std::process::Command;
use std::sync::Arc;

const SIZE: usize = 16 << 20;

/// Where the journal's drive begins if there is one.
const JOURNAL: usize = 12 << 20;
/// The UUID of that.
const JOURNAL_UUID: &str = "a105a105-a105-4a10-85a1-05a105a105a2";

/// A program of e2fsprogs.
fn tool(name: &str) -> Command {
    let paths = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    let path = paths.into_iter().find(|path| path.is_file());
    Command::new(path.unwrap_or(name.into()))
}

fn run(tool: &mut Command) -> String {
    let output = tool.output().unwrap();
    assert!(output.status.success(), "{tool:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An image with the folders of three threads and what `fill` puts there.
fn image(fill: impl Fn(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), &["-J", "size=4"], SIZE, fill);
    fs::read(path).unwrap()
}

/// Makes it in `dir`, with these options, on the first bytes of a drive.
fn make(dir: &Path, options: &[&str], bytes: usize, fill: impl Fn(&Path)) -> PathBuf {
    let root = dir.join("root");
    for folder in folders(&root, 3) {
        fs::create_dir_all(folder).unwrap();
    }
    fill(&root);
    let path = dir.join("image");
    fs::write(&path, aios_crash::POISON.repeat(SIZE / 16)).unwrap();
    run(tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "256"])
        .args(options)
        .args([
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-d",
        ])
        .arg(&root)
        .arg(&path)
        .arg(format!("{}k", bytes >> 10)));
    path
}

/// What the first thread writes to its file 0 in its second operation.
fn written() -> Vec<u8> {
    let mut data = vec![0; 5000];
    content(9, 0, 1, 0, &mut data);
    data
}

/// A thread that wrote a file and was told that it is durable, on a drive whose
/// first and only later write is `write`.
fn recording(initial: Vec<u8>, write: Option<Write>) -> Arc<Recording> {
    let range = aios_guest::crash::Range {
        offset: 0,
        length: 5000,
    };
    let plan = Plan {
        seed: 9,
        threads: vec![vec![Op::Create(0), Op::Write(0, range), Op::Fsync(0)]],
    };
    let history = History {
        writes: write.into_iter().collect(),
        flushes: Vec::new(),
        marks: vec![Mark {
            time: 5,
            thread: 0,
            op: 2,
        }],
    };
    Arc::new(Recording {
        initial: Arc::new(initial),
        journal: None,
        history,
        subject: Subject::files(&plan, Promise::NothingStale).unwrap(),
    })
}

fn state(survivors: Vec<(usize, Part)>, volatile: Vec<usize>) -> State {
    State {
        time: 6,
        marks: 1,
        base: 0,
        survivors,
        volatile,
    }
}

#[test]
fn test_ext4_reads_what_mke2fs_wrote() {
    let sparse = {
        let mut data = vec![0; 300_000];
        data[200_000..200_100].fill(7);
        data
    };
    let bytes = image(|root| {
        fs::write(root.join("t0/f0"), written()).unwrap();
        fs::write(root.join("t1/f3"), &sparse).unwrap();
    });
    let ext4 = Ext4::new(&bytes).unwrap();
    let list = |number| ext4.list(&ext4.inode(number).unwrap()).unwrap();
    let find = |number, name: &str| {
        let names = list(number);
        let entry = names.iter().find(|(other, _)| other == name);
        entry.unwrap_or_else(|| panic!("{name} in {names:?}")).1
    };
    let read = |folder, name| {
        let inode = ext4.inode(find(find(ext4::ROOT, folder), name)).unwrap();
        ext4.read(&inode).unwrap()
    };
    assert!(read("t0", "f0") == written());
    assert!(read("t1", "f3") == sparse);
    let journal = ext4.places(&ext4.inode(ext4::JOURNAL).unwrap()).unwrap();
    let length: u64 = journal.iter().map(|place| place.end - place.start).sum();
    assert_eq!(length, 4 << 20);
}

#[test]
fn test_ext4_garbage_returns_error() {
    assert!(Ext4::new(&[]).is_err());
    assert!(Ext4::new(&[0; 8192]).is_err());
    // Every byte of superblock and group descriptor is changed in turn: errors
    // are fine, anything else but an answer is not.
    let mut bytes = image(|_| {});
    for at in (1024..2048).chain(4096..4160) {
        for value in [0, 0xff] {
            let old = std::mem::replace(&mut bytes[at], value);
            if let Ok(ext4) = Ext4::new(&bytes) {
                for number in [0, 1, 2, 8, 12, u32::MAX] {
                    if let Ok(inode) = ext4.inode(number) {
                        let _ = (ext4.list(&inode), ext4.read(&inode));
                    }
                }
            }
            bytes[at] = old;
        }
    }
}

#[test]
fn test_check_acknowledged_file_there_and_gone() {
    let mut checker = Checker::new(SIZE).unwrap();
    let there = image(|root| fs::write(root.join("t0/f0"), written()).unwrap());
    let good = recording(there, None);
    let judged = checker
        .check(&good, &state(Vec::new(), Vec::new()))
        .unwrap();
    assert_eq!(judged, Ok(()));

    let gone = recording(image(|_| {}), None);
    let violation = checker
        .check(&gone, &state(Vec::new(), Vec::new()))
        .unwrap()
        .unwrap_err();
    assert_eq!(violation.kind, Kind::Contents);
    assert!(violation.what.contains("holds nothing"), "{violation}");
}

#[test]
fn test_check_stale_data_and_its_shortest_story() {
    // The file is there, and a write of its first block was lost.
    let bytes = image(|root| fs::write(root.join("t0/f0"), written()).unwrap());
    let block = bytes
        .chunks(4096)
        .position(|block| block == &written()[..4096])
        .unwrap();
    let mut stale = bytes.clone();
    stale[block * 4096..][..4096].copy_from_slice(&aios_crash::POISON.repeat(256));
    let write = Write::new(
        block as u64 * 4096,
        written()[..4096].to_vec(),
        (1, 2),
        false,
    );
    let recording = recording(stale, Some(write));
    let mut checker = Checker::new(SIZE).unwrap();
    let whole = state(vec![(0, Part::Whole)], vec![0]);
    assert_eq!(checker.check(&recording, &whole).unwrap(), Ok(()));

    let torn = state(vec![(0, Part::Head(512))], vec![0]);
    let violation = checker.check(&recording, &torn).unwrap().unwrap_err();
    assert!(violation.what.contains("never written"), "{violation}");
    let (small, why) = shrink(&mut checker, &recording, &torn, &violation).unwrap();
    assert_eq!(
        (&small, &why),
        (&torn, &violation),
        "there is nothing to shrink"
    );
    let story = story(&recording, &small, &why);
    for part in ["fsync f0   acknowledged", "torn   write 0", "never written"] {
        assert!(story.contains(part), "{story}");
    }
}

#[test]
fn test_check_damaged_file_system_is_unclean() {
    let mut bytes = image(|root| fs::write(root.join("t0/f0"), written()).unwrap());
    // Free block bitmap of the only group: its block is in the descriptor.
    let bitmap = u32::from_le_bytes(bytes[4096..4100].try_into().unwrap()) as usize;
    bytes[bitmap * 4096 + 100] ^= 0xff;
    let recording = recording(bytes, None);
    let mut checker = Checker::new(SIZE).unwrap();
    let judged = checker.check(&recording, &state(Vec::new(), Vec::new()));
    assert_eq!(judged.unwrap().unwrap_err().kind, Kind::Unclean);
}

/// A drive whose file's first block is in the journal alone, which is on a drive of its own.
fn in_the_journal() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), &["-O", "^has_journal"], JOURNAL, |root| {
        fs::write(root.join("t0/f0"), written()).unwrap();
    });
    let [journal, block] = ["journal", "block"].map(|name| dir.path().join(name));
    fs::write(&journal, aios_crash::POISON.repeat((SIZE - JOURNAL) / 16)).unwrap();
    fs::write(&block, &written()[..4096]).unwrap();
    run(tool("mke2fs")
        .args(["-q", "-F", "-O", "journal_dev", "-b", "4096"])
        .args(["-U", JOURNAL_UUID])
        .arg(&journal));
    let debugfs = |commands: &str| {
        let file = dir.path().join("commands");
        fs::write(&file, commands).unwrap();
        run(tool("debugfs").arg("-w").arg("-f").arg(file).arg(&path));
    };
    debugfs(&format!(
        "feature has_journal\nset_super_value journal_uuid {JOURNAL_UUID}\n"
    ));
    let image = fs::read(&path).unwrap();
    let mut bytes = fs::read(&journal).unwrap();
    assert!(ext4::join(&bytes.clone(), &mut bytes).is_err());
    ext4::join(&image, &mut bytes).unwrap();
    fs::write(&journal, bytes).unwrap();
    let blocks = image.chunks(4096);
    let first = blocks.clone().position(|it| it == &written()[..4096]);
    let first = first.unwrap();
    debugfs(&format!(
        "journal_open -f {}\njournal_write -b {first} {}\njournal_close\n",
        journal.display(),
        block.display()
    ));
    let mut image = fs::read(&path).unwrap();
    image[first * 4096..][..4096].copy_from_slice(&aios_crash::POISON.repeat(256));
    image.truncate(JOURNAL);
    image.extend(fs::read(&journal).unwrap());
    image
}

#[test]
fn test_check_replays_a_journal_on_a_drive_of_its_own() {
    let mut recording = Arc::into_inner(recording(in_the_journal(), None)).unwrap();
    recording.journal = Some(JOURNAL);
    let recording = Arc::new(recording);
    let mut checker = Checker::new(SIZE).unwrap();
    let nothing = state(Vec::new(), Vec::new());
    assert_eq!(checker.check(&recording, &nothing).unwrap(), Ok(()));

    // The journal's drive lost what was in it, its commit record, too.
    let mut lost = recording.initial.to_vec();
    lost[JOURNAL + 2 * 4096..].fill(0);
    let judged = checker.check_image(&recording, 1, &lost).unwrap();
    let violation = judged.unwrap_err();
    assert_eq!(violation.kind, Kind::Contents, "{violation}");
}
