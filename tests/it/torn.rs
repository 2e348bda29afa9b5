//! The power goes in the midst of a write: a part of it is on the disk, or a later one and not an earlier one, or a sector
//! is neither what it was nor what it should be. Row 27 with torn sectors. Needs a C compiler, as the build does.
//!
//! A small library beside this file (`torn.c`) writes down what the real program does to its data folder. The disk is then
//! made up as it may have been at any moment of that: whatever was synced is there, and of what was not, any sectors, in
//! any order; names change in order, and surely only with the folder's own sync. `WEIGHBRIDGE_TORN_DISKS=5000` looks at more
//! of them, `WEIGHBRIDGE_TORN_SEED` at others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use weighbridge::store::query::{Reader, Verified, Wanted, verify};
use weighbridge::store::writer::{CHECKPOINTS, Faults, Records, RecordsConfig, Watch};

use crate::audit_process::{key, payment};
use crate::process::{Sandbox, Site, repository, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// More than the log is moved after, so that the file itself is written while it is looked at.
const DECISIONS: usize = 560;
const GARBAGE: u8 = 0xa5;

// --- What the program did ----------------------------------------------------------------------------------------------

pub enum Step {
    Made {
        inode: u64,
        name: String,
    },
    Wrote {
        inode: u64,
        at: usize,
        bytes: Vec<u8>,
        name: String,
    },
    Cut {
        inode: u64,
        size: usize,
        name: String,
    },
    Synced {
        inode: u64,
        name: String,
    },
    /// Of a file, or of the folder: `.`
    SyncFailed {
        inode: u64,
        name: String,
    },
    SyncedFolder,
    Removed {
        name: String,
    },
    Renamed {
        from: String,
        to: String,
    },
    Linked {
        from: String,
        to: String,
    },
}

/// The steps, each with where it ends in the log. What the kill cut off is not one.
pub fn steps(log: &[u8]) -> Vec<(u64, Step)> {
    let (mut rest, mut steps) = (log, Vec::new());
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let head = std::str::from_utf8(&rest[..end]).unwrap();
        let parts: Vec<_> = head.splitn(5, ' ').collect();
        let [what, inode, at, length, name] = parts[..] else { panic!("{head}") };
        let (inode, at, length): (u64, usize, usize) =
            (inode.parse().unwrap(), at.parse().unwrap(), length.parse().unwrap());
        let Some(bytes) = rest.get(end + 1..end + 1 + length) else { break };
        rest = &rest[end + 1 + length..];
        let name = name.to_owned();
        // Shared memory, which nobody relies on after a crash.
        if name.ends_with("-shm") {
            continue;
        }
        let from = || String::from_utf8(bytes.to_vec()).unwrap();
        let step = match what {
            "C" => Step::Made { inode, name },
            "W" => Step::Wrote { inode, at, bytes: bytes.to_vec(), name },
            "T" => Step::Cut { inode, size: at, name },
            "S" => Step::Synced { inode, name },
            "F" => Step::SyncFailed { inode, name },
            "D" => Step::SyncedFolder,
            "U" => Step::Removed { name },
            "R" => Step::Renamed { from: from(), to: name },
            "L" => Step::Linked { from: from(), to: name },
            _ => panic!("{head}"),
        };
        steps.push(((log.len() - rest.len()) as u64, step));
    }
    steps
}

// --- The disk it did it to ---------------------------------------------------------------------------------------------

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Cut(usize),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Cut(size) => bytes.resize(*size, 0),
        Change::Write { at, bytes: new } => {
            bytes.resize(bytes.len().max(at + new.len()), 0);
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
    }
}

#[derive(Default)]
struct File {
    inode: u64,
    /// As it was when it was last synced,
    synced: Vec<u8>,
    /// and what came since.
    loose: Vec<Change>,
}

type Names = BTreeMap<String, usize>;

#[derive(Default)]
struct Disk {
    files: Vec<File>,
    /// As programs see them,
    names: Names,
    /// as they were when the folder was last synced,
    durable: Names,
    /// and what each change since has made of them.
    loose: Vec<Names>,
}

impl Disk {
    fn of(folder: &Path) -> Self {
        let mut disk = Self::default();
        let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
        for entry in entries.filter(|entry| entry.file_type().unwrap().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            if !name.ends_with("-shm") {
                disk.names.insert(name, disk.files.len());
                let (inode, synced) = (entry.metadata().unwrap().ino(), fs::read(entry.path()).unwrap());
                disk.files.push(File { inode, synced, loose: Vec::new() });
            }
        }
        disk.durable = disk.names.clone();
        disk
    }

    fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        change(&mut self.names);
        self.loose.push(self.names.clone());
    }

    /// The file of that number. The number of one that is gone may be another's.
    fn file(&mut self, inode: u64, name: &str) -> &mut File {
        let is = |file: &&usize| self.files[**file].inode == inode;
        let known = self.names.get(name).filter(is).or_else(|| self.names.values().find(is)).copied();
        let file = known.unwrap_or_else(|| {
            self.files.push(File { inode, ..File::default() });
            let fresh = self.files.len() - 1;
            self.rename(|names| {
                names.insert(name.to_owned(), fresh);
            });
            fresh
        });
        &mut self.files[file]
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Made { inode, name } => self.file(*inode, name).loose.push(Change::Cut(0)),
            Step::Wrote { inode, at, bytes, name } => {
                self.file(*inode, name).loose.push(Change::Write { at: *at, bytes: bytes.clone() });
            }
            Step::Cut { inode, size, name } => self.file(*inode, name).loose.push(Change::Cut(*size)),
            Step::Synced { inode, name } => {
                let file = self.file(*inode, name);
                for change in std::mem::take(&mut file.loose) {
                    apply(&mut file.synced, &change);
                }
            }
            // None does: `syncs.rs` is about those.
            Step::SyncFailed { name, .. } => panic!("the sync of {name} failed"),
            Step::SyncedFolder => (self.durable, self.loose) = (self.names.clone(), Vec::new()),
            Step::Removed { name } => self.rename(|names| {
                names.remove(name);
            }),
            Step::Renamed { from, to } => self.rename(|names| {
                let file = names.remove(from);
                names.extend(file.map(|file| (to.clone(), file)));
            }),
            Step::Linked { from, to } => self.rename(|names| {
                let file = names.get(from).copied();
                names.extend(file.map(|file| (to.clone(), file)));
            }),
        }
    }

    /// What may be there when the power comes back.
    fn after(&self, loss: &mut Loss) -> BTreeMap<String, Vec<u8>> {
        let changes = loss.dice.below(self.loose.len() + 1);
        let names = changes.checked_sub(1).map_or(&self.durable, |last| &self.loose[last]);
        let left: Vec<_> = self.files.iter().map(|file| loss.of(file)).collect();
        names.iter().map(|(name, file)| (name.clone(), left[*file].clone())).collect()
    }
}

// --- What is lost ------------------------------------------------------------------------------------------------------

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>, read Nov 2026): a seed is a run.
pub struct Dice(pub u64);

impl Dice {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, most: usize) -> usize {
        (self.word() % most.max(1) as u64) as usize
    }
}

/// Which of the sectors that were not synced are on the disk.
#[derive(Clone, Copy, Debug)]
enum Kept {
    None,
    All,
    /// Up to one of them: a write torn in two.
    First,
    /// From one of them on: the later is there and the earlier is not.
    Last,
    /// Any.
    Some,
}

struct Loss {
    dice: Dice,
    kept: Kept,
    sector: usize,
    /// One sector of each file that was being written is neither old nor new.
    garbage: bool,
    /// The file has its new length, whatever is in it.
    stretched: bool,
}

impl Loss {
    fn drawn(mut dice: Dice) -> Self {
        let kept = [Kept::None, Kept::All, Kept::First, Kept::Last, Kept::Some][dice.below(5)];
        let sector = [512, 4096][dice.below(2)];
        let (garbage, stretched) = (dice.below(2) == 0, dice.below(2) == 0);
        Self { dice, kept, sector, garbage, stretched }
    }

    fn of(&mut self, file: &File) -> Vec<u8> {
        let (mut bytes, mut pieces) = (file.synced.clone(), Vec::new());
        for change in &file.loose {
            match change {
                Change::Cut(size) => pieces.push(Change::Cut(*size)),
                Change::Write { at, bytes } => pieces.extend(self.pieces(*at, bytes)),
            }
        }
        let edge = self.dice.below(pieces.len() + 1);
        for (number, piece) in pieces.iter().enumerate() {
            let kept = match self.kept {
                Kept::None => false,
                Kept::All => true,
                Kept::First => number < edge,
                Kept::Last => number >= edge,
                Kept::Some => self.dice.below(2) == 0,
            };
            if kept {
                apply(&mut bytes, piece);
            }
        }
        let writes: Vec<_> = pieces.iter().filter_map(end_of).collect();
        if self.stretched {
            let longest = writes.iter().copied().max().unwrap_or_default();
            bytes.resize(bytes.len().max(longest), 0);
        }
        if self.garbage && !writes.is_empty() {
            let end = writes[self.dice.below(writes.len())];
            let begin = (end - 1) / self.sector * self.sector;
            bytes.resize(bytes.len().max(end), 0);
            let end = bytes.len().min(begin + self.sector);
            bytes[begin..end].fill_with(|| GARBAGE ^ self.dice.word() as u8);
        }
        bytes
    }

    /// A write, cut where sectors end.
    fn pieces(&self, at: usize, bytes: &[u8]) -> Vec<Change> {
        let (mut pieces, mut done) = (Vec::new(), 0);
        while done < bytes.len() {
            let room = self.sector - (at + done) % self.sector;
            let end = bytes.len().min(done + room);
            pieces.push(Change::Write { at: at + done, bytes: bytes[done..end].to_vec() });
            done = end;
        }
        pieces
    }
}

fn end_of(piece: &Change) -> Option<usize> {
    match piece {
        Change::Write { at, bytes } => Some(at + bytes.len()),
        Change::Cut(_) => None,
    }
}

// --- The program -------------------------------------------------------------------------------------------------------

pub fn library(site: &Site) -> PathBuf {
    let (built, source) = (site.path("torn.so"), repository().join("tests/it/torn.c"));
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).arg("-ldl").status();
    assert!(status.is_ok_and(|status| status.success()), "a C compiler is needed: apt-get install gcc");
    built
}

/// What a client was told, and how far the log was then.
type Told = Arc<Mutex<Vec<(String, u64)>>>;

fn load(sandbox: &Sandbox, round: usize, log: &Path, told: &Told) -> Vec<JoinHandle<()>> {
    let client = |number: usize| {
        let (mut client, key, told, log) = (sandbox.client(), key(sandbox), Arc::clone(told), log.to_owned());
        thread::spawn(move || {
            for payment_number in 0.. {
                let body =
                    payment(&format!("R{round}-C{number}-{payment_number}"), &format!("u{}", payment_number % 5));
                let Ok(answer) = client.call("POST", "/v1/risk/assessments", &key, &body) else { return };
                assert_eq!(answer.status, 200, "{answer:?}");
                let far = fs::metadata(&log).unwrap().len();
                told.lock().unwrap().push((answer.json()["id"].as_str().unwrap().to_owned(), far));
            }
        })
    };
    (0..4).map(client).collect()
}

struct Deaf;

impl Watch for Deaf {
    fn waiting(&self, _: i64) {}
    fn committed(&self, _: Duration) {}
}

pub fn lay(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// Begins as the program does, and says what is not as it must be.
pub fn looked_at(folder: &Path, told: &[(String, u64)], far: u64) -> Result<(), String> {
    let config = RecordsConfig {
        folder: folder.to_owned(),
        checkpoints: None,
        watch: Arc::new(Deaf),
        faults: Faults::default(),
    };
    Records::open(config).map_err(|error| format!("it does not start: {error:?}"))?.stop();
    let checkpoints = fs::read_to_string(folder.join(CHECKPOINTS)).map_err(|error| format!("checkpoints: {error}"))?;
    match verify(folder, Some(&checkpoints), |_| ()) {
        Ok(Verified::Sound(_)) => {}
        other => return Err(format!("the chain: {other:?}")),
    }
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    let walked = Reader::open(folder).and_then(|reader| {
        reader.walk(&Wanted::default(), |row, _| {
            if let Some(row) = row {
                *stored.entry(row.id.clone()).or_default() += 1;
            }
            Ok(())
        })
    });
    walked.map_err(|error| format!("it cannot be read: {error:?}"))?;
    let missing = told.iter().filter(|(id, then)| *then <= far && stored.get(id) != Some(&1)).count();
    if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} decisions are not there once", told.len())) }
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn row_27_with_writes_torn_between_sectors_every_decision_that_was_given_is_on_the_disk() {
    let (disks, seed) = (number("WEIGHBRIDGE_TORN_DISKS", 120), number("WEIGHBRIDGE_TORN_SEED", 1));
    let site = Site::new();
    let (library, told, looks) = (library(&site), Told::default(), AtomicU64::new(0));
    let root = fs::canonicalize(site.path("")).unwrap();
    let (folder, made_up) = (root.join("kept"), root.join("made-up"));
    let mut dice = Dice(seed);
    for round in 0..2 {
        let log = root.join(format!("log-{round}"));
        let mut disk = Disk::of(&folder);
        let [of, to, library] = [&folder, &log, &library].map(|path| path.display().to_string());
        let variables = [("LD_PRELOAD", library.as_str()), ("TORN_FOLDER", of.as_str()), ("TORN_LOG", to.as_str())];
        let sandbox = Sandbox::start_with(&site, &variables, &["--data-dir", "kept"]);
        let clients = load(&sandbox, round, &log, &told);
        wait_until(PATIENCE, "decisions", || told.lock().unwrap().len() >= DECISIONS * (round + 1));
        sandbox.signal("KILL");
        clients.into_iter().for_each(|client| client.join().unwrap());
        drop(sandbox);
        let (mut told, steps) = (told.lock().unwrap(), steps(&fs::read(&log).unwrap()));
        let syncs = steps.iter().filter(|(_, step)| matches!(step, Step::Synced { .. })).count();
        assert!(syncs > 50, "{syncs} syncs in {} steps: the library saw little of it", steps.len());
        let chance = steps.len() / (disks / 2).max(1) as usize + 1;
        for (number, (far, step)) in steps.iter().enumerate() {
            disk.take(step);
            if dice.below(chance) == 0 || number + 1 == steps.len() {
                let drawn = dice.word();
                let mut loss = Loss::drawn(Dice(drawn));
                let left = disk.after(&mut loss);
                lay(&made_up, &left);
                // In the first moments there is no record, and nobody was told anything.
                if let Err(wrong) = looked_at(&made_up, &told, *far) {
                    let Loss { kept, sector, garbage, stretched, .. } = loss;
                    panic!(
                        "round {round}, seed {seed}, step {number} of {}: {wrong}\nkept: {kept:?}, sectors of {sector}, \
                         garbage: {garbage}, stretched: {stretched}; the log of steps is {}",
                        steps.len(),
                        log.display()
                    );
                }
                looks.fetch_add(1, Ordering::Relaxed);
            }
        }
        // The next process goes on from the last disk, torn as it is.
        lay(&folder, &disk.after(&mut Loss::drawn(Dice(dice.word()))));
        told.iter_mut().for_each(|(_, far)| *far = 0);
    }
    println!("{} disks were looked at, {} decisions given", looks.into_inner(), told.lock().unwrap().len());
}
