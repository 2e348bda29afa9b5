//! A request on its way through the ingress, before it is a call.
//!
//! Typed fields instead of `http::Extensions`: what a layer needs is in the signature, and nothing is looked up by type.

use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;
use tokio::time::Instant;

use crate::config::table::{Caller, ConfigVersion, Limits};
use crate::domain::id::RequestId;
use crate::domain::operation::Operation;
use crate::flight::allowance::Allowance;
use crate::flight::gate::Growth;
use crate::flight::quota::Quota;
use crate::flight::shares::Standing;
use crate::flight::showing::Showing;
use crate::flight::trail::Trail;
use crate::telemetry::traces::Plan;

/// One request with the configuration pinned to it. `P` is the pinned snapshot, `B` the body: a stream, later bytes.
pub struct Arrival<P, B> {
    /// Method, path, headers. Boxed, because an arrival is handed from layer to layer and this is most of it.
    pub head: Box<Parts>,
    /// The body.
    pub body: B,
    /// Its identity.
    pub id: RequestId,
    /// When it was first seen; deadlines count from here.
    pub arrived: Instant,
    /// What happens to it.
    pub trail: Trail,
    /// One configuration version for the whole request.
    pub pinned: P,
    /// What the path stands for, once matched.
    pub operation: Option<Operation>,
    /// The path's parameter, once matched.
    pub parameter: Option<String>,
    /// Who asks, once identified.
    pub caller: Option<Arc<LiveCaller>>,
    /// Where its body is counted as it comes, if nobody said how much it is.
    pub growth: Option<Arc<Growth>>,
}

impl<P, B> Arrival<P, B> {
    /// The arrival and its body apart.
    pub fn split(self) -> (Arrival<P, ()>, B) {
        let Self { head, body, id, arrived, trail, pinned, operation, parameter, caller, growth } = self;
        (Arrival { head, body: (), id, arrived, trail, pinned, operation, parameter, caller, growth }, body)
    }

    /// The same arrival with another body.
    pub fn with_body<C>(self, body: C) -> Arrival<P, C> {
        let Self { head, body: _, id, arrived, trail, pinned, operation, parameter, caller, growth } = self;
        Arrival { head, body, id, arrived, trail, pinned, operation, parameter, caller, growth }
    }
}

/// What is known of a connection that came through our own TLS. A request carries it as an extension, shared by all of
/// its connection, because only a server below can know it; requests that came in the clear carry nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secured {
    /// SHA-256 of the certificate that the client proved to hold, if it showed one.
    pub client_certificate: Option<[u8; 32]>,
}

impl Secured {
    /// What the head's connection was, `None` for one in the clear.
    pub fn of(head: &Parts) -> Option<&Self> {
        head.extensions.get::<Arc<Self>>().map(|secured| &**secured)
    }
}

/// A caller and what it has used of its limits; the use survives a reload by id.
pub struct LiveCaller {
    /// Who it is.
    pub caller: Arc<Caller>,
    /// What it has used.
    pub allowance: Arc<Allowance>,
    /// What it has used of its tokens and budgets; `None` if it has neither limit.
    pub quota: Option<Arc<Quota>>,
    /// What its calls are worth, and its seat among those who share.
    pub standing: Standing,
}

/// What the ingress layers ask of a pinned snapshot, so that they need not know how it is composed.
pub trait Pinned: Clone + Send + Sync + 'static {
    /// Which configuration this is.
    fn version(&self) -> ConfigVersion;

    /// Its version as the value of `wb-config`.
    fn version_header(&self) -> &HeaderValue;

    /// Process-wide limits.
    fn limits(&self) -> &Limits;

    /// What is told of requests to a collector; `None` for nothing.
    fn traces(&self) -> Option<&Arc<Plan>>;

    /// The caller with this key digest.
    fn caller(&self, key_digest: &[u8; 32]) -> Option<&Arc<LiveCaller>>;

    /// Where its requests are counted as they end; `None` where nobody asks how it does.
    fn showing(&self) -> Option<&Showing> {
        None
    }
}
