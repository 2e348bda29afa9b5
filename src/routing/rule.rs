//! Which rule of a route a call comes under: the first whose condition holds.
//!
//! Pure, and total: a condition was checked when the configuration was read. What a call does not say makes every
//! comparison with it false.

use std::sync::Arc;

use super::policy::passes;
use crate::config::expr::{Fact, Node, Text, Whole};
use crate::config::table::{Caller, LlmRoute, LlmRule};
use crate::domain::operation::Operation;

/// What one token takes of a request's body, in bytes.
const BYTES_PER_TOKEN: usize = 4;
const HOUR_MS: u64 = 3_600_000;

/// What conditions are about.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// What is asked.
    pub operation: Operation,
    /// True if the answer is to be told as it is made.
    pub stream: bool,
    /// Bytes of the request's body.
    pub bytes: usize,
    /// The request's headers, by their name in lower case.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// How many tokens a body of so many bytes may come to: the same estimate that budgets reserve by.
pub fn estimated_tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// The rule that the call comes under, with its number; `None`: the route's own settings hold.
pub fn rule_for<'r>(route: &'r LlmRoute, asked: &Asked<'_>) -> Option<(usize, &'r Arc<LlmRule>)> {
    route.rules.iter().enumerate().find(|(_, rule)| holds(rule.when.root(), asked))
}

/// True if this part of a condition holds. What is asked of payments is false of calls.
pub fn holds(node: &Node, asked: &Asked<'_>) -> bool {
    match node {
        Node::Always(answer) => *answer,
        Node::Not(node) => !holds(node, asked),
        Node::All(nodes) => nodes.iter().all(|node| holds(node, asked)),
        Node::Any(nodes) => nodes.iter().any(|node| holds(node, asked)),
        Node::Has(Fact::Text(text)) => value(*text, asked).is_some(),
        Node::Has(Fact::Whole(whole)) => number(whole, asked).is_some(),
        Node::Text(text, test) => value(*text, asked).is_some_and(|text| passes(test, text)),
        Node::Header(name, test) => (asked.header)(name).is_some_and(|text| passes(test, text)),
        Node::SameText { left, right, same } => {
            value(*left, asked).zip(value(*right, asked)).is_some_and(|(left, right)| (left == right) == *same)
        }
        Node::Whole { left, by, right } => {
            number(left, asked).zip(number(right, asked)).is_some_and(|(left, right)| by.holds(left.cmp(&right)))
        }
        Node::Streams => asked.stream,
        Node::Has(Fact::Address) | Node::Amount(..) | Node::Address { .. } | Node::Feature(_) | Node::Listed(_) => {
            false
        }
    }
}

/// What of the call this part of a condition looks at, for people; `None` if at nothing that differs.
pub fn seen(node: &Node, asked: &Asked<'_>) -> Option<String> {
    let shown = |text: Text| value(text, asked).map(|value| text.shown(value));
    let of_text = |text: Text| format!("{} is {}", text.name(), shown(text).unwrap_or_else(|| "absent".to_owned()));
    let of_whole = |whole: &Whole| match (whole, number(whole, asked)) {
        (Whole::Literal(_), _) => None,
        (_, number) => Some(format!("{} is {}", whole.name(), number.unwrap_or_default())),
    };
    match node {
        Node::Text(text, _) => Some(of_text(*text)),
        Node::SameText { left, right, .. } => Some(format!("{}, {}", of_text(*left), of_text(*right))),
        Node::Header(name, _) => {
            let value = (asked.header)(name).map(crate::config::expr::told::discreet);
            Some(format!("header {name} is {}", value.unwrap_or_else(|| "absent".to_owned())))
        }
        Node::Whole { left, right, .. } => of_whole(left).or_else(|| of_whole(right)),
        Node::Streams => Some(format!("request.stream is {}", asked.stream)),
        _ => None,
    }
}

fn value<'a>(text: Text, asked: &Asked<'a>) -> Option<&'a str> {
    match text {
        Text::CallerId => Some(asked.caller.id.as_str()),
        Text::CallerTenant => Some(asked.caller.tenant.as_str()),
        Text::Operation => Some(asked.operation.label()),
        _ => None,
    }
}

fn number(whole: &Whole, asked: &Asked<'_>) -> Option<i64> {
    match whole {
        Whole::Literal(number) => Some(*number),
        Whole::HourUtc => i64::try_from(asked.now_ms / HOUR_MS % 24).ok(),
        Whole::Bytes => i64::try_from(asked.bytes).ok(),
        Whole::EstimatedTokens => i64::try_from(estimated_tokens(asked.bytes)).ok(),
        Whole::RegisteredDays | Whole::KnownDays | Whole::Counter(_) => None,
    }
}

#[cfg(test)]
mod tests;
