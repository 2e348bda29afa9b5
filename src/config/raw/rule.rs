//! `[[model.NAME.rule]]`, key by key.

use super::llm::{RawCandidate, RawTimeouts, candidates, order, timeouts};
use super::policy::{RawCondition, label};
use super::routes::place;
use crate::config::asking::Order;
use crate::config::error::Code;
use crate::config::read::{Table, Value};
use crate::config::report::Field;

#[derive(Debug)]
pub(in crate::config) struct RawRule {
    pub(in crate::config) at: Field<()>,
    pub(in crate::config) name: Option<Field<String>>,
    pub(in crate::config) when: Option<RawCondition>,
    pub(in crate::config) candidates: Option<Field<Vec<RawCandidate>>>,
    pub(in crate::config) order: Option<Field<Order>>,
    pub(in crate::config) timeouts: Option<RawTimeouts>,
    pub(in crate::config) max_attempts: Option<Field<u32>>,
}

impl RawRule {
    /// Reads every rule of a route.
    pub(super) fn read_all(value: &Value<'_>) -> Vec<Self> {
        value.tables().iter().map(Self::read).collect()
    }

    fn read(table: &Table<'_>) -> Self {
        const CHANGES: [&str; 4] = ["candidates", "order", "timeouts", "max_attempts"];
        let table = table.clone().only(&["name", "when", "candidates", "order", "timeouts", "max_attempts"], &[]);
        if CHANGES.iter().all(|key| table.get(key).is_none()) {
            let mistake = table.mistake(Code::MissingKey, "the rule changes nothing");
            table.report().add(mistake.hint(format!("write at least one of: {}", CHANGES.join(", "))));
        }
        Self {
            at: place(&table),
            name: table.get("name").and_then(|value| label(&value)),
            when: table.required("when").and_then(|value| value.string()).map(RawCondition),
            candidates: table.get("candidates").and_then(|value| candidates(&value)),
            order: table.get("order").and_then(|value| order(&value)),
            timeouts: table.get("timeouts").and_then(|value| timeouts(&value)),
            max_attempts: table.get("max_attempts").and_then(|value| value.whole(1..=5)),
        }
    }
}
