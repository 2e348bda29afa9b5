//! From `[risk]` to the risk route, its providers still missing.

use std::sync::Arc;
use std::time::Duration;

use super::audit::OnUnrecorded;
use super::budgeting;
use super::budgets::RiskBudgets;
use super::catalog::{Catalog, Pick, picks};
use super::checks;
use super::counters;
use super::error::Code;
use super::lists_plan::ListFiles;
use super::policy_plan::{Inherited, PlannedRules, plan_rules};
use super::raw::risk::RawRisk;
use super::report::{Report, accept};
use super::reuse::ReusePolicy;
use super::reusing;
use super::units;
use super::velocity::VelocityRule;
use crate::domain::policy::{Bands, FailureModes, OnExhausted, VendorAction};

const DEFAULT_ATTEMPTS: u32 = 2;

/// The risk route without its providers.
pub(super) struct PlannedRisk {
    pub(super) picks: Vec<Pick>,
    pub(super) deadline: Duration,
    pub(super) hard_limit: Duration,
    pub(super) connect: Duration,
    pub(super) max_attempts: u32,
    pub(super) bands: Bands,
    pub(super) vendor_action: VendorAction,
    pub(super) velocity: Vec<Arc<VelocityRule>>,
    pub(super) reuse: Option<ReusePolicy>,
    pub(super) audit: OnUnrecorded,
    pub(super) budgets: Option<RiskBudgets>,
    pub(super) on_exhausted: FailureModes,
    pub(super) rules: PlannedRules,
}

pub(super) fn plan_risk(
    raw: &RawRisk,
    catalog: &Catalog,
    lists: &ListFiles<'_>,
    report: &Report<'_>,
) -> Option<PlannedRisk> {
    let deadline = raw.deadline.as_ref().map_or(Duration::from_millis(800), |field| field.value);
    let hard_limit = raw.hard_limit.as_ref().map_or(deadline.max(Duration::from_secs(3)), |field| field.value);
    let connect = raw.connect.as_ref().map_or((deadline / 2).min(Duration::from_millis(150)), |field| field.value);
    if let (Some(deadline), Some(hard_limit)) = (&raw.deadline, &raw.hard_limit) {
        let _ = accept(checks::not_longer(deadline, hard_limit.value, "hard_limit"), report);
    } else if let Some(hard_limit) = raw.hard_limit.as_ref().filter(|field| field.value < deadline) {
        let mistake = hard_limit
            .mistake(Code::Conflict, format!("shorter than the deadline, which is {}", units::shown(deadline)));
        report.add(mistake.hint("lengthen it, or write a shorter deadline"));
    }
    if let Some(connect) = &raw.connect {
        let _ = accept(checks::connect_before_deadline(connect, deadline), report);
    }
    let velocity = counters::rules(&raw.velocity, report);
    let bands = raw.bands.as_ref().and_then(|bands| accept(checks::bands(bands), report));
    let picks = picks(raw.candidates.as_ref(), |candidate| catalog.risk_pick(candidate), report);
    let budgets = budgeting::plan(&raw.spending, &picks, catalog, report);
    let vendor_action = raw.vendor_action.as_ref().map_or(VendorAction::Floor, |field| field.value);
    let review = FailureModes::all(OnExhausted::Review);
    let on_exhausted = raw.on_exhausted.as_ref().map_or(review, |field| field.value);
    let inherited = bands.map(|bands| Inherited { bands, vendor_action, on_exhausted });
    let rules = plan_rules(raw, lists, &velocity, inherited.as_ref(), report);
    let reuse = raw.reuse.as_ref().and_then(|reuse| reusing::policy(reuse, bands, report));
    Some(PlannedRisk {
        picks,
        budgets,
        deadline,
        hard_limit,
        connect,
        max_attempts: raw.max_attempts.as_ref().map_or(DEFAULT_ATTEMPTS, |attempts| attempts.value),
        bands: bands?,
        velocity,
        reuse,
        audit: raw.audit.as_ref().map_or(OnUnrecorded::default(), |field| field.value),
        vendor_action,
        on_exhausted,
        rules,
    })
}
