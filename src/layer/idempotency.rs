//! One decision per payment attempt: the same `out_trade_no` with the same body gets the same decision, or waits for the
//! one in flight; with another body it is a conflict.
//!
//! It sits below the soft deadline, so the call that leads outlives the caller that started it, and a verdict that comes
//! after a fallback was answered is kept and labelled `late` for whoever asks again. Fallbacks never get here: they are
//! no verdicts. Kept in memory for a day; where there is a record, the last day's decisions are read from it at the start, so that
//! a restart decides nothing twice. They are read at once and not on a miss: a look at the disk between looking and leading
//! would need a second claim on the payment, and every new payment would pay for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use moka::sync::Cache as Moka;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource};
use crate::flight::call::{Call, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::layer::audit::{Clerk, Paper, for_verdict};
use crate::layer::soft_deadline::{Revise, answered_by};
use crate::layer::{BoxFuture, always_ready};
use crate::store::db::StoreError;
use crate::store::query::Reader;
use crate::store::record::{Personal, rest_of};
use crate::telemetry::labels::{Cache, CacheEvent};
use crate::telemetry::metrics::Metrics;
use crate::wire::risk::Assessment;

/// Decisions remembered.
const MOST_DECISIONS: u64 = 100_000;
/// For how long.
const LIFE: Duration = Duration::from_secs(24 * 3600);

type Key = [u8; 32];
type Digest32 = [u8; 32];
type Landed = Option<Result<Arc<Decided>, CallError>>;

/// What is known of the request that a decision was made for.
enum Asked {
    /// SHA-256 of its body.
    Body(Digest32),
    /// Of somebody who was forgotten: what the record tells of the payment.
    Rest(Digest32),
}

impl Asked {
    /// True if this request is the same, as far as anybody can tell.
    fn is(&self, body: Digest32, assessment: &Assessment) -> bool {
        match self {
            Self::Body(asked) => *asked == body,
            Self::Rest(rest) => *rest == rest_of(assessment),
        }
    }
}

/// What was decided, and whether its first asker still got it.
struct Decided {
    asked: Asked,
    decision: Arc<Decision>,
    late: bool,
}

struct Flying {
    body: Digest32,
    landed: watch::Receiver<Landed>,
}

/// Decisions made and in the making, shared by all workers.
#[derive(Clone)]
pub struct Ledger {
    /// Held for a look-up and an insertion, never across an await.
    flights: Arc<Mutex<HashMap<Key, Flying>>>,
    decided: Moka<Key, Arc<Decided>>,
}

impl Default for Ledger {
    fn default() -> Self {
        let decided = Moka::builder().max_capacity(MOST_DECISIONS).time_to_live(LIFE).build();
        Self { flights: Arc::default(), decided }
    }
}

/// What a call finds.
enum Found {
    Nothing(Lead),
    Flying(watch::Receiver<Landed>),
    Decided(Arc<Decided>),
    OtherBody,
}

impl Ledger {
    fn look(&self, key: Key, body: Digest32, assessment: &Assessment) -> Found {
        let mut flights = self.flights();
        // First: an attempt may have been settled while its call goes on.
        if let Some(decided) = self.decided.get(&key) {
            return if decided.asked.is(body, assessment) { Found::Decided(decided) } else { Found::OtherBody };
        }
        if let Some(flying) = flights.get(&key) {
            return if flying.body == body { Found::Flying(flying.landed.clone()) } else { Found::OtherBody };
        }
        let (tell, landed) = watch::channel(None);
        flights.insert(key, Flying { body, landed });
        Found::Nothing(Lead { ledger: self.clone(), key, body, tell })
    }

    /// The attempt's decision if it has one, or else the one that `decide` makes. `whose` is the tenant, and the body it
    /// came in. `decide` is called under the ledger's lock: what it takes is never taken for nothing.
    pub(super) fn settle(
        &self,
        facts: &RiskFacts,
        whose: (&str, &Bytes),
        flight: Flight,
        decide: impl FnOnce() -> Option<Arc<Decision>>,
    ) -> Option<Settled> {
        let (tenant, body) = whose;
        let (key, body) = (key(tenant, &facts.assessment.out_trade_no), Sha256::digest(body).into());
        let flights = self.flights();
        if let Some(decided) = self.decided.get(&key) {
            return decided.asked.is(body, &facts.assessment).then(|| Settled::Before(replay(&decided)));
        }
        // Another call for it, begun since: its answer will be the decision.
        if flights.get(&key).is_some_and(|flying| flying.body != body || flight == Flight::Over) {
            return None;
        }
        let decision = decide()?;
        let asked = Asked::Body(body);
        self.decided.insert(key, Arc::new(Decided { asked, decision: Arc::clone(&decision), late: false }));
        Some(Settled::Now(decision))
    }

    /// Knows the decisions of earlier processes again that are still remembered. Whoever was forgotten left no digest of
    /// their request: then one is the same that says the same of the payment, whatever it says of the payer.
    ///
    /// # Errors
    /// [`StoreError`]: without the record a payment could be decided twice.
    pub fn remember(&self, reader: &Reader) -> Result<(), StoreError> {
        let life = u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX);
        let since = i64::try_from(clock::unix_ms().saturating_sub(life)).unwrap_or_default();
        let most = usize::try_from(MOST_DECISIONS).unwrap_or(usize::MAX);
        reader.recent(since, most, |stored| {
            // A fallback is no verdict, before a restart and after it.
            let verdict = stored.decision().ok().filter(|decision| decision.verdict.is_some());
            let key = key(&stored.tenant, &stored.body.out_trade_no);
            // The newest come first, and what stood in is the decision whatever came after it.
            let counts =
                |decision: &Decision| decision.source == DecisionSource::Cached || !self.decided.contains_key(&key);
            if let Some(decision) = verdict.filter(counts) {
                let body = stored.personal.as_ref().and_then(Personal::digest);
                let asked = body.map_or_else(|| Asked::Rest(stored.body.rest()), Asked::Body);
                let late = decision.source == DecisionSource::Late;
                self.decided.insert(key, Arc::new(Decided { asked, decision: Arc::new(decision), late }));
            }
        })
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Flying>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has become of the call for an attempt that is settled without it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flight {
    /// It may still be on its way.
    GoesOn,
    /// It failed.
    Over,
}

/// An attempt's decision that no call of its own made.
pub(super) enum Settled {
    /// Made just now.
    Now(Arc<Decision>),
    /// Made before.
    Before(Reply),
}

/// The one call that asks the provider. Dropped without a word, it makes room for another.
struct Lead {
    ledger: Ledger,
    key: Key,
    body: Digest32,
    tell: watch::Sender<Landed>,
}

impl Lead {
    /// A verdict came: it is handed to the record before anybody can be told. What the attempt was settled with meanwhile is
    /// returned.
    fn learn(self, decision: &Arc<Decision>, late: bool, clerk: Option<&(Clerk, Paper)>) -> Option<Arc<Decided>> {
        if let Some((clerk, paper)) = clerk {
            let source = if late { DecisionSource::Late } else { decision.source };
            clerk.note(paper, &labelled(decision, source));
        }
        self.land(decision, late)
    }

    /// Keeps the decision, unless the attempt was settled meanwhile: then that is what all who wait get, and is returned.
    fn land(self, decision: &Arc<Decision>, late: bool) -> Option<Arc<Decided>> {
        let flights = self.ledger.flights();
        let settled = self.ledger.decided.get(&self.key);
        let decided = settled.clone().unwrap_or_else(|| {
            let asked = Asked::Body(self.body);
            let decided = Arc::new(Decided { asked, decision: Arc::clone(decision), late });
            // Stored before the flight goes, so that nobody in between finds neither.
            self.ledger.decided.insert(self.key, Arc::clone(&decided));
            decided
        });
        drop(flights);
        self.tell.send_replace(Some(Ok(decided)));
        settled
    }

    fn fail(self, error: &CallError) {
        self.tell.send_replace(Some(Err(error.clone())));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.ledger.flights().remove(&self.key);
    }
}

/// Plain values for [`IdempotencyLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all workers and configurations.
    pub ledger: Ledger,
    /// Has verdicts recorded, before anybody can be told; `None` where there is no record.
    pub clerk: Option<Clerk>,
    /// Who is told of late verdicts: what is to be told is recorded with the verdict.
    pub revise: Option<Arc<dyn Revise>>,
    /// Counts replays.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Idempotency`].
#[derive(Clone)]
pub struct IdempotencyLayer(pub Params);

/// Decides once.
#[derive(Clone)]
pub struct Idempotency<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Idempotency<S> {
        Idempotency { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for Idempotency<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let Some(facts) = call.risk().cloned() else {
            return Box::pin(std::future::ready(Err(CallError::Internal)));
        };
        let key = key(call.context.caller.tenant.as_str(), &facts.assessment.out_trade_no);
        let count = |event| self.params.metrics.cache(Cache::Idempotency, event);
        match self.params.ledger.look(key, Sha256::digest(&call.body).into(), &facts.assessment) {
            Found::OtherBody => Box::pin(std::future::ready(Err(CallError::Conflict))),
            Found::Decided(decided) => {
                count(CacheEvent::Hit);
                Box::pin(std::future::ready(Ok(replay(&decided))))
            }
            Found::Flying(landed) => {
                count(CacheEvent::Coalesced);
                Box::pin(join(landed))
            }
            Found::Nothing(lead) => {
                let clerk = self.params.clerk.clone();
                let in_time = for_verdict(facts.route.deadline, clerk.as_ref());
                let due = answered_by(call.context.arrived, in_time);
                let told = self.params.revise.as_ref().is_some_and(|revise| revise.wants(&call.context.caller.tenant));
                let paper = Paper::of(&call).map(|paper| if told { paper.with_notice() } else { paper });
                let clerk = clerk.zip(paper);
                let answer = self.inner.call(call);
                Box::pin(async move {
                    let result = answer.await;
                    match &result {
                        Ok(Reply { decision: Some(decision), .. }) => {
                            let late = Instant::now() >= due;
                            // A late one is for the metrics alone; its caller was answered.
                            if let Some(settled) = lead.learn(decision, late, clerk.as_ref()).filter(|_| !late) {
                                return Ok(replay(&settled));
                            }
                        }
                        Ok(_) => {}
                        Err(error) => lead.fail(error),
                    }
                    result
                })
            }
        }
    }
}

async fn join(mut landed: watch::Receiver<Landed>) -> Result<Reply, CallError> {
    // The leader is bounded by its hard limit; if it goes without a word, nothing was decided.
    let landed = landed.wait_for(Option::is_some).await.map_err(|_| CallError::DeadlinePassed)?;
    match &*landed {
        Some(Ok(decided)) => Ok(replay(decided)),
        Some(Err(error)) => Err(error.clone()),
        None => Err(CallError::DeadlinePassed),
    }
}

fn replay(decided: &Decided) -> Reply {
    let source = if decided.late { DecisionSource::Late } else { DecisionSource::Replayed };
    let decision = labelled(&decided.decision, source);
    Reply {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: ReplyBody::whole(Bytes::new()),
        usage: UsageSlot::default(),
        complete: true,
        decision: Some(Arc::new(decision)),
    }
}

fn labelled(decision: &Decision, source: DecisionSource) -> Decision {
    Decision { source, ..decision.clone() }
}

fn key(tenant: &str, out_trade_no: &str) -> Key {
    let mut hash = Sha256::new();
    hash.update((tenant.len() as u64).to_be_bytes());
    hash.update(tenant);
    hash.update(out_trade_no);
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
