//! Traces: what is sent to a collector about requests, and the queue where it waits. The only module that knows the
//! OpenTelemetry protocol.
//!
//! Spans are not opened and closed while a request runs: the record at the end of its body knows the whole story, and
//! [`encode`] makes one span of the request and one of each attempt from it (a shadow's copy ends at its own time and is told
//! apart), on the thread that sends them. A core that
//! serves requests hands over names and numbers, and never waits: what finds the queue full is dropped and counted. Of the
//! protocol's crates only the generated messages are used. The exporter and the SDK around them would bring a second
//! HTTP client, a second queue and settings from the environment.
//!
//! It deliberately sends nothing itself; that is `gateway/collector.rs`. No prompt, key, header or address of a person is in
//! what is told: its fields are names of the configuration, numbers, words of closed sets, the request's id and the name of
//! the model that an answer gives.

mod context;
mod encode;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::catalog;
use super::cells::Counter;
use super::families::Families;
use super::handles::set;
use super::labels::{AttemptOutcome, RequestOutcome, TraceDrop};
use crate::domain::decision::{Action, DecisionSource};
use crate::domain::id::{CallerId, ProviderId, RequestId, RouteId, TenantId};
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::outcome::End;
use crate::domain::usage::Usage;

pub use context::{SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId};
pub use encode::{CONTENT_TYPE, Instance, encode, rejected};

/// Requests told in one message; with as many attempts as a route may make it stays below a megabyte or two.
pub const BATCH: usize = 256;

/// What a configuration says of traces, as far as requests need it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How many of the traces that begin here are taken, in millionths.
    pub share: u32,
    /// Most requests that wait to be told.
    pub queue: usize,
    /// Providers that may learn of traces.
    pub forward_to: BTreeSet<ProviderId>,
    /// Host and port of each provider.
    pub servers: BTreeMap<ProviderId, (String, u16)>,
}

/// A request's place in its trace, made when it came.
#[derive(Debug)]
pub struct Begun {
    /// Which trace.
    pub context: TraceContext,
    /// The configuration it runs under.
    pub plan: Arc<Plan>,
    /// When it came, nanoseconds since 1970: read once, so that all its spans are told on one scale.
    pub at_ns: u64,
    /// `GET`, `POST`, `HEAD`, or `_OTHER` as the convention wants it.
    pub method: &'static str,
    /// `http` or `https`, as the client spoke to us.
    pub scheme: &'static str,
    /// What attempts' answers said.
    pub answered: Answered,
}

/// Which models the answers of a request's attempts said that they are from.
#[derive(Default, Debug)]
pub struct Answered(Mutex<Vec<(u32, String)>>);

impl Answered {
    /// What the answer of the attempt of this number says.
    pub fn hear(&self, attempt: u32, model: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((attempt, model));
    }

    /// What it said, if it did.
    pub fn of(&self, attempt: u32) -> Option<String> {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().find(|(number, _)| *number == attempt).map(|(_, model)| model.clone())
    }
}

/// What of a request is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// All of it, but for its copy.
    Whole,
    /// The copy of it that a candidate on trial got: one attempt, of which the caller learned nothing.
    Shadow,
}

/// The attempt that a copy is. The others are counted from 1.
pub const SHADOW: u32 = 0;

/// A request that is over, as it will be told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What of it.
    pub part: Part,
    /// Its trace.
    pub begun: Arc<Begun>,
    /// From its first byte to its answer's end; of a copy, to that copy's end.
    pub duration: Duration,
    /// Of it, what was spent in this process.
    pub overhead: Duration,
    /// Its id.
    pub id: RequestId,
    /// What was asked.
    pub operation: Option<Operation>,
    /// Where.
    pub route: Option<RouteId>,
    /// By whom.
    pub caller: Option<CallerId>,
    /// Whose data it is.
    pub tenant: Option<TenantId>,
    /// The status of its answer; `None` if nobody waited for one.
    pub status: Option<u16>,
    /// What became of it.
    pub outcome: RequestOutcome,
    /// The error the caller got.
    pub error: Option<&'static str>,
    /// How a streamed answer ended.
    pub stream_end: Option<End>,
    /// What the cache did.
    pub cache: &'static str,
    /// What was decided, and by what.
    pub decision: Option<(Action, DecisionSource)>,
    /// What it cost, if that is known.
    pub cost: Option<Cost>,
    /// The configuration's version in its short form.
    pub config: String,
    /// Every attempt, in the order in which they began.
    pub attempts: Vec<ToldAttempt>,
}

/// One of its attempts.
#[derive(Clone, Debug)]
pub struct ToldAttempt {
    /// Counted from 1.
    pub number: u32,
    /// `provider/model`, or the provider alone.
    pub upstream: String,
    /// Who was asked.
    pub provider: ProviderId,
    /// For which model, as the provider calls it; empty on the risk side.
    pub model: String,
    /// From the request's first byte to the attempt's beginning.
    pub after: Duration,
    /// Until its answer ended, it failed, or nobody waited for it any more.
    pub duration: Duration,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// Present for the one whose answer the caller got.
    pub served: Option<Served>,
}

/// What an attempt served.
#[derive(Clone, Debug)]
pub struct Served {
    /// Tokens, as the provider counted them.
    pub usage: Usage,
    /// Until the first content; `None` for an answer in one piece.
    pub first_content: Option<Duration>,
}

/// Requests that wait to be told.
pub struct Spans {
    /// Locked for a push or for taking a batch.
    waiting: Mutex<VecDeque<Box<Told>>>,
    crowd: Notify,
    counts: TraceMetrics,
}

impl Spans {
    /// An empty queue that counts here.
    pub fn new(counts: TraceMetrics) -> Self {
        Self { waiting: Mutex::default(), crowd: Notify::new(), counts }
    }

    /// Puts one in, unless there is no room.
    pub fn offer(&self, told: Box<Told>) {
        let mut waiting = self.waiting();
        if waiting.len() >= told.begun.plan.queue {
            drop(waiting);
            return self.counts.dropped(TraceDrop::Full, 1);
        }
        waiting.push_back(told);
        // Once for each batch: waking a thread costs more than all the rest.
        if waiting.len() == BATCH {
            self.crowd.notify_one();
        }
    }

    /// Takes the oldest out, at most a batch.
    pub fn take(&self) -> Vec<Told> {
        let mut waiting = self.waiting();
        let many = waiting.len().min(BATCH);
        waiting.drain(..many).map(|told| *told).collect()
    }

    /// Drops whatever waits.
    pub fn clear(&self, why: TraceDrop) {
        let gone = std::mem::take(&mut *self.waiting());
        self.counts.dropped(why, gone.len());
    }

    /// Waits until there is a batch.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn crowded(&self) {
        if self.waiting().len() < BATCH {
            self.crowd.notified().await;
        }
    }

    /// What is counted.
    pub fn counts(&self) -> &TraceMetrics {
        &self.counts
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Box<Told>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of requests whose spans were to be sent.
#[derive(Clone)]
pub struct TraceMetrics {
    exported: Counter,
    dropped: Vec<Counter>,
}

impl TraceMetrics {
    pub(super) fn new(f: &Families) -> Self {
        Self {
            exported: f.counter(&catalog::TRACES_EXPORTED, &[]),
            dropped: set(f, &catalog::TRACES_DROPPED, &[], &TraceDrop::labels()),
        }
    }

    /// Counts those that a collector has.
    pub fn exported(&self, many: usize) {
        self.exported.add(many as u64);
    }

    /// Counts those that no collector has.
    pub fn dropped(&self, why: TraceDrop, many: usize) {
        self.dropped.get(why as usize).inspect(|counter| counter.add(many as u64));
    }
}

#[cfg(test)]
mod tests;
