//! What a configuration may mean differently from what its writer thinks, without being wrong: for `check` and the log.

use std::collections::BTreeSet;

use super::asking::Order;
use super::table::{Candidate, LlmRoute, RoutingTable};
use crate::domain::money::TokenPrice;

/// One sentence for each thing worth a second look, in the order of the routes. Names only, no values.
pub fn remarks(table: &RoutingTable) -> Vec<String> {
    let llm = table.llm_routes().values().flat_map(|route| of_route(route));
    llm.chain(of_budgets(table)).collect()
}

/// Budgets that hold for nobody, and features that nobody charges for.
fn of_budgets(table: &RoutingTable) -> Vec<String> {
    let Some((route, budgets)) = table.risk_route().and_then(|route| Some((route, route.budgets.as_deref()?))) else {
        return Vec::new();
    };
    let tenants = budgets.all().iter().filter_map(|budget| budget.tenant.as_ref());
    let unknown: BTreeSet<_> =
        tenants.filter(|tenant| table.callers().iter().all(|caller| caller.tenant != **tenant)).collect();
    let prices = || route.candidates.iter().filter_map(|candidate| candidate.provider.price.as_ref());
    let unpriced = budgets.ladder().iter().filter(|rung| !prices().any(|price| price.knows(rung)));
    let unknown =
        unknown.into_iter().map(|tenant| format!("[risk]: a budget is for tenant {tenant}, and no caller is"));
    let unpriced =
        unpriced.map(|rung| format!("[risk]: no candidate charges for {rung}, so the ladder never gives it up"));
    unknown.chain(unpriced).collect()
}

fn of_route(route: &LlmRoute) -> Vec<String> {
    let price = |candidate: &Candidate| candidate.model.as_ref().and_then(|model| model.price);
    let currency = route.candidates.iter().find_map(price).map(TokenPrice::currency);
    let mut found = Vec::new();
    let comparable = |candidate: &Candidate| match price(candidate) {
        Some(price) => Some(price.currency()) == currency,
        None => false,
    };
    if route.asking.order == Order::Cheapest {
        for candidate in route.candidates.iter().filter(|candidate| !comparable(candidate)) {
            let why = if price(candidate).is_some() { "is in another currency" } else { "is not known" };
            found.push(format!("route {}: the price of {} {why}, so it is asked last", route.id, candidate.upstream));
        }
    }
    found
}
