//! Moves what is durable in the write-ahead log into the file, beside the writer, so that no commit waits for it.
//!
//! Only the very end of a long log is left to the writer ([`super::book::Book::finish_log`]): a log begins anew when all of
//! it has been moved, and while decisions come without a pause only whoever writes can see to that. Nothing here is needed
//! for a record to be durable.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use super::db::{self, StoreError};

/// Records after which the log is looked at.
const RECORDS: usize = 512;
/// Pages in a log that is long: 64 MiB.
const LONG: i64 = 16_384;

/// Asks for the log to be moved.
pub(super) struct Sweeper {
    ask: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Pages in the log when it was last looked at.
    pages: Arc<AtomicI64>,
    records: usize,
}

impl Sweeper {
    /// Starts its thread.
    ///
    /// # Errors
    /// [`StoreError`] if there can be no thread.
    pub(super) fn start(folder: &Path) -> Result<Self, StoreError> {
        let (ask, asked) = mpsc::sync_channel(1);
        let pages = Arc::new(AtomicI64::new(0));
        let thread = {
            let (folder, pages) = (folder.to_owned(), Arc::clone(&pages));
            thread::Builder::new().name("audit-sweep".to_owned()).spawn(move || sweep(&folder, &asked, &pages))
        };
        let thread = Some(thread.map_err(StoreError::io(folder))?);
        Ok(Self { ask: Some(ask), thread, pages, records: 0 })
    }

    /// So many records more are durable. True if the log is so long that the writer should see to its end.
    pub(super) fn wrote(&mut self, records: usize) -> bool {
        self.records += records;
        if self.records < RECORDS {
            return false;
        }
        self.records = 0;
        self.ask();
        self.pages.swap(0, Ordering::Relaxed) > LONG
    }

    /// Has the log moved now.
    pub(super) fn ask(&self) {
        if let Some(ask) = &self.ask {
            // One that is under way, or asked for already, will do.
            let _ = ask.try_send(());
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn sweep(folder: &Path, asked: &Receiver<()>, pages: &AtomicI64) {
    while asked.recv().is_ok() {
        // No connection is kept: after a failure the writer must be alone with the record.
        match db::open_beside(folder).and_then(|db| db::move_log(&db)) {
            Ok(length) => pages.store(length, Ordering::Relaxed),
            // The next time may go better; until then the log is longer than it need be.
            Err(error) => tracing::warn!(%error, "the record's log cannot be moved into its file"),
        }
    }
}
