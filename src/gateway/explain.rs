//! Why a call goes where it goes: the answer to `weighbridge explain` and to `POST /-/explain`.
//!
//! It asks the functions that lead calls and writes down what they say; it sends nothing, counts nothing and spends nothing.
//! From files alone it knows what the configuration knows; beside a running proxy also what breakers, bulkheads, pauses and
//! caches say at this moment. Of a request it repeats only what a condition reads, and of that nothing that names a person.

mod findings;
mod model;
pub mod past;
mod payment;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

pub use self::findings::Explanation;
use self::findings::{Asked, State};
use crate::config::table::{Caller, Candidate, RoutingTable};
use crate::domain::decision::{FallbackReason, Score};
use crate::domain::operation::Operation;
use crate::gateway::snapshot::Snapshot;
use crate::layer::cache::Store;
use crate::routing::lineup::Seen;
use crate::routing::order::Standing;
use crate::upstream::latency::Form;

/// Longest question, in bytes: a request of the usual largest size, and the words around it.
pub const LONGEST_QUESTION: usize = 1 << 20;

/// What is to be explained.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// Who asks; the first who may, if nobody is named.
    pub caller: Option<String>,
    /// What is asked, by its label; a request says it where it can.
    pub operation: Option<String>,
    /// The model, if there is no request that names one.
    pub model: Option<String>,
    /// The body of the request.
    #[serde(skip_serializing)]
    pub request: Option<Box<RawValue>>,
    /// Providers and upstreams that are taken to be down.
    pub down: Vec<String>,
    /// The score the provider is taken to give.
    pub score: Option<Box<RawValue>>,
    /// The provider's own word.
    pub recommendation: Option<String>,
    /// Why there is no verdict: `deadline`, `unavailable`, `no_verdict`, `not_authentic`, `budget`.
    pub fails: Option<String>,
    /// What counters say.
    pub velocity: BTreeMap<String, i64>,
    /// A request of the past instead, by its id.
    pub request_id: Option<String>,
}

/// Why a question cannot be answered. It repeats nothing of a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unanswerable(pub String);

impl Unanswerable {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl Question {
    /// Reads a question.
    ///
    /// # Errors
    /// [`Unanswerable`] if it is not one.
    pub fn read(body: &[u8]) -> Result<Self, Unanswerable> {
        serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Unanswerable(format!("the question is not JSON as described in the README (line {line}, column {column})"))
        })
    }
}

/// What is known beside the configuration.
#[derive(Clone, Copy)]
pub struct Alive<'a> {
    /// The configuration in force with everything live in it.
    pub snapshot: &'a Snapshot,
    /// Cached answers.
    pub store: &'a Store,
}

/// Where an answer comes from.
#[derive(Clone, Copy)]
struct Known<'a> {
    table: &'a RoutingTable,
    alive: Option<Alive<'a>>,
    down: &'a BTreeSet<&'a str>,
}

/// Explains a request that could be made.
///
/// # Errors
/// [`Unanswerable`] if something that is named does not exist, or the request is none.
pub fn explain(
    table: &RoutingTable,
    alive: Option<Alive<'_>>,
    question: &Question,
) -> Result<Explanation, Unanswerable> {
    let down: BTreeSet<&str> = question.down.iter().map(String::as_str).collect();
    let known = Known { table, alive, down: &down };
    known.has_all()?;
    let body = question.request.as_ref().map_or("", |body| body.get());
    let operation = operation(question, body)?;
    let caller = known.caller(question, operation, body)?;
    let asked = Asked {
        operation: operation.label(),
        caller: caller.id.to_string(),
        tenant: caller.tenant.to_string(),
        bytes: body.len(),
        chosen: question.caller.is_none(),
        model: None,
    };
    let start = Explanation::new(table.version().to_string(), alive.is_some(), asked);
    if operation == Operation::RiskAssess {
        payment::explain(known, &caller, question, start)
    } else {
        model::explain(known, (&caller, operation), question, start)
    }
}

/// What a request is: of payments it says so itself, of other calls the path would.
fn operation(question: &Question, body: &str) -> Result<Operation, Unanswerable> {
    if let Some(label) = &question.operation {
        let known = Operation::ALL.into_iter().find(|operation| operation.label() == label);
        let explained = |operation: &Operation| operation.asks_a_model() || *operation == Operation::RiskAssess;
        let labels = || Operation::ALL.iter().filter(|one| explained(one)).map(|one| one.label()).collect::<Vec<_>>();
        return known.filter(explained).ok_or_else(|| {
            Unanswerable(format!("there is no such operation to explain; known: {}", labels().join(", ")))
        });
    }
    let fields: BTreeMap<&str, &RawValue> = serde_json::from_str(body).unwrap_or_default();
    if fields.contains_key("out_trade_no") || fields.contains_key("total_amount") {
        return Ok(Operation::RiskAssess);
    }
    if question.model.is_some() || fields.contains_key("model") {
        return Ok(Operation::ChatCompletions);
    }
    Err(Unanswerable::new("say what is asked: a model, or a request with a model or a payment in it"))
}

impl Known<'_> {
    fn has_all(&self) -> Result<(), Unanswerable> {
        let routes = self.table.llm_routes().values().flat_map(|route| route.everybody());
        let risk = self.table.risk_route().into_iter().flat_map(|route| &route.candidates);
        let candidates: Vec<&Candidate> = routes.chain(risk).collect();
        let exists = |name: &str| {
            let is = |one: &&Candidate| one.upstream.as_str() == name || one.provider.id.as_str() == name;
            candidates.iter().any(is) || self.table.providers().contains_key(name)
        };
        if self.down.iter().all(|name| exists(name)) {
            return Ok(());
        }
        let known = self.table.providers().keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Err(Unanswerable(format!("what is given as down is neither a provider nor a candidate; providers: {known}")))
    }

    /// Who is not among the candidates because the configuration says so.
    fn switched_off(&self) -> Option<String> {
        let names = self.table.disabled();
        (!names.is_empty()).then(|| format!("not asked, because disabled in the configuration: {}", names.join(", ")))
    }

    fn caller(&self, question: &Question, operation: Operation, body: &str) -> Result<Arc<Caller>, Unanswerable> {
        let callers = self.table.callers();
        let names = || callers.iter().map(|caller| caller.id.to_string()).collect::<Vec<_>>().join(", ");
        if let Some(name) = &question.caller {
            let found = callers.iter().find(|caller| caller.id.as_str() == name);
            return found.cloned().ok_or_else(|| Unanswerable(format!("there is no such caller; known: {}", names())));
        }
        let fields: BTreeMap<&str, &RawValue> = serde_json::from_str(body).unwrap_or_default();
        let written = fields.get("model").and_then(|model| serde_json::from_str::<String>(model.get()).ok());
        let route = match operation {
            Operation::RiskAssess => "risk".to_owned(),
            _ => question.model.clone().or(written).unwrap_or_default(),
        };
        let first = callers.iter().find(|caller| caller.may_use(&route)).or_else(|| callers.first());
        first.cloned().ok_or_else(|| Unanswerable::new("there is no caller, so nobody could ask"))
    }

    fn is_down(&self, candidate: &Candidate) -> bool {
        self.down.contains(candidate.upstream.as_str()) || self.down.contains(candidate.provider.id.as_str())
    }

    /// What a call would see of a candidate now.
    fn seen(&self, candidate: &Candidate, form: Form) -> Seen {
        if self.is_down(candidate) {
            return Seen { standing: Standing::Open, ..Seen::default() };
        }
        let live = self.alive.and_then(|alive| alive.snapshot.upstreams().get(&candidate.upstream));
        let Some(live) = live else { return Seen::default() };
        let now = Instant::now();
        let standing = live.health.standing(now);
        let paused = standing != Standing::Open && live.provider.pause.left(now).is_some();
        let expected = live.latency.as_ref().and_then(|latency| latency.expected(now, form));
        Seen {
            standing: if paused { Standing::Paused } else { standing },
            latency: expected.map(|expected| u64::try_from(expected.as_micros()).unwrap_or(u64::MAX)),
            waiting: live.latency.as_ref().map_or(0, |latency| latency.waiting(form)),
        }
    }

    /// What is known of a candidate now.
    fn state(&self, candidate: &Candidate) -> Option<State> {
        let live = self.alive?.snapshot.upstreams().get(&candidate.upstream)?;
        let now = Instant::now();
        let paused = live.provider.pause.left(now);
        Some(State {
            breaker: live.health.state(now).label(),
            standing: live.health.standing(now).label(),
            paused_for_ms: paused.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            in_flight: live.provider.bulkhead.taken(),
            limit: live.provider.limit(),
        })
    }
}

fn score(question: &Question) -> Result<Option<Score>, Unanswerable> {
    let Some(score) = &question.score else { return Ok(None) };
    let text = score.get().trim_matches('"');
    let wrong = || Unanswerable::new("the score must be a number between 0 and 1");
    Score::parse(text).map(Some).ok_or_else(wrong)
}

fn fails(question: &Question) -> Result<Option<FallbackReason>, Unanswerable> {
    let Some(word) = &question.fails else { return Ok(None) };
    let known = findings::CAUSES.iter().find(|(known, _)| known == word);
    let words = findings::CAUSES.map(|(word, _)| word).join(", ");
    known.map(|(_, reason)| Some(*reason)).ok_or_else(|| Unanswerable(format!("fails must be one of {words}")))
}

#[cfg(test)]
mod tests;
