//! JSON objects under construction whose values are JSON already, as they were spelt.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::wire::object::text;

/// Members in the order they were first set.
#[derive(Clone, Default)]
pub(super) struct Parts(Vec<(String, String)>);

impl Parts {
    /// Sets a member to what is JSON already.
    pub(super) fn set(&mut self, key: &str, json: impl Into<String>) {
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, value)) => *value = json.into(),
            None => self.0.push((key.to_owned(), json.into())),
        }
    }

    /// Sets a member to a text, a number, a list of such.
    pub(super) fn put(&mut self, key: &str, value: impl Serialize) {
        self.set(key, written(value));
    }

    /// Takes a member that is the same wherever it comes; `None` if it is not. Null and the empty text say nothing.
    pub(super) fn once(&mut self, key: &str, value: &RawValue) -> Option<()> {
        match self.get(key) {
            Some(known) if known == value.get() || is_nothing(value.get()) => {}
            Some(known) if !is_nothing(known) => return None,
            _ => self.set(key, value.get()),
        }
        Some(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn extend(&mut self, other: &Self) {
        for (key, value) in &other.0 {
            self.set(key, value.as_str());
        }
    }

    pub(super) fn json(&self) -> String {
        let mut json =
            String::with_capacity(2 + self.0.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>());
        json.push('{');
        for (number, (key, value)) in self.0.iter().enumerate() {
            if number > 0 {
                json.push(',');
            }
            json.push_str(&written(key));
            json.push(':');
            json.push_str(value);
        }
        json.push('}');
        json
    }
}

/// Null and the empty text: what a provider writes where it has nothing to say.
fn is_nothing(json: &str) -> bool {
    matches!(json, "null" | "\"\"")
}

/// Null, and whatever has nothing in it.
pub(super) fn is_empty(json: &str) -> bool {
    is_nothing(json) || matches!(json, "[]" | "{}")
}

pub(super) fn written(value: impl Serialize) -> String {
    // Strings, numbers and lists of them always serialise.
    serde_json::to_string(&value).unwrap_or_default()
}

/// A list of JSON texts.
pub(super) fn list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<_> = items.into_iter().collect();
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(","))
}

/// The elements of a list; `None` if the value is none.
pub(super) fn elements(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// A text that comes in pieces. Null is a piece of nothing.
#[derive(Default)]
pub(super) struct Joined(Option<String>);

impl Joined {
    /// Adds a piece; `None` if it is no text.
    pub(super) fn add(&mut self, piece: &RawValue) -> Option<()> {
        if piece.get() != "null" {
            self.0.get_or_insert_default().push_str(&text(piece)?);
        }
        Some(())
    }

    /// The text, if there was any piece of it.
    pub(super) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}
