//! Policies and lists as the rest of the program has them, and how two configurations differ in them.
//!
//! First match wins, so the order of the file is part of what it says.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::expr::Condition;
use super::lists::List;
use crate::domain::policy::Ruling;

/// What can change who decides an attempt. Empty for most configurations.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// In the order of the file; the first that matches decides.
    pub policies: Vec<Policy>,
    /// The strongest kind first: block, review, allow.
    pub lists: Vec<Arc<List>>,
}

impl Rules {
    /// True if the route's own ruling decides everything.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.lists.is_empty()
    }
}

/// One policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// For which attempts; all of them without a condition.
    pub when: Option<Condition>,
    /// What decides them. Its rule is the policy's name.
    pub ruling: Arc<Ruling>,
}

impl Policy {
    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.ruling.applied.rule
    }
}

/// Which settings of a policy differ, its place in the order aside.
pub(super) fn changed_policy(old: &Policy, new: &Policy) -> Vec<&'static str> {
    let (before, after) = (&old.ruling, &new.ruling);
    let settings = [
        ("when", old.when == new.when),
        ("bands", before.applied.bands == after.applied.bands),
        ("vendor_action", before.vendor_action == after.vendor_action),
        ("on_exhausted", before.on_exhausted == after.on_exhausted),
        ("action", before.at_least == after.at_least),
    ];
    settings.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

/// Policies by name, for a diff.
pub(super) fn by_name(rules: &Rules) -> BTreeMap<String, Arc<Policy>> {
    rules.policies.iter().map(|policy| (policy.name().to_string(), Arc::new(policy.clone()))).collect()
}
