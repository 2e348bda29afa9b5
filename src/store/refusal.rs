//! What a record says of a payment attempt that was answered without a decision.
//!
//! Where a route says so (`on_exhausted = "error"`) the caller gets an error and decides for itself; that it was left alone,
//! with what and why, is worth a record too. It is no decision: nothing gives it again, and no export of decisions has it.

use serde::Serialize;
use zeroize::Zeroizing;

use super::record::{Attempt, Entry, NewDecision, Personal, spelled};
use crate::domain::decision::FallbackReason;
use crate::domain::id::DecisionId;
use crate::domain::policy::Applied;
use crate::domain::retention::{Day, Keeping};
use crate::wire::risk::Assessment;

const VERSION: u8 = 1;

/// A refusal and all that is known of how it came about.
pub struct Refused<'a> {
    /// Whose attempt it was.
    pub tenant: &'a str,
    /// Who asked.
    pub caller: &'a str,
    /// The call, which is the record's name too.
    pub request_id: &'a str,
    /// What was asked, decoded.
    pub assessment: &'a Assessment,
    /// SHA-256 of what was asked, as it arrived.
    pub digest: [u8; 32],
    /// Why there is no decision.
    pub reason: FallbackReason,
    /// Which rule of which configuration says that there is none then.
    pub applied: &'a Applied,
    /// Who was asked, in order.
    pub attempts: Vec<Attempt>,
    /// From arrival to refusal, in milliseconds.
    pub took_ms: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What is kept of the person, and for how long.
    pub keeping: Keeping,
}

#[derive(Serialize)]
struct Body<'a> {
    version: u8,
    request_id: &'a str,
    caller: &'a str,
    out_trade_no: &'a str,
    merchant_id: &'a str,
    merchant_category: Option<&'a str>,
    merchant_country: Option<&'a str>,
    amount: &'a str,
    currency: &'a str,
    features: &'a [String],
    reason: &'a str,
    rule: &'a str,
    config: &'a str,
    attempts: &'a [Attempt],
    took_ms: u64,
    created_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
}

impl Entry {
    /// A refusal's record.
    pub fn refusal(refused: &Refused<'_>) -> Self {
        let asked = refused.assessment;
        let until = refused.keeping.last_day(refused.at_ms);
        let body = Body {
            version: VERSION,
            request_id: refused.request_id,
            caller: refused.caller,
            out_trade_no: &asked.out_trade_no,
            merchant_id: &asked.merchant.id,
            merchant_category: asked.merchant.category.as_deref(),
            merchant_country: asked.merchant.country.as_deref(),
            amount: &asked.amount_text,
            currency: asked.currency().code(),
            features: &asked.features,
            reason: refused.reason.code(),
            rule: &refused.applied.rule,
            config: &refused.applied.version,
            attempts: &refused.attempts,
            took_ms: refused.took_ms,
            created_at_ms: refused.at_ms,
            kept_until: until.map(Day::text),
        };
        Self::Refusal(Box::new(NewDecision {
            // An attempt without a decision has no other name.
            id: DecisionId::new(refused.request_id),
            tenant: refused.tenant.to_owned(),
            user: asked.user.id.clone(),
            until,
            body: spelled(&body),
            personal: Zeroizing::new(spelled(&Personal::of(asked, refused.digest, refused.keeping))),
            notice: None,
        }))
    }
}
