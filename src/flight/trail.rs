//! What happened to one call so far: appended to by every layer, read once at the end by the record.
//!
//! The lock is a `std` mutex: it is never held across an await, every critical section is a few assignments, and one
//! call is worked on by one thread at a time, so it is practically never contended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::domain::decision::{Action, DecisionSource};
use crate::domain::id::{CallerId, ProviderId, RouteId, TenantId, UpstreamId};
use crate::domain::money::Cost;
use crate::domain::operation::Operation;
use crate::domain::outcome::FailureClass;
use crate::domain::usage::Usage;
use crate::flight::allowance::Room;
use crate::flight::bucket::TokenRoom;
use crate::flight::quota::Claim;
use crate::telemetry::handles::RouteMetrics;

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
    /// `None` for success.
    pub failure: Option<FailureClass>,
    /// Until its reply, or until it failed.
    pub duration: Duration,
}

/// An attempt nothing has come of yet.
#[derive(Clone, Debug)]
pub struct Flying {
    /// Where it went.
    pub upstream: Arc<UpstreamNames>,
    /// Since when.
    pub since: Instant,
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
            Self::StaleError { .. } => "stale-error",
        }
    }

    /// Seconds since the answer was stored, if it came from the cache.
    pub fn age_seconds(self) -> Option<u64> {
        match self {
            Self::Hit { age_seconds, .. } | Self::StaleError { age_seconds, .. } => Some(age_seconds),
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
    /// The attempt that is on its way now: who answers in its stead has still tried it and waited for it.
    pub flying: Option<Flying>,
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
    /// Tokens, as reported.
    pub usage: Usage,
    /// Money.
    pub cost: CostNote,
    /// A risk call's outcome.
    pub decision: Option<(Action, DecisionSource)>,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// How often the caller's SDK had tried before.
    pub retry_count: Option<u32>,
    /// The failure that reached the caller.
    pub error: Option<&'static str>,
}

impl Trail {
    /// Locks the story. Keep the guard for a few lines and never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Story> {
        // A panic while appending leaves a shorter story, which is still true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time spent waiting for providers, for telling our own overhead apart.
    pub fn upstream_time(&self) -> Duration {
        let story = self.lock();
        let flying = story.flying.as_ref().map(|flying| flying.since.elapsed());
        story.attempts.iter().map(|attempt| attempt.duration).chain(flying).sum()
    }
}
