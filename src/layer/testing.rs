//! An arrival as the ingress layers see it, for their tests.

use std::sync::Arc;

use http::{HeaderValue, Method, Request};
use tokio::time::Instant;

use crate::config::table::{Caller, ConfigVersion, Limits, RoutingTable};
use crate::domain::id::RequestId;
use crate::flight::allowance::Allowance;
use crate::flight::arrival::{Arrival, LiveCaller, Pinned};
use crate::flight::shares::Standing;
use crate::flight::trail::Trail;
use crate::telemetry::traces::Plan;
use crate::upstream::testing::table;

/// A configuration that is pinned and nothing else.
#[derive(Clone)]
pub(crate) struct Snapshot {
    table: Arc<RoutingTable>,
    version: HeaderValue,
}

impl Pinned for Snapshot {
    fn version(&self) -> ConfigVersion {
        self.table.version()
    }

    fn version_header(&self) -> &HeaderValue {
        &self.version
    }

    fn limits(&self) -> &Limits {
        self.table.limits()
    }

    fn traces(&self) -> Option<&Arc<Plan>> {
        None
    }

    fn caller(&self, _: &[u8; 32]) -> Option<&Arc<LiveCaller>> {
        None
    }
}

/// A request that arrives now.
pub(crate) fn arrival(method: Method) -> Arrival<Snapshot, ()> {
    let request = Request::builder().method(method).uri("/v1/chat/completions").header("x-stainless-retry-count", "2");
    Arrival {
        head: Box::new(request.body(()).unwrap().into_parts().0),
        body: (),
        id: RequestId::parse("req_test").unwrap(),
        arrived: Instant::now(),
        trail: Trail::default(),
        pinned: Snapshot { table: Arc::new(table()), version: HeaderValue::from_static("abcdef012345") },
        operation: None,
        parameter: None,
        caller: None,
        growth: None,
    }
}

/// A caller with these limits.
pub(crate) fn caller(requests_per_minute: Option<u32>, in_flight: Option<u32>) -> Arc<LiveCaller> {
    let caller = Caller { requests_per_minute, in_flight, ..(*table().callers()[0]).clone() };
    let allowance = Arc::new(Allowance::new(Instant::now()));
    Arc::new(LiveCaller { caller: Arc::new(caller), allowance, quota: None, standing: Standing::default() })
}
