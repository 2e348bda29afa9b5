//! What is due goes, on its day and no sooner; what is not stays; the chain says so.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use tempfile::TempDir;

use super::super::book::{self, Recorded};
use super::super::chain::Wrong;
use super::super::db::FILE;
use super::super::keys::Keys;
use super::super::query::{Reader, Stored, Verified, Wanted, verify};
use super::super::record::{Entry, OutcomeBody};
use super::super::refusal::Refused;
use super::super::testing::{assessment, decision, kept, told};
use super::super::writer::{CHECKPOINTS, Faults, Records, RecordsConfig, Watch};
use super::*;
use crate::domain::clock;
use crate::domain::decision::{Decision, FallbackReason};
use crate::domain::policy::Applied;
use crate::domain::retention::{Keeping, Redact, Withheld};

#[derive(Default)]
struct Counting(AtomicU64);

impl Watch for Counting {
    fn waiting(&self, _: i64) {}
    fn committed(&self, _: Duration) {}
    fn expired(&self, keys: u64) {
        self.0.fetch_add(keys, Ordering::SeqCst);
    }
}

struct Site {
    folder: TempDir,
    records: Records,
    faults: Faults,
    watch: Arc<Counting>,
    added: usize,
}

impl Site {
    fn new() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    fn of(folder: TempDir) -> Self {
        let (faults, watch) = (Faults::default(), Arc::new(Counting::default()));
        let records = Records::open(RecordsConfig {
            folder: folder.path().to_owned(),
            checkpoints: None,
            watch: Arc::clone(&watch) as Arc<dyn Watch>,
            faults: faults.clone(),
        });
        Self { folder, records: records.unwrap(), faults, watch, added: 0 }
    }

    /// A decision of today for that person, to be kept so many days.
    async fn decide(&mut self, user: &str, days: Option<u32>) -> String {
        self.added += 1;
        let decision = Decision { created_at_ms: clock::unix_ms(), ..decision(self.added) };
        let keeping = Keeping { days, ..Keeping::default() };
        self.records.add(kept(&assessment(user, self.added), &decision, keeping)).await.unwrap();
        decision.id.as_str().to_owned()
    }

    /// Lets days pass, and the writer look at them.
    async fn later(&mut self, days: u32) {
        self.faults.days_later(days);
        for _ in 0..3 {
            self.decide("somebody else", None).await;
        }
    }

    fn user(&self, id: &str) -> Option<String> {
        let stored = self.records.reader().unwrap().decision("shop-eu", id).unwrap().unwrap();
        stored.personal.map(|personal| personal.user_id)
    }

    async fn stop(self) -> TempDir {
        let records = self.records;
        tokio::task::spawn_blocking(move || records.stop()).await.unwrap();
        self.folder
    }
}

fn verified(folder: &Path) -> Verified {
    let checkpoints = fs::read_to_string(folder.join(CHECKPOINTS)).unwrap();
    verify(folder, Some(&checkpoints), |_| ()).unwrap()
}

fn sound(folder: &Path) -> super::super::chain::Proof {
    match verified(folder) {
        Verified::Sound(proof) => proof,
        Verified::Bad(finding) => panic!("{finding}"),
    }
}

fn bodies(folder: &Path, kind: &str) -> Vec<serde_json::Value> {
    let db = Connection::open(folder.join(FILE)).unwrap();
    let mut statement = db.prepare("SELECT body FROM records WHERE kind = ?1 ORDER BY seq").unwrap();
    let bodies = statement.query_map([kind], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    bodies.map(|body| serde_json::from_slice(&body.unwrap()).unwrap()).collect()
}

fn count(folder: &Path, what: &str) -> i64 {
    let db = Connection::open(folder.join(FILE)).unwrap();
    db.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
}

fn holds(folder: &Path, bytes: &[u8]) -> bool {
    let files = fs::read_dir(folder).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    files.into_iter().any(|file| file.windows(bytes.len()).any(|window| window == bytes))
}

#[tokio::test]
async fn a_record_is_unreadable_after_its_day_and_others_are_not() {
    let mut site = Site::new();
    let short = site.decide("u-1", Some(1)).await;
    let long = site.decide("u-1", Some(30)).await;
    let other = site.decide("u-2", Some(2)).await;
    let ever = site.decide("u-3", None).await;
    let folder = site.folder.path().to_owned();
    let db = Connection::open(folder.join(FILE)).unwrap();
    let key = "SELECT wrapped FROM subjects WHERE until = (SELECT min(until) FROM subjects WHERE until > 0)";
    let key: Vec<u8> = db.query_row(key, [], |row| row.get(0)).unwrap();
    drop(db);
    assert!(holds(&folder, &key), "else the test proves nothing");
    // On its last day everything can be read.
    site.later(1).await;
    assert_eq!(site.user(&short).as_deref(), Some("u-1"));
    site.later(2).await;
    assert_eq!(site.user(&short), None);
    for (id, user) in [(&long, "u-1"), (&other, "u-2"), (&ever, "u-3")] {
        assert_eq!(site.user(id).as_deref(), Some(user));
    }
    for _ in 0..100 {
        if !holds(&folder, &key) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!holds(&folder, &key), "neither in the file nor in its log");
    assert_eq!(site.watch.0.load(Ordering::SeqCst), 1);
    site.later(3).await;
    assert_eq!((site.user(&other), site.user(&ever).as_deref()), (None, Some("u-3")));
    // What is reported later about the payment is on record, without words about the person.
    let report = OutcomeBody { label: "fraud".to_owned(), by: "anna".to_owned(), at_ms: 7 };
    let note = Entry::outcome("shop-eu", &short, &report, Some("CANARY-note".to_owned()));
    assert!(matches!(site.records.add(note).await, Ok(Recorded::As(_))));
    let stored = site.records.reader().unwrap().decision("shop-eu", &short).unwrap().unwrap();
    assert_eq!(
        (stored.decision().unwrap().action, stored.outcome.unwrap().label.as_str()),
        (decision(1).action, "fraud")
    );
    let folder = site.stop().await;
    let today = Day::of(clock::unix_ms());
    let (one, two) = (today.plus(1).text(), today.plus(2).text());
    let told = bodies(folder.path(), "expiry");
    assert_eq!(told, [serde_json::json!({"keys": 1, "up_to": one}), serde_json::json!({"keys": 1, "up_to": two})]);
    assert_eq!(bodies(folder.path(), "decision")[0]["kept_until"], serde_json::json!(one));
    assert_eq!(sound(folder.path()).destroyed, 2);
}

#[tokio::test]
async fn what_came_due_while_nobody_ran_is_destroyed_in_steps_at_the_start_while_decisions_go_on() {
    let mut site = Site::new();
    let entries = (0..700).map(|number| {
        let decision = Decision { created_at_ms: 1_000, ..decision(number) };
        let keeping = Keeping { days: Some(1 + number as u32 % 3), ..Keeping::default() };
        site.records.add(kept(&assessment(&format!("u-{number}"), number), &decision, keeping))
    });
    futures_util::future::join_all(entries.collect::<Vec<_>>()).await;
    site.added = 700;
    let kept = site.decide("u-last", Some(1)).await;
    let mut site = Site::of(site.stop().await);
    site.added = 701;
    while site.watch.0.load(Ordering::SeqCst) < 700 {
        site.decide("u-3", Some(1)).await;
    }
    assert_eq!(site.user(&kept).as_deref(), Some("u-last"));
    let folder = site.stop().await;
    let steps: Vec<_> = bodies(folder.path(), "expiry").iter().map(|body| body["keys"].as_u64().unwrap()).collect();
    assert_eq!(steps, [256, 256, 188]);
    assert_eq!((sound(folder.path()).destroyed, count(folder.path(), "subjects WHERE until > 0")), (700, 2));
}

#[tokio::test]
async fn forgetting_a_person_destroys_the_keys_of_all_periods() {
    let mut site = Site::new();
    let theirs = [site.decide("u-1", Some(1)).await, site.decide("u-1", Some(9)).await, site.decide("u-1", None).await];
    let other = site.decide("u-2", Some(9)).await;
    let keys = book::keys(site.folder.path()).unwrap();
    let mut beside = Book::open(site.folder.path(), keys).unwrap();
    assert_eq!(beside.erase("shop-eu", "u-1").unwrap(), Some(5));
    assert!(theirs.iter().all(|id| site.user(id).is_none()));
    assert_eq!(site.user(&other).as_deref(), Some("u-2"));
    // Whoever pays again is known again, and the keys at hand are not those of before.
    let again = site.decide("u-1", Some(1)).await;
    assert_eq!(site.user(&again).as_deref(), Some("u-1"));
    let folder = site.stop().await;
    assert_eq!(bodies(folder.path(), "erasure")[0]["keys"].as_array().unwrap().len(), 3);
    assert_eq!((sound(folder.path()).destroyed, sound(folder.path()).readable), (3, 2));
}

#[tokio::test]
async fn a_key_that_goes_or_comes_back_without_a_word_is_found() {
    let mut site = Site::new();
    site.decide("u-1", Some(1)).await;
    site.decide("u-2", Some(5)).await;
    site.later(2).await;
    let keys = book::keys(site.folder.path()).unwrap();
    let folder = site.stop().await;
    let before = fs::read(folder.path().join(FILE)).unwrap();
    let db = || Connection::open(folder.path().join(FILE)).unwrap();
    sound(folder.path());
    db().execute("DELETE FROM subjects WHERE until > 0", []).unwrap();
    let bad =
        |wrong, seq| assert_eq!(verified(folder.path()), Verified::Bad(super::super::chain::Finding { seq, wrong }));
    bad(Wrong::KeyGone, 2);
    fs::write(folder.path().join(FILE), &before).unwrap();
    let row: (Vec<u8>, Vec<u8>, Vec<u8>, i64) = db()
        .query_row("SELECT id, lookup, wrapped, until FROM subjects WHERE until > 0", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    let seq = Book::open(folder.path(), keys).unwrap().erase("shop-eu", "u-2").unwrap().unwrap();
    sound(folder.path());
    db().execute("INSERT INTO subjects (id, lookup, wrapped, until) VALUES (?1, ?2, ?3, ?4)", row).unwrap();
    bad(Wrong::KeyBack, seq);
}

#[tokio::test]
async fn a_file_of_the_first_schema_is_read_as_it_is_and_brought_up_to_date_by_the_first_writer() {
    let mut site = Site::new();
    let first = site.decide("u-1", None).await;
    let folder = site.stop().await;
    let old = "ALTER TABLE subjects RENAME TO newer;
               CREATE TABLE subjects (id BLOB PRIMARY KEY, lookup BLOB NOT NULL UNIQUE, wrapped BLOB NOT NULL) STRICT;
               INSERT INTO subjects SELECT id, lookup, wrapped FROM newer; DROP TABLE newer;
               DROP TABLE notices; PRAGMA user_version = 1;";
    Connection::open(folder.path().join(FILE)).unwrap().execute_batch(old).unwrap();
    assert_eq!(sound(folder.path()).readable, 1);
    let mut users = Vec::new();
    let keep = |stored: Option<&Stored>, _| {
        users.extend(stored.and_then(|stored| stored.personal.as_ref()).map(|personal| personal.user_id.clone()));
        Ok::<_, StoreError>(())
    };
    Reader::open(folder.path()).unwrap().walk(&Wanted::default(), keep).unwrap();
    assert_eq!(users, ["u-1"]);
    let mut site = Site::of(folder);
    site.added = 1;
    let second = site.decide("u-1", None).await;
    let third = site.decide("u-1", Some(1)).await;
    site.later(400).await;
    let read = [&first, &second, &third].map(|id| site.user(id).is_some());
    assert_eq!(read, [true, true, false], "a key from before has no last day");
    let folder = site.stop().await;
    assert_eq!(sound(folder.path()).destroyed, 1);
}

#[tokio::test]
async fn a_log_that_somebody_reads_is_left_alone_and_emptied_later() {
    let site = Site::new();
    site.records.add(told("u-1", 1)).await.unwrap();
    let folder = site.stop().await;
    let reading = Connection::open(folder.path().join(FILE)).unwrap();
    reading.execute_batch("BEGIN; SELECT count(*) FROM records;").unwrap();
    reading.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap();
    let keys = book::keys(folder.path()).unwrap();
    let mut book = Book::open(folder.path(), keys).unwrap();
    book.add(&[&told("u-1", 2)], None).unwrap();
    let begun = Instant::now();
    assert!(!book.try_empty_log().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody is waited for");
    reading.execute_batch("ROLLBACK").unwrap();
    assert!(book.try_empty_log().unwrap());
    assert_eq!(fs::metadata(folder.path().join(format!("{FILE}-wal"))).unwrap().len(), 0);
}

#[tokio::test]
async fn row_25_keys_that_the_disk_destroyed_though_it_said_it_could_not_are_taken_out_of_the_log_too() {
    let mut site = Site::new();
    site.decide("u-1", Some(1)).await;
    let folder = site.stop().await;
    let log = || fs::metadata(folder.path().join(format!("{FILE}-wal"))).unwrap().len();
    let mut book = Book::open(folder.path(), book::keys(folder.path()).unwrap()).unwrap();
    // The step of which the writer heard that it failed.
    let (mut schedule, later) = (Schedule::new(), Day::of(clock::unix_ms()).plus(2));
    assert_eq!(book.expire(later, 9).unwrap(), 1);
    schedule.rest();
    assert_eq!((schedule.step(&mut book, later).unwrap(), log() > 0), (0, true));
    assert_eq!((schedule.step(&mut book, later).unwrap(), log()), (0, 0));
    // And a person's, whose log somebody reads.
    book.add(&[&told("u-2", 2)], None).unwrap();
    let reading = Connection::open(folder.path().join(FILE)).unwrap();
    reading.execute_batch("BEGIN; SELECT count(*) FROM records;").unwrap();
    reading.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(book.erase("shop-eu", "u-2").unwrap().is_some() && log() > 0);
    reading.execute_batch("ROLLBACK").unwrap();
    assert_eq!((book.erase("shop-eu", "u-2").unwrap(), log()), (None, 0), "whoever asks again has it done");
}

#[tokio::test]
async fn s11_what_is_redacted_is_not_even_sealed() {
    let site = Site::new();
    let words = Withheld::WORDS.into_iter().fold(Redact::default(), |all, (_, fields)| all.and(fields));
    let keeping = Keeping { days: None, redact: words };
    let refused = Refused {
        tenant: "shop-eu",
        caller: "shop",
        request_id: "req_7",
        assessment: &assessment("u-1", 2),
        digest: [7; 32],
        reason: FallbackReason::Deadline,
        applied: &Applied::sample(),
        attempts: Vec::new(),
        took_ms: 800,
        at_ms: 7,
        keeping,
    };
    site.records.add(kept(&assessment("u-1", 1), &decision(1), keeping)).await.unwrap();
    site.records.add(Entry::refusal(&refused)).await.unwrap();
    let folder = site.stop().await;
    let keys = Keys::read(folder.path()).unwrap();
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    let (id, wrapped): (SubjectId, Vec<u8>) =
        db.query_row("SELECT id, wrapped FROM subjects", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let key = keys.subject(&id, &wrapped).unwrap();
    let mut statement = db.prepare("SELECT id, sealed FROM records ORDER BY seq").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))).unwrap();
    for (row, words) in rows.zip([true, false]) {
        let (id, sealed) = row.unwrap();
        let plain = String::from_utf8(key.open(id.as_bytes(), &sealed).unwrap().to_vec()).unwrap();
        for gone in [
            "CANARY-mail",
            "CANARY-phone",
            "CANARY-subject",
            "CANARY-meta",
            "CANARY-device",
            "203.0.113.7",
            "CANARY-print",
            "621234",
            "1234",
        ] {
            assert!(!plain.contains(gone), "{gone}: {plain}");
        }
        assert!(plain.contains("u-1") && plain.contains("\"card\""), "{plain}");
        assert_eq!(plain.contains("CANARY-explanation"), words, "the provider's words are of a decision: {plain}");
    }
    assert_eq!(sound(folder.path()).readable, 2);
}
