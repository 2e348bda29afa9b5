//! A risk decision and where it came from.

use std::fmt;
use std::sync::Arc;

use super::id::{DecisionId, ProviderId};
use super::money::Cost;

/// What payment code should do, in order of severity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Go ahead.
    Pass,
    /// Ask for a second factor.
    Challenge,
    /// A person decides.
    Review,
    /// Stop.
    Reject,
}

impl Action {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Challenge => "CHALLENGE",
            Self::Review => "REVIEW",
            Self::Reject => "REJECT",
        }
    }

    /// Reads a provider's recommendation. Exactly the known words: anything else is a [`Action::Review`] to be counted,
    /// never a pass (C10).
    pub fn of_recommendation(word: &str) -> Self {
        Self::parse(word).unwrap_or(Self::Review)
    }

    /// Reads exactly one of the four words.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "PASS" => Some(Self::Pass),
            "CHALLENGE" => Some(Self::Challenge),
            "REVIEW" => Some(Self::Review),
            "REJECT" => Some(Self::Reject),
            _ => None,
        }
    }
}

/// A score in [0, 1] as millionths, so that comparisons with thresholds are exact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(u32);

impl Score {
    /// One, the largest.
    pub const ONE: Self = Self(1_000_000);

    /// Reads a JSON number's own spelling. Digits beyond the sixth decimal are cut, which can only make a score
    /// smaller by less than a millionth; anything outside [0, 1] is `None`, never clamped (C8).
    pub fn parse(number: &str) -> Option<Self> {
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok().filter(|e| e.abs() <= 30)?),
            None => (number, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        if whole.is_empty() || digits.len() > 40 || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let point = i32::try_from(whole.len()).ok()? + exponent;
        let wanted = point + 6;
        let digit =
            |index: i32| usize::try_from(index).ok().and_then(|i| digits.get(i)).map_or(0, |b| u64::from(b - b'0'));
        let mut micro: u64 = 0;
        for index in 0..wanted.max(0) {
            micro = micro.checked_mul(10)?.checked_add(digit(index))?;
        }
        let cut_off_something = (wanted.max(0)..i32::try_from(digits.len()).ok()?).any(|index| digit(index) != 0);
        let score = u32::try_from(micro).ok().filter(|&micro| micro <= Self::ONE.0)?;
        let above_one = score == Self::ONE.0 && cut_off_something;
        (!above_one).then_some(Self(score))
    }

    /// The score from millionths, `None` above one million.
    pub fn from_micro(micro: u32) -> Option<Self> {
        (micro <= Self::ONE.0).then_some(Self(micro))
    }

    /// Millionths.
    pub fn micro(self) -> u32 {
        self.0
    }

    /// For histograms and JSON only; never compared.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}

impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Half-open bands: [0, `pass_below`) PASS, [`pass_below`, `review_from`) CHALLENGE, [`review_from`, `reject_from`) REVIEW,
/// [`reject_from`, 1] REJECT. A score equal to a threshold belongs to the band above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bands {
    pass_below: Score,
    review_from: Score,
    reject_from: Option<Score>,
}

impl Bands {
    /// Bands whose thresholds do not cross; `None` if they do.
    pub fn new(pass_below: Score, review_from: Score, reject_from: Option<Score>) -> Option<Self> {
        let ordered = pass_below <= review_from && reject_from.is_none_or(|reject| review_from <= reject);
        ordered.then_some(Self { pass_below, review_from, reject_from })
    }

    /// Below this a payment passes.
    pub fn pass_below(self) -> Score {
        self.pass_below
    }

    /// From here on a person looks at it.
    pub fn review_from(self) -> Score {
        self.review_from
    }

    /// From here on it is rejected, if the merchant wants that at all.
    pub fn reject_from(self) -> Option<Score> {
        self.reject_from
    }

    /// The band a score falls into.
    pub fn action(self, score: Score) -> Action {
        if self.reject_from.is_some_and(|reject| score >= reject) {
            Action::Reject
        } else if score >= self.review_from {
            Action::Review
        } else if score >= self.pass_below {
            Action::Challenge
        } else {
            Action::Pass
        }
    }
}

/// The name of the rule that decides where no policy matches.
pub const DEFAULT_RULE: &str = "default";

/// Which rule decided, as the answer and the record say it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// The name of the policy that matched, or [`DEFAULT_RULE`].
    pub rule: Arc<str>,
    /// The configuration it is from: 12 hex digits.
    pub version: Arc<str>,
    /// Its thresholds.
    pub bands: Bands,
}

#[cfg(test)]
impl Applied {
    /// The default rule with the seed's bands.
    pub(crate) fn sample() -> Self {
        let [pass, review] = [300_000, 700_000].map(|micro| Score::from_micro(micro).unwrap_or(Score::ONE));
        let bands = Bands { pass_below: pass, review_from: review, reject_from: None };
        Self { rule: DEFAULT_RULE.into(), version: "3f9a12c0ffee".into(), bands }
    }
}

/// Where a decision came from. It is on every record and metric, so "not evaluated" can never read as a pass.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DecisionSource {
    /// The provider, just now.
    Live,
    /// The same payment attempt asked again.
    Replayed,
    /// The provider, after an earlier fallback had been answered.
    Late,
    /// The provider, for an earlier payment like this one.
    Cached,
    /// Nobody: the route's failure mode.
    Fallback(FallbackReason),
}

/// Why no verdict could be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FallbackReason {
    /// The deadline came first.
    Deadline,
    /// Every candidate failed.
    Unavailable,
    /// An answer came that could not be trusted.
    NotAuthentic,
    /// An answer came without a usable score or recommendation.
    NoVerdict,
    /// The merchant's money for decisions is spent.
    Budget,
    /// A bug of ours.
    OurFault,
}

impl DecisionSource {
    /// The word on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Replayed => "replayed",
            Self::Late => "late",
            Self::Cached => "cached",
            Self::Fallback(_) => "fallback",
        }
    }
}

impl FallbackReason {
    /// Every one of them.
    pub const ALL: [Self; 6] =
        [Self::Deadline, Self::Unavailable, Self::NotAuthentic, Self::NoVerdict, Self::Budget, Self::OurFault];

    /// The reason code given to payment code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Deadline => "deadline_passed",
            Self::Unavailable => "provider_unavailable",
            Self::NotAuthentic => "response_not_authentic",
            Self::NoVerdict => "no_verdict",
            Self::Budget => "budget_spent",
            Self::OurFault => "internal_error",
        }
    }

    /// One sentence for support staff.
    pub fn text(self) -> &'static str {
        match self {
            Self::Deadline => "the risk provider did not answer within the deadline",
            Self::Unavailable => "no risk provider could be reached",
            Self::NotAuthentic => "the risk provider's answer was not authentic and was ignored",
            Self::NoVerdict => "the risk provider answered without a usable verdict",
            Self::Budget => "the merchant's budget has no room for a risk decision, so no provider was asked",
            Self::OurFault => "the proxy failed; the log has the details",
        }
    }
}

/// One reason a provider or a rule gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// A stable word.
    pub code: String,
    /// A sentence for staff.
    pub text: String,
}

/// Which provider decided, and what an audit needs to find the call there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderReference {
    /// The provider.
    pub id: ProviderId,
    /// Its own name for the call.
    pub trace_id: Option<String>,
    /// The model that scored, as the provider reported it.
    pub model_version: Option<String>,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
}

/// A provider's verdict, authentic and decoded, before our bands are applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// `None` where the provider gave none or one outside [0, 1].
    pub score: Option<Score>,
    /// The provider's own word, verbatim.
    pub recommendation: Option<String>,
    /// The provider's explanation for staff.
    pub explanation: Option<String>,
    /// Who said it.
    pub provider: ProviderReference,
    /// What it cost, `None` if the descriptor has no price.
    pub cost: Option<Cost>,
    /// What that cost is the price of; `None` if the descriptor has none.
    pub priced: Option<Priced>,
    /// Features that were asked for and that a merchant's budget left out, in the order they were given up.
    pub features_dropped: Vec<String>,
}

/// What a price was paid for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Priced {
    /// The price list, by its own name.
    pub version: Arc<str>,
    /// The features asked of the provider.
    pub features: Vec<String>,
}

/// The answer to one payment attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Its name, the same each time it is given: `ra_…`.
    pub id: DecisionId,
    /// What to do.
    pub action: Action,
    /// Where that came from.
    pub source: DecisionSource,
    /// The verdict behind it, absent for a fallback.
    pub verdict: Option<Verdict>,
    /// Why.
    pub reasons: Vec<Reason>,
    /// The rule that decided.
    pub applied: Applied,
    /// True if a provider's late verdict may still follow.
    pub late_verdict_expected: bool,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Which earlier decision was given again, if one was.
    pub reused: Option<Reused>,
}

/// An earlier decision given again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reused {
    /// Its name.
    pub of: DecisionId,
    /// How old it was, in milliseconds.
    pub age_ms: u64,
    /// How much longer it would have been good, in milliseconds.
    pub expires_in_ms: u64,
    /// Why.
    pub because: ReusedBecause,
}

/// Why an earlier decision was given again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReusedBecause {
    /// The route asks memory first.
    First,
    /// No provider decided in time.
    NoVerdict,
}

impl Decision {
    /// True if it is not what was wanted of a provider just now.
    pub fn is_degraded(&self) -> bool {
        let stood_in = self.reused.as_ref().is_some_and(|reused| reused.because == ReusedBecause::NoVerdict);
        stood_in || matches!(self.source, DecisionSource::Fallback(_))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn c8_scores_outside_zero_to_one_are_missing_not_clamped() {
        for bad in [
            "-0.1",
            "-0",
            "1.0000001",
            "1.5",
            "2",
            "1e1",
            "1e999",
            "NaN",
            "Infinity",
            "\"0.5\"",
            "null",
            "",
            ".5",
            "+0.5",
            "0,5",
        ] {
            assert_eq!(Score::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn c8_scores_inside_are_exact_to_a_millionth() {
        let micro = |text| Score::parse(text).map(Score::micro);
        assert_eq!(micro("0"), Some(0));
        assert_eq!(micro("0.3"), Some(300_000));
        assert_eq!(micro("0.7000009"), Some(700_000));
        assert_eq!(micro("1"), Some(1_000_000));
        assert_eq!(micro("1.000"), Some(1_000_000));
        assert_eq!(micro("42e-2"), Some(420_000));
        assert_eq!(micro("0.42E0"), Some(420_000));
        assert_eq!(micro("1e-9"), Some(0));
    }

    #[test]
    fn c10_a_word_we_do_not_know_is_a_review() {
        for word in ["PASS ", "accept", "pass", "", "APPROVE"] {
            assert_eq!(Action::of_recommendation(word), Action::Review, "{word:?}");
        }
    }

    proptest! {
        #[test]
        fn every_score_survives_its_own_spelling(micro in 0u32..=1_000_000) {
            let score = Score(micro);
            prop_assert_eq!(Score::parse(&format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)), Some(score));
        }
    }
}
