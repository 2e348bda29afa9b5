//! `[[test]]`: what is asked of a configuration, and what must come of it.
//!
//! Values only, every name looked up. Asking is `routing::rehearsal`'s, by the functions that lead real calls; a case knows
//! where in the file it stands, so that what fails is told like any other mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::ConfigError;
use crate::domain::decision::{Action, FallbackReason, Score};
use crate::domain::id::{CallerId, UpstreamId};
use crate::domain::operation::Operation;
use crate::domain::policy::Bands;
use crate::wire::risk::Assessment;

/// When payments of tests are made that do not say: 2026-01-01T12:00:00Z, in milliseconds since 1970.
pub(super) const NOON: i64 = 1_767_268_800_000;
/// The same for calls, which have it from conditions.
pub const NOON_MS: u64 = NOON.unsigned_abs();
/// The error of a model that is no route's name.
pub const UNKNOWN_MODEL: &str = "unknown_model";

/// What kind of request an error can be expected of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    Models,
    Payments,
    Both,
}

/// The errors that can be expected, by the word the access log has for them.
pub(super) const ERRORS: [(&str, Of); 10] = [
    (UNKNOWN_MODEL, Of::Models),
    ("not_allowed", Of::Both),
    ("not_offered", Of::Models),
    ("price_unknown", Of::Models),
    ("open", Of::Models),
    ("deadline_passed", Of::Payments),
    ("provider_unavailable", Of::Payments),
    ("response_not_authentic", Of::Payments),
    ("no_verdict", Of::Payments),
    ("budget_spent", Of::Payments),
];

/// One test. Equal if it asks and expects the same under the same name, wherever it stands.
#[derive(Clone, Debug)]
pub struct Case {
    /// For people.
    pub name: Arc<str>,
    /// Who asks.
    pub caller: CallerId,
    /// Providers and upstreams that take no calls.
    pub down: BTreeSet<String>,
    /// What is asked.
    pub asked: Asked,
    /// What must come of it; never empty.
    pub expected: Vec<Expectation>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A call to a model.
    Model(ModelCall),
    /// A payment attempt.
    Payment(Box<Payment>),
}

/// A call to a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelCall {
    /// What the caller writes in `model`.
    pub model: String,
    /// What it wants.
    pub operation: Operation,
    /// Bytes of its body.
    pub bytes: usize,
    /// True if it wants its answer as it is made.
    pub stream: bool,
    /// Its headers, by name in lower case.
    pub headers: BTreeMap<String, String>,
}

/// A payment attempt, and what the provider says to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payment {
    /// The request.
    pub assessment: Assessment,
    /// When, milliseconds since 1970.
    pub now_ms: u64,
    /// The provider's score.
    pub score: Option<Score>,
    /// The provider's own word.
    pub recommendation: Option<String>,
    /// Why there is no verdict.
    pub fails: Option<FallbackReason>,
    /// Lists that somebody of it is on, besides those it is on by its values.
    pub lists: Vec<Arc<str>>,
    /// What counters say; those that are not named say 0.
    pub velocity: BTreeMap<String, i64>,
}

/// One thing that must come of it, and where that is written.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// What.
    pub wanted: Wanted,
    place: Box<ConfigError>,
}

/// What can be expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Who is asked, in this order.
    Order(Vec<UpstreamId>),
    /// Who is asked, in whatever order.
    AnyOrder(BTreeSet<UpstreamId>),
    /// The route's name.
    Route(String),
    /// The error the caller gets.
    Error(&'static str),
    /// The action of the decision.
    Action(Action),
    /// The policy that decides; `default` for none.
    Policy(String),
    /// Thresholds; those that are not named may be any.
    Bands {
        /// Below this a payment passes.
        pass_below: Option<Score>,
        /// From here on it is reviewed.
        review_from: Option<Score>,
        /// From here on it is rejected.
        reject_from: Option<Score>,
    },
}

impl PartialEq for Case {
    fn eq(&self, other: &Self) -> bool {
        let wanted = |case: &Self| case.expected.iter().map(|expected| expected.wanted.clone()).collect::<Vec<_>>();
        self.name == other.name
            && self.caller == other.caller
            && self.down == other.down
            && self.asked == other.asked
            && wanted(self) == wanted(other)
    }
}

impl Eq for Case {}

impl Expectation {
    /// Wanted, and a mistake that stands where it is written.
    pub(super) fn new(wanted: Wanted, place: ConfigError) -> Self {
        Self { wanted, place: Box::new(place) }
    }

    /// The mistake of a configuration that does something else.
    pub fn failed(&self, case: &Case, expected: &str, got: &str, why: Option<String>) -> ConfigError {
        ConfigError {
            message: format!("the test \"{}\" fails: expected {expected}, got {got}", case.name),
            hint: why,
            ..ConfigError::clone(&self.place)
        }
    }
}

/// Thresholds in words, as a test compares them.
pub fn bands_in_words(bands: Bands) -> String {
    let reject = bands.reject_from().map(|score| format!(", reject_from {score}")).unwrap_or_default();
    format!("pass_below {}, review_from {}{reject}", bands.pass_below(), bands.review_from())
}
