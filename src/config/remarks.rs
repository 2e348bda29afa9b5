//! What a configuration may mean differently from what its writer thinks, without being wrong: for `check` and the log.

use super::asking::Order;
use super::table::{Candidate, LlmRoute, RoutingTable};
use crate::domain::money::TokenPrice;

/// One sentence for each thing worth a second look, in the order of the routes. Names only, no values.
pub fn remarks(table: &RoutingTable) -> Vec<String> {
    table.llm_routes().values().flat_map(|route| of_route(route)).collect()
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
