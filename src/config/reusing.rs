//! From `reuse` of `[risk]` to its policy: the rules that compare its keys.

use std::time::Duration;

use super::error::Code;
use super::raw::reuse::RawReuse;
use super::report::{Field, Report};
use super::reuse::ReusePolicy;
use crate::domain::decision::Score;
use crate::domain::money::Money;
use crate::domain::policy::Bands;
use crate::domain::reuse::Terms;

const DEFAULT_TTL: Duration = Duration::from_secs(15 * 60);
const DEFAULT_USES: u32 = 5;
/// 0.2, as far below the usual 0.3 as a score can drift between two calls.
const DEFAULT_SCORE: u32 = 200_000;
const DEFAULT_KNOWN: Duration = Duration::from_secs(7 * 86_400);
const DEFAULT_AUDIT: u32 = 50_000;
const DEFAULT_DISAGREEMENT: u32 = 20_000;

/// The policy, `None` if it is off or mistaken. `bands` are the route's own, if they could be read.
pub(super) fn policy(raw: &RawReuse, bands: Option<Bands>, report: &Report<'_>) -> Option<ReusePolicy> {
    if let (Some(score), Some(bands)) = (&raw.max_score, bands)
        && u64::from(score.value.micro()) * 3 > u64::from(bands.pass_below().micro()) * 2
    {
        let mistake = score.mistake(Code::Conflict, "too near the end of the PASS band");
        report.add(mistake.hint("write at most two thirds of bands.pass_below"));
    }
    let max_sum = raw.max_amount.as_ref().map(|amount| sum(raw, amount, report));
    let mode = raw.mode.as_ref()?.value?;
    if !raw.says_max_amount {
        let mistake = raw.at.mistake(Code::MissingKey, "missing key `max_amount`");
        report.add(mistake.hint("say up to what amount a decision may be given again, as in \"200.00 CNY\""));
    }
    let terms = Terms {
        ttl: raw.ttl.as_ref().map_or(DEFAULT_TTL, |ttl| ttl.value),
        max_amount: raw.max_amount.as_ref()?.value,
        max_sum: max_sum?,
        max_uses: raw.max_uses.as_ref().map_or(DEFAULT_USES, |uses| uses.value),
        max_score: raw.max_score.as_ref().map(|score| score.value).or(Score::from_micro(DEFAULT_SCORE))?,
        known_device: raw.known_device.as_ref().map_or(DEFAULT_KNOWN, |known| known.value),
    };
    Some(ReusePolicy {
        mode,
        terms,
        self_audit: raw.self_audit.as_ref().map_or(DEFAULT_AUDIT, |share| share.value),
        max_disagreement: raw.max_disagreement.as_ref().map_or(DEFAULT_DISAGREEMENT, |share| share.value),
    })
}

/// Without one, as much as one payment may be.
fn sum(raw: &RawReuse, amount: &Field<Money>, report: &Report<'_>) -> Money {
    let Some(sum) = &raw.max_sum else { return amount.value };
    let mistake = if sum.value.currency() != amount.value.currency() {
        Some("another currency than max_amount")
    } else if sum.value.minor() < amount.value.minor() {
        Some("less than max_amount")
    } else {
        None
    };
    if let Some(message) = mistake {
        report.add(sum.mistake(Code::Conflict, message).hint("it is what may pass together, in the same currency"));
    }
    sum.value
}
