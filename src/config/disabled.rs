//! `disabled` of `routes.toml`: providers, and models of them, that are not asked for now.
//!
//! It takes candidates away after everything else was checked, so that what a route says of them (a hedge, a fallback,
//! weights) may stay as it is: to switch a provider off is one line, and so is to switch it on again. A route that would
//! have nobody left is a mistake, and so is a name that nobody has.

use std::collections::BTreeMap;

use super::asking::{Asking, Order};
use super::catalog::{Catalog, Pick};
use super::checks;
use super::error::Code;
use super::mask;
use super::raw::routes::RawRoutes;
use super::report::{Field, Mistake, Report};
use super::risk::PlannedRisk;
use super::rules_plan::PlannedRoute;
use crate::domain::id::RouteId;

/// What is switched off, each a provider or `provider/model`.
#[derive(Clone, Copy)]
pub(super) struct Disabled<'p> {
    entries: &'p [Field<String>],
    catalog: &'p Catalog,
    report: &'p Report<'p>,
}

impl<'p> Disabled<'p> {
    /// Checks that every entry names something, and nothing twice.
    pub(super) fn new(entries: &'p [Field<String>], catalog: &'p Catalog, report: &'p Report<'p>) -> Self {
        checks::unique(entries.iter(), "the entry", report);
        for entry in entries {
            let known = if entry.value.contains('/') {
                catalog.llm_pick(entry, report).map(drop)
            } else {
                catalog.exists(entry)
            };
            known.unwrap_or_else(|mistake| report.add(mistake));
        }
        Self { entries, catalog, report }
    }

    /// The entry that switches a candidate off, if one does.
    fn by(&self, pick: &Pick) -> Option<&'p Field<String>> {
        self.entries.iter().find(|entry| entry.value == pick.provider || entry.value == pick.upstream())
    }

    /// True if nobody switched it off.
    pub(super) fn leaves(&self, pick: &Pick) -> bool {
        self.by(pick).is_none()
    }

    /// What is switched off, for people.
    pub(super) fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.value.clone()).collect()
    }

    /// Takes candidates away from all routes.
    pub(super) fn apply(
        &self,
        raw: &RawRoutes,
        llm: &mut BTreeMap<RouteId, PlannedRoute>,
        risk: Option<&mut PlannedRisk>,
    ) {
        if self.entries.is_empty() {
            return;
        }
        for written in &raw.models {
            let Some(route) = llm.get_mut(written.name.value.as_str()) else { continue };
            let at = written.candidates.as_ref().map_or_else(|| written.name.with(()), |field| field.with(()));
            self.route(route, &at, "every candidate is disabled");
            for rule in &mut route.rules {
                self.route(&mut rule.route, &at, "every candidate of one of its rules is disabled");
            }
        }
        if let Some((risk, written)) = risk.zip(raw.risk.as_ref().and_then(|risk| risk.candidates.as_ref())) {
            self.thin(&mut risk.picks, None, &written.with(()), "every candidate is disabled");
        }
    }

    fn route(&self, route: &mut PlannedRoute, at: &Field<()>, nobody: &str) {
        self.thin(&mut route.picks, Some(&mut route.asking), at, nobody);
        route.shadow = route.shadow.take().filter(|shadow| self.leaves(&shadow.pick));
    }

    fn thin(&self, picks: &mut Vec<Pick>, asking: Option<&mut Asking>, at: &Field<()>, nobody: &str) {
        let left: Vec<bool> = picks.iter().map(|pick| self.leaves(pick)).collect();
        if let Some(last) = picks.last().filter(|_| left.iter().all(|left| !left)) {
            self.report.add(self.nobody(last, at, nobody));
            return;
        }
        let mut kept = left.iter().copied();
        picks.retain(|_| kept.next().unwrap_or(true));
        let Some(asking) = asking else { return };
        let mut kept = left.iter().copied();
        asking.weights.retain(|_| kept.next().unwrap_or(true));
        if asking.order == Order::Weighted && asking.weights.iter().all(|weight| *weight == 0) {
            let mistake =
                at.mistake(Code::Conflict, "of the candidates that are not disabled none has a weight above 0");
            self.report.add(mistake.hint("give one of them a weight, or take one out of `disabled`"));
        }
    }

    /// Where the last of them comes from, and what switched it off.
    fn nobody(&self, last: &Pick, at: &Field<()>, what: &str) -> Mistake {
        let mistake = at.mistake(Code::Conflict, what.to_owned());
        let name = last.upstream();
        let name = if mask::may_be_shown(&name) { format!("`{name}`") } else { "the last one".to_owned() };
        let by = self.by(last).map(|entry| self.report.place_of(entry.at)).unwrap_or_default();
        let defined = self.catalog.place_of(last, self.report).unwrap_or_default();
        mistake.hint(format!("{name} is defined at {defined}, disabled by {by}: take it out there, or add a candidate"))
    }
}
