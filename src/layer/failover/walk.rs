//! The candidates of one call, in the order they are to be asked.
//!
//! A call whose route goes by the list, and whose first candidate is well, is begun without looking at the others: no
//! clock, no sorting, no allocation. The order of the rest is made when it is needed, from what is true then.

use tokio::time::Instant;

use super::Lane;
use crate::config::asking::Order;
use crate::domain::money::{Cost, TokenPrice};
use crate::flight::call::Call;
use crate::routing::order::{self, Rule, Standing, View};
use crate::upstream::latency::Form;

/// Who was asked and who is left.
pub(super) struct Walk<'p> {
    lanes: &'p [Lane],
    order: Order,
    /// The one that was begun with, as long as nobody else had to be looked at.
    begun: Option<usize>,
    /// Those not asked yet, the next one last.
    left: Option<Vec<Place<'p>>>,
}

struct Place<'p> {
    lane: &'p Lane,
    standing: Standing,
}

impl<'p> Walk<'p> {
    pub(super) fn new(lanes: &'p [Lane], order: Order) -> Self {
        Self { lanes, order, begun: None, left: None }
    }

    /// Whom to begin with; `None` if nobody has the operation.
    pub(super) fn first(&mut self, call: &Call) -> Option<&'p Lane> {
        if self.order == Order::AsListed {
            let (index, lane) = self.able(call).next()?;
            if lane.upstream.health.is_unmarked() {
                self.begun = Some(index);
                return Some(lane);
            }
        }
        self.next(call)
    }

    /// Whom to go on with.
    pub(super) fn next(&mut self, call: &Call) -> Option<&'p Lane> {
        self.rank(call).pop().map(|place| place.lane)
    }

    /// Whom [`Walk::next`] would give, if nothing is known against that one: nobody else is asked without need, and no
    /// breaker's probe is spent on it.
    pub(super) fn peek_well(&mut self, call: &Call) -> Option<&'p Lane> {
        let place = self.rank(call).last().filter(|place| place.standing == Standing::Well)?;
        Some(place.lane).filter(|lane| lane.upstream.health.is_unmarked())
    }

    /// How many are left.
    pub(super) fn left(&self, call: &Call) -> usize {
        match &self.left {
            Some(left) => left.len(),
            None => self.able(call).count() - usize::from(self.begun.is_some()),
        }
    }

    /// How many of them are worth waiting for.
    pub(super) fn left_well(&self, call: &Call) -> usize {
        match &self.left {
            Some(left) => left.iter().filter(|place| place.standing == Standing::Well).count(),
            None => self.left(call),
        }
    }

    /// True if anybody but the first was looked at.
    #[cfg(test)]
    pub(super) fn is_ranked(&self) -> bool {
        self.left.is_some()
    }

    /// Those that have the operation, as listed.
    fn able<'c>(&self, call: &'c Call) -> impl Iterator<Item = (usize, &'p Lane)> + use<'p, 'c> {
        let lanes = self.lanes;
        lanes.iter().enumerate().filter(|(_, lane)| lane.upstream.speaks(call).is_some())
    }

    fn rank(&mut self, call: &Call) -> &mut Vec<Place<'p>> {
        if self.left.is_none() {
            self.left = Some(self.ranked(call));
        }
        self.left.get_or_insert_default()
    }

    fn ranked(&self, call: &Call) -> Vec<Place<'p>> {
        let now = Instant::now();
        let able: Vec<_> = self.able(call).filter(|(index, _)| Some(*index) != self.begun).collect();
        let currency = self.lanes.iter().find_map(price).map(TokenPrice::currency);
        let view = |&(_, lane): &(usize, &Lane)| View {
            cost: order::comparable(price(lane), currency, call.body.len()),
            ..self.seen(lane, call, now)
        };
        let views: Vec<View> = able.iter().map(view).collect();
        let seed = order::hash(call.context.id.as_str().as_bytes());
        let rule = Rule { order: self.order, seed, conversation: call.context.conversation };
        let place = |ranked: &order::Ranked| {
            let (_, lane) = able.get(ranked.index)?;
            Some(Place { lane, standing: views.get(ranked.index)?.standing })
        };
        order::order(&rule, &views).iter().rev().filter_map(place).collect()
    }

    fn seen(&self, lane: &Lane, call: &Call, now: Instant) -> View {
        let upstream = &lane.upstream;
        let form = Form::of(call.llm().stream);
        let latency = upstream.latency.as_ref().filter(|_| self.order == Order::Fastest);
        let expected = latency.and_then(|latency| latency.expected(now, form));
        View {
            name: upstream.drawn_as,
            weight: lane.weight,
            standing: standing(lane, now),
            cost: None,
            latency: expected.map(|expected| u64::try_from(expected.as_micros()).unwrap_or(u64::MAX)),
            waiting: latency.map_or(0, |latency| latency.waiting(form)),
        }
    }
}

fn standing(lane: &Lane, now: Instant) -> Standing {
    let health = &lane.upstream.health;
    let standing = if health.is_unmarked() { Standing::Well } else { health.standing(now) };
    let paused = standing != Standing::Open && lane.upstream.provider.pause.left(now).is_some();
    if paused { Standing::Paused } else { standing }
}

/// What this call is taken to cost there, if the price is known.
pub(super) fn estimate(lane: &Lane, call: &Call) -> Option<Cost> {
    order::guess(price(lane)?, call.body.len())
}

fn price(lane: &Lane) -> Option<TokenPrice> {
    lane.upstream.candidate.model.as_ref()?.price
}
