//! Watches the configuration and swaps snapshots: the only writer of [`Live`].
//!
//! File events are only a hint to look now; the truth is the hash of all configuration bytes, also polled every two
//! seconds. A hash seen twice 200 ms apart is a change: that is right for editors that rename, for writers that
//! truncate, for config maps that swap a symlink, and for network file systems. A file change, SIGHUP and
//! `POST /-/reload` are one path: load, compile, build, swap, tell. Any failure before the swap leaves the old snapshot
//! in place and is told with every mistake.
//!
//! It runs on a thread of its own, because reading files blocks.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};

use crate::config::compile::compile;
use crate::config::diff::TableDiff;
use crate::config::error::ConfigError;
use crate::config::load;
use crate::config::options::CompileOptions;
use crate::config::remarks::remarks;
use crate::config::source::{SourceFile, Sources};
use crate::config::table::{BaseUrl, Protocol, RoutingTable};
use crate::config::{SecretPolicy, Secrets};
use crate::domain::clock;
use crate::domain::id::ProviderId;
use crate::domain::secret::SecretSource;
use crate::gateway::build::build;
use crate::gateway::certificates::Certificates;
use crate::gateway::snapshot::{Live, Shared};
use crate::telemetry::labels::ReloadResult;

/// How often the hash is taken when nothing hints at a change.
const POLL: Duration = Duration::from_secs(2);
/// How long a hash must stay the same.
const SETTLE: Duration = Duration::from_millis(200);
/// Looks at a file that keeps changing before waiting for the next poll.
const MOST_LOOKS: u32 = 5;
/// Least time between two looks that found nothing: a log that grows in the same folder must not cost a core.
const BREATH: Duration = Duration::from_millis(100);
/// Mistakes told in the log; the status page and `weighbridge check` have all.
const MOST_TOLD: usize = 20;
/// Wishes that may wait; one more says nothing new.
const MOST_WISHES: usize = 16;

/// Replaces provider addresses; how the sandbox puts its simulators in.
pub type Rewiring = Arc<dyn Fn(&ProviderId, Protocol) -> BaseUrl + Send + Sync>;

/// Where configuration comes from.
#[derive(Clone)]
pub struct Origin {
    /// `routes.toml`.
    pub routes: PathBuf,
    /// What takes the place of `routes.toml` for as long as there is none.
    pub without_routes: Option<SourceFile>,
    /// The folder of provider files; what is not in it comes from the binary.
    pub providers: PathBuf,
    /// Texts added to the files.
    pub overlays: Overlays,
    /// Where secrets come from.
    pub secrets: Arc<dyn SecretSource>,
    /// What a missing secret means.
    pub policy: SecretPolicy,
    /// Other addresses than the files say.
    pub rewiring: Option<Rewiring>,
}

/// Texts added to the files by the program itself.
#[derive(Clone, Default)]
pub struct Overlays {
    /// As if they stood in `routes.toml`.
    pub routes: Vec<SourceFile>,
    /// As if they lay in the folder.
    pub providers: Vec<SourceFile>,
}

impl Origin {
    /// Reads and compiles everything.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load(&self) -> Result<RoutingTable, Vec<ConfigError>> {
        self.load_with_sources().map(|(table, _)| table)
    }

    /// As [`Origin::load`], with the text the table was made of.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load_with_sources(&self) -> Result<(RoutingTable, Sources), Vec<ConfigError>> {
        let stand_in = self.without_routes.clone().filter(|_| !self.routes.exists());
        let routes = stand_in.is_none().then_some(&*self.routes);
        let texts = stand_in.into_iter().chain(self.overlays.routes.iter().cloned());
        let mut sources = load::read_sources(routes, Some(&self.providers), texts.collect())?;
        sources.providers.extend(self.overlays.providers.iter().cloned());
        let secrets = Secrets { source: &*self.secrets, policy: self.policy };
        let rewire = self.rewiring.as_ref().map(|rewiring| &**rewiring as _);
        compile(&sources, &CompileOptions { secrets, rewire }).map(|table| (table, sources))
    }

    /// The hash of all that [`Origin::load`] reads.
    pub fn hash(&self) -> [u8; 32] {
        load::content_hash(&self.routes, Some(&self.providers))
    }

    fn folders(&self) -> [&Path; 2] {
        let parent = self.routes.parent().filter(|parent| !parent.as_os_str().is_empty());
        [parent.unwrap_or(Path::new(".")), &self.providers]
    }
}

/// What the last reload said; for the status page.
#[derive(Default)]
pub struct LastReload(Mutex<Told>);

/// One reload's result.
#[derive(Clone, Default)]
pub struct Told {
    /// Mistakes, empty if it went well.
    pub errors: Vec<ConfigError>,
    /// When, milliseconds since 1970; 0 if there was none since the start.
    pub at_ms: u64,
}

impl LastReload {
    /// What it said.
    pub fn get(&self) -> Told {
        self.lock().clone()
    }

    fn set(&self, errors: Vec<ConfigError>) {
        *self.lock() = Told { errors, at_ms: clock::unix_ms() };
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the reloading thread for something.
#[derive(Clone)]
pub struct Reloads {
    wishes: SyncSender<Wish>,
    /// True while a wish to look waits: a storm of file events is one wish, and leaves room for the others.
    looking: Arc<AtomicBool>,
}

enum Wish {
    Look,
    Now(SyncSender<Result<(), Vec<ConfigError>>>),
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
            self.run(&heard, &looking);
            drop(watcher);
        })?;
        Ok((reloads, thread))
    }

    fn run(&self, heard: &Receiver<Wish>, looking: &AtomicBool) {
        let mut seen = self.seen;
        let mut certificates = self.certificates.clone();
        loop {
            match heard.recv_timeout(POLL) {
                Ok(Wish::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wish::Now(told)) => {
                    seen = self.origin.hash();
                    let renewed = certificates.as_mut().map_or(Ok(()), renew);
                    let _ = told.try_send(both(self.contained_reload(), renewed));
                }
                Ok(Wish::Look) | Err(RecvTimeoutError::Timeout) => {
                    // Before looking: what changes from here on is a new wish.
                    looking.store(false, Ordering::Release);
                    if let Some(certificates) = &mut certificates {
                        look_at(certificates);
                    }
                    match settled_change(seen, || self.origin.hash()) {
                        Some(changed) => {
                            seen = changed;
                            let _ = self.contained_reload();
                        }
                        None => thread::sleep(BREATH),
                    }
                }
            }
        }
    }

    /// A bug in compiling must not end reloading for the life of the process.
    fn contained_reload(&self) -> Result<(), Vec<ConfigError>> {
        panic::catch_unwind(AssertUnwindSafe(|| self.reload())).unwrap_or_else(|_| {
            tracing::error!("the reload panicked, the configuration in force stays");
            self.shared.metrics.panics.inc();
            self.shared.metrics.config_reload(ReloadResult::Failure);
            Err(Vec::new())
        })
    }

    fn reload(&self) -> Result<(), Vec<ConfigError>> {
        let metrics = &self.shared.metrics;
        let table = self.origin.load().inspect_err(|errors| {
            tell(errors);
            metrics.config_reload(ReloadResult::Failure);
            self.last.set(errors.clone());
        })?;
        let before = self.live.load_full();
        let changes = in_one_line(&TableDiff::between(before.table(), &table));
        let version = table.version().to_string();
        remark(&table);
        say_who_cannot_call(&table, self.certificates.as_ref().map(|(certificates, _)| &**certificates));
        let snapshot = build(table, Some(&before), &self.shared);
        self.live.store(Arc::new(snapshot));
        metrics.config_in_use(&version, clock::unix_seconds());
        metrics.config_reload(ReloadResult::Success);
        self.last.set(Vec::new());
        tracing::info!(config.version = %version, %changes, "configuration in force");
        Ok(())
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

/// Says what may mean something else than its writer thinks.
pub fn remark(table: &RoutingTable) {
    for remark in remarks(table).iter().take(MOST_TOLD) {
        tracing::warn!("worth a look: {remark}");
    }
}

/// Complains of callers that must show a certificate nobody asks for: each of their requests would be a 401.
pub fn say_who_cannot_call(table: &RoutingTable, certificates: Option<&Certificates>) {
    if certificates.is_some_and(|certificates| certificates.files().clients.is_some()) {
        return;
    }
    for caller in table.callers().iter().filter(|caller| !caller.client_certs.is_empty()).take(MOST_TOLD) {
        tracing::warn!(caller = %caller.id, "this caller must show a client certificate, and --tls-client-ca is not given");
    }
}

/// One line a mistake: logs are searched and cut by lines. The status page and `weighbridge check` have the carets.
fn tell(errors: &[ConfigError]) {
    let mistakes = errors.len();
    tracing::error!(mistakes, "configuration refused, the one in force stays");
    for error in errors.iter().take(MOST_TOLD) {
        tracing::error!("{error}");
    }
    if mistakes > MOST_TOLD {
        tracing::error!("and {} more, see weighbridge check", mistakes - MOST_TOLD);
    }
}

fn in_one_line(diff: &TableDiff) -> String {
    if diff.is_empty() { "none".to_owned() } else { diff.to_string().trim_end().replace('\n', "; ") }
}

/// Watches the folders, not the files: a file that is replaced takes its watch along. Without a watcher the poll remains.
fn watch(folders: &[PathBuf], reloads: Reloads) -> Option<notify::RecommendedWatcher> {
    let hint = move |event: notify::Result<notify::Event>| {
        // Looking opens the files, and that is an event too: to look at each would be to look for ever.
        if event.map_or(true, |event| is_change(event.kind)) {
            reloads.look();
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
