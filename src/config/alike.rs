//! Whether two configurations decide payments alike, so that what one decided holds under the other.

use std::sync::Arc;

use super::table::RiskRoute;
use crate::domain::policy::Ruling;

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
