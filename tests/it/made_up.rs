//! The disk of a record as a loss of power may leave it: what the real program did to its data folder, taken down by a small
//! library beside this file (`torn.c`), is done again to a disk that is made up. Names change in order, and surely only with
//! the folder's own sync; what becomes of a file's bytes is the [`Bytes`] of whoever asks.
//!
//! What must hold then is here too ([`looked_at`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weighbridge::store::query::{Reader, Verified, Wanted, verify};
use weighbridge::store::writer::{CHECKPOINTS, Faults, Records, RecordsConfig, Watch};

use crate::process::{Site, repository};

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

/// One file: what programs read, and what the disk has of it.
pub trait Bytes: Default {
    fn write(&mut self, at: usize, bytes: &[u8]);
    fn cut(&mut self, size: usize);
    fn synced(&mut self);
    /// A sync of it failed.
    fn failed(&mut self, dice: &mut Dice);
}

pub struct File<B> {
    pub inode: u64,
    pub bytes: B,
}

type Names = BTreeMap<String, usize>;

pub struct Disk<B> {
    files: Vec<File<B>>,
    /// As programs see them,
    names: Names,
    /// as they were when the folder was last synced,
    durable: Names,
    /// and what each change since has made of them.
    loose: Vec<Names>,
}

impl<B: Bytes> Disk<B> {
    /// There is nothing on it.
    pub fn empty() -> Self {
        Self { files: Vec::new(), names: Names::new(), durable: Names::new(), loose: Vec::new() }
    }

    /// Whatever is in the folder is on the disk.
    pub fn of(folder: &Path) -> Self {
        let mut disk = Self::empty();
        let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
        for entry in entries.filter(|entry| entry.file_type().unwrap().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            if !name.ends_with("-shm") {
                let mut bytes = B::default();
                bytes.write(0, &fs::read(entry.path()).unwrap());
                bytes.synced();
                disk.names.insert(name, disk.files.len());
                disk.files.push(File { inode: entry.metadata().unwrap().ino(), bytes });
            }
        }
        disk.durable = disk.names.clone();
        disk
    }

    /// The file that programs know by this name.
    pub fn named(&self, name: &str) -> Option<&File<B>> {
        self.names.get(name).map(|file| &self.files[*file])
    }

    fn rename(&mut self, change: impl FnOnce(&mut Names)) {
        change(&mut self.names);
        self.loose.push(self.names.clone());
    }

    /// The file of that number. The number of one that is gone may be another's.
    fn file(&mut self, inode: u64, name: &str) -> &mut B {
        let is = |file: &&usize| self.files[**file].inode == inode;
        let known = self.names.get(name).filter(is).or_else(|| self.names.values().find(is)).copied();
        let file = known.unwrap_or_else(|| {
            self.files.push(File { inode, bytes: B::default() });
            let fresh = self.files.len() - 1;
            self.rename(|names| {
                names.insert(name.to_owned(), fresh);
            });
            fresh
        });
        &mut self.files[file].bytes
    }

    pub fn take(&mut self, step: &Step, dice: &mut Dice) {
        match step {
            Step::Made { inode, name } => self.file(*inode, name).cut(0),
            Step::Wrote { inode, at, bytes, name } => self.file(*inode, name).write(*at, bytes),
            Step::Cut { inode, size, name } => self.file(*inode, name).cut(*size),
            Step::Synced { inode, name } => self.file(*inode, name).synced(),
            // Names are in the journal of the file system, which stops for good when it cannot be written.
            Step::SyncFailed { name, .. } if name == "." => {}
            Step::SyncFailed { inode, name } => self.file(*inode, name).failed(dice),
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

    /// What may be there when the power comes back; `left` says what of each file.
    pub fn after(&self, dice: &mut Dice, mut left: impl FnMut(&B, &mut Dice) -> Vec<u8>) -> BTreeMap<String, Vec<u8>> {
        let changes = dice.below(self.loose.len() + 1);
        let names = changes.checked_sub(1).map_or(&self.durable, |last| &self.loose[last]);
        let left: Vec<_> = self.files.iter().map(|file| left(&file.bytes, dice)).collect();
        names.iter().map(|(name, file)| (name.clone(), left[*file].clone())).collect()
    }
}

/// Makes a folder what the disk is.
pub fn lay(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

// --- What is drawn -----------------------------------------------------------------------------------------------------

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

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

// --- What must hold ----------------------------------------------------------------------------------------------------

/// A decision that a client was given.
pub struct Given {
    pub id: String,
    pub user: String,
    /// How far the log was then.
    pub far: u64,
}

/// Everything that somebody outside was told.
#[derive(Default)]
pub struct Told {
    pub given: Vec<Given>,
    /// Decisions of which nobody can read any more whom they are about, and how far the log was when that was said; where it
    /// was asked for and not said that it was done, the end of all logs.
    pub gone: Vec<(String, u64)>,
}

pub type Shared = Arc<Mutex<Told>>;

impl Told {
    /// Of these persons nobody can read any more what was given by then.
    pub fn forgotten(&mut self, far: u64, of: impl Fn(&Given) -> bool) {
        self.gone.extend(self.given.iter().filter(|given| of(given)).map(|given| (given.id.clone(), far)));
    }
}

struct Deaf;

impl Watch for Deaf {
    fn waiting(&self, _: i64) {}
    fn committed(&self, _: Duration) {}
}

/// Begins as the program does, and says what is not as it must be: every decision that was given when the log was so far is
/// there once, and of nobody who was forgotten by then can anything be read.
pub fn looked_at(folder: &Path, told: &Told, far: u64) -> Result<(), String> {
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
    let (mut stored, mut readable) = (BTreeMap::<String, usize>::new(), BTreeSet::new());
    let walked = Reader::open(folder).and_then(|reader| {
        reader.walk(&Wanted::default(), |row, _| {
            if let Some(row) = row {
                *stored.entry(row.id.clone()).or_default() += 1;
                readable.extend(row.personal.as_ref().map(|_| row.id.clone()));
            }
            Ok(())
        })
    });
    walked.map_err(|error| format!("it cannot be read: {error:?}"))?;
    let by_then = |given: &&Given| given.far <= far;
    let missing = told.given.iter().filter(by_then).filter(|given| stored.get(&given.id) != Some(&1)).count();
    if missing > 0 {
        return Err(format!("{missing} of {} decisions are not there once", told.given.len()));
    }
    let back = told.gone.iter().filter(|(id, then)| *then <= far && readable.contains(id)).count();
    if back > 0 {
        return Err(format!("{back} of {} decisions can be read again", told.gone.len()));
    }
    let (ever, all) = (told.gone.iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), told.given.iter());
    let lost = all.filter(by_then).filter(|given| !ever.contains(&given.id) && !readable.contains(&given.id)).count();
    if lost == 0 { Ok(()) } else { Err(format!("{lost} decisions cannot be read though nobody was forgotten")) }
}

// --- The library -------------------------------------------------------------------------------------------------------

/// Builds the library of that name, which is loaded into the program. Needs a C compiler, as the build does.
pub fn library(site: &Site, name: &str) -> PathBuf {
    let (built, source) = (site.path(&format!("{name}.so")), repository().join(format!("tests/it/{name}.c")));
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).arg("-ldl").status();
    assert!(status.is_ok_and(|status| status.success()), "a C compiler is needed: apt-get install gcc");
    built
}
