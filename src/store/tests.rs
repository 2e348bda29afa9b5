//! What is recorded stays, what is changed is found, what is forgotten is gone.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rusqlite::{Connection, params};

use super::book::{self, Book, Recorded, chain_of};
use super::chain::{Finding, Walk, Wrong, anchors};
use super::db::{FILE, StoreError};
use super::keys::{KEY_FILE, Keys};
use super::query::{Reader, Stored, Verified, Wanted, examine, verify};
use super::record::{Entry, OutcomeBody};
use super::sealed::Seals;
use super::testing::{assessment, decision, entry, fallback, open, told};
use super::writer::{CHECKPOINTS, Fault, Records, Unrecorded};
use crate::domain::aftermath::Aftermath;

/// A record of so many decisions of three persons, stopped in good order.
async fn filled(folder: &Path, most: usize) {
    let (records, _) = open(folder);
    for number in 0..most {
        let user = format!("u-{}", number % 3);
        assert_eq!(records.add(told(&user, number)).await, Ok(Recorded::As(number as i64 + 1)));
    }
    stop(records).await;
}

async fn stop(records: Records) {
    tokio::task::spawn_blocking(move || records.stop()).await.unwrap();
}

fn checkpoints(folder: &Path) -> String {
    fs::read_to_string(folder.join(CHECKPOINTS)).unwrap()
}

fn verdict(folder: &Path) -> Verified {
    verify(folder, Some(&checkpoints(folder)), |_| ()).unwrap()
}

fn sound(folder: &Path) -> i64 {
    match verdict(folder) {
        Verified::Sound(proof) => proof.records,
        Verified::Bad(finding) => panic!("{finding}"),
    }
}

fn all(folder: &Path) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let keep = |stored: Option<&Stored>, _| {
        rows.extend(stored.map(|stored| {
            let user = stored.personal.as_ref().map(|personal| personal.user_id.clone()).unwrap_or_default();
            (stored.id.clone(), user)
        }));
        Ok::<_, StoreError>(())
    };
    Reader::open(folder).unwrap().walk(&Wanted::default(), keep).unwrap();
    rows
}

fn outcome(id: &str, label: Aftermath) -> Entry {
    let body = OutcomeBody { label: label.as_str().to_owned(), by: "anna".to_owned(), at_ms: 7 };
    Entry::outcome("shop-eu", id, &body, Some("CANARY-note".to_owned()))
}

#[tokio::test]
async fn a_decision_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    for decided in [decision(1), fallback(2)] {
        records.add(entry(&assessment("u-1", 1), &decided)).await.unwrap();
        let stored = records.reader().unwrap().decision("shop-eu", decided.id.as_str()).unwrap().unwrap();
        assert_eq!(stored.decision().unwrap(), decided);
    }
    assert!(records.reader().unwrap().decision("other", "ra_0001").unwrap().is_none());
    assert_eq!(records.add(told("u-1", 1)).await, Ok(Recorded::Before));
    stop(records).await;
    assert_eq!(sound(folder.path()), 2);
}

#[tokio::test]
async fn s11_nothing_about_a_person_lies_in_the_files_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    records.add(told("CANARY-user", 1)).await.unwrap();
    records.add(outcome("ra_0001", Aftermath::Fraud)).await.unwrap();
    for file in fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        let bytes = fs::read(file.path()).unwrap();
        for secret in [&b"CANARY"[..], b"203.0.113.7", b"621234"] {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "{:?} holds {}", file.path(), String::from_utf8_lossy(secret));
        }
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_thousand_at_once_are_in_order_and_recorded_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    let added = (0..1_000).map(|number| records.add(told("u-1", number % 500)));
    let recorded = futures_util::future::join_all(added).await;
    let numbers: Vec<_> = recorded.iter().filter_map(|recorded| recorded.ok()).collect();
    assert_eq!(numbers.iter().filter(|recorded| matches!(recorded, Recorded::As(_))).count(), 500);
    assert_eq!(numbers.iter().filter(|recorded| **recorded == Recorded::Before).count(), 500);
    stop(records).await;
    assert_eq!(sound(folder.path()), 500);
    assert_eq!(all(folder.path()).len(), 500);
}

#[tokio::test]
async fn row_24_a_full_disk_refuses_and_heals_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (records, faults) = open(folder.path());
    records.add(told("u-1", 1)).await.unwrap();
    faults.set(Fault::DiskFull);
    let mut failed = 0;
    for number in 2..60 {
        // What fits into pages that are there already may still be recorded.
        failed += usize::from(records.add(told("u-1", number)).await == Err(Unrecorded::Failed));
    }
    assert!(failed > 40, "{failed}");
    faults.set(Fault::None);
    assert!(matches!(records.add(told("u-1", 60)).await, Ok(Recorded::As(_))));
    stop(records).await;
    sound(folder.path());
    let gaps = |db: &Connection| db.query_row("SELECT count(*) FROM records WHERE kind = 'gap'", [], |row| row.get(0));
    let gaps: i64 = gaps(&Connection::open(folder.path().join(FILE)).unwrap()).unwrap();
    assert!(gaps >= 1, "the record says that something is not in it");
}

#[tokio::test]
async fn row_25_a_failed_write_and_a_failed_sync_lose_nothing_that_was_acknowledged_and_double_nothing() {
    for fault in [Fault::Write, Fault::Sync] {
        let folder = tempfile::tempdir().unwrap();
        let (records, faults) = open(folder.path());
        let mut acknowledged = HashSet::new();
        for number in 0..40 {
            faults.set(if number % 3 == 1 { fault } else { Fault::None });
            if records.add(told("u-1", number)).await.is_ok() {
                acknowledged.insert(format!("ra_{number:04}"));
            }
        }
        faults.set(Fault::None);
        // The caller asks again: what the disk kept after all is not recorded a second time.
        for number in 0..40 {
            records.add(told("u-1", number)).await.unwrap();
            acknowledged.insert(format!("ra_{number:04}"));
        }
        stop(records).await;
        sound(folder.path());
        let rows: Vec<_> = all(folder.path()).into_iter().map(|(id, _)| id).collect();
        assert_eq!(rows.len(), 40, "{fault:?}");
        assert_eq!(rows.into_iter().collect::<HashSet<_>>(), acknowledged);
    }
}

#[tokio::test]
async fn a_forgotten_person_is_unreadable_and_the_chain_still_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    for number in 0..6 {
        records.add(told(if number % 2 == 0 { "u-1" } else { "u-2" }, number)).await.unwrap();
    }
    let keys = book::keys(folder.path()).unwrap();
    let mut beside = Book::open(folder.path(), keys).unwrap();
    assert_eq!(beside.erase("elsewhere", "u-1").unwrap(), None);
    assert_eq!(beside.erase("shop-eu", "u-1").unwrap(), Some(7));
    assert_eq!(beside.erase("shop-eu", "u-1").unwrap(), None);
    // The writer lets go of the key it had at hand, and what is said later about the person says nothing of them.
    assert_eq!(records.add(outcome("ra_0000", Aftermath::Fraud)).await, Ok(Recorded::As(8)));
    assert_eq!(records.add(told("u-1", 6)).await, Ok(Recorded::As(9)));
    stop(records).await;
    assert_eq!(sound(folder.path()), 9);
    let users: Vec<_> = all(folder.path()).into_iter().map(|(_, user)| user).collect();
    assert_eq!(users, ["", "u-2", "", "u-2", "", "u-2", "u-1"]);
    let reader = Reader::open(folder.path()).unwrap();
    let stored = reader.decision("shop-eu", "ra_0000").unwrap().unwrap();
    let left = stored.decision().unwrap();
    assert_eq!((left.action, left.verdict.unwrap().explanation), (decision(0).action, None));
    assert_eq!(stored.outcome.unwrap().label, "fraud");
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    let notes: i64 = db
        .query_row("SELECT count(*) FROM records WHERE kind = 'outcome' AND sealed IS NOT NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(notes, 0);
}

#[tokio::test]
async fn an_outcome_needs_a_decision_of_the_same_tenant_and_the_last_word_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    records.add(told("u-1", 1)).await.unwrap();
    assert_eq!(records.add(outcome("ra_9999", Aftermath::Fraud)).await, Ok(Recorded::NoSuchDecision));
    let body = OutcomeBody { label: "fraud".to_owned(), by: "eve".to_owned(), at_ms: 7 };
    let theirs = Entry::outcome("other", "ra_0001", &body, None);
    assert_eq!(records.add(theirs).await, Ok(Recorded::NoSuchDecision));
    for label in [Aftermath::Fraud, Aftermath::Overturned] {
        records.add(outcome("ra_0001", label)).await.unwrap();
    }
    let stored = records.reader().unwrap().decision("shop-eu", "ra_0001").unwrap().unwrap();
    assert_eq!(stored.outcome.unwrap().label, "overturned");
    stop(records).await;
    assert_eq!(sound(folder.path()), 3);
}

#[tokio::test]
async fn a_lost_or_foreign_key_file_is_told_and_nothing_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 3).await;
    let key = folder.path().join(KEY_FILE);
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    assert!(matches!(book::keys(folder.path()), Err(StoreError::KeyGone)));
    fs::write(&key, format!("{}\n", "5a".repeat(32))).unwrap();
    let keys = book::keys(folder.path()).unwrap();
    assert!(matches!(Book::open(folder.path(), keys), Err(StoreError::OtherKey)));
    assert!(matches!(verify(folder.path(), None, |_| ()), Err(StoreError::OtherKey)));
    fs::write(&key, kept).unwrap();
    assert_eq!(sound(folder.path()), 3);
}

/// A generator whose numbers are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Does one thing to the file and says what must be found.
fn mutate(db: &Connection, dice: &mut Dice, last: i64) -> Finding {
    let seq = dice.roll(last as usize) as i64 + 1;
    let found = |seq, wrong| Finding { seq, wrong };
    match dice.roll(12) {
        0..=2 => {
            let (column, value): (_, rusqlite::types::Value) = match dice.roll(9) {
                0 => ("kind", "outcome".to_owned().into()),
                1 => ("id", format!("ra_x{}", dice.roll(1_000)).into()),
                2 => ("at", (dice.roll(1_000_000) as i64).into()),
                3 => ("tenant", "other".to_owned().into()),
                4 => ("body", vec![b'{', dice.roll(256) as u8].into()),
                5 => ("subject", vec![dice.roll(256) as u8; 16].into()),
                6 => ("sealed", rusqlite::types::Value::Null),
                7 => ("prev", vec![dice.roll(256) as u8; 32].into()),
                _ => ("hash", vec![dice.roll(256) as u8; 32].into()),
            };
            db.execute(&format!("UPDATE records SET {column} = ?1 WHERE seq = ?2"), params![value, seq]).unwrap();
            found(seq, Wrong::Changed)
        }
        3 => {
            // One bit, somewhere in the sealed part.
            let sealed = "SELECT sealed FROM records WHERE seq = ?1";
            let mut sealed: Vec<u8> = db.query_row(sealed, [seq], |row| row.get(0)).unwrap();
            let place = dice.roll(sealed.len());
            sealed[place] ^= 1 << dice.roll(8);
            db.execute("UPDATE records SET sealed = ?1 WHERE seq = ?2", params![sealed, seq]).unwrap();
            found(seq, Wrong::Changed)
        }
        4 => {
            let many = 1 + dice.roll(3) as i64;
            db.execute("DELETE FROM records WHERE seq >= ?1 AND seq < ?2", [seq, seq + many]).unwrap();
            found(seq, if seq + many > last { Wrong::CutOff } else { Wrong::Missing })
        }
        5 => {
            let other = 1 + (seq + dice.roll(last as usize - 1) as i64) % last;
            let (first, second) = (seq.min(other), seq.max(other));
            for (from, to) in [(first, -1), (second, first), (-1, second)] {
                db.execute("UPDATE records SET seq = ?2 WHERE seq = ?1", [from, to]).unwrap();
            }
            found(first, Wrong::Changed)
        }
        6 => {
            db.execute("DELETE FROM records WHERE seq >= ?1", [seq]).unwrap();
            found(seq, Wrong::CutOff)
        }
        7 => {
            // A true record in the place of another, hash and all.
            let other = 1 + (seq + dice.roll(last as usize - 1) as i64) % last;
            db.execute("DELETE FROM records WHERE seq = ?1", [seq]).unwrap();
            let copy = "INSERT INTO records SELECT ?1, kind, id, at, tenant, body, subject, sealed, prev, hash \
                        FROM records WHERE seq = ?2";
            db.execute(copy, [seq, other]).unwrap();
            found(seq, Wrong::Changed)
        }
        8..=10 => tamper_with_a_key(db, dice),
        _ => {
            // The careful one: a record is edited and its own hash made anew.
            rewrite(db, seq, seq);
            found(seq, if seq == last { Wrong::NotAnchored } else { Wrong::Replaced })
        }
    }
}

/// Does one thing to a person's key and says what must be found.
fn tamper_with_a_key(db: &Connection, dice: &mut Dice) -> Finding {
    let subjects = "SELECT s.id, wrapped, min(r.seq) FROM subjects s JOIN records r ON r.subject = s.id GROUP BY s.id";
    let subjects: Vec<([u8; 16], Vec<u8>, i64)> = db
        .prepare(subjects)
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let one = dice.roll(subjects.len());
    let (id, mut wrapped, seq) = subjects[one].clone();
    let put = |id: [u8; 16], wrapped: &[u8]| {
        db.execute("UPDATE subjects SET wrapped = ?1 WHERE id = ?2", params![wrapped, id]).unwrap();
    };
    match dice.roll(4) {
        0 => {
            let place = dice.roll(wrapped.len());
            wrapped[place] ^= 1 << dice.roll(8);
            put(id, &wrapped);
            Finding { seq, wrong: Wrong::KeyDamaged }
        }
        1 => {
            let (other, theirs, first) = &subjects[(one + 1) % subjects.len()];
            put(*other, &wrapped);
            put(id, theirs);
            Finding { seq: seq.min(*first), wrong: Wrong::KeyDamaged }
        }
        2 => {
            db.execute("UPDATE subjects SET until = until + 1 + ?1 WHERE id = ?2", params![dice.roll(99) as i64, id])
                .unwrap();
            Finding { seq, wrong: Wrong::KeyMoved }
        }
        _ => {
            db.execute("DELETE FROM subjects WHERE id = ?1", [id]).unwrap();
            Finding { seq, wrong: Wrong::KeyGone }
        }
    }
}

/// Edits record `from` and makes the hashes of it and all up to `to` anew.
fn rewrite(db: &Connection, from: i64, to: i64) {
    db.execute("UPDATE records SET body = CAST('{}' AS BLOB) WHERE seq = ?1", [from]).unwrap();
    for seq in from..=to {
        let before = "SELECT hash FROM records WHERE seq = ?1 - 1";
        let own = "SELECT kind, id, at, tenant, body, subject, sealed, prev FROM records WHERE seq = ?1";
        let hash = db
            .query_row(own, [seq], |row| {
                let (kind, id, tenant): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let (body, subject, sealed): (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>) =
                    (row.get(4)?, row.get(5)?, row.get(6)?);
                let prev: Vec<u8> =
                    if seq == from { row.get(7)? } else { db.query_row(before, [seq], |row| row.get(0))? };
                let content = super::chain::Content {
                    kind: &kind,
                    id: &id,
                    at: row.get(2)?,
                    tenant: &tenant,
                    body: &body,
                    subject: subject.as_deref(),
                    sealed: sealed.as_deref(),
                };
                Ok((super::chain::hash(seq, &prev, &content), prev))
            })
            .unwrap();
        db.execute("UPDATE records SET hash = ?1, prev = ?2 WHERE seq = ?3", params![hash.0, hash.1, seq]).unwrap();
    }
}

#[tokio::test]
async fn row_28_a_thousand_ways_to_tamper_are_all_found_and_placed() {
    let original = tempfile::tempdir().unwrap();
    filled(original.path(), 60).await;
    assert_eq!(sound(original.path()), 60);
    let db = Connection::open(original.path().join(FILE)).unwrap();
    db.execute_batch("DROP INDEX decisions").unwrap();
    let (chain, key) = chain_of(&db).unwrap().unwrap();
    let anchors = anchors(&checkpoints(original.path()), &chain, &key).unwrap();
    let keys = Keys::read(original.path()).unwrap();
    let mut dice = Dice(0x5eed_0001);
    for round in 0..1_000 {
        db.execute_batch("BEGIN").unwrap();
        let expected = mutate(&db, &mut dice, 60);
        let walk = (Walk::new(&chain, anchors.clone()).unwrap(), Seals::new(&keys, &db).unwrap());
        let verified = examine(&db, walk, |_| ()).unwrap();
        assert_eq!(verified, Verified::Bad(expected), "round {round}");
        db.execute_batch("ROLLBACK").unwrap();
    }
}

#[tokio::test]
async fn a_chain_made_anew_from_some_record_on_is_found_by_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 20).await;
    rewrite(&Connection::open(folder.path().join(FILE)).unwrap(), 7, 20);
    let alone = verify(folder.path(), None, |_| ()).unwrap();
    assert!(matches!(alone, Verified::Sound(_)), "without a checkpoint nobody can tell");
    assert_eq!(verdict(folder.path()), Verified::Bad(Finding { seq: 20, wrong: Wrong::NotAnchored }));
}

#[tokio::test]
async fn a_replaced_file_is_found() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(folder.path(), 5).await;
    filled(other.path(), 5).await;
    let kept = checkpoints(folder.path());
    let copy = |name: &str| fs::copy(other.path().join(name), folder.path().join(name)).unwrap();
    copy(FILE);
    assert!(matches!(verify(folder.path(), Some(&kept), |_| ()), Err(StoreError::OtherKey)));
    copy(KEY_FILE);
    assert!(matches!(verify(folder.path(), Some(&kept), |_| ()), Err(StoreError::Checkpoint(_))));
    // A record begun anew under the same key.
    let third = tempfile::tempdir().unwrap();
    fs::copy(other.path().join(KEY_FILE), third.path().join(KEY_FILE)).unwrap();
    filled(third.path(), 5).await;
    assert!(matches!(verify(third.path(), Some(&checkpoints(other.path())), |_| ()), Err(StoreError::Checkpoint(_))));
}

#[tokio::test]
async fn checkpoints_that_were_touched_are_not_believed_and_a_torn_last_line_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path(), 5).await;
    let kept = checkpoints(folder.path());
    let forged = kept.replace("\"seq\":5", "\"seq\":4");
    assert!(matches!(verify(folder.path(), Some(&forged), |_| ()), Err(StoreError::Checkpoint(_))));
    assert!(matches!(verify(folder.path(), Some("{}\n"), |_| ()), Err(StoreError::Checkpoint(_))));
    let torn = format!("{kept}{{\"chain\":\"");
    fs::write(folder.path().join(CHECKPOINTS), &torn).unwrap();
    assert!(matches!(verify(folder.path(), Some(&torn), |_| ()), Ok(Verified::Sound(_))));
    // The next one begins on a line of its own.
    let (records, _) = open(folder.path());
    records.add(told("u-1", 77)).await.unwrap();
    stop(records).await;
    let text = checkpoints(folder.path());
    assert!(text.ends_with('\n') && text.lines().last().unwrap().contains("\"seq\":6"), "{text}");
}
