//! The risk route: lists and counters that decide nothing, and a verdict that depends on one provider.

use std::collections::BTreeSet;

use super::{Found, Rule, Subject};
use crate::config::error::Code;
use crate::config::expr::{Condition, Fact, Node, Whole};
use crate::config::table::RiskRoute;
use crate::domain::policy::OnExhausted;

pub(super) fn look(subject: &Subject<'_>, found: &mut Found<'_>) {
    let (Some(raw), Some(route)) = (&subject.raw.risk, subject.table.risk_route()) else { return };
    let fails = route.ruling.on_exhausted.unavailable == OnExhausted::Error;
    if let (Some(candidates), [_], true) = (&raw.candidates, &*route.candidates, fails) {
        let message = "one candidate, and on_exhausted = \"error\": when it is away, no payment gets a decision";
        let mistake = candidates.mistake(Code::Conflict, message);
        found.add(Rule::OneCandidate, "risk", mistake.hint("add a candidate, or answer with \"review\" or a limit"));
    }
    let callers = subject.table.callers();
    if !callers.is_empty() && !callers.iter().any(|caller| caller.may_use("risk")) {
        let mistake = raw.at.mistake(Code::Conflict, "no caller may use this route");
        found.add(Rule::IdleRoute, "risk", mistake.hint("name \"risk\" in some caller's allow, or remove it"));
    }
    for list in route.rules.lists.iter().filter(|list| list.is_empty()) {
        let written = raw.lists.iter().filter_map(|raw| raw.name.as_ref()).find(|name| *name.value == *list.name);
        let Some(name) = written else { continue };
        let mistake = name.mistake(Code::Conflict, "nobody is on this list");
        found.add(Rule::EmptyList, &list.name, mistake.hint("fill it, or remove it"));
    }
    let read = counters(route);
    for raw in &raw.velocity {
        let Some(name) = &raw.name else { continue };
        if raw.limit.is_none() && raw.over.is_none() && !read.contains(name.value.as_str()) {
            let message = "this counter has no limit, and no policy reads it";
            let hint = format!("write limit and over, or velocity.{} in a policy's condition", name.value);
            found.add(Rule::IdleCounter, &name.value, name.mistake(Code::Conflict, message).hint(hint));
        }
    }
}

/// Every counter that some policy reads.
fn counters(route: &RiskRoute) -> BTreeSet<&str> {
    let mut read = BTreeSet::new();
    let mut open: Vec<&Node> =
        route.rules.policies.iter().filter_map(|policy| policy.when.as_ref()).map(Condition::root).collect();
    while let Some(node) = open.pop() {
        match node {
            Node::Not(inside) => open.push(inside),
            Node::All(inside) | Node::Any(inside) => open.extend(inside),
            Node::Whole { left, right, .. } => read.extend([left, right].into_iter().filter_map(counter)),
            Node::Has(Fact::Whole(whole)) => read.extend(counter(whole)),
            _ => {}
        }
    }
    read
}

fn counter(whole: &Whole) -> Option<&str> {
    match whole {
        Whole::Counter(name) => Some(name),
        _ => None,
    }
}
