//! Which configuration versions decide alike: a reload that changed nothing about decisions ends no reuse.
//!
//! It only says whose rules are the same; every guard is asked all the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::policy::Ruling;

/// Versions remembered; decisions of older ones are not given again.
const MOST: usize = 64;

/// Versions in a row whose risk routes differ in nothing, the newest last.
#[derive(Default)]
pub(super) struct Lineage(Mutex<Vec<Arc<str>>>);

impl Lineage {
    /// `after` decides as `before` did.
    pub(super) fn goes_on(&self, before: &Arc<str>, after: &Arc<str>) {
        let mut alike = self.alike();
        if !alike.contains(before) {
            *alike = vec![Arc::clone(before)];
        }
        if !alike.contains(after) {
            alike.push(Arc::clone(after));
        }
        let over = alike.len().saturating_sub(MOST);
        alike.drain(..over);
    }

    /// `after` decides in its own way.
    pub(super) fn begins(&self, after: &Arc<str>) {
        *self.alike() = vec![Arc::clone(after)];
    }

    /// True if both rulings are the same but for their versions, and those decide alike.
    pub(super) fn is_one(&self, known: &Ruling, wanted: &Ruling) -> bool {
        let [before, after] = [known, wanted].map(|ruling| &ruling.applied.version);
        let alike = self.alike();
        alike.contains(before) && alike.contains(after) && {
            drop(alike);
            let mut renewed = known.clone();
            renewed.applied.version = Arc::clone(after);
            renewed == *wanted
        }
    }

    fn alike(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Applied;
    use crate::domain::policy::{FailureModes, OnExhausted, VendorAction};

    fn version(name: &str) -> Arc<str> {
        name.into()
    }

    fn ruling(name: &str) -> Ruling {
        let applied = Applied { version: version(name), ..Applied::sample() };
        Ruling::plain(applied, VendorAction::Floor, FailureModes::all(OnExhausted::Review))
    }

    #[test]
    fn versions_in_a_row_are_one_until_one_differs() {
        let lineage = Lineage::default();
        assert!(!lineage.is_one(&ruling("a"), &ruling("b")));
        lineage.goes_on(&version("a"), &version("b"));
        lineage.goes_on(&version("b"), &version("c"));
        assert!(lineage.is_one(&ruling("a"), &ruling("c")) && lineage.is_one(&ruling("c"), &ruling("a")));
        let other = Ruling { vendor_action: VendorAction::Advisory, ..ruling("c") };
        assert!(!lineage.is_one(&ruling("a"), &other), "another policy matched");
        lineage.begins(&version("d"));
        assert!(!lineage.is_one(&ruling("c"), &ruling("d")));
        lineage.goes_on(&version("d"), &version("e"));
        assert!(lineage.is_one(&ruling("d"), &ruling("e")) && !lineage.is_one(&ruling("c"), &ruling("e")));
    }

    #[test]
    fn only_so_many_versions_are_remembered() {
        let lineage = Lineage::default();
        for number in 0..200 {
            lineage.goes_on(&version(&number.to_string()), &version(&(number + 1).to_string()));
        }
        assert_eq!(lineage.alike().len(), MOST);
        assert!(lineage.is_one(&ruling("199"), &ruling("200")) && !lineage.is_one(&ruling("0"), &ruling("200")));
    }
}
