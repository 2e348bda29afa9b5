//! `lint` of `routes.toml`: warnings that are meant to be so.

use crate::config::error::Code;
use crate::config::read::Value;
use crate::config::report::Field;
use crate::config::rule::Rule;

/// Most entries; each may be about one thing only.
const MOST: usize = 1_000;

/// One entry: a code, or a code for one thing.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawAllowed {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) rule: Rule,
    /// What it is about; `None` for everything.
    pub(in crate::config) about: Option<String>,
}

/// `lint = { allow = ["W007", "W010:checkout"] }`.
pub(super) fn allowed(value: &Value<'_>) -> Vec<RawAllowed> {
    let Some(allow) = value.table().and_then(|table| table.only(&["allow"], &[]).get("allow")) else {
        return Vec::new();
    };
    let entries = allow.strings().unwrap_or_default();
    if entries.len() > MOST {
        return allow.bad(format!("more than {MOST} entries")).unwrap_or_default();
    }
    entries.iter().filter_map(|entry| one(entry, &allow)).collect()
}

fn one(entry: &Field<String>, value: &Value<'_>) -> Option<RawAllowed> {
    let (code, about) = match entry.value.split_once(':') {
        Some((code, about)) => (code, Some(about.to_owned())),
        None => (entry.value.as_str(), None),
    };
    let Some(rule) = Rule::ALL.into_iter().find(|rule| rule.code() == code) else {
        let known = Rule::ALL.first().zip(Rule::ALL.last()).map(|(first, last)| (first.code(), last.code()));
        let (first, last) = known.unwrap_or_default();
        let mistake = entry.mistake(Code::UnknownName, "no such warning");
        value.report().add(mistake.hint(format!("known: {first} to {last}; for one thing only: {first}:NAME")));
        return None;
    };
    Some(RawAllowed { at: entry.with(()), rule, about })
}
