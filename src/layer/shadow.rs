//! Copies of calls for a candidate on trial. Nobody is shown its answers, and nobody waits for them.
//!
//! A copy runs in a task of its own with a deadline of its own; when too many are on their way, the next one is dropped and
//! counted. What it does is booked apart: its attempts, its time and its cost have series of their own, its span is marked and
//! not the call's outcome, its trail is not the call's, and it teaches the breaker nothing, so that a failing trial cannot
//! close a candidate to callers. It takes a place at its provider like any attempt, but only of the first half, and it
//! heeds and causes pauses of the quota group.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::domain::deadline::Deadline;
use crate::domain::id::RouteId;
use crate::domain::operation::Safety;
use crate::domain::outcome::{End, FailureClass};
use crate::domain::usage::Usage;
use crate::flight::call::{Call, CallContext};
use crate::flight::error::AttemptError;
use crate::flight::gate::Gate;
use crate::flight::reply::Reply;
use crate::flight::trail::{Flying, Trail};
use crate::layer::always_ready;
use crate::layer::seam::Seam;
use crate::layer::traced::{self, Copied};
use crate::routing::order;
use crate::telemetry::handles::ShadowMetrics;
use crate::telemetry::labels::{AttemptOutcome, ExtraCost, ShadowDrop};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::{SHADOW, Served, Spans};
use crate::upstream::attempt::Attempt;
use crate::upstream::live::LiveUpstream;

/// Copies hold their body without a place in the process's own bound, so it is a small one.
const LARGEST_BODY: usize = 1024 * 1024;
/// Which calls are copied must not depend on the same bits as who is asked first.
const SALT: u64 = 0x5bad_0e5f_0000_0001;

/// How many copies of a route's calls are on their way; kept by route.
#[derive(Debug, Default)]
pub struct Copies(AtomicU32);

/// Plain values for [`ShadowLayer`].
pub struct Params {
    /// Who is on trial.
    pub upstream: Arc<LiveUpstream>,
    /// One try at it, without what belongs to callers.
    pub service: Seam<Attempt, Reply, AttemptError>,
    /// How many calls are copied, in millionths.
    pub share: u32,
    /// Most copies at a time.
    pub limit: u32,
    /// How many there are.
    pub copies: Arc<Copies>,
    /// TCP and TLS.
    pub connect: Duration,
    /// Until the first content of a stream.
    pub first_content: Duration,
    /// Longest silence.
    pub idle: Duration,
    /// A copy ends by then.
    pub total: Duration,
    /// Its own series.
    pub series: Arc<ShadowMetrics>,
    /// Counts its cost.
    pub metrics: Arc<Metrics>,
    /// Knows when there is nothing to spare for copies.
    pub gate: Arc<Gate>,
    /// Whose shadow it is.
    pub route: RouteId,
    /// Where spans wait for a collector.
    pub spans: Arc<Spans>,
}

/// Makes [`Shadow`]; without parameters it does nothing.
#[derive(Clone)]
pub struct ShadowLayer(pub Option<Arc<Params>>);

/// Copies calls.
#[derive(Clone)]
pub struct Shadow<S> {
    inner: S,
    params: Option<Arc<Params>>,
}

impl<S> Layer<S> for ShadowLayer {
    type Service = Shadow<S>;

    fn layer(&self, inner: S) -> Shadow<S> {
        Shadow { inner, params: self.0.clone() }
    }
}

impl<S: Service<Call>> Service<Call> for Shadow<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        if let Some(params) = &self.params {
            cast(params, &call);
        }
        self.inner.call(call)
    }
}

/// A copy's place; free again when it is dropped.
struct Copy(Arc<Params>);

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.copies.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Starts a copy, if it is this call's turn.
fn cast(params: &Arc<Params>, call: &Call) {
    if !order::chosen(order::hash(call.context.id.as_str().as_bytes()) ^ SALT, params.share) {
        return;
    }
    if let Some(why) = params.objection(call) {
        return params.series.dropped(why);
    }
    if params.gate.is_lean() {
        return params.series.dropped(ShadowDrop::Full);
    }
    if params.copies.0.fetch_add(1, Ordering::AcqRel) >= params.limit {
        params.copies.0.fetch_sub(1, Ordering::AcqRel);
        return params.series.dropped(ShadowDrop::Full);
    }
    let copy = Copy(Arc::clone(params));
    let attempt = params.attempt(call);
    tokio::spawn(async move {
        let params = Arc::clone(&copy.0);
        let (by, since) = (attempt.call.deadline.instant(), attempt.begun);
        let traced = attempt.call.context.trace.is_some().then(|| attempt.call.clone());
        let mut seen = Seen::default();
        let ended = timeout_at(by, run(&params, attempt, &mut seen)).await;
        let outcome = ended.unwrap_or(Err(FailureClass::HeadersTimeout));
        params.series.attempt(outcome.err());
        if let Some(call) = traced {
            params.tell(&call, since, (outcome, seen));
        }
    });
}

/// What a span tells of a copy beside its outcome.
#[derive(Default)]
struct Seen {
    status: Option<u16>,
    first_content: Option<Duration>,
    usage: Usage,
}

async fn run(params: &Params, attempt: Attempt, seen: &mut Seen) -> Result<(), FailureClass> {
    let started = Instant::now();
    let streams = attempt.call.llm().stream;
    let asked = params.service.ask(attempt).await;
    seen.status = asked.as_ref().map_or_else(|error| error.status, |reply| Some(reply.status.as_u16()));
    let mut reply = asked.map_err(|error| error.class)?;
    params.series.first_content.observe(started.elapsed());
    seen.first_content = streams.then(|| started.elapsed());
    let (told, how) = tokio::sync::oneshot::channel();
    // Nobody listens any more only if the deadline has ended this.
    reply.body.on_end(move |ended| {
        let _ = told.send(ended.end);
    });
    while reply.body.frame().await.is_some() {}
    params.book(&reply);
    seen.usage = reply.usage.get();
    drop(reply);
    match how.await {
        Ok(End::UpstreamFailed(class)) => Err(class),
        _ => Ok(()),
    }
}

impl Params {
    fn objection(&self, call: &Call) -> Option<ShadowDrop> {
        let harmless = call.operation.safety() != Safety::AtMostOnce && !call.llm().anchored && call.is_kept();
        if !harmless || self.upstream.speaks(call).is_none() {
            return Some(ShadowDrop::Unable);
        }
        if call.body.len() > LARGEST_BODY {
            return Some(ShadowDrop::Large);
        }
        let paused = self.upstream.provider.pause.left(Instant::now()).is_some();
        (paused || !self.upstream.health.is_unmarked()).then_some(ShadowDrop::Unwell)
    }

    fn attempt(&self, call: &Call) -> Attempt {
        let now = Instant::now();
        let trail = Trail::default();
        if call.context.trace.is_some() {
            // By this number the provider is told its span, and its answer's model is remembered.
            let flying = Flying { number: SHADOW, ..Flying::new(Arc::clone(&self.upstream.names), now) };
            trail.lock().flying = Some(flying);
        }
        let context = CallContext { trail, ..(*call.context).clone() };
        let patience = if call.llm().stream { self.first_content } else { self.total };
        Attempt {
            call: Call { context: Arc::new(context), deadline: Deadline::after(now, self.total), ..call.clone() },
            number: 1,
            begun: now,
            limit: now + patience,
            fair: now + patience,
            patience: Duration::ZERO,
            connect: self.connect,
            idle: self.idle,
        }
    }

    /// Hands a span of it over, if its call's trace is recorded.
    #[cold]
    fn tell(&self, call: &Call, since: Instant, (ended, seen): (Result<(), FailureClass>, Seen)) {
        let Seen { status, first_content, usage } = seen;
        let outcome = ended.map_or_else(AttemptOutcome::Failed, |()| AttemptOutcome::Ok);
        let served = ended.is_ok().then_some(Served { usage, first_content });
        let copied = Copied { upstream: &self.upstream.names, since, outcome, status, served, route: &self.route };
        if let Some(told) = traced::copied(call, copied) {
            self.spans.offer(told);
        }
    }

    /// What the answer cost, apart from what callers' answers cost.
    fn book(&self, reply: &Reply) {
        let (usage, names) = (reply.usage.get(), &self.upstream.names);
        let price = self.upstream.candidate.model.as_ref().and_then(|model| model.price);
        let cost = price.zip(usage.input_tokens).and_then(|(price, input)| price.cost(input, usage.output_tokens?));
        match cost {
            Some(cost) => self.metrics.extra_cost(&names.provider, &names.model, ExtraCost::Shadow, cost),
            None => self.metrics.unpriced.inc(),
        }
    }
}
