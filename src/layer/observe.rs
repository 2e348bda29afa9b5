//! Metrics and trail of one attempt, whatever becomes of it, also when nobody waits for it any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::operation::Operation;
use crate::domain::outcome::{Blame, End, FailureClass};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::flight::trail::{Flying, Trail, UpstreamNames};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::handles::UpstreamMetrics;
use crate::telemetry::labels::AttemptOutcome;
use crate::upstream::attempt::Attempt;
use crate::upstream::latency::{Form, Latency, Waiting};

/// Plain values for [`ObserveLayer`].
#[derive(Clone)]
pub struct Params {
    /// Who is tried.
    pub names: Arc<UpstreamNames>,
    /// Its series.
    pub metrics: Arc<UpstreamMetrics>,
    /// Learns how fast it is, where some route asks.
    pub latency: Option<Arc<Latency>>,
}

/// Makes [`Observe`].
#[derive(Clone)]
pub struct ObserveLayer(pub Params);

/// Watches attempts.
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, params: Arc::new(self.0.clone()) }
    }
}

/// One attempt being watched; dropped unfinished, it was abandoned or outpaced.
pub struct Watch {
    params: Arc<Params>,
    trail: Trail,
    started: Instant,
    operation: Operation,
    /// Absent where nobody asks how fast the upstream is, and once it has shown something.
    waiting: Option<Waiting>,
    seen: bool,
}

impl Watch {
    /// How long it took until the answer showed.
    fn note(&mut self, failure: Option<FailureClass>) -> Duration {
        self.seen = true;
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.started);
        let outcome = failure.map_or(AttemptOutcome::Ok, AttemptOutcome::Failed);
        self.trail.lock().land(&self.params.names, outcome, now);
        if let Some(waiting) = self.waiting.take() {
            measure(waiting, failure, now, duration);
        }
        match failure {
            None => self.params.metrics.observe_first_content(self.operation, duration),
            // A refusal of our own was never sent, so it lasted no time that would say something of the provider.
            Some(class) if is_ours(class) => self.params.metrics.attempt(class),
            Some(class) => self.count(AttemptOutcome::Failed(class), duration),
        }
        duration
    }

    fn count(&self, outcome: AttemptOutcome, duration: Duration) {
        self.params.metrics.attempt(outcome);
        self.params.metrics.observe_duration(self.operation, duration);
    }

    fn finish(&self, end: End) {
        let outcome = match end {
            End::Complete => AttemptOutcome::Ok,
            End::UpstreamFailed(class) => AttemptOutcome::Failed(class),
            End::DeadlinePassed => AttemptOutcome::Failed(FailureClass::DeadlinePassed),
            End::ClientGone | End::FellBehind | End::ShuttingDown => AttemptOutcome::Abandoned,
        };
        self.count(outcome, self.started.elapsed());
    }

    /// Nobody waits for it any more: because of another attempt, which the trail knows, or because the client left.
    fn give_up(&mut self) {
        let now = Instant::now();
        let outpaced = {
            let mut story = self.trail.lock();
            let outpaced = story.flying_to(&self.params.names).is_some_and(|flying| flying.outpaced);
            if outpaced {
                story.land(&self.params.names, AttemptOutcome::Outpaced, now);
            }
            outpaced
        };
        let duration = now.saturating_duration_since(self.started);
        if let Some(waiting) = self.waiting.take() {
            waiting.given_up(now, duration);
        }
        self.count(if outpaced { AttemptOutcome::Outpaced } else { AttemptOutcome::Abandoned }, duration);
    }
}

fn measure(waiting: Waiting, failure: Option<FailureClass>, now: Instant, duration: Duration) {
    match failure {
        None => waiting.answered(now, duration),
        Some(class) if class.blame() == Blame::Provider || class == FailureClass::Unauthorised => {
            waiting.failed(now, duration);
        }
        Some(FailureClass::DeadlinePassed) => waiting.given_up(now, duration),
        // The caller's fault or our own refusal: it says nothing of its speed.
        Some(_) => drop(waiting),
    }
}

fn is_ours(class: FailureClass) -> bool {
    class.blame() == Blame::Local && class != FailureClass::Unauthorised
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.seen {
            self.give_up();
        }
    }
}

impl<S> Service<Attempt> for Observe<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Touching<S::Future, Watch>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let trail = attempt.call.context.trail.clone();
        let started = attempt.begun;
        trail.lock().take_off(Flying::new(Arc::clone(&self.params.names), started));
        let latency = self.params.latency.as_ref();
        let waiting = latency.map(|latency| latency.begin(Form::of(attempt.call.llm().stream)));
        let operation = attempt.call.operation;
        let watch = Watch { params: Arc::clone(&self.params), trail, started, operation, waiting, seen: false };
        Touching::new(self.inner.call(attempt), watch)
    }
}

impl Touch<Result<Reply, AttemptError>> for Watch {
    fn touch(mut self, answer: &mut Result<Reply, AttemptError>) {
        match answer {
            Ok(reply) => {
                let duration = self.note(None);
                if reply.body.is_stream() {
                    reply.body.on_end(move |ended| self.finish(ended.end));
                } else {
                    // A whole answer is here: what becomes of it on the way to the client is not the provider's.
                    self.count(AttemptOutcome::Ok, duration);
                }
            }
            Err(error) => {
                if error.status.is_some() {
                    self.trail.lock().heard_status(&self.params.names, error.status);
                }
                self.note(Some(error.class));
            }
        }
    }
}

#[cfg(test)]
mod tests;
