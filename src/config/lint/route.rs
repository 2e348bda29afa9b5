//! LLM routes: who stands behind whom, and for how long.

use super::{Found, Rule, Subject};
use crate::config::asking::Order;
use crate::config::error::Code;
use crate::config::raw::llm::RawRoute;
use crate::config::report::Field;
use crate::config::table::{Candidate, LlmRoute};
use crate::config::units;

pub(super) fn look(subject: &Subject<'_>, found: &mut Found<'_>) {
    for raw in &subject.raw.models {
        let name = raw.name.value.as_str();
        let Some((_, route)) = subject.table.llm_routes().iter().find(|(id, _)| id.as_str() == name) else { continue };
        alone(raw, route, found);
        phases(raw, route, found);
        cached_draw(raw, route, found);
        out_of_reach(raw, route, subject, found);
        if !subject.table.callers().is_empty() && !subject.table.callers().iter().any(|caller| caller.may_use(name)) {
            let mistake = raw.name.mistake(Code::Conflict, "no caller may use this route");
            found.add(Rule::IdleRoute, name, mistake.hint("name it in some caller's allow, or remove it"));
        }
    }
}

fn alone(raw: &RawRoute, route: &LlmRoute, found: &mut Found<'_>) {
    let Some(candidates) = &raw.candidates else { return };
    let name = &raw.name.value;
    let [first, rest @ ..] = &*route.candidates else { return };
    if rest.is_empty() {
        let mistake = candidates.mistake(Code::Conflict, "one candidate, and nobody to ask when it fails");
        return found.add(Rule::OneCandidate, name, mistake.hint("add a candidate of another provider"));
    }
    let place = |candidate: &Candidate| candidate.provider.base_url.authority();
    if rest.iter().all(|candidate| place(candidate) == place(first)) {
        let message = "all candidates are at the same host: when it is away, all of them are";
        let mistake = candidates.mistake(Code::Conflict, message);
        found.add(Rule::OnePlace, name, mistake.hint("add a candidate of another provider"));
    }
}

fn phases(raw: &RawRoute, route: &LlmRoute, found: &mut Found<'_>) {
    let timeouts = &route.timeouts;
    let Some(first_content) = raw.timeouts.first_content.as_ref() else { return };
    if timeouts.connect + timeouts.first_content <= timeouts.total {
        return;
    }
    let message = format!(
        "connecting ({}) and waiting for the first content may take longer than timeouts.total, which is {}: a slow \
         candidate leaves no time for the next one",
        units::shown(timeouts.connect),
        units::shown(timeouts.total)
    );
    let mistake = first_content.mistake(Code::Conflict, message);
    found.add(Rule::PhasesTooLong, &raw.name.value, mistake.hint("shorten it, or lengthen timeouts.total"));
}

fn cached_draw(raw: &RawRoute, route: &LlmRoute, found: &mut Found<'_>) {
    if route.cache.is_none() {
        return;
    }
    let about = raw.name.value.as_str();
    if let Some(order) = raw.order.as_ref().filter(|order| order.value == Order::Weighted) {
        let message = "the route has a cache: an answer that was drawn once is given to every equal question, so the \
                       weights hold for new questions only";
        let mistake = order.mistake(Code::Conflict, message);
        found.add(Rule::CachedDraw, about, mistake.hint("remove the cache where the shares matter"));
    } else if let Some(sticky) = &raw.sticky {
        let message = "the route has a cache: two turns of a conversation are hardly ever the same question";
        let mistake = sticky.mistake(Code::Conflict, message);
        found.add(Rule::CachedDraw, about, mistake.hint("keep the cache for routes that are asked the same again"));
    }
}

fn out_of_reach(raw: &RawRoute, route: &LlmRoute, subject: &Subject<'_>, found: &mut Found<'_>) {
    let most = usize::try_from(route.max_attempts).unwrap_or(usize::MAX);
    let listed = raw.candidates.as_ref().map(|candidates| candidates.value.as_slice()).unwrap_or_default();
    if route.asking.order != Order::AsListed {
        return;
    }
    let limit = match &raw.max_attempts {
        Some(attempts) => format!("max_attempts at {}", subject.report.place_of(attempts.at)),
        None => "max_attempts, which is 3 unless written".to_owned(),
    };
    for candidate in listed.iter().skip(most).map(|candidate| &candidate.upstream) {
        let message = format!(
            "the call ends after {most} attempts ({limit}), so this candidate{} is asked only where one before it is \
             passed over",
            defined_at(candidate, subject)
        );
        let mistake = candidate.mistake(Code::Conflict, message);
        found.add(Rule::CandidateOutOfReach, &raw.name.value, mistake.hint("raise max_attempts, or remove it"));
    }
}

/// `, defined at providers/x.toml:12,` where that is known.
pub(super) fn defined_at(upstream: &Field<String>, subject: &Subject<'_>) -> String {
    let place = upstream.value.split_once('/').and_then(|(provider, model)| {
        let models = &subject.catalog.providers().get(provider)?.models;
        models.iter().find(|known| known.id.value == model)
    });
    place.map(|model| format!(", defined at {},", subject.report.place_of(model.id.at))).unwrap_or_default()
}
