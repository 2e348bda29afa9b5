//! From the facts of a call to its route.

use std::sync::Arc;

use crate::config::table::{Caller, LlmRoute, RiskRoute, RoutingTable};

/// Why a call has no route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoute {
    /// No route has that name.
    Unknown,
    /// The route exists and this caller may not use it.
    NotAllowed,
}

/// The LLM route an application named in `model`.
///
/// # Errors
/// [`NoRoute`]; a route that exists and may not be used is told apart, because its name is no secret.
pub fn llm<'t>(table: &'t RoutingTable, caller: &Caller, model: &str) -> Result<&'t Arc<LlmRoute>, NoRoute> {
    let route = table.llm_routes().get(model).ok_or(NoRoute::Unknown)?;
    if caller.may_use(route.id.as_str()) { Ok(route) } else { Err(NoRoute::NotAllowed) }
}

/// The risk route.
///
/// # Errors
/// [`NoRoute`] if there is none or this caller may not use it.
pub fn risk<'t>(table: &'t RoutingTable, caller: &Caller) -> Result<&'t Arc<RiskRoute>, NoRoute> {
    let route = table.risk_route().ok_or(NoRoute::Unknown)?;
    if caller.may_use(route.id.as_str()) { Ok(route) } else { Err(NoRoute::NotAllowed) }
}
