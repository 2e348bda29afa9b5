//! One connection that writes: what adding to the chain means.
//!
//! Forgetting is in [`retention`](super::retention). It is used by the writer thread and by `audit erase`, which may run
//! beside it: whoever writes reads the chain's head inside the transaction, has the disk keep the log anew if a sync failed,
//! and lets go of cached keys when another connection has changed the file. It starts no thread.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;

use super::chain::{ChainId, Checkpoint, Content, Hash, hash, root};
use super::db::{self, StoreError};
use super::held::{Held, Place};
use super::keys::{KEY_FILE, Keys, SubjectId, SubjectKey};
use super::outbox::{self, Posted};
use super::record::{Entry, NewDecision, NewOutcome, spelled};
use crate::domain::clock;
use crate::domain::retention::Day;

/// Persons whose keys are kept at hand; with more, all are let go.
const MOST_KEYS: usize = 10_000;

/// What became of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// It has this number now.
    As(i64),
    /// It was there already.
    Before,
    /// It is about a decision that this tenant does not have.
    NoSuchDecision,
    /// It is for the outbox, beside the chain.
    Beside(Posted),
}

/// The end of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The last record's number; 0 for none.
    pub seq: i64,
    /// Its hash, or the root.
    pub hash: Hash,
}

/// A gap: what could not be recorded, told once recording works again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Gap {
    /// When writing first failed, milliseconds since 1970.
    pub since_ms: u64,
    /// Decisions and reports that were not recorded by then; whoever waited for one was told so.
    pub entries: u64,
}

/// By person and last day; 0 for none.
type Cached = HashMap<([u8; 32], u32), (SubjectId, Arc<SubjectKey>)>;

/// The file, open for writing.
pub struct Book {
    db: Held,
    keys: Arc<Keys>,
    chain: ChainId,
    cached: Cached,
    /// SQLite's number of what other connections changed.
    seen: i64,
}

/// The keys of a folder's record, made with it if there is neither.
///
/// # Errors
/// [`StoreError::KeyGone`] if there is a record and no key.
pub fn keys(folder: &Path) -> Result<Arc<Keys>, StoreError> {
    if !folder.join(KEY_FILE).exists() {
        if folder.join(db::FILE).exists() && has_chain(folder)? {
            return Err(StoreError::KeyGone);
        }
        return Ok(Arc::new(Keys::make(folder)?));
    }
    Ok(Arc::new(Keys::read(folder)?))
}

fn has_chain(folder: &Path) -> Result<bool, StoreError> {
    let db = db::open_to_read(folder)?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'chain'", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(false);
    }
    Ok(db.query_row("SELECT count(*) FROM chain", [], |row| row.get::<_, i64>(0))? > 0)
}

impl Book {
    /// Opens the record of a folder, or begins one.
    ///
    /// # Errors
    /// [`StoreError::OtherKey`] if the keys are not those it was begun with.
    pub fn open(folder: &Path, keys: Arc<Keys>) -> Result<Self, StoreError> {
        let mut db = db::open(folder)?;
        let chain = begin(&mut db, &keys).inspect_err(|error| db.place().distrust(error))?;
        let seen = data_version(&db)?;
        Ok(Self { db, keys, chain, cached: HashMap::new(), seen })
    }

    /// The chain's random name.
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }

    /// Adds all entries in one transaction, after a word on an earlier gap; all are durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`]; then none of them was recorded, unless the disk kept what it said it could not: adding the same
    /// decision again finds out.
    pub fn add(&mut self, entries: &[&Entry], gap: Option<Gap>) -> Result<Vec<Recorded>, StoreError> {
        let seen = data_version(&self.db)?;
        if seen != self.seen || self.cached.len() > MOST_KEYS {
            self.cached.clear();
            self.seen = seen;
        }
        let mut page = Page::turn(&mut self.db, &self.keys, &mut self.cached, &self.chain)?;
        if let Some(gap) = gap {
            let body = spelled(&gap);
            page.write(Content {
                kind: "gap",
                id: "",
                at: now(),
                tenant: "",
                body: &body,
                subject: None,
                sealed: None,
            })?;
        }
        let recorded = entries.iter().map(|entry| page.add(entry)).collect::<Result<Vec<_>, _>>();
        let done = page.close(recorded);
        if done.is_err() {
            // Keys made in a transaction that did not happen.
            self.cached.clear();
        }
        done
    }

    /// The file, for what reads or forgets in it.
    pub(super) fn db(&self) -> &Held {
        &self.db
    }

    /// Where a person's keys are found.
    pub(super) fn lookup(&self, tenant: &str, user: &str) -> [u8; 32] {
        self.keys.lookup(tenant, user)
    }

    /// A transaction in which keys may go: none is at hand afterwards.
    pub(super) fn turn(&mut self) -> Result<Page<'_>, StoreError> {
        self.cached.clear();
        Page::turn(&mut self.db, &self.keys, &mut self.cached, &self.chain)
    }

    /// A signed word on the chain's end.
    ///
    /// # Errors
    /// [`StoreError`] if the file cannot be read.
    pub fn checkpoint(&self) -> Result<Checkpoint, StoreError> {
        let head = head(&self.db, &self.chain)?;
        Ok(Checkpoint::sign(&self.chain, (head.seq, &head.hash), now(), self.keys.signer()))
    }

    /// Whether a sync failed and nobody was alone with the record since.
    pub(super) fn is_distrusted(&self) -> bool {
        self.db.place().is_distrusted()
    }

    /// Moves what is left of the log into the file, so that the next commit begins a new one.
    ///
    /// # Errors
    /// [`StoreError`] if the disk does not take it.
    pub fn finish_log(&self) -> Result<(), StoreError> {
        db::move_log(&self.db).map(drop)
    }

    /// From here on the file may not grow: what a full disk is, for tests.
    pub(super) fn stop_growing(&self) -> Result<(), StoreError> {
        let pages: i64 = self.db.pragma_query_value(None, "page_count", |row| row.get(0))?;
        self.db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }
}

pub(super) fn now() -> i64 {
    i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX)
}

fn data_version(db: &Connection) -> Result<i64, StoreError> {
    Ok(db.pragma_query_value(None, "data_version", |row| row.get(0))?)
}

/// The chain's name; a fresh one, with its key, if there is none.
fn begin(db: &mut Connection, keys: &Keys) -> Result<ChainId, StoreError> {
    if let Some((chain, key)) = chain_of(db)? {
        return if key == keys.public() { Ok(chain) } else { Err(StoreError::OtherKey) };
    }
    let mut fresh: ChainId = [0; 16];
    getrandom::fill(&mut fresh).map_err(|_| super::keys::KeyError::Random)?;
    db.execute("INSERT OR IGNORE INTO chain (one, id, key) VALUES (1, ?1, ?2)", params![fresh, keys.public()])?;
    chain_of(db)?.map(|(chain, _)| chain).ok_or(StoreError::OtherKey)
}

/// The chain's name and who signs its checkpoints.
pub(super) fn chain_of(db: &Connection) -> Result<Option<(ChainId, [u8; 32])>, StoreError> {
    let row = db.query_row("SELECT id, key FROM chain WHERE one = 1", [], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(row.optional()?)
}

fn head(db: &Connection, chain: &ChainId) -> Result<Head, StoreError> {
    let last = db
        .prepare_cached("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok(Head { seq: row.get(0)?, hash: row.get(1)? }));
    Ok(last.optional()?.unwrap_or(Head { seq: 0, hash: root(chain) }))
}

/// A transaction and the end of the chain in it.
pub(super) struct Page<'b> {
    place: Arc<Place>,
    tx: Transaction<'b>,
    keys: &'b Keys,
    cached: &'b mut Cached,
    head: Head,
}

impl<'b> Page<'b> {
    fn turn(db: &'b mut Held, keys: &'b Keys, cached: &'b mut Cached, chain: &ChainId) -> Result<Self, StoreError> {
        let place = Arc::clone(db.place());
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        place.mend()?;
        let head = head(&tx, chain)?;
        Ok(Self { place, tx, keys, cached, head })
    }

    /// Commits what went well.
    pub(super) fn close<T>(self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        let done = done?;
        let committed = self.tx.commit().map_err(StoreError::from);
        committed.inspect_err(|error| self.place.distrust(error))?;
        Ok(done)
    }

    /// The transaction itself.
    pub(super) fn tx(&self) -> &Transaction<'b> {
        &self.tx
    }

    fn add(&mut self, entry: &Entry) -> Result<Recorded, StoreError> {
        match entry {
            Entry::Decision(decision) => self.decision(decision),
            Entry::Outcome(outcome) => self.outcome(outcome),
            Entry::Refusal(refusal) => self.sealed("refusal", refusal),
            Entry::Notice(notice) => Ok(Recorded::Beside(outbox::post(&self.tx, notice, now())?)),
            Entry::Tried(tried) => Ok(Recorded::Beside(outbox::tried(&self.tx, tried, now())?)),
        }
    }

    fn decision(&mut self, new: &NewDecision) -> Result<Recorded, StoreError> {
        let id = new.id.as_str();
        let known = "SELECT 1 FROM records WHERE kind = 'decision' AND id = ?1";
        if self.tx.prepare_cached(known)?.exists([id])? {
            return Ok(Recorded::Before);
        }
        self.sealed("decision", new)
    }

    fn sealed(&mut self, kind: &str, new: &NewDecision) -> Result<Recorded, StoreError> {
        let id = new.id.as_str();
        let (subject, key) = self.subject(&new.tenant, &new.user, new.until)?;
        let sealed = key.seal(id.as_bytes(), &new.personal)?;
        let (subject, sealed) = (Some(subject.as_slice()), Some(sealed.as_slice()));
        let content = Content { kind, id, at: now(), tenant: &new.tenant, body: &new.body, subject, sealed };
        let seq = self.write(content)?;
        if let Some(notice) = &new.notice {
            // Whoever is to send it posts it again, and hears if there was no room.
            outbox::post(&self.tx, notice, now())?;
        }
        Ok(Recorded::As(seq))
    }

    fn outcome(&mut self, new: &NewOutcome) -> Result<Recorded, StoreError> {
        let about = "SELECT subject FROM records WHERE kind = 'decision' AND id = ?1 AND tenant = ?2";
        let about = self.tx.prepare_cached(about)?.query_row([&new.id, &new.tenant], |row| row.get(0)).optional()?;
        let Some(subject): Option<SubjectId> = about else { return Ok(Recorded::NoSuchDecision) };
        // What a case handler writes is about the person too; who is forgotten stays forgotten.
        let sealed = match (&new.note, self.key_of(&subject)?) {
            (Some(note), Some(key)) => Some(key.seal(new.id.as_bytes(), note.as_bytes())?),
            _ => None,
        };
        let content = Content {
            kind: "outcome",
            id: &new.id,
            at: now(),
            tenant: &new.tenant,
            body: &new.body,
            subject: sealed.as_ref().map(|_| subject.as_slice()),
            sealed: sealed.as_deref(),
        };
        Ok(Recorded::As(self.write(content)?))
    }

    fn key_of(&self, id: &SubjectId) -> Result<Option<SubjectKey>, StoreError> {
        let wrapped: Option<Vec<u8>> =
            self.tx.query_row("SELECT wrapped FROM subjects WHERE id = ?1", [id], |row| row.get(0)).optional()?;
        Ok(wrapped.and_then(|wrapped| self.keys.subject(id, &wrapped)))
    }

    /// A person's key for what can be read until that day, a fresh one if they have none.
    fn subject(
        &mut self,
        tenant: &str,
        user: &str,
        until: Option<Day>,
    ) -> Result<(SubjectId, Arc<SubjectKey>), StoreError> {
        let lookup = self.keys.lookup(tenant, user);
        let until = until.map_or(0, |day| day.0);
        if let Some((id, key)) = self.cached.get(&(lookup, until)) {
            return Ok((*id, Arc::clone(key)));
        }
        let known = "SELECT id, wrapped FROM subjects WHERE lookup = ?1 AND until = ?2";
        let known = self
            .tx
            .prepare_cached(known)?
            .query_row(params![lookup, until], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let known: Option<(SubjectId, Vec<u8>)> = known;
        let (id, key) = if let Some((id, wrapped)) = known {
            (id, self.keys.subject(&id, &wrapped).ok_or(StoreError::OtherKey)?)
        } else {
            let (id, key, wrapped) = self.keys.fresh_subject()?;
            let add = "INSERT INTO subjects (id, lookup, wrapped, until) VALUES (?1, ?2, ?3, ?4)";
            self.tx.prepare_cached(add)?.execute(params![id, lookup, wrapped, until])?;
            (id, key)
        };
        let key = Arc::new(key);
        self.cached.insert((lookup, until), (id, Arc::clone(&key)));
        Ok((id, key))
    }

    pub(super) fn write(&mut self, content: Content<'_>) -> Result<i64, StoreError> {
        let seq = self.head.seq + 1;
        let own = hash(seq, &self.head.hash, &content);
        let Content { kind, id, at, tenant, body, subject, sealed } = content;
        let add = "INSERT INTO records (seq, kind, id, at, tenant, body, subject, sealed, prev, hash) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        self.tx.prepare_cached(add)?.execute(params![
            seq,
            kind,
            id,
            at,
            tenant,
            body,
            subject,
            sealed,
            self.head.hash,
            own
        ])?;
        self.head = Head { seq, hash: own };
        Ok(seq)
    }
}
