//! Calls in flight that others may join, and the replies made of what they share: for [`cache`](super::cache) and
//! [`idempotency_key`](super::idempotency_key), which say who is equal to whom.
//!
//! The call that leads is read by a task of its own, on the core of the client that came first, so that this client may
//! leave. The task ends with the answer, or as soon as nobody waits for it any more; it has no deadline of its own
//! because every asker has one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::domain::operation::Dialect;
use crate::domain::outcome::{Blame, End};
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::reply::{EventStream, Reply, ReplyBody, UsageSlot};
use crate::flight::shared_reply::{Answered, Asking, Content, Done, Room, Seat, Shared, share};
use crate::wire::openai::without_usage;
use crate::wire::replay::Form;
use crate::wire::sse::Event;

/// Bytes of a stream that are remembered for who comes late. Beyond that nobody can join it and it is not stored.
const STREAM_BYTES: usize = 8 << 20;

const ACCEL: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What a call is known by.
pub type Key = [u8; 32];

/// Calls in flight. Cloning shares them.
#[derive(Clone)]
pub struct Flights(Arc<Inner>);

struct Inner {
    /// Held for a look-up and an insertion, never across an await. Bounded by the calls that are in flight.
    flying: Mutex<HashMap<Key, Flying>>,
    numbers: AtomicU64,
    room: Arc<Room>,
}

struct Flying {
    number: u64,
    body: Key,
    shared: Shared,
}

/// What a call finds.
pub enum Boarded<T> {
    /// Nobody: it asks.
    Leads(Seat),
    /// Another like it, in flight.
    Joins(Seat),
    /// What the look-up found.
    Found(T),
    /// Another of that key, with another body.
    OtherBody,
}

/// Who is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The one whose call it is: its tokens, its headers.
    Leads,
    /// One of the others.
    Joins,
}

impl Flights {
    /// None in flight; together they remember at most `most_bytes`.
    pub fn new(most_bytes: usize) -> Self {
        let room = Room::new(most_bytes, STREAM_BYTES.min(most_bytes));
        Self(Arc::new(Inner { flying: Mutex::default(), numbers: AtomicU64::new(0), room }))
    }

    /// Joins the call of this key, or leads it. `look` is asked while nobody else can board, so that what lands meanwhile
    /// is found in the air or on the ground.
    pub fn board<T>(
        &self,
        (key, body): (Key, Key),
        look: impl FnOnce() -> Option<T>,
        lead: impl FnOnce() -> (Asking, Done),
    ) -> Boarded<T> {
        let (seat, pump) = {
            let mut flying = self.flying();
            if let Some(known) = flying.get(&key) {
                if known.body != body {
                    return Boarded::OtherBody;
                }
                if let Some(seat) = known.shared.join() {
                    return Boarded::Joins(seat);
                }
            }
            if let Some(found) = look() {
                return Boarded::Found(found);
            }
            let (asking, done) = lead();
            let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
            let flights = self.clone();
            let done: Done = Box::new(move |landing| {
                let kept = done(landing);
                flights.remove(&key, number);
                kept
            });
            let (shared, seat, pump) = share(asking, Arc::clone(&self.0.room), done);
            flying.insert(key, Flying { number, body, shared });
            (seat, pump)
        };
        tokio::spawn(pump.run());
        Boarded::Leads(seat)
    }

    /// A call that nobody may join.
    pub fn alone(&self, (asking, done): (Asking, Done)) -> Seat {
        let (_, seat, pump) = share(asking, Arc::clone(&self.0.room), done);
        tokio::spawn(pump.run());
        seat
    }

    /// Bytes remembered now.
    pub fn bytes(&self) -> usize {
        self.0.room.used()
    }

    fn remove(&self, key: &Key, number: u64) {
        let mut flying = self.flying();
        if flying.get(key).is_some_and(|known| known.number == number) {
            flying.remove(key);
        }
    }

    fn flying(&self) -> MutexGuard<'_, HashMap<Key, Flying>> {
        self.0.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// True if a call that joined another had better be made again: what ended the other may not end this one. A request
/// that the provider refused is refused for everybody.
pub fn is_the_leaders_own(error: &CallError) -> bool {
    !matches!(error, CallError::Exhausted { last, .. } if last.class.blame() == Blame::Caller)
        && !matches!(error, CallError::BadRequest { .. } | CallError::NotOffered { .. } | CallError::NotCached)
}

/// The reply of one of those who share an answer.
pub fn reply(answered: Answered, role: Role, call: &Call) -> Reply {
    let Answered { shown, content } = answered;
    let (headers, usage) = match role {
        Role::Leads => (shown.headers.clone(), shown.usage.clone()),
        Role::Joins => (own_headers(&shown.headers), UsageSlot::default()),
    };
    let body = match content {
        Content::Whole(bytes) => ReplyBody::whole(bytes),
        Content::Events(seat) => {
            let behind = seat.falls_behind();
            let mut body = ReplyBody::events(as_asked(Box::pin(seat), call), call.operation.dialect());
            body.end_when(behind, End::FellBehind);
            body
        }
    };
    Reply { status: shown.status, headers, body, usage, complete: shown.complete, decision: None }
}

/// What of a provider's headers is about the answer and not about the one call that was made.
fn own_headers(theirs: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(24);
    for name in [CONTENT_TYPE, ACCEL] {
        headers.extend(theirs.get(&name).map(|value| (name, value.clone())));
    }
    headers
}

/// A stream with the token counts in it, as this caller asked for them.
fn as_asked(events: EventStream, call: &Call) -> EventStream {
    let chat = matches!(Form::of(call.operation), Some(Form::Chat | Form::Completion));
    if !chat || call.llm().include_usage || !call.llm().keeps_usage {
        return events;
    }
    Box::pin(events.filter_map(|event| {
        std::future::ready(match event {
            Ok(event) => without_usage(event).map(Ok),
            Err(class) => Some(Err(class)),
        })
    }))
}

/// A whole answer that was kept.
pub fn whole_again(body: Bytes, content_type: Option<HeaderValue>) -> Reply {
    let mut headers = HeaderMap::with_capacity(24);
    headers.extend(content_type.map(|kind| (CONTENT_TYPE, kind)));
    again(ReplyBody::whole(body), headers)
}

/// A stream that was kept.
pub fn stream_again(events: Arc<Vec<Event>>, call: &Call) -> Reply {
    let mut headers = HeaderMap::with_capacity(24);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(ACCEL, HeaderValue::from_static("no"));
    let one = |(events, at): (Arc<Vec<Event>>, usize)| {
        let event = events.get(at).cloned();
        std::future::ready(event.map(|event| (Ok(event), (events, at + 1))))
    };
    let events: EventStream = Box::pin(stream::unfold((events, 0), one));
    let dialect: Dialect = call.operation.dialect();
    again(ReplyBody::events(as_asked(events, call), dialect), headers)
}

fn again(body: ReplyBody, headers: HeaderMap) -> Reply {
    Reply { status: StatusCode::OK, headers, body, usage: UsageSlot::default(), complete: true, decision: None }
}

#[cfg(test)]
mod tests;
