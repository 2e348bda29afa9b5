//! Metrics and trail of one attempt, whatever becomes of it, also when nobody waits for it any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service};

use crate::domain::outcome::{Blame, End, FailureClass};
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::flight::trail::{AttemptNote, Flying, Trail, UpstreamNames};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::handles::UpstreamMetrics;
use crate::telemetry::labels::AttemptOutcome;
use crate::upstream::attempt::Attempt;

/// Plain values for [`ObserveLayer`].
#[derive(Clone)]
pub struct Params {
    /// Who is tried.
    pub names: Arc<UpstreamNames>,
    /// Its series.
    pub metrics: Arc<UpstreamMetrics>,
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

/// One attempt being watched; dropped unfinished, it was abandoned.
pub struct Watch {
    params: Arc<Params>,
    trail: Trail,
    started: Instant,
    seen: bool,
}

impl Watch {
    /// How long it took until the answer showed.
    fn note(&mut self, failure: Option<FailureClass>) -> Duration {
        self.seen = true;
        let duration = self.started.elapsed();
        let upstream = Arc::clone(&self.params.names);
        {
            let mut story = self.trail.lock();
            story.flying = None;
            story.attempts.push(AttemptNote { upstream, failure, duration });
        }
        match failure {
            None => self.params.metrics.observe_first_content(duration),
            // A refusal of our own was never sent, so it lasted no time that would say something of the provider.
            Some(class) if is_ours(class) => self.params.metrics.attempt(class),
            Some(class) => self.count(AttemptOutcome::Failed(class), duration),
        }
        duration
    }

    fn count(&self, outcome: AttemptOutcome, duration: Duration) {
        self.params.metrics.attempt(outcome);
        self.params.metrics.observe_duration(duration);
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
}

fn is_ours(class: FailureClass) -> bool {
    class.blame() == Blame::Local && class != FailureClass::Unauthorised
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.seen {
            self.count(AttemptOutcome::Abandoned, self.started.elapsed());
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
        trail.lock().flying = Some(Flying { upstream: Arc::clone(&self.params.names), since: started });
        let watch = Watch { params: Arc::clone(&self.params), trail, started, seen: false };
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
            Err(error) => drop(self.note(Some(error.class))),
        }
    }
}

#[cfg(test)]
mod tests;
