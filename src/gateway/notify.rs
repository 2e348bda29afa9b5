//! `decision.revised`: tells a tenant's webhook that a late verdict is worse than the answer that was served.
//!
//! At least once: the same event, under the same id, until the receiver answers 2xx or all tries are used up. It is signed
//! in the response form of `di-hmac`, the event's id in the place of the nonce. Everything has a bound: notices under way,
//! tries, their times, the dead letters that are kept to be seen. Where there is a record a notice is durable in its outbox
//! before it is first sent, and `courier.rs` sends what an earlier process left; without one, or while that cannot be
//! written, it lives in memory alone and the log says so. A notice goes where the configuration of its request said, one
//! that was left where the configuration in force says.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use crate::config::table::{Webhook, Webhooks};
use crate::domain::clock;
use crate::domain::id::TenantId;
use crate::layer::BoxFuture;
use crate::layer::soft_deadline::{Revise, Revision};
use crate::store::book::Recorded;
use crate::store::outbox::{Kept, Notice as Letter, Overtaken, Posted, State, Tried};
use crate::store::record::Entry;
use crate::store::writer::Records;
use crate::telemetry::labels::Notice;
use crate::telemetry::metrics::Metrics;
use crate::upstream::dial::{Dial, Origin};

pub use event::EVENT_HEADER;
pub(super) use event::Event;

mod event;

/// Notices under way at once.
pub(super) const MOST_PENDING: usize = 1_000;
/// Dead letters kept to be seen.
pub(super) const MOST_DEAD: usize = 100;
/// What one try may take.
const TRY: Duration = Duration::from_secs(10);
/// Between tries, in seconds; one more try than there are pauses.
const PAUSES: [u64; 6] = [1, 5, 30, 120, 600, 1_800];
/// How long the outbox is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before what became of a notice is told to the outbox again.
const BREATH: Duration = Duration::from_secs(60);

/// What became of notices, for the life of the process.
#[derive(Default)]
pub struct Notices {
    /// A blocking lock, held for one look.
    under_way: Mutex<BTreeSet<String>>,
    /// In the outbox and not under way, as last seen.
    waiting: AtomicUsize,
    /// When the oldest in the outbox that was not settled yet was posted, as last seen; 0 if there is none.
    oldest_ms: AtomicU64,
    delivered: AtomicU64,
    /// A blocking lock, held for a push or a copy.
    dead: Mutex<VecDeque<DeadLetter>>,
}

/// A notice that was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// The event.
    pub event: String,
    /// Whose it is.
    pub tenant: String,
    /// The decision it tells of.
    pub decision: String,
    /// When it was given up, milliseconds since 1970.
    pub at_ms: u64,
    /// Tries made.
    pub tries: usize,
    /// What the last one ended with.
    pub failure: Cow<'static, str>,
    /// True if it is in the outbox, where it can be sent again.
    pub kept: bool,
}

/// Why a notice is not begun.
enum Crowded {
    /// It is under way.
    Already,
    /// Too many are.
    Full,
}

impl Notices {
    /// Under way now.
    pub fn pending(&self) -> usize {
        self.places().len()
    }

    /// In the outbox and not under way, as last seen: their tenants have no webhook any more, or too many are under way.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// When the oldest notice in the outbox that nobody took yet was posted, milliseconds since 1970, as last seen.
    pub fn oldest_ms(&self) -> Option<u64> {
        Some(self.oldest_ms.load(Ordering::Relaxed)).filter(|&posted| posted > 0)
    }

    /// Accepted by their receivers since the start.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// The newest hundred that were given up, oldest first; those of earlier processes included where there is an outbox.
    pub fn dead(&self) -> Vec<DeadLetter> {
        self.letters().iter().cloned().collect()
    }

    /// Takes over what the outbox says: dead letters there, newest first, how many wait, and since when the oldest that is
    /// not settled is there.
    pub(super) fn seen(&self, dead: Vec<Kept>, waiting: usize, oldest_ms: Option<u64>) {
        self.oldest_ms.store(oldest_ms.unwrap_or_default(), Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
        let mut letters = self.letters();
        let mut all: Vec<DeadLetter> = letters.drain(..).filter(|letter| !letter.kept).collect();
        all.extend(dead.into_iter().map(DeadLetter::from));
        all.sort_by_key(|letter| letter.at_ms);
        letters.extend(all.split_off(all.len().saturating_sub(MOST_DEAD)));
    }

    /// Whether this one is under way.
    pub(super) fn has(&self, id: &str) -> bool {
        self.places().contains(id)
    }

    fn places(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn letters(&self) -> MutexGuard<'_, VecDeque<DeadLetter>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bury(&self, letter: DeadLetter) {
        let mut letters = self.letters();
        if letters.len() >= MOST_DEAD {
            letters.pop_front();
        }
        letters.push_back(letter);
    }

    fn enter(self: &Arc<Self>, id: &str) -> Result<Pending, Crowded> {
        let mut places = self.places();
        if places.contains(id) {
            return Err(Crowded::Already);
        }
        if places.len() >= MOST_PENDING {
            return Err(Crowded::Full);
        }
        places.insert(id.to_owned());
        Ok(Pending { notices: Arc::clone(self), id: id.to_owned() })
    }
}

impl From<Kept> for DeadLetter {
    fn from(kept: Kept) -> Self {
        Self {
            event: kept.notice.id().to_owned(),
            tenant: kept.notice.tenant().to_owned(),
            decision: kept.notice.decision().to_owned(),
            at_ms: kept.changed_ms,
            tries: kept.tries,
            failure: Cow::Owned(kept.failure),
            kept: true,
        }
    }
}

/// A place among those under way.
pub(super) struct Pending {
    notices: Arc<Notices>,
    id: String,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.notices.places().remove(&self.id);
    }
}

/// Sends notices, wherever they come from. Cloning shares it.
#[derive(Clone)]
pub struct Post {
    dial: Arc<dyn Dial>,
    notices: Arc<Notices>,
    metrics: Arc<Metrics>,
    /// Whose outbox keeps them; `None` for none.
    records: Option<Records>,
}

/// A notice on its way.
pub(super) struct Parcel {
    pub(super) letter: Letter,
    /// Tries made before.
    pub(super) tries: usize,
    /// It is in the outbox.
    pub(super) kept: bool,
}

impl Post {
    /// Sends over `dial`, counts in `notices` and `metrics`.
    pub fn new(
        dial: &Arc<dyn Dial>,
        notices: &Arc<Notices>,
        metrics: &Arc<Metrics>,
        records: Option<&Records>,
    ) -> Self {
        let (dial, notices, metrics) = (Arc::clone(dial), Arc::clone(notices), Arc::clone(metrics));
        Self { dial, notices, metrics, records: records.cloned() }
    }

    /// A place for a notice that nobody sends yet, if there is one.
    pub(super) fn place(&self, letter: &Letter) -> Option<Pending> {
        self.notices.enter(letter.id()).ok()
    }

    /// True once the outbox has it.
    async fn keep(&self, letter: &Letter) -> bool {
        let Some(records) = &self.records else { return false };
        let why = match timeout(PATIENCE, records.add(Entry::Notice(Box::new(letter.clone())))).await {
            Ok(Ok(Recorded::Beside(Posted::Now | Posted::Before))) => return true,
            Ok(Ok(Recorded::Beside(Posted::NoRoom))) => "the outbox is full",
            Ok(Ok(_)) => "its decision is not on record",
            Ok(Err(_)) | Err(_) => "the outbox cannot be written",
        };
        let (event, tenant) = (letter.id(), letter.tenant());
        tracing::warn!(event, tenant, why, "a notice is kept in memory alone and would not outlive the process");
        false
    }

    /// Tries until the receiver has taken it or all tries are used up.
    pub(super) async fn deliver(&self, hook: &Webhook, parcel: &Parcel, event: &Event) {
        let mut failure = "";
        let done = parcel.tries.min(PAUSES.len());
        for (tries, pause) in (1..).zip(PAUSES.map(Some).into_iter().chain([None])).skip(done) {
            match timeout(TRY, self.attempt(hook, event)).await {
                Ok(Ok(status)) if status.is_success() => {
                    self.metrics.notice(Notice::Delivered);
                    self.notices.delivered.fetch_add(1, Ordering::Relaxed);
                    return self.settle(parcel, State::Delivered, tries, "").await;
                }
                Ok(Ok(_)) => failure = "the receiver did not answer 2xx",
                Ok(Err(_)) => failure = "the receiver could not be reached",
                Err(_) => failure = "the receiver did not answer in time",
            }
            self.metrics.notice(Notice::Failed);
            if let Some(seconds) = pause {
                if self.told(parcel, State::Pending, tries, failure).await == Ok(Recorded::Beside(Posted::Gone)) {
                    return tracing::info!(event = parcel.letter.id(), "a notice was dropped by an operator");
                }
                // 80 % to 120 %, so that a receiver that comes back is not met by all at once.
                sleep(Duration::from_millis(seconds * 10 * (80 + clock::unix_ms() % 41))).await;
            }
        }
        self.give_up(parcel, PAUSES.len() + 1, failure).await;
    }

    /// Nobody will take it: it stays to be seen.
    pub(super) async fn give_up(&self, parcel: &Parcel, tries: usize, failure: &'static str) {
        self.bury(&parcel.letter, (tries, failure), parcel.kept);
        self.settle(parcel, State::Dead, tries, failure).await;
    }

    fn bury(&self, letter: &Letter, (tries, failure): (usize, &'static str), kept: bool) {
        self.metrics.notice(Notice::Dead);
        let (event, tenant, decision) = (letter.id(), letter.tenant(), letter.decision());
        tracing::warn!(event, tenant, decision, tries, failure, "a late verdict could not be told");
        let (event, tenant, decision) = (event.to_owned(), tenant.to_owned(), decision.to_owned());
        let (failure, at_ms) = (Cow::Borrowed(failure), clock::unix_ms());
        self.notices.bury(DeadLetter { event, tenant, decision, at_ms, tries, failure, kept });
    }

    /// Tells the outbox, again and again, for a delivery it does not know of would be made anew after a restart. Meanwhile
    /// the notice keeps its place, so that nobody sends it again.
    async fn settle(&self, parcel: &Parcel, state: State, tries: usize, failure: &'static str) {
        while self.told(parcel, state, tries, failure).await.is_err() {
            sleep(BREATH).await;
        }
    }

    async fn told(&self, parcel: &Parcel, state: State, tries: usize, failure: &str) -> Result<Recorded, ()> {
        let Some(records) = self.records.as_ref().filter(|_| parcel.kept) else {
            return Ok(Recorded::Beside(Posted::Now));
        };
        let tried = Tried { id: parcel.letter.id().to_owned(), state, tries, failure: failure.to_owned() };
        let told = timeout(PATIENCE, records.add(Entry::Tried(Box::new(tried)))).await;
        told.map_err(|_| ())?.map_err(|_| ())
    }

    async fn attempt(&self, hook: &Webhook, event: &Event) -> io::Result<StatusCode> {
        let origin = Origin::usual(&hook.url, hook.allow_private);
        let request = event.request(hook)?;
        let stream = self.dial.dial(&origin, TRY).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let (mut answer, mut connection) = (pin!(sender.send_request(request)), pin!(connection));
        let answer = tokio::select! {
            answer = &mut answer => answer,
            // A receiver that answers and closes ends both at once.
            _ = &mut connection => answer.await,
        };
        // The answer's body is nobody's business, and a redirect leads nowhere.
        answer.map(|answer| answer.status()).map_err(io::Error::other)
    }
}

/// Sends notices to the webhooks of one configuration.
pub struct Notifier {
    hooks: Webhooks,
    post: Post,
}

impl Notifier {
    /// `None` without any webhook, so that nothing is prepared for nobody.
    pub fn wanted(hooks: &Webhooks, post: Post) -> Option<Arc<dyn Revise>> {
        (!hooks.is_empty()).then(|| Arc::new(Self { hooks: hooks.clone(), post }) as Arc<dyn Revise>)
    }

    async fn tell(&self, hook: &Webhook, revision: &Revision) {
        let (post, letter) = (&self.post, letter(revision));
        let out_trade_no = &revision.facts.assessment.out_trade_no;
        let Some(event) = Event::of(&letter, out_trade_no, &revision.decision) else { return };
        // First of all: from here on the courier leaves it alone.
        let place = post.notices.enter(letter.id());
        let kept = post.keep(&letter).await;
        match place {
            Ok(_pending) => post.deliver(hook, &Parcel { letter, tries: 0, kept }, &event).await,
            // The courier sends it when there is room.
            Err(Crowded::Full) if !kept => post.bury(&letter, (0, "too many notices are under way"), false),
            Err(Crowded::Full | Crowded::Already) => {}
        }
    }
}

impl Revise for Notifier {
    fn wants(&self, tenant: &TenantId) -> bool {
        self.hooks.contains_key(tenant)
    }

    fn revised(self: Arc<Self>, revision: Revision) -> BoxFuture<()> {
        Box::pin(async move {
            if let Some(hook) = self.hooks.get(&revision.context.caller.tenant) {
                self.tell(hook, &revision).await;
            }
        })
    }
}

fn letter(revision: &Revision) -> Letter {
    let Revision { context, served, decision, .. } = revision;
    let served = Overtaken {
        id: served.id.to_string(),
        action: served.action.as_str().to_owned(),
        source: served.source.as_str().to_owned(),
        request_id: context.id.as_str().to_owned(),
    };
    Letter::new(context.caller.tenant.as_str(), decision.id.as_str(), served)
}
