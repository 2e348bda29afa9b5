use rusqlite::Connection;

use super::super::book::Recorded;
use super::super::keys::Keys;
use super::super::query::Reader;
use super::super::record::Entry;
use super::super::testing::{assessment, decision, entry, open, told};
use super::super::writer::Fault;
use super::*;

fn letter(number: usize) -> Notice {
    let served = Overtaken {
        id: format!("ra_served_{number}"),
        action: "REVIEW".to_owned(),
        source: "fallback".to_owned(),
        request_id: "req_1".to_owned(),
    };
    Notice::new("shop-eu", &format!("ra_{number:04}"), served)
}

fn notice(number: usize) -> Entry {
    Entry::Notice(Box::new(letter(number)))
}

fn tried(number: usize, state: State, tries: usize) -> Entry {
    let failure = if state == State::Delivered { "" } else { "the receiver did not answer 2xx" };
    Entry::Tried(Box::new(Tried { id: letter(number).id().to_owned(), state, tries, failure: failure.to_owned() }))
}

#[tokio::test]
async fn a_notice_is_kept_once_however_often_it_is_posted_and_is_no_link_of_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    assert_eq!(
        records.add(notice(1)).await,
        Ok(Recorded::Beside(Posted::NoSuchDecision)),
        "there is nothing to tell of"
    );
    records.add(told("u-1", 1)).await.unwrap();
    assert_eq!(records.add(notice(1)).await, Ok(Recorded::Beside(Posted::Now)));
    assert_eq!(records.add(notice(1)).await, Ok(Recorded::Beside(Posted::Before)));
    let reader = records.reader().unwrap();
    let kept = reader.notices(State::Pending, 10).unwrap();
    assert_eq!((kept.len(), &kept[0].notice, kept[0].tries), (1, &letter(1), 0));
    assert_eq!(letter(1).id().len(), 22, "as long as a nonce, whose place it takes");
    assert_ne!(letter(1).id(), letter(2).id());
    assert_eq!(records.add(told("u-1", 2)).await, Ok(Recorded::As(2)), "the chain has no gap");
}

#[tokio::test]
async fn a_notice_comes_with_its_decision_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (records, faults) = open(folder.path());
    let late = |number| {
        let Entry::Decision(mut new) = entry(&assessment("u-1", number), &decision(number)) else { unreachable!() };
        new.notice = Some(Box::new(letter(number)));
        Entry::Decision(new)
    };
    faults.set(Fault::Write);
    assert!(records.add(late(1)).await.is_err());
    faults.set(Fault::None);
    let reader = records.reader().unwrap();
    assert!(reader.notices(State::Pending, 10).unwrap().is_empty());
    records.add(late(2)).await.unwrap();
    assert_eq!(reader.notices(State::Pending, 10).unwrap()[0].notice, letter(2));
}

#[tokio::test]
async fn what_became_of_a_notice_is_told_once_and_settled_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    for number in 1..=2 {
        records.add(told("u-1", number)).await.unwrap();
        records.add(notice(number)).await.unwrap();
    }
    assert_eq!(records.add(tried(1, State::Pending, 1)).await, Ok(Recorded::Beside(Posted::Now)));
    let reader = records.reader().unwrap();
    let kept = &reader.notices(State::Pending, 10).unwrap()[0];
    assert_eq!((kept.tries, kept.failure.as_str()), (1, "the receiver did not answer 2xx"));
    assert_eq!(records.add(tried(1, State::Delivered, 2)).await, Ok(Recorded::Beside(Posted::Now)));
    assert_eq!(records.add(tried(1, State::Dead, 3)).await, Ok(Recorded::Beside(Posted::Gone)), "it was settled");
    assert!(!reader.is_pending(letter(1).id()).unwrap() && reader.is_pending(letter(2).id()).unwrap());
    assert_eq!(records.add(tried(2, State::Dead, 7)).await, Ok(Recorded::Beside(Posted::Now)));
    let states = State::ALL.map(|state| reader.notices(state, 10).unwrap().len());
    assert_eq!(states, [0, 1, 1]);
}

#[tokio::test]
async fn dead_letters_are_revived_or_dropped_beside_a_process_that_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    for number in 1..=4 {
        records.add(told("u-1", number)).await.unwrap();
        records.add(notice(number)).await.unwrap();
        let state = if number == 4 { State::Delivered } else { State::Dead };
        records.add(tried(number, state, 7)).await.unwrap();
    }
    let one = |number| Which::One(letter(number).id().to_owned());
    assert_eq!(revive(folder.path(), &one(1), 5).unwrap(), 1);
    assert_eq!(revive(folder.path(), &one(4), 5).unwrap(), 0, "delivered is delivered");
    let pending = records.reader().unwrap().notices(State::Pending, 10).unwrap();
    assert_eq!((pending.len(), pending[0].tries, pending[0].changed_ms), (1, 0, 5));
    assert_eq!(discard(folder.path(), &one(1)).unwrap(), 1, "one that is pending can be dropped by its name");
    assert_eq!(discard(folder.path(), &one(4)).unwrap(), 0);
    assert_eq!(discard(folder.path(), &Which::AllDead).unwrap(), 2);
    assert_eq!(records.add(tried(1, State::Pending, 1)).await, Ok(Recorded::Beside(Posted::Gone)));
    assert_eq!(records.add(told("u-1", 5)).await, Ok(Recorded::As(5)));
}

#[tokio::test]
async fn the_outbox_is_bounded_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let (records, _) = open(folder.path());
    records.add(told("u-1", 1)).await.unwrap();
    let db = Connection::open(folder.path().join(db::FILE)).unwrap();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                INSERT INTO notices SELECT NULL, ?2 || i, 'shop-eu', 'ra_x', '', '', '', '', ?2, 0, '', i, i FROM n";
    db.execute(fill, params![MOST_PENDING as i64, "pending"]).unwrap();
    db.execute(fill, params![MOST_SETTLED as i64 + 50, "dead"]).unwrap();
    assert_eq!(records.add(notice(1)).await, Ok(Recorded::Beside(Posted::NoRoom)));
    db.execute("DELETE FROM notices WHERE id = 'pending7'", []).unwrap();
    assert_eq!(records.add(notice(1)).await, Ok(Recorded::Beside(Posted::Now)));
    records.add(tried(1, State::Dead, 7)).await.unwrap();
    let dead = records.reader().unwrap().notices(State::Dead, MOST_PENDING).unwrap();
    assert_eq!((dead.len(), dead[0].notice.id()), (MOST_SETTLED, letter(1).id()), "the newest stay");
}

#[tokio::test]
async fn a_file_of_the_release_before_gets_its_outbox_and_is_read_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join(db::FILE)).unwrap();
    db.execute_batch(include_str!("../schema/1.sql")).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    drop(db);
    Keys::make(folder.path()).unwrap();
    assert!(Reader::open(folder.path()).unwrap().notices(State::Dead, 10).unwrap().is_empty());
    let (records, _) = open(folder.path());
    records.add(told("u-1", 1)).await.unwrap();
    assert_eq!(records.add(notice(1)).await, Ok(Recorded::Beside(Posted::Now)));
}
