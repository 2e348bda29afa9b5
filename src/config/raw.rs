//! Exactly what the text says: one struct per table, one field per key, every value with its place.
//!
//! Nothing here compares two keys, knows another file, or touches a secret; that is [`checks`](super::checks) and
//! [`compile`](super::compile). A value that could not be read is reported and then absent, so that reading goes on.

use toml::de::DeTable;

use super::error::Code;
use super::read::Table;
use super::report::{At, Field, Mistake, Report};
use super::source::SourceFile;

pub(super) mod budgets;
pub(super) mod cache;
pub(super) mod callers;
pub(super) mod cases;
pub(super) mod heartbeat;
pub(super) mod jurisdiction;
pub(super) mod keys;
pub(super) mod lint;
pub(super) mod lists;
pub(super) mod llm;
pub(super) mod overload;
pub(super) mod policy;
pub(super) mod prices;
pub(super) mod provider;
pub(super) mod reload;
pub(super) mod reuse;
pub(super) mod risk;
pub(super) mod routes;
pub(super) mod rule;
pub(super) mod shape;
pub(super) mod signature;
pub(super) mod tls;
pub(super) mod traces;
pub(super) mod velocity;
pub(super) mod webhook;

/// A parsed file; after a syntax error only what could be recovered.
pub(super) struct Document<'s> {
    pub(super) file: usize,
    pub(super) entries: DeTable<'s>,
    pub(super) sound: bool,
}

impl<'s> Document<'s> {
    /// Parses a file and reports all its syntax errors.
    pub(super) fn parse(source: &'s SourceFile, file: usize, report: &Report<'_>) -> Self {
        let (entries, errors) = DeTable::parse_recoverable(&source.text);
        for error in &errors {
            let end = source.text.len();
            let at = At::new(file, error.span().unwrap_or(end..end));
            // The parser's messages are fixed sentences; its `Display` would quote the line.
            report.add(Mistake::new(at, "", Code::Syntax, error.message()));
        }
        Self { file, entries: entries.into_inner(), sound: errors.is_empty() }
    }

    /// The document as a table to read; `kind` is its name in the schema.
    pub(super) fn root<'t>(&'t self, kind: &str, report: &'t Report<'t>) -> Table<'t> {
        Table::root(&self.entries, self.file, kind, report)
    }

    /// The `id` at the top, also of a file with mistakes.
    pub(super) fn id(&self) -> Option<&str> {
        self.entries.get("id").and_then(|id| id.get_ref().as_str())
    }
}

/// Where a fact was found, and when somebody looked.
#[derive(Clone, Debug)]
pub(super) struct RawFact {
    pub(super) url: Field<String>,
    pub(super) checked: Field<String>,
}

impl RawFact {
    /// Reads two keys of a table.
    fn read(table: &Table<'_>, url: &str) -> Option<Self> {
        let url = table.required(url).and_then(|value| value.string()).filter(|url| is_page(url, table));
        let checked = table.required("checked").and_then(|value| value.day());
        Some(Self { url: url?, checked: checked? })
    }
}

fn is_page(url: &Field<String>, table: &Table<'_>) -> bool {
    let page = url.value.starts_with("https://") && url.value.bytes().all(|b| b.is_ascii_graphic());
    if !page {
        let mistake = url.mistake(Code::BadValue, "not an https address");
        table.report().add(mistake.hint("give the page where this can be read, as in \"https://…\""));
    }
    page
}
