//! Every tower stack of the product, one line and one reason per layer.
//!
//! Read from top to bottom: the top sees the request first and the reply last. The four stacks meet at two boxed seams,
//! [`RouteService`] and `AttemptService`, so that types and compile errors stay short.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use http::{Request, Response};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, service_fn};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;

use crate::config::asking::{FallbackOn, Order};
use crate::config::table::{Candidate, LlmRoute, RiskRoute};
use crate::domain::id::RouteId;
use crate::flight::reply::ReplyBody;
use crate::gateway::dispatch::{Dispatch, MatchLayer};
use crate::gateway::pin::PinLayer;
use crate::gateway::snapshot::{Kept, Live, RouteService, Shared};
use crate::layer::admission::{self, AdmissionLayer};
use crate::layer::audit::{self, AuditLayer};
use crate::layer::authenticate::{API_KEY, IdentifyLayer};
use crate::layer::bulkhead::{self, BulkheadLayer};
use crate::layer::cache::{self, CacheLayer};
use crate::layer::catch_panic::CatchPanicLayer;
use crate::layer::deadline::DeadlineLayer;
use crate::layer::decision_cache::{self, DecisionCacheLayer};
use crate::layer::drain::{self, DrainLayer};
use crate::layer::failover::race::Hedge;
use crate::layer::failover::{self, AttemptService, Failover, Lane};
use crate::layer::fallback::{self, FallbackLayer};
use crate::layer::idempotency::{self, IdempotencyLayer};
use crate::layer::idempotency_key::{self, IdempotencyKeyLayer};
use crate::layer::meter::{self, MeterLayer};
use crate::layer::observe::{self, ObserveLayer};
use crate::layer::pace::{self, PaceLayer};
use crate::layer::quota::{self, QuotaLayer};
use crate::layer::read_body::ReadBodyLayer;
use crate::layer::record::{self, RecordLayer};
use crate::layer::rescue::RescueLayer;
use crate::layer::seam::Seam;
use crate::layer::shadow::{self, ShadowLayer};
use crate::layer::soft_deadline::{self, Revise, SoftDeadlineLayer};
use crate::layer::spend::{self, SpendLayer};
use crate::layer::stamp::StampLayer;
use crate::layer::stand_in::{self, StandInLayer};
use crate::layer::strict::StrictLayer;
use crate::layer::tally::TallyLayer;
use crate::layer::throttle::ThrottleLayer;
use crate::layer::timeout::TimeoutLayer;
use crate::layer::trip::{self, TripLayer};
use crate::layer::velocity::VelocityLayer;
use crate::layer::verify_signature::{self, VerifySignatureLayer};
use crate::telemetry::metrics::Metrics;
use crate::upstream::live::{Fleet, LiveProvider, LiveUpstream};
use crate::upstream::send::send;

/// Once per request, whatever it asks for.
pub fn ingress(
    live: &Live,
    shared: &Shared,
) -> impl Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static
+ use<> {
    let unrouted = shared.metrics.route(&RouteId::new("none"));
    let (gate, metrics) = (Arc::clone(&shared.gate), Arc::clone(&shared.metrics));
    let signatures = verify_signature::Params { nonces: shared.nonces.clone(), metrics: Arc::clone(&metrics) };
    ServiceBuilder::new()
        // Before anything could print a header.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, API_KEY, PROXY_AUTHORIZATION, COOKIE]))
        // One configuration version for all that follows; the clock starts.
        .layer(PinLayer(Arc::clone(live)))
        // Outside Rescue, so that it sees the final status; writes at the end of the body.
        .layer(RecordLayer(record::Params {
            log: shared.log.clone(),
            unrouted,
            recent: Arc::clone(&shared.recent),
            spans: Arc::clone(&shared.spans),
        }))
        // Outside Rescue too: errors carry our headers as answers do.
        .layer(StampLayer)
        // Every error becomes a response here, in the dialect of the path.
        .layer(RescueLayer)
        // A bug below costs one request, and that request is answered and recorded.
        .layer(CatchPanicLayer { metrics: Arc::clone(&metrics) })
        // Ambiguous requests go no further; inside Record and Rescue, so that refusals are counted and answered.
        .layer(StrictLayer)
        // Path and method to operation: risk and LLM calls have different room below.
        .layer(MatchLayer)
        // Who is it: an unknown caller takes no room, and never makes us buffer a body.
        .layer(IdentifyLayer)
        // Process-wide room by class and caller, before a body byte is read; its permit lives in the reply's body.
        .layer(AdmissionLayer(admission::Params { gate, metrics }))
        // Streams that outlive a drain end in one error event.
        .layer(DrainLayer(drain::Params { over: shared.drained.clone() }))
        // The caller's own limits, for the same reason before the body.
        .layer(ThrottleLayer)
        // The body becomes bytes, bounded in size and silence.
        .layer(ReadBodyLayer)
        // Callers who must sign: below ReadBody, because the signature covers every byte, and above all that acts on one.
        .layer(VerifySignatureLayer(signatures))
        // Decode the few facts, select the route, make the call.
        .service(Dispatch)
}

/// One payment attempt: one decision, on time.
pub fn risk(
    route: &Arc<RiskRoute>,
    kept: &Kept,
    revise: Option<Arc<dyn Revise>>,
    fleet: &Fleet,
    shared: &Shared,
) -> RouteService {
    let metrics = &shared.metrics;
    let decisions = decision_cache::Params { memory: Arc::clone(&shared.decisions), metrics: Arc::clone(metrics) };
    let stand_in = stand_in::Params { decisions: decisions.clone(), ledger: shared.ledger.clone() };
    let in_time = audit::for_verdict(route.deadline, shared.clerk.as_ref());
    let (money, merchants) = (Arc::clone(route), kept.merchants.clone());
    let stack = ServiceBuilder::new()
        // Outermost: nothing is answered that is not on record, fallbacks and decisions given again included.
        .layer(AuditLayer(audit::Params {
            clerk: shared.clerk.clone(),
            deadline: route.deadline,
            on_unrecorded: route.audit,
        }))
        // Outside the timer, so that time-up is one more reason to fall back.
        .layer(FallbackLayer(fallback::Params { metrics: Arc::clone(metrics) }))
        // Outside the timer: an earlier decision stands in for one that did not come in time, before the failure mode does.
        .layer(StandInLayer(stand_in))
        // Answers when the time is up; the call below goes on to its hard limit.
        .layer(SoftDeadlineLayer(soft_deadline::Params {
            deadline: in_time,
            clerk: shared.clerk.clone(),
            metrics: Arc::clone(metrics),
            revise: revise.clone(),
        }))
        // Inside Fallback, so that a fallback is never kept as a verdict; below the timer, so that late ones are.
        .layer(IdempotencyLayer(idempotency::Params {
            ledger: shared.ledger.clone(),
            clerk: shared.clerk.clone(),
            revise,
            metrics: Arc::clone(metrics),
        }))
        // Inside Idempotency, so that what is given again is this attempt's decision; outside Velocity: counted first.
        .layer(DecisionCacheLayer(decisions))
        // A counter over its limit makes a verdict more severe; inside Idempotency, so that it is kept that way.
        .layer(VelocityLayer)
        // Inside Idempotency, so that a decision is paid once; it counts and never refuses a payment.
        .layer(TallyLayer)
        // The merchant's money: features are given up before the score is; inside Idempotency too, for the same reason.
        .layer(SpendLayer(spend::Params { route: money, merchants, metrics: Arc::clone(metrics) }))
        // Asks candidates; an at-most-once operation moves on only when nothing was sent.
        .service(Failover::new(failover::Params {
            lanes: lanes(&route.candidates, &[], fleet, shared),
            order: Order::AsListed,
            fallback_on: FallbackOn::default(),
            hedge: None,
            max_attempts: route.max_attempts,
            connect: route.connect,
            first_content: route.deadline,
            idle: route.hard_limit,
            metrics: Arc::clone(metrics),
        }));
    Seam::new(stack)
}

/// One LLM call: one answer, whole or streamed.
pub fn llm(route: &Arc<LlmRoute>, kept: &Kept, fleet: &Fleet, shared: &Shared) -> RouteService {
    let cache = cache::Params {
        store: shared.store.clone(),
        policy: route.cache,
        fingerprint: route.fingerprint,
        metrics: Arc::clone(&shared.metrics),
        gate: Arc::clone(&shared.gate),
        log: shared.log.clone(),
    };
    let hedge = route.asking.hedge.zip(kept.tempo.clone());
    let hedge = hedge.map(|(policy, tempo)| {
        let (metrics, gate) = (shared.metrics.hedges(&route.id), Arc::clone(&shared.gate));
        Hedge { policy, tempo, metrics, gate }
    });
    let stack = ServiceBuilder::new()
        // Outermost: a stream ends with its call's total time; until there is a reply, Failover keeps the same deadline.
        .layer(DeadlineLayer { heartbeat: route.timeouts.heartbeat })
        // The same key, the same answer; outside Cache, so that it holds on routes without one.
        .layer(IdempotencyKeyLayer(idempotency_key::Params {
            answers: shared.answers.clone(),
            metrics: Arc::clone(&shared.metrics),
        }))
        // Complete answers again, for the same tenant and the same question; equal questions in flight are asked once.
        .layer(CacheLayer(cache))
        // The caller's tokens and money, held back and settled; inside Cache, because a stored answer costs nothing.
        .layer(QuotaLayer(quota::Params { route: Arc::clone(route), metrics: Arc::clone(&shared.metrics) }))
        // Copies for a candidate on trial; inside Cache, because what is answered from memory would be asked for nothing.
        .layer(ShadowLayer(shadow(route, kept, fleet, shared)))
        // Asks candidates until one shows content; after that there is no way back.
        .service(Failover::new(failover::Params {
            lanes: lanes(&route.candidates, &route.asking.weights, fleet, shared),
            order: route.asking.order,
            fallback_on: route.asking.fallback_on,
            hedge,
            max_attempts: route.max_attempts,
            connect: route.timeouts.connect,
            first_content: route.timeouts.first_content,
            idle: route.timeouts.idle,
            metrics: Arc::clone(&shared.metrics),
        }));
    Seam::new(stack)
}

/// One try at one candidate.
pub fn attempt(upstream: &Arc<LiveUpstream>, metrics: &Arc<Metrics>) -> AttemptService {
    let series = metrics.upstream(&upstream.names.provider, &upstream.names.model);
    series.begin(upstream.candidate.provider.operations.iter().copied());
    let provider = &upstream.provider;
    let sender = Arc::clone(upstream);
    let stack = ServiceBuilder::new()
        // Outermost: local refusals are attempts too.
        .layer(ObserveLayer(observe::Params {
            names: Arc::clone(&upstream.names),
            metrics: Arc::clone(&series),
            latency: upstream.latency.clone(),
        }))
        // Refuses at once while the breaker is open; outside Timeout, so that a timeout counts.
        .layer(TripLayer(trip::Params { health: Arc::clone(&upstream.health), metrics: Arc::clone(&series) }))
        // The provider's places; refuses when full, and queues only payments that nobody else can judge, for a moment.
        .layer(BulkheadLayer(places(provider, 1)))
        // The quota group's pause.
        .layer(PaceLayer(pace::Params { pause: Arc::clone(&provider.pause) }))
        // Tokens and cost of what came back.
        .layer(MeterLayer(meter::Params {
            candidate: upstream.candidate.clone(),
            upstream: series,
            metrics: Arc::clone(metrics),
        }))
        // Until the first content; the idle timer lives in the stream.
        .layer(TimeoutLayer)
        // Prepare, token, sign, exchange, read, verify, classify: steps, not layers.
        .service(service_fn(move |attempt| Box::pin(send(attempt, Arc::clone(&sender)))));
    Seam::new(stack)
}

/// One try at a candidate on trial: what protects its provider, and nothing of what belongs to callers.
fn shadow(route: &LlmRoute, kept: &Kept, fleet: &Fleet, shared: &Shared) -> Option<Arc<shadow::Params>> {
    let plan = route.shadow.as_ref()?;
    let upstream = fleet.upstreams.get(&plan.candidate.upstream)?;
    let (provider, sender) = (&upstream.provider, Arc::clone(upstream));
    let stack = ServiceBuilder::new()
        // Callers keep half of the provider's places.
        .layer(BulkheadLayer(places(provider, 2)))
        // The quota group's pause.
        .layer(PaceLayer(pace::Params { pause: Arc::clone(&provider.pause) }))
        // Until the first content.
        .layer(TimeoutLayer)
        .service(service_fn(move |attempt| Box::pin(send(attempt, Arc::clone(&sender)))));
    Some(Arc::new(shadow::Params {
        service: Seam::new(stack),
        share: plan.share,
        limit: plan.in_flight,
        copies: kept.copies.clone()?,
        connect: route.timeouts.connect,
        first_content: route.timeouts.first_content,
        idle: route.timeouts.idle,
        total: route.timeouts.total,
        series: shared.metrics.shadow(&upstream.names.provider, &upstream.names.model),
        metrics: Arc::clone(&shared.metrics),
        gate: Arc::clone(&shared.gate),
        route: route.id.clone(),
        spans: Arc::clone(&shared.spans),
        upstream: Arc::clone(upstream),
    }))
}

/// A provider's places, or a part of them.
fn places(provider: &LiveProvider, part: u32) -> bulkhead::Params {
    let adaptive = provider.adaptive.clone().map(|learned| (learned, provider.bounds()));
    bulkhead::Params { places: Arc::clone(&provider.bulkhead), limit: provider.provider.in_flight, part, adaptive }
}

/// Candidates with an attempt stack in front of each, all of the same weight unless `weights` says otherwise.
fn lanes(candidates: &[Candidate], weights: &[u32], fleet: &Fleet, shared: &Shared) -> Arc<[Lane]> {
    let weights = weights.iter().copied().chain(std::iter::repeat(1));
    let lane = |(candidate, weight): (&Candidate, u32)| {
        let upstream = fleet.upstreams.get(&candidate.upstream)?;
        Some(Lane {
            service: attempt(upstream, &shared.metrics),
            metrics: shared.metrics.provider(&upstream.names.provider),
            upstream: Arc::clone(upstream),
            weight,
        })
    };
    candidates.iter().zip(weights).filter_map(lane).collect()
}
