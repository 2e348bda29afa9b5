//! What is read from the record: one decision, the last day's, all of them in order, and whether they are as written.
//!
//! It reads beside the writer and never waits for it. Every call blocks on the disk: keep it off the serving threads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::book::chain_of;
use super::chain::{self, Content, Finding, Proof, Row, Walk, Wrong};
use super::db::{self, StoreError};
use super::disk::{self, Disk};
use super::held::{Held, Place};
use super::keys::{Keys, SubjectId, SubjectKey};
use super::outbox::{self, Kept, State};
use super::record::{Body, OutcomeBody, Personal};
use super::sealed::Seals;
use crate::domain::decision::Decision;

/// Records read at a time.
const PAGE: i64 = 512;
/// Persons' keys kept at hand while walking.
const MOST_KEYS: usize = 10_000;

/// Reads the record of a folder.
pub struct Reader {
    folder: PathBuf,
    place: Arc<Place>,
    keys: Arc<Keys>,
    /// Held while one question is answered; the next one waits, on a thread that may.
    kept: Mutex<Option<Held>>,
}

/// A decision of the past.
pub struct Stored {
    /// Its number in the record.
    pub seq: i64,
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// What it says.
    pub body: Body,
    /// What it says of a person, unless they were forgotten.
    pub personal: Option<Personal>,
    /// What became of it, as far as anybody said; the last word counts.
    pub outcome: Option<OutcomeBody>,
}

impl Stored {
    /// The decision as it was.
    ///
    /// # Errors
    /// [`StoreError::Row`] if it is none of ours.
    pub fn decision(&self) -> Result<Decision, StoreError> {
        self.body.decision(&self.id, self.personal.as_ref()).ok_or(StoreError::Row(self.seq))
    }
}

/// Which decisions are wanted.
#[derive(Clone, Default)]
pub struct Wanted {
    /// Decided at this moment or later, milliseconds since 1970.
    pub since: Option<i64>,
    /// Decided before this moment.
    pub until: Option<i64>,
    /// Of this tenant.
    pub tenant: Option<String>,
    /// To this merchant.
    pub merchant: Option<String>,
}

type Raw = (i64, String, String, Vec<u8>, Option<SubjectId>, Option<Vec<u8>>, Option<Vec<u8>>);

/// The columns of [`Raw`].
const COLUMNS: &str = "seq, id, tenant, body, subject, sealed, (SELECT body FROM records o \
                       WHERE o.kind = 'outcome' AND o.id = r.id ORDER BY o.seq DESC LIMIT 1)";

fn raw(row: &rusqlite::Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
}

impl Reader {
    /// Reads with these keys.
    pub fn new(folder: &Path, keys: Arc<Keys>) -> Self {
        Self { folder: folder.to_owned(), place: Place::of(folder), keys, kept: Mutex::new(None) }
    }

    /// Reads with the keys in the folder.
    ///
    /// # Errors
    /// [`StoreError::None`] if there is no record.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        drop(db::open_to_read(folder)?);
        Ok(Self::new(folder, Arc::new(Keys::read(folder)?)))
    }

    /// How full the disk is that the record lies on.
    pub fn disk(&self) -> Option<Disk> {
        disk::disk(&self.folder)
    }

    /// Lets go of its connection until the next question.
    pub(super) fn rest(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Lets go of it if whoever writes must be alone with the record. On a full disk, shared memory that nobody holds cannot be
    /// had again.
    pub(super) fn give_way(&self) {
        if self.place.is_distrusted() {
            self.rest();
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match kept.take() {
            Some(db) => db,
            None => db::open_to_read(&self.folder)?,
        };
        // After a failure the connection is not used again.
        let answer = question(&db)?;
        *kept = Some(db);
        Ok(answer)
    }

    /// A tenant's decision of this name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn decision(&self, tenant: &str, id: &str) -> Result<Option<Stored>, StoreError> {
        self.ask(|db| {
            let text = format!("SELECT {COLUMNS} FROM records r WHERE kind = 'decision' AND id = ?1 AND tenant = ?2");
            let found = db.prepare(&text)?.query_row([id, tenant], raw).optional()?;
            found.map(|raw| Opened::new(&self.keys).stored(db, raw)).transpose()
        })
    }

    /// Notices of one kind: those that wait in the order in which they came, settled ones the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn notices(&self, state: State, most: usize) -> Result<Vec<Kept>, StoreError> {
        self.ask(|db| outbox::list(db, state, most))
    }

    /// Whether this notice still waits to be delivered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_pending(&self, id: &str) -> Result<bool, StoreError> {
        self.ask(|db| outbox::is_pending(db, id))
    }

    /// Decisions since a moment, newest first and at most so many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn recent(&self, since_ms: i64, most: usize, mut each: impl FnMut(&Stored)) -> Result<(), StoreError> {
        self.ask(|db| {
            let text = format!(
                "SELECT {COLUMNS} FROM records r WHERE kind = 'decision' AND at >= ?1 ORDER BY at DESC, seq DESC LIMIT ?2"
            );
            let mut opened = Opened::new(&self.keys);
            let mut statement = db.prepare(&text)?;
            let mut rows = statement.query_map(params![since_ms, i64::try_from(most).unwrap_or(i64::MAX)], raw)?;
            rows.try_for_each(|raw| {
                each(&opened.stored(db, raw?)?);
                Ok(())
            })
        })
    }

    /// The newest record's number, 0 if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest(&self) -> Result<i64, StoreError> {
        self.ask(last)
    }

    /// Decisions recorded after this number, in order; the number of the last one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn after(&self, seq: i64, mut each: impl FnMut(&Stored)) -> Result<i64, StoreError> {
        self.ask(|db| {
            let mut opened = Opened::new(&self.keys);
            let mut done = seq;
            loop {
                let page = page_of(db, done)?;
                let Some(end) = page.last().map(|raw| raw.0) else { return Ok(done) };
                for raw in page {
                    each(&opened.stored(db, raw)?);
                }
                done = end;
            }
        })
    }

    /// Walks over the decisions that are wanted, in order; `each` is told how far the walk is, and may end it.
    ///
    /// # Errors
    /// [`StoreError`], or what `each` says.
    pub fn walk<E: From<StoreError>>(
        &self,
        wanted: &Wanted,
        mut each: impl FnMut(Option<&Stored>, Progress) -> Result<(), E>,
    ) -> Result<(), E> {
        let db = db::open_to_read(&self.folder)?;
        let all = last(&db)?;
        let mut opened = Opened::new(&self.keys);
        let mut done = 0;
        while done < all {
            let page = page_of(&db, done)?;
            let Some(end) = page.last().map(|raw| raw.0) else { break };
            for raw in page {
                let stored = opened.stored(&db, raw)?;
                if wanted.has(&stored) {
                    each(Some(&stored), Progress { done: stored.seq, all })?;
                }
            }
            done = end;
            each(None, Progress { done, all })?;
        }
        each(None, Progress { done: all, all })
    }
}

/// How far a walk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Records behind it.
    pub done: i64,
    /// Records in all.
    pub all: i64,
}

fn last(db: &Connection) -> Result<i64, StoreError> {
    Ok(db.query_row("SELECT coalesce(max(seq), 0) FROM records", [], |row| row.get(0))?)
}

fn page_of(db: &Connection, after: i64) -> Result<Vec<Raw>, StoreError> {
    let text =
        format!("SELECT {COLUMNS} FROM records r WHERE kind = 'decision' AND seq > ?1 ORDER BY seq LIMIT {PAGE}");
    let mut statement = db.prepare(&text)?;
    let rows = statement.query_map([after], raw)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Wanted {
    fn has(&self, stored: &Stored) -> bool {
        let at = i64::try_from(stored.body.created_at_ms).unwrap_or(i64::MAX);
        self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
            && self.tenant.as_ref().is_none_or(|tenant| *tenant == stored.tenant)
            && self.merchant.as_ref().is_none_or(|merchant| *merchant == stored.body.merchant_id)
    }
}

/// Persons' keys while they are needed.
struct Opened<'k> {
    keys: &'k Keys,
    cached: HashMap<SubjectId, Option<SubjectKey>>,
}

impl<'k> Opened<'k> {
    fn new(keys: &'k Keys) -> Self {
        Self { keys, cached: HashMap::new() }
    }

    fn stored(&mut self, db: &Connection, raw: Raw) -> Result<Stored, StoreError> {
        let (seq, id, tenant, body, subject, sealed, outcome) = raw;
        let body = Body::read(&body).ok_or(StoreError::Row(seq))?;
        let outcome =
            outcome.map(|bytes| serde_json::from_slice(&bytes).map_err(|_| StoreError::Row(seq))).transpose()?;
        let plain = match (subject, sealed) {
            (Some(subject), Some(sealed)) => self.key(db, &subject)?.and_then(|key| key.open(id.as_bytes(), &sealed)),
            _ => None,
        };
        let personal = plain.and_then(|plain| Personal::read(&plain));
        Ok(Stored { seq, id, tenant, body, personal, outcome })
    }

    fn key(&mut self, db: &Connection, id: &SubjectId) -> Result<Option<&SubjectKey>, StoreError> {
        if self.cached.len() > MOST_KEYS {
            self.cached.clear();
        }
        if !self.cached.contains_key(id) {
            let wrapped = "SELECT wrapped FROM subjects WHERE id = ?1";
            let wrapped = db.prepare(wrapped)?.query_row([id], |row| row.get::<_, Vec<u8>>(0)).optional()?;
            self.cached.insert(*id, wrapped.and_then(|wrapped: Vec<u8>| self.keys.subject(id, &wrapped)));
        }
        Ok(self.cached.get(id).and_then(Option::as_ref))
    }
}

/// What a verification has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verified {
    /// All records are as they were written.
    Sound(Proof),
    /// The first that is not.
    Bad(Finding),
}

/// Walks the whole chain of a folder. `checkpoints` is a file of them as text; `told` hears how far it is.
///
/// # Errors
/// [`StoreError`] if there is no record or no key, or the checkpoints cannot be believed.
pub fn verify(folder: &Path, checkpoints: Option<&str>, told: impl FnMut(Progress)) -> Result<Verified, StoreError> {
    let db = db::open_to_read(folder)?;
    let (chain, key) = chain_of(&db)?.ok_or_else(|| StoreError::None(folder.to_owned()))?;
    let keys = Keys::read(folder)?;
    if keys.public() != key {
        return Err(StoreError::OtherKey);
    }
    let anchors = checkpoints.map(|text| chain::anchors(text, &chain, &key)).transpose()?.unwrap_or_default();
    // One transaction: a view of one moment, whatever is written meanwhile.
    let tx = db.unchecked_transaction()?;
    match Walk::new(&chain, anchors) {
        Ok(walk) => examine(&tx, (walk, Seals::new(&keys, &tx)?), told),
        Err(finding) => Ok(Verified::Bad(finding)),
    }
}

/// Walks over the records of a transaction.
pub(super) fn examine(
    tx: &Connection,
    (mut walk, mut seals): (Walk, Seals<'_>),
    mut told: impl FnMut(Progress),
) -> Result<Verified, StoreError> {
    let all = last(tx)?;
    let text = "SELECT seq, kind, id, at, tenant, body, subject, sealed, prev, hash FROM records ORDER BY seq";
    let mut statement = tx.prepare(text)?;
    let mut rows = statement.query([])?;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(_) => return Ok(Verified::Bad(Finding { seq: walk.next(), wrong: Wrong::Unreadable })),
        };
        let unreadable = Finding { seq: walk.next(), wrong: Wrong::Unreadable };
        let row = match read(row).ok_or(unreadable).and_then(|row| walk.take(&row).map(|()| row)) {
            Ok(row) => row,
            Err(finding) => return Ok(Verified::Bad(finding)),
        };
        if let Some(wrong) = seals.take(tx, &row)? {
            return Ok(Verified::Bad(Finding { seq: row.seq, wrong }));
        }
        if walk.next() % PAGE == 0 {
            told(Progress { done: walk.next() - 1, all });
        }
    }
    told(Progress { done: all, all });
    let proof = walk.finish().and_then(|proof| {
        let (readable, destroyed) = seals.finish()?;
        Ok(Proof { readable, destroyed, ..proof })
    });
    Ok(proof.map_or_else(Verified::Bad, Verified::Sound))
}

/// `None` if a column holds something of another kind.
fn read<'r>(row: &'r rusqlite::Row<'_>) -> Option<Row<'r>> {
    let text = |column| row.get_ref(column).ok()?.as_str().ok();
    let bytes = |column| row.get_ref(column).ok()?.as_blob().ok();
    let maybe = |column| row.get_ref(column).ok()?.as_blob_or_null().ok();
    let content = Content {
        kind: text(1)?,
        id: text(2)?,
        at: row.get(3).ok()?,
        tenant: text(4)?,
        body: bytes(5)?,
        subject: maybe(6)?,
        sealed: maybe(7)?,
    };
    Some(Row { seq: row.get(0).ok()?, content, prev: bytes(8)?, hash: bytes(9)? })
}
