//! Where whole answers are kept: in memory, by size and age, each under a keyed hash.
//!
//! moka is used as a store only: its own coalescing gives up with a panic when leaders are dropped too often.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue};
use moka::Expiry;
use moka::sync::Cache as Moka;
use sha2::Sha256;
use tokio::time::Instant;

use super::revalidate::Turn;
use crate::domain::id::TenantId;
use crate::domain::operation::Operation;
use crate::flight::call::Call;
use crate::flight::reply::Reply;
use crate::layer::join::{Flights, Key, stream_again, whole_again};
use crate::telemetry::labels::{Cache as CacheLabel, CacheEvent};
use crate::telemetry::metrics::Metrics;
use crate::wire::object::Object;
use crate::wire::replay::{Form, replay};
use crate::wire::sse::Event;

/// What an entry weighs beside its body.
const ENTRY_BYTES: u32 = 256;

/// All cached answers and those on their way, shared by every route and worker; bounded in bytes.
#[derive(Clone)]
pub struct Store {
    pub(super) answers: Moka<Key, Arc<Stored>>,
    pub(super) flights: Flights,
    /// Keys are keyed hashes, so that whoever sees one learns nothing about a prompt.
    pepper: Arc<[u8; 32]>,
    pub(super) largest: usize,
}

/// One answer.
pub(super) struct Stored {
    pub(super) body: Bytes,
    pub(super) content_type: Option<HeaderValue>,
    /// It was cut by its token limit.
    pub(super) cut: bool,
    pub(super) at: Instant,
    pub(super) fresh_for: Duration,
    /// With the time in which it may stand in.
    pub(super) life: Duration,
    /// Its events, while somebody is being told them.
    pub(super) events: Mutex<Weak<Vec<Event>>>,
    /// Whose turn it is to ask for its successor.
    pub(super) turn: Turn,
}

pub(super) struct Life;

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

impl Stored {
    pub(super) fn is_fresh(&self) -> bool {
        self.at.elapsed() < self.fresh_for
    }

    /// Seconds since it was made, and since it was fresh.
    pub(super) fn ages(&self) -> (u64, u64) {
        let age = self.at.elapsed();
        (age.as_secs(), age.saturating_sub(self.fresh_for).as_secs())
    }

    /// The answer in the way this call asks for it, whichever way it came; `None` if it cannot be told so.
    pub(super) fn reply(&self, call: &Call) -> Option<Reply> {
        if call.llm().stream {
            let events = self.events(Form::of(call.operation)?)?;
            return Some(stream_again(events, call));
        }
        Some(whole_again(self.body.clone(), self.content_type.clone()))
    }

    /// Made once for all who are being told at the same time.
    fn events(&self, form: Form) -> Option<Arc<Vec<Event>>> {
        let known = |weak: &Mutex<Weak<Vec<Event>>>| weak.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(events) = known(&self.events) {
            return Some(events);
        }
        let events = Arc::new(replay(form, &self.body)?);
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&events);
        Some(events)
    }
}

impl Store {
    /// Forgets every answer: memory is wanted for something else.
    pub fn clear(&self) {
        self.answers.invalidate_all();
        self.answers.run_pending_tasks();
    }

    /// An empty store of at most `most_bytes`, and as much again for answers on their way.
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
        let flights = Flights::new(usize::try_from(most_bytes).unwrap_or(usize::MAX));
        Self { answers, flights, pepper: Arc::new(pepper), largest }
    }

    /// An answer that is fresh, or may stand in.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.answers.get(key).filter(|stored| stored.at.elapsed() < stored.life)
    }

    /// What equal questions have in common: tenant, route, operation, the headers that reach a provider, and the body's
    /// members in any order, without those that only say how the answer is to be told. Every part goes in with its
    /// length, so that no two calls run together. The tenant is part of every call: no key without one can be made.
    ///
    /// `None` for what is no question: a call that adds to a conversation, or one that is answered later.
    pub(super) fn key(&self, call: &Call, fingerprint: &[u8; 32]) -> Option<Key> {
        let context = &call.context;
        let wording = Wording {
            tenant: &context.caller.tenant,
            fingerprint,
            operation: call.operation,
            forwarded: &context.forwarded,
            body: &call.body,
        };
        wording.key(&self.pepper[..])
    }

    /// How old the answer to such a call is, and whether it is fresh; for those who only want to know.
    pub fn look(&self, wording: &Wording<'_>) -> Option<(Duration, bool)> {
        let stored = self.get(&wording.key(&self.pepper[..])?)?;
        Some((stored.at.elapsed(), stored.is_fresh()))
    }
}

/// What a call's key is made of.
pub struct Wording<'a> {
    /// Whose call it is.
    pub tenant: &'a TenantId,
    /// The route's.
    pub fingerprint: &'a [u8; 32],
    /// What is asked.
    pub operation: Operation,
    /// The caller's headers that reach a provider.
    pub forwarded: &'a HeaderMap,
    /// The question.
    pub body: &'a [u8],
}

impl Wording<'_> {
    /// As [`Store::key`], under this pepper.
    pub fn key(&self, pepper: &[u8]) -> Option<Key> {
        let body = Object::read(self.body).ok()?;
        if self.operation == Operation::Responses && ["conversation", "background"].iter().any(|key| is_set(&body, key))
        {
            return None;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(pepper).ok()?;
        let mut part = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        part(self.tenant.as_str().as_bytes());
        part(self.fingerprint);
        part(self.operation.label().as_bytes());
        part(&self.forwarded.len().to_be_bytes());
        for (name, value) in self.forwarded {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        let telling: &[&str] = match Form::of(self.operation) {
            Some(Form::Messages) => &["stream"],
            Some(Form::Chat | Form::Completion | Form::Responses) => &["stream", "stream_options"],
            None => &[],
        };
        let mut members: Vec<_> = body.iter().filter(|(key, _)| !telling.contains(key)).collect();
        members.sort_by_key(|(key, _)| *key);
        for (key, value) in members {
            part(key.as_bytes());
            part(value.get().as_bytes());
        }
        Some(mac.finalize().into_bytes().into())
    }
}

fn is_set(body: &Object<'_>, key: &str) -> bool {
    body.get(key).is_some_and(|value| value.get() != "false")
}
