//! The keys of a provider file that say how its interface differs from the protocol: members of bodies, paths, codes.

use std::collections::BTreeMap;

use super::provider::{CLASSES, operation_words};
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::domain::operation::Operation;
use crate::domain::outcome::FailureClass;
use crate::wire::json_edit::Added;

/// Most entries of each of these keys.
const MOST: usize = 32;
/// Longest name of a member, or code.
const LONGEST_NAME: usize = 64;
/// Longest path.
const LONGEST_PATH: usize = 200;
/// Deepest nesting of a value in `body`.
const DEEPEST: usize = 4;

#[derive(Clone, Debug, Default)]
pub(in crate::config) struct RawShape {
    pub(in crate::config) add: Vec<(Field<String>, Added)>,
    pub(in crate::config) drop: Vec<Field<String>>,
    pub(in crate::config) rename: Vec<(Field<String>, Field<String>)>,
    pub(in crate::config) paths: Vec<(Field<Operation>, String)>,
    pub(in crate::config) error_codes: BTreeMap<String, FailureClass>,
    /// The first of these keys, if there is one.
    pub(in crate::config) at: Option<Field<()>>,
}

impl RawShape {
    /// Reads these keys of a provider file.
    pub(in crate::config) fn read(root: &Table<'_>) -> Self {
        const NAMES: [&str; 5] = ["body", "drop", "rename", "paths", "error_codes"];
        let get = |name: &str| root.get(name);
        let first = NAMES.iter().find_map(|name| get(name));
        Self {
            add: get("body").map(|value| body(&value)).unwrap_or_default(),
            drop: get("drop").map(|value| drop_list(&value)).unwrap_or_default(),
            rename: get("rename").map(|value| rename(&value)).unwrap_or_default(),
            paths: get("paths").map(|value| paths(&value)).unwrap_or_default(),
            error_codes: get("error_codes").map(|value| error_codes(&value)).unwrap_or_default(),
            at: first.map(|value| Field { value: (), at: value.at, key: value.key }),
        }
    }
}

/// The entries of a table, at most [`MOST`] of them.
fn entries<'t>(value: &Value<'t>) -> Vec<(Field<String>, Value<'t>)> {
    let Some(table) = value.table() else { return Vec::new() };
    let entries: Vec<_> = table.entries().collect();
    if entries.len() > MOST {
        return value.bad(format!("more than {MOST} entries")).unwrap_or_default();
    }
    entries
}

fn body(value: &Value<'_>) -> Vec<(Field<String>, Added)> {
    let added = |(name, value): (Field<String>, Value<'_>)| Some((member(&name, &value)?, added(&value)?));
    entries(value).into_iter().filter_map(added).collect()
}

fn added(value: &Value<'_>) -> Option<Added> {
    if !value.is_table() {
        return Some(Added::Value(json(value)?));
    }
    let members = entries(value).into_iter().map(|(name, value)| {
        let text = json(&value)?;
        Some((member(&name, &value)?.value, text))
    });
    Some(Added::Members(members.collect::<Option<_>>()?))
}

fn json(value: &Value<'_>) -> Option<String> {
    let text = value.json(DEEPEST)?.to_string();
    let lower = text.to_ascii_lowercase();
    if lower.contains("\"sk-") || lower.contains("\"bearer ") {
        let mistake = value.mistake(Code::BadValue, "bodies must not carry credentials");
        value.report().add(mistake.hint("use auth with secret_env"));
        return None;
    }
    Some(text)
}

/// A member's name: not empty, short, and none that is for a secret, which would not be masked here.
fn member(name: &Field<String>, value: &Value<'_>) -> Option<Field<String>> {
    const CREDENTIALS: [&str; 6] = ["api_key", "apikey", "secret", "password", "authorization", "credential"];
    let lower = name.value.to_ascii_lowercase();
    if CREDENTIALS.iter().any(|word| lower.contains(word)) {
        let mistake = name.mistake(Code::BadValue, "bodies must not carry credentials");
        value.report().add(mistake.hint("use auth with secret_env"));
        return None;
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if name.value.is_empty() || name.value.len() > LONGEST_NAME || !name.value.bytes().all(plain) {
        value.report().add(name.mistake(Code::BadValue, "a member's name has 1 to 64 visible ASCII characters"));
        return None;
    }
    Some(name.clone())
}

fn drop_list(value: &Value<'_>) -> Vec<Field<String>> {
    let values = value.list().unwrap_or_default();
    if values.len() > MOST {
        return value.bad(format!("more than {MOST} entries")).unwrap_or_default();
    }
    values.iter().filter_map(|value| member(&value.string()?, value)).collect()
}

fn rename(value: &Value<'_>) -> Vec<(Field<String>, Field<String>)> {
    let pair =
        |(old, value): (Field<String>, Value<'_>)| Some((member(&old, &value)?, member(&value.string()?, &value)?));
    entries(value).into_iter().filter_map(pair).collect()
}

fn paths(value: &Value<'_>) -> Vec<(Field<Operation>, String)> {
    let words = operation_words();
    let path = |(name, value): (Field<String>, Value<'_>)| {
        let text = value.string()?.value;
        let fits = text.starts_with('/') && !text.ends_with('/') && text.len() <= LONGEST_PATH;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~:".contains(&byte);
        if !fits || !text.bytes().all(plain) || text.contains("//") || text.contains("/.") {
            return value.bad("write the whole path on the provider's host, as in \"/anthropic/v1/messages\"");
        }
        let known = words.iter().find(|(word, _)| *word == name.value);
        let Some((_, operation)) = known else {
            let mistake = name.mistake(Code::UnknownName, "no such operation");
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            value.report().add(mistake.hint(format!("known: {}", known.join(", "))));
            return None;
        };
        Some((name.with(*operation), text))
    };
    entries(value).into_iter().filter_map(path).collect()
}

fn error_codes(value: &Value<'_>) -> BTreeMap<String, FailureClass> {
    let code = |(code, value): (Field<String>, Value<'_>)| {
        let class = value.word(&CLASSES)?.value;
        if code.value.is_empty() || code.value.len() > LONGEST_NAME {
            value.report().add(code.mistake(Code::BadValue, "a code has 1 to 64 characters"));
            return None;
        }
        Some((code.value, class))
    };
    entries(value).into_iter().filter_map(code).collect()
}
