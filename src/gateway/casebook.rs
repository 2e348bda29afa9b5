//! Decisions of the past: one of them again, and what became of it.
//!
//! Whose they are is decided here, once: another tenant's decision is as unknown as one that never was. No deadline of a
//! payment applies; a record that cannot be had is told at once or within [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::timeout;

use crate::domain::clock;
use crate::flight::arrival::{Arrival, LiveCaller};
use crate::flight::error::CallError;
use crate::flight::reply::Reply;
use crate::flight::upload::Received;
use crate::gateway::snapshot::Snapshot;
use crate::layer::audit::Clerk;
use crate::routing::select::{self, NoRoute};
use crate::store::book::Recorded;
use crate::store::record::{Entry, OutcomeBody};
use crate::telemetry::cells::Held;
use crate::upstream::apart::apart;
use crate::wire::risk::{DecisionView, decode_outcome, encode_decision, encode_noted};

/// How long a report waits to be recorded.
const PATIENCE: Duration = Duration::from_secs(5);

/// An arrival whose body is here.
type Whole = Arrival<Arc<Snapshot>, Received>;

/// `GET /v1/risk/assessments/{id}`.
pub(super) async fn look_up(arrival: Whole) -> Result<Reply, CallError> {
    let Case { clerk, caller, id, in_flight } = case(&arrival)?;
    let reader = Arc::clone(clerk.records().reader().ok_or(CallError::RecordUnavailable)?);
    let tenant = caller.caller.tenant.clone();
    let found = apart(move || {
        let stored = reader.decision(tenant.as_str(), &id)?;
        stored.map(|stored| Ok((stored.decision()?, stored.body.out_trade_no))).transpose()
    });
    let (decision, out_trade_no) = match found.await.ok_or(CallError::Internal)? {
        Ok(found) => found.ok_or(CallError::UnknownDecision)?,
        Err(error) => {
            let error: crate::store::db::StoreError = error;
            tracing::error!(%error, "the record of decisions cannot be read");
            return Err(CallError::RecordUnavailable);
        }
    };
    let mut reply = Reply::json(encode_decision(&DecisionView { out_trade_no: &out_trade_no, decision: &decision }));
    reply.body.on_end(move |_| drop(in_flight));
    Ok(reply)
}

/// `POST /v1/risk/assessments/{id}/outcome`. Not given before it is durable, whatever the route says of decisions.
pub(super) async fn note(arrival: Whole) -> Result<Reply, CallError> {
    let Case { clerk, caller, id, in_flight } = case(&arrival)?;
    let report = decode_outcome(&arrival.body.bytes).map_err(|fields| CallError::BadFields(Arc::new(fields)))?;
    let at_ms = report.at_ms.unwrap_or_else(|| i64::try_from(clock::unix_ms()).unwrap_or(i64::MAX));
    let body = OutcomeBody { label: report.label.as_str().to_owned(), by: report.by.clone(), at_ms };
    let entry = Entry::outcome(caller.caller.tenant.as_str(), &id, &body, report.note.clone());
    match timeout(PATIENCE, clerk.records().add(entry)).await {
        Ok(Ok(Recorded::NoSuchDecision)) => Err(CallError::UnknownDecision),
        Ok(Ok(_)) => {
            clerk.metrics().audit.outcome(report.label);
            if report.label.is_fraud() == Some(true) {
                forget(&arrival, &clerk, caller.caller.tenant.as_str(), &id).await;
            }
            let mut reply = Reply::json(encode_noted(&id, &report, at_ms));
            reply.status = StatusCode::CREATED;
            reply.body.on_end(move |_| drop(in_flight));
            Ok(reply)
        }
        Ok(Err(_)) | Err(_) => Err(CallError::RecordUnavailable),
    }
}

/// After a fraud nothing that was decided for its payer is given again; nor for its merchant, if nobody knows the payer.
async fn forget(arrival: &Whole, clerk: &Clerk, tenant: &str, id: &str) {
    let decisions = arrival.pinned.decisions();
    if arrival.pinned.table().risk_route().is_none_or(|route| route.reuse.is_none()) {
        return;
    }
    let Some(reader) = clerk.records().reader().cloned() else { return };
    let (of, id) = (tenant.to_owned(), id.to_owned());
    let found = apart(move || reader.decision(&of, &id)).await;
    match found {
        Some(Ok(Some(stored))) => {
            let user = stored.personal.as_ref().map(|personal| personal.user_id.as_str());
            decisions.bump(tenant, &stored.body.merchant_id, user);
        }
        Some(Ok(None)) => {}
        None | Some(Err(_)) => {
            tracing::error!("the record cannot be read, so all decisions that could be given again are forgotten");
            decisions.bump_all();
        }
    }
}

/// What both need.
struct Case {
    clerk: Clerk,
    caller: Arc<LiveCaller>,
    id: String,
    in_flight: Held,
}

fn case(arrival: &Whole) -> Result<Case, CallError> {
    let snapshot = &arrival.pinned;
    let caller = Arc::clone(arrival.caller.as_ref().ok_or(CallError::Internal)?);
    select::risk(snapshot.table(), &caller.caller).map_err(|missing| match missing {
        NoRoute::Unknown => CallError::NotFound,
        NoRoute::NotAllowed => CallError::NotAllowed("risk".to_owned()),
    })?;
    let names = &snapshot.risk().ok_or(CallError::Internal)?.names;
    arrival.trail.lock().route = Some(Arc::clone(names));
    let clerk = snapshot.clerk().cloned().ok_or(CallError::NoRecord)?;
    let id = arrival.parameter.clone().unwrap_or_default();
    Ok(Case { clerk, caller, id, in_flight: names.metrics.in_flight.hold() })
}
