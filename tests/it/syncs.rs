//! A sync fails, whichever it is, and then the power goes: row 25 and row 27 together. Needs a C compiler, as the build does.
//!
//! The library of `torn.rs` makes one sync of the real program fail. The disk is made up as Linux leaves it then: pages of
//! 4 KiB that were not written are taken for written, read as if they were, and reach the disk only if they are changed again
//! (ext4 and XFS in "Can Applications Recover from fsync Failures?", figure 1,
//! <https://www.usenix.org/conference/atc20/presentation/rebello>, read Nov 2026; Btrfs goes back to what it has on the disk,
//! which is not tried here). Names are sure only after a sync of the folder: POSIX promises no more, and whoever relies on
//! the sync of a file for its name relies on ext4. A folder whose sync failed is synced again by the next one: names are in
//! the journal of the file system, which stops for good when it cannot be written.
//!
//! `WEIGHBRIDGE_SYNCS=all` fails each one in turn, `WEIGHBRIDGE_SYNCS=8` so many of them; `WEIGHBRIDGE_SYNCS_SEED` draws others.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;

use rusqlite::Connection;
use weighbridge::store::writer::CHECKPOINTS;

use crate::audit_process::{audit, key, payment};
use crate::made_up::{Bytes, Dice, Disk, Given, Shared, Step, lay, library, looked_at, number, steps};
use crate::process::{PATIENCE, Sandbox, Site, repository, run, wait_until, weighbridge};

const PAGE: usize = 4096;

// --- The disk ----------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Cached {
    read: Vec<u8>,
    kept: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Cached {
    /// What the disk has if these pages are written to it, and perhaps the size.
    fn with(&self, pages: impl Iterator<Item = usize>, size: bool) -> Vec<u8> {
        let mut kept = self.kept.clone();
        for page in pages {
            let end = self.read.len().min((page + 1) * PAGE);
            kept.resize(kept.len().max(end), 0);
            kept[page * PAGE..end].copy_from_slice(&self.read[page * PAGE..end]);
        }
        if size {
            kept.resize(self.read.len(), 0);
        }
        kept
    }

    fn some(&self, dice: &mut Dice) -> Vec<u8> {
        let (share, size) = (dice.below(3), dice.below(2) == 0);
        let written: Vec<_> = self.dirty.iter().copied().filter(|_| dice.below(2) < share).collect();
        self.with(written.into_iter(), size)
    }
}

impl Bytes for Cached {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        let from = self.read.len().min(at);
        self.read.resize(self.read.len().max(end), 0);
        self.read[at..end].copy_from_slice(bytes);
        self.dirty.extend(from / PAGE..=end.saturating_sub(1) / PAGE);
    }

    fn cut(&mut self, size: usize) {
        self.read.resize(size, 0);
        self.dirty.retain(|page| page * PAGE < size);
        if !size.is_multiple_of(PAGE) {
            self.dirty.insert(size / PAGE);
        }
    }

    fn synced(&mut self) {
        self.kept = self.with(self.dirty.iter().copied(), true);
        self.dirty.clear();
    }

    /// Some pages were written, and of the others nobody knows any more that they were not.
    fn failed(&mut self, dice: &mut Dice) {
        self.kept = self.some(dice);
        self.dirty.clear();
    }
}

// --- The program -------------------------------------------------------------------------------------------------------

/// A record that one process after another works on, the library watching.
struct Watched {
    site: Site,
    library: String,
    folder: PathBuf,
    log: PathBuf,
    told: Shared,
}

/// Which sync fails: of all of a process, or of one of its files.
#[derive(Clone, Debug)]
struct Fails(u64, Option<&'static str>);

impl Watched {
    fn new() -> Self {
        let site = Site::new();
        let routes = fs::read_to_string(repository().join("routes.toml")).unwrap();
        site.write("routes.toml", &format!("{routes}\n[jurisdiction.default]\nretention = \"1d\"\n"));
        let library = library(&site, "torn").display().to_string();
        let root = fs::canonicalize(site.path("")).unwrap();
        Self { site, library, folder: root.join("kept"), log: root.join("log"), told: Shared::default() }
    }

    fn variables(&self, fails: Option<&Fails>) -> Vec<(&'static str, String)> {
        let (of, to) = (self.folder.display().to_string(), self.log.display().to_string());
        let mut variables = vec![("LD_PRELOAD", self.library.clone()), ("TORN_FOLDER", of), ("TORN_LOG", to)];
        if let Some(Fails(number, file)) = fails {
            variables.push(("TORN_FAIL", number.to_string()));
            variables.extend(file.map(|file| ("TORN_FAIL_FILE", file.to_owned())));
        }
        variables
    }

    /// `None` if the record cannot be begun, which is told.
    fn start(&self, fails: Option<&Fails>) -> Option<Sandbox> {
        self.start_later(0, fails)
    }

    fn start_later(&self, days: u32, fails: Option<&Fails>) -> Option<Sandbox> {
        let mut variables = self.variables(fails);
        variables.push(("TORN_DAYS", days.to_string()));
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let start = || Sandbox::start_with(&self.site, &variables, &["--data-dir", "kept"]);
        match catch_unwind(AssertUnwindSafe(start)) {
            Ok(sandbox) => Some(sandbox),
            Err(told) => {
                let why = told.downcast_ref::<String>().cloned().unwrap_or_default();
                assert!(fails.is_some() && why.contains("cannot"), "{why}");
                None
            }
        }
    }

    fn far(&self) -> u64 {
        fs::metadata(&self.log).unwrap().len()
    }

    /// Payments one after another. On a busy machine one is refused here and there because the disk is late.
    fn pay(&self, sandbox: &Sandbox, name: &str, payments: usize) {
        let (mut client, key) = (sandbox.client(), key(sandbox));
        for number in 0..payments {
            let user = format!("u{}", number % 3);
            let body = payment(&format!("{name}-{number}"), &user);
            let answer = client.call("POST", "/v1/risk/assessments", &key, &body).unwrap();
            match answer.status {
                200 => {
                    let id = answer.json()["id"].as_str().unwrap().to_owned();
                    self.told.lock().unwrap().given.push(Given { id, user, far: self.far() });
                }
                503 => {}
                status => panic!("{status}: {answer:?}"),
            }
        }
    }

    /// Decisions are given.
    fn heals(&self, sandbox: &Sandbox) {
        let given = || self.told.lock().unwrap().given.len();
        let (before, mut tries) = (given(), 0);
        wait_until(PATIENCE, "a decision", || {
            self.pay(sandbox, &format!("{}-{before}-{tries}", sandbox.pid()), 1);
            tries += 1;
            given() > before
        });
    }

    fn erase(&self, user: &str, fails: Option<&Fails>) {
        let mut command = weighbridge();
        command.envs(self.variables(fails)).args(["audit", "erase", "--tenant", "sandbox", "--user", user]);
        let ended = run(command.arg("--data-dir").arg(&self.folder));
        assert!(ended.code == Some(0) || fails.is_some(), "{ended:?}");
        let far = if ended.code == Some(0) { self.far() } else { u64::MAX };
        self.told.lock().unwrap().forgotten(far, |given| given.user == user);
    }

    /// Days have passed: whatever was given is destroyed on schedule, or that fails. Whoever is patient sees it tried again,
    /// and taken out of the log.
    fn destroys(&self, sandbox: &Sandbox, patient: bool) {
        let said = |what| sandbox.log().contains(what);
        let (done, failed) = ("keys whose time was over are destroyed", "keys whose time is over cannot be destroyed");
        wait_until(PATIENCE, "the destruction", || said(done) || !patient && said(failed));
        let far = if said(done) { self.far() } else { u64::MAX };
        self.told.lock().unwrap().forgotten(far, |_| true);
        let log = self.folder.join("decisions.db-wal");
        let emptied = || fs::metadata(&log).is_ok_and(|log| log.len() == 0);
        wait_until(PATIENCE, "the log's end", || emptied() || !patient && said(failed));
    }

    /// Whether a sync failed, and how many moments after it were looked at: every decision given by then is there once.
    fn looked(&self, moments: usize, dice: &mut Dice) -> Result<Option<usize>, String> {
        let log = fs::read(&self.log).unwrap();
        let steps = steps(&log);
        let Some(failed) = steps.iter().position(|(_, step)| matches!(step, Step::SyncFailed { .. })) else {
            return Ok(None);
        };
        let (mut disk, mut looks) = (Disk::<Cached>::empty(), 0);
        let told = self.told.lock().unwrap();
        let made_up = self.folder.with_file_name("made-up");
        let every = (steps.len() - failed) / moments.max(1) + 1;
        for (number, (far, step)) in steps.iter().enumerate() {
            disk.take(step, dice);
            let last = number + 1 == steps.len();
            // A moment at which everything that was given is synced is worth a look, too.
            if number >= failed && (last || number == failed || dice.below(every) == 0) {
                lay(&made_up, &disk.after(dice, Cached::some));
                looks += 1;
                looked_at(&made_up, &told, *far)
                    .map_err(|wrong| format!("after step {number} of {} ({failed} failed): {wrong}", steps.len()))?;
            }
        }
        self.model_reads_what_programs_read(&disk);
        Ok(Some(looks))
    }

    /// Or the model has missed something that was written.
    fn model_reads_what_programs_read(&self, disk: &Disk<Cached>) {
        let entries = fs::read_dir(&self.folder).unwrap().map(Result::unwrap);
        for entry in entries.filter(|entry| !entry.file_name().to_string_lossy().ends_with("-shm")) {
            let name = entry.file_name().into_string().unwrap();
            let Some(file) = disk.named(&name) else { panic!("{name} is there and was not seen to be made") };
            assert_eq!(file.inode, entry.metadata().unwrap().ino(), "{name}");
            assert!(file.bytes.read == fs::read(entry.path()).unwrap(), "{name} was written to unseen");
        }
    }
}

/// In which of the processes it fails.
#[derive(Clone, Copy, PartialEq, Debug)]
enum In {
    First,
    Erase,
    Second,
}

/// Later than anything is kept that is given today.
const DAYS: u32 = 3;

/// The first process is killed or ended, another one goes on days later.
fn lived(which: In, fails: &Fails, ends: &str, patient: bool) -> Watched {
    let watched = Watched::new();
    let at = |process| (process == which).then_some(fails);
    let first = watched.start(at(In::First)).or_else(|| watched.start(None)).unwrap();
    watched.pay(&first, "A", 5);
    watched.erase("u1", at(In::Erase));
    watched.pay(&first, "B", 5);
    watched.heals(&first);
    first.signal(ends);
    first.ended(PATIENCE);
    let second = watched.start_later(DAYS, at(In::Second)).or_else(|| watched.start_later(DAYS, None)).unwrap();
    watched.destroys(&second, patient);
    watched.pay(&second, "C", 5);
    watched.heals(&second);
    second.signal("KILL");
    second.ended(PATIENCE);
    watched
}

/// Moments after a failure that are looked at.
const FEW: usize = 8;
const MANY: usize = 24;

/// How many syncs failed, and how many disks were looked at.
struct Count {
    dice: Dice,
    moments: usize,
    syncs: usize,
    disks: usize,
}

impl Count {
    fn new(seed: u64, moments: usize) -> Self {
        Self { dice: Dice(seed), moments, syncs: 0, disks: 0 }
    }

    /// Whether there is such a sync.
    fn fail(&mut self, which: In, number: u64, ends: &str) -> bool {
        let drawn = self.dice.0;
        // A destruction that failed is tried again after a minute.
        let watched = lived(which, &Fails(number, None), ends, self.moments > FEW && ends == "KILL");
        let looked = watched.looked(self.moments, &mut self.dice);
        let looked =
            looked.unwrap_or_else(|wrong| panic!("dice {drawn}, sync {number} in {which:?}, ended by {ends}: {wrong}"));
        self.syncs += usize::from(looked.is_some());
        self.disks += looked.unwrap_or_default();
        looked.is_some()
    }

    /// All of them, one after the other.
    fn all(&mut self, ends: &str) {
        for which in [In::First, In::Erase, In::Second] {
            let most = (1..).take_while(|number| self.fail(which, *number, ends)).count();
            assert!(most > 1, "{which:?}, {ends}");
            println!("{which:?}, ended by {ends}: each of {most} syncs failed");
        }
    }

    fn told(&self) {
        println!("{} syncs failed, each in a record of its own; {} disks were looked at", self.syncs, self.disks);
        assert!(self.syncs > 1);
    }
}

#[test]
fn row_25_whichever_sync_fails_and_then_the_power_every_decision_that_was_given_is_there() {
    let seed = number("WEIGHBRIDGE_SYNCS_SEED", 1);
    if std::env::var("WEIGHBRIDGE_SYNCS").is_ok_and(|how| how == "all") {
        return thread::scope(|scope| {
            for ends in ["KILL", "TERM"] {
                scope.spawn(move || {
                    let mut count = Count::new(seed, MANY);
                    count.all(ends);
                    count.told();
                });
            }
        });
    }
    let (mut count, mut draw) = (Count::new(seed, FEW), Dice(seed));
    for round in 0..number("WEIGHBRIDGE_SYNCS", 6) {
        let (which, most) = [(In::First, 25), (In::Second, 15), (In::First, 25), (In::Erase, 5)][round as usize % 4];
        count.fail(which, 1 + draw.below(most) as u64, ["KILL", "TERM"][draw.below(2)]);
    }
    count.told();
}

#[test]
fn row_25_a_destruction_on_schedule_whose_sync_fails_takes_nothing_that_was_given_and_is_not_said_to_be_done() {
    // The first thing that is written to the log days later.
    let watched = lived(In::Second, &Fails(1, Some("decisions.db-wal")), "KILL", false);
    assert!(watched.told.lock().unwrap().gone.iter().any(|(_, far)| *far == u64::MAX), "it failed");
    let third = watched.start_later(DAYS, None).unwrap();
    watched.heals(&third);
    third.signal("KILL");
    third.ended(PATIENCE);
    let looked = watched.looked(FEW, &mut Dice(1)).unwrap();
    assert!(looked.is_some_and(|disks| disks > 1), "{looked:?}");
    let verified = audit(&watched.folder, &["verify"]);
    // Those of u0, u1 and u2, and the one that u1 had before being erased.
    assert!(verified.out.contains("4 keys are destroyed"), "{verified:?}");
}

/// More than the log is moved after, and in the midst of them it is.
const DECISIONS: usize = 640;

#[test]
fn row_25_a_log_that_was_moved_in_parts_survives_a_failed_sync_of_the_file() {
    let (seed, clients) = (number("WEIGHBRIDGE_SYNCS_SEED", 1), 16);
    let watched = Watched::new();
    let sandbox = watched.start(None).unwrap();
    thread::scope(|scope| {
        for client in 0..clients {
            let (watched, sandbox) = (&watched, &sandbox);
            scope.spawn(move || watched.pay(sandbox, &format!("C{client}"), DECISIONS / clients));
        }
    });
    // Moves the rest of the log, and its sync stands for the first part as well.
    watched.erase("u1", Some(&Fails(1, Some("decisions.db"))));
    let distrusted = watched.folder.join("decisions.db-distrusted");
    assert!(distrusted.exists(), "other processes are told");
    watched.erase("u2", None);
    watched.pay(&sandbox, "D", 5);
    watched.heals(&sandbox);
    sandbox.signal("KILL");
    sandbox.ended(PATIENCE);
    let looked = watched.looked(16, &mut Dice(seed));
    let looked = looked.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    println!("{looked:?} disks were looked at, {} decisions given", watched.told.lock().unwrap().given.len());
    let again = watched.start(None).unwrap();
    assert!(!distrusted.exists(), "whoever is alone with it ends it");
    watched.heals(&again);
}

#[test]
fn row_25_a_sync_that_fails_in_an_erasure_has_the_serving_process_write_its_log_once_more_before_it_decides() {
    let watched = Watched::new();
    let sandbox = watched.start(None).unwrap();
    watched.pay(&sandbox, "A", 5);
    watched.erase("u1", Some(&Fails(1, Some("decisions.db-wal"))));
    watched.pay(&sandbox, "B", 5);
    watched.heals(&sandbox);
    sandbox.signal("KILL");
    sandbox.ended(PATIENCE);
    let steps = steps(&fs::read(&watched.log).unwrap());
    let failed = steps.iter().position(|(_, step)| matches!(step, Step::SyncFailed { .. })).unwrap();
    let whole = |step: &Step| matches!(step, Step::Wrote { at: 0, bytes, name, .. } if name == "decisions.db-wal" && bytes.len() > PAGE);
    let again: Vec<_> = steps[failed..].iter().filter(|(_, step)| whole(step)).map(|(far, _)| *far).collect();
    let told = watched.told.lock().unwrap();
    let next = told.given.iter().find(|given| given.far > steps[failed].0).unwrap();
    assert!(matches!(again[..], [far] if far < next.far), "once: {again:?}, {}", next.far);
    assert!(told.gone.iter().all(|(_, far)| *far == u64::MAX), "nobody was told that it was done");
}

// --- Others who have it open -------------------------------------------------------------------------------------------

/// The number of the file that is the log, 0 if there is none.
fn log_of(folder: &Path) -> u64 {
    fs::metadata(folder.join("decisions.db-wal")).map_or(0, |about| about.ino())
}

#[test]
fn row_25_whoever_reads_after_a_failure_does_not_take_the_log_away_from_whoever_writes() {
    let watched = Watched::new();
    // One that belongs to a commit, after somebody has asked for a decision: the program reads with a connection of its own.
    let sandbox = watched.start(Some(&Fails(30, Some("decisions.db-wal")))).unwrap();
    watched.heals(&sandbox);
    let id = watched.told.lock().unwrap().given[0].id.clone();
    let asked = sandbox.client().call("GET", &format!("/v1/risk/assessments/{id}"), &key(&sandbox), "").unwrap();
    assert_eq!(asked.status, 200, "{asked:?}");
    watched.pay(&sandbox, "A", 34);
    assert!(
        fs::read(&watched.log)
            .is_ok_and(|log| steps(&log).iter().any(|(_, step)| matches!(step, Step::SyncFailed { .. })))
    );
    let before = log_of(&watched.folder);
    let verified = audit(&watched.folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    // Any program that reads takes the log away when it closes, if it takes itself for the last one.
    let reader = Connection::open(watched.folder.join("decisions.db")).unwrap();
    let all: i64 = reader.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    drop(reader);
    assert!(all > 0, "{all}");
    assert_eq!(log_of(&watched.folder), before, "it is the same log");
    watched.pay(&sandbox, "B", 4);
    watched.heals(&sandbox);
    sandbox.signal("KILL");
    sandbox.ended(PATIENCE);
    let told = watched.told.lock().unwrap();
    looked_at(&watched.folder, &told, u64::MAX).unwrap();
    assert!(fs::read_to_string(watched.folder.join(CHECKPOINTS)).is_ok_and(|text| !text.is_empty()));
}
