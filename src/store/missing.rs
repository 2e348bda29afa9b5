//! What could not be recorded while writing failed, so that the record can say how much is not in it.
//!
//! A decision is tried more than once and counts once, and not at all if a later try succeeded. It keeps names and no
//! decision: what was not recorded is lost to the record.

use std::collections::HashSet;

use super::book::Gap;
use super::record::Entry;
use crate::domain::clock;
use crate::domain::id::DecisionId;

/// Decisions that are told apart; of more than these each failed try counts.
const MOST: usize = 100_000;

/// What is missing since writing first failed.
pub(super) struct Missing {
    since_ms: u64,
    decisions: HashSet<DecisionId>,
    others: u64,
}

impl Missing {
    /// Nothing yet.
    pub(super) fn since_now() -> Self {
        Self { since_ms: clock::unix_ms(), decisions: HashSet::new(), others: 0 }
    }

    /// These were not recorded.
    pub(super) fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            match entry {
                Entry::Decision(new) | Entry::Refusal(new) if self.decisions.len() < MOST => {
                    self.decisions.insert(new.id.clone());
                }
                Entry::Decision(new) | Entry::Refusal(new) if self.decisions.contains(&new.id) => {}
                Entry::Decision(_) | Entry::Refusal(_) | Entry::Outcome(_) => {
                    self.others = self.others.saturating_add(1);
                }
                Entry::Notice(_) | Entry::Tried(_) => {}
            }
        }
    }

    /// What there is to say of it when these are recorded.
    pub(super) fn gap(&self, recorded: &[Entry]) -> Gap {
        let after_all: HashSet<_> = recorded.iter().filter_map(Entry::decision_id).collect();
        let decisions = self.decisions.iter().filter(|id| !after_all.contains(id)).count();
        let entries = u64::try_from(decisions).unwrap_or(u64::MAX).saturating_add(self.others);
        Gap { since_ms: self.since_ms, entries }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::told;
    use super::*;

    #[test]
    fn a_decision_that_failed_twice_is_missing_once_and_one_that_came_through_is_not() {
        let mut missing = Missing::since_now();
        missing.note(&[told("u", 1), told("u", 2)]);
        missing.note(&[told("u", 2), told("u", 3)]);
        assert_eq!(missing.gap(&[told("u", 9)]).entries, 3);
        assert_eq!(missing.gap(&[told("u", 3)]).entries, 2);
    }
}
