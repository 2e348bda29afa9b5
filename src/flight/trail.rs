//! What happened to one call so far: appended to by every layer, read once at the end by the record.
//!
//! The lock is a `std` mutex: it is never held across an await, every critical section is a few assignments, and one
//! call is worked on by one thread at a time, so it is practically never contended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::domain::decision::{Action, Decision, DecisionSource};
use crate::domain::id::{CallerId, DecisionId, ProviderId, RouteId, TenantId, UpstreamId};
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::usage::Usage;
use crate::flight::allowance::Room;
use crate::flight::bucket::TokenRoom;
use crate::flight::merchants::MerchantClaim;
use crate::flight::quota::Claim;
use crate::telemetry::handles::RouteMetrics;
use crate::telemetry::labels::AttemptOutcome;
use crate::telemetry::traces::Begun;

/// A shared, append-only story of one call. Cloning shares it.
#[derive(Clone, Default)]
pub struct Trail(Arc<Mutex<Story>>);

/// A route's name in every form a request needs it, and its metrics, made once per configuration.
pub struct RouteNames {
    /// The public name.
    pub id: RouteId,
    /// The name as a header value.
    pub header: HeaderValue,
    /// Its series.
    pub metrics: Arc<RouteMetrics>,
}

/// Names of an upstream in every form a request needs them, made once per configuration.
#[derive(Debug)]
pub struct UpstreamNames {
    /// `provider/model`, or the provider alone.
    pub upstream: UpstreamId,
    /// The provider.
    pub provider: ProviderId,
    /// The provider's own name for the model; empty on the risk side.
    pub model: String,
    /// `provider` as a header value.
    pub provider_header: HeaderValue,
    /// `model` as a header value.
    pub model_header: HeaderValue,
}

/// One attempt, as it ended.
#[derive(Clone, Debug)]
pub struct AttemptNote {
    /// Where it went.
    pub upstream: Arc<UpstreamNames>,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// When it began.
    pub since: Instant,
    /// Until its reply, or until it failed.
    pub duration: Duration,
    /// It answered, and all its answer says is that a filter stopped it.
    pub filtered: bool,
    /// Of the call's attempts, counted from 1 in the order in which they began.
    pub number: u32,
    /// The provider's status, if it answered with a failure.
    pub status: Option<u16>,
}

/// An attempt nothing has come of yet, and what was heard of it so far.
#[derive(Clone, Debug)]
pub struct Flying {
    /// Where it went.
    pub upstream: Arc<UpstreamNames>,
    /// Since when.
    pub since: Instant,
    /// The provider's own id of the call.
    pub their_id: Option<HeaderValue>,
    /// What of the request the provider's form could not say.
    pub left_out: Option<HeaderValue>,
    /// All its answer says is that a filter stopped it.
    pub filtered: bool,
    /// Another one was faster, so it is about to be dropped.
    pub outpaced: bool,
    /// Of the call's attempts, counted from 1; zero until it is on its way.
    pub number: u32,
    /// The provider's status, if it answered with a failure.
    pub status: Option<u16>,
}

impl Flying {
    /// One that begins.
    pub fn new(upstream: Arc<UpstreamNames>, since: Instant) -> Self {
        Self {
            upstream,
            since,
            their_id: None,
            left_out: None,
            filtered: false,
            outpaced: false,
            number: 0,
            status: None,
        }
    }
}

/// What the answer cache did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheNote {
    /// The route has no cache, or the call may not use it.
    #[default]
    Bypass,
    /// Looked, found nothing.
    Miss {
        /// The answer is stored now.
        stored: bool,
    },
    /// Did not look, because the caller wanted a fresh answer.
    Refresh {
        /// The answer is stored now.
        stored: bool,
    },
    /// Answered from the cache.
    Hit {
        /// Seconds since the answer was stored.
        age_seconds: u64,
        /// Seconds it is still good for.
        left_seconds: u64,
    },
    /// Told what another call like this one is being told.
    Coalesced,
    /// Answered from the cache with something that has just grown too old, while a fresh answer is on its way.
    Stale {
        /// Seconds since the answer was stored.
        age_seconds: u64,
        /// Seconds since it was good.
        past_seconds: u64,
    },
    /// Answered from the cache with something too old, because every candidate failed.
    StaleError {
        /// Seconds since the answer was stored.
        age_seconds: u64,
        /// Seconds since it was good.
        past_seconds: u64,
    },
}

impl CacheNote {
    /// The value of `wb-cache`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Miss { .. } | Self::Refresh { .. } => "miss",
            Self::Hit { .. } => "hit",
            Self::Coalesced => "coalesced",
            Self::Stale { .. } => "stale",
            Self::StaleError { .. } => "stale-error",
        }
    }

    /// Seconds since the answer was stored, if it came from the cache.
    pub fn age_seconds(self) -> Option<u64> {
        match self {
            Self::Hit { age_seconds, .. } | Self::Stale { age_seconds, .. } | Self::StaleError { age_seconds, .. } => {
                Some(age_seconds)
            }
            Self::Bypass | Self::Miss { .. } | Self::Refresh { .. } | Self::Coalesced => None,
        }
    }
}

/// What a call cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CostNote {
    /// No provider answered.
    #[default]
    Nothing,
    /// A provider answered and we do not know its price; never zero.
    Unknown,
    /// Known.
    Known(Cost),
}

/// Everything the record needs.
#[derive(Default)]
pub struct Story {
    /// What was asked, once the path matched.
    pub operation: Option<Operation>,
    /// The route, once selected.
    pub route: Option<Arc<RouteNames>>,
    /// Who asked, once identified.
    pub caller: Option<CallerId>,
    /// Whose data it is.
    pub tenant: Option<TenantId>,
    /// True if the caller asked for a stream.
    pub stream: bool,
    /// Its place in its trace, where there are traces.
    pub trace: Option<Arc<Begun>>,
    /// Attempts that began.
    pub begun: u32,
    /// The attempt that is on its way now: who answers in its stead has still tried it and waited for it.
    pub flying: Option<Flying>,
    /// A second one beside it.
    pub beside: Option<Flying>,
    /// All attempts that ended, in order.
    pub attempts: Vec<AttemptNote>,
    /// Who answered.
    pub served: Option<Arc<UpstreamNames>>,
    /// The provider's own id of the call.
    pub upstream_request_id: Option<HeaderValue>,
    /// What of the request the provider's form could not say.
    pub left_out: Option<HeaderValue>,
    /// What the cache did.
    pub cache: CacheNote,
    /// What is left of the caller's rate limit, if it has one.
    pub room: Option<Room>,
    /// What is left of the caller's tokens, if they are limited.
    pub tokens: Option<TokenRoom>,
    /// Who pays for attempts, if the caller has a token limit or a budget.
    pub claim: Option<Arc<Claim>>,
    /// What a merchant's budgets pay attempts with, if some hold for it.
    pub merchant: Option<Arc<MerchantClaim>>,
    /// Tokens, as reported.
    pub usage: Usage,
    /// Money.
    pub cost: CostNote,
    /// A risk call's outcome.
    pub decision: Option<(Action, DecisionSource)>,
    /// The decision that was answered in a verdict's stead: a failure mode's, or an earlier one given again.
    pub stood_in: Option<DecisionId>,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// How often the caller's SDK had tried before.
    pub retry_count: Option<u32>,
    /// The failure that reached the caller.
    pub error: Option<&'static str>,
    /// Time spent in this process until the answer's head was written.
    pub overhead: Option<Duration>,
    /// Of that, the wait for a decision to be on record.
    pub recording: Option<Duration>,
}

impl Trail {
    /// Locks the story. Keep the guard for a few lines and never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Story> {
        // A panic while appending leaves a shorter story, which is still true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Story {
    /// Time spent waiting for providers, for telling our own overhead apart. Attempts side by side count once.
    pub fn upstream_time(&self) -> Duration {
        let flying = self.flying.iter().chain(&self.beside).map(|flying| (flying.since, flying.since.elapsed()));
        let ended = self.attempts.iter().rev().map(|attempt| (attempt.since, attempt.duration));
        let mut counted_from = None;
        let alone = |(since, duration): (Instant, Duration)| {
            // From the latest end backwards, so that only the part before the earliest start is new.
            let end = counted_from.map_or(since + duration, |from: Instant| from.min(since + duration));
            counted_from = Some(counted_from.map_or(since, |from: Instant| from.min(since)));
            end.saturating_duration_since(since)
        };
        flying.chain(ended).map(alone).sum()
    }

    /// The answer that was given in this verdict's stead, if the verdict is worse than it.
    pub fn overtaken_by(&self, decision: &Decision) -> Option<(DecisionId, Action, DecisionSource)> {
        let ((action, source), id) = self.decision.zip(self.stood_in.clone())?;
        (id != decision.id && decision.action > action).then_some((id, action, source))
    }

    /// An attempt begins.
    pub fn take_off(&mut self, mut flying: Flying) {
        self.begun += 1;
        flying.number = self.begun;
        let place = if self.flying.is_none() { &mut self.flying } else { &mut self.beside };
        *place = Some(flying);
    }

    /// The attempt at this upstream, if one is on its way.
    pub fn flying_to(&mut self, upstream: &Arc<UpstreamNames>) -> Option<&mut Flying> {
        let to = |flying: &&mut Flying| Arc::ptr_eq(&flying.upstream, upstream);
        self.flying.as_mut().filter(to).or(self.beside.as_mut().filter(to))
    }

    /// An attempt ended. What was heard of it is the call's, unless another one was faster.
    pub fn land(&mut self, upstream: &Arc<UpstreamNames>, outcome: AttemptOutcome, now: Instant) {
        let to = |flying: &mut Flying| Arc::ptr_eq(&flying.upstream, upstream);
        let Some(flying) = self.flying.take_if(to).or_else(|| self.beside.take_if(to)) else { return };
        let answered = outcome == AttemptOutcome::Ok;
        if answered {
            self.left_out = flying.left_out;
        }
        if answered || flying.their_id.is_some() && !flying.outpaced {
            self.upstream_request_id = flying.their_id;
        }
        self.attempts.push(AttemptNote {
            outcome,
            since: flying.since,
            duration: now.saturating_duration_since(flying.since),
            filtered: flying.filtered,
            number: flying.number,
            status: flying.status,
            upstream: flying.upstream,
        });
    }

    /// The provider's own id of the attempt.
    pub fn heard_id(&mut self, upstream: &Arc<UpstreamNames>, id: Option<HeaderValue>) {
        match self.flying_to(upstream) {
            Some(flying) => flying.their_id = id,
            None => self.upstream_request_id = id,
        }
    }

    /// What the attempt failed with, if the provider answered.
    pub fn heard_status(&mut self, upstream: &Arc<UpstreamNames>, status: Option<u16>) {
        if let Some(flying) = self.flying_to(upstream) {
            flying.status = status;
        }
    }

    /// All that the attempt's answer says is that a filter stopped it.
    pub fn heard_filter(&mut self, upstream: &Arc<UpstreamNames>) {
        if let Some(flying) = self.flying_to(upstream) {
            flying.filtered = true;
        }
    }

    /// What the attempt's request does not say.
    pub fn heard_left_out(&mut self, upstream: &Arc<UpstreamNames>, left_out: Option<HeaderValue>) {
        match self.flying_to(upstream) {
            Some(flying) => flying.left_out = left_out,
            None => self.left_out = left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Arc<UpstreamNames> {
        Arc::new(UpstreamNames {
            upstream: UpstreamId::new("a/m"),
            provider: ProviderId::new("a"),
            model: String::new(),
            provider_header: HeaderValue::from_static("a"),
            model_header: HeaderValue::from_static(""),
        })
    }

    #[test]
    fn attempts_side_by_side_count_once() {
        let (trail, start) = (Trail::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let (first, second, third) = (names(), names(), names());
        let mut story = trail.lock();
        story.take_off(Flying::new(Arc::clone(&first), at(0)));
        story.take_off(Flying::new(Arc::clone(&second), at(100)));
        story.land(&second, AttemptOutcome::Ok, at(150));
        story.land(&first, AttemptOutcome::Outpaced, at(160));
        story.take_off(Flying::new(Arc::clone(&third), at(200)));
        story.land(&third, AttemptOutcome::Ok, at(230));
        drop(story);
        assert_eq!(trail.lock().upstream_time(), Duration::from_millis(190));
    }

    #[test]
    fn what_was_heard_of_an_outpaced_attempt_is_not_told() {
        let (trail, start) = (Trail::default(), Instant::now());
        let (slow, quick) = (names(), names());
        let mut story = trail.lock();
        story.take_off(Flying::new(Arc::clone(&slow), start));
        story.take_off(Flying::new(Arc::clone(&quick), start));
        story.heard_id(&quick, Some(HeaderValue::from_static("quick")));
        story.heard_id(&slow, Some(HeaderValue::from_static("slow")));
        story.land(&quick, AttemptOutcome::Ok, start);
        story.flying_to(&slow).unwrap().outpaced = true;
        story.land(&slow, AttemptOutcome::Outpaced, start);
        assert_eq!(story.upstream_request_id, Some(HeaderValue::from_static("quick")));
        assert!(story.flying.is_none() && story.beside.is_none() && story.attempts.len() == 2);
    }
}
