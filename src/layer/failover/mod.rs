//! Retry and failover are one thing: when to start another attempt. One loop, one deadline; [`policy`] decides, purely.
//!
//! Moving on to another upstream is free while that one takes calls; repeating the same one spends its retry budget.
//! Only attempts a provider may have seen count towards the cap: our own refusals cost nothing and move on at once.

pub mod policy;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::Service;

use self::policy::{Next, Situation};
use crate::domain::outcome::{Blame, FailureClass};
use crate::flight::call::Call;
use crate::flight::error::{AttemptError, CallError};
use crate::flight::reply::Reply;
use crate::layer::seam::Seam;
use crate::layer::{BoxFuture, always_ready};
use crate::telemetry::handles::ProviderMetrics;
use crate::telemetry::metrics::Metrics;
use crate::upstream::attempt::Attempt;
use crate::upstream::live::LiveUpstream;

/// No attempt starts with less time than this left.
const LEAST_TIME: Duration = Duration::from_millis(50);

/// One try at one upstream, whatever its stack.
pub type AttemptService = Seam<Attempt, Reply, AttemptError>;

/// A candidate with the stack in front of it.
#[derive(Clone)]
pub struct Lane {
    /// The candidate.
    pub upstream: Arc<LiveUpstream>,
    /// Its attempt stack.
    pub service: AttemptService,
    /// Counts retries its budget refused.
    pub metrics: Arc<ProviderMetrics>,
}

/// Plain values for [`Failover`].
#[derive(Clone)]
pub struct Params {
    /// Candidates in order; never empty.
    pub lanes: Arc<[Lane]>,
    /// Most attempts a provider may see for one call.
    pub max_attempts: u32,
    /// TCP and TLS.
    pub connect: Duration,
    /// What any provider is given to show its first content (LLM) or its answer (risk).
    pub first_content: Duration,
    /// Longest silence within a body.
    pub idle: Duration,
    /// Counts moves.
    pub metrics: Arc<Metrics>,
}

/// The innermost service of a route.
#[derive(Clone)]
pub struct Failover(Arc<Params>);

impl Failover {
    /// A loop over these candidates.
    pub fn new(params: Params) -> Self {
        Self(Arc::new(params))
    }
}

impl Service<Call> for Failover {
    type Response = Reply;
    type Error = CallError;
    type Future = BoxFuture<Result<Reply, CallError>>;

    always_ready!();

    fn call(&mut self, call: Call) -> Self::Future {
        let params = Arc::clone(&self.0);
        Box::pin(async move { Flight { params: &params, call, made: 0, repeated: false, soonest: None }.run().await })
    }
}

/// One call on its way through the candidates.
struct Flight<'p> {
    params: &'p Params,
    call: Call,
    /// Attempts a provider may have seen.
    made: u32,
    /// True once the current candidate was tried again.
    repeated: bool,
    /// The earliest moment any candidate said it may have room.
    soonest: Option<Duration>,
}

impl<'p> Flight<'p> {
    /// The candidates that can be asked for this, in order.
    fn able(&self) -> impl Iterator<Item = &'p Lane> + use<'p, '_> {
        self.params.lanes.iter().filter(|lane| lane.upstream.speaks(&self.call).is_some())
    }

    async fn run(mut self) -> Result<Reply, CallError> {
        let mut lane = self.able().next().ok_or(CallError::Internal)?;
        let mut behind = 0;
        lane.upstream.health.deposit();
        loop {
            let next = self.able().nth(behind + 1);
            let error = match self.attempt(lane, self.able().count() - behind - 1).await? {
                Ok(reply) => {
                    self.call.context.trail.lock().served = Some(Arc::clone(&lane.upstream.names));
                    return Ok(reply);
                }
                Err(error) => error,
            };
            self.note(&error);
            match (self.next(lane, &error, next.is_some()), next) {
                (Next::Move, Some(next)) => {
                    self.params.metrics.failover(
                        &lane.upstream.names.upstream,
                        &next.upstream.names.upstream,
                        error.class,
                    );
                    (lane, behind) = (next, behind + 1);
                    lane.upstream.health.deposit();
                    self.repeated = false;
                }
                (Next::Again(after), _) => {
                    self.repeated = true;
                    tokio::time::sleep(after).await;
                }
                (Next::Stop | Next::Move, _) => return Err(self.give_up(error)),
            }
        }
    }

    /// One attempt; the outer error means there was no time for it.
    async fn attempt(&self, lane: &Lane, others: usize) -> Result<Result<Reply, AttemptError>, CallError> {
        let now = Instant::now();
        let left = self.call.deadline.left(now);
        if left < LEAST_TIME {
            return Err(CallError::DeadlinePassed);
        }
        let attempt = Attempt {
            call: self.call.clone(),
            number: self.made + 1,
            begun: now,
            limit: now + self.share(left, others),
            fair: now + self.params.first_content,
            connect: self.params.connect.min(left),
            idle: self.params.idle,
        };
        Ok(lane.service.ask(attempt).await)
    }

    /// How long this attempt may take until its first content. A whole answer shows nothing until it is done, so it is
    /// given its share of the time left, and at least what a stream would be given for its first content.
    fn share(&self, left: Duration, others: usize) -> Duration {
        let first_content = self.params.first_content;
        if self.call.llm().stream {
            return first_content.min(left);
        }
        let parts = u32::try_from(others + 1).unwrap_or(u32::MAX);
        (left / parts).max(first_content).min(left)
    }

    fn note(&mut self, error: &AttemptError) {
        let seen = error.class.blame() != Blame::Local || error.class == FailureClass::Unauthorised;
        self.made += u32::from(seen);
        self.soonest = match (self.soonest, error.retry_after) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn next(&self, lane: &Lane, error: &AttemptError, others: bool) -> Next {
        let next = policy::next(&Situation {
            safety: self.call.operation.safety(),
            class: error.class,
            sent: error.sent,
            attempts_left: self.params.max_attempts.saturating_sub(self.made),
            time_left: self.call.deadline.left(Instant::now()),
            others,
            repeated: self.repeated,
        });
        if matches!(next, Next::Again(_)) && !lane.upstream.health.withdraw() {
            lane.metrics.retry_budget_exhausted.inc();
            return Next::Stop;
        }
        next
    }

    fn give_up(&self, last: AttemptError) -> CallError {
        match last.class {
            FailureClass::DeadlinePassed => CallError::DeadlinePassed,
            _ => CallError::Exhausted { retry_after: self.soonest.or(last.retry_after), last },
        }
    }
}

#[cfg(test)]
mod tests;
