//! Watches the configuration and swaps snapshots: the only writer of [`Live`].
//!
//! File events are only a hint to look now; the truth is the hash of all configuration bytes, also polled every two
//! seconds. A hash seen twice 200 ms apart is a change: that is right for editors that rename, for writers that
//! truncate, for config maps that swap a symlink, and for network file systems. A file change, SIGHUP and
//! `POST /-/reload` are one path: load, compile, build, swap, tell. Any failure before the swap leaves the old snapshot
//! in place and is told with every mistake; it is tried again now and then, because the cause may lie outside the files.
//! Wishes that come together are one reload, and a reload to the same version builds nothing. Where `[reload] roll_back` is
//! set, a new configuration is on trial for a while, see [`trial`](crate::gateway::trial).
//!
//! It runs on a thread of its own, because reading files blocks.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::time::Instant;

use crate::config::diff::TableDiff;
use crate::config::error::ConfigError;
use crate::config::source::Sources;
use crate::config::table::RoutingTable;
use crate::domain::clock;
use crate::gateway::build::build;
use crate::gateway::certificates::Certificates;
use crate::gateway::last_good::LastGood;
use crate::gateway::origin::tell;
pub use crate::gateway::origin::{Origin, Overlays, Rewiring, remark};
use crate::gateway::snapshot::{Live, Shared};
use crate::gateway::trial::Trial;
use crate::telemetry::labels::ReloadResult;

mod rolling;
mod told;

use self::rolling::RolledBack;
pub use self::told::{Fate, LastReload, Told};

/// How often the hash is taken when nothing hints at a change.
const POLL: Duration = Duration::from_secs(2);
/// The same while a configuration is on trial: so long its requests may go on failing.
const POLL_ON_TRIAL: Duration = Duration::from_millis(250);
/// How long a hash must stay the same.
const SETTLE: Duration = Duration::from_millis(200);
/// Looks at a file that keeps changing before waiting for the next poll.
const MOST_LOOKS: u32 = 5;
/// How often a refused configuration is tried again though its files did not change: what was wrong may lie outside them.
const RETRY: Duration = Duration::from_secs(10);
/// Least time between two looks that found nothing: a log that grows in the same folder must not cost a core.
const BREATH: Duration = Duration::from_millis(100);
/// Wishes that may wait; one more says nothing new.
const MOST_WISHES: usize = 16;

/// Asks the reloading thread for something.
#[derive(Clone)]
pub struct Reloads {
    wishes: SyncSender<Wish>,
    /// True while a wish to look waits: a storm of file events is one wish, and leaves room for the others.
    looking: Arc<AtomicBool>,
}

type Answer = SyncSender<Result<(), Vec<ConfigError>>>;

enum Wish {
    Look,
    Now(Answer),
    Stop,
}

impl Reloads {
    /// Hints that something may have changed; never waits.
    pub fn look(&self) {
        if !self.looking.swap(true, Ordering::AcqRel) {
            // If there is no room, the poll looks soon enough.
            let _ = self.wishes.try_send(Wish::Look);
        }
    }

    /// Asks for a reload, whether anything changed or not; never waits.
    pub fn reload(&self) {
        // A full queue already holds the same wish.
        let _ = self.wishes.try_send(Wish::Now(mpsc::sync_channel(1).0));
    }

    /// Reloads now, whether anything changed or not. Blocks its thread for as long as that takes, at most ten seconds.
    ///
    /// # Errors
    /// Every mistake; none of them if the reloading thread is gone or late.
    pub fn now(&self) -> Result<(), Vec<ConfigError>> {
        let (told, answer) = mpsc::sync_channel(1);
        self.wishes.try_send(Wish::Now(told)).map_err(|_| Vec::new())?;
        answer.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| Err(Vec::new()))
    }

    /// Ends the thread.
    pub fn stop(&self) {
        let _ = self.wishes.send(Wish::Stop);
    }
}

/// Hears of each reload, on the reloading thread: it must not block.
pub type ReloadWatch = Arc<dyn Fn(Moment) + Send + Sync>;

/// A moment of a reload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// It begins.
    Begins,
    /// It has ended, and this has become of what is on disk.
    Ended(Fate),
}

/// The reloading thread's state.
pub struct Reloader {
    /// Where configuration comes from.
    pub origin: Origin,
    /// What it writes.
    pub live: Live,
    /// What new snapshots share with old ones.
    pub shared: Arc<Shared>,
    /// Where it tells how it went.
    pub last: Arc<LastReload>,
    /// The hash taken before the first load, so that a change during the start is a change.
    pub seen: [u8; 32],
    /// The listener's certificate and the hash it was first loaded with: its files are watched too.
    pub certificates: Option<Seen>,
    /// Keeps what was good for the next start.
    pub last_good: Option<LastGood>,
    /// Hears when a reload begins and when it has ended; for whoever started the process.
    pub watch: Option<ReloadWatch>,
    /// How the configuration in force does, if somebody wants it rolled back.
    pub trial: Trial,
    /// What was rolled back last; nothing yet.
    pub rolled_back: Option<RolledBack>,
}

impl Reloader {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's, if it has no thread left.
    pub fn start(self) -> std::io::Result<(Reloads, thread::JoinHandle<()>)> {
        let (wishes, heard) = mpsc::sync_channel(MOST_WISHES);
        let reloads = Reloads { wishes, looking: Arc::default() };
        let certificates = self.certificates.iter().flat_map(|(certificates, _)| certificates.folders());
        let folders = self.origin.folders().map(Path::to_owned).into_iter().chain(certificates);
        let watcher = watch(&folders.collect::<Vec<_>>(), reloads.clone());
        let looking = Arc::clone(&reloads.looking);
        let thread = thread::Builder::new().name("reload".to_owned()).spawn(move || {
            let mut reloader = self;
            reloader.run(&heard, &looking);
            drop(watcher);
        })?;
        Ok((reloads, thread))
    }

    fn run(&mut self, heard: &Receiver<Wish>, looking: &AtomicBool) {
        let mut tried = Instant::now();
        loop {
            self.judge();
            match heard.recv_timeout(if self.trial.is_on() { POLL_ON_TRIAL } else { POLL }) {
                Ok(Wish::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wish::Now(told)) => {
                    let Some(all) = together(told, heard, looking) else { return };
                    (self.seen, tried) = (self.origin.hash(), Instant::now());
                    let renewed = self.certificates.as_mut().map_or(Ok(()), renew);
                    let result = both(self.contained_reload(Voice::Loud), renewed);
                    for told in all {
                        // Whoever asked may have stopped waiting.
                        let _ = told.try_send(result.clone());
                    }
                }
                Ok(Wish::Look) | Err(RecvTimeoutError::Timeout) => {
                    // Before looking: what changes from here on is a new wish.
                    looking.store(false, Ordering::Release);
                    self.certificates.iter_mut().for_each(look_at);
                    self.look(&mut tried);
                }
            }
        }
    }

    /// Reloads if the files changed, or if they were refused and some time has passed.
    fn look(&mut self, tried: &mut Instant) {
        match settled_change(self.seen, || self.origin.hash()) {
            Some(changed) => {
                (self.seen, *tried) = (changed, Instant::now());
                if !self.refuses_again(&changed) {
                    let _ = self.contained_reload(Voice::Loud);
                }
            }
            None if self.last.fate() == Fate::Refused && tried.elapsed() >= RETRY => {
                *tried = Instant::now();
                let _ = self.contained_reload(Voice::IfNew);
            }
            None => thread::sleep(BREATH),
        }
    }

    /// A bug in compiling must not end reloading for the life of the process.
    fn contained_reload(&mut self, voice: Voice) -> Result<(), Vec<ConfigError>> {
        self.watched(Moment::Begins);
        let result = panic::catch_unwind(AssertUnwindSafe(|| self.reload(voice))).unwrap_or_else(|_| {
            tracing::error!("the reload panicked, the configuration in force stays");
            self.shared.metrics.panics.inc();
            self.refuse(Vec::new());
            Err(Vec::new())
        });
        self.watched(Moment::Ended(self.last.fate()));
        result
    }

    fn watched(&self, moment: Moment) {
        self.watch.iter().for_each(|watch| watch(moment));
    }

    fn reload(&mut self, voice: Voice) -> Result<(), Vec<ConfigError>> {
        let loaded = self.origin.read().and_then(|files| Ok((self.origin.compile(files.clone())?, files)));
        let (table, files) = loaded.inspect_err(|errors| {
            let before = self.last.get();
            if voice == Voice::Loud || before.fate != Fate::Refused || before.errors != *errors {
                tell(errors, "configuration refused, the one in force stays");
                self.refuse(errors.clone());
            }
        })?;
        self.put_in_force(table);
        // Before anything waits for a disk: the status page must not show the new version with the mistakes of the last.
        self.last.accepted();
        if self.trial.is_on() {
            self.trial.of(files);
        } else {
            self.keep(&files);
        }
        Ok(())
    }

    fn keep(&mut self, files: &Sources) {
        self.last_good.iter_mut().for_each(|last_good| last_good.keep(files));
    }

    fn refuse(&self, errors: Vec<ConfigError>) {
        self.shared.metrics.config_reload(ReloadResult::Failure);
        self.shared.metrics.config_not_in_force(true);
        self.last.refused(errors);
    }

    fn put_in_force(&mut self, table: RoutingTable) {
        let before = self.live.load_full();
        let changes = in_one_line(&TableDiff::between(before.table(), &table));
        let version = table.version().to_string();
        remark(&table);
        say_who_cannot_call(&table, self.certificates.as_ref().map(|(certificates, _)| &**certificates));
        // The same version is the same table: a storm of signals builds nothing.
        if table.version() != before.table().version() {
            let after = build(table, Some(&before), &self.shared);
            self.swap(before, after);
        }
        let metrics = &self.shared.metrics;
        metrics.config_in_use(&version, clock::unix_seconds());
        metrics.config_reload(ReloadResult::Success);
        metrics.config_not_in_force(false);
        tracing::info!(config.version = %version, %changes, "configuration in force");
    }
}

/// The new hash, if it differs and has stopped changing.
fn settled_change(seen: [u8; 32], look: impl Fn() -> [u8; 32]) -> Option<[u8; 32]> {
    let mut hash = look();
    for _ in 0..MOST_LOOKS {
        if hash == seen {
            return None;
        }
        thread::sleep(SETTLE);
        let again = look();
        if again == hash {
            return Some(hash);
        }
        hash = again;
    }
    None
}

/// A certificate with the hash of its files when they were last read.
pub type Seen = (Arc<Certificates>, [u8; 32]);

fn look_at((certificates, seen): &mut Seen) {
    if let Some(changed) = settled_change(*seen, || certificates.files().hash()) {
        *seen = changed;
        // Told where it happens.
        let _ = certificates.reload();
    }
}

fn renew((certificates, seen): &mut Seen) -> Result<(), Box<ConfigError>> {
    *seen = certificates.files().hash();
    certificates.reload()
}

/// The configuration and the certificate are put in force apart; whoever asked hears of both.
fn both(reloaded: Result<(), Vec<ConfigError>>, renewed: Result<(), Box<ConfigError>>) -> Result<(), Vec<ConfigError>> {
    match (reloaded, renewed) {
        (reloaded, Ok(())) => reloaded,
        // None of its own mistakes means that it did not answer.
        (Err(mistakes), Err(_)) if mistakes.is_empty() => Err(mistakes),
        (reloaded, Err(mistake)) => Err(reloaded.err().into_iter().flatten().chain([*mistake]).collect()),
    }
}

/// Complains of callers that must show a certificate nobody asks for: each of their requests would be a 401.
pub fn say_who_cannot_call(table: &RoutingTable, certificates: Option<&Certificates>) {
    if certificates.is_some_and(|certificates| certificates.files().clients.is_some()) {
        return;
    }
    for caller in table.callers().iter().filter(|caller| !caller.client_certs.is_empty()).take(super::origin::MOST_TOLD)
    {
        tracing::warn!(caller = %caller.id, "this caller must show a client certificate, and --tls-client-ca is not given");
    }
}

/// When mistakes are told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Voice {
    /// Always.
    Loud,
    /// If they are others than the last time.
    IfNew,
}

/// All who wish for a reload at this moment: one is enough for them. `None` if somebody wishes for the end.
fn together(first: Answer, heard: &Receiver<Wish>, looking: &AtomicBool) -> Option<Vec<Answer>> {
    let mut all = vec![first];
    while let Ok(wish) = heard.try_recv() {
        match wish {
            Wish::Now(told) => all.push(told),
            Wish::Look => looking.store(false, Ordering::Release),
            Wish::Stop => return None,
        }
    }
    Some(all)
}

fn in_one_line(diff: &TableDiff) -> String {
    if diff.is_empty() { "none".to_owned() } else { diff.to_string().trim_end().replace('\n', "; ") }
}

/// Watches the folders, not the files: a file that is replaced takes its watch along. Without a watcher the poll remains.
fn watch(folders: &[PathBuf], reloads: Reloads) -> Option<notify::RecommendedWatcher> {
    watching(folders, move || reloads.look())
}

/// Calls `look` whenever something may have changed in these folders, until what it returns is dropped. `None` where
/// nothing can be watched.
pub fn watching(folders: &[PathBuf], look: impl Fn() + Send + 'static) -> Option<notify::RecommendedWatcher> {
    let hint = move |event: notify::Result<notify::Event>| {
        // Looking opens the files, and that is an event too: to look at each would be to look for ever.
        if event.map_or(true, |event| is_change(event.kind)) {
            look();
        }
    };
    let mut watcher = notify::recommended_watcher(hint)
        .inspect_err(|error| tracing::warn!(%error, "files are not watched, only polled"))
        .ok()?;
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
            tracing::warn!(%error, folder = %folder.display(), "a folder is not watched, only polled");
        }
    }
    Some(watcher)
}

fn is_change(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(AccessKind::Close(AccessMode::Write))) || !kind.is_access()
}
