//! What a caller's money settings mean together.

use super::error::Code;
use super::raw::callers::RawCaller;
use super::report::Report;
use super::table::{Budget, Unpriced};
use crate::domain::overload::Class;

/// The route of payments, as `allow` spells it.
const RISK: &str = "risk";

/// Its budgets, at most one for each currency and period.
pub(super) fn budgets(raw: &RawCaller, report: &Report<'_>) -> Vec<Budget> {
    let mut budgets: Vec<Budget> = Vec::new();
    for budget in raw.budgets.iter().flatten() {
        let (amount, per) = (budget.amount.value, budget.per.value);
        let same = |known: &&Budget| known.per == per && known.amount.currency == amount.currency;
        if budgets.iter().any(|known| same(&known)) {
            let message = format!("a second budget in {} for the {}", amount.currency, per.label());
            report.add(budget.amount.mistake(Code::Repeated, message).hint("keep the smaller of the two"));
        } else {
            budgets.push(Budget { amount, per });
        }
    }
    budgets
}

/// What becomes of calls that no budget can count.
pub(super) fn unpriced(raw: &RawCaller, report: &Report<'_>) -> Unpriced {
    let Some(choice) = &raw.unpriced else { return Unpriced::default() };
    if raw.budgets.is_none() {
        let mistake = choice.mistake(Code::Conflict, "the caller has no budget that a price could be missing for");
        report.add(mistake.hint("add budget = { amount = \"50.00 USD\", per = \"day\" }, or remove it"));
    }
    choice.value
}

/// What its calls to models are worth. Payments are a class of their own.
pub(super) fn class(raw: &RawCaller, report: &Report<'_>) -> Class {
    let Some(class) = &raw.class else { return Class::default() };
    let mut allowed = raw.allow.iter().flat_map(|allow| &allow.value).peekable();
    if allowed.peek().is_some() && allowed.all(|route| route.value == RISK) {
        let mistake =
            class.mistake(Code::Conflict, "payments are a class of their own, and this caller asks for nothing else");
        report.add(mistake.hint("remove it: calls to the risk route are shed last, whoever makes them"));
    }
    class.value
}
