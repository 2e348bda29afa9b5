//! When earlier decisions are given again: `[risk] reuse`, validated.

use std::sync::Arc;

use super::table::RiskRoute;
use crate::domain::policy::Ruling;
use crate::domain::reuse::Terms;

/// How decisions are reused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReusePolicy {
    /// When memory is asked.
    pub mode: ReuseMode,
    /// What it may say.
    pub terms: Terms,
    /// How many of the calls that could be answered from memory go live all the same, in millionths.
    pub self_audit: u32,
    /// How many of those may disagree with the provider, in millionths.
    pub max_disagreement: u32,
}

/// When memory is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReuseMode {
    /// Once no provider decided in time.
    WhenLate,
    /// Before any provider, and again once none decided in time.
    First,
}

impl RiskRoute {
    /// True if it differs from another configuration's in nothing but the version: the same providers at the same places,
    /// bands, policies, lists, counters and terms.
    pub fn decides_as(&self, other: &Self) -> bool {
        let version = &other.ruling.applied.version;
        let renewed = |ruling: &Arc<Ruling>| {
            let mut renewed = Ruling::clone(ruling);
            renewed.applied.version = Arc::clone(version);
            Arc::new(renewed)
        };
        let mut again = Self { ruling: renewed(&self.ruling), ..self.clone() };
        again.rules.policies.iter_mut().for_each(|policy| policy.ruling = renewed(&policy.ruling));
        again == *other
    }
}
