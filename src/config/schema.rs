//! What may stand in `routes.toml` and in provider files, as data: for editors (JSON Schema) and for people.
//!
//! The files are read by hand ([`read`](super::read) says why), so there is no type to derive a schema from. Instead the
//! reading code and these tables are held together by tests: every table, word, bound and type that is read must be here,
//! and everything here must be read. A schema knows one value at a time; rules that compare values stay in
//! [`checks`](super::checks).

use serde_json::{Map, Value as Json, json};

mod provider;
mod routes;

#[cfg(test)]
mod tests;

/// The name of `routes.toml` in places, and of its schema.
pub const ROUTES: &str = "routes";
/// The name of provider files in places, and of their schema.
pub const PROVIDER: &str = "provider";
/// The names of all schemas.
pub const NAMES: [&str; 2] = [ROUTES, PROVIDER];

/// Every currency code looks like this; which ones are active is checked when the file is read.
const MONEY: &str = "^[0-9]+(\\.[0-9]+)? [A-Z]{3}$";
const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
const SIZE: &str = "^[0-9]+(B|KiB|MiB|GiB)$";

/// What a value may be.
pub(super) enum Kind {
    /// Any text.
    Text,
    /// Text of a form, as a regular expression.
    Form(&'static str),
    /// One of these words.
    Words(&'static [&'static str]),
    /// A whole number from and to.
    Whole(i64, i64),
    /// A number from and to.
    Number(f64, f64),
    Flag,
    /// `"800ms"`
    Duration,
    /// `"64KiB"`
    Size,
    /// `"50.00 CNY"`
    Money,
    /// `"2026-11-22"`, or the same without quotes.
    Day,
    List(&'static Kind),
    /// A table with freely chosen keys.
    Map(&'static Kind),
    /// A table with these keys and no others.
    Table(&'static [Key]),
    /// Any of these.
    Either(&'static [Kind]),
    /// Any JSON value.
    Json,
}

/// One key of a table.
pub(super) struct Key {
    name: &'static str,
    kind: Kind,
    says: &'static str,
    required: bool,
}

/// A key that may be left out.
const fn key(name: &'static str, kind: Kind, says: &'static str) -> Key {
    Key { name, kind, says, required: false }
}

/// A key that must be there.
const fn must(name: &'static str, kind: Kind, says: &'static str) -> Key {
    Key { name, kind, says, required: true }
}

fn root(name: &str) -> Option<(&'static [Key], &'static str)> {
    match name {
        ROUTES => Some((routes::ROOT, "Weighbridge's routes: who may call, what they may ask for, and who answers.")),
        PROVIDER => Some((provider::ROOT, "A provider of Weighbridge: where it is, what it offers, what it costs.")),
        _ => None,
    }
}

/// The JSON Schema (draft 2020-12) of [`ROUTES`] or [`PROVIDER`]; `None` for any other name.
pub fn json_schema(name: &str) -> Option<Json> {
    let (keys, says) = root(name)?;
    let Json::Object(table) = Kind::Table(keys).json() else { return None };
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!(if name == ROUTES { "routes.toml" } else { "provider file" }));
    schema.insert("description".to_owned(), json!(says));
    schema.extend(table);
    Some(Json::Object(schema))
}

/// The schema as it lies in the repository's `schema` folder and is served.
pub fn text(name: &str) -> Option<String> {
    let mut text = serde_json::to_string_pretty(&json_schema(name)?).ok()?;
    text.push('\n');
    Some(text)
}

impl Kind {
    fn json(&self) -> Json {
        match self {
            Self::Text => json!({ "type": "string" }),
            Self::Form(pattern) => json!({ "type": "string", "pattern": pattern }),
            Self::Words(words) => json!({ "type": "string", "enum": words }),
            Self::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Self::Number(least, most) => json!({ "type": "number", "minimum": least, "maximum": most }),
            Self::Flag => json!({ "type": "boolean" }),
            Self::Duration => Self::Form(DURATION).json(),
            Self::Size => Self::Form(SIZE).json(),
            Self::Money => Self::Form(MONEY).json(),
            // TOML has dates of its own, and JSON Schema has not: `format` is how an editor is told of them.
            Self::Day => json!({ "anyOf": [
                { "type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$" },
                { "type": "string", "format": "date" },
            ] }),
            Self::List(of) => json!({ "type": "array", "items": of.json() }),
            Self::Map(of) => json!({ "type": "object", "additionalProperties": of.json() }),
            Self::Table(keys) => table(keys),
            Self::Either(kinds) => json!({ "anyOf": kinds.iter().map(Self::json).collect::<Vec<_>>() }),
            Self::Json => json!({ "additionalProperties": true }),
        }
    }
}

fn table(keys: &[Key]) -> Json {
    let property = |key: &Key| {
        let mut schema = Map::new();
        schema.insert("description".to_owned(), json!(key.says));
        if let Json::Object(kind) = key.kind.json() {
            schema.extend(kind);
        }
        (key.name.to_owned(), Json::Object(schema))
    };
    let properties: Map<String, Json> = keys.iter().map(property).collect();
    let required: Vec<_> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("properties".to_owned(), Json::Object(properties));
    schema.insert("additionalProperties".to_owned(), json!(false));
    Json::Object(schema)
}
