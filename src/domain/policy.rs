//! From a score and a recommendation to an action. Pure, exact, and unable to turn "unknown" into a pass.

use std::sync::Arc;

use super::decision::{Action, Score};
use super::money::Money;

/// Half-open bands: [0, `pass_below`) PASS, [`pass_below`, `review_from`) CHALLENGE, [`review_from`, `reject_from`) REVIEW,
/// [`reject_from`, 1] REJECT. A score equal to a threshold belongs to the band above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bands {
    pass_below: Score,
    review_from: Score,
    reject_from: Option<Score>,
}

/// What the provider's own recommendation may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VendorAction {
    /// It can make the action more severe, never less.
    Floor,
    /// It is recorded and ignored.
    Advisory,
}

/// What to answer when no verdict could be had. There is no bare "accept".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExhausted {
    /// A person decides.
    Review,
    /// Stop the payment.
    Reject,
    /// 503, and the caller decides.
    Error,
    /// PASS for amounts up to this one in the same currency, REVIEW otherwise; never after an answer that was not authentic.
    AcceptUpTo(Money),
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

/// What decides one payment attempt: the policy that matched it, or the route's own settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruling {
    /// What the answer says of it.
    pub applied: Applied,
    /// What the provider's recommendation may do.
    pub vendor_action: VendorAction,
    /// What to answer when no verdict could be had.
    pub on_exhausted: OnExhausted,
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

/// The action for an authentic verdict, or `None` if it holds nothing to decide on.
///
/// A missing score cannot pass on the recommendation's word alone under [`VendorAction::Advisory`]; under
/// [`VendorAction::Floor`] a recommendation without a score is a verdict, except that PASS without a score is a REVIEW:
/// nothing was measured.
pub fn decide(
    bands: Bands,
    vendor: VendorAction,
    score: Option<Score>,
    recommendation: Option<&str>,
) -> Option<Action> {
    let floor = match vendor {
        VendorAction::Floor => recommendation.map(Action::of_recommendation),
        VendorAction::Advisory => None,
    };
    match (score.map(|score| bands.action(score)), floor) {
        (Some(band), Some(floor)) => Some(band.max(floor)),
        (Some(band), None) => Some(band),
        (None, Some(floor)) if floor > Action::Pass => Some(floor),
        (None, Some(_)) => Some(Action::Review),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(text: &str) -> Score {
        Score::parse(text).unwrap()
    }

    fn bands() -> Bands {
        Bands::new(score("0.3"), score("0.7"), Some(score("0.9"))).unwrap()
    }

    #[test]
    fn a_score_equal_to_a_threshold_belongs_to_the_band_above() {
        let action = |text| bands().action(score(text));
        assert_eq!(action("0"), Action::Pass);
        assert_eq!(action("0.299999"), Action::Pass);
        assert_eq!(action("0.3"), Action::Challenge);
        assert_eq!(action("0.7"), Action::Review);
        assert_eq!(action("0.9"), Action::Reject);
        assert_eq!(action("1"), Action::Reject);
    }

    #[test]
    fn without_a_reject_threshold_nothing_is_rejected_by_score() {
        let bands = Bands::new(score("0.3"), score("0.7"), None).unwrap();
        assert_eq!(bands.action(Score::ONE), Action::Review);
    }

    #[test]
    fn the_recommendation_is_a_floor_unless_advisory() {
        let decide = |vendor, word| decide(bands(), vendor, Some(score("0.42")), word);
        assert_eq!(decide(VendorAction::Floor, Some("REVIEW")), Some(Action::Review));
        assert_eq!(decide(VendorAction::Floor, Some("PASS")), Some(Action::Challenge));
        assert_eq!(decide(VendorAction::Floor, Some("shrug")), Some(Action::Review));
        assert_eq!(decide(VendorAction::Advisory, Some("REJECT")), Some(Action::Challenge));
    }

    #[test]
    fn c8_no_score_is_never_a_pass() {
        assert_eq!(decide(bands(), VendorAction::Floor, None, Some("PASS")), Some(Action::Review));
        assert_eq!(decide(bands(), VendorAction::Floor, None, Some("REJECT")), Some(Action::Reject));
        assert_eq!(decide(bands(), VendorAction::Floor, None, None), None);
        assert_eq!(decide(bands(), VendorAction::Advisory, None, Some("PASS")), None);
    }

    #[test]
    fn crossing_thresholds_are_no_bands() {
        assert_eq!(Bands::new(score("0.7"), score("0.3"), None), None);
        assert_eq!(Bands::new(score("0.3"), score("0.7"), Some(score("0.5"))), None);
    }

    proptest! {
        #[test]
        fn a_higher_score_is_never_treated_more_mildly(a in 0u32..=1_000_000, b in 0u32..=1_000_000) {
            let (low, high) = (Score::from_micro(a.min(b)).unwrap(), Score::from_micro(a.max(b)).unwrap());
            prop_assert!(bands().action(low) <= bands().action(high));
        }
    }
}
