//! What two processes owe each other while one takes over from the other.
//!
//! Until the old one is gone both may be asked for the same payment, and both may be shown the same signed request. So
//! both claim payments before they ask a provider ([`Claims`]) and write nonces down before they accept them. Both need the
//! same data folder; without one there is nothing to share, and the restart is as good as any other.
//!
//! Velocity counters go with it, as they stand, and how well reused decisions agreed: what the old process still counts in
//! requests it had begun to read is not in them. It deliberately shares nothing else: metrics, cached answers, idempotency keys of LLM calls, breakers and rate limits
//! begin anew, as after every restart. Budgets are handed over as they stand on disk; what the old process's last calls cost
//! is not in them.

use std::path::Path;
use std::sync::Arc;

use crate::gateway::counts;
use crate::gateway::snapshot::Shared;
use crate::layer::idempotency::claims::Claims;
use crate::store::query::Reader;

/// The old process: from here on another one decides too. Returns since when (milliseconds since 1970) all nonces that were
/// accepted are on disk. Whatever was decided before is on record when this returns. Blocks.
pub fn give(shared: &Shared, data: Option<&Path>) -> Option<u64> {
    if let (Some(data), Some(clerk)) = (data, &shared.clerk) {
        if let Some(reader) = clerk.records().reader() {
            match Claims::begin(data, reader) {
                Ok(claims) => shared.ledger.share(&claims),
                Err(error) => {
                    tracing::error!(%error, "a payment that is asked for during the hand-over may be decided twice");
                }
            }
        }
        clerk.records().flush();
    }
    if let Some(data) = data {
        counts::keep(&shared.velocity, data);
        counts::keep_standings(&shared.decisions, data);
    }
    shared.nonces.share()
}

/// How far the new process has read the record.
#[derive(Clone, Copy)]
pub struct ReadTo(pub i64);

/// The new process: the old one has released, and goes on with what it has.
pub fn take(shared: &Shared, data: Option<&Path>, read_to: ReadTo, nonces_since_ms: Option<u64>) {
    shared.nonces.continue_from(nonces_since_ms);
    let Some((data, reader)) = data.zip(reader(shared)) else { return };
    match Claims::join(data, &reader, read_to.0) {
        Some(claims) => shared.ledger.share(&claims),
        None => {
            tracing::warn!(
                "the process before this one has another data folder: a payment asked of both is decided twice"
            );
        }
    }
}

/// The new process: the old one is gone. Blocks.
pub fn end(shared: &Shared) {
    if let Err(error) = shared.ledger.share_no_more() {
        tracing::error!(%error, "what the process before this one decided last cannot be read");
    }
    shared.nonces.share_no_more();
}

/// Removes what a hand-over left behind that did not end; for a start without one.
pub fn forget(data: &Path) {
    Claims::forget(data);
}

fn reader(shared: &Shared) -> Option<Arc<Reader>> {
    shared.clerk.as_ref()?.records().reader().cloned()
}
