//! The answer of a decision, field for field as the contract has it.
//!
//! What the customer may read is chosen by the action alone: a sentence made from the provider's reasons would tell a
//! thief what to change.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::clock;
use crate::domain::decision::{Action, Decision, DecisionSource, Reused, Score};
use crate::domain::policy::{Applied, Bands};

/// A decision with what its answer says about it beyond the decision itself.
#[derive(Clone, Copy, Debug)]
pub struct DecisionView<'a> {
    /// The attempt it answers.
    pub out_trade_no: &'a str,
    /// The decision.
    pub decision: &'a Decision,
}

/// Writes the answer.
pub fn encode_decision(view: &DecisionView<'_>) -> Bytes {
    #[expect(
        clippy::expect_used,
        reason = "texts and numbers without maps always serialise; an empty 200 must not exist"
    )]
    let body = serde_json::to_vec(&answer(view)).expect("an answer always serialises");
    Bytes::from(body)
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    out_trade_no: &'a str,
    action: &'static str,
    recommendation: Option<&'a str>,
    risk_score: Option<Box<RawValue>>,
    source: &'static str,
    degraded: bool,
    late_verdict_expected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reuse: Option<Reuse<'a>>,
    reasons: Vec<Reason<'a>>,
    explanation: Option<Explanation<'a>>,
    step_up: Option<()>,
    policy: Policy<'a>,
    provider: Option<Provider<'a>>,
    cost: Option<Amount>,
    /// Absent for most: the answer rests on all that was asked for.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    features_dropped: &'a [String],
    created_at: String,
}

#[derive(Serialize)]
struct Reuse<'a> {
    of: &'a str,
    age_ms: u64,
    expires_in_ms: u64,
}

#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    text: &'a str,
}

#[derive(Serialize)]
struct Explanation<'a> {
    staff: &'a str,
    customer: &'static str,
}

#[derive(Serialize)]
struct Policy<'a> {
    rule: &'a str,
    version: &'a str,
    bands: Thresholds,
}

#[derive(Serialize)]
struct Thresholds {
    pass_below: Option<Box<RawValue>>,
    review_from: Option<Box<RawValue>>,
    reject_from: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Provider<'a> {
    id: &'a str,
    trace_id: Option<&'a str>,
    model_version: Option<&'a str>,
    latency_ms: u64,
}

#[derive(Serialize)]
struct Amount {
    amount: String,
    currency: &'static str,
}

fn answer<'a>(view: &DecisionView<'a>) -> Answer<'a> {
    let decision = view.decision;
    let verdict = decision.verdict.as_ref();
    Answer {
        id: view.decision.id.as_str(),
        out_trade_no: view.out_trade_no,
        action: decision.action.as_str(),
        recommendation: verdict.and_then(|verdict| verdict.recommendation.as_deref()),
        risk_score: verdict.and_then(|verdict| verdict.score).and_then(number),
        source: decision.source.as_str(),
        degraded: decision.is_degraded(),
        late_verdict_expected: decision.late_verdict_expected,
        reuse: decision.reused.as_ref().map(reuse),
        reasons: decision.reasons.iter().map(|reason| Reason { code: &reason.code, text: &reason.text }).collect(),
        explanation: staff_text(decision).map(|staff| Explanation { staff, customer: customer_text(decision.action) }),
        step_up: None,
        policy: policy(&decision.applied),
        provider: verdict.map(|verdict| provider(&verdict.provider)),
        cost: verdict
            .and_then(|verdict| verdict.cost)
            .map(|cost| Amount { amount: cost.amount(), currency: cost.currency.code() }),
        features_dropped: verdict.map_or(&[], |verdict| &verdict.features_dropped),
        created_at: clock::rfc3339(decision.created_at_ms),
    }
}

fn reuse(reused: &Reused) -> Reuse<'_> {
    Reuse { of: reused.of.as_str(), age_ms: reused.age_ms, expires_in_ms: reused.expires_in_ms }
}

fn provider(reference: &crate::domain::decision::ProviderReference) -> Provider<'_> {
    Provider {
        id: reference.id.as_str(),
        trace_id: reference.trace_id.as_deref(),
        model_version: reference.model_version.as_deref(),
        latency_ms: reference.latency_ms,
    }
}

fn policy(applied: &Applied) -> Policy<'_> {
    Policy { rule: &applied.rule, version: &applied.version, bands: thresholds(applied.bands) }
}

fn thresholds(bands: Bands) -> Thresholds {
    Thresholds {
        pass_below: number(bands.pass_below()),
        review_from: number(bands.review_from()),
        reject_from: bands.reject_from().and_then(number),
    }
}

/// A score as a JSON number in its own decimals: a float would write 0.1 + 0.2 as neither.
fn number(score: Score) -> Option<Box<RawValue>> {
    RawValue::from_string(score.to_string()).ok()
}

fn staff_text(decision: &Decision) -> Option<&str> {
    let said = decision.verdict.as_ref().and_then(|verdict| verdict.explanation.as_deref());
    said.or(match decision.source {
        DecisionSource::Fallback(reason) => Some(reason.text()),
        _ => None,
    })
}

fn customer_text(action: Action) -> &'static str {
    match action {
        Action::Pass => "Your payment has been checked and can go ahead.",
        Action::Challenge => "Please confirm that it is you who is paying.",
        Action::Review => "Your payment is being checked. We will tell you the result as soon as we have it.",
        Action::Reject => "This payment could not be accepted. Please contact the shop if you have questions.",
    }
}
