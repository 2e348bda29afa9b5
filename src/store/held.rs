//! A connection to the file, and what is done before the first one of a process looks at the write-ahead log.
//!
//! When a sync fails, Linux forgets that the pages were not written: they read as if they were, and the next sync says that
//! all is well (<https://www.usenix.org/conference/atc20/presentation/rebello>, read Nov 2026). `SQLite` does not know of
//! that. A commit that failed may leave a hole in the log that later commits lie behind; a log that is moved into the file
//! in parts is believed to be there after a sync that did not cover the first of them; and after a crash a new process takes
//! what it reads in the log for what the disk has. So after any failed sync the record is distrusted: nothing is moved any
//! more, and before the next commit the log is written once more, in whole. The log of a process that crashed is, too,
//! because a process that dies in a sync does not hear how it ended. A log that is read anew is moved from its beginning.
//!
//! Other processes see the distrust from a file beside the record. Only whoever is alone with the record can end it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::file::{FILE, StoreError, sync_name};

/// The write-ahead log's name.
const LOG: &str = "decisions.db-wal";
/// What a log is called until it has the other's name.
const FRESH: &str = "decisions.db-wal.new";
/// There while the record is distrusted.
const MARK: &str = "decisions.db-distrusted";
/// Bytes written at a time.
const PIECE: usize = 1 << 16;

/// What is open in this process, by folder. A process has one record, tests have several.
static PLACES: Mutex<BTreeMap<Arc<Path>, Use>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Use {
    connections: usize,
    /// This process has opened it before, so what it reads in the log it knows of.
    opened: bool,
    /// Also where the mark could not be made.
    distrusted: bool,
}

fn places() -> MutexGuard<'static, BTreeMap<Arc<Path>, Use>> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of the connections of this process to the record in a folder.
pub struct Held {
    // Closed before it is counted as such.
    db: Connection,
    place: Place,
}

impl Held {
    /// Opens the file under this name. If it is the only connection that anybody has, and the first one of this process or
    /// the first one after a failed sync, the log is written once more before.
    ///
    /// # Errors
    /// [`StoreError`] if the log cannot be written, or the file cannot be opened.
    pub(super) fn open(folder: &Path, name: impl AsRef<Path>, flags: OpenFlags) -> Result<Self, StoreError> {
        let place = Place::enter(folder)?;
        Ok(Self { db: Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?, place })
    }

    /// Whose failures are told to [`distrust`].
    pub(super) fn folder(&self) -> Arc<Path> {
        Arc::clone(&self.place.0)
    }

    /// Writes the log once more where others have the record open and it is distrusted: nobody writes meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]; the record must not be written to.
    pub(super) fn mend(&self) -> Result<(), StoreError> {
        if !is_distrusted(&self.place.0) {
            return Ok(());
        }
        let log = self.place.0.join(LOG);
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let mended = again(&log).map_err(StoreError::io(&log));
        self.db.execute_batch("ROLLBACK")?;
        mended
    }

    /// Leaves the log as it is when this is closed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn keep_log(&self) -> Result<(), StoreError> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(())
    }
}

impl Deref for Held {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.db
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.db
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if is_distrusted(&self.place.0) {
            // It fails for no open connection.
            let _ = self.keep_log();
        }
    }
}

struct Place(Arc<Path>);

impl Place {
    fn enter(folder: &Path) -> Result<Self, StoreError> {
        let folder: Arc<Path> = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned()).into();
        let mut places = places();
        let found = places.entry(Arc::clone(&folder)).or_default();
        // A file of ours that is closed gives up the locks of all connections of this process.
        let unsure = !found.opened || found.distrusted || folder.join(MARK).exists();
        if found.connections == 0 && unsure && renewed(&folder)? {
            found.distrusted = false;
        }
        found.opened = true;
        found.connections += 1;
        Ok(Self(folder))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = places();
        let Some(found) = places.get_mut(&self.0) else { return };
        found.connections = found.connections.saturating_sub(1);
    }
}

/// Whether nothing may be moved from the log into the file.
pub(super) fn is_distrusted(folder: &Path) -> bool {
    places().get(folder).is_some_and(|found| found.distrusted) || folder.join(MARK).exists()
}

/// Distrusts the record if this is what a failed sync looks like.
pub(super) fn distrust(folder: &Path, error: &StoreError) {
    let StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = error else { return };
    let of_a_sync = [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&failure.extended_code);
    if !of_a_sync || is_distrusted(folder) {
        return;
    }
    let mut places = places();
    if let Some(found) = places.get_mut(folder) {
        found.distrusted = true;
    }
    drop(places);
    let marked = File::create(folder.join(MARK)).err();
    tracing::error!(
        %error, unmarked = marked.map(tracing::field::display),
        "the disk did not keep the record: its log is written once more, in whole, before the next decision is given"
    );
}

/// Writes the log once more, if nobody has the record open; whether nothing is left to distrust.
fn renewed(folder: &Path) -> Result<bool, StoreError> {
    let (file, log, mark) = (folder.join(FILE), folder.join(LOG), folder.join(MARK));
    let there = fs::metadata(&log).is_ok_and(|about| about.len() > 0);
    if !there && !mark.exists() {
        return Ok(true);
    }
    let lock = match OpenOptions::new().read(true).write(true).open(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        lock => lock.map_err(StoreError::io(&file))?,
    };
    // Whoever has it open holds a lock on some byte of it; who would open it now waits.
    if fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    if there {
        match copied(folder, &log) {
            Err(error) if error.kind() == ErrorKind::StorageFull => again(&log),
            written => written,
        }
        .map_err(StoreError::io(&log))?;
        sync_name(&log)?;
    }
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(&mark)(error)),
        _ => Ok(true),
    }
}

/// Puts a copy in its place, so that nothing the disk has is written over.
fn copied(folder: &Path, log: &Path) -> io::Result<()> {
    let fresh: PathBuf = folder.join(FRESH);
    let written = File::open(log).and_then(|from| {
        let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let (was, is) = (from.metadata()?, to.metadata()?);
        to.set_permissions(was.permissions())?;
        if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
            fchown(&to, Some(was.uid()), Some(was.gid()))?;
        }
        write(&from, &to)
    });
    match written {
        Ok(()) => fs::rename(&fresh, log),
        Err(error) => {
            // What is left of it is written over the next time.
            let _ = fs::remove_file(&fresh);
            Err(error)
        }
    }
}

/// Writes what is read, where it is read.
fn again(log: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(log)?;
    write(&file, &file)
}

fn write(from: &File, to: &File) -> io::Result<()> {
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    loop {
        let length = from.read_at(&mut piece, at)?;
        let Some(read) = piece.get(..length).filter(|read| !read.is_empty()) else { break };
        to.write_all_at(read, at)?;
        at += length as u64;
    }
    to.sync_all()
}
