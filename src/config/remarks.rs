//! What a configuration may mean differently from what its writer thinks, as the table alone can tell: for the log, and, with
//! its places, for `check`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::asking::Order;
use super::expr::Node;
use super::policy::{Policy, Rules};
use super::rule::Rule;
use super::table::{Candidate, LlmRoute, LlmRule, RiskRoute, RoutingTable};
use crate::domain::money::TokenPrice;
use crate::domain::policy::{FailureModes, ListKind, OnExhausted};

/// One thing worth a second look.
pub(super) struct Remark {
    pub(super) rule: Rule,
    /// The route, policy, tenant or feature.
    pub(super) about: String,
    /// Names only, no values.
    pub(super) text: String,
}

/// One sentence for each thing worth a second look, in the order of the routes. Names only, no values.
pub fn remarks(table: &RoutingTable) -> Vec<String> {
    of_table(table).into_iter().map(|remark| remark.text).collect()
}

/// The same with their kinds.
pub(super) fn of_table(table: &RoutingTable) -> Vec<Remark> {
    let llm = table.llm_routes().values().flat_map(|route| of_route(route));
    let risk = table.risk_route().into_iter().flat_map(|risk| of_risk(risk));
    llm.chain(risk).chain(of_budgets(table)).collect()
}

fn of_risk(route: &RiskRoute) -> Vec<Remark> {
    let mut found = unreachable(&route.rules);
    let rulings = route.rules.policies.iter().map(|policy| &policy.ruling).chain([&route.ruling]);
    let nobody_allowed = !route.rules.lists.iter().any(|list| list.kind == ListKind::Allow);
    for ruling in rulings.filter(|ruling| nobody_allowed && has_local_rules(&ruling.on_exhausted)) {
        let about = ruling.applied.rule.to_string();
        let text = format!("rule \"{about}\": local_rules without an allow list is the same as review");
        found.push(Remark { rule: Rule::IdleLocalRules, about, text });
    }
    found
}

/// Policies that never decide, because one before them takes everything they could.
fn unreachable(rules: &Rules) -> Vec<Remark> {
    let mut found = Vec::new();
    for (index, policy) in rules.policies.iter().enumerate() {
        let takes_all = |earlier: &&Policy| earlier.when.is_none() || earlier.when == policy.when;
        if let Some(earlier) = rules.policies.iter().take(index).find(takes_all) {
            let why = if earlier.when.is_none() { "matches everything" } else { "has the same condition" };
            let (about, before) = (policy.name().to_string(), earlier.name());
            let text = format!("policy \"{about}\" never decides: \"{before}\" before it {why}");
            found.push(Remark { rule: Rule::UnreachablePolicy, about, text });
        }
    }
    found
}

/// Rules of a route that never hold, because one before them takes every call they could.
fn unreachable_rules(route: &LlmRoute) -> Vec<Remark> {
    let mut found = Vec::new();
    for (index, rule) in route.rules.iter().enumerate() {
        let all = |earlier: &LlmRule| *earlier.when.root() == Node::Always(true);
        let takes_all = |earlier: &&Arc<LlmRule>| all(earlier) || earlier.when == rule.when;
        if let Some(earlier) = route.rules.iter().take(index).find(takes_all) {
            let why = if all(earlier) { "matches everything" } else { "has the same condition" };
            let text =
                format!("\"{}\" of route {} never holds: \"{}\" before it {why}", rule.name, route.id, earlier.name);
            let about = format!("{}.{}", route.id, rule.name);
            found.push(Remark { rule: Rule::UnreachableRule, about, text });
        }
    }
    found
}

fn has_local_rules(modes: &FailureModes) -> bool {
    [modes.deadline, modes.unavailable].contains(&OnExhausted::LocalRules)
}

/// Budgets that hold for nobody, and features that nobody charges for.
fn of_budgets(table: &RoutingTable) -> Vec<Remark> {
    let Some((route, budgets)) = table.risk_route().and_then(|route| Some((route, route.budgets.as_deref()?))) else {
        return Vec::new();
    };
    let tenants = budgets.all().iter().filter_map(|budget| budget.tenant.as_ref());
    let unknown: BTreeSet<_> =
        tenants.filter(|tenant| table.callers().iter().all(|caller| caller.tenant != **tenant)).collect();
    let prices = || route.candidates.iter().filter_map(|candidate| candidate.provider.price.as_ref());
    let unpriced = budgets.ladder().iter().filter(|rung| !prices().any(|price| price.knows(rung)));
    let unknown = unknown.into_iter().map(|tenant| {
        let text = format!("[risk]: a budget is for tenant {tenant}, and no caller is");
        Remark { rule: Rule::BudgetForNobody, about: tenant.to_string(), text }
    });
    let unpriced = unpriced.map(|rung| {
        let text = format!("[risk]: no candidate charges for {rung}, so the ladder never gives it up");
        Remark { rule: Rule::IdleRung, about: rung.clone(), text }
    });
    unknown.chain(unpriced).collect()
}

fn of_route(route: &LlmRoute) -> Vec<Remark> {
    let price = |candidate: &Candidate| candidate.model.as_ref().and_then(|model| model.price);
    let currency = route.candidates.iter().find_map(price).map(TokenPrice::currency);
    let mut found = unreachable_rules(route);
    let comparable = |candidate: &Candidate| match price(candidate) {
        Some(price) => Some(price.currency()) == currency,
        None => false,
    };
    if route.asking.order == Order::Cheapest {
        for candidate in route.candidates.iter().filter(|candidate| !comparable(candidate)) {
            let why = if price(candidate).is_some() { "is in another currency" } else { "is not known" };
            let text = format!("route {}: the price of {} {why}, so it is asked last", route.id, candidate.upstream);
            found.push(Remark { rule: Rule::UnknownPriceLast, about: route.id.to_string(), text });
        }
    }
    found
}
