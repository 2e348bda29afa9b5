//! `idempotency-key` on calls to a model: the same caller, key and request get the same answer, or wait for the one that
//! is being made; with another request it is a conflict.
//!
//! Answers are kept as they were told, streams event by event. Errors are not kept, wherever they came from, and neither
//! is what a client left before it was complete while nobody else waited: a retry really tries again. In memory, for a
//! day or until there is no more room, within one process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use moka::sync::Cache as Moka;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::shared_reply::{Asking, Done, Landing};
use crate::layer::join::{Boarded, Flights, Key, Role, is_the_leaders_own, reply, stream_again, whole_again};
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::labels::{Cache as CacheLabel, CacheEvent};
use crate::telemetry::metrics::Metrics;
use crate::wire::sse::Event;

const LIFE: Duration = Duration::from_secs(24 * 3600);
/// What an entry weighs beside its body.
const ENTRY_BYTES: usize = 256;
/// What an event weighs beside its bytes.
const EVENT_BYTES: usize = 96;

/// Says on an answer that another call made it.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Answers given under a key and those on their way, shared by all workers; bounded in bytes and time.
#[derive(Clone)]
pub struct Answers {
    kept: Moka<Key, Arc<Kept>>,
    flights: Flights,
    largest: usize,
}

struct Kept {
    request: Key,
    weight: usize,
    told: Told,
}

enum Told {
    Whole(Bytes, Option<HeaderValue>),
    Events(Arc<Vec<Event>>),
}

impl Answers {
    /// None yet; at most `most_bytes`, and as much again for answers on their way.
    pub fn new(most_bytes: u64) -> Self {
        let kept = Moka::builder()
            .max_capacity(most_bytes)
            .weigher(|_, kept: &Arc<Kept>| u32::try_from(kept.weight).unwrap_or(u32::MAX))
            .time_to_live(LIFE)
            .build();
        let most = usize::try_from(most_bytes).unwrap_or(usize::MAX);
        Self { kept, flights: Flights::new(most), largest: most / 10 }
    }

    /// Keeps an answer, if it may be kept.
    fn keep(&self, (key, request): (Key, Key), landing: &Landing<'_>) -> bool {
        let (shown, told, bytes) = match landing {
            Landing::Unkept => return false,
            Landing::Whole(shown, body) => {
                (shown, Told::Whole((*body).clone(), shown.headers.get(CONTENT_TYPE).cloned()), body.len())
            }
            Landing::Events(shown, events) => {
                let bytes = events.iter().map(|event| event.raw().len() + EVENT_BYTES).sum();
                (shown, Told::Events(Arc::new(events.to_vec())), bytes)
            }
        };
        let fits = shown.status == StatusCode::OK && bytes <= self.largest;
        if fits {
            self.kept.insert(key, Arc::new(Kept { request, weight: bytes + ENTRY_BYTES, told }));
        }
        fits
    }
}

impl Kept {
    fn reply(&self, call: &Call) -> Reply {
        match &self.told {
            Told::Whole(body, content_type) => whole_again(body.clone(), content_type.clone()),
            Told::Events(events) => stream_again(Arc::clone(events), call),
        }
    }
}

/// Plain values for [`IdempotencyKeyLayer`].
#[derive(Clone)]
pub struct Params {
    /// Shared by all routes, workers and configurations.
    pub answers: Answers,
    /// Counts replays.
    pub metrics: Arc<Metrics>,
}

/// Makes [`IdempotencyKey`].
#[derive(Clone)]
pub struct IdempotencyKeyLayer(pub Params);

/// Answers a key once.
#[derive(Clone)]
pub struct IdempotencyKey<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for IdempotencyKeyLayer {
    type Service = IdempotencyKey<S>;

    fn layer(&self, inner: S) -> IdempotencyKey<S> {
        IdempotencyKey { inner, params: Arc::new(self.0.clone()) }
    }
}

impl<S> Service<Call> for IdempotencyKey<S>
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<S::Future, BoxFuture<Result<Reply, CallError>>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        match key(&call) {
            None => Either::Left(self.inner.call(call)),
            Some(key) => Either::Right(Box::pin(answer(Arc::clone(&self.params), key, call, self.inner.clone()))),
        }
    }
}

async fn answer<S>(params: Arc<Params>, key: Key, call: Call, inner: S) -> Result<Reply, CallError>
where
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let request = request(&call);
    let count = |event| params.metrics.cache(CacheLabel::Idempotency, event);
    let until = call.deadline.instant();
    let mut first = true;
    loop {
        let lead = || lead(&params, (key, request), call.clone(), inner.clone());
        let (seat, role) = match params.answers.flights.board((key, request), || params.answers.kept.get(&key), lead) {
            Boarded::OtherBody => return Err(CallError::KeyReused),
            Boarded::Found(kept) if kept.request != request => return Err(CallError::KeyReused),
            Boarded::Found(kept) => {
                count(CacheEvent::Hit);
                return Ok(marked(kept.reply(&call)));
            }
            Boarded::Joins(seat) => {
                count(CacheEvent::Coalesced);
                (seat, Role::Joins)
            }
            Boarded::Leads(seat) => {
                count(CacheEvent::Miss);
                (seat, Role::Leads)
            }
        };
        match timeout_at(until, seat.answer()).await.unwrap_or(Err(CallError::DeadlinePassed)) {
            Ok(answered) if role == Role::Joins => return Ok(marked(reply(answered, role, &call))),
            Ok(answered) => return Ok(reply(answered, role, &call)),
            Err(error) if role == Role::Joins && first && is_the_leaders_own(&error) && Instant::now() < until => {
                first = false;
            }
            Err(error) => return Err(error),
        }
    }
}

fn lead<S>(params: &Arc<Params>, names: (Key, Key), call: Call, mut inner: S) -> (Asking, Done)
where
    S: Service<Call, Response = Reply, Error = CallError> + Send + 'static,
    S::Future: Send + 'static,
{
    let params = Arc::clone(params);
    let asking: Asking = Box::pin(async move { inner.call(call).await });
    let done: Done = Box::new(move |landing| {
        let kept = params.answers.keep(names, landing);
        if !kept && !matches!(landing, Landing::Unkept) {
            params.metrics.cache(CacheLabel::Idempotency, CacheEvent::RefusedByGuard);
        }
        kept
    });
    (asking, done)
}

fn marked(mut reply: Reply) -> Reply {
    reply.headers.insert(REPLAYED, HeaderValue::from_static("true"));
    reply
}

/// The caller's own key; another caller's is another, whatever it is called.
fn key(call: &Call) -> Option<Key> {
    let key = call.context.idempotency_key.as_ref()?;
    let mut hash = Sha256::new();
    part(&mut hash, call.context.caller.id.as_str().as_bytes());
    part(&mut hash, key.as_bytes());
    Some(hash.finalize().into())
}

/// Everything that makes a request another one.
fn request(call: &Call) -> Key {
    let mut hash = Sha256::new();
    part(&mut hash, call.operation.label().as_bytes());
    for (name, value) in &call.context.forwarded {
        part(&mut hash, name.as_str().as_bytes());
        part(&mut hash, value.as_bytes());
    }
    part(&mut hash, &call.body);
    hash.finalize().into()
}

fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests;
