//! What can go wrong with an attempt and with a call. Neither ever holds a body, a prompt or a secret.
//!
//! Only `layer/rescue.rs` turns a [`CallError`] into a status code.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::clock;
use crate::domain::decision::FallbackReason;
use crate::domain::outcome::{FailureClass, Sent};
use crate::domain::period::Period;
use crate::telemetry::labels::ShedReason;
use crate::wire::openai::EmbeddedError;
use crate::wire::risk::FieldError;

/// One attempt's failure.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", class.label())]
pub struct AttemptError {
    /// What kind.
    pub class: FailureClass,
    /// What may have reached the provider.
    pub sent: Sent,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// How long the provider asked us to stay away.
    pub retry_after: Option<Duration>,
    /// Why our own breaker refused, where that says more than that it was open.
    pub cause: Option<FailureClass>,
    /// The provider's own words, for a caller whose request it refused.
    pub said: Option<Arc<EmbeddedError>>,
    /// What happened, in our words.
    pub detail: &'static str,
}

impl AttemptError {
    /// A failure with nothing but a class, what was sent and a sentence.
    pub fn new(class: FailureClass, sent: Sent, detail: &'static str) -> Self {
        Self { class, sent, status: None, retry_after: None, cause: None, said: None, detail }
    }

    /// A refusal by our own bulkhead, breaker or pace; nothing was sent.
    pub fn local(class: FailureClass, retry_after: Option<Duration>, detail: &'static str) -> Self {
        Self { retry_after, ..Self::new(class, Sent::No, detail) }
    }

    /// What is behind it: the cause of a refusal of our own, or the failure itself.
    pub fn root(&self) -> FailureClass {
        self.cause.unwrap_or(self.class)
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The HTTP framing or headers are not acceptable.
    #[error("{0}")]
    Framing(&'static str),
    /// `Expect` holds something else than `100-continue`.
    #[error("only expect: 100-continue is understood")]
    Expectation,
    /// `CONNECT`: what follows it would be somebody else's bytes.
    #[error("tunnels are not opened, use GET or POST")]
    Tunnel,
    /// No such path.
    #[error("no such path")]
    NotFound,
    /// The path exists, the method does not.
    #[error("method not allowed, use {allow}")]
    Method {
        /// The methods that exist.
        allow: &'static str,
    },
    /// No key, or one we do not know.
    #[error("unknown caller key")]
    BadKey,
    /// The caller must sign, and this is not signed, or not with its key. Which of them is not told.
    #[error("the signature of the request is missing or wrong; send di-signature over exactly what is sent")]
    BadSignature,
    /// The signature's time is too far from ours.
    #[error(
        "the signature's ts is not within 300 s of our clock, which says {now_ms} ({}), or from before our last start",
        clock::rfc3339(*now_ms)
    )]
    StaleTimestamp {
        /// What our clock says, milliseconds since 1970.
        now_ms: u64,
    },
    /// The very same signed request came before.
    #[error("this signed request was used before; sign each request anew, with a nonce of its own")]
    Replayed,
    /// There is no room to remember another signed request.
    #[error("too many signed requests at once; sign again and retry")]
    NoNonceRoom,
    /// The key is known and may not do this.
    #[error("this key may not use {0}")]
    NotAllowed(String),
    /// The process is full.
    #[error("the proxy is at its limit of {what}")]
    Shed {
        /// Which limit.
        what: &'static str,
    },
    /// The caller is over its own limit.
    #[error("this key is over its limit of {what}")]
    Throttled {
        /// Which limit.
        what: &'static str,
        /// When it has room again.
        retry_after: Duration,
    },
    /// The caller's money does not suffice.
    #[error(
        "what is left of this key's budget for the {} is less than this call may cost; a new one begins at {}",
        per.label(), clock::rfc3339(*ends)
    )]
    OverBudget {
        /// Which budget.
        per: Period,
        /// When it begins again, milliseconds since 1970.
        ends: u64,
    },
    /// Nobody knows what the call would cost, and this caller's budget is to hold.
    #[error("the budget of this key does not allow {model}: what it costs is not known in the budget's currency")]
    Unpriced {
        /// The route.
        model: String,
    },
    /// The body is larger than allowed.
    #[error("the request body is larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The body did not arrive in time, or broke off.
    #[error("the request body did not arrive")]
    BodyIncomplete,
    /// Compressed or not JSON by its own declaration.
    #[error("{0}")]
    MediaType(&'static str),
    /// A request that is not what the path takes.
    #[error("{message}")]
    BadRequest {
        /// What is wrong, without quoting it.
        message: String,
        /// Which parameter.
        param: Option<String>,
    },
    /// Bad fields of a risk request, all of them.
    #[error("{} bad fields", .0.len())]
    BadFields(Arc<Vec<FieldError>>),
    /// No route has this name.
    #[error("no such model")]
    UnknownModel {
        /// The name asked for, if it is short and plain.
        model: String,
    },
    /// The model exists, and no provider of it has this operation.
    #[error("no provider of this model offers {operation}")]
    NotOffered {
        /// What was asked for.
        operation: &'static str,
    },
    /// The id was used with another body.
    #[error("out_trade_no was used before with another body")]
    Conflict,
    /// The idempotency key was used with another body.
    #[error("this idempotency-key was used before with another request; use a new key for a new request")]
    KeyReused,
    /// `only-if-cached` and nothing is.
    #[error("nothing stored for this request")]
    NotCached,
    /// Every candidate failed or refused.
    #[error("no candidate answered: {last}")]
    Exhausted {
        /// The failure that speaks for all.
        last: AttemptError,
        /// The earliest moment a candidate may have room again.
        retry_after: Option<Duration>,
    },
    /// An upload too large to be kept was tried once, and that failed.
    #[error("the upload was tried once: {last}")]
    UploadLost {
        /// How.
        last: AttemptError,
        /// When the provider may have room again.
        retry_after: Option<Duration>,
    },
    /// Our own time is up.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// No verdict could be had, and the route wants an error then.
    #[error("no risk decision: {}", .0.text())]
    NoDecision(FallbackReason),
    /// The decision could not be recorded in time, and the route withholds it then.
    #[error("audit_unavailable: the decision could not be recorded and is withheld; ask again")]
    AuditUnavailable,
    /// The record cannot be read or written now.
    #[error("audit_unavailable: the record of decisions cannot be used now; try again")]
    RecordUnavailable,
    /// This process keeps no record.
    #[error("this proxy keeps no record of decisions; it was started without a data folder")]
    NoRecord,
    /// No decision of this tenant has the id.
    #[error("there is no decision of this id")]
    UnknownDecision,
    /// A bug; the details are in the log.
    #[error("internal error")]
    Internal,
}

impl CallError {
    /// A call the process turns away.
    pub fn shed(reason: ShedReason) -> Self {
        Self::Shed {
            what: match reason {
                ShedReason::InFlight => "requests in flight",
                ShedReason::Bytes => "request bytes in flight",
                ShedReason::CallerShare => "what one key may have while others want it too",
                ShedReason::Memory => "memory",
                ShedReason::Descriptors => "file descriptors",
                ShedReason::Draining => "time, it is stopping",
            },
        }
    }

    /// A closed set of words for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Framing(_) => "framing",
            Self::Expectation => "expectation",
            Self::NotFound => "not_found",
            Self::Method { .. } | Self::Tunnel => "method",
            Self::BadKey => "bad_key",
            Self::BadSignature => "bad_signature",
            Self::StaleTimestamp { .. } => "stale_timestamp",
            Self::Replayed => "replay",
            Self::NoNonceRoom => "nonce_store_full",
            Self::NotAllowed(_) => "not_allowed",
            Self::Shed { .. } => "shed",
            Self::Throttled { .. } => "throttled",
            Self::OverBudget { .. } => "insufficient_quota",
            Self::Unpriced { .. } => "price_unknown",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyIncomplete => "body_incomplete",
            Self::MediaType(_) => "media_type",
            Self::BadRequest { .. } => "bad_request",
            Self::BadFields(_) => "bad_fields",
            Self::UnknownModel { .. } => "unknown_model",
            Self::NotOffered { .. } => "not_offered",
            Self::Conflict => "conflict",
            Self::KeyReused => "idempotency_key_reused",
            Self::NotCached => "not_cached",
            Self::Exhausted { last, .. } | Self::UploadLost { last, .. } => last.class.label(),
            Self::DeadlinePassed => "deadline_passed",
            Self::NoDecision(reason) => reason.code(),
            Self::AuditUnavailable | Self::RecordUnavailable => "audit_unavailable",
            Self::NoRecord => "no_record",
            Self::UnknownDecision => "unknown_decision",
            Self::Internal => "internal",
        }
    }
}
