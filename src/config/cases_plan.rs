//! `[[test]]`: from what was written to cases, every name looked up.
//!
//! It runs after everything else was compiled without a mistake: a name that is missing for another reason is no mistake of a
//! test.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cases::{Asked, Case, ERRORS, Expectation, ModelCall, Of, Payment, UNKNOWN_MODEL, Wanted};
use super::error::Code;
use super::raw::cases::{RawAsked, RawCase, RawExpected, RawGiven, RawModelCall, RawPayment, by_name};
use super::raw::policy::RawSomeBands;
use super::read::suggest;
use super::report::{Field, Mistake, Report};
use super::table::{Caller, LlmRoute, RoutingTable};
use crate::domain::decision::Score;
use crate::domain::id::{ProviderId, RouteId, UpstreamId};
use crate::domain::policy::DEFAULT_RULE;

/// Most tests of a configuration: all of them run at every reload.
const MOST_CASES: usize = 500;

/// Looks every name up in the table that was compiled from the same text. Reports what is not there.
pub(super) fn plan(raw: &[RawCase], table: &RoutingTable, report: &Report<'_>) -> Vec<Arc<Case>> {
    if let Some(over) = raw.get(MOST_CASES) {
        report.add(over.at.mistake(Code::BadValue, format!("more than {MOST_CASES} tests")));
    }
    let planning = Planning { table, report };
    raw.iter().take(MOST_CASES).filter_map(|raw| planning.case(raw)).map(Arc::new).collect()
}

#[derive(Clone, Copy)]
struct Planning<'a> {
    table: &'a RoutingTable,
    report: &'a Report<'a>,
}

impl Planning<'_> {
    fn case(self, raw: &RawCase) -> Option<Case> {
        let (name, given, expected) = (raw.name.as_ref()?, raw.given.as_ref()?, raw.expected.as_ref()?);
        let down = given.down.iter().filter_map(|name| self.down(name)).collect();
        let asked = self.asked(given.asked.as_ref()?, expected);
        let wanted = self.expected(expected, given.asked.as_ref()?);
        let caller = self.caller(given);
        Some(Case {
            name: name.value.as_str().into(),
            caller: caller?.id.clone(),
            down,
            asked: asked?,
            expected: wanted,
        })
    }

    fn unknown(self, name: &Field<String>, what: &str, known: &[&str]) {
        let mistake = name.mistake(Code::UnknownName, format!("no such {what}"));
        // Names of policies and lists may hold spaces, and stand in every answer.
        let listed = || known.iter().take(12).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let hint = suggest(&name.value, known).filter(|_| !known.iter().any(|name| name.contains(' ')));
        let none = if known.is_empty() { format!("there is no {what}") } else { format!("known: {}", listed()) };
        self.report.add(mistake.hint(hint.unwrap_or(none)));
    }

    /// Who asks: if the test does not say, the first who may.
    fn caller(self, given: &RawGiven) -> Option<Arc<Caller>> {
        let callers = self.table.callers();
        if let Some(name) = &given.caller {
            let found = callers.iter().find(|caller| caller.id.as_str() == name.value);
            if found.is_none() {
                self.unknown(name, "caller", &callers.iter().map(|caller| caller.id.as_str()).collect::<Vec<_>>());
            }
            return found.cloned();
        }
        let route = match given.asked.as_ref()? {
            RawAsked::Model(call) => call.model.value.as_str(),
            RawAsked::Payment(_) => "risk",
        };
        let found = callers.iter().find(|caller| caller.may_use(route)).or_else(|| callers.first());
        if found.is_none() {
            let mistake = given.at.mistake(Code::MissingKey, "there is no caller who could ask");
            self.report.add(mistake.hint("add a [[caller]]"));
        }
        found.cloned()
    }

    fn down(self, name: &Field<String>) -> Option<String> {
        let providers = self.table.providers().keys().map(ProviderId::as_str);
        let routes = self.table.llm_routes().values().flat_map(|route| route.everybody());
        let risk = self.table.risk_route().into_iter().flat_map(|route| &route.candidates);
        let upstreams = routes.chain(risk).map(|candidate| candidate.upstream.as_str());
        let known: BTreeSet<&str> = providers.chain(upstreams).collect();
        if known.contains(name.value.as_str()) {
            return Some(name.value.clone());
        }
        self.unknown(name, "provider or candidate", &known.into_iter().collect::<Vec<_>>());
        None
    }

    fn asked(self, raw: &RawAsked, expected: &RawExpected) -> Option<Asked> {
        match raw {
            RawAsked::Model(call) => {
                let routes = self.table.llm_routes();
                let may_miss = expected.error.as_ref().is_some_and(|error| error.value == UNKNOWN_MODEL);
                if !routes.contains_key(call.model.value.as_str()) && !may_miss {
                    self.unknown(&call.model, "route", &routes.keys().map(RouteId::as_str).collect::<Vec<_>>());
                    return None;
                }
                let model = call.model.value.clone();
                let RawModelCall { operation, bytes, stream, .. } = *call;
                let headers = call.headers.clone();
                Some(Asked::Model(ModelCall { model, operation, bytes, stream, headers }))
            }
            RawAsked::Payment(payment) => {
                self.payment(payment, expected).map(|payment| Asked::Payment(Box::new(payment)))
            }
        }
    }

    fn payment(self, raw: &RawPayment, expected: &RawExpected) -> Option<Payment> {
        let Some(route) = self.table.risk_route() else {
            let mistake = expected.at.mistake(Code::UnknownName, "there is no [risk] section that could decide");
            self.report.add(mistake.hint("add one, or give model = \"..\""));
            return None;
        };
        let lists: Vec<&str> = route.rules.lists.iter().map(|list| &*list.name).collect();
        let counters: Vec<&str> = route.velocity.iter().map(|rule| &*rule.name).collect();
        for name in raw.lists.iter().filter(|name| !lists.contains(&&*name.value)) {
            self.unknown(name, "list", &lists);
        }
        for (name, _) in raw.velocity.iter().filter(|(name, _)| !counters.contains(&&*name.value)) {
            self.unknown(name, "counter", &counters);
        }
        Some(Payment {
            assessment: raw.assessment.clone(),
            now_ms: raw.now_ms,
            score: raw.score,
            recommendation: raw.recommendation.clone(),
            fails: raw.fails,
            lists: raw.lists.iter().map(|name| name.value.as_str().into()).collect(),
            velocity: by_name(&raw.velocity),
        })
    }

    fn expected(self, raw: &RawExpected, asked: &RawAsked) -> Vec<Expectation> {
        let is_payment = matches!(asked, RawAsked::Payment(_));
        let mut all = Vec::new();
        let mut expect = |place: Mistake, wanted: Wanted| {
            all.push(Expectation::new(wanted, self.report.described(place)));
        };
        if let Some(order) = &raw.order {
            expect(place(order), Wanted::Order(self.upstreams(order, asked)));
        }
        if let Some(order) = &raw.any_order {
            expect(place(order), Wanted::AnyOrder(self.upstreams(order, asked).into_iter().collect()));
        }
        if let Some(route) = &raw.route {
            self.route(route);
            expect(place(route), Wanted::Route(route.value.clone()));
        }
        if let Some(error) = &raw.error {
            self.possible(error, is_payment);
            expect(place(error), Wanted::Error(error.value));
        }
        if let Some(action) = &raw.action {
            self.for_payments(action, is_payment);
            expect(place(action), Wanted::Action(action.value));
        }
        if let Some(policy) = &raw.policy {
            self.for_payments(policy, is_payment);
            self.policy(policy);
            expect(place(policy), Wanted::Policy(policy.value.clone()));
        }
        if let Some(bands) = &raw.bands {
            self.for_payments(bands, is_payment);
            expect(place(bands), wanted_bands(&bands.value));
        }
        all
    }

    /// The candidates of the route, as they are named; the rest is reported.
    fn upstreams(self, named: &Field<Vec<Field<String>>>, asked: &RawAsked) -> Vec<UpstreamId> {
        let known: Vec<&UpstreamId> = match asked {
            RawAsked::Model(call) => {
                let route = self.table.llm_routes().get(call.model.value.as_str());
                route.into_iter().flat_map(|route: &Arc<LlmRoute>| route.everybody()).map(|one| &one.upstream).collect()
            }
            RawAsked::Payment(_) => {
                let candidates = self.table.risk_route().into_iter().flat_map(|route| &route.candidates);
                candidates.map(|one| &one.upstream).collect()
            }
        };
        let names: Vec<&str> = known.iter().map(|id| id.as_str()).collect();
        let one = |name: &Field<String>| {
            let found = known.iter().find(|id| id.as_str() == name.value).copied().cloned();
            if found.is_none() && !known.is_empty() {
                self.unknown(name, "candidate of this route", &names);
            }
            found
        };
        named.value.iter().filter_map(one).collect()
    }

    fn route(self, route: &Field<String>) {
        let mut known: Vec<&str> = self.table.llm_routes().keys().map(RouteId::as_str).collect();
        known.extend(self.table.risk_route().map(|risk| risk.id.as_str()));
        if !known.contains(&route.value.as_str()) {
            self.unknown(route, "route", &known);
        }
    }

    fn policy(self, policy: &Field<String>) {
        let policies = self.table.risk_route().into_iter().flat_map(|route| &route.rules.policies);
        let known: Vec<&str> = policies.map(|policy| &**policy.name()).chain([DEFAULT_RULE]).collect();
        if !known.contains(&policy.value.as_str()) {
            self.unknown(policy, "policy", &known);
        }
    }

    fn for_payments<T>(self, field: &Field<T>, is_payment: bool) {
        if !is_payment {
            let mistake = field.mistake(Code::Conflict, "a call to a model has no action, no policy and no bands");
            self.report.add(mistake.hint("expect order, any_order, route or error"));
        }
    }

    fn possible(self, error: &Field<&'static str>, is_payment: bool) {
        let of = ERRORS.iter().find(|(word, _)| *word == error.value).map_or(Of::Both, |(_, of)| *of);
        let other = if is_payment { Of::Models } else { Of::Payments };
        if of == other {
            let kind = if is_payment { "a payment" } else { "a call to a model" };
            let possible = ERRORS.iter().filter(|(_, of)| *of != other).map(|(word, _)| *word).collect::<Vec<_>>();
            let mistake = error.mistake(Code::Conflict, format!("{kind} never ends in this error"));
            self.report.add(mistake.hint(format!("possible: {}", possible.join(", "))));
        }
    }
}

fn place<T>(field: &Field<T>) -> Mistake {
    field.mistake(Code::FailedTest, String::new())
}

fn wanted_bands(raw: &RawSomeBands) -> Wanted {
    let written = |field: &Option<Field<Score>>| field.as_ref().map(|field| field.value);
    let (pass_below, review_from) = (written(&raw.pass_below), written(&raw.review_from));
    Wanted::Bands { pass_below, review_from, reject_from: written(&raw.reject_from) }
}
