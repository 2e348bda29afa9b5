//! From what `[risk]` says about money to budgets that can be counted.
//!
//! A budget that could not count some call would promise what it does not hold, so every candidate must have a price in
//! the budgets' currency.

use super::budgets::{MerchantBudget, RiskBudgets, WHOLE, Whose};
use super::catalog::{Catalog, Pick};
use super::checks;
use super::error::Code;
use super::raw::budgets::{RawRiskBudget, RawSpending};
use super::report::{Mistake, Report};
use crate::domain::id::TenantId;

/// What stands for every merchant.
const EACH: &str = "*";

/// The budgets and the ladder; `None` without any.
pub(super) fn plan(raw: &RawSpending, picks: &[Pick], catalog: &Catalog, report: &Report<'_>) -> Option<RiskBudgets> {
    let mut budgets: Vec<MerchantBudget> = Vec::new();
    for one in &raw.budgets {
        counted(one, picks, catalog, report);
        let Ok(budget) = budget(one).map_err(|mistake| report.add(mistake)) else { continue };
        let same = |known: &&MerchantBudget| {
            (&known.whose, &known.tenant, known.per) == (&budget.whose, &budget.tenant, budget.per)
        };
        if budgets.iter().any(|known| same(&known)) {
            let message = format!("a second budget of the same for the {}", budget.per.label());
            report.add(one.amount.mistake(Code::Repeated, message).hint("keep the smaller of the two"));
        }
        budgets.push(budget);
    }
    if let Some(ladder) = &raw.ladder {
        checks::unique(ladder.value.iter(), "the feature", report);
        if !raw.has_budgets {
            let mistake = ladder.mistake(Code::Conflict, "there is no budget that a feature could be given up for");
            report.add(mistake.hint("add a [[risk.budget]], or remove it"));
        }
    }
    let ladder = raw.ladder.iter().flat_map(|ladder| &ladder.value).map(|rung| rung.value.clone()).collect();
    (!budgets.is_empty()).then(|| RiskBudgets::new(budgets, ladder))
}

fn budget(raw: &RawRiskBudget) -> Result<MerchantBudget, Mistake> {
    let whose = match (&raw.merchant, &raw.category) {
        (Some(merchant), None) if merchant.value == EACH => Whose::Each,
        (Some(merchant), None) => Whose::Merchant(merchant.value.clone()),
        (None, Some(category)) if category.value == EACH => {
            let mistake = category.mistake(Code::BadValue, "a budget for each category is not known");
            return Err(mistake.hint("name the category, or write merchant = \"*\" for each merchant"));
        }
        (None, Some(category)) => Whose::Category(category.value.clone()),
        (Some(_), Some(category)) => {
            let mistake = category.mistake(Code::Conflict, "a budget is either a merchant's or a category's");
            return Err(mistake.hint("write two budgets: both hold"));
        }
        (None, None) => {
            let mistake = raw.at.mistake(Code::MissingKey, "missing key `merchant` or `category`");
            return Err(mistake.hint("name whose budget it is; merchant = \"*\" gives each merchant one"));
        }
    };
    Ok(MerchantBudget {
        whose,
        tenant: raw.tenant.as_ref().map(|tenant| TenantId::new(tenant.value.as_str())),
        amount: raw.amount.value,
        per: raw.per.value,
        ladder_from: raw.ladder_from.as_ref().map_or(WHOLE, |share| share.value),
        when_spent: raw.when_spent.as_ref().map(|word| word.value).unwrap_or_default(),
    })
}

/// Reports a candidate whose calls this budget cannot count.
fn counted(raw: &RawRiskBudget, picks: &[Pick], catalog: &Catalog, report: &Report<'_>) {
    let currency = raw.amount.value.currency;
    for pick in picks {
        let Some(provider) = catalog.providers().get(&pick.provider) else { continue };
        let message = match &provider.price {
            Some(price) if price.standard.value.currency == currency => continue,
            Some(price) => format!("{} bills in {}, not in {currency}", pick.provider, price.standard.value.currency),
            // A price that could not be read has been reported.
            None if provider.price_at.is_some() => continue,
            None => format!("the price of {} is not known, so no budget can count it", pick.provider),
        };
        let hint = "every candidate of [risk] needs a price in the currency of the budgets: see providers/README.md";
        report.add(raw.amount.mistake(Code::Conflict, message).hint(hint));
        return;
    }
}
