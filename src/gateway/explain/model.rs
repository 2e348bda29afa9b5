//! Calls to models: the route, who is asked, when it is another's turn, and whether anybody is asked at all.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::json;

use super::findings::{Candidate, Explanation, Facts, Policy, Term};
use super::{Known, Question, Unanswerable};
use crate::config::asking::{Order, Sticky};
use crate::config::expr::Node;
use crate::config::expr::told::{terms, text_of};
use crate::config::table::{Caller, LlmRoute, LlmRule, Unpriced};
use crate::config::units::shown;
use crate::config::words;
use crate::domain::clock;
use crate::domain::id::RouteId;
use crate::domain::operation::Operation;
use crate::flight::error::CallError;
use crate::gateway::counting;
use crate::gateway::decode::{Decoded, carry, conversation, decode, forwarded};
use crate::layer::cache::Wording;
use crate::routing::lineup::{self, Carriable, Seat, Wish};
use crate::routing::order::{self, Reason, Standing};
use crate::routing::rule;
use crate::routing::select::{self, NoRoute};
use crate::upstream::latency::Form;

/// A call, as far as it is known.
struct Call<'q> {
    operation: Operation,
    body: &'q str,
    stream: bool,
}

pub(super) fn explain(
    known: Known<'_>,
    (caller, operation): (&Caller, Operation),
    question: &Question,
    mut told: Explanation,
) -> Result<Explanation, Unanswerable> {
    let body = question.request.as_ref().map_or("", |body| body.get());
    let decoded = if body.is_empty() || operation.takes_form() {
        None
    } else {
        let depth = known.table.limits().json_depth;
        let read = decode(operation, body.as_bytes(), depth);
        Some(read.map_err(|error| Unanswerable(format!("the request would be refused: {}", said(&error))))?)
    };
    let model = match (&question.model, &decoded) {
        (Some(model), _) => model.clone(),
        (None, Some(Decoded { model, .. })) => model.to_string(),
        (None, None) => return Err(Unanswerable::new("name a model, or give a request that names one")),
    };
    let stream = decoded.as_ref().is_some_and(|decoded| decoded.facts.stream);
    told.asked.model = Some(crate::config::expr::told::discreet(&model));
    told.caller = limits(caller);
    let route = match select::llm(known.table, caller, &model) {
        Ok(route) => route,
        Err(NoRoute::Unknown) => return Ok(told.refused("unknown_model", unknown(known, caller))),
        Err(NoRoute::NotAllowed) => {
            let may: Vec<_> = caller.allow.iter().map(RouteId::as_str).collect();
            let why = format!("the route exists, and the caller {} may only use: {}", caller.id, may.join(", "));
            return Ok(told.refused("not_allowed", why));
        }
    };
    let call = Call { operation, body, stream };
    told.route = Some(route.id.to_string());
    let own = route;
    let route = ruled(caller, own, &call, &mut told);
    told.because = format!("the model names it, and the caller {} may use it; order {}", caller.id, asked_in(route));
    candidates(known, (caller, route), &call, &mut told)?;
    told.timers = timers(route);
    told.cache = cache(known, caller, route, &call);
    Ok(told)
}

/// The route as it is for this call, with what each of its rules came to.
fn ruled<'r>(caller: &Caller, route: &'r LlmRoute, call: &Call<'_>, told: &mut Explanation) -> &'r LlmRoute {
    if route.rules.is_empty() {
        return route;
    }
    let asked = rule::Asked {
        caller,
        operation: call.operation,
        stream: call.stream,
        bytes: call.body.len(),
        header: &|_| None,
        now_ms: clock::unix_ms(),
    };
    let found = rule::rule_for(route, &asked).map(|(number, _)| number);
    let tell = |(number, rule): (usize, &Arc<LlmRule>)| Policy {
        name: rule.name.to_string(),
        outcome: match found {
            Some(found) if found == number => "holds",
            Some(found) if found < number => "not reached",
            _ => "does not match",
        },
        when: rule.when.to_string(),
        terms: terms(rule.when.root()).into_iter().map(|term| read(term, &asked)).collect(),
    };
    told.rules = route.rules.iter().enumerate().map(tell).collect();
    if told.rules.iter().any(|rule| rule.when.contains("header(")) {
        told.notes.push("the headers of a call are not known here, so that conditions on them are false".to_owned());
    }
    found.and_then(|number| route.rules.get(number)).map_or(route, |rule| &rule.route)
}

fn read(term: &Node, asked: &rule::Asked<'_>) -> Term {
    let reads = rule::seen(term, asked).unwrap_or_else(|| "always so".to_owned());
    Term { text: text_of(term), reads, holds: Some(rule::holds(term, asked)) }
}

fn said(error: &CallError) -> String {
    match error {
        CallError::BadRequest { message, .. } => message.clone(),
        other => other.label().to_owned(),
    }
}

fn unknown(known: Known<'_>, caller: &Caller) -> String {
    let routes: Vec<_> = known.table.llm_routes().keys().filter(|id| caller.may_use(id.as_str())).collect();
    let names = routes.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ");
    format!("no route has this name; the caller {} may use: {names}", caller.id)
}

fn asked_in(route: &LlmRoute) -> String {
    let sticky = match route.asking.sticky {
        Some(Sticky::Conversation) => ", turns of a conversation go to the same candidate",
        None => "",
    };
    let drawn = match route.asking.order {
        Order::Weighted => ", drawn anew for every call by weight: this is one draw",
        Order::Fastest => ", two are drawn and the faster goes first: this is one draw",
        Order::AsListed | Order::Cheapest => "",
    };
    format!("{}{drawn}{sticky}", route.asking.order.label())
}

fn candidates(
    known: Known<'_>,
    (caller, route): (&Caller, &LlmRoute),
    call: &Call<'_>,
    told: &mut Explanation,
) -> Result<(), Unanswerable> {
    let carriable = carriable(route, call)?;
    let headers = HeaderMap::new();
    let sticky = route.asking.sticky.is_some();
    let conversation = if sticky { conversation((&headers, call.body.as_bytes()), &caller.tenant) } else { None };
    let seed = order::hash(b"explain");
    let wish = Wish { operation: call.operation, carriable, bytes: call.body.len(), seed, conversation };
    let form = Form::of(call.stream);
    let seats = lineup::of(&route.candidates, &route.asking, &wish, &|candidate| known.seen(candidate, form));
    let able = || seats.iter().filter(|seat| seat.sent_as.is_some());
    let mut turn = 0;
    told.candidates = seats
        .iter()
        .map(|seat| {
            turn += usize::from(seat.is_asked());
            let turn = seat.is_asked().then_some(turn);
            candidate(known, route, (seat, turn), call)
        })
        .collect();
    told.notes.extend(known.switched_off());
    let uncounted = |seat: &Seat<'_>| !lineup::is_counted(seat.candidate, caller);
    if estimated(call, route) {
        told.notes.push(
            "no candidate counts tokens, so that nobody is asked: the caller gets our own estimate, which says so in wb-estimate: true".to_owned(),
        );
    } else if able().next().is_none() {
        told.error = Some("not_offered");
    } else if !caller.budgets.is_empty() && caller.unpriced == Unpriced::Refuse && able().any(uncounted) {
        told.error = Some("price_unknown");
        told.notes.push(format!("the caller {} has a budget and refuses calls whose price is unknown", caller.id));
    } else if !seats.iter().any(Seat::is_asked) {
        told.error = Some("open");
        told.notes.push(
            "nobody takes calls: one whose breaker has cooled down is tried, else the caller gets a 503".to_owned(),
        );
    }
    Ok(())
}

/// True if the answer is made here, and no candidate has a part in it.
fn estimated(call: &Call<'_>, route: &LlmRoute) -> bool {
    call.operation == Operation::CountTokens && counting::is_estimated(route)
}

/// Whether a candidate that lacks the operation can be asked another way. Without a body it is taken to be so.
fn carriable(route: &LlmRoute, call: &Call<'_>) -> Result<Carriable, Unanswerable> {
    if call.body.is_empty() {
        return Ok(Carriable::Yes);
    }
    match carry(call.operation, call.body.as_bytes(), call.stream, route) {
        Ok(Some(_)) => Ok(Carriable::Yes),
        Ok(None) | Err(CallError::NotOffered { .. }) => Ok(Carriable::No),
        Err(error) => Err(Unanswerable(format!("the request would be refused: {}", said(&error)))),
    }
}

fn candidate(
    known: Known<'_>,
    route: &LlmRoute,
    (seat, turn): (&Seat<'_>, Option<usize>),
    call: &Call<'_>,
) -> Candidate {
    let one = seat.candidate;
    let state = known.state(one);
    let attempts = usize::try_from(route.max_attempts).unwrap_or(usize::MAX);
    let mut because = match (seat.sent_as, turn) {
        (None, _) => format!("not asked: its provider does not offer {}", call.operation.label()),
        (Some(_), None) if known.is_down(one) => "not asked: given as down".to_owned(),
        (Some(_), None) => format!("not asked: {}", seat.reason.label()),
        (Some(_), Some(1)) => format!("asked first: {}", placed(seat)),
        (Some(_), Some(turn)) if turn > attempts => {
            format!("only if one before it refuses unasked, max_attempts is {attempts}: {}", placed(seat))
        }
        (Some(_), Some(_)) => format!("asked when those before it fail before their first content: {}", placed(seat)),
    };
    if let Some(state) = state.as_ref().filter(|state| turn.is_some() && state.in_flight >= state.limit) {
        because = format!("{because}; no place left now ({} of {})", state.in_flight, state.limit);
    }
    let operation = call.operation.label();
    Candidate {
        upstream: one.upstream.to_string(),
        turn,
        because,
        sent_as: seat.sent_as.map(Operation::label).filter(|sent_as| *sent_as != operation),
        price: Some(price(seat)),
        state,
    }
}

fn placed(seat: &Seat<'_>) -> String {
    match (seat.reason, seat.standing) {
        (Reason::NotWell(Standing::Unwelcome), _) => "after the others, it refuses our credential".to_owned(),
        (Reason::Drawn | Reason::LastResort, _) => format!("{} (weight {})", seat.reason.label(), seat.weight),
        (reason, _) => reason.label().to_owned(),
    }
}

fn price(seat: &Seat<'_>) -> String {
    let model = seat.candidate.model.as_ref();
    match model.and_then(|model| model.price) {
        Some(price) => format!("{} in, {} out per million tokens", price.input_per_million, price.output_per_million),
        None => "price unknown".to_owned(),
    }
}

fn timers(route: &LlmRoute) -> Facts {
    let timeouts = &route.timeouts;
    let mut timers = Facts::new();
    let mut add = |name: &str, value: String| timers.insert(name.to_owned(), json!(value));
    add("total", shown(timeouts.total));
    add("connect", shown(timeouts.connect));
    add("first_content", shown(timeouts.first_content));
    add("idle", shown(timeouts.idle));
    add("heartbeat", timeouts.heartbeat.map_or_else(|| "off".to_owned(), shown));
    add("attempts", format!("at most {}", route.max_attempts));
    add(
        "hedge",
        words::setting(route, "hedge").unwrap_or_else(|| "none: a second candidate only when one fails".to_owned()),
    );
    if let Some(fallback) = words::setting(route, "fallback_on") {
        add("fallback_on", fallback);
    }
    if let Some(shadow) = words::setting(route, "shadow") {
        add("shadow", shadow);
    }
    timers
}

fn cache(known: Known<'_>, caller: &Caller, route: &LlmRoute, call: &Call<'_>) -> Facts {
    let mut cache = Facts::new();
    let mut add = |name: &str, value: String| cache.insert(name.to_owned(), json!(value));
    let Some(policy) = words::setting(route, "cache") else {
        add("cache", "off: the route has none, everybody is asked anew".to_owned());
        return cache;
    };
    if estimated(call, route) {
        add("cache", "off: an estimate is made anew".to_owned());
        return cache;
    }
    if call.operation.takes_form() || call.operation == Operation::Speech {
        add("cache", "off: this operation is never answered from memory".to_owned());
        return cache;
    }
    add("cache", format!("on, {policy}"));
    let forwarded = forwarded(call.operation, &HeaderMap::new());
    let wording = Wording {
        tenant: &caller.tenant,
        fingerprint: &route.fingerprint,
        operation: call.operation,
        forwarded: &forwarded,
        body: call.body.as_bytes(),
    };
    let fingerprint = hex(&route.fingerprint);
    let made_of =
        format!("the tenant {}, the route's candidates ({fingerprint}), {}", caller.tenant, call.operation.label());
    add("key made of", format!("{made_of}, and the body's members in any order but for stream"));
    if let Some(digest) = wording.key(&[]) {
        add("key digest", format!("{}, the same for every call that would share an answer", hex(&digest)));
    }
    if let Some(alive) = known.alive.filter(|_| !call.body.is_empty()) {
        add(
            "now",
            match alive.store.look(&wording) {
                Some((age, true)) => format!("an answer is kept, {} old: nobody would be asked", shown(age)),
                Some((age, false)) if route.cache.is_some_and(|policy| !policy.stale_while_revalidate.is_zero()) => {
                    format!(
                        "an answer is kept that is too old, {}; what it is still good for, the line cache says",
                        shown(age)
                    )
                }
                Some((age, false)) => format!("an answer is kept for when everybody fails, {} old", shown(age)),
                None => "no answer is kept".to_owned(),
            },
        );
    }
    cache
}

/// The beginning of a digest.
fn hex(bytes: &[u8]) -> String {
    let number = bytes.iter().take(6).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:012x}")
}

/// What limits a caller, whatever it asks for.
pub(super) fn limits(caller: &Caller) -> Facts {
    let names = [
        "limits.requests_per_minute",
        "limits.in_flight",
        "limits.tokens_per_minute",
        "budget",
        "unpriced",
        "signature",
    ];
    let told = names.into_iter().filter_map(|name| Some((name.to_owned(), json!(words::setting(caller, name)?))));
    told.filter(|(name, _)| name != "unpriced" || !caller.budgets.is_empty()).collect()
}
