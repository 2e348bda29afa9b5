//! `[[webhook]]`, key by key.

use super::provider::{RawAuth, auth};
use super::routes::place;
use crate::config::read::Table;
use crate::config::report::Field;

const KEYS: [&str; 4] = ["tenant", "url", "allow_private", "auth"];

#[derive(Debug)]
pub(in crate::config) struct RawWebhook {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) tenant: Option<Field<String>>,
    pub(in crate::config) url: Option<Field<String>>,
    pub(in crate::config) allow_private: Option<Field<bool>>,
    pub(in crate::config) auth: Option<RawAuth>,
}

impl RawWebhook {
    pub(super) fn read(table: &Table<'_>) -> Self {
        let table = table.clone().only(&KEYS, &[]);
        Self {
            at: place(&table),
            tenant: table.required("tenant").and_then(|value| value.name("-_.")),
            url: table.required("url").and_then(|value| value.string()),
            allow_private: table.get("allow_private").and_then(|value| value.flag()),
            auth: table.required("auth").and_then(|value| auth(&value)),
        }
    }
}
