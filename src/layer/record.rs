//! One access-log line and one set of measurements per request, written at the end of its body, however it ended.
//!
//! It also holds on to the pinned snapshot until then, because that is how long the request uses it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::decision::{DecisionSource, FallbackReason};
use crate::domain::id::RequestId;
use crate::domain::operation::Operation;
use crate::domain::outcome::{End, FailureClass};
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::reply::{Ended, ReplyBody};
use crate::flight::showing::Fared;
use crate::flight::trail::{self, CostNote, Story, Trail, UpstreamNames};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::layer::recent::{self, Past, Recent};
use crate::layer::traced::{self, Over};
use crate::telemetry::access::{AccessLog, AccessRecord, AttemptNote};
use crate::telemetry::handles::RouteMetrics;
use crate::telemetry::labels::{AttemptOutcome, RequestOutcome};
use crate::telemetry::traces::Spans;

/// What nginx calls a client that went away before the answer; never on the wire.
const CLIENT_GONE: u16 = 499;

/// How often an SDK has tried before.
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// Which trace the request belongs to.
const TRACE_ID: HeaderName = HeaderName::from_static("wb-trace-id");

/// Plain values for [`RecordLayer`].
#[derive(Clone)]
pub struct Params {
    /// Where lines go.
    pub log: AccessLog,
    /// The series of requests that never reached a route.
    pub unrouted: Arc<RouteMetrics>,
    /// The last requests that somebody may ask about.
    pub recent: Arc<Recent>,
    /// Where finished requests wait to be told to a collector.
    pub spans: Arc<Spans>,
}

/// Makes [`Record`].
#[derive(Clone)]
pub struct RecordLayer(pub Params);

/// Writes the record.
#[derive(Clone)]
pub struct Record<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for RecordLayer {
    type Service = Record<S>;

    fn layer(&self, inner: S) -> Record<S> {
        Record { inner, params: Arc::new(self.0.clone()) }
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Record<S>
where
    S: Service<Arrival<P, B>, Response = Response<ReplyBody>, Error = Infallible>,
    P: Pinned,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Touching<S::Future, Entry<P>>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        let trace = arrival.pinned.traces().map(|plan| traced::begin(plan, &arrival.head));
        {
            let mut story = arrival.trail.lock();
            (story.retry_count, story.trace) = (retry_count(&arrival), trace);
        }
        let entry = Entry {
            params: Arc::clone(&self.params),
            pinned: arrival.pinned.clone(),
            id: arrival.id.clone(),
            trail: arrival.trail.clone(),
            arrived: arrival.arrived,
            is_head: arrival.head.method == Method::HEAD,
            head: None,
            written: false,
        };
        Touching::new(self.inner.call(arrival), entry)
    }
}

impl<P: Pinned> Touch<Result<Response<ReplyBody>, Infallible>> for Entry<P> {
    fn touch(mut self, answer: &mut Result<Response<ReplyBody>, Infallible>) {
        let Ok(response) = answer else { return };
        self.answered(response);
        if self.is_head {
            // hyper sends no body and lets go of it unasked, which is not the client going away.
            self.write(&Ended { end: End::Complete, bytes: 0, frames: 0 });
        } else {
            response.body_mut().on_end(move |ended| self.write(ended));
        }
    }
}

fn retry_count<P, B>(arrival: &Arrival<P, B>) -> Option<u32> {
    arrival.head.headers.get(&RETRY_COUNT)?.to_str().ok()?.parse().ok()
}

/// The record being made. Dropped unwritten, the client went away before there was an answer.
pub struct Entry<P: Pinned> {
    params: Arc<Params>,
    pinned: P,
    id: RequestId,
    trail: Trail,
    arrived: Instant,
    is_head: bool,
    head: Option<Head>,
    written: bool,
}

#[derive(Clone, Copy)]
struct Head {
    status: StatusCode,
    is_stream: bool,
    overhead: Duration,
}

impl<P: Pinned> Entry<P> {
    fn answered(&mut self, response: &mut Response<ReplyBody>) {
        let story = self.trail.lock();
        let overhead = story.overhead.unwrap_or_default();
        if let Some(begun) = &story.trace
            && let Ok(id) = HeaderValue::from_bytes(&begun.context.trace.text())
        {
            response.headers_mut().insert(TRACE_ID, id);
        }
        drop(story);
        self.head = Some(Head { status: response.status(), is_stream: response.body().is_stream(), overhead });
    }

    fn write(&mut self, ended: &Ended) {
        self.written = true;
        let story = self.trail.lock();
        let duration = self.arrived.elapsed();
        let outcome = outcome(self.head, ended.end, &story);
        let metrics = story.route.as_ref().map_or(&self.params.unrouted, |route| &route.metrics);
        metrics.request(outcome);
        if let Some(showing) = self.pinned.showing() {
            showing.count(fared(outcome, self.head, &story));
        }
        metrics.duration.observe(duration);
        if let Some(head) = self.head {
            metrics.overhead.observe(head.overhead);
            if head.is_stream {
                metrics.stream(ended.end);
            }
        }
        let flying = story.flying.iter().chain(&story.beside);
        let flying = flying.map(|flying| note(&flying.upstream, AttemptOutcome::Abandoned));
        let attempts: Vec<_> = story.attempts.iter().map(attempt).chain(flying).collect();
        let record = AccessRecord { duration, attempts: &attempts, ..self.describe(&story, outcome, ended) };
        self.params.log.access(&record);
        if story.trace.is_some() {
            self.tell(&story, outcome, (duration, ended.end));
        }
        if recent::is_telling(&story, outcome, duration) {
            self.params.recent.keep(self.past(&story, outcome, (duration, ended.end)));
        }
    }

    #[cold]
    fn tell(&self, story: &Story, outcome: RequestOutcome, (duration, end): (Duration, End)) {
        let told = traced::told(
            story,
            &Over {
                id: &self.id,
                arrived: self.arrived,
                duration,
                overhead: self.head.map_or(Duration::ZERO, |head| head.overhead),
                status: self.head.map(|head| head.status.as_u16()),
                outcome,
                stream_end: self.head.filter(|head| head.is_stream).map(|_| end),
                config: self.pinned.version_header().to_str().unwrap_or_default(),
            },
        );
        if let Some(told) = told {
            self.params.spans.offer(told);
        }
    }

    #[cold]
    fn past(&self, story: &Story, outcome: RequestOutcome, (duration, end): (Duration, End)) -> Past {
        Past {
            id: self.id.clone(),
            arrived: self.arrived,
            duration,
            overhead: self.head.map_or(Duration::ZERO, |head| head.overhead),
            status: self.head.map_or(CLIENT_GONE, |head| head.status.as_u16()),
            outcome,
            error: story.error,
            stream_end: self.head.filter(|head| head.is_stream).map(|_| end),
            config: self.pinned.version(),
            operation: story.operation,
            route: story.route.as_ref().map(|route| route.id.clone()),
            caller: story.caller.clone(),
            attempts: story.attempts.clone(),
            dropped: story.flying.iter().chain(&story.beside).map(|flying| Arc::clone(&flying.upstream)).collect(),
            served: story.served.clone(),
            cache: story.cache,
            decision: story.decision,
        }
    }

    fn describe<'s>(&'s self, story: &'s Story, outcome: RequestOutcome, ended: &Ended) -> AccessRecord<'s> {
        let served = story.served.as_ref();
        AccessRecord {
            status: self.head.map_or(CLIENT_GONE, |head| head.status.as_u16()),
            caller: story.caller.as_ref().map(super::super::domain::id::CallerId::as_str),
            tenant: story.tenant.as_ref().map(super::super::domain::id::TenantId::as_str),
            route: story.route.as_ref().map(|route| route.id.as_str()),
            operation: story.operation.map(Operation::label),
            provider: served.map(|names| names.provider.as_str()),
            model: served.map(|names| names.model.as_str()).filter(|model| !model.is_empty()),
            cache: Some(story.cache.label()),
            overhead: self.head.map_or(Duration::ZERO, |head| head.overhead),
            bytes_in: story.bytes_in,
            bytes_out: ended.bytes,
            usage: story.usage,
            cost: if let CostNote::Known(cost) = story.cost { Some(cost) } else { None },
            stream_end: self.head.filter(|head| head.is_stream).map(|_| ended.end),
            decision: story.decision,
            error_code: story.error,
            config_version: self.pinned.version_header().to_str().ok(),
            client_retries: story.retry_count,
            trace: story.trace.as_ref().map(|begun| begun.context.trace),
            ..AccessRecord::new(self.id.as_str(), outcome)
        }
    }
}

impl<P: Pinned> Drop for Entry<P> {
    fn drop(&mut self) {
        if !self.written {
            self.write(&Ended { end: End::ClientGone, bytes: 0, frames: 0 });
        }
    }
}

fn attempt(note: &trail::AttemptNote) -> AttemptNote<'_> {
    self::note(&note.upstream, note.outcome)
}

fn note(upstream: &UpstreamNames, outcome: AttemptOutcome) -> AttemptNote<'_> {
    AttemptNote { upstream: upstream.upstream.as_str(), outcome }
}

fn outcome(head: Option<Head>, end: End, story: &Story) -> RequestOutcome {
    match (end, head) {
        (End::ClientGone | End::FellBehind, _) | (_, None) => RequestOutcome::ClientGone,
        (End::ShuttingDown, _) => RequestOutcome::ShuttingDown,
        (End::DeadlinePassed, _) => RequestOutcome::Timeout,
        (End::UpstreamFailed(_), _) => RequestOutcome::UpstreamError,
        (End::Complete, Some(head)) => match head.status.as_u16() {
            ..400 => RequestOutcome::Ok,
            401 | 403 => RequestOutcome::Unauthorised,
            429 => RequestOutcome::RateLimited,
            408 | 504 => RequestOutcome::Timeout,
            400..500 => RequestOutcome::ClientError,
            500 => RequestOutcome::Error,
            _ if story.error == Some("shed") => RequestOutcome::Shed,
            _ => RequestOutcome::UpstreamError,
        },
    }
}

/// What a request says of its configuration. That a process is full counts: room is configured.
fn fared(outcome: RequestOutcome, head: Option<Head>, story: &Story) -> Fared {
    let of_caller = head.is_some_and(|head| head.status.is_client_error());
    match outcome {
        RequestOutcome::Ok => match story.decision {
            // The merchant's money is spent.
            Some((_, DecisionSource::Fallback(FallbackReason::Budget))) => Fared::Neither,
            Some((_, DecisionSource::Fallback(_))) => Fared::Badly,
            _ => Fared::Well,
        },
        // A body that did not come in time is its caller's.
        RequestOutcome::Shed | RequestOutcome::UpstreamError | RequestOutcome::Timeout | RequestOutcome::Error
            if !of_caller =>
        {
            Fared::Badly
        }
        RequestOutcome::ClientError if is_refused_by_provider(story) => Fared::Badly,
        _ => Fared::Neither,
    }
}

/// What a provider refuses may be its caller's fault or the fault of a model's name, a path or a member that our files say.
/// From one such answer nobody can tell; but callers were wrong in the minute before as well, and only more of it counts.
fn is_refused_by_provider(story: &Story) -> bool {
    let last = story.attempts.last().filter(|last| last.outcome == AttemptOutcome::Failed(FailureClass::Refused));
    // How much a body weighs is its caller's.
    last.and_then(|last| last.status).is_some_and(|status| (400..500).contains(&status) && status != 413)
}

#[cfg(test)]
mod tests;
