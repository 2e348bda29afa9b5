//! The access-log line of a question that no client asked: an old answer's refresh.
//!
//! It costs what any question costs, so whoever adds up the log must find it there, with the call that was its cause. It is
//! no request of anybody's: the series of requests and of streams do not know it, those of attempts and tokens do.

use crate::domain::id::{CallerId, RequestId, TenantId};
use crate::domain::operation::Operation;
use crate::domain::outcome::End;
use crate::flight::call::Call;
use crate::flight::error::CallError;
use crate::flight::trail::{CostNote, Story};
use crate::telemetry::access::{AccessLog, AccessRecord, AttemptNote};
use crate::telemetry::labels::{AttemptOutcome, RequestOutcome};

/// What `cache` says of it.
const REVALIDATE: &str = "revalidate";

/// A line to be written when the answer has ended.
pub(super) struct Line {
    /// Where to.
    pub(super) log: AccessLog,
    /// Who found the old answer.
    pub(super) cause: RequestId,
}

impl Line {
    /// Tells what became of `call`.
    pub(super) fn write(&self, call: &Call, ended: &Result<End, CallError>) {
        let story = call.context.trail.lock();
        let served = story.served.as_ref();
        let attempts = attempts(&story);
        let stream_end = ended.as_ref().ok().copied().filter(|_| story.stream);
        self.log.access(&AccessRecord {
            cause: Some(self.cause.as_str()),
            caller: story.caller.as_ref().map(CallerId::as_str),
            tenant: story.tenant.as_ref().map(TenantId::as_str),
            route: story.route.as_ref().map(|route| route.id.as_str()),
            operation: story.operation.map(Operation::label),
            attempts: &attempts,
            provider: served.map(|names| names.provider.as_str()),
            model: served.map(|names| names.model.as_str()),
            cache: Some(REVALIDATE),
            duration: call.context.arrived.elapsed(),
            bytes_in: u64::try_from(call.body.len()).unwrap_or(u64::MAX),
            usage: story.usage,
            cost: if let CostNote::Known(cost) = story.cost { Some(cost) } else { None },
            stream_end,
            error_code: ended.as_ref().err().map(CallError::label),
            ..AccessRecord::new(call.context.id.as_str(), outcome(ended))
        });
    }
}

fn attempts(story: &Story) -> Vec<AttemptNote<'_>> {
    let flying = story.flying.iter().chain(&story.beside);
    let given_up = flying.map(|flying| (&flying.upstream, AttemptOutcome::Abandoned));
    let ended = story.attempts.iter().map(|attempt| (&attempt.upstream, attempt.outcome));
    let all = ended.chain(given_up);
    all.map(|(upstream, outcome)| AttemptNote { upstream: upstream.upstream.as_str(), outcome }).collect()
}

/// How it would have ended for a client.
fn outcome(ended: &Result<End, CallError>) -> RequestOutcome {
    match ended {
        Ok(End::Complete) => RequestOutcome::Ok,
        Ok(End::ShuttingDown) => RequestOutcome::ShuttingDown,
        Ok(End::DeadlinePassed) | Err(CallError::DeadlinePassed) => RequestOutcome::Timeout,
        Err(CallError::Throttled { .. } | CallError::OverBudget { .. }) => RequestOutcome::RateLimited,
        Err(CallError::Shed { .. }) => RequestOutcome::Shed,
        Err(CallError::Internal) => RequestOutcome::Error,
        Ok(_) | Err(_) => RequestOutcome::UpstreamError,
    }
}
