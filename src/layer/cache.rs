//! Answers reused, on routes that ask for it: by tenant and by the question, whether it was streamed or not; and equal
//! questions asked once while they are in flight.
//!
//! What is kept is the whole answer: a stream is put together when it has ended well, and told again as a stream to who
//! asks for one. Never kept are errors, answers that did not end by themselves (those cut by length only where the route
//! says so), streams that cannot be put together without loss, and anything larger than a tenth of the store. Calls
//! with and without a stream share answers, but not flights: they are different requests to the provider.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::Either;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::time::{Instant, timeout_at};
use tower::{Layer, Service};

use self::revalidate::Turn;
use self::store::Stored;
use crate::config::table::{CachePolicy, CutAnswers};
use crate::domain::outcome::{Blame, FailureClass};
use crate::flight::call::{CacheWish, Call, Facts};
use crate::flight::error::CallError;
use crate::flight::gate::Gate;
use crate::flight::reply::Reply;
use crate::flight::shared_reply::{Asking, Done, Landing, Seat, Shown};
use crate::flight::trail::CacheNote;
use crate::layer::join::{Boarded, Key, Role, is_the_leaders_own, reply};
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::access::AccessLog;
use crate::telemetry::labels::{Cache as CacheLabel, CacheEvent};
use crate::telemetry::metrics::Metrics;
use crate::wire::replay::{Ending, Form, assemble, ending};

mod refreshed;
mod revalidate;
mod store;

pub use self::store::{Store, Wording};

/// Plain values for [`CacheLayer`].
#[derive(Clone)]
pub struct Params {
    /// Where answers are kept.
    pub store: Store,
    /// What is kept and how long; `None` where the route has no cache.
    pub policy: Option<CachePolicy>,
    /// Changes with anything that shapes an answer.
    pub fingerprint: [u8; 32],
    /// Counts events.
    pub metrics: Arc<Metrics>,
    /// Knows when there is no memory to spare for more answers.
    pub gate: Arc<Gate>,
    /// Where the lines of calls go that no client made.
    pub log: AccessLog,
}

/// Makes [`Cache`].
#[derive(Clone)]
pub struct CacheLayer(pub Params);

/// Answers from the store, from what is in flight, or fills both.
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
    S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Either<S::Future, BoxFuture<Result<Reply, CallError>>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let wish = call.context.cache;
        let question = self.params.policy.filter(|_| wish != CacheWish::NoStore);
        let question = question.and_then(|policy| Question::of(&call, &self.params, policy));
        match question {
            Some(question) => Either::Right(Box::pin(question.answer(call, self.inner.clone()))),
            None if wish == CacheWish::OnlyIfCached => {
                Either::Right(Box::pin(std::future::ready(Err(CallError::NotCached))))
            }
            None => Either::Left(self.inner.call(call)),
        }
    }
}

/// A call that the cache may answer.
#[derive(Clone)]
struct Question {
    key: Key,
    policy: CachePolicy,
    form: Option<Form>,
    params: Arc<Params>,
}

/// What a question finds in the air.
enum Aboard {
    /// An answer to wait for.
    Waits(Seat, Role),
    /// One that has landed just now.
    Answered(Box<Reply>),
}

impl Question {
    fn of(call: &Call, params: &Arc<Params>, policy: CachePolicy) -> Option<Self> {
        let key = params.store.key(call, &params.fingerprint)?;
        Some(Self { key, policy, form: Form::of(call.operation), params: Arc::clone(params) })
    }

    async fn answer<S>(self, mut call: Call, inner: S) -> Result<Reply, CallError>
    where
        S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        if let Facts::Llm(facts) = &mut call.facts {
            facts.keeps_usage = true;
        }
        let wish = call.context.cache;
        let stored = if wish == CacheWish::NoCache { None } else { self.stored() };
        if let Some(reply) = stored.as_ref().and_then(|stored| self.hit(stored, &call)) {
            return Ok(reply);
        }
        if let Some(reply) = self.stale_at_once(stored.as_ref(), &call, &inner) {
            return Ok(reply);
        }
        if wish == CacheWish::OnlyIfCached {
            self.note(&call, CacheEvent::Miss, CacheNote::Miss { stored: false });
            return Err(CallError::NotCached);
        }
        let mut first = true;
        loop {
            let (seat, role) = match self.board(&call, &inner, stored.as_ref()) {
                Aboard::Waits(seat, role) => (seat, role),
                Aboard::Answered(reply) => return Ok(*reply),
            };
            let until = call.deadline.instant();
            match timeout_at(until, seat.answer()).await.unwrap_or(Err(CallError::DeadlinePassed)) {
                Ok(answered) => {
                    if answered.shown.kept && role == Role::Leads {
                        mark_stored(&call);
                    }
                    return Ok(reply(answered, role, &call));
                }
                // Those who shared a failure share one more try: the first of them leads it.
                Err(error) if role == Role::Joins && first && is_the_leaders_own(&error) && Instant::now() < until => {
                    first = false;
                }
                Err(error) => {
                    let stands_in = stored.filter(|_| is_the_providers(&error));
                    return stands_in.and_then(|stored| self.stale(&stored, &call)).ok_or(error);
                }
            }
        }
    }

    /// An answer that has just grown too old, while a fresh one is asked for; on routes that want that.
    fn stale_at_once<S>(&self, stored: Option<&Arc<Stored>>, call: &Call, inner: &S) -> Option<Reply>
    where
        S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let stored = stored.filter(|stored| call.context.cache == CacheWish::Default && self.may_be_stale(stored))?;
        let reply = stored.reply(call)?;
        if let Some(fresh) = self.revalidate(stored, call, inner) {
            return Some(fresh);
        }
        let (age_seconds, past_seconds) = stored.ages();
        self.note(call, CacheEvent::Stale, CacheNote::Stale { age_seconds, past_seconds });
        Some(reply)
    }

    /// A seat in the flight of this question, or what has landed since `seen` was found.
    fn board<S>(&self, call: &Call, inner: &S, seen: Option<&Arc<Stored>>) -> Aboard
    where
        S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let flights = &self.params.store.flights;
        let lead = || self.lead(call.clone(), inner.clone());
        let asks = |seat, note| {
            self.note(call, CacheEvent::Miss, note);
            Aboard::Waits(seat, Role::Leads)
        };
        if call.context.cache == CacheWish::NoCache {
            // What is in flight was asked before the caller wanted it fresh.
            return asks(flights.alone(lead()), CacheNote::Refresh { stored: false });
        }
        let is_new = |stored: &Arc<Stored>| stored.is_fresh() && !seen.is_some_and(|seen| Arc::ptr_eq(seen, stored));
        match flights.board((self.flight(call), self.key), || self.stored().filter(is_new), lead) {
            Boarded::Joins(seat) => {
                self.note(call, CacheEvent::Coalesced, CacheNote::Coalesced);
                Aboard::Waits(seat, Role::Joins)
            }
            Boarded::Leads(seat) => asks(seat, CacheNote::Miss { stored: false }),
            Boarded::Found(stored) => match self.hit(&stored, call) {
                Some(reply) => Aboard::Answered(Box::new(reply)),
                None => asks(flights.alone(lead()), CacheNote::Miss { stored: false }),
            },
            Boarded::OtherBody => asks(flights.alone(lead()), CacheNote::Miss { stored: false }),
        }
    }

    /// Streams and whole answers are different requests, so they fly apart.
    fn flight(&self, call: &Call) -> Key {
        let mut key = self.key;
        if let (Some(last), true) = (key.last_mut(), call.llm().stream) {
            *last ^= 1;
        }
        key
    }

    fn lead<S>(&self, call: Call, mut inner: S) -> (Asking, Done)
    where
        S: Service<Call, Response = Reply, Error = CallError> + Send + 'static,
        S::Future: Send + 'static,
    {
        let question = self.clone();
        let asking: Asking = Box::pin(async move { inner.call(call).await });
        (asking, Box::new(move |landing| question.keep(landing)))
    }

    fn stored(&self) -> Option<Arc<Stored>> {
        let may = |stored: &Arc<Stored>| !stored.cut || self.policy.cut_by_length == CutAnswers::Store;
        self.params.store.get(&self.key).filter(may)
    }

    fn hit(&self, stored: &Stored, call: &Call) -> Option<Reply> {
        let reply = stored.reply(call).filter(|_| stored.is_fresh())?;
        let age = stored.at.elapsed();
        let left_seconds = stored.fresh_for.saturating_sub(age).as_secs();
        self.note(call, CacheEvent::Hit, CacheNote::Hit { age_seconds: age.as_secs(), left_seconds });
        Some(reply)
    }

    fn stale(&self, stored: &Stored, call: &Call) -> Option<Reply> {
        if stored.at.elapsed() >= stored.fresh_for.saturating_add(self.policy.stale_if_error) {
            return None;
        }
        let reply = stored.reply(call)?;
        let (age_seconds, past_seconds) = stored.ages();
        self.note(call, CacheEvent::Stale, CacheNote::StaleError { age_seconds, past_seconds });
        Some(reply)
    }

    fn note(&self, call: &Call, event: CacheEvent, note: CacheNote) {
        self.params.metrics.cache(CacheLabel::Response, event);
        call.context.trail.lock().cache = note;
    }

    /// Keeps an answer, if it may be kept.
    fn keep(&self, landing: &Landing<'_>) -> bool {
        let stored = match landing {
            Landing::Unkept => return false,
            Landing::Whole(shown, body) => self.storable(shown, body, shown.complete).map(|cut| {
                let content_type = shown.headers.get(CONTENT_TYPE).cloned();
                ((*body).clone(), content_type, cut)
            }),
            Landing::Events(shown, events) => {
                let body = self.form.and_then(|form| assemble(form, events));
                let kind = http::HeaderValue::from_static("application/json");
                body.and_then(|body| self.storable(shown, &body, false).map(|cut| (body, Some(kind), cut)))
            }
        };
        let stored = stored.filter(|_| !self.params.gate.is_lean());
        let Some((body, content_type, cut)) = stored else {
            self.params.metrics.cache(CacheLabel::Response, CacheEvent::RefusedByGuard);
            return false;
        };
        let fresh_for = jittered(self.policy.ttl, self.key);
        let life = fresh_for.saturating_add(self.policy.stale_if_error.max(self.policy.stale_while_revalidate));
        let stored = Stored {
            body,
            content_type,
            cut,
            at: Instant::now(),
            fresh_for,
            life,
            events: Mutex::default(),
            turn: Turn::default(),
        };
        self.params.store.answers.insert(self.key, Arc::new(stored));
        true
    }

    /// Whether an answer may be kept, and if so, whether it was cut.
    fn storable(&self, shown: &Shown, body: &[u8], complete: bool) -> Option<bool> {
        if shown.status != StatusCode::OK || body.len() > self.params.store.largest {
            return None;
        }
        match self.form.map(|form| ending(form, body)) {
            Some(Ending::Complete) => Some(false),
            Some(Ending::ByLength) => (self.policy.cut_by_length == CutAnswers::Store).then_some(true),
            Some(Ending::Otherwise) => None,
            None => complete.then_some(false),
        }
    }
}

fn mark_stored(call: &Call) {
    let mut story = call.context.trail.lock();
    if let CacheNote::Miss { stored } | CacheNote::Refresh { stored } = &mut story.cache {
        *stored = true;
    }
}

/// True if the candidates failed, and neither the caller's request nor its time. What we refuse in their stead because
/// they failed before, or have no room, counts as their failure.
fn is_the_providers(error: &CallError) -> bool {
    let CallError::Exhausted { last, .. } = error else { return false };
    let refused = matches!(last.class, FailureClass::Open | FailureClass::Full | FailureClass::Paced);
    refused || last.class.blame() == Blame::Provider
}

/// Within a tenth of `ttl`, so that entries made together do not expire together. The key is already random.
fn jittered(ttl: Duration, key: Key) -> Duration {
    let [first, ..] = key;
    let percent = 90 + u32::from(first) % 21;
    ttl.saturating_mul(percent) / 100
}

#[cfg(test)]
mod tests;
