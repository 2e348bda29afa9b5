//! The power goes: what was not synced to the disk is gone, names of files included. Needs a C compiler, as the build does.
//!
//! A small library beside this file (`power_loss.c`) keeps what a disk would have; it is loaded into the real program.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::audit_process::{audit, load, rows};
use crate::made_up::library;
use crate::process::{PATIENCE, Sandbox, Site, wait_until};

/// Makes `folder` what the disk had: files with a durable name, with the bytes of their last sync.
fn lose_power(folder: &Path, kept: &Path) {
    let names = fs::read_to_string(kept.join("names")).unwrap_or_default();
    fs::remove_dir_all(folder).unwrap();
    fs::create_dir(folder).unwrap();
    for line in names.lines() {
        let (inode, name) = line.split_once(' ').unwrap();
        // A file that was made and never synced is there and empty.
        let bytes = fs::read(kept.join(inode)).unwrap_or_default();
        fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn row_27_when_the_power_goes_every_decision_that_was_given_is_on_the_disk() {
    let rounds = std::env::var("WEIGHBRIDGE_LOSS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(4);
    let site = Site::new();
    let (library, folder) = (library(&site, "power_loss").display().to_string(), site.path("kept"));
    let told: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    for round in 0..rounds {
        let kept = site.path(&format!("disk-{round}"));
        fs::create_dir(&kept).unwrap();
        let (of, to) = (folder.display().to_string(), kept.display().to_string());
        let variables = [("LD_PRELOAD", library.as_str()), ("LOSS_FOLDER", of.as_str()), ("LOSS_KEPT", to.as_str())];
        let sandbox = Sandbox::start_with(&site, &variables, &["--data-dir", "kept"]);
        let clients = load(&sandbox, round, &told);
        let before = told.lock().unwrap().len();
        wait_until(PATIENCE, "the first decisions", || told.lock().unwrap().len() >= before + 8);
        thread::sleep(Duration::from_millis(round * 2_654_435_761 % 400));
        sandbox.signal("KILL");
        clients.into_iter().for_each(|client| client.join().unwrap());
        drop(sandbox);
        let lying: u64 = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        lose_power(&folder, &kept);
        let left: u64 = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        // What a round begins with is on the disk, the shared memory that `verify` left behind too.
        assert!(left < lying || round > 0, "the log's shared memory at least is never synced: {left} of {lying} bytes");
        let verified = audit(&folder, &["verify"]);
        assert_eq!(verified.code, Some(0), "round {round}: {}", verified.err);
    }
    let told = told.lock().unwrap();
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows(&folder) {
        let id = row.get("id").and_then(Value::as_str).unwrap();
        *stored.entry(id.to_owned()).or_default() += 1;
    }
    assert!(told.len() > 20, "{} decisions were given", told.len());
    for (name, id) in told.iter() {
        assert_eq!(stored.get(id), Some(&1), "{name} was given as {id}");
    }
}
