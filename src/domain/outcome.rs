//! How an attempt can fail, whose fault that is, and what may have reached the other side.

/// The closed list of ways an attempt can fail. `layer/failover/policy.rs` holds the table of what follows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FailureClass {
    /// Refused, unreachable, name not found, TLS failed; or the connection broke before a response.
    Connect,
    /// Nothing to show in time.
    HeadersTimeout,
    /// A 200 without content: empty, silent, cut, or an error dressed as an answer.
    NoContent,
    /// 503, 529: the provider is full.
    Overloaded,
    /// 429.
    RateLimited,
    /// 402, `insufficient_quota`, day caps: not soon.
    QuotaExhausted,
    /// 500, 502 and everything else that is the provider's fault, redirects included.
    ProviderFault,
    /// Not what the protocol promises: not JSON, too big, out of range.
    BadReply,
    /// A response that is not authentic.
    BadSignature,
    /// Our own credential was refused: 401, 403, or no access token to be had.
    Unauthorised,
    /// The caller's request was refused: 400, 404, 422.
    Refused,
    /// The breaker is open.
    Open,
    /// The bulkhead is full.
    Full,
    /// The quota group is paused or over its rate.
    Paced,
    /// The body failed after content had been forwarded.
    StreamCut,
    /// Our own time is up.
    DeadlinePassed,
}

/// Whose fault a failure is; decides what the breaker learns.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Blame {
    /// Counts against the upstream.
    Provider,
    /// Ours: capacity, credentials, configuration.
    Local,
    /// The caller's request; the upstream works.
    Caller,
    /// Nobody's: time ran out, or the client left.
    Nobody,
}

/// What may have reached the provider; decides what may be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sent {
    /// Not one byte of this request was written.
    No,
    /// Some of it may have been.
    Maybe,
    /// The provider answered, so it was.
    Yes,
}

/// How a reply's body ended. Delivered exactly once, also when the body is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// Everything was delivered.
    Complete,
    /// The upstream cut it, stalled, or reported an error inside it.
    UpstreamFailed(FailureClass),
    /// The call's total time was up.
    DeadlinePassed,
    /// The client went away first.
    ClientGone,
    /// The client shared the answer with others and read too slowly to keep up.
    FellBehind,
    /// The process is stopping and the drain limit was reached.
    ShuttingDown,
}

impl FailureClass {
    /// Every class, for tables.
    pub const ALL: [Self; 16] = [
        Self::Connect,
        Self::HeadersTimeout,
        Self::NoContent,
        Self::Overloaded,
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::ProviderFault,
        Self::BadReply,
        Self::BadSignature,
        Self::Unauthorised,
        Self::Refused,
        Self::Open,
        Self::Full,
        Self::Paced,
        Self::StreamCut,
        Self::DeadlinePassed,
    ];

    /// The metric and log label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::HeadersTimeout => "headers_timeout",
            Self::NoContent => "no_content",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::ProviderFault => "provider_fault",
            Self::BadReply => "bad_reply",
            Self::BadSignature => "bad_signature",
            Self::Unauthorised => "unauthorised",
            Self::Refused => "refused",
            Self::Open => "open",
            Self::Full => "full",
            Self::Paced => "paced",
            Self::StreamCut => "stream_cut",
            Self::DeadlinePassed => "deadline_passed",
        }
    }

    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self {
            Self::Connect
            | Self::HeadersTimeout
            | Self::NoContent
            | Self::Overloaded
            | Self::RateLimited
            | Self::QuotaExhausted
            | Self::ProviderFault
            | Self::BadReply
            | Self::BadSignature
            | Self::StreamCut => Blame::Provider,
            Self::Unauthorised | Self::Open | Self::Full | Self::Paced => Blame::Local,
            Self::Refused => Blame::Caller,
            Self::DeadlinePassed => Blame::Nobody,
        }
    }
}

impl End {
    /// The label of `weighbridge_stream_outcomes_total` and of the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::UpstreamFailed(FailureClass::NoContent | FailureClass::HeadersTimeout) => "idle",
            Self::UpstreamFailed(FailureClass::StreamCut) => "truncated",
            Self::UpstreamFailed(_) | Self::DeadlinePassed | Self::FellBehind | Self::ShuttingDown => "error",
            Self::ClientGone => "client_gone",
        }
    }
}
