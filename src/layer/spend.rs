//! A merchant's money: a risk call's price is estimated before anybody is asked, and where a budget has no room for it,
//! features are given up, in the order of the route's ladder, before the score is.
//!
//! At most one attempt of a decision can have reached a provider, so the estimate of one attempt covers the call: it is held
//! back here and settled by [`meter`](super::meter), which sees what became of each attempt. What is left out is left out
//! of the request itself, and the verdict says so. Nothing here knows callers' budgets; those are
//! [`tally`](super::tally)'s, and no payment is refused over them.

use std::sync::Arc;

use tower::{Layer, Service};

use crate::config::budgets::{RiskBudgets, WhenSpent};
use crate::config::prices::RiskPrice;
use crate::config::table::RiskRoute;
use crate::domain::decision::FallbackReason;
use crate::domain::money::Cost;
use crate::flight::call::{Call, Facts, RiskFacts};
use crate::flight::error::CallError;
use crate::flight::merchants::{Account, MerchantClaim, Merchants, Room, Spent};
use crate::flight::reply::Reply;
use crate::layer::always_ready;
use crate::layer::answering::{Gated, Touch, Touching};
use crate::telemetry::labels::BudgetOutcome;
use crate::telemetry::metrics::Metrics;
use crate::wire::risk::Assessment;

/// Plain values for [`SpendLayer`].
#[derive(Clone)]
pub struct Params {
    /// Its budgets, and who may be asked at what price.
    pub route: Arc<RiskRoute>,
    /// What merchants have spent; `None` if the route has no budget.
    pub merchants: Option<Arc<Merchants>>,
    /// Counts what budgets did.
    pub metrics: Arc<Metrics>,
}

/// Makes [`Spend`].
#[derive(Clone)]
pub struct SpendLayer(pub Params);

/// Holds merchants to their budgets.
#[derive(Clone)]
pub struct Spend<S> {
    inner: S,
    params: Arc<Params>,
}

impl<S> Layer<S> for SpendLayer {
    type Service = Spend<S>;

    fn layer(&self, inner: S) -> Spend<S> {
        Spend { inner, params: Arc::new(self.0.clone()) }
    }
}

impl<S> Service<Call> for Spend<S>
where
    S: Service<Call, Response = Reply, Error = CallError>,
{
    type Response = Reply;
    type Error = CallError;
    type Future = Gated<Touching<S::Future, Settling>, CallError>;

    always_ready!();

    fn call(&mut self, mut call: Call) -> Self::Future {
        match self.params.open(&mut call) {
            Err(error) => Gated::shut(error),
            Ok(claim) => Gated::open(Touching::new(self.inner.call(call), Settling(claim))),
        }
    }
}

impl Params {
    /// Holds back what the call may cost, its features reduced to what there is room for.
    fn open(&self, call: &mut Call) -> Result<Option<Arc<MerchantClaim>>, CallError> {
        let Some((merchants, budgets)) = self.merchants.as_ref().zip(self.route.budgets.as_deref()) else {
            return Ok(None);
        };
        let Some(facts) = call.risk().cloned() else { return Err(CallError::Internal) };
        let merchant = &facts.assessment.merchant;
        let tenant = &call.context.caller.tenant;
        let accounts = Account::of(budgets, tenant, &merchant.id, merchant.category.as_deref());
        if accounts.is_empty() {
            return Ok(None);
        }
        let mut ladder = Ladder::new(self, budgets, &facts.assessment);
        let claim = self.climb_down(&mut ladder, merchants, &accounts)?;
        call.context.trail.lock().merchant = Some(Arc::clone(&claim));
        let Ladder { features, dropped, .. } = ladder;
        if !dropped.is_empty() {
            for feature in &dropped {
                self.metrics.feature_dropped(feature);
            }
            let mut reduced = RiskFacts::clone(&facts);
            (reduced.assessment.features, reduced.features_dropped) = (features, dropped);
            call.facts = Facts::Risk(Arc::new(reduced));
        }
        Ok(Some(claim))
    }

    /// Gives up one feature after another until the rest fits, and says at the bottom what the budgets want then.
    fn climb_down(
        &self,
        ladder: &mut Ladder<'_>,
        merchants: &Arc<Merchants>,
        accounts: &[Account],
    ) -> Result<Arc<MerchantClaim>, CallError> {
        let refused = || {
            self.metrics.merchant_call(BudgetOutcome::Refused);
            CallError::NoDecision(FallbackReason::Budget)
        };
        loop {
            let next = ladder.next();
            let room = if next.is_some() { Room::WithExtras } else { Room::All };
            // Every candidate has a price, or the configuration would have been refused.
            let cost = ladder.estimate().ok_or_else(refused)?;
            match (merchants.claim(accounts, cost, room), next) {
                (Ok(claim), _) => {
                    let outcome = if ladder.dropped.is_empty() { BudgetOutcome::Full } else { BudgetOutcome::Reduced };
                    self.metrics.merchant_call(outcome);
                    return Ok(claim);
                }
                (Err(_), Some(place)) => ladder.give_up(place),
                (Err(Spent(WhenSpent::FallBack)), None) => return Err(refused()),
                (Err(Spent(WhenSpent::Score)), None) => {
                    self.metrics.merchant_call(BudgetOutcome::Overdrawn);
                    return merchants.claim(accounts, cost, Room::Overdraw).map_err(|_| refused());
                }
            }
        }
    }

    fn prices(&self) -> impl Iterator<Item = &RiskPrice> {
        self.route.candidates.iter().filter_map(|candidate| candidate.provider.price.as_ref())
    }
}

/// A call's features on their way down.
struct Ladder<'p> {
    params: &'p Params,
    budgets: &'p RiskBudgets,
    assessment: &'p Assessment,
    features: Vec<String>,
    dropped: Vec<String>,
}

impl<'p> Ladder<'p> {
    fn new(params: &'p Params, budgets: &'p RiskBudgets, assessment: &'p Assessment) -> Self {
        Self { params, budgets, assessment, features: assessment.features.clone(), dropped: Vec::new() }
    }

    /// What the dearest candidate would take.
    fn estimate(&self) -> Option<Cost> {
        let prices = self.params.prices().map(|price| price.of(self.assessment, &self.features));
        prices.reduce(|a, b| Some(if a?.micro >= b?.micro { a? } else { b? })).flatten()
    }

    /// The next feature to give up: the first of the ladder that is asked for and costs something.
    fn next(&self) -> Option<usize> {
        let place = |rung: &String| self.features.iter().position(|feature| feature == rung);
        self.budgets.ladder().iter().filter_map(place).find(|place| self.saves(*place))
    }

    fn saves(&self, place: usize) -> bool {
        let mut less = self.features.clone();
        less.remove(place);
        let cheaper = |price: &RiskPrice| {
            let cost = |features| price.of(self.assessment, features).map(|cost| cost.micro);
            cost(&less) < cost(&self.features)
        };
        self.params.prices().any(cheaper)
    }

    fn give_up(&mut self, place: usize) {
        self.dropped.push(self.features.remove(place));
    }
}

/// Closes the claim when the call is over, or when nobody waits for it any more.
pub struct Settling(Option<Arc<MerchantClaim>>);

impl Drop for Settling {
    fn drop(&mut self) {
        if let Some(claim) = &self.0 {
            claim.close();
        }
    }
}

impl Touch<Result<Reply, CallError>> for Settling {
    /// All attempts have been paid for by now: a decision is never a stream.
    fn touch(self, _: &mut Result<Reply, CallError>) {}
}

#[cfg(test)]
mod tests;
