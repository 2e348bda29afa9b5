//! Payments: which policy decides, what it reads, what is answered with a verdict and without one, what it costs, and
//! whether an earlier decision could stand in.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::findings::{CAUSES, Candidate, Explanation, Fallback, Guard, List, Payment, Policy, Term};
use super::{Known, Question, Unanswerable, fails, score};
use crate::config::budgets::MerchantBudget;
use crate::config::cases::bands_in_words;
use crate::config::expr::told::{self, discreet};
use crate::config::expr::{Fact, Node, Whole};
use crate::config::reuse::ReusePolicy;
use crate::config::table::{Caller, RiskRoute};
use crate::config::units::shown;
use crate::config::words;
use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource, FallbackReason, ProviderReference, Score, Verdict};
use crate::domain::id::{DecisionId, ProviderId};
use crate::domain::operation::Operation;
use crate::domain::policy::{Ruling, decide};
use crate::domain::reuse::{Guard as ReuseGuard, Likeness, Mark, Remembered, Speed, Wanted, guards};
use crate::routing::lineup::{self, Carriable, Wish};
use crate::routing::order::Standing;
use crate::routing::policy::{self, Input, Unknown};
use crate::routing::select::{self, NoRoute};
use crate::upstream::latency::Form;
use crate::wire::risk::{self, Assessment};

pub(super) fn explain(
    known: Known<'_>,
    caller: &Caller,
    question: &Question,
    mut told: Explanation,
) -> Result<Explanation, Unanswerable> {
    told.caller = super::model::limits(caller);
    let route = match select::risk(known.table, caller) {
        Ok(route) => Arc::clone(route),
        Err(NoRoute::Unknown) => return Ok(told.refused("not_found", "the configuration has no [risk]")),
        Err(NoRoute::NotAllowed) => {
            let why = format!("the caller {} may not ask for payment decisions: `allow` lacks \"risk\"", caller.id);
            return Ok(told.refused("not_allowed", why));
        }
    };
    let body = question.request.as_ref().map_or("", |body| body.get());
    let assessment = risk::decode(body.as_bytes()).map_err(|fields| {
        let fields = fields.iter().map(|field| format!("{} {}", field.pointer, field.message));
        Unanswerable(format!("the request would be refused: {}", fields.collect::<Vec<_>>().join("; ")))
    })?;
    let unknown = question.velocity.keys().find(|name| !route.velocity.iter().any(|rule| *rule.name == ***name));
    if unknown.is_some() {
        let names = route.velocity.iter().map(|rule| rule.name.to_string()).collect::<Vec<_>>().join(", ");
        return Err(Unanswerable(format!("there is no such counter; known: {names}")));
    }
    told.route = Some(route.id.to_string());
    told.because = format!("a payment, and the caller {} may ask for decisions", caller.id);
    let counters = |name: &str| Some(question.velocity.get(name).copied().unwrap_or(0));
    if route.velocity.iter().any(|rule| !question.velocity.contains_key(&*rule.name)) {
        told.notes.push("counters that were not given are taken to be 0".to_owned());
    }
    let input = Input { assessment: &assessment, caller, now_ms: clock::unix_ms(), counters: &counters, presumed: &[] };
    told.candidates = candidates(known, &route, &assessment);
    told.notes.extend(known.switched_off());
    let deadlines = [
        ("deadline", format!("{}: the answer leaves by then, whatever the provider does", shown(route.deadline))),
        ("hard_limit", format!("{}: a late verdict is awaited until then", shown(route.hard_limit))),
        ("connect", shown(route.connect)),
        ("attempts", format!("at most {}, a second one only if nothing was sent", route.max_attempts)),
    ];
    told.timers = deadlines.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let payment = judged(&route, &input, question, &told)?;
    told.error = payment.error;
    told.payment = Some(Box::new(payment));
    Ok(told)
}

fn candidates(known: Known<'_>, route: &RiskRoute, assessment: &Assessment) -> Vec<Candidate> {
    let (operation, carriable) = (Operation::RiskAssess, Carriable::No);
    let wish = Wish { operation, carriable, bytes: 0, seed: 0, conversation: None };
    let seen = |candidate: &crate::config::table::Candidate| known.seen(candidate, Form::of(false));
    let mut turn = 0;
    let told = |seat: &lineup::Seat<'_>| {
        turn += usize::from(seat.is_asked());
        let because = match (seat.sent_as, seat.is_asked(), seat.standing) {
            (None, ..) => "not asked: its provider does not offer risk.assess".to_owned(),
            (_, false, _) if known.is_down(seat.candidate) => "not asked: given as down".to_owned(),
            (_, false, _) => format!("not asked: {}", seat.reason.label()),
            (_, true, _) if turn == 1 => "asked first: listed".to_owned(),
            (_, true, Standing::Unwelcome) => "asked after the others: it refuses our credential".to_owned(),
            (_, true, _) => "asked only if nothing was sent to those before it".to_owned(),
        };
        let price = seat.candidate.provider.price.as_ref().and_then(|price| price.of(assessment, &assessment.features));
        Candidate {
            upstream: seat.candidate.upstream.to_string(),
            turn: seat.is_asked().then_some(turn),
            because,
            sent_as: None,
            price: Some(price.map_or_else(|| "price unknown".to_owned(), |cost| format!("{cost} for this call"))),
            state: known.state(seat.candidate),
        }
    };
    lineup::of(&route.candidates, &crate::config::asking::Asking::default(), &wish, &seen).iter().map(told).collect()
}

fn judged(
    route: &RiskRoute,
    input: &Input<'_>,
    question: &Question,
    told: &Explanation,
) -> Result<Payment, Unanswerable> {
    let ruling = policy::ruling_for(route, input);
    let (score, fails) = (score(question)?, fails(question)?);
    let nobody = told.candidates.iter().all(|candidate| candidate.turn.is_none());
    let fails = fails.or(nobody.then_some(FallbackReason::Unavailable));
    let word = question.recommendation.as_deref();
    let (mut decided, mut error) = (Vec::new(), None);
    let asked = score.is_some() || word.is_some() || fails.is_some();
    let action = match fails {
        None if asked => verdict(&ruling, (score, word), &mut decided),
        _ => None,
    };
    let action = match (action, fails) {
        (Some(action), _) => Some(action),
        (None, _) if !asked => {
            decided.push(
                "no verdict was given to this question: with --score, --recommendation or --fails it says the action"
                    .to_owned(),
            );
            None
        }
        (None, reason) => {
            let reason = reason.unwrap_or(FallbackReason::NoVerdict);
            decided.push(reason.text().to_owned());
            decided.push(format!("on_exhausted is {} then", words::mode(ruling.on_exhausted.of(reason))));
            let action = ruling.without_verdict(reason, input.assessment.amount);
            error = action.is_none().then(|| reason.code());
            action
        }
    };
    decided.extend(ruling.reasons().into_iter().map(|reason| reason.text));
    let (action, velocity) = counted(route, input, action);
    let merchant = &input.assessment.merchant;
    let budgets = route.budgets.as_deref();
    let held =
        budgets.into_iter().flat_map(|all| all.of(&input.caller.tenant, &merchant.id, merchant.category.as_deref()));
    Ok(Payment {
        action: action.map(Action::as_str),
        error,
        decided,
        policy: ruling.applied.rule.to_string(),
        bands: bands_in_words(ruling.applied.bands),
        policies: policies(route, input, &ruling),
        lists: route.rules.lists.iter().map(|list| on(list, input)).collect(),
        velocity,
        without_verdict: CAUSES.map(|(cause, reason)| fallback(&ruling, (cause, reason), input)).into(),
        budgets: held.map(budget).collect(),
        ladder: budgets.map(|all| all.ladder().to_vec()).unwrap_or_default(),
        reuse: route.reuse.as_ref().map(words::reuse).into_iter().collect(),
        guards: route.reuse.as_ref().map(|reuse| guarded(route, reuse, input, (&ruling, score))).unwrap_or_default(),
    })
}

fn verdict(ruling: &Ruling, (score, word): (Option<Score>, Option<&str>), decided: &mut Vec<String>) -> Option<Action> {
    let bands = ruling.applied.bands;
    if let Some(score) = score {
        decided.push(format!("the score {score} is {} by {}", bands.action(score).as_str(), bands_in_words(bands)));
    }
    if let Some(word) = word {
        let what = match words::vendor_action(ruling.vendor_action) {
            "floor" => format!("at least {}", Action::of_recommendation(word).as_str()),
            _ => "only recorded".to_owned(),
        };
        decided.push(format!("the provider's word {} is {what}", discreet(word)));
    }
    decide(ruling, score, word)
}

/// What counters make of an action, each in words.
fn counted(route: &RiskRoute, input: &Input<'_>, action: Option<Action>) -> (Option<Action>, Vec<String>) {
    let number = |name: &str| (input.counters)(name);
    let line = |rule: &Arc<crate::config::velocity::VelocityRule>| {
        let demand = rule.demands(number(&rule.name));
        let then = demand.map(|action| format!(", so at least {}", action.as_str())).unwrap_or_default();
        format!("{} is {}{then} ({})", rule.name, number(&rule.name).unwrap_or_default(), words::counting(rule))
    };
    let demands = route.velocity.iter().filter_map(|rule| rule.demands(number(&rule.name)));
    let action = action.map(|action| demands.fold(action, Action::max));
    (action, route.velocity.iter().map(line).collect())
}

fn policies(route: &RiskRoute, input: &Input<'_>, ruling: &Ruling) -> Vec<Policy> {
    let mut reached = true;
    let told = |policy: &crate::config::policy::Policy| {
        let holds = policy.when.as_ref().map_or(Ok(true), |when| policy::holds(when, input));
        let outcome = match (reached, holds) {
            (false, _) => "not reached",
            (true, Ok(true)) => "decides",
            (true, Ok(false)) => "does not match",
            (true, Err(Unknown)) => "cannot be told",
        };
        reached &= outcome != "decides";
        let terms = policy.when.as_ref().map(|when| told::terms(when.root())).unwrap_or_default();
        Policy {
            name: policy.name().to_string(),
            outcome,
            when: policy.when.as_ref().map_or_else(|| "always".to_owned(), ToString::to_string),
            terms: terms.into_iter().map(|term| read(term, input)).collect(),
        }
    };
    let all: Vec<Policy> = route.rules.policies.iter().map(told).collect();
    debug_assert!(all.iter().all(|one| one.outcome != "decides" || *one.name == *ruling.applied.rule));
    all
}

/// A part of a condition and what it reads; values that name somebody are shortened.
fn read(term: &Node, input: &Input<'_>) -> Term {
    let text = |text: crate::config::expr::Text| {
        let value = policy::value(text, input).map(|value| format!("\"{}\"", text.shown(value)));
        format!("{} is {}", text.name(), value.unwrap_or_else(|| "absent".to_owned()))
    };
    let whole = |whole: &Whole| match (whole, policy::number(whole, input)) {
        (Whole::Literal(_), _) => None,
        (named, Ok(Some(number))) => Some(format!("{} is {number}", named.name())),
        (named, Ok(None)) => Some(format!("{} is absent", named.name())),
        (named, Err(Unknown)) => Some(format!("{} cannot be told", named.name())),
    };
    let address = || match input.assessment.device.ip.as_deref().map(network) {
        Some(network) => format!("device.ip is in {network}"),
        None => "device.ip is absent".to_owned(),
    };
    let reads = match term {
        Node::Text(of, _) | Node::Has(Fact::Text(of)) => text(*of),
        Node::SameText { left, right, .. } => format!("{}, {}", text(*left), text(*right)),
        Node::Whole { left, right, .. } => {
            [whole(left), whole(right)].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Node::Has(Fact::Whole(of)) => whole(of).unwrap_or_default(),
        Node::Has(Fact::Address) | Node::Address { .. } => address(),
        Node::Amount(..) => format!("amount is {}", input.assessment.amount),
        Node::Feature(_) => {
            let features: Vec<_> = input.assessment.features.iter().map(|feature| discreet(feature)).collect();
            format!("features are [{}]", features.join(", "))
        }
        Node::Listed(list) => format!("{} it", if policy::is_on(&list.0, input) { "on" } else { "not on" }),
        Node::Always(_) | Node::Not(_) | Node::All(_) | Node::Any(_) | Node::Streams | Node::Header(..) => {
            String::new()
        }
    };
    Term { text: told::text_of(term), reads, holds: policy::evaluate(term, input).ok() }
}

/// An address without what tells one of a network from another.
fn network(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        Ok(IpAddr::V6(v6)) => {
            let [a, b, c, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
        Err(_) => "no network".to_owned(),
    }
}

fn on(list: &Arc<crate::config::lists::List>, input: &Input<'_>) -> List {
    List {
        name: list.name.to_string(),
        kind: list.kind.as_str(),
        by: list.by.as_str(),
        on_it: policy::is_on(list, input),
    }
}

fn fallback(ruling: &Ruling, (cause, reason): (&'static str, FallbackReason), input: &Input<'_>) -> Fallback {
    let gives = ruling.without_verdict(reason, input.assessment.amount);
    let mode = words::mode(ruling.on_exhausted.of(reason));
    Fallback { cause, mode, gives: gives.map_or(reason.code(), Action::as_str) }
}

fn budget(budget: &MerchantBudget) -> String {
    let (kind, name) = budget.whose.label();
    format!("{kind} {name}: {} a {}, then {}", budget.amount, budget.per.label(), budget.when_spent.label())
}

/// The guards that only look at this payment, asked about an equal one that a provider has just passed.
const ABOUT_THE_PAYMENT: [ReuseGuard; 8] = [
    ReuseGuard::Instrument,
    ReuseGuard::Device,
    ReuseGuard::NewDevice,
    ReuseGuard::Currency,
    ReuseGuard::Amount,
    ReuseGuard::Velocity,
    ReuseGuard::Sum,
    ReuseGuard::Policy,
];

fn guarded(
    route: &RiskRoute,
    reuse: &ReusePolicy,
    input: &Input<'_>,
    (ruling, score): (&Arc<Ruling>, Option<Score>),
) -> Vec<Guard> {
    let over = route.velocity.iter().any(|rule| (input.counters)(&rule.name).is_none_or(|number| rule.is_over(number)));
    let Assessment { instrument, device, amount, .. } = input.assessment;
    let mark = |there: bool| there.then_some(Mark::default());
    let likeness = || Likeness {
        instrument: mark(instrument.fingerprint.is_some()),
        device: mark(device.id.is_some()),
        network: mark(device.ip.is_some()),
        countries: Mark::default(),
        account: Mark::default(),
        features: Mark::default(),
    };
    let known = Remembered {
        decision: Arc::new(equal(ruling, score)),
        ruling: Arc::clone(ruling),
        likeness: likeness(),
        amount: *amount,
        largest: *amount,
        largest_at_ms: 0,
        decided_at_ms: 0,
        life_ms: 1,
        begun: 0,
        uses: 0,
        spent: 0,
    };
    let since = device.known_since.as_ref().and_then(|since| u64::try_from(since.unix_ms).ok());
    let age = since.and_then(|since| input.now_ms.checked_sub(since)).map(Duration::from_millis);
    let wanted = Wanted {
        likeness: &known.likeness,
        amount: *amount,
        device_known: age,
        ruling,
        velocity: if over { Speed::Over } else { Speed::Within },
        now_ms: 0,
        epoch: 0,
        model_epoch: 0,
    };
    let decidable =
        |guard: ReuseGuard| ABOUT_THE_PAYMENT.contains(&guard) || guard == ReuseGuard::Score && score.is_some();
    let asked = guards(&reuse.terms, &known, &wanted).into_iter();
    asked.map(|(guard, holds)| Guard { guard: guard.label(), holds: decidable(guard).then_some(holds) }).collect()
}

/// What a provider would have said to an equal payment.
fn equal(ruling: &Ruling, score: Option<Score>) -> Decision {
    let provider = ProviderReference { id: ProviderId::new("any"), trace_id: None, model_version: None, latency_ms: 0 };
    let (cost, priced, features_dropped) = (None, None, Vec::new());
    let verdict = Verdict { score, recommendation: None, explanation: None, provider, cost, priced, features_dropped };
    Decision {
        id: DecisionId::fresh(),
        action: Action::Pass,
        source: DecisionSource::Live,
        verdict: Some(verdict),
        reasons: Vec::new(),
        applied: ruling.applied.clone(),
        late_verdict_expected: false,
        created_at_ms: 0,
        reused: None,
    }
}
