//! Which rules decide a payment attempt: the first policy whose condition holds, and the strongest list.
//!
//! Pure, and total: a condition was checked when the configuration was read, so there is nothing left in it that could
//! fail, but for a counter that cannot be told. Then nobody knows whether the policy matches; evaluation goes on, and the
//! ruling asks for a review whatever else it says.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::expr::{Condition, Fact, Node, Text, TextTest, Whole};
use crate::config::lists::{List, ListBy};
use crate::config::table::{Caller, RiskRoute};
use crate::domain::policy::{Listed, Ruling};
use crate::wire::risk::{Assessment, Moment};

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: u64 = 3_600_000;

/// What conditions and lists are about.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The payment attempt.
    pub assessment: &'a Assessment,
    /// Who asks.
    pub caller: &'a Caller,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// The counters by name; `None` if one cannot be told.
    pub counters: &'a dyn Fn(&str) -> Option<i64>,
    /// Lists that somebody is taken to be on, whatever is on them: for tests. None while payments are decided.
    pub presumed: &'a [Arc<str>],
}

/// Counters of a configuration that has none.
pub fn no_counters(_: &str) -> Option<i64> {
    None
}

/// What decides an attempt.
///
/// It allocates only for somebody who is on a list, or if a policy cannot be evaluated.
pub fn ruling_for(route: &RiskRoute, input: &Input<'_>) -> Arc<Ruling> {
    let rules = &route.rules;
    let mut unclear = None;
    let matching = rules.policies.iter().find(|policy| match policy.when.as_ref().map(|when| holds(when, input)) {
        None | Some(Ok(true)) => true,
        Some(Ok(false)) => false,
        Some(Err(Unknown)) => {
            unclear.get_or_insert_with(|| Arc::clone(policy.name()));
            false
        }
    });
    let ruling = matching.map_or(&route.ruling, |policy| &policy.ruling);
    // The strongest come first.
    let listed = rules.lists.iter().find(|list| is_on(list, input));
    let listed = listed.map(|list| Listed { list: Arc::clone(&list.name), kind: list.kind });
    if listed.is_none() && unclear.is_none() {
        return Arc::clone(ruling);
    }
    Arc::new(Ruling { listed, unclear, ..Ruling::clone(ruling) })
}

/// A counter could not be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unknown;

/// True if the condition holds.
///
/// # Errors
/// [`Unknown`] if the answer depends on a counter that cannot be told.
pub fn holds(condition: &Condition, input: &Input<'_>) -> Result<bool, Unknown> {
    evaluate(condition.root(), input)
}

/// True if this part of a condition holds.
///
/// # Errors
/// As [`holds`].
pub fn evaluate(node: &Node, input: &Input<'_>) -> Result<bool, Unknown> {
    let payment = input.assessment;
    Ok(match node {
        Node::Always(answer) => *answer,
        Node::Not(node) => !evaluate(node, input)?,
        Node::All(nodes) => return decided(nodes, false, input),
        Node::Any(nodes) => return decided(nodes, true, input),
        Node::Has(fact) => match fact {
            Fact::Text(text) => value(*text, input).is_some(),
            Fact::Whole(whole) => number(whole, input)?.is_some(),
            Fact::Address => payment.device.ip.is_some(),
        },
        Node::Text(text, test) => value(*text, input).is_some_and(|text| passes(test, text)),
        Node::SameText { left, right, same } => {
            let both = value(*left, input).zip(value(*right, input));
            both.is_some_and(|(left, right)| (left == right) == *same)
        }
        Node::Whole { left, by, right } => {
            let both = number(left, input)?.zip(number(right, input)?);
            both.is_some_and(|(left, right)| by.holds(left.cmp(&right)))
        }
        Node::Amount(by, money) => {
            let same_currency = payment.amount.currency() == money.currency();
            same_currency && by.holds(payment.amount.minor().cmp(&money.minor()))
        }
        Node::Address { networks, inside } => {
            let address = payment.device.ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
            address.is_some_and(|address| networks.iter().any(|network| network.has(address)) == *inside)
        }
        Node::Feature(feature) => payment.features.iter().any(|asked| **asked == **feature),
        Node::Listed(list) => is_on(&list.0, input),
        // Asked of calls to models only.
        Node::Streams | Node::Header(..) => false,
    })
}

/// `&&` and `||`: one answer decides whatever the others are, also if one of them is unknown.
fn decided(nodes: &[Node], deciding: bool, input: &Input<'_>) -> Result<bool, Unknown> {
    let mut unknown = false;
    for node in nodes {
        match evaluate(node, input) {
            Ok(answer) if answer == deciding => return Ok(deciding),
            Ok(_) => {}
            Err(Unknown) => unknown = true,
        }
    }
    if unknown { Err(Unknown) } else { Ok(!deciding) }
}

pub(super) fn passes(test: &TextTest, text: &str) -> bool {
    match test {
        TextTest::Is(other) => *text == **other,
        TextTest::IsNot(other) => *text != **other,
        TextTest::OneOf(others) => others.iter().any(|other| *text == **other),
        TextTest::StartsWith(begin) => text.starts_with(&**begin),
        TextTest::EndsWith(end) => text.ends_with(&**end),
        TextTest::Contains(part) => text.contains(&**part),
    }
}

/// What a text of the attempt is; `None` if it is absent.
pub fn value<'a>(text: Text, input: &Input<'a>) -> Option<&'a str> {
    let Assessment { out_trade_no, amount, subject, merchant, user, instrument, device, .. } = input.assessment;
    match text {
        Text::CallerId => Some(input.caller.id.as_str()),
        Text::CallerTenant => Some(input.caller.tenant.as_str()),
        Text::OutTradeNo => Some(out_trade_no),
        Text::Subject => Some(subject),
        Text::Currency => Some(amount.currency().code()),
        Text::MerchantId => Some(&merchant.id),
        Text::MerchantCategory => merchant.category.as_deref(),
        Text::MerchantCountry => merchant.country.as_deref(),
        Text::UserId => Some(&user.id),
        Text::UserCountry => user.country.as_deref(),
        Text::InstrumentType => instrument.kind.as_deref(),
        Text::InstrumentBin => instrument.bin.as_deref(),
        Text::DeviceId => device.id.as_deref(),
        Text::Operation => None,
    }
}

/// What a number of the attempt is; `None` if it is absent.
///
/// # Errors
/// [`Unknown`] for a counter that cannot be told.
pub fn number(whole: &Whole, input: &Input<'_>) -> Result<Option<i64>, Unknown> {
    Ok(match whole {
        Whole::Literal(number) => Some(*number),
        Whole::HourUtc => i64::try_from(input.now_ms / HOUR_MS % 24).ok(),
        Whole::RegisteredDays => days_since(input.assessment.user.registered_at.as_ref(), input.now_ms),
        Whole::KnownDays => days_since(input.assessment.device.known_since.as_ref(), input.now_ms),
        Whole::Counter(name) => Some((input.counters)(name).ok_or(Unknown)?),
        Whole::Bytes | Whole::EstimatedTokens => None,
    })
}

/// Whole days since then; negative for a moment that has yet to come.
fn days_since(moment: Option<&Moment>, now_ms: u64) -> Option<i64> {
    let now = i64::try_from(now_ms).ok()?;
    Some(now.checked_sub(moment?.unix_ms)?.div_euclid(DAY_MS))
}

/// True if somebody of this attempt is on the list.
pub fn is_on(list: &List, input: &Input<'_>) -> bool {
    if input.presumed.contains(&list.name) {
        return true;
    }
    let Assessment { merchant, user, instrument, device, .. } = input.assessment;
    let facts: [Option<&str>; 2] = match list.by {
        ListBy::User => [Some(&user.id), None],
        ListBy::Device => [device.id.as_deref(), None],
        ListBy::Ip => [device.ip.as_deref(), None],
        ListBy::Bin => [instrument.bin.as_deref(), None],
        ListBy::Instrument => [instrument.fingerprint.as_deref(), None],
        ListBy::Merchant => [Some(&merchant.id), None],
        ListBy::Email => [user.email.as_deref(), None],
        ListBy::Country => [user.country.as_deref(), merchant.country.as_deref()],
    };
    facts.into_iter().flatten().any(|fact| list.has(fact))
}

#[cfg(test)]
mod tests;
