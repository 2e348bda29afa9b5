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
//! Other processes see the distrust from a file beside the record, which is longer by a byte for each sync that failed: a
//! process whose own syncs are well writes the log once more, too. Only whoever is alone with the record can end it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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

/// The folders that this process has to do with. A process has one record, tests have several.
static PLACES: Mutex<BTreeMap<PathBuf, Weak<Place>>> = Mutex::new(BTreeMap::new());

/// What this process knows of a folder for as long as anybody has this.
pub(super) struct Place {
    /// Without detours: it has one name.
    folder: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    connections: usize,
    /// This process has opened it before, so what it reads in the log it knows of.
    opened: bool,
    /// Syncs of this process that failed, also where the mark could not be made.
    failed: u64,
    /// The [`Place::failures`] after which the log was written once more.
    mended: u64,
}

impl Place {
    /// What is known of a folder, by whatever name.
    pub(super) fn of(folder: &Path) -> Arc<Self> {
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| place.strong_count() > 0);
        places.get(&folder).and_then(Weak::upgrade).unwrap_or_else(|| {
            let place = Arc::new(Self { folder: folder.clone(), known: Mutex::default() });
            places.insert(folder, Arc::downgrade(&place));
            place
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many syncs failed, of anybody, since somebody was alone with the record. It is one look at the folder.
    fn failures(&self) -> u64 {
        let marked = fs::metadata(self.folder.join(MARK)).map_or(0, |mark| mark.len() + 1);
        self.known().failed + marked
    }

    /// Whether nothing may be moved from the log into the file.
    pub(super) fn is_distrusted(&self) -> bool {
        self.failures() > 0
    }

    /// Distrusts the record if this is what a failed sync looks like.
    pub(super) fn distrust(&self, error: &StoreError) {
        let StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = error else { return };
        if ![ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC].contains(&failure.extended_code) {
            return;
        }
        let first = !self.is_distrusted();
        self.known().failed += 1;
        let mark = OpenOptions::new().create(true).append(true).mode(0o600).open(self.folder.join(MARK));
        let marked = mark.and_then(|mut mark| mark.write_all(b"."));
        if first {
            tracing::error!(
                %error, unmarked = marked.err().map(tracing::field::display),
                "the disk did not keep the record: its log is written once more, in whole, before the next decision is given"
            );
        }
    }

    /// Writes the log once more if a sync failed since that was done last, whoever's. To be called by whoever holds the
    /// lock to write, before anything is written.
    ///
    /// # Errors
    /// [`StoreError`]; the record must not be written to.
    pub(super) fn mend(&self) -> Result<(), StoreError> {
        let failures = self.failures();
        if failures <= self.known().mended {
            return Ok(());
        }
        let log = self.folder.join(LOG);
        again(&log).map_err(StoreError::io(&log))?;
        self.known().mended = failures;
        Ok(())
    }
}

/// One of the connections of this process to the record in a folder.
pub struct Held {
    // Closed before it is counted as such.
    db: Connection,
    counted: Counted,
}

impl Held {
    /// Opens the file under this name. If it is the only connection that anybody has, and the first one of this process or
    /// the first one after a failed sync, the log is written once more before.
    ///
    /// # Errors
    /// [`StoreError`] if the log cannot be written, or the file cannot be opened.
    pub(super) fn open(folder: &Path, name: impl AsRef<Path>, flags: OpenFlags) -> Result<Self, StoreError> {
        let counted = Counted::enter(folder)?;
        Ok(Self { db: Connection::open_with_flags(name, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?, counted })
    }

    /// Who is told of its failures.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.counted.0
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
        if self.place().is_distrusted() {
            // It fails for no open connection.
            let _ = self.keep_log();
        }
    }
}

struct Counted(Arc<Place>);

impl Counted {
    fn enter(folder: &Path) -> Result<Self, StoreError> {
        let place = Place::of(folder);
        let mut known = place.known();
        // A file of ours that is closed gives up the locks of all connections of this process.
        if known.connections == 0 {
            known.mended = 0;
            let unsure = !known.opened || known.failed > 0 || place.folder.join(MARK).exists();
            if unsure && renewed(&place.folder)? {
                known.failed = 0;
            }
        }
        known.opened = true;
        known.connections += 1;
        drop(known);
        Ok(Self(place))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut known = self.0.known();
        known.connections = known.connections.saturating_sub(1);
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::book::{self, Book};
    use super::super::query::Reader;
    use super::super::testing::told;
    use super::*;

    fn failed_sync() -> StoreError {
        rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), None).into()
    }

    fn begun() -> (TempDir, Book) {
        let folder = tempfile::tempdir().unwrap();
        let keys = book::keys(folder.path()).unwrap();
        let book = Book::open(folder.path(), keys).unwrap();
        (folder, book)
    }

    #[test]
    fn row_25_a_distrust_that_could_not_be_marked_is_seen_by_whoever_knows_the_folder_by_another_name() {
        let (folder, book) = begun();
        let (place, names) = (Place::of(folder.path()), tempfile::tempdir().unwrap());
        let other = names.path().join("other");
        symlink(folder.path(), &other).unwrap();
        let reader = Reader::open(&other).unwrap();
        reader.newest().unwrap();
        assert_eq!(place.known().connections, 2);
        reader.give_way();
        assert_eq!(place.known().connections, 2, "nobody has to be alone with it");
        place.distrust(&failed_sync());
        fs::remove_file(place.folder.join(MARK)).unwrap();
        reader.give_way();
        assert_eq!(place.known().connections, 1);
        drop(book);
    }

    #[test]
    fn row_25_each_failure_of_anybody_has_the_log_written_once_more_and_once() {
        let (folder, mut book) = begun();
        let place = Place::of(folder.path());
        let mut mended = |number| {
            book.add(&[&told("u", number)], None).unwrap();
            place.known().mended
        };
        assert_eq!(mended(1), 0);
        // Of another process: this one hears of it by the mark only.
        fs::write(folder.path().join(MARK), ".").unwrap();
        assert_eq!(mended(2), 2);
        place.known().mended = 1;
        assert_eq!((mended(3), mended(4)), (2, 2));
        place.distrust(&failed_sync());
        assert_eq!((place.failures(), mended(5)), (4, 4));
        // It could not be marked.
        place.known().failed += 1;
        assert_eq!(mended(6), 5);
        drop(book);
        drop(Held::open(folder.path(), folder.path().join(FILE), OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap());
        assert!(!place.is_distrusted(), "whoever is alone with it ends it");
    }

    #[test]
    fn a_folder_that_nobody_has_is_not_kept_in_mind() {
        let (folder, book) = begun();
        let known = |folder: &TempDir| {
            let folder = fs::canonicalize(folder.path()).unwrap();
            PLACES.lock().unwrap().contains_key(&folder)
        };
        let (other, kept) = (tempfile::tempdir().unwrap(), Place::of(folder.path()));
        drop(book);
        drop(Place::of(other.path()));
        assert!(known(&folder) && kept.known().opened, "of what it read in the log it knows still");
        drop(kept);
        let last = Place::of(other.path());
        assert!(!known(&folder) && known(&other));
        drop(last);
    }
}
