//! Forgetting: a person at once, and what is due on schedule, by destroying the keys it is sealed under.
//!
//! No record goes: what was decided stays, nobody can read any more about whom, and the chain says that keys were destroyed.
//! Due is a key on the day after its last one, by the clock of this machine. The schedule destroys a bounded number of keys
//! at a time, so that decisions never wait long, and empties the write-ahead log afterwards, where the keys lay too.

use std::time::Duration;

use rusqlite::params;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::book::{Book, Page, now};
use super::chain::{Content, hex};
use super::db::{self, StoreError};
use super::keys::SubjectId;
use super::record::spelled;
use crate::domain::retention::Day;

/// Keys destroyed in one transaction of the schedule.
const MOST_TOGETHER: usize = 256;
/// How long the schedule leaves a log alone that somebody reads, or a file that cannot be written.
const PAUSE: Duration = Duration::from_secs(60);
/// In this time most of the log is moved into the file by another thread, so that cutting it takes the writer's only briefly.
const MOVING: Duration = Duration::from_secs(1);

/// What the record of an erasure says: which keys. In a record of an earlier version it is empty, and the record's name is
/// the one key.
#[derive(Serialize, Deserialize)]
pub(super) struct Erased {
    #[serde(default)]
    pub(super) keys: Vec<String>,
}

/// What the record of a destruction on schedule says: how many keys, and that their last day was this or an earlier one.
#[derive(Serialize, Deserialize)]
pub(super) struct Expired {
    pub(super) keys: usize,
    pub(super) up_to: String,
}

impl Book {
    /// Destroys all keys of a person and records that it was done; the number of that record, `None` if there is no key.
    ///
    /// # Errors
    /// [`StoreError`]; then the keys are still there.
    pub fn erase(&mut self, tenant: &str, user: &str) -> Result<Option<i64>, StoreError> {
        let lookup = self.lookup(tenant, user);
        let mut page = self.turn()?;
        let keys = destroyed(&page, "lookup = ?1 RETURNING id", params![lookup])?;
        let Some(first) = keys.first().cloned() else {
            drop(page);
            // The one who asks again after a failure has them out of the log, too.
            self.empty_log()?;
            return Ok(None);
        };
        let body = spelled(&Erased { keys });
        let subject = super::chain::unhex::<16>(&first);
        let subject = subject.as_ref().map(<[u8; 16]>::as_slice);
        let content = Content { kind: "erasure", id: &first, at: now(), tenant, body: &body, subject, sealed: None };
        let seq = page.write(content);
        let seq = page.close(seq)?;
        if !self.empty_log()? {
            tracing::warn!(
                "the key was destroyed, and a reader keeps the write-ahead log: it may hold the key until its next checkpoint"
            );
        }
        Ok(Some(seq))
    }

    /// Destroys keys whose last day was `up_to` or an earlier one, at most so many, and records how many.
    pub(super) fn expire(&mut self, up_to: Day, most: usize) -> Result<usize, StoreError> {
        let mut page = self.turn()?;
        let due = "id IN (SELECT id FROM subjects WHERE until > 0 AND until <= ?1 LIMIT ?2) RETURNING id";
        let keys = destroyed(&page, due, params![up_to.0, i64::try_from(most).unwrap_or(i64::MAX)])?.len();
        if keys == 0 {
            return Ok(0);
        }
        let body = spelled(&Expired { keys, up_to: up_to.text() });
        let content =
            Content { kind: "expiry", id: "", at: now(), tenant: "", body: &body, subject: None, sealed: None };
        let written = page.write(content);
        page.close(written)?;
        Ok(keys)
    }

    /// Moves the write-ahead log into the file and cuts it to nothing. False if it is still there.
    fn empty_log(&self) -> Result<bool, StoreError> {
        // The key is in older pages of the log until they are written over.
        db::empty_log(self.db())
    }

    /// As [`Self::empty_log`], and nobody is waited for.
    fn try_empty_log(&self) -> Result<bool, StoreError> {
        self.db().busy_timeout(Duration::ZERO)?;
        let emptied = self.empty_log();
        self.db().busy_timeout(db::BUSY)?;
        emptied
    }
}

/// Deletes keys and gives their names.
fn destroyed(page: &Page<'_>, which: &str, values: impl rusqlite::Params) -> Result<Vec<String>, StoreError> {
    let mut statement = page.tx().prepare(&format!("DELETE FROM subjects WHERE {which}"))?;
    let names = statement.query_map(values, |row| row.get::<_, SubjectId>(0).map(|id| hex(&id)))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// When what is due is destroyed: at the start, and when a day begins.
pub(super) struct Schedule {
    /// The day on which nothing more was due.
    done: Option<Day>,
    /// The log still holds destroyed keys.
    log: bool,
    /// Destroyed on this day so far.
    keys: usize,
    /// A step failed since something was told.
    failed: bool,
    again: Option<Instant>,
}

impl Schedule {
    pub(super) fn new() -> Self {
        Self { done: None, log: false, keys: 0, failed: false, again: None }
    }

    /// How long until there is something to do; zero for now.
    pub(super) fn pause(&self, today: Day) -> Duration {
        if self.done == Some(today) && !self.log {
            return Duration::MAX;
        }
        self.again.map_or(Duration::ZERO, |again| again.saturating_duration_since(Instant::now()))
    }

    /// One bounded step; how many keys it destroyed.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was destroyed.
    pub(super) fn step(&mut self, book: &mut Book, today: Day) -> Result<usize, StoreError> {
        if self.done == Some(today) {
            self.log = !book.try_empty_log()?;
            self.again = self.log.then(|| Instant::now() + PAUSE);
            return Ok(0);
        }
        let up_to = Day(today.0.saturating_sub(1));
        let keys = book.expire(up_to, MOST_TOGETHER)?;
        (self.keys, self.log) = (self.keys + keys, self.log || keys > 0);
        self.again = None;
        if keys < MOST_TOGETHER {
            self.finish(today, up_to);
            self.again = self.log.then(|| Instant::now() + MOVING);
        }
        Ok(keys)
    }

    /// A step failed: the next one is due after a pause. The disk may have kept what it said it could not, and then the keys
    /// lie in the log and nothing more is due.
    pub(super) fn rest(&mut self) {
        (self.log, self.failed) = (true, true);
        self.again = Some(Instant::now() + PAUSE);
    }

    fn finish(&mut self, today: Day, up_to: Day) {
        self.done = Some(today);
        let (keys, failed) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.failed));
        // Whoever read that it failed reads that it was done, also if the disk had done it.
        if keys > 0 || failed {
            tracing::info!(keys, up_to = up_to.text(), "keys whose time was over are destroyed");
        }
    }
}

#[cfg(test)]
mod tests;
