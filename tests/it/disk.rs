//! The record on disks that really fail: the built program, a full file system, a sync that the system says has failed.
//!
//! Faults of the disk are made by libfiu under the program and by a small file system that is really full, so nothing in the
//! program knows that it is being tried. A tool that is missing is a failure that says how to get it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::audit_process::{audit, key, payment, rows};
use crate::process::{Answer, PATIENCE, Sandbox, Site, Traffic, repository, run, wait_until, weighbridge};

/// What clients were told.
#[derive(Default)]
struct Told {
    /// Decisions by payment.
    given: BTreeMap<String, String>,
    /// Payments that got a 503.
    refused: BTreeSet<String>,
}

/// Several clients with payments of their own, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(sandbox: &Sandbox, clients: usize) -> Self {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Told>>::default());
        let client = |number| {
            let (mut client, key, stop, told) = (sandbox.client(), key(sandbox), Arc::clone(&stop), Arc::clone(&told));
            thread::spawn(move || {
                for payment_number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("C{number}-{payment_number}");
                    let body = payment(&name, &format!("u{}", payment_number % 5));
                    let answer = client.call("POST", "/v1/risk/assessments", &key, &body).unwrap();
                    note(&mut told.lock().unwrap(), name, &answer);
                }
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, told, clients }
    }

    fn given(&self) -> usize {
        self.told.lock().unwrap().given.len()
    }

    fn refused(&self) -> usize {
        self.told.lock().unwrap().refused.len()
    }

    fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

fn note(told: &mut Told, name: String, answer: &Answer) {
    if answer.status == 200 {
        told.given.insert(name, answer.json()["id"].as_str().unwrap().to_owned());
    } else {
        unavailable(answer);
        told.refused.insert(name);
    }
}

fn unavailable(answer: &Answer) {
    let content = answer.header("content-type");
    assert_eq!((answer.status, content), (503, Some("application/problem+json")), "{answer:?}");
    assert!(answer.json()["detail"].as_str().unwrap().starts_with("audit_unavailable"), "{answer:?}");
}

fn assess(sandbox: &Sandbox, name: &str) -> Answer {
    sandbox.client().call("POST", "/v1/risk/assessments", &key(sandbox), &payment(name, "u1")).unwrap()
}

fn stored(folder: &Path) -> BTreeMap<String, usize> {
    let mut stored = BTreeMap::new();
    for row in rows(folder) {
        *stored.entry(row["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    stored
}

/// Every decision that was given is on record once, and the chain holds.
fn sound(folder: &Path, told: &Told) {
    let stored = stored(folder);
    for (name, id) in &told.given {
        assert_eq!(stored.get(id), Some(&1), "{name} was given as {id}");
    }
    assert!(stored.values().all(|times| *times == 1));
    let verified = audit(folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}

/// What the gaps of a record say is not in it.
fn missing(folder: &Path) -> u64 {
    let db = Connection::open(folder.join("decisions.db")).unwrap();
    let mut statement = db.prepare("SELECT body FROM records WHERE kind = 'gap'").unwrap();
    let bodies = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    let entries =
        bodies.map(|body| serde_json::from_slice::<Value>(&body.unwrap()).unwrap()["entries"].as_u64().unwrap());
    entries.sum()
}

// --- A sync that fails -------------------------------------------------------------------------------------------------

const SYNCS: [&str; 2] = ["posix/io/sync/fsync", "posix/io/sync/fdatasync"];
/// EIO.
const FAILURE: &str = "failinfo=5";

/// The program under libfiu, with these faults from the beginning.
fn under_faults(site: &Site, faults: &[&str]) -> Command {
    let there = Command::new("sh").args(["-c", "command -v fiu-run && command -v fiu-ctrl"]).output().unwrap();
    assert!(there.status.success(), "this test needs libfiu: apt-get install fiu-utils");
    let program = weighbridge();
    let mut command = Command::new("fiu-run");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    command.arg("-x").arg("-f").arg(site.path("fiu"));
    for fault in faults {
        command.args(["-c", fault]);
    }
    command.arg(program.get_program());
    command
}

/// Tells the running program's libfiu.
fn control(site: &Site, sandbox: &Sandbox, commands: &[String]) {
    let mut control = Command::new("fiu-ctrl");
    control.arg("-f").arg(site.path("fiu"));
    for command in commands {
        control.args(["-c", command]);
    }
    let told = control.arg(sandbox.pid().to_string()).output().unwrap();
    assert!(told.status.success(), "{told:?}");
}

#[test]
fn row_25_under_syncs_that_fail_one_time_in_five_no_decision_that_was_given_is_missing() {
    let site = Site::new();
    let folder = site.path("kept");
    let sandbox = Sandbox::start_by(under_faults(&site, &[]), &site, &["--data-dir", "kept"]);
    let (chats, load) = (Traffic::start(&sandbox, 2), Load::start(&sandbox, 8));
    wait_until(PATIENCE, "the first decisions", || load.given() >= 8);
    let failing = "decisions cannot be recorded, each further one is tried again";
    assert!(!sandbox.log().contains(failing), "{}", sandbox.log());

    let sometimes = SYNCS.map(|name| format!("enable_random name={name},probability=0.2,{FAILURE}"));
    control(&site, &sandbox, &sometimes);
    // Each decision is tried twice: of many, some fail both times.
    let limit = Duration::from_secs(40);
    wait_until(limit, "decisions that were refused, so faults were really injected", || load.refused() >= 3);
    wait_until(PATIENCE, "the log to say that it is the disk that fails", || sandbox.log().contains(failing));
    let given = load.given();
    wait_until(limit, "decisions in between", || load.given() >= given + 20);

    control(&site, &sandbox, &SYNCS.map(|name| format!("enable name={name},{FAILURE}")));
    let refused = load.refused();
    wait_until(limit, "nothing but refusals", || load.refused() >= refused + 16);
    unavailable(&assess(&sandbox, "alone"));
    assert!(sandbox.metric("weighbridge_audit_unrecorded_total{result=\"refused\"}") >= 17.0);

    control(&site, &sandbox, &SYNCS.map(|name| format!("disable name={name}")));
    wait_until(PATIENCE, "the record to heal", || assess(&sandbox, "alone").status == 200);
    let (given, refused) = (load.given(), load.refused());
    wait_until(limit, "decisions after it", || load.given() >= given + 20);
    let told = load.end();
    assert!(told.refused.len() <= refused + 8, "only what was on its way may still have been refused");
    chats.all_answered();
    // What was refused can be asked for again and is decided once.
    let mut told = told;
    for name in told.refused.clone().iter().take(5) {
        let number: u64 = name.rsplit('-').next().unwrap().parse().unwrap();
        let body = payment(name, &format!("u{}", number % 5));
        let again = sandbox.client().call("POST", "/v1/risk/assessments", &key(&sandbox), &body).unwrap();
        note(&mut told, name.clone(), &again);
        assert!(told.given.contains_key(name));
    }
    sandbox.signal("TERM");
    let (status, log) = sandbox.ended(PATIENCE);
    assert!(status.success() && log.contains("decisions can be recorded again"), "{log}");
    sound(&folder, &told);
    println!("{} decisions were given, {} refused", told.given.len(), told.refused.len());
}

#[test]
fn row_25_a_record_that_cannot_be_begun_is_told_at_the_start() {
    let site = Site::new();
    let faults = SYNCS.map(|name| format!("enable name={name},{FAILURE}"));
    let mut command = under_faults(&site, &faults.each_ref().map(String::as_str));
    command.current_dir(site.path("")).args(["sandbox", "--data-dir", "kept", "--listen", "127.0.0.1:0"]);
    let ended = run(command.args(["--admin-listen", "127.0.0.1:0"]));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("decisions cannot be recorded"), "{ended:?}");
}

// --- A disk that is full -----------------------------------------------------------------------------------------------

/// A file system of a few MiB of its own, gone when dropped.
struct Disk {
    folder: PathBuf,
    _image: tempfile::TempDir,
}

impl Disk {
    const SIZE: &str = "12m";

    fn new() -> Self {
        let image = tempfile::tempdir().unwrap();
        let (file, folder) = (image.path().join("disk"), image.path().join("mounted"));
        fs::create_dir(&folder).unwrap();
        let owner = fs::metadata(&folder).unwrap();
        let owner = format!("root_owner={}:{}", owner.uid(), owner.gid());
        let mut made = Command::new("mke2fs");
        made.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", &owner]).arg(&file).arg(Self::SIZE);
        let ext4 = made.output().is_ok_and(|made| made.status.success())
            && mount(&["-o", "loop"], file.to_str().unwrap(), &folder);
        if ext4 {
            println!("the full disk is an ext4 of {} on a loop device", Self::SIZE);
        } else {
            let size = format!("size={},mode=0777", Self::SIZE);
            assert!(
                mount(&["-t", "tmpfs", "-o", &size], "tmpfs", &folder),
                "this test fills up a file system of its own and may mount none: run it as root or with sudo"
            );
            println!("the full disk is a tmpfs of {}: no loop device may be mounted", Self::SIZE);
        }
        Self { folder, _image: image }
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let filler = self.folder.join("filler");
        let room = |bytes: usize| {
            fs::OpenOptions::new().append(true).create(true).open(&filler).and_then(|mut file| {
                std::io::Write::write_all(&mut file, &vec![0x5a; bytes])?;
                file.sync_all()
            })
        };
        for bytes in [1 << 16, 1 << 12, 1] {
            while room(bytes).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.folder.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = as_root("umount", &["-l", self.folder.to_str().unwrap()]);
    }
}

fn mount(options: &[&str], what: &str, folder: &Path) -> bool {
    as_root("mount", &[options, &[what, folder.to_str().unwrap()]].concat())
}

fn as_root(command: &str, arguments: &[&str]) -> bool {
    let tried = |command: &mut Command| command.output().is_ok_and(|done| done.status.success());
    tried(Command::new(command).args(arguments)) || tried(Command::new("sudo").args(["-n", command]).args(arguments))
}

#[test]
fn row_24_on_a_disk_that_is_full_risk_is_refused_llm_goes_on_and_it_heals_by_itself() {
    let (site, disk) = (Site::new(), Disk::new());
    let folder = disk.folder.join("kept");
    let sandbox = Sandbox::start(&site, &["--data-dir", folder.to_str().unwrap()]);
    let (chats, load) = (Traffic::start(&sandbox, 2), Load::start(&sandbox, 4));
    wait_until(PATIENCE, "the first decisions", || load.given() >= 20);
    disk.fill();
    wait_until(PATIENCE, "refusals", || load.refused() >= 40);
    unavailable(&assess(&sandbox, "alone"));
    let chat = sandbox.chat("sandbox/steady", &json!({}));
    assert_eq!(chat.status, 200, "{chat:?}");
    assert_eq!(sandbox.admin_get("/status.json").status, 200);

    let given = load.given();
    disk.free();
    wait_until(PATIENCE, "the record to heal", || assess(&sandbox, "alone").status == 200);
    wait_until(PATIENCE, "decisions after it", || load.given() >= given + 20);
    let told = load.end();
    chats.all_answered();
    sandbox.signal("TERM");
    assert!(sandbox.ended(PATIENCE).0.success());
    sound(&folder, &told);
    println!("{} decisions were given, {} refused", told.given.len(), told.refused.len());
}

#[test]
fn row_24_where_decisions_go_on_without_a_record_it_says_afterwards_how_many() {
    let (site, disk) = (Site::new(), Disk::new());
    let folder = disk.folder.join("kept");
    let text = fs::read_to_string(repository().join("routes.toml")).unwrap();
    assert!(text.contains("audit = \"refuse\""));
    site.write("routes.toml", &text.replace("audit = \"refuse\"", "audit = \"continue\""));
    let sandbox = Sandbox::start(&site, &["--data-dir", folder.to_str().unwrap()]);
    let mut told = Told::default();
    let mut decide = |names: std::ops::Range<u32>| {
        for number in names {
            let name = format!("T{number}");
            note(&mut told, name.clone(), &assess(&sandbox, &name));
        }
    };
    decide(0..20);
    disk.fill();
    decide(20..120);
    disk.free();
    decide(120..140);
    let unrecorded = sandbox.metric("weighbridge_audit_unrecorded_total{result=\"continued\"}");
    sandbox.signal("TERM");
    assert!(sandbox.ended(PATIENCE).0.success());
    assert_eq!((told.given.len(), told.refused.len()), (140, 0), "every one was decided");
    let stored = stored(&folder);
    let lost = told.given.values().filter(|id| !stored.contains_key(*id)).count();
    // Some still fit into pages that are there already.
    assert!((50..=100).contains(&lost), "{lost}");
    assert_eq!((missing(&folder), unrecorded), (lost as u64, lost as f64));
    let verified = audit(&folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
}
