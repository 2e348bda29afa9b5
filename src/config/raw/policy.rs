//! `[[risk.policy]]`, and `on_exhausted`, which policies share with `[risk]`.

use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::config::units;
use crate::domain::decision::{Action, Score};
use crate::domain::policy::{FailureModes, OnExhausted, VendorAction};

use super::risk::{score, vendor_action};
use super::routes::place;

/// Longest name of a policy or a list, in characters.
const LONGEST_NAME: usize = 64;

#[derive(Debug)]
pub(in crate::config) struct RawPolicy {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) when: Option<RawCondition>,
    pub(in crate::config) bands: Option<RawSomeBands>,
    pub(in crate::config) vendor_action: Option<Field<VendorAction>>,
    pub(in crate::config) on_exhausted: Option<Field<FailureModes>>,
    pub(in crate::config) action: Option<Field<Action>>,
}

/// A condition's text. It may be about people, so `Debug` does not show it.
pub(in crate::config) struct RawCondition(pub(in crate::config) Field<String>);

impl std::fmt::Debug for RawCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("condition")
    }
}

/// Thresholds of which any may be missing.
#[derive(Clone, Debug)]
pub(in crate::config) struct RawSomeBands {
    pub(in crate::config) pass_below: Option<Field<Score>>,
    pub(in crate::config) review_from: Option<Field<Score>>,
    pub(in crate::config) reject_from: Option<Field<Score>>,
}

impl RawPolicy {
    /// Reads one policy.
    pub(super) fn read(table: &Table<'_>) -> Self {
        const ACTIONS: [(&str, Action); 3] =
            [("CHALLENGE", Action::Challenge), ("REVIEW", Action::Review), ("REJECT", Action::Reject)];
        const POLICY_KEYS: [&str; 6] = ["name", "when", "bands", "vendor_action", "on_exhausted", "action"];
        let table = table.clone().only(&POLICY_KEYS, &[]);
        Self {
            at: place(&table),
            name: table.required("name").and_then(|value| label(&value)),
            when: table.get("when").and_then(|value| value.string()).map(RawCondition),
            bands: table.get("bands").and_then(|value| some_bands(&value)),
            vendor_action: table.get("vendor_action").and_then(|value| vendor_action(&value)),
            on_exhausted: table.get("on_exhausted").and_then(|value| on_exhausted(&value)),
            action: table.get("action").and_then(|value| action(&value, &ACTIONS)),
        }
    }
}

/// A name for people: it appears in answers, logs and diffs.
pub(super) fn label(value: &Value<'_>) -> Option<Field<String>> {
    let name = value.string()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_.".contains(c);
    let begins_well = name.value.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.value.len() <= LONGEST_NAME && name.value.chars().all(plain) && !name.value.ends_with(' ') {
        return Some(name);
    }
    value.bad("a name has 1 to 64 letters, digits, spaces and - _ ., and begins with a letter or digit")
}

fn action(value: &Value<'_>, words: &[(&str, Action)]) -> Option<Field<Action>> {
    if value.is_string() && value.string()?.value == "PASS" {
        let mistake = value.mistake(Code::BadValue, "every action is PASS at least");
        value.report().add(mistake.hint("to let somebody pass, write a [[risk.list]] with kind = \"allow\""));
        return None;
    }
    value.word(words)
}

pub(super) fn some_bands(value: &Value<'_>) -> Option<RawSomeBands> {
    let table = value.table()?.only(&["pass_below", "review_from", "reject_from"], &[]);
    let threshold = |name: &str| table.get(name).and_then(|value| score(&value));
    Some(RawSomeBands {
        pass_below: threshold("pass_below"),
        review_from: threshold("review_from"),
        reject_from: threshold("reject_from"),
    })
}

/// One mode for every cause, or a table of modes by cause.
pub(super) fn on_exhausted(value: &Value<'_>) -> Option<Field<FailureModes>> {
    let by_cause = value.is_table() && value.table()?.get("accept_up_to").is_none();
    if by_cause {
        return modes(value);
    }
    let mode = mode(value)?;
    Some(mode.with(FailureModes::all(mode.value)))
}

fn modes(value: &Value<'_>) -> Option<Field<FailureModes>> {
    const CAUSES: [&str; 6] = ["deadline", "unavailable", "no_verdict", "not_authentic", "budget", "default"];
    let table = value.table()?;
    if !table.entries().any(|_| true) {
        return value.bad("the table is empty; write a mode for a cause, as in deadline = \"review\"");
    }
    let table = table.only(&CAUSES, &[]);
    let otherwise = table.get("default").and_then(|value| mode(&value)).map_or(OnExhausted::Review, |mode| mode.value);
    let late = |cause: &str| table.get(cause).and_then(|value| mode(&value)).map_or(otherwise, |mode| mode.value);
    let answered = |cause: &str, why: &str| {
        let mode = table.get(cause).and_then(|value| mode_of_answer(&value, why));
        mode.map_or(otherwise, |mode| mode.value)
    };
    let modes = FailureModes {
        deadline: late("deadline"),
        unavailable: late("unavailable"),
        no_verdict: answered("no_verdict", "whoever can make a provider answer badly could make any payment pass"),
        not_authentic: answered("not_authentic", "whoever can forge an answer could make any payment pass"),
        budget: answered("budget", "whoever can spend a merchant's money could make any payment pass"),
        otherwise,
    };
    Some(Field { value: modes, at: value.at, key: std::sync::Arc::clone(&value.key) })
}

fn mode_of_answer(value: &Value<'_>, why: &str) -> Option<Field<OnExhausted>> {
    let mode = mode(value)?;
    if let OnExhausted::AcceptUpTo(_) = mode.value {
        let mistake = value.mistake(Code::Conflict, format!("nothing is accepted after such an answer: {why}"));
        value.report().add(mistake.hint("write \"review\", \"reject\", \"error\" or \"local_rules\""));
        return None;
    }
    Some(mode)
}

fn mode(value: &Value<'_>) -> Option<Field<OnExhausted>> {
    const WORDS: [(&str, OnExhausted); 4] = [
        ("review", OnExhausted::Review),
        ("reject", OnExhausted::Reject),
        ("error", OnExhausted::Error),
        ("local_rules", OnExhausted::LocalRules),
    ];
    if value.is_string() {
        let word = value.string()?;
        let meaning = WORDS.iter().find(|(known, _)| *known == word.value).map(|(_, meaning)| *meaning);
        if meaning.is_none() {
            let mistake = value.mistake(Code::BadValue, "not one of the known words");
            let known = "known: review, reject, error, local_rules, or { accept_up_to = \"50.00 CNY\" }";
            value.report().add(mistake.hint(known));
        }
        return Some(word.with(meaning?));
    }
    let amount = value.table()?.only(&["accept_up_to"], &[]).required("accept_up_to")?;
    let text = amount.string()?;
    match units::money(&text.value) {
        Ok(money) => Some(text.with(OnExhausted::AcceptUpTo(money))),
        Err(error) => amount.bad(error.to_string()),
    }
}
