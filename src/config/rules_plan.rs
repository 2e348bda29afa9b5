//! `[[model.NAME.rule]]`: from what was written to routes that stand in for their own.
//!
//! A rule changes what it names and has the rest from its route. What of the route cannot hold with the change (a second
//! candidate's hedge where there is one candidate) gives way to it without a word: it was written for other calls.

use std::sync::Arc;

use super::asking::{Asking, Hedge, HedgeAfter, Order};
use super::catalog::{Catalog, Pick, picks};
use super::checks;
use super::error::Code;
use super::expr::{About, Condition, Known};
use super::llm::{self, Beside, PlannedShadow};
use super::policy_plan::condition;
use super::raw::llm::{RawCandidate, RawRoute, RawTimeouts};
use super::raw::policy::RawCondition;
use super::raw::rule::RawRule;
use super::report::{Field, Report, accept};
use super::table::CachePolicy;
use crate::domain::deadline::Timeouts;
use crate::domain::overload::Class;

/// Most rules of a route: all of them may have to be asked for one call.
const MOST_RULES: usize = 20;

/// An LLM route without its providers.
pub(super) struct PlannedRoute {
    pub(super) picks: Vec<Pick>,
    pub(super) timeouts: Timeouts,
    pub(super) max_attempts: u32,
    pub(super) class: Class,
    pub(super) cache: Option<CachePolicy>,
    pub(super) asking: Asking,
    pub(super) shadow: Option<PlannedShadow>,
    pub(super) rules: Vec<PlannedRule>,
}

impl PlannedRoute {
    /// Every provider it leads to.
    pub(super) fn all_picks(&self) -> impl Iterator<Item = &Pick> {
        let shadow = self.shadow.iter().map(|shadow| &shadow.pick);
        self.picks.iter().chain(shadow).chain(self.rules.iter().flat_map(|rule| &rule.route.picks))
    }
}

/// A rule without its providers.
pub(super) struct PlannedRule {
    pub(super) name: Arc<str>,
    pub(super) when: Condition,
    pub(super) route: PlannedRoute,
}

/// Checks the rules of `raw`, whose own settings are `base`. Reports what is wrong; what could not be read is left out.
pub(super) fn plan(raw: &RawRoute, base: &PlannedRoute, catalog: &Catalog, report: &Report<'_>) -> Vec<PlannedRule> {
    if raw.rules.is_empty() {
        return Vec::new();
    }
    checks::unique(raw.rules.iter().filter_map(|rule| rule.name.as_ref()), "the rule's name", report);
    if let Some(over) = raw.rules.get(MOST_RULES) {
        report.add(over.at.mistake(Code::BadValue, format!("more than {MOST_RULES} rules")));
    }
    let one = |(number, rule): (usize, &RawRule)| {
        let known = Known { about: About::Call, lists: &[], counters: &[] };
        let when = rule.when.as_ref().map(|RawCondition(text)| condition(text, known, report));
        let route = variant(rule, (raw, base), catalog, report);
        let name = rule.name.as_ref().map_or_else(|| format!("rule {}", number + 1), |name| name.value.clone());
        Some(PlannedRule { name: name.into(), when: when??, route })
    };
    raw.rules.iter().take(MOST_RULES).enumerate().filter_map(one).collect()
}

/// The route as it is for calls of the rule.
fn variant(
    rule: &RawRule,
    (raw, base): (&RawRoute, &PlannedRoute),
    catalog: &Catalog,
    report: &Report<'_>,
) -> PlannedRoute {
    let picked = |candidate: &Field<String>| catalog.llm_pick(candidate, report);
    let picks = match &rule.candidates {
        Some(candidates) => picks(Some(&llm::names(candidates)), picked, report),
        None => base.picks.clone(),
    };
    let timeouts = rule.timeouts.as_ref().map_or(base.timeouts, |written| timeouts(written, base.timeouts, report));
    let max_attempts = rule.max_attempts.as_ref().map_or(base.max_attempts, |attempts| attempts.value);
    let beside = Beside { picks: &picks, timeouts: &timeouts, max_attempts, catalog };
    let asking = asking(rule, (raw, base), &beside, report);
    PlannedRoute {
        asking,
        shadow: base.shadow.clone(),
        class: base.class,
        cache: base.cache,
        rules: Vec::new(),
        picks,
        timeouts,
        max_attempts,
    }
}

/// Written limits must fit each other; the route's give way.
fn timeouts(written: &RawTimeouts, base: Timeouts, report: &Report<'_>) -> Timeouts {
    let total = written.total.as_ref().map_or(base.total, |field| field.value);
    let within = |field: &Option<Field<_>>, inherited: std::time::Duration| match field {
        Some(field) => {
            let _ = accept(checks::not_longer(field, total, "timeouts.total"), report);
            field.value
        }
        None => inherited.min(total),
    };
    Timeouts {
        total,
        connect: within(&written.connect, base.connect),
        first_content: within(&written.first_content, base.first_content),
        idle: written.idle.as_ref().map_or(base.idle.min(total), |field| field.value),
        heartbeat: written.heartbeat.as_ref().map_or(base.heartbeat, |field| field.value),
    }
}

fn asking(rule: &RawRule, (raw, base): (&RawRoute, &PlannedRoute), beside: &Beside<'_>, report: &Report<'_>) -> Asking {
    let order = rule.order.as_ref().map_or(base.asking.order, |order| order.value);
    let drawn = matches!(order, Order::Weighted | Order::Fastest);
    let alone = beside.picks.len() == 1;
    let own = if rule.candidates.is_none() && rule.order.is_none() {
        base.asking.clone()
    } else {
        let candidates = rule.candidates.clone().or_else(|| inherited(raw, order));
        let order = rule.order.clone().or_else(|| raw.order.clone());
        llm::asking(&RawRoute { candidates, order, ..RawRoute::named(raw.name.clone()) }, beside, report)
    };
    Asking {
        sticky: base.asking.sticky.filter(|_| drawn),
        fallback_on: if alone { super::asking::FallbackOn::default() } else { base.asking.fallback_on },
        hedge: base.asking.hedge.filter(|hedge| !alone && beside.max_attempts > 1 && fits(*hedge, beside.timeouts)),
        ..own
    }
}

/// The route's candidates, without weights where nobody looks at them.
fn inherited(raw: &RawRoute, order: Order) -> Option<Field<Vec<RawCandidate>>> {
    let mut candidates = raw.candidates.clone()?;
    if order != Order::Weighted {
        candidates.value.iter_mut().for_each(|candidate| candidate.weight = None);
    }
    Some(candidates)
}

fn fits(hedge: Hedge, timeouts: &Timeouts) -> bool {
    !matches!(hedge.after, HedgeAfter::Fixed(after) if after > timeouts.first_content)
}
