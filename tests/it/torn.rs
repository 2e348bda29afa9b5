//! The power goes in the midst of a write: a part of it is on the disk, or a later one and not an earlier one, or a sector
//! is neither what it was nor what it should be. Row 27 with torn sectors. Needs a C compiler, as the build does.
//!
//! A small library beside this file (`torn.c`) writes down what the real program does to its data folder. The disk is then
//! made up as it may have been at any moment of that: whatever was synced is there, and of what was not, any sectors, in
//! any order; names change in order, and surely only with the folder's own sync. `WEIGHBRIDGE_TORN_DISKS=5000` looks at more
//! of them, `WEIGHBRIDGE_TORN_SEED` at others.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::audit_process::{key, payment};
use crate::made_up::{Bytes, Dice, Disk, Given, Shared, Step, lay, library, looked_at, number, steps};
use crate::process::{Sandbox, Site, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// More than the log is moved after, so that the file itself is written while it is looked at.
const DECISIONS: usize = 560;
const GARBAGE: u8 = 0xa5;

// --- The files ---------------------------------------------------------------------------------------------------------

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
    /// As it was when it was last synced,
    synced: Vec<u8>,
    /// and what came since.
    loose: Vec<Change>,
}

impl Bytes for File {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.loose.push(Change::Write { at, bytes: bytes.to_vec() });
    }

    fn cut(&mut self, size: usize) {
        self.loose.push(Change::Cut(size));
    }

    fn synced(&mut self) {
        for change in std::mem::take(&mut self.loose) {
            apply(&mut self.synced, &change);
        }
    }

    fn failed(&mut self, _: &mut Dice) {
        panic!("a sync failed, and `syncs.rs` is about those");
    }
}

// --- What is lost ------------------------------------------------------------------------------------------------------

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

#[derive(Debug)]
struct Loss {
    kept: Kept,
    sector: usize,
    /// One sector of each file that was being written is neither old nor new.
    garbage: bool,
    /// The file has its new length, whatever is in it.
    stretched: bool,
}

impl Loss {
    fn drawn(dice: &mut Dice) -> Self {
        let kept = [Kept::None, Kept::All, Kept::First, Kept::Last, Kept::Some][dice.below(5)];
        let sector = [512, 4096][dice.below(2)];
        let (garbage, stretched) = (dice.below(2) == 0, dice.below(2) == 0);
        Self { kept, sector, garbage, stretched }
    }

    fn of(&self, file: &File, dice: &mut Dice) -> Vec<u8> {
        let (mut bytes, mut pieces) = (file.synced.clone(), Vec::new());
        for change in &file.loose {
            match change {
                Change::Cut(size) => pieces.push(Change::Cut(*size)),
                Change::Write { at, bytes } => pieces.extend(self.pieces(*at, bytes)),
            }
        }
        let edge = dice.below(pieces.len() + 1);
        for (number, piece) in pieces.iter().enumerate() {
            let kept = match self.kept {
                Kept::None => false,
                Kept::All => true,
                Kept::First => number < edge,
                Kept::Last => number >= edge,
                Kept::Some => dice.below(2) == 0,
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
            let end = writes[dice.below(writes.len())];
            let begin = (end - 1) / self.sector * self.sector;
            bytes.resize(bytes.len().max(end), 0);
            let end = bytes.len().min(begin + self.sector);
            bytes[begin..end].fill_with(|| GARBAGE ^ dice.word() as u8);
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

fn load(sandbox: &Sandbox, round: usize, log: &Path, told: &Shared) -> Vec<JoinHandle<()>> {
    let client = |number: usize| {
        let (mut client, key, told, log) = (sandbox.client(), key(sandbox), told.clone(), log.to_owned());
        thread::spawn(move || {
            for payment_number in 0.. {
                let user = format!("u{}", payment_number % 5);
                let body = payment(&format!("R{round}-C{number}-{payment_number}"), &user);
                let Ok(answer) = client.call("POST", "/v1/risk/assessments", &key, &body) else { return };
                assert_eq!(answer.status, 200, "{answer:?}");
                let far = fs::metadata(&log).unwrap().len();
                let id = answer.json()["id"].as_str().unwrap().to_owned();
                told.lock().unwrap().given.push(Given { id, user, far });
            }
        })
    };
    (0..4).map(client).collect()
}

#[test]
fn row_27_with_writes_torn_between_sectors_every_decision_that_was_given_is_on_the_disk() {
    let (disks, seed) = (number("WEIGHBRIDGE_TORN_DISKS", 120), number("WEIGHBRIDGE_TORN_SEED", 1));
    let site = Site::new();
    let (library, told, looks) = (library(&site, "torn"), Shared::default(), AtomicU64::new(0));
    let root = fs::canonicalize(site.path("")).unwrap();
    let (folder, made_up) = (root.join("kept"), root.join("made-up"));
    let mut dice = Dice(seed);
    for round in 0..2 {
        let log = root.join(format!("log-{round}"));
        let mut disk = Disk::<File>::of(&folder);
        let [of, to, library] = [&folder, &log, &library].map(|path| path.display().to_string());
        let variables = [("LD_PRELOAD", library.as_str()), ("TORN_FOLDER", of.as_str()), ("TORN_LOG", to.as_str())];
        let sandbox = Sandbox::start_with(&site, &variables, &["--data-dir", "kept"]);
        let clients = load(&sandbox, round, &log, &told);
        wait_until(PATIENCE, "decisions", || told.lock().unwrap().given.len() >= DECISIONS * (round + 1));
        sandbox.signal("KILL");
        clients.into_iter().for_each(|client| client.join().unwrap());
        drop(sandbox);
        let (mut told, steps) = (told.lock().unwrap(), steps(&fs::read(&log).unwrap()));
        let syncs = steps.iter().filter(|(_, step)| matches!(step, Step::Synced { .. })).count();
        assert!(syncs > 50, "{syncs} syncs in {} steps: the library saw little of it", steps.len());
        let chance = steps.len() / (disks / 2).max(1) as usize + 1;
        for (number, (far, step)) in steps.iter().enumerate() {
            disk.take(step, &mut dice);
            if dice.below(chance) == 0 || number + 1 == steps.len() {
                let mut drawn = Dice(dice.word());
                let loss = Loss::drawn(&mut drawn);
                lay(&made_up, &disk.after(&mut drawn, |file, dice| loss.of(file, dice)));
                // In the first moments there is no record, and nobody was told anything.
                if let Err(wrong) = looked_at(&made_up, &told, *far) {
                    panic!(
                        "round {round}, seed {seed}, step {number} of {}: {wrong}\n{loss:?}; the log of steps is {}",
                        steps.len(),
                        log.display()
                    );
                }
                looks.fetch_add(1, Ordering::Relaxed);
            }
        }
        // The next process goes on from the last disk, torn as it is.
        let mut drawn = Dice(dice.word());
        let loss = Loss::drawn(&mut drawn);
        lay(&folder, &disk.after(&mut drawn, |file, dice| loss.of(file, dice)));
        told.given.iter_mut().for_each(|given| given.far = 0);
    }
    println!("{} disks were looked at, {} decisions given", looks.into_inner(), told.lock().unwrap().given.len());
}
