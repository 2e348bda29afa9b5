//! `[[risk.policy]]`: from what was written to rules.
//!
//! A policy changes what it names and has the rest from `[risk]`; everything it could need while a payment waits is made
//! here, once.

use std::sync::Arc;

use super::checks;
use super::error::Code;
use super::expr::{self, About, Condition, Fault, Known};
use super::lists::List;
use super::lists_plan::{ListFiles, plan_lists};
use super::policy::{Policy, Rules};
use super::raw::policy::{RawCondition, RawPolicy, RawSomeBands};
use super::raw::risk::RawRisk;
use super::report::{At, Field, Mistake, Report};
use super::velocity::VelocityRule;
use crate::domain::decision::Action;
use crate::domain::policy::{Applied, Bands, DEFAULT_RULE, FailureModes, Ruling, VendorAction};

/// Most policies of a configuration: all of them may have to be asked for one payment.
const MOST_POLICIES: usize = 100;

/// Rules of which only the version of the configuration is missing.
#[derive(Default)]
pub(super) struct PlannedRules {
    policies: Vec<PlannedPolicy>,
    lists: Vec<Arc<List>>,
}

struct PlannedPolicy {
    name: Arc<str>,
    when: Option<Condition>,
    bands: Bands,
    vendor_action: VendorAction,
    on_exhausted: FailureModes,
    at_least: Option<Action>,
}

/// What `[risk]` says, for policies that say nothing else.
#[derive(Clone, Copy)]
pub(super) struct Inherited {
    pub(super) bands: Bands,
    pub(super) vendor_action: VendorAction,
    pub(super) on_exhausted: FailureModes,
}

/// Checks policies and lists. Reports what is wrong; what could not be read is left out.
pub(super) fn plan_rules(
    raw: &RawRisk,
    files: &ListFiles<'_>,
    counted: &[Arc<VelocityRule>],
    inherited: Option<&Inherited>,
    report: &Report<'_>,
) -> PlannedRules {
    checks::unique(raw.lists.iter().filter_map(|list| list.name.as_ref()), "the list's name", report);
    checks::unique(raw.policies.iter().filter_map(|policy| policy.name.as_ref()), "the policy's name", report);
    if let Some(over) = raw.policies.get(MOST_POLICIES) {
        report.add(over.at.mistake(Code::BadValue, format!("more than {MOST_POLICIES} policies")));
    }
    let lists = plan_lists(&raw.lists, files, report);
    let counters: Vec<_> = counted.iter().map(|rule| Arc::clone(&rule.name)).collect();
    let known = Known { about: About::Payment, lists: &lists, counters: &counters };
    let policies = raw.policies.iter().take(MOST_POLICIES).filter_map(|raw| plan(raw, known, inherited, report));
    PlannedRules { policies: policies.collect(), lists: lists.clone() }
}

fn plan(
    raw: &RawPolicy,
    known: Known<'_>,
    inherited: Option<&Inherited>,
    report: &Report<'_>,
) -> Option<PlannedPolicy> {
    if let Some(name) = raw.name.as_ref().filter(|name| name.value == DEFAULT_RULE) {
        let mistake = name.mistake(Code::Conflict, "this is the name of the rule that decides where no policy matches");
        report.add(mistake.hint("choose another name"));
    }
    let when = raw.when.as_ref().map(|RawCondition(text)| condition(text, known, report));
    let inherited = inherited?;
    let bands = bands(raw.bands.as_ref(), inherited.bands).map_err(|mistake| report.add(mistake)).ok();
    let when = match when {
        Some(condition) => Some(condition?),
        None => None,
    };
    Some(PlannedPolicy {
        name: raw.name.as_ref()?.value.as_str().into(),
        when,
        bands: bands?,
        vendor_action: raw.vendor_action.as_ref().map_or(inherited.vendor_action, |field| field.value),
        on_exhausted: raw.on_exhausted.as_ref().map_or(inherited.on_exhausted, |field| field.value),
        at_least: raw.action.as_ref().map(|field| field.value),
    })
}

pub(super) fn condition(text: &Field<String>, known: Known<'_>, report: &Report<'_>) -> Option<Condition> {
    let faults = match expr::compile(&text.value, known) {
        Ok(condition) => return Some(condition),
        Err(faults) => faults,
    };
    // Without escapes in between, the condition stands in the file as it is.
    let verbatim = report.verbatim(text);
    for Fault { span, code, message, hint } in faults {
        let mistake = match verbatim {
            Some(start) => {
                let shown = expr::masked(&text.value, &span);
                let at = At { file: text.at.file, start: start + span.start, end: start + span.end };
                Mistake::new(at, &text.key, code, message).showing(shown)
            }
            None => text.mistake(code, message),
        };
        report.add(match hint {
            Some(hint) => mistake.hint(hint),
            None => mistake,
        });
    }
    None
}

/// The thresholds of a policy. One that is inherited gives way to one that is written: "passes below 0.8" would
/// otherwise be a mistake wherever reviews begin at 0.7.
fn bands(raw: Option<&RawSomeBands>, inherited: Bands) -> Result<Bands, Mistake> {
    let Some(raw) = raw else { return Ok(inherited) };
    let written = |field: &Option<Field<_>>| field.as_ref().map(|field| field.value);
    let (pass, review, reject) = (written(&raw.pass_below), written(&raw.review_from), written(&raw.reject_from));
    let at_most = [review, reject].into_iter().flatten().min();
    let pass_below =
        pass.unwrap_or_else(|| at_most.map_or(inherited.pass_below(), |most| inherited.pass_below().min(most)));
    let review_from = review.unwrap_or_else(|| {
        let after_pass = inherited.review_from().max(pass_below);
        reject.map_or(after_pass, |reject| after_pass.min(reject))
    });
    let reject_from = reject.or_else(|| inherited.reject_from().map(|reject| reject.max(review_from)));
    Bands::new(pass_below, review_from, reject_from).ok_or_else(|| {
        let fields = [&raw.reject_from, &raw.review_from, &raw.pass_below];
        let culprit = fields.into_iter().find_map(Option::as_ref);
        let hint = "pass_below must not exceed review_from, nor review_from exceed reject_from";
        culprit.map_or_else(
            || Mistake::new(At::new(0, 0..0), "risk.policy", Code::Conflict, "the thresholds cross"),
            |culprit| culprit.mistake(Code::Conflict, "the thresholds cross").hint(hint),
        )
    })
}

impl PlannedRules {
    /// The rules of a configuration of this version.
    pub(super) fn of_version(&self, version: &Arc<str>) -> Rules {
        let policy = |plan: &PlannedPolicy| {
            let applied = Applied { rule: Arc::clone(&plan.name), version: Arc::clone(version), bands: plan.bands };
            let plain = Ruling::plain(applied, plan.vendor_action, plan.on_exhausted);
            let ruling = Arc::new(Ruling { at_least: plan.at_least, ..plain });
            Policy { when: plan.when.clone(), ruling }
        };
        Rules { policies: self.policies.iter().map(policy).collect(), lists: self.lists.clone() }
    }
}

#[cfg(test)]
mod tests;
