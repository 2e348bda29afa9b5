//! `[[caller]]`, key by key.

use super::overload;
use super::signature::RawSignature;
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::table::Unpriced;
use crate::domain::money::Cost;
use crate::domain::overload::Class;
use crate::domain::period::Period;

const KEYS: [&str; 10] =
    ["id", "tenant", "key_digest", "client_cert_sha256", "allow", "limits", "budget", "unpriced", "signature", "class"];
const LIMITS: [&str; 3] = ["requests_per_minute", "in_flight", "tokens_per_minute"];
/// Below it, one ordinary answer would be more than a minute's worth.
const LEAST_TOKENS: u32 = 1_000;
const MOST_TOKENS: u32 = 1_000_000_000;
/// When a budget begins again.
pub(super) const PERIODS: [(&str, Period); 2] = [("day", Period::Day), ("month", Period::Month)];
/// A day and a month in two currencies.
const MOST_BUDGETS: usize = 4;

#[derive(Debug)]
pub(in crate::config) struct RawCaller {
    pub(in crate::config) id: Option<Field<String>>,
    pub(in crate::config) tenant: Option<Field<String>>,
    pub(in crate::config) key_digest: Option<Field<String>>,
    pub(in crate::config) client_certs: Option<Field<Vec<Field<String>>>>,
    pub(in crate::config) allow: Option<Field<Vec<Field<String>>>>,
    pub(in crate::config) requests_per_minute: Option<Field<u32>>,
    pub(in crate::config) in_flight: Option<Field<u32>>,
    pub(in crate::config) tokens_per_minute: Option<Field<u32>>,
    /// `None` if there is no such key.
    pub(in crate::config) budgets: Option<Vec<RawBudget>>,
    pub(in crate::config) unpriced: Option<Field<Unpriced>>,
    /// `None` also if it could not be read: then it was reported, and there will be no table.
    pub(in crate::config) signature: Option<RawSignature>,
    pub(in crate::config) class: Option<Field<Class>>,
}

#[derive(Debug)]
pub(in crate::config) struct RawBudget {
    pub(in crate::config) amount: Field<Cost>,
    pub(in crate::config) per: Field<Period>,
}

impl RawCaller {
    pub(super) fn read(table: &Table<'_>) -> Self {
        let table = table.clone().only(&KEYS, &[]);
        let limits = table.get("limits").and_then(|value| value.table()).map(|table| table.only(&LIMITS, &[]));
        let limit = |name: &str| limits.as_ref().and_then(|table| table.get(name)?.whole(1..=100_000_000));
        Self {
            id: table.required("id").and_then(|value| value.name("-_.")),
            tenant: table.get("tenant").and_then(|value| value.name("-_.")),
            key_digest: table.required("key_digest").and_then(|value| value.string()),
            client_certs: table.get("client_cert_sha256").and_then(|value| value.string_list()),
            allow: table.required("allow").and_then(|value| value.string_list()),
            requests_per_minute: limit("requests_per_minute"),
            in_flight: limit("in_flight"),
            tokens_per_minute: limits.as_ref().and_then(|table| tokens(&table.get("tokens_per_minute")?)),
            budgets: table.get("budget").map(|value| budgets(&value)),
            unpriced: table.get("unpriced").and_then(|value| unpriced(&value)),
            signature: table.get("signature").and_then(|value| RawSignature::read(&value)),
            class: table.get("class").and_then(|value| overload::class(&value)),
        }
    }
}

fn tokens(value: &Value<'_>) -> Option<Field<u32>> {
    let tokens = value.whole::<u32>(0..=MOST_TOKENS)?;
    if tokens.value < LEAST_TOKENS {
        let message = format!("fewer than {LEAST_TOKENS} tokens a minute");
        let hint =
            "prompt and answer count: one ordinary call would be more than that; limit requests_per_minute instead";
        value.report().add(value.mistake(Code::BadValue, message).hint(hint));
        return None;
    }
    Some(tokens)
}

/// One table, or a list of them.
fn budgets(value: &Value<'_>) -> Vec<RawBudget> {
    if !value.is_list() {
        return value.table().and_then(|table| budget(&table)).into_iter().collect();
    }
    let tables = value.tables();
    if tables.len() > MOST_BUDGETS {
        value.bad::<()>(format!("more than {MOST_BUDGETS} budgets"));
    }
    tables.iter().take(MOST_BUDGETS).filter_map(budget).collect()
}

fn budget(table: &Table<'_>) -> Option<RawBudget> {
    let table = table.clone().only(&["amount", "per"], &[]);
    let amount = table.required("amount").and_then(|value| amount(&value));
    let per = table.required("per").and_then(|value| value.word(&PERIODS));
    Some(RawBudget { amount: amount?, per: per? })
}

/// What a budget may be.
pub(super) fn amount(value: &Value<'_>) -> Option<Field<Cost>> {
    let amount = value.cost()?;
    if amount.value.micro == 0 {
        let hint = "to forbid a caller everything that costs, take the routes out of its allow";
        value.report().add(value.mistake(Code::BadValue, "must be greater than zero").hint(hint));
        return None;
    }
    Some(amount)
}

fn unpriced(value: &Value<'_>) -> Option<Field<Unpriced>> {
    value.word(&[("allow", Unpriced::Allow), ("refuse", Unpriced::Refuse)])
}
