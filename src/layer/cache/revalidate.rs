//! One fresh answer on its way while the one that has just grown too old is given at once.
//!
//! The call that finds such an answer is the cause of the new question: it is asked with that caller's tokens and money, at
//! its worth, in one of its places in flight, and by the call's own deadline, but it is not part of the call: its trail and
//! its line in the access log are its own, and the caller does not wait for it and may leave. It is none of the caller's
//! requests per minute, which are the caller's to count. There is one at a time for an answer, streamed or not, and
//! after one that brought nothing to keep there is a pause. Who has no place left, or a process short of memory, asks
//! nobody; the old answer is given as long as it may be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tower::Service;

use super::refreshed::Line;
use super::store::Stored;
use super::{Question, Role};
use crate::domain::id::RequestId;
use crate::domain::jitter;
use crate::domain::outcome::End;
use crate::flight::allowance::InFlight;
use crate::flight::call::{Call, CallContext};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::shared_reply::Seat;
use crate::flight::trail::Trail;
use crate::layer::join::{Boarded, reply};
use crate::telemetry::labels::{Cache as CacheLabel, CacheEvent};

/// After a question that brought nothing to keep.
const PAUSE: Duration = Duration::from_secs(1);

/// Until when nobody need ask for an answer's successor.
#[derive(Default)]
pub(super) struct Turn(Mutex<Option<Instant>>);

impl Turn {
    /// True for the one whose turn it is; nobody else's until `by` then.
    fn take(&self, now: Instant, by: Instant) -> bool {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = taken.is_none_or(|until| now >= until);
        if free {
            *taken = Some(by);
        }
        free
    }

    fn pause(&self) {
        let until = Instant::now() + jitter::longer(PAUSE);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

impl Question {
    /// True if the answer is too old and may still be given at once.
    pub(super) fn may_be_stale(&self, stored: &Stored) -> bool {
        let window = self.policy.stale_while_revalidate;
        !window.is_zero() && stored.at.elapsed() < stored.fresh_for.saturating_add(window)
    }

    /// Sees to it that a fresh answer is on its way. `None`: the caller gives the old one.
    pub(super) fn revalidate<S>(&self, stored: &Arc<Stored>, call: &Call, inner: &S) -> Option<Reply>
    where
        S: Service<Call, Response = Reply, Error = CallError> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let (now, by) = (Instant::now(), call.deadline.instant());
        if self.params.gate.is_lean() || !stored.turn.take(now, by) {
            return None;
        }
        let Some(place) = place(call) else {
            stored.turn.pause();
            return None;
        };
        // Its attempt is told in nobody's trace, so the provider is shown none.
        let (id, trail) = (RequestId::fresh(), begun(call));
        let context = CallContext { id, trail, trace: None, arrived: now, ..(*call.context).clone() };
        let asking = Call { context: Arc::new(context), ..call.clone() };
        let newer = || self.stored().filter(|found| found.is_fresh() && !Arc::ptr_eq(found, stored));
        let lead = || self.lead(asking.clone(), inner.clone());
        match self.params.store.flights.board((self.flight(call), self.key), newer, lead) {
            Boarded::Leads(seat) => {
                self.params.metrics.cache(CacheLabel::Response, CacheEvent::Revalidated);
                let stored = Arc::clone(stored);
                let line = Line { log: self.params.log.clone(), cause: call.context.id.clone() };
                tokio::spawn(async move {
                    // Whether it was kept shows in the store: who asks next finds another answer there, or this one.
                    let ended = timeout_at(by, read(seat, &asking)).await.unwrap_or(Err(CallError::DeadlinePassed));
                    stored.turn.pause();
                    line.write(&asking, &ended);
                    drop::<Option<InFlight>>(place);
                });
                None
            }
            Boarded::Found(newer) => self.hit(&newer, call),
            Boarded::Joins(_) | Boarded::OtherBody => None,
        }
    }
}

/// A place among the caller's requests in flight; `None` if it has none left.
#[expect(clippy::option_option, reason = "no limit, no place left and a place are three things")]
fn place(call: &Call) -> Option<Option<InFlight>> {
    let (Some(allowance), Some(limit)) = (&call.context.allowance, call.context.caller.in_flight) else {
        return Some(None);
    };
    allowance.enter(limit).map(Some)
}

/// A story that says whose the question is, and nothing yet of what becomes of it.
fn begun(call: &Call) -> Trail {
    let trail = Trail::default();
    {
        let (cause, mut story) = (call.context.trail.lock(), trail.lock());
        (story.operation, story.stream) = (cause.operation, cause.stream);
        (story.route, story.caller, story.tenant) = (cause.route.clone(), cause.caller.clone(), cause.tenant.clone());
    }
    trail
}

/// Reads an answer to its end: what nobody reads goes on no further than a little. Gives how it ended.
async fn read(seat: Seat, call: &Call) -> Result<End, CallError> {
    let mut reply = reply(seat.answer().await?, Role::Leads, call);
    let (told, how) = oneshot::channel();
    // Nobody listens any more only if the deadline has ended this.
    reply.body.on_end(move |ended| {
        let _ = told.send(ended.end);
    });
    while let Some(Ok(_)) = reply.body.frame().await {}
    drop(reply);
    Ok(how.await.unwrap_or(End::Complete))
}
