//! From a request and its story to what is told of it to a collector; nothing of it happens where traces are off.
//!
//! What leaves is decided in [`crate::telemetry::traces`]; here the story is only put into its words.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use tokio::time::Instant;

use crate::domain::clock;
use crate::domain::id::{RequestId, RouteId};
use crate::domain::outcome::{End, FailureClass};
use crate::flight::arrival::Secured;
use crate::flight::call::Call;
use crate::flight::trail::{AttemptNote, CostNote, Flying, Story, UpstreamNames};
use crate::telemetry::labels::{AttemptOutcome, RequestOutcome};
use crate::telemetry::traces::{Answered, Begun, Part, Plan, SHADOW, Served, Told, ToldAttempt, TraceContext};

/// What the record knows of a request that is over, beside its story.
pub struct Over<'r> {
    /// Its id.
    pub id: &'r RequestId,
    /// When it came.
    pub arrived: Instant,
    /// Until its answer's last byte.
    pub duration: Duration,
    /// Of it, what was spent in this process.
    pub overhead: Duration,
    /// The status of its answer; `None` if nobody waited for one.
    pub status: Option<u16>,
    /// What became of it.
    pub outcome: RequestOutcome,
    /// How a streamed answer ended.
    pub stream_end: Option<End>,
    /// The configuration's version in its short form.
    pub config: &'r str,
}

/// The request's place in its trace.
#[cold]
pub fn begin(plan: &Arc<Plan>, head: &Parts) -> Arc<Begun> {
    let method = match head.method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        _ => "_OTHER",
    };
    let scheme = if Secured::of(head).is_some() { "https" } else { "http" };
    let context = TraceContext::begin(&head.headers, plan.share);
    let at_ns = clock::unix_ns();
    Arc::new(Begun { context, plan: Arc::clone(plan), at_ns, method, scheme, answered: Answered::default() })
}

/// What is told of the request; `None` if its trace is not recorded.
#[cold]
pub fn told(story: &Story, over: &Over<'_>) -> Option<Box<Told>> {
    let begun = story.trace.as_ref().filter(|begun| begun.context.is_taken(story.caller.is_some()))?;
    Some(Box::new(Told {
        part: Part::Whole,
        begun: Arc::clone(begun),
        duration: over.duration,
        overhead: over.overhead,
        id: over.id.clone(),
        operation: story.operation,
        route: story.route.as_ref().map(|route| route.id.clone()),
        caller: story.caller.clone(),
        tenant: story.tenant.clone(),
        status: over.status,
        outcome: over.outcome,
        error: story.error,
        stream_end: over.stream_end,
        cache: story.cache.label(),
        decision: story.decision,
        cost: if let CostNote::Known(cost) = story.cost { Some(cost) } else { None },
        config: over.config.to_owned(),
        attempts: attempts(story, over),
    }))
}

/// What is known of a shadow's copy that is over.
pub struct Copied<'c> {
    /// Who was on trial.
    pub upstream: &'c UpstreamNames,
    /// When it began.
    pub since: Instant,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// What it served, if it did.
    pub served: Option<Served>,
    /// The route whose shadow it is.
    pub route: &'c RouteId,
}

/// What is told of a call's copy; `None` if the call's trace is not recorded. Of the call itself it says nothing: the copy
/// ends at its own time, and nothing of it is in the caller's outcome.
#[cold]
pub fn copied(call: &Call, copied: Copied<'_>) -> Option<Box<Told>> {
    let context = &call.context;
    let begun = context.trace.as_ref().filter(|begun| begun.context.is_taken(true))?;
    let duration = copied.since.elapsed();
    let after = copied.since.saturating_duration_since(context.arrived);
    let attempt = ToldAttempt {
        number: SHADOW,
        upstream: copied.upstream.upstream.as_str().to_owned(),
        provider: copied.upstream.provider.clone(),
        model: copied.upstream.model.clone(),
        after,
        duration,
        outcome: copied.outcome,
        status: copied.status,
        served: copied.served,
    };
    Some(Box::new(Told {
        part: Part::Shadow,
        begun: Arc::clone(begun),
        duration: after + duration,
        overhead: Duration::ZERO,
        id: context.id.clone(),
        operation: Some(call.operation),
        route: Some(copied.route.clone()),
        caller: Some(context.caller.id.clone()),
        tenant: Some(context.caller.tenant.clone()),
        status: None,
        outcome: RequestOutcome::Ok,
        error: None,
        stream_end: None,
        cache: "bypass",
        decision: None,
        cost: None,
        config: String::new(),
        attempts: vec![attempt],
    }))
}

/// In the order in which they began; they are noted in the order in which they ended.
fn attempts(story: &Story, over: &Over<'_>) -> Vec<ToldAttempt> {
    let serves = |note: &AttemptNote| {
        let by = story.served.as_ref().is_some_and(|served| Arc::ptr_eq(served, &note.upstream));
        by && note.outcome == AttemptOutcome::Ok
    };
    let serving = story.attempts.iter().rposition(serves);
    let ended = story.attempts.iter().enumerate().map(|(place, note)| {
        let told = attempt(&note.upstream, (note.since, note.number), over);
        let status = note.status.or((note.outcome == AttemptOutcome::Ok).then_some(200));
        let told = ToldAttempt { duration: note.duration, outcome: note.outcome, status, ..told };
        if serving == Some(place) { served(told, story, over) } else { told }
    });
    let under_way = |flying: &Flying| {
        let told = attempt(&flying.upstream, (flying.since, flying.number), over);
        ToldAttempt { duration: over.duration.saturating_sub(told.after), ..told }
    };
    let mut all: Vec<_> = ended.chain(story.flying.iter().chain(&story.beside).map(under_way)).collect();
    all.sort_by_key(|attempt| attempt.number);
    all
}

fn attempt(names: &UpstreamNames, (since, number): (Instant, u32), over: &Over<'_>) -> ToldAttempt {
    ToldAttempt {
        number,
        upstream: names.upstream.as_str().to_owned(),
        provider: names.provider.clone(),
        model: names.model.clone(),
        after: since.saturating_duration_since(over.arrived),
        duration: Duration::ZERO,
        outcome: AttemptOutcome::Abandoned,
        status: None,
        served: None,
    }
}

/// The attempt whose answer the caller got: a stream's lasts as long as the answer, and ends as it ends.
fn served(told: ToldAttempt, story: &Story, over: &Over<'_>) -> ToldAttempt {
    let Some(end) = over.stream_end else {
        return ToldAttempt { served: Some(Served { usage: story.usage, first_content: None }), ..told };
    };
    let outcome = match end {
        End::Complete => AttemptOutcome::Ok,
        End::UpstreamFailed(class) => AttemptOutcome::Failed(class),
        End::DeadlinePassed => AttemptOutcome::Failed(FailureClass::DeadlinePassed),
        End::ClientGone | End::FellBehind | End::ShuttingDown => AttemptOutcome::Abandoned,
    };
    let served = Some(Served { usage: story.usage, first_content: Some(told.duration) });
    ToldAttempt { duration: over.duration.saturating_sub(told.after), outcome, served, ..told }
}
