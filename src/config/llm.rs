//! What an LLM route says of the order of its candidates, compared with the rest of what it says.
//!
//! A rule that can never come into force is refused: whoever wrote it believes that it holds.

use std::collections::BTreeSet;

use super::asking::{Asking, FallbackOn, Hedge, HedgeAfter, Order};
use super::catalog::{Catalog, Pick};
use super::checks;
use super::error::Code;
use super::raw::llm::{FallbackWord, RawCandidate, RawHedge, RawRoute, RawShadow};
use super::report::{Field, Mistake, Report};
use crate::domain::currency::Currency;
use crate::domain::deadline::Timeouts;

const DEFAULT_SHARE: u32 = 50_000;
const DEFAULT_SHADOWS: u32 = 10;

/// A shadow without its provider.
#[derive(Clone)]
pub(super) struct PlannedShadow {
    pub(super) pick: Pick,
    /// Millionths of the calls.
    pub(super) share: u32,
    pub(super) in_flight: u32,
}

/// What else of the route these rules are compared with.
pub(super) struct Beside<'p> {
    pub(super) picks: &'p [Pick],
    pub(super) timeouts: &'p Timeouts,
    pub(super) max_attempts: u32,
    pub(super) catalog: &'p Catalog,
}

/// The names of the candidates as they are listed.
pub(super) fn names(candidates: &Field<Vec<RawCandidate>>) -> Field<Vec<Field<String>>> {
    candidates.with(candidates.value.iter().map(|candidate| candidate.upstream.clone()).collect())
}

/// Checks and gathers the rules.
pub(super) fn asking(raw: &RawRoute, beside: &Beside<'_>, report: &Report<'_>) -> Asking {
    let order = raw.order.as_ref().map(|order| order.value).unwrap_or_default();
    let report_all = |mistakes: Vec<Mistake>| mistakes.into_iter().for_each(|mistake| report.add(mistake));
    report_all(misplaced_weights(raw, order));
    report_all(needless_sticky(raw, order));
    report_all(lonely_fallback(raw, beside));
    if let Some(words) = &raw.fallback_on {
        let listed: Vec<_> = words.value.iter().map(|word| word.with(format!("{:?}", word.value))).collect();
        checks::unique(listed.iter(), "the word", report);
    }
    Asking {
        order,
        weights: weights(raw),
        sticky: raw.sticky.as_ref().map(|sticky| sticky.value),
        fallback_on: fallback_on(raw),
        hedge: raw.hedge.as_ref().and_then(|raw| hedge(raw, beside, report)),
    }
}

fn weights(raw: &RawRoute) -> Vec<u32> {
    let candidates = raw.candidates.iter().flat_map(|candidates| &candidates.value);
    candidates.map(|candidate| candidate.weight.as_ref().map_or(1, |weight| weight.value)).collect()
}

fn misplaced_weights(raw: &RawRoute, order: Order) -> Vec<Mistake> {
    let candidates = || raw.candidates.iter().flat_map(|candidates| &candidates.value);
    if order != Order::Weighted {
        let misplaced = candidates().filter_map(|candidate| candidate.weight.as_ref());
        return misplaced
            .map(|weight| {
                let mistake = weight.mistake(Code::Conflict, "the order of this route does not look at weights");
                mistake.hint("write order = \"weighted\", or remove the weight")
            })
            .collect();
    }
    let all_zero = weights(raw).iter().all(|weight| *weight == 0);
    let first = candidates().find_map(|candidate| candidate.weight.as_ref()).filter(|_| all_zero);
    first.map(|weight| weight.mistake(Code::Conflict, "no candidate has a weight above 0")).into_iter().collect()
}

fn needless_sticky(raw: &RawRoute, order: Order) -> Vec<Mistake> {
    let drawn = matches!(order, Order::Weighted | Order::Fastest);
    let needless = raw.sticky.as_ref().filter(|_| !drawn);
    needless
        .map(|sticky| {
            let mistake = sticky.mistake(Code::Conflict, "this order begins with the same candidate every time");
            mistake.hint("write order = \"weighted\" or \"fastest\", or remove it")
        })
        .into_iter()
        .collect()
}

fn lonely_fallback(raw: &RawRoute, beside: &Beside<'_>) -> Vec<Mistake> {
    let Some(words) = &raw.fallback_on else { return Vec::new() };
    let alone = || words.mistake(Code::Conflict, "there is no other candidate").hint("add one, or remove this");
    let empty = checks::not_empty(words, "name what to fall back on, or remove the key").err();
    let lonely = (beside.picks.len() == 1).then(alone);
    empty.into_iter().chain(lonely).collect()
}

fn fallback_on(raw: &RawRoute) -> FallbackOn {
    let words: Vec<_> = raw.fallback_on.iter().flat_map(|words| &words.value).map(|word| word.value).collect();
    FallbackOn {
        too_long: words.contains(&FallbackWord::TooLong),
        content_policy: words.contains(&FallbackWord::ContentPolicy),
    }
}

fn hedge(raw: &RawHedge, beside: &Beside<'_>, report: &Report<'_>) -> Option<Hedge> {
    if beside.picks.len() == 1 {
        let mistake = raw.at.mistake(Code::Conflict, "there is no other candidate to hedge with");
        report.add(mistake.hint("add a candidate, or remove this"));
    }
    if beside.max_attempts < 2 {
        let mistake = raw.at.mistake(Code::Conflict, "a hedge is a second attempt, and max_attempts allows one");
        report.add(mistake.hint("raise max_attempts, or remove this"));
    }
    let after = raw.after.as_ref()?;
    if let HedgeAfter::Fixed(time) = after.value {
        let longest = beside.timeouts.first_content;
        if let Err(mistake) = checks::not_longer(&after.with(time), longest, "timeouts.first_content") {
            report.add(mistake);
        }
    }
    let max_share = raw.max_share.as_ref().map_or(DEFAULT_SHARE, |share| share.value);
    let comparable = one_currency(beside).is_some();
    if let Some(spend) = raw.max_spend.as_ref().filter(|_| !comparable) {
        let mistake = spend.mistake(Code::Conflict, "not every candidate has a known price in the same currency");
        report.add(mistake.hint("give the models their prices, or limit hedges by max_share alone"));
    }
    let max_spend = comparable.then(|| raw.max_spend.as_ref().map_or(max_share, |spend| spend.value));
    Some(Hedge { after: after.value, max_share, max_spend })
}

/// The currency all candidates are billed in, if there is one.
fn one_currency(beside: &Beside<'_>) -> Option<Currency> {
    let currencies: Option<BTreeSet<&'static str>> =
        beside.picks.iter().map(|pick| beside.catalog.currency_of(pick).map(Currency::code)).collect();
    let currencies = currencies.filter(|currencies| currencies.len() == 1)?;
    currencies.first().and_then(|code| Currency::parse(code))
}

/// The candidate that is asked for nobody's sake.
pub(super) fn shadow(raw: &RawShadow, catalog: &Catalog, report: &Report<'_>) -> Option<PlannedShadow> {
    let picked = catalog.llm_pick(raw.upstream.as_ref()?, report).map_err(|mistake| report.add(mistake)).ok()?;
    let in_flight = raw.in_flight.as_ref().map_or(DEFAULT_SHADOWS, |limit| limit.value);
    Some(PlannedShadow { pick: picked?, share: raw.share.as_ref()?.value, in_flight })
}
