//! The closed sets that label values come from, where the domain has no word for them already.
//!
//! A label from a request would let anybody grow our memory and our scrape, so these are enums and the rest comes from
//! configuration.

use crate::domain::outcome::FailureClass;

macro_rules! closed_set {
    ($(#[$doc:meta])* $type:ident { $($(#[$case_doc:meta])* $case:ident = $label:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $type {
            $($(#[$case_doc])* $case),*
        }

        impl $type {
            /// Every case, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$case),*];

            /// Every label value, in the same order.
            pub fn labels() -> Vec<&'static str> {
                Self::ALL.iter().map(|case| case.label()).collect()
            }

            /// The label value.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$case => $label),*
                }
            }
        }
    };
}

closed_set! {
    /// Why a caller's own means did not suffice.
    QuotaReason {
        /// The tokens of the minute.
        Tokens = "tokens_per_minute",
        /// The money of the day or the month.
        Budget = "budget",
        /// What it would cost is not known.
        PriceUnknown = "price_unknown",
    }
}

closed_set! {
    /// What was done with a decision that is not on record.
    Unrecorded {
        /// It was withheld.
        Refused = "refused",
        /// It was given all the same.
        Continued = "continued",
        /// Nobody waited for it: a late verdict.
        Unheard = "unheard",
    }
}

closed_set! {
    /// What an authentic answer of a risk provider held that nobody agreed on.
    OddAnswer {
        /// Neither a score nor a recommendation could be read from it.
        NotUnderstood = "not_understood",
        /// A score that is no plain number in [0, 1].
        Score = "invalid_score",
        /// A word that is none of the four.
        Recommendation = "unknown_recommendation",
    }
}

closed_set! {
    /// Why a caller's signature was refused, in the order of the checks.
    SignatureRefusal {
        /// No signature, two of them, or not its grammar.
        Header = "header",
        /// A key id that is not one of this caller's.
        Key = "key",
        /// Too far from our clock.
        Stale = "stale",
        /// `di-content-sha256` is there and is not the body's.
        Content = "content",
        /// Another request's.
        Mismatch = "mismatch",
        /// Its nonce was used before.
        Replay = "replay",
        /// There is no room for another nonce.
        NoRoom = "no_room",
    }
}

closed_set! {
    /// What a merchant's budget let a risk call have.
    BudgetOutcome {
        /// Everything it asked for.
        Full = "full",
        /// Its score, without some features.
        Reduced = "reduced",
        /// Its bare score, although the budget has no room for it.
        Overdrawn = "overdrawn",
        /// Nothing: nobody was asked.
        Refused = "refused",
    }
}

closed_set! {
    /// How a call ended for its caller.
    RequestOutcome {
        /// A complete answer.
        Ok = "ok",
        /// The caller's request was refused: 4xx that is not one of the cases below.
        ClientError = "client_error",
        /// No or a wrong key, or not allowed: 401, 403.
        Unauthorised = "unauthorised",
        /// The caller's own allowance: 429.
        RateLimited = "rate_limited",
        /// This process was full: 503.
        Shed = "shed",
        /// Every candidate failed, or the answer was cut after content had been forwarded.
        UpstreamError = "upstream_error",
        /// Time ran out: 408, 504.
        Timeout = "timeout",
        /// The client went away first.
        ClientGone = "client_gone",
        /// The process was stopping.
        ShuttingDown = "shutting_down",
        /// Our own fault: 500.
        Error = "error",
    }
}

closed_set! {
    /// How a streamed body ended: the labels of [`crate::domain::outcome::End`].
    StreamEnd {
        /// Everything was delivered.
        Complete = "complete",
        /// The upstream cut it.
        Truncated = "truncated",
        /// The client went away first.
        ClientGone = "client_gone",
        /// An error was reported inside it.
        Error = "error",
        /// The upstream fell silent.
        Idle = "idle",
    }
}

closed_set! {
    /// Which cache.
    Cache {
        /// Whole answers.
        Response = "response",
        /// Answers kept for repeated keys.
        Idempotency = "idempotency",
        /// Access tokens of providers.
        Token = "token",
        /// Decisions given again for another payment.
        Decision = "decision",
    }
}

closed_set! {
    /// What a cache did.
    CacheEvent {
        /// Found.
        Hit = "hit",
        /// Not found.
        Miss = "miss",
        /// Found, too old, used all the same.
        Stale = "stale",
        /// A fresh answer was asked for while an old one was used.
        Revalidated = "revalidated",
        /// Waited for another call's answer.
        Coalesced = "coalesced",
        /// Thrown out to make room.
        Evicted = "evicted",
        /// Not stored or not used because a rule forbade it.
        RefusedByGuard = "refused_by_guard",
    }
}

closed_set! {
    /// What a velocity counter did with an attempt it had not seen before.
    VelocityEvent {
        /// Counted it, or tried to.
        Counted = "counted",
        /// It is over the counter's limit.
        Over = "over",
        /// There is or was no room, so nobody knows the number.
        Unknown = "unknown",
    }
}

closed_set! {
    /// Why a call was shed.
    ShedReason {
        /// Too many in flight.
        InFlight = "in_flight",
        /// Too many body bytes in flight.
        Bytes = "bytes",
        /// The caller's share was used up while the process was busy.
        CallerShare = "caller_share",
        /// Memory runs out.
        Memory = "memory",
        /// File descriptors run out.
        Descriptors = "descriptors",
        /// The process is stopping.
        Draining = "draining",
    }
}

closed_set! {
    /// What became of a second attempt beside a slow first one.
    HedgeOutcome {
        /// It served.
        Won = "won",
        /// The first one served after all.
        Lost = "lost",
        /// Neither did.
        Failed = "failed",
        /// It was refused by our own limits, and the first one was waited for.
        Refused = "refused",
        /// It was not started, because the route's allowance was used up.
        Capped = "capped",
    }
}

closed_set! {
    /// Why money was spent on answers nobody was shown.
    ExtraCost {
        /// An attempt that another one outpaced; estimated.
        Hedge = "hedge",
        /// A copy of a call for a candidate on trial; as the provider counted.
        Shadow = "shadow",
        /// A decision that did not come, from a provider that may have made it; estimated.
        NoVerdict = "no_verdict",
    }
}

closed_set! {
    /// Why a call was not copied to a route's shadow.
    ShadowDrop {
        /// As many as allowed are on their way.
        Full = "full",
        /// Its body is too large to be held for that.
        Large = "large",
        /// The shadow's breaker is open, or its quota group paused.
        Unwell = "unwell",
        /// The shadow has not this operation, or the call refers to what its provider keeps.
        Unable = "unable",
    }
}

closed_set! {
    /// What became of a try to tell a webhook, or of the whole notice.
    Notice {
        /// The receiver has it.
        Delivered = "delivered",
        /// A try failed; another may follow.
        Failed = "failed",
        /// Given up.
        Dead = "dead",
    }
}

closed_set! {
    /// Why the spans of requests reached no collector.
    TraceDrop {
        /// As many as allowed wait already.
        Full = "queue_full",
        /// It could not be reached, did not answer in time, or could not take them now, too often in a row.
        Unreachable = "unreachable",
        /// It does not want them.
        Refused = "refused",
        /// Traces were turned off while they waited.
        Off = "turned_off",
    }
}

closed_set! {
    /// How a reload went.
    ReloadResult {
        /// The new configuration is in use.
        Success = "success",
        /// The old one stays.
        Failure = "failure",
        /// It was in use, was worse than the one before, and that one is in use again.
        RolledBack = "rolled_back",
    }
}

closed_set! {
    /// What became of certificate files that changed.
    CertificateReload {
        /// They are in use.
        Success = "success",
        /// One could not be read.
        Unreadable = "unreadable",
        /// One holds no certificate or no key, or one that cannot be used.
        Malformed = "malformed",
        /// The key is not that of the certificate.
        Mismatch = "mismatch",
        /// The certificate has expired, and the one in use has not.
        Expired = "expired",
    }
}

closed_set! {
    /// Why a connection was turned away.
    ConnectionRefusal {
        /// The limit on open connections.
        Limit = "limit",
        /// No file descriptor or memory for it.
        Exhausted = "exhausted",
        /// No worker could take it.
        WorkersFull = "workers_full",
    }
}

closed_set! {
    /// Why a connection ended.
    ConnectionEnd {
        /// Either side closed it in good order.
        Closed = "closed",
        /// The peer vanished or spoke no HTTP.
        Failed = "failed",
        /// The TLS handshake took too long.
        HandshakeTimeout = "handshake_timeout",
        /// The TLS handshake failed: no common version, no certificate where one is needed, or no TLS at all.
        HandshakeFailed = "handshake_failed",
        /// A request head, or its first byte, took too long.
        HeadTimeout = "head_timeout",
        /// More header fields than allowed.
        HeadFields = "head_fields",
        /// Nothing was asked for too long.
        Idle = "idle",
        /// The peer accepted no bytes for too long.
        WriteStall = "write_stall",
        /// Idle, and its place was needed.
        Evicted = "evicted",
        /// The process is stopping and it was idle or had finished.
        Drained = "drained",
        /// The process is stopping and could not wait any longer.
        Aborted = "aborted",
        /// A bug.
        Panicked = "panicked",
    }
}

/// How one attempt at an upstream ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AttemptOutcome {
    /// A usable answer.
    Ok,
    /// It failed.
    Failed(FailureClass),
    /// Nobody wanted it any more: the client left.
    Abandoned,
    /// Another attempt of the same call showed its content first.
    Outpaced,
}

impl AttemptOutcome {
    /// The `outcome` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(_) => "failed",
            Self::Abandoned | Self::Outpaced => "abandoned",
        }
    }

    /// The `reason` label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Failed(class) => class.label(),
            Self::Outpaced => "outpaced",
            Self::Ok | Self::Abandoned => "none",
        }
    }
}

impl From<FailureClass> for AttemptOutcome {
    fn from(class: FailureClass) -> Self {
        Self::Failed(class)
    }
}

impl From<crate::domain::outcome::End> for StreamEnd {
    fn from(end: crate::domain::outcome::End) -> Self {
        use crate::domain::outcome::End;
        match end {
            End::Complete => Self::Complete,
            End::UpstreamFailed(FailureClass::NoContent | FailureClass::HeadersTimeout) => Self::Idle,
            End::UpstreamFailed(FailureClass::StreamCut) => Self::Truncated,
            End::UpstreamFailed(_) | End::DeadlinePassed | End::FellBehind | End::ShuttingDown => Self::Error,
            End::ClientGone => Self::ClientGone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::End;

    #[test]
    fn a_streams_end_has_the_same_label_in_metrics_and_in_the_log() {
        let failed = FailureClass::ALL.map(End::UpstreamFailed);
        let others = [End::Complete, End::DeadlinePassed, End::ClientGone, End::FellBehind, End::ShuttingDown];
        for end in failed.into_iter().chain(others) {
            assert_eq!(StreamEnd::from(end).label(), end.label(), "{end:?}");
        }
    }
}
