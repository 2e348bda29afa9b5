//! Tokens and cost, from what the provider reports. A price we do not know is `unknown`, never zero.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::config::table::Model;
use crate::domain::decision::Decision;
use crate::domain::usage::Usage;
use crate::flight::error::AttemptError;
use crate::flight::reply::Reply;
use crate::flight::trail::{CostNote, Trail};
use crate::layer::always_ready;
use crate::layer::answering::{Touch, Touching};
use crate::telemetry::handles::UpstreamMetrics;
use crate::telemetry::metrics::Metrics;
use crate::upstream::attempt::Attempt;

/// Plain values for [`MeterLayer`].
#[derive(Clone)]
pub struct Params {
    /// The model and its price; `None` on the risk side, where the decision knows its cost.
    pub model: Option<Arc<Model>>,
    /// The upstream's series.
    pub upstream: Arc<UpstreamMetrics>,
    /// Counts what has no price.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Meter`].
#[derive(Clone)]
pub struct MeterLayer(pub Params);

/// Meters one upstream.
#[derive(Clone)]
pub struct Meter<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter { inner, params: Arc::new(self.0.clone()) }
    }
}

impl Params {
    fn settle(&self, trail: &Trail, usage: Usage, cost: CostNote) {
        self.upstream.usage(usage);
        match cost {
            CostNote::Known(cost) => self.upstream.cost(cost),
            CostNote::Unknown | CostNote::Nothing => self.metrics.unpriced.inc(),
        }
        let mut story = trail.lock();
        story.usage = usage;
        story.cost = cost;
    }

    fn price(&self, usage: Usage) -> CostNote {
        let price = self.model.as_ref().and_then(|model| model.price);
        let cost = price.zip(usage.input_tokens).and_then(|(price, input)| price.cost(input, usage.output_tokens?));
        cost.map_or(CostNote::Unknown, CostNote::Known)
    }
}

fn decided(decision: &Decision) -> CostNote {
    decision.verdict.as_ref().and_then(|verdict| verdict.cost).map_or(CostNote::Unknown, CostNote::Known)
}

impl<S> Service<Attempt> for Meter<S>
where
    S: Service<Attempt, Response = Reply, Error = AttemptError>,
{
    type Response = Reply;
    type Error = AttemptError;
    type Future = Touching<S::Future, Bill>;

    always_ready!();

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let bill = Bill { trail: attempt.call.context.trail.clone(), params: Arc::clone(&self.params) };
        Touching::new(self.inner.call(attempt), bill)
    }
}

/// What one attempt will have cost.
pub struct Bill {
    trail: Trail,
    params: Arc<Params>,
}

impl Bill {
    fn settle(&self, usage: Usage) {
        self.params.settle(&self.trail, usage, self.params.price(usage));
    }
}

impl Touch<Result<Reply, AttemptError>> for Bill {
    fn touch(self, answer: &mut Result<Reply, AttemptError>) {
        let Ok(reply) = answer else { return };
        if let Some(decision) = &reply.decision {
            self.params.settle(&self.trail, Usage::default(), decided(decision));
        } else if reply.body.is_stream() {
            let usage = reply.usage.clone();
            reply.body.on_end(move |_| self.settle(usage.get()));
        } else {
            self.settle(reply.usage.get());
        }
    }
}

#[cfg(test)]
mod tests;
