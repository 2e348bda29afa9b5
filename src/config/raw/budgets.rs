//! `[[risk.budget]]` and `risk.ladder`, key by key.

use crate::config::budgets::WhenSpent;
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::domain::money::Cost;
use crate::domain::period::Period;

use super::callers;
use super::llm::share;
use super::routes::place;

/// Each has a purse and up to three series of its own.
const MOST_BUDGETS: usize = 1_000;
/// As many as one assessment may ask for.
const MOST_RUNGS: usize = 32;
const LONGEST_NAME: usize = 256;

#[derive(Debug)]
pub(in crate::config) struct RawRiskBudget {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) merchant: Option<Field<String>>,
    pub(in crate::config) category: Option<Field<String>>,
    pub(in crate::config) tenant: Option<Field<String>>,
    pub(in crate::config) amount: Field<Cost>,
    pub(in crate::config) per: Field<Period>,
    pub(in crate::config) ladder_from: Option<Field<u32>>,
    pub(in crate::config) when_spent: Option<Field<WhenSpent>>,
}

/// What `[risk]` says about money.
#[derive(Default, Debug)]
pub(in crate::config) struct RawSpending {
    pub(in crate::config) budgets: Vec<RawRiskBudget>,
    pub(in crate::config) ladder: Option<Field<Vec<Field<String>>>>,
    /// True if a budget was written, also one that could not be read.
    pub(in crate::config) has_budgets: bool,
}

impl RawSpending {
    pub(super) fn read(risk: &Table<'_>) -> Self {
        let budgets = risk.get("budget");
        Self {
            has_budgets: budgets.is_some(),
            budgets: budgets.map(|value| list(&value)).unwrap_or_default(),
            ladder: risk.get("ladder").and_then(|value| ladder(&value)),
        }
    }
}

fn list(value: &Value<'_>) -> Vec<RawRiskBudget> {
    let tables = value.tables();
    if let Some(first_over) = tables.get(MOST_BUDGETS) {
        first_over.report().add(first_over.mistake(Code::BadValue, format!("more than {MOST_BUDGETS} budgets")));
    }
    tables.iter().take(MOST_BUDGETS).filter_map(budget).collect()
}

fn budget(table: &Table<'_>) -> Option<RawRiskBudget> {
    const BUDGET_KEYS: [&str; 7] = ["merchant", "category", "tenant", "amount", "per", "ladder_from", "when_spent"];
    const WORDS: [(&str, WhenSpent); 2] = [("score", WhenSpent::Score), ("fall_back", WhenSpent::FallBack)];
    let table = table.clone().only(&BUDGET_KEYS, &[]);
    let name = |key: &str| match table.get(key) {
        Some(value) => line(&value).map(Some),
        None => Some(None),
    };
    let amount = table.required("amount").and_then(|value| callers::amount(&value));
    let per = table.required("per").and_then(|value| value.word(&callers::PERIODS));
    let tenant = table.get("tenant").and_then(|value| value.name("-_."));
    let ladder_from = table.get("ladder_from").and_then(|value| share(&value));
    let when_spent = table.get("when_spent").and_then(|value| value.word(&WORDS));
    let (merchant, category) = (name("merchant"), name("category"));
    Some(RawRiskBudget {
        at: place(&table),
        merchant: merchant?,
        category: category?,
        tenant,
        amount: amount?,
        per: per?,
        ladder_from,
        when_spent,
    })
}

/// A name as an assessment may have it.
fn line(value: &Value<'_>) -> Option<Field<String>> {
    let name = value.string()?;
    let fits = (1..=LONGEST_NAME).contains(&name.value.chars().count()) && !name.value.chars().any(char::is_control);
    if fits { Some(name) } else { value.bad("a name has 1 to 256 characters, none of them a control character") }
}

fn ladder(value: &Value<'_>) -> Option<Field<Vec<Field<String>>>> {
    let rungs: Vec<_> = value.list()?.iter().filter_map(|rung| rung.name("-_.")).collect();
    if rungs.len() > MOST_RUNGS {
        return value.bad(format!("more than {MOST_RUNGS} features"));
    }
    Some(Field { value: rungs, at: value.at, key: value.key.clone() })
}
