//! One accepted request, decoded as far as anybody needs it, with everything that was decided about it so far.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use crate::config::table::{Caller, RiskRoute};
use crate::domain::deadline::Deadline;
use crate::domain::id::RequestId;
use crate::domain::operation::{Operation, Safety};
use crate::domain::policy::Ruling;
use crate::flight::allowance::Allowance;
use crate::flight::carried::Carried;
use crate::flight::facts::LlmFacts;
use crate::flight::quota::Quota;
use crate::flight::shares::Standing;
use crate::flight::trail::Trail;
use crate::flight::upload::Upload;
use crate::flight::velocity::Readings;
use crate::telemetry::traces::Begun;
use crate::wire::risk::Assessment;

/// What a caller asked for. Cloning is cheap: an attempt gets its own.
#[derive(Clone)]
pub struct Call {
    /// What to do.
    pub operation: Operation,
    /// The request body as it arrived.
    pub body: Bytes,
    /// The few facts read from it.
    pub facts: Facts,
    /// The form that `body` is the beginning of, if it is one.
    pub upload: Option<Arc<Upload>>,
    /// The same as chat completions, if some candidate needs that.
    pub carried: Option<Arc<Carried>>,
    /// Who, when, until when.
    pub context: Arc<CallContext>,
    /// No attempt may outlive this.
    pub deadline: Deadline,
}

/// What does not change while a call is in flight.
#[derive(Clone)]
pub struct CallContext {
    /// Its identity.
    pub id: RequestId,
    /// Who asked.
    pub caller: Arc<Caller>,
    /// What the caller has used of its tokens and budgets; `None` if it has neither limit.
    pub quota: Option<Arc<Quota>>,
    /// The caller's requests in flight, where what is asked beside the call must have a place of its own.
    pub allowance: Option<Arc<Allowance>>,
    /// What it is worth, and its caller's seat among those who share a provider.
    pub standing: Standing,
    /// When its first byte was seen.
    pub arrived: Instant,
    /// What happened to it.
    pub trail: Trail,
    /// What the caller wants of the answer cache.
    pub cache: CacheWish,
    /// `idempotency-key` of a call to a model: the same key and body get the same answer.
    pub idempotency_key: Option<HeaderValue>,
    /// Headers of the caller's that providers of this form need; empty for most.
    pub forwarded: HeaderMap,
    /// The number of its conversation, where the route keeps conversations together.
    pub conversation: Option<u64>,
    /// Its place in its trace, where there are traces: some provider may learn of it, and answers say which model they are of.
    pub trace: Option<Arc<Begun>>,
}

/// `wb-cache`: the caller's word on the answer cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheWish {
    /// As the route says.
    #[default]
    Default,
    /// A fresh answer, which may be stored.
    NoCache,
    /// Neither read nor stored.
    NoStore,
    /// Only a stored answer.
    OnlyIfCached,
}

/// The decoded part of a body.
#[derive(Clone)]
pub enum Facts {
    /// An LLM request.
    Llm(LlmFacts),
    /// A payment attempt.
    Risk(Arc<RiskFacts>),
}

/// A payment attempt, its route and the rules that decide it.
#[derive(Clone)]
pub struct RiskFacts {
    /// The decoded request, with the features that are asked of the provider.
    pub assessment: Assessment,
    /// The pinned route.
    pub route: Arc<RiskRoute>,
    /// What decides it.
    pub ruling: Arc<Ruling>,
    /// Features the caller asked for that a merchant's budget left out.
    pub features_dropped: Vec<String>,
    /// What was counted about it and its like, itself included.
    pub velocity: Readings,
}

impl Call {
    /// The LLM facts; a risk call reads as "whole answer".
    pub fn llm(&self) -> LlmFacts {
        match self.facts {
            Facts::Llm(facts) => facts,
            Facts::Risk(_) => LlmFacts::default(),
        }
    }

    /// True if all of it is here, so that two may ask for it at the same time.
    pub fn is_kept(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.is_whole())
    }

    /// Whether it may be sent again now: a form of which some is gone may not.
    pub fn safety(&self) -> Safety {
        match &self.upload {
            Some(upload) if upload.is_spent() => Safety::AtMostOnce,
            _ => self.operation.safety(),
        }
    }

    /// The risk facts, if this is a risk call.
    pub fn risk(&self) -> Option<&Arc<RiskFacts>> {
        match &self.facts {
            Facts::Llm(_) => None,
            Facts::Risk(facts) => Some(facts),
        }
    }
}
