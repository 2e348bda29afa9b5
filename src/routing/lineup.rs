//! Who of a route's candidates is asked, and who is not, from what the configuration says of them and what is seen of each.
//!
//! The order itself is [`order`](super::order)'s, and a call in flight asks it with what it sees then
//! (`layer::failover::walk`). This is the same question without a call: for tests of a configuration and for `explain`.

use super::order::{self, Ranked, Reason, Rule, Standing, View};
use crate::config::asking::Asking;
use crate::config::table::{Caller, Candidate, Provider};
use crate::domain::money::TokenPrice;
use crate::domain::operation::Operation;

/// Whether a call can be said in the form that carries its operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carriable {
    /// It can.
    Yes,
    /// It cannot, or nobody needs it.
    No,
}

/// A call, as far as its order depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What is wanted.
    pub operation: Operation,
    /// Whether another operation can carry it.
    pub carriable: Carriable,
    /// Bytes of the body.
    pub bytes: usize,
    /// [`order::hash`] of the call's id.
    pub seed: u64,
    /// The call's conversation, on routes that keep them together.
    pub conversation: Option<u64>,
}

/// What is seen of a candidate.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Whether it takes calls.
    pub standing: Standing,
    /// Until its first content, in microseconds.
    pub latency: Option<u64>,
    /// Attempts there that have shown nothing yet.
    pub waiting: u32,
}

/// A candidate in its place.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'t> {
    /// Who.
    pub candidate: &'t Candidate,
    /// What it would be asked as; `None` if it does not have the operation and is never asked.
    pub sent_as: Option<Operation>,
    /// Why it is where it is; meaningless where it is never asked.
    pub reason: Reason,
    /// Whether it takes calls.
    pub standing: Standing,
    /// What the call is taken to cost there, in millionths.
    pub cost: Option<u64>,
    /// Its share where draws are by weight.
    pub weight: u32,
}

impl Seat<'_> {
    /// True if it is asked when its turn comes.
    pub fn is_asked(&self) -> bool {
        self.sent_as.is_some() && self.standing != Standing::Open && self.standing != Standing::Paused
    }
}

/// The operation a call would be sent as: its own, or the one it can be carried by; `None` if it cannot be sent.
pub fn speaks(provider: &Provider, operation: Operation, carriable: Carriable) -> Option<Operation> {
    let offers = |operation: Operation| provider.operations.contains(&operation).then_some(operation);
    let carried = || operation.carried_by().filter(|_| carriable == Carriable::Yes).and_then(offers);
    offers(operation).or_else(carried)
}

/// True if nothing is paid there, which is not the same as a price nobody knows.
pub fn is_free(candidate: &Candidate) -> bool {
    candidate.model.as_ref().is_some_and(|model| model.price == Some(TokenPrice::FREE))
}

/// True if the caller's budgets can count what the candidate costs.
pub fn is_counted(candidate: &Candidate, caller: &Caller) -> bool {
    let price = candidate.model.as_ref().and_then(|model| model.price);
    let counted = |price: TokenPrice| caller.budgets.iter().any(|budget| budget.amount.currency == price.currency());
    is_free(candidate) || price.is_some_and(counted)
}

/// Every candidate: those that are asked in their order, then those that do not take calls, then those that do not have the
/// operation.
pub fn of<'t>(
    candidates: &'t [Candidate],
    asking: &Asking,
    wish: &Wish,
    seen: &dyn Fn(&Candidate) -> Seen,
) -> Vec<Seat<'t>> {
    let currency = candidates.iter().find_map(price).map(TokenPrice::currency);
    let weights = asking.weights.iter().copied().chain(std::iter::repeat(1));
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for (candidate, weight) in candidates.iter().zip(weights) {
        let Seen { standing, latency, waiting } = seen(candidate);
        let sent_as = speaks(&candidate.provider, wish.operation, wish.carriable);
        let cost = order::comparable(price(candidate), currency, wish.bytes);
        let seat = Seat { candidate, sent_as, reason: Reason::Listed, standing, cost, weight };
        let name = order::hash(candidate.upstream.as_str().as_bytes());
        let view = View { name, weight, standing, cost, latency, waiting };
        if sent_as.is_some() { able.push((seat, view)) } else { unable.push(seat) }
    }
    let views: Vec<View> = able.iter().map(|(_, view)| *view).collect();
    let rule = Rule { order: asking.order, seed: wish.seed, conversation: wish.conversation };
    let place = |&Ranked { index, reason }: &Ranked| able.get(index).map(|(seat, _)| Seat { reason, ..*seat });
    order::order(&rule, &views).iter().filter_map(place).chain(unable).collect()
}

fn price(candidate: &Candidate) -> Option<TokenPrice> {
    candidate.model.as_ref()?.price
}
