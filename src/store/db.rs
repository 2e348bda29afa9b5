//! The file: how it is opened, which schema it has, and what can go wrong with it.
//!
//! `synchronous = FULL` in WAL mode: a commit that returned is on disk. The log is not trusted to a disk that leaves alone
//! what it was not told to write (`psow=0`, <https://www.sqlite.org/psow.html>, read Nov 2026): each commit ends with its
//! sector, or a sector that the next one tears when the power goes would take it along. `secure_delete` overwrites what is
//! deleted, because the only rows ever deleted are keys.

use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

pub(super) use super::file::sync_name;
pub use super::file::{FILE, StoreError};
use super::held::Held;

/// How long another process that writes is waited for.
pub(super) const BUSY: Duration = Duration::from_secs(2);

/// Each one brings the file from the version before it to its own.
const SCHEMA: &[&str] = &[
    include_str!("schema/1.sql"),
    // Keys by person and last day.
    include_str!("schema/2.sql"),
    // Notices that outlive the process.
    include_str!("schema/3.sql"),
];

/// Makes the folder if there is none, and its name durable.
///
/// # Errors
/// [`StoreError::Io`].
pub fn folder(path: &Path) -> Result<(), StoreError> {
    let made: Vec<_> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io(path))?;
    made.into_iter().try_for_each(sync_name)
}

/// The file as SQLite takes it with what is said of the disk.
fn uri(path: &Path) -> String {
    let mut uri = if path.is_absolute() { "file://" } else { "file:" }.to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            // Writing to a text cannot fail.
            byte => drop(write!(uri, "%{byte:02X}")),
        }
    }
    uri + "?psow=0"
}

/// Opens the file for writing, makes it if there is none, and brings it up to date.
///
/// # Errors
/// [`StoreError`].
pub(super) fn open(folder: &Path) -> Result<Held, StoreError> {
    let path = folder.join(FILE);
    make(&path).map_err(StoreError::io(&path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    let db = Held::open(folder, uri(&path), flags)?;
    prepared(&db, &path).inspect_err(|error| db.place().distrust(error))?;
    Ok(db)
}

/// Makes the file if there is none. One that is there is not touched: whoever closes a file gives up the locks that other
/// connections of the same process have on it (<https://www.sqlite.org/howtocorrupt.html>, read Nov 2026), and then the next
/// process that only reads takes itself for the last one and removes the log.
fn make(path: &Path) -> io::Result<()> {
    // SQLite gives its other files the permissions of this one.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn prepared(db: &Held, path: &Path) -> Result<(), StoreError> {
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "secure_delete", "ON")?;
    keep_log(db)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    // Not in the middle of a commit: see `sweep.rs`.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    migrate(db)?;
    // The log's name, too: SQLite does not look at whether the folder could be synced.
    sync_name(path)
}

/// Has SQLite keep a write-ahead log: in its old mode a commit that returned is undone by a loss of power.
///
/// The answer comes before the change is committed. Whoever reads no further does not hear of a sync that failed in between,
/// and goes on in the old mode.
fn keep_log(db: &Connection) -> Result<(), StoreError> {
    let mut change = db.prepare("PRAGMA journal_mode = WAL")?;
    let modes = change.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    if modes == ["wal"] { Ok(()) } else { Err(StoreError::NoLog) }
}

/// Opens the file for moving the log into it, beside whoever writes.
///
/// # Errors
/// [`StoreError`] if it cannot be opened.
pub(super) fn open_beside(folder: &Path) -> Result<Held, StoreError> {
    let db = Held::open(folder, folder.join(FILE), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "secure_delete", "ON")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

/// Moves as much of the log into the file as nobody still reads; how many pages the log has. It stops nobody, and leaves the
/// log of a distrusted record alone.
///
/// # Errors
/// [`StoreError`] if the disk does not take it.
pub(super) fn move_log(db: &Held) -> Result<i64, StoreError> {
    if db.place().is_distrusted() {
        return Ok(0);
    }
    let moved = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1)).map_err(StoreError::from);
    moved.inspect_err(|error| db.place().distrust(error))
}

/// Moves the log into the file and cuts it to nothing. False if somebody reads it, or it must be left alone; then it is
/// still there.
///
/// # Errors
/// [`StoreError`] if the disk does not take it.
pub(super) fn empty_log(db: &Held) -> Result<bool, StoreError> {
    if db.place().is_distrusted() {
        return Ok(false);
    }
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    let busy = busy.map_err(StoreError::from).inspect_err(|error| db.place().distrust(error))?;
    Ok(busy == 0)
}

/// Opens the file for reading, beside whoever writes. The log stays as it is when this is closed.
///
/// # Errors
/// [`StoreError::None`] if there is no file.
pub(super) fn open_to_read(folder: &Path) -> Result<Held, StoreError> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Err(StoreError::None(folder.to_owned()));
    }
    let db = Held::open(folder, &path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    db.busy_timeout(BUSY)?;
    db.keep_log()?;
    db.pragma_update(None, "query_only", "ON")?;
    Ok(db)
}

fn migrate(db: &Held) -> Result<(), StoreError> {
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let found = version(db)?;
    let known = SCHEMA.len();
    let done = usize::try_from(found).ok().filter(|done| *done <= known);
    if done.ok_or(StoreError::TooNew { found, known })? == known {
        return Ok(());
    }
    // Looked at again inside: another process may have been faster.
    db.execute_batch("BEGIN IMMEDIATE")?;
    db.place().mend()?;
    let done = usize::try_from(version(db)?).unwrap_or(known);
    for (script, number) in SCHEMA.iter().zip(1..).skip(done) {
        db.execute_batch(script)?;
        db.pragma_update(None, "user_version", number)?;
    }
    db.execute_batch("COMMIT")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_any_name_is_made_and_its_record_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a b%20?c=#d/ü/kept");
        folder(&path).unwrap();
        drop(open(&path).unwrap());
        assert!(path.join(FILE).exists() && open_to_read(&path).is_ok());
        assert_eq!(uri(Path::new("kept/decisions.db")), "file:kept/decisions.db?psow=0");
        assert_eq!(uri(Path::new("/k pt")), "file:///k%20pt?psow=0");
    }
}
