//! What an explanation is made of. Values for people, in the order in which somebody asks for them at night.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::decision::FallbackReason;

/// Names with values, in their order.
pub(super) type Facts = Map<String, Value>;

/// Why there can be no verdict, by the words of `on_exhausted`.
pub(super) const CAUSES: [(&str, FallbackReason); 6] = [
    ("deadline", FallbackReason::Deadline),
    ("unavailable", FallbackReason::Unavailable),
    ("no_verdict", FallbackReason::NoVerdict),
    ("not_authentic", FallbackReason::NotAuthentic),
    ("budget", FallbackReason::Budget),
    ("default", FallbackReason::OurFault),
];

/// An explanation.
#[derive(Serialize, Debug)]
pub struct Explanation {
    /// The version of the configuration.
    pub config: String,
    /// True if the present state of a running proxy is in it.
    pub live: bool,
    pub(super) asked: Asked,
    /// The route; absent if there is none for this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Why that route, or why none.
    pub because: String,
    /// What the caller would get instead of an answer, by the word of the access log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payment: Option<Box<Payment>>,
    /// The route's rules, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rules: Vec<Policy>,
    pub(super) candidates: Vec<Candidate>,
    #[serde(skip_serializing_if = "Facts::is_empty")]
    pub(super) timers: Facts,
    #[serde(skip_serializing_if = "Facts::is_empty")]
    pub(super) cache: Facts,
    /// What limits the caller.
    #[serde(skip_serializing_if = "Facts::is_empty")]
    pub(super) caller: Facts,
    /// What an answer from files alone had to assume.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

impl Explanation {
    pub(super) fn new(config: String, live: bool, asked: Asked) -> Self {
        Self {
            config,
            live,
            asked,
            route: None,
            because: String::new(),
            error: None,
            payment: None,
            rules: Vec::new(),
            candidates: Vec::new(),
            timers: Facts::new(),
            cache: Facts::new(),
            caller: Facts::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn refused(self, error: &'static str, because: impl Into<String>) -> Self {
        Self { error: Some(error), because: because.into(), ..self }
    }
}

/// What was asked.
#[derive(Serialize, Debug)]
pub(super) struct Asked {
    pub(super) operation: &'static str,
    pub(super) caller: String,
    pub(super) tenant: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    pub(super) bytes: usize,
    /// True if the question named no caller.
    #[serde(skip)]
    pub(super) chosen: bool,
}

/// A candidate and its place.
#[derive(Serialize, Debug)]
pub(super) struct Candidate {
    pub(super) upstream: String,
    /// From 1; absent if it is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) turn: Option<usize>,
    pub(super) because: String,
    /// The operation it is asked as, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sent_as: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) price: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<State>,
}

/// What a running proxy knows of a candidate.
#[derive(Serialize, Debug)]
pub(super) struct State {
    pub(super) breaker: &'static str,
    pub(super) standing: &'static str,
    pub(super) paused_for_ms: u64,
    /// Of its provider.
    pub(super) in_flight: u32,
    pub(super) limit: u32,
}

/// What decides a payment.
#[derive(Serialize, Debug)]
pub(super) struct Payment {
    pub(super) action: Option<&'static str>,
    /// What is given instead; told with the whole.
    #[serde(skip)]
    pub(super) error: Option<&'static str>,
    /// What was taken for the provider's answer, and what followed from it.
    pub(super) decided: Vec<String>,
    /// The policy's name.
    pub(super) policy: String,
    pub(super) bands: String,
    pub(super) policies: Vec<Policy>,
    pub(super) lists: Vec<List>,
    pub(super) velocity: Vec<String>,
    pub(super) without_verdict: Vec<Fallback>,
    pub(super) budgets: Vec<String>,
    pub(super) ladder: Vec<String>,
    pub(super) reuse: Vec<String>,
    pub(super) guards: Vec<Guard>,
}

/// A policy, and what became of it.
#[derive(Serialize, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// `decides`, `does not match`, `cannot be told`, `not reached`.
    pub(super) outcome: &'static str,
    pub(super) when: String,
    pub(super) terms: Vec<Term>,
}

/// A part of a condition.
#[derive(Serialize, Debug)]
pub(super) struct Term {
    pub(super) text: String,
    /// What it reads, as far as that may be shown.
    pub(super) reads: String,
    /// Absent if it cannot be told.
    pub(super) holds: Option<bool>,
}

/// A list.
#[derive(Serialize, Debug)]
pub(super) struct List {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) by: &'static str,
    pub(super) on_it: bool,
}

/// What is answered without a verdict.
#[derive(Serialize, Debug)]
pub(super) struct Fallback {
    pub(super) cause: &'static str,
    pub(super) mode: String,
    /// The action, or the error.
    pub(super) gives: &'static str,
}

/// A guard of reuse.
#[derive(Serialize, Debug)]
pub(super) struct Guard {
    pub(super) guard: &'static str,
    /// Whether it would let an equal, earlier payment's decision be given again; absent where that depends on the decision.
    pub(super) holds: Option<bool>,
}
