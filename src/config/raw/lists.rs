//! `[[risk.list]]`: who is allowed, blocked or reviewed.

use crate::config::error::Code;
use crate::config::lists::ListBy;
use crate::config::read::{Table, Value};
use crate::config::report::Field;
use crate::domain::policy::ListKind;

use super::policy::label;
use super::routes::place;

/// Longest path of a list's file, in bytes.
const LONGEST_PATH: usize = 512;

#[derive(Debug)]
pub(in crate::config) struct RawList {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) kind: Option<Field<ListKind>>,
    pub(in crate::config) by: Option<Field<ListBy>>,
    pub(in crate::config) values: Option<RawValues>,
}

/// Where the values are.
pub(in crate::config) enum RawValues {
    Inline(Vec<Field<String>>),
    File(Field<String>),
}

impl std::fmt::Debug for RawValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("values")
    }
}

impl RawList {
    /// Reads one list.
    pub(super) fn read(table: &Table<'_>) -> Self {
        const KINDS: [(&str, ListKind); 3] =
            [("allow", ListKind::Allow), ("block", ListKind::Block), ("review", ListKind::Review)];
        let table = table.clone().only(&["name", "kind", "by", "values", "file"], &[]);
        Self {
            at: place(&table),
            name: table.required("name").and_then(|value| label(&value)),
            kind: table.required("kind").and_then(|value| value.word(&KINDS)),
            by: table.required("by").and_then(|value| value.word(&ListBy::WORDS)),
            values: values(&table),
        }
    }
}

fn values(table: &Table<'_>) -> Option<RawValues> {
    match (table.get("values"), table.get("file")) {
        (Some(values), None) => values.strings().map(RawValues::Inline),
        (None, Some(file)) => path(&file).map(RawValues::File),
        (Some(_), Some(file)) => {
            let mistake = file.mistake(Code::Conflict, "both values and file are given");
            table.report().add(mistake.hint("keep one of them"));
            None
        }
        (None, None) => {
            let mistake = table.mistake(Code::MissingKey, "missing key `values` or `file`");
            table.report().add(mistake.hint("write values = [\"..\"], or the path of a file with one value a line"));
            None
        }
    }
}

fn path(value: &Value<'_>) -> Option<Field<String>> {
    let path = value.string()?;
    if path.value.is_empty() || path.value.len() > LONGEST_PATH || path.value.contains('\0') {
        return value.bad("not the path of a file");
    }
    Some(path)
}
