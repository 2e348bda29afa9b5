//! The outbox: notices to webhooks that outlive the process.
//!
//! A notice lies beside the chain, written by the same thread and, where the verdict is known to be late when it is recorded,
//! in the same transaction. It names a decision and the answer that decision overtook, and repeats nothing of either: what
//! is sent is read from the record, so whoever was forgotten there is forgotten here too. Its id follows from what it names,
//! so however often it is posted it is one notice. It sends nothing; `gateway/courier.rs` does.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::db::{self, StoreError};
use super::held::Held;

/// Notices that may wait to be delivered; one more is not kept.
pub const MOST_PENDING: usize = 10_000;
/// Settled ones kept of each kind, the newest.
pub const MOST_SETTLED: usize = 1_000;
/// Characters of a failure.
const LONGEST_FAILURE: usize = 200;

/// The answer that was overtaken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overtaken {
    /// Its decision.
    pub id: String,
    /// What it said.
    pub action: String,
    /// Where it came from.
    pub source: String,
    /// The call it answered.
    pub request_id: String,
}

/// A notice to be kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    id: String,
    tenant: String,
    decision: String,
    served: Overtaken,
}

impl Notice {
    /// That a decision overtook an answer.
    pub fn new(tenant: &str, decision: &str, served: Overtaken) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"weighbridge notice 1\n");
        for part in [tenant, decision, &served.id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let short = digest.first_chunk::<16>().map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        Self { id: short.unwrap_or_default(), tenant: tenant.to_owned(), decision: decision.to_owned(), served }
    }

    /// The event's id, 22 characters; the same for the same notice.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who is told.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The decision that overtook.
    pub fn decision(&self) -> &str {
        &self.decision
    }

    /// The answer that was overtaken.
    pub fn served(&self) -> &Overtaken {
        &self.served
    }
}

/// How far a notice is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// To be tried, or tried again.
    Pending,
    /// Its receiver took it.
    Delivered,
    /// It was given up.
    Dead,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Dead];

    /// As the file and commands spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

/// What became of a try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tried {
    /// The notice.
    pub id: String,
    /// How far it is now.
    pub state: State,
    /// Tries made so far.
    pub tries: usize,
    /// What the last one ended with; empty for a delivery.
    pub failure: String,
}

/// A notice as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// What it says.
    pub notice: Notice,
    /// How far it is.
    pub state: State,
    /// Tries made so far.
    pub tries: usize,
    /// What the last one ended with.
    pub failure: String,
    /// When it was posted, milliseconds since 1970.
    pub created_ms: u64,
    /// When it last changed.
    pub changed_ms: u64,
}

/// What became of an entry of the outbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Posted {
    /// It is there now.
    Now,
    /// It was there already.
    Before,
    /// Its decision is not on record.
    NoSuchDecision,
    /// Too many wait.
    NoRoom,
    /// It is about a notice that was settled or dropped.
    Gone,
}

/// Posts a notice, inside whatever transaction is open.
pub(super) fn post(db: &Connection, notice: &Notice, now: i64) -> Result<Posted, StoreError> {
    if db.prepare_cached("SELECT 1 FROM notices WHERE id = ?1")?.exists([notice.id()])? {
        return Ok(Posted::Before);
    }
    let known = "SELECT 1 FROM records WHERE kind = 'decision' AND id = ?1 AND tenant = ?2";
    if !db.prepare_cached(known)?.exists([notice.decision(), notice.tenant()])? {
        return Ok(Posted::NoSuchDecision);
    }
    if waiting(db)? >= MOST_PENDING {
        return Ok(Posted::NoRoom);
    }
    let Overtaken { id, action, source, request_id } = notice.served();
    let add = "INSERT INTO notices (id, tenant, decision, served_id, served_action, served_source, request_id, state, \
               tries, failure, created, changed) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'pending', 0, '', ?8, ?8)";
    let (own, tenant, decision) = (notice.id(), notice.tenant(), notice.decision());
    db.prepare_cached(add)?.execute(params![own, tenant, decision, id, action, source, request_id, now])?;
    Ok(Posted::Now)
}

/// Takes note of a try, unless the notice was settled or dropped meanwhile.
pub(super) fn tried(db: &Connection, tried: &Tried, now: i64) -> Result<Posted, StoreError> {
    let change = "UPDATE notices SET state = ?2, tries = ?3, failure = ?4, changed = ?5 \
                  WHERE id = ?1 AND state = 'pending'";
    let failure: String = tried.failure.chars().take(LONGEST_FAILURE).collect();
    let tries = i64::try_from(tried.tries).unwrap_or(i64::MAX);
    let changed = db.prepare_cached(change)?.execute(params![tried.id, tried.state.as_str(), tries, failure, now])?;
    if tried.state != State::Pending {
        trim(db, tried.state)?;
    }
    Ok(if changed == 0 { Posted::Gone } else { Posted::Now })
}

/// Lets the oldest settled ones go.
fn trim(db: &Connection, state: State) -> Result<(), StoreError> {
    let cut = "DELETE FROM notices WHERE state = ?1 AND number NOT IN \
               (SELECT number FROM notices WHERE state = ?1 ORDER BY changed DESC, number DESC LIMIT ?2)";
    db.prepare_cached(cut)?.execute(params![state.as_str(), i64::try_from(MOST_SETTLED).unwrap_or(i64::MAX)])?;
    Ok(())
}

fn waiting(db: &Connection) -> Result<usize, StoreError> {
    let count: i64 =
        db.prepare_cached("SELECT count(*) FROM notices WHERE state = 'pending'")?.query_row([], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// A file of an earlier release that nobody wrote to since has no outbox yet.
fn is_there(db: &Connection) -> Result<bool, StoreError> {
    let table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'notices'";
    Ok(db.query_row(table, [], |_| Ok(())).optional()?.is_some())
}

/// Notices of one kind: those that wait in the order in which they came, settled ones the newest first.
pub(super) fn list(db: &Connection, state: State, most: usize) -> Result<Vec<Kept>, StoreError> {
    if !is_there(db)? {
        return Ok(Vec::new());
    }
    let order = if state == State::Pending { "number" } else { "changed DESC, number DESC" };
    let text = format!(
        "SELECT id, tenant, decision, served_id, served_action, served_source, request_id, tries, failure, created, \
         changed FROM notices WHERE state = ?1 ORDER BY {order} LIMIT ?2"
    );
    let mut statement = db.prepare_cached(&text)?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![state.as_str(), most], |row| kept(row, state))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether this notice still waits to be delivered.
pub(super) fn is_pending(db: &Connection, id: &str) -> Result<bool, StoreError> {
    Ok(db.prepare_cached("SELECT 1 FROM notices WHERE id = ?1 AND state = 'pending'")?.exists([id])?)
}

fn kept(row: &rusqlite::Row<'_>, state: State) -> rusqlite::Result<Kept> {
    let served = Overtaken { id: row.get(3)?, action: row.get(4)?, source: row.get(5)?, request_id: row.get(6)? };
    let number = |column| row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or_default());
    Ok(Kept {
        notice: Notice { id: row.get(0)?, tenant: row.get(1)?, decision: row.get(2)?, served },
        state,
        tries: usize::try_from(number(7)?).unwrap_or(usize::MAX),
        failure: row.get(8)?,
        created_ms: number(9)?,
        changed_ms: number(10)?,
    })
}

/// Which notices an operator means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    /// Every dead one.
    AllDead,
    /// This one.
    One(String),
}

impl Which {
    fn id(&self) -> Option<&str> {
        match self {
            Self::AllDead => None,
            Self::One(id) => Some(id),
        }
    }
}

/// Makes dead letters pending again, with all their tries before them; how many. Works beside a running process, which
/// finds them by itself.
///
/// # Errors
/// [`StoreError`].
pub fn revive(folder: &Path, which: &Which, now: i64) -> Result<usize, StoreError> {
    let again = "UPDATE notices SET state = 'pending', tries = 0, changed = ?2 \
                 WHERE state = 'dead' AND (?1 IS NULL OR id = ?1)";
    Ok(to_write(folder)?.execute(again, params![which.id(), now])?)
}

/// Drops dead letters, or one that is still pending; how many. What is on its way this moment still arrives.
///
/// # Errors
/// [`StoreError`].
pub fn discard(folder: &Path, which: &Which) -> Result<usize, StoreError> {
    let gone = "DELETE FROM notices WHERE (?1 IS NULL AND state = 'dead') OR (id = ?1 AND state != 'delivered')";
    Ok(to_write(folder)?.execute(gone, params![which.id()])?)
}

fn to_write(folder: &Path) -> Result<Held, StoreError> {
    if !folder.join(db::FILE).exists() {
        return Err(StoreError::None(folder.to_owned()));
    }
    db::open(folder)
}

#[cfg(test)]
mod tests;
