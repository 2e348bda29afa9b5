//! What the decisions of a merchant may cost, and what of a call is given up first when they cost more.
//!
//! Only what was configured and which of it holds for a call; what is spent is counted in `flight::merchants`.

use std::collections::BTreeMap;

use crate::domain::id::TenantId;
use crate::domain::money::Cost;
use crate::domain::period::Period;

/// All of a budget, in millionths.
pub const WHOLE: u32 = 1_000_000;

/// `[[risk.budget]]` and `risk.ladder`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RiskBudgets {
    budgets: Vec<MerchantBudget>,
    ladder: Vec<String>,
    /// Places in `budgets`.
    merchants: BTreeMap<String, Vec<usize>>,
    categories: BTreeMap<String, Vec<usize>>,
    each: Vec<usize>,
}

/// One budget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MerchantBudget {
    /// Whose calls are paid from it.
    pub whose: Whose,
    /// Only those of this tenant's callers; `None` for everybody's.
    pub tenant: Option<TenantId>,
    /// More than zero.
    pub amount: Cost,
    /// When it begins again.
    pub per: Period,
    /// From this part of it on, in millionths, calls get none of the features on the ladder.
    pub ladder_from: u32,
    /// What becomes of a call that does not fit even without them.
    pub when_spent: WhenSpent,
}

/// Whose calls are paid from a budget.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Whose {
    /// Of the merchant with this id.
    Merchant(String),
    /// Of all merchants of this category together.
    Category(String),
    /// Of each merchant that has no budget of its own: one for each.
    Each,
}

/// What becomes of a call for whose bare score a budget has no room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub enum WhenSpent {
    /// The score is bought all the same: a payment is worth more than its check.
    #[default]
    Score,
    /// Nobody is asked; the failure mode answers.
    FallBack,
}

impl RiskBudgets {
    /// Budgets, and the features that are given up for them, the first one first.
    pub fn new(budgets: Vec<MerchantBudget>, ladder: Vec<String>) -> Self {
        let (mut merchants, mut categories, mut each) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (place, budget) in budgets.iter().enumerate() {
            let places: &mut Vec<usize> = match &budget.whose {
                Whose::Merchant(id) => merchants.entry(id.clone()).or_default(),
                Whose::Category(name) => categories.entry(name.clone()).or_default(),
                Whose::Each => &mut each,
            };
            places.push(place);
        }
        Self { budgets, ladder, merchants, categories, each }
    }

    /// All of them, as listed.
    pub fn all(&self) -> &[MerchantBudget] {
        &self.budgets
    }

    /// The order in which features are given up.
    pub fn ladder(&self) -> &[String] {
        &self.ladder
    }

    /// Those that hold for a merchant's call: its own or else everybody's, and its category's.
    pub fn of<'b>(
        &'b self,
        tenant: &TenantId,
        merchant: &str,
        category: Option<&str>,
    ) -> impl Iterator<Item = &'b MerchantBudget> + use<'b> {
        let those = |places: Option<&'b Vec<usize>>| {
            let budgets = places.into_iter().flatten().filter_map(|place| self.budgets.get(*place));
            budgets.filter(|budget| budget.tenant.as_ref().is_none_or(|only| only == tenant)).collect::<Vec<_>>()
        };
        let own = those(self.merchants.get(merchant));
        let own = if own.is_empty() { those(Some(&self.each)) } else { own };
        own.into_iter().chain(those(category.and_then(|category| self.categories.get(category))))
    }
}

impl Whose {
    /// `merchant` or `category`, and the name; `*` for each merchant.
    pub fn label(&self) -> (&'static str, &str) {
        match self {
            Self::Merchant(id) => ("merchant", id),
            Self::Category(name) => ("category", name),
            Self::Each => ("merchant", "*"),
        }
    }
}

impl WhenSpent {
    /// The word in configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::FallBack => "fall_back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::currency::Currency;

    fn budget(whose: Whose, tenant: Option<&str>) -> MerchantBudget {
        let amount = Cost { micro: 1, currency: Currency::parse("CNY").unwrap() };
        let (ladder_from, when_spent) = (WHOLE, WhenSpent::Score);
        MerchantBudget { whose, tenant: tenant.map(TenantId::new), amount, per: Period::Day, ladder_from, when_spent }
    }

    #[test]
    fn a_merchants_own_budget_takes_the_place_of_everybodys_and_its_categorys_holds_too() {
        let merchant = |id: &str, tenant| budget(Whose::Merchant(id.to_owned()), tenant);
        let travel = budget(Whose::Category("travel".to_owned()), None);
        let all = vec![merchant("a", None), merchant("b", Some("eu")), budget(Whose::Each, None), travel];
        let budgets = RiskBudgets::new(all.clone(), Vec::new());
        let of = |tenant: &str, merchant: &str, category: Option<&str>| -> Vec<usize> {
            let tenant = TenantId::new(tenant);
            let found = budgets.of(&tenant, merchant, category);
            found.map(|found| all.iter().position(|one| one == found).unwrap()).collect()
        };
        assert_eq!(of("eu", "a", None), [0]);
        assert_eq!(of("eu", "a", Some("travel")), [0, 3]);
        assert_eq!(
            (of("eu", "b", None), of("us", "b", None)),
            (vec![1], vec![2]),
            "a tenant's merchant is nobody else's"
        );
        assert_eq!(of("eu", "c", Some("food")), [2]);
    }
}
