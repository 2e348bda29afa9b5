//! Answers reused: complete whole 200s of routes that ask for it, by tenant and by the exact request.
//!
//! moka is used as a store only: its own coalescing gives up with a panic when leaders are dropped too often. Errors,
//! streams, truncated answers and anything larger than a tenth of the store are never kept.

use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use hmac::{Hmac, KeyInit, Mac};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use moka::Expiry;
use moka::sync::Cache as Moka;
use sha2::Sha256;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::flight::call::{CacheWish, Call};
use crate::flight::error::CallError;
use crate::flight::reply::{Reply, ReplyBody, UsageSlot};
use crate::flight::trail::CacheNote;
use crate::layer::always_ready;
use crate::layer::answering::{Act, Answering};
use crate::telemetry::labels::{Cache as CacheLabel, CacheEvent};
use crate::telemetry::metrics::Metrics;

/// What an entry weighs beside its body.
const ENTRY_BYTES: u32 = 256;

type Key = [u8; 32];

/// All cached answers, shared by every route and worker; bounded in bytes.
#[derive(Clone)]
pub struct Store {
    answers: Moka<Key, Arc<Stored>>,
    /// Keys are keyed hashes, so that whoever sees one learns nothing about a prompt.
    pepper: Arc<[u8; 32]>,
    largest: usize,
}

struct Stored {
    body: Bytes,
    content_type: Option<HeaderValue>,
    at: Instant,
    life: Duration,
}

struct Life;

impl Expiry<Key, Arc<Stored>> for Life {
    fn expire_after_create(&self, _: &Key, stored: &Arc<Stored>, _: StdInstant) -> Option<Duration> {
        Some(stored.life)
    }

    /// moka would keep the life of the answer that is replaced: what is left of it, or nothing.
    fn expire_after_update(
        &self,
        _: &Key,
        stored: &Arc<Stored>,
        _: StdInstant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(stored.life)
    }
}

impl Store {
    /// An empty store of at most `most_bytes`.
    pub fn new(most_bytes: u64, pepper: [u8; 32], metrics: &Arc<Metrics>) -> Self {
        let counted = Arc::clone(metrics);
        let answers = Moka::builder()
            .max_capacity(most_bytes)
            .weigher(|_, stored: &Arc<Stored>| {
                u32::try_from(stored.body.len()).unwrap_or(u32::MAX).saturating_add(ENTRY_BYTES)
            })
            .expire_after(Life)
            .eviction_listener(move |_, _, cause| {
                if cause.was_evicted() {
                    counted.cache(CacheLabel::Response, CacheEvent::Evicted);
                }
            })
            .build();
        let largest = usize::try_from(most_bytes / 10).unwrap_or(usize::MAX);
        Self { answers, pepper: Arc::new(pepper), largest }
    }

    fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.answers.get(key).filter(|stored| stored.at.elapsed() < stored.life)
    }

    /// The tenant is part of every call: no key without one can be made. Every part goes in with its length, so that no two calls run together.
    fn key(&self, call: &Call, fingerprint: &[u8; 32]) -> Option<Key> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.pepper[..]).ok()?;
        let mut part = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        part(call.context.caller.tenant.as_str().as_bytes());
        part(fingerprint);
        part(call.operation.label().as_bytes());
        // What of the caller's headers reaches a provider shapes its answer.
        for (name, value) in &call.context.forwarded {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        part(&call.body);
        Some(mac.finalize().into_bytes().into())
    }
}

/// Plain values for [`CacheLayer`].
#[derive(Clone)]
pub struct Params {
    /// Where answers are kept.
    pub store: Store,
    /// How long; `None` where the route has no cache.
    pub ttl: Option<Duration>,
    /// Changes with anything that shapes an answer.
    pub fingerprint: [u8; 32],
    /// Counts events.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Cache`].
#[derive(Clone)]
pub struct CacheLayer(pub Params);

/// Answers from the store, or fills it.
#[derive(Clone)]
pub struct Cache<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache { inner, params: Arc::new(self.0.clone()) }
    }
}

impl<S> Service<Call> for Cache<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<Ready<Result<Reply, CallError>>, Answering<S::Future, Fill>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let wish = call.context.cache;
        let Some((key, ttl)) = self.params.key(&call) else {
            return match wish {
                CacheWish::OnlyIfCached => Either::Left(ready(Err(CallError::NotCached))),
                _ => Either::Right(Answering::new(self.inner.call(call), Fill(None))),
            };
        };
        let params = &self.params;
        let stored = if wish == CacheWish::NoCache { None } else { params.store.get(&key) };
        if let Some(stored) = stored {
            params.metrics.cache(CacheLabel::Response, CacheEvent::Hit);
            call.context.trail.lock().cache = CacheNote::Hit { age_seconds: stored.at.elapsed().as_secs() };
            return Either::Left(ready(Ok(replay(&stored))));
        }
        params.metrics.cache(CacheLabel::Response, CacheEvent::Miss);
        call.context.trail.lock().cache = CacheNote::Miss;
        if wish == CacheWish::OnlyIfCached {
            return Either::Left(ready(Err(CallError::NotCached)));
        }
        let place = Place { params: Arc::clone(params), key, ttl };
        Either::Right(Answering::new(self.inner.call(call), Fill(Some(place))))
    }
}

/// Where an answer may be kept, if anywhere.
pub struct Fill(Option<Place>);

struct Place {
    params: Arc<Params>,
    key: Key,
    ttl: Duration,
}

impl Act<Result<Reply, CallError>> for Fill {
    type Output = Result<Reply, CallError>;

    fn act(self, answer: Result<Reply, CallError>) -> Self::Output {
        if let (Some(Place { params, key, ttl }), Ok(reply)) = (&self.0, &answer) {
            params.keep(*key, reply, *ttl);
        }
        answer
    }
}

impl Params {
    fn key(&self, call: &Call) -> Option<(Key, Duration)> {
        let ttl = self.ttl?;
        let may = !call.llm().stream && call.context.cache != CacheWish::NoStore;
        let key = may.then(|| self.store.key(call, &self.fingerprint))??;
        Some((key, ttl))
    }

    fn keep(&self, key: Key, reply: &Reply, ttl: Duration) {
        let Some(body) = reply.body.as_whole() else { return };
        if reply.status != StatusCode::OK || !reply.complete || body.len() > self.store.largest {
            self.metrics.cache(CacheLabel::Response, CacheEvent::RefusedByGuard);
            return;
        }
        let stored = Stored {
            body: body.clone(),
            content_type: reply.headers.get(CONTENT_TYPE).cloned(),
            at: Instant::now(),
            life: jittered(ttl, key),
        };
        self.store.answers.insert(key, Arc::new(stored));
    }
}

fn replay(stored: &Stored) -> Reply {
    let mut headers = HeaderMap::with_capacity(16);
    headers.extend(stored.content_type.clone().map(|kind| (CONTENT_TYPE, kind)));
    let body = ReplyBody::whole(stored.body.clone());
    Reply { status: StatusCode::OK, headers, body, usage: UsageSlot::default(), complete: true, decision: None }
}

/// Within a tenth of `ttl`, so that entries made together do not expire together. The key is already random.
fn jittered(ttl: Duration, key: Key) -> Duration {
    let [first, ..] = key;
    let percent = 90 + u32::from(first) % 21;
    ttl.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests;
