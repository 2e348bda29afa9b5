//! What a record says, in bytes: a part for everybody who may read the file, and a part about a person.
//!
//! Both are JSON of fixed structs, with a version; the chain is over the bytes as they lie there, never over a second
//! spelling of them. Numbers that decide something are integers. No prompt, key or whole card number ever gets here: the
//! API takes none.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::chain::{hex, unhex};
use super::outbox::{Notice, Tried};
use crate::domain::currency::Currency;
use crate::domain::decision::{
    Action, Decision, DecisionSource, FallbackReason, Priced, ProviderReference, Reason, Reused, ReusedBecause, Score,
    Verdict,
};
use crate::domain::id::{DecisionId, ProviderId};
use crate::domain::money::Cost;
use crate::domain::policy::{Applied, Bands};
use crate::domain::retention::{Day, Keeping, Withheld};
use crate::wire::risk::{Assessment, Device, Instrument};

/// The spelling of both parts.
const VERSION: u8 = 1;

/// Something to be recorded.
#[derive(Clone)]
pub enum Entry {
    /// A decision, once for each id.
    Decision(Box<NewDecision>),
    /// What became of one.
    Outcome(Box<NewOutcome>),
    /// A payment attempt that was answered without a decision.
    Refusal(Box<NewDecision>),
    /// A notice for the outbox, no record.
    Notice(Box<Notice>),
    /// What became of one, no record either.
    Tried(Box<Tried>),
}

/// A decision to be recorded, or that there was none.
#[derive(Clone)]
pub struct NewDecision {
    pub(super) id: DecisionId,
    pub(super) tenant: String,
    pub(super) user: String,
    /// The last day on which the personal part can be read.
    pub(super) until: Option<Day>,
    pub(super) body: Vec<u8>,
    pub(super) personal: Zeroizing<Vec<u8>>,
    pub(super) notice: Option<Box<Notice>>,
}

/// An outcome to be recorded.
#[derive(Clone)]
pub struct NewOutcome {
    pub(super) id: String,
    pub(super) tenant: String,
    pub(super) body: Vec<u8>,
    pub(super) note: Option<String>,
}

/// A decision and all that is known of how it came about.
pub struct Told<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// Who asked.
    pub caller: &'a str,
    /// The call.
    pub request_id: &'a str,
    /// What was asked, decoded.
    pub assessment: &'a Assessment,
    /// SHA-256 of what was asked, as it arrived.
    pub digest: [u8; 32],
    /// What was answered.
    pub decision: &'a Decision,
    /// Who was asked, in order.
    pub attempts: Vec<Attempt>,
    /// From arrival to decision, in milliseconds.
    pub took_ms: u64,
    /// The answer given before this one, for a verdict that came late.
    pub instead_of: Option<&'a str>,
    /// What is kept of the person, and for how long.
    pub keeping: Keeping,
    /// Posted in the same transaction.
    pub notice: Option<Notice>,
}

/// One attempt at a provider.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Who was asked.
    pub upstream: String,
    /// `ok`, `failed`, `abandoned`.
    pub outcome: String,
    /// The failure class, or `none`.
    pub reason: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The part of a decision that is no personal data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Body {
    version: u8,
    /// The call.
    pub request_id: String,
    /// Who asked.
    pub caller: String,
    /// The merchant's number of the attempt.
    pub out_trade_no: String,
    /// Who was to be paid.
    pub merchant_id: String,
    /// What it sells.
    pub merchant_category: Option<String>,
    merchant_country: Option<String>,
    /// What was to be paid, as the caller spelled it.
    pub amount: String,
    /// In what.
    pub currency: String,
    features: Vec<String>,
    /// What to do.
    pub action: String,
    /// Where that came from.
    pub source: String,
    fallback: Option<String>,
    score_micro: Option<u32>,
    /// The provider's own word.
    pub recommendation: Option<String>,
    reasons: Vec<Coded>,
    rule: String,
    config: String,
    bands: [Option<u32>; 3],
    provider: Option<String>,
    /// The provider's name for the call.
    pub trace_id: Option<String>,
    /// The model that scored.
    pub model_version: Option<String>,
    provider_ms: u64,
    cost: Option<(i64, String)>,
    /// The price book's version and what was paid for.
    priced: Option<(String, Vec<String>)>,
    features_dropped: Vec<String>,
    attempts: Vec<Attempt>,
    took_ms: u64,
    late_verdict_expected: bool,
    /// When it was decided, milliseconds since 1970.
    pub created_at_ms: u64,
    instead_of: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    reused: Option<Again>,
    /// The last day, in UTC, on which the personal part can be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept_until: Option<String>,
}

/// Which earlier decision was given again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Again {
    of: String,
    age_ms: u64,
    expires_in_ms: u64,
    /// For want of a verdict, and not before one was asked for.
    stood_in: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Coded {
    code: String,
    /// Only where the words are our own: a provider's may be about the person.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<String>,
}

/// The part of a decision that is about a person.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Personal {
    version: u8,
    /// Of the whole request: with its help somebody could try out what it said.
    digest: String,
    /// Who paid.
    pub user_id: String,
    /// From where.
    pub country: Option<String>,
    email: Option<String>,
    phone: Option<String>,
    registered_at: Option<String>,
    instrument: [Option<String>; 4],
    device: [Option<String>; 3],
    /// What for: free text.
    subject: String,
    metadata: Option<String>,
    explanation: Option<String>,
    reasons: Vec<String>,
}

impl Entry {
    /// A decision's record. A verdict given again is recorded as what it was when it came: it is the same decision.
    pub fn decision(told: &Told<'_>) -> Self {
        let until = told.keeping.last_day(told.decision.created_at_ms);
        let body = Body::of(told);
        let personal = Personal::of(told.assessment, told.digest, told.keeping).and_words(told.decision);
        Self::Decision(Box::new(NewDecision {
            id: told.decision.id.clone(),
            tenant: told.tenant.to_owned(),
            user: told.assessment.user.id.clone(),
            until,
            body: spelled(&body),
            personal: Zeroizing::new(spelled(&personal)),
            notice: told.notice.clone().map(Box::new),
        }))
    }

    /// The decision it records.
    pub(super) fn decision_id(&self) -> Option<&DecisionId> {
        if let Self::Decision(new) | Self::Refusal(new) = self { Some(&new.id) } else { None }
    }

    /// Whether it is to be a link of the chain.
    pub fn is_record(&self) -> bool {
        matches!(self, Self::Decision(_) | Self::Refusal(_) | Self::Outcome(_))
    }

    /// An outcome's record. `at` is when it happened, milliseconds since 1970.
    pub fn outcome(tenant: &str, id: &str, outcome: &OutcomeBody, note: Option<String>) -> Self {
        let body = spelled(outcome);
        Self::Outcome(Box::new(NewOutcome { id: id.to_owned(), tenant: tenant.to_owned(), body, note }))
    }
}

/// What became of a payment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutcomeBody {
    /// One of the labels of the API.
    pub label: String,
    /// Who says so.
    pub by: String,
    /// When it happened, milliseconds since 1970.
    pub at_ms: i64,
}

/// A digest of all that a record keeps of a request in the clear, the attempt's number excepted.
pub fn rest_of(asked: &Assessment) -> [u8; 32] {
    let (category, country) = (asked.merchant.category.as_deref(), asked.merchant.country.as_deref());
    rest([&asked.merchant.id, &asked.amount_text, asked.currency().code()], [category, country], &asked.features)
}

fn rest(always: [&str; 3], maybe: [Option<&str>; 2], features: &[String]) -> [u8; 32] {
    Sha256::digest(spelled(&(always, maybe, features))).into()
}

pub(super) fn spelled(value: &impl Serialize) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "texts and numbers without maps always serialise; half a record must not exist"
    )]
    let bytes = serde_json::to_vec(value).expect("a record always serialises");
    bytes
}

impl Body {
    fn of(told: &Told<'_>) -> Self {
        let (assessment, decision) = (told.assessment, told.decision);
        let verdict = decision.verdict.as_ref();
        let provider = verdict.map(|verdict| &verdict.provider);
        let source = match decision.source {
            DecisionSource::Replayed if decision.reused.is_some() => DecisionSource::Cached,
            DecisionSource::Replayed => DecisionSource::Live,
            source => source,
        };
        let own = |reason: &Reason| verdict.is_none().then(|| reason.text.clone());
        let coded = |reason: &Reason| Coded { code: reason.code.clone(), text: own(reason) };
        let bands = decision.applied.bands;
        Self {
            version: VERSION,
            request_id: told.request_id.to_owned(),
            caller: told.caller.to_owned(),
            out_trade_no: assessment.out_trade_no.clone(),
            merchant_id: assessment.merchant.id.clone(),
            merchant_category: assessment.merchant.category.clone(),
            merchant_country: assessment.merchant.country.clone(),
            amount: assessment.amount_text.clone(),
            currency: assessment.currency().code().to_owned(),
            features: assessment.features.clone(),
            action: decision.action.as_str().to_owned(),
            source: source.as_str().to_owned(),
            fallback: if let DecisionSource::Fallback(reason) = source { Some(reason.code().to_owned()) } else { None },
            score_micro: verdict.and_then(|verdict| verdict.score).map(Score::micro),
            recommendation: verdict.and_then(|verdict| verdict.recommendation.clone()),
            reasons: decision.reasons.iter().map(coded).collect(),
            rule: decision.applied.rule.to_string(),
            config: decision.applied.version.to_string(),
            bands: [Some(bands.pass_below()), Some(bands.review_from()), bands.reject_from()]
                .map(|score| score.map(Score::micro)),
            provider: provider.map(|provider| provider.id.to_string()),
            trace_id: provider.and_then(|provider| provider.trace_id.clone()),
            model_version: provider.and_then(|provider| provider.model_version.clone()),
            provider_ms: provider.map_or(0, |provider| provider.latency_ms),
            cost: verdict.and_then(|verdict| verdict.cost).map(|cost| (cost.micro, cost.currency.code().to_owned())),
            priced: verdict
                .and_then(|verdict| verdict.priced.as_ref())
                .map(|priced| (priced.version.to_string(), priced.features.clone())),
            features_dropped: verdict.map(|verdict| verdict.features_dropped.clone()).unwrap_or_default(),
            attempts: told.attempts.clone(),
            took_ms: told.took_ms,
            late_verdict_expected: decision.late_verdict_expected,
            created_at_ms: decision.created_at_ms,
            instead_of: told.instead_of.map(str::to_owned),
            reused: decision.reused.as_ref().map(|reused| Again {
                of: reused.of.to_string(),
                age_ms: reused.age_ms,
                expires_in_ms: reused.expires_in_ms,
                stood_in: reused.because == ReusedBecause::NoVerdict,
            }),
            kept_until: told.keeping.last_day(decision.created_at_ms).map(Day::text),
        }
    }

    /// Reads the bytes of a record.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|body: &Self| body.version == VERSION)
    }

    /// As [`rest_of`] the request it was made for.
    pub fn rest(&self) -> [u8; 32] {
        let (category, country) = (self.merchant_category.as_deref(), self.merchant_country.as_deref());
        rest([&self.merchant_id, &self.amount, &self.currency], [category, country], &self.features)
    }

    /// The provider's score.
    pub fn score(&self) -> Option<Score> {
        Score::from_micro(self.score_micro?)
    }

    /// The decision as it was; without `personal` no words of the provider's are left.
    pub fn decision(&self, id: &str, personal: Option<&Personal>) -> Option<Decision> {
        let [pass, review, reject] = self.bands.map(|micro| micro.and_then(Score::from_micro));
        let mut words = personal.into_iter().flat_map(|personal| &personal.reasons);
        let reason = |coded: &Coded| Reason {
            code: coded.code.clone(),
            text: coded.text.clone().or_else(|| words.next().cloned()).unwrap_or_default(),
        };
        Some(Decision {
            id: DecisionId::new(id),
            action: [Action::Pass, Action::Challenge, Action::Review, Action::Reject]
                .into_iter()
                .find(|action| action.as_str() == self.action)?,
            source: self.source()?,
            verdict: self.provider.as_ref().map(|provider| self.verdict(provider, personal)),
            reasons: self.reasons.iter().map(reason).collect(),
            applied: Applied {
                rule: Arc::from(self.rule.as_str()),
                version: Arc::from(self.config.as_str()),
                bands: Bands::new(pass?, review?, reject)?,
            },
            late_verdict_expected: self.late_verdict_expected,
            created_at_ms: self.created_at_ms,
            reused: self.reused.as_ref().map(|again| Reused {
                of: DecisionId::new(again.of.as_str()),
                age_ms: again.age_ms,
                expires_in_ms: again.expires_in_ms,
                because: if again.stood_in { ReusedBecause::NoVerdict } else { ReusedBecause::First },
            }),
        })
    }

    fn verdict(&self, provider: &str, personal: Option<&Personal>) -> Verdict {
        let cost =
            self.cost.as_ref().and_then(|(micro, code)| Some(Cost { micro: *micro, currency: Currency::parse(code)? }));
        Verdict {
            score: self.score(),
            recommendation: self.recommendation.clone(),
            explanation: personal.and_then(|personal| personal.explanation.clone()),
            provider: ProviderReference {
                id: ProviderId::new(provider),
                trace_id: self.trace_id.clone(),
                model_version: self.model_version.clone(),
                latency_ms: self.provider_ms,
            },
            cost,
            priced: self
                .priced
                .as_ref()
                .map(|(version, features)| Priced { version: Arc::from(version.as_str()), features: features.clone() }),
            features_dropped: self.features_dropped.clone(),
        }
    }

    fn source(&self) -> Option<DecisionSource> {
        let fallback = FallbackReason::ALL.into_iter().find(|reason| self.fallback.as_deref() == Some(reason.code()));
        match self.source.as_str() {
            "live" => Some(DecisionSource::Live),
            "late" => Some(DecisionSource::Late),
            "cached" => Some(DecisionSource::Cached),
            "fallback" => fallback.map(DecisionSource::Fallback),
            _ => None,
        }
    }
}

impl Personal {
    pub(super) fn of(assessment: &Assessment, digest: [u8; 32], keeping: Keeping) -> Self {
        let Assessment { user, instrument, device, subject, metadata, .. } = assessment;
        let Instrument { kind, fingerprint, bin, last4 } = instrument.clone();
        let Device { id, ip, known_since } = device.clone();
        let known_since = known_since.map(|moment| moment.text);
        let kept = |field| !keeping.redact.has(field);
        let in_device = |value: Option<String>| value.filter(|_| kept(Withheld::Device));
        let in_instrument = |value: Option<String>| value.filter(|_| kept(Withheld::Instrument));
        Self {
            version: VERSION,
            digest: hex(&digest),
            user_id: user.id.clone(),
            country: user.country.clone(),
            email: user.email.clone().filter(|_| kept(Withheld::Email)),
            phone: user.phone.clone().filter(|_| kept(Withheld::Phone)),
            registered_at: user.registered_at.as_ref().map(|moment| moment.text.clone()),
            instrument: [kind, in_instrument(fingerprint), in_instrument(bin), in_instrument(last4)],
            device: [in_device(id), in_device(ip).filter(|_| kept(Withheld::Ip)), in_device(known_since)],
            subject: if kept(Withheld::Subject) { subject.clone() } else { String::new() },
            metadata: metadata.clone().filter(|_| kept(Withheld::Metadata)),
            explanation: None,
            reasons: Vec::new(),
        }
    }

    /// With the provider's words.
    fn and_words(mut self, decision: &Decision) -> Self {
        if let Some(verdict) = &decision.verdict {
            self.explanation.clone_from(&verdict.explanation);
            self.reasons = decision.reasons.iter().map(|reason| reason.text.clone()).collect();
        }
        self
    }

    /// Reads what was sealed.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|personal: &Self| personal.version == VERSION)
    }

    /// SHA-256 of the request's body.
    pub fn digest(&self) -> Option<[u8; 32]> {
        unhex(&self.digest)
    }
}
