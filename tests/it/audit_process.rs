//! The record as operators meet it: killed processes, commands on the files, exit codes.
//!
//! `WEIGHBRIDGE_KILL_ROUNDS=200 cargo test --test it audit_process::row_26` is the long form of the kill test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weighbridge::store::query::{Verified, verify};

use crate::process::{Ended, PATIENCE, Sandbox, Site, run, wait_until, weighbridge};

pub fn audit(folder: &Path, arguments: &[&str]) -> Ended {
    let (command, rest) = arguments.split_first().unwrap();
    run(weighbridge().args(["audit", command, "--data-dir"]).arg(folder).args(rest))
}

fn start(site: &Site) -> Sandbox {
    Sandbox::start(site, &["--data-dir", "kept"])
}

pub fn payment(out_trade_no: &str, user: &str) -> String {
    json!({
        "out_trade_no": out_trade_no, "total_amount": "1.00", "currency": "CNY", "subject": "a, \"b\"",
        "merchant": { "id": "m1", "category": "food" }, "user": { "id": user, "country": "TH" },
    })
    .to_string()
}

pub fn key(sandbox: &Sandbox) -> [(String, String); 1] {
    [("authorization".to_owned(), format!("Bearer {}", sandbox.key))]
}

pub fn assess(sandbox: &Sandbox, out_trade_no: &str, user: &str) -> Value {
    let body = payment(out_trade_no, user);
    let answer = sandbox.client().call("POST", "/v1/risk/assessments", &key(sandbox), &body).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

pub fn rows(folder: &Path) -> Vec<Value> {
    let exported = audit(folder, &["export"]);
    assert_eq!((exported.code, exported.err.as_str()), (Some(0), ""), "no bar in a pipe");
    exported.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Several clients with payments of their own until the connection breaks; what each was told goes into `told`.
pub fn load(sandbox: &Sandbox, round: u64, told: &Arc<Mutex<BTreeMap<String, String>>>) -> Vec<thread::JoinHandle<()>> {
    let client = |number| {
        let (mut client, key, told) = (sandbox.client(), key(sandbox), Arc::clone(told));
        thread::spawn(move || {
            for payment_number in 0.. {
                let name = format!("R{round}-C{number}-{payment_number}");
                let body = payment(&name, &format!("u{}", payment_number % 5));
                let Ok(answer) = client.call("POST", "/v1/risk/assessments", &key, &body) else { return };
                if answer.status == 200 {
                    told.lock().unwrap().insert(name, answer.json()["id"].as_str().unwrap().to_owned());
                }
            }
        })
    };
    (0..8).map(client).collect()
}

/// As many kills of one record; the next ones are on a record of their own, so that a round takes as long as any other.
const KILLS: u64 = 25;

#[test]
fn row_26_killed_at_any_moment_every_decision_that_was_given_is_on_record_exactly_once() {
    let rounds = std::env::var("WEIGHBRIDGE_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(KILLS);
    let begun = Instant::now();
    let given: usize = (0..rounds).step_by(KILLS as usize).map(|first| killed(first..rounds.min(first + KILLS))).sum();
    println!("{rounds} kills, {given} decisions given, none missing or doubled, in {:?}", begun.elapsed());
}

/// One record, a process for each round, killed in the midst of its work; how many decisions were given.
fn killed(rounds: Range<u64>) -> usize {
    let kills = usize::try_from(rounds.end - rounds.start).unwrap();
    let site = Site::new();
    let (folder, told): (_, Arc<Mutex<BTreeMap<String, String>>>) = (site.path("kept"), Arc::default());
    for round in rounds {
        let sandbox = start(&site);
        let clients = load(&sandbox, round, &told);
        // A different moment each round, on a busy machine too.
        let before = told.lock().unwrap().len();
        wait_until(PATIENCE, "the first decisions", || told.lock().unwrap().len() >= before + 8);
        thread::sleep(Duration::from_millis(round * 2_654_435_761 % 150));
        sandbox.signal("KILL");
        clients.into_iter().for_each(|client| client.join().unwrap());
        drop(sandbox);
        let checkpoints = fs::read_to_string(folder.join("checkpoints.jsonl")).unwrap();
        let verified = verify(&folder, Some(&checkpoints), |_| ()).unwrap();
        assert!(matches!(verified, Verified::Sound(_)), "round {round}: {verified:?}");
    }
    let verified = audit(&folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    let told = told.lock().unwrap();
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows(&folder) {
        *stored.entry(row["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(told.len() >= 8 * kills, "{} decisions were given", told.len());
    for (name, id) in told.iter() {
        assert_eq!(stored.get(id), Some(&1), "{name} was given as {id}");
    }
    assert!(stored.len() <= told.len() + 8 * kills, "only what was in flight is more");
    // And the next process gives the same answers.
    let sandbox = start(&site);
    for (name, id) in told.iter().step_by(told.len().div_ceil(10)) {
        let user = format!("u{}", name.rsplit('-').next().unwrap().parse::<u64>().unwrap() % 5);
        assert_eq!(assess(&sandbox, name, &user)["id"], json!(id), "{name}");
    }
    told.len()
}

#[test]
fn the_record_is_verified_exported_and_erased_while_the_proxy_serves() {
    let site = Site::new();
    let folder = site.path("kept");
    let sandbox = start(&site);
    let first = assess(&sandbox, "T1", "u1");
    assess(&sandbox, "T2", "u2");
    let path = format!("/v1/risk/assessments/{}/outcome", first["id"].as_str().unwrap());
    let report = json!({ "label": "overturned", "by": "anna", "at": "2026-11-22T10:00:00Z" }).to_string();
    let noted = sandbox.client().call("POST", &path, &key(&sandbox), &report).unwrap();
    assert_eq!(noted.status, 201, "{noted:?}");

    let exported = rows(&folder);
    let row = exported[0].as_object().unwrap();
    let columns = "created_at seq id trace_id tenant out_trade_no merchant_id merchant_category user_id country amount \
                   currency risk_score recommendation action source model_version outcome outcome_at";
    assert_eq!(row.keys().map(String::as_str).collect::<Vec<_>>(), columns.split(' ').collect::<Vec<_>>());
    assert_eq!((&row["id"], &row["user_id"], &row["country"]), (&first["id"], &json!("u1"), &json!("TH")));
    assert_eq!((&row["outcome"], &row["outcome_at"]), (&json!("overturned"), &json!("2026-11-22T10:00:00.000Z")));
    assert_eq!((&row["risk_score"], &row["created_at"]), (&first["risk_score"], &first["created_at"]));

    let csv = audit(&folder, &["export", "--format", "csv", "--merchant", "m1", "--until", "2999-01-01"]);
    assert_eq!(csv.out.lines().next().unwrap(), columns.split_whitespace().collect::<Vec<_>>().join(","));
    assert_eq!((csv.out.lines().count(), csv.code), (3, Some(0)));
    let width = columns.split_whitespace().count();
    assert!(csv.out.lines().all(|line| line.split(',').count() == width), "{}", csv.out);
    assert_eq!(audit(&folder, &["export", "--tenant", "nobody"]).out, "");
    assert_eq!(audit(&folder, &["export", "--since", "2999-01-01"]).out, "");

    let erased = audit(&folder, &["erase", "--tenant", "sandbox", "--user", "u1"]);
    assert_eq!(erased.code, Some(0), "{}", erased.err);
    assert_eq!(audit(&folder, &["erase", "--tenant", "sandbox", "--user", "u1"]).code, Some(1));
    let exported = rows(&folder);
    assert_eq!((&exported[0]["user_id"], &exported[0]["country"]), (&Value::Null, &Value::Null));
    assert_eq!((&exported[0]["outcome"], &exported[1]["user_id"]), (&json!("overturned"), &json!("u2")));
    // The person pays again, and is known again from here on.
    assess(&sandbox, "T3", "u1");
    assert_eq!(rows(&folder)[2]["user_id"], "u1");
    let verified = audit(&folder, &["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    assert!(verified.out.starts_with("5 records, all as they were written"), "{}", verified.out);

    sandbox.signal("TERM");
    assert!(sandbox.ended(Duration::from_secs(10)).0.success());
    let copy = site.path("checkpoints.copy");
    fs::copy(folder.join("checkpoints.jsonl"), &copy).unwrap();
    let db = rusqlite::Connection::open(folder.join("decisions.db")).unwrap();
    db.execute("DELETE FROM records WHERE seq = 5", []).unwrap();
    let cut = audit(&folder, &["verify", "--checkpoint", copy.to_str().unwrap()]);
    assert_eq!(cut.code, Some(1));
    assert!(cut.err.contains("record 5 and all after it"), "{}", cut.err);
    db.execute("UPDATE records SET tenant = 'other' WHERE seq = 2", []).unwrap();
    let changed = audit(&folder, &["verify"]);
    assert_eq!((changed.code, changed.err.contains("record 2 was changed")), (Some(1), true), "{}", changed.err);
}

#[test]
fn commands_without_a_record_say_so() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["verify"][..], &["export"], &["erase", "--tenant", "t", "--user", "u"]] {
        let ended = audit(folder.path(), command);
        assert_eq!(ended.code, Some(1), "{command:?}");
        assert!(ended.err.contains("there is no decisions.db"), "{}", ended.err);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "and leave nothing behind");
    let bad = audit(folder.path(), &["export", "--since", "yesterday"]);
    assert_eq!(bad.code, Some(2), "{}", bad.err);
}

#[test]
fn checkpoints_go_where_they_are_told_to() {
    let site = Site::new();
    let elsewhere = site.path("elsewhere.jsonl");
    let sandbox = Sandbox::start(&site, &["--data-dir", "kept", "--audit-checkpoints", elsewhere.to_str().unwrap()]);
    assess(&sandbox, "T1", "u1");
    sandbox.signal("TERM");
    assert!(sandbox.ended(Duration::from_secs(10)).0.success());
    assert!(!site.path("kept").join("checkpoints.jsonl").exists());
    let verified = audit(&site.path("kept"), &["verify", "--checkpoint", elsewhere.to_str().unwrap()]);
    assert!(verified.out.contains("a checkpoint vouches for those up to 1"), "{verified:?}");
    let alone = audit(&site.path("kept"), &["verify"]);
    assert!(alone.out.contains("a cut tail would not show"), "{alone:?}");
}

#[test]
fn a_sandbox_that_is_told_nothing_records_in_a_folder_that_is_gone_afterwards() {
    let (site, temporary) = (Site::new(), tempfile::tempdir().unwrap());
    let variables = [("TMPDIR", temporary.path().to_str().unwrap())];
    let sandbox = Sandbox::start_with(&site, &variables, &[]);
    let decided = assess(&sandbox, "T1", "u1");
    let path = format!("/v1/risk/assessments/{}", decided["id"].as_str().unwrap());
    assert_eq!(sandbox.client().call("GET", &path, &key(&sandbox), "").unwrap().json(), decided);
    let made: BTreeSet<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    sandbox.signal("TERM");
    assert!(sandbox.ended(Duration::from_secs(10)).0.success());
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}
