//! One decision per payment attempt, also while two processes decide: the old one finishes what it has, the new one takes
//! what comes.
//!
//! A claim is a file that only one of the two can make. It is made before the provider is asked and goes once the verdict
//! is on record, so whoever makes it next reads the record first and finds the verdict there. That costs a decision some
//! file operations, for as long as the hand-over takes and not a moment longer. A claim whose process died is cleared with
//! all others when the survivor learns of that; where a claim cannot be made (a full disk) the call goes on without: the
//! record decides then whether anything may be answered.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;

use super::Key;
use crate::store::chain::hex;
use crate::store::db::StoreError;
use crate::store::query::{Reader, Stored};
use crate::store::writer::Pending;

/// The folder of claims in the data folder.
const FOLDER: &str = "claims";
/// How often a claim of the other process is looked at again.
const LOOK: Duration = Duration::from_millis(5);

/// The claims of one process, and its view of the record.
pub struct Claims {
    folder: PathBuf,
    reader: Arc<Reader>,
    /// The last record that was read.
    seen: Mutex<i64>,
    mine: Mutex<HashSet<Key>>,
    over: AtomicBool,
}

impl Claims {
    /// For the old process, which knows all decisions on record: makes a fresh folder in this data folder.
    ///
    /// # Errors
    /// [`StoreError`] if there can be none, or the record cannot be read.
    pub fn begin(data: &Path, reader: &Arc<Reader>) -> Result<Arc<Self>, StoreError> {
        let folder = data.join(FOLDER);
        let fresh = clear(&folder).and_then(|()| fs::DirBuilder::new().mode(0o700).create(&folder));
        fresh.map_err(StoreError::io(&folder))?;
        Ok(Self::new(folder, reader, reader.newest()?))
    }

    /// For the new process, which has read all records up to `seen`. `None` if the old one made no folder here.
    pub fn join(data: &Path, reader: &Arc<Reader>, seen: i64) -> Option<Arc<Self>> {
        let folder = data.join(FOLDER);
        folder.is_dir().then(|| Self::new(folder, reader, seen))
    }

    fn new(folder: PathBuf, reader: &Arc<Reader>, seen: i64) -> Arc<Self> {
        let (seen, mine, over) = (Mutex::new(seen), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { folder, reader: Arc::clone(reader), seen, mine, over })
    }

    /// Removes what a crash left behind; for a start without another process.
    pub fn forget(data: &Path) {
        let _ = clear(&data.join(FOLDER));
    }

    /// Claims what is in flight here already.
    pub(super) fn keep(&self, key: Key) {
        self.try_claim(key);
    }

    /// Waits until the attempt is ours to decide.
    ///
    /// # Cancel safety
    /// Yes: a claim that was made is given back with the lead it was made for.
    pub(super) async fn claim(&self, key: Key) {
        while !self.try_claim(key) {
            sleep(LOOK).await;
        }
    }

    /// False if it is the other's.
    fn try_claim(&self, key: Key) -> bool {
        if self.over.load(Ordering::Acquire) {
            return true;
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.file(key));
        match made {
            Ok(_) => {
                self.mine().insert(key);
                true
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            // The other process is gone and everything is cleared.
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => {
                tracing::error!(%error, "a payment cannot be claimed while another process takes over");
                true
            }
        }
    }

    /// Lets others have it, once its verdict is on record.
    pub(super) fn give_back(self: &Arc<Self>, key: Key, recorded: Option<Pending>) {
        if !self.mine().remove(&key) {
            return;
        }
        match (recorded, Handle::try_current()) {
            (Some(recorded), Ok(runtime)) => {
                let claims = Arc::clone(self);
                runtime.spawn(async move {
                    // If it failed there is no verdict to be found: another may be asked for.
                    let _ = recorded.outcome().await;
                    claims.remove(key);
                });
            }
            (_, _) => self.remove(key),
        }
    }

    fn remove(&self, key: Key) {
        // It may be cleared already.
        let _ = fs::remove_file(self.file(key));
    }

    /// Tells of every decision recorded since the last time. Blocks.
    pub(super) fn catch_up(&self, each: impl FnMut(&Stored)) -> Result<(), StoreError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = self.reader.after(*seen, each)?;
        Ok(())
    }

    /// There is no other process any more: nothing is claimed, and whoever waits goes on.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        let _ = clear(&self.folder);
    }

    fn file(&self, key: Key) -> PathBuf {
        self.folder.join(hex(&key))
    }

    fn mine(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.mine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
