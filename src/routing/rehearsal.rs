//! Runs the `[[test]]` cases of a configuration: what they ask is answered by the functions that lead real calls.
//!
//! No clock, no network, no random number: a case says the time, and where candidates are drawn anew for every call, several
//! draws must all come to what it expects.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::lineup::{self, Carriable, Seat, Seen, Wish};
use super::order::{self, Standing};
use super::policy::{self, Input};
use super::rule;
use super::select::{self, NoRoute};
use crate::config::asking::Order;
use crate::config::cases::{self, Asked, Case, Expectation, ModelCall, Payment, Wanted, bands_in_words};
use crate::config::error::ConfigError;
use crate::config::table::{Caller, Candidate, LlmRoute, RiskRoute, RoutingTable, Unpriced};
use crate::domain::decision::{Action, FallbackReason};
use crate::domain::id::UpstreamId;
use crate::domain::policy::{Ruling, decide};

/// Draws tried where every call draws anew.
const DRAWS: u32 = 32;

/// The table, if all of its tests come to what they expect.
///
/// # Errors
/// One for each expectation that is not met, where it stands.
pub fn rehearsed(table: RoutingTable) -> Result<RoutingTable, Vec<ConfigError>> {
    let failed: Vec<_> = table.cases().iter().flat_map(|case| failures(&table, case)).collect();
    if failed.is_empty() { Ok(table) } else { Err(failed) }
}

/// What a case does not come to.
pub fn failures(table: &RoutingTable, case: &Case) -> Vec<ConfigError> {
    // Looked up when the table was compiled.
    let Some(caller) = table.callers().iter().find(|caller| caller.id == case.caller) else { return Vec::new() };
    match &case.asked {
        Asked::Model(call) => models(table, (case, caller), call),
        Asked::Payment(payment) => payments(table, (case, caller), payment),
    }
}

/// What a call to a model comes to.
enum Led {
    /// These are asked, in this order.
    Asked(Vec<UpstreamId>),
    /// The caller gets this error.
    Error(&'static str),
}

fn models(table: &RoutingTable, (case, caller): (&Case, &Caller), call: &ModelCall) -> Vec<ConfigError> {
    let route = select::llm(table, caller, &call.model);
    let route = match route {
        Ok(route) => route,
        Err(missing) => {
            let label = unrouted(missing, cases::UNKNOWN_MODEL);
            return against(case, &[Led::Error(label)], None, &call.model);
        }
    };
    let asked = rule::Asked {
        caller,
        operation: call.operation,
        stream: call.stream,
        bytes: call.bytes,
        header: &|name| call.headers.get(name).map(String::as_str),
        now_ms: cases::NOON_MS,
    };
    let route = rule::rule_for(route, &asked).map_or(route, |(_, rule)| &rule.route);
    let drawn = matches!(route.asking.order, Order::Weighted | Order::Fastest);
    let draws = if drawn { DRAWS } else { 1 };
    let led: Vec<Led> = (0..draws).map(|draw| lead(route, (case, caller), call, draw)).collect();
    against(case, &led, Some(route), route.id.as_str())
}

fn lead(route: &LlmRoute, (case, caller): (&Case, &Caller), call: &ModelCall, draw: u32) -> Led {
    let seed = order::hash(format!("test_{draw}").as_bytes());
    let conversation = route.asking.sticky.map(|_| seed);
    let (operation, bytes) = (call.operation, call.bytes);
    let wish = Wish { operation, carriable: Carriable::Yes, bytes, seed, conversation };
    let seats = lineup::of(&route.candidates, &route.asking, &wish, &|candidate| seen(case, candidate));
    let able = || seats.iter().filter(|seat| seat.sent_as.is_some());
    let refuses = !caller.budgets.is_empty() && caller.unpriced == Unpriced::Refuse;
    if able().next().is_none() {
        Led::Error("not_offered")
    } else if refuses && able().any(|seat| !lineup::is_counted(seat.candidate, caller)) {
        Led::Error("price_unknown")
    } else {
        let asked: Vec<UpstreamId> = seats.iter().filter(|seat| seat.is_asked()).map(upstream).collect();
        if asked.is_empty() { Led::Error("open") } else { Led::Asked(asked) }
    }
}

fn upstream(seat: &Seat<'_>) -> UpstreamId {
    seat.candidate.upstream.clone()
}

fn seen(case: &Case, candidate: &Candidate) -> Seen {
    let is_down = case.down.contains(candidate.upstream.as_str()) || case.down.contains(candidate.provider.id.as_str());
    Seen { standing: if is_down { Standing::Open } else { Standing::Well }, ..Seen::default() }
}

fn unrouted(missing: NoRoute, unknown: &'static str) -> &'static str {
    match missing {
        NoRoute::Unknown => unknown,
        NoRoute::NotAllowed => "not_allowed",
    }
}

fn against(case: &Case, led: &[Led], route: Option<&Arc<LlmRoute>>, name: &str) -> Vec<ConfigError> {
    let expects_error = case.expected.iter().any(|one| matches!(one.wanted, Wanted::Error(_)));
    let check = |one: &Expectation| led.iter().find_map(|led| unmet(case, one, led, (route, name, expects_error)));
    case.expected.iter().filter_map(check).collect()
}

/// The mistake, if a call that was led like this does not come to it.
fn unmet(
    case: &Case,
    one: &Expectation,
    led: &Led,
    (route, name, expects_error): (Option<&Arc<LlmRoute>>, &str, bool),
) -> Option<ConfigError> {
    let (met, expected) = match (&one.wanted, led) {
        (Wanted::Order(order), Led::Asked(asked)) => (asked == order, in_turn(order)),
        (Wanted::Order(order), Led::Error(_)) => (order.is_empty(), in_turn(order)),
        (Wanted::AnyOrder(all), Led::Asked(asked)) => (*all == asked.iter().cloned().collect(), together(all)),
        (Wanted::AnyOrder(all), Led::Error(_)) => (all.is_empty(), together(all)),
        (Wanted::Route(wanted), Led::Asked(_)) => (*wanted == name, format!("the route {wanted}")),
        (Wanted::Route(wanted), Led::Error(_)) => (expects_error && *wanted == name, format!("the route {wanted}")),
        (Wanted::Error(wanted), Led::Error(error)) => (wanted == error, format!("the error {wanted}")),
        (Wanted::Error(wanted), Led::Asked(_)) => (false, format!("the error {wanted}")),
        // Refused when the file was read.
        (Wanted::Action(_) | Wanted::Policy(_) | Wanted::Bands { .. }, _) => (true, String::new()),
    };
    let got = match (&one.wanted, led) {
        (Wanted::Route(_), Led::Asked(_)) => format!("the route {name}"),
        (_, Led::Asked(asked)) => in_turn(asked),
        (_, Led::Error(error)) => format!("the error {error}"),
    };
    (!met).then(|| one.failed(case, &expected, &got, Some(why(case, led, route))))
}

fn in_turn(order: &[UpstreamId]) -> String {
    match order {
        [] => "nobody".to_owned(),
        order => order.iter().map(UpstreamId::as_str).collect::<Vec<_>>().join(", then "),
    }
}

fn together(all: &BTreeSet<UpstreamId>) -> String {
    format!("in any order {}", all.iter().map(UpstreamId::as_str).collect::<Vec<_>>().join(" and "))
}

/// What an operator who sees the failure asks next.
fn why(case: &Case, led: &Led, route: Option<&Arc<LlmRoute>>) -> String {
    let Some(route) = route else {
        return format!("asked by the caller {}, whose `allow` names the routes it may use", case.caller);
    };
    match (led, route.asking.order) {
        (Led::Error("price_unknown"), _) => {
            format!("the caller {} refuses calls without a known price", case.caller)
        }
        (Led::Error("not_offered"), _) => "no candidate's provider has this operation".to_owned(),
        (Led::Error(_), _) => "every candidate that could be asked is down in this test".to_owned(),
        (Led::Asked(_), Order::Weighted | Order::Fastest) => {
            let order = route.asking.order.label();
            format!("the order is {order}, which differs from call to call: expect any_order = [..]")
        }
        (Led::Asked(_), _) if case.down.is_empty() => {
            format!("in this test nothing is down, as seen by {}", case.caller)
        }
        (Led::Asked(_), _) => {
            let down = case.down.iter().map(String::as_str).collect::<Vec<_>>();
            format!("down in this test: {}", down.join(", "))
        }
    }
}

/// What a payment comes to.
pub struct Judged {
    /// Who is asked.
    pub asked: Vec<UpstreamId>,
    /// What decides it.
    pub ruling: Arc<Ruling>,
    /// The action, or the error the caller gets.
    pub action: Result<Action, &'static str>,
    /// Why there is no verdict.
    pub fails: Option<FallbackReason>,
    /// Counters that ask for a more severe action.
    pub over: Vec<Arc<str>>,
}

fn payments(table: &RoutingTable, (case, caller): (&Case, &Caller), payment: &Payment) -> Vec<ConfigError> {
    let route = match select::risk(table, caller) {
        Ok(route) => route,
        Err(missing) => {
            let got = format!("the error {}", unrouted(missing, "not_found"));
            let refused = Err::<Action, _>(unrouted(missing, "not_found"));
            let check = |one: &Expectation| {
                let met = matches!(&one.wanted, Wanted::Error(wanted) if refused == Err(*wanted));
                let why = format!("asked by the caller {}, whose `allow` names the routes it may use", case.caller);
                (!met).then(|| one.failed(case, &wanted_in_words(&one.wanted), &got, Some(why)))
            };
            return case.expected.iter().filter_map(check).collect();
        }
    };
    let judged = judge(route, (case, caller), payment);
    let check = |one: &Expectation| {
        let (met, got) = judged.is(&one.wanted, route);
        (!met).then(|| one.failed(case, &wanted_in_words(&one.wanted), &got, Some(judged.in_words())))
    };
    case.expected.iter().filter_map(check).collect()
}

fn judge(route: &RiskRoute, (case, caller): (&Case, &Caller), payment: &Payment) -> Judged {
    let Payment { assessment, now_ms, velocity, .. } = payment;
    let number = |name: &str| Some(velocity.get(name).copied().unwrap_or(0));
    let input = Input { assessment, caller, now_ms: *now_ms, counters: &number, presumed: &payment.lists };
    let ruling = policy::ruling_for(route, &input);
    let up = |candidate: &&Candidate| seen(case, candidate).standing == Standing::Well;
    let asked: Vec<_> = route.candidates.iter().filter(up).map(|candidate| candidate.upstream.clone()).collect();
    let down = asked.is_empty().then_some(FallbackReason::Unavailable);
    let judged = match payment.fails.or(down) {
        Some(_) => None,
        None => decide(&ruling, payment.score, payment.recommendation.as_deref()),
    };
    let fails = if judged.is_some() { None } else { payment.fails.or(down).or(Some(FallbackReason::NoVerdict)) };
    let action = match fails {
        None => judged.ok_or("no_verdict"),
        Some(reason) => ruling.without_verdict(reason, assessment.amount).ok_or_else(|| reason.code()),
    };
    let demanding = || route.velocity.iter().filter_map(|rule| Some((rule, rule.demands(number(&rule.name))?)));
    let action = action.map(|action| demanding().fold(action, |action, (_, demand)| action.max(demand)));
    let over = demanding().map(|(rule, _)| Arc::clone(&rule.name)).collect();
    Judged { asked, ruling, action, fails, over }
}

impl Judged {
    /// Whether it is as wanted, and what it is.
    fn is(&self, wanted: &Wanted, route: &RiskRoute) -> (bool, String) {
        let applied = &self.ruling.applied;
        let outcome = || match self.action {
            Ok(action) => action.as_str().to_owned(),
            Err(error) => format!("the error {error}"),
        };
        match wanted {
            Wanted::Order(order) => (self.asked == *order, in_turn(&self.asked)),
            Wanted::AnyOrder(all) => (*all == self.asked.iter().cloned().collect(), in_turn(&self.asked)),
            Wanted::Route(name) => (*name == route.id.as_str(), format!("the route {}", route.id)),
            Wanted::Error(error) => (self.action == Err(error), outcome()),
            Wanted::Action(action) => (self.action == Ok(*action), outcome()),
            Wanted::Policy(name) => (**name == *applied.rule, format!("the policy \"{}\"", applied.rule)),
            Wanted::Bands { pass_below, review_from, reject_from } => {
                let bands = applied.bands;
                let same = pass_below.is_none_or(|score| score == bands.pass_below())
                    && review_from.is_none_or(|score| score == bands.review_from())
                    && reject_from.is_none_or(|score| Some(score) == bands.reject_from());
                (same, bands_in_words(bands))
            }
        }
    }

    /// What decided it.
    fn in_words(&self) -> String {
        let Ruling { applied, at_least, listed, .. } = &*self.ruling;
        let mut words = vec![format!("decided by the policy \"{}\" ({})", applied.rule, bands_in_words(applied.bands))];
        words.extend(at_least.map(|action| format!("at least {}", action.as_str())));
        words.extend(listed.as_ref().map(|listed| format!("on the list \"{}\"", listed.list)));
        words.extend(self.over.iter().map(|name| format!("velocity.{name} over its limit")));
        words.extend(self.fails.map(|reason| format!("without a verdict: {}", reason.code())));
        words.join(", ")
    }
}

fn wanted_in_words(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Order(order) => in_turn(order),
        Wanted::AnyOrder(all) => together(all),
        Wanted::Route(name) => format!("the route {name}"),
        Wanted::Error(error) => format!("the error {error}"),
        Wanted::Action(action) => action.as_str().to_owned(),
        Wanted::Policy(name) => format!("the policy \"{name}\""),
        Wanted::Bands { pass_below, review_from, reject_from } => {
            let named = [("pass_below", pass_below), ("review_from", review_from), ("reject_from", reject_from)];
            let named = named.iter().filter_map(|(name, score)| score.map(|score| format!("{name} {score}")));
            named.collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests;
