//! Our headers on every answer, success or error: who served it, how often we tried, what it cost, which configuration.
//!
//! Values that configuration determines are made once and cloned here; only numbers are written per request.

use std::convert::Infallible;
use std::fmt::Write;

use http::header::{AGE, CACHE_CONTROL};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::id::RequestId;
use crate::domain::outcome::{Blame, FailureClass};
use crate::flight::arrival::{Arrival, Pinned};
use crate::flight::reply::ReplyBody;
use crate::flight::trail::{CacheNote, CostNote, Story, Trail};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::labels::AttemptOutcome;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("wb-upstream-request-id");
const LEFT_OUT: HeaderName = HeaderName::from_static("wb-left-out");
const ROUTE: HeaderName = HeaderName::from_static("wb-route");
const PROVIDER: HeaderName = HeaderName::from_static("wb-provider");
const MODEL: HeaderName = HeaderName::from_static("wb-model");
const ATTEMPTS: HeaderName = HeaderName::from_static("wb-attempts");
const CACHE: HeaderName = HeaderName::from_static("wb-cache");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const COST: HeaderName = HeaderName::from_static("wb-cost");
const CONFIG: HeaderName = HeaderName::from_static("wb-config");
const OVERHEAD: HeaderName = HeaderName::from_static("wb-overhead-us");
const RATE_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const RATE_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RATE_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const TOKEN_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const TOKENS_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const TOKEN_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Makes [`Stamp`].
#[derive(Clone, Copy)]
pub struct StampLayer;

/// Adds our headers.
#[derive(Clone)]
pub struct Stamp<S>(S);

impl<S> Layer<S> for StampLayer {
    type Service = Stamp<S>;

    fn layer(&self, inner: S) -> Stamp<S> {
        Stamp(inner)
    }
}

impl<S, P, B> Service<Arrival<P, B>> for Stamp<S>
where
    S: Service<Arrival<P, B>, Response = Response<ReplyBody>, Error = Infallible>,
    P: Pinned,
{
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    type Future = Touching<S::Future, Ink>;

    always_ready!();

    fn call(&mut self, arrival: Arrival<P, B>) -> Self::Future {
        let ink = Ink {
            id: arrival.id.clone(),
            trail: arrival.trail.clone(),
            arrived: arrival.arrived,
            config: arrival.pinned.version_header().clone(),
            // The Anthropic SDKs look for it under another name.
            second_name: (arrival.head.uri.path().starts_with("/v1/messages")).then_some(ANTHROPIC_REQUEST_ID),
        };
        Touching::new(self.0.call(arrival), ink)
    }
}

/// What the headers are made from.
pub struct Ink {
    id: RequestId,
    trail: Trail,
    arrived: Instant,
    config: HeaderValue,
    second_name: Option<HeaderName>,
}

impl Touch<Result<Response<ReplyBody>, Infallible>> for Ink {
    fn touch(self, answer: &mut Result<Response<ReplyBody>, Infallible>) {
        let Ok(response) = answer else { return };
        let headers = response.headers_mut();
        let id = HeaderValue::from_str(self.id.as_str()).unwrap_or(HeaderValue::from_static(""));
        if let Some(name) = self.second_name {
            headers.insert(name, id.clone());
        }
        headers.insert(REQUEST_ID, id);
        headers.insert(CONFIG, self.config);
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-store"));
        stamp(headers, &self.trail, self.arrived);
        response.body_mut().name_call(self.id);
    }
}

fn stamp(headers: &mut HeaderMap, trail: &Trail, arrived: Instant) {
    let mut story = trail.lock();
    let upstream_time = story.upstream_time();
    let overhead = arrived.elapsed().saturating_sub(upstream_time);
    story.overhead = Some(overhead);
    if let Some(route) = &story.route {
        headers.insert(ROUTE, route.header.clone());
    }
    if let Some(served) = &story.served {
        headers.insert(PROVIDER, served.provider_header.clone());
        // The risk side has no models, and an empty header would read as one without a name.
        if !served.model.is_empty() {
            headers.insert(MODEL, served.model_header.clone());
        }
    }
    if let Some(id) = &story.upstream_request_id {
        headers.insert(UPSTREAM_REQUEST_ID, id.clone());
    }
    if let Some(left_out) = &story.left_out {
        headers.insert(LEFT_OUT, left_out.clone());
    }
    if let Some(room) = story.room {
        headers.insert(RATE_LIMIT, number(room.limit.into()));
        headers.insert(RATE_REMAINING, number(room.remaining.into()));
        headers.insert(RATE_RESET, text(|line| write!(line, "{}ms", room.reset.as_millis())));
    }
    if let Some(room) = story.tokens {
        headers.insert(TOKEN_LIMIT, number(room.limit.into()));
        headers.insert(TOKENS_REMAINING, number(room.remaining.into()));
        headers.insert(TOKEN_RESET, text(|line| write!(line, "{}ms", room.reset.as_millis())));
    }
    headers.insert(ATTEMPTS, number(sent_attempts(&story)));
    headers.insert(CACHE, HeaderValue::from_static(story.cache.label()));
    if story.cache != CacheNote::Bypass {
        tell_cache(headers, story.cache);
    }
    match story.cost {
        CostNote::Nothing => {}
        CostNote::Unknown => drop(headers.insert(COST, HeaderValue::from_static("unknown"))),
        CostNote::Known(cost) => drop(headers.insert(COST, text(|line| line.write_str(cost.text().as_str())))),
    }
    let overhead_us = u64::try_from(overhead.as_micros()).unwrap_or(u64::MAX);
    headers.insert(OVERHEAD, number(overhead_us));
    let upstream_us = u64::try_from(upstream_time.as_micros()).unwrap_or(u64::MAX);
    let timing = text(|line| {
        line.write_str("wb;dur=")?;
        line.milliseconds(overhead_us)?;
        line.write_str(", up;dur=")?;
        line.milliseconds(upstream_us)?;
        let Some(recording) = story.recording else { return Ok(()) };
        line.write_str(", record;dur=")?;
        line.milliseconds(u64::try_from(recording.as_micros()).unwrap_or(u64::MAX))
    });
    headers.insert(SERVER_TIMING, timing);
}

/// What the cache did, in the words of RFC 9211 (<https://www.rfc-editor.org/rfc/rfc9211>, read Nov 2026).
fn tell_cache(headers: &mut HeaderMap, note: CacheNote) {
    if let Some(age) = note.age_seconds() {
        headers.insert(AGE, number(age));
    }
    let status = text(|line| match note {
        CacheNote::Bypass => line.write_str("weighbridge; fwd=bypass"),
        CacheNote::Miss { stored } => write!(line, "weighbridge; fwd=miss{}", if stored { "; stored" } else { "" }),
        CacheNote::Refresh { stored } => {
            write!(line, "weighbridge; fwd=request{}", if stored { "; stored" } else { "" })
        }
        CacheNote::Hit { left_seconds, .. } => write!(line, "weighbridge; hit; ttl={left_seconds}"),
        CacheNote::Coalesced => line.write_str("weighbridge; fwd=miss; collapsed"),
        CacheNote::Stale { past_seconds, .. } => {
            write!(line, "weighbridge; fwd=stale; ttl=-{past_seconds}; detail=stale-while-revalidate")
        }
        CacheNote::StaleError { past_seconds, .. } => {
            write!(line, "weighbridge; fwd=stale; ttl=-{past_seconds}; detail=stale-if-error")
        }
    });
    headers.insert(CACHE_STATUS, status);
}

/// Attempts a provider may have seen; our own refusals are not among them.
fn sent_attempts(story: &Story) -> u64 {
    let local = |outcome: AttemptOutcome| match outcome {
        AttemptOutcome::Failed(class) => class.blame() == Blame::Local && class != FailureClass::Unauthorised,
        AttemptOutcome::Ok | AttemptOutcome::Abandoned | AttemptOutcome::Outpaced => false,
    };
    let ended = story.attempts.iter().filter(|attempt| !local(attempt.outcome)).count();
    (ended + story.flying.iter().chain(&story.beside).count()) as u64
}

/// A count. The usual ones are written already.
fn number(value: u64) -> HeaderValue {
    const USUAL: [&str; 4] = ["0", "1", "2", "3"];
    match usize::try_from(value).ok().and_then(|value| USUAL.get(value)) {
        Some(usual) => HeaderValue::from_static(usual),
        None => text(|line| line.write_str(itoa::Buffer::new().format(value))),
    }
}

/// A header value of at most 96 bytes, written on the stack and copied once.
fn text(write: impl FnOnce(&mut HeaderLine) -> std::fmt::Result) -> HeaderValue {
    let mut line = HeaderLine { bytes: [0; 96], length: 0 };
    let written = write(&mut line).ok().and_then(|()| line.bytes.get(..line.length));
    HeaderValue::from_bytes(written.unwrap_or_default()).unwrap_or(HeaderValue::from_static(""))
}

struct HeaderLine {
    bytes: [u8; 96],
    length: usize,
}

impl HeaderLine {
    /// Microseconds as `1.234`.
    fn milliseconds(&mut self, micros: u64) -> std::fmt::Result {
        self.write_str(itoa::Buffer::new().format(micros / 1_000))?;
        let part = micros % 1_000;
        let digits = [part / 100, part / 10 % 10, part % 10].map(|digit| b'0' + (digit % 10) as u8);
        self.write_str(".")?;
        self.write_str(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl Write for HeaderLine {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
