//! The one thread that writes: whatever waits is committed together, and each entry is answered once it is durable.
//!
//! A failed commit is told to everybody who was in it, the connection is given up, never retried on, and the next batch
//! opens a new one, and has the disk keep all of the log anew: that is how it heals ([`held`](super::held) says why). The
//! first batch that succeeds after a failure begins with a word on the gap. It does not decide what an answer without a record
//! is worth; `layer/audit.rs` does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::book::{self, Book, Recorded};
use super::checkpoints;
use super::db::{self, StoreError};
use super::missing::Missing;
use super::query::Reader;
use super::record::Entry;
use super::retention::Schedule;
use super::sweep::Sweeper;
use crate::domain::clock;
use crate::domain::retention::Day;

/// Entries that may wait; one more is refused at once.
pub const MOST_WAITING: usize = 8_192;
/// Entries in one commit.
const MOST_TOGETHER: usize = 256;
/// A checkpoint is due after so many records,
const CHECKPOINT_RECORDS: usize = 256;
/// or after this long, if there is a record since.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// How long a flush is waited for.
const FLUSH: Duration = Duration::from_secs(10);
/// The name of the file of checkpoints in the data folder.
pub const CHECKPOINTS: &str = "checkpoints.jsonl";

/// Why an entry was not recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unrecorded {
    /// Too many wait.
    #[error("too many entries wait to be recorded")]
    Full,
    /// The commit failed; the log says how.
    #[error("the record cannot be written")]
    Failed,
    /// There is no writer: it was stopped, or never began.
    #[error("the record is closed")]
    Closed,
}

/// Hears what the writer does. Called on the threads that ask and on the writer's own: it must not block.
pub trait Watch: Send + Sync + 'static {
    /// So many more entries wait; negative when some were answered.
    fn waiting(&self, more: i64);
    /// A commit that added something, or failed to, took so long, waiting for its turn excluded.
    fn committed(&self, took: Duration);
    /// So many keys were destroyed because their time was over.
    fn expired(&self, keys: u64) {
        let _ = keys;
    }
}

/// What a test makes go wrong with the next commits, and how far ahead of the clock it is. Cloning shares it.
#[derive(Clone, Default)]
pub struct Faults(Arc<AtomicU8>, Arc<AtomicU32>);

/// A thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// No page can be added to the file.
    DiskFull,
    /// A write fails before anything is committed.
    Write,
    /// The disk says that it could not keep what it kept.
    Sync,
    /// The disk takes [`SLOW`] for each commit.
    Slow,
}

/// What a slow disk takes.
pub const SLOW: Duration = Duration::from_millis(500);

impl Faults {
    /// From now on this goes wrong.
    pub fn set(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::SeqCst);
    }

    /// From now on it is so many days later, for what is destroyed on schedule.
    pub fn days_later(&self, days: u32) {
        self.1.store(days, Ordering::SeqCst);
    }

    fn today(&self) -> Day {
        Day::of(clock::unix_ms()).plus(self.1.load(Ordering::SeqCst))
    }

    fn get(&self) -> Fault {
        let faults = [Fault::DiskFull, Fault::Write, Fault::Sync, Fault::Slow];
        faults.into_iter().find(|fault| *fault as u8 == self.0.load(Ordering::SeqCst)).unwrap_or(Fault::None)
    }
}

/// What a record needs.
pub struct RecordsConfig {
    /// Where it lies.
    pub folder: PathBuf,
    /// Where checkpoints go; `None` for [`CHECKPOINTS`] beside the record.
    pub checkpoints: Option<PathBuf>,
    /// Who hears of it.
    pub watch: Arc<dyn Watch>,
    /// What goes wrong; nothing outside of tests.
    pub faults: Faults,
}

/// The record, as those see it who write to it and read from it. Cloning shares it.
#[derive(Clone)]
pub struct Records {
    jobs: SyncSender<Job>,
    watch: Arc<dyn Watch>,
    reader: Option<Arc<Reader>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

type Outcome = Result<Recorded, Unrecorded>;
type Tell = watch::Sender<Option<Outcome>>;

/// What becomes of an entry that was handed over. Cloning shares it: several may wait for one entry.
#[derive(Clone)]
pub struct Pending(watch::Receiver<Option<Outcome>>);

impl Pending {
    /// Waits until it is durable or has failed.
    ///
    /// # Errors
    /// [`Unrecorded`].
    ///
    /// # Cancel safety
    /// Whoever does not wait still has it recorded.
    pub async fn outcome(mut self) -> Result<Recorded, Unrecorded> {
        let told = self.0.wait_for(Option::is_some).await.map(|told| *told);
        told.ok().flatten().unwrap_or(Err(Unrecorded::Closed))
    }
}

enum Job {
    Add(Entry, Tell),
    Flush(SyncSender<()>),
    Stop,
}

impl Records {
    /// Opens the record and starts its writer.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left running.
    pub fn open(config: RecordsConfig) -> Result<Self, StoreError> {
        let RecordsConfig { folder, checkpoints, watch, faults } = config;
        db::folder(&folder)?;
        let keys = book::keys(&folder)?;
        let book = Book::open(&folder, Arc::clone(&keys))?;
        let reader = Arc::new(Reader::new(&folder, Arc::clone(&keys)));
        let checkpoints = checkpoints.unwrap_or_else(|| folder.join(CHECKPOINTS));
        let (jobs, waiting) = mpsc::sync_channel(MOST_WAITING);
        let reopen = {
            let folder = folder.clone();
            Box::new(move || Book::open(&folder, Arc::clone(&keys)))
        };
        let writer = Writer {
            waiting,
            book: Some(book),
            reader: Arc::clone(&reader),
            reopen,
            checkpoints,
            watch: Arc::clone(&watch),
            faults,
            sweeper: Sweeper::start(&folder)?,
            missing: None,
            schedule: Schedule::new(),
            unmarked: 0,
            marked_at: Instant::now(),
            mark_failed: false,
        };
        let thread = thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run());
        let thread = Arc::new(Mutex::new(Some(thread.map_err(StoreError::io(&folder))?)));
        Ok(Self { jobs, watch, reader: Some(reader), thread })
    }

    /// A record that cannot be had: every entry is refused.
    pub fn unavailable(watch: Arc<dyn Watch>) -> Self {
        Self { jobs: mpsc::sync_channel(1).0, watch, reader: None, thread: Arc::default() }
    }

    /// Hands an entry over, at once; entries are recorded in the order in which they are handed over. One that cannot be
    /// taken has failed by the time this returns.
    pub fn hand_over(&self, entry: Entry) -> Pending {
        let (tell, told) = watch::channel(None);
        // Before it can be answered.
        self.watch.waiting(1);
        let refused = match self.jobs.try_send(Job::Add(entry, tell)) {
            Ok(()) => return Pending(told),
            Err(TrySendError::Full(_)) => Unrecorded::Full,
            Err(TrySendError::Disconnected(_)) => Unrecorded::Closed,
        };
        self.watch.waiting(-1);
        Pending(watch::channel(Some(Err(refused))).1)
    }

    /// As [`Self::hand_over`], for one who waits.
    ///
    /// # Errors
    /// What is waited for tells [`Unrecorded`].
    pub fn add(&self, entry: Entry) -> impl Future<Output = Result<Recorded, Unrecorded>> + Send + use<> {
        self.hand_over(entry).outcome()
    }

    /// Waits until whatever was handed over before is recorded or has failed. Blocks, at most ten seconds.
    pub fn flush(&self) {
        let (tell, told) = mpsc::sync_channel(1);
        // There may be no writer, and then nothing waits.
        if self.jobs.send(Job::Flush(tell)).is_ok() {
            let _ = told.recv_timeout(FLUSH);
        }
    }

    /// Who reads it; `None` if it cannot be had.
    pub fn reader(&self) -> Option<&Arc<Reader>> {
        self.reader.as_ref()
    }

    /// Records what waits, signs a last checkpoint, and ends the thread. Blocks until then.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = &self.reader {
            // Whoever is last moves the log into the file, and a reader does not.
            reader.rest();
        }
        if let Some(thread) = thread {
            // It is refused only if the thread is gone.
            let _ = self.jobs.send(Job::Stop);
            let _ = thread.join();
        }
    }
}

type Reopen = Box<dyn Fn() -> Result<Book, StoreError> + Send>;
type Waiting = (Entry, Tell);

struct Writer {
    waiting: Receiver<Job>,
    /// `None` after a failure.
    book: Option<Book>,
    reader: Arc<Reader>,
    reopen: Reopen,
    checkpoints: PathBuf,
    watch: Arc<dyn Watch>,
    faults: Faults,
    sweeper: Sweeper,
    missing: Option<Missing>,
    schedule: Schedule,
    /// Records since the last checkpoint.
    unmarked: usize,
    marked_at: Instant,
    mark_failed: bool,
}

impl Writer {
    fn run(mut self) {
        self.mark();
        loop {
            let mut goes_on = true;
            let (mut batch, mut flushed) = (Vec::new(), None);
            let pause = self.forget();
            match self.waiting.recv_timeout(pause.min(CHECKPOINT_EVERY)) {
                Ok(Job::Add(entry, tell)) => batch.push((entry, tell)),
                Ok(Job::Flush(tell)) => flushed = Some(tell),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => goes_on = false,
                Err(RecvTimeoutError::Timeout) => {}
            }
            while goes_on && flushed.is_none() && batch.len() < MOST_TOGETHER {
                match self.waiting.try_recv() {
                    Ok(Job::Add(entry, tell)) => batch.push((entry, tell)),
                    Ok(Job::Flush(tell)) => flushed = Some(tell),
                    Ok(Job::Stop) => goes_on = false,
                    Err(_) => break,
                }
            }
            if !batch.is_empty() {
                let wrote = batch.len();
                self.commit(batch);
                self.sweep(wrote);
            }
            if let Some(tell) = flushed {
                // Whoever asked may have stopped waiting.
                let _ = tell.try_send(());
            }
            let due = self.marked_at.elapsed() >= CHECKPOINT_EVERY || self.unmarked >= CHECKPOINT_RECORDS;
            if self.unmarked > 0 && (due || !goes_on) {
                self.mark();
            }
            if !goes_on {
                return;
            }
        }
    }

    fn commit(&mut self, batch: Vec<Waiting>) {
        let (entries, tells): (Vec<Entry>, Vec<_>) = batch.into_iter().unzip();
        let begun = Instant::now();
        let result = self.write(&entries);
        let wrote = result.as_ref().map_or(true, |all| all.iter().any(|recorded| matches!(recorded, Recorded::As(_))));
        if wrote {
            self.watch.committed(begun.elapsed());
        }
        self.watch.waiting(-i64::try_from(tells.len()).unwrap_or_default());
        match result {
            Ok(recorded) => {
                if let Some(missing) = self.missing.take() {
                    tracing::info!(missing = missing.gap(&entries).entries, "decisions can be recorded again");
                }
                self.unmarked += recorded.iter().filter(|recorded| matches!(recorded, Recorded::As(_))).count();
                for (tell, recorded) in tells.into_iter().zip(recorded) {
                    // Whoever went away has it recorded all the same.
                    tell.send_replace(Some(Ok(recorded)));
                }
            }
            Err(error) => {
                self.book = None;
                self.note_failure(&error, &entries);
                for tell in tells {
                    tell.send_replace(Some(Err(Unrecorded::Failed)));
                }
            }
        }
    }

    fn write(&mut self, entries: &[Entry]) -> Result<Vec<Recorded>, StoreError> {
        let mut book = self.opened()?;
        let fault = self.faults.get();
        match fault {
            Fault::Write => return Err(StoreError::Asked),
            Fault::DiskFull => book.stop_growing()?,
            Fault::Slow => thread::sleep(SLOW),
            Fault::None | Fault::Sync => {}
        }
        let gap = self.missing.as_ref().map(|missing| missing.gap(entries));
        let entries: Vec<&Entry> = entries.iter().collect();
        let recorded = book.add(&entries, gap)?;
        if fault == Fault::Sync {
            return Err(StoreError::Asked);
        }
        self.book = Some(book);
        Ok(recorded)
    }

    /// The book, taken; another one after a failure.
    fn opened(&mut self) -> Result<Book, StoreError> {
        if let Some(book) = self.book.take() {
            return Ok(book);
        }
        // If it is alone the log is read anew.
        self.reader.give_way();
        (self.reopen)()
    }

    /// Nobody waits while this is done: all who were in the batch have their answer.
    fn sweep(&mut self, wrote: usize) {
        if self.sweeper.wrote(wrote)
            && let Some(book) = &self.book
            && let Err(error) = book.finish_log()
        {
            tracing::warn!(%error, "the record's log cannot be moved into its file");
        }
    }

    /// One step of what is destroyed on schedule, if one is due; how long until the next.
    fn forget(&mut self) -> Duration {
        let today = self.faults.today();
        let pause = self.schedule.pause(today);
        if !pause.is_zero() {
            return pause;
        }
        if self.book.as_ref().is_some_and(Book::is_distrusted) {
            // The log cannot be emptied before somebody was alone with the record.
            self.book = None;
        }
        let step = self.opened().and_then(|mut book| {
            let keys = self.schedule.step(&mut book, today)?;
            self.book = Some(book);
            Ok(keys)
        });
        match step {
            Ok(0) => {}
            Ok(keys) => {
                self.unmarked += 1;
                self.sweeper.ask();
                self.watch.expired(u64::try_from(keys).unwrap_or(u64::MAX));
            }
            Err(error) => {
                self.schedule.rest();
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "keys whose time is over cannot be destroyed, it is tried again");
            }
        }
        self.schedule.pause(today)
    }

    /// Told once, when it begins: what follows is counted.
    fn note_failure(&mut self, error: &StoreError, entries: &[Entry]) {
        if let Some(missing) = &mut self.missing {
            return missing.note(entries);
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        if !entries.iter().any(Entry::is_record) {
            return tracing::error!(%error, cause, "the outbox cannot be written, what became of a notice is tried again");
        }
        tracing::error!(%error, cause, "decisions cannot be recorded, each further one is tried again");
        self.missing.insert(Missing::since_now()).note(entries);
    }

    /// Appends a checkpoint. If that fails the chain is as good as before; the next one vouches for more.
    fn mark(&mut self) {
        let Some(book) = &self.book else { return };
        let distrusted = book.is_distrusted();
        self.marked_at = Instant::now();
        let marked = book.checkpoint().and_then(|checkpoint| {
            let line = serde_json::to_string(&checkpoint).unwrap_or_default() + "\n";
            checkpoints::append(&self.checkpoints, &line)
        });
        match marked {
            Ok(()) => (self.unmarked, self.mark_failed) = (0, false),
            Err(error) if !self.mark_failed => {
                self.mark_failed = true;
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "no checkpoint can be written, a cut tail of the record would not be found");
            }
            Err(_) => {}
        }
        if distrusted {
            // The next one may be alone with the record.
            self.book = None;
        }
    }
}
