//! The breaker in front of one upstream: refuses at once while it is open, lets one probe through when it is half-open,
//! and learns from what becomes of every attempt, also from the end of its body.
//!
//! Refusals of our own, the caller's mistakes and its own impatience teach nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::jitter;
use crate::domain::outcome::{Blame, End, FailureClass};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::telemetry::handles::UpstreamMetrics;
use crate::upstream::attempt::Attempt;
use crate::upstream::breaker::{Lesson, Permit};
use crate::upstream::live::Health;

/// An account that is used up will not be filled within seconds.
const QUOTA_COOL_DOWN: Duration = Duration::from_secs(300);
/// A forged answer is not a hiccup.
const FORGERY_COOL_DOWN: Duration = Duration::from_secs(10);

/// Plain values for [`TripLayer`].
#[derive(Clone)]
pub struct Params {
    /// The upstream's health; survives reloads.
    pub health: Arc<Health>,
    /// Shows the state.
    pub metrics: Arc<UpstreamMetrics>,
}

/// Makes [`Trip`].
#[derive(Clone)]
pub struct TripLayer(pub Params);

/// Guards one upstream.
#[derive(Clone)]
pub struct Trip<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for TripLayer {
    type Service = Trip<S>;

    fn layer(&self, inner: S) -> Trip<S> {
        Trip { inner, params: Arc::new(self.0.clone()) }
    }
}

/// A permit that must be answered: dropped unanswered it teaches nothing, but makes room for the next probe.
pub struct Ticket {
    params: Arc<Params>,
    permit: Permit,
    answered: bool,
}

impl Ticket {
    fn learn(&mut self, lesson: Lesson) {
        self.answered = true;
        let now = Instant::now();
        self.params.health.learn(now, self.permit, lesson);
        self.params.metrics.breaker.set(self.params.health.state(now).value());
    }

    fn learn_failure(&mut self, error: &AttemptError) {
        match error.class {
            FailureClass::BadSignature => {
                self.params.health.distrust();
                self.trip(jitter::longer(FORGERY_COOL_DOWN));
            }
            FailureClass::QuotaExhausted => {
                self.trip(error.retry_after.unwrap_or_else(|| jitter::longer(QUOTA_COOL_DOWN)));
            }
            // Told apart from the table: a rate limit pauses the quota group instead (`pace`).
            FailureClass::RateLimited => self.learn(Lesson::Nothing),
            // It is up, so the breaker stays closed; who refuses us each time is asked after the others.
            FailureClass::Unauthorised => {
                self.learn(Lesson::Nothing);
                self.params.health.refused_credential(Instant::now());
            }
            class => self.learn(match class.blame() {
                Blame::Provider => Lesson::Failure,
                Blame::Caller => Lesson::Success,
                Blame::Local | Blame::Nobody => Lesson::Nothing,
            }),
        }
    }

    fn trip(&mut self, least: Duration) {
        self.answered = true;
        let now = Instant::now();
        self.params.health.trip(now, least);
        self.params.metrics.breaker.set(self.params.health.state(now).value());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.learn(Lesson::Nothing);
        }
    }
}

impl<S> Service<Attempt> for Trip<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Gated<Touching<S::Future, Ticket>, AttemptError>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let permit = self.params.health.permit(attempt.begun);
        if let Permit::Refused(wait) = permit {
            let refused = AttemptError::local(FailureClass::Open, Some(wait), "the breaker is open");
            // A door that a forgery closed is no outage: whoever can forge must not gain by what an outage allows.
            let cause = self.params.health.is_distrusted().then_some(FailureClass::BadSignature);
            return Gated::shut(AttemptError { cause, ..refused });
        }
        let ticket = Ticket { params: Arc::clone(&self.params), permit, answered: false };
        Gated::open(Touching::new(self.inner.call(attempt), ticket))
    }
}

impl Touch<Result<Reply, AttemptError>> for Ticket {
    fn touch(mut self, answer: &mut Result<Reply, AttemptError>) {
        match answer {
            Ok(reply) => {
                // One that was in flight before the forgery proves nothing about what came after it.
                if self.permit == Permit::Probe {
                    self.params.health.trust();
                }
                self.learn(Lesson::Success);
                if reply.body.is_stream() {
                    reply.body.on_end(move |ended| {
                        if let End::UpstreamFailed(_) = ended.end {
                            self.learn(Lesson::Failure);
                        }
                    });
                }
            }
            Err(error) => self.learn_failure(error),
        }
    }
}

#[cfg(test)]
mod tests;
