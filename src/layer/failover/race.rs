//! Hedging: the same loop's next attempt, started by a timer instead of by a failure.
//!
//! The second candidate is asked when the first has shown nothing for as long as most of the route's calls take; who shows
//! content first serves, and the other is dropped at once and booked. A hedge counts as an attempt, is paid from the
//! route's allowance, goes only to a candidate that is well, and never joins a probe: a breaker that tries whether its
//! upstream works again is left to find out.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep};

use super::policy::{self, LEAST_TIME};
use super::tempo::Tempo;
use super::walk::estimate;
use super::{Asked, Attempting, Flight, Lane, was_seen};
use crate::config::asking;
use crate::domain::operation::Safety;
use crate::flight::error::{AttemptError, CallError};
use crate::flight::gate::Gate;
use crate::telemetry::handles::HedgeMetrics;
use crate::telemetry::labels::{ExtraCost, HedgeOutcome};
use crate::upstream::latency::Form;

/// What a route that hedges knows.
#[derive(Clone)]
pub struct Hedge {
    /// What it may do.
    pub policy: asking::Hedge,
    /// Its memory; kept by route.
    pub tempo: Arc<Tempo>,
    /// Counts what became of hedges.
    pub metrics: Arc<HedgeMetrics>,
    /// Knows when there is nothing to spare for them.
    pub gate: Arc<Gate>,
}

/// The second of two attempts.
struct Rival<'p> {
    lane: &'p Lane,
    attempting: Attempting,
    cost: Option<i64>,
}

impl<'p> Flight<'p> {
    /// One attempt at `lane`, and one at another candidate if it takes too long.
    ///
    /// # Errors
    /// [`CallError::DeadlinePassed`] if there is no time for any.
    pub(super) async fn race(&mut self, lane: &'p Lane, hedge: &'p Hedge) -> Result<Asked<'p>, CallError> {
        let probing = !lane.upstream.health.is_unmarked();
        let lap = Lap { hedge, form: Form::of(self.call.llm().stream), started: Instant::now() };
        let first = self.begin(lane, 1)?;
        let patience = hedge
            .tempo
            .patience(&hedge.policy, lap.form)
            .filter(|_| !probing && !hedge.gate.is_lean() && self.may_hedge());
        let Some(patience) = patience else { return Ok(lap.alone(lane, first).await) };
        Ok(match select(first, pin!(sleep(patience))).await {
            Either::Left((result, _)) => lap.noted(Asked { lane, result }),
            Either::Right(((), first)) => match self.rival(hedge) {
                Some(rival) => self.both((lane, first), rival, &lap).await,
                None => lap.alone(lane, first).await,
            },
        })
    }

    /// True if a second attempt at the same time would do no harm and is allowed.
    fn may_hedge(&self) -> bool {
        let harmless = self.call.operation.safety() != Safety::AtMostOnce && !self.call.llm().anchored;
        let harmless = harmless && self.call.is_kept();
        harmless && self.made + 2 <= self.params.max_attempts
    }

    fn rival(&mut self, hedge: &Hedge) -> Option<Rival<'p>> {
        if self.call.deadline.left(Instant::now()) < LEAST_TIME {
            return None;
        }
        let lane = self.walk.peek_well(&self.call)?;
        let cost = self.micros(lane);
        if !hedge.tempo.withdraw(&hedge.policy, cost) {
            hedge.metrics.count(HedgeOutcome::Capped);
            return None;
        }
        self.walk.next(&self.call);
        lane.upstream.health.deposit();
        let attempting = self.begin(lane, 2).ok()?;
        Some(Rival { lane, attempting, cost })
    }

    /// Waits for whoever shows content first.
    async fn both(&mut self, first: (&'p Lane, Attempting), rival: Rival<'p>, lap: &Lap<'p>) -> Asked<'p> {
        let (lane, attempting) = first;
        let (second, metrics) = (rival.lane, &lap.hedge.metrics);
        match select(attempting, rival.attempting).await {
            Either::Left((Ok(reply), loser)) => {
                self.drop_loser(second, loser);
                metrics.count(HedgeOutcome::Lost);
                lap.noted(Asked { lane, result: Ok(reply) })
            }
            Either::Right((Ok(reply), loser)) => {
                self.drop_loser(lane, loser);
                metrics.count(HedgeOutcome::Won);
                // The first one would have taken longer still.
                lap.noted(Asked { lane: second, result: Ok(reply) })
            }
            Either::Left((Err(error), rest)) => {
                self.moved(lane, second, error.class);
                let asked = self.after_one((lane, error), (second, rest)).await;
                metrics.count(if asked.result.is_ok() { HedgeOutcome::Won } else { HedgeOutcome::Failed });
                asked
            }
            Either::Right((Err(error), rest)) if !was_seen(&error) => {
                lap.hedge.tempo.refund(&lap.hedge.policy, rival.cost);
                metrics.count(HedgeOutcome::Refused);
                self.note(error);
                lap.alone(lane, rest).await
            }
            Either::Right((Err(error), rest)) => {
                let asked = self.after_one((second, error), (lane, rest)).await;
                metrics.count(if asked.result.is_ok() { HedgeOutcome::Lost } else { HedgeOutcome::Failed });
                asked
            }
        }
    }

    /// One has failed: the other one decides, unless the failure is about the request itself.
    async fn after_one(&mut self, failed: (&'p Lane, AttemptError), rest: (&'p Lane, Attempting)) -> Asked<'p> {
        let ((loser, error), (lane, attempting)) = (failed, rest);
        if policy::is_final(error.class, self.lists(&error)) {
            self.drop_loser(lane, attempting);
            return Asked { lane: loser, result: Err(error) };
        }
        self.note(error);
        Asked { lane, result: attempting.await }
    }

    /// Ends an attempt that nobody waits for any more. What it may have cost is told apart; where the caller has a budget,
    /// the meter of the attempt pays that too as it is dropped.
    fn drop_loser(&self, lane: &Lane, attempting: Attempting) {
        let names = &lane.upstream.names;
        let metered = {
            let mut story = self.call.context.trail.lock();
            if let Some(flying) = story.flying_to(names) {
                flying.outpaced = true;
            }
            story.claim.is_some()
        };
        drop(attempting);
        match estimate(lane, &self.call) {
            Some(cost) => self.params.metrics.extra_cost(&names.provider, &names.model, ExtraCost::Hedge, cost),
            None if !metered => self.params.metrics.unpriced.inc(),
            None => {}
        }
    }

    /// What the call is taken to cost there.
    pub(super) fn micros(&self, lane: &Lane) -> Option<i64> {
        estimate(lane, &self.call).map(|cost| cost.micro)
    }
}

/// One stretch of waiting.
struct Lap<'p> {
    hedge: &'p Hedge,
    form: Form,
    started: Instant,
}

impl Lap<'_> {
    async fn alone<'l>(&self, lane: &'l Lane, attempting: Attempting) -> Asked<'l> {
        self.noted(Asked { lane, result: attempting.await })
    }

    /// Remembers how long the answer took.
    fn noted<'l>(&self, asked: Asked<'l>) -> Asked<'l> {
        if asked.result.is_ok() {
            self.hedge.tempo.took(self.form, self.started.elapsed());
        }
        asked
    }
}
