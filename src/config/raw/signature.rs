//! `signature` of a caller: one key, or several while one replaces the other.

use super::keys::{RawKey, RawKeys};
use crate::config::error::Code;
use crate::config::read::Value;

const SINGLE: [&str; 4] = ["key_id", "secret_env", "secret_file", "secret_encoding"];

#[derive(Debug)]
pub(in crate::config) enum RawSignature {
    /// `{ key_id = "k1", secret_env = "…", secret_encoding = "hex" }`
    Single(Box<RawKey>),
    /// `{ keys = […] }`
    Several(RawKeys),
}

impl RawSignature {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?.only(&["key_id", "secret_env", "secret_file", "secret_encoding", "keys"], &[]);
        let Some(keys) = table.get("keys") else { return Some(Self::Single(Box::new(RawKey::of(&table, "key_id")))) };
        for name in SINGLE {
            if let Some(misplaced) = table.get(name) {
                let mistake = misplaced.mistake(Code::Conflict, "this belongs to a single key, and there is a list");
                table.report().add(mistake.hint("move it into keys"));
            }
        }
        RawKeys::read(&keys).map(Self::Several)
    }
}
