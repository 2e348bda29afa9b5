//! A decision is on record before it is given.
//!
//! Outermost of the risk stack, so that fallbacks and decisions given again pass here too: whatever is answered has been
//! made durable, or the route's `audit` says what happens then. It waits within the route's deadline and never longer. A
//! verdict is handed over where it is learnt ([`Clerk::note`], called below the timer), before anybody can be told, so that
//! one that comes late is recorded as well; what passes here is then a look at the same entry.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache as Moka;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::config::audit::OnUnrecorded;
use crate::domain::clock;
use crate::domain::decision::{Decision, DecisionSource, FallbackReason};
use crate::domain::id::DecisionId;
use crate::domain::retention::Keeping;
use crate::flight::call::{Call, CallContext, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::trail::Story;
use crate::layer::{BoxFuture, always_ready};
use crate::store::outbox::{Notice, Overtaken};
use crate::store::record::{Attempt, Entry, Told};
use crate::store::refusal::Refused;
use crate::store::writer::{Pending, Records, Watch};
use crate::telemetry::handles::AuditMetrics;
use crate::telemetry::labels;
use crate::telemetry::metrics::Metrics;

/// Decisions known to be on record, so that giving one again asks nobody.
const MOST_KNOWN: u64 = 100_000;
/// Decisions on their way to the record; of more than these each one who waits hands over its own.
const MOST_NOTED: u64 = 10_000;
/// What recording may take of a deadline of 480 ms or more; of a shorter one an eighth.
const ROOM: Duration = Duration::from_millis(60);
/// How long the record of a late verdict is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// What writing the answer may take.
const RESERVE: Duration = Duration::from_millis(5);

impl Watch for AuditMetrics {
    fn waiting(&self, more: i64) {
        self.backlog.add(more);
    }

    fn committed(&self, took: Duration) {
        self.commit.observe(took);
    }

    fn expired(&self, keys: u64) {
        self.expired.add(keys);
    }
}

/// Hands decisions over to the record. Cloning shares it.
#[derive(Clone)]
pub struct Clerk(Arc<Desk>);

struct Desk {
    records: Records,
    known: Moka<DecisionId, ()>,
    /// On their way to the record.
    noted: Moka<DecisionId, Pending>,
    metrics: Arc<Metrics>,
}

impl Clerk {
    /// One for all workers and configurations.
    pub fn new(records: Records, metrics: Arc<Metrics>) -> Self {
        let noted = Moka::builder().max_capacity(MOST_NOTED).time_to_live(PATIENCE).build();
        Self(Arc::new(Desk { records, known: Moka::new(MOST_KNOWN), noted, metrics }))
    }

    /// The record.
    pub fn records(&self) -> &Records {
        &self.0.records
    }

    /// Where it is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Hands a verdict over and waits for nothing: whoever gives the decision waits.
    pub fn note(&self, paper: &Paper, decision: &Decision) {
        self.0.noted.insert(decision.id.clone(), self.0.records.hand_over(paper.entry(decision)));
    }

    /// Sees to it that a verdict is on record that nobody waits for any more.
    pub async fn keep(&self, paper: &Paper, decision: &Decision) {
        let late = Decision { source: DecisionSource::Late, ..decision.clone() };
        if !on_record(self, paper, &late, Instant::now() + PATIENCE).await {
            self.0.metrics.audit.unrecorded(labels::Unrecorded::Unheard);
            let (id, call) = (&decision.id, &paper.context.id);
            tracing::error!(decision.id = %id, call.id = %call, "a late verdict is not on record");
        }
    }
}

/// What of a route's deadline is left for a verdict.
pub fn for_verdict(deadline: Duration, clerk: Option<&Clerk>) -> Duration {
    if clerk.is_some() { deadline.saturating_sub(ROOM.min(deadline / 8)) } else { deadline }
}

/// A call, as far as its record needs it.
#[derive(Clone)]
pub struct Paper {
    context: Arc<CallContext>,
    facts: Arc<RiskFacts>,
    body: bytes::Bytes,
    told: bool,
}

impl Paper {
    /// Of a risk call.
    pub fn of(call: &Call) -> Option<Self> {
        let facts = Arc::clone(call.risk()?);
        Some(Self { context: Arc::clone(&call.context), facts, body: call.body.clone(), told: false })
    }

    /// A verdict that is worse than the answer given in its stead is recorded with a notice that says so.
    pub fn with_notice(self) -> Self {
        Self { told: true, ..self }
    }

    fn entry(&self, decision: &Decision) -> Entry {
        let story = self.context.trail.lock();
        let (attempts, first) = (attempts(&story), story.stood_in.clone());
        let overtaken = self.told.then(|| story.overtaken_by(decision)).flatten();
        drop(story);
        let (tenant, request_id) = (self.context.caller.tenant.as_str(), self.context.id.as_str());
        let notice = overtaken.map(|(id, action, source)| {
            let (action, source) = (action.as_str().to_owned(), source.as_str().to_owned());
            let served = Overtaken { id: id.to_string(), action, source, request_id: request_id.to_owned() };
            Notice::new(tenant, decision.id.as_str(), served)
        });
        let took_ms = u64::try_from(self.context.arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
        Entry::decision(&Told {
            tenant,
            caller: self.context.caller.id.as_str(),
            request_id,
            assessment: &self.facts.assessment,
            digest: Sha256::digest(&self.body).into(),
            decision,
            attempts,
            took_ms,
            instead_of: first.as_ref().filter(|first| **first != decision.id).map(DecisionId::as_str),
            keeping: self.keeping(),
            notice,
        })
    }

    fn keeping(&self) -> Keeping {
        let (asked, route) = (&self.facts.assessment, &self.facts.route);
        route.jurisdictions.keeping(asked.user.country.as_deref(), asked.merchant.country.as_deref())
    }

    /// That it is answered without a decision.
    fn refusal(&self, reason: FallbackReason) -> Entry {
        Entry::refusal(&Refused {
            tenant: self.context.caller.tenant.as_str(),
            caller: self.context.caller.id.as_str(),
            request_id: self.context.id.as_str(),
            assessment: &self.facts.assessment,
            digest: Sha256::digest(&self.body).into(),
            reason,
            applied: &self.facts.ruling.applied,
            attempts: attempts(&self.context.trail.lock()),
            took_ms: u64::try_from(self.context.arrived.elapsed().as_millis()).unwrap_or(u64::MAX),
            at_ms: clock::unix_ms(),
            keeping: self.keeping(),
        })
    }
}

fn attempts(story: &Story) -> Vec<Attempt> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let ended = story.attempts.iter().map(|attempt| Attempt {
        upstream: attempt.upstream.upstream.to_string(),
        outcome: attempt.outcome.label().to_owned(),
        reason: attempt.outcome.reason().to_owned(),
        took_ms: ms(attempt.duration),
    });
    let flying = story.flying.iter().chain(&story.beside).map(|flying| Attempt {
        upstream: flying.upstream.upstream.to_string(),
        outcome: "in_flight".to_owned(),
        reason: "none".to_owned(),
        took_ms: ms(flying.since.elapsed()),
    });
    ended.chain(flying).collect()
}

/// Plain values for [`AuditLayer`].
#[derive(Clone)]
pub struct Params {
    /// Who records; `None` where there is no record.
    pub clerk: Option<Clerk>,
    /// The answer leaves by then, counted from arrival.
    pub deadline: Duration,
    /// What a decision is worth that is not on record by then.
    pub on_unrecorded: OnUnrecorded,
}

/// Makes [`Audit`].
#[derive(Clone)]
pub struct AuditLayer(pub Params);

/// Lets go what is on record.
#[derive(Clone)]
pub struct Audit<S> {
    inner: S,
    params: Params,
}

impl<S> Layer<S> for AuditLayer {
    type Service = Audit<S>;

    fn layer(&self, inner: S) -> Audit<S> {
        Audit { inner, params: self.0.clone() }
    }
}

impl<S> Service<Call> for Audit<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let Some((clerk, paper)) = self.params.clerk.clone().zip(Paper::of(&call)) else {
            return Box::pin(self.inner.call(call));
        };
        let by = paper.context.arrived + self.params.deadline.saturating_sub(RESERVE);
        let on_unrecorded = self.params.on_unrecorded;
        let answer = self.inner.call(call);
        Box::pin(async move {
            let reply = match answer.await {
                Ok(reply) => reply,
                Err(error) => return Err(Box::pin(refused(error, &clerk, &paper, by)).await),
            };
            let Some(decision) = reply.decision.as_ref().filter(|decision| !clerk.0.known.contains_key(&decision.id))
            else {
                return Ok(reply);
            };
            let since = Instant::now();
            let durable = on_record(&clerk, &paper, decision, by).await;
            paper.context.trail.lock().recording = Some(since.elapsed());
            if durable {
                return Ok(reply);
            }
            let metrics = &clerk.0.metrics.audit;
            match on_unrecorded {
                OnUnrecorded::Refuse => {
                    metrics.unrecorded(labels::Unrecorded::Refused);
                    Err(CallError::AuditUnavailable)
                }
                OnUnrecorded::Continue => {
                    metrics.unrecorded(labels::Unrecorded::Continued);
                    let (id, call) = (&decision.id, &paper.context.id);
                    tracing::error!(decision.id = %id, call.id = %call, "a decision was given that is not on record");
                    Ok(reply)
                }
            }
        })
    }
}

/// An attempt that is answered without a decision is on record as well, if that can be had in time: the answer is the same.
async fn refused(error: CallError, clerk: &Clerk, paper: &Paper, by: Instant) -> CallError {
    if let CallError::NoDecision(reason) = &error {
        let recorded = timeout_at(by, clerk.0.records.add(paper.refusal(*reason))).await;
        if !matches!(recorded, Ok(Ok(_))) {
            clerk.0.metrics.audit.unrecorded(labels::Unrecorded::Refused);
            tracing::error!(call.id = %paper.context.id, "an attempt was answered without a decision, and that is not on record");
        }
    }
    error
}

/// True once it is durable; false if that failed or took too long.
async fn on_record(clerk: &Clerk, paper: &Paper, decision: &Decision, by: Instant) -> bool {
    let Desk { records, known, noted, .. } = &*clerk.0;
    let recorded = async {
        // What was handed over where it was learnt is waited for; if that failed, it is tried once more.
        if let Some(pending) = noted.get(&decision.id)
            && pending.outcome().await.is_ok()
        {
            return true;
        }
        records.add(paper.entry(decision)).await.is_ok()
    };
    let durable = timeout_at(by, recorded).await.unwrap_or(false);
    if durable {
        known.insert(decision.id.clone(), ());
        noted.invalidate(&decision.id);
    }
    durable
}

#[cfg(test)]
mod tests;
