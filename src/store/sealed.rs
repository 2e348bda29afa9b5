//! Whether sealed parts can still be opened, or else the chain says why not.
//!
//! The chain covers what is sealed, not the keys it is sealed under: those may go. So beside the walk over the chain somebody
//! must ask of each key whether it is the one that was made then, and of each that is gone whether a record says so.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension};
use serde::Deserialize;

use super::chain::{Finding, Row, Wrong, unhex};
use super::db::StoreError;
use super::keys::{Keys, SubjectId, SubjectKey};
use super::retention::{Erased, Expired};
use crate::domain::retention::Day;

/// Keys kept at hand.
const MOST_KEYS: usize = 100_000;

/// What a record says of how long its personal part can be read.
#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    kept_until: Option<String>,
}

impl Kept {
    fn day(body: &[u8]) -> Option<Day> {
        Day::read(&serde_json::from_slice::<Self>(body).ok()?.kept_until?)
    }
}

/// A key that is not there: the first record it sealed, and its last day.
struct Gone {
    seq: i64,
    until: Option<Day>,
}

enum Found {
    Key(SubjectKey),
    Gone,
}

/// Looks at the sealed parts of a walk. What it remembers is bounded by the keys that were ever destroyed.
pub(super) struct Seals<'k> {
    keys: &'k Keys,
    /// False for a file of the first schema, whose keys have no last day.
    dated: bool,
    opened: HashMap<SubjectId, Found>,
    gone: HashMap<SubjectId, Gone>,
    erased: HashSet<SubjectId>,
    expired: Day,
    seen: u64,
}

impl<'k> Seals<'k> {
    pub(super) fn new(keys: &'k Keys, db: &Connection) -> Result<Self, StoreError> {
        let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok(Self {
            keys,
            dated: schema >= 2,
            opened: HashMap::new(),
            gone: HashMap::new(),
            erased: HashSet::new(),
            expired: Day(0),
            seen: 0,
        })
    }

    /// Takes the next record, whose hash is as it was; what is wrong with it, if anything.
    ///
    /// # Errors
    /// [`StoreError`] if keys cannot be read.
    pub(super) fn take(&mut self, db: &Connection, row: &Row<'_>) -> Result<Option<Wrong>, StoreError> {
        let content = &row.content;
        match content.kind {
            "erasure" => return self.erasure(db, content.id, content.body),
            "expiry" => {
                let expired = serde_json::from_slice::<Expired>(content.body).ok();
                self.expired =
                    expired.and_then(|expired| Day::read(&expired.up_to)).unwrap_or_default().max(self.expired);
                return Ok(None);
            }
            _ => {}
        }
        let (Some(subject), Some(sealed)) = (content.subject, content.sealed) else { return Ok(None) };
        let Ok(subject) = SubjectId::try_from(subject) else { return Ok(Some(Wrong::Unsealable)) };
        if self.opened.len() > MOST_KEYS {
            self.opened.clear();
        }
        if !self.opened.contains_key(&subject) {
            match self.look(db, &subject, row)? {
                Ok(found) => drop(self.opened.insert(subject, found)),
                Err(wrong) => return Ok(Some(wrong)),
            }
        }
        Ok(match self.opened.get(&subject) {
            Some(Found::Key(key)) if key.open(content.id.as_bytes(), sealed).is_none() => Some(Wrong::Unsealable),
            Some(Found::Key(_)) => {
                self.seen += 1;
                None
            }
            Some(Found::Gone) | None => None,
        })
    }

    fn look(&mut self, db: &Connection, id: &SubjectId, row: &Row<'_>) -> Result<Result<Found, Wrong>, StoreError> {
        let until = if self.dated { "until" } else { "0" };
        let text = format!("SELECT wrapped, {until} FROM subjects WHERE id = ?1");
        let mut statement = db.prepare_cached(&text)?;
        // A column of another kind is a damaged key, too.
        let found =
            statement.query_row([id], |row| Ok((row.get_ref(0)?.as_blob().ok().map(<[u8]>::to_vec), row.get(1)?)));
        let kept = Kept::day(row.content.body);
        let Some((wrapped, until)): Option<(Option<Vec<u8>>, i64)> = found.optional()? else {
            self.gone.entry(*id).or_insert(Gone { seq: row.seq, until: kept });
            return Ok(Ok(Found::Gone));
        };
        // What is said later about a decision does not repeat its last day.
        if row.content.kind != "outcome" && until != kept.map_or(0, |day| i64::from(day.0)) {
            return Ok(Err(Wrong::KeyMoved));
        }
        let key = wrapped.and_then(|wrapped| self.keys.subject(id, &wrapped));
        Ok(key.map(Found::Key).ok_or(Wrong::KeyDamaged))
    }

    fn erasure(&mut self, db: &Connection, name: &str, body: &[u8]) -> Result<Option<Wrong>, StoreError> {
        let erased = serde_json::from_slice::<Erased>(body).map(|erased| erased.keys).unwrap_or_default();
        let names = erased.iter().map(String::as_str).chain([name]);
        for id in names.filter_map(unhex::<16>) {
            if db.prepare_cached("SELECT 1 FROM subjects WHERE id = ?1")?.exists([id])? {
                return Ok(Some(Wrong::KeyBack));
            }
            self.erased.insert(id);
        }
        Ok(None)
    }

    /// There are no more records: the first one whose key is gone without a word, if there is one.
    pub(super) fn finish(self) -> Result<(u64, u64), Finding> {
        let told = |id: &SubjectId, gone: &Gone| {
            self.erased.contains(id) || gone.until.is_some_and(|until| until <= self.expired)
        };
        let untold = self.gone.iter().filter(|(id, gone)| !told(id, gone)).map(|(_, gone)| gone.seq).min();
        match untold {
            Some(seq) => Err(Finding { seq, wrong: Wrong::KeyGone }),
            None => Ok((self.seen, u64::try_from(self.gone.len()).unwrap_or(u64::MAX))),
        }
    }
}
